"""What matrix factorization minimises, and the loop over sweeps that its solvers share.

Explicit feedback: ``f = sum over ratings (r - mean - b_u - b_i - w_u . w_i)^2 + reg * sum over rows
s (|w|^2 + b^2)``, where s is a power of the row's number of ratings (1: Zhou et al. 2008). Implicit
feedback: ``f = sum over all pairs c (p - w_u . w_i)^2 + reg * ...`` with p = 1 and c = 1 + alpha r
for rated pairs, else p = 0 and c = 1 (Hu et al. 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from daskdml.engine.opened import NOTHING, PassTotals
from daskdml.engine.sweeps import Held, Sweeps
from daskdml.io.factors import FactorTable
from daskdml.kernels.factors import predict_block
from daskdml.kernels.ratings import RatingBlock
from daskdml.solvers.base import Later, Report, RunOf, Solution, interruption


@dataclass(frozen=True)
class Model:
    """What is fitted.

    Parameters
    ----------
    k : int
        Factors of a user or an item.
    mean : float
        Of the ratings; 0 where the model has none.
    reg : float
    power : float
        A row with c ratings has the penalty ``reg * c ** power``.
    biases, nonnegative, implicit : bool
    alpha : float
        Of implicit feedback.
    seed : int
    dtype : dtype
        Of the factors.
    cg_steps : int
        Conjugate gradient steps of a row in a half-step, for implicit feedback; 0 solves exactly.
    """

    k: int
    mean: float
    reg: float
    power: float
    biases: bool
    nonnegative: bool
    implicit: bool
    alpha: float
    seed: int
    dtype: np.dtype[Any]
    cg_steps: int = 0

    @property
    def width(self) -> int:
        """Numbers in a row of the fitted model: the factors and the bias."""
        return self.k + 1

    @property
    def unknowns(self) -> int:
        """Of a row's equation."""
        return self.k + self.biases


@dataclass(frozen=True)
class FirstFactors:
    """First factors of a block: normal numbers by a seed, whose product has a small variance.

    Parameters
    ----------
    model : Model
    side : int
        0 for users, 1 for items.
    scale : float
        Standard deviation of the product of two rows.
    """

    model: Model
    side: int
    scale: float = 0.1

    def __call__(self, block: int, rows: int) -> np.ndarray:
        """Factors (rows, k + 1) of a block; biases are 0."""
        m = self.model
        rng = np.random.default_rng([m.seed, self.side, block])
        out = np.zeros((rows, m.width), m.dtype)
        drawn = rng.standard_normal((rows, m.k)) * math.sqrt(self.scale / math.sqrt(m.k))
        out[:, : m.k] = np.abs(drawn) if m.nonnegative else drawn
        return out


@dataclass(frozen=True)
class KnownFactors:
    """First factors of a block, where some rows are known from an earlier fit.

    Parameters
    ----------
    first : FirstFactors
        For the others.
    table : FactorTable
        Of the earlier fit.
    places : ndarray of shape (n,)
        Where the rows of all blocks are in the table, -1 for those that are not.
    bounds : ndarray of shape (n_blocks + 1,)
    """

    first: FirstFactors
    table: FactorTable
    places: np.ndarray
    bounds: np.ndarray

    def __call__(self, block: int, rows: int) -> np.ndarray:
        """Factors (rows, k + 1) of a block."""
        places = self.places[self.bounds[block] : self.bounds[block + 1]]
        drawn = self.first(block, rows)
        known = self.table.take(places).astype(drawn.dtype)
        return np.where((places >= 0)[:, None], known, drawn)


@dataclass(frozen=True)
class Errors:
    """Sums over pairs: squared errors, absolute errors, their number; they add."""

    squares: float
    absolute: float
    n: int

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.squares + other.squares, self.absolute + other.absolute, self.n + other.n
        )

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.squares / self.n) if self.n else math.nan

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return self.absolute / self.n if self.n else math.nan


@dataclass(frozen=True)
class ErrorsOf:
    """Factors and a block of ratings -> `Errors`."""

    k: int
    mean: float

    def __call__(self, U: np.ndarray, V: np.ndarray, block: RatingBlock) -> Errors:
        """Errors of the block's predictions."""
        predicted = np.empty(block.nnz, U.dtype)
        mean = U.dtype.type(self.mean)
        predict_block(block.indptr, block.indices, U, V, self.k, mean, predicted)
        error = predicted.astype(np.float64) - block.values
        return Errors(float(error @ error), float(np.abs(error).sum()), block.nnz)


@dataclass(frozen=True)
class Sweep:
    """What one sweep found: where the model is, and how far down."""

    users: Held
    items: Held
    totals: PassTotals
    objective: float
    gradient: float | None


class FactorSolver(Protocol):
    """An algorithm: one sweep of it goes over all ratings, once for users and once for items."""

    name: ClassVar[str]
    paired: ClassVar[bool]

    def sweep(
        self, model: Model, data: Sweeps, t: int, users: Held, items: Held, state: Any
    ) -> tuple[Sweep, Any]:
        """The model after sweep t, and the solver's state."""

    def small(self, sweep: Sweep, before: float | None, steepest: float, tol: float) -> str | None:
        """Why it may stop, or None; `before` is the objective of the sweep before, if any.

        `steepest` is the largest norm of a gradient so far.
        """


