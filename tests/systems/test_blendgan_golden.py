"""The networks of BlendGAN answer what the authors' did, and have their keys and sizes.

The authors have published no loss; that of the style encoder is held against its formula.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_calls import arguments, check, gradients
from tiny_blendgan import tiny_config, weights
from torch import Tensor, nn

from anifast.nn.stylegan2 import Discriminator
from anifast.ops.gram import gram
from anifast.systems.blendgan.checkpoints import build, gram_channels, style_encoder_weights, their_key
from anifast.systems.blendgan.config import make
from anifast.systems.blendgan.convert import convert
from anifast.systems.blendgan.losses import nt_xent
from anifast.systems.blendgan.networks import Generator, ProjectionDiscriminator, Projector, StyleEncoder, blend
from anifast.systems.blendgan.psp import PSPEncoder

Golden = Callable[[str], Any]
HEAVY = pytest.mark.heavy


def _generator(size: int, style_dim: int, n_mlp: int, channel_multiplier: int, load_pretrained_vgg: bool) -> nn.Module:
    return Generator(size, style_dim, n_mlp, channel_multiplier)


def _style_encoder(style_dim: int, n_mlp: int, load_pretrained_vgg: bool) -> nn.Module:
    return build("E_style", make(values={"style_dim": style_dim, "style_mlp": n_mlp, "folded": False, **NO_PSP}))


#: The authors' class -> ours, from its arguments.
CLASSES: dict[str, Callable[..., nn.Module]] = {
    "model.Generator": _generator,
    "model.Discriminator": Discriminator,
    "model.ProjectionDiscriminator": ProjectionDiscriminator,
    "model_encoder.StyleEncoder": _style_encoder,
    "model_encoder.Projector": Projector,
    # the inner class takes pictures as they are, of 64 pixels in its case
    "psp_encoder.psp_encoders.GradualStyleEncoder": lambda num_layers, mode, n_styles: PSPEncoder(n_styles, side=64),
    "psp_encoder.psp_encoders.PSPEncoder": lambda encoder_ckpt_path, output_size: PSPEncoder(18),
}
NO_PSP = {"psp_iterations": 0}
#: The authors' names of arguments -> ours.
ARGUMENTS = {
    "z_embed": "z_style",
    "style": "z_style",
    "add_weight_index": "index",
    "input": "x",
    "image": "images",
    "img": "images",
}
METHODS = {"embedder": "grams"}


def our_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {
        their_key(f"embedder.net.features.{n}.{kind}"): f"embedder.net.features.{n}.{kind}"
        for n in range(36)
        for kind in ("weight", "bias")
    }
    return {ours.get(key, key).removeprefix("encoder."): value for key, value in state.items()}


def network(case: Any, module: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A network of a case, whose keys are compared; order does not matter."""
    state = our_keys({key: torch.from_numpy(value) for key, value in case.state_dict(module["prefix"]).items()})
    with torch.device("meta"):
        net = CLASSES[module["class"]](**module["init"])
    if isinstance(net, PSPEncoder):
        state.setdefault("latent_avg", torch.zeros(net.latent_avg.shape))  # their inner class lacks it
    expected = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == expected
    net.load_state_dict(state, assign=True)
    return net.to(dtype).eval()


def answers(case: Any, calls: list[dict[str, Any]], dtype: torch.dtype, graded: bool) -> dict[str, Tensor]:
    """What the calls give, and what their `grad` asks for if `graded`."""
    called = {spec["module"] for spec in calls if "module" in spec}
    nets = {m["prefix"]: network(case, m, dtype) for m in case.spec["modules"] if m["prefix"] in called}
    found: dict[str, Tensor] = {}
    for spec in calls:
        values, leaves = arguments(case, spec, dtype)
        with torch.set_grad_enabled(graded):
            if "function" in spec:
                assert spec["function"] == "model_encoder.gram_matrix"
                out: Any = gram(values["y"], normalize="chw")
            else:
                net = nets[spec["module"]]
                values = {ARGUMENTS.get(name, name): value for name, value in values.items()}
                if isinstance(net, PSPEncoder):
                    values = {"images": values["x"]}
                method = spec.get("method", "forward")
                out = getattr(net, METHODS.get(method, method))(**values)
        several = out if isinstance(out, tuple) else (out,)
        # where their forward gives a third thing it is nothing
        outputs = {name: value for name, value in zip(spec["out"], several, strict=False) if name is not None}
        found |= {f"{spec['name']}.{name}": value for name, value in outputs.items()}
        if graded:
            for prefix, net in nets.items():
                leaves |= {prefix + key: value for key, value in net.named_parameters()}
            found |= gradients(case, spec, outputs, leaves)
    return found


