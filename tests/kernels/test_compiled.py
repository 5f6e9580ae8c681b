"""Tests of how kernels are compiled."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import daskdml as dml
from daskdml import kernels
from daskdml.engine.run import Inline
from tests.faults.work import digest, learned

COMPILED = {
    f"{module.name}.{name}": function
    for module in pkgutil.iter_modules(kernels.__path__, "daskdml.kernels.")
    for name, function in vars(importlib.import_module(module.name)).items()
    if isinstance(function, Dispatcher) and function.__module__ == module.name
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_a_kernel_calls_becomes_a_part_of_it(name):
    """A second copy of a function, optimised apart, would give other last bits than the first."""
    function = COMPILED[name].py_func
    called = [function.__globals__.get(other) for other in function.__code__.co_names]
    for other in called:
        if isinstance(other, Dispatcher):
            assert other.targetoptions.get("forceinline"), other


def fits() -> None:
    """Say what some factorizations learn: their kernels call other ones, and sum in lanes."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, [60, 50], (1500, 2)), axis=0)
    ratings = (pairs[:, 0], pairs[:, 1], rng.integers(1, 11, len(pairs)) / 2)
    for options in ({}, {"feedback": "implicit"}, {"nonnegative": True}):
        model = dml.MatrixFactorization(20, max_iter=3, tol=0.0, random_state=0, **options)
        with dml.Engine(Inline()):
            sys.stdout.write(digest(learned(model.fit(ratings))) + "\n")


def test_bits_do_not_depend_on_what_was_compiled_before(tmp_path):
    """The process that compiles, and one that loads what it left, learn the same."""
    call = [sys.executable, "-c", "from tests.kernels.test_compiled import fits; fits()"]
    where = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [subprocess.run(call, env=where, capture_output=True, text=True) for _ in range(2)]
    assert all(done.returncode == 0 for done in said), said[0].stderr + said[1].stderr
    assert said[0].stdout == said[1].stdout
    assert len(set(said[0].stdout.split())) == 3
