"""What runs inside a task: load a block, compute on it, combine results. Pure and idempotent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController

from daskdml.engine.cache import PINNED
from daskdml.engine.place import Allotment, compute_permit, leave_slot, tell, worker_name
from daskdml.io import buffers
from daskdml.io.dask_rows import DaskSource
from daskdml.io.identity import identity
from daskdml.io.states import digest
from daskdml.kernels.apart import aligned
from daskdml.kernels.block import Block
from daskdml.kernels.targets import DataError, check_targets

if TYPE_CHECKING:
    from daskdml.io.sources import AnySource

ALL_PARTS = ("X", "y", "sample_weight")


@dataclass(frozen=True)
class Read:
    """How blocks are to be read.

    Parameters
    ----------
    source : Source or DaskSource
        From where.
    parts : tuple of str
        What of each row.
    token : str
        Names the fit.
    budget : int or None
        Bytes of blocks that may stay pinned in a process; None where none are looked for either.
    spare : int
        Bytes of free buffers that a process may keep for the next read.
    graph : str
        Name of the graph that reads.
    """

    source: AnySource
    parts: tuple[str, ...] = ALL_PARTS
    token: str = ""
    budget: int | None = None
    spare: int = 0
    graph: str = ""


@dataclass(frozen=True)
class BlockRecord:
    """What one block took: where, when (seconds since the epoch) and for how long (seconds).

    It names the graph it is of: news can come late or twice.
    """

    graph: str
    index: int
    rows: int
    nbytes: int
    worker: str
    pinned: bool
    load_began: float
    load_ended: float
    read: float
    decode: float
    began: float = 0.0
    ended: float = 0.0
    compute: float = 0.0


@dataclass(frozen=True)
class Loaded:
    """A block in memory and what it took to get it there."""

    block: Block
    record: BlockRecord


def identify(block: Block) -> tuple[str, ...]:
    """Hexadecimal digits that tell a block's rows from others; tuples of them add."""
    return (digest([identity(part) for part in (block.X, block.y, block.sample_weight)]),)


@dataclass(frozen=True)
class Part:
    """A result and the records of the blocks it came from."""

    value: Any
    records: tuple[BlockRecord, ...]


class _OneBlasThread:
    """Holds BLAS to one thread while any task computes, and then gives back what was set.

    OpenBLAS has one setting for the whole process, and threadpoolctl lets only one thread change
    it until it has changed it back; so a thread of its own does both.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keeper: ThreadPoolExecutor | None = None
        self._controller: ThreadpoolController | None = None
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                if self._keeper is None:
                    self._keeper = ThreadPoolExecutor(1, thread_name_prefix="daskdml-blas")
                try:
                    self._keeper.submit(self._hold).result()
                except BaseException:  # Ctrl-C: nobody will leave what was not entered
                    self._keeper.submit(self._give_back)
                    raise
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                assert self._keeper is not None
                self._keeper.submit(self._give_back).result()

    def _hold(self) -> None:
        if self._controller is None:
            self._controller = ThreadpoolController()
        self._limit = self._controller.limit(limits=1, user_api="blas")

    def _give_back(self) -> None:
        self._limit.restore_original_limits()


ONE_BLAS_THREAD = _OneBlasThread()


def load(how: Read, index: int, start: int, stop: int, *gate: Any) -> Loaded:
    """Rows start..stop of a source; holds no compute slot of a Dask worker while it reads.

    `gate` only orders this task after the results it names.
    """
    began = time.time()
    if how.budget is not None:
        kept = PINNED.get(how.token, index)
        if kept is not None:
            record = BlockRecord(
                how.graph, index, stop - start, 0, worker_name(), True, began, began, 0.0, 0.0
            )  # fmt: skip
            return Loaded(kept, record)
    if not how.source.in_memory:
        buffers.set_limit(how.spare)
        leave_slot()
    assert not isinstance(how.source, DaskSource)
    block, stats = how.source.read(start, stop, how.parts)
    block = replace(block, start=start)
    budget = how.budget or 0
    pinned = budget > 0 and PINNED.offer(how.token, index, block, block.nbytes, budget)
    record = BlockRecord(
        how.graph, index, stop - start, stats.nbytes, worker_name(), pinned, began, time.time(),
        stats.read_seconds, stats.decode_seconds,
    )  # fmt: skip
    return Loaded(block, record)


def assemble(
    graph: str, index: int, start: int, rows: int, dtype: Any, arrays: list[list[Any]], *gate: Any
) -> Loaded:
    """A block from arrays that other tasks made (Dask arrays): X's, y's and the weights'."""
    now = time.time()
    X, y, w = (_join(a) for a in arrays)
    block = Block(np.ascontiguousarray(X, dtype=dtype), y, w, start)
    record = BlockRecord(graph, index, rows, 0, worker_name(), False, now, time.time(), 0.0, 0.0)
    return Loaded(block, record)


