"""Feature extractors: networks with published weights that turn pictures into the vectors that FID and KID compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.errors import AnifastError
from anifast.nn import weights as files
from anifast.nn.backbones import CAFFE_SQUEEZENET, Normalisation, SqueezeNet
from anifast.nn.inception import FIDInception


class Extractor(Protocol):
    """What measures pictures. Values of different extractors cannot be compared, so reports name theirs.

    Attributes:
        name: short, for options and tables.
        dim: length of a feature vector.
        weights: digest of the weights.
        about: one line for reports, which tells all that decides the features: network, layer, scale, resizing and the
            beginning of `weights`.
    """

    @property
    def name(self) -> str:
        """Short, for options and tables."""

    @property
    def dim(self) -> int:
        """Length of a feature vector."""

    @property
    def weights(self) -> str:
        """Digest of the weights."""

    @property
    def about(self) -> str:
        """One line for reports."""

    def __call__(self, images: Tensor) -> Tensor:
        """N,3,H,W in [-1, 1] of any size -> N,dim float32, each picture's own; no gradient."""


class NetworkExtractor:
    """An extractor made of a network and what its pictures go through before.

    Args:
        name: short, for options and tables.
        net: N,3,side,side -> N,dim.
        dim: length of a feature vector.
        prepare: N,3,H,W in [-1, 1] -> what `net` takes.
        weights: digest of the weights.
        about: one line for reports.
        device: where to compute.
    """

    def __init__(
        self,
        name: str,
        net: Callable[[Tensor], Tensor],
        dim: int,
        prepare: Callable[[Tensor], Tensor],
        weights: str,
        about: str,
        device: torch.device,
    ) -> None:
        self.name, self.dim, self.weights, self.about = name, dim, weights, about
        self._net, self._prepare, self._device = net, prepare, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            images: N,3,H,W in [-1, 1], float, any N, H and W, on any device.

        Returns:
            N,dim float32 on the extractor's device; no gradient.

        Raises:
            ValueError: another shape or type.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.shape[2] or not images.shape[3]:
            raise ValueError(f"images: expected N,3,H,W, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], got {images.dtype}")
        if not len(images):
            return torch.empty(0, self.dim, device=self._device)
        return self._net(self._prepare(images.to(self._device, torch.float32)))


#: What SqueezeNet's features are divided by. Those of faces and animals, photographed and drawn, have a root mean
#: square of 14 to 18; like this it is about a half, near Inception's, for which KID's kernel was chosen.
SQUEEZENET_SCALE = 32.0


def squeezenet_input(images: Tensor) -> Tensor:
    """N,3,H,W in [-1, 1] -> what the Caffe weights want: N,3,227,227, blue first, 0..255 minus the means.

    Resized bilinearly, antialiased where that makes it smaller.
    """
    if images.shape[2:] != (227, 227):
        images = F.interpolate(images, (227, 227), mode="bilinear", antialias=True)
    return Normalisation("caffe").to(images.device)(images)


