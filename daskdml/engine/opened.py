"""What every opened source has: a plan, a runner, passes that are told, and what they took."""

from __future__ import annotations

import time
import uuid
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import psutil

from daskdml.engine import tasks
from daskdml.engine.ledger import LEDGER, Standing
from daskdml.engine.memory import MemoryPlan, Needs, promisable
from daskdml.events import BlockEnd, Message, PassEnd, PassStart

if TYPE_CHECKING:
    from daskdml.engine.graphs import Graph
    from daskdml.engine.journal import Journal
    from daskdml.engine.run import Engine

_SHARE_OF_MACHINE = 0.6  # of the available memory, where nobody promised anything


@dataclass(frozen=True)
class PassTotals:
    """What a pass (or some rounds) took; seconds are summed over workers but for `seconds`.

    Parameters
    ----------
    seconds : float
        Wall-clock time.
    rows : int
        Rows read from the store or found pinned.
    nbytes : int
        Encoded bytes read from the store.
    read, decode, compute, wait, transfer : float
        Seconds of waiting for stored bytes, decoding, computing, compute slots that stood idle,
        and sending parameters and fetching results.
    pinned_rows : int
        Rows found in memory.
    """

    seconds: float
    rows: int
    nbytes: int
    read: float
    decode: float
    compute: float
    wait: float
    transfer: float
    pinned_rows: int

    def __add__(self, other: PassTotals) -> PassTotals:
        return PassTotals(*(a + b for a, b in zip(_astuple(self), _astuple(other), strict=True)))


def _astuple(totals: PassTotals) -> tuple[Any, ...]:
    return tuple(getattr(totals, name) for name in totals.__dataclass_fields__)


NOTHING = PassTotals(0.0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)


