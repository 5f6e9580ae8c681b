"""Who executes a graph: threads of this process or this thread; `cluster` has Dask's workers.

A runner is one small protocol; nothing above these files knows which one it has.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import dask.callbacks
import dask.threaded
import numpy as np
import psutil
from dask.task_spec import DataNode

from daskdml.engine import tasks
from daskdml.engine.cache import PINNED
from daskdml.engine.graphs import Graph
from daskdml.engine.ledger import LEDGER, Claim, Standing
from daskdml.engine.memory import LEFT_BEHIND
from daskdml.engine.place import THREAD_SLOTS
from daskdml.io import buffers
from daskdml.kernels.block import Block

ONE_BLOCK = 3  # tasks of a lane that read one block, compute on it and merge what came out


@dataclass(frozen=True)
class Worker:
    """A process that runs tasks.

    Parameters
    ----------
    name : str
        Its address ("" for this process).
    threads : int
        Compute slots.
    limit : int
        Bytes that Dask lets it use; 0 where there is no limit.
    """

    name: str
    threads: int
    limit: int


Told = Callable[[tasks.BlockRecord], None]
Rehearse = Callable[[], None] | None
Callbacks = Sequence[tuple[Any, ...]]  # as Dask's schedulers take them


class Runner(Protocol):
    """Executes graphs."""

    @property
    def dashboard_link(self) -> str | None:
        """Address of a dashboard, where there is one."""

    def workers(self) -> list[Worker]:
        """The processes there are now."""

    def resident(self, rehearse: Rehearse = None, shared: bool = False) -> int:
        """Resident bytes of the fullest process, with all loaded that tasks need.

        `rehearse` runs what a fit computes with, where tasks will; where the processes are `shared`
        with other fits, what those hold is left out.
        """

    def claim(self, token: str, need: int, limit: int) -> Standing:
        """Tell the other fits on the same processes what this one needs; see `Claim`."""

    def make_room(self, nbytes: int) -> None:
        """Let no fit keep more than so many bytes of pinned blocks in any process."""

    def run(self, graph: Graph, places: Sequence[str], told: Told) -> list[Any]:
        """Results of the graph's wanted keys; `places[lane]` is the worker a lane should run on.

        They are followed by handles of the kept keys' results, for `entry`.
        """

    def entry(self, key: Any, kept: Any) -> Any:
        """What to put into a graph under a key for a value, or for what an earlier graph kept."""

    def fetch(self, kept: list[Any]) -> list[Any]:
        """The values of what earlier graphs kept."""

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks and its claim; gives each process's peak resident bytes."""


class _Baseline:
    """What this process holds when no fit does: its resident bytes, measured between fits.

    A fit leaves threads behind, and memory with the allocator that it does not give back: the next
    fit uses both again, and its plan has room for them. So a little more than was first measured
    is that, and not counted twice; else a fit at the limit could not be repeated.
    """

    def __init__(self) -> None:
        self._bytes = 0

    def measure(self, load: Callable[[], None], shared: bool) -> int:
        """Resident bytes of this process after `load`, all of whose growth counts.

        Where it is `shared` with other fits, what they hold now is not counted, if it is known what
        was there before them.
        """
        before = _resident_bytes()
        load()
        now = _resident_bytes()
        known = self._bytes + max(0, now - before)
        among = shared and self._bytes > 0 and known < now
        self._bytes = known if among or known <= now <= known + LEFT_BEHIND else now
        return self._bytes


_BASELINE = _Baseline()


def _resident_bytes() -> int:
    buffers.give_back()
    return int(psutil.Process().memory_info().rss)


def make_ready(
    rehearse: Rehearse = None, shared: bool = False, living: Collection[str] = ()
) -> int:
    """Load all that tasks need, and rehearse; gives the resident bytes of this process then.

    Blocks that fits have left behind which are not among the `living`, if some are named, go away.
    """
    if living:
        PINNED.drop_others(living)
    if multiprocessing.parent_process() is not None:  # a worker, which its nanny ends
        # The last collection of garbage takes most of a second with all that LLVM and SciPy hold,
        # and a nanny that waits too long kills.
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)
    return _BASELINE.measure(partial(_load_all, rehearse), shared)


