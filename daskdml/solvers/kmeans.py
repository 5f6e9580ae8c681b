"""Lloyd's algorithm, one pass over the rows per step, from centers found on a sample of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from daskdml.engine.memory import FAN_IN, Needs
from daskdml.engine.run import NOTHING
from daskdml.io.sources import AnySource
from daskdml.kernels.block import Block
from daskdml.kernels.kmeans import Centers, ClusterSums, Farthest, FarthestOf, SumsOf, slab_rows
from daskdml.kernels.seeding import Sample, SampleOf, draw_apart, draw_random, in_order
from daskdml.solvers.base import Report, Run, Solution, interruption
from daskdml.solvers.replicas import generator

SAMPLE_ROWS = 20_000  # at least, and 256 for each center, but no more than so many bytes of them:
SAMPLE_BYTES = 32_000_000
SAMPLE_STEPS = 100  # of Lloyd's algorithm on the sample, at most
SAMPLE_TOL = 1e-4
DRAWS = 8  # of centers at a time, until the best end was reached by so many of them, or at most:
AGREEING = 3
MOST_DRAWS = 32
SAME_END = 1e-4  # relative difference of inertia
PARTS = ("X", "sample_weight")
_SEEDS = 4  # a stream of random numbers, beside those of solvers.replicas

DRAW: dict[str, Callable[[Sample, int, int], np.ndarray]] = {
    "k-means++": draw_apart,
    "random": draw_random,
}


class Rows(Protocol):
    """What Lloyd's algorithm asks of rows, wherever they are."""

    def sums(self, at: Centers) -> ClusterSums:
        """Sums of the clusters of these centers."""

    def farthest(self, at: Centers, n: int) -> Farthest:
        """The n rows farthest from their centers."""

    def keep(self, at: Moving, inertia: float) -> None:
        """Keep where the algorithm is after a step, if that is worth it."""


@dataclass(frozen=True)
class SampleRows:
    """Rows in memory."""

    sample: Sample

    def sums(self, at: Centers) -> ClusterSums:
        """Sums of the clusters of these centers."""
        return at.sums(self.sample.X, self.sample.weights)

    def farthest(self, at: Centers, n: int) -> Farthest:
        """The n rows farthest from their centers."""
        return at.farthest(self.sample.X, self.sample.weights, n)

    def keep(self, at: Moving, inertia: float) -> None:
        """It is soon done again."""


@dataclass(frozen=True, eq=False)
class Moving:
    """Where Lloyd's algorithm is between two steps.

    Parameters
    ----------
    centers : ndarray of shape (k, d)
    n_iter : int
        Steps made.
    limit : float
        Sum of squared moves at which it stops.
    """

    centers: np.ndarray
    n_iter: int = 0
    limit: float = 0.0


@dataclass(frozen=True)
class PassRows:
    """Rows of a fit: each call is a pass, noted in its history."""

    run: Run

    def sums(self, at: Centers) -> ClusterSums:
        """Sums of the clusters of these centers."""
        label = f"{self.run.label}-sums"
        found, totals = self.run.data.map_reduce(SumsOf(at), label, parts=PARTS)
        self.run.note(Report(label, totals, found.inertia, None, at.centers))
        return found

    def farthest(self, at: Centers, n: int) -> Farthest:
        """The n rows farthest from their centers."""
        label = f"{self.run.label}-farthest"
        found, totals = self.run.data.map_reduce(FarthestOf(at, n), label, parts=PARTS)
        self.run.note(Report(label, totals, None, None, at.centers))
        return found

    def keep(self, at: Moving, inertia: float) -> None:
        """Keep where the fit stands, if it is time to."""
        report = Report(self.run.label, NOTHING, inertia, None, at.centers)
        self.run.save(at, report, at.n_iter)


@dataclass(frozen=True, eq=False)
class Descent:
    """Where Lloyd's algorithm ended.

    Parameters
    ----------
    centers : ndarray of shape (k, d)
    stats : ClusterSums
        Of the rows, assigned to these centers.
    n_iter : int
        Steps made.
    reason : str
    converged : bool
    """

    centers: np.ndarray
    stats: ClusterSums
    n_iter: int
    reason: str
    converged: bool
    interrupted: bool = False

    @property
    def solution(self) -> Solution:
        """As the fit's events tell of it."""
        why = self.reason, self.converged
        return Solution(self.centers, None, *why, self.n_iter, self, self.interrupted)


