"""Painting with a trained GANs N' Roses from Python: what it computes, and one clear error for what cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import picture
from tiny_gnr import own_state, tiny_config, weights
from torch import Tensor

import anifast
from anifast.engine import translate
from anifast.engine.plots import PAPER, font
from anifast.engine.sheets import Block, readable, sheet, shortened
from anifast.errors import AnifastError, CheckpointError, DataError, ImageError
from anifast.systems.gnr import sheets, styles
from anifast.systems.gnr.inference import Translator, load
from anifast.systems.gnr.networks import Generator, build_generator
from anifast.systems.gnr.styles import Style

CPU = torch.device("cpu")
CONFIG = tiny_config()
DIM = CONFIG.latent_dim
PAINTS, OTHER = {"B": "G_A2B", "A": "G_B2A"}, {"B": "A", "A": "B"}


def muted(net: dict[str, Tensor]) -> dict[str, Tensor]:
    """With colours that stay within [-1, 1] for the most part, as those of a trained network do."""
    return {key: value * 0.05 if key.startswith("to_rgb") and value.ndim == 5 else value for key, value in net.items()}


def checkpoint() -> dict[str, Any]:
    state = own_state(CONFIG)
    return state | {"ema": {name: muted(net) for name, net in state["ema"].items()}}


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return checkpoint()


@pytest.fixture(scope="module")
def model(state: dict[str, Any]) -> Translator:
    return load(state, CPU)


@pytest.fixture(scope="module")
def room(state: dict[str, Any]) -> float:
    """How much two float32 results for the same pictures and styles may differ, say in batches of another size."""
    images, codes = pictures(4, seed=3), torch.randn(4, DIM, generator=torch.Generator().manual_seed(3))
    return 2 * max(decoded(state, to, images, codes)[1] for to in ("A", "B"))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth ones in [-1, 1]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear", align_corners=True)


def generator(state: dict[str, Any], to: str, dtype: torch.dtype = torch.float32) -> Generator:
    """The averaged generator to a domain, filled plainly."""
    net = build_generator(CONFIG)
    net.load_state_dict(state["ema"][PAINTS[to]])
    return net.to(dtype).requires_grad_(False)


def decoded(state: dict[str, Any], to: str, images: Tensor, codes: Tensor) -> tuple[Tensor, float]:
    """The paper's formula in float64, and the error that float32 may have.

    Twice the error of the network's own float32 result, and one rounding to float32 of numbers up to 1.
    """
    exact, plain = (
        net.decode(net.encode(images.to(dtype))[0], codes.to(dtype)).clamp(-1, 1)
        for dtype in (torch.float64, torch.float32)
        for net in (generator(state, to, dtype),)
    )
    return exact, 2 * float((plain - exact).abs().max()) + 2**-24


# --- painting


@pytest.mark.parametrize("to", ["A", "B"])
def test_translate_is_decode_of_the_content_in_the_style(state: dict[str, Any], model: Translator, to: str) -> None:
    images, codes = pictures(3), model.random_styles(3, seed=7)
    exact, error = decoded(state, to, images, codes)
    result = model.translate(images, to, styles=codes)
    assert exact.std() > 0.05 and error < 1e-4
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=error)


def test_the_two_directions_and_styles_differ(model: Translator) -> None:
    images, codes = pictures(1), model.random_styles(2)
    first, second = (model.translate(images, styles=code) for code in codes)
    assert (first - second).abs().mean() > 0.01
    assert (first - model.translate(images, "A", styles=codes[0])).abs().mean() > 0.01


def test_one_style_for_all_images_or_one_for_each(model: Translator, room: float) -> None:
    images, code = pictures(3), model.random_styles(1)
    expected = model.translate(images, styles=code)
    assert torch.equal(model.translate(images, styles=code[0]), expected)
    assert torch.equal(model.translate(images, styles=code.double()), expected)
    each = model.translate(images, styles=code.expand(3, -1))
    torch.testing.assert_close(each, expected, rtol=0, atol=room)


def test_random_styles_go_by_seed_and_number(model: Translator) -> None:
    images = pictures(3)
    before = torch.get_rng_state()
    result = model.translate(images, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are not used up"
    assert torch.equal(result, model.translate(images, styles=model.random_styles(3, 5)))
    assert torch.equal(result, model.translate(images, seed=5))
    assert not torch.equal(result, model.translate(images, seed=6))


def test_random_styles_do_not_depend_on_how_many_there_are(model: Translator) -> None:
    many = model.random_styles(40, seed=3)
    for count in (0, 1, 2, 7, 16, 17):
        assert torch.equal(model.random_styles(count, seed=3), many[:count])
    assert many.shape == (40, DIM) and many.dtype == torch.float32 and many.device == CPU
    assert len({tuple(code.tolist()) for code in many}) == 40


def test_random_styles_are_normal(model: Translator) -> None:
    """Each of the 8 means is within 5 of its standard deviations 1 / sqrt(n), each variance of sqrt(2 / n)."""
    codes = model.random_styles(4000).double()
    assert codes.mean(0).abs().max() < 5 / 4000**0.5
    assert (codes.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("to", ["A", "B"])
def test_grid_is_every_image_in_every_style(state: dict[str, Any], model: Translator, to: str, batch: int) -> None:
    images, codes = pictures(3), model.random_styles(5)
    grid = model.grid(images, codes, to, batch=batch)
    assert grid.shape == (3, 5, 3, 64, 64)
    exact, error = decoded(state, to, images.repeat_interleave(5, 0), codes.repeat(3, 1))
    torch.testing.assert_close(grid.flatten(0, 1).double(), exact, rtol=0, atol=error)


def test_grid_encodes_each_image_once(model: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    contents = model.contents

    def counted(images: Tensor, to: str = "B") -> Tensor:
        seen.append(len(images))
        return contents(images, to)

    monkeypatch.setattr(model, "contents", counted)
    model.grid(pictures(5), model.random_styles(4), batch=2)
    assert seen == [2, 2, 1]


def test_paint_all_holds_no_more_than_a_batch(model: Translator) -> None:
    content, w = model.contents(pictures(3)), model.latents(model.random_styles(3))
    assert [len(part) for part in model.paint_all(content, w, batch=4)] == [4, 4, 1]
    parts = model.paint_all(content, w, batch=4)
    next(parts)
    assert torch.is_grad_enabled(), "between its parts the caller's mode holds"


def test_parts_of_translate(model: Translator) -> None:
    images, codes = pictures(2), model.random_styles(2)
    w = model.latents(codes)
    painted = model.paint(model.contents(images), w)
    assert w.shape == (2, 512) and not painted.requires_grad
    assert torch.equal(painted, model.translate(images, styles=codes))


def test_truncation(model: Translator) -> None:
    codes = model.random_styles(4, seed=1)
    mean, w = model.mean_latent(), model.latents(codes)
    plain = model._generator("B").get_latent(model.random_styles(1000)).mean(0, keepdim=True)
    assert torch.equal(mean, plain)
    assert torch.equal(model.latents(codes, truncation=0.0), mean.expand(4, -1))
    assert torch.equal(model.latents(codes, truncation=1.0), w)
    for psi in (0.5, 0.7, 1.5):
        expected = mean.double() + psi * (w.double() - mean.double())
        # three float32 operations on numbers of this size, each rounding by up to 2^-24 of it
        room = 3 * 2**-24 * 3 * float(torch.maximum(w.abs(), mean.abs()).max())
        torch.testing.assert_close(model.latents(codes, truncation=psi).double(), expected, rtol=0, atol=room)


def test_truncation_of_paintings(model: Translator) -> None:
    images = pictures(1)
    mean = model.paint(model.contents(images), model.mean_latent())
    for seed in (0, 1):
        assert torch.equal(model.translate(images, seed=seed, truncation=0.0), mean)
    full = model.grid(images, model.random_styles(6))[0]
    tame = model.grid(images, model.random_styles(6), truncation=0.3)[0]
    assert tame.std(0).mean() < full.std(0).mean()


def test_mean_latent_of_other_styles(model: Translator) -> None:
    assert not torch.equal(model.mean_latent(seed=1), model.mean_latent())
    assert not torch.equal(model.mean_latent("A"), model.mean_latent("B"))
    assert torch.equal(model.mean_latent(count=1, seed=4), model.latents(model.random_styles(1, 4)))


# --- styles of pictures


@pytest.mark.parametrize("to", ["A", "B"])
def test_styles_are_read_by_the_other_directions_encoder(state: dict[str, Any], model: Translator, to: str) -> None:
    images = pictures(3, seed=1)
    exact, plain = (
        generator(state, OTHER[to], dtype).encoder(images.to(dtype))[1] for dtype in (torch.float64, torch.float32)
    )
    error = 2 * float((plain - exact).abs().max()) + 2**-24
    codes = model.styles_of(images, to)
    assert codes.dtype == torch.float32 and not codes.requires_grad and error < 1e-4
    torch.testing.assert_close(codes.double(), exact, rtol=0, atol=error)


# --- directions


@pytest.mark.parametrize("to", ["A", "B"])
def test_directions_are_right_singular_vectors(state: dict[str, Any], model: Translator, to: str) -> None:
    """Of the decoder's affine layers without those of to_rgbs; of unit length and rounded to float32 once."""
    stacked = [
        value.double()
        for key, value in state["ema"][PAINTS[to]].items()
        if "modulation.weight" in key and key.split(".")[0] != "to_rgbs"
    ]
    assert len(stacked) == 2 + 1 + 1 + 2 * 3  # bottleneck, conv1, to_rgb1, two convolutions for each doubling
    _, values, vectors = torch.linalg.svd(torch.cat(stacked), full_matrices=False)
    found = model.directions(to)
    assert found.shape == (len(torch.cat(stacked)), 512) and found.dtype == torch.float32
    assert ((found.double() * vectors).sum(1).abs() - 1).abs().max() < 2**-22
    assert (values[:-1] >= values[1:]).all()
    assert torch.equal(model.directions(to, 3), found[:3])
    for direction in found:
        assert direction[direction.abs().argmax()] > 0


