"""A Twin-GAN small enough for tests, runs of it with made-up weights, and pictures for it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_cyclegan import picture
from torch import Tensor, nn

from anifast.data.tags import TAGS
from anifast.engine import state as files
from anifast.systems.twingan.checkpoints import AVERAGED, header
from anifast.systems.twingan.config import Config, make
from anifast.systems.twingan.networks import Norms, build

#: At 16 px with at most 8 channels; a phase is a few steps.
TINY: dict[str, Any] = {
    "size": 16,
    "max_channels": 8,
    "batch": 2,
    "phase_images": 4,
    "last_images": 4,
    "log_every": 2,
    "sheet_every": 4,
    "save_every": 4,
}
Weights = dict[str, Tensor]


def tiny_config(preset: str = "fast", **values: Any) -> Config:
    """The preset at 16 px with at most 8 channels, two pictures a step and four a phase."""
    return make(preset, TINY | values)


@torch.no_grad()
def trained(nets: dict[str, nn.Module], seed: int = 0) -> dict[str, nn.Module]:
    """The networks with weights as after some training: no bias and no statistic is what it was at the start."""
    source = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=source)

    for net in nets.values():
        for key, value in net.named_parameters():
            if key.endswith(("gamma", "beta", "bias")) or ".biases." in key:
                value.add_(0.2 * drawn(value))
            elif key.endswith(("gamma_weight", "beta_weight")):
                value.copy_(0.3 * drawn(value))
            else:  # convolutions, which keep what goes through them about as large as it is
                value.copy_(drawn(value) * (2.0 / max(1, value[0].numel())) ** 0.5)
        for key, buffer in net.named_buffers():
            if key.endswith("tag_matrix"):
                buffer.copy_(torch.rand(buffer.shape, generator=source))
        for part in net.modules():
            if isinstance(part, Norms) and part.remembers:
                part.running_mean.copy_(0.2 * drawn(part.running_mean))
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=source))
                if part.kind == "batch_renorm":
                    part.renorm_weight.copy_(0.2 + 0.3 * torch.rand(part.renorm_weight.shape, generator=source))
                    part.renorm_mean.copy_(0.05 * drawn(part.renorm_mean))
                    part.renorm_std.copy_(0.2 + 0.2 * torch.rand(part.renorm_std.shape, generator=source))
    return nets


def mixed_rounding(nets: Iterable[nn.Module]) -> float:
    """What the roundings of mixed precision to bfloat16 do to a value of about 1 that passes through all layers.

    Of each layer what comes in, the kernel and the result are rounded, each by up to half an eps: eps / sqrt(12) in the
    mean square. These are independent of one another and add up like their squares.
    """
    layers = sum(w.dim() == 4 for net in nets for w in net.parameters())
    return torch.finfo(torch.bfloat16).eps * math.sqrt(3 * layers / 12)


def networks(config: Config, stage: str, seed: int = 0, tags: int | None = None) -> dict[str, nn.Module]:
    """Those of a phase with made-up weights, always the same for a seed.

    Args:
        config: all settings.
        stage: the phase.
        seed: of the weights.
        tags: how many there are, with `config.tags`; None: all of the usual list.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trained(build(config, stage, len(TAGS) if tags is None else tags), seed)


def weights(nets: dict[str, nn.Module]) -> dict[str, Weights]:
    """Their state dicts."""
    return {name: dict(net.state_dict()) for name, net in nets.items()}


def stage_state(config: Config, stage: str, seed: int = 0) -> dict[str, Any]:
    """A phase's checkpoint at its end, without optimisers, data and the like; averages are not the live weights."""
    state = {
        **header(config),
        "stage": stage,
        "alpha": 0.25 if "to" in stage else 1.0,
        "batch": config.batch_of(int(stage.rpartition("to")[2])),
        "images": config.last_images if stage == str(config.size) else config.phase_images,
        "steps": 2,
        "nets": weights(networks(config, stage, seed)),
    }
    if config.ema:
        averages = weights(networks(config, stage, seed + 1))
        state["ema"] = {name: net for name, net in averages.items() if name in AVERAGED}
    if config.tags:
        state["tags"] = [list(row) for row in TAGS]
    return state


def write_run(folder: Path, config: Config | None = None, stages: Sequence[str] | None = None, seed: int = 0) -> Path:
    """A run folder with the checkpoints of phases.

    Args:
        folder: made if it is not there.
        config: default `tiny_config()`.
        stages: default all.
        seed: of the weights, the same in every phase.

    Returns:
        `folder`.
    """
    config = tiny_config() if config is None else config
    folder.mkdir(parents=True, exist_ok=True)
    for stage in config.phases if stages is None else stages:
        (folder / stage).mkdir(exist_ok=True)
        files.save(folder / stage / files.NAME, stage_state(config, stage, seed))
        told = {"system": "twingan", "stage": stage, **config.as_dict()}
        (folder / stage / "config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps({"system": "twingan", **config.as_dict()}))
    return folder


def make_data(folder: Path, size: int = 40, count: int = 6, tags: bool = False) -> Path:
    """source/train and target/train of `count` pictures each, source/val and target/val of two.

    Args:
        folder: gets them.
        size: side of the pictures.
        count: in each train.
        tags: write target/tags.tsv, with one colour of hair and one of eyes for each target picture.

    Returns:
        `folder`.
    """
    hair = [name for _, name, group in TAGS if group == 2]
    eyes = [name for _, name, group in TAGS if group == 3]
    rows = []
    for first, (domain, part, many) in enumerate(
        (domain, part, count if part == "train" else 2) for domain in ("source", "target") for part in ("train", "val")
    ):
        for i in range(many):
            picture(folder / domain / part / f"{i}.png", 100 * first + i, (size, size))
            if domain == "target":
                rows.append(f"{part}/{i}.png\t{hair[i % len(hair)]}:0.9, {eyes[i % len(eyes)]}:0.8\n")
    if tags:
        (folder / "target" / "tags.tsv").write_text("".join(rows))
    return folder
