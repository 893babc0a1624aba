"""Random arguments of the ops, valid and invalid, and what every backend must do with them.

Valid ones are held to the reference in float64 as the fixed cases are, with gradients of two orders. Invalid ones must
raise what they raise with the reference. Examples are the same in every run, unless ANIFAST_RANDOM=1 asks for others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import bias_lrelu_cases
import domain_norm_cases
import gated_residual_cases
import gram_cases
import lpips_layer_cases
import modulated_conv2d_cases
import torch
import upfirdn2d_cases
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from torch import Tensor

from anifast.ops.upfirdn2d import mask_fits

SHORT_FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
FLOATS = SHORT_FLOATS | st.sampled_from([torch.float32, torch.float64])
SYSTEMS = [((1, 1), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (1, 1))]


def examples(count: int, *, slow: bool = False) -> Callable[[Any], Any]:
    """Decorator: so many examples, however long each takes; where they are slow no smaller failure is searched for."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=os.environ.get("ANIFAST_RANDOM") != "1",
        database=None,
        phases=[phase for phase in Phase if not (slow and phase in (Phase.shrink, Phase.explain))],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@st.composite
def upfirdn2d_case(draw: Any, largest: int = 40) -> upfirdn2d_cases.Case:
    """A valid call of upfirdn2d, half of them in the forms that have kernels of their own."""
    channels_last = draw(st.booleans())
    shape = (
        draw(st.sampled_from([1, 1, 2, 3, 0])),
        draw(st.integers(0, 20) if channels_last else st.integers(0, 5)),
        draw(st.integers(1, min(largest, 20))),
        draw(st.integers(1, largest)),
    )
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    if draw(st.booleans()):
        up, down = draw(st.sampled_from(SYSTEMS))
        kernel = draw(st.sampled_from(["blur", "outer", (4,), (4, 4)]))
    else:
        up, down = draw(pair), draw(pair)
        taps = st.integers(1, 13)
        kernel = draw(st.one_of(st.tuples(taps), st.tuples(taps, st.integers(1, 7)), st.just("blur")))
    size = (4, 4) if isinstance(kernel, str) else (kernel[0], kernel[-1])
    pads = []
    for axis in (1, 0):  # x, then y
        before, behind = draw(st.integers(-6, 9)), draw(st.integers(-6, 9))
        short = size[axis] - shape[2 + axis] * up[1 - axis] - before - behind
        pads += [before, behind + max(0, short)]
    act, noise = draw(st.booleans()), draw(st.sampled_from(["", "", "each", "shared"]))
    return upfirdn2d_cases.Case(
        "random",
        shape,
        kernel,
        up,
        down,
        (pads[0], pads[1], pads[2], pads[3]),
        flip=draw(st.booleans()),
        gain=draw(st.sampled_from([1.0, 4.0, -0.5])),
        channels_last=channels_last,
        scale=draw(st.booleans()),
        bias=draw(st.booleans()),
        noise=noise if shape[0] or noise != "shared" else "each",
        strength=draw(st.booleans()),
        act=act,
        slope=draw(st.sampled_from([0.2, 0.0, 1.0, -0.3])),
        clamp=draw(st.sampled_from([None, None, 0.7])),
        add=draw(st.booleans()),
        float32_parameters=draw(st.booleans()),
    )


@st.composite
def bias_lrelu_case(draw: Any, largest: int = 40) -> bias_lrelu_cases.Case:
    """A valid call of bias_lrelu."""
    rank = draw(st.integers(2, 5))
    shape = tuple(draw(st.integers(0 if axis < 2 else 1, largest if axis == rank - 1 else 6)) for axis in range(rank))
    channels_last = rank > 3 and draw(st.booleans())
    dim = draw(st.integers(-rank, rank - 1)) if draw(st.booleans()) else 1
    return bias_lrelu_cases.Case(
        "random",
        shape,
        dim=dim,
        channels_last=channels_last,
        bias=draw(st.booleans()),
        noise=draw(st.sampled_from(["", "each", "shared"])) if shape[0] else "",
        strength=draw(st.booleans()),
        slope=draw(st.sampled_from([0.2, 0.0, 1.0, -0.3])),
        gain=draw(st.sampled_from([1.0, 2.0**0.5, -0.5])),
        clamp=draw(st.sampled_from([None, None, 0.7, 0.0])),
        residual=draw(st.booleans()),
        residual_gain=draw(st.sampled_from([1.0, 0.5])),
        float32_parameters=draw(st.booleans()),
    )


