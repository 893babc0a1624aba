"""Published classification networks whose features are used elsewhere, with torchvision's parameter names.

Each gives the outputs behind any modules of its `features` (`taps`). What pictures go through before, which depends on
the weights and not on the architecture, is `Normalisation`; `load_backbone` gives a network its published weights.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.errors import AnifastError
from anifast.nn import weights as files
from anifast.nn import winograd

#: What Caffe's ImageNet networks subtract from 0..255, blue first.
CAFFE_MEANS = (104.0, 117.0, 123.0)
# What torchvision's networks subtract from [0, 1] and divide by then; they also are LPIPS's scaling layer.
_IMAGENET_MEANS, _IMAGENET_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: What weights want -> (shift, scale) of pictures in [-1, 1], which become (x - shift) / scale, and whether blue is
#: first: "raw" [-1, 1] itself, "unit" [0, 1], "imagenet" torchvision's, "caffe" 0..255 less the means.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...], bool]] = {
    "raw": ((0.0,) * 3, (1.0,) * 3, False),
    "unit": ((-1.0,) * 3, (2.0,) * 3, False),
    "imagenet": (tuple(2 * m - 1 for m in _IMAGENET_MEANS), tuple(2 * d for d in _IMAGENET_DEVIATIONS), False),
    "caffe": (tuple(m / 127.5 - 1 for m in CAFFE_MEANS), (1 / 127.5,) * 3, True),
}


class Normalisation(nn.Module):
    """Pictures in [-1, 1] -> what a network's weights want.

    Its constants are no part of state dicts, and stay float32 where the module's type is changed.

    Args:
        wants: a name in NORMALISATIONS.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, wants: str) -> None:
        super().__init__()
        self.wants, self.blue_first = wants, NORMALISATIONS[wants][2]
        for name in ("shift", "scale"):
            self.register_buffer(name, None, persistent=False)
        self._set_constants(torch.device("cpu"))

    @torch.inference_mode(False)  # for training too, wherever it is built or moved
    def _set_constants(self, device: torch.device) -> None:
        shift, scale, _ = NORMALISATIONS[self.wants]
        self.shift, self.scale = (
            torch.tensor(values, dtype=torch.float32, device=device)[None, :, None, None] for values in (shift, scale)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._set_constants(self.shift.device)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """N,3,H,W in [-1, 1], red first -> N,3,H,W, in float32 at least."""
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        if self.wants == "raw":
            return images
        if self.blue_first:
            images = images.flip(1)
        return (images - self.shift) / self.scale

    def extra_repr(self) -> str:
        """Its name."""
        return self.wants


def _is_for_winograd(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether this is a convolution for `winograd.convolve`, and faster by it."""
    if conv.kernel_size != (3, 3) or not conv.stride == conv.padding == conv.dilation == (1, 1) or conv.groups != 1:
        return False
    return winograd.is_faster(x, conv.weight)


def conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """relu(conv(x)), differentiable as that is, to any order.

    On a CPU in float32 a 3 x 3 convolution, its bias and the ReLU are one pass of Winograd kernels, whose rounding is a
    few times that of a direct convolution; elsewhere the ReLU overwrites what PyTorch's convolution gave.

    Args:
        x: N,C,H,W in the type of the weights (under autocast, any).
        conv: with a bias; padding by zeros or by reflection.

    Returns:
        N,O,H',W', not negative, in x's layout.
    """
    if conv.padding_mode == "reflect":
        assert isinstance(conv.padding, tuple)
        rows, columns = conv.padding
        x = F.pad(x, (columns, columns, rows, rows), mode="reflect")
        return F.relu_(F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups))
    if _is_for_winograd(x, conv):
        return winograd.convolve(x, conv.weight, bias=conv.bias, slope=0.0, gain=1.0)
    return F.relu_(F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups))


def _input_side(module: nn.Module, side: int) -> int:
    """The smallest side of an input whose output has this side."""
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        size, stride, pad = (
            value[0] if isinstance(value, tuple) else int(value)
            for value in (module.kernel_size, module.stride, module.padding)
        )
        if isinstance(module, nn.MaxPool2d) and module.ceil_mode:  # the last window may hang over
            return max((side - 2) * stride + size - 2 * pad + 1, 1)
        reflected = isinstance(module, nn.Conv2d) and module.padding_mode == "reflect"
        return max((side - 1) * stride + size - 2 * pad, pad + 1 if reflected else 1)
    return side


class Backbone(nn.Module):
    """Base of the networks here: `features`, a sequence of modules, and the outputs behind some of them.

    Attributes:
        name: the one `load_backbone` knows it by.
        title: the one that people know it by.
        wants: what the weights want that are usual for it, a name in NORMALISATIONS.
        features: convolutions, ReLUs, pools and blocks at torchvision's places.
        preparation: what pictures go through before; it follows `normalisation`.
        source: the file that its weights were loaded from, if they were.
    """

    name: str
    title: str
    wants = "imagenet"
    features: nn.Sequential

    def __init__(self) -> None:
        super().__init__()
        self.preparation = Normalisation(self.wants)
        self.source: Path | None = None

    @property
    def normalisation(self) -> str:
        """What its present weights want, a name in NORMALISATIONS.

        State dicts hold it where it is not `wants`; weights without it, as published files are, want that.
        """
        return self.preparation.wants

    @normalisation.setter
    def normalisation(self, wants: str) -> None:
        if wants != self.preparation.wants:
            self.preparation = Normalisation(wants).to(self.preparation.shift.device)

    def get_extra_state(self) -> dict[str, str]:
        """What belongs to the weights beside tensors."""
        return {"normalisation": self.normalisation}

    def set_extra_state(self, state: Any) -> None:
        """Take what `get_extra_state` gave.

        Raises:
            AnifastError: it is something else.
        """
        wants = state.get("normalisation") if isinstance(state, Mapping) else state
        if not isinstance(wants, str) or wants not in NORMALISATIONS:
            raise AnifastError(f"{self.name}: {EXTRA_STATE} is {state!r}, expected a normalisation of {self.name}")
        self.normalisation = wants

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.normalisation == self.wants:  # the names are torchvision's, and nothing but tensors
            del destination[prefix + EXTRA_STATE]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *rest)
        key = prefix + EXTRA_STATE
        if key not in state_dict:
            if key in missing_keys:
                missing_keys.remove(key)
            if any(name.startswith(f"{prefix}features.") for name in state_dict):  # other weights came
                self.normalisation = self.wants

    @property
    def first_weight(self) -> Tensor:
        """The weight of the first convolution in `features`, which tells the type, layout and device of all."""
        return next(module.weight for module in self.features.modules() if isinstance(module, nn.Conv2d))

    @property
    def needs_gradients(self) -> bool:
        """Whether a weight asks for a gradient."""
        # not by parameters(): replicas of nn.DataParallel have their weights as plain attributes
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        weights = [value for module in convolutions for value in (module.weight, module.bias) if value is not None]
        return any(value.requires_grad for value in (*weights, *self.parameters()))

    @property
    def last(self) -> int:
        """Index of the last ReLU or block in `features`."""
        return max(i for i, module in enumerate(self.features) if not isinstance(module, nn.Conv2d | nn.MaxPool2d))

    @property
    def smallest(self) -> int:
        """The smallest side of an image that it takes, down to its last ReLU."""
        return self.smallest_side(self.last)

    def smallest_side(self, index: int) -> int:
        """The smallest side of an image for which something is left behind module `index` of `features`."""
        side = 1
        for module in reversed(list(self.features)[: index + 1]):
            side = _input_side(module, side)
        return side

    def channels_of(self, index: int) -> int:
        """How many channels there are behind module `index` of `features`."""
        for module in reversed(list(self.features)[: index + 1]):
            if isinstance(module, nn.Conv2d):
                return module.out_channels
            if isinstance(module, Fire):
                return 2 * module.expand1x1.out_channels
        raise ValueError(f"{self.name}: nothing in features up to {index} has channels")

    def is_published(self) -> bool:
        """Whether its weights are published ones, and its `normalisation` is what these want.

        They are held against the files that are at hand: the one they were loaded from, and those in the usual places,
        as far as a file's SHA-256 is a published one's. Without any the answer is no. Weights of another type count as
        the published ones where they are those, rounded.
        """
        if self.name == "random":
            return self.normalisation == self.wants and self.fingerprint() == _RANDOM_WEIGHTS.get(
                self.first_weight.dtype
            )
        kind = _PUBLISHED.get(self.name)
        if kind is None:
            return False
        usual = [path for name in kind.names for path in files.places(name, kind.shared)]
        own = {key: value for key, value in self.state_dict().items() if key != EXTRA_STATE}
        for path in dict.fromkeys([self.source, *usual] if self.source else usual):
            try:
                if not _digest(path, path.stat().st_mtime_ns, path.stat().st_size).startswith(kind.hashes):
                    continue
                state, wants = _read(self.name, path)
            except (OSError, AnifastError):  # gone, replaced or broken since
                continue
            if wants == self.normalisation and all(
                key in state and torch.equal(state[key].to(value.dtype), value.detach().cpu())
                for key, value in own.items()
            ):
                return True
        return False

    def fingerprint(self) -> str:
        """SHA-256 of the weights of `features`, whatever file they came from, in 64 hexadecimal digits."""
        found = hashlib.sha256()
        for key, value in sorted(self.features.state_dict().items()):
            found.update(f"{key}{tuple(value.shape)}".encode())
            found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def prepare(self, images: Tensor) -> Tensor:
        """N,3,H,W in [-1, 1], red first -> what the weights want (see `Normalisation`)."""
        if images.device != self.preparation.shift.device:  # of a network that is elsewhere
            return Normalisation(self.normalisation).to(images.device)(images)
        prepared: Tensor = self.preparation(images)
        return prepared

    def taps(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """The outputs behind modules of `features`, in the order of `indices`; nothing behind the last one is run.

        Args:
            x: images as the weights want them (`prepare`), N,3,H,W in the type of the weights; N may be 0.
            indices: of modules in `features`; behind a ReLU's index its output is meant, behind a convolution's the
                values before the ReLU.

        Returns:
            N,C,H',W' each, in the type and layout of x.

        Raises:
            ValueError: no such module, a wrong shape, or images too small for the last of them.
        """
        modules = list(self.features)
        wanted = set(indices)
        if not wanted or not all(0 <= i < len(modules) for i in wanted):
            raise ValueError(f"{self.name}: indices is {list(indices)}, expected some of 0 to {len(modules) - 1}")
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"{self.name}: x has shape {tuple(x.shape)}, expected N,3,H,W")
        last = max(wanted)
        smallest = self.smallest_side(last)
        if x.shape[2] < smallest or x.shape[3] < smallest:
            raise ValueError(
                f"{self.name}: images of {x.shape[2]} x {x.shape[3]} pixels are too small, expected at least "
                f"{smallest} x {smallest} for its layer features.{last}"
            )
        x, found, at = self._first(x), {}, 0
        while at <= last:
            module = modules[at]
            if isinstance(module, nn.Conv2d) and at < last and at not in wanted:
                x = conv_relu(x, module)
                at += 1  # the ReLU's
            else:
                x = module(x)
            if at in wanted:
                found[at] = x
            at += 1
        return [found[i] for i in indices]

    def _first(self, x: Tensor) -> Tensor:
        """What comes before `features`."""
        return x


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 convolution that squeezes, then 1x1 and 3x3 ones side by side that expand."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> N,2*expanded,H,W, not negative."""
        x = conv_relu(x, self.squeeze)
        return torch.cat([conv_relu(x, self.expand1x1), conv_relu(x, self.expand3x3)], dim=1)


class SqueezeNet(Backbone):
    """SqueezeNet (Iandola et al. 2016): 1.0 has 1,248,424 parameters, of which 735,424 make the features.

    Parameters carry the names of `torchvision.models.squeezenet1_0` and `squeezenet1_1`. Nothing in it depends on
    train() or eval().

    Args:
        version: "1.0" or "1.1".
        classifier: whether it has one; without, only features come out.
    """

    #: Channels of the features.
    channels = 512

    def __init__(self, version: str = "1.0", *, classifier: bool = True) -> None:
        super().__init__()
        if version not in ("1.0", "1.1"):
            raise ValueError(f"SqueezeNet: version is {version!r}, expected '1.0' or '1.1'")
        self.name, self.title = f"squeezenet{version.replace('.', '_')}", f"SqueezeNet {version}"

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        if version == "1.0":
            self.features = nn.Sequential(
                nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), pool(),
                Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pool(),
                Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pool(),
                Fire(512, 64, 256),
            )  # fmt: skip
        else:
            self.features = nn.Sequential(
                nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(),
                Fire(64, 16, 64), Fire(128, 16, 64), pool(),
                Fire(128, 32, 128), Fire(256, 32, 128), pool(),
                Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
            )  # fmt: skip
        if classifier:
            # dropout at 0: a key is named after 1
            self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1))

    def pooled(self, x: Tensor) -> Tensor:
        """Images as the weights want them, N,3,H,W (see `smallest`) -> N,512: the last block's mean."""
        return self.taps(x, [self.last])[0].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images as the weights want them, N,3,H,W (see `smallest`) -> N,1000 ImageNet class scores."""
        return F.relu(self.classifier(self.taps(x, [self.last])[0])).mean(dim=(2, 3))


class AlexNet(Backbone):
    """AlexNet in its one-tower form (Krizhevsky 2014) as `torchvision.models.alexnet` has it: features only."""

    name, title = "alexnet", "AlexNet"

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip


# convolutions in each of the five blocks between pools
_VGG_BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_VGG_WIDTHS = (64, 128, 256, 512, 512)


def _vgg_features(
    blocks: Sequence[int], widths: Sequence[int], convolution: Callable[[int, int], nn.Module]
) -> nn.Sequential:
    modules: list[nn.Module] = []
    channels = 3
    for count, width in zip(blocks, widths, strict=True):
        for _ in range(count):
            modules += [convolution(channels, width), nn.ReLU()]
            channels = width
        modules.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*modules)


class VGG(Backbone):
    """VGG-16 or VGG-19 (Simonyan & Zisserman 2015, D and E), with the names of `torchvision.models`: features only.

    Args:
        depth: 16 (14,714,688 parameters) or 19 (20,024,384).
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        if depth not in _VGG_BLOCKS:
            raise ValueError(f"VGG: depth is {depth!r}, expected 16 or 19")
        self.name, self.title = f"vgg{depth}", f"VGG-{depth}"
        self.features = _vgg_features(_VGG_BLOCKS[depth], _VGG_WIDTHS, partial(nn.Conv2d, kernel_size=3, padding=1))


