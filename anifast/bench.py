"""`anifast bench`: times the ops on this machine, our kernels against plain PyTorch, beside the copy bound.

    anifast bench --quick                 a few cases of every op, without torch.compile: about a minute
    anifast bench bias_lrelu              all cases of one op; --out keeps the figures
    anifast bench --device cpu            the CPU's kernels on a machine with a GPU

Every variant is first checked against the reference; then all variants of a case are timed in turn. `make bench` in the
repository does the same, measures whole systems too (benchmarks/systems, installed as anifast.benchmarks.systems) and
prints the tables of the README.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import anifast
from anifast.errors import AnifastError


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The options of `anifast bench`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="*", metavar="OP", help="what to measure [every op]")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="only the few cases that stand for the rest, briefly")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for <device>/<op>.json [nothing is written]")


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code, 1 where a variant was refused for a wrong result.

    Raises:
        AnifastError: no such op, no such device, or the measurements are not there.
    """
    words = [word for op in args.ops for word in ("--op", op)]
    words += ["--device", args.device] if args.device else []
    words += ["--quick"] if args.quick else []
    words += ["--out", str(args.out)] if args.out else []
    code: int = _runner().measure(words, None, ("compile",) if args.quick else ())
    return code


def _runner() -> ModuleType:
    """benchmarks/run.py: of the repository if anifast runs from one, else as it was installed, as anifast.benchmarks.

    Its modules call each other `benchmarks.NAME`, which is their name in the repository.
    """
    root = Path(anifast.__file__).resolve().parents[1]
    if (root / "benchmarks" / "run.py").is_file() and (root / "setup.py").is_file():
        sys.path.append(str(root))
    elif importlib.util.find_spec("anifast.benchmarks") is not None:
        sys.modules["benchmarks"] = importlib.import_module("anifast.benchmarks")
    else:
        raise AnifastError(
            "the measurements are not installed here; in a clone of the repository `python benchmarks/run.py` has them"
        )
    return importlib.import_module("benchmarks.run")
