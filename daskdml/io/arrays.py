"""Appending rows to the Zarr arrays of a data set that is being written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.array_spec import ArrayConfigParams
from zarr.storage import MemoryStore, StorePath

from daskdml.io.staging import Staging
from daskdml.io.store import array_name, object_name, retrying

__all__ = [
    "CHUNK_BYTES",
    "COMPRESSOR",
    "EVERY_CHUNK",
    "Labels",
    "RowWriter",
    "apart",
    "array_at_root",
    "create_array",
    "default_chunks",
    "open_to_write",
    "staged_array",
]

CHUNK_BYTES = 16_000_000
"""Decoded bytes of X in a chunk, where the caller does not choose."""

LARGEST_CHUNK = 2**31 - 17
"""Bytes that Blosc can take in one piece: 2 GiB less its header."""

COMPRESSOR = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
"""Compressor of new data sets; docs/format.md shows how it was chosen."""

EVERY_CHUNK: ArrayConfigParams = {"write_empty_chunks": True}
"""How arrays are written: a chunk that is missing is damage, never zeros."""

CHUNKS_AT_ONCE = 4
"""Chunks handed to Zarr in one call, which encodes them side by side."""


def default_chunks(n_features: int, dtype: np.dtype[Any]) -> int:
    """Rows that fill a chunk.

    Examples
    --------
    >>> default_chunks(100, np.dtype("f4"))
    40000
    """
    return max(CHUNK_BYTES // (n_features * dtype.itemsize), 1)


def create_array(
    store: Store, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int
) -> zarr.Array[Any]:
    """Create an array of the documented layout: chunks of full rows, `COMPRESSOR`, a checksum.

    Raises
    ------
    ValueError
        Where a chunk would be larger than the compressor can take.
    """
    nbytes = chunk_rows * math.prod(shape[1:]) * dtype.itemsize
    if nbytes > LARGEST_CHUNK:
        raise ValueError(
            f"a chunk of {chunk_rows} rows of {name} has {nbytes} bytes, more than the "
            f"{LARGEST_CHUNK} that Blosc can hold; pass fewer rows as chunks="
        )
    return retrying(
        lambda: zarr.create_array(
            store,
            name=name,
            shape=shape,
            dtype=dtype,
            chunks=(chunk_rows, *shape[1:]),
            compressors=[COMPRESSOR, Crc32cCodec()],
            fill_value=0,
            config=EVERY_CHUNK,
            overwrite=True,  # of what an attempt cut off by a transient error left
        ),
        f"creating the array {object_name(store, name)}",
    )


def open_to_write(store: Store, path: str = "") -> zarr.Array[Any]:
    """Open an array of which every chunk will be written."""
    # Zarr's own function takes a configuration, too, and ignores it.
    found = zarr.open_array(store, path=path, mode="r+", zarr_format=3)  # which spares requests
    return found.with_config(EVERY_CHUNK)


def staged_array(
    staging: Staging, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int
) -> zarr.Array[Any]:
    """Give the array that an earlier attempt at the same left, else create it (`create_array`)."""
    if staging.resumed:
        found = _left_array(staging.store, staging.prefix + name)
        wanted = shape, dtype, chunk_rows
        if found is not None and (found.shape, found.dtype, found.chunks[0]) == wanted:
            return found
    return create_array(staging.store, staging.prefix + name, shape, dtype, chunk_rows)


def _left_array(store: Store, path: str) -> zarr.Array[Any] | None:
    try:
        return retrying(lambda: open_to_write(store, path), f"opening {object_name(store, path)}")
    except (FileNotFoundError, KeyError, ValueError):
        return None


def apart(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, to be written through a store and codecs of its own."""
    inner, where = array.async_array, array.store_path
    metadata: Any = type(inner.metadata).from_dict(inner.metadata.to_dict())
    path = StorePath(where.store.with_read_only(False), where.path)
    return zarr.Array(type(inner)(metadata, path, inner.config))


def array_at_root(
    staging: Staging, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int
) -> zarr.Array[Any]:
    """Give an array that will be the root: chunks can be put, but readers see it once committed."""
    like = create_array(MemoryStore(), "", shape, dtype, chunk_rows).async_array
    there = zarr.AsyncArray(like.metadata, StorePath(staging.store), like.config)
    return zarr.Array(there)


