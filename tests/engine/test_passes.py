"""Passes over a source: how much is alive, what overlaps, what a hundred thousand chunks cost."""

from __future__ import annotations

import gc
import resource
import threading
import time
import tracemalloc
from functools import partial
from itertools import pairwise

import dask
import numpy as np
import pytest
from dask.callbacks import Callback

import daskdml.engine.pace
import daskdml.engine.run
from daskdml import Engine
from daskdml.engine import tasks
from daskdml.engine.graphs import group_rows, pass_graph, tree
from daskdml.engine.memory import FAN_IN, Needs
from daskdml.engine.run import Inline, Threads
from daskdml.engine.runners import forget_blocks
from daskdml.events import BlockEnd, PassStart
from tests.conftest import workers
from tests.engine.sources import Counting, Made, slow_total, total


@pytest.fixture
def one_chunk_a_group(monkeypatch):
    """Each chunk is a group."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def test_the_sum_is_right(one_chunk_a_group):
    """A pass adds up all rows, whatever the number of groups, and says what it read."""
    for n in (1, 7, 16, 17, 300, 1000):
        source = Made(n, 3)
        with Engine(Inline()).open(source, Needs()) as data:
            value, totals = data.map_reduce(total, "sum")
        assert value == n * (n - 1)  # two columns of 0..n-1
        assert totals.rows == n and totals.nbytes == n * 16


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_gate_bounds_what_is_alive(threads, one_chunk_a_group):
    """No more than prefetch + 1 blocks of each lane are alive at any time."""
    source = Counting(400, 4, seconds=0.001)
    with Engine(Threads(threads)).open(source, Needs()) as data:
        data.plan = daskdml.engine.run.replace(data.plan, limit=0)  # nothing may stay pinned
        assert data.plan.prefetch == 1
        value, _ = data.map_reduce(total, "sum")
    assert value == 400 * 399
    assert source.most <= threads * 2
    gc.collect()
    assert source.alive == 0


def test_pinned_blocks_are_read_once(one_chunk_a_group):
    """Blocks that fit within the promise are not read again, and are forgotten at the end."""
    source = Counting(400, 4)
    with Engine(Threads(2), memory_limit="4GB").open(source, Needs()) as data:
        first = data.map_reduce(total, "sum")[1]
        second = data.map_reduce(total, "sum")[1]
        assert source.alive == 100
    assert data._held([list(data.groups)], [""]) == set(range(100))
    assert (first.nbytes, first.pinned_rows) == (400 * 16, 0)
    assert (second.nbytes, second.pinned_rows) == (0, 400)
    gc.collect()
    assert source.alive == 0


def slower_total(block):
    """Sum of a block's rows, in a fifth of a second."""
    time.sleep(0.2)
    return total(block)


def _overlaps(events):
    """Pairs of blocks of which one was read while the other was computed."""
    blocks = [e for e in events if isinstance(e, BlockEnd)]
    return sum(
        min(a.start + a.read, b.stop) - max(a.start, b.stop - b.compute) > 0.01
        for a in blocks
        for b in blocks
        if a is not b
    )


@pytest.mark.cluster
def test_pinned_blocks_that_are_gone_are_read_again(one_chunk_a_group, two_workers):
    """Where a process has forgotten its blocks, the task that wanted one reads it."""
    with Engine(two_workers, memory_limit="700MB").open(Made(400, 40), Needs()) as data:
        first = data.map_reduce(total, "sum")
        again = data.map_reduce(total, "sum")
        assert again[1].pinned_rows == 400
        two_workers.run(forget_blocks, data.token)
        after = data.map_reduce(total, "sum")
    assert after[1].pinned_rows == 0
    assert first[0] == again[0] == after[0]


@pytest.mark.cluster
def test_reads_hold_no_compute_slot(one_chunk_a_group):
    """On a worker with one thread, blocks are read while others are computed."""
    events = []
    source = Made(64, 4, seconds=0.2)
    with (
        workers(1) as client,
        Engine(client, callbacks=[events.append]).open(source, Needs()) as data,
    ):
        value, totals = data.map_reduce(slower_total, "slow")
    assert value == 64 * 63
    assert _overlaps(events) >= 10  # of 16 blocks
    assert totals.seconds < totals.read + totals.compute