VALUES = [
    "blend_generator_64_a",
    "blend_generator_256_a",
    pytest.param("blend_generator_1024_a", marks=HEAVY),
    "blend_discriminators_64_a",
    "blend_discriminators_256_a",
    "blend_gram_projector_a",
    "blend_style_encoder_16_a",
    pytest.param("blend_style_encoder_512_a", marks=HEAVY),
    "psp_encoder_64_a",
    pytest.param("psp_encoder_256_a", marks=HEAVY),
]
GRADIENTS = [
    "blend_generator_64_a",
    "blend_gram_projector_a",
    "blend_style_encoder_16_a",
    "psp_encoder_64_a",
    pytest.param("blend_discriminators_64_a", marks=HEAVY),
    pytest.param("blend_discriminators_256_a", marks=HEAVY),
]


@pytest.mark.parametrize("name", VALUES)
def test_values(golden: Golden, name: str) -> None:
    """In float32, which is as exact as the authors' own."""
    case = golden(name)
    found = answers(case, case.calls, torch.float32, graded=False)
    assert set(found) == {output for output in case.outputs if ".grad" not in output}
    check(case, found, numbers=[output for output in found if output.endswith("_batch1.logit")])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(golden: Golden, name: str) -> None:
    """In float64, of the gradient's square too where it is stored: rounding flips signs at leaky ReLUs in float32."""
    case = golden(name)
    calls = [spec for spec in case.calls if "grad" in spec]
    found = answers(case, calls, torch.float64, graded=True)
    asked = tuple(f"{spec['name']}." for spec in calls)
    assert set(found) == {output for output in case.outputs if output.startswith(asked)}
    check(case, found)


@pytest.mark.parametrize("name", ["blend_style_encoder_16_a", pytest.param("blend_style_encoder_512_a", marks=HEAVY)])
def test_the_folded_predictor_is_the_full_one(golden: Golden, name: str) -> None:
    case = golden(name)
    (module,) = case.spec["modules"]
    init = module["init"]
    state = our_keys({key: torch.from_numpy(value) for key, value in case.state_dict().items()})
    net = build("E_style", make(values={"style_dim": init["style_dim"], "style_mlp": init["n_mlp"], **NO_PSP}))
    assert isinstance(net, StyleEncoder) and net.folded
    net.load_state_dict(style_encoder_weights(state, True, net.embedder.channels), assign=True)
    assert net.first_weight.shape[1] == 305_888
    (spec,) = (spec for spec in case.calls if spec["name"] == "embed")
    values, _ = arguments(case, spec, torch.float32)
    with torch.no_grad():
        check(case, {"embed.z_embed": net(values["image"])})


