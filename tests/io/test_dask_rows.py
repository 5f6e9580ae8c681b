"""Dask's rows: aligned blocks for the engine, chunks of a new data set."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from daskdml.io import write_dataset
from daskdml.io.dask_rows import DaskSource, known_chunks

X = np.random.default_rng(0).standard_normal((103, 4)).astype("f4")
Y = np.arange(103)
KEEP = X[:, 0] > 0.3


@pytest.fixture(autouse=True)
def _one_thread():
    """Run Dask in this thread."""
    with dask.config.set(scheduler="sync"):
        yield


def blocks_of(source):
    """Compute all blocks of a source from its graph and keys."""
    graph = source.graph()
    n = len(source.block_sizes)
    return [dask.get(graph, [list(k) for k in source.block_keys(i)]) for i in range(n)]


def joined(source):
    """Give X, y and weights of a source, checked to be aligned."""
    blocks = blocks_of(source)
    for (x, *others), n in zip(blocks, source.block_sizes, strict=True):
        assert x[0].shape == (n, source.n_features) and x[0].flags.c_contiguous
        assert x[0].dtype == source.dtype
        assert all(len(o[0]) == n for o in others if o)
    return [np.concatenate([b[i][0] for b in blocks]) if blocks[0][i] else None for i in range(3)]


CASES = {
    "aligned": (da.from_array(X, chunks=(10, 4)), da.from_array(Y, chunks=10)),
    "misaligned": (da.from_array(X, chunks=(10, 4)), da.from_array(Y, chunks=17)),
    "column chunks": (da.from_array(X, chunks=(10, 2)), da.from_array(Y, chunks=10)),
    "numpy y": (da.from_array(X, chunks=(10, 4)), Y),
    "column y": (da.from_array(X, chunks=(10, 4)), da.from_array(Y[:, None], chunks=(20, 1))),
    "F order": (da.from_array(np.asfortranarray(X), chunks=(10, 4)), Y),
    "empty blocks": (
        da.from_array(X, chunks=((0, 50, 0, 53, 0), (4,))),
        da.from_array(Y, chunks=((3, 0, 100),)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_hold_the_rows(case):
    """Whatever the chunks, the blocks are the rows in order, X and y together."""
    x, y = CASES[case]
    source = DaskSource.of(x, y)
    got_x, got_y, got_w = joined(source)
    assert np.array_equal(got_x, X) and np.array_equal(got_y, Y) and got_w is None
    assert source.chunk_bounds == (0, *np.cumsum(source.block_sizes))
    assert (source.n_rows, source.has_y, source.has_sample_weight) == (103, True, False)


@pytest.mark.parametrize("case", CASES)
def test_written_data_sets_hold_the_rows(tmp_path, case):
    """Whatever the chunks, the written rows are those of the arrays."""
    x, y = CASES[case]
    ds = write_dataset(tmp_path / "a.zarr", x, y, np.ones(103), chunks=20)
    block, _ = ds.read(0, 103)
    assert np.array_equal(block.X, X) and np.array_equal(block.y, Y) and ds.chunks == 20


def test_unknown_lengths_are_computed_once(tmp_path):
    """Blocks of unknown length are counted in one computation; the input stays as it was."""
    counts = []

    def count(block):
        counts.append(len(block))
        return block

    x = da.from_array(X, chunks=(10, 4)).map_blocks(count, dtype=X.dtype, meta=X[:0])
    keep = x[:, 0] > 0.3
    x, y = x[keep], da.from_array(Y, chunks=10)[da.from_array(KEEP, chunks=10)]
    known_x, known_y, _ = known_chunks(x, y)
    assert len(counts) == 11
    assert np.isnan(x.shape[0]) and known_x.shape[0] == known_y.shape[0] == KEEP.sum()
    got_x, got_y, _ = joined(DaskSource.of(x, y))
    assert np.array_equal(got_x, X[KEEP]) and np.array_equal(got_y, Y[KEEP])
    block, _ = write_dataset(tmp_path / "a.zarr", x, y).read(0, int(KEEP.sum()))
    assert np.array_equal(block.X, X[KEEP]) and np.array_equal(block.y, Y[KEEP])


@pytest.mark.parametrize(("dtype", "want"), [("i8", "f8"), ("?", "f4"), ("f2", "f4"), ("O", "f8")])
def test_blocks_are_floats(dtype, want):
    """Integers, booleans and objects that are numbers come in a working dtype."""
    x = (X > 0).astype(dtype)
    source = DaskSource.of(da.from_array(x, chunks=(30, 4)), Y)
    assert source.dtype == np.dtype(want)
    assert np.array_equal(joined(source)[0], x.astype(want))


def test_weights_travel_along():
    """Weights of any kind have X's blocks."""
    for w, want in [(Y, Y), (da.from_array(Y, chunks=50), Y), (2.0, np.full(103, 2.0))]:
        source = DaskSource.of(da.from_array(X, chunks=(10, 4)), Y, w)
        assert np.array_equal(joined(source)[2], want)


