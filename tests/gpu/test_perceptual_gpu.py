"""LPIPS and the style vector on a GPU: the numbers of the CPU, in every precision and layout that they run in there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from anifast.nn.perceptual import LPIPS, GramStyle

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)


@pytest.fixture(autouse=True)
def products_of_float32() -> Any:
    """Convolutions are not rounded to tf32 where float32 is compared with the CPU's float64."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rounded(layers: int, dtype: torch.dtype) -> float:
    """The relative error of a VGG's map behind so many convolutions.

    Each rounds its sums of up to 4608 products in float32, by the root of their number half units, and its weights and
    its map to their type. Roundings are independent, so that those of several layers add up as their squares do.
    """
    sums, types = 4608**0.5 * torch.finfo(torch.float32).eps / 2, 2**0.5 * torch.finfo(dtype).eps / 2
    return layers**0.5 * (sums + types)


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_golden_lpips_on_a_gpu(net: str, golden: Callable[[str], Any]) -> None:
    case = golden(f"lpips_{net}_a")
    distance = LPIPS(net, pretrained=False)
    distance.load_lpips_state({key: torch.from_numpy(value) for key, value in case.state_dict("").items()})
    distance.cuda()
    pair = [torch.from_numpy(case.inputs[name]).cuda() for name in ("in0", "in1")]
    total, layers = distance(*pair, per_layer=True)
    found = {"pair.total": total} | {f"pair.layer{i}": value for i, value in enumerate(layers)}
    errors = case.compare({name: value.detach().cpu().numpy() for name, value in found.items()})
    limits = {name: max(10 * case.outputs[name]["f32"], 1e-6) for name in found}
    assert all(errors[name] < limits[name] for name in found), errors


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lpips_and_its_gradient_are_those_of_the_cpu(dtype: torch.dtype, channels_last: bool) -> None:
    exact = LPIPS("random").double()
    distance = LPIPS("random", dtype=dtype, channels_last=channels_last).cuda()
    a, b = images(0), images(1)
    x, y = a.double().requires_grad_(), a.cuda().requires_grad_()
    expected, got = exact(x, b.double()), distance(y, b.cuda())
    assert got.dtype == torch.float32 and got.device.type == "cuda"
    torch.testing.assert_close(got.double().cpu(), expected, rtol=2 * rounded(13, dtype), atol=0)  # it squares
    (gx,), (gy,) = torch.autograd.grad(expected.sum(), x), torch.autograd.grad(got.sum(), y)
    alike = torch.nn.functional.cosine_similarity(gx.flatten(1), gy.double().cpu().flatten(1))
    # a ReLU or a pool decides otherwise where a value is as near its kink as its error e: a share 2 e of a layer's
    # values, which carry as large a share of the squared gradient, and of that the cosine loses half
    assert (alike > 1 - sum(rounded(layer, dtype) for layer in range(1, 14))).all()
    target = distance.features(b.cuda())
    torch.testing.assert_close(distance(y, target), got)


def test_the_style_vector_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    style = GramStyle("random", layers=(3, 8, 15, 22, 29))
    expected = style.double()(images(0).double())
    got = style.float().cuda()(images(0).cuda())
    # |F G - F' G'| <= 2 e |F| |G| for rows F and G of a map, and the products of rows with themselves are in the vector
    limit = 2 * rounded(13, torch.float32) * expected.abs().max().item()
    torch.testing.assert_close(got.double().cpu(), expected, rtol=0.0, atol=limit)
