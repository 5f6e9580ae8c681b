"""What may become of a request to a simulated store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tests.engine.simulated_cluster import SimulatedCluster, WorkerKilled


class Troubles:
    """What a simulated store's answers suffer."""

    def __init__(self, cluster: SimulatedCluster, outage: float) -> None:
        self.cluster, self.outage = cluster, outage
        self.down: str | None = None
        self.lately = deque([False] * 60, 60)  # which requests failed: tries must suffice

    def __call__(self, operation: str, path: str, act: Callable[[], Any]) -> Any:
        """The answer to a request."""
        c, r = self.cluster, self.cluster.random
        if c.at is None and c.killed():
            raise PermissionError("the client's process has ended")
        if self.down is None and r.random() < self.outage:
            self.down = path
        if path == self.down:
            c.clock.sleep(30)
            raise TimeoutError(f"no answer for {path}")
        self.lately.append(False)
        if sum(self.lately) < 4 and r.random() < c.habits.store:
            return self._late(operation, path, act)
        if c.at is not None and r.random() < c.habits.trouble / 10:
            return self._killing(c.at, operation, act)
        return act()

    def _late(self, operation: str, path: str, act: Callable[[], Any]) -> Any:
        c, r = self.cluster, self.cluster.random
        how = r.choice(("late", "not done", "done"))
        c.note(f"store: {operation} {path}: {how}", "", c.at)
        c.clock.sleep(r.expovariate(0.2))
        if how == "late":
            return act()
        self.lately[-1] = True
        if how == "done" and operation in ("write", "remove"):
            act()
        raise r.choice((ConnectionError("reset by peer"), OSError("503 Slow Down")))

    def _killing(self, worker: Any, operation: str, act: Callable[[], Any]) -> Any:
        """The worker's process ends before or after what it writes is written."""
        done = act() if operation != "write" or self.cluster.random.random() < 0.5 else None
        self.cluster.kill(worker, f"killed at a {operation}")
        if operation == "write":
            raise WorkerKilled
        return done