@st.composite
def modulated_conv2d_case(draw: Any, largest: int = 12) -> modulated_conv2d_cases.Case:
    """A valid call of modulated_conv2d; wide maps or many channels, not both."""
    wide = draw(st.booleans())
    side, channels = (st.integers(1, largest), st.integers(1, 6)) if wide else (st.integers(1, 5), st.integers(1, 40))
    up, down = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 1), (1, 2)]))
    least = 2 if down == 2 else 1
    shape = (draw(st.sampled_from([1, 2, 3, 0])), draw(channels), max(draw(side), least), max(draw(side), least))
    noise = draw(st.sampled_from(["", "", "each", "shared"]))
    return modulated_conv2d_cases.Case(
        "random",
        shape,
        draw(channels),
        size=draw(st.sampled_from([1, 3, 3])),
        up=up,
        down=down,
        demodulate=draw(st.booleans()),
        fir=draw(st.sampled_from([(1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 1.0), (2.0, 1.0, 1.0, 3.0, 2.0, 1.0)])),
        channels_last=draw(st.booleans()),
        bias=draw(st.booleans()),
        noise=noise if shape[0] or noise != "shared" else "each",
        strength=draw(st.booleans()),
        act=draw(st.booleans()),
        slope=draw(st.sampled_from([0.2, 0.0, 1.0])),
        clamp=draw(st.sampled_from([None, None, 3.0])),
        add=draw(st.booleans()),
        float32_parameters=draw(st.booleans()),
    )


@st.composite
def gram_case(draw: Any, largest: int = 40) -> gram_cases.Case:
    """A valid call of gram; maps of many channels or of many pixels."""
    side, channels = st.integers(1, largest), st.integers(1, largest)
    few = st.integers(1, 5)
    shapes = st.one_of(st.tuples(few, side, side), st.tuples(channels, few, few))
    maps = tuple(draw(st.lists(shapes, min_size=1, max_size=5)))
    return gram_cases.Case(
        "random",
        maps,
        batch=draw(st.sampled_from([1, 1, 2, 3, 0])),
        last=tuple(i for i in range(len(maps)) if draw(st.booleans())),
        normalize=draw(st.sampled_from(["chw", "hw", "none"])),
        folded=draw(st.booleans()),
        single=len(maps) == 1 and draw(st.booleans()),
    )


@st.composite
def lpips_layer_case(draw: Any, largest: int = 40) -> lpips_layer_cases.Case:
    """A valid call of lpips_layer, on wide maps or with many channels."""
    wide = draw(st.booleans())
    side, channels = (largest, 9) if wide else (5, 4 * largest)
    batch = draw(st.sampled_from([1, 1, 2, 3, 0]))
    weight = draw(st.sampled_from(["", "flat", "head"]))
    of_weight = bool(weight) and batch > 0 and draw(st.booleans())
    maps: list[tuple[str, ...]] = [("a",), ("b",), ("a", "b"), ("a", "b")]
    return lpips_layer_cases.Case(
        "random",
        (batch, draw(st.integers(1, channels)), draw(st.integers(1, side)), draw(st.integers(1, side))),
        weight=weight,
        channels_last=draw(st.booleans()),
        b_other_layout=draw(st.sampled_from([False, False, True])),
        eps=draw(st.sampled_from([1e-10, 1e-10, 1e-3, 0.5, 0.0])),
        eps_inside=draw(st.booleans()),
        reduce=draw(st.sampled_from(["mean", "none"])),
        zeros=draw(st.sampled_from([False, False, True])),
        near=draw(st.sampled_from([False, False, True])),
        scale=draw(st.sampled_from([1.0, 1.0, 100.0, 0.01])),
        wants=(*draw(st.sampled_from(maps)), *(("weight",) if of_weight else ())),
        float32_weight=draw(st.booleans()),
    )


