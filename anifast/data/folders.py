"""Folders of pictures: finding them, reading each one right, and writing results.

A file's type is what its first bytes say, never what its name says: data sets with PNG bytes under a `.jpg` name are
common. Reading ignores embedded colour profiles, as the published training codes do.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from anifast.errors import DataError, ImageError
from anifast.files import atomic_path
from anifast.files import printable as printable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
"""Lower-case suffixes that promise a picture; a file that has one and holds none is reported."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused (a small file can unpack to fill the memory) unless ANIFAST_MAX_PIXELS says otherwise."""

MODES = {"L": 1, "RGB": 3, "RGBA": 4}
"""The colour modes that pictures are read as, and their channels."""

RESIZES = ("stretch", "crop", "tf1")
"""The ways of `resize`."""

# Opened directly and not by Image.open: no format but these is ever tried, and Image.open's own size check, which is
# global and warns, is replaced by one that is neither.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
# Their magic bytes are long enough to be sure of a picture whatever the file is called. TIFF is also the container of
# camera raw files (of which only a thumbnail would be read), and BMP's and PPM's two bytes can begin a text.
_SURE = frozenset({"JPEG", "PNG", "GIF", "WebP"})
_MAGIC_BYTES = 32
_PPM = re.compile(rb"P[1-6]\s+[#0-9]")
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
# Folders of other programs' thumbnails and resource forks.
_FOREIGN = frozenset({"__MACOSX", "@eaDir"})
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageFolder:
    """The pictures found under a folder.

    Attributes:
        root: the folder, absolute.
        paths: the pictures, absolute, sorted bytewise by their POSIX path relative to `root`.
        names: those relative paths, in the same order.
        rejected: relative path -> reason, for what promises pictures and holds none.
    """

    root: Path
    paths: list[Path]
    names: list[str]
    rejected: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)


def counted(pictures: int) -> str:
    """A number of pictures in words: 1 picture, 2 pictures."""
    return f"{pictures} picture{'' if pictures == 1 else 's'}"


def sniff(head: bytes) -> str | None:
    """The picture format that a file's first 32 bytes show: JPEG, PNG, GIF, WebP, TIFF, BMP, PPM or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if _PPM.match(head):
        return "PPM"
    return None


def _not_a_picture(head: bytes) -> str:
    """What a file that `sniff` does not know seems to be, in words."""
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp":
        return "an AVIF, HEIC or video file, which is not read; convert it to PNG or JPEG"
    if head.startswith((b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"8BPS")):
        return "a JPEG 2000 or Photoshop file, which is not read; convert it to PNG or JPEG"
    if head.lstrip().startswith(b"<"):
        return "not a picture: an HTML, SVG or XML text"
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "not a picture: a text file"
    return "not a picture: no known format"


def _expected() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


def walk(
    root: str | os.PathLike[str], unreadable: dict[str, str] | None = None
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Give (POSIX relative path, entry) of every file under `root`, in no promised order.

    Hidden files and folders are left out. Links are followed; a folder that can be reached in several ways counts
    once, under its own name if it has one below `root`, so loops end.

    Args:
        root: the folder.
        unreadable: gets relative path -> reason for sub-folders that cannot be listed and links that lead nowhere.

    Raises:
        DataError: `root` is missing, no folder, or cannot be listed.
    """
    shown = printable(root)
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise DataError(f"{shown}: is a file. Give a folder that holds pictures ({_expected()})")
        os.scandir(root).close()
    except FileNotFoundError:
        raise DataError(f"{shown}: no such folder. Give a folder that holds pictures ({_expected()})") from None
    except OSError as error:
        raise DataError(f"{shown}: the folder cannot be read ({error.strerror}). Check its permissions") from error
    seen: set[tuple[int, int]] = set()
    folders: list[tuple[str, str]] = [("", os.fspath(root))]
    linked: list[tuple[str, str]] = []
    while folders or linked:
        if folders:
            prefix, folder = folders.pop()
        else:  # only now: real folders keep their own names
            prefix, folder = linked.pop(0)
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if unreadable is not None:
                unreadable[prefix] = f"the folder cannot be read ({error.strerror})"
            continue
        for entry in listed:
            if entry.name.startswith(".") or entry.name in _FOREIGN:
                continue
            name = prefix + entry.name
            try:
                folder_here, file_here = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                folder_here = file_here = False
            if folder_here:
                (linked if entry.is_symlink() else folders).append((name + "/", entry.path))
            elif file_here:
                yield name, entry
            elif entry.is_symlink() and unreadable is not None and _promises(name):
                unreadable[name] = "a link that leads nowhere"


