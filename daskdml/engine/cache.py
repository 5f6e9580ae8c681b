"""Blocks that stay pinned in a worker process between the passes of one fit.

The cache only changes when a block is read, never what it holds: a load that misses reads the
store again. That is why a lost worker costs its pinned blocks a second read and nothing else, and
why no Dask task's lineage reaches back into an earlier pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

ABANDONED_AFTER = 600.0  # seconds without a use, after which a fit's blocks may be dropped
DROPPED = 256  # ended fits that are remembered


@dataclass
class _Shelf:
    used: int = 0
    touched: float = 0.0
    blocks: dict[Any, tuple[Any, int]] = field(default_factory=dict)


class BlockCache:
    """Keeps the first blocks offered until a fit's budget is full; evicts only for another fit.

    A cyclic walk longer than the cache would miss every time under least-recently-used eviction;
    keeping the first blocks hits for exactly the part that fits.

    Examples
    --------
    >>> cache = BlockCache()
    >>> cache.offer("fit", 0, "rows", nbytes=4, budget=8)
    True
    >>> cache.get("fit", 0)
    'rows'
    >>> cache.drop("fit")
    >>> cache.get("fit", 0) is None
    True
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cap: int | None = None
        self._shelves: dict[str, _Shelf] = {}
        self._dropped: deque[str] = deque(maxlen=DROPPED)

    def get(self, token: str, key: Any) -> Any | None:
        """The pinned block, or None."""
        with self._lock:
            shelf = self._shelves.get(token)
            if shelf is None:
                return None
            shelf.touched = time.monotonic()
            return shelf.blocks.get(key, (None, 0))[0]

    def offer(self, token: str, key: Any, block: Any, nbytes: int, budget: int) -> bool:
        """Pin a block if the fit's budget (bytes in this process) has room; tell if it did."""
        now = time.monotonic()
        with self._lock:
            if token in self._dropped:
                return False
            for old in [t for t, s in self._shelves.items() if now - s.touched > ABANDONED_AFTER]:
                del self._shelves[old]
            shelf = self._shelves.setdefault(token, _Shelf())
            shelf.touched = now
            if key in shelf.blocks:
                return True
            if shelf.used + nbytes > (budget if self._cap is None else min(budget, self._cap)):
                return False
            shelf.blocks[key] = block, nbytes
            shelf.used += nbytes
            return True

    def cap(self, nbytes: int) -> None:
        """Let no fit keep more than so many bytes, from now on and until there is one fit alone."""
        with self._lock:
            self._cap = nbytes
            for shelf in self._shelves.values():
                while shelf.used > nbytes:
                    shelf.used -= shelf.blocks.popitem()[1][1]

    def drop_others(self, living: Collection[str]) -> None:
        """Forget the blocks of all fits but these: their clients died, and told nobody."""
        with self._lock:
            dead = [token for token in self._shelves if token not in living]
        for token in dead:
            self.drop(token)

    def drop(self, token: str) -> None:
        """Forget a fit's blocks, and take no more of them: a task may still be reading one."""
        with self._lock:
            self._shelves.pop(token, None)
            if len(self._shelves) <= 1:
                self._cap = None
            self._dropped.append(token)


PINNED = BlockCache()
