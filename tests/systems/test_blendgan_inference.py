"""A trained BlendGAN's Python interface: codes, painting by the indicator, photos, files of codes, sheets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blendgan import TINY, authors_files, stage_state, tiny_config, weights, write_run
from tiny_cyclegan import picture
from torch import Tensor

import anifast
from anifast.data.folders import read_image, to_float, to_tensor, to_uint8
from anifast.errors import AnifastError, CheckpointError, DataError, ImageError
from anifast.systems.blendgan import checkpoints, inference, sheets, styles, video
from anifast.systems.blendgan.config import INDEX, TRUNCATION, make
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.networks import Generator, StyleEncoder
from anifast.systems.blendgan.psp import PSPEncoder
from anifast.systems.blendgan.styles import Style

CONFIG = tiny_config()
L, D = CONFIG.n_latent, CONFIG.style_dim
CPU = torch.device("cpu")
# float32 sums of a few hundred terms in batches of another size, through 10 layers
CLOSE = {"rtol": 0.0, "atol": 2e-4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def state(run: Path) -> dict[str, Any]:
    found = checkpoints.gather(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    found = anifast.load(run, "cpu")
    assert isinstance(found, Model)
    return found


@pytest.fixture(scope="module")
def with_psp(tmp_path_factory: pytest.TempPathFactory) -> Model:
    found: Model = anifast.load(write_run(tmp_path_factory.mktemp("psp"), tiny_config(psp=True)), "cpu")
    for value in found._net(
        "psp"
    ).parameters():  # made-up weights lie over one another, which convolutions are slow with
        value.data = value.data.contiguous()
    return found


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def generator_of(model: Model) -> Generator:
    net = model._net("G")
    assert isinstance(net, Generator)
    return net


# --- what is in it


def test_what_a_model_tells(model: Model) -> None:
    assert (model.size, model.multiple, model.n_latent, model.style_dim) == (64, 64, 10, 32)
    assert model.held == ("G", "E_style") and model.averaged and model.targets == ()
    assert model.sides == {"E_style": 32, "psp": 32}
    assert model.truncation == TRUNCATION


def test_networks_are_built_when_they_are_asked_for(state: dict[str, Any]) -> None:
    model = Model(state, CPU)
    assert not model._nets
    model.encode_styles(noise(1, 3, 32, 32))
    assert list(model._nets) == ["E_style"]
    model.release("E_style")
    assert not model._nets
    before = model.paint(model.faces(model.random_faces(1)))
    model.release("G", "psp")
    assert not model._nets
    assert torch.equal(model.paint(model.faces(model.random_faces(1))), before)


def test_memory_is_that_of_the_weights(model: Model) -> None:
    found = model.memory(batch=4)
    assert list(found) == ["G", "E_style"]
    for name, (held, maps) in found.items():
        net = model._net(name)
        own = sum(value.numel() for value in net.state_dict().values() if isinstance(value, Tensor))
        assert held == 4 * own and maps == model.memory(batch=1)[name][1] * 4


def test_the_batch_that_fits(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("E_style", "G")
    assert model.memory(8, ("psp", "G")).keys() == {"G"}, "there is no other of them"
    for batch in (8, 4, 2, 1):
        needed = max(map(sum, model.memory(batch, names).values()))
        for free, expected in ((needed, batch), (needed - 1, max(1, batch // 2))):
            monkeypatch.setattr(inference, "free_memory", lambda device, free=free: free / inference._FILLED)
            assert model.fitting_batch(names) == expected
    monkeypatch.setattr(inference, "free_memory", lambda device: 2**40)
    assert model.fitting_batch(names) == 8


def test_the_published_networks_fit_a_small_card(state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate: what 4 GB have beside what is there of the driver."""
    model = Model(state, CPU)
    model.config = make()
    with torch.device("meta"):
        for name in ("G", "E_style", "psp"):
            model._parts[name] = checkpoints.build(name, make()).state_dict(), make()
    monkeypatch.setattr(inference, "free_memory", lambda device: 3.6e9)
    batch = model.fitting_batch(model.used(["art"]))
    assert 1 < batch < 8 and max(map(sum, model.memory(batch).values())) < 3.6e9


def test_the_networks_that_painting_takes(model: Model) -> None:
    assert model.used() == ("psp", "G") == model.used(["random", "codes.pt#3"])
    assert model.used(["random", "art"]) == ("E_style", "psp", "G")
    assert model.used(["art.png"], []) == ("E_style", "G") == model.used(["a.png"], ["random", "w.pt", "z.npy"])
    assert model.used(["codes.pt"], ["random", "photos"]) == ("psp", "G")


