"""Line search without passes of its own: f at shorter steps comes from the pass at the full one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from daskdml.kernels.linear import LinearStats
from daskdml.solvers.base import Problem

BACKTRACKS = (-0.5, -0.75, -0.9, -0.97, -0.99, -0.999, -1.0)  # from the full step back to none
NEAR = 1e-2  # predicted decrease, relative to f, below which a full step hardly ever fails
SLOW = 0.3  # of the decrease predicted last: a step that leaves more had a bad Hessian
LINE_ROWS = 100_000  # rows that tell which of a few steps is best
ROUND_OFF = 1e-14  # of f, relative
LINE_EVERY = 8  # slabs of rows, at most: with so few, the line costs little
S = TypeVar("S", bound="Searched")
_SUFFICIENT = 1e-4  # of the predicted decrease (Armijo)


@dataclass(frozen=True)
class Searched:
    """A point and what was known where the step to it began.

    Parameters
    ----------
    theta : ndarray of shape (K, d + 1)
        The point after the full step.
    direction : ndarray of shape (K, d + 1) or None
        The step; None where there is nothing to search along: at the start, or where the step is
        proven to decrease f.
    f_before : float
        f where the step began; infinite for a guess, which is compared with the model that knows
        nothing.
    slope : float
        Derivative of f along the step where it began.
    reach : float
        Which part of a full step the last one came to.
    whole : bool
        Whether Hessians are taken over all rows, since those over a part of them were no good.
    blur : float
        Bound of the round-off of `f_before`, beyond that of sums in float64.
    """

    theta: np.ndarray
    direction: np.ndarray | None = None
    f_before: float = np.inf
    slope: float = 0.0
    reach: float = 1.0
    whole: bool = False
    blur: float = 0.0

    @property
    def stride(self) -> float:
        """Which part of a full step to try next: where one was cut, the next is mostly, too."""
        return min(1.0, 2.0 * self.reach)

    @property
    def steps(self) -> tuple[float, ...]:
        """Where else along the step the next pass takes f."""
        if self.direction is None or not np.isfinite(self.f_before):
            return ()
        return BACKTRACKS if -self.slope > NEAR * abs(self.f_before) else ()

    def as_said(self, f: float, within: float = 0.2) -> bool:
        """Whether the last step decreased f, now `f`, by about what a quadratic model had said."""
        predicted = -0.5 * self.slope
        blur = ROUND_OFF * abs(f) + self.blur
        return bool(abs(self.f_before - f - predicted) <= within * predicted + blur)

    def left(self, decrement2: float) -> float:
        """Squared decrement now, as a part of the one before the last step; infinite at first."""
        if not np.isfinite(self.f_before):
            return np.inf
        return float((decrement2 - ROUND_OFF * abs(self.f_before)) / max(-self.slope, 1e-300))

    def crawls(self, decrement2: float) -> bool:
        """Whether the last step left too much for one so near the optimum: the Hessian is bad."""
        return self.near and self.left(decrement2) > SLOW

    @property
    def near(self) -> bool:
        """Whether the last step began near the optimum, as far as its slope tells."""
        return bool(np.isfinite(self.f_before) and -self.slope <= NEAR * abs(self.f_before))


def line_every(rows: int) -> int:
    """Over every so many slabs of so many rows the line is taken."""
    return max(1, min(LINE_EVERY, rows // LINE_ROWS))


def shorten(problem: Problem, state: S, stats: LinearStats, f: float) -> S | None:
    """The state at a shorter step where the full one did not decrease f enough, else None."""
    if state.direction is None:
        return None
    if not np.isfinite(state.f_before):
        return None if f <= problem.blind else replace(state, theta=problem.zeros(), direction=None)
    if f <= state.f_before + _SUFFICIENT * state.slope + 1e-13 * abs(f) + state.blur:
        return None
    if not state.steps or stats.line_weight == 0:
        half = 0.5 * state.direction
        return replace(
            state, theta=state.theta - half, direction=half, slope=0.5 * state.slope,
            reach=0.5 * state.reach,
        )  # fmt: skip
    points = [state.theta + t * state.direction for t in state.steps]
    values = [
        problem.objective(loss, stats.line_weight, p)
        for loss, p in zip(stats.line, points, strict=True)
    ]
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    kept = 1.0 + state.steps[best]
    return replace(
        state, theta=points[best], direction=kept * state.direction if kept > 0 else None,
        slope=kept * state.slope, reach=state.reach * max(kept, 1e-3),
    )  # fmt: skip


def cut(problem: Problem, state: S, stats: LinearStats, f: float) -> S | None:
    """`shorten`, where Hessians are of a part of the rows: from the first time on, of all."""
    shorter = shorten(problem, state, stats, f)
    if shorter is None or state.whole or not np.isfinite(state.f_before):
        return shorter
    return replace(shorter, whole=True, reach=1.0)
