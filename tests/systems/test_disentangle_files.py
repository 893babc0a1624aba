"""Files of the disentangling network: runs and the authors' save folders are read, and written for either code."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cyclegan import command, leftovers, the_error
from tiny_disentangle import THREE, run_state, statistics, tiny_config, weights
from torch import Tensor, nn

from anifast import cli, systems
from anifast.engine.loop import run_step
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.convert import write
from anifast.systems.cyclegan import checkpoints as cyclegan
from anifast.systems.disentangle import checkpoints, codes
from anifast.systems.disentangle.checkpoints import (
    NETS,
    STATISTICS,
    architecture,
    build,
    contents,
    encoder_digest,
    gather,
    header,
    in_their_order,
    recognises,
    their_key,
    told,
    unregularised,
)
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.convert import OPTIMISED, convert, hint
from anifast.systems.disentangle.networks import networks
from anifast.systems.disentangle.training import Batch, Pretraining, Stage1, Stage2
from anifast.systems.gnr import checkpoints as gnr

Capture = pytest.CaptureFixture[str]
Golden = Callable[[str], Any]
CPU = torch.device("cpu")
STAGES = pytest.mark.parametrize("stage", list(NETS))
#: As the authors' code builds them: batch regularisation in the judges, bus blocks, warps.
THEIRS = tiny_config(
    blocks="cc,cbc,cbc", gen_blocks="tc,cbc,cbc", regularised=True, nested=True, augment=True, adv_cap=True
)
#: Their name of a network of a stage.
SHORT = {"E": "enc", "G": "gen", "S": "sty", "C1": "cla", "C2": "cla", "D": "dis"}
CLASSES = 4


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same bit for bit, keys in the same order."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    return bool(one == other)


def files_of(folder: Path) -> dict[str, Any]:
    """All that is in a folder, loaded, but for pickled objects."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith("_state.pt"):
            name = str(path.relative_to(folder))
            found[name] = torch.load(path, weights_only=True) if path.suffix == ".pt" else json.loads(path.read_text())
    return found


# --- the authors' folders, made without our converter


def their_options(config: Config, stage: str, **more: Any) -> dict[str, Any]:
    """What their program writes into `options` (specification, section 8)."""
    nets = {"stage1": ("enc", "gen", "cla"), "classifier": ("cla",), "stage2": ("enc", "gen", "cla", "dis")}[stage]
    features = [int(width) for width in config.features.split(",")] + [config.fc]
    options: dict[str, Any] = {}
    for net in ("enc", "gen", "dis", "cla"):
        words = config.gen_blocks if net == "gen" else config.blocks
        there = net in nets
        options[f"{net}_features"] = features if there else None
        options[f"{net}_blocks"] = [*words.split(","), "f"] if there else None
        options[f"{net}_adain_features"] = options[f"{net}_adain_blocks"] = -1 if there else None
    options |= {"mlp": False, "mlp_features": config.fc, "mlp_layers": 10, "enc_path": None, "enc_iter": None}
    options |= {"content_size": config.content_size, "style_size": config.style_size, "image_size": config.size}
    options |= {"vis_row": 6, "vis_col": 3, "nclass": CLASSES, "augment": True, "max_angle": 15, "max_scale": 1.25}
    options |= {"min_margin": 0.4, "data_root": "faces", "weight_root": None, "crop_size": None, "lr": 3e-5}
    options |= {"con_weight": 0.03, "match_weight": 0.001, "sty_weight": 2e-5, "cla_weight": 0.3, "dis_weight": 0.7}
    options |= {"rec_weight": 1, "dis_br_weight": 1, "cla_br_weight": 0.5, "gen_br_weight": 2, "sty_lr": 0.004}
    options |= {"transform_penalty": 50, "lr_ramp": 70, "force_dis": 0.6, "force_cla": 0, "content_dropout": 0.9}
    options |= {"style_dropout": 0.8, "batch_size": 6, "nloader": 1, "niter": 1000, "save_iter": 100}
    options |= {"checkpoint_iter": 200, "log_iter": 10, "visualize_iter": 10, "device": "cuda:0", "cla_fake": True}
    return options | more


def trained_alone(net: nn.Module, name: str, stage: str) -> torch.optim.Optimizer:
    """Their optimiser for one network, after two steps with some gradients."""
    # their classes have batch regularisation behind the other parts of a block
    parameters = dict(net.named_parameters())
    ordered = [parameters[key] for key in in_their_order(list(parameters))]
    kind = torch.optim.RMSprop if stage == "stage2" and name != "S" else torch.optim.Adam
    optimizer = kind(ordered, lr=0.004 if name == "S" else 3e-5, eps=1e-8 if name == "S" else 1e-4)
    source = torch.Generator().manual_seed(len(name))
    for _ in range(2):
        for key, parameter in parameters.items():
            unused = ".batch_reg." in key and stage == "stage1"  # has weight 0 there, and no gradient
            parameter.grad = None if unused else torch.randn(parameter.shape, generator=source)
        optimizer.step()
    return optimizer


