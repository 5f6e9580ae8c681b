"""The SGD estimators are scikit-learn's, row for row, and go beyond memory."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import sklearn.linear_model as plain
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

import daskdml.engine.run
from daskdml import Engine, SGDClassifier, SGDRegressor
from daskdml.engine.run import Inline, Threads
from daskdml.io import open_dataset, write_dataset

CLASSIFICATION = ["log_loss", "hinge", "perceptron", "squared_hinge", "modified_huber"]
REGRESSION = ["squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"]
RATES = {
    "optimal": {},
    "constant": {"eta0": 0.01},
    "invscaling": {"eta0": 0.02, "power_t": 0.25},
    "adaptive": {"eta0": 0.02},
}
ROWS = {"n_replicas": 1, "shuffle": False}  # scikit-learn's algorithm


def make_data(n_classes=2, n=300, d=6, seed=0):
    """Standardised rows, labels (or, for n_classes=0, targets) and weights."""
    rng = np.random.default_rng(seed)
    X = StandardScaler().fit_transform(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)))
    k = max(n_classes, 1)
    z = X @ rng.normal(size=(d, k)) / 2 + 0.5 * rng.normal(size=(n, k))
    y = np.array(["a", "b", "c", "d"])[z.argmax(axis=1)] if n_classes else z[:, 0]
    return X, y, rng.uniform(0.2, 2.0, n)


def quiet_fit(model, *args, **kwargs):
    """Fit, whether it converges or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(*args, **kwargs)


def pair(n_classes, **options):
    """Our estimator and scikit-learn's with the same parameters."""
    if n_classes:
        return SGDClassifier(**ROWS, **options), plain.SGDClassifier(shuffle=False, **options)
    return SGDRegressor(**ROWS, **options), plain.SGDRegressor(shuffle=False, **options)


def assert_same(ours, theirs, rtol=1e-8):
    """Coefficients, intercepts, epochs and clock agree."""
    assert (ours.n_iter_, ours.t_) == (theirs.n_iter_, theirs.t_)
    atol = rtol * np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=rtol, atol=atol)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=rtol, atol=atol)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet", None])
@pytest.mark.parametrize("loss", [*CLASSIFICATION, *REGRESSION])
def test_every_loss_penalty_and_rate_stops_where_sklearn_does(loss, penalty, rate):
    """By scikit-learn's own criterion, after as many epochs, at the same coefficients.

    Where L1 truncates, scikit-learn's criterion has the norm before, and ours the norm after it.
    """
    n_classes = 2 if loss in CLASSIFICATION else 0
    X, y, _ = make_data(n_classes)
    alpha = 0.5 if loss.startswith("squared") and rate == "optimal" else 0.01
    options = {"loss": loss, "penalty": penalty, "alpha": alpha, "learning_rate": rate}
    stop = {"tol": None if penalty in ("l1", "elasticnet") else 1e-3, "n_iter_no_change": 3}
    ours, theirs = pair(n_classes, max_iter=30, **stop, **options, **RATES[rate])
    assert_same(quiet_fit(ours, X, y), quiet_fit(theirs, X, y))


@pytest.mark.parametrize("class_weight", [None, "balanced", {"a": 2.0, "b": 0.5}])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("average", [False, True, 200])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_weights_classes_and_averages_equal_sklearn(n_classes, average, weighted, class_weight):
    """Class weights, row weights, averages and one problem per class that stops by itself."""
    X, y, weights = make_data(n_classes)
    weights = weights if weighted else None
    options = {"loss": "log_loss", "alpha": 0.01, "average": average, "class_weight": class_weight}
    ours, theirs = pair(n_classes, max_iter=50, **options)
    quiet_fit(ours, X, y, sample_weight=weights)
    quiet_fit(theirs, X, y, sample_weight=weights)
    assert_same(ours, theirs)
    assert ours.predict(X).tolist() == theirs.predict(X).tolist()
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-7)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), rtol=1e-6)


@pytest.mark.parametrize("rate", ["pa1", "pa2"])
@pytest.mark.parametrize("n_classes", [0, 3])
def test_passive_aggressive_equals_sklearn(n_classes, rate):
    """Both passive-aggressive rules."""
    X, y, _ = make_data(n_classes)
    loss = "hinge" if n_classes else "epsilon_insensitive"
    ours, theirs = pair(n_classes, loss=loss, learning_rate=rate, eta0=0.1, penalty=None)
    assert_same(quiet_fit(ours, X, y), quiet_fit(theirs, X, y))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_clipped_probabilities_equal_sklearn(n_classes):
    """modified_huber's probabilities, also where every class has none."""
    X, y, _ = make_data(n_classes)
    ours, theirs = pair(n_classes, loss="modified_huber", alpha=0.01)
    quiet_fit(ours, X, y), quiet_fit(theirs, X, y)
    far = 10 * X
    np.testing.assert_allclose(ours.predict_proba(far), theirs.predict_proba(far), atol=1e-9)
    assert not hasattr(SGDClassifier(), "predict_proba")


