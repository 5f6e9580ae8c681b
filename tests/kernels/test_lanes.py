"""Vectors of eight numbers do what NumPy does, lane by lane."""

import numba as nb
import numpy as np
import pytest

from daskdml.kernels.lanes import LANES, add, fma, fnma, load, mul, rsqrt, splat, store


@nb.njit
def everything(X, c, out):
    """Each operation on rows 0, 1, 2 of X, from column 3 on; results are rows of out."""
    x, y, z = load(X, 0, 3), load(X, 1, 3), load(X, 2, 3)
    store(out, 0, 1, x)
    store(out, 1, 1, splat(c))
    store(out, 2, 1, add(x, y))
    store(out, 3, 1, mul(x, y))
    store(out, 4, 1, fma(x, y, z))
    store(out, 5, 1, fnma(x, y, z))
    store(out, 6, 1, rsqrt(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_lane_is_its_own(dtype):
    """Unaligned rows are read and written; nothing beside them changes."""
    X = np.random.default_rng(0).uniform(0.5, 2, (3, 13)).astype(dtype)
    out = np.full((7, LANES + 2), -1, dtype)
    everything(X, dtype(2.5), out)
    x, y, z = X[:, 3 : 3 + LANES].astype(float)
    expected = [x, np.full(LANES, 2.5), x + y, x * y, x * y + z, z - x * y, 1 / np.sqrt(x)]
    tiny = 4 * np.finfo(dtype).eps
    assert np.allclose(out[:, 1:-1], expected, rtol=tiny, atol=4 * tiny)
    assert (out[:, [0, -1]] == -1).all()
