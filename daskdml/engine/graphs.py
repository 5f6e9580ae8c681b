"""Graphs of passes and rounds: pure functions -> {key: Task}. No Dask scheduler is named here.

Three kinds of edges hold everything together. A *data* edge carries a block or a result. A *gate*
edge makes the load of a lane's block wait until an earlier block of that lane has been computed:
it bounds how many blocks are alive. A *state* edge carries the parameters a computation starts
from; bounded staleness is such an edge that reaches further back.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dask.task_spec import DataNode, List, Task, TaskRef

from daskdml.engine import tasks
from daskdml.engine.collections import block_tasks
from daskdml.engine.memory import FAN_IN
from daskdml.io.sources import DaskSource


@dataclass(frozen=True)
class Group:
    """Consecutive rows that one task reads: the unit of work, of the sums and of the gate."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows of the group."""
        return self.stop - self.start


@dataclass(frozen=True)
class Graph:
    """Tasks by key, the keys whose results are wanted, and the lane of each lane's task.

    Results of `kept` keys stay where they are, for a later graph to start from. Records of its
    blocks have its name.
    """

    tasks: dict[Any, Any]
    wanted: list[Any]
    lane_of: dict[Any, int] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    name: str = ""


def for_processes(graph: Graph, share: DataNode | None = None) -> Graph:
    """The graph whose tasks run in other processes, and mind how what they are given lies there.

    Sums alone do not: adding arrays is the same wherever they lie, and spares a copy of each.

    Parameters
    ----------
    graph : Graph
    share : DataNode or None
        An `Allotment`, by which tasks wait until they may run.
    """
    nodes: dict[Any, Any] = {} if share is None else {share.key: share}
    for key, node in graph.tasks.items():
        before: list[Any] = []
        if share is not None and isinstance(node, Task):
            before = [tasks.allotted, TaskRef(share.key)]
        if type(node) is Task and node.func is not tasks.combine:
            before.append(tasks.received)
        if before:
            node = Task(key, *before, node.func, *node.args, **node.kwargs)
        nodes[key] = node
    return replace(graph, tasks=nodes)


def group_rows(chunk_bounds: Sequence[int], row_nbytes: int, target: int) -> tuple[Group, ...]:
    """Cut rows along chunk boundaries into groups of about `target` bytes.

    The cut depends on the data alone, so that sums over groups have the same bits everywhere.

    Examples
    --------
    >>> [(g.start, g.stop) for g in group_rows([0, 10, 20, 30, 35], row_nbytes=1, target=20)]
    [(0, 20), (20, 35)]
    """
    groups: list[Group] = []
    start = chunk_bounds[0]
    for stop, following in zip(chunk_bounds[1:], [*chunk_bounds[2:], None], strict=False):
        full = following is None or (following - start) * row_nbytes > target
        if stop > start and full:
            groups.append(Group(len(groups), start, stop))
            start = stop
    return tuple(groups)


def _how(graph: dict[Any, Any], name: str, read: tasks.Read) -> TaskRef:
    key = f"{name}-how"
    graph.setdefault(key, DataNode(key, replace(read, graph=name)))
    return TaskRef(key)


def _load(
    graph: dict[Any, Any], name: str, read: tasks.Read, key: Any, group: Group, gate: list[Any]
) -> list[Any]:
    """Add what brings one group into memory after the results named in `gate`; the keys added."""
    if not isinstance(read.source, DaskSource):
        how = _how(graph, name, read)
        graph[key] = Task(key, tasks.load, how, group.index, group.start, group.stop, *gate)
        return [key]
    made, arrays = block_tasks(read.source, name, group.start, group.stop, gate)
    nested = List(*(List(*map(TaskRef, keys)) for keys in arrays))
    about = (name, group.index, group.start, group.rows, read.source.dtype)
    graph.update(made)
    graph[key] = Task(key, tasks.assemble, *about, nested, *gate)
    return [*made, key]


def pass_graph(
    name: str,
    read: tasks.Read,
    lanes: Sequence[Sequence[Group]],
    fn: Callable[[Any], Any],
    prefetch: int,
    held: Container[int] = (),
    unit: int = FAN_IN,
    start: Any = None,
) -> Graph:
    """A map over the lanes' groups, and its sum from `start` on, unit after unit.

    Parameters
    ----------
    name : str
        Prefix of the keys; unique to this graph.
    read : Read
        How to load a group.
    lanes : sequence of sequence of Group
        What each compute slot walks, in order.
    fn : callable
        Block -> something that can be added.
    prefetch : int
        Groups read ahead by each lane.
    held : container of int
        Indices of groups whose blocks lie in the memory of their lane's process: nothing is to be
        read ahead, and one task does.
    unit : int
        Groups that are summed before they are added; see `sum_graph`.
    start : object or None
        What is known of the sum.
    """
    graph: dict[Any, Any] = {}
    lane_of: dict[Any, int] = {}
    fn_key = f"{name}-state"
    graph[fn_key] = DataNode(fn_key, fn)
    for lane, groups in enumerate(lanes):
        for at, group in enumerate(groups):
            gate = [TaskRef((name, groups[at - 1 - prefetch].index))] if at > prefetch else []
            load, key = (f"{name}-read", group.index), (name, group.index)
            if group.index in held:
                how = _how(graph, name, read)
                rows = (group.index, group.start, group.stop)
                graph[key] = Task(key, tasks.recall, TaskRef(fn_key), how, *rows, *gate)
                lane_of[key] = lane
                continue
            loads = _load(graph, name, read, load, group, gate)
            graph[key] = Task(key, tasks.compute, TaskRef(fn_key), TaskRef(load))
            lane_of.update(dict.fromkeys([*loads, key], lane))
    parts: list[Any] = [(name, i) for i in sorted(g.index for lane in lanes for g in lane)]
    graph |= sum_graph(f"{name}-sum", parts, unit, start)
    return Graph(graph, [(f"{name}-sum", -1)], lane_of, name=name)


