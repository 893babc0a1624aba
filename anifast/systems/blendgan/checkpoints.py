"""Files of BlendGAN: own checkpoints and runs, the authors' files, and StyleGAN2's in rosinality's format.

Networks are called G, E_style, projector, psp, D_face, D_style, D_latent here. A run has a folder for each stage:

    style/checkpoint.pt  E_style, projector
    gan/checkpoint.pt    G, D_face, D_style, D_latent
    psp/checkpoint.pt    psp

The authors have published these, each by itself or in one folder; the fourth is what `anifast convert` adds:

    blendgan.pt         g_ema: G, with E_style under `embedder.`; latent_avg and truncation where they are there
    psp_encoder.pt      psp under `encoder.`, in a `state_dict` or not; latent_avg
    style_encoder.pt    E_style; no program of theirs reads it, so it is found by its keys
    discriminators.pt   d_face, d_style, d_style_latent

Keys inside networks are the authors', but for E_style's backbone: `embedder.net.features.0.weight` here is
`embedder.feature_extractor.vgg_layers.0.weight` there. A folded predictor and a full one are the same function
(`style_encoder_weights`); a file holds either. What the networks of a file without settings are is read from shapes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifast.engine import state as files
from anifast.errors import CheckpointError
from anifast.nn import stylegan2, stylegan2_checkpoints
from anifast.nn.backbones import EXTRA_STATE, VGG, Backbone, SqueezeNet, VGG19Compressed
from anifast.nn.perceptual import fold_weight, unfold_weight
from anifast.nn.stylegan2 import channels
from anifast.systems.blendgan.config import SIZES, Config, make
from anifast.systems.blendgan.networks import (
    Projector,
    build_discriminator,
    build_generator,
    build_latent_discriminator,
    build_style_encoder,
)
from anifast.systems.blendgan.psp import PSPEncoder, mean_of
from anifast.systems.weights import Weights, agreed, count, fitted, key_of, plain, settled, shape_of, stripped

#: Marks an own checkpoint, with the version of its contents.
FORMAT = "anifast.blendgan/1"
#: Stage -> its networks.
STAGE_NETS = {"style": ("E_style", "projector"), "gan": ("G", "D_face", "D_style", "D_latent"), "psp": ("psp",)}
#: All of them.
NETS = ("G", "E_style", "projector", "psp", "D_face", "D_style", "D_latent")
#: Names of the authors' files.
AUTHORS = ("blendgan.pt", "psp_encoder.pt", "style_encoder.pt", "discriminators.pt")
#: Own name of a discriminator -> its name in `discriminators.pt`.
JUDGES = {"D_face": "d_face", "D_style": "d_style", "D_latent": "d_style_latent"}
#: Where the authors' files have the backbone of E_style, and where it is here.
THEIR_BACKBONE, OUR_BACKBONE = "embedder.feature_extractor.", "embedder.net."
#: Name under which `anifast convert` puts the settings into the authors' files; their code does not read it.
OURS = "anifast"
#: How many faces the mean of w is over, where a file does not tell it.
MEAN_OF = 4096

_SHAPING = {
    "G": ("size", "style_dim", "n_mlp", "channel_multiplier", "base_channels"),
    "E_style": ("backbone", "style_side", "style_dim", "style_mlp"),
    "projector": ("style_dim", "projection"),
    "psp": ("size", "psp_side"),
    "D_face": ("size", "channel_multiplier", "base_channels"),
    "D_style": ("size", "channel_multiplier", "base_channels"),
    "D_latent": ("size", "style_dim", "channel_multiplier", "base_channels", "normalised"),
}
_BACKBONES: dict[str, Callable[[], Backbone]] = {
    "vgg19": partial(VGG, 19),
    "vgg16": partial(VGG, 16),
    "random": partial(VGG, 16),
    "vgg19_16x": VGG19Compressed,
    "squeezenet1_0": partial(SqueezeNet, "1.0", classifier=False),
}
_FIRST = "embedder_mlp.0.weight"
_EXTRA = OUR_BACKBONE + EXTRA_STATE
#: How deep the networks of a file lie inside other dicts.
_DEPTH = 3
_SETTINGS = "the settings in this file"


@dataclass(frozen=True)
class Contents:
    """What a file, a run or a folder of any kind holds. Tensors are the file's own, on disk until they are used.

    Attributes:
        origin: "anifast"; "authors"; "stylegan2", whose G is StyleGAN2's: it lacks `embedding` and `add_weight`.
        config: the settings of the run, or what can be told of them: what shapes the networks that are there. Its
            `folded` is how E_style's weights are.
        nets: name -> weights by our keys; those of `NETS` that are there. psp lacks `latent_avg` where no file tells
            it, which is then the mean of the generator that it is used with.
        latent_avg: the mean of w, a row for each slot [L, D], where a file tells it.
        truncation: what the file wants to be painted with.
        ema: whether G is an average over the steps of a training.
        steps: whole steps behind it, where the file tells.
    """

    origin: str
    config: Config
    nets: dict[str, Weights] = field(default_factory=dict)
    latent_avg: Tensor | None = None
    truncation: float | None = None
    ema: bool = False
    steps: int | None = None


@dataclass(frozen=True)
class _Net:
    """A network in a file: what messages call it, its weights by our keys, and what belongs to them beside tensors."""

    label: str
    weights: Weights
    extra: Any = None


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether a loaded dict is a file of BlendGAN or a StyleGAN2 of rosinality's, or what `gather` gives."""
    if "format" in state:
        return str(state["format"]).startswith("anifast.blendgan/")
    if "authors" in state:
        held = state["authors"]
        return "nets" not in state and isinstance(held, Mapping) and bool(held) and set(held) <= {*AUTHORS}
    return any(_kind(table) is not None for _, table in _tables(state))


