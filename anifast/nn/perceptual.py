"""Distances and vectors of pictures out of the features of classification networks: LPIPS, and Gram matrices of style.

LPIPS (Zhang et al. 2018, arXiv 1801.03924) is a sum over layers of `anifast.ops.lpips_layer`; BlendGAN's style vector
(Liu et al. 2021, section 3.1) is one `anifast.ops.gram` of five maps.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anifast.errors import AnifastError
from anifast.nn import weights as files
from anifast.nn.backbones import Backbone, Normalisation, feature_keys, load_backbone
from anifast.ops.gram import entries, gram
from anifast.ops.lpips_layer import lpips_layer


def _check_images(op: str, name: str, images: Tensor, allowed: str = "[-1, 1]") -> None:
    """Raise TypeError or ValueError unless these are pictures in floats, N,3,H,W."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        way = f"{name}.float() / 255" + ("" if allowed == "[0, 1]" else " * 2 - 1")
        raise TypeError(f"{op}: {name} has dtype {images.dtype}, expected floats in {allowed}: {way} of 0..255")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{op}: {name} has shape {tuple(images.shape)}, expected N,3,H,W")
    if images.shape[1] == 1:
        raise ValueError(
            f"{op}: {name} has shape {tuple(images.shape)}, expected N,3,H,W; for grayscale pictures give "
            f"{name}.expand(-1, 3, -1, -1)"
        )


class _Extractor(nn.Module):
    """A backbone with what its pictures go through before.

    Args:
        net: the backbone.
        wants: a name in `NORMALISATIONS`; None: what the backbone's weights want, whatever is loaded later.
        layers: indices in the backbone's `features`.
        channels_last: the layout of its maps.
        dtype: of its weights and maps; None leaves it.
    """

    def __init__(
        self,
        net: Backbone,
        wants: str | None,
        layers: Sequence[int],
        channels_last: bool,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"{type(self).__name__}: dtype is {dtype}, expected a floating-point type")
        self.net = net if dtype is None else net.to(dtype)
        self._normalisation = None if wants is None else Normalisation(wants).to(net.first_weight.device)
        self.layers, self.channels_last = tuple(layers), channels_last

    @property
    def normalisation(self) -> Normalisation:
        """What pictures go through before the network."""
        return self.net.preparation if self._normalisation is None else self._normalisation

    def maps(self, images: Tensor) -> list[Tensor]:
        """N,3,H,W in [-1, 1] -> the maps of its layers, in the type of the backbone's weights."""
        weight = self.net.first_weight
        if images.device != weight.device:
            raise ValueError(f"images are on {images.device}, expected {weight.device} as the network")
        x = self.normalisation(images).to(weight.dtype)
        if self.channels_last:
            try:
                x = x.contiguous(memory_format=torch.channels_last)
            except RuntimeError:  # torch.func.vmap knows no layouts
                return self.net.taps(x, self.layers)
            # Winograd makes its matrices of contiguous weights; the other convolutions of CPUs rearrange theirs anyway
            cpu = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            compiling = torch.compiler.is_compiling()
            if not (cpu or compiling or weight.is_contiguous(memory_format=torch.channels_last)):
                with torch.inference_mode(False):  # for training too, wherever it runs first
                    self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.net.taps(x, self.layers)


@dataclass(frozen=True)
class _Net:
    """A choice of LPIPS's `net`: the backbone, its layers, and whether heads were published for it."""

    backbone: str
    layers: tuple[int, ...]
    head: str | None = None


