"""modulated_conv2d on every strategy that the CPU runs answers what the authors' layers did, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_calls import arguments, check, gradients
from op_checks import CalledOps
from torch import Tensor

from anifast import backends
from anifast.ops.modulated_conv2d import STRATEGIES, modulated_conv2d

HERE = [name for name, backend in STRATEGIES.items() if backend != "triton"]


def does(strategy: str, size: int, up: int, down: int) -> bool:
    """Whether a strategy has kernels for this; the op refuses what it has none for."""
    if strategy == "winograd":
        return size == 3 and down == 1
    return strategy != "gemm" or (down == 1 and (up == 1 or size == 3))


def run(strategy: str, x: Tensor, weight: Tensor, style: Tensor, **options: Any) -> Tensor | None:
    """The op without activation; None where a strategy refuses what it has no kernels for."""
    up, down = options.get("up", 1), options.get("down", 1)
    with CalledOps() as called:
        if not does(strategy, weight.shape[2], up, down):
            with pytest.raises(ValueError, match=f"strategy '{strategy}' does no"):
                modulated_conv2d(x, weight, style, act=False, strategy=strategy, **options)
            return None
        out = modulated_conv2d(x, weight, style, act=False, strategy=strategy, **options)
    if STRATEGIES[strategy] == "native":
        assert ("modulated_conv2d_library" if strategy == "library" else "modulated_conv2d") in called.names
    else:
        assert not called.names
    return out


def need(strategy: str) -> None:
    if reason := backends.why_not("modulated_conv2d", STRATEGIES[strategy], "cpu"):
        pytest.skip(reason)


@pytest.mark.parametrize("strategy", HERE)
def test_layers_of_rosinality(golden: Callable[[str], Any], strategy: str) -> None:
    need(strategy)
    case, found, refused = golden("ops_modconv_a"), {}, set()
    for spec in case.calls:
        prefix, call = spec["module"], spec["name"]
        (options,) = (module["init"] for module in case.spec["modules"] if module["prefix"] == prefix)
        values, leaves = arguments(case, spec, torch.float64)
        state = {key: torch.from_numpy(value).double() for key, value in case.state_dict(prefix).items()}
        leaves |= {prefix + key: value.requires_grad_("kernel" not in key) for key, value in state.items()}
        affine = state["modulation.weight"].t() / math.sqrt(options["style_dim"])
        out = run(
            strategy,
            values["input"],
            state["weight"][0],
            values["style"] @ affine + state["modulation.bias"],
            weight_gain=1 / math.sqrt(options["in_channel"] * options["kernel_size"] ** 2),
            demodulate=options.get("demodulate", True),
            up=2 if options.get("upsample") else 1,
            down=2 if options.get("downsample") else 1,
        )
        if out is None:
            refused.add(call)
            continue
        found[f"{call}.y"] = out
        found |= gradients(case, spec, {"y": out}, leaves)
    assert set(found) == {name for name in case.outputs if name.partition(".")[0] not in refused}
    check(case, found)


@pytest.mark.parametrize("strategy", HERE)
def test_function_of_nvlabs(golden: Callable[[str], Any], strategy: str) -> None:
    """Theirs takes a filter of any sum, and adds noise as it is."""
    need(strategy)
    case, found, refused = golden("nv_modconv_a"), {}, set()
    for spec in case.calls:
        values, leaves = arguments(case, spec, torch.float64)
        fir, noise, total = values.get("resample_filter"), values.get("noise"), 1.0
        options = {key: values[key] for key in ("up", "down", "demodulate") if key in values}
        if fir is not None:
            options["fir"] = fir
            total = float(fir.sum()) ** (2 if fir.dim() == 1 else 1)
        if noise is not None:
            options["noise"] = noise / total
        out = run(strategy, values["x"], values["weight"], values["styles"], **options)
        if out is None:
            refused.add(spec["name"])
            continue
        found[f"{spec['name']}.y"] = out = out * total
        found |= gradients(case, spec, {"y": out}, leaves)
    assert set(found) == {name for name in case.outputs if name.partition(".")[0] not in refused}
    check(case, found)
