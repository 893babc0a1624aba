"""Files of Twin-GAN: own checkpoints and runs, and the author's TensorFlow checkpoints.

Networks are called E, G, D_s, D_t, and E_style where styles are embedded. A run has a folder for each phase with a
checkpoint of all of them as they were in it; the run is what its last phase is:

    8to16/checkpoint.pt  {"format", "config", "stage", "alpha", "nets", "ema", "optim", "tags", ...}

The author's files are read by `tensorflow`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anifast.engine import state as files
from anifast.errors import CheckpointError
from anifast.systems.twingan import tensorflow
from anifast.systems.twingan.config import STAGES, Config, make
from anifast.systems.twingan.networks import empty
from anifast.systems.weights import Weights, fitted, plain, settled

#: Marks an own checkpoint, with the version of its contents.
FORMAT = "anifast.twingan/1"
#: The networks of a run; E_style where `config.style` asks for it.
NETS = ("E", "G", "D_s", "D_t", "E_style")
#: Those that translate, which are averaged.
AVERAGED = ("E", "G", "E_style")

#: Settings that the author's files do not tell.
UNTOLD = ("pixel_norm", "equalized")

_PAINTING = ("base_channels", "max_channels", "norm", "equalized", "spectral_norm", "spectral_norm_g")
_SHAPING = {
    "E": (*_PAINTING, "pixel_norm", "fade_skip"),
    "G": (*_PAINTING, "pixel_norm", "style", "tags"),
    "D_s": ("base_channels", "equalized", "spectral_norm"),
    "D_t": ("base_channels", "equalized", "spectral_norm", "tags"),
    "E_style": (*_PAINTING, "pixel_norm", "style"),
}
_SETTINGS = "the settings in this file"


@dataclass(frozen=True)
class Contents:
    """What a file, a run or a folder of any kind holds. Tensors are the file's own.

    Attributes:
        origin: "anifast" or "tensorflow".
        config: the settings of the run, or what can be told of them.
        stage: the phase that the networks are of.
        alpha: how far its last layers have faded in, 0 to 1; 1 where none fade.
        nets: name -> weights by our keys; those of `NETS` that are there.
        tags: (number, name, group) of each tag, in the order of the networks' numbers; None: no conditions.
        averaged: whether the networks that translate are averages over the steps of a training.
        images: pictures per domain that the phase has seen, where the file tells.
        undecided: settings that the file does not tell, and that were not told otherwise; `config` has the usual.
        targets: the domains that it can paint; a frozen graph of the author's has one of them.
    """

    origin: str
    config: Config
    stage: str
    alpha: float = 1.0
    nets: dict[str, Weights] = field(default_factory=dict)
    tags: tuple[tuple[int, str, int], ...] | None = None
    averaged: bool = False
    images: int | None = None
    undecided: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("B", "A")


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether a loaded dict is a checkpoint of Twin-GAN, or what `gather` gives."""
    if "format" in state:
        return str(state["format"]).startswith("anifast.twingan/")
    return isinstance(state.get("tensorflow"), Mapping)


def gather(path: Path) -> dict[str, Any] | None:
    """A run folder, or the author's files.

    Args:
        path: a run folder; a folder with a TensorFlow checkpoint, or with one for each phase; one of the files of such
            a checkpoint, or what their names begin with.

    Returns:
        Of a run the checkpoint of the last phase that has one; of the author's files {"tensorflow": name -> tensor};
        None where `path` is neither.

    Raises:
        CheckpointError: one of the files cannot be read, the run has no checkpoint yet, or its phases are not its own.
    """
    if not path.is_dir() or tensorflow.is_folder(path):
        index = tensorflow.index_of(path)
        return None if index is None else {"tensorflow": tensorflow.read(index)}
    if (path / files.NAME).is_file():
        return None  # a phase's folder, which is read as any run folder is
    settings = _own_run(path)
    if settings is not None:
        return _last_phase(path, settings)
    for stage in reversed(STAGES):
        if tensorflow.is_folder(path / stage):
            return gather(path / stage)
    return None


