"""Byte buffers that are used again, because a fresh large one costs more than decoding into it.

The kernel hands out zeroed pages on first touch: about half a second per gigabyte of fresh
memory, as much as a fast codec needs. So the memory of a dead array goes to the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from daskdml.units import bytes_text

__all__ = ["BufferPool", "empty", "free_bytes", "give_back", "set_limit", "trim"]

SMALLEST = 1 << 20
"""Arrays below this many bytes are not worth pooling."""

SLACK = 1.25
"""A request may be served by a buffer up to this many times as large."""

_ALIGN = 64


def _fresh(nbytes: int) -> np.ndarray:
    """Bytes of a mapping of their own, which the system has back as soon as they are dropped.

    The C library would keep freed memory of this size for itself, up to 64 MB for each thread.
    """
    if os.name != "posix":
        return np.empty(nbytes, np.uint8)
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory is left for a buffer of {bytes_text(nbytes)}") from error
    with contextlib.suppress(AttributeError, OSError):  # where the kernel has huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


class _Lease:
    """Owns a raw buffer while arrays look into it, and gives it back when the last one dies."""

    __slots__ = ("__array_interface__", "_pool", "_raw")

    def __init__(self, pool: BufferPool, raw: np.ndarray, nbytes: int) -> None:
        self._pool = pool
        self._raw = raw
        address = raw.__array_interface__["data"][0]
        self.__array_interface__ = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address + -address % _ALIGN, False),
        }

    def __del__(self) -> None:
        self._pool._give_back(self._raw)


class BufferPool:
    """A bounded set of free buffers, shared by all threads.

    Parameters
    ----------
    limit : int
        Most bytes kept free; the buffer that lay idle longest is dropped first.

    Examples
    --------
    >>> pool = BufferPool(limit=1 << 24)
    >>> a = pool.empty((1024, 512), "f4")
    >>> pool.free_bytes()
    0
    >>> del a
    >>> pool.free_bytes() > 0
    True
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free: list[np.ndarray] = []
        # A lease can die inside any allocation, also one made under the lock: it must not wait.
        self._returned: deque[np.ndarray] = deque()

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """Give an uninitialised C-contiguous array; its memory returns here when it dies.

        Parameters
        ----------
        shape : int or sequence of int
            Shape of the array.
        dtype : dtype
            Any dtype without Python objects.

        Returns
        -------
        ndarray
            Views of it keep the memory, too.
        """
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        nbytes = math.prod(dims) * dtype.itemsize
        if nbytes < SMALLEST:
            return np.empty(dims, dtype)
        raw = self._take(nbytes + _ALIGN)
        return np.asarray(_Lease(self, raw, nbytes)).view(dtype).reshape(dims)

    def free_bytes(self) -> int:
        """Bytes that lie free, ready to be used again."""
        self._settle()
        with self._lock:
            return sum(raw.nbytes for raw in self._free)

    def set_limit(self, limit: int) -> None:
        """Set the most bytes kept free, and drop what exceeds it."""
        self._settle()
        with self._lock:
            self._limit = limit
            self._shrink()

    def trim(self) -> None:
        """Drop all free buffers."""
        self._settle()
        with self._lock:
            self._free.clear()

    def _take(self, nbytes: int) -> np.ndarray:
        self._settle()
        with self._lock:
            fits = [
                (raw.nbytes, i)
                for i, raw in enumerate(self._free)
                if nbytes <= raw.nbytes <= SLACK * nbytes
            ]
            if fits:
                return self._free.pop(min(fits)[1])
        return _fresh(nbytes)

    def _give_back(self, raw: np.ndarray) -> None:
        self._returned.append(raw)
        self._settle()

    def _settle(self) -> None:
        """Move returned buffers to the free list, unless someone is at it: they will."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    self._free.append(self._returned.popleft())
                self._shrink()
            finally:
                self._lock.release()

    def _shrink(self) -> None:
        kept = sum(raw.nbytes for raw in self._free)
        while kept > self._limit:
            kept -= self._free.pop(0).nbytes


_POOL = BufferPool(limit=256 << 20)

empty = _POOL.empty
free_bytes = _POOL.free_bytes
set_limit = _POOL.set_limit
trim = _POOL.trim

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def give_back() -> None:
    """Return free memory to the operating system, where the C library can."""
    trim()
    if _malloc_trim is not None:
        _malloc_trim(0)
