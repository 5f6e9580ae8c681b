"""A cluster in one thread, in which a seed decides what happens when, and what goes wrong."""

from __future__ import annotations

import heapq
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from dask.task_spec import Alias, DataNode

from daskdml.engine import runners
from daskdml.engine.graphs import for_processes
from daskdml.engine.ledger import Standing
from daskdml.engine.tasks import BlockRecord
from daskdml.io import buffers, layout, ratings
from daskdml.kernels.apart import aligned
from tests.engine.messages import Message, digest, received, sent
from tests.engine.simulated_world import Clock, Habits, SimulatedWorker, Wrong

LOST_AFTER = 60.0  # virtual seconds, after which a worker that does not move is given up
MOST_EVENTS = 100_000
CHECKED = 0.2  # share of the tasks of which it is checked that they leave what they get as it is


class ClientKilled(BaseException):
    """The client's process ends here."""


class WorkerKilled(BaseException):
    """The worker's process ends in the middle of a task."""


@dataclass(eq=False)
class _Spec:
    """A task as it was sent to the cluster."""

    number: int
    message: Message
    home: str | None
    label: str
    needs: tuple[Any, ...] = ()


@dataclass(eq=False)
class _Turn:
    """One run of a task on one worker."""

    key: Any
    worker: SimulatedWorker
    node: Any
    inputs: dict[Any, Any]
    outcome: tuple[Any, BaseException | None] | None = None


class Kept:
    """Names a result that stays on the cluster as long as this lives."""

    def __init__(self, key: Any) -> None:
        self.key = key