def test_folding_goes_back_and_forth() -> None:
    """Folded and unfolded weights are the same function; folding what was unfolded gives the same bits."""
    config = tiny_config()
    folded = weights(config, "style")["E_style"]
    channels = gram_channels(config)
    full = style_encoder_weights(folded, False, channels)
    assert full["embedder_mlp.0.weight"].shape == (32, 610_304)
    again = style_encoder_weights(full, True, channels)
    assert torch.equal(again["embedder_mlp.0.weight"], folded["embedder_mlp.0.weight"])
    one, other = (build("E_style", tiny_config(folded=is_folded)) for is_folded in (True, False))
    one.load_state_dict(folded, assign=True)
    other.load_state_dict(full, assign=True)
    x = torch.rand(2, 3, 40, 30, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        a, b = one.double()(x), other.double()(x)
    assert float((a - b).abs().max() / b.abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nt_xent(golden: Golden, dtype: torch.dtype) -> None:
    case = golden("losses_ntxent")
    found: dict[str, Tensor] = {}
    for spec in case.calls:
        name = spec["name"]
        a, b = (torch.from_numpy(case.inputs[f"{name}_{view}"]).to(dtype).requires_grad_() for view in "ab")
        for tau in spec["args"]["tau"]:
            rows = nt_xent(torch.cat([a, b]), tau)
            da, db = torch.autograd.grad(rows.mean(), [a, b])
            parts = {"per_row": rows, "loss": rows.mean(), "da": da, "db": db}
            found |= {f"{name}.{part}_tau{tau}": value for part, value in parts.items()}
    assert set(found) == set(case.outputs)
    check(case, found, numbers=[name for name in found if ".loss_" in name])


# --- keys and sizes


def shapes(net: nn.Module, prefix: str = "") -> dict[str, list[int]]:
    return {prefix + key: list(value.shape) for key, value in net.state_dict().items()}


def published_generator_file(golden: Golden) -> dict[str, list[int]]:
    """The 228 keys at 1024 px and their shapes: those of the case, and E_style's from the table in spec section 6."""
    keys = {key: shape for key, (shape, _) in golden("blend_generator_1024_a").keys().items()}
    widths = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
    widths |= dict.fromkeys((12, 14, 16), (256, 256)) | {19: (256, 512)}
    widths |= dict.fromkeys((21, 23, 25, 28, 30, 32, 34), (512, 512))
    for number, (before, behind) in widths.items():
        layer = f"embedder.embedder.feature_extractor.vgg_layers.{number}"
        keys |= {f"{layer}.weight": [behind, before, 3, 3], f"{layer}.bias": [behind]}
    for number in range(4):
        layer = f"embedder.embedder_mlp.{number}"
        keys |= {f"{layer}.weight": [512, 512 if number else 610_304], f"{layer}.bias": [512]}
    return keys


@HEAVY  # writes 1.5 GB of weights
def test_the_exported_file_has_the_authors_keys_and_shapes(golden: Golden) -> None:
    config = make()
    nets = {
        name: {key: torch.zeros(1).expand(value.shape) for key, value in build(name, config).state_dict().items()}
        for name in ("G", "E_style")
    }
    nets["G"] = {key: value for key, value in nets["G"].items() if not key.endswith("kernel")}  # reading puts them in
    state = {"format": "anifast.blendgan/1", "config": config.as_dict(), "nets": nets}
    (written,) = convert(state, Path("a.pt"), Path("blendgan.pt"), format="authors").values()
    expected = published_generator_file(golden)
    assert len(expected) == 228
    assert {key: list(value.shape) for key, value in written["g_ema"].items()} == expected
    assert written["latent_avg"].shape == (512,)


def test_keys_of_the_published_files(golden: Golden) -> None:
    """Those of the generator's file are E_style's and G's; nothing is built, or at most on the device meta."""
    config = make(values={"folded": False})
    encoder = {f"embedder.{their_key(key)}": shape for key, shape in shapes(build("E_style", config)).items()}
    expected = published_generator_file(golden)
    assert encoder | shapes(build("G", config)) == expected and len(expected) == 228
    judges = {key: shape for key, (shape, _) in golden("blend_discriminators_1024_keys").keys().items()}
    found = shapes(build("D_face", config), "d.") | shapes(build("D_latent", config), "p.")
    assert found == judges and len(found) == 2 * 64
    psp = shapes(build("psp", config), "encoder.")
    psp["latent_avg"] = psp.pop("encoder.latent_avg")  # which their file has beside the encoder
    keys = {key: shape for key, (shape, _) in golden("psp_encoder_256_a").keys().items()}
    assert psp == keys and len(psp) == 621 + 1


def parameters(net: nn.Module, *under: str) -> int:
    return sum(value.numel() for key, value in net.named_parameters() if key.startswith(under or ""))


@pytest.mark.parametrize(
    ("size", "synthesis", "judge", "latent_judge", "inverter"),
    [
        (256, 27_933_090, 28_864_129, 24_931_969, 209_450_688),
        (512, 28_175_335, 28_982_849, 25_050_689, 238_293_696),
        (1024, 28_268_812, 29_012_513, 25_080_353, 267_136_704),
    ],
)
def test_parameters(size: int, synthesis: int, judge: int, latent_judge: int, inverter: int) -> None:
    config = make(values={"size": size, "folded": False})
    net = build("G", config)
    assert parameters(net, "input.", "conv1.", "to_rgb1.", "convs.", "to_rgbs.") == synthesis
    assert parameters(net, "style.") == parameters(net, "embedding.") == 2_101_248
    slots = {256: 14, 512: 16, 1024: 18}[size]
    assert config.n_latent == slots and parameters(net) == synthesis + 2 * 2_101_248 + slots
    assert len([key for key in net.state_dict() if key.startswith("noises.")]) == slots - 1
    assert parameters(build("D_face", config)) == parameters(build("D_style", config)) == judge
    assert parameters(build("D_latent", config)) == latent_judge
    assert parameters(build("psp", config)) == inverter


def test_parameters_of_the_style_encoder() -> None:
    full, folded = (build("E_style", make(values={"folded": is_folded})) for is_folded in (False, True))
    assert parameters(full, "embedder.") == parameters(folded, "embedder.") == 20_024_384
    assert parameters(full, "embedder_mlp.") == 313_264_128
    assert parameters(full, "embedder_mlp.0.weight") == 312_475_648
    assert parameters(folded, "embedder_mlp.0.weight") == 156_614_656
    assert parameters(build("projector", make())) == 525_312
    whole = parameters(build("G", make())) + parameters(full)
    assert (parameters(build("G", make())), whole) == (32_471_326, 365_759_838)


# --- the blending indicator


@pytest.fixture(scope="module")
def painter() -> Generator:
    config = tiny_config()
    net = build("G", config)
    net.load_state_dict(weights(config, "gan")["G"], assign=True)
    assert isinstance(net, Generator)
    return net.eval()


@torch.no_grad()
def test_no_style_at_the_last_indicator(painter: Generator) -> None:
    z, z_style = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    both: dict[str, Any] = {"randomize_noise": False, "return_latents": True}  # a code for each slot either way
    natural, w = painter(z, **both)
    last, w_last = painter(z, z_style, painter.n_latent, **both)
    assert w is not None and w_last is not None
    assert torch.equal(w, w_last) and torch.equal(last, natural)
    styled, _ = painter(z, z_style, 0, randomize_noise=False)
    default, _ = painter(z, z_style, randomize_noise=False)
    assert torch.equal(styled, default) and not torch.equal(styled, natural)
    mixed, _ = painter(z, z_style, torch.tensor([0, painter.n_latent, 0]), randomize_noise=False)
    for got, expected in zip(mixed, (styled[0], natural[1], styled[2]), strict=True):
        # one picture's W+ is as before; the batch's convolutions may add up in another order
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


@torch.no_grad()
def test_the_length_of_style_codes_does_not_matter(painter: Generator) -> None:
    z, z_style = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    one, _ = painter(z, z_style, 0, randomize_noise=False)
    other, _ = painter(z, 3 * z_style, 0, randomize_noise=False)
    assert float((one - other).abs().max() / one.abs().max()) < 2e-5


def test_blending_slots() -> None:
    """Equation 3: the face's share is 1 below the indicator, 1 - theta (1 - a) at it, and a above."""
    a = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    ones, zeros = torch.ones(1, 5, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64)
    for index, theta, expected in (
        (0, 1.0, [0.1, 0.2, 0.3, 0.4]),
        (2, 1.0, [1, 1, 0.3, 0.4]),
        (2, 0.0, [1, 1, 1, 0.4]),
        (1, 0.5, [1, 0.6, 0.3, 0.4]),
        (4, 0.5, [1, 1, 1, 1]),
    ):
        share = blend(ones, zeros, a, index, theta)
        torch.testing.assert_close(share[0, :, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
        torch.testing.assert_close(blend(zeros, ones, a, index, theta), 1 - share, rtol=0, atol=1e-15)
    for index in (-1, 5):
        with pytest.raises(ValueError, match=f"index is {index}, expected 0 .* to 4"):
            blend(ones, zeros, a, index)
