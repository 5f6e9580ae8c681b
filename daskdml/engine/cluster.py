"""A Dask cluster as a runner: graphs are sent to it, bound to workers, and watched over."""

from __future__ import annotations

import asyncio
import queue
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import dask
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode

from daskdml.engine import tasks
from daskdml.engine.blame import blame, last_words
from daskdml.engine.cache import PINNED
from daskdml.engine.frames import guard_frames
from daskdml.engine.graphs import Graph, for_processes
from daskdml.engine.hearing import listening
from daskdml.engine.ledger import Claim, Standing, enter, leave
from daskdml.engine.limits import Reminder, TimeLimits
from daskdml.engine.place import Allotment, forget_allotment
from daskdml.engine.runners import Rehearse, Told, Worker, fit_name, forget_blocks, make_ready
from daskdml.engine.share import Share
from daskdml.engine.stalls import Stalls
from daskdml.engine.survey import NOTE, Fact, apart, bind_anew
from daskdml.engine.watch import TICK, Watch
from daskdml.kernels.apart import aligned

ASK_AGAIN = 2.0  # seconds after which a fit asks anew what other fits there are
ANSWERS = 3  # times that workers are asked to get ready, where all are lost meanwhile
LAST_WORDS = 3.0  # seconds in which a nanny has to say why a worker died
FORGET = 5.0  # seconds that a fit waits at its end for workers to drop its blocks


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
        share: Share,
        tell: Callable[[str], None],
        checkpoint: str | None,
    ) -> None:
        if client.asynchronous:
            raise TypeError(
                "this Dask client is asynchronous, and fit waits for its result; use "
                "Client(..., asynchronous=False), or call fit in another thread"
            )
        guard_frames()  # of a LocalCluster the scheduler is here, and perhaps the workers
        self.client = client
        self.share = share
        self._token = ""
        self._standing = Standing(0, 0, 1, {})
        self._claimed: tuple[float, Claim | None] = 0.0, None
        self._mine: list[Fact] = []  # the workers that are used, and how many of their slots
        self._bound: set[str] = set()  # to which alone the tasks under way may go, if to some
        self._most = 0  # threads of a worker, once there is a plan
        limits = TimeLimits.configured()
        self._watch = Watch(client, share, limits, tell, checkpoint, self._bind_anew)
        self._stalls = Stalls(self._watch)
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
        self._mine = self._allot()
        return [Worker(fact.address, fact.threads, fact.limit) for fact in self._mine]

    def _allot(self) -> list[Fact]:
        facts, usable = self._watch.facts, self._watch.usable()
        total = sum(fact.threads for fact in facts if fact.running)
        own = {fact.address: fact.threads for fact in self._mine}
        if self._most:
            usable = [replace(fact, threads=min(fact.threads, self._most)) for fact in usable]
        return self.share.allot(usable, total, self._standing.taken, own)

    @property
    def _addresses(self) -> list[str]:
        return [fact.address for fact in self._mine]

    def claim(self, token: str, need: int, limit: int) -> Standing:
        """Among the fits of the cluster; asks its scheduler, but not more often than need be."""
        if not self._token:
            self._token = token
            weakref.finalize(self, _leave, self.client, token).atexit = False
        slots = {fact.address: fact.threads for fact in self._mine or self._allot()}
        at, last = self._claimed
        if limit and (last is None or (last.need, last.limit) != (need, limit)):  # a new plan
            self._most = max(slots.values(), default=0)
            self._watch.promised = limit
        claim = Claim(self.client.id, need, limit, slots)
        if last != claim or time.monotonic() - at > ASK_AGAIN:
            tell = self.client.run_on_scheduler(enter, token, claim, asynchronous=True)
            self._standing = self._watch.ask(tell)
            self._claimed = time.monotonic(), claim
        return self._standing

    def make_room(self, nbytes: int) -> None:
        """On the workers that are used."""
        self._on_workers(cap_blocks, nbytes, workers=self._addresses)

    def _bind_anew(self) -> None:
        """Tasks whose workers are lost, or take none any more, go to others."""
        full = self._watch.full()
        able = {fact.address for fact in self._watch.facts} - full
        if self._bound <= able and not full:
            return
        left = [fact for fact in self._mine if fact.address in able]
        self._mine = left or self._allot()
        if self._bound:  # those that are gone stay: the scheduler may not have the tasks yet
            self._bound |= set(self._addresses)
        move = partial(self.client.run_on_scheduler, bind_anew, asynchronous=True)
        self._watch.ask(move(self._token, self._addresses, full))

    def resident(self, rehearse: Rehearse = None, shared: bool = False) -> int:
        """Resident bytes of the fullest worker, with all loaded that tasks need."""
        with self._explained():
            for _ in range(ANSWERS):  # an adaptive cluster may end workers that get ready
                if sizes := self._ready(rehearse, shared):
                    return max(sizes)
        raise RuntimeError(
            f"{ANSWERS} times one after the other, all workers of the Dask cluster at "
            f"{self._watch.address} were lost while they got ready; look for the cause in their "
            "logs, or, where the cluster adapts, let it keep some (adapt(minimum=...))"
        )

    def _ready(self, rehearse: Rehearse, shared: bool) -> list[int]:
        """Resident bytes of the workers that are there, those left out that are lost meanwhile."""
        # One worker of each machine goes first: the others find in the cache what it compiled.
        names = [w.name for w in self.workers()]
        first = list({name.rpartition(":")[0]: name for name in names}.values())
        get_ready = partial(self._get_ready, rehearse, shared)
        known = self._ask_each(get_ready, first, by_task=True)
        others = [name for name in names if name not in first]
        if others:
            known |= self._ask_each(get_ready, others, by_task=True)
        for address, found in known.items():
            if isinstance(found, Exception) and not isinstance(found, OSError):
                found.add_note(f"This came of getting the worker {address} ready.")
                raise found
        return [found for found in known.values() if isinstance(found, int)]

    def _on_workers(
        self, function: Callable[..., Any], *args: Any, workers: list[str] | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """What a function gives, or raises, on each worker; one that is lost is left out.

        Within so many `seconds`, nothing else is looked at.
        """
        run = partial(self.client.run, apart, function, *args, on_error="return", asynchronous=True)
        if workers is None:
            workers = [fact.address for fact in self._watch.facts]
        return self._ask_each(lambda address: run(workers=[address]), workers, seconds)

    async def _get_ready(self, rehearse: Rehearse, shared: bool, address: str) -> dict[str, Any]:
        """What `make_ready` gives, or raises, in a task: Dask sees that the worker is busy."""
        with dask.annotate(**{NOTE: self._token}):
            future = self.client.submit(
                tasks.out_of_slot, make_ready, rehearse and tasks.packed(rehearse), shared,
                self._standing.living,
                workers=[address], key=fit_name("get-ready"), priority=self.share.priority,
                pure=False,
            )  # fmt: skip
        try:
            await _done(future)
            return {address: await future._result()}
        except Exception as error:
            return {address: error}
        finally:
            future.release()

    def _ask_each(
        self, ask: Callable[[str], Coroutine[Any, Any, dict[str, Any]]], workers: list[str],
        seconds: float | None = None, by_task: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Their answers; not waited for are lost workers and, `by_task`, those that begin none."""
        asking: dict[str, asyncio.Task[Any]] = {}
        reminder = Reminder()

        def look() -> None:
            if seconds is None:
                self._mind()
            there = {fact.address for fact in self._watch.facts}
            if by_task:
                there -= self._watch.full()
            for address, task in tuple(asking.items()):
                if address not in there:  # Dask would try for half a minute to reach it
                    self.client.loop.add_callback(task.cancel)
            late = [address for address, task in asking.items() if not task.done()]
            if by_task and late and reminder.due():
                self._watch.tell(
                    f"Waits for {', '.join(late)} to get ready: they compile kernels that are new "
                    "to them, or are busy with tasks of others."
                )

        return self._watch.wait(_answers(ask, workers, asking), seconds, look)

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
        with self._explained(graph), listening(self.client, heard.put):
            return self._run(graph, places, told, heard)

    def _run(
        self, graph: Graph, places: Sequence[str], told: Told, heard: queue.SimpleQueue[Any]
    ) -> list[Any]:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
            keys = [*graph.wanted, *graph.kept]
            sent = for_processes(graph, self._allotment())
            strict = self.share.strict or bool(self._watch.small)
            layers = self._strict(sent, places) if strict else self._loose(sent, places)
            # Of the moment at which places were given: who has died since is looked for.
            self._bound = {*places, *self._addresses} if strict else set()
            every = self.client.get(layers, keys, sync=False, priority=self.share.priority)
        futures, kept = every[: len(graph.wanted)], every[len(graph.wanted) :]

        def hear() -> None:
            with suppress(queue.Empty):
                record = heard.get(timeout=TICK)
                if record is not None:
                    if record.graph == graph.name:
                        self._stalls.heard()
                        self._watch.heard_of(record.worker)
                    told(record)
            self._mind()

        try:
            values = self._values(futures, futures[-1:])
            found = self._watch.wait(values, look=hear, ended=partial(heard.put, None))
            return [*map(aligned, found), *kept]
        except BaseException:
            if not self._watch.lost:
                self.client.cancel(every, force=True)
            raise
        finally:
            self._stalls.heard()

    def _mind(self) -> None:
        """Look at the cluster, and for tasks that it has lost."""
        self._watch.mind()
        self._stalls.look(self._token)

    def _strict(self, graph: Graph, places: Sequence[str]) -> HighLevelGraph:
        """The graph whose tasks may only run where, and as many at a time as, the fit may use."""
        anywhere = self._addresses
        layers: dict[str, MaterializedLayer] = {}
        for where, part in _parts(graph, places).items():
            held = {key: node for key, node in part.items() if isinstance(node, DataNode)}
            work = {key: node for key, node in part.items() if key not in held}
            bound: dict[str, Any] = {"workers": [where] if where else anywhere, NOTE: self._token}
            needs = {"resources": dict(self.share.resources)} if self.share.resources else {}
            layers[f"{where}-held"] = MaterializedLayer(held, annotations=bound)
            layers[f"{where}-work"] = MaterializedLayer(work, annotations=bound | needs)
        return HighLevelGraph(layers, {name: set(layers) - {name} for name in layers})

    def _loose(self, graph: Graph, places: Sequence[str]) -> HighLevelGraph:
        """The graph with each lane's tasks bound, loosely, to its worker."""
        layers = {}
        for where, part in _parts(graph, places).items():
            bound: dict[str, Any] = {NOTE: self._token}
            if where:
                bound |= {"workers": [where], "allow_other_workers": True}
            layers[where or "free"] = MaterializedLayer(part, annotations=bound)
        return HighLevelGraph(layers, {name: set(layers) - {name} for name in layers})

    def _allotment(self) -> DataNode | None:
        """How many tasks may run on each worker at once, where the fit has a share."""
        if self.share.max_share == 1:
            return None
        slots = {fact.address: fact.threads for fact in self._mine}
        return DataNode(fit_name("share"), Allotment(self._token, slots))

    @contextmanager
    def _explained(self, graph: Graph | None = None) -> Iterator[None]:
        """Say what an error of Dask means for a fit."""
        from distributed.scheduler import KilledWorker

        try:
            yield
        except KilledWorker as error:
            what = "a task" if graph is None else blame(graph, error.task)
            last, words = error.last_worker, None
            with suppress(Exception):  # a nanny that cannot be asked, or is gone as well
                words = self._watch.wait(last_words(self.client, last.nanny), LAST_WORDS)
            why = "their logs say why they died, most often for want of memory"
            raise RuntimeError(
                f"{what}: {error.allowed_failures + 1} workers died one after the other while they "
                f"worked on it, the last of them {last.address}, so it was given up; "
                f"{why if words is None else f'its nanny says: {words!r}'}"
            ) from error
        except Exception as error:
            if self._watch.lost and not isinstance(error, ConnectionError):
                raise self._watch.gone() from error
            raise

    def entry(self, key: Any, kept: Any) -> Any:
        """The future of a result that stayed on the cluster, or a node that holds the value."""
        return kept if hasattr(kept, "client") else DataNode(key, kept)

    def fetch(self, kept: list[Any]) -> list[Any]:
        """The values, brought here from the workers."""
        with self._explained():
            futures = [one for one in kept if hasattr(one, "client")]
            found = self._watch.wait(self._values(kept, futures))
            return [aligned(value) for value in found]

    async def _values(self, kept: list[Any], ends: list[Any]) -> list[Any]:
        """The values, brought here, once some futures have ended."""
        for future in ends:
            await _done(future)
        return list(await self.client.gather(kept, asynchronous=True))

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks on every worker, as far as they answer in time."""
        if self._watch.given_up:
            return {}
        try:
            leaving = self.client.run_on_scheduler(leave, token, asynchronous=True)
            self._watch.wait(leaving, FORGET, lambda: None)
            asking = self.client.scheduler.identity(n_workers=-1)  # none that has just died
            there = list(self._watch.wait(asking, FORGET, lambda: None)["workers"])
            found = self._on_workers(_forget, token, workers=there, seconds=FORGET)
            return {name: peak for name, peak in found.items() if isinstance(peak, int)}
        except (OSError, CancelledError, RuntimeError):
            return {}  # whoever did not hear drops them when they have not been used for a while


async def _done(future: Any) -> None:
    """Wait for a future; where that is cancelled, what Dask's `gather` waits with complains."""
    await future._state.wait()


async def _answers(
    ask: Callable[[str], Coroutine[Any, Any, dict[str, Any]]], workers: Sequence[str],
    asking: dict[str, asyncio.Task[Any]],
) -> dict[str, Any]:  # fmt: skip
    """What workers answer, but for those for which the task that asks is cancelled."""
    asking |= {address: asyncio.ensure_future(ask(address)) for address in workers}
    answers: dict[str, Any] = {}
    for found in await asyncio.gather(*asking.values(), return_exceptions=True):
        if isinstance(found, dict):
            answers |= found
        elif not isinstance(found, asyncio.CancelledError):
            raise found
    return answers


def cap_blocks(nbytes: int) -> None:
    """Let no fit keep more than so many bytes of blocks in this process."""
    PINNED.cap(nbytes)


def _leave(client: Any, token: str) -> None:
    """Take back the claim of a fit that nobody ended; waits for nothing."""
    if client.status == "running":
        leaving = client.run_on_scheduler(leave, token, asynchronous=True)
        asyncio.run_coroutine_threadsafe(leaving, client.loop.asyncio_loop)


def _forget(token: str) -> int:
    """Forget a fit on a worker; gives its peak resident bytes."""
    forget_allotment(token)
    return forget_blocks(token)


def _parts(graph: Graph, places: Sequence[str]) -> dict[str, dict[Any, Any]]:
    """The graph's tasks by the worker of their lane, "" for those of none."""
    parts: dict[str, dict[Any, Any]] = {"": {}}
    for key, task in graph.tasks.items():
        lane = graph.lane_of.get(key)
        parts.setdefault("" if lane is None else places[lane], {})[key] = task
    return parts
