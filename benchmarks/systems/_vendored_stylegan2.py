"""StyleGAN2's generator as code with vendored op folders runs it on a CPU, on the weights of another's state dict.

Written from the formulas (Karras et al. 2020, config F): each sample's own weights in one grouped convolution, filters
by zero insertion, and bias, activation and gain as passes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vendored import bias_act, zero_insert

State = Mapping[str, Tensor]


def _linear(state: State, name: str, x: Tensor, lr_mul: float = 1.0) -> tuple[Tensor, Tensor]:
    """An equalised linear layer without its bias, and the bias."""
    weight = state[f"{name}.weight"]
    return F.linear(x, weight * (lr_mul / math.sqrt(weight.shape[1]))), state[f"{name}.bias"] * lr_mul


def _modulated(state: State, name: str, x: Tensor, w: Tensor, *, demodulate: bool, up: bool) -> Tensor:
    """A modulated convolution and, up, the filter behind it."""
    weight = state[f"{name}.weight"]
    _, outputs, inputs, size, _ = weight.shape
    batch, _, rows, columns = x.shape
    product, bias = _linear(state, f"{name}.modulation", w)
    style = (product + bias).view(batch, 1, inputs, 1, 1)
    own = weight * (1.0 / math.sqrt(inputs * size**2)) * style
    if demodulate:
        own = own * torch.rsqrt(own.square().sum((2, 3, 4)) + 1e-8).view(batch, outputs, 1, 1, 1)
    x = x.reshape(1, batch * inputs, rows, columns)
    if not up:
        y = F.conv2d(x, own.view(batch * outputs, inputs, size, size), padding=size // 2, groups=batch)
        return y.view(batch, outputs, rows, columns)
    own = own.transpose(1, 2).reshape(batch * inputs, outputs, size, size)
    y = F.conv_transpose2d(x, own, stride=2, groups=batch)
    return zero_insert(y.view(batch, outputs, *y.shape[2:]), state[f"{name}.blur.kernel"], 1, 1, (1, 1))


def _styled(state: State, name: str, x: Tensor, w: Tensor, noise: Tensor, *, up: bool = False) -> Tensor:
    y = _modulated(state, f"{name}.conv", x, w, demodulate=True, up=up)
    return bias_act(y + state[f"{name}.noise.weight"] * noise, state[f"{name}.activate.bias"])


def _to_rgb(state: State, name: str, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
    y = _modulated(state, f"{name}.conv", x, w, demodulate=False, up=False) + state[f"{name}.bias"]
    return y if skip is None else y + zero_insert(skip, state[f"{name}.upsample.kernel"], 2, 1, (2, 1))


def generator(state: State, z: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, 512] -> the image [N, 3, S, S] with the stored noise, and the latents [N, L, 512] that gave it.

    Args:
        state: of a generator, keys and shapes as the published implementation's; its size and depth are told by them.
        z: codes.
    """
    w, layer = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8), 1
    while f"style.{layer}.weight" in state:
        w, layer = bias_act(*_linear(state, f"style.{layer}", w, 0.01)), layer + 1
    stages = sum(name.startswith("to_rgbs.") and name.endswith(".bias") and name.count(".") == 2 for name in state)
    latents = w[:, None].repeat(1, 2 * stages + 2, 1)
    x = state["input.input"].repeat(z.shape[0], 1, 1, 1)
    x = _styled(state, "conv1", x, latents[:, 0], state["noises.noise_0"])
    image = _to_rgb(state, "to_rgb1", x, latents[:, 1], None)
    for k in range(stages):
        at = 2 * k + 1
        x = _styled(state, f"convs.{2 * k}", x, latents[:, at], state[f"noises.noise_{at}"], up=True)
        x = _styled(state, f"convs.{at}", x, latents[:, at + 1], state[f"noises.noise_{at + 1}"])
        image = _to_rgb(state, f"to_rgbs.{k}", x, latents[:, at + 2], image)
    return image, latents
