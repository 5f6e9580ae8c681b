"""Decoding one chunk straight into the memory where its rows are wanted."""

from __future__ import annotations

import gzip
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import google_crc32c
import numcodecs.blosc  # type: ignore[import-untyped]
import numcodecs.zstd  # type: ignore[import-untyped]
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.core.chunk_grids import RegularChunkGrid
from zarr.core.metadata import ArrayV3Metadata

__all__ = ["ChunkCodec", "check", "chunk_codec", "decode_into", "with_fast_codecs"]

CHECKSUM_NBYTES = 4
_ZSTD_MAGIC = 0xFD2FB528


@dataclass(frozen=True, slots=True)
class ChunkCodec:
    """How a chunk that can be decoded in place is encoded.

    Parameters
    ----------
    compressor : {"none", "zstd", "blosc", "gzip"}
    checked : bool
        Whether a checksum (CRC-32C) of the encoded bytes follows them.
    """

    compressor: str
    checked: bool


def chunk_codec(array: zarr.Array[Any]) -> ChunkCodec | None:
    """How the chunks of an array are encoded, where they can be decoded in place.

    Parameters
    ----------
    array : zarr.Array

    Returns
    -------
    ChunkCodec or None
        For a Zarr v3 array of native numbers or booleans, cut along its rows only, without shards,
        filters or transpositions; None for any other layout.
    """
    if not by_rows(array):
        return None
    return codec_of(array.metadata.codecs, array.dtype)  # type: ignore[union-attr]


def by_rows(array: zarr.Array[Any]) -> bool:
    """Whether it is a Zarr v3 array of native numbers whose objects are runs of full rows."""
    meta = array.metadata
    if not isinstance(meta, ArrayV3Metadata) or not isinstance(meta.chunk_grid, RegularChunkGrid):
        return False
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf" or not array.dtype.isnative:
        return False
    return array.ndim == 1 or meta.chunk_grid.chunk_shape[1] == array.shape[1]


def codec_of(codecs: Sequence[Any], dtype: np.dtype[Any]) -> ChunkCodec | None:
    """Name codecs that `decode_into` knows; None for others."""
    first, *rest = codecs
    little = isinstance(first, BytesCodec) and (
        dtype.itemsize == 1 or getattr(first.endian, "value", None) == "little"
    )
    if not little or np.dtype("=i2").str != "<i2":
        return None
    checked = bool(rest) and isinstance(rest[-1], Crc32cCodec)
    if checked:
        rest.pop()
    if not rest:
        return ChunkCodec("none", checked)
    names = {ZstdCodec: "zstd", BloscCodec: "blosc", GzipCodec: "gzip"}
    name = names.get(type(rest[0])) if len(rest) == 1 else None
    return None if name is None else ChunkCodec(name, checked)


def check(plain: np.ndarray, checksum: np.ndarray) -> None:
    """Compare bytes with their stored checksum.

    Raises
    ------
    ValueError
        Where the bytes are not those that were written.

    Examples
    --------
    >>> check(np.zeros(8, "u1"), np.zeros(4, "u1"))
    Traceback (most recent call last):
    ValueError: its checksum is not that of its bytes
    """
    if google_crc32c.value(plain) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError("its checksum is not that of its bytes")


def with_fast_codecs(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Give the array with its codecs run by zarrs, in Rust, where ``daskdml[fast]`` brought that.

    Parameters
    ----------
    array : zarr.Array
        In a local store.

    Returns
    -------
    zarr.Array
        The same array, opened again for reading, or itself where zarrs is missing or cannot help.
    """
    if find_spec("zarrs") is None or not isinstance(array.metadata, ArrayV3Metadata):
        return array
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        where = array.store_path
        return zarr.open_array(where.store, path=where.path, mode="r", zarr_format=3)


def decode_into(codec: str, encoded: np.ndarray, dest: np.ndarray) -> None:
    """Decode one chunk into an array of exactly its decoded size.

    Parameters
    ----------
    codec : {"none", "zstd", "blosc", "gzip"}
        The chunk's compressor, see `ChunkCodec`.
    encoded : ndarray of shape (m,), uint8
        The stored bytes.
    dest : ndarray, C-contiguous
        Where the decoded bytes go. Large decodes release the GIL.

    Raises
    ------
    ValueError
        Where the bytes are truncated, damaged or do not decode to the size of `dest`.

    Examples
    --------
    >>> import numcodecs.zstd
    >>> rows = np.arange(4.0)
    >>> dest = np.empty(4)
    >>> decode_into("zstd", np.frombuffer(numcodecs.zstd.compress(rows, 1), "u1"), dest)
    >>> dest
    array([0., 1., 2., 3.])
    """
    out = dest.reshape(-1).view(np.uint8)
    if codec == "zstd":
        _check_size(_zstd_size(encoded), out.nbytes)
        try:
            numcodecs.zstd.decompress(encoded, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
    elif codec == "blosc":
        _decode_blosc(encoded, out)
    elif codec == "gzip":
        try:
            plain = gzip.decompress(encoded.data)
        except (EOFError, zlib.error, OSError) as error:
            raise ValueError(str(error)) from error
        _check_size(len(plain), out.nbytes)
        out[:] = np.frombuffer(plain, np.uint8)
    else:
        _check_size(encoded.nbytes, out.nbytes)
        out[:] = encoded


def _check_size(found: int | None, wanted: int) -> None:
    if found is not None and found != wanted:
        raise ValueError(f"it decodes to {found} bytes where the array's metadata says {wanted}")


def _zstd_size(encoded: np.ndarray) -> int | None:
    """Read the content size from a Zstandard frame header (RFC 8878, section 3.1.1.1)."""
    head = encoded[:18].tobytes()
    if len(head) < 6 or int.from_bytes(head[:4], "little") != _ZSTD_MAGIC:
        raise ValueError("it is no Zstandard frame")
    flags = head[4]
    single_segment = bool(flags & 0x20)
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[flags >> 6]
    if size_bytes == 0:
        return None
    at = 5 + (not single_segment) + (0, 1, 2, 4)[flags & 3]
    size = int.from_bytes(head[at : at + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size


def _decode_blosc(encoded: np.ndarray, out: np.ndarray) -> None:
    if encoded.nbytes < 16:
        raise ValueError(f"{encoded.nbytes} bytes are too few for a Blosc header")
    plain, _, stored = struct.unpack_from("<III", encoded.data, 4)
    if stored != encoded.nbytes:
        raise ValueError(f"{encoded.nbytes} bytes are left of the {stored} that were written")
    _check_size(plain, out.nbytes)
    # In the main thread Blosc starts threads of its own, which would fight over the cores with
    # the other tasks; everywhere else it runs in the caller.
    is_main = threading.current_thread() is threading.main_thread()
    before = numcodecs.blosc.set_nthreads(1) if is_main else 0
    try:
        numcodecs.blosc.decompress(encoded, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    finally:
        if is_main:
            numcodecs.blosc.set_nthreads(before)
