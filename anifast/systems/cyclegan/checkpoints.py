"""CycleGAN's files: its own checkpoints, and the generators in files of the reference and of the selfie2anime report.

Own networks are called after what they do: G_AB turns A into B, D_A judges pictures of A. The reference calls a
discriminator after the generator that it trains (its D_A is our D_B).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan.config import Config, make

#: Marks an own checkpoint, with the version of its contents.
FORMAT = "anifast.cyclegan/1"
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether a loaded dict is a CycleGAN file of a known kind."""
    if "format" in state:
        return str(state["format"]).startswith("anifast.cyclegan/")
    return "G_12_state_dict" in state or "model.1.weight" in _stripped(state)


def header(config: Config) -> dict[str, Any]:
    """What stands in a checkpoint beside the state."""
    return {"format": FORMAT, "config": config.as_dict()}


def config_of(state: Mapping[str, Any]) -> Config:
    """The settings in an own checkpoint.

    Raises:
        CheckpointError: not an own checkpoint of CycleGAN, one of a newer version, or a damaged one.
    """
    found = state.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"this is no checkpoint of an anifast CycleGAN run (format {found!r}, expected {FORMAT!r})"
        )
    settings = state.get("config")
    if not isinstance(settings, Mapping):
        raise CheckpointError("damaged: the settings of the run are missing")
    try:
        return make(values=settings)
    except AnifastError as error:
        raise CheckpointError(f"the settings in this file cannot be used: {error}") from error


def averaged(state: Mapping[str, Any]) -> bool:
    """Whether an own checkpoint holds averaged generators, which then are the ones to use."""
    return "format" in state and "ema" in state


def generators(state: Mapping[str, Any]) -> tuple[Config, dict[str, dict[str, Tensor]]]:
    """Settings and generators, by direction "AB" and "BA", of any file that `recognises` accepts.

    A file of the reference holds one generator and does not say which: it serves both directions.

    Raises:
        CheckpointError: a network of another architecture, or a damaged file.
    """
    if "format" in state:
        config = config_of(state)
        nets = _part(state, "ema" if averaged(state) else "nets")
        return config, {"AB": _part(nets, "G_AB"), "BA": _part(nets, "G_BA")}
    if "G_12_state_dict" in state:
        names = {"AB": "G_12_state_dict", "BA": "G_21_state_dict"}
        both = {way: generator_from_seed(_part(state, name)) for way, name in names.items()}
        return make("seed", _sizes(both["AB"])), both
    net = _stripped(state)
    if any(".conv_block.6." in key for key in net) and not any(".conv_block.5." in key for key in net):
        # Trained with dropout between the two convolutions of a block, which shifts the second one's index.
        net = {key.replace(".conv_block.6.", ".conv_block.5."): value for key, value in net.items()}
    return make("reference", _sizes(net)), {"AB": net, "BA": net}


def _part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = state.get(name)
    if not isinstance(part, dict) or not part:
        raise CheckpointError(f"damaged: {name} is missing")
    return part


def _stripped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without wrappers' prefixes and without running statistics, which old files carry and nothing uses."""
    plain = {}
    for key, value in state.items():
        if not isinstance(key, str):
            continue
        while key.startswith(("module.", "_orig_mod.")):
            key = key.partition(".")[2]
        if isinstance(value, Tensor) and not key.endswith(_STATISTICS):
            plain[key] = value
    return plain


def _sizes(net: Mapping[str, Tensor]) -> dict[str, Any]:
    """Blocks and width, read from a generator's keys and shapes."""
    blocks = {key.split(".")[1] for key in net if ".conv_block." in key}
    stem = net.get("model.1.weight")
    if stem is None or stem.ndim != 4 or tuple(stem.shape[1:]) != (3, 7, 7) or not blocks:
        raise CheckpointError(
            "this network is no ResNet generator of CycleGAN with instance norm (a U-Net or another norm?); "
            "only those can be loaded"
        )
    return {"blocks": len(blocks), "width": stem.shape[0]}


def generator_from_seed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a generator of the selfie2anime report's code: generator_block.3.conv_block.0 -> model.10.conv_block.1."""
    state = _stripped(state)
    found = []
    for key, value in state.items():
        match = re.fullmatch(r"generator_block\.(\d+)\.conv_block\.(\d+)\.(weight|bias)", key)
        if match is None:
            raise CheckpointError(f"unknown key {key!r} in a generator of the selfie2anime report's code")
        found.append((match, value))
    blocks = max((int(match[1]) for match, _ in found), default=0) - 5
    if blocks < 1:
        raise CheckpointError("damaged: a generator of the selfie2anime report's code without residual blocks")
    renamed = {}
    for match, value in found:
        layer, part, kind = int(match[1]), match[2], match[3]
        if layer < 3:
            name = ("1", "4", "7")[layer]
        elif layer < 3 + blocks:
            name = f"{10 + layer - 3}.conv_block.{'1' if part == '0' else '5'}"
        else:
            name = str((10, 13, 17)[layer - 3 - blocks] + blocks)
        renamed[f"model.{name}.{kind}"] = value
    return renamed


def discriminator_from_seed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a discriminator of the report's code: discriminator_block.3.conv_block.0 -> model.8.

    Raises:
        CheckpointError: an unknown key.
    """
    renamed = {}
    for key, value in _stripped(state).items():
        match = re.fullmatch(r"discriminator_block\.([0-4])\.(?:conv_block\.0\.)?(weight|bias)", key)
        if match is None:
            raise CheckpointError(f"unknown key {key!r} in a discriminator of the selfie2anime report's code")
        renamed[f"model.{('0', '2', '5', '8', '11')[int(match[1])]}.{match[2]}"] = value
    return renamed
