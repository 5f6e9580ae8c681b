"""Leading eigenvectors of a scatter matrix that is never formed: randomized block Krylov [1]_ [2]_.

A pass multiplies the scatter matrix C (d x d) with a block of l orthonormal columns. The blocks
``Q, CQ, C^2 Q, ...``, made orthonormal, span a space of which C's compression T is known once each
had its pass; T's eigenpairs (theta, Z) give Ritz vectors ``U = QZ``. Plain power iterations make
the same passes and keep the last block alone, which is why they need more of them.

References
----------
.. [1] Halko, Martinsson, Tropp, "Finding structure with randomness: probabilistic algorithms for
   constructing approximate matrix decompositions", SIAM Review 53, 2011.
.. [2] Musco, Musco, "Randomized block Krylov methods for stronger and faster approximate singular
   value decomposition", NIPS 2015.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import eigh, eigvalsh, qr

from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.kernels.randomized import SketchOf, slab_rows
from daskdml.solvers.base import Report, Run
from daskdml.solvers.certificates import Certificate

BLOCKS = 8  # of the basis, before it shrinks to its best two
PASSES = 50
RESOLVED = 1e-13  # of the largest eigenvalue: directions that C adds less of are round-off
PROVEN = "no direction outside the basis can hold more than the trace leaves (Ky Fan)"
ESTIMATED = "if no direction outside holds more than the largest Ritz value left out (Ky Fan)"


@dataclass(frozen=True)
class Leading:
    """Minimise ``-trace(W' C W)`` over orthonormal W (d, k): the k leading eigenvectors of C.

    Parameters
    ----------
    n_components : int
        k.
    centred : bool
        Whether C sums products of the rows' deviations from their mean, or of the rows.
    tiny : float
        Traces below it are round-off.
    """

    n_components: int
    centred: bool
    tiny: float = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis, what C makes of it, and what is known of C from that.

    Parameters
    ----------
    Q : ndarray of shape (d, m)
        The basis; its last columns are yet to be multiplied with C.
    T : ndarray of shape (m, j)
        ``Q' C Q`` for the j columns that were.
    values : ndarray of shape (j,)
        Ritz values, falling.
    Z : ndarray of shape (j, j)
        Ritz vectors are ``Q[:, :j] @ Z``.
    n : int
        Rows.
    mean : ndarray of shape (d,)
    total, spread : float
        Traces of C and of the scatter matrix.
    certificate : Certificate or None
    passes : int
    """

    Q: np.ndarray
    T: np.ndarray
    values: np.ndarray
    Z: np.ndarray
    n: int = 0
    mean: np.ndarray | None = None
    total: float = 0.0
    spread: float = 0.0
    certificate: Certificate | None = None
    passes: int = 0

    def vectors(self, k: int) -> np.ndarray:
        """The k leading Ritz vectors, shape (k, d)."""
        return (self.Q[:, : len(self.values)] @ self.Z[:, :k]).T


@dataclass(frozen=True)
class BlockKrylov:
    """One pass a step: the next block's product with C, Ritz values, and a bound of what is missed.

    Parameters
    ----------
    oversamples : int
        Columns of a block beyond k.
    n_iter : int or None
        Passes after the first; None goes on until minimise's tolerance is reached.
    seed : int
        Of the first block, which is Gaussian.
    """

    oversamples: int
    n_iter: int | None
    seed: int

    def width(self, problem: Leading, d: int) -> int:
        """Columns of a block."""
        return min(problem.n_components + self.oversamples, d)

    def needs(self, problem: Leading, data: Data) -> Needs:
        """Shifted rows, Q and two products; where the fit is in this process, the basis as well."""
        d, item = data.source.n_features, data.source.dtype.itemsize
        width = self.width(problem, d)
        work = slab_rows(d, data.source.dtype) * (d + width) * item + 4 * d * width * 8
        basis = 3 * d * min((BLOCKS + 1) * width, d) * 8
        return Needs(work=work + basis, part=(width + 1) * d * 8)

    def start(self, problem: Leading, run: Run, theta: np.ndarray | None) -> Basis:
        """A Gaussian block, made orthonormal."""
        d = run.data.source.n_features
        rng = np.random.default_rng(self.seed)
        Q = np.linalg.qr(rng.standard_normal((d, self.width(problem, d))))[0]
        return Basis(Q, np.zeros((Q.shape[1], 0)), np.zeros(0), np.zeros((0, 0)))

    def step(self, problem: Leading, run: Run, basis: Basis) -> tuple[Basis, Report]:
        """Multiply the last block with C; Ritz pairs of all of them."""
        label = f"{run.label}-krylov"
        Q, j, k = basis.Q, basis.T.shape[1], problem.n_components
        block = np.ascontiguousarray(Q[:, j:])  # as it will lie where it is sent
        sketch, totals = run.data.map_reduce(SketchOf(block), label, parts=("X",))
        C_Q, total = (sketch.products, sketch.spread) if problem.centred else sketch.uncentred()
        inside, outside, left = _split(C_Q, Q, RESOLVED * total)
        T = np.column_stack([basis.T, inside])
        values, Z = eigh((T + T.T) / 2.0)
        values, Z = values[::-1], Z[:, ::-1]
        # C U = U diag(values) + rest: what makes T unsymmetric is round-off.
        rest = np.vstack([T @ Z - Z * values, left @ Z[j:]])
        noise = float(np.finfo(run.data.source.dtype).eps) * total
        certificate = _certify(values, rest, total, noise, k)
        wider = np.column_stack([Q, outside])
        tall = np.vstack([T, np.column_stack([np.zeros((len(left), j)), left])])
        found = Basis(
            wider, tall, values, Z, sketch.n, sketch.mean, total, sketch.spread, certificate,
            basis.passes + 1,
        )  # fmt: skip
        reason, converged = self._reason(found)
        objective = -float(values[:k].sum())
        report = Report(label, totals, objective, certificate, found.vectors(k), reason, converged)
        return found if reason else _shrunk(found, Q.shape[1] - j, k), report

    def _reason(self, found: Basis) -> tuple[str | None, bool]:
        """Why there is no further pass, and whether that is as it should be."""
        if found.Q.shape[1] == len(found.values):
            return "the basis holds all that the rows span", True
        if self.n_iter is not None and found.passes > self.n_iter:
            return f"{self.n_iter} power iterations were made", True
        if self.n_iter is None and found.passes >= PASSES:
            return f"{PASSES} passes were made; raise tol or n_oversamples", False
        return None, False


def _split(
    C_Q: np.ndarray, Q: np.ndarray, tiny: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``C_Q = Q @ inside + outside @ left`` with orthonormal columns outside of Q's span.

    What is not larger than `tiny` is left out, and so is what Q leaves no room for.
    """
    inside = Q.T @ C_Q
    rest = C_Q - Q @ inside
    again = Q.T @ rest
    rest -= Q @ again
    U, s, Vt = np.linalg.svd(rest, full_matrices=False)
    new = min(int(np.sum(s > tiny)), Q.shape[0] - Q.shape[1])
    U = U[:, :new] - Q @ (Q.T @ U[:, :new])
    outside, r = qr(U, mode="economic")
    return inside + again, outside, r @ (s[:new, None] * Vt[:new])


def _shrunk(found: Basis, width: int, k: int) -> Basis:
    """The basis; its best Ritz vectors and its last block where it has become large [1]_.

    References
    ----------
    .. [1] Wu, Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM
       J. Matrix Anal. Appl. 22, 2000.
    """
    Q, T, j = found.Q, found.T, len(found.values)
    if Q.shape[1] <= max(BLOCKS * width, 2 * k):
        return found
    Z = found.Z[:, : min(2 * max(width, k), j)]
    small = np.vstack([Z.T @ T[:j] @ Z, T[j:] @ Z])
    wide = np.column_stack([Q[:, :j] @ Z, Q[:, j:]])
    return replace(found, Q=wide, T=small, values=found.values[: Z.shape[1]], Z=np.eye(Z.shape[1]))


def _certify(
    values: np.ndarray, rest: np.ndarray, total: float, noise: float, k: int
) -> Certificate:
    """Bound of what the k leading Ritz vectors miss of the most that k directions can hold.

    Let U be m of the Ritz vectors, and D what C is on the directions orthogonal to them, whose
    largest eigenvalue is at most mu. Then for any e > 0, in the order of quadratic forms,
    ``C <= diag(theta + R'R / e, D + e)`` with R the residuals of U (`rest`), so that the k largest
    eigenvalues of C add up to no more than those of ``theta + R'R / e`` and k of ``mu + e``. What
    is not in the basis has an eigenvalue of at most the trace that the basis leaves: that gives a
    proven mu; the largest Ritz value left out, and its residual, give an estimate, told doubled.
    """
    captured = float(values[:k].sum())
    if total <= 0:
        return Certificate(-captured, 0.0, PROVEN, True)
    outside = max(total - float(values.sum()), 0.0) + noise
    norms = np.sqrt(np.einsum("ij,ij->j", rest, rest))
    coupling = _norm(rest[:, k:])  # that of fewer columns is no larger
    proven = estimate = np.inf
    tiny = max(noise, float(np.finfo(np.float64).tiny))
    for m in _splits(k, len(values)):
        mu = outside
        if m < len(values):
            mu = float(eigvalsh([[values[m], coupling], [coupling, outside]])[1])
            guess = float(values[m] + norms[m])
            estimate = min(estimate, _ky_fan(values[:m], rest[:, :m], guess, tiny, k) - captured)
        proven = min(proven, _ky_fan(values[:m], rest[:, :m], mu, tiny, k) - captured)
    rigorous = proven <= 2 * estimate + 4 * k * total * float(np.finfo(np.float64).eps)
    gap = proven if rigorous else 2 * estimate
    return Certificate(-captured, max(gap, 0.0), PROVEN if rigorous else ESTIMATED, rigorous)


def _splits(k: int, j: int) -> list[int]:
    """How many Ritz vectors to set apart from the rest: k, or more where the k-th has near ties."""
    steps = [k, *(k + 2**i for i in range(6) if k + 2**i < j), j]
    return sorted(set(steps))


def _ky_fan(values: np.ndarray, rest: np.ndarray, mu: float, tiny: float, k: int) -> float:
    """Upper bound of the sum of C's k largest eigenvalues; see `_certify`."""
    products, best = rest.T @ rest, np.inf
    for e in (values[k - 1] - mu, max(_norm(rest), tiny)):
        if e > 0:
            last = [len(values) - k, len(values) - 1]
            top = eigvalsh(np.diag(values) + products / e, subset_by_index=last)
            both = np.sort(np.append(top, np.full(k, mu + e)))[-k:]
            best = min(best, float(both.sum()))
    return best


def _norm(A: np.ndarray) -> float:
    """Spectral norm."""
    if A.shape[1] == 0:
        return 0.0
    last = A.shape[1] - 1
    return float(np.sqrt(max(eigvalsh(A.T @ A, subset_by_index=[last, last])[0], 0.0)))
