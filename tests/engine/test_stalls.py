"""Tasks that Dask has lost between its scheduler and a worker are sent again."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, Event, get_worker, secede, wait

import daskdml.engine.run
from daskdml import Engine, Ridge
from daskdml.engine.memory import Needs
from daskdml.engine.run import Inline
from daskdml.engine.stalls import given_to
from daskdml.engine.survey import NOTE
from daskdml.engine.watch import Watch
from daskdml.events import Message, PassStart
from tests.engine.processes import Processes
from tests.engine.sources import Made, total

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    """A worker that does nothing is waited for for three seconds; ten rows are a group.

    None is removed for its silence, since there is but one, which loads code for as long.
    """
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 300)
    monkeypatch.setattr(Watch, "_silent", lambda watch, slow: [])
    with dask.config.set({"daskdml.worker-silence": "3s"}):
        yield


@pytest.fixture(scope="module")
def client():
    """Of one worker."""
    with Processes(1) as cluster, Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


def forget(keys, worker):
    """Have the worker forget tasks, and its scheduler not hear of it."""
    from distributed.worker_state_machine import FreeKeysEvent

    def lose():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "batched_send", lambda message: None)
            worker.handle_stimulus(FreeKeysEvent(keys=list(keys), stimulus_id="lost"))

    worker.loop.add_callback(lose)


@dataclass
class Lossy:
    """Block -> its sum; `what` is lost at the block of row 20, so many `times` in each case."""

    what: str
    times: int
    case: str = ""

    def __call__(self, block):
        """Sum of a block's rows."""
        worker = get_worker()
        lost = vars(worker).setdefault(f"lost_{self.what}_{self.case}", [])
        if block.start == 20 and len(lost) < self.times:
            lost.append(block.start)
            task = worker.get_current_task()
            known = [key for key in worker.state.tasks if self.what in str(key)]
            forget([task] if self.what == "task" else known, worker)
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


def linger(name):
    """A neighbour's task that gives its thread back, and stays."""
    secede()
    Event(name).wait(250)


def test_a_neighbour_that_stays_hides_nothing(client):
    """What is lost is sent again, though its worker does something else all the while."""
    theirs = client.submit(linger, "go", pure=False)
    value, said = summed(client, Lossy("task", 1, "beside"))
    assert value == total(Made(60, 10).read(0, 60)[0]) and not theirs.done()
    assert any("Dask has lost " in text for text in said)
    Event("go", client=client).set()
    theirs.result(30)


def lose_all(dask_worker):
    """Have a worker forget what it has not begun, but none of its data; how much that is."""
    tasks = dask_worker.state.tasks.values()
    keys = [task.key for task in tasks if task.state in ("waiting", "ready")]
    forget(keys, dask_worker)
    return len(keys)


def lose_first(client, name):
    """Have the worker forget the first that it is given, while its thread is busy."""
    theirs = client.submit(Event(name).wait, 250, priority=100, pure=False)
    while not sum(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()):
        assert not theirs.done()

    def lose():
        while not sum(client.run(lose_all).values()) and not theirs.done():
            time.sleep(0.02)
        Event(name, client=client).set()

    threading.Thread(target=lose).start()


@pytest.mark.parametrize("kind", ["persisting", "persisted", "scattered"])
def test_data_of_others_stay(kind, client, tmp_path):
    """Rows that a fit did not make are neither made anew nor lost, where it is sent again.

    Those that are still to be made, and are lost themselves, are sent again as well.
    """
    rng = np.random.default_rng(0)
    rows, y = rng.standard_normal((400, 5)), rng.standard_normal(400)
    log = str(tmp_path / "log")

    def made(at):
        with open(log, "a") as file:
            file.write("made\n")
        return rows[at : at + 20]

    with client.as_current():
        blocks = [
            da.from_delayed(
                client.scatter(made(at)) if kind == "scattered" else dask.delayed(made)(at),
                (20, 5), float,
            )
            for at in range(0, 400, 20)
        ]  # fmt: skip
        X = da.concatenate(blocks)
        if kind == "persisting":
            lose_first(client, kind)
        X = X if kind == "scattered" else X.persist()
        if kind == "persisted":
            wait(X)
        seen, said = [], []

        def heard(event):
            if isinstance(event, PassStart):
                seen.append(event)
                if len(seen) == 1 and kind != "persisting":
                    lose_first(client, kind)
            elif isinstance(event, Message):
                said.append(event.text)

        with Engine(client, callbacks=[heard]):
            found = Ridge().fit(X, y)
    with Engine(Inline()):
        expected = Ridge().fit(rows, y)
    np.testing.assert_allclose(found.coef_, expected.coef_)
    assert any("Dask has lost " in text for text in said)
    assert len((tmp_path / "log").read_text().split()) == 20


def send_much(address, dask_scheduler):
    """Have the scheduler send more to a worker than the system takes at once."""
    dask_scheduler.stream_comms[address].send({"op": "much", "bytes": b"x" * 50_000_000})


def test_what_is_under_way_is_not_lost():
    """While messages to a worker wait to be sent, nothing is said of its tasks."""
    with Processes(1) as cluster, Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        ((address, pid),) = client.run(os.getpid).items()
        with dask.annotate(**{NOTE: "fit"}):
            future = client.submit(Event("never").wait, 60, key="waits", pure=False)
        while not client.run_on_scheduler(given_to, "fit"):
            assert future.status == "pending"
        os.kill(pid, signal.SIGSTOP)
        client.run_on_scheduler(send_much, address)
        assert client.run_on_scheduler(given_to, "fit") == {}
        os.kill(pid, signal.SIGKILL)