def gather(path: Path) -> dict[str, Any] | None:
    """A file or folder that is BlendGAN's, its weights on disk until they are used.

    Args:
        path: a run folder, that of one of its stages, a folder with some of the authors' files, or one file.

    Returns:
        Of a run {"format", "config", "parts": stage -> its checkpoint}, of the stages that have one; of the authors'
        folder {"authors": name of a file -> what is in it}; of a file what is in it. None where `path` is nothing of
        these.

    Raises:
        CheckpointError: one of several files cannot be read, or the run has no checkpoint yet.
    """
    if path.is_file():
        return _single(path)
    if (path / files.NAME).is_file():
        return _single(path / files.NAME)
    parts = {}
    for stage in STAGE_NETS:
        if (path / stage / files.NAME).is_file():
            found = files.load(path / stage, mmap=True)
            if recognises(found):
                parts[stage] = found
            elif _is_own_run(path):
                raise CheckpointError(f"{path / stage}: no checkpoint of BlendGAN is in it")
    if parts:
        newest = next(parts[stage] for stage in ("gan", "style", "psp") if stage in parts)
        return {"format": FORMAT, "config": newest.get("config"), "parts": parts}
    held = {name: stylegan2_checkpoints.read(path / name) for name in AUTHORS if (path / name).is_file()}
    if held:
        return {"authors": held}
    if _is_own_run(path):
        raise CheckpointError(f"{path}: this run of BlendGAN has no checkpoint yet; let it train on (--resume)")
    return None


def _single(path: Path) -> dict[str, Any] | None:
    try:
        found = stylegan2_checkpoints.read(path)
    except CheckpointError:
        if path.suffix == ".pkl":  # NVIDIA's networks, which need another answer
            raise
        return None  # damaged, or of another kind: whoever reads it next says what is wrong
    return found if recognises(found) else None


def _is_own_run(path: Path) -> bool:
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, Mapping) and found.get("system") == "blendgan"


def header(config: Config) -> dict[str, Any]:
    """What stands in a checkpoint beside the state."""
    return {"format": FORMAT, "config": config.as_dict()}


def config_of(state: Mapping[str, Any]) -> Config:
    """The settings in an own checkpoint or run.

    Raises:
        CheckpointError: not an own checkpoint of BlendGAN, one of a newer version, or a damaged one.
    """
    if state.get("format") is None and recognises(state):
        raise CheckpointError(
            "this is a file of the authors' code, which no run goes on from; begin one with its weights by "
            "--style-encoder and --start-from"
        )
    return settled(make, None, files.settings_of(state, FORMAT, "BlendGAN"), _SETTINGS)


