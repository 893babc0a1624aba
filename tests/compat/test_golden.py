"""The drop-in functions answer what the authors' own did: values, gradients and second order, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import CalledOps
from torch import Tensor

PLACES = {"op": "anifast.compat.rosinality", "torch_utils.ops": "anifast.compat.nvlabs"}
# what the case calls on the compiled backend
OPS = {
    "ops_upfirdn2d_a": {"upfirdn2d"},
    "ops_lrelu_a": {"bias_lrelu", "bias_lrelu_backward", "bias_lrelu_masked"},
    "nv_upfirdn2d_a": {"upfirdn2d"},
    "nv_bias_act_a": {"bias_lrelu", "bias_lrelu_backward", "bias_lrelu_masked"},
}


def function(path: str) -> Callable[..., Any]:
    """The function that stands in for the one of this name in the authors' repository."""
    for theirs, ours in PLACES.items():
        if path.startswith(theirs + "."):
            *modules, name = path.removeprefix(theirs + ".").split(".")
            return getattr(importlib.import_module(".".join([ours, *modules])), name)
    raise KeyError(path)


def answers(case: Any, impl: str | None) -> dict[str, Tensor]:
    """All that a case asks for; `impl` replaces the one it was recorded with, where it names one."""
    found: dict[str, Tensor] = {}
    for spec in case.calls:
        arguments, grad = case.arguments(spec), spec.get("grad", {})
        wanted: dict[str, Tensor] = {}
        for name, value in spec["args"].items():
            if isinstance(value, str) and value.startswith("@"):
                arguments[name] = torch.from_numpy(case.inputs[value[1:]]).double()
                if value in grad.get("wrt", ()):
                    wanted[value] = arguments[name].requires_grad_()
        if impl is not None and "impl" in arguments:
            arguments["impl"] = impl
        out = function(spec["function"])(**arguments)
        name = spec["name"]
        found[f"{name}.{spec['out'][0]}"] = out
        if not grad:
            continue
        probe = torch.from_numpy(case.inputs[next(iter(grad["of"].values()))[1:]])
        loss = (probe * out).sum() if grad["loss"] == "linear" else 0.5 * (probe * out**2).sum()
        inputs = [wanted[key] for key in grad["wrt"]]
        first = torch.autograd.grad(loss, inputs, create_graph=bool(grad.get("second")))
        found |= {f"{name}.grad.{key[1:]}": value for key, value in zip(grad["wrt"], first, strict=True)}
        if grad.get("second"):
            square = (first[0] ** 2).sum()
            second = torch.autograd.grad(square, inputs, materialize_grads=True)
            found[f"{name}.grad2"] = square
            found |= {f"{name}.grad2.{key[1:]}": value for key, value in zip(grad["wrt"], second, strict=True)}
    return found


@pytest.mark.parametrize("name", OPS)
def test_golden(golden: Callable[[str], Any], backend: str, name: str) -> None:
    case = golden(name)
    with CalledOps() as called:
        found = answers(case, impl="cuda")
    assert called.names == (OPS[name] if backend == "native" else set())
    assert set(found) == set(case.outputs), "every stored output is compared"
    errors = case.compare({key: value.detach().numpy() for key, value in found.items()})
    assert max(errors.values()) < 3e-7, errors


@pytest.mark.parametrize("name", ["nv_upfirdn2d_a", "nv_bias_act_a"])
def test_golden_as_it_was_recorded(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    with CalledOps() as called:
        found = answers(case, impl=None)
    assert not called.names, "impl='ref' is plain PyTorch"
    errors = case.compare({key: value.detach().numpy() for key, value in found.items()})
    assert max(errors.values()) < 3e-7, errors


def modulated(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Modulated convolution (Karras et al. 2020, equations 1 and 3) by a scaled input, as the case has it."""
    from anifast.compat.nvlabs.conv2d_resample import conv2d_resample
    from anifast.compat.nvlabs.fma import fma

    taps = options.get("resample_filter")
    y = conv2d_resample(
        x * styles[:, :, None, None],
        weight,
        f=None if taps is None else torch.as_tensor(taps),
        up=options.get("up", 1),
        down=options.get("down", 1),
        padding=options.get("padding", 0),
        flip_weight=options.get("flip_weight", True),
    )
    noise = torch.zeros(()).to(y) if noise is None else noise
    if not options.get("demodulate", True):
        return y + noise
    power = ((weight[None] * styles[:, None, :, None, None]) ** 2).sum((2, 3, 4))
    return fma(y, (power + 1e-8).rsqrt()[:, :, None, None], noise)


def test_golden_of_convolutions_between_resampling(golden: Callable[[str], Any], backend: str) -> None:
    case = golden("nv_modconv_a")
    found: dict[str, Tensor] = {}
    for spec in case.calls:
        arguments, grad = case.arguments(spec), spec["grad"]
        tensors = {
            value: torch.from_numpy(case.inputs[value[1:]]).double().requires_grad_(value in grad["wrt"])
            for value in spec["args"].values()
            if isinstance(value, str) and value.startswith("@")
        }
        x, weight, styles = (tensors[spec["args"][key]] for key in ("x", "weight", "styles"))
        noise = spec["args"].get("noise")
        out = modulated(x, weight, styles, tensors.get(noise) if noise else None, arguments)
        probe = torch.from_numpy(case.inputs[next(iter(grad["of"].values()))[1:]])
        first = torch.autograd.grad((probe * out).sum(), [tensors[key] for key in grad["wrt"]])
        found[f"{spec['name']}.y"] = out
        found |= {f"{spec['name']}.grad.{key[1:]}": value for key, value in zip(grad["wrt"], first, strict=True)}
    assert set(found) == set(case.outputs), "every stored output is compared"
    errors = case.compare({key: value.detach().numpy() for key, value in found.items()})
    assert max(errors.values()) < 3e-7, errors
