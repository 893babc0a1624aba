"""Up-sample, FIR-filter and down-sample, with what follows in a network, in one pass over memory.

u = FIR of the padded, zero-inserted x, every down-th sample of it, times gain
z = scale * u + noise_strength * noise + bias
out = clamp(act_gain * lrelu(z)) + add

One dispatcher op carries it, per backend; its gradient is made of itself and of bias_lrelu's. With U the linear map
from x to u and f the factor of bias_lrelu, whose mask of bits forward leaves behind:

    gz = f * g,   gbias = sum gz,   gstrength = sum gz * noise,   gadd = g      (bias_lrelu_backward; nothing if linear)
    gx = scale * U'(gz),   gscale = sum x * U'(gz)                              (the op itself: U' is U with up and down
                                                                                exchanged, flip toggled, other pads)

A scale is one number a map, so it may stand before or behind U. Where the mask has no whole bytes for a line (width
not divisible by 8) and a gradient needs it, the activation is a pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anifast import _native, backends
from anifast.ops import _common
from anifast.ops.bias_lrelu import _NATIVE as _NATIVE_ACTIVATION
from anifast.ops.bias_lrelu import _TRITON as _TRITON_ACTIVATION
from anifast.ops.bias_lrelu import mask_shape
from anifast.reference.upfirdn2d import upfirdn2d as _reference

_SQRT2 = math.sqrt(2.0)
_PLAIN = (int, tuple, list)
# so that no backend's sums of positions overflow
_MOST_FACTOR, _MOST_PAD = 1024, (1 << 31) - 1
_SCHEMA = (
    "(Tensor x, Tensor kernel, int[] up, int[] down, SymInt[] padding, bool flip, float gain, Tensor? scale, "
    "Tensor? bias, Tensor? noise, Tensor? noise_strength, Tensor? add, float slope, float act_gain, float? clamp, "
    "bool save_mask) -> (Tensor, Tensor)"
)


def out_size(
    size: tuple[int, int], kernel: tuple[int, int], up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """(rows, columns) of the output from those of the input and of the kernel."""
    return (
        (size[0] * up[1] + padding[2] + padding[3] - kernel[0]) // down[1] + 1,
        (size[1] * up[0] + padding[0] + padding[1] - kernel[1]) // down[0] + 1,
    )


def adjoint_padding(
    size: tuple[int, int], out: tuple[int, int], kernel: tuple[int, int], up: Sequence[int], down: Sequence[int],
    padding: Sequence[int],
) -> tuple[int, int, int, int]:  # fmt: skip
    """The pads with which the op maps `out` samples back to `size`: its adjoint, with up and down exchanged."""
    return (
        kernel[1] - 1 - padding[0],
        size[1] * up[0] - out[1] * down[0] + padding[0] - up[0] + 1,
        kernel[0] - 1 - padding[2],
        size[0] * up[1] - out[0] * down[1] + padding[2] - up[1] + 1,
    )


def kernel_size(kernel: Tensor) -> tuple[int, int]:
    """(rows, columns) of a kernel, whose one axis stands for both."""
    return (kernel.shape[0], kernel.shape[-1])


def mask_fits(columns: int, channels_last: bool) -> bool:
    """Whether a line of the output has whole bytes of bias_lrelu's mask, so that one pass can write both."""
    return channels_last or columns % 8 == 0