_VGG16_LAYERS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
#: The networks that LPIPS knows. Layers without published heads resemble those of the nearest one that has them.
NETS = {
    "vgg": _Net("vgg16", _VGG16_LAYERS, "vgg"),
    "alex": _Net("alexnet", (1, 4, 7, 9, 11), "alex"),
    "squeeze": _Net("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), "squeeze"),
    "squeezenet1_0": _Net("squeezenet1_0", (1, 5, 7, 8, 9, 10, 12)),
    "vgg19_16x": _Net("vgg19_16x", (1, 6, 11, 20, 29)),  # relu1_1 to relu5_1, which it was trained to give
    "random": _Net("random", _VGG16_LAYERS),
}
_HEAD_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/{}.pth"
# SHA-256 of the published heads, version 0.1
_HEAD_HASHES = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}
# SHA-256 of their values, one head behind the other in float32
_HEAD_VALUES = {
    "alex": "718a8b40b0d22f96192d34ab93c0db5c7943558ff6c2407f44812dce2f29b5f4",
    "squeeze": "68f1b1752260e0335c6394983132e210e3ed5c2540e78d239be07671a77130e4",
    "vgg": "9153a2043dccf3b525d4f13db916e93ef040548ea923b6f2100de5ebac141a78",
}
_EPS = 1e-10
_HEAD = re.compile(r"lin(?:s\.)?(\d+)\.model\.[01]\.weight")


def _published_heads(net: str) -> Path:
    """The head file of the lpips package where it is installed, else of the usual folders, else downloaded."""
    candidates = []
    try:
        spec = importlib.util.find_spec("lpips")  # looks for it and imports nothing
    except ValueError:  # a stand-in among the loaded modules, which has no spec
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        candidates.append(Path(folder, "weights", "v0.1", f"{net}.pth"))
    kept = f"lpips_v0.1_{net}.pth"
    for name in (kept, f"{net}.pth"):
        candidates += files.places(name, "lpips_heads_v0.1")
    others = []
    for path in candidates:
        if path.is_file():
            if files.digest(path) == _HEAD_HASHES[net]:
                return path
            others.append(path)
    return files.download(_HEAD_URL.format(net), kept, _HEAD_HASHES[net], f"LPIPS's linear heads for {net!r}", others)


class Features(NamedTuple):
    """What `LPIPS.features` gives: the maps of pictures, (rows, columns) of these, and what made them.

    Attributes:
        maps: of the layers.
        size: of the pictures.
        net: the LPIPS's `net_name`.
        dtype: of the network's weights.
    """

    maps: tuple[Tensor, ...]
    size: tuple[int, int]
    net: str
    dtype: torch.dtype


