"""Samples are even and repeatable; centers drawn from them lie apart."""

from __future__ import annotations

import numpy as np
import pytest

from daskdml.kernels.block import Block
from daskdml.kernels.seeding import Sample, SampleOf, draw_apart, draw_random, in_order

RNG = np.random.default_rng(0)


def test_a_sample_is_a_function_of_seed_and_place():
    """The same rows for the same block; each of the rows is as likely; weights go with them."""
    X = np.arange(4000.0).reshape(-1, 1)
    blocks = [Block(X[i : i + 10], None, X[i : i + 10, 0] + 1, i) for i in range(0, 4000, 10)]
    draws = [[SampleOf(0.25, seed)(b) for b in blocks] for seed in (0, 0, 1)]
    found = [sum(d[1:], d[0]) for d in draws]
    np.testing.assert_array_equal(found[0].X, found[1].X)
    assert not np.array_equal(found[0].X, found[2].X)
    assert abs(len(found[0].X) - 1000) < 50 and len(np.unique(found[0].X)) == len(found[0].X)
    assert abs(found[0].X.mean() - 2000) < 120
    np.testing.assert_array_equal(found[0].weights, found[0].X[:, 0] + 1)


def test_all_rows_but_those_without_weight():
    """A share of 1 takes every row whose weight is not 0."""
    X, s = RNG.standard_normal((50, 2)), np.arange(50) % 3.0
    found = SampleOf(1.0, 0)(Block(X, None, s))
    np.testing.assert_array_equal(found.X, X[s > 0])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_draws_apart_find_every_far_cluster(dtype):
    """Of twelve clusters very far from each other, each gets a center, for every seed."""
    means = RNG.standard_normal((12, 5)) * 1000
    X = (np.repeat(means, 30, axis=0) + RNG.standard_normal((360, 5))).astype(dtype)
    for seed in range(20):
        found = draw_apart(Sample(X, np.ones(len(X))), 12, seed)
        nearest = np.square(found[:, None] - means).sum(axis=2).argmin(axis=1)
        assert sorted(nearest) == list(range(12))


@pytest.mark.parametrize("draw", [draw_apart, draw_random])
def test_draws_do_not_depend_on_order_or_on_repeats(draw):
    """Rows in another order, and rows of weight 3 as three rows, give the same centers."""
    X, s = RNG.standard_normal((200, 3)), RNG.integers(1, 4, 200)
    order = RNG.permutation(200)
    given = in_order(Sample(X, s.astype("f8")), 0)
    other = in_order(Sample(X[order], s[order].astype("f8")), 0)
    np.testing.assert_array_equal(draw(given, 10, 5), draw(other, 10, 5))
    if draw is draw_apart:
        repeated = in_order(Sample(np.repeat(X, s, axis=0), np.ones(s.sum())), 0)
        np.testing.assert_array_equal(draw(given, 10, 5), draw(repeated, 10, 5))


@pytest.mark.parametrize("draw", [draw_apart, draw_random])
def test_fewer_distinct_rows_than_centers(draw):
    """As many centers as asked for, all of the distinct rows among them."""
    X = np.array([[0.0], [0.0], [5.0], [7.0]], "f4")
    found = draw(Sample(X, np.ones(4)), 6, 0)
    assert found.shape == (6, 1) and set(found.ravel()) == {0.0, 5.0, 7.0}