def sum_graph(name: str, keys: Sequence[Any], unit: int, start: Any = None) -> dict[Any, Any]:
    """``start``, and then the sum of each `unit` of keys, added from left to right.

    So a sum that goes on from where another one ended, after whole units, has the same bits as one
    over all of the keys.
    """
    if start is None and len(keys) <= unit:
        return tree(name, keys)
    graph: dict[Any, Any] = {}
    added: list[Any] = []
    if start is not None:
        added.append((name, "start"))
        graph[added[0]] = DataNode(added[0], tasks.Part(start, ()))
    for i in range(0, len(keys), unit):
        graph |= tree(name, keys[i : i + unit], f"unit-{i}")
        added.append((name, f"unit-{i}", -1))
        if len(added) == FAN_IN:
            key = (name, f"until-{i}")
            graph[key] = Task(key, tasks.combine, *map(TaskRef, added))
            added = [key]
    root = (name, -1)
    graph[root] = Task(root, tasks.combine, *map(TaskRef, added))
    return graph


def tree(name: str, keys: Sequence[Any], *part: str) -> dict[Any, Task]:
    """Sums of keys in a tree of fixed shape; the root's key is ``(name, *part, -1)``.

    Examples
    --------
    >>> sorted(tree("sum", ["a", "b"]))
    [('sum', -1)]
    """
    graph: dict[Any, Task] = {}
    level = list(keys)
    while len(level) > FAN_IN:
        above = []
        for i in range(0, len(level), FAN_IN):
            key = (name, *part, len(graph))
            graph[key] = Task(key, tasks.combine, *map(TaskRef, level[i : i + FAN_IN]))
            above.append(key)
        level = above
    root = (name, *part, -1)
    graph[root] = Task(root, tasks.combine, *map(TaskRef, level))
    return graph


def rounds_graph(
    name: str,
    read: tasks.Read,
    schedule: Sequence[Sequence[Group | None]],
    states: Sequence[Any],
    local: Callable[..., Any],
    merge: Callable[..., Any],
    prefetch: int,
) -> Graph:
    """Rounds of local work whose staleness is an edge [1]_.

    ``state[t] = merge(state[t-1], state[t-1-s], [local(state[t-1-s], block k of round t) ...])``
    with ``s = len(states) - 1``: the local work of round t starts from the state of s + 1 rounds
    ago, whatever the timing.

    Parameters
    ----------
    name, read, prefetch
        As in `pass_graph`.
    schedule : sequence of sequence of Group or None
        What each replica works on in each round; None where a replica has nothing left.
    states : sequence
        The last s + 1 states before the first of these rounds, oldest first.
    local : callable
        ``local(state, block, group, t, k) -> value``.
    merge : callable
        ``merge(state, base, values) -> state``.

    References
    ----------
    .. [1] Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
       Server", NIPS 2013.
    """
    graph: dict[Any, Any] = {}
    lane_of: dict[Any, int] = {}
    stale = len(states)
    for i, state in enumerate(states):
        key = (f"{name}-state", i - stale)
        graph[key] = DataNode(key, tasks.Part(state, ()))
    fns = f"{name}-rules"
    graph[fns] = DataNode(fns, (local, merge))
    walked: dict[int, list[Any]] = {}
    for t, row in enumerate(schedule):
        base = TaskRef((f"{name}-state", t - stale))
        results = []
        for k, group in enumerate(row):
            if group is None:
                continue
            done = walked.setdefault(k, [])
            gate = [TaskRef(done[-1 - prefetch])] if len(done) > prefetch else []
            load, work = (f"{name}-read", t, k), (name, t, k)
            loads = _load(graph, name, read, load, group, gate)
            graph[work] = Task(
                work, tasks.local_round, TaskRef(fns), base, TaskRef(load), group, t, k
            )
            lane_of.update(dict.fromkeys([*loads, work], k))
            done.append(work)
            results.append(TaskRef(work))
        after = (f"{name}-state", t)
        before = TaskRef((f"{name}-state", t - 1))
        graph[after] = Task(after, tasks.merge_round, TaskRef(fns), before, base, *results)
        lane_of[after] = 0
    wanted = [(f"{name}-state", t) for t in range(len(schedule) - stale, len(schedule))]
    return Graph(graph, wanted, lane_of, name=name)
