from functools import reduce
from operator import add

import numpy as np
import pytest

from daskdml.kernels.block import Block
from daskdml.kernels.randomized import SketchOf
from daskdml.kernels.targets import DataError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2500, 9)) @ RNG.standard_normal((9, 9)) + 300
Q = np.linalg.qr(RNG.standard_normal((9, 4)))[0]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rows", [2500, 400, 1])
def test_sums_are_those_of_all_rows(rows, dtype):
    """Added over blocks, products are the scatter matrix's, far from the mean of the rows too."""
    data = X.astype(dtype)
    blocks = (Block(data[a : a + rows], None, None) for a in range(0, len(X), rows))
    found = reduce(add, map(SketchOf(Q), blocks))
    exact = data.astype("f8")
    off = exact - exact.mean(axis=0)
    tolerance = 1e-11 if dtype == "f8" else 2e-5
    scale = np.linalg.norm(off) ** 2
    assert found.n == len(X)
    np.testing.assert_allclose(
        found.mean, exact.mean(axis=0), rtol=1e-6 if dtype == "f4" else 1e-12
    )
    np.testing.assert_allclose(found.products, off.T @ (off @ Q), atol=tolerance * scale)
    np.testing.assert_allclose(found.along, found.mean @ Q, rtol=1e-12)
    assert found.spread == pytest.approx(scale, rel=tolerance)
    products, total = found.uncentred()
    np.testing.assert_allclose(products, exact.T @ (exact @ Q), rtol=1e-5)
    assert total == pytest.approx(np.sum(exact**2), rel=1e-6)


def test_rows_that_are_no_numbers():
    """The first NaN is named."""
    bad = X.copy()
    bad[1700, 3] = np.nan
    with pytest.raises(DataError) as error:
        SketchOf(Q)(Block(bad, None, None))
    assert (error.value.row, error.value.column) == (1700, 3)
