"""Decoding in place, and telling damage."""

from __future__ import annotations

import gzip

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import pytest
import zarr

from daskdml.io.codecs import decode_into, with_fast_codecs

ROWS = np.random.default_rng(0).standard_normal(5000).round(2)
ENCODED = {
    "none": ROWS.tobytes(),
    "zstd": numcodecs.zstd.compress(ROWS, 1),
    "blosc": numcodecs.blosc.compress(ROWS, b"lz4", 5, numcodecs.blosc.BITSHUFFLE),
    "gzip": gzip.compress(ROWS.tobytes(), 1),
}


def as_bytes(encoded: bytes) -> np.ndarray:
    """Give bytes as the reader has them."""
    return np.frombuffer(encoded, np.uint8)


@pytest.mark.parametrize("codec", ENCODED)
def test_decodes_to_what_was_encoded(codec):
    """Every codec gives back the values."""
    dest = np.empty_like(ROWS)
    decode_into(codec, as_bytes(ENCODED[codec]), dest)
    assert np.array_equal(dest, ROWS)


@pytest.mark.parametrize("codec", ENCODED)
@pytest.mark.parametrize("keep", [0, 3, 15, 17, 1000, -1])
def test_truncated_bytes_are_told(codec, keep):
    """Bytes cut off at any place are an error, never values."""
    with pytest.raises(ValueError):
        decode_into(codec, as_bytes(ENCODED[codec][:keep]), np.empty_like(ROWS))


@pytest.mark.parametrize("codec", ENCODED)
@pytest.mark.parametrize("n", [4999, 5001, 1])
def test_another_size_is_told(codec, n):
    """Bytes that decode to another size than wanted are an error, never garbage at the end."""
    with pytest.raises(ValueError, match=r"decodes to (40000|more than)|Blosc"):
        decode_into(codec, as_bytes(ENCODED[codec]), np.empty(n))


@pytest.mark.parametrize("n", [1, 31, 32, 70, 1000, 8192, 9000])
@pytest.mark.parametrize("level", [-1, 0, 9])
def test_sizes_of_zstandard_frames(n, level):
    """All forms of the content size in a frame's header are understood."""
    rows = np.arange(n, dtype="f8")
    for checksum in (False, True):
        dest = np.empty_like(rows)
        decode_into("zstd", as_bytes(numcodecs.zstd.compress(rows, level, checksum)), dest)
        assert np.array_equal(dest, rows)


def test_zarrs_reads_what_the_fast_path_does_not(tmp_path):
    """With the extra `fast`, shards on local disk are decoded by zarrs, to the same values."""
    pytest.importorskip("zarrs")
    rows = np.arange(4000.0).reshape(1000, 4)
    z = zarr.create_array(tmp_path / "z.zarr", data=rows, chunks=(50, 4), shards=(200, 4))
    fast = with_fast_codecs(z)
    assert type(fast._async_array.codec_pipeline).__module__.startswith("zarrs")
    assert np.array_equal(fast[130:777], rows[130:777])
    assert type(z._async_array.codec_pipeline).__module__.startswith("zarr.")


def test_a_checksum_tells_a_flipped_bit():
    """Damage inside incompressible bytes does not pass where the frame has a checksum."""
    rows = np.frombuffer(np.random.default_rng(0).bytes(80_000), "f8")
    encoded = bytearray(numcodecs.zstd.compress(rows, 0, True))
    encoded[40_000] ^= 1
    with pytest.raises(ValueError):
        decode_into("zstd", as_bytes(bytes(encoded)), np.empty_like(rows))


def test_blosc_leaves_the_number_of_threads_alone():
    """Decoding in one thread does not change what the user set."""
    before = numcodecs.blosc.set_nthreads(3)
    try:
        decode_into("blosc", as_bytes(ENCODED["blosc"]), np.empty_like(ROWS))
        assert numcodecs.blosc.get_nthreads() == 3
    finally:
        numcodecs.blosc.set_nthreads(before)
