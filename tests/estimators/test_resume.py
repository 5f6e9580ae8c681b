"""Every fit goes on from its checkpoint, wherever it broke off, and ends with the same bits."""

import contextlib
import errno
import json
import shutil
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import zarr
from jupyter_client import KernelManager

import daskdml as dml
from daskdml import Engine
from daskdml.engine import run
from daskdml.engine.checkpoint import Checkpoints
from daskdml.engine.run import Inline
from daskdml.events import BlockEnd, Message, PassEnd
from daskdml.io import convert_ratings, open_dataset, open_ratings, write_dataset
from daskdml.io.factors import FactorStore
from tests.conftest import workers
from tests.engine.sources import set_segments
from tests.faults.work import learned

MODELS = {
    "newton": lambda: dml.LogisticRegression(solver="newton", tol=1e-9),
    "lbfgs": lambda: dml.LogisticRegression(solver="lbfgs", tol=1e-9),
    "local sgd": lambda: dml.LogisticRegression(solver="sgd", random_state=0, staleness=1),
    "ridge": lambda: dml.Ridge(),
    "sgd": lambda: dml.SGDClassifier(max_iter=4, tol=None, random_state=0, n_replicas=2),
    "averaged sgd": lambda: dml.SGDRegressor(
        max_iter=4, tol=None, random_state=0, average=True, staleness=1, n_replicas=2
    ),
    "early sgd": lambda: dml.SGDClassifier(
        max_iter=4, early_stopping=True, random_state=0, certify=True, penalty="l1", n_replicas=1
    ),
    "kmeans": lambda: dml.KMeans(6, random_state=0),
    "minibatch": lambda: dml.MiniBatchKMeans(6, random_state=0, max_iter=4),
    "nmf": lambda: dml.NMF(3, random_state=0, max_iter=8, tol=1e-9),
    "pca": lambda: dml.PCA(2),
    "randomized": lambda: dml.TruncatedSVD(2, algorithm="randomized", random_state=0),
}
FACTORIZATIONS = {
    "als": lambda: dml.MatrixFactorization(4, max_iter=4, random_state=0),
    "implicit": lambda: dml.MatrixFactorization(
        4, max_iter=4, random_state=0, feedback="implicit", reg=0.1
    ),
    "dsgd": lambda: dml.MatrixFactorization(
        4, solver="sgd", max_iter=4, random_state=0, staleness=1
    ),
    "early": lambda: dml.MatrixFactorization(4, max_iter=8, random_state=0, early_stopping=True),
}


