"""What the ops share: argument checks, memory layouts, and the registration of one op for several backends."""

from __future__ import annotations

import functools
import importlib
import numbers
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from anifast import _native, backends

LIBRARY = torch.library.Library("anifast", "DEF")

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def define(schema: str) -> str:
    """Define the op `schema` in the dispatcher and return its qualified name "anifast::name".

    The schema exists whether or not anything was compiled; the extension adds its implementations by the same name.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return "anifast::" + schema[: schema.index("(")]


def implement(
    name: str,
    module: str,
    function: str,
    arguments: Callable[..., Sequence[Any]],
    devices: Sequence[str] = ("CPU", "CUDA"),
) -> None:
    """Register `module.function` (Triton launches) as the implementation of an op for these dispatch keys.

    `arguments` makes the function's arguments out of the op's. The module, and Triton with it, is imported at the
    first call.
    """

    def run(*given: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*arguments(*given))

    for device in devices:
        LIBRARY.impl(name.removeprefix("anifast::"), run, device)


def is_channels_last(x: Tensor) -> bool:
    """Whether x lies in memory as N,H,W,C (or N,D,H,W,C) and not also as N,C,H,W."""
    if x.is_contiguous():
        return False
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


def memory_format(rank: int, channels_last: bool) -> torch.memory_format:
    """The torch name of a layout."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if rank == 4 else torch.channels_last_3d


def dense(x: Tensor) -> Tensor:
    """X itself if its layout is contiguous or channels last, else a copy in the nearer of the two."""
    if x.is_contiguous() or is_channels_last(x):
        return x
    nearer = x.dim() in (4, 5) and x.shape[1] > 1 and x.stride(1) == 1
    return x.contiguous(memory_format=memory_format(x.dim(), nearer))


def wide(x: Tensor) -> torch.dtype:
    """The type in which values of x are summed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def choose(op: str, x: Tensor, requested: str | None) -> str:
    """The backend of a call on x.

    Raises:
        BackendError: an explicit choice cannot run here.
        NotImplementedError: an explicit choice inside a transform of torch.func, which only the reference goes through.
    """
    chosen = backends.choose(op, x.device.type, requested)
    if chosen != "reference" and _native.extension is not None and not torch.compiler.is_compiling():
        if _native.extension.transforms_are_active():
            if backends.is_asked_for(requested):
                raise NotImplementedError(
                    f"{op}: backend {chosen!r} does not go through torch.func (grad, vjp, jvp, vmap); "
                    'backend="reference" does'
                )
            return "reference"
    return chosen


def check_float(op: str, name: str, x: Tensor) -> None:
    """Raise TypeError unless x is a dense floating-point tensor of a supported type."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got {x.layout}")


def like(op: str, name: str, value: Tensor, x: Tensor, *, float32_too: bool, called: str = "x") -> Tensor:
    """Check that `value` fits x in device and dtype and return it, cast where autocast or a half x allow it.

    `called` is x in messages.

    With `float32_too`, float32 beside a half-precision x is taken as it is (parameters under mixed precision).

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: another device.
    """
    check_float(op, name, value)
    if value.device != x.device:
        raise ValueError(f"{op}: {name} is on {value.device}, expected {x.device} as {called}")
    if value.dtype == x.dtype:
        return value
    half = x.dtype in (torch.float16, torch.bfloat16)
    if float32_too and half and value.dtype == torch.float32:
        return value
    if torch.is_autocast_enabled(x.device.type):
        return value.to(x.dtype)
    expected = f"{x.dtype} as {called}" + (" or torch.float32" if float32_too and half else "")
    raise TypeError(f"{op}: {name} has dtype {value.dtype}, expected {expected}")


def promote(values: list[Any]) -> None:
    """Under autocast, bring floating-point tensors of several types to the widest, in place of the list.

    For ops that read their inputs in float32 anyway: rounding one to another's half type could only lose.
    """
    tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    if len({value.dtype for value in tensors}) < 2 or not torch.is_autocast_enabled(tensors[0].device.type):
        return
    widest = functools.reduce(torch.promote_types, (value.dtype for value in tensors))
    for i, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point():
            values[i] = value.to(widest)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off where the device of x has it."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def check_bool(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type(value).__name__}")


def strength_tensor(op: str, strength: Tensor | float, noise: Tensor | None, x: Tensor) -> Tensor:
    """`noise_strength`, number or tensor, as a tensor of one element.

    Raises:
        TypeError: it is neither.
        ValueError: there is no noise, or more than one element.
    """
    if noise is None:
        raise ValueError(f"{op}: noise_strength is given without noise")
    if not isinstance(strength, Tensor):
        check_number(op, "noise_strength", strength)
        return torch.full((), float(strength), dtype=wide(x), device=x.device)
    if strength.numel() != 1:
        raise ValueError(f"{op}: noise_strength has shape {tuple(strength.shape)}, expected one element")
    return strength


def check_number(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a real number."""
    if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):  # without the ABC, which is not traced
        return
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")


def check_clamp(op: str, clamp: float | None) -> None:
    """Raise TypeError for a limit that is no number, ValueError for one that is negative or NaN."""
    if clamp is None:
        return
    check_number(op, "clamp", clamp)
    if not clamp >= 0.0:
        raise ValueError(f"{op}: clamp must not be negative, got {clamp}")


def check_epilogue(
    op: str,
    x: Tensor,
    shape: tuple[int, ...],
    bias: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | float | None,
    clamp: float | None,
    add: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor | None:
    """Check the sizes of what stands behind an output of N,C,H,W; return the strength as a tensor.

    Raises:
        TypeError: one is no tensor or number, or no floating-point tensor.
        ValueError: another size, a strength without noise, a negative clamp.
    """
    for name, value, wanted in (("scale", scale, shape[:2]), ("bias", bias, shape[1:2]), ("add", add, shape)):
        if value is not None:
            check_float(op, name, value)
            if value.shape != wanted:
                raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected {tuple(wanted)}")
    if noise is not None:
        check_float(op, "noise", noise)
        if noise.dim() != 4 or noise.shape[0] not in (1, shape[0]) or noise.shape[1:] != (1, *shape[2:]):
            raise ValueError(
                f"{op}: noise has shape {tuple(noise.shape)}, expected {(shape[0], 1, *shape[2:])}, or 1 at axis 0"
            )
    if strength is not None:
        strength = strength_tensor(op, strength, noise, x)
    check_clamp(op, clamp)
    return strength


def refuse_tangents(op: str, tensors: Sequence[Tensor | None]) -> None:
    """Raise NotImplementedError where a tensor carries a forward-mode tangent, which an op without jvp would drop."""
    for value in tensors:
        if value is not None and torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(f'{op}: no forward-mode differentiation (jvp) here; backend="reference" has it')
