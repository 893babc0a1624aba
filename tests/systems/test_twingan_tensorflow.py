"""The author's TensorFlow files, written here as the format is described: read, refused, and computing the same."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_cyclegan import command, leftovers, own_cache, picture, the_error
from tiny_twingan import make_data, networks, tiny_config, weights
from torch import Tensor, nn

from anifast import cli, systems
from anifast.data.folders import read_image, to_tensor
from anifast.engine.config import as_option
from anifast.errors import CheckpointError
from anifast.systems.twingan import tensorflow
from anifast.systems.twingan.checkpoints import build, config_of, contents, gather, networks_of, recognises
from anifast.systems.twingan.config import Config, make, sides
from anifast.systems.twingan.networks import Discriminator, Encoder, Generator, Norms
from anifast.systems.twingan.pictures import preprocess

Capture = pytest.CaptureFixture[str]
Arrays = dict[str, NDArray[Any]]
#: TensorFlow's numbers of types.
NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}


# --- the format, from its description

CRC = [0] * 256
for _i in range(256):
    _value = _i
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    CRC[_i] = _value


def masked_crc(data: bytes) -> bytes:
    """CRC-32C byte by byte, rotated by 15 bits and moved by a constant."""
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ CRC[(register ^ byte) & 0xFF]
    register ^= 0xFFFFFFFF
    return struct.pack("<I", ((register >> 15 | register << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer of numbers and bytes; zeros are left out, as they are by TensorFlow."""
    found = b""
    for number, value in fields:
        if isinstance(value, int):
            found += varint(number << 3) + varint(value) if value else b""
        else:
            found += varint(number << 3 | 2) + varint(len(value)) + value
    return found


def shape_message(shape: tuple[int, ...]) -> bytes:
    return message(*((2, message((1, size))) for size in shape))


def block(entries: list[tuple[bytes, bytes]], every: int) -> bytes:
    """A block with a restart at every so many keys, which are otherwise told by what differs from the one before."""
    data, restarts, before = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % every == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return data + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(entries: Mapping[bytes, bytes], per_block: int = 7, kind: int = 0) -> bytes:
    """A sorted table: blocks, a block of nothing, a block that tells where they are, and the footer."""
    ordered, data, handles = sorted(entries.items()), b"", []

    def add(content: bytes) -> bytes:
        nonlocal data
        handle = varint(len(data)) + varint(len(content))
        trailer = bytes([kind])
        data += content + trailer + masked_crc(content + trailer)
        return handle

    for first in range(0, len(ordered), per_block):
        part = ordered[first : first + per_block]
        handles.append((part[-1][0], add(block(part, 3))))
    footer = add(block([], 1)) + add(block(handles, 1))
    return data + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(value: NDArray[Any], offset: int, shard: int = 0, slices: bool = False, kind: int = 0) -> bytes:
    data = value.tobytes()
    told = message(
        (1, kind or NUMBERS[value.dtype.name]),
        (2, shape_message(value.shape)),
        (3, shard),
        (4, offset),
        (5, len(data)),
    )
    told += bytes([6 << 3 | 5]) + masked_crc(data)
    return told + (message((7, message((1, message((1, 1), (2, 2)))))) if slices else b"")