class _Op:
    """The dispatcher op of one backend with its fake and gradient."""

    def __init__(self, suffix: str, bias_lrelu: Any) -> None:
        self.name = _common.define("upfirdn2d" + suffix + _SCHEMA)
        self.bias_lrelu = bias_lrelu  # the ops of the same backend, for the gradient of the activation
        torch.library.register_fake(self.name)(self._fake)
        if suffix:  # the native op has the same gradient in csrc/autograd, where a call costs microseconds less
            torch.library.register_autograd(self.name, self._grad, setup_context=self._context)
        self.forward = getattr(torch.ops.anifast, self.name.removeprefix("anifast::")).default
        # for calls that need neither casts nor an explanation, at half the cost on a small tensor
        self.short = getattr(_native.extension, "upfirdn2d_if_plain", None) if not suffix else None

    @staticmethod
    def _fake(x: Tensor, kernel: Tensor, up: Any, down: Any, padding: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        rows, columns = out_size((x.shape[2], x.shape[3]), kernel_size(kernel), up, down, padding)
        channels_last, clamp, save_mask = _common.is_channels_last(x), rest[-2], rest[-1]
        form = _common.memory_format(4, channels_last)
        out = torch.empty((*x.shape[:2], rows, columns), dtype=x.dtype, device=x.device, memory_format=form)
        shape = mask_shape(out.shape, 1, channels_last, clamp is not None) if save_mask else (0,)
        return out, x.new_empty(shape, dtype=torch.uint8)

    @staticmethod
    def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, kernel, up, down, padding, flip, gain, scale, bias, noise, strength, add, *rest = inputs
        slope, act_gain, clamp, save_mask = rest
        linear = _is_linear(slope, act_gain, clamp)
        masked = not linear and any(ctx.needs_input_grad[at] for at in (0, 7, 8, 9, 10))
        if masked and not save_mask:
            raise RuntimeError("upfirdn2d: save_mask must be true where a gradient is needed")
        needs_scale = ctx.needs_input_grad[7]
        ctx.save_for_backward(kernel, output[1] if masked else None, noise, strength, scale, x if needs_scale else None)
        ctx.linear, ctx.factor = linear, (slope, act_gain)
        ctx.channels_last = _common.is_channels_last(x)
        size, out = (x.shape[2], x.shape[3]), (output[0].shape[2], output[0].shape[3])
        ctx.adjoint = (down, up, adjoint_padding(size, out, kernel_size(kernel), up, down, padding), not flip, gain)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.set_materialize_grads(False)

    def _grad(self, ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 16
        if grad is None:
            return tuple(found)
        kernel, mask, noise, strength, scale, x = ctx.saved_tensors
        want_x, want_scale, want_bias, want_noise, want_strength, want_add = (
            ctx.needs_input_grad[at] for at in (0, 7, 8, 9, 10, 11)
        )
        found[11] = grad if want_add else None
        if not (want_x or want_scale or want_bias or want_noise or want_strength):
            return tuple(found)
        grad = grad.contiguous(memory_format=_common.memory_format(4, ctx.channels_last))
        sums = _common.wide(grad)
        if ctx.linear:
            gz = grad
            gbias = gz.sum((0, 2, 3), dtype=sums) if want_bias else None
            gstrength = (gz * noise).sum(dtype=sums) if want_strength else None
        else:
            gz, gbias, gstrength = self.bias_lrelu.backward(
                grad, mask, noise if want_strength else None, 1, ctx.channels_last, *ctx.factor, want_bias,
                want_strength,
            )  # fmt: skip
        if want_bias and gbias is not None:
            found[8] = gbias.to(ctx.bias_dtype)
        if want_noise:
            gnoise = gz.sum_to_size(noise.shape)
            found[9] = gnoise if strength is None else gnoise * strength.to(gnoise.dtype)
        if want_strength and gstrength is not None:
            found[10] = gstrength.to(strength.dtype).reshape(strength.shape)
        if want_scale:
            back = self._back(ctx, gz, kernel, None)
            found[7] = (x.to(sums) * back.to(sums)).sum((2, 3)).to(scale.dtype)
            found[0] = (back * scale[:, :, None, None].to(back.dtype)) if want_x else None
        elif want_x:
            found[0] = self._back(ctx, gz, kernel, scale)
        return tuple(found)

    def _back(self, ctx: Any, gz: Tensor, kernel: Tensor, scale: Tensor | None) -> Tensor:
        return self.forward(gz, kernel, *ctx.adjoint, scale, None, None, None, None, 1.0, 1.0, None, False)[0]


def _is_linear(slope: float, act_gain: float, clamp: float | None) -> bool:
    return slope == 1.0 and act_gain == 1.0 and clamp is None


_NATIVE = _Op("", _NATIVE_ACTIVATION)
_TRITON = _Op("_triton", _TRITON_ACTIVATION)
_common.implement(
    _TRITON.name,
    "anifast.kernels.upfirdn2d",
    "forward",
    lambda x, *rest: (x, *rest, _common.memory_format(4, _common.is_channels_last(x))),
)
backends.register("upfirdn2d", "native", "triton")


def upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip: bool = False,
    gain: float = 1.0,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | float | None = None,
    act: bool = False,
    slope: float = 0.2,
    act_gain: float = _SQRT2,
    clamp: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Up-sample, pad, filter and down-sample images, and scale, noise, bias, leaky ReLU and sum behind it.

    The resampling of StyleGAN2 (Karras et al. 2020, appendix B) and, with the epilogue, all that follows a transposed
    convolution there (demodulation as `scale`, noise, bias, activation) or the sum of RGB images (`add`): u is x with
    zeros behind each sample, padded, convolved with `kernel`, every down-th sample kept; then

        out = clamp(act_gain * lrelu(gain * scale * u + noise_strength * noise + bias)) + add

    where without `act` the leaky ReLU and its gain are left out. Per axis of H samples and k taps there are
    (H * up + pad before + pad behind - k) // down + 1 samples. Any order of gradient is exact with respect to x, add,
    scale, bias, noise and noise_strength; forward mode (jvp) and the transforms of torch.func go through the reference
    only, which is taken there by itself.

    Args:
        x: [N, C, H, W], floating point, N and C may be 0; contiguous or channels_last is kept in the output.
        kernel: [k_y, k_x], or [k] along both axes (separable), any floating dtype; a constant, which has no gradient.
        up: zeros are inserted until there are `up` samples for each; int or (x, y).
        down: every how manyth sample is kept; int or (x, y).
        padding: zeros around the up-sampled signal, negative ones cut; int, (before, behind) or (x0, x1, y0, y1).
        flip: False is true convolution (the kernel is flipped), True correlation.
        gain: factor, once in total, also for a separable kernel.
        add: shape and dtype of the output, added last.
        scale: [N, C], x's dtype or float32.
        bias: [C], x's dtype or float32.
        noise: [N or 1, 1, rows, columns of the output].
        noise_strength: one number, as a tensor of one element (x's dtype or float32) or a float; None means 1.
        act: whether there is an activation.
        slope: factor of negative values; 1 is linear.
        act_gain: factor after the activation.
        clamp: values end up in [-clamp, clamp] before the sum; None leaves them. With or without `act`.
        backend: "reference", "native" or "triton"; None chooses (see `anifast.backends`).

    Returns:
        A new tensor [N, C, rows, columns] in the dtype and layout of x. Half types are computed in float32 and rounded
        once (noise in float32 beside a half x is rounded to x's dtype first); where the activation is a pass of its
        own, what the filter gives is rounded too. The reference rounds each operation.

    Raises:
        TypeError: an argument is no tensor or number, or has a wrong dtype.
        ValueError: a wrong rank, size or device, a factor below 1 or above 1024, pads beyond 2^31, no output sample, a
            kernel that requires a gradient, or a negative clamp.
        NotImplementedError: forward mode or a transform of torch.func on an explicitly chosen backend.
        BackendError: an explicitly chosen backend cannot run here.
    """
    if (
        _NATIVE.short is not None
        and type(x) is Tensor
        and type(up) in _PLAIN
        and type(down) in _PLAIN
        and type(padding) in _PLAIN
        and (noise_strength is None or isinstance(noise_strength, Tensor))
        and not torch.compiler.is_compiling()
        and not torch.overrides.has_torch_function((x, kernel, add, scale, bias, noise, noise_strength))
        and backends.choose("upfirdn2d", x.device.type, backend) == "native"
    ):
        try:
            out = _NATIVE.short(
                x, kernel, up, down, padding, flip, gain, add, scale, bias, noise, noise_strength, act, slope, act_gain,
                clamp,
            )  # fmt: skip
        except TypeError:  # an argument of a wrong type: what follows says which
            out = None
        if out is not None:
            return out
    up, down, padding = _pair("up", up), _pair("down", down), _pads(padding)
    kernel, size = _check(x, kernel, up, down, padding)
    shape = (*x.shape[:2], *size)
    strength = _common.check_epilogue("upfirdn2d", x, shape, bias, noise, noise_strength, clamp, add, scale)
    for name, number in (("gain", gain), ("slope", slope), ("act_gain", act_gain)):
        _common.check_number("upfirdn2d", name, number)
    chosen = _common.choose("upfirdn2d", x, backend)
    if scale is not None:
        scale = _common.like("upfirdn2d", "scale", scale, x, float32_too=True)
    if bias is not None:
        bias = _common.like("upfirdn2d", "bias", bias, x, float32_too=True)
    if noise is not None:
        noise = _common.like("upfirdn2d", "noise", noise, x, float32_too=True)
        noise = noise if noise.dtype == x.dtype else noise.to(x.dtype)
        if strength is not None:
            strength = _common.like("upfirdn2d", "noise_strength", strength, x, float32_too=True)
    if add is not None:
        add = _common.like("upfirdn2d", "add", add, x, float32_too=False)
    slope, act_gain = (float(slope), float(act_gain)) if act else (1.0, 1.0)
    if chosen == "reference":

        def narrow(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(x.dtype)

        y = _reference(
            x, kernel.to(x.dtype), up, down, padding, flip, gain, narrow(scale), narrow(bias), noise, narrow(strength),
            add, slope, act_gain, clamp,
        )  # fmt: skip
        return y.contiguous(memory_format=_common.memory_format(4, _common.is_channels_last(x)))
    if chosen == "triton" and not torch.compiler.is_compiling():
        _common.refuse_tangents("upfirdn2d", (x, scale, bias, noise, strength, add))
    x = _common.dense(x)
    op = _NATIVE if chosen == "native" else _TRITON
    save_mask = (
        not _is_linear(slope, act_gain, clamp)
        and torch.is_grad_enabled()
        and any(value is not None and value.requires_grad for value in (x, scale, bias, noise, strength))
    )
    if save_mask and not mask_fits(size[1], _common.is_channels_last(x)):
        u = op.forward(x, kernel, up, down, padding, flip, gain, scale, None, None, None, None, 1.0, 1.0, None, False)[
            0
        ]
        return op.bias_lrelu.forward(u, bias, noise, strength, add, 1, slope, act_gain, clamp, 1.0, True)[0]
    return op.forward(
        x, kernel, up, down, padding, flip, gain, scale, bias, noise, strength, add, slope, act_gain, clamp, save_mask
    )[0]


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """`up` or `down` as (x, y)."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise TypeError(f"upfirdn2d: {name} must be an int or two ints (x, y), got {value!r}")
    if min(pair) < 1 or max(pair) > _MOST_FACTOR:
        raise ValueError(f"upfirdn2d: {name} must be 1 or more and at most {_MOST_FACTOR}, got {value!r}")
    return (pair[0], pair[1])


def _pads(value: int | Sequence[int]) -> tuple[int, int, int, int]:
    """`padding` as (x0, x1, y0, y1)."""
    pads = (value,) * 4 if isinstance(value, (int, torch.SymInt)) else value
    if (
        not isinstance(pads, (tuple, list))
        or len(pads) not in (2, 4)
        or not all(isinstance(v, (int, torch.SymInt)) for v in pads)
    ):
        raise TypeError(f"upfirdn2d: padding must be an int, (before, behind) or (x0, x1, y0, y1), got {value!r}")
    if max(pads) > _MOST_PAD or min(pads) < -_MOST_PAD:
        raise ValueError(f"upfirdn2d: padding must lie within 2^31 - 1, got {value!r}")
    return (pads[0], pads[1], pads[0], pads[1]) if len(pads) == 2 else (pads[0], pads[1], pads[2], pads[3])


def _check(
    x: Tensor, kernel: Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Check x and the kernel; return the kernel in the type of sums, and (rows, columns) of the output."""
    _common.check_float("upfirdn2d", "x", x)
    if x.dim() != 4:
        raise ValueError(f"upfirdn2d: x must have rank 4 (N,C,H,W), got shape {tuple(x.shape)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"upfirdn2d: x has no pixels, got shape {tuple(x.shape)}")
    _common.check_float("upfirdn2d", "kernel", kernel)
    if kernel.dim() not in (1, 2) or kernel.numel() == 0:
        raise ValueError(f"upfirdn2d: kernel must be [k] or [k_y, k_x] with k >= 1, got shape {tuple(kernel.shape)}")
    if kernel.device != x.device:
        raise ValueError(f"upfirdn2d: kernel is on {kernel.device}, expected {x.device} as x")
    if kernel.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "upfirdn2d: kernel requires a gradient, and FIR kernels are constants here; give kernel.detach(), or use "
            "a depthwise convolution for a kernel that learns"
        )
    size = out_size((x.shape[2], x.shape[3]), kernel_size(kernel), up, down, padding)
    if size[0] < 1 or size[1] < 1:
        rows, columns = x.shape[2] * up[1] + padding[2] + padding[3], x.shape[3] * up[0] + padding[0] + padding[1]
        raise ValueError(
            f"upfirdn2d: no output is left: the up-sampled and padded x has {rows} x {columns} pixels and the kernel "
            f"{kernel_size(kernel)[0]} x {kernel_size(kernel)[1]} (x {tuple(x.shape)}, up {up}, padding {padding})"
        )
    wide = _common.wide(x)
    return (kernel if kernel.dtype == wide else kernel.to(wide)), size
