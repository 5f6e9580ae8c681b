"""A fit stays within the part of a cluster that it was given, and leaves the rest to others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, Event, LocalCluster, Security
from distributed.core import Status

import daskdml.engine.limits
import daskdml.engine.run
from daskdml import Engine, LogisticRegression, Ridge
from daskdml.engine.cache import PINNED
from daskdml.engine.memory import Needs
from daskdml.engine.run import Inline, Threads
from daskdml.engine.sweeps import Sweeps, cut_tiles
from daskdml.events import BlockEnd, Message
from daskdml.io import convert_ratings, write_dataset
from tests.engine.processes import Processes
from tests.engine.sources import Made, set_segments, total


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


@dataclass
class NotingWalk(NotingTotal):
    """State and block -> the block's sum."""

    def __call__(self, state, block, group, t, k):
        """The work of a replica in a round."""
        return super().__call__(block)


def meet(state, base, values):
    """The state after a round."""
    return state + sum(values)


@dataclass
class NotingRule:
    """Factors of a tile -> the same; writes down when it began and ended."""

    path: str

    def __call__(self, old, block, factors):
        """New factors, and their number."""
        began = time.monotonic()
        time.sleep(0.04)
        note(self.path, began)
        return old, len(old)


def zeros(block, rows):
    """First factors of a block."""
    return np.zeros((rows, 2))


@pytest.mark.cluster
def test_a_share_of_the_threads_in_rounds_and_sweeps(cluster, tmp_path):
    """So it is in rounds of local work by more replicas, and in sweeps over more tiles."""
    engine, path = Engine(cluster, max_share=0.5), str(tmp_path / "rounds")
    with engine.open(Noting(200, 5, seconds=0.02, path=path), Needs(), once=True) as data:
        schedule = [data.groups[k : k + 5] for k in range(0, 40, 5)]
        (state,), _ = data.rounds(schedule, [0.0], NotingWalk(path), meet, "note")
    assert state == VALUE and most_at_once(path) == 2

    users, items = np.divmod(np.arange(40 * 4), 4)
    ratings = convert_ratings((users, items, np.ones(160)), tmp_path / "r.zarr", grid=(20, 1))
    tiles = {side: cut_tiles(ratings.bounds(side), 20) for side in ("user", "item")}
    rule = NotingRule(str(tmp_path / "sweeps"))
    with Sweeps(engine, ratings, tiles, 2, Needs()) as data:
        own, other = (data.make(side, zeros, "first") for side in tiles)
        for _ in range(2):
            found, own, _ = data.half_sweep("user", rule, own, other, "note")
            assert found == [2] * 20
    assert most_at_once(rule.path) == 2


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
        ({"resources": {"GPU": 0}}, "the amount of 'GPU' must be a number above 0"),
        ({"min_workers": 0}, "min_workers=0 must be a whole number of at least 1"),
        ({"min_workers": True}, "min_workers=True must be a whole number"),
        ({"min_workers": 1.5}, "min_workers=1.5 must be a whole number"),
        ({"workers": 3.5}, "workers=3.5 must be a worker's name"),
        ({"workers": b"a"}, "workers=b'a' must be a worker's name"),
        ({"workers": ["a", None]}, "None] must be a worker's name"),
        ({"workers": True}, "workers=True must be a worker's name"),
        ({"workers": []}, "nobody to work"),
        ({"priority": "low"}, "priority='low' must be an integer"),
        ({"priority": 10**400}, "must be an integer of at most 1,000,000,000"),
        ({"resources": "GPU"}, "resources='GPU' must be a dict"),
        ({"memory_limit": "lots"}, "memory_limit='lots' is no size"),
        ({"memory_limit": -1}, "memory_limit=-1 is no size"),
        ({"every": "soon"}, "every='soon' is no time"),
        ({"every": -1}, "every=-1 is no time"),
        ({"keep": 0}, "keep=0: at least one"),
        ({"storage_options": {"secret": "x"}}, "no checkpoint=; name its URL, or give them to fit"),
    ],
)
def test_parameters_that_make_no_sense(options, match):
    """They are refused where the engine is made."""
    with pytest.raises(ValueError, match=match):
        Engine(**options)


def test_options_that_are_no_dict():
    """They are told as such, with and without a checkpoint."""
    for place in ({}, {"checkpoint": "memory://fit"}):
        with pytest.raises(TypeError, match="storage_options must be a dict, not str"):
            Engine(storage_options="nope", **place)