def _promises(name: str) -> bool:
    """Does the file's name promise a picture?"""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def scan(root: str | os.PathLike[str]) -> ImageFolder:
    """Find the pictures under a folder and its sub-folders; only the first bytes of each file are read.

    JPEG, PNG, GIF and WebP are found under any name, TIFF, BMP and PPM where the name has a picture's suffix (in any
    case). Links are followed, loops end; hidden files are ignored.

    Raises:
        DataError: the folder is missing, unreadable or holds no picture.
    """
    top = Path(os.path.expanduser(os.fspath(root))).absolute()
    rejected: dict[str, str] = {}
    found: list[tuple[bytes, str, str]] = []
    for name, entry in walk(top, rejected):
        promises = _promises(name)
        try:
            with open(entry.path, "rb", buffering=0) as handle:
                head = handle.read(_MAGIC_BYTES)
        except OSError as error:
            if promises:
                rejected[name] = f"the file cannot be read ({error.strerror})"
            continue
        kind = sniff(head)
        if kind is not None and (promises or kind in _SURE):
            found.append((os.fsencode(name), name, entry.path))
        elif promises:
            rejected[name] = _not_a_picture(head)
    if not found:
        detail = ""
        if rejected:
            first = min(rejected)
            detail = f" ({len(rejected)} with a picture's name, but {printable(first)}: {rejected[first]})"
        raise DataError(
            f"{printable(top)}: no picture found{detail}. "
            f"Expected pictures ({_expected()}) in this folder or its sub-folders"
        )
    found.sort()
    return ImageFolder(top, [Path(path) for _, _, path in found], [name for _, name, _ in found], rejected)


def class_labels(names: Sequence[str], min_images: int = 1) -> tuple[list[str], NDArray[np.int64]]:
    """Labels from the layout `root/<class>/.../<picture>`.

    Args:
        names: relative paths as in `ImageFolder.names` or `PackedImages.paths`.
        min_images: classes with fewer pictures are left out (the disentangling paper keeps artists with at least 50).

    Returns:
        The class names, sorted bytewise, and for each picture its index in them, or -1 if its class is left out.

    Raises:
        DataError: a picture stands outside all class folders, or no class has enough pictures.
    """
    folders = []
    for name in names:
        folder, slash, _ = name.partition("/")
        if not slash:
            raise DataError(f"{printable(name)}: stands in no class folder. Expected <class>/<picture>")
        folders.append(folder)
    counts = Counter(folders)
    classes = sorted((folder for folder, count in counts.items() if count >= min_images), key=os.fsencode)
    if not classes:
        raise DataError(
            f"no class folder has {min_images} pictures (the largest of {len(counts)} has "
            f"{max(counts.values(), default=0)}). Lower the least number of pictures of a class"
        )
    index = {folder: number for number, folder in enumerate(classes)}
    return classes, np.array([index.get(folder, -1) for folder in folders], dtype=np.int64)


def pixel_limit() -> int:
    """The largest picture that is read, in pixels: ANIFAST_MAX_PIXELS or `MAX_PIXELS`.

    Raises:
        DataError: the variable is no positive whole number.
    """
    text = os.environ.get("ANIFAST_MAX_PIXELS", "").strip()
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"ANIFAST_MAX_PIXELS is {text!r}: give a whole number of pixels, for example {MAX_PIXELS}")
    return int(text)


