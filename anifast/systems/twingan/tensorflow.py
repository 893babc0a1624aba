"""The author's files without TensorFlow: its checkpoints of format V2, its frozen graphs, and the variables in them.

A checkpoint is `NAME.index`, a sorted table of the kind of LevelDB's, and `NAME.data-00000-of-00001`, the bytes of all
tensors. The table's values are protocol buffers: that of the empty key tells of the files, each other of a tensor. A
frozen graph (`.pb`) is one protocol buffer, whose tensors are nodes.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from anifast.engine import state as files
from anifast.errors import CheckpointError
from anifast.systems.twingan.config import BATCHES, DOMAINS, SIZES, STAGES, Config, make
from anifast.systems.twingan.networks import Norms, empty
from anifast.systems.weights import Weights, settled, shape_of

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
#: Behind each block: how it is compressed, and a checksum.
_TRAILER = 5
#: TensorFlow's numbers of types; others hold no numbers that networks have.
_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    14: np.dtype("<u2"),
    19: np.dtype("<f2"),
}
_BFLOAT16, _STRING = 14, 7
#: Sides and numbers that a tensor has at most: networks have far fewer, and damaged sizes as a rule far more.
_SIDES, _NUMBERS = 8, 2**28
#: What a training keeps beside networks, and heads that only its losses need.
_IGNORED = re.compile(
    r"(^|/)(beta[12]_power(_\d+)?|n_critic_counter|gdrop_strength|ExponentialMovingAverage|"
    r"(Adam|RMSProp|Momentum|Adadelta|Adagrad|Ftrl)(_\d+)?)$"
    r"|(^|/)encoder_distillation_(source|target)/"
)
_STEP = "global_step"
_OUT = "save it anew with TensorFlow (tf.train.Saver: restore, then save)"


# --- which files


def is_folder(path: Path) -> bool:
    """Whether a folder holds a checkpoint of TensorFlow's."""
    return path.is_dir() and (_told(path) is not None or bool(_indices(path)))


def index_of(path: Path) -> Path | None:
    """The `.index` file of a checkpoint, or a frozen graph.

    Args:
        path: a folder, whose file `checkpoint` tells the newest; a `.index`, `.meta` or `.data` file of one, or what
            their names begin with; a frozen graph.

    Returns:
        None where `path` is nothing of these.

    Raises:
        CheckpointError: the checkpoint that the folder tells of is not there, or is of the format before.
    """
    if path.is_dir():
        name = _told(path)
        if name is None:
            return max(_indices(path), key=lambda one: (_steps(one), one.name), default=None)
        index = path / f"{name}.index"
        try:
            if index.is_file():
                return index
            former = (path / name).is_file()
        except OSError as error:  # such as a name that is too long
            raise CheckpointError(f"{path / 'checkpoint'}: damaged: {error.strerror}") from error
        if former:
            raise CheckpointError(f"{path / name}: a checkpoint of TensorFlow's format V1, which has no .index; {_OUT}")
        held = ", ".join(one.name for one in _indices(path)) or "none"
        raise CheckpointError(f"{index}: is missing, which {path / 'checkpoint'} tells of; there is {held}")
    if path.name == "checkpoint" and path.is_file() and _told(path.parent) is not None:
        return index_of(path.parent)
    if path.suffix in (".index", ".pb"):
        return path if path.is_file() else None
    name = re.sub(r"(\.meta|\.data-\d{5}-of-\d{5})$", "", path.name)
    index = path.with_name(f"{name}.index")
    return index if index.is_file() else None


