"""The disentangling networks against numbers computed by the authors' code, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.networks import (
    MEAN,
    STD,
    Activation,
    BatchRegularization,
    BusBlock,
    Classifier,
    CodeClassifier,
    Discriminator,
    Encoder,
    Generator,
    LinearResidueBlock,
    NonlocalBlock,
    ResidueBlock,
    SpatialTransform,
    StyleBank,
)

Golden = Callable[[str], Any]
# The references are float64, stored as float32.
EXACT = 5e-7


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value).double() for key, value in arrays.items()}


def given(case: Any, name: str) -> Tensor:
    value = torch.from_numpy(case.inputs[name])
    return value.double() if value.is_floating_point() else value


def check(case: Any, results: dict[str, Any], limit: float = EXACT, *, all_of: str | None = None) -> None:
    """Compare with what is stored; `all_of`: nothing that is stored under this prefix is left out."""
    if all_of is not None:
        assert set(results) == {name for name in case.outputs if name.startswith(all_of)}
    plain = {k: v.detach().numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in results.items()}
    errors = case.compare(plain)
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < limit, f"{worst}: {errors[worst]:.2e}"


def masked(rgb: Tensor, alpha: Tensor) -> Tensor:
    """What networks see: RGB where there is a picture, and alpha."""
    return torch.cat([rgb * (alpha > 0), alpha], 1)


def picture(case: Any, rgb: str = "rgb", alpha: str = "alpha_raw") -> Tensor:
    return masked(given(case, rgb), given(case, alpha).clamp(0, 1))


def config_of(options: dict[str, Any], **more: Any) -> Config:
    """The config of the authors' options of a case."""
    net = options.get("net", "enc")
    features = options.get(f"{net}_features") or options["gen_features"]
    blocks = {name: options.get(f"{name}_blocks") for name in ("enc", "cla", "dis", "gen")}
    trunk = blocks["enc"] or blocks["cla"] or blocks["dis"] or ["c" * 2] * len(features)
    values = {
        "size": options["image_size"],
        "features": ",".join(map(str, features[:-1])),
        "fc": features[-1],
        "blocks": ",".join(trunk[:-1]),
        "gen_blocks": ",".join(blocks["gen"][:-1]) if blocks["gen"] else "",
        "content_size": options["content_size"],
        "style_size": options.get("style_size", 0),
        "mlp_layers": options.get("mlp_layers", 10),
        "mlp_width": options.get("mlp_features", 512),
        "regularised": True,
    }
    return make(values=values | more)


def gates(net: nn.Module) -> tuple[list[float], list[float]]:
    """The gates of a network in the order its blocks run, all channels being alike."""
    found: dict[str, list[float]] = {"residue_ratio": [], "shortcut_ratio": []}
    for name, parameter in net.named_parameters():
        kind = name.rpartition(".")[2]
        if kind in found:
            assert bool((parameter == parameter[0]).all())
            found[kind].append(float(parameter[0].double()))
    return found["residue_ratio"], found["shortcut_ratio"]


def build(net: str, config: Config, classes: int) -> nn.Module:
    if net == "enc":
        return Encoder(config)
    if net == "gen":
        return Generator(config, config.content_size + config.style_width(classes))
    if net == "cla":
        return Classifier(config, classes)
    if net == "dis":
        return Discriminator(config)
    return StyleBank(torch.full((classes,), 1 / classes), config.style_width(classes))


def loaded(case: Any, net: nn.Module, prefix: str = "") -> nn.Module:
    """The network with the case's weights, of which each must be used."""
    net = net.double()
    net.load_state_dict(tensors(case.state_dict(prefix)))
    return net


def judged(net: nn.Module, x: Tensor, name: str) -> dict[str, Tensor]:
    penalties: list[Tensor] = []
    out = net(x, penalties)
    total = torch.stack(penalties).sum()
    out = out.log_softmax(1) if name == "logp" else out
    return {name: out, "batch_reg_real": total, "batch_reg_fake": total}


