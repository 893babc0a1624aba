"""Files of the disentangling network: own checkpoints of its stages, run folders, and the authors' save folders.

Networks are called E, G, S, C1, C2, D here. The authors' code has a folder for each of its commands stage1, classifier
and stage2, whose weights have our keys:

    options                                JSON without suffix: sizes of the networks and all settings
    models/{last|ITERATION}_{enc,gen,sty,cla,dis}.pt       E, G, S, C1 or C2, D: state dicts
    models/..._optim.pt  models/..._state.pt               optimisers; pickled objects, which are never loaded
    codes/ITERATION_codes.pt  codes/ITERATION_stats.pt     codes of all pictures [N,2,d], and what they are together

A folder of its stage2 holds no encoder: that is in the stage1 folder which its options name as `enc_path`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anifast.engine import state as files
from anifast.errors import CheckpointError
from anifast.systems.disentangle import codes
from anifast.systems.disentangle.config import Config, make
from anifast.systems.disentangle.networks import (
    BatchRegularization,
    Classifier,
    CodeClassifier,
    Discriminator,
    Encoder,
    Generator,
    StyleBank,
)
from anifast.systems.weights import Weights, fitted, plain, settled

#: Marks an own checkpoint, with the version of its contents.
FORMAT = "anifast.disentangle/1"
#: Stage -> its networks.
NETS = {"stage1": ("E", "G", "S", "C1"), "classifier": ("C2",), "stage2": ("E", "G", "S", "C2", "D")}
#: Own name -> the authors', whose classifiers of both kinds are `cla`.
AUTHORS = {"E": "enc", "G": "gen", "S": "sty", "C1": "cla", "C2": "cla", "D": "dis"}
#: Own name of what is known of a population of codes -> the authors'.
STATISTICS = {
    "mean": "full_mean",
    "std": "full_std",
    "eigenvalues": "eigval",
    "eigenvectors": "eigvec",
    "weight": "dim_weight",
}
#: Name under which `anifast convert` puts its own settings into the authors' options; their code does not read it.
OURS = "anifast"

#: Networks that a picture is not painted with, and that may be missing in a file for that reason.
_JUDGES = ("C1", "C2", "D")
_FILE = re.compile(r"(?P<tag>last|\d+)_(?P<net>enc|gen|sty|cla|dis)\.pt")
#: Setting -> the authors' option, in all stages; and those of one stage.
OPTIONS = {
    "size": "image_size",
    "crop_size": "crop_size",
    "weight_maps": "weight_root",
    "content_size": "content_size",
    "style_size": "style_size",
    "content_keep": "content_dropout",
    "style_keep": "style_dropout",
    "augment": "augment",
    "max_angle": "max_angle",
    "max_scale": "max_scale",
    "min_margin": "min_margin",
    "warm_up": "lr_ramp",
    "lambda_warp": "transform_penalty",
}
STAGE_OPTIONS = {
    "stage1": {
        "mlp_layers": "mlp_layers",
        "mlp_width": "mlp_features",
        "lambda_rec": "rec_weight",
        "lambda_c1": "cla_weight",
        "lambda_kl_content": "con_weight",
        "lambda_kl_style": "sty_weight",
        "lambda_match": "match_weight",
        "lambda_reg_c1": "cla_br_weight",
        "batch": "batch_size",
        "iterations": "niter",
        "lr": "lr",
        "lr_style": "sty_lr",
    },
    "classifier": {
        "lambda_reg": "cla_br_weight",
        "classifier_batch": "batch_size",
        "classifier_iterations": "niter",
        "classifier_lr": "lr",
    },
    "stage2": {
        "lambda_d": "dis_weight",
        "lambda_c2": "cla_weight",
        "lambda_content": "con_weight",
        "lambda_kl_style": "sty_weight",
        "lambda_reg": "cla_br_weight",
        "lambda_reg_gen": "gen_br_weight",
        "force_d": "force_dis",
        "force_c2": "force_cla",
        "stage2_batch": "batch_size",
        "stage2_iterations": "niter",
        "stage2_lr": "lr",
        "stage2_lr_style": "sty_lr",
    },
}


@dataclass(frozen=True)
class Contents:
    """What a file or folder of any kind holds. Keys and shapes are those of the networks that `config` describes.

    Attributes:
        origin: "anifast" or "authors".
        config: the settings of the run; the authors' are put over our preset `release`, which is their defaults.
        stage: "stage1", "classifier" or "stage2".
        classes: names of the artists; "0", "1", ... where the authors' files do not have them.
        counts: pictures of each artist, int64 [K]; None where the file does not tell.
        nets: name -> weights, of those in `NETS[stage]` that are there. E, G and S (if there are styles) are there in
            stage1 and stage2, C2 is in classifier.
        statistics: of the content codes, float64: mean [d], std [d], eigenvalues [d], eigenvectors [d,d] in columns,
            weight [d]; None where there are none.
        steps: steps behind it, where the file tells.
        left_out: network -> why an authors' network that is there was not taken over.
    """

    origin: str
    config: Config
    stage: str
    classes: list[str]
    counts: Tensor | None
    nets: dict[str, Weights]
    statistics: dict[str, Tensor] | None = None
    steps: int | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def recognises(state: Mapping[str, Any]) -> bool:
    """Whether a loaded dict is a file of the disentangling network, of a known kind."""
    if "format" in state:
        return str(state["format"]).startswith("anifast.disentangle/")
    return ("authors" in state and "nets" in state) or _is_bare(state)


def gather(path: Path) -> dict[str, Any] | None:
    """What a run folder with several stages, or a save folder of the authors' code, has to paint with.

    Args:
        path: a run folder: its stage2, else its stage1, with the statistics of its codes.pt if that is of this encoder.
            Or a save folder of the authors: of its files those called `last`, else those of the greatest iteration;
            one of the files models/ITERATION_gen.pt chooses others. Or a folder with several of those, called stage1,
            classifier, stage2.

    Returns:
        An own checkpoint, or for the authors {"authors": options, "stage", "folder", "tag", "nets", "statistics",
        "classes": None}. None where `path` is neither.

    Raises:
        CheckpointError: a file cannot be read, networks are missing, or nothing paints.
    """
    if path.is_file():
        match = _FILE.fullmatch(path.name)
        if match and path.parent.name == "models" and _is_save_folder(path.parent.parent):
            return _authors(path.parent.parent, match["tag"])
        return None
    if (path / files.NAME).exists():
        return None
    if _is_save_folder(path):
        return _authors(path)
    held = stages(path)
    if not held:
        return None
    painting = next((stage for stage in ("stage2", "stage1") if stage in held), None)
    if painting is None:
        raise CheckpointError(
            f"{path}: there is only a classifier in it, and nothing that paints; train its stage1 (--stage stage1)"
        )
    found = read_stage(held[painting])
    if painting == "stage1" and "format" in found and (path / codes.NAME).is_file():
        known = codes.read(path / codes.NAME)
        with files.about(held[painting]):
            if known.get("encoder") == encoder_digest(contents(found)):
                found["statistics"] = known["statistics"]
    return found


def stages(path: Path) -> dict[str, Path]:
    """Stage -> sub-folder, of those in a run folder, or in a folder with the authors' save folders by these names."""
    inner = {stage: path / stage for stage in NETS}
    return {
        stage: folder for stage, folder in inner.items() if (folder / files.NAME).is_file() or _is_save_folder(folder)
    }


