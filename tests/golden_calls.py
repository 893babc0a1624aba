"""What golden cases have in common whose calls ask for gradients: arguments as tensors, and first and second order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor


def arguments(case: Any, spec: dict[str, Any], dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The keyword arguments of a call, and its inputs by "@name"; those that `wrt` names require a gradient."""
    wanted = spec.get("grad", spec).get("wrt", ())
    inputs: dict[str, Tensor] = {}

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(one) for one in value]
        if not (isinstance(value, str) and value.startswith("@")):
            return value
        if value not in inputs:
            inputs[value] = torch.from_numpy(case.inputs[value[1:]]).to(dtype).requires_grad_(value in wanted)
        return inputs[value]

    return {name: resolve(value) for name, value in spec["args"].items()}, inputs


def gradients(
    case: Any, spec: dict[str, Any], outputs: Mapping[str, Tensor], leaves: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What a call's `grad` asks for, by the names under which it is stored.

    Args:
        case: it.
        spec: the call.
        outputs: by the names in `out`.
        leaves: inputs by "@name" and parameters by their key.
    """
    asked = spec["grad"]
    loss = torch.zeros(())
    for name, key in asked["of"].items():
        out, probe = outputs[name], torch.from_numpy(case.inputs[key[1:]]).to(outputs[name].dtype)
        loss = loss + ((probe * out).sum() if asked["loss"] == "linear" else 0.5 * (probe * out.square()).sum())
    inputs = [leaves[key] for key in asked["wrt"]]
    first = torch.autograd.grad(loss, inputs, create_graph=bool(asked.get("second")))

    def named(kind: str, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        keys = [f"{spec['name']}.{kind}.{key.removeprefix('@')}" for key in asked["wrt"]]
        return dict(zip(keys, values, strict=True))

    found = named("grad", first)
    if asked.get("second"):
        square = first[0].square().sum()
        found[f"{spec['name']}.grad2"] = square
        found |= named("grad2", torch.autograd.grad(square, inputs, materialize_grads=True))
    return found


def check(case: Any, found: Mapping[str, Tensor], numbers: Collection[str] = ()) -> None:
    """Hold results to what is stored: float64 to its rounding, float32 to ten times the authors' own error in it.

    Args:
        case: it.
        found: results by the names under which they are stored.
        numbers: those that are one number. How near the authors' float32 came to it is luck and not a size of errors;
            that of the worst of `found` counts for them.
    """
    errors = case.compare({name: value.detach().double().numpy() for name, value in found.items()})
    theirs = {name: case.outputs[name]["f32"] for name in found}
    theirs |= {name: max(theirs.values()) for name in numbers}
    limits = {
        name: 3e-7 if value.dtype == torch.float64 else max(10 * theirs[name], 1e-6) for name, value in found.items()
    }
    over = {name: (errors[name], limits[name]) for name in found if not errors[name] < limits[name]}
    assert not over, over
