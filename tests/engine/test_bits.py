"""A fit's bits do not depend on who runs it, in which order, or on what goes wrong meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import daskdml.engine.run
from daskdml import Engine, LogisticRegression, Ridge
from daskdml.engine.memory import Needs
from daskdml.engine.run import Inline, Threads
from daskdml.events import BlockEnd, Message, PassStart
from daskdml.io import write_dataset
from tests.conftest import workers
from tests.engine.simulated import on_simulated_cluster
from tests.engine.sources import Made

MODELS = {
    "binary": (LogisticRegression(tol=1e-10), lambda y: (y > 0).astype(int)),
    "multinomial": (LogisticRegression(tol=1e-10), lambda y: np.digitize(y, [-1, 1])),
    "lbfgs": (LogisticRegression(tol=1e-6, solver="lbfgs"), lambda y: np.digitize(y, [-1, 1])),
    "ridge": (Ridge(tol=1e-10), lambda y: y),
}


@pytest.fixture(autouse=True)
def many_groups(monkeypatch):
    """Rows come in twenty groups, each a task of its own."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 60_000)


@dataclass(frozen=True)
class Across:
    """Block -> whether an array lies across its numbers' places."""

    array: np.ndarray

    def __call__(self, block):
        """As a number, which adds."""
        return int(not self.array.flags.aligned)


def test_arrays_are_aligned_on_workers(two_workers):
    """Wherever they lay in a message: BLAS and Numba would treat others apart."""
    with Engine(two_workers).open(Made(20, 4), Needs()) as data:
        found = [data.map_reduce(Across(np.ones(n)), "pass")[0] for n in (60, 61, 600, 20_000)]
    assert found == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """One data set for each kind of model, in twenty chunks."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 6)) * [1, 2, 3, 4, 5, 60] + [0, 0, 0, 0, 100, 0]
    y = X @ [1, -0.5, 0.2, 0, 0.1, 0.01] - 10 + rng.logistic(size=len(X))
    folder = tmp_path_factory.mktemp("bits")
    return {
        kind: write_dataset(folder / f"{kind}.zarr", X, target(y), chunks=1000)
        for kind, (_, target) in MODELS.items()
    }


def fitted(kind, datasets, runner=None, callbacks=()):
    """Fit the model of a kind; give what must have the same bits."""
    from sklearn.base import clone

    with Engine(runner, callbacks=callbacks):
        model = clone(MODELS[kind][0]).fit(datasets[kind])
    certificate = model.certificate_
    facts = (np.asarray(model.intercept_), np.float64(certificate.gap), certificate.objective)
    return model.coef_.tobytes(), *(np.float64(f).tobytes() for f in facts), model.n_iter_


@pytest.fixture(scope="module")
def expected(datasets):
    """What one thread gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daskdml.engine.run, "GROUP_BYTES", 60_000)
        return {kind: fitted(kind, datasets, Inline()) for kind in MODELS}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads(kind, threads, datasets, expected):
    """1, 2 and 4 threads get the bits of none."""
    assert fitted(kind, datasets, Threads(threads)) == expected[kind]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_repeats_and_losses(kind, seed, datasets, expected):
    """So does a cluster that shuffles, repeats and loses tasks, and whose workers die."""
    with on_simulated_cluster(seed) as runner:
        assert fitted(kind, datasets, runner) == expected[kind]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4])
def test_processes(n, datasets, expected):
    """1 and 4 worker processes get the same bits."""
    with workers(n) as client:
        for kind in MODELS:
            assert fitted(kind, datasets, client) == expected[kind]


@pytest.mark.cluster
@pytest.mark.parametrize("kind", MODELS)
def test_two_processes(kind, two_workers, datasets, expected):
    """2 worker processes get the same bits."""
    assert fitted(kind, datasets, two_workers) == expected[kind]


