"""A store that fails, is slow or gives wrong bytes costs time or is named; it changes no bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zarr

from daskdml import Engine, LogisticRegression
from daskdml.io import convert_ratings, fetch, open_dataset, write_dataset
from daskdml.io.chunks import ChunkError, ChunkReader
from daskdml.io.factors import FactorStore, StoredFactors
from daskdml.io.store import open_store
from tests.faulty import ERRORS

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4000, 6)).astype("f4")
Y = (X[:, 0] + RNG.standard_normal(4000) > 0).astype(int)


@pytest.fixture
def url(faulty):
    """A data set there."""
    return write_dataset("faulty://rows.zarr", X, Y, chunks=250).url


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "sgd"])
def test_a_fit_over_a_failing_store_has_the_same_bits(url, faulty, solver):
    """A third of the reads fail, in all known ways: the same coefficients to the last bit."""

    def fit():
        model = LogisticRegression(solver=solver, random_state=0)
        with Engine(memory_limit="2GB"):
            return model.fit(url).coef_.tobytes()

    expected = fit()
    for seed in (1, 2):
        faulty.quiet()
        faulty.share, faulty.seed = 0.35, seed
        assert fit() == expected
        assert set(faulty.told) == set(ERRORS) and faulty.told.total() > 10


@pytest.mark.parametrize("data", ["url", "view"])
def test_a_lasting_error_names_the_object(url, faulty, data):
    """Where one chunk fails for good, a fit ends with an error that names it."""
    rows = open_dataset(url)[100:] if data == "view" else url
    faulty.lasting = "/rows.zarr/X/c/7/0"
    with pytest.raises(ConnectionError, match=r"faulty://.*rows\.zarr/X/c/7/0 failed 5 times"):
        LogisticRegression(solver="newton", random_state=0).fit(rows)


def test_a_chunk_that_takes_too_long_is_named(url, faulty, monkeypatch):
    """A request has to end in time, also of a store that sets no limit of its own."""
    ds = open_dataset(url)
    monkeypatch.setattr(fetch, "PATIENCE", 0.1)
    faulty.pause = 1.0
    with pytest.raises(ConnectionError, match=r"rows\.zarr/X/c/0/0 failed 5 times, .*not whole"):
        ds.read(0, 250)


def test_a_truncated_answer_is_named(url, faulty):
    """A chunk of which half arrives is an error with its name."""
    faulty.cut = "/rows.zarr/X/c/3/0"
    with pytest.raises(ChunkError, match=r"rows\.zarr/X/c/3/0 is damaged"):
        LogisticRegression(random_state=0).fit(url)


@pytest.mark.parametrize("part", ["X", "y"])
def test_any_altered_bit_is_named(url, faulty, part):
    """Whatever bit of a chunk is wrong, the chunk is named, and no number of it is given out."""
    ds = open_dataset(url)
    name = "/rows.zarr/X/c/5/0" if part == "X" else "/rows.zarr/y/c/5"
    n_bits, chance = 8 * len(faulty.store[name].getvalue()), random.Random(0)
    faulty.altered = name
    for bit in [0, 7, n_bits - 1, n_bits - 32, *chance.sample(range(n_bits), 200)]:
        faulty.flip = bit
        with pytest.raises(ChunkError, match=f"{name[1:]} is damaged"):
            ds.read(1250, 1500)
    faulty.flip = None
    assert np.array_equal(ds.read(1250, 1500)[0].X, X[1250:1500])


def test_altered_bits_on_local_disk_are_named(tmp_path):
    """A bit that changes on disk is found, also in a chunk that was right when last read."""
    ds = write_dataset(tmp_path / "rows.zarr", X, Y, chunks=250)
    path = tmp_path / "rows.zarr/X/c/5/0"
    right = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(right)), 50):
        assert np.array_equal(ds.read(1200, 1600)[0].X, X[1200:1600])
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        for _ in range(2):
            with pytest.raises(ChunkError, match="X/c/5/0 is damaged"):
                ds.read(1200, 1600)
        path.write_bytes(right)


@pytest.mark.parametrize("where", ["faulty://", "local"])
def test_altered_factors_and_ratings_are_named(where, faulty, tmp_path):
    """Factors and ratings have checksums, too."""
    base = where if where != "local" else f"{tmp_path}/"
    ratings = convert_ratings(([1, 1, 2], [3, 4, 3], [1.0, 2.0, 3.0]), f"{base}ratings.zarr")
    store = FactorStore.at(f"{base}factors.zarr")
    store.begin()
    store.add("users", [3, 2], 4, np.float32)
    rows = StoredFactors(store, "users", 0, (3, 2), 4)
    rows.save(RNG.standard_normal((5, 4)).astype("f4"))
    assert rows.load().shape == (5, 4) and ratings.read("user", 0, 0)[0].nnz >= 0

    def spoil(name):
        if where == "local":
            data = bytearray((tmp_path / name).read_bytes())
            data[len(data) // 2] ^= 1
            (tmp_path / name).write_bytes(data)
        else:
            faulty.altered, faulty.flip = f"/{name}", 77

    spoil("factors.zarr/users/c/1/0")
    with pytest.raises(ChunkError, match="users/c/1/0 is damaged: its checksum"):
        rows.load()
    spoil("ratings.zarr/by_user/value/c/0/0")
    with pytest.raises(ChunkError, match="by_user/value/c/0/0 is damaged: its checksum"):
        ratings.read("user", 0, 0)


def test_layouts_that_zarr_reads_name_the_array(faulty):
    """Damage in a layout that only Zarr reads names the array and the rows."""
    store = open_store("faulty://v2.zarr", read_only=False)
    z = zarr.create_array(store, data=X, chunks=(250, 3), compressors=[zarr.codecs.ZstdCodec()])
    faulty.cut = "/v2.zarr/c/2/1"
    with pytest.raises(ChunkError, match=r"rows 400:600 of .*v2\.zarr is damaged"):
        ChunkReader(z).read(400, 600)


def test_chunks_of_a_block_are_fetched_side_by_side(url, faulty):
    """X and y of a block: as many requests as chunks, some at a time, as the setting says."""
    ds = open_dataset(url)
    for most in (1, 3, 10):
        faulty.quiet()
        faulty.pause = 0.01
        with zarr.config.set({"async.concurrency": most}):
            assert np.array_equal(ds.read(0, 4000)[0].X, X)
        assert (
            sorted(faulty.requests) == sorted(set(faulty.requests)) and len(faulty.requests) == 32
        )
        assert 1 <= faulty.busy[1] <= most and (most == 1 or faulty.busy[1] > 1)


SHARDED = {"shards": (1000, 6), "chunks": (50, 6)}


@pytest.mark.parametrize("index", ["start", "end"])
@pytest.mark.parametrize("compressor", [None, zarr.codecs.ZstdCodec()])
def test_chunks_of_a_shard_are_read_together(faulty, index, compressor):
    """A whole shard is one request; a part of it one for the index and one for the chunks."""
    store = open_store("faulty://sharded.zarr", read_only=False)
    array = zarr.create_array(
        store,
        shape=X.shape,
        dtype=X.dtype,
        chunks=SHARDED["shards"],
        serializer=zarr.codecs.ShardingCodec(
            chunk_shape=SHARDED["chunks"],
            index_location=index,
            codecs=[zarr.codecs.BytesCodec(), *([compressor] if compressor else [])],
        ),
        compressors=None,
        filters=None,
    )
    array[:] = X
    reader = ChunkReader(array)
    for start, stop, n in [(0, 4000, 4), (1000, 3000, 2), (120, 930, 2), (900, 2100, 5), (5, 6, 2)]:
        faulty.quiet()
        assert np.array_equal(reader.read(start, stop)[0], X[start:stop])
        assert len(faulty.requests) == n
    faulty.cut = "/sharded.zarr/c/1/0"
    with pytest.raises(ChunkError, match=r"sharded\.zarr/c/1/0 is damaged"):
        reader.read(1000, 2000)


def test_absent_shards_and_chunks_stand_for_the_fill_value(faulty):
    """What was never written of a sharded array is read as Zarr reads it."""
    store = open_store("faulty://holes.zarr", read_only=False)
    array = zarr.create_array(store, shape=X.shape, dtype=X.dtype, fill_value=3, **SHARDED)
    array[1100:1200] = X[1100:1200]
    reader = ChunkReader(array)
    for start, stop in [(0, 4000), (1090, 1210), (1300, 1400), (0, 10)]:
        assert np.array_equal(reader.read(start, stop)[0], array[start:stop])
