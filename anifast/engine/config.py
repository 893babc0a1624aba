"""Configurations: one dataclass per system gives its command line options, its checks and its place in checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from anifast.errors import AnifastError

C = TypeVar("C")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    on_resume: bool = False,
    none: str = "no limit",
) -> Any:
    """A dataclass field that is also a command line option.

    Args:
        default: the value where neither preset nor command line give one.
        help: one line for `--help`.
        choices: the words that are allowed.
        low: the smallest number that is allowed.
        high: the largest.
        on_resume: the option may change when a run is resumed (it steers the run, not what is learnt from a step).
        none: what None means, in a word for the help text.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "low": low,
            "high": high,
            "on_resume": on_resume,
            "none": none,
        },  # fmt: skip
    )


@dataclasses.dataclass(frozen=True)
class Steering:
    """Settings of every system's runs, which steer them: how long, how precise, how often something is written.

    A system's `Config` is a dataclass on top of this one. It may give a field another default by naming it again.
    """

    seed: int = option(0, "seed of weights, data order and whatever else is drawn", low=0, high=2**63 - 1)
    images: int | None = option(
        None, "end after this many pictures per domain, wherever the steps stand", low=1, on_resume=True
    )
    minutes: float | None = option(
        None, "end after this many minutes, wherever the images stand", low=0, on_resume=True
    )
    precision: str = option("fp32", "fp32, or bf16 convolutions under fp32 weights", choices=("fp32", "bf16"))
    log_every: int = option(50, "pictures between two lines of metrics.jsonl", low=1, on_resume=True)
    sheet_every: int = option(2000, "pictures between two sample sheets", low=1, on_resume=True)
    save_every: int = option(5000, "pictures between two checkpoints", low=1, on_resume=True)
    keep: int = option(1, "checkpoints to keep; more than 1: also as checkpoint-PICTURES.pt", low=1, on_resume=True)
    bad_steps: int = option(
        10, "steps in a row with a loss or gradient that is not finite, which end the run", low=1, on_resume=True
    )
    compile: bool = option(False, "torch.compile the networks; slow first steps", on_resume=True)
    cuda_graphs: bool = option(
        False, "record the phases of a step as CUDA graphs, for small networks on a GPU (untested)", on_resume=True
    )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)


def _types(config: type) -> dict[str, tuple[type, bool]]:
    """Field name -> (type, may be None)."""
    found = {}
    for name, hint in typing.get_type_hints(config).items():
        kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
        found[name] = (kinds[0], len(kinds) < len(typing.get_args(hint)))
    return found


def add_options(
    parser: argparse.ArgumentParser,
    config: type,
    presets: Mapping[str, Mapping[str, Any]],
    leave_out: Collection[str] = (),
) -> None:
    """Add one option per field of the dataclass `config` but those to leave out, and `--preset` if there are several.

    Options that are not given leave no trace in the parsed namespace, so that a preset's values stand.
    """
    first = next(iter(presets.values()))
    words = "; ".join(f"{name}: {about['about']}" for name, about in presets.items())
    parser.set_defaults(preset=None)
    if len(presets) > 1:
        parser.add_argument("--preset", choices=list(presets), help=f"named settings, default {[*presets][0]}. {words}")
    own = parser.add_argument_group(
        "settings"
        + (" (each overrides the preset; the defaults shown are the first preset's)" if len(presets) > 1 else "")
    )
    steering = parser.add_argument_group("settings of all systems' runs")
    types = _types(config)
    shared = {field.name for field in dataclasses.fields(Steering)}
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        group = steering if field.name in shared else own
        flag = "--" + field.name.replace("_", "-")
        kind, _ = types[field.name]
        usual = first.get(field.name, field.default)
        shown = field.metadata["none"] if usual is None else usual
        text = f"{field.metadata['help']} [{shown}]".replace("%", "%%")
        if kind is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, dest=field.name, help=text
            )
        else:
            group.add_argument(
                flag,
                type=kind,
                choices=field.metadata["choices"],
                default=argparse.SUPPRESS,
                dest=field.name,
                metavar=None if field.metadata["choices"] else kind.__name__.upper(),
                help=text,
            )


def given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields of `config` that stand in the parsed arguments."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in vars(args).items() if name in names}


def build(config: type[C], values: Mapping[str, Any]) -> C:
    """Make a config from plain values and check each of them.

    Raises:
        AnifastError: unknown name, wrong type, or a value out of range; the message names it and what is allowed.
    """
    types = _types(config)
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise AnifastError(f"unknown setting {name!r}; there are {', '.join(fields)}")
        kind, optional = types[name]
        about = fields[name].metadata
        if value is None and optional:
            checked[name] = None
            continue
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise AnifastError(f"setting {name}: {value!r} is not of type {kind.__name__}")
        if about["choices"] and value not in about["choices"]:
            raise AnifastError(f"setting {name}: {value!r} is not one of {', '.join(about['choices'])}")
        if about["low"] is not None and not value >= about["low"]:
            raise AnifastError(f"setting {name}: {value!r} is below {about['low']}")
        if about["high"] is not None and not value <= about["high"]:
            raise AnifastError(f"setting {name}: {value!r} is above {about['high']}")
        if isinstance(value, float) and not math.isfinite(value):
            raise AnifastError(f"setting {name}: {value!r} is not finite")
        checked[name] = value
    return config(**checked)


def from_preset(
    config: type[C],
    presets: Mapping[str, Mapping[str, Any]],
    name: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> C:
    """The config of a named preset (None: the first) with `values` put over it.

    Raises:
        AnifastError: an unknown preset, or a value that cannot be.
    """
    name = name if name is not None else next(iter(presets))
    if name not in presets:
        raise AnifastError(f"unknown preset {name!r}; there are {', '.join(presets)}")
    chosen = {key: value for key, value in presets[name].items() if key != "about"}
    chosen.update(values or {})
    return build(config, chosen)


def check_options(system: str, options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse options that a system's models do not have.

    Raises:
        AnifastError: one of them is not among `known`.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise AnifastError(f"{system} has no option {', '.join(unknown)}; there is {', '.join(known)}")


def changed(old: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that differ from the config `old`.

    Raises:
        AnifastError: one of them may not change when a run is resumed.
    """
    fields = {field.name: field for field in dataclasses.fields(old)}
    differing = {name: value for name, value in values.items() if getattr(old, name) != value}
    fixed = [
        f"{name} ({getattr(old, name)!r}, not {differing[name]!r})"
        for name in differing
        if not fields[name].metadata["on_resume"]
    ]
    if fixed:
        raise AnifastError(
            f"a resumed run keeps its settings, but other values were given: {', '.join(fixed)}. "
            "Leave these options out, or start a new run in another folder"
        )
    return differing


def as_option(name: str, value: Any) -> str:
    """A setting as an option of a command."""
    flag = name.replace("_", "-")
    return f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}"
