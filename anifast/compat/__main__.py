"""`python -m anifast.compat FLAVOUR [--package NAME] -- SCRIPT ARGS` (or `-- -m MODULE ARGS`).

Puts anifast's ops in place of a repository's own and runs its program, as `python SCRIPT ARGS` would.
"""

from __future__ import annotations

import argparse
import sys

from anifast.compat import FLAVOURS, install, running
from anifast.errors import AnifastError

_USAGE = """python -m anifast.compat FLAVOUR [--package NAME] -- SCRIPT ARGS
       python -m anifast.compat FLAVOUR [--package NAME] -- -m MODULE ARGS"""


def main() -> None:
    """Run the program named behind `--`; what it raises and exits with is what this does."""
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m anifast.compat",
        usage=_USAGE,
        description="Run a StyleGAN2-type program unchanged, with anifast's ops in place of its own.",
        epilog="The exit code is the program's own; 2: wrong usage, or no such program.",
        allow_abbrev=False,
    )
    parser.add_argument("flavour", metavar="FLAVOUR", choices=list(FLAVOURS), help="whose ops: " + ", ".join(FLAVOURS))
    parser.add_argument(
        "--package",
        action="append",
        metavar="NAME",
        help="the package to stand in for, such as models.stylegan2.op; several times for several ["
        + ", ".join(f"{flavour}: {package}" for flavour, package in FLAVOURS.items())
        + "]",
    )
    args = parser.parse_args(given[:at])
    program = given[at + 1 :]
    if not program or program == ["-m"]:
        parser.error(
            f"what is to run? It stands behind --, as in `python -m anifast.compat {args.flavour} -- train.py`"
        )
    packages = args.package or [FLAVOURS[args.flavour]]
    try:
        for package in packages:
            install(args.flavour, package)
    except ValueError as problem:
        parser.error(str(problem))
    except AnifastError as problem:
        sys.exit(f"anifast: error: {problem}")
    running.run(args.flavour, packages, program, parser.error)


if __name__ == "__main__":
    main()
