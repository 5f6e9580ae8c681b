"""Rows from anywhere have one face."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
import zarr

from daskdml.io import train_test_split, write_dataset
from daskdml.io.dask_rows import DaskSource
from daskdml.io.sources import as_source

X = np.random.default_rng(0).standard_normal((103, 4)).astype("f4")
Y = np.arange(103)


@pytest.fixture
def ds(tmp_path):
    """Give a data set with targets and weights."""
    return write_dataset(tmp_path / "a.zarr", X, Y, Y / 2, chunks=10)


def zarr_array(path, data, chunks):
    """Give a plain Zarr array."""
    return zarr.create_array(path, data=data, chunks=chunks)


def check(source, start=7, stop=58):
    """Assert that a source gives the rows of X and Y."""
    block, _ = source.read(start, stop)
    assert np.array_equal(block.X, X[start:stop])
    assert block.X.dtype == source.dtype and block.X.flags.c_contiguous
    assert np.array_equal(block.y, Y[start:stop])
    assert (source.n_rows, source.n_features) == (103, 4)
    assert source.chunk_bounds[0] == 0 and source.chunk_bounds[-1] == 103
    assert block.nbytes == source.row_nbytes * (stop - start)
    return block


def test_everything_gives_the_same_rows(ds, tmp_path):
    """Data sets, URLs, Zarr arrays of any chunks, arrays, frames and lists read alike."""
    pd = pytest.importorskip("pandas")
    zx = zarr_array(tmp_path / "x.zarr", X, (13, 3))
    zy = zarr_array("memory://y.zarr", Y, (29,))
    for source, in_memory in [
        (as_source(ds), False),
        (as_source(ds.url), False),
        (as_source(ds, storage_options=None), False),
        (as_source(zx, zy), False),
        (as_source(str(tmp_path / "x.zarr"), Y), False),
        (as_source(zx, da.from_array(Y, chunks=9)), False),
        (as_source(X, Y), True),
        (as_source(np.asfortranarray(X), list(Y)), True),
        (as_source(X, zy), True),
        (as_source(pd.DataFrame(X), pd.Series(Y)), True),
    ]:
        check(source)
        assert source.in_memory is in_memory
    assert isinstance(as_source(da.from_array(X), Y), DaskSource)


def test_memory_is_not_copied():
    """Blocks of a C-ordered array of floats are views of it."""
    assert np.shares_memory(as_source(X, Y).read(5, 10)[0].X, X)


@pytest.mark.parametrize(
    ("dtype", "want"), [("i8", "f8"), ("i2", "f4"), ("?", "f4"), ("f2", "f4"), (">f8", "f8")]
)
def test_blocks_are_floats(tmp_path, dtype, want):
    """Numbers of any dtype come as float32 or float64, block by block."""
    x = (X * 3).astype(dtype)
    z = zarr_array(tmp_path / "x.zarr", x, (10, 4))
    for source in (as_source(x), as_source(z), as_source(write_dataset(tmp_path / "d.zarr", x))):
        block, _ = source.read(3, 40)
        assert block.X.dtype == source.dtype == np.dtype(want)
        assert np.array_equal(block.X, x[3:40].astype(want))


def test_parts_given_win(ds):
    """Targets and weights given with a data set take the place of its own."""
    block, _ = as_source(ds, -Y).read(5, 9)
    assert np.array_equal(block.y, -Y[5:9]) and np.array_equal(block.sample_weight, Y[5:9] / 2)
    block, _ = as_source(ds, sample_weight=3).read(5, 9)
    assert np.array_equal(block.y, Y[5:9]) and (block.sample_weight == 3).all()
    train, _ = train_test_split(ds, 0.5, 0)
    own = train.read(0, 51)[0].y
    assert np.array_equal(as_source(train, own * 2).read(4, 20)[0].y, own[4:20] * 2)


def test_parts_on_demand(ds):
    """Only the parts asked for are read."""
    for source in (as_source(ds), as_source(X, Y, Y)):
        block, _ = source.read(3, 8, ("y",))
        assert block.X.shape == (5, 0) and block.sample_weight is None
        assert source.read(3, 8, ("X",))[0].y is None
    source = as_source(X)
    assert not source.has_y and not source.has_sample_weight and source.read(0, 5)[0].y is None


def test_stored_sources_pickle_small(ds, tmp_path):
    """A source on a store travels as its location."""
    z = zarr_array(tmp_path / "x.zarr", X, (10, 4))
    for source in (as_source(ds), as_source(z, zarr_array(tmp_path / "y.zarr", Y, (50,)))):
        message = pickle.dumps(source)
        assert len(message) < 8000
        check(pickle.loads(message))


def test_tokens(ds):
    """Equal tokens mean equal rows: stored ones repeat, those in memory are new each time."""
    assert as_source(ds).token == as_source(ds.url).token != as_source(ds[:50]).token
    assert as_source(ds).token != as_source(ds, Y).token != as_source(ds, Y).token
    assert as_source(X).token != as_source(X).token


def test_names(ds):
    """Feature names come as scikit-learn keeps them; the short name is the last of the URL."""
    pd = pytest.importorskip("pandas")
    source = as_source(pd.DataFrame(X, columns=list("abcd")))
    assert source.feature_names.dtype == object and list(source.feature_names) == list("abcd")
    assert as_source(pd.DataFrame(X)).feature_names is None
    assert as_source(ds).name == "a" and as_source(X).name == "array"


def test_arrays_are_cut_as_data_sets_are():
    """An array in memory has the bounds that a data set of it has."""
    x = np.zeros((50_000, 100), "f4")
    ds = write_dataset("memory://cut.zarr", x, overwrite=True)
    assert as_source(x).chunk_bounds == as_source(ds).chunk_bounds == (0, 40_000, 50_000)


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        ((X, Y[:3]), ValueError, "X has 103, y has 3"),
        ((X, Y, np.ones(3)), ValueError, "sample_weight.shape"),
        ((X[:, 0], Y), ValueError, "Reshape your data"),
        ((X[:0], Y[:0]), ValueError, r"0 sample\(s\)"),
        ((X.astype("c8"), Y), ValueError, "Complex data not supported"),
        ((X, X), ValueError, "y should be a 1d array"),
        ((zarr.array(X), zarr.array(X)), ValueError, "y should be a 1d array"),
        ((zarr.array(X), zarr.array(Y[:3])), ValueError, "X has 103, y has 3"),
        ((zarr.array(Y), zarr.array(Y)), ValueError, "Reshape your data"),
        ((X, Y, None, {"key": "x"}), ValueError, "storage_options go with a URL"),
        ((zarr.create_group({}),), TypeError, r"group\['X'\]"),
    ],
)
def test_bad_input_is_refused(args, error, match):
    """Each mistake has a message of its own."""
    with pytest.raises(error, match=match):
        as_source(*args)


def test_lengths_against_a_data_set(ds):
    """Targets given with a view must have the view's rows."""
    with pytest.raises(ValueError, match="X has 50, y has 103"):
        as_source(ds[:50], Y)
    with pytest.raises(IndexError, match="50"):
        as_source(ds[:50]).read(0, 51)
