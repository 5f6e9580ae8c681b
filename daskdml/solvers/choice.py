"""Which solver a fit gets."""

from __future__ import annotations

from daskdml.engine.graphs import Group
from daskdml.kernels.losses import Multinomial, Squared
from daskdml.solvers.base import Problem, Solver
from daskdml.solvers.lbfgs import LBFGS
from daskdml.solvers.newton import Newton

# Nanoseconds on one core, measured (docs/benchmarks.md): multiply-adds of a Hessian and of two
# products with scores, and a byte of rows read and decoded.
_HESSIAN, _SCORES, _BYTE = 1 / 70, 1 / 10, 0.8
_NEWTON_PASSES, _LBFGS_PASSES = 2, 7


def choose_solver(
    name: str, problem: Problem, sample: tuple[Group, ...], groups: tuple[Group, ...], itemsize: int
) -> Solver:
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
        name = "newton" if newton_pays(problem, itemsize) else "lbfgs"
    if name == "newton":
        return Newton(sample)
    return LBFGS(sample or groups, warm=bool(sample) and not isinstance(problem.loss, Squared))


def newton_pays(problem: Problem, itemsize: int) -> bool:
    """Whether few passes with Hessians cost less than more passes with gradients alone."""
    D, K = problem.n_features + 1, problem.n_outputs
    hessian = (K * D) ** 2 + (K * D * D if isinstance(problem.loss, Multinomial) else 0)
    read, scores = _BYTE * itemsize * D, _SCORES * K * D
    newton = _NEWTON_PASSES * (read + scores + _HESSIAN * hessian)
    return newton <= _LBFGS_PASSES * (read + 2 * scores)