class Labels:
    """Codes of string targets, given in the order in which the strings appear.

    Parameters
    ----------
    fixed : sequence of str or None
        All strings, in the order of their codes; others are then an error.

    Examples
    --------
    >>> labels = Labels()
    >>> labels.encode(np.array(["b", "a", "b"]))
    array([1, 0, 1], dtype=int32)
    >>> labels.names
    ['a', 'b']
    """

    def __init__(self, fixed: Sequence[str] | None = None) -> None:
        self._fixed = fixed is not None
        self._codes: dict[str, int] = {str(name): i for i, name in enumerate(fixed or ())}
        self.used = False

    @property
    def names(self) -> list[str]:
        """The strings, in the order of their codes."""
        return list(self._codes)

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Give the codes of strings; other targets come back as they are."""
        if y.dtype.kind != "U":
            return y
        self.used = True
        found, inverse = np.unique(y, return_inverse=True)
        return np.array([self._code(str(name)) for name in found], np.int32)[inverse]

    def sort(self) -> np.ndarray | None:
        """Sort the names; give the new code of every old one, or None where nothing changed."""
        if self._fixed or not self.used or self.names == sorted(self._codes):
            return None
        old = self._codes
        self._codes = {name: i for i, name in enumerate(sorted(old))}
        return np.array([self._codes[name] for name in old], np.int32)

    def _code(self, name: str) -> int:
        if name not in self._codes:
            if self._fixed:
                raise ValueError(f"y holds {name!r}, which is not in class_names {self.names}")
            self._codes[name] = len(self._codes)
        return self._codes[name]


class RowWriter:
    """Writes blocks of any number of rows as chunks of equal ones.

    Parameters
    ----------
    store : zarr.abc.store.Store
    name : str
        Name of the array.
    chunk_rows : int
        Rows per chunk.
    array : zarr.Array or None
        The array itself, where its length is known already; else it grows.
    n_rows : int
        Rows that it has already, of whole chunks.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        chunk_rows: int,
        array: zarr.Array[Any] | None = None,
        n_rows: int = 0,
    ) -> None:
        self._store = store
        self._name = name
        self._rows = chunk_rows
        self._array = array
        self._rest: np.ndarray | None = None
        self._n_rest = 0
        self._at = n_rows
        self.n_rows = n_rows

    def append(self, block: np.ndarray) -> None:
        """Add rows; writes the chunks that they fill.

        Raises
        ------
        ValueError
            Where the block's width or dtype does not fit the blocks before it.
        """
        rest = self._rest_for(block)
        at = 0
        while at < len(block):
            n_whole = min((len(block) - at) // self._rows, CHUNKS_AT_ONCE) * self._rows
            if self._n_rest == 0 and n_whole:
                self._write(block[at : at + n_whole])
                at += n_whole
                continue
            n = min(self._rows - self._n_rest, len(block) - at)
            rest[self._n_rest : self._n_rest + n] = block[at : at + n]
            self._n_rest += n
            at += n
            if self._n_rest == self._rows:
                self._write(rest)
                self._n_rest = 0
        self.n_rows += len(block)

    def finish(self, recode: np.ndarray | None = None) -> tuple[int, ...]:
        """Write what is left; give the array's shape.

        Parameters
        ----------
        recode : ndarray of int or None
            New values of an array of codes.
        """
        if self._rest is None:
            return (0,)
        if self._array is None:  # fewer rows than a chunk: one chunk of exactly these
            self._rows = self._n_rest
        if self._n_rest:
            self._write(self._rest[: self._n_rest])
        assert self._array is not None
        if recode is not None:
            for start in range(0, self.n_rows, self._rows):
                rows = slice(start, min(start + self._rows, self.n_rows))
                self._put(rows, recode[np.asarray(self._array[rows])])
        return tuple(self._array.shape)

    def _rest_for(self, block: np.ndarray) -> np.ndarray:
        if self._rest is None:
            self._rest = np.empty((self._rows, *block.shape[1:]), block.dtype)
        if block.shape[1:] != self._rest.shape[1:]:
            raise ValueError(
                f"a block of {self._name} has {block.shape[1]} columns, the blocks before it "
                f"{self._rest.shape[1]}; give all blocks the same columns"
            )
        if not np.can_cast(block.dtype, self._rest.dtype, "safe"):
            raise ValueError(
                f"a block of {self._name} has dtype {block.dtype}, the first one had "
                f"{self._rest.dtype}; cast all blocks to one dtype"
            )
        return self._rest

    def _write(self, rows: np.ndarray) -> None:
        if self._array is None:
            assert self._rest is not None
            shape, dtype = (0, *rows.shape[1:]), self._rest.dtype
            self._array = create_array(self._store, self._name, shape, dtype, self._rows)
        array, start = self._array, self._at
        self._at = stop = start + len(rows)
        what = f"writing rows {start}:{stop} of {array_name(array)}"
        if stop > array.shape[0]:
            retrying(lambda: array.resize((stop, *rows.shape[1:])), what)
        self._put(slice(start, stop), rows)

    def _put(self, where: slice, rows: np.ndarray) -> None:
        array = self._array
        assert array is not None
        what = f"writing rows {where.start}:{where.stop} of {array_name(array)}"
        retrying(lambda: array.__setitem__(where, rows), what)
