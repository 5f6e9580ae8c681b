"""How far from the optimum: bounds from the statistics of one pass.

``f(w) = (1/S) sum_i s_i loss(y_i, z_i) + 1/2 sum_j pen_j w_j^2`` with gradient ``g`` and Hessian
``H``. Every function here returns upper bounds of ``f(w) - f*``, or infinity where it proves none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from daskdml.kernels.linear import SLAB_ROWS, LinearStats

TINY = float(np.finfo(np.float64).tiny)
EPS = float(np.finfo(np.float64).eps) / 2  # largest relative error of one operation


@dataclass(frozen=True)
class Certificate:
    """How far a solution is from the optimum.

    Parameters
    ----------
    objective : float
        f at the solution: mean weighted loss + penalty.
    gap : float
        Upper bound of f - f*, in units of f (an estimate where `rigorous` is False).
    method : str
        How the bound was obtained, with its source.
    rigorous : bool
        True for a proven bound, False for an estimate.
    tiny : float
        Objectives below it are round-off, so `relative` divides by no less.

    Examples
    --------
    >>> Certificate(0.5, 5e-7, "duality gap", True).relative
    1e-06
    """

    objective: float
    gap: float
    method: str
    rigorous: bool
    tiny: float = TINY

    @property
    def relative(self) -> float:
        """The gap over the objective's magnitude."""
        return self.gap / max(abs(self.objective), self.tiny)

    def __str__(self) -> str:
        kind = "at most" if self.rigorous else "about"
        return (
            f"objective {self.objective:.10g} is {kind} {self.gap:.3g} "
            f"({self.relative:.2g} of it) above the optimum; {self.method}"
        )


@dataclass(frozen=True)
class Model:
    """The quadratic model of f at a point, in parameters scaled to a unit diagonal of H.

    Parameters
    ----------
    f : float
    g : ndarray of shape (P,)
        Gradient, divided by `unit`.
    values, vectors : ndarrays of shape (P,), (P, P)
        Eigenpairs of the scaled Hessian.
    unit : ndarray of shape (P,)
        Square roots of the Hessian's diagonal.
    error : float
        Bound of the scaled Hessian's round-off, in the spectral norm.
    g_error : float
        Bound of the scaled gradient's round-off, in the 2-norm.
    radius2 : float
        Bound of the largest squared row norm in the metric of the inverse Hessian; infinite
        where the Hessian is not provably positive definite, 0 for a quadratic f.
    blur : float
        Bound of what round-off in the solution's coefficients amounts to, as a length in the norm
        of H.
    pull : float
        Bound of what round-off in the scores does to the gradient, in the norm of the inverse
        Hessian.
    drift : float
        Bound of the relative change of H by round-off in the scores.
    share : float
        Share of the rows' weight that the Hessian was taken over. What is known of all rows' is
        that it is at least `share` times as large.
    """

    f: float
    g: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    unit: np.ndarray
    error: float
    g_error: float
    radius2: float
    blur: float
    pull: float
    drift: float
    share: float

    @property
    def singular(self) -> bool:
        """Whether round-off hides if the Hessian is positive definite."""
        return bool(self.values[0] <= self.error)

    @property
    def kept(self) -> np.ndarray:
        """Which eigenvalues are told from zero."""
        return self.values > max(self.error, len(self.values) * 1e-15)

    @property
    def flat(self) -> bool:
        """Whether round-off hides any slope along the directions that `step` leaves out."""
        c = np.abs(self.vectors.T @ self.g)[~self.kept]
        return bool(np.all(c <= self.g_error + self.blur * np.sqrt(self.error)))

    def step(self) -> np.ndarray:
        """Newton's step; zero in directions in which f is flat up to round-off."""
        c = self.vectors.T @ self.g
        s = np.where(self.kept, -c / np.where(self.kept, self.values, 1.0), 0.0)
        return (self.vectors @ s) / self.unit

    def decrement2(self) -> float:
        """Squared Newton decrement ``g' H^-1 g`` over the directions `step` moves in."""
        c = self.vectors.T @ self.g
        return float(np.sum(c[self.kept] ** 2 / self.values[self.kept]))


