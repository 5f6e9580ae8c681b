"""Blocks of Dask arrays as part of an engine's graph: gated, and under keys of that graph."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from dask._task_spec import convert_legacy_graph  # the public module leaves it out
from dask.task_spec import Task, TaskRef
from dask.utils import key_split

from daskdml.engine import tasks
from daskdml.io.dask_rows import DaskSource


def _graph_of(source: DaskSource) -> dict[Any, Any]:
    """The source's tasks, optimised once and kept with it."""
    kept = vars(source)
    if "_tasks" not in kept:
        kept["_tasks"] = convert_legacy_graph(source.graph())
    tasks_by_key: dict[Any, Any] = kept["_tasks"]
    return tasks_by_key


def block_tasks(
    source: DaskSource, name: str, start: int, stop: int, gate: list[TaskRef]
) -> tuple[dict[Any, Any], list[list[Any]]]:
    """The tasks behind the blocks of rows start..stop, renamed into the graph `name`.

    Tasks without dependencies, which make or read the data, wait for `gate`: that is what keeps
    Dask from holding more blocks than planned.

    Returns
    -------
    tasks : dict
    keys : list of list
        Keys of the blocks of X, of y and of the weights.
    """
    graph = _graph_of(source)
    bounds = source.chunk_bounds
    blocks = range(bisect_left(bounds, start), bisect_left(bounds, stop))
    wanted = [source.block_keys(i) for i in blocks]
    roots = [key for keys in wanted for part in keys for key in part]
    subset: dict[Any, Any] = {}
    stack = list(roots)
    while stack:
        key = stack.pop()
        if key not in subset and key in graph:  # what is persisted has no task, only its key
            subset[key] = graph[key]
            stack.extend(graph[key].dependencies)
    new = {key: _renamed(key, name, start) for key in subset}
    made = {}
    for key, node in subset.items():
        node = node.substitute(new, key=new[key])
        if gate and isinstance(node, Task) and not node.dependencies:
            node = Task(new[key], tasks.first, node, *gate)
        made[new[key]] = node
    parts = [[new.get(k, k) for keys in wanted for k in keys[j]] for j in range(3)]
    return made, parts


def _renamed(key: Any, name: str, start: int) -> Any:
    """A key of this graph, under which the dashboard still shows what the task does."""
    at = key[1:] if isinstance(key, tuple) else ()
    prefix = f"{key_split(key)}-{name.rpartition('-')[2]}"
    return (prefix, str(key[0] if at else key), start, *at)
