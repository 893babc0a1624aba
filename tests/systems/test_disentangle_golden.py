"""The disentangling networks against numbers computed by the authors' code, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_disentangle import Artists
from torch import Tensor, nn

from anifast.engine.loop import run_step
from anifast.systems.disentangle import training
from anifast.systems.disentangle.augmentation import Draws, alpha_mask, augment, keep_probabilities, normal, strata
from anifast.systems.disentangle.checkpoints import told
from anifast.systems.disentangle.codes import random_contents, random_styles, statistics
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.losses import divergence, nll, nlu, push
from anifast.systems.disentangle.networks import (
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
from anifast.systems.disentangle.training import Batch, Pretraining, Stage1, Stage2

Golden = Callable[[str], Any]
# The references are float64, stored as float32.
EXACT = 5e-7
CPU = torch.device("cpu")


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


# --- building blocks


def block(name: str, args: list[Any], options: dict[str, Any]) -> nn.Module:
    """Ours for one of the authors' classes with their arguments."""
    if name == "CPReLU":
        return Activation(*args)
    if name == "ResidueBlock":
        before, features, stride, pad, width = args
        assert pad == width
        act = "cprelu" if options.get("nonlinear", True) else "none"
        return ResidueBlock(before, features, options["residue_ratio"], stride, pad, act)
    if name == "LinearResidueBlock":
        return LinearResidueBlock(args[0], options["residue_ratio"])
    if name == "BusBlock":
        assert args[0] == args[1]
        return BusBlock(args[0], options["residue_ratio"])
    if name == "NonlocalBlock":
        features, value, key, messages = args
        assert value == key
        return NonlocalBlock(features, options["residue_ratio"], width=value, messages=messages)
    if name == "BatchRegularization":
        return BatchRegularization(*args)
    assert name == "SpatialTransform"
    return SpatialTransform()


def test_blocks_and_their_gradients(golden: Golden) -> None:
    case = golden("dis_modules")
    found: dict[str, Tensor] = {}
    for spec in case.spec["options"]["modules"]:
        name = spec["name"]
        net = loaded(case, block(spec["class"], spec["args"], spec["kwargs"]), f"{name}.")
        x = given(case, f"{name}_x").requires_grad_()
        y = net(x)
        if isinstance(net, BatchRegularization):  # its targets are 0 for real and for generated pictures
            found |= {f"{name}.loss_real": y, f"{name}.loss_fake": y}
            loss = y
        else:
            found[f"{name}.y"] = y
            loss = (y * given(case, f"{name}_cot")).sum()
        if isinstance(net, SpatialTransform):
            assert net.penalty is not None
            found[f"{name}.penalty"] = net.penalty
            loss = loss + net.penalty
        parameters = dict(net.named_parameters())
        dx, *rest = torch.autograd.grad(loss, [x, *parameters.values()])
        found[f"{name}.dx"] = dx
        found |= {f"{name}.d.{key}": grad for key, grad in zip(parameters, rest, strict=True)}
    check(case, found, all_of="")


@torch.no_grad()
def test_other_networks(golden: Golden) -> None:
    """Generators of one code, plain and with nested dropout, with non-local blocks, and the classifier of codes."""
    case = golden("dis_othernets")
    options = case.spec["options"]
    config = config_of(options | {"net": "gen"})
    code = given(case, "code")
    masked_code = first(code, options["keep"])
    plain, nested = (loaded(case, Generator(config, code.shape[1]), prefix) for prefix in ("plain.", "nested."))
    mlp = loaded(
        case, CodeClassifier(code.shape[1], options["mlp_features"], options["mlp_layers"], options["nclass"]), "mlp."
    )
    penalties: list[Tensor] = []
    found = {
        "plain.y": plain(code),
        "nested.y": nested(masked_code),
        "mlp.logp": mlp(code, penalties).log_softmax(1),
        "mlp.logp_masked": mlp(masked_code).log_softmax(1),
        "mlp.batch_reg_real": torch.stack(penalties).sum(),
    }
    check(case, found, all_of="")


# --- losses


def test_divergences(golden: Golden) -> None:
    case = golden("losses_kl")
    keep = case.spec["options"]["keep"]
    mu, sd = given(case, "mu").requires_grad_(), (given(case, "sd_raw").abs() + 0.05).requires_grad_()
    each = divergence(mu, sd)
    dmu, dsd = torch.autograd.grad(each.sum(), [mu, sd])
    found = {
        "standard.per_dim": each,
        "standard.total": each.sum(),
        "standard.keep_weighted": (each * keep_probabilities(keep, len(each), each)).sum(),
        "standard.dmu": dmu,
        "standard.dsd": dsd,
    }
    check(case, found, all_of="standard.")  # no loss here compares two normal distributions, neither of them standard


