"""`torch_utils.ops.bias_act`: bias, activation, gain and clamp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anifast.compat.arguments import backend_of
from anifast.ops import bias_lrelu


class Activation(dict[str, Any]):
    """A row of `activation_funcs`: its entries are attributes as well.

    `func(x, alpha)` is the bare activation, `def_alpha` and `def_gain` are what None stands for in `bias_act`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _row(func: Callable[..., Tensor], alpha: float = 0.0, gain: float = 1.0) -> Activation:
    return Activation(func=func, def_alpha=alpha, def_gain=gain)


_SQRT2 = math.sqrt(2.0)
#: The activations by name; alpha is lrelu's slope of negative values, and nothing to the others.
activation_funcs = {
    "linear": _row(lambda x, alpha=0.0, **_: x),
    "relu": _row(lambda x, alpha=0.0, **_: F.relu(x), gain=_SQRT2),
    "lrelu": _row(lambda x, alpha=0.2, **_: F.leaky_relu(x, alpha), alpha=0.2, gain=_SQRT2),
    "tanh": _row(lambda x, alpha=0.0, **_: torch.tanh(x)),
    "sigmoid": _row(lambda x, alpha=0.0, **_: torch.sigmoid(x)),
    "elu": _row(lambda x, alpha=0.0, **_: F.elu(x)),
    "selu": _row(lambda x, alpha=0.0, **_: F.selu(x)),
    "softplus": _row(lambda x, alpha=0.0, **_: F.softplus(x)),
    "swish": _row(lambda x, alpha=0.0, **_: torch.sigmoid(x) * x, gain=_SQRT2),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    """clamp(gain * act(x + b)); linear and lrelu in one pass, the others in PyTorch's own operations.

    Args:
        x: floating point, any rank.
        b: [x.shape[dim]], in x's dtype or float32 beside a half x; None adds nothing.
        dim: the axis of x that the bias belongs to.
        act: a name in `activation_funcs`.
        alpha: shape of the activation; None is its default.
        gain: factor after the activation; None is the activation's default.
        clamp: values end up in [-clamp, clamp]; None leaves them.
        impl: "cuda" is the fastest there is for x's device, "ref" plain PyTorch.

    Returns:
        The shape and dtype of x; x itself where there is nothing to do.

    Raises:
        TypeError: x or b has a wrong type.
        ValueError: an unknown act or impl, a bias that does not fit, or a negative clamp.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"bias_act: x must be a torch.Tensor, got {type(x).__name__}")
    backend = backend_of("bias_act", impl)
    if act not in activation_funcs:
        raise ValueError(f"bias_act: unknown act {act!r}; there are {', '.join(activation_funcs)}")
    row = activation_funcs[act]
    alpha = float(row.def_alpha if alpha is None else alpha)
    gain = float(row.def_gain if gain is None else gain)
    if act == "linear" and b is None and gain == 1.0 and clamp is None:
        return x
    shape = x.shape
    if len(shape) < 2:  # a row of its own is what the op has room for
        x, dim = x.reshape(1, -1), dim if dim < 0 else dim + 1
    dim = 1 if b is None else dim
    if act in ("linear", "lrelu"):
        slope = alpha if act == "lrelu" else 1.0
        y = bias_lrelu(x, b, dim=dim, slope=slope, gain=gain, clamp=clamp, backend=backend)
    else:
        y = x if b is None else bias_lrelu(x, b, dim=dim, slope=1.0, gain=1.0, backend=backend)
        y = row.func(y, alpha=alpha)
        if gain != 1.0 or clamp is not None:
            y = bias_lrelu(y, slope=1.0, gain=gain, clamp=clamp, backend=backend)
    return y if len(shape) >= 2 else y.reshape(shape)