@pytest.mark.parametrize("runner", [Threads(4), Inline()], ids=["Threads", "Inline"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_share": 0.25}, r"max_share=0.25 is a part .*(Threads|Inline) are this fit's own"),
        ({"resources": {"GPU": 1}}, r"resources={'GPU': 1} is about .*(Threads|Inline) has none"),
        ({"workers": "a"}, r"workers=\['a'\] is about the workers .* pass a Dask client"),
        ({"min_workers": 9}, r"min_workers=9 is about the workers .* leave it out"),
    ],
)
def test_runners_refuse_what_they_would_ignore(options, match, runner):
    """What is about a cluster is refused where the client is a runner of this process."""
    with pytest.raises(ValueError, match=match):
        Engine(runner, **options)


def test_rows_in_memory_need_no_workers():
    """Without a client they run on threads, whatever is said of workers."""
    X, y = np.eye(3), np.arange(3.0)
    expected = Ridge().fit(X, y).coef_
    for options in ({"workers": "a"}, {"resources": {"GPU": 1}}, {"min_workers": 9}):
        with Engine(**options):
            assert np.array_equal(Ridge().fit(X, y).coef_, expected)


def test_what_is_no_client():
    """An address, or a client that is closed, is told at once."""
    with pytest.raises(TypeError, match=r"not 'tcp://127.0.0.1:8786'; pass dask"):
        Engine("tcp://127.0.0.1:8786")
    with Client(processes=False, n_workers=1, dashboard_address=None) as client:
        pass
    with pytest.raises(ValueError, match="client is closed"):
        Engine(client).open(Made(40, 5), Needs())
    for options in ({"workers": "a"}, {"resources": {"GPU": 1}}, {"min_workers": 9}):
        with pytest.raises(ValueError, match=r"there is no Dask client, and so no worker"):
            Engine(**options).open(Made(40, 5), Needs())


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


@pytest.mark.cluster
def test_a_fit_says_that_it_waits_behind_others(cluster, monkeypatch):
    """While a neighbour's tasks keep a worker's threads, it cannot get ready."""
    monkeypatch.setattr(daskdml.engine.limits, "SAY_EVERY", 0.3)
    busy = next(iter(cluster.nthreads()))
    go = Event("go", client=cluster)
    theirs = [cluster.submit(go.wait, 250, workers=[busy], pure=False) for _ in range(2)]
    while len(cluster.processing()[busy]) < 2:
        time.sleep(0.01)

    def heard(event):
        if isinstance(event, Message) and event.text.startswith(f"Waits for {busy} to get ready: "):
            go.set()

    with Engine(cluster, callbacks=[heard]).open(Made(10, 5), Needs()) as data:
        assert go.is_set()
        assert data.map_reduce(total, "sum")[0] == 2 * sum(range(10))
    assert all(future.result() for future in theirs)


def fitted(url, client, callbacks=(), **options):
    """Bits of a fit, its steps, and when each of its blocks was done."""
    from daskdml.io import open_dataset

    stops = []

    def heard(event):
        if isinstance(event, BlockEnd):
            stops.append(event.stop)

    with Engine(client, callbacks=[heard, *callbacks], **options):
        model = LogisticRegression(tol=1e-10).fit(open_dataset(url))
    bits = model.coef_.tobytes() + model.intercept_.tobytes()
    return bits.hex(), model.n_iter_, stops


def check_turns(one, other):
    """Of the blocks that are done while both fits are under way, each has a quarter at least."""
    first, last = max(min(one), min(other)), min(max(one), max(other))
    counts = [sum(first <= stop <= last for stop in stops) for stops in (one, other)]
    assert sum(counts) >= (len(one) + len(other)) / 4, "they hardly were at once"
    assert min(counts) >= sum(counts) / 4


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """Two data sets of forty chunks."""
    found = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((200_000, 20))
        y = (X @ rng.standard_normal(20) + rng.logistic(size=len(X)) > 0).astype(int)
        folder = tmp_path_factory.mktemp("rows") / f"{seed}.zarr"
        found.append(write_dataset(folder, X, y, chunks=5000).url)
    return found


@pytest.fixture(scope="module")
def alone(urls):
    """What one thread gets from each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
        return [fitted(url, Inline())[:2] for url in urls]


@pytest.mark.cluster
def test_two_fits_at_once_in_threads(cluster, urls, alone):
    """Two fits of one client end with the bits each has alone, and take turns."""
    fitted(urls[0], cluster)  # what is compiled, is
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(fitted, urls, [cluster, cluster]))
    assert [f[:2] for f in found] == alone
    check_turns(*(f[2] for f in found))


CLIENT = """
import json, sys
import daskdml.engine.run
from distributed import Client
from tests.engine.test_neighbour import fitted