def test_unlikelihood(golden: Golden) -> None:
    case = golden("losses_nlu")
    labels = given(case, "labels")
    z = given(case, "logits")
    z = z.scatter_add(1, labels[:, None], given(case, "boost")[:, None]).requires_grad_()
    stable, eps, likelihood = nlu(z, labels), nlu(z, labels, "eps"), nll(z, labels)
    frequency = given(case, "class_freq")
    (dlogits,) = torch.autograd.grad(stable.mean(), z, retain_graph=True)
    (nll_dlogits,) = torch.autograd.grad(likelihood.mean(), z, retain_graph=True)
    log_p, log_f = -likelihood, frequency.log()[labels]
    # What the adversary raises is max(log p, log f); `push` is its gradient by log p.
    pushed = push(z, labels, "nll", frequency)
    assert 0 < pushed.sum() < len(labels)
    found = {
        "stable": stable,
        "stable_mean": stable.mean(),
        "dlogits": dlogits,
        "eps": eps,
        "eps_mean": eps.mean(),
        "nll": likelihood,
        "nll_mean": likelihood.mean(),
        "nll_dlogits": nll_dlogits,
        "capped": torch.where(pushed > 0, log_p, log_f),
    }
    check(case, {f"nlu.{name}": value for name, value in found.items()}, all_of="")


# --- masks, noise, codes


@torch.no_grad()
def test_masks_noise_and_codes(golden: Golden) -> None:
    case = golden("dis_utils")
    options = case.spec["options"]
    config = make(values={name: options[name] for name in ("max_angle", "max_scale", "min_margin")})
    rgb, alpha = given(case, "rgb"), given(case, "alpha_raw").clamp(0, 1)
    x = alpha_mask(rgb, alpha)
    spread = strata(given(case, "perm"), given(case, "uniform"))
    mean, std = given(case, "codes_mean"), given(case, "codes_std")
    whole = statistics(mean, std)
    vectors = whole["eigenvectors"]
    bank = loaded(case, StyleBank(torch.full((9,), 1 / 9), options["style_size"]), "sty.")
    assert isinstance(bank, StyleBank)
    found = {
        "alpha_mask.own": x,
        "alpha_mask.given": alpha_mask(rgb, given(case, "alpha_raw2").clamp(0, 1)),
        "augment.y": augment(x, given(case, "aug_params"), config),
        "gaussian_noise.n": normal(spread),
        "generate_aug_params.params": spread[:, :4],
        "encode.full_mean": whole["mean"],
        "encode.full_std": whole["std"],
        "encode.eigval": whole["eigenvalues"],
        "encode.dim_weight": whole["weight"],
        "encode.cov": vectors @ torch.diag(whole["eigenvalues"]) @ vectors.T,
        "codes.random_content": random_contents(whole, given(case, "noise_content")),
        "codes.normalized": (mean[:7] - whole["mean"]) / whole["std"],
        "codes.style_cov": bank.covariance(),
        "codes.random_style": random_styles(bank, given(case, "noise_style")),
    }
    check(case, found, all_of="")


# --- whole steps of the stages


def stage_of(case: Any, kind: type[Any], **more: Any) -> Any:
    """The stage with the case's options and weights, all in float64, behind the warm-up as the case is."""
    options = case.spec["options"]
    config, left_out = told(options, kind.stage)
    assert not left_out
    weights = tensors(case.state_dict())
    frequency = weights.get("sty.class_freq", torch.full((options["nclass"],), 1 / options["nclass"]))
    artists = Artists([str(artist) for artist in range(len(frequency))], (frequency * 1e6).round().long())
    system = kind(config, artists, CPU, **more)
    prefixes = {"E": "enc.", "G": "gen.", "S": "sty.", "C1": "cla.", "C2": "cla.", "D": "dis."}
    for name, net in system.nets.items():
        loaded(case, net, prefixes[name])
    return system


def drawn(case: Any, batch: str = "") -> Draws:
    """The case's draws; what it has none of is not used."""
    count = len(case.inputs[f"labels{batch}"])

    def part(name: str, *shape: int) -> Tensor:
        known = f"{name}{batch}" in case.inputs
        return given(case, f"{name}{batch}") if known else torch.full((count, *shape), torch.nan, dtype=torch.float64)

    return Draws(
        part("content_noise", 1),
        part("style_noise", 1),
        part("content_drop_level"),
        part("style_drop_level"),
        part("aug_params", 4),
        torch.arange(count).roll(-1),
    )


def step(case: Any, system: Any, monkeypatch: pytest.MonkeyPatch, batch: str = "") -> dict[str, Tensor]:
    """One step of the stage with the case's pictures and draws; what it logs."""
    none = torch.empty(0)
    x = picture(case, f"rgb{batch}", f"alpha_raw{batch}")
    codes = [given(case, f"con_{part}{batch}") if system.stage == "stage2" else none for part in ("mean", "std")]
    monkeypatch.setattr(training, "prepare", lambda images: images)
    draws = drawn(case, batch)
    system.draw = lambda numbers: draws
    before = case.spec["options"]["iter"] - 1
    system.turns = before
    system.begin(Batch(x, none, given(case, f"labels{batch}"), *codes), before * system.batch_size)
    return run_step(system.phases, before, CPU)


