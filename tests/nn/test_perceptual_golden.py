"""LPIPS and the Gram style vector answer what the authors' code did, and take its state dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from golden_calls import arguments, check, gradients
from relu_turns import gradient_bound
from torch import Tensor

import anifast
from anifast.nn.backbones import load_backbone
from anifast.nn.perceptual import LPIPS, GramStyle, fold_weight
from anifast.nn.stylegan2_layers import EqualLinear
from anifast.ops import gram

Golden = Callable[[str], Any]


def state_of(case: Any, prefix: str = "") -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in case.state_dict(prefix).items()}


def lpips_answers(case: Any, net: str, dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
    distance = LPIPS(net, pretrained=False, **options)
    distance.load_lpips_state(state_of(case))
    distance.to(dtype)
    found: dict[str, Tensor] = {}
    for spec in case.calls:
        values, leaves = arguments(case, spec, dtype)
        assert values.pop("retPerLayer")
        total, layers = distance(**values, per_layer=True)
        outputs = dict(zip(spec["out"], [total, *layers], strict=True))
        found |= {f"{spec['name']}.{name}": value for name, value in outputs.items()}
        if "grad" in spec:
            found |= gradients(case, spec, outputs, leaves)
    assert set(found) == set(case.outputs)
    return found


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_lpips(golden: Golden, net: str, dtype: torch.dtype, channels_last: bool) -> None:
    """VGG's gradient in float32 is held to the usual limit with PyTorch's convolutions of contiguous maps, as the
    authors had. Winograd's kernels, and PyTorch's for the other layout, round otherwise: one ReLU or more turns, which
    changes the gradient by 1e-3, and there is a bound for that."""
    case = golden(f"lpips_{net}_a")
    found = lpips_answers(case, net, dtype, channels_last=channels_last)
    if net == "vgg" and dtype == torch.float32:
        name = "pair.grad.in0"
        gradient, exact = found.pop(name), lpips_answers(case, net, torch.float64)[name]
        error = float((gradient - exact).norm() / exact.norm())
        assert error <= gradient_bound(LPIPS(net, pretrained=False).net)
        if not channels_last:
            with anifast.use_backend("reference"):
                check(case, lpips_answers(case, net, dtype, channels_last=False))
    check(case, found)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_where_eps_stands(golden: Golden, net: str) -> None:
    """Stored norms are in float64, and tell that eps is 1e-10 beside the norm and not under its root."""
    case = golden(f"lpips_{net}_a")

    def error(**options: Any) -> float:
        found = lpips_answers(case, net, torch.float64, **options)
        norms = {name: float(np.linalg.norm(value.detach().numpy())) for name, value in found.items()}
        return max(abs(norm / case.outputs[name]["l2"] - 1) for name, norm in norms.items())

    # rounding of a few hundred operations, and what the other form changes at the least
    assert error() < 1e-13
    assert error(eps_inside=True) > 1e-12
    assert error(eps=1e-8, eps_inside=True) > 1e-12


def test_gram_of_a_map(golden: Golden) -> None:
    case = golden("blend_gram_projector_a")
    (spec,) = (spec for spec in case.calls if spec["name"] == "gram")
    values, leaves = arguments(case, spec, torch.float64)
    outputs = {"g": gram(values["y"])}
    check(case, {"gram.g": outputs["g"]} | gradients(case, spec, outputs, leaves))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_gram_of_several_maps(golden: Golden, dtype: torch.dtype) -> None:
    case = golden("losses_gram")
    inputs = {name: torch.from_numpy(value).to(dtype) for name, value in case.inputs.items()}
    found = {"vector.flat": gram([inputs[name] for name in case.spec["options"]["taps"]])}
    for name in case.spec["options"]["taps"]:
        x = inputs[name].requires_grad_()
        for normalize, out in (("none", "raw"), ("hw", "per_hw"), ("chw", "per_chw")):
            found[f"{name}.{out}"] = gram(x, normalize=normalize)
        (found[f"{name}.dF_per_chw"],) = torch.autograd.grad(found[f"{name}.per_chw"], x, inputs[f"{name}_cot"])
    pair = found["tap1.per_chw"], gram(inputs["other"])
    found["style_loss.mse"] = (pair[0] - pair[1]).square().mean()
    assert set(found) == set(case.outputs)
    check(case, found)


def style_of(case: Any, folded: bool = False) -> GramStyle:
    """BlendGAN's VGG-19, loaded by its own names."""
    style = GramStyle("vgg19", pretrained=False, folded=folded)
    state = state_of(case, "embedder.feature_extractor.vgg_layers.")
    style.net.load_state_dict({f"features.{key}": value for key, value in state.items()})
    return style


@pytest.mark.heavy
def test_the_style_vector(golden: Golden, tmp_path: Any) -> None:
    """In float32, also by the file that BlendGAN would have it in, and folded: the same code comes out."""
    case = golden("blend_style_encoder_16_a")
    state = state_of(case, "embedder.")
    torch.save(state, tmp_path / "embedder.pt")
    style = style_of(case)
    loaded = load_backbone("vgg19", weights=tmp_path / "embedder.pt")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), style.net.parameters(), strict=True))
    image = torch.from_numpy(case.inputs["image"])
    with torch.no_grad():
        vector, folded = style(image), style_of(case, folded=True)(image)
    assert vector.shape == (1, 610_304) and folded.shape == (1, 305_888) == (1, style_of(case, folded=True).width)
    rows, columns = torch.triu_indices(512, 512)
    assert torch.equal(folded[0, -len(rows) :], vector[0, -512 * 512 :].view(512, 512)[rows, columns])

    mlp = state_of(case, "embedder_mlp.")

    def code(first: Tensor, x: Tensor) -> Tensor:
        for i in range(3):
            weight = mlp[f"{i}.weight"] if i else first
            layer = EqualLinear(weight.shape[1], 16, act=i < 2)
            layer.scale = EqualLinear(610_304 if i == 0 else 16, 1).scale  # of the layer as it was
            layer.load_state_dict({"weight": weight, "bias": mlp[f"{i}.bias"]})
            x = layer(x)
        return x

    with torch.no_grad():
        check(case, {"gram.grams": vector, "embed.z_embed": code(mlp["0.weight"], vector)})
        check(case, {"embed.z_embed": code(fold_weight(mlp["0.weight"], style.channels), folded)})


@pytest.mark.heavy
def test_the_gradient_of_the_style_vector(golden: Golden) -> None:
    """In float64, as all gradients through so many ReLUs."""
    case = golden("blend_style_encoder_16_a")
    (spec,) = (spec for spec in case.calls if spec["name"] == "embed")
    style = style_of(case).double()
    values, leaves = arguments(case, spec, torch.float64)
    x, mlp = style(values["image"]), state_of(case, "embedder_mlp.")
    for i in range(3):
        layer = EqualLinear(mlp[f"{i}.weight"].shape[1], 16, act=i < 2)
        layer.load_state_dict({"weight": mlp[f"{i}.weight"], "bias": mlp[f"{i}.bias"]})
        x = layer.double()(x)
        leaves |= {f"embedder_mlp.{i}.{key}": value for key, value in layer.named_parameters()}
    outputs = {"z_embed": x}
    check(case, {"embed.z_embed": x} | gradients(case, spec, outputs, leaves))