def test_a_full_predictor_is_folded(state: dict[str, Any]) -> None:
    files = authors_files(tiny_config(backbone="vgg19", style_side=32))
    model = Model({"authors": {"blendgan.pt": files["blendgan.pt"]}}, CPU)
    net = model._net("E_style")
    assert isinstance(net, StyleEncoder) and net.folded
    held_there = checkpoints.contents({"authors": {"blendgan.pt": files["blendgan.pt"]}})
    assert not held_there.config.folded
    full = checkpoints.build("E_style", held_there.config)
    full.load_state_dict(held_there.nets["E_style"], assign=True)
    held = 4 * sum(v.numel() for v in net.state_dict().values() if isinstance(v, Tensor))
    assert abs(model.memory()["E_style"][0] / held - 1) < 0.01, "half of the full one, but for diagonals"
    images = noise(2, 3, 48, 40)
    with torch.no_grad():
        expected = full.eval()(images)
    found = model.encode_styles(images)
    # the same sums of 610,304 products in another order
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert model.truncation == 0.7
    assert torch.equal(model.mean_latent()[0], files["blendgan.pt"]["latent_avg"])


# --- codes


def test_random_codes(model: Model) -> None:
    for draw in (model.random_faces, model.random_styles):
        assert torch.equal(draw(5, 3)[:2], draw(2, 3)) and not torch.equal(draw(2, 3), draw(2, 4))
        assert draw(0).shape == (0, D) and draw(2).dtype == torch.float32
        with pytest.raises(ValueError, match="count: -1"):
            draw(-1)
    assert not torch.equal(model.random_faces(2), model.random_styles(2)), "a face's code is no style's"


def test_truncation_goes_towards_the_mean(model: Model) -> None:
    z = model.random_faces(3, 1)
    w, mean = generator_of(model).get_latent(z), model.mean_latent()
    assert mean.shape == (1, D)
    assert torch.equal(mean, generator_of(model).get_latent(model.random_faces(4096)).mean(0, True))
    assert torch.equal(model.faces(z, 1.0), w)
    torch.testing.assert_close(model.faces(z, 0.0), mean.expand(3, -1))
    torch.testing.assert_close(model.faces(z, 0.5), (mean + w) / 2)
    assert torch.equal(model.faces(z), model.faces(z, TRUNCATION))
    plus = noise(2, L, D)
    torch.testing.assert_close(model.truncate(plus, 0.5), (plus + mean) / 2)
    for psi in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="truncation"):
            model.faces(z, psi)


def test_a_mean_for_each_slot(state: dict[str, Any]) -> None:
    rows = noise(L, D)
    gan = {**state["parts"]["gan"], "latent_avg": rows}
    model = Model({**state, "parts": {"gan": gan}}, CPU)
    assert torch.equal(model.mean_latent(), rows)
    z = model.random_faces(2)
    w = model.faces(z, 0.5)
    assert w.shape == (2, L, D)
    torch.testing.assert_close(w, (rows + model.faces(z, 1.0)[:, None]) / 2)
    assert model.faces(z, 1.0).shape == (2, D)
    with pytest.raises(CheckpointError, match="latent_avg"):
        Model({**state, "parts": {"gan": {**gan, "latent_avg": rows[:3]}}}, CPU).mean_latent()


def test_style_codes_of_any_picture(model: Model) -> None:
    net = model._net("E_style")
    images = noise(3, 3, 70, 50)
    with torch.no_grad():
        expected = net(images)
    assert torch.equal(model.encode_styles(images, batch=3), expected)
    torch.testing.assert_close(model.encode_styles(images, batch=2), expected, rtol=1e-4, atol=1e-4)
    grey = noise(1, 1, 40, 40)
    assert torch.equal(model.encode_styles(grey), model.encode_styles(grey.expand(-1, 3, -1, -1)))
    assert model.encode_styles(images[:0]).shape == (0, D)


# --- painting


