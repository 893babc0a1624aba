"""Settings of GANs N' Roses: fields are command line options, checkpoint contents and help at once. Imports no torch.

`anifast train gnr --data DIR --out RUN` with the preset `rel` has the networks of the published weights and the losses
of the authors' training code; 256 px and 300,000 steps took them about five days on one Quadro RTX 6000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anifast.engine.config import Steering, from_preset, option
from anifast.errors import AnifastError

ABOUT = "two unpaired image folders, many styles for each picture (photo <-> anime)"
DESCRIPTION = """Train GANs N' Roses between photos in trainA (content) and anime in trainB (styles).

  anifast train gnr --data selfie2anime --out runs/gnr                       the published networks, for a GPU
  anifast train gnr --data selfie2anime --out runs/gnr --precision bf16 --checkpointing      for a small GPU
  anifast train gnr --data faces --out runs/faces --preset small             64 px, narrow, for a look on a CPU
  anifast train gnr --data faces --out runs/faces --resume                   go on after Ctrl-C
  torchrun --nproc-per-node 4 -m anifast train gnr --data faces --out runs/faces --batch 28     on four GPUs

The run folder gets checkpoint.pt, samples/, losses.png, metrics.jsonl and log.txt."""
DATA = "folder with trainA and trainB; testA and testB, if there, are shown on the sample sheets"

#: How a run that has ended is made longer.
LONGER = "a larger --steps (and --images, if that was given)"
SIZES = (64, 128, 256, 512)
#: Width of w and of the layers of the mapping network.
STYLE_DIM = 512


@dataclass(frozen=True)
class Config(Steering):
    """All settings of a run; see the help texts."""

    size: int = option(256, "side of the pictures in pixels: 64, 128, 256 or 512", low=64, high=512)
    batch: int = option(
        7, "pictures per domain and step, of all processes; at least 2 each, 4 with several processes", low=1
    )

    num_down: int = option(4, "halvings of a picture on the way to its content code", low=1)
    latent_dim: int = option(8, "numbers of a style code; above 8 styles may swallow content", low=1)
    n_mlp: int = option(5, "layers of the mapping network", low=1)
    n_res: int = option(1, "residual blocks behind the halvings, and styled ones before the decoder", low=1)
    lr_mlp: float = option(0.01, "factor of the mapping network's learning rate", low=1e-6)
    channel_multiplier: float = option(
        1.0, "factor on the channels of all maps; 0.5 for small GPUs, 0.125 for CPUs", low=1 / 64, high=4
    )
    generator: str = option("v1", "v1: 1x1 convolutions in the content head, v2: 3x3", choices=("v1", "v2"))
    discriminator: str = option(
        "v1.1",
        "v1: the branch main, v1.1: the release, v2: the newest of the authors' three",
        choices=("v1", "v1.1", "v2"),
    )

    start_from: str | None = option(
        None,
        "run, checkpoint or authors' file with the networks to start with; optimisers and averages begin anew",
        none="new ones",
    )

    lambda_adv: float = option(1.0, "weight of the generators' adversarial loss (mean of three heads)", low=0)
    lambda_latent: float = option(
        2.0, "weight of the adversarial loss on style codes, against N(0, 1), times lambda_adv; 0: none", low=0
    )
    lambda_style: float = option(50.0, "weight of style consistency: one person's poses have one style", low=0)
    style_consistency: str = option(
        "variance", "variance over the batch, or cosine distances of all pairs", choices=("variance", "cosine")
    )
    lambda_cycle: float = option(20.0, "weight of the cycle", low=0)
    cycle: str = option("mse", "distance of the cycle", choices=("mse", "l1"))
    lambda_lpips: float = option(
        10.0, "weight of the cycle's perceptual distance, LPIPS or a mean of 1 - cos; 0: none", low=0
    )
    lpips_net: str = option(
        "vgg",
        "network of the perceptual distance; vgg needs its weights; random needs no file and none does without",
        choices=("vgg", "squeezenet1_0", "vgg19_16x", "random", "none"),
    )
    lpips_weights: str | None = option(None, "file with the weights of lpips_net", none="looked for, or downloaded")
    lambda_style_rec: float = option(5.0, "weight of reading back the style that was painted with", low=0)
    lambda_identity: float = option(0.0, "weight of leaving the target's own pictures alone", low=0)
    diversity: bool = option(True, "the discriminators' head on the deviation within a batch; off for ablations")
    styles: str = option(
        "mixed",
        "what generators paint with: mixed, N(0, 1) and styles of real pictures, or random, N(0, 1) only",
        choices=("mixed", "random"),
    )
    r1: float = option(10.0, "gamma of the gradient penalty; 0: none", low=0)
    r1_every: int = option(16, "steps from one gradient penalty to the next", low=1)
    r1_reduction: str = option(
        "mean", "gradient of a head's mean over the batch (authors) or of its sum", choices=("mean", "sum")
    )

    scale: float = option(0.2, "augmentation: enlarged by up to 1 + this, shrunk down to 1 - this", low=0, high=0.9)
    degrees: float = option(20.0, "augmentation: turned by up to this", low=0, high=180)
    shift: float = option(0.1, "augmentation: moved by up to this part of the side", low=0, high=1)
    shear: float = option(0.15, "augmentation: sheared by up to so many degrees", low=0, high=45)
    affine: float = option(0.5, "augmentation: probability of the four above", low=0, high=1)
    warp: str = option(
        "once",
        "once: affine, resize, crop and flip in one interpolation; twice: affine and resize each by themselves, as the "
        "authors' code",
        choices=("once", "twice"),
    )

    lr: float = option(2e-3, "learning rate of Adam", low=0)
    halve_every: int = option(100_000, "steps to half the learning rate; 0: it is constant", low=0)
    ema: float = option(0.999, "decay of the generators' averages in a step; 0: no average", low=0, high=0.999999)

    steps: int = option(300_000, "steps of the whole run", low=1, on_resume=True)
    checkpointing: bool = option(
        False,
        "keep block borders only and compute the rest again in backward: more time, less than half of the maps",
    )
    log_every: int = option(70, "pictures between two lines of metrics.jsonl", low=1, on_resume=True)
    sheet_every: int = option(7000, "pictures between two sample sheets", low=1, on_resume=True)
    save_every: int = option(14000, "pictures between two checkpoints", low=1, on_resume=True)

    def __post_init__(self) -> None:
        """Check what concerns several fields at once."""
        if self.size not in SIZES:
            raise AnifastError(f"setting size: {self.size} is not one of {', '.join(map(str, SIZES))}")
        if self.batch < 2:
            raise AnifastError(
                "setting batch: 1 is too few: the losses compare the pictures of a batch (style consistency, the "
                "diversity heads); take at least 2, published results have 4 to 7"
            )
        most = int(math.log2(self.size)) - 2
        if self.num_down > most:
            raise AnifastError(
                f"settings size and num_down: {self.size} pixels can be halved {most} times down to a content of "
                f"4 x 4, not {self.num_down} times; take --num-down {most}"
            )
        fewest = max(4, self.size // 32)
        if self.base_channels < fewest:
            raise AnifastError(
                f"setting channel_multiplier: {self.channel_multiplier:g} leaves too few channels at {self.size} "
                f"pixels; take at least {fewest / 512:g}"
            )
        if self.lpips_weights is not None and self.lpips_net in ("none", "random"):
            raise AnifastError(f"setting lpips_weights: lpips_net {self.lpips_net} takes no file")

    @property
    def base_channels(self) -> int:
        """Channels of the maps with 32 x 32 pixels and fewer."""
        return int(512 * self.channel_multiplier)

    @property
    def loaded(self) -> int:
        """The side of the augmentation's enlarged pictures, out of which it cuts."""
        return round(self.size * 286 / 256)


