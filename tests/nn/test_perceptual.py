"""LPIPS and GramStyle: how often the network runs, gradients, types, layouts, weights, names, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import importlib.machinery
import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from relu_turns import gradient_bound
from shared_data import need_shared
from torch import Tensor, nn

import anifast
from anifast.data.folders import read_image, resize, scan, to_float, to_tensor
from anifast.errors import AnifastError
from anifast.nn import backbones, perceptual, weights
from anifast.nn.backbones import VGG, AlexNet, Normalisation, load_backbone, relu_names
from anifast.nn.perceptual import (
    LPIPS,
    NETS,
    STYLE_LAYERS,
    Features,
    GramStyle,
    fold_weight,
    folded_steps,
    unfold_weight,
)
from anifast.ops import gram
from anifast.ops.gram import entries

HEADS = {"vgg": 5, "alex": 5, "squeeze": 7}


def lpips(net: str = "alex", **options: Any) -> LPIPS:
    """With random weights, of its own, under which distances are of an ordinary size."""
    torch.manual_seed(1)
    distance = LPIPS(net, pretrained=False, **options)
    with torch.no_grad():
        for key, value in distance.net.named_parameters():
            value.normal_(std=0.1 if key.endswith("bias") else math.sqrt(2.0 / value[0].numel()))
        for head in distance.heads:
            head.uniform_(0, 1)
    return distance


def images(seed: int = 0, count: int = 2, size: tuple[int, int] = (48, 40)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(count, 3, *size) * 2 - 1, torch.rand(count, 3, *size) * 2 - 1


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """In float64, up to the order of sums: ten thousand roundings of the largest value."""
    assert found.dtype == wanted.dtype == torch.float64
    limit = 1e4 * torch.finfo(torch.float64).eps * float(wanted.detach().abs().max())
    assert float((found - wanted).detach().abs().max()) <= limit


def by_the_formula(distance: LPIPS, a: Tensor, b: Tensor, spatial: bool = False) -> list[Tensor]:
    """The layers' values as the paper has them."""
    shift, scale = (
        torch.tensor(values, dtype=a.dtype)[None, :, None, None]
        for values in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    layers = []
    for i, at in enumerate(distance.layers):
        pictures = [((x - shift) / scale).to(distance.net.first_weight.dtype) for x in (a, b)]
        maps = [distance.net.features[: at + 1](x).to(a.dtype) for x in pictures]
        unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in maps]
        head = distance.heads[i] if len(distance.heads) else torch.ones(maps[0].shape[1])
        value = F.conv2d((unit[0] - unit[1]).square(), head[None, :, None, None])
        if spatial:
            value = F.interpolate(value, a.shape[2:], mode="bilinear", align_corners=False)
        layers.append(value if spatial else value.mean((2, 3), keepdim=True))
    return layers


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("net", HEADS)
def test_lpips_is_the_written_formula(net: str, spatial: bool) -> None:
    distance = lpips(net, spatial=spatial).double()
    a, b = (x.double() for x in images())
    expected = by_the_formula(distance, a, b, spatial)
    total, layers = distance(a, b, per_layer=True)
    assert len(layers) == HEADS[net] and total.dtype == torch.float64
    assert total.shape == ((2, 1, 48, 40) if spatial else (2, 1, 1, 1))
    for got, want in zip([total, *layers], [torch.stack(expected).sum(0), *expected], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)  # the constants are float32's
    torch.testing.assert_close(distance(a, b), total)
    torch.testing.assert_close(distance((a + 1) / 2, (b + 1) / 2, normalize=True), total)
    torch.testing.assert_close(distance(b, a), total)
    assert float(distance(a, a).abs().max()) < 1e-20


def test_beyond_the_range_nothing_is_clamped() -> None:
    distance = lpips()
    a, b = images()
    assert not torch.allclose(distance(a * 3, b), distance((a * 3).clamp(-1, 1), b))


# --- how often the network runs


class Runs:
    """Counts the batches that go through a network, and whether a graph is recorded."""

    def __init__(self, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, bool]] = []
        taps = net.taps

        def counting(x: Tensor, indices: Any) -> Any:
            found = taps(x, indices)  # type: ignore[operator]
            self.seen.append((len(x), found[0].requires_grad))
            return found

        monkeypatch.setattr(net, "taps", counting)

    def take(self) -> list[tuple[int, bool]]:
        seen, self.seen = self.seen, []
        return seen


def test_a_pair_is_one_batch_unless_one_alone_needs_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    distance = lpips().double()
    runs = Runs(distance.net, monkeypatch)
    a, b = (x.double() for x in images())
    needs_a, needs_b = a.clone().requires_grad_(), b.clone().requires_grad_()
    plain = distance(a, b)
    assert runs.take() == [(4, False)]
    both = distance(needs_a, needs_b)
    assert runs.take() == [(4, True)]
    first, second = distance(needs_a, b), None
    assert runs.take() == [(2, True), (2, False)]
    second = distance(a, needs_b)
    assert runs.take() == [(2, False), (2, True)]
    with torch.no_grad():
        distance(needs_a, b)
    assert runs.take() == [(4, False)]
    for total in (both, first, second):
        torch.testing.assert_close(total, plain)
    together = torch.autograd.grad(both.sum(), [needs_a, needs_b])
    assert_near(torch.autograd.grad(first.sum(), needs_a)[0], together[0])
    assert_near(torch.autograd.grad(second.sum(), needs_b)[0], together[1])
    distance.requires_grad_()
    distance(needs_a, b)
    assert runs.take() == [(4, True)]


