"""Twin-GAN's model: both directions, one picture or many, statistics of norms, embeddings, conditions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stepping import words
from tiny_cyclegan import command, own_cache, picture
from tiny_twingan import TINY, make_data, networks, stage_state, tiny_config, weights, write_run
from torch import Tensor

import anifast
from anifast import cli
from anifast.data.folders import read_image, resize, to_float, to_tensor
from anifast.data.tags import TAGS
from anifast.engine import state as files
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.twingan import checkpoints
from anifast.systems.twingan.config import NORMS
from anifast.systems.twingan.inference import Model, Painter, load
from anifast.systems.twingan.pictures import preprocess

CPU = torch.device("cpu")
#: A sixteenth of what 8 bits can tell apart: nothing in a result that float32's order of sums may change.
UNSEEN = 2 / 255 / 16
_ONE_WAY = r"takes pictures of the source \(s, A\) and paints the target \(t, B\) only, as frozen graphs do"


def model(stage: str = "16", options: dict[str, Any] | None = None, **values: Any) -> Model:
    return load(stage_state(tiny_config(**values), stage), CPU, **(options or {}))


def images(count: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def row(name: str) -> int:
    return [tag for _, tag, _ in TAGS].index(name)


# --- pictures


@pytest.mark.parametrize("to", ["A", "B"])
@pytest.mark.parametrize("stage", ["4", "8to16", "16"])
def test_translation_is_encoder_then_generator(stage: str, to: str) -> None:
    config = tiny_config()
    own = model(stage)
    side, alpha = own.size, 0.25 if "to" in stage else 1.0
    nets = {name: net.eval() for name, net in networks(config, stage, seed=1).items()}  # the averages' seed
    x, domain = images(3, side), {"A": 0, "B": 1}[to]
    with torch.no_grad():
        latent = nets["E"]((x + 1) / 2, (1 - domain,), alpha)
        painted, _ = nets["G"](latent.z, latent.skips, (domain,), alpha)
    assert own.averaged and not own.net("E").training
    expected = (painted * 2 - 1).clamp(-1, 1)
    assert (own.translate(x, to) - expected).abs().max() < UNSEEN
    assert expected.std() > 0.1, "not all of one colour"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stage", ["8to16", "16"])
def test_a_picture_does_not_depend_on_the_others(norm: str, stage: str) -> None:
    own, x = model(stage, norm=norm), images(5)
    for to in ("A", "B"):
        together = own.translate(x, to)
        alone = torch.cat([own.translate(one[None], to) for one in x])
        assert (together - alone).abs().max() < UNSEEN
        again = torch.cat([own.reconstruct(one[None], to) for one in x])
        assert (own.reconstruct(x, to) - again).abs().max() < UNSEEN
        placed = torch.cat([own.embed(one[None], to) for one in x])
        assert (own.embed(x, to) - placed).abs().max() < UNSEEN


@pytest.mark.parametrize("norm", ["batch_norm", "batch_renorm"])
def test_with_statistics_of_the_batch_it_does(norm: str) -> None:
    by_batch, x = model(norm=norm, options={"norm_mode": "batch"}), images(4)
    together, alone = by_batch.translate(x), by_batch.translate(x[:1])
    assert torch.isfinite(together).all() and (together[:1] - alone).abs().max() > 10 * UNSEEN


def test_statistics_of_a_batch_are_its_own_alone() -> None:
    """Of batch renorm nothing remains but batch norm, whatever training remembers."""
    state = stage_state(tiny_config(), "16")
    x = images(4)
    before = load(state, CPU, norm_mode="batch").translate(x)
    for part in ("nets", "ema"):
        for name in ("E", "G"):
            state[part][name]["norms.renorm_mean"] = state[part][name]["norms.renorm_mean"] + 3
            state[part][name]["norms.running_mean"] = state[part][name]["norms.running_mean"] - 3
    assert torch.equal(load(state, CPU, norm_mode="batch").translate(x), before)
    assert not torch.equal(load(state, CPU).translate(x), before)


def test_any_size_and_type() -> None:
    own = model()
    x = images(2, 40)[..., :25]
    small = preprocess((x + 1) / 2, 16, "antialias") * 2 - 1
    assert torch.allclose(own.translate(x), own.translate(small), atol=UNSEEN)
    half = own.translate(x.double())
    assert half.dtype == torch.float64 and half.shape == (2, 3, 16, 16) and not half.requires_grad
    assert own.translate(x[:0]).shape == (0, 3, 16, 16) and own.embed(x[:0], "s").shape == (0, own.dimensions)
    assert own.translate(x).abs().max() <= 1
    for wrong in (x[0], x[:, :1], (x * 0).to(torch.uint8)):
        with pytest.raises(ValueError, match="^images: expected"):
            own.translate(wrong)


@pytest.mark.parametrize(
    ("scaling", "how"), [("antialias", "crop"), ("antialias", "stretch"), ("tf1", "crop"), ("tf1", "stretch")]
)
def test_pictures_are_scaled_as_in_training(scaling: str, how: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 3, (37, 50))
    found = model(resize=scaling).reader(how)(path)
    image = read_image(path)
    if scaling == "antialias":
        assert torch.equal(found, to_float(to_tensor(resize(image, 16, how))))
    else:
        image = image.crop((0, 6, 37, 43)) if how == "crop" else image
        assert torch.equal(found, preprocess(to_tensor(image)[None], 16, "tf1")[0] * 2 - 1)


def test_domains_by_all_their_names() -> None:
    own, x = model(), images(2)
    for names in (("t", "target", "B"), ("s", "source", "A")):
        results = [own.translate(x, name) for name in names]
        assert all(torch.equal(one, results[0]) for one in results)
        own.require(names[0])
    for call in (own.translate, own.reconstruct, own.embed):
        with pytest.raises(AnifastError, match=r"domain 'anime': there are source \(s, A\) and target \(t, B\)"):
            call(x, "anime")
    with pytest.raises(AnifastError, match="domain 'C'"):
        own.require("C")


def test_infinities_do_not_become_colours() -> None:
    state = stage_state(tiny_config(), "16")
    state["ema"]["G"]["norms.beta"][1] = torch.inf
    assert load(state, CPU).translate(images(1)).isnan().all()
    assert torch.isfinite(load(state, CPU).translate(images(1), "A")).all(), "the other domain is not concerned"


def test_embedding_is_the_own_encoders_map() -> None:
    own, x = model(), images(3)
    for domain in ("s", "t"):
        z = own.encode((x + 1) / 2, domain).z
        flat = torch.stack([z[:, c, y, w] for c in range(8) for y in range(4) for w in range(4)], 1)
        found = own.embed(x, domain)
        assert found.shape == (3, own.dimensions) and own.dimensions == 128
        assert torch.allclose(found, flat / flat.norm(dim=1, keepdim=True)), "channel, row, column"
        assert torch.allclose(found.norm(dim=1), torch.ones(3))
    assert not torch.allclose(own.embed(x, "s"), own.embed(x, "t"), atol=0.01)


def test_a_run_is_its_last_phase(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=["4", "4to8", "8"])
    own = anifast.load(run, "cpu")
    assert isinstance(own, Model) and own.stage == "8" and own.size == own.multiple == 8
    assert anifast.load(run / "4", "cpu").size == 4
    assert own.options == () and model(style=4).options == ("seed",)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(AnifastError, match="Twin-GAN has no option colour"):
        model(options={"colour": "red"})
    with pytest.raises(AnifastError, match="precision 'fp8': there are fp32, bf16"):
        model(options={"precision": "fp8"})
    with pytest.raises(AnifastError, match="norm_mode 'none': there are running, batch, recalibrated"):
        model(options={"norm_mode": "none"})
    for norm in ("instance_norm", "layer_norm", "none"):
        for mode in ("batch", "recalibrated"):
            with pytest.raises(AnifastError, match=f"norm_mode '{mode}': this model's norm, {norm}, takes no statist"):
                model(norm=norm, options={"norm_mode": mode})
        assert model(norm=norm, options={"norm_mode": "running"}).norm_mode == "running"
    with pytest.raises(CheckpointError, match="not been recalibrated; do so by anifast twingan recalibrate"):
        model(options={"norm_mode": "recalibrated"})
    state = stage_state(tiny_config(), "16")
    del state["nets"]["G"], state["ema"]["G"]
    own = load(state, CPU)
    assert own.embed(images(1), "s").shape == (1, 128), "the encoder is there"
    with pytest.raises(CheckpointError, match="no network G"):
        own.require("t")
    with pytest.raises(CheckpointError, match="no network G"):
        own.translate(images(1))


def test_bf16_is_near() -> None:
    x = images(4)
    exact, rounded = model().translate(x), model(options={"precision": "bf16"}).translate(x)
    assert torch.isfinite(rounded).all() and 0 < (exact - rounded).abs().mean() < 0.1


# --- recalibration


def test_recalibrated_by_one_batch_is_that_batchs_own() -> None:
    for norm in ("batch_renorm", "batch_norm"):
        state = stage_state(tiny_config(norm=norm), "16")
        own, x, y = load(state, CPU), images(5), images(6, seed=1)
        assert not own.recalibrated
        assert own.recalibrate([x], [y]) == 11
        new = own.recalibrated_state(state)
        by_batch, again = load(new, CPU, norm_mode="batch"), load(new, CPU, norm_mode="recalibrated")
        assert again.recalibrated
        for to, given in (("B", x), ("A", y)):
            assert (by_batch.translate(given, to) - again.translate(given, to)).abs().max() < UNSEEN
            by_training = load(new, CPU, norm_mode="running").translate(given, to)
            assert (by_training - again.translate(given, to)).abs().max() > 10 * UNSEEN
            assert torch.equal(load(new, CPU).translate(given, to), again.translate(given, to)), "taken where there are"


@pytest.mark.parametrize(("preset", "mode"), [("fast", "recalibrated"), ("tg2018", "running")])
def test_what_training_has_filled_is_used(preset: str, mode: str, tmp_path: Path) -> None:
    """Preset fast keeps statistics of deployment while it trains, tg2018 does not; files are used by what they have."""
    data = make_data(tmp_path / "data", count=4)
    options = words(TINY | {"preset": preset, "stage": "4", "size": 4})
    with own_cache(tmp_path / "cache"):
        run = cli.main(
            command("train", "twingan", "--data", data, "--out", tmp_path / "run", "--device", "cpu", *options)
        )
    assert run == 0
    own, x = anifast.load(tmp_path / "run", "cpu"), images(3)
    assert own.recalibrated == (mode == "recalibrated") and own.norm_mode == mode
    assert all(own.net(name).norms.source == mode for name in ("E", "G"))
    same, other = (anifast.load(tmp_path / "run", "cpu", norm_mode=one) for one in (mode, "batch"))
    assert torch.equal(own.translate(x), same.translate(x)) and own.hash == same.hash
    assert not torch.equal(own.translate(x), other.translate(x))


def test_recalibrated_statistics_are_those_of_all_pictures() -> None:
    """The first layer sees the pictures themselves: its statistics are those of all of them, whatever the batches."""
    state = stage_state(tiny_config(), "16")
    own, x = load(state, CPU), images(9)
    with torch.no_grad():
        weight = own.net("E").from_rgb["16"].weight.double()
        seen = torch.nn.functional.conv2d((x.double() + 1) / 2, weight)
    for sizes in ([9], [3, 3, 3], [2, 6, 1]):
        own.recalibrate(x.split(sizes), [images(3)])
        norms = own.net("E").norms
        for found, expected in (
            (norms.recalibrated_mean[0, :8], seen.mean((0, 2, 3))),
            (norms.recalibrated_var[0, :8], seen.var((0, 2, 3), correction=0)),
        ):
            # a rounding of the pass's own mean and std, in float32, and one of what is kept
            assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_recalibration_takes_the_deployed_way() -> None:
    """E of each domain by its own pictures, G of each domain by the other's; and each batch once."""
    state = stage_state(tiny_config(), "16")
    x, y, told = images(4), images(4, seed=1), []
    kept = {}
    for name, (source, target) in {"both": (x, y), "source": (x.flip(3), y), "target": (x, y.flip(3))}.items():
        own = load(state, CPU)
        own.recalibrate([source[:2], source[2:]], [target], on_batch=lambda: told.append(1))
        kept[name] = {net: own.net(net).norms.recalibrated_mean.clone() for net in ("E", "G")}
        assert own.net("E").norms.source == "running"
    assert len(told) == 9
    both = kept["both"]
    assert torch.equal(kept["source"]["E"][1], both["E"][1]) and torch.equal(kept["target"]["E"][0], both["E"][0])
    assert torch.equal(kept["source"]["G"][0], both["G"][0]) and torch.equal(kept["target"]["G"][1], both["G"][1])
    for other, domain in (("source", 0), ("target", 1)):
        assert not torch.equal(kept[other]["E"][domain], both["E"][domain])
        assert not torch.equal(kept[other]["G"][1 - domain], both["G"][1 - domain])