def read_stage(folder: Path) -> dict[str, Any]:
    """The checkpoint in a sub-folder that `stages` has found.

    Raises:
        CheckpointError: it cannot be read, or is of another system.
    """
    if not (folder / files.NAME).is_file():
        return _authors(folder)
    found = files.load(folder)
    if not recognises(found):
        raise CheckpointError(f"{folder}: no checkpoint of a disentangling network is in it")
    return found


def header(config: Config) -> dict[str, Any]:
    """What stands in a checkpoint beside the state."""
    return {"format": FORMAT, "config": config.as_dict()}


def config_of(state: Mapping[str, Any]) -> Config:
    """The settings in an own checkpoint.

    Raises:
        CheckpointError: not an own checkpoint of a disentangling network, one of a newer version, or a damaged one.
    """
    if state.get("format") is None and recognises(state):
        contents(state)
        raise CheckpointError(
            "this is a file of the authors' code, which no run goes on from; begin one with its weights by --start-from"
        )
    settings = files.settings_of(state, FORMAT, "a disentangling network")
    return settled(make, None, settings, "the settings in this file")


def averaged(state: Mapping[str, Any]) -> bool:
    """Whether a file holds averaged generators: there are none."""
    return False


def architecture(config: Config, judges: bool = True) -> dict[str, Any]:
    """The settings that shape the networks; the same for networks of the same shapes.

    Args:
        config: all settings.
        judges: False: only those that shape E, G and S.
    """
    names = ("size", "channels", "features", "fc", "content_size", "style_size", "activation")
    found = {name: getattr(config, name) for name in names}
    found["features"] = ",".join(str(width) for width in config.widths)
    found |= {name: ",".join(config.levels(name)) for name in ("blocks", "gen_blocks")}
    if judges:
        found |= {"regularised": config.regularised, "c1_input": config.c1_input}
        if config.c1_input == "code":
            found |= {"mlp_layers": config.mlp_layers, "mlp_width": config.mlp_width}
    return found