class VGG19Compressed(Backbone):
    """VGG-19 compressed 16 times by collaborative distillation (Wang et al. 2020), up to relu5_1.

    Modules stand in `features` where VGG-19 has them, with 16, 32, 64, 128 and 128 channels; convolutions pad by
    reflection. `conv0` before them makes Caffe's input of [0, 1], so that is what it wants.
    """

    name, title, wants = "vgg19_16x", "VGG-19 compressed 16x", "unit"

    def __init__(self) -> None:
        super().__init__()
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode="reflect")
        self.conv0 = nn.Conv2d(3, 3, 1)
        self.features = _vgg_features((2, 2, 4, 4, 1), (16, 32, 64, 128, 128), convolution)
        self.features.pop(-1)  # the pool behind relu5_1

    def _first(self, x: Tensor) -> Tensor:
        return self.conv0(x)


def relu_names(name: str) -> dict[str, int]:
    """Names of the layers that people use -> indices in `features`.

    VGGs (also "random"): relu1_1 to relu5_3 or relu5_4 ("vgg19_16x": relu5_1); AlexNet: relu1 to relu5; SqueezeNets:
    relu1 and fire2 to fire9.

    Raises:
        ValueError: the backbone is unknown.
    """
    if name == "alexnet":
        return {"relu1": 1, "relu2": 4, "relu3": 7, "relu4": 9, "relu5": 11}
    if name in ("squeezenet1_0", "squeezenet1_1"):
        fires = (3, 4, 5, 7, 8, 9, 10, 12) if name == "squeezenet1_0" else (3, 4, 6, 7, 9, 10, 11, 12)
        return {"relu1": 1} | {f"fire{i}": at for i, at in enumerate(fires, 2)}
    if name == "vgg19_16x":
        blocks: Sequence[int] = (2, 2, 4, 4, 1)
    elif name in ("vgg16", "vgg19", "random"):
        blocks = _VGG_BLOCKS[19 if name == "vgg19" else 16]
    else:
        raise ValueError(f"relu_names: unknown backbone {name!r}, expected one of {', '.join(BACKBONES)}")
    found, at = {}, 1
    for block, count in enumerate(blocks, 1):
        for i in range(1, count + 1):
            found[f"relu{block}_{i}"] = at
            at += 2
        at += 1  # the pool
    return found


