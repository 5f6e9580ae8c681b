"""Data sets are written whole or not at all, from anything."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdml.io import open_dataset, write_dataset

X = np.random.default_rng(0).standard_normal((53, 4)).astype("f4")
Y = np.arange(53)
URLS = ["{}/a.zarr", "memory://{}/a.zarr"]


def rows(ds):
    """Give a data set's only block."""
    return ds.read(0, len(ds))[0]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "?", ">f4"])
def test_arrays_come_back(tmp_path, url, dtype):
    """NumPy arrays are stored in their dtype (native byte order), with y and weights."""
    x = (X * 3).astype(dtype)
    ds = write_dataset(url.format(tmp_path), x, Y, Y / 2, chunks=10)
    block = rows(ds)
    assert ds.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(block.X, x) and np.array_equal(block.y, Y)
    assert np.array_equal(block.sample_weight, Y / 2)


@pytest.mark.parametrize("chunks", [1, 7, 53, 54, 1000, None])
def test_chunks_hold_the_rows_asked_for(tmp_path, chunks):
    """Chunks of all parts have the same rows, never more than there are."""
    ds = write_dataset(tmp_path / "a.zarr", X, Y, np.ones(53), chunks=chunks)
    group = zarr.open_group(ds.url)
    assert {group[p].chunks[0] for p in ("X", "y", "sample_weight")} == {min(chunks or 53, 53)}
    assert group["X"].chunks[1] == 4
    assert np.array_equal(rows(ds).X, X)


def test_chunks_default_to_16_MB(tmp_path):
    """Without a wish, a chunk holds 16 MB of X."""
    ds = write_dataset(tmp_path / "a.zarr", np.zeros((50_000, 100), "f4"))
    assert ds.chunks == 40_000


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    chunks=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_any_size_are_chunked_again(sizes, chunks):
    """An iterator's blocks become chunks of equal rows, in order, whatever their sizes."""
    n = sum(sizes)
    x, y = np.arange(2.0 * n).reshape(n, 2), np.arange(n)
    ends = np.cumsum([0, *sizes])
    blocks = ((x[a:b], y[a:b]) for a, b in itertools.pairwise(ends))
    if n == 0:
        with pytest.raises(ValueError, match="0 sample"):
            write_dataset("memory://stream.zarr", blocks, chunks=chunks, overwrite=True)
        return
    ds = write_dataset("memory://stream.zarr", blocks, chunks=chunks, overwrite=True)
    assert np.array_equal(rows(ds).X, x) and np.array_equal(rows(ds).y, y)
    assert ds.chunks == min(chunks, n)


def test_blocks_without_targets_or_with_weights(tmp_path):
    """Blocks may be X alone, or X, y and weights."""
    ds = write_dataset(tmp_path / "a.zarr", iter([X[:20], X[20:]]))
    assert np.array_equal(rows(ds).X, X) and not ds.has_y
    blocks = [(X[:20], Y[:20], Y[:20]), (X[20:], Y[20:], Y[20:])]
    ds = write_dataset(tmp_path / "b.zarr", iter(blocks))
    assert np.array_equal(rows(ds).sample_weight, Y)


LABELS = np.array(["no", "yes", "a", "maybe"])[Y % 4]


@pytest.mark.parametrize("kind", ["U", "O", "S"])
def test_string_targets_come_back(tmp_path, kind):
    """Labels are stored as codes of the sorted class names and read as they were."""
    y = LABELS.astype(kind)
    streams = iter([(X[:1], y[:1]), (X[1:20], y[1:20]), (X[20:], y[20:])])
    for i, ds in enumerate(
        [
            write_dataset(tmp_path / "a.zarr", X, y, chunks=10),
            write_dataset(tmp_path / "b.zarr", streams, chunks=10),
        ]
    ):
        assert np.array_equal(rows(ds).y, LABELS), i
        assert ds.class_names == ("a", "maybe", "no", "yes")
        assert zarr.open_group(ds.url)["y"].dtype == np.int32
        assert ds.dtype_of("y").kind == "U"


