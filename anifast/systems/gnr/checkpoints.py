"""Files of GANs N' Roses: own checkpoints, the authors' training checkpoints, and files with generators alone.

The authors' code, in all its versions, writes one dict whose names are ours:

    G_A2B  G_B2A  D_A  D_B  D_L      the networks in training
    G_A2B_ema  G_B2A_ema             the generators' averages, which translate
    G_optim  D_optim  iter           Adam's states, and the last iteration that was finished, from 0

GNR_checkpoint.pt, the first file that they published, has the two averages alone. A bare state dict of one generator is
taken too, though it does not say which way it translates. What the networks are is read from keys and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anifast.engine.state import settings_of
from anifast.errors import CheckpointError
from anifast.systems.gnr.config import Config, make
from anifast.systems.gnr.networks import LatentDiscriminator, build_discriminator, build_generator
from anifast.systems.weights import Weights, agreed, count, fitted, plain, settled, shape_of, stripped

#: Marks an own checkpoint, with the version of its contents.
FORMAT = "anifast.gnr/1"
#: The networks of a run.
NETS = ("G_A2B", "G_B2A", "D_A", "D_B", "D_L")
GENERATORS = NETS[:2]
#: What one of the authors' files is known by; D_A and D_B are other codes' names too.
_THEIRS = (*GENERATORS, *(f"{name}_ema" for name in GENERATORS), "D_L")
#: (generator, discriminator) -> preset, which is the name of the version of the authors' code that has both.
VERSIONS = {("v1", "v1.1"): "rel", ("v1", "v1"): "main", ("v2", "v2"): "new"}

#: What a generator is called in messages that has no name.
_UNNAMED = "the generator"
_SETTINGS = "the settings in this file"


@dataclass(frozen=True)
class Contents:
    """What a file of any kind holds. Keys and shapes are those of the networks that `config` describes.

    Attributes:
        origin: "anifast" or "authors".
        config: the settings of the run, or what can be told of them: the architecture.
        nets: name -> weights in training; those of `NETS` that are there.
        ema: generator -> averaged weights; empty where there are none.
        steps: whole steps behind it, where the file tells.
        unnamed: the one generator of a file that does not say which way it translates.
    """

    origin: str
    config: Config
    nets: dict[str, Weights] = field(default_factory=dict)
    ema: dict[str, Weights] = field(default_factory=dict)
    steps: int | None = None
    unnamed: Weights | None = None


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether a loaded dict is a file of GANs N' Roses, of a known kind."""
    if "format" in state:
        return str(state["format"]).startswith("anifast.gnr/")
    return any(name in state for name in _THEIRS) or _kind(stripped(state)) is not None


def gather(path: Path) -> dict[str, Any] | None:
    """None: every code keeps all networks in one file."""
    return None


def header(config: Config) -> dict[str, Any]:
    """What stands in a checkpoint beside the state. Where the run once started is not asked again when it resumes."""
    return {"format": FORMAT, "config": config.as_dict() | {"start_from": None}}


def config_of(state: Mapping[str, Any]) -> Config:
    """The settings in an own checkpoint.

    Raises:
        CheckpointError: not an own checkpoint of GANs N' Roses, one of a newer version, or a damaged one.
    """
    if state.get("format") is None and recognises(state):
        held = contents(state)
        require_for_training(held)
        raise CheckpointError(
            "this is a file of the authors' code, which no run goes on from; begin one with its weights by --start-from"
        )
    return settled(make, None, settings_of(state, FORMAT, "GANs N' Roses"), _SETTINGS)


def averaged(state: Mapping[str, Any]) -> bool:
    """Whether a file holds averaged generators, which then are the ones to use."""
    return "ema" in state if "format" in state else any(f"{name}_ema" in state for name in GENERATORS)


def contents(state: Mapping[str, Any]) -> Contents:
    """The networks and settings of any file that `recognises` accepts; how many there are depends on the file.

    The weights are the file's own tensors without wrappers' prefixes; blur kernels, which are constants, are checked
    and put in where they are missing.

    Raises:
        CheckpointError: networks that contradict one another or the settings, or a damaged file; the message names
            the key, what it is and what was expected.
    """
    if "format" in state:
        config = config_of(state)
        nets, ema = _held(state.get("nets", {}), "nets", NETS), _held(state.get("ema", {}), "ema", GENERATORS)
        if not nets and not ema:
            raise CheckpointError(f"damaged: nets holds none of {', '.join(NETS)}")
        return _checked(Contents("anifast", config, nets, ema, _whole(state.get("steps"))))
    if any(name in state for name in _THEIRS):
        nets = {name: plain(state[name], name) for name in NETS if name in state}
        ema = {name: plain(state[f"{name}_ema"], f"{name}_ema") for name in GENERATORS if f"{name}_ema" in state}
        last = _whole(state.get("iter"))
        found = Contents("authors", _told(nets, ema, state), nets, ema, None if last is None else last + 1)
        return _checked(found)
    bare = stripped(state)
    if _kind(bare) == "D":
        raise CheckpointError("this file holds a discriminator, and only generators translate")
    return _checked(Contents("authors", _told({_UNNAMED: bare}, {}, state), unnamed=bare))