def _told(folder: Path) -> str | None:
    """The name of the checkpoint that a folder's file `checkpoint` tells of; the folder may have moved since."""
    try:
        found = re.match(
            r'\s*model_checkpoint_path:\s*"([^"\n]+)"', (folder / "checkpoint").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return None
    return re.split(r"[/\\]", found[1])[-1] if found else None


def _indices(folder: Path) -> list[Path]:
    """The tables in a folder."""
    found = []
    for path in sorted([*folder.glob("*.index"), folder / "variables" / "variables.index"]):  # or an exported model
        if path.is_file() and path.stat().st_size >= _FOOTER:
            with open(path, "rb") as handle:
                handle.seek(-8, 2)
                if struct.unpack("<Q", handle.read(8))[0] == _MAGIC:
                    found.append(path)
    return found


def _steps(path: Path) -> int:
    found = re.search(r"-(\d+)$", path.stem)
    return int(found[1]) if found else -1


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or of a frozen graph by their names, without what optimisers keep.

    Args:
        path: what `index_of` gives.

    Raises:
        CheckpointError: missing, damaged (checksums are compared), or written in a way that cannot be read; the message
            names the file and the way out.
    """
    with files.about(path):
        try:
            return _frozen(path) if path.suffix == ".pb" else _checkpoint(path)
        except OSError as error:
            raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


# --- checksums


@cache
def _shift(count: int) -> NDArray[np.uint32]:
    """What `count` bytes of zeros make of a CRC-32C register, [4, 256]: the part of each of its bytes, to be added.

    `count` is a power of two.
    """
    if count == 1:
        rows = np.zeros((4, 256), np.uint32)
        rows[0] = np.arange(256)
        for _ in range(8):
            rows[0] = rows[0] >> 1 ^ np.where(rows[0] & 1, np.uint32(0x82F63B78), np.uint32(0))
        for j in range(1, 4):
            rows[j] = np.arange(256, dtype=np.uint32) << np.uint32(8 * (j - 1))
        return rows
    half = _shift(count // 2)
    return _moved(half, half.reshape(-1)).reshape(4, 256)


def _moved(rows: NDArray[np.uint32], registers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Registers after the zeros that `rows` stands for."""
    parts = np.ascontiguousarray(registers).view(np.uint8).reshape(-1, 4)
    found = rows[0].take(parts[:, 0])
    for j in range(1, 4):
        found ^= rows[j].take(parts[:, j])
    return found


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli), as RFC 3720 defines it.

    The register is linear in what goes in: words are taken by themselves, then joined in pairs, pairs of pairs and so
    on, all of a level at once. Zeros in front, which fill up a power of two, change nothing.
    """
    register, data = 0xFFFFFFFF, memoryview(data)
    for first in range(0, len(data), 1 << 20):
        piece = data[first : first + (1 << 20)]
        length = max(4, 1 << (len(piece) - 1).bit_length())
        padded = np.zeros(length, np.uint8)
        padded[length - len(piece) :] = np.frombuffer(piece, np.uint8)
        words = _moved(_shift(4), padded.view("<u4").astype(np.uint32, copy=False))
        count = 4
        while len(words) > 1:
            words = _moved(_shift(count), words[0::2]) ^ words[1::2]
            count *= 2
        register = _after(register, len(piece)) ^ int(words[0])
    return register ^ 0xFFFFFFFF


def _after(register: int, count: int) -> int:
    """A register after `count` bytes of zeros."""
    one = np.array([register], np.uint32)
    for bit in range(count.bit_length()):
        if count >> bit & 1:
            one = _moved(_shift(1 << bit), one)
    return int(one[0])


def masked(crc: int) -> int:
    """A checksum as it is stored."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- protocol buffers


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number and where the next thing stands."""
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise CheckpointError("damaged: a number ends beyond the end")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; what is no number is left as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):
            length, place = _varint(data, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = data[place : place + length], place + length
            if place > len(data):
                raise CheckpointError("damaged: a field ends beyond the end")
        else:
            raise CheckpointError(f"damaged: a field of kind {kind}")
        yield key >> 3, value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CheckpointError("damaged: a number where a message is expected")
    return value


def _name(data: bytes) -> str:
    """Of a variable, such as can stand in a message."""
    name = data.decode("utf-8", "replace")
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def _number(value: int | bytes) -> int:
    """Also of fields of fixed width."""
    if isinstance(value, int):
        return value
    if len(value) > 8:
        raise CheckpointError("damaged: a message where a number is expected")
    return int.from_bytes(value, "little")


def _shape(data: bytes) -> tuple[int, ...]:
    """Of a TensorShapeProto."""
    sizes = []
    for number, value in _fields(data):
        if number == 2:
            sizes.append(next((_number(size) for part, size in _fields(_bytes(value)) if part == 1), 0))
    if len(sizes) > _SIDES or math.prod(max(size, 1) for size in sizes) > _NUMBERS:
        raise CheckpointError(f"damaged: a tensor of {len(sizes)} sides, the longest {max(sizes)}")
    return tuple(sizes)


def _tensor(data: bytes, kind: int, shape: tuple[int, ...]) -> Tensor:
    """Little-endian bytes as a tensor."""
    found = torch.from_numpy(np.frombuffer(data, _TYPES[kind]).reshape(shape).copy())
    return found.view(torch.bfloat16) if kind == _BFLOAT16 else found


# --- checkpoints


def _block(data: bytes, place: int, size: int) -> list[tuple[bytes, bytes]]:
    """Keys and values of a block of the table."""
    end = place + size
    if end + _TRAILER > len(data):
        raise CheckpointError("damaged: cut off, or a block ends beyond the end")
    kind = data[end]
    if masked(crc32c(memoryview(data)[place : end + 1])) != struct.unpack_from("<I", data, end + 1)[0]:
        raise CheckpointError("damaged: the checksum of a block is another; fetch the file again")
    if kind:
        how = "by Snappy" if kind == 1 else f"in a way of number {kind}"
        raise CheckpointError(f"its table is compressed {how}, which TensorFlow's releases do not do; {_OUT}")
    if size < 4:
        raise CheckpointError("damaged: a block is too short")
    restarts = struct.unpack_from("<I", data, end - 4)[0]
    last = end - 4 * (restarts + 1)
    if last < place:
        raise CheckpointError("damaged: a block is shorter than the list at its end")
    found, key = [], b""
    while place < last:
        shared, place = _varint(data, place)
        fresh, place = _varint(data, place)
        length, place = _varint(data, place)
        if shared > len(key) or place + fresh + length > last:
            raise CheckpointError("damaged: an entry of a block is longer than the block")
        key = key[:shared] + data[place : place + fresh]
        place += fresh
        found.append((key, data[place : place + length]))
        place += length
    return found


def _handle(data: bytes, place: int = 0) -> tuple[int, int, int]:
    """Place and size of a block, and where the next thing stands."""
    first, place = _varint(data, place)
    size, place = _varint(data, place)
    return first, size, place


def table(data: bytes) -> dict[bytes, bytes]:
    """Keys and values of a sorted table of LevelDB's format without compression.

    Raises:
        CheckpointError: it is none, damaged or compressed.
    """
    if len(data) < _FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise CheckpointError("is no index of a checkpoint of TensorFlow's format V2, or it is cut off")
    footer = data[-_FOOTER:]
    *_, place = _handle(footer)
    first, size, _ = _handle(footer, place)
    found: dict[bytes, bytes] = {}
    for _, handle in _block(data, first, size):
        found.update(_block(data, *_handle(handle)[:2]))
    return found


class _Entry(NamedTuple):
    """Where a tensor lies."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def _entry(name: str, data: bytes) -> _Entry:
    held: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    for number, value in _fields(data):
        if number == 2:
            shape = _shape(_bytes(value))
        elif number == 7:
            raise CheckpointError(
                f"{name} is stored in slices (a partitioned variable), which Twin-GAN's code does not make; {_OUT} "
                "without a partitioner"
            )
        else:
            held[number] = _number(value)
    return _Entry(held.get(1, 0), shape, *(held.get(number, 0) for number in (3, 4, 5, 6)))