def names_of(stage: str, config: Config, classes: int) -> tuple[str, ...]:
    """The networks of a stage; a plain VAE has no styles and no classifier."""
    return NETS[stage] if config.style_width(classes) else tuple(name for name in NETS[stage] if name in ("E", "G"))


def contents(state: Mapping[str, Any]) -> Contents:
    """The networks and settings of anything that `recognises` accepts. The weights are the file's own tensors.

    Raises:
        CheckpointError: networks that contradict one another or the settings, networks that are missing, or a damaged
            file; the message names the key, what it is and what was expected.
    """
    if "format" in state:
        return _own(state)
    if _is_bare(state):
        raise CheckpointError(
            "this is one network of the authors' disentangling code, which does not say what it is; give the save "
            "folder that it is from (with `options` and models/), or the file in that folder"
        )
    return _theirs(state)


def build(name: str, config: Config, classes: int) -> nn.Module:
    """The network that a run calls `name`, on the device meta: it has shapes, and no weights."""
    with torch.device("meta"):
        if name == "E":
            return Encoder(config)
        if name == "G":
            return Generator(config, config.content_size + config.style_width(classes))
        if name == "S":
            return StyleBank(torch.full((classes,), 1 / classes), config.style_width(classes))
        if name == "D":
            return Discriminator(config)
        if name == "C1" and config.c1_input == "code":
            return CodeClassifier(config.content_size, config.mlp_width, config.mlp_layers, classes, config.activation)
        return Classifier(config, classes)


def in_their_order(keys: Sequence[str]) -> list[str]:
    """Keys of a network in the order of the authors' classes: batch regularisation is the last part of a block."""

    def block(key: str) -> str:
        match = re.match(r"(levels|net)\.\d+(\.\d+(?=\.))?", key)
        return match[0] if match else key

    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(block(key), index)
    return sorted(keys, key=lambda key: (first[block(key)], ".batch_reg." in key))


def their_key(name: str, key: str, config: Config) -> str:
    """A key of our network `name` in the authors' class, whose judges all have batch regularisation."""
    # it stands behind the fully connected layer, in front of the slopes
    return "fc.2.weight" if _lacks(name, config) and key == "fc.1.weight" else key


def unregularised(name: str, config: Config, classes: int) -> Weights:
    """What the authors' C1, C2 and D have beyond those of a run without batch regularisation, as it is at the start."""
    if not _lacks(name, config):
        return {}
    plain = BatchRegularization(1).state_dict()
    found = {}
    for key, value in build(name, with_regularisation(config), classes).state_dict().items():
        kind = key.rpartition(".")[2]
        if kind in plain:
            found[key] = plain[kind].expand(value.shape).clone()
    return found


def with_regularisation(config: Config) -> Config:
    """The settings of networks like the authors'."""
    return dataclasses.replace(config, regularised=True)


def _lacks(name: str, config: Config) -> bool:
    """Whether one of our networks has no batch regularisation where the authors' has."""
    return not config.regularised and name in _JUDGES and (name != "C1" or config.c1_input == "image")


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.dtype == other.dtype and torch.equal(one, other)


def _is_bare(state: Mapping[str, Any]) -> bool:
    """Whether this is the state dict of one network."""
    return any(isinstance(key, str) and key.endswith(".residue_ratio") for key in state) or set(state) == {
        "mean",
        "pstd",
        "class_freq",
    }