class Broken(BaseException):
    """What breaks a fit off."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows in 24 chunks."""
    rng = np.random.default_rng(0)
    X = rng.random((2400, 6)).astype(np.float32) + 2 * rng.integers(0, 2, (2400, 1))
    y = (X @ rng.standard_normal(6) + rng.standard_normal(2400) > 1).astype(int)
    return write_dataset(tmp_path_factory.mktemp("rows") / "r.zarr", X, y, chunks=100).url


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    """Ratings in a grid of 4 x 4."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, [80, 50], (2000, 2)), axis=0)
    data = pairs[:, 0], pairs[:, 1], rng.integers(1, 6, len(pairs)).astype(float)
    url = str(tmp_path_factory.mktemp("ratings") / "r.zarr")
    return convert_ratings(data, url, grid=(4, 4)).url


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """One chunk is a group, and three groups are a segment."""
    monkeypatch.setattr(run, "GROUP_BYTES", 1)
    set_segments(monkeypatch, 3)


def fit(model, data, heard, place=None, runner=None, every=0, **more):
    """Fit under an engine that tells `heard`."""
    engine = Engine(runner or Inline(), callbacks=[heard], checkpoint=place, every=every)
    with engine, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(data, **more)


def counting(events, stop=None):
    """A callback that collects ends of blocks, and breaks off at the one of that number."""

    def heard(event):
        if isinstance(event, BlockEnd):
            events.append(event)
            if len(events) == stop:
                raise Broken

    return heard


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_broken_off_anywhere_goes_on(name, rows, tmp_path):
    """At most a segment of three groups is done again; the bits are those of one whole fit."""
    data, whole = open_dataset(rows), []
    expected = learned(fit(MODELS[name](), data, counting(whole)))
    rng = np.random.default_rng(1)
    for stop in rng.integers(4, len(whole) + 3, 4):
        first, second, place = [], [], tmp_path / str(stop)
        with pytest.raises(Broken):
            fit(MODELS[name](), data, counting(first, int(stop)), place)
        assert learned(fit(MODELS[name](), data, counting(second), place)) == expected
        identity = 3  # groups that tell the data, in each call
        assert len(first) + len(second) <= len(whole) + 3 + 2 * identity


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_a_factorization_goes_on(name, stored, ratings, tmp_path):
    """At most a sweep is done again, with factors in memory and in a store."""
    data, whole = open_ratings(ratings), []

    def where(name):
        return {"factors_url": str(tmp_path / name)} if stored else {}

    expected = learned(fit(FACTORIZATIONS[name](), data, counting(whole), **where("whole")))
    a_sweep = len(whole) / expected["n_iter"]
    for stop in np.random.default_rng(1).integers(2, len(whole), 3):
        first, second, place = [], [], tmp_path / f"{stop}.fit"
        with pytest.raises(Broken):
            fit(FACTORIZATIONS[name](), data, counting(first, int(stop)), place, **where(str(stop)))
        again = fit(FACTORIZATIONS[name](), data, counting(second), place, **where(str(stop)))
        assert learned(again) == expected
        assert len(first) + len(second) <= len(whole) + a_sweep
        third = fit(FACTORIZATIONS[name](), data, counting([], 1), place, **where(str(stop)))
        assert learned(third) == expected
        if stored:
            assert stored_in(tmp_path / str(stop)) == named_by(place)


def stored_in(folder):
    """Names of the factors in a store."""
    return {path.name for path in folder.iterdir() if path.is_dir()}


def named_by(place):
    """Names of the factors that checkpoints rely on."""
    listed = json.loads((place / "latest.json").read_text())["checkpoints"]
    return {name for entry in listed for name in entry["names"]}


def test_a_factorization_dies_again_before_its_next_checkpoint(ratings, tmp_path):
    """Factors in a store stay as long as a checkpoint relies on them."""
    data, whole = open_ratings(ratings), []
    model, place, url = FACTORIZATIONS["als"], tmp_path / "fit", str(tmp_path / "factors")
    expected = learned(fit(model(), data, counting(whole), factors_url=str(tmp_path / "whole")))
    with pytest.raises(Broken):
        fit(model(), data, counting([], len(whole) // 2), place, factors_url=url)
    for _ in range(2):
        with pytest.raises(Broken):
            stop = counting([], len(whole) // 3)
            fit(model(), data, stop, place, every="60s", factors_url=url)
    assert learned(fit(model(), data, counting([]), place, factors_url=url)) == expected


def test_a_factorization_whose_checkpoints_cannot_be_written(ratings, tmp_path, monkeypatch):
    """Factors of the last one that could be stay; of those that could not, none do in the end."""
    data, whole, put = open_ratings(ratings), [], Checkpoints._put
    model, place, url = FACTORIZATIONS["als"], tmp_path / "fit", str(tmp_path / "factors")
    expected = learned(fit(model(), data, counting(whole), factors_url=str(tmp_path / "whole")))

    def full(self, name, encoded):
        if name > "000001.state" and name.endswith(".state"):
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, name, encoded)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_put", full)
        with pytest.raises(Broken):
            fit(model(), data, counting([], len(whole) - 2), place, factors_url=url)
    assert learned(fit(model(), data, counting([]), place, factors_url=url)) == expected
    assert stored_in(tmp_path / "factors") == named_by(place)


def test_the_last_checkpoint_of_a_factorization_is_damaged(ratings, tmp_path):
    """Or its factors are gone: the one before it still has its own."""
    data, url, place = open_ratings(ratings), str(tmp_path / "factors"), tmp_path / "fit"
    expected = learned(fit(FACTORIZATIONS["als"](), data, counting([]), place, factors_url=url))
    newest = max(place.glob("*.state"))
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    again, blocks = FACTORIZATIONS["als"](), []
    assert learned(fit(again, data, counting(blocks), place, factors_url=url)) == expected
    assert len(blocks) < 16
    new, old = (
        set(e["names"]) for e in json.loads((place / "latest.json").read_text())["checkpoints"]
    )
    shutil.rmtree(tmp_path / "factors" / (new - old).pop())
    with (
        Engine(Inline(), checkpoint=place),
        pytest.warns(RuntimeWarning, match="is damaged .*, which it names, is gone"),
    ):
        again = FACTORIZATIONS["als"]().fit(data, factors_url=url)
    assert learned(again) == expected


@pytest.mark.parametrize("name", ["newton", "sgd", "kmeans", "pca"])
def test_a_bad_row_is_no_part_of_a_checkpoint(name, tmp_path):
    """The same call finds it again, and the fit goes on once it is mended."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2400, 6))
    X[1334, 2] = np.nan
    write_dataset(tmp_path / "r.zarr", X, X[:, 0] > 0, chunks=100)
    for _ in range(2):
        with pytest.raises(ValueError, match="NaN: first in row 1334"):
            fit(MODELS[name](), str(tmp_path / "r.zarr"), counting([]), tmp_path / "fit")
    X[1334, 2] = 0.5
    zarr.open_array(tmp_path / "r.zarr" / "X", mode="r+")[1334, 2] = 0.5
    mended = fit(MODELS[name](), str(tmp_path / "r.zarr"), counting([]), tmp_path / "fit")
    data = write_dataset(tmp_path / "s.zarr", X, X[:, 0] > 0, chunks=100)
    assert learned(mended) == learned(fit(MODELS[name](), data, counting([])))


