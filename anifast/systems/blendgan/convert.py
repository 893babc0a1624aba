"""Writing networks of BlendGAN for anifast and for the authors' programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from anifast.engine import state as files
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.blendgan.checkpoints import (
    AUTHORS,
    JUDGES,
    NETS,
    OURS,
    Contents,
    averaged,
    contents,
    gram_channels,
    header,
    mean_latent,
    style_encoder_weights,
    their_key,
)
from anifast.systems.blendgan.config import FILES, Config, make
from anifast.systems.weights import Weights, moved

#: What can be written, the default first.
FORMATS = ("anifast", "authors")
#: The parts of the authors' generator in their order.
_PARTS = ("add_weight", "embedder", "embedding", "style", "input", "conv1", "to_rgb1", "convs", "to_rgbs", "noises")
#: Networks -> the settings that the authors' code has but one value for.
_FIXED = {
    ("G",): ("style_dim", "n_mlp", "base_channels"),
    ("E_style",): ("backbone", "style_side", "style_dim", "style_mlp"),
    ("psp",): ("psp_side",),
    ("D_face", "D_style", "D_latent"): ("base_channels",),
    ("D_latent",): ("normalised",),
}


def convert(
    state: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    format: str = "anifast",
    direction: str | None = None,
    epoch: str = "latest",
    force: bool = False,
) -> dict[Path, Any]:
    """The files that the networks of a checkpoint, run or folder become; nothing is written yet.

    Args:
        state: what was read from `source`.
        source: where from, for messages.
        out: for anifast a file, or a folder, which gets checkpoint.pt. For the authors a folder, which gets a file for
            each kind of network, or the first of those files: the generator's where there is one.
        format: one of `FORMATS`.
        direction: there is none here.
        epoch: there is no such tag in these files' names.
        force: write networks that the authors' code cannot load.

    Returns:
        Path -> contents.

    Raises:
        CheckpointError: networks are missing or damaged, or the format cannot express them; the message names `source`
            and says what differs.
        AnifastError: an option that cannot be.
    """
    if format not in FORMATS:
        raise AnifastError(f"{source}: BlendGAN has no format {format!r}; there are {', '.join(FORMATS)}")
    if direction is not None:
        raise AnifastError(f"{source}: --direction {direction}: these networks have no directions; leave it out")
    if epoch != "latest":
        raise AnifastError(f"{source}: --epoch {epoch}: files of BlendGAN have no tag in their names; leave it out")
    single = out.suffix in (".pt", ".pth")
    with files.about(source):
        found = contents(state)
        _require_styles(found)
        if format == "anifast":
            return {out if single else out / files.NAME: _own(found, state)}
        _expressible(found, force)
        written = _authors(found)
        if single:
            return {out: next(iter(written.values()))}
        return {out / name: content for name, content in written.items()}


def hint(state: Mapping[str, Any], format: str, direction: str | None) -> str:
    """What there is to know of the files that were written, and what the authors' programs have to be told."""
    found = contents(state)
    c, lines = found.config, []
    if format == "anifast":
        if "G" in found.nets:
            lines.append("a run that starts from it (--start-from) takes G and the discriminators that are there")
        if "E_style" in found.nets:
            lines.append("a run takes its style encoder by --style-encoder")
        return "\n".join(lines)
    if "G" in found.nets:
        lines.append(
            f"options for the authors' programs: --size {c.size} --channel_multiplier {c.channel_multiplier:g}"
        )
        if found.latent_avg is None:
            lines.append("latent_avg, which no file told, is the mean of 4096 faces")
        lacking = [name for name in ("E_style", "psp") if name not in found.nets]
        if lacking:
            lines.append(f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not in what it was made from")
    several = _names(found)
    if len(several) > 1:
        lines.append(f"OUT as a folder gets {', '.join(several)}; OUT as a file is the first of them")
    return "\n".join(lines)


def _require_styles(found: Contents) -> None:
    if found.origin == "stylegan2":
        raise CheckpointError(
            "this is a generator of StyleGAN2, which knows no styles: there is no BlendGAN to write. Train one that "
            "starts from it (anifast train blendgan --start-from)"
        )


def _portable(config: Config) -> Config:
    """Settings without the names of files on this machine."""
    none: dict[str, Any] = dict.fromkeys(FILES)
    return dataclasses.replace(config, **none)


def _own(found: Contents, state: Mapping[str, Any]) -> dict[str, Any]:
    """An own file of all networks; of a run's generator both the average and the one in training."""
    whole: dict[str, Any] = header(_portable(found.config))
    if found.steps is not None:
        whole["steps"] = found.steps
    nets = dict(found.nets)
    if averaged(state):
        live = contents(state, live=True)
        whole["ema"] = {"G": moved(nets.pop("G"))}
        if not live.ema:
            nets["G"] = live.nets["G"]
    if "psp" in nets and "latent_avg" not in nets["psp"] and "G" in found.nets:
        nets["psp"] = nets["psp"] | {"latent_avg": mean_latent(found)}
    whole["nets"] = {name: moved(nets[name]) for name in NETS if name in nets}
    if found.latent_avg is not None:
        whole["latent_avg"] = moved(found.latent_avg)
    if found.truncation is not None:
        whole["truncation"] = found.truncation
    return whole


# --- the authors' files


def _expressible(found: Contents, force: bool) -> None:
    """Refuse what the authors' code cannot load.

    Raises:
        CheckpointError: these networks are such.
    """
    c, theirs = found.config, make()
    names = dict.fromkeys(name for nets, names in _FIXED.items() if set(nets) & set(found.nets) for name in names)
    other = [
        f"{name} {getattr(c, name)} (there: {getattr(theirs, name)})"
        for name in names
        if getattr(c, name) != getattr(theirs, name)
    ]
    if {"G", *JUDGES} & set(found.nets) and c.channel_multiplier != int(c.channel_multiplier):
        other.append(f"channel_multiplier {c.channel_multiplier:g} (there: whole numbers)")
    if other and not force:
        raise CheckpointError(
            f"the authors' code cannot load these networks, for they have {', '.join(other)}; --force writes them all "
            "the same, for a copy of that code which was changed to fit"
        )
    if "G" in found.nets and "E_style" not in found.nets and not force:
        raise CheckpointError(
            "the authors' code loads the generator and E_style from one file, and E_style is missing here; give a "
            "folder that has both, or --force writes what is there"
        )
    if "psp" in found.nets and "latent_avg" not in found.nets["psp"] and "G" not in found.nets:
        raise CheckpointError(
            "latent_avg is missing, which psp_encoder.pt has to have; convert it together with its generator, in a "
            f"folder with {AUTHORS[0]}"
        )


def _names(found: Contents) -> list[str]:
    """The files that there are networks for."""
    nets = found.nets
    there = ("G" in nets, "psp" in nets, "E_style" in nets, bool(set(JUDGES) & set(nets)))
    return [name for name, is_there in zip(AUTHORS, there, strict=True) if is_there]


def _authors(found: Contents) -> dict[str, Any]:
    """Name -> contents, with our settings under a name that the authors' code does not read."""
    nets, written = found.nets, {}
    ours = {OURS: _portable(found.config).as_dict()}
    encoder: Weights = {}
    if "E_style" in nets:
        full = style_encoder_weights(nets["E_style"], False, gram_channels(found.config))
        encoder = {their_key(key): value for key, value in moved(full).items()}
    mean: Tensor | None = None
    if "G" in nets:
        mean = mean_latent(found)
        same = bool((mean == mean[:1]).all())
        generator = _in_order(moved(nets["G"]) | {f"embedder.{key}": value for key, value in encoder.items()})
        written[AUTHORS[0]] = {"g_ema": generator, "latent_avg": (mean[0] if same else mean).clone(), **ours}
        if found.truncation is not None:
            written[AUTHORS[0]]["truncation"] = found.truncation
    if "psp" in nets:
        psp = moved(nets["psp"])
        mean = psp.pop("latent_avg", mean)
        written[AUTHORS[1]] = {
            "state_dict": {f"encoder.{key}": value for key, value in psp.items()},
            "latent_avg": mean,
            **ours,
        }
    if encoder:
        written[AUTHORS[2]] = {"style_encoder": encoder, **ours}
        if "projector" in nets:
            written[AUTHORS[2]]["projector"] = moved(nets["projector"])
    judges = {theirs: moved(nets[own]) for own, theirs in JUDGES.items() if own in nets}
    if judges:
        written[AUTHORS[3]] = judges | ours
    return written


def _in_order(generator: Weights) -> Weights:
    """Keys by the parts of the authors' class."""
    place = {part: number for number, part in enumerate(_PARTS)}
    return {key: generator[key] for key in sorted(generator, key=lambda key: place[key.partition(".")[0]])}
