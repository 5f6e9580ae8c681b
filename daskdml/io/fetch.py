"""Reading many objects of a remote store side by side, in order and within bounds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import zarr
from zarr.core.sync import _get_loop

__all__ = ["in_order", "width", "within_limits"]

T = TypeVar("T")

FETCH_BYTES = 64_000_000
"""Bytes that are on their way at the same time, where chunks are small."""

FEWEST = 4
"""Chunks that are on their way at the same time, however large they are."""

PATIENCE = 60.0
SLOWEST = 100_000
"""Seconds, and bytes per second beyond them, after which a chunk has taken too long."""


def width(nbytes: int) -> int:
    """Give how many chunks of so many bytes are fetched at the same time.

    Zarr's setting ``async.concurrency`` (10, or the environment's ``ZARR_ASYNC__CONCURRENCY``) is
    the most; memory bounds it for large chunks.

    Examples
    --------
    >>> width(16_000_000), width(1_000)
    (4, 10)
    """
    most = int(zarr.config.get("async.concurrency") or 1)
    return max(min(most, max(FETCH_BYTES // max(nbytes, 1), FEWEST)), 1)


async def within_limits(work: Coroutine[Any, Any, T], nbytes: int) -> T:
    """Await a request for about so many bytes; one that crawls ends in `TimeoutError`."""
    seconds = PATIENCE + nbytes / SLOWEST
    try:
        got = await asyncio.wait_for(_ended(work), seconds)
        if isinstance(got, Exception):
            try:
                raise got
            finally:
                del got  # which holds this frame
        return got
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"not whole after {seconds:.0f} s") from error


async def _ended(work: Coroutine[Any, Any, T]) -> T | Exception:
    """Give the result, or the error: asyncio logs what a task raises when nobody asks any more."""
    try:
        return await work
    except Exception as error:
        return error


def in_order(
    fetches: Sequence[Callable[[], Coroutine[Any, Any, T]]], width: int
) -> Iterator[T | Exception]:
    """Run coroutines on Zarr's loop, so many at a time; give results or errors in their order.

    At most `width` results are in memory, the one given out among them.
    """
    loop, todo = _get_loop(), iter(fetches)
    waiting: deque[Future[T | Exception]] = deque()

    def start() -> None:
        for make in todo:
            waiting.append(asyncio.run_coroutine_threadsafe(_ended(make()), loop))
            return

    try:
        for _ in range(width):
            start()
        while waiting:
            got = waiting.popleft().result()
            yield got
            del got
            start()
    finally:
        for future in waiting:
            future.cancel()