_RANDOM_SEED = 0
# fingerprints of the weights it gives, and of these in other types
_RANDOM_WEIGHTS = {
    torch.float64: "17d3c92f296f67b3835acd4b080a0e2d91e089756ce2d06fee509b723c1ee389",
    torch.float32: "17d3c92f296f67b3835acd4b080a0e2d91e089756ce2d06fee509b723c1ee389",
    torch.bfloat16: "44ac2259fa19412165b1ec20e51e2ee8e659608c896886713888137bcf9b20e4",
    torch.float16: "225b733f3ddd7643f28351df263a13888cf99bf03a7f2248b399cae6b38a0c56",
}


def _randomise(net: Backbone) -> None:
    """Weights that nobody trained: He-normal (He et al. 2015), biases 0, the same on every machine."""
    # NumPy's generator, in float64 before rounding: PyTorch's gives other last digits on other processors
    random = np.random.Generator(np.random.PCG64(_RANDOM_SEED))
    with torch.no_grad():
        for key, value in net.named_parameters():
            if key.endswith(".bias"):
                value.zero_()
            else:
                normal = random.standard_normal(tuple(value.shape)) * math.sqrt(2.0 / value[0].numel())
                value.copy_(torch.from_numpy(normal))
    net.name, net.title = "random", f"{net.title} with random weights"


