"""Several processes train one model: torchrun starts them, each takes its share of every batch.

    torchrun --nproc-per-node 2 -m anifast train cyclegan --data faces --out runs/faces --batch 2

`batch` is the joined batch of all processes, so settings, schedules and checkpoints mean the same for any number of
them: a run saved by two goes on with one, and a step of two is the step of one on the joined batch. That asks three
things of a system (GANs N' Roses compares the pictures of each process's own part, and only averages gradients):
losses are means over images; what is random is drawn for the joined batch (from seeds and image
numbers, or from a generator that is in the same state everywhere) and shared out; and what outlives a step, such as a
pool of past images, is filled with the joined batch in every process (`gather`), so that each holds the same.

Gradients are averaged here, after backward, and not by DistributedDataParallel. A phase calls its networks several
times before one backward, calls networks that it does not train, and switches requires_grad from phase to phase; the
gradient penalties of other systems differentiate twice. DDP allows none of these without wrapping each phase anew. It
would also broadcast buffers and keep a second set of buckets. What it would hide is the communication behind the
backward pass; here a bucket travels while the next one is gathered.

Numbers that decide what happens next (stop, failed, the same settings?) go through gloo on the CPU, also when
gradients go through NCCL: a GPU need not be waited for.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from anifast.engine.precision import pick_device
from anifast.errors import AnifastError, ToldElsewhere

T = TypeVar("T")

#: Gradients are averaged in pieces of about so many bytes.
BUCKET = 32 * 2**20
#: The first process may pack a large folder while the others wait.
_PATIENCE = timedelta(hours=1)
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Team:
    """The processes of a run, seen from one of them. Alone, all of this costs and does nothing.

    What is called `collective` must be called by all of them, in the same order.

    Args:
        device: where this process computes.
        rank: its number, from 0. The first one writes files and talks.
        world: how many there are.
    """

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def portion(self, batch: int) -> int:
        """How many images of a joined batch are this process's.

        Raises:
            AnifastError: they cannot be shared out evenly.
        """
        if batch % self.world:
            raise AnifastError(
                f"setting batch: {batch} cannot be shared out evenly over {self.world} processes; "
                f"take a multiple of {self.world} (it is the batch of all processes together)"
            )
        return batch // self.world

    def share(self, joined: Tensor) -> Tensor:
        """This process's part of a joined batch."""
        if self.world == 1:
            return joined
        count = self.portion(len(joined))
        return joined[self.rank * count : (self.rank + 1) * count]

    def gather(self, mine: Tensor) -> Tensor:
        """The joined batch of which every process has an equal part (no gradient); collective."""
        if self.world == 1:
            return mine
        mine = mine.detach().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        with _reaching():
            dist.all_gather(parts, mine)
        return torch.cat(parts)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, which all pass the same shapes; collective."""
        if self.world == 1:
            return
        travelling: list[tuple[list[Tensor], Tensor, dist.Work | None]] = []
        with _reaching():
            for bucket in _buckets(tensors, BUCKET):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                travelling.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
            for bucket, flat, work in travelling:
                if work is not None:
                    work.wait()
                flat /= self.world
                for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values; collective."""
        if self.world > 1:
            with _reaching():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, 0)
                    tensor.copy_(whole)

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; collective."""
        if self.world == 1:
            return number
        found = torch.tensor(number)
        with _reaching():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def check_same(self, what: Any, name: str) -> None:
        """Compare plain values; collective.

        Raises:
            AnifastError: the processes differ in them.
        """
        if self.world == 1:
            return
        found: list[Any] = [None] * self.world
        with _reaching():
            dist.all_gather_object(found, what)
        others = [rank for rank, value in enumerate(found) if value != found[0]]
        if others:
            raise self.told(
                AnifastError(
                    f"process {others[0]} differs from process 0 in {name}: all need the same command and files"
                )
            )

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` in every process; if it fails in one, it fails in all; collective.

        Raises:
            ToldElsewhere: it failed in another process, which raises the reason.
        """
        if self.world == 1:
            return work()
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # also Ctrl-C: the others must not wait for this process
            failure = error
        teller = self.world - self.largest(0 if failure is None else self.world - self.rank)
        if failure is not None and (teller == self.rank or not isinstance(failure, AnifastError)):
            raise failure
        if teller < self.world:
            raise ToldElsewhere(f"process {teller} has failed")
        return result  # type: ignore[return-value]

    def lead(self, work: Callable[[], object]) -> None:
        """Run `work` in the first process only, while the others wait; collective.

        Raises:
            ToldElsewhere: it failed there.
        """
        self.together(lambda: work() if self.first else None)

    def in_turn(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process, then in the others: they find what it has put into caches; collective."""
        if self.world == 1:
            return work()
        done = self.together(lambda: [work()] if self.first else [])
        return (done + self.together(lambda: [] if self.first else [work()]))[0]

    def told(self, error: AnifastError) -> AnifastError:
        """An error that all processes meet at once, for `raise`: the first one tells it."""
        return error if self.first else ToldElsewhere(str(error))


def alone(device: torch.device | None = None) -> Team:
    """A team of one, on the CPU if nothing else is said."""
    return Team(device or torch.device("cpu"))


@contextmanager
def team(device: str | None) -> Iterator[Team]:
    """The processes that torchrun has started, connected while the block runs; alone without torchrun.

    Args:
        device: "cpu" or "cuda"; None: GPUs if there are any. With torchrun each process takes the GPU of its number
            on its machine. Without, as in `pick_device`.

    Raises:
        AnifastError: no such device, or the other processes cannot be reached.
    """
    world = int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHED) else 1
    if world == 1:
        yield Team(pick_device(device))
        return
    rank = int(os.environ["RANK"])
    chosen = _own_device(device, int(os.environ.get("LOCAL_RANK", rank)))
    if not dist.is_available():
        raise AnifastError("this torch was built without torch.distributed: train in one process, without torchrun")
    # Its functions take the group that stands when they are imported as a default, which torch does lazily in the first
    # steps: the group would then outlive its end, and its threads the interpreter (abort at exit).
    importlib.import_module("torch.distributed.nn.functional")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise AnifastError(f"process {rank} cannot reach the others: {str(error).splitlines()[0]}") from error
    found = Team(chosen, rank, world)
    try:
        yield found
        found.largest(0)  # nobody hangs up while another still speaks
    finally:
        with suppress(RuntimeError):  # the others may be gone
            dist.destroy_process_group()


def _own_device(name: str | None, local: int) -> torch.device:
    """The device of process `local` of this machine."""
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in (None, "cuda"):
        pick_device(name)
        raise AnifastError(f"device {name!r}: with torchrun each process takes a GPU of its own; leave --device out")
    if local >= torch.cuda.device_count():
        raise AnifastError(
            f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()}. Start as many "
            "processes (torchrun --nproc-per-node), or use --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _buckets(tensors: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type, each of at least one tensor and up to about `limit` bytes."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if bucket and (held + size > limit or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += size
    if bucket:
        yield bucket


def state_tensors(nets: Sequence[torch.nn.Module]) -> list[Tensor]:
    """All parameters and buffers, detached."""
    return [value for net in nets for value in net.state_dict().values()]


@contextmanager
def _reaching() -> Iterator[None]:
    """Turn the error of a broken connection into one that says what it means."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise AnifastError(
            f"another process of this run has ended or does not answer ({str(error).splitlines()[0]}); its own message "
            "says why. --resume goes on from the last checkpoint"
        ) from error
