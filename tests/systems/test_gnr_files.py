"""Files of GANs N' Roses: the authors' of every version and age are read, and written so that theirs loads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cyclegan import command, leftovers, the_error
from tiny_gnr import GENERATORS, authors_state, ema_only, own_state, tiny_config, weights
from torch import Tensor, nn

from anifast import cli, systems
from anifast.engine.loop import run_step
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan import checkpoints as cyclegan
from anifast.systems.cyclegan.config import make as make_cyclegan
from anifast.systems.cyclegan.training import networks as cyclegan_networks
from anifast.systems.gnr import checkpoints
from anifast.systems.gnr.checkpoints import (
    NETS,
    architecture,
    averaged,
    build,
    contents,
    generators,
    header,
    missing_for_training,
    recognises,
    require_for_training,
)
from anifast.systems.gnr.config import Config, make
from anifast.systems.gnr.convert import OPTIMISED, convert, hint
from anifast.systems.gnr.training import GNR, Batch

Capture = pytest.CaptureFixture[str]
Nets = dict[str, dict[str, Tensor]]
CPU = torch.device("cpu")
#: The authors' three versions as far as networks go, small.
VERSIONS = {
    "main": tiny_config(discriminator="v1"),
    "rel": tiny_config(num_down=4),
    "new": tiny_config(num_down=4, generator="v2", discriminator="v2"),
}
EITHER = pytest.mark.parametrize("version", list(VERSIONS))


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same bit for bit, keys in the same order."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    return bool(one == other)


def written(state: dict[str, Any], out: str = "out.pt", **options: Any) -> dict[str, Any]:
    """The one file that a conversion gives; networks of tests are too narrow for the authors' code."""
    options = {"force": True} | options
    (found,) = convert(state, Path("nowhere/checkpoint.pt"), Path(out), **options).values()
    return found