def averaged(state: Mapping[str, Any]) -> bool:
    """Whether a file holds an averaged generator, which then is the one to use."""
    if "format" in state:
        parts = state.get("parts")
        return "ema" in (parts.get("gan", {}) if isinstance(parts, Mapping) else state)
    authors = state.get("authors")
    held = authors.values() if isinstance(authors, Mapping) else [state]
    return any(_last(label) == "g_ema" and _kind(table) == "G" for one in held for label, table in _tables(one))


def architecture(config: Config, *nets: str) -> dict[str, Any]:
    """The settings that make networks what they are beside their weights; the same for the same functions of them.

    A folded predictor and a full one count as the same: each can be made of the other (`style_encoder_weights`).

    Args:
        config: all settings.
        nets: the networks' names; none: all.
    """
    names = dict.fromkeys(name for net in nets or NETS for name in _SHAPING[net])
    found = {name: getattr(config, name) for name in names}
    if "channel_multiplier" in found:  # 0.1 makes 51.2 channels, of which 51 are built
        found["channel_multiplier"] = _multiplier(channels(64, config.channel_multiplier, config.base_channels), config)
    return found


def _multiplier(width: int, config: Config | int) -> float:
    """The channel_multiplier that gives maps of 64 x 64 this width, which tells all others."""
    return 2 * width / (config if isinstance(config, int) else config.base_channels)


def contents(state: Mapping[str, Any], *, live: bool = False) -> Contents:
    """The networks and settings of anything that `recognises` accepts; how many there are depends on it.

    Args:
        state: it.
        live: take the generator that is in training, not its average, where there are both.

    Raises:
        CheckpointError: networks that contradict one another or the settings, or a damaged file; the message names the
            file and the key, what it is and what was expected.
    """
    if "format" in state:
        return _own(state, live)
    return _theirs(state, live)


def queue(state: Mapping[str, Any]) -> Tensor | None:
    """The style codes [n, style_dim] of the pictures that stage gan has seen last, or None where there are none."""
    parts = state.get("parts")
    held = parts.get("gan", {}) if isinstance(parts, Mapping) else state
    found = held.get("queue")
    codes = found.get("codes") if isinstance(found, Mapping) else None
    return codes.float() if isinstance(codes, Tensor) and codes.dim() == 2 else None


def build(name: str, config: Config) -> nn.Module:
    """The network that a run calls `name`, without weights: `load_state_dict(weights, assign=True)` has to follow.

    No random numbers are drawn and no memory is used.
    """
    if name == "E_style":
        with torch.device("meta"):
            backbone = _BACKBONES[config.backbone]()
        backbone.name = config.backbone
        backbone.to_empty(device="cpu")  # its constants do not come with weights
        with torch.device("meta"):
            return build_style_encoder(config, backbone.requires_grad_(False).eval())
    with torch.device("meta"):
        if name == "G":
            return build_generator(config)
        if name == "projector":
            return Projector(config.style_dim, config.projection)
        if name == "psp":
            return PSPEncoder(config.n_latent, config.psp_side)
        return build_latent_discriminator(config) if name == "D_latent" else build_discriminator(config)


def style_encoder_weights(weights: Mapping[str, Tensor], folded: bool, channels: Sequence[int]) -> Weights:
    """Weights of E_style with its first layer folded or full, whichever they are: the same function.

    Args:
        weights: of E_style, by our keys.
        folded: what is wanted.
        channels: of the backbone's maps, `StyleEncoder.embedder.channels`.

    Raises:
        CheckpointError: the first layer is of another width than either.
    """
    first = weights[_FIRST]
    is_folded = _is_folded(first, channels, "E_style")
    if is_folded == folded:
        return dict(weights)
    wide = first.detach() if first.dtype == torch.float64 else first.detach().float()
    changed = (fold_weight if folded else unfold_weight)(wide, channels)
    return {key: changed.to(first.dtype) if key == _FIRST else value for key, value in weights.items()}


