"""Writing networks of Twin-GAN: as an own file, or those that translate for programs that read safetensors.

What the author's files do not tell, whether the networks have pixel norm, is found by pictures that they have painted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.data.folders import printable, read_image, scan, to_tensor
from anifast.engine import state as files
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.systems.twingan.checkpoints import AVERAGED, NETS, Contents, averaged, build, contents, header
from anifast.systems.twingan.config import DOMAINS, LETTERS, WORDS, domain_of, sides
from anifast.systems.twingan.networks import Encoder, Generator
from anifast.systems.twingan.pictures import preprocess
from anifast.systems.weights import Weights, moved

#: What can be written, the default first.
FORMATS = ("anifast", "safetensors")
#: What `convert` takes beside what all systems do.
OWN_OPTIONS = ("what", "pixel_norm", "equalized", "pairs")
_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


def convert(
    state: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    format: str = "anifast",
    direction: str | None = None,
    epoch: str = "latest",
    force: bool = False,
    what: str = "all",
    pixel_norm: str = "auto",
    equalized: bool | None = None,
    pairs: tuple[Path, Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[Path, Any]:
    """The file that the networks of a checkpoint, run or folder become; nothing is written yet.

    Args:
        state: what was read from `source`.
        source: where from, for messages.
        out: a file; or a folder, which gets checkpoint.pt or model.safetensors.
        format: one of `FORMATS`. safetensors has the networks that translate alone.
        direction: there is none here: the same networks translate both ways.
        epoch: there is no such tag in these files' names.
        force: there is nothing that it would be needed for.
        what: "all" that is there, the averages beside the networks in training; or "networks": those that translate,
            averaged if there are averages.
        pixel_norm: of the author's files: "on", "off", or "auto": as those have it that painted `pairs`.
        equalized: whether the author's networks were trained with the equalised learning rate; None: no.
        pairs: folders of pictures and of what the author's networks have painted of them, of the same names.
        say: gets a line about what was found by pairs.

    Returns:
        Path -> contents.

    Raises:
        CheckpointError: networks are missing or damaged, or nothing tells whether they have pixel norm; the message
            names `source`.
        AnifastError: an option or `out` that cannot be.
        DataError: pairs that cannot be used.
    """
    if format not in FORMATS:
        raise AnifastError(f"{source}: Twin-GAN has no format {format!r}; there are {', '.join(FORMATS)}")
    if direction is not None:
        raise AnifastError(f"{source}: --direction {direction}: one network translates both ways; leave it out")
    if epoch != "latest":
        raise AnifastError(f"{source}: --epoch {epoch}: files of Twin-GAN have no tag in their names; leave it out")
    if what not in ("all", "networks"):
        raise AnifastError(f"{source}: --what {what}: there are all and networks")
    if format == "safetensors" and out.suffix == ".pt":
        raise AnifastError(f"{out}: --format safetensors: give a name that ends in .safetensors, or a folder")
    if format == "anifast" and out.suffix == ".safetensors":
        raise AnifastError(f"{out}: is a name for --format safetensors; give that, or a name that ends in .pt")
    with files.about(source):
        found = _decided(state, pixel_norm, equalized, pairs, say)
        if format == "safetensors":
            file = out if out.suffix == ".safetensors" else out / "model.safetensors"
            return {file: _safetensors(found)}
        file = out if out.suffix in (".pt", ".pth") else out / files.NAME
        return {file: _networks(found) if what == "networks" else _all(found, state)}


def hint(state: Mapping[str, Any], format: str, direction: str | None) -> str:
    """What there is to know of the file that was written."""
    found = contents(state)
    if format == "safetensors":
        return "tensors are called by network and layer (E.blocks.8.0.weight); the settings are in its metadata"
    if len(found.targets) == 1:
        to = domain_of(found.targets[0])
        return f"it translates to the {WORDS[to]} ({DOMAINS[to]}, {LETTERS[to]}) alone, as the frozen graph does"
    missing = [name for name in NETS[:4] if name not in found.nets]
    if missing:
        return (
            f"it translates; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in what it was made from"
        )
    return "it translates; with all networks (--what all) a run can start from it, whose optimisers begin anew"


# --- pixel norm


def _decided(
    state: Mapping[str, Any],
    pixel_norm: str,
    equalized: bool | None,
    pairs: tuple[Path, Path] | None,
    say: Callable[[str], None],
) -> Contents:
    """What a file holds, with all that it does not tell itself."""
    if "format" in state:
        given = {"--pixel-norm": pixel_norm != "auto", "--equalized": equalized, "--pairs": pairs}
        needless = [name for name, value in given.items() if value]
        if needless:
            raise AnifastError(f"{', '.join(needless)}: an own file tells this itself; leave it out")
        return contents(state)
    if pixel_norm not in ("auto", "on", "off"):
        raise AnifastError(f"--pixel-norm {pixel_norm}: there are auto, on and off")
    equalized = bool(equalized)
    if pixel_norm != "auto":
        return contents(state, pixel_norm=pixel_norm == "on", equalized=equalized)
    if pairs is None:
        raise CheckpointError(
            "nothing in it tells whether its networks have pixel norm: give --pixel-norm on (as the published command "
            "has it) or off, or --pairs INPUTS OUTPUTS, folders of photos and of what the author's networks have "
            "painted of them"
        )
    ways = {way: contents(state, pixel_norm=way == "on", equalized=equalized) for way in ("on", "off")}
    away = _away(ways, *pairs)
    best, other = sorted(away, key=lambda way: away[way] if math.isfinite(away[way]) else math.inf)
    told = ", ".join(f"{away[way]:.4f} with pixel norm {way}" for way in ways)
    if not away[best] <= away[other] / 2:  # the wrong one paints something else, the right one the same but roundings
        raise CheckpointError(
            f"{printable(pairs[1])}: these pictures do not tell whether the networks have pixel norm, for they lie "
            f"about as far from what is painted with it as without (mean difference of values in [0, 1]: {told}). Are "
            "they what these networks have painted? Else say --pixel-norm on or off"
        )
    say(f"pixel norm: {best}, by the pictures of {printable(pairs[1])} (mean difference of values in [0, 1]: {told})")
    return ways[best]


def _away(ways: Mapping[str, Contents], inputs: Path, outputs: Path) -> dict[str, float]:
    """How far from `outputs` lies what networks paint of `inputs`: the mean difference of values in [0, 1]."""
    first = next(iter(ways.values()))
    side = sides(first.stage)[0]
    if "B" not in first.targets:
        raise CheckpointError("it does not paint drawings of photos, as --pairs has them; say --pixel-norm on or off")
    theirs = {Path(name).with_suffix("").as_posix(): name for name in scan(outputs).names}
    both = [
        (name, there) for name in scan(inputs).names if (there := theirs.get(Path(name).with_suffix("").as_posix()))
    ]
    if not both:
        raise DataError(
            f"{printable(inputs)} and {printable(outputs)}: no pictures have the same name; give the folders of the "
            "photos and of what was painted of them"
        )
    found = dict.fromkeys(ways, 0.0)
    nets = {way: build(one, "E", "G") for way, one in ways.items()}
    for name, there in both:
        painted = _read(outputs / there, side)
        photo = preprocess(to_tensor(read_image(inputs / name))[None], side, "tf1")
        for way, pair in nets.items():
            found[way] += float((_painted(pair, photo, first.alpha) - painted).abs().mean()) / len(both)
    return found


def _read(path: Path, side: int) -> Tensor:
    """A painted picture, [1,3,side,side] in [0, 1]."""
    found = to_tensor(read_image(path))
    if found.shape[-2:] != (side, side):
        raise DataError(
            f"{printable(path)}: has {found.shape[2]}x{found.shape[1]} pixels, and these networks paint {side}x{side}; "
            "give results as they were painted"
        )
    return found[None] / 255


@torch.no_grad()
def _painted(nets: Mapping[str, torch.nn.Module], photo: Tensor, alpha: float) -> Tensor:
    """What is painted of a photo, N,3,H,W in [0, 1]."""
    encoder, generator = nets["E"], nets["G"]
    assert isinstance(encoder, Encoder) and isinstance(generator, Generator)
    latent = encoder(photo, (0,), alpha)
    return generator(latent.z, latent.skips, (1,), alpha)[0].clamp(0, 1)


# --- files


def _head(found: Contents) -> dict[str, Any]:
    """What stands beside the networks."""
    head: dict[str, Any] = header(found.config) | {"stage": found.stage, "alpha": found.alpha}
    if found.tags is not None:
        head["tags"] = [list(row) for row in found.tags]
    if len(found.targets) < 2:
        head["targets"] = list(found.targets)
    return head


def _translating(found: Contents) -> dict[str, Weights]:
    """The networks that translate.

    Raises:
        CheckpointError: the encoder or the generator is missing.
    """
    for name in ("E", "G"):
        if name not in found.nets:
            raise CheckpointError(f"there is no {name} in it, only {', '.join(found.nets)}")
    return {name: found.nets[name] for name in AVERAGED if name in found.nets}


def _networks(found: Contents) -> dict[str, Any]:
    return _head(found) | {"nets": moved(_translating(found))}


def _all(found: Contents, state: Mapping[str, Any]) -> dict[str, Any]:
    """An own file of all networks, of those that are averaged both."""
    whole = _head(found)
    if found.images is not None:
        whole["images"] = found.images
    if found.origin == "anifast" and averaged(state):
        whole["ema"] = moved({name: found.nets[name] for name in AVERAGED if name in state["ema"]})
        live = contents(state, live=True).nets
        return whole | {"nets": moved({name: live[name] for name in live if name in state["nets"]})}
    return whole | {"nets": moved(found.nets)}


def _safetensors(found: Contents) -> bytes:
    """The networks that translate: the length of a header, the header in JSON, and all tensors behind one another."""
    nets = moved(_translating(found))
    tensors = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.items()}
    told = _head(found)
    # strings alone may stand there
    entries: dict[str, Any] = {
        "__metadata__": {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}
    }
    parts, place = [], 0
    for name, value in tensors.items():
        data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        span = [place, place + len(data)]
        entries[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": span}
        parts.append(data)
        place += len(data)
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(parts)