daskdml.engine.run.GROUP_BYTES = 1
with Client(sys.argv[1], set_as_default=False) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(fitted(sys.argv[2], client)), flush=True)
"""


@pytest.mark.cluster
def test_two_fits_at_once_from_two_processes(cluster, urls, alone):
    """So do fits of two clients."""
    command = [sys.executable, "-c", CLIENT, cluster.scheduler.address]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    clients = [subprocess.Popen([*command, url], **pipes) for url in urls]
    try:
        for client in clients:
            assert client.stdout.readline() == "ready\n"
        for client in clients:
            print("go", file=client.stdin, flush=True)
        found = [json.loads(client.stdout.readline()) for client in clients]
    finally:
        for client in clients:
            client.kill()
            client.wait()
            client.stdin.close()
            client.stdout.close()
    assert [(bits, n) for bits, n, _ in found] == alone
    check_turns(*(stops for _, _, stops in found))


def slow(block):
    """Sum of a block's rows, in a quarter of a second."""
    time.sleep(0.25)
    return total(block)


def worked(client):
    """Work on twenty-four slow blocks; gives the seconds of the slowest."""
    ends = []
    with Engine(client, callbacks=[ends.append]).open(Made(24, 1), Needs(), once=True) as data:
        assert data.map_reduce(slow, "slow")[0] == 24 * 23
    return max(e.compute for e in ends if isinstance(e, BlockEnd))


@pytest.mark.cluster
def test_a_small_task_waits_for_a_block_at_most(cluster):
    """A third client's does not wait for what two fits have queued, 48 blocks on four threads."""
    worked(cluster)  # what is loaded, is
    waits, since = [], time.monotonic()
    with (
        Client(cluster.scheduler.address, set_as_default=False) as third,
        ThreadPoolExecutor(2) as pool,
    ):
        works = [pool.submit(worked, cluster) for _ in range(2)]
        while not all(work.done() for work in works):
            began = time.monotonic()
            assert third.submit(abs, -1, pure=False).result() == 1
            waits.append(time.monotonic() - began)
            time.sleep(0.05)
        slowest, whole = max(work.result() for work in works), time.monotonic() - since
    assert len(waits) >= 4 and max(waits) < max(2 * slowest + 0.5, whole / 2)


def test_fits_at_once_share_what_stays_in_memory():
    """A second fit counts the first one's needs, and the first one's pinned blocks make room."""
    mb = 10**6
    source = Made(100, 5, n_features=125_000)  # blocks of 5 MB
    limit = psutil.Process().memory_info().rss + 300 * mb
    with Engine(Threads(1), memory_limit=limit).open(source, Needs()) as first:
        first.map_reduce(total, "first")
        kept = first.pinnable()
        assert kept > 100 * mb and first.totals.pinned_rows == 0
        assert shelf(first.token) > 80 * mb
        with Engine(Threads(1), memory_limit=limit).open(source, Needs()) as second:
            assert second.baseline > first.baseline
            assert shelf(first.token) <= second.pinnable() < kept / 2
            second.map_reduce(total, "second")
            first.map_reduce(total, "first")
            assert shelf(first.token) + shelf(second.token) <= 2 * second.pinnable() < kept
        assert first.pinnable() == kept
        with pytest.raises(MemoryError, match="in use before it"):
            Engine(Threads(1), memory_limit=limit).open(source, Needs(held=280 * mb))
        assert first.pinnable() == kept


def shelf(token):
    """Bytes of blocks that are pinned for a fit."""
    return PINNED._shelves[token].used if token in PINNED._shelves else 0


