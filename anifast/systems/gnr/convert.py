"""Writing networks of GANs N' Roses for anifast and for the authors' programs, with Adam's moments where they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast.engine import state as files
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.gnr.checkpoints import (
    GENERATORS,
    VERSIONS,
    Contents,
    build,
    contents,
    header,
    missing_for_training,
)
from anifast.systems.gnr.config import Config, make
from anifast.systems.weights import moved

#: What can be written, the default first.
FORMATS = ("anifast", "authors")
#: Networks of an optimiser, in the order of its parameters: the same here and there.
OPTIMISED = {"G": ("G_A2B", "G_B2A"), "D": ("D_L", "D_A", "D_B")}
#: What an Adam of any PyTorch says of its parameters; the newer ones' choice of kernels is left to who loads it.
_GROUP = ("lr", "betas", "eps", "weight_decay", "amsgrad", "initial_lr")
_WHERE = {"main": "branch main", "rel": "commit 556dbe1 of branch train", "new": "head of branch train"}


def convert(
    state: Mapping[str, Any],
    source: Path,
    out: Path,
    *,
    format: str = "anifast",
    direction: str | None = None,
    epoch: str = "latest",
    force: bool = False,
) -> dict[Path, dict[str, Any]]:
    """The file that the networks of a checkpoint become; nothing is written yet.

    Networks in training and averages are both kept, and Adam's moments with them from one code to the other.

    Args:
        state: what was read from `source`.
        source: where from, for messages.
        out: a file; for anifast also a folder, which gets checkpoint.pt.
        format: one of `FORMATS`.
        direction: "AB" or "BA": only the generator that translates that way, the averaged one if there is one; for a
            file with one generator that does not say which it is, the answer. None: all that is there.
        epoch: there is no such tag in these files' names.
        force: write networks that the authors' code does not have.

    Returns:
        Path -> contents.

    Raises:
        CheckpointError: networks are missing or damaged, or the format cannot express them; the message names `source`
            and says what differs.
        AnifastError: an option or `out` that cannot be.
    """
    if format not in FORMATS:
        raise AnifastError(f"{source}: GANs N' Roses has no format {format!r}; there are {', '.join(FORMATS)}")
    if direction not in (None, "AB", "BA"):
        raise AnifastError(f"{source}: direction {direction!r}: there are AB, BA and both")
    if epoch != "latest":
        raise AnifastError(
            f"{source}: --epoch {epoch}: files of GANs N' Roses have no tag in their names; leave it out"
        )
    if format == "authors" and out.suffix not in (".pt", ".pth"):
        raise AnifastError(f"{out}: the authors' code keeps everything in one file; give a name that ends in .pt")
    with files.about(source):
        found = _chosen(contents(state), direction)
        if format == "authors":
            _expressible(found, force)
            return {out: _authors(found, _moments(found, state))}
        file = out if out.suffix in (".pt", ".pth") else out / files.NAME
        # of a run the networks are written; from the authors' file all comes over that it knows
        return {file: _own(found, {} if found.origin == "anifast" else _moments(found, state))}


def hint(state: Mapping[str, Any], format: str, direction: str | None) -> str:
    """What there is to know of the file that was written, and what the authors' programs have to be told."""
    found = _chosen(contents(state), direction)
    c, whole = found.config, not missing_for_training(found)
    if format == "anifast":
        return "a run that starts from it (--start-from) takes the networks; its optimisers begin anew" if whole else ""
    mapping = "" if c.lr_mlp == make().lr_mlp else f" --lr_mlp {c.lr_mlp:g}"
    version = _version(found)
    where = f" ({_WHERE[version]})" if version else ""
    lines = [
        f"options for the authors' programs{where}: --size {c.size} --num_down {c.num_down} --latent_dim "
        f"{c.latent_dim} --n_res {c.n_res}{mapping}"
    ]
    if whole and not _has_optimisers(state):
        lines.append("its optimisers begin anew: there are none in what it was made from")
    if whole and not found.ema:
        lines.append("there are no averages in what it was made from: G_A2B_ema and G_B2A_ema are G_A2B and G_B2A")
    return "\n".join(lines)


def _chosen(found: Contents, direction: str | None) -> Contents:
    """The networks asked for, of a file that says what they are."""
    if direction is None:
        if found.unnamed is not None:
            raise CheckpointError(
                "this file holds one generator and does not say which way it translates; say so by --direction AB "
                "(or BA)"
            )
        return found
    name = {"AB": "G_A2B", "BA": "G_B2A"}[direction]
    if found.unnamed is not None:
        return Contents(found.origin, found.config, {name: found.unnamed})
    if name in found.ema:
        return Contents(found.origin, found.config, {}, {name: found.ema[name]}, found.steps)
    if name not in found.nets:
        held = ", ".join(dict.fromkeys([*found.nets, *found.ema]))
        raise CheckpointError(f"there is no generator {name} in it, only {held}")
    return Contents(found.origin, found.config, {name: found.nets[name]}, {}, found.steps)


def _version(found: Contents) -> str | None:
    """The version of the authors' code that has these networks."""
    c, judged = found.config, any(name in found.nets for name in ("D_A", "D_B"))
    fitting = (name for (g, d), name in VERSIONS.items() if g == c.generator and (not judged or d == c.discriminator))
    return next(fitting, None)