@st.composite
def gated_residual_case(draw: Any, largest: int = 40) -> gated_residual_cases.Case:
    """A valid call of gated_residual, on matrices, wide maps or with many channels."""
    up = draw(st.sampled_from([1, 2]))
    crop = draw(st.integers(0, 3)) if up == 2 else 0
    wide = draw(st.booleans())
    side, channels = (largest, 6) if wide else (5, 3 * largest)
    shape = (draw(st.sampled_from([1, 1, 2, 3, 9, 0])), draw(st.integers(1, channels)))
    if up == 2 or draw(st.sampled_from([True, True, True, False])):
        shape += (up * draw(st.integers(0, side)), up * draw(st.integers(1, side)))
    names = gated_residual_cases.NAMES
    centred = draw(st.booleans())
    return gated_residual_cases.Case(
        "random",
        shape,
        channels_last=draw(st.booleans()),
        shortcut_other_layout=draw(st.sampled_from([False, False, True])),
        slope=draw(st.sampled_from(["", "each", "each", "zeros"])),
        bias=draw(st.booleans()),
        mean=gated_residual_cases.MEAN if centred else 0.0,
        std=gated_residual_cases.STD if centred else 1.0,
        up=up,
        crop=crop,
        zeros=draw(st.sampled_from([False, False, True])),
        float32_parameters=draw(st.booleans()),
        wants=draw(st.sampled_from([names, names, names[:2], names[:1], names[1:3], names[2:]])),
    )


@st.composite
def domain_norm_case(draw: Any, largest: int = 40) -> domain_norm_cases.Case:
    """A valid call of domain_norm, on matrices, wide maps or with many channels."""
    groups, rows = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 1, 2]))
    wide = draw(st.booleans())
    side, channels = (largest, 6) if wide else (5, 3 * largest)
    shape = (groups * rows * draw(st.sampled_from([1, 1, 2, 3, 0])), draw(st.integers(0, channels)))
    shape += tuple(draw(st.integers(0, 3) if i == 2 else st.integers(1, side)) for i in range(draw(st.integers(0, 3))))
    constants = draw(st.sampled_from(["", "", "statistics", "fresh", "inside", "beyond"]))
    names = domain_norm_cases.NAMES
    return domain_norm_cases.Case(
        "random",
        shape,
        groups=groups,
        rows=groups * rows if rows > 1 else draw(st.sampled_from([0, 0, -1])),
        channels_last=draw(st.booleans()),
        renorm="" if constants == "statistics" else constants,
        statistics=constants == "statistics",
        slope=draw(st.sampled_from([0.2, 0.2, 0.0, 1.0, -0.3])),
        pixel_norm=draw(st.sampled_from([True, True, False])),
        eps=draw(st.sampled_from([1e-3, 1e-3, 1e-6, 0.5])),
        pixel_eps=draw(st.sampled_from([1e-6, 1e-6, 1e-3])),
        scale=draw(st.sampled_from([2.0, 2.0, 0.05, 100.0])),
        shift=draw(st.sampled_from([0.5, 0.0, -3.0, 50.0])),
        float32_parameters=draw(st.booleans()),
        wants=draw(st.sampled_from([names, names, names[:1], names[1:]])),
    )