def test_a_frozen_target_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for spatial in (False, True):
        distance = lpips(spatial=spatial).double()
        runs = Runs(distance.net, monkeypatch)
        a, b = (x.double() for x in images())
        target = distance.features(b)
        assert runs.take() == [(2, False)] and isinstance(target, Features) and target.size == (48, 40)
        assert not any(value.requires_grad for value in target.maps)
        x = a.clone().requires_grad_()
        for _ in range(3):
            total, layers = distance(x, target, per_layer=True)
        assert runs.take() == [(2, True)] * 3
        expected, parts = distance(x, b, per_layer=True)
        for got, want in zip([total, *layers], [expected, *parts], strict=True):
            torch.testing.assert_close(got, want)
        wanted = torch.autograd.grad(expected.sum(), x)[0]
        torch.testing.assert_close(torch.autograd.grad(total.sum(), x)[0], wanted)
        in_unit = distance.features((b + 1) / 2, normalize=True)
        torch.testing.assert_close(distance((a + 1) / 2, in_unit, normalize=True), distance(a, target))
        needs = distance.features(b.clone().requires_grad_())
        assert not needs.maps[0].requires_grad


# --- gradients, types, layouts


def test_gradients_of_both_orders() -> None:
    """A graph of three small layers, in float64: first and second order to each image and to the weights."""
    distance = lpips("alex").double()
    distance.layers = distance.layers[:2]
    distance.heads = nn.ParameterList(list(distance.heads)[:2])
    torch.manual_seed(0)
    a, b = ((torch.rand(1, 3, 15, 15, dtype=torch.float64) * 2 - 1).requires_grad_() for _ in range(2))
    head, bias = (value.requires_grad_() for value in (distance.heads[1], distance.net.features[0].bias))  # type: ignore[union-attr]

    def of(*_: Tensor) -> Tensor:
        return distance(a, b)

    assert torch.autograd.gradcheck(of, (a, b, head, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(of, (a, b, head), fast_mode=True)


def test_black_and_equal_pictures_have_finite_gradients() -> None:
    for net in ("random", "squeeze"):
        distance = lpips(net)
        with torch.no_grad():
            for key, value in distance.net.named_parameters():
                if key.endswith("bias"):
                    value.fill_(-1e4)  # all maps are 0
        for a, b in ((torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)), images(count=1)):
            x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
            total = distance(x, y)
            grads = torch.autograd.grad(total.sum(), [x, y])
            assert not total.any() and not any(grad.any() for grad in grads)
    distance = lpips("random")
    x = (-torch.ones(1, 3, 32, 32)).requires_grad_()
    for other in (-torch.ones(1, 3, 32, 32), images(count=1, size=(32, 32))[0]):
        total = distance(x, other)
        (grad,) = torch.autograd.grad(total.sum(), x)
        assert total.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("net", ["alex", "random"])
def test_bfloat16_and_channels_last(net: str) -> None:
    a, b = images(size=(64, 64))
    precise = a.double().requires_grad_()
    exact = lpips(net).double()(precise, b.double())
    (exact_grad,) = torch.autograd.grad(exact.sum(), precise)
    exact = exact.detach()
    for options in (
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "channels_last": False},
        {"channels_last": False},
    ):
        distance = lpips(net, **options)
        half = "dtype" in options
        maps = distance.maps(a)
        assert {value.dtype for value in maps} == {torch.bfloat16 if half else torch.float32}
        last = [value.is_contiguous(memory_format=torch.channels_last) for value in maps]
        assert all(last) if options.get("channels_last", True) else not any(last)
        # Winograd's kernels, which float32 has on a CPU, want weights as they are
        assert distance.net.first_weight.is_contiguous() == (not all(last))
        x = a.clone().requires_grad_()
        total = distance(x, b)
        assert total.dtype == torch.float32
        # roundings of weights and maps are independent: a mean over thousands of them is far nearer than one of them
        unit = torch.finfo(torch.bfloat16 if half else torch.float32).eps
        torch.testing.assert_close(total.double(), exact, rtol=4 * unit, atol=0)
        (grad,) = torch.autograd.grad(total.sum(), x)
        assert grad.dtype == torch.float32
        # twice what PyTorch's modules err by in the type; in float32 these may turn no ReLU where other sums do
        (plain,) = torch.autograd.grad(torch.stack(by_the_formula(distance, x, b)).sum(), x)
        error, usual = (float((x - exact_grad).norm() / exact_grad.norm()) for x in (grad, plain))
        assert error <= 2 * usual + (0 if half else gradient_bound(distance.net))


def test_images_of_other_types_and_autocast() -> None:
    distance = lpips("random")
    a, b = images(size=(32, 32))
    total = distance(a, b)
    torch.testing.assert_close(distance(a.double(), b.double()), total)
    half = a.bfloat16().requires_grad_()
    found = distance(half, b)
    torch.testing.assert_close(found, distance(half.float(), b))
    assert torch.autograd.grad(found.sum(), half)[0].dtype == torch.bfloat16
    cached = distance.features(b)
    with torch.autocast("cpu", torch.bfloat16):
        for one in (distance(a, b), distance(a, cached)):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, total, rtol=4 * torch.finfo(torch.bfloat16).eps, atol=0)


