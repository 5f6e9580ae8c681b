"""Which chunks of an array are finished, where a write goes on."""

from __future__ import annotations

import math
from typing import Any

import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore

from daskdml.io.chunks import ChunkError, ChunkReader
from daskdml.io.store import array_name, retrying

__all__ = ["finished_chunks"]

_IN_ONE_PIECE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
_IN_ONE_PIECE |= {"hdfs", "webhdfs"}  # with this library's file systems


def finished_chunks(array: zarr.Array[Any], check: bool = False) -> set[int]:
    """Numbers of the chunks that an array has, which are cut along its rows alone.

    Parameters
    ----------
    array : zarr.Array
    check : bool
        Count only those that can be decoded. Always so where the store does not put objects in one
        piece.
    """
    store, rows = array.store_path.store, array.chunks[0]
    base = f"{array.store_path.path}/c/".lstrip("/")
    tail = "/0" * (array.ndim - 1)
    n = math.ceil(array.shape[0] / rows)
    keys = retrying(lambda: _keys(store, base), f"listing {array_name(array)}")
    found = {i for i in range(n) if f"{base}{i}{tail}" in keys}
    if check or not _puts_in_one_piece(store):
        reader = ChunkReader(array, strict=True)
        return {i for i in found if _is_whole(reader, i)}
    return found


def _keys(store: Any, prefix: str) -> set[str]:
    async def listed() -> set[str]:
        return {key async for key in store.list_prefix(prefix)}

    if hasattr(store, "fs"):
        store.fs.invalidate_cache()
    try:
        return sync(listed())
    except FileNotFoundError:
        return set()


def _puts_in_one_piece(store: Any) -> bool:
    if isinstance(store, LocalStore):
        return True
    fs = getattr(store, "fs", None)
    protocol = getattr(getattr(fs, "sync_fs", fs), "protocol", ())
    return bool(_IN_ONE_PIECE & set([protocol] if isinstance(protocol, str) else protocol))


def _is_whole(reader: ChunkReader, chunk: int) -> bool:
    start = chunk * reader.chunk_rows
    try:
        reader.read(start, min(start + reader.chunk_rows, reader.n_rows))
    except (ValueError, RuntimeError, ChunkError):  # or what another codec raises
        return False
    return True