@dataclass(frozen=True)
class _Published:
    """A network and the files that its weights are published in: names, what their SHA-256 begin with, folder, address.

    The first name is the one that is downloaded; the folder is in the shared data.
    """

    build: Callable[[], Backbone]
    names: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    shared: str = ""
    url: str = ""
    wanted: str = ""


def _torchvision(build: Callable[[], Backbone], title: str, *names: str) -> _Published:
    """Names of files end in the beginning of their hash; later ones are older files, which machines still keep."""
    url = f"https://download.pytorch.org/models/{names[0]}"
    hashes = tuple(name.rpartition("-")[2].removesuffix(".pth") for name in names)
    return _Published(build, names, hashes, "", url, f"torchvision's ImageNet weights of {title} ({url})")


def _squeezenet1_0() -> _Published:
    """torchvision's files, and Caffe's after them."""
    build = partial(SqueezeNet, "1.0", classifier=False)
    kind = _torchvision(build, "SqueezeNet 1.0", "squeezenet1_0-b66bff10.pth", "squeezenet1_0-a815701f.pth")
    caffe = "squeezenet1_0_imagenet.npz"
    return replace(
        kind,
        names=(*kind.names, caffe),
        hashes=(*kind.hashes, "5cc9bcb8011a95f5d385b271e23cc579e0b2a22fa07812d0a51f4130fac545ff"),
        shared="squeezenet1_0",
    )


