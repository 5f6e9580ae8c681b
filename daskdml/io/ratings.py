"""Ratings: a grid of blocks of (user, item, rating) in a Zarr group, opened and read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from daskdml.io import buffers
from daskdml.io.chunks import ReadStats, Wanted, read_many
from daskdml.io.identity import array_digest
from daskdml.io.options import StorageOptions, quiet
from daskdml.io.rating_store import SIDES, Side, Stored, Walk, damaged, from_node
from daskdml.io.split import draw_seed
from daskdml.io.store import open_node, resolve_url
from daskdml.kernels.ratings import RatingBlock, compress, draw
from daskdml.units import bytes_text

__all__ = ["Ratings", "open_ratings"]

_CACHE: dict[tuple[str, str, str], Stored] = {}
_CACHE_SIZE = 32


@dataclass(frozen=True)
class Part:
    """What a split keeps of the ratings.

    Parameters
    ----------
    by : {"random", "time", "leave-last"}
    size : float
        For "random", the share of test ratings; for "time", the last time of the training ratings.
    seed : int
        For "random".
    test : bool
        Keep the test ratings, else the training ratings.
    """

    by: str
    size: float
    seed: int
    test: bool


@dataclass(frozen=True, eq=False)
class Ratings:
    """Ratings of users for items, stored as a grid of p x q blocks, or a part of them.

    Opened by `open_ratings` or `convert_ratings`; pickles as its URL.

    Parameters
    ----------
    url : str
        Where the store is; "" for ratings in this process's memory.
    storage_options : StorageOptions or None
        Of its file system.
    identity : str
        Of what was written there.
    parts : tuple of Part
        What the splits that led here kept.
    memory : Stored or None
        The arrays themselves, where they are in this process's memory.

    Attributes
    ----------
    shape : tuple of int
        Users and items of the store; a part has the same.
    grid : tuple of int
        Blocks of users (p) and of items (q).

    Examples
    --------
    >>> from daskdml.io import convert_ratings
    >>> data = ([7, 7, 8], ["a", "b", "a"], [5.0, 3.0, 4.0])
    >>> ratings = convert_ratings(data, "memory://ratings.zarr", overwrite=True)
    >>> ratings.shape, ratings.grid, ratings.n_stored
    ((2, 2), (2, 2), 3)
    """

    url: str
    storage_options: StorageOptions | None
    identity: str
    parts: tuple[Part, ...] = ()
    memory: Stored | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the ratings lie in this process's memory."""
        return self.memory is not None

    @property
    def name(self) -> str:
        """The URL, or what it is."""
        return self.url or "the ratings"

    @property
    def _stored(self) -> Stored:
        if self.memory is not None:
            return self.memory
        options = self.storage_options
        key = (self.url, options.digest if options else "", self.identity)
        found = _CACHE.get(key)
        if found is None:
            found = from_node(self.url, open_node(self.url, self.storage_options))
            if found.facts["id"] != self.identity:
                raise ValueError(
                    f"{self.url} was overwritten since these Ratings were opened; open them again"
                )
            while len(_CACHE) >= _CACHE_SIZE:
                _CACHE.pop(next(iter(_CACHE)), None)
            _CACHE[key] = found
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """What the store says of itself: ratings, their sum, least and largest, and dtype."""
        return self._stored.facts

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of users and items."""
        return self.facts["users"], self.facts["items"]

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of blocks of users and of items."""
        p, q = self.facts["grid"]
        return p, q

    @property
    def n_stored(self) -> int:
        """Ratings of the store, whatever part of them this is."""
        return int(self.facts["ratings"])

    @property
    def nnz(self) -> np.ndarray:
        """Stored ratings of each block, (p, q)."""
        return self._stored.nnz

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the ratings."""
        return np.dtype(self.facts["dtype"])

    @property
    def has_time(self) -> bool:
        """Whether each rating has a timestamp."""
        return "by_user/time" in self.facts["arrays"]

    @property
    def content(self) -> list[Any]:
        """What tells these ratings from others in any process."""
        parts = [[p.by, p.size, p.seed, p.test] for p in self.parts]
        if self.memory is None:
            return [self.url, self.identity, parts]
        found: list[Any] = []
        for name, reader in sorted(self.memory.arrays.items()):
            chunks = pairwise(reader.chunk_bounds)
            found.append([name, [array_digest(reader.read(a, b)[0]) for a, b in chunks]])
        return [found, parts]

    def bounds(self, walk: Walk) -> np.ndarray:
        """Where the blocks of users or items begin, (n_blocks + 1,)."""
        return self._stored.bounds(walk)

    def side(self, walk: Walk) -> Side:
        """Ids of the users or of the items, in the order of the blocks."""
        return self._stored.side(walk)

    @property
    def users(self) -> Side:
        """Ids of the users, in the order of the blocks."""
        return self.side("user")

    @property
    def items(self) -> Side:
        """Ids of the items, in the order of the blocks."""
        return self.side("item")

    @property
    def block_nbytes(self) -> int:
        """Decoded bytes of the largest block, as read for one walk, with its times."""
        arrays = self._stored.arrays
        width = {name: r.nbytes // max(r.n_rows, 1) for name, r in arrays.items()}
        return max(sum(n for name, n in width.items() if name.startswith(f"by_{walk}/"))
                   for walk in SIDES)  # fmt: skip

    @property
    def scratch_nbytes(self) -> int:
        """Bytes that a read may hold for a moment beside the block."""
        arrays = self._stored.arrays.items()
        return max(r.scratch_nbytes for name, r in arrays if name.startswith("by_"))

    def __repr__(self) -> str:
        n, m = self.shape
        kept = "".join(f", {'test' if k.test else 'train'} by {k.by}" for k in self.parts)
        size = bytes_text(sum(r.nbytes for r in self._stored.arrays.values()))
        return (
            f"<Ratings {self.n_stored:,} by {n:,} users of {m:,} items, grid "
            f"{self.grid[0]} x {self.grid[1]}, {size}, {self.name}{kept}>"
        )

    def read(self, walk: Walk, i: int, j: int) -> tuple[RatingBlock, ReadStats]:
        """Ratings of the users of block i for the items of block j.

        Parameters
        ----------
        walk : {"user", "item"}
            What the rows of the block are.
        i, j : int
            Number of the block of users and of items.

        Returns
        -------
        block : RatingBlock
        stats : ReadStats

        Raises
        ------
        ChunkError
            Where the stored block is missing or damaged.
        """
        bounds = self._stored.bounds(walk)
        at = i if walk == "user" else j
        rows = int(bounds[at + 1] - bounds[at])
        nnz = int(self.nnz[i, j])
        names, lengths = ("indptr", "index", "value"), (rows + 1, nnz, nnz)
        (indptr, indices, values), stats = self._parts(walk, names, i, j, lengths)
        others = self._stored.bounds("item" if walk == "user" else "user")
        other = j if walk == "user" else i
        whole = (len(indptr), len(indices), len(values)) == (rows + 1, nnz, nnz)
        if not whole or indptr[0] != 0 or indptr[-1] != nnz or (indptr[1:] < indptr[:-1]).any():
            raise damaged(f"block ({i}, {j}) of {self.name}", f"it has {nnz} ratings, its rows not")
        if nnz and not 0 <= indices.min() <= indices.max() < others[other + 1] - others[other]:
            raise damaged(f"block ({i}, {j}) of {self.name}", "it names what is not in it")
        block = RatingBlock(indptr, indices, values)
        if self.parts:
            keep, more = self._keep(walk, i, j, block)
            block, stats = compress(block, keep), stats + more
        return block, stats

    def _parts(
        self, walk: Walk, names: Sequence[str], i: int, j: int, lengths: Sequence[int]
    ) -> tuple[list[np.ndarray], ReadStats]:
        """The first so many numbers of the block's row of some arrays, fetched together."""
        readers = [self._stored.arrays[f"by_{walk}/{name}"] for name in names]
        rows = [buffers.empty((1, *reader.shape[1:]), reader.dtype) for reader in readers]
        at, pairs = i * self.grid[1] + j, zip(readers, rows, strict=True)
        stats = read_many([Wanted(reader, at, at + 1, out) for reader, out in pairs])
        return [out[0, :n] for out, n in zip(rows, lengths, strict=True)], stats

    def _keep(
        self, walk: Walk, i: int, j: int, stored: RatingBlock
    ) -> tuple[np.ndarray, ReadStats]:
        """Which ratings of a stored block the splits keep, (nnz,) bool."""
        users, items = self.pairs(walk, i, j, stored)
        times, stats = np.zeros(0), ReadStats()
        if any(part.by == "time" for part in self.parts):
            (times,), stats = self._parts(walk, ("time",), i, j, (stored.nnz,))
        keep = np.ones(stored.nnz, bool)
        for part in self.parts:
            if part.by == "random":
                test = draw(part.seed, users, items) < part.size
            elif part.by == "time":
                test = times > part.size
            else:
                test = items == self._stored.last[users]
            keep &= test if part.test else ~test
        return keep, stats

    def pairs(
        self, walk: Walk, i: int, j: int, block: RatingBlock
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places of the users and of the items of a block's ratings, each (nnz,) int64."""
        own, other = (i, j) if walk == "user" else (j, i)
        first = int(self._stored.bounds(walk)[own])
        rows = np.repeat(np.arange(first, first + len(block.indptr) - 1), np.diff(block.indptr))
        others = self._stored.bounds("item" if walk == "user" else "user")
        columns = block.indices.astype(np.int64) + int(others[other])
        return (rows, columns) if walk == "user" else (columns, rows)

    def split(
        self, test_size: float = 0.25, by: str = "random", random_state: Any = None
    ) -> tuple[Ratings, Ratings]:
        """Split into training and test ratings, as views: nothing is copied.

        Parameters
        ----------
        test_size : float
            Share of the test ratings, for "random" and "time".
        by : {"random", "time", "leave-last"}
            At random, each rating for itself; the latest ones; or each user's last one.
        random_state : int, numpy.random.Generator, numpy.random.RandomState or None
            For "random".

        Returns
        -------
        train, test : Ratings

        Raises
        ------
        ValueError
            If `by` or `test_size` make no sense, or the store has no timestamps.

        Examples
        --------
        >>> from daskdml.io import convert_ratings
        >>> data = (np.arange(100) % 10, np.arange(100) // 10, np.ones(100))
        >>> ratings = convert_ratings(data, "memory://ratings.zarr", overwrite=True)
        >>> train, test = ratings.split(test_size=0.2, random_state=0)
        >>> train.count() + test.count()
        100
        """
        if by not in ("random", "time", "leave-last"):
            raise ValueError(f"by={by!r}: ratings are split 'random', by 'time' or 'leave-last'")
        if by != "random" and not self.has_time:
            raise ValueError(
                f"{self.name} has no timestamps to split by={by!r}; convert the ratings with "
                "timestamp='name of its column'"
            )
        if by == "leave-last":
            return self._two(Part(by, 0.0, 0, False))
        if not 0 < test_size < 1:
            raise ValueError(f"test_size={test_size} is no share; give one between 0 and 1")
        if by == "random":
            seeds = np.random.SeedSequence([draw_seed(random_state), len(self.parts)])
            return self._two(Part(by, float(test_size), int(seeds.generate_state(1)[0]), False))
        return self._two(Part(by, self._time_at(1 - test_size), 0, False))

    def _two(self, part: Part) -> tuple[Ratings, Ratings]:
        test = replace(part, test=True)
        return replace(self, parts=(*self.parts, part)), replace(self, parts=(*self.parts, test))

    def _time_at(self, share: float) -> float:
        """The time up to which that share of the ratings was given, found in a few scans."""
        low, high = self.facts["times"]
        wanted, before = math.ceil(share * self.count()), 0
        while high > low:
            edges = np.unique(np.linspace(low - 1, high, 1 << 16).astype(np.int64))
            counts = sum(
                np.histogram(t, bins=edges + 1)[0] if len(t) else 0
                for t in self._all_times(low, high)
            )
            total = before + np.cumsum(counts)
            at = min(int(np.searchsorted(total, wanted)), len(total) - 1)
            before = int(total[at - 1]) if at else before
            low, high = int(edges[at]) + 1, int(edges[at + 1])
        return float(low)

    def _all_times(self, low: int, high: int) -> Iterator[np.ndarray]:
        """Times of these ratings between two, block by block."""
        for i, j in np.ndindex(self.grid):
            (times,), _ = self._parts("user", ("time",), i, j, (int(self.nnz[i, j]),))
            if self.parts:
                stored, _ = replace(self, parts=()).read("user", i, j)
                times = times[self._keep("user", i, j, stored)[0]]
            yield times[(times >= low) & (times <= high)]

    def counts(self, walk: Walk, block: int) -> np.ndarray:
        """Number of ratings of each user (or item) of a block, (rows,) int64."""
        bounds = self._stored.bounds(walk)
        rows = int(bounds[block + 1] - bounds[block])
        total = np.zeros(rows, np.int64)
        for other in range(self.grid[walk == "user"]):
            i, j = (block, other) if walk == "user" else (other, block)
            if self.parts:
                indptr = self.read(walk, i, j)[0].indptr
            else:
                (indptr,), _ = self._parts(walk, ("indptr",), i, j, (rows + 1,))
            total += np.diff(indptr)
        return total

    def count(self) -> int:
        """Number of ratings; those of a part are counted in a scan."""
        return self._sums[0]

    def mean(self) -> float:
        """Mean rating; that of a part is found in a scan."""
        n, total = self._sums
        return total / n if n else 0.0

    @cached_property
    def _sums(self) -> tuple[int, float]:
        """Number and sum of the ratings."""
        if not self.parts:
            return self.n_stored, float(self.facts["sum"])
        n, total = 0, 0.0
        for i, j in np.ndindex(self.grid):
            block, _ = self.read("user", i, j)
            n, total = n + block.nnz, total + float(block.values.sum(dtype=np.float64))
        return n, total


def open_ratings(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Ratings:
    """Open ratings that `convert_ratings` wrote; only metadata are read.

    Parameters
    ----------
    url : str or path
        Any fsspec URL or a local path.
    storage_options : mapping or None
        Options of the file system, such as keys and endpoints.

    Returns
    -------
    Ratings

    Raises
    ------
    FileNotFoundError
        Where nothing lies at the URL.
    ValueError
        Where no ratings do, or a part of them is missing.
    """
    resolved = resolve_url(url)
    options = quiet(storage_options)
    stored = from_node(resolved, open_node(resolved, options))
    return Ratings(resolved, options, stored.facts["id"])