@contextlib.contextmanager
def adaptive():
    """A cluster without workers that may adapt, its client, and fits that wait for workers."""
    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": "1GB"}
    with (
        LocalCluster(n_workers=0, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
        dask.config.set({"daskdml.wait-for-workers": "240s"}),
    ):
        yield cluster, client


@pytest.mark.cluster
def test_an_adaptive_cluster(urls, alone):
    """Workers that come when there is work are used; a fit may begin before there is any."""
    with adaptive() as (cluster, client):
        cluster.adapt(
            minimum=0, maximum=2, interval="200ms", wait_count=50, target_duration="100ms"
        )
        events = []
        assert fitted(urls[0], client, [events.append])[:2] == alone[0]
        assert any(isinstance(e, Message) and "Waits for workers" in e.text for e in events)


@pytest.mark.cluster
def test_an_adaptive_cluster_that_shrinks(urls, alone):
    """One that adapts from a minimum has so many workers; one that it ends in mid-fit is let go."""
    with adaptive() as (cluster, client):
        cluster.adapt(minimum=2, maximum=3, interval="200ms", wait_count=2)
        seen = []

        def shrink(event):
            if isinstance(event, BlockEnd):
                seen.append(event.worker)
                if len(seen) == 30:
                    cluster.adapt(minimum=1, maximum=1, interval="100ms", wait_count=1)
                    end = time.monotonic() + 20
                    while len(cluster.scheduler.workers) > 1 and time.monotonic() < end:
                        time.sleep(0.02)

        assert fitted(urls[0], client, [shrink], min_workers=2)[:2] == alone[0]
    assert len(set(seen[:30])) >= 2 and len(set(seen[-10:])) == 1


@pytest.mark.cluster
def test_workers_come_and_go_within_a_share(urls, alone):
    """A fit with a third of the threads, whose worker dies, goes on with another; same bits."""
    events = []
    with Processes(3) as few, Client(few.address, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=60)
        pids = client.run(os.getpid)
        lost = []

        def kill(event):
            events.append(event)
            if isinstance(event, BlockEnd) and not lost and len(events) > 60:
                lost.append(event.worker)
                os.kill(pids[event.worker], signal.SIGKILL)

        assert fitted(urls[0], client, [kill], max_share=0.34)[:2] == alone[0]
    after = [e.worker for e in events if isinstance(e, BlockEnd)]
    assert lost and after[-1] != lost[0]


@pytest.mark.cluster
def test_a_later_worker_has_what_was_planned(monkeypatch):
    """One with less memory than a fit is planned for is left out; of more threads, so many."""
    set_segments(monkeypatch, 4)
    events, came = [], []
    with Processes(1) as few, Client(few.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        (first,) = client.run(os.getpid)

        def join(event):
            events.append(event)
            if isinstance(event, BlockEnd) and not came:
                few.worker(memory_limit=4 * 10**8, name="small")
                few.worker(memory_limit=2 * 10**9, nthreads=4, name="large")
                client.wait_for_workers(3, timeout=60)
                found = client.scheduler_info(n_workers=-1)["workers"]
                came.append({about["name"]: address for address, about in found.items()})

        source = Made(60, 1, seconds=0.3)
        with Engine(client, callbacks=[join]).open(source, Needs()) as data:
            value, _ = data.map_reduce(total, "sum")
            assert value == 60 * 59
            small, large = came[0]["small"], came[0]["large"]
            slots = {w.name: w.threads for w in data.runner.workers()}
            assert slots == {first: 1, large: 1}
            told = [e.text for e in events if isinstance(e, Message) and small in e.text]
            assert any(text.startswith("The worker") and "left out" in text for text in told)
            where = [e.worker for e in events if isinstance(e, BlockEnd)]
            assert small not in where[-20:] and large in where[-20:]
            client.retire_workers([first, large])
            with pytest.raises(TimeoutError, match=r"less memory \(280 MB\) than the 700 MB per"):
                data.map_reduce(total, "again")


@pytest.mark.cluster
def test_a_paused_worker_gets_no_lanes(cluster):
    """A worker that takes no new tasks is given none."""
    plain = addresses(cluster)["plain"]

    def pause(status, dask_worker=None):
        dask_worker.memory_manager.memory_pause_fraction = False  # so that it stays so
        dask_worker.status = Status[status]

    with Engine(cluster).open(Made(10, 5), Needs()) as data:
        cluster.run(pause, "paused", workers=[plain])
        try:
            for _ in range(50):
                if len(data.runner.workers()) == 1:
                    break
                time.sleep(0.1)
            assert plain not in data._slots()
        finally:
            cluster.run(pause, "running", workers=[plain])


@pytest.mark.cluster
def test_a_secured_cluster(urls, alone):
    """A cluster whose connections are encrypted gives the same bits."""
    security = Security.temporary()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, security=security,
            memory_limit="1GB", protocol="tls",
        ) as cluster,
        Client(cluster, security=security, set_as_default=False) as client,
        dask.config.set({"daskdml.wait-for-workers": "120s"}),
    ):  # fmt: skip
        assert client.scheduler.address.startswith("tls://")
        assert fitted(urls[0], client)[:2] == alone[0]
