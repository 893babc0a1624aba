"""Writing networks of the disentangling system for anifast and for the authors' programs, optimisers with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anifast.engine import state as files
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.disentangle import codes
from anifast.systems.disentangle.checkpoints import (
    AUTHORS,
    OPTIONS,
    OURS,
    STAGE_OPTIONS,
    STATISTICS,
    Contents,
    build,
    contents,
    encoder_digest,
    header,
    in_their_order,
    read_stage,
    stages,
    their_key,
    unregularised,
    with_regularisation,
)
from anifast.systems.weights import Weights, moved

#: What can be written, the default first.
FORMATS = ("anifast", "authors")
#: Stage -> optimiser of a run -> its groups of networks, in the order of its parameters. The authors' code has an
#: optimiser for each network.
OPTIMISED: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "stage1": {"networks": (("E", "G", "C1"), ("S",))},
    "classifier": {"C2": (("C2",),)},
    "stage2": {"judges": (("D", "C2"),), "G": (("G",),), "S": (("S",),)},
}
#: What an Adam or RMSprop of any PyTorch says of its parameters; the newer ones' choice of kernels is left to who
#: loads it.
_GROUP = ("lr", "betas", "alpha", "eps", "weight_decay", "momentum", "amsgrad", "centered", "initial_lr")
_MOMENTS = ("exp_avg", "exp_avg_sq", "square_avg")
#: Options that the authors' programs look for in a file and that no setting of the stage stands for, with defaults.
_REST: dict[str, Any] = {
    **dict.fromkeys(theirs for options in STAGE_OPTIONS.values() for theirs in options.values()),
    "enc_path": None,
    "enc_iter": None,
    "data_root": None,
    "vis_row": None,
    "vis_col": None,
    "nloader": 1,
    "save_iter": 1000,
    "checkpoint_iter": 20000,
    "log_iter": 1000,
    "visualize_iter": 100,
    "device": "cuda:0",
    "mlp": False,
    "cla_fake": None,
    "dis_br_weight": 1,
    "gen_br_weight": 1,
    "cla_br_weight": 1,
    "force_dis": 0.8,
    "force_cla": 0.6931,
}
_NEVER = -1  # no adaptive instance normalisation


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
    """The files that the networks of a checkpoint, or of all stages in a run folder, become; nothing is written yet.

    Args:
        state: what was read from `source`.
        source: a checkpoint, or one of the authors' save folders; or a folder with several stages: all are written.
        out: anifast: a folder, which gets checkpoint.pt in a sub-folder for each stage; or a file, which gets the stage
            that paints. authors: a folder, a save folder for one stage, or one with a save folder for each stage.
        format: one of `FORMATS`.
        direction: there is none in these files.
        epoch: authors: what their files' names begin with, "last" or a number. "latest": the number of steps.
        force: write networks that the authors' code does not have.

    Returns:
        Path -> contents: a dict or tensor for torch.save, or a text.

    Raises:
        CheckpointError: networks are missing or damaged, or the format cannot express them; the message names `source`
            and says what differs.
        AnifastError: an option or `out` that cannot be.
    """
    if format not in FORMATS:
        raise AnifastError(
            f"{source}: disentangling networks have no format {format!r}; there are {', '.join(FORMATS)}"
        )
    if direction is not None:
        raise AnifastError(f"{source}: --direction: disentangling networks have no directions; leave it out")
    if epoch not in ("latest", "last") and not epoch.isdecimal():
        raise AnifastError(f"{source}: --epoch {epoch}: last, or a number of iterations")
    if format == "anifast" and epoch != "latest":
        raise AnifastError(f"{source}: --epoch {epoch}: own files have no such tag in their names; leave it out")
    single = out.suffix in (".pt", ".pth")
    if format == "authors" and single:
        raise AnifastError(f"{out}: the authors' code keeps a file for each network; give a folder")
    several = stages(source) if source.is_dir() and not single else {}
    with files.about(source):
        found = {
            stage: (state if stage == state.get("stage") else read_stage(folder)) for stage, folder in several.items()
        }
        held = [(contents(one), one) for one in found.values()] or [(contents(state), state)]
        if format == "anifast":
            return {_own_file(out, one.stage): _own(one, of) for one, of in held}
        for one, _ in held:
            _expressible(one, force)
        return _save_folders(held, source, out, epoch, bool(several))


def hint(state: Mapping[str, Any], format: str, direction: str | None) -> str:
    """What there is to know of the files that were written, and what the authors' programs do with them."""
    found = contents(state)
    lines = [f"{name} was left out: {why}" for name, why in found.left_out.items()]
    if format == "anifast":
        if found.origin == "authors":
            lines.append(
                "codes of pictures are not taken over, as the authors' files do not say which pictures they are of: "
                "--stage encode makes them anew"
            )
            if found.counts is None:
                lines.append("the artists have no names there and are called 0, 1, ... (sorted names of their folders)")
        if found.stage != "classifier":
            lines.append("a run that starts from it (--start-from) takes E, G and S; its optimisers begin anew")
        return "\n".join(lines)
    lines.append(
        "for the authors' programs set data_root in the file `options`; encode and stage2 take the folder by "
        "--enc_path and --cla_path, and the number in its files' names by --enc_iter and --cla_iter. They find codes "
        "by position: their data folder has to hold the pictures that the codes are of, and no others"
    )
    lines.append("--load_path does not go on from it: for that they want a *_state.pt, which holds pickled objects")
    return "\n".join(lines)


