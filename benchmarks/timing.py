"""Interleaved timing of several calls in one process, the memory that a call takes, and the rate of matrix products."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Lower quartile, upper quartile and minimum in seconds of one call, over `count` samples."""

    p25: float
    p75: float
    minimum: float
    count: int

    @staticmethod
    def of(samples: list[float]) -> Timing:
        """The statistics of some samples; quartiles are values that were measured."""
        ordered = sorted(samples)
        last = len(ordered) - 1
        return Timing(ordered[last // 4], ordered[math.ceil(3 * last / 4)], ordered[0], len(ordered))


def steady_allocator() -> bool:
    """Fix when glibc takes memory from the system and gives it back; return whether that was possible.

    By default it raises both limits with every large block that is freed, so that the same call finds its pages mapped
    or not depending on what ran before, at up to three times the time. Here they stand from the start where they end
    up in any process that has freed a block of 32 MiB: larger blocks are always mapped afresh, and the top of the heap
    is given back once 64 MiB of it are free.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 64 << 20))


class HostClock:
    """Wall-clock time of calls on the CPU."""

    #: a sample lasts at least this long, by repeating short calls
    shortest = 100e-6

    def __call__(self, call: Call, repeat: int) -> float:
        """Seconds for one call, over `repeat` of them. The last result is freed after the clock was read."""
        start = time.perf_counter()
        for _ in range(repeat):
            result = call()
        end = time.perf_counter()
        del result
        return (end - start) / repeat


class DeviceClock:
    """Time between two events on the current CUDA stream, with the L2 cache flushed before."""

    #: no repeats, which would read from the cache
    shortest = 0.0

    def __init__(self, flush_bytes: int = 256 << 20) -> None:
        self._flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda")
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call, repeat: int) -> float:
        """Seconds for one call. The flush still runs while the host queues the call, as in a busy training step."""
        self._flush.zero_()
        self._start.record()
        for _ in range(repeat):
            result = call()
        self._end.record()
        torch.cuda.synchronize()
        del result
        return float(self._start.elapsed_time(self._end)) * 1e-3 / repeat


Clock = HostClock | DeviceClock


def clock_for(device: str) -> Clock:
    """The clock for "cpu" or "cuda"."""
    return DeviceClock() if device == "cuda" else HostClock()


def interleave(
    calls: dict[str, Call], clock: Clock, *, seconds: float, rounds: tuple[int, int] = (7, 201)
) -> dict[str, Timing]:
    """Time all calls in turn, in rounds of A B C, C A B, B A C, ...

    All are warmed up, by three calls or 0.2 s, before any is timed. Whatever disturbs the machine then meets all of
    them alike. Each round has an order of its own (always the same ones), so that none gets the cache and the pages
    of the same other one each time, and short calls are repeated equally often.

    Args:
        calls: name -> call; results are fresh in each call and freed alike.
        clock: see `clock_for`.
        seconds: for all rounds together, within the limits of `rounds`.
        rounds: fewest and most samples of each call; 3 are enough where a round takes over a second.
    """
    for call in calls.values():
        warm = time.perf_counter() + 0.2
        for _ in range(3):
            clock(call, 1)
            if time.perf_counter() > warm:
                break
    once = {name: clock(call, 1) for name, call in calls.items()}
    repeat = min(1000, max(1, math.ceil(clock.shortest / max(min(once.values()), 1e-9))))
    round_seconds = max(sum(once.values()) * repeat, 1e-9)
    fewest = min(3, rounds[0]) if round_seconds > 1.0 else rounds[0]
    count = min(max(int(seconds / round_seconds), fewest), rounds[1])
    names, orders = list(calls), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(count):
            orders.shuffle(names)
            for name in names:
                samples[name].append(clock(calls[name], repeat))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(values) for name, values in samples.items()}


def memory(call: Call, device: str) -> tuple[int, int]:
    """(peak, held) bytes that a call allocates above what was there: at its highest, and with its result still alive.

    On the CPU this is what torch's allocator reports to its profiler, so work buffers from elsewhere are not seen.
    """
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        peak, held = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
        del result
        return peak, held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    del result
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    peak = held = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak, held


def own_memory() -> int | None:
    """Bytes of memory that this process has for itself: resident pages that no file backs (RssAnon of Linux).

    None where the system does not tell.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return kilobytes[0] * 1024 if kilobytes else None


def highest_own_memory(call: Call, every: float = 1e-3) -> int | None:
    """The highest `own_memory` from before a call to its end, looked at every so many seconds beside it."""
    begin, ended = own_memory(), threading.Event()
    if begin is None:
        return None
    seen = [begin]

    def look() -> None:
        while not ended.wait(every):
            seen.append(own_memory() or 0)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        result = call()
        seen.append(own_memory() or 0)
        del result
    finally:
        ended.set()
        thread.join()
    return max(seen)


def saved_for_backward(call: Call, given: Iterable[Tensor]) -> int:
    """Bytes that a call keeps for its backward: whole storages, each counted once, without those of `given`."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        return kept.setdefault(storage.data_ptr(), storage)

    def unpack(storage: torch.UntypedStorage) -> Tensor:
        raise NotImplementedError("what was kept is only counted")

    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = call()
    del result
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in known)


@dataclass(frozen=True)
class MatrixProduct:
    """A large matrix product of one dtype by torch.mm: the rate that arithmetic can reach."""

    operations: int
    timing: Timing

    @staticmethod
    def measure(dtype: torch.dtype, device: str, clock: Clock, seconds: float) -> MatrixProduct:
        """2048 x 2048 x 2048 on a CPU, 8192 x 8192 x 8192 on a GPU."""
        side = 8192 if device == "cuda" else 2048
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return MatrixProduct(2 * side**3, interleave({"mm": lambda: a @ b}, clock, seconds=seconds)["mm"])

    @property
    def rate(self) -> float:
        """Operations a second, 2 for a multiplication and its sum."""
        return self.operations / self.timing.p25

    def time_of(self, operations: int) -> Timing:
        """The time that so many operations take at this rate."""
        part, its = operations / self.operations, self.timing
        return Timing(its.p25 * part, its.p75 * part, its.minimum * part, its.count)
