"""`anifast blendgan lmdb`: a folder's pictures as an LMDB, which `anifast train blendgan` reads instead of the folder.

    anifast blendgan lmdb ffhq --out data/faces                    at 256 and 1024 px
    anifast blendgan lmdb aahq --out data/styles --sizes 256,512   for a generator of 512 px

Stages style and psp learn from pictures of 256 px (--style-side, --psp-side), stage gan from those of its --size. Each
picture is scaled until its shorter side is as long, and the square in its middle is kept as a JPEG. Needs the extra
`lmdb`.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

from anifast.errors import AnifastError

_SIZES = (256, 1024)
_LARGEST_SIZE = 4096
#: Pictures left out that are told one by one.
_TOLD = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    usual = ",".join(map(str, _SIZES))
    parser.add_argument("pictures", type=Path, metavar="DIR", help="folder of pictures, searched with all below it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the LMDB, a new folder")
    parser.add_argument("--sizes", default=usual, metavar="N,N,...", help=f"sides of the squares [{usual}]")
    parser.add_argument("--quality", type=int, default=100, metavar="Q", help="of the JPEGs, 1 to 100 [100]")


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code.

    Raises:
        AnifastError: an option is wrong, the package `lmdb` is missing, or the LMDB cannot be written.
        DataError: the folder has no picture that can be read.
    """
    from anifast.data.folders import counted, printable
    from anifast.data.lmdb import Database, write_lmdb

    sizes = _sizes(args.sizes)
    if not 1 <= args.quality <= 100:
        raise AnifastError(f"--quality {args.quality}: from 1 to 100")
    skipped = write_lmdb(args.pictures, args.out, sizes, quality=args.quality)
    for name, why in islice(skipped.items(), _TOLD):
        print(f"anifast: skipped: {printable(name)}: {why}", file=sys.stderr)
    if len(skipped) > _TOLD:
        print(f"anifast: skipped: {len(skipped) - _TOLD} more", file=sys.stderr)
    with Database(args.out) as database:
        print(f"{counted(database.count)} at {' and '.join(map(str, database.sizes))} px: {printable(args.out)}")
    if skipped:
        print(f"{len(skipped)} skipped")
    return 0


def _sizes(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and 1 <= int(word) <= _LARGEST_SIZE for word in words):
        raise AnifastError(f"--sizes {text}: expected numbers from 1 to {_LARGEST_SIZE}, as {_SIZES[0]},{_SIZES[1]}")
    return sorted(set(map(int, words)))
