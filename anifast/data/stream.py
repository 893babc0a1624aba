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


def read_batches(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    batch: int,
    unreadable: Callable[[Item, ImageError], object],
    workers: int | None = None,
) -> Iterator[list[tuple[Item, Result]]]:
    """Pictures read ahead and in order, `batch` at a time (the last ones are fewer), each with what it was read of.

    Args:
        items: what is read, such as paths.
        read: gives the picture of one, or raises ImageError; it runs in threads.
        batch: pictures at a time.
        unreadable: is told of those that cannot be read, which are left out.
        workers: threads; None: as many as the machine has cores, at most 4.
    """
    count = workers or max(1, min(4, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(count, thread_name_prefix="pictures")
    group: list[tuple[Item, Result]] = []
    try:
        for item, future in in_order(items, read, pool, batch + count):
            try:
                group.append((item, future.result()))
            except ImageError as error:
                unreadable(item, error)
                continue
            if len(group) == batch:
                yield group
                group = []
        if group:
            yield group
    finally:
        pool.shutdown(cancel_futures=True)


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

    def work(index: int) -> Tensor:
        return to_tensor(resize(read_image(folder.paths[index]), size, how))

    def unreadable(index: int, error: ImageError) -> None:
        failed[folder.names[index]] = str(error).removeprefix(f"{printable(folder.paths[index])}: ")

    for group in read_batches(range(len(folder)), work, batch, unreadable):
        yield torch.stack([pixels for _, pixels in group])
