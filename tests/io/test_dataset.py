"""Data sets are opened, sliced, read and split."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import zarr

from daskdml.io import Dataset, open_dataset, train_test_split, write_dataset
from daskdml.io.chunks import ChunkError

X = np.random.default_rng(0).standard_normal((103, 4)).astype("f4")
Y = np.arange(103)


@pytest.fixture
def ds(tmp_path):
    """Give a data set of 103 rows in chunks of 10."""
    return write_dataset(tmp_path / "a.zarr", X, Y, np.ones(103), chunks=10)


def everything(ds: Dataset) -> np.ndarray:
    """Give all targets of a view."""
    return ds.read(0, len(ds), ("y",))[0].y


def test_what_a_data_set_says_of_itself(ds, tmp_path):
    """Shape, dtype, chunks, bytes and parts are those that were written."""
    assert (ds.shape, ds.n_rows, ds.n_features, len(ds)) == ((103, 4), 103, 4, 103)
    assert (ds.dtype, ds.chunks, ds.nbytes) == (np.float32, 10, 103 * 16)
    assert ds.has_y and ds.has_sample_weight
    assert ds.url == str(tmp_path / "a.zarr")
    assert ds.chunk_bounds == (*range(0, 101, 10), 103)
    for text in (repr(ds), ds._repr_html_()):
        assert "103 rows x 4 features, float32" in text
        assert "11 of 10 rows" in text and "a.zarr" in text and "1.65 kB" in text


@pytest.mark.parametrize("rows", [slice(5, 40), slice(-20, None), slice(None), slice(60, 10)])
def test_slices_are_those_of_numpy(ds, rows):
    """A slice shows the rows that NumPy's slice does, and slices of it do, too."""
    assert np.array_equal(everything(ds[rows]), Y[rows])
    assert np.array_equal(everything(ds[rows][3:-2]), Y[rows][3:-2])


@pytest.mark.parametrize("index", [3, slice(0, 10, 2), (slice(3), 1), [1, 2], "y"])
def test_other_indices_are_refused(ds, index):
    """Only slices of consecutive rows are views."""
    with pytest.raises(TypeError, match=r"ds\[:1000\]"):
        ds[index]


def test_parts_are_read_on_demand(ds):
    """Only what is asked for is read; X that is not comes with no columns."""
    block, stats = ds[7:].read(10, 30, ("y",))
    assert block.X.shape == (20, 0) and block.sample_weight is None
    assert np.array_equal(block.y, Y[17:37])
    both = ds[7:].read(10, 30)
    assert np.array_equal(both[0].X, X[17:37]) and both[1].nbytes > stats.nbytes
    with pytest.raises(ValueError, match="unknown parts"):
        ds.read(0, 1, ("Z",))
    with pytest.raises(IndexError, match="103"):
        ds.read(0, 104)


def test_pickles_are_tiny_and_read_the_same(ds):
    """A pickle is the URL and the view, and opens the arrays by itself."""
    train, _ = train_test_split(ds, random_state=0)
    copy = pickle.loads(pickle.dumps(train))
    assert len(pickle.dumps(train)) < 600
    assert np.array_equal(everything(copy), everything(train))
    assert copy.token == train.token


def test_tokens_name_the_rows(ds, tmp_path):
    """The same rows have the same token, other rows another one, also after overwriting."""
    again = open_dataset(ds.url)
    assert again.token == ds.token and again[:5].token == ds[:5].token
    assert len({ds.token, ds[:5].token, ds[5:].token}) == 3
    assert write_dataset(ds.url, X, overwrite=True).token != ds.token


def test_an_overwritten_data_set_is_not_mixed_up(ds):
    """A copy that travelled before an overwrite says so rather than read other rows."""
    message = pickle.dumps(ds)
    assert len(ds) == 103
    write_dataset(ds.url, X[:50], overwrite=True)
    for old in (ds, pickle.loads(message)):
        with pytest.raises(ValueError, match="overwritten since"):
            old.read(0, 1)
        assert "cannot be opened" in repr(old)


