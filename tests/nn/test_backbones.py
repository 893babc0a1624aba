"""Backbones and FID's Inception-v3: published sizes, names and habits, taps, the fused convolution, weights."""

from __future__ import annotations

import copy
import math
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from modulated_conv2d_cases import amplification
from op_checks import CalledOps
from shared_data import need_shared
from torch import Tensor, nn

import anifast
from anifast import _native
from anifast.data.folders import read_image, resize, scan, to_float, to_tensor
from anifast.errors import AnifastError
from anifast.metrics.features import squeezenet_input
from anifast.nn import weights
from anifast.nn.backbones import (
    BACKBONES,
    NORMALISATIONS,
    VGG,
    AlexNet,
    Backbone,
    Normalisation,
    SqueezeNet,
    VGG19Compressed,
    conv_relu,
    load_backbone,
    relu_names,
)
from anifast.nn.inception import BlockA, BlockC, BlockE, FIDInception

needs_native = pytest.mark.skipif(
    _native.unavailable("cpu") is not None, reason=f"no compiled kernels: {_native.unavailable('cpu')}"
)


def count(net: nn.Module) -> int:
    return sum(value.numel() for value in net.parameters())


def test_published_parameter_counts() -> None:
    squeeze, inception = SqueezeNet(), FIDInception()
    assert count(squeeze) == 1_248_424
    assert count(squeeze.features) == 735_424
    # torchvision documents 27,161,264; 3,326,696 of them are the auxiliary classifier's, 2,049,000 the classifier's.
    assert count(inception) == 27_161_264 - 3_326_696 - 2_049_000
    assert len([m for m in inception.modules() if isinstance(m, nn.Conv2d)]) == 94
    assert count(SqueezeNet("1.1")) == 1_235_496
    assert count(SqueezeNet("1.1", classifier=False)) == 722_496
    # torchvision documents 61,100,840, 138,357,544 and 143,667,240, with three linear layers each
    assert count(AlexNet()) == 61_100_840 - (9216 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
    linear = (25088 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 1000 + 1000)
    assert count(VGG(16)) == 138_357_544 - linear == 14_714_688
    assert count(VGG(19)) == 143_667_240 - linear == 20_024_384


def test_names_of_the_inception() -> None:
    shapes = {key: tuple(value.shape) for key, value in FIDInception().state_dict().items()}
    assert len(shapes) == 94 * 6  # weight of a convolution, five of its norm and the count of batches, less the bias
    for key, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6c.branch7x7_3.conv.weight": (192, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }.items():
        assert shapes[key] == shape, key


def test_features_of_the_inception() -> None:
    torch.manual_seed(0)
    net = FIDInception().eval()
    sizes: list[tuple[int, ...]] = []
    for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        net.get_submodule(name).register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        out = net(torch.rand(1, 3, 299, 299) * 2 - 1)
    assert out.shape == (1, 2048)
    assert sizes == [(64, 147, 147), (192, 71, 71), (288, 35, 35), (768, 17, 17), (2048, 8, 8)]
    with torch.no_grad():
        small = torch.rand(3, 3, 75, 75) * 2 - 1
        assert torch.allclose(net(small)[1:2], net(small[1:2]), atol=1e-6)


def identity_pool(block: BlockA | BlockC | BlockE, channels: int) -> None:
    """Make the pooled branch pass its first channels through."""
    branch = block.get_submodule("branch_pool")
    with torch.no_grad():
        weight = branch.get_parameter("conv.weight")
        weight.zero_()
        weight[torch.arange(len(weight)), torch.arange(len(weight))] = (1 + 0.001) ** 0.5  # undoes the norm's eps
    assert weight.shape[1] == channels


def test_average_pools_do_not_count_the_padding() -> None:
    """In a constant picture the mean is the constant, at the border too."""
    for block, channels, out in ((BlockA(64, 32), 64, 32), (BlockC(192, 8), 192, 192), (BlockE(192, False), 192, 192)):
        identity_pool(block, channels)
        with torch.no_grad():
            pooled = block.eval()(torch.full((1, channels, 5, 5), 0.75))[:, -out:]
        assert torch.allclose(pooled, torch.tensor(0.75)), type(block)


def test_the_last_block_pools_by_the_maximum() -> None:
    block = BlockE(192, True).eval()
    identity_pool(block, 192)
    x = torch.zeros(1, 192, 5, 5)
    x[:, :, 2, 3] = 1
    with torch.no_grad():
        pooled = block(x)[0, -1]
    expected = torch.zeros(5, 5)
    expected[1:4, 2:5] = 1
    assert torch.allclose(pooled, expected)
    assert FIDInception().Mixed_7c.maximum and not FIDInception().Mixed_7b.maximum


def test_squeezenet() -> None:
    torch.manual_seed(0)
    net = SqueezeNet()
    x = torch.randn(2, 3, 227, 227)
    with torch.no_grad():
        assert net.features(x).shape == (2, 512, 13, 13)
        assert net(x).shape == (2, 1000)
        pooled = net.pooled(x)
        assert pooled.shape == (2, 512) and float(pooled.min()) >= 0
        assert torch.allclose(net.pooled(x[1:]), pooled[1:], atol=1e-6)
    keys = [key for key in net.state_dict() if key.startswith("classifier")]
    assert keys == ["classifier.1.weight", "classifier.1.bias"]
    assert "features.12.expand3x3.bias" in net.state_dict()


# ImageNet's classes: cats and big cats 281 to 293, dogs and wild dogs 151 to 275.
@pytest.mark.parametrize(("kind", "classes"), [("cat", (281, 293)), ("dog", (151, 275))])
def test_squeezenet_sees_what_pictures_show(kind: str, classes: tuple[int, int]) -> None:
    """The weights, the channel order and the means fit together: real animals are seen as what they are."""
    folder = need_shared("data", "faces", "animals_afhq_512", kind)
    weights: Path = need_shared("data", "weights", "squeezenet1_0", "squeezenet1_0_imagenet.npz")
    net = SqueezeNet()
    with np.load(weights) as stored:
        net.load_state_dict({key: torch.from_numpy(stored[key]) for key in stored.files})
    paths = scan(folder).paths
    images: Tensor = torch.stack([to_float(to_tensor(resize(read_image(path), 256))) for path in paths])
    with torch.no_grad():
        seen = net(squeezenet_input(images)).argmax(dim=1)
    right = int(((seen >= classes[0]) & (seen <= classes[1])).sum())
    assert right >= len(paths) - 1, seen.tolist()


# --- taps


def network(name: str) -> Backbone:
    """A backbone with random weights under which maps keep their size."""
    torch.manual_seed(1)
    net = load_backbone(name, pretrained=False)
    with torch.no_grad():
        for key, value in net.named_parameters():
            value.normal_(std=0.1 if key.endswith("bias") else math.sqrt(2.0 / value[0].numel()))
    return net


def test_keys_are_torchvisions() -> None:
    for name, last, shape in (
        ("vgg16", "features.28", (512, 512, 3, 3)),
        ("vgg19", "features.34", (512, 512, 3, 3)),
        ("alexnet", "features.10", (256, 256, 3, 3)),
        ("squeezenet1_1", "features.12.expand3x3", (256, 64, 3, 3)),
    ):
        state = load_backbone(name, pretrained=False).state_dict()
        assert all(key.startswith("features.") for key in state)
        assert list(state)[-2:] == [f"{last}.weight", f"{last}.bias"]
        assert state[f"{last}.weight"].shape == shape
    assert [m.kernel_size for m in VGG(19).features if isinstance(m, nn.Conv2d)] == [(3, 3)] * 16


@pytest.mark.parametrize("name", BACKBONES)
def test_taps_are_the_modules_outputs(name: str) -> None:
    net = network(name).double()
    torch.manual_seed(0)
    x = torch.randn(2, 3, net.smallest + 6, net.smallest + 1, dtype=torch.float64)
    outputs, y = [], net._first(x)
    for module in net.features:
        y = module(y)
        outputs.append(y)
        if len(outputs) > net.last:
            break
    every = net.taps(x, range(net.last + 1))  # also what stands between a convolution and its ReLU
    assert all(torch.equal(a, b) for a, b in zip(every, outputs, strict=True))
    chosen = list(relu_names(net.name).values())[::-1]
    for at, value in zip(chosen, net.taps(x, chosen), strict=True):
        assert torch.allclose(value, outputs[at], rtol=1e-12, atol=1e-12), at
        assert value.shape[1] == net.channels_of(at)
        assert float(value.min()) >= 0 < float(value.max())
    assert [value.shape[0] for value in net.taps(x[:0], chosen)] == [0] * len(chosen)


def test_taps_run_no_further_than_the_last() -> None:
    net = VGG(16)
    for at in range(9, len(net.features)):
        net.features[at].register_parameter("weight", None)  # a convolution with None raises
    assert net.taps(torch.zeros(1, 3, 8, 8), [3, 8])[1].shape == (1, 128, 4, 4)
    with pytest.raises((TypeError, AttributeError)):
        net.taps(torch.zeros(1, 3, 8, 8), [11])


@pytest.mark.parametrize("name", BACKBONES)
def test_the_smallest_side_is_the_smallest(name: str) -> None:
    """One pixel less, and PyTorch's own modules refuse or leave nothing."""
    net = load_backbone(name, pretrained=False)
    for last in {net.last, *list(relu_names(net.name).values())[:5]}:
        side = net.smallest_side(last)
        (out,) = net.taps(torch.zeros(1, 3, side, side + 3), [last])
        assert 0 not in out.shape
        words = f"{net.name}: images of {side + 2} x {side - 1} pixels are too small, expected at least {side} x {side}"
        if side > 1:
            with pytest.raises(ValueError, match=words):
                net.taps(torch.zeros(1, 3, side + 2, side - 1), [last])
            with pytest.raises(RuntimeError):
                net.features[: last + 1](net._first(torch.zeros(1, 3, side - 1, side - 1)))
    assert net.smallest == {"alexnet": 31, "squeezenet1_0": 21, "squeezenet1_1": 17, "vgg19_16x": 32}.get(name, 16)


def test_taps_refuse() -> None:
    net = AlexNet()
    for indices in ([], [13], [-1]):
        with pytest.raises(ValueError, match="alexnet: indices is"):
            net.taps(torch.zeros(1, 3, 64, 64), indices)
    for shape in ((3, 64, 64), (1, 1, 64, 64)):
        with pytest.raises(ValueError, match="expected N,3,H,W"):
            net.taps(torch.zeros(shape), [1])
    with pytest.raises(ValueError, match="expected 16 or 19"):
        VGG(11)
    with pytest.raises(ValueError, match=r"expected '1.0' or '1.1'"):
        SqueezeNet("2")
    with pytest.raises(ValueError, match="unknown backbone 'vgg11'"):
        relu_names("vgg11")


def test_names_of_layers() -> None:
    names = relu_names("vgg19")
    assert [names[f"relu{i}"] for i in ("1_2", "2_2", "3_4", "4_4", "5_4")] == [3, 8, 17, 26, 35]  # BlendGAN's taps
    names = relu_names("vgg16")
    assert [names[f"relu{i}"] for i in ("1_2", "2_2", "3_3", "4_3", "5_3")] == [3, 8, 15, 22, 29]  # LPIPS's
    assert relu_names("random") == names
    assert list(relu_names("vgg19_16x").items())[-1] == ("relu5_1", 29)
    for name in BACKBONES:
        net = load_backbone(name, pretrained=False)
        assert max(relu_names(name).values()) == net.last
        assert all(not isinstance(net.features[at], nn.Conv2d | nn.MaxPool2d) for at in relu_names(name).values())


# --- convolution, bias and ReLU in one


def convolution(channels: int, out: int, **options: object) -> nn.Conv2d:
    torch.manual_seed(2)
    conv = nn.Conv2d(channels, out, **({"kernel_size": 3, "padding": 1} | options))  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.normal_(std=1 / math.sqrt(conv.weight[0].numel()))
        conv.bias.normal_(std=0.1)  # type: ignore[union-attr]
    return conv


def orders(x: Tensor, conv: nn.Conv2d, function: Callable[[Tensor, nn.Conv2d], Tensor]) -> dict[str, Tensor]:
    """The output, its gradients, and those of a penalty of these."""
    x = x.clone().requires_grad_()
    out = function(x, conv)
    torch.manual_seed(3)
    grad = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    leaves = {"x": x, "weight": conv.weight, "bias": conv.bias}
    first = torch.autograd.grad((out * grad).sum(), list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), [x, conv.weight], materialize_grads=True)
    found = {"out": out} | {f"d {name}": value for name, value in zip(leaves, first, strict=True)}
    return found | {f"d2 {name}": value for name, value in zip(("x", "weight"), second, strict=True)}


