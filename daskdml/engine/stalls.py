"""Tasks that were lost between Dask's scheduler and a worker are noticed, and sent again.

The scheduler and a worker each keep a state of every task, and tell each other what changes. Where
the two come to differ, after a death at a bad moment, the scheduler waits for a worker that waits
for nothing, or for data that only itself is said to hold: neither would ever end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any

from daskdml.engine.survey import NOTE
from daskdml.engine.watch import Watch

AT_WORK = ("executing", "long-running", "flight", "cancelled", "resumed")  # a worker's tasks
TIMES = 3  # that a task is sent again


class Stalls:
    """Looks for tasks of one fit that were given to workers which do nothing at all.

    Parameters
    ----------
    watch : Watch
        Waits for the scheduler's answers; `worker_silence` of its limits is how long such a worker
        is waited for.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._heard = time.monotonic()
        self._idle: dict[tuple[Any, str], float] = {}  # a task and its worker, and since when
        self._times: Counter[Any] = Counter()

    def heard(self) -> None:
        """Something was done."""
        self._heard = time.monotonic()
        self._idle = {}

    def look(self, token: str) -> None:
        """Send again what is lost, if nothing has been heard for a while.

        Raises
        ------
        RuntimeError
            If a task was sent again and again.
        """
        now, patience = time.monotonic(), self._watch.limits.worker_silence
        if now - self._heard < patience / 3:
            return
        run = partial(self._watch.client.run_on_scheduler, asynchronous=True)
        idle = self._watch.ask(run(not_begun, token))
        self._idle = {given: self._idle.get(given, now) for given in idle}
        lost = [given for given, since in self._idle.items() if now - since > patience]
        if not lost:
            return
        keys = [key for key, _ in lost]
        self._times.update(keys)
        key, times = self._times.most_common(1)[0]
        if times > TIMES:
            raise RuntimeError(
                f"the task {key!r} was sent {times} times to workers that did nothing for "
                f"{patience:g} s and never began it; the Dask cluster at {self._watch.address} "
                "has lost track of its work: call fit again on a new one"
            )
        self._watch.tell(
            f"Dask has lost {len(keys)} tasks, the first of them {keys[0]!r}: it gave them to "
            f"{', '.join(sorted({worker for _, worker in lost}))}, where nothing has been done for "
            f"{patience:g} s; they are sent again."
        )
        self._watch.ask(run(send_again, keys))
        self.heard()


def not_begun(token: str, dask_scheduler: Any) -> list[tuple[Any, str]]:
    """A fit's tasks, and their workers, that were given to workers which do nothing.

    Runs in the scheduler's process. Workers say what they do with each heartbeat.
    """
    found = []
    for worker in dask_scheduler.running:
        counts = worker.metrics.get("task_counts", {})
        if not any(counts.get(state) for state in AT_WORK):
            given = [t.key for t in worker.processing if (t.annotations or {}).get(NOTE) == token]
            found += [(key, worker.address) for key in given]
    return found


def send_again(keys: Collection[Any], dask_scheduler: Any) -> None:
    """Take tasks from their workers and give them out anew; data that these alone hold, as well.

    Runs in the scheduler's process.
    """
    lost = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    released = {
        needed.key: "released"
        for task in lost
        for needed in task.dependencies
        if needed.who_has and needed.who_has == {task.processing_on}
    }
    released |= {task.key: "released" for task in lost if task.state == "processing"}
    dask_scheduler.transitions(released, stimulus_id=f"{NOTE}-send-again")