def test_ctrl_c_while_a_checkpoint_is_read(rows, tmp_path, monkeypatch):
    """Nothing is put on top of what is there."""
    data, place, read = open_dataset(rows), tmp_path / "fit", Checkpoints._get
    with pytest.raises(Broken):
        fit(MODELS["sgd"](), data, counting([], 60), place)
    before = (place / "latest.json").read_text()

    def interrupted(self, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(MODELS["sgd"](), data, counting([]), place)
    assert (place / "latest.json").read_text() == before
    monkeypatch.setattr(Checkpoints, "_get", read)
    again, whole = [], []
    fit(MODELS["sgd"](), data, counting(again), place)
    fit(MODELS["sgd"](), data, counting(whole))
    assert len(again) < len(whole) - 40


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["als", "dsgd"])
def test_a_factorization_moves_to_other_workers(name, ratings, tmp_path):
    """Factors that lay on one cluster go on elsewhere: on two processes, from two or from none."""
    data, whole = open_ratings(ratings), []
    expected = learned(fit(FACTORIZATIONS[name](), data, counting(whole)))
    with workers(2) as client, pytest.raises(Broken):
        stop = counting([], len(whole) // 2)
        fit(FACTORIZATIONS[name](), data, stop, tmp_path / "fit", client)
    with workers(1) as client:
        found = fit(FACTORIZATIONS[name](), data, counting([]), tmp_path / "fit", client)
    assert learned(found) == expected


def test_factors_of_another_fit_are_left_alone(ratings, tmp_path):
    """What another fit put at a URL is refused, also where a checkpoint is kept."""
    data, url = open_ratings(ratings), str(tmp_path / "factors")
    model = fit(FACTORIZATIONS["als"](), data, counting([]), tmp_path / "fit", factors_url=url)
    expected = learned(model)
    with pytest.raises(FileExistsError, match="exists; choose another URL"):
        fit(FACTORIZATIONS["als"](), data, counting([]), tmp_path / "other", factors_url=url)
    assert learned(model) == expected


def interrupted(model, data, after, place=None, runner=None):
    """Press Ctrl-C a moment after a pass or sweep of that number has ended; the model, if any."""
    ended, pressed, told = [], [], []

    def press():
        time.sleep(0.02)
        pressed.append(time.perf_counter())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def heard(event):
        told.append(event)
        if isinstance(event, PassEnd) and event.objective is not None:
            ended.append(event)
            if len(ended) == after:
                threading.Thread(target=press).start()

    engine = Engine(runner, callbacks=[heard], checkpoint=place, every="1 hour")
    with engine, pytest.warns(RuntimeWarning, match=r"interrupted \(Ctrl-C\) after step"):
        model.fit(data)
    return model, time.perf_counter() - pressed[0], told


SLOW = {
    "sgd": lambda: dml.SGDClassifier(max_iter=100_000, tol=None, random_state=0, n_replicas=1),
    "minibatch": lambda: dml.MiniBatchKMeans(6, random_state=0, max_iter=100_000, tol=0.0),
    "nmf": lambda: dml.NMF(3, random_state=0, max_iter=100_000, tol=0.0),
}


@pytest.mark.parametrize("name", SLOW)
def test_an_interrupted_fit_is_fitted(name, rows, tmp_path):
    """Ctrl-C leaves the best model so far, soon, and says where; called again, the fit goes on."""
    data = open_dataset(rows)
    model, seconds, _ = interrupted(SLOW[name](), data, 5, tmp_path / "fit")
    assert seconds < 2 and model.n_iter_ >= 4
    model.predict(data).compute() if hasattr(model, "predict") else model.transform(data).compute()
    again, _, told = interrupted(SLOW[name](), data, 3, tmp_path / "fit")
    assert again.n_iter_ > model.n_iter_
    assert any(isinstance(e, Message) and e.text.startswith("Goes on after step") for e in told)


@pytest.mark.cluster
def test_an_interrupted_fit_on_a_cluster(rows, two_workers, tmp_path):
    """What workers do ends or is cancelled, and control comes back as soon."""
    data = open_dataset(rows)
    model, seconds, _ = interrupted(SLOW["sgd"](), data, 5, tmp_path / "fit", two_workers)
    assert seconds < 2.5 and model.n_iter_ >= 4
    assert not two_workers.futures


def test_an_interrupted_factorization_is_fitted(ratings, tmp_path):
    """The same for factors, in memory and in a store."""
    data = open_ratings(ratings)
    model = dml.MatrixFactorization(4, max_iter=100_000, tol=0.0, random_state=0)
    model, seconds, _ = interrupted(model, data, 5, tmp_path / "fit")
    assert seconds < 2 and len(model.recommend(np.asarray(data.users.ids[:2]), k=3)[0]) == 2


def six_sweeps(solver):
    """A factorization."""
    return dml.MatrixFactorization(4, solver=solver, max_iter=6, tol=0.0, random_state=0)


@pytest.fixture(scope="module")
def swept(ratings, tmp_path_factory):
    """What each solver learns undisturbed, with its factors in a store."""
    data, found = open_ratings(ratings), {}
    for solver in ("als", "sgd"):
        url = str(tmp_path_factory.mktemp("swept") / solver)
        found[solver] = learned(fit(six_sweeps(solver), data, counting([]), factors_url=url))
    return found


@pytest.mark.parametrize("solver", ["als", "sgd"])
@pytest.mark.parametrize("at", range(1, 9))
def test_ctrl_c_while_old_factors_are_removed(solver, at, ratings, swept, tmp_path, monkeypatch):
    """The factors of the model that it leaves stay in the store, and the fit goes on from them."""
    data, place, url = open_ratings(ratings), tmp_path / "fit", str(tmp_path / "factors")
    remove, removed = FactorStore.remove, []

    def pressed(self, name):
        remove(self, name)
        removed.append(name)
        if len(removed) == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FactorStore, "remove", pressed)
        model = six_sweeps(solver)
        with contextlib.suppress(KeyboardInterrupt):  # before the first sweep has ended
            fit(model, data, counting([]), place, every="1 hour", factors_url=url)
    assert len(removed) >= at
    if hasattr(model, "n_iter_"):
        assert len(model.recommend(np.asarray(data.users.ids[:2]), k=3)[0]) == 2
    again = fit(six_sweeps(solver), data, counting([]), place, factors_url=url)
    assert learned(again) == swept[solver]


