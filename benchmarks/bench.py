"""How an op is described for measuring, what a measured pass is, and the check that comes before any timing.

An op is described once, in benchmarks/ops/bench_<op>.py, as a subclass of `OpBench`: its cases, the tensors of a case,
the variants that compute it, the bytes it must move (and the operations, where they bind) and the aims it is held to.
Everything else follows from that:
`run.py` times it, pytest-benchmark shows it side by side, `report.py` tabulates it.
"""

from __future__ import annotations

import gc
import importlib
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast import backends
from benchmarks.results import WORKS
from benchmarks.timing import saved_for_backward

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("contiguous", "channels_last")

Tensors = dict[str, Tensor | None]
Results = list[Tensor | None]
Call = Callable[[], Results]


@dataclass(frozen=True)
class Case:
    """One set of inputs: an entry of benchmarks/shapes.py in a dtype and layout."""

    name: str
    form: str
    shape: tuple[int, ...]
    detail: Any
    dtype: str = "float32"
    layout: str = "contiguous"
    quick: bool = False

    @property
    def id(self) -> str:
        """Unique name, for selection and for pytest."""
        extra = [part for part, usual in ((self.dtype, "float32"), (self.layout, "contiguous")) if part != usual]
        return "-".join([self.name, *extra])


@dataclass(frozen=True)
class Variant:
    """One way to compute the op.

    Attributes:
        function: takes the case's tensors by keyword; None if it cannot run here.
        missing: why it cannot run, for all works (key "") or one of them.
        compiled: it is the function passed through torch.compile; that happens when it is first asked for.
    """

    function: Callable[..., Tensor] | None
    missing: Mapping[str, str] = field(default_factory=dict)
    compiled: bool = False

    def why_missing(self, work: str) -> str | None:
        """The reason why this cannot do `work`, or None."""
        return self.missing.get("", self.missing.get(work))


@dataclass(frozen=True)
class Aim:
    """A ratio the op is held to: the geometric mean over the cases of one dtype and layout on one kind of device.

    Attributes:
        against: a rival or bound, or several rivals, of which the fastest in each row counts.
        forms: only these; empty: all.
        cases: only cases of these names, without dtype and layout; empty: all.
        each: the smallest ratio counts, not the mean.
    """

    title: str
    device: str
    against: str | tuple[str, ...]
    at_least: float
    works: tuple[str, ...]
    forms: tuple[str, ...] = ()
    percent: bool = False
    cases: tuple[str, ...] = ()
    dtype: str = "float32"
    layout: str = "contiguous"
    each: bool = False


class OpBench(ABC):
    """The description of one op."""

    name: str
    #: form -> its title in tables, in their order
    forms: Mapping[str, str]
    #: tensors with a gradient; the first is the one that the double backward differentiates by
    leaves: tuple[str, ...]
    #: keys of `variants` -> "ours", "rival", or "strategy": a way that ours chooses among, asked for by name
    roles: Mapping[str, str]
    aims: tuple[Aim, ...] = ()
    #: bounds beside `clone`: those that `bounds` has calls for, and "matrix" where `operations` counts some
    limits: tuple[str, ...] = ()

    @abstractmethod
    def cases(self, device: str) -> list[Case]:
        """All cases for "cpu" or "cuda"."""

    @abstractmethod
    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        """Random inputs of a case; None for an argument it does not have."""

    @abstractmethod
    def reference(self, case: Case) -> Callable[..., Tensor]:
        """What all variants must compute, right for float64 tensors too."""

    @abstractmethod
    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        """Name -> variant, for all of `roles`. Bounds need no variant: see `copies`, `bounds` and `operations`."""

    @abstractmethod
    def traffic(self, case: Case, work: str) -> int:
        """The fewest bytes that the work must read and write."""

    @abstractmethod
    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        """Tensors whose clones write what the work must write: the bound `clone`."""

    def bounds(self, case: Case, work: str, tensors: Tensors, grad: Tensor) -> dict[str, Call]:
        """A call for each of `limits`: a part of the work that nothing can do without."""
        return {}

    def operations(self, case: Case, work: str) -> int:
        """Floating-point operations of the work, 2 for a multiplication and its sum; 0 where it is bound by bytes.

        The bound `matrix` is the time that they take at the rate of a large matrix product of the case's dtype.
        """
        return 0