def test_a_recalibrated_checkpoint_holds_the_originals(tmp_path: Path) -> None:
    state = stage_state(tiny_config(), "16") | {"optim": {"G": {"state": {}}}, "steps": 7}
    own = load(state, CPU)
    own.recalibrate([images(4)], [images(4)])
    files.save(tmp_path / "new.pt", own.recalibrated_state(state))
    new = files.load(tmp_path / "new.pt")
    assert new.keys() == state.keys() and new["steps"] == 7 and new["optim"] == state["optim"]
    for part in ("nets", "ema"):
        for name, net in state[part].items():
            for key, value in net.items():
                kept = new[part][name][key]
                if part == "ema" and name in ("E", "G") and key.endswith(("recalibrated_mean", "recalibrated_var")):
                    assert value.isnan().all() and torch.isfinite(kept).all()
                else:
                    assert torch.equal(kept, value) or (kept.isnan().all() and value.isnan().all())
    plain, better = load(new, CPU, norm_mode="running"), load(new, CPU)
    assert plain.hash == own.hash, "embeddings by training's statistics are what they were"
    assert better.hash != own.hash, "and others by the new ones"
    assert torch.equal(plain.translate(images(2)), own.translate(images(2)))
    assert all(value > 0 for value in own.drift("E") + own.drift("G"))


