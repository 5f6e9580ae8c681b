"""Tasks that were lost between Dask's scheduler and a worker are noticed, and sent again.

The scheduler and a worker each keep a state of every task, and tell each other what changes. Where
the two come to differ, after a death at a bad moment, the scheduler waits for a worker that waits
for nothing, or for data that only itself is said to hold: neither would ever end.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from daskdml.engine.survey import NOTE
from daskdml.engine.watch import ASK, Watch

BEGUN = ("executing", "long-running", "cancelled", "resumed")  # a worker's tasks
TO_BEGIN = ("waiting", "ready", "constrained")
TIMES = 3  # that a task is sent again

Needs = Mapping[Any, Collection[Any]]  # tasks, and the data of each that their worker alone holds


@dataclass(frozen=True)
class Lost:
    """What a worker, and the scheduler of it, know differently.

    Parameters
    ----------
    tasks : set
        That it was given, and does not know, or cannot begin.
    data : set
        That it alone is said to hold, and does not.
    """

    tasks: set[Any] = field(default_factory=set)
    data: set[Any] = field(default_factory=set)


class Stalls:
    """Looks for tasks that one fit waits for, given to workers which know nothing of them.

    Parameters
    ----------
    watch : Watch
        `worker_silence` of its limits is how long such a worker is waited for.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._asking: Future[dict[str, Lost]] | None = None
        self._times: Counter[Any] = Counter()
        self.heard()

    def heard(self) -> None:
        """Something was done, or there is nothing to be done."""
        self._looked = self._heard = time.monotonic()
        self._idle: dict[tuple[Any, str], float] = {}  # a task and its worker, and for how long
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def look(self, token: str) -> None:
        """Send again what is lost, if nothing has been heard for a while; waits for no worker.

        Raises
        ------
        RuntimeError
            If a task was sent again and again.
        """
        now, patience = time.monotonic(), self._watch.limits.worker_silence
        if self._asking is None:
            if now - self._heard > patience / 3 and now - self._looked > self._watch.interval:
                answer = _differences(self._watch.client, token)
                loop = self._watch.client.loop.asyncio_loop
                self._asking = asyncio.run_coroutine_threadsafe(answer, loop)
            return
        if not self._asking.done():
            return
        found: dict[str, Lost] = {}
        with suppress(Exception):  # of the connection, say: then it is asked again
            found = self._asking.result()
        # A look that took long, perhaps because this process was stopped, tells of one moment.
        passed = min(now - self._looked, 2 * self._watch.interval)
        self._asking, self._looked = None, now
        idle = [(key, worker) for worker, lost in found.items() for key in lost.tasks]
        self._idle = {given: self._idle.get(given, -passed) + passed for given in idle}
        lost = [given for given, seconds in self._idle.items() if seconds > patience]
        if lost:
            self._send_again(lost, found)

    def _send_again(self, lost: list[tuple[Any, str]], found: dict[str, Lost]) -> None:
        keys = [key for key, _ in lost]
        self._times.update(keys)
        key, times = self._times.most_common(1)[0]
        if times > TIMES:
            raise RuntimeError(
                f"the task {key!r} was sent {times} times to workers that did not know of it "
                f"{self._watch.limits.worker_silence:g} s later; the Dask cluster at "
                f"{self._watch.address} has lost track of its work: call fit again on a new one"
            )
        workers = sorted({worker for _, worker in lost})
        self._watch.tell(
            f"Dask has lost {len(keys)} tasks, the first of them {keys[0]!r}: it gave them to "
            f"{', '.join(workers)}, where nothing is known of them, or of what they need; they "
            "are sent again."
        )
        data = {worker: found[worker].data for worker in workers}
        run = partial(self._watch.client.run_on_scheduler, asynchronous=True)
        self._watch.ask(run(send_again, lost, data))
        self.heard()


async def _differences(client: Any, token: str) -> dict[str, Lost]:
    """What each worker of a fit does not know; those that do not answer in time are left out."""
    given = await client.run_on_scheduler(given_to, token, asynchronous=True)
    answers = await asyncio.gather(
        *(
            asyncio.wait_for(client.run(lost_of, tasks, workers=[worker], asynchronous=True), ASK)
            for worker, tasks in given.items()
        ),
        return_exceptions=True,
    )
    return {
        worker: answer[worker]
        for worker, answer in zip(given, answers, strict=True)
        if not isinstance(answer, BaseException)
    }


def given_to(token: str, dask_scheduler: Any) -> dict[str, Needs]:
    """Tasks that a fit waits for and that workers have been given, by worker.

    Runs in the scheduler's process. Workers to which messages are under way are left out.
    """
    found: dict[str, Needs] = {}
    awaited = _awaited(token, [t for w in dask_scheduler.running for t in w.processing])
    for worker in dask_scheduler.running:
        given = {
            task.key: [need.key for need in task.dependencies if need.who_has == {worker}]
            for task in worker.processing
            if task in awaited
        }
        if given and not _sending(dask_scheduler.stream_comms[worker.address]):
            found[worker.address] = given
    return found


def _awaited(token: str, given: Collection[Any]) -> set[Any]:
    """Of some tasks, and all that wait for them, those that a fit waits for.

    They are its own, and the user's that lead to these: rows that are persisted, and not made yet.
    """
    seen, found = set(given), set()
    ahead = list(given)
    while ahead:
        task = ahead.pop()
        if (task.annotations or {}).get(NOTE) == token:
            found.add(task)
        else:
            later = (task.waiters or set()) - seen
            seen |= later
            ahead += later
    behind = list(found)
    while behind:
        needs = ((behind.pop().waiting_on or set()) & seen) - found
        found |= needs
        behind += needs
    return found


def _sending(batched: Any) -> bool:
    """Whether something that was sent to a worker still waits in this process."""
    stream = getattr(batched.comm, "stream", None)
    return bool(batched.buffer) or (stream is not None and stream.writing())


async def lost_of(given: Needs, dask_worker: Any) -> Lost:
    """What a worker was given, and does not know; runs there, beside its tasks."""
    state, lost = dask_worker.state, Lost()
    busy = state.executing or state.long_running or state.in_flight_tasks
    for key, needs in given.items():
        task = state.tasks.get(key)
        known = task is not None and (task.state in BEGUN or (busy and task.state in TO_BEGIN))
        if not known:
            lost.tasks.add(key)
            lost.data.update(need for need in needs if need not in dask_worker.data)
    return lost


def send_again(
    tasks: Collection[tuple[Any, str]], data: Mapping[str, Collection[Any]], dask_scheduler: Any
) -> None:
    """Take tasks from their workers and give them out anew; so, too, data that nobody holds.

    Runs in the scheduler's process.
    """
    stimulus, gone = f"{NOTE}-send-again", {}
    for address, keys in data.items():
        worker = dask_scheduler.workers.get(address)
        for key in keys:
            task = dask_scheduler.tasks.get(key)
            if worker is not None and task is not None and worker in (task.who_has or ()):
                dask_scheduler.remove_replica(task, worker)
                if not task.who_has:
                    gone[key] = "released" if task.run_spec else "forgotten"
    dask_scheduler.transitions(gone, stimulus_id=stimulus)
    released = {}
    for key, address in tasks:
        task = dask_scheduler.tasks.get(key)
        if task is not None and task.processing_on and task.processing_on.address == address:
            released[key] = "released"
    dask_scheduler.transitions(released, stimulus_id=stimulus)