def _own_file(out: Path, stage: str) -> Path:
    return out if out.suffix in (".pt", ".pth") else out / stage / files.NAME


def _own(found: Contents, state: Mapping[str, Any]) -> dict[str, Any]:
    """An own checkpoint without data and the like. Of a run the networks are written, of theirs also optimisers."""
    whole: dict[str, Any] = {
        **header(found.config),
        "stage": found.stage,
        "classes": found.classes,
        "counts": found.counts,
        "nets": {name: moved(net) for name, net in found.nets.items()},
    }
    steps, optim = found.steps, {}
    if found.origin == "authors":
        theirs = _their_optimisers(found, state)
        optim = _joined(found, theirs)
        counted = [int(moments["step"]) for one in theirs.values() for moments in one["state"].values()]
        steps = max(counted, default=None) if steps is None else steps
    if steps is not None:
        whole["steps"] = steps
    if found.statistics is not None:
        whole["statistics"] = found.statistics
    return whole | ({"optim": optim} if optim else {})


# --- the authors' folders


def _expressible(found: Contents, force: bool) -> None:
    """Refuse what the authors' code cannot load.

    Raises:
        CheckpointError: these networks are such.
    """
    c = found.config
    other = [
        f"{name} {value} (there: {there})"
        for name, value, there, same in (
            ("channels", c.channels, "4", c.channels == 4),
            ("activation", c.activation, "cprelu", c.activation == "cprelu"),
            ("style_size", c.style_width(len(found.classes)), "at least 1", c.style_width(len(found.classes)) > 0),
        )
        if not same
    ]
    if other and not force:
        raise CheckpointError(
            f"the authors' code cannot load these networks, for they have {', '.join(other)}; --force writes them all "
            "the same, for a copy of that code which was changed to fit"
        )


def _save_folders(
    held: list[tuple[Contents, Mapping[str, Any]]], source: Path, out: Path, epoch: str, several: bool
) -> dict[Path, Any]:
    """All files of all folders."""
    tags = {found.stage: str(found.steps or 0) if epoch == "latest" else epoch for found, _ in held}
    written: dict[Path, Any] = {}
    for found, state in held:
        folder, tag = out / found.stage if several else out, tags[found.stage]
        apart = several and "stage1" in tags and found.stage == "stage2"
        nets = {name: _their_net(name, net, found) for name, net in found.nets.items() if not (apart and name == "E")}
        where = (out / "stage1", tags["stage1"]) if apart else (folder, tag)
        written[folder / "options"] = json.dumps(_options(found, *where), indent=1) + "\n"
        for name, net in nets.items():
            written[folder / "models" / f"{tag}_{AUTHORS[name]}.pt"] = net
        if found.origin == "authors":
            optim = _their_optimisers(found, state)
        else:
            optim = _split(found, state["optim"]) if "optim" in state else {}
        for name, adam in optim.items():
            written[folder / "models" / f"{tag}_{AUTHORS[name]}_optim.pt"] = adam
        if not apart:
            written |= _codes(found, source, folder / "codes", tag)
    return written


