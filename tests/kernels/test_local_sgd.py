"""Local SGD comes near the optimum in one pass, without tuning, whatever the rows are like."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from daskdml.kernels.local_sgd import STRIDE, logistic_sgd_block, softmax_sgd_block
from daskdml.kernels.losses import LOSSES, Multinomial


def make_data(n_classes, n=20_000, d=20, seed=0):
    """Correlated float32 rows of wildly different column scales, classes, center, 1 / scale."""
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, d)) @ np.linalg.cholesky(
        0.5 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    )
    z = Z @ rng.normal(size=(d, n_classes)) / 2 + rng.gumbel(size=(n, n_classes))
    X = (Z * np.geomspace(1e-3, 1e3, d) + np.geomspace(1e-3, 1e3, d)).astype(np.float32)
    scale = X.std(axis=0, dtype=float) if n > 1 else np.ones(d)
    return X, z.argmax(axis=1), X.mean(axis=0, dtype=float), 1 / scale


def objective(W, X, y, center, inv_scale, weight=None):
    """Weighted mean loss of standardised coefficients."""
    z = (X - center) * inv_scale @ np.atleast_2d(W)[:, :-1].T + np.atleast_2d(W)[:, -1]
    if z.shape[1] == 1:
        return np.average(LOSSES["log_loss"].value(2.0 * y - 1.0, z[:, 0]), weights=weight)
    return np.average(Multinomial().value(y, z), weights=weight)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_one_pass_comes_within_two_percent(n_classes):
    """From zero, one pass closes 98 % of the way to scikit-learn's optimum."""
    X, y, center, inv_scale = make_data(n_classes)
    k = n_classes if n_classes > 2 else 1
    start = np.zeros((k, X.shape[1] + 1))
    _, mean = softmax_sgd_block(start, X, y, center, inv_scale)
    model = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit((X - center) * inv_scale, y)
    optimum = objective(np.c_[model.coef_, model.intercept_], X, y, center, inv_scale)
    before, after = (objective(W, X, y, center, inv_scale) for W in (start, mean))
    assert optimum <= after <= optimum + 0.02 * (before - optimum)
    assert after <= 1.01 * optimum


def test_mean_is_better_than_the_last_iterate():
    """Averaging takes the noise of single rows out."""
    X, y, center, inv_scale = make_data(2)
    last, mean = logistic_sgd_block(np.zeros(21), X, y, center, inv_scale)
    losses = [objective(w, X, y, center, inv_scale) for w in (mean, last)]
    assert losses[0] < losses[1]


def test_binary_is_softmax_of_one_vector():
    """The binary sweep is the general one, for one vector, bit for bit."""
    X, y, center, inv_scale = make_data(2, n=500)
    w = np.random.default_rng(0).normal(size=21)
    one = logistic_sgd_block(w, X, y, center, inv_scale, l2=1e-3)
    both = softmax_sgd_block(w[None], X, y, center, inv_scale, l2=1e-3)
    assert [a.tobytes() for a in one] == [a[0].tobytes() for a in both]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_first_step_is_down_the_gradient(n_classes):
    """From any point, the step of one row is a positive multiple of its negative gradient."""
    X, y, center, inv_scale = make_data(n_classes, n=1)
    k = n_classes if n_classes > 2 else 1
    W = np.random.default_rng(0).normal(size=(k, 21))
    last, _ = softmax_sgd_block(W, X, y, center - 1.0, inv_scale)
    gradient, h = np.empty_like(W), 1e-6
    for index in np.ndindex(W.shape):
        e = np.zeros_like(W)
        e[index] = h
        up, down = (objective(W + s * e, X, y, center - 1.0, inv_scale) for s in (1, -1))
        gradient[index] = (up - down) / (2 * h)
    step = (last - W).ravel()
    cosine = -step @ gradient.ravel() / np.linalg.norm(step) / np.linalg.norm(gradient)
    assert cosine == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_blocks_go_on_from_each_other(n_classes):
    """Cut between two strides, the last iterate has the same bits; inputs stay as they are."""
    X, y, center, inv_scale = make_data(n_classes, n=1000)
    W, cut = np.zeros((n_classes if n_classes > 2 else 1, 21)), 20 * STRIDE
    before = [a.tobytes() for a in (X, y, W)]
    whole, _ = softmax_sgd_block(W, X, y, center, inv_scale, l2=1e-4)
    half, _ = softmax_sgd_block(W, X[:cut], y[:cut], center, inv_scale, l2=1e-4)
    rest, _ = softmax_sgd_block(half, X[cut:], y[cut:], center, inv_scale, l2=1e-4, rows_before=cut)
    assert rest.tobytes() == whole.tobytes()
    assert [a.tobytes() for a in (X, y, W)] == before


def test_order_and_weights():
    """An order equals rows laid in it; a row of weight zero is as good as absent for the step."""
    X, y, center, inv_scale = make_data(3, n=640)
    order, W = np.random.default_rng(0).permutation(640), np.zeros((3, 21))
    ordered, _ = softmax_sgd_block(W, X, y, center, inv_scale, order=order)
    laid, _ = softmax_sgd_block(W, X[order], y[order], center, inv_scale)
    assert ordered.tobytes() == laid.tobytes()
    last, mean = softmax_sgd_block(W, X, y, center, inv_scale, sample_weight=np.zeros(640))
    assert not last.any() and not mean.any()


def test_hostile_rows_do_not_throw_it_out():
    """Rows of infinite variance, a constant column and separable classes still end well."""
    rng = np.random.default_rng(0)
    X = rng.standard_t(1.0, size=(5000, 10)).astype(np.float32)
    X[:, 3] = 7.0
    y = (X[:, 0] > 0).astype(int)
    scale = X.std(axis=0, dtype=float)
    inv_scale = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1.0), 0.0)
    center = X.mean(axis=0, dtype=float)
    last, mean = logistic_sgd_block(np.zeros(11), X, y, center, inv_scale)
    assert np.isfinite(last).all() and last[3] == 0.0
    assert objective(mean, X, y, center, inv_scale) < 0.9 * np.log(2.0)


def test_penalty_shrinks_the_stored_columns_coefficients():
    """A huge penalty leaves the intercept alone and holds every other coefficient near zero."""
    X, y, center, inv_scale = make_data(2, n=5000)
    y[:4000] = 1
    _, mean = logistic_sgd_block(np.zeros(21), X, y, center, inv_scale, l2=1e12)
    assert np.abs(mean[:-1] * inv_scale).max() < 1e-6 and mean[-1] > 0.5


def test_bad_blocks_are_refused():
    """Shapes that do not agree, and rows and classes that do not exist, are named."""
    X, y, center, inv_scale = make_data(2, n=10)
    with pytest.raises(ValueError, match="pass arrays of these shapes"):
        softmax_sgd_block(np.zeros((3, 20)), X, y, center, inv_scale)
    with pytest.raises(ValueError, match="pass arrays of these shapes"):
        softmax_sgd_block(np.zeros((3, 21)), X, y, center, inv_scale[:-1])
    with pytest.raises(ValueError, match="one weight for every row"):
        logistic_sgd_block(np.zeros(21), X, y, center, inv_scale, sample_weight=np.ones(9))
    with pytest.raises(ValueError, match="encode the labels"):
        logistic_sgd_block(np.zeros(21), X, y + 1, center, inv_scale)
    with pytest.raises(ValueError, match="pass row numbers"):
        logistic_sgd_block(np.zeros(21), X, y, center, inv_scale, order=np.array([10]))
