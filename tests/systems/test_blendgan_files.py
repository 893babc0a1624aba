"""Files of BlendGAN: runs, the authors' of every kind and StyleGAN2's are read, and written for the authors' code."""

from __future__ import annotations

import argparse
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_disentangle
import tiny_gnr
import torch
from tiny_blendgan import JUDGES, authors_files, authors_style_encoder, stage_state, tiny_config, weights, write_run
from tiny_cyclegan import command, leftovers, the_error
from torch import Tensor

from anifast import cli, systems
from anifast.errors import AnifastError, CheckpointError
from anifast.nn import stylegan2
from anifast.systems.blendgan.checkpoints import (
    NETS,
    architecture,
    averaged,
    build,
    config_of,
    contents,
    gather,
    gram_channels,
    header,
    mean_latent,
    recognises,
    style_encoder_weights,
)
from anifast.systems.blendgan.config import Config
from anifast.systems.blendgan.convert import convert, hint
from anifast.systems.blendgan.networks import StyleEncoder

Capture = pytest.CaptureFixture[str]
#: Like the authors' networks as far as their files tell: VGG-19 under the style encoder.
THEIRS = tiny_config(backbone="vgg19", style_mlp=3)


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same bit for bit; the order of keys does not matter."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and set(one) == set(other) and all(equal(one[k], other[k]) for k in one)
    return bool(one == other)


def written(state: dict[str, Any], out: str = "out", **options: Any) -> dict[str, Any]:
    """Name -> contents of what a conversion gives; networks of tests are too narrow for the authors' code."""
    options = {"force": True} | options
    found = convert(state, Path("nowhere"), Path(out), **options)
    return {path.name: content for path, content in found.items()}


def through(path: Path, state: dict[str, Any], **options: Any) -> dict[str, Any]:
    """`state` written to `path` and read as any file is."""
    torch.save(state, path, **options)
    return systems.read(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "b")


@pytest.fixture(scope="module")
def theirs() -> dict[str, dict[str, Any]]:
    return authors_files(THEIRS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, theirs: dict[str, dict[str, Any]]) -> Path:
    path = tmp_path_factory.mktemp("theirs")
    for name, state in theirs.items():
        torch.save(state, path / name)
    return path


@pytest.fixture(scope="module")
def rosinality() -> dict[str, Any]:
    """What its training writes, or its convert_weight.py with the discriminator."""
    c = tiny_config()
    torch.manual_seed(0)
    nets = [
        stylegan2.Generator(c.size, c.style_dim, c.n_mlp, c.channel_multiplier, base_channels=c.base_channels)
        for _ in range(2)
    ]
    judge = stylegan2.Discriminator(c.size, c.channel_multiplier, base_channels=c.base_channels)
    return {
        "g": dict(nets[0].state_dict()),
        "g_ema": dict(nets[1].state_dict()),
        "d": dict(judge.state_dict()),
        "latent_avg": torch.randn(c.style_dim),
        "args": argparse.Namespace(size=c.size),
    }


# --- which files these are, and what they hold


def test_a_run_and_its_parts(run: Path) -> None:
    state = systems.read(run)
    assert systems.recognise(state, run) == "blendgan" and set(state["parts"]) == {"style", "gan"}
    assert config_of(state) == tiny_config() and averaged(state)
    found = contents(state)
    assert (found.origin, found.config, found.ema, found.steps) == ("anifast", tiny_config(), True, 2)
    assert list(found.nets) == ["G", "E_style", "projector", "D_face", "D_style", "D_latent"]
    expected = stage_state(tiny_config(), "gan")
    assert equal(found.nets["G"], expected["ema"]["G"]) and equal(found.nets["D_latent"], expected["nets"]["D_latent"])
    assert found.latent_avg is None and found.truncation is None
    live = contents(state, live=True)
    assert not live.ema and equal(live.nets["G"], expected["nets"]["G"])
    for stage, nets in (("style", ["E_style", "projector"]), ("gan", ["G", "D_face", "D_style", "D_latent"])):
        for path in (run / stage, run / stage / "checkpoint.pt"):
            part = systems.read(path)
            assert systems.recognise(part, path) == "blendgan" and list(contents(part).nets) == nets
            assert averaged(part) == (stage == "gan")