def generators(state: Mapping[str, Any]) -> tuple[Config, dict[str, Weights]]:
    """Settings and generators, "G_A2B" and "G_B2A", of any file that `recognises` accepts; averages where it has them.

    One of the two may be missing. A bare state dict does not say which of them it is: it serves both directions, as one
    and the same object.

    Raises:
        CheckpointError: a network of another architecture, a file without a generator, or a damaged one.
    """
    found = contents(state)
    if found.unnamed is not None:
        return found.config, dict.fromkeys(GENERATORS, found.unnamed)
    held = {name: net for name, net in (found.nets | found.ema).items() if name in GENERATORS}
    if not held:
        raise CheckpointError(f"there is no generator in it, only {', '.join(found.nets)}")
    return found.config, held


def missing_for_training(found: Contents) -> list[str]:
    """The networks that a run would have to start with and that are not there."""
    return [name for name in NETS if name not in found.nets]


def require_for_training(found: Contents) -> None:
    """Check that all networks are there that a run starts with.

    Raises:
        CheckpointError: some are missing; the message names them, what the file is good for all the same, and which
            file has them.
    """
    missing = missing_for_training(found)
    if not missing:
        return
    held = [name for name in NETS if name in found.nets]
    if found.ema:
        held.append(f"the averages of {' and '.join(found.ema)}")
    translates = found.ema or found.unnamed is not None or any(name in found.nets for name in GENERATORS)
    raise CheckpointError(
        f"a run starts with all five networks, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
        f"there: this file holds {', '.join(held) or 'one generator'} only. They are in a training checkpoint of the "
        "authors' code (checkpoint/ck.pt) and in a run's checkpoint.pt"
        + ("; this one translates (anifast translate)" if translates else "")
    )


def architecture(config: Config) -> dict[str, Any]:
    """The settings that shape the networks; the same for networks of the same shapes."""
    names = ("size", "num_down", "latent_dim", "n_mlp", "n_res", "lr_mlp", "generator", "discriminator")
    # 0.1 makes 51.2 channels, of which 51 are built
    return {name: getattr(config, name) for name in names} | {"channel_multiplier": config.base_channels / 512}