class LPIPS(_Extractor):
    """How different two pictures look: LPIPS, with the numbers of the lpips package (version 0.1).

    Each layer's maps are normalised over their channels, their squared differences weighted by the layer's head and
    averaged over the pixels (`anifast.ops.lpips_layer`); the layers' values are added. Parameters ask for no gradients
    (`requires_grad_()` for fine-tuning), and nothing depends on train() or eval().

    The nets without published heads have no learned weights: there each layer's squared differences are summed over
    the channels (the package's form with lpips=False), which is 2 - 2 cos of the maps' vectors, averaged over the
    pixels. They are no LPIPS and their values compare only with their own; `report_name` tells which distance it is.

    Args:
        net: "vgg", "alex" or "squeeze": LPIPS on VGG-16, AlexNet, SqueezeNet 1.1. For machines without their weights
            "squeezenet1_0", "vgg19_16x" (weights from `backbone_weights`) and "random" (VGG-16 with fixed weights that
            nobody trained; needs no file).
        pretrained: False builds without any file: a backbone of PyTorch's random weights ("random": as always) and
            heads of ones, unless files are given. For tests and for `load_lpips_state`.
        spatial: whether distances come as a map of the images' size, each layer's bilinearly enlarged
            (align_corners=False), instead of as one number.
        backbone_weights: file of the backbone; None looks for it and downloads it (see `load_backbone`).
        head_weights: file of the heads, in the lpips package's format; None takes the published one from an installed
            lpips package, the folders that `load_backbone` looks in, or its address.
        eps: added to the norm of a pixel's vector, or, with `eps_inside`, to its square.
        eps_inside: see eps.
        channels_last: whether maps lie in channels_last, which is the faster layout on CPUs too (pooling is).
        dtype: type of the backbone's weights and maps, for example torch.bfloat16; distances stay float32.

    Raises:
        ValueError: the net is unknown.
        AnifastError: weights are missing, damaged or another net's; the message tells what to put where.
    """

    @torch.inference_mode(False)  # as load_backbone
    def __init__(
        self,
        net: str = "vgg",
        *,
        pretrained: bool = True,
        spatial: bool = False,
        backbone_weights: str | os.PathLike[str] | None = None,
        head_weights: str | os.PathLike[str] | None = None,
        eps: float = _EPS,
        eps_inside: bool = False,
        channels_last: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if net not in NETS:
            raise ValueError(f"LPIPS: net is {net!r}, expected one of {', '.join(NETS)}")
        kind = NETS[net]
        if head_weights is not None and kind.head is None:
            raise ValueError(f"LPIPS: net {net!r} has no heads, got head_weights={os.fspath(head_weights)!r}")
        backbone = load_backbone(kind.backbone, weights=backbone_weights, pretrained=pretrained)
        super().__init__(backbone, None, kind.layers, channels_last, dtype)
        self.net_name, self.spatial, self.eps, self.eps_inside = net, spatial, eps, eps_inside
        ones = partial(torch.ones, dtype=torch.float32, device="cpu")
        widths = [backbone.channels_of(layer) for layer in kind.layers] if kind.head else []
        self.heads = nn.ParameterList([nn.Parameter(ones(width), requires_grad=False) for width in widths])
        if head_weights is not None or (pretrained and kind.head is not None):
            path = _published_heads(net) if head_weights is None else Path(head_weights).expanduser()
            url = _HEAD_URL.format(net)
            files.check_file(path, url)
            self._set_heads(self._read_heads(files.read_torch(path, url), path))

    def forward(
        self, in0: Tensor, in1: Tensor | Features, *, normalize: bool = False, per_layer: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Distances of pairs of pictures; differentiable to either or both, to any order.

        A pair goes through the network as one batch, unless only one of the two needs a gradient: then the other one
        goes by itself and leaves no graph.

        Args:
            in0, in1: N,3,H,W, floating point, in [-1, 1] (not checked; values beyond are taken as they are, not
                clamped), of one size. N may be 0. in1 may be what `features` gave: pictures that stay as they are.
            normalize: the pictures are in [0, 1]; not for pictures given as features.
            per_layer: whether the layers' parts are returned too.

        Returns:
            N,1,1,1 (spatial: N,1,H,W) in float32 (float64 if the module is), with per_layer (total, [layers]).

        Raises:
            TypeError: no tensors, or of integers.
            ValueError: wrong or unequal shapes, pictures too small for the network, another device; features of another
                net, or from before this one was given another type or device.
        """
        self._check("in0", in0, normalize)
        size = (in0.shape[2], in0.shape[3])
        if isinstance(in1, Features):
            self._check_features(in1, in0)
            if in1.size != size or len(in1.maps) != len(self.layers) or in1.maps[0].shape[0] != in0.shape[0]:
                raise ValueError(
                    f"LPIPS: in1 holds {len(in1.maps)} layers of {in1.maps[0].shape[0]} pictures of {tuple(in1.size)}, "
                    f"expected {len(self.layers)} of {in0.shape[0]} of {size} as in0"
                )
            maps1: Sequence[Tensor] = in1.maps
            maps0: Sequence[Tensor] = self._maps(in0, normalize)
        else:
            self._check("in1", in1, normalize)
            if in1.device != in0.device:
                raise ValueError(f"LPIPS: in1 is on {in1.device}, expected {in0.device} as in0")
            if in1.shape != in0.shape:
                raise ValueError(f"LPIPS: in1 has shape {tuple(in1.shape)}, expected {tuple(in0.shape)} as in0")
            maps0, maps1 = self._pair(in0, in1, normalize)
        layers = []
        for i, (a, b) in enumerate(zip(maps0, maps1, strict=True)):
            head = None
            if len(self.heads):
                head = self.heads[i].to(torch.float64 if a.dtype == torch.float64 else torch.float32)
            how = "none" if self.spatial else "mean"
            layer = lpips_layer(a, b, head, eps=self.eps, eps_inside=self.eps_inside, reduce=how)
            if self.spatial:
                layer = F.interpolate(layer, size, mode="bilinear", align_corners=False)
            layers.append(layer)
        total = layers[0]
        for layer in layers[1:]:
            total = total + layer
        return (total, layers) if per_layer else total

    def features(self, images: Tensor, *, normalize: bool = False) -> Features:
        """What the network makes of pictures, to give as in1 again and again: they count as constants.

        Args:
            images: N,3,H,W as forward takes them.
            normalize: they are in [0, 1].

        Raises:
            TypeError, ValueError: as forward.
        """
        self._check("images", images, normalize)
        with torch.inference_mode(False), torch.no_grad():  # inference mode's tensors could not meet gradients
            maps = tuple(self._maps(images, normalize))
        return Features(maps, (images.shape[2], images.shape[3]), self.net_name, self.net.first_weight.dtype)

    def load_lpips_state(self, source: Mapping[str, Any] | str | os.PathLike[str]) -> None:
        """Load a state dict of the lpips package: of a whole LPIPS module, or of its heads alone as published.

        A backbone that comes with it is torchvision's, and gets pictures as such.

        Args:
            source: the state dict or a file of it.

        Raises:
            AnifastError: no such file, or keys or shapes are not this net's; nothing was changed.
        """
        if isinstance(source, Mapping):
            state, name = dict(source), "state dict"
        else:
            path, name = Path(source).expanduser(), os.fspath(source)
            files.check_file(path, f"a state dict of the lpips package, or {_HEAD_URL.format(self.net_name)}")
            state = files.read_torch(path)
        heads = {key: value for key, value in state.items() if _HEAD.fullmatch(key)}
        scaling = {key: state[key] for key in ("scaling_layer.shift", "scaling_layer.scale") if key in state}
        rest = {key: value for key, value in state.items() if key not in heads and key not in scaling}
        preparation = Normalisation(self.net.wants) if rest else self.normalisation  # as it will be
        for key, value in scaling.items():
            own = getattr(preparation, key.rpartition(".")[2]).cpu()
            if value.shape != own.shape or not torch.allclose(value.to(own), own, rtol=1e-5, atol=1e-6):
                raise AnifastError(f"{name}: {key} is {value.flatten().tolist()}, expected {own.flatten().tolist()}")
        read = self._read_heads(heads, name) if heads or not rest else None
        if rest:
            wanted = f"the state dict of an lpips.LPIPS(net={self.net_name!r})"
            files.fill(self.net, feature_keys(rest, name), name, wanted)
        if read is not None:
            self._set_heads(read)

    @property
    def report_name(self) -> str:
        """What to call the numbers in a report, found out from the weights as they are now.

        "LPIPS (vgg)" only where they are: the heads' values and the backbone's weights are the published ones (see
        `Backbone.is_published`), and eps and what pictures go through are the package's. "LPIPS heads on VGG-16,
        weights 0123abcd" where only the backbone's weights cannot be told; "feature distance of ..." otherwise, and for
        nets without published heads.
        """
        published, standard = self.net.is_published(), self._has_published_heads() and self._is_standard()
        if published and standard:
            return f"LPIPS ({self.net_name})"
        if standard:
            return f"LPIPS heads on {self.net.title}, weights {self._fingerprint()}"
        name = f"feature distance of {self.net.title}"
        if not published or (len(self.heads) and not self._has_published_heads()):
            name += f", other weights ({self._fingerprint()})"
            if self.net.normalisation != self.net.wants:
                name += f" for {self.net.normalisation} pictures"
        elif self.net_name != "random":
            name += f" ({self._fingerprint()})"
        if self.eps != _EPS or self.eps_inside:
            name += f", eps {self.eps}" + (" inside" if self.eps_inside else "")
        return name

    def extra_repr(self) -> str:
        """Its options."""
        eps = f", eps={self.eps}" + (" inside" if self.eps_inside else "")
        return f"{self.net_name!r}{eps}" + (", spatial" if self.spatial else "")

    def _get_name(self) -> str:  # for repr
        is_lpips = self._is_standard() and self._has_published_heads() and self.net.is_published()
        return "LPIPS" if is_lpips else "FeatureDistance"

    def _is_standard(self) -> bool:
        """Whether numbers come about as the package's do, up to the weights."""
        return self.eps == _EPS and not self.eps_inside and self.net.normalisation == "imagenet"

    def _has_published_heads(self) -> bool:
        return bool(len(self.heads)) and self._hash_of_heads().hexdigest() == _HEAD_VALUES[self.net_name]

    def _hash_of_heads(self) -> hashlib._Hash:
        found = hashlib.sha256()
        for head in self.heads:
            found.update(head.detach().float().cpu().numpy().tobytes())
        return found

    def _fingerprint(self) -> str:
        """The beginning of the backbone's, or of one of backbone and heads where these are not published ones."""
        backbone = self.net.fingerprint()
        if not len(self.heads) or self._has_published_heads():
            return backbone[:8]
        found = self._hash_of_heads()
        found.update(backbone.encode())
        return found.hexdigest()[:8]

    def _check_features(self, given: Features, in0: Tensor) -> None:
        """Raise ValueError unless features are of this network as it is now."""
        dtype, device = self.net.first_weight.dtype, given.maps[0].device
        if given.net != self.net_name:
            problem = f"is of net {given.net!r}, expected {self.net_name!r}"
        elif given.dtype != dtype:
            problem = f"is of a network in {given.dtype}, expected {dtype}"
        elif device != in0.device:
            problem = f"is on {device}, expected {in0.device} as in0"
        else:
            return
        raise ValueError(f"LPIPS: in1 {problem}: call features() again")

    def _check(self, name: str, images: Tensor, normalize: bool) -> None:
        _check_images("LPIPS", name, images, "[0, 1]" if normalize else "[-1, 1]")

    def _maps(self, images: Tensor, normalize: bool) -> list[Tensor]:
        return self.maps(2 * images - 1 if normalize else images)

    def _pair(self, in0: Tensor, in1: Tensor, normalize: bool) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        needs = [torch.is_grad_enabled() and images.requires_grad for images in (in0, in1)]
        if needs[0] == needs[1] or (torch.is_grad_enabled() and self.net.needs_gradients):
            both = self._maps(torch.cat([in0, in1]), normalize)
            halves = [x.split([len(in0), len(in1)]) for x in both]
            return [half[0] for half in halves], [half[1] for half in halves]
        found = []
        for images, need in ((in0, needs[0]), (in1, needs[1])):
            with nullcontext() if need else torch.no_grad():
                found.append(self._maps(images, normalize))
        return found[0], found[1]

    def _read_heads(self, state: Mapping[str, Any], name: str | Path) -> list[Tensor]:
        if not len(self.heads):
            raise AnifastError(f"{name}: holds LPIPS's heads, and net {self.net_name!r} has none")
        found: dict[int, Tensor] = {}
        for key, value in state.items():
            match = _HEAD.fullmatch(key)
            if match is None or not isinstance(value, Tensor) or not value.is_floating_point():
                raise AnifastError(f"{name}: {key} is no weight of a head of LPIPS (lin0.model.1.weight, ...)")
            i = int(match[1])
            if i in found and not torch.equal(found[i], value.flatten()):  # whole modules have each under two names
                raise AnifastError(f"{name}: head {i} has two different weights, lin{i} and lins.{i}")
            found[i] = value.flatten()
        own = [len(head) for head in self.heads]
        widths = [len(found[i]) for i in sorted(found)]
        if sorted(found) != list(range(len(own))) or widths != own:
            raise AnifastError(
                f"{name}: heads of widths {widths or 'none'}, expected {own} for net {self.net_name!r}: give "
                f"{_HEAD_URL.format(self.net_name)}"
            )
        if not all(bool(value.isfinite().all()) for value in found.values()):
            raise AnifastError(f"{name}: the heads hold other things than finite numbers")
        return [found[i] for i in range(len(own))]

    def _set_heads(self, heads: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for own, value in zip(self.heads, heads, strict=True):
                own.copy_(value)


#: Layers of GramStyle where none are given: the last ReLU before each pool.
STYLE_LAYERS = {
    "vgg16": _VGG16_LAYERS,
    "vgg19": (3, 8, 17, 26, 35),
    "vgg19_16x": (3, 8, 17, 26, 29),
    "alexnet": (1, 4, 7, 9, 11),
    "squeezenet1_0": (1, 5, 10, 12),
    "squeezenet1_1": (1, 4, 7, 12),
    "random": _VGG16_LAYERS,
}


class GramStyle(_Extractor):
    """Gram matrices of a network's layers as one vector per picture: BlendGAN's style (Liu et al. 2021, section 3.1).

    With the default VGG-19 it is exactly the input of BlendGAN's style encoder: pictures are pooled to 256 x 256 and go
    into the network in [-1, 1], without ImageNet's normalisation; F F^T / (C H W) of relu1_2, relu2_2, relu3_4, relu4_4
    and relu5_4 stand one behind the other, row by row: 610,304 numbers, folded 305,888. Other networks get what their
    weights want.

    Args:
        backbone: a name that `load_backbone` knows, or a backbone.
        size: side of the square that pictures are pooled to (adaptive average); None leaves them.
        normalize: of the matrices, "chw", "hw" or "none" (see `anifast.ops.gram`).
        folded: only upper triangles, for a first layer whose weight went through `fold_weight`.
        layers: indices in the backbone's `features`; None: STYLE_LAYERS.
        weights: file of the backbone; None looks for it and downloads it (see `load_backbone`). Also BlendGAN's own
            names of it, `vgg_layers.0.weight` and so on.
        pretrained: False builds without any file.
        channels_last: whether maps lie in channels_last, which is the faster layout on CPUs too (pooling is).
        dtype: type of the backbone's weights and maps; the vector stays float32. A backbone that is given is itself
            converted.

    Attributes:
        channels: of the layers' maps.
        width: length of the vector.

    Raises:
        TypeError: the backbone is neither a name nor a Backbone.
        ValueError: an unknown `normalize`, wrong layers or size, no layers for a backbone of an unknown name.
        AnifastError: weights are missing, damaged or another net's.
    """

    @torch.inference_mode(False)  # as load_backbone
    def __init__(
        self,
        backbone: str | Backbone = "vgg19",
        *,
        size: int | None = 256,
        normalize: str = "chw",
        folded: bool = False,
        layers: Sequence[int] | None = None,
        weights: str | os.PathLike[str] | None = None,
        pretrained: bool = True,
        channels_last: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if normalize not in ("chw", "hw", "none"):
            raise ValueError(f"GramStyle: normalize is {normalize!r}, expected 'chw', 'hw' or 'none'")
        if not isinstance(backbone, str | Backbone):
            raise TypeError(f"GramStyle: backbone must be a name or a Backbone, got {type(backbone).__name__}")
        if isinstance(backbone, str):
            net = load_backbone(backbone, weights=weights, pretrained=pretrained)
        elif weights is not None:
            raise ValueError("GramStyle: weights is for a backbone given by its name")
        else:
            net = backbone
        if layers is None and net.name not in STYLE_LAYERS:
            raise ValueError(f"GramStyle: backbone {net.name!r} has no usual layers, give layers")
        chosen = STYLE_LAYERS[net.name] if layers is None else tuple(layers)
        if not chosen:
            raise ValueError("GramStyle: layers is empty, expected at least one index")
        if not all(0 <= layer < len(net.features) for layer in chosen):
            raise ValueError(
                f"GramStyle: layers is {list(chosen)}, expected indices of 0 to {len(net.features) - 1} for {net.name}"
            )
        smallest = net.smallest_side(max(chosen))
        if size is not None and size < smallest:
            raise ValueError(f"GramStyle: size is {size}, expected at least {smallest} for {net.name}, or None")
        wants = "raw" if net.name == "vgg19" else None
        super().__init__(net, wants, chosen, channels_last, dtype)
        self.size, self.normalize, self.folded = size, normalize, folded
        self.channels = tuple(net.channels_of(layer) for layer in chosen)
        self.width = sum(entries(count, folded) for count in self.channels)

    def forward(self, images: Tensor) -> Tensor:
        """The vectors of pictures; differentiable to any order.

        Args:
            images: N,3,H,W, floating point, in [-1, 1] (not checked, not clamped), of any size. N may be 0.

        Returns:
            N,width in float32 (float64 if the module is).

        Raises:
            TypeError: no tensor, or of integers.
            ValueError: a wrong shape or device; without `size`, pictures too small for the network.
        """
        _check_images("GramStyle", "images", images)
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            if 0 in images.shape[2:]:
                raise ValueError(f"GramStyle: images has shape {tuple(images.shape)}, expected pixels")
            images = F.adaptive_avg_pool2d(images, self.size)
        return gram(self.maps(images), normalize=self.normalize, folded=self.folded)

    def extra_repr(self) -> str:
        """Its options."""
        return f"{self.net.name!r}, width={self.width}, size={self.size}" + (", folded" if self.folded else "")


def _check_weight(op: str, weight: Tensor, channels: Sequence[int], folded: bool) -> None:
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.float64):
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"{op}: weight must be a float32 or float64 tensor, got {got}")
    expected = sum(entries(count, folded) for count in channels)
    if weight.dim() != 2 or weight.shape[1] != expected:
        kind = "C(C+1)/2" if folded else "C*C"
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}, expected (out, {expected}), the sum of {kind} over maps of "
            f"{', '.join(map(str, channels))} channels"
        )


