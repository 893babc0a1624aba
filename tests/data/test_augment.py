from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from anifast.data import augment
from anifast.data.augment import (
    color_jitter,
    compose,
    crop_flip,
    cropping,
    flipping,
    random_crop,
    random_flip,
    random_resized_crop,
    resizing,
    rotation,
    scaling,
    shearing,
    to_theta,
    translation,
    uniforms,
    warp,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
IDENTITY = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images in [-1, 1], or 0..255 for uint8."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def coarse(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Images of values so far apart that rounding to them undoes the rounding of float32 coordinates."""
    return rand(*shape, dtype=dtype) if dtype == torch.uint8 else (rand(*shape) / 4 + 0.75).to(dtype)


def center(height: int, width: int) -> tuple[float, float]:
    return (width - 1) / 2, (height - 1) / 2


def interpolation_error(side: int, dtype: torch.dtype = torch.float32) -> float:
    """What rounding of a coordinate costs: 4 roundings of numbers up to 1, half a side of pixels each, slope 2."""
    return 4 * torch.finfo(dtype).eps * side / 2 * 2


# uniforms


def splitmix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms_slowly(seeds: list[int], count: int, stream: int) -> np.ndarray:
    wrap = (1 << 64) - 1
    rows = []
    for seed in seeds:
        state = int(splitmix(np.array([(seed + stream * 0xD1B54A32D192ED03) & wrap], np.uint64))[0])
        steps = np.array([(state + k * 0x9E3779B97F4A7C15) & wrap for k in range(1, count + 1)], np.uint64)
        rows.append((splitmix(steps) >> np.uint64(40)).astype(np.float64) / 2**24)
    return np.array(rows)


def test_the_hash_is_splitmix64():
    """The first outputs of SplitMix64 seeded by 1234567, as published with its reference implementation."""
    steps = np.array([(1234567 + k * 0x9E3779B97F4A7C15) & ((1 << 64) - 1) for k in (1, 2, 3)], np.uint64)
    assert splitmix(steps).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    got = augment._mix(torch.from_numpy(steps.view(np.int64)))
    assert got.numpy().view(np.uint64).tolist() == splitmix(steps).tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stream", [0, 1, 2, 12345])
def test_uniforms_equal_a_slow_loop(device, stream):
    seeds = [0, 1, 2, -1, 17, 2**31, 2**32 + 5, 2**63 - 1, -(2**63), 987654321987654321]
    got = uniforms(torch.tensor(seeds, device=device), 7, stream=stream)
    assert got.dtype == torch.float32 and got.device.type == device
    np.testing.assert_array_equal(got.cpu().numpy(), uniforms_slowly(seeds, 7, stream))


def test_uniforms_depend_on_the_own_seed_only():
    seeds = torch.arange(100) * 7 - 50
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    whole = uniforms(seeds, 5)
    assert torch.equal(uniforms(seeds[order], 5), whole[order])
    assert torch.equal(uniforms(seeds[13:14], 5)[0], whole[13])
    assert torch.equal(uniforms(seeds, 2), whole[:, :2])
    assert uniforms(seeds[:0], 5).shape == (0, 5) and uniforms(seeds, 0).shape == (100, 0)


@pytest.mark.parametrize("stride", [1, 2, 256, 2**32, 0x9E3779B97F4A7C15 - 2**64], ids=str)
def test_uniforms_statistics(stride):
    """Bounds of 5 standard deviations, for seeds in any regular pattern, along seeds and along k."""
    n, count = 4096, 16
    u = uniforms(torch.arange(n) * stride, count).double()
    assert 0 <= u.min() and u.max() < 1
    for values in (u, u.T.contiguous()):
        length = values.shape[0]
        assert ((values.mean(0) - 0.5).abs() < 5 / math.sqrt(12 * length)).all()
        assert ((values.var(0, correction=0) - 1 / 12).abs() < 5 * math.sqrt(1 / 180 / length)).all()
    z = (u - 0.5) * math.sqrt(12)
    assert (z[1:] * z[:-1]).mean(0).abs().max() < 5 / math.sqrt(n)
    assert (z[2:] * z[:-2]).mean(0).abs().max() < 5 / math.sqrt(n)
    across = z.T @ z / n
    assert (across - torch.diag(across.diag())).abs().max() < 5 / math.sqrt(n)
    other = (uniforms(torch.arange(n) * stride, count, stream=1).double() - 0.5) * math.sqrt(12)
    assert (z.T @ other / n).abs().max() < 5 / math.sqrt(n)

    bins = 64
    for column in u.T:
        observed = torch.bincount((column * bins).long(), minlength=bins).double()
        chi = ((observed - n / bins) ** 2).sum() / (n / bins)
        assert abs(chi - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))
    pairs = torch.bincount((u[:, :-1] * 8).long().flatten() * 8 + (u[:, 1:] * 8).long().flatten(), minlength=64)
    expected = n * (count - 1) / 64
    assert abs(((pairs - expected) ** 2).sum() / expected - 63) < 5 * math.sqrt(2 * 63)


def test_uniforms_low_bits_are_random_too():
    u = uniforms(torch.arange(4096), 4).double()
    bits = (u[..., None] * 2.0 ** torch.arange(1, 25)).floor() % 2
    assert ((bits.mean((0, 1)) - 0.5).abs() < 5 * 0.5 / math.sqrt(4 * 4096)).all()


@pytest.mark.parametrize(
    ("seeds", "count", "message"),
    [
        (torch.zeros(3, dtype=torch.int32), 2, r"seeds: expected int64 of shape \(N,\), got torch.int32"),
        (torch.zeros(3), 2, "seeds: expected int64"),
        (torch.zeros(3, 1, dtype=torch.int64), 2, r"of shape \(3, 1\)"),
        (torch.zeros(3, dtype=torch.int64), -1, "count: expected 0 or more, got -1"),
    ],
)
def test_uniforms_refuses(seeds, count, message):
    with pytest.raises(ValueError, match=message):
        uniforms(seeds, count)


# Crops and flips


def layouts(images: torch.Tensor) -> dict[str, torch.Tensor]:
    n, c, h, w = images.shape
    wide = images.new_zeros(n, c, h, w + 5)
    wide[..., 2 : w + 2] = images
    return {
        "contiguous": images.contiguous(),
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "slice": wide[..., 2 : w + 2],
    }


