"""A file system in memory whose reads fail as a seed says: resets, throttling, silence, damage."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

ERRORS = {
    "reset": lambda path: ConnectionResetError(f"reset by peer: {path}"),
    "503": lambda path: OSError(5, f"An error occurred (503) when calling GetObject: {path}"),
    "slow down": lambda path: OSError(16, f"SlowDown: Please reduce your request rate: {path}"),
    "timeout": lambda path: TimeoutError(f"timed out: {path}"),
}


class FaultyFileSystem(MemoryFileSystem):
    """Files in memory; of the reads of "/c/" (chunks), some go wrong.

    What goes wrong depends on the seed, the path and how often it was asked for, not on timing.
    At most three reads of an object in a row fail, so that those who try again come through.
    """

    protocol = "faulty"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    share = 0.0
    seed = 0
    lasting: str | None = None  # a path whose reads all fail
    cut: str | None = None  # a path that loses its end
    flip: int | None = None  # a bit of the path in `altered` that is read the wrong way round
    altered: str | None = None
    seen: ClassVar[Counter[str]] = Counter()
    told: ClassVar[Counter[str]] = Counter()
    requests: ClassVar[list] = []
    busy: ClassVar[list] = [0, 0]
    pause = 0.0
    _lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("faulty://"))

    @classmethod
    def quiet(cls) -> None:
        """Nothing goes wrong any more."""
        cls.share, cls.lasting, cls.cut, cls.flip, cls.altered = 0.0, None, None, None, None
        cls.pause = 0.0
        cls.busy[:] = [0, 0]
        cls.requests.clear()
        cls.seen.clear()
        cls.told.clear()

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        """Read a file, or a part of it."""
        name = self._strip_protocol(path)
        with self._lock:
            self.requests.append((name, start, end))
            self.busy[0] += 1
            self.busy[1] = max(self.busy)
        try:
            if "/c/" in name:
                self._may_fail(name)
            time.sleep(self.pause)
            data = super().cat_file(path, start, end, **kwargs)
        finally:
            with self._lock:
                self.busy[0] -= 1
        if name == self.cut:
            return data[: len(data) // 2]
        if name == self.altered and self.flip is not None:
            changed = bytearray(data)
            changed[self.flip // 8 % len(data)] ^= 1 << self.flip % 8
            return bytes(changed)
        return data

    def _may_fail(self, name: str) -> None:
        with self._lock:
            times = self.seen[name]
            self.seen[name] += 1
        chance = random.Random(f"{self.seed} {name} {times}")
        if name != self.lasting and (chance.random() > self.share or times % 4 == 3):
            time.sleep(chance.random() * 0.003 * bool(self.share))  # now and then late
            return
        kind = chance.choice(sorted(ERRORS))
        with self._lock:
            self.told[kind] += 1
        raise ERRORS[kind](name)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
