"""StyleGAN2 networks out of files in the format of rosinality/stylegan2-pytorch.

Such a file is a dict of state dicts: `g_ema` (or `g`), `d`, and `latent_avg`, the mean of w, in converted ones. A bare
state dict of one network is taken as well. What the network has to be is read from the shapes.

NVIDIA's own files (.pkl) hold program code beside the weights and are never unpickled here; convert_weight.py of
rosinality/stylegan2-pytorch makes the other format out of them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anifast.errors import CheckpointError
from anifast.nn.stylegan2 import Discriminator, Generator

_Network = TypeVar("_Network", bound=nn.Module)
#: How a file of torch.save began before it was a zip archive: a pickle of this number.
_OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dict in a file of torch.save, read without running code; weights stay on disk until they are used.

    Raises:
        CheckpointError: missing, damaged or no such file, or one that holds pickled objects, such as NVIDIA's.
    """
    path = Path(path)
    try:
        packed = zipfile.is_zipfile(path)
        with open(path, "rb") as file:
            start = file.read(len(_OLD_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not packed and start != _OLD_MAGIC and (path.suffix == ".pkl" or start[:1] == b"\x80"):
        raise CheckpointError(
            f"{path}: a pickle, as NVIDIA publishes its networks. It holds program code and is never unpickled here; "
            "convert it with convert_weight.py of rosinality/stylegan2-pytorch, and give the .pt file that it writes"
        )
    try:
        # rosinality's training script saves its arguments with the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # what a damaged file makes torch raise has no bounds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a StyleGAN2 checkpoint ({reason})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not the dict of a checkpoint")
    return found


def load_generator(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Generator, Tensor | None]:
    """The generator in a file or loaded dict, the averaged one where there is one, and the file's latent_avg or None.

    Args:
        source: path, contents of a file, or the state dict of a generator.

    Raises:
        CheckpointError: the file cannot be read or holds no generator of StyleGAN2.
    """
    contents = source if isinstance(source, Mapping) else read(source)
    state = _part(contents, ("g_ema", "g"), "conv1.conv.weight", "generator")

    def build() -> Generator:
        base, style_dim = state["conv1.conv.weight"].shape[1], state["conv1.conv.modulation.weight"].shape[1]
        doubled = _count(state, "to_rgbs.{}.bias")
        size, width = 4 * 2**doubled, state[f"convs.{2 * doubled - 1}.conv.weight"].shape[1]
        mapping = _count(state, "style.{}.weight", first=1)
        return Generator(size, style_dim, mapping, _multiplier(size, width, base), base_channels=base)

    return _filled(build, state, "generator"), contents.get("latent_avg")


def load_discriminator(source: str | os.PathLike[str] | Mapping[str, Any]) -> Discriminator:
    """The discriminator `d` in a file or loaded dict.

    Args:
        source: path, contents of a file, or the state dict of a discriminator.

    Raises:
        CheckpointError: the file cannot be read or holds no discriminator of StyleGAN2.
    """
    contents = source if isinstance(source, Mapping) else read(source)
    state = _part(contents, ("d",), "final_linear.0.weight", "discriminator")

    def build() -> Discriminator:
        size = 4 * 2 ** _count(state, "convs.{}.conv1.0.weight", first=1)
        base, width = state["final_conv.0.weight"].shape[0], state["convs.0.0.weight"].shape[0]
        return Discriminator(size, _multiplier(size, width, base), base_channels=base)

    return _filled(build, state, "discriminator")


def _part(contents: Mapping[str, Any], names: Sequence[str], key: str, kind: str) -> Mapping[str, Any]:
    """The state dict under the first of `names` that is there, or the contents if they are one themselves."""
    state = next((contents[name] for name in names if name in contents), contents)
    if not isinstance(state, Mapping) or key not in state:
        held = ", ".join(sorted(map(str, contents))[:8]) or "nothing"
        raise CheckpointError(f"no StyleGAN2 {kind} ({' or '.join(names)}) in this file, which holds {held}")
    return state


def _count(state: Mapping[str, Any], key: str, first: int = 0) -> int:
    """How many keys of this form there are without a gap from number `first` on."""
    return next(n for n in itertools.count() if key.format(first + n) not in state)


def _multiplier(size: int, width: int, base: int) -> float:
    """The channel_multiplier that gives maps of the images' size this width, or config F's where none can be told."""
    found = width * size / (32 * base) if size > 32 else 2
    return int(found) if found == int(found) else found


def _filled(build: Callable[[], _Network], state: Mapping[str, Any], kind: str) -> _Network:
    try:
        net = build()
        net.load_state_dict(state)
    except (KeyError, IndexError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"not the {kind} of StyleGAN2's config F: {reason[:600]}") from error
    return net