@dataclass(frozen=True)
class Stopping:
    """When a fit ends.

    Parameters
    ----------
    max_iter : int
        Sweeps at most.
    tol : float
    validate : callable or None
        ``(users, items) -> score`` of ratings held out, smaller is better.
    patience : int
        Sweeps without a better score, after which the fit ends.
    """

    max_iter: int
    tol: float
    validate: Callable[[Held, Held], float] | None = None
    patience: int = 2


@dataclass(frozen=True)
class Descent:
    """Where the loop stands between two sweeps.

    Parameters
    ----------
    users, items : Held
        The newest factors; in a checkpoint, as `Sweeps.hold` takes them.
    best : tuple of Held or None
        Those of the best validation score, where they are others.
    best_score : float
    waited : int
        Sweeps since.
    steepest : float
        Largest norm of a gradient.
    objective : float or None
        After the last sweep.
    state : object
        Of the solver.
    """

    users: Any
    items: Any
    best: tuple[Any, Any] | None = None
    best_score: float = math.inf
    waited: int = 0
    steepest: float = 0.0
    objective: float | None = None
    state: Any = None

    @property
    def answer(self) -> tuple[Held, Held]:
        """The last factors, or those of the best score."""
        return self.best or (self.users, self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """Of factors in a store."""
        sides = self.users, self.items, *(self.best or ())
        return tuple({side.name: None for side in sides if side.name is not None})

    def written(self, data: Sweeps) -> Later:
        """As a checkpoint has it, once values are brought here."""
        newest = data.written(self.users), data.written(self.items)
        best = None if self.best is None else tuple(data.written(side) for side in self.best)
        return Later(partial(_written, self, newest, best))

    def held(self, data: Sweeps) -> Descent:
        """The one that a checkpoint has."""
        users, items = data.hold("user", self.users), data.hold("item", self.items)
        best = self.best
        if best is not None:
            best = data.hold("user", best[0]), data.hold("item", best[1])
        return replace(self, users=users, items=items, best=best)


def _written(now: Descent, newest: Any, best: Any) -> Descent:
    users, items = (values() for values in newest)
    pair = None if best is None else tuple(values() for values in best)
    return replace(now, users=users, items=items, best=pair)


def factorize(
    model: Model, solver: FactorSolver, data: Sweeps, run: RunOf[Sweeps], stop: Stopping,
    start: Descent, n_iter: int = 0,
) -> Solution:  # fmt: skip
    """Sweep until the solver's own criterion, the validation score, or max_iter ends it.

    Parameters
    ----------
    model, solver, data, run, stop
        What, how, on which ratings, and until when.
    start : Descent
        First factors, or where an earlier call stood.
    n_iter : int
        Sweeps that were made.

    Returns
    -------
    Solution
        Its state is a `Descent`.
    """
    now, why = start, (f"max_iter={stop.max_iter} sweeps were made", False)
    interrupted = False
    try:
        while n_iter < stop.max_iter:
            before = now
            now, reason = _sweep(model, solver, data, run, stop, now, n_iter + 1)
            n_iter += 1
            if reason is not None:
                why = reason, True
                break
            if n_iter < stop.max_iter:
                _keep(data, run, now, n_iter)
                # Not earlier: until here, Ctrl-C leaves the factors before as the model.
                data.replaced(before.users, before.items)
    except KeyboardInterrupt:
        if n_iter == 0:
            raise
        why, interrupted = (interruption(n_iter), False), True
    return Solution(np.empty(0), None, *why, n_iter, now, interrupted)


def _sweep(
    model: Model, solver: FactorSolver, data: Sweeps, run: RunOf[Sweeps], stop: Stopping,
    now: Descent, t: int,
) -> tuple[Descent, str | None]:  # fmt: skip
    """Sweep t: where the loop stands after it, and why it should end there, if it should."""
    found, state = solver.sweep(model, data, t, now.users, now.items, now.state)
    steepest = max(now.steepest, found.gradient or 0.0)
    score = None if stop.validate is None else stop.validate(found.users, found.items)
    run.add(f"{solver.name}-sweep", found.totals, found.objective, None, None,
            found.gradient, score)  # fmt: skip
    if not math.isfinite(found.objective):
        raise FloatingPointError(
            f"the factors grew beyond all bounds in sweep {t}; lower learning_rate or raise reg"
        )
    after = replace(
        now, users=found.users, items=found.items, steepest=steepest, objective=found.objective,
        state=state,
    )  # fmt: skip
    if score is not None:
        if score < now.best_score:
            after = replace(after, best=(found.users, found.items), best_score=score, waited=0)
            data.spare(found.users, found.items)
        else:
            after = replace(after, waited=now.waited + 1)
        if after.waited >= stop.patience:
            return after, "the validation score no longer falls"
    return after, solver.small(found, now.objective, steepest, stop.tol)


def _keep(data: Sweeps, run: RunOf[Sweeps], now: Descent, n_iter: int) -> None:
    """Keep where the loop stands, if it is time to."""
    if run.save(now.written(data), report_of(now), n_iter, names=now.names):
        data.spare_for_checkpoint(now.names)


def report_of(now: Descent) -> Report:
    """What is told of a checkpoint."""
    return Report("sweep", NOTHING, now.objective, None, np.empty(0))