def crop_flip_slowly(images: torch.Tensor, size: tuple[int, int], seeds: torch.Tensor, flip: float) -> torch.Tensor:
    draws = uniforms(seeds, 3, stream=1).tolist()
    out = []
    for image, (u_top, u_left, u_flip) in zip(images, draws, strict=True):
        top = math.floor(u_top * (image.shape[1] - size[0] + 1))
        left = math.floor(u_left * (image.shape[2] - size[1] + 1))
        window = image[:, top : top + size[0], left : left + size[1]]
        out.append(window.flip(2) if u_flip < flip else window)
    return torch.stack(out)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "size"), [(3, (16, 11)), (1, (16, 11)), (4, (23, 19)), (3, (1, 1))])
def test_crop_flip_equals_slicing(device, layout, dtype, channels, size):
    images = layouts(rand(9, channels, 23, 19, dtype=dtype))[layout].to(device)
    seeds = torch.arange(9, device=device) * 3 + 40
    got = crop_flip(images, size, seeds)
    assert torch.equal(got, crop_flip_slowly(images, size, seeds, 0.5))
    assert got.dtype == dtype and got.shape == (9, channels, *size)
    kept = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert got.is_contiguous(memory_format=kept)
    assert torch.equal(random_crop(images, size, seeds), crop_flip_slowly(images, size, seeds, 0.0))
    assert torch.equal(random_flip(random_crop(images, size, seeds), seeds), got)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_crop_flip_any_size(data):
    side = st.integers(1, 9)
    n, c, h, w = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4)), data.draw(side), data.draw(side)
    size = (data.draw(st.integers(1, h)), data.draw(st.integers(1, w)))
    seed = st.integers(-(2**63), 2**63 - 1)
    seeds = torch.tensor(data.draw(st.lists(seed, min_size=n, max_size=n)), dtype=torch.int64)
    images = rand(n, c, h, w, dtype=torch.uint8)
    got = crop_flip(images, size, seeds)
    assert got.shape == (n, c, *size)
    if n:
        assert torch.equal(got, crop_flip_slowly(images, size, seeds, 0.5))


def test_square_size_and_batch_independence():
    images, seeds = rand(4, 3, 40, 36), torch.tensor([5, 6, 7, 8])
    whole = crop_flip(images, 32, seeds)
    assert whole.shape == (4, 3, 32, 32)
    order = [2, 0, 3, 1]
    assert torch.equal(crop_flip(images[order], 32, seeds[order]), whole[order])
    assert torch.equal(crop_flip(images[1:2], 32, seeds[1:2]), whole[1:2])


def test_crop_corners_are_uniform():
    """286 -> 256 reaches all 31 offsets of each axis alike, and the axes and the flip are independent."""
    n = 31 * 31 * 8
    place = torch.arange(286.0)
    images = torch.stack([place[:, None].expand(286, 286), place.expand(286, 286)])[None].expand(n, 2, 286, 286)
    seeds = torch.arange(n)
    corner = random_crop(images[..., :31, :31], (1, 1), seeds)[:, :, 0, 0].long()
    both = torch.bincount(corner[:, 0] * 31 + corner[:, 1], minlength=961)
    assert abs(((both - 8.0) ** 2).sum() / 8 - 960) < 5 * math.sqrt(2 * 960)
    edge = random_crop(images[..., :1, :2], (1, 1), seeds)[:, 1, 0, 0]
    mirrored = random_flip(images[..., :1, :2], seeds)[:, 1, 0, 0]
    both = torch.bincount((edge + 2 * mirrored).long(), minlength=4)
    assert abs(((both - n / 4) ** 2).sum() / (n / 4) - 3) < 5 * math.sqrt(6)


def test_flip_probability():
    images, seeds = rand(6, 3, 5, 4), torch.arange(6)
    assert torch.equal(random_flip(images, seeds, 0.0), images)
    assert torch.equal(random_flip(images, seeds, 1.0), images.flip(3))
    assert torch.equal(crop_flip(images, (5, 4), seeds, 1.0), images.flip(3))
    many = torch.arange(20000)
    mirrored = random_flip(torch.tensor([0.0, 1.0]).expand(20000, 1, 1, 2), many, 0.3)[:, 0, 0, 0]
    assert abs(float(mirrored.mean()) - 0.3) < 5 * math.sqrt(0.21 / 20000)


def test_crop_flip_gradient():
    images = rand(3, 2, 6, 5, dtype=torch.float64).requires_grad_()
    seeds = torch.arange(3)
    assert torch.autograd.gradcheck(lambda x: crop_flip(x, (4, 3), seeds), images)


ONE = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: crop_flip(x, 9, ONE), "size: a window of 9x9 does not fit into images of 8x10"),
        (lambda x: random_crop(x, (8, 11), ONE), "size: a window of 8x11 does not fit into images of 8x10"),
        (lambda x: random_crop(x, 0, ONE), r"size: expected a positive number or \(height, width\), got 0"),
        (lambda x: random_crop(x, (4, 4, 4), ONE), "size: expected a positive number"),
        (lambda x: random_crop(x[0], 4, ONE), r"images: expected N,C,H,W .* got shape \(3, 8, 10\)"),
        (lambda x: random_crop(x[:, :, :0], 4, ONE), r"images: expected N,C,H,W with at least one pixel"),
        (lambda x: random_crop(x, 4, ONE[:1]), "seeds: expected one for each of 2 images, got 1"),
        (lambda x: random_crop(x, 4, ONE.float()), "seeds: expected int64"),
        (lambda x: random_crop(x, 4, ONE.to("meta")), "seeds: expected on the images' device cpu, got meta"),
        (lambda x: random_flip(x, ONE, 1.5), r"p: expected a probability in \[0, 1\], got 1.5"),
        (lambda x: crop_flip(x, 4, ONE, -0.1), r"flip: expected a probability in \[0, 1\], got -0.1"),
    ],
)
def test_crops_and_flips_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 8, 10))


# Colour


