"""Tags of anime faces: lists of them, and files that say which picture has which."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anifast.errors import AnifastError, DataError
from anifast.files import printable, text_rows

#: Those that Twin-GAN follows, as its author's list has them: number in the tagger's own list, tag, group. A picture
#: has one tag of a group at most; group 2 are the colours of hair, 3 those of eyes.
TAGS: tuple[tuple[int, str, int], ...] = (
    (2, "long_hair", 1), (3, "short_hair", 1), (4, "blush", 9), (7, "smile", 4), (8, "blonde_hair", 2),
    (9, "blue_eyes", 3), (10, "brown_hair", 2), (11, "open_mouth", 5), (12, "hat", 6), (14, "red_eyes", 3),
    (17, "black_hair", 2), (18, "ribbon", 7), (19, "twintails", 8), (22, "brown_eyes", 3), (23, "blue_hair", 2),
    (28, "green_eyes", 3), (40, "purple_eyes", 3), (42, "pink_hair", 2), (43, "purple_hair", 2),
    (44, "closed_eyes", 3), (48, "ponytail", 8), (49, "green_hair", 2), (50, "simple_background", 12),
    (52, "red_hair", 2), (54, "yellow_eyes", 3), (55, "very_long_hair", 1), (57, "glasses", 14),
    (62, "silver_hair", 2), (70, "one_eye_closed", 17), (76, "ahoge", 4), (83, "male", 20), (92, "white_hair", 2),
    (103, "earrings", 22), (109, "tongue", 23), (112, "pink_eyes", 3), (123, "aqua_eyes", 3), (129, "black_eyes", 3),
    (141, "orange_hair", 2), (142, "aqua_hair", 2), (169, "grin", 4), (170, "multicolored_hair", 2),
    (194, "dark_skin", 24), (200, "tongue_out", 25), (206, "grey_hair", 2), (218, "drill_hair", 8),
    (251, "short_twintails", 8), (285, "orange_eyes", 3), (317, "facial_hair", 33), (344, "grey_eyes", 3),
    (380, "two-tone_hair", 2), (421, "tan", 35),
)  # fmt: skip

#: Groups of `TAGS` of which a picture must show something to count as tagged: colours of hair and of eyes.
_HAIR, _EYES = 2, 3
#: So many of what is wrong are named in an error.
_NAMED = 3

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class TagList:
    """The tags that a model knows; their order is that of the numbers in a picture's vector.

    Args:
        names: of the tags.
        groups: to which each belongs; a picture has one tag of a group at most.
        numbers: of each in its tagger's own list.

    Attributes:
        DEFAULT: the 51 of `TAGS`.

    Raises:
        DataError: there is none, one is named twice, or the lengths differ.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]
    numbers: tuple[int, ...]

    DEFAULT: ClassVar[TagList]

    def __post_init__(self) -> None:
        """Hold the tags against one another."""
        if not len(self.names) == len(self.groups) == len(self.numbers):
            raise DataError(
                f"tags: {len(self.names)} names, {len(self.groups)} groups and {len(self.numbers)} numbers; each tag "
                "has one of each"
            )
        if not self.names:
            raise DataError("tags: there is none; list one in each row: number, tag and group")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise DataError(f"tags: {twice[0]} is listed twice; keep one of them")

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[Any]]) -> TagList:
        """From (number, name, group) each, as `rows` gives them and checkpoints keep them."""
        found = [(int(number), str(name), int(group)) for number, name, group in rows]
        return cls(
            tuple(name for _, name, _ in found), tuple(group for *_, group in found), tuple(row[0] for row in found)
        )

    def rows(self) -> list[list[Any]]:
        """[number, name, group] of each tag."""
        return [list(row) for row in zip(self.numbers, self.names, self.groups, strict=True)]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """Name -> place in vectors."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def members(self) -> dict[int, list[int]]:
        """Group -> the places of its tags."""
        found: dict[int, list[int]] = {}
        for place, group in enumerate(self.groups):
            found.setdefault(group, []).append(place)
        return found

    @cached_property
    def colours(self) -> list[list[int]]:
        """The places of colours of hair and of those of eyes, as far as the list has such.

        A list of one's own may number its groups as it likes: they are known by any of the names in `TAGS`.
        """
        found = []
        for kind in (_HAIR, _EYES):
            known = {name for _, name, group in TAGS if group == kind}
            groups = {group for name, group in zip(self.names, self.groups, strict=True) if name in known}
            if groups:
                found.append([place for place, group in enumerate(self.groups) if group in groups])
        return found


TagList.DEFAULT = TagList.from_rows(TAGS)


def read_taglist(path: str | os.PathLike[str]) -> TagList:
    """The tags of a taglist.tsv: number, tag and group in each row, parted by tabs, in the order of vectors.

    Raises:
        DataError: the file cannot be read, or a row of it (named by its number) is none.
    """
    rows = []
    for number, line in text_rows(path):
        columns = [column.strip() for column in line.split("\t")]
        try:
            identity, name, group = columns
            rows.append((int(identity), name, int(group)))
        except ValueError:
            raise DataError(
                f"{path}, row {number}: {_short(line)} is not a number, a tag and the number of its group, parted by "
                "tabs"
            ) from None
        if not name or "," in name:
            raise DataError(f"{path}, row {number}: {name!r} cannot be a tag, which is a word without a comma")
    try:
        return TagList.from_rows(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read_tags(path: str | os.PathLike[str], taglist: TagList = TagList.DEFAULT) -> dict[str, Vector]:
    """The tags of pictures from a tags.tsv: a path, a tab, and tags parted by commas, each a `tag` or `tag:score`.

    Args:
        path: the file; an empty row says nothing.
        taglist: the tags that there are.

    Returns:
        Path of a picture as the file has it (parted by "/", without "." in it) -> float32 [tags], scores in [0, 1]: 1
        where the file gives none, and 0 of tags that it does not list. They are not `chosen` yet.

    Raises:
        DataError: the file cannot be read, a row (named by its number) is malformed, a picture or a tag in a row comes
            twice, or tags are not in the list (the first of them are named).
    """
    found: dict[str, Vector] = {}
    at: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for number, line in text_rows(path):
        name, tab, told = line.partition("\t")
        if not tab or not name.strip() or "\t" in told.strip():
            raise DataError(
                f"{path}, row {number}: {_short(line)} is not the path of a picture, a tab and tags parted by commas"
            )
        name = str(PurePosixPath(name.strip()))
        if name in at:
            raise DataError(
                f"{path}, row {number}: {printable(name)} had its tags in row {at[name]}; keep one of the rows"
            )
        at[name] = number
        try:
            scores = _scores(told, taglist)
        except ValueError as error:
            raise DataError(f"{path}, row {number}: {printable(str(error))}") from None
        for tag in scores:
            if tag not in taglist.index:
                unknown.setdefault(tag, number)
        found[name] = _vector({tag: score for tag, score in scores.items() if tag in taglist.index}, taglist)
    if unknown:
        first = ", ".join(f"{printable(tag)} (row {number})" for tag, number in list(unknown.items())[:_NAMED])
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise DataError(
            f"{path}: {len(unknown)} tag{'s are' if len(unknown) > 1 else ' is'} not among the {len(taglist)} known "
            f"ones: {first}{more}. Take them out, or list all tags in a taglist.tsv beside it (number, tag and group)"
        )
    return found


def chosen(scores: ArrayLike, taglist: TagList = TagList.DEFAULT, threshold: float = 0.25) -> Vector:
    """What of a tagger's scores counts: the best of each group; nothing where colours of hair or eyes are not sure.

    Args:
        scores: [..., tags], in [0, 1].
        taglist: which tags they are of.
        threshold: the score that the best colour of hair and the best of eyes must reach, or the whole vector is zero.
            Lists without such colours have no such condition.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: not a score for each tag.
    """
    values = np.asarray(scores, dtype=np.float32)
    if values.ndim < 1 or values.shape[-1] != len(taglist):
        raise ValueError(f"scores: expected [..., {len(taglist)}], got {list(values.shape)}")
    kept = np.zeros_like(values)
    for places in taglist.members.values():
        best = values[..., places].argmax(-1, keepdims=True)
        column = np.asarray(places)[best]
        np.put_along_axis(kept, column, np.take_along_axis(values, column, -1), -1)
    for places in taglist.colours:
        kept[values[..., places].max(-1) < threshold] = 0
    return kept


def parse_tags(text: str, taglist: TagList = TagList.DEFAULT) -> Vector:
    """The vector of tags that somebody asks for, as in "green_hair,blue_eyes:0.8"; a score is 1 unless given.

    Of a group the best counts; no colour has to be there, as it has for `chosen`.

    Returns:
        float32 [tags].

    Raises:
        AnifastError: a tag is unknown, comes twice or has no score in [0, 1], two of a group have the same score, or
            none is given.
    """
    try:
        scores = _scores(text, taglist)
    except ValueError as error:
        raise AnifastError(f"tags {text!r}: {error}") from None
    if not scores:
        raise AnifastError('tags: none is given; give them as in "green_hair,blue_eyes"')
    for tag in scores:
        if tag not in taglist.index:
            near = difflib.get_close_matches(tag, taglist.names, 3)
            meant = f"; is {' or '.join(near)} meant?" if near else f"; there are {', '.join(taglist.names)}"
            raise AnifastError(f"tags: {tag!r} is unknown{meant}")
    for places in taglist.members.values():
        rivals = [taglist.names[place] for place in places if scores.get(taglist.names[place], 0) > 0]
        best = [tag for tag in rivals if scores[tag] == max(scores[one] for one in rivals)]
        if len(best) > 1:
            raise AnifastError(f"tags: {best[0]} and {best[1]} exclude each other; give one of them, or scores")
    return chosen(_vector(scores, taglist), taglist, 0.0)


def _vector(scores: Mapping[str, float], taglist: TagList) -> Vector:
    values = np.zeros(len(taglist), np.float32)
    for tag, score in scores.items():
        values[taglist.index[tag]] = score
    return values


def _scores(text: str, taglist: TagList) -> dict[str, float]:
    """Tag -> score of tags parted by commas, known or not; ValueError: a score is none, or a tag comes twice."""
    found: dict[str, float] = {}
    for part in text.split(","):
        whole = part.strip()
        if not whole:
            continue
        tag, score = whole, 1.0
        if whole not in taglist.index and ":" in whole:
            tag, _, number = (piece.strip() for piece in whole.rpartition(":"))
            try:
                score = float(number)
            except ValueError:
                score = math.nan
            if not tag or not 0 <= score <= 1:
                raise ValueError(f"{whole!r} is not a tag with a score from 0 to 1")
        if tag in found:
            raise ValueError(f"{tag} comes twice; keep one of them")
        found[tag] = score
    return found


def _short(line: str) -> str:
    """A row of a file for a message."""
    return repr(printable(line if len(line) <= 60 else f"{line[:57]}..."))
