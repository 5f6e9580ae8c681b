"""Which solver an estimator gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskdml.solvers.base import Problem, Solver
from daskdml.solvers.newton import Newton


def choose_solver(estimator: Any) -> Callable[[Problem, tuple[Any, ...]], Solver]:
    """What makes the solver once the problem's size is known."""
    return lambda problem, sample: Newton(sample)