def write(
    folder: Path,
    values: Mapping[str, NDArray[Any]],
    name: str = "model.ckpt-37500",
    shards: int = 1,
    index: Callable[[dict[bytes, bytes]], None] = lambda entries: None,
    kind: int = 0,
) -> Path:
    """A checkpoint in a folder, with the file that tells of it.

    Args:
        folder: made if it is not there.
        values: name -> tensor.
        name: of the checkpoint.
        shards: how many files the tensors are spread over.
        index: changes the entries of the table.
        kind: what every block says of its compression.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {b"": message((1, shards), (3, message((1, 1))))}
    data = [b""] * shards
    for i, (key, value) in enumerate(sorted(values.items())):
        shard = i % shards
        entries[key.encode()] = entry(value, len(data[shard]), shard)
        data[shard] += value.tobytes()
    index(entries)
    for shard, content in enumerate(data):
        (folder / f"{name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    (folder / f"{name}.index").write_bytes(table(entries, kind=kind))
    (folder / f"{name}.meta").write_bytes(b"a graph, which is not looked at")
    told = f'model_checkpoint_path: "/home/author/{name}"\nall_model_checkpoint_paths: "/home/author/{name}"\n'
    (folder / "checkpoint").write_text(told)
    return folder


# --- the variables of networks, from their description


def norm_variables(norms: Norms, layer: str, scope: str, native: bool = False) -> Arrays:
    """Those of a layer's norm, each domain's under its own suffix."""
    names = list(norms.layers)
    first = sum(norms.layers[name] for name in names[: names.index(layer)])
    columns = slice(first, first + norms.layers[layer])
    state = {key: value.numpy() for key, value in norms.state_dict().items()}
    if norms.kind == "none":  # a bias, the same for both
        return {f"{scope}/biases": state["beta"][0, columns]}
    found: Arrays = {}
    title = "InstanceNorm" if norms.kind == "instance_norm" else "BatchNorm"
    for d, letter in enumerate("st"):

        def put(name: str, value: NDArray[Any], letter: str = letter) -> None:
            found[f"{scope}/_{letter}/{name}" if native else f"{scope}/{title}/{name}_{letter}"] = value

        for part, usual in (("gamma", 1.0), ("beta", 0.0)):
            rows = state[part][d, columns]
            if norms.dimensions:
                put(part, rows)
                key = f"{scope}/{title}/{part}_{letter}"
                del found[key]
                found[f"{key}/weights"] = state[f"{part}_weight"][d, columns].T
                found[f"{key}/biases"] = rows - np.float32(usual)
            else:
                put(part, rows)
        if norms.remembers:
            put("moving_mean", state["running_mean"][d, columns])
            put("moving_variance", state["running_var"][d, columns])
        if norms.kind == "batch_renorm":
            put("renorm_mean", state["renorm_mean"][d, columns])
            put("renorm_stddev", state["renorm_std"][d, columns])
            put("renorm_mean_weight", state["renorm_weight"][d, names.index(layer), 0])
            put("renorm_stddev_weight", state["renorm_weight"][d, names.index(layer), 1])
    return found


def variables(nets: Mapping[str, nn.Module], config: Config, stage: str, native: bool = False) -> Arrays:
    """What the author's code calls the weights of these networks, and what an Adam adds."""
    side, fading = sides(stage)
    found: Arrays = {}
    scopes = {"E": "encoder_content", "G": "generator", "D_s": "discriminator_s", "D_t": "discriminator_t"}
    for name, net in nets.items():
        root = scopes.get(name, "encoder_style")
        state = {key: value.detach().numpy() for key, value in net.state_dict().items()}

        def channels(one: int, judge: bool = name[0] == "D") -> int:
            most = (judge and config.max_channels_d) or config.max_channels
            return min(config.base_channels * 4 // one, most)

        def put(scope: str, layer: str, state: Arrays = state, net: nn.Module = net, root: str = root) -> None:
            value = state[f"{layer}.weight"]
            found[f"{root}/{scope}/weights"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            if f"{layer}.bias" in state:
                found[f"{root}/{scope}/biases"] = state[f"{layer}.bias"]
            norms = getattr(net, "norms", None)
            if norms is not None and layer in norms.layers:
                found.update(norm_variables(norms, layer, f"{root}/{scope}", native))

        for one in (side, side // 2) if fading else (side,):
            if name == "G":
                put(f"generator_to_rgb_{one}x{one}/Conv", f"to_rgb.{one}")
            else:
                put(f"from_rgb_{one}x{one}/Conv", f"from_rgb.{one}")
        one = 4
        while one <= side:
            scope = f"block_{one}x{one}x{channels(one)}"
            if name != "G":
                scope = f"encoder_block_{one}x{one}x{channels(one // 2)}"
            if name == "G" or one > 4:
                put(f"{scope}/Conv", f"blocks.{one}.0")
                put(f"{scope}/Conv_1", f"blocks.{one}.1")
            if config.self_attention and one == config.attention_size:
                scope = f"self_attention_{one}x{one}x{channels(one if name == 'G' else one // 2)}"
                for i, part in enumerate("fgh"):
                    put(f"{scope}/sa_{part}", f"attention.{one}.{part}")
                    if name[0] == "D":
                        found[f"{root}/{scope}/sa_{part}/biases"] = state[f"attention.{one}.biases.{i}"]
                found[f"{root}/{scope}/sa_gamma"] = state[f"attention.{one}.gamma"]
            one *= 2
        if name[0] == "D" or name == "E_style":
            for i in range(2):
                put(f"before_fc_1x1x{channels(4)}/Conv{'_1' if i else ''}", f"head.{i}")
            put("prediction/fully_connected", "out")
    moments = {
        f"{key}/{slot}": value for key, value in found.items() for slot in ("Adam", "Adam_1") if "weights" in key
    }
    return {key: np.ascontiguousarray(value) for key, value in found.items()} | {
        **{key: np.zeros_like(value) for key, value in moments.items()},
        "beta1_power": np.float32(0.5),
        "beta2_power_1": np.float32(0.99),
        "global_step": np.array(9375, np.int64),
        "n_critic_counter": np.array(1, np.int32),
    }


def theirs(**values: Any) -> Config:
    """As the author trains, but small; averages are none."""
    return tiny_config("tg2018", **values)


def painted(nets: Mapping[str, nn.Module], size: int, alpha: float) -> dict[str, Tensor]:
    """What these networks make of some pictures."""
    source = torch.Generator().manual_seed(9)
    x = torch.rand(3, 3, size, size, generator=source)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for net in nets.values():
            net.eval()
        encoder, generator = nets["E"], nets["G"]
        assert isinstance(encoder, Encoder) and isinstance(generator, Generator)
        for i, o in ((0, 1), (1, 0), (0, 0), (1, 1)):
            latent = encoder(x, (i,), alpha)
            found[f"z of {i}"] = latent.z
            dimensions = generator.norms.dimensions
            style = torch.randn(3, dimensions, generator=source) if dimensions else None
            found[f"{i} to {o}"] = generator(latent.z, latent.skips, (o,), alpha, style)[0]
        for name in ("D_s", "D_t"):
            judge = nets.get(name)
            if isinstance(judge, Discriminator):
                found[name] = judge(x, 1, alpha).scores
        if "E_style" in nets:
            stylist = nets["E_style"]
            assert isinstance(stylist, Encoder)
            found["style"] = stylist(x, (0, 1, 0), alpha).z
    return found


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "published": ("16", {}),
    "first phase": ("4", {}),
    "fading in": ("8to16", {}),
    "fading in first": ("4to8", {}),
    "channels": ("16", {"base_channels": 32, "max_channels": 16, "max_channels_d": 8}),
    "batch norm": ("8", {"norm": "batch_norm"}),
    "instance norm": ("8to16", {"norm": "instance_norm"}),
    "layer norm": ("8", {"norm": "layer_norm"}),
    "no norm": ("8", {"norm": "none"}),
    "no unet": ("16", {"unet": False}),
    "unet up to 8": ("16", {"unet_max": 8}),
    "attention": ("16", {"self_attention": True, "attention_size": 8}),
    "attention, no norm": ("16", {"self_attention": True, "attention_size": 16, "norm": "none"}),
    "style": ("8", {"style": 3}),
    "style, instance norm": ("8", {"style": 3, "norm": "instance_norm"}),
}


@pytest.mark.parametrize("case", CASES)
def test_networks_compute_what_they_did(case: str, tmp_path: Path) -> None:
    stage, values = CASES[case]
    config = theirs(**values)
    config = make("tg2018", config.as_dict() | {"size": sides(stage)[0]})
    nets = networks(config, stage)
    if config.norm == "none":  # there is one bias for both domains
        for net in nets.values():
            if hasattr(net, "norms"):
                net.norms.beta.data[1] = net.norms.beta.data[0]
    native = config.norm == "layer_norm"
    path = write(tmp_path / stage, variables(nets, config, stage, native))
    state = systems.read(path)
    assert systems.recognise(state, path) == "twingan"
    found = contents(state)
    assert (found.origin, found.stage, found.targets, found.tags) == ("tensorflow", stage, ("B", "A"), None)
    assert found.undecided == ("pixel_norm", "equalized") and list(found.nets) == list(nets)
    different = {key: value for key, value in found.config.as_dict().items() if value != getattr(config, key)}
    free = {"phase_images", "last_images", "batch", "log_every", "sheet_every", "save_every"}  # of no network
    assert not different.keys() - free, different
    alpha = 9375 * 8 / 300_000 if "to" in stage else 1.0
    assert found.alpha == alpha
    for name, net in nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(found.nets[name][key].nan_to_num(7), value.nan_to_num(7)), (name, key)
    one, other = painted(nets, sides(stage)[0], alpha), painted(build(found), sides(stage)[0], alpha)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert all(bool(value.isfinite().all()) and float(value.std()) > 0 for value in one.values())
    began, started = networks_of(state)
    assert began == stage and list(started) == list(nets)


def test_native_renorm_has_other_names(tmp_path: Path) -> None:
    config = theirs(size=8)
    nets = networks(config, "8")
    held = variables(nets, config, "8", native=True)
    assert "generator/block_8x8x8/Conv/_s/renorm_mean_weight" in held
    found = contents(systems.read(write(tmp_path, held)))
    assert found.config.norm == "batch_renorm"
    one, other = painted(nets, 8, 1.0), painted(build(found), 8, 1.0)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_pixel_norm_and_equalised_rates_are_told(tmp_path: Path) -> None:
    config = theirs(size=16, pixel_norm=False, equalized=True, self_attention=True, attention_size=8)
    nets = networks(config, "16")
    held = variables(nets, config, "16")
    for name, net in nets.items():  # attention is not equalised there
        for part in "fgh":
            conv = net.attention["8"].get_submodule(part)
            key = next(
                key
                for key in held
                if f"/sa_{part}/weights" in key and key.startswith(SCOPE[name]) and "Adam" not in key
            )
            held[key] = (conv.kernel.detach().numpy()).transpose(2, 3, 1, 0).copy()
    state = systems.read(write(tmp_path, held))
    found = contents(state, pixel_norm=False, equalized=True)
    assert not found.undecided and not found.config.pixel_norm and found.config.equalized
    one, other = painted(nets, 16, 1.0), painted(build(found), 16, 1.0)
    # the kernels of attention go through a division and a product; roundings of a sum of C products in each
    close = {
        key: torch.allclose(one[key], other[key], rtol=0, atol=LAYERS * EPS * float(one[key].abs().max()))
        for key in one
    }
    assert all(close.values()), close
    usual = painted(build(contents(state)), 16, 1.0)
    assert not torch.allclose(usual["0 to 1"], one["0 to 1"], atol=0.01)


SCOPE = {"E": "encoder_content", "G": "generator", "D_s": "discriminator_s", "D_t": "discriminator_t"}
#: Roundings: sums of at most 16 * 9 products in each of at most 20 layers.
EPS, LAYERS = 2.0**-23, 20 * 16 * 9


def spectrally_normed(nets: Mapping[str, nn.Module], names: tuple[str, ...]) -> tuple[dict[str, nn.Module], Arrays]:
    """Networks whose convolutions are divided by what one iteration from a stored vector takes for the singular value.

    Returns:
        The networks as they compute, and the stored vectors by network and layer.
    """
    source = torch.Generator().manual_seed(3)
    nets, vectors = copy.deepcopy(dict(nets)), {}
    for name in names:
        for layer, conv in nets[name].named_modules():
            if "attention" in layer or not hasattr(conv, "kernel"):  # nor linear layers: not there
                continue
            matrix = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 2).double()  # height * width * inputs, outputs
            u = torch.randn(1, matrix.shape[1], generator=source).double()
            v = u @ matrix.t()
            v /= v.norm()
            last = v @ matrix
            conv.weight.data /= last.norm().float()  # v W u^T with u = v W / |v W|
            vectors[f"{name} {layer}"] = u.float().numpy()
    return nets, vectors


@pytest.mark.parametrize("also", [False, True])
def test_spectral_norm(also: bool, tmp_path: Path) -> None:
    config = theirs(size=16, self_attention=True, attention_size=8)
    given = networks(config, "16")
    names = ("E", "G", "D_s", "D_t") if also else ("D_s", "D_t")
    nets, vectors = spectrally_normed(given, names)
    held = variables(given, config, "16")
    for key, value in vectors.items():
        name, layer = key.split()
        kind, *rest = layer.split(".")
        scope = {"to_rgb": "generator_to_rgb_16x16/Conv", "from_rgb": "from_rgb_16x16/Conv"}.get(kind)
        if scope is None:
            block_of = f"before_fc_1x1x8/Conv{'_1' if rest[-1] == '1' else ''}"
            if kind == "blocks":
                square = f"{rest[0]}x{rest[0]}x8/Conv{'_1' if rest[1] == '1' else ''}"
                block_of = f"block_{square}" if name == "G" else f"encoder_block_{square}"
            scope = block_of
        assert f"{SCOPE[name]}/{scope}/weights" in held
        held[f"{SCOPE[name]}/{scope}/u"] = value
    found = contents(systems.read(write(tmp_path, held)))
    assert found.config.spectral_norm and found.config.spectral_norm_g == also
    one, other = painted(nets, 16, 1.0), painted(build(found), 16, 1.0)
    for key in one:
        assert torch.allclose(one[key], other[key], rtol=0, atol=LAYERS * EPS * float(one[key].abs().max())), key
    build(found)["D_s"].train()  # its vectors are whole: training goes on


def test_types_and_several_files(tmp_path: Path) -> None:
    values = {
        "a/half": np.array([[1.5, -2.0]], np.float16),
        "a/float": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "b/double": np.array(0.1),
        "b/int": np.array([-1, 2**31 - 1], np.int32),
        "b/long": np.array([-(2**40)], np.int64),
        "b/bool": np.array([True, False]),
        "c/empty": np.zeros((0, 4), np.float32),
        "c/large": np.random.default_rng(0).normal(size=3000).astype(np.float32),
    }
    write(tmp_path, values, shards=3)
    found = tensorflow.read(tmp_path / "model.ckpt-37500.index")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].numpy().dtype == value.dtype and np.array_equal(found[name].numpy(), value), name
    held = {f"{i:03d}".encode() * (1 + i % 5): bytes([i]) * i for i in range(200)}
    assert tensorflow.table(table(held)) == held and tensorflow.table(table({}, 1)) == {}