class _Undrawn(TorchFunctionMode):
    """Random numbers inside are whatever the memory holds: for networks whose weights come out of a file."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def build(name: str, config: Config) -> nn.Module:
    """The network that a run calls `name`; its weights are not drawn and have to be filled from a file."""
    with _Undrawn():  # neither takes the time to draw them nor the numbers from torch's generator
        if name == "D_L":
            return LatentDiscriminator(config.latent_dim)
        return build_generator(config) if name in GENERATORS else build_discriminator(config)


def _held(part: Any, label: str, names: tuple[str, ...]) -> dict[str, Weights]:
    """Those of the networks `names` that a part of an own checkpoint has."""
    if not isinstance(part, Mapping):
        raise CheckpointError(f"damaged: {label} is a {type(part).__name__}, expected a dict of networks")
    return {name: plain(part[name], f"{label}.{name}") for name in names if name in part}


def _kind(bare: Mapping[str, Tensor]) -> str | None:
    """Whether a bare state dict is a generator ("G") or a discriminator ("D") of these."""
    if any(key.startswith("encoder.stem.") for key in bare) and any(k.startswith("adain_bottleneck.") for k in bare):
        return "G"
    return "D" if any(key.startswith(("l_branch.", "g_branch.", "fc.4.fc.")) for key in bare) else None


def _whole(number: Any) -> int | None:
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _told(nets: Mapping[str, Weights], ema: Mapping[str, Weights], state: Mapping[str, Any]) -> Config:
    """The settings that the networks of an authors' file tell by their keys and shapes.

    The file's own "config", which only our exports have, says the rest; the preset of that version does otherwise.
    """
    painters = {name: net for name, net in nets.items() if name[0] != "D"}
    painters |= {f"{name}_ema": net for name, net in ema.items()}
    if not painters:
        raise CheckpointError(f"there is no generator in it, only {', '.join(nets)}")
    told = agreed({label: _generator_settings(net, label) for label, net in painters.items()})
    judges = {name: {"discriminator": _version(nets[name], name)} for name in ("D_A", "D_B") if name in nets}
    told |= agreed(judges)
    if isinstance(state.get("config"), Mapping):
        return settled(make, None, {**state["config"], **told}, _SETTINGS)
    default = "v2" if told["generator"] == "v2" else "v1.1"
    preset = VERSIONS.get((told["generator"], told.get("discriminator", default)))
    return settled(make, preset, told, "networks of these shapes")


def _generator_settings(net: Weights, label: str) -> dict[str, Any]:
    what = f"{label} is no generator of GANs N' Roses, or a damaged one"
    n_res = count(net, "adain_bottleneck")
    latent_dim = shape_of(net, "mapping.0.weight", 2, what, "[512, latent_dim]")[1]
    # convolutions that halve down to 4 x 4, flatten, two linear layers
    last = max(count(net, "encoder.style") - 1, 2)
    length, base = shape_of(net, f"encoder.style.{last}.weight", 2, what, f"[{latent_dim}, channels]")
    if length != latent_dim:
        raise CheckpointError(
            f"{what}: encoder.style.{last}.weight has shape {[length, base]}, expected [{latent_dim}, channels], as "
            f"long as the codes that mapping.0.weight takes"
        )
    form = "[channels, channels, k, k] with k = 1 (v1) or 3 (v2)"
    content = shape_of(net, "encoder.content.0.0.weight", 4, what, form)
    if content[3] not in (1, 3):
        raise CheckpointError(f"{what}: encoder.content.0.0.weight has shape {list(content)}, expected {form}")
    counts = {
        "encoder.stem": count(net, "encoder.stem") - 1 - n_res,
        "convs": count(net, "convs") / 2,
        "to_rgbs": count(net, "to_rgbs"),
    }
    if len(set(counts.values())) > 1:
        tell = ", ".join(f"{key} {value:g}" for key, value in counts.items())
        raise CheckpointError(f"{what}: the parts of it tell different numbers of halvings (num_down): {tell}")
    num_down = counts["to_rgbs"]
    return {
        "size": 4 * 2 ** min(last - 2 + num_down, 30),
        "num_down": num_down,
        "latent_dim": latent_dim,
        "n_mlp": count(net, "mapping"),
        "n_res": n_res,
        "channel_multiplier": base / 512,
        "generator": "v1" if content[3] == 1 else "v2",
    }


def _version(net: Weights, label: str) -> str:
    """Of a discriminator: v2 has no layers of its own in front of the diversity head, v1 two and v1.1 three."""
    layers = count(net, "g_std")
    if layers == 0 and "g_adv.weight" in net:
        return "v2"
    if layers in (3, 4):
        return "v1" if layers == 3 else "v1.1"
    raise CheckpointError(
        f"{label} is no discriminator of GANs N' Roses, or a damaged one: expected g_std.2.weight (v1), g_std.3.weight "
        f"(v1.1) or g_adv.weight (v2), but it has {', '.join(list(net)[:4])}"
    )


def _checked(found: Contents) -> Contents:
    """`found` with every network's keys in the order of its parameters, and all of its blur kernels."""
    built: dict[str, nn.Module] = {}

    def fit(weights: Weights, name: str, label: str) -> Weights:
        kind = "G" if name in GENERATORS else name if name == "D_L" else "D"
        if kind not in built:
            built[kind] = build(name, found.config)
        return _fitted(built[kind], weights, label, found.config)

    theirs = found.origin == "authors"
    inner = "" if theirs else "nets."
    return Contents(
        found.origin,
        found.config,
        {name: fit(net, name, f"{inner}{name}") for name, net in found.nets.items()},
        {name: fit(net, name, f"{name}_ema" if theirs else f"ema.{name}") for name, net in found.ema.items()},
        found.steps,
        None if found.unnamed is None else fit(found.unnamed, "G_A2B", _UNNAMED),
    )


def _fitted(net: nn.Module, weights: Weights, label: str, config: Config) -> Weights:
    """`weights` in the order of `net`, which takes them over; the tensors stay the file's."""
    c = config
    where = f"size {c.size}, num_down {c.num_down}, channel_multiplier {c.base_channels / 512:g}"
    if label.rpartition(".")[2][0] == "D":
        where = f"size {c.size}, channel_multiplier {c.base_channels / 512:g}, discriminator {c.discriminator}"
    return fitted(net, weights, label, where)
