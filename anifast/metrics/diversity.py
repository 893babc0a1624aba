"""How many styles a model has: LPIPS diversity, DFID, and how stable the styles are that it reads from pictures.

Models come as callables or as streams of what they painted, a batch at a time: memory does not grow with the number of
pictures.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from anifast.errors import AnifastError, DataError
from anifast.metrics.features import Extractor
from anifast.metrics.frechet import Statistics, frechet_distance
from anifast.nn import weights as files
from anifast.nn.perceptual import LPIPS
from anifast.ops.lpips_layer import lpips_layer

#: The `report_name` of the distance that published diversities are taken with: AlexNet, heads of version 0.1.
STANDARD = "LPIPS (alex)"
#: What "auto" tries -> the names of the backbone's file and its folder in the shared data, the preferred one first.
_FILES: dict[str, tuple[tuple[str, ...], str]] = {
    "alex": (("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"), ""),
    "vgg": (("vgg16-397923af.pth",), ""),
    "squeezenet1_0": (
        ("squeezenet1_0-b66bff10.pth", "squeezenet1_0-a815701f.pth", "squeezenet1_0_imagenet.npz"),
        "squeezenet1_0",
    ),
}
#: The names that `load_lpips` knows.
LPIPS_NETS = ("auto", *_FILES, "none")
_HEADLESS = frozenset({"squeezenet1_0"})


class _Average:
    """Mean of values that come in batches, and its standard error (Welford's update)."""

    def __init__(self) -> None:
        self._values = Statistics(1)

    def update(self, values: Tensor) -> None:
        self._values.update(values[:, None])

    @property
    def count(self) -> int:
        return self._values.count

    @property
    def mean(self) -> float:
        return float(self._values.mean)

    @property
    def error(self) -> float:
        """NaN of fewer than two."""
        count = self._values.count
        return math.sqrt(float(self._values.scatter) / (count - 1) / count) if count > 1 else math.nan


class _Plain:
    """Dataclasses that go into files."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file; None for NaN."""
        values = asdict(self)  # type: ignore[call-overload]
        return {key: None if value != value else value for key, value in values.items()}


# --- LPIPS diversity


def load_lpips(name: str = "auto", device: torch.device | str = "cpu") -> tuple[LPIPS | None, str]:
    """The distance that diversity is measured with.

    Args:
        name: "alex": LPIPS on AlexNet, version 0.1, which published figures use; "vgg": LPIPS on VGG-16;
            "squeezenet1_0": a distance of SqueezeNet's features without learned weights; these are downloaded where
            they are not found. "auto": the first of the three whose weights are here, and no download; "none": none.
        device: where to compute.

    Returns:
        The distance, or None; and what to know about it, or "": that it is not the one of published figures, or why
        there is none.

    Raises:
        AnifastError: an unknown name, or weights that were asked for by name cannot be had.
    """
    if name not in LPIPS_NETS:
        raise AnifastError(f"unknown distance {name!r} for diversity; there are {', '.join(LPIPS_NETS)}")
    if name == "none":
        return None, ""
    if name != "auto":
        chosen = LPIPS(name).to(device)
        return chosen, _other_than_published(chosen)
    reasons = []
    for net in filter(_is_here, _FILES):
        try:
            chosen = LPIPS(net).to(device)
        except AnifastError as error:  # a damaged file is no reason to go without any figure
            reasons.append(str(error))
            continue
        return chosen, "; ".join([note for note in (_other_than_published(chosen), *reasons) if note])
    names = ", ".join(candidates[0] for candidates, _ in _FILES.values())
    why = "; ".join(reasons) or f"no weights are here: put one of {names} into a folder that ANIFAST_WEIGHTS names"
    return None, f"no LPIPS diversity: {why}, or let --lpips alex download its own"


def _is_here(net: str) -> bool:
    """Whether the files of a net are found without downloading."""
    names, shared = _FILES[net]
    if not any(any(files.places(name, shared)) for name in names):
        return False
    if net in _HEADLESS:
        return True
    heads = (f"lpips_v0.1_{net}.pth", f"{net}.pth")
    if any(any(files.places(name, "lpips_heads_v0.1")) for name in heads):
        return True
    try:
        return importlib.util.find_spec("lpips") is not None  # its package holds the heads
    except ValueError:  # a stand-in among the loaded modules
        return False


def _other_than_published(lpips: LPIPS) -> str:
    if lpips.report_name == STANDARD:
        return ""
    return (
        f"diversity is the {lpips.report_name}: its values compare with its own only, not with published ones, which "
        f"are {STANDARD} (--lpips alex)"
    )


@torch.no_grad()
def pairwise_lpips(lpips: LPIPS, pictures: Tensor) -> Tensor:
    """LPIPS of all pairs of some pictures; the network sees each picture once.

    Args:
        lpips: the distance.
        pictures: S,3,H,W in [-1, 1], on its device, S at least 2.

    Returns:
        S (S - 1) / 2 distances, float32: of pictures 0 and 1, 1 and 2, ..., then of 0 and 2, 1 and 3, ...

    Raises:
        ValueError: fewer than two pictures, or what `LPIPS.features` refuses.
    """
    count = len(pictures)
    if count < 2:
        raise ValueError(f"pictures: expected at least 2 to compare, got {count}")
    maps = lpips.features(pictures).maps
    wide = torch.promote_types(maps[0].dtype, torch.float32)
    heads: Sequence[Tensor | None] = [head.to(wide) for head in lpips.heads] or [None] * len(maps)
    found = []
    for apart in range(1, count):  # views of the maps: 45 pairs of ten pictures without a copy of any
        layers = [
            lpips_layer(x[:-apart], x[apart:], head, eps=lpips.eps, eps_inside=lpips.eps_inside)
            for x, head in zip(maps, heads, strict=True)
        ]
        found.append(torch.stack(layers).sum(0).flatten())
    return torch.cat(found)


@dataclass(frozen=True)
class Diversity(_Plain):
    """What `lpips_diversity` gives.

    Attributes:
        mean: over contents of the mean over pairs; higher is more diverse, 0 one style only.
        error: standard error of `mean` for other contents; NaN of one.
        contents: how many there were.
        styles: of each content.
        pairs: of each content, styles (styles - 1) / 2.
    """

    mean: float
    error: float
    contents: int
    styles: int
    pairs: int


def lpips_diversity(painted: Iterable[Tensor], distances: Callable[[Tensor], Tensor]) -> Diversity:
    """How different one content looks in different styles.

    Args:
        painted: N,S,3,H,W in [-1, 1] one after the other, any N: each of N contents in S styles, S the same throughout
            and at least 2.
        distances: S,3,H,W -> distances of all pairs: `functools.partial(pairwise_lpips, lpips)`.

    Raises:
        ValueError: other shapes.
        DataError: no contents, or distances that are not finite.
    """
    average, styles = _Average(), 0
    for contents in painted:
        if contents.ndim != 5 or contents.shape[1] < 2 or contents.shape[1] != (styles or contents.shape[1]):
            raise ValueError(
                f"painted: expected N,S,3,H,W with S {styles or 'at least 2'}, got {tuple(contents.shape)}"
            )
        styles = contents.shape[1]
        if len(contents):
            average.update(torch.stack([distances(pictures).double().mean() for pictures in contents]))
    if not average.count:
        raise DataError("diversity needs at least one content")
    return Diversity(average.mean, average.error, average.count, styles, styles * (styles - 1) // 2)


# --- style stability


@dataclass(frozen=True)
class Stability(_Plain):
    """What `style_stability` gives.

    Attributes:
        variance: of a picture's style code over its augmentations (divisor: their number), the mean of its dimensions
            and of the pictures; lower is more stable.
        error: standard error of `variance` for other pictures; NaN of one.
        between: variance over the pictures of their mean codes, the mean of the dimensions: what `variance` is to be
            seen beside, for codes that are always the same are stable too; NaN of one.
        pictures: how many there were.
        augmentations: of each.
    """

    variance: float
    error: float
    between: float
    pictures: int
    augmentations: int


@torch.no_grad()
def style_stability(
    encode: Callable[[Tensor], Tensor],
    augment: Callable[[Tensor, Tensor], Tensor],
    pictures: Iterable[Tensor],
    *,
    augmentations: int = 7,
    seed: int = 0,
    batch: int = 8,
) -> Stability:
    """How little a picture's style code changes with its pose: mean variance over augmentations.

    Augmentation k of picture n follows from `seed`, n and k, however pictures are divided into batches.

    Args:
        encode: N,3,H,W -> style codes N,D, each picture's own.
        augment: (N,3,H,W, seeds int64 [N] on the same device) -> the same shape; seeds decide everything.
        pictures: N,3,H,W one after the other, any N.
        augmentations: of each picture, at least 2.
        seed: of the augmentations.
        batch: pictures to augment and encode at once.

    Raises:
        ValueError: too few augmentations, a batch below 1, or other shapes.
        DataError: no pictures, or codes that are not finite.
    """
    if augmentations < 2 or batch < 1:
        raise ValueError(f"augmentations and batch: expected at least 2 and 1, got {augmentations} and {batch}")
    within = _Average()
    means: Statistics | None = None
    first = torch.Generator().manual_seed(seed)
    start = int(torch.randint(2**62, (), generator=first))  # neighbouring seeds share no augmentation
    for images in pictures:
        rows = torch.arange(len(images) * augmentations, device=images.device)
        if not len(rows):
            continue
        parts = []
        for part in rows.split(batch):
            codes = encode(augment(images[part // augmentations], part + start))
            if codes.ndim != 2 or len(codes) != len(part):
                raise ValueError(f"encode: expected {len(part)},D, got {tuple(codes.shape)}")
            parts.append(codes.double())
        codes = torch.cat(parts).unflatten(0, (len(images), augmentations))
        start += len(rows)
        within.update(codes.var(dim=1, correction=0).mean(dim=1))
        means = means or Statistics(codes.shape[2])
        means.update(codes.mean(dim=1))
    if means is None:
        raise DataError("style stability needs at least one picture")
    between = float(means.scatter.diagonal().mean()) / means.count if means.count > 1 else math.nan
    return Stability(within.mean, within.error, between, within.count, augmentations)


# --- DFID


@dataclass(frozen=True)
class DFID(_Plain):
    """What `dfid` gives.

    Attributes:
        mean: over contents of the FID of one content in all styles; low only where one content covers what is real.
        error: standard error of `mean` for other contents; NaN of one.
        contents: how many there were.
        styles: of each content.
        values: each content's.
    """

    mean: float
    error: float
    contents: int
    styles: int
    values: list[float]


def content_fids(
    painted: Iterable[Iterable[Tensor]], extractor: Extractor, real: Sequence[Statistics]
) -> Iterator[tuple[int, list[float]]]:
    """The FID of each content's pictures by themselves, one content after the other.

    Args:
        painted: contents; each is N,3,H,W in [-1, 1] one after the other, any N: it in all styles.
        extractor: what features are taken with.
        real: features of sets of real pictures, by the same extractor.

    Yields:
        (pictures of the content, their FID against each of `real`), computed where the extractor gives its features.

    Raises:
        DataError: a content in fewer than 2 styles, a real set of fewer than 2, or features that are not finite.
    """
    for pictures in painted:
        made, device = Statistics(extractor.dim), torch.device("cpu")
        for part in pictures:
            features = extractor(part)
            device = features.device
            made.update(features)
        mean, covariance = made.mean.to(device), made.covariance.to(device)
        yield made.count, [frechet_distance(mean, covariance, other.mean, other.covariance) for other in real]


def average_fids(counts: Sequence[int], values: Sequence[float]) -> DFID:
    """DFID of contents whose FIDs are `values`, of `counts` pictures each.

    Raises:
        DataError: no contents, or contents in different numbers of styles.
    """
    if not values:
        raise DataError("DFID needs at least one content")
    if len(set(counts)) != 1:
        raise DataError(f"DFID needs as many styles of each content, there are {min(counts)} to {max(counts)}")
    average = _Average()
    average.update(torch.tensor(values, dtype=torch.float64))
    return DFID(average.mean, average.error, average.count, counts[0], list(values))


def dfid(painted: Iterable[Iterable[Tensor]], extractor: Extractor, real: Statistics) -> DFID:
    """Diversity FID: how well one content in all styles covers real pictures, averaged over contents.

    The FID of each content's pictures has the bias of FID, the larger the fewer styles there are: compare values of the
    same number of styles and the same extractor only.

    Args:
        painted: see `content_fids`; as many pictures of each content.
        extractor: what features are taken with.
        real: features of the real pictures, by the same extractor: `FeatureSet.statistics`.

    Raises:
        DataError: as `content_fids` and `average_fids`.
    """
    found = list(content_fids(painted, extractor, [real]))
    return average_fids([count for count, _ in found], [values[0] for _, values in found])