def _expressible(found: Contents, force: bool) -> None:
    """Refuse what no version of the authors' code can load.

    Raises:
        CheckpointError: these networks are such.
    """
    c, theirs = found.config, make()
    other = [
        f"{name} {getattr(c, name):g} (there: {getattr(theirs, name):g})"
        for name in ("channel_multiplier", "n_mlp")
        if getattr(c, name) != getattr(theirs, name)
    ]
    if _version(found) is None:
        pairs = ", ".join(f"{g} with {d}" for g, d in VERSIONS)
        other.append(f"generator {c.generator} with discriminator {c.discriminator} (there: {pairs})")
    if other and not force:
        raise CheckpointError(
            f"the authors' code cannot load these networks, for they have {', '.join(other)}; --force writes them all "
            "the same, for a copy of that code which was changed to fit"
        )


def _own(found: Contents, moments: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = header(found.config)
    if found.steps is not None:
        whole["steps"] = found.steps
    for part, nets in (("nets", found.nets), ("ema", found.ema)):
        if nets:
            whole[part] = {name: moved(net) for name, net in nets.items()}
    return whole | ({"optim": dict(moments)} if moments else {})


def _authors(found: Contents, moments: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' dict; with all five networks it has what their training loads.

    Our settings go with it under a name that their code does not read.
    """
    nets = {name: moved(net) for name, net in found.nets.items()}
    live = {name: nets[name] for name in GENERATORS if name in nets}
    averages = live | {name: moved(net) for name, net in found.ema.items()}  # they translate with nothing else
    whole: dict[str, Any] = {**live, **{f"{name}_ema": net for name, net in averages.items()}}
    whole |= {name: net for name, net in nets.items() if name not in GENERATORS}
    if not missing_for_training(found):
        steps = found.steps or 0
        for title in OPTIMISED:
            whole[f"{title}_optim"] = moments[title] if moments else _new_adam(title, found.config, steps)
        whole["iter"] = max(steps - 1, 0)
    return whole | {"config": found.config.as_dict() | {"start_from": None, "lpips_weights": None}}


def _has_optimisers(state: Mapping[str, Any]) -> bool:
    return "optim" in state if "format" in state else any(f"{title}_optim" in state for title in OPTIMISED)


def _moments(found: Contents, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Optimiser -> its state, checked against the networks; empty where the file has none or lacks networks.

    Raises:
        CheckpointError: they are not those of these networks.
    """
    if missing_for_training(found) or not _has_optimisers(state):
        return {}
    if "format" in state:
        return {title: _adam(state["optim"], title, f"optim.{title}", found.config) for title in OPTIMISED}
    held = {title: state.get(f"{title}_optim") for title in OPTIMISED}
    return {title: _adam(held, title, f"{title}_optim", found.config) for title in OPTIMISED}


def _parameters(title: str, config: Config) -> list[tuple[str, Tensor]]:
    """Name and parameter of everything that the optimiser "G" or "D" trains, in its order."""
    nets = {name: build(name, config) for name in OPTIMISED[title]}
    return [(f"{name}.{key}", value) for name, net in nets.items() for key, value in net.named_parameters()]


def _adam(held: Any, title: str, label: str, config: Config) -> dict[str, Any]:
    """The state of an Adam, which both codes write alike, as every version of PyTorch loads it."""
    adam = held.get(title) if isinstance(held, Mapping) else None
    parameters = _parameters(title, config)
    try:
        groups, state = list(adam["param_groups"]), dict(adam["state"])  # type: ignore[index]
        numbers = [number for group in groups for number in group["params"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"damaged: {label} is no state of an Adam") from error
    order = ", ".join(OPTIMISED[title])
    if numbers != list(range(len(parameters))):
        raise CheckpointError(
            f"{label} has {len(numbers)} parameters, expected {len(parameters)}: those of {order}, in this order"
        )
    for number, moments in state.items():
        if number not in numbers or not isinstance(moments, Mapping):
            raise CheckpointError(f"damaged: {label} has moments {number!r}, expected 0 to {len(parameters) - 1}")
        name, parameter = parameters[number]
        for part in ("exp_avg", "exp_avg_sq"):
            value = moments.get(part)
            shape = list(value.shape) if isinstance(value, Tensor) else "none"
            if shape != list(parameter.shape):
                raise CheckpointError(
                    f"{label}: {part} of parameter {number} has shape {shape}, expected {list(parameter.shape)}, as "
                    f"{name} has; the parameters are those of {order}, in this order"
                )
    return {
        "state": {number: moved(moments) for number, moments in state.items()},
        "param_groups": [{key: groups[0][key] for key in _GROUP if key in groups[0]} | {"params": numbers}],
    }


def _new_adam(title: str, config: Config, steps: int) -> dict[str, Any]:
    """An Adam as after `steps` steps, but without moments."""
    late = config.r1_every / (config.r1_every + 1) if title == "D" else 1.0
    halved = steps // config.halve_every if config.halve_every else 0
    parameters = [parameter for _, parameter in _parameters(title, config)]
    adam = torch.optim.Adam(parameters, lr=config.lr * 0.5**halved, betas=(0.0, 0.99**late)).state_dict()
    return _adam({title: adam}, title, title, config)
