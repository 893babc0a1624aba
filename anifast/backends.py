"""Which backend an op runs on: what is usable, what is chosen, and why not another.

`backend=` of a call > `use_backend()` / `set_backend()` > environment `ANIFAST_BACKEND` > the op's measured order.
A backend that was asked for and is not available raises; the automatic choice moves on to the next. What is asked for
all ops concerns those that have such kernels: an op that nobody wrote them for chooses by itself, and `lines` tells it.
A choice reads plain dictionaries and module globals that were filled before, so torch.compile traces through it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anifast import _native
from anifast.errors import BackendError

#: Every backend there is. `native` is C++ on the CPU and CUDA on a GPU.
BACKENDS = ("reference", "native", "triton")

#: The order tried for an op on a device type, where measurements have set one (benchmarks/results).
MEASURED: dict[tuple[str, str], tuple[str, ...]] = {}
#: The order where nothing was measured.
DEFAULT = ("native", "reference")

# op -> backends that have kernels for it; an op's module registers itself when it is imported.
_kernels: dict[str, frozenset[str]] = {}
# op -> device types that its native kernels are written for.
_native_devices: dict[str, tuple[str, ...]] = {}
# (op, backend, device type) -> why it cannot run; empty text: it can.
_reasons: dict[tuple[str, str, str], str] = {}
# (op, device type) -> backend of the automatic choice.
_automatic: dict[tuple[str, str], str] = {}
_forced: str | None = None
_environment: str | None = os.environ.get("ANIFAST_BACKEND")


def set_backend(name: str | None) -> None:
    """Choose the backend of all ops in this process, all its threads; None or "auto" returns to the automatic choice.

    Raises:
        BackendError: the name is unknown, or no op can run on it here; the message says why.
    """
    global _forced
    name = _known(name, "set_backend")
    if name is not None:
        importlib.import_module("anifast.ops")  # every op registers itself
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        reasons = {why_not(op, name, device) for op in _kernels for device in devices}
        if "" not in reasons:
            raise BackendError(f"backend {name!r} cannot run here: {'; '.join(sorted(reasons))}")
    _forced = name


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """`set_backend` for the length of a with block; like it, for the whole process and not for one thread."""
    global _forced
    before = _forced
    set_backend(name)
    try:
        yield
    finally:
        _forced = before


def register(op: str, *backends: str, native_devices: tuple[str, ...] = ("cpu", "cuda")) -> None:
    """Tell that `op` has kernels for these backends, and settle its choices for the usual devices."""
    _kernels[op] = frozenset(("reference", *backends))
    _native_devices[op] = native_devices
    for device in ("cpu", "cuda"):
        automatic(op, device)
        for backend in BACKENDS:
            why_not(op, backend, device)


def is_written(op: str, backend: str, device: str) -> bool:
    """Whether `op` has kernels of `backend` for device type `device`, whatever this machine can run."""
    if backend == "native" and device in ("cpu", "cuda"):
        return device in _native_devices[op]
    return backend in _kernels[op]


def is_asked_for(requested: str | None = None) -> bool:
    """Whether the caller or the process asks for a certain backend, instead of leaving the choice to the op."""
    return any(name not in (None, "", "auto") for name in (requested, _forced, _environment))


def why_not(op: str, backend: str, device: str) -> str:
    """Why `op` cannot run on `backend` for tensors on device type `device`; "" when it can."""
    key = (op, backend, device)
    if key not in _reasons:
        if backend not in _kernels[op]:
            _reasons[key] = f"{op} has no {backend} kernels"
        elif backend == "native":
            missing = "" if is_written(op, backend, device) else f"{op} has no native kernels for {device} yet"
            _reasons[key] = missing or _native.unavailable(device) or _native.lacking(op, device) or ""
        elif backend == "triton":
            _reasons[key] = _triton_missing(device)
        else:
            _reasons[key] = ""
    return _reasons[key]


def _triton_missing(device: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install anifast[triton])"
    if importlib.util.find_spec("anifast.kernels") is None:
        return "anifast.kernels is missing: install the package, a bare source tree does not map kernels/ into it"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton has no driver for device type {device!r}; TRITON_INTERPRET=1 runs it (slowly) for tests"
    return ""


def automatic(op: str, device: str) -> str:
    """The backend that `op` takes by itself for tensors on device type `device`."""
    key = (op, device)
    if key not in _automatic:
        order = MEASURED.get(key, DEFAULT)
        _automatic[key] = next((name for name in order if not why_not(op, name, device)), "reference")
    return _automatic[key]


def choose(op: str, device: str, requested: str | None = None) -> str:
    """The backend for one call.

    Raises:
        BackendError: an explicit choice is unknown or cannot run `op` here; the message says why.
    """
    if requested is None and _forced is None and _environment is None:
        return automatic(op, device)
    for name, source in (
        (requested, "backend="),
        (_forced, "set_backend"),
        (_environment, "environment ANIFAST_BACKEND"),
    ):
        name = _known(name, source)
        if name is not None and (source == "backend=" or is_written(op, name, device)):
            reason = why_not(op, name, device)
            if reason:
                raise BackendError(f"{op}: backend {name!r} ({source}) cannot run on {device}: {reason}")
            return name
    return automatic(op, device)


def _known(name: str | None, source: str) -> str | None:
    if name is None or name == "" or name == "auto":
        return None
    if name not in BACKENDS:
        raise BackendError(f"{source}: unknown backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    return name


def report(device: str | None = None) -> list[tuple[str, str, str, dict[str, str]]]:
    """Rows (op, device type, backend in use, {other backend: why not}); `lines` puts them into words.

    `device` limits the rows to one device type; by default those that this machine has.
    """
    devices = [device] if device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        (op, kind, choose(op, kind), {name: why for name in BACKENDS if (why := why_not(op, name, kind))})
        for op in sorted(_kernels)
        for kind in devices
    ]


def lines(device: str | None = None) -> list[str]:
    """`report` in words, for `anifast doctor` and a run's first lines: one line an op and device type.

    Raises:
        BackendError: an explicit choice cannot run.
    """
    importlib.import_module("anifast.ops")  # every op registers itself
    told = []
    for op, kind, chosen, others in report(device):
        reasons = "; ".join(f"{name}: {why}" for name, why in others.items())
        told.append(f"{op} on {kind}: {chosen}" + (f"  ({reasons})" if reasons else ""))
    return told
