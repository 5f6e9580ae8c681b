"""A fit stays within the part of a cluster that it was given, and leaves the rest to others."""

from __future__ import annotations

import time
from dataclasses import dataclass

import dask
import pytest
from distributed import Client

import daskdml.engine.run
from daskdml import Engine
from daskdml.engine.memory import Needs
from daskdml.engine.run import Threads
from daskdml.events import BlockEnd, Message
from tests.engine.processes import Processes
from tests.engine.sources import Made, total


@pytest.fixture(autouse=True)
def one_chunk_a_group(monkeypatch):
    """Each chunk is a group; a fit does not wait long for workers."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
    with dask.config.set({"daskdml.wait-for-workers": "1s"}):
        yield


@pytest.fixture(scope="module")
def cluster():
    """Two workers of two threads each; one of them, "gpu", has a GPU."""
    with Processes() as cluster, Client(cluster.address, set_as_default=False) as client:
        cluster.worker(name="plain", nthreads=2)
        cluster.worker(name="gpu", nthreads=2, resources={"GPU": 1})
        client.wait_for_workers(2, timeout=60)
        yield client


@dataclass
class Noting(Made):
    """Writes down when each read began and ended."""

    path: str = ""

    def read(self, start, stop, parts=("X", "y", "sample_weight")):
        """Rows start..stop."""
        began = time.monotonic()
        block = super().read(start, stop, parts)
        note(self.path, began)
        return block


@dataclass
class NotingTotal:
    """Block -> its sum; writes down when it began and ended."""

    path: str

    def __call__(self, block):
        """Sum of a block's rows."""
        began = time.monotonic()
        time.sleep(0.02)
        note(self.path, began)
        return total(block)


def note(path, began):
    """Append one interval to a file."""
    with open(path, "a") as file:
        file.write(f"{began} {time.monotonic()}\n")


def most_at_once(path):
    """The largest number of intervals that overlap."""
    with open(path) as file:
        intervals = [tuple(map(float, line.split())) for line in file]
    assert len(intervals) >= 40
    edges = sorted([(a, 1) for a, _ in intervals] + [(b, -1) for _, b in intervals])
    at, most = 0, 0
    for _, change in edges:
        at += change
        most = max(most, at)
    return most


def run(client, path, **options):
    """Run two passes over forty blocks; gives the value, the events, and the most tasks at once."""
    events = []
    source = Noting(200, 5, seconds=0.02, path=str(path))
    engine = Engine(client, callbacks=[events.append], **options)
    with engine.open(source, Needs(), once=True) as data:
        value, _ = data.map_reduce(NotingTotal(str(path)), "note")
        again, _ = data.map_reduce(NotingTotal(str(path)), "note-again")
    assert value == again
    return value, events, most_at_once(path)


VALUE = float(sum(range(200)) * 2)


@pytest.mark.cluster
@pytest.mark.parametrize(("share", "most"), [(0.25, 1), (0.5, 2), (0.99, 3), (1e-9, 1)])
def test_a_share_of_the_threads(share, most, cluster, tmp_path):
    """No more tasks run at once, reads and computations together, than the share has threads."""
    value, _, seen = run(cluster, tmp_path / "notes", max_share=share)
    assert value == VALUE and seen == most


@pytest.mark.cluster
def test_the_whole_cluster(cluster, tmp_path):
    """With no share all threads compute, and others read ahead."""
    value, events, seen = run(cluster, tmp_path / "notes")
    assert value == VALUE and seen > 3
    assert len({e.worker for e in events if isinstance(e, BlockEnd)}) == 2


def test_a_share_of_threads_of_this_process():
    """On threads it is the part that computes."""
    assert Threads(8).part(0.5).n == 4 and Threads(8).part(0.01).n == 1


def addresses(client):
    """Address of each worker by name."""
    return {w["name"]: a for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}


@pytest.mark.cluster
@pytest.mark.parametrize("by", ["name", "address", "resource"])
def test_some_workers_alone(by, cluster, tmp_path):
    """Where workers are named, or a resource is, no other worker does anything."""
    gpu = addresses(cluster)["gpu"]
    options = {
        "name": {"workers": "gpu"}, "address": {"workers": [gpu]},
        "resource": {"resources": {"GPU": 1}},
    }[by]  # fmt: skip
    value, events, seen = run(cluster, tmp_path / "notes", **options)
    assert value == VALUE
    assert {e.worker for e in events if isinstance(e, BlockEnd)} == {gpu}
    if by == "resource":
        assert seen == 1  # there is one GPU


@pytest.mark.cluster
def test_tasks_have_the_priority(cluster):
    """Tasks of a fit have the priority that the engine was given, by default below others'."""

    def first(dask_scheduler=None):
        return {t.priority[0] for t in dask_scheduler.tasks.values() if "wait" in str(t.key)}

    for options, expected in (({}, 10), ({"priority": 3}, -3)):
        found = set()

        def look(event, found=found):
            if isinstance(event, BlockEnd):
                found |= cluster.run_on_scheduler(first)

        engine = Engine(cluster, callbacks=[look], **options)
        with engine.open(Made(40, 5, seconds=0.02), Needs(), once=True) as data:
            data.map_reduce(total, "wait")
        assert found == {expected}  # Dask sorts by the negative


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_share": 0}, "max_share=0 must be above 0 and at most 1"),
        ({"max_share": 1.5}, "max_share=1.5 must be above 0"),
        ({"max_share": True}, "max_share=True must be"),
        ({"max_share": float("nan")}, "max_share=nan must be"),
        ({"max_share": "half"}, "max_share='half' must be"),
        ({"resources": {"GPU": 0}}, "the amount of 'GPU' must be above 0"),
        ({"min_workers": 0}, "min_workers=0 must be a number of at least 1"),
        ({"workers": []}, "nobody to work"),
        ({"priority": "low"}, "priority='low' must be an integer"),
    ],
)
def test_parameters_that_make_no_sense(options, match):
    """They are refused where the engine is made."""
    with pytest.raises(ValueError, match=match):
        Engine(**options)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"workers": ["plain", "nobody"]}, ValueError, r"no worker 'nobody'; it has .*plain \(tcp"),
        ({"resources": {"TPU": 2}}, TimeoutError, r"resource 'TPU' \(2 of it\).* within 1 s"),
        ({"min_workers": 3}, TimeoutError, r"has 2 workers, and min_workers=3 .* within 1 s"),
    ],
)
def test_what_the_cluster_does_not_have(options, error, match, cluster):
    """It is told before anything is read, after the stated time at most."""
    began = time.monotonic()
    with pytest.raises(error, match=match):
        Engine(cluster, **options).open(Made(10, 5), Needs())
    assert time.monotonic() - began < 5


@pytest.mark.cluster
def test_a_fit_waits_for_its_workers(cluster):
    """With min_workers a plan is made when they are there."""
    events = []
    with Processes() as few, Client(few.address, set_as_default=False) as client:
        few.worker()
        few.worker()
        engine = Engine(client, min_workers=2, callbacks=[events.append])
        with dask.config.set({"daskdml.wait-for-workers": "60s"}):
            data = engine.open(Made(10, 5), Needs())
        assert len(data.runner.workers()) == 2
    assert any(isinstance(e, Message) and "of 2 are there" in e.text for e in events)
