"""The same function for many numbers, on a runner: a sum, within the memory promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask.task_spec import DataNode, Task, TaskRef

from daskdml.engine.graphs import Graph, tree
from daskdml.engine.memory import MemoryPlan, Needs, fit_plan
from daskdml.engine.opened import Opened
from daskdml.engine.place import compute_permit
from daskdml.engine.run import Engine
from daskdml.engine.runners import fit_name
from daskdml.engine.tasks import ONE_BLAS_THREAD, Part

SEGMENT = 256  # numbers of one graph


class Each(Opened):
    """Numbers 0 to n - 1 opened by an engine.

    Parameters
    ----------
    engine : Engine
    n : int
    in_memory : bool
        Whether what the function reads is in this process's memory.
    needs : Needs
    """

    def __init__(self, engine: Engine, n: int, in_memory: bool, needs: Needs) -> None:
        super().__init__(engine, in_memory)
        self.n = n
        self.require(needs)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers, and 1."""
        return self.n, 1

    @property
    def n_rows(self) -> int:
        """Numbers."""
        return self.n

    @property
    def row_nbytes(self) -> int:
        """None are read by the engine itself."""
        return 0

    def _plan(self, needs: Needs) -> MemoryPlan:
        threads = max(w.threads for w in self.runner.workers())
        cure = "write the factors in smaller blocks, or run fewer threads per worker"
        plan = MemoryPlan(self.promise(), self.baseline, 0, 0, threads, 0, needs, cure)
        return fit_plan(plan)

    def sum(self, fn: Callable[[int], Any], label: str) -> Any:
        """Sum of ``fn(k)``, in a tree of fixed shape."""
        total = None
        for start in range(0, self.n, SEGMENT):
            name = fit_name(label)
            slots = self._slots()
            graph: dict[Any, Any] = {f"{name}-fn": DataNode(f"{name}-fn", fn)}
            keys = [(name, k) for k in range(start, min(start + SEGMENT, self.n))]
            for at, key in enumerate(keys):
                gate = [TaskRef(keys[at - len(slots)])] if at >= len(slots) else []
                graph[key] = Task(key, call, TaskRef(f"{name}-fn"), key[1], *gate)
            graph |= tree(f"{name}-sum", keys)
            lanes = {key: at % len(slots) for at, key in enumerate(keys)}
            whole = Graph(graph, [(f"{name}-sum", -1)], lanes)
            (part,) = self.runner.run(whole, slots, lambda record: None)
            total = part.value if total is None else total + part.value
        return total


def call(fn: Callable[[int], Any], k: int, *gate: Any) -> Part:
    """``fn(k)``; `gate` only orders."""
    with compute_permit(), ONE_BLAS_THREAD:
        return Part(fn(k), ())