def test_the_authors_files_become_a_checkpoint_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("tg2018")
    nets = weights(networks(config, "16"))
    converted = checkpoints.tensorflow.Converted(config, "16", 1.0, nets, ("B", "A"))
    monkeypatch.setattr(checkpoints.tensorflow, "convert", lambda variables, given: converted)
    state: dict[str, Any] = {"tensorflow": {"any": torch.zeros(1)}}
    with pytest.warns(UserWarning, match="do not tell whether the networks have pixel norm.*--pixel-norm off"):
        own = load(state, CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(state, CPU, pixel_norm=True).translate(images(2)), own.translate(images(2)))
    own.recalibrate([images(4)], [images(4)])
    new = load(own.recalibrated_state(state), CPU, norm_mode="recalibrated")
    assert new.config == config and new.hash != own.hash
    plain = load(own.recalibrated_state(state), CPU, norm_mode="running")
    assert plain.hash == own.hash and torch.equal(plain.translate(images(2)), own.translate(images(2)))
    monkeypatch.setattr(checkpoints.tensorflow, "convert", lambda variables, given: converted._replace(targets=("B",)))
    frozen = load(state, CPU, pixel_norm=True)
    assert frozen.held == ("B",) and torch.equal(frozen.translate(images(2)), own.translate(images(2)))
    assert torch.equal(frozen.embed(images(2), "s"), own.embed(images(2), "s"))
    for call in (
        lambda: frozen.translate(images(1), "A"),
        lambda: frozen.embed(images(1), "t"),
        lambda: frozen.reconstruct(images(1), "s"),
        lambda: frozen.recalibrate([images(2)], [images(2)]),
    ):
        with pytest.raises(CheckpointError, match=_ONE_WAY):
            call()


