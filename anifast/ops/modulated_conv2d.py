"""Modulated convolution: one weight for the whole batch, the style on the input and the demodulation on the output.

c = L(weight, style * x)                             L: convolution, or the up- or down-sampling one with its filter
z = scale * c + noise_strength * noise + bias        scale = rsqrt(style^2 Q' + eps), Q = sum over taps of weight^2
out = clamp(gain * lrelu(z)) + add

Each implementation is three dispatcher ops that are linear in their tensors, L itself (with the style before it and all
of the epilogue behind it) and its two adjoints, and two passes that their gradient needs besides. With f the factor of
the activation, which the sign and the limit of the output tell, and z, which the output tells too,

    gz = f * g,   gbias = sum gz,   gstrength = sum gz * noise,   gc = scale * gz             (epilogue_grad: one pass)
    gscale = sum gz * c = sum gz * (z - noise_strength * noise - bias) / scale                (in the same pass)
    gxs = L'_x(weight, gc),   gx = style * gxs,   gstyle = sum x * gxs                        (input_grad)
    gweight = L'_w(style * x, gc)                                                             (weight_grad)

so that of the maps only the input and the output are kept, and style * x is made again. In float16 a factor of each
output's weights, weight_scale, goes into the weights before L and out of the sums behind it; gradients have the weights
as they are, whose products with gradients are of the usual size. Where a gradient will itself be
differentiated (path length regularisation), backward is made of L, L'_x and L'_w alone, each of which is the gradient
of the other two, so every order is exact.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast import _native, backends
from anifast.errors import BackendError
from anifast.ops import _common
from anifast.ops.bias_lrelu import bias_lrelu
from anifast.ops.upfirdn2d import adjoint_padding, kernel_size
from anifast.reference.modulated_conv2d import down_padding, up_padding
from anifast.reference.modulated_conv2d import modulated_conv2d as _reference

_OP = "modulated_conv2d"
_SQRT2 = math.sqrt(2.0)
# outputs that count as few: those of an image
_FEW = 4
#: strategy -> the backend that it belongs to
STRATEGIES = {
    "grouped": "reference",
    "scaled": "reference",
    "library": "native",
    "gemm": "native",
    "winograd": "native",
    "implicit_gemm": "triton",
}
_LINEAR = "Tensor? fir, int up, int down, int padding, str strategy"
_FORWARD = (
    "(Tensor x, Tensor weight, Tensor? style, Tensor? scale, Tensor? bias, Tensor? noise, Tensor? noise_strength, "
    f"Tensor? add, Tensor? weight_scale, {_LINEAR}, float slope, float gain, float? clamp) -> Tensor"
)
_INPUT_GRAD = (
    "_input_grad(Tensor grad, Tensor weight, Tensor? x, Tensor? style, SymInt rows, SymInt columns, "
    f"{_LINEAR}) -> (Tensor, Tensor)"
)
_WEIGHT_GRAD = f"_weight_grad(Tensor x, Tensor? style, Tensor grad, int size, {_LINEAR}) -> Tensor"
_EPILOGUE_GRAD = (
    "_epilogue_grad(Tensor grad, Tensor out, Tensor? scale, Tensor? bias, Tensor? noise, Tensor? noise_strength, "
    "float slope, float gain, float? clamp, bool want_scale, bool want_bias, bool want_strength) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_DEMODULATION = "_demodulation(Tensor weight, Tensor style, float eps) -> Tensor"
_SQUARE_SUMS = "_square_sums(Tensor weight) -> Tensor"
_STYLE_GRAD = "_style_grad(Tensor grad, Tensor x, Tensor style) -> (Tensor, Tensor)"


_weights_are_left_out = False


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Backward passes in this block leave out the gradients of convolutions by their weights.

    For the inner pass of penalties on gradients (path length, R1), which is taken with `create_graph=True`: PyTorch
    does not tell a gradient written in Python which of its inputs a pass is about, and a weight's costs as much as the
    rest of a layer. The gradient of the penalty itself, taken behind the block, is whole. It holds for all threads, and
    not for the reference.
    """
    global _weights_are_left_out
    before, _weights_are_left_out = _weights_are_left_out, True
    try:
        yield
    finally:
        _weights_are_left_out = before


def weight_gradients_left_out() -> bool:
    """Whether this is inside of `no_weight_gradients`, for gradients that are written elsewhere."""
    return _weights_are_left_out


