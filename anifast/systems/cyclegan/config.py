"""Settings of CycleGAN: fields are command line options, checkpoint contents and help text at once. Imports no torch.

`anifast train cyclegan --data DIR --out RUN` with the preset `reference` is the published recipe: 256 px, batch 1, 200
epochs; 3,400 + 3,400 pictures took its authors' code about 36 hours on one RTX A6000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anifast.engine.config import Steering, from_preset, option
from anifast.errors import AnifastError

ABOUT = "two unpaired image folders, both directions at once (selfie <-> anime)"
DESCRIPTION = """Train a CycleGAN between the pictures of trainA and those of trainB; the two need not correspond.

  anifast train cyclegan --data selfie2anime --out runs/s2a                  the published recipe, for a GPU
  anifast train cyclegan --data faces --out runs/faces --preset small        64 px, for a look on a CPU
  anifast train cyclegan --data faces --out runs/faces --resume              go on after Ctrl-C
  torchrun --nproc-per-node 4 -m anifast train cyclegan --data faces --out runs/faces --batch 4     on four GPUs

The run folder gets checkpoint.pt, samples/, losses.png, metrics.jsonl and log.txt."""
DATA = "folder with trainA and trainB; testA and testB, if there, are shown on the sample sheets"

#: How a run that has ended is made longer.
LONGER = "a larger --images (within the epochs)"
#: The smallest side at which the last norm of the discriminator still has more than one position.
SMALLEST = 32


@dataclass(frozen=True)
class Config(Steering):
    """All settings of a run; see the help texts."""

    size: int = option(256, "side of the training pictures in pixels, a multiple of 4", low=SMALLEST)
    crop: bool = option(True, "cut training pictures at random out of larger ones (side load_size)")
    load_size: int = option(0, "side before the random crop; 0: size * 286 / 256", low=0)
    flip: bool = option(True, "mirror half of the pictures, A and B independently")
    pairing: str = option(
        "unaligned",
        "how A and B meet: unaligned (A shuffled, B drawn at random) or paired (i-th with i-th)",
        choices=("unaligned", "paired"),
    )
    batch: int = option(
        1,
        "pictures per domain and step, of all processes; published results have 1, larger ones overfit small sets",
        low=1,
    )

    blocks: int = option(9, "residual blocks of a generator", low=1)
    width: int = option(64, "channels of a generator's first layer", low=1)
    d_width: int = option(64, "channels of a discriminator's first layer", low=1)
    down_padding: str = option("zero", "padding of a generator's stride-2 convolutions", choices=("zero", "reflect"))
    branch_relu: bool = option(False, "a ReLU at the end of each residual branch")
    skip: bool = option(False, "generators give the change of a picture, not the picture: sharp after a short run")
    upsample: str = option(
        "transpose",
        "transpose: transposed convolutions; resize: nearest neighbours and a convolution, against checkerboards",
        choices=("transpose", "resize"),
    )
    sigmoid: bool = option(False, "a sigmoid behind the discriminators; not with vanilla")
    init: str = option(
        "normal",
        "normal: N(0, 0.02), zero biases; conv: only weights of convolutions, PyTorch's default elsewhere",
        choices=("normal", "conv"),
    )

    start_from: str | None = option(
        None,
        "run, checkpoint or author's files with the networks to start with (--preset seed for the report's); "
        "weights only, optimisers begin anew",
        none="new ones",
    )

    gan: str = option("lsgan", "adversarial loss; vanilla takes scores without a sigmoid", choices=("lsgan", "vanilla"))
    lambda_a: float = option(10.0, "weight of the cycle A -> B -> A", low=0)
    lambda_b: float = option(10.0, "weight of the cycle B -> A -> B", low=0)
    lambda_identity: float = option(
        0.5, "weight of the identity loss (what maps A to B sees B), relative to the cycle's; 0 skips its passes", low=0
    )
    pool_size: int = option(50, "translations kept per domain for the discriminators; 0: none", low=0)

    pool_first: str = option("b", "whose pool draws its random numbers first", choices=("a", "b"))

    lr: float = option(2e-4, "learning rate of Adam", low=0)
    d_lr: float | None = option(None, "of the discriminators; a lower one helps against blobs", low=0, none="as lr")
    beta1: float = option(0.5, "first moment decay of Adam", low=0)
    beta2: float = option(0.999, "second moment decay of Adam", low=0)
    epochs: int = option(100, "epochs at the full learning rate", low=0)
    decay_epochs: int = option(100, "epochs of linear decay behind them", low=0)
    ema: int = option(
        0, "average the generators' weights for sheets and translate, half-life in pictures; 0: no average", low=0
    )

    def __post_init__(self) -> None:
        """Check what concerns several fields at once."""
        if self.size % 4:
            raise AnifastError(f"setting size: {self.size} is not a multiple of 4; take {self.size // 4 * 4}")
        if self.load_size and self.load_size < self.size:
            raise AnifastError(f"setting load_size: {self.load_size} is smaller than size {self.size}")
        if self.beta1 >= 1 or self.beta2 >= 1:
            raise AnifastError("settings beta1 and beta2 lie below 1")
        if self.gan == "vanilla" and self.sigmoid:
            raise AnifastError(
                "settings gan vanilla and sigmoid: this loss takes raw scores and has the sigmoid in it, so it would "
                "be applied twice; take --no-sigmoid, or --gan lsgan"
            )
        if self.epochs + self.decay_epochs == 0:
            raise AnifastError("settings epochs and decay_epochs are both 0: nothing to train")

    @property
    def loaded(self) -> int:
        """The side to which training pictures are resized, aspect ignored."""
        return (self.load_size or round(self.size * 286 / 256)) if self.crop else self.size


#: Named settings; "about" is for the help text. The first is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"about": "256 px, 9 blocks, 200 epochs, as published"},
    "seed": {
        "about": "the selfie2anime report's own code (no augmentation, reflect padding, sigmoid)",
        "crop": False,
        "flip": False,
        "pairing": "paired",
        "down_padding": "reflect",
        "branch_relu": True,
        "sigmoid": True,
        "init": "conv",
        "pool_first": "a",
        "beta1": 0.9,
        "epochs": 90,
        "decay_epochs": 0,
    },
    "small": {
        "about": "64 px, 6 blocks of half the width: hours on a CPU, for first looks",
        "size": 64,
        "blocks": 6,
        "width": 32,
        "d_width": 32,
    },
}


def make(preset: str | None = None, values: Mapping[str, Any] | None = None) -> Config:
    """The config of a preset (default: the first) with `values` put over it.

    Raises:
        AnifastError: an unknown preset, or a value that cannot be.
    """
    return from_preset(Config, PRESETS, preset, values)