def test_nothing_to_recalibrate() -> None:
    with pytest.raises(AnifastError, match="norm instance_norm: remembers no statistics"):
        model(norm="instance_norm").recalibrate([images(2)], [images(2)])
    with pytest.raises(ValueError, match="at least one batch of each"):
        model().recalibrate([images(2)], [])
    state = stage_state(tiny_config(), "16")
    state["ema"]["E"]["blocks.16.0.weight"][0] = torch.nan
    with pytest.raises(AnifastError, match="statistics of E are not finite"):
        load(state, CPU).recalibrate([images(2)], [images(2)])


def test_hash_tells_models_apart() -> None:
    config = tiny_config()
    one = load(stage_state(config, "16"), CPU)
    assert one.hash == load(stage_state(config, "16"), CPU, precision="bf16").hash
    other = stage_state(config, "16")
    other["ema"]["E"]["norms.running_var"][0, 0] += 1e-3
    assert len({one.hash, load(other, CPU).hash, load(stage_state(config, "16", seed=2), CPU).hash}) == 3


# --- conditions


def test_tags_steer_translations() -> None:
    own, x = model(tags=True), images(3)
    plain = own.translate(x)
    nothing = torch.zeros(len(TAGS))
    assert torch.equal(own.translate(x, tags=nothing), plain), "no tag is no condition"
    green, blue = (nothing.clone().index_fill(0, torch.tensor(row(name)), 1) for name in ("green_hair", "blue_hair"))
    results = [own.translate(x, tags=vector) for vector in (green, blue)]
    assert (results[0] - results[1]).abs().mean() > UNSEEN and (results[0] - plain).abs().mean() > UNSEEN
    mixed = own.translate(x, tags=torch.stack([green, blue, nothing]))
    for i, one in enumerate((results[0], results[1], plain)):
        assert (mixed[i] - one[i]).abs().max() < UNSEEN, "each picture follows its own"
    painted = Painter(own, "t", tags=green, about="green")(x)
    assert torch.equal(painted, results[0])
    with pytest.raises(AnifastError, match="tags: they are of pictures of the target"):
        own.translate(x, "A", tags=green)
    with pytest.raises(AnifastError, match="this model follows none"):
        model().translate(x, tags=green)
    with pytest.raises(ValueError, match=r"tags: expected \[3 or 1, 51\], got \[2, 51\]"):
        own.translate(x, tags=torch.zeros(2, 51))


