"""Options that several commands share, so that each has one name, one default and one help text."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

#: Pictures that are computed at once where nothing else is asked for.
BATCH = 8
#: What `--batch` is where that is too many for the memory, for help texts.
FEWER = "fewer where the memory has no room for so many"

#: What a style can be given as, for help texts.
STYLE_SOURCES = (
    "a picture of the wanted domain, of any size, whose style is read, or a folder of such; a file of saved codes "
    "(styles.json) or one of them (styles.json#3); or random"
)

#: What a style is given as where styles are artists', for help texts.
ARTIST_SOURCES = (
    "the name of an artist, or several with commas between them; neutral; random; all: every artist; a file of styles "
    "(styles.json) or one of them (styles.json#3)"
)

#: What one such style is given as.
ONE_ARTIST = "the name of an artist; neutral; random; or one of a file of styles (styles.json#3)"

#: What a style of BlendGAN is given as.
BLENDGAN_STYLES = (
    "pictures in any style, of any size, or folders of such; files of saved codes (codes.pt) or one of them "
    "(codes.pt#3); or random"
)

#: What a face of BlendGAN is given as.
BLENDGAN_FACES = "photos, and folders of such; codes of faces, z or W+, in a .pt or .npy; or random"


def add_to(parser: argparse.ArgumentParser, default: str | None = "B") -> None:
    """Add --to, whose default may be told apart from its being given: None."""
    parser.add_argument("--to", choices=("A", "B"), default=default, help="the domain wanted [B]")


def add_resize(
    parser: argparse.ArgumentParser, which: str = "pictures", usual: str = "crop", stretching: str = ""
) -> None:
    """Add --resize.

    Args:
        parser: gets it.
        which: pictures.
        usual: what it is where it is left out.
        stretching: when it is stretch then, for the help text; it is None where it is left out, see `resize_of`.
    """
    parser.add_argument(
        "--resize",
        choices=("crop", "stretch"),
        default=None if stretching else usual,
        help=f"{which} that are not square: largest centred square, or squeezed "
        f"[{usual}{f'; {stretching} stretch' if stretching else ''}]",
    )


def resize_of(args: argparse.Namespace, model: Any = None) -> str:
    """What --resize asks for: where it is left out, with --parity what the authors do, else what the model names."""
    return args.resize or ("stretch" if getattr(args, "parity", None) else getattr(model, "resize", "crop"))


def add_truncation(parser: argparse._ActionsContainer, also: str = "") -> None:
    """Add --truncation to a parser or a group of one; it is None where it is left out."""
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="PSI",
        help=f"1: styles as they are, 0: the mean style, between: tamer{also} [1]",
    )


def add_computing(parser: argparse.ArgumentParser, fitting: str = "") -> None:
    """Add --batch, --precision and --device.

    Args:
        parser: gets them.
        fitting: what --batch is where it is left out and depends on the memory, for the help text; then it is None.
    """
    parser.add_argument(
        "--batch",
        type=int,
        default=None if fitting else BATCH,
        metavar="N",
        help=f"pictures at once [{fitting or BATCH}]",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="numbers to compute in [fp32]")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")


def add_index(parser: argparse._ActionsContainer, usual: int) -> None:
    """Add --index, BlendGAN's blending indicator; it is None where it is left out."""
    parser.add_argument(
        "--index",
        type=int,
        metavar="I",
        help="the blending indicator: 0 is all of the style, 18 at 1024 pixels (14 at 256, 10 at 64) none of it; "
        f"higher ones keep more of the face [{usual}]",
    )


def add_output(parser: argparse._ActionsContainer) -> None:
    """Add --noise and --parity; they are None where they are left out."""
    parser.add_argument("--noise", type=int, metavar="SEED", help="draw the noise of each face [the model's own]")
    parser.add_argument(
        "--parity",
        action="store_true",
        default=None,
        help="as the authors do, cut values to 8 bits without rounding, and squeeze pictures that are not square (see "
        "--resize); results stay PNGs, where theirs are JPEGs",
    )


def add_parts(parser: argparse._ActionsContainer, psp: bool = True) -> None:
    """Add --psp and --style-encoder, networks of BlendGAN that are elsewhere than the generator."""
    if psp:
        parser.add_argument(
            "--psp", metavar="RUN|CKPT", help="run or file with the encoder that inverts photos [the model's]"
        )
    parser.add_argument("--style-encoder", metavar="RUN|CKPT", help="run or file with the style encoder [the model's]")


def given_parts(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_parts` was given, for `anifast.load`."""
    return {name: getattr(args, name) for name in ("psp", "style_encoder") if getattr(args, name, None) is not None}


def memory_lines(found: Mapping[str, tuple[int, int]], batch: int) -> list[str]:
    """What `memory` of a model tells, for the first lines of a command: its networks come one after the other."""
    if not found:
        return []
    names = {"E_style": "style encoder", "psp": "encoder of photos", "G": "generator"}
    parts = [
        f"{names.get(name, name)} {_size(weights)} + {_size(maps)}"
        for name, (weights, maps) in sorted(found.items(), key=lambda item: list(names).index(item[0]))
    ]
    most = max(weights + maps for weights, maps in found.values())
    return [f"memory, weights + maps of {batch} pictures: {', then '.join(parts)}; about {_size(most)} at most"]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
