"""Runs a program as Python itself would: its own __main__, sys.argv, sys.path, tracebacks and exit code."""

from __future__ import annotations

import builtins
import importlib.util
import io
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

#: How processes that start anew (multiprocessing's spawn) learn what stands in for what, and of the program.
VARIABLE = "ANIFAST_COMPAT"
_FRAMES = (str(Path(__file__).parent) + os.sep, "<frozen runpy>", runpy.__file__)


class _Spec(ModuleSpec):
    """The spec of a program's __main__, by whose name other processes import it: `spawned`, not the program itself."""

    def __init__(self, parent: str) -> None:
        super().__init__("anifast.compat.spawned", None)
        self._parent = parent

    @property
    def parent(self) -> str:
        """The package that relative imports of the program start from."""
        return self._parent


def run(flavour: str, packages: Sequence[str], program: Sequence[str], fail: Callable[[str], NoReturn]) -> None:
    """Run a program whose ops are in place already.

    Args:
        flavour: what is installed, for processes that the program starts.
        packages: where it is installed.
        program: a script or "-m" and a module, and its arguments.
        fail: told what is wrong with `program`; does not return.
    """
    _shorten_tracebacks()
    main = ModuleType("__main__")
    if program[0] == "-m":
        found, arguments = list(program[:2]), program[2:]
        _search_first(os.getcwd())
        try:
            code, file, parent = _module(program[1])
        except ImportError as problem:
            fail(str(problem))
        sys.argv[:] = [file, *arguments]
    else:
        file, parent = os.path.abspath(program[0]), ""
        if not os.path.isfile(file):
            fail(f"there is no script {program[0]!r} here" + ("; it is a folder" if os.path.isdir(file) else ""))
        found = [file]
        _search_first(os.path.dirname(os.path.realpath(file)))
        sys.argv[:] = list(program)
        code = _script(file)
    os.environ[VARIABLE] = json.dumps([flavour, list(packages), found])
    main.__dict__.update(__builtins__=builtins, __file__=file, __package__=parent or None)
    main.__spec__ = _Spec(parent)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def run_again(program: Sequence[str], namespace: dict[str, Any]) -> None:
    """Run a program's definitions in another process; a package's __main__ has none that multiprocessing imports."""
    if program[0] != "-m":
        namespace["__file__"] = program[0]
        exec(_script(program[0]), namespace)
        return
    code, file, parent = _module(program[1])
    if os.path.basename(file) != "__main__.py" or namespace["__name__"] == "__main__":
        namespace.update(__file__=file, __package__=parent, __spec__=_Spec(parent))
        exec(code, namespace)


def _search_first(folder: str) -> None:
    """Let imports begin in `folder`, where Python had put the current one; with -P it puts none."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _script(path: str) -> CodeType:
    with io.open_code(path) as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def _module(name: str) -> tuple[CodeType, str, str]:
    """Code, file and package of what `python -m name` runs.

    Raises:
        ImportError: there is no such module, or it is a package without a __main__.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(name + ".__main__")
    except ModuleNotFoundError as problem:
        if not f"{name}.".startswith(f"{problem.name}."):
            raise  # a package on the way to it lacks something
        spec = None
    except ValueError:  # no name at all
        spec = None
    code = getattr(spec.loader, "get_code", lambda _: None)(spec.name) if spec else None
    if spec is None or code is None:
        raise ImportError(f"there is no module {name!r} to be run here")
    return code, spec.origin or name, spec.parent or ""


def _shorten_tracebacks() -> None:
    """Leave out what stands above the program, as when Python runs it itself."""
    before = sys.excepthook

    def hook(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_FRAMES):
            trace = trace.tb_next
        before(kind, problem.with_traceback(trace), trace)

    sys.excepthook = hook