def test_checksums() -> None:
    known = {  # RFC 3720, B.4
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        bytes(reversed(range(32))): 0x113FDB5C,
        b"123456789": 0xE3069283,
        b"": 0,
    }
    for data, crc in known.items():
        assert tensorflow.crc32c(data) == crc, data
    data = np.random.default_rng(1).bytes(1 << 20 | 5)
    for length in (1, 2, 3, 4, 5, 7, 64, 1000, len(data)):
        found = struct.pack("<I", tensorflow.masked(tensorflow.crc32c(data[:length])))
        assert found == masked_crc(data[:length]), length


# --- what cannot be read


@pytest.fixture(scope="module")
def held() -> Arrays:
    """The variables of a small model."""
    config = theirs(size=8)
    return variables(networks(config, "8"), config, "8")


def failure(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        contents(systems.read(path))
    assert "\n" not in str(error.value)
    return str(error.value)


DATA, INDEX = "model.ckpt-37500.data-00000-of-00001", "model.ckpt-37500.index"


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_damaged_files(held: Arrays, tmp_path: Path) -> None:
    path = write(tmp_path / "table", held)
    flipped(path / INDEX, 100)
    assert "the checksum of a block" in failure(path) and str(path / INDEX) in failure(path)
    path = write(tmp_path / "tensor", held)
    flipped(path / DATA, (path / DATA).stat().st_size - 5)  # behind it is n_critic_counter alone, which is not read
    assert f"{DATA} is damaged: the checksum of global_step is another" in failure(path)
    path = write(tmp_path / "short", held)
    (path / DATA).write_bytes((path / DATA).read_bytes()[:-5])
    assert f"{DATA} is cut off: global_step ends" in failure(path)
    path = write(tmp_path / "missing", held)
    (path / DATA).unlink()
    assert f"{DATA} is missing" in failure(path)
    path = write(tmp_path / "cut", held)
    (path / INDEX).write_bytes((path / INDEX).read_bytes()[:-30])
    assert "no index of a checkpoint of TensorFlow's format V2, or it is cut off" in failure(path)
    path = write(tmp_path / "front", held)
    (path / INDEX).write_bytes((path / INDEX).read_bytes()[500:])
    assert "damaged" in failure(path)


def spoilt(data: bytes, source: random.Random) -> bytes:
    """Bytes with bits flipped, cut off, cut out or put in."""
    found = bytearray(data)
    for _ in range(source.choice((1, 1, 3))):
        place = source.randrange(len(found) + 1)
        how = source.randrange(4)
        if how == 0:
            del found[place:]
        elif how == 1:
            del found[place : place + source.randrange(1, 9)]
        elif how == 2:
            found[place:place] = bytes(source.choice((0, 1, 127, 128, 255)) for _ in range(source.randrange(1, 12)))
        elif place < len(found):
            found[place] ^= 1 << source.randrange(8)
    return bytes(found)


def test_whatever_is_damaged_is_one_error(held: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and behind the checksums, which would hide what is written wrong; what is still whole may be read."""
    source = random.Random(0)
    whole = block

    def graph(lists: bool) -> Path:
        path = tmp_path / "twingan.pb"
        path.write_bytes(spoilt(frozen(held, lists), source))
        return path

    def entries(found: dict[bytes, bytes]) -> None:
        key = source.choice(sorted(found))
        found[key] = spoilt(found[key], source)

    def blocks() -> Path:
        bad = source.randrange(3)
        told = iter(range(10**6))

        def one(content: list[tuple[bytes, bytes]], every: int) -> bytes:
            data = whole(content, every)
            return spoilt(data, source) if next(told) == bad else data

        monkeypatch.setitem(globals(), "block", one)
        made = write(tmp_path / "blocks", held)
        monkeypatch.undo()
        return made

    def file(name: str) -> Path:
        path = write(tmp_path / "files", held)
        (path / name).write_bytes(spoilt((path / name).read_bytes(), source))
        return path

    ways: list[Callable[[], Path]] = [
        lambda: graph(False),
        lambda: graph(True),
        lambda: write(tmp_path / "entries", held, index=entries),
        blocks,
        lambda: file(INDEX),
        lambda: file(DATA),
        lambda: file("checkpoint"),
    ]
    refused = dict.fromkeys(range(len(ways)), 0)
    for _ in range(15):
        for number, way in enumerate(ways):
            path = way()
            try:
                contents(systems.read(path))
            except CheckpointError as error:
                assert "\n" not in str(error)
                refused[number] += 1
    assert all(refused.values()), refused


def test_sizes_that_cannot_be(held: Arrays, tmp_path: Path) -> None:
    """They are refused before memory is asked for."""
    name = "generator/block_8x8x8/Conv/weights"

    def refused(*fields: tuple[int, int | bytes]) -> str:
        told = {name.encode(): message((1, 1), *fields)}
        return failure(write(tmp_path / "sizes", held, index=lambda entries: entries.update(told)))

    assert "a tensor of 2 sides" in refused((2, shape_message((2**40, 3))), (5, 12 * 2**40))
    assert "a tensor of 2 sides" in refused((2, message((2, b""), (2, message((1, 2**64 - 1))))))  # unknown: -1
    assert "a tensor of 9 sides" in refused((2, shape_message((1,) * 9)), (5, 4))
    assert "is cut off" in refused((2, shape_message((3,))), (4, 2**69), (5, 12))
    assert "a message where a number" in refused((2, shape_message((3,))), (4, bytes(9)), (5, 12))
    path = tmp_path / "twingan.pb"
    for content, words in (
        ((5, bytes(7)), f"{name} has a list"),
        ((5, 3), f"{name} has a list"),
        ((4, bytes(8)), "8 bytes, which do not make"),
    ):
        tensor = message((1, 1), (2, shape_message((3,))), content)
        value = message((1, b"value"), (2, message((8, tensor))))
        path.write_bytes(message((1, message((1, name.encode()), (2, b"Const"), (5, value)))))
        assert words in failure(path)
    lines = {b"generator/two\nlines": entry(np.zeros(1, np.float32), 0, kind=8)}
    assert r"generator/two\nlines is of" in failure(write(tmp_path / "lines", held, index=lambda e: e.update(lines)))
    path = write(tmp_path / "long", held)
    (path / "checkpoint").write_text(f'model_checkpoint_path: "{"x" * 300}"')
    assert str(path / "checkpoint") in failure(path)


def test_files_written_in_other_ways(held: Arrays, tmp_path: Path) -> None:
    error = failure(write(tmp_path / "snappy", held, kind=1))
    assert "compressed by Snappy" in error and "save it anew with TensorFlow" in error
    big = {b"": message((1, 1), (2, 1))}
    assert "big-endian" in failure(write(tmp_path / "big", held, index=lambda entries: entries.update(big)))
    name = "generator/block_8x8x8/Conv/weights"
    sliced = {name.encode(): entry(held[name], 0, slices=True)}
    error = failure(write(tmp_path / "sliced", held, index=lambda entries: entries.update(sliced)))
    assert name in error and "partitioned" in error
    odd = {name.encode(): entry(held[name], 0, kind=8)}
    assert f"{name} is of TensorFlow's type 8" in failure(
        write(tmp_path / "complex", held, index=lambda entries: entries.update(odd))
    )
    less = {name.encode(): entry(held[name], 0, kind=2)}
    assert "which do not make" in failure(write(tmp_path / "less", held, index=lambda e: e.update(less)))
    graph = {b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(np.zeros(1, np.float32), 0, kind=7)}  # a text: no network's
    assert contents(systems.read(write(tmp_path / "text", held, index=lambda e: e.update(graph)))).nets


def without(held: Arrays, pattern: str) -> Arrays:
    return {name: value for name, value in held.items() if not re.search(pattern, name)}


def test_other_variables(held: Arrays, tmp_path: Path) -> None:
    def of(values: Arrays, name: str) -> str:
        return failure(write(tmp_path / name, values))

    unknown = held | {"generator/block_8x8x8/Conv_2/weights": np.zeros((3, 3, 8, 8), np.float32)}
    assert "1 are unknown, such as generator/block_8x8x8/Conv_2/weights" in of(unknown, "unknown")
    error = of(without(held, "block_8x8x8/Conv_1/BatchNorm/renorm_stddev_weight_t"), "lacking")
    assert "2 are missing, such as encoder_content/encoder_block_8x8x8/Conv_1/BatchNorm/renorm_stddev_weight_t" in error
    key = "discriminator_t/before_fc_1x1x8/Conv/weights"
    error = of(held | {key: held[key][:, :, :-1]}, "narrow")
    assert f"{key} has shape [3, 3, 8, 8], expected [3, 3, 9, 8]" in error
    assert "generator of one domain (the author's PGGAN)" in of(without(held, "^encoder_content"), "pggan")
    assert "holds no Twin-GAN" in of({"dense/kernel": np.zeros((2, 2), np.float32)}, "other")
    shortcut = {"encoder_content/from_rgb_8x8/shortcut/weights": np.zeros((1, 1, 3, 8), np.float32)}
    assert "residual blocks" in of(held | shortcut, "residual")
    wide = {"generator/generator_to_rgb_8x8/Conv/weights": np.zeros((7, 7, 8, 3), np.float32)}
    assert "kernels of 7 px" in of(held | wide, "wide")
    assert "takes pictures of no px" in of(without(held, "encoder_content/from_rgb"), "headless")
    third = {name.replace("8x8/Conv", "32x32/Conv"): value for name, value in held.items() if "from_rgb_8" in name}
    assert "takes pictures of 8, 32 px" in of(held | third, "sides")
    odd = {name.replace("from_rgb_8x8", "from_rgb_12x12"): value for name, value in held.items()}
    assert "takes pictures of 12 px" in of(odd, "twelve")


def test_without_discriminators_it_translates(held: Arrays, tmp_path: Path) -> None:
    state = systems.read(write(tmp_path, without(held, "^discriminator")))
    assert list(contents(state).nets) == ["E", "G"]
    assert "are missing" in failure(write(tmp_path / "half", without(held, "^discriminator_s/before")))


def test_which_file(held: Arrays, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "theirs"
    path = write(run / "8", held)
    write(run / "4to8", {"nothing": np.zeros(1, np.float32)})
    everything = [path, run, path / INDEX, path / DATA, path / "checkpoint", path / "model.ckpt-37500"]
    for one in (*everything, path / "model.ckpt-37500.meta"):
        state = gather(one)
        assert state is not None and recognises(state) and contents(state).stage == "8", one
    write(path, {"nothing": np.zeros(1, np.float32)}, name="model.ckpt-400")  # the last one that is told of
    assert "holds no Twin-GAN" in failure(path)
    (path / "checkpoint").unlink()  # then that of the most steps
    state = gather(path)
    assert state is not None and contents(state).stage == "8"
    (path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-7"\n')
    error = failure(path)
    assert "model.ckpt-7.index: is missing" in error and INDEX in error
    (path / "model.ckpt-7").write_bytes(b"V1")
    assert "format V1" in failure(path)
    exported = write(tmp_path / "export" / "variables", held, name="variables")
    (exported / "checkpoint").unlink()
    (exported.parent / "saved_model.pb").write_bytes(message((1, 1)))
    assert contents(systems.read(exported.parent)).stage == "8"
    assert "give the folder around it" in failure(exported.parent / "saved_model.pb")
    with pytest.raises(CheckpointError, match="--start-from"):
        config_of(state)
    for name in systems.SYSTEMS:
        assert systems.module(name, "checkpoints").recognises(state) == (name == "twingan"), name
    assert gather(tmp_path) is None and gather(tmp_path / "none") is None and gather(tmp_path / "none.index") is None


# --- frozen graphs


def frozen(held: Arrays, lists: bool = False) -> bytes:
    """The nodes that translate from source to target, and others as graphs have them."""
    nodes = [message((1, b"sources_ph"), (2, b"Placeholder"))]
    for name, value in held.items():
        if re.match(r"(encoder_content/.*(weights|_s)|generator/.*(weights|_t))$", name) and "renorm" not in name:
            shape = shape_message(value.shape)
            tensor = message((1, 1), (2, shape), (4, value.tobytes()))
            if lists and value.ndim == 1:
                tensor = message((1, 1), (2, shape), (5, value.tobytes()))
            attributes = [(b"dtype", message((6, 1))), (b"value", message((8, tensor)))]
            fields = [(5, message((1, key), (2, content))) for key, content in attributes]
            nodes.append(message((1, name.encode()), (2, b"Const"), *fields))
            nodes.append(message((1, f"{name}/read".encode()), (2, b"Identity"), (3, name.encode())))
    one = message((1, 1), (4, np.float32(1e-3).tobytes()))
    nodes.append(message((1, b"generator/add/y"), (2, b"Const"), (5, message((1, b"value"), (2, message((8, one)))))))
    return b"".join(message((1, node)) for node in nodes) + message((4, message((1, 26))))


@pytest.mark.parametrize("lists", [False, True])
def test_a_frozen_graph_translates_one_way(lists: bool, tmp_path: Path) -> None:
    config = theirs(size=8)
    nets = networks(config, "8")
    path = tmp_path / "twingan.pb"
    path.write_bytes(frozen(variables(nets, config, "8"), lists))
    state = systems.read(path)
    found = contents(state)
    assert found.targets == ("B",) and list(found.nets) == ["E", "G"] and found.config.norm == "batch_norm"
    one, other = painted(nets, 8, 1.0), painted(build(found), 8, 1.0)
    assert torch.equal(one["0 to 1"], other["0 to 1"]) and bool(other["1 to 0"].isnan().all())
    with pytest.raises(CheckpointError, match="one direction"):
        networks_of(state)
    path.write_bytes(path.read_bytes()[:-20])
    assert "damaged" in failure(path)
    path.write_bytes(message((1, message((1, b"x"), (2, b"Const")))))
    assert "holds no variables of Twin-GAN" in failure(path)


# --- converting


def convert(*words: object) -> int:
    return cli.main(command("convert", *words))


def one_line(capsys: Capture) -> str:
    return the_error(capsys.readouterr().err)


def pairs(folder: Path, nets: Mapping[str, nn.Module], size: int = 8) -> tuple[Path, Path]:
    """Photos, and what networks have painted of them as 8-bit pictures."""
    encoder, generator = nets["E"].eval(), nets["G"].eval()
    (folder / "out").mkdir(parents=True)
    for i in range(3):
        photo = picture(folder / "in" / f"{i}.png", i, (20 + i, 24))
        x = preprocess(to_tensor(read_image(photo))[None], size, "tf1")
        with torch.no_grad():
            latent = encoder(x, (0,))
            made = generator(latent.z, latent.skips, (1,))[0][0]
        pixels = (made.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "out" / f"{i}.png")
    picture(folder / "in" / "unpainted.png", 9)
    return folder / "in", folder / "out"


@pytest.mark.parametrize("with_it", [True, False])
def test_pictures_tell_of_pixel_norm(with_it: bool, tmp_path: Path, capsys: Capture) -> None:
    config = theirs(size=8, pixel_norm=with_it)
    nets = networks(config, "8")
    path = write(tmp_path / "8", variables(nets, config, "8"))
    inputs, outputs = pairs(tmp_path / "pairs", nets)
    assert convert(path, tmp_path / "own.pt", "--pairs", inputs, outputs) == 0
    said = capsys.readouterr().out
    assert f"pixel norm: {'on' if with_it else 'off'}" in said and str(tmp_path / "own.pt") in said
    found = contents(systems.read(tmp_path / "own.pt"))
    assert found.origin == "anifast" and found.config.pixel_norm == with_it and not found.undecided
    assert found.config.resize == "tf1" and found.config.fade_skip == "code" and found.stage == "8"
    one, other = painted(nets, 8, 1.0), painted(build(found), 8, 1.0)
    assert all(torch.equal(one[key], other[key]) for key in one)
    out = tmp_path / "translated"
    assert (
        cli.main(
            command("translate", tmp_path / "own.pt", inputs, "--out", out, "--resize", "stretch", "--device", "cpu")
        )
        == 0
    )
    for painted_ in sorted(outputs.iterdir()):  # the same program from end to end
        here, there = (np.asarray(Image.open(folder / painted_.name), np.int16) for folder in (out, outputs))
        assert np.abs(here - there).max() <= 1, painted_


def test_pixel_norm_that_nothing_tells(held: Arrays, tmp_path: Path, capsys: Capture) -> None:
    path, out = write(tmp_path / "8", held), tmp_path / "own.pt"
    assert convert(path, out) == 1
    error = one_line(capsys)
    assert "--pixel-norm on" in error and "--pairs" in error and str(path) in error
    other = networks(theirs(size=8), "8", seed=5)
    inputs, outputs = pairs(tmp_path / "pairs", other)
    assert convert(path, out, "--pixel-norm", "auto", "--pairs", inputs, outputs) == 1
    assert "do not tell whether the networks have pixel norm" in one_line(capsys)
    picture(outputs / "0.png", 1, (9, 8))
    assert convert(path, out, "--pairs", inputs, outputs) == 1
    assert f"{outputs / '0.png'}: has 9x8 pixels" in one_line(capsys)
    (tmp_path / "strangers").mkdir()
    picture(tmp_path / "strangers" / "x.png", 1)
    assert convert(path, out, "--pairs", inputs, tmp_path / "strangers") == 1
    assert "no pictures have the same name" in one_line(capsys)
    assert convert(path, out, "--pairs", inputs, tmp_path / "nowhere") == 1
    assert "no such folder" in one_line(capsys)
    assert not out.exists() and not leftovers(tmp_path)
    assert convert(path, out, "--pixel-norm", "off", "--equalized") == 0
    found = contents(systems.read(out))
    assert not found.config.pixel_norm and found.config.equalized and not found.undecided
    assert convert(out, tmp_path / "again.pt", "--pixel-norm", "on") == 1
    assert "--pixel-norm: an own file tells this itself" in one_line(capsys)


def test_the_networks_as_safetensors(held: Arrays, tmp_path: Path) -> None:
    path, out = write(tmp_path / "8", held), tmp_path / "t.safetensors"
    assert convert(path, out, "--pixel-norm", "on", "--format", "safetensors") == 0
    data = out.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    assert length % 8 == 0
    head = json.loads(data[8 : 8 + length])
    about = head.pop("__metadata__")
    assert about["stage"] == "8" and json.loads(about["config"])["pixel_norm"] is True
    found = contents(systems.read(path))
    expected = {f"{name}.{key}": value for name in ("E", "G") for key, value in found.nets[name].items()}
    assert head.keys() == expected.keys()
    ends = 0
    for name, told in head.items():
        first, ends_at = told["data_offsets"]
        assert first == ends and told["dtype"] == "F32"
        ends = ends_at
        value = np.frombuffer(data[8 + length + first : 8 + length + ends], "<f4").reshape(told["shape"])
        assert np.array_equal(value, expected[name].numpy(), equal_nan=True), name
    assert 8 + length + ends == len(data)


def test_weights_are_the_states(tmp_path: Path) -> None:
    config = theirs(size=8)
    nets = networks(config, "8")
    path = write(tmp_path / "8", variables(nets, config, "8"))
    assert convert(path, tmp_path / "small", "--pixel-norm", "on", "--what", "networks") == 0
    found = contents(systems.read(tmp_path / "small"))
    assert list(found.nets) == ["E", "G"]
    expected = weights(nets)
    for name, net in found.nets.items():
        assert all(torch.equal(net[key].nan_to_num(7), expected[name][key].nan_to_num(7)) for key in expected[name])


def words_of(pixel_norm: bool, equalized: bool) -> list[str]:
    return [as_option("pixel_norm", pixel_norm), as_option("equalized", equalized)]


@pytest.mark.parametrize(("pixel_norm", "equalized"), [(True, False), (False, True)])
def test_a_run_starts_from_them(pixel_norm: bool, equalized: bool, tmp_path: Path, capsys: Capture) -> None:
    """What they do not tell is taken from the run's settings, and told."""
    config = theirs(size=8, pixel_norm=pixel_norm, equalized=equalized)
    nets = networks(config, "8")
    path, data = write(tmp_path / "8", variables(nets, config, "8")), make_data(tmp_path / "data")
    values = config.as_dict() | {"size": 16, "start_from": None, "stage": "8to16"}
    words = [
        f"--{name.replace('_', '-')}={values[name]}"
        for name in ("size", "max_channels", "batch", "phase_images", "stage")
    ]
    words += words_of(pixel_norm, equalized)
    words += ["--preset", "tg2018", "--device", "cpu", "--lr", 0, "--start-from", path]
    with own_cache(tmp_path / "cache"):
        assert cli.main(command("train", "twingan", "--data", data, "--out", tmp_path / "run", *words)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{path}: ")]
    assert len(told) == 1 and told[0].endswith(" ".join(words_of(pixel_norm, equalized)))
    found = contents(systems.read(tmp_path / "run"))
    assert found.stage == "8to16" and (found.config.pixel_norm, found.config.equalized) == (pixel_norm, equalized)
    for name, net in nets.items():  # nothing moves at rate 0
        for key, value in net.named_parameters():
            if not key.startswith("norms."):
                assert torch.equal(found.nets[name][key], value), (name, key)