def read_image(
    path: str | os.PathLike[str],
    mode: str = "RGB",
    background: tuple[int, int, int] = (255, 255, 255),
    *,
    max_pixels: int | None = None,
) -> Image.Image:
    """Read one picture, whatever its format and colour type, as 8-bit `mode`.

    The EXIF orientation is applied. Transparency (alpha, palette or colour key) is flattened on `background`, or kept
    if mode is RGBA. 16-bit grey is scaled to 8 bit, CMYK is converted. Of an animation the first frame is read.

    Args:
        path: the file.
        mode: RGB, RGBA or L (ITU-R 601 luma).
        background: the colour behind transparent pixels, RGB.
        max_pixels: the largest picture allowed; `pixel_limit()` by default.

    Returns:
        A picture of its own, without the file's metadata.

    Raises:
        ImageError: the file is missing, unreadable, no picture, damaged, too large, or of a pixel type without a known
            range (float, 32 bit).
        ValueError: unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    limit = pixel_limit() if max_pixels is None else max_pixels
    shown = printable(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{shown}: not a file. Give the path of a picture")
        with open(path, "rb") as handle:
            head = handle.read(_MAGIC_BYTES)
            kind = sniff(head)
            if kind is None:
                raise ImageError(f"{shown}: {_not_a_picture(head)}. Expected one of {_expected()}")
            handle.seek(0)
            try:
                image = _READERS[kind](handle)
                width, height = image.size
                if width * height > limit:
                    raise ImageError(
                        f"{shown}: {width}x{height} is more than the limit of {limit} pixels. "
                        "If the picture is to be trusted, raise the limit with ANIFAST_MAX_PIXELS"
                    )
                image.load()
                return _convert(_upright(image), mode, background)
            except ImageError:
                raise
            except MemoryError:
                raise ImageError(f"{shown}: not enough memory to decode the picture. Make it smaller") from None
            except Exception as error:  # decoders raise whatever they like on damaged data
                reason = str(error).rstrip(".") or type(error).__name__
                raise ImageError(f"{shown}: the {kind} cannot be decoded ({reason}). Replace or remove it") from error
    except FileNotFoundError:
        raise ImageError(f"{shown}: no such file") from None
    except OSError as error:
        raise ImageError(f"{shown}: the file cannot be read ({error.strerror}). Check its permissions") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    try:
        method = _TRANSPOSE.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to lose a picture
        method = None
    return image if method is None else image.transpose(method)


def _convert(image: Image.Image, mode: str, background: tuple[int, int, int]) -> Image.Image:
    """An 8-bit copy of a decoded picture in `mode`, without metadata."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        image = _eight_bit(image, key)
    elif image.mode == "F":
        raise ValueError("its float samples have no defined range; save it with 8 or 16 bits")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if image.mode == "P" and image.palette is not None:
        has_alpha = has_alpha or image.palette.mode == "RGBA"
    if has_alpha:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    result = image.convert(mode)
    result.info = {}
    return result


def _eight_bit(image: Image.Image, key: int | None) -> Image.Image:
    """16-bit grey to L, or to LA where a grey value is marked as transparent. Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "I" and values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("its 32-bit samples have no defined range; save it with 8 or 16 bits")
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if key is None:
        return grey
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def resize(image: Image.Image, size: int | tuple[int, int], how: str = "stretch", *, crop_size: int = 0) -> Image.Image:
    """Scale a picture, bicubic and antialiased, or as TensorFlow 1 did.

    Of pictures with alpha, colours count as much as they are visible: those of transparent pixels do not bleed in.

    Args:
        image: any size from 1x1 up.
        size: the side of a square, or (height, width).
        how: `stretch` ignores the aspect, exactly as CycleGAN's reference code does; `crop` takes the largest centred
            part that has the target's aspect; `tf1` ignores the aspect too, and is `resize_tf1`, rounded half up.
        crop_size: side of the centred square that is cut from the picture first; 0: nothing is cut. Where a picture
            does not fill the square it is transparent or, in modes without alpha, white, as transparency is read.

    Raises:
        ValueError: unknown `how`, a size below 1 or a crop_size below 0.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    if how not in RESIZES:
        raise ValueError(f"how is {how!r}; expected one of {', '.join(RESIZES)}")
    if crop_size < 0:
        raise ValueError(f"crop_size is {crop_size}; expected at least 0")
    if crop_size:
        image = _centred_square(image, crop_size)
    target = (width, height)
    if how == "tf1":
        return _with_alpha(image, lambda band: _tf1_band(band, (height, width)), whole=image.size == target)
    if how == "stretch" or image.width * height == image.height * width:
        return _scaled(image, target, (0.0, 0.0, image.width, image.height))
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + scale * width, image.width),
        min(top + scale * height, image.height),
    )
    return _scaled(image, target, box)


