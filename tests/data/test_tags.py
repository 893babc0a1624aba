"""Tags: which count, what people ask for, and what is wrong with a file of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from anifast.data.tags import TAGS, TagList, chosen, parse_tags, read_taglist, read_tags
from anifast.errors import AnifastError, DataError

LIST = TagList.DEFAULT


def vector(**scores: float) -> np.ndarray:
    values = np.zeros(len(LIST), np.float32)
    for name, score in scores.items():
        values[LIST.index[name]] = score
    return values


def told(values: np.ndarray, taglist: TagList = LIST) -> dict[str, float]:
    """The tags in a vector, and their scores to six digits."""
    assert values.dtype == np.float32 and values.shape == (len(taglist),)
    return {name: round(float(value), 6) for name, value in zip(taglist.names, values, strict=True) if value}


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file.tsv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_usual_list() -> None:
    assert len(LIST) == 51
    assert LIST.rows() == [list(row) for row in TAGS] and TagList.from_rows(LIST.rows()) == LIST
    sizes = {group: len(places) for group, places in LIST.members.items()}
    assert {group: size for group, size in sizes.items() if size > 1} == {1: 3, 2: 15, 3: 12, 4: 3, 8: 4}
    assert sum(size == 1 for size in sizes.values()) == 14
    hair, eyes = ([LIST.names[place] for place in places] for places in LIST.colours)
    assert len(hair) == 15 and all(name.endswith("_hair") for name in hair) and "long_hair" not in hair
    assert len(eyes) == 12 and all(name.endswith("_eyes") for name in eyes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "b"), (1,), (1, 2)), "2 names, 1 groups and 2 numbers"),
        (((), (), ()), "there is none"),
        ((("a", "b", "a"), (1, 2, 3), (1, 2, 3)), "a is listed twice"),
    ],
)
def test_lists_that_cannot_be(
    arguments: tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TagList(*arguments)


def test_the_best_of_a_group_counts() -> None:
    scores = vector(
        blonde_hair=0.5, brown_hair=0.7, blue_eyes=0.4, red_eyes=0.3, smile=0.1, grin=0.05, hat=0.02, long_hair=0.9
    )
    assert told(chosen(scores)) == {"brown_hair": 0.7, "blue_eyes": 0.4, "smile": 0.1, "hat": 0.02, "long_hair": 0.9}


@pytest.mark.parametrize(
    ("hair", "eyes", "counts"),
    [(0.25, 0.25, True), (0.24, 0.9, False), (0.9, 0.24, False), (0.9, 0.0, False), (0.0, 0.0, False)],
)
def test_nothing_counts_where_a_colour_is_not_sure(hair: float, eyes: float, counts: bool) -> None:
    scores = vector(green_hair=hair, pink_hair=hair / 2, closed_eyes=eyes, male=1.0)
    assert told(chosen(scores, LIST, 0.25)) == (
        {"green_hair": hair, "closed_eyes": eyes, "male": 1.0} if counts else {}
    )


def test_pictures_are_looked_at_by_themselves() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3, 5, len(LIST)), dtype=np.float32)
    scores[0, :3] *= 0.2
    whole = chosen(scores)
    assert whole.shape == scores.shape and not whole[0, :3].any() and whole[1].any(-1).all()
    for at in np.ndindex(3, 5):
        assert np.array_equal(whole[at], chosen(scores[at]))
    assert chosen(np.zeros((0, len(LIST)))).shape == (0, len(LIST))


def test_lists_of_ones_own() -> None:
    """Groups are known by the names in them, not by their numbers; without colours nothing must be sure."""
    cats = TagList(("tabby", "white", "long_fur"), (2, 2, 3), (0, 1, 2))
    assert cats.colours == []
    assert chosen([0.1, 0.05, 0.0], cats, 0.25).tolist() == pytest.approx([0.1, 0, 0])
    hair = TagList(("bangs", "teal_hair", "blue_hair"), (1, 7, 7), (0, 1, 2))
    assert hair.colours == [[1, 2]]
    assert not chosen([1.0, 0.1, 0.2], hair, 0.25).any() and chosen([1.0, 0.3, 0.2], hair, 0.25).any()


@pytest.mark.parametrize("scores", [np.zeros(50), np.zeros((2, 52)), 0.5])
def test_a_score_for_each_tag(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"scores: expected \[\.\.\., 51\]"):
        chosen(scores)


def test_what_people_ask_for() -> None:
    assert told(parse_tags("green_hair,blue_eyes")) == {"green_hair": 1, "blue_eyes": 1}
    assert told(parse_tags(" green_hair:0.25 , smile : 1,")) == {"green_hair": 0.25, "smile": 1}
    assert told(parse_tags("blonde_hair:0.8,brown_hair:0.5")) == {"blonde_hair": 0.8}
    assert told(parse_tags("two-tone_hair")) == {"two-tone_hair": 1}  # no colour of eyes has to be there


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none is given"),
        (" , ", "none is given"),
        ("gren_hair", "'gren_hair' is unknown; is green_hair"),
        ("???", "'[?]{3}' is unknown; there are long_hair, short_hair"),
        ("smile:2", "'smile:2' is not a tag with a score from 0 to 1"),
        ("smile:-0.1", "not a tag with a score"),
        ("smile:nan", "not a tag with a score"),
        ("smile:much", "not a tag with a score"),
        (":0.5", "not a tag with a score"),
        ("smile,smile:0.5", "smile comes twice"),
        ("green_hair,blue_hair", "blue_hair and green_hair exclude each other"),
    ],
)
def test_what_cannot_be_asked_for(text: str, message: str) -> None:
    with pytest.raises(AnifastError, match=message):
        parse_tags(text)


def test_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "train/a.png\tgreen_hair:0.9, blue_eyes, smile:0.125\r\n\n./train//b c.png\t\nval/x/ä.png\tmale:0\n".encode(
            "utf-8-sig"
        ),
    )
    found = read_tags(path)
    assert list(found) == ["train/a.png", "train/b c.png", "val/x/ä.png"]
    assert told(found["train/a.png"]) == {"green_hair": 0.9, "blue_eyes": 1, "smile": 0.125}
    assert told(found["train/b c.png"]) == told(found["val/x/ä.png"]) == {}


def test_scores_of_a_file_are_as_they_are(tmp_path: Path) -> None:
    """Two of a group, and colours that are not sure: what counts is decided later."""
    found = read_tags(written(tmp_path, "a.png\tgreen_hair:0.1,blue_hair:0.2\n"))
    assert told(found["a.png"]) == {"green_hair": 0.1, "blue_hair": 0.2}


def test_tags_with_a_colon(tmp_path: Path) -> None:
    faces = TagList((":3", ":d", "smile"), (1, 1, 2), (0, 1, 2))
    found = read_tags(written(tmp_path, "a.png\t:d:0.5, :3, smile:0.25\n"), faces)
    assert told(found["a.png"], faces) == {":3": 1, ":d": 0.5, "smile": 0.25}


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    assert list(read_tags(written(tmp_path, b"\xff.png\tsmile\n"))) == [name]
    with pytest.raises(DataError) as told_about:
        read_tags(written(tmp_path, b"\xff.png\tsmile\n\xff.png\tsmile\n"))
    assert str(told_about.value).encode()  # it can be printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png smile\n", "row 1: 'a.png smile' is not the path of a picture, a tab and tags"),
        ("a.png\tsmile\n\n\tgrin\n", "row 3: .* is not the path"),
        ("a.png\tsmile\tgrin\n", "row 1: .* is not the path"),
        ("a.png\tsmile:1.5\n", "row 1: 'smile:1.5' is not a tag with a score from 0 to 1"),
        ("a.png\tsmile,smile\n", "row 1: smile comes twice"),
        ("a.png\tsmile\nb.png\tgrin\n./a.png\tgrin\n", "row 3: a.png had its tags in row 1"),
        ("a.png\tsmile, cape\n", r"1 tag is not among the 51 known ones: cape \(row 1\)\. Take them out, or list"),
        (
            "a.png\ta,b\nb.png\ta,c,d,e\n",
            r"5 tags are not among the 51 known ones: a \(row 1\), b \(row 1\), c \(row 2\) and 2 more",
        ),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as told_about:
        read_tags(path)
    assert str(path) in str(told_about.value)


def test_no_file(tmp_path: Path) -> None:
    for read in (read_tags, read_taglist):
        with pytest.raises(DataError, match="none.tsv: cannot be read"):
            read(tmp_path / "none.tsv")


def test_a_file_with_a_list(tmp_path: Path) -> None:
    path = written(tmp_path, "7\ttabby\t2\n\n9\tlong fur\t3\r\n")
    assert read_taglist(path) == TagList(("tabby", "long fur"), (2, 3), (7, 9))
    own = written(tmp_path, "".join(f"{number}\t{name}\t{group}\n" for number, name, group in TAGS))
    assert read_taglist(own) == LIST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\ttabby\t2\n2\twhite\n", "row 2: .* is not a number, a tag and the number of its group"),
        ("one\ttabby\t2\n", "row 1: .* is not a number"),
        ("1\t\t2\n", "row 1: '' cannot be a tag"),
        ("1\ta,b\t2\n", "row 1: 'a,b' cannot be a tag"),
        ("1\ta\t2\n2\ta\t3\n", "a is listed twice"),
        ("\n", "there is none"),
    ],
)
def test_what_is_wrong_with_a_list(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as told_about:
        read_taglist(path)
    assert str(path) in str(told_about.value)
