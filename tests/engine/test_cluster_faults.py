"""Faults of a cluster cost time, not bits; what cannot be survived ends in time, with an error."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import re
import resource
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, Status, WorkerPlugin, wait

import daskdml.engine.run
import daskdml.engine.sweeps
from daskdml import Engine, LogisticRegression
from daskdml.engine.graphs import Graph, pass_graph
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data, Inline
from daskdml.engine.tasks import Read
from daskdml.events import BlockEnd, Message, PassEnd
from daskdml.io import write_dataset
from tests.engine.processes import Processes, Proxy, closed_port, freeze
from tests.engine.sources import Crash, Hoard, Made, set_segments, slow_total, total

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def many_groups(monkeypatch):
    """Rows come in twenty groups."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 60_000)


@pytest.fixture
def short_limits():
    """A silent worker is given up after ten seconds."""
    with dask.config.set({"daskdml.worker-silence": "10s"}):
        yield


@pytest.fixture(scope="module")
def cluster():
    """Processes and their client; each test says how many workers it needs."""
    with Processes() as cluster, Client(cluster.address, set_as_default=False) as client:
        yield cluster, client


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows in twenty chunks."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 6))
    y = (X @ [1, -0.5, 0.2, 0, 0.1, 0.01] + rng.logistic(size=len(X)) > 0).astype(int)
    return write_dataset(tmp_path_factory.mktemp("faults") / "rows.zarr", X, y, chunks=1000).url


def fitted(url, client, callbacks=(), **options):
    """Bits of a fit."""
    from daskdml.io import open_dataset

    with Engine(client, callbacks=callbacks, **options):
        model = LogisticRegression(tol=1e-10).fit(open_dataset(url))
    return model.coef_.tobytes(), model.intercept_.tobytes(), model.n_iter_


@pytest.fixture(scope="module")
def expected(rows):
    """What one thread gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daskdml.engine.run, "GROUP_BYTES", 60_000)
        return fitted(rows, Inline())


class At:
    """A callback that does something once, at the n-th block of a fit; keeps the messages."""

    def __init__(self, n, action):
        self.n, self.action, self.seen, self.texts = n, action, 0, []

    def __call__(self, event):
        """Count blocks."""
        if isinstance(event, Message):
            self.texts.append(event.text)
        if isinstance(event, BlockEnd):
            self.seen += 1
            if self.seen == self.n:
                self.action(event)

    def told(self, *words):
        """Whether one message has all these words."""
        return any(all(word in text for word in words) for text in self.texts)


def test_a_frozen_worker(rows, expected, short_limits, cluster):
    """A worker that is stopped is given up after the stated time; the bits are the same."""
    processes, client = cluster
    pids = processes.ready(client, 2)
    at = At(12, lambda event: freeze(pids[event.worker]))
    assert fitted(rows, client, [at]) == expected
    assert at.told("not been heard of for 10 s", "removed")
    assert len(client.nthreads()) == 1


def test_a_frozen_worker_holds_the_result(short_limits, cluster):
    """A result on a worker that is frozen before it is fetched is made again elsewhere."""
    processes, client = cluster
    pids = processes.ready(client, 2)
    with Engine(client).open(Made(40, 10), Needs()) as data:
        read = Read(data.source)
        graph = pass_graph("held", read, [data.groups], total, 1)
        graph = Graph(graph.tasks, [("held", 0)], graph.lane_of, graph.wanted)
        _, held = data.runner.run(graph, data._slots()[:1], lambda record: None)
        with client.as_current():
            wait(held)
        place = client.who_has(held)[held.key][0]
        freeze(pids[place])
        assert data.runner.fetch([held])[0].value == total(Made(40, 10).read(0, 40)[0])


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_a_worker_is_paused(share, rows, expected, short_limits, cluster):
    """What Dask gave to a worker that it has paused since is done by others."""
    processes, client = cluster
    processes.ready(client, 2)
    paused = []

    def pause(dask_worker):
        dask_worker.memory_manager.memory_pause_fraction = False  # so that it stays so
        dask_worker.status = Status.paused

    def begin(event):
        client.run(pause, workers=[event.worker])
        paused.append(time.monotonic())

    at = At(12, begin)
    assert fitted(rows, client, [at], max_share=share) == expected
    quick = time.monotonic() - paused[0] < 10  # it had nothing to do when it was paused
    assert at.seen > 12 and (quick or at.told("has begun no task for 10 s", "paused"))
    processes.ready(client, 0)


def test_all_workers_are_paused(rows, cluster):
    """Nobody left to work is told as what it is, after the stated time."""
    processes, client = cluster
    processes.ready(client, 1)

    def pause(dask_worker):
        dask_worker.memory_manager.memory_pause_fraction = False
        dask_worker.status = Status.paused

    at = At(12, lambda event: client.run(pause))
    limits = {"daskdml.wait-for-workers": "4s"}
    with dask.config.set(limits), pytest.raises(TimeoutError, match="paused, or about to close"):
        fitted(rows, client, [at])
    processes.ready(client, 0)


def test_a_worker_dies_while_a_graph_is_made(rows, expected, cluster, monkeypatch):
    """Tasks that were bound to it alone, unseen, go to those that are left."""
    processes, client = cluster
    pids, read, reads = processes.ready(client, 2), Data._read, []

    def late(self, parts):
        reads.append(parts)
        if len(reads) == 3:
            os.kill(pids[min(pids)], signal.SIGKILL)
            while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers)) > 1:
                time.sleep(0.02)
        return read(self, parts)

    monkeypatch.setattr(Data, "_read", late)
    assert fitted(rows, client, workers=sorted(pids)) == expected
    assert len(reads) > 3


LATE = """
import asyncio
from distributed import Scheduler

