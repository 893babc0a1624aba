"""Settings of the disentangling network: fields are command line options, checkpoint contents and help at once.

Imports no torch. The loss weights and learning rates of the paper's tables 2 and 3 are lost; those of the preset
`paper` come from the first version of the authors' code, and nothing here is a value of the paper but optimisers,
batches, iterations and the networks' sizes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anifast.engine.config import Steering, from_preset, option
from anifast.errors import AnifastError

ABOUT = "faces by many artists: content and artist's style as separate codes"
DESCRIPTION = """Train the style/content disentangling network on a folder of faces by artist, or on digits by writer.

  anifast train disentangle --data artists --out runs/d                       all stages, 256 px, for a GPU
  anifast train disentangle --data artists --out runs/d --resume              go on with whatever stage it was in
  anifast train disentangle --data artists --out runs/d --stage stage1        one stage alone; then --resume --stage ...
  anifast train disentangle --data faces --out runs/f --preset small          64 px, narrow, for a look on a CPU
  anifast train disentangle --data digits --out runs/w --preset nist_fast     digits, the writer being the known label
  anifast train disentangle --data digits --out runs/d --preset nist_fast --label digit       ... the digit

Stages: stage1 (encoder, generator, styles, adversarial classifier), encode (codes of all pictures and their
statistics), classifier (pre-training of the second classifier), stage2 (generator against discriminator and
classifier). The run folder gets a folder for each, with checkpoint.pt, samples/, losses.png, metrics.jsonl and log.txt,
and codes.pt."""
DATA = "folder with a sub-folder of pictures for each artist; for digits, the folder with MNIST's or NIST's files"

#: How a run that has ended is made longer.
LONGER = "--stage all, or more --iterations, --classifier-iterations or --stage2-iterations,"
#: In their order.
STAGES = ("stage1", "encode", "classifier", "stage2")
#: Of blocks in the strings of `blocks`: plain, bus, spatial transform, non-local.
BLOCKS = "cbtn"


@dataclass(frozen=True)
class Config(Steering):
    """All settings of a run; see the help texts."""

    stage: str = option(
        "all", "the stage to run: all of them in order, or one", choices=("all", *STAGES), on_resume=True
    )
    dataset: str = option(
        "artists", "artists: folders of pictures; digits: MNIST or NIST", choices=("artists", "digits")
    )
    label: str = option("writer", "digits: what is known of them, and so what style is", choices=("writer", "digit"))
    size: int = option(256, "side of the pictures in pixels", low=8, high=1024)
    crop_size: int = option(0, "side of the centred square that is cut from each picture first; 0: the largest", low=0)
    channels: int = option(4, "what networks see: 4 RGB and alpha, 3 RGB, 1 grey", low=1, high=4)
    min_images: int = option(50, "artists with fewer pictures are left out", low=1)
    weight_maps: str | None = option(
        None, "folder with a grey picture of the same name for each, of how much its pixels count", none="all alike"
    )

    features: str = option("32,64,128,256,512,1024", "channels of the networks' levels, finest first")
    fc: int = option(2048, "width of the fully connected layer", low=1)
    blocks: str = option(
        "cc",
        "blocks of a level of E, C and D, or of each level with commas: c plain (the first halves), b bus, n non-local",
    )
    gen_blocks: str = option(
        "", "the same of G, finest level first; the first letter doubles, and may be t: with a warp [as blocks]"
    )
    content_size: int = option(256, "numbers of a content code", low=1)
    style_size: int | None = option(
        256,
        "numbers of a style code; 0: no styles, no classifier: a plain VAE",
        low=0,
        none="a quarter of the artists, 16 to 256",
    )
    activation: str = option("cprelu", "centred PReLU, or ReLU", choices=("cprelu", "relu"))
    c1_input: str = option(
        "image",
        "what stage 1's classifier sees: images in another artist's style, or content codes",
        choices=("image", "code"),
    )
    mlp_layers: int = option(10, "layers of the classifier of codes", low=2)
    mlp_width: int = option(2048, "their width", low=1)
    regularised: bool = option(False, "batch regularisation in C1, C2 and D, over each process's own part of a batch")

    start_from: str | None = option(
        None, "run or authors' folder whose stage 1 this run takes over instead of training its own", none="own"
    )

    lambda_rec: float = option(1.0, "weight of the reconstruction", low=0)
    lambda_c1: float = option(0.1, "weight of the adversarial loss of stage 1", low=0)
    lambda_kl_content: float = option(1e-4, "weight of the content codes' divergence from N(0, 1)", low=0)
    lambda_kl_style: float = option(2e-5, "weight of the style codes' divergence from N(0, 1), in both stages", low=0)
    lambda_match: float = option(0.0, "weight of the match of contents in two styles (after the paper; 0.001)", low=0)
    adv_cap: bool = option(False, "no more adversarial push where C1 is worse than a guess")
    c1_adv: str = option(
        "nll", "what E and G raise: C1's loss, or the likelihood of other artists", choices=("nll", "nlu")
    )
    skip_same: bool = option(True, "leave pictures out of C1's losses whose other artist is the same")
    other_artist: str = option(
        "next",
        "whose style a picture is painted in: the next one's in the batch, or that of a random other",
        choices=("next", "random"),
    )
    nested: bool = option(False, "nested dropout: codes keep random prefixes, so that their numbers are ordered")
    content_keep: float | None = option(
        None,
        "nested dropout: number i of a content code is kept with this to the i; 1: always",
        low=0,
        high=1,
        none="1 - 2 / size",
    )
    style_keep: float | None = option(None, "the same of style codes", low=0, high=1, none="1 - 2 / size")
    stratified: bool = option(True, "draw the noise of a batch evenly over its distribution")

    augment: bool = option(False, "turn, scale and move what classifiers and discriminator see")
    max_angle: float = option(15.0, "augmentation: degrees", low=0, high=180)
    max_scale: float = option(1.25, "augmentation: largest factor", low=1)
    min_margin: float = option(
        0.4, "augmentation: least part of the picture on either side of the centre", low=0, high=0.5
    )

    lambda_d: float = option(1.0, "stage 2: weight of D", low=0)
    lambda_c2: float = option(1.0, "stage 2: weight of C2", low=0)
    lambda_content: float = option(0.1, "stage 2: weight of the content found again", low=0)
    content_form: str = option(
        "whitened",
        "stage 2: distance of contents, in units of their deviation (authors' code), or as they are (paper)",
        choices=("whitened", "plain"),
    )
    c2_fake: str = option(
        "nlu",
        "stage 2: what C2 learns from generated pictures: the artist is another; nothing; or less of its loss",
        choices=("nlu", "none", "neg_nll"),
    )
    nlu_form: str = option(
        "stable", "stage 2: -log(1 - p) from logits, or -log(1 - p + 1e-6)", choices=("stable", "eps")
    )
    force_d: float = option(0.0, "stage 2: G waits until D's losses are below; 0: never", low=0)
    force_c2: float = option(0.0, "stage 2: G waits until C2's losses are below; 0: never", low=0)
    lambda_warp: float = option(100.0, "weight of the penalty on warps that fold", low=0)
    lambda_reg_c1: float = option(0.0, "weight of C1's batch regularisation", low=0)
    lambda_reg: float = option(1.0, "weight of batch regularisation in pre-training and for C2 and D", low=0)
    lambda_reg_gen: float = option(1.0, "weight of D's and C2's batch regularisation for G", low=0)

    batch: int = option(8, "pictures of a step of stage 1, of all processes", low=1)
    classifier_batch: int = option(16, "pictures of a step of pre-training", low=1)
    stage2_batch: int = option(8, "pictures of a step of stage 2", low=1)
    iterations: int = option(400_000, "steps of stage 1", low=0, on_resume=True)
    classifier_iterations: int = option(200_000, "steps of pre-training; 0: C2 and D begin anew", low=0, on_resume=True)
    stage2_iterations: int = option(
        400_000, "steps of stage 2, of D and C2 where G waits for them", low=0, on_resume=True
    )
    lr: float = option(5e-5, "learning rate of stage 1 (Adam)", low=0)
    lr_style: float = option(5e-3, "that of the styles", low=0)
    classifier_lr: float = option(1e-4, "learning rate of pre-training (Adam)", low=0)
    stage2_lr: float = option(2e-5, "learning rate of stage 2 (RMSprop)", low=0)
    stage2_lr_style: float = option(2e-3, "that of the styles (Adam)", low=0)
    warm_up: int = option(100, "steps over which learning rates grow to these", low=1)

    images: int | None = option(None, "end each stage after so many pictures", low=1, on_resume=True)
    log_every: int = option(400, "pictures between two lines of metrics.jsonl", low=1, on_resume=True)
    sheet_every: int = option(20_000, "pictures between two sample sheets", low=1, on_resume=True)
    save_every: int = option(20_000, "pictures between two checkpoints", low=1, on_resume=True)

    def __post_init__(self) -> None:
        """Check what concerns several fields at once."""
        widths = self.widths
        if self.size % 2:
            raise AnifastError(f"setting size: {self.size} is odd; take {self.size + 1}")
        if self.dataset == "digits" and (self.weight_maps is not None or self.crop_size):
            raise AnifastError(
                "settings weight_maps and crop_size are for folders of pictures; leave them out for digits"
            )
        if self.channels == 2:
            raise AnifastError("setting channels: 2 is not one of 1, 3, 4")
        if self.dataset == "digits" and (self.channels, self.size) != (1, 28):
            raise AnifastError("setting dataset: digits have size 28 and channels 1; take a preset nist")
        side = self.size
        for _ in widths:
            if side < 2:
                raise AnifastError(
                    f"settings size and features: {self.size} pixels cannot be halved {len(widths)} times"
                )
            side = (side + 2) // 4 * 2 if side > 2 else 1
        for name in ("blocks", "gen_blocks"):
            self.levels(name)
        if self.style_size == 0 and self.stage not in ("all", "stage1", "encode"):
            raise AnifastError(f"setting stage: a plain VAE (style_size 0) has no {self.stage}")
        if self.c1_input == "code" and self.c1_adv == "nlu":
            raise AnifastError("settings c1_input and c1_adv: a classifier of codes goes with c1_adv nll")
        if self.batch < 2 and self.style_size != 0:
            raise AnifastError(
                "setting batch: 1 has no other artist in it, whose style a picture is painted in; take at least 2"
            )
        if self.stage2_batch < 2 and self.style_size != 0:
            raise AnifastError("setting stage2_batch: 1 has no other artist in it; take at least 2")
        if self.regularised and min(self.batch, self.classifier_batch, self.stage2_batch) < 2:
            raise AnifastError("setting regularised: batch regularisation needs batches of at least 2")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels, finest first."""
        try:
            widths = tuple(int(word) for word in self.features.split(","))
        except ValueError:
            widths = ()
        if not widths or min(widths) < 1:
            raise AnifastError(f"setting features: {self.features!r} is no list of numbers like 32,64,128")
        return widths

    def levels(self, name: str = "blocks") -> tuple[str, ...]:
        """The blocks of each level, finest first, of the networks that `blocks` or `gen_blocks` is for."""
        text = getattr(self, name) or self.blocks
        words = tuple(text.split(","))
        words = words * len(self.widths) if len(words) == 1 else words
        if len(words) != len(self.widths):
            raise AnifastError(f"setting {name}: {len(words)} levels in {text!r}, and features has {len(self.widths)}")
        allowed = BLOCKS if name == "gen_blocks" else BLOCKS.replace("t", "")
        for word in words:
            if not word or set(word) - set(allowed) or word[0] not in "ct":
                raise AnifastError(
                    f"setting {name}: {word!r} is no level; it begins with c and goes on with letters of "
                    f"{', '.join(allowed)}"
                )
        return words

    def style_width(self, classes: int) -> int:
        """Numbers of a style code."""
        return self.style_size if self.style_size is not None else min(max(classes // 4, 16), 256, classes)

    def keeps(self, classes: int) -> tuple[float, float]:
        """Nested dropout's base for content and style codes; 1: nothing is dropped."""
        if not self.nested:
            return 1.0, 1.0
        sizes, given = (self.content_size, self.style_width(classes)), (self.content_keep, self.style_keep)
        content, style = (
            1 - 2 / max(size, 2) if keep is None else keep for size, keep in zip(sizes, given, strict=True)
        )
        return content, style


_NIST: dict[str, Any] = {
    "dataset": "digits",
    "size": 28,
    "channels": 1,
    "min_images": 1,
    "features": "64,128,256",
    "fc": 512,
    "mlp_layers": 6,
    "nested": True,
    "content_size": 48,
    "style_size": 128,
    "iterations": 300_000,
    "classifier_iterations": 800_000,
    "stage2_iterations": 320_000,
}
#: Named settings; "about" is for the help text. The first is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"about": "the paper's networks and stages; weights of losses from the authors' first code"},
    "release": {
        "about": "what the authors' last code does by default",
        "blocks": "cc,cbc,cbc,cbc,cbc,cbc",
        "gen_blocks": "tc,cbc,cbc,cbc,cbc,cbc",
        "content_size": 512,
        "style_size": None,
        "regularised": True,
        "nested": True,
        "augment": True,
        "adv_cap": True,
        "skip_same": False,
        "nlu_form": "eps",
        "lambda_c1": 0.2,
        "lambda_kl_content": 1e-5,
        "lambda_kl_style": 1e-5,
        "force_d": 0.8,
        "force_c2": 0.6931,
    },
    "nist": {"about": "digits by writer, the paper's appendix B, batches 8, 16, 8", **_NIST},
    "nist_fast": {
        "about": "the same in batches 64, 128, 64 and an eighth of the steps",
        **_NIST,
        "batch": 64,
        "classifier_batch": 128,
        "stage2_batch": 64,
        "iterations": 37_500,
        "classifier_iterations": 100_000,
        "stage2_iterations": 40_000,
    },
    "small": {
        "about": "64 px, narrow, larger steps: an hour on a CPU, for first looks",
        "size": 64,
        "features": "24,48,96,192",
        "fc": 256,
        "content_size": 64,
        "style_size": 32,
        "min_images": 20,
        "batch": 16,
        "stage2_batch": 16,
        "iterations": 6000,
        "classifier_iterations": 1500,
        "stage2_iterations": 3000,
        "lr": 3e-4,
        "lr_style": 1e-2,
        "classifier_lr": 3e-4,
        "stage2_lr": 5e-5,
    },
}


def make(preset: str | None = None, values: Mapping[str, Any] | None = None) -> Config:
    """The config of a preset (default: the first) with `values` put over it.

    Digits whose digit is the label have content codes of 160 numbers and style codes of 16 unless told otherwise, and
    an eighth of the pre-training (the paper's appendix B).

    Raises:
        AnifastError: an unknown preset, or a value that cannot be.
    """
    given = dict(values or {})
    for name in ("start_from", "weight_maps"):  # a resumed run may be called from elsewhere
        if given.get(name) is not None:
            given[name] = os.path.abspath(given[name])
    if given.get("label") == "digit" and preset in ("nist", "nist_fast"):
        usual = {
            "content_size": 160,
            "style_size": 16,
            "classifier_iterations": PRESETS[preset]["classifier_iterations"] // 8,
        }
        given = {**usual, **given}
    return from_preset(Config, PRESETS, preset, given)
