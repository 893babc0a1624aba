"""Bias, noise, leaky ReLU, gain, clamp and residual in one pass over the tensor.

out = clamp(gain * lrelu(x + noise_strength * noise + bias)) + residual_gain * residual

Three dispatcher ops carry it, per backend. Where f is the factor gain, gain * slope or 0 (clamped) of an element:

    forward   out   = f * (x + noise_strength * noise + bias) + ...   and finds f from the sign and the clamp
    backward  gx    = f * g,   gbias = sum gx,   gstrength = sum gx * noise
    masked    t     = f * (x + noise_strength * noise + bias)         with the f that forward found

`backward` is linear and `masked` is its adjoint, so each is the other's gradient and every order is exact
(f is piecewise constant). Forward leaves f behind as a mask of one bit an element, two with a clamp, and nothing
where f is the gain everywhere: reading bits instead of the output makes backward a third cheaper, and the output is
free to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anifast import _native, backends
from anifast.ops import _common
from anifast.reference.bias_lrelu import bias_lrelu as _reference

_SQRT2 = math.sqrt(2.0)


def is_linear(slope: float, clamp: float | None) -> bool:
    """Whether the factor f is the gain everywhere, so that no mask is needed."""
    return slope == 1.0 and clamp is None


def rows_of(shape: torch.Size, dim: int, channels_last: bool) -> tuple[int, int, int]:
    """(outer, channels, inner) so that memory is [outer, channels, inner], with inner 1 for channels last."""
    channels = shape[dim]
    inner = 1 if channels_last else math.prod(shape[dim + 1 :])
    outer = math.prod(shape[:dim])
    return (outer * math.prod(shape[dim + 1 :]) if channels_last else outer), channels, inner


def mask_shape(shape: torch.Size, dim: int, channels_last: bool, clamped: bool) -> tuple[int, int, int]:
    """Shape of the uint8 mask: planes (positive; with a clamp also: not clamped), rows, bytes a row, low bit first.

    A row is a run of memory that shares a bias value (inner > 1) or a pixel (inner == 1).
    """
    outer, channels, inner = rows_of(shape, dim, channels_last)
    rows, length = (outer, channels) if inner == 1 else (outer * channels, inner)
    return (2 if clamped else 1), rows, (length + 7) // 8


def _layout(x: Tensor, dim: int) -> bool:
    return dim == 1 and _common.is_channels_last(x)


def _empty(x: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(x, memory_format=_common.memory_format(x.dim(), channels_last))


class _Ops:
    """The three dispatcher ops of one backend, with their fakes and gradients."""

    def __init__(self, suffix: str) -> None:
        forward = _common.define(
            f"bias_lrelu{suffix}(Tensor x, Tensor? bias, Tensor? noise, Tensor? noise_strength, Tensor? residual, "
            "int dim, float slope, float gain, float? clamp, float residual_gain, bool save_mask) -> (Tensor, Tensor)"
        )
        backward = _common.define(
            f"bias_lrelu_backward{suffix}(Tensor grad, Tensor? mask, Tensor? noise, int dim, bool channels_last, "
            "float slope, float gain, bool want_bias, bool want_strength) -> (Tensor, Tensor, Tensor)"
        )
        masked = _common.define(
            f"bias_lrelu_masked{suffix}(Tensor x, Tensor? mask, Tensor? bias, Tensor? noise, Tensor? noise_strength, "
            "int dim, bool channels_last, float slope, float gain) -> Tensor"
        )
        self.names = (forward, backward, masked)
        torch.library.register_fake(forward)(self._fake_forward)
        torch.library.register_fake(backward)(self._fake_backward)
        torch.library.register_fake(masked)(self._fake_masked)
        if suffix:  # the native ops have the same gradients in csrc/autograd, where a call costs microseconds less
            torch.library.register_autograd(forward, self._forward_grad, setup_context=self._forward_context)
            torch.library.register_autograd(backward, self._backward_grad, setup_context=self._backward_context)
            torch.library.register_autograd(masked, self._masked_grad, setup_context=self._masked_context)
        self.forward, self.backward, self.masked = (
            getattr(torch.ops.anifast, name.removeprefix("anifast::")).default for name in self.names
        )
        # for calls that need neither casts nor an explanation, at half the cost on a small tensor
        self.short = getattr(_native.extension, "bias_lrelu_if_plain", None) if not suffix else None

    # forward

    @staticmethod
    def _fake_forward(
        x: Tensor,
        bias: Tensor | None,
        noise: Tensor | None,
        noise_strength: Tensor | None,
        residual: Tensor | None,
        dim: int,
        slope: float,
        gain: float,
        clamp: float | None,
        residual_gain: float,
        save_mask: bool,
    ) -> tuple[Tensor, Tensor]:
        channels_last = _layout(x, dim)
        shape = mask_shape(x.shape, dim, channels_last, clamp is not None) if save_mask else (0,)
        return _empty(x, channels_last), x.new_empty(shape, dtype=torch.uint8)

    @staticmethod
    def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, bias, noise, strength, residual, dim, slope, gain, clamp, residual_gain, save_mask = inputs
        linear = is_linear(slope, clamp)
        if not (linear or save_mask):
            raise RuntimeError("bias_lrelu: save_mask must be true where a gradient is needed")
        ctx.save_for_backward(None if linear else output[1], noise, strength)
        ctx.args = (dim, _layout(x, dim), slope, gain)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.residual_gain = residual_gain
        ctx.set_materialize_grads(False)

    def _forward_grad(self, ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        if grad is None:
            return (None,) * 5 + nothing
        grads = self._linear_grads(ctx, grad, ctx.needs_input_grad[:4])
        residual = None
        if ctx.needs_input_grad[4]:
            residual = grad if ctx.residual_gain == 1.0 else grad * ctx.residual_gain
        return (*grads, residual, *nothing)

    def _linear_grads(
        self, ctx: Any, grad: Tensor, needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of x, bias, noise and strength from that of f * (x + strength * noise + bias)."""
        if not any(needed):
            return None, None, None, None
        mask, noise, strength = ctx.saved_tensors
        want_x, want_bias, want_noise, want_strength = needed
        gx, gbias, gstrength = self.backward(
            grad, mask, noise if want_strength else None, *ctx.args, want_bias, want_strength
        )
        gnoise = None
        if want_noise:
            gnoise = gx.sum_to_size(noise.shape)
            gnoise = gnoise if strength is None else gnoise * strength.to(gnoise.dtype)
        return (
            gx if want_x else None,
            gbias.to(ctx.bias_dtype) if want_bias else None,
            gnoise,
            gstrength.to(strength.dtype).reshape(strength.shape) if want_strength else None,
        )

    # backward

    @staticmethod
    def _fake_backward(
        grad: Tensor,
        mask: Tensor | None,
        noise: Tensor | None,
        dim: int,
        channels_last: bool,
        slope: float,
        gain: float,
        want_bias: bool,
        want_strength: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums = _common.wide(grad)
        return (
            _empty(grad, channels_last),
            grad.new_empty((grad.shape[dim] if want_bias else 0,), dtype=sums),
            grad.new_empty(() if want_strength else (0,), dtype=sums),
        )

    @staticmethod
    def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grad, mask, noise, *args, want_bias, want_strength = inputs
        ctx.save_for_backward(mask, noise, grad)
        ctx.args = tuple(args)
        ctx.wants = (want_bias, want_strength)
        ctx.set_materialize_grads(False)

    def _backward_grad(
        self, ctx: Any, ggx: Tensor | None, ggbias: Tensor | None, ggstrength: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        mask, noise, grad = ctx.saved_tensors
        want_bias, want_strength = ctx.wants
        ggbias = ggbias if want_bias else None
        ggstrength = ggstrength if want_strength else None
        ggrad = gnoise = None
        if ctx.needs_input_grad[0] and not (ggx is None and ggbias is None and ggstrength is None):
            ggx = torch.zeros_like(grad) if ggx is None else ggx
            ggrad = self.masked(ggx, mask, ggbias, None if ggstrength is None else noise, ggstrength, *ctx.args)
        if ctx.needs_input_grad[2] and ggstrength is not None:
            gnoise = self.masked(grad, mask, None, None, None, *ctx.args).sum_to_size(noise.shape)
            gnoise = gnoise * ggstrength.to(gnoise.dtype)
        return (ggrad, None, gnoise, *(None,) * 6)

    # masked

    @staticmethod
    def _fake_masked(
        x: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        noise: Tensor | None,
        noise_strength: Tensor | None,
        dim: int,
        channels_last: bool,
        slope: float,
        gain: float,
    ) -> Tensor:
        return _empty(x, channels_last)

    @staticmethod
    def _masked_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mask, bias, noise, strength, *args = inputs
        ctx.save_for_backward(mask, noise, strength)
        ctx.args = tuple(args)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.set_materialize_grads(False)

    def _masked_grad(self, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        x_needed, _, *others = ctx.needs_input_grad[:5]
        gx, gbias, gnoise, gstrength = self._linear_grads(ctx, grad, (x_needed, *others))
        return (gx, None, gbias, gnoise, gstrength, *(None,) * 4)


def _kernel_arguments(function: str) -> Callable[..., tuple[Any, ...]]:
    """How a Triton function's arguments come from its op's: behind dim stands the layout, as torch calls it."""
    behind = {"forward": 6, "backward": 4, "masked": 6}[function]

    def made(*given: Any) -> tuple[Any, ...]:
        x, rest = given[0], given[behind:]
        if function == "forward":
            return (*given[:behind], _common.memory_format(x.dim(), _layout(x, given[behind - 1])), *rest)
        return (*given[:behind], _common.memory_format(x.dim(), rest[0]), *rest[1:])

    return made


_NATIVE = _Ops("")
_TRITON = _Ops("_triton")
for _name, _function in zip(_TRITON.names, ("forward", "backward", "masked"), strict=True):
    _common.implement(_name, "anifast.kernels.bias_lrelu", _function, _kernel_arguments(_function))
backends.register("bias_lrelu", "native", "triton")


def bias_lrelu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = 1,
    noise: Tensor | None = None,
    noise_strength: Tensor | float | None = None,
    slope: float = 0.2,
    gain: float = _SQRT2,
    clamp: float | None = None,
    residual: Tensor | None = None,
    residual_gain: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """clamp(gain * lrelu(x + noise_strength * noise + bias)) + residual_gain * residual, in one pass over memory.

    The activation of StyleGAN2 (Karras et al. 2020, section 2.2 and appendix B: lrelu with slope 0.2 times sqrt 2,
    noise scaled by a learned scalar before the bias), with the residual sum of its discriminator. Any order of gradient
    is exact with respect to x, bias, noise, noise_strength and residual; forward mode (jvp) and the transforms of
    torch.func go through the reference only, which is taken there by itself.

    Args:
        x: floating point, any rank >= 2, any size including 0; contiguous or channels_last is kept in the output.
        bias: [x.shape[dim]], in x's dtype or float32.
        dim: the channel axis.
        noise: rank of x, size 1 at `dim`, 1 or x.shape[0] at axis 0, the sizes of x elsewhere (N|1,1,H,W for images).
        noise_strength: one number, as a tensor of one element (x's dtype or float32) or a float; None means 1.
        slope: factor of negative values; 1 is linear. At 0 the derivative is that of the negative side, as in PyTorch.
        gain: factor after the activation.
        clamp: values end up in [-clamp, clamp]; None leaves them.
        residual: the shape and dtype of x, added after the clamp.
        residual_gain: factor of `residual`.
        backend: "reference", "native" or "triton"; None chooses (see `anifast.backends`).

    Returns:
        A new tensor with the shape, dtype and layout of x. Half types are computed in float32 and rounded once (noise
        in float32 beside a half x is rounded to x's dtype first).

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a wrong rank, size, device, dim or a negative clamp.
        BackendError: an explicitly chosen backend cannot run here.
    """
    if (
        _NATIVE.short is not None
        and type(x) is Tensor
        and (noise_strength is None or isinstance(noise_strength, Tensor))
        and not torch.compiler.is_compiling()
        and not torch.overrides.has_torch_function((x, bias, noise, noise_strength, residual))
        and backends.choose("bias_lrelu", x.device.type, backend) == "native"
    ):
        try:
            out = _NATIVE.short(x, bias, dim, noise, noise_strength, slope, gain, clamp, residual, residual_gain)
        except TypeError:  # an argument of a wrong type: what follows says which
            out = None
        if out is not None:
            return out
    dim, noise_strength = _check(x, bias, dim, noise, noise_strength, clamp, residual)
    for name, number in (("slope", slope), ("gain", gain), ("residual_gain", residual_gain)):
        _common.check_number("bias_lrelu", name, number)
    chosen = _common.choose("bias_lrelu", x, backend)
    if bias is not None:
        bias = _common.like("bias_lrelu", "bias", bias, x, float32_too=True)
    if noise is not None:
        noise = _common.like("bias_lrelu", "noise", noise, x, float32_too=True)
        noise = noise if noise.dtype == x.dtype else noise.to(x.dtype)
        if noise_strength is not None:
            noise_strength = _common.like("bias_lrelu", "noise_strength", noise_strength, x, float32_too=True)
    if residual is not None:
        residual = _common.like("bias_lrelu", "residual", residual, x, float32_too=False)
    if chosen == "reference":
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        if noise_strength is not None and noise_strength.dtype != x.dtype:
            noise_strength = noise_strength.to(x.dtype)
        return _reference(x, bias, noise, noise_strength, residual, dim, slope, gain, clamp, residual_gain)
    save_mask = (
        not is_linear(slope, clamp)
        and torch.is_grad_enabled()
        and (
            x.requires_grad
            or (bias is not None and bias.requires_grad)
            or (noise is not None and noise.requires_grad)
            or (noise_strength is not None and noise_strength.requires_grad)
            or (residual is not None and residual.requires_grad)
        )
    )
    if chosen == "triton" and not torch.compiler.is_compiling():
        _common.refuse_tangents("bias_lrelu", (x, bias, noise, noise_strength, residual))
    x = _common.dense(x)
    ops = _NATIVE if chosen == "native" else _TRITON
    out = ops.forward(x, bias, noise, noise_strength, residual, dim, slope, gain, clamp, residual_gain, save_mask)[0]
    if dim != 1 and _common.is_channels_last(x):
        return out.contiguous(memory_format=_common.memory_format(x.dim(), True))
    return out


def _check(
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    noise: Tensor | None,
    strength: Tensor | float | None,
    clamp: float | None,
    residual: Tensor | None,
) -> tuple[int, Tensor | None]:
    """Check ranks and sizes; return dim counted from the front and the strength as a tensor."""
    _common.check_float("bias_lrelu", "x", x)
    rank = x.dim()
    if rank < 2:
        raise ValueError(f"bias_lrelu: x must have rank 2 or more, got shape {tuple(x.shape)}")
    if not isinstance(dim, int):
        raise TypeError(f"bias_lrelu: dim must be an int, got {type(dim).__name__}")
    if not -rank <= dim < rank:
        raise ValueError(f"bias_lrelu: dim must lie in [{-rank}, {rank - 1}] for rank {rank}, got {dim}")
    dim = dim % rank
    if bias is not None:
        _common.check_float("bias_lrelu", "bias", bias)
        if bias.dim() != 1 or bias.shape[0] != x.shape[dim]:
            raise ValueError(
                f"bias_lrelu: bias has shape {tuple(bias.shape)}, expected ({x.shape[dim]},) as x at dim {dim}"
            )
    if noise is not None:
        _common.check_float("bias_lrelu", "noise", noise)
        wanted = [1 if axis == dim else size for axis, size in enumerate(x.shape)]
        if noise.dim() != rank or list(noise.shape[1:]) != wanted[1:] or noise.shape[0] not in (1, wanted[0]):
            raise ValueError(
                f"bias_lrelu: noise has shape {tuple(noise.shape)}, expected {tuple(wanted)}, or 1 at axis 0"
            )
    if strength is not None:
        strength = _common.strength_tensor("bias_lrelu", strength, noise, x)
    _common.check_clamp("bias_lrelu", clamp)
    if residual is not None and isinstance(residual, Tensor) and residual.shape != x.shape:
        raise ValueError(f"bias_lrelu: residual has shape {tuple(residual.shape)}, expected {tuple(x.shape)} as x")
    return dim, strength
