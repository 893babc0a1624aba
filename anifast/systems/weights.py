"""State dicts out of files of any age: freed of wrappers, held against the networks that they are for, made plain."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from anifast.errors import AnifastError, CheckpointError

Weights = dict[str, Tensor]
_Config = TypeVar("_Config")

_WRAPPERS = ("module.", "_orig_mod.")


def settled(
    make: Callable[[str | None, Mapping[str, Any]], _Config], preset: str | None, settings: Mapping[str, Any], what: str
) -> _Config:
    """The config that a system's `make` gives of settings in a file.

    Raises:
        CheckpointError: it cannot be; `what` says what these settings are.
    """
    try:
        return make(preset, settings)
    except AnifastError as error:
        raise CheckpointError(f"{what} cannot be used: {error}") from error


def key_of(key: str) -> str:
    """A key without what DataParallel and torch.compile put in front."""
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key


def stripped(state: Mapping[Any, Any]) -> Weights:
    """The tensors of any dict, by their keys without wrappers' prefixes."""
    return {key_of(key): value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def plain(weights: Any, label: str) -> Weights:
    """A state dict without wrappers' prefixes.

    Args:
        weights: it.
        label: what messages call it.

    Raises:
        CheckpointError: it is none: empty, or with something in it that is no tensor.
    """
    if not isinstance(weights, Mapping) or not weights:
        what = "empty" if isinstance(weights, Mapping) else f"of type {type(weights).__name__}"
        raise CheckpointError(f"damaged: {label} is {what}, expected the state dict of a network")
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"damaged: {label}: {key} is of type {type(value).__name__}, expected a tensor")
    return stripped(weights)


def fitted(net: nn.Module, weights: Weights, label: str, where: str) -> Weights:
    """`weights` in the order of the keys of `net`, which takes them over; the tensors stay the file's.

    FIR filters, which are constants, are checked and put in where they are missing.

    Args:
        net: as the settings have it; its own weights are of no interest (it may be on the device meta).
        weights: for it.
        label: what messages call them.
        where: the settings that shape it, for messages.

    Raises:
        CheckpointError: a key that is missing, unknown, of another shape or type, or another filter.
    """
    expected = {key: value for key, value in net.state_dict().items() if isinstance(value, Tensor)}
    for key, like in expected.items():
        if key.endswith("kernel"):
            continue
        shape = list(like.shape)
        if key not in weights:
            raise CheckpointError(f"damaged: {label}: {key} is missing, expected shape {shape} ({where})")
        if list(weights[key].shape) != shape:
            raise CheckpointError(f"{label}: {key} has shape {list(weights[key].shape)}, expected {shape} ({where})")
        if like.is_floating_point() and not weights[key].is_floating_point():
            raise CheckpointError(
                f"damaged: {label}: {key} is of {weights[key].dtype}, expected floating-point numbers"
            )
    unknown = next((key for key in weights if key not in expected), None)
    if unknown is not None:
        shape = list(weights[unknown].shape)
        raise CheckpointError(f"{label}: unknown key {unknown} of shape {shape}; there is none in {where}")
    try:
        net.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # another FIR filter
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise CheckpointError(f"{label}: {lines}") from error
    return {key: value for key, value in net.state_dict().items() if key in expected}


def agreed(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What all networks of a file say of the settings that shape them.

    Args:
        told: what messages call a network -> setting -> value.

    Raises:
        CheckpointError: two of them say different things.
    """
    found: dict[str, Any] = {}
    first: dict[str, str] = {}
    for label, settings in told.items():
        for name, value in settings.items():
            if found.setdefault(name, value) != value:
                raise CheckpointError(
                    f"{first[name]} and {label} do not belong together: {name} is {found[name]} in {first[name]} and "
                    f"{value} in {label}"
                )
            first.setdefault(name, label)
    return found


def count(weights: Mapping[str, Tensor], under: str) -> int:
    """One more than the highest number behind `under` in the keys."""
    numbers = [int(match[1]) for key in weights if (match := re.match(rf"{re.escape(under)}\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def shape_of(weights: Mapping[str, Tensor], key: str, dims: int, what: str, expected: str) -> tuple[int, ...]:
    """The shape of `weights[key]`.

    Raises:
        CheckpointError: it is missing, or has another number of dimensions than `dims`. The message begins with `what`
            and says what was `expected`.
    """
    if key not in weights:
        raise CheckpointError(f"{what}: {key} is missing, expected {expected}")
    shape = tuple(weights[key].shape)
    if len(shape) != dims:
        raise CheckpointError(f"{what}: {key} has shape {list(shape)}, expected {expected}")
    return shape


def moved(value: Any) -> Any:
    """A tree with its tensors contiguous, on the CPU and without gradients, for a file."""
    if isinstance(value, Mapping):
        return {key: moved(inner) for key, inner in value.items()}
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
