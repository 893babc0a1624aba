"""Sliced Wasserstein distance: against sets whose distance is known, and the paper's formulas written out."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from anifast.metrics.swd import DIRECTIONS, PATCHES, SIDE, levels, patches, sliced_wasserstein, swd

#: The module, whose name the function in it has too.
swd_module = importlib.import_module("anifast.metrics.swd")


def faces(count: int, side: int = 32, seed: int = 0, smooth: int = 1) -> Tensor:
    """uint8 count,3,side,side: noise, the smoother the larger `smooth`."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, side, side, generator=source)
    noise = torch.nn.functional.avg_pool2d(noise, smooth, 1, smooth // 2)
    return noise.mul(255).round().byte()


def axes(count: int, dim: int) -> Tensor:
    source = torch.Generator().manual_seed(5)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=source, dtype=torch.float64), dim=1)


def test_levels() -> None:
    assert levels(128) == [128, 64, 32, 16] and levels(16) == [16] and levels(8) == []
    for side in (24, 17, 40):
        with pytest.raises(ValueError, match="16 times a power of two"):
            levels(side)


def test_a_set_and_itself() -> None:
    """In whatever order."""
    images = faces(12)
    assert swd(images, images) == {32: 0.0, 16: 0.0}
    assert swd(images, images.flip(0)) == {32: 0.0, 16: 0.0}


def test_order_counts_nothing() -> None:
    x, y = faces(12, 32, 0), faces(9, 32, 1, smooth=3)
    found, again = swd(x, y), swd(x[torch.randperm(12)], y.flip(0))
    for side in (32, 16):
        # Channels' means are summed in another order: a last digit of float64, which float32 directions may round away.
        assert again[side] == pytest.approx(found[side], rel=1e-6)
    assert swd(x, y, seed=1) != found


def test_grain_is_seen_at_its_scale() -> None:
    """In the finest level, where smooth pictures have nothing, more than in the coarsest, where it is averaged away."""
    shapes = torch.nn.functional.interpolate(faces(40, 4, 3).float(), 32, mode="bilinear").byte()
    grain = torch.randint(-9, 10, shapes.shape, generator=torch.Generator().manual_seed(4))
    found = swd(shapes, (shapes.int() + grain).clamp(0, 255).byte())
    assert found[32] > 2 * found[16]


def test_brightness_and_contrast_of_a_set_count_nothing() -> None:
    """Each set is normalised by itself."""
    rows = patches(faces(10), 0, last=True).double()
    other = patches(faces(10, seed=1, smooth=3), 0, last=True).double()
    directions = axes(50, 3 * SIDE * SIDE).float()
    assert rows.shape == (10 * PATCHES, 3 * SIDE * SIDE)
    changed = (
        rows.unflatten(1, (3, -1)) * torch.tensor([0.5, 2.0, 1.0])[:, None] + torch.tensor([0.1, -0.2, 0.3])[:, None]
    )
    # Projections are float32: about 1e-6 of values of about 3 whose parts have been added.
    assert swd_module._distance(rows, changed.flatten(1), directions) == pytest.approx(0.0, abs=1e-5)
    assert swd_module._distance(rows, other, directions) > 0.05


