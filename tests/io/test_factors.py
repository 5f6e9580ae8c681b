"""Factors in a store: what is saved is what is loaded, block by block."""

import numpy as np
import pytest

from daskdml.io.factors import FactorStore, StoredFactors
from daskdml.io.store import open_store


@pytest.fixture
def store(tmp_path):
    """A store with an array for blocks of three, two and three rows of four numbers."""
    store = FactorStore.at(tmp_path / "factors.zarr")
    store.begin()
    store.add("users", [3, 2, 3], 4, np.float32)
    return store


@pytest.mark.parametrize("kind", ["random", "zeros", "float64", "transposed"])
def test_what_was_saved(kind, store):
    """Of blocks of any size: also zeros, whose chunks Zarr would leave out, and other layouts."""
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype("f4")
    rows = {
        "random": rows, "zeros": np.zeros_like(rows), "float64": rows.astype("f8"),
        "transposed": np.asfortranarray(rows),
    }[kind]  # fmt: skip
    StoredFactors(store, "users", 0, (3, 2, 3), 4).save(rows)
    for first, stop, part in ((0, 3, slice(None)), (1, 2, slice(3, 5)), (2, 3, slice(5, 8))):
        sizes = (3, 2, 3)[first:stop]
        loaded = StoredFactors(store, "users", first, sizes, 4).load()
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, rows[part].astype("f4"))


def test_saved_again(store):
    """The last rows that were saved count, zeros as well."""
    block = StoredFactors(store, "users", 1, (2,), 4)
    block.save(np.ones((2, 4), np.float32))
    block.save(np.zeros((2, 4), np.float32))
    assert not block.load().any()


def test_metadata_are_asked_for_once(store, monkeypatch):
    """A block costs one request beside its chunk: Zarr itself looks for old formats, too."""
    block, asked = StoredFactors(store, "users", 1, (2,), 4), []
    of = type(open_store(store.url))
    get = of.get

    async def counted(self, key, *args, **kwargs):
        if "/c/" not in key:
            asked.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(of, "get", counted)
    block.save(np.ones((2, 4), np.float32))
    assert asked == ["users/zarr.json"]
    assert block.load().all() and asked == ["users/zarr.json"] * 2
