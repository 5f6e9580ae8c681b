"""SGD over blocks equals scikit-learn's, row for row, however the rows are cut into blocks."""

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.preprocessing import StandardScaler

from daskdml.kernels.losses import LOSSES, Logistic, Squared
from daskdml.kernels.sgd import SGDConfig, sgd_block

CLASSIFICATION = ["log_loss", "hinge", "perceptron", "squared_hinge", "modified_huber"]
REGRESSION = ["squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"]
RATES = {
    "optimal": {},
    "constant": {"eta0": 0.01},
    "invscaling": {"eta0": 0.02, "power_t": 0.25},
    "adaptive": {"eta0": 0.01},
}


def make_data(n_classes=2, n=240, d=7, seed=0):
    """Standardised rows, class indices or (n_classes=0) real targets, and row weights."""
    rng = np.random.default_rng(seed)
    X = StandardScaler().fit_transform(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)))
    z = X @ rng.normal(size=(d, max(n_classes, 1))) / 2 + 0.5 * rng.normal(
        size=(n, max(n_classes, 1))
    )
    y = z.argmax(axis=1) if n_classes else z[:, 0]
    return X, y, rng.uniform(0.2, 2.0, n)


def run(config, X, y, weights=None, epochs=3, cuts=()):
    """Some epochs of SGD, the rows cut into consecutive blocks at `cuts`."""
    state = config.init(X.shape[1])
    for _ in range(epochs):
        for rows in np.split(np.arange(len(X)), cuts):
            w = None if weights is None else weights[rows]
            state = sgd_block(state, config, X[rows], y[rows], w)
    return state


def assert_equal_to_sklearn(
    loss, n_classes, class_weight=None, weighted=False, rtol=1e-9, **options
):
    """Three epochs in file order, by scikit-learn and by blocks, end in the same place."""
    X, y, weights = make_data(n_classes)
    weights = weights if weighted else None
    kind = SGDClassifier if n_classes else SGDRegressor
    theirs = {"n_iter_no_change": 10**6, "tol": None, "max_iter": 3, "shuffle": False}
    if class_weight is not None:
        theirs["class_weight"] = dict(enumerate(class_weight))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(loss=loss, **options, **theirs).fit(X, y, sample_weight=weights)
    n_models = n_classes if n_classes > 2 else 1
    config = SGDConfig(LOSSES[loss], n_models=n_models, class_weights=class_weight, **options)
    coef, intercept = run(config, X, y, weights).solution(config)
    atol = rtol * np.abs(model.coef_).max()
    np.testing.assert_allclose(coef, np.atleast_2d(model.coef_), rtol=rtol, atol=atol)
    np.testing.assert_allclose(intercept, model.intercept_, rtol=rtol, atol=atol)
    assert np.abs(coef).max() > 1e-3


@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet", None])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("loss", [*CLASSIFICATION, *REGRESSION])
def test_every_loss_penalty_and_rate_equals_sklearn(loss, rate, penalty):
    """Three epochs in file order give scikit-learn's coefficients and intercept."""
    options = {"alpha": 0.01, "learning_rate": rate, "penalty": penalty, **RATES[rate]}
    if loss.startswith("squared"):
        options["alpha"] = 0.5 if rate == "optimal" else 0.01
    assert_equal_to_sklearn(loss, 2 if loss in CLASSIFICATION else 0, **options)


@pytest.mark.parametrize(
    "penalty, average",
    [(p, a) for p in ("l2", None) for a in (True, 1, 100, 10_000)]
    + [("l1", 10_000), ("elasticnet", 10_000)],
)
@pytest.mark.parametrize("n_classes", [0, 2, 4])
def test_averaging_equals_sklearn(n_classes, penalty, average):
    """Averaging from the first row, a later one, or one never reached.

    Under L1 scikit-learn returns something that is not the mean of its iterates once averaging
    has begun; `test_average_is_the_mean_of_the_iterates` states what is returned here.
    """
    loss = "hinge" if n_classes else "huber"
    options = {"learning_rate": "invscaling", "eta0": 0.05, "power_t": 0.3, "alpha": 0.01}
    assert_equal_to_sklearn(loss, n_classes, penalty=penalty, average=average, **options)


