"""Settings of Twin-GAN: fields are command line options, checkpoint contents and help at once. Imports no torch.

Preset `tg2018` is what the author's code and command line do; `fast`, the default, differs where its help says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anifast.engine.config import Steering, from_preset, option
from anifast.errors import AnifastError

ABOUT = "two unpaired image folders, one network for both, grown from 4x4: translation both ways, search across them"
DESCRIPTION = """Train Twin-GAN on the pictures of source/train and target/train (or trainA and trainB), unpaired.

  anifast train twingan --data faces --out runs/t                       phases 4, 4to8, 8, ... up to 256 px, for a GPU
  anifast train twingan --data faces --out runs/t --preset tg2018       as the author trained it
  anifast train twingan --data faces --out runs/t --preset small        up to 32 px, narrow, for a look on a CPU
  anifast train twingan --data faces --out runs/t --resume              go on in whatever phase it was
  anifast train twingan --data faces --out runs/t --resume --lr 5e-5 --gp-weight 1     the same with other numbers
  anifast train twingan --data faces --out runs/l --start-from runs/t --size 512       grow a trained model further
  anifast train twingan --data faces --out runs/c --tags                conditional on tags, of target/tags.tsv

Phases: 4 (both networks at 4x4), 4to8 (the layers of 8x8 fade in), 8, 8to16, and so on up to --size. The run folder
gets a folder for each with checkpoint.pt, samples/, losses.png, metrics.jsonl and log.txt; those that are there are
left out."""
DATA = "folder with source/train and target/train (or trainA and trainB); source/val and target/val: samples"

#: How a run that has ended is made longer.
LONGER = "more --phase-images or --last-images, or --stage PHASE,"
SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
#: The phases in their order: "4to8" fades the layers of 8x8 in.
STAGES = ("4", *(name for size in SIZES[1:] for name in (f"{size // 2}to{size}", str(size))))
#: Pictures in a step of the author's, by side.
BATCHES = {4: 8, 8: 8, 16: 8, 32: 8, 64: 8, 128: 4, 256: 3, 512: 2}
#: The norms that take statistics over pictures, and remember them; and all.
REMEMBERING = ("batch_renorm", "batch_norm")
NORMS = (*REMEMBERING, "instance_norm", "layer_norm", "none")
LOSSES = ("dragan", "gan", "wgan", "wgan_gp", "hinge")


@dataclass(frozen=True)
class Config(Steering):
    """All settings of a run; see the help texts."""

    stage: str = option(
        "all", "the phase to run: all of them in order, or one", choices=("all", *STAGES), on_resume=True
    )
    size: int = option(256, "side of the last phase's pictures: a power of two, 4 to 512", low=4, high=512)
    phase_images: int = option(300_000, "pictures per domain in a phase", low=1, on_resume=True)
    last_images: int = option(600_000, "pictures per domain in the last phase", low=1, on_resume=True)
    batch: int = option(
        16, "pictures per domain and step, of all processes; 0: the author's 8, at 128 px 4, at 256 3, at 512 2", low=0
    )

    base_channels: int = option(1024, "channels: base_channels / 2^k at 4 * 2^k px, within max_channels", low=1)
    max_channels: int = option(256, "most channels of a layer", low=1)
    max_channels_d: int = option(0, "most channels of a discriminator's layer; 0: as max_channels", low=0)
    norm: str = option("batch_renorm", "norm of encoder and generator, of each domain its own", choices=NORMS)
    recalibrate: bool = option(
        True,
        "keep statistics of what is deployed alone too, of real pictures in the encoder and of translations in the "
        "generator, and normalise by these behind training",
    )
    pixel_norm: bool = option(True, "pixel norm behind the activations of encoder and generator")
    equalized: bool = option(False, "equalised learning rate: weights from N(0, 1), scaled where they are used")
    rgb_start: bool = option(
        True,
        "the norm behind a generator's last layer begins at mean 0.5 and std 0.25, or where the phase before has got, "
        "not at 0 and 1, which takes thousands of steps",
    )
    unet: bool = option(True, "hand the encoder's maps to the generator's blocks of their size")
    unet_max: int = option(0, "the largest side at which that is done; 0: any (with --tags 64)", low=0)
    fade_skip: str = option(
        "block",
        "what is handed over at half the size while a phase fades in: block (the block's output) or code (where the "
        "author's code finds its input under that name, the input)",
        choices=("block", "code"),
    )
    self_attention: bool = option(False, "self-attention at attention_size")
    attention_size: int = option(64, "side of the maps with self-attention", low=4, high=512)
    spectral_norm: bool = option(False, "spectral norm of the discriminators' layers")
    spectral_norm_g: bool = option(False, "spectral norm of encoder and generator too")

    style: int = option(0, "width of a style embedding, random in translations (the author's: 16); 0: none", low=0)
    style_weight: float = option(0.1, "weight of its L1 loss", low=0, on_resume=True)
    tags: bool = option(False, "conditional on tags of the target pictures (target/tags.tsv), or of a reference")
    tag_width: int = option(16, "channels that the target's discriminator sees of the tags", low=1)
    tag_threshold: float = option(
        0.25, "least score of the best hair or eye colour, below which a picture counts as untagged", low=0, high=1
    )
    tag_weight: float = option(
        1.0, "weight of recognising tags, for discriminator and generator", low=0, on_resume=True
    )

    loss: str = option("dragan", "adversarial loss", choices=LOSSES)
    gp_weight: float = option(0.25, "weight of the gradient penalty of dragan or wgan_gp", low=0, on_resume=True)
    dragan_noise: str = option(
        "variance", "what scales dragan's noise, of the batch's pixels", choices=("variance", "std")
    )
    drift: float = option(0.0, "weight of the squared scores of real pictures, with wgan and wgan_gp", low=0)
    rec_weight: float = option(1.0, "weight of the reconstruction (L1)", low=0, on_resume=True)
    gan_weight: float = option(1.0, "weight of the adversarial loss, for the generator", low=0, on_resume=True)
    sem_weight: float = option(0.1, "weight of the semantic consistency (L1 of latents)", low=0, on_resume=True)
    rec_gan_from: int = option(64, "the side from which reconstructions are judged too; 0: never", low=0)

    lr: float = option(1e-4, "learning rate of Adam", low=0, on_resume=True)
    d_lr: float | None = option(
        None, "of the discriminators; the author's first was 4e-4", low=0, on_resume=True, none="as lr"
    )
    beta1: float = option(0.5, "first moment decay of Adam", low=0)
    beta2: float = option(0.99, "second moment decay of Adam", low=0)
    d_steps: int = option(1, "steps of the discriminators in a step", low=1)
    share_batch: bool = option(
        True, "the discriminators learn from what the generator has just painted, not from a batch of their own"
    )
    ema: float = option(
        0.999,
        "decay of the averaged weights per step, less at first where layers are new; 0: no average",
        low=0,
        high=0.999999,
    )
    stacked: bool = option(
        True, "each network on all it is asked for at once, every group with its own statistics", on_resume=True
    )
    split_up: bool = option(True, "doubling, concatenation and convolution without building either", on_resume=True)

    resize: str = option(
        "antialias",
        "how pictures are scaled: antialias (bicubic, without aliasing) or tf1 (as the author's TensorFlow)",
        choices=("antialias", "tf1"),
    )
    crop: float = option(0.8, "least side of the random crop, as a part of the picture's; 1: no crop", low=0.1, high=1)
    flip: bool = option(True, "mirror half of the pictures, each domain independently")
    jitter: str = option("source", "domains whose colours are changed at random", choices=("source", "both", "none"))
    start_from: str | None = option(
        None,
        "run, checkpoint or author's files with the networks to start with; weights only, and the phases up to its own "
        "are left out",
        none="new ones",
    )

    log_every: int = option(1000, "pictures between two lines of metrics.jsonl", low=1, on_resume=True)
    sheet_every: int = option(16_000, "pictures between two sample sheets", low=1, on_resume=True)
    save_every: int = option(16_000, "pictures between two checkpoints", low=1, on_resume=True)

    def __post_init__(self) -> None:
        """Check what concerns several fields at once."""
        for name, least in (("size", 4), ("attention_size", 4), ("unet_max", 0), ("rec_gan_from", 0)):
            value = getattr(self, name)
            if value > least and value not in SIZES:
                near = max((side for side in SIZES if side < value), default=4)
                raise AnifastError(f"setting {name}: {value} is not a power of two; take {near} or {2 * near}")
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise AnifastError("settings beta1 and beta2 lie below 1")
        if self.tags and self.style:
            raise AnifastError("settings tags and style: the norms can follow one of them; leave the other out")
        if (self.tags or self.style) and self.norm in ("layer_norm", "none"):
            raise AnifastError(f"setting norm {self.norm}: has nothing that could follow tags or a style")
        if self.spectral_norm_g and not self.spectral_norm:
            raise AnifastError("setting spectral_norm_g: goes with spectral_norm, which it adds to; take both")
        if self.self_attention and self.attention_size > self.size:
            raise AnifastError(
                f"setting attention_size: {self.attention_size} is larger than size {self.size}, so no map has "
                "that side; take a smaller one"
            )
        if self.stage != "all" and self.stage not in self.phases:
            raise AnifastError(
                f"setting stage: {self.stage} is beyond size {self.size}; there are {', '.join(self.phases)}"
            )
        if self.batch == 1 and self.norm in REMEMBERING:
            raise AnifastError(
                f"setting batch: 1 picture has no statistics that {self.norm} could take at the smallest sizes; take "
                "at least 2, or --norm instance_norm"
            )

    @property
    def phases(self) -> tuple[str, ...]:
        """The names of all phases up to `size`."""
        return STAGES[: STAGES.index(str(self.size)) + 1]

    @property
    def skips_up_to(self) -> int:
        """The largest side at which the generator gets the encoder's maps; 0: at none."""
        if not self.unet:
            return 0
        return self.unet_max or (64 if self.tags else max(SIZES))

    def channels(self, side: int, discriminator: bool = False) -> int:
        """Of maps of this side."""
        most = (discriminator and self.max_channels_d) or self.max_channels
        return min(max(1, self.base_channels * 4 // side), most)

    def batch_of(self, side: int) -> int:
        """Pictures per domain and step of a phase."""
        return self.batch or BATCHES[side]


#: The domains by their short names, by words, and by the letters of the commands that all systems share. A domain's
#: index is its place in each.
DOMAINS, WORDS, LETTERS = ("s", "t"), ("source", "target"), ("A", "B")


def domain_of(word: str) -> int:
    """The index of a domain: 0 for "s", "source" or "A", 1 for "t", "target" or "B".

    Raises:
        AnifastError: it is called something else.
    """
    for names in (DOMAINS, WORDS, LETTERS):
        if word in names:
            return names.index(word)
    raise AnifastError(f"domain {word!r}: there are source (s, A) and target (t, B)")


def sides(stage: str) -> tuple[int, bool]:
    """The side of a phase's pictures, and whether its last layers fade in."""
    return int(stage.rpartition("to")[2]), "to" in stage


#: Named settings; "about" is for the help text. The first is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {
        "about": "256 px; unlike tg2018: pictures scaled without aliasing, colours changed in the source alone, 16 in "
        "every step, averaged weights, one batch for both halves of a step, colours that begin where pictures have "
        "them, statistics of translations alone for translating, and always a block's output handed over"
    },
    "tg2018": {
        "about": "256 px, as the author's code and command line do it",
        "batch": 0,
        "fade_skip": "code",
        "rgb_start": False,
        "recalibrate": False,
        "share_batch": False,
        "ema": 0.0,
        "resize": "tf1",
        "jitter": "both",
    },
    "small": {
        "about": "32 px, a quarter of the channels, short phases: an hour on a CPU, for first looks",
        "size": 32,
        "max_channels": 64,
        "equalized": True,
        "phase_images": 20_000,
        "last_images": 60_000,
        "lr": 1e-3,
        "sheet_every": 5_000,
        "save_every": 5_000,
    },
}


def make(preset: str | None = None, values: Mapping[str, Any] | None = None) -> Config:
    """The config of a preset (default: the first) with `values` put over it.

    Raises:
        AnifastError: an unknown preset, or a value that cannot be.
    """
    return from_preset(Config, PRESETS, preset, values)


def half_life(config: Config, batch: int) -> float:
    """Of the averaged weights, in pictures."""
    return batch * math.log(0.5) / math.log(config.ema)
