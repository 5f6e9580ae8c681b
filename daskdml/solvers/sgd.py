"""Data-parallel SGD: replicas walk their own blocks row by row, and their moves meet in a mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.memory import FAN_IN, Needs
from daskdml.engine.run import Data, PassTotals
from daskdml.kernels.block import Block
from daskdml.kernels.linear import scores
from daskdml.kernels.metrics import Accuracy, Determination
from daskdml.kernels.sgd import Averages, Cumulative, SGDConfig, SGDState, sgd_block
from daskdml.kernels.targets import Targets, check_rows, row_weights
from daskdml.solvers.base import Problem, Report, Run
from daskdml.solvers.duality import Each, OutputsOf, Penalised
from daskdml.solvers.replicas import hold_out_groups, hold_out_rows, row_order, schedule

SMALLEST_ETA = 1e-6  # "adaptive" lowers its steps no further, as in scikit-learn


def encoded(targets: Targets, block: Block) -> tuple[np.ndarray, np.ndarray | None]:
    """Class indices or real targets (n,), and weights (n,) where the data has some."""
    assert block.y is not None
    y = targets.prepare(block)[0] if targets.classes is None else targets.index(block.y)
    weighted = block.sample_weight is not None
    return y, row_weights(block, block.n_rows) if weighted else None


@dataclass(frozen=True)
class Walk:
    """Local work: one sweep of SGD over a block's rows.

    Parameters
    ----------
    config : SGDConfig
    targets : Targets
    seed, epoch : int
        Of the order.
    shuffle : bool
    held_share : float
        Share of each block's rows that is held out; 0 for none.
    """

    config: SGDConfig
    targets: Targets
    seed: int
    epoch: int
    shuffle: bool
    held_share: float = 0.0

    def __call__(
        self, base: SGDState, block: Block, group: Group, t: int, k: int
    ) -> tuple[int, SGDState]:
        """Rows visited and the state after them."""
        y, s = encoded(self.targets, block)
        n, order = block.n_rows, None
        if self.shuffle:
            order = row_order(n, group, self.seed, self.epoch)
        if self.held_share:
            held = hold_out_rows(n, self.held_share, self.seed)
            order = np.arange(n) if order is None else order
            order = order[~held[order]]
        try:
            state = sgd_block(base, self.config, block.X, y, s, order)
        except ValueError:
            check_rows(block.X)
            raise
        return (n if order is None else len(order)), state


@dataclass(frozen=True)
class Meet:
    """Where replicas meet: ``state + h * mean_k(local_k - base)``, weighted by rows visited [1]_.

    The outer step is ``h = 1 / (staleness + 1)``: the rounds that are on their way at a time start
    from nearly the same state, and act as so many replicas more. Where local work converges,
    ``x[t] = x[t-1] - h x[t-1-s]`` is what is left of an error x; it dies out for this h, but not
    for h = 1.

    - Coefficients, intercepts and the L1 penalty paid so far move by the mean.
    - The clock `t`, which the step size falls with, moves on by the mean number of rows of a
      replica: the mean of several iterates has less noise to damp than one of them.
    - Averages are kept as sums of iterates, which move by the mean as well.
    - Sums over rows (the objective seen) move by the sum.

    A lone replica without staleness passes its state on unchanged.

    References
    ----------
    .. [1] McMahan et al., "Communication-efficient learning of deep networks from decentralized
       data", AISTATS 2017.
    """

    config: SGDConfig
    staleness: int
    alone: bool

    def __call__(
        self, state: SGDState, base: SGDState, visits: list[tuple[int, SGDState]]
    ) -> SGDState:
        """The state after a round."""
        if self.alone:
            return visits[0][1]
        rows = sum(n for n, _ in visits)
        if rows == 0:
            return state
        shares = [n / rows / (self.staleness + 1) for n, _ in visits]
        states = [s.folded() for _, s in visits]
        state, base = state.folded(), base.folded()

        def moved(of: Any) -> Any:
            start = of(base)
            steps = (w * (of(s) - start) for w, s in zip(shares, states, strict=True))
            return of(state) + sum(steps)

        averages, cumulative = None, None
        if state.averages is not None:
            count = moved(self._averaged)
            total, intercept = moved(self._sums), moved(self._intercept_sums)
            k, divisor = len(state.scale), max(count, 1.0)
            averages = Averages(total / divisor, intercept / divisor, np.zeros(k), np.ones(k))
        if state.cumulative is not None:
            paid = moved(lambda s: s.cumulative.total)
            applied = moved(lambda s: s.cumulative.applied)
            cumulative = Cumulative(paid, np.clip(applied, -paid[:, None], paid[:, None]))
        seen = sum(s.objective_sum - base.objective_sum for s in states)
        return replace(
            state,
            vectors=moved(lambda s: s.vectors),
            intercept=moved(lambda s: s.intercept),
            averages=averages,
            cumulative=cumulative,
            objective_sum=state.objective_sum + seen,
            t=state.t + round(moved(lambda s: s.t) - state.t),
        )

    def _averaged(self, state: SGDState) -> float:
        """Iterates in the averages."""
        return max(0.0, state.t - self.config.average)

    def _sums(self, state: SGDState) -> np.ndarray:
        assert state.averages is not None
        return state.averages.vectors * self._averaged(state)

    def _intercept_sums(self, state: SGDState) -> np.ndarray:
        assert state.averages is not None
        return state.averages.intercept * self._averaged(state)


@dataclass(frozen=True)
class ScoreOf:
    """Block -> `Each` of the problems' scores on its held-out rows.

    Parameters
    ----------
    targets : Targets
    coef, intercept : ndarray of shape (K, d) and (K,)
    seed, held_share : int, float
        Which rows are held out; all of them for a share of 0.
    """

    targets: Targets
    coef: np.ndarray
    intercept: np.ndarray
    seed: int
    held_share: float = 0.0

    def __call__(self, block: Block) -> Each:
        """Score a block's held-out rows."""
        y, s = encoded(self.targets, block)
        weight = np.ones(block.n_rows) if s is None else s
        if self.held_share:
            weight = weight * hold_out_rows(block.n_rows, self.held_share, self.seed)
        z = scores(block.X, self.coef, self.intercept)
        if self.targets.classes is None:
            return Each((Determination.of(y, z[:, 0], weight),))
        K = z.shape[1]
        classes = range(K) if K > 1 else [1]
        right = [Accuracy.of(y == c, z[:, k] > 0, weight) for k, c in enumerate(classes)]
        return Each(tuple(right))


