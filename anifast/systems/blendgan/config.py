"""Settings of BlendGAN: fields are command line options, checkpoint contents and help at once. Imports no torch.

The authors released neither training code nor most of its numbers. Where the paper and rosinality's StyleGAN2, which it
builds on, say nothing, the defaults here are our own: temperature, queue, augmentation of style pictures, the penalty
on the discriminator of style codes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anifast.engine.config import Steering, from_preset, option
from anifast.errors import AnifastError

ABOUT = "photos and art, unpaired: faces painted in the style of any picture, as much of it as you like"
DESCRIPTION = """Train BlendGAN on photos in faces/ and painted ones in styles/ (or trainA/ and trainB/), or LMDBs.

  anifast train blendgan --data faces --out runs/b --start-from stylegan2-ffhq.pt     all stages, 1024 px, for GPUs
  anifast train blendgan --data faces --out runs/b --style-encoder blendgan.pt        with a style encoder that is there
  anifast train blendgan --data faces --out runs/b --resume                           go on in whatever stage it was
  anifast train blendgan --data faces --out runs/b --stage style                      one stage alone
  anifast train blendgan --data faces --out runs/s --preset small                     64 px, narrow, for a CPU
  anifast blendgan finetune runs/b art.png --data faces --out runs/art                one picture's style alone
  torchrun --nproc-per-node 4 -m anifast train blendgan --data faces --out runs/b     on four GPUs

