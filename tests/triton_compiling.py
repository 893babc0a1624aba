"""Triton kernels compiled for GPUs that are not there; imported by programs of their own, with the interpreter off."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# the type of sums over each type, and that of pointers to them
SUMS = {name: (tl.float32, "*fp32") for name in ("bf16", "fp16", "fp32")} | {"fp64": (tl.float64, "*fp64")}


@dataclass(frozen=True)
class Compiled:
    """The code of a kernel and what it needs."""

    ptx: str
    registers: int
    spilled: int
    shared: int

    @property
    def load(self) -> int:
        """Bytes of the widest load of a thread."""
        vectors = re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", self.ptx)
        return max(int(lanes or 1) * int(bits) // 8 for lanes, bits in vectors)


def compiled(
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    acc: Any,
    wide: tuple[str, ...] = (),
    **options: int,
) -> Compiled:
    """Compile a kernel for a compute capability; sizes named in `wide` are multiples of 16, as are all addresses.

    `options` are the compiler's, num_warps and num_stages.

    Raises:
        AssertionError: it keeps values in local memory, or a number is not passed as float64 (which float64 tensors
            need, and whose values must not be compiled in).
    """
    types = {p.name: p.annotation_type or "i32" for p in kernel.params} | pointers
    for name in {"gain", "act_gain", "negative", "limit", "residual_gain"} & set(types):
        assert types[name] == "fp64", name
    types |= {name: "constexpr" for name in (*constants, "ACC")}
    aligned = [i for i, name in enumerate(kernel.arg_names) if name in wide or types[name].startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, types, {**constants, "ACC": acc}, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    registers, spilled = _usage(made.asm["cubin"])
    assert ".local" not in ptx and not spilled, (capability, constants, "local memory", spilled)
    return Compiled(ptx, registers, spilled, made.metadata.shared)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which is where registers spill to."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])
