"""What systems share that paint in styles: sources on the command line, files of codes, names of results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from anifast.data.folders import printable, read_image, resize, scan, to_float, to_tensor
from anifast.errors import AnifastError, DataError
from anifast.files import write_text

Item = TypeVar("Item")

#: The name of a file of styles beside results.
NAME = "styles.json"
#: The source of styles that are drawn.
RANDOM = "random"
#: A file of styles, with the number of one of them behind it or not.
_SAVED = re.compile(r"(?P<path>.+\.(?P<suffix>json|pt))(#(?P<number>\d+))?", re.IGNORECASE | re.DOTALL)
#: What a part of a file's name is not made of, on any system, and its longest.
_UNFIT, _LONGEST = re.compile(r'[\s<>:"/\\|?*\x00-\x1f]+'), 60
_LARGEST = torch.finfo(torch.float32).max


# --- options


def check_seed(seed: int | None, option: str = "--seed") -> None:
    """Refuse a seed that is out of range.

    Raises:
        AnifastError: it is.
    """
    if seed is not None and not 0 <= seed < 2**63:
        raise AnifastError(f"{option} {seed}: a whole number from 0 to {2**63 - 1}")


def check_count(count: int | None) -> None:
    """Refuse a number of random styles below 1.

    Raises:
        AnifastError: it is.
    """
    if count is not None and count < 1:
        raise AnifastError(f"--styles {count}: at least 1")


def check_random(sources: Sequence[str], count: int | None, seed: int | None, option: str) -> None:
    """Refuse a number or a seed of random styles where none is asked for.

    Raises:
        AnifastError: that is so.
    """
    for name, value, meaning in (("--styles", count, "number"), ("--seed", seed, "seed")):
        if value is not None and RANDOM not in sources:
            raise AnifastError(
                f"{name} {value}: is the {meaning} of random styles, and {option} asks for none; leave it out, or add "
                f"{RANDOM} to {option}"
            )


def check_truncation(psi: float | None, mean: str = "the mean style", others: str = "styles") -> float:
    """The psi that an option gives, 1 where it is left out.

    Args:
        psi: it.
        mean: what 0 makes of all, for the message.
        others: what 1 leaves as they are.

    Raises:
        AnifastError: negative or not finite.
    """
    if psi is not None and not (math.isfinite(psi) and psi >= 0):
        raise AnifastError(f"--truncation {psi}: a number from 0 (all {mean}); 1 leaves {others} as they are")
    return 1.0 if psi is None else psi


# --- pictures


def pictures_in(source: Path) -> tuple[list[Path], dict[str, str]]:
    """The pictures under a folder, or the file that `source` is; and path -> reason for what looked like pictures.

    Raises:
        DataError: a folder that cannot be read, or that holds no picture.
    """
    if not source.is_dir():
        return [source], {}
    folder = scan(source)
    return folder.paths, {printable(folder.root / name): why for name, why in folder.rejected.items()}


def load_pictures(paths: Sequence[Path], size: int, how: str) -> Tensor:
    """Pictures of any size as N,3,size,size in [-1, 1], float32; at least one.

    Raises:
        ImageError: one cannot be read.
    """
    return torch.stack([to_float(to_tensor(resize(read_image(path), size, how))) for path in paths])


# --- files of codes


def saved(text: str, suffix: str = "json") -> tuple[str, str | None] | None:
    """The path and the number, if there is one, of a source that is a file of styles with this suffix; else None."""
    match = _SAVED.fullmatch(text)
    return (match["path"], match["number"]) if match and match["suffix"].lower() == suffix else None


def chosen(styles: Sequence[Item], path: str, number: str | None) -> list[Item]:
    """All styles of a file, or the one with this number.

    Raises:
        DataError: it has no such.
    """
    if number is None:
        return list(styles)
    if int(number) >= len(styles):
        raise DataError(f"{printable(path)}#{number}: there is no such style; the file has 0 to {len(styles) - 1}")
    return [styles[int(number)]]


def write_codes(path: str | Path, head: Mapping[str, Any], named: Iterable[tuple[str, Sequence[float]]]) -> None:
    """Write names and codes as JSON behind what `head` holds, whole or not at all; `read_codes` gives the same numbers.

    Raises:
        AnifastError: the file cannot be written.
    """
    lines = [json.dumps({"name": printable(name), "code": list(code)}) for name, code in named]
    first = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    write_text(path, f'{{\n{first},\n"styles": [\n' + ",\n".join(lines) + "\n]\n}\n")


def read_codes(
    path: str | Path,
    form: str,
    *,
    what: str,
    field: str,
    length: int | None,
    expected: str,
    fits: Callable[[Mapping[str, Any]], bool] = lambda found: True,
) -> tuple[dict[str, Any], list[tuple[str, tuple[float, ...]]]]:
    """Read what `write_codes` has written.

    Args:
        path: the file.
        form: the format that it must have.
        what: it holds, for messages: not a file of ...
        field: the one of its head with the length of codes.
        length: that they must have; None: any.
        expected: what a whole file has, for messages.
        fits: whether the rest of a head is whole.

    Returns:
        All that it holds; names and codes.

    Raises:
        DataError: missing, no such file, damaged, or of another length.
    """
    shown = printable(path)
    kind = what.partition(" of artists")[0]
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise DataError(f"{shown}: not a file of {kind}: {error}") from error
    if not isinstance(found, dict) or found.get("format") != form:
        held = found.get("format") if isinstance(found, dict) else None
        raise DataError(f"{shown}: not a file of {what} (format {held!r}, expected {form!r})")
    size, entries = found.get(field), found.get("styles")
    if type(size) is not int or not isinstance(entries, list) or not entries or not fits(found):
        raise DataError(f"{shown}: damaged: expected {expected} and at least one of styles")
    if length is not None and size != length:
        raise DataError(
            f"{shown}: holds {kind} of {size} numbers, but this model's have {length} ({field}); they belong to "
            "another model"
        )
    return found, [_code(entry, number, size, shown) for number, entry in enumerate(entries)]


def _code(entry: Any, number: int, size: int, shown: str) -> tuple[str, tuple[float, ...]]:
    name, code = (entry.get("name"), entry.get("code")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(code, list) or len(code) != size:
        raise DataError(f"{shown}: damaged: style {number} is not a name and a code of {size} numbers")
    if not all(type(x) in (int, float) and abs(x) <= _LARGEST for x in code):
        raise DataError(f"{shown}: damaged: style {number}: its code holds something else than finite numbers")
    return name, tuple(map(float, code))


def keep(folder: Path, same: Callable[[Path], bool], write: Callable[[Path], None], name: str = NAME) -> Path:
    """Keep codes beside results: as styles.json, or as styles-2.json, -3, ... beside others.

    So the codes of earlier results are never lost. A file that holds these codes already is left as it is.

    Args:
        folder: of the results.
        same: whether a file that is there holds them; a DataError means that it does not.
        write: them into a file.
        name: of the file.

    Returns:
        The file.

    Raises:
        AnifastError: the file cannot be written.
    """
    path, number = folder / name, 1
    while path.exists():
        with suppress(DataError):  # it is something else
            if same(path):
                return path
        number += 1
        path = folder / f"{Path(name).stem}-{number}{path.suffix}"
    write(path)
    return path


# --- names of results


def endings(names: Sequence[str], between: str) -> tuple[str, ...]:
    """What the names of a picture's results end with: `between` and each style; with a number where names are alike."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = label = between + (_UNFIT.sub("_", name)[:_LONGEST] or "style")
        number = 1
        while label.lower() in taken:
            number += 1
            label = f"{plain}-{number}"
        taken.add(label.lower())
        found.append(label)
    return tuple(found)
