"""Targets: summaries of labels, codes and checks."""

from __future__ import annotations

import numpy as np
import pytest

from daskdml.kernels.block import Block
from daskdml.kernels.targets import (
    DataError,
    Targets,
    check_rows,
    check_targets,
    summarise_labels,
)


def block(y, s=None):
    """A block without features."""
    return Block(np.zeros((len(y), 0)), np.asarray(y), s)


def test_summaries_add():
    """The summary of parts is that of the whole, for strings of any length."""
    y = np.array(["b", "a", "longer", "b", "a", "b"])
    s = np.arange(6.0)
    whole = summarise_labels(block(y, s), True)
    for cut in range(1, 6):
        parts = [summarise_labels(block(y[a], s[a]), True) for a in (slice(cut), slice(cut, None))]
        total = parts[0] + parts[1]
        assert total.values.tolist() == whole.values.tolist() == ["a", "b", "longer"]
        assert total.counts.tolist() == whole.counts.tolist() == [2, 3, 1]
        assert total.weights.tolist() == whole.weights.tolist()


def test_regression_summaries_know_the_power():
    """For a regression: rows, weights and the weighted sum of squares."""
    y, s = np.array([1, -2, 3]), np.array([1.0, 0.5, 2.0])
    found = summarise_labels(block(y[:1], s[:1]), False) + summarise_labels(
        block(y[1:], s[1:]), False
    )
    assert (found.counts[0], found.weights[0], found.power) == (3, 3.5, 1 + 2 + 18)


def test_codes():
    """Two labels become -1 and 1, more their index; class weights multiply row weights."""
    y = np.array([7, 9, 7])
    codes, s = Targets(np.array([7, 9]), np.array([2.0, 3.0])).prepare(
        block(y, np.array([1.0, 1, 4]))
    )
    assert codes.tolist() == [-1, 1, -1] and s.tolist() == [2, 3, 8]
    codes, s = Targets(np.array([5, 7, 9])).prepare(block(y))
    assert codes.tolist() == [1, 2, 1] and s.tolist() == [1, 1, 1]


def test_unknown_labels():
    """A label that is not among the classes is an error with its row."""
    with pytest.raises(DataError) as error:
        Targets(np.array([7, 9])).prepare(block(np.array([7, 9, 8])))
    assert error.value.row == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_bad_value(value):
    """The first bad value in row order is found, also far into the block."""
    X = np.zeros((10_000, 3))
    X[9_000, 2] = X[9_000, 1] = X[9_500, 0] = value
    with pytest.raises(DataError) as error:
        check_rows(X)
    assert (error.value.row, error.value.column) == (9_000, 1)
    y = np.zeros(10)
    y[[4, 7]] = value
    with pytest.raises(DataError) as error:
        check_targets(block(y))
    assert error.value.row == 4
    check_rows(np.zeros((5, 2)))
    check_targets(block(np.array(["a", "b"])))


def test_bad_weights():
    """Negative, NaN and infinite weights are errors with their row; zeros are not."""
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(DataError) as error:
            check_targets(block(np.zeros(3), np.array([0.0, 1.0, bad])))
        assert error.value.row == 2


@pytest.mark.parametrize("dtype", ["i1", "u1", "i8", "f4", "U3"])
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_are_counted_and_weighed(dtype, weighted):
    """Counts and weights of labels of every kind are those that NumPy finds."""
    rng = np.random.default_rng(0)
    y = rng.choice([3, 7, 100], 100_000, p=[0.1, 0.2, 0.7]).astype(dtype)
    s = rng.random(len(y)) if weighted else None
    found = summarise_labels(Block(np.zeros((len(y), 0)), y, s), classification=True)
    values, counts = np.unique(y, return_counts=True)
    assert found.values.dtype == y.dtype and np.array_equal(found.values, values)
    assert np.array_equal(found.counts, counts)
    weights = [np.ones(len(y))[y == v].sum() if s is None else s[y == v].sum() for v in values]
    np.testing.assert_allclose(found.weights, weights, rtol=1e-12)
