"""BlendGAN by its authors, from a checkout of their repository, and what their programs do with it.

The modules model, psp_encoder and utils of github.com/onion-liu/BlendGAN are imported at the time of measuring; nothing
of that code is here. On a CPU it computes with plain PyTorch; on a GPU it compiles its kernels while it is imported.
Their programs paint one picture at a time: `pair` is an iteration of theirs over faces, `transfer` their loops over
faces and styles, from pictures in memory to pictures in memory. They published no training.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anifast.errors import AnifastError
from anifast.nn.backbones import VGG
from anifast.systems.blendgan.config import Config

from . import _checkouts

#: The modules that are used.
MODULES = ("model", "psp_encoder.psp_encoders", "utils")

Picture = NDArray[np.uint8]


def _vgg19(*_: Any, **__: Any) -> SimpleNamespace:
    """What they take of torchvision where it is not installed: VGG-19's features, with ReLUs that overwrite."""
    layers = [nn.ReLU(inplace=True) if isinstance(one, nn.ReLU) else one for one in VGG(19).features]
    return SimpleNamespace(features=nn.Sequential(*layers))


def load(checkout: Path) -> dict[str, ModuleType]:
    """The modules of a checkout by their names, with nothing left behind in sys.path and sys.modules.

    Raises:
        AnifastError: they are not there, or cannot be imported here.
    """
    checkout = checkout.resolve()
    needed = ("model.py", "model_encoder.py", "utils.py", "op/__init__.py", "psp_encoder/psp_encoders.py")
    _checkouts.require(checkout, needed, "https://github.com/onion-liu/BlendGAN")
    with _checkouts.checkout_first(checkout), contextlib.redirect_stdout(io.StringIO()):
        try:
            vgg = importlib.import_module("torchvision.models.vgg")
            if not hasattr(vgg, "vgg19"):  # not installed: an empty package stands for it
                vars(vgg)["vgg19"] = _vgg19
            return {name: importlib.import_module(name) for name in MODULES}
        except Exception as error:  # kernels that cannot be compiled too
            raise AnifastError(
                f"--authors {checkout}: it cannot be imported ({type(error).__name__}: {error})"
            ) from error


def describe(checkout: Path) -> dict[str, Any]:
    """Which code a checkout holds, see `_checkouts.describe`."""
    checkout = checkout.resolve()
    sources = [path for path in (checkout / "op").iterdir() if path.suffix in (".py", ".cpp", ".cu")]
    return _checkouts.describe(checkout, sorted([*checkout.glob("*.py"), *checkout.glob("psp_encoder/*.py"), *sources]))


class Authors:
    """Their networks on our weights, which they share, and what their programs do with them, in float32.

    Args:
        modules: what `load` gave.
        config: of ours, with the channels of config F.
        weights: network -> state dict of ours: G, and E_style (in its full form) and psp where they are used.
        device: where they are.

    Raises:
        AnifastError: the checkout has other networks.
    """

    def __init__(
        self,
        modules: Mapping[str, ModuleType],
        config: Config,
        weights: Mapping[str, Mapping[str, Tensor]],
        device: torch.device,
    ) -> None:
        c = config
        model: Any = modules["model"]
        self.utils: Any = modules["utils"]
        self.device = device
        given = dict(weights["G"])
        given |= {f"embedder.{_key(key)}": value for key, value in weights.get("E_style", {}).items()}
        with torch.device("meta"):  # without memory for weights that are given right away
            self.generator: Any = model.Generator(
                c.size, c.style_dim, c.n_mlp, channel_multiplier=int(c.channel_multiplier), load_pretrained_vgg=False
            )
        _take_over(self.generator, given, "G", () if "E_style" in weights else ("embedder.",))
        self.psp: Any = None
        if "psp" in weights:
            encoders: Any = modules["psp_encoder.psp_encoders"]
            own = dict(weights["psp"])
            # their constructor reads a file, and puts what is in it on a GPU
            self.psp = object.__new__(encoders.PSPEncoder)
            nn.Module.__init__(self.psp)
            self.psp.latent_avg = own.pop("latent_avg").to(device)
            self.psp.face_pool = nn.AdaptiveAvgPool2d((c.psp_side, c.psp_side))
            with torch.device("meta"):
                self.psp.encoder = encoders.GradualStyleEncoder(50, "ir_se", c.n_latent)
            _take_over(self.psp.encoder, own, "psp")
            self.psp.eval()

    def paint(self, w: Tensor, z_style: Tensor | None, index: int) -> Tensor:
        """Pictures of W+ [N, L, D] in style codes [N, D], or natural ones."""
        with torch.no_grad():
            image: Tensor = self.generator(
                [w], z_embed=z_style, add_weight_index=index, input_is_latent=True, randomize_noise=False
            )[0]
        return image

    def generate(self, z: Tensor, z_style: Tensor, index: int) -> Tensor:
        """Pictures of z [N, D] in style codes [N, D]."""
        with torch.no_grad():
            image: Tensor = self.generator([z], z_embed=z_style, add_weight_index=index, randomize_noise=False)[0]
        return image

    def pair(self, z: Tensor, z_style: Tensor, index: int, truncation: float, mean: Tensor) -> Tensor:
        """Natural pictures of z [N, D], then stylized ones, with truncation towards `mean` [1, D]: [2N,3,H,W]."""
        how = {"truncation": truncation, "truncation_latent": mean, "randomize_noise": False}
        with torch.no_grad():
            natural, _ = self.generator([z], **how)
            stylized, _ = self.generator([z], z_embed=z_style, add_weight_index=index, **how)
        return torch.cat([natural, stylized])

    def encode_styles(self, images: Tensor) -> Tensor:
        """Style codes [N, D] of pictures N,3,H,W."""
        codes: Tensor = self.generator.get_z_embed(images)
        return codes

    def invert(self, images: Tensor) -> Tensor:
        """W+ [N, L, D] of photos N,3,H,W."""
        with torch.no_grad():
            codes: Tensor = self.psp(images)
        return codes

    def transfer(self, faces: Sequence[Picture], styles: Sequence[Picture], index: int) -> list[Picture]:
        """Each face, each style and the face in that style beside one another, height, width, 3 in uint8, blue first.

        Args:
            faces, styles: pictures of the generator's size, the same.
            index: the blending indicator.
        """
        found = []
        for face in faces:
            for style in styles:
                with torch.no_grad():
                    code = self.generator.get_z_embed(self.utils.cv2ten(style, self.device))
                    w = self.psp(self.utils.cv2ten(face, self.device))
                    image, _ = self.generator(
                        [w], z_embed=code, add_weight_index=index, input_is_latent=True, randomize_noise=False
                    )
                found.append(np.concatenate([face, style, self.utils.ten2cv(image)], axis=1))
        return found


def _key(own: str) -> str:
    """What a weight of the style encoder is called in theirs."""
    return own.replace("embedder.net.features.", "embedder.feature_extractor.vgg_layers.")


def _take_over(net: Any, weights: Mapping[str, Tensor], name: str, unused: tuple[str, ...] = ()) -> None:
    """Give a network of theirs, which has no memory yet, our weights; parts that are `unused` stay without."""
    try:
        missing, unknown = net.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        missing, unknown = [str(error).splitlines()[-1].strip()], []
    wrong = [*(key for key in missing if not key.startswith(unused or ("\0",))), *unknown]
    if wrong:
        raise AnifastError(f"--authors: the networks are not BlendGAN's ({name}: {', '.join(wrong[:3])})")
    net.requires_grad_(False).eval()