def plainly(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.relu(conv(x))


def called(function: Callable[[], Tensor]) -> bool:
    """Whether modulated_conv2d's compiled kernels ran."""
    with CalledOps() as ops:
        function()
    return "modulated_conv2d" in ops.names


@needs_native
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(2, 3, 90, 83, 300), (1, 35, 37, 41, 160), (5, 64, 13, 14, 150)], ids=str)
def test_conv_relu_on_winograds_kernels(shape: tuple[int, ...], channels_last: bool) -> None:
    """Held to float64: twice PyTorch's own error, and the rounding of Winograd's sums (see `amplification`)."""
    images, channels, rows, columns, out = shape
    conv = convolution(channels, out)
    # values stay away from 0, where rounding would decide about the ReLU
    bias = torch.where(torch.arange(out) % 2 == 0, 6.0, -6.0) + conv.bias.detach()  # type: ignore[operator]
    conv.bias = nn.Parameter(bias)
    torch.manual_seed(0)
    x = torch.randn(images, channels, rows, columns).clamp(-2.5, 2.5)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    truth = orders(x.double(), copy.deepcopy(conv).double(), plainly)
    values = truth["out"].detach()
    assert 0.4 < float((values > 0).double().mean()) < 0.6 and float(values[values > 0].min()) > 1e-3
    assert called(lambda: conv_relu(x, conv))
    got, plain = orders(x, conv, conv_relu), orders(x, conv, plainly)
    form = torch.channels_last if channels_last else torch.contiguous_format
    assert got["out"].is_contiguous(memory_format=form)
    eps = torch.finfo(torch.float32).eps
    for name, expected in truth.items():
        taps = {"d weight": images * rows * columns, "d bias": images * rows * columns}.get(name, 9 * channels)
        scale = float(expected.detach().abs().max()) * math.sqrt(taps) * amplification("winograd", 1)
        error = float((got[name] - expected).detach().abs().max())
        rounding = float((plain[name] - expected).detach().abs().max())
        assert error <= 2 * rounding + eps * scale, (name, error, rounding, eps * scale)


