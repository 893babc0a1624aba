"""Cases of domain_norm and their checks, shared by the tests of every backend.

A result is held to the reference in float64, number by number. All is computed in float32 at least, so an error may be
twice that of the reference there, plus four roundings of what the number is computed from, followed through the
formulas to first order with no two errors cancelling (`_sizes`). A long sum may err by one rounding more for each
doubling of its length, as one does that is added up in parts. A number of a half type is rounded to it once more. No
value lies so near the kink that rounding chooses its side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anifast.ops import domain_norm
from anifast.reference.domain_norm import correction

NAMES = ("x", "gamma", "beta")
RENORM = ("mean_memory", "std_memory", "weights", "limits")
STATISTICS = ("mean", "std")
#: values of v stay so far from 0
MARGIN = 2e-3


@dataclass(frozen=True)
class Case:
    """One call."""

    name: str
    shape: tuple[int, ...]
    groups: int = 1
    rows: int = 0  # of gamma and beta: 0 is one a group, -1 is a gamma and a beta of C
    channels_last: bool = False
    renorm: str = ""  # "" (none), "fresh" (empty memories), "inside" or "beyond" the limits
    statistics: bool = False  # given
    slope: float = 0.2
    pixel_norm: bool = True
    eps: float = 1e-3
    pixel_eps: float = 1e-6
    scale: float = 2.0  # of x
    shift: float = 0.5  # of x, in its deviations
    float32_parameters: bool = False  # they stay float32 beside a half x
    wants: tuple[str, ...] = NAMES  # inputs with a gradient

    def __str__(self) -> str:
        return self.name

    @property
    def sets(self) -> int:
        """How many rows the kernels see."""
        return max(self.groups, self.rows)


CASES = [
    Case("odd", (2, 3, 5, 7)),
    Case("odd_groups", (4, 3, 5, 7), groups=2),
    Case("one_value", (1, 1, 1, 1)),
    Case("vectors", (2, 16, 4, 16), groups=2),
    Case("vectors_and_rest", (4, 6, 9, 13), groups=2),
    Case("short_planes", (6, 37, 1, 2), groups=3),
    Case("4x4", (6, 70, 4, 4), groups=2),
    Case("long_planes", (2, 3, 70, 66), groups=2),
    Case("longer_planes", (1, 2, 130, 129)),
    Case("many_images", (60, 5, 7, 9), groups=4),
    Case("nhwc_odd", (4, 5, 3, 7), groups=2, channels_last=True),
    Case("nhwc_vectors", (4, 64, 5, 6), groups=2, channels_last=True),
    Case("nhwc_vectors_and_rest", (2, 90, 5, 6), channels_last=True),
    Case("nhwc_256", (4, 256, 4, 4), groups=4, channels_last=True),
    Case("nhwc_many_channels", (2, 523, 3, 3), channels_last=True),
    Case("nhwc_many_pixels", (4, 17, 31, 22), groups=2, channels_last=True),
    Case("matrix", (6, 12), groups=2),
    Case("matrix_odd", (129, 7), groups=3),
    Case("one_pixel", (6, 37, 1, 1), groups=2),
    Case("rank3", (4, 6, 11), groups=2),
    Case("rank5", (2, 4, 2, 3, 5), groups=2),
    Case("rank5_nhwc", (2, 4, 2, 3, 5), groups=2, channels_last=True),
    Case("flat", (4, 6, 5, 3), groups=2, rows=-1),
    Case("rows", (8, 6, 5, 3), groups=2, rows=4),
    Case("rows_nhwc", (8, 19, 5, 3), groups=2, rows=8, channels_last=True),
    Case("rows_matrix", (12, 9), groups=2, rows=6),
    Case("instance", (3, 6, 5, 4), groups=3, eps=1e-6),
    Case("instance_nhwc", (3, 20, 5, 4), groups=3, eps=1e-6, channels_last=True),
    Case("fresh", (4, 6, 5, 3), groups=2, renorm="fresh"),
    Case("renorm", (4, 6, 5, 3), groups=2, renorm="inside"),
    Case("renorm_rows", (8, 6, 3, 3), groups=2, rows=4, renorm="inside"),
    Case("renorm_nhwc", (4, 20, 5, 3), groups=2, renorm="inside", channels_last=True),
    Case("beyond", (4, 6, 5, 3), groups=2, renorm="beyond"),
    Case("beyond_nhwc", (4, 5, 3, 4), groups=2, rows=4, renorm="beyond", channels_last=True),
    Case("statistics", (4, 6, 5, 3), groups=2, statistics=True),
    Case("statistics_nhwc", (4, 20, 5, 3), groups=2, rows=4, statistics=True, channels_last=True),
    Case("linear", (4, 6, 5, 3), groups=2, slope=1.0),
    Case("relu", (4, 9, 5, 3), groups=2, slope=0.0),
    Case("colours", (4, 3, 8, 8), groups=2, slope=1.0, pixel_norm=False, renorm="inside"),
    Case("colours_nhwc", (4, 3, 8, 8), groups=2, slope=1.0, pixel_norm=False, renorm="inside", channels_last=True),
    Case("colours_odd_nhwc", (4, 3, 7, 5), groups=4, slope=1.0, pixel_norm=False, channels_last=True),
    Case("no_pixel_norm", (4, 6, 5, 13), groups=2, pixel_norm=False),
    Case("no_pixel_norm_nhwc", (4, 37, 5, 3), groups=2, pixel_norm=False, channels_last=True),
    Case("large_eps", (4, 6, 5, 3), groups=2, eps=0.5, pixel_eps=0.25),
    Case("small", (4, 6, 5, 3), groups=2, scale=1e-3),
    Case("far", (4, 6, 9, 8), groups=2, shift=1000.0),
    Case("far_nhwc", (4, 18, 9, 8), groups=2, shift=1000.0, channels_last=True),
    Case("float32_parameters", (4, 8, 5, 3), groups=2, float32_parameters=True),
    Case("only_x", (4, 8, 5, 3), groups=2, wants=("x",)),
    Case("only_x_nhwc", (4, 8, 5, 3), groups=2, wants=("x",), channels_last=True),
    Case("only_gamma", (4, 8, 5, 3), groups=2, wants=("gamma",)),
    Case("only_beta_nhwc", (4, 8, 5, 3), groups=2, wants=("beta",), channels_last=True),
    Case("empty_batch", (0, 3, 4, 4), groups=2),
    Case("empty_batch_nhwc", (0, 3, 4, 4), groups=2, rows=4, renorm="inside", channels_last=True),
    Case("no_pixels", (4, 3, 0, 4), groups=2, renorm="fresh"),
    Case("no_channels", (4, 0, 3, 4), groups=2),
]
CASE = {case.name: case for case in CASES}


def layout(x: Tensor, channels_last: bool) -> Tensor:
    """X in channels last where its rank has that, or contiguous."""
    forms = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    return x.contiguous(memory_format=forms.get(x.dim(), torch.contiguous_format))


def make(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """The tensor arguments of a case, and under "grad" a gradient of its output."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = wide if case.float32_parameters else dtype
    channels, groups = case.shape[1], case.groups

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def values() -> Tensor:
        return ((draw(*case.shape) + case.shift) * case.scale).to(dtype)

    rows = (channels,) if case.rows < 0 else (case.sets, channels)
    constants: dict[str, Tensor] = {}
    if case.statistics:
        constants = {"mean": draw(groups, channels) * case.scale, "std": uniform(0.5, 2.0, groups, channels)}
        constants = {name: value.to(wide) for name, value in constants.items()}
    elif case.renorm:
        # a memory that is full by w holds w times the usual
        deviation, weights = case.scale * (1 + 0.1 * draw(groups, channels)), uniform(0.1, 0.9, groups, 2)
        mean = case.scale * (case.shift + 0.1 * draw(groups, channels))
        limits = torch.tensor([0.25, 4.0, 4.0])
        if case.renorm == "beyond":
            deviation, limits = 5 * deviation + 1, torch.tensor([0.75, 1.25, 1 / 64])
            mean = mean + 20 * (case.scale + 1) * draw(groups, channels).sign()
        elif case.renorm == "fresh":
            weights = 0 * weights
        memories = (weights[:, :1] * mean, weights[:, 1:] * deviation, weights, limits)
        constants = {name: value.to(wide) for name, value in zip(RENORM, memories, strict=True)}
    sign = 1 - 2 * (draw(*rows) > 1).float()
    tensors = {"gamma": (sign * uniform(0.4, 1.6, *rows)).to(parameters)}
    tensors["beta"] = (uniform(0.2, 0.8, *rows) * draw(*rows).sign()).to(parameters)
    tensors |= constants
    x = values()
    for _ in range(0 if case.slope == 1.0 else 50):
        v = call(case, {name: value.double() for name, value in (tensors | {"x": x}).items()}, "reference", inner=True)
        near = v.abs() < MARGIN
        if not near.any():
            break
        x = torch.where(near, values(), x)
        if case.shape[0] // groups * math.prod(case.shape[2:]) < 3:  # which are normalised to -1, 0 and 1
            found = near.reshape(case.sets, -1, channels, math.prod(case.shape[2:])).any(3).any(1)
            found = found.any(0) if case.rows < 0 else found
            tensors["beta"] = torch.where(found, uniform(0.2, 0.8, *rows).to(parameters), tensors["beta"])
    else:
        assert case.slope == 1.0, "values stay near the kink"
    tensors["x"], tensors["grad"] = x, draw(*case.shape).to(dtype)
    order = [*NAMES, *constants, "grad"]
    tensors = {name: tensors[name].to(device) for name in order}
    tensors |= {name: layout(tensors[name], case.channels_last) for name in ("x", "grad")}
    return {name: value.requires_grad_(name in (*case.wants, "grad")) for name, value in tensors.items()}


