"""A Dask cluster as a runner: graphs are sent to it, bound to workers, and watched over."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import dask
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode

from daskdml.engine import tasks
from daskdml.engine.blame import blame
from daskdml.engine.graphs import Graph
from daskdml.engine.limits import TimeLimits
from daskdml.engine.place import TOPIC
from daskdml.engine.runners import Rehearse, Told, Worker, forget_blocks, make_ready
from daskdml.engine.share import Share
from daskdml.engine.survey import Fact
from daskdml.engine.watch import TICK, Watch

FORGET = 10.0  # seconds that a fit waits at its end for workers to drop its blocks


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
                if not listeners and client.status == "running":
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
    share : Share
        The part of the cluster that may be used.
    tell : callable
        Told sentences for people.
    checkpoint : str or None
        URL of the fit's checkpoints, for the error that a lost scheduler is.

    Raises
    ------
    TypeError
        If the client is asynchronous.
    ConnectionError
        If it is not connected to a scheduler.
    TimeoutError
        If the workers that the share asks for do not come in time.
    ValueError
        If it names workers that are not there.
    RuntimeError
        If a worker computes with other versions than this process.
    """

    def __init__(
        self,
        client: Any,
        share: Share = Share(),  # noqa: B008
        tell: Callable[[str], None] = lambda text: None,
        checkpoint: str | None = None,
    ) -> None:
        if client.asynchronous:
            raise TypeError(
                "this Dask client is asynchronous, and fit waits for its result; use "
                "Client(..., asynchronous=False), or call fit in another thread"
            )
        self.client = client
        self.share = share
        self._watch = Watch(client, share, TimeLimits.configured(), tell, checkpoint)
        self._watch.look(now=True)
        share.check_named(self._watch.facts)
        self._watch.await_workers(share.min_workers)

    @property
    def dashboard_link(self) -> str | None:
        """Address of the cluster's dashboard."""
        about = self._watch.wait(self.client.scheduler.identity(n_workers=0))
        return str(self.client.dashboard_link) if "dashboard" in about["services"] else None

    def workers(self) -> list[Worker]:
        """The workers to be used now, in the order of their addresses; waits where there are none.

        Raises
        ------
        TimeoutError
            If none comes in time.
        """
        self._watch.await_workers(1)
        return [Worker(fact.address, fact.threads, fact.limit) for fact in self._usable()]

    def _usable(self) -> list[Fact]:
        return self.share.usable(self._watch.facts)

    def resident(self, rehearse: Rehearse = None) -> int:
        """Resident bytes of the fullest worker, with all loaded that tasks need."""
        # One worker of each machine goes first: the others find in the cache what it compiled.
        names = [w.name for w in self.workers()]
        first = list({name.rpartition(":")[0]: name for name in names}.values())
        known = self._on_workers(make_ready, rehearse, workers=first)
        others = [name for name in names if name not in first]
        if others:
            known |= self._on_workers(make_ready, rehearse, workers=others)
        return max(known.values(), default=0)

    def _on_workers(
        self, function: Callable[..., Any], *args: Any, workers: list[str] | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What a function gives on each worker; one that is lost meanwhile is left out."""
        run = partial(self.client.run, on_error="ignore", asynchronous=True)
        return dict(self._watch.wait(run(function, *args, workers=workers), seconds))

    def run(self, graph: Graph, places: Sequence[str], told: Told) -> list[Any]:
        """Results of the wanted keys; the calling thread hears of finished blocks meanwhile.

        Raises
        ------
        ConnectionError
            If the scheduler is lost.
        TimeoutError
            If no worker is left, and none comes.
        RuntimeError
            If a task's workers died again and again.
        """
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._explained(graph), _EARS.listening(self.client, heard.put):
            return self._run(graph, places, told, heard)

    def _run(
        self, graph: Graph, places: Sequence[str], told: Told, heard: queue.SimpleQueue[Any]
    ) -> list[Any]:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
            keys = [*graph.wanted, *graph.kept]
            layers = _layers(graph, places)
            every = self.client.get(layers, keys, sync=False, priority=self.share.priority)
        futures, kept = every[: len(graph.wanted)], every[len(graph.wanted) :]
        finished = threading.Event()

        def finish(_: Any) -> None:
            finished.set()
            heard.put(None)

        futures[-1].add_done_callback(finish)
        try:
            while not finished.is_set():
                with suppress(queue.Empty):
                    record = heard.get(timeout=TICK)
                    if record is not None:
                        told(record)
                self._watch.mind()
            return [*self._watch.wait(self.client.gather(futures, asynchronous=True)), *kept]
        except BaseException:
            if not self._watch.lost:
                self.client.cancel(every, force=True)
            raise

    @contextmanager
    def _explained(self, graph: Graph | None = None) -> Iterator[None]:
        """Say what an error of Dask means for a fit."""
        from distributed.scheduler import KilledWorker

        try:
            yield
        except KilledWorker as error:
            what = "a task" if graph is None else blame(graph, error.task)
            raise RuntimeError(
                f"{what}: {error.allowed_failures + 1} workers died one after the other while they "
                f"worked on it, the last of them {error.last_worker.address}, so it was given up; "
                "their logs say why they died, most often for want of memory"
            ) from error
        except (OSError, CancelledError) as error:
            if self._watch.lost and not isinstance(error, ConnectionError):
                raise self._watch.gone() from error
            raise

    def entry(self, key: Any, kept: Any) -> Any:
        """The future of a result that stayed on the cluster, or a node that holds the value."""
        return kept if hasattr(kept, "client") else DataNode(key, kept)

    def fetch(self, kept: list[Any]) -> list[Any]:
        """The values, brought here from the workers."""
        with self._explained():
            return list(self._watch.wait(self.client.gather(kept, asynchronous=True)))

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks on every worker, as far as they answer in time."""
        try:
            return self._on_workers(forget_blocks, token, seconds=FORGET)
        except (OSError, CancelledError, RuntimeError):
            return {}  # whoever did not hear drops them when they have not been used for a while


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
