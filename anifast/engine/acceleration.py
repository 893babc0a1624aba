"""What can make a step faster and is off by default: torch.compile of the networks, and CUDA graphs of whole phases."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anifast.errors import AnifastError

#: What torch.compile hands its graphs to.
COMPILER = "inductor"
#: Steps that run as usual before phases are recorded: libraries choose their kernels, optimisers make their state.
WARM_UP = 3

Loss = tuple[Tensor, dict[str, Tensor]]


def compile_nets(nets: Sequence[nn.Module], device: torch.device) -> None:
    """Let torch.compile translate each network when it is first called; parameters keep their names.

    Raises:
        AnifastError: there is no compiler for this device.
    """
    if COMPILER == "inductor":
        if device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise AnifastError('--compile needs Triton on a GPU: pip install "anifast[triton]", or leave it out')
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        if device.type == "cpu" and not any(shutil.which(name) for name in names):
            raise AnifastError(f"--compile needs a C++ compiler, and there is no {' or '.join(names)}: leave it out")
    for net in nets:
        net.compile(backend=COMPILER)


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Turn a failure of torch.compile, which comes with the first steps, into one error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not on or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        what = " ".join(str(error).split("\n\n")[0].split())
        raise AnifastError(f"torch.compile has failed: {what}. Leave --compile out") from error


class Graphs:
    """Whole phases, loss and backward, as CUDA graphs: one launch instead of thousands of small ones.

    A recorded phase reads its inputs from, and leaves its gradients and results in, memory that never moves. So what
    is random or comes from other processes must be among the phase's inputs, computed before it; averaging of
    gradients, the look at their values, and the optimiser come after it and are not recorded. The first steps run as
    usual, on a stream of their own as recording wants it; each phase is then recorded once.

    A phase that leaves its graph for a later one is recorded in the same step as that one, whose gradient would free
    what is recorded if it still ran as usual. So a phase's turns count only where all of the step has finished, also
    those of phases that have run before the one at fault.

    Not yet run on a GPU; the test plays recording on the CPU.

    Args:
        device: a GPU.
        record: runs work once while recording it, and gives what repeats it; for tests.

    Raises:
        AnifastError: not a GPU.
    """

    def __init__(
        self, device: torch.device, record: Callable[[Callable[[], None]], Callable[[], None]] | None = None
    ) -> None:
        if device.type != "cuda" and record is None:
            raise AnifastError("--cuda-graphs needs a GPU; leave it out on the CPU")
        self._record = record or _record
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        #: Steps that all phases have finished, counted by who runs them.
        self.finished = 0
        self._warm: dict[str, int] = {}  # turns of each phase in these
        self._trained: dict[Tensor, None] = {}  # parameters of recorded phases
        self._turns: set[str] = set()  # phases that have run in the step at hand
        self._seen = 0  # steps that were finished before it
        self._recorded: dict[str, tuple[tuple[Tensor, ...], Callable[[], None], Loss, list[Tensor | None]]] = {}

    def run(
        self, name: str, work: Callable[..., Loss], inputs: tuple[Tensor, ...], parameters: Sequence[Tensor] = ()
    ) -> Loss:
        """Do what `work(*inputs)` does: results, gradients, and what it stores.

        Args:
            name: of the phase.
            work: loss and backward; sets the gradients anew.
            inputs: tensors of the same shapes in every step.
            parameters: whose gradients work sets.

        Raises:
            AnifastError: this phase cannot be recorded.
        """
        self._count(name)
        if name in self._recorded:
            held, replay, results, gradients = self._recorded[name]
            for own, new in zip(held, inputs, strict=True):
                own.copy_(new)
            replay()
            if parameters:  # the optimiser may hold other phases' networks too, which only Python would leave out
                for parameter in self._trained:
                    parameter.grad = None
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient  # another phase of the same networks may have put its own there
            return results
        if self._warm[name] < WARM_UP:
            return self._beside(lambda: work(*inputs))
        held = tuple(value.clone() for value in inputs)
        found: list[Loss] = []
        try:
            replay = self._record(lambda: found.append(work(*held)))
        except RuntimeError as error:
            raise AnifastError(
                f"phase {name} cannot be recorded as a CUDA graph: {str(error).splitlines()[0]}. "
                "Leave --cuda-graphs out"
            ) from error
        self._recorded[name] = held, replay, found[0], [parameter.grad for parameter in parameters]
        self._trained.update(dict.fromkeys(parameters))
        replay()  # recording computes nothing
        return found[0]

    def _count(self, name: str) -> None:
        """Note a turn of a phase, and count those of the step before if this is a new one."""
        if self.finished != self._seen:
            for other in self._turns:
                self._warm[other] += 1
            self._turns.clear()
        elif name in self._turns:  # the step before was skipped, or one of its phases has waited
            self._turns.clear()
        self._seen = self.finished
        self._turns.add(name)
        self._warm.setdefault(name, 0)

    def _beside(self, work: Callable[[], Any]) -> Any:
        if self._stream is None:
            return work()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return results


def _record(work: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
