"""Which compressor for new data sets: size against the speed of reading it back.

Prints the table of docs/format.md: medians of several runs in one thread, chunks of 16 MB in the
page cache, read through daskdml's own reader. MB are decoded bytes.

    python benchmarks/codec.py [--rows 400000] [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from daskdml.io.arrays import default_chunks
from daskdml.io.chunks import ChunkReader

CODECS = {
    "none": None,
    "zstd, level 0": ZstdCodec(level=0),
    "zstd, level 0, checksum": ZstdCodec(level=0, checksum=True),
    "zstd, level 1, checksum": ZstdCodec(level=1, checksum=True),
    "blosc lz4, shuffle": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
    "blosc lz4, bitshuffle": BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
    "blosc zstd, bitshuffle": BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
}
FEATURES = 100


def data_sets(rows: int) -> dict[str, Callable[[], np.ndarray]]:
    """Give what is measured: digits of chance, measurements of one decimal, small counts."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    return {
        "normal": lambda: normal,
        "rounded": lambda: normal.round(1),
        "counts": lambda: rng.poisson(2.0, (rows, FEATURES)).astype(np.float32),
    }


def measure(x: np.ndarray, codec: object, folder: Path, runs: int) -> tuple[float, float, float]:
    """Give the stored share of the bytes, and MB/s of writing and of reading."""
    chunk = default_chunks(FEATURES, x.dtype)
    began = time.perf_counter()
    z = zarr.create_array(
        folder, data=x, chunks=(chunk, FEATURES), compressors=codec, overwrite=True
    )
    write = time.perf_counter() - began
    reader = ChunkReader(z)
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        stored = sum(
            reader.read(a, min(a + chunk, len(x)))[1].nbytes for a in range(0, len(x), chunk)
        )
        seconds.append(time.perf_counter() - began)
    mb = x.nbytes / 1e6
    return stored / x.nbytes, mb / write, mb / statistics.median(seconds[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    print(
        f"zarr {zarr.__version__}, numcodecs {numcodecs.__version__}, numpy {np.__version__}; "
        f"{args.rows} x {FEATURES} float32, median of {args.runs} runs\n"
    )
    found: dict[str, list[str]] = {name: [] for name in CODECS}
    names = []
    for name, make in data_sets(args.rows).items():
        x = make()
        names.append(name)
        for codec_name, codec in CODECS.items():
            with tempfile.TemporaryDirectory() as folder:
                share, write, read = measure(x, codec, Path(folder) / "x.zarr", args.runs)
            found[codec_name].append(f"{share:.2f} / {write:.0f} / {read:.0f}")
    print(f"| codec | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for codec_name, cells in found.items():
        print(f"| {codec_name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
