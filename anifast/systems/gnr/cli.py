"""`anifast gnr`: sheets and videos that a trained GANs N' Roses paints.

    anifast gnr grid RUN photos --out grid.png --styles 6                 every photo in six random styles
    anifast gnr grid RUN a.png b.png --out grid.png --style x.png y.png   in the styles of two drawings
    anifast gnr interpolate RUN a.png --out strip.png --between x.png random
    anifast gnr edit RUN a.png --out edit.png --style x.png               along the main directions of style
    anifast gnr video RUN in.mp4 out.mp4                                  a video in one style

Pictures have any size; those of a folder are found recursively. `anifast gnr VERB --help` lists the options.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anifast.errors import AnifastError, CheckpointError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from anifast.systems.gnr.inference import Translator
    from anifast.systems.gnr.styles import Style

    Draw = Callable[..., Image.Image]

_SOURCE = (
    "a picture of the wanted domain, of any size, whose style is read; a file of saved codes (styles.json) or one of "
    "them (styles.json#3); or random"
)


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The options of `anifast gnr`."""
    from anifast.systems.gnr import video

    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    sub = verbs.add_parser(
        "grid",
        help="a sheet of contents x styles",
        description="A sheet of every picture in every style: the pictures in the first column and the references, "
        "if there are some, in the first row.",
        allow_abbrev=False,
    )
    _common(sub, "contents", "CONTENT", "pictures and folders that are painted, a row each", several=True)
    sub.add_argument("--style", nargs="+", metavar="STYLE", help=f"columns: {_SOURCE} [random]")
    sub.add_argument("--styles", type=int, metavar="N", help="how many random styles [5]")

    sub = verbs.add_parser(
        "interpolate",
        help="a strip from one style to another",
        description="Each picture in styles that go over from one to another, in even steps in w.",
        allow_abbrev=False,
    )
    _common(sub, "contents", "INPUT", "pictures and folders that are painted, a strip each", several=True)
    sub.add_argument(
        "--between",
        nargs=2,
        default=["random", "random"],
        metavar="STYLE",
        help=f"the two styles, each {_SOURCE} [random random]",
    )
    sub.add_argument("--steps", type=int, default=5, metavar="N", help="paintings of a strip, at least 2 [5]")

    sub = verbs.add_parser(
        "edit",
        help="a sheet of one picture along the main directions of style",
        description="One picture in a style that is moved along and against the directions in w which change the "
        "painting most (SeFA, Shen and Zhou 2021), a row for each.",
        allow_abbrev=False,
    )
    _common(sub, "contents", "INPUT", "the picture that is painted", several=False)
    sub.add_argument("--style", nargs=1, metavar="STYLE", help=f"the style in the middle: {_SOURCE} [random]")
    sub.add_argument("--directions", type=int, default=5, metavar="N", help="rows: the strongest directions [5]")
    sub.add_argument(
        "--strength", type=float, default=4.0, metavar="X", help="of the outermost columns, along and against [4]"
    )
    sub.add_argument("--steps", type=int, default=5, metavar="N", help="columns, at least 2 [5]")

    sub = verbs.add_parser("video", help="paint a video", allow_abbrev=False)
    video.add_options(sub)


