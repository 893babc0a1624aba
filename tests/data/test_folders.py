"""Folders and pictures: everything a user's folder can hold is read right or named in one clear error."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from anifast.data import folders
from anifast.data.folders import class_labels, read_image, resize, save_png, scan, to_float, to_tensor, to_uint8
from anifast.errors import AnifastError, DataError, ImageError

pytestmark = pytest.mark.filterwarnings("error")

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm"}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def same(a: Image.Image, b: Image.Image | np.ndarray[Any, np.dtype[np.uint8]]) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG of any depth and colour type; Pillow writes only some."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (image or noise(24, 20)).save(out, kind, **options)
    return out.getvalue()


# --- scan


def test_scan_is_recursive_and_sorted_bytewise_by_posix_path(tmp_path: Path) -> None:
    names = ["b.png", "B.png", "a/z.png", "a.png", "a/b/1.png", "a/b/10.png", "a/b/2.png", "ä.png", "a-b/x.png"]
    for name in names:
        write(tmp_path / name, encoded("PNG"))
    found = scan(tmp_path)
    assert found.names == sorted(names, key=lambda name: name.encode())
    assert found.paths == [tmp_path / name for name in found.names]
    assert found.root == tmp_path and len(found) == len(names) and found.rejected == {}


@pytest.mark.parametrize("kind", FORMATS)
def test_scan_goes_by_content(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "under_another_name.JPEG", encoded(kind))
    write(tmp_path / "notes.txt", b"P2 things to do")
    write(tmp_path / "labels.json", b"{}")
    assert scan(tmp_path).names == ["under_another_name.JPEG"]
    read_image(tmp_path / "under_another_name.JPEG")


def test_scan_finds_sure_formats_without_a_suffix_and_leaves_raw_files(tmp_path: Path) -> None:
    write(tmp_path / "photo.jfif", encoded("JPEG"))
    write(tmp_path / "no_suffix", encoded("PNG"))
    write(tmp_path / "camera.nef", encoded("TIFF"))
    write(tmp_path / "BM.txt", encoded("BMP"))
    assert scan(tmp_path).names == ["no_suffix", "photo.jfif"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"this is no picture", "a text file"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"BMW and other cars are here", "a text file"),
        (b"\0\0\0\x1cftypavif\0\0", "AVIF"),
        (b"8BPS\0\1\0\0", "Photoshop"),
        (b"\0\1\2\3\4", "no known format"),
    ],
)
def test_not_a_picture_under_a_pictures_name(tmp_path: Path, data: bytes, reason: str) -> None:
    write(tmp_path / "good.png", encoded("PNG"))
    bad = write(tmp_path / "sub/bad.jpg", data)
    found = scan(tmp_path)
    assert found.names == ["good.png"]
    assert list(found.rejected) == ["sub/bad.jpg"] and reason in found.rejected["sub/bad.jpg"]
    with pytest.raises(ImageError, match=reason) as error:
        read_image(bad)
    assert str(error.value).startswith(str(bad))


def test_scan_ignores_hidden_files_and_other_programs_folders(tmp_path: Path) -> None:
    for name in (".DS_Store", "._x.jpg", ".hidden/x.png", "__MACOSX/x.png", "@eaDir/x.png", "x.png"):
        write(tmp_path / name, encoded("PNG"))
    found = scan(tmp_path)
    assert found.names == ["x.png"] and found.rejected == {}


def test_scan_follows_links_and_ends_in_loops(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "real/x.png", encoded("PNG"))
    write(tmp_path / "elsewhere/y.png", encoded("PNG"))
    write(tmp_path / "single.png", encoded("PNG"))
    (root / "real/up").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    (root / "a_second_name").symlink_to(root / "real")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "z.png").symlink_to(tmp_path / "single.png")
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "gone.png").symlink_to(tmp_path / "gone.png")
    found = scan(root)
    # Once each; folders below the root under their own names, what only links reach under theirs.
    assert found.names == ["above/elsewhere/y.png", "above/single.png", "real/x.png", "z.png"]
    assert set(found.rejected) == {"gone.png", "itself.png"}


def test_scan_does_not_wait_on_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path / "x.png", encoded("PNG"))
    assert scan(tmp_path).names == ["x.png"]
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path / "pipe.png")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    try:
        write(tmp_path / name, b"text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write(tmp_path / "x.png", encoded("PNG"))
    assert set(scan(tmp_path).rejected) == {name}
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / name)
    assert r"\xff\xfe.png" in str(error.value)
    str(error.value).encode("ascii")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder.*jpg"):
        scan(tmp_path / "nowhere")


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png: is a file"):
        scan(write(tmp_path / "x.png", encoded("PNG")))


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=r"no picture found\. Expected pictures \(bmp, gif"):
        scan(tmp_path)


def test_folder_of_rejected_files_says_why(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"text")
    write(tmp_path / "b.jpg", b"")
    with pytest.raises(DataError, match=r"no picture found \(2 with a picture's name, but a\.jpg: .*text"):
        scan(tmp_path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    memory = Path("/proc/self/mem")  # reading its start is refused, also to root
    if not memory.exists():
        pytest.skip("needs /proc")
    write(tmp_path / "x.png", encoded("PNG"))
    (tmp_path / "bad.png").symlink_to(memory)
    assert "cannot be read" in scan(tmp_path).rejected["bad.png"]
    with pytest.raises(ImageError, match="bad.png: the file cannot be read"):
        read_image(tmp_path / "bad.png")


def test_unlistable_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.png", encoded("PNG"))
    (tmp_path / "locked").mkdir()
    listing = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "Permission denied" in scan(tmp_path).rejected["locked/"]
    with pytest.raises(DataError, match=r"locked: the folder cannot be read \(Permission denied\)"):
        scan(tmp_path / "locked")


def test_class_labels() -> None:
    names = ["b/1.png", "a/deep/1.png", "b/2.png", "c/1.png", "b/3.png", "a/2.png"]
    classes, labels = class_labels(names)
    assert classes == ["a", "b", "c"] and labels.tolist() == [1, 0, 1, 2, 1, 0]
    classes, labels = class_labels(names, min_images=2)
    assert classes == ["a", "b"] and labels.tolist() == [1, 0, 1, -1, 1, 0]
    with pytest.raises(DataError, match=r"no class folder has 4 pictures \(the largest of 3 has 3\)"):
        class_labels(names, min_images=4)
    with pytest.raises(DataError, match="stray.png: stands in no class folder"):
        class_labels([*names, "stray.png"])


# --- read_image: every colour type


def pixel(path: Path, mode: str = "RGB", **options: object) -> tuple[int, ...]:
    image = read_image(path, mode, **options)  # type: ignore[arg-type]
    assert image.mode == mode and image.info == {}
    return tuple(np.atleast_1d(np.asarray(image)[0, 0]).tolist())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_rgb_is_exact(tmp_path: Path, kind: str) -> None:
    image = noise(13, 7)
    path = write(tmp_path / "x", encoded(kind, image, **({"lossless": True} if kind == "WEBP" else {})))
    assert same(read_image(path), image)


def test_grey(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", encoded("PNG", Image.new("L", (3, 2), 77)))
    assert pixel(path) == (77, 77, 77)
    assert pixel(path, "L") == (77,)
    assert pixel(path, "RGBA") == (77, 77, 77, 255)


def test_luma_of_colour(tmp_path: Path) -> None:
    assert pixel(write(tmp_path / "x.png", encoded("PNG", Image.new("RGB", (1, 1), (255, 0, 0)))), "L") == (76,)


def test_bilevel(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", png(8, 1, 1, 0, [b"\xa0"]))
    assert np.asarray(read_image(path, "L"))[0, :4].tolist() == [255, 0, 255, 0]


def test_alpha_is_flattened_on_the_background_or_kept(tmp_path: Path) -> None:
    rows = [bytes([10, 20, 30, 255, 10, 20, 30, 0, 100, 100, 100, 51])]
    path = write(tmp_path / "x.png", png(3, 1, 8, 6, rows))
    assert np.asarray(read_image(path))[0].tolist() == [[10, 20, 30], [255, 255, 255], [224, 224, 224]]
    black = read_image(path, background=(0, 0, 0))
    assert np.asarray(black)[0].tolist() == [[10, 20, 30], [0, 0, 0], [20, 20, 20]]
    assert np.asarray(read_image(path, "RGBA"))[0].tolist() == [[10, 20, 30, 255], [10, 20, 30, 0], [100, 100, 100, 51]]
    assert np.asarray(read_image(path, "L"))[0, 1] == 255


def test_grey_with_alpha(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", png(2, 1, 8, 4, [bytes([50, 255, 50, 0])]))
    assert np.asarray(read_image(path))[0].tolist() == [[50, 50, 50], [255, 255, 255]]
    assert np.asarray(read_image(path, "RGBA"))[0].tolist() == [[50, 50, 50, 255], [50, 50, 50, 0]]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = chunk(b"PLTE", bytes([200, 10, 10, 10, 200, 10, 10, 10, 200]))
    opaque = write(tmp_path / "opaque.png", png(3, 1, 8, 3, [bytes([0, 1, 2])], palette))
    assert np.asarray(read_image(opaque))[0].tolist() == [[200, 10, 10], [10, 200, 10], [10, 10, 200]]
    for table in (bytes([255, 0]), bytes([255, 0, 255])):  # entries missing at the end are opaque
        data = png(3, 1, 8, 3, [bytes([0, 1, 2])], palette + chunk(b"tRNS", table))
        path = write(tmp_path / "see_through.png", data)
        assert np.asarray(read_image(path))[0].tolist() == [[200, 10, 10], [255, 255, 255], [10, 10, 200]]
        assert np.asarray(read_image(path, "RGBA"))[0, :, 3].tolist() == [255, 0, 255]


def test_colour_key(tmp_path: Path) -> None:
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    path = write(tmp_path / "rgb.png", png(2, 1, 8, 2, [bytes([1, 2, 3, 9, 9, 9])], key))
    assert np.asarray(read_image(path))[0].tolist() == [[255, 255, 255], [9, 9, 9]]
    path = write(tmp_path / "grey.png", png(2, 1, 8, 0, [bytes([1, 9])], chunk(b"tRNS", struct.pack(">H", 1))))
    assert np.asarray(read_image(path))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257, 32639, 32768, 40000, 65535]], dtype=np.uint16)
    expected = np.floor(levels / 257 + 0.5).astype(np.uint8)
    wide = png(8, 1, 16, 0, [levels.astype(">u2").tobytes()])
    for name, data in {
        "x.png": wide,
        "x.tif": encoded("TIFF", Image.fromarray(levels)),
        "x.pgm": b"P5 8 1 65535\n" + levels.astype(">u2").tobytes(),
    }.items():
        path = write(tmp_path / name, data)
        assert same(read_image(path, "L"), expected), name
        assert np.array_equal(np.asarray(read_image(path))[..., 1], expected), name
    big = tmp_path / "big_endian.tif"
    Image.fromarray(levels.astype(">u2")).save(big)
    assert same(read_image(big, "L"), expected)


def test_sixteen_bit_grey_with_a_transparent_level(tmp_path: Path) -> None:
    key = chunk(b"tRNS", struct.pack(">H", 1000))
    path = write(tmp_path / "x.png", png(2, 1, 16, 0, [struct.pack(">HH", 1000, 25700)], key))
    assert np.asarray(read_image(path))[0].tolist() == [[255, 255, 255], [100, 100, 100]]
    assert np.asarray(read_image(path, "RGBA"))[0, :, 3].tolist() == [0, 255]


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_and_alpha(tmp_path: Path, colour: int, channels: int) -> None:
    values = [0x2010, 0x8000, 0xE0FF, 0xFFFF][:channels]
    if channels == 2:
        values = [0x2010, 0xFFFF]
    path = write(tmp_path / "x.png", png(1, 1, 16, colour, [struct.pack(f">{channels}H", *values)]))
    expected = [0x20, 0x80, 0xE0] if channels > 2 else [0x20, 0x20, 0x20]
    assert np.abs(np.subtract(pixel(path), expected)).max() <= 1


def test_ten_bit_pgm(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pgm", b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    assert np.asarray(read_image(path, "L"))[0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_known_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[0, 70000]], dtype=dtype)).save(path)
    with pytest.raises(ImageError, match=r"x\.tif.*no defined range; save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(tmp_path: Path, kind: str) -> None:
    """A JPEG's CMYK is stored inverted, as Adobe's programs do; reading must not give the negative."""
    for ink, colour in {
        (0, 255, 255, 0): (255, 0, 0),
        (0, 0, 0, 0): (255, 255, 255),
        (0, 0, 0, 255): (0, 0, 0),
    }.items():
        data = encoded(kind, Image.new("CMYK", (16, 16), ink))
        assert kind != "JPEG" or b"Adobe" in data
        assert np.abs(np.subtract(pixel(write(tmp_path / "x", data)), colour)).max() <= 3


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(kind, red, save_all=True, append_images=[blue], **options)
        assert pixel(write(tmp_path / "x", data)) == (255, 0, 0), kind


def test_transparent_gif(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.putdata([0, 1])
    path = write(tmp_path / "x.gif", encoded("GIF", image, transparency=0))
    assert np.asarray(read_image(path))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x", encoded(kind, Image.new("RGB", (1, 1), (200, 200, 200))))
    image = read_image(path)
    assert image.size == (1, 1)
    for how in folders.RESIZES:
        big = np.asarray(resize(image, 5, how))
        assert big.shape == (5, 5, 3) and np.abs(big.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path / "x", encoded(kind, noise(16, 8), exif=exif, **options))
    image = read_image(path)
    with Image.open(path) as plain:
        upright = ImageOps.exif_transpose(plain).convert("RGB")
    assert image.size == ((8, 16) if orientation <= 4 else (16, 8))
    assert same(image, upright)


def test_a_phone_picture_held_upright(tmp_path: Path) -> None:
    """Orientation 6: the first stored row is the right-hand column."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), (255, 0, 0))
    image = read_image(write(tmp_path / "x.png", encoded("PNG", stored, exif=exif)))
    assert image.size == (2, 3) and image.getpixel((1, 0)) == (255, 0, 0)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b""):
        path = write(tmp_path / "x.jpg", encoded("JPEG", noise(8, 16), exif=exif))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow tells of the metadata
            assert read_image(path).size == (16, 8)