def _scaled(image: Image.Image, target: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """A part of a picture at another size, width and height."""
    whole = image.size == target and box == (0, 0, *target)
    return _with_alpha(image, lambda band: band.resize(target, Image.Resampling.BICUBIC, box=box), whole=whole)


def _tf1_band(band: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`resize_tf1` of a picture, or of one band of it in float32."""
    if band.mode == "F":
        return Image.fromarray(resize_tf1(torch.from_numpy(np.array(band)), size).numpy())
    values = resize_tf1(to_tensor(band), size).add_(0.5).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(values if values.shape[2] > 1 else values[..., 0])


def _with_alpha(image: Image.Image, scaled: Callable[[Image.Image], Image.Image], whole: bool) -> Image.Image:
    """Scale a picture; in mode RGBA its colours weighed with alpha, unless that makes no difference.

    Args:
        image: the picture.
        scaled: scales a picture, or one band of it in float32 (mode F).
        whole: nothing is scaled at all, so that the picture is to keep its pixels.
    """
    if image.mode != "RGBA" or whole or image.getchannel("A").getextrema() == (255, 255):
        return scaled(image)
    # Pillow weighs colours with alpha too, but in 8 bits: what is left of a colour at alpha 5 is noise, which shows
    # wherever alpha counts as yes or no, and beside an edge it overshoots as if black lay behind.
    values = np.array(image, dtype=np.float32)
    values[..., :3] *= values[..., 3:] / 255
    bands = [np.asarray(scaled(Image.fromarray(values[..., band]))) for band in range(4)]
    result = np.stack(bands, axis=-1)
    alpha = result[..., 3:]
    seen = alpha >= 0.5  # what is less rounds to nothing
    colours = np.where(seen, result[..., :3] * 255 / np.where(seen, alpha, 1), 0)
    result = np.concatenate([colours, alpha], axis=-1)
    return Image.fromarray((result.clip(0, 255) + 0.5).astype(np.uint8))


def _centred_square(image: Image.Image, side: int) -> Image.Image:
    """The centred square of a picture, one pixel to the left and top where it cannot be in the middle."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.mode == "RGBA" or (left >= 0 and top >= 0):
        return image.crop((left, top, left + side, top + side))  # what lies outside comes transparent
    square = Image.new(image.mode, (side, side), "white")
    square.paste(image, (-left, -top))
    return square


def resize_tf1(images: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """Scale as TensorFlow 1's bilinear resize did: pixel i lies at i * in / out, without antialiasing.

    Args:
        images: [..., H, W] of any real dtype.
        size: the side of a square, or (height, width).

    Returns:
        float32 [..., height, width] in the range of the images.

    Raises:
        ValueError: a size below 1, or images without pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    if images.ndim < 2 or not images.shape[-1] or not images.shape[-2]:
        raise ValueError(f"images: expected [..., H, W], got {tuple(images.shape)}")
    top, bottom, down = _tf1_places(images.shape[-2], height, images.device)
    left, right, along = _tf1_places(images.shape[-1], width, images.device)
    # Only the rows and columns that are looked at become floats: pictures may be large.
    rows = images.index_select(-2, torch.cat([top, bottom]))
    corners = rows.index_select(-1, torch.cat([left, right])).to(torch.float32)
    (top_left, top_right), (bottom_left, bottom_right) = (
        half.split(width, dim=-1) for half in corners.split(height, dim=-2)
    )
    upper = top_left + (top_right - top_left) * along
    lower = bottom_left + (bottom_right - bottom_left) * along
    return upper + (lower - upper) * down[:, None]


def _tf1_places(side: int, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of `count` samples of an axis: the pixel before each, the one behind it, and how far between them it lies."""
    places = torch.arange(count, dtype=torch.float32, device=device) * (side / count)
    first = places.long().clamp(max=side - 1)
    return first, (first + 1).clamp(max=side - 1), places - first


def to_tensor(image: Image.Image) -> torch.Tensor:
    """A picture of mode L, RGB or RGBA as uint8 C,H,W.

    Raises:
        ValueError: another mode.
    """
    if image.mode not in MODES:
        raise ValueError(f"image: expected mode {', '.join(MODES)}, got {image.mode}")
    values = torch.from_numpy(np.array(image, dtype=np.uint8))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape to float32 in [-1, 1]: 2*u/255 - 1.

    Raises:
        TypeError: the tensor is not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images: expected uint8, got {images.dtype}")
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float of any shape in [-1, 1] to uint8: clamped, rounded half up; NaN becomes 0. The inverse of `to_float`.

    Raises:
        TypeError: the tensor is not of a floating dtype.
    """
    if not images.is_floating_point():
        raise TypeError(f"images: expected a floating dtype, got {images.dtype}")
    scaled = images.detach().to(torch.float32).add(1).mul_(127.5).add_(0.5).floor_()
    return scaled.nan_to_num_(0.0).clamp_(0, 255).to(torch.uint8)


def save_png(image: torch.Tensor, path: str | os.PathLike[str]) -> None:
    """Write a float C,H,W in [-1, 1], with C = 1, 3 or 4, as an 8-bit PNG, whole or not at all.

    Raises:
        ValueError: another shape.
        AnifastError: the file cannot be written.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(f"image: expected C,H,W with C = 1, 3 or 4, got {tuple(image.shape)}")
    values = to_uint8(image).cpu()
    picture = Image.fromarray((values[0] if values.shape[0] == 1 else values.permute(1, 2, 0)).numpy())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
