"""The reader gives what Zarr gives, for every layout."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.storage import FsspecStore

from daskdml.io.chunks import ChunkError, ChunkReader, ReadStats

CODECS = {
    "none": None,
    "zstd": ZstdCodec(),
    "zstd-checksum": ZstdCodec(level=3, checksum=True),
    "blosc-lz4": BloscCodec(cname="lz4", shuffle="shuffle"),
    "blosc-zstd": BloscCodec(cname="zstd", shuffle="bitshuffle"),
    "gzip": GzipCodec(level=1),
}
GENERAL = {
    "sharded": {"chunks": (5, 4), "shards": (20, 4)},
    "columns": {"chunks": (10, 3)},
    "F order": {"chunks": (10, 4), "filters": [TransposeCodec(order=(1, 0))]},
    "big endian": {"chunks": (10, 4), "serializer": BytesCodec(endian="big")},
    "two codecs": {"chunks": (10, 4), "compressors": [GzipCodec(), ZstdCodec()]},
    "v2": {"chunks": (10, 4), "zarr_format": 2},
    "v2 F order": {"chunks": (10, 4), "zarr_format": 2, "order": "F"},
}
RANGES = [(0, 53), (0, 0), (0, 10), (10, 30), (3, 9), (8, 12), (50, 53), (52, 53), (49, 53)]


def rows(dtype="f4", shape=(53, 4)):
    """Give rows of numbers that compress a little."""
    return np.random.default_rng(0).integers(0, 2 if dtype == "?" else 50, shape).astype(dtype)


def store_of(kind, path):
    """Give a store on disk, or one of fsspec's that is read as S3 is."""
    if kind == "local":
        return str(path / "a.zarr")
    return FsspecStore.from_url(f"memory://{path}/a.zarr")


@pytest.mark.parametrize("kind", ["local", "fsspec"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "?"])
def test_common_layouts_equal_zarr(tmp_path, kind, codec, dtype):
    """What is decoded in place equals Zarr's own read, for every range and dtype."""
    x = rows(dtype)
    z = zarr.create_array(
        store_of(kind, tmp_path), data=x, chunks=(10, 4), compressors=CODECS[codec]
    )
    reader = ChunkReader(z)
    assert reader._codec is not None
    for start, stop in RANGES:
        got, stats = reader.read(start, stop)
        assert got.dtype == x.dtype
        assert np.array_equal(got, x[start:stop])
        assert (stats.nbytes > 0) == (stop > start)


@pytest.mark.parametrize("kind", ["local", "fsspec"])
@pytest.mark.parametrize("layout", GENERAL)
@pytest.mark.parametrize("dtype", ["f4", "i2"])
def test_other_layouts_equal_zarr(tmp_path, kind, layout, dtype):
    """What only Zarr can read is read by Zarr, to the same values."""
    x = rows(dtype)
    z = zarr.create_array(store_of(kind, tmp_path), shape=x.shape, dtype=x.dtype, **GENERAL[layout])
    z[:] = x
    reader = ChunkReader(z)
    assert reader._codec is None
    for start, stop in RANGES:
        assert np.array_equal(reader.read(start, stop)[0], x[start:stop])


@given(
    n=st.integers(1, 60),
    d=st.integers(0, 3),
    chunk=st.integers(1, 70),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    codec=st.sampled_from(sorted(CODECS)),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_and_range_equal_zarr(n, d, chunk, ends, codec):
    """Any rows, width (0 stands for one dimension), chunk length and range read as by Zarr."""
    x = rows("f4", (n, d) if d else (n,))
    z = zarr.create_array({}, data=x, chunks=(chunk, *x.shape[1:]), compressors=CODECS[codec])
    start, stop = sorted(int(e * n) for e in ends)
    assert np.array_equal(ChunkReader(z).read(start, stop)[0], x[start:stop])


def test_rows_go_where_they_are_wanted(tmp_path):
    """`out` receives the rows and is what is returned."""
    x = rows()
    z = zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(10, 4))
    out = np.empty((20, 4), "f4")
    assert ChunkReader(z).read(5, 25, out)[0] is out
    assert np.array_equal(out, x[5:25])


def test_uncompressed_chunks_are_read_in_part(tmp_path):
    """Where nothing is compressed, only the bytes of the wanted rows are read."""
    for kind in ("local", "fsspec"):
        z = zarr.create_array(
            store_of(kind, tmp_path), data=rows(), chunks=(10, 4), compressors=None
        )
        assert ChunkReader(z).read(3, 5)[1].nbytes == 2 * 4 * 4


@pytest.mark.parametrize("kind", ["local", "fsspec"])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_missing_chunk(tmp_path, kind, codec):
    """Strictly read it is an error that names the object; else it stands for the fill value."""
    z = zarr.create_array(
        store_of(kind, tmp_path),
        shape=(30, 4),
        chunks=(10, 4),
        dtype="f4",
        fill_value=3,
        compressors=CODECS[codec],
    )
    z[:10] = 1
    assert np.array_equal(ChunkReader(z).read(0, 30)[0], z[:])
    with pytest.raises(ChunkError, match=r"a\.zarr/c/1/0 is missing"):
        ChunkReader(z, strict=True).read(5, 15)


@pytest.mark.parametrize("kind", ["local", "fsspec"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 7, 40])
def test_a_truncated_chunk_is_named(tmp_path, kind, codec, size):
    """A chunk that lost its end is an error with the object's name, read whole or in part."""
    import fsspec

    x = np.random.default_rng(0).standard_normal((30, 4)).astype("f4")
    z = zarr.create_array(
        store_of(kind, tmp_path), data=x, chunks=(10, 4), compressors=CODECS[codec]
    )
    fs = fsspec.filesystem("file" if kind == "local" else "memory")
    name = f"{tmp_path}/a.zarr/c/1/0"
    fs.pipe_file(name, fs.cat_file(name)[:size])
    for start, stop in [(0, 30), (15, 18)]:
        with pytest.raises(ChunkError, match="c/1/0"):
            ChunkReader(z).read(start, stop)


def test_a_chunk_that_may_not_be_read_is_named(tmp_path):
    """A chunk without permission is an error with its path."""
    z = zarr.create_array(tmp_path / "a.zarr", data=rows(), chunks=(10, 4))
    path = tmp_path / "a.zarr/c/2/0"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError, match="c/2/0"):
        ChunkReader(z).read(0, 53)


def test_rows_outside_are_refused(tmp_path):
    """A range that leaves the array is an error, never fewer rows."""
    reader = ChunkReader(zarr.create_array(tmp_path / "a.zarr", data=rows(), chunks=(10, 4)))
    for start, stop in [(-1, 3), (0, 54), (5, 3)]:
        with pytest.raises(IndexError, match="53"):
            reader.read(start, stop)


def test_readers_pickle_small(tmp_path):
    """A reader travels as its location and metadata."""
    x = rows("f4", (40_000, 4))
    reader = ChunkReader(zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(1000, 4)))
    copy = pickle.loads(pickle.dumps(reader))
    assert len(pickle.dumps(reader)) < 5000
    assert np.array_equal(copy.read(500, 1500)[0], x[500:1500])


def test_costs_add_up():
    """Stats of reads add field by field."""
    assert sum([ReadStats(1, 2, 3), ReadStats(1, 1, 1)], ReadStats()) == ReadStats(2, 3, 4)