#: The key in state dicts of what is no tensor.
EXTRA_STATE = "_extra_state"
#: What SqueezeNet's Caffe weights are, for messages.
CAFFE_SQUEEZENET = "the ImageNet weights of SqueezeNet 1.0 as published for Caffe, as an .npz with torchvision's names"
_PUBLISHED: dict[str, _Published] = {
    "vgg16": _torchvision(partial(VGG, 16), "VGG-16", "vgg16-397923af.pth"),
    "vgg19": _torchvision(partial(VGG, 19), "VGG-19", "vgg19-dcbb9e9d.pth"),
    "alexnet": _torchvision(AlexNet, "AlexNet", "alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"),
    "squeezenet1_0": _squeezenet1_0(),
    "squeezenet1_1": _torchvision(
        partial(SqueezeNet, "1.1", classifier=False),
        "SqueezeNet 1.1",
        "squeezenet1_1-b8a52dc0.pth",
        "squeezenet1_1-f364aa15.pth",
    ),
    "vgg19_16x": _Published(
        VGG19Compressed,
        ("5SE.pth",),
        ("9417c34d0d8d621bc6af78be745f1b8d30f5f210efa01e50655c60eb3770816b",),
        "vgg19_16x",
        wanted="5SE.pth, the encoder up to relu5_1 of MingSun-Tse/Collaborative-Distillation (16x), or its folder",
    ),
    "random": _Published(partial(VGG, 16)),
}
#: The names that `load_backbone` knows.
BACKBONES = tuple(_PUBLISHED)

# keys of torchvision, of BlendGAN's style encoder and of LPIPS
_FEATURE = re.compile(r"(?:.*\.)?(?:features|vgg_layers|net\.slice\d+)\.(\d+\..+)")