def test_conv_relu_elsewhere_is_pytorchs() -> None:
    """In float64, with other strides, sizes and padding, where maps are few, and on another backend."""
    torch.manual_seed(0)
    x = torch.randn(2, 48, 40, 44)
    for options in ({"stride": 2}, {"padding": 0}, {"kernel_size": 1, "padding": 0}, {"kernel_size": 5, "padding": 2},
                    {"padding_mode": "reflect"}, {"groups": 2}, {"dilation": 2, "padding": 2}):  # fmt: skip
        conv = convolution(48, 64, **options)
        assert not called(lambda conv=conv: conv_relu(x, conv)), options  # type: ignore[misc]
        assert torch.equal(conv_relu(x, conv), plainly(x, conv)), options
    conv = convolution(48, 64)
    for small in (x[:1, :, :4, :4], x[:0], x[:, :, :16, :16]):
        assert not called(lambda small=small: conv_relu(small, conv))  # type: ignore[misc]
    with anifast.use_backend("reference"):
        assert not called(lambda: conv_relu(x, conv))
        assert torch.equal(conv_relu(x, conv), plainly(x, conv))
    with torch.autocast("cpu", torch.bfloat16):
        out = conv_relu(x, conv)
        assert not called(lambda: conv_relu(x, conv)) and out.dtype == torch.bfloat16
        assert torch.equal(out, plainly(x, conv))
    half = copy.deepcopy(conv).bfloat16()
    assert not called(lambda: conv_relu(x.bfloat16(), half))
    double = copy.deepcopy(conv).double()
    ours, theirs = (orders(x.double(), double, function) for function in (conv_relu, plainly))
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-12, atol=1e-12) for name in ours)


