"""Lloyd's algorithm, against scikit-learn's from the same centers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import cluster

from daskdml.kernels.kmeans import Centers
from daskdml.kernels.seeding import Sample
from daskdml.solvers.kmeans import Moving, SampleRows, lloyd, seek_centers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((900, 4)) + RNG.integers(0, 3, (900, 1)) * 2.0


def plain(k, **kwargs):
    """scikit-learn's, from its first steps to its end."""
    return cluster.KMeans(k, n_init=1, algorithm="lloyd", **kwargs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tol", [0.0, 1e-3])
@pytest.mark.parametrize("max_iter", [1, 300])
def test_steps_are_those_of_scikit_learn(max_iter, tol, weighted):
    """From the same centers: the same steps, centers and inertia."""
    start = X[:7]
    s = RNG.integers(1, 5, 900).astype("f8") if weighted else np.ones(900)
    theirs = plain(7, init=start, tol=tol, max_iter=max_iter).fit(X, sample_weight=s)
    if weighted and tol:  # scikit-learn's scale of tol knows no weights
        tol *= X.var(axis=0).mean() / np.average((X - np.average(X, 0, s)) ** 2, 0, s).mean()
    found = lloyd(SampleRows(Sample(X, s)), Moving(start), tol, max_iter)
    assert found.n_iter == theirs.n_iter_
    np.testing.assert_allclose(found.centers, theirs.cluster_centers_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.stats.inertia, theirs.inertia_, rtol=1e-9)
    assert found.converged == (max_iter > 1)


def test_empty_clusters_take_the_farthest_rows():
    """As scikit-learn relocates them: several at a time."""
    start = np.vstack([X[:3], np.full((3, 4), 1e4)])
    start[3:] += np.arange(3)[:, None]
    theirs = plain(6, init=start, tol=0, max_iter=300).fit(X)
    found = lloyd(SampleRows(Sample(X, np.ones(900))), Moving(start), 0.0, 300)
    assert found.n_iter == theirs.n_iter_ and (found.stats.weights > 0).all()
    np.testing.assert_allclose(found.centers, theirs.cluster_centers_, rtol=1e-9, atol=1e-12)


def test_the_end_is_a_fixed_point():
    """At the end every center is the mean of the rows nearest to it."""
    found = lloyd(SampleRows(Sample(X, np.ones(900))), Moving(X[:5]), 0.0, 300)
    labels = Centers(found.centers).labels(X)
    means = [X[labels == k].mean(axis=0) for k in range(5)]
    np.testing.assert_allclose(found.centers, means, rtol=1e-12)
    assert found.reason == "no row changes its cluster"


def test_the_best_of_several_draws():
    """More draws from the same seed end no higher; the same seed ends with the same bits."""
    sample = Sample(X, np.ones(900))
    one, eight, again = (seek_centers(sample, 9, "random", n, 3) for n in (1, 8, 8))
    assert eight.stats.inertia <= one.stats.inertia
    assert eight.centers.tobytes() == again.centers.tobytes()