def _checkpoint(path: Path) -> dict[str, Tensor]:
    held = table(path.read_bytes())
    header = dict(_fields(held.pop(b"", b"")))
    if _number(header.get(2, 0)):
        raise CheckpointError(f"its numbers are big-endian; {_OUT} on a little-endian machine")
    shards = _number(header.get(1, 1))
    found: dict[str, Tensor] = {}
    for key, value in held.items():
        name = _name(key)
        if _IGNORED.search(name):
            continue
        entry = _entry(name, value)
        if entry.kind == _STRING:
            continue
        if entry.kind not in _TYPES:
            raise CheckpointError(f"{name} is of TensorFlow's type {entry.kind}, which no network here has")
        if entry.size != math.prod(entry.shape) * _TYPES[entry.kind].itemsize:
            raise CheckpointError(f"damaged: {name} has {entry.size} bytes, which do not make {list(entry.shape)}")
        found[name] = _tensor(_stored(path, name, entry, shards), entry.kind, entry.shape)
    return found


def _stored(path: Path, name: str, entry: _Entry, shards: int) -> bytes:
    """The bytes of a tensor."""
    shard = path.with_name(f"{path.stem}.data-{entry.shard:05d}-of-{shards:05d}")
    if not shard.is_file():
        raise CheckpointError(f"{shard.name} is missing beside it, where {name} is stored; put it there")
    end, length = entry.offset + entry.size, shard.stat().st_size
    if end > length:
        raise CheckpointError(f"{shard.name} is cut off: {name} ends at byte {end} of {length}; fetch it again")
    with open(shard, "rb") as handle:
        handle.seek(entry.offset)
        data = handle.read(entry.size)
    if masked(crc32c(data)) != entry.crc:
        raise CheckpointError(f"{shard.name} is damaged: the checksum of {name} is another; fetch it again")
    return data


