"""An external shuffle: ratings in any order -> those of each block together, in scratch files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Deal", "Shuffled", "Spill", "block_of", "grid_of"]


class Spill:
    """Columns of batches in a scratch file.

    Parameters
    ----------
    file : file
        What is in it already stays; `take` passes over it.
    with_time : bool
    dtype : dtype
        Of the ratings.
    """

    def __init__(self, file: BinaryIO, with_time: bool, dtype: np.dtype[Any]) -> None:
        self.file = file
        self.dtypes = [np.dtype(np.int32), np.dtype(np.int32), dtype]
        self.dtypes += [np.dtype(np.int64)] * with_time
        self.sizes: list[int] = []

    @property
    def n(self) -> int:
        """Ratings in the file."""
        return sum(self.sizes)

    def take(self, n: int) -> list[np.ndarray]:
        """Read the next batch of an earlier attempt, of n ratings, and count it in."""
        self.sizes.append(n)
        return self._read(n)

    def append(self, *columns: np.ndarray | None) -> None:
        """Write a batch behind those before."""
        for values, dtype in zip(columns, self.dtypes, strict=False):
            assert values is not None
            self.file.write(np.ascontiguousarray(values, dtype).data)
        self.file.flush()
        self.sizes.append(len(columns[0]))  # type: ignore[arg-type]

    def batches(self) -> Iterator[list[np.ndarray]]:
        """Read the batches."""
        self.file.flush()
        self.file.seek(0)
        for n in self.sizes:
            yield self._read(n)

    def _read(self, n: int) -> list[np.ndarray]:
        return [np.fromfile(self.file, dtype, n) for dtype in self.dtypes]


@dataclass(frozen=True)
class Deal:
    """Which block each code goes to, and its place in the order of the blocks.

    Ids are dealt in the order of falling activity, to and fro, so that blocks have as many ratings
    as ids; where activity is equal, a seed decides. Within a block the most active come first:
    they share cache lines and pages.
    """

    place: np.ndarray
    bounds: np.ndarray
    block: np.ndarray
    local: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, counts: np.ndarray, n_blocks: int, seed: int) -> Deal:
        """Deal ids with so many ratings each; the order in which they are given does not count."""
        n = len(counts)
        tie = np.empty(n, np.int64)
        tie[np.argsort(ids)] = np.random.default_rng(seed).permutation(n)
        ranked = np.lexsort((tie, -counts))
        turn, at = np.divmod(np.arange(n), n_blocks)
        dealt = np.where(turn % 2 == 0, at, n_blocks - 1 - at)
        order = ranked[np.argsort(dealt, kind="stable")]
        bounds = np.zeros(n_blocks + 1, np.int64)
        np.cumsum(np.bincount(dealt, minlength=n_blocks), out=bounds[1:])
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        block = (np.searchsorted(bounds, place, side="right") - 1).astype(np.int32)
        return cls(place, bounds, block, (place - bounds[block]).astype(np.int32))

    def size(self, block: int) -> int:
        """Ids of a block."""
        return int(self.bounds[block + 1] - self.bounds[block])

    def by_place(self, ids: np.ndarray) -> np.ndarray:
        """What is given by code, by place."""
        out = np.empty_like(ids)
        out[self.place] = ids
        return out


class Shuffled:
    """The ratings of each block, together in a scratch file for each column.

    Parameters
    ----------
    sides : tuple of Deal
    dtypes : sequence of dtype
        Of the columns: users, items, ratings and perhaps times.
    files : sequence of file
        One for each.
    starts : ndarray of shape (n_blocks + 1,)
        Where each block begins.
    """

    def __init__(
        self,
        sides: tuple[Deal, Deal],
        dtypes: Sequence[np.dtype[Any]],
        files: Sequence[BinaryIO],
        starts: np.ndarray,
    ) -> None:
        self.users, self.items = sides
        self.grid = grid_of(sides)
        self.dtypes, self.starts = dtypes, starts
        self._files = files

    def begin(self, filled: np.ndarray) -> None:
        """Begin to add batches; each block has so many ratings already."""
        self._free = self.starts[:-1] + filled

    def add(self, batch: list[np.ndarray]) -> None:
        """Write each of a batch's ratings behind those of its block."""
        u, i, *rest = batch
        block = block_of((self.users, self.items), u, i)
        order = np.argsort(block, kind="stable")
        sorted_blocks = block[order]
        columns = [self.users.local[u][order], self.items.local[i][order]]
        columns += [values[order] for values in rest]
        edges = np.flatnonzero(np.diff(sorted_blocks)) + 1
        for a, b in zip([0, *edges.tolist()], [*edges.tolist(), len(order)], strict=True):
            number = sorted_blocks[a]
            at = int(self._free[number])
            for file, values in zip(self._files, columns, strict=True):
                _write_at(file, values[a:b], at)
            self._free[number] += b - a

    def read(self, number: int) -> list[np.ndarray]:
        """Columns of a block, in the source's order."""
        start, n = int(self.starts[number]), int(self.starts[number + 1] - self.starts[number])
        return [
            np.frombuffer(os.pread(f.fileno(), n * d.itemsize, start * d.itemsize), d)
            for f, d in zip(self._files, self.dtypes, strict=True)
        ]


def grid_of(sides: tuple[Deal, Deal]) -> tuple[int, int]:
    """Blocks of users and of items."""
    return len(sides[0].bounds) - 1, len(sides[1].bounds) - 1


def block_of(sides: tuple[Deal, Deal], u: np.ndarray, i: np.ndarray) -> np.ndarray:
    """Numbers of the blocks of ratings, by the codes of their users and items."""
    return sides[0].block[u] * np.int32(grid_of(sides)[1]) + sides[1].block[i]


def _write_at(file: Any, values: np.ndarray, at: int) -> None:
    view, offset = values.data.cast("B"), at * values.itemsize
    while len(view):
        done = os.pwrite(file.fileno(), view, offset)
        view, offset = view[done:], offset + done
