"""Sweeps have the same bits wherever the allocator puts their arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from daskdml.kernels.apart import MARGIN, aligned, copy_apart
from daskdml.kernels.local_sgd import softmax_sgd_block
from daskdml.kernels.losses import Logistic
from daskdml.kernels.sgd import SGDConfig, sgd_block


def test_bits_do_not_depend_on_addresses():
    """However the heap is littered between two calls, short arrays give the same sums."""
    rng = np.random.default_rng(0)
    X, y, d = rng.normal(size=(40, 20)), rng.integers(0, 4, 40), 20
    W, center, scale = rng.normal(size=(4, d + 1)), rng.normal(size=d), rng.uniform(0.5, 2.0, d)
    found = set()
    for _ in range(1000):
        litter = [np.empty(rng.integers(1, 40)) for _ in range(rng.integers(0, 8))]
        copies = [center.copy() for _ in range(10)]
        at, of = copies[rng.integers(10)], scale.copy()
        del litter, copies
        last, mean = softmax_sgd_block(W, X, y, at, of, l2=1e-3)
        found.add((last.tobytes(), mean.tobytes()))
    assert len(found) == 1
    config = SGDConfig(Logistic(), alpha=0.01, n_models=4)
    rows = {sgd_block(config.init(d), config, X.copy(), y).coef.tobytes() for _ in range(100)}
    assert len(rows) == 1


def test_a_copy_has_margins():
    """The copy equals the array, is contiguous, and nothing else lies near it."""
    array = np.arange(6.0).reshape(2, 3)
    copy = copy_apart(array)
    assert copy.flags.c_contiguous and (copy == array).all()
    assert copy.base.size >= array.size + 2 * MARGIN


@dataclass(frozen=True)
class Holder:
    """Has an array."""

    array: np.ndarray
    name: str = ""

    def plus(self, x):
        """The array and a number."""
        return self.array + x


def odd(n=3):
    """An array at an odd address, in columns."""
    return np.frombuffer(bytearray(16 * n + 1), np.float64, offset=1).reshape((2, n), order="F")


def test_arrays_are_aligned_wherever_they_are():
    """Whatever holds them; their layout and numbers stay, and what is aligned is not copied."""
    for value in (odd(), [odd()], {"a": (odd(), 1)}, Holder(odd()), partial(np.add, odd())):
        assert not in_arrays(value) and in_arrays(aligned(value))
    other = aligned(Holder(odd(), "h").plus)
    assert in_arrays(other.__self__) and other(1.0).all() and other.__self__.name == "h"
    assert aligned(odd()).flags.f_contiguous
    whole = [Holder(np.ones(3)), (np.ones(2), {"a": partial(np.add, np.ones(1))})]
    assert aligned(whole) is whole


def in_arrays(value):
    """Whether the first array in a value is aligned."""
    while not isinstance(value, np.ndarray):
        if isinstance(value, partial):
            value = value.args
        elif isinstance(value, Holder):
            value = value.array
        value = value["a"] if isinstance(value, dict) else value
        value = value[0] if isinstance(value, list | tuple) else value
    return value.flags.aligned