def quadratic_model(
    f: float,
    g: np.ndarray,
    H: np.ndarray,
    stats: LinearStats,
    dtype: type,
    curved: float,
    z_error: float,
    largest: float,
) -> Model:
    """Scale the Hessian and bound what round-off did to it.

    Parameters
    ----------
    f, g, H : float, ndarray (P,), ndarray (P, P)
    stats : LinearStats
        Where they came from.
    dtype : type
        In which the products of rows were taken.
    curved : float
        How much the curvature can change: the third derivative is at most `curved` times the
        range of the score times the second derivative; 0 for a quadratic f.
    z_error : float
        Bound of the round-off of a row's scores, that of the coefficients included.
    largest : float
        Largest curvature of the loss.
    """
    P = len(g)
    unit = np.sqrt(np.maximum(np.diag(H), 0.0))
    unit = np.where(unit > 0, unit, 1.0)
    scaled = H / unit / unit[:, None]
    values, vectors = scipy.linalg.eigh(scaled)
    # Worst case of sums of products: gamma_m |B|'|B|, whose spectral norm is at most m u trace.
    # Slabs are summed in `dtype`, their sums in float64.
    slab = (SLAB_ROWS + 16) * np.finfo(dtype).eps / 2
    chain = (stats.n / SLAB_ROWS + 8) * EPS
    error = float((slab + chain) * P)
    longest = np.sqrt(stats.row_norm2)
    g_sum = (stats.n + 8) * EPS
    g_error = g_sum * stats.slope / stats.weight * longest * float(np.max(1.0 / unit))
    share = min(1.0, stats.hessian_weight / stats.weight)
    smallest = share * max(
        (values[0] - error) * float(unit.min()) ** 2,
        float(scipy.linalg.eigvalsh(H, subset_by_index=[0, 0])[0]) - error * float(unit.max()) ** 2,
    )
    radius2 = 0.0 if curved == 0.0 else (
        curved**2 * stats.row_norm2 / smallest if smallest > 0 else np.inf
    )  # fmt: skip
    blur, drift = float(np.sqrt(largest)) * z_error, float(np.expm1(min(2 * curved * z_error, 1.0)))
    pull = blur
    if share < 1:  # rows beyond the Hessian's may pull where it is weakest
        pull *= np.sqrt(max(1.0, largest * stats.row_norm2 / smallest)) if smallest > 0 else np.inf
    return Model(
        f, g / unit, values, vectors, unit, error, g_error, radius2, blur, pull, drift, share
    )


SELF_CONCORDANCE = (
    "generalised self-concordance from one pass: Newton decrement against the largest row norm "
    "in the Hessian's metric (Bach 2010; Sun & Tran-Dinh 2019), round-off included"
)
QUADRATIC = "half of the squared Newton decrement of a quadratic objective, round-off included"
ESTIMATE = "estimate: half of the squared Newton decrement (Boyd & Vandenberghe 2004, 9.5)"


def _drop(u: float, delta2: float) -> float:
    """Largest possible ``f(w) - f*`` at scaled decrement u = R delta < 1 and delta^2."""
    if u < 1e-4:  # series of (u + (1 - u) log(1 - u)) / u^2
        return delta2 * (0.5 + u / 6 + u * u / 6)
    return delta2 * (u + (1 - u) * np.log1p(-u)) / u**2


def _rise(v: float) -> float:
    """(exp(v) - v - 1) / v^2."""
    return 0.5 + v / 6 + v * v / 18 if v < 1e-3 else float((np.expm1(v) - v) / v**2)