@pytest.mark.parametrize("start", [1, 100])
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet", None])
def test_average_is_the_mean_of_the_iterates(penalty, start):
    """The average is the mean, over the rows from `average` on, of the coefficients after each."""
    X, y, _ = make_data()
    config = SGDConfig(Logistic(), penalty=penalty, alpha=0.02, average=start)
    state, iterates, intercepts = config.init(7), [], []
    for i in range(len(X)):
        state = sgd_block(state, config, X[i : i + 1], y[i : i + 1])
        iterates.append(state.coef)
        intercepts.append(state.intercept)
    coef, intercept = run(config, X, y, epochs=1).solution(config)
    np.testing.assert_allclose(coef, np.mean(iterates[start - 1 :], axis=0), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(intercept, np.mean(intercepts[start - 1 :], axis=0), rtol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("loss", ["log_loss", "modified_huber"])
def test_weights_and_classes_equal_sklearn(loss, n_classes, weighted, fit_intercept):
    """Class weights, row weights and one-versus-rest, with and without an intercept."""
    class_weight = (0.5, 2.0, 1.5)[:n_classes]
    options = {"alpha": 0.02, "fit_intercept": fit_intercept}
    assert_equal_to_sklearn(loss, n_classes, class_weight, weighted, **options)


@pytest.mark.parametrize("rate", ["pa1", "pa2"])
@pytest.mark.parametrize("n_classes", [0, 2, 3])
def test_passive_aggressive_equals_sklearn(n_classes, rate):
    """Both passive-aggressive steps, for classes and for targets."""
    loss = "hinge" if n_classes else "epsilon_insensitive"
    options = {"learning_rate": rate, "eta0": 0.3, "penalty": None}
    assert_equal_to_sklearn(loss, n_classes, weighted=True, **options)


def test_heavy_decay_folds_the_scale():
    """The scale passes below 1e-9 many times, and the result is scikit-learn's.

    The average's sums then cancel nine digits, in both implementations.
    """
    options = {"learning_rate": "constant", "eta0": 0.2, "alpha": 2.0, "l1_ratio": 0.05}
    assert_equal_to_sklearn("hinge", 2, penalty="l2", **options)
    assert_equal_to_sklearn("hinge", 2, penalty="elasticnet", **options)
    assert_equal_to_sklearn("hinge", 2, penalty="l2", average=5, rtol=1e-6, **options)


@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_blocks_do_not_change_the_bits(n_classes, penalty):
    """Any cut of the rows into consecutive blocks gives the bits of one block."""
    X, y, weights = make_data(n_classes)
    n_models = n_classes if n_classes > 2 else 1
    config = SGDConfig(Logistic(), penalty=penalty, alpha=0.01, average=50, n_models=n_models)
    whole = run(config, X, y, weights)
    for cuts in ([100], [1, 2, 77, 177], [64, 128]):
        parts = run(config, X, y, weights, cuts=cuts)
        for ours, other in zip(parts.solution(config), whole.solution(config), strict=True):
            assert ours.tobytes() == other.tobytes()
        assert parts.coef.tobytes() == whole.coef.tobytes() and parts.t == whole.t
        np.testing.assert_allclose(parts.objective_sum, whole.objective_sum, rtol=1e-12)


def test_order_visits_the_rows_named():
    """An order equals the same rows laid in that order, bit for bit."""
    X, y, weights = make_data(3)
    config = SGDConfig(Logistic(), n_models=3)
    order = np.random.default_rng(0).permutation(len(X))[:200]
    ours = sgd_block(config.init(7), config, X, y, weights, order)
    laid = sgd_block(config.init(7), config, X[order], y[order], weights[order])
    assert ours.coef.tobytes() == laid.coef.tobytes()


@pytest.mark.parametrize("loss", ["log_loss", "hinge"])
@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
def test_float32_rows_keep_float64_coefficients(loss, penalty):
    """float32 rows give what the same numbers in float64 give, up to round-off of float64."""
    X, y, _ = make_data()
    X = X.astype(np.float32)
    config = SGDConfig(LOSSES[loss], penalty=penalty, alpha=0.01)
    np.testing.assert_allclose(
        run(config, X, y).coef, run(config, X.astype(np.float64), y).coef, rtol=1e-12, atol=1e-14
    )


def test_objective_sum_is_the_running_objective():
    """The sum equals the loss of each row before its update plus the penalty at that time."""
    X, y, _ = make_data()
    config = SGDConfig(Logistic(), penalty="elasticnet", alpha=0.1)
    state, expected = config.init(7), 0.0
    for i in range(len(X)):
        z = X[i : i + 1] @ state.coef[0] + state.intercept
        expected += Logistic().value(np.array([2.0 * y[i] - 1.0]), z)[0]
        expected += 0.5 * config.decay * np.sum(state.coef**2)
        expected += config.shrink * np.abs(state.coef).sum()
        state = sgd_block(state, config, X[i : i + 1], y[i : i + 1])
    whole = run(config, X, y, epochs=1)
    np.testing.assert_allclose(whole.objective_sum, expected, rtol=1e-9)
    assert whole.with_epoch_started().objective_sum == 0.0


def test_states_are_never_changed_and_pickle():
    """A call leaves its state alone; a pickled or folded state goes on to the same place."""
    X, y, _ = make_data()
    config = SGDConfig(Logistic(), penalty="elasticnet", alpha=0.01, average=True)
    first = sgd_block(config.init(7), config, X, y)
    before = pickle.dumps(first)
    second = sgd_block(first, config, X, y)
    assert pickle.dumps(first) == before
    again = sgd_block(pickle.loads(before), pickle.loads(pickle.dumps(config)), X, y)
    assert again.average_coef.tobytes() == second.average_coef.tobytes()
    folded = sgd_block(first.folded(), config, X, y)
    np.testing.assert_allclose(folded.average_coef, second.average_coef, rtol=1e-12)
    np.testing.assert_allclose(folded.coef, second.coef, rtol=1e-12)


def test_inactive_problems_stay():
    """A problem that is not active keeps its bits; the others go on as if alone."""
    X, y, _ = make_data(3)
    config = SGDConfig(Logistic(), n_models=3)
    first = sgd_block(config.init(7), config, X, y)
    frozen = replace(first, active=np.array([True, False, True]))
    both, one = sgd_block(first, config, X, y), sgd_block(frozen, config, X, y)
    assert one.coef[1].tobytes() == first.coef[1].tobytes()
    assert one.coef[[0, 2]].tobytes() == both.coef[[0, 2]].tobytes()


def test_overflow_is_an_error_that_names_the_cure():
    """Coefficients that are no longer finite are never returned."""
    X, y, _ = make_data(0)
    config = SGDConfig(Squared(), learning_rate="constant", eta0=1e3)
    with pytest.raises(ValueError, match="smaller eta0"):
        run(config, X * 1e200, y)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"penalty": "l3"}, "penalty is 'l3'"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"alpha": 0.0}, "choose alpha > 0"),
        ({"learning_rate": "pa1"}, "needs the hinge"),
        ({"l1_ratio": 2.0}, "l1_ratio is 2.0"),
        ({"eta0": 0.0}, "eta0 > 0"),
        ({"class_weights": (1.0,)}, "one for every class"),
    ],
)
def test_bad_options_are_refused(options, match):
    """An option that is unknown, or does not go with another, is named."""
    with pytest.raises(ValueError, match=match):
        SGDConfig(Logistic(), **options)


def test_bad_blocks_are_refused():
    """Shapes that do not agree and rows that do not exist are named."""
    X, y, _ = make_data()
    config = SGDConfig(Logistic())
    with pytest.raises(ValueError, match=r"start from config.init\(7\)"):
        sgd_block(config.init(6), config, X, y)
    with pytest.raises(ValueError, match="one weight for every row"):
        sgd_block(config.init(7), config, X, y, np.ones(1))
    with pytest.raises(ValueError, match=r"outside 0\.\.239"):
        sgd_block(config.init(7), config, X, y, order=np.array([240]))
