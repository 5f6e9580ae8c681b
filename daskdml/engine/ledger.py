"""Which fits there are on the same processes, and what each of them was promised.

Each fit says what it needs before it reads anything. The others count that as taken; what no fit
needs is divided among them, for blocks that stay in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

_LEDGER = "_daskdml_ledger"  # attribute of a scheduler


@dataclass(frozen=True)
class Claim:
    """What a fit was promised.

    Parameters
    ----------
    owner : str
        The client it belongs to; "" in this process.
    need : int
        Bytes that it reaches in a worker process beside what was there before, and beside pinned
        blocks; 0 before there is a plan.
    limit : int
        Bytes that no worker process is to exceed; 0 before there is a plan.
    slots : mapping of str to int
        Its compute slots on each worker, by address.
    """

    owner: str
    need: int
    limit: int
    slots: Mapping[str, int]


@dataclass(frozen=True)
class Standing:
    """A fit among others on the same processes.

    Parameters
    ----------
    needs : int
        Bytes that the other fits need in the process where they need most.
    limit : int
        The least that any of them was promised; 0 where there is no other.
    fits : int
        How many there are, this one included.
    taken : mapping of str to int
        Compute slots that the others have on each worker.
    living : frozenset of str
        Tokens of all fits there are, also on other processes.
    """

    needs: int
    limit: int
    fits: int
    taken: Mapping[str, int]
    living: frozenset[str] = field(default=frozenset(), repr=False)


class Ledger:
    """The claims of all fits.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.enter("a", Claim("", 30, 100, {"w": 2})).needs
    0
    >>> ledger.enter("b", Claim("", 40, 90, {"w": 2, "v": 1}))
    Standing(needs=30, limit=100, fits=2, taken={'w': 2})
    >>> ledger.leave("b")
    >>> ledger.enter("a", Claim("", 30, 100, {"w": 2})).fits
    1
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[str, Claim] = {}

    def enter(self, token: str, claim: Claim, alive: Collection[str] = ("",)) -> Standing:
        """Note a fit's claim; gives where it stands among those whose owners are `alive`."""
        with self._lock:
            self._claims = {t: c for t, c in self._claims.items() if c.owner in alive}
            self._claims[token] = claim
            living = frozenset(self._claims)
            others = [c for t, c in self._claims.items() if t != token and c.need]
        others = [c for c in others if set(c.slots) & set(claim.slots)]
        needs: dict[str, int] = dict.fromkeys(claim.slots, 0)
        taken: dict[str, int] = {}
        for other in others:
            for address, slots in other.slots.items():
                needs[address] = needs.get(address, 0) + other.need
                taken[address] = taken.get(address, 0) + slots
        most = max((needs[address] for address in claim.slots), default=0)
        limit = min((other.limit for other in others), default=0)
        return Standing(most, limit, 1 + len(others), taken, living)

    def leave(self, token: str) -> None:
        """Forget a fit's claim."""
        with self._lock:
            self._claims.pop(token, None)


LEDGER = Ledger()  # of fits on threads of this process


def enter(token: str, claim: Claim, dask_scheduler: Any) -> Standing:
    """`Ledger.enter`, in the scheduler's process."""
    return _of(dask_scheduler).enter(token, claim, dask_scheduler.clients)


def leave(token: str, dask_scheduler: Any) -> None:
    """`Ledger.leave`, in the scheduler's process."""
    _of(dask_scheduler).leave(token)


def _of(scheduler: Any) -> Ledger:
    ledger: Ledger = vars(scheduler).setdefault(_LEDGER, Ledger())
    return ledger
