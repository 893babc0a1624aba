"""Codes of all pictures, what they are together, and codes drawn from that (specification, section 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifast.data.labelled import Labelled
from anifast.engine import state
from anifast.engine.precision import autocast
from anifast.errors import CheckpointError
from anifast.progress import Progress
from anifast.systems.disentangle.augmentation import prepare
from anifast.systems.disentangle.networks import Encoder, StyleBank

FORMAT = "anifast.disentangle.codes/1"
#: The file in a run folder.
NAME = "codes.pt"
_PARTS = {"mean": 1, "std": 1, "eigenvalues": 1, "eigenvectors": 2, "weight": 1}


def statistics(mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """What a population of codes is like, in float64.

    Args:
        mean: of each picture's code, N,d.
        std: its standard deviation, N,d.

    Returns:
        mean [d]; std [d], of all codes drawn from all pictures' distributions; eigenvalues [d], ascending, and
        eigenvectors d,d, in columns, of their covariance Cov(mean) + diag(mean of std^2); weight [d], the part of a
        number's variance that lies between pictures.

    Raises:
        ValueError: no codes, or some that are not finite.
    """
    if mean.ndim != 2 or mean.shape != std.shape or not len(mean):
        raise ValueError(f"mean and std: expected N,d with N above 0, got {tuple(mean.shape)} and {tuple(std.shape)}")
    count, size = mean.shape
    middle, square = mean.new_zeros(size, dtype=torch.float64), mean.new_zeros(size, dtype=torch.float64)
    for part, within in zip(mean.split(8192), std.split(8192), strict=True):
        middle += part.double().sum(0)
        square += within.double().square().sum(0)
    middle /= count
    between = mean.new_zeros(size, size, dtype=torch.float64)
    for part in mean.split(8192):
        centred = part.double() - middle
        between += centred.T @ centred
    between /= count
    covariance = between + torch.diag(square / count)
    if not bool(torch.isfinite(covariance).all()):
        raise ValueError("mean and std: some codes are not finite")
    values, vectors = torch.linalg.eigh(covariance)
    total = covariance.diagonal()
    return {
        "mean": middle,
        "std": total.sqrt(),
        "eigenvalues": values.clamp(min=0),
        "eigenvectors": vectors,
        "weight": between.diagonal() / total,
    }


def _coloured(noise: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """n Q sqrt(L) Q^T for noise N,d."""
    q, spread = vectors.to(noise), values.clamp(min=0).sqrt().to(noise)
    return (noise @ q * spread) @ q.T


def random_contents(found: Mapping[str, Tensor], noise: Tensor) -> Tensor:
    """Content codes N,d with the mean and covariance of the population, from noise N,d of N(0, 1)."""
    return found["mean"].to(noise) + _coloured(noise, found["eigenvalues"], found["eigenvectors"])


def random_styles(bank: StyleBank, noise: Tensor) -> Tensor:
    """Style codes N,s with the covariance of the artists, each counting alike, from noise N,s of N(0, 1)."""
    values, vectors = torch.linalg.eigh(bank.covariance())
    return _coloured(noise, values, vectors)


def digest(net: nn.Module) -> str:
    """By what a network's weights are known again."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


@torch.no_grad()
def encode(
    encoder: Encoder, pictures: Labelled, device: torch.device, batch: int = 64, precision: str = "fp32"
) -> dict[str, Any]:
    """The codes of all pictures in their order, and their statistics: what `codes.pt` holds.

    Args:
        encoder: E, on `device`.
        pictures: to be encoded.
        device: where.
        batch: pictures at once.
        precision: "fp32" or "bf16".

    Raises:
        CheckpointError: the encoder gives codes that are not finite.
    """
    means, stds = [], []
    with Progress(len(pictures), "encode") as bar:
        for part in torch.arange(len(pictures)).split(batch):
            images, _, _ = pictures.batch(part, device)
            with autocast(device, precision):
                mean, std = encoder(prepare(images))
            means.append(mean.float().cpu())
            stds.append(std.float().cpu())
            bar.update(len(part))
    mean, std = torch.cat(means), torch.cat(stds)
    try:
        found = statistics(mean, std)
    except ValueError as error:
        raise CheckpointError(f"the encoder's codes cannot be used: {error}") from error
    return {
        "format": FORMAT,
        "mean": mean,
        "std": std,
        "labels": pictures.labels.cpu(),
        "names": list(pictures.names),
        "classes": list(pictures.classes),
        "statistics": found,
        "data": pictures.digests(),
        "encoder": digest(encoder),
    }


def read(path: Path) -> dict[str, Any]:
    """A file of codes.

    Raises:
        CheckpointError: missing, damaged, or something else.
    """
    found = state.load(path)
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{path}: no file of codes ({FORMAT}); make them anew by --stage encode")
    parts: Any = found.get("statistics")
    whole = isinstance(parts, dict) and all(isinstance(found.get(key), Tensor) for key in ("mean", "std", "labels"))
    if not whole or not all(isinstance(parts.get(k), Tensor) and parts[k].ndim == n for k, n in _PARTS.items()):
        raise CheckpointError(f"{path}: parts of the codes are missing; make them anew by --stage encode")
    return found


def check(found: Mapping[str, Any], path: Path, encoder: nn.Module, pictures: Labelled) -> None:
    """Look whether codes are those of these pictures by this encoder.

    Raises:
        CheckpointError: they are of another encoder.
        DataError: they are of other pictures.
    """
    if found["encoder"] != digest(encoder):
        raise CheckpointError(f"{path}: the codes are of another encoder; make them anew by --stage encode")
    since, way_out = f"the codes of {path} were made", "Put the old ones back, or make the codes anew by --stage encode"
    pictures.check(found["data"], since=since, way_out=way_out)
