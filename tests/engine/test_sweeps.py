"""Factorizations have the same bits everywhere, and models larger than a worker are fitted."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import daskdml.engine.sweeps
from daskdml import Engine, MatrixFactorization
from daskdml.engine.run import Inline, Threads
from daskdml.events import BlockEnd, PassEnd
from daskdml.io import convert_ratings
from tests.conftest import workers
from tests.engine.simulated import on_simulated_cluster
from tests.engine.simulated_cluster import Kept, SimulatedCluster

KINDS = {
    "als": {},
    "implicit": {"feedback": "implicit"},
    "sgd": {"solver": "sgd", "n_replicas": 4},
    "sgd, blocks together": {"solver": "sgd", "n_replicas": 2},
    "stale": {"solver": "sgd", "n_replicas": 4, "staleness": 1},
}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Some thousand ratings, in a grid of four by four."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((200, 120)) < 0.2)
    data = (users, items, rng.integers(1, 11, len(users)) / 2)
    return convert_ratings(data, tmp_path_factory.mktemp("sweeps") / "r.zarr", grid=(4, 4))


def fitted(kind, ratings, runner=None, url=None, callbacks=()):
    """Bits of a fit's factors and of its history."""
    model = MatrixFactorization(6, random_state=0, max_iter=4, tol=0, **KINDS[kind])
    with Engine(runner, callbacks=callbacks):
        model.fit(ratings, factors_url=url)
    objectives = np.array([record.objective for record in model.history_])
    sides = []
    for side in ("user", "item"):
        order = np.argsort(getattr(model, f"{side}_ids_"))
        parts = (getattr(model, f"{side}_{what}_") for what in ("factors", "biases"))
        sides += [np.asarray(part)[order].tobytes() for part in parts]
    return *sides, objectives.tobytes()


@pytest.fixture(scope="module")
def expected(ratings):
    """What one thread gets."""
    return {kind: fitted(kind, ratings, Inline()) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads(kind, threads, ratings, expected):
    """Any number of threads gives the same bits."""
    assert fitted(kind, ratings, Threads(threads)) == expected[kind]


def test_idle_time_is_of_slots(ratings):
    """What compute slots waited is counted by slots, not by tiles."""
    ends = []
    fitted("sgd", ratings, Threads(1), callbacks=[lambda e: ends.append(e)])
    sweeps = [e for e in ends if isinstance(e, PassEnd) and e.label == "dsgd-sweep"]
    assert sweeps and all(e.wait + e.compute == pytest.approx(e.seconds) for e in sweeps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_repeats_and_losses(kind, seed, ratings, expected):
    """Tasks in a random order, repeated, and made again after a loss, give the same bits."""
    with on_simulated_cluster(seed) as runner:
        assert fitted(kind, ratings, runner) == expected[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_factors_in_a_store(kind, ratings, expected, tmp_path):
    """Factors that live in a store have the same bits, and only the last ones stay there."""
    with on_simulated_cluster(0) as runner:
        assert fitted(kind, ratings, runner, tmp_path / "f.zarr") == expected[kind]
    assert len(os.listdir(tmp_path / "f.zarr")) == 3  # users, items and the group's metadata


@pytest.mark.cluster
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes(kind, two_workers, ratings, expected):
    """Two worker processes give the same bits."""
    assert fitted(kind, ratings, two_workers) == expected[kind]


@pytest.mark.cluster
@pytest.mark.slow
def test_processes(ratings, expected, tmp_path):
    """Four worker processes give the same bits, with factors in a store, too."""
    with workers(4) as client:
        for kind in KINDS:
            assert fitted(kind, ratings, client) == expected[kind]
            assert fitted(kind, ratings, client, tmp_path / f"{kind}.zarr") == expected[kind]


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["als", "sgd", "stale"])
def test_a_worker_killed_in_a_sweep(kind, ratings, expected):
    """After a worker died in the second sweep, others repeat its work: the same bits."""
    ended, killed = [], []
    with workers(2) as client:
        pids = client.run(os.getpid)

        def kill(event):
            if isinstance(event, PassEnd):
                ended.append(event)
            if len(ended) == 1 and isinstance(event, BlockEnd) and not killed:
                killed.append(pids[event.worker])
                os.kill(pids[event.worker], signal.SIGKILL)

        assert fitted(kind, ratings, client, callbacks=[kill]) == expected[kind]
    assert killed


class CutOff(SimulatedCluster):
    """Sees whether a graph is given what an earlier one kept, or its value."""

    kept = cut = 0

    def entry(self, key, kept):
        """Count it."""
        self.kept += isinstance(kept, Kept)
        self.cut += not isinstance(kept, Kept)
        return super().entry(key, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_lineage_is_cut(kind, ratings, expected, monkeypatch):
    """What is kept is replaced by its value now and then, here each time, with the same bits."""
    for seconds in (np.inf, 0.0):
        monkeypatch.setattr(daskdml.engine.sweeps, "LINEAGE_SECONDS", seconds)
        with on_simulated_cluster(0, CutOff) as runner:
            assert fitted(kind, ratings, runner) == expected[kind]
        assert bool(runner.kept) == bool(seconds)
        assert bool(runner.cut) != bool(seconds)


LARGE = """
import json, resource, sys
import numpy as np
import daskdml as dml
from distributed import Client, LocalCluster
from daskdml.io import open_ratings

def cap():
    resource.setrlimit(resource.RLIMIT_DATA, ({cap}, {cap}))

def main():
    ratings = open_ratings({url!r})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                      memory_limit="1GB") as cluster, Client(cluster) as client:
        client.run(cap)
        with dml.Engine(client, memory_limit={limit}):
            model = dml.MatrixFactorization(32, solver={solver!r}, max_iter=1, random_state=0)
            model.fit(ratings, factors_url={factors!r})
            users, items = model.user_ids_[:50], model.item_ids_[:50]
            predicted = model.predict((users, items))
            listed, scores = model.recommend(users[:3], k=4)
    size = sum(f.nbytes for f in (model.user_factors_, model.item_factors_))
    print(json.dumps({{
        "size": size, "peaks": list(model.peak_memory_.values()), "limit": model.plan_.limit,
        "finite": bool(np.isfinite(predicted).all() and np.isfinite(scores).all()),
        "best": float(abs(model.predict((np.repeat(users[:3], 4), listed.ravel()))
                          - scores.ravel()).max()),
    }}))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Ratings, one of each of many users for one of as many items."""
    rng = np.random.default_rng(0)
    n = 1_700_000
    data = (rng.permutation(n), rng.permutation(n), rng.random(n, dtype=np.float32))
    return convert_ratings(data, tmp_path_factory.mktemp("large") / "r.zarr", grid=(20, 20))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("solver", ["als", "sgd"])
def test_a_model_larger_than_any_worker(solver, large, tmp_path):
    """Factors larger than a worker's promise are fitted, under a hard cap, and can be asked."""
    limit, cap = 400_000_000, 650_000_000
    script = tmp_path / "large.py"
    script.write_text(
        LARGE.format(
            cap=cap, url=large.url, limit=limit, solver=solver, factors=str(tmp_path / "f.zarr")
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=800, check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size"] > limit >= max(found["peaks"]), found
    assert found["finite"] and found["best"] < 1e-5