# --- frozen graphs

#: What the names of variables end with; graphs have many more constants.
_VARIABLE = re.compile(
    r"^(encoder_content|encoder_style|generator|discriminator_[st])/.*"
    r"(/(weights|biases|u|sa_gamma)|(Norm|/_[st])/(gamma|beta|moving_mean|moving_variance)(_[st])?)$"
)


def _frozen(path: Path) -> dict[str, Tensor]:
    """The variables of a frozen graph, which are nodes of kind Const."""
    found: dict[str, Tensor] = {}
    for number, node in _fields(path.read_bytes()):
        if number != 1:
            continue
        if isinstance(node, int):
            raise CheckpointError("is no frozen graph; of an exported model (saved_model.pb) give the folder around it")
        name, value = "", b""
        for part, content in _fields(_bytes(node)):
            if part == 1:
                name = _name(_bytes(content))
            elif part == 2 and content != b"Const":
                break
            elif part == 5:
                attribute = dict(_fields(_bytes(content)))
                if attribute.get(1) == b"value":
                    value = _bytes(dict(_fields(_bytes(attribute.get(2, b"")))).get(8, b""))
        else:
            if value and _VARIABLE.search(name) and not _IGNORED.search(name):
                found[name] = _constant(name, value)
    if not found:
        raise CheckpointError(
            "holds no variables of Twin-GAN: give its frozen graph, or the folder of a checkpoint (with .index and "
            ".data files)"
        )
    return found


