"""What arrays are read at all: plain numbers, in chunks that memory can hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import zarr
from zarr.core.metadata import ArrayV3Metadata

__all__ = ["check_array"]

MOST_CHUNKS = 10_000_000
"""Chunks of an array: more are taken for damage, or for ill will."""

MOST_CHUNK_BYTES = 2**46
"""Decoded bytes of a chunk, likewise."""

_KNOWN = {
    "adler32", "astype", "bitround", "blosc", "bytes", "bz2", "cast_value", "crc32", "crc32c",
    "delta", "endian", "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma",
    "packbits", "pcodec", "quantize", "scale_offset", "sharding_indexed", "shuffle", "transpose",
    "zfpy", "zlib", "zstd",
}  # fmt: skip
"""Codecs of plain numbers: none of them makes Python objects."""


def check_array(array: zarr.Array[Any], name: str, chunk_rows: int) -> None:
    """Refuse arrays of anything but plain numbers or strings, and chunks that cannot be.

    Parameters
    ----------
    array : zarr.Array
    name : str
        For people.
    chunk_rows : int
        Rows of a stored object.

    Raises
    ------
    ValueError
        Names the array and what it is that is not read.
    """
    _check_codecs(array, name)
    n_rows = int(array.shape[0]) if array.shape else 0
    if n_rows > MOST_CHUNKS * chunk_rows:
        raise ValueError(
            f"{name} has {n_rows} rows in chunks of {chunk_rows}; at most {MOST_CHUNKS} chunks "
            "are read: write the array in larger ones"
        )
    row_nbytes = math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
    if min(chunk_rows, max(n_rows, 1)) * row_nbytes > MOST_CHUNK_BYTES:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)} in chunks of {chunk_rows} rows, which no "
            "memory holds; write the array in smaller chunks"
        )


def _check_codecs(array: zarr.Array[Any], name: str) -> None:
    """Refuse arrays whose chunks hold Python objects, or are decoded by who knows what."""
    if array.dtype.kind not in "biufcSU":
        raise ValueError(
            f"{name} has dtype {array.dtype}, which is not read: store numbers, or strings of "
            "fixed length"
        )
    for codec in _codecs_of(array.metadata):
        if codec.removeprefix("numcodecs.") not in _KNOWN:
            raise ValueError(
                f"{name} is encoded with {codec!r}, which is not read: it may run code; write the "
                "array again with a codec of numbers, such as zstd"
            )


def _codecs_of(meta: Any) -> list[str]:
    if not isinstance(meta, ArrayV3Metadata):
        stored = [*(meta.filters or ()), meta.compressor]
        return [str(codec.codec_id) for codec in stored if codec is not None]
    names, stack = [], list(meta.codecs)
    while stack:
        codec = stack.pop()
        names.append(str(codec.to_dict()["name"]))
        stack += [*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())]
    return names