@pytest.mark.parametrize(("m", "n"), [(6, 6), (4, 6), (5, 7)])
def test_shifted_sets(m: int, n: int) -> None:
    """Sets that differ by a shift are apart by its length along each direction, whatever their sizes."""
    few = torch.randn(1, 5, dtype=torch.float64).expand(m, -1)
    many, shift = few[:1].expand(n, -1), torch.tensor([0.3, -1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    directions = axes(50, 5)
    expected = float((directions @ shift).abs().mean())
    # Projections are float32: about 1e-7 of values of about 3.
    assert sliced_wasserstein(few, many + shift, directions) == pytest.approx(expected, abs=2e-6)
    spread = torch.randn(m, 5, dtype=torch.float64)
    assert sliced_wasserstein(spread, spread + shift, directions) == pytest.approx(expected, abs=2e-6)
    twice = spread.repeat_interleave(2, 0)
    assert sliced_wasserstein(spread, twice + shift, directions) == pytest.approx(expected, abs=2e-6)


def test_sets_of_other_sizes() -> None:
    """As the integral of the difference of two distribution functions."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=source), torch.randn(8, 3, generator=source) * 2
    directions = axes(20, 3)
    total = 0.0
    for axis in directions:
        a, b = sorted((x.double() @ axis).tolist()), sorted((y.double() @ axis).tolist())
        grid = sorted(a + b)
        for low, high in zip(grid, grid[1:], strict=False):
            total += (high - low) * abs(sum(v <= low for v in a) / len(a) - sum(v <= low for v in b) / len(b))
    assert sliced_wasserstein(x, y, directions) == pytest.approx(total / 20, rel=1e-5)  # projections are float32


def test_as_the_paper_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch by patch in numpy, with the same places and directions; and no piece of the work changes it."""
    x, y = faces(3, 32, 0), faces(3, 32, 1, smooth=3)
    found = swd(x, y, seed=3)
    source = torch.Generator().manual_seed(3)
    taps = np.array([1, 4, 6, 4, 1]) / 16

    def blurred(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, 2, mode="reflect")
        return np.array(
            [
                [np.sum(np.outer(taps, taps) * padded[r : r + 5, c : c + 5]) for c in range(image.shape[1])]
                for r in range(image.shape[0])
            ]
        )

    def laplacian(image: np.ndarray) -> np.ndarray:
        low = blurred(image)[::2, ::2]
        wide = np.zeros_like(image)
        wide[::2, ::2] = low
        return image - 4 * blurred(wide)

    for depth, side in enumerate((32, 16)):
        directions = torch.nn.functional.normalize(torch.randn(DIRECTIONS, 147, generator=source), dim=1).double()
        projected = []
        for images in (x, y):
            rows = patches(images, depth, last=depth == 1, seed=3).double()
            # every patch is one of the level's
            level = [
                [laplacian(c) if depth == 0 else blurred(c)[::2, ::2] for c in one] for one in images.numpy() / 255
            ]
            window = np.lib.stride_tricks.sliding_window_view(np.array(level), (SIDE, SIDE), axis=(2, 3))
            every = window.transpose(0, 2, 3, 1, 4, 5).reshape(3, -1, 147)
            for number in range(3):
                mine = rows[number * PATCHES : (number + 1) * PATCHES].numpy()
                off = np.abs(mine[:, None] - every[number][None]).max(2).min(1)
                assert off.max() < 2**-11  # float16 of values up to 1
            normal = rows.unflatten(1, (3, -1))
            normal = (normal - normal.mean((0, 2), keepdim=True)) / normal.std((0, 2), keepdim=True, correction=0)
            projected.append((normal.flatten(1) @ directions.T).sort(dim=0).values)
        expected = 1e3 * float((projected[0] - projected[1]).abs().mean())
        assert found[side] == pytest.approx(expected, rel=1e-5)  # float32 projections
    for name, value in (("_PIECE", 500), ("_PICTURES", 2)):
        monkeypatch.setattr(swd_module, name, value)
    again = swd(x, y, seed=3)
    assert again == pytest.approx(found, rel=1e-6)  # sums in another order


def test_pictures_of_one_colour() -> None:
    """Have no deviation to be divided by."""
    grey = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    found = swd(grey, faces(2, 16))
    assert math.isfinite(found[16]) and found[16] > 0
    assert swd(grey, grey + 20)[16] == pytest.approx(0.0, abs=1e-3)


def test_what_cannot_be() -> None:
    good = faces(2, 16)
    for x, y in ((good.float(), good), (good, good[:0]), (good[0], good), (good, good[:, :1])):
        with pytest.raises(ValueError, match="expected uint8 N,3,S,S"):
            swd(x, y)
    with pytest.raises(ValueError, match="squares of one side"):
        swd(good, faces(2, 32))
    assert swd(faces(2, 8), faces(2, 8)) == {}
    one = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="expected M,D"):
        sliced_wasserstein(one, one, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="nothing to compare"):
        sliced_wasserstein(one[:0], one, one)