def test_warm_start_and_initial_coefficients_equal_sklearn():
    """A second fit goes on from the first one's coefficients, with a new clock."""
    X, y, _ = make_data()
    ours, theirs = pair(2, loss="log_loss", alpha=0.05, warm_start=True, max_iter=3, tol=None)
    for _ in range(2):
        assert_same(ours.fit(X, y), theirs.fit(X, y))
    start = {"coef_init": np.ones((1, 6)), "intercept_init": np.ones(1)}
    assert_same(ours.fit(X, y, **start), theirs.fit(X, y, **start))
    with pytest.raises(ValueError, match="coef_init has shape"):
        ours.fit(X, y, coef_init=np.ones((2, 6)))


@pytest.mark.parametrize("n_classes", [0, 2, 3])
@pytest.mark.parametrize("average", [False, True])
def test_partial_fit_equals_sklearn(n_classes, average):
    """Blocks in turn, twice over.

    With averages, scikit-learn's classifiers forget the iterates' intercept between two calls.
    """
    X, y, _ = make_data(n_classes)
    intercept = not (average and n_classes)
    ours, theirs = pair(n_classes, average=average, fit_intercept=intercept, alpha=0.01)
    known = {"classes": np.unique(y)} if n_classes else {}
    for rows in [*np.split(np.arange(300), [100, 130])] * 2:
        ours.partial_fit(X[rows], y[rows], **known)
        theirs.partial_fit(X[rows], y[rows], **known)
    assert_same(ours, theirs)


@pytest.mark.parametrize("penalty", ["l2", "elasticnet"])
def test_partial_fit_over_blocks_is_one_epoch(penalty, tmp_path):
    """Over blocks of a data set, over the data set, over Dask: the bits of fit with max_iter=1."""
    X, y, _ = make_data(3)
    ds = write_dataset(f"{tmp_path}/a.zarr", X, y, chunks=50)
    options = {**ROWS, "penalty": penalty, "average": 20}
    once = SGDClassifier(max_iter=1, tol=None, **options).fit(ds)
    blocks, whole, dask_rows = (SGDClassifier(**options) for _ in range(3))
    for start in range(0, 300, 50):
        block, _ = ds.read(start, start + 50)
        blocks.partial_fit(block.X, block.y, classes=["a", "b", "c"])
    whole.partial_fit(ds, classes=["a", "b", "c"])
    import dask.array as da

    rows = da.from_array(X, chunks=(50, 6)), da.from_array(y, chunks=50)
    dask_rows.partial_fit(*rows, classes=["a", "b", "c"])
    for other in (blocks, whole, dask_rows):
        assert other.coef_.tobytes() == once.coef_.tobytes()
        assert other.intercept_.tobytes() == once.intercept_.tobytes()
        assert other.t_ == once.t_ == 301


def test_partial_fit_refuses_what_it_cannot_use():
    """Unknown labels, unknown classes, one class, other features, held-out rows."""
    X, y, _ = make_data()
    model = SGDClassifier()
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match="only one class"):
        SGDClassifier().partial_fit(X, y, classes=["a"])
    model.partial_fit(X, y, classes=["a", "b"])
    other = y.copy()
    other[7] = "z"
    with pytest.raises(ValueError, match=r"label .*'z'.* not among the classes: first in row 7"):
        model.partial_fit(X, other)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :5], y)
    with pytest.raises(ValueError, match="early_stopping should be False"):
        SGDClassifier(early_stopping=True).partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match="dict of weights"):
        SGDClassifier(class_weight="balanced").partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match="only one class"):
        SGDClassifier().fit(X, np.full(300, "a"))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"alpha": 0.0}, "choose alpha > 0"),
        ({"learning_rate": "pa1", "loss": "log_loss"}, "needs the hinge"),
        ({"penalty": "elasticnet", "l1_ratio": None}, "l1_ratio must be set"),
        ({"n_replicas": 0}, "'n_replicas' parameter"),
        ({"loss": "squared_error"}, "'loss' parameter"),
    ],
)
def test_bad_options_are_refused(options, match):
    """Before anything is read."""
    with pytest.raises(ValueError, match=match):
        SGDClassifier(**options).fit(*make_data()[:2])


