"""How much of a pass is one graph: a segment, about ten seconds of work.

A segment's results come to the client before the next one begins, so a lost worker costs what it
did in one of them. Where it ends depends on how fast the cluster is, so bits must not depend on it.
"""

from __future__ import annotations

from daskdml.engine.memory import FAN_IN

SECONDS = 10.0  # of work in a segment
FIRST = 64  # groups of the first one, while nobody knows how long they take
MOST = 1024  # groups of one, unless there are many slots: its graph is held in memory
AT_LEAST = 4  # groups of each slot, so that slots seldom wait for each other at a segment's end
UNIT = FAN_IN  # groups whose sum is one step of a pass's sum
FEW_UNITS = 256  # with more than so many, units are longer


def unit_of(n_groups: int) -> int:
    """Groups of a unit, by the data alone; a segment has a whole number of units.

    Examples
    --------
    >>> unit_of(100), unit_of(100_000)
    (16, 256)
    """
    return UNIT if n_groups <= FEW_UNITS * UNIT else UNIT * FAN_IN


class Pace:
    """Groups that a cluster gets done in a second, for each pass by its label."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def took(self, label: str, n: int, seconds: float) -> None:
        """Remember how long n groups have just taken."""
        self._rates[label] = n / max(seconds, 1e-3)

    def segment(self, label: str, left: int, slots: int, unit: int = 1) -> int:
        """Groups of the next segment, of those that are `left`: all of about the same length.

        Parameters
        ----------
        label : str
            Of the pass.
        left : int
            Groups that are to be done.
        slots : int
            Compute slots that there are.
        unit : int
            Of which a segment has a whole number, unless it is the last.

        Examples
        --------
        >>> pace = Pace()
        >>> pace.segment("gradient", 1000, slots=2, unit=16)
        64
        >>> pace.took("gradient", 64, seconds=2.0)
        >>> pace.segment("gradient", 936, slots=2, unit=16)
        320
        """
        rate = self._rates.get(label)
        least = AT_LEAST * slots
        wanted = max(FIRST, least) if rate is None else min(rate * SECONDS, max(MOST, least))
        most = max(1, int(wanted))
        each = -(-left // -(-left // most))
        return min(left, -(-each // unit) * unit)
