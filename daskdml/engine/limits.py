"""How long a fit waits for what a cluster may never give: limits that Dask's configuration sets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields
from typing import Any

import dask
from dask.utils import parse_timedelta

SAY_EVERY = 10.0  # seconds between two messages about the same wait


class Reminder:
    """When a wait is to be told of: every ten seconds, the first time after as many or at once."""

    def __init__(self, at_once: bool = False) -> None:
        self._told = -math.inf if at_once else time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so, the next ten seconds begin."""
        now = time.monotonic()
        if now - self._told <= SAY_EVERY:
            return False
        self._told = now
        return True


@dataclass(frozen=True)
class TimeLimits:
    """Seconds; each is a key of Dask's configuration, as in ``{"daskdml.worker-silence": "1m"}``.

    Parameters
    ----------
    worker_silence : float, default=30
        A worker of which the scheduler has heard nothing for so long is frozen or cut off, and
        removed from the cluster: others do its work. Dask's own limit, its ``worker-ttl``, is five
        minutes. A task that holds Python's lock for longer is taken for a frozen worker, too. For
        as long a worker that is paused, or knows nothing of what it was given, is waited for.
    scheduler_silence : float, default=60
        A scheduler that has not answered for so long is given up.
    wait_for_workers : float, default=300
        How long a fit waits for workers that it can use: before it begins, and whenever none is
        left.

    Examples
    --------
    >>> with dask.config.set({"daskdml.worker-silence": "1m"}):
    ...     TimeLimits.configured().worker_silence
    60.0
    """

    worker_silence: float = 30.0
    scheduler_silence: float = 60.0
    wait_for_workers: float = 300.0

    @classmethod
    def configured(cls) -> TimeLimits:
        """The limits that hold now.

        Raises
        ------
        ValueError
            If one of them is no time, or not above 0.
        """
        return cls(**{field.name: _seconds(field.name, field.default) for field in fields(cls)})

    @property
    def interval(self) -> float:
        """Seconds between two looks at the cluster."""
        return min(2.0, self.worker_silence / 5)


def _seconds(name: str, default: Any) -> float:
    key = f"daskdml.{name.replace('_', '-')}"
    value = dask.config.get(key, default)
    try:
        seconds = float(parse_timedelta(value))
    except (TypeError, ValueError, KeyError):
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(
            f"{key}={value!r} in Dask's configuration is no time above 0; write it as '30s'"
        )
    return seconds