def test_conv_relu_in_transforms_and_modes() -> None:
    torch.manual_seed(0)
    conv, x = convolution(16, 40), torch.randn(2, 16, 80, 80)
    expected = plainly(x, conv)
    scale = float(expected.detach().abs().max())
    allowed = torch.finfo(torch.float32).eps * scale * math.sqrt(9 * 16) * amplification("winograd", 1)

    def near(found: Tensor, wanted: Tensor) -> bool:
        return float((found - wanted).detach().abs().max()) <= allowed

    with torch.inference_mode():
        assert near(conv_relu(x, conv), expected)
    torch.compiler.reset()
    compiled = torch.compile(conv_relu, fullgraph=True, backend="aot_eager")
    assert near(compiled(x, conv), expected)
    assert near(torch.func.vmap(lambda one: conv_relu(one[None], conv)[0])(x), expected)
    gradient = torch.func.grad(lambda given: conv_relu(given, conv).square().sum() / 1000)(x)
    again = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(plainly(again, conv).square().sum() / 1000, again)
    assert near(gradient, wanted)


# --- what pictures go through before


def test_normalisations() -> None:
    """The corners of the range, each network's way."""
    colours = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])[:, :, None, None]  # red 1, green 0, blue 1/2; black
    expected = {
        "raw": [[1, -1, 0], [-1, -1, -1]],
        "unit": [[1, 0, 0.5], [0, 0, 0]],
        "imagenet": [
            [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.5 - 0.406) / 0.225],
            [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        ],
        "caffe": [[127.5 - 104, -117, 255 - 123], [-104, -117, -123]],
    }
    assert set(expected) == set(NORMALISATIONS)
    for wants, values in expected.items():
        module = Normalisation(wants)
        wanted = torch.tensor(values, dtype=torch.float64)
        assert torch.allclose(module(colours)[:, :, 0, 0].double(), wanted, rtol=1e-5, atol=1e-5), wants
        assert not module.state_dict()
        # rounded constants would move pictures: the type stays
        half = Normalisation(wants).to(torch.bfloat16)
        assert half.shift.dtype == torch.float32 and torch.equal(half(colours), module(colours))
        rounded = half(colours.bfloat16())
        assert rounded.dtype == torch.float32 and torch.equal(rounded, module(colours.bfloat16().float()))
        assert module(colours.double()).dtype == torch.float64
    assert torch.equal(VGG(16).prepare(colours), Normalisation("imagenet")(colours))
    assert torch.equal(VGG19Compressed().prepare(colours), Normalisation("unit")(colours))