Stages: style (the style encoder, by contrast), codes (style codes of all art), warm-up (missing discriminators, in
one-shot runs alone), gan (the generator against three discriminators), psp (the encoder that inverts photos, which
translating photos needs). The run folder gets a folder for each with checkpoint.pt, samples/, losses.png, metrics.jsonl
and log.txt, and codes.pt."""
DATA = "folder with faces (or trainA) and styles (or trainB), each of pictures or an LMDB; testA, testB for samples"

#: How a run that has ended is made longer.
LONGER = "--stage all, or more --style-iterations, --iterations or --psp-iterations,"
#: In their order.
STAGES = ("style", "codes", "warm-up", "gan", "psp")
SIZES = (64, 128, 256, 512, 1024)
BACKBONES = ("vgg19", "vgg19_16x", "vgg16", "squeezenet1_0", "random")


@dataclass(frozen=True)
class Config(Steering):
    """All settings of a run; see the help texts."""

    stage: str = option(
        "all", "the stage to run: all of them in order, or one", choices=("all", *STAGES), on_resume=True
    )
    size: int = option(1024, "side of the generator's pictures: 64, 128, 256, 512 or 1024", low=64, high=1024)
    batch: int = option(8, "photos and as many of art in a step of stage gan, of all processes", low=1)

    backbone: str = option(
        "vgg19", "frozen network under the style encoder; vgg19 is the published one's", choices=BACKBONES
    )
    backbone_weights: str | None = option(None, "file with its weights", none="looked for, or downloaded")
    style_side: int = option(256, "side that style pictures are pooled to", low=32, high=1024)
    style_mlp: int = option(4, "layers of the style encoder's predictor", low=1)
    folded: bool = option(True, "the predictor reads half of each Gram matrix: the same function and training")
    style_dim: int = option(512, "width of face codes, style codes and w", low=8)
    n_mlp: int = option(8, "layers of each mapping network", low=1)
    channel_multiplier: float = option(2.0, "factor on the channels of maps above 32 x 32", low=1 / 64, high=4)
    base_channels: int = option(512, "channels of maps up to 32 x 32", low=8)

    style_encoder: str | None = option(
        None,
        "run, BlendGAN checkpoint or style encoder to take over instead of training one in stage style",
        none="own",
    )
    start_from: str | None = option(
        None,
        "StyleGAN2 checkpoint, or BlendGAN run or checkpoint, whose generator and discriminators stage gan begins with",
        none="new ones",
    )
    face_discriminator: str | None = option(
        None, "StyleGAN2 checkpoint with the discriminator of faces, if start_from has none", none="start_from's"
    )

    style_batch: int = option(
        0, "stage style: pictures in a step, each in two views; 0: 256, or as many as the memory holds", low=0
    )
    projection: int = option(2, "stage style: layers of the head that the contrastive loss sees", low=1)
    temperature: float = option(0.1, "stage style: of the contrastive loss", low=1e-3)
    least_area: float = option(0.5, "stage style: views show this part of a picture at least", low=0.05, high=1)
    aspect: float = option(4 / 3, "stage style: views are stretched by up to this factor", low=1, high=4)
    degrees: float = option(15.0, "stage style: turned by up to this", low=0, high=180)
    shift: float = option(0.1, "stage style: moved by up to this part of the side", low=0, high=1)
    scale: float = option(0.1, "stage style: enlarged and shrunk by up to this", low=0, high=0.9)
    shear: float = option(10.0, "stage style: sheared by up to so many degrees", low=0, high=45)
    style_iterations: int = option(500_000, "steps of stage style", low=0, on_resume=True)
    style_lr: float = option(2e-3, "stage style: learning rate of Adam", low=0)

    codes: str = option(
        "table",
        "where stage gan has style codes from: a table of all art, made once, or the encoder itself",
        choices=("table", "encoder"),
    )
    queue: int = option(1024, "style codes that are kept as those of other pictures", low=1)
    latent_loss: str = option(
        "paper",
        "what the discriminator of style codes takes for real: painted pictures with their code (paper), or art with "
        "its code (matching)",
        choices=("paper", "matching"),
    )
    normalised: bool = option(
        False, "that discriminator sees style codes of one length; the published one sees them as they are"
    )
    lambda_face: float = option(1.0, "weight of the adversarial loss of natural faces", low=0)
    lambda_style: float = option(1.0, "that of stylized ones", low=0)
    lambda_latent: float = option(1.0, "that of stylized ones with style codes; 0: none", low=0)
    r1: float = option(10.0, "gamma of the gradient penalty; 0: none", low=0)
    r1_every: int = option(16, "steps from one gradient penalty to the next", low=1)
    path_length: float = option(2.0, "weight of path length regularisation; 0: none", low=0)
    path_every: int = option(4, "steps from one to the next", low=1)
    path_shrink: int = option(2, "path lengths are of this part of each process's batch", low=1)
    mixing: float = option(0.9, "probability that a face has codes of two", low=0, high=1)
    lr: float = option(2e-3, "stage gan: learning rate of Adam, before the correction for lazy penalties", low=0)
    ema: float = option(0.997784, "decay of the generator's average in a step; 0: no average", low=0, high=0.999999)
    iterations: int = option(200_000, "steps of stage gan", low=0, on_resume=True)
    alpha: float = option(
        0.0,
        "the style's share of each slot at first: 0 begins with a generator of faces; more learns faster from nothing",
        low=0,
        high=1,
    )
    warm_up: int = option(
        0,
        "steps in which the generator waits for the discriminators: the first ones of stage gan; for one_shot those of "
        "stage warm-up, on other art, 2000 where discriminators are missing",
        low=0,
    )
    one_shot: str | None = option(
        None, "the only style picture: adapt start_from to it (anifast blendgan finetune)", none="all art"
    )
    checkpointing: bool = option(
        False, "stage gan: keep maps of each size only, and compute what is between again in backward"
    )

    packed: bool = option(
        True,
        "decode pictures once into a cache (at 1024 px 3 GB for a thousand), or anew in each step",
        on_resume=True,
    )
    psp_batch: int = option(8, "photos in a step of stage psp, of all processes", low=1)
    psp_iterations: int = option(500_000, "steps of stage psp; 0: no inversion of photos", low=0, on_resume=True)
    psp_lr: float = option(1e-4, "stage psp: learning rate of Ranger", low=0)
    psp_side: int = option(256, "stage psp: side at which photos are read and results compared", low=32, high=256)
    psp_start: str | None = option(
        None, "ArcFace's IR-SE50 or a pSp encoder, whose body stage psp begins with", none="a new one"
    )
    lambda_l2: float = option(1.0, "stage psp: weight of the squared error", low=0)
    lambda_lpips: float = option(0.8, "stage psp: weight of the perceptual distance, LPIPS or a mean of 1 - cos", low=0)
    lpips_net: str = option(
        "alex",
        "stage psp: network of the perceptual distance; alex needs its weights, random no file, none does without",
        choices=("alex", "vgg", "squeeze", "squeezenet1_0", "vgg19_16x", "random", "none"),
    )
    lpips_weights: str | None = option(None, "file with the weights of lpips_net", none="looked for, or downloaded")
    lambda_id: float = option(0.1, "stage psp: weight of face recognition, which needs identity_weights", low=0)
    identity_weights: str | None = option(None, "ArcFace's model_ir_se50.pth", none="no identity loss")
    lambda_w: float = option(0.0, "stage psp: weight of the codes' distance from their mean (pSp: 0.005)", low=0)

    images: int | None = option(None, "end each stage after so many pictures", low=1, on_resume=True)
    log_every: int = option(400, "pictures between two lines of metrics.jsonl", low=1, on_resume=True)
    sheet_every: int = option(20_000, "pictures between two sample sheets", low=1, on_resume=True)
    save_every: int = option(40_000, "pictures between two checkpoints", low=1, on_resume=True)

    def __post_init__(self) -> None:
        """Check what concerns several fields at once."""
        if self.size not in SIZES:
            raise AnifastError(f"setting size: {self.size} is not one of {', '.join(map(str, SIZES))}")
        if self.psp_side % 16:
            raise AnifastError(f"setting psp_side: {self.psp_side} is no multiple of 16")
        if self.psp_iterations and self.stage in ("all", "psp") and self.style_dim != 512:
            raise AnifastError(
                f"settings style_dim and psp_iterations: the encoder of photos gives codes of 512 numbers, not "
                f"{self.style_dim}; take --style-dim 512 or --psp-iterations 0"
            )
        fewest = 4
        if int(self.base_channels * 32 / self.size * self.channel_multiplier) < fewest and self.size > 32:
            least = fewest * self.size / 32 / self.base_channels
            raise AnifastError(
                f"settings channel_multiplier and base_channels: {self.channel_multiplier:g} leaves too few channels "
                f"at {self.size} pixels; take at least {least:g}"
            )
        if self.style_batch == 1:
            raise AnifastError("setting style_batch: 1 has no other picture in it to tell apart; take at least 2")
        if self.identity_weights is not None and self.psp_side != 256:
            raise AnifastError(
                f"settings identity_weights and psp_side: face recognition looks at 256 pixels, not {self.psp_side}"
            )
        if self.one_shot is not None and self.start_from is None:
            raise AnifastError("setting one_shot: it adapts a trained generator; give --start-from")
        if self.backbone_weights is not None and self.backbone == "random":
            raise AnifastError("setting backbone_weights: the backbone random takes no file")
        if self.lpips_weights is not None and self.lpips_net in ("none", "random"):
            raise AnifastError(f"setting lpips_weights: lpips_net {self.lpips_net} takes no file")

    @property
    def n_latent(self) -> int:
        """L, the generator's slots."""
        return 2 * int(math.log2(self.size)) - 2


