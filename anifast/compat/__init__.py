"""Stands in for the op folders that StyleGAN2-type repositories carry along, without a change in them.

    anifast.compat.install("rosinality")      # before the first `import op`: gives `op`
    anifast.compat.install("nvlabs")          # gives `torch_utils.ops`; the rest of torch_utils stays the repository's

or, around a whole program: `python -m anifast.compat rosinality -- train.py ARGS`. The repository's own folder is never
run, so nothing is compiled; what it has beyond the modules given here is still found in it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from anifast.errors import AnifastError

#: Flavour -> the package whose place it takes where no other is named.
FLAVOURS = {"rosinality": "op", "nvlabs": "torch_utils.ops"}

__all__ = ["FLAVOURS", "install"]


class _Finder:
    """Finds one package here instead of where it lies; its modules are then looked for here first, and there after."""

    def __init__(self, flavour: str, package: str) -> None:
        self.flavour = flavour
        self.package = package
        self.folder = Path(__file__).resolve().parent / flavour

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the package, None for any other name: the protocol of sys.meta_path."""
        if name != self.package:
            return None
        theirs = importlib.machinery.PathFinder.find_spec(name, path)
        places = [str(self.folder), *((theirs.submodule_search_locations or []) if theirs else [])]
        return importlib.util.spec_from_file_location(
            name, self.folder / "__init__.py", submodule_search_locations=places
        )


def install(flavour: str, package: str | None = None) -> None:
    """Let imports of a vendored op package, and of its modules, find anifast's.

    Call it before the package is imported for the first time; a second call for the same changes nothing. The
    packages around it (`torch_utils` of `torch_utils.ops`) stay the repository's own and must be importable.

    Args:
        flavour: "rosinality" (`FusedLeakyReLU`, `fused_leaky_relu`, `upfirdn2d`, `conv2d_gradfix`) or "nvlabs"
            (`bias_act`, `upfirdn2d`, `conv2d_gradfix`, `grid_sample_gradfix`, `conv2d_resample`, `fma`).
        package: full name of the package whose place is taken, such as "models.stylegan2.op"; None means the one that
            these repositories have, "op" or "torch_utils.ops".

    Raises:
        ValueError: an unknown flavour, or a package name that no import statement could have.
        AnifastError: the package was imported before, or is installed with another flavour.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"install: unknown flavour {flavour!r}; there are {', '.join(FLAVOURS)}")
    package = FLAVOURS[flavour] if package is None else package
    if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
        raise ValueError(f"install: package must be a dotted name such as 'models.stylegan2.op', got {package!r}")
    for finder in sys.meta_path:
        if isinstance(finder, _Finder) and finder.package == package:
            if finder.flavour == flavour:
                return
            raise AnifastError(f"{package} is installed as {finder.flavour} already and cannot be {flavour} too")
    if package in sys.modules:
        place = getattr(sys.modules[package], "__file__", None) or "a module without a file"
        raise AnifastError(
            f"{package} is imported already, from {place}: call anifast.compat.install({flavour!r}) before anything "
            f"imports it, or run the program as `python -m anifast.compat {flavour} -- SCRIPT`"
        )
    sys.meta_path.insert(0, _Finder(flavour, package))
    importlib.invalidate_caches()
