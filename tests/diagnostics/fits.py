"""The events of a small fit on two workers, for the tests of what shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daskdml.events import BlockEnd, Event, FitEnd, FitStart, Message, PassEnd, PassStart

BLOCK = 40_000_000  # bytes of a block's rows
STORED = 30_000_000  # bytes they take in storage
OBJECTIVES = (0.52, 0.3205, 0.320001)
GAPS = (0.2, 5e-4, 1e-9)


@dataclass(frozen=True)
class Certificate:
    """A certificate as a fit would give it."""

    objective: float = OBJECTIVES[-1]
    gap: float = GAPS[-1]
    relative: float = GAPS[-1] / OBJECTIVES[-1]
    rigorous: bool = True


@dataclass(frozen=True)
class Record:
    """One line of a history."""

    seconds: float
    nbytes: int
    objective: float | None
    gap: float | None
    relative: float | None
    gradient: float | None = None
    validation: float | None = None


def events(n_blocks: int = 6) -> Iterator[Event]:
    """Yield what happens in a fit of three passes, each block 0.1 s of loading, 0.1 of work."""
    yield FitStart("logistic", "3 passes, 600 MB a worker", 4000, 100, "http://127.0.0.1:8787")
    now = 1000.0
    for index, (objective, gap) in enumerate(zip(OBJECTIVES, GAPS, strict=True)):
        yield PassStart("newton", index, n_blocks, n_blocks * BLOCK)
        for block in range(n_blocks):
            start = now + 0.1 * (block // 2)
            worker = f"worker-{block % 2}"
            yield BlockEnd("newton", index, 100, BLOCK, worker, start, start + 0.2, 0.04, 0.06, 0.1)
        if index == 1:
            yield Message("Worker worker-1 was lost; its blocks are read again.")
        relative = gap / objective
        nbytes = 0 if index == 2 else n_blocks * STORED
        yield PassEnd("newton", index, 0.4, objective, gap, relative, nbytes, 0, 0, 0, 0, 0)
        now += 0.4
    yield FitEnd("logistic", "the certified gap is below tol", 1.25, Certificate())


def history() -> list[Record]:
    """Return the same fit's history, with seconds and bytes since its beginning."""
    return [
        Record(0.4 * (i + 1), 6 * BLOCK * (i + 1), objective, gap, gap / objective)
        for i, (objective, gap) in enumerate(zip(OBJECTIVES, GAPS, strict=True))
    ]
