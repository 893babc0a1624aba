"""Loads the compiled extension `anifast._C` and keeps the reason where that is not possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# Written by setup.py beside the extension: what it was built with, readable without loading it.
_RECORD = Path(__file__).with_name("_build.json")
# torch's names for what a CPU can do, weakest first, to compare with the instruction set the kernels were built for.
_LEVELS = ("default", "avx2", "avx512")


def _refusal(record: dict[str, Any]) -> str | None:
    """Why loading the extension would crash or misbehave, or None.

    Kernels are built for the machine that installs them. Instructions that this CPU lacks kill the process, and
    another torch gives undefined symbols, so both are told apart before the shared library is touched.
    """
    built_with = record.get("torch", "")
    if built_with.split(".")[:2] != torch.__version__.split(".")[:2]:
        return f"anifast was built with torch {built_with} and runs with {torch.__version__}"
    needs, has = record.get("isa", "default"), torch.backends.cpu.get_cpu_capability().lower()
    if needs in _LEVELS and has in _LEVELS and _LEVELS.index(needs) > _LEVELS.index(has):
        return f"the kernels were built for a CPU with {needs.upper()} and this one offers {has.upper()}"
    return None


def _load() -> tuple[dict[str, Any], str | None, Any]:
    """What the extension was built with, why it cannot be used, and the module."""
    if not _RECORD.exists():
        return {}, "nothing was compiled (a pure-Python install, or a source tree that was never installed)", None
    record: dict[str, Any] = json.loads(_RECORD.read_text(encoding="utf-8"))
    if not record.get("extension", True):
        return record, f"nothing was compiled: {record.get('reason', 'ANIFAST_BUILD=none')}", None
    reason = _refusal(record)
    if reason is None:
        try:
            from anifast import _C
        except ImportError as problem:
            reason = f"anifast._C does not load: {problem}"
        else:
            return record | dict(_C.build_info()), None, _C
    return record, f"{reason}; from a clone, run `pip install --no-build-isolation --force-reinstall --no-deps .`", None


#: What the extension was built with (empty where nothing was built), why it cannot be used, the module itself.
build_info, reason, extension = _load()
#: Device types that compiled kernels exist for.
devices: frozenset[str] = frozenset() if reason else frozenset({"cpu", *(["cuda"] if build_info.get("cuda") else [])})


def unavailable(device: str) -> str | None:
    """The reason why there is no compiled code for tensors on `device` ("cpu", "cuda"), or None."""
    if reason is not None:
        return reason
    if device not in devices:
        return (
            "the extension was built without CUDA; reinstall where nvcc and a CUDA build of torch are found"
            if device == "cuda"
            else f"there are no compiled kernels for device type {device!r}"
        )
    return None


def lacking(op: str, device: str) -> str | None:
    """The reason why an extension that loads has no kernels of `op` for tensors on `device`, or None.

    One that was built in a source tree before the op came to it.
    """
    sources = build_info.get("sources")
    if sources is None or f"csrc/{device}/{op}.cpp" in sources:
        return None
    return f"the extension was built before {op} was written; build it again"