def _their_net(name: str, net: Weights, found: Contents) -> Weights:
    """Keys and order of the authors' class."""
    whole = {their_key(name, key, found.config): value for key, value in moved(net).items()}
    whole |= unregularised(name, found.config, len(found.classes))
    return {key: whole[key] for key in in_their_order(list(_theirs(name, found).state_dict()))}


def _theirs(name: str, found: Contents) -> nn.Module:
    """A network like the authors'."""
    return build(name, with_regularisation(found.config), len(found.classes))


def _codes(found: Contents, source: Path, folder: Path, tag: str) -> dict[Path, Any]:
    """What is known of the population of codes, and the codes if they lie beside and are of this encoder."""
    written: dict[Path, Any] = {}
    statistics = found.statistics
    beside = source / codes.NAME if stages(source) else source.parent / codes.NAME
    if found.origin == "anifast" and found.stage != "classifier" and beside.is_file():
        known = codes.read(beside)
        if known.get("encoder") == encoder_digest(found):
            written[folder / f"{tag}_codes.pt"] = torch.stack([known["mean"], known["std"]], 1)
            statistics = known["statistics"]
    if statistics is not None:
        written[folder / f"{tag}_stats.pt"] = {
            theirs: statistics[own].detach().cpu().float().contiguous() for own, theirs in STATISTICS.items()
        }
    return written


def _options(found: Contents, encoder: Path, encoder_tag: str) -> dict[str, Any]:
    """All options that the authors' programs look for, and our settings under a name that they do not read."""
    c, stage, count = found.config, found.stage, len(found.classes)
    nets = {AUTHORS[name] for name in found.nets} - {"sty"}
    if c.c1_input == "code" and stage == "stage1":
        nets -= {"cla"}
    options: dict[str, Any] = {}
    for net in ("enc", "gen", "cla", "dis"):
        there = net in nets
        levels = c.levels("gen_blocks" if net == "gen" else "blocks")
        options[f"{net}_features"] = [*c.widths, c.fc] if there else None
        options[f"{net}_blocks"] = [*levels, "f"] if there else None
        options[f"{net}_adain_features"] = options[f"{net}_adain_blocks"] = _NEVER if there else None
    options |= _REST
    for setting, name in (OPTIONS | STAGE_OPTIONS[stage]).items():
        options[name] = getattr(c, setting)
    keep_content, keep_style = c.keeps(count)
    options |= {
        "style_size": c.style_width(count),
        "content_dropout": keep_content,
        "style_dropout": keep_style,
        "crop_size": c.crop_size or None,
        "mlp": stage == "stage1" and c.c1_input == "code",
        "mlp_features": c.mlp_width,
        "mlp_layers": c.mlp_layers,
        "nclass": count,
        "dis_br_weight": c.lambda_reg,
    }
    if not c.regularised:
        options |= {"cla_br_weight": 0, "dis_br_weight": 0, "gen_br_weight": 0}
    if stage == "stage2":
        options |= {"enc_path": str(encoder), "cla_fake": c.c2_fake != "none"}
        options["enc_iter"] = int(encoder_tag) if encoder_tag.isdecimal() else encoder_tag
    options[OURS] = {
        "config": c.as_dict() | {"start_from": None},
        "classes": found.classes,
        "counts": found.counts.tolist() if found.counts is not None else None,
    }
    return options


# --- optimisers


def _their_names(name: str, found: Contents) -> list[str]:
    """The parameters of the authors' class, in its order."""
    return in_their_order([key for key, _ in _theirs(name, found).named_parameters()])


def _own_names(name: str, found: Contents) -> list[str]:
    """The parameters of our network in its order, by the authors' names."""
    net = build(name, found.config, len(found.classes))
    return [their_key(name, key, found.config) for key, _ in net.named_parameters()]


