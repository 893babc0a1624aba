"""The networks of GANs N' Roses answer what the authors' did, and have their keys.

The stored answers are those of the branch `main`; what the other two versions have instead is held by the numbers of
parameters in spec tables 3.2 and 3.3, which were counted in the authors' own modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_calls import arguments, check, gradients
from torch import Tensor, nn

from anifast.systems.gnr.checkpoints import build
from anifast.systems.gnr.config import make
from anifast.systems.gnr.networks import Discriminator, Generator, LatentDiscriminator

Golden = Callable[[str], Any]
CLASSES = {
    "model.Generator": Generator,
    "model.Discriminator": Discriminator,
    "model.LatDiscriminator": LatentDiscriminator,
}
SMALL = ["gnr_generator_64_a", "gnr_lat_discriminator_a"]
LARGE = ["gnr_discriminator_64_a", "gnr_generator_256_a", "gnr_discriminator_256_a"]


def network(case: Any, dtype: torch.dtype) -> nn.Module:
    """The case's network, whose keys are compared in their order."""
    (module,) = case.spec["modules"]
    state = {key: torch.from_numpy(value) for key, value in case.state_dict(module["prefix"]).items()}
    net = CLASSES[module["class"]](**module["init"])
    assert {key: value.shape for key, value in net.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state)
    return net.to(dtype)


def answers(case: Any, calls: list[dict[str, Any]], dtype: torch.dtype, graded: bool) -> dict[str, Tensor]:
    """What the calls give, and what their `grad` asks for if `graded`."""
    net = network(case, dtype)
    found: dict[str, Tensor] = {}
    for spec in calls:
        values, leaves = arguments(case, spec, dtype)
        with torch.set_grad_enabled(graded):
            out = getattr(net, spec.get("method", "forward"))(**values)
        several = out if isinstance(out, tuple | list) else (out,)
        outputs = {name: value for name, value in zip(spec["out"], several, strict=True) if name is not None}
        found |= {f"{spec['name']}.{name}": value for name, value in outputs.items()}
        if graded:
            found |= gradients(case, spec, outputs, leaves | dict(net.named_parameters()))
    return found


@pytest.mark.parametrize("name", SMALL + LARGE)
def test_values(golden: Golden, name: str) -> None:
    """In float32, which is as exact as the authors' own."""
    case = golden(name)
    found = answers(case, case.calls, torch.float32, graded=False)
    assert set(found) == {output for output in case.outputs if ".grad" not in output}
    check(case, found, numbers=[output for output in found if output.endswith(".g_std")])  # a batch has one logit


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.heavy) for name in LARGE)])
def test_gradients(golden: Golden, name: str) -> None:
    """In float64, of the gradient's square too where it is stored: rounding flips signs at leaky ReLUs in float32."""
    case = golden(name)
    calls = [spec for spec in case.calls if "grad" in spec]
    found = answers(case, calls, torch.float64, graded=True)
    asked = tuple(f"{spec['name']}." for spec in calls)
    assert set(found) == {output for output in case.outputs if output.startswith(asked)}
    check(case, found)


def parameters(net: nn.Module, under: str = "") -> int:
    return sum(value.numel() for key, value in net.named_parameters() if key.startswith(under))


GENERATOR = {
    "encoder.stem.0": 256,
    "encoder.stem.1": 118_976,
    "encoder.stem.2": 475_520,
    "encoder.stem.3": 1_901_312,
    "encoder.stem.4": 4_981_760,
    "encoder.stem.5": 4_719_616,
    "encoder.content": 525_312,
    "encoder.style.0": 2_359_808,
    "encoder.style.1": 2_359_808,
    "encoder.style": 2 * 2_359_808 + 4_198_920,
    "mapping": 1_055_232,
    "adain_bottleneck.0": 5_244_928,
    "conv1": 2_622_464,
    "to_rgb1": 264_195,
    "convs.0": 2_622_464,
    "convs.1": 2_622_464,
    "convs.2": 1_442_560,
    "convs.3": 721_408,
    "convs.4": 426_368,
    "convs.5": 213_248,
    "convs.6": 139_456,
    "convs.7": 69_760,
    "to_rgbs.0": 264_195,
    "to_rgbs.1": 132_099,
    "to_rgbs.2": 66_051,
    "to_rgbs.3": 33_027,
}


def test_parameters_of_the_published_generator() -> None:
    net = build("G_A2B", make("rel"))
    assert {part: parameters(net, f"{part}.") for part in GENERATOR} == GENERATOR
    assert len(list(net.parameters())) == 112 and len(net.state_dict()) == 130
    assert parameters(build("G_A2B", make("new")), "encoder.content.") == 4_719_616


@pytest.mark.parametrize(
    ("preset", "values", "count"),
    [
        ("rel", {}, 39_581_207),
        ("main", {}, 31_450_132),
        ("new", {}, 43_775_511),
        ("new", {"num_down": 3}, 35_644_436),
    ],
)
def test_parameters_of_generators(preset: str, values: dict[str, Any], count: int) -> None:
    assert parameters(build("G_A2B", make(preset, values))) == count


@pytest.mark.parametrize(("preset", "count"), [("main", 18_365_315), ("rel", 14_760_083), ("new", 25_968_643)])
def test_parameters_of_discriminators(preset: str, count: int) -> None:
    assert parameters(build("D_A", make(preset))) == count
    assert parameters(build("D_L", make(preset))) == 265_985