def our_backends(op: str, device: str, call: Callable[[str], Callable[..., Tensor]]) -> dict[str, Variant]:
    """The kernels that exist for `op`, where they can run, else with the reason; `call(backend)` gives the function."""
    variants = {}
    for backend in backends.BACKENDS:
        if backend != "reference":
            reason = backends.why_not(op, backend, device)
            variants[backend] = Variant(None if reason else call(backend), {"": reason} if reason else {})
    return variants


def in_layout(tensors: Tensors, case: Case, *names: str) -> Tensors:
    """`tensors`, those called `names` in the memory layout of the case."""
    if case.layout == "channels_last":
        for name in names:
            tensor = tensors[name]
            tensors[name] = None if tensor is None else tensor.contiguous(memory_format=torch.channels_last)
    return tensors


def compiled(function: Callable[..., Tensor]) -> Variant:
    """torch.compile of `function` for exactly the shapes of the case."""
    return Variant(function, {"double_backward": "torch.compile has no double backward"}, compiled=True)


def all_benches() -> dict[str, OpBench]:
    """Op name -> its description, from the files benchmarks/ops/bench_*.py."""
    files = sorted((Path(__file__).parent / "ops").glob("bench_*.py"))
    found = [importlib.import_module(f"benchmarks.ops.{path.stem}").BENCH for path in files]
    return {bench.name: bench for bench in found}


class WrongResult(AssertionError):
    """A variant does not compute what the reference computes."""


class Prepared:
    """A case with its inputs made and its variants built: gives the calls to time, and checks them."""

    def __init__(self, bench: OpBench, case: Case, device: str) -> None:
        self.bench, self.case, self.device = bench, case, device
        generator = torch.Generator(device).manual_seed(zlib.crc32(case.id.encode()))
        self.tensors = bench.tensors(case, device, generator)
        self.reference = bench.reference(case)
        with torch.no_grad():
            out = self.reference(**self.tensors)
        first = self.tensors[bench.leaves[0]]
        assert first is not None

        def random_like(like: Tensor) -> Tensor:
            values = torch.empty_like(like, dtype=torch.float32).normal_(generator=generator)
            return values.to(like.dtype)

        # the upstream gradient, and the direction that the input's gradient is weighted with
        self.grad, self.second = random_like(out), random_like(first)
        self.variants = bench.variants(case, device)
        self._compiled: dict[str, Callable[..., Tensor]] = {}
        self._truth: dict[str, tuple[Results, Results]] = {}

    def function(self, name: str) -> Callable[..., Tensor]:
        """What computes the variant `name`. It is one that can run here."""
        variant = self.variants[name]
        assert variant.function is not None, f"{name}: {variant.missing}"
        if not variant.compiled:
            return variant.function
        if name not in self._compiled:
            if not self._compiled:
                # what other cases compiled must not count as recompilations of this one
                torch.compiler.reset()
            self._compiled[name] = torch.compile(variant.function, dynamic=False)
        return self._compiled[name]

    def call(self, work: str, name: str) -> Call:
        """A call without arguments that does `work` by the variant `name` and returns its results as a list."""
        return self._call(work, self.function(name))

    def _call(self, work: str, function: Callable[..., Tensor]) -> Call:
        return _call(work, function, self.tensors, self.bench.leaves, self.grad, self.second)

    def bound(self, work: str) -> tuple[Call, int]:
        """The cloning of what the work must write, and the bytes that moves."""
        copies = self.bench.copies(self.case, work, self.tensors, self.grad, self.second)

        def clone() -> Results:
            return [tensor.clone() for tensor in copies]

        return clone, 2 * sum(tensor.nbytes for tensor in copies)

    def bounds(self, work: str) -> dict[str, Call]:
        """The calls of the bounds that the op has of its own."""
        return self.bench.bounds(self.case, work, self.tensors, self.grad)

    def kept(self, name: str) -> int:
        """Bytes that a forward by the variant `name` keeps for its backward, beyond the tensors of the case."""
        given = _with_gradients(self.tensors, self.bench.leaves)[0]
        return saved_for_backward(lambda: self.function(name)(**given), [t for t in given.values() if t is not None])

    def check(self, work: str, name: str) -> None:
        """Compare every result of `work` by the variant `name` with the reference in float64.

        The largest error may be twice that of the reference in the case's own dtype, plus a floor of one rounding to
        that dtype and eight in float32 of the largest value. A sum of n terms may be added up one term after the
        other in float32, which errs by up to about n / 2 roundings of a term: torch.compile does that. Where the terms
        are a convolution's products, of either sign, the sum is about sqrt(n) terms large, and that is sqrt(n) / 2
        roundings of it.

        Raises:
            WrongResult: an error beyond that, a NaN, or a wrong shape or dtype.
        """
        if work not in self._truth:
            wide: Tensors = {name: None if t is None else t.double() for name, t in self.tensors.items()}
            grads = self.grad.double(), self.second.double()
            with torch.set_grad_enabled(work != "forward"):
                exact = _call(work, self.reference, wide, self.bench.leaves, *grads)()
                plain = self._call(work, self.reference)()
            self._truth[work] = _detached(exact), _detached(plain)
        call = self.call(work, name)
        with torch.set_grad_enabled(work != "forward"):
            if self.variants[name].compiled:  # poisoning would make it compile once more
                results = call()
            else:
                with _poisoned_allocations():
                    results = call()
        for index, (result, truth, usual) in enumerate(zip(_detached(results), *self._truth[work], strict=True)):
            problem = self._compare(result, truth, usual)
            if problem:
                raise WrongResult(f"{self.case.id}, {work}, result {index}: {problem}")

    def _compare(self, result: Tensor | None, exact: Tensor | None, plain: Tensor | None) -> str | None:
        """What is wrong with a result, or None. A gradient that is zero everywhere may be given as None."""
        like = next((tensor for tensor in (plain, exact, result) if tensor is not None), None)
        if like is None or like.numel() == 0:
            return None
        if result is not None and plain is not None and (result.shape, result.dtype) != (plain.shape, plain.dtype):
            return f"{tuple(result.shape)} {result.dtype}, expected {tuple(plain.shape)} {plain.dtype}"
        exact = torch.zeros_like(like, dtype=torch.float64) if exact is None else exact
        terms = max(self.second.numel(), self.grad.numel()) // like.numel()
        rounding = torch.finfo(torch.float32).eps
        # each value of a map or a weight is a sum of so many products; sums over pixels err as the map does
        values = like.numel() if like.dim() == 4 else self.grad.numel()
        products = self.bench.operations(self.case, "forward") // 2 // values if like.dim() > 1 else 0
        summing = (8 + math.sqrt(products) / 2) * rounding
        floor = (summing + torch.finfo(self.grad.dtype).eps) * float(exact.abs().max())
        if terms > 1:
            floor += terms / 2 * rounding
        error, allowed = _distance(result, exact), 2 * _distance(plain, exact) + floor
        return None if error <= allowed else f"error {error:.3g}, allowed {allowed:.3g}"

    def forget_truth(self) -> None:
        """Drop the float64 results."""
        self._truth.clear()
        gc.collect()