def inception_input(images: Tensor) -> Tensor:
    """N,3,H,W in [-1, 1] -> N,3,299,299 in [-1, 1], bilinear and not antialiased: the resizing of pytorch-fid."""
    if images.shape[2:] == (299, 299):
        return images
    return F.interpolate(images, (299, 299), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class _Kind:
    """An extractor that can be loaded."""

    file: str
    shared: str
    wanted: str
    read: Callable[[Path], dict[str, Tensor]]
    build: Callable[[], nn.Module]


#: The beginning of the SHA-256 of the file that FID is defined by; its published name ends in it.
FID_WEIGHTS = "6726825d"


def _read_inception(path: Path) -> dict[str, Tensor]:
    found = files.read_torch(path)
    classes = found.get("fc.weight")
    if "Conv2d_1a_3x3.conv.weight" in found and isinstance(classes, Tensor) and len(classes) != 1008:
        raise AnifastError(
            f"{path}: an Inception-v3 of {len(classes)} classes, as torchvision has it. FID is defined by another one, "
            "of 1008: pt_inception-2015-12-05-6726825d.pth of the pytorch-fid releases"
        )
    unused = ("fc.", "AuxLogits.")  # the classifiers; the counts of batches were added to PyTorch later
    return {
        key: value
        for key, value in found.items()
        if not key.startswith(unused) and not key.endswith(".num_batches_tracked")
    }


KINDS: dict[str, _Kind] = {
    "inception": _Kind(
        "pt_inception-2015-12-05-6726825d.pth",
        "inception",
        "the FID Inception weights in pytorch-fid's layout (pt_inception-2015-12-05-6726825d.pth of its releases)",
        _read_inception,
        FIDInception,
    ),
    "squeezenet": _Kind(
        "squeezenet1_0_imagenet.npz",
        "squeezenet1_0",
        CAFFE_SQUEEZENET,
        files.read_npz,
        SqueezeNet,
    ),
}
#: The names that `extractor` knows, the preferred one first.
EXTRACTORS = tuple(KINDS)


def find_weights(name: str) -> Path | None:
    """The weights file of an extractor where it is usually kept, or None.

    Looked for by its published name in the folder ANIFAST_WEIGHTS, in torch.hub's folder (where pytorch-fid leaves it),
    and in data/weights of the folder ANIFAST_SHARED (by default `shared` beside the project's folder).
    """
    kind = KINDS[name]
    return next(files.places(kind.file, kind.shared), None)


def extractor(
    name: str = "auto", weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> NetworkExtractor:
    """A feature extractor with its published weights.

    Args:
        name: "inception": the last pool of FID's Inception-v3, 2048 features, what published figures use;
            "squeezenet": the mean of SqueezeNet 1.0's last block / 32, 512 features, for comparisons among one's own;
            "auto": the first of them whose weights are found (with `weights`: an .npz is SqueezeNet's).
        weights: their file; None: where `find_weights` looks.
        device: where to compute.

    Raises:
        AnifastError: no such extractor; its file is missing, damaged or another one. The message names what to give.
    """
    if name != "auto" and name not in KINDS:
        raise AnifastError(f"unknown feature extractor {name!r}; there are auto, {', '.join(KINDS)}")
    if weights is not None:
        path: Path = Path(weights).expanduser()
        if name == "auto":
            name = "squeezenet" if path.suffix.lower() == ".npz" else "inception"
        if not path.is_file():
            raise AnifastError(f"{path}: no such file. Give {KINDS[name].wanted}")
    else:
        tried = KINDS if name == "auto" else [name]
        found = [(each, file) for each in tried if (file := find_weights(each)) is not None]
        if not found:
            wanted = " or ".join(KINDS[each].wanted for each in tried)
            names = " or ".join(KINDS[each].file for each in tried)
            raise AnifastError(
                f"no weights to take features with: give {wanted} by --weights FILE, or put {names} into a folder that "
                "ANIFAST_WEIGHTS names"
            )
        name, path = found[0]
    return _load(name, path, torch.device(device))


def _load(name: str, path: Path, device: torch.device) -> NetworkExtractor:
    kind = KINDS[name]
    try:
        digest = files.digest(path)
    except OSError as error:
        raise AnifastError(f"{path}: cannot be read ({error.strerror or error})") from error
    net = kind.build().requires_grad_(False)
    files.fill(net, kind.read(path), path, kind.wanted)
    net = net.to(device).eval()
    if isinstance(net, SqueezeNet):
        pooled = net.pooled
        about = f"SqueezeNet 1.0 (Caffe, ImageNet), mean of the last block / 32, 512 features, 227 px, {digest[:8]}"
        return NetworkExtractor(
            name, lambda x: pooled(x) / SQUEEZENET_SCALE, net.channels, squeezenet_input, digest, about, device
        )
    assert isinstance(net, FIDInception)
    known = "" if digest.startswith(FID_WEIGHTS) else f", not the published file {FID_WEIGHTS}"
    about = f"Inception-v3 of FID, last pool, 2048 features, 299 px as pytorch-fid, {digest[:8]}{known}"
    return NetworkExtractor(name, net, net.channels, inception_input, digest, about, device)