def fold_weight(weight: Tensor, channels: Sequence[int]) -> Tensor:
    """The weight of a first linear layer over Gram matrices, for their upper triangles: exactly the same function.

    Gram matrices are symmetric, so W_pq and W_qp meet the same number and V_pq = W_pq + W_qp (p < q), V_pp = W_pp do
    what W does, in the order of `anifast.ops.gram` with folded=True. Training is equivalent too: a mirrored pair gets
    the same gradient, and V_pq gets that as well, so where Adam without weight decay moves W by a step, V has to move
    by the step times `folded_steps`. Keep V unscaled where W was (an equalised learning rate), for Adam's eps.

    Args:
        weight: out,L in float32 or float64, L the sum of C*C.
        channels: C of each map, in the order of the vector.

    Returns:
        out,L' of the same type, L' the sum of C(C+1)/2.

    Raises:
        TypeError: no tensor of these types.
        ValueError: another width.
    """
    _check_weight("fold_weight", weight, channels, folded=False)
    folded, start = [], 0
    for count in channels:
        block = weight[:, start : start + count * count].unflatten(1, (count, count))
        rows, columns = torch.triu_indices(count, count, device=weight.device)
        mirrored = torch.where(rows != columns, block[:, columns, rows], 0.0)
        folded.append(block[:, rows, columns] + mirrored)
        start += count * count
    return torch.cat(folded, dim=1) if folded else weight[:, :0]