class SimulatedCluster:
    """A runner: the same graphs as on a Dask cluster, in this thread, as a seed has it.

    Workers begin tasks in any order, run some twice, freeze, die with what they hold, and join;
    results come late and in any order; all that goes from one to another is pickled. What a task
    was given must be the same after it, and a task that runs again must find the same bits.

    Parameters
    ----------
    random : Random
    killed_at : int or None
        Number of the event at which the client's process ends.
    trace : callable
        Told of each event.
    """

    dashboard_link: str | None = None

    def __init__(
        self, random: Random, killed_at: int | None = None,
        trace: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.random, self.habits = random, Habits.drawn(random)
        self.clock, self._trace = Clock(), trace
        trace(str(self.habits))
        self.killed_at, self.events, self.dead = killed_at, 0, False
        self.at: SimulatedWorker | None = None
        self._made = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._workers: list[SimulatedWorker] = []
        self._specs: dict[Any, _Spec] = {}
        self._holders: dict[Any, list[SimulatedWorker]] = {}
        self._handles: dict[Any, int] = {}
        self._turns: dict[Any, list[_Turn]] = {}
        self._ready: list[Any] = []
        self._waiting: dict[Any, set[Any]] = {}
        self._feeds: dict[Any, list[Any]] = {}
        self._stale = True
        self._told: Callable[[BlockRecord], None] | None = None
        self._failed: BaseException | None = None
        for _ in range(self.random.randint(1, 4)):
            self._join()

    # What a runner has

    def workers(self) -> list[runners.Worker]:
        """Who is there now: others than a moment ago, perhaps."""
        if self.random.random() < self.habits.trouble:
            self._trouble()
        return [runners.Worker(w.name, w.slots, 10**9) for w in self._workers]

    def resident(self, rehearse: Any = None, shared: bool = False) -> int:
        """Nothing: memory is not simulated."""
        received(sent(rehearse))
        return 0

    def claim(self, token: str, need: int, limit: int) -> Standing:
        """This fit is alone."""
        return Standing(0, 0, 1, {})

    def make_room(self, nbytes: int) -> None:
        """There is room."""

    def run(self, graph: Any, places: Any, told: Any) -> list[Any]:
        """Results of the wanted keys, and handles of the kept ones."""
        self._submit(graph, places)
        self._told = told
        try:
            self._compute([*graph.wanted, *graph.kept])
            values = [self._gathered(key) for key in graph.wanted]
            return [*values, *(self._keep(key) for key in graph.kept)]
        finally:
            self._told = None
            self._release()

    def entry(self, key: Any, kept: Any) -> Any:
        """The same result under another key, or a node that holds a value."""
        return Alias(key, kept.key) if isinstance(kept, Kept) else DataNode(key, kept)

    def fetch(self, kept: list[Any]) -> list[Any]:
        """Values of results that were kept; made again where they were lost."""
        self._compute([k.key for k in kept if isinstance(k, Kept)])
        return [self._gathered(k.key) if isinstance(k, Kept) else k for k in kept]

    def forget(self, token: str) -> dict[str, int]:
        """Drop a fit's pinned blocks."""
        for worker in self._workers:
            worker.pinned.drop(token)
        buffers.trim()
        return {worker.name: 0 for worker in self._workers}

    # The graph: what there is to do

    def _submit(self, graph: Any, places: Any) -> None:
        graph = for_processes(graph)
        for key, node in graph.tasks.items():
            home = places[graph.lane_of[key]] if key in graph.lane_of else None
            self._made += 1
            self._specs[key] = _Spec(self._made, sent(node), home, _label(key))
        for key, node in graph.tasks.items():
            of = self._specs
            of[key].needs = tuple(sorted(node.dependencies, key=lambda k: of[k].number))

    def _compute(self, keys: list[Any]) -> None:
        self._stale, self._failed = True, None
        while any(not self._holders.get(key) for key in keys):
            if self._stale:
                self._plan(keys)
            self._begin_tasks()
            self._happen()
            if self._failed is not None:
                failed, self._failed = self._failed, None
                raise failed

    def _plan(self, keys: list[Any]) -> None:
        """Find out what has to be made (again), and what of it can begin."""
        self._stale, self._ready, self._waiting, self._feeds = False, [], {}, {}
        stack = list(reversed(keys))
        while stack:
            key = stack.pop()
            if key in self._waiting or self._holders.get(key):
                continue
            missing = {k for k in self._specs[key].needs if not self._holders.get(k)}
            self._waiting[key] = missing
            for need in self._specs[key].needs:
                if need in missing:
                    self._feeds.setdefault(need, []).append(key)
                    stack.append(need)
            if not missing and not self._runs(key):
                self._ready.append(key)

    def _begin_tasks(self) -> None:
        r = self.random
        tried = len(self._ready)
        while tried and not self._stale:
            free = [w for w in self._workers if w.running < w.slots and not w.frozen]
            if not free:
                return
            tried -= 1
            at = r.randrange(len(self._ready))
            self._ready[at], self._ready[-1] = self._ready[-1], self._ready[at]
            key = self._ready.pop()
            home = [w for w in free if w.name == self._specs[key].home]
            worker = home[0] if home and r.random() < 0.8 else r.choice(free)
            if not self._begin(key, worker):
                self._ready.append(key)
                continue
            others = [w for w in free if w is not worker and not self._stale]
            if others and r.random() < self.habits.twice:
                self._begin(key, r.choice(others))

    # Tasks

    def _begin(self, key: Any, worker: SimulatedWorker) -> bool:
        """Begin a task, if what it needs can be had."""
        spec = self._specs[key]
        for need in spec.needs:
            if need not in worker.results and all(w.frozen for w in self._holders[need]):
                return False
        inputs = {need: self._brought(need, worker) for need in spec.needs}
        turn = _Turn(key, worker, received(spec.message), inputs)
        self.note("begin", spec.label, worker)
        worker.running += 1
        self._turns.setdefault(key, []).append(turn)
        if self.random.random() < 0.5:
            self._execute(turn)
        seconds = self.random.expovariate(1.0)
        if self.random.random() < self.habits.slow:
            seconds *= 50
        self._later(seconds, self._end, turn)
        return True

    def _brought(self, key: Any, worker: SimulatedWorker) -> Any:
        if key not in worker.results:
            holder = self.random.choice([w for w in self._holders[key] if not w.frozen])
            worker.results[key] = received(sent(holder.results[key]))
            self._holders[key].append(worker)
        return worker.results[key]

    def _execute(self, turn: _Turn) -> None:
        before = None
        if self.random.random() < CHECKED:
            before = {key: digest(value) for key, value in turn.inputs.items()}
        with self.inside(turn.worker):
            try:
                turn.outcome = turn.node(turn.inputs), None
            except WorkerKilled:
                self.kill(turn.worker, "in a task")
                return
            except Exception as error:
                turn.outcome = None, received(sent(error))  # without frames that hold anything
        for key in before or ():
            if digest(turn.inputs[key]) != before[key]:
                label = _label(turn.key)
                raise Wrong(f"the task {label} changed what it was given, {_label(key)}")

    def _end(self, turn: _Turn) -> None:
        worker, key = turn.worker, turn.key
        if worker.frozen and not worker.gone:
            self._later(5.0, self._end, turn)
            return
        self._turns[key].remove(turn)
        worker.running -= 1
        if turn.outcome is None and (worker.given_up or not worker.gone):
            self._execute(turn)
        if worker.gone:
            return
        assert turn.outcome is not None
        value, error = turn.outcome
        spec = self._specs.get(key)
        if spec is None:
            return  # nobody wants it any more
        self.note("end" if error is None else f"{type(error).__name__} of", spec.label, worker)
        if error is not None:
            if key in self._waiting and not self._holders.get(key):
                self._failed = error
            return
        holders = self._holders.setdefault(key, [])
        if holders and digest(holders[0].results[key]) != digest(value):
            raise Wrong(f"the task {spec.label} ran twice and found two results")
        worker.results[key] = value
        if worker not in holders:
            holders.append(worker)
        for fed in self._feeds.pop(key, ()):
            self._waiting[fed].discard(key)
            if not self._waiting[fed] and not self._runs(fed):
                self._ready.append(fed)

    def _runs(self, key: Any) -> bool:
        return any(not turn.worker.gone for turn in self._turns.get(key, ()))

    @contextmanager
    def inside(self, worker: SimulatedWorker) -> Iterator[None]:
        """Be that worker's process for a moment."""
        thread, caches = threading.current_thread(), (layout._CACHE, ratings._CACHE)
        name, thread.name, self.at = thread.name, worker.name, worker
        if self.habits.cold:
            layout._CACHE, ratings._CACHE = worker.opened
        try:
            yield
        finally:
            thread.name, self.at = name, None
            layout._CACHE, ratings._CACHE = caches

    # Time

    def _later(self, seconds: float, act: Callable[..., None], *of: Any) -> None:
        self._made += 1
        heapq.heappush(self._heap, (self.clock.now + seconds, self._made, act, of))

    def _happen(self) -> None:
        """The next event, and a disaster now and then."""
        if self.killed():
            raise ClientKilled
        if not self._heap:
            raise Wrong(f"nothing can happen any more; {len(self._waiting)} tasks wait for ever")
        at, _, act, of = heapq.heappop(self._heap)
        self.clock.now = max(self.clock.now, at)
        act(*of)
        if self.random.random() < self.habits.trouble:
            self._trouble()

    def killed(self) -> bool:
        """Whether the client has ended at this event."""
        self.events += 1
        if self.events == self.killed_at:
            self.note("the client is killed")
            self.dead = True
        if self.events > MOST_EVENTS:
            raise Wrong(f"no end after {MOST_EVENTS} events")
        return self.dead

    def hear(self, record: BlockRecord) -> None:
        """A worker's word of a block: it comes late, and some come twice."""
        for _ in range(1 + (self.random.random() < self.habits.twice)):
            self._later(self.random.expovariate(0.5), self._deliver, record)

    def _deliver(self, record: BlockRecord) -> None:
        if self._told is not None:
            self._told(record)

    # Disasters

    def _trouble(self) -> None:
        r = self.random
        worker = r.choice(self._workers)
        what = r.choice(("kill", "freeze", "lose", "join", "kill all"))
        if what == "kill":
            self.kill(worker, "killed")
        elif what == "freeze":
            self._freeze(worker)
        elif what == "lose" and worker.results:
            self._lose(worker, r.choice(list(worker.results)))
        elif what == "join" and len(self._workers) < 6:
            self._join()
        elif what == "kill all" and r.random() < 0.2:
            for each in list(self._workers):
                self.kill(each, "killed with all others")

    def _join(self) -> None:
        self._made += 1
        worker = SimulatedWorker(f"sim://{self._made}", self.random.randint(1, 3))
        self._workers.append(worker)
        self.note("joins", "", worker)

    def kill(self, worker: SimulatedWorker, why: str) -> None:
        """End a worker's process, and perhaps start another."""
        if worker.gone:
            return
        self.note(why, "", worker)
        worker.gone, worker.frozen = True, False
        self._workers.remove(worker)
        for key in list(worker.results):
            self._lose(worker, key)
        self._stale = True
        if not self._workers or self.random.random() < 0.5:
            self._join()

    def _lose(self, worker: SimulatedWorker, key: Any) -> None:
        del worker.results[key]
        self._holders[key].remove(worker)
        self._stale = True

    def _freeze(self, worker: SimulatedWorker) -> None:
        if not worker.frozen:
            self.note("freezes", "", worker)
            worker.frozen = True
            self._later(self.random.expovariate(1 / LOST_AFTER), self._thaw, worker)
            self._later(LOST_AFTER, self._give_up, worker)

    def _thaw(self, worker: SimulatedWorker) -> None:
        if worker.frozen:
            self.note("moves again", "", worker)
            worker.frozen, self._stale = False, True

    def _give_up(self, worker: SimulatedWorker) -> None:
        if worker.frozen:
            worker.given_up = True  # it may still do what it had begun
            self.kill(worker, "given up")

    # Results

    def _gathered(self, key: Any) -> Any:
        while not (there := [w for w in self._holders.get(key, ()) if not w.frozen]):
            if self._holders.get(key):
                self._happen()
            else:
                self._compute([key])
        return aligned(received(sent(self.random.choice(there).results[key])))

    def _keep(self, key: Any) -> Kept:
        handle = Kept(key)
        self._handles[key] = self._handles.get(key, 0) + 1
        weakref.finalize(handle, self._let_go, key)
        return handle

    def _let_go(self, key: Any) -> None:
        self._handles[key] -= 1
        if not self._handles[key]:
            del self._handles[key]

    def _release(self) -> None:
        """Forget all results but those that are kept, and all tasks but those they came from."""
        known, stack = set(), list(self._handles)
        while stack:
            key = stack.pop()
            if key not in known:
                known.add(key)
                stack.extend(self._specs[key].needs)
        for key in [k for k in self._holders if k not in self._handles]:
            for worker in self._holders.pop(key):
                del worker.results[key]
        for key in [k for k in self._specs if k not in known]:
            del self._specs[key]
        self._turns = {key: turns for key, turns in self._turns.items() if turns}

    def left(self) -> list[str]:
        """What is left behind once a fit has ended and all workers have come to rest."""
        self.killed_at = None
        while self._heap:
            self._happen()
        self._release()
        found = [f"the task {_label(key)}" for key in self._specs]
        for worker in self._workers:
            found += [f"{_label(key)} on {worker.name}" for key in worker.results]
            found += [f"pinned blocks on {worker.name}" for _ in worker.pinned._shelves]
        if buffers.free_bytes():
            found.append(f"{buffers.free_bytes()} bytes of buffers")
        return found

    def note(self, what: str, of: str = "", worker: SimulatedWorker | None = None) -> None:
        """Tell the trace."""
        at = "" if worker is None else f" {worker.name}"
        self._trace(f"{self.clock.now - 1e9:9.2f}{at:>10} {what} {of}".rstrip())


def _label(key: Any) -> str:
    """A key without what is drawn anew for each graph."""
    return re.sub(r"-[0-9a-f]{12}", "", str(key))