def _their_optimisers(found: Contents, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Network -> the state of its optimiser in the authors' save folder; empty where not all have one."""
    trained = [name for groups in OPTIMISED[found.stage].values() for group in groups for name in group]
    trained = [name for name in trained if name in found.nets]
    paths = {name: Path(state["folder"]) / "models" / f"{state['tag']}_{AUTHORS[name]}_optim.pt" for name in trained}
    if not all(path.is_file() for path in paths.values()):
        return {}
    return {
        name: _checked(files.load(path), [(name, _their_names(name, found))], found, path.name)
        for name, path in paths.items()
    }


def _checked(held: Any, nets: list[tuple[str, list[str]]], found: Contents, label: str) -> dict[str, Any]:
    """The state of an Adam or RMSprop over the parameters of networks, as every version of PyTorch loads it."""
    owners = [(name, key) for name, keys in nets for key in keys]
    try:
        groups, state = list(held["param_groups"]), dict(held["state"])
        numbers = [number for group in groups for number in group["params"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"damaged: {label} is no state of an optimiser") from error
    order = ", ".join(name for name, _ in nets)
    if numbers != list(range(len(owners))):
        raise CheckpointError(
            f"{label} has {len(numbers)} parameters, expected {len(owners)}: those of {order}, in this order"
        )
    shapes = {
        (name, key): list(value.shape) for name, _ in nets for key, value in _theirs(name, found).named_parameters()
    }
    for number, moments in state.items():
        if number not in numbers or not isinstance(moments, Mapping) or "step" not in moments:
            raise CheckpointError(f"damaged: {label} has moments {number!r}, expected 0 to {len(owners) - 1}")
        shape = shapes[owners[number]]
        for part in _MOMENTS:
            if part in moments and list(moments[part].shape) != shape:
                raise CheckpointError(
                    f"{label}: {part} of parameter {number} has shape {list(moments[part].shape)}, expected {shape}, "
                    f"as {'.'.join(owners[number])} has"
                )
    return {
        "state": {number: moved(moments) for number, moments in state.items()},
        "param_groups": [
            {key: group[key] for key in _GROUP if key in group} | {"params": list(group["params"])} for group in groups
        ],
    }


def _layout(found: Contents) -> Iterator[tuple[str, list[list[tuple[str, list[str]]]]]]:
    """Optimiser of a run -> its groups, which are not empty, of networks with their parameters."""
    for title, groups in OPTIMISED[found.stage].items():
        named = [[(name, _own_names(name, found)) for name in group if name in found.nets] for group in groups]
        yield title, [group for group in named if group]


def _split(found: Contents, optim: Any) -> dict[str, dict[str, Any]]:
    """Network -> the authors' optimiser for it, from those of a run."""
    apart: dict[str, dict[str, Any]] = {}
    for title, groups in _layout(found):
        held = optim.get(title) if isinstance(optim, Mapping) else None
        checked = _checked(held, [net for group in groups for net in group], found, f"optim.{title}")
        if len(checked["param_groups"]) != len(groups):
            raise CheckpointError(f"damaged: optim.{title} has {len(checked['param_groups'])} groups of parameters")
        first = 0
        for group, settings in zip(groups, checked["param_groups"], strict=True):
            for name, keys in group:
                known = {key: checked["state"].get(first + i) for i, key in enumerate(keys)}
                theirs = _their_names(name, found)
                apart[name] = {
                    "state": {i: known[key] for i, key in enumerate(theirs) if known.get(key) is not None},
                    "param_groups": [settings | {"params": list(range(len(theirs)))}],
                }
                first += len(keys)
    return apart


def _joined(found: Contents, theirs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The optimisers of a run from the authors'; the inverse of `_split`."""
    if not theirs:
        return {}
    joined: dict[str, Any] = {}
    for title, groups in _layout(found):
        whole: dict[str, Any] = {"state": {}, "param_groups": []}
        first = 0
        for group in groups:
            start = first
            for name, keys in group:
                known = {key: theirs[name]["state"].get(i) for i, key in enumerate(_their_names(name, found))}
                whole["state"] |= {first + i: known[key] for i, key in enumerate(keys) if known[key] is not None}
                first += len(keys)
            settings = theirs[group[0][0]]["param_groups"][0]
            whole["param_groups"].append(settings | {"params": list(range(start, first))})
        joined[title] = whole
    return joined