def jitter_slowly(pixel: list[float], shift: float, factor: float, brightness_first: bool) -> list[float]:
    """One RGB pixel in [0, 1] through HSV."""

    def saturate(rgb: list[float]) -> list[float]:
        value, least = max(rgb), min(rgb)
        if value <= 0 or value == least:
            return [value] * 3
        saturation = min((value - least) / value * factor, 1.0)
        # (channel - least) / (value - least) holds the hue; it stays.
        return [value * (1 - saturation * (1 - (c - least) / (value - least))) for c in rgb]

    rgb = [c + shift for c in pixel] if brightness_first else pixel
    rgb = saturate(rgb)
    rgb = rgb if brightness_first else [c + shift for c in rgb]
    return [min(max(c, 0.0), 1.0) for c in rgb]


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_color_jitter_equals_a_slow_loop(first):
    images = (rand(40, 3, 2, 3, dtype=torch.float64) + 1) / 2
    images[0] = 0.0
    images[1] = 1.0
    images[2, 1:] = 0.0
    images[3, :] = images[3, :1]
    seeds = torch.arange(40)
    got = color_jitter(images, seeds, brightness=0.4, saturation=(0.0, 3.0), brightness_first=first)
    draws = uniforms(seeds, 3, stream=2).double()
    for i in range(40):
        shift, factor = float(2 * draws[i, 0] - 1) * 0.4, float(draws[i, 1]) * 3.0
        for y in range(2):
            for x in range(3):
                want = jitter_slowly(images[i, :, y, x].tolist(), shift, factor, first == 1.0)
                assert got[i, :, y, x].tolist() == pytest.approx(want, abs=1e-6)


def test_color_jitter_value_range_dtype_and_layout():
    images = ((rand(5, 3, 4, 6) + 1) / 2).contiguous(memory_format=torch.channels_last)
    seeds = torch.arange(5) + 9
    unit = color_jitter(images, seeds)
    assert unit.min() >= 0 and unit.max() <= 1 and not torch.equal(unit, images)
    assert unit.is_contiguous(memory_format=torch.channels_last)
    signed = color_jitter(images * 2 - 1, seeds, value_range=(-1, 1))
    torch.testing.assert_close(signed, unit * 2 - 1, atol=2e-6, rtol=0)
    for dtype in (torch.float16, torch.bfloat16):
        half = images.to(dtype)
        got = color_jitter(half, seeds)
        assert got.dtype == dtype
        assert torch.equal(got, color_jitter(half.float(), seeds).to(dtype))
    assert torch.equal(color_jitter(images[2:3], seeds[2:3]), unit[2:3])
    assert color_jitter(images[:0], seeds[:0]).shape == (0, 3, 4, 6)


def test_color_jitter_off_is_identity():
    images = (rand(3, 3, 4, 4) + 1) / 2
    got = color_jitter(images, torch.arange(3), brightness=0, saturation=(1, 1))
    torch.testing.assert_close(got, images, atol=1e-6, rtol=0)


def test_color_jitter_order_comes_up_as_often_as_said():
    """The order shows where saturation meets its limit of 1: full at first, less after added brightness."""
    seeds = torch.arange(20000)
    pixel = torch.tensor([0.5, 0.25, 0.0]).reshape(1, 3, 1, 1).expand(20000, 3, 1, 1)
    brightness_first = color_jitter(pixel, seeds, brightness_first=1.0)
    saturation_first = color_jitter(pixel, seeds, brightness_first=0.0)
    shows = (brightness_first - saturation_first).abs().amax((1, 2, 3)) > 1e-4
    mixed = color_jitter(pixel, seeds)[shows]
    took_first = (mixed == brightness_first[shows]).all(1).flatten()
    took_second = (mixed == saturation_first[shows]).all(1).flatten()
    count = int(shows.sum())
    assert count > 4000 and (took_first ^ took_second).all()
    assert abs(float(took_first.float().mean()) - 0.25) < 5 * math.sqrt(0.1875 / count)


def test_color_jitter_gradient_is_finite_also_on_grey():
    images = torch.full((4, 3, 2, 2), 0.5)
    images[1] = 0.0
    images[2, 0] = 0.9
    images.requires_grad_()
    color_jitter(images, torch.arange(4)).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: color_jitter(x.byte(), ONE), TypeError, "images: expected a floating dtype, got torch.uint8"),
        (lambda x: color_jitter(x[:, :1], ONE), ValueError, r"images: expected 3 channels \(RGB\), got 1"),
        (lambda x: color_jitter(x[0], ONE), ValueError, "images: expected N,C,H,W"),
        (lambda x: color_jitter(x, ONE[:1]), ValueError, "seeds: expected one for each of 2 images, got 1"),
        (lambda x: color_jitter(x, ONE, brightness=-1), ValueError, "brightness: expected 0 or more, got -1"),
        (lambda x: color_jitter(x, ONE, saturation=(2, 1)), ValueError, "saturation: expected 0 <= lowest <= highest"),
        (lambda x: color_jitter(x, ONE, brightness_first=2), ValueError, "brightness_first: expected a probability"),
        (lambda x: color_jitter(x, ONE, value_range=(1, 1)), ValueError, r"value_range: expected \(lowest, highest\)"),
    ],
)
def test_color_jitter_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4, 4))


# Crops that are stretched


