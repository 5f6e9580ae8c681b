"""Nonnegative matrix factorization by alternating least squares, both sides solved exactly.

A pass solves for the coefficients W of each row at a given H and keeps their sums alone, ``W'W``
and ``W'X`` (`kernels.nmf`). They give f at H, with W minimised out, and its gradient; and least
squares for H at these W need no rows. Nesterov's extrapolation of H, begun anew where f rose [1]_
[2]_, takes a fraction of the passes that the plain alternation takes.

References
----------
.. [1] O'Donoghue, Candes, "Adaptive restart for accelerated gradient schemes", Foundations of
   Computational Mathematics 15, 2015.
.. [2] Ang, Gillis, "Accelerating nonnegative matrix factorization algorithms using extrapolation",
   Neural Computation 31, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.kernels.nmf import (
    SLAB_ROWS,
    Coefficients,
    Factored,
    FactorRows,
    SignedNorms,
    nonnegative_rows,
)
from daskdml.solvers.base import Report, Run
from daskdml.solvers.krylov import BlockKrylov, Leading

EPS = 1e-6  # entries of a start that are smaller become 0
START_GAP = 0.01  # of the singular vectors that a start is made from
START_PASSES = 6  # for them, at most
FREE_STEPS = 3  # without penalties, before they are counted
LARGEST = 40.0  # of the logarithm of a component's scale


@dataclass(frozen=True)
class Factorization:
    """Minimise ``|X - WH|^2 / 2`` and penalties of W and H over W, H >= 0.

    The penalties are ``l1 * sum + l2 / 2 * sum of squares``, of each side with its own factors.

    Parameters
    ----------
    n_components : int
        K.
    power, mean : float
        Sum of squares, and mean, of all values of X.
    l1_W, l2_W, l1_H, l2_H : float
    tiny : float
        Values of the objective below it are round-off.
    """

    n_components: int
    power: float
    mean: float
    l1_W: float = 0.0
    l2_W: float = 0.0
    l1_H: float = 0.0
    l2_H: float = 0.0
    tiny: float = float(np.finfo(np.float64).tiny)

    @property
    def penalised(self) -> bool:
        """Whether there are penalties."""
        return self.l1_W + self.l2_W + self.l1_H + self.l2_H > 0

    def rows(self, H: np.ndarray) -> Coefficients:
        """What solves for the coefficients of rows."""
        return Coefficients(H, self.l1_W, self.l2_W)

    def squared_error(self, sums: Factored, H: np.ndarray) -> float:
        """``|X - WH|^2``."""
        return max(self.power - 2 * sums.along + float(np.sum(sums.squares * (H @ H.T))), 0.0)

    def objective(self, sums: Factored, H: np.ndarray) -> float:
        """The objective."""
        f = 0.5 * self.squared_error(sums, H) + self.l1_W * float(sums.coefficients.sum())
        f += 0.5 * self.l2_W * float(np.trace(sums.squares))
        return f + self.l1_H * float(H.sum()) + 0.5 * self.l2_H * float(np.sum(H * H))

    def projected_gradient(self, sums: Factored, H: np.ndarray) -> float:
        """Norm of the gradient in H, of its negative part alone where H is 0; 0 if stationary."""
        g = sums.squares @ H - sums.products + self.l1_H + self.l2_H * H
        return float(np.linalg.norm(np.where(H > 0, g, np.minimum(g, 0.0))))

    def balanced(self, sums: Factored, H: np.ndarray) -> np.ndarray:
        """H scaled, component by component, so that the penalties of one same WH are least."""
        W1, W2 = self.l1_W * sums.coefficients, self.l2_W * np.diag(sums.squares)
        H1, H2 = self.l1_H * H.sum(axis=1), self.l2_H * np.sum(H * H, axis=1)
        low, high = np.full(len(H), -LARGEST), np.full(len(H), LARGEST)
        for _ in range(60):  # bisection for the logarithm of H's scale, in which they are convex
            middle = (low + high) / 2
            t = np.exp(middle)
            rises = H1 * t + H2 * t**2 > W1 / t + W2 / t**2
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
        known = (H1 + H2 > 0) & (W1 + W2 > 0)
        return H * np.where(known, np.exp(low), 1.0)[:, None]

    def best_H(self, sums: Factored, H: np.ndarray) -> np.ndarray:
        """The H of least objective for the rows' coefficients, from an H nearby."""
        G = sums.squares + self.l2_H * np.eye(len(H))
        columns = H.T.copy()
        nonnegative_rows(G, np.ascontiguousarray(sums.products.T) - self.l1_H, columns)
        return np.ascontiguousarray(columns.T)


@dataclass(frozen=True)
class Point:
    """An H that was visited.

    Parameters
    ----------
    H : ndarray of shape (K, d)
    objective, error : float
        f and ``|X - WH|``.
    gradient : float
        Norm of the projected gradient.
    """

    H: np.ndarray
    objective: float
    error: float
    gradient: float


@dataclass(frozen=True)
class Alternation:
    """State between passes.

    Parameters
    ----------
    visit : ndarray of shape (K, d)
        The H that the next pass visits.
    plain : ndarray of shape (K, d) or None
        The last solution for H, from which `visit` goes on; f is no larger there than at `best`.
    best : Point or None
        The last visited point at which f had not risen: of all, the one of least f.
    first : float
        Norm of the projected gradient at the start.
    momentum : int
        Steps since extrapolation began anew.
    """

    visit: np.ndarray
    plain: np.ndarray | None = None
    best: Point | None = None
    first: float = 0.0
    momentum: int = 0


