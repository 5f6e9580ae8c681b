"""Fenchel's duality gap of linear models with squared, absolute or mixed penalties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from daskdml.kernels.block import Block
from daskdml.kernels.linear import Coordinates, LinearPass, LinearStats
from daskdml.kernels.losses import Loss
from daskdml.kernels.targets import Targets, check_rows, row_weights
from daskdml.solvers.certificates import EPS, TINY, Certificate

METHOD = (
    "duality gap at the scaled slopes of one pass (Fenchel; Shalev-Shwartz & Zhang 2013; "
    "Smith et al. 2018)"
)


@dataclass(frozen=True)
class Each:
    """What was found of each of several models over the same rows; they add."""

    of: tuple[Any, ...]

    def __add__(self, other: Each) -> Each:
        return Each(tuple(a + b for a, b in zip(self.of, other.of, strict=True)))


@dataclass(frozen=True)
class OutputsOf:
    """Block -> `Each`: statistics of a model for each class against the rest, or of one.

    Parameters
    ----------
    loss : Loss
    targets : Targets
        Without class weights.
    class_weights : tuple of float or None
        Of every class; of several classes, the rest weighs 1 (as in scikit-learn's SGD).
    theta : ndarray of shape (K, d + 1)
        On the columns as stored, intercepts last.
    """

    loss: Loss
    targets: Targets
    class_weights: tuple[float, ...] | None
    theta: np.ndarray

    def __call__(self, block: Block) -> Each:
        """Statistics of a block's rows."""
        s = row_weights(block, block.n_rows)
        if self.targets.classes is None:
            y, _ = self.targets.prepare(block)
            return Each((self._one(0, block.X, y, s),))
        assert block.y is not None
        index, K, found = self.targets.index(block.y), len(self.theta), []
        for k in range(K):
            positive = index == (k if K > 1 else 1)
            weight = s
            if self.class_weights is not None:
                of_rest = 1.0 if K > 1 else self.class_weights[0]
                weight = s * np.where(positive, self.class_weights[k if K > 1 else 1], of_rest)
            found.append(self._one(k, block.X, np.where(positive, 1.0, -1.0), weight))
        return Each(tuple(found))

    def _one(self, k: int, X: np.ndarray, y: np.ndarray, s: np.ndarray) -> LinearStats:
        at = LinearPass(self.loss, Coordinates.identity(X.shape[1]), self.theta[k : k + 1])
        stats = at(X, y, s)
        if not np.isfinite(stats.loss):
            check_rows(X)
        return stats


@dataclass(frozen=True)
class Penalised:
    """The objective ``(1/n) sum_i s_i loss_i + shrink |w|_1 + decay |w|^2 / 2``.

    Parameters
    ----------
    decay, shrink : float
    fit_intercept : bool
    """

    decay: float
    shrink: float
    fit_intercept: bool

    def certificate(self, theta: np.ndarray, outputs: Each) -> Certificate:
        """Sum over the models of objective and gap.

        Parameters
        ----------
        theta : ndarray of shape (K, d + 1)
        outputs : Each of LinearStats
            Statistics at theta, of a loss whose minimum is 0.
        """
        objectives = [self.objective(w, s) for w, s in zip(theta, outputs.of, strict=True)]
        gaps = [self.gap(f, w, s) for f, w, s in zip(objectives, theta, outputs.of, strict=True)]
        return Certificate(float(sum(objectives)), float(sum(gaps)), METHOD, True, TINY)

    def objective(self, w: np.ndarray, stats: LinearStats) -> float:
        """f at w (d + 1,)."""
        c = w[:-1]
        penalty = 0.5 * self.decay * float(c @ c) + self.shrink * float(np.abs(c).sum())
        return stats.loss / stats.n + penalty

    def gap(self, f: float, w: np.ndarray, stats: LinearStats) -> float:
        """Upper bound of f - f* from the slopes a at w.

        For every c in [0, 1] the dual point ``c a`` proves
        ``f* >= -c mean(s conj(a)) - sum_j max(c |v_j| - shrink, 0)^2 / (2 decay)`` with
        ``v = mean(s a x)``, since ``conj(c a) <= c conj(a)`` for a loss whose minimum is 0; without
        `decay`, c must be small enough that ``c |v_j| <= shrink`` [2]_. The best c is taken. A free
        intercept asks that ``mean(s a) = 0``: the heavier of the rows with rising and with
        falling loss are scaled down first, under the same inequality. Bounds of round-off are
        added.

        References
        ----------
        .. [1] S. Shalev-Shwartz, T. Zhang, "Stochastic dual coordinate ascent methods for
           regularized loss minimization", JMLR 14, 2013.
        .. [2] V. Smith et al., "CoCoA: A general framework for communication-efficient distributed
           optimization", JMLR 18, 2018.
        """
        n, up, down = stats.n, stats.rising_weight, -stats.falling_weight
        a = b = 1.0
        if self.fit_intercept and up != down:
            a, b = (down / up, 1.0) if up > down else (1.0, up / down)
        relative = 4 * (n + 8) * EPS  # of every sum, and of a and b
        v = np.abs(a * stats.rising + b * stats.falling)[:-1] / n
        longest = float(np.sqrt(stats.row_norm2))
        v = v + relative * stats.slope / n * longest
        duals = (abs(stats.rising_dual) + abs(stats.falling_dual)) / n
        conjugate = (a * stats.rising_dual + b * stats.falling_dual) / n + relative * duals
        of_scores = (len(w) + 1) * EPS * longest * float(np.linalg.norm(w))
        slack = relative * f + of_scores * stats.slope / n
        return max(f - self._lower_bound(conjugate, v), 0.0) + slack

    def _lower_bound(self, conjugate: float, v: np.ndarray) -> float:
        """Largest dual value over the multiples of a dual point; 0 is one of them."""
        decay, shrink, largest = self.decay, self.shrink, float(v.max(initial=0.0))

        def value(c: float) -> float:
            over = np.maximum(c * v - shrink, 0.0)
            return -c * conjugate - (float(over @ over) / (2 * decay) if decay else 0.0)

        if decay == 0.0:
            allowed = [0.0, 1.0 if largest <= shrink else shrink / largest]
        elif shrink == 0.0:
            square = float(v @ v) / decay
            allowed = [0.0, min(1.0, max(0.0, -conjugate / square)) if square > 0 else 1.0]
        else:
            best = minimize_scalar(lambda c: -value(c), bounds=(0.0, 1.0), method="bounded")
            allowed = [0.0, float(best.x), 1.0]
        return max(map(value, allowed))
