"""Averaged local SGD for logistic regression in standard coordinates: no step size to tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.kernels.block import Block
from daskdml.kernels.linear import LinearPass, LinearStats
from daskdml.kernels.local_sgd import softmax_sgd_block
from daskdml.kernels.losses import Multinomial
from daskdml.kernels.targets import check_rows
from daskdml.solvers.base import Problem, Report, Run, StatsOf
from daskdml.solvers.replicas import row_order, schedule

REPLICAS = 4  # at most, where the data alone must say how many
WARM_SWEEPS = 4  # of each block of a warm start: cheaper than reading it


@dataclass(frozen=True, eq=False)
class Iterate:
    """Where averaged SGD is.

    Parameters
    ----------
    last : ndarray of shape (K, d + 1)
        From where the next rows go on.
    total : ndarray of shape (K, d + 1)
        Sum of `count` means of blocks, each weighted by its rows.
    count : float
        Rows in `total`.
    clock : int
        Rows that a replica has visited: the step size falls with it.
    stats : LinearStats or None
        Of the rows visited in this epoch, at the point where it began.
    """

    last: np.ndarray
    total: np.ndarray
    count: float
    clock: int
    stats: LinearStats | None = None

    @property
    def mean(self) -> np.ndarray:
        """The mean of the iterates: the better answer."""
        return self.total / self.count if self.count else self.last

    def with_epoch_started(self) -> Iterate:
        """The same iterate, with a new mean and new statistics."""
        return Iterate(self.last, np.zeros_like(self.total), 0.0, self.clock)


@dataclass(frozen=True)
class Visit:
    """What a replica did in a round: rows visited and where it is now."""

    rows: int
    iterate: Iterate


@dataclass(frozen=True)
class Walk:
    """Local work: sweeps over a block, each in a random order; the last one's mean counts.

    Parameters
    ----------
    problem : Problem
    seed, epoch : int
        Of the order.
    sweeps : int
    at : ndarray of shape (K, d + 1) or None
        A point whose statistics are taken from the same reading.
    """

    problem: Problem
    seed: int
    epoch: int
    sweeps: int = 1
    at: np.ndarray | None = None

    def __call__(self, base: Iterate, block: Block, group: Group, t: int, k: int) -> Visit:
        """Visit a block from `base`."""
        problem, n = self.problem, block.n_rows
        y, s = problem.targets.prepare(block)
        labels = y if isinstance(problem.loss, Multinomial) else (y > 0).astype(np.int64)
        last, clock = base.last, base.clock
        for sweep in range(self.sweeps):
            last, mean = softmax_sgd_block(
                last,
                block.X,
                labels,
                problem.coordinates.center,
                1.0 / problem.coordinates.scale,
                sample_weight=s / problem.mean_weight,
                order=row_order(n, group, self.seed, self.epoch * self.sweeps + sweep),
                l2=problem.l2,
                fit_intercept=problem.fit_intercept,
                rows_before=clock,
                average_from=0 if clock else None,
            )
            clock += n
        if not np.isfinite(last).all():
            check_rows(block.X)
        stats = None
        if self.at is not None:
            at = LinearPass(problem.loss, problem.coordinates, self.at)
            stats = StatsOf(problem.targets, at)(block)
        return Visit(n, Iterate(last, base.total + n * mean, base.count + n, clock, stats))


def meet(state: Iterate, base: Iterate, visits: list[Visit]) -> Iterate:
    """``state + mean_k(local_k - base)``, replicas weighted by the rows they visited [1]_.

    The clock moves on by the mean number of rows of a replica, so that the step size falls as it
    does for a replica alone: the mean of several iterates has less noise to damp.

    References
    ----------
    .. [1] McMahan et al., "Communication-efficient learning of deep networks from decentralized
       data", AISTATS 2017.
    """
    rows = sum(v.rows for v in visits)
    last, clock = state.last.copy(), 0.0
    total, count, stats = state.total.copy(), state.count, state.stats
    for v in visits:
        share = v.rows / rows
        last += share * (v.iterate.last - base.last)
        clock += share * (v.iterate.clock - base.clock)
        total += v.iterate.total - base.total
        count += v.rows
        if v.iterate.stats is not None:
            stats = v.iterate.stats if stats is None else stats + v.iterate.stats
    return Iterate(last, total, count, state.clock + round(clock), stats)


def warm_start_sgd(problem: Problem, run: Run, groups: Sequence[Group]) -> np.ndarray:
    """Parameters after one visit of local SGD to each of some groups.

    A visit sweeps its block a few times, since that costs less than reading it. The number of
    replicas is a function of the groups alone, and so are the bits.

    Parameters
    ----------
    problem : Problem
        Of logistic or multinomial loss, in standard coordinates.
    run : Run
        Told of the rounds.
    groups : sequence of Group

    Returns
    -------
    ndarray of shape (K, d + 1)
        In the problem's coordinates.
    """
    label = f"{run.label}-warmup"
    zero = problem.zeros()
    start = Iterate(zero, np.zeros_like(zero), 0.0, 0)
    rounds = schedule(groups, min(REPLICAS, len(groups)), 0, 0, shuffle=False)
    states, totals = run.data.rounds(rounds, [start], Walk(problem, 0, 0, WARM_SWEEPS), meet, label)
    theta = states[-1].mean
    run.note(Report(label, totals, None, None, theta))
    return theta  # type: ignore[no-any-return]