def resized_crop_slowly(image, seed, size, least, flip, half_pixel):
    """int(side * U(least, 1)) each, uniform position, then every pixel of the result by itself; C,H,W in float64."""
    u = uniforms_slowly([seed], 5, 3)[0]
    sides = image.shape[1:]
    extents = [max(1, int(side * (least + (1 - least) * draw))) for side, draw in zip(sides, u[:2], strict=True)]
    corners = [int((side - extent + 1) * draw) for side, extent, draw in zip(sides, extents, u[2:4], strict=True)]
    window = image[:, corners[0] : corners[0] + extents[0], corners[1] : corners[1] + extents[1]].astype(np.float64)
    out = np.empty((len(image), *size))
    for row, column in np.ndindex(*size):
        pixel, parts = np.zeros(len(image)), []
        for index, extent, count in ((row, extents[0], size[0]), (column, extents[1], size[1])):
            at = (index + 0.5) * extent / count - 0.5 if half_pixel else index * extent / count
            at = min(max(at, 0.0), extent - 1.0)
            first = int(at)
            parts.append([(first, 1 - (at - first)), (min(first + 1, extent - 1), at - first)])
        for y, along_y in parts[0]:
            for x, along_x in parts[1]:
                pixel += window[:, y, x] * along_y * along_x
        out[:, row, size[1] - 1 - column if u[4] < flip else column] = pixel
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"), [((20, 20), (16, 16)), ((5, 5), (4, 4)), ((13, 22), (30, 7)), ((3, 1), (2, 2))]
)
def test_random_resized_crop_equals_a_slow_loop(device, half_pixel, shape, size):
    """Crop, then resize: also at the edges of a window nothing outside it is seen."""
    seeds = torch.arange(12) * 7919
    for least, flip in ((0.8, 0.5), (0.3, 0.0), (1.0, 1.0)):
        images = rand(12, 3, *shape)
        got = random_resized_crop(
            images.to(device), size, seeds.to(device), least=least, flip=flip, half_pixel=half_pixel
        ).cpu()
        want = np.stack(
            [
                resized_crop_slowly(image, seed, size, least, flip, half_pixel)
                for image, seed in zip(images.numpy(), seeds.tolist(), strict=True)
            ]
        )
        error = interpolation_error(max(shape))
        torch.testing.assert_close(got, torch.from_numpy(want).float(), atol=error, rtol=0)


def test_random_resized_crop_draws_sides_and_corners_uniformly():
    n, side = 4000, 40
    images = torch.stack([torch.arange(side).expand(side, side), torch.arange(side)[:, None].expand(side, side)])
    # On TensorFlow 1's grid the first pixel is the corner, and two samples span the window: corner and middle.
    out = random_resized_crop(
        images.float().expand(n, 2, side, side), 2, torch.arange(n), least=0.8, flip=0.0, half_pixel=False
    ).double()
    lefts, tops = out[:, 0, 0, 0].round(), out[:, 1, 0, 0].round()
    widths, heights = ((2 * (out[:, 0, 0, 1] - lefts)).round(), (2 * (out[:, 1, 1, 0] - tops)).round())
    for sides, corners in ((widths, lefts), (heights, tops)):
        assert set(sides.tolist()) == set(range(32, 40))  # int(40 * U(0.8, 1)), each as often
        counts = torch.bincount(sides.long(), minlength=40)[32:].double()
        assert ((counts - n / 8).abs() < 5 * math.sqrt(n / 8 * 7 / 8)).all()
        place = (corners + 0.5) / (side - sides + 1)
        assert 0 < place.min() and place.max() < 1
        assert abs(float(place.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(float(torch.corrcoef(torch.stack([widths, heights]))[0, 1])) < 5 / math.sqrt(n)


def test_random_resized_crop_of_the_whole_image():
    images, seeds = rand(8, 3, 9, 12), torch.arange(8)
    error = interpolation_error(12)
    torch.testing.assert_close(
        random_resized_crop(images, (9, 12), seeds, least=1.0, flip=0.0), images, atol=error, rtol=0
    )
    got = random_resized_crop(images, (5, 30), seeds, least=1.0, flip=0.0)
    want = functional.interpolate(images, size=(5, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, want, atol=error, rtol=0)
    mirrored = random_resized_crop(images, (5, 30), seeds, least=1.0)
    flipped = [not torch.allclose(a, b, atol=error) for a, b in zip(got, mirrored, strict=True)]
    assert 0 < sum(flipped) < 8
    for a, b, mirror in zip(got, mirrored, flipped, strict=True):
        torch.testing.assert_close(b, a.flip(2) if mirror else a, atol=0, rtol=0)


def test_random_resized_crop_treats_samples_apart_and_keeps_dtype_and_layout():
    images, seeds = rand(6, 3, 20, 20), torch.arange(6)
    whole = random_resized_crop(images, 16, seeds)
    assert torch.equal(random_resized_crop(images[2:4], 16, seeds[2:4]), whole[2:4])
    last = random_resized_crop(images.contiguous(memory_format=torch.channels_last), 16, seeds)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, whole, atol=torch.finfo(torch.float32).eps * 4, rtol=0)
    assert random_resized_crop(images.double(), 16, seeds).dtype == torch.float64
    half = random_resized_crop(images.to(torch.bfloat16), 16, seeds)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=2 * torch.finfo(torch.bfloat16).eps, rtol=0)
    assert random_resized_crop(images[:0], 16, seeds[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, s: random_resized_crop(x, 4, s, least=0.0), ValueError, "least: expected a part"),
        (lambda x, s: random_resized_crop(x, 4, s, least=1.1), ValueError, "least: expected a part"),
        (lambda x, s: random_resized_crop(x, 4, s, flip=1.5), ValueError, "flip: expected"),
        (lambda x, s: random_resized_crop(x, 0, s), ValueError, "size: expected"),
        (lambda x, s: random_resized_crop(x, 4, s[:1]), ValueError, "seeds: expected"),
        (lambda x, s: random_resized_crop(x[0], 4, s), ValueError, "images: expected"),
        (lambda x, s: random_resized_crop(x.byte(), 4, s), TypeError, "images: expected a floating dtype"),
    ],
)
def test_random_resized_crop_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 5, 5), torch.arange(2))


# The warp