def save_folder(
    folder: Path, stage: str, config: Config = THEIRS, tag: str = "last", optimisers: bool = True, **options: Any
) -> Path:
    """One of the authors' save folders."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "options").write_text(json.dumps(their_options(config, stage, **options)))
    nets = networks(config, torch.arange(1, CLASSES + 1) / 10, stage)
    for name, net in nets.items():
        if stage == "stage2" and name == "E":
            continue
        stem = folder / "models" / f"{tag}_{SHORT[name]}"
        if optimisers:
            torch.save(trained_alone(net, name, stage).state_dict(), f"{stem}_optim.pt")
        whole = net.state_dict()
        torch.save({key: whole[key] for key in in_their_order(list(whole))}, f"{stem}.pt")
    (folder / "models" / f"{tag}_state.pt").write_bytes(b"pickled objects")
    return folder


def their_statistics(folder: Path, tag: str, config: Config = THEIRS) -> dict[str, Tensor]:
    """Statistics in a stage1 folder's codes/, and as own names and types have them."""
    (folder / "codes").mkdir()
    found = {STATISTICS[name]: value.float() for name, value in statistics(config).items()}
    torch.save(found, folder / "codes" / f"{tag}_stats.pt")
    torch.save(torch.zeros(5, 2, config.content_size), folder / "codes" / f"{tag}_codes.pt")
    return {name: found[theirs].double() for name, theirs in STATISTICS.items()}


def experiment(root: Path, optimisers: bool = False) -> dict[str, Path]:
    """Save folders of all three of their stages; stage2 finds the encoder by its option."""
    folders = {stage: root / name for stage, name in (("stage1", "one"), ("classifier", "c"), ("stage2", "two"))}
    save_folder(folders["stage1"], "stage1", tag="400", optimisers=optimisers)
    their_statistics(folders["stage1"], "400")
    save_folder(folders["classifier"], "classifier", optimisers=optimisers)
    where = {"enc_path": str(folders["stage1"]), "enc_iter": 400}
    save_folder(folders["stage2"], "stage2", optimisers=optimisers, **where)
    return folders


GOLDEN_NETS = [
    ("dis256_enc", ""), ("dis256_gen", ""), ("dis256_cla", ""), ("dis256_dis", ""), ("dispaper256_enc", ""),
    ("dispaper256_gen", ""), ("dis_sty1139", ""), ("disnist_digit", "enc."), ("disnist_digit", "gen."),
    ("disnist_digit", "cla."), ("disnist_digit", "dis."), ("disnist_digit", "sty."), ("dis_stage1_mlp28", "cla."),
]  # fmt: skip


@pytest.mark.parametrize(("case", "prefix"), GOLDEN_NETS)
def test_keys_and_their_order_are_the_authors_own(golden: Golden, case: str, prefix: str) -> None:
    found = golden(case)
    options = found.spec["options"]
    short = prefix.rstrip(".") or options["net"]
    name = {"enc": "E", "gen": "G", "cla": "C1", "dis": "D", "sty": "S"}[short]
    known = next((net for net in (short, "enc", "gen", "cla", "dis") if options.get(f"{net}_features")), None)
    values: dict[str, Any] = {"regularised": True, "channels": 1 if case == "disnist_digit" else 4}
    if known is not None:
        values |= {
            "size": options["image_size"],
            "features": ",".join(map(str, options[f"{known}_features"][:-1])),
            "fc": options[f"{known}_features"][-1],
            "blocks": ",".join(options[f"{known}_blocks"][:-1]).replace("t", "c"),
            "gen_blocks": ",".join(options["gen_blocks"][:-1]) if short == "gen" else "",
        }
    values |= {name: options[name] for name in ("content_size", "style_size") if name in options}
    if options.get("mlp"):
        values |= {"c1_input": "code", "mlp_layers": options["mlp_layers"], "mlp_width": options["mlp_features"]}
    config = make(values=values)
    net = build(name, config, options["nclass"]).state_dict()
    expected = {key.removeprefix(prefix): shape for key, (shape, _) in found.keys().items() if key.startswith(prefix)}
    assert in_their_order(list(net)) == list(expected)
    assert {key: list(value.shape) for key, value in net.items()} == expected


# --- which files these are


def test_files_are_told_apart(tmp_path: Path) -> None:
    mine: list[dict[str, Any]] = [run_state(tiny_config(), stage) for stage in NETS]
    folders = experiment(tmp_path)
    mine += [found for folder in folders.values() if (found := gather(folder)) is not None]
    mine += [dict(net) for net in weights(THEIRS, "stage2", torch.ones(3)).values()]
    assert len(mine) == 3 + 3 + 5
    for state in mine:
        assert recognises(state) and not cyclegan.recognises(state) and not gnr.recognises(state)
        assert systems.recognise(state, "x") == "disentangle"
    others: list[dict[str, Any]] = [
        {"format": "anifast.cyclegan/1"},
        {"format": "anifast.gnr/1"},
        {"format": codes.FORMAT},
        {"G_A": {"model.1.weight": torch.zeros(1)}},
        {"G_A2B": {}},
        {"mean": torch.zeros(1)},
        {},
    ]
    assert not any(recognises(state) for state in others)
    for stage, folder in folders.items():
        assert systems.recognise(systems.read(folder), folder) == "disentangle", stage


@STAGES
def test_what_an_own_checkpoint_holds(stage: str) -> None:
    state = run_state(tiny_config(lambda_rec=3.0), stage)
    found = contents(state)
    assert (found.origin, found.stage, found.steps) == ("anifast", stage, 2)
    assert found.config == tiny_config(lambda_rec=3.0) and checkpoints.config_of(state) == found.config
    assert found.classes == state["classes"] and found.counts is not None and not found.left_out
    assert equal(found.nets, state["nets"]) and equal(found.statistics, state.get("statistics"))
    assert not checkpoints.averaged(state)