def _is_folded(first: Tensor, channels: Sequence[int], label: str) -> bool:
    full, half = sum(c * c for c in channels), sum(c * (c + 1) // 2 for c in channels)
    if first.dim() != 2 or first.shape[1] not in (full, half):
        raise CheckpointError(
            f"{label}: {_FIRST} has shape {list(first.shape)}, expected [style_dim, {full}], or [style_dim, {half}] "
            f"folded: the Gram matrices of maps of {', '.join(map(str, channels))} channels"
        )
    return first.shape[1] == half


@torch.no_grad()
def mean_latent(found: Contents, faces: int = MEAN_OF) -> Tensor:
    """The mean of w [L, D]: the file's, else that of `faces` random faces, always the same ones.

    Raises:
        CheckpointError: neither is there.
    """
    if found.latent_avg is not None:
        return found.latent_avg
    if "G" not in found.nets:
        raise CheckpointError("latent_avg is missing, and the generator that it could be computed by")
    c = found.config
    net = build("G", c) if found.origin != "stylegan2" else _stylegan2(c)
    assert isinstance(net, stylegan2.Generator)
    net.load_state_dict(found.nets["G"], assign=True)
    z = torch.randn(faces, c.style_dim, generator=torch.Generator().manual_seed(0))
    return net.float().get_latent(z).mean(0, keepdim=True).expand(c.n_latent, -1).contiguous()


def _stylegan2(config: Config) -> stylegan2.Generator:
    c = config
    with torch.device("meta"):
        return stylegan2.Generator(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, base_channels=c.base_channels)


def _fitted(name: str, net: _Net, config: Config, blends: bool = True) -> Weights:
    """Weights in the order of our network's keys; those of E_style with what belongs to them beside tensors."""
    weights = net.weights
    # psp takes the mean of w from elsewhere where its file has none
    lacks = name == "psp" and "latent_avg" not in weights
    if lacks:
        weights = weights | {"latent_avg": torch.zeros(config.n_latent, 512)}
    empty = build(name, config) if blends or name != "G" else _stylegan2(config)
    settings = architecture(config, name).items()
    where = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings)
    found = fitted(empty, weights, net.label, where)
    if lacks:
        del found["latent_avg"]
    return found | ({_EXTRA: net.extra} if net.extra is not None else {})


def _mean(value: Any, config: Config, label: str) -> Tensor | None:
    """A file's latent_avg as [L, D]."""
    if value is None:
        return None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise CheckpointError(f"damaged: {label}latent_avg is of type {type(value).__name__}, expected a tensor")
    try:
        found = mean_of(value, config.n_latent)
    except ValueError as error:
        raise CheckpointError(f"{label}{error} ({config.size} pixels have {config.n_latent} slots)") from error
    if found.shape[1] != config.style_dim:
        raise CheckpointError(
            f"{label}latent_avg has shape {list(value.shape)}, expected {config.style_dim} numbers for each slot"
        )
    return found.float()


def _truncation(value: Any, label: str) -> float | None:
    if value is None:
        return None
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise CheckpointError(f"damaged: {label}truncation is {value!r}, expected a number")
    return float(number)


# --- own checkpoints


def _own(state: Mapping[str, Any], live: bool) -> Contents:
    parts = state.get("parts", {"": state})
    if not isinstance(parts, Mapping) or not parts:
        raise CheckpointError("damaged: the stages of the run are missing")
    held: dict[str, Contents] = {}
    for stage, part in parts.items():
        label = f"{stage}/{files.NAME}" if stage else ""
        with files.about(label):
            if stage and part.get("stage") != stage:
                raise CheckpointError(f"is a checkpoint of stage {part.get('stage')!r}, expected {stage}")
            held[label] = _own_part(part, live)
    settings = agreed({label: architecture(one.config, *one.nets) for label, one in held.items()})
    painting = next((one for one in held.values() if "G" in one.nets), next(iter(held.values())))
    encoding = next((one for one in held.values() if "E_style" in one.nets), painting)
    nets = {name: net for one in held.values() for name, net in one.nets.items()}
    return dataclasses.replace(
        painting,
        config=dataclasses.replace(painting.config, **settings, folded=encoding.config.folded),
        nets={name: nets[name] for name in NETS if name in nets},
    )


