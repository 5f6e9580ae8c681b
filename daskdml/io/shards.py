"""Rows of a sharded array from a remote store: inner chunks that lie together are read together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata import ArrayV3Metadata

from daskdml.io.codecs import ChunkCodec, by_rows, check, codec_of

__all__ = ["Shards", "shards_of"]

GAP = 65_536
"""Unwanted bytes between two wanted chunks that are rather read than asked around."""

ABSENT = np.uint64(2**64 - 1)

Get = Callable[[ByteRequest | None], Awaitable[np.ndarray | None]]


@dataclass(frozen=True)
class Parts:
    """Some bytes of a shard.

    Parameters
    ----------
    places : ndarray of shape (n, 2)
        Offset and size of each of its chunks.
    runs : list of (int, ndarray)
        Offset and bytes of what was read.
    """

    places: np.ndarray
    runs: list[tuple[int, np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes that were read."""
        return sum(run.nbytes for _, run in self.runs)


@dataclass(frozen=True)
class Shards:
    """How the shards of an array are made.

    Parameters
    ----------
    rows : int
        Of an inner chunk.
    n : int
        Inner chunks of a shard.
    codec : ChunkCodec
        Of the inner chunks.
    checked : bool
        Whether the index has a checksum.
    at_end : bool
        Whether the index is at the end of the shard, else at its beginning.
    """

    rows: int
    n: int
    codec: ChunkCodec
    checked: bool
    at_end: bool

    async def fetch(self, get: Get, lo: int, hi: int) -> Parts | None:
        """Read the inner chunks that rows [lo, hi) of a shard touch; None where it is absent.

        A whole shard is one request; a part is one for the index and one for each run of chunks
        that lie together.
        """
        first, last = lo // self.rows, -(-hi // self.rows)
        size = self.n * 16 + 4 * self.checked
        if (first, last) == (0, self.n):
            whole = await get(None)
            if whole is None:
                return None
            return Parts(self._index(whole[-size:] if self.at_end else whole[:size]), [(0, whole)])
        raw = await get(SuffixByteRequest(size) if self.at_end else RangeByteRequest(0, size))
        if raw is None:
            return None
        index = self._index(raw)
        runs = merged(index[first:last])
        found = await asyncio.gather(*(get(RangeByteRequest(a, b)) for a, b in runs))
        starts = [a for a, _ in runs]
        there = [(a, run) for a, run in zip(starts, found, strict=True) if run is not None]
        return Parts(index, there)

    def _index(self, raw: np.ndarray) -> np.ndarray:
        if raw.nbytes != self.n * 16 + 4 * self.checked:
            raise ValueError(f"its index has {raw.nbytes} bytes")
        plain = raw[: self.n * 16]
        if self.checked:
            check(plain, raw[self.n * 16 :])
        return np.frombuffer(plain.tobytes(), "<u8").reshape(self.n, 2)

    def chunks(self, parts: Parts, lo: int, hi: int) -> Iterator[tuple[int, np.ndarray | None]]:
        """Number and bytes of each inner chunk that rows [lo, hi) touch; None for absent ones."""
        for number in range(lo // self.rows, -(-hi // self.rows)):
            offset, size = parts.places[number]
            yield number, None if offset == ABSENT else _cut(parts.runs, int(offset), int(size))


def merged(index: np.ndarray) -> list[tuple[int, int]]:
    """Give the byte ranges that cover chunks; those with less than `GAP` between them as one.

    Examples
    --------
    >>> merged(np.array([[0, 10], [10, 10], [900_000, 10]], np.uint64))
    [(0, 20), (900000, 900010)]
    """
    runs: list[tuple[int, int]] = []
    there = index[index[:, 0] != ABSENT]
    for offset, size in there[np.argsort(there[:, 0], kind="stable")].tolist():
        if runs and offset <= runs[-1][1] + GAP:
            runs[-1] = runs[-1][0], max(runs[-1][1], offset + size)
        else:
            runs.append((offset, offset + size))
    return runs


def _cut(runs: list[tuple[int, np.ndarray]], offset: int, size: int) -> np.ndarray:
    for start, run in runs:
        if start <= offset and offset + size <= start + run.nbytes:
            return run[offset - start : offset - start + size]
    raise ValueError(f"bytes {offset}:{offset + size} of it are missing")


def shards_of(array: zarr.Array[Any]) -> Shards | None:
    """How an array is sharded; None where it is not, or not along its rows alone."""
    meta = array.metadata
    if not isinstance(meta, ArrayV3Metadata) or not by_rows(array) or len(meta.codecs) != 1:
        return None
    sharding = meta.codecs[0]
    if not isinstance(sharding, ShardingCodec) or sharding.chunk_shape[1:] != array.shape[1:]:
        return None
    codec = codec_of(sharding.codecs, array.dtype)
    first, *rest = sharding.index_codecs
    plain = isinstance(first, BytesCodec) and getattr(first.endian, "value", None) == "little"
    if codec is None or not plain or any(not isinstance(c, Crc32cCodec) for c in rest):
        return None
    assert array.shards is not None
    rows = int(sharding.chunk_shape[0])
    at_end = getattr(sharding.index_location, "value", "end") == "end"
    return Shards(rows, int(array.shards[0]) // rows, codec, bool(rest), at_end)