@dataclass(frozen=True)
class AlternatingLeastSquares:
    """One pass a step: coefficients of all rows at an H, then the next H.

    Parameters
    ----------
    tol : float
        Norm of the projected gradient, as a share of that at the start, at which to stop.
    init : {"random", "nndsvd", "nndsvda", "nndsvdar"}
    seed : int
    """

    tol: float
    init: str
    seed: int

    def needs(self, problem: Factorization, data: Data) -> Needs:
        """A slab's coefficients, H, sums, and some matrices of H's shape where H is updated."""
        d, item, K = data.source.n_features, data.source.dtype.itemsize, problem.n_components
        work = 5 * SLAB_ROWS * K * 8 + 2 * K * d * (item + 8) + 8 * K * d * 8
        own = Needs(work=work, part=(K * d + K * K) * 8)
        if self.init == "random":
            return own
        start = self._krylov.needs(Leading(K, False), data)
        return Needs(max(own.work, start.work), max(own.part, start.part))

    def start(self, problem: Factorization, run: Run, theta: np.ndarray | None) -> Alternation:
        """The start that `init` names; where there are penalties, a few steps on without them.

        At the scale of a start, which is arbitrary, a penalty can take away all of a component's
        coefficients, and then nothing brings them back.
        """
        H = self._initial(problem, run)
        if problem.penalised:
            free = replace(problem, l1_W=0.0, l2_W=0.0, l1_H=0.0, l2_H=0.0)
            label = f"{run.label}-start"
            for _ in range(FREE_STEPS):
                sums, totals = run.data.map_reduce(FactorRows(free.rows(H)), label, parts=("X",))
                run.note(Report(label, totals, None, None, H))
                H = problem.balanced(sums, free.best_H(sums, H))
        return Alternation(H)

    def _initial(self, problem: Factorization, run: Run) -> np.ndarray:
        """Random numbers of the size of X's, or nonnegative parts of its singular vectors."""
        rng = np.random.default_rng(self.seed)
        shape = (problem.n_components, run.data.source.n_features)
        if self.init == "random":
            scale = np.sqrt(problem.mean / problem.n_components)
            return np.asarray(scale * np.abs(rng.standard_normal(shape)))
        H = self._from_singular_vectors(problem, run)
        if self.init == "nndsvda":
            H[H == 0] = problem.mean
        elif self.init == "nndsvdar":
            H[H == 0] = problem.mean / 100 * np.abs(rng.standard_normal(int(np.sum(H == 0))))
        return H

    @property
    def _krylov(self) -> BlockKrylov:
        return BlockKrylov(10, None, self.seed)

    def _from_singular_vectors(self, problem: Factorization, run: Run) -> np.ndarray:
        """H of NNDSVD [1]_: each singular vector's larger part, positive or negative.

        References
        ----------
        .. [1] Boutsidis, Gallopoulos, "SVD based initialization: a head start for nonnegative
           matrix factorization", Pattern Recognition 41, 2008.
        """
        K, leading = problem.n_components, Leading(problem.n_components, False)
        basis = self._krylov.start(leading, run, None)
        for _ in range(START_PASSES):
            basis, report = self._krylov.step(leading, run, basis)
            run.note(replace(report, objective=None, certificate=None))
            assert basis.certificate is not None
            if basis.certificate.relative <= START_GAP or report.reason is not None:
                break
        V, s = basis.vectors(K), np.sqrt(np.maximum(basis.values[:K], 0.0))
        label = f"{run.label}-signs"
        norms, totals = run.data.map_reduce(SignedNorms(V), label, parts=("X",))
        run.note(Report(label, totals, None, None, V))
        H = np.zeros_like(V)
        H[0] = np.sqrt(s[0]) * np.abs(V[0])
        for k in range(1, K):
            parts = np.maximum(V[k], 0.0), np.maximum(-V[k], 0.0)
            sizes = [np.linalg.norm(part) for part in parts]
            shares = np.sqrt(norms[:, k]) * sizes  # s times what a pair of parts has of s u v'
            larger = int(shares[1] > shares[0])
            if shares[larger] > 0:
                H[k] = np.sqrt(shares[larger]) * parts[larger] / sizes[larger]
        H[H < EPS] = 0.0
        return H

    def step(
        self, problem: Factorization, run: Run, state: Alternation
    ) -> tuple[Alternation, Report]:
        """Visit an H; from there the least squares for H, extrapolated."""
        label, H = f"{run.label}-pass", state.visit
        sums, totals = run.data.map_reduce(FactorRows(problem.rows(H)), label, parts=("X",))
        f, gradient = problem.objective(sums, H), problem.projected_gradient(sums, H)
        error = float(np.sqrt(problem.squared_error(sums, H)))
        if state.best is not None and state.plain is not None and f > state.best.objective:
            again = replace(state, visit=state.plain, plain=None, momentum=0)
            return again, Report(label, totals, f, None, state.best.H, gradient=gradient)
        best, first = Point(H, f, error, gradient), state.first or gradient
        reason = None
        if gradient <= self.tol * first:
            reason = f"the projected gradient's norm is below tol={self.tol:g} of the first"
        report = Report(label, totals, f, None, H, reason, reason is not None, gradient)
        if reason is not None:
            return replace(state, best=best, first=first), report
        plain = problem.best_H(sums, H)
        momentum = state.momentum + 1
        visit = plain
        if state.plain is not None:
            step = (momentum - 1) / (momentum + 2)
            visit = np.maximum(plain + step * (plain - state.plain), 0.0)
        return Alternation(visit, plain, best, first, momentum), report