class Late(Scheduler):
    late = 0

    async def update_graph(self, *args, **kwargs):
        await asyncio.sleep(self.late)
        return await super().update_graph(*args, **kwargs)

import distributed
distributed.Scheduler = Late
"""


def test_a_worker_dies_before_the_scheduler_has_the_tasks():
    """It has been missed by then; tasks that come bound to it go to others all the same."""
    source = Made(80, 10)
    with (
        Processes(2, before=LATE) as cluster,
        Client(cluster.address, set_as_default=False) as client,
    ):
        pids = cluster.ready(client, 2)
        with Engine(client, workers=sorted(pids)).open(source, Needs()) as data:
            client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "late", 5))
            threading.Timer(0.5, os.kill, (pids[min(pids)], signal.SIGKILL)).start()
            value, _ = data.map_reduce(total, "late")
    assert value == total(source.read(0, 80)[0])


@pytest.mark.parametrize("how", ["freeze", "cut"])
def test_a_worker_is_cut_off(how, rows, expected, short_limits, cluster):
    """A worker that packets no longer reach, or whose connections are closed, is done without."""
    processes, client = cluster
    processes.ready(client, 1)
    port = closed_port()
    to_scheduler, to_worker = Proxy(processes.address), Proxy(f"tcp://127.0.0.1:{port}")
    through = {"port": port, "contact_address": to_worker.address}
    behind = processes.worker(to_scheduler.address, **through)
    client.wait_for_workers(2, timeout=60)

    def sever(event):
        getattr(to_scheduler, how)()
        getattr(to_worker, how)()

    at = At(14, sever)
    assert fitted(rows, client, [at]) == expected
    assert at.seen > 14
    assert at.told("removed") == (how == "freeze")
    assert at.told(to_worker.address)
    behind.kill()
    to_scheduler.close()
    to_worker.close()


def test_all_workers_are_lost_and_others_come(rows, expected, cluster):
    """A fit waits for workers, and goes on with those that come."""
    processes, client = cluster
    processes.ready(client, 1)

    def renew(event):
        processes.workers[0].kill()
        timer.start()

    timer = threading.Timer(2.0, lambda: processes.workers.append(processes.worker()))
    at = At(12, renew)
    assert fitted(rows, client, [at]) == expected
    assert at.told("joined")


def test_nobody_comes(rows, cluster):
    """Where all workers are lost and none comes, the fit ends after the stated time."""
    processes, client = cluster
    processes.ready(client, 1)
    at = At(12, lambda event: processes.workers[0].kill())
    with (
        dask.config.set({"daskdml.wait-for-workers": "2s"}),
        pytest.raises(TimeoutError, match=r"has no workers, and none came within 2 s"),
    ):
        fitted(rows, client, [at])


def test_the_scheduler_is_frozen(rows, cluster):
    """A scheduler that does not answer is given up after the stated time."""
    processes, client = cluster
    processes.ready(client, 1)
    at = At(12, lambda event: freeze(processes.scheduler.pid))
    try:
        with (
            dask.config.set({"daskdml.scheduler-silence": "4s"}),
            pytest.raises(ConnectionError, match=r"gone, or has not answered for 4 s"),
        ):
            fitted(rows, client, [at])
    finally:
        os.kill(processes.scheduler.pid, signal.SIGCONT)


def test_a_scheduler_that_was_busy(rows, expected, short_limits, cluster):
    """While it hears nobody no worker is silent: none is removed, and the fit goes on."""
    processes, client = cluster
    before = set(processes.ready(client, 2))

    def busy(event):
        freeze(processes.scheduler.pid)
        threading.Timer(13, os.kill, (processes.scheduler.pid, signal.SIGCONT)).start()

    at = At(12, busy)
    assert fitted(rows, client, [at]) == expected
    assert not at.told("has not been heard of") and set(client.nthreads()) == before


def test_the_scheduler_is_killed(rows, tmp_path):
    """The fit ends within seconds, and names the scheduler and where the checkpoints are."""
    with Processes(1) as processes, Client(processes.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        killed = []

        def kill(event):
            processes.scheduler.kill()
            killed.append(time.monotonic())

        with pytest.raises(ConnectionError, match="call fit again") as caught:
            fitted(rows, client, [At(12, kill)], checkpoint=tmp_path / "kept", every=0)
        assert time.monotonic() - killed[0] < 5
        assert processes.address in str(caught.value) and str(tmp_path / "kept") in str(
            caught.value
        )


class Rehearsal:
    """What knows which thread has unpickled it."""

    def __init__(self):
        self.thread = ""

    def __setstate__(self, state):
        self.thread = threading.current_thread().name

    def __call__(self):
        """Fail where that was the one that sends a worker's heartbeats."""
        assert self.thread not in ("", "MainThread")