def test_reads_overlap_computing_on_threads(one_chunk_a_group):
    """The same on one compute slot of this process."""
    events = []
    source = Made(64, 4, seconds=0.05)
    with Engine(Threads(1), callbacks=[events.append]).open(source, Needs()) as data:
        _, totals = data.map_reduce(slow_total, "slow")
    assert _overlaps(events) >= 10
    assert totals.seconds < totals.read + totals.compute


def _pass_in_a_thread(n, client, fn, callback):
    """A pass over n blocks, in a thread of its own that has begun."""

    def run():
        with Engine(client, callbacks=[callback]).open(Made(4 * n, 4), Needs()) as data:
            assert data.map_reduce(fn, "pass")[0] == 4 * n * (4 * n - 1)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_passes_at_once_share_the_compute_slots(one_chunk_a_group):
    """Of two passes at once on two slots each, two blocks are computed at a time, to the end."""
    computing, most, lock = 0, [], threading.Lock()

    def busy(block):
        nonlocal computing
        with lock:
            computing += 1
            most.append(computing)
        time.sleep(0.005)
        with lock:
            computing -= 1
        return total(block)

    passes = [_pass_in_a_thread(n, Threads(2), busy, lambda event: None) for n in (20, 60)]
    for thread in passes:
        thread.join(60)
    assert len(most) == 80 and max(most) == 2
    assert not Callback.active  # what Dask tells of its tasks, everywhere in this process


@pytest.mark.cluster
def test_passes_at_once_are_told_as_they_go(one_chunk_a_group, two_workers):
    """Two passes at once through one client hear of their blocks before they end, each of its own.

    The shorter one's end takes nothing from the other.
    """
    heard = {20: [], 60: []}

    def note(n, event):
        heard[n].append((time.time(), event))

    passes = [_pass_in_a_thread(n, two_workers, slow_total, partial(note, n)) for n in heard]
    for thread in passes:
        thread.join(60)
    for n, events in heard.items():
        blocks = [(at, e) for at, e in events if isinstance(e, BlockEnd)]
        assert len(blocks) == n
        over = max(e.stop for _, e in blocks)
        assert sum(at < over for at, _ in blocks) > n / 2


@pytest.mark.cluster
def test_workers_end_at_once():
    """The end of a worker that has worked for us takes it little time, so its nanny kills none."""
    with workers(1, "spawn") as client:  # a child of ours, so that its time is told us
        with Engine(client).open(Made(64, 4), Needs()) as data:
            data.map_reduce(total, "sum")
        (worked,) = client.run(time.process_time).values()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert worked < seconds < worked + max(0.4, 0.15 * worked)


def test_every_block_is_told_once(one_chunk_a_group):
    """A pass announces how many blocks will follow, and each is told once."""
    events = []
    with Engine(Threads(2), callbacks=[events.append]).open(Made(100, 5), Needs()) as data:
        data.map_reduce(total, "sum")
    start = next(e for e in events if isinstance(e, PassStart))
    blocks = [e for e in events if isinstance(e, BlockEnd)]
    assert start.n_blocks == len(blocks) == 20
    assert sum(b.rows for b in blocks) == 100


def test_groups_are_cut_along_chunks():
    """Groups hold whole chunks, cover all rows and depend on the data alone."""
    bounds = [0, 10, 20, 30, 35]
    for target in (1, 15, 20, 30, 1000):
        groups = group_rows(bounds, 1, target)
        assert groups[0].start == 0 and groups[-1].stop == 35
        assert all(a.stop == b.start for a, b in pairwise(groups))
        assert {g.start for g in groups} <= set(bounds)
        assert all(g.rows <= max(target, 10) for g in groups)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 256, 257, 5000])
def test_the_tree_is_shallow(n):
    """No node adds more than sixteen parts, and each part is added once."""
    graph = tree("sum", [f"part-{i}" for i in range(n)])
    used = [d for task in graph.values() for d in task.dependencies]
    assert len(used) == len(set(used))
    assert sum(isinstance(d, str) for d in used) == n
    assert max(len(task.dependencies) for task in graph.values()) <= FAN_IN


def _cost_of_graph(n):
    """Processor seconds and bytes per group of building the graph of a pass over n groups.

    Without collections of garbage, whose cost is that of all that the process holds.
    """
    source = Made(n, 1)
    groups = group_rows(source.chunk_bounds, source.row_nbytes, 1)
    lanes = [groups[0::2], groups[1::2]]
    gc.collect()
    gc.disable()
    try:
        began = time.thread_time()
        pass_graph("pass-0", tasks.Read(source), lanes, total, 1)
        seconds = time.thread_time() - began
    finally:
        gc.enable()
    tracemalloc.start()
    graph = pass_graph("pass-0", tasks.Read(source), lanes, total, 1)
    nbytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(graph.tasks) > 2 * n
    return seconds / n, nbytes / n


