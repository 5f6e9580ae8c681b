"""What a fit computes with, run once on one made-up row: compiled and loaded before it is measured.

Numba compiles a kernel where it is first called, and its compiler takes some 50 MB. A worker that
has rehearsed holds them before the fit is planned; kernels that any fit of this machine compiled
come from Numba's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from daskdml.engine.graphs import Group
from daskdml.kernels.block import Block
from daskdml.kernels.curvature import HessianProduct
from daskdml.kernels.linear import Coordinates, LinearPass
from daskdml.kernels.losses import Squared
from daskdml.kernels.nmf import Coefficients, FactorRows
from daskdml.kernels.ratings import RatingBlock
from daskdml.kernels.sgd import SGDConfig, sgd_block
from daskdml.kernels.targets import Targets
from daskdml.solvers.als import SolveRows
from daskdml.solvers.base import Problem, SolveOf, StatsOf
from daskdml.solvers.dsgd import EXTRA, Steps
from daskdml.solvers.factorization import FirstFactors, Model
from daskdml.solvers.local_sgd import Iterate, Walk


def _one_row(targets: Targets, dtype: np.dtype[Any]) -> Block:
    y = np.zeros(1) if targets.classes is None else targets.classes[:1]
    return Block(np.zeros((1, 1), dtype), y, None)


def rehearse_linear(problem: Problem, dtype: np.dtype[Any], hessian: bool) -> None:
    """Statistics of a row, with a Hessian, or with a step of local SGD and a Hessian's product.

    Parameters
    ----------
    problem : Problem
        Of any number of features.
    dtype : dtype
        Of the rows.
    hessian : bool
        Whether the solver is Newton's method; others may begin with local SGD.
    """
    small = replace(problem, n_features=1, coordinates=Coordinates.identity(1))
    block, theta = _one_row(problem.targets, dtype), small.zeros()
    for curved in (np.dtype(dtype).type,) if hessian else (None, np.float64):
        at = LinearPass(small.loss, small.coordinates, theta, theta, (0.0,), curved)
        StatsOf(small.targets, at)(block)
    if hessian:
        return
    if not isinstance(small.loss, Squared):
        start = Iterate(theta, np.zeros_like(theta), 0.0, 0)
        Walk(small, 0, 0)(start, block, Group(0, 0, 1), 0, 0)
    product = HessianProduct(small.loss, small.coordinates, theta, theta)
    SolveOf(small.targets, product)(block)


def rehearse_sgd(config: SGDConfig, targets: Targets, dtype: np.dtype[Any]) -> None:
    """A step of SGD.

    Parameters
    ----------
    config : SGDConfig
    targets : Targets
    dtype : dtype
        Of the rows.
    """
    block = _one_row(targets, dtype)
    y, s = targets.prepare(block)
    sgd_block(config.init(1), config, block.X, y, s, np.zeros(1, np.int64))


def rehearse_factors(model: Model, rules: tuple[Callable[..., Any], ...]) -> None:
    """Run the rules of a factorization on one rating."""
    zero, one = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    block = RatingBlock(one, zero, np.ones(1, model.dtype))
    U, V = (FirstFactors(model, side)(0, 1) for side in (0, 1))
    for rule in rules:
        if isinstance(rule, SolveRows):
            rule(U, block, V)
        elif isinstance(rule, Steps):
            ones = np.ones((1, EXTRA), model.dtype)
            rule(np.append(U, ones, axis=1), np.append(V, ones, axis=1), block, 1, 0, 0)
        else:
            rule(U, V, block)


def rehearse_nmf(dtype: np.dtype[Any]) -> None:
    """Coefficients of a row.

    Parameters
    ----------
    dtype : dtype
        Of the rows.
    """
    FactorRows(Coefficients(np.ones((1, 1))))(Block(np.ones((1, 1), dtype), None, None))