def _is_save_folder(path: Path) -> bool:
    return (path / "options").is_file() and (path / "models").is_dir()


def encoder_digest(found: Contents) -> str:
    """Of an encoder's weights, as files of codes have it."""
    net = build("E", found.config, len(found.classes))
    net.load_state_dict(found.nets["E"], assign=True)
    return codes.digest(net)


# --- own checkpoints


def _own(state: Mapping[str, Any]) -> Contents:
    config = config_of(state)
    stage, classes, counts = state.get("stage"), state.get("classes"), state.get("counts")
    if stage not in NETS:
        raise CheckpointError(f"damaged: its stage is {stage!r}, expected one of {', '.join(NETS)}")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise CheckpointError("damaged: the artists' names (classes) are missing")
    if counts is not None and (not isinstance(counts, Tensor) or list(counts.shape) != [len(classes)]):
        shape = list(counts.shape) if isinstance(counts, Tensor) else type(counts).__name__
        raise CheckpointError(f"damaged: counts is {shape}, expected the pictures of {len(classes)} artists")
    held = state.get("nets")
    if not isinstance(held, Mapping):
        raise CheckpointError(f"damaged: nets is a {type(held).__name__}, expected a dict of networks")
    expected = names_of(stage, config, len(classes))
    unknown = [name for name in held if name not in expected]
    if unknown:
        raise CheckpointError(f"damaged: nets has {unknown[0]}; the networks of {stage} are {', '.join(expected)}")
    _complete(stage, expected, held)
    nets = {
        name: _fitted(name, plain(held[name], f"nets.{name}"), f"nets.{name}", config, len(classes))
        for name in expected
        if name in held
    }
    steps = state.get("steps")
    return Contents(
        "anifast",
        config,
        stage,
        list(classes),
        counts,
        nets,
        _statistics(state.get("statistics"), config.content_size),
        steps if isinstance(steps, int) else None,
    )


def _complete(stage: str, expected: Sequence[str], held: Mapping[str, Any]) -> None:
    """Judges may be missing in a file that paints."""
    needed = expected if stage == "classifier" else [name for name in expected if name not in _JUDGES]
    missing = [name for name in needed if name not in held]
    if missing:
        raise CheckpointError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: {stage} needs {', '.join(needed)}, "
            f"and there is {', '.join(held) or 'none'}"
        )


def _fitted(name: str, weights: Weights, label: str, config: Config, classes: int) -> Weights:
    """`weights` in the order of our network's keys; the tensors stay the file's."""
    net = build(name, config, classes)
    where = f"size {config.size}, features {config.features}, fc {config.fc}"
    where += f", content_size {config.content_size}" if name in ("E", "G") else ""
    where += f", style_size {config.style_width(classes)}" if name in ("G", "S") else ""
    where += f", {classes} artists" if name in ("S", "C1", "C2") else ""
    return fitted(net, weights, label, where)


def _statistics(found: Any, size: int, names: Mapping[str, str] | None = None) -> dict[str, Tensor] | None:
    """In float64 and by own names; `names` are those in the file."""
    if found is None:
        return None
    checked = {}
    for own in STATISTICS:
        key = own if names is None else names[own]
        shape = [size, size] if own == "eigenvectors" else [size]
        value = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(value, Tensor) or list(value.shape) != shape:
            what = f"has shape {list(value.shape)}" if isinstance(value, Tensor) else "is missing"
            raise CheckpointError(
                f"statistics of the codes: {key} {what}, expected shape {shape} (content_size {size})"
            )
        checked[own] = value.double()
    return checked


# --- the authors' folders


