"""Blocks of ratings: ids to codes, counting sorts, and which ratings a split keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from daskdml.kernels.compiled import inlined, kernel

_EMPTY = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, as SplitMix64 steps


@dataclass(frozen=True)
class RatingBlock:
    """Ratings of some users for some items, as rows of one side (CSR).

    Parameters
    ----------
    indptr : ndarray of shape (n_rows + 1,), int32
        Where the ratings of each row begin.
    indices : ndarray of shape (nnz,), int32
        Of the other side, counted from the block's first; rising within a row.
    values : ndarray of shape (nnz,), float32 or float64
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    @property
    def nnz(self) -> int:
        """Number of ratings."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return int(self.indptr.nbytes + self.indices.nbytes + self.values.nbytes)

    def rows(self, lo: int, hi: int) -> RatingBlock:
        """Some rows, without copying their ratings."""
        if lo == 0 and hi == len(self.indptr) - 1:
            return self
        start, stop = self.indptr[lo], self.indptr[hi]
        indptr = self.indptr[lo : hi + 1] - start
        return RatingBlock(indptr, self.indices[start:stop], self.values[start:stop])


@inlined()
def _find(table, keys, key):  # type: ignore[no-untyped-def]
    """Slot of a key, or the free one where it belongs."""
    mask = len(table) - 1
    h = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64((h ^ (h >> np.uint64(32))) & np.uint64(mask))
    while table[slot] != _EMPTY and keys[table[slot]] != key:
        slot = (slot + 1) & mask
    return slot


@kernel()
def _encode(table, keys, n, ids, codes):  # type: ignore[no-untyped-def]
    """Code ids until the table is half full; gives the number of keys and of ids done."""
    for at in range(len(ids)):
        slot = _find(table, keys, ids[at])
        if table[slot] == _EMPTY:
            if 2 * (n + 1) > len(table):
                return n, at
            table[slot], keys[n] = n, ids[at]
            n += 1
        codes[at] = table[slot]
    return n, len(ids)


@kernel()
def _rehash(table, keys, n):  # type: ignore[no-untyped-def]
    table[:] = _EMPTY
    for code in range(n):
        table[_find(table, keys, keys[code])] = code


class IntegerCodes:
    """Codes 0, 1, 2 ... of 64-bit integers, in the order in which they first appear.

    An open-addressing hash table with linear probing.

    Examples
    --------
    >>> codes = IntegerCodes()
    >>> codes.encode(np.array([70, 5, 70, -1]))
    array([0, 1, 0, 2], dtype=int32)
    >>> codes.ids
    array([70,  5, -1])
    """

    def __init__(self) -> None:
        self._n = 0
        self._table = np.full(1024, _EMPTY, np.int32)
        self._keys = np.empty(512, np.int64)

    @property
    def ids(self) -> np.ndarray:
        """The integers, by code."""
        return self._keys[: self._n]

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """Codes (int32) of ids (int64), new ones added."""
        codes = np.empty(len(ids), np.int32)
        done = 0
        while True:
            self._n, more = _encode(self._table, self._keys, self._n, ids[done:], codes[done:])
            done += more
            if done == len(ids):
                return codes
            self._keys = np.concatenate([self._keys, np.empty_like(self._keys)])
            self._table = np.empty(2 * len(self._table), np.int32)
            _rehash(self._table, self._keys, self._n)


class StringCodes:
    """Codes 0, 1, 2 ... of strings, in the order in which they first appear.

    Examples
    --------
    >>> codes = StringCodes()
    >>> codes.encode(np.array(["b", "a", "b"]))
    array([0, 1, 0], dtype=int32)
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    @property
    def ids(self) -> np.ndarray:
        """The strings, by code."""
        return np.array(list(self._codes), dtype=str)

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """Codes (int32) of ids (str), new ones added."""
        found, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        codes = np.empty(len(found), np.int32)
        for k in np.argsort(first):
            codes[k] = self._codes.setdefault(str(found[k]), len(self._codes))
        return codes[inverse.ravel()]