def test_the_indicator(model: Model) -> None:
    w, z = model.faces(model.random_faces(2)), model.random_styles(2)
    natural = model.paint(w)
    assert natural.shape == (2, 3, 64, 64) and natural.dtype == torch.float32 and natural.abs().max() <= 1
    assert torch.equal(model.paint(w, z, L), natural), "none of the style is the face itself, exactly"
    assert not torch.allclose(model.paint(w, z, 0), natural, atol=0.05)
    assert torch.equal(model.paint(w, z, torch.tensor(0)), model.paint(w, z, 0))
    mixed = model.paint(w, z, torch.tensor([0, L]))
    torch.testing.assert_close(mixed, torch.stack([model.paint(w, z, 0)[0], natural[1]]), **CLOSE)
    torch.testing.assert_close(model.paint(w, z * 3, INDEX), model.paint(w, z, INDEX), rtol=0, atol=2e-5)


def test_theta_is_between_two_indicators(model: Model) -> None:
    w, z = model.faces(model.random_faces(2)), model.random_styles(2)
    torch.testing.assert_close(model.paint(w, z, 4, theta=0.0), model.paint(w, z, 5), **CLOSE)
    between = model.paint(w, z, 4, theta=0.5)
    assert not torch.allclose(between, model.paint(w, z, 4), atol=1e-3)


def test_painting_is_the_generator_s(model: Model) -> None:
    w, z, net = noise(3, L, D), model.random_styles(1), generator_of(model)
    with torch.no_grad():
        expected = net(w, z_style=z, index=3, input_is_latent=True, randomize_noise=False)[0].clamp(-1, 1)
    torch.testing.assert_close(model.paint(w, z, 3, batch=3), expected, **CLOSE)
    parts = list(model.paintings(w, z, 3, batch=2))
    assert [len(part) for part in parts] == [2, 1]
    torch.testing.assert_close(torch.cat(parts), expected, **CLOSE)
    assert model.paint(w[:0], z).shape == (0, 3, 64, 64)


def noisy(model: Model) -> Model:
    for name, value in generator_of(model).named_parameters():
        if name.endswith("noise.weight"):
            value.fill_(0.5)
    return model


def test_noise_is_a_picture_s_own(state: dict[str, Any]) -> None:
    model = noisy(Model(state, CPU))
    w = model.faces(model.random_faces(1)).expand(3, -1)
    fixed = model.paint(w)
    assert torch.equal(fixed[0], fixed[1])
    drawn = model.paint(w, noise=5)
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3) and not torch.allclose(drawn[0], fixed[0], atol=1e-3)
    assert torch.equal(drawn, model.paint(w, noise=5)) and not torch.equal(drawn, model.paint(w, noise=6))
    parts = torch.cat([model.paint(w[:1], noise=5), model.paint(w[1:], noise=5, first=1)])
    torch.testing.assert_close(drawn, parts, **CLOSE)
    alike = model.paint(w, noise=5, first=2, each=2)
    torch.testing.assert_close(alike, drawn[[1, 1, 2]], **CLOSE)
    model.release("G")