def _common(parser: argparse.ArgumentParser, name: str, metavar: str, about: str, *, several: bool) -> None:
    """What grid, interpolate and edit share."""
    parser.add_argument("model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or an author's file")
    parser.add_argument(name, type=Path, nargs="+" if several else 1, metavar=metavar, help=about)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the sheet")
    parser.add_argument("--to", choices=("A", "B"), default="B", help="the domain wanted [B]")
    parser.add_argument("--seed", type=int, metavar="N", help="of random styles [0]")
    parser.add_argument(
        "--truncation", type=float, metavar="PSI", help="1: styles as they are, 0: the mean style, between: tamer [1]"
    )
    parser.add_argument(
        "--resize",
        choices=("crop", "stretch"),
        default="crop",
        help="pictures that are not square: largest centred square, or squeezed [crop]",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once [8]")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="numbers to compute in [fp32]")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if args.verb == "video":
        from anifast.systems.gnr import video

        return video.main(args)
    from anifast.engine import precision, state, translate
    from anifast.files import atomic_path
    from anifast.progress import Progress
    from anifast.systems.gnr.styles import check_truncation

    for name, least in (("batch", 1), ("steps", 2), ("directions", 1)):
        value = getattr(args, name, least)
        if value < least:
            raise AnifastError(f"--{name} {value}: at least {least}")
    args.truncation = check_truncation(args.truncation)
    paths = _pictures(args.contents)
    sources: list[str] = getattr(args, "between", None) or getattr(args, "style", None) or []
    _check_out(args.out, [*paths, *map(Path, sources)])
    model = load_model(args.model, args.device, args.precision)
    with state.about(args.model):
        model.require(args.to)
        count, draw = {"grid": _grid, "interpolate": _interpolate, "edit": _edit}[args.verb](args, model, paths)
    translate.check_writable(args.out.parent)
    print(precision.describe(model.device, args.precision))
    with Progress(count, "paint") as bar, precision.enough_memory(args.batch, "", "--batch"):
        drawn = draw(to=args.to, truncation=args.truncation, batch=args.batch, on_painted=bar.update)
    with atomic_path(args.out) as temporary:
        drawn.save(temporary)
    print(args.out)
    return 0


def load_model(path: str | Path, device: str | None = None, precision: str = "fp32") -> Translator:
    """A trained GANs N' Roses, for the commands that no other system has.

    Raises:
        CheckpointError: the file cannot be used, or is of another system.
    """
    import anifast
    from anifast.systems.gnr.inference import Translator

    model = anifast.load(path, device, precision=precision)
    if not isinstance(model, Translator):
        raise CheckpointError(f"{path}: a model of another system; `anifast gnr` takes those of GANs N' Roses")
    return model


def _pictures(inputs: Sequence[Path]) -> list[Path]:
    """The pictures that files and folders are."""
    from anifast.data.folders import scan

    return [path for source in inputs for path in (scan(source).paths if source.is_dir() else [source])]


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a sheet that is no PNG, that is a folder or that would overwrite an input."""
    if out.suffix.lower() != ".png":
        raise AnifastError(f"--out {out}: the sheet is a PNG; give it a name that ends with .png")
    if out.is_dir():
        raise AnifastError(f"--out {out}: is a folder; name the file")
    if os.path.realpath(out) in map(os.path.realpath, inputs):
        raise AnifastError(f"--out {out}: the sheet would overwrite an input; choose another name")


def _grid(args: argparse.Namespace, model: Translator, paths: Sequence[Path]) -> tuple[int, Draw]:
    """How many pictures a sheet has to be painted with, and what draws it; so do the two below."""
    from anifast.systems.gnr import sheets
    from anifast.systems.gnr.styles import codes, load_pictures

    count = 5 if args.style is None and args.styles is None else args.styles
    styles = _gathered(args, model, args.style or (), count)
    sheets.check_room(model, len(paths) + 1, len(styles) + 1)
    draw = partial(
        sheets.grid,
        model,
        load_pictures(paths, model.size, args.resize),
        codes(styles),
        names=[_short(path.name, 24) for path in paths],
        references=_references(args, model, styles),
        title=_short(" | ".join(style.name for style in styles), 16 * len(styles)),
    )
    return len(paths) * len(styles), draw


def _interpolate(args: argparse.Namespace, model: Translator, paths: Sequence[Path]) -> tuple[int, Draw]:
    from anifast.systems.gnr import sheets
    from anifast.systems.gnr.styles import codes, load_pictures

    ends = _gathered(args, model, args.between, None)
    if len(ends) != 2:
        raise AnifastError(
            f"--between {' '.join(args.between)}: gives {len(ends)} styles, and two are needed; name one of a file "
            "by its number, as in styles.json#3"
        )
    sheets.check_room(model, len(paths) + 1, args.steps + 1)
    draw = partial(
        sheets.interpolation,
        model,
        load_pictures(paths, model.size, args.resize),
        *codes(ends),
        steps=args.steps,
        names=[_short(path.name, 24) for path in paths],
        references=_references(args, model, ends),
        title=_short(f"from {ends[0].name} to {ends[1].name}", 16 * args.steps),
    )
    return len(paths) * args.steps, draw


def _edit(args: argparse.Namespace, model: Translator, paths: Sequence[Path]) -> tuple[int, Draw]:
    from anifast.systems.gnr import sheets
    from anifast.systems.gnr.styles import codes, load_pictures

    if len(paths) != 1:
        raise AnifastError(f"{args.contents[0]}: holds {len(paths)} pictures; edit takes one")
    if not 0 < args.strength < float("inf"):
        raise AnifastError(f"--strength {args.strength}: a number above 0")
    styles = _gathered(args, model, args.style or (), None)
    if len(styles) != 1:
        raise AnifastError(
            f"--style {args.style[0]}: holds {len(styles)} styles, and one is needed; name it by its number, as in "
            f"{args.style[0]}#3"
        )
    most = len(model.directions(args.to))
    if args.directions > most:
        raise AnifastError(f"--directions {args.directions}: this model has {most}")
    sheets.check_room(model, args.directions, args.steps + 1)
    along = ", ".join(f"{x:+.3g}" if x else "0" for x in sheets.strengths(args.strength, args.steps))
    draw = partial(
        sheets.edits,
        model,
        load_pictures(paths, model.size, args.resize),
        codes(styles),
        directions=args.directions,
        strength=args.strength,
        steps=args.steps,
        title=_short(f"{_short(styles[0].name, 24)}, moved by {along}", 16 * args.steps),
    )
    return args.directions * args.steps, draw


def _gathered(args: argparse.Namespace, model: Translator, sources: Sequence[str], count: int | None) -> list[Style]:
    from anifast.systems.gnr.styles import gather

    return gather(model, sources, to=args.to, count=count, seed=args.seed, how=args.resize, batch=args.batch)


def _references(args: argparse.Namespace, model: Translator, styles: Sequence[Style]) -> Tensor | None:
    """The pictures that styles were read from, white for those without one; None where none was."""
    import torch

    from anifast.systems.gnr.styles import load_pictures

    if all(style.picture is None for style in styles):
        return None
    white = torch.ones(1, 3, model.size, model.size)
    return torch.cat(
        [white if s.picture is None else load_pictures([s.picture], model.size, args.resize) for s in styles]
    )


def _short(name: str, most: int) -> str:
    """A name that fits beside or above pictures."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[-(most // 2 - 2) :]}"