_NEW: dict[str, Any] = {
    "generator": "v2",
    "discriminator": "v2",
    "style_consistency": "cosine",
    "cycle": "l1",
    "lambda_style_rec": 0.0,
    "lambda_identity": 10.0,
}
#: Named settings; "about" is for the help text. The first is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "rel": {"about": "the released training code, whose generator fits the published weights"},
    "main": {"about": "the branch main: three halvings, its discriminators", "num_down": 3, "discriminator": "v1"},
    "new": {"about": "the authors' newest code: cosine consistency, L1 cycle, identity loss", **_NEW},
    "notes": {
        "about": "the paper's losses: N(0, 1) styles only, consistency 10, constant learning rate",
        "lambda_latent": 0.0,
        "lambda_style": 10.0,
        "lambda_style_rec": 0.0,
        "styles": "random",
        "scale": 0.1,
        "halve_every": 0,
    },
    "small": {
        "about": "64 px, an eighth of the channels, no weight files: hours on a CPU, for first looks",
        "size": 64,
        "num_down": 3,
        "channel_multiplier": 0.125,
        "batch": 4,
        "lpips_net": "random",
    },
}


def make(preset: str | None = None, values: Mapping[str, Any] | None = None) -> Config:
    """The config of a preset (default: the first) with `values` put over it.

    Raises:
        AnifastError: an unknown preset, or a value that cannot be.
    """
    return from_preset(Config, PRESETS, preset, values)