def bounds(model: Model) -> tuple[float, float]:
    """Proven bounds of ``f - f*`` at the point, and after the full Newton step from it.

    With ``psi(r) = (exp(-r) + r - 1) / r^2`` and R the radius, every u satisfies
    ``f(w + u) >= f + g'u + |u|_H^2 psi(R |u|_H)`` [1]_; the minimum of the right-hand side is
    ``f - (R d + (1 - R d) log(1 - R d)) / R^2`` for the decrement d < 1 / R. The same with
    exp(+r) bounds f after the step from above.

    Round-off e in the scores moves the gradient by at most ``pull`` in the norm of the inverse
    Hessian: ``|B'e|_{H^-1} <= |e|`` where ``H >= B'B``. In the coefficients it moves the solution
    by at most ``blur`` in the norm of H.

    References
    ----------
    .. [1] Sun, Tran-Dinh, "Generalized self-concordant functions", Math. Program. 178, 2019.
    """
    low = model.share * (model.values - model.error) * (1 - model.drift)
    if low[0] <= 0 or not np.isfinite(model.radius2):
        return np.inf, np.inf
    c = model.vectors.T @ model.g
    blur, pull = np.array([model.blur, model.pull]) / np.sqrt(1 - model.drift)
    delta = float(np.sqrt(np.sum(c**2 / low))) + model.g_error / float(np.sqrt(low[0])) + pull
    R = float(np.sqrt(model.radius2 / (1 - model.drift)))
    if R * delta >= 1:
        return np.inf, np.inf
    optimum = _drop(R * delta, delta**2)
    if model.share < 1:  # nothing bounds the other rows' curvature along the step from above
        return optimum + delta * blur + blur**2 * _rise(R * blur), np.inf
    s = -c / model.values
    length = float(np.sqrt(np.sum(s**2 * (model.values + model.error)) * (1 + model.drift)))
    along = float(c @ s) + model.g_error * float(np.linalg.norm(s)) + pull * length

    def rise(r: float) -> float:  # of f over its tangent, for a step of length r
        return r**2 * _rise(R * r)

    at_point = optimum + delta * blur + rise(blur)
    after = optimum + along + delta * blur + rise(length + blur)
    return at_point, max(after, 0.0) if after < at_point else np.inf


def duality_gap(f: float, theta: np.ndarray, penalty: np.ndarray, stats: LinearStats) -> float:
    """Fenchel's duality gap at the slopes of one pass, for one output.

    The dual point is made of the slopes. A free intercept asks that they sum to zero, so the
    heavier of the rising and falling rows are scaled down; conjugates of losses with minimum 0 are
    at most proportionally smaller, which keeps the bound proven.

    Parameters
    ----------
    f : float
        Objective at theta.
    theta, penalty : ndarray of shape (d + 1,)
        Parameters and the factors of their squares in the penalty; 0 where there is none.
    stats : LinearStats
    """
    S, free = stats.weight, penalty == 0
    up, down = stats.rising_weight, -stats.falling_weight
    a = b = 1.0
    if free[-1] and up != down:
        a, b = (min(1.0, down / up), 1.0) if up > down else (1.0, min(1.0, up / down))
    v = (a * stats.rising + b * stats.falling) / S
    relative = 4 * (stats.n + 8) * EPS  # of every sum, and of a and b
    inner = np.abs(v[:-1])
    if np.any(free[:-1] & (inner > 0)):
        return np.inf
    inner = inner + relative * stats.slope / S * np.sqrt(stats.row_norm2)
    kept = ~free[:-1]
    smooth = 0.5 * float(np.sum(inner[kept] ** 2 / penalty[:-1][kept]))
    conjugate = (a * stats.rising_dual + b * stats.falling_dual) / S
    terms = abs(f) + (abs(stats.rising_dual) + abs(stats.falling_dual)) / S + smooth
    return max(f + conjugate + smooth, 0.0) + relative * terms


DUALITY = "duality gap at the slopes of one pass (Fenchel; Shalev-Shwartz & Zhang 2013)"
POSITIVE = "the loss cannot be negative, so the optimum is at least 0"
