"""Factors of users or items in a Zarr group: one chunk for each block of rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import zarr
from dask.base import tokenize
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError

from daskdml.io.arrays import EVERY_CHUNK, open_to_write
from daskdml.io.chunks import ChunkReader
from daskdml.io.identity import Identity, array_digest, identity
from daskdml.io.options import StorageOptions, quiet
from daskdml.io.rating_store import Side
from daskdml.io.store import filesystem, open_store, resolve_url, retrying

__all__ = ["FactorStore", "FactorTable", "StoredFactors"]


@dataclass(frozen=True)
class StoredFactors:
    """Rows of factors of some consecutive blocks, which lie in a store.

    Parameters
    ----------
    store : FactorStore
    name : str
        Of the array.
    first : int
        Number of the first block.
    sizes : tuple of int
        Rows of each block.
    width : int
        Numbers in a row.
    """

    store: FactorStore
    name: str
    first: int
    sizes: tuple[int, ...]
    width: int

    def load(self) -> np.ndarray:
        """The rows, shape (sum of sizes, width)."""
        reader = ChunkReader(self.store.array(self.name), strict=True)
        rows, _ = reader.read(self.first, self.first + len(self.sizes))
        blocks = [b[: n * self.width] for b, n in zip(rows, self.sizes, strict=True)]
        return np.concatenate(blocks).reshape(-1, self.width)

    def save(self, rows: np.ndarray) -> None:
        """Write the rows; writing the same ones again changes nothing."""
        array, at = self.store.array(self.name, write=True), 0
        for number, n in enumerate(self.sizes, self.first):
            whole = np.ascontiguousarray(rows[at : at + n], array.dtype).reshape(1, -1)
            if whole.shape[1] < array.shape[1]:
                whole = np.pad(whole, ((0, 0), (0, array.shape[1] - whole.shape[1])))
            where = (slice(number, number + 1), slice(None))
            what = f"writing block {number} of {self.name} in {self.store.url}"
            retrying(partial(array.__setitem__, where, whole), what)
            at += n


@dataclass(frozen=True)
class FactorStore:
    """A Zarr group for factors at any fsspec URL.

    Parameters
    ----------
    url : str
        Resolved.
    options : StorageOptions or None
        Of its file system.
    """

    url: str
    options: StorageOptions | None = None

    @classmethod
    def at(cls, url: str | os.PathLike[str], options: Any = None) -> FactorStore:
        """The store at a URL, which need not be there yet."""
        return cls(resolve_url(url), quiet(options))

    def begin(self, fit: str | None = None, anew: bool = True) -> None:
        """Make the store, or go on with the one that the same fit left.

        Parameters
        ----------
        fit : str or None
            Digits of the fit, where it can be taken up again.
        anew : bool
            Whether the fit has nothing to go on from: then a finished store is another one's.

        Raises
        ------
        FileExistsError
            If something else is at the URL.
        """
        store = open_store(self.url, self.options, read_only=False)
        if not retrying(self._is_empty, f"listing {self.url}"):
            known = retrying(lambda: self._attributes(store), f"opening {self.url}")
            finished = {"user", "item"} <= set(known)
            if fit is None or known.get("fit") != fit or (anew and finished):
                raise FileExistsError(
                    f"{self.url} exists; choose another URL for the factors, or remove it"
                )
            return
        facts = {"kind": "factors"} | ({} if fit is None else {"fit": fit})
        retrying(  # over what an attempt wrote whose answer was lost
            lambda: zarr.create_group(store, attributes={"daskdml": facts}, overwrite=True),
            f"creating {self.url}",
        )

    def _is_empty(self) -> bool:
        """Whether nothing is there. Zarr's answer would be yes where a listing failed."""
        fs, path = filesystem(self.url, self.options)
        fs.invalidate_cache()
        try:
            return not fs.ls(path, detail=False)
        except FileNotFoundError:
            return True

    @staticmethod
    def _attributes(store: Store) -> dict[str, Any]:
        try:
            found = zarr.open_group(store, mode="r").attrs.get("daskdml")
        except FileNotFoundError:
            return {}
        return found if isinstance(found, dict) else {}

    def add(self, name: str, sizes: Sequence[int], width: int, dtype: Any) -> None:
        """Create an array for blocks of so many rows; made again, it is the same."""
        store = open_store(self.url, self.options, read_only=False)
        shape = (len(sizes), max(sizes) * width)
        retrying(
            lambda: zarr.create_array(
                store, name=name, shape=shape, chunks=(1, shape[1]), dtype=dtype,
                compressors=[Crc32cCodec()], fill_value=0, config=EVERY_CHUNK, overwrite=True,
            ),
            f"creating {name} in {self.url}",
        )  # fmt: skip

    def array(self, name: str, write: bool = False) -> zarr.Array[Any]:
        """Open an array."""
        store = open_store(self.url, self.options, read_only=not write)
        opened = open_to_write if write else partial(zarr.open_array, mode="r", zarr_format=3)
        # Zarr's own error cannot be sent from a worker: it does not unpickle everywhere.
        with contextlib.suppress(FileNotFoundError):
            return retrying(lambda: opened(store, path=name), f"opening {name} of {self.url}")
        raise FileNotFoundError(f"{self.url} has no factors {name}; fit again")

    def names(self) -> list[str]:
        """Of the arrays there are."""
        store = open_store(self.url, self.options)
        with contextlib.suppress(FileNotFoundError, ContainsArrayError):
            return retrying(
                lambda: list(zarr.open_group(store, mode="r").array_keys()), f"listing {self.url}"
            )
        return []

    def remove(self, name: str) -> None:
        """Remove an array."""
        store = open_store(self.url, self.options, read_only=False)
        retrying(lambda: sync(store.delete_dir(name)), f"removing {name} of {self.url}")

    def discard(self) -> None:
        """Remove everything."""
        self.remove("")

    def note(self, **facts: Any) -> None:
        """Add to the group's attributes."""
        store = open_store(self.url, self.options, read_only=False)

        def write() -> None:
            group = zarr.open_group(store, mode="r+")
            group.attrs["daskdml"] = {**group.attrs["daskdml"], **facts}  # type: ignore[dict-item]

        retrying(write, f"writing attributes of {self.url}")