def test_class_names(tmp_path):
    """Given names fix the codes of strings, and are a mere note for numbers."""
    names = ["yes", "no", "maybe", "a"]
    ds = write_dataset(tmp_path / "a.zarr", X, LABELS, class_names=names)
    assert ds.class_names == tuple(names) and np.array_equal(rows(ds).y, LABELS)
    assert zarr.open_group(ds.url)["y"][0] == 1
    ds = write_dataset(tmp_path / "b.zarr", X, Y, class_names=names)
    assert ds.class_names == tuple(names) and np.array_equal(rows(ds).y, Y)
    with pytest.raises(ValueError, match=r"'a', which is not in class_names"):
        write_dataset(tmp_path / "c.zarr", X, LABELS, class_names=["no", "yes"])


def test_frames_bring_their_names(tmp_path):
    """A DataFrame's columns become feature names; mixed numbers get one dtype."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": Y.astype("i2"), "b": X[:, 0], "c": Y > 3})
    ds = write_dataset(tmp_path / "a.zarr", frame, pd.Series(LABELS))
    assert ds.feature_names == ("a", "b", "c") and ds.dtype == np.float32
    assert np.array_equal(rows(ds).X, frame.to_numpy("f4"))
    assert np.array_equal(rows(ds).y, LABELS)
    with pytest.raises(ValueError, match="column 's' has dtype"):
        write_dataset(tmp_path / "b.zarr", pd.DataFrame({"s": list("ab")}))


def test_notes_come_back(tmp_path):
    """Feature names and metadata are kept; wrong ones are refused before writing."""
    ds = write_dataset(
        tmp_path / "a.zarr", X, feature_names=list("abcd"), metadata={"source": "dice"}
    )
    assert ds.feature_names == tuple("abcd") and ds.metadata == {"source": "dice"}
    with pytest.raises(ValueError, match="3 names for 4 columns"):
        write_dataset(tmp_path / "b.zarr", X, feature_names=list("abc"))
    with pytest.raises(TypeError, match="JSON"):
        write_dataset(tmp_path / "b.zarr", X, metadata={"f": open})
    assert os.listdir(tmp_path) == ["a.zarr"]


class Boom(Exception):
    """What a user's iterator raises."""


def broken(error=Boom):
    """Give some blocks, then fail."""
    for i in range(5):
        yield X[i : i + 10], Y[i : i + 10]
    raise error


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("url", URLS)
def test_a_failure_leaves_nothing_and_damages_nothing(tmp_path, url, error, overwrite):
    """After an exception or Ctrl-C the target is as it was, and no temporary is left."""
    import fsspec

    url = url.format(tmp_path)
    if overwrite:
        write_dataset(url, X, Y, chunks=7)
    fs, path = fsspec.core.url_to_fs(url)
    before = {f: fs.cat_file(f) for f in fs.find(os.path.dirname(path))}
    with pytest.raises(error):
        write_dataset(url, broken(error), chunks=3, overwrite=overwrite)
    assert {f: fs.cat_file(f) for f in fs.find(os.path.dirname(path))} == before
    if overwrite:
        assert np.array_equal(rows(open_dataset(url)).X, X)
    else:
        with pytest.raises(FileNotFoundError):
            open_dataset(url)
        write_dataset(url, X)


@pytest.mark.parametrize("url", URLS)
def test_nothing_is_there_before_all_of_it_is(tmp_path, url):
    """While blocks are still coming, the URL does not open, or opens the older data set."""
    url = url.format(tmp_path)
    seen = []

    def blocks():
        for i in range(0, 50, 10):
            try:
                seen.append(len(open_dataset(url)))
            except (FileNotFoundError, ValueError) as error:
                seen.append(type(error))
            yield X[i : i + 10]

    write_dataset(url, blocks(), chunks=5)
    assert set(seen) <= {FileNotFoundError, ValueError}
    seen.clear()
    ds = write_dataset(url, (b for b in (*blocks(), X[:3])), chunks=5, overwrite=True)
    assert set(seen) == {50} and len(ds) == 53


