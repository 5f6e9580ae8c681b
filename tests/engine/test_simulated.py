"""Thousands of schedules of a simulated cluster leave no trace in a fit's bits, and none behind."""

import gc
import threading
import time
from functools import partial
from random import Random
from unittest import mock

import pytest

import daskdml.engine.run
from daskdml import Engine
from daskdml.engine.cache import BlockCache
from daskdml.engine.graphs import Graph, pass_graph
from daskdml.engine.memory import Needs
from tests.engine.simulated import Schedule, simulation
from tests.engine.simulated_cluster import SimulatedCluster
from tests.engine.simulated_fits import FITS, RESUMABLE, small_blocks
from tests.engine.simulated_world import Wrong
from tests.engine.sources import Made, total

SCHEDULES = {
    "newton": 100, "lbfgs": 120, "sgd": 120, "stale-sgd": 150, "sgd-classifier": 200, "als": 50,
    "implicit-als": 50, "stored-als": 16, "dsgd": 30, "stale-dsgd": 30, "stored-dsgd": 10,
    "kmeans": 250, "minibatch-kmeans": 100, "pca": 500, "krylov-pca": 100, "krylov-svd": 100,
    "nmf": 100, "predict": 250, "bad-rows": 150,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Looking for what is left behind means to collect garbage: only what is new."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def check(schedules):
    """Run schedules: which ended with bits; of one that fails, say how it is replayed."""
    ended = []
    for schedule in schedules:
        try:
            ended.append(schedule.run())
        except Exception as error:
            command = f"python -m tests.engine.simulated {schedule}"
            raise AssertionError(
                f"{type(error).__name__}: {error}\nreplay it: {command}"
            ) from error
    return ended


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("name", FITS)
def test_the_bits_are_those_of_an_undisturbed_fit(name, half):
    """Under every schedule, and each task, event, block and result is gone afterwards."""
    n = SCHEDULES[name] // 2
    assert all(check(Schedule(name, seed) for seed in range(half * n, half * n + n)))


@pytest.mark.parametrize("name", [*RESUMABLE, "predict"])
def test_a_client_that_is_killed_goes_on(name):
    """Killed three times at any event, each time with another cluster: the same bits."""
    assert all(check(Schedule(name, seed, breaks=3) for seed in range(15)))


@pytest.mark.parametrize("name", ["newton", "als", "stored-als", "predict"])
def test_a_store_that_never_answers(name):
    """Is an error that names the data, where it was asked; nothing stays on the workers."""
    n = max(SCHEDULES[name] // 8, 16)
    assert not all(check(Schedule(name, seed, outage=0.01) for seed in range(n)))


def test_a_seed_is_replayed_exactly():
    """The same seed, the same events at the same times, also where the client is killed."""
    for schedule in (Schedule("newton", 3), Schedule("stored-als", 2), Schedule("predict", 11, 2)):
        first, second = [], []
        schedule.run(first.append)
        schedule.run(second.append)
        assert first == second
        assert len(first) > 50


def first_wrong(action, seeds=range(60)):
    """What the first seed says that finds something wrong."""
    for seed in seeds:
        try:
            action(seed)
        except Wrong as wrong:
            return str(wrong)
    return None


def one_pass(fn, seed):
    """A pass over some blocks on a simulated cluster."""
    cluster = SimulatedCluster(Random(seed))
    with small_blocks(), simulation(cluster):
        with Engine(cluster).open(Made(40, 4), Needs()) as data:
            value, _ = data.map_reduce(fn, "pass")
        left = cluster.left()
    assert value == pytest.approx(40 * 39) and not left


def in_place(block):
    """A sum that leaves other rows behind than it was given."""
    value = total(block)
    block.X[:] = 0
    return value


def where_and_when(block):
    """A sum and who made it."""
    return total(block) + hash(threading.current_thread().name) % 7 * 1e-9


CALLS = []


def counted(block):
    """A sum, and how many were made before it."""
    CALLS.append(1)
    return total(block) + len(CALLS) * 1e-9


def test_impure_tasks_are_found():
    """What changes its input, or depends on where it runs or how often, does not go unnoticed."""
    assert first_wrong(partial(one_pass, total)) is None
    assert "changed what it was given" in first_wrong(partial(one_pass, in_place))
    assert "two results" in first_wrong(partial(one_pass, where_and_when))
    assert "two results" in first_wrong(partial(one_pass, counted))


def sums_by_lane(name, read, lanes, *rest):
    """A pass whose order of summation depends on who works on what."""
    graph = pass_graph(name, read, lanes, *rest)
    root = graph.tasks[graph.wanted[0]]
    order = [(name, group.index) for lane in lanes for group in lane]
    ordered = type(root)(root.key, root.func, *(daskdml.engine.graphs.TaskRef(k) for k in order))
    return Graph({**graph.tasks, root.key: ordered}, graph.wanted, graph.lane_of, name=graph.name)


def test_sums_that_depend_on_the_workers_are_found():
    """A tree whose shape is not that of the data alone gives other bits under some schedule."""
    with mock.patch.object(daskdml.engine.run, "pass_graph", sums_by_lane):
        found = first_wrong(lambda seed: Schedule("pca", seed).run())
    assert "other bits" in found


def test_what_is_left_behind_is_found():
    """Blocks that a late task pins after its fit has ended, and factors that are never let go."""

    def drop(self, token):
        self._shelves.pop(token, None)

    with mock.patch.object(BlockCache, "drop", drop):
        found = first_wrong(lambda seed: Schedule("newton", seed).run(), range(200))
    assert "left behind: pinned blocks" in found
    kept = []
    keep = SimulatedCluster._keep
    with mock.patch.object(
        SimulatedCluster, "_keep", lambda *of: kept.append(keep(*of)) or kept[-1]
    ):
        assert "left behind: the task" in first_wrong(lambda seed: Schedule("als", seed).run())


def test_nobody_waits():
    """Hours of the simulated clock take no time."""
    lines, began = [], time.perf_counter()
    for seed in range(20):
        Schedule("pca", seed).run(lines.append)
    hours = sum(float(line.split()[0]) for line in lines if line[:1] == " ") / 3600
    assert hours > 1 and time.perf_counter() - began < 20
