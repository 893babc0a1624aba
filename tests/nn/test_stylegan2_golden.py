"""StyleGAN2's networks and penalties answer what rosinality's implementation did, and have its keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_calls import arguments, check, gradients
from torch import Tensor, nn

from anifast.nn.regularizers import PathLength, path_lengths, r1_penalty
from anifast.nn.stylegan2 import Discriminator, Generator

Golden = Callable[[str], Any]
CLASSES = {"model.Generator": Generator, "model.Discriminator": Discriminator}


def network(case: Any, dtype: torch.dtype, at: int = 0) -> tuple[str, nn.Module]:
    """Prefix and network of the case's module number `at`, whose keys are compared in their order."""
    module = case.spec["modules"][at]
    prefix = module["prefix"]
    state = {key: torch.from_numpy(value) for key, value in case.state_dict(prefix).items()}
    net = CLASSES[module["class"]](**module["init"])
    assert {key: value.shape for key, value in net.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state)
    return prefix, net.to(dtype)


def answers(case: Any, calls: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, Tensor]:
    prefix, net = network(case, dtype)
    found: dict[str, Tensor] = {}
    for spec in calls:
        values, leaves = arguments(case, spec, dtype)
        positional = [values.pop("input")] if "input" in values else []
        with torch.set_grad_enabled("grad" in spec):
            out = getattr(net, spec.get("method", "forward"))(*positional, **values)
        names = zip(spec["out"], out if isinstance(out, tuple) else (out,), strict=True)
        outputs = {name: value for name, value in names if name is not None}
        found |= {f"{spec['name']}.{name}": value for name, value in outputs.items()}
        if "grad" in spec:
            leaves |= {prefix + key: value for key, value in net.named_parameters()}
            found |= gradients(case, spec, outputs, leaves)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "ros_generator_64_a",
        "ros_discriminator_64_a",
        "ros_generator_256_a",
        "ros_discriminator_256_a",
    ],
)
def test_values(golden: Golden, name: str) -> None:
    """In float32, which is as exact as the authors' own."""
    case = golden(name)
    calls = [spec for spec in case.calls if "grad" not in spec]
    found = answers(case, calls, torch.float32)
    asked = tuple(f"{spec['name']}." for spec in calls)
    assert set(found) == {output for output in case.outputs if output.startswith(asked)}
    check(case, found)


@pytest.mark.parametrize("name", ["ros_generator_64_a", "ros_discriminator_64_a"])
def test_gradients(golden: Golden, name: str) -> None:
    """In float64: rounding flips signs at leaky ReLUs, so that gradients in float32 are a matter of luck."""
    case = golden(name)
    (spec,) = (spec for spec in case.calls if "grad" in spec)
    found = answers(case, [spec], torch.float64)
    assert set(found) == {output for output in case.outputs if output.startswith(f"{spec['name']}.")}
    check(case, found)


def penalty_gradients(
    case: Any, spec: dict[str, Any], penalty: Tensor, prefix: str, net: nn.Module
) -> dict[str, Tensor]:
    """Of a penalty with respect to the parameters that a composite call names."""
    values = torch.autograd.grad(penalty, [net.get_parameter(key.removeprefix(prefix)) for key in spec["wrt"]])
    return {f"{spec['name']}.grad.{key}": value for key, value in zip(spec["wrt"], values, strict=True)}


def test_r1(golden: Golden) -> None:
    case = golden("ros_regularizers_64_a")
    (spec,) = (spec for spec in case.calls if spec["composite"] == "r1")
    prefix, net = network(case, torch.float32, at=1)
    real = torch.from_numpy(case.inputs["real"]).requires_grad_()
    scores = net(real)
    found = {"r1.pred": scores, "r1.penalty": r1_penalty(scores, real)}
    found |= penalty_gradients(case, spec, found["r1.penalty"], prefix, net)
    assert set(found) == {name for name in case.outputs if name.startswith("r1.")}
    check(case, found)


@pytest.mark.heavy
def test_path_length(golden: Golden) -> None:
    """In float64, as gradients."""
    case = golden("ros_regularizers_64_a")
    (spec,) = (spec for spec in case.calls if spec["composite"] == "path_length")
    prefix, net = network(case, torch.float64, at=0)
    values, _ = arguments(case, spec, torch.float64)
    regularizer = PathLength(values["decay"]).double()
    regularizer.mean.fill_(values["mean_path_length"])
    image, latents = net(values["styles"], noise=values["noise"], return_latents=True)
    lengths = path_lengths(image, latents, values["pl_noise"])
    found = {"path.image": image, "path.path_lengths": lengths, "path.penalty": regularizer(lengths)}
    found["path.path_mean"] = regularizer.mean
    found |= penalty_gradients(case, spec, found["path.penalty"], prefix, net)
    assert set(found) == {name for name in case.outputs if name.startswith("path.")}
    check(case, found)