def warp_slowly(image, theta, padding, align_corners, size, mode):
    """One image C,H,W by loops in float64."""
    channels, h, w = image.shape

    def fold(position: float, side: int) -> float:
        if padding == "border":
            return min(max(position, 0.0), side - 1.0)
        if padding == "reflection":
            low, high = (0.0, side - 1.0) if align_corners else (-0.5, side - 0.5)
            while not low <= position <= high:
                if high == low:
                    return low
                position = 2 * low - position if position < low else 2 * high - position
            return min(max(position, 0.0), side - 1.0)
        return position

    def pixel(c: int, y: int, x: int) -> float:
        return float(image[c, y, x]) if 0 <= y < h and 0 <= x < w else 0.0

    def normalised(i: int, side: int) -> float:
        return (2 * i + 1 - side) / max(side - align_corners, 1)

    out = np.zeros((channels, *size))
    for i in range(size[0]):
        for j in range(size[1]):
            u, v = theta @ [normalised(j, size[1]), normalised(i, size[0]), 1.0]
            x = fold((u * (w - align_corners) + w - 1) / 2, w)
            y = fold((v * (h - align_corners) + h - 1) / 2, h)
            for c in range(channels):
                if mode == "nearest":
                    out[c, i, j] = pixel(c, round(y), round(x))
                    continue
                y0, x0 = math.floor(y), math.floor(x)
                fy, fx = y - y0, x - x0
                out[c, i, j] = (
                    pixel(c, y0, x0) * (1 - fy) * (1 - fx)
                    + pixel(c, y0, x0 + 1) * (1 - fy) * fx
                    + pixel(c, y0 + 1, x0) * fy * (1 - fx)
                    + pixel(c, y0 + 1, x0 + 1) * fy * fx
                )
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("shape", "size"), [((3, 2, 6, 9), None), ((2, 1, 7, 5), (4, 11)), ((2, 3, 1, 1), 3), ((2, 2, 5, 4), 1)]
)
def test_warp_equals_a_slow_loop(device, padding, align_corners, mode, shape, size):
    images = rand(*shape, dtype=torch.float64).to(device)
    matrix = rand(shape[0], 2, 3, seed=4, dtype=torch.float64).to(device) * 1.6
    pair = shape[2:] if size is None else (size, size) if isinstance(size, int) else size
    want = np.stack(
        [
            warp_slowly(image, theta, padding, align_corners, pair, mode)
            for image, theta in zip(images.cpu().numpy(), matrix.cpu().numpy(), strict=True)
        ]
    )
    got = warp(images, matrix, padding, align_corners, size, mode)
    np.testing.assert_allclose(got.cpu().numpy(), want, atol=1e-12, rtol=0)
    single = warp(images.float(), matrix.float(), padding, align_corners, size, mode)
    if mode == "bilinear":
        np.testing.assert_allclose(single.cpu().numpy(), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("h", "w"), [(16, 32), (13, 29), (286, 7), (1, 1)])
def test_identity_returns_the_input(align_corners, padding, h, w):
    for dtype in (torch.uint8, torch.bfloat16, torch.float16):
        images = coarse(2, 3, h, w, dtype=dtype)
        assert torch.equal(warp(images, IDENTITY, padding, align_corners), images)
    images = rand(2, 3, h, w)
    torch.testing.assert_close(
        warp(images, IDENTITY, padding, align_corners), images, atol=interpolation_error(max(h, w)), rtol=0
    )
    if not align_corners and (h, w) == (16, 32):  # all coordinates are exact in float32
        assert torch.equal(warp(images, IDENTITY, padding), images)
    images = images.double()
    torch.testing.assert_close(warp(images, IDENTITY, padding, align_corners), images, atol=1e-12, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_flip_translation_and_rotation_are_exact(align_corners, dtype):
    images = coarse(2, 3, 37, 45, dtype=dtype)
    size = (37, 45)

    def apply(matrix: torch.Tensor, out_size: tuple[int, int] = size) -> torch.Tensor:
        return warp(images, to_theta(matrix, size, out_size, align_corners), "zeros", align_corners, out_size)

    assert torch.equal(apply(flipping(45)), images.flip(3))
    assert torch.equal(apply(cropping(4, 9), (20, 30)), images[:, :, 9:29, 4:34])
    moved = apply(translation(5, -3))
    assert torch.equal(moved[:, :, :-3, 5:], images[:, :, 3:, :-5])
    assert moved[:, :, -3:].abs().max() < 1e-4 and moved[:, :, :, :5].abs().max() < 1e-4
    x, y = center(*size)
    upright = compose(rotation(90, (x, y)), translation(y - x, x - y))
    assert torch.equal(apply(upright, (45, 37)), torch.rot90(images, 1, (2, 3)))
    assert torch.equal(apply(rotation(180.0, (x, y))), images.flip(2, 3))
    assert torch.equal(apply(scaling(-1, 1, (x, y))), images.flip(3))
    assert torch.equal(apply(scaling(-1, center=(x, y))), images.flip(2, 3))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_warp_gradients(padding, align_corners):
    images = rand(2, 2, 4, 5, dtype=torch.float64).requires_grad_()
    matrix = (IDENTITY.double() + 0.3 * rand(2, 2, 3, seed=8, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, m: warp(x, m, padding, align_corners, (3, 4)), (images, matrix))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_sampled_at_float32_positions(dtype):
    """A half grid would be off by whole pixels at this width."""
    images = coarse(1, 2, 3, 1500, dtype=dtype)
    theta = to_theta(cropping(3, 0), (3, 1500), (3, 1400))
    got = warp(images, theta, size=(3, 1400))
    assert got.dtype == dtype
    assert torch.equal(got, images[..., 3:1403])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(images, theta, size=(3, 1400)), got)
        assert torch.equal(to_theta(cropping(3, 0), (3, 1500), (3, 1400)), theta)


def test_uint8_is_rounded_half_up_within_its_range():
    images = torch.tensor([[0, 1, 4, 255]], dtype=torch.uint8)[None, None]
    half = to_theta(translation(-0.5, 0), (1, 4))
    got = warp(images, half, "border")
    assert got.dtype == torch.uint8 and got.flatten().tolist() == [1, 3, 130, 255]
    assert warp(images, half).flatten().tolist() == [1, 3, 130, 128]
    white = torch.full((1, 1, 33, 31), 255, dtype=torch.uint8)
    assert (warp(white, to_theta(rotation(33.3, (15, 16)), (33, 31)), "reflection") == 255).all()


def test_warp_keeps_layout_and_treats_samples_apart():
    images = rand(3, 4, 9, 8).contiguous(memory_format=torch.channels_last)
    matrix = rand(3, 2, 3, seed=2)
    got = warp(images, matrix, "border", size=(5, 7))
    assert got.is_contiguous(memory_format=torch.channels_last) and not got.is_contiguous()
    plain = warp(images.contiguous(), matrix, "border", size=(5, 7))
    assert plain.is_contiguous()
    torch.testing.assert_close(got, plain, atol=1e-6, rtol=0)
    assert torch.equal(warp(images[1:2], matrix[1:2], "border", size=(5, 7)), got[1:2])
    assert torch.equal(warp(images, matrix[0]), warp(images, matrix[:1].expand(3, 2, 3)))


def test_warp_empty_batch():
    assert warp(torch.zeros(0, 3, 8, 9), torch.zeros(0, 2, 3), size=(4, 5)).shape == (0, 3, 4, 5)
    assert warp(torch.zeros(0, 3, 8, 9, dtype=torch.uint8), IDENTITY).shape == (0, 3, 8, 9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: warp(x[0], IDENTITY), ValueError, r"images: expected N,C,H,W .* got shape \(3, 4, 5\)"),
        (lambda x: warp(x[..., :0], IDENTITY), ValueError, "images: expected N,C,H,W with at least one pixel"),
        (lambda x: warp(x.int(), IDENTITY), TypeError, "images: expected a floating dtype or uint8, got torch.int32"),
        (lambda x: warp(x, torch.eye(3)), ValueError, r"matrix: expected shape \(2, 2, 3\) or \(2, 3\), got \(3, 3\)"),
        (lambda x: warp(x, IDENTITY.expand(1, 2, 3)), ValueError, r"got \(1, 2, 3\)"),
        (lambda x: warp(x, IDENTITY.long()), TypeError, "matrix: expected a floating dtype, got torch.int64"),
        (lambda x: warp(x, IDENTITY.to("meta")), ValueError, "matrix: expected on the images' device cpu, got meta"),
        (lambda x: warp(x, IDENTITY, "wrap"), ValueError, "padding: expected one of zeros, border, reflection"),
        (lambda x: warp(x, IDENTITY, mode="cubic"), ValueError, "mode: expected one of bilinear, nearest, got 'cubic'"),
        (lambda x: warp(x, IDENTITY, size=(0, 4)), ValueError, r"size: expected a positive number .* got \(0, 4\)"),
    ],
)
def test_warp_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3, 4, 5))