@kernel()
def counting_order(keys: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Stable order of small integer keys; `starts` (n_keys + 1) are the places where each begins.

    Examples
    --------
    >>> counting_order(np.array([1, 0, 1], np.int32), np.array([0, 1, 3], np.int64))
    array([1, 0, 2], dtype=int32)
    """
    order = np.empty(len(keys), np.int32)
    free = starts.copy()
    for at in range(len(keys)):
        key = keys[at]
        order[free[key]] = at
        free[key] += 1
    return order


def starts_of(keys: np.ndarray, n: int) -> np.ndarray:
    """Where each of n keys begins among the sorted ones, (n + 1,) int64.

    Examples
    --------
    >>> starts_of(np.array([1, 0, 1]), 2)
    array([0, 1, 3])
    """
    starts = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=n), out=starts[1:])
    return starts


class Sorted(NamedTuple):
    """Ratings in the order of one side's rows, then of the other side's indices."""

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    times: np.ndarray | None


def by_rows(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, times: np.ndarray | None,
    n_rows: int, n_columns: int,
) -> tuple[Sorted, np.ndarray]:  # fmt: skip
    """Sort ratings by (row, column), stably; gives each sorted rating's row, too."""
    inner = counting_order(columns, starts_of(columns, n_columns))
    indptr = starts_of(rows, n_rows)
    order = inner[counting_order(rows[inner], indptr)]
    of = None if times is None else times[order]
    return Sorted(indptr, columns[order], values[order], of), rows[order]


def other_walk(by_user: Sorted, users: np.ndarray, n_items: int) -> Sorted:
    """The same ratings in the order of (item, user)."""
    indptr = starts_of(by_user.indices, n_items)
    order = counting_order(by_user.indices, indptr)
    of = None if by_user.times is None else by_user.times[order]
    return Sorted(indptr, users[order], by_user.values[order], of)


def repeated(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Which sorted ratings have the user and item of the one before them, (nnz,) bool."""
    same = np.zeros(len(users), bool)
    same[1:] = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
    return same


def merge_repeated(
    ratings: Sorted, users: np.ndarray, same: np.ndarray, mean: bool
) -> tuple[Sorted, np.ndarray]:
    """One rating for each (user, item): the last in time, or in the order given; or the mean."""
    first = np.flatnonzero(~same)
    lengths = np.diff(np.append(first, len(same)))
    values, times = ratings.values, ratings.times
    group = np.repeat(np.arange(len(first)), lengths)
    keep = first + lengths - 1
    if times is not None:
        latest = np.maximum.reduceat(times, first)
        at = np.flatnonzero(times == latest[group])
        keep = first.copy()
        keep[group[at]] = at  # the last of equal times: assignments go from left to right
        times = latest
    if mean:
        sums = np.add.reduceat(values.astype(np.float64), first)
        kept = (sums / lengths).astype(values.dtype)
    else:
        kept = values[keep]
    indptr = starts_of(users[first], len(ratings.indptr) - 1)
    return Sorted(indptr, ratings.indices[first], kept, times), users[first]


def draw(seed: int, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each (user, item), which depends on them and the seed alone.

    The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014), over the pair's index and the seed.

    Examples
    --------
    >>> draw(0, np.array([0, 0, 1]), np.array([0, 1, 0])).round(3)
    array([0.883, 0.432, 0.274])
    """
    with np.errstate(over="ignore"):
        z = (users.astype(np.uint64) << np.uint64(32)) ^ items.astype(np.uint64)
        z = (z + np.uint64(seed % 2**64)) * _MIX + _MIX
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def compress(block: RatingBlock, keep: np.ndarray) -> RatingBlock:
    """The ratings of a block that a mask (nnz,) keeps."""
    kept = np.zeros(len(keep) + 1, np.int32)
    np.cumsum(keep, out=kept[1:])
    return RatingBlock(kept[block.indptr], block.indices[keep], block.values[keep])


@kernel()
def _copy_rows(indptr, indices, values, offset, free, to_indices, to_values):  # type: ignore[no-untyped-def]
    for row in range(len(indptr) - 1):
        at = free[row]
        for n in range(indptr[row], indptr[row + 1]):
            to_indices[at], to_values[at] = indices[n] + offset, values[n]
            at += 1
        free[row] = at


def beside(blocks: list[RatingBlock], offsets: np.ndarray) -> RatingBlock:
    """Blocks of the same rows as one, the indices of each raised by its offset.

    Examples
    --------
    >>> one = RatingBlock(np.array([0, 1, 1]), np.array([0], np.int32), np.array([5.0]))
    >>> two = RatingBlock(np.array([0, 1, 2]), np.array([1, 0], np.int32), np.array([3.0, 4.0]))
    >>> both = beside([one, two], np.array([0, 10]))
    >>> both.indptr, both.indices, both.values
    (array([0, 2, 3], dtype=int32), array([ 0, 11, 10], dtype=int32), array([5., 3., 4.]))
    """
    if len(blocks) == 1 and offsets[0] == 0:
        return blocks[0]
    indptr = _offsets(np.sum([block.indptr.astype(np.int64) for block in blocks], axis=0))
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], blocks[0].values.dtype)
    free = indptr[:-1].copy()
    for block, offset in zip(blocks, offsets, strict=True):
        _copy_rows(
            block.indptr, block.indices, block.values, np.int32(offset), free, indices, values
        )
    return RatingBlock(indptr, indices, values)