def test_tokens_name_the_rows():
    """The same collections have the same token, others another one."""
    x = da.from_array(X, chunks=(10, 4))
    tokens = [DaskSource.of(x, Y).token, DaskSource.of(x, Y).token, DaskSource.of(x + 1, Y).token]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize("names", [["b", "a", "c"], [b"b", b"a", b"c"]])
def test_strings_become_codes(tmp_path, names):
    """String targets of Dask are stored as codes of their sorted names."""
    y = np.array(names, dtype=object)[Y % 3]
    ds = write_dataset(
        tmp_path / "a.zarr", da.from_array(X, chunks=(10, 4)), da.from_array(y, chunks=17)
    )
    assert ds.class_names == ("a", "b", "c")
    assert np.array_equal(ds.read(0, 103)[0].y, np.array(["b", "a", "c"])[Y % 3])
    assert zarr.open_group(ds.url)["y"].dtype == np.int32


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((da.ones((10, 2)), da.ones(9)), "X has 10, y has 9"),
        ((da.ones((10, 2)), np.ones(9)), "X has 10, y has 9"),
        ((da.ones((10, 2)), None, da.ones(9)), "X has 10, sample_weight has 9"),
        ((da.ones(10),), "Expected 2D array, got 1D"),
        ((da.ones((0, 2)),), r"0 sample\(s\)"),
        ((da.ones((10, 2), dtype="c8"),), "Complex data not supported"),
        ((da.ones((10, 2)), da.ones((10, 2))), "y should be a 1d array"),
    ],
)
def test_bad_collections_are_refused(tmp_path, args, match):
    """Shapes, lengths and dtypes are checked before anything is computed or written."""
    with pytest.raises(ValueError, match=match):
        DaskSource.of(*args)
    with pytest.raises(ValueError, match=match):
        write_dataset(tmp_path / "a.zarr", *args)
    assert not list(tmp_path.iterdir())


def test_a_task_that_fails_leaves_nothing(tmp_path):
    """Where a block cannot be computed, the target does not appear."""

    def fail(block):
        raise RuntimeError("no such block")

    x = da.from_array(X, chunks=(10, 4)).map_blocks(fail, dtype="f4", meta=X[:0])
    with pytest.raises(RuntimeError, match="no such block"):
        write_dataset(tmp_path / "a.zarr", x)
    assert not list(tmp_path.iterdir())


def test_dask_frames(tmp_path):
    """Dask DataFrames bring names; unknown lengths and empty partitions are handled."""
    dd = pytest.importorskip("dask.dataframe")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcd")).assign(y=Y)
    ddf = dd.from_pandas(frame, npartitions=5)
    ddf = ddf[ddf.y >= 40]
    source = DaskSource.of(ddf[list("abcd")], ddf.y)
    got_x, got_y, _ = joined(source)
    assert np.array_equal(got_x, X[40:]) and np.array_equal(got_y, Y[40:])
    assert list(source.feature_names) == list("abcd")
    ds = write_dataset(tmp_path / "a.zarr", ddf[list("abcd")], ddf.y)
    assert ds.feature_names == tuple("abcd") and np.array_equal(ds.read(0, 63)[0].X, X[40:])


@pytest.mark.cluster
def test_writing_on_a_cluster(tmp_path):
    """Worker processes write the chunks; what they write is whole."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster),
        dask.config.set(scheduler=None),
    ):
        ds = write_dataset(tmp_path / "a.zarr", da.from_array(X, chunks=(10, 4)), Y, chunks=25)
    assert np.array_equal(ds.read(0, 103)[0].X, X)