def given(case: Case, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The constants of a case as arguments of the op."""
    if case.statistics:
        return {"statistics": tuple(tensors[name] for name in STATISTICS)}
    return {"renorm": tuple(tensors[name] for name in RENORM)} if case.renorm else {}


def run(
    case: Case, tensors: dict[str, Tensor], backend: str | None, *, inner: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The op on a case's tensors: all that it returns. `inner` takes v for the output."""
    return domain_norm(
        tensors["x"],
        tensors["gamma"],
        tensors["beta"],
        groups=case.groups,
        **given(case, tensors),  # type: ignore[arg-type]
        slope=1.0 if inner else case.slope,
        pixel_norm=False if inner else case.pixel_norm,
        eps=case.eps,
        pixel_eps=case.pixel_eps,
        backend=backend,
    )


def call(case: Case, tensors: dict[str, Tensor], backend: str | None, *, inner: bool = False) -> Tensor:
    """The op's output on a case's tensors; `inner` takes v for it."""
    return run(case, tensors, backend, inner=inner)[0]


def results(case: Case, tensors: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
    """Output, statistics, and gradients ("d ")."""
    out, mean, std = run(case, tensors, backend)
    grads = torch.autograd.grad(out, [tensors[name] for name in case.wants], tensors["grad"])
    found = {"out": out, "mean": mean, "std": std}
    return found | {f"d {name}": value for name, value in zip(case.wants, grads, strict=True)}


def _sizes(case: Case, tensors: dict[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """How far one rounding of everything moves each result of a case, in units of that rounding; in float64.

    `of_v` is by how much v is moved, and so on.
    """
    groups, rows, channels, pixels = case.groups, case.sets, case.shape[1], math.prod(case.shape[2:])
    x, grad = (tensors[name].detach().double().reshape(rows, -1, channels, pixels) for name in ("x", "grad"))

    def each(value: Tensor) -> Tensor:
        value = value.detach().double()
        value = value.expand(groups, channels) if value.dim() == 1 else value
        return value.repeat_interleave(rows // len(value), 0)[:, None, :, None]

    def in_groups(value: Tensor) -> Tensor:  # means over a group's images and pixels
        return each(value.reshape(groups, -1, channels, pixels).mean((1, 3)))

    gamma, beta = each(tensors["gamma"]), each(tensors["beta"])
    r, d, of_d = torch.ones_like(std), torch.zeros_like(std), torch.zeros_like(std)
    far = mean.abs() if case.statistics else x.abs().reshape(groups, -1, channels, pixels).mean((1, 3))
    if case.renorm:
        memories = [tensors[name].detach().double() for name in RENORM]
        r, d = correction(mean, std, *memories)
        usual_std = memories[1] + (1 - memories[2][:, 1:]) * std
        of_d = (far + memories[0].abs()) / usual_std + d.abs()
    r, d, of_d, m, s = each(r), each(d), each(of_d), each(mean), each(std)
    normal = (x - m) / s
    of_normal = ((x - m).abs() + each(far)) / s + normal.abs()
    u, of_u = r * normal + d, r * of_normal + of_d
    v, of_v = gamma * u + beta, gamma.abs() * (of_u + u.abs()) + beta.abs()
    side = torch.where(v > 0, 1.0, case.slope).double()
    a, of_a = v * side, of_v * abs(side)
    p, of_p, ga, of_ga = a, of_a, grad, grad.abs()
    if case.pixel_norm:
        q = a.square().mean(2, keepdim=True) + case.pixel_eps
        of_root = (a.abs() * of_a).mean(2, keepdim=True) / q + 1  # of its own size
        root = q.sqrt()
        p, of_p = a / root, of_a / root + (a / root).abs() * of_root
        dot = (grad * p).mean(2, keepdim=True)
        of_dot = (grad.abs() * (of_p + p.abs())).mean(2, keepdim=True)
        ga = (grad - p * dot) / root
        of_ga = (grad.abs() + of_p * dot.abs() + p.abs() * of_dot) / root + ga.abs() * of_root
    h, of_h = ga * side, of_ga * abs(side)
    k, of_k = gamma * h, gamma.abs() * (of_h + h.abs())
    dot, of_dot = in_groups(k * normal), in_groups(of_k * normal.abs() + k.abs() * of_normal)
    inner = k - in_groups(k) - normal * dot
    of_inner = of_k + in_groups(of_k) + of_normal * dot.abs() + normal.abs() * of_dot
    if case.statistics:
        inner, of_inner = k, of_k
    of_gamma, of_beta = (of_h * u.abs() + h.abs() * of_u).sum((1, 3)), (of_h + h.abs()).sum((1, 3))
    if case.rows < 0:
        of_gamma, of_beta = of_gamma.sum(0), of_beta.sum(0)
    return {
        "out": (of_p + p.abs()).reshape(case.shape),
        "mean": far,
        "std": std,
        "d x": (r / s * (of_inner + inner.abs())).reshape(case.shape),
        "d gamma": of_gamma,
        "d beta": of_beta,
    }


def check(case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Hold a backend to the definition on a case, in values, types and layout, and return its results."""
    tensors = make(case, dtype, device, seed)
    got = results(case, tensors, backend)
    x = tensors["x"]
    if x.numel():
        for name in {"out", "d x"} & got.keys() if backend != "reference" else {"out"}:
            assert got[name].stride() == x.stride(), f"{name}: the layout of x is not kept"
    hold(case, tensors, got, cut_off=backend == "triton" and device == "cpu")
    return got


def hold(case: Case, tensors: dict[str, Tensor], got: dict[str, Tensor], *, cut_off: bool = False) -> None:
    """Hold results of a case to the definition, in values, types and shapes.

    `cut_off`: Triton's interpreter makes a bfloat16 by cutting a float32 off, where a GPU rounds it.
    """
    dtype = tensors["x"].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def exactly(dtype: torch.dtype) -> dict[str, Tensor]:
        same = {name: value.detach().to(dtype).requires_grad_(value.requires_grad) for name, value in tensors.items()}
        return results(case, same, "reference")

    truth, plain = exactly(torch.float64), exactly(wide)
    sizes = _sizes(case, tensors, truth["mean"], truth["std"]) if tensors["x"].numel() else {}
    assert list(got) == list(truth)
    for name, expected in truth.items():
        value = got[name]
        source = tensors[name.split()[-1]].dtype if name.startswith("d ") else dtype if name == "out" else wide
        assert value.dtype == source and value.shape == expected.shape, name
        assert value.device == tensors["x"].device and value.requires_grad == (name == "out" and bool(case.wants)), name
        if not sizes:
            assert torch.equal(value, expected.to(value.dtype)), name
            continue
        rounding = (plain[name].double() - expected).abs()
        # the sums of a group are behind everything
        doublings = math.log2(max(1, case.shape[0] // case.groups * math.prod(case.shape[2:])))
        allowed = 2 * rounding + (4 + doublings) * torch.finfo(wide).eps * sizes[name]
        if value.dtype != wide:
            limits = torch.finfo(value.dtype)
            unit = limits.eps if cut_off else limits.eps / 2
            allowed = allowed + unit * (expected.abs() + allowed) + limits.smallest_normal * limits.eps
        error = (value.detach().double() - expected).abs()
        worst = (error - allowed).argmax()  # also where it is NaN
        assert (error <= allowed).all(), (
            f"{name}: error {error.flatten()[worst]:.3g}, allowed {allowed.flatten()[worst]:.3g}"
        )


def small(case: Case) -> bool:
    """Whether finite differences over a case end soon, and mean what the gradient means: r and d do not change."""
    return math.prod(case.shape) < 300 and case.renorm != "inside"
