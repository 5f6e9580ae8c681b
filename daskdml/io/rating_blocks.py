"""Blocks of ratings, sorted in both walks and written: one Zarr chunk for each block and array."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from daskdml.io.layout import FORMAT
from daskdml.io.rating_batches import Columns
from daskdml.io.rating_scan import Ids, Scan
from daskdml.io.scratch import Scratch
from daskdml.io.shuffle import Deal, Shuffled
from daskdml.io.store import retrying
from daskdml.kernels.ratings import Sorted, by_rows, merge_repeated, other_walk, repeated
from daskdml.units import bytes_text

__all__ = ["BlockWriter", "Choices"]

SORT_BYTES = 80  # of a rating while its block is sorted and encoded
PER_ID = 60  # of an id in the tables

Create = Callable[[str, tuple[int, ...], np.dtype[Any], int], zarr.Array[Any]]


@dataclass(frozen=True)
class Choices:
    """What the caller of `convert_ratings` chose; `limit` is its memory promise in bytes."""

    grid: tuple[int, int] | None
    duplicates: str | None
    dtype: np.dtype[Any]
    seed: int
    limit: int

    def check(self) -> None:
        """Raise ValueError for what makes no sense."""
        if self.duplicates not in (None, "last", "mean", "error"):
            raise ValueError(
                f"duplicates={self.duplicates!r}: give 'last', 'mean', 'error' or None"
            )
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype={self.dtype}: ratings are stored as float32 or float64")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise ValueError(f"grid={self.grid}: give two numbers of blocks from 1 up, (p, q)")


class BlockWriter:
    """Sorts blocks and writes them, one Zarr chunk for each and array."""

    def __init__(
        self, create: Create, data: Shuffled, scan: Scan, how: Choices, columns: Columns,
        scratch: Scratch, done: Mapping[int, tuple[int, float]],
    ) -> None:  # fmt: skip
        self.create, self.data, self.scan = create, data, scan
        self.how, self.columns = how, columns
        self.scratch, self.done = scratch, done
        self.names: list[str] = []

    def write(self) -> dict[str, Any]:
        """Write everything; gives the facts of the store."""
        p, q = self.data.grid
        threads = max(1, min(os.cpu_count() or 1, 4, self._blocks_at_once()))
        walks = self._create_blocks()
        with ThreadPoolExecutor(threads) as pool:
            tasks = [pool.submit(self._once, number, walks) for number in range(p * q)]
            try:
                found = [task.result() for task in tasks]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        nnz = np.array([n for n, _ in found], np.int64)
        self._put("blocks/nnz", nnz)
        for name, side, ids in (
            ("users", self.data.users, self.scan.users), ("items", self.data.items, self.scan.items)
        ):  # fmt: skip
            self._put(f"{name}/bounds", side.bounds)
            self._put_ids(name, side.by_place(ids.ids))
        if self.scan.last is not None:
            self._put("users/last", self.data.users.by_place(self.data.items.place[self.scan.last]))
        return {
            "format": FORMAT, "kind": "ratings", "complete": True, "id": secrets.token_hex(8),
            "grid": [p, q], "users": len(self.data.users.place),
            "items": len(self.data.items.place), "ratings": int(nnz.sum()),
            "sum": float(sum(total for _, total in found)), "least": self.scan.least,
            "largest": self.scan.largest, "times": self.scan.times,
            "dtype": str(self.how.dtype), "arrays": self.names,
        }  # fmt: skip

    def _blocks_at_once(self) -> int:
        largest = int(np.diff(self.data.starts).max())
        tables = PER_ID * (len(self.data.users.place) + len(self.data.items.place))
        need = tables + largest * SORT_BYTES
        if need > self.how.limit:
            raise MemoryError(
                f"memory_limit={bytes_text(self.how.limit)} is too small: sorting the largest "
                f"block ({largest} ratings) takes {bytes_text(need)}; raise memory_limit, or give "
                f"a finer grid than {self.data.grid}"
            )
        return (self.how.limit - tables) // max(largest * SORT_BYTES, 1)

    def _create_blocks(self) -> dict[str, dict[str, zarr.Array[Any]]]:
        p, q = self.data.grid
        widest = max(int(np.diff(self.data.starts).max()), 1)
        walks = {}
        for walk, side in (("user", self.data.users), ("item", self.data.items)):
            rows = int(np.diff(side.bounds).max()) + 1
            kinds: dict[str, tuple[int, Any]] = {
                "indptr": (rows, np.int32),
                "index": (widest, np.int32),
                "value": (widest, self.how.dtype),
            }
            if self.scan.times is not None:
                kinds["time"] = (widest, np.int64)
            walks[walk] = {
                name: self._create(f"by_{walk}/{name}", (p * q, width), np.dtype(dtype), 1)
                for name, (width, dtype) in kinds.items()
            }
        return walks

    def _create(self, name: str, shape: tuple[int, ...], dtype: Any, rows: int) -> zarr.Array[Any]:
        self.names.append(name)
        return self.create(name, shape, np.dtype(dtype), rows)

    def _put(self, name: str, values: np.ndarray) -> None:
        array = self._create(name, values.shape, values.dtype, max(min(len(values), 1 << 21), 1))
        retrying(lambda: array.__setitem__(slice(None), values), f"writing {name}")

    def _put_ids(self, name: str, ids: np.ndarray) -> None:
        if ids.dtype.kind == "i":
            self._put(f"{name}/id", ids)
            return
        texts = [str(text).encode() for text in ids]
        self._put(f"{name}/id_utf8", np.frombuffer(b"".join(texts), np.uint8))
        self._put(f"{name}/id_ends", np.cumsum([len(text) for text in texts]))

    def _once(self, number: int, walks: dict[str, dict[str, zarr.Array[Any]]]) -> tuple[int, float]:
        """Write a block, if an earlier attempt did not, and note it."""
        if number in self.done:
            return self.done[number]
        n, total = self._block(number, walks)
        self.scratch.note(block=number, n=n, sum=total)
        return n, total

    def _block(
        self, number: int, walks: dict[str, dict[str, zarr.Array[Any]]]
    ) -> tuple[int, float]:
        """Sort and write one block; gives the number of its ratings and their sum."""
        i, j = divmod(number, self.data.grid[1])
        users, items, values, *times = self.data.read(number)
        n, m = self.data.users.size(i), self.data.items.size(j)
        found, rows = by_rows(users, items, values, times[0] if times else None, n, m)
        same = repeated(rows, found.indices)
        if same.any():
            found, rows = self._merged(found, rows, same, i, j)
        for walk, ratings in (("user", found), ("item", other_walk(found, rows, m))):
            self._set(walks[walk]["indptr"], number, ratings.indptr)
            self._set(walks[walk]["index"], number, ratings.indices)
            self._set(walks[walk]["value"], number, ratings.values)
            if ratings.times is not None:
                self._set(walks[walk]["time"], number, ratings.times)
        return len(found.values), float(found.values.sum(dtype=np.float64))

    def _merged(
        self, found: Sorted, rows: np.ndarray, same: np.ndarray, i: int, j: int
    ) -> tuple[Sorted, np.ndarray]:
        how = self.how.duplicates or ("error" if found.times is None else "last")
        if how == "error":
            at = int(np.flatnonzero(same)[0])
            user = self._id_at(self.data.users, self.scan.users, i, int(rows[at]))
            item = self._id_at(self.data.items, self.scan.items, j, int(found.indices[at]))
            raise ValueError(
                f"{self.columns.user} {user} has rated {self.columns.item} {item} more than once; "
                "pass duplicates='last' or 'mean', or timestamp= to keep the latest"
            )
        return merge_repeated(found, rows, same, mean=how == "mean")

    @staticmethod
    def _id_at(side: Deal, ids: Ids, block: int, local: int) -> Any:
        code = int(np.flatnonzero(side.place == side.bounds[block] + local)[0])
        return ids.ids[code]

    def _set(self, array: zarr.Array[Any], number: int, values: np.ndarray) -> None:
        row = np.zeros((1, array.shape[1]), array.dtype)
        row[0, : len(values)] = values
        where = (slice(number, number + 1), slice(None))
        retrying(lambda: array.__setitem__(where, row), f"writing block {number}")
