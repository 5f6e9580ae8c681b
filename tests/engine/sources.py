"""Sources that the tests of the engine read from, and what they do with blocks."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from dataclasses import dataclass, field

import numpy as np

from daskdml.engine import pace
from daskdml.io.chunks import ReadStats, row_bounds
from daskdml.kernels.block import Block


@dataclass
class Made:
    """Rows that are a function of their number; a read takes `seconds`."""

    n_rows: int
    chunk_rows: int
    n_features: int = 2
    seconds: float = 0.0

    dtype = np.dtype("f8")
    feature_names = None
    has_y = True
    has_sample_weight = False
    scratch_nbytes = 0
    in_memory = False
    name = "made"
    token = "made"
    written = None

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row and its target."""
        return 8 * (self.n_features + 1)

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        """Where chunks begin and end."""
        return row_bounds(self.n_rows, self.chunk_rows)

    def read(self, start, stop, parts=("X", "y", "sample_weight")):
        """Rows start..stop."""
        time.sleep(self.seconds)
        rows = np.arange(start, stop, dtype="f8")
        X = np.repeat(rows[:, None], self.n_features, axis=1)
        return Block(X, rows, None), ReadStats(self.seconds, 0.0, X.nbytes)


@dataclass
class Counting(Made):
    """Counts the blocks that are alive; `most` is the largest number so far."""

    alive: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, start, stop, parts=("X", "y", "sample_weight")):
        """Rows start..stop, counted until they are gone."""
        block, stats = super().read(start, stop, parts)
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(block.X, self._gone)
        return block, stats

    def _gone(self) -> None:
        with self.lock:
            self.alive -= 1


def set_segments(monkeypatch, n: int) -> None:
    """Have n groups be a unit of a pass's sum, and its segments as long on one slot."""
    for size, value in (("UNIT", n), ("FIRST", n), ("MOST", n), ("AT_LEAST", 1)):
        monkeypatch.setattr(pace, size, value)


def total(block: Block) -> float:
    """Sum of a block's rows."""
    return float(block.X.sum())


def slow_total(block: Block) -> float:
    """The same, in a twentieth of a second."""
    time.sleep(0.05)
    return total(block)


class Crash:
    """Block -> its sum; the process dies where row 20 is in it."""

    def __call__(self, block):
        """Sum of a block's rows."""
        if block.start <= 20 < block.start + block.n_rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return total(block)


class Hoard(Crash):
    """Block -> its sum; the process takes more memory than it may where row 20 is in it."""

    def __call__(self, block):
        """Sum of a block's rows."""
        if block.start <= 20 < block.start + block.n_rows:
            hoard = [np.ones(10**7) for _ in range(10)]  # of 500 MB, 800
            time.sleep(20)
            return len(hoard)
        return total(block)