def test_ctrl_c_does_not_wait_for_a_slow_store(rows, tmp_path, monkeypatch):
    """Control comes back soon, with a warning; what is being written is whole for the next call."""
    put = Checkpoints._put

    def slow(self, name, state):
        time.sleep(3 * name.endswith(".state"))
        put(self, name, state)

    data = open_dataset(rows)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_put", slow)
        with pytest.warns(RuntimeWarning, match="the last checkpoint is still being written at"):
            _, seconds, _ = interrupted(SLOW["sgd"](), data, 5, tmp_path / "fit")
        assert seconds < 2.5
    _, _, told = interrupted(SLOW["sgd"](), data, 3, tmp_path / "fit")
    assert any(isinstance(e, Message) and e.text.startswith("Goes on after step") for e in told)


def test_an_interrupt_before_any_model(rows):
    """Where there is no model yet, Ctrl-C is Ctrl-C."""

    def heard(event):
        raise KeyboardInterrupt

    with Engine(callbacks=[heard]), pytest.raises(KeyboardInterrupt):
        dml.LogisticRegression().fit(open_dataset(rows))


CLUSTER = """
from distributed import Client
cluster = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
"""


@pytest.mark.cluster
@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_the_stop_button_of_a_notebook(where, rows):
    """Interrupting the kernel leaves the estimator fitted, and the notebook and its workers go on.

    The signal reaches all processes that the notebook has started.
    """
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    said = []

    def heard(message):
        if message["msg_type"] == "stream":
            said.append(message["content"]["text"])
            if "under way" in said[-1]:
                manager.interrupt_kernel()

    code = f"""{CLUSTER if where == "cluster" else ""}
import daskdml as dml
from daskdml.events import PassEnd
steps = []
def heard(event):
    steps.append(event)
    if isinstance(event, PassEnd) and len(steps) > 200 and not any(s == "said" for s in steps):
        steps.append("said")
        print("under way", flush=True)
model = dml.SGDClassifier(max_iter=100_000, tol=None, random_state=0, n_replicas=1)
with dml.Engine(callbacks=[heard]):
    model.fit({rows!r})
print(model.n_iter_ > 1, model.coef_.shape)
"""
    if where == "cluster":
        code += 'print("alive", cluster.submit(sum, [1, 2]).result(timeout=20))'
    try:
        reply = client.execute_interactive(code, output_hook=heard, timeout=120)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok" and "True (1, 6)" in "".join(said)
    assert "interrupted (Ctrl-C) after step" in "".join(said)
    assert where == "threads" or "alive 3" in "".join(said)