# --- weights


@pytest.fixture
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights but those that a test puts into the hub's folder, which it gets; no network."""
    monkeypatch.delenv("ANIFAST_WEIGHTS", raising=False)
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "no shared folder"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "hub" / "checkpoints"


def alexnet_file(path: Path) -> AlexNet:
    """A file in torchvision's format, with a classifier."""
    torch.manual_seed(5)
    net = AlexNet()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict() | {"classifier.1.weight": torch.zeros(4, 4)}, path)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    extra = [state.pop("_extra_state", None) for state in states]
    return (
        states[0].keys() == states[1].keys()
        and extra[0] == extra[1]
        and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    )


def test_torchvisions_files(nothing_around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = alexnet_file(tmp_path / "alexnet.pth")
    loaded = load_backbone("alexnet", weights=tmp_path / "alexnet.pth")
    assert same(loaded, net) and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.fingerprint() == net.fingerprint() and loaded.normalisation == "imagenet"
    with torch.no_grad():
        net.features[0].bias.add_(1)  # type: ignore[union-attr,operator]
    assert loaded.fingerprint() != net.fingerprint()
    # the same weights by the names that LPIPS and BlendGAN give them
    state = loaded.state_dict()
    for prefix in ("net.slice3.", "embedder.feature_extractor.vgg_layers.", "feature_extractor.features."):
        torch.save({prefix + key.removeprefix("features."): value for key, value in state.items()}, tmp_path / "o.pth")
        assert same(load_backbone("alexnet", weights=tmp_path / "o.pth"), loaded)
    # where weights are usually kept
    for folder in (tmp_path / "mine", nothing_around):
        monkeypatch.setenv("ANIFAST_WEIGHTS", str(tmp_path / "mine"))
        saved = alexnet_file(folder / "alexnet-owt-7be5be79.pth")
        assert same(load_backbone("alexnet"), saved)
        (folder / "alexnet-owt-7be5be79.pth").unlink()
    saved = alexnet_file(nothing_around / "alexnet-owt-4df8aa71.pth")  # by its older name
    assert same(load_backbone("alexnet"), saved)


def test_downloads(nothing_around: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, dst: str, hash_prefix: str, progress: bool) -> None:
        assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
        assert Path(dst) == nothing_around / "alexnet-owt-7be5be79.pth" and hash_prefix == "7be5be79" and progress
        alexnet_file(Path(dst))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first = load_backbone("alexnet")
    monkeypatch.delattr(torch.hub, "download_url_to_file")
    assert same(load_backbone("alexnet"), first)  # the second time from the folder


def test_the_hash_of_a_download_is_checked(
    nothing_around: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch itself: another file is not kept."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "source.pth").write_bytes(b"something else")
    url = (tmp_path / "source.pth").as_uri()
    with pytest.raises(AnifastError, match=r"cannot be downloaded \(invalid hash value") as caught:
        weights.download(url, "a.pth", "7be5be79", "weights of a network")
    assert url in str(caught.value) and str(nothing_around / "a.pth") in str(caught.value)
    assert not list(nothing_around.iterdir())
    right = weights.digest(tmp_path / "source.pth")
    assert weights.download(url, "a.pth", right[:8], "weights").read_bytes() == b"something else"


URLS = {
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "alexnet": "alexnet-owt-7be5be79.pth",
    "squeezenet1_0": "squeezenet1_0-b66bff10.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
}


@pytest.mark.parametrize("name", URLS)
def test_no_weights_and_no_network(name: str, nothing_around: Path) -> None:
    with pytest.raises(AnifastError) as caught:
        load_backbone(name)
    said = str(caught.value)
    for word in (f"https://download.pytorch.org/models/{URLS[name]}", str(nothing_around / URLS[name]), "no network",
                 "ANIFAST_WEIGHTS"):  # fmt: skip
        assert word in said, said


def refused(name: str, **options: object) -> str:
    with pytest.raises(AnifastError) as caught:
        load_backbone(name, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_other_files_are_refused(nothing_around: Path, tmp_path: Path) -> None:
    assert "there are vgg16, vgg19, alexnet" in refused("resnet")
    assert "no such file" in refused("vgg16", weights=tmp_path / "no.pth")
    assert "5SE.pth" in refused("vgg19_16x") and "ANIFAST_WEIGHTS" in refused("vgg19_16x")
    assert "takes no file" in refused("random", weights=tmp_path)
    path = tmp_path / "w.pth"
    alexnet_file(path)
    said = refused("vgg16", weights=path)
    assert "features.2.weight is missing" in said and "torchvision's ImageNet weights of VGG-16" in said
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged" in refused("alexnet", weights=path)
    torch.save({"model": {"conv11.weight": torch.zeros(24, 3, 3, 3)}}, path)
    said = refused("vgg19_16x", weights=path)
    assert "conv0.weight is missing" in said and "5SE.pth" in said
    torch.save([1], path)
    assert "holds a list" in refused("alexnet", weights=path)


def test_random_weights_are_the_same_everywhere() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    net = load_backbone("random")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert same(load_backbone("random"), net)
    assert net.fingerprint().startswith("17d3c92f296f67b3")
    for module in net.features:
        if isinstance(module, nn.Conv2d):
            root = math.sqrt(2 / (9 * module.in_channels))
            spread = 4 / math.sqrt(2 * module.weight.numel())  # four standard errors
            assert abs(float(module.weight.std()) / root - 1) < spread
            assert not module.bias.any()  # type: ignore[union-attr]


def test_the_compressed_vgg(tmp_path: Path) -> None:
    """Real weights, from the folder, the file and the usual place; its maps are those of the published layers."""
    folder = need_shared("data", "weights", "vgg19_16x")
    net = load_backbone("vgg19_16x", weights=folder)
    assert same(net, load_backbone("vgg19_16x", weights=folder / "5SE.pth"))
    assert "other weights" in refused("vgg19_16x", weights=folder / "4SE.pth")
    state = torch.load(folder / "5SE.pth", map_location="cpu", weights_only=True)["model"]
    images = torch.rand(1, 3, 48, 40)
    x = F.conv2d(images, state["conv0.weight"], state["conv0.bias"])
    expected = []
    for block, count in enumerate((2, 2, 4, 4, 1), 1):
        for i in range(1, count + 1):
            padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
            x = F.relu(F.conv2d(padded, state[f"conv{block}{i}.weight"], state[f"conv{block}{i}.bias"]))
            expected.append(x)
        x = F.max_pool2d(x, 2)
    found = net.taps(net.prepare(images * 2 - 1), list(relu_names("vgg19_16x").values()))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.max()))
    # published: the first layer makes Caffe's input, blue first, less the means
    black = net.conv0(torch.zeros(1, 3, 1, 1)).flatten()
    assert torch.allclose(black, torch.tensor([-104.0, -117.0, -123.0]), atol=0.5)


def test_caffes_squeezenet(monkeypatch: pytest.MonkeyPatch, nothing_around: Path) -> None:
    path = need_shared("data", "weights", "squeezenet1_0", "squeezenet1_0_imagenet.npz")
    net = load_backbone("squeezenet1_0", weights=path)
    assert net.normalisation == "caffe" and not hasattr(net, "classifier")
    monkeypatch.setenv("ANIFAST_WEIGHTS", str(path.parent))
    assert same(load_backbone("squeezenet1_0"), net) and load_backbone("squeezenet1_0").normalisation == "caffe"
    images = torch.rand(1, 3, 227, 227) * 2 - 1
    assert torch.equal(net.prepare(images), squeezenet_input(images))


def test_what_weights_want_is_in_their_state_dict(tmp_path: Path) -> None:
    path = need_shared("data", "weights", "squeezenet1_0", "squeezenet1_0_imagenet.npz")
    caffe = load_backbone("squeezenet1_0", weights=path)
    torch.save(caffe.state_dict(), tmp_path / "caffe.pth")
    state = torch.load(tmp_path / "caffe.pth", weights_only=True)
    other = load_backbone("squeezenet1_0", pretrained=False)
    plain = other.state_dict()
    assert "_extra_state" not in plain
    other.load_state_dict(state)
    assert other.normalisation == "caffe" and same(other, caffe)
    images = torch.rand(1, 3, 40, 40) * 2 - 1
    assert torch.equal(other.prepare(images), caffe.prepare(images))
    assert same(load_backbone("squeezenet1_0", weights=tmp_path / "caffe.pth"), caffe)
    other.load_state_dict({}, strict=False)
    assert other.normalisation == "caffe"  # no weights came
    other.load_state_dict(plain)  # as torchvision's: without a word about it
    assert other.normalisation == "imagenet"
    with pytest.raises(AnifastError, match="expected a normalisation"):
        other.load_state_dict(plain | {"_extra_state": {"normalisation": "bgr"}})
    # other networks' .npz are torchvision's
    net = load_backbone("squeezenet1_1", pretrained=False)
    np.savez(tmp_path / "w.npz", **{key: value.numpy() for key, value in net.state_dict().items()})
    assert load_backbone("squeezenet1_1", weights=tmp_path / "w.npz").normalisation == "imagenet"


def test_published_weights_are_known_by_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_around: Path
) -> None:
    for name, file in (("squeezenet1_0", "squeezenet1_0_imagenet.npz"), ("vgg19_16x", "5SE.pth")):
        path = need_shared("data", "weights", name, file)
        net = load_backbone(name, weights=path)
        assert net.is_published()
        assert copy.deepcopy(net).bfloat16().is_published()
        other = load_backbone(name, pretrained=False)
        assert not other.is_published()
        other.load_state_dict(net.state_dict())
        assert not other.is_published()  # no file to hold it against
        monkeypatch.setenv("ANIFAST_WEIGHTS", str(path.parent))
        assert other.is_published()
        monkeypatch.delenv("ANIFAST_WEIGHTS")
        usual, net.normalisation = net.normalisation, "raw"
        assert not net.is_published()
        net.normalisation = usual
        assert net.is_published()
        with torch.no_grad():
            net.features[0].bias[0] += 1e-3  # type: ignore[index,operator]
        assert not net.is_published()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        net = load_backbone("random").to(dtype)
        assert net.is_published()
        net.features[0].bias[0] = 1  # type: ignore[index,operator]
        assert not net.is_published()
    alexnet_file(tmp_path / "alexnet-owt-7be5be79.pth")  # the name is right and the hash is not
    assert not load_backbone("alexnet", weights=tmp_path / "alexnet-owt-7be5be79.pth").is_published()