def _detached(results: Results) -> Results:
    return [None if tensor is None else tensor.detach() for tensor in results]


def _distance(value: Tensor | None, exact: Tensor) -> float:
    """The largest difference, in pieces that stay in the cache; NaN if there is one."""
    if value is None:
        return float(exact.abs().max())
    pieces = zip(value.reshape(-1).split(1 << 19), exact.reshape(-1).split(1 << 19), strict=True)
    return float(torch.stack([(piece.double() - truth).abs_().max() for piece, truth in pieces]).max())


def _with_gradients(tensors: Tensors, leaves: tuple[str, ...]) -> tuple[Tensors, list[Tensor]]:
    """The tensors of a case, those called `leaves` with a gradient, and these alone in their order."""
    given = dict(tensors)
    wanted: list[Tensor] = []
    for name in leaves:
        tensor = given[name]
        if tensor is not None:
            given[name] = tensor.detach().requires_grad_()
            wanted.append(given[name])  # type: ignore[arg-type]
    return given, wanted


def _call(
    work: str, function: Callable[..., Tensor], tensors: Tensors, leaves: tuple[str, ...], grad: Tensor, second: Tensor
) -> Call:
    if work == "forward":
        return lambda: [function(**tensors)]
    given, wanted = _with_gradients(tensors, leaves)
    if work == "forward_backward":

        def forward_backward() -> Results:
            out = function(**given)
            return [out, *torch.autograd.grad(out, wanted, grad)]

        return forward_backward
    if work != "double_backward":
        raise ValueError(f"unknown work {work!r}; there are {', '.join(WORKS)}")
    upstream = grad.detach().requires_grad_()
    by = [upstream, *wanted]

    def double_backward() -> Results:
        out = function(**given)
        (first,) = torch.autograd.grad(out, wanted[0], upstream, create_graph=True)
        return [out, first, *torch.autograd.grad(first, by, second, allow_unused=True)]

    return double_backward


@contextmanager
def _poisoned_allocations() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element nobody wrote cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
