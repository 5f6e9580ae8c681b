"""Engine: runs passes and rounds over a source within a memory promise, and tells what happens."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from dask.utils import parse_bytes

from daskdml.engine import tasks
from daskdml.engine.checkpoint import CheckpointPlace, checkpoint_place, seconds_between
from daskdml.engine.cluster import Cluster
from daskdml.engine.graphs import Graph, Group, group_rows, pass_graph, rounds_graph
from daskdml.engine.journal import Entry, Journal
from daskdml.engine.memory import MemoryPlan, Needs, fit_plan
from daskdml.engine.opened import NOTHING, Opened, PassTotals
from daskdml.engine.pace import Pace, unit_of
from daskdml.engine.place import global_client
from daskdml.engine.runners import Inline, Runner, Threads, fit_name
from daskdml.engine.share import share_of
from daskdml.events import Callback, Event, Message, emit
from daskdml.io.options import quiet
from daskdml.io.sources import AnySource
from daskdml.io.states import digest
from daskdml.kernels.targets import DataError, check_rows, explain

GROUP_BYTES = 24_000_000  # rows that one task reads, where chunks are smaller
ROW_SCRATCH = 64  # bytes that a row's encoded target, weight, score and slope take at most


_ambient: contextvars.ContextVar[tuple[Engine, ...]] = contextvars.ContextVar("engine", default=())


class Engine:
    """Where and within what memory fits run; ambient like a Dask client.

    Parameters
    ----------
    client : distributed.Client, Runner or None, default=None
        A Dask client; or a runner of `daskdml.engine.run`: `Threads(n)`, `Inline()`. None means
        the current Dask client if there is one, else threads in this process. Data that is
        already in this process's memory (NumPy, pandas) is always worked on by its threads.
    memory_limit : int or str or None, default=None
        A promise per worker process ("4GB"): resident bytes that a fit will not exceed. A fit
        that cannot keep it is refused before it starts. None means 70 % of what Dask lets its
        workers use, or 60 % of the machine's available memory for threads.
    callbacks : sequence of Callback, default=()
        Told of each event, in order, on the client.
    checkpoint : str or None, default=None
        URL of a folder in which a fit keeps where it stands; the same fit, called again, goes on
        from there and ends with the same bits. One folder for one fit.
    every : str or float, default="60s"
        Time between two checkpoints at least, as in "10s", or seconds.
    keep : int, default=2
        How many checkpoints stay.
    storage_options : dict or None, default=None
        Of the checkpoint's file system; an error without a checkpoint.
    priority : int, default=-10
        Dask's priority of a fit's tasks. Below 0 other people's tasks, which have 0 unless they
        ask for something else, go first.
    max_share : float, default=1.0
        Part of the cluster's threads that a fit uses at once, at most, and at least one of them;
        or of this process's, but not of a `Threads(n)`. Below 1, reading counts as well as
        computing.
    resources : dict or None, default=None
        Dask's resources that each task takes, as in ``{"GPU": 1}``; workers that have less are
        left alone.
    workers : str, int, sequence of them or None, default=None
        Names or addresses of the workers to be used, and no others; None means all.
    min_workers : int, default=1
        How many usable workers must be there before a fit is planned; it waits for them, but not
        longer than ``daskdml.wait-for-workers`` of Dask's configuration says (five minutes).

    Raises
    ------
    ValueError
        If one of the parameters makes no sense, or would be ignored; says which.
    TypeError
        If the client is none, or the options are no dict.

    Examples
    --------
    >>> import daskdml, numpy as np
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1])
    >>> events = []
    >>> with daskdml.Engine(memory_limit="2GB", callbacks=[events.append]):
    ...     _ = daskdml.LogisticRegression().fit(X, y)
    >>> type(events[0]).__name__
    'FitStart'
    """

    def __init__(
        self,
        client: Any = None,
        memory_limit: int | str | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        every: str | float = "60s",
        keep: int = 2,
        storage_options: Mapping[str, Any] | None = None,
        priority: int = -10,
        max_share: float = 1.0,
        resources: Mapping[str, float] | None = None,
        workers: str | int | Sequence[str | int] | None = None,
        min_workers: int = 1,
    ) -> None:
        if client is not None and not hasattr(client, "run"):
            raise TypeError(
                f"Engine takes a Dask client, not {client!r}; pass dask.distributed.Client(...)"
            )
        self.client = client
        self.share = share_of(priority, max_share, resources, workers, min_workers)
        if _is_runner(client):
            self.share.check_runner(type(client).__name__)
        self.memory_limit = None if memory_limit is None else _limit(memory_limit)
        self.callbacks = tuple(callbacks)
        self.checkpoint = _place(checkpoint, every, keep, storage_options)

    def __repr__(self) -> str:
        return f"Engine(client={self.client!r}, memory_limit={self.memory_limit})"

    def __enter__(self) -> Engine:
        _ambient.set((*_ambient.get(), self))  # of this thread: others may have entered, too
        return self

    def __exit__(self, *exc: object) -> None:
        _ambient.set(_ambient.get()[:-1])

    @classmethod
    def current(cls) -> Engine:
        """The innermost engine of a ``with`` block, or a default one."""
        entered = _ambient.get()
        return entered[-1] if entered else cls()

    def runner(self, in_memory: bool) -> Runner:
        """What will execute graphs over data that is, or is not, in this process's memory."""
        client = self.client
        if _is_runner(client):
            return cast(Runner, client)
        client = None if in_memory else client or global_client()
        if client is not None and client.status in ("closing", "closed"):
            raise ValueError("the Dask client is closed; make a new one")
        if client is None:
            if not in_memory:
                self.share.check_no_client()
            return Threads().part(self.share.max_share)
        place = None if self.checkpoint is None else self.checkpoint.url
        return Cluster(client, self.share, lambda text: self.tell(Message(text)), place)

    def open(self, source: AnySource, needs: Needs, once: bool = False) -> Data:
        """Plan a fit over a source; refuses what the memory promise does not allow.

        Parameters
        ----------
        source : Source
        needs : Needs
            What is held beside blocks.
        once : bool
            Rows will be read once, so that none need to stay in memory.

        Raises
        ------
        MemoryError
            If the promise is too small; states the smallest limit that would do.
        """
        return Data(self, source, needs, once)

    def tell(self, event: Event) -> None:
        """Tell the callbacks."""
        emit(self.callbacks, event)


