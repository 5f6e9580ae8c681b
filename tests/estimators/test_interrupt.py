"""Ctrl-C at a moment that is known: the model stays, and the same call is the same fit."""

import copy
import pickle
import signal
import warnings

import numpy as np
import pytest
from sklearn.base import clone

import daskdml as dml
from daskdml import Engine
from daskdml.engine.listing import CheckpointError
from daskdml.engine.run import Inline
from daskdml.events import Message, PassEnd, PassStart
from daskdml.io import convert_ratings, open_ratings, write_dataset
from tests.faults.work import learned

WARM = {
    "lbfgs": dml.LogisticRegression(solver="lbfgs", tol=1e-9, warm_start=True),
    "sgd": dml.SGDClassifier(
        max_iter=5, tol=None, random_state=0, n_replicas=1, warm_start=True
    ),
    "regression": dml.SGDRegressor(
        max_iter=5, tol=None, random_state=0, n_replicas=1, warm_start=True
    ),
    "als": dml.MatrixFactorization(4, max_iter=5, tol=0.0, random_state=0, warm_start=True),
    "dsgd": dml.MatrixFactorization(
        4, solver="sgd", max_iter=5, tol=0.0, random_state=0, warm_start=True
    ),
}  # fmt: skip


STEPS = {
    "newton": dml.LogisticRegression(solver="newton", tol=1e-12),
    "kmeans": dml.KMeans(6, random_state=0, tol=0.0),
    "minibatch": dml.MiniBatchKMeans(6, random_state=0, max_iter=5, tol=0.0),
    "nmf": dml.NMF(2, random_state=0, max_iter=5, tol=0.0),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows in 12 chunks; ratings in a grid of 4 x 4."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    X = rng.random((1200, 6)) + 2 * rng.integers(0, 2, (1200, 1))
    y = (X @ rng.standard_normal(6) + rng.standard_normal(1200) > 1).astype(int)
    pairs = np.unique(rng.integers(0, [80, 50], (2000, 2)), axis=0)
    given = pairs[:, 0], pairs[:, 1], rng.integers(1, 6, len(pairs)).astype(float)
    convert_ratings(given, str(folder / "ratings.zarr"), grid=(4, 4))
    rows = write_dataset(folder / "rows.zarr", X, y, chunks=100)
    return {"rows": rows, "ratings": open_ratings(str(folder / "ratings.zarr"))}


def fit(model, data, place=None, stop=None, told=None):
    """Fit, and press Ctrl-C where the pass of that number has ended."""
    ended, told = [], [] if told is None else told

    def heard(event):
        told.append(event)
        if isinstance(event, PassEnd) and event.objective is not None:
            ended.append(event)
            if len(ended) == stop:
                signal.raise_signal(signal.SIGINT)

    kind = dml.MatrixFactorization
    source = data["ratings" if isinstance(model, kind) else "rows"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with Engine(Inline(), callbacks=[heard], checkpoint=place, every=0):
            model.fit(source)
    texts = [str(w.message) for w in warned]
    assert (stop is not None) == any("interrupted (Ctrl-C) after step" in text for text in texts)
    return model


@pytest.mark.parametrize("name", STEPS)
def test_what_is_interrupted_is_fitted(name, data, tmp_path):
    """After a step there is a model that can be used; the same call goes on to the whole fit's."""
    whole = fit(clone(STEPS[name]), data)
    model = fit(clone(STEPS[name]), data, tmp_path, stop=2)
    assert model.n_iter_ < whole.n_iter_
    use = model.predict if hasattr(model, "predict") else model.transform
    assert np.isfinite(np.asarray(use(data["rows"]))).all()
    assert learned(fit(model, data, tmp_path)) == learned(whole)


def test_a_second_ctrl_c_waits_for_nothing(data, tmp_path, monkeypatch):
    """Pressed again while the model is put together, it ends the call at once."""
    from daskdml.engine.checkpoint import Checkpoints

    def pressed(self, seconds=None):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "close", pressed)
    with pytest.raises(KeyboardInterrupt):
        fit(clone(WARM["sgd"]), data, tmp_path, stop=2)


@pytest.mark.parametrize("first", ["new", "fitted"])
@pytest.mark.parametrize("name", WARM)
def test_an_interrupted_warm_start_goes_on(name, first, data, tmp_path):
    """The same call goes on, also of a pickled model, to the bits of one whole fit."""
    model = clone(WARM[name])
    if first == "fitted":
        fit(model.set_params(max_iter=1), data)
        model.set_params(max_iter=WARM[name].max_iter)
    expected, told = learned(fit(copy.deepcopy(model), data)), []
    for _ in range(2):
        fit(model, data, tmp_path, stop=2)
        model = pickle.loads(pickle.dumps(model))
    fit(model, data, tmp_path, told=told)
    assert learned(model) == expected
    assert any(isinstance(e, Message) and e.text.startswith("Goes on after step") for e in told)


@pytest.mark.parametrize("name", WARM)
def test_an_interrupted_warm_start_whose_checkpoint_is_gone(name, data, tmp_path):
    """It begins where the interrupted fit began; in another place, or none, where that ended."""
    model = fit(clone(WARM[name]), data, tmp_path / "a", stop=2)
    (tmp_path / "a").rename(tmp_path / "b")
    assert vars(copy.deepcopy(model)).keys() - vars(clone(model)).keys() >= {"_interrupted"}
    again = learned(fit(copy.deepcopy(model), data, tmp_path / "a"))
    assert again == learned(fit(clone(model), data))
    on = learned(fit(copy.deepcopy(model), data))
    assert on != again and on == learned(fit(copy.deepcopy(model), data, tmp_path / "c"))


@pytest.mark.parametrize("name", WARM)
def test_a_warm_start_from_a_fit_that_ended_is_another_fit(name, data, tmp_path):
    """Once the same call has ended, the next one begins from its result, and is refused there."""
    model = fit(clone(WARM[name]), data, tmp_path, stop=2)
    fit(model, data, tmp_path)
    with pytest.raises(CheckpointError, match=r"start was None|start was '"):
        fit(model, data, tmp_path)


@pytest.mark.parametrize("tol", [0.0, 1.0])
def test_ctrl_c_in_the_last_pass_of_minibatch(tol, data, tmp_path):
    """When only the inertia is missing, the model stays, with that of its last epoch."""
    model = dml.MiniBatchKMeans(4, random_state=0, max_iter=3, tol=tol)
    whole = fit(clone(model), data)

    def heard(event):
        if isinstance(event, PassStart) and event.label.endswith("-sums"):
            signal.raise_signal(signal.SIGINT)

    with (
        Engine(Inline(), callbacks=[heard], checkpoint=tmp_path, every=0),
        pytest.warns(RuntimeWarning, match=rf"interrupted \(Ctrl-C\) after step {whole.n_iter_}"),
    ):
        model.fit(data["rows"])
    assert np.array_equal(model.cluster_centers_, whole.cluster_centers_)
    epochs = [e for e in model.history_ if e.label.endswith("-epoch")]
    assert len(epochs) == model.n_iter_ and model.inertia_ == epochs[-1].objective
    assert learned(fit(model, data, tmp_path)) == learned(whole)
    assert model.inertia_ == whole.inertia_