@dataclass(frozen=True, eq=False)
class SGDProgress:
    """Where a fit is between two epochs.

    Parameters
    ----------
    states : tuple of SGDState
        The last ``staleness + 1``, oldest first.
    epoch : int
        Epochs made.
    best : ndarray of shape (K,)
        Best objective (or minus the score) of each problem.
    idle : ndarray of int of shape (K,)
        Epochs in a row without improvement.
    seen : ndarray of shape (K,)
        Objective of each problem in its last epoch.
    """

    states: tuple[SGDState, ...]
    epoch: int
    best: np.ndarray
    idle: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class SGD:
    """Local SGD with bounded staleness [1]_, [2]_.

    ``state[t] = state[t-1] + mean_k(local(state[t-1-s], block_k) - state[t-1-s]) / (s + 1)``

    In round t every replica k sweeps one block; `Meet` says how states are added. The order of a
    replica's blocks and of the rows within a block is a function of (seed, epoch, block). One
    replica that does not shuffle is scikit-learn's SGD, row for row.

    After each epoch, a problem whose objective (the mean over the epoch's rows of the loss before
    the row's update plus the penalty, or minus the score on held-out rows) did not improve by
    `tol` for `n_iter_no_change` epochs in a row stops, or takes steps a fifth as long under
    "adaptive".

    Parameters
    ----------
    config : SGDConfig
    n_replicas : int
    max_iter : int
        Epochs at most.
    tol : float or None
        None never stops early.
    n_iter_no_change : int
    held_share : float or None
        Share of the data that is held out, for scores; None for none. Whole groups are, where that
        makes two of them, else rows of every block.
    staleness : int
    shuffle : bool
    seed : int
    certify : bool
        Whether a last pass bounds the distance to the optimum.
    first : SGDState or None
        Where to start; None is zero.
    first_epoch : int
        Number of the first epoch, for its random order.

    References
    ----------
    .. [1] S. U. Stich, "Local SGD converges fast and communicates little", ICLR 2019.
    .. [2] Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
       Server", NIPS 2013.
    """

    config: SGDConfig
    n_replicas: int
    max_iter: int
    tol: float | None = 1e-3
    n_iter_no_change: int = 5
    held_share: float | None = None
    staleness: int = 0
    shuffle: bool = True
    seed: int = 0
    certify: bool = False
    first: SGDState | None = None
    first_epoch: int = 0

    def needs(self, problem: Problem, data: Data) -> Needs:
        """Copies of the state, and the rows' order, targets and weights."""
        state = self.config.n_models * problem.n_features * 8
        parts = 1 + bool(self.config.average) + bool(self.config.shrink)
        rows = max(g.rows for g in data.groups)
        alive = math.ceil((self.n_replicas + self.staleness + 2) / FAN_IN)
        return Needs(work=3 * parts * state + 5 * 8 * rows, part=alive * parts * state)

    def start(self, problem: Problem, run: Run, theta: np.ndarray | None) -> SGDProgress:
        """The state before the first row."""
        state = self.first or self.config.init(problem.n_features)
        if theta is not None:
            d = problem.n_features
            state = replace(state, vectors=theta[:, :d].copy(), intercept=theta[:, d].copy())
        k = self.config.n_models
        # As scikit-learn, which counts afresh and steps by eta0 in each call of fit or partial_fit.
        state = replace(state, eta=np.full(k, self.config.eta0), active=np.ones(k, dtype=bool))
        nothing = np.full(k, np.inf)
        states = (state,) * (self.staleness + 1)
        return SGDProgress(states, 0, nothing, np.zeros(k, dtype=int), np.zeros(k))

    def step(self, problem: Problem, run: Run, state: SGDProgress) -> tuple[SGDProgress, Report]:
        """One epoch; after the last one, the pass that certifies."""
        held, share = self._held(run.data)
        after, totals = self._epoch(problem, run, state, held, share)
        label, seen, theta = f"{run.label}-epoch", float(after.seen.sum()), self.parameters(after)
        report, measured = Report(label, totals, seen, None, theta), after.seen
        if self.held_share is not None:
            run.note(report)
            score, totals = self._score(problem, run, after, held, share)
            report, measured = Report(f"{run.label}-score", totals, None, None, theta), -score
        after = self._judge(after, measured)
        if after.states[-1].active.any() and after.epoch < self.max_iter:
            return after, report
        if self.certify:
            run.note(report)
            report = self._certified(problem, run, theta)
        if after.states[-1].active.any():
            reason = f"max_iter={self.max_iter} epochs were made"
            return after, replace(report, reason=reason)
        reason = f"{self.n_iter_no_change} epochs in a row brought no improvement of {self.tol:g}"
        return after, replace(report, reason=reason, converged=True)

    def parameters(self, state: SGDProgress) -> np.ndarray:
        """Coefficients and intercepts (K, d + 1) to predict with."""
        coef, intercept = state.states[-1].solution(self.config)
        return np.column_stack([coef, intercept])

    def _held(self, data: Data) -> tuple[tuple[Group, ...], float]:
        """Groups that are never trained on, or the share of each block's rows."""
        if self.held_share is None:
            return (), 0.0
        held = hold_out_groups(data.groups, self.held_share, self.seed)
        return held, 0.0 if held else self.held_share

    def _epoch(
        self,
        problem: Problem,
        run: Run,
        state: SGDProgress,
        held: tuple[Group, ...],
        share: float,
    ) -> tuple[SGDProgress, PassTotals]:
        left_out = set(held)
        groups = [g for g in run.data.groups if g not in left_out]
        rows = sum(g.rows - math.ceil(share * g.rows) for g in groups)
        if rows == 0:
            raise ValueError(
                f"validation_fraction={self.held_share} leaves no rows of {run.data.n_rows} to "
                "train on; hold out less, or set early_stopping=False"
            )
        epoch = self.first_epoch + state.epoch
        rounds = schedule(groups, self.n_replicas, self.seed, epoch, self.shuffle)
        walk = Walk(self.config, problem.targets, self.seed, epoch, self.shuffle, share)
        alone = self.n_replicas == 1 and self.staleness == 0
        meet = Meet(self.config, self.staleness, alone)
        states = [s.with_epoch_started() for s in state.states]
        ended, totals = run.data.rounds(rounds, states, walk, meet, f"{run.label}-epoch")
        latest = ended[-1]
        seen = np.where(latest.active, latest.objective_sum / rows, state.seen)
        return replace(state, states=tuple(ended), epoch=state.epoch + 1, seen=seen), totals

    def _score(
        self,
        problem: Problem,
        run: Run,
        state: SGDProgress,
        held: tuple[Group, ...],
        share: float,
    ) -> tuple[np.ndarray, PassTotals]:
        """Scores of the last iterate (not of the averages, as in scikit-learn) on held-out rows."""
        latest = state.states[-1]
        score = ScoreOf(problem.targets, latest.coef, latest.intercept, self.seed, share)
        label = f"{run.label}-score"
        found, totals = run.data.map_reduce(score, label, held or None)
        if found.of[0].weight == 0:
            raise ValueError(
                "The sample weights for validation set are all zero, consider using a different "
                "random state"
            )
        return np.array([each.score for each in found.of]), totals

    def _judge(self, state: SGDProgress, measured: np.ndarray) -> SGDProgress:
        """Count epochs without improvement, and stop or slow down what has too many of them."""
        if self.tol is None:
            return state
        latest = state.states[-1]
        active, eta = latest.active.copy(), latest.eta.copy()
        worse = measured > state.best - self.tol
        idle = np.where(worse, state.idle + 1, 0)
        best = np.where(active, np.minimum(state.best, measured), state.best)
        over = active & (idle >= self.n_iter_no_change)
        slower = over & (self.config.learning_rate == "adaptive") & (eta > SMALLEST_ETA)
        eta[slower] /= 5.0
        active[over & ~slower] = False
        states = tuple(replace(s, eta=eta, active=active) for s in state.states)
        return replace(state, states=states, best=best, idle=np.where(slower, 0, idle))

    def _certified(self, problem: Problem, run: Run, theta: np.ndarray) -> Report:
        """A pass over all rows, held-out ones included."""
        c, label = self.config, f"{run.label}-certify"
        at = OutputsOf(c.loss, problem.targets, c.class_weights, theta)
        found, totals = run.data.map_reduce(at, label)
        certificate = Penalised(c.decay, c.shrink, c.fit_intercept).certificate(theta, found)
        return Report(label, totals, certificate.objective, certificate, theta)