def _authors(folder: Path, tag: str | None = None) -> dict[str, Any]:
    """The networks in a save folder, and what belongs to them elsewhere."""
    options = _read_options(folder)
    sets: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "models").glob("*.pt")):
        if match := _FILE.fullmatch(path.name):
            sets.setdefault(match["tag"], {})[match["net"]] = path
    if not sets:
        raise CheckpointError(f"{folder}: there are no networks in models/ (ITERATION_gen.pt and the like)")
    # an encoder that was put beside the networks of stage 2 is no set of its own
    whole = [one for one, held in sets.items() if set(held) != {"enc"}] or list(sets)
    tag = tag or max(whole, key=lambda one: (one == "last", int(one) if one.isdecimal() else 0))
    held = dict(sets[tag])
    if "dis" in held and not {"cla", "sty"} & set(held):
        raise CheckpointError(
            f"{folder}: these are networks of the authors' command `gan`, which paints from noise alone: there is no "
            "such system here"
        )
    stage = "stage2" if "dis" in held else "stage1" if {"enc", "gen", "sty"} & set(held) else "classifier"
    where = (folder, tag)
    if stage == "stage2":
        where = _encoder(folder, tag, options)
        held["enc"] = where[0] / "models" / f"{where[1]}_enc.pt"
    names = {own: AUTHORS[own] for own in NETS[stage]}
    for own, theirs in names.items():
        plain_vae = own == "S" and options.get("style_size") == 0
        if theirs not in held and not plain_vae and (own not in _JUDGES or stage == "classifier"):
            raise CheckpointError(
                f"{folder}: models/{tag}_{theirs}.pt is missing, and {own} with it; {stage} has "
                f"{', '.join(sorted(held))}"
            )
    statistics = where[0] / "codes" / f"{where[1]}_stats.pt"
    return {
        "authors": options,
        "stage": stage,
        "folder": str(folder),
        "tag": tag,
        "nets": {own: files.load(held[theirs]) for own, theirs in names.items() if theirs in held},
        "statistics": files.load(statistics) if stage != "classifier" and statistics.is_file() else None,
        "classes": None,
    }


def _encoder(folder: Path, tag: str, options: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a stage2 folder's encoder is: folder and tag."""
    path, iteration = options.get("enc_path"), options.get("enc_iter")
    tags = [str(iteration)] if isinstance(iteration, int | str) else []
    places = [(folder, one) for one in (*tags, tag)]
    if isinstance(path, str) and path:
        places += [(place, one) for place in (Path(path), folder.parent / Path(path).name) for one in (*tags, "last")]
    for place, one in places:
        if (place / "models" / f"{one}_enc.pt").is_file():
            return place, one
    name = f"{(tags or [tag])[0]}_enc.pt"
    raise CheckpointError(
        f"{folder}: the encoder is missing. The authors' stage2 folders do not hold it; this one's options say that it "
        f"is models/{name} in the stage1 folder {path!r} (enc_path), and there is none. Put that folder there, or "
        f"beside {folder}, or copy the file into {folder / 'models'}"
    )


def _read_options(folder: Path) -> dict[str, Any]:
    path = folder / "options"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: no JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("nclass"), int) or found["nclass"] < 1:
        raise CheckpointError(f"{path}: no options of the authors' disentangling code (nclass is missing)")
    return found


def _theirs(state: Mapping[str, Any]) -> Contents:
    options, stage = state["authors"], state["stage"]
    config, left_out = told(options, stage)
    count: int = options["nclass"]
    ours = options.get(OURS) if isinstance(options.get(OURS), Mapping) else {}
    labels = {name: f"models/{state['tag']}_{AUTHORS[name]}.pt" for name in state["nets"]}
    nets = {name: plain(net, labels[name]) for name, net in state["nets"].items() if name not in left_out}
    # A run here without batch regularisation was written with one that has never been trained.
    start = {name: unregularised(name, config, count) for name in nets}
    if all(_same(nets[name].get(key), value) for name in nets for key, value in start[name].items()):
        nets = {name: {key: net[key] for key in net if key not in start[name]} for name, net in nets.items()}
        ours_of = {
            name: {their_key(name, key, config): key for key in build(name, config, count).state_dict()}
            for name in nets
        }
        nets = {name: {ours_of[name].get(key, key): value for key, value in net.items()} for name, net in nets.items()}
    else:
        config = with_regularisation(config)
    nets = {name: _fitted(name, net, labels[name], config, count) for name, net in nets.items()}
    classes = state.get("classes") or ours.get("classes") or [str(number) for number in range(count)]
    counts = ours.get("counts")
    for what, held, kind in (("classes", classes, str), ("counts", counts, int)):
        right = isinstance(held, list) and len(held) == count and all(isinstance(one, kind) for one in held)
        if not right and held is not None:
            raise CheckpointError(f"options: {what} in {OURS} are not those of {count} artists (nclass)")
    tag = state["tag"]
    return Contents(
        "authors",
        config,
        stage,
        list(classes),
        torch.tensor(counts, dtype=torch.int64) if counts is not None else None,
        nets,
        _statistics(state.get("statistics"), config.content_size, STATISTICS),
        int(tag) if tag.isdecimal() else None,
        left_out,
    )