def unfold_weight(weight: Tensor, channels: Sequence[int]) -> Tensor:
    """The way back from `fold_weight`, to the shape of published checkpoints: W_pq = W_qp = V_pq / 2, W_pp = V_pp.

    The function is the same; of a weight that was not symmetric another one with the same function comes back.

    Args:
        weight: out,L' in float32 or float64, L' the sum of C(C+1)/2.
        channels: C of each map, in the order of the vector.

    Returns:
        out,L of the same type, L the sum of C*C.

    Raises:
        TypeError: no tensor of these types.
        ValueError: another width.
    """
    _check_weight("unfold_weight", weight, channels, folded=True)
    whole, start = [], 0
    for count in channels:
        wide = entries(count, folded=True)
        rows, columns = torch.triu_indices(count, count, device=weight.device)
        values = weight[:, start : start + wide] * torch.where(rows != columns, 0.5, 1.0).to(weight.dtype)
        block = weight.new_zeros(len(weight), count, count)
        block[:, rows, columns] = values
        block[:, columns, rows] = values
        whole.append(block.flatten(1))
        start += wide
    return torch.cat(whole, dim=1) if whole else weight[:, :0]


def folded_steps(channels: Sequence[int], *, device: torch.device | str | None = None) -> Tensor:
    """How much longer the steps of a folded weight's columns have to be: 1 on the diagonals, 2 beside them.

    Both mirrored weights move by a step of Adam, so their sum moves by two. These are also the variances with which
    columns start that stand for independent weights of variance 1.

    Args:
        channels: C of each map, in the order of the vector.
        device: of the result.

    Returns:
        L' numbers in float32, for the columns of `fold_weight`.
    """
    parts = [torch.ones(0, dtype=torch.float32, device=device)]
    for count in channels:
        rows, columns = torch.triu_indices(count, count, device=device)
        parts.append((rows != columns).to(torch.float32) + 1)
    return torch.cat(parts)