def test_compile_transforms_and_copies() -> None:
    distance = lpips("squeeze")
    a, b = images(size=(64, 64))
    total = distance(a, b)
    torch.compiler.reset()
    compiled = torch.compile(distance, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), total)
    torch.testing.assert_close(compiled(a, distance.features(b)), total)
    distance.double()  # in float32 roundings turn ReLUs
    a, b = a.double(), b.double()
    total = distance(a, b)
    x = a.clone().requires_grad_()
    (expected,) = torch.autograd.grad(distance(x, b).sum(), x)
    assert_near(torch.autograd.grad(compiled(x, b).sum(), x)[0], expected)
    assert_near(torch.func.grad(lambda given: distance(given, b).sum())(a), expected)
    each = torch.func.vmap(lambda one, other: distance(one[None], other[None])[0])(a, b)
    torch.testing.assert_close(each, total)
    parameters = {key: value.detach() for key, value in distance.named_parameters()}

    def of_weights(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(distance, values, (x, b)).sum()

    found = torch.func.grad(of_weights)(parameters)  # the other image's part too, though it needs no gradient itself
    trained = copy.deepcopy(distance).requires_grad_()
    wanted = torch.autograd.grad(trained(a, b).sum(), list(trained.parameters()))
    for (key, _), value in zip(trained.named_parameters(), wanted, strict=True):
        assert_near(found[key], value)
    with torch.inference_mode():
        torch.testing.assert_close(distance(a, b), total)
    stored = io.BytesIO()
    torch.save(distance.state_dict(), stored)
    stored.seek(0)
    other = LPIPS("squeeze", pretrained=False).double()
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other(a, b), total)


# --- weights and names