def test_bad_rows_are_named(tmp_path):
    """NaN in a stored data set: the first row and its column; overflow: the cure."""
    X, y, _ = make_data()
    bad = X.copy()
    bad[170, 3] = np.nan
    ds = write_dataset(f"{tmp_path}/a.zarr", bad, y, chunks=50)
    with pytest.raises(ValueError, match="NaN: first in row 170, column 3"):
        SGDClassifier().fit(ds)
    with pytest.raises(ValueError, match="smaller eta0"):
        SGDRegressor(eta0=1e3, learning_rate="constant").fit(1e200 * X, X[:, 0])


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("n_classes", [0, 2, 3])
def test_to_sklearn_predicts_and_goes_on(n_classes, average):
    """The plain estimator predicts the same and goes on from the same place."""
    X, y, _ = make_data(n_classes)
    options = {"average": average, "fit_intercept": not (average and n_classes), "alpha": 0.01}
    ours, theirs = pair(n_classes, **options)
    plainly = quiet_fit(ours, X, y).to_sklearn()
    quiet_fit(theirs, X, y)
    if n_classes:
        assert plainly.predict(X).tolist() == ours.predict(X).tolist()
    else:
        np.testing.assert_allclose(plainly.predict(X), ours.predict(X), rtol=1e-12)
    plainly.partial_fit(X, y), theirs.partial_fit(X, y)
    np.testing.assert_allclose(plainly.coef_, theirs.coef_, rtol=1e-6, atol=1e-8)
    again = pickle.loads(pickle.dumps(ours))
    assert again.predict(X).tolist() == ours.predict(X).tolist()


def test_local_sgd_comes_as_near_as_sklearn(monkeypatch, tmp_path):
    """At equal epochs, replicas reach scikit-learn's objective within a few per cent."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 24_000)
    X, y, _ = make_data(2, n=8000)
    y = (y == "b").astype(int)
    ds = write_dataset(f"{tmp_path}/a.zarr", X, y, chunks=500)

    def objective(model):
        z = model.decision_function(X) * (2 * y - 1)
        return np.logaddexp(0, -z).mean() + 0.5e-3 * np.sum(model.coef_**2)

    options = {"loss": "log_loss", "alpha": 1e-3, "max_iter": 5, "tol": None, "random_state": 0}
    theirs = objective(plain.SGDClassifier(**options).fit(X, y))
    for replicas, staleness, average in [(1, 0, 0), (2, 0, 1), (4, 0, 0), (2, 1, 1000), (3, 3, 0)]:
        clf = SGDClassifier(n_replicas=replicas, staleness=staleness, **options)
        clf.set_params(average=average or False)
        assert objective(clf.fit(ds)) < 1.03 * theirs, (replicas, staleness, average)
        assert (clf.n_replicas_, clf.n_iter_) == (replicas, 5)
        assert clf.n_passes_ == pytest.approx(5.0)


def test_history_tells_the_mean_objective_seen():
    """Each epoch's objective is the mean over its rows of loss before the update plus penalty."""
    X, y, _ = make_data()
    clf = SGDClassifier(max_iter=4, tol=None, certify=True, **ROWS).fit(X, y)
    labels = [r.label for r in clf.history_]
    assert labels == ["sgdclassifier-epoch"] * 4 + ["sgdclassifier-certify"]
    assert clf.history_[-1].objective == clf.certificate_.objective
    assert clf.history_[-1].gap == clf.certificate_.gap
    assert clf.n_passes_ == 5.0
    assert not hasattr(SGDClassifier(max_iter=4, tol=None).fit(X, y), "certificate_")


@pytest.mark.parametrize("runner", [Inline(), Threads(2)])
def test_replicas_are_as_many_as_slots_and_blocks(runner, monkeypatch, tmp_path):
    """`n_replicas=None`: the smaller of compute slots and groups of rows."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 5000)
    X, y, _ = make_data()
    write_dataset(f"{tmp_path}/a.zarr", X, y, chunks=100)
    with Engine(client=runner):
        model = SGDClassifier(max_iter=1, tol=None)
        assert (
            model.fit(open_dataset(f"{tmp_path}/a.zarr")).n_replicas_ == runner.workers()[0].threads
        )
        assert model.fit(X, y).n_replicas_ == 1


def test_no_convergence_is_a_warning():
    """As in scikit-learn, unless tol is None."""
    X, y, _ = make_data()
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        SGDClassifier(max_iter=2).fit(X, y)


@pytest.mark.parametrize("kind", [SGDClassifier, SGDRegressor])
def test_default_seed_is_drawn(kind):
    """An int makes fits equal; instances of RandomState draw on."""
    X, y, _ = make_data(2 if kind is SGDClassifier else 0)
    fits = [quiet_fit(kind(random_state=s, max_iter=2, tol=None), X, y).coef_ for s in (3, 3, 4)]
    assert fits[0].tobytes() == fits[1].tobytes() != fits[2].tobytes()