def at_once(*fits):
    """Call functions in threads of their own, at the same time; their results."""
    ready = threading.Barrier(len(fits))

    def begin(fit):
        ready.wait(30)
        return fit()

    with ThreadPoolExecutor(len(fits)) as pool:
        return list(pool.map(begin, fits))


@pytest.mark.parametrize("kinds", [("binary", "binary"), ("multinomial", "ridge")])
def test_two_fits_at_once_on_threads(kinds, datasets, expected):
    """Two fits at once in one process get the bits that each gets alone, and their own events."""
    for shared in (None, Engine(Threads(2))):  # engines of their own; one engine that both enter
        heard = [[], []]

        def fit(i, shared=shared, heard=heard):
            if shared is None:
                return fitted(kinds[i], datasets, Threads(2), [heard[i].append])
            with shared:
                return fitted(kinds[i], datasets, Threads(2), [heard[i].append])

        assert at_once(lambda: fit(0), lambda: fit(1)) == [expected[kind] for kind in kinds]
        for events in heard:
            started = sum(e.n_blocks for e in events if isinstance(e, PassStart))
            assert started == sum(isinstance(e, BlockEnd) for e in events)


@pytest.mark.cluster
@pytest.mark.parametrize("kinds", [("binary", "binary"), ("multinomial", "lbfgs")])
def test_two_fits_at_once_on_processes(kinds, two_workers, datasets, expected):
    """So do two fits at once through one Dask client."""

    def fit(kind):
        return fitted(kind, datasets, two_workers)

    assert at_once(*(partial(fit, kind) for kind in kinds)) == [expected[kind] for kind in kinds]


class At:
    """A callback that does something once, at the n-th block of a fit."""

    def __init__(self, n, action):
        self.n, self.action, self.seen, self.events = n, action, 0, []

    def __call__(self, event):
        """Count blocks."""
        self.events.append(event)
        if isinstance(event, BlockEnd):
            self.seen += 1
            if self.seen == self.n:
                self.action(event)


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["binary", "multinomial", "ridge"])
def test_a_worker_killed(kind, datasets, expected):
    """A worker that dies in the middle of a pass costs time, not bits; a message tells of it."""
    with workers(2) as client:
        pids = client.run(os.getpid)
        kill = At(12, lambda event: os.kill(pids[event.worker], signal.SIGKILL))
        assert fitted(kind, datasets, client, [kill]) == expected[kind]
        assert kill.seen > 12
        assert len(set(client.run(os.getpid).values()) - set(pids.values())) <= 1


@pytest.mark.cluster
def test_workers_come_and_go(datasets, expected):
    """Workers that join and leave during a fit change no bits, and messages tell of them."""
    with workers(1) as client:
        first = next(iter(client.nthreads()))

        def grow(event):
            client.cluster.scale(3)
            client.wait_for_workers(3, timeout=60)

        joined = At(10, grow)
        assert fitted("multinomial", datasets, client, [joined]) == expected["multinomial"]
        left = At(40, lambda event: client.retire_workers([first]))
        assert fitted("multinomial", datasets, client, [left]) == expected["multinomial"]
        texts = [e.text for e in (*joined.events, *left.events) if isinstance(e, Message)]
        assert any("joined" in text for text in texts)
        assert any(first in text and "is gone" in text for text in texts)


@pytest.mark.cluster
def test_an_interrupt_cancels(two_workers, datasets):
    """Ctrl-C leaves no task behind on the cluster, which then runs the next fit."""

    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted("binary", datasets, two_workers, [At(20, interrupt)])
    done = threading.Event()
    for _ in range(100):
        if not any(two_workers.processing().values()):
            break
        done.wait(0.1)
    assert not any(two_workers.processing().values())
    fitted("binary", datasets, two_workers)


def test_a_failing_callback_does_not_stop_a_fit(datasets, expected):
    """What a callback raises becomes one warning."""

    def fail(event):
        raise RuntimeError("boom")

    with pytest.warns(RuntimeWarning, match="boom"):
        assert fitted("ridge", datasets, Threads(2), [fail]) == expected["ridge"]
