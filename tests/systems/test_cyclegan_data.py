"""What CycleGAN is shown, and what it shows: pairs, sizes, crops, flips and range of both presets; sheet and figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import data_folder, own_cache, picture
from torch import Tensor

from anifast.engine.sheets import Block
from anifast.errors import DataError
from anifast.systems.cyclegan import training
from anifast.systems.cyclegan.config import make
from anifast.systems.cyclegan.training import PANELS, CycleGAN, Pictures

CPU = torch.device("cpu")


def file(folder: Path, side: int) -> list[Tensor]:
    """The pictures of a folder as the reference resizes them: bicubic, the aspect ignored; 3,side,side in [-1, 1]."""
    found = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        found.append(2 * torch.from_numpy(pixels / 255).permute(2, 0, 1) - 1)
    return found


def where(image: Tensor, sources: list[Tensor], atol: float = 1e-6) -> tuple[int, int, int, bool]:
    """Which picture this is a window of: its number, the window's row and column, and whether it is mirrored."""
    side = image.shape[-1]
    hits = []
    for mirrored in (False, True):
        upright = image.flip(-1) if mirrored else image
        for number, source in enumerate(sources):
            reach = source.shape[-1] - side + 1
            for row in range(reach):
                for column in range(reach):
                    window = source[:, row : row + side, column : column + side]
                    if (window - upright).abs().max() < atol:
                        hits.append((number, row, column, mirrored))
    assert len(hits) == 1, hits
    return hits[0]


def test_the_reference_resizes_crops_and_mirrors_both_sides_by_themselves(data: Path) -> None:
    config = make("reference", {"size": 32})
    pictures = Pictures(data, config, CPU)
    assert config.loaded == 36 and make("reference").loaded == 286
    sources = [file(data / name, 36) for name in ("trainA", "trainB")]
    seen: list[list[tuple[int, int, int, bool]]] = [[], []]
    for _ in range(40):
        batch = pictures.next()
        for images, found, files in zip(batch, seen, sources, strict=True):
            assert images.shape == (1, 3, 32, 32) and images.dtype == torch.float32
            found.append(where(images[0], files))
    for found in seen:
        assert {row for _, row, _, _ in found} == {column for _, _, column, _ in found} == set(range(5))
        assert 10 < sum(mirrored for *_, mirrored in found) < 30
    # Every epoch walks all of A; B is drawn with replacement and not in A's order.
    a, b = ([number for number, *_ in found] for found in seen)
    assert all(sorted(a[i : i + 5]) == list(range(5)) for i in range(0, 40, 5))
    assert any(sorted(b[i : i + 5]) != list(range(5)) for i in range(0, 40, 5)) and set(b) == set(range(5))
    assert len(set(zip(a, b, strict=True))) > 12
    assert sum(x[3] == y[3] for x, y in zip(*seen, strict=True)) not in (0, 40)


def test_an_epoch_is_as_long_as_the_larger_domain(tmp_path: Path) -> None:
    with own_cache(tmp_path / "cache"):
        data_folder(tmp_path / "faces", 3)
        for i in range(4):
            picture(tmp_path / "faces" / "trainB" / f"more{i}.png", i)
        assert Pictures(tmp_path / "faces", make("reference", {"size": 32}), CPU).epoch_length == 7
        with pytest.raises(DataError, match="got 3 and 7"):
            Pictures(tmp_path / "faces", make("seed", {"size": 32}), CPU)


def test_the_seed_keeps_pictures_and_pairs_as_they_are(data: Path) -> None:
    pictures = Pictures(data, make("seed", {"size": 40}), CPU)
    sources = [file(data / name, 40) for name in ("trainA", "trainB")]
    order = []
    for _ in range(10):
        a, b = pictures.next()
        one, other = where(a[0], sources[0]), where(b[0], sources[1])
        assert one == other and one[1:] == (0, 0, False)
        order.append(one[0])
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))


def test_test_pictures_are_shown_whole(data: Path) -> None:
    """The reference's test rule: resized to the training size, neither cropped nor mirrored."""
    for shown, name in zip(
        Pictures(data, make("reference", {"size": 32}), CPU).shown(), ("testA", "testB"), strict=True
    ):
        torch.testing.assert_close(shown, torch.stack(file(data / name, 32)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_sheet_shows_real_fake_reconstruction_and_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[Block]] = []
    monkeypatch.setattr(training, "sheet", lambda blocks, **_: kept.append(blocks))
    images = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a, b = images[0], images[1]
    sizes: dict[str, Any] = {"size": 32, "blocks": 1, "width": 4, "d_width": 4}
    model = CycleGAN(make("reference", sizes), CPU, shown=(a, b))
    model.sheet()
    g_ab, g_ba = model.nets["G_AB"], model.nets["G_BA"]
    expected = [
        [("real A", a), ("fake B", g_ab(a)), ("back to A", g_ba(g_ab(a))), ("identity A", g_ba(a))],
        [("real B", b), ("fake A", g_ba(b)), ("back to B", g_ab(g_ba(b))), ("identity B", g_ab(b))],
    ]
    (blocks,) = kept
    for block, rows in zip(blocks, expected, strict=True):
        assert [label for label, _ in block.rows] == [label for label, _ in rows]
        for (_, shown), (_, wanted) in zip(block.rows, rows, strict=True):
            torch.testing.assert_close(shown, wanted)


def test_the_loss_figure_has_the_reports_order() -> None:
    """Figure 2 of the report: GAN, cycle, identity; generators in total, discriminator of selfies, of anime."""
    assert [panel.keys for panel in PANELS] == [
        ("gan_ab", "gan_ba"),
        ("cycle_a", "cycle_b"),
        ("identity_a", "identity_b"),
        ("generators",),
        ("d_a",),
        ("d_b",),
    ]
