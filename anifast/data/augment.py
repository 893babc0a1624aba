"""Augmentation on the tensor's device, in batches, seeded per sample: crops, flips, colour and one affine warp.

Randomness is a pure function of a sample's own seed (`uniforms`), so an augmentation does not depend on the device, on
the other samples of the batch or on how often anything else drew a number, and a resumed run repeats it.

Geometry is built as 3x3 matrices that map input pixels to output pixels, `compose`d in the order in which the steps
would be made, turned into sampling coordinates by `to_theta` and carried out by `warp` with a single interpolation:

    center = ((width - 1) / 2, (height - 1) / 2)
    matrix = compose(rotation(angle, center), resizing((height, width), 286), cropping(left, top), flipping(256, mask))
    out = warp(images, to_theta(matrix, (height, width), 256), size=256)

Pixel coordinates are (x, y) with x to the right and y down; the centre of the first pixel is (0, 0), so that of the
image is ((W - 1) / 2, (H - 1) / 2). Sizes are (height, width), or one number for a square.

The matrices are float64: they are tiny, pixel-sized entries cost float32 a part of its accuracy, and neither autocast
nor TF32 touches float64 products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Size = int | tuple[int, int]
Parameter = float | Tensor

# SplitMix64 (Steele, Lea, Flood 2014): the step of its counter and its two multipliers, as signed 64-bit numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_STREAM = 0xD1B54A32D192ED03 - (1 << 64)
# The streams that this module's own functions draw from; callers have stream 0.
_CROP_FLIP, _COLOR, _RESIZED_CROP = 1, 2, 3

_PADDINGS = ("zeros", "border", "reflection")
_MODES = ("bilinear", "nearest")


# Random numbers


def uniforms(seeds: Tensor, count: int, *, stream: int = 0) -> Tensor:
    """Draw `count` uniform numbers for each seed: a hash of (seed, stream, k), k = 0 .. count - 1.

    The numbers of a sample depend on its own seed only, and number k does not depend on `count`. They are the same on
    every device. Neighbouring seeds give independent numbers, so counting samples makes good seeds.

    Args:
        seeds: int64 [N], any values.
        count: numbers per sample.
        stream: chooses another independent set for the same seeds. Stream 0 is the caller's; `random_crop`,
            `random_flip` and `crop_flip` draw from stream 1, `color_jitter` from stream 2 and `random_resized_crop`
            from stream 3.

    Returns:
        float32 [N, count] in [0, 1), multiples of 2**-24.

    Raises:
        ValueError: `seeds` is not int64 [N] or `count` is negative.
    """
    _check_seeds(seeds)
    if count < 0:
        raise ValueError(f"count: expected 0 or more, got {count}")
    state = _mix(seeds + _wrap(stream * _STREAM))
    steps = torch.arange(1, count + 1, device=seeds.device) * _STEP
    bits = _shift(_mix(state[:, None] + steps), 40)
    return bits.to(torch.float32) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit words whose outputs look independent; products wrap."""
    x = (x ^ _shift(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without sign: PyTorch's shift of int64 copies the sign bit, which the mask takes away again."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    """The signed 64-bit number with the same low 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# Crops and flips: copies of pixels, bit for bit


def random_crop(images: Tensor, size: Size, seeds: Tensor) -> Tensor:
    """Cut a window of `size` out of every image, its corner uniform over all positions.

    Args:
        images: N,C,H,W of any dtype, contiguous or channels_last; the result keeps dtype and layout.
        size: (height, width) of the window, or one number for a square.
        seeds: int64 [N] on the device of `images`.

    Raises:
        ValueError: wrong shapes, or a window larger than the image.
    """
    _check_images(images)
    rows, columns = _corners(images, _pair(size, "size"), _draws(images, seeds))
    return _window(images, rows, columns, torch.zeros_like(rows, dtype=torch.bool), _pair(size, "size"))


def random_flip(images: Tensor, seeds: Tensor, p: float = 0.5) -> Tensor:
    """Mirror every image left to right with probability `p`.

    Args:
        images: N,C,H,W of any dtype, contiguous or channels_last; the result keeps dtype and layout.
        seeds: int64 [N] on the device of `images`.
        p: probability in [0, 1].

    Raises:
        ValueError: wrong shapes or `p` outside [0, 1].
    """
    _check_images(images)
    _check_probability("p", p)
    mask = _draws(images, seeds)[:, 2] < p
    corner = torch.zeros_like(seeds)
    return _window(images, corner, corner, mask, (images.shape[2], images.shape[3]))


def crop_flip(images: Tensor, size: Size, seeds: Tensor, flip: float = 0.5) -> Tensor:
    """Crop, then flip, in one pass: `random_flip(random_crop(images, size, seeds), seeds, flip)` bit for bit.

    CycleGAN's training augmentation is this from 286 to 256 pixels with flip 0.5 (spec cyclegan, section 2).

    Args:
        images: N,C,H,W of any dtype, contiguous or channels_last; the result keeps dtype and layout.
        size: (height, width) of the window, or one number for a square.
        seeds: int64 [N] on the device of `images`.
        flip: probability of a left-right flip, in [0, 1].

    Raises:
        ValueError: wrong shapes, a window larger than the image, or `flip` outside [0, 1].
    """
    _check_images(images)
    _check_probability("flip", flip)
    draws = _draws(images, seeds)
    rows, columns = _corners(images, _pair(size, "size"), draws)
    return _window(images, rows, columns, draws[:, 2] < flip, _pair(size, "size"))


def _draws(images: Tensor, seeds: Tensor) -> Tensor:
    """Three numbers per image: row and column of the window, flip."""
    _check_seeds_of(images, seeds)
    return uniforms(seeds, 3, stream=_CROP_FLIP)


def _corners(images: Tensor, size: tuple[int, int], draws: Tensor) -> tuple[Tensor, Tensor]:
    height, width = size
    if height > images.shape[2] or width > images.shape[3]:
        raise ValueError(
            f"size: a window of {height}x{width} does not fit into images of {images.shape[2]}x{images.shape[3]}"
        )
    # A draw is at most 1 - 2**-24, so even after rounding to float32 the product stays below the number of positions.
    rows = (draws[:, 0] * (images.shape[2] - height + 1)).long()
    columns = (draws[:, 1] * (images.shape[3] - width + 1)).long()
    return rows, columns


def _window(images: Tensor, top: Tensor, left: Tensor, mirror: Tensor, size: tuple[int, int]) -> Tensor:
    """Copy a window per image, mirrored where asked, by one gather over the flattened pixels."""
    n, c, h, w = images.shape
    height, width = size
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(mirror[:, None], width - 1 - columns, columns)
    index = (rows[:, :, None] * w + columns[:, None, :]).reshape(n, height * width)
    if _is_channels_last(images):
        pixels = images.permute(0, 2, 3, 1).reshape(n, h * w, c)
        out = pixels.gather(1, index[:, :, None].expand(n, height * width, c))
        return out.reshape(n, height, width, c).permute(0, 3, 1, 2)
    out = images.reshape(n, c, h * w).gather(2, index[:, None, :].expand(n, c, height * width))
    return out.reshape(n, c, height, width)


# Crops that are stretched


def random_resized_crop(
    images: Tensor,
    size: Size,
    seeds: Tensor,
    *,
    least: float = 0.8,
    flip: float = 0.5,
    half_pixel: bool = True,
) -> Tensor:
    """Cut a window out of every image, stretch it to `size`, and mirror it with probability `flip`.

    Height and width of the window are drawn independently, each int(side * U(least, 1)), and its corner uniformly over
    all positions (spec twingan, 2.2). Bilinear, without antialiasing; what lies outside a window does not enter it.

    Args:
        images: N,C,H,W floats, contiguous or channels_last; the result keeps dtype and layout.
        size: (height, width) of the result, or one number for a square.
        seeds: int64 [N] on the device of `images`.
        least: the least side of a window, as a part of the image's, in (0, 1]; 1: the whole image.
        flip: probability of a left-right flip, in [0, 1].
        half_pixel: sample at (i + 0.5) * in / out - 0.5; False: at i * in / out, as TensorFlow 1 does.

    Raises:
        ValueError: wrong shapes, or `least` or `flip` out of range.
        TypeError: images are not of a floating type.
    """
    _check_images(images)
    if not images.is_floating_point():
        raise TypeError(f"images: expected a floating dtype, got {images.dtype}")
    if not 0 < least <= 1:
        raise ValueError(f"least: expected a part in (0, 1], got {least}")
    _check_probability("flip", flip)
    _check_seeds_of(images, seeds)
    height, width = _pair(size, "size")
    h, w = images.shape[2:]
    draws = uniforms(seeds, 5, stream=_RESIZED_CROP).to(torch.float64)
    y = _places(draws[:, 0], draws[:, 2], least, h, height, half_pixel)
    x = _places(draws[:, 1], draws[:, 3], least, w, width, half_pixel)
    x = torch.where(draws[:, 4, None] < flip, x.flip(1), x)
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    # Normalised coordinates, -1 and 1 the outer edges of the first and the last pixel.
    x, y = ((2 * place + 1) / side - 1 for place, side in ((x, w), (y, h)))
    shape = (len(images), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1).to(dtype)
    out = functional.grid_sample(images.to(dtype), grid, "bilinear", "border", align_corners=False)
    layout = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    return out.to(images.dtype).contiguous(memory_format=layout)


def _places(extent: Tensor, corner: Tensor, least: float, side: int, count: int, half_pixel: bool) -> Tensor:
    """Where along one axis `count` samples of a window lie, [N, count] float64; from two draws for each image."""
    extent = (side * (least + (1 - least) * extent)).floor().clamp(min=1)
    corner = (corner * (side - extent + 1)).floor()
    index = torch.arange(count, dtype=torch.float64, device=extent.device)
    scale = extent[:, None] / count
    places = (index + 0.5) * scale - 0.5 if half_pixel else index * scale
    return corner[:, None] + places.clamp(min=0).minimum(extent[:, None] - 1)


# Colour


def color_jitter(
    images: Tensor,
    seeds: Tensor,
    *,
    brightness: float = 32 / 255,
    saturation: tuple[float, float] = (0.5, 1.5),
    brightness_first: float = 0.25,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Add to the brightness and scale the saturation, in random order, then clamp (spec twingan, 2.2).

    Saturation is that of the HSV model, S = (max - min) / max on [0, 1]: it is multiplied by the factor and held at 1
    while hue and value stay, which is channel -> max - (max - channel) * min(factor, 1 / S).

    Args:
        images: N,3,H,W floats in `value_range`; the result keeps dtype and layout.
        seeds: int64 [N] on the device of `images`.
        brightness: largest change of brightness as a part of the whole range; the change is uniform in [-b, b].
        saturation: the range of the factor, uniform.
        brightness_first: probability that brightness comes before saturation.
        value_range: (lowest, highest) value of the images, for example (-1, 1).

    Raises:
        ValueError: wrong shapes or ranges.
        TypeError: images are not of a floating type.
    """
    _check_images(images)
    if not images.is_floating_point():
        raise TypeError(f"images: expected a floating dtype, got {images.dtype}")
    if images.shape[1] != 3:
        raise ValueError(f"images: expected 3 channels (RGB), got {images.shape[1]}")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range: expected (lowest, highest), got {value_range}")
    if brightness < 0:
        raise ValueError(f"brightness: expected 0 or more, got {brightness}")
    if not 0 <= saturation[0] <= saturation[1]:
        raise ValueError(f"saturation: expected 0 <= lowest <= highest, got {saturation}")
    _check_probability("brightness_first", brightness_first)
    _check_seeds_of(images, seeds)

    draws = uniforms(seeds, 3, stream=_COLOR)[:, :, None, None, None]
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    shift = ((2 * draws[:, 0] - 1) * (brightness * (high - low))).to(dtype)
    factor = (saturation[0] + draws[:, 1] * (saturation[1] - saturation[0])).to(dtype)
    before = torch.where(draws[:, 2] < brightness_first, shift, torch.zeros_like(shift))

    x = images.to(dtype) + before
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    # 1 / S; grey pixels have no chroma, and any factor leaves them as they are.
    limit = (value - low) / chroma.clamp(min=1e-12)
    x = value - (value - x) * torch.minimum(factor, limit) + (shift - before)
    return x.clamp(low, high).to(images.dtype)


# The warp


def warp(
    images: Tensor,
    matrix: Tensor,
    padding: str = "zeros",
    align_corners: bool = False,
    size: Size | None = None,
    mode: str = "bilinear",
) -> Tensor:
    """Resample every image once at affinely transformed positions.

    out(p) = image(matrix @ (p_x, p_y, 1)), with positions p of the output and of the input in the coordinates of
    `torch.nn.functional.affine_grid`: -1 and 1 are the outer edges of the first and the last pixel, or their centres
    if `align_corners`. The equal of affine_grid and grid_sample, with the grid in float32 also for half images and
    free of matrix products, which autocast and TF32 would round to whole pixels.

    Args:
        images: N,C,H,W; float of any kind (differentiable; dtype, layout and value scale are kept) or uint8 (rounded
            half up to uint8 0..255). Interpolation never leaves the range of the image's values and the padding.
        matrix: float [N,2,3], or [2,3] for all images; see `to_theta`. Differentiable.
        padding: what lies outside: "zeros" (black for uint8, mid-grey for images in [-1, 1]), "border" (nearest edge
            pixel) or "reflection" (about the edge, or about the edge pixel's centre if `align_corners`).
        align_corners: see above.
        size: (height, width) of the output or one number for a square; that of the images by default.
        mode: "bilinear" or "nearest".

    Note:
        No antialiasing: shrink by more than about 2 with a proper resize first. On CUDA the gradient with respect to
        the images adds in no fixed order, as that of grid_sample does.

    Raises:
        ValueError: wrong shapes, devices, size, padding or mode.
        TypeError: images are neither floating nor uint8, or the matrix is not floating.
    """
    _check_images(images)
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(f"images: expected a floating dtype or uint8, got {images.dtype}")
    n, _, h, w = images.shape
    if tuple(matrix.shape) not in ((n, 2, 3), (2, 3)):
        raise ValueError(f"matrix: expected shape ({n}, 2, 3) or (2, 3), got {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise TypeError(f"matrix: expected a floating dtype, got {matrix.dtype}")
    if matrix.device != images.device:
        raise ValueError(f"matrix: expected on the images' device {images.device}, got {matrix.device}")
    if padding not in _PADDINGS:
        raise ValueError(f"padding: expected one of {', '.join(_PADDINGS)}, got {padding!r}")
    if mode not in _MODES:
        raise ValueError(f"mode: expected one of {', '.join(_MODES)}, got {mode!r}")
    height, width = (h, w) if size is None else _pair(size, "size")

    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    theta = matrix.to(dtype).expand(n, 2, 3)
    x = _positions(width, align_corners, dtype, images.device)
    y = _positions(height, align_corners, dtype, images.device)
    along_x = x[:, None] * theta[:, None, None, :, 0]
    along_y = y[:, None, None] * theta[:, None, None, :, 1] + theta[:, None, None, :, 2]
    grid = along_y + along_x
    out = functional.grid_sample(images.to(dtype), grid, mode, padding, align_corners)
    if images.dtype == torch.uint8:
        out = out + 0.5
    layout = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    return out.to(images.dtype).contiguous(memory_format=layout)


def _positions(count: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normalised coordinates of `count` pixel centres."""
    doubled = torch.arange(1 - count, count, 2, dtype=dtype, device=device)
    return doubled / max(count - 1 if align_corners else count, 1)


# Matrices, input pixel -> output pixel


def translation(x: Parameter, y: Parameter, *, device: torch.device | str | None = None) -> Tensor:
    """Move the picture by (x, y) pixels.

    Args:
        x: pixels to the right; a number, or a tensor [N] for one per sample. So everywhere below.
        y: pixels down.
        device: where to make the matrix if all parameters are plain numbers; else it is that of the tensors.

    Returns:
        float64 [3,3], or [N,3,3] if a parameter has one value per sample.

    Raises:
        ValueError: a parameter is neither a number nor of shape [N].
    """
    x, y = _parameters(device, x=x, y=y)
    return _matrix(1.0, 0.0, x, 0.0, 1.0, y)


def rotation(
    angle: Parameter, center: tuple[Parameter, Parameter] = (0.0, 0.0), *, device: torch.device | str | None = None
) -> Tensor:
    """Turn the picture by `angle` degrees about `center` = (x, y), counter-clockwise as seen; else as `translation`."""
    angle, x, y = _parameters(device, angle=angle, center_x=center[0], center_y=center[1])
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    return _about(cos, sin, -sin, cos, x, y)


def scaling(
    x: Parameter,
    y: Parameter | None = None,
    center: tuple[Parameter, Parameter] = (0.0, 0.0),
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Enlarge the picture by the factors x and y (y = x by default) about `center`; else as `translation`."""
    x, y, cx, cy = _parameters(device, x=x, y=x if y is None else y, center_x=center[0], center_y=center[1])
    return _about(x, 0.0, 0.0, y, cx, cy)


def shearing(
    x: Parameter,
    y: Parameter = 0.0,
    center: tuple[Parameter, Parameter] = (0.0, 0.0),
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Shear by angles in degrees about `center`: x moves by tan(x) * y, and y by tan(y) * x; else as `translation`."""
    x, y, cx, cy = _parameters(device, x=x, y=y, center_x=center[0], center_y=center[1])
    return _about(1.0, torch.tan(torch.deg2rad(x)), torch.tan(torch.deg2rad(y)), 1.0, cx, cy)


def resizing(
    size: int | tuple[Parameter, Parameter], out_size: Size, *, device: torch.device | str | None = None
) -> Tensor:
    """Stretch a picture (or window) of `size` to `out_size`, edge to edge (half-pixel centres, no antialiasing).

    Args:
        size: (height, width) or one number; tensors [N] for windows of another size in each sample.
        out_size: (height, width) or one number.
        device: as in `translation`.

    Note:
        TensorFlow 1's resize, without the half-pixel shift, is scaling(out_width / width, out_height / height).
    """
    h, w = (size, size) if isinstance(size, int) else size
    h, w = _parameters(device, height=h, width=w)
    out_h, out_w = _pair(out_size, "out_size")
    return scaling(out_w / w, out_h / h, (-0.5, -0.5))


def cropping(left: Parameter, top: Parameter, *, device: torch.device | str | None = None) -> Tensor:
    """Make pixel (left, top) the first one; the window's size is the size given to `to_theta` and `warp`."""
    return translation(-left, -top, device=device)


def flipping(width: int, mask: Tensor | None = None, *, device: torch.device | str | None = None) -> Tensor:
    """Mirror a picture `width` pixels wide from left to right; only where `mask` (bool [N]) holds, if given."""
    sign = _parameters(device, mask=1.0 if mask is None else mask)[0]
    return _matrix(1 - 2 * sign, 0.0, (width - 1) * sign, 0.0, 1.0, torch.zeros_like(sign))


def compose(first: Tensor, *others: Tensor) -> Tensor:
    """Multiply matrices [3,3] or [N,3,3] of successive steps, the first step first, into one."""
    for other in others:
        first = other @ first
    return first


def to_theta(matrix: Tensor, size: Size, out_size: Size | None = None, align_corners: bool = False) -> Tensor:
    """Turn an input -> output pixel matrix into the output -> input matrix in normalised coordinates that `warp` takes.

    Args:
        matrix: [3,3] or [N,3,3], invertible, last row 0 0 1.
        size: (height, width) of the input images.
        out_size: of the output; the same by default. Give it to `warp` too.
        align_corners: as for `warp`.

    Returns:
        float64 [2,3] or [N,2,3] on the device of `matrix`.

    Raises:
        ValueError: a wrong shape, or an input one pixel wide or high with `align_corners`, whose coordinates say
            nothing about pixels.
    """
    if matrix.shape[-2:] != (3, 3) or matrix.ndim > 3:
        raise ValueError(f"matrix: expected shape (3, 3) or (N, 3, 3), got {tuple(matrix.shape)}")
    h, w = _pair(size, "size")
    out_h, out_w = (h, w) if out_size is None else _pair(out_size, "out_size")
    edge = 1 if align_corners else 0
    if min(h, w) == edge:
        raise ValueError(f"size: with align_corners expected at least 2x2 pixels, got {h}x{w}")

    # The inverse in closed form: no library call, which would wait for the device.
    matrix = matrix.to(torch.float64)
    a, b, x, c, d, y = matrix[..., :2, :].flatten(-2).unbind(-1)
    det = a * d - b * c
    inverse = _matrix(d / det, -b / det, (b * y - d * x) / det, -c / det, a / det, (c * x - a * y) / det)

    # normalised = (2 * pixel - (side - 1)) / (side - edge), for both conventions.
    like = matrix.device
    to_pixels = scaling((out_w - edge) / 2, (out_h - edge) / 2, device=like)
    to_pixels = compose(to_pixels, translation((out_w - 1) / 2, (out_h - 1) / 2, device=like))
    from_pixels = translation(-(w - 1) / 2, -(h - 1) / 2, device=like)
    from_pixels = compose(from_pixels, scaling(2 / (w - edge), 2 / (h - edge), device=like))
    return compose(to_pixels, inverse, from_pixels)[..., :2, :]


def _parameters(device: torch.device | str | None, **values: Parameter) -> tuple[Tensor, ...]:
    """Float64 tensors of one shape, () or [N], on one device; plain numbers never travel through host memory."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim > 1:
            raise ValueError(f"{name}: expected a number or a tensor [N], got shape {tuple(value.shape)}")
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    where = tensors[0].device if tensors else device
    lengths = {name: len(v) for name, v in values.items() if isinstance(v, Tensor) and v.ndim == 1}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"parameters differ in length: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    shape = tuple(lengths.values())[:1]
    return tuple(
        v.to(torch.float64).expand(shape)
        if isinstance(v, Tensor)
        else torch.full(shape, v, dtype=torch.float64, device=where)
        for v in values.values()
    )


def _about(a: Parameter, b: Parameter, c: Parameter, d: Parameter, x: Tensor, y: Tensor) -> Tensor:
    """The linear map [[a, b], [c, d]] with (x, y) as its fixed point."""
    return _matrix(a, b, x - a * x - b * y, c, d, y - c * x - d * y)


def _matrix(a: Parameter, b: Parameter, x: Tensor, c: Parameter, d: Parameter, y: Tensor) -> Tensor:
    """[[a, b, x], [c, d, y], [0, 0, 1]], batched like x."""
    rows = [v if isinstance(v, Tensor) else torch.full_like(x, v) for v in (a, b, x, c, d, y, 0.0, 0.0, 1.0)]
    return torch.stack(rows, -1).reshape(*x.shape, 3, 3)


# Checks


def _pair(size: Size, name: str) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name}: expected a positive number or (height, width), got {size}")
    return pair


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images: expected N,C,H,W with at least one pixel, got shape {tuple(images.shape)}")


def _check_seeds(seeds: Tensor) -> None:
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise ValueError(f"seeds: expected int64 of shape (N,), got {seeds.dtype} of shape {tuple(seeds.shape)}")


def _check_seeds_of(images: Tensor, seeds: Tensor) -> None:
    _check_seeds(seeds)
    if len(seeds) != len(images):
        raise ValueError(f"seeds: expected one for each of {len(images)} images, got {len(seeds)}")
    if seeds.device != images.device:
        raise ValueError(f"seeds: expected on the images' device {images.device}, got {seeds.device}")


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