def _own_part(state: Any, live: bool) -> Contents:
    """The networks of a stage, or of a file of several stages' networks that `anifast convert` has written."""
    config = config_of(state)
    stage, steps = state.get("stage"), state.get("steps")
    if stage is not None and stage not in STAGE_NETS:
        raise CheckpointError(f"damaged: its stage is {stage!r}, expected one of {', '.join(STAGE_NETS)}")
    names = NETS if stage is None else STAGE_NETS[stage]
    held: dict[str, Any] = {}
    for part in ("nets", "ema"):
        found = state.get(part, {})
        if not isinstance(found, Mapping):
            raise CheckpointError(f"damaged: {part} is a {type(found).__name__}, expected a dict of networks")
        known = names if part == "nets" else tuple(name for name in names if name == "G")
        unknown = next((name for name in found if name not in known), None)
        if unknown is not None:
            raise CheckpointError(
                f"damaged: {part} has {unknown}; the networks of {stage or 'a run'} are {', '.join(names)}"
            )
        held |= {f"{part}.{name}": net for name, net in found.items()}
    if not held:
        raise CheckpointError(f"damaged: nets holds none of {', '.join(names)}")
    ema = "ema.G" in held and not (live and "nets.G" in held)
    if "ema.G" in held:
        held.pop("nets.G" if ema else "ema.G", None)
    nets: dict[str, Weights] = {}
    for label, net in held.items():
        name = label.partition(".")[2]
        apart = _apart(net, label)
        if name == "E_style":
            config = _with_fold(config, apart)
        nets[name] = _fitted(name, apart, config)
    return Contents(
        "anifast",
        config,
        {name: nets[name] for name in NETS if name in nets},
        _mean(state.get("latent_avg"), config, ""),
        _truncation(state.get("truncation"), ""),
        ema,
        steps if isinstance(steps, int) else None,
    )


def _apart(net: Any, label: str) -> _Net:
    """The tensors of a state dict, and what says which normalisation a backbone's weights want."""
    extra = None
    if isinstance(net, Mapping):
        others = {key: value for key, value in net.items() if isinstance(key, str) and key_of(key) == _EXTRA}
        extra = next(iter(others.values()), None)
        net = {key: value for key, value in net.items() if key not in others}
    return _Net(label, plain(net, label), extra)


def _with_fold(config: Config, net: _Net) -> Config:
    """The settings with `folded` as these weights of E_style are."""
    if _FIRST not in net.weights:
        raise CheckpointError(f"damaged: {net.label}: {_FIRST} is missing")
    folded = _is_folded(net.weights[_FIRST], gram_channels(config), net.label)
    return dataclasses.replace(config, folded=folded)


def gram_channels(config: Config) -> tuple[int, ...]:
    """Channels of the maps whose Gram matrices E_style reads."""
    net = build("E_style", config)
    found: tuple[int, ...] = net.embedder.channels  # type: ignore[union-attr, assignment]
    return found


# --- files of the authors, and of StyleGAN2


def _last(label: str) -> str:
    return label.rpartition(".")[2]