# Matrices


def move(matrix: torch.Tensor, x: float, y: float) -> list[float]:
    return (matrix @ torch.tensor([x, y, 1.0], dtype=torch.float64))[..., :2].tolist()


def test_matrices_move_points_as_said():
    assert move(translation(3, -2), 1, 1) == [4, -1]
    assert move(rotation(90, (10, 20)), 11, 20) == pytest.approx([10, 19])  # right of the centre -> above it
    assert move(scaling(2, 3, (1, 1)), 2, 2) == [3, 4]
    assert move(scaling(2), 2, 2) == [4, 4]
    assert move(shearing(45, center=(5, 5)), 5, 7) == pytest.approx([7, 7])
    assert move(shearing(0, 45, (5, 5)), 7, 5) == pytest.approx([7, 7])
    assert move(cropping(4, 6), 4, 6) == [0, 0]
    assert move(flipping(10), 0, 3) == [9, 3]
    # Edges, half a pixel outside the outer centres, go to edges.
    assert move(resizing((4, 8), (6, 4)), -0.5, -0.5) == [-0.5, -0.5]
    assert move(resizing((4, 8), (6, 4)), 7.5, 3.5) == [3.5, 5.5]
    assert move(compose(translation(1, 0), scaling(2, center=(0, 0)), translation(0, 5)), 1, 1) == [4, 7]


def test_matrices_per_sample():
    angle, mask = torch.tensor([0.0, 90.0, -90.0]), torch.tensor([True, False, True])
    matrix = compose(rotation(angle, (1, torch.tensor([1.0, 1, 2]))), resizing(3, 3), flipping(3, mask))
    assert matrix.shape == (3, 3, 3) and matrix.dtype == torch.float64
    for i in range(3):
        one = compose(rotation(float(angle[i]), (1, [1, 1, 2][i])), resizing(3, 3))
        one = compose(one, flipping(3)) if mask[i] else one
        torch.testing.assert_close(matrix[i], one, atol=1e-12, rtol=0)
    windows = resizing((torch.tensor([4, 8]), 8), 8)
    assert windows[:, 1, 1].tolist() == [2, 1] and windows[:, 0, 0].tolist() == [1, 1]
    assert to_theta(matrix, 3).shape == (3, 2, 3) and to_theta(matrix[0], 3).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotation(torch.zeros(2, 2)), r"angle: expected a number or a tensor \[N\], got shape \(2, 2\)"),
        (lambda: translation(torch.zeros(2), torch.zeros(3)), "parameters differ in length: x 2, y 3"),
        (lambda: resizing((4, 4), (4, 0)), "out_size: expected a positive number"),
        (lambda: to_theta(IDENTITY, 4), r"matrix: expected shape \(3, 3\) or \(N, 3, 3\), got \(2, 3\)"),
        (lambda: to_theta(torch.eye(3), (1, 4), align_corners=True), "size: with align_corners expected at least 2x2"),
    ],
)
def test_matrices_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def ramp(height: int, width: int) -> torch.Tensor:
    """Two channels that hold every pixel's own x and y: sampled, they tell where they were sampled."""
    x = torch.arange(width, dtype=torch.float64).expand(height, width)
    y = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    return torch.stack([x, y])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out_size"), [((48, 64), (48, 64)), ((48, 64), (31, 20)), ((20, 20), (90, 40))])
def test_to_theta_samples_where_the_inverse_points(align_corners, size, out_size):
    n = 6
    u = uniforms(torch.arange(n), 6)
    middle = center(*size)
    matrix = compose(
        rotation(60 * u[:, 0] - 30, middle),
        scaling(0.8 + 0.4 * u[:, 1], center=middle),
        shearing(20 * u[:, 2] - 10, 20 * u[:, 3] - 10, middle),
        translation(4 * u[:, 4], -4 * u[:, 5]),
        resizing(size, out_size),
    )
    theta = to_theta(matrix, size, out_size, align_corners)
    got = warp(ramp(*size).expand(n, 2, *size), theta, "zeros", align_corners, out_size)
    x, y = ramp(*out_size).flatten(1)
    where = np.linalg.inv(matrix.numpy()) @ torch.stack([x, y, torch.ones_like(x)]).numpy()
    want = torch.from_numpy(where[:, :2]).reshape(n, 2, *out_size)
    limit = torch.tensor([size[1] - 1, size[0] - 1], dtype=torch.float64).reshape(1, 2, 1, 1)
    inside = ((want >= 0) & (want <= limit)).all(1, keepdim=True).expand_as(want)
    assert inside.double().mean() > 0.5
    torch.testing.assert_close(got[inside], want[inside], atol=1e-9, rtol=0)