def through(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """`state` written to `path` and read as any file is."""
    torch.save(state, path)
    return systems.read(path)


# --- the authors' key lists, from spec section 6


def conv_keys(prefix: str, *, down: bool = False, act: bool = True, bias: bool = True) -> Iterator[str]:
    if down:
        yield f"{prefix}.0.kernel"
    at = 1 if down else 0
    yield f"{prefix}.{at}.weight"
    if act:
        yield f"{prefix}.{at + 1}.bias"
    elif bias:
        yield f"{prefix}.{at}.bias"


def block_keys(prefix: str, down: bool = True) -> Iterator[str]:
    yield from conv_keys(f"{prefix}.conv1")
    yield from conv_keys(f"{prefix}.conv2", down=down)
    if down:
        yield from conv_keys(f"{prefix}.skip", down=True, act=False, bias=False)


def linear_keys(prefix: str) -> Iterator[str]:
    yield from (f"{prefix}.weight", f"{prefix}.bias")


def styled_keys(prefix: str, up: bool = False) -> Iterator[str]:
    yield f"{prefix}.conv.weight"
    if up:
        yield f"{prefix}.conv.blur.kernel"
    yield from linear_keys(f"{prefix}.conv.modulation")
    yield f"{prefix}.activate.bias"


def rgb_keys(prefix: str, up: bool = True) -> Iterator[str]:
    yield f"{prefix}.bias"
    if up:
        yield f"{prefix}.upsample.kernel"
    yield f"{prefix}.conv.weight"
    yield from linear_keys(f"{prefix}.conv.modulation")


def generator_keys(num_down: int, style_convs: int, n_mlp: int = 5, n_res: int = 1) -> Iterator[str]:
    for k in range(n_mlp):
        yield from linear_keys(f"mapping.{k}")
    yield from conv_keys("encoder.stem.0")
    for k in range(num_down + n_res):
        yield from block_keys(f"encoder.stem.{k + 1}", down=k < num_down)
    for k in range(2):
        yield from conv_keys(f"encoder.content.{k}")
    for k in range(style_convs):
        yield from conv_keys(f"encoder.style.{k}", down=True)
    for k in (1, 2):  # behind the flattening
        yield from linear_keys(f"encoder.style.{style_convs + k}")
    for k in range(n_res):
        for conv in ("conv1", "conv2"):
            yield from styled_keys(f"adain_bottleneck.{k}.{conv}")
    yield from styled_keys("conv1")
    yield from rgb_keys("to_rgb1", up=False)
    for k in range(2 * num_down):
        yield from styled_keys(f"convs.{k}", up=k % 2 == 0)
    for k in range(num_down):
        yield from rgb_keys(f"to_rgbs.{k}")


def discriminator_keys(version: str) -> Iterator[str]:
    """At 256 px."""
    local, whole = {"v1": (3, 5), "v1.1": (3, 4), "v2": (4, 6)}[version]
    for trunk, blocks in (("l_branch", local), ("g_branch", whole)):
        yield from conv_keys(f"{trunk}.0")
        for k in range(blocks):
            yield from block_keys(f"{trunk}.{k + 1}")
        if trunk == "l_branch":
            yield from conv_keys(f"{trunk}.{blocks + 1}", act=False)
    if version == "v2":
        yield from linear_keys("g_branch.8")
        yield from linear_keys("g_adv")
    else:
        yield from conv_keys("g_adv", act=False)
        halvings = 1 if version == "v1" else 2
        for k in range(halvings):
            yield from conv_keys(f"g_std.{k}", down=True)
        yield from linear_keys(f"g_std.{halvings + 1}")
    yield from linear_keys("g_final")


@EITHER
def test_key_lists_are_the_authors_own(version: str) -> None:
    c = make(version)
    state = {**header(c), "nets": {name: build(name, c).state_dict() for name in NETS}}
    found = written(state, format="authors", force=False)
    for name in ("G_A2B", "G_B2A", "G_A2B_ema", "G_B2A_ema"):
        assert list(found[name]) == list(generator_keys(c.num_down, style_convs=6 - c.num_down))
    for name in ("D_A", "D_B"):
        assert list(found[name]) == list(discriminator_keys(c.discriminator))
    layers = [f"fc.{layer}.{part}" for layer in ("0", "1", "2", "3", "4.fc", "5") for part in ("weight", "bias")]
    assert list(found["D_L"]) == layers
    # their shapes tell the version again
    told = contents({name: part for name, part in found.items() if name != "config"}).config
    assert architecture(told) == architecture(c)
    assert told == c


# --- what the shapes tell


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_down": 1},
        {"num_down": 4, "n_res": 3},
        {"size": 128, "num_down": 2, "latent_dim": 3},
        {"size": 128, "num_down": 5, "n_mlp": 1, "generator": "v2"},
        {"size": 256, "num_down": 4, "discriminator": "v1", "channel_multiplier": 1 / 64},
        {"size": 256, "num_down": 6, "discriminator": "v2", "channel_multiplier": 1 / 64, "latent_dim": 64},
        {"size": 512, "num_down": 7, "generator": "v2", "discriminator": "v2", "channel_multiplier": 1 / 32},
        {"size": 512, "num_down": 2, "channel_multiplier": 1 / 32},
        {"channel_multiplier": 0.1, "n_mlp": 9},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_shapes_tell_the_architecture(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    nets = {name: build(name, config).state_dict() for name in NETS}
    painters = {f"{name}_ema": nets[name] for name in GENERATORS}
    for state in (nets | painters, nets, painters | {"D_B": nets["D_B"]}):
        assert architecture(contents(state).config) == architecture(config)
    unjudged = architecture(config) | {"discriminator": None}
    for state in (painters, {"G_B2A": nets["G_B2A"]}, dict(nets["G_A2B"])):
        assert architecture(contents(state).config) | {"discriminator": None} == unjudged


def test_the_preset_of_a_version_says_the_rest() -> None:
    for version, config in VERSIONS.items():
        told = contents(authors_state(config)).config
        expected = make(version)
        assert (told.cycle, told.style_consistency, told.lambda_identity) == (
            expected.cycle,
            expected.style_consistency,
            expected.lambda_identity,
        )
    assert contents(ema_only(authors_state(VERSIONS["new"]))).config.discriminator == "v2"


# --- which files these are


def kinds(config: Config) -> dict[str, dict[str, Any]]:
    """One of every kind of file."""
    theirs, own = authors_state(config), own_state(config)
    return {
        "own": own,
        "own without averages": own_state(config, ema=False),
        "theirs": theirs,
        "theirs without optimisers": authors_state(config, optimisers=False),
        "averages": ema_only(theirs),
        "one average": {"G_B2A_ema": theirs["G_B2A_ema"]},
        "bare": theirs["G_A2B_ema"],
        "wrapped": {f"module._orig_mod.{key}": value for key, value in theirs["G_A2B"].items()},
        "converted": written(own, format="authors"),
    }


def test_files_are_told_apart(tmp_path: Path) -> None:
    for kind, state in kinds(tiny_config()).items():
        assert recognises(state) and not cyclegan.recognises(state), kind
        assert systems.recognise(through(tmp_path / "x.pt", state), "x.pt") == "gnr", kind
    config = make_cyclegan(values={"size": 32, "blocks": 1, "width": 4, "d_width": 4})
    nets = {name: dict(net.state_dict()) for name, net in cyclegan_networks(config).items()}
    others: list[dict[str, Any]] = [
        {**cyclegan.header(config), "nets": nets},
        {cyclegan.REFERENCE[name]: net for name, net in nets.items()},
        nets["G_AB"],
        nets["D_A"],
        {"G_12_state_dict": {}, "G_21_state_dict": {}},
        {"g_ema": nets["G_AB"]},
        {},
    ]
    for state in others:
        assert not recognises(state)


def test_what_each_kind_holds() -> None:
    both = list(GENERATORS)
    held = {
        "own": (list(NETS), both, 2),
        "own without averages": (list(NETS), [], 2),
        "theirs": (list(NETS), both, 7),
        "theirs without optimisers": (list(NETS), both, 7),
        "averages": ([], both, None),
        "one average": ([], ["G_B2A"], None),
        "bare": ([], [], None),
        "wrapped": ([], [], None),
        "converted": (list(NETS), both, 2),
    }
    for kind, state in kinds(tiny_config()).items():
        found = contents(state)
        assert (list(found.nets), list(found.ema), found.steps) == held[kind], kind
        assert (found.unnamed is not None) == (kind in ("bare", "wrapped"))
        assert found.origin == ("anifast" if kind.startswith("own") else "authors")
        assert averaged(state) == bool(found.ema)


def test_averages_translate() -> None:
    state = own_state(tiny_config())
    _, found = generators(state)
    assert equal(found, state["ema"])
    del state["ema"]["G_B2A"]
    _, found = generators(state)
    assert equal(found, {"G_A2B": state["ema"]["G_A2B"], "G_B2A": state["nets"]["G_B2A"]})
    _, found = generators({"G_B2A_ema": state["nets"]["G_B2A"]})
    assert equal(found, {"G_B2A": state["nets"]["G_B2A"]})
    _, found = generators(state["nets"]["G_A2B"])
    assert found["G_A2B"] is found["G_B2A"] and equal(found["G_A2B"], state["nets"]["G_A2B"])


def test_wrappers_and_missing_kernels_make_no_difference() -> None:
    plain = authors_state(tiny_config(), optimisers=False)
    odd = {
        name: {f"_orig_mod.module.{k}": v for k, v in net.items() if not k.endswith("kernel")}
        for name, net in plain.items()
        if name != "iter"
    }
    assert len(odd["G_A2B"]) < len(plain["G_A2B"])
    one, other = contents(plain), contents(odd)
    assert one.config == other.config and equal(one.nets, other.nets) and equal(one.ema, other.ema)
    assert equal(one.nets["D_A"], plain["D_A"])
    for key, value in one.nets["G_A2B"].items():
        if key.endswith("kernel"):
            assert value.sum() == (1 if key.startswith("encoder") else 4)


def test_reading_draws_nothing() -> None:
    state = own_state(tiny_config())
    before = torch.get_rng_state()
    contents(state)
    assert torch.equal(torch.get_rng_state(), before)


# --- files that cannot be used


def without(key: str, net: str = "G_B2A") -> Callable[[dict[str, Any]], object]:
    return lambda state: state[net].pop(key)


def put(key: str, value: Any, net: str = "G_A2B") -> Callable[[dict[str, Any]], object]:
    return lambda state: state[net].update({key: value})


def replace(net: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({net: value})


OTHER = weights(tiny_config(num_down=4, n_res=2, discriminator="v2"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("encoder.stem.2.conv1.0.weight"), r"G_B2A: encoder.stem.2.conv1.0.weight is missing, expected shape"),
        (without("mapping.0.weight"), r"G_B2A is no generator.*mapping.0.weight is missing, expected \[512, l"),
        (without("mapping.4.bias"), r"G_B2A: mapping.4.bias is missing, expected shape \[512\]"),
        (without("encoder.style.2.weight"), r"G_B2A: encoder.style.2.weight is missing, expected shape \[16, 256\]"),
        (without("encoder.style.3.weight"), r"G_B2A is no .*encoder.style.3.weight is missing, expected \[8, "),
        (without("encoder.content.0.0.weight"), r"encoder.content.0.0.weight is missing"),
        (without("to_rgbs.1.bias"), r"G_B2A: to_rgbs.1.bias is missing, expected shape \[1, 3, 1, 1\]"),
        (without("g_std.3.bias", "D_B"), r"D_B: g_std.3.bias is missing, expected shape \[8\]"),
        (without("g_std.3.weight", "D_A"), r"D_A: g_std.3.weight is missing, expected shape \[8, 256\]"),
        (without("fc.4.fc.weight", "D_L"), r"D_L: fc.4.fc.weight is missing, expected shape \[256, 257\]"),
        (put("mapping.0.weight", torch.zeros(512)), r"mapping.0.weight has shape \[512\], expected \[512, latent_"),
        (put("mapping.0.weight", torch.zeros(512, 9)), r"style.3.weight has shape \[8, 16\], expected \[9, channels\]"),
        (put("mapping.1.weight", torch.zeros(256, 512)), r"mapping.1.weight has shape \[256, 512\], expected \[512, "),
        (put("encoder.content.0.0.weight", torch.zeros(16, 16, 5, 5)), r"0.0.weight has .*5\], expected .* k = 1"),
        (put("conv1.conv.weight", torch.zeros(1, 16, 16, 3, 3).long()), "conv1.conv.weight is of torch.int64"),
        (put("noise.weight", torch.zeros(1)), r"G_A2B: unknown key noise.weight of shape \[1\]"),
        (put("mapping.0.bias", 3), "G_A2B: mapping.0.bias is of type int, expected a tensor"),
        (put("convs.6.activate.bias", torch.zeros(8)), "different numbers of halvings .*stem 3, convs 3.5, to_rgbs 3"),
        (put("l_branch.0.0.weight", torch.zeros(8, 3, 3, 3), "D_A"), r"D_A: l_branch.0.0.weight has shape \[8, 3, 3"),
        (put("convs.0.conv.blur.kernel", torch.ones(4, 4) / 16), "convs.0.conv.blur.kernel is another FIR filter"),
        (put("convs.0.conv.blur.kernel", torch.ones(3, 3) / 9), r"another FIR filter .shape \[3, 3\]"),
        (replace("G_A2B", {}), "G_A2B is empty, expected the state dict of a network"),
        (replace("D_L", 3), "D_L is of type int, expected the state dict"),
        (replace("G_A2B", {"model.1.weight": torch.zeros(4, 3, 7, 7)}), "G_A2B is no generator of GANs N' Roses"),
        (replace("G_B2A", OTHER["G_B2A"]), "G_A2B and G_B2A do not belong .*: num_down is 3 in G_A2B and 4 in G_B2A"),
        (replace("G_B2A_ema", weights(tiny_config(latent_dim=4))["G_B2A"]), "G_B2A_ema do not .*latent_dim is 8 in"),
        (replace("D_B", OTHER["D_B"]), "D_A and D_B do not belong .*: discriminator is v1.1 in D_A and v2 in D_B"),
        (replace("D_A", {"model.0.weight": torch.zeros(4, 3, 4, 4)}), "D_A is no discriminator of GANs N' Roses"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(change: Callable[[dict[str, Any]], object], words: str) -> None:
    state = authors_state(tiny_config(), optimisers=False)
    change(state)
    assert recognises(state)
    with pytest.raises(CheckpointError, match=words):
        contents(state)


def test_discriminators_of_another_size() -> None:
    state = authors_state(tiny_config(), optimisers=False)
    state |= {name: weights(tiny_config(size=128))[name] for name in ("D_A", "D_B")}
    with pytest.raises(CheckpointError, match=r"D_A: .* expected .*size 64, .*discriminator v1.1"):
        contents(state)


def test_networks_of_sizes_that_there_are_not() -> None:
    state = {"G_A2B": weights(tiny_config())["G_A2B"]}
    for key in [key for key in state["G_A2B"] if key.startswith(("convs.", "to_rgbs."))]:
        del state["G_A2B"][key]
    with pytest.raises(CheckpointError, match="different numbers of halvings"):
        contents(state)
    for key in [key for key in state["G_A2B"] if key.startswith("encoder.stem")]:
        del state["G_A2B"][key]
    state["G_A2B"]["encoder.stem.1.conv1.0.weight"] = torch.zeros(8, 8, 3, 3)
    with pytest.raises(CheckpointError, match="networks of these shapes cannot be used: setting size: 8 is below 64"):
        contents(state)


def test_files_without_a_generator() -> None:
    nets = weights(tiny_config())
    with pytest.raises(CheckpointError, match="no generator in it, only D_A, D_L"):
        contents({"D_A": nets["D_A"], "D_L": nets["D_L"]})
    for name in ("D_A", "D_L"):
        assert recognises(nets[name])
        with pytest.raises(CheckpointError, match="holds a discriminator, and only generators translate"):
            contents(nets[name])
    with pytest.raises(CheckpointError, match="no generator in it, only D_B"):
        generators({**header(tiny_config()), "nets": {"D_B": nets["D_B"]}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "anifast.gnr/2"}, "format 'anifast.gnr/2', expected 'anifast.gnr/1'"),
        ({"config": None}, "the settings of the run are missing"),
        ({"config": {"size": 65}}, "settings in this file cannot be used: setting size"),
        ({"config": {"colour": 1}}, "unknown setting 'colour'"),
        ({"config": tiny_config(num_down=4).as_dict()}, r"nets.G_A2B: .*, expected"),
        ({"config": tiny_config(discriminator="v1").as_dict()}, r"nets.D_A: .*g_\w+.*discriminator v1\)"),
        ({"nets": {}, "ema": {}}, "nets holds none of G_A2B, G_B2A, D_A, D_B, D_L"),
        ({"nets": 3}, "nets is a int, expected a dict of networks"),
        ({"ema": {"G_B2A": {}}}, "ema.G_B2A is empty"),
        ({"ema": {"G_B2A": {"mapping.0.weight": torch.zeros(1)}}}, r"ema.G_B2A: mapping.0.weight has shape \[1\]"),
    ],
)  # fmt: skip
def test_damaged_own_files(change: dict[str, Any], words: str) -> None:
    state = own_state(tiny_config()) | change
    assert recognises(state)
    with pytest.raises(CheckpointError, match=words):
        contents(state)


def test_resuming_asks_for_an_own_file() -> None:
    config = tiny_config(lambda_cycle=7.0)
    assert checkpoints.config_of(own_state(config)) == config
    with pytest.raises(CheckpointError, match="the authors' code, which no run goes on from.*--start-from"):
        checkpoints.config_of(authors_state(config))
    with pytest.raises(CheckpointError, match="D_A, D_B, D_L are not there.*this one translates"):
        checkpoints.config_of(ema_only(authors_state(config)))
    with pytest.raises(CheckpointError, match="no checkpoint of an anifast run of GANs N' Roses"):
        checkpoints.config_of(own_state(config) | {"format": "anifast.gnr/9"})


def test_what_training_lacks_is_named() -> None:
    config = tiny_config()
    theirs = authors_state(config, optimisers=False)
    require_for_training(contents(theirs))
    require_for_training(contents(own_state(config, ema=False)))
    averages = contents(ema_only(theirs))
    assert missing_for_training(averages) == list(NETS)
    with pytest.raises(CheckpointError) as caught:
        require_for_training(averages)
    for words in (
        "G_A2B, G_B2A, D_A, D_B, D_L are not there",
        "averages of G_A2B and G_B2A only",
        "ck.pt",
        "translate",
    ):
        assert words in str(caught.value)
    del theirs["D_L"]
    assert missing_for_training(contents(theirs)) == ["D_L"]
    with pytest.raises(CheckpointError, match="and D_L is not there: this file holds G_A2B, G_B2A, D_A, D_B, the ave"):
        require_for_training(contents(theirs))
    with pytest.raises(CheckpointError, match="holds one generator only"):
        require_for_training(contents(theirs["G_A2B"]))


def test_a_run_starts_from_either_code(tmp_path: Path) -> None:
    config = tiny_config()
    for name, state in (("theirs", authors_state(config, 3)), ("own", own_state(config, 3))):
        torch.save(state, tmp_path / f"{name}.pt")
        system = GNR(tiny_config(start_from=str(tmp_path / f"{name}.pt")), CPU)
        nets = {name: dict(net.state_dict()) for name, net in system.nets.items()}
        assert equal(nets, weights(config, 3))
    with pytest.raises(CheckpointError, match="theirs.pt: its networks are not those of this run.*--num-down 3"):
        GNR(tiny_config(num_down=4, start_from=str(tmp_path / "theirs.pt")), CPU)
    torch.save(ema_only(state := authors_state(config)), tmp_path / "averages.pt")
    torch.save(state["D_A"], tmp_path / "judge.pt")
    for name, words in (("averages", "D_A, D_B, D_L are not there"), ("judge", "holds a discriminator")):
        with pytest.raises(CheckpointError, match=f"{name}.pt: .*{words}"):
            GNR(tiny_config(start_from=str(tmp_path / f"{name}.pt")), CPU)


# --- there and back


@EITHER
def test_theirs_to_own_and_back_is_exact(version: str, tmp_path: Path) -> None:
    """Every tensor bit for bit: networks, averages, moments, and the iteration."""
    theirs = authors_state(VERSIONS[version])
    own = through(tmp_path / "own.pt", written(through(tmp_path / "theirs.pt", theirs)))
    assert own["format"] == checkpoints.FORMAT and own["steps"] == 7
    assert equal(own["nets"], {name: theirs[name] for name in NETS})
    assert equal(own["ema"], {name: theirs[f"{name}_ema"] for name in GENERATORS})
    back = through(tmp_path / "back.pt", written(own, format="authors"))
    settings = back.pop("config")
    assert equal(back, theirs)
    assert architecture(make(values=settings)) == architecture(VERSIONS[version])


@EITHER
def test_own_to_theirs_and_back_is_exact(version: str, tmp_path: Path) -> None:
    """With the settings, and with the optimisers of a run that has made a step."""
    config = make(
        values=VERSIONS[version].as_dict()
        | {"lambda_cycle": 7.0, "lambda_lpips": 0.0, "lpips_net": "vgg", "lpips_weights": "here.pth"}
    )
    system, source = GNR(config, CPU), torch.Generator().manual_seed(1)
    assert system.ema is not None
    for step in range(2):
        batch = Batch(*(torch.rand(2, 3, 64, 64, generator=source) * 2 - 1 for _ in range(4)))
        system.begin(batch, step * config.batch)
        run_step(system.phases, step, CPU)
        system.ema.update(config.batch)
    own = {**header(config), "images": 4, "steps": 2, **system.state_dict(), "ema": system.ema.state_dict()}
    theirs = through(tmp_path / "theirs.pt", written(through(tmp_path / "own.pt", own), format="authors"))
    assert theirs["iter"] == 1 and theirs["config"]["lpips_weights"] is None
    back = written(theirs)
    assert equal(back["nets"], {name: dict(net.state_dict()) for name, net in system.nets.items()})
    assert equal(back["ema"], {name: dict(net.state_dict()) for name, net in system.ema.nets.items()})
    assert back["config"] == config.as_dict() | {"lpips_weights": None} and back["steps"] == 2
    for title, names in OPTIMISED.items():
        # their program builds an Adam like this and loads both
        nets = {name: build(name, config) for name in names}
        for name, net in nets.items():
            net.load_state_dict(theirs[name])
        adam = torch.optim.Adam([p for net in nets.values() for p in net.parameters()], lr=1.0)
        adam.load_state_dict(theirs[f"{title}_optim"])
        ours = system.optimizers[title]
        assert adam.param_groups[0]["lr"] == config.lr and adam.param_groups[0]["betas"] == ours.defaults["betas"]
        for name, net in nets.items():
            for key, here in system.nets[name].named_parameters():
                there = net.get_parameter(key)
                for part in ("step", "exp_avg", "exp_avg_sq"):
                    assert torch.equal(adam.state[there][part], ours.state[here][part]), (name, key)
        assert adam.state[there]["step"] == 2 and adam.state[there]["exp_avg"].any()
        assert equal(back["optim"][title]["state"], system.optimizers[title].state_dict()["state"])


def test_averages_alone_there_and_back(tmp_path: Path) -> None:
    theirs = ema_only(authors_state(tiny_config()))
    own = written(theirs)
    assert set(own) == {"format", "config", "ema"} and averaged(own)
    back = through(tmp_path / "back.pt", written(own, format="authors"))
    assert set(back) == {"G_A2B_ema", "G_B2A_ema", "config"}
    assert equal({name: back[name] for name in theirs}, theirs)


def test_a_run_without_averages_or_optimisers() -> None:
    state = own_state(tiny_config(lr=0.004, halve_every=1), ema=False)
    found = written(state, format="authors")
    assert equal(found["G_A2B_ema"], found["G_A2B"]) and equal(found["G_B2A_ema"], state["nets"]["G_B2A"])
    for title, names in OPTIMISED.items():
        parameters = [value for name in names for value in build(name, tiny_config()).parameters()]
        adam = torch.optim.Adam(parameters)
        adam.load_state_dict(found[f"{title}_optim"])
        beta2 = 0.99 if title == "G" else 0.99 ** (16 / 17)
        assert not adam.state and adam.param_groups[0]["lr"] == 0.001  # halved twice
        assert adam.param_groups[0]["betas"] == pytest.approx((0.0, beta2))
    said = hint(state, "authors", None)
    assert "its optimisers begin anew" in said and "G_A2B_ema and G_B2A_ema are G_A2B and G_B2A" in said
    assert "--size 64 --num_down 3 --latent_dim 8 --n_res 1" in said and "556dbe1" in said
    said = hint(authors_state(tiny_config(lr_mlp=0.1)), "authors", None)
    assert "anew" not in said and "_ema" not in said and "--lr_mlp" not in said  # their file does not tell
    assert "--lr_mlp 0.1" in hint(own_state(tiny_config(lr_mlp=0.1)), "authors", None)
    assert "takes the networks; its optimisers begin anew" in hint(state, "anifast", None)
    assert hint(ema_only(authors_state(tiny_config())), "anifast", None) == ""


def test_of_a_run_the_networks_are_written() -> None:
    state = own_state(tiny_config()) | {"optim": {"G": {}, "D": {}}, "rng": {}, "data": {}}
    assert set(written(state)) == {"format", "config", "steps", "nets", "ema"}


def test_one_direction() -> None:
    state = own_state(tiny_config())
    for direction, name in (("AB", "G_A2B"), ("BA", "G_B2A")):
        own = written(state, direction=direction)
        assert equal(own["ema"], {name: state["ema"][name]}) and "nets" not in own
        theirs = written(state, direction=direction, format="authors")
        assert set(theirs) == {f"{name}_ema", "config"} and equal(theirs[f"{name}_ema"], state["ema"][name])
    bare = state["nets"]["G_A2B"]
    with pytest.raises(CheckpointError, match="^nowhere/checkpoint.pt: .*does not say which way.*--direction AB"):
        written(bare)
    assert equal(written(bare, direction="BA")["nets"], {"G_B2A": bare})
    theirs = written(bare, direction="BA", format="authors")
    assert equal(theirs["G_B2A_ema"], bare) and list(generators(theirs)[1]) == ["G_B2A"]
    with pytest.raises(CheckpointError, match="no generator G_A2B in it, only G_B2A"):
        written(theirs, direction="AB")


def test_files_are_plain(tmp_path: Path) -> None:
    state = own_state(tiny_config())
    for net in state["nets"].values():
        for key, value in net.items():
            net[key] = nn.Parameter(value.to(memory_format=torch.channels_last) if value.dim() == 4 else value)
    for form in ("anifast", "authors"):
        found = written(state, format=form)
        torch.save(found, tmp_path / "x.pt")
        assert torch.load(tmp_path / "x.pt", weights_only=True).keys() == found.keys()
        nets = found["nets"] if form == "anifast" else {name: found[name] for name in NETS}
        for value in (value for net in nets.values() for value in net.values()):
            assert type(value) is Tensor and value.is_contiguous() and not value.requires_grad


def test_nothing_warns_where_nothing_is_odd(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for state in (own_state(tiny_config()), authors_state(tiny_config())):
            for form in ("anifast", "authors"):
                contents(through(tmp_path / "x.pt", written(state, format=form)))


# --- what cannot be written


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tiny_config(), "cannot load these networks, for they have channel_multiplier 0.03125 .there: 1.; --force"),
        (tiny_config(n_mlp=4), "channel_multiplier 0.03125 .there: 1., n_mlp 4 .there: 5."),
        (
            tiny_config(generator="v2"),
            "generator v2 with discriminator v1.1 .there: v1 with v1.1, v1 with v1, v2 with v2",
        ),
    ],
)
def test_networks_that_the_authors_code_does_not_have(config: Config, words: str) -> None:
    state = own_state(config)
    with pytest.raises(CheckpointError, match=f"^nowhere/checkpoint.pt: .*{words}"):
        written(state, format="authors", force=False)
    assert set(written(state, format="authors")) > set(NETS)


def moment(number: int, **parts: Any) -> Callable[[dict[str, Any]], object]:
    """Put other moments into D_optim; a part of None is taken out."""

    def change(state: dict[str, Any]) -> None:
        held = state["D_optim"]["state"].setdefault(number, {})
        held.update(parts)
        for part in [part for part, value in parts.items() if value is None]:
            del held[part]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            moment(1, exp_avg=torch.zeros(3)),
            r"exp_avg of parameter 1 has shape \[3\], expected \[256\], as D_L.fc.0.bias has",
        ),
        (
            moment(12, exp_avg_sq=None),
            "exp_avg_sq of parameter 12 has shape none, expected .*, as D_A.l_branch.0.0.weight has",
        ),
        (moment(9999), "D_optim has moments 9999, expected 0 to"),
        (
            lambda state: state["D_optim"]["param_groups"][0]["params"].pop(),
            r"D_optim has \d+ parameters, expected \d+: those of D_L, D_A, D_B",
        ),
        (lambda state: state["D_optim"].pop("state"), "D_optim is no state of an Adam"),
        (lambda state: state.pop("D_optim"), "D_optim is no state of an Adam"),
        (lambda state: state.update(G_optim=3), "G_optim is no state of an Adam"),
    ],
)
def test_optimisers_of_other_networks(change: Callable[[dict[str, Any]], object], words: str) -> None:
    state = authors_state(tiny_config())
    change(state)
    with pytest.raises(CheckpointError, match=f"^nowhere/checkpoint.pt: .*{words}"):
        written(state)


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("out.pt", {"format": "seed"}, "^nowhere/checkpoint.pt: .* has no format 'seed'; there are anifast, authors"),
        ("out.pt", {"direction": "A2B"}, "^nowhere/checkpoint.pt: .*AB, BA and both"),
        ("out.pt", {"epoch": "200"}, "^nowhere/checkpoint.pt: --epoch 200: .*leave it out"),
        ("out", {"format": "authors"}, "^out: .*ends in .pt"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(out: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        written(own_state(tiny_config()), out, **options)


# --- the command


def run_convert(*words: object) -> int:
    return cli.main(command("convert", *words))


def test_the_command(tmp_path: Path, capsys: Capture) -> None:
    run, theirs, own = tmp_path / "run", tmp_path / "ck.pt", tmp_path / "own"
    run.mkdir()
    state = own_state(tiny_config())
    torch.save(state, run / "checkpoint.pt")
    assert run_convert(run, theirs, "--format", "authors") == 1
    error = the_error(capsys.readouterr().err)
    assert error.startswith(f"{run}: ") and "--force" in error and not theirs.exists()
    assert run_convert(run, theirs, "--format", "authors", "--force") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{theirs}\n") and "--num_down 3" in said and "its optimisers begin anew" in said
    assert run_convert(theirs, own) == 0
    assert "--start-from" in capsys.readouterr().out
    assert equal(systems.read(own)["nets"], state["nets"])
    assert run_convert(theirs, own) == 1
    assert "is there already" in the_error(capsys.readouterr().err)
    for words in (("--format", "reference"), ("--epoch", "7")):
        assert run_convert(theirs, tmp_path / "x.pt", *words) == 1
        assert str(theirs) in the_error(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ck.pt", "own", "run"] and not leftovers(tmp_path)


def test_each_system_has_its_own_formats(tmp_path: Path, capsys: Capture) -> None:
    config = make_cyclegan(values={"size": 32, "blocks": 1, "width": 4, "d_width": 4})
    nets = {name: dict(net.state_dict()) for name, net in cyclegan_networks(config).items()}
    torch.save({**cyclegan.header(config), "nets": nets}, tmp_path / "cyclegan.pt")
    assert run_convert(tmp_path / "cyclegan.pt", tmp_path / "x.pt", "--format", "authors") == 1
    assert "no format 'authors'; there are anifast, reference, seed" in the_error(capsys.readouterr().err)
    with pytest.raises(SystemExit) as done:
        run_convert("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0 and "reference and seed" in said and "GANs N' Roses has anifast and authors" in said