def test_workers_send_heartbeats_while_they_load(cluster):
    """What is rehearsed is unpickled, and its modules are imported, in a thread of its own."""
    processes, client = cluster
    processes.ready(client, 1)
    assert pickle.loads(pickle.dumps(Rehearsal())).thread == "MainThread"
    with Engine(client).open(Made(40, 10), Needs()) as data:
        data.require(Needs(), Rehearsal())


def long_rehearsal():
    """What takes longer than its scheduler lives."""
    time.sleep(5)


def test_the_scheduler_is_killed_while_workers_get_ready():
    """The error is the same as in mid-fit, though what is waited for is a task of Dask's."""
    with Processes(1) as processes, Client(processes.address, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        with Engine(client).open(Made(40, 10), Needs()) as data:
            threading.Timer(1, processes.scheduler.kill).start()
            with pytest.raises(ConnectionError, match=f"scheduler at {processes.address} is gone"):
                data.require(Needs(), long_rehearsal)


def test_a_task_that_always_crashes():
    """It is given up after a stated number of tries; the error names the rows and the data set."""
    tries = "import dask; dask.config.set({'distributed.scheduler.allowed-failures': 1})\n"
    with (
        Processes(3, before=tries) as cluster,
        Client(cluster.address, set_as_default=False) as client,
    ):
        client.wait_for_workers(3, timeout=60)
        source = Made(40, 10, n_features=1000)
        with Engine(client).open(source, Needs()) as data:
            match = r"rows 20:30 of made: 2 workers died .* worked on it"
            with pytest.raises(RuntimeError, match=match):
                data.map_reduce(Crash(), "crash")


@pytest.mark.parametrize("crash, why", [(Crash, "killed by signal 9"), (Hoard, "memory budget")])
def test_the_cause_of_a_crash_is_told(crash, why):
    """A nanny that has seen its worker die is asked for the cause."""
    settings = {"distributed.scheduler.allowed-failures": 0}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit="500MB",
            silence_logs=False,
        ) as nursed,
        Client(nursed, set_as_default=False) as client,
        Engine(client).open(Made(40, 10, n_features=1000), Needs()) as data,
        # Dask suspects what the worker was to do next as well.
        pytest.raises(RuntimeError, match=rf"rows [23]0:[34]0 of made: 1 workers .* says: .*{why}"),
    ):  # fmt: skip
        data.map_reduce(crash(), "crash")