def lloyd(rows: Rows, start: Moving, tol: float, max_iter: int) -> Descent:
    """Move each center to the mean of its rows until all of them stay [1]_.

    An empty cluster's center goes to the row farthest from its own, as in scikit-learn.

    Parameters
    ----------
    rows : Rows
    start : Moving
        Where to start, or to go on.
    tol : float
        Stops when the sum of the centers' squared moves is at most `tol` times the mean variance of
        the features.
    max_iter : int
        Steps at most.

    Returns
    -------
    Descent

    References
    ----------
    .. [1] S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory
       28, 1982.
    """
    now, known = start, None
    try:
        while now.n_iter < max_iter:
            at = Centers(now.centers)
            stats = rows.sums(at)
            known = now.centers, stats
            limit = now.limit if now.n_iter else tol * stats.variance(now.centers)
            moved = _without_empty(rows, at, stats).means(now.centers)
            apart = float(np.square(moved - now.centers).sum())
            n_iter = now.n_iter + 1
            if apart == 0:
                return Descent(*known, n_iter, "no row changes its cluster", True)
            now = Moving(moved, n_iter, limit)
            if apart <= limit:
                why = f"the centers' moves are below tol={tol:g}", True
                return Descent(moved, rows.sums(Centers(moved)), n_iter, *why)
            rows.keep(now, stats.inertia)
        why = f"max_iter={max_iter} steps were made", False
        return Descent(now.centers, rows.sums(Centers(now.centers)), now.n_iter, *why)
    except KeyboardInterrupt:
        if known is None:
            raise
        return Descent(*known, now.n_iter, interruption(now.n_iter), False, True)


def _without_empty(rows: Rows, at: Centers, stats: ClusterSums) -> ClusterSums:
    """Give the rows farthest from their centers to clusters that have none."""
    empty = np.flatnonzero(stats.weights == 0)
    if len(empty) == 0 or stats.inertia == 0:
        return stats
    found = rows.farthest(at, len(empty))
    weights, sums = stats.weights.copy(), stats.sums.copy()
    for k, square, x, s, old in zip(
        empty, found.squares, found.X, found.weights, found.nearest, strict=False
    ):
        if square > 0:
            weights[old] -= s
            sums[old] -= s * x
            weights[k], sums[k] = s, s * x.astype(np.float64)
    return ClusterSums(weights, sums, stats.inertia)


def sample_size(k: int, row_nbytes: int) -> int:
    """Rows of the sample on which k centers are sought.

    Examples
    --------
    >>> sample_size(8, 400), sample_size(1000, 400), sample_size(1000, 40_000)
    (20000, 80000, 20000)
    """
    return max(20 * k, min(max(256 * k, SAMPLE_ROWS), SAMPLE_BYTES // row_nbytes))


def pass_needs(k: int, source: AnySource) -> Needs:
    """Bytes that a pass holds: a slab's rows and products, copies of the centers, sums."""
    d, itemsize = source.n_features, source.dtype.itemsize
    slab = slab_rows(d, itemsize) * (d + k)
    return Needs(work=(slab + 2 * k * d) * itemsize + 3 * k * d * 8, part=k * (d + 1) * 8)


def seeding_needs(k: int, source: AnySource, held: Needs) -> Needs:
    """What passes hold, and three times the sample: in parts, added up, and in order."""
    row = source.n_features * source.dtype.itemsize
    nbytes = min(source.n_rows, sample_size(k, row)) * (row + 8)
    return Needs(held.work + 3 * nbytes, max(held.part, nbytes // FAN_IN))


def rehearse(dtype: np.dtype[np.floating]) -> None:
    """Run the kernels on two rows, so that they are compiled and loaded."""
    X, at = np.array([[0.0], [1.0]], dtype), Centers(np.array([[0.0], [2.0]]))
    block = Block(X, None, None)
    SumsOf(at)(block)
    FarthestOf(at, 1)(block)


def draw_sample(run: Run, k: int, seed: int) -> Sample:
    """A sample of all rows, in one pass."""
    data, label = run.data, f"{run.label}-sample"
    share = sample_size(k, data.source.n_features * data.source.dtype.itemsize) / data.n_rows
    found, totals = data.map_reduce(SampleOf(share, seed), label, parts=PARTS)
    run.note(Report(label, totals, None, None, np.empty((0, 0))))
    if len(found.X) == 0:
        raise ValueError(
            "sample_weight is 0 for all rows that were drawn; give some rows a weight above 0"
        )
    return in_order(found, seed)


def seek_centers(sample: Sample, k: int, how: str, n_init: int | None, seed: int) -> Descent:
    """Lloyd's algorithm on a sample, from several draws of centers; the best of the ends.

    Parameters
    ----------
    sample : Sample
    k : int
    how : {"k-means++", "random"}
    n_init : int or None
        Draws; None goes on until three of them led to the best end, but to 32 at most.
    seed : int
    """
    most = MOST_DRAWS if n_init is None else n_init
    seeds = generator(_SEEDS, seed).integers(2**31, size=most).tolist()
    ends: list[Descent] = []
    # Threads, not tasks: the sample lies in this process, and its kernels hold no lock.
    with ThreadPoolExecutor(min(most, len(os.sched_getaffinity(0)))) as pool:
        while len(ends) < most:
            drawn = seeds[len(ends) : len(ends) + DRAWS]
            ends += pool.map(partial(_seek_once, sample, k, how), drawn)
            best = min(ends, key=lambda end: end.stats.inertia)  # the first of equals
            same = (1 + SAME_END) * best.stats.inertia
            agreeing = sum(end.stats.inertia <= same for end in ends)
            if n_init is None and agreeing >= AGREEING:
                break
    return best


def _seek_once(sample: Sample, k: int, how: str, seed: int) -> Descent:
    start = Moving(DRAW[how](sample, k, seed))
    return lloyd(SampleRows(sample), start, SAMPLE_TOL, SAMPLE_STEPS)
