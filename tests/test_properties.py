"""What holds for any layout, chunking, weights and shape; examples are drawn the same each time."""

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from daskdml import PCA, Engine, KMeans, LinearRegression, LogisticRegression, Ridge
from daskdml.engine.run import Inline, Threads
from daskdml.io import write_dataset
from daskdml.io.chunks import ChunkReader
from daskdml.io.sources import as_source
from tests.engine.simulated import on_simulated_cluster
from tests.engine.simulated_fits import small_blocks

reproducible = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
few, many = settings(reproducible, max_examples=15), settings(reproducible, max_examples=80)
CODECS = [None, ZstdCodec(), ZstdCodec(checksum=True), GzipCodec(), BloscCodec()]
DTYPES = ["f4", "f8", "f2", "i1", "u2", "i4", "i8", ">f8", ">i4", "?"]


def rows_of(seed, n, d, dtype="f8"):
    """Rows of a seed."""
    X = np.random.default_rng(seed).standard_normal((n, d)) * 10
    return X.astype(dtype) if dtype != "?" else X > 0


@st.composite
def stored(draw):
    """An array in some layout, and what it holds."""
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    X = rows_of(draw(st.integers(0, 9)), n, d, draw(st.sampled_from(DTYPES)))
    chunk = draw(st.integers(1, 2 * n)), draw(st.sampled_from([d, d, 1]))
    shards = draw(st.sampled_from([None, None, 1, 3]))
    array = zarr.create_array(
        {}, shape=X.shape, dtype=X.dtype, chunks=chunk, compressors=draw(st.sampled_from(CODECS)),
        shards=None if shards is None else (shards * chunk[0], chunk[1]),
    )  # fmt: skip
    array[:] = X
    return array, X


@many
@given(stored(), st.data())
def test_any_range_of_any_layout_is_read(made, data):
    """Whatever the chunks, shards, codec and dtype: the rows that were written, native order."""
    array, X = made
    start = data.draw(st.integers(0, len(X)))
    stop = data.draw(st.integers(start, len(X)))
    rows, _ = ChunkReader(array).read(start, stop)
    assert (
        rows.dtype == X.dtype.newbyteorder("=")
        and rows.tobytes() == rows.dtype.type(X[start:stop]).tobytes()
    )
    block, _ = as_source(array).read(start, stop)
    assert block.X.dtype in (np.float32, np.float64) and np.array_equal(block.X, X[start:stop])


@many
@given(st.integers(1, 50), st.integers(1, 60), st.sampled_from(["f4", "f8", "i2"]), st.data())
def test_a_written_data_set_is_read_back(n, chunks, dtype, data):
    """X, y and weights, one row or one chunk or many; slices of slices are slices."""
    X, y, w = rows_of(0, n, 3, dtype), np.arange(n) % 3, np.arange(n) / 7
    ds = write_dataset("memory://properties.zarr", X, y, w, chunks=chunks, overwrite=True)
    a = data.draw(st.integers(0, n - 1))
    b = data.draw(st.integers(a + 1, n))
    block, _ = ds[a:][: b - a].read(0, b - a)
    for got, expected in ((block.X, X), (block.y, y), (block.sample_weight, w)):
        assert got.tobytes() == np.ascontiguousarray(expected[a:b]).tobytes()


FITS = {
    "logistic": lambda: LogisticRegression(tol=1e-3),
    "ridge": lambda: Ridge(tol=1e-6),
    "pca": lambda: PCA(1, random_state=0),
    "kmeans": lambda: KMeans(2, n_init=1, random_state=0, max_iter=5),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", FITS)
@few
@given(st.integers(4, 30), st.integers(1, 40), st.integers(1, 3), st.integers(0, 10**6))
def test_bits_are_those_of_the_chunks_alone(name, n, chunks, d, seed):
    """Threads, none, and a cluster whose workers die give the same bits, whatever the chunking."""
    X = rows_of(seed % 10, n, d)
    ds = write_dataset("memory://fits.zarr", X, np.arange(n) % 2, chunks=chunks, overwrite=True)

    def fitted(runner):
        with small_blocks(), Engine(runner):
            model = FITS[name]().fit(ds)
        found = ("coef_", "intercept_", "components_", "cluster_centers_")
        return [np.asarray(getattr(model, a)).tobytes() for a in found if hasattr(model, a)]

    expected = fitted(Inline())
    assert fitted(Threads(3)) == expected
    with on_simulated_cluster(seed) as cluster:
        assert fitted(cluster) == expected


@few
@given(st.integers(6, 40), st.integers(1, 3), st.integers(0, 9), st.integers(1, 50))
def test_integer_weights_are_repeated_rows(n, d, seed, chunks):
    """A row of weight k is k rows, one of weight 0 none: the same coefficients to 1e-6."""
    r = np.random.default_rng(seed)
    X, w = r.standard_normal((n, d)), r.integers(0, 4, n)
    y = np.where(np.arange(n) < 4, np.arange(n) % 2, r.integers(0, 2, n))
    w[:4] += 1
    url = "memory://weights.zarr"
    for model in (LogisticRegression(tol=1e-13), Ridge(alpha=0.5, tol=1e-13)):
        ds = write_dataset(url, X, y, w.astype(float), chunks=chunks, overwrite=True)
        weighted = model.fit(ds).coef_.copy(), np.array(model.intercept_)
        ds = write_dataset(url, np.repeat(X, w, 0), np.repeat(y, w), chunks=chunks, overwrite=True)
        repeated = model.fit(ds).coef_, np.array(model.intercept_)
        for a, b in zip(weighted, repeated, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@few
@given(st.sampled_from([1e-12, 1e-3, 1e6, 1e12]), st.integers(0, 9))
def test_tiny_and_huge_weights(scale, seed):
    """All weights times c, and the penalty as well: the same coefficients to 1e-6."""
    X = rows_of(seed, 40, 3)
    y = X @ [1.0, -2.0, 0.5] + np.arange(40) % 3
    w = np.random.default_rng(seed).random(40) + 0.1
    plain = Ridge(alpha=0.3, tol=1e-13).fit(X, y, w)
    scaled = Ridge(alpha=0.3 * scale, tol=1e-13).fit(X, y, w * scale)
    np.testing.assert_allclose(scaled.coef_, plain.coef_, rtol=1e-6, atol=1e-6)


@few
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["f4", "f8", "i4", "?"]))
def test_few_rows_and_features(n, d, dtype):
    """One row, one feature, fewer rows than features: finite coefficients, zero residual slope."""
    X, y = rows_of(1, n, d, dtype), np.arange(n, dtype=float)
    model = Ridge(alpha=1.0, tol=1e-12).fit(X, y)
    rows = X.astype(float)
    residual = y - rows @ model.coef_ - model.intercept_
    np.testing.assert_allclose(rows.T @ residual, 1.0 * model.coef_, atol=1e-4)
    assert np.isfinite(LinearRegression().fit(rows, y).coef_).all()