def test_secrets_are_not_shown(tmp_path):
    """Storage options travel in pickles, but are in no text about the data set."""
    ds = write_dataset("memory://secret.zarr", X, storage_options={"token": "hush"}, overwrite=True)
    assert ds.storage_options == {"token": "hush"}
    assert "hush" not in repr(ds) + ds._repr_html_() + ds.token


@pytest.mark.parametrize("test_size", [0.25, 0.1, 1, 50, 0.98])
@pytest.mark.parametrize("shuffle", [True, False])
def test_splits_are_partitions(ds, test_size, shuffle):
    """Every row is on one side; the test side has the size that scikit-learn gives it."""
    train, test = train_test_split(ds, test_size, 0, shuffle)
    n = test_size if isinstance(test_size, int) else int(np.ceil(test_size * 103))
    assert (len(train), len(test)) == (103 - n, n)
    assert sorted([*everything(train), *everything(test)]) == list(range(103))
    if not shuffle:
        assert np.array_equal(everything(test), Y[103 - n :])


def test_splits_of_views_and_of_splits(ds):
    """Views of any kind are split again; rows come with their own X."""
    train, test = train_test_split(ds[13:90], 0.3, 1)
    fit, held = train_test_split(train[2:], 0.5, 1)
    parts = [*everything(test), *everything(train[:2]), *everything(fit), *everything(held)]
    assert sorted(parts) == list(range(13, 90))
    block, _ = fit.read(3, 20)
    assert np.array_equal(block.X, X[block.y])


def test_seeds_of_a_split(ds):
    """The same seed gives the same rows, another seed others, None new ones; generators count."""
    rows = [tuple(everything(train_test_split(ds, 0.5, s)[1])) for s in (0, 0, 1, None, None)]
    assert rows[0] == rows[1] and len(set(rows)) == 4
    for make in (np.random.default_rng, np.random.RandomState):
        a, b = (tuple(everything(train_test_split(ds, 0.5, make(3))[1])) for _ in range(2))
        assert a == b


@pytest.mark.parametrize("test_size", [0, 103, 0.0, 1.0, -0.2, 1.5, 200])
def test_splits_with_an_empty_side_are_refused(ds, test_size):
    """A size that leaves no rows on a side is an error."""
    with pytest.raises(ValueError, match="test_size"):
        train_test_split(ds, test_size)


def test_dask_arrays_of_a_view(ds):
    """to_dask() gives the view's rows, chunked as they are stored, and any slice of them."""
    _, test = train_test_split(ds, 0.5, 0)
    block, _ = test.read(0, len(test))
    dx, dy = test.to_dask()
    assert dx.chunks[0] == tuple(np.diff(test.chunk_bounds)) == dy.chunks[0]
    assert np.array_equal(dx.compute(scheduler="sync"), block.X)
    assert np.array_equal(dy.compute(scheduler="sync"), block.y)
    assert np.array_equal(dx[7, 1:].compute(scheduler="sync"), block.X[7, 1:])
    assert write_dataset("memory://x.zarr", X, overwrite=True).to_dask()[1] is None


def test_anyone_can_read_it_with_zarr(ds):
    """The layout is plain Zarr v3: named arrays in a group."""
    group = zarr.open_group(ds.url, mode="r")
    assert np.array_equal(group["X"][:], X) and np.array_equal(group["y"][:], Y)
    assert group.attrs["daskdml"]["format"] == 1


def test_groups_of_others_are_data_sets_too(tmp_path):
    """A Zarr v3 group with X and y in any chunks opens; absent chunks are its fill value."""
    group = zarr.create_group(tmp_path / "g.zarr")
    x = group.create_array("X", shape=(20, 3), chunks=(6, 2), dtype="f8", fill_value=2)
    group.create_array("y", data=np.arange(20), chunks=(7,))
    x[:6] = 1
    ds = open_dataset(tmp_path / "g.zarr")
    block, _ = ds[3:].read(0, 17)
    assert np.array_equal(block.X, x[3:]) and np.array_equal(block.y, np.arange(3, 20))