def test_files_of_two_networks_and_of_data_parallel(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    net = load_backbone("squeezenet1_1", pretrained=False)
    state = net.state_dict()
    torch.save(
        {f"module.{key}": value for key, value in (state | {"classifier.1.weight": torch.ones(2)}).items()}, path
    )
    assert same(load_backbone("squeezenet1_1", weights=path), net)
    torch.save({f"{one}.{key}": value for one in ("a", "b") for key, value in state.items()}, path)
    assert "both a.features.0.weight and b.features.0.weight" in refused("squeezenet1_1", weights=path)


def test_pages_and_folders_for_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"<html>Not found</html>")
    said = refused("vgg16", weights=path)
    assert "damaged, or no PyTorch weights" in said and "weights_only" not in said
    assert "Delete it, and get torchvision's" in said and "vgg16-397923af.pth" in said
    assert "is a folder, expected a file" in refused("vgg16", weights=tmp_path)


def test_defaults_of_torch_do_not_matter() -> None:
    path = need_shared("data", "weights", "squeezenet1_0", "squeezenet1_0_imagenet.npz")
    with torch.device("meta"):
        nets = [load_backbone("squeezenet1_0", weights=path), load_backbone("random")]
    torch.set_default_dtype(torch.float64)
    try:
        nets += [load_backbone("alexnet", pretrained=False), load_backbone("random")]
        conv, x = convolution(16, 40).float(), torch.rand(2, 16, 80, 80, dtype=torch.float32)
        assert conv_relu(x, conv).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    for net in nets:
        tensors = [*net.parameters(), *net.buffers()]
        assert all(value.device.type == "cpu" and value.dtype == torch.float32 for value in tensors)


def test_loaded_in_inference_mode_it_can_be_trained() -> None:
    with torch.inference_mode():
        nets = [load_backbone("random"), load_backbone("alexnet", pretrained=False)]
    for net in nets:
        assert not any(value.is_inference() for value in (*net.parameters(), *net.buffers()))