def _own_run(path: Path) -> Mapping[str, Any] | None:
    """The settings of a run's folder."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, Mapping) and found.get("system") == "twingan" else None


def _last_phase(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    begun = [stage for stage in STAGES if (path / stage / files.NAME).is_file()]
    if not begun:
        raise CheckpointError(f"{path}: this run of Twin-GAN has no checkpoint yet; let it train on (--resume)")
    size = settings.get("size")
    planned = STAGES[: STAGES.index(str(size)) + 1] if str(size) in STAGES else STAGES
    foreign = next((stage for stage in begun if stage not in planned), None)
    if foreign is not None:
        raise CheckpointError(
            f"{path}: {foreign}/{files.NAME} is no phase of this run, which config.json lets grow to {size} px; remove "
            f"the folder {foreign}, or give it as the checkpoint ({path / foreign})"
        )
    state = files.load(path / begun[-1])
    if not recognises(state):
        raise CheckpointError(f"{path / begun[-1] / files.NAME}: no checkpoint of Twin-GAN is in it")
    if state.get("stage") != begun[-1]:
        raise CheckpointError(
            f"{path / begun[-1] / files.NAME}: is a checkpoint of phase {state.get('stage')!r}, and lies in the folder "
            f"of {begun[-1]}"
        )
    return state


def header(config: Config) -> dict[str, Any]:
    """What stands in a checkpoint beside the state. Where the run once started is not asked again when it resumes."""
    return {"format": FORMAT, "config": config.as_dict() | {"start_from": None}}


def config_of(state: Mapping[str, Any]) -> Config:
    """The settings in an own checkpoint.

    Raises:
        CheckpointError: not an own checkpoint of Twin-GAN, one of a newer version, or a damaged one.
    """
    if state.get("format") is None and recognises(state):
        raise CheckpointError(
            "this is a checkpoint of the author's code, which no run goes on from; begin one with its weights by "
            "--start-from"
        )
    return settled(make, None, files.settings_of(state, FORMAT, "Twin-GAN"), _SETTINGS)


def averaged(state: Mapping[str, Any]) -> bool:
    """Whether a file holds averaged networks, which then are the ones to use."""
    return bool(state.get("ema"))


def architecture(config: Config, *nets: str) -> dict[str, Any]:
    """The settings that make networks what they are beside their weights and phase; the same for the same functions.

    Args:
        config: all settings.
        nets: the networks' names; none: all.
    """
    chosen = nets or tuple(name for name in NETS if name != "E_style" or config.style)
    found = {name: getattr(config, name) for net in chosen for name in _SHAPING[net]}
    if any(net.startswith("D_") for net in chosen):
        found["max_channels_d"] = config.max_channels_d or config.max_channels
    if "D_t" in chosen and config.tags:
        found["tag_width"] = config.tag_width
    if "G" in chosen:
        found |= {"unet": config.unet, "unet_max": config.skips_up_to}
    found["self_attention"] = config.self_attention
    return found | ({"attention_size": config.attention_size} if config.self_attention else {})


def contents(
    state: Mapping[str, Any], *, live: bool = False, pixel_norm: bool | None = None, equalized: bool | None = None
) -> Contents:
    """The networks and settings of anything that `recognises` accepts; how many there are depends on it.

    Args:
        state: it.
        live: take the networks in training, not their averages, where there are both.
        pixel_norm: whether the networks have pixel norm, for the author's files, which do not tell; None: undecided.
        equalized: the same of the equalised learning rate.

    Raises:
        CheckpointError: networks that contradict one another or the settings, or a damaged file; the message names the
            network and the key, what it is and what was expected. An own file is told what it says itself.
    """
    told = {"pixel_norm": pixel_norm, "equalized": equalized}
    if "format" not in state:
        given = {name: value for name, value in told.items() if value is not None}
        c = tensorflow.convert(state["tensorflow"], given)
        undecided = tuple(name for name in told if name not in given)
        return Contents("tensorflow", c.config, c.stage, c.alpha, c.nets, undecided=undecided, targets=c.targets)
    config = config_of(state)
    for name, value in told.items():
        if value is not None and value != getattr(config, name):
            raise CheckpointError(f"{name} {value}: this file was trained with {name} {getattr(config, name)}")
    return _own(state, config, live)


def _own(state: Mapping[str, Any], config: Config, live: bool) -> Contents:
    stage = state.get("stage")
    if stage not in config.phases:
        raise CheckpointError(f"damaged: its phase is {stage!r}, expected one of {', '.join(config.phases)}")
    alpha = state.get("alpha", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise CheckpointError(f"damaged: alpha is {alpha!r}, expected a number from 0 to 1")
    tags = _tags(state.get("tags"), config)
    held: dict[str, tuple[str, Weights]] = {}
    for part, names in (("ema", AVERAGED), ("nets", NETS)):
        found = state.get(part) or {}
        if not isinstance(found, Mapping):
            raise CheckpointError(f"damaged: {part} is a {type(found).__name__}, expected a dict of networks")
        unknown = next((name for name in found if name not in names), None)
        if unknown is not None:
            raise CheckpointError(f"damaged: {part} has {unknown}; expected {', '.join(names)}")
        for name, net in found.items():
            if name not in held or (live and part == "nets"):
                held[name] = (f"{part}.{name}", plain(net, f"{part}.{name}"))
    if not held:
        raise CheckpointError(f"damaged: nets holds none of {', '.join(NETS)}")
    expected = empty(config, stage, len(tags or ()))
    if not held.keys() <= expected.keys():
        raise CheckpointError("damaged: it has E_style, and the setting style is 0")
    nets = {
        name: fitted(expected[name], held[name][1], held[name][0], _where(config, stage, name))
        for name in NETS
        if name in held
    }
    ema = any(label.startswith("ema.") for label, _ in held.values())
    targets = tuple(target for target in ("B", "A") if target in state.get("targets", ("B", "A")))
    images = state.get("images")
    seen = images if isinstance(images, int) else None
    return Contents("anifast", config, stage, float(alpha), nets, tags, ema, seen, targets=targets)


def _where(config: Config, stage: str, name: str) -> str:
    """The settings that shape a network, for messages."""
    return ", ".join(f"{key} {value}" for key, value in {"phase": stage, **architecture(config, name)}.items())


def _tags(rows: Any, config: Config) -> tuple[tuple[int, str, int], ...] | None:
    """The list of tags in a checkpoint."""
    if not config.tags:
        return None
    try:
        found = tuple((int(number), str(name), int(group)) for number, name, group in rows)
    except (TypeError, ValueError) as error:
        raise CheckpointError("damaged: the list of its tags is none, expected rows of number, name, group") from error
    if not found:
        raise CheckpointError("damaged: the list of its tags is empty")
    return found


def build(found: Contents, *names: str) -> dict[str, nn.Module]:
    """Networks with their weights, for evaluation.

    Args:
        found: what a file holds.
        names: of the networks wanted; none: all that are there.

    Raises:
        CheckpointError: one of them is not there; the message says what is.
    """
    for name in names:
        if name not in found.nets:
            raise CheckpointError(f"there is no {name} in it, only {', '.join(found.nets) or 'nothing'}")
    every = empty(found.config, found.stage, len(found.tags or ()))
    nets = {name: every[name] for name in names or found.nets}
    for name, net in nets.items():
        net.load_state_dict(found.nets[name], assign=True)
        net.eval()
    return nets


def networks_of(
    state: Mapping[str, Any], live: bool = True, *, pixel_norm: bool | None = None, equalized: bool | None = None
) -> tuple[str, dict[str, nn.Module]]:
    """The phase of a checkpoint of any kind and its networks, for another to begin with what they have learnt.

    Args:
        state: what was read.
        live: the networks in training, not their averages, where there are both.
        pixel_norm: of the author's files, see `contents`.
        equalized: the same.

    Raises:
        CheckpointError: see `contents`.
    """
    found = contents(state, live=live, pixel_norm=pixel_norm, equalized=equalized)
    if len(found.targets) < 2:
        raise CheckpointError(
            "this is a frozen graph of one direction, and a run starts with both; give the checkpoint it was made of"
        )
    return found.stage, build(found)


def hash_of(found: Contents) -> str:
    """What embeddings depend on as a hexadecimal number: the encoder's weights and what it makes of them.

    Raises:
        CheckpointError: there is no encoder.
    """
    if "E" not in found.nets:
        raise CheckpointError("there is no encoder E in it")
    told = {"stage": found.stage, "alpha": found.alpha, **architecture(found.config, "E")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for key in sorted(found.nets["E"]):
        value = found.nets["E"][key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
