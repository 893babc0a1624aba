"""StyleGAN2's layers and networks: formulas, choices of latents and noise, bad input, half types, ONNX."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import anifast
from anifast.nn.stylegan2 import Discriminator, DiscriminatorTrunk, Generator, Synthesis, channels
from anifast.nn.stylegan2_layers import (
    ConvLayer,
    EqualLinear,
    ModulatedConv2d,
    PixelNorm,
    ResBlock,
    StyledConv,
    ToRGB,
    Upsample,
    batch_std,
    minibatch_std,
    modulate,
)

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])).double() / 64


def small(size: int = 16, **options: Any) -> Generator:
    """A generator of few channels, with noise that has a strength and biases that are not 0."""
    torch.manual_seed(0)
    net = Generator(size, 24, 2, 1, base_channels=12, **options)
    for name, value in net.named_parameters():
        if name.endswith(("noise.weight", "activate.bias")) or (name.startswith("to_rgb") and name.endswith("b.bias")):
            nn.init.normal_(value, std=0.3)
    return net


def leaky(x: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    return gain * F.leaky_relu(x, 0.2)


def blurred(x: Tensor, pad: tuple[int, int]) -> Tensor:
    x = F.pad(x, (*pad, *pad))
    return F.conv2d(x.flatten(0, 1)[:, None], FIR[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


# layers


@pytest.mark.parametrize("act", [False, True])
def test_equal_linear(act: bool) -> None:
    torch.manual_seed(0)
    layer = EqualLinear(6, 5, bias_init=2.0, lr_mul=0.01, act=act).double()
    assert layer.weight.std() > 30 and torch.equal(layer.bias, torch.full((5,), 2.0, dtype=torch.double))
    x = torch.randn(3, 6).double()
    expected = x @ (layer.weight * 0.01 / math.sqrt(6)).t() + 0.01 * layer.bias
    torch.testing.assert_close(layer(x), leaky(expected) if act else expected)


def test_pixel_norm() -> None:
    x = torch.randn(3, 7, 2, 2).double()
    torch.testing.assert_close(PixelNorm()(x), x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt())


def test_upsample() -> None:
    """Per axis y[2m] = x[m-1] / 4 + 3 x[m] / 4 and y[2m+1] = 3 x[m] / 4 + x[m+1] / 4, with zeros outside."""
    x, add = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 8, 10).double()

    def along(x: Tensor, dim: int) -> Tensor:
        x = x.movedim(dim, 0)
        zero = torch.zeros_like(x[:1])
        before, behind = torch.cat([zero, x[:-1]]), torch.cat([x[1:], zero])
        return torch.stack([before / 4 + 3 * x / 4, 3 * x / 4 + behind / 4], 1).flatten(0, 1).movedim(0, dim)

    torch.testing.assert_close(Upsample((1, 3, 3, 1)).double()(x, add=add), along(along(x, 2), 3) + add)


@pytest.mark.parametrize("size", [(8, 8), (5, 6), (2, 9)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_down_sampling_convolution_is_a_blur_and_a_stride(kernel: int, size: tuple[int, int]) -> None:
    """Values and gradients, also where the skip decimates before its convolution."""
    torch.manual_seed(0)
    layer = ConvLayer(3, 4, kernel, down=True, act=kernel == 3, bias=False).double()
    x = torch.randn(2, 3, *size).double().requires_grad_()
    weight = layer.conv.weight
    pad = (2, 2) if kernel == 3 else (1, 1)
    expected = F.conv2d(blurred(x, pad), weight / math.sqrt(3 * kernel**2), stride=2)
    if kernel == 3:
        nn.init.normal_(layer[2].bias)
        expected = leaky(expected + layer[2].bias[:, None, None])
    found = layer(x)
    assert found.shape[2:] == (size[0] // 2, size[1] // 2)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * probe).sum(), [x, weight]),
        torch.autograd.grad((expected * probe).sum(), [x, weight]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_residual_blocks() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6).double()
    for block in (ResBlock(4, 5), ResBlock(4, 4, down=False), ResBlock(4, 5, down=False)):
        block.double()
        skip = x if block.skip is None else block.skip(x)
        torch.testing.assert_close(block(x), (block.conv2(block.conv1(x)) + skip) / math.sqrt(2))
    assert "skip.0.weight" in block.state_dict() and not any("bias" in key for key in block.skip.state_dict())


def test_logits_have_a_bias() -> None:
    layer = ConvLayer(3, 1, 1, act=False)
    assert list(layer.state_dict()) == ["0.weight", "0.bias"]
    nn.init.ones_(layer.conv.bias)
    assert torch.equal(layer(torch.zeros(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("batch", "group", "size"), [(1, 4, 1), (4, 4, 4), (8, 4, 4), (6, 4, 3), (5, 4, 1), (6, None, 6)]
)
@pytest.mark.parametrize("shape", [(3, 2, 2), (5,)])
def test_minibatch_std(batch: int, group: int | None, size: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(batch, *shape).double()
    found = minibatch_std(x, group)
    assert found.shape == (batch, shape[0] + 1, *shape[1:]) and torch.equal(found[:, :-1], x)
    groups = batch // size
    for n in range(batch):
        members = x[n % groups :: groups]
        assert len(members) == size
        deviation = (members - members.mean(0)).square().mean(0).add(1e-8).sqrt().mean()
        torch.testing.assert_close(found[n, -1], deviation.expand(shape[1:]))
    if size == 1:
        torch.testing.assert_close(found[:, -1], torch.full_like(found[:, -1], 1e-4))


def test_batch_std() -> None:
    x = torch.randn(5, 3).double()
    expected = (x.var(0, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(batch_std(x), expected.expand(5, 3))


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.name() for word in ("addmm", "bmm", "::mm", "linear")):
            self.names.append(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def test_styles_of_a_network_are_one_product() -> None:
    net = small().double()
    layers, slots = net.modulations(), net.slots()
    assert slots == [0, 1, 1, 2, 3, 3, 4, 5] and net.n_latent == 6 == max(slots) + 1
    w = torch.randn(3, 24).double().requires_grad_()
    plus = torch.randn(3, net.n_latent, 24).double().requires_grad_()
    with Products() as products:
        shared = modulate(layers, w)
        assert products.names == ["addmm"]
        own = modulate(layers, plus, slots)
        assert products.names == ["addmm", "baddbmm"]
    for layer, slot, one, other in zip(layers, slots, shared, own, strict=True):
        for found, latent in ((one, w), (other, plus[:, slot])):
            expected = layer(latent)
            torch.testing.assert_close(found, expected)
            probe = torch.randn_like(found)
            source = w if latent is w else plus
            wrt = [source, layer.weight, layer.bias]
            gradients = torch.autograd.grad((found * probe).sum(), wrt, retain_graph=True)
            for mine, theirs in zip(gradients, torch.autograd.grad((expected * probe).sum(), wrt), strict=True):
                torch.testing.assert_close(mine, theirs)


def test_style_before_or_behind_its_affine_layer() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 5, 7), torch.randn(2, 6)
    layers = (StyledConv(4, 3, 3, 6, up=True, noise=False), ToRGB(4, 6, up=False), ModulatedConv2d(4, 3, 3, 6))
    for layer in layers:
        conv = layer if isinstance(layer, ModulatedConv2d) else layer.conv
        assert torch.equal(layer(x, w), layer(x, style=modulate([conv.modulation], w)[0]))
        with pytest.raises(ValueError, match="either w or style"):
            layer(x)


def test_noise_of_a_layer() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 5, 7), torch.randn(2, 6)
    layer = StyledConv(4, 3, 3, 6, up=True)
    noise = torch.randn(1, 1, 10, 14)
    assert torch.equal(layer(x, w, noise), layer(x, w)), "the strength begins at 0"
    nn.init.constant_(layer.noise.weight, 0.5)
    torch.manual_seed(1)
    drawn = layer(x, w)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, layer(x, w, torch.randn(2, 1, 10, 14)))
    assert not torch.equal(drawn, layer(x, w))
    plain = StyledConv(4, 3, 3, 6, noise=False)
    assert not any("noise" in key for key in plain.state_dict())
    with pytest.raises(ValueError, match="noise=False"):
        plain(x, w, noise)


@pytest.mark.parametrize("clamp", [None, 0.25])
def test_clamp(clamp: float | None) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 6, 6), torch.randn(2, 6)
    made = [
        ConvLayer(4, 5, 3, clamp=clamp)(x),
        ConvLayer(4, 5, 3, down=True, clamp=clamp)(x),
        StyledConv(4, 5, 3, 6, clamp=clamp)(x, w),
        ToRGB(4, 6, up=False, clamp=clamp)(x, w),
        math.sqrt(2) * ConvLayer(4, 5, 3, clamp=clamp)(x, gain=1.0),
    ]
    for out in made:
        largest = float(out.detach().abs().max())
        assert largest == pytest.approx(clamp) if clamp else largest > 0.25


# the generator


def test_published_parameter_counts() -> None:
    for size, synthesis, judge in (
        (256, 27_933_090, 28_864_129),
        (512, 28_175_335, 28_982_849),
        (1024, 28_268_812, 29_012_513),
    ):
        with torch.device("meta"):
            net, judge_net = Generator(size), Discriminator(size)
        of_mapping = sum(value.numel() for value in net.style.parameters())
        assert of_mapping == 2_101_248
        assert sum(value.numel() for value in net.parameters()) - of_mapping == synthesis
        assert sum(value.numel() for value in judge_net.parameters()) == judge
        assert net.n_latent == 2 * int(math.log2(size)) - 2 and len(list(net.noises.buffers())) == net.n_latent - 1
    assert [channels(side, 2) for side in (4, 32, 64, 128, 256, 512, 1024)] == [512, 512, 512, 256, 128, 64, 32]
    assert [channels(side, 1) for side in (4, 32, 64, 128, 256)] == [512, 512, 256, 128, 64]


def test_latents() -> None:
    net = small()
    z, other, noise = torch.randn(2, 24), torch.randn(2, 24), net.make_noise()
    w, v = net.get_latent(z), net.get_latent(other)

    def image(*styles: Tensor, **options: Any) -> Tensor:
        return net(list(styles), noise=noise, **options)[0]

    plain = image(z)
    assert plain.shape == (2, 3, 16, 16)
    assert torch.equal(plain, net(z, noise=noise)[0])
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, image(w, input_is_latent=True), **close)
    plus = w[:, None].repeat(1, 6, 1)
    torch.testing.assert_close(plain, image(plus, input_is_latent=True), **close)
    torch.testing.assert_close(plain, image(z, other, inject_index=6), **close)
    torch.testing.assert_close(image(other), image(z, other, inject_index=0), **close)
    plus[:, 2:] = v[:, None]
    mixed = image(z, other, inject_index=2)
    torch.testing.assert_close(mixed, image(plus, input_is_latent=True), **close)
    assert not torch.allclose(mixed, plain, **close)
    mean = net.mean_latent(64)
    assert mean.shape == (1, 24) and not mean.requires_grad
    truncated = image(z, truncation=0.5, truncation_latent=mean)
    torch.testing.assert_close(truncated, image(mean + 0.5 * (w - mean), input_is_latent=True), **close)
    both = image(z, other, inject_index=2, truncation=0.5, truncation_latent=mean)
    torch.testing.assert_close(both, image(mean[:, None] + 0.5 * (plus - mean[:, None]), input_is_latent=True), **close)


def test_crossover_is_drawn_inside() -> None:
    net = small(8)
    torch.manual_seed(0)
    a, b = torch.zeros(1, 24), torch.ones(1, 24)
    found = set()
    for _ in range(40):
        latents = net([a, b], input_is_latent=True, return_latents=True)[1]
        found.add(int((latents[0, :, 0] == 0).sum()))
    assert found == {1, 2, 3}, "of four slots"


def test_image_has_its_gradient_from_the_returned_latents() -> None:
    net = small(8)
    image, latents = net(torch.randn(2, 24), return_latents=True)
    assert latents.shape == (2, 4, 24)
    (gradient,) = torch.autograd.grad(image.sum(), latents)
    assert (gradient.abs().sum((0, 2)) > 0).all()
    assert net(torch.randn(2, 24))[1] is None


def test_noise_of_a_network() -> None:
    net = small()
    z = torch.randn(1, 24).repeat(2, 1)
    fixed = net(z, randomize_noise=False)[0]
    assert torch.equal(fixed, net(z, randomize_noise=False)[0])
    assert torch.equal(fixed, net(z, noise=list(net.noises.buffers()))[0])
    torch.testing.assert_close(fixed[0], fixed[1])
    drawn = net(z)[0]
    assert not torch.allclose(drawn[0], drawn[1]), "each sample has its own"
    assert not torch.equal(drawn, net(z)[0])
    partly = net.make_noise()
    assert [noise.shape[-1] for noise in partly] == [4, 8, 8, 16, 16]
    assert net(z, noise=[None, *partly[1:]])[0].shape == drawn.shape


# both


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    net, judge = small(8), Discriminator(8, base_channels=12)
    image, latents = net(torch.randn(batch, 24), return_latents=True)
    assert image.shape == (batch, 3, 8, 8) and latents.shape == (batch, 4, 24)
    logits = judge(image)
    assert logits.shape == (batch, 1)
    logits.sum().backward()
    for owner in (net, judge):
        for name, value in owner.named_parameters():
            assert value.grad is not None and value.grad.isfinite().all(), name
    assert batch_std(torch.randn(batch, 5)).shape == (batch, 5)


def test_small_and_oblong_maps() -> None:
    torch.manual_seed(0)
    w = torch.randn(2, 6)
    assert StyledConv(4, 3, 3, 6)(torch.randn(2, 4, 1, 1), w).shape == (2, 3, 1, 1)
    assert StyledConv(4, 3, 3, 6, up=True)(torch.randn(2, 4, 1, 3), w).shape == (2, 3, 2, 6)
    assert ToRGB(4, 6)(torch.randn(2, 4, 2, 6), w, torch.randn(2, 3, 1, 3)).shape == (2, 3, 2, 6)
    assert ConvLayer(4, 3, 3)(torch.randn(2, 4, 1, 1)).shape == (2, 3, 1, 1)
    assert ResBlock(4, 3)(torch.randn(2, 4, 2, 7)).shape == (2, 3, 1, 3)
    with pytest.raises(ValueError, match="1 x 4 pixels cannot be halved"):
        ResBlock(4, 3)(torch.randn(2, 4, 1, 4))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "width of z": (lambda: small(8)(torch.zeros(2, 25)), r"z has shape \(2, 25\), expected \[N, 24\]"),
    "rank of z": (lambda: small(8)(torch.zeros(2, 4, 24)), "z has shape"),
    "width of w": (lambda: small(8)(torch.zeros(2, 25), input_is_latent=True), "a latent has shape"),
    "slots of W+": (lambda: small(8)(torch.zeros(2, 5, 24), input_is_latent=True), r"or \[N, 4, 24\]"),
    "three styles": (lambda: small(8)([torch.zeros(1, 24)] * 3), "two of one batch"),
    "no styles": (lambda: small(8)([]), "two of one batch"),
    "batches to mix": (lambda: small(8)([torch.zeros(1, 24), torch.zeros(2, 24)]), "two of one batch"),
    "crossover": (lambda: small(8)([torch.zeros(1, 24)] * 2, inject_index=5), "must lie in 0 to 4, got 5"),
    "truncation": (lambda: small(8)(torch.zeros(1, 24), truncation=0.5), "needs truncation_latent"),
    "noise maps": (lambda: small(8)(torch.zeros(1, 24), noise=[None]), "noise has 1 maps, expected 3"),
    "noise size": (
        lambda: small(8)(torch.zeros(1, 24), noise=[torch.zeros(1, 1, 5, 5), None, None]),
        "noise has shape",
    ),
    "size of G": (lambda: Generator(24), "size must be 4 times a power of 2 and at least 8, got 24"),
    "size of D": (lambda: Discriminator(4), "size must be 4 times"),
    "channels": (lambda: Discriminator(8, base_channels=4)(torch.zeros(1, 1, 8, 8)), r"expected \[N, 3, 8, 8\]"),
    "oblong": (lambda: Discriminator(8, base_channels=4)(torch.zeros(1, 3, 8, 16)), "Discriminator: x has shape"),
    "layer's channels": (lambda: ConvLayer(4, 3, 3)(torch.zeros(1, 5, 8, 8)), r"expected \[N, 4, height, width\]"),
    "linear": (lambda: EqualLinear(4, 3)(torch.zeros(1, 5)), r"expected \[N, 4\]"),
    "style": (lambda: StyledConv(4, 3, 3, 6)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 5)), r"expected \[N, 6\]"),
    "batch of w": (lambda: StyledConv(4, 3, 3, 6)(torch.zeros(1, 4, 8, 8), torch.zeros(2, 6)), "style has shape"),
    "missing skip": (lambda: ToRGB(4, 6)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 6)), "up=True"),
    "size of the skip": (
        lambda: ToRGB(4, 6)(torch.zeros(1, 4, 8, 8), torch.zeros(1, 6), torch.zeros(1, 3, 8, 8)),
        "add has shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_layouts_agree() -> None:
    torch.manual_seed(0)
    judge = Discriminator(16, base_channels=12)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(judge(x), judge(x.to(memory_format=torch.channels_last)), rtol=1e-4, atol=1e-5)


# state dicts


def test_kernels_in_state_dicts() -> None:
    net, judge = small(8), Discriminator(8, base_channels=12)
    state = net.state_dict()
    torch.testing.assert_close(state["convs.0.conv.blur.kernel"], FIR.float() * 4, rtol=0, atol=0)
    torch.testing.assert_close(state["to_rgbs.0.upsample.kernel"], FIR.float() * 4, rtol=0, atol=0)
    torch.testing.assert_close(judge.state_dict()["convs.1.skip.0.kernel"], FIR.float(), rtol=0, atol=0)
    assert not any("taps" in key for key in state)

    bare = {key: value for key, value in state.items() if "kernel" not in key}
    other = small(8)
    nn.init.zeros_(other.input.input)
    assert other.load_state_dict(bare) == ([], [])
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())
    half = {key: value.bfloat16() for key, value in state.items()}
    other.load_state_dict(half)
    assert torch.equal(other.state_dict()["convs.0.conv.blur.kernel"], state["convs.0.conv.blur.kernel"])

    for wrong in (FIR / 4, torch.ones(4, 4) / 4, torch.ones(3, 3) / 9 * 4):
        with pytest.raises(RuntimeError, match=r"to_rgbs.0.upsample.kernel is another FIR filter .*blur_kernel"):
            other.load_state_dict({**state, "to_rgbs.0.upsample.kernel": wrong.float()})
    asked = Generator(8, 24, 2, 1, (1, 2, 1), base_channels=12)
    with pytest.raises(RuntimeError, match="another FIR filter"):
        asked.load_state_dict(state)


def test_copies_are_networks_of_their_own() -> None:
    net = small(8)
    twin = copy.deepcopy(net)
    nn.init.zeros_(net.input.input)
    twin.load_state_dict({key: value for key, value in net.state_dict().items() if "kernel" not in key})
    z = torch.randn(1, 24)
    assert torch.equal(net(z, randomize_noise=False)[0], twin(z, randomize_noise=False)[0])


def shapes(net: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in net.state_dict().items()}


def test_keys_of_systems_that_build_on_this(golden: Callable[[str], Any]) -> None:
    """The decoder of GANs N' Roses, and BlendGAN's discriminators at 1024."""
    case = golden("gnr_generator_64_a")
    with torch.device("meta"):
        decoder = Synthesis()
        decoder.add_synthesis(64, 512, start=8, channel_multiplier=1, noise=False)
    stored = {key: shape for key, (shape, _) in case.keys().items()}
    expected = {key: shape for key, shape in stored.items() if key.startswith(("conv1.", "convs.", "to_rgb"))}
    assert shapes(decoder) == expected
    block = {key.removeprefix("encoder.stem.4."): shape for key, shape in stored.items() if "stem.4." in key}
    assert shapes(ResBlock(512, 512, down=False)) == block

    stored = {key: shape for key, (shape, _) in golden("blend_discriminators_1024_keys").keys().items()}
    with torch.device("meta"):
        judge, trunk = Discriminator(1024), DiscriminatorTrunk(1024)
    assert {"d." + key: shape for key, shape in shapes(judge).items()} == {
        key: shape for key, shape in stored.items() if key.startswith("d.")
    }
    assert {"p." + key: shape for key, shape in shapes(trunk).items()} == {
        key: shape for key, shape in stored.items() if key.startswith("p.") and ".l_" not in key
    }


# half types, compilation, export


def chain(dtype: torch.dtype, backend: str | None, seed: int = 3) -> list[Tensor]:
    """An image, its logits and gradients, in float64 or under autocast to a half type."""
    judge, net = Discriminator(16, base_channels=12, clamp=256), small(clamp=256)
    torch.manual_seed(seed)
    z = torch.randn(4, 24)
    for value in judge.parameters():
        nn.init.normal_(value)
    half = dtype != torch.float64
    if not half:
        net, judge, z = net.double(), judge.double(), z.double()
    types: list[torch.dtype] = []
    for layer in (net.style, net.convs[0], net.convs[1], judge.convs, judge.final_conv):
        layer.register_forward_hook(lambda _, __, out: types.append(out.dtype))
    with anifast.use_backend(backend), torch.autocast("cpu", dtype if half else torch.bfloat16, enabled=half):
        image = net(z, randomize_noise=False)[0]
        logits = judge(image)
    if half:
        assert types == [torch.float32, dtype, dtype, dtype, torch.float32]
    assert image.dtype == logits.dtype == (torch.float32 if half else torch.float64)
    wrt = [net.input.input, net.convs[0].conv.weight, net.convs[1].activate.bias, judge.convs[1].conv2[1].weight]
    return [image, logits, *torch.autograd.grad(logits.sum(), wrt)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """At most twice the error of plain PyTorch, and rounding.

    The median of several inputs: where rounding turns a sign, a gradient has a large error, and a single one decides.
    """
    errors = []
    for seed in range(8):
        exact, *both = (
            chain(kind, name, seed)
            for kind, name in ((torch.float64, "reference"), (dtype, None), (dtype, "reference"))
        )
        errors.append(
            [
                [
                    float((x.double() - true).norm().detach() / true.norm().detach())
                    for x, true in zip(found, exact, strict=True)
                ]
                for found in both
            ]
        )
    ours, theirs = torch.tensor(errors).median(0).values
    assert bool((ours <= 2 * theirs + torch.finfo(dtype).eps).all())


def test_compiles_as_one_graph() -> None:
    net, judge = small(8), Discriminator(8, base_channels=12)
    z = torch.randn(2, 24)

    def both(z: Tensor) -> Tensor:
        return judge(net(z, randomize_noise=False)[0])

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), both(z), rtol=1e-4, atol=1e-5)
    wrt = [net.input.input, judge.convs[0][0].weight]
    found = torch.autograd.grad(compiled(z).sum(), wrt)
    for ours, plain in zip(found, torch.autograd.grad(both(z).sum(), wrt), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def reached_from(graph: Any, name: str) -> set[str]:
    """All values of an ONNX graph that depend on one."""
    found = {name}
    for node in graph.node:  # in the order of computation
        if found & set(node.input):
            found |= set(node.output)
    return found


def test_onnx(tmp_path: Path) -> None:
    """The exported generator takes any batch, and its weights are constants: the style is on the activations."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, path = small(8).eval(), tmp_path / "generator.onnx"
    with anifast.use_backend("reference"):
        torch.onnx.export(
            net,
            (torch.randn(2, 24),),
            path,
            kwargs={"randomize_noise": False},
            input_names=["z"],
            output_names=["image"],
            dynamic_shapes={"styles": {0: "batch"}, "randomize_noise": None},
            verbose=False,
        )
    graph = onnx.load(path).graph
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(convolutions) >= len(net.modulations())
    styled = reached_from(graph, "z")
    assert all(node.input[0] in styled and node.input[1] not in styled for node in convolutions)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        z = torch.randn(batch, 24)
        (found,) = session.run(["image"], {"z": z.numpy()})
        with torch.no_grad():
            expected = net(z, randomize_noise=False)[0]
        # what the golden cases allow of such networks in float32
        assert (torch.from_numpy(found) - expected).abs().max() < 3e-5 * expected.abs().max()