def _tables(state: Any, label: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict with tensors in a file, itself included: its place in dots, and the dict."""
    if not isinstance(state, Mapping):
        return
    if any(isinstance(value, Tensor) and isinstance(key, str) for key, value in state.items()):
        yield label, state
    for key, value in state.items() if depth else ():
        if isinstance(key, str):
            yield from _tables(value, f"{label}.{key}" if label else key, depth - 1)


def _kind(table: Mapping[str, Any]) -> str | None:
    """Which network a state dict is: G, D (of faces or stylized pictures), D_latent, psp, ...; None: another."""
    keys = [key_of(key) for key in table if isinstance(key, str)]

    def has(*starts: str) -> bool:
        return all(any(key.startswith(start) for key in keys) for start in starts)

    if has("style.", "to_rgb1.", "convs."):
        return "G"
    if has("final_conv.", "convs."):
        return "D_latent" if has("l_style.") or has("l_out.") else "D" if has("final_linear.") else None
    if any(has(f"{prefix}input_layer.", f"{prefix}styles.") for prefix in ("", "encoder.")):
        return "psp"
    if any(key.endswith(_FIRST) for key in keys):
        return "E_style"
    return "projector" if keys and all(key.startswith("projector.") for key in keys) else None


def _theirs(state: Mapping[str, Any], live: bool) -> Contents:
    authors = state.get("authors")
    held: Mapping[str, Any] = authors if isinstance(authors, Mapping) else {"": state}
    nets: dict[str, _Net] = {}
    said: dict[str, dict[str, Any]] = {}
    averages: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    ema, truncation = False, None
    for file, one in held.items():
        prefix = f"{file}: " if file else ""
        if not isinstance(one, Mapping) or not any(_kind(table) for _, table in _tables(one)):
            raise CheckpointError(f"{prefix}no network of BlendGAN is in it")
        found, is_ema = _networks(one, prefix, live)
        ema = ema or is_ema
        for name, net in found.items():
            said[net.label] = _told(name, net)
            nets.setdefault(name, net)  # blendgan.pt, which is first, has what belongs together
        for name in ("G", "psp"):
            if name in found and one.get("latent_avg") is not None:
                averages.setdefault(name, (one["latent_avg"], prefix))
        truncation = _truncation(one.get("truncation"), prefix) if truncation is None else truncation
        if isinstance(one.get(OURS), Mapping):
            ours = {**one[OURS], **ours}
    blends = "G" not in nets or "add_weight" in nets["G"].weights
    told = agreed(said)
    if told.get("style_dim", 512) != 512:  # no encoder of photos gives such codes
        told["psp_iterations"] = 0
    config = settled(make, None, {**ours, **told}, "networks of these shapes")
    if "E_style" in nets:
        config = _with_fold(config, nets["E_style"])
    means = {name: _mean(value, config, prefix) for name, (value, prefix) in averages.items()}
    if "psp" in nets:
        weights = nets["psp"].weights
        inside = _mean(weights.pop("latent_avg", None), config, f"{nets['psp'].label}: ")
        mean = next((one for one in (means.get("psp"), inside, means.get("G")) if one is not None), None)
        if mean is not None:
            weights["latent_avg"] = mean
    try:
        fit = {name: _fitted(name, nets[name], config, blends) for name in NETS if name in nets}
    except CheckpointError as error:  # keys as they are in the file
        our_part, their_part = f"{OUR_BACKBONE}features.", f"{THEIR_BACKBONE}vgg_layers."
        raise CheckpointError(str(error).replace(our_part, their_part)) from error
    origin = "authors" if blends else "stylegan2"
    return Contents(origin, config, fit, means.get("G"), truncation, ema)


def _networks(state: Mapping[str, Any], prefix: str, live: bool) -> tuple[dict[str, _Net], bool]:
    """The networks of one file by own names, and whether its generator is an average."""
    tables: dict[str, dict[str, Mapping[str, Any]]] = {}
    for label, table in _tables(state):
        if (kind := _kind(table)) is not None:
            tables.setdefault(kind, {})[label] = table
    found: dict[str, _Net] = {}
    ema = False
    if "G" in tables:
        by_name = {_last(label): label for label in tables["G"]}
        order = ("g", "g_ema") if live else ("g_ema", "g")
        chosen = next((by_name[name] for name in order if name in by_name), None)
        if chosen is None and len(tables["G"]) > 1:
            raise CheckpointError(
                f"{prefix}holds several generators, {', '.join(tables['G'])}; expected them under g_ema and g"
            )
        label = next(iter(tables["G"])) if chosen is None else chosen
        ema = _last(label) == "g_ema"
        found |= _generator(tables["G"][label], prefix + (label or "the generator"))
    for label, table in tables.get("psp", {}).items():
        weights = stripped(table)
        if any(key.startswith("encoder.") for key in weights):
            weights = {key.removeprefix("encoder."): w for key, w in weights.items() if key.startswith("encoder.")}
        found.setdefault("psp", _Net(prefix + (label or "the encoder of photos"), weights))
    for label, table in tables.get("E_style", {}).items():
        for name, net in _style(table, prefix + (label or "the style encoder")).items():
            found.setdefault(name, net)
    for label, table in tables.get("projector", {}).items():
        found.setdefault("projector", _Net(prefix + (label or "the projector"), stripped(table)))
    judges = [(kind, label, table) for kind in ("D_latent", "D") for label, table in tables.get(kind, {}).items()]
    for kind, label, table in judges:
        name = kind if kind == "D_latent" else "D_style" if "style" in _last(label).lower() else "D_face"
        if name in found:
            raise CheckpointError(
                f"{prefix}holds several discriminators, {found[name].label.removeprefix(prefix)} and {label}, that "
                f"could be {name}; call them {', '.join(JUDGES.values())}"
            )
        found[name] = _Net(prefix + (label or "the discriminator"), stripped(table))
    return found, ema


def _generator(table: Mapping[str, Any], label: str) -> dict[str, _Net]:
    """G and, where it holds one, E_style."""
    inner = "embedder."
    own = {key: value for key, value in table.items() if isinstance(key, str) and not key_of(key).startswith(inner)}
    within = {
        key_of(key).removeprefix(inner): value
        for key, value in table.items()
        if isinstance(key, str) and key_of(key).startswith(inner)
    }
    found = {"G": _Net(label, stripped(own))}
    return found | (_style(within, f"{label}: embedder") if within else {})


def _style(table: Mapping[str, Any], label: str) -> dict[str, _Net]:
    """E_style and, where it is there, the projector, below whatever prefix they have."""
    keys = {key_of(key): value for key, value in table.items() if isinstance(key, str)}
    first = next((key for key in keys if key.endswith(_FIRST)), _FIRST)
    prefix = first.removesuffix(_FIRST)
    keys = {key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)}
    extra = keys.pop(THEIR_BACKBONE + EXTRA_STATE, keys.pop(_EXTRA, None))
    weights = {_our_key(key): value for key, value in keys.items() if isinstance(value, Tensor)}
    head = {key: value for key, value in weights.items() if key.startswith("projector.")}
    found = {"E_style": _Net(label, {key: value for key, value in weights.items() if key not in head}, extra)}
    return found | ({"projector": _Net(f"{label}: projector", head)} if head else {})


def _our_key(key: str) -> str:
    """Of E_style's keys in any of its files."""
    match = re.fullmatch(r"(?:.*\.)?(?:vgg_layers|features)\.(\d+\..+)", key)
    if match:
        return f"{OUR_BACKBONE}features.{match[1]}"
    return OUR_BACKBONE + key.removeprefix(THEIR_BACKBONE) if key.startswith(THEIR_BACKBONE) else key


def their_key(key: str) -> str:
    """A key of our E_style in the authors' class."""
    features = f"{OUR_BACKBONE}features."
    if key.startswith(features):
        return f"{THEIR_BACKBONE}vgg_layers.{key.removeprefix(features)}"
    return THEIR_BACKBONE + key.removeprefix(OUR_BACKBONE) if key.startswith(OUR_BACKBONE) else key


def _told(name: str, net: _Net) -> dict[str, Any]:
    """The settings that a network's keys and shapes tell.

    Raises:
        CheckpointError: it is none of these networks.
    """
    weights, label = net.weights, net.label
    if name == "psp":
        slots = count(weights, "styles")
        sizes = {2 * int(math.log2(size)) - 2: size for size in SIZES}
        if slots not in sizes:
            known = ", ".join(f"{slot} ({size} pixels)" for slot, size in sizes.items())
            raise CheckpointError(f"{label} gives codes for {slots} slots; generators have {known}")
        return {"size": sizes[slots]}
    if name == "E_style":
        what = f"{label} is no style encoder of BlendGAN, or a damaged one"
        width = shape_of(weights, _FIRST, 2, what, "[style_dim, Gram matrices]")[0]
        return {"style_dim": width, "style_mlp": count(weights, "embedder_mlp")}
    if name == "projector":
        width = shape_of(weights, "projector.0.weight", 2, f"{label} is damaged", "[style_dim, style_dim]")[0]
        return {"style_dim": width, "projection": count(weights, "projector")}
    if name == "G":
        what = f"{label} is no generator of StyleGAN2's config F, or a damaged one"
        doubled = count(weights, "to_rgbs")
        base = shape_of(weights, "conv1.conv.weight", 5, what, "[1, C, C, 3, 3]")[2]
        first, dims, at = "convs.7.conv.weight", 5, 1  # the first layer of 64 x 64
        told = {
            "style_dim": shape_of(weights, "conv1.conv.modulation.weight", 2, what, "[C, style_dim]")[1],
            "n_mlp": count(weights, "style") - 1,
        }
    else:
        what = f"{label} is no discriminator of StyleGAN2's config F, or a damaged one"
        doubled = count(weights, "convs") - 1
        base = shape_of(weights, "final_conv.0.weight", 4, what, "[C, C + 1, 3, 3]")[0]
        first, dims, at = f"convs.{doubled - 3}.conv1.0.weight", 4, 1  # that of the block that begins with 64 x 64
        told = {}
        if name == "D_latent":
            told["style_dim"] = shape_of(weights, "l_style.weight", 2, what, "[C, style_dim]")[1]
    told |= {"size": 4 * 2 ** min(doubled, 30), "base_channels": base}
    if doubled < 4:
        return told  # which the settings refuse
    width = shape_of(weights, first, dims, what, "that of maps of 64 x 64")[at]
    return told | {"channel_multiplier": _multiplier(width, base)}
