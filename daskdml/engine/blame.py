"""What a task works on, in words, from its graph."""

from __future__ import annotations

import asyncio
from typing import Any

from dask.task_spec import DataNode, Task, TaskRef

from daskdml.engine import factor_tasks, tasks
from daskdml.engine.factor_tasks import ReadTiles, Tile
from daskdml.engine.graphs import Graph, Group

_ENDS = ("killed by", "exited with")  # of a worker's process, as nannies tell them
_FULL = "memory budget"
ASK_AGAIN = 0.2  # seconds before a nanny is asked


def blame(graph: Graph, key: Any) -> str:
    """Which rows or ratings of which data set a task works on, or else its key.

    Parameters
    ----------
    graph : Graph
    key : object
        Key of a task that failed.
    """
    for node in _loads(graph, key):
        found = _of(graph, node)
        if found is not None:
            return found
    return f"the task {key!r}"


async def last_words(client: Any, nanny: str | None) -> str | None:
    """What the nanny of a worker that died says of its end; None where there is no nanny.

    It may hear of it later than the scheduler does, and is asked until it knows of a death; where
    it knew of an earlier one, that one's cause may be given.
    """
    if not nanny:
        return None
    async with client.rpc(nanny) as asked:
        while True:
            await asyncio.sleep(ASK_AGAIN)
            logs = await asked.get_logs()  # newest first
            said = [text.rpartition(" - ")[2].strip() for _, text in logs]
            ends = [text for text in said if any(end in text for end in (*_ENDS, _FULL))]
            if ends:  # the nanny itself killed it where the line before is about its memory
                return next((text for text in ends[1:2] if _FULL in text), ends[0])


def _loads(graph: Graph, key: Any) -> list[Any]:
    """The task itself, then those whose results it takes."""
    node = graph.tasks.get(key)
    if node is None:
        return []
    return [node, *(graph.tasks[k] for k in sorted(node.dependencies, key=str) if k in graph.tasks)]


def _of(graph: Graph, node: Any) -> str | None:
    if not isinstance(node, Task):
        return None
    how = _how(graph, node)
    if node.func in (tasks.load, tasks.recall) and isinstance(how, tasks.Read):
        start, stop = [arg for arg in node.args if isinstance(arg, int)][1:3]
        return f"rows {start}:{stop} of {how.source.name}"
    if node.func is tasks.assemble:
        start, rows = node.args[2:4]
        return f"rows {start}:{start + rows}"
    if node.func is factor_tasks.load_tile and isinstance(how, ReadTiles):
        side, own = node.args[2], next(arg for arg in node.args if isinstance(arg, Tile))
        last = own.first + len(own.sizes)
        return f"ratings of {side} blocks {own.first}:{last} of {how.ratings.url}"
    groups = [arg for arg in node.args if isinstance(arg, Group)]
    return f"rows {groups[0].start}:{groups[0].stop}" if groups else None


def _how(graph: Graph, node: Task) -> Any:
    """How the task reads, where it does."""
    for arg in node.args:
        entry = graph.tasks.get(arg.key) if isinstance(arg, TaskRef) else None
        if isinstance(entry, DataNode) and isinstance(entry.value, tasks.Read | ReadTiles):
            return entry.value
    return None
