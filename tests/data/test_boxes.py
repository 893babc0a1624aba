"""Boxes of faces: the part of a picture around each, and files of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from anifast.data.boxes import (
    ANIME,
    ANIME_THRESHOLD,
    HUMAN,
    HUMAN_THRESHOLD,
    Box,
    Margins,
    face_crop,
    face_crops,
    read_boxes,
)
from anifast.errors import DataError

SIZE = (400, 300)


def test_the_margins_of_the_specification() -> None:
    assert HUMAN == Margins(left=0.5, right=0.5, top=1.0, bottom=0.3) and HUMAN_THRESHOLD == 0.7
    assert ANIME == Margins(left=0.6, right=0.6, top=1.0, bottom=0.4) and ANIME_THRESHOLD == 0.9


@pytest.mark.parametrize(
    ("box", "margins", "part"),
    [
        ((100, 100, 50, 40), HUMAN, (75, 60, 175, 152)),  # 2.0 w wide, 2.3 h high
        ((100, 100, 50, 40), ANIME, (70, 60, 180, 156)),
        ((100, 100, 51, 41), HUMAN, (75, 59, 176, 153)),  # int(25.5), int(41.0), int(76.5), int(53.3)
        ((100, 100, 3, 3), ANIME, (99, 97, 104, 104)),  # int(1.8), int(3.0), int(4.8), int(4.2)
        ((10, 20, 100, 100), HUMAN, (0, 0, 160, 150)),
        ((350, 250, 40, 40), HUMAN, (330, 210, 400, 300)),
        ((-10, -5, 60, 60), HUMAN, (0, 0, 80, 73)),
        ((0, 0, 400, 300), HUMAN, (0, 0, 400, 300)),
        ((100.9, 100.9, 50.9, 40.9), HUMAN, (75, 60, 175, 152)),  # whole parts
        (Box(100, 100, 50, 40, 0.1), HUMAN, (75, 60, 175, 152)),
    ],
)
def test_the_part_around_a_face(box: tuple[float, ...], margins: Margins, part: tuple[int, int, int, int]) -> None:
    assert face_crop(box, SIZE, margins) == part


@pytest.mark.parametrize("box", [(700, 100, 50, 50), (100, 700, 50, 50), (-90, 10, 50, 50), (10, -90, 50, 50)])
def test_a_box_outside_its_picture(box: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"box -?\d+, .*: lies outside its picture of 400x300 pixels"):
        face_crop(box, SIZE)


def test_faces_of_a_photo() -> None:
    boxes = [Box(20 * i, 150, 10, 10, score) for i, score in enumerate((0.71, 0.7, 0.99, 0.69, 0.8, 0.9, 0.99))]
    starts = [part[0] for part in face_crops(boxes, SIZE)]
    assert starts == [20 * i - 5 for i in (2, 6, 5, 4)]  # the four best; the first of two that are as good comes first
    assert len(face_crops(boxes, SIZE, most=10)) == 6  # one is not sure enough
    assert len(face_crops(boxes, SIZE, threshold=0.9, most=1)) == 1


@pytest.mark.parametrize("boxes", [[], [Box(10, 10, 10, 10, 0.5)]])
def test_without_a_face_the_whole_picture(boxes: list[Box]) -> None:
    assert face_crops(boxes, SIZE) == [(0, 0, 400, 300)]


HEADINGS = ["", "path\tx\ty\tw\th\tscore\n", "\n Path \tX\tY\tW\tH\n"]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_file(tmp_path: Path, heading: str) -> None:
    path = tmp_path / "boxes.tsv"
    rows = "b/1.png\t1\t2\t3\t4\t0.5\r\n\na.png\t10.7\t-2.5\t30\t40\n"
    rows += "./b/1.png\t5\t6\t7\t8\t0.9\nb/1.png\t9\t9\t9\t9\t0.5\n"
    path.write_text(heading + rows, encoding="utf-8-sig")
    assert read_boxes(path) == {
        "b/1.png": [Box(5, 6, 7, 8, 0.9), Box(1, 2, 3, 4, 0.5), Box(9, 9, 9, 9, 0.5)],
        "a.png": [Box(10, -2, 30, 40, 1.0)],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png\t1\t2\t3\n", "row 1: expected path, x, y, w, h, score, parted by tabs, and got 4 of them"),
        ("a.png 1 2 3 4\n", "row 1: expected path"),
        ("a.png\t1\t2\t3\t4\t0.5\t6\n", "row 1: expected path"),
        ("\t1\t2\t3\t4\n", "row 1: expected path"),
        ("a.png\t1\t2\t3\t4\n\na.png\t1\t2\tx\t4\n", "row 3: expected numbers behind the path, got 1, 2, x, 4"),
        ("a.png\t1\t2\t3\t4\npath\tx\ty\tw\th\n", "row 2: expected numbers"),  # a heading comes first
        ("a.png\t1\t2\t3\tnan\n", "row 1: a box has finite numbers"),
        ("a.png\t1\t2\t0.5\t4\n", "row 1: width and height are at least a pixel, got 0.5 and 4"),
        ("a.png\t1\t2\t3\t-4\n", "row 1: width and height"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, rows: str, message: str) -> None:
    path = tmp_path / "boxes.tsv"
    path.write_text(rows)
    with pytest.raises(DataError, match=message) as told:
        read_boxes(path)
    assert str(path) in str(told.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.tsv: cannot be read"):
        read_boxes(tmp_path / "none.tsv")