def test_weights_stay_on_disk(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped, load = [], torch.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        mapped.append(kwargs.get("mmap"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    for path, count in ((run, 2), (run / "gan", 1), (folder, 3), (folder / "blendgan.pt", 1)):
        mapped.clear()
        systems.read(path)
        assert mapped == [True] * count


def test_reading_draws_nothing(run: Path) -> None:
    before = torch.get_rng_state()
    for name in contents(systems.read(run)).nets:
        build(name, tiny_config())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_authors_files(folder: Path, theirs: dict[str, dict[str, Any]]) -> None:
    state = systems.read(folder)
    assert systems.recognise(state, folder) == "blendgan" and averaged(state)
    found = contents(state)
    assert found.origin == "authors" and found.ema and found.truncation == 0.7 and not found.config.folded
    assert found.latent_avg is not None and found.latent_avg.shape == (10, 32)
    assert torch.equal(found.latent_avg, theirs["blendgan.pt"]["latent_avg"].expand(10, 32))
    assert architecture(found.config) == architecture(THEIRS) | {"style_side": 256, "psp_side": 256}
    style, gan = (weights(dataclasses.replace(THEIRS, folded=False), stage) for stage in ("style", "gan"))
    assert equal(found.nets, style | gan)
    held = {
        "blendgan.pt": ["G", "E_style"],
        "style_encoder.pt": ["E_style", "projector"],
        "discriminators.pt": ["D_face", "D_style", "D_latent"],
    }
    for name, nets in held.items():
        one = contents(systems.read(folder / name))
        assert list(one.nets) == nets and one.origin == "authors" and one.ema == (name == "blendgan.pt")
        assert equal(one.nets, {net: found.nets[net] for net in nets})
    with pytest.raises(CheckpointError, match="which no run goes on from; begin one .* by --style-encoder and --start"):
        config_of(state)


def test_the_encoder_of_photos(tmp_path: Path) -> None:
    """In a `state_dict` or not, beside a decoder, with means of any shape; without one it is the generator's."""
    config = tiny_config(psp=True, style_mlp=1)
    psp = weights(config, "psp")["psp"]
    mean = psp.pop("latent_avg")
    inner = {f"encoder.{key}": value for key, value in psp.items()}
    outer = {"state_dict": inner | {"decoder.input.input": torch.zeros(1)}, "opts": argparse.Namespace(a=1)}
    for means in (mean, mean[None], mean[0], mean[:1]):
        found = contents(through(tmp_path / "psp_encoder.pt", outer | {"latent_avg": means}))
        assert list(found.nets) == ["psp"] and found.config.size == 64 and found.latent_avg is None
        assert equal(found.nets["psp"], psp | {"latent_avg": mean})
    assert equal(contents(inner | {"latent_avg": mean}).nets["psp"], psp | {"latent_avg": mean})
    bare = contents(inner)
    assert equal(bare.nets["psp"], psp)
    generator = {"g_ema": weights(config, "gan")["G"], "latent_avg": mean[0] + 1}
    torch.save(generator, tmp_path / "blendgan.pt")
    torch.save(inner, tmp_path / "psp_encoder.pt")
    both = contents(systems.read(tmp_path))
    assert torch.equal(both.nets["psp"]["latent_avg"], mean + 1)
    with pytest.raises(CheckpointError, match="latent_avg is missing, .*convert it together with its generator"):
        written(inner, format="authors")


@pytest.mark.parametrize("kind", ["flat", "prefixed", "nested", "wrapped", "without projector", "folded"])
def test_style_encoders_of_any_layout(kind: str) -> None:
    config = dataclasses.replace(THEIRS, folded=kind == "folded")
    style = weights(config, "style")
    encoder = authors_style_encoder(style["E_style"])
    flat = encoder | style["projector"]
    kinds: dict[str, dict[str, Any]] = {
        "flat": flat,
        "prefixed": {f"net.encoder.{key}": value for key, value in flat.items()},
        "nested": {"epoch": 3, "model": {"style_encoder": flat}, "optim": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        "wrapped": {"state": {f"module.{key}": value for key, value in flat.items()}},
        "without projector": {"e_ema": encoder},
        "folded": flat,
    }
    state = kinds[kind]
    assert recognises(state)
    found = contents(state)
    expected = {"E_style": style["E_style"]} if kind == "without projector" else style
    assert equal(found.nets, expected) and found.config.folded == (kind == "folded")
    assert architecture(found.config, *found.nets) == architecture(THEIRS, *found.nets) | {"style_side": 256}


def test_stylegan2(tmp_path: Path, rosinality: dict[str, Any]) -> None:
    for packed in (True, False):  # files of before 2020 too
        state = through(tmp_path / "ffhq.pt", rosinality, _use_new_zipfile_serialization=packed)
        assert systems.recognise(state, "ffhq.pt") == "blendgan" and averaged(state)
        found = contents(state)
        assert found.origin == "stylegan2" and found.ema
        assert equal(found.nets, {"G": rosinality["g_ema"], "D_face": rosinality["d"]})
        assert architecture(found.config, "G", "D_face") == architecture(tiny_config(), "G", "D_face")
        assert equal(contents(state, live=True).nets["G"], rosinality["g"])
    one = contents(rosinality["g_ema"])
    assert one.origin == "stylegan2" and not one.ema and list(one.nets) == ["G"]
    assert list(contents(rosinality["d"]).nets) == ["D_face"]
    with pytest.raises(CheckpointError, match="^nowhere: this is a generator of StyleGAN2, which knows no styles"):
        written(rosinality)


def test_discriminators_under_any_names() -> None:
    nets = weights(tiny_config(), "gan")
    judges = {name: nets[name] for name in JUDGES}
    for names in (JUDGES, {"D_face": "face", "D_style": "Style_D", "D_latent": "p"}, {"D_face": "d", "D_latent": "d2"}):
        state = {"state": {theirs: judges[own] for own, theirs in names.items()}}
        assert equal(contents(state).nets, {own: judges[own] for own in names})
    assert equal(contents(judges["D_latent"]).nets, {"D_latent": judges["D_latent"]})
    with pytest.raises(CheckpointError, match="holds several discriminators, d1 and d2, .* call them d_face, d_style"):
        contents({"d1": judges["D_face"], "d2": judges["D_style"]})


def test_files_of_other_systems_are_not_these(run: Path, folder: Path, rosinality: dict[str, Any]) -> None:
    gnr = tiny_gnr.tiny_config()
    others: list[dict[str, Any]] = [
        tiny_gnr.own_state(gnr),
        tiny_gnr.authors_state(gnr),
        tiny_gnr.weights(gnr)["G_A2B"],
        tiny_gnr.weights(gnr)["D_A"],
        tiny_disentangle.run_state(tiny_disentangle.tiny_config(), "stage2"),
        tiny_disentangle.weights(tiny_disentangle.tiny_config(), "stage1", torch.tensor([3, 3]))["G"],
        {"g_ema": {}},
        {"g_ema": {"a": torch.zeros(1)}, "latent_avg": torch.zeros(512)},
        {"authors": {"options": 3}, "nets": {}},
        {},
    ]
    assert not any(recognises(state) for state in others)
    own = [systems.read(path) for path in (run, run / "gan", folder, *folder.glob("*.pt"))]
    for state in (*own, rosinality, rosinality["g_ema"], rosinality["d"]):
        for name in set(systems.SYSTEMS) - {"blendgan"}:
            assert not systems.module(name, "checkpoints").recognises(state), name


# --- what the shapes tell


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": 128, "n_mlp": 5},
        {"size": 256, "channel_multiplier": 2.0, "style_dim": 40},
        {"size": 128, "base_channels": 100, "channel_multiplier": 0.33},
        {"size": 512, "base_channels": 64, "n_mlp": 1},
        {"size": 1024, "base_channels": 64, "channel_multiplier": 2.0},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()) or "as it is",
)
def test_shapes_tell_the_architecture(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    nets = {name: build(name, config).state_dict() for name in ("G", *JUDGES)}
    state = {"g_ema": nets["G"]} | {theirs: nets[own] for own, theirs in JUDGES.items()}
    real = {
        name: {key: torch.zeros(1).expand(value.shape) for key, value in net.items()} for name, net in state.items()
    }
    for net in real.values():  # constants are checked
        for key in [key for key in net if key.endswith("kernel")]:
            del net[key]
    assert architecture(contents(real).config, "G", *JUDGES) == architecture(config, "G", *JUDGES)
    for name, net in real.items():
        own = {"g_ema": "G", **{theirs: own for own, theirs in JUDGES.items()}}[name]
        assert architecture(contents({name: net}).config, own) == architecture(config, own)


def test_architecture_knows_nothing_of_folds() -> None:
    assert architecture(tiny_config(folded=True)) == architecture(tiny_config(folded=False))
    assert architecture(tiny_config()) == architecture(tiny_config(channel_multiplier=1.01))  # 8 channels of 8.08
    assert architecture(tiny_config()) != architecture(tiny_config(channel_multiplier=1.13))
    assert set(architecture(tiny_config(), "projector")) == {"style_dim", "projection"}


# --- the mean of w


def test_a_file_without_latent_avg(theirs: dict[str, dict[str, Any]]) -> None:
    found = contents(theirs["blendgan.pt"])
    assert torch.equal(mean_latent(found), found.latent_avg)  # type: ignore[arg-type]
    missing = contents({"g_ema": theirs["blendgan.pt"]["g_ema"]})
    assert missing.latent_avg is None
    mean = mean_latent(missing)
    net = build("G", missing.config)
    net.load_state_dict(missing.nets["G"], assign=True)
    with torch.no_grad():
        w = net.get_latent(torch.randn(4096, 32, generator=torch.Generator().manual_seed(5)))  # type: ignore[operator]
    # of as many others: within 6 deviations of the difference of two means
    assert mean.shape == (10, 32) and bool(((mean[0] - w.mean(0)).abs() < 6 * w.std(0) * (2 / 4096) ** 0.5).all())
    assert torch.equal(mean, mean_latent(missing))
    with pytest.raises(CheckpointError, match="latent_avg is missing, and the generator"):
        mean_latent(contents(theirs["style_encoder.pt"]))


def test_means_of_each_shape(theirs: dict[str, dict[str, Any]]) -> None:
    whole = torch.randn(10, 32)
    for given, expected in (
        (whole, whole),
        (whole[None], whole),
        (whole[0], whole[:1].expand(10, 32)),
        (whole[:1], whole[:1].expand(10, 32)),
    ):
        found = contents(theirs["blendgan.pt"] | {"latent_avg": given})
        assert found.latent_avg is not None and torch.equal(found.latent_avg, expected)


# --- files that cannot be used


def without(file: str, part: str, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda files: files[file][part].pop(key)


def put(file: str, part: str, key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda files: files[file][part].update({key: value})


def replace(file: str, key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda files: files[file].update({key: value})


OTHER = {
    name: {key: torch.zeros(value.shape) for key, value in net.items() if not key.endswith("kernel")}
    for name, net in weights(tiny_config(size=128, style_dim=40), "gan").items()
}
VGG = "embedder.embedder.feature_extractor.vgg_layers"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("blendgan.pt", "g_ema", "add_weight"), "g_ema: unknown key embedding.1.weight"),
        (without("blendgan.pt", "g_ema", "style.1.bias"), r"g_ema: style.1.bias is missing, expected shape \[32\]"),
        (
            without("blendgan.pt", "g_ema", "conv1.conv.modulation.weight"),
            r"g_ema is no generator .*conv1.conv.modulation.weight is missing, expected \[C, style_dim\]",
        ),
        (without("blendgan.pt", "g_ema", "convs.7.conv.weight"), "convs.7.conv.weight is missing"),
        (without("blendgan.pt", "g_ema", "noises.noise_3"), r"noises.noise_3 is missing, expected shape \[1, 1, 1"),
        (
            without("blendgan.pt", "g_ema", f"{VGG}.0.weight"),
            r"g_ema: embedder: embedder.feature_extractor.vgg_layers.0.weight is missing",
        ),
        (put("blendgan.pt", "g_ema", "a.b", torch.zeros(3)), r"unknown key a.b of shape \[3\]; there is none in si"),
        (put("blendgan.pt", "g_ema", "style.1.bias", torch.zeros(32).long()), "style.1.bias is of torch.int64"),
        (put("blendgan.pt", "g_ema", "add_weight", torch.ones(1, 12, 1)), r"\[1, 12, 1\], expected \[1, 10, 1\]"),
        (
            put("blendgan.pt", "g_ema", "convs.0.conv.blur.kernel", torch.ones(4, 4) / 16),
            "g_ema: convs.0.conv.blur.kernel is another FIR filter",
        ),
        (
            put("blendgan.pt", "g_ema", "embedder.embedder_mlp.0.weight", torch.zeros(32, 1000)),
            r"embedder_mlp.0.weight has shape \[32, 1000\], expected \[style_dim, 610304\], or \[style_dim, 305888\] f",
        ),
        (replace("blendgan.pt", "latent_avg", torch.zeros(18, 32)), r"latent_avg has shape \(18, 32\), expected .*64"),
        (replace("blendgan.pt", "latent_avg", torch.zeros(64)), r"latent_avg has shape \[64\], expected 32 numbers"),
        (replace("blendgan.pt", "latent_avg", 3), "latent_avg is of type int, expected a tensor"),
        (replace("blendgan.pt", "truncation", "much"), "truncation is 'much', expected a number"),
        (
            put("style_encoder.pt", "model", "embedder_mlp.0.weight", torch.zeros(16, 610_304)),
            "blendgan.pt: g_ema and style_encoder.pt: model do not belong together: style_dim is 32 in .* and 16 in",
        ),
        (lambda files: files["discriminators.pt"].update(d_face=OTHER["D_face"]), "size is 64 in .* and 128 in disc"),
        (
            lambda files: files["discriminators.pt"].update(d_style_latent=OTHER["D_latent"]),
            "do not belong together: style_dim is 32 in blendgan.pt: g_ema and 40 in discriminators.pt: d_style_latent",
        ),
        (without("discriminators.pt", "d_face", "final_conv.0.weight"), r"d_face is no disc.*final_conv.0.weight is"),
        (without("discriminators.pt", "d_style_latent", "l_out.bias"), r"d_style_latent: l_out.bias is missing"),
        (replace("style_encoder.pt", "model", {"a": 1}), "style_encoder.pt: no network of BlendGAN is in it"),
    ],
)  # fmt: skip
def test_the_authors_files_that_cannot_be(
    theirs: dict[str, dict[str, Any]], change: Callable[[dict[str, Any]], object], words: str
) -> None:
    files = {
        name: {key: dict(part) if isinstance(part, dict) else part for key, part in state.items()}
        for name, state in theirs.items()
    }
    change(files)
    with pytest.raises(CheckpointError, match=words):
        contents({"authors": files})


def psp_of(slots: int) -> dict[str, Tensor]:
    """Keys of an encoder of photos that tell how many slots it has; its weights are not those of a whole one."""
    shared = {"encoder.input_layer.0.weight": torch.zeros(64, 3, 3, 3)}
    return shared | {f"encoder.styles.{slot}.linear.weight": torch.zeros(512, 512) for slot in range(slots)}


def test_an_encoder_of_photos_of_another_size() -> None:
    generator = {"g_ema": weights(tiny_config(psp=True), "gan")["G"]}
    state = {"authors": {"blendgan.pt": generator, "psp_encoder.pt": psp_of(18)}}
    words = (
        "blendgan.pt: g_ema and psp_encoder.pt: the encoder of photos do not belong together: size is 64 .* and 1024"
    )
    with pytest.raises(CheckpointError, match=words):
        contents(state)
    with pytest.raises(CheckpointError, match=r"gives codes for 8 slots; generators have 10 \(64 pixels\), 12 \(128"):
        contents(psp_of(8))
    with pytest.raises(CheckpointError, match=r"photos: input_layer.1.weight is missing, .*size 64, psp_side 256"):
        contents(psp_of(10))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(format="anifast.blendgan/2"), "format 'anifast.blendgan/2', expected 'anifast.blendgan/1'"),
        (lambda s: s.pop("config"), "the settings of the run are missing"),
        (lambda s: s["config"].update(size=65), "the settings in this file cannot be used: setting size: 65"),
        (lambda s: s.update(stage="gam"), "its stage is 'gam', expected one of style, gan, psp"),
        (lambda s: s.update(nets=3), "nets is a int, expected a dict"),
        (lambda s: s.update(nets={}, ema={}), "nets holds none of G, D_face, D_style, D_latent"),
        (lambda s: s["nets"].update(psp={}), "nets has psp; the networks of gan are G, D_face"),
        (lambda s: s["ema"].update(D_face={}), "ema has D_face; the networks of gan"),
        (lambda s: s["nets"].update(D_face={}), "nets.D_face is empty"),
        (lambda s: s["nets"]["D_face"].update(a=3), "nets.D_face: a is of type int, expected a tensor"),
        (lambda s: s["ema"]["G"].pop("add_weight"), r"ema.G: add_weight is missing, expected shape \[1, 10, 1\]"),
        (lambda s: s["config"].update(n_mlp=3), "ema.G: style.3.weight is missing"),
        (lambda s: s["config"].update(size=128), r"nets.D_face: .* \(size 128, channel_multiplier 1, b"),
    ],
)  # fmt: skip
def test_own_checkpoints_that_cannot_be(change: Callable[[dict[str, Any]], object], words: str) -> None:
    state = stage_state(tiny_config(), "gan")
    change(state)
    assert recognises(state)
    with pytest.raises(CheckpointError, match=words):
        contents(state)