def gradients(case: Any, nets: dict[str, nn.Module], call: str) -> dict[str, Tensor]:
    """All stored gradients and their norms, and parameters after the step."""
    found: dict[str, Tensor] = {}
    options = case.spec["options"]
    for name, net in nets.items():
        all_of = [p.grad for p in net.parameters() if p.grad is not None]
        found[f"{call}.grad_norm.{name}"] = torch.stack([g.square().sum() for g in all_of]).sum().sqrt()
    parameters = {f"{name}.{key}": p for name, net in nets.items() for key, p in net.named_parameters()}
    for key in options["grads"]:
        grad = parameters[key].grad
        assert grad is not None
        found[f"{call}.grad.{key}"] = grad
    return found | {f"{call}.after.{key}": parameters[key] for key in options.get("params_after", ())}


@pytest.mark.parametrize("name", ["dis_stage1_28", "dis_stage1_mlp28", "dis_stage1_paper32"])
def test_a_step_of_stage_1(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden(name)
    system = stage_of(case, Stage1)
    labels, bank = given(case, "labels"), system.nets["S"]
    style_mean, style_std = (x.detach() for x in bank(labels))
    logged = step(case, system, monkeypatch)
    made = system.made
    log_p = made["logits"].detach().log_softmax(1)
    own, limit = (x.gather(1, labels[:, None])[:, 0] for x in (log_p, bank.class_freq.log().expand_as(log_p)))
    pushed = push(made["logits"], labels, "nll", bank.class_freq)
    found: dict[str, Any] = {
        "con": logged["kl_content"],
        "sty": logged["kl_style"],
        "rec": logged["rec"],
        "cla": logged["c1"],
        "cla_br": logged.get("reg_c1", 0.0),
        "rec_shift": logged.get("rec_other", 0.0),
        "match": logged.get("match", 0.0),
        "content_mean": made["content_mean"],
        "content_std": made["content_std"],
        "style_mean": style_mean,
        "style_std": style_std,
        "reconstruction": made["rec"],
        "classifier_logp": log_p,
        "cla_adv": -torch.where(pushed > 0, own, limit).mean(),
    }
    if "swapped" in made:
        found["swapped"] = made["swapped"]
    if "warp" in logged:
        found["transform_penalty"] = logged["warp"]
    found = {f"stage1.{key}": value for key, value in found.items()}
    nets = {theirs: system.nets[own] for own, theirs in (("E", "enc"), ("G", "gen"), ("S", "sty"), ("C1", "cla"))}
    check(case, found | gradients(case, nets, "stage1"), all_of="")


def test_a_step_of_pretraining(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden("dis_classifier_28")
    system = stage_of(case, Pretraining)
    logged = step(case, system, monkeypatch)
    found = {"classifier.cla": logged["c2_real"], "classifier.cla_br": logged["reg_c2"]}
    check(case, found | gradients(case, {"cla": system.nets["C2"]}, "classifier"), all_of="")


@pytest.mark.parametrize("name", ["dis_stage2_28", "dis_stage2_paper32"])
def test_a_step_of_stage_2(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers of D and C2 in their order, those to G's turn coming from D and C2 as they are after their step."""
    case = golden(name)
    size = case.spec["options"]["content_size"]
    known = {"mean": "con_full_mean", "std": "con_full_std", "weight": "dim_weight"}
    whole = {own: given(case, theirs) for own, theirs in known.items()}
    whole |= {"eigenvalues": torch.ones(size), "eigenvectors": torch.eye(size)}
    system = stage_of(case, Stage2, statistics=whole)
    encoder = {key: value.clone() for key, value in system.nets["E"].state_dict().items()}
    answers: dict[str, list[Tensor]] = {"D": [], "C2": []}
    for net, heard in answers.items():
        system.nets[net].register_forward_hook(lambda _, __, out, heard=heard: heard.append(out.detach()))
    logged = step(case, system, monkeypatch, batch="0")
    found: dict[str, Any] = {
        "dis_real": logged["d_real"],
        "dis_fake": logged["d_fake"],
        "dis_br": logged.get("reg_d", 0.0),
        "dis_batches": 1.0,
        "cla_real": logged["c2_real"],
        "cla_fake": logged["c2_fake"],
        "cla_br": logged.get("reg_c2", 0.0),
        "gen_dis": logged["g_d"],
        "gen_cla": logged["g_c2"],
        "gen_dis_br": logged.get("g_reg_d", 0.0),
        "gen_cla_br": logged.get("g_reg_c2", 0.0),
        "con": logged["content"],
        "sty": logged["kl_style"],
        "generated": system.made["fake"],
        "dis_scores": torch.cat(answers["D"]),
        "cla_logp": torch.cat(answers["C2"]).log_softmax(1),
    }
    if "warp" in logged:
        found["transform_penalty"] = logged["warp"]
    found = {f"stage2.{key}": value for key, value in found.items()}
    nets = {theirs: system.nets[own] for own, theirs in (("G", "gen"), ("C2", "cla"), ("D", "dis"), ("S", "sty"))}
    check(case, found | gradients(case, nets, "stage2"), all_of="")
    assert all(torch.equal(value, encoder[key]) for key, value in system.nets["E"].state_dict().items())