def _constant(name: str, data: bytes) -> Tensor:
    """Of a TensorProto, whose numbers are bytes, or a list in which the last one stands for all that follow."""
    kind, content = 0, b""
    shape: tuple[int, ...] = ()
    listed: list[float] = []
    for number, value in _fields(data):
        if number == 1:
            kind = _number(value)
        elif number == 2:
            shape = _shape(_bytes(value))
        elif number == 4:
            content = _bytes(value)
        elif number == 5:
            packed = value if isinstance(value, bytes) else b""
            if not packed or len(packed) % 4:
                raise CheckpointError(f"damaged: {name} has a list that is none of numbers of 4 bytes")
            listed += struct.unpack(f"<{len(packed) // 4}f", packed)
    if kind not in _TYPES or (listed and kind != 1):
        raise CheckpointError(f"{name} is of TensorFlow's type {kind}, which no network here has")
    count = math.prod(shape)
    if listed and not content:
        numbers = np.full(count, listed[-1], "<f4")
        numbers[: len(listed)] = listed[:count]
        content = numbers.tobytes()
    if len(content) != count * _TYPES[kind].itemsize:
        raise CheckpointError(f"damaged: {name} has {len(content)} bytes, which do not make {list(shape)}")
    return _tensor(content, kind, shape)


# --- variables to networks

#: How messages begin that say what was expected.
_OTHER = "these are not the variables of a Twin-GAN"
#: Own name of a network -> the scope of its variables.
SCOPES = {
    "E": "encoder_content",
    "G": "generator",
    "D_s": "discriminator_s",
    "D_t": "discriminator_t",
    "E_style": "encoder_style",
}


class Converted(NamedTuple):
    """What variables are as networks.

    Attributes:
        config: what can be told of the settings; the rest as the preset `tg2018` has it.
        stage: the phase.
        alpha: how far its last layers have faded in, 0 to 1.
        nets: name -> weights by our keys.
        targets: domains that are painted: "B" and "A"; a frozen graph has one of them. What belongs to the other
            direction is not a number.
    """

    config: Config
    stage: str
    alpha: float
    nets: dict[str, Weights]
    targets: tuple[str, ...]


def convert(variables: Mapping[str, Tensor], given: Mapping[str, Any]) -> Converted:
    """The networks that variables of the author's code are.

    Args:
        variables: name -> value.
        given: settings that variables do not tell: pixel_norm, equalized.

    Raises:
        CheckpointError: they are of another network, or some are missing or unknown; the message names them.
    """
    named = {_by_suffix(name): value for name, value in variables.items() if not _IGNORED.search(name)}
    step = named.pop(_STEP, None)
    config, stage = _settings(named, given)
    alpha = 1.0
    if "to" in stage:  # as far as the author's command line has a phase's steps
        done = 0.0 if step is None or step.numel() != 1 else float(step) * BATCHES[config.size] / 300_000
        alpha = min(max(done, 0.0), 1.0)
    there = {name for name, scope in SCOPES.items() if any(key.startswith(f"{scope}/") for key in named)}
    found = _Variables(named)
    nets = {name: _weights(name, net, config, found) for name, net in empty(config, stage).items() if name in there}
    domains = {name: found.domains(SCOPES[name]) for name in ("E", "G")}
    found.close()
    targets = tuple(
        target for target, (i, o) in {"B": (0, 1), "A": (1, 0)}.items() if i in domains["E"] and o in domains["G"]
    )
    return Converted(config, stage, alpha, nets, targets)


def _by_suffix(name: str) -> str:
    """`Conv/_s/gamma`, as norms of TensorFlow's own are called there, as the author's own: `Conv/BatchNorm/gamma_s`."""
    return re.sub(r"/(_[st])/(\w+)$", r"/BatchNorm/\2\1", name)