def set_version(version):
    """Have this process say that it has another version of SciPy."""
    import scipy

    before, scipy.__version__ = scipy.__version__, version
    return before


def test_a_worker_with_another_version(two_workers):
    """A worker that computes with other versions is told before anything is read."""
    odd = next(iter(two_workers.nthreads()))
    before = two_workers.run(set_version, "0.1", workers=[odd])[odd]
    try:
        with pytest.raises(RuntimeError, match=rf"{odd} has scipy 0.1, and .* install scipy"):
            Engine(two_workers).open(Made(40, 10), Needs())
        with Engine(two_workers, workers=set(two_workers.nthreads()) - {odd}).open(
            Made(40, 10), Needs()
        ) as data:
            assert data.map_reduce(total, "sum")[0] == 1560
    finally:
        two_workers.run(set_version, before, workers=[odd])


def test_a_worker_with_another_version_joins(rows, cluster):
    """One that joins in mid-fit is told, too."""
    processes, client = cluster
    processes.ready(client, 1)
    odd = []

    def join(event):
        odd.append(processes.worker(before="import numba, scipy; scipy.__version__ = '0.1'"))
        client.wait_for_workers(2, timeout=60)

    with pytest.raises(RuntimeError, match=r"has scipy 0.1, and this process has scipy"):
        fitted(rows, client, [At(4, join)])
    odd[0].kill()
    odd[0].wait(20)


WRONG = "import time; right = time.time; time.time = lambda: right() {} 86_400\n"


def test_another_worker_comes_at_the_same_address(rows, cluster):
    """It is asked what it computes with, as any other is that joins."""
    processes, client = cluster
    processes.ready(client, 0)
    about = {"scheduler_ip": processes.address, "host": "127.0.0.1", "port": closed_port()}
    came = [processes.start("Worker", nthreads=1, **about)]
    client.wait_for_workers(1, timeout=60)

    def replace(event):
        came[0].kill()
        came[0].wait(20)
        other = "import numba, scipy; scipy.__version__ = '0.1'\n"
        came.append(processes.start("Worker", other, nthreads=1, **about))

    with pytest.raises(RuntimeError, match=r"has scipy 0\.1, and this process has scipy"):
        fitted(rows, client, [At(12, replace)])
    came[1].kill()
    came[1].wait(20)


def test_a_worker_that_cannot_get_ready(cluster):
    """What a worker raises while it compiles is an error, and not a plan for an empty worker."""
    processes, client = cluster
    processes.ready(client, 1)
    with (
        Engine(client).open(Made(40, 10), Needs()) as data,
        pytest.raises(MemoryError, match="no room") as caught,
    ):
        data.require(Needs(), no_room)
    assert "getting the worker" in caught.value.__notes__[0]


