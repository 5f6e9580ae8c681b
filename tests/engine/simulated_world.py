"""What a simulated cluster is made of: processes, a clock, and how much goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from daskdml.engine.cache import BlockCache


class Wrong(AssertionError):
    """A task that is not pure, other bits, or something left behind."""


@dataclass(frozen=True)
class Habits:
    """How much goes wrong; drawn for each schedule, so that some are calm and some are wild."""

    trouble: float  # chance of a disaster at each event
    twice: float  # of a task being run on two workers
    slow: float  # of a task taking fifty times as long
    store: float  # of an answer of the store that is late or an error
    full: float  # of a worker having no room to pin a block
    cold: bool  # whether each worker opens the stores for itself

    @classmethod
    def drawn(cls, r: Random) -> Habits:
        """Habits of a schedule."""
        trouble, twice = r.choice((0.0, 0.01, 0.03, 0.1)), r.choice((0.0, 0.1, 0.3))
        slow, store = r.choice((0.0, 0.1)), r.choice((0.0, 0.02, 0.1))
        return cls(trouble, twice, slow, store, r.choice((0.0, 0.5, 1.0)), r.random() < 0.1)


class Clock:
    """Stands for the module `time`: nobody waits."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        """Seconds."""
        return self.now

    monotonic = perf_counter = time

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self.now += seconds


@dataclass(eq=False)
class SimulatedWorker:
    """A process: what it holds, and what it is doing."""

    name: str
    slots: int
    results: dict[Any, Any] = field(default_factory=dict)
    pinned: BlockCache = field(default_factory=BlockCache)
    opened: tuple[dict[Any, Any], dict[Any, Any]] = field(default_factory=lambda: ({}, {}))
    running: int = 0
    frozen: bool = False
    gone: bool = False
    given_up: bool = False
