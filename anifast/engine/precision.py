"""Which device a run uses and in which numbers it computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from anifast.errors import AnifastError

#: The numbers in which a network can be run.
PRECISIONS = ("fp32", "bf16")


def pick_device(name: str | None) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1"); None: a GPU if there is one, else the CPU.

    Raises:
        AnifastError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise AnifastError(f"unknown device {name!r}; there are cpu, cuda and cuda:NUMBER") from None
    if device.type not in ("cpu", "cuda"):
        raise AnifastError(f"device {name!r} is not supported; there are cpu, cuda and cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise AnifastError(
            f"device {name!r} is not here: torch sees {torch.cuda.device_count()} GPUs; use --device cpu"
        )
    return device


def matrix_unit() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (Intel AMX), which makes bf16 two to four times as fast."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context in which networks run: bf16 convolutions under fp32 weights, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def enough_memory(batch: int, side: str, smaller: str) -> Iterator[None]:
    """Tell of too little memory for `batch` pictures in words; `side` and `smaller` go into them.

    Raises:
        AnifastError: the memory did not suffice inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch tells of too little memory by a plain RuntimeError.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise AnifastError(
            f"the memory does not suffice for {batch} pictures at once{side}; take a smaller {smaller}"
        ) from error


def describe(device: torch.device, precision: str) -> str:
    """One line on device and numbers, for the first lines of a run."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"device {device} ({name}), torch {torch.__version__}, precision {precision}"
    capability = torch.backends.cpu.get_cpu_capability() + (" + AMX" if matrix_unit() else "")
    hint = ""
    if precision == "bf16" and not matrix_unit():
        hint = "; this CPU has no bf16 matrix unit, fp32 may be faster"
    elif precision == "fp32" and matrix_unit():
        hint = "; --precision bf16 would be faster on this CPU"
    why = "" if torch.cuda.is_available() else ", torch sees no GPU"
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"device cpu ({capability}, {threads}{why}), torch {torch.__version__}, precision {precision}{hint}"