def no_room():
    """What a rehearsal may end in."""
    raise MemoryError("no room to compile")


def test_a_workers_clock_is_wrong(rows, expected):
    """A day ahead or behind changes no bits, and no seconds of a pass are those of a day."""
    from daskdml.io import open_dataset

    with Processes() as cluster, Client(cluster.address, set_as_default=False) as client:
        for sign in "+-":
            cluster.worker(before=WRONG.format(sign))
        client.wait_for_workers(2, timeout=60)
        clocks = client.run(time.time).values()
        assert max(clocks) - min(clocks) > 170_000
        heard = At(0, None)
        with Engine(client, callbacks=[heard]):
            model = LogisticRegression(tol=1e-10).fit(open_dataset(rows))
        assert (model.coef_.tobytes(), model.intercept_.tobytes(), model.n_iter_) == expected
        assert not [text for text in heard.texts if not text.startswith("Waits for ")]
        assert all(0 <= record.transfer < 60 for record in model.history_)


class Count(WorkerPlugin):
    """Writes down each task that ends on a worker."""

    name = "count"

    def __init__(self, path):
        self.path = path

    def transition(self, key, start, finish, **kwargs):
        """One line for each task."""
        if finish == "memory" and start in ("executing", "long-running"):
            with open(self.path, "a") as file:
                file.write(f"{key}\n")


def fit_model(name, rows, ratings):
    """Fit a model of a kind; what must have the same bits."""
    from daskdml import MatrixFactorization, SGDClassifier
    from daskdml.io import open_dataset
    from daskdml.io.ratings import open_ratings

    if name == "newton":
        return LogisticRegression(tol=1e-10).fit(open_dataset(rows)).coef_.tobytes()
    if name == "sgd":
        sgd = SGDClassifier(max_iter=3, tol=None, n_replicas=2, random_state=0)
        return sgd.fit(open_dataset(rows)).coef_.tobytes()
    als = MatrixFactorization(8, solver="als", max_iter=4, random_state=0)
    model = als.fit(open_ratings(ratings))
    return model.item_factors_.tobytes()


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Ratings in a grid of blocks."""
    from daskdml.io import convert_ratings

    rng = np.random.default_rng(0)
    codes = rng.choice(400 * 300, size=20_000, replace=False)
    table = codes // 300, codes % 300, rng.random(20_000)
    folder = tmp_path_factory.mktemp("ratings") / "r.zarr"
    return convert_ratings(table, folder, grid=(8, 8)).url


@pytest.mark.parametrize("name", ["newton", "sgd", "als"])
def test_a_loss_repeats_one_segment(name, rows, ratings, monkeypatch, tmp_path, cluster):
    """What is executed twice after a worker died is of the one graph that it worked on."""
    set_segments(monkeypatch, 8)
    monkeypatch.setattr(daskdml.engine.sweeps, "LINEAGE_SECONDS", 0.0)
    with Engine(Inline()):
        expected = fit_model(name, rows, ratings)
    processes, client = cluster
    pids = processes.ready(client, 2)
    client.register_plugin(Count(str(tmp_path / "done")))
    kill = At(45 if name != "als" else 9, lambda e: os.kill(pids[e.worker], signal.SIGKILL))
    with Engine(client, callbacks=[kill]):
        assert fit_model(name, rows, ratings) == expected
    client.unregister_worker_plugin("count")
    assert kill.seen > kill.n
    assert kill.told("is gone; others do its work")
    done = Counter((tmp_path / "done").read_text().splitlines())
    repeated = [key for key, times in done.items() if times > 1]
    assert len({re.search("[0-9a-f]{12}", key)[0] for key in repeated}) <= 1
    assert len(repeated) < 60 < len(done)  # tasks of one graph, of those of a fit


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow beyond it
"""