def _load_all(rehearse: Rehearse) -> None:
    """Import what tasks import, and run what they run, on nothing.

    The first compiled kernel brings in LLVM's code generator, some 45 MB that a promise must count.
    Where the kernels are not in Numba's cache yet, they are compiled here rather than in the fit.
    """
    import scipy.linalg  # noqa: F401
    import zarr

    import daskdml.io.dataset
    import daskdml.kernels.sgd  # noqa: F401
    from daskdml.kernels.linear import Coordinates, LinearPass, moments
    from daskdml.kernels.losses import Logistic

    X, theta = np.zeros((1, 1), np.float32), np.zeros((1, 2))
    np.asarray(zarr.create_array({}, data=X)[:])  # its threads and its codecs
    moments(Block(X, None, None))
    at = LinearPass(Logistic(), Coordinates.identity(1), theta, theta, (0.0,), np.float32)
    at(X, np.ones(1, np.int8), np.ones(1))
    if rehearse is not None:
        rehearse()


class Inline:
    """Runs every task in the calling thread, in Dask's order."""

    dashboard_link: str | None = None

    def workers(self) -> list[Worker]:
        """This process, with one slot."""
        return [Worker("", 1, 0)]

    def resident(self, rehearse: Rehearse = None, shared: bool = False) -> int:
        """Resident bytes of this process."""
        return make_ready(rehearse, shared)

    def claim(self, token: str, need: int, limit: int) -> Standing:
        """Among the fits of this process."""
        slots = {w.name: w.threads for w in self.workers()}
        return LEDGER.enter(token, Claim("", need, limit, slots))

    def make_room(self, nbytes: int) -> None:
        """In this process."""
        PINNED.cap(nbytes)

    def run(self, graph: Graph, places: Sequence[str], told: Told) -> list[Any]:
        """Results of the wanted keys."""
        # Dask's own way to add a callback is one setting of the process, which fits at once break.
        listener = (None, None, None, _Listener(told), None)
        return list(self._get(graph, (*dask.callbacks.Callback.active, listener)))

    def _get(self, graph: Graph, callbacks: Callbacks) -> Any:
        return dask.get(graph.tasks, [*graph.wanted, *graph.kept], callbacks=callbacks)

    def entry(self, key: Any, kept: Any) -> Any:
        """A node that holds the value."""
        return DataNode(key, kept)

    def fetch(self, kept: list[Any]) -> list[Any]:
        """The values themselves."""
        return kept

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks and its claim."""
        LEDGER.leave(token)
        return {"": forget_blocks(token)}


class Threads(Inline):
    """Runs tasks on threads of this process: so many compute, others read ahead.

    Parameters
    ----------
    n : int or None
        Compute slots; None means the number of cores this process may use.
    """

    def __init__(self, n: int | None = None) -> None:
        self.n = n or len(os.sched_getaffinity(0))

    def part(self, share: float) -> Threads:
        """A runner with that part of these slots, and at least one."""
        return Threads(max(1, int(share * self.n + 1e-9)))

    def workers(self) -> list[Worker]:
        """This process, with n slots."""
        return [Worker("", self.n, 0)]

    def _get(self, graph: Graph, callbacks: Callbacks) -> Any:
        if len(graph.lane_of) <= ONE_BLOCK and len(set(graph.lane_of.values())) == 1:
            with THREAD_SLOTS.fit_here():  # threads would wait for each other, and start for it
                return super()._get(graph, callbacks)
        with (
            THREAD_SLOTS.fit(self.n) as join,
            ThreadPoolExecutor(3 * self.n, thread_name_prefix="daskdml", initializer=join) as pool,
        ):
            keys = [*graph.wanted, *graph.kept]
            return dask.threaded.get(graph.tasks, keys, pool=pool, callbacks=callbacks)


class _Listener:
    """Tells of each block that a scheduler of this process has finished."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def __call__(self, key: Any, value: Any, dsk: Any, state: Any, worker_id: Any) -> None:
        is_block = isinstance(value, tasks.Part) and len(value.records) == 1
        if is_block and isinstance(key, tuple) and not key[0].endswith(("-sum", "-state")):
            self._told(value.records[0])


def forget_blocks(token: str) -> int:
    """Forget a fit's pinned blocks and free buffers; gives this process's peak resident bytes."""
    PINNED.drop(token)
    buffers.give_back()
    return peak_bytes()


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:  # ru_maxrss would count what the parent process held when it forked
        with open("/proc/self/status") as status:
            line = next(text for text in status if text.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fit_name(label: str) -> str:
    """A prefix for the keys of one graph, readable on the dashboard and never used before."""
    return f"{label}-{uuid.uuid4().hex[:12]}"