def test_a_v2_group_is_refused_with_the_cure(tmp_path):
    """Zarr v2 groups are told from v3, and how to copy them; the copy works."""
    group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=2)
    group["X"], group["y"] = X, Y
    with pytest.raises(ValueError, match=r"Zarr v2.*write_dataset"):
        open_dataset(tmp_path / "g.zarr")
    g = zarr.open(tmp_path / "g.zarr", mode="r")
    ds = write_dataset(tmp_path / "new.zarr", g["X"], g["y"])
    assert np.array_equal(ds.read(0, 103)[0].X, X)


def edit(ds, **changes):
    """Change the attributes of a data set on disk."""
    path = f"{ds.url}/zarr.json"
    with open(path) as file:
        meta = json.load(file)
    meta["attributes"]["daskdml"] |= changes
    with open(path, "w") as file:
        json.dump(meta, file)


def test_unfinished_and_newer_data_sets_are_refused(ds):
    """What is not whole, or of a later format, is not opened."""
    edit(ds, complete=False)
    with pytest.raises(ValueError, match="unfinished"):
        open_dataset(ds.url)
    edit(ds, complete=True, format=2)
    with pytest.raises(ValueError, match=r"format 2.*update daskdml"):
        open_dataset(ds.url)


def test_single_arrays_and_groups_without_X_are_refused(tmp_path, ds):
    """A Zarr array is not a data set, nor is a group without X or with a flat one."""
    with pytest.raises(ValueError, match="single Zarr array"):
        open_dataset(f"{ds.url}/X")
    group = zarr.create_group(tmp_path / "g.zarr")
    with pytest.raises(ValueError, match="without an array X"):
        open_dataset(tmp_path / "g.zarr")
    group.create_array("X", data=Y)
    with pytest.raises(ValueError, match="rows x features"):
        open_dataset(tmp_path / "g.zarr")


def test_lengths_that_differ_are_told(tmp_path):
    """A group whose y has another length than X is refused, with both numbers."""
    group = zarr.create_group(tmp_path / "g.zarr")
    group.create_array("X", data=X)
    group.create_array("y", data=Y[:50])
    with pytest.raises(ValueError, match=r"y has shape \(50,\), but X has 103"):
        open_dataset(tmp_path / "g.zarr")


def test_a_lost_chunk_is_named(ds):
    """A chunk that is gone from the disk is an error with its path; the others are read."""
    shutil.rmtree(f"{ds.url}/X/c/3")
    assert len(ds.read(0, 30)[0].X) == 30
    with pytest.raises(ChunkError, match=r"a\.zarr/X/c/3/0 is missing"):
        ds.read(25, 35)


def in_blocks():
    """The same rows from an iterator."""
    yield X, Y, np.ones(103)


@pytest.mark.parametrize("kind", ["arrays", "blocks", "dask"])
def test_a_lost_array_is_named(kind, tmp_path):
    """What was written is noted, and its loss told; a data set without the note is what it is."""
    import dask.array as da

    url, parts = tmp_path / "a.zarr", {"y": Y, "sample_weight": np.ones(103)}
    given = {"arrays": X, "dask": da.from_array(X, chunks=(20, 4)), "blocks": in_blocks()}[kind]
    ds = write_dataset(url, given, **({} if kind == "blocks" else parts))
    assert ds.has_y and ds.has_sample_weight
    for part in parts:
        shutil.move(url / part, tmp_path / part)
        with pytest.raises(ValueError, match=rf"a\.zarr is damaged: its array {part} is missing"):
            open_dataset(url)
        shutil.move(tmp_path / part, url / part)
    shutil.rmtree(url / "y")
    root = json.loads((url / "zarr.json").read_text())
    assert root["attributes"]["daskdml"].pop("parts") == ["X", "y", "sample_weight"]
    (url / "zarr.json").write_text(json.dumps(root))
    assert not open_dataset(url).has_y and open_dataset(url).has_sample_weight
