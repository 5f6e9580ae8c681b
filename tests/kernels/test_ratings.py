"""Codes of ids, counting sorts and splits of rating blocks."""

import numpy as np
import pytest

from daskdml.kernels.ratings import (
    IntegerCodes,
    RatingBlock,
    StringCodes,
    by_rows,
    compress,
    draw,
    merge_repeated,
    other_walk,
    repeated,
)


@pytest.mark.parametrize("codes", [IntegerCodes(), StringCodes()])
def test_codes_give_the_ids_back(codes):
    """Codes count from 0 in the order of first appearance, over batches and growing tables."""
    ids = np.random.default_rng(0).integers(-(2**62), 2**62, 5000)
    ids = np.concatenate([ids, ids[::-1], [-1, 0, 2**63 - 1, -(2**63)]])
    if isinstance(codes, StringCodes):
        ids = ids.astype(str)
    found = np.concatenate([codes.encode(part) for part in np.array_split(ids, 7)])
    assert np.array_equal(codes.ids[found], ids)
    assert len(codes.ids) == len(np.unique(ids))
    first = np.unique(found, return_index=True)[1]
    assert np.array_equal(first, np.sort(first))


def made(n=3000, rows=50, columns=80, seed=0):
    """Ratings in random order, with repeated pairs."""
    rng = np.random.default_rng(seed)
    u, i = rng.integers(0, rows, n).astype(np.int32), rng.integers(0, columns, n).astype(np.int32)
    return u, i, rng.random(n).astype(np.float32), rng.integers(0, 9, n)


def test_both_walks_are_sorted():
    """One walk is in the order of (row, column), the other of (column, row), with equal ratings."""
    u, i, r, t = made()
    by_user, rows = by_rows(u, i, r, t, 50, 80)
    order = np.lexsort((i, u))
    assert np.array_equal(by_user.indices, i[order]) and np.array_equal(rows, u[order])
    assert np.array_equal(by_user.values, r[order]) and np.array_equal(by_user.times, t[order])
    by_item = other_walk(by_user, rows, 80)
    order = np.lexsort((u, i))
    assert np.array_equal(by_item.indices, u[order])
    assert np.array_equal(np.diff(by_item.indptr), np.bincount(i, minlength=80))
    assert np.isclose(by_item.values.sum(), r.sum())


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_repeated_pairs_are_merged(timed, mean):
    """Of a repeated pair the latest rating is left (the one given last of those), or the mean."""
    u, i, r, t = made()
    found, rows = by_rows(u, i, r, t if timed else None, 50, 80)
    merged, users = merge_repeated(found, rows, repeated(rows, found.indices), mean)
    expected = {}
    for at in range(len(u)):
        expected.setdefault((u[at], i[at]), []).append((t[at] if timed else 0, r[at]))
    for user, item, value in zip(users, merged.indices, merged.values, strict=True):
        given = expected.pop((user, item))
        latest = max(time for time, _ in given)
        last = [rating for time, rating in given if time == latest][-1]
        wanted = np.mean([rating for _, rating in given], dtype=np.float64) if mean else last
        assert np.isclose(value, wanted, rtol=1e-6)
    assert not expected
    assert np.array_equal(np.diff(merged.indptr), np.bincount(users, minlength=50))


def test_draws_are_uniform_and_pure():
    """A draw depends on the pair and the seed alone, and looks uniform in both."""
    users, items = np.divmod(np.arange(200_000), 400)
    drawn = draw(3, users, items)
    assert np.array_equal(drawn[::-1], draw(3, users[::-1], items[::-1]))
    assert not np.array_equal(drawn, draw(4, users, items))
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi squared, 19 degrees, 0.1 %
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01


def test_a_compressed_block_keeps_rows():
    """What a mask keeps stays in its row."""
    block = RatingBlock(np.array([0, 2, 2, 3], np.int32), np.arange(3, dtype=np.int32), np.ones(3))
    left = compress(block, np.array([False, True, True]))
    assert left.indptr.tolist() == [0, 1, 1, 2] and left.indices.tolist() == [1, 2]
