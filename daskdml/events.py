"""What happened in a fit, as frozen dataclasses, and the protocol of those who want to know.

Every floor may import this module; it imports nothing of the package. Events are made on the
client, in order; what a worker measured travels in its block's result.

Times called ``start`` and ``stop`` are seconds since the epoch, so that lanes of several workers
line up; everything else called seconds is a duration.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias


class Certificate(Protocol):
    """What an event needs to know of a certificate: how far the fit is from the optimum."""

    @property
    def objective(self) -> float:
        """Value of the objective at the solution."""

    @property
    def gap(self) -> float:
        """Upper bound of the objective minus its optimum, in units of the objective."""

    @property
    def relative(self) -> float:
        """The gap as a share of the objective's magnitude."""

    @property
    def rigorous(self) -> bool:
        """Whether the bound is proven rather than estimated."""


@dataclass(frozen=True, slots=True)
class FitStart:
    """A fit begins; nothing has been read yet.

    Parameters
    ----------
    label : str
        Name of the fit, as its tasks are called on the dashboard.
    plan : object or None
        What the fit promises to hold and to read; its ``str`` is shown to people.
    n_rows, n_features : int
        Shape of the data.
    dashboard_link : str or None
        Address of the Dask dashboard, where there is a cluster.

    Examples
    --------
    >>> FitStart("logistic-newton", None, 1000, 20, None).n_rows
    1000
    """

    label: str
    plan: object | None
    n_rows: int
    n_features: int
    dashboard_link: str | None


@dataclass(frozen=True, slots=True)
class PassStart:
    """A pass over the data (or a round over some of it) begins.

    Parameters
    ----------
    label : str
        Name of the pass.
    index : int
        Number of the pass within its fit, from 0.
    n_blocks : int
        Blocks it will visit, so many `BlockEnd` events follow; the equation on a sample that L-BFGS
        solves visits its blocks several times.
    nbytes : int
        Bytes of rows, decoded, that it will visit.

    Examples
    --------
    >>> PassStart("newton", 0, n_blocks=40, nbytes=1_600_000_000).index
    0
    """

    label: str
    index: int
    n_blocks: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """One block was read and worked on.

    Parameters
    ----------
    label : str
        Name of the pass.
    index : int
        Number of the pass, as in its `PassStart`.
    rows : int
        Rows of the block.
    nbytes : int
        Bytes of those rows, decoded.
    worker : str
        Name or address of the process or thread that did it.
    start, stop : float
        When the work on the block began and ended, in seconds since the epoch. Where the read ran
        ahead of the computation, the time between them is longer than the three durations' sum.
    read, decode, compute : float
        Seconds spent waiting for stored bytes, decoding them, and computing. A block that was kept
        in memory has 0 for the first two.

    Examples
    --------
    >>> end = BlockEnd("newton", 0, 100, 8000, "worker-0", 10.0, 10.5, 0.1, 0.1, 0.3)
    >>> end.stop - end.start
    0.5
    """

    label: str
    index: int
    rows: int
    nbytes: int
    worker: str
    start: float
    stop: float
    read: float
    decode: float
    compute: float


@dataclass(frozen=True, slots=True)
class PassEnd:
    """A pass ended and its statistics met.

    Parameters
    ----------
    label : str
        Name of the pass.
    index : int
        Number of the pass, as in its `PassStart`.
    seconds : float
        Wall clock of the pass.
    objective : float or None
        Value of the objective at the point the pass visited; None where the pass does not say.
    gap : float or None
        Certified bound of the objective minus its optimum at that point, in its units.
    relative : float or None
        The gap as a share of the objective's magnitude.
    nbytes : int
        Stored (encoded) bytes that were read; blocks kept in memory do not count.
    read, decode, compute, wait, transfer : float
        Seconds, summed over workers: waiting for stored bytes, decoding, computing, idle for lack
        of anything ready, and moving statistics and parameters.

    Examples
    --------
    >>> PassEnd("newton", 0, 2.0, 0.31, 1e-7, 3e-7, 10**9, 0.5, 1.0, 2.0, 0.1, 0.01).relative
    3e-07
    """

    label: str
    index: int
    seconds: float
    objective: float | None
    gap: float | None
    relative: float | None
    nbytes: int
    read: float
    decode: float
    compute: float
    wait: float
    transfer: float


@dataclass(frozen=True, slots=True)
class Message:
    """Something a person may want to know, in one sentence: a worker was lost, a read was retried.

    Parameters
    ----------
    text : str
        The sentence.

    Examples
    --------
    >>> Message("Worker 127.0.0.1:4242 was lost; its blocks are read again.").text[:6]
    'Worker'
    """

    text: str


@dataclass(frozen=True, slots=True)
class FitEnd:
    """A fit ended, or failed; every `FitStart` is followed by one.

    Parameters
    ----------
    label : str
        Name of the fit, as in its `FitStart`.
    reason : str
        Why it ended, as a clause: "the certified gap is below tol", or "broken off by ValueError".
    seconds : float
        Wall clock since `fit` was called.
    certificate : Certificate or None
        How far the solution is from the optimum, where the fit can tell.

    Examples
    --------
    >>> FitEnd("logistic-newton", "the certified gap is below tol", 6.5, None).seconds
    6.5
    """

    label: str
    reason: str
    seconds: float
    certificate: Certificate | None


Event: TypeAlias = FitStart | PassStart | BlockEnd | PassEnd | Message | FitEnd
"""Anything that happens in a fit."""


class Callback(Protocol):
    """Anything callable with one event: a function, or an object that remembers."""

    def __call__(self, event: Event) -> None:
        """Take note of `event`; what it raises becomes a warning."""


_failed: dict[int, Callback] = {}  # by identity, until its fit ends; a callback may be unhashable


def emit(callbacks: Iterable[Callback], event: Event) -> None:
    """Tell every callback what happened.

    A callback that fails never stops a fit: its first failure in a fit becomes a `RuntimeWarning`
    and the other callbacks are told all the same. An interruption (``KeyboardInterrupt``) passes.

    Parameters
    ----------
    callbacks : iterable of Callback
        Whom to tell, in this order.
    event : Event
        What happened.

    Examples
    --------
    >>> seen = []
    >>> emit([seen.append], Message("A read was retried."))
    >>> seen
    [Message(text='A read was retried.')]
    """
    for callback in callbacks:
        try:
            callback(event)
        except Exception as error:
            if id(callback) not in _failed:
                _failed[id(callback)] = callback
                warnings.warn(
                    f"The callback {callback!r} failed on {type(event).__name__} "
                    f"({type(error).__name__}: {error}); the fit goes on without it being heard.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        if isinstance(event, FitEnd):
            _failed.pop(id(callback), None)