def below(blocks: list[RatingBlock]) -> RatingBlock:
    """Blocks of the same columns as one, the rows of each after those of the one before.

    Examples
    --------
    >>> one = RatingBlock(np.array([0, 1, 1]), np.array([0], np.int32), np.array([5.0]))
    >>> two = RatingBlock(np.array([0, 2]), np.array([0, 1], np.int32), np.array([3.0, 4.0]))
    >>> both = below([one, two])
    >>> both.indptr, both.indices, both.values
    (array([0, 1, 1, 3], dtype=int32), array([0, 0, 1], dtype=int32), array([5., 3., 4.]))
    """
    if len(blocks) == 1:
        return blocks[0]
    counts = [np.diff(block.indptr) for block in blocks]
    return RatingBlock(
        _offsets(np.cumsum(np.concatenate([[0], *counts]), dtype=np.int64)),
        np.concatenate([block.indices for block in blocks]),
        np.concatenate([block.values for block in blocks]),
    )


def _offsets(indptr: np.ndarray) -> np.ndarray:
    """Offsets as blocks have them, so that kernels are compiled for one kind of them."""
    return indptr.astype(np.int32) if indptr[-1] < 2**31 else indptr


def needed(block: RatingBlock, n: int) -> tuple[RatingBlock, np.ndarray]:
    """A block, its indices counted among those that it has, and which these are of n, (n,) bool.

    Examples
    --------
    >>> block = RatingBlock(np.array([0, 2]), np.array([1, 3], np.int32), np.ones(2))
    >>> kept, used = needed(block, 5)
    >>> kept.indices, used
    (array([0, 1], dtype=int32), array([False,  True, False,  True, False]))
    """
    used = np.zeros(n, bool)
    used[block.indices] = True
    place = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return RatingBlock(block.indptr, place[block.indices], block.values), used


def row_ranges(block: RatingBlock, most: int) -> list[tuple[int, int]]:
    """Ranges of rows with at most so many ratings, but for single rows that have more.

    Examples
    --------
    >>> block = RatingBlock(np.array([0, 2, 4, 5]), np.zeros(5, np.int32), np.ones(5))
    >>> row_ranges(block, 4), row_ranges(block, 1)
    ([(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)])
    """
    ends = block.indptr[1:]
    ranges, lo, before = [], 0, 0
    while lo < len(ends):
        hi = max(lo + 1, int(np.searchsorted(ends, before + most, side="right")))
        ranges.append((lo, hi))
        lo, before = hi, int(ends[hi - 1])
    return ranges
