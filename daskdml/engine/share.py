"""The part of a cluster that a fit may use: which workers, how many threads, before whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from numbers import Integral, Real
from typing import Any

from daskdml.engine.survey import Fact

MOST_URGENT = 1_000_000_000
"""Of priorities; one that needs more than 64 bits would end Dask's connections."""


@dataclass(frozen=True)
class Share:
    """What an engine was told of the cluster's other users; see `Engine`."""

    priority: int = -10
    max_share: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    workers: tuple[str, ...] | None = None
    min_workers: int = 1

    def __post_init__(self) -> None:
        if not (_is_number(self.max_share) and 0 < self.max_share <= 1):
            raise ValueError(
                f"max_share={self.max_share!r} must be above 0 and at most 1: the part of the "
                "cluster's threads that a fit uses at once"
            )
        for name, amount in self.resources.items():
            if not (_is_number(amount) and 0 < amount < inf):
                raise ValueError(
                    f"resources={dict(self.resources)!r}: the amount of {name!r} must be a number "
                    "above 0"
                )
        if type(self.min_workers) is not int or self.min_workers < 1:
            raise ValueError(
                f"min_workers={self.min_workers!r} must be a whole number of at least 1"
            )
        if type(self.priority) is not int or abs(self.priority) > MOST_URGENT:
            raise ValueError(
                f"priority={self.priority!r} must be an integer of at most {MOST_URGENT:,}, or as "
                "much below 0"
            )
        if self.workers is not None and not self.workers:
            raise ValueError("workers=[] leaves nobody to work; name some, or leave it out")

    @property
    def strict(self) -> bool:
        """Whether some of the cluster's threads are not for this fit."""
        return self.max_share < 1 or bool(self.resources) or self.workers is not None

    @property
    def asks(self) -> str:
        """What a worker must have to be of use, for people."""
        parts = []
        if self.workers is not None:
            parts.append(f"that workers={list(self.workers)} names")
        if self.resources:
            parts.append(f"with resources={dict(self.resources)}")
        return " and ".join(parts)

    def check_runner(self, name: str) -> None:
        """Raise ValueError if something is asked that a runner of this process would ignore."""
        asked = {
            "workers": list(self.workers or ()),
            "resources": self.resources,
            "min_workers": self.min_workers if self.min_workers > 1 else None,
        }
        for parameter, value in asked.items():
            if value:
                raise ValueError(
                    f"{parameter}={value!r} is about the workers of a Dask cluster, and {name} has "
                    "none; pass a Dask client, or leave it out"
                )
        if self.max_share < 1:
            raise ValueError(
                f"max_share={self.max_share!r} is a part of the threads that are shared with "
                f"others, and those of {name} are this fit's own; pass a Dask client or none, or "
                "leave it out and give Threads(n) fewer threads"
            )

    def check_no_client(self) -> None:
        """Raise ValueError if workers are asked for, there being no Dask client."""
        if self.asks:
            raise ValueError(
                f"there is no Dask client, and so no worker {self.asks}; make a Client first"
            )
        if self.min_workers > 1:
            raise ValueError(
                "there is no Dask client, and so no worker of those that "
                f"min_workers={self.min_workers} waits for; make a Client first"
            )

    def usable(self, facts: Sequence[Fact]) -> list[Fact]:
        """Workers that tasks may be given now, with the slots that their resources allow."""
        found = []
        for fact in facts:
            slots = fact.threads
            for name, amount in self.resources.items():
                slots = min(slots, int(fact.resources.get(name, 0) / amount))
            if fact.running and slots > 0 and self.names(fact):
                found.append(replace(fact, threads=slots))
        return found

    def names(self, fact: Fact) -> bool:
        """Whether it is one of the workers that were named, if some were."""
        return self.workers is None or bool(_names(fact) & set(self.workers))

    def check_named(self, facts: Sequence[Fact]) -> None:
        """Raise ValueError if a worker is named that the cluster does not have."""
        there = set().union(*(_names(fact) for fact in facts)) if facts else set()
        unknown = [name for name in self.workers or () if name not in there]
        if unknown and facts:
            raise ValueError(
                f"workers={list(self.workers or ())}: the cluster has no worker {unknown[0]!r}; "
                f"it has {', '.join(f'{f.name} ({f.address})' for f in facts[:10])}"
            )

    def allot(
        self, facts: Sequence[Fact], total: int, taken: Mapping[str, int], own: Mapping[str, int]
    ) -> list[Fact]:
        """The usable workers with as many of their slots as this fit may take.

        Parameters
        ----------
        facts : sequence of Fact
            As `usable` gives them.
        total : int
            Threads of the whole cluster.
        taken : mapping of str to int
            Slots that other fits have, by address.
        own : mapping of str to int
            Slots that this fit had before, which it keeps: the workers may still have its blocks.
        """
        room = max(1, int(self.max_share * total + 1e-9))
        if self.max_share == 1 or room >= sum(fact.threads for fact in facts):
            return list(facts)
        given = dict.fromkeys((fact.address for fact in facts), 0)

        def crowd(fact: Fact) -> tuple[bool, float, str]:
            slots, at = given[fact.address], fact.address
            return slots >= own.get(at, 0), (taken.get(at, 0) + slots) / fact.threads, at

        for _ in range(room):
            free = [fact for fact in facts if given[fact.address] < fact.threads]
            given[min(free, key=crowd).address] += 1
        chosen = [replace(fact, threads=given[fact.address]) for fact in facts]
        return [fact for fact in chosen if fact.threads]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _names(fact: Fact) -> set[str]:
    """What a worker may be called: its address, with and without its protocol, and its name."""
    return {fact.address, fact.address.partition("://")[2], fact.name}


def share_of(
    priority: int, max_share: float, resources: Mapping[str, float] | None,
    workers: Any, min_workers: int,
) -> Share:  # fmt: skip
    """A `Share` from what people write: one worker or several, by name (also a number) or address.

    Raises
    ------
    ValueError
        If one of them makes no sense; says which.
    """
    if resources is not None and not isinstance(resources, Mapping):
        raise ValueError(f"resources={resources!r} must be a dict, as in {{'GPU': 1}}")
    return Share(priority, max_share, dict(resources or {}), _named(workers), min_workers)


def _named(workers: Any) -> tuple[str, ...] | None:
    """Names or addresses as texts."""
    if workers is None:
        return None
    several = [workers] if _is_name(workers) else workers
    if isinstance(several, Collection) and not isinstance(several, bytes | bytearray):
        several = list(several)
        if all(map(_is_name, several)):
            return tuple(map(str, several))
    raise ValueError(
        f"workers={workers!r} must be a worker's name (a text or a whole number) or address, or a "
        "list of such; Client.scheduler_info() has them"
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str | Integral) and not isinstance(value, bool)
