"""The workloads: synthetic rows, written with plain Zarr (zstd) for every peer to read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

CHUNK = 100_000


@dataclass(frozen=True)
class Workload:
    """Rows of a seeded linear model with correlated features (0.5 ** |i - j|).

    Parameters
    ----------
    name : str
    rows, features, classes : int
    condition : float
        Ratio of the largest to the smallest column scale, geometric in between.
    chunk : int
        Rows per chunk.
    """

    name: str
    rows: int
    features: int
    classes: int
    condition: float
    chunk: int = CHUNK

    def path(self, folder: Path) -> Path:
        """Where it is, or will be, written."""
        return folder / f"{self.name}-{self.rows}x{self.features}-{self.chunk}.zarr"

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and labels, a chunk at a time, float32 and int8."""
        rng = np.random.default_rng(0)
        d, K = self.features, self.classes
        scale = np.geomspace(self.condition**-0.5, self.condition**0.5, d).astype("f4")
        outputs = 1 if K == 2 else K
        w = (rng.standard_normal((d, outputs)) * 2 / np.sqrt(d)).astype("f4")
        for start in range(0, self.rows, self.chunk):
            n = min(self.chunk, self.rows - start)
            X = rng.standard_normal((n, d), dtype="f4")
            for j in range(1, d):
                X[:, j] = 0.5 * X[:, j - 1] + np.sqrt(0.75, dtype="f4") * X[:, j]
            z = X @ w
            if K == 2:
                y = z[:, 0] + rng.logistic(size=n) > 0
            else:
                y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
            yield X * scale, y.astype("i1")

    def write(self, folder: Path) -> Path:
        """Write it once; gives the path of a group with arrays X and y."""
        path = self.path(folder)
        if path.exists():
            return path
        temporary = path.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        group = zarr.open_group(temporary, mode="w")
        shape = (self.rows, self.features)
        X = group.create_array(
            "X",
            shape=shape,
            chunks=(self.chunk, self.features),
            dtype="f4",
            compressors=ZstdCodec(),
        )
        y = group.create_array("y", shape=shape[:1], chunks=(self.chunk,), dtype="i1")
        start = 0
        for Xb, yb in self.blocks():
            X[start : start + len(Xb)], y[start : start + len(yb)] = Xb, yb
            start += len(Xb)
        temporary.rename(path)
        return path


@dataclass(frozen=True)
class Blobs(Workload):
    """Rows of `classes` normal clusters of variance 1, in random order.

    Their means are uniform in a box that reaches from -condition to condition.
    """

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their clusters, a chunk at a time, float32 and int8."""
        rng = np.random.default_rng(0)
        shape = (self.classes, self.features)
        means = rng.uniform(-self.condition, self.condition, shape).astype("f4")
        for start in range(0, self.rows, self.chunk):
            y = rng.integers(0, self.classes, min(self.chunk, self.rows - start))
            noise = rng.standard_normal((len(y), self.features), dtype="f4")
            yield means[y] + noise, y.astype("i1")


W1 = Workload("w1", 4_000_000, 100, 2, 100.0)
W2 = Workload("w2", 500_000, 784, 10, 1.0, chunk=12_500)
W2_SCALED = Workload("w2-scaled", 500_000, 784, 10, 100.0, chunk=12_500)  # columns as W1's
BLOBS = Blobs("blobs", 1_000_000, 100, 50, 10.0)