# Each system's geometry, in one sampling


def smooth(n: int, side: int) -> torch.Tensor:
    """Smooth, without symmetry, and zero at the border, so that zero padding is smooth as well."""
    t = torch.arange(side, dtype=torch.float64) / (side - 1)
    window = torch.sin(math.pi * t) ** 2
    image = window[:, None] * window * (1 + 0.5 * torch.sin(5 * t)[:, None] + 0.7 * torch.cos(4 * t))
    return image.float().expand(n, 3, side, side)


def gnr_matrices(seeds: torch.Tensor, side: int, load: int) -> tuple[torch.Tensor, torch.Tensor]:
    """GANs N' Roses: affine with p = 0.5; resize, crop and flip (spec gnr, section 2). Also returns the draws."""
    u = uniforms(seeds, 9)
    on = (u[:, 0] < 0.5).double()
    middle = center(side, side)
    affine = compose(
        shearing(on * (0.3 * u[:, 1] - 0.15), center=middle),
        rotation(on * (40 * u[:, 2] - 20), middle),
        scaling(1 + on * (0.4 * u[:, 3] - 0.2), center=middle),
        translation(on * (0.2 * u[:, 4] - 0.1) * side, on * (0.2 * u[:, 5] - 0.1) * side),
    )
    return affine, u[:, 6:]


def test_gnr_chain_in_one_sampling():
    n, side, load = 16, 64, 72
    images = smooth(n, side)
    affine, u = gnr_matrices(torch.arange(n), side, load)
    left, top = ((load - side + 1) * u[:, 0]).floor(), ((load - side + 1) * u[:, 1]).floor()
    mirror = u[:, 2] < 0.5
    assert 0 < mirror.sum() < n and 0 < (affine == torch.eye(3)).all(-1).all(-1).sum() < n

    steps = warp(images, to_theta(affine, side))
    steps = functional.interpolate(steps, size=(load, load), mode="bilinear", align_corners=False)
    steps = torch.stack(
        [
            (image[:, int(t) : int(t) + side, int(x) : int(x) + side]).flip(2 if m else ())
            for image, t, x, m in zip(steps, top, left, mirror, strict=True)
        ]
    )
    matrix = compose(affine, resizing(side, load), cropping(left, top), flipping(side, mirror))
    once = warp(images, to_theta(matrix, side))
    # Each bilinear step is off by at most |f''| h^2 / 8 along each axis; |f''| <= 2.2 (2 pi^2 + 15) / side^2 here.
    bound = 3 * 2 * 2.2 * (2 * math.pi**2 + 15) / side**2 / 8
    assert bound < 0.02
    assert (once - steps).abs().max() < bound
    other = compose(affine, resizing(side, load), cropping(left + 1, top), flipping(side, mirror))
    assert (warp(images, to_theta(other, side)) - steps).abs().max() > bound


def test_gnr_chain_without_affine_and_resize_is_the_crop():
    n, side, load = 8, 256, 286
    images = rand(n, 3, load, load, dtype=torch.uint8)
    u = uniforms(torch.arange(n), 3)
    left, top, mirror = (31 * u[:, 0]).floor(), (31 * u[:, 1]).floor(), u[:, 2] < 0.5
    identity = rotation(torch.zeros(n), center(load, load))
    matrix = compose(identity, resizing(load, load), cropping(left, top), flipping(side, mirror))
    got = warp(images, to_theta(matrix, load, side), size=side)
    for i in range(n):
        want = images[i, :, int(top[i]) : int(top[i]) + side, int(left[i]) : int(left[i]) + side]
        assert torch.equal(got[i], want.flip(2) if mirror[i] else want)


def test_blendgan_two_views():
    """Random resized crop, flip, rotation, translation, scale and shear in one matrix (spec blendgan, section 2)."""
    n, (height, width), side = 5, (300, 270), 256
    images = ramp(height, width).float().expand(n, 2, height, width)
    views = []
    for view in range(2):
        u = uniforms(torch.arange(n) * 2 + view, 11)
        area, aspect = 0.5 + 0.5 * u[:, 0], torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
        h = (area / aspect * height * width).sqrt().clamp(max=height)
        w = (area * aspect * height * width).sqrt().clamp(max=width)
        left, top = u[:, 2] * (width - w), u[:, 3] * (height - h)
        angle, scale = 30 * u[:, 5] - 15, 0.9 + 0.2 * u[:, 6]
        shift_x, shift_y = (0.2 * u[:, 7] - 0.1) * side, (0.2 * u[:, 8] - 0.1) * side
        shear_x, shear_y = 20 * u[:, 9] - 10, 20 * u[:, 10] - 10
        middle = center(side, side)
        matrix = compose(
            cropping(left, top),
            resizing((h, w), side),
            flipping(side, u[:, 4] < 0.5),
            shearing(shear_x, shear_y, middle),
            rotation(angle, middle),
            scaling(scale, center=middle),
            translation(shift_x, shift_y),
        )
        got = warp(images, to_theta(matrix, (height, width), side), "reflection", size=side)
        assert got.shape == (n, 2, side, side)
        # Follow one pixel of each input by hand.
        for i in range(n):
            x0, y0 = 140.0, 150.0
            x = (x0 + 0.5 - float(left[i])) * side / float(w[i]) - 0.5
            y = (y0 + 0.5 - float(top[i])) * side / float(h[i]) - 0.5
            x = side - 1 - x if u[i, 4] < 0.5 else x
            x, y = x - middle[0], y - middle[1]
            x, y = (
                x + math.tan(math.radians(float(shear_x[i]))) * y,
                y + math.tan(math.radians(float(shear_y[i]))) * x,
            )
            a = math.radians(float(angle[i]))
            x, y = math.cos(a) * x + math.sin(a) * y, -math.sin(a) * x + math.cos(a) * y
            x = x * float(scale[i]) + middle[0] + float(shift_x[i])
            y = y * float(scale[i]) + middle[1] + float(shift_y[i])
            assert move(matrix[i], x0, y0) == pytest.approx([x, y], abs=1e-4)
            # The ramp is linear, so between four output pixels the warped one interpolates to the pixel's own place.
            cell = got[i, :, math.floor(y) : math.floor(y) + 2, math.floor(x) : math.floor(x) + 2].double()
            fx, fy = x - math.floor(x), y - math.floor(y)
            rows = cell[:, 0] * (1 - fy) + cell[:, 1] * fy
            place = rows[:, 0] * (1 - fx) + rows[:, 1] * fx
            assert place.tolist() == pytest.approx([x0, y0], abs=0.01)
        views.append(got)
    assert not torch.allclose(views[0], views[1], atol=1.0)