class Opened(ABC):
    """A source opened by an engine. Use as a context manager: leaving it forgets pinned blocks."""

    plan: MemoryPlan
    journal: Journal

    def __init__(self, engine: Engine, in_memory: bool) -> None:
        self.engine = engine
        self.token = uuid.uuid4().hex[:12]
        self.runner = engine.runner(in_memory)
        self._needs = 0, 0  # bytes beside the baseline, and the promise, once there is a plan
        self.standing = self._claim()
        weakref.finalize(self, LEDGER.leave, self.token)  # where nobody leaves it
        self.totals = NOTHING
        self.passes = 0
        self.baseline = 0
        self._resident = 0
        self.peaks: dict[str, int] = {}
        self._under_way: dict[str, int] = {}
        self._names: set[str] = set()

    def __enter__(self) -> Self:
        tasks.ONE_BLAS_THREAD.__enter__()  # a solver's bits must not depend on the core count
        return self

    def __exit__(self, *exc: object) -> None:
        tasks.ONE_BLAS_THREAD.__exit__()
        self.peaks = self.runner.forget(self.token)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Of the data, as it is told when a fit starts."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Rows (or ratings) of one pass."""

    @property
    @abstractmethod
    def row_nbytes(self) -> int:
        """Decoded bytes of one of them."""

    @abstractmethod
    def _plan(self, needs: Needs) -> MemoryPlan:
        """What will be held; raises MemoryError where it is more than is promised."""

    def require(self, needs: Needs, rehearse: Callable[[], None] | None = None) -> None:
        """Plan for what a solver holds; raises MemoryError where it is too much.

        What other fits on the same processes need counts as in use; blocks that they keep in memory
        have to make room.

        Parameters
        ----------
        needs : Needs
        rehearse : callable or None
            Runs the solver's kernels once, in every process, so that compiling them comes before
            the plan and not on top of it. Must be picklable.
        """
        shared = self.standing.fits > 1
        self._resident = max(self._resident, self.runner.resident(rehearse, shared))
        self.standing = self._claim()
        try:
            while True:
                self.baseline = self._resident + self.standing.needs
                self.plan = self._plan(needs)
                self._needs = self.plan.streaming - self.baseline, self.plan.limit
                counted, self.standing = self.standing.needs, self._claim()
                if self.standing.needs <= counted:
                    break
        except BaseException:
            self.runner.forget(self.token)
            raise
        if self.standing.fits > 1:
            self.runner.make_room(self.pinnable())

    def _claim(self) -> Standing:
        return self.runner.claim(self.token, *self._needs)

    def pinnable(self) -> int:
        """Bytes of blocks that may stay in each process now; each of several fits has as many."""
        self.standing = self._claim()
        limit = min(self.plan.limit, self.standing.limit or self.plan.limit)
        came = self.standing.needs - (self.baseline - self._resident)
        return replace(self.plan, limit=limit - max(0, came)).pinned // self.standing.fits

    def promise(self) -> int:
        """Bytes of resident memory that no worker process will exceed."""
        limits = [w.limit for w in self.runner.workers() if w.limit]
        promise = self.engine.memory_limit
        if limits:
            share = promisable(min(limits))
            promise = share if promise is None else min(promise, share)
        if promise is None:
            promise = int(_SHARE_OF_MACHINE * psutil.virtual_memory().available)
            promise += self.baseline
        return promise

    def _slots(self) -> list[str]:
        """The worker of each compute slot there is now; who has come or gone since is told."""
        slots = [w.name for w in self.runner.workers() for _ in range(w.threads)]
        self._note_changes(set(slots))
        return slots

    def _start(self, label: str, n_blocks: int, n_rows: int) -> None:
        if label in self._under_way:
            return  # the pass goes on
        self._under_way[label] = self.passes
        self.passes += 1
        nbytes = n_rows * self.row_nbytes
        self.engine.tell(PassStart(label, self._under_way[label], n_blocks, nbytes))

    def end_pass(
        self, label: str, totals: PassTotals, objective: float | None = None,
        gap: float | None = None, relative: float | None = None,
    ) -> None:  # fmt: skip
        """Tell that a pass ended, with what the solver made of it."""
        t = totals
        bound = (objective, gap, relative)
        spent = (t.read, t.decode, t.compute, t.wait, t.transfer)
        index = self._under_way.pop(label, None)
        if index is not None:  # else an earlier call of the fit made it
            self.engine.tell(PassEnd(label, index, t.seconds, *bound, t.nbytes, *spent))

    def _note_changes(self, names: set[str]) -> None:
        if self._names and names != self._names:
            for name in sorted(self._names - names):
                self.engine.tell(Message(f"The worker {name} is gone; others do its work."))
            for name in sorted(names - self._names):
                self.engine.tell(Message(f"The worker {name} joined."))
        self._names = names

    def _run(
        self, graph: Graph, places: Sequence[str], label: str, slots: int
    ) -> tuple[list[Any], PassTotals]:
        """Results of the graph's wanted keys, then its kept ones; and what the blocks took."""
        seen: set[int] = set()
        began = time.time()

        def told(record: tasks.BlockRecord) -> None:
            if record.graph == graph.name and record.index not in seen:
                seen.add(record.index)
                self._block_end(label, record)

        ended = self.runner.run(graph, places, told)
        stopped = time.time()
        records = ended[len(graph.wanted) - 1].records
        for record in records:
            told(record)
        return ended, _totals(records, began, stopped, slots)

    def _block_end(self, label: str, r: tasks.BlockRecord) -> None:
        nbytes = r.rows * self.row_nbytes
        times = (r.load_began, r.ended, r.read, r.decode, r.compute)
        index = self._under_way[label]
        self.engine.tell(BlockEnd(label, index, r.rows, nbytes, r.worker, *times))


def _totals(
    records: Iterable[tasks.BlockRecord], began: float, stopped: float, slots: int
) -> PassTotals:
    records = list(records)
    compute = sum(r.compute for r in records)
    # A worker's clock may be wrong.
    first = min(max(began, min((r.load_began for r in records), default=began)), stopped)
    last = max(min(stopped, max((r.ended for r in records), default=stopped)), began)
    return PassTotals(
        seconds=stopped - began,
        rows=sum(r.rows for r in records),
        nbytes=sum(r.nbytes for r in records),
        read=sum(r.read for r in records),
        decode=sum(r.decode for r in records),
        compute=compute,
        wait=max(0.0, slots * (stopped - began) - compute),
        transfer=first - began + stopped - last,
        pinned_rows=sum(r.rows for r in records if r.nbytes == 0 and r.pinned),
    )
