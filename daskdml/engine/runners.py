"""Who executes a graph: threads of this process, this thread, or a Dask cluster.

A runner is one small protocol; nothing above this file knows which one it has.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import queue
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import dask
import dask.callbacks
import dask.threaded
import numpy as np
import psutil
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode

from daskdml.engine import tasks
from daskdml.engine.cache import PINNED
from daskdml.engine.graphs import Graph
from daskdml.engine.memory import LEFT_BEHIND
from daskdml.engine.place import THREAD_SLOTS, TOPIC
from daskdml.io import buffers
from daskdml.kernels.block import Block


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

    def resident(self, rehearse: Rehearse = None) -> int:
        """Resident bytes of the fullest process, with all loaded that tasks need.

        `rehearse` runs what a fit computes with, where tasks will.
        """

    def run(self, graph: Graph, places: Sequence[str], told: Told) -> list[Any]:
        """Results of the graph's wanted keys; `places[lane]` is the worker a lane should run on.

        They are followed by handles of the kept keys' results, for `entry`.
        """

    def entry(self, key: Any, kept: Any) -> Any:
        """What to put into a graph under a key for a value, or for what an earlier graph kept."""

    def fetch(self, kept: list[Any]) -> list[Any]:
        """The values of what earlier graphs kept."""

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks everywhere; gives each process's peak resident bytes."""


class _Baseline:
    """What this process holds when no fit does: its resident bytes, measured between fits.

    A fit leaves threads behind, and memory with the allocator that it does not give back: the next
    fit uses both again, and its plan has room for them. So a little more than was first measured
    is that, and not counted twice; else a fit at the limit could not be repeated.
    """

    def __init__(self) -> None:
        self._bytes = 0

    def measure(self, load: Callable[[], None]) -> int:
        """Resident bytes of this process after `load`, all of whose growth counts."""
        before = _resident_bytes()
        load()
        now = _resident_bytes()
        known = self._bytes + max(0, now - before)
        self._bytes = known if known <= now <= known + LEFT_BEHIND else now
        return self._bytes


_BASELINE = _Baseline()


def _resident_bytes() -> int:
    buffers.give_back()
    return int(psutil.Process().memory_info().rss)


def make_ready(rehearse: Rehearse = None) -> int:
    """Load all that tasks need, and rehearse; gives the resident bytes of this process then."""
    if multiprocessing.parent_process() is not None:  # a worker, which its nanny ends
        # The last collection of garbage takes most of a second with all that LLVM and SciPy hold,
        # and a nanny that waits too long kills.
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)
    return _BASELINE.measure(partial(_load_all, rehearse))


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

    def resident(self, rehearse: Rehearse = None) -> int:
        """Resident bytes of this process."""
        return make_ready(rehearse)

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
        """Drop a fit's pinned blocks."""
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

    def workers(self) -> list[Worker]:
        """This process, with n slots."""
        return [Worker("", self.n, 0)]

    def _get(self, graph: Graph, callbacks: Callbacks) -> Any:
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


