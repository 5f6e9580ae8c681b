"""Rows of one stored array: chunks are read into reused buffers and decoded in place."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from daskdml.io import buffers
from daskdml.io.codecs import (
    check_codecs,
    check_encoded,
    codec_name,
    decode_into,
    with_fast_codecs,
)
from daskdml.io.store import object_name, retrying

__all__ = ["ChunkError", "ChunkReader", "ReadStats", "row_bounds"]

MOST_CHUNKS = 10_000_000
"""Chunks of an array: more are taken for damage, or for ill will."""

MOST_CHUNK_BYTES = 2**46
"""Decoded bytes of a chunk, likewise."""

FETCHES = 4
"""Chunks of one read that are fetched at the same time from a remote store."""


class ChunkError(OSError):
    """A stored chunk is missing, truncated or damaged; the message names it."""


@dataclass(frozen=True, slots=True)
class ReadStats:
    """What a read cost.

    Parameters
    ----------
    read_seconds : float
        Seconds spent getting bytes from the store.
    decode_seconds : float
        Seconds spent decoding and copying them into place.
    nbytes : int
        Bytes that came from the store, as they are encoded there; for layouts that are read
        through Zarr's own code, the decoded bytes.

    Examples
    --------
    >>> ReadStats(1.0, 0.5, 100) + ReadStats(1.0, 0.0, 20)
    ReadStats(read_seconds=2.0, decode_seconds=0.5, nbytes=120)
    """

    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    nbytes: int = 0

    def __add__(self, other: ReadStats) -> ReadStats:
        return ReadStats(
            self.read_seconds + other.read_seconds,
            self.decode_seconds + other.decode_seconds,
            self.nbytes + other.nbytes,
        )


class _Piece(NamedTuple):
    """Rows [lo, hi) of chunk number `chunk`, wanted in `dest`."""

    chunk: int
    lo: int
    hi: int
    dest: np.ndarray


class ChunkReader:
    """Reads ranges of rows of a Zarr array of one or two dimensions.

    The common layout (see `codecs.codec_name`) is read and decoded here, without the copies of
    the general path; any other is read by Zarr itself, to the same values.

    Parameters
    ----------
    array : zarr.Array
        Any layout that Zarr reads.
    strict : bool
        A chunk that is not in the store is an error; else it stands for the fill value, as Zarr
        defines it.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of the rows that `read` returns: the stored one in native byte order.
    chunk_rows : int
        Rows per stored object.

    Examples
    --------
    >>> import zarr
    >>> z = zarr.create_array({}, data=np.arange(10.0).reshape(5, 2), chunks=(2, 2))
    >>> rows, stats = ChunkReader(z).read(1, 3)
    >>> rows
    array([[2., 3.],
           [4., 5.]])
    """

    def __init__(self, array: zarr.Array[Any], *, strict: bool = False) -> None:
        self.array = array
        self.strict = strict
        self.shape: tuple[int, ...] = tuple(int(n) for n in array.shape)
        name = object_name(array.store_path.store, array.store_path.path)
        check_codecs(array, name)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.chunk_rows = max(int((array.shards or array.chunks)[0]), 1)
        if self.shape[0] > MOST_CHUNKS * self.chunk_rows:
            raise ValueError(
                f"{name} has {self.shape[0]} rows in chunks of {self.chunk_rows}; at most "
                f"{MOST_CHUNKS} chunks are read: write the array in larger ones"
            )
        self._row_shape = self.shape[1:]
        self._row_nbytes = math.prod(self._row_shape) * self.dtype.itemsize
        if min(self.chunk_rows, max(self.n_rows, 1)) * self._row_nbytes > MOST_CHUNK_BYTES:
            raise ValueError(
                f"{name} has shape {self.shape} in chunks of {self.chunk_rows} rows, which no "
                "memory holds; write the array in smaller chunks"
            )
        self._codec = codec_name(array)
        self._store = array.store_path.store
        self._local = isinstance(self._store, LocalStore)
        if self._codec is None and self._local:
            self.array = with_fast_codecs(array)

    @property
    def n_rows(self) -> int:
        """Rows of the array."""
        return self.shape[0]

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        """Rows at which a new stored object begins; first 0, last n_rows."""
        return row_bounds(self.n_rows, self.chunk_rows)

    @property
    def nbytes(self) -> int:
        """Decoded bytes of all rows."""
        return self.n_rows * self._row_nbytes

    @property
    def scratch_nbytes(self) -> int:
        """Bytes that a read may hold for a moment beside the rows it returns."""
        chunk = self.chunk_rows * self._row_nbytes
        return chunk * 2 if self._local else chunk * (1 + FETCHES)

    def read(
        self, start: int, stop: int, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, ReadStats]:
        """Read rows [start, stop).

        Parameters
        ----------
        start, stop : int
            0 <= start <= stop <= n_rows.
        out : ndarray or None
            C-contiguous, of the right shape and dtype; a pooled array where None.

        Returns
        -------
        rows : ndarray of shape (stop - start, ...)
        stats : ReadStats

        Raises
        ------
        ChunkError
            Where a chunk is missing (if `strict`), truncated or damaged; names its object.
        ConnectionError, PermissionError
            Where the store fails for good; names the object.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start}:{stop} are not within the {self.n_rows} of the array")
        if out is None:
            out = buffers.empty((stop - start, *self._row_shape), self.dtype)
        if self._codec is None or out.nbytes == 0:
            return out, self._read_general(start, stop, out)
        stats = ReadStats()
        pieces = self._pieces(start, stop, out)
        if self._local:
            for piece in pieces:
                stats += self._read_local(piece)
        else:
            for i in range(0, len(pieces), FETCHES):
                stats += self._read_remote(pieces[i : i + FETCHES])
        return out, stats

    def chunk_name(self, index: int) -> str:
        """The object in which chunk `index` is stored: a path or URL."""
        return object_name(self._store, self._path(index))

    def _path(self, index: int) -> str:
        """The object's key in the store."""
        return f"{self.array.store_path.path}/{self._key(index)}".lstrip("/")

    def _key(self, index: int) -> str:
        coords = (index,) + (0,) * len(self._row_shape)
        return str(self.array.metadata.encode_chunk_key(coords))

    def _pieces(self, start: int, stop: int, out: np.ndarray) -> list[_Piece]:
        rows = self.chunk_rows
        pieces = []
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            lo, hi = max(start, first), min(stop, first + rows)
            pieces.append(_Piece(index, lo - first, hi - first, out[lo - start : hi - start]))
        return pieces

    def _read_general(self, start: int, stop: int, out: np.ndarray) -> ReadStats:
        began = time.perf_counter()
        if out.nbytes:
            what = f"reading rows {start}:{stop} of {self.array.store_path}"
            try:
                out[:] = retrying(lambda: np.asarray(self.array[start:stop]), what)
            except OSError:
                raise
            except Exception as error:  # whatever Zarr's codecs make of damaged bytes
                why = f"{type(error).__name__}: {str(error)[:300]}"
                raise ChunkError(f"{what}: they cannot be decoded ({why})") from error
        return ReadStats(time.perf_counter() - began, 0.0, out.nbytes)

    def _byte_range(self, piece: _Piece) -> tuple[int, int]:
        """The bytes that hold the piece where nothing is compressed."""
        return piece.lo * self._row_nbytes, piece.hi * self._row_nbytes

    def _read_local(self, piece: _Piece) -> ReadStats:
        path = self.chunk_name(piece.chunk)
        began = time.perf_counter()
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if self._codec == "none":
                    self._check_plain_size(piece.chunk, size)
                    file.seek(self._byte_range(piece)[0])
                    target = piece.dest.reshape(-1).view(np.uint8)
                else:
                    self._check_encoded_size(piece.chunk, size)
                    target = buffers.empty(size, np.uint8)
                _fill(file, target, path)
        except FileNotFoundError:
            self._missing(piece)
            return ReadStats()
        except PermissionError as error:
            raise PermissionError(f"{path} may not be read; check its permissions") from error
        read = time.perf_counter()
        if self._codec != "none":
            self._decode(piece, target)
        return ReadStats(read - began, time.perf_counter() - read, target.nbytes)

    def _read_remote(self, pieces: Sequence[_Piece]) -> ReadStats:
        began = time.perf_counter()
        fetched = sync(_gather([self._fetch(piece) for piece in pieces]))
        for i, got in enumerate(fetched):
            if isinstance(got, Exception):
                fetched[i] = self._fetch_again(pieces[i], got)
        read = time.perf_counter()
        nbytes = 0
        for i, piece in enumerate(pieces):
            encoded, fetched[i] = fetched[i], None
            if encoded is None:
                self._missing(piece)
                continue
            nbytes += encoded.nbytes
            if self._codec != "none":
                self._decode(piece, encoded)
            elif encoded.nbytes == piece.dest.nbytes:
                decode_into("none", encoded, piece.dest)
            else:
                self._check_plain_size(piece.chunk, piece.lo * self._row_nbytes + encoded.nbytes)
        return ReadStats(read - began, time.perf_counter() - read, nbytes)

    async def _fetch(self, piece: _Piece) -> np.ndarray | None:
        wanted = RangeByteRequest(*self._byte_range(piece)) if self._codec == "none" else None
        got = await self._store.get(self._path(piece.chunk), default_buffer_prototype(), wanted)
        return None if got is None else np.asarray(got.as_numpy_array()).view(np.uint8)

    def _fetch_again(self, piece: _Piece, error: Exception) -> np.ndarray | None:
        """Deal with a failed fetch as `retrying` does, its first attempt being made."""
        failed: list[Exception] = [error]

        def attempt() -> np.ndarray | None:
            if failed:
                raise failed.pop()
            return sync(self._fetch(piece))

        return retrying(attempt, f"reading {self.chunk_name(piece.chunk)}")

    def _decode(self, piece: _Piece, encoded: np.ndarray) -> None:
        assert self._codec is not None
        whole = piece.hi - piece.lo == self.chunk_rows
        dest = piece.dest
        try:
            if not whole:
                check_encoded(self._codec, encoded, self.chunk_rows * self._row_nbytes)
                dest = buffers.empty((self.chunk_rows, *self._row_shape), self.dtype)
            decode_into(self._codec, encoded, dest)
        except ValueError as error:
            raise ChunkError(
                f"chunk {self.chunk_name(piece.chunk)} is damaged: {error}; restore it or write "
                "the data set again"
            ) from error
        if not whole:
            piece.dest[:] = dest[piece.lo : piece.hi]

    def _missing(self, piece: _Piece) -> None:
        if self.strict:
            raise ChunkError(
                f"chunk {self.chunk_name(piece.chunk)} is missing; restore it or write the data "
                "set again"
            )
        piece.dest[...] = self.array.metadata.fill_value

    def _check_encoded_size(self, index: int, size: int) -> None:
        wanted = self.chunk_rows * self._row_nbytes
        if size > 2 * wanted + 2**20:
            raise ChunkError(
                f"chunk {self.chunk_name(index)} is damaged: it has {size} bytes, its rows "
                f"{wanted}; restore it or write the data set again"
            )

    def _check_plain_size(self, index: int, size: int) -> None:
        wanted = self.chunk_rows * self._row_nbytes
        if size != wanted:
            raise ChunkError(
                f"chunk {self.chunk_name(index)} is damaged: it has {size} bytes instead of "
                f"{wanted}; restore it or write the data set again"
            )


async def _gather(fetches: list[Any]) -> list[Any]:
    return await asyncio.gather(*fetches, return_exceptions=True)


def _fill(file: Any, target: np.ndarray, path: str) -> None:
    view = target.data
    while len(view):
        got = file.readinto(view)
        if not got:
            raise ChunkError(f"chunk {path} ended {len(view)} bytes early; is it being rewritten?")
        view = view[got:]


def row_bounds(n_rows: int, rows: int) -> tuple[int, ...]:
    """Cut rows into runs of equal length, the last one shorter.

    Examples
    --------
    >>> row_bounds(10, 4)
    (0, 4, 8, 10)
    """
    return (*range(0, n_rows, rows), n_rows)