def test_runs_that_cannot_be(tmp_path: Path) -> None:
    half = write_run(tmp_path / "half", stages=("style",))
    assert list(contents(systems.read(half)).nets) == ["E_style", "projector"]
    (half / "gan").mkdir()
    (half / "gan" / "checkpoint.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CheckpointError, match="gan/checkpoint.pt: damaged"):
        systems.read(half)
    torch.save(stage_state(tiny_config(style_dim=40), "gan"), half / "gan" / "checkpoint.pt")
    words = "gan/checkpoint.pt do not belong together: style_dim is 32 in style/checkpoint.pt and 40 in gan"
    with pytest.raises(CheckpointError, match=words):
        contents(systems.read(half))
    torch.save(stage_state(tiny_config(), "style"), half / "gan" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="gan/checkpoint.pt: is a checkpoint of stage 'style', expected gan"):
        contents(systems.read(half))
    torch.save(tiny_gnr.own_state(tiny_gnr.tiny_config()), half / "gan" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="half/gan: no checkpoint of BlendGAN is in it"):
        systems.read(half)
    new = write_run(tmp_path / "new", stages=())
    with pytest.raises(CheckpointError, match="new: this run of BlendGAN has no checkpoint yet"):
        systems.read(new)


def test_damaged_files(tmp_path: Path, folder: Path) -> None:
    whole = (folder / "blendgan.pt").read_bytes()
    for size in (3, len(whole) // 2, len(whole) - 5):
        (tmp_path / "blendgan.pt").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="blendgan.pt"):
            systems.read(tmp_path / "blendgan.pt")
        with pytest.raises(CheckpointError, match="blendgan.pt: damaged"):
            systems.read(tmp_path)
    path = tmp_path / "ffhq.pkl"
    path.write_bytes(pickle.dumps({"G": 3}))
    with pytest.raises(CheckpointError, match="as NVIDIA publishes its networks.*convert_weight.py"):
        systems.read(path)
    assert gather(tmp_path / "nothing.pt") is None


def test_style_encoders_of_another_width() -> None:
    config = tiny_config(backbone="vgg19_16x", style_mlp=1)
    net = build("E_style", config)
    assert isinstance(net, StyleEncoder)
    folded = weights(config, "style")["E_style"]
    full = style_encoder_weights(folded, False, net.embedder.channels)
    with pytest.raises(
        CheckpointError, match=r"embedder_mlp.0.weight has shape \[32, 38144\], expected \[style_dim, 610"
    ):
        contents(authors_style_encoder(full))
    with pytest.raises(CheckpointError, match=r"E_style: embedder_mlp.0.weight .*of 64, 128, 256, 512, 512 channels"):
        style_encoder_weights(full, True, (64, 128, 256, 512, 512))


# --- conversion


def test_to_the_authors_and_back(tmp_path: Path, run: Path) -> None:
    """What a run is exported to is what it was, the backbone of tests included, which the settings in it tell."""
    state = systems.read(run)
    found = contents(state)
    files = written(state, format="authors")
    assert list(files) == ["blendgan.pt", "style_encoder.pt", "discriminators.pt"]
    generator = files["blendgan.pt"]["g_ema"]
    assert list(generator)[0] == "add_weight" and generator["embedder.embedder_mlp.0.weight"].shape == (32, 610_304)
    kinds = {key.rpartition(".vgg_layers.")[0] for key in generator if ".vgg_layers." in key}
    assert kinds == {"embedder.embedder.feature_extractor"}
    assert torch.equal(files["blendgan.pt"]["latent_avg"], mean_latent(found)[0])
    assert set(files["style_encoder.pt"]) == {"style_encoder", "projector", "anifast"}
    assert set(files["discriminators.pt"]) == {"d_face", "d_style", "d_style_latent", "anifast"}
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    again = contents(systems.read(tmp_path))
    assert not again.config.folded and dataclasses.replace(again.config, folded=True) == found.config
    folded = style_encoder_weights(again.nets["E_style"], True, gram_channels(again.config))
    nets = again.nets | {"E_style": folded}
    assert equal(nets, found.nets)
    assert equal(written(state, "x.pt", format="authors"), {"x.pt": files["blendgan.pt"]})


def test_what_a_backbone_wants_goes_with_its_weights() -> None:
    """SqueezeNet's weights of Caffe want another normalisation than torchvision's, which is no tensor."""
    config = tiny_config(backbone="squeezenet1_0", style_mlp=1)
    wants = {"embedder.net._extra_state": {"normalisation": "caffe"}}
    encoder = weights(config, "style")["E_style"] | wants
    state = {**header(config), "stage": "style", "nets": {"E_style": encoder}}
    assert equal(contents(state).nets["E_style"], encoder)
    (own,) = written(state, "own.pt").values()
    assert equal(own["nets"]["E_style"], encoder)
    (theirs,) = written(state, "style_encoder.pt", format="authors").values()
    found = contents(theirs)
    assert equal(style_encoder_weights(found.nets["E_style"], True, gram_channels(config)), encoder)
    net = build("E_style", found.config)
    net.load_state_dict(found.nets["E_style"], assign=True)
    assert isinstance(net, StyleEncoder) and net.embedder.net.normalisation == "caffe"


def test_own_files_keep_both_generators(run: Path, folder: Path) -> None:
    state = systems.read(run)
    own = written(state, "own.pt")["own.pt"]
    gan = stage_state(tiny_config(), "gan")
    assert equal(own["ema"], gan["ema"]) and own["steps"] == 2 and "stage" not in own and "optim" not in own
    assert list(own["nets"]) == [name for name in NETS if name != "psp"] and equal(own["nets"]["G"], gan["nets"]["G"])
    assert equal(contents(own).nets, contents(state).nets) and averaged(own)
    assert equal(contents(own, live=True).nets["G"], gan["nets"]["G"])
    own = written(systems.read(folder))["checkpoint.pt"]
    found, read = contents(own), contents(systems.read(folder))
    assert equal(found.nets, read.nets) and (found.ema, found.truncation) == (True, 0.7)
    assert equal(found.latent_avg, read.latent_avg) and "G" not in own["nets"]
    style = written(systems.read(run / "style"), "s.pt")["s.pt"]
    assert list(style["nets"]) == ["E_style", "projector"] and "ema" not in style


def test_files_are_plain_and_name_no_paths(tmp_path: Path) -> None:
    config = tiny_config(style_encoder="here.pt", start_from="there.pt", backbone="vgg19", backbone_weights="v.pth")
    state = {**stage_state(config, "gan"), "nets": {}}
    for form in ("anifast", "authors"):
        (content,) = written(state, "x.pt", format=form).values()
        torch.save(content, tmp_path / "x.pt")
        torch.load(tmp_path / "x.pt", weights_only=True)
        settings = content["config"] if form == "anifast" else content["anifast"]
        assert not any(settings[name] for name in ("style_encoder", "start_from", "backbone_weights"))
        net = content["ema"]["G"] if form == "anifast" else content["g_ema"]
        assert all(
            type(value) is Tensor and value.is_contiguous() and not value.requires_grad for value in net.values()
        )


def test_the_exported_encoder_of_photos() -> None:
    config = tiny_config(psp=True)
    state = {**header(config), "stage": "psp", "nets": weights(config, "psp")}
    (content,) = written(state, "psp.pt", format="authors").values()
    assert set(content) == {"state_dict", "latent_avg", "anifast"} and content["latent_avg"].shape == (10, 512)
    keys = set(content["state_dict"])
    assert {"encoder.body.23.res_layer.5.fc2.weight", "encoder.styles.9.linear.bias"} < keys
    assert all(key.startswith("encoder.") for key in keys)
    assert equal(contents(content).nets, state["nets"]) and contents(content).config.psp_side == 32


@pytest.mark.parametrize(
    ("config", "stage", "words"),
    [
        (
            tiny_config(),
            "gan",
            r"style_dim 32 \(there: 512\), n_mlp 2 \(there: 8\), base_channels 16 \(there: 512\); --f",
        ),
        (tiny_config(normalised=True), "gan", r"base_channels 16 \(there: 512\), normalised True \(there: False\)"),
        (tiny_config(channel_multiplier=1.5), "gan", r"channel_multiplier 1.5 \(there: whole numbers\)"),
        (tiny_config(), "style", r"backbone random \(there: vgg19\), style_side 32 \(there: 256\), .*style_mlp 2"),
    ],
)
def test_networks_that_the_authors_code_does_not_have(config: Config, stage: str, words: str) -> None:
    state = stage_state(config, stage)
    with pytest.raises(CheckpointError, match=f"^nowhere: the authors' code cannot load these .*{words}"):
        written(state, format="authors", force=False)
    assert written(state, format="authors")


def test_a_generator_needs_its_style_encoder() -> None:
    config = tiny_config(style_dim=512, n_mlp=8, base_channels=512)
    net = {key: torch.zeros(1).expand(value.shape) for key, value in build("G", config).state_dict().items()}
    net = {key: value for key, value in net.items() if not key.endswith("kernel")}
    state = {**header(config), "nets": {"G": net}}
    with pytest.raises(
        CheckpointError, match="from one file, and E_style is missing here; give a folder that has both"
    ):
        written(state, format="authors", force=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "seed"}, "^nowhere: BlendGAN has no format 'seed'; there are anifast, authors"),
        ({"direction": "AB"}, "^nowhere: --direction AB: these networks have no directions"),
        ({"epoch": "200"}, "^nowhere: --epoch 200: .*leave it out"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        written(stage_state(tiny_config(), "style"), **options)


def run_convert(*words: object) -> int:
    return cli.main(command("convert", *words))


def test_the_command(tmp_path: Path, run: Path, capsys: Capture) -> None:
    out, own = tmp_path / "theirs", tmp_path / "own.pt"
    assert run_convert(run, out, "--format", "authors") == 1
    error = the_error(capsys.readouterr().err)
    assert error.startswith(f"{run}: ") and "--force" in error and not out.exists()
    assert run_convert(run, out, "--format", "authors", "--force") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out / 'blendgan.pt'}\n") and "--size 64 --channel_multiplier 1" in said
    assert "mean of 4096 faces" in said and "psp is not in what it was made from" in said
    assert run_convert(out, own) == 0
    said = capsys.readouterr().out
    assert "--start-from" in said and "--style-encoder" in said
    assert list(contents(systems.read(own)).nets) == list(contents(systems.read(run)).nets)
    assert run_convert(out, own) == 1
    assert "is there already" in the_error(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.pt", "theirs"] and not leftovers(tmp_path)
    assert hint(systems.read(run / "style"), "anifast", None) == "a run takes its style encoder by --style-encoder"