#: Indicator of pictures and of videos where none is given: coarse slots keep the face's geometry.
INDEX, VIDEO_INDEX = 6, 7
#: Truncation of random faces in pictures.
TRUNCATION = 0.75

#: Named settings; "about" is for the help text. The first is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"about": "the paper's: 1024 px, 500,000 steps of the style encoder, 200,000 of the generator"},
    "ffhq256": {"about": "the same at 256 px", "size": 256},
    "small": {
        "about": "64 px, narrow, no weight files, short: hours on a CPU, for first looks",
        "size": 64,
        "base_channels": 128,
        "channel_multiplier": 1.0,
        "style_dim": 512,
        "n_mlp": 4,
        "backbone": "random",
        "style_side": 64,
        "style_batch": 32,
        "style_iterations": 1000,
        "iterations": 10_000,
        "normalised": True,
        "alpha": 0.5,
        "r1": 1.0,
        "psp_iterations": 1000,
        "psp_side": 64,
        "lpips_net": "random",
        "lambda_id": 0.0,
        "log_every": 80,
        "sheet_every": 4000,
        "save_every": 8000,
    },
}
#: The settings that are paths of files.
FILES = (
    "backbone_weights",
    "style_encoder",
    "start_from",
    "face_discriminator",
    "one_shot",
    "psp_start",
    "lpips_weights",
    "identity_weights",
)


def make(preset: str | None = None, values: Mapping[str, Any] | None = None) -> Config:
    """The config of a preset (default: the first) with `values` put over it.

    Raises:
        AnifastError: an unknown preset, or a value that cannot be.
    """
    given = dict(values or {})
    for name in FILES:  # a resumed run may be called from elsewhere
        if given.get(name) is not None:
            given[name] = os.path.abspath(given[name])
    return from_preset(Config, PRESETS, preset, given)