def _settings(named: Mapping[str, Tensor], given: Mapping[str, Any]) -> tuple[Config, str]:
    """The settings that variables tell, and the phase."""
    if not any(name.startswith("encoder_content/") for name in named):
        few = ", ".join(list(named)[:3]) or "nothing"
        if any(name.startswith("generator/") for name in named):
            raise CheckpointError(
                "this is a generator of one domain (the author's PGGAN), and Twin-GAN translates between two: there "
                f"are no variables encoder_content/..., but {few}"
            )
        raise CheckpointError(f"holds no Twin-GAN: there are no variables encoder_content/..., but {few}")
    if any("/shortcut/" in name for name in named):
        raise CheckpointError("these networks have residual blocks (use_res_block), which anifast has not")
    fed = sorted(_numbers(named, r"^encoder_content/from_rgb_(\d+)x\1/Conv/weights$"))
    side = fed[-1] if fed else 0
    if side not in SIZES or fed not in ([side], [side // 2, side]):
        raise CheckpointError(
            f"the encoder takes pictures of {', '.join(map(str, fed)) or 'no'} px (encoder_content/from_rgb_...), "
            f"expected one of {', '.join(map(str, SIZES))}, or one and its half"
        )
    stage = str(side) if len(fed) == 1 else f"{side // 2}to{side}"
    assert stage in STAGES
    for one in fed:
        key = f"generator/generator_to_rgb_{one}x{one}/Conv/weights"
        kernel = shape_of(named, key, 4, _OTHER, "[1, 1, channels, 3]")[0]
        if kernel != 1:
            raise CheckpointError(
                f"the generator's colours have kernels of {kernel} px (use_larger_filter_at_rgb_layer), and anifast's "
                "have 1"
            )
    most = max(_numbers(named, r"^generator/block_4x4x(\d+)/Conv/weights$"), default=256)
    top = shape_of(named, f"encoder_content/from_rgb_{side}x{side}/Conv/weights", 4, _OTHER, "[1, 1, 3, channels]")[3]
    told: dict[str, Any] = {"size": side, "max_channels": most, **given}
    if top < most and top * side // 4 != make().base_channels:
        told["base_channels"] = top * side // 4
    judges = _numbers(named, r"^discriminator_[st]/before_fc_1x1x(\d+)/")
    if judges and max(judges) != most:
        told["max_channels_d"] = max(judges)
    told["norm"] = _norm(named)
    attention = _numbers(named, r"^encoder_content/self_attention_(\d+)x\1x\d+/")
    attention |= _numbers(named, r"^generator/self_attention_(\d+)x\1x\d+/")
    if attention:
        told |= {"self_attention": True, "attention_size": max(attention)}
    if any(re.match(r"discriminator_[st]/.*/u$", name) for name in named):
        told["spectral_norm"] = True
    if any(re.match(r"(encoder_content|generator)/.*/u$", name) for name in named):
        told |= {"spectral_norm": True, "spectral_norm_g": True}
    style = named.get("encoder_style/prediction/fully_connected/weights")
    if style is not None and style.dim() == 2:
        told["style"] = int(style.shape[1])
    told |= _skips(named, most)
    return settled(make, "tg2018", told, "networks of these variables"), stage


def _numbers(named: Mapping[str, Tensor], pattern: str) -> set[int]:
    return {int(match[1]) for name in named if (match := re.match(pattern, name))}


def _norm(named: Mapping[str, Tensor]) -> str:
    held = [name for name in named if name.startswith("encoder_content/")]
    for kind, pattern in (
        ("batch_renorm", r"/BatchNorm/renorm_mean_[st]$"),
        ("batch_norm", r"/BatchNorm/moving_mean_[st]$"),
        ("layer_norm", r"/BatchNorm/gamma_[st]$"),
        ("instance_norm", r"/InstanceNorm/gamma_[st]$"),
    ):
        if any(re.search(pattern, name) for name in held):
            return kind
    return "none"


def _skips(named: Mapping[str, Tensor], first: int) -> dict[str, Any]:
    """Which blocks take maps of the encoder: those whose convolutions take more than the block before gives."""
    before, given, all_sides = first, [], []
    for side in SIZES[1:]:
        found = [name for name in named if re.match(rf"generator/block_{side}x{side}x\d+/Conv/weights$", name)]
        if not found or named[found[0]].dim() != 4:
            break
        all_sides.append(side)
        if named[found[0]].shape[2] > before:
            given.append(side)
        before = int(named[found[0]].shape[3])
    if not all_sides or given == all_sides:
        return {}
    return {"unet": False} if not given else {"unet_max": max(given)}


class _Variables:
    """Variables that are taken one by one, so that what is missing or left over can be told.

    Args:
        named: all of them.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.named, self.taken, self.missing = named, set[str](), list[str]()

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One variable in float32; zeros where it is missing, which `close` tells.

        Raises:
            CheckpointError: it is of another shape.
        """
        if name not in self.named:
            self.missing.append(name)
            return torch.zeros(shape)
        self.taken.add(name)
        value = self.named[name]
        if tuple(value.shape) != shape and not (shape == () and value.numel() == 1):
            raise CheckpointError(f"{name} has shape {list(value.shape)}, expected {list(shape)}")
        return value.float().reshape(shape)

    def domains(self, scope: str) -> list[int]:
        """The domains that a network has norms of; all where it has none."""
        pattern = rf"^{scope}/.*Norm/beta_([st])(/biases)?$"
        found = {match[1] for name in self.named if (match := re.match(pattern, name))}
        return [i for i, letter in enumerate(DOMAINS) if letter in found or not found]

    def close(self) -> None:
        """Check that all was there and that nothing is left.

        Raises:
            CheckpointError: not so.
        """
        unknown = [name for name in self.named if name not in self.taken]
        told = [
            f"{len(names)} {what}, such as {', '.join(names[:3])}"
            for names, what in ((self.missing, "are missing"), (unknown, "are unknown"))
            if names
        ]
        if told:
            raise CheckpointError(f"{_OTHER}: {'; '.join(told)}")


def _scope(name: str, layer: str, config: Config) -> str:
    """The scope of a layer's variables, by our name of the layer."""
    judge = name.startswith("D_")

    def channels(side: int) -> int:
        return config.channels(side, discriminator=judge)

    kind, *rest = layer.split(".")
    prefix = SCOPES[name]
    if kind == "out":
        return f"{prefix}/prediction/fully_connected"
    if kind == "head":
        return f"{prefix}/before_fc_1x1x{channels(4)}/{_conv(rest[0])}"
    side = int(rest[0])
    square = f"{side}x{side}"
    if kind in ("from_rgb", "to_rgb"):
        return f"{prefix}/{'generator_' if kind == 'to_rgb' else ''}{kind}_{square}/Conv"
    if kind == "attention":
        scope = f"{prefix}/self_attention_{square}x{channels(side) if name == 'G' else channels(side // 2)}"
        return f"{scope}/sa_{rest[1]}" if rest[1:] else scope
    if name == "G":
        return f"{prefix}/block_{square}x{channels(side)}/{_conv(rest[1])}"
    return f"{prefix}/encoder_block_{square}x{channels(side // 2)}/{_conv(rest[1])}"


def _conv(number: str) -> str:
    return "Conv" if number == "0" else f"Conv_{number}"


def _weights(name: str, net: torch.nn.Module, config: Config, found: _Variables) -> Weights:
    """A network's weights by our keys; `net` has their shapes."""
    weights: Weights = {}
    expected = net.state_dict()
    norms = getattr(net, "norms", None)
    rows = _norms(name, norms, config, found) if isinstance(norms, Norms) else {}
    for key, like in expected.items():
        if key.startswith("norms."):
            weights[key] = rows[key.removeprefix("norms.")]
            continue
        layer, _, leaf = key.partition(".parametrizations.weight.")
        if leaf in ("0._u", "0._v"):
            continue  # below
        if not leaf:
            layer, _, leaf = key.rpartition(".")
        if layer.endswith(".biases"):  # of attention in a discriminator
            part = "fgh"[int(leaf)]
            weights[key] = found.take(
                f"{_scope(name, layer.removesuffix('.biases'), config)}/sa_{part}/biases", (len(like),)
            )
        elif leaf == "gamma":
            weights[key] = found.take(f"{_scope(name, layer, config)}/sa_gamma", (1,))
        elif leaf == "bias":
            weights[key] = found.take(f"{_scope(name, layer, config)}/biases", tuple(like.shape))
        else:
            weights[key] = _kernel(_scope(name, layer, config), layer, like, config, found)
        if leaf == "original":
            vectors = _vectors(f"{_scope(name, layer, config)}/u", weights[key], found)
            weights |= dict(
                zip((f"{layer}.parametrizations.weight.0.{part}" for part in ("_u", "_v")), vectors, strict=True)
            )
    return {key: weights[key] for key in expected}


def _kernel(scope: str, layer: str, like: Tensor, config: Config, found: _Variables) -> Tensor:
    """Of a convolution, height, width, inputs, outputs there; of a linear layer inputs, outputs."""
    shape = tuple(like.shape)
    if len(shape) == 2:
        return found.take(f"{scope}/weights", (shape[1], shape[0])).t().contiguous()
    value = found.take(f"{scope}/weights", (*shape[2:], shape[1], shape[0])).permute(3, 2, 0, 1).contiguous()
    if config.equalized and layer.startswith("attention."):  # not equalised there, where it is used
        value = value / math.sqrt(2.0 / math.prod(shape[1:]))
    return value


def _vectors(name: str, weight: Tensor, found: _Variables) -> tuple[Tensor, Tensor]:
    """The singular vectors of spectral norm, as one iteration from the stored one makes them.

    The author's code leaves linear layers and attention as they are. What is computed stays the same: their vectors are
    such that the singular value counts as 1, until training goes on.
    """
    matrix = weight.flatten(1)
    if name in found.named:
        u = found.take(name, (1, len(matrix)))[0]
        v = F.normalize(matrix.t() @ u, dim=0, eps=1e-12)
        return F.normalize(matrix @ v, dim=0, eps=1e-12), v
    if not bool(matrix.isfinite().all()):
        raise CheckpointError(f"{name.rpartition('/')[0]}/weights has values that are no numbers")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, 0] / values[0].clamp_min(1e-12), right[0]


def _norms(name: str, norms: Norms, config: Config, found: _Variables) -> Weights:
    """All scales, shifts and statistics side by side, as `Norms` has them; of domains that are not there NaN."""
    total, kind = sum(norms.sizes), norms.kind
    rows = {key: torch.full(tuple(like.shape), math.nan) for key, like in norms.state_dict().items()}
    if "recalibrated_steps" in rows:
        rows["recalibrated_steps"] = torch.zeros(())
    names = {"running_mean": "moving_mean", "running_var": "moving_variance"}
    names |= {"renorm_mean": "renorm_mean", "renorm_std": "renorm_stddev"}
    scope_of = "InstanceNorm" if kind == "instance_norm" else "BatchNorm"
    first = 0
    for place, (layer, width) in enumerate(norms.layers.items()):
        scope, columns = _scope(name, layer, config), slice(first, first + width)
        first += width
        if kind == "none":
            rows["beta"][:, columns] = found.take(f"{scope}/biases", (width,))
            continue
        for domain in found.domains(SCOPES[name]):
            where, suffix = f"{scope}/{scope_of}", f"_{DOMAINS[domain]}"
            for part in ("gamma", "beta"):
                if norms.dimensions:
                    matrix = found.take(f"{where}/{part}{suffix}/weights", (norms.dimensions, width))
                    rows[f"{part}_weight"][domain, columns] = matrix.t()
                    value = found.take(f"{where}/{part}{suffix}/biases", (width,)) + (1.0 if part == "gamma" else 0.0)
                else:
                    value = found.take(f"{where}/{part}{suffix}", (width,))
                rows[part][domain, columns] = value
            for key, theirs in names.items():
                if key in rows:
                    rows[key][domain, columns] = found.take(f"{where}/{theirs}{suffix}", (width,))
            if "renorm_weight" in rows:
                for i, one in enumerate(("mean", "stddev")):
                    rows["renorm_weight"][domain, place, i] = found.take(f"{where}/renorm_{one}_weight{suffix}", ())
    assert first == total
    return rows
