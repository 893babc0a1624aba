"""CycleGAN's files: networks of every code read, and written so that the other code loads them and computes the same.

The other codes' networks stand here as plain containers of torch layers, built from their published layer tables.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anifast
from anifast import systems
from anifast.engine.loop import run_step
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan import checkpoints
from anifast.systems.cyclegan.checkpoints import NETS, contents, header
from anifast.systems.cyclegan.config import Config, make
from anifast.systems.cyclegan.convert import convert
from anifast.systems.cyclegan.training import CycleGAN, networks

Golden = Callable[[str], Any]
Nets = dict[str, dict[str, Tensor]]
CPU = torch.device("cpu")
STEM = torch.zeros(4, 3, 7, 7)
REFERENCE = make("reference", {"size": 32, "blocks": 6, "width": 4, "d_width": 4})
SEED = make("seed", {"size": 32, "width": 4, "d_width": 4})


def trained(config: Config) -> dict[str, Any]:
    """A checkpoint whose weights are all different and none zero."""
    nets = networks(config)
    source = torch.Generator().manual_seed(1)
    for net in nets.values():
        for value in net.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=source) * 0.1)
    return {**header(config), "nets": {name: net.state_dict() for name, net in nets.items()}}


def plain(nets: Nets, pick: Callable[[str], bool] = lambda _: True) -> Nets:
    return {name: dict(net) for name, net in nets.items() if pick(name)}


def same(one: Nets, other: Nets) -> bool:
    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=False, track_running_stats=False)


class ReferenceBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), instance_norm(c), nn.ReLU()]
        self.conv_block = nn.Sequential(*layers, nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), instance_norm(c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Wrapped(nn.Module):
    """The reference keeps its layers in `model`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def reference_generator(w: int, blocks: int) -> nn.Module:
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), instance_norm(w), nn.ReLU()]
    for i in (1, 2):
        layers += [nn.Conv2d(w * i, w * i * 2, 3, stride=2, padding=1), instance_norm(w * i * 2), nn.ReLU()]
    layers += [ReferenceBlock(4 * w) for _ in range(blocks)]
    for i in (4, 2):
        up = nn.ConvTranspose2d(w * i, w * i // 2, 3, stride=2, padding=1, output_padding=1)
        layers += [up, instance_norm(w * i // 2), nn.ReLU()]
    return Wrapped(*layers, nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh())


def reference_discriminator(w: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i, stride in ((1, 2), (2, 2), (4, 1)):
        layers += [nn.Conv2d(w * i, w * i * 2, 4, stride, 1), instance_norm(w * i * 2), nn.LeakyReLU(0.2)]
    return Wrapped(*layers, nn.Conv2d(8 * w, 1, 4, 1, 1))


class SeedPart(nn.Module):
    """The report's code keeps the layers of each part in `conv_block`, padding inside the convolutions."""

    def __init__(self, *layers: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.conv_block, self.residual = nn.Sequential(*layers), residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x) if self.residual else self.conv_block(x)


class SeedGenerator(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()

        def conv(i: int, o: int, k: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(i, o, k, stride, k // 2, padding_mode="reflect"), instance_norm(o), nn.ReLU()]

        def up(i: int, o: int) -> list[nn.Module]:
            return [nn.ConvTranspose2d(i, o, 3, 2, 1, output_padding=1), instance_norm(o), nn.ReLU()]

        parts = [SeedPart(*conv(3, w, 7)), SeedPart(*conv(w, 2 * w, 3, 2)), SeedPart(*conv(2 * w, 4 * w, 3, 2))]
        parts += [SeedPart(*conv(4 * w, 4 * w, 3), *conv(4 * w, 4 * w, 3), residual=True) for _ in range(9)]
        parts += [SeedPart(*up(4 * w, 2 * w)), SeedPart(*up(2 * w, w))]
        last = SeedPart(nn.Conv2d(w, 3, 7, padding=3, padding_mode="reflect"), nn.Tanh())
        self.generator_block = nn.Sequential(*parts, last)

    def forward(self, x: Tensor) -> Tensor:
        return self.generator_block(x)


class SeedDiscriminator(nn.Module):
    def __init__(self, w: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [SeedPart(nn.Conv2d(3, w, 4, 2, 1), nn.LeakyReLU(0.2))]
        for i, stride in ((1, 2), (2, 2), (4, 1)):
            conv = nn.Conv2d(w * i, w * i * 2, 4, stride, 1)
            parts.append(SeedPart(conv, instance_norm(w * i * 2), nn.LeakyReLU(0.2)))
        self.discriminator_block = nn.Sequential(*parts, nn.Conv2d(8 * w, 1, 4, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.discriminator_block(x)


def pictures(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def write(state: dict[str, Any], out: Path, **options: Any) -> list[str]:
    """Convert and write, as the command does; the file names."""
    made = convert(state, out.parent / "checkpoint.pt", out, **options)
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    return sorted(path.name for path in made)


def files(state: dict[str, Any], out: str = "out", **options: Any) -> dict[str, Any]:
    """File name -> contents."""
    made = convert(state, Path("nowhere/checkpoint.pt"), Path(out), **options)
    return {path.as_posix(): content for path, content in made.items()}


def seed_file() -> dict[str, Any]:
    """A file of the report's code."""
    (found,) = files(trained(SEED), "out.pt", format="seed").values()
    return dict(found)


# --- written for the others


@torch.no_grad()
def test_the_reference_loads_what_is_written_and_computes_the_same(tmp_path: Path) -> None:
    state = trained(REFERENCE)
    names = write(state, tmp_path / "faces", format="reference", epoch="200")
    assert names == [f"200_net_{net}.pth" for net in ("D_A", "D_B", "G_A", "G_B")]
    ours = CycleGAN(REFERENCE, CPU)
    for name, net in ours.nets.items():
        net.load_state_dict(state["nets"][name])
    x = pictures()
    # The reference calls a discriminator after the generator that it trains: its D_A judges pictures of B.
    for theirs, own in (("G_A", "G_AB"), ("G_B", "G_BA"), ("D_A", "D_B"), ("D_B", "D_A")):
        net = reference_generator(4, 6) if own[0] == "G" else reference_discriminator(4)
        net.load_state_dict(torch.load(tmp_path / "faces" / f"200_net_{theirs}.pth", weights_only=True))
        torch.testing.assert_close(net(x), ours.nets[own](x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_reports_code_loads_what_is_written_and_computes_the_same(tmp_path: Path) -> None:
    state = trained(SEED)
    assert write(state, tmp_path / "ep90.pt", format="seed") == ["ep90.pt"]
    found = torch.load(tmp_path / "ep90.pt", weights_only=True)
    ours = CycleGAN(SEED, CPU)
    for name, net in ours.nets.items():
        net.load_state_dict(state["nets"][name])
    x = pictures()
    for theirs, own in (("G_12", "G_AB"), ("G_21", "G_BA"), ("D_1", "D_A"), ("D_2", "D_B")):
        net = SeedGenerator(4) if own[0] == "G" else SeedDiscriminator(4)
        net.load_state_dict(found[f"{theirs}_state_dict"])
        torch.testing.assert_close(net(x), ours.nets[own](x), rtol=1e-4, atol=1e-5)


def test_the_reports_dict_has_all_its_parts() -> None:
    (found,) = files(trained(SEED), "out.pt", format="seed").values()
    names = {f"{net}_state_dict" for net in ("G_12", "G_21", "D_1", "D_2", "G_opt", "D_1_opt", "D_2_opt")}
    losses = {f"loss_{name}" for name in ("G", "GAN", "cycle", "id", "D1", "D2")}
    assert set(found) == {"epoch"} | names | losses


def test_a_run_is_written_with_its_optimisers_epoch_and_losses(tmp_path: Path) -> None:
    model = CycleGAN(SEED, CPU)
    for step in range(2):
        model.begin((pictures()[:1], pictures()[1:]), step)
        run_step(model.phases, step, CPU)
    state = {**header(SEED), **model.state_dict(), "images": 2, "data": {"sampler": {"epoch": 7}}}
    # The run has gone on behind this checkpoint.
    rows = [{"images": n, "gan_ab": 0.5 / n, "gan_ba": 1.0 / n, "generators": 18.0 / n} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = convert(state, tmp_path / "checkpoint-0000002.pt", tmp_path / "x.pt", format="seed").values()
    assert found["epoch"] == 7 and found["loss_GAN"] == 0.75 and found["loss_G"] == 9.0
    assert found["loss_D1"] != found["loss_D1"]  # not a number: the run has not told
    ones = {"G": (SeedGenerator(4), SeedGenerator(4)), "D_1": (SeedDiscriminator(4),), "D_2": (SeedDiscriminator(4),)}
    held = {"G": ("G_AB", "G_BA"), "D_1": ("D_A",), "D_2": ("D_B",)}
    for title, nets in ones.items():
        optimizer = torch.optim.Adam([p for net in nets for p in net.parameters()])
        optimizer.load_state_dict(found[f"{title}_opt_state_dict"])
        group = optimizer.param_groups[0]
        assert group["lr"] == 2e-4 and group["betas"] == (0.9, 0.999)
        generator = title == "G"
        last = ("generator_block.14.conv_block.0", "model.26") if generator else ("discriminator_block.4", "model.11")
        theirs = optimizer.state[nets[0].get_parameter(f"{last[0]}.weight")]
        ours = model.optimizers[title[0]].state[model.nets[held[title][0]].get_parameter(f"{last[1]}.weight")]
        assert theirs["step"] == 2 and ours["exp_avg"].any()
        assert all(torch.equal(theirs[name], ours[name]) for name in ("exp_avg", "exp_avg_sq"))
        dead = "generator_block.0.conv_block.0.bias" if generator else "discriminator_block.1.conv_block.0.bias"
        assert not optimizer.state[nets[0].get_parameter(dead)]["exp_avg"].any()
    del state["images"]
    (found,) = convert(state, tmp_path, tmp_path / "x.pt", format="seed").values()
    assert found["loss_G"] != found["loss_G"]


def test_averaged_generators_get_no_moments_of_the_raw_ones(tmp_path: Path) -> None:
    model = CycleGAN(make("seed", {"size": 32, "width": 4, "d_width": 4, "ema": 10}), CPU)
    model.begin((pictures()[:1], pictures()[1:]), 0)
    run_step(model.phases, 0, CPU)
    assert model.ema is not None
    state = {**header(model.config), **model.state_dict(), "ema": model.ema.state_dict()}
    (found,) = convert(state, tmp_path, tmp_path / "x.pt", format="seed").values()
    first = found["G_12_state_dict"]["generator_block.0.conv_block.0.weight"]
    assert torch.equal(first, state["ema"]["G_AB"]["model.1.weight"])
    assert not torch.equal(first, state["nets"]["G_AB"]["model.1.weight"])
    assert found["G_opt_state_dict"]["state"] == {} and found["D_1_opt_state_dict"]["state"][0]["exp_avg"].any()
    optimizer = torch.optim.Adam([p for _ in range(2) for p in SeedGenerator(4).parameters()])
    optimizer.load_state_dict(found["G_opt_state_dict"])


def test_a_file_of_the_report_keeps_its_optimisers_and_losses() -> None:
    source = seed_file()
    assert source["loss_G"] != source["loss_G"]  # not a number, and from here on one
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 3, 7, 7), "exp_avg_sq": torch.ones(4, 3, 7, 7)}
    source["G_opt_state_dict"]["state"][0] = moments
    source |= {"epoch": 12, "loss_G": 1.0, "loss_GAN": 2.0, "loss_cycle": 3.0, "loss_id": 4.0, "loss_D1": 5.0}
    del source["loss_D2"], source["D_2_opt_state_dict"]
    (found,) = files(source, "out.pt", format="seed").values()
    assert found["G_opt_state_dict"] == source["G_opt_state_dict"]
    assert all(found[name] == source[name] for name in source if name.startswith("loss") or name == "epoch")
    assert found["loss_D2"] != found["loss_D2"] and found["D_2_opt_state_dict"]["state"] == {}
    assert same({"": found["G_12_state_dict"]}, {"": source["G_12_state_dict"]})


def test_for_the_references_one_direction_program() -> None:
    state = trained(REFERENCE)
    for direction in ("AB", "BA"):
        made = files(state, format="reference", direction=direction)
        assert list(made) == ["out/latest_net_G.pth"]
        assert equal(made["out/latest_net_G.pth"], dict(state["nets"][f"G_{direction}"]))


@pytest.mark.parametrize("code", ["reference", "seed"])
def test_key_lists_are_the_codes_own(golden: Golden, code: str) -> None:
    case = golden({"reference": "refcyc_step_128", "seed": "seedcyc_step_128"}[code])
    state = {**header(make(code)), "nets": {name: net.state_dict() for name, net in networks(make(code)).items()}}
    made = files(state, "out.pt" if code == "seed" else "out", format=code)
    if code == "reference":
        written = {path.rpartition("_net_")[2].removesuffix(".pth"): content for path, content in made.items()}
    else:
        written = {k.removesuffix("_state_dict"): v for k, v in made["out.pt"].items() if k.endswith("state_dict")}
    expected: dict[str, list[tuple[str, list[int]]]] = {}
    for key, (shape, _) in case.keys().items():
        net, _, inner = key.partition(".")
        expected.setdefault(net, []).append((inner, shape))
    assert {net: [(key, list(value.shape)) for key, value in written[net].items()] for net in expected} == expected


@pytest.mark.parametrize("config", [REFERENCE, SEED], ids=["reference", "seed"])
def test_files_are_plain(config: Config, tmp_path: Path) -> None:
    code = "seed" if config is SEED else "reference"
    for form in ("anifast", code):
        for content in files(trained(config), "out" if form == "reference" else "out.pt", format=form).values():
            torch.save(content, tmp_path / "x.pt")
            assert torch.load(tmp_path / "x.pt", weights_only=True).keys() == content.keys()
            nets = content if form == "reference" else content.get("nets", content)
            tensors = [nets] if form == "reference" else [v for v in nets.values() if isinstance(v, dict)]
            for value in (v for net in tensors for v in net.values() if isinstance(v, Tensor)):
                assert type(value) is Tensor and value.is_contiguous() and not value.requires_grad


# --- there and back


@pytest.mark.parametrize("config", [REFERENCE, SEED], ids=["reference", "seed"])
def test_round_trip_is_exact(config: Config, tmp_path: Path) -> None:
    """Own -> theirs -> own, and theirs -> own -> theirs, every tensor bit for bit."""
    code = "seed" if config is SEED else "reference"
    there, own, again = tmp_path / "there", tmp_path / "own.pt", tmp_path / "again"
    if code == "seed":
        there, again = there.with_suffix(".pt"), again.with_suffix(".pt")
    state = trained(config)
    names = write(state, there, format=code)
    write(systems.read(there), own)
    back = torch.load(own, weights_only=True)
    assert same(back["nets"], plain(state["nets"]))
    told = contents(back).config
    assert checkpoints.architecture(told) == checkpoints.architecture(config)
    assert write(back, again, format=code) == [name.replace("there", "again") for name in names]
    one, other = systems.read(there), systems.read(again)
    for key in one:
        if key.endswith("_state_dict") and "opt" not in key or code == "reference":
            assert equal(one[key], other[key])
    x = pictures()
    for to in ("A", "B"):
        results = [anifast.load(path, "cpu").translate(x, to=to) for path in (there, own, again)]
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_one_direction_there_and_back(tmp_path: Path) -> None:
    state = trained(REFERENCE)
    write(state, tmp_path / "ba", format="reference", direction="BA")
    single = systems.read(tmp_path / "ba" / "latest_net_G.pth")
    with pytest.raises(CheckpointError, match="does not say which way it translates; say so by --direction"):
        files(single)
    write(single, tmp_path / "ba.pt", direction="BA")
    model = anifast.load(tmp_path / "ba.pt", "cpu")
    assert equal(torch.load(tmp_path / "ba.pt")["nets"]["G_BA"], dict(state["nets"]["G_BA"]))
    assert model.translate(pictures(), to="A").shape == (2, 3, 32, 32)
    with pytest.raises(CheckpointError, match="translates to A only"):
        model.translate(pictures(), to="B")
    with pytest.raises(CheckpointError, match="no generator AB in it, only G_BA"):
        files(torch.load(tmp_path / "ba.pt"), direction="AB")


# --- what the reference leaves in a folder


def reference_folder(folder: Path, **tags: float) -> Path:
    """Sets of four files; the generators' last bias tells which set it is."""
    for tag, mark in tags.items():
        state = trained(REFERENCE)
        for name in ("G_AB", "G_BA"):
            state["nets"][name]["model.23.bias"].fill_(mark + (name == "G_BA") / 10)
        write(state, folder, format="reference", epoch=tag.removeprefix("e"))
    return folder


def mark(path: Path, to: str) -> float:
    found = checkpoints.generators(systems.read(path))[1]
    return round(float(found[{"B": "AB", "A": "BA"}[to]]["model.23.bias"][0]), 2)


def test_a_folder_of_the_reference(tmp_path: Path) -> None:
    folder = reference_folder(tmp_path / "faces", iter_900=0.9, e5=0.5, e20=2.0)
    assert (mark(folder, "B"), mark(folder, "A")) == (2.0, 2.1)
    reference_folder(folder, latest=3.0)
    assert (mark(folder, "B"), mark(folder, "A")) == (3.0, 3.1)
    # One file stands for those of its tag.
    assert (mark(folder / "5_net_G_A.pth", "B"), mark(folder / "5_net_G_B.pth", "A")) == (0.5, 0.6)
    assert (mark(folder / "5_net_G_B.pth", "B"), mark(folder / "iter_900_net_D_A.pth", "A")) == (0.5, 1.0)
    assert set(contents(systems.read(folder)).nets) == set(NETS)
    # The copy that the one-direction program wants serves any direction, but does not hide the named ones.
    (folder / "latest_net_G.pth").write_bytes((folder / "5_net_G_A.pth").read_bytes())
    assert (mark(folder, "B"), mark(folder / "latest_net_G.pth", "A")) == (3.0, 0.5)
    for name in ("G_A", "D_A", "D_B"):
        (folder / f"latest_net_{name}.pth").unlink()
    with pytest.raises(CheckpointError, match="translates to A only"):
        anifast.load(folder, "cpu").translate(pictures(), to="B")
    for path in folder.glob("*_net_G*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no generator in it, only D_A, D_B"):
        anifast.load(folder, "cpu")


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "notes_net_work.pth").write_text("")
    with pytest.raises(CheckpointError, match=r"no checkpoint\.pt in this folder"):
        systems.read(tmp_path)


# --- files of every age and wrapper


def test_wrappers_statistics_and_dropout() -> None:
    net = dict(trained(REFERENCE)["nets"]["G_AB"])
    wrapped = {f"module._orig_mod.{key}": value for key, value in net.items()}
    wrapped |= {f"module.model.2.{name}": torch.zeros(4) for name in ("running_mean", "running_var")}
    wrapped["module.model.2.num_batches_tracked"] = torch.tensor(7)
    shifted = {key.replace("conv_block.5", "conv_block.6"): value for key, value in net.items()}
    assert equal(checkpoints.generators(wrapped)[1]["AB"], net)
    with pytest.warns(UserWarning, match="trained with dropout"):
        assert equal(checkpoints.generators(shifted)[1]["BA"], net)
    seed = seed_file()
    before = contents(seed).nets
    for name in ("G_12", "D_2"):
        part = seed[f"{name}_state_dict"]
        seed[f"{name}_state_dict"] = {f"module.{key}": value for key, value in part.items()}
    assert same(contents(seed).nets, before)


def test_upit_names_a_generator_after_its_input() -> None:
    nets = trained(REFERENCE)["nets"]
    names = {"G_AB": "G_B", "G_BA": "G_A", "D_A": "D_A", "D_B": "D_B"}
    state = {
        f"{names[name]}.{key.removeprefix('model.')}": value for name, net in nets.items() for key, value in net.items()
    }
    assert checkpoints.recognises(state) and same(contents(state).nets, plain(nets))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"model.1.weight": torch.zeros(4, 3, 7, 7), "model.2.weight": torch.zeros(4)},
            "model.2.weight belongs to a batch",
        ),
        ({"model.1.weight": torch.zeros(4, 3, 7, 7), "model.model.0.weight": torch.zeros(4, 3, 4, 4)}, "a U-Net"),
        (dict(trained(REFERENCE)["nets"]["D_A"]), "holds a discriminator"),
        ({"G_A": {"model.1.weight": torch.zeros(4, 3, 5, 5)}}, "no ResNet generator"),
        ({"D_A": {"net.0.weight": torch.zeros(4, 3, 1, 1)}}, "no 70x70 PatchGAN"),
        ({"G_A": {}}, "G_A is missing"),
        (
            seed_file() | {"D_1_state_dict": {"x.weight": torch.zeros(1)}},
            "'x.weight'",
        ),
    ],
    ids=["batch norm", "u-net", "discriminator", "other stem", "pixel gan", "empty", "other keys"],
)
def test_other_networks_are_named(state: dict[str, Any], words: str) -> None:
    assert checkpoints.recognises(state)
    with pytest.raises(CheckpointError, match=words):
        checkpoints.generators(state)


def test_a_missing_layer_is_named() -> None:
    seed = seed_file()
    del seed["G_12_state_dict"]["generator_block.4.conv_block.3.bias"]
    with pytest.raises(CheckpointError, match=r"generator_block.4.conv_block.3.bias is missing"):
        contents(seed)
    reference = trained(REFERENCE)
    del reference["nets"]["D_A"]["model.5.bias"]
    with pytest.raises(CheckpointError, match=r"D_A has another architecture.*model.5.bias"):
        files(reference, format="reference")


# --- what cannot be said in the other code's words


@pytest.mark.parametrize(
    ("config", "code", "words", "forced"),
    [
        (SEED, "reference", "down_padding reflect .there: zero., branch_relu True .there: False., sigmoid True", True),
        (REFERENCE, "seed", "down_padding zero .there: reflect.*blocks 6 .there: 9.", True),
        (make("reference", {"size": 32, "blocks": 2, "width": 4, "d_width": 4}), "reference", "blocks 2", True),
        (make("reference", {"size": 32, "width": 4, "d_width": 4, "skip": True}), "reference", "skip True", False),
        (make("seed", {"size": 32, "width": 4, "d_width": 4, "upsample": "resize"}), "seed", "upsample resize", False),
    ],
    ids=["seed for reference", "reference for seed", "blocks", "skip", "upsample"],
)
def test_what_the_other_code_would_compute_otherwise(config: Config, code: str, words: str, forced: bool) -> None:
    state, out = trained(config), "out.pt" if code == "seed" else "out"
    with pytest.raises(AnifastError, match=words):
        files(state, out, format=code)
    if forced:
        assert files(state, out, format=code, force=True)
    else:
        with pytest.raises(AnifastError, match=words):
            files(state, out, format=code, force=True)


def test_the_sigmoid_does_not_matter_where_no_discriminator_is_written() -> None:
    state = trained(make("reference", {"size": 32, "blocks": 6, "width": 4, "d_width": 4, "sigmoid": True}))
    with pytest.raises(AnifastError, match="sigmoid"):
        files(state, format="reference")
    assert files(state, format="reference", direction="AB")


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("out", {"format": "onnx"}, "anifast, reference, seed"),
        ("out", {"direction": "AtoB"}, "AB, BA and both"),
        ("out.pt", {"format": "reference"}, "give a folder"),
        ("out", {"format": "seed", "force": True}, "ends in .pt"),
        ("out", {"format": "reference", "epoch": "a/b"}, "a word such as latest"),
        ("out.pt", {"format": "seed", "force": True, "direction": "AB"}, "G_BA, D_A, D_B are not there"),
    ],
)
def test_options_that_cannot_be(out: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(AnifastError, match=words):
        files(trained(REFERENCE), out, **options)


def test_errors_name_the_file() -> None:
    """The one that is read, also where it is the option that cannot be done with it."""
    one_way = {**header(REFERENCE), "nets": {"G_AB": trained(REFERENCE)["nets"]["G_AB"]}}
    for state, options in (
        (trained(REFERENCE), {"format": "onnx"}),
        (trained(REFERENCE), {"direction": "AtoB"}),
        (one_way, {"direction": "BA"}),
        (dict(one_way["nets"]["G_AB"]), {}),
        (trained(SEED), {"format": "reference"}),
        (one_way, {"format": "seed", "force": True}),
    ):
        with pytest.raises(AnifastError, match="^nowhere/checkpoint.pt: "):
            files(state, **options)


# --- to start from


def test_a_run_starts_from_the_reference_and_from_the_report(tmp_path: Path) -> None:
    for config, code, out in ((REFERENCE, "reference", tmp_path / "faces"), (SEED, "seed", tmp_path / "x.pt")):
        state = trained(config)
        write(state, out, format=code)
        sizes = {"size": 32, "blocks": config.blocks, "width": 4, "d_width": 4, "start_from": str(out)}
        started = make(code, sizes)
        model = CycleGAN(started, CPU)
        assert same({name: dict(net.state_dict()) for name, net in model.nets.items()}, plain(state["nets"]))
        assert header(started)["config"]["start_from"] is None


def test_a_run_cannot_start_from_other_networks(tmp_path: Path) -> None:
    write(trained(SEED), tmp_path / "x.pt", format="seed")
    sizes = {"size": 32, "width": 4, "d_width": 4, "start_from": str(tmp_path / "x.pt")}
    with pytest.raises(CheckpointError, match=r"x\.pt: .*they need --down-padding reflect --branch-relu --sigmoid$"):
        networks(make("reference", sizes))
    write(trained(REFERENCE), tmp_path / "ab", format="reference", direction="AB")
    with pytest.raises(CheckpointError, match="G_AB, G_BA, D_A, D_B are not there"):
        networks(make("reference", sizes | {"start_from": str(tmp_path / "ab")}))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="no CycleGAN"):
        networks(make("reference", sizes | {"start_from": str(tmp_path / "y.pt")}))


def test_nothing_warns_where_nothing_is_odd(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(trained(REFERENCE), tmp_path / "faces", format="reference")
        anifast.load(tmp_path / "faces", "cpu")


def test_discriminators_of_other_codes_are_not_the_references() -> None:
    """Theirs are called D_A and D_B as well."""
    theirs = dict(trained(REFERENCE)["nets"]["D_A"])
    assert checkpoints.recognises({"D_A": theirs, "D_B": theirs}) and checkpoints.recognises({"D_B": theirs})
    other = {"l_branch.0.0.weight": torch.zeros(8, 3, 1, 1)}
    assert not checkpoints.recognises({"D_A": other, "D_B": other})
    assert not checkpoints.recognises({"D_A": theirs, "D_B": other})
