"""What the passes since a fit's last step have found, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from daskdml.engine.opened import NOTHING, PassTotals


@dataclass(frozen=True)
class Entry:
    """A pass, or as much of it as is done.

    Parameters
    ----------
    label : str
        Of the pass.
    done : int
        How many of its groups, or rounds, are done.
    value : object
        What they gave so far: a sum, or the last states of rounds.
    totals : PassTotals
    """

    label: str
    done: int = 0
    value: Any = None
    totals: PassTotals = NOTHING


class Journal:
    """Passes in the order in which a fit makes them; those it knows from an earlier call, it skips.

    A solver is a function of its state and of what its passes find. So a fit that was broken off in
    the middle of a step makes that step again from the state before, and takes what is here for the
    passes that were made.
    """

    def __init__(self) -> None:
        self._told: Callable[[], object] | None = None
        self._entries: list[Entry] = []
        self._at = 0
        self._kept = 0

    def start(self, known: Sequence[Entry], told: Callable[[], object]) -> None:
        """Begin to write down, after what an earlier call left; `told` hears of each segment."""
        self._entries, self._told, self._at = list(known), told, 0

    def stop(self) -> None:
        """Write down no more, and let go of who was told."""
        self._told = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Those that are kept, and those since the last step."""
        return tuple(self._entries)

    def begin(self, label: str) -> Entry:
        """What is known of the pass that comes next."""
        self._at += 1
        known = self._entries[self._at - 1 :]
        if known and known[0].label == label:
            return known[0]
        del self._entries[self._at - 1 :]  # what was found on another way
        return Entry(label)

    def reached(self, entry: Entry) -> None:
        """Write down how far the pass under way has come."""
        if self._told is not None:
            self._entries[self._at - 1 :] = [entry]
            self._told()

    def keep(self) -> None:
        """Keep what was found so far through all steps: it comes before the first of them."""
        self._kept = self._at

    def step(self) -> None:
        """Forget what was found since the last step: the solver's state has it."""
        del self._entries[self._kept :]
        self._at = self._kept
