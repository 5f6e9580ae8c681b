"""Decoding one chunk straight into the memory where its rows are wanted."""

from __future__ import annotations

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

__all__ = [
    "ChunkCodec",
    "check",
    "check_encoded",
    "chunk_codec",
    "decode_into",
    "with_fast_codecs",
]

CHECKSUM_NBYTES = 4
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_BLOCK = 2**17  # bytes that a block decodes to at most
_SLACK = 2**20


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


def check_encoded(codec: str, encoded: np.ndarray, nbytes: int) -> None:
    """Refuse bytes that say they decode to another size, before there is memory for that.

    Raises
    ------
    ValueError
    """
    if codec == "zstd":
        found = _zstd_size(encoded)
        if found is None and (most := _zstd_most(encoded)) > 16 * nbytes + _SLACK:
            raise ValueError(f"it may decode to {most} bytes, far more than the {nbytes} wanted")
    elif codec == "blosc":
        found = _blosc_size(encoded)
    else:
        found = encoded.nbytes if codec == "none" else None
    _check_size(found, nbytes)


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
    check_encoded(codec, encoded, out.nbytes)
    if codec == "zstd":
        try:
            plain = numcodecs.zstd.decompress(encoded, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        _check_size(plain.nbytes, out.nbytes)
    elif codec == "blosc":
        _decode_blosc(encoded, out)
    elif codec == "gzip":
        _decode_gzip(encoded, out)
    else:
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


def _zstd_most(encoded: np.ndarray) -> int:
    """Bytes that a Zstandard frame decodes to at most, from the headers of its blocks."""
    flags, most = int(encoded[4]), 0
    at = 6 + (0, 1, 2, 4)[flags & 3]  # a frame that does not tell its size has a window
    while at + 3 <= encoded.nbytes:
        header = int.from_bytes(encoded[at : at + 3].tobytes(), "little")
        kind, size = header >> 1 & 3, header >> 3
        most += _ZSTD_BLOCK if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)
        if header & 1:
            break
    return most


def _blosc_size(encoded: np.ndarray) -> int:
    """Read the decoded size from a Blosc header."""
    if encoded.nbytes < 16:
        raise ValueError(f"{encoded.nbytes} bytes are too few for a Blosc header")
    plain, _, stored = struct.unpack_from("<III", encoded.data, 4)
    if stored != encoded.nbytes:
        raise ValueError(f"{encoded.nbytes} bytes are left of the {stored} that were written")
    return int(plain)


def _decode_gzip(encoded: np.ndarray, out: np.ndarray) -> None:
    """Decode members one after the other, a byte more than wanted at most."""
    at, data = 0, encoded.tobytes()
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            plain = member.decompress(data, out.nbytes - at + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if at + len(plain) > out.nbytes:
            raise ValueError(
                f"it decodes to more than the {out.nbytes} bytes that the array's metadata say"
            )
        if not member.eof:
            raise ValueError("its end is missing")
        out[at : at + len(plain)] = np.frombuffer(plain, np.uint8)
        at, data = at + len(plain), member.unused_data.lstrip(b"\0")
    _check_size(at, out.nbytes)


def _decode_blosc(encoded: np.ndarray, out: np.ndarray) -> None:
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