# --- read_image: what cannot be read


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated(tmp_path: Path, kind: str) -> None:
    data = encoded(kind, noise(40, 40))
    path = write(tmp_path / f"cut{FORMATS[kind]}", data[: len(data) // 2])
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: the ") and "Replace or remove it" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_of_any_kind_is_an_image_error_or_a_picture(tmp_path: Path, kind: str) -> None:
    data = encoded(kind, noise(12, 12))
    rng = np.random.default_rng(5)
    for trial in range(60):
        damaged = bytearray(data[: rng.integers(0, len(data))] if trial % 2 else data)
        for place in rng.integers(0, len(damaged) or 1, 3):
            if damaged:
                damaged[place] = rng.integers(256)
        path = write(tmp_path / "x.jpg", bytes(damaged))
        try:
            assert read_image(path, max_pixels=10**6).mode == "RGB"
        except ImageError as error:
            assert str(error).startswith(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")


def test_folder_in_place_of_a_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its header, with the limit and the way out, without a warning and without taking the memory."""
    path = write(tmp_path / "bomb.png", png(60000, 60000, 1, 0, [bytes(7500)] * 8))
    with pytest.raises(ImageError, match=r"60000x60000 is more than the limit of 100000000 .*ANIFAST_MAX_PIXELS"):
        read_image(path)
    small = write(tmp_path / "small.png", encoded("PNG", noise(10, 10)))
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", "99")
    with pytest.raises(ImageError, match="10x10 is more than the limit of 99"):
        read_image(small)
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", "100")
    assert read_image(small).size == (10, 10)
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="ANIFAST_MAX_PIXELS is 'many'"):
        read_image(small)


def test_the_limit_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit, which warns at one size and raises at twice that, neither shows nor is changed."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = write(tmp_path / "x.png", encoded("PNG", noise(9, 9)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resize(read_image(path), 4, "crop").size == (4, 4)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode is 'CMYK'; expected one of L, RGB, RGBA"):
        read_image(tmp_path / "x.png", "CMYK")


# --- resize and tensors


def test_stretch_is_pils_bicubic() -> None:
    image = noise(37, 53)
    assert same(resize(image, 286), image.resize((286, 286), Image.Resampling.BICUBIC))
    assert same(resize(image, (8, 16)), image.resize((16, 8), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("channels", [1, 3])
def test_tf1_has_its_first_pixel_at_the_first(channels: int) -> None:
    """Rows at 0, 0.5, 1, 1.5, 2, 2.5 of three and columns at 0, 0.5, 1, 1.5 of two; nothing lies behind the last."""
    values = np.array([[64, 32], [32, 64], [50, 100]], np.uint8)
    image = Image.fromarray(values if channels == 1 else np.stack([values] * 3, -1))
    want = [
        [64, 48, 32, 32],
        [48, 48, 48, 48],
        [32, 48, 64, 64],
        [41, 62, 82, 82],  # 61.5 in the second column: half up
        [50, 75, 100, 100],
        [50, 75, 100, 100],
    ]
    got = np.asarray(resize(image, (6, 4), "tf1")).reshape(6, 4, channels)
    assert all(got[..., channel].tolist() == want for channel in range(channels))


@pytest.mark.parametrize(("height", "width"), [(37, 53), (1, 9), (8, 1), (200, 30)])
@pytest.mark.parametrize("size", [5, (16, 3), (80, 61)])
def test_tf1_equals_a_slow_loop(height: int, width: int, size: int | tuple[int, int]) -> None:
    """Source position = index * in / out, bilinear between two pixels, the last one repeated; no antialiasing."""
    rows, columns = (size, size) if isinstance(size, int) else size
    image = noise(height, width)
    values = np.asarray(image).astype(np.float64)
    want = np.empty((rows, columns, 3))
    for row, column in np.ndindex(rows, columns):
        y, x = row * height / rows, column * width / columns
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        down, along = y - top, x - left
        upper = values[top, left] * (1 - along) + values[top, right] * along
        lower = values[bottom, left] * (1 - along) + values[bottom, right] * along
        want[row, column] = upper * (1 - down) + lower * down
    tensor = folders.resize_tf1(to_tensor(image), size)
    assert tensor.dtype == torch.float32 and tensor.shape == (3, rows, columns)
    # Places are float32 up to `side`, twice rounded, and a step between pixels is at most 255; sums round four times.
    error = 255 * torch.finfo(torch.float32).eps * (2 * (height + width) + 4)
    assert np.abs(tensor.permute(1, 2, 0).double().numpy() - want).max() < error
    eight = np.asarray(resize(image, size, "tf1"))
    assert np.abs(eight - want).max() < 0.5 + error
    batch = torch.stack([to_tensor(image), 255 - to_tensor(image)]) / 255
    assert torch.equal(folders.resize_tf1(batch, size)[0], folders.resize_tf1(batch[:1], size)[0])
    assert torch.allclose(folders.resize_tf1(batch, size).sum(0), torch.ones(3, rows, columns))


def test_tf1_of_a_picture_with_alpha() -> None:
    """Colours by how visible they are; what is opaque is as without alpha."""
    image = Image.fromarray(np.array([[[200, 100, 50, 255], [0, 255, 0, 0]]], np.uint8))
    assert np.asarray(resize(image, (1, 4), "tf1"))[0].tolist() == [
        [200, 100, 50, 255],
        [200, 100, 50, 128],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_resize_tf1_refuses() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        folders.resize_tf1(torch.zeros(3, 4, 4), 0)
    for shape in ((4,), (3, 0, 4)):
        with pytest.raises(ValueError, match=r"images: expected \[\.\.\., H, W\]"):
            folders.resize_tf1(torch.zeros(shape), 2)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (41, 60), (40, 40)])
def test_crop_is_the_centred_square(height: int, width: int) -> None:
    image = noise(height, width)
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    part = np.asarray(image)[top : top + short, left : left + short]
    if (height - width) % 2 == 0:
        assert same(resize(image, short, "crop"), part)
    ramp = Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (height, 1)))
    columns = np.asarray(resize(ramp, short // 2, "crop")).mean(axis=0)
    assert abs(columns.mean() - (width - 1) / 2) < 0.6  # centred


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 7), (1000, 999)])
@pytest.mark.parametrize("target", [1, 16, (5, 9)])
@pytest.mark.parametrize("how", folders.RESIZES)
def test_resize_takes_any_size(height: int, width: int, target: int | tuple[int, int], how: str) -> None:
    rows, columns = (target, target) if isinstance(target, int) else target
    assert resize(Image.new("RGB", (width, height)), target, how).size == (columns, rows)


def test_resize_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="how is 'squash'; expected one of stretch, crop"):
        resize(noise(4, 4), 2, "squash")
    with pytest.raises(ValueError, match="size is 0"):
        resize(noise(4, 4), 0)
    with pytest.raises(ValueError, match="crop_size is -1; expected at least 0"):
        resize(noise(4, 4), 2, crop_size=-1)


@pytest.mark.parametrize("how", folders.RESIZES)
@pytest.mark.parametrize("size", [11, 24, 50])
def test_colours_of_transparent_pixels_do_not_bleed_in(size: int, how: str) -> None:
    """One colour is that colour at whatever alpha it comes out, up to the rounding of float32 and to 8 bits."""
    values = np.zeros((40, 60, 4), np.uint8)
    values[...] = (0, 255, 0, 0)
    values[np.add.outer(np.arange(40), np.arange(60) // 3) > 30] = (200, 100, 50, 255)
    values[20:, 30:, 3] //= 3
    scaled = np.asarray(resize(Image.fromarray(values), size, how))
    seen = scaled[..., 3] > 0
    assert len(np.unique(scaled[..., 3])) > 5 and 0 < seen.sum() < seen.size
    assert (scaled[seen][:, :3] == (200, 100, 50)).all() and (scaled[~seen] == 0).all()


@pytest.mark.parametrize("how", folders.RESIZES)
def test_alpha_is_scaled_like_a_grey_picture(how: str) -> None:
    image = noise(40, 60, 4)
    grey = np.asarray(resize(image.getchannel("A"), 17, how)).astype(int)
    # Pillow rounds twice in 8 bits; weights of the second pass add up to less than 1.4 in size.
    assert np.abs(np.asarray(resize(image, 17, how))[..., 3] - grey).max() <= 2
    image.putalpha(255)
    assert same(resize(image, 17, how).convert("RGB"), resize(image.convert("RGB"), 17, how))


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    """Also what is transparent."""
    image = noise(12, 12, 4)
    assert same(resize(image, 12, "crop"), image) and same(resize(image, 12), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_crop_size_cuts_the_middle_first(channels: int) -> None:
    image = noise(40, 61, channels)
    cut = image.crop((20, 10, 40, 30))
    for how in folders.RESIZES:
        assert same(resize(image, 20, how, crop_size=20), cut)
        assert same(resize(image, 9, how, crop_size=20), resize(cut, 9, how))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_does_not_fill_the_square_is_not_stretched(channels: int) -> None:
    image = noise(10, 31, channels)
    made = np.asarray(resize(image, 20, "crop", crop_size=20))
    assert np.array_equal(made[5:15], np.asarray(image)[:, 5:25])
    outside = np.concatenate([made[:5], made[15:]])
    assert (outside == (0 if channels == 4 else 255)).all()  # transparent, or white


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_to_tensor(channels: int) -> None:
    image = noise(5, 7, channels)
    tensor = to_tensor(image)
    assert tensor.dtype == torch.uint8 and tensor.shape == (channels, 5, 7) and tensor.is_contiguous()
    assert np.array_equal(tensor.permute(1, 2, 0).squeeze(-1).numpy(), np.asarray(image))


def test_to_tensor_refuses_other_modes() -> None:
    for mode in ("P", "CMYK", "I;16", "LA"):
        with pytest.raises(ValueError, match=f"expected mode L, RGB, RGBA, got {mode}"):
            to_tensor(Image.new(mode, (2, 2)))


def test_value_range_and_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_float(levels)
    assert values.dtype == torch.float32
    assert torch.equal(values, 2 * levels.float() / 255 - 1)
    assert values[0] == -1 and values[255] == 1
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert torch.equal(to_uint8(values.to(dtype)), levels)


def test_to_uint8_clamps_and_rounds_half_up() -> None:
    exact = torch.tensor([-1.5, -1.0, 1.0, 7.0, float("inf"), -float("inf"), float("nan")])
    assert to_uint8(exact).tolist() == [0, 0, 255, 255, 255, 0, 0]
    assert to_uint8(torch.tensor([0.0])).tolist() == [128]  # 127.5 goes up
    steps = torch.tensor([10.49, 10.51, 99.6]) / 127.5 - 1
    assert to_uint8(steps).tolist() == [10, 11, 100]


def test_to_uint8_leaves_its_input_and_the_graph_alone() -> None:
    values = torch.zeros(2, requires_grad=True)
    result = to_uint8(values)
    assert values.tolist() == [0, 0] and not result.requires_grad


def test_tensor_functions_refuse_other_dtypes() -> None:
    with pytest.raises(TypeError, match="expected uint8, got torch.float32"):
        to_float(torch.zeros(3))
    with pytest.raises(TypeError, match="expected a floating dtype, got torch.uint8"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_save_png_round_trip(tmp_path: Path, channels: int) -> None:
    tensor = to_tensor(noise(6, 9, channels))
    save_png(to_float(tensor), tmp_path / "new/x.png")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert torch.equal(to_tensor(read_image(tmp_path / "new/x.png", mode)), tensor)
    assert os.listdir(tmp_path / "new") == ["x.png"]


def test_save_png_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected C,H,W with C = 1, 3 or 4, got \(2, 3, 4, 4\)"):
        save_png(torch.zeros(2, 3, 4, 4), tmp_path / "x.png")
    blocked = write(tmp_path / "file", b"")
    with pytest.raises(AnifastError, match=r"cannot write .*x\.png"):
        save_png(torch.zeros(3, 4, 4), blocked / "x.png")
    assert os.listdir(tmp_path) == ["file"]


def test_real_pictures(shared: Path) -> None:
    """PNG bytes under .jpg names and mixed formats, as published."""
    for name in ("anime/anime_originals_256", "faces/selfie_originals_256", "anime/faces_64_by_year/2000"):
        found = scan(shared / "data" / name)
        assert found.rejected == {} and len(found) >= 20
        assert {read_image(path).size for path in found.paths[:20]} <= {(256, 256), (64, 64)}