@dataclass(frozen=True)
class Fault:
    """What makes a valid call invalid: other fields of its case, or a tensor in the place of a valid one."""

    fields: Callable[[Any], dict[str, Any]] | None = None
    tensor: str = ""
    wrong: Callable[[Tensor], Any] | None = None

    def __call__(self, case: Any, tensors: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The invalid case and tensors."""
        if self.fields is not None:
            return replace(case, **self.fields(case)), tensors
        assert self.wrong is not None
        like = tensors.get(self.tensor, next(iter(tensors.values()))).detach()
        return case, tensors | {self.tensor: self.wrong(like)}


def _crop(case: upfirdn2d_cases.Case) -> dict[str, Any]:
    x0, _, y0, y1 = case.padding
    return {"padding": (x0, case.kernel_size[1] - 1 - x0 - case.shape[3] * case.up[0], y0, y1)}


def _longer(x: Tensor) -> Tensor:
    return x.new_zeros([size + 2 for size in x.shape])


def _elsewhere(x: Tensor) -> Tensor:
    return x.to("meta")


def _of_another_type(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.dtype != torch.float64 else torch.float32)


@dataclass(frozen=True)
class SecondMap:
    """A list whose second map does not go with the first one."""

    wrong: Callable[[Tensor], Any]

    def __call__(self, case: gram_cases.Case, tensors: dict[str, Any]) -> tuple[gram_cases.Case, dict[str, Any]]:
        """The invalid case and tensors."""
        return replace(case, single=False), tensors | {"1": self.wrong(tensors["0"].detach())}


@dataclass(frozen=True)
class NoMaps:
    """A list of nothing."""

    def __call__(self, case: gram_cases.Case, tensors: dict[str, Any]) -> tuple[gram_cases.Case, dict[str, Any]]:
        """The invalid case and tensors."""
        return replace(case, single=False), {"grad": tensors["grad"]}


@dataclass(frozen=True)
class Memory:
    """A call of domain_norm with memories, one of which is wrong."""

    name: str
    wrong: Callable[[Tensor], Any]

    def __call__(
        self, case: domain_norm_cases.Case, tensors: dict[str, Any]
    ) -> tuple[domain_norm_cases.Case, dict[str, Any]]:
        """The invalid case and tensors."""
        case, like = replace(case, renorm="inside", statistics=False), tensors["x"].detach()
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        shapes = [(case.groups, like.shape[1])] * 2 + [(case.groups, 2), (3,)]
        memories = {
            name: torch.ones(shape, dtype=dtype) for name, shape in zip(domain_norm_cases.RENORM, shapes, strict=True)
        }
        return case, tensors | memories | {self.name: self.wrong(memories[self.name])}


_WRONG: dict[str, Callable[[Tensor], Any]] = {
    "a list": lambda x: [1.0],
    "integers": lambda x: x.to(torch.int32),
    "longer everywhere": _longer,
    "of one axis more": lambda x: x[None],
    "elsewhere": _elsewhere,
}
FAULTS: dict[str, dict[str, Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]]] = {
    "upfirdn2d": {
        **{
            f"{name} {how}": Fault(tensor=name, wrong=wrong)
            for name in ("kernel", "scale", "bias", "noise", "add")
            for how, wrong in _WRONG.items()
            if (name, how) not in (("kernel", "longer everywhere"), ("kernel", "of one axis more"))
        },
        "x a list": Fault(tensor="x", wrong=_WRONG["a list"]),
        "x integers": Fault(tensor="x", wrong=_WRONG["integers"]),
        "x of one axis less": Fault(tensor="x", wrong=lambda x: x.sum(0)),
        "x without pixels": Fault(tensor="x", wrong=lambda x: x[..., :0]),
        "a kernel of three axes": Fault(tensor="kernel", wrong=lambda k: k.reshape(1, 1, -1)),
        "an empty kernel": Fault(tensor="kernel", wrong=lambda k: k[:0]),
        "a kernel that learns": Fault(tensor="kernel", wrong=lambda k: k.clone().requires_grad_()),
        "strengths": Fault(tensor="noise_strength", wrong=lambda x: x.new_zeros(2)),
        "everything cropped": Fault(fields=_crop),
        "up 0": Fault(fields=lambda case: {"up": (0, case.up[1])}),
        "down -1": Fault(fields=lambda case: {"down": (case.down[0], -1)}),
        "up of three": Fault(fields=lambda case: {"up": (1, 1, 1)}),
        "pads of three": Fault(fields=lambda case: {"padding": (1, 1, 1)}),
        "huge pads": Fault(fields=lambda case: {"padding": (1 << 62, 1 << 62, 0, 0)}),
        "a negative clamp": Fault(fields=lambda case: {"clamp": -0.5}),
        "a clamp of text": Fault(fields=lambda case: {"clamp": "1"}),
        "a gain of text": Fault(fields=lambda case: {"gain": "1"}),
        "no gain": Fault(fields=lambda case: {"gain": None}),
    },
    "modulated_conv2d": {
        **{
            f"{name} {how}": Fault(tensor=name, wrong=wrong)
            for name in ("weight", "style", "bias", "noise", "add")
            for how, wrong in _WRONG.items()
            if (name, how) != ("weight", "longer everywhere")
        },
        "x a list": Fault(tensor="x", wrong=_WRONG["a list"]),
        "x integers": Fault(tensor="x", wrong=_WRONG["integers"]),
        "x of one axis less": Fault(tensor="x", wrong=lambda x: x.sum(0)),
        "x without pixels": Fault(tensor="x", wrong=lambda x: x[..., :0]),
        "a channel more": Fault(tensor="x", wrong=lambda x: x.new_zeros(x.shape[0], x.shape[1] + 1, *x.shape[2:])),
        "an even kernel": Fault(tensor="weight", wrong=lambda w: w.new_zeros(*w.shape[:2], 2, 2)),
        "a weight without outputs": Fault(tensor="weight", wrong=lambda w: w[:0]),
        "strengths": Fault(tensor="noise_strength", wrong=lambda x: x.new_zeros(2)),
        "up 3": Fault(fields=lambda case: {"up": 3}),
        "down 0": Fault(fields=lambda case: {"down": 0}),
        "padding of text": Fault(fields=lambda case: {"padding": "valid"}),
        "a negative clamp": Fault(fields=lambda case: {"clamp": -0.5}),
        "a gain of text": Fault(fields=lambda case: {"gain": "1"}),
        "no slope": Fault(fields=lambda case: {"slope": None}),
    },
    "bias_lrelu": {
        **{
            f"{name} {how}": Fault(tensor=name, wrong=wrong)
            for name in ("bias", "noise", "residual")
            for how, wrong in _WRONG.items()
        },
        "x a list": Fault(tensor="x", wrong=_WRONG["a list"]),
        "x integers": Fault(tensor="x", wrong=_WRONG["integers"]),
        "x of one axis": Fault(tensor="x", wrong=lambda x: x.flatten()),
        "strengths": Fault(tensor="noise_strength", wrong=lambda x: x.new_zeros(2)),
        "dim beyond": Fault(fields=lambda case: {"dim": len(case.shape)}),
        "a gain of text": Fault(fields=lambda case: {"gain": "1"}),
        "a slope of nothing": Fault(fields=lambda case: {"slope": None}),
        "dim far before": Fault(fields=lambda case: {"dim": -len(case.shape) - 1}),
        "a negative clamp": Fault(fields=lambda case: {"clamp": -0.5}),
    },
    "domain_norm": {
        **{
            f"{name} {how}": Fault(tensor=name, wrong=wrong)
            for name in ("gamma", "beta")
            for how, wrong in _WRONG.items()
        },
        **{
            f"{name} {how}": Memory(name, wrong)
            for name in domain_norm_cases.RENORM
            for how, wrong in (_WRONG | {"of another type": _of_another_type}).items()
        },
        "x a list": Fault(tensor="x", wrong=_WRONG["a list"]),
        "x integers": Fault(tensor="x", wrong=_WRONG["integers"]),
        "x of one axis": Fault(tensor="x", wrong=lambda x: x.flatten()),
        "x of other channels": Fault(tensor="x", wrong=lambda x: x.new_zeros(len(x), x.shape[1] + 1, *x.shape[2:])),
        "no gamma": Fault(tensor="gamma", wrong=lambda x: None),
        "no groups": Fault(fields=lambda case: {"groups": 0}),
        "groups below": Fault(fields=lambda case: {"groups": -case.groups}),
        "groups of text": Fault(fields=lambda case: {"groups": "1"}),
        "a slope of nothing": Fault(fields=lambda case: {"slope": None}),
        "a pixel norm of 1": Fault(fields=lambda case: {"pixel_norm": 1}),
        "a negative eps": Fault(fields=lambda case: {"eps": -1e-3}),
        "an eps of text": Fault(fields=lambda case: {"eps": "0"}),
        "an eps that is no number": Fault(fields=lambda case: {"pixel_eps": float("nan")}),
    },
    "gated_residual": {
        **{
            f"{name} {how}": Fault(tensor=name, wrong=wrong)
            for name in ("shortcut", "gate", "shortcut_gate", "slope", "bias")
            for how, wrong in _WRONG.items()
        },
        "x a list": Fault(tensor="x", wrong=_WRONG["a list"]),
        "x integers": Fault(tensor="x", wrong=_WRONG["integers"]),
        "x of one axis more": Fault(tensor="x", wrong=lambda x: x[None]),
        "x of another size": Fault(tensor="x", wrong=lambda x: x.new_zeros(x.shape[0] + 1, *x.shape[1:])),
        "a shortcut of another type": Fault(tensor="shortcut", wrong=_of_another_type),
        "no gate": Fault(tensor="gate", wrong=lambda x: None),
        "a gate that is a number": Fault(tensor="gate", wrong=lambda x: 1.0),
        "a slope that is a number": Fault(tensor="slope", wrong=lambda x: 0.2),
        "up 3": Fault(fields=lambda case: {"up": 3}),
        "up of text": Fault(fields=lambda case: {"up": "2"}),
        "another up": Fault(fields=lambda case: {"up": 3 - case.up, "crop": case.up - 1}),
        "a negative crop": Fault(fields=lambda case: {"crop": -1}),
        "a huge crop": Fault(fields=lambda case: {"crop": 1 << 62}),
        "a crop of nothing": Fault(fields=lambda case: {"crop": None}),
        "std 0": Fault(fields=lambda case: {"std": 0.0}),
        "a std that is no number": Fault(fields=lambda case: {"std": float("nan")}),
        "a mean of text": Fault(fields=lambda case: {"mean": "0"}),
    },
    "gram": {
        "a map that is a list": Fault(tensor="0", wrong=_WRONG["a list"]),
        "a map of integers": Fault(tensor="0", wrong=_WRONG["integers"]),
        "a map of one axis less": Fault(tensor="0", wrong=lambda x: x.sum(0)),
        "a map of one axis more": Fault(tensor="0", wrong=lambda x: x[None]),
        "a map without pixels": Fault(tensor="0", wrong=lambda x: x[..., :0]),
        "a map without channels": Fault(tensor="0", wrong=lambda x: x[:, :0]),
        "no maps": NoMaps(),
        "a second map that is a list": SecondMap(_WRONG["a list"]),
        "a second map of integers": SecondMap(_WRONG["integers"]),
        "a second map of another type": SecondMap(_of_another_type),
        "a second map of another batch": SecondMap(lambda x: x.new_zeros(x.shape[0] + 1, *x.shape[1:])),
        "a second map of one axis less": SecondMap(lambda x: x[0] if len(x) else x.sum(0)),
        "a second map without pixels": SecondMap(lambda x: x[:, :, :0]),
        "a second map elsewhere": SecondMap(_elsewhere),
        "normalised by something else": Fault(fields=lambda case: {"normalize": "c"}),
        "normalised by nothing": Fault(fields=lambda case: {"normalize": None}),
    },
    "lpips_layer": {
        **{
            f"{name} {how}": Fault(tensor=name, wrong=wrong)
            for name in ("b", "weight")
            for how, wrong in _WRONG.items()
        },
        "a a list": Fault(tensor="a", wrong=_WRONG["a list"]),
        "a integers": Fault(tensor="a", wrong=_WRONG["integers"]),
        "a of one axis less": Fault(tensor="a", wrong=lambda x: x.sum(0)),
        "a without pixels": Fault(tensor="a", wrong=lambda x: x[..., :0]),
        "a without channels": Fault(tensor="a", wrong=lambda x: x[:, :0]),
        "a with a channel more": Fault(
            tensor="a", wrong=lambda x: x.new_zeros(x.shape[0], x.shape[1] + 1, *x.shape[2:])
        ),
        "b of another type": Fault(tensor="b", wrong=_of_another_type),
        "a negative eps": Fault(fields=lambda case: {"eps": -1e-10}),
        "an eps that is no number": Fault(fields=lambda case: {"eps": float("nan")}),
        "an eps of text": Fault(fields=lambda case: {"eps": "1"}),
        "another reduction": Fault(fields=lambda case: {"reduce": "sum"}),
    },
}


def check(op: str, case: Any, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Hold a backend to the reference on a random case.

    Not where a half type is rounded between the filter and an activation of its own pass: on which side of the kink a
    value near it falls is then rounding's choice, and the reference's another. The fixed cases have such calls.
    """
    if op == "upfirdn2d" and dtype in (torch.float16, torch.bfloat16):
        masked = case.act or case.clamp is not None
        assume(not masked or mask_fits(case.out_shape[3], case.channels_last))
    MODULES[op].check(case, dtype, backend, device)


#: the ops whose every backend is asked by its name
CASES = {
    "upfirdn2d": upfirdn2d_case,
    "bias_lrelu": bias_lrelu_case,
    "domain_norm": domain_norm_case,
    "gated_residual": gated_residual_case,
    "gram": gram_case,
    "lpips_layer": lpips_layer_case,
}
MODULES: dict[str, Any] = {
    "upfirdn2d": upfirdn2d_cases,
    "bias_lrelu": bias_lrelu_cases,
    "modulated_conv2d": modulated_conv2d_cases,
    "domain_norm": domain_norm_cases,
    "gated_residual": gated_residual_cases,
    "gram": gram_cases,
    "lpips_layer": lpips_layer_cases,
}


def check_strategy(case: modulated_conv2d_cases.Case, dtype: torch.dtype, strategy: str, device: str = "cpu") -> None:
    """Hold a strategy of modulated_conv2d to the reference on a random case that it does.

    Not where a half type would choose the side of an activation's kink or limit, nor where one input channel is
    demodulated: the style has no effect then, and its gradients are what rounding leaves of large terms.
    """
    assume(modulated_conv2d_cases.suits(case, strategy))
    assume(not (case.demodulate and case.shape[1] == 1))
    if dtype in (torch.float16, torch.bfloat16):
        assume(case.clamp is None and (case.bias or not case.act))
    modulated_conv2d_cases.check(case, dtype, strategy, device)


def check_refused(op: str, case: Any, dtype: torch.dtype, fault: str, backend: str) -> None:
    """A call with a fault raises the same error, of an argument, from a backend and from the reference."""
    module = MODULES[op]
    wrong = FAULTS[op][fault](case, module.make(case, dtype))

    def outcome(backend: str) -> tuple[type[Exception], str] | None:
        try:
            module.call(*wrong, backend=backend)
        except (TypeError, ValueError) as error:
            return type(error), str(error)
        return None

    expected = outcome("reference")
    assert expected is not None, f"{fault}: the reference takes it"
    assert expected[1].startswith(op + ": "), f"{fault}: {expected[1]!r} does not name the op"
    assert outcome(backend) == expected