def test_disentangle_window():
    """Sampling matrix [R(angle)/s | (cx, cy)], align_corners=True, alpha along (spec disentangle, 2.2)."""
    n, side = 12, 40
    p = uniforms(torch.arange(n), 4).double()
    triangle = torch.where(p[:, 0] < 0.5, (2 * p[:, 0]).sqrt() - 1, 1 - (2 * (1 - p[:, 0])).sqrt())
    angle, s = 15 * triangle, torch.exp(p[:, 1] * math.log(1.25))
    reach = 1 - 0.8 / s
    cx, cy = (2 * p[:, 2] - 1) * reach, (2 * p[:, 3] - 1) * reach
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    theta = torch.stack([cos / s, -sin / s, cx, sin / s, cos / s, cy], -1).reshape(n, 2, 3)

    images = rand(n, 4, side, side)
    got = warp(images, theta, "zeros", True)
    grid = functional.affine_grid(theta.float(), [n, 4, side, side], align_corners=True)
    want = functional.grid_sample(images, grid, align_corners=True)
    torch.testing.assert_close(got, want, atol=interpolation_error(side), rtol=0)
    assert torch.equal(warp(images, theta, "zeros", True), got)

    half, middle = (side - 1) / 2, center(side, side)
    matrix = compose(translation(-cx * half, -cy * half), rotation(angle, middle), scaling(s, center=middle))
    torch.testing.assert_close(to_theta(matrix, side, align_corners=True), theta, atol=1e-12, rtol=0)


def test_twingan_crop_and_resize():
    """A window of its own size per sample, stretched: one sampling, also on TensorFlow 1's grid (spec twingan, 2.2)."""
    n, side, hw = 6, 80, 64
    u = uniforms(torch.arange(n), 4)
    h, w = (side * (0.8 + 0.2 * u[:, 0])).floor(), (side * (0.8 + 0.2 * u[:, 1])).floor()
    top, left = ((side - h + 1) * u[:, 2]).floor(), ((side - w + 1) * u[:, 3]).floor()
    images = rand(n, 3, side, side, dtype=torch.float64)
    modern = compose(cropping(left, top), resizing((h, w), hw))
    tf1 = compose(cropping(left, top), scaling(hw / w, hw / h))
    got = warp(images, to_theta(modern, side, hw), "border", size=hw)
    old = warp(images, to_theta(tf1, side, hw), "border", size=hw)
    for i in range(n):
        y, x, hi, wi = int(top[i]), int(left[i]), int(h[i]), int(w[i])
        window = images[i : i + 1, :, y : y + hi, x : x + wi]
        want = functional.interpolate(window, size=(hw, hw), mode="bilinear", align_corners=False)[0]
        # Only the outermost pixels may differ: there the window's own border is not the picture's.
        torch.testing.assert_close(got[i, :, 1:-1, 1:-1], want[:, 1:-1, 1:-1], atol=1e-9, rtol=0)
        rows, columns = torch.arange(hw - 2) * hi / hw, torch.arange(hw - 2) * wi / hw
        r, c = rows.long(), columns.long()
        fr, fc = (rows - r)[:, None].double(), (columns - c).double()
        picture = images[i, :, y:, x:]
        upper = picture[:, r][:, :, c] * (1 - fc) + picture[:, r][:, :, c + 1] * fc
        lower = picture[:, r + 1][:, :, c] * (1 - fc) + picture[:, r + 1][:, :, c + 1] * fc
        torch.testing.assert_close(old[i, :, :-2, :-2], upper * (1 - fr) + lower * fr, atol=1e-5, rtol=0)


# Compilation and devices


def test_compiles_whole():
    """No graph breaks; tracing alone shows that."""
    images, seeds = rand(4, 3, 20, 18), torch.arange(4)

    def everything(x: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        x = color_jitter(crop_flip(x, 16, seeds), seeds, value_range=(-1, 1))
        u = uniforms(seeds, 2)
        matrix = compose(rotation(30 * u[:, 0], (7.5, 7.5)), resizing(16, 20), cropping(u[:, 1], 2.0), flipping(16))
        return warp(x, to_theta(matrix, 16), "reflection")

    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, seeds), everything(images, seeds), atol=1e-6, rtol=0)
    stretched = torch.compile(random_resized_crop, fullgraph=True, backend="eager")
    torch.testing.assert_close(stretched(images, 16, seeds), random_resized_crop(images, 16, seeds), atol=1e-6, rtol=0)
    single = torch.compile(warp, fullgraph=True, backend="eager")
    assert torch.equal(single(images, IDENTITY, "border", True), warp(images, IDENTITY, "border", True))
    byte = rand(4, 3, 20, 18, dtype=torch.uint8)
    crop = torch.compile(crop_flip, fullgraph=True, backend="eager")
    assert torch.equal(crop(byte, 16, seeds), crop_flip(byte, 16, seeds))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_result_on_every_device():
    images, seeds = rand(4, 3, 40, 36), torch.arange(4)
    assert torch.equal(crop_flip(images.cuda(), 32, seeds.cuda()).cpu(), crop_flip(images, 32, seeds))
    torch.testing.assert_close(color_jitter(images.cuda(), seeds.cuda()).cpu(), color_jitter(images, seeds))
    matrix = rotation(uniforms(seeds.cuda(), 1)[:, 0] * 90, (17.5, 19.5))
    assert matrix.is_cuda and rotation(3, device="cuda").is_cuda
    theta = to_theta(compose(matrix, resizing((40, 36), 20, device="cuda")), (40, 36), 20)
    got = warp(images.cuda(), theta, size=20).cpu()
    torch.testing.assert_close(got, warp(images, theta.cpu(), size=20), atol=interpolation_error(40), rtol=0)