def test_more_directions_than_there_are(model: Translator) -> None:
    for count in (0, 513):
        with pytest.raises(ValueError, match=f"{count} directions, and there are 1 to "):
            model.directions(count=count)


# --- types, sizes, devices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_results_have_the_type_of_images(model: Translator, dtype: torch.dtype) -> None:
    images = pictures(2).to(dtype).requires_grad_()
    for result in (model.translate(images), model.grid(images, model.random_styles(2)).flatten(0, 1)[::2]):
        assert result.shape == images.shape and result.dtype == dtype and not result.requires_grad
        assert result.abs().max() <= 1
    assert model.translate(images).is_contiguous()
    assert model.styles_of(images).dtype == torch.float32


def test_results_are_cut_to_the_range() -> None:
    state = own_state(CONFIG)  # whose colours go far beyond
    result = load(state, CPU).translate(pictures(2))
    assert result.abs().max() == 1


def test_any_layout_of_images(model: Translator, room: float) -> None:
    images = pictures(2)
    last = images.contiguous(memory_format=torch.channels_last)
    result = model.translate(images, seed=1)
    torch.testing.assert_close(model.translate(last, seed=1), result, rtol=0, atol=room)
    assert model.translate(last, seed=1).is_contiguous()


def test_nothing_to_paint(model: Translator) -> None:
    none, codes = pictures(1)[:0], model.random_styles(2)
    assert model.translate(none.requires_grad_()).shape == (0, 3, 64, 64)
    assert not model.translate(none).requires_grad
    assert model.translate(none, styles=codes[:0]).shape == (0, 3, 64, 64)
    assert model.styles_of(none).shape == (0, DIM)
    assert model.latents(codes[:0]).shape == (0, 512)
    assert model.grid(none, codes).shape == (0, 2, 3, 64, 64)
    assert model.grid(pictures(2), codes[:0]).shape == (2, 0, 3, 64, 64)
    assert model.paint(model.contents(none), model.latents(codes[:0])).shape == (0, 3, 64, 64)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 64, 64), r"expected N,3,64,64, got \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"expected N,3,64,64, got \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 32, 32), "takes 64x64 pixels only, got 32x32"),
        (torch.zeros(1, 3, 64, 128), "takes 64x64 pixels only, got 64x128"),
        (torch.zeros(0, 3, 32, 32), "got 32x32"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
    ],
)
def test_images_that_cannot_be(model: Translator, images: Tensor, words: str) -> None:
    for call in (model.translate, model.styles_of, model.contents):
        with pytest.raises(ValueError, match=words):
            call(images)
    with pytest.raises(ValueError, match=words):
        model.grid(images, model.random_styles(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "C"}, "'C' is not one of A, B"),
        ({"styles": torch.zeros(2, 7)}, rf"expected codes \[N, {DIM}\] or \[{DIM}\], got \[2, 7\]"),
        ({"styles": torch.zeros(1, 2, DIM)}, "got "),
        ({"styles": torch.zeros(3, DIM)}, "3 codes for 2 images"),
        ({"styles": torch.zeros(2, DIM, dtype=torch.long)}, "int64"),
        ({"truncation": -0.1}, "-0.1 is not a number from 0"),
        ({"truncation": float("nan")}, "nan"),
        ({"truncation": float("inf")}, "inf"),
    ],
)
def test_options_that_cannot_be(model: Translator, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.translate(pictures(2), **options)


def test_other_arguments_that_cannot_be(model: Translator) -> None:
    content, w = model.contents(pictures(2)), model.latents(model.random_styles(2))
    with pytest.raises(ValueError, match=r"expected \[N, 512\], got \[2, 8\]"):
        model.paint(content, model.random_styles(2))
    with pytest.raises(ValueError, match="1 styles for 2 contents"):
        model.paint(content, w[:1])
    with pytest.raises(ValueError, match="batch: 0"):
        next(model.paint_all(content, w, batch=0))
    with pytest.raises(ValueError, match="batch: 0"):
        model.grid(pictures(1), model.random_styles(1), batch=0)
    with pytest.raises(ValueError, match="count: -1"):
        model.random_styles(-1)
    with pytest.raises(ValueError, match="count: 0"):
        model.mean_latent(count=0)


def test_bf16(state: dict[str, Any], model: Translator) -> None:
    """Some 30 roundings one behind the other, each by at most 2^-9 of what is rounded."""
    half, images, codes = load(state, CPU, precision="bf16"), pictures(2), model.random_styles(2)
    for to in ("A", "B"):
        result, expected = half.translate(images, to, styles=codes), model.translate(images, to, styles=codes)
        assert result.dtype == torch.float32 and torch.isfinite(result).all() and not torch.equal(result, expected)
        assert (result - expected).abs().mean() < 30 * 2**-9 * expected.abs().mean()
        assert torch.equal(half.latents(codes, to), model.latents(codes, to)), "the mapping stays in float32"
    read, expected = half.styles_of(images), model.styles_of(images)
    assert (read - expected).abs().mean() < 30 * 2**-9 * expected.abs().mean()


# --- files


def test_a_model_tells_about_itself(state: dict[str, Any], model: Translator) -> None:
    assert (model.size, model.multiple, model.latent_dim) == (64, 64, DIM)
    assert model.targets == ("B", "A") and model.held == ("B", "A") and model.both and model.averaged
    live = load({key: value for key, value in state.items() if key != "ema"}, CPU)
    assert not live.averaged
    assert not torch.equal(live.translate(pictures(1)), model.translate(pictures(1)))


def test_loading_through_the_registry(state: dict[str, Any], model: Translator, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pt")
    loaded = anifast.load(tmp_path / "model.pt", "cpu")
    assert isinstance(loaded, Translator)
    assert torch.equal(loaded.translate(pictures(1)), model.translate(pictures(1)))


def test_loading_does_not_use_up_random_numbers(state: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    load(state, CPU).translate(pictures(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("to", ["A", "B"])
def test_a_file_with_one_generator(state: dict[str, Any], model: Translator, to: str) -> None:
    alone = load({f"{PAINTS[to]}_ema": state["ema"][PAINTS[to]]}, CPU)
    assert alone.held == (to,) and not alone.both and alone.averaged
    images = pictures(2)
    assert torch.equal(alone.translate(images, to, seed=2), model.translate(images, to, seed=2))
    assert torch.equal(alone.directions(to, 2), model.directions(to, 2))
    for call in (alone.translate, alone.contents, alone.require):
        with pytest.raises(CheckpointError, match=f"translates to {to} only; {PAINTS[OTHER[to]]}"):
            call(images, OTHER[to]) if call != alone.require else alone.require(OTHER[to])
    with pytest.raises(CheckpointError, match=f"read by the encoder of {PAINTS[OTHER[to]]}.*saved codes"):
        alone.styles_of(images, to)


def test_a_generator_that_does_not_tell_its_direction(state: dict[str, Any], model: Translator) -> None:
    """It paints either, whatever it is asked for; whose styles its encoder reads nobody knows."""
    alone = load(state["ema"]["G_A2B"], CPU)
    assert alone.held == ("B", "A") and not alone.both
    images = pictures(1)
    assert torch.equal(alone.translate(images, "B"), model.translate(images, "B"))
    assert torch.equal(alone.translate(images, "A"), alone.translate(images, "B"))
    with pytest.raises(CheckpointError, match="one generator only"):
        alone.styles_of(images)


def test_half_precision_files_are_used_in_float32(state: dict[str, Any]) -> None:
    half = {name: {key: value.half() for key, value in net.items()} for name, net in state["ema"].items()}
    wide = {name: {key: value.float() for key, value in net.items()} for name, net in half.items()}
    results = [load(state | {"ema": nets}, CPU).translate(pictures(1)) for nets in (half, wide)]
    assert torch.equal(*results)


def test_load_refuses(state: dict[str, Any]) -> None:
    with pytest.raises(AnifastError, match="no option colour; there is precision"):
        load(state, CPU, colour="red")
    with pytest.raises(AnifastError, match="'fp17': there are fp32, bf16"):
        load(state, CPU, precision="fp17")
    other = weights(tiny_config(latent_dim=4))
    with pytest.raises(CheckpointError):
        load(state | {"ema": {"G_A2B": other["G_A2B"]}}, CPU)


# --- style codes in files


def saved(path: Path, **changes: Any) -> Path:
    content = {"format": styles.FORMAT, "latent_dim": 2, "to": "B", "styles": [{"name": "x", "code": [0.5, 1]}]}
    path.write_text(json.dumps(content | changes))
    return path


def test_saved_styles_are_the_same_numbers(model: Translator, tmp_path: Path) -> None:
    codes = torch.cat([model.random_styles(5), torch.tensor([[0.0, -0.0, 1e-45, 3.4e38, 1 / 3, -1, 2**-126, 1e-7]])])
    written = [Style(f'"{n}"\nü', tuple(code)) for n, code in enumerate(codes.tolist())]
    styles.save(tmp_path / "deep" / "styles.json", written, "A")
    read = styles.load(tmp_path / "deep" / "styles.json", to="A", latent_dim=DIM)
    assert torch.equal(styles.codes(read).view(torch.int32), codes.view(torch.int32))
    assert len(read) == 6 and read[3].name.startswith('"3"')
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["styles.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "anifast.gnr.styles/9"}, "anifast.gnr.styles/9"),
        ({"styles": []}, "damaged"),
        ({"to": "C"}, "damaged"),
        ({"latent_dim": "2"}, "damaged"),
        ({"styles": [{"name": "x", "code": [0.5]}]}, "style 0 is not a name and a code of 2 numbers"),
        ({"styles": [{"code": [0.5, 1]}]}, "style 0"),
        ({"styles": ["x"]}, "style 0"),
        ({"styles": [{"name": "x", "code": [0.5, float("nan")]}]}, "style 0.*finite"),
        ({"styles": [{"name": "x", "code": [0.5, 1e39]}]}, "finite"),
        ({"styles": [{"name": "x", "code": [0.5, 10**400]}]}, "finite"),
        ({"styles": [{"name": "x", "code": [0.5, True]}]}, "finite"),
        ({"styles": [{"name": "x", "code": [0.5, "1"]}]}, "finite"),
    ],
)
def test_damaged_styles(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = saved(tmp_path / "s.json", **changes)
    with pytest.raises(DataError, match=words) as error:
        styles.load(path)
    assert str(error.value).startswith(str(path))


def test_styles_that_do_not_fit(model: Translator, tmp_path: Path) -> None:
    path = saved(tmp_path / "s.json")
    assert styles.load(path) == [Style("x", (0.5, 1.0))]
    with pytest.raises(DataError, match=f"of 2 numbers, but this model's have {DIM}"):
        styles.gather(model, [path])
    with pytest.raises(DataError, match="paint B with, not A; give --to B"):
        styles.load(path, to="A")
    for content in (b"\xff\xfe", b"{", b"[]", b"", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a file of style codes"):
            styles.load(path)
    with pytest.raises(DataError, match="no such file"):
        styles.load(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        styles.load(tmp_path)


# --- sources of styles


def test_sources_keep_their_order(model: Translator, tmp_path: Path) -> None:
    drawing = picture(tmp_path / "drawing.png", 1, (90, 64))
    first = styles.gather(model, count=3, seed=1)
    assert torch.equal(styles.codes(first), model.random_styles(3, 1))
    styles.save(tmp_path / "some.json", first, "B")
    found = styles.gather(
        model, ["random", drawing, f"{tmp_path}/some.json#2", "random", tmp_path / "some.json"], count=2, seed=9
    )
    drawn = model.random_styles(4, 9)
    assert torch.equal(styles.codes(found[:2]), drawn[:2]) and torch.equal(styles.codes(found[4:6]), drawn[2:])
    assert found[2].name == "drawing.png" and found[2].picture == drawing
    assert found[3] == first[2] and found[6:] == first
    assert len(found) == 9


def test_reference_pictures_of_any_size_are_read_as_translate_reads_its_own(model: Translator, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{n}.png", n, size) for n, size in enumerate([(64, 64), (90, 64), (31, 200)])]
    for how in ("crop", "stretch"):
        images = torch.stack([translate._prepare(path, 64, how, 64)[0] for path in paths])
        expected = torch.cat([model.styles_of(part) for part in images.split(2)])
        assert torch.equal(styles.codes(styles.gather(model, paths, how=how, batch=2)), expected)
    crop, stretch = (styles.gather(model, paths[1:2], how=how) for how in ("crop", "stretch"))
    assert crop != stretch


@pytest.mark.filterwarnings("always:left out")
def test_a_folder_of_reference_pictures(model: Translator, tmp_path: Path) -> None:
    paths = [picture(tmp_path / "refs" / name, n) for n, name in enumerate(["b.png", "a/z.png", "c.png"])]
    (tmp_path / "refs" / "note.jpg").write_text("hello")
    with pytest.warns(UserWarning, match=r"left out: .*refs/note\.jpg: not a picture: a text file"):
        found = styles.gather(model, [tmp_path / "refs", "random"])
    expected = styles.gather(model, [paths[1], paths[0], paths[2], "random"])
    assert found == expected and [style.name for style in found[:3]] == ["z.png", "b.png", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no picture found"):
        styles.gather(model, [tmp_path / "empty"])


def test_sources_that_cannot_be(model: Translator, state: dict[str, Any], tmp_path: Path) -> None:
    damaged = picture(tmp_path / "damaged.png", 1)
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(ImageError, match=f"{damaged}: the PNG cannot be decoded"):
        styles.gather(model, [damaged])
    with pytest.raises(ImageError, match="no such file"):
        styles.gather(model, [tmp_path / "nowhere.png"])
    with pytest.raises(AnifastError, match="--styles 0: at least 1"):
        styles.gather(model, count=0)
    with pytest.raises(AnifastError, match="--styles 2: .* add random to --style"):
        styles.gather(model, [damaged], count=2)
    with pytest.raises(
        AnifastError, match=r"--seed 5: is the seed of random styles, and --style .* add random to --st"
    ):
        styles.gather(model, [damaged], seed=5)
    with pytest.raises(AnifastError, match="--seed 0: .* and --between asks for none"):
        styles.gather(model, [damaged], seed=0, option="--between")
    for seed in (-1, 2**63):
        with pytest.raises(AnifastError, match=f"--seed {seed}"):
            styles.gather(model, seed=seed)
    styles.save(tmp_path / "two.json", styles.gather(model, count=2), "B")
    with pytest.raises(DataError, match="#2: there is no such style; the file has 0 to 1"):
        styles.gather(model, [f"{tmp_path}/two.json#2"])
    alone = load({"G_A2B_ema": state["ema"]["G_A2B"]}, CPU)
    with pytest.raises(CheckpointError, match="one generator only"):
        styles.gather(alone, [picture(tmp_path / "fine.png", 1)])
    assert styles.gather(alone, [tmp_path / "two.json"]) == styles.gather(model, [tmp_path / "two.json"])


def test_a_style_that_is_not_finite(state: dict[str, Any], tmp_path: Path) -> None:
    net = dict(state["ema"]["G_B2A"])
    net["encoder.stem.0.0.weight"] = torch.full_like(net["encoder.stem.0.0.weight"], float("nan"))
    spoilt = load(state | {"ema": state["ema"] | {"G_B2A": net}}, CPU)
    with pytest.raises(CheckpointError, match=r"one\.png is not finite"):
        styles.gather(spoilt, [picture(tmp_path / "one.png", 1)])


# --- several results of one picture


@pytest.mark.parametrize(
    ("count", "first", "last"), [(1, "", ""), (2, "-s00", "-s01"), (100, "-s00", "-s99"), (101, "-s000", "-s100")]
)
def test_labels(model: Translator, count: int, first: str, last: str) -> None:
    labels = model.painter(styles=count).labels
    assert len(labels) == count == len(set(labels)) and (labels[0], labels[-1]) == (first, last)


def test_a_painter_paints_pictures_one_after_the_other(model: Translator) -> None:
    images = pictures(3)
    painter = model.painter("A", styles=2, seed=4, truncation=0.5, batch=4)
    parts = list(painter(images))
    assert [len(part) for part in parts] == [4, 2]
    expected = model.grid(images, model.random_styles(2, 4), "A", truncation=0.5, batch=4)
    assert torch.equal(torch.cat(parts), expected.flatten(0, 1))
    with pytest.raises(AnifastError, match="--truncation -1"):
        model.painter(truncation=-1)


def test_codes_of_earlier_results_are_kept(model: Translator, tmp_path: Path) -> None:
    first, second, third = (model.painter(seed=seed) for seed in (1, 2, 3))
    assert first.save(tmp_path).name == "styles.json"
    before = (tmp_path / "styles.json").read_bytes()
    assert second.save(tmp_path).name == "styles-2.json"
    (tmp_path / "styles-3.json").write_text("something else")
    assert model.painter("A", seed=1).save(tmp_path).name == "styles-4.json"
    assert third.save(tmp_path).name == "styles-5.json"
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert held["styles.json"] == before and len(held) == 5
    assert [styles.load(tmp_path / f"styles{n}.json") for n in ("", "-2", "-5")] == [
        painter.styles for painter in (first, second, third)
    ]
    again = [painter.save(tmp_path).name for painter in (first, second, third)]
    assert again == ["styles.json", "styles-2.json", "styles-5.json"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held, (
        "codes that are there stay as they are"
    )


def test_infinities_are_told(model: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    paint = Generator.paint

    def spoilt(self: Generator, content: Tensor, rows: list[Tensor]) -> Tensor:
        result = paint(self, content, rows)
        result[0, 0, 0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
        return result

    expected = model.translate(pictures(2))
    monkeypatch.setattr(Generator, "paint", spoilt)
    result = model.translate(pictures(2))
    assert result[0, 0, 0, :3].isnan().all()
    result[0, 0, 0, :3] = expected[0, 0, 0, :3]
    assert torch.equal(result, expected)


def test_results_of_several_jobs_do_not_collide(tmp_path: Path) -> None:
    one, other = picture(tmp_path / "x.png", 0), picture(tmp_path / "x-s00.png", 1)
    jobs, _ = translate.collect([one, other], tmp_path / "out")
    spread = translate.several(jobs, ("-s00", "-s01"))
    assert [target.name for target in spread[0].targets] == ["x-s00.png", "x-s01.png"]
    assert [target.name for target in spread[1].targets] == ["x-s00-s00.png", "x-s00-s01.png"]
    with pytest.raises(DataError, match="would both become"):
        translate.several(jobs, ("", "-s00"))
    jobs, _ = translate.collect([tmp_path / "x.png"], tmp_path / "out")
    picture(tmp_path / "out" / "x-s01.png", 0)
    inputs = [*jobs, translate.Job(tmp_path / "out" / "x-s01.png", (tmp_path / "y.png",))]
    with pytest.raises(DataError, match=r"x-s01\.png: the result would overwrite an input"):
        translate.several(inputs, ("-s00", "-s01"))
    with pytest.raises(DataError, match=r"x-s01\.png: the result would overwrite an input"):
        translate.several(jobs, ("-s00", "-s01"), [tmp_path / "out" / "x-s01.png"])


def test_results_come_one_part_after_the_other(tmp_path: Path) -> None:
    """The second part of a picture's results is asked for when the first one has been handed on to be written."""
    one = picture(tmp_path / "x.png", 0)
    jobs, _ = translate.collect([one], tmp_path / "out")
    parts = 40
    jobs, alive = translate.several(jobs, [f"-{n:02d}" for n in range(parts)]), []

    def paint(images: Tensor) -> Any:
        for n in range(parts):
            alive.append(n - len(list((tmp_path / "out").glob("*.png"))))
            yield images * (n / parts)

    outcome = translate.translate_files(paint, jobs, size=16, batch=2)
    assert [path.name for path in outcome.written] == [f"x-{n:02d}.png" for n in range(parts)]
    assert max(alive) <= 2 * 2 + 1, "more results wait than two batches"
    with pytest.raises(ValueError, match="zip"):
        translate.translate_files(lambda images: images, jobs, size=16)


# --- sheets


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Block]:
    """The blocks of the sheets that are drawn."""
    blocks: list[Block] = []
    draw = sheets.sheet

    def kept(parts: list[Block], **options: Any) -> Image.Image:
        blocks.extend(parts)
        return draw(parts, **options)

    monkeypatch.setattr(sheets, "sheet", kept)
    return blocks


def assert_painted(shown: Tensor, expected: Tensor, room: float) -> None:
    """A painting as a sheet has it: rounded to the nearest of 255 steps, of which a value of 1 has 127.5."""
    assert shown.dtype == torch.uint8
    assert (shown.double() - (expected.double() + 1) * 127.5).abs().max() <= 0.5 + 127.5 * room


def test_grid_sheet(model: Translator, drawn: list[Block], room: float) -> None:
    images, codes, references = pictures(3), model.random_styles(4), pictures(4, seed=2)
    counted: list[int] = []
    sheet = sheets.grid(
        model, images, codes, references=references, names=["x", "y", "z"], title="t", on_painted=counted.append
    )
    assert isinstance(sheet, Image.Image) and sheet.mode == "RGB" and sum(counted) == 12
    left, right = drawn
    assert [label for label, _ in left.rows] == ["styles of", "x", "y", "z"] and right.title == "t"
    assert (left.rows[0][1] == 1).all() and torch.equal(torch.cat([image for _, image in left.rows[1:]]), images)
    assert torch.equal(right.rows[0][1], references)
    for (_, row), expected in zip(right.rows[1:], model.grid(images, codes), strict=True):
        assert_painted(row, expected, room)
    drawn.clear()
    sheets.grid(model, images, codes, to="A", truncation=0.5, batch=1)
    for (_, row), expected in zip(drawn[1].rows, model.grid(images, codes, "A", truncation=0.5), strict=True):
        assert_painted(row, expected, room)


def test_sheets_are_painted_in_batches(model: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model holds at once does not depend on how many pictures and styles there are."""
    seen: dict[str, list[int]] = {"contents": [], "paint": []}
    contents, paint = model.contents, Generator.paint

    def read(images: Tensor, to: str = "B") -> Tensor:
        seen["contents"].append(len(images))
        return contents(images, to)

    def counted(self: Generator, content: Tensor, rows: list[Tensor]) -> Tensor:
        seen["paint"].append(len(content))
        return paint(self, content, rows)

    monkeypatch.setattr(model, "contents", read)
    monkeypatch.setattr(Generator, "paint", counted)
    sheets.grid(model, pictures(5), model.random_styles(3), batch=4)
    assert seen == {"contents": [4, 1], "paint": [4, 4, 4, 3]}


def test_names_on_sheets(model: Translator, drawn: list[Block]) -> None:
    images, codes, long = pictures(3), model.random_styles(3), "a long name " * 9 + "behind"
    sheets.grid(
        model,
        images,
        codes,
        names=["x.png", long, "\u6f2b\u753b.png"],
        heads=["one", long, "\u7d75\n\udc80"],
        title="t",
    )
    left, right = drawn
    names = [label for label, _ in left.rows]
    assert names[::2] == ["x.png", "picture 2"] and names[1].startswith("a long") and names[1].endswith("behind")
    assert list(right.heads[::2]) == ["one", "style 2"] and right.title == "t"


def test_interpolation_sheet(model: Translator, drawn: list[Block], room: float) -> None:
    images, (first, last) = pictures(2), model.random_styles(2)
    sheets.interpolation(model, images, first, last, steps=3, references=pictures(2, seed=2))
    middle = model.latents(torch.stack([first, last])).mean(0, keepdim=True)
    for image, (_, row) in zip(images.split(1), drawn[1].rows[1:], strict=True):
        assert_painted(row[::2], model.grid(image, torch.stack([first, last]))[0], room)
        assert_painted(row[1:2], model.paint(model.contents(image), middle), room)
    assert drawn[1].heads == ["0", "0.5", "1"]
    assert (drawn[1].rows[0][1][1] == 1).all()
    with pytest.raises(ValueError, match="steps: 1"):
        sheets.interpolation(model, images, first, last, steps=1)


def test_edit_sheet(model: Translator, drawn: list[Block], room: float) -> None:
    image, style = pictures(1), model.random_styles(1)
    sheets.edits(model, image, style, directions=2, strength=3.0, steps=3)
    assert sheets.strengths(3.0, 3) == [-3, 0, 3] and sheets.strengths(4.0, 5) == [-4, -2, 0, 2, 4]
    w, content = model.latents(style), model.contents(image)
    for direction, (_, row) in zip(model.directions(count=2), drawn[1].rows, strict=True):
        for offset, painted in zip((-3, 0, 3), row.split(1), strict=True):
            assert_painted(painted, model.paint(content, w + offset * direction), room)
    assert drawn[1].heads == ["-3", "0", "+3"]
    assert torch.equal(drawn[0].rows[0][1], image) and (drawn[0].rows[1][1] == 1).all()
    for options in ({"steps": 1}, {"strength": 0.0}, {"strength": float("inf")}, {"directions": 0}):
        with pytest.raises(ValueError, match="strength|directions"):
            sheets.edits(model, image, style, **options)  # type: ignore[arg-type]


def test_the_font_has_letters_and_not_all() -> None:
    assert readable("seed 0, no. 12 | IMG_2024(1)-a~b.png, +0.25") and readable("")
    for text in ("\u6f2b", "x\u3042", "\u0416", "a\nb", "a\tb", "\udc80", "\U0001f600"):
        assert not readable(text), text


@pytest.mark.parametrize("width", [5, 20, 60, 122, 160])
def test_shortened_names_fit(width: int) -> None:
    length = font(13).getlength
    for text in ("", "x", "seed 0, no. 12", "W" * 255, "i" * 255, "name-" * 20 + "12.png", "x" * 100_000):
        short = shortened(text, width)
        assert length(short) <= width
        assert (short == text) == (length(text) <= width)
        if "\u2026" in short:
            head, tail = short.split("\u2026")
            assert text.startswith(head) and text.endswith(tail) and 0 <= len(head) - len(tail) <= 1
    assert shortened("x" * 100, 60) and shortened("W", 3) == ""


@pytest.mark.parametrize("beside", [True, False])
def test_heads_do_not_reach_their_neighbours(beside: bool) -> None:
    images, side, gap, border = pictures(3), 96, 4, 14
    rows = [("", images), ("", images)]
    blocks = [Block("", rows, ["W" * 40, "", "i" * 90]), Block("", rows)]
    with_heads = sheet(blocks, tile=side, beside=beside)
    without = sheet([Block("", rows), Block("", rows)], tile=side, beside=beside)
    assert with_heads.width == without.width == 2 * border + (2 * 3 * (side + gap) + 18 if beside else 3 * (side + gap))
    taller = with_heads.height - without.height
    assert taller > 0
    deep = 50 if beside else 20  # a title that is not there takes room only where blocks have to be in line
    band = torch.from_numpy(np.array(with_heads.crop((border, border, border + 3 * (side + gap), border + deep))))
    ink = (band != torch.tensor(PAPER)).any(2).any(0)
    first, empty, last = ink.split(side + gap)
    assert first[:side].sum() > side / 2 and last[:side].sum() > side / 4 and not empty.any()
    for column in (first, last):
        assert not column[side:].any() and not column[:2].any()
    # below the heads nothing has moved, pictures of blocks beside each other are in line
    cut = (0, with_heads.height - 2 * (side + gap) - border, with_heads.width, with_heads.height)
    assert with_heads.crop(cut).tobytes() == without.crop((0, cut[1] - taller, cut[2], without.height)).tobytes()


def test_a_title_is_never_cut() -> None:
    title = "a title that is wider than the only picture below it"
    wide = sheet([Block(title, [("", pictures(1))])], tile=96)
    assert wide.width >= 2 * 14 + font(15).getlength(title)


def test_sheets_that_are_too_large_or_not_finite(
    state: dict[str, Any], model: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIFAST_MAX_PIXELS", str(3 * 3 * 128**2))
    sheets.grid(model, pictures(3), model.random_styles(2))
    with pytest.raises(AnifastError, match="3 rows of 4 pictures"):
        sheets.grid(model, pictures(3), model.random_styles(3))
    net = dict(state["ema"]["G_A2B"])
    net["to_rgb1.bias"] = torch.full_like(net["to_rgb1.bias"], float("nan"))
    spoilt = load(state | {"ema": state["ema"] | {"G_A2B": net}}, CPU)
    with pytest.raises(AnifastError, match="not finite"):
        sheets.grid(spoilt, pictures(1), model.random_styles(1))
