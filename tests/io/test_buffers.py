"""Reused byte buffers."""

from __future__ import annotations

import gc
import pickle
import threading

import numpy as np
import pytest

from daskdml.io import buffers
from daskdml.io.buffers import SMALLEST, BufferPool

MB = 1 << 20


def address(array: np.ndarray) -> int:
    """Give where an array's memory begins."""
    return array.__array_interface__["data"][0]


def test_memory_of_a_dead_array_serves_the_next():
    """A request after the death of an equal array gets the same memory."""
    pool = BufferPool(64 * MB)
    a = pool.empty((4, MB), "u1")
    first = address(a)
    del a
    assert address(pool.empty(MB, "f4")) == first


def test_views_keep_the_memory():
    """While a view lives, nobody else gets its memory; the values stay."""
    pool = BufferPool(64 * MB)
    a = pool.empty((2, MB), "f4")
    a[:] = 7
    view = a[1, 5:].T
    del a
    gc.collect()
    assert pool.free_bytes() == 0
    other = pool.empty((2, MB), "f4")
    other[:] = 0
    assert (view == 7).all()
    del view
    assert pool.free_bytes() > 0


def test_a_request_takes_at_most_a_quarter_more():
    """A buffer serves requests down to 0.8 of its size, smaller ones get another."""
    pool = BufferPool(64 * MB)
    a = pool.empty(10 * MB, "u1")
    first = address(a)
    del a
    b = pool.empty(6 * MB, "u1")
    assert address(b) != first
    c = pool.empty(9 * MB, "u1")
    assert address(c) == first


def test_the_free_list_is_bounded():
    """More than the limit is never kept free, and trim() drops all."""
    pool = BufferPool(10 * MB)
    arrays = [pool.empty(4 * MB, "u1") for _ in range(5)]
    del arrays
    assert 0 < pool.free_bytes() <= 10 * MB
    pool.set_limit(5 * MB)
    assert pool.free_bytes() <= 5 * MB
    pool.trim()
    assert pool.free_bytes() == 0


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "?", "<U7"])
@pytest.mark.parametrize("shape", [0, 3, (0, 5), (MB, 3), (3, MB)])
def test_arrays_are_what_numpy_gives(shape, dtype):
    """Shape, dtype, order, alignment and writability are those of numpy.empty."""
    a, b = buffers.empty(shape, dtype), np.empty(shape, dtype)
    assert (a.shape, a.dtype, a.flags.c_contiguous) == (b.shape, b.dtype, True)
    assert a.flags.writeable and a.flags.aligned
    if a.nbytes >= SMALLEST:
        assert address(a) % 64 == 0


def test_pooled_arrays_pickle_as_arrays():
    """A pickle holds the values, not the pool."""
    a = buffers.empty(MB, "f4")
    a[:] = np.arange(MB)
    assert np.array_equal(pickle.loads(pickle.dumps(a, protocol=5)), a)


def test_threads_share_the_pool():
    """Threads that fill arrays at the same time never see each other's values."""
    pool = BufferPool(64 * MB)
    wrong = []

    def work(mark: int) -> None:
        for _ in range(50):
            a = pool.empty(MB, "u1")
            a[:] = mark
            view = a[::1000]
            del a
            if not (view == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert pool.free_bytes() <= 64 * MB


def test_an_array_may_die_inside_the_pool():
    """A lease that the garbage collector ends during a request does not block it."""
    pool = BufferPool(64 * MB)
    with pool._lock:  # as if a request were at work in this very thread
        cycle: list[object] = [pool.empty.__self__._returned]
        lease = np.asarray(_leased(pool))
        cycle.append(lease)
        cycle.append(cycle)
        del lease, cycle
        gc.collect()
    assert pool.free_bytes() > 0


def _leased(pool: BufferPool) -> np.ndarray:
    return np.asarray(buffers._Lease(pool, np.empty(2 * MB, "u1"), MB))


def test_no_memory_is_a_memory_error():
    """More than the machine can map is refused as NumPy refuses it."""
    with pytest.raises(MemoryError):
        buffers.empty(1 << 50, "u1")
