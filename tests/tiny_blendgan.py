"""A BlendGAN small enough for tests, and what its files hold: ours and the authors', with made-up weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.engine import state as files
from anifast.systems.blendgan.checkpoints import STAGE_NETS, build, header
from anifast.systems.blendgan.config import Config, make
from anifast.systems.blendgan.networks import networks

#: At 64 px, without an encoder of photos.
TINY: dict[str, Any] = {
    "size": 64,
    "batch": 2,
    "style_dim": 32,
    "n_mlp": 2,
    "base_channels": 16,
    "channel_multiplier": 1.0,
    "backbone": "random",
    "style_side": 32,
    "style_mlp": 2,
    "style_batch": 4,
    "style_iterations": 4,
    "queue": 8,
    "iterations": 4,
    "psp_batch": 2,
    "psp_iterations": 0,
    "psp_side": 32,
    "lpips_net": "random",
    "lambda_id": 0.0,
}
#: What a config with an encoder of photos has instead: it gives codes of 512 numbers, and has 150 million weights.
WITH_PSP: dict[str, Any] = {"style_dim": 512, "psp_iterations": 2}
Weights = dict[str, Tensor]


def tiny_config(*, psp: bool = False, **changes: Any) -> Config:
    """The preset `paper` at 64 px with 16 channels; `psp`: with the encoder of photos."""
    return make(values=TINY | (WITH_PSP if psp else {}) | changes)


def overlapping(shape: Sequence[int], source: torch.Generator, scale: float = 1.0) -> Tensor:
    """N(0, scale^2) in this shape, of few numbers that lie over one another: neither memory nor files are big."""
    strides, length = [], 1
    for size in reversed(shape):
        strides.append(min(length, 7))
        length += (size - 1) * strides[-1]
    drawn = scale * torch.randn(length, generator=source)
    return drawn.as_strided(tuple(shape), tuple(reversed(strides)))


def _encoder(name: str, config: Config, source: torch.Generator) -> Weights:
    """E_style or psp, whose codes vary with the picture as trained ones' do."""
    found: Weights = {}
    for key, like in build(name, config).state_dict().items():
        shape = like.shape
        if key == "latent_avg":
            found[key] = torch.randn(1, shape[1], generator=source).repeat(shape[0], 1)
        elif key.endswith("num_batches_tracked"):
            found[key] = torch.zeros(shape, dtype=like.dtype)
        elif key.endswith("running_var"):
            found[key] = 1 + torch.rand(shape, generator=source)
        elif len(shape) > 1:
            found[key] = overlapping(shape, source, (2 / shape[1:].numel()) ** 0.5 if len(shape) == 4 else 1.0)
        elif key.startswith("embedder_mlp."):  # codes are of what is in the picture alone
            found[key] = torch.zeros(shape)
        else:  # weights of one dimension are those of norms and PReLUs
            found[key] = float(key.endswith("weight")) + 0.1 * torch.randn(shape, generator=source)
    return found


def weights(config: Config, stage: str, seed: int = 0) -> dict[str, Weights]:
    """Of a stage's networks: as drawn for this seed, with biases and shares that are not as at the start."""
    source = torch.Generator().manual_seed(seed)
    if stage != "gan":
        found = {}
        for name in STAGE_NETS[stage]:
            if name == "projector":
                shapes = {key: value.shape for key, value in build(name, config).state_dict().items()}
                found[name] = {key: torch.randn(shape, generator=source) for key, shape in shapes.items()}
            else:
                found[name] = _encoder(name, config, source)
        return found
    nets = networks(dataclasses.replace(config, seed=seed))
    for net in nets.values():
        for key, value in net.named_parameters():
            if key.endswith("bias"):
                scale = 10.0 if key.startswith(("style.", "embedding.")) else 0.1
                value.data.add_(torch.randn(value.shape, generator=source), alpha=scale)
            elif key == "add_weight":
                value.data.copy_(torch.rand(value.shape, generator=source) / 2)
    return {name: dict(net.state_dict()) for name, net in nets.items()}


JUDGES = {"D_face": "d_face", "D_style": "d_style", "D_latent": "d_style_latent"}


def authors_style_encoder(style: Weights) -> Weights:
    """E_style by the authors' keys."""
    ours, theirs = "embedder.net.features.", "embedder.feature_extractor.vgg_layers."
    return {key.replace(ours, theirs): value for key, value in style.items()}


def authors_files(config: Config, seed: int = 0) -> dict[str, dict[str, Any]]:
    """What the authors' files hold, and `discriminators.pt`; with `psp_encoder.pt` where the config trains one.

    The first layer of E_style is not folded, the backbone has to be VGG-19.
    """
    config = dataclasses.replace(config, folded=False)
    style, gan = weights(config, "style", seed), weights(config, "gan", seed)
    encoder = authors_style_encoder(style["E_style"])
    source = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Any]] = {
        "blendgan.pt": {
            "g_ema": gan["G"] | {f"embedder.{key}": value for key, value in encoder.items()},
            "latent_avg": torch.randn(config.style_dim, generator=source),
            "truncation": 0.7,
        },
        "style_encoder.pt": {"model": encoder | style["projector"]},
        "discriminators.pt": {theirs: gan[ours] for ours, theirs in JUDGES.items()},
    }
    if config.psp_iterations:
        psp = weights(config, "psp", seed)["psp"]
        found["psp_encoder.pt"] = {
            "latent_avg": psp.pop("latent_avg"),
            "state_dict": {f"encoder.{key}": value for key, value in psp.items()},
        }
    return found


def stage_state(config: Config, stage: str, seed: int = 0, ema: bool = True) -> dict[str, Any]:
    """A stage's checkpoint after two steps, without optimisers, data and the like; the average is not the live G."""
    batch = {"style": config.style_batch, "gan": config.batch, "psp": config.psp_batch}[stage]
    state = {
        **header(config),
        "stage": stage,
        "nets": weights(config, stage, seed),
        "images": 2 * batch,
        "steps": 2,
    }
    if stage == "gan" and ema:
        state["ema"] = {"G": weights(config, stage, seed + 1)["G"]}
    return state


def write_run(folder: Path, config: Config | None = None, stages: Sequence[str] | None = None, seed: int = 0) -> Path:
    """A run folder with the checkpoints of stages; the encoder of photos is one of them where the config trains it.

    Args:
        folder: made if it is not there.
        config: default `tiny_config()`.
        stages: of style, gan, psp.
        seed: of the weights.

    Returns:
        `folder`.
    """
    config = tiny_config() if config is None else config
    if stages is None:
        stages = ("style", "gan", "psp") if config.psp_iterations else ("style", "gan")
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        (folder / stage).mkdir(exist_ok=True)
        files.save(folder / stage / files.NAME, stage_state(config, stage, seed))
        told = {"system": "blendgan", "stage": stage, **config.as_dict()}
        (folder / stage / "config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps({"system": "blendgan", **config.as_dict()}))
    return folder
