"""Writing CycleGAN's networks for anifast, for the reference implementation and for the selfie2anime report's code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.engine import state as files
from anifast.engine.log import Metrics
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan.checkpoints import (
    NETS,
    REFERENCE,
    SEED,
    Contents,
    averaged,
    contents,
    header,
    seed_layers,
    to_seed,
)
from anifast.systems.cyclegan.config import Config, make
from anifast.systems.cyclegan.networks import build_discriminator, build_generator, fill
from anifast.systems.weights import Weights

#: What can be written, the default first.
FORMATS = ("anifast", "reference", "seed")
#: The report's losses -> the sums of ours that they are.
_LOSSES = {
    "loss_G": ("generators",),
    "loss_GAN": ("gan_ab", "gan_ba"),
    "loss_cycle": ("cycle_a", "cycle_b"),
    "loss_id": ("identity_a", "identity_b"),
    "loss_D1": ("d_a",),
    "loss_D2": ("d_b",),
}


def convert(
    state: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    format: str = "anifast",
    direction: str | None = None,
    epoch: str = "latest",
    force: bool = False,
) -> dict[Path, dict[str, Any]]:
    """The files that the networks of a checkpoint become; nothing is written yet.

    The generators are the ones that the checkpoint is translated with: the averages of a run that has them.

    Args:
        state: what was read from `source`.
        source: where from, for messages; the losses of a run stand beside its checkpoint.
        out: anifast and seed: a file; anifast also a folder, which gets checkpoint.pt. reference: a folder.
        format: one of `FORMATS`.
        direction: "AB" or "BA": only that generator; for a file with one generator that does not say which it is,
            the answer. None: all that is there.
        epoch: the tag in the reference's file names.
        force: write networks whose keys fit though the other code computes something else with them.

    Returns:
        Path -> contents.

    Raises:
        CheckpointError: networks are missing or damaged, or the format cannot express them; the message names `source`
            and says what differs.
        AnifastError: an option or `out` that cannot be.
    """
    if format not in FORMATS:
        raise AnifastError(f"{source}: CycleGAN has no format {format!r}; there are {', '.join(FORMATS)}")
    if direction not in (None, "AB", "BA"):
        raise AnifastError(f"{source}: direction {direction!r}: there are AB, BA and both")
    with files.about(source):
        found = contents(state)
        nets = _chosen(found, direction)
        _check(nets, found.config)
        if format != "anifast":
            _expressible(found.config, nets, format, force)
    nets = {name: {key: value.detach().cpu().contiguous() for key, value in net.items()} for name, net in nets.items()}
    if format == "anifast":
        file = out if out.suffix in (".pt", ".pth") else out / files.NAME
        return {file: {**header(found.config), "nets": nets}}
    if format == "seed":
        if out.suffix not in (".pt", ".pth"):
            raise AnifastError(f"{out}: the report's code keeps everything in one file; give a name that ends in .pt")
        return {out: _seed(nets, found, state, source)}
    if out.suffix in (".pt", ".pth"):
        raise AnifastError(f"{out}: the reference has a file for each network; give a folder")
    if not epoch or "/" in epoch:
        raise AnifastError(f"--epoch {epoch!r}: a word such as latest or 200, as the reference's --epoch takes it")
    if direction is not None:  # its test program looks for this name with --model test
        return {out / f"{epoch}_net_G.pth": nets[f"G_{direction}"]}
    return {out / f"{epoch}_net_{REFERENCE[name]}.pth": net for name, net in nets.items()}


def hint(state: Mapping[str, Any], format: str, direction: str | None) -> str:
    """What to tell the other code about these networks; empty where there is nothing to tell."""
    if format != "reference":
        return ""
    c = contents(state).config
    sizes = f"--netG resnet_{c.blocks}blocks --ngf {c.width} --norm instance --no_dropout"
    program = f"--model test {sizes}" if direction else f"--model cycle_gan {sizes} --ndf {c.d_width}"
    return f"options for the reference's programs: {program}"


def _chosen(found: Contents, direction: str | None) -> dict[str, Weights]:
    """The networks asked for by own names."""
    if found.unnamed is not None:
        if direction is None:
            raise CheckpointError(
                "this file holds one generator and does not say which way it translates; say so by --direction AB "
                "(or BA)"
            )
        return {f"G_{direction}": found.unnamed}
    if direction is None:
        return {name: found.nets[name] for name in NETS if name in found.nets}
    if f"G_{direction}" not in found.nets:
        raise CheckpointError(f"there is no generator {direction} in it, only {', '.join(found.nets)}")
    return {f"G_{direction}": found.nets[f"G_{direction}"]}


def _check(nets: Mapping[str, Weights], config: Config) -> None:
    """Refuse networks that our own classes would not load.

    Raises:
        CheckpointError: keys or shapes of another architecture.
    """
    for name, weights in nets.items():
        with torch.device("meta"):
            net = build_generator(config) if name[0] == "G" else build_discriminator(config)
            fill(net, weights, name, assign=True)


def _expressible(config: Config, nets: Mapping[str, Weights], format: str, force: bool) -> None:
    """Refuse what the other code would compute differently, or cannot load at all.

    Raises:
        CheckpointError: these networks are such.
    """
    target = make(format)
    whose = {"reference": "the reference", "seed": "the selfie2anime report's code"}[format]
    never = [f"{name} {getattr(config, name)}" for name in ("skip", "upsample") if _differs(config, target, name)]
    if never:
        raise CheckpointError(
            f"{whose} has no such generators ({', '.join(never)}): these networks cannot be written for it"
        )
    names = ["down_padding", "branch_relu"] + (["sigmoid"] if any(name[0] == "D" for name in nets) else [])
    differing = [
        f"{name} {getattr(config, name)} (there: {getattr(target, name)})"
        for name in names
        if _differs(config, target, name)
    ]
    if config.blocks not in ((9,) if format == "seed" else (6, 9)):
        differing.append(f"blocks {config.blocks} (there: {'9' if format == 'seed' else '6 or 9'})")
    if differing and not force:
        raise CheckpointError(
            f"{whose} would load these networks and compute something else with them, for they have "
            f"{', '.join(differing)}; --force writes them all the same"
        )
    missing = [name for name in NETS if name not in nets]
    if format == "seed" and missing:
        raise CheckpointError(f"{whose} keeps all four networks in one file, and {', '.join(missing)} are not there")


def _differs(one: Config, other: Config, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def _seed(nets: Mapping[str, Weights], found: Contents, state: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The report's dict. It holds the optimisers and last losses too, as far as the source has them.

    Adam's moments belong to the weights in training: averaged generators get new optimisers.
    """
    c = found.config
    whole: dict[str, Any] = {"epoch": found.epoch or 0}
    whole |= {f"{SEED[name]}_state_dict": to_seed(name, net, c.blocks) for name, net in nets.items()}
    moments = _moments(state.get("optim"), c) if found.origin == "anifast" else {}
    for title, held in (("G", ("G_AB", "G_BA")), ("D_1", ("D_A",)), ("D_2", ("D_B",))):
        known = {} if averaged(state) and title == "G" else {o: kept for o, kept in moments.items() if o[0] in held}
        whole[f"{title}_opt_state_dict"] = _adam(held, nets, known, c)
    whole |= _losses(state, source) if found.origin == "anifast" else dict.fromkeys(_LOSSES, math.nan)
    if found.origin == "seed":
        kept = [name for name in whole if name.endswith("_opt_state_dict") or name in _LOSSES]
        whole |= {name: state[name] for name in kept if name in state}
    return whole