def feature_keys(state: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """A state dict by torchvision's names, from its own, LPIPS's or BlendGAN's; the classifier is left out.

    Keys that are none of these stay as they are.

    Args:
        state: it.
        source: its file, for the message.

    Raises:
        AnifastError: it holds two networks, so that two keys have one name here.
    """
    found: dict[str, Any] = {}
    of: dict[str, str] = {}
    for key, value in state.items():
        match = _FEATURE.fullmatch(key)
        if match:
            name = f"features.{match[1]}"
        elif key.rpartition(".")[2] == EXTRA_STATE:
            name = EXTRA_STATE
        elif re.match(r"(?:.*\.)?classifier\.", key):
            continue
        else:
            name = key
        if name in found:
            raise AnifastError(f"{source}: holds more than one network, both {of[name]} and {key}; give one by itself")
        found[name], of[name] = value, key
    return found


def _compressed_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of 5SE.pth, conv0 and conv11 to conv51, by the names here; the projections `_aux` are left out."""
    inner = state.get("model", state)
    places = {name.replace("relu", "conv").replace("_", ""): at - 1 for name, at in relu_names("vgg19_16x").items()}
    found = {}
    for key, value in (inner if isinstance(inner, Mapping) else state).items():
        layer, _, kind = key.partition(".")
        if not layer.endswith("_aux"):
            found[f"features.{places[layer]}.{kind}" if layer in places else key] = value
    return found


def _read(name: str, path: Path) -> tuple[dict[str, Any], str]:
    """The weights in a file, by the names of backbone `name`, and what they want."""
    kind = _PUBLISHED[name]
    npz = path.suffix.lower() == ".npz"
    state = files.read_npz(path, kind.wanted) if npz else files.read_torch(path, kind.wanted)
    found = _compressed_keys(state) if name == "vgg19_16x" else feature_keys(state, path)
    if npz and name == "squeezenet1_0":
        return found, "caffe"  # .npz cannot tell
    extra = found.get(EXTRA_STATE)
    told = extra.get("normalisation") if isinstance(extra, Mapping) else None
    return found, told or (VGG19Compressed.wants if name == "vgg19_16x" else Backbone.wants)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, changed: int, size: int) -> str:
    """`files.digest`, once for a file as it is."""
    return files.digest(path)


@torch.inference_mode(False)  # its weights may be trained later, wherever they are loaded
def load_backbone(name: str, *, weights: str | os.PathLike[str] | None = None, pretrained: bool = True) -> Backbone:
    """A network whose features are to be used: in eval mode, without gradients of its parameters.

    Args:
        name: "vgg16", "vgg19", "alexnet", "squeezenet1_0", "squeezenet1_1", "vgg19_16x", or "random", VGG-16 with fixed
            weights that nobody trained.
        weights: their file. torchvision's format (also the names that LPIPS and BlendGAN give the same weights; a
            classifier is left out); for squeezenet1_0 also an .npz, which is taken for Caffe's weights, whose
            `normalisation` is another; for vgg19_16x 5SE.pth or its folder. None: looked for in the folder
            ANIFAST_WEIGHTS, in torch.hub's folder and in the folder ANIFAST_SHARED, then downloaded from torchvision's
            address into torch.hub's folder with its hash checked (vgg19_16x is not).
        pretrained: False gives PyTorch's random initialisation and looks for no file.

    Returns:
        The network, in float32 on the CPU.

    Raises:
        AnifastError: no such backbone; its file is missing, damaged or another one and cannot be downloaded. The
            message tells what to put where.
    """
    if name not in _PUBLISHED:
        raise AnifastError(f"unknown backbone {name!r}; there are {', '.join(BACKBONES)}")
    kind = _PUBLISHED[name]
    if name == "random" and weights is not None:
        raise AnifastError("backbone 'random' has fixed weights and takes no file; name the network that it is for")
    known = name == "random" or weights is not None or pretrained
    with torch.device("meta" if known else "cpu"):  # no random numbers are drawn that are not needed
        net = kind.build().float().requires_grad_(False).eval()  # whatever the default type is
    if known:
        net.to_empty(device="cpu")
    if name == "random":
        _randomise(net)
    elif known:
        path = _file(kind, weights)
        state, wants = _read(name, path)
        files.fill(net, state, path, kind.wanted)
        net.normalisation, net.source = wants, path.absolute()
    return net


def _file(kind: _Published, given: str | os.PathLike[str] | None) -> Path:
    if given is None:
        for name in kind.names:
            if (found := next(files.places(name, kind.shared), None)) is not None:
                return found
        if kind.url:
            name = kind.names[0]
            return files.download(kind.url, name, kind.hashes[0], kind.wanted)
        raise AnifastError(
            f"no weights: give {kind.wanted}, or put {kind.names[0]} into a folder that ANIFAST_WEIGHTS names"
        )
    path = Path(given).expanduser()
    if path.is_dir() and not kind.url:
        path = path / kind.names[0]
    files.check_file(path, kind.wanted)
    return path