def _is_runner(client: Any) -> bool:
    """Whether it is no Dask client but a runner of this process."""
    return client is not None and not hasattr(client, "scheduler_info")


def _place(
    url: Any, every: str | float, keep: int, options: Mapping[str, Any] | None
) -> CheckpointPlace | None:
    """The place of the checkpoints; what is said of them is checked also where there are none."""
    if url is not None:
        return checkpoint_place(url, every, keep, options)
    seconds_between(every, keep)
    if quiet(options) is not None:
        raise ValueError(
            "storage_options of an Engine are those of its checkpoint, and there is no checkpoint=;"
            " name its URL, or give them to fit or open_dataset, if they are the data's"
        )
    return None


def _limit(promise: int | str) -> int:
    """Bytes that a user promises, above 0."""
    try:
        limit = int(parse_bytes(promise))
    except (ValueError, TypeError, AttributeError, OverflowError):
        limit = 0
    if limit < 1:
        raise ValueError(f"memory_limit={promise!r} is no size; give bytes, or text like '2GB'")
    return limit


class Data(Opened):
    """A source opened by an engine: the groups of its rows, and passes over them.

    Use as a context manager: leaving it forgets the pinned blocks.
    """

    def __init__(self, engine: Engine, source: AnySource, needs: Needs, once: bool) -> None:
        super().__init__(engine, source.in_memory)
        self.once = once
        self.source = source
        self.groups = group_rows(source.chunk_bounds, source.row_nbytes, GROUP_BYTES)
        self.journal = Journal()
        self._pace = Pace()
        self._where: dict[int, str] = {}
        self._recalled: set[int] = set()
        self.require(needs)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return self.source.n_rows, self.source.n_features

    @property
    def n_rows(self) -> int:
        """Rows of the source."""
        return self.source.n_rows

    @property
    def row_nbytes(self) -> int:
        """Decoded bytes of a row."""
        return self.source.row_nbytes

    def _plan(self, needs: Needs) -> MemoryPlan:
        held = not self.source.in_memory
        rows = max(g.rows for g in self.groups)
        plan = MemoryPlan(
            limit=self.promise(),
            baseline=self.baseline,
            block=rows * self.source.row_nbytes if held else 0,
            encoded=self.source.scratch_nbytes if held else 0,
            threads=max(w.threads for w in self.runner.workers()),
            prefetch=1 if held else 0,
            needs=replace(needs, work=needs.work + rows * (ROW_SCRATCH + needs.row)),
        )
        return fit_plan(plan)

    def map_reduce(
        self,
        fn: Callable[[Any], Any],
        label: str,
        groups: Sequence[Group] | None = None,
        parts: tuple[str, ...] = tasks.ALL_PARTS,
    ) -> tuple[Any, PassTotals]:
        """Sum of ``fn(block)`` over groups, in a tree whose shape depends on the data alone.

        Parameters
        ----------
        fn : callable
            Block -> a value that can be added. Must be picklable.
        label : str
            Name of the pass, as on the dashboard.
        groups : sequence of Group or None
            None means all.
        parts : tuple of str
            What of each block is read.

        Returns
        -------
        value, totals
        """
        groups = sorted(self.groups if groups is None else groups, key=lambda g: g.index)
        unit = unit_of(len(groups))
        known = self.journal.begin(label)
        value, totals, at = known.value, known.totals, known.done
        while left := groups[at:]:
            places = self._slots()
            n = self._pace.segment(label, len(left), len(places), unit)
            segment, at = left[:n], at + n
            self._start(label, len(left), sum(g.rows for g in left))
            lanes = self._lanes(segment, places)
            read, self._recalled = self._read(parts), self._held(lanes, places)
            prefetch, held = self.plan.prefetch, self._recalled
            graph = pass_graph(fit_name(label), read, lanes, fn, prefetch, held, unit, value)
            (part,), spent = self._run(graph, places, label, len(places))
            self._pace.took(label, n, spent.seconds)
            value, totals = part.value, totals + spent
            self.journal.reached(Entry(label, at, value, totals))
        self.totals = self.totals + totals
        return value, totals

    def single_pass(
        self,
        fn: Callable[[Any], Any],
        label: str,
        groups: Sequence[Group] | None = None,
        parts: tuple[str, ...] = tasks.ALL_PARTS,
    ) -> Any:
        """`map_reduce` that is no part of a fit: its end is told here, or what broke it off."""
        try:
            value, totals = self.map_reduce(fn, label, groups, parts)
        except BaseException as error:
            self.engine.tell(Message(f"{label}: broken off by {type(error).__name__}"))
            raise
        self.end_pass(label, totals)
        return value

    def identity(self, label: str) -> str:
        """Digits that tell these rows from others: of their shape, and of three groups of them.

        Of rows that lie in this process it is all groups, and a data set has digits of its own.
        None of the groups stays in memory: what is in use now counts as in use before a plan.
        """
        n = len(self.groups)
        few = range(n) if self.source.in_memory else sorted({0, n // 2, n - 1})
        name = f"{label}-identity"
        once, self.once = self.once, True
        found, totals = self.map_reduce(tasks.identify, name, [self.groups[k] for k in few])
        self.once = once
        self.end_pass(name, totals)
        return digest((*self.shape, str(self.source.dtype), self.source.written, found))

    def leave_out(self, totals: PassTotals) -> None:
        """Do not count the rows of a pass that read no rows of X."""
        self.totals = replace(self.totals, rows=self.totals.rows - totals.rows)

    def rounds(
        self,
        schedule: Sequence[Sequence[Group | None]],
        states: Sequence[Any],
        local: Callable[..., Any],
        merge: Callable[..., Any],
        label: str,
        parts: tuple[str, ...] = tasks.ALL_PARTS,
    ) -> tuple[list[Any], PassTotals]:
        """Rounds of local work from ``states`` (the last s + 1, oldest first); see `rounds_graph`.

        What of each block is read are its `parts`, which all passes of a fit name alike.

        Returns
        -------
        states : list
            The last s + 1 states after the rounds.
        totals : PassTotals
        """
        known = self.journal.begin(label)
        totals, states = known.totals, list(states if known.value is None else known.value)
        replicas = max(len(row) for row in schedule)
        at = known.done
        while left := schedule[at:]:
            visited = [g for row in left for g in row if g is not None]
            slots = self._slots()
            groups = self._pace.segment(label, len(left) * replicas, len(slots), replicas)
            n = groups // replicas
            segment, at = left[:n], at + n
            self._start(label, len(visited), sum(g.rows for g in visited))
            places = [slots[k * len(slots) // replicas % len(slots)] for k in range(replicas)]
            read = self._read(parts)
            graph = rounds_graph(
                fit_name(label), read, segment, states, local, merge, self.plan.prefetch
            )
            ended, spent = self._run(graph, places, label, len(slots))
            self._pace.took(label, groups, spent.seconds)
            states = ([*states, *(p.value for p in ended)])[-len(states) :]
            totals = totals + spent
            self.journal.reached(Entry(label, at, states, totals))
        self.totals = self.totals + totals
        return states, totals

    def _read(self, parts: tuple[str, ...]) -> tasks.Read:
        pins = not self.source.in_memory and "X" in parts
        budget = (0 if self.once else self.pinnable()) if pins else None
        return tasks.Read(self.source, parts, self.token, budget, self.plan.spare)

    def _lanes(self, groups: Sequence[Group], places: Sequence[str]) -> list[list[Group]]:
        """Groups of each compute slot; a pinned group stays with the worker that holds it."""
        lanes: list[list[Group]] = [[] for _ in places]
        free = []
        for group in groups:
            home = self._where.get(group.index)
            at_home = [k for k, place in enumerate(places) if place == home]
            if at_home:
                min((lanes[k] for k in at_home), key=len).append(group)
            else:
                free.append(group)
        for group in free:
            min(lanes, key=len).append(group)
        return [sorted(lane, key=lambda g: g.index) for lane in lanes]

    def _held(self, lanes: Sequence[Sequence[Group]], places: Sequence[str]) -> set[int]:
        """Which groups are pinned where their lane runs."""
        pairs = zip(lanes, places, strict=True)
        return {g.index for lane, at in pairs for g in lane if self._where.get(g.index) == at}

    def _run(
        self, graph: Graph, places: Sequence[str], label: str, slots: int
    ) -> tuple[list[Any], PassTotals]:
        try:
            ended, totals = super()._run(graph, places, label, slots)
        except DataError as error:
            first, source = self._first(error), self.source
            raise ValueError(explain(first, source.name, source.feature_names)) from None
        for record in ended[-1].records:
            if not record.pinned and record.index in self._recalled:
                self._where.pop(record.index, None)  # it had to make room for another fit's
            elif record.pinned:
                # In this process, a record names a thread.
                alone = len(self._names) == 1
                self._where[record.index] = next(iter(self._names)) if alone else record.worker
        return ended, totals

    def _first(self, error: DataError) -> DataError:
        """The first bad row of the data, one that cannot be used having been found somewhere."""
        self.journal.stop()  # the pass is broken off; what is sought now is no part of the fit
        in_rows = error.column is not None
        parts = ("X",) if in_rows else ("y", "sample_weight")
        earlier = [g for g in self.groups if g.stop <= error.row]
        if not earlier:
            return error
        check = (error.check or check_rows) if in_rows else None
        found, _ = self.map_reduce(tasks.FindBad(check), "first-bad-row", earlier, parts)
        return found.error or error


def scan_groups(groups: Sequence[Group], row_nbytes: int) -> list[Group]:
    """Fewer, longer groups for passes that read the targets alone, in the memory of a block."""
    largest = max(g.rows for g in groups)
    rows = max(largest, largest * row_nbytes // ROW_SCRATCH)
    bounds = [groups[0].start]
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        if following is None or following.stop - bounds[-1] > rows:
            bounds.append(group.stop)
    return [Group(i, *pair) for i, pair in enumerate(pairwise(bounds))]


__all__ = ["NOTHING", "Data", "Engine", "Inline", "PassTotals", "Threads", "scan_groups"]
