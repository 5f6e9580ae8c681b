"""Which solver a fit gets."""

from __future__ import annotations

from daskdml.engine.graphs import Group
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.solvers.base import Problem, Solver
from daskdml.solvers.lbfgs import LBFGS
from daskdml.solvers.newton import ROWS_PER_PARAMETER, Newton

# Nanoseconds on one core, measured (docs/benchmarks.md): a multiply-add of a Hessian, of scores
# with one and with several outputs, and of a Hessian's eigenvectors; a byte read and decoded.
_HESSIAN, _SCORE, _SCORES, _EIGEN, _BYTE = 1 / 30, 0.35, 0.04, 1.0, 0.8
_NEWTON_PASSES, _LBFGS_PASSES = 2, 4
_PASSES_FROM_ZERO = 4  # times as many
_PROOF = 2e9  # that Newton's method may take longer, for it proves its bounds


def choose_solver(
    name: str, problem: Problem, sample: tuple[Group, ...], groups: tuple[Group, ...], itemsize: int
) -> Solver[Problem]:
    """The solver called `name`; "auto" takes Newton's method where its Hessians pay.

    Parameters
    ----------
    name : {"auto", "newton", "lbfgs"}
    problem : Problem
    sample : sequence of Group
        Groups of a warm start, maybe none.
    groups : sequence of Group
        All groups.
    itemsize : int
        Bytes of a stored number.
    """
    if name == "auto":
        rows = groups[-1].stop - groups[0].start
        name = "newton" if newton_pays(problem, itemsize, rows, bool(sample)) else "lbfgs"
    if name == "newton":
        return Newton(sample)
    return LBFGS(sample or groups, warm=bool(sample) and not isinstance(problem.loss, Squared))


def newton_pays(problem: Problem, itemsize: int, rows: int, warm: bool) -> bool:
    """Whether few passes with Hessians cost hardly more than more passes with gradients alone."""
    D, K = problem.n_features + 1, problem.n_outputs
    P = K * D
    hessian = P**2 + (P * D if isinstance(problem.loss, Multinomial) else 0)
    read, scores = _BYTE * itemsize * D, (_SCORE if K == 1 else _SCORES) * P
    passes, curved = _NEWTON_PASSES, min(rows, ROWS_PER_PARAMETER * P)
    if isinstance(problem.loss, Squared):
        passes, curved = 1, rows
    newton = passes * (rows * (read + 2 * scores) + curved * _HESSIAN * hessian + _EIGEN * P**3)
    lbfgs = _LBFGS_PASSES * rows * (read + 2 * scores)
    return newton <= lbfgs + _PROOF / (1 if warm else _PASSES_FROM_ZERO)