class _Ears:
    """Those who listen to a client's workers: a client can subscribe to a topic only once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: weakref.WeakKeyDictionary[Any, list[Told]] = weakref.WeakKeyDictionary()

    @contextmanager
    def listening(self, client: Any, told: Told) -> Iterator[None]:
        """Have every block's record told, from the client's own thread."""
        with self._lock:
            listeners = self._of.setdefault(client, [])
            listeners.append(told)
            if len(listeners) == 1:
                client.subscribe_topic(TOPIC, partial(_tell_all, listeners))
        try:
            yield
        finally:
            with self._lock:
                listeners.remove(told)
                if not listeners:
                    client.unsubscribe_topic(TOPIC)


def _tell_all(listeners: list[Told], event: tuple[float, dict[str, Any]]) -> None:
    for told in tuple(listeners):
        told(tasks.BlockRecord(**event[1]))


_EARS = _Ears()


class Cluster:
    """Runs tasks on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        A synchronous client.

    Raises
    ------
    TypeError
        If the client is asynchronous.
    RuntimeError
        If it has no workers.
    """

    def __init__(self, client: Any) -> None:
        if client.asynchronous:
            raise TypeError(
                "this Dask client is asynchronous, and fit waits for its result; use "
                "Client(..., asynchronous=False), or call fit in another thread"
            )
        self.client = client

    @property
    def dashboard_link(self) -> str | None:
        """Address of the cluster's dashboard."""
        return str(self.client.dashboard_link) if "dashboard" in self._services() else None

    def _services(self) -> dict[str, Any]:
        return self.client.scheduler_info(n_workers=-1).get("services", {})

    def workers(self) -> list[Worker]:
        """The cluster's workers now, in the order of their addresses."""
        # Not scheduler_info: it returns what the client keeps, and a refresh without workers, which
        # the client makes every two seconds, can replace that before it is read.
        known = self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]
        if not known:
            raise RuntimeError(
                f"the Dask cluster at {self.client.scheduler.address} has no workers; start some "
                "(cluster.scale(2)) before fit"
            )
        return [
            Worker(address, int(facts["nthreads"]), int(facts["memory_limit"] or 0))
            for address, facts in sorted(known.items())
        ]

    def resident(self, rehearse: Rehearse = None) -> int:
        """Resident bytes of the fullest worker, with all loaded that tasks need."""
        # One worker of each machine goes first: the others find in the cache what it compiled.
        names = [w.name for w in self.workers()]
        first = list({name.rpartition(":")[0]: name for name in names}.values())
        known = self.client.run(make_ready, rehearse, workers=first, on_error="ignore")
        others = [name for name in names if name not in first]
        if others:
            known |= self.client.run(make_ready, rehearse, workers=others, on_error="ignore")
        return max(known.values(), default=0)

    def run(self, graph: Graph, places: Sequence[str], told: Told) -> list[Any]:
        """Results of the wanted keys; the calling thread hears of finished blocks meanwhile."""
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with _EARS.listening(self.client, heard.put):
            return self._run(graph, places, told, heard)

    def _run(
        self, graph: Graph, places: Sequence[str], told: Told, heard: queue.SimpleQueue[Any]
    ) -> list[Any]:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
            keys = [*graph.wanted, *graph.kept]
            every = self.client.get(_layers(graph, places), keys, sync=False)
        futures, kept = every[: len(graph.wanted)], every[len(graph.wanted) :]
        finished = threading.Event()

        def finish(_: Any) -> None:
            finished.set()
            heard.put(None)

        futures[-1].add_done_callback(finish)
        try:
            while not finished.is_set():
                record = heard.get()
                if record is not None:
                    told(record)
            return [*self.client.gather(futures), *kept]
        except BaseException:
            self.client.cancel(every, force=True)
            raise

    def entry(self, key: Any, kept: Any) -> Any:
        """The future of a result that stayed on the cluster, or a node that holds the value."""
        return kept if hasattr(kept, "client") else DataNode(key, kept)

    def fetch(self, kept: list[Any]) -> list[Any]:
        """The values, brought here from the workers."""
        return list(self.client.gather(kept))

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks on every worker."""
        return dict(self.client.run(forget_blocks, token, on_error="ignore"))


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


def _layers(graph: Graph, places: Sequence[str]) -> HighLevelGraph:
    """The graph with each lane's tasks bound, loosely, to its worker."""
    bound: dict[str, dict[Any, Any]] = {}
    free: dict[Any, Any] = {}
    for key, task in graph.tasks.items():
        lane = graph.lane_of.get(key)
        (free if lane is None else bound.setdefault(places[lane], {}))[key] = task
    layers = {"free": MaterializedLayer(free)}
    for place, part in bound.items():
        annotations = {"workers": [place], "allow_other_workers": True}
        layers[place] = MaterializedLayer(part, annotations=annotations)
    return HighLevelGraph(layers, {name: set(layers) - {name} for name in layers})


def fit_name(label: str) -> str:
    """A prefix for the keys of one graph, readable on the dashboard and never used before."""
    return f"{label}-{uuid.uuid4().hex[:12]}"
