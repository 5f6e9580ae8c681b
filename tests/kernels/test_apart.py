"""Sweeps have the same bits wherever the allocator puts their arrays."""

from __future__ import annotations

import numpy as np

from daskdml.kernels.apart import MARGIN, copy_apart
from daskdml.kernels.local_sgd import softmax_sgd_block
from daskdml.kernels.losses import Logistic
from daskdml.kernels.sgd import SGDConfig, sgd_block


def test_bits_do_not_depend_on_addresses():
    """However the heap is littered between two calls, short arrays give the same sums."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    config, found, kept = SGDConfig(Logistic(), alpha=0.01, n_models=3), set(), []
    for _ in range(2000):
        kept.append(np.empty(rng.integers(1, 12)))
        kept = kept[-50:]
        center, scale = np.zeros(5), np.ones(5)
        last, _ = softmax_sgd_block(np.zeros((3, 6)), X.copy(), y, center, scale)
        rows = sgd_block(config.init(5), config, X.copy(), y)
        found.add((last.tobytes(), rows.coef.tobytes(), rows.objective_sum.tobytes()))
    assert len(found) == 1


def test_a_copy_has_margins():
    """The copy equals the array, is contiguous, and nothing else lies near it."""
    array = np.arange(6.0).reshape(2, 3)
    copy = copy_apart(array)
    assert copy.flags.c_contiguous and (copy == array).all()
    assert copy.base.size >= array.size + 2 * MARGIN
