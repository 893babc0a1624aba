"""CycleGAN's files: its own checkpoints, those of the reference, of the selfie2anime report's code and of UPIT.

Own networks are called after what they do: G_AB turns A into B, D_A judges pictures of A. The others say it otherwise:

    anifast   reference       report           UPIT
    G_AB      G_A             G_12             G_B
    G_BA      G_B             G_21             G_A
    D_B       D_A             D_2              D_B       the reference calls it after the generator that it trains
    D_A       D_B             D_1              D_A
    file      four of them    *_state_dict     prefixes of the keys

Inside a network the keys are the reference's (`model.10.conv_block.1.weight`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anifast.engine import state as files
from anifast.errors import CheckpointError
from anifast.systems.cyclegan.config import Config, make
from anifast.systems.weights import Weights, settled, stripped

#: Marks an own checkpoint, with the version of its contents.
FORMAT = "anifast.cyclegan/1"
#: The networks of a run.
NETS = ("G_AB", "G_BA", "D_A", "D_B")
#: Own name -> the reference's.
REFERENCE = {"G_AB": "G_A", "G_BA": "G_B", "D_A": "D_B", "D_B": "D_A"}
#: Own name -> the report's, without _state_dict.
SEED = {"G_AB": "G_12", "G_BA": "G_21", "D_A": "D_1", "D_B": "D_2"}
_UPIT = {"G_AB": "G_B", "G_BA": "G_A", "D_A": "D_A", "D_B": "D_B"}
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
_FILE = re.compile(r"(?P<tag>.+)_net_(?P<net>G|G_A|G_B|D_A|D_B)\.pth")


@dataclass(frozen=True)
class Contents:
    """What a file of any kind holds, in own names.

    Attributes:
        origin: "anifast", "reference", "seed" or "upit".
        config: the settings of the run, or what can be told of them: the architecture.
        nets: own name -> weights; those of `NETS` that are there.
        unnamed: the one generator of a file that does not say which way it translates.
        epoch: whole epochs behind it, where the file tells.
    """

    origin: str
    config: Config
    nets: dict[str, Weights] = field(default_factory=dict)
    unnamed: Weights | None = None
    epoch: int | None = None


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether a loaded dict is a CycleGAN file of a known kind."""
    if "format" in state:
        return str(state["format"]).startswith("anifast.cyclegan/")
    if "G_12_state_dict" in state or _is_set(state):
        return True
    plain = _stripped(state)
    return "model.1.weight" in plain or "G_A.1.weight" in plain or _is_discriminator(plain)


def gather(path: Path) -> dict[str, Any] | None:
    """The networks that the reference has put into several files, as one dict by its names (G_A, G_B, D_A, D_B).

    Args:
        path: a folder of its checkpoints, of which the latest are taken (`latest`, else the last epoch, else the last
            iteration), or one of the files TAG_net_G_A.pth, to which those of the same tag belong.

    Returns:
        None where `path` is neither.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if path.is_dir():
        if (path / files.NAME).exists():
            return None
        sets: dict[str, dict[str, Path]] = {}
        for found in sorted(path.glob("*_net_*.pth")):
            if match := _FILE.fullmatch(found.name):
                sets.setdefault(match["tag"], {})[match["net"]] = found
        if not sets:
            return None
        chosen = sets[max(sets, key=_age)]
        if len(chosen) > 1:
            chosen.pop("G", None)  # a renamed copy for the reference's one-direction test
        return {net: files.load(file) for net, file in chosen.items()}
    match = _FILE.fullmatch(path.name)
    if match is None or match["net"] == "G" or not path.is_file():
        return None
    beside = {net: path.with_name(f"{match['tag']}_net_{net}.pth") for net in REFERENCE.values()}
    return {net: files.load(file) for net, file in beside.items() if file.is_file()}


def _age(tag: str) -> tuple[int, int, str]:
    """Order of the reference's tags: iterations, epochs, latest; anything else first."""
    if tag == "latest":
        return (3, 0, tag)
    if tag.isdecimal():
        return (2, int(tag), tag)
    number = tag.removeprefix("iter_")
    return (1, int(number), tag) if number.isdecimal() else (0, 0, tag)


def header(config: Config) -> dict[str, Any]:
    """What stands in a checkpoint beside the state. Where the run once started is not asked again when it resumes."""
    return {"format": FORMAT, "config": config.as_dict() | {"start_from": None}}


def config_of(state: Mapping[str, Any]) -> Config:
    """The settings in an own checkpoint.

    Raises:
        CheckpointError: not an own checkpoint of CycleGAN, one of a newer version, or a damaged one.
    """
    settings = files.settings_of(state, FORMAT, "CycleGAN")
    return settled(make, None, settings, "the settings in this file")


def averaged(state: Mapping[str, Any]) -> bool:
    """Whether an own checkpoint holds averaged generators, which then are the ones to use."""
    return "format" in state and "ema" in state