@pytest.mark.parametrize("url", URLS)
def test_overwriting_leaves_only_the_new(tmp_path, url):
    """overwrite=True replaces, also twice; without it the target that exists is named."""
    url = url.format(tmp_path)
    write_dataset(url, X, Y, chunks=7)
    with pytest.raises(FileExistsError, match=r"a\.zarr exists; pass overwrite=True"):
        write_dataset(url, X)
    for n in (20, 30):
        ds = write_dataset(url, X[:n], chunks=6, overwrite=True)
        assert np.array_equal(rows(ds).X, X[:n]) and not ds.has_y
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    assert len([f for f in fs.find(path) if "/c/" in f]) == 5
    assert [f.rstrip("/").endswith("a.zarr") for f in fs.ls(os.path.dirname(path), False)] == [True]


def test_what_is_no_data_set_is_never_overwritten(tmp_path):
    """A directory with other files stays, even with overwrite=True; an empty one is used."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="is no data set"):
        write_dataset(tmp_path / "docs", X, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert len(write_dataset(tmp_path / "empty", X)) == 53
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is no data set"):
        write_dataset(tmp_path / "file", X, overwrite=True)


def test_no_write_permission_is_told():
    """A place that takes no files is named, with the cure."""
    if not os.path.isdir("/sys/kernel"):
        pytest.skip("needs a file system that nobody may write to")
    with pytest.raises(PermissionError, match=r"/sys/kernel/a\.zarr cannot be written"):
        write_dataset("/sys/kernel/a.zarr", X)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((X, Y[:50]), "inconsistent numbers of samples: X has 53, y has 50"),
        ((X, Y, np.ones(3)), r"sample_weight.shape == \(3,\), expected \(53,\)"),
        ((X[:0],), r"0 sample\(s\)"),
        ((X[:, :0],), r"0 feature\(s\)"),
        ((X[:, 0],), "Expected 2D array, got 1D array"),
        ((X[None],), "dim 3"),
        ((X.astype("c8"),), "Complex data not supported"),
        ((X.astype("U8"),), "not numeric"),
        ((X, X[:, :2]), "y should be a 1d array"),
        ((iter([(X, Y[:50])]),), "block 0: .*X has 53, y has 50"),
        ((iter([X, X[:, :2]]),), "2 columns, the blocks before it 4"),
        ((iter([X, X.astype("f8")]),), "dtype float64, the first one had float32"),
        ((iter([(X, Y), X]),), "block 1 has"),
        ((iter([(X, Y, Y, Y)]),), "tuple of 4"),
        ((iter([X]), Y), "within the blocks"),
        ((iter([(X, Y), (X, Y / 2)]),), "a block of y has dtype float64"),
        ((X, np.array([None] * 53)), "unknown label type"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(tmp_path, args, match):
    """Each mistake has a message of its own, and leaves no files."""
    with pytest.raises((ValueError, TypeError), match=match):
        write_dataset(tmp_path / "a.zarr", *args)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("chunks", [0, -1, 2.5, "10"])
def test_bad_chunks_are_refused(tmp_path, chunks):
    """Chunks are a positive number of rows."""
    with pytest.raises(ValueError, match="chunks="):
        write_dataset(tmp_path / "a.zarr", X, chunks=chunks)


def test_chunks_too_large_for_the_compressor_are_refused(tmp_path):
    """A chunk beyond 2 GiB is an error before anything is written."""
    import dask.array as da

    with pytest.raises(ValueError, match=r"a chunk of 6000000 rows.*pass fewer rows as chunks="):
        write_dataset(tmp_path / "a.zarr", da.zeros((6_000_000, 100), dtype="f4"), chunks=10**7)
    assert os.listdir(tmp_path) == []


def test_zeros_are_written(tmp_path):
    """Chunks of zeros are stored as any other, so that a missing one is always damage."""
    ds = write_dataset(tmp_path / "a.zarr", np.zeros((20, 2)), chunks=5)
    assert len(os.listdir(tmp_path / "a.zarr/X/c")) == 4
    assert (rows(ds).X == 0).all()