def _moments(optim: Any, config: Config) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(Network, parameter) -> Adam's state, from the optimisers of a run; empty where there are none."""
    if not isinstance(optim, Mapping):
        return {}
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for kind, names in (("G", ("G_AB", "G_BA")), ("D", ("D_A", "D_B"))):
        with torch.device("meta"):
            net = build_generator(config) if kind == "G" else build_discriminator(config)
        owners = [(name, key) for name in names for key, _ in net.named_parameters()]
        kept = optim[kind]["state"]
        found |= {owner: kept[i] for i, owner in enumerate(owners) if i in kept}
    return found


def _adam(
    held: tuple[str, ...],
    nets: Mapping[str, Weights],
    moments: Mapping[tuple[str, str], dict[str, Tensor]],
    config: Config,
) -> dict[str, Any]:
    """The state of an Adam over all parameters of `held`, in the order of the report's classes.

    Biases in front of an instance norm have no effect and are not trained here: their moments are 0.
    """
    layers = {name: seed_layers(name[0], config.blocks) for name in held}
    owners = [(name, f"{layer}.{kind}") for name in held for layer in layers[name] for kind in ("weight", "bias")]
    parameters = [torch.zeros(0) for _ in owners]
    lr = config.lr if held[0][0] == "G" or config.d_lr is None else config.d_lr
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(config.beta1, config.beta2))
    state: dict[str, Any] = optimizer.state_dict()
    if moments:
        step = next(iter(moments.values()))["step"]
        for i, (name, key) in enumerate(owners):
            known, value = moments.get((name, key)), nets[name][key]
            given = known or {"step": step, "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
            state["state"][i] = {part: tensor.detach().cpu().contiguous() for part, tensor in given.items()}
    return state


def _losses(state: Mapping[str, Any], source: Path) -> dict[str, float]:
    """The report's six losses where the checkpoint stands: of the last line of the run's metrics.jsonl up to there.

    NaN where there is none, and for a checkpoint that does not say how many images it has seen.
    """
    folder = source if source.is_dir() else source.parent
    seen = state.get("images", -1)
    rows = [row for row in Metrics(folder / "metrics.jsonl").read() if row["images"] <= seen]
    last = rows[-1] if rows else {}
    return {name: sum(float(last.get(part, math.nan)) for part in parts) for name, parts in _LOSSES.items()}
