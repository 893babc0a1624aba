"""Reading pictures ahead: threads decode while others are in use; in order, and a few in memory at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from anifast.data.folders import ImageFolder, printable, read_image, resize, to_tensor
from anifast.errors import ImageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    items: Iterable[Item], work: Callable[[Item], Result], pool: Executor, ahead: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Give each item with the future of its work, in order; `ahead` of them are under way."""
    pending: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        pending.append((item, pool.submit(work, item)))
        if len(pending) > ahead:
            yield pending.popleft()
    yield from pending


def image_batches(
    folder: ImageFolder, size: int, batch: int, failed: dict[str, str], *, how: str = "stretch"
) -> Iterator[Tensor]:
    """The pictures of a folder in order, `batch` at a time (the last ones are fewer).

    Args:
        folder: from `scan`.
        size: the side that each is brought to.
        batch: pictures at a time.
        failed: gets name -> reason of those that cannot be read, which are left out.
        how: see `resize`.

    Yields:
        uint8 n,3,size,size.
    """
    workers = max(1, min(4, os.cpu_count() or 1))

    def work(index: int) -> Tensor:
        return to_tensor(resize(read_image(folder.paths[index]), size, how))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    try:
        group: list[Tensor] = []
        for index, future in in_order(range(len(folder)), work, pool, batch + workers):
            try:
                group.append(future.result())
            except ImageError as error:
                failed[folder.names[index]] = str(error).removeprefix(f"{printable(folder.paths[index])}: ")
                continue
            if len(group) == batch:
                yield torch.stack(group)
                group = []
        if group:
            yield torch.stack(group)
    finally:
        pool.shutdown(cancel_futures=True)
