"""Options that several commands share, so that each has one name, one default and one help text."""

from __future__ import annotations

import argparse

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


def add_to(parser: argparse.ArgumentParser, default: str | None = "B") -> None:
    """Add --to, whose default may be told apart from its being given: None."""
    parser.add_argument("--to", choices=("A", "B"), default=default, help="the domain wanted [B]")


def add_resize(parser: argparse.ArgumentParser, which: str = "pictures") -> None:
    """Add --resize, of `which` pictures."""
    parser.add_argument(
        "--resize",
        choices=("crop", "stretch"),
        default="crop",
        help=f"{which} that are not square: largest centred square, or squeezed [crop]",
    )


def add_truncation(parser: argparse._ActionsContainer) -> None:
    """Add --truncation to a parser or a group of one; it is None where it is left out."""
    parser.add_argument(
        "--truncation", type=float, metavar="PSI", help="1: styles as they are, 0: the mean style, between: tamer [1]"
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Add --batch, --precision and --device."""
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once [8]")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="numbers to compute in [fp32]")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
