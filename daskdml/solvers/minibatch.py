"""Mini-batch k-means: centers move after every few rows of a block; blocks in seeded order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.engine.run import NOTHING, PassTotals
from daskdml.kernels.block import Block
from daskdml.kernels.kmeans import Centers
from daskdml.kernels.targets import DataError, check_rows, row_weights
from daskdml.solvers.base import Report, Run, Saved, Solution, interruption
from daskdml.solvers.kmeans import PARTS
from daskdml.solvers.replicas import row_order, schedule


@dataclass(frozen=True, eq=False)
class Walked:
    """Centers on their way.

    Parameters
    ----------
    centers : ndarray of shape (k, d)
    weights : ndarray of shape (k,)
        Of all rows that each is the mean of.
    inertia : float
        Of the epoch's rows so far, each with the centers before its batch.
    """

    centers: np.ndarray
    weights: np.ndarray
    inertia: float = 0.0


@dataclass(frozen=True)
class WalkBatches:
    """Local work: a block's rows in random order, a batch at a time [1]_.

    Each center becomes the mean of all rows that it ever was nearest to.

    References
    ----------
    .. [1] D. Sculley, "Web-scale k-means clustering", WWW 2010.
    """

    batch_size: int
    seed: int
    epoch: int

    def __call__(self, base: Walked, block: Block, group: Group, t: int, k: int) -> Walked:
        """The centers after the block."""
        centers, weights, inertia = base.centers, base.weights, base.inertia
        s = row_weights(block, block.n_rows)
        order = row_order(block.n_rows, group, self.seed, self.epoch)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            try:
                found = Centers(centers).sums(block.X[batch], s[batch])
            except DataError:
                check_rows(block.X)
                raise
            total = weights + found.weights
            step = found.sums - found.weights[:, None] * centers
            centers = centers + step / np.where(total > 0, total, 1.0)[:, None]
            weights, inertia = total, inertia + found.inertia
        return Walked(centers, weights, inertia)


def pass_on(state: Walked, base: Walked, values: list[Walked]) -> Walked:
    """The state after a round of one walker is the walker's."""
    return values[0]


@dataclass(frozen=True)
class MiniBatch:
    """Epochs of `WalkBatches`, one block after the other, while others are read ahead.

    Parameters
    ----------
    batch_size : int
        Rows between two moves.
    max_iter : int
        Epochs at most.
    tol : float
        Stops after an epoch whose inertia is not below the one before by this share of it.
    seed : int
        Of the order.
    first_epoch : int
        Number of the first epoch, for its order.
    """

    batch_size: int
    max_iter: int
    tol: float
    seed: int
    first_epoch: int = 0

    def __call__(self, run: Run, start: Walked | None, saved: Saved | None = None) -> Solution:
        """Walk from `start`, or go on; the solution's state is a `Walked`."""
        why, interrupted = (f"max_iter={self.max_iter} epochs were made", False), False
        state, n_iter = (start, 0) if saved is None else (saved.state, saved.n_iter)
        assert state is not None
        if saved is not None and saved.ended is not None:
            return Solution(state.centers, None, *saved.ended, n_iter, state)
        try:
            while n_iter < self.max_iter:
                before, state = state.inertia if n_iter else np.inf, self._walk(run, state, n_iter)
                n_iter += 1
                if before - state.inertia <= self.tol * before < np.inf:
                    why = f"an epoch lowered the inertia by less than {self.tol:g}", True
                    break
                run.save(state, self._report(run, NOTHING, state), n_iter)
        except KeyboardInterrupt:
            if n_iter == 0:
                raise
            why, interrupted = (interruption(n_iter), False), True
        return Solution(state.centers, None, *why, n_iter, state, interrupted)

    def _walk(self, run: Run, state: Walked, n_iter: int) -> Walked:
        """One epoch."""
        epoch = self.first_epoch + n_iter
        rounds = schedule(run.data.groups, 1, self.seed, epoch, shuffle=True)
        walk, start = WalkBatches(self.batch_size, self.seed, epoch), replace(state, inertia=0.0)
        label = f"{run.label}-epoch"
        (after,), totals = run.data.rounds(rounds, [start], walk, pass_on, label, PARTS)
        run.note(self._report(run, totals, after))
        return after

    @staticmethod
    def _report(run: Run, totals: PassTotals, state: Walked) -> Report:
        return Report(f"{run.label}-epoch", totals, state.inertia, None, state.centers)