def _least(cost, n, times):
    """The least of each that a measurement over n groups gives, so many times."""
    return [min(found) for found in zip(*(cost(n) for _ in range(times)), strict=True)]


@pytest.mark.slow
def test_graphs_of_many_groups_cost_the_same_each():
    """A graph's seconds and bytes per group at 50,000 groups are those at 5,000."""
    few, many = _least(_cost_of_graph, 5_000, 3), _least(_cost_of_graph, 50_000, 2)
    assert many[0] < 2 * few[0] and many[0] < 200e-6
    assert many[1] < 1.2 * few[1] and many[1] < 5000


def _pass_over(n):
    """Processor seconds per group and peak bytes of the client's own, of a pass over n chunks."""
    with Engine(Inline()).open(Made(n, 1), Needs()) as data:
        assert len(data.groups) == n
        data.plan = daskdml.engine.run.replace(data.plan, limit=0)  # nothing may stay pinned
        tracemalloc.start()
        began = time.thread_time()
        value, _ = data.map_reduce(total, "sum")
        seconds = time.thread_time() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert value == n * (n - 1)
    return seconds / n, peak


@pytest.mark.slow
def test_a_pass_over_many_chunks_holds_one_segment(one_chunk_a_group, monkeypatch):
    """Ten times the chunks take ten times the seconds, and a few words of memory for each."""
    monkeypatch.setattr(daskdml.engine.pace, "MOST", 256)
    few, many = _least(_pass_over, 500, 3), _least(_pass_over, 5_000, 1)
    assert many[0] < 2 * few[0]
    assert many[1] - few[1] < 1000 * 4_500


def test_tiny_chunks_share_tasks():
    """100,000 tiny chunks on the usual settings are few groups: a task reads many chunks."""
    source = Made(100_000, 1)
    assert len(group_rows(source.chunk_bounds, source.row_nbytes, 40_000_000)) == 1
    with Engine(Inline()).open(source, Needs()) as data:
        assert len(data.groups) == 1
        assert data.map_reduce(total, "sum")[0] == float(np.arange(100_000).sum() * 2)


def test_an_asynchronous_client_is_refused():
    """A client that cannot wait is a TypeError that says what to do."""
    import asyncio

    from distributed import Client, LocalCluster

    async def fit():
        cluster = LocalCluster(
            n_workers=1, processes=False, dashboard_address=None, asynchronous=True
        )
        async with cluster, Client(cluster, asynchronous=True) as client:
            with pytest.raises(TypeError, match=r"asynchronous.*use Client"):
                Engine(client).open(Made(10, 5), Needs())

    asyncio.run(fit())


def test_a_cluster_without_workers_is_refused():
    """A cluster with nobody to work is an error that says what to do."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        dask.config.set({"daskdml.wait-for-workers": "1s"}),
        pytest.raises(TimeoutError, match=r"has no workers, .* within 1 s .*; start some .*scale"),
    ):
        Engine(client).open(Made(10, 5), Needs())


def test_workers_are_known_however_the_client_refreshes(two_workers, monkeypatch):
    """The client's own refresh, which leaves out the workers, can come at any moment."""
    update = two_workers._update_scheduler_info

    async def and_refresh(n_workers=0):
        await update(n_workers=n_workers)
        await update()

    monkeypatch.setattr(two_workers, "_update_scheduler_info", and_refresh)
    assert not two_workers.scheduler_info(n_workers=-1)["workers"]
    with Engine(two_workers).open(Made(10, 5), Needs()) as data:
        assert len(data.runner.workers()) == 2


def test_one_block_needs_no_threads():
    """What cannot run side by side runs on the calling thread; others still take its slot."""
    names = []

    def name(block):
        names.append(threading.current_thread())
        return total(block)

    with Engine(Threads(2)).open(Made(10, 10), Needs()) as data:
        data.map_reduce(name, "one")
        assert names == [threading.current_thread()]
    names.clear()
    with Engine(Threads(2)).open(Made(20, 10, n_features=400_000), Needs()) as data:
        assert len(data.groups) == 2
        data.map_reduce(name, "two")
        assert threading.current_thread() not in names