def told(options: Mapping[str, Any], stage: str) -> tuple[Config, dict[str, str]]:
    """The settings that the authors' options of a stage are, and which judges they make unlike the encoder, and how.

    Raises:
        CheckpointError: networks that no settings of ours describe; the message names the option.
    """
    trunk = "cla" if stage == "classifier" else "enc"
    features, blocks = _structure(options, trunk)
    values: dict[str, Any] = {
        "features": ",".join(str(width) for width in features[:-1]),
        "fc": features[-1],
        "blocks": ",".join(blocks[:-1]),
        "gen_blocks": "",
        "regularised": True,
    }
    left_out: dict[str, str] = {}
    if stage != "classifier":
        widths, letters = _structure(options, "gen")
        if widths != features:
            raise CheckpointError(
                f"options: gen_features {widths} differ from enc_features {features}, and the networks of a run here "
                "have the same (`features`): they cannot be taken over"
            )
        values["gen_blocks"] = ",".join(letters[:-1])
        mlp = stage == "stage1" and bool(options.get("mlp"))
        judges = {} if mlp else {"C1": "cla"} if stage == "stage1" else {"C2": "cla", "D": "dis"}
        for name, theirs in judges.items():
            for kind, known in zip(("features", "blocks"), (features, blocks), strict=True):
                other = options.get(f"{theirs}_{kind}")
                if other is not None and list(other) != known:
                    left_out.setdefault(name, f"{theirs}_{kind} {other} differ from enc_{kind} {known}")
        if mlp:
            values["c1_input"] = "code"
    for setting, name in (OPTIONS | STAGE_OPTIONS[stage]).items():
        unset = options.get(name) == 0 and name.endswith("_dropout")  # as the authors' code takes it
        if options.get(name) is not None and not unset:
            values[setting] = options[name]
    values["nested"] = not values.get("content_keep") == values.get("style_keep") == 1
    if stage == "stage2" and options.get("cla_fake") is False:
        values["c2_fake"] = "none"
    config = settled(make, "release", values, "options")
    ours = options.get(OURS)
    if not isinstance(ours, Mapping) or not isinstance(ours.get("config"), Mapping):
        return config, left_out
    own = settled(make, None, ours["config"], "options")
    said, mine = architecture(config), architecture(own)
    for name in ("size", "features", "fc", "blocks", "content_size", *(["gen_blocks"] * (stage != "classifier"))):
        if said[name] != mine[name]:
            raise CheckpointError(
                f"options: {name} is {mine[name]} in {OURS}, which anifast has written, and {said[name]} in the "
                f"rest; remove {OURS} from the file if that is right"
            )
    return own, left_out


def _structure(options: Mapping[str, Any], net: str) -> tuple[list[int], list[str]]:
    """Features and blocks of a network, with those of the fully connected layer last."""
    for name in ("adain_features", "adain_blocks"):
        value = options.get(f"{net}_{name}")
        if isinstance(value, int) and value > 0:
            raise CheckpointError(
                f"options: {net}_{name} is {value}: networks with adaptive instance normalisation cannot be taken over"
            )
    features, blocks = options.get(f"{net}_features"), options.get(f"{net}_blocks")
    if not isinstance(features, list) or len(features) < 2 or not all(isinstance(one, int) for one in features):
        raise CheckpointError(f"options: {net}_features is {features!r}, expected a list of at least two numbers")
    if not isinstance(blocks, list) or len(blocks) != len(features) or not all(isinstance(b, str) for b in blocks):
        raise CheckpointError(f"options: {net}_blocks is {blocks!r}, expected {len(features)} words, as {net}_features")
    if features[-1] < 1 or len(blocks[-1]) != 1:
        raise CheckpointError(
            f"options: {net}_features {features} with {net}_blocks {blocks}: only networks with one fully connected "
            "layer behind the levels can be taken over"
        )
    return features, blocks
