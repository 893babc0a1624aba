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
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anifast.errors import AnifastError
from anifast.systems import options

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from anifast.systems.gnr.inference import Translator
    from anifast.systems.gnr.styles import Style

    Draw = Callable[..., Image.Image]

#: How one style is named where there are several, for messages.
_ONE = "one picture of a folder, or one style of a file by its number, as in styles.json#3"


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
    sub.add_argument("--style", nargs="+", metavar="STYLE", help=f"columns: {options.STYLE_SOURCES} [random]")
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
        help=f"the two styles, each {options.STYLE_SOURCES} [random random]",
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
    sub.add_argument(
        "--style", nargs=1, metavar="STYLE", help=f"the style in the middle: {options.STYLE_SOURCES} [random]"
    )
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
    options.add_to(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="of random styles [0]")
    options.add_truncation(parser)
    options.add_resize(parser)
    options.add_computing(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if args.verb == "video":
        from anifast.systems.gnr import video

        return video.main(args)
    from anifast.data.folders import counted
    from anifast.engine import precision, state, translate
    from anifast.files import atomic_path
    from anifast.progress import Progress
    from anifast.systems.commands import check_out, not_an_input
    from anifast.systems.styles import RANDOM, check_truncation

    for name, least in (("batch", 1), ("steps", 2), ("directions", 1)):
        value = getattr(args, name, least)
        if value < least:
            raise AnifastError(f"--{name} {value}: at least {least}")
    args.truncation = check_truncation(args.truncation)
    check_out(args.out, (".png",))
    paths, rejected = _pictures(args.contents)
    sources: list[str] = getattr(args, "between", None) or getattr(args, "style", None) or []
    inputs = [*paths, *_pictures(Path(source) for source in sources if source != RANDOM)[0]]
    not_an_input(args.out, inputs, "--out ")
    for path, why in rejected.items():
        print(f"anifast: warning: left out: {path}: {why}", file=sys.stderr)
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
    if rejected:
        raise AnifastError(
            f"{len(rejected)} of {counted(len(paths) + len(rejected))} could not be painted (named above); the sheet "
            "is of the others"
        )
    return 0


def load_model(path: str | Path, device: str | None = None, precision: str = "fp32") -> Translator:
    """A trained GANs N' Roses.

    Raises:
        CheckpointError: the file cannot be used, or is of another system.
    """
    from anifast.systems.commands import load_as
    from anifast.systems.gnr.inference import Translator

    return load_as(Translator, "`anifast gnr` takes those of GANs N' Roses", path, device, precision)


def _pictures(inputs: Iterable[Path]) -> tuple[list[Path], dict[str, str]]:
    """The pictures that files and folders hold, and path -> reason for what looked like pictures and is none."""
    from anifast.systems.styles import pictures_in

    paths: list[Path] = []
    rejected: dict[str, str] = {}
    for source in inputs:
        inside, others = pictures_in(source)
        paths += inside
        rejected |= others
    return paths, rejected


def _grid(args: argparse.Namespace, model: Translator, paths: Sequence[Path]) -> tuple[int, Draw]:
    """How many pictures a sheet has to be painted with, and what draws it; so do the two below."""
    from anifast.systems.gnr import sheets
    from anifast.systems.gnr.styles import codes
    from anifast.systems.styles import load_pictures

    count = 5 if args.style is None and args.styles is None else args.styles
    styles = _gathered(args, model, args.style or (), count)
    sheets.check_room(model, len(paths) + 1, len(styles) + 1)
    draw = partial(
        sheets.grid,
        model,
        load_pictures(paths, model.size, args.resize),
        codes(styles),
        names=[path.name for path in paths],
        heads=[style.name for style in styles],
        references=_references(args, model, styles),
        title="styles",
    )
    return len(paths) * len(styles), draw


def _interpolate(args: argparse.Namespace, model: Translator, paths: Sequence[Path]) -> tuple[int, Draw]:
    from anifast.systems.gnr import sheets
    from anifast.systems.gnr.styles import codes
    from anifast.systems.styles import load_pictures

    ends = _gathered(args, model, args.between, None, "--between")
    if len(ends) != 2:
        raise AnifastError(
            f"--between {' '.join(args.between)}: gives {len(ends)} styles, and two are needed; name {_ONE}"
        )
    sheets.check_room(model, len(paths) + 1, args.steps + 1)
    draw = partial(
        sheets.interpolation,
        model,
        load_pictures(paths, model.size, args.resize),
        *codes(ends),
        steps=args.steps,
        names=[path.name for path in paths],
        references=_references(args, model, ends),
        title="from one style (0) to another (1)",
    )
    return len(paths) * args.steps, draw


def _edit(args: argparse.Namespace, model: Translator, paths: Sequence[Path]) -> tuple[int, Draw]:
    from anifast.systems.gnr import sheets
    from anifast.systems.gnr.styles import codes
    from anifast.systems.styles import load_pictures

    if len(paths) != 1:
        raise AnifastError(f"{args.contents[0]}: holds {len(paths)} pictures; edit takes one")
    if not 0 < args.strength < float("inf"):
        raise AnifastError(f"--strength {args.strength}: a number above 0")
    styles = _gathered(args, model, args.style or (), None)
    if len(styles) != 1:
        raise AnifastError(f"--style {args.style[0]}: holds {len(styles)} styles, and one is needed; name {_ONE}")
    most = len(model.directions(args.to))
    if args.directions > most:
        raise AnifastError(f"--directions {args.directions}: this model has {most}")
    sheets.check_room(model, args.directions, args.steps + 1)
    draw = partial(
        sheets.edits,
        model,
        load_pictures(paths, model.size, args.resize),
        codes(styles),
        directions=args.directions,
        strength=args.strength,
        steps=args.steps,
        title="a style, moved along directions",
    )
    return args.directions * args.steps, draw


def _gathered(
    args: argparse.Namespace, model: Translator, sources: Sequence[str], count: int | None, option: str = "--style"
) -> list[Style]:
    from anifast.systems.gnr.styles import gather

    return gather(
        model, sources, to=args.to, count=count, seed=args.seed, how=args.resize, batch=args.batch, option=option
    )


def _references(args: argparse.Namespace, model: Translator, styles: Sequence[Style]) -> Tensor | None:
    """The pictures that styles were read from, white for those without one; None where none was."""
    import torch

    from anifast.systems.styles import load_pictures

    if all(style.picture is None for style in styles):
        return None
    white = torch.ones(1, 3, model.size, model.size)
    return torch.cat(
        [white if s.picture is None else load_pictures([s.picture], model.size, args.resize) for s in styles]
    )
