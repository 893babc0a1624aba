"""Neural style transfer: the losses are the paper's, the optimisation keeps its promises, and so does the command."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared_data import need_shared
from tiny_cyclegan import ROOT, command, leftovers, picture, the_error
from torch import Tensor

from anifast import cli, neural_style
from anifast.data.folders import read_image, to_float, to_tensor
from anifast.errors import AnifastError
from anifast.neural_style import NotFiniteError, Options, Step, transfer
from anifast.nn.backbones import BACKBONES, Backbone, load_backbone, relu_names

Capture = pytest.CaptureFixture[str]
#: Layers of the first two blocks only: a step takes milliseconds.
SHALLOW = {"content_layers": "relu2_1", "style_layers": "relu1_1,relu2_1"}
WORDS = ("--backbone", "random", "--content-layers", "relu2_1", "--style-layers", "relu1_1,relu2_1", "--device", "cpu")


def images(seed: int, *shape: int, scale: float = 0.8) -> Tensor:
    """Smooth random pictures N,3,H,W within +-scale."""
    coarse = torch.rand(shape[0], 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear") * scale


@pytest.fixture(scope="module")
def net() -> Backbone:
    return load_backbone("random")


@pytest.fixture
def double() -> Backbone:
    return load_backbone("random").double()


def options(**given: Any) -> Options:
    return Options(**(SHALLOW | {"steps": 5} | given))


def steps_of(*arguments: Any, **named: Any) -> tuple[Tensor, list[Step]]:
    """The result and all steps."""
    steps: list[Step] = []
    return transfer(*arguments, on_step=steps.append, **named), steps


# --- losses


def test_losses_are_the_papers(double: Backbone) -> None:
    """Equations 1, 3, 4, 5 and 7 with w_l = 4 N^2 M^2 / (layers |A|^2), and a half of the content's instead of 1."""
    content, style, x = (images(i, 1, *size).double() for i, size in enumerate(((16, 20), (24, 18), (16, 20))))
    how = options(content_layers="relu2_2,relu3_1", content_weight=0.7, style_weight=3.0, tv_weight=1.3)
    x = x * 1.5  # beyond [-1, 1] in places
    losses = neural_style._Losses(double, neural_style.layers_of(double, how), content, style, how)
    names = relu_names("random")

    def maps(image: Tensor, *layers: str) -> list[Tensor]:
        return [f[0].flatten(1) for f in double.taps(double.prepare(image), [names[layer] for layer in layers])]

    wanted = [maps(image, "relu2_2", "relu3_1") for image in (x, content)]
    by_content = sum(0.5 * (f - p).square().sum() / (0.5 * p.square().sum()) for f, p in zip(*wanted, strict=True)) / 2
    by_style = torch.zeros((), dtype=torch.float64)
    for f, s in zip(*(maps(image, "relu1_1", "relu2_1") for image in (x, style)), strict=True):
        pixels = f.shape[1]
        g, a = f @ f.T, s @ s.T * pixels / s.shape[1]  # of a style of another size: as if it had as many pixels
        n2m2 = (f.shape[0] * pixels) ** 2
        error = (g - a).square().sum() / (4 * n2m2)
        by_style = by_style + 4 * n2m2 / (2 * a.square().sum()) * error
    below, beside = x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]
    smooth = (below.square().sum() + beside.square().sum()) / x.numel()
    outside = (x - x.clamp(-1, 1)).square().mean()
    assert outside > 0
    found = losses(x)
    expected = (by_content, by_style, 0.7 * by_content + 3.0 * by_style + 1.3 * smooth + outside)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_of_the_losses(double: Backbone) -> None:
    how = options(content_layers="relu1_2", style_layers="relu1_1,relu1_2")
    content, style, x = (images(i, 1, 6, 5).double() for i in range(3))
    losses = neural_style._Losses(double, neural_style.layers_of(double, how), content, style, how)
    assert torch.autograd.gradcheck(lambda x: losses(x), (1.4 * x).requires_grad_())