@dataclass(frozen=True)
class FactorTable:
    """Factors of one side, row by row, by the ids that they belong to.

    Parameters
    ----------
    side : Side
        Ids, and where blocks begin.
    rows : ndarray of shape (n, width) or StoredFactors
        In the order of the ids.
    columns : int
        Numbers of a row that count; a solver may have stored more behind them.
    """

    side: Side
    rows: np.ndarray | StoredFactors
    columns: int

    def __len__(self) -> int:
        return len(self.side)

    @property
    def in_memory(self) -> bool:
        """Whether the rows are in this process's memory."""
        return isinstance(self.rows, np.ndarray)

    @property
    def identity(self) -> Identity:
        """What tells these factors from others in any process."""
        side = [array_digest(self.side.ids), array_digest(self.side.bounds), self.columns]
        if isinstance(self.rows, np.ndarray):
            return [*side, array_digest(self.rows)]
        stored = identity(self.rows.store.array(self.rows.name))
        return None if stored is None else [*side, self.rows.name, stored]

    def block(self, number: int) -> np.ndarray:
        """Rows of a block."""
        start, stop = self.side.bounds[number : number + 2]
        if isinstance(self.rows, np.ndarray):
            return self.rows[start:stop]
        rows = replace(self.rows, first=number, sizes=(int(stop - start),)).load()
        return rows[:, : self.columns]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number of the first row of each block, and its rows; one at a time."""
        for number, start in enumerate(self.side.bounds[:-1].tolist()):
            yield start, self.block(number)

    def take(self, places: np.ndarray) -> np.ndarray:
        """Some rows; zeros where the place is -1. A block of a store is read once."""
        if isinstance(self.rows, np.ndarray):
            out = self.rows[places]
            out[places < 0] = 0
            return out
        out = np.zeros((len(places), self.columns), self.rows.store.array(self.rows.name).dtype)
        of = np.searchsorted(self.side.bounds, places, side="right") - 1
        for number in np.unique(of[places >= 0]):
            here = np.flatnonzero((of == number) & (places >= 0))
            out[here] = self.block(number)[places[here] - self.side.bounds[number]]
        return out

    def to_dask(self) -> Any:
        """A Dask array over the store, a chunk for each block."""
        import dask.array as da

        assert isinstance(self.rows, StoredFactors)
        sizes = tuple(np.diff(self.side.bounds).tolist())
        dtype = self.rows.store.array(self.rows.name).dtype
        return da.map_blocks(
            _block_of, name=f"factors-{tokenize(self.rows)}", dtype=dtype,
            chunks=(sizes, (self.columns,)), meta=np.empty((0, self.columns), dtype), table=self,
        )  # fmt: skip


def _block_of(block_id: tuple[int, ...], table: FactorTable) -> np.ndarray:
    return table.block(block_id[0])