def first(codes: Tensor, keep: list[int]) -> Tensor:
    """Codes whose row i keeps its first keep[i] numbers."""
    return codes * (torch.arange(codes.shape[1]) < torch.tensor(keep)[:, None])


def painted(case: Any, net: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    content, style = given(case, "content"), given(case, "style")
    y = net(torch.cat([content, style], 1))
    options = case.spec["options"]
    found = {"y": y, "y_corner": y[:, :, -7:, -7:]}
    masked_codes = torch.cat([first(content, options["keep_content"]), first(style, options["keep_style"])], 1)
    penalty = net.warp_penalty()  # type: ignore[operator]
    if penalty is not None:
        found["transform_penalty"] = penalty
    return found | {"masked": net(masked_codes)}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["dis256_enc", "dis256_cla", "dis256_dis", "dis256_gen", "dispaper256_enc", "dispaper256_gen"]
)
@torch.no_grad()
def test_networks_of_256_pixels(golden: Golden, name: str) -> None:
    case = golden(name)
    options = case.spec["options"]
    kind = options["net"]
    net = build(kind, config_of(options), options["nclass"])
    found: dict[str, Any] = dict(zip(("init.residue_ratio", "init.shortcut_ratio"), gates(net), strict=True))
    net = loaded(case, net)
    if kind == "gen":
        results = painted(case, net)
        found["masked.y"] = results.pop("masked")
    elif kind == "enc":
        assert isinstance(net, Encoder)
        x = picture(case)
        results = dict(zip(("mu", "sd"), net(x), strict=True))
        if options.get("taps"):
            for index, level in enumerate(net.levels):
                x = level(x)
                results[f"levels.{index}"] = x
    else:
        results = judged(net, picture(case), "logp" if kind == "cla" else "score")
    check(case, found | {f"forward.{key}": value for key, value in results.items()}, all_of="")


@torch.no_grad()
def test_networks_of_digits(golden: Golden) -> None:
    case = golden("disnist_digit")
    options = case.spec["options"]
    config = config_of(options, channels=1)
    found: dict[str, Any] = {}
    for kind in options["nets"]:
        net = build(kind, config, options["nclass"])
        if kind != "sty":
            residue, shortcut = gates(net)
            found |= {f"init.{kind}.residue_ratio": residue, f"init.{kind}.shortcut_ratio": shortcut}
        net = loaded(case, net, f"{kind}.")
        if kind == "sty":
            results = styles(case, net)
        elif kind == "gen":
            results = painted(case, net)
            results["masked_y"] = results.pop("masked")
        elif kind == "enc":
            results = dict(zip(("mu", "sd"), net(given(case, "x")), strict=True))
        else:
            results = judged(net, given(case, "x"), "logp" if kind == "cla" else "score")
        found |= {f"{kind}.{key}": value for key, value in results.items()}
    check(case, found, all_of="")


def styles(case: Any, net: nn.Module) -> dict[str, Tensor]:
    assert isinstance(net, StyleBank)
    mu, sd = net(given(case, "labels").long())
    mean, std = net.population()
    kl = net.divergence()
    return {"mu": mu, "sd": sd, "full_mean": mean, "full_std": std, "kl": kl, "kl_sum": kl.sum()}


@torch.no_grad()
def test_style_bank(golden: Golden) -> None:
    case = golden("dis_sty1139")
    net = build("sty", config_of(case.spec["options"] | {"gen_features": [8, 8]}, size=8), 1139)
    results = styles(case, loaded(case, net))
    wanted = [name for name in case.outputs if name.startswith("forward.")]
    results["cov"] = net.covariance()  # type: ignore[operator]
    check(case, {f"forward.{key}": value for key, value in results.items() if f"forward.{key}" in wanted})
    assert set(wanted) <= {f"forward.{key}" for key in results}