def test_infinities_become_nan(state: dict[str, Any]) -> None:
    model = Model(state, CPU)
    generator_of(model).to_rgb1.bias.fill_(math.inf)
    assert model.paint(model.faces(model.random_faces(1))).isnan().all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.paint(noise(1, L + 1, D)), r"w: expected w \[N, 32\] or W\+ \[N, 10, 32\] .* got \[1, 11, 32\]"),
        (lambda m: m.paint(noise(1, D + 1)), r"got \[1, 33\]"),
        (lambda m: m.paint(noise(1, D), noise(1, D), L + 1), r"index: expected 0 .* to 10 .* got 11"),
        (lambda m: m.paint(noise(1, D), noise(1, D), -1), "index"),
        (lambda m: m.paint(noise(2, D), noise(1, D), torch.tensor([0, 11])), "index"),
        (lambda m: m.paint(noise(2, D), noise(1, D), torch.tensor([0, 1, 2])), "index"),
        (lambda m: m.paint(noise(3, D), noise(2, D)), r"z_style: expected \[3 or 1, 32\]"),
        (lambda m: m.paint(noise(1, D), noise(1, D), theta=1.5), "theta"),
        (lambda m: m.paint(noise(1, D), batch=0), "batch"),
        (lambda m: m.paint(noise(1, D), each=0), "each: 0"),
        (lambda m: m.faces(noise(1, D + 1)), "z: expected"),
        (lambda m: m.encode_styles(noise(1, 4, 8, 8)), "images: expected N,3,H,W"),
        (lambda m: m.encode_styles(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "floats"),
        (lambda m: m.encode_styles(noise(1, 3, 8, 8), batch=0), "batch"),
    ],
)
def test_what_cannot_be_painted(model: Model, call: Callable[[Model], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(model)


# --- photos


def test_photos(with_psp: Model) -> None:
    model, photos = with_psp, noise(2, 3, 50, 40)
    net = model._net("psp")
    assert isinstance(net, PSPEncoder)
    with torch.no_grad():
        expected = net(photos)
    w = model.invert(photos, batch=2)
    assert torch.equal(w, expected) and w.shape == (2, L, 512)
    art = noise(1, 3, 60, 60, seed=1)
    code = model.encode_styles(art)
    painted = model.translate(photos, style=art, batch=2)
    torch.testing.assert_close(painted, model.paint(w, code, INDEX), **CLOSE)
    torch.testing.assert_close(model.translate(photos, style=code, batch=2), painted, **CLOSE)
    given = photos.clone()
    half = model.translate(photos.double(), index=L, batch=2)
    assert half.dtype == torch.float64 and torch.equal(given, photos)
    torch.testing.assert_close(half.float(), model.paint(w), **CLOSE)
    seeded = model.translate(photos, seed=4, batch=2)
    torch.testing.assert_close(seeded, model.paint(w, model.random_styles(2, 4)), **CLOSE)
    tamed = model.translate(photos, style=code, truncation=0.5, batch=2)
    torch.testing.assert_close(tamed, model.paint(model.truncate(w, 0.5), code), **CLOSE)
    assert model.translate(photos[:0]).shape == (0, 3, 64, 64)
    with pytest.raises(ValueError, match="style: 3 for 2 images"):
        model.translate(photos, style=model.random_styles(3))


def test_an_encoder_without_a_mean_takes_the_generator_s() -> None:
    config = tiny_config(psp=True)
    psp = stage_state(config, "psp")
    gan = stage_state(config, "gan")
    mean = psp["nets"]["psp"].pop("latent_avg")
    state = {"format": checkpoints.FORMAT, "config": config.as_dict(), "parts": {"gan": gan, "psp": psp}}
    model = Model(state, CPU)
    net = model._net("psp")
    assert isinstance(net, PSPEncoder) and list(model._nets) == ["psp"], "the generator was there for its mean alone"
    torch.testing.assert_close(net.latent_avg, model.mean_latent().expand(L, -1))
    assert net.latent_avg.shape == mean.shape


def test_parts_from_elsewhere(run: Path, tmp_path: Path) -> None:
    gan = write_run(tmp_path / "gan", stages=("gan",))
    model = anifast.load(gan, "cpu")
    with pytest.raises(CheckpointError, match=r"style encoder.*--style-encoder"):
        model.encode_styles(noise(1, 3, 32, 32))
    with pytest.raises(CheckpointError, match=r"inverts photos.*psp_encoder.pt beside blendgan.pt.*--psp.*--stage psp"):
        model.invert(noise(1, 3, 32, 32))
    images = noise(1, 3, 32, 32)
    found = anifast.load(gan, "cpu", style_encoder=run).encode_styles(images)
    assert torch.equal(found, anifast.load(run, "cpu").encode_styles(images))
    style = write_run(tmp_path / "style", stages=("style",))
    with pytest.raises(CheckpointError, match="lacks the generator"):
        anifast.load(style, "cpu").paint(noise(1, D))
    with pytest.raises(CheckpointError, match=f"{gan}: this file lacks the style encoder"):
        anifast.load(run, "cpu", style_encoder=gan)
    with pytest.raises(CheckpointError, match="no such"):
        anifast.load(run, "cpu", psp=tmp_path / "nowhere.pt")
    other = write_run(tmp_path / "other", tiny_config(style_dim=16), stages=("style",))
    with pytest.raises(CheckpointError, match="codes of 16 numbers, and the generator takes 32"):
        anifast.load(run, "cpu", style_encoder=other)


def test_an_encoder_of_another_generator(run: Path, tmp_path: Path) -> None:
    encoder = write_run(tmp_path / "psp", tiny_config(psp=True), stages=("psp",))
    with pytest.raises(CheckpointError, match="codes of 512 numbers, and the generator takes 32"):
        anifast.load(run, "cpu", psp=encoder)
    large = write_run(tmp_path / "large", tiny_config(size=128, style_dim=512), stages=("gan",))
    with pytest.raises(CheckpointError, match=r"W\+ of 10 slots, and the generator of 128 pixels has 12"):
        anifast.load(large, "cpu", psp=encoder)


def test_options_that_a_model_has_not(run: Path) -> None:
    with pytest.raises(AnifastError, match="precision"):
        anifast.load(run, "cpu", precision="fp64")
    with pytest.raises(AnifastError, match="BlendGAN has no option speed"):
        anifast.load(run, "cpu", speed=1)
    gan = weights(CONFIG, "gan")["G"]
    plain = {key: value for key, value in gan.items() if not key.startswith(("embedding.", "add_weight"))}
    with pytest.raises(CheckpointError, match="StyleGAN2.*--start-from"):
        inference.load({"g_ema": plain}, CPU)


# --- pictures and files of codes


def test_pictures_are_read_as_encoders_pool_them(tmp_path: Path, model: Model) -> None:
    path = picture(tmp_path / "wide.png", 3, (90, 60))
    whole = to_float(to_tensor(read_image(path)))[None]
    square = whole[..., 15:75]
    for how, expected in (("stretch", whole), ("crop", square)):
        found = styles.pooled(path, 32, how)
        assert found.shape == (3, 32, 32)
        torch.testing.assert_close(model.encode_styles(found[None]), model.encode_styles(expected), **CLOSE)
    huge = picture(tmp_path / "huge.png", 3, (1024, 512))
    exact = torch.nn.functional.adaptive_avg_pool2d(to_float(to_tensor(read_image(huge))), 32)
    found = styles.pooled(huge, 32, "stretch")
    # blocks of 8 x 4 pixels come first: their means are rounded to 8 bits, by a reciprocal of 24 bits
    torch.testing.assert_close(found, exact, rtol=0, atol=(0.5 + 255 * 32 * 2**-24) / 127.5)


def modes(folder: Path) -> Iterator[tuple[str, Path]]:
    """Pictures of a grey square in all kinds of colour modes; what is transparent becomes white."""
    grey = np.full((20, 20), 128, np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    yield "grey", folder / "grey.png"
    Image.fromarray(grey).convert("P").save(folder / "palette.png")
    yield "palette", folder / "palette.png"
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    yield "16 bit", folder / "deep.png"
    alpha = np.zeros((20, 20, 4), np.uint8)
    alpha[..., :3], alpha[..., 3] = 7, 0
    Image.fromarray(alpha).save(folder / "clear.png")
    yield "transparent", folder / "clear.png"


def test_pictures_of_any_mode(tmp_path: Path) -> None:
    for name, path in modes(tmp_path):
        expected = 1.0 if name == "transparent" else 2 * 128 / 255 - 1
        torch.testing.assert_close(styles.pooled(path, 8, "crop"), torch.full((3, 8, 8), expected), rtol=0, atol=1e-6)


def test_damaged_pictures_do_not_stop_the_others(model: Model, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{n}.png", n) for n in range(5)]
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    found, failed = styles.encoded(model, paths, "E_style", batch=2)
    assert list(found) == [0, 2, 3, 4] and list(failed) == [1] and failed[1].startswith(str(paths[1]))
    alone = model.encode_styles(styles.pooled(paths[3], 32, "crop")[None])[0]
    torch.testing.assert_close(found[3], alone, rtol=1e-4, atol=1e-4)


def test_sources_of_styles(model: Model, tmp_path: Path) -> None:
    art = [picture(tmp_path / "art" / f"{name}.png", n) for n, name in enumerate("ab")]
    (tmp_path / "art" / "c.png").write_bytes(art[0].read_bytes()[:60])
    with pytest.warns(UserWarning, match="left out: .*c.png"):
        found = styles.gather(model, ["random", tmp_path / "art", "random"], count=2, seed=7)
    assert [style.name for style in found] == ["random-7-00", "random-7-01", "a", "b", "random-7-02", "random-7-03"]
    assert torch.equal(styles.codes([s for s in found if s.drawn]), model.random_styles(4, 7))
    assert [style.picture for style in found if not style.drawn] == art
    file = tmp_path / "codes.pt"
    styles.save(file, found)
    again = styles.gather(model, [file, f"{file}#3"])
    assert [style.name for style in again] == [*(style.name for style in found), "b"]
    assert torch.equal(styles.codes(again[:-1]), styles.codes(found))
    with pytest.raises(DataError, match="c.png: the PNG cannot be decoded"):
        styles.gather(model, [tmp_path / "art" / "c.png"])
    with pytest.raises(DataError, match=r"codes.pt#6: there is no such style; the file has 0 to 5"):
        styles.gather(model, [f"{file}#6"])
    with pytest.raises(AnifastError, match="--seed 3: is the seed of random styles"):
        styles.gather(model, [file], seed=3)


def test_the_codes_of_a_run(tmp_path: Path, model: Model) -> None:
    table = noise(4, 2, D)
    names = [f"folder/{n}.jpg" for n in range(4)]
    torch.save(
        {"format": "anifast.blendgan.codes/1", "codes": table, "names": names, "data": {}, "encoder": ""},
        tmp_path / "codes.pt",
    )
    found = styles.load(tmp_path / "codes.pt", D)
    assert [style.name for style in found] == ["0", "1", "2", "3"] and torch.equal(styles.codes(found), table[:, 0])


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "no such file"),
        ({"format": "other"}, "not a file of style codes"),
        (b"text", "not a file of style codes"),
        ({"format": styles.FORMAT, "names": [], "codes": torch.zeros(0, D)}, "damaged"),
        ({"format": styles.FORMAT, "names": ["a"], "codes": torch.zeros(2, D)}, "damaged"),
        ({"format": styles.FORMAT, "names": ["a"], "codes": [0.0]}, "damaged"),
        ({"format": styles.FORMAT, "names": ["a"], "codes": torch.full((1, D), math.nan)}, "finite"),
        ({"format": styles.FORMAT, "names": ["a"], "codes": torch.zeros(1, 7)}, "codes of 7 numbers.*have 32"),
    ],
)
def test_files_that_hold_no_codes(tmp_path: Path, held: Any, said: str) -> None:
    path = tmp_path / "codes.pt"
    if isinstance(held, bytes):
        path.write_bytes(held)
    elif held is not None:
        torch.save(held, path)
    with pytest.raises(DataError, match=f"codes.pt: .*{said}"):
        styles.load(path, D)


def test_codes_of_faces(tmp_path: Path) -> None:
    z, plus = noise(3, D), noise(2, L, D)
    for held, kind, expected in (
        (z, "z", z),
        (z[:, None], "z", z),
        ([row[None] for row in z], "z", z),
        ({"z": z}, "z", z),
        ({"w": z}, "w", z),
        (plus, "w", plus),
        (plus.double(), "w", plus),
    ):
        torch.save(held, tmp_path / "faces.pt")
        found, codes = styles.load_faces(tmp_path / "faces.pt", D, L)
        assert found == kind and codes.dtype == torch.float32
        torch.testing.assert_close(codes, expected)
    np.save(tmp_path / "faces.npy", z.numpy())
    assert torch.equal(styles.load_faces(tmp_path / "faces.npy", D, L)[1], z)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (noise(2, L + 2, D), r"shape \[2, 12, 32\], but this model takes .*W\+ \[N, 10, 32\].* another size"),
        (noise(2, D + 1), r"shape \[2, 33\]"),
        (noise(0, D), "no codes of faces"),
        ({"x": noise(2, D)}, "no codes of faces"),
        ([], "no codes of faces"),
        ([noise(1, D), noise(1, 7)], "no codes of faces"),
        (torch.zeros(2, D, dtype=torch.int64), "no codes of faces"),
        (torch.full((1, D), math.inf), "not finite"),
    ],
)
def test_files_that_hold_no_faces(tmp_path: Path, held: Any, said: str) -> None:
    torch.save(held, tmp_path / "faces.pt")
    with pytest.raises(DataError, match=f"faces.pt: .*{said}"):
        styles.load_faces(tmp_path / "faces.pt", D, L)
    (tmp_path / "text.pt").write_text("hello")
    for name, told in (("text.pt", "not a file of codes"), ("nowhere.npy", "no such file")):
        with pytest.raises(DataError, match=f"{name}: {told}"):
            styles.load_faces(tmp_path / name, D, L)