def test_kinds_of_stage_1() -> None:
    vae = contents(run_state(tiny_config(style_size=0), "stage1"))
    assert list(vae.nets) == ["E", "G"]
    codes_alone = contents(run_state(tiny_config(c1_input="code", mlp_layers=3, mlp_width=10), "stage1"))
    assert codes_alone.nets["C1"]["net.0.weight"].shape == (10, 12)
    without_judge = run_state(tiny_config(), "stage1")
    del without_judge["nets"]["C1"]
    assert list(contents(without_judge).nets) == ["E", "G", "S"]


def test_reading_draws_nothing() -> None:
    before = torch.get_rng_state()
    contents(run_state(tiny_config(), "stage2"))
    build("C2", tiny_config(), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_that_shape_networks() -> None:
    assert architecture(tiny_config(lr=1.0, blocks="cc", gen_blocks="")) == architecture(tiny_config(blocks="cc,cc,cc"))
    for change in ({"fc": 25}, {"blocks": "cc,cbc,cc"}, {"gen_blocks": "tc"}, {"content_size": 13}, {"size": 28}):
        for judges in (True, False):
            assert architecture(tiny_config(**change), judges) != architecture(tiny_config(), judges)
    for change in ({"regularised": True}, {"c1_input": "code"}):
        assert architecture(tiny_config(**change)) != architecture(tiny_config())
        assert architecture(tiny_config(**change), False) == architecture(tiny_config(), False)
    assert architecture(tiny_config(mlp_layers=3)) == architecture(tiny_config())
    assert architecture(tiny_config(c1_input="code", mlp_layers=3)) != architecture(tiny_config(c1_input="code"))


# --- run folders


def run_folder(root: Path, *stages: str, config: Config | None = None) -> dict[str, dict[str, Any]]:
    states = {stage: run_state(config or tiny_config(), stage) for stage in stages}
    for stage, state in states.items():
        (root / stage).mkdir(parents=True)
        torch.save(state, root / stage / "checkpoint.pt")
    return states


def code_file(root: Path, state: dict[str, Any], encoder: str | None = None) -> dict[str, Any]:
    """codes.pt of five pictures."""
    source = torch.Generator().manual_seed(1)
    size = contents(state).config.content_size
    mean, std = (torch.rand(5, size, generator=source) for _ in range(2))
    found = {
        "format": codes.FORMAT,
        "mean": mean,
        "std": std,
        "labels": torch.zeros(5, dtype=torch.int64),
        "names": [f"{i}.png" for i in range(5)],
        "classes": state["classes"],
        "statistics": codes.statistics(mean, std),
        "data": {},
        "encoder": encoder or encoder_digest(contents(state)),
    }
    torch.save(found, root / codes.NAME)
    return found


def test_a_run_folder_paints_with_its_last_stage(tmp_path: Path) -> None:
    states = run_folder(tmp_path, *NETS)
    assert equal(systems.read(tmp_path), states["stage2"])
    assert equal(systems.read(tmp_path / "stage1"), states["stage1"])
    (tmp_path / "stage2" / "checkpoint.pt").unlink()
    assert equal(systems.read(tmp_path), states["stage1"])
    known = code_file(tmp_path, states["stage1"])
    assert equal(systems.read(tmp_path), states["stage1"] | {"statistics": known["statistics"]})
    code_file(tmp_path, states["stage1"], encoder="another")
    assert "statistics" not in systems.read(tmp_path)
    (tmp_path / "stage1" / "checkpoint.pt").unlink()
    with pytest.raises(CheckpointError, match="only a classifier in it.*--stage stage1"):
        systems.read(tmp_path)


def test_folders_of_others_are_left_to_them(tmp_path: Path) -> None:
    assert gather(tmp_path) is None and gather(tmp_path / "nothing") is None
    (tmp_path / "options").write_text("{}")
    assert gather(tmp_path) is None and gather(tmp_path / "options") is None
    (tmp_path / "stage1").mkdir()
    torch.save({"format": "anifast.gnr/1"}, tmp_path / "stage1" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="stage1: no checkpoint of a disentangling network"):
        gather(tmp_path)


# --- the authors' folders


@STAGES
def test_their_folders_are_read(tmp_path: Path, stage: str) -> None:
    folders = experiment(tmp_path)
    found = contents(systems.read(folders[stage]))
    assert (found.origin, found.stage) == ("authors", stage)
    assert found.steps == (400 if stage == "stage1" else None)
    assert found.classes == ["0", "1", "2", "3"] and found.counts is None and not found.left_out
    nets = networks(THEIRS, torch.arange(1, CLASSES + 1) / 10, stage)
    assert list(found.nets) == list(NETS[stage])
    for name, held in found.nets.items():
        where = folders["stage1"] if stage == "stage2" and name == "E" else folders[stage]
        tag = "400" if where == folders["stage1"] else "last"
        theirs = torch.load(where / "models" / f"{tag}_{SHORT[name]}.pt", weights_only=True)
        assert held.keys() == theirs.keys() and all(torch.equal(held[key], theirs[key]) for key in held)
        nets[name].load_state_dict(held)
    assert (found.statistics is None) == (stage == "classifier")
    c = found.config
    assert architecture(c) == architecture(THEIRS) | ({"gen_blocks": c.blocks} if stage == "classifier" else {})
    with pytest.raises(CheckpointError, match="authors' code, which no run goes on from.*--start-from"):
        checkpoints.config_of(systems.read(folders[stage]))


def test_their_settings_are_told(tmp_path: Path) -> None:
    usual = {"nested": True, "content_keep": 0.9, "style_keep": 0.8, "warm_up": 70, "augment": True, "adv_cap": True}
    usual |= {"max_angle": 15.0, "crop_size": 0, "weight_maps": None, "skip_same": False, "nlu_form": "eps"}
    first = usual | {"lambda_c1": 0.3, "lambda_kl_content": 0.03, "lambda_kl_style": 2e-5, "lambda_match": 0.001}
    first |= {"lambda_reg_c1": 0.5, "batch": 6, "iterations": 1000, "lr": 3e-5, "lr_style": 0.004, "lambda_warp": 50.0}
    pre = usual | {"classifier_batch": 6, "classifier_iterations": 1000, "classifier_lr": 3e-5, "lambda_reg": 0.5}
    second = usual | {"lambda_d": 0.7, "lambda_c2": 0.3, "lambda_content": 0.03, "lambda_reg_gen": 2.0, "force_d": 0.6}
    second |= {"force_c2": 0.0, "stage2_batch": 6, "stage2_lr": 3e-5, "stage2_lr_style": 0.004, "c2_fake": "nlu"}
    for stage, expected in (("stage1", first), ("classifier", pre), ("stage2", second)):
        config, _ = told(their_options(THEIRS, stage), stage)
        assert {name: getattr(config, name) for name in expected} == expected
    more = {"cla_fake": False, "crop_size": 200, "weight_root": "maps", "content_dropout": 1, "style_dropout": 1.0}
    config, _ = told(their_options(THEIRS, "stage2", **more), "stage2")
    assert (config.c2_fake, config.crop_size, config.weight_maps, config.nested) == (
        "none",
        200,
        os.path.abspath("maps"),
        False,
    )
    mlp = {"mlp": True, "mlp_features": 20, "mlp_layers": 3, "cla_features": None, "cla_blocks": None}
    config, _ = told(their_options(THEIRS, "stage1", **mlp), "stage1")
    assert (config.c1_input, config.mlp_width, config.mlp_layers) == ("code", 20, 3)


def test_which_of_their_files_are_taken(tmp_path: Path) -> None:
    for tag, number in (("200", 1), ("1000", 2)):
        save_folder(tmp_path, "stage1", dataclasses.replace(THEIRS, seed=number), tag, optimisers=False)

    def seed(path: Path) -> int:
        held = contents(systems.read(path)).nets["G"]["fc.0.weight"]
        made = [networks(dataclasses.replace(THEIRS, seed=s), torch.ones(4) / 4, "stage1") for s in range(4)]
        return [torch.equal(held, net["G"].get_parameter("fc.0.weight")) for net in made].index(True)

    assert seed(tmp_path) == 2
    assert seed(tmp_path / "models" / "200_gen.pt") == 1
    assert contents(systems.read(tmp_path / "models" / "200_enc.pt")).steps == 200
    save_folder(tmp_path, "stage1", dataclasses.replace(THEIRS, seed=3), "last", optimisers=False)
    assert seed(tmp_path) == 3


def test_where_the_encoder_of_stage_2_is(tmp_path: Path) -> None:
    one = save_folder(tmp_path / "a" / "one", "stage1", tag="400", optimisers=False)
    known = their_statistics(one, "400")
    two = save_folder(tmp_path / "b" / "two", "stage2", optimisers=False, enc_path="gone/elsewhere/one", enc_iter=400)
    encoder = torch.load(one / "models" / "400_enc.pt", weights_only=True)
    with pytest.raises(CheckpointError) as caught:
        systems.read(two)
    for words in ("encoder is missing", "models/400_enc.pt", "'gone/elsewhere/one'", f"copy the file into {two}"):
        assert words in str(caught.value)
    beside = two.parent / "one"
    one.rename(beside)
    found = contents(systems.read(two))
    assert equal(found.nets["E"], encoder) and equal(found.statistics, known)
    for folder in ("models", "codes"):
        (two / folder).mkdir(exist_ok=True)
    (beside / "models" / "400_enc.pt").rename(two / "models" / "400_enc.pt")
    found = contents(systems.read(two))
    assert equal(found.nets["E"], encoder) and found.statistics is None and found.steps is None
    (beside / "codes" / "400_stats.pt").rename(two / "codes" / "400_stats.pt")
    assert equal(contents(systems.read(two)).statistics, known)


def test_judges_unlike_the_encoder_are_left_out(tmp_path: Path) -> None:
    other = {"cla_features": [8, 8, 8, 24], "cla_blocks": ["cc", "cc", "cc", "f"]}
    save_folder(tmp_path, "stage1", **other)
    state = systems.read(tmp_path)
    found = contents(state)
    assert list(found.nets) == ["E", "G", "S"]
    assert found.left_out == {"C1": "cla_features [8, 8, 8, 24] differ from enc_features [8, 12, 16, 24]"}
    (own,) = convert(state, tmp_path, Path("own.pt")).values()
    assert list(own["nets"]) == ["E", "G", "S"] and len(own["optim"]["networks"]["param_groups"]) == 2
    assert "C1 was left out: cla_features" in hint(state, "anifast", None)
    one = save_folder(tmp_path / "one", "stage1", tag="1", optimisers=False)
    save_folder(tmp_path / "two", "stage2", enc_path=str(one), enc_iter=1, dis_blocks=["cc", "cc", "cc", "f"])
    assert list(contents(systems.read(tmp_path / "two")).nets) == ["E", "G", "S", "C2"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"enc_adain_features": 64}, "enc_adain_features is 64: networks with adaptive instance normalisation"),
        ({"gen_adain_blocks": 2}, "gen_adain_blocks is 2"),
        ({"gen_features": [8, 8, 16, 24]}, r"gen_features \[8, 8, 16, 24\] differ from enc_features \[8, 12, 16, 24\]"),
        ({"enc_features": None}, "enc_features is None, expected a list"),
        ({"enc_blocks": ["cc", "cc", "f"]}, r"enc_blocks is .*, expected 4 words"),
        ({"enc_blocks": ["cc", "cc", "cc", "ff"]}, "one fully connected layer"),
        ({"gen_features": [8, 12, 16, 0]}, "one fully connected layer"),
        ({"enc_blocks": ["cc", "cxc", "cc", "f"]}, "options cannot be used: setting blocks: 'cxc' is no level"),
        ({"image_size": "large"}, "options cannot be used: setting size: 'large' is not of type int"),
        ({"image_size": 64}, r"models/last_enc.pt: fc.0.weight has shape \[24, 256\], expected \[24, 1024\] .size 64"),
        ({"content_size": 13}, r"models/last_enc.pt: mean.weight has shape \[12, 24\], expected \[13, 24\]"),
        ({"style_size": 9}, r"models/last_gen.pt: fc.0.weight .*expected \[24, 21\]"),
        ({"nclass": 5}, r"models/last_sty.pt: mean has shape \[4, 8\], expected \[5, 8\] .*5 artists"),
        ({"nclass": None}, "no options of the authors' disentangling code .nclass is missing"),
        ({"mlp": True}, r"models/last_cla.pt: net.0.weight is missing"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_taken_over(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    save_folder(tmp_path, "stage1", optimisers=False, **change)
    with pytest.raises(CheckpointError, match=words):
        contents(systems.read(tmp_path))


def test_damaged_folders(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, "stage1", optimisers=False)
    models, options = folder / "models", folder / "options"
    whole = options.read_text()

    def error(words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            contents(systems.read(folder))

    options.write_text(whole[:-9])
    error("options: damaged: no JSON")
    options.write_text("[]")
    error("options: no options of the authors'")
    options.write_text(whole)
    for name, words in (("gen", "G with it"), ("sty", "S with it"), ("enc", "E with it")):
        (models / f"last_{name}.pt").rename(models / "kept")
        error(f"models/last_{name}.pt is missing, and {words}; stage1 has")
        (models / "kept").rename(models / f"last_{name}.pt")
    good = (models / "last_gen.pt").read_bytes()
    (models / "last_gen.pt").write_bytes(good[: len(good) // 2])
    error("last_gen.pt: (damaged or not a checkpoint|cannot be read)")
    torch.save({"fc.0.weight": 3}, models / "last_gen.pt")
    error("models/last_gen.pt: fc.0.weight is of type int, expected a tensor")
    torch.save({}, models / "last_gen.pt")
    error("models/last_gen.pt is empty")
    (models / "last_gen.pt").write_bytes(good)
    (folder / "codes").mkdir()
    torch.save({"full_mean": torch.zeros(3)}, folder / "codes" / "last_stats.pt")
    error(r"statistics of the codes: full_mean has shape \[3\], expected shape \[12\]")
    for path in models.glob("last_*"):
        path.unlink()
    error("no networks in models/")
    for name in ("gen", "dis"):
        torch.save({"x": torch.zeros(1)}, models / f"last_{name}.pt")
    error("command `gan`")


def test_single_networks_do_not_say_what_they_are(tmp_path: Path) -> None:
    for name, net in weights(THEIRS, "stage2", torch.ones(3)).items():
        torch.save(net, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="one network of the authors' .*give the save folder"):
            contents(systems.read(tmp_path / "x.pt"))
        assert recognises(net), name


# --- damaged own files


def put(net: str, key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["nets"][net].update({key: value})


def without(net: str, key: str | None = None) -> Callable[[dict[str, Any]], object]:
    return lambda state: state["nets"].pop(net) if key is None else state["nets"][net].pop(key)


def change(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update(parts)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (change(format="anifast.disentangle/2"), "format 'anifast.disentangle/2', expected 'anifast.disentangle/1'"),
        (change(config=None), "the settings of the run are missing"),
        (change(config={"size": 3}), "settings in this file cannot be used: setting size"),
        (change(config=tiny_config(fc=30).as_dict()), r"nets.E: fc.0.weight has shape \[24, 256\], expected \[30"),
        (change(config=tiny_config(regularised=True).as_dict()), r"nets.C2: levels.0.0.batch_reg.pre_mean is missing"),
        (change(stage="stage3"), "stage is 'stage3', expected one of stage1, classifier, stage2"),
        (change(stage="classifier"), "nets has E; the networks of classifier are C2"),
        (change(classes=None), "the artists' names .classes. are missing"),
        (change(classes=["a", "b"], counts=torch.ones(2)), r"nets.S: mean has shape \[3, 8\], expected .*2 artists"),
        (change(counts=torch.ones(2)), r"counts is \[2\], expected the pictures of 3 artists"),
        (change(nets=3), "nets is a int, expected a dict"),
        (change(nets={}), "E, G, S are missing: stage2 needs E, G, S, and there is none"),
        (without("G"), "G is missing: stage2 needs E, G, S, and there is E, S, C2, D"),
        (without("G", "fc.2.weight"), r"nets.G: fc.2.weight is missing, expected shape \[256, 24\]"),
        (put("D", "x", torch.zeros(1)), r"nets.D: unknown key x of shape \[1\]"),
        (put("E", "mean.bias", torch.zeros(12, dtype=torch.int64)), "nets.E: mean.bias is of torch.int64"),
        (put("E", "mean.bias", None), "nets.E: mean.bias is of type NoneType"),
        (put("C2", "cla.bias", torch.zeros(5)), r"nets.C2: cla.bias has shape \[5\], expected \[3\] .*3 artists"),
        (change(statistics={"mean": torch.zeros(12)}), r"statistics of the codes: std is missing, expected shape \[12"),
        (change(statistics=5), "statistics of the codes: mean is missing"),
    ],
)  # fmt: skip
def test_damaged_own_files(changed: Callable[[dict[str, Any]], object], words: str) -> None:
    state = run_state(tiny_config(), "stage2")
    changed(state)
    assert recognises(state)
    with pytest.raises(CheckpointError, match=words):
        contents(state)


# --- there and back


@STAGES
def test_theirs_to_own_and_back_is_exact(tmp_path: Path, stage: str) -> None:
    """Every tensor bit for bit: networks, optimisers, statistics, and the keys' order."""
    folders = experiment(tmp_path, optimisers=True)
    folder = folders[stage]
    write(convert(systems.read(folder), folder, tmp_path / "own"))
    own = tmp_path / "own" / stage / "checkpoint.pt"
    assert leftovers(tmp_path) == []
    held = torch.load(own, weights_only=True)
    assert held["format"] == checkpoints.FORMAT and held["steps"] == (400 if stage == "stage1" else 2)
    found, before = contents(systems.read(tmp_path / "own" / stage)), contents(systems.read(folder))
    assert equal(found.nets, before.nets) and equal(found.statistics, before.statistics)
    assert found.config == before.config and found.classes == before.classes
    tag = "400" if stage == "stage1" else "last"
    write(convert(systems.read(own), own, tmp_path / "back", format="authors", epoch=tag))
    there, back = files_of(tmp_path / "back"), files_of(folder)
    options, known = there.pop("options"), back.pop("options")
    back = {name: value for name, value in back.items() if not name.endswith("_codes.pt")}
    if stage == "stage2":  # its encoder and statistics go along
        assert equal(there.pop("models/last_enc.pt"), files_of(folders["stage1"])["models/400_enc.pt"])
        assert equal(there.pop("codes/last_stats.pt"), files_of(folders["stage1"])["codes/400_stats.pt"])
    held_optim = {name for name in there if name.endswith("_optim.pt")}
    assert held_optim == {name for name in back if name.endswith("_optim.pt")} and held_optim
    for name in held_optim:
        one, other = there.pop(name), back.pop(name)
        assert equal(one["state"], other["state"])
        assert {key: other["param_groups"][0][key] for key in one["param_groups"][0]} == one["param_groups"][0]
    assert equal(there, back)
    assert set(known) <= set(options)  # their program asks for each of them
    told_again, _ = told({name: value for name, value in options.items() if name != checkpoints.OURS}, stage)
    assert told_again == before.config


def stepped(stage: str, config: Config) -> tuple[Any, dict[str, Any]]:
    """A stage that has made two steps on noise, and its checkpoint."""
    kinds: dict[str, Callable[..., Any]] = {"stage1": Stage1, "classifier": Pretraining}
    system = (
        Stage2(config, THREE, CPU, statistics=statistics(config))  # type: ignore[arg-type]
        if stage == "stage2"
        else kinds[stage](config, THREE, CPU)
    )
    source = torch.Generator().manual_seed(2)
    for step in range(2):
        images = torch.randint(256, (4, 4, 32, 32), generator=source, dtype=torch.uint8)
        mean, std = (torch.rand(4, config.content_size, generator=source) for _ in range(2))
        system.begin(Batch(images, torch.empty(0), torch.tensor([0, 1, 2, 1]), mean, std), 4 * step)
        run_step(system.phases, step, CPU)
    return system, {**header(config), "images": 8, "steps": 2, **system.state_dict()}


@pytest.mark.parametrize("regularised", [False, True])
@STAGES
def test_own_to_theirs_and_back_is_exact(tmp_path: Path, stage: str, regularised: bool) -> None:
    """With the settings, and with the optimisers of a run that has made steps, which their program loads."""
    config = tiny_config(
        regularised=regularised, blocks="cc,cbc,cc", gen_blocks="", lambda_kl_content=0.3, style_size=None
    )
    system, own = stepped(stage, config)
    (tmp_path / "run" / stage).mkdir(parents=True)
    torch.save(own, tmp_path / "run" / stage / "checkpoint.pt")
    source = tmp_path / "run" / stage
    write(convert(systems.read(source), source, tmp_path / "theirs", format="authors"))
    back = contents(systems.read(tmp_path / "theirs"))
    assert back.origin == "authors" and back.config == config and back.steps == 2
    assert back.classes == list(THREE.classes) and equal(back.counts, THREE.counts)
    assert equal(back.nets, {name: dict(net.state_dict()) for name, net in system.nets.items()})
    if stage == "stage2":
        known = {name: value.float().double() for name, value in system.statistics.items()}
        assert back.statistics is not None and all(equal(back.statistics[name], known[name]) for name in known)
    (again,) = convert(systems.read(tmp_path / "theirs"), tmp_path / "theirs", tmp_path / "again.pt").values()
    assert again["config"] == config.as_dict()
    for title, optimizer in system.optimizers.items():
        assert equal(again["optim"][title]["state"], optimizer.state_dict()["state"])
        fresh = type(optimizer)(
            [
                {"params": [nn.Parameter(p.detach().clone()) for p in group["params"]]}
                for group in optimizer.param_groups
            ],
            lr=1.0,
        )
        fresh.load_state_dict(again["optim"][title])
        for one, other in zip(fresh.param_groups, optimizer.param_groups, strict=True):
            assert (one["lr"], one["eps"], one["initial_lr"]) == (other["lr"], other["eps"], other["initial_lr"])
    # their program builds a network, with batch regularisation, and an optimiser for it like these, and loads both
    whole = dataclasses.replace(config, regularised=True)
    trained = [name for groups in OPTIMISED[stage].values() for group in groups for name in group]
    assert sorted(trained) == sorted(name for name in NETS[stage] if stage != "stage2" or name != "E")
    owner = {id(p): opt for opt in system.optimizers.values() for group in opt.param_groups for p in group["params"]}
    for name in trained:
        net = networks(whole, torch.tensor([5, 3, 4]) / 12, stage)[name]
        stem = tmp_path / "theirs" / "models" / f"2_{SHORT[name]}"
        net.load_state_dict(torch.load(f"{stem}.pt", weights_only=True))
        parameters = dict(net.named_parameters())
        kind = torch.optim.RMSprop if stage == "stage2" and name != "S" else torch.optim.Adam
        optimizer = kind([parameters[key] for key in in_their_order(list(parameters))], lr=1.0)
        optimizer.load_state_dict(torch.load(f"{stem}_optim.pt", weights_only=True))
        for key, here in system.nets[name].named_parameters():
            theirs = optimizer.state[parameters[their_key(name, key, config)]]
            ours = owner[id(here)].state[here]
            assert equal(ours, theirs), (name, key)
        assert optimizer.param_groups[0]["eps"] == (1e-8 if name == "S" else 1e-4)
        if name in ("C1", "C2", "D"):
            x = torch.rand(2, 4, 32, 32)
            assert torch.equal(net(x), system.nets[name](x))
        added = set(unregularised(name, config, 3))
        assert bool(added) == (not regularised and name in ("C1", "C2", "D"))
        assert not any(optimizer.state[parameters[key]] for key in added if key in parameters)


def test_whole_runs_there_and_back(tmp_path: Path) -> None:
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    states = run_folder(run, *NETS)
    known = code_file(run, states["stage1"])
    write(convert(systems.read(run), run, theirs, format="authors"))
    assert leftovers(tmp_path) == []
    names = {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()}
    expected = {f"{stage}/options" for stage in NETS} | {"stage1/codes/2_codes.pt", "stage1/codes/2_stats.pt"}
    expected |= {f"stage1/models/2_{net}.pt" for net in ("enc", "gen", "sty", "cla")}
    expected |= {f"stage2/models/2_{net}.pt" for net in ("gen", "sty", "cla", "dis")}
    assert names == expected | {"classifier/models/2_cla.pt"}
    stacked = torch.load(theirs / "stage1" / "codes" / "2_codes.pt", weights_only=True)
    assert torch.equal(stacked[:, 0], known["mean"]) and torch.equal(stacked[:, 1], known["std"])
    options = json.loads((theirs / "stage2" / "options").read_text())
    assert (options["enc_path"], options["enc_iter"]) == (str(theirs / "stage1"), 2)
    moved = theirs.rename(tmp_path / "moved")
    write(convert(systems.read(moved), moved, tmp_path / "again"))
    for stage, state in states.items():
        again = contents(systems.read(tmp_path / "again" / stage))
        assert equal(again.nets, contents(state).nets) and again.config == contents(state).config
        assert again.classes == state["classes"] and again.steps == 2
    again = contents(systems.read(tmp_path / "again" / "stage1"))
    assert again.statistics is not None
    for name, value in known["statistics"].items():
        assert torch.equal(again.statistics[name], value.float().double())


def test_one_file_of_a_run(tmp_path: Path) -> None:
    states = run_folder(tmp_path / "run", *NETS)
    states["stage2"] |= {"optim": {"G": {}}, "rng": {}, "data": {}}
    torch.save(states["stage2"], tmp_path / "run" / "stage2" / "checkpoint.pt")
    write(convert(systems.read(tmp_path / "run"), tmp_path / "run", tmp_path / "small.pt"))
    found = systems.read(tmp_path / "small.pt")
    assert set(found) == {"format", "config", "stage", "classes", "counts", "nets", "steps", "statistics"}
    assert equal(contents(found).nets, states["stage2"]["nets"])


def test_codes_of_another_encoder_stay_behind(tmp_path: Path) -> None:
    states = run_folder(tmp_path, "stage1")
    code_file(tmp_path, states["stage1"], encoder="another")
    written = convert(systems.read(tmp_path), tmp_path, tmp_path / "out", format="authors")
    assert not any("codes" in path.parts for path in written)


def test_files_are_plain(tmp_path: Path) -> None:
    state = run_state(tiny_config(), "stage1")
    for net in state["nets"].values():
        for key, value in net.items():
            net[key] = nn.Parameter(value.to(memory_format=torch.channels_last) if value.dim() == 4 else value)
    found = list(convert(state, tmp_path / "x.pt", tmp_path / "y", format="authors").values())
    (own,) = convert(state, tmp_path / "x.pt", tmp_path / "y.pt").values()
    for net in [net for net in found if isinstance(net, dict)] + list(own["nets"].values()):
        for value in net.values():
            assert type(value) is Tensor and value.is_contiguous() and not value.requires_grad


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tiny_config(channels=3), "channels 3 .there: 4."),
        (tiny_config(activation="relu"), "activation relu .there: cprelu."),
        (tiny_config(style_size=0), "style_size 0 .there: at least 1."),
        (tiny_config(dataset="digits", activation="relu"), "channels 1 .there: 4., activation relu .* --force writes"),
    ],
)
def test_networks_that_the_authors_code_does_not_have(config: Config, words: str, tmp_path: Path) -> None:
    state = run_state(config, "stage1")
    with pytest.raises(CheckpointError, match=f"^x.pt: the authors' code cannot load these networks.*{words}"):
        convert(state, Path("x.pt"), tmp_path / "out", format="authors")
    written = convert(state, Path("x.pt"), tmp_path / "out", format="authors", force=True)
    write(written)
    found = contents(systems.read(tmp_path / "out"))
    assert equal(found.nets, contents(state).nets) and found.config == config


def test_options_of_convert_that_cannot_be(tmp_path: Path) -> None:
    state = run_state(tiny_config(), "stage1")
    for options, words in (
        ({"format": "seed"}, "have no format 'seed'; there are anifast, authors"),
        ({"direction": "AB"}, "--direction: disentangling networks have no directions"),
        ({"epoch": "best"}, "--epoch best: last, or a number"),
        ({"epoch": "5"}, "--epoch 5: own files have no such tag"),
    ):
        with pytest.raises(AnifastError, match=words):
            convert(state, Path("x.pt"), tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(AnifastError, match=r"out.pt: the authors' code keeps a file for each network; give a folder"):
        convert(state, Path("x.pt"), tmp_path / "out.pt", format="authors")


def spoil(number: int, **parts: Any) -> Callable[[dict[str, Any]], object]:
    """Put other moments into an optimiser."""
    return lambda state: state["state"].setdefault(number, {}).update(parts)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda state: state.pop("state"), "last_gen_optim.pt is no state of an optimiser"),
        (lambda state: state.update(param_groups=3), "last_gen_optim.pt is no state of an optimiser"),
        (lambda state: state["param_groups"][0].update(params=[0, 1]), r"has 2 parameters, expected \d+: those of G"),
        (spoil(0, exp_avg=torch.zeros(3)), r"exp_avg of parameter 0 has shape \[3\], expected \[24, 20\], as G.fc.0"),
        (spoil(999, step=1), "has moments 999, expected 0 to"),
        (lambda state: state["state"].update({0: 5}), "has moments 0, expected"),
        (lambda state: state["state"][0].pop("step"), "has moments 0, expected"),
    ],
)  # fmt: skip
def test_damaged_optimisers(changed: Callable[[dict[str, Any]], object], words: str, tmp_path: Path) -> None:
    folder = save_folder(tmp_path, "stage1")
    path = folder / "models" / "last_gen_optim.pt"
    state = torch.load(path, weights_only=True)
    changed(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=words):
        convert(systems.read(folder), folder, tmp_path / "own.pt")