def test_a_full_disk_under_a_worker(rows, expected):
    """A fit needs no disk of its workers: where nothing can be written, its bits are the same."""

    def try_to_write(dask_worker=None):
        try:
            with open(os.path.join(dask_worker.local_directory, "file"), "wb") as file:
                file.write(bytes(10_000))
        except OSError as error:
            return error.errno

    with Processes() as cluster, Client(cluster.address, set_as_default=False) as client:
        for _ in range(2):
            cluster.worker(before=FULL)
        client.wait_for_workers(2, timeout=60)
        assert set(client.run(try_to_write).values()) == {errno.EFBIG}
        assert fitted(rows, client) == expected


def test_a_full_disk_where_dask_spills(rows, expected):
    """What Dask would spill of a neighbour's stays in memory where it cannot; the same bits."""

    async def fill_up():  # on the worker's loop, in its main thread
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def what_is_held(dask_worker=None):
        return dask_worker.data.fast.total_weight, len(dask_worker.data.disk)

    def neighbour(event):
        passes.extend([event] * isinstance(event, PassEnd))
        if len(passes) == 3 and not theirs:  # the fit is planned, and has begun
            theirs.extend(client.submit(np.full, 2 * 10**7, k, pure=False) for k in range(3))
            with client.as_current():
                wait(theirs, timeout=60)  # 480 MB, of which Dask would keep 360

    before = "import dask; dask.config.set({'distributed.worker.memory.pause': False})\n"
    theirs, passes = [], []
    with Processes() as cluster, Client(cluster.address, set_as_default=False) as client:
        cluster.worker(before=before, memory_limit=6 * 10**8)
        client.wait_for_workers(1, timeout=60)
        client.run(fill_up)
        assert fitted(rows, client, [neighbour]) == expected
        assert len(passes) > 3 and theirs[2].result(30).sum() == 4 * 10**7
        (held,) = client.run(what_is_held).values()
        assert held[0] > 0.6 * 6 * 10**8 and held[1] == 0  # more than Dask keeps, none on disk


def test_a_worker_that_has_died_is_not_waited_for(cluster):
    """Who is asked after its death is left out: Dask tries for 30 s to reach it."""
    processes, client = cluster
    pids = processes.ready(client, 2)
    runner = Engine(client).runner(in_memory=False)
    dead, alive = sorted(pids)
    os.kill(pids[dead], signal.SIGKILL)
    time.sleep(1)
    began = time.monotonic()
    assert runner._on_workers(os.getpid, workers=[dead, alive]) == {alive: pids[alive]}
    assert time.monotonic() - began < 20


def test_the_end_of_a_fit_does_not_wait_for_the_dead(cluster):
    """A worker that has died since the last look at the cluster is not asked to forget blocks."""
    processes, client = cluster
    pids = processes.ready(client, 2)
    runner = Engine(client).runner(in_memory=False)
    runner.claim("token", 0, 0)
    dead, alive = sorted(pids)
    os.kill(pids[dead], signal.SIGKILL)
    end = time.monotonic() + 60
    while len(client.scheduler_info(n_workers=-1)["workers"]) > 1:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert runner.forget("token").keys() == {alive}


def test_a_wait_that_is_broken_off_leaves_no_complaint(cluster, caplog):
    """Nothing that was waited with ends, unheard, in an error that is logged then."""
    processes, client = cluster
    processes.ready(client, 1)

    def stop(record):
        raise KeyboardInterrupt

    with Engine(client).open(Made(400, 10, n_features=1000), Needs()) as data:
        graph = pass_graph("stopped", Read(data.source), [data.groups], slow_total, 1)
        graph = replace(graph, wanted=[("stopped", k) for k in range(40)])
        with pytest.raises(KeyboardInterrupt):
            data.runner.run(graph, data._slots()[:1], stop)
    for _ in range(5):
        gc.collect()
        time.sleep(0.1)
    assert "never retrieved" not in caplog.text