def out_size(rows: int, columns: int, size: int, taps: Sequence[int], up: int, down: int, padding: int) -> Any:
    """(rows, columns) of the output; `size` is the side of the kernel and `taps` the filter's (rows, columns)."""
    if up > 1:
        pads = [sum(up_padding(t, size)) for t in taps]
        return tuple((n - 1) * up + size + p - t + 1 for n, p, t in zip((rows, columns), pads, taps, strict=True))
    if down > 1:
        pads = [sum(down_padding(t, size)) for t in taps]
        return tuple((n + p - t + 1 - size) // down + 1 for n, p, t in zip((rows, columns), pads, taps, strict=True))
    return (rows + 2 * padding - size + 1, columns + 2 * padding - size + 1)


def _define(schema: str, suffix: str) -> str:
    """Define an op whose schema begins with what follows the op's own name; `suffix` goes behind the name."""
    name, given = schema.split("(", 1)
    return _common.define(f"{_OP}{name}{suffix}({given}")


def _taps(fir: Tensor | None) -> tuple[int, int]:
    return (1, 1) if fir is None else kernel_size(fir)


def _maps(value: Tensor | None, x: Tensor) -> Tensor:
    assert value is not None
    return value.to(x.dtype)[:, :, None, None]


def _in_given_types(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a gradient is computed in the types that it is given, whatever autocast is on around backward."""

    @functools.wraps(backward)
    def run(*given: Any) -> Any:
        tensor = next((value for value in given if isinstance(value, Tensor)), None)
        if tensor is None:
            return backward(*given)
        with _common.without_autocast(tensor):
            return backward(*given)

    return run


def _guarded(
    weight: Tensor, scale: Tensor | None, weight_scale: Tensor | None, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The weight in x's type and the scale, with a factor of the weight moved from the one to the other."""
    if weight_scale is not None:
        weight = weight * weight_scale[:, None, None, None]
        scale = None if scale is None else scale / weight_scale
    return weight.to(x.dtype), scale


class _Library:
    """The convolutions of the library, one pass before them and one behind: the `library` strategy.

    Args:
        suffix: which upfirdn2d makes the passes, "" or "_triton".
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix

    def _filter(self, x: Tensor, fir: Tensor, pads: Sequence[int], flip: bool, gain: float, *epilogue: Any) -> Tensor:
        run = getattr(torch.ops.anifast, "upfirdn2d" + self._suffix).default
        epilogue = epilogue or (None, None, None, None, None, 1.0, 1.0, None)
        out: Tensor = run(x, fir, (1, 1), (1, 1), pads, flip, gain, *epilogue, False)[0]
        return out

    @staticmethod
    def _pads(fir: Tensor, size: int, up: int) -> tuple[int, int, int, int]:
        made = up_padding if up > 1 else down_padding
        rows, columns = _taps(fir)
        return (*made(columns, size), *made(rows, size))

    def _filter_adjoint(self, grad: Tensor, fir: Tensor, to: tuple[int, int], size: int, up: int) -> Tensor:
        pads = self._pads(fir, size, up)
        back = adjoint_padding(to, (grad.shape[2], grad.shape[3]), _taps(fir), (1, 1), (1, 1), pads)
        return self._filter(grad, fir, back, True, float(up * up))

    def unfiltered(self, grad: Tensor, fir: Tensor | None, rows: int, columns: int, size: int, up: int) -> Tensor:
        """The gradient between an up-sampling convolution and its filter; without a filter, `grad` is that one."""
        if fir is None:
            return grad
        return self._filter_adjoint(grad, fir, ((rows - 1) * up + size, (columns - 1) * up + size), size, up)

    def forward(
        self, x: Tensor, weight: Tensor, style: Tensor | None, scale: Tensor | None, bias: Tensor | None,
        noise: Tensor | None, strength: Tensor | None, add: Tensor | None, weight_scale: Tensor | None,
        fir: Tensor | None, up: int, down: int, padding: int, strategy: str, slope: float, gain: float,
        clamp: float | None,
    ) -> Tensor:  # fmt: skip
        """L(weight, style * x) and its epilogue."""
        form = _common.memory_format(4, _common.is_channels_last(x))
        weight, scale = _guarded(weight, scale, weight_scale, x)
        y = x if style is None else x * _maps(style, x)
        epilogue = (scale, bias, noise, strength, add, slope, gain, clamp)
        plain = all(value is None for value in (*epilogue[:5], clamp)) and slope == gain == 1.0
        size = weight.shape[2]
        if up > 1:
            assert fir is not None
            y = F.conv_transpose2d(y, weight.transpose(0, 1), stride=up).contiguous(memory_format=form)
            return self._filter(y, fir, self._pads(fir, size, up), False, float(up * up), *epilogue)
        if down > 1:
            assert fir is not None
            y = self._filter(y.contiguous(memory_format=form), fir, self._pads(fir, size, up), False, 1.0)
        y = F.conv2d(y, weight, stride=down, padding=0 if down > 1 else padding).contiguous(memory_format=form)
        if plain:
            return y
        one = torch.ones(1, dtype=_common.wide(x), device=x.device)
        return self._filter(y, one, (0, 0, 0, 0), False, 1.0, *epilogue)

    def input_grad(
        self, grad: Tensor, weight: Tensor, x: Tensor | None, style: Tensor | None, rows: int, columns: int,
        fir: Tensor | None, up: int, down: int, padding: int, strategy: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """L'_x(weight, grad), times the style where there is one; the style's gradient where there are both."""
        size, weight = weight.shape[2], weight.to(grad.dtype)
        form = _common.memory_format(4, _common.is_channels_last(grad))
        if up > 1:
            grad = self.unfiltered(grad, fir, rows, columns, size, up)
            back = F.conv2d(grad, weight.transpose(0, 1), stride=up)
        elif down > 1:
            assert fir is not None
            pads = self._pads(fir, size, up)
            between = (rows + pads[2] + pads[3] - fir.shape[0] + 1, columns + pads[0] + pads[1] - fir.shape[-1] + 1)
            beyond = [n - ((g - 1) * down + size) for n, g in zip(between, grad.shape[2:], strict=True)]
            back = F.conv_transpose2d(grad, weight, stride=down, output_padding=beyond).contiguous(memory_format=form)
            back = self._filter_adjoint(back, fir, (rows, columns), size, up)
        else:
            back = F.conv_transpose2d(grad, weight, padding=padding)
        back = back.contiguous(memory_format=form)
        nothing = grad.new_empty(0, dtype=_common.wide(grad))
        if style is None:
            return back, nothing
        if x is None:
            return back * _maps(style, back), nothing
        gx, gstyle = getattr(torch.ops.anifast, _OP + "_style_grad" + self._suffix).default(back, x, style)
        return gx, gstyle

    def weight_grad(
        self, x: Tensor, style: Tensor | None, grad: Tensor, size: int, fir: Tensor | None, up: int, down: int,
        padding: int, strategy: str,
    ) -> Tensor:  # fmt: skip
        """L'_w(style * x, grad), in the type of sums."""
        form = _common.memory_format(4, _common.is_channels_last(x))
        y = x if style is None else x * _maps(style, x)
        if up > 1:
            grad = self.unfiltered(grad.contiguous(memory_format=form), fir, x.shape[2], x.shape[3], size, up)
            # the weight of a transposed convolution from y to grad is that of the convolution from grad to y
            y, grad, shape = grad, y, (x.shape[1], grad.shape[1], size, size)
            found = _weight_grad_of_convolution(y, grad, shape, up, 0)
            return found.transpose(0, 1).to(_common.wide(x)).contiguous()
        if down > 1:
            assert fir is not None
            y = self._filter(y.contiguous(memory_format=form), fir, self._pads(fir, size, up), False, 1.0)
        shape = (grad.shape[1], x.shape[1], size, size)
        found = _weight_grad_of_convolution(y, grad, shape, down, 0 if down > 1 else padding)
        return found.to(_common.wide(x)).contiguous()


def _weight_grad_of_convolution(
    x: Tensor, grad: Tensor, shape: tuple[int, int, int, int], stride: int, padding: int
) -> Tensor:
    if x.shape[0] == 0:
        return x.new_zeros(shape)
    weight = x.new_empty(1).expand(shape)
    mask = [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1, mask
    )[1]
    return found


class _Op:
    """The dispatcher ops of one implementation with their fakes and gradients.

    Args:
        suffix: of the three linear ops.
        passes: suffix of epilogue_grad, style_grad and the filters.
    """

    def __init__(self, suffix: str, passes: str) -> None:
        names = [_define(schema, suffix) for schema in (_FORWARD, _INPUT_GRAD, _WEIGHT_GRAD)]
        self.names = names
        self.forward, self.input_grad, self.weight_grad = (
            getattr(torch.ops.anifast, name.removeprefix("anifast::")).default for name in names
        )
        self.epilogue_grad = getattr(torch.ops.anifast, _OP + "_epilogue_grad" + passes).default
        self.filters = _Library(passes)
        for name, fake in zip(names, (_fake_forward, _fake_input_grad, _fake_weight_grad), strict=True):
            torch.library.register_fake(name)(fake)
        torch.library.register_autograd(names[0], self._forward_grad, setup_context=_forward_context)
        torch.library.register_autograd(names[1], self._input_grad_grad, setup_context=_input_grad_context)
        torch.library.register_autograd(names[2], self._weight_grad_grad, setup_context=_weight_grad_context)

    def implement(self, implementation: Any, devices: Sequence[str]) -> None:
        """Register Python functions as the implementation."""
        for name, function in zip(self.names, ("forward", "input_grad", "weight_grad"), strict=True):
            for device in devices:
                _common.LIBRARY.impl(name.removeprefix("anifast::"), getattr(implementation, function), device)

    def linear(self, x: Tensor, weight: Tensor, how: tuple[Any, ...]) -> Tensor:
        """L(weight, x)."""
        out: Tensor = self.forward(x, weight, *[None] * 7, *how, 1.0, 1.0, None)
        return out

    @_in_given_types
    def _forward_grad(self, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 17
        if grad is None:
            return tuple(found)
        x, weight, style, scale, bias, noise, strength, weight_scale, fir, out = ctx.saved_tensors
        how = (fir, *ctx.how)
        wants = [bool(want) for want in ctx.needs_input_grad[:8]]
        wants[1] = wants[1] and not _weights_are_left_out
        form = _common.memory_format(4, _common.is_channels_last(x))
        grad = grad.contiguous(memory_format=form)
        found[7] = grad if wants[7] else None
        if not any(wants[:7]):
            return tuple(found)
        if torch.is_grad_enabled() or wants[5]:
            inputs = (x, weight, style, scale, bias, noise, strength)
            found[:7] = self._differentiable(inputs, weight_scale, how, ctx.act, grad, wants)
            return tuple(found)
        gc: Tensor = grad
        if out is not None:
            gc, gscale, gbias, gstrength = self.epilogue_grad(
                grad, out, scale, bias, noise, strength, *ctx.act, wants[3], wants[4], wants[6]
            )
            # where a style's square left the type there is nothing to divide by
            found[3] = gscale.masked_fill(scale == 0, 0.0).to(scale.dtype) if wants[3] else None
            found[4] = gbias.to(bias.dtype) if wants[4] else None
            found[6] = gstrength.to(strength.dtype).reshape(strength.shape) if wants[6] else None
        else:
            if wants[4]:
                found[4] = grad.sum((0, 2, 3), dtype=_common.wide(grad)).to(bias.dtype)
            if wants[6]:
                found[6] = (grad * noise).sum(dtype=_common.wide(grad)).to(strength.dtype).reshape(strength.shape)
        if ctx.how[0] > 1 and wants[1] and (wants[0] or wants[2]):  # once for both adjoints
            gc = self.filters.unfiltered(gc, fir, x.shape[2], x.shape[3], weight.shape[2], ctx.how[0])
            how = (None, *ctx.how)
        if wants[0] or wants[2]:
            gx, gstyle = self.input_grad(gc, weight, x if wants[2] else None, style, x.shape[2], x.shape[3], *how)
            # a gradient of one channel lies in memory as both layouts
            found[0] = gx.contiguous(memory_format=form) if wants[0] else None
            found[2] = gstyle.to(style.dtype) if wants[2] else None
        if wants[1]:
            found[1] = self.weight_grad(x, style, gc, weight.shape[2], *how)
        return tuple(found)

    def _differentiable(
        self, inputs: Sequence[Tensor | None], weight_scale: Tensor | None, how: tuple[Any, ...],
        act: tuple[float, float, float | None], grad: Tensor, wants: Sequence[bool],
    ) -> list[Tensor | None]:  # fmt: skip
        """The gradients, themselves with a graph where one is recorded."""
        again = torch.is_grad_enabled()
        x, weight, style, scale, bias, noise, strength = inputs
        if all(value is None for value in (style, scale, noise, bias)) and act == (1.0, 1.0, None):
            assert x is not None and weight is not None
            gx = self.input_grad(grad, weight, None, None, x.shape[2], x.shape[3], *how)[0] if wants[0] else None
            gweight = self.weight_grad(x, None, grad, weight.shape[2], *how) if wants[1] else None
            return [gx, gweight, *[None] * 5]
        with torch.enable_grad():
            # aliases, so that a style computed from x is no way from the one to the other
            own = [value if value is None else value.view_as(value) for value in inputs]
            x, weight, style, scale, bias, noise, strength = own
            assert x is not None and weight is not None
            y = self._scaled(x, weight, style, scale, weight_scale, how)
            slope, gain, clamp = act
            if y.dtype != x.dtype:
                noise = noise if noise is None else noise.to(y.dtype)
                bias, strength = (value if value is None else value.to(y.dtype) for value in (bias, strength))
            y = bias_lrelu(y, bias, noise=noise, noise_strength=strength, slope=slope, gain=gain, clamp=clamp)
            asked = [at for at in range(7) if wants[at]]
            given = [value for value in (own[at] for at in asked) if value is not None]
            some = torch.autograd.grad(y, given, grad.to(y.dtype), create_graph=again, allow_unused=True)
        found: list[Tensor | None] = [None] * 7
        for at, value in zip(asked, some, strict=True):
            found[at] = value
        return found

    def _scaled(
        self, x: Tensor, weight: Tensor, style: Tensor | None, scale: Tensor | None, weight_scale: Tensor | None,
        how: tuple[Any, ...],
    ) -> Tensor:  # fmt: skip
        """scale * L(weight, style * x) of operations that have every order of gradient."""
        outputs, _, size, _ = weight.shape
        if size == 1 and outputs <= _FEW and scale is None and x.is_contiguous() and how[1:4] == (1, 1, 0):
            # an image's channels: weights of each sample are fewer than the pixels of style * x
            own = weight[None, :, :, 0, 0] if style is None else weight[None, :, :, 0, 0] * style[:, None, :]
            return torch.matmul(own.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
        weight, scale = _guarded(weight, scale, weight_scale, weight)
        y = self.linear(x if style is None else x * _maps(style, x), weight, how)
        if scale is None:
            return y
        if weight_scale is not None:  # the scale may leave the range of float16
            y = y.to(scale.dtype)
        return y * _maps(scale, y)

    @_in_given_types
    def _input_grad_grad(self, ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 11
        if grad is not None:
            given, weight, fir = ctx.saved_tensors
            how = (fir, *ctx.how)
            grad = grad.contiguous(memory_format=_common.memory_format(4, _common.is_channels_last(given)))
            found[0] = self.linear(grad, weight, how) if ctx.needs_input_grad[0] else None
            found[1] = self.weight_grad(grad, None, given, weight.shape[2], *how) if ctx.needs_input_grad[1] else None
        return tuple(found)

    @_in_given_types
    def _weight_grad_grad(self, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * 9
        if grad is not None:
            x, given, fir = ctx.saved_tensors
            how = (fir, *ctx.how)
            if ctx.needs_input_grad[0]:
                found[0] = self.input_grad(given, grad, None, None, x.shape[2], x.shape[3], *how)[0]
            found[2] = self.linear(x, grad, how) if ctx.needs_input_grad[2] else None
        return tuple(found)


def _forward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, style, scale, bias, noise, strength, _, weight_scale, fir, *rest = inputs
    up, down, padding, strategy, slope, gain, clamp = rest
    ctx.how, ctx.act = (up, down, padding, strategy), (slope, gain, clamp)
    linear = scale is None and ctx.act == (1.0, 1.0, None)
    ctx.save_for_backward(x, weight, style, scale, bias, noise, strength, weight_scale, fir, None if linear else output)
    ctx.set_materialize_grads(False)


def _input_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, weight, _x, style, _rows, _columns, fir, *ctx.how = inputs
    _refuse_fused(style)
    ctx.save_for_backward(grad, weight, fir)
    ctx.set_materialize_grads(False)


def _weight_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, style, grad, _size, fir, *ctx.how = inputs
    _refuse_fused(style)
    ctx.save_for_backward(x, grad, fir)
    ctx.set_materialize_grads(False)


def _refuse_fused(style: Tensor | None) -> None:
    if style is not None:
        raise NotImplementedError(f"{_OP}: a gradient fused with the style has no gradient of its own")


def _fake_forward(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    fir, up, down, padding = rest[7:11]
    size = out_size(x.shape[2], x.shape[3], weight.shape[2], _taps(fir), up, down, padding)
    form = _common.memory_format(4, _common.is_channels_last(x))
    shape = (x.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


def _fake_input_grad(
    grad: Tensor, weight: Tensor, x: Tensor | None, style: Tensor | None, rows: int, columns: int, *how: Any
) -> tuple[Tensor, Tensor]:
    form = _common.memory_format(4, _common.is_channels_last(grad))
    shape = (grad.shape[0], weight.shape[1], rows, columns)
    gx = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=form)
    fused = x is not None and style is not None
    return gx, grad.new_empty(shape[:2] if fused else (0,), dtype=_common.wide(grad))


def _fake_weight_grad(x: Tensor, style: Tensor | None, grad: Tensor, size: int, *how: Any) -> Tensor:
    return x.new_empty((grad.shape[1], x.shape[1], size, size), dtype=_common.wide(x))


def _fake_epilogue_grad(grad: Tensor, out: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wants = rest[-3:]
    shapes = (grad.shape[:2], grad.shape[1:2], (1,))
    sums = [
        grad.new_empty(shape if want else (0,), dtype=_common.wide(grad))
        for want, shape in zip(wants, shapes, strict=True)
    ]
    return torch.empty_like(grad), sums[0], sums[1], sums[2]


def _fake_style_grad(grad: Tensor, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), grad.new_empty(grad.shape[:2], dtype=_common.wide(grad))


def _square_sums(weight: Tensor) -> Tensor:
    return weight.square().sum((2, 3))


def _demodulation(weight: Tensor, style: Tensor, eps: float) -> Tensor:
    sums = torch.ops.anifast.modulated_conv2d_square_sums.default(weight)
    return torch.rsqrt(F.linear(style.square(), sums) + eps)


def _demodulation_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, style, ctx.eps = inputs
    ctx.save_for_backward(weight, style, output)
    ctx.set_materialize_grads(False)


@_in_given_types
def _demodulation_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    """The sums of squares, of the size of a weight's matrix, are made again instead of kept."""
    if grad is None:
        return None, None, None
    weight, style, scale = ctx.saved_tensors
    want_weight, want_style = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():
        own = (weight.view_as(weight), style.view_as(style))
        again = torch.rsqrt(F.linear(own[1].square(), _square_sums(own[0])) + ctx.eps)
        asked = [value for value, want in zip(own, (want_weight, want_style), strict=True) if want]
        found = list(torch.autograd.grad(again, asked, grad, create_graph=True))
        return found.pop(0) if want_weight else None, found.pop() if want_style else None, None
    back = grad * scale**3  # -1/2 of it is the gradient of the sum, 2 that of a square
    gweight = gstyle = None
    if want_weight:
        # of what has no finite square the scale and its gradient are 0
        squares = style.square().nan_to_num(posinf=0.0)
        gweight = weight * -(back.t() @ squares)[:, :, None, None]
    if want_style:
        gstyle = style * -(back @ torch.ops.anifast.modulated_conv2d_square_sums.default(weight))
    return gweight, gstyle, None


def _no_gradient(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError(f"{_OP}: a pass of its gradient has no gradient of its own")


def _define_passes(suffix: str) -> None:
    for schema, fake in ((_EPILOGUE_GRAD, _fake_epilogue_grad), (_STYLE_GRAD, _fake_style_grad)):
        name = _define(schema, suffix)
        torch.library.register_fake(name)(fake)
        torch.library.register_autograd(name, _no_gradient)


_define_passes("")
_name = _define(_SQUARE_SUMS, "")
torch.library.register_fake(_name)(lambda weight: weight.new_empty(weight.shape[:2]))
torch.library.register_autograd(_name, _no_gradient)
_name = _define(_DEMODULATION, "")
torch.library.register_fake(_name)(lambda weight, style, eps: style.new_empty(style.shape[0], weight.shape[0]))
torch.library.register_autograd(_name, _demodulation_grad, setup_context=_demodulation_context)
for _device in ("CUDA", *(["CPU"] if _native.unavailable("cpu") else [])):
    _common.LIBRARY.impl(f"{_OP}_square_sums", _square_sums, _device)
for _device in ("CPU", "CUDA"):
    _common.LIBRARY.impl(f"{_OP}_demodulation", _demodulation, _device)
_NATIVE = _Op("", "")
_LIBRARY = _Op("_library", "")
_LIBRARY.implement(_Library(""), ("CPU", "CUDA"))
backends.register(_OP, "native", "triton")


def _suits(strategy: str, x: Tensor, size: int, up: int, down: int, padding: int) -> bool:
    """Whether a strategy of a compiled backend does this."""
    if strategy == "library":
        return True
    sizes = (3,) if up > 1 or strategy == "winograd" else (1, 3)
    here = x.device.type == "cpu" or strategy == "implicit_gemm"
    return here and down == 1 and size in sizes and (up > 1 or padding == size // 2)


# The fewest 4 x 4 tiles of x, in the whole batch, from which Winograd's matrices of the weight are worth making,
# without up and with it.
_FEWEST_TILES = {1: 12, 2: 8}


def _strategy(weight: Tensor, x: Tensor, up: int, down: int, padding: int, backend: str, asked: str) -> str:
    """The strategy of a call on `backend`, where "auto" is asked for by what was measured.

    Raises:
        ValueError: the one asked for does not do this.
    """
    size = weight.shape[2]
    if asked != "auto":
        if backend != "reference" and not _suits(asked, x, size, up, down, padding):
            raise ValueError(
                f"{_OP}: strategy {asked!r} does no {size} x {size} kernel with up={up}, down={down} and "
                f'padding={padding} on {x.device.type}; "library" does'
            )
        return asked
    if backend == "reference":
        return "scaled"
    if backend == "triton":
        return "implicit_gemm" if _suits("implicit_gemm", x, size, up, down, padding) else "library"
    if not _suits("gemm", x, size, up, down, padding):
        return "library"
    if size == 1:
        return "gemm"
    tiles = x.shape[0] * ((x.shape[2] + 3) // 4) * ((x.shape[3] + 3) // 4)
    if tiles >= _FEWEST_TILES[up]:
        return "winograd"
    return "gemm" if up > 1 else "library"


def _choose(x: Tensor, strategy: str, backend: str | None) -> str:
    """The backend of a call, which an explicit strategy settles.

    Raises:
        ValueError: the strategy is unknown, or is another backend's than the one asked for.
        BackendError: the strategy's backend cannot run here.
    """
    if strategy == "auto":
        return _common.choose(_OP, x, backend)
    if strategy not in STRATEGIES:
        raise ValueError(f"{_OP}: unknown strategy {strategy!r}; there are auto, {', '.join(STRATEGIES)}")
    needed = STRATEGIES[strategy]
    if backend not in (None, "auto", needed):
        raise ValueError(f"{_OP}: strategy {strategy!r} belongs to backend {needed!r}, got backend={backend!r}")
    reason = backends.why_not(_OP, needed, x.device.type)
    if reason:
        raise BackendError(f"{_OP}: strategy {strategy!r} cannot run on {x.device.type}: {reason}")
    return _common.choose(_OP, x, needed)


def _check(x: Tensor, weight: Tensor, style: Tensor, up: int, down: int) -> None:
    _common.check_float(_OP, "x", x)
    if x.dim() != 4:
        raise ValueError(f"{_OP}: x must have rank 4 (N,C,H,W), got shape {tuple(x.shape)}")
    _common.check_float(_OP, "weight", weight)
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
        raise ValueError(
            f"{_OP}: weight must be [out, in, k, k] with odd k, got shape {tuple(weight.shape)}"
            + (" (stored weights have a first axis of 1: weight[0])" if weight.dim() == 5 else "")
        )
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        raise ValueError(f"{_OP}: weight has no channels, got shape {tuple(weight.shape)}")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"{_OP}: x has {x.shape[1]} channels, expected {weight.shape[1]} as the weight's axis 1")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{_OP}: x has no pixels, got shape {tuple(x.shape)}")
    _common.check_float(_OP, "style", style)
    if style.shape != (x.shape[0], x.shape[1]):
        raise ValueError(
            f"{_OP}: style has shape {tuple(style.shape)}, expected {(x.shape[0], x.shape[1])}: one factor for each "
            "sample and input channel, behind its affine layer"
        )
    for name, value in (("up", up), ("down", down)):
        if value not in (1, 2) or not isinstance(value, int):
            raise ValueError(f"{_OP}: {name} must be 1 or 2, got {value!r}")
    if up == down == 2:
        raise ValueError(f"{_OP}: up and down cannot both be 2")


# (numbers, device, dtype) -> the filter: a copy to a GPU is not made at each call, nor while a CUDA graph is recorded
_filters: dict[tuple[Any, ...], Tensor] = {}


def _filter_of(fir: Tensor | Sequence[float], x: Tensor) -> Tensor:
    """The filter with sum 1, one axis or two, on x's device in the type of sums."""
    wide = _common.wide(x)
    if isinstance(fir, Tensor):
        kernel = fir.detach().to(x.device, wide)
        if kernel.dim() not in (1, 2) or kernel.numel() == 0:
            raise ValueError(f"{_OP}: fir must be [k] or [k_y, k_x] with k >= 1, got shape {tuple(kernel.shape)}")
        return kernel / kernel.sum()
    try:
        numbers = tuple(float(number) for number in fir)
    except (TypeError, ValueError):
        raise TypeError(f"{_OP}: fir must be numbers or a tensor, got {fir!r}") from None
    if not numbers or sum(numbers) == 0 or not math.isfinite(sum(numbers)):
        raise ValueError(f"{_OP}: fir must be one number or more, with a finite sum other than 0, got {numbers}")
    scaled = [number / sum(numbers) for number in numbers]
    if torch.compiler.is_compiling():
        return torch.tensor(scaled, dtype=wide, device=x.device)
    key = (numbers, x.device, wide)
    if key not in _filters:
        with torch.inference_mode(False):
            made = torch.tensor(scaled, dtype=wide, device=x.device)
        transforms = _native.extension is not None and _native.extension.transforms_are_active()
        if type(made) is not Tensor or transforms:  # what stands in for a tensor passes
            return made
        _filters[key] = made
    return _filters[key]


def _in_range_of_half(
    weight: Tensor, style: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(weight, style, scale, weight_scale) of the same product, whose numbers float16 holds.

    The largest style of a sample becomes 1 and the mean square of an output's weights too, so that gradients between
    are of the usual size; weight_scale makes the largest weight 1 / sqrt(inputs * taps), so that sums of products of x
    stay near x. What was divided by multiplies the sums in float32 (Karras et al. 2020, their code).
    """
    with torch.no_grad():

        def or_one(size: Tensor) -> Tensor:
            return torch.where(size > 0, size, 1.0)

        of_weight = or_one(weight.abs().amax((1, 2, 3)))  # first, for squares in range
        of_weight = of_weight * (weight / of_weight[:, None, None, None]).square().mean((1, 2, 3)).sqrt()
        of_weight = or_one(of_weight)
        of_style = or_one(style.abs().amax(1))[:, None]
    weight = weight / of_weight[:, None, None, None]
    factor = of_style * of_weight[None, :]
    with torch.no_grad():
        fan = math.sqrt(weight.shape[1] * weight.shape[2] * weight.shape[3])
        weight_scale = 1.0 / (or_one(weight.abs().amax((1, 2, 3))) * fan)
    return weight, style / of_style, factor if scale is None else scale * factor, weight_scale


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    weight_gain: float = 1.0,
    demodulate: bool = True,
    up: int = 1,
    down: int = 1,
    padding: int | str = "same",
    fir: Tensor | Sequence[float] = (1, 3, 3, 1),
    add: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    noise_strength: Tensor | float | None = None,
    act: bool = True,
    slope: float = 0.2,
    gain: float = _SQRT2,
    clamp: float | None = None,
    eps: float = 1e-8,
    strategy: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Convolution whose weights each sample's style scales, with all that follows it in a generator.

    The modulated convolution of StyleGAN2 (Karras et al. 2020, equations 1 and 3). For sample b, with W = weight_gain *
    weight, the weights are W_boi = W_oi * style_bi and, where demodulated, each W_bo is divided by
    sqrt(sum over inputs and taps of W_boi^2 + eps); then

        out = clamp(gain * lrelu(conv(W_b, x_b) + noise_strength * noise + bias)) + add

    where without `act` the leaky ReLU and its gain are left out. No weights are made per sample: the style scales x,
    and the divisor, one number for a sample and output channel, scales the sums. Any order of gradient is exact with
    respect to x, weight, style, bias, noise, noise_strength and add. Backward keeps x and the output.
    The C++ strategies keep a workspace from call to call: about four times the largest layer's weights, and 24 MB.

    Args:
        x: [N, I, H, W], floating point, N may be 0; contiguous or channels_last is kept in the output. Under autocast
            a float32 x is computed in its type.
        weight: [O, I, k, k] with odd k, x's dtype or float32.
        style: [N, I], x's dtype or float32: behind its affine layer.
        weight_gain: factor of the weight, 1 / sqrt(I * k * k) for an equalised learning rate.
        demodulate: whether weights are normalised per sample and output channel; not for images (ToRGB).
        up: 2 is a transposed convolution with stride 2 (not flipped), then `fir` with gain 4; H, W become 2H, 2W.
        down: 2 is `fir`, then a convolution with stride 2; H, W become H // 2, W // 2.
        padding: zeros around x, "same" (k // 2) or a number; only without up and down, whose pads follow from `fir`.
        fir: filter of up and down, k numbers or a tensor [k] or [k_y, k_x]; divided by its sum.
        add: shape and dtype of the output, added last (the RGB image so far).
        bias: [O], x's dtype or float32.
        noise: [N or 1, 1, rows, columns of the output].
        noise_strength: one number, as a tensor of one element (x's dtype or float32) or a float; None means 1.
        act: whether there is an activation.
        slope: factor of negative values; 1 is linear.
        gain: factor after the activation.
        clamp: values end up in [-clamp, clamp] before the sum; None leaves them. With or without `act`.
        eps: added to the sum of squares.
        strategy: "grouped" (the definition) or "scaled" of the reference; "library" (its convolutions), "gemm" or
            "winograd" (3 x 3; both on a CPU, without down) of native; "implicit_gemm" (without down) of triton; "auto"
            takes the fastest that was measured.
        backend: "reference", "native" or "triton"; None chooses (see `anifast.backends`).

    Returns:
        A new tensor [N, O, rows, columns] in the dtype and layout of x. Sums are in float32 from half types. In float16
        styles are scaled to a largest value of 1, and weights to one of 1 / sqrt(I * k * k), before they meet x.
        "winograd" spreads a NaN or inf over its tile of 4 x 4 pixels.

    Raises:
        TypeError: an argument is no tensor or number, or has a wrong dtype.
        ValueError: a wrong rank, size or device, an even kernel, a strategy that does not do this, a negative clamp.
        NotImplementedError: forward mode or a transform of torch.func on an explicitly chosen backend.
        BackendError: an explicitly chosen backend or strategy cannot run here.
    """
    _check(x, weight, style, up, down)
    for name, number in (("weight_gain", weight_gain), ("slope", slope), ("gain", gain), ("eps", eps)):
        _common.check_number(_OP, name, number)
    size = weight.shape[2]
    whole = isinstance(padding, int) and padding >= 0 and up == down == 1
    if padding != "same" and not whole:
        raise ValueError(f'{_OP}: padding must be "same", or 0 or more where neither up nor down is 2, got {padding!r}')
    pad = size // 2 if isinstance(padding, str) else int(padding)
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        add = None if add is None else add.to(x.dtype)
    kernel = _filter_of(fir, x) if up > 1 or down > 1 else None
    rows, columns = out_size(x.shape[2], x.shape[3], size, _taps(kernel), up, down, pad)
    if rows < 1 or columns < 1:
        raise ValueError(
            f"{_OP}: no output is left of {x.shape[2]} x {x.shape[3]} pixels under {size} x {size} weights"
        )
    shape = (x.shape[0], weight.shape[0], rows, columns)
    strength = _common.check_epilogue(_OP, x, shape, bias, noise, noise_strength, clamp, add)
    weight = _common.like(_OP, "weight", weight, x, float32_too=True)
    style = _common.like(_OP, "style", style, x, float32_too=True)
    if bias is not None:
        bias = _common.like(_OP, "bias", bias, x, float32_too=True)
    if noise is not None:
        noise = _common.like(_OP, "noise", noise, x, float32_too=True).to(x.dtype)
        if strength is not None:
            strength = _common.like(_OP, "noise_strength", strength, x, float32_too=True)
    if add is not None:
        add = _common.like(_OP, "add", add, x, float32_too=False)
    slope, gain = (float(slope), float(gain)) if act else (1.0, 1.0)
    chosen = _choose(x, strategy, backend)
    strategy = _strategy(weight, x, up, down, pad, chosen, strategy)
    if chosen == "reference":

        def narrow(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(x.dtype)

        unit = torch.ones(1) if kernel is None else kernel
        y = _reference(
            x, weight.to(x.dtype), style.to(x.dtype), float(weight_gain), demodulate, up, down, pad, unit.to(x.dtype),
            add, narrow(bias), narrow(noise), narrow(strength), slope, gain, clamp, eps, strategy,
        )  # fmt: skip
        return y.contiguous(memory_format=_common.memory_format(4, _common.is_channels_last(x)))
    if not torch.compiler.is_compiling():
        _common.refuse_tangents(_OP, (x, weight, style, bias, noise, strength, add))
    with _common.without_autocast(x):
        return _run(
            x, weight, style.to(_common.wide(x)) * weight_gain, demodulate, kernel, up, down, pad, add, bias, noise,
            strength, slope, gain, clamp, eps, strategy,
        )  # fmt: skip


def _run(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, kernel: Tensor | None, up: int, down: int, padding: int,
    add: Tensor | None, bias: Tensor | None, noise: Tensor | None, strength: Tensor | None, slope: float, gain: float,
    clamp: float | None, eps: float, strategy: str,
) -> Tensor:  # fmt: skip
    """The call on compiled kernels, in one op where its gradient can tell everything from the output."""
    scale = weight_scale = None
    weight = weight.to(_common.wide(x))  # float32 also for half maps: a sum of squares leaves the range of float16
    if demodulate:
        scale = torch.ops.anifast.modulated_conv2d_demodulation.default(weight, style, eps)
    if x.dtype == torch.float16:
        weight, style, scale, weight_scale = _in_range_of_half(weight, style, scale)
        if strategy not in ("library", "implicit_gemm"):  # which sum in float32 and keep their sums there
            weight_scale = None
    op = _OPS[STRATEGIES[strategy] if strategy != "library" else strategy]
    x = _common.dense(x)
    how = (weight_scale, kernel, up, down, padding, strategy)
    plain = scale is None and slope == gain == 1.0 and clamp is None
    within = add if plain else None  # the sum would hide what the activation gave
    if slope >= 0.0 and gain > 0.0:
        out = op.forward(x, weight, style, scale, bias, noise, strength, within, *how, slope, gain, clamp)
        return out if add is None or plain else out + add
    out = op.forward(x, weight, style, scale, None, None, None, None, *how, 1.0, 1.0, None)
    return bias_lrelu(
        out, bias, noise=noise, noise_strength=strength, slope=slope, gain=gain, clamp=clamp, residual=add
    )  # fmt: skip


_OPS = {"native": _NATIVE, "library": _LIBRARY}


class _ImplicitGemm(_Library):
    """The products of anifast/kernels/modulated_conv2d.py, all else as the library strategy has it."""

    def forward(
        self, x: Tensor, weight: Tensor, style: Tensor | None, scale: Tensor | None, bias: Tensor | None,
        noise: Tensor | None, strength: Tensor | None, add: Tensor | None, weight_scale: Tensor | None,
        fir: Tensor | None, up: int, down: int, padding: int, strategy: str, slope: float, gain: float,
        clamp: float | None,
    ) -> Tensor:  # fmt: skip
        """L(weight, style * x) and its epilogue."""
        form = _common.memory_format(4, _common.is_channels_last(x))
        weight, scale = _guarded(weight, scale, weight_scale, x)
        epilogue = (scale, bias, noise, strength, add)
        if up == 1:
            return self._kernels().forward(x, weight, style, *epilogue, up, padding, slope, gain, clamp, form)
        assert fir is not None
        y = self._kernels().forward(x, weight, style, *[None] * 5, up, padding, 1.0, 1.0, None, form)
        pads = self._pads(fir, weight.shape[2], up)
        return self._filter(y, fir, pads, False, float(up * up), *epilogue, slope, gain, clamp)

    def input_grad(
        self, grad: Tensor, weight: Tensor, x: Tensor | None, style: Tensor | None, rows: int, columns: int,
        fir: Tensor | None, up: int, down: int, padding: int, strategy: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """L'_x(weight, grad), times the style where there is one; the style's gradient where there are both."""
        form = _common.memory_format(4, _common.is_channels_last(grad))
        if up > 1:
            grad = self.unfiltered(grad, fir, rows, columns, weight.shape[2], up)
        return self._kernels().input_grad(grad, weight.to(grad.dtype), x, style, rows, columns, up, padding, form)

    @staticmethod
    def _kernels() -> Any:
        """Their module, and Triton with it, at the first call."""
        return importlib.import_module("anifast.kernels.modulated_conv2d")


_define_passes("_triton")
_TRITON = _Op("_triton", "_triton")
_TRITON.implement(_ImplicitGemm("_triton"), ("CPU", "CUDA"))
for _name in ("epilogue_grad", "style_grad"):
    _common.implement(
        f"anifast::{_OP}_{_name}_triton",
        "anifast.kernels.modulated_conv2d",
        _name,
        lambda grad, *rest: (grad, *rest, _common.memory_format(4, _common.is_channels_last(grad))),
    )
_OPS["triton"] = _TRITON