def test_optimisers_begin_anew_where_one_is_missing(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, "stage1")
    (folder / "models" / "last_sty_optim.pt").unlink()
    (own,) = convert(systems.read(folder), folder, tmp_path / "own.pt").values()
    assert "optim" not in own and "steps" not in own and own["counts"] is None
    assert contents(own).counts is None


def test_optimisers_of_a_run_that_do_not_fit() -> None:
    _, own = stepped("stage2", tiny_config())
    for damage, words in (
        (lambda optim: optim.pop("G"), "optim.G is no state of an optimiser"),
        (lambda optim: optim["S"].update(param_groups=[]), "optim.S has 0 parameters, expected 2: those of S"),
    ):
        state = own | {"optim": dict(own["optim"])}
        damage(state["optim"])
        with pytest.raises(CheckpointError, match=words):
            convert(state, Path("x.pt"), Path("out"), format="authors")


def test_the_options_in_a_file_of_ours_are_held_to_theirs(tmp_path: Path) -> None:
    state = run_state(tiny_config(), "stage1")
    write(convert(state, Path("x.pt"), tmp_path, format="authors"))
    whole = (tmp_path / "options").read_text()
    for name, value, words in (
        ("content_size", 13, "options: content_size is 12 in anifast, which .* and 13 in the rest"),
        ("anifast", {"classes": ["a", "b"]}, "options: classes in anifast are not those of 3 artists"),
        ("anifast", {"classes": ["a", "b", "c"], "counts": [1, 2, "x"]}, "options: counts in anifast are not"),
    ):
        (tmp_path / "options").write_text(json.dumps(json.loads(whole) | {name: value}))
        with pytest.raises(CheckpointError, match=words):
            contents(systems.read(tmp_path))


# --- the command


def test_the_command(tmp_path: Path, capsys: Capture) -> None:
    run_folder(tmp_path / "run", "stage1", "classifier")
    assert cli.main(command("convert", tmp_path / "run", tmp_path / "theirs", "--format", "authors")) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'theirs' / 'stage1' / 'options'}\n" in said and "set data_root" in said
    assert "2_gen.pt" in said and "--load_path does not go on" in said
    assert cli.main(command("convert", tmp_path / "theirs" / "stage1", tmp_path / "own")) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "own" / "stage1" / "checkpoint.pt") in said and "--stage encode" in said
    assert "have no names" not in said  # our own options hold them
    assert cli.main(command("convert", tmp_path / "theirs" / "stage1", tmp_path / "own")) == 1
    assert "is there already" in the_error(capsys.readouterr().err)
    assert cli.main(command("convert", tmp_path / "run", tmp_path / "x.pt", "--format", "authors")) == 1
    assert "give a folder" in the_error(capsys.readouterr().err)
    theirs = save_folder(tmp_path / "other", "stage1", optimisers=False)
    assert cli.main(command("convert", theirs, tmp_path / "o.pt")) == 0
    assert "have no names there and are called 0, 1" in capsys.readouterr().out