def _join(arrays: list[Any]) -> Any:
    if not arrays:
        return None
    return np.asarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)


def first(value: Any, *gate: Any) -> Any:
    """The value; `gate` only orders."""
    return value


def compute(fn: Callable[[Block], Any], loaded: Loaded) -> Part:
    """Result of one block, with the time it took; a `DataError`'s row counts from row 0."""
    leave_slot()  # else a load that has become ready waits for this to end before it may begin
    with compute_permit(), ONE_BLAS_THREAD:
        began, tick = time.time(), time.perf_counter()
        value = on_rows(fn, loaded.block)
    seconds = time.perf_counter() - tick
    record = replace(loaded.record, began=began, ended=time.time(), compute=seconds)
    tell(record)
    return Part(value, (record,))


def out_of_slot(fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(*args)``, while the worker's slot is given to others."""
    leave_slot()
    return fn(*args)


def packed(function: Callable[[], Any]) -> Callable[[], Any]:
    """The function, to be unpickled in the thread that calls it.

    The thread of a worker that unpickles tasks imports what they need, and sends no heartbeats
    meanwhile.
    """
    from distributed.protocol import pickle

    return partial(_unpacked, pickle.dumps(function))


def _unpacked(function: bytes) -> Any:
    from distributed.protocol import pickle

    return pickle.loads(function)()


def allotted(allotment: Allotment, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``fn(*args, **kwargs)`` within what a fit may use of this worker; waits outside its slots."""
    leave_slot()
    with allotment.permit():
        return fn(*args, **kwargs)


def received(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``fn(*args, **kwargs)`` of what came from another process."""
    return aligned(fn)(*aligned(args), **aligned(kwargs))


def recall(
    fn: Callable[[Block], Any], how: Read, index: int, start: int, stop: int, *gate: Any
) -> Part:
    """`compute` of a block that is pinned in this process; one that is not, after all, is read."""
    return compute(fn, load(how, index, start, stop))


def on_rows(fn: Callable[[Block], Any], block: Block) -> Any:
    """``fn(block)``, whose `DataError` is told in rows of the whole data set."""
    try:
        return fn(block)
    except DataError as error:
        raise error.later(block.start) from None


@dataclass(frozen=True)
class FirstBad:
    """The first of the rows that cannot be used, or None; they add."""

    error: DataError | None

    def __add__(self, other: FirstBad) -> FirstBad:
        if self.error is None or other.error is None:
            return other if self.error is None else self
        return self if self.error.row <= other.error.row else other


@dataclass(frozen=True)
class FindBad:
    """Block -> `FirstBad`, of X's values by a check of them, or of targets and weights (None)."""

    check: Callable[[np.ndarray], None] | None

    def __call__(self, block: Block) -> FirstBad:
        """Check the block."""
        try:
            if self.check is None:
                check_targets(block)
            else:
                self.check(block.X)
        except DataError as error:
            return FirstBad(error.later(block.start))
        return FirstBad(None)


def combine(*parts: Part) -> Part:
    """Sum of results, from left to right."""
    records = tuple(r for p in parts for r in p.records)
    return Part(reduce(add, (p.value for p in parts)), records)


def local_round(
    rules: tuple[Any, Any], base: Part, loaded: Loaded, group: Any, t: int, k: int
) -> Part:
    """Local work of replica k in round t, from the state it may know."""
    local = rules[0]
    return compute(lambda block: local(base.value, block, group, t, k), loaded)


def merge_round(rules: tuple[Any, Any], before: Part, base: Part, *parts: Part) -> Part:
    """The state after a round, and the records of all blocks since the graph's first round."""
    state = rules[1](before.value, base.value, [p.value for p in parts])
    return Part(state, before.records + tuple(r for p in parts for r in p.records))
