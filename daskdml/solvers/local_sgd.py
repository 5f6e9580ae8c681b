"""Averaged local SGD for logistic regression in standard coordinates: no step size to tune."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import FAN_IN, Needs
from daskdml.engine.run import Data, PassTotals
from daskdml.kernels.block import Block
from daskdml.kernels.linear import SLAB_ROWS, LinearPass, LinearStats
from daskdml.kernels.local_sgd import softmax_sgd_block
from daskdml.kernels.losses import Multinomial
from daskdml.kernels.targets import check_rows
from daskdml.solvers import certificates
from daskdml.solvers.base import Problem, Report, Run, Solver, StatsOf
from daskdml.solvers.certificates import Certificate
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


@dataclass(frozen=True)
class Meet:
    """Where replicas meet: ``state + h * mean_k(local_k - base)``, weighted by rows visited [1]_.

    The outer step ``h = 1 / (staleness + 1)`` keeps stale rounds stable, as in `sgd.Meet`. The
    clock moves on by the mean number of rows of a replica, so that the step size falls as it does
    for a replica alone: the mean of several iterates has less noise to damp.

    References
    ----------
    .. [1] McMahan et al., "Communication-efficient learning of deep networks from decentralized
       data", AISTATS 2017.
    """

    staleness: int = 0

    def __call__(self, state: Iterate, base: Iterate, visits: list[Visit]) -> Iterate:
        """The iterate after a round."""
        rows, h = sum(v.rows for v in visits), 1.0 / (self.staleness + 1)
        last, clock = state.last.copy(), 0.0
        total, count, stats = state.total.copy(), state.count, state.stats
        for v in visits:
            share = h * v.rows / rows
            last += share * (v.iterate.last - base.last)
            clock += share * (v.iterate.clock - base.clock)
            total += v.iterate.total - base.total
            count += v.rows
            if v.iterate.stats is not None:
                stats = v.iterate.stats if stats is None else stats + v.iterate.stats
        return Iterate(last, total, count, state.clock + round(clock), stats)


def warm_start_sgd(problem: Problem, run: Run, groups: Sequence[Group]) -> np.ndarray:
    """Parameters after one visit of local SGD to each of some groups.

    A visit sweeps its block several times, since that costs less than reading it. The number of
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
    walk = Walk(problem, 0, 0, WARM_SWEEPS)
    states, totals = run.data.rounds(rounds, [start], walk, Meet(), label)
    theta = states[-1].mean
    run.note(Report(label, totals, None, None, theta))
    return theta


@dataclass(frozen=True, eq=False)
class Epochs:
    """Where the solver is between two epochs.

    Parameters
    ----------
    iterates : tuple of Iterate
        The last ``staleness + 1``, oldest first.
    epoch : int
        Epochs made.
    f : float
        The objective where the last epoch began.
    handed : object
        State of the solver that finishes, once it has taken over.
    """

    iterates: tuple[Iterate, ...]
    epoch: int = 0
    f: float = np.inf
    handed: Any = None


@dataclass(frozen=True)
class Replicas:
    """How replicas walk.

    Parameters
    ----------
    n : int or None
        How many; None takes a number that depends on the data alone.
    staleness, seed : int
    """

    n: int | None = None
    staleness: int = 0
    seed: int = 0


@dataclass(frozen=True)
class LocalSGD:
    """Averaged local SGD [1]_ in standard coordinates; another solver certifies its answer.

    Each epoch visits every row once, from the mean of the replicas, and answers with the mean of
    its iterates. The same reading gives f, and its duality gap, at the answer of the epoch before.
    Once an epoch lowers f by less than `tol` of itself, `finish` takes over: its first pass
    certifies the answer, and what is missing to a certified `tol` is made up by its steps.

    Parameters
    ----------
    finish : Solver[Problem]
        Newton or L-BFGS; makes at least the last of the steps.
    replicas : Replicas
    tol : float
    max_iter : int

    References
    ----------
    .. [1] S. U. Stich, "Local SGD converges fast and communicates little", ICLR 2019.
    """

    finish: Solver[Problem]
    replicas: Replicas
    tol: float
    max_iter: int

    def n_replicas(self, data: Data) -> int:
        """How many replicas walk."""
        return self.replicas.n or min(REPLICAS, len(data.groups))

    def needs(self, problem: Problem, data: Data) -> Needs:
        """Iterates and gradients, a block's labels and weights, or what `finish` needs."""
        last, D, K = self.finish.needs(problem, data), problem.n_features + 1, problem.n_outputs
        alive = math.ceil((self.n_replicas(data) + self.replicas.staleness + 2) / FAN_IN)
        rows = max(g.rows for g in data.groups)
        work = 6 * K * D * 8 + 2 * SLAB_ROWS * D * 8 + 6 * 8 * rows
        return Needs(max(last.work, work), max(last.part, alive * 4 * K * D * 8))

    def start(self, problem: Problem, run: Run, theta: np.ndarray | None) -> Epochs:
        """From zero; or from theta, with the shorter steps of a second epoch."""
        known = theta is not None
        clock = run.data.n_rows // self.n_replicas(run.data) if known else 0
        last = problem.zeros() if theta is None else theta
        first = Iterate(last, np.zeros_like(last), 0.0, clock)
        return Epochs((first,) * (self.replicas.staleness + 1))

    def step(self, problem: Problem, run: Run, state: Epochs) -> tuple[Epochs, Report]:
        """One epoch, or a step of `finish`."""
        if state.handed is not None:
            handed, report = self.finish.step(problem, run, state.handed)
            return replace(state, handed=handed), report
        label, epoch, before = f"{run.label}-epoch", state.epoch, state.iterates[-1].mean
        n, seed = self.n_replicas(run.data), self.replicas.seed
        rounds = schedule(run.data.groups, n, seed, epoch, shuffle=True)
        walk = Walk(problem, seed, epoch, at=before if state.iterates[-1].clock else None)
        meet = Meet(self.replicas.staleness)
        starts = [i.with_epoch_started() for i in state.iterates]
        iterates, totals = run.data.rounds(rounds, starts, walk, meet, label)
        report = self._visited(problem, iterates[-1].stats, label, totals, before)
        f = np.inf if report.objective is None else report.objective
        after = Epochs(tuple(iterates), epoch + 1, f)
        if state.f - f <= self.tol * abs(f) or epoch + 2 >= self.max_iter:
            handed = self.finish.start(problem, run, iterates[-1].mean)
            after = replace(after, handed=handed)
        if self.max_iter > 1:
            return after, report
        run.note(report)
        return self.step(problem, run, after)

    def _visited(
        self,
        problem: Problem,
        stats: LinearStats | None,
        label: str,
        totals: PassTotals,
        theta: np.ndarray,
    ) -> Report:
        """What an epoch found out about the point where it began."""
        if stats is None:
            return Report(label, totals, None, None, theta)
        f = problem.objective(stats.loss, stats.weight, theta)
        candidates = [(f * (1 + (stats.n + 8) * certificates.EPS), certificates.POSITIVE)]
        if problem.n_outputs == 1 and problem.l2 > 0:
            gap = certificates.duality_gap(f, theta[0], problem.penalty[0], stats)
            candidates.append((gap, certificates.DUALITY))
        return Report(label, totals, f, Certificate(f, *min(candidates), True), theta)
