"""Contracts of every loss: derivatives, convexity, conjugates, and what scikit-learn computes."""

import pickle

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor

from daskdml.kernels.losses import LOSSES, Huber, Multinomial

NAMES = sorted(LOSSES)


def grid(loss, seed=0):
    """Targets of the loss's kind and predictions away from kinks, small and large."""
    rng = np.random.default_rng(seed)
    z = np.concatenate([rng.uniform(-5, 5, 400), rng.uniform(-60, 60, 100)])
    y = rng.choice([-1.0, 1.0], z.size) if loss.is_classification else rng.normal(size=z.size)
    return y, z


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_difference_of_the_value(name):
    """Away from kinks the slope equals the central difference of the value."""
    loss, h = LOSSES[name], 1e-6
    y, z = grid(loss)
    difference = (loss.value(y, z + h) - loss.value(y, z - h)) / (2 * h)
    np.testing.assert_allclose(loss.slope(y, z), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_curvature_is_the_difference_of_the_slope(name):
    """Away from jumps the curvature equals the central difference of the slope, within bounds."""
    loss, h = LOSSES[name], 1e-6
    y, z = grid(loss)
    difference = (loss.slope(y, z + h) - loss.slope(y, z - h)) / (2 * h)
    np.testing.assert_allclose(loss.curvature(y, z), difference, rtol=1e-5, atol=1e-6)
    assert loss.has_curvature == bool(loss.curvature(y, z).any())
    if loss.has_curvature:
        assert loss.curvature(y, z).max() <= loss.curvature_bound
        dense = loss.curvature(y, np.where(loss.is_classification, 0.0, y + 1.0))
        assert dense.max() >= 0.99 * loss.curvature_bound or name == "huber"


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_convex_and_bounded_below(name):
    """The value lies above every tangent and above the lower bound."""
    loss = LOSSES[name]
    y, z = grid(loss)
    other = np.random.default_rng(1).permutation(z)
    tangent = loss.value(y, z) + loss.slope(y, z) * (other - z)
    assert (loss.value(y, other) >= tangent - 1e-10 * (1 + abs(tangent))).all()
    assert (loss.value(y, z) >= loss.lower_bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_conjugate_meets_fenchel_young(name):
    """value(z) + conjugate(u) >= u z for every u, with equality at the slope of z."""
    loss = LOSSES[name]
    y, z = grid(loss)
    u = loss.slope(y, z)
    sum_at_slope = loss.value(y, z) + loss.conjugate(y, u)
    np.testing.assert_allclose(sum_at_slope, u * z, rtol=1e-9, atol=1e-9)
    anything = np.random.default_rng(2).uniform(-6, 6, z.size)
    slack = loss.value(y, z) + loss.conjugate(y, anything) - anything * z
    assert (slack >= -1e-9 * (1 + abs(anything * z))).all()


@pytest.mark.parametrize("name", NAMES)
def test_conjugate_is_infinite_exactly_outside_the_slopes(name):
    """A linear tail of the loss ends the conjugate's domain at the tail's slope."""
    loss = LOSSES[name]
    y = np.array([1.0, 1.0])
    tails = loss.slope(y, np.array([-1e9, 1e9]))
    if np.abs(tails).max() < 1e3:
        assert np.isfinite(loss.conjugate(y, tails)).all()
        assert np.isinf(loss.conjugate(y, tails + np.array([-1e-6, 1e-6]))).all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_scikit_learn(name):
    """Value and slope are the numbers that scikit-learn's SGD computes."""
    loss = LOSSES[name]
    kind = SGDClassifier if loss.is_classification else SGDRegressor
    theirs = kind(loss=name)._get_loss_function(name)
    y, z = grid(loss)
    target = (y + 1) / 2 if name == "log_loss" else y
    if hasattr(theirs, "py_loss"):
        values = [theirs.py_loss(p, t) for t, p in zip(target, z, strict=True)]
        slopes = [theirs.py_dloss(p, t) for t, p in zip(target, z, strict=True)]
    else:
        out = np.empty_like(z), np.empty_like(z)
        theirs.loss_gradient(target, z, None, *out, 1)
        values, slopes = out
    np.testing.assert_allclose(loss.value(y, z), values, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(loss.slope(y, z), slopes, rtol=1e-12, atol=1e-13)


def test_logistic_is_stable_at_huge_margins():
    """No overflow, and full relative accuracy where the loss is tiny."""
    loss, y = LOSSES["log_loss"], np.ones(4)
    z = np.array([-1e4, -40.0, 40.0, 1e4])
    np.testing.assert_allclose(loss.value(y, z), [1e4, 40.0, np.exp(-40.0), 0.0], rtol=1e-14)
    np.testing.assert_allclose(loss.slope(y, z), [-1.0, -1.0, -np.exp(-40.0), 0.0], rtol=1e-14)
    margin = np.linspace(0.0, 50.0, 1001)
    np.testing.assert_allclose(
        loss.value(np.ones(1001), margin), np.log1p(np.exp(-margin)), rtol=1e-15, atol=0
    )


@pytest.mark.parametrize("loss", [*LOSSES.values(), Multinomial()], ids=repr)
def test_losses_are_values(loss):
    """Losses compare, hash, print and pickle by their parameters."""
    again = pickle.loads(pickle.dumps(loss))
    assert again == loss and hash(again) == hash(loss)
    assert eval(repr(loss), vars(__import__("daskdml.kernels.losses", fromlist=["x"]))) == loss
    assert Huber(0.1) != Huber(0.2)


def test_bad_input_is_refused():
    """Shapes that do not agree, labels out of range and negative parameters are errors."""
    with pytest.raises(ValueError, match="one prediction for every target"):
        LOSSES["hinge"].value(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="encode the labels"):
        Multinomial().value(np.array([3]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="epsilon"):
        Huber(-1.0)


def test_multinomial_slope_is_the_difference_of_the_value():
    """Each entry of the gradient equals the central difference, at moderate and huge inputs."""
    rng, loss, h = np.random.default_rng(0), Multinomial(), 1e-6
    z, y = rng.normal(size=(50, 4)) * 5, rng.integers(0, 4, 50)
    for k in range(4):
        e = h * np.eye(4)[k]
        difference = (loss.value(y, z + e) - loss.value(y, z - e)) / (2 * h)
        np.testing.assert_allclose(loss.slope(y, z)[:, k], difference, atol=1e-7)
    assert loss.value(np.array([1]), np.array([[1e4, 0.0, -1e4]])) == 1e4
    np.testing.assert_allclose(loss.probabilities(z).sum(axis=1), 1.0, rtol=1e-14)


def test_multinomial_of_two_classes_is_logistic():
    """Two predictions enter through their difference."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(50, 2)), rng.integers(0, 2, 50)
    binary = LOSSES["log_loss"].value(2.0 * y - 1.0, z[:, 1] - z[:, 0])
    np.testing.assert_allclose(Multinomial().value(y, z), binary, rtol=1e-13)
