"""Contracts of every penalty: gradient, proximal step, repr, equality."""

import pickle

import numpy as np
import pytest

from daskdml.kernels.penalties import L1, L2, ElasticNet

PENALTIES = [L2(), L1(), ElasticNet(0.0), ElasticNet(0.3), ElasticNet(1.0)]


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("t", [0.0, 0.3, 5.0])
def test_prox_minimises(penalty, t):
    """No point near or far has a smaller value of t * penalty(v) + |v - w|^2 / 2."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(3, 4))
    best = penalty.prox(w, t)
    assert best.shape == w.shape

    def cost(v):
        return t * penalty.value(v) + 0.5 * np.sum((v - w) ** 2)

    for step in (1e-4, 1e-2, 1.0):
        for _ in range(50):
            assert cost(best) <= cost(best + step * rng.normal(size=w.shape)) + 1e-15


def test_gradient_of_l2_is_the_difference_of_its_value():
    """L2 is smooth; the others say that they are not."""
    w, h = np.array([0.5, -2.0, 0.0]), 1e-6
    difference = [(L2().value(w + h * e) - L2().value(w - h * e)) / (2 * h) for e in np.eye(3)]
    np.testing.assert_allclose(L2().gradient(w), difference, atol=1e-8)
    assert L2().has_gradient and not L1().has_gradient and not ElasticNet().has_gradient


def test_elastic_net_ends_are_the_pure_penalties():
    """l1_ratio 0 is L2 and 1 is L1, in value and in proximal step."""
    w = np.array([0.5, -2.0, 0.01])
    for mixed, pure in [(ElasticNet(0.0), L2()), (ElasticNet(1.0), L1())]:
        assert mixed.value(w) == pure.value(w)
        np.testing.assert_array_equal(mixed.prox(w, 0.2), pure.prox(w, 0.2))


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_penalties_are_values(penalty):
    """Penalties compare, hash, print and pickle by their parameters."""
    again = pickle.loads(pickle.dumps(penalty))
    assert again == penalty and hash(again) == hash(penalty)
    assert eval(repr(penalty)) == penalty


def test_share_outside_the_unit_interval_is_refused():
    """l1_ratio is named in the error."""
    with pytest.raises(ValueError, match=r"l1_ratio is 1\.5"):
        ElasticNet(1.5)