def contents(state: Mapping[str, Any]) -> Contents:
    """The networks and settings of any file that `recognises` accepts; how many there are depends on the file.

    Raises:
        CheckpointError: a network of another architecture, or a damaged file.
    """
    if "format" in state:
        config = config_of(state)
        held = _part(state, "nets") | (_part(state, "ema") if averaged(state) else {})
        nets = {name: _part(held, name) for name in NETS if name in held}
        if not nets:
            raise CheckpointError(f"damaged: nets holds none of {', '.join(NETS)}")
        return Contents("anifast", config, nets, epoch=_epoch(state))
    if "G_12_state_dict" in state:
        rename = {"G": generator_from_seed, "D": discriminator_from_seed}
        nets = {
            ours: rename[ours[0]](_part(state, f"{theirs}_state_dict"))
            for ours, theirs in SEED.items()
            if f"{theirs}_state_dict" in state or ours[0] == "G"
        }
        epoch = state.get("epoch")
        return Contents("seed", _config("seed", nets), nets, epoch=epoch if isinstance(epoch, int) else None)
    if _is_set(state):
        nets = {ours: _reference(_part(state, theirs)) for ours, theirs in REFERENCE.items() if theirs in state}
        if not nets:
            net = _reference(_part(state, "G"))
            return Contents("reference", _config("reference", {"G": net}), unnamed=net)
        return Contents("reference", _config("reference", nets), nets)
    plain = _stripped(state)
    if "G_A.1.weight" in plain:
        nets = {ours: _under(plain, f"{theirs}.") for ours, theirs in _UPIT.items()}
        nets = {name: _reference(net) for name, net in nets.items() if net}
        return Contents("upit", _config("reference", nets), nets)
    net = _reference(plain)
    if _is_discriminator(net):
        raise CheckpointError("this file holds a discriminator, and only generators translate; give a *_net_G*.pth")
    return Contents("reference", _config("reference", {"G": net}), unnamed=net)


def generators(state: Mapping[str, Any]) -> tuple[Config, dict[str, Weights]]:
    """Settings and generators, by direction "AB" and "BA", of any file that `recognises` accepts.

    A single file of the reference (latest_net_G.pth) does not say which way it translates: it serves both directions.

    Raises:
        CheckpointError: a network of another architecture, a file without a generator, or a damaged one.
    """
    found = contents(state)
    if found.unnamed is not None:
        return found.config, {"AB": found.unnamed, "BA": found.unnamed}
    ways = {name[2:]: net for name, net in found.nets.items() if name[0] == "G"}
    if not ways:
        raise CheckpointError(f"there is no generator in it, only {', '.join(found.nets)}")
    return found.config, ways


def architecture(config: Config) -> dict[str, Any]:
    """The settings that shape the networks."""
    names = ("blocks", "width", "d_width", "down_padding", "branch_relu", "skip", "upsample", "sigmoid")
    return {name: getattr(config, name) for name in names}


def _part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = state.get(name)
    if not isinstance(part, dict) or not part:
        raise CheckpointError(f"damaged: {name} is missing")
    return part


def _epoch(state: Mapping[str, Any]) -> int | None:
    """Whole epochs behind an own checkpoint of a run."""
    try:
        return int(state["data"]["sampler"]["epoch"])
    except (KeyError, TypeError, ValueError):
        return None


def _is_set(state: Mapping[str, Any]) -> bool:
    """Whether this is what `gather` gives.

    Other codes call their discriminators D_A and D_B too. Without a generator these are the reference's only if all
    keys are ones that its networks have.
    """
    if not state or any(name not in ("G", *REFERENCE.values()) for name in state):
        return False
    inner = [key for net in state.values() if isinstance(net, Mapping) for key in _stripped(net)]
    return any(name[0] == "G" for name in state) or all(key.startswith(("model.", "net.")) for key in inner)


def _is_discriminator(net: Mapping[str, Tensor]) -> bool:
    return "model.0.weight" in net and "model.11.weight" in net and net["model.0.weight"].ndim == 4


def _stripped(state: Mapping[str, Any]) -> Weights:
    """Without wrappers' prefixes and without running statistics, which old files carry and nothing uses."""
    return {key: value for key, value in stripped(state).items() if not key.endswith(_STATISTICS)}


