"""Rows of one stored array: chunks are read into reused buffers and decoded in place."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from daskdml.io import buffers
from daskdml.io.bounds import check_array
from daskdml.io.codecs import (
    CHECKSUM_NBYTES,
    ChunkCodec,
    check,
    check_encoded,
    chunk_codec,
    decode_into,
    with_fast_codecs,
)
from daskdml.io.fetch import in_order, width, within_limits
from daskdml.io.local import ChunkError, check_once, fill
from daskdml.io.shards import Parts, shards_of
from daskdml.io.store import array_name, object_name, retrying

__all__ = ["ChunkError", "ChunkReader", "ReadStats", "Wanted", "read_many", "row_bounds"]


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


class Wanted(NamedTuple):
    """Rows [start, stop) of an array, wanted in `out`."""

    reader: ChunkReader
    start: int
    stop: int
    out: np.ndarray


class _Piece(NamedTuple):
    """Rows [lo, hi) of chunk number `chunk`, wanted in `dest`."""

    reader: ChunkReader
    chunk: int
    lo: int
    hi: int
    dest: np.ndarray


class ChunkReader:
    """Reads ranges of rows of a Zarr array of one or two dimensions.

    The common layout (see `codecs.chunk_codec`) is read and decoded here, without the copies of
    the general path, and so are shards of a remote store; any other is read by Zarr itself, to the
    same values.

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
        self.chunk_rows = max(int((array.shards or array.chunks)[0]), 1)
        check_array(array, array_name(array), self.chunk_rows)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self._row_shape = self.shape[1:]
        self._row_nbytes = math.prod(self._row_shape) * self.dtype.itemsize
        self._codec = chunk_codec(array)
        self._store = array.store_path.store
        self._local = isinstance(self._store, LocalStore)
        self._shards = None if self._local or self._codec else shards_of(array)
        if self._codec is None and self._local:
            self.array = with_fast_codecs(array)

    @property
    def remote(self) -> bool:
        """Whether chunks are fetched from afar, many at a time."""
        return not self._local and (self._codec is not None or self._shards is not None)

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
        chunk = self.chunk_nbytes
        return chunk * 2 if self._local else chunk * (1 + width(chunk))

    @property
    def chunk_nbytes(self) -> int:
        """Decoded bytes of a stored object."""
        return self.chunk_rows * self._row_nbytes

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
        if self.remote:
            return out, read_many([Wanted(self, start, stop, out)])
        if self._codec is None or out.nbytes == 0:
            return out, self._read_general(start, stop, out)
        stats = ReadStats()
        for piece in self.pieces(start, stop, out):
            stats += self._read_local(piece, self._codec)
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

    def pieces(self, start: int, stop: int, out: np.ndarray) -> list[_Piece]:
        """Cut rows at the chunks' bounds."""
        if out.nbytes == 0:
            return []
        rows = self.chunk_rows
        pieces = []
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            lo, hi = max(start, first), min(stop, first + rows)
            pieces.append(_Piece(self, index, lo - first, hi - first, out[lo - start : hi - start]))
        return pieces

    def _read_general(self, start: int, stop: int, out: np.ndarray) -> ReadStats:
        began = time.perf_counter()
        if out.nbytes and self.strict:
            self._all_there(start, stop)
        if out.nbytes:
            rows = f"rows {start}:{stop} of {array_name(self.array)}"
            try:
                out[:] = retrying(lambda: np.asarray(self.array[start:stop]), f"reading {rows}")
            except OSError:
                raise
            except Exception as error:  # whatever Zarr's codecs make of damaged bytes
                why = f"{type(error).__name__}: {str(error)[:300]}"
                raise ChunkError(
                    f"a chunk with some of the {rows} is damaged ({why}); restore it or write the "
                    "data set again"
                ) from error
        return ReadStats(time.perf_counter() - began, 0.0, out.nbytes)

    def _all_there(self, start: int, stop: int) -> None:
        """Zarr takes fill values for chunks that are missing: ChunkError where one is."""
        lengths = [max(n, 1) for n in self.array.shards or self.array.chunks]
        rows = range(start // lengths[0], -(-stop // lengths[0]))
        others = (range(-(-n // k)) for n, k in zip(self.shape[1:], lengths[1:], strict=True))
        for coords in product(rows, *others):
            key = str(self.array.metadata.encode_chunk_key(coords))
            path = f"{self.array.store_path.path}/{key}".lstrip("/")
            name = object_name(self._store, path)
            if not retrying(lambda path=path: sync(self._store.exists(path)), f"looking at {name}"):  # type: ignore[misc]
                raise ChunkError(f"chunk {name} is missing; restore it or write the data set again")

    def _read_local(self, piece: _Piece, codec: ChunkCodec) -> ReadStats:
        path = self.chunk_name(piece.chunk)
        whole = piece.hi - piece.lo == self.chunk_rows
        in_place = codec.compressor == "none" and (whole or not codec.checked)
        began = time.perf_counter()
        try:
            with open(path, "rb", buffering=0, opener=_opened) as file:
                facts = os.fstat(file.fileno())
                size = facts.st_size - CHECKSUM_NBYTES * codec.checked
                if in_place:
                    self._check_plain_size(piece.chunk, size)
                    file.seek(piece.lo * self._row_nbytes)
                    plain = piece.dest.reshape(-1).view(np.uint8)
                else:
                    self._check_encoded_size(piece.chunk, size)
                    plain = buffers.empty(max(size, 0), np.uint8)
                fill(file, plain, path)
                checksum = np.frombuffer(file.read(CHECKSUM_NBYTES), np.uint8)
        except FileNotFoundError:
            self._missing(piece)
            return ReadStats()
        except IsADirectoryError:
            raise ChunkError(f"{path} is a folder, not a chunk; restore it") from None
        except PermissionError as error:
            raise PermissionError(f"{path} may not be read; check its permissions") from error
        read = time.perf_counter()
        with self._naming(piece.chunk):
            if codec.checked:
                check_once(path, facts, plain, checksum)
            if not in_place:
                self._decode(codec.compressor, plain, self.chunk_rows, piece.lo, piece.dest)
        return ReadStats(read - began, time.perf_counter() - read, plain.nbytes)

    async def fetch(self, piece: _Piece) -> np.ndarray | Parts | None:
        """Get what is stored of a piece of a remote store; None where nothing is."""
        path, nbytes = self._path(piece.chunk), self.chunk_nbytes

        async def get(part: ByteRequest | None) -> np.ndarray | None:
            asked = self._store.get(path, default_buffer_prototype(), part)
            got = await within_limits(asked, nbytes)
            return None if got is None else np.asarray(got.as_numpy_array()).view(np.uint8)

        if self._shards is not None:
            return await self._shards.fetch(get, piece.lo, piece.hi)
        if self._codec == ChunkCodec("none", False):
            return await get(
                RangeByteRequest(piece.lo * self._row_nbytes, piece.hi * self._row_nbytes)
            )
        return await get(None)

    def fetch_again(self, piece: _Piece, error: Exception) -> np.ndarray | Parts | None:
        """Deal with a failed fetch as `retrying` does, its first attempt being made."""
        failed: list[Exception] = [error]

        def attempt() -> np.ndarray | Parts | None:
            if failed:
                raise failed.pop()
            return sync(self.fetch(piece))

        with self._naming(piece.chunk):
            return retrying(attempt, f"reading {self.chunk_name(piece.chunk)}")

    def place(self, piece: _Piece, got: np.ndarray | Parts | None) -> int:
        """Decode what was fetched into its place; give its bytes."""
        if got is None:
            self._missing(piece)
            return 0
        with self._naming(piece.chunk):
            if isinstance(got, Parts):
                self._place_shard(piece, got)
            else:
                assert self._codec is not None
                # Where nothing is compressed or checked, the rows alone were fetched.
                alone = self._codec == ChunkCodec("none", False)
                rows, lo = (len(piece.dest), 0) if alone else (self.chunk_rows, piece.lo)
                self._place_chunk(self._codec, got, rows, lo, piece.dest)
        return got.nbytes

    def _place_shard(self, piece: _Piece, parts: Parts) -> None:
        assert self._shards is not None
        rows = self._shards.rows
        for number, encoded in self._shards.chunks(parts, piece.lo, piece.hi):
            lo, hi = max(piece.lo, number * rows), min(piece.hi, (number + 1) * rows)
            dest = piece.dest[lo - piece.lo : hi - piece.lo]
            if encoded is None:
                dest[...] = self.array.metadata.fill_value
            else:
                self._place_chunk(self._shards.codec, encoded, rows, lo - number * rows, dest)

    def _place_chunk(
        self, codec: ChunkCodec, encoded: np.ndarray, rows: int, lo: int, dest: np.ndarray
    ) -> None:
        if codec.checked:
            encoded, checksum = encoded[:-CHECKSUM_NBYTES], encoded[-CHECKSUM_NBYTES:]
            check(encoded, checksum)
        self._decode(codec.compressor, encoded, rows, lo, dest)

    def _decode(
        self, compressor: str, encoded: np.ndarray, rows: int, lo: int, dest: np.ndarray
    ) -> None:
        """Decode a chunk of so many rows; those from `lo` on go to `dest`."""
        if len(dest) == rows:
            decode_into(compressor, encoded, dest)
            return
        check_encoded(compressor, encoded, rows * self._row_nbytes)
        whole = buffers.empty((rows, *self._row_shape), self.dtype)
        decode_into(compressor, encoded, whole)
        dest[:] = whole[lo : lo + len(dest)]

    @contextmanager
    def _naming(self, chunk: int) -> Iterator[None]:
        """Errors of decoding name the object."""
        try:
            yield
        except ValueError as error:
            raise ChunkError(
                f"chunk {self.chunk_name(chunk)} is damaged: {error}; restore it or write the data "
                "set again"
            ) from error

    def _missing(self, piece: _Piece) -> None:
        if self.strict:
            raise ChunkError(
                f"chunk {self.chunk_name(piece.chunk)} is missing; restore it or write the data "
                "set again"
            )
        piece.dest[...] = self.array.metadata.fill_value

    def _check_encoded_size(self, index: int, size: int) -> None:
        wanted = self.chunk_nbytes
        if size > 2 * wanted + 2**20:
            raise ChunkError(
                f"chunk {self.chunk_name(index)} is damaged: it has {size} bytes, its rows "
                f"{wanted}; restore it or write the data set again"
            )

    def _check_plain_size(self, index: int, size: int) -> None:
        wanted = self.chunk_nbytes
        if size != wanted:
            raise ChunkError(
                f"chunk {self.chunk_name(index)} is damaged: it has {size} bytes instead of "
                f"{wanted}; restore it or write the data set again"
            )


def _opened(path: str, flags: int) -> int:
    """Open a file; what is none, such as a pipe without a writer, is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_many(wanted: Sequence[Wanted]) -> ReadStats:
    """Read rows of several arrays; the chunks of remote ones are fetched side by side.

    Raises
    ------
    ChunkError, ConnectionError, PermissionError
        As `ChunkReader.read`.
    """
    stats, pieces = ReadStats(), list[_Piece]()
    for want in wanted:
        if want.reader.remote:
            pieces += want.reader.pieces(want.start, want.stop, want.out)
        else:
            stats += want.reader.read(want.start, want.stop, want.out)[1]
    if not pieces:
        return stats
    fetches = [partial(piece.reader.fetch, piece) for piece in pieces]
    most = width(max(piece.reader.chunk_nbytes for piece in pieces))
    then = time.perf_counter()
    for piece, got in zip(pieces, in_order(fetches, most), strict=True):
        if isinstance(got, Exception):
            got = piece.reader.fetch_again(piece, got)
        now = time.perf_counter()
        nbytes = piece.reader.place(piece, got)
        del got
        read, then = now - then, time.perf_counter()
        stats += ReadStats(read, then - now, nbytes)
    return stats


def row_bounds(n_rows: int, rows: int) -> tuple[int, ...]:
    """Cut rows into runs of equal length, the last one shorter.

    Examples
    --------
    >>> row_bounds(10, 4)
    (0, 4, 8, 10)
    """
    return (*range(0, n_rows, rows), n_rows)
