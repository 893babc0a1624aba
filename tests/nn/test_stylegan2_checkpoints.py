"""Files of StyleGAN2's networks: what is read out of them, and what is refused."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anifast.errors import CheckpointError
from anifast.nn.stylegan2 import Discriminator, Generator
from anifast.nn.stylegan2_checkpoints import load_discriminator, load_generator, read


def contents(size: int = 16) -> dict[str, Any]:
    """As rosinality's training script saves it, with the mean latent that a converted file has."""
    torch.manual_seed(0)
    net, average = (Generator(size, 24, 3, 1, base_channels=16) for _ in range(2))
    judge = Discriminator(size, 1, base_channels=16)
    optimiser = torch.optim.Adam(judge.parameters())
    judge(torch.randn(2, 3, size, size)).sum().backward()
    optimiser.step()
    return {
        "g": net.state_dict(),
        "d": judge.state_dict(),
        "g_ema": average.state_dict(),
        "d_optim": optimiser.state_dict(),
        "args": argparse.Namespace(size=size, channel_multiplier=1),
        "ada_aug_p": 0.0,
        "latent_avg": torch.randn(24),
    }


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(value, other[key]) for key, value in state.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
def test_file_of_a_training_run(tmp_path: Path, zipped: bool) -> None:
    stored, path = contents(), tmp_path / "550000.pt"
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    net, average = load_generator(path)
    assert (net.size, net.style_dim, len(net.style)) == (16, 24, 1 + 3)
    assert same(net.state_dict(), stored["g_ema"]) and average is not None
    assert torch.equal(average, stored["latent_avg"])
    image, _ = net(torch.randn(2, 24), truncation=0.7, truncation_latent=average)
    judge = load_discriminator(path)
    assert same(judge.state_dict(), stored["d"])
    assert judge(image).shape == (2, 1)
    state = read(path)
    assert state["args"].size == 16 and same(load_generator(state)[0].state_dict(), stored["g_ema"])


def test_a_network_without_memory_takes_its_own_from_a_state() -> None:
    stored = contents()
    with torch.device("meta"):
        net = Generator(16, 24, 3, 1, base_channels=16)
    net.load_state_dict(stored["g_ema"], assign=True)
    z = torch.randn(2, 24)
    expected = load_generator(stored)[0](z, randomize_noise=False)[0]
    assert torch.equal(net(z, randomize_noise=False)[0], expected)
    assert same(net.state_dict(), stored["g_ema"])


@pytest.mark.parametrize(("size", "multiplier"), [(8, 2), (32, 2), (64, 1), (128, 2), (128, 0.5)])
def test_sizes_are_told_from_shapes(tmp_path: Path, size: int, multiplier: float) -> None:
    torch.manual_seed(0)
    stored = Generator(size, 8, 1, multiplier, base_channels=16).state_dict()
    torch.save(stored, tmp_path / "g.pt")
    net, average = load_generator(tmp_path / "g.pt")
    assert net.size == size and average is None and same(net.state_dict(), stored)
    judge = Discriminator(size, multiplier, base_channels=16).state_dict()
    assert same(load_discriminator({"d": judge}).state_dict(), judge)


def test_the_averaged_generator_goes_before_the_other() -> None:
    stored = contents()
    assert same(load_generator({"g": stored["g"]})[0].state_dict(), stored["g"])
    bare = {key: value for key, value in stored["g"].items() if "kernel" not in key}
    assert same(load_generator(bare)[0].state_dict(), stored["g"])


class Trap:
    """Says so when it is unpickled."""

    def __init__(self, told: Path) -> None:
        self.told = told

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.told,)


@pytest.mark.parametrize("name", ["ffhq.pkl", "ffhq.pt"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_are_not_unpickled(tmp_path: Path, name: str, protocol: int) -> None:
    told, path = tmp_path / "told", tmp_path / name
    path.write_bytes(pickle.dumps({"G_ema": Trap(told)}, protocol=protocol))
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    if protocol > 0 or name.endswith(".pkl"):
        assert "convert_weight.py of rosinality/stylegan2-pytorch" in str(caught.value)
    assert str(path) in str(caught.value) and not told.exists()
    torch.save({"g_ema": Trap(told)}, path)
    with pytest.raises(CheckpointError, match="damaged or not a StyleGAN2 checkpoint"):
        load_generator(path)
    assert not told.exists()
    pickle.loads(pickle.dumps(Trap(told)))
    assert told.exists(), "the trap works"


def test_a_packed_file_may_have_any_name(tmp_path: Path) -> None:
    stored = contents()
    torch.save(stored, tmp_path / "net.pkl")
    assert same(load_generator(tmp_path / "net.pkl")[0].state_dict(), stored["g_ema"])


def test_unusable_files(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_generator(path)
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load_generator(tmp_path)
    for data in (b"", b"weights", b"PK\x03\x04 and nothing more"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged or not"):
            load_generator(path)
    torch.save(contents(), path)
    for keep in (0.5, 0.95):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        with pytest.raises(CheckpointError, match="damaged or not"):
            load_generator(cut)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        load_generator(path)


def test_other_networks() -> None:
    stored = contents()
    for state in ({}, {"d": stored["d"]}, stored["d"], {"g_ema": 5}):
        with pytest.raises(CheckpointError, match=r"no StyleGAN2 generator \(g_ema or g\)"):
            load_generator(state)
    with pytest.raises(CheckpointError, match=r"no StyleGAN2 discriminator \(d\) in this file, which holds g"):
        load_discriminator({"g": stored["g"]})
    weights = stored["g"]
    wrong = {**weights, "to_rgbs.0.upsample.kernel": torch.ones(4, 4)}
    lacking = {key: value for key, value in weights.items() if key != "convs.1.conv.weight"}
    for state, reason in (
        (wrong, "to_rgbs.0.upsample.kernel is another FIR filter"),
        (lacking, "Missing key.*convs.1.conv.weight"),
        ({key: value for key, value in lacking.items() if "to_rgbs.1" not in key}, "'convs.1.conv.weight' is missing"),
        ({**weights, "add_weight": torch.ones(1, 6, 1)}, "Unexpected key.*add_weight"),
        ({**weights, "to_rgb1.bias": torch.ones(1, 4, 1, 1)}, "size mismatch for to_rgb1.bias"),
        ({"conv1.conv.weight": torch.ones(5)}, "not the generator"),
        ({**weights, "conv1.conv.weight": 5}, "not the generator"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load_generator(state)