def _under(state: Mapping[str, Tensor], prefix: str) -> Weights:
    """The keys below `prefix`, with `model.` in its place."""
    return {f"model.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}


def _reference(state: Mapping[str, Any]) -> Weights:
    """A network of the reference with the keys that it has without dropout.

    Raises:
        CheckpointError: a U-Net, or another norm than instance norm without affine part.
    """
    net = _stripped(state)
    if any(key.startswith("model.model.") for key in net):
        raise CheckpointError("this is a U-Net generator; only ResNet generators of CycleGAN can be loaded")
    norms = [key for key, value in net.items() if key.endswith(".weight") and value.ndim == 1]
    if norms:
        raise CheckpointError(
            f"{norms[0]} belongs to a batch norm or an affine norm; only networks with instance norm without affine "
            "part can be loaded"
        )
    if any(".conv_block.6." in key for key in net) and not any(".conv_block.5." in key for key in net):
        warnings.warn(
            "this generator was trained with dropout inside its residual blocks (which shifts conv_block.5 to .6); "
            "it is used without",
            stacklevel=2,
        )
        net = {key.replace(".conv_block.6.", ".conv_block.5."): value for key, value in net.items()}
    return net


def _config(preset: str, nets: Mapping[str, Weights]) -> Config:
    """A preset with the sizes that the networks' keys and shapes tell."""
    sizes: dict[str, Any] = {}
    for name, net in nets.items():
        sizes |= _generator_sizes(net) if name[0] == "G" else _discriminator_sizes(net)
    return make(preset, sizes)


def _generator_sizes(net: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = {key.split(".")[1] for key in net if ".conv_block." in key}
    stem = net.get("model.1.weight")
    if stem is None or stem.ndim != 4 or tuple(stem.shape[1:]) != (3, 7, 7) or not blocks:
        raise CheckpointError(
            "this network is no ResNet generator of CycleGAN with instance norm (a U-Net or another norm?); "
            "only those can be loaded"
        )
    return {"blocks": len(blocks), "width": stem.shape[0]}


def _discriminator_sizes(net: Mapping[str, Tensor]) -> dict[str, Any]:
    first = net.get("model.0.weight")
    if first is None or first.ndim != 4 or tuple(first.shape[1:]) != (3, 4, 4) or "model.11.weight" not in net:
        raise CheckpointError(
            "this network is no 70x70 PatchGAN of CycleGAN (`basic`, 3 layers); only those can be used"
        )
    return {"d_width": first.shape[0]}


def seed_layers(kind: str, blocks: int) -> dict[str, str]:
    """Layer of a generator ("G") or discriminator ("D") in own keys -> in those of the report's code, in order."""
    if kind == "D":
        last = {"model.11": "discriminator_block.4"}
        return {f"model.{n}": f"discriminator_block.{i}.conv_block.0" for i, n in enumerate((0, 2, 5, 8))} | last
    parts = [(f"{n}", f"{i}.conv_block.0") for i, n in enumerate((1, 4, 7))]
    for j in range(blocks):
        parts += [(f"{10 + j}.conv_block.{ours}", f"{3 + j}.conv_block.{theirs}") for ours, theirs in ((1, 0), (5, 3))]
    parts += [(f"{n + blocks}", f"{3 + blocks + i}.conv_block.0") for i, n in enumerate((10, 13, 17))]
    return {f"model.{ours}": f"generator_block.{theirs}" for ours, theirs in parts}


def _renamed(net: Mapping[str, Tensor], layers: Mapping[str, str], what: str) -> Weights:
    """Put `layers` into the keys.

    Raises:
        CheckpointError: a layer that is not among them, or one of them that is missing.
    """
    renamed = {}
    for key, value in net.items():
        layer, _, kind = key.rpartition(".")
        if layer not in layers or kind not in ("weight", "bias"):
            raise CheckpointError(f"unknown key {key!r} in a {what}")
        renamed[f"{layers[layer]}.{kind}"] = value
    missing = [f"{ours}.{kind}" for ours in layers for kind in ("weight", "bias") if f"{ours}.{kind}" not in net]
    if missing:
        raise CheckpointError(f"damaged: {missing[0]} is missing in a {what}")
    return renamed


def generator_from_seed(state: Mapping[str, Tensor]) -> Weights:
    """Rename a generator of the report's code: generator_block.3.conv_block.0 -> model.10.conv_block.1.

    Raises:
        CheckpointError: an unknown or missing key.
    """
    net, what = _stripped(state), "generator of the selfie2anime report's code"
    numbers = [int(m[1]) for key in net if (m := re.match(r"generator_block\.(\d+)\.conv_block\.", key))]
    blocks = max(numbers, default=0) - 5
    if not numbers:
        raise CheckpointError(f"unknown key {next(iter(net), '')!r} in a {what}")
    if blocks < 1:
        raise CheckpointError(f"damaged: a {what} without residual blocks")
    return _renamed(net, {theirs: ours for ours, theirs in seed_layers("G", blocks).items()}, what)


def discriminator_from_seed(state: Mapping[str, Tensor]) -> Weights:
    """Rename a discriminator of the report's code: discriminator_block.3.conv_block.0 -> model.8.

    Raises:
        CheckpointError: an unknown or missing key.
    """
    layers = {theirs: ours for ours, theirs in seed_layers("D", 0).items()}
    return _renamed(_stripped(state), layers, "discriminator of the selfie2anime report's code")


def to_seed(name: str, net: Mapping[str, Tensor], blocks: int) -> Weights:
    """A network under its own name, with the report's keys: the inverse of the two functions above."""
    return _renamed(net, seed_layers(name[0], blocks), f"checkpoint ({name})")