def test_losses_do_not_depend_on_the_scale_of_features(net: Backbone) -> None:
    """Powers of two, so that not even rounding differs."""
    larger = load_backbone("random")
    with torch.no_grad():
        larger.features[0].weight.mul_(64)
    content, style, x = (images(i, 1, 16, 16) for i in range(3))
    found = [
        torch.stack(neural_style._Losses(one, neural_style.layers_of(one, options()), content, style, options())(x))
        for one in (net, larger)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_black_pictures_give_finite_losses(net: Backbone) -> None:
    """With a backbone that takes [-1, 1] as it is and has no biases, features of grey are zeros."""
    grey = load_backbone("random")
    grey.normalisation = "raw"
    result, steps = steps_of(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), grey, options())
    assert torch.equal(result, torch.zeros(1, 3, 16, 16)) and all(step.total == 0 for step in steps)
    result = transfer(-torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16), net, options())
    assert result.isfinite().all()


# --- the optimisation


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_losses_fall(net: Backbone, optimizer: str) -> None:
    how = options(steps=40, optimizer=optimizer)
    _, steps = steps_of(images(0, 1, 24, 32), images(1, 1, 40, 16), net, how)
    assert [step.number for step in steps] == list(range(41))
    assert steps[0].content == 0 < steps[0].style
    assert min(step.total for step in steps) < 0.2 * steps[0].total
    assert min(step.style for step in steps) < 0.2 * steps[0].style


def test_content_in_its_own_style_stays(net: Backbone) -> None:
    content = images(0, 1, 16, 16)
    result, steps = steps_of(content, content, net, options(tv_weight=0.0))
    assert torch.equal(result, content) and len(steps) == 6