def test_tags_are_recognised_in_each_picture_by_itself() -> None:
    own, x = model(tags=True), images(4)
    scores = own.recognise(x)
    assert scores.shape == (4, len(TAGS)) and ((scores > 0) & (scores < 1)).all()
    assert scores.std(0).max() > 1e-3, "pictures differ"
    assert (own.recognise(x[2:3]) - scores[2:3]).abs().max() < UNSEEN
    with pytest.raises(AnifastError, match="this model follows none"):
        model().recognise(x)
    state = stage_state(tiny_config(tags=True), "16")
    del state["nets"]["D_t"]
    with pytest.raises(CheckpointError, match="no discriminator of the target"):
        load(state, CPU).recognise(x)


def test_styles_are_of_a_seed_or_of_a_picture() -> None:
    own, x = model(style=4), images(3)
    first = own.translate(x)
    assert torch.equal(own.translate(x, style=0), first) and torch.equal(own.painter("B")(x), first)
    other = own.translate(x, style=1)
    assert (other - first).abs().mean() > UNSEEN and torch.equal(own.painter("B", seed=1)(x), other)
    assert own.painter("B", seed=1).about == "style of seed 1"
    styles = own.styles_of(x, "t")
    assert styles.shape == (3, 4) and styles.std(0).min() > 1e-3
    assert torch.equal(own.reconstruct(x, "t"), own.reconstruct(x, "t", style=styles)), "their own"
    assert (own.reconstruct(x, "t") - own.reconstruct(x, "t", style=0)).abs().mean() > UNSEEN
    with pytest.raises(AnifastError, match="--seed -1"):
        own.painter("B", seed=-1)
    for call in (lambda: model().translate(x, style=1), lambda: model().styles_of(x, "t")):
        with pytest.raises(AnifastError, match="this model embeds no styles"):
            call()


def test_recalibration_under_conditions() -> None:
    tagged, x = model(tags=True), images(4)
    means = []
    for tags in (None, torch.eye(len(TAGS))[:3]):
        tagged.recalibrate([x], [x], tags=tags)
        means.append(tagged.net("G").norms.recalibrated_mean.clone())
    assert torch.equal(means[0][0], means[1][0]) and not torch.equal(means[0][1], means[1][1]), "of the target alone"
    styled = model(style=4)
    styled.recalibrate([x], [x])
    assert all(bool(styled.net(name).norms.recalibrated) for name in ("E", "G", "E_style"))


def test_a_picture_file_is_read_as_the_painter_paints_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 30), (200, 30, 90)).save(path)
    own = model()
    assert torch.equal(Painter(own, "t").read(path), own.prepared(read_image(path)))


def test_recalibrated_statistics_are_of_the_deployed_way_alone() -> None:
    """A picture's own domain is painted by training's, as are painted pictures read again."""
    state = stage_state(tiny_config(), "16")
    own, x = load(state, CPU), images(3)
    own.recalibrate([images(5, seed=4)], [images(5, seed=5)])
    new = own.recalibrated_state(state)
    plain, better = load(new, CPU, norm_mode="running"), load(new, CPU)
    assert better.norm_mode == "recalibrated"
    pixels = (x + 1) / 2
    for domain in ("s", "t"):
        assert not torch.allclose(better.encode(pixels, domain).z, plain.encode(pixels, domain).z, atol=0.01)
        assert torch.equal(better.encode(pixels, domain, painted=True).z, plain.encode(pixels, domain).z)
        latent = plain.encode(pixels, domain)
        assert torch.equal(better.paint(latent, domain, same=True), plain.paint(latent, domain, same=True))
        assert torch.equal(plain.paint(latent, domain, same=True), plain.paint(latent, domain))
        assert not torch.allclose(better.paint(latent, domain), plain.paint(latent, domain), atol=0.01)
        with_real = better.paint(better.encode(pixels, domain), domain, same=True).mul(2).sub(1).clamp(-1, 1)
        assert torch.equal(better.reconstruct(x, domain), with_real)