def test_values_are_cut_as_the_authors_cut_them() -> None:
    # an ulp beside a whole number float32 may fall to either side of it
    images = torch.linspace(-1.2, 1.2, 9973)
    before = images.clone()
    found = to_uint8(styles.truncated(images))
    assert torch.equal(images, before)
    expected = ((images * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8)
    assert torch.equal(found, expected)
    rounded = to_uint8(images)
    assert ((rounded.int() - found.int()) >= 0).all() and (rounded != found).any()


# --- sheets and videos


def test_a_sweep(model: Model) -> None:
    w = model.faces(model.random_faces(2))
    told: list[int] = []
    drawn = sheets.sweep(
        model,
        w,
        model.random_styles(1),
        indices=[0, 6, L],
        names=["one", "two"],
        photos=torch.zeros(2, 3, 128, 128, dtype=torch.uint8),
        style_name="art",
        reference=torch.zeros(1, 3, 128, 128, dtype=torch.uint8),
        on_painted=told.append,
    )
    assert sum(told) == 6
    pixels = np.asarray(drawn).astype(int)
    natural = to_uint8(model.paint(w)).permute(0, 2, 3, 1).numpy()
    # the last column, at twice its size, ends 4 + 14 pixels before the sheet does; rows are 132 apart
    right, bottom = drawn.width - 18, drawn.height - 18
    for row, top in enumerate((bottom - 260, bottom - 128)):
        found = pixels[top : top + 128 : 2, right - 128 : right : 2]
        assert np.abs(found - natural[row]).max() <= 1, "rounded in a batch of another size"


def test_a_grid(model: Model) -> None:
    w, z = model.faces(model.random_faces(2)), model.random_styles(2)
    references = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    drawn = sheets.grid(model, w, z, index=3, heads=["a", "b"], references=references)
    pixels = np.asarray(drawn).astype(int)
    right, bottom = drawn.width - 18, drawn.height - 18
    last = to_uint8(model.paint(w[1:], z[1:], 3))[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels[bottom - 128 : bottom : 2, right - 128 : right : 2] - last).max() <= 1
    assert (pixels[bottom - 392 : bottom - 264, right - 128 : right] == 200).all(), "the picture of the style"
    with pytest.raises(AnifastError, match="a sheet of .* pixels.*fewer faces or styles"):
        sheets.grid(model, w.repeat(40, 1), z.repeat(80, 1))


def test_sheets_refuse_what_is_not_finite(state: dict[str, Any]) -> None:
    model = Model(state, CPU)
    w = model.faces(model.random_faces(1))
    generator_of(model).to_rgb1.bias.fill_(math.nan)
    with pytest.raises(AnifastError, match="not finite"):
        sheets.sweep(model, w, model.random_styles(1), indices=[0])


def test_tiles() -> None:
    assert [sheets.tile_of(size) for size in (64, 128, 256, 512, 1024)] == [128, 128, 256, 256, 256]


def test_the_moments_of_a_video() -> None:
    way = video.schedule()
    assert len(way) == 31 and way[0] == 0 and way[-10:] == [1.0] * 10
    assert way[1] == pytest.approx(1 / (1 + math.exp(5))) and way[11] == 0.5
    assert way[20] == pytest.approx(1 / (1 + math.exp(-4.5))) and way == sorted(way)
    moments = video.moments(8)
    assert len(moments) == 227 and moments[:2] == [(0, 0.0), (0, way[1])] and moments[-11:] == [(7, 0.0)] * 11
    with pytest.raises(ValueError, match="styles: 1"):
        video.moments(1)


def test_the_way_between_codes(model: Model) -> None:
    codes = model.random_styles(3)
    chosen = [(0, 0.0), (0, 0.25), (2, 0.0)]
    line, arc = video.between(codes, chosen), video.between(codes, chosen, slerp=True)
    assert torch.equal(line[0], codes[0]) and torch.equal(line[2], codes[2])
    torch.testing.assert_close(line[1], codes[0] * 0.75 + codes[1] * 0.25)
    unit = torch.nn.functional.normalize(codes, dim=1)
    found = torch.nn.functional.normalize(arc, dim=1)
    torch.testing.assert_close(found[[0, 2]], unit[[0, 2]])
    whole = (unit[0] @ unit[1]).acos()
    torch.testing.assert_close((found[1] @ unit[0]).acos(), whole / 4, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(arc.norm(dim=1), torch.full((3,), D**0.5))
    same = torch.cat([codes[:1], codes[:1] * 2, -codes[:1]])
    assert torch.isfinite(video.between(same, [(0, 0.5), (1, 0.5)], slerp=True)).all()


def test_frames_are_paintings(model: Model) -> None:
    w, codes = model.faces(model.random_faces(1)), model.random_styles(2)
    frames = list(video.painted(model, w, codes, index=2, batch=4))
    assert [moment for moment, _ in frames] == video.moments(2)
    for number in (0, 8, 40):
        moment, picture_of = frames[number]
        expected = to_uint8(model.paint(w, video.between(codes, [moment]), 2))[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(picture_of - expected).max() <= 1
    first, second = (np.full((64, 64, 3), value, np.uint8) for value in (1, 2))
    slid = video.sliding([first, second], (0, 0.3))
    assert slid.shape == (64, 64, 3) and (slid[:45] == 1).all() and (slid[45:] == 2).all(), "int(64 * 0.3) = 19 rows up"


# --- what `anifast translate` runs


def test_a_painter_inverts_once_and_lets_go(with_psp: Model, tmp_path: Path) -> None:
    model = with_psp
    held = dict(model._nets)
    photos = [picture(tmp_path / f"{n}.png", n, (50, 40)) for n in range(2)]
    art = picture(tmp_path / "art.png", 9)
    model.release("G", "psp", "E_style")
    painter = model.painter(style=[str(art), "random"], styles=2, index=4, batch=3)
    assert not model._nets, "the style encoder is gone again"
    assert painter.labels == ("_v_art", "_v_random-0-00", "_v_random-0-01") and painter.pictures == [art]
    assert painter.about == "3 styles, index 4"
    assert painter.prepare(photos) == {} and not model._nets
    model._nets |= held
    parts = list(painter(torch.stack([painter.read(path) for path in photos])))
    assert [len(part) for part in parts] == [3, 3]
    w = model.invert(torch.stack([styles.pooled(path, 32, "crop") for path in photos]))
    expected = model.paint(w.repeat_interleave(3, 0), styles.codes(painter.styles).repeat(2, 1), 4)
    torch.testing.assert_close(torch.cat(parts), expected, **CLOSE)
    with pytest.raises(AnifastError, match=r"--index 11: 0 .* to 10"):
        model.painter(index=11)
    with pytest.raises(AnifastError, match="--noise -1"):
        model.painter(noise=-1)


def test_triptychs(with_psp: Model, tmp_path: Path) -> None:
    photo, art = picture(tmp_path / "photo.png", 1, (64, 64)), picture(tmp_path / "art.png", 2, (64, 64))
    painter = with_psp.painter(style=[str(art), "random"], triptych=True, parity=True)
    painter.prepare([photo])
    (found,) = painter(torch.stack([painter.read(photo)]))
    assert found.shape == (2, 3, 64, 192)
    pixels = to_uint8(found)
    for k, beside in ((0, art), (1, None)):
        assert torch.equal(pixels[k, :, :, :64], to_tensor(read_image(photo)))
        middle = torch.full((3, 64, 64), 255) if beside is None else to_tensor(read_image(beside))
        assert torch.equal(pixels[k, :, :, 64:128].int(), middle.int())
    w = with_psp.invert(styles.pooled(photo, 32, "crop")[None])
    painted = with_psp.paint(w, styles.codes(painter.styles)[:1])
    assert (pixels[0, :, :, 128:].int() - to_uint8(styles.truncated(painted))[0].int()).abs().max() <= 1
    photo.unlink()
    with pytest.raises(ImageError, match="no such file"):
        painter.read(photo)


def test_pictures_of_many_styles_are_kept_as_there_is_room(
    with_psp: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come in turn, with each face all of them."""
    art = [picture(tmp_path / "art" / f"{n}.png", n, (64, 64)) for n in range(3)]
    faces = [picture(tmp_path / f"{n}.png", n, (64, 64)) for n in range(3)]
    read: list[Path] = []
    shown = styles.shown
    monkeypatch.setattr(styles, "shown", lambda path, *rest: read.append(path) or shown(path, *rest))
    monkeypatch.setattr(styles, "_KEPT", 2 * 3 * 64 * 64)
    painter = styles.Painter(with_psp, styles.gather(with_psp, [str(path.parent) for path in art[:1]]), triptych=True)
    painter.prepare(faces)
    found = torch.cat(list(painter(torch.stack([painter.read(path) for path in faces]))))
    assert [path for path in read if path in art] == [*art, art[2], art[2]]
    for k, result in enumerate(to_uint8(found)):
        assert torch.equal(result[:, :, 64:128], to_tensor(read_image(art[k % 3])))


def test_drawn_codes_are_kept(with_psp: Model, tmp_path: Path) -> None:
    painter = with_psp.painter(styles=2)
    assert painter.save(tmp_path) == tmp_path / "styles.pt" == painter.save(tmp_path)
    assert torch.equal(styles.codes(styles.load(tmp_path / "styles.pt")), with_psp.random_styles(2))
    assert with_psp.painter(seed=3).save(tmp_path) == tmp_path / "styles-2.pt"
    named = [Style("a", torch.zeros(512))]
    assert styles.Painter(with_psp, named).save(tmp_path) is None
    assert TINY["size"] == 64 and sorted(path.name for path in tmp_path.iterdir()) == ["styles-2.pt", "styles.pt"]