def test_lbfgs_begins_anew_where_it_gave_up(net: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direction that leads upwards ends a call; with the memory that made it the next would end as well."""
    original, memories = torch.optim.LBFGS.step, []

    def step(self: torch.optim.LBFGS, closure: Any) -> Any:
        memories.append(sum(len(state.get("old_dirs", ())) for state in self.state.values()))
        self.param_groups[0]["max_iter"] = 4
        return original(self, closure)

    monkeypatch.setattr(torch.optim.LBFGS, "step", step)
    _, steps = steps_of(images(0, 1, 16, 16), images(1, 1, 16, 16), net, options(steps=20))
    assert len(steps) == 21 and len(memories) > 1 and set(memories) == {0}


def test_the_result_is_the_best_step(net: Backbone) -> None:
    for how in (options(steps=12, style_weight=1e5), options(steps=1), options(steps=7, optimizer="adam")):
        result, steps = steps_of(images(0, 1, 16, 16), images(1, 1, 16, 16), net, how)
        assert len(steps) == how.steps + 1
        best = min(steps[1:], key=lambda step: step.total)
        assert torch.equal(result, best.image)
        assert not torch.equal(result, steps[0].image)


def test_range_type_and_gradients(net: Backbone) -> None:
    content = images(0, 2, 16, 20, scale=1.0).double().requires_grad_()
    style = images(1, 1, 16, 16, scale=1.0).half()
    how = options(tv_weight=0.0, style_weight=1e3)
    result = transfer(content, style, net, how)
    assert result.shape == content.shape and result.dtype == torch.float64 and not result.requires_grad
    assert result.abs().max() <= 1 and content.grad is None
    with torch.no_grad():
        torch.testing.assert_close(transfer(content, style, net, how), result, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(transfer(content.detach() + 0, style, net, how), result, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(transfer(content, style, net, how), result, rtol=0, atol=0)


def test_pictures_of_a_batch_are_each_on_their_own(net: Backbone) -> None:
    content, style = images(0, 3, 16, 16), images(1, 3, 20, 16)
    whole = transfer(content, style, net, options())
    alone = [transfer(c, s, net, options()) for c, s in zip(content.split(1), style.split(1), strict=True)]
    assert torch.equal(whole, torch.cat(alone))
    one = transfer(content, style[:1], net, options())
    assert torch.equal(one[0], whole[0]) and not torch.equal(one[1], whole[1])
    assert transfer(content[:0], style[:1], net, options()).shape == (0, 3, 16, 16)


def test_noise_is_drawn_from_the_seed_alone(net: Backbone) -> None:
    content, style = images(0, 1, 16, 16), images(1, 1, 16, 16)

    def result(seed: int) -> tuple[Tensor, Step]:
        found, steps = steps_of(content, style, net, options(init="noise", seed=seed))
        return found, steps[0]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    (one, begun), (same, _), (other, another) = result(1), result(1), result(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(begun.image, another.image)
    assert begun.content > 0.1


@pytest.mark.parametrize("size", [(16, 20), (32, 40), (8, 8), (50, 9), (7, 60)])
def test_beginning_as_the_style(net: Backbone, size: tuple[int, int]) -> None:
    """Enlarged or reduced to cover the content, and cut."""
    style = images(1, 1, *size)
    _, steps = steps_of(images(0, 1, 16, 20), style, net, options(init="style", steps=1))
    assert steps[0].image.shape == (1, 3, 16, 20)
    if size == (16, 20):
        assert torch.equal(steps[0].image, style)
    flat = torch.full((1, 3, *size), 0.25)
    _, steps = steps_of(images(0, 1, 16, 20), flat, net, options(init="style", steps=1))
    torch.testing.assert_close(steps[0].image, torch.full((1, 3, 16, 20), 0.25))


def test_original_colours(net: Backbone) -> None:
    """Only luminance changes: what is left of a pixel without it stays, apart from rounding."""
    content, style = images(0, 1, 16, 16, scale=0.2), images(1, 1, 16, 16)
    how = options(original_colours=True, steps=10)
    result, steps = steps_of(content, style, net, how)
    assert result.abs().max() < 1
    eps = torch.finfo(torch.float32).eps
    chroma = [image - neural_style.luma(image) for image in (content, result)]
    # a sum and a difference of values below 1 on either side, and two of luma's three
    torch.testing.assert_close(chroma[0], chroma[1], rtol=0, atol=8 * eps)
    assert (neural_style.luma(result) - neural_style.luma(content)).abs().max() > 0.02
    assert steps[-1].style < steps[0].style


def test_a_network_in_training_keeps_its_gradients() -> None:
    net = load_backbone("random").requires_grad_()
    weight = net.features[0].weight
    weight.grad = torch.full_like(weight, 3.0)
    transfer(images(0, 1, 16, 16), images(1, 1, 16, 16), net, options())
    assert bool((weight.grad == 3).all()) and net.features[2].weight.grad is None


def test_what_is_raised_in_a_step_ends_the_work(net: Backbone) -> None:
    def stop(step: Step) -> None:
        if step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer(images(0, 1, 16, 16), images(1, 1, 16, 16), net, options(), on_step=stop)


def test_a_loss_that_is_not_finite(net: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    content, style = images(0, 1, 16, 16), images(1, 1, 16, 16)
    with pytest.raises(NotFiniteError, match="step 0") as found:
        transfer(content * torch.nan, style, net, options())
    assert found.value.best is None
    spoil(monkeypatch, 3, torch.inf)
    steps: list[Step] = []
    with pytest.raises(NotFiniteError, match="step 3") as found:
        transfer(content, style, net, options(), on_step=steps.append)
    assert found.value.number == 3 and [step.number for step in steps] == [0, 1, 2]
    assert found.value.best == min(steps[1:], key=lambda step: step.total)


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, value: float | BaseException) -> None:
    """The losses of step `at` are `value`, or raise it."""
    original, count = neural_style._Losses.__call__, 0

    def call(self: neural_style._Losses, x: Tensor) -> tuple[Tensor, ...]:
        nonlocal count
        count += 1
        content, style, total = original(self, x)
        if count <= at:
            return content, style, total
        if isinstance(value, BaseException):
            raise value
        return content, style, total * value

    monkeypatch.setattr(neural_style._Losses, "__call__", call)


@pytest.mark.parametrize(
    ("content", "style", "error", "words"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16), TypeError, "content .*uint8"),
        (np.zeros((1, 3, 16, 16)), torch.zeros(1, 3, 16, 16), TypeError, "content .*ndarray"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(3, 16, 16), ValueError, r"style .*\(3, 16, 16\)"),
        (torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16), ValueError, r"content .*\(1, 1, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(3, 3, 16, 16), ValueError, "style .*batch of 3, expected 1 or 2"),
        (torch.zeros(1, 3, 1, 16), torch.zeros(1, 3, 16, 16), ValueError, "1 x 16 .* 2 x 2"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 1), ValueError, "16 x 1 .* 2 x 2"),
    ],
)
def test_pictures_that_cannot_be(net: Backbone, content: Any, style: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        transfer(content, style, net, options())


def test_a_backbone_of_another_type(double: Backbone) -> None:
    with pytest.raises(TypeError, match="float32"):
        transfer(images(0, 1, 16, 16), images(1, 1, 16, 16), double, options())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"style_weight": -1.0}, "style_weight"),
        ({"tv_weight": float("nan")}, "tv_weight"),
        ({"init": "white"}, "init: 'white' is not one of content, noise, style"),
        ({"optimizer": "sgd"}, "optimizer: 'sgd'"),
        ({"content_layers": "conv4_2"}, "content layer 'conv4_2': random has relu1_1, relu1_2, .*relu5_3"),
        ({"style_layers": "relu1_1,"}, "style layer '': random has relu1_1"),
    ],
)
def test_options_that_cannot_be(net: Backbone, given: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        transfer(images(0, 1, 16, 16), images(1, 1, 16, 16), net, options(**given))


def test_layers_are_counted_once(net: Backbone) -> None:
    names = relu_names("random")
    found = neural_style.layers_of(net, options(content_layers=" relu2_1 ,relu2_1", style_layers="relu3_1, relu1_1"))
    assert found == ([names["relu2_1"]], [names["relu3_1"], names["relu1_1"]])


def test_every_backbone_has_default_layers() -> None:
    assert set(neural_style.LAYERS) == set(BACKBONES)
    for name, layers in neural_style.LAYERS.items():
        assert set(",".join(layers).split(",")) <= set(relu_names(name)), name


@pytest.mark.parametrize(
    ("name", "file"),
    [("vgg19_16x", "vgg19_16x"), ("squeezenet1_0", "squeezenet1_0/squeezenet1_0_imagenet.npz")],
)
def test_published_weights_on_real_pictures(name: str, file: str) -> None:
    """A face goes most of the way to the style's Gram matrices, towards its colours, and keeps more of its content."""
    net = load_backbone(name, weights=need_shared("data", "weights", file))
    folder = need_shared("data", "faces", "blendgan_256")
    face, art = (
        to_float(to_tensor(read_image(path).resize((64, 64))))[None]
        for path in (folder / "000000.png", need_shared("data", "anime", "style_portraits_256") / "100032.png")
    )
    result, steps = steps_of(face, art, net, Options(steps=30))
    assert min(step.style for step in steps) < 0.5 * steps[0].style
    colours = [image.mean(dim=(2, 3)) for image in (face, art, result)]
    assert (colours[2] - colours[1]).norm() < (colours[0] - colours[1]).norm()
    _, other = steps_of(face, art, net, Options(steps=1, init="style"))
    assert steps[-1].content < other[0].content


# --- the command


def neural_style_command(*words: object) -> int:
    return cli.main(command("neural-style", *words))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A content of 60 x 40 pixels and a style of 30 x 50."""
    return picture(tmp_path / "in" / "face.png", 0, (60, 40)), picture(tmp_path / "in" / "art.bmp", 1, (30, 50))


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.mode == "RGB" and image.format == {".png": "PNG"}.get(path.suffix.lower(), "JPEG")
        return image.size


@pytest.mark.parametrize("name", ["out.png", "deep/er/out.jpg", "OUT.JPEG"])
def test_the_command(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture, name: str) -> None:
    out = tmp_path / "out" / name
    assert neural_style_command(*pair, "--out", out, "--size", 32, "--steps", 4, *WORDS) == 0
    assert size_of(out) == (32, 21)
    said = capsys.readouterr()
    assert said.out.startswith("4 steps in ") and str(out) in said.out and "style 0." in said.out
    assert "4/4" in said.err and "step/s  ETA" in said.err and "content 0." in said.err
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [out]


def test_the_file_is_transfers_result(pair: tuple[Path, Path], tmp_path: Path, net: Backbone) -> None:
    out = tmp_path / "out.png"
    assert neural_style_command(*pair, "--out", out, "--size", 24, "--steps", 4, "--style-weight", 7, *WORDS) == 0
    with Image.open(pair[0]) as face, Image.open(pair[1]) as art:
        resized = [
            to_float(to_tensor(image.resize(size, Image.Resampling.BICUBIC)))[None]
            for image, size in ((face, (24, 16)), (art, (14, 24)))
        ]
    expected = transfer(*resized, net, options(steps=4, style_weight=7.0))
    found = to_float(to_tensor(read_image(out)))
    assert (found - expected[0]).abs().max() <= 1.01 / 255  # half a step of 2/255


def test_pictures_on_the_way(pair: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out" / "x.jpg"
    words = ("--out", out, "--size", 24, "--steps", 5, "--save-every", 2)
    assert neural_style_command(*pair, *words, *WORDS) == 0
    names = ["x-step0002.png", "x-step0004.png", "x.jpg"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    assert all(size_of(out.parent / name) == (24, 16) for name in names)
    assert (out.parent / names[0]).read_bytes() != (out.parent / names[1]).read_bytes()
    assert capsys.readouterr().out.splitlines()[:2] == [str(out.parent / name) for name in names[:2]]


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = colours.convert("RGBA")
    alpha.putalpha(128)
    for name, image, extra in (
        ("grey.png", colours.convert("L"), {}),
        ("palette.gif", colours.convert("P"), {}),
        ("alpha.png", alpha, {}),
        ("turned.jpg", colours, {"exif": turned}),
    ):
        image.save(tmp_path / name, **extra)
    for face, art, size in (
        ("grey.png", "palette.gif", (24, 16)),
        ("alpha.png", "grey.png", (24, 16)),
        ("turned.jpg", "alpha.png", (16, 24)),
    ):
        out = tmp_path / "out.png"
        words = (tmp_path / face, tmp_path / art, "--out", out, "--size", 24, "--steps", 1)
        assert neural_style_command(*words, *WORDS) == 0
        assert size_of(out) == size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content": "nowhere.png"}, ("nowhere.png", "no such file")),
        ({"style": "nowhere.png"}, ("nowhere.png", "no such file")),
        ({"content": "cut.png"}, ("cut.png", "cannot be decoded")),
        ({"style": "note.jpg"}, ("note.jpg", "a text file")),
        ({"out": "out/x.gif"}, ("out/x.gif", ".png, .jpg, .jpeg")),
        ({"out": "out/x"}, ("out/x", ".png")),
        ({"out": "in.png"}, ("in.png", "is a folder")),
        ({"out": "in/face.png"}, ("in/face.png", "overwrite an input")),
        ({"out": "note.jpg/x.png"}, ("note.jpg", "output folder")),
        ({"out": "/proc/self/x.png"}, ("/proc/self", "cannot write")),
        ({"--size": "1"}, ("face.png: 1x1 at --size 1", "random needs 2 pixels", "larger --size")),
        ({"content": "thin.png"}, ("thin.png: 32x1 ", "random needs 2 pixels")),
        ({"--size": "0"}, ("--size 0",)),
        ({"--size": "1000000"}, ("--size 1000000", "ANIFAST_MAX_PIXELS")),
        ({"--save-every": "-1"}, ("--save-every -1",)),
        ({"--steps": "0"}, ("steps: 0 is below 1",)),
        ({"--tv-weight": "-0.5"}, ("tv_weight: -0.5 is below 0",)),
        ({"--seed": "-1"}, ("seed: -1",)),
        ({"--style-layers": "relu1_1,relu9_1"}, ("style layer 'relu9_1'", "relu1_1, relu1_2")),
        ({"--device": "tpu"}, ("tpu",)),
        ({"--backbone": "vgg19_16x", "--weights": "nowhere"}, ("nowhere", "no such file", "5SE.pth")),
        ({"--backbone": "squeezenet1_0", "--weights": "note.jpg"}, ("note.jpg", "no PyTorch weights")),
    ],
    ids=lambda value: " ".join(" ".join(item) for item in value.items()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_one_error(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture, change: dict[str, str], words: tuple[str, ...]
) -> None:
    if any("/proc" in value for value in change.values()) and not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    whole = pair[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "note.jpg").write_text("just a note")
    (tmp_path / "in.png").mkdir()
    picture(tmp_path / "thin.png", 0, (300, 9))
    places = {"content": "in/face.png", "style": "in/art.bmp", "out": "out/x.png"}
    flags = dict(zip(WORDS[::2], WORDS[1::2], strict=True)) | {"--size": "32", "--steps": "3"}
    for name, value in change.items():
        at = tmp_path / value if name in ("content", "style", "out", "--weights") else value
        (flags if name.startswith("-") else places)[name] = str(at)
    before = sorted(tmp_path.rglob("*"))
    given = [tmp_path / places[name] for name in ("content", "style")]
    listed = [word for pair in flags.items() for word in pair]
    assert neural_style_command(*given, "--out", tmp_path / places["out"], *listed) == 1
    error = the_error(capsys.readouterr().err)
    assert all(word in error for word in words), error
    assert sorted(tmp_path.rglob("*")) == before and pair[0].read_bytes() == whole


def test_a_picture_on_the_way_does_not_replace_an_input(tmp_path: Path, capsys: Capture) -> None:
    face, art = (picture(tmp_path / name, i) for i, name in enumerate(("x-step0002.png", "art.png")))
    before = face.read_bytes()
    words = (face, art, "--out", tmp_path / "x.png", "--size", 24, "--steps", 2, "--save-every", 2)
    assert neural_style_command(*words, *WORDS) == 1
    assert f"{face}: the result would overwrite an input" in the_error(capsys.readouterr().err)
    assert face.read_bytes() == before and not (tmp_path / "x.png").exists()


def test_a_loss_that_is_not_finite_leaves_the_best_picture(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "x.png"
    words = (*pair, "--out", out, "--size", 24, "--steps", 6, *WORDS)
    spoil(monkeypatch, 3, torch.nan)
    assert neural_style_command(*words) == 1
    error = the_error(capsys.readouterr().err)
    assert "not finite in step 3" in error and "The best picture until then, of step " in error and str(out) in error
    assert size_of(out) == (24, 16)
    out.unlink()
    spoil(monkeypatch, 0, torch.nan)
    assert neural_style_command(*words) == 1
    error = the_error(capsys.readouterr().err)
    assert "not finite in step 0" in error and "best picture" not in error
    assert not out.exists() and not leftovers(tmp_path)


@pytest.mark.parametrize("at", [1, 4])
def test_ctrl_c(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    out = tmp_path / "out" / "x.png"
    spoil(monkeypatch, at, KeyboardInterrupt())
    assert neural_style_command(*pair, "--out", out, "--size", 24, "--steps", 9, *WORDS) == 130
    said = capsys.readouterr()
    assert "Traceback" not in said.err and not leftovers(tmp_path)
    if at == 1:  # only the beginning was looked at
        assert "anifast: interrupted\n" in said.err and not out.exists()
    else:
        assert f"anifast: interrupted; {out} is the picture so far" in said.err and "3 steps in" in said.out
        assert size_of(out) == (24, 16)


def test_too_little_memory(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 0, RuntimeError("DefaultCPUAllocator: can't allocate memory: x"))
    assert neural_style_command(*pair, "--out", tmp_path / "x.png", "--size", 24, *WORDS) == 1
    error = the_error(capsys.readouterr().err)
    assert "of side 24" in error and "--size" in error
    assert not (tmp_path / "x.png").exists()


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    cli.COMMANDS["neural-style"].options(found)
    return found


def test_every_option_is_in_the_help_with_its_default() -> None:
    actions = {action.dest: action for action in parser()._actions}
    for field in dataclasses.fields(Options):
        action = actions[field.name]
        assert action.default == argparse.SUPPRESS, field.name
        if field.metadata["choices"]:
            assert tuple(action.choices or ()) == field.metadata["choices"]
        shown = field.metadata["none"] if field.default is None else field.default
        shown = int(shown) if isinstance(shown, float) and shown.is_integer() else shown
        assert field.default is False or (action.help or "").endswith(f"[{shown}]"), field.name
    assert set(actions["backbone"].choices or ()) == set(BACKBONES)


def test_help_needs_no_torch() -> None:
    code = (
        "import contextlib, sys\n"
        "from anifast.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['neural-style', '--help'])\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--original-colours" in said and said.splitlines()[-1] == "[]"


def test_transfer_in_inference_mode_and_with_another_default_type() -> None:
    """The backbone is loaded as anywhere else, and the noise is float32's."""
    content, style = images(0, 1, 24, 24), images(1, 1, 24, 24)
    how = options(steps=1, init="noise")
    expected = transfer(content, style, "random", how)
    with torch.inference_mode():
        found = transfer(content, style, "random", how)
    assert torch.equal(found, expected) and not found.is_inference()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(transfer(content, style, "random", how), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(transfer(content, style, "random", how), expected)
