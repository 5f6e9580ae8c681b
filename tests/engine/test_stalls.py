"""Tasks that Dask has lost between its scheduler and a worker are sent again."""

from __future__ import annotations

from dataclasses import dataclass

import dask
import pytest
from distributed import Client, get_worker

import daskdml.engine.run
from daskdml import Engine
from daskdml.engine.memory import Needs
from daskdml.events import Message
from tests.engine.processes import Processes
from tests.engine.sources import Made, total

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    """A worker that does nothing is waited for for five seconds; ten rows are a group."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 300)
    with dask.config.set({"daskdml.worker-silence": "5s"}):
        yield


@pytest.fixture(scope="module")
def client():
    """Of one worker."""
    with Processes(1) as cluster, Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


def forget(keys):
    """Have the worker forget tasks, and its scheduler not hear of it."""
    from distributed.worker_state_machine import FreeKeysEvent

    worker = get_worker()

    def lose():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "batched_send", lambda message: None)
            worker.handle_stimulus(FreeKeysEvent(keys=list(keys), stimulus_id="lost"))

    worker.loop.add_callback(lose)


@dataclass
class Lossy:
    """Block -> its sum; `what` is lost by the worker at the block of row 20, so many `times`."""

    what: str
    times: int

    def __call__(self, block):
        """Sum of a block's rows."""
        worker = get_worker()
        lost = vars(worker).setdefault(f"lost_{self.what}", [])
        if block.start == 20 and len(lost) < self.times:
            lost.append(block.start)
            task = worker.get_current_task()
            known = [key for key in worker.state.tasks if self.what in str(key)]
            forget([task] if self.what == "task" else known)
        return total(block)


def summed(client, lossy):
    """The pass's sum, and what was said."""
    events = []
    with Engine(client, callbacks=[events.append]).open(Made(60, 10), Needs()) as data:
        value, _ = data.map_reduce(lossy, "lossy")
    return value, [event.text for event in events if isinstance(event, Message)]


@pytest.mark.parametrize("what", ["task", "lossy"])
def test_what_a_worker_has_lost(what, client):
    """A task that is under way, or all that there is of a pass: it is told, and done again."""
    value, said = summed(client, Lossy(what, 1))
    assert value == total(Made(60, 10).read(0, 60)[0])
    assert any("Dask has lost " in text and "gave them to tcp://" in text for text in said)


def test_what_is_lost_again_and_again(client):
    """It ends in an error that names the task."""
    with pytest.raises(RuntimeError, match=r"'lossy-.*, 2\).* was sent 4 times .* lost track"):
        summed(client, Lossy("task", 99))