@pytest.fixture
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights but those that a test puts into the hub's folder, which it gets; no lpips package, no network."""
    monkeypatch.delenv("ANIFAST_WEIGHTS", raising=False)
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "no shared folder"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_lpips_own_state_dicts() -> None:
    """Of a whole module, of its heads alone, and with the names of heads without dropout."""
    for net in HEADS:
        a, b = images()
        source = lpips(net)
        slices = {3: 1, 8: 2, 15: 3, 22: 4, 29: 5}  # where a module is in does not matter
        state = {
            f"net.slice{slices.get(int(key.split('.')[1]), 1)}.{key.removeprefix('features.')}": value
            for key, value in source.net.state_dict().items()
        }
        heads = {f"lin{i}.model.1.weight": head.detach()[None, :, None, None] for i, head in enumerate(source.heads)}
        state |= heads | {key.replace("lin", "lins.", 1): value for key, value in heads.items()}
        state |= {"scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]}
        state |= {"scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]}
        target = LPIPS(net, pretrained=False)
        target.load_lpips_state(state)
        assert torch.equal(target(a, b), source(a, b))
        assert "LPIPS" not in target.report_name and "LPIPS" not in repr(target)  # random numbers are nobody's
        half = LPIPS(net, pretrained=False)
        half.load_lpips_state({key.replace("model.1", "model.0"): value for key, value in heads.items()})
        assert all(torch.equal(x, y) for x, y in zip(half.heads, source.heads, strict=True))
        assert "LPIPS" not in half.report_name  # its backbone is nobody's


def test_wrong_state_dicts_change_nothing() -> None:
    distance = lpips("vgg")
    before = copy.deepcopy(distance.state_dict())
    heads = {f"lin{i}.model.1.weight": head.detach()[None, :, None, None] for i, head in enumerate(distance.heads)}
    others = {f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    for state, said in (
        (others, r"heads of widths \[64, 192, 384, 256, 256\], expected \[64, 128, 256, 512, 512\] for net 'vgg'"),
        ({key: value for key, value in heads.items() if "lin4" not in key}, r"heads of widths \[64, 128, 256, 512\],"),
        ({}, "heads of widths none"),
        (heads | {"lins.0.model.1.weight": torch.zeros(1, 64, 1, 1)}, "head 0 has two different weights"),
        (heads | {"lin0.model.1.weight": torch.full((1, 64, 1, 1), math.nan)}, "other things than finite numbers"),
        (heads | {"lin0.model.1.weight": 3}, "lin0.model.1.weight is no weight of a head"),
        (heads | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, "scaling_layer.shift is"),
        (heads | {"net.slice1.0.weight": torch.zeros(64, 3, 3, 3)}, "features.0.bias is missing"),
        (heads | {"something": torch.zeros(1)}, "other weights .*features.0.weight is missing"),
    ):
        with pytest.raises(AnifastError, match=said):
            distance.load_lpips_state(state)
        assert all(torch.equal(value, before[key]) for key, value in distance.state_dict().items())
    with pytest.raises(AnifastError, match="net 'random' has none"):
        LPIPS("random").load_lpips_state(heads)


@pytest.mark.parametrize("net", HEADS)
def test_published_heads(net: str, nothing_around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = need_shared("data", "weights", "lpips_heads_v0.1", f"{net}.pth")
    assert weights.digest(path) == perceptual._HEAD_HASHES[net]
    expected = LPIPS(net, pretrained=False, head_weights=path)
    assert [len(head) for head in expected.heads] == [expected.net.channels_of(at) for at in expected.layers] and all(
        float(head.min()) >= 0 < float(head.max()) for head in expected.heads
    )

    def found() -> bool:
        distance = LPIPS(net, pretrained=False, head_weights=perceptual._published_heads(net))
        return all(torch.equal(a, b) for a, b in zip(distance.heads, expected.heads, strict=True))

    with pytest.raises(AnifastError, match="cannot be downloaded") as caught:
        found()
    assert f"lpips/weights/v0.1/{net}.pth" in str(caught.value) and str(nothing_around) in str(caught.value)
    assert "passed over" not in str(caught.value)
    other = tmp_path / "mine" / f"{net}.pth"
    other.parent.mkdir()
    other.write_bytes(b"<html>")
    monkeypatch.setenv("ANIFAST_WEIGHTS", str(other.parent))
    with pytest.raises(AnifastError, match=f"{net}.pth was passed over, for its SHA-256 is another"):
        found()
    monkeypatch.delenv("ANIFAST_WEIGHTS")

    def no_spec(name: str) -> None:  # of a stand-in in sys.modules
        raise ValueError(f"{name}.__spec__ is None")

    monkeypatch.setattr(perceptual.importlib.util, "find_spec", no_spec)
    with pytest.raises(AnifastError, match="cannot be downloaded"):
        found()
    # an installed lpips package, which is not imported; a file in it that is another one is passed over
    package = tmp_path / "lpips" / "weights" / "v0.1"
    package.mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("lpips", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "lpips")]
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: spec if name == "lpips" else None)
    (package / f"{net}.pth").write_bytes(b"other")
    with pytest.raises(AnifastError, match="cannot be downloaded"):
        found()
    (package / f"{net}.pth").write_bytes(path.read_bytes())
    assert found() and "lpips" not in sys.modules
    # the hub's folder, also by way of the download
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)

    def download(url: str, dst: str, hash_prefix: str, progress: bool) -> None:
        assert url.endswith(f"PerceptualSimilarity/raw/master/lpips/weights/v0.1/{net}.pth")
        assert hash_prefix == weights.digest(path) and progress
        Path(dst).write_bytes(path.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert found() and len(list(nothing_around.iterdir())) == 1
    monkeypatch.delattr(torch.hub, "download_url_to_file")
    assert found()


def test_files_that_are_no_heads(tmp_path: Path, nothing_around: Path) -> None:
    path = tmp_path / "heads.pth"
    with pytest.raises(AnifastError, match="no such file"):
        LPIPS("vgg", pretrained=False, head_weights=path)
    path.write_bytes(b"text")
    with pytest.raises(AnifastError, match="damaged"):
        LPIPS("vgg", pretrained=False, head_weights=path)
    torch.save({"fc.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(AnifastError, match=r"fc.weight is no weight of a head"):
        LPIPS("vgg", pretrained=False, head_weights=path)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, 3, 1, 1) for i in range(5)}, path)
    with pytest.raises(AnifastError, match=r"widths \[3, 3, 3, 3, 3\], expected \[64, 192, 384, 256, 256\]"):
        LPIPS("alex", pretrained=False, head_weights=path)
    with pytest.raises(AnifastError, match="is a folder, expected a file"):
        LPIPS("vgg", pretrained=False, head_weights=tmp_path)
    with pytest.raises(AnifastError, match=r"no\.pth: no such file"):
        LPIPS("vgg", pretrained=False).load_lpips_state(tmp_path / "no.pth")
    with pytest.raises(ValueError, match="'random' has no heads"):
        LPIPS("random", head_weights=path)
    with pytest.raises(ValueError, match="net is 'vgg16', expected one of vgg, alex"):
        LPIPS("vgg16")
    with pytest.raises(AnifastError, match=r"vgg16-397923af\.pth"):
        LPIPS("vgg")
    with pytest.raises(TypeError, match="expected a floating-point type"):
        LPIPS("random", dtype=torch.int32)


def test_only_lpips_is_called_so(nothing_around: Path) -> None:
    for net, kind in NETS.items():
        distance = LPIPS(net, pretrained=False)
        assert "LPIPS" not in distance.report_name and "LPIPS" not in repr(distance)
        assert distance.net.title in distance.report_name
        assert len(distance.heads) == (len(kind.layers) if kind.head else 0)
    for net, folder in (("squeezenet1_0", "squeezenet1_0_imagenet.npz"), ("vgg19_16x", "5SE.pth")):
        path = need_shared("data", "weights", net, folder)
        distance = LPIPS(net, backbone_weights=path)
        assert "LPIPS" not in distance.report_name and "LPIPS" not in repr(distance)
        assert distance.net.fingerprint()[:8] in distance.report_name
    assert LPIPS("random").report_name == "feature distance of VGG-16 with random weights"
    assert "spatial" in repr(LPIPS("random", spatial=True)) and "inside" in repr(LPIPS("random", eps_inside=True))


@pytest.mark.parametrize("net", HEADS)
def test_lpips_is_told_by_its_weights(net: str, nothing_around: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the constructor was asked for, and however they came in."""
    path = need_shared("data", "weights", "lpips_heads_v0.1", f"{net}.pth")
    distance = LPIPS(net, pretrained=False, head_weights=path)
    fingerprint = distance.net.fingerprint()[:8]
    unknown = f"LPIPS heads on {distance.net.title}, weights {fingerprint}"
    assert distance.report_name == unknown and repr(distance).startswith("FeatureDistance(")
    copied = LPIPS(net, pretrained=False)
    copied.load_state_dict(distance.state_dict())
    assert copied.report_name == unknown
    # a file that is taken for the published one
    file = nothing_around / load_backbone_file(net)
    torch.save(distance.net.state_dict(), file)
    kind = backbones._PUBLISHED[NETS[net].backbone]
    known = dataclasses.replace(kind, hashes=(weights.digest(file),))
    monkeypatch.setitem(backbones._PUBLISHED, NETS[net].backbone, known)
    for one in (distance, copied, LPIPS(net, head_weights=path), LPIPS(net, head_weights=path, dtype=torch.bfloat16)):
        assert one.report_name == f"LPIPS ({net})" and repr(one).startswith("LPIPS(")
    for options, said in (({"eps": 1e-8}, "eps 1e-08"), ({"eps_inside": True}, "eps 1e-10 inside")):
        other = LPIPS(net, head_weights=path, **options)  # type: ignore[arg-type]
        assert other.report_name == f"feature distance of {other.net.title} ({fingerprint}), {said}"
    copied.net.normalisation = "caffe"
    assert "LPIPS" not in copied.report_name and "other weights" in copied.report_name
    with torch.no_grad():
        distance.heads[0][0] += 1e-3
    assert "LPIPS" not in distance.report_name and "LPIPS" not in repr(distance)
    assert "other weights" in distance.report_name and fingerprint not in distance.report_name
    random = LPIPS("random")
    random.net.load_state_dict(load_backbone("vgg16", pretrained=False).state_dict())
    assert "other weights" in random.report_name


def load_backbone_file(net: str) -> str:
    """The name that the weights of its backbone are published by."""
    return backbones._PUBLISHED[NETS[net].backbone].names[0]


def test_state_dicts_tell_what_weights_want() -> None:
    path = need_shared("data", "weights", "squeezenet1_0", "squeezenet1_0_imagenet.npz")
    source, target = LPIPS("squeezenet1_0", backbone_weights=path), LPIPS("squeezenet1_0", pretrained=False)
    stored = io.BytesIO()
    torch.save(source.state_dict(), stored)
    stored.seek(0)
    target.load_state_dict(torch.load(stored, weights_only=True))
    a, b = images()
    assert torch.equal(target(a, b), source(a, b))
    style = GramStyle(source.net, size=40)
    other = GramStyle("squeezenet1_0", pretrained=False, size=40)
    other.load_state_dict(style.state_dict())
    assert torch.equal(other(a), style(a))
    # LPIPS's own state dicts are of torchvision's weights
    state = {f"net.slice1.{key[9:]}": value for key, value in source.net.state_dict().items() if key != "_extra_state"}
    state["scaling_layer.shift"] = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    target.load_lpips_state(state)
    assert target.normalisation.wants == "imagenet"


def test_after_inference_mode_it_can_be_trained() -> None:
    a, b = images()

    def gradient(distance: nn.Module, other: Any) -> Tensor:
        x = a.clone().requires_grad_()
        return torch.autograd.grad(distance(x, other).sum(), x)[0]

    distance = lpips("squeeze", channels_last=True)
    expected = gradient(copy.deepcopy(distance), b)
    with torch.inference_mode():
        distance(a, b)
        target = distance.features(b)
        built = [LPIPS("random"), GramStyle("random", size=32)]
    assert torch.equal(gradient(distance, b), expected)
    assert gradient(distance, target).any()
    for module in built:
        assert not any(value.is_inference() for value in (*module.parameters(), *module.buffers()))
    distance.requires_grad_()
    distance(a, b).sum().backward()


def test_replicas_of_data_parallel() -> None:
    """What nn.DataParallel runs on each GPU: modules whose parameters are plain attributes."""

    def replicate(module: nn.Module) -> Any:
        modules = list(module.modules())
        places = {one: at for at, one in enumerate(modules)}
        replicas: list[Any] = [one._replicate_for_data_parallel() for one in modules]  # type: ignore[operator]
        for one, replica in zip(modules, replicas, strict=True):
            for key, child in one._modules.items():
                if child is not None:
                    setattr(replica, key, replicas[places[child]])
            for key, value in one._parameters.items():
                if value is not None:
                    setattr(replica, key, value.view_as(value))
        return replicas[0]

    a, b = images()
    distance, style = lpips("squeeze"), GramStyle(lpips("alex").net, size=40)
    assert torch.equal(replicate(distance)(a, b), distance(a, b))
    assert torch.equal(replicate(style)(a), style(a))
    distance.requires_grad_()
    replicate(distance)(a, b).sum().backward()
    assert all(head.grad is not None and head.grad.any() for head in distance.heads)
    assert distance.net.first_weight.grad is not None
    x = a.clone().requires_grad_()  # the other picture's part of the weights' gradient too
    distance.zero_grad()
    distance(x, b).sum().backward()
    expected = distance.net.first_weight.grad.clone()
    distance.zero_grad()
    replicate(distance)(x, b).sum().backward()
    assert torch.equal(distance.net.first_weight.grad, expected)


def test_defaults_of_torch_do_not_matter() -> None:
    a, b = images()
    with torch.device("meta"):
        built: list[nn.Module] = [LPIPS("alex", pretrained=False), GramStyle("random")]
    torch.set_default_dtype(torch.float64)
    try:
        built += [LPIPS("alex", pretrained=False), GramStyle("random")]
        assert folded_steps(CHANNELS).dtype == torch.float32
        assert LPIPS("random")(a, b).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    for module in built:
        tensors = [*module.parameters(), *module.buffers()]
        assert all(value.device.type == "cpu" and value.dtype == torch.float32 for value in tensors)


def test_without_heads_it_is_the_sum_over_channels() -> None:
    distance = LPIPS("random").double()
    a, b = (x.double() for x in images())
    assert distance.layers == LPIPS("vgg", pretrained=False).layers
    _, layers = distance(a, b, per_layer=True)
    for value, x, y in zip(layers, distance.maps(a), distance.maps(b), strict=True):
        cosines = F.cosine_similarity(x, y, dim=1)
        torch.testing.assert_close(value.flatten(), (2 - 2 * cosines).mean((1, 2)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("net", "wants"), [("vgg", "imagenet"), ("squeezenet1_0", "caffe"), ("vgg19_16x", "unit"), ("random", "imagenet")]
)
def test_each_net_gets_what_it_wants(net: str, wants: str) -> None:
    options = {}
    if net in ("squeezenet1_0", "vgg19_16x"):
        options["backbone_weights"] = need_shared(
            "data", "weights", net, "squeezenet1_0_imagenet.npz" if net[0] == "s" else ""
        )
    distance = LPIPS(net, pretrained=False, channels_last=False, **options)
    a, _ = images(size=(40, 40))
    assert distance.normalisation.wants == wants
    expected = distance.net.taps(Normalisation(wants)(a), distance.layers)
    assert all(torch.equal(x, y) for x, y in zip(distance.maps(a), expected, strict=True))


@pytest.mark.parametrize("net", ["squeezenet1_0", "vgg19_16x", "random"])
def test_real_pictures(net: str) -> None:
    """A slightly shifted picture is nearer than another one; to trained networks, photos are nearer than drawings."""
    options = {}
    if net != "random":
        options["backbone_weights"] = need_shared(
            "data", "weights", net, "squeezenet1_0_imagenet.npz" if net == "squeezenet1_0" else "5SE.pth"
        )
    distance = LPIPS(net, **options)
    folders = [need_shared("data", *parts) for parts in (("faces", "blendgan_256"), ("anime", "style_portraits_256"))]
    photos, drawings = (
        torch.stack([to_float(to_tensor(resize(read_image(path), 128))) for path in scan(folder).paths[:4]])
        for folder in folders
    )
    with torch.no_grad():
        moved = distance(photos, photos.roll(1, dims=3)).flatten()
        among = distance(photos, photos.roll(1, dims=0)).flatten()
        across = distance(photos, drawings).flatten()
    assert bool((moved < 0.5 * among).all()), (moved, among)
    assert net == "random" or float(across.mean()) > float(among.mean())


# --- bad input


def test_bad_pictures() -> None:
    distance = lpips("alex")
    a, b = images()
    byte = (a * 127).to(torch.uint8)
    moved = distance.features(b)
    for args, error, said in (
        (([1], b), TypeError, "in0 must be a torch.Tensor, got list"),
        (
            (byte, b),
            TypeError,
            r"in0 has dtype torch.uint8, expected floats in \[-1, 1\]: in0.float\(\) / 255 \* 2 - 1",
        ),
        ((a, byte), TypeError, "in1 has dtype torch.uint8"),
        ((a[:, :1], b), ValueError, r"in0 has shape \(2, 1, 48, 40\).*in0.expand\(-1, 3, -1, -1\)"),
        ((a[0], b), ValueError, r"in0 has shape \(3, 48, 40\), expected N,3,H,W"),
        ((torch.zeros(2, 4, 48, 40), b), ValueError, r"in0 has shape \(2, 4, 48, 40\)"),
        ((a, b[:1]), ValueError, r"in1 has shape \(1, 3, 48, 40\), expected \(2, 3, 48, 40\) as in0"),
        ((a, b[..., :32]), ValueError, r"in1 has shape \(2, 3, 48, 32\), expected \(2, 3, 48, 40\)"),
        ((a[..., :20], b[..., :20]), ValueError, "images of 48 x 20 pixels are too small, expected at least 31 x 31"),
        ((a, distance.features(b[:1])), ValueError, r"in1 holds 5 layers of 1 pictures of \(48, 40\), expected 5 of 2"),
        ((a, distance.features(b[:, :, :40])), ValueError, r"of \(40, 40\), expected 5 of 2 of \(48, 40\) as in0"),
        ((a, lpips("squeeze").features(b)), ValueError, "in1 is of net 'squeeze', expected 'alex': call features"),
        ((a, lpips("alex").double().features(b)), ValueError, "in1 is of a network in torch.float64, expected torch.f"),
        ((a, b.to("meta")), ValueError, "in1 is on meta, expected cpu as in0"),
        (
            (a, moved._replace(maps=tuple(x.to("meta") for x in moved.maps))),
            ValueError,
            r"in1 is on meta, expected cpu as in0: call features\(\)",
        ),
        ((a.to("meta"), b.to("meta")), ValueError, "images are on meta, expected cpu"),
    ):
        with pytest.raises(error, match=said):
            distance(*args)
    with pytest.raises(TypeError, match=r"expected floats in \[0, 1\]: in0.float\(\) / 255 of"):
        distance(byte, b, normalize=True)
    with pytest.raises(TypeError, match="images has dtype torch.uint8"):
        distance.features(byte)
    grey = a[:, :1]
    assert distance(grey.expand(-1, 3, -1, -1), b).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("net", ["alex", "vgg19_16x"])
def test_empty_batches(net: str) -> None:
    for spatial in (False, True):
        distance = lpips(net, spatial=spatial)
        a = torch.zeros(0, 3, 48, 40, requires_grad=True)
        for other in (a.detach(), distance.features(a.detach())):
            total, layers = distance(a, other, per_layer=True)
            assert total.shape == layers[0].shape == ((0, 1, 48, 40) if spatial else (0, 1, 1, 1))
            (grad,) = torch.autograd.grad(total.sum(), a)
            assert grad.shape == a.shape
    style = GramStyle(NETS[net].backbone, pretrained=False)
    assert style(torch.zeros(0, 3, 48, 40)).shape == (0, style.width)


# --- style


def style_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_backbone(name, pretrained=False).double()


def test_blendgans_vector() -> None:
    """Raw pixels, pooled to 256; five matrices row by row."""
    style = GramStyle("vgg19", pretrained=False, size=48).double()
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 96, 144, dtype=torch.float64) * 2 - 1
    x = F.avg_pool2d(pictures, (2, 3))  # what the adaptive one is here
    expected = []
    for at, module in enumerate(style.net.features):
        x = module(x)
        if at in (3, 8, 17, 26, 35):
            flat = x.flatten(2)
            expected.append((flat @ flat.mT / x[0].numel()).flatten(1))
    vector = style(pictures)
    assert style.channels == (64, 128, 256, 512, 512) and style.width == 610_304 == vector.shape[1]
    torch.testing.assert_close(vector, torch.cat(expected, dim=1), rtol=1e-9, atol=1e-12)
    folded = GramStyle(style.net, size=48, folded=True).double()
    assert folded.width == 305_888
    starts = [0, *torch.tensor([c * c for c in style.channels]).cumsum(0).tolist()]
    upper = [
        vector[:, start : start + c * c].unflatten(1, (c, c))[:, rows, columns]
        for start, c in zip(starts, style.channels, strict=False)
        for rows, columns in [torch.triu_indices(c, c)]
    ]
    torch.testing.assert_close(folded(pictures), torch.cat(upper, dim=1), rtol=1e-12, atol=1e-15)
    assert GramStyle("vgg19", pretrained=False).size == 256
    whole = GramStyle(style.net, size=None)
    torch.testing.assert_close(whole(F.avg_pool2d(pictures, (2, 3))), vector)


@pytest.mark.parametrize("name", STYLE_LAYERS)
def test_other_backbones(name: str) -> None:
    net = style_net(name)
    style = GramStyle(net, size=40)  # type: ignore[arg-type]
    a, _ = images()
    a = a.double().requires_grad_()
    wants = {"vgg19": "raw", "vgg19_16x": "unit"}.get(name, "imagenet")
    x = F.adaptive_avg_pool2d(a, 40)
    maps = net.taps(Normalisation(wants)(x), STYLE_LAYERS[name])  # type: ignore[operator]
    vector = style(a)
    assert style.width == vector.shape[1] == sum(entries(x.shape[1], folded=False) for x in maps)
    torch.testing.assert_close(vector, gram(maps), rtol=1e-6, atol=1e-12)
    (grad,) = torch.autograd.grad(vector.square().sum(), a)
    assert grad.any() and grad.isfinite().all()
    layers = list(relu_names(name).values())[:2]
    some = GramStyle(net, size=None, layers=layers, normalize="hw")  # type: ignore[arg-type]
    assert some(a).shape == (2, sum(c * c for c in some.channels)) and some.layers == tuple(layers)


def test_style_by_name_types_and_files(tmp_path: Path) -> None:
    state = VGG(16).state_dict()
    torch.save({key.replace("features", "vgg_layers"): value for key, value in state.items()}, tmp_path / "vgg.pth")
    style = GramStyle("vgg16", weights=tmp_path / "vgg.pth", size=32)
    assert torch.equal(style.net.features[0].weight, state["features.0.weight"])  # type: ignore[arg-type]
    a, _ = images(size=(32, 32))
    exact = GramStyle(style.net, size=32)(a)
    half = GramStyle("vgg16", weights=tmp_path / "vgg.pth", size=32, dtype=torch.bfloat16, channels_last=True)
    found = half(a)
    assert found.dtype == torch.float32
    # weights and maps of 13 layers are rounded, by half a unit at most and independently, and
    # a matrix has products of two maps: 2 * sqrt(2 * 13) / 2
    assert float((found - exact).norm() / exact.norm()) < math.sqrt(26) * torch.finfo(torch.bfloat16).eps
    assert "width=" in repr(style) and "folded" in repr(GramStyle("random", folded=True))
    torch.compiler.reset()
    compiled = torch.compile(style, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a), exact)


def test_style_refuses() -> None:
    net = AlexNet()
    for args, error, said in (
        ({"normalize": "c"}, ValueError, "normalize is 'c', expected 'chw', 'hw' or 'none'"),
        ({"layers": []}, ValueError, "layers is empty"),
        ({"size": 20}, ValueError, "size is 20, expected at least 31 for alexnet, or None"),
        ({"weights": "a.pth"}, ValueError, "weights is for a backbone given by its name"),
        ({"layers": [1, 99]}, ValueError, r"layers is \[1, 99\], expected indices of 0 to 12 for alexnet"),
        ({"layers": [-1]}, ValueError, r"layers is \[-1\], expected indices"),
    ):
        with pytest.raises(error, match=said):
            GramStyle(net, **args)  # type: ignore[arg-type]
    with pytest.raises(AnifastError, match="unknown backbone 'vgg'"):
        GramStyle("vgg")
    with pytest.raises(TypeError, match="must be a name or a Backbone, got Conv2d"):
        GramStyle(nn.Conv2d(3, 3, 3))  # type: ignore[arg-type]
    mine = AlexNet()
    mine.name = "mine"
    with pytest.raises(ValueError, match="backbone 'mine' has no usual layers, give layers"):
        GramStyle(mine)
    assert GramStyle(mine, layers=[1]).channels == (64,)
    style = GramStyle(net, size=None)
    for images_, error, said in (
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "images has dtype torch.uint8"),
        (torch.zeros(1, 1, 64, 64), ValueError, r"images.expand\(-1, 3, -1, -1\)"),
        (torch.zeros(3, 64, 64), ValueError, "expected N,3,H,W"),
        (torch.zeros(1, 3, 64, 20), ValueError, "64 x 20 pixels are too small, expected at least 31 x 31"),
    ):
        with pytest.raises(error, match=said):
            style(images_)
    with pytest.raises(ValueError, match="expected pixels"):
        GramStyle(net)(torch.zeros(1, 3, 0, 4))
    assert torch.equal(GramStyle("random", size=32)(torch.zeros(1, 3, 8, 8)).isfinite().all(), torch.tensor(True))


# --- folded weights

CHANNELS = (3, 5, 1)


def symmetric(count: int) -> Tensor:
    """Vectors of Gram matrices of `count` random pictures."""
    return gram([torch.randn(count, c, 4, 5, dtype=torch.float64) for c in CHANNELS], backend="reference")


def fold(vector: Tensor) -> Tensor:
    """The upper triangles in a vector of whole matrices."""
    parts, start = [], 0
    for c in CHANNELS:
        rows, columns = torch.triu_indices(c, c)
        parts.append(vector[:, start : start + c * c].unflatten(1, (c, c))[:, rows, columns])
        start += c * c
    return torch.cat(parts, dim=1)


def test_folding_keeps_the_function() -> None:
    torch.manual_seed(0)
    vector, weight = symmetric(6), torch.randn(4, 35, dtype=torch.float64)
    folded = fold_weight(weight, CHANNELS)
    assert folded.shape == (4, 22)
    torch.testing.assert_close(fold(vector) @ folded.T, vector @ weight.T, rtol=1e-12, atol=1e-12)
    maps = [torch.randn(2, c, 4, 5, dtype=torch.float64) for c in CHANNELS]
    torch.testing.assert_close(
        gram(maps, folded=True, backend="reference") @ folded.T, gram(maps, backend="reference") @ weight.T
    )
    back = unfold_weight(folded, CHANNELS)
    torch.testing.assert_close(vector @ back.T, vector @ weight.T, rtol=1e-12, atol=1e-12)
    matrix = back[:, 9:34].unflatten(1, (5, 5))
    assert torch.equal(matrix, matrix.mT)
    assert torch.equal(matrix[:, 1, 3], folded[:, 6 + 5 + 2] / 2) and torch.equal(matrix[:, 2, 2], folded[:, 6 + 9])
    assert torch.equal(fold_weight(back, CHANNELS), folded)
    assert fold_weight(weight.float(), CHANNELS).dtype == unfold_weight(folded.float(), CHANNELS).dtype == torch.float32
    assert fold_weight(torch.zeros(2, 0), ()).shape == unfold_weight(torch.zeros(2, 0), ()).shape == (2, 0)


@pytest.mark.parametrize("way", [fold_weight, unfold_weight])
def test_folding_refuses(way: Callable[..., Tensor]) -> None:
    right = 35 if way is fold_weight else 22
    with pytest.raises(
        ValueError, match=rf"weight has shape \(2, 34\), expected \(out, {right}\), the sum of C.* 3, 5, 1"
    ):
        way(torch.zeros(2, 34), CHANNELS)
    with pytest.raises(ValueError, match="expected"):
        way(torch.zeros(right), CHANNELS)
    for wrong in (torch.zeros(2, right, dtype=torch.float16), torch.zeros(2, right, dtype=torch.int64), [1]):
        with pytest.raises(TypeError, match="must be a float32 or float64 tensor"):
            way(wrong, CHANNELS)


def test_forty_steps_of_adam_are_the_same() -> None:
    """Off-diagonal columns take twice the step, and the folded layer stays the whole one (spec/blendgan.md 9)."""
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(4, 35, dtype=torch.float64))
    folded = nn.Parameter(fold_weight(whole.detach(), CHANNELS))
    factors = folded_steps(CHANNELS).double()
    assert factors.shape == (22,) and factors[:6].tolist() == [1, 2, 2, 1, 2, 1] and factors[-1] == 1
    optimizers = [torch.optim.Adam([weight], lr=0.01, betas=(0.9, 0.99)) for weight in (whole, folded)]
    start = whole.detach().clone()
    for _ in range(40):
        vector, target = symmetric(8), torch.randn(8, 4, dtype=torch.float64)
        before = folded.detach().clone()
        for weight, x, optimizer in zip((whole, folded), (vector, fold(vector)), optimizers, strict=True):
            optimizer.zero_grad()
            (x @ weight.T - target).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            folded += (folded - before) * (factors - 1)
    assert float((whole.detach() - start).abs().mean()) > 0.05  # it was trained
    # forty roundings of each weight in float64
    limit = 40 * torch.finfo(torch.float64).eps * float(whole.detach().abs().max()) * 4
    assert float((fold_weight(whole.detach(), CHANNELS) - folded.detach()).abs().max()) < limit
    vector = symmetric(5)
    exported = unfold_weight(folded.detach(), CHANNELS)
    torch.testing.assert_close(vector @ exported.T, vector @ whole.detach().T, rtol=1e-11, atol=1e-11)


# --- the package


def test_public_names() -> None:
    assert anifast.LPIPS is anifast.nn.LPIPS is LPIPS
    assert anifast.nn.GramStyle is GramStyle and anifast.nn.fold_weight is fold_weight
    assert anifast.nn.folded_steps is folded_steps and anifast.neural_style.transfer
    assert anifast.nn.unfold_weight is unfold_weight and anifast.nn.load_backbone is load_backbone
    with pytest.raises(AttributeError, match="no attribute 'VGG20'"):
        anifast.nn.VGG20  # noqa: B018
    program = "import sys, anifast\nassert anifast.LPIPS\nassert not {'torchvision', 'lpips'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
