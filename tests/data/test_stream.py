"""Reading pictures ahead of their use."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_cyclegan import picture

from anifast.data.folders import read_image, resize, scan, to_tensor
from anifast.data.stream import image_batches, in_order, read_batches
from anifast.errors import ImageError


def test_work_is_given_in_order_and_not_far_ahead() -> None:
    started: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        for item, future in in_order(range(20), lambda i: started.append(i) or i * i, pool, 4):  # type: ignore[func-returns-value]
            assert future.result() == item**2
            assert max(started) <= item + 4
    assert sorted(started) == list(range(20))


def test_batches_of_a_folder(tmp_path: Path) -> None:
    for i in range(7):
        picture(tmp_path / f"{i}.png", i, (20 + i, 30))
    expected = [to_tensor(resize(read_image(tmp_path / f"{i}.png"), 16)) for i in range(7)]
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    failed: dict[str, str] = {}
    batches = list(image_batches(scan(tmp_path), 16, 4, failed))
    assert [len(batch) for batch in batches] == [4, 2]
    assert torch.equal(torch.cat(batches), torch.stack(expected[:3] + expected[4:]))
    assert list(failed) == ["3.png"] and failed["3.png"].startswith("the PNG cannot be decoded")


def test_what_cannot_be_read_is_told_and_left_out() -> None:
    def read(number: int) -> int:
        if number % 3 == 0:
            raise ImageError(f"{number}: no picture")
        return number**2

    told: list[tuple[int, str]] = []
    groups = list(read_batches(range(10), read, 4, lambda number, error: told.append((number, str(error))), workers=2))
    assert [[number for number, _ in group] for group in groups] == [[1, 2, 4, 5], [7, 8]]
    assert all(result == number**2 for group in groups for number, result in group)
    assert told == [(number, f"{number}: no picture") for number in (0, 3, 6, 9)]
    assert list(read_batches([0, 3], read, 4, lambda number, error: None)) == []
    with pytest.raises(ZeroDivisionError):  # only what is no picture is left out
        list(read_batches([0], lambda number: 1 // number, 4, lambda number, error: None))


def test_no_thread_outlives_an_abandoned_reading(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / f"{i}.png", i)
    reading = image_batches(scan(tmp_path), 16, 2, {})
    next(reading)
    reading.close()
    assert not any(thread.name.startswith("pictures") and thread.is_alive() for thread in threading.enumerate())
