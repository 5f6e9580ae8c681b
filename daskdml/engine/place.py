"""Where a task runs: on a Dask worker or on a thread of this process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

TOPIC = "daskdml-blocks"
_SLOTS = "_daskdml_slots"  # attribute of a worker


def current_worker() -> Any | None:
    """The Dask worker that runs the current task, or None."""
    if "distributed" not in sys.modules:
        return None
    from distributed.worker import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def worker_name() -> str:
    """Address of the Dask worker that runs the current task, or the thread's name."""
    worker = current_worker()
    return worker.address if worker is not None else threading.current_thread().name


def leave_slot() -> None:
    """Give up the compute slot of the Dask worker that runs the current task, if one still does."""
    if current_worker() is not None:
        from distributed import secede
        from distributed.threadpoolexecutor import thread_state

        if thread_state.proceed:
            secede()


class Slots:
    """Permits to compute on threads of this process, which fits that run at once share.

    A fit computes on at most as many threads as it asked for, and all of them together on at most
    as many as the one that asked for most.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fits: list[int] = []
        self._taken = 0
        self._of_thread = threading.local()

    @contextmanager
    def fit(self, n: int) -> Iterator[Callable[[], None]]:
        """Let a fit compute on n threads; each of its threads first calls what this gives."""
        own = threading.Semaphore(n)
        with self._changed:
            self._fits.append(n)
            self._changed.notify_all()
        try:
            yield lambda: setattr(self._of_thread, "own", own)
        finally:
            with self._changed:
                self._fits.remove(n)

    @contextmanager
    def fit_here(self) -> Iterator[None]:
        """Let a fit compute on this thread alone."""
        before = getattr(self._of_thread, "own", None)
        with self.fit(1) as join:
            join()
            try:
                yield
            finally:
                self._of_thread.own = before

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Wait for permits of the thread's fit and of the process; without a fit none is needed."""
        own = getattr(self._of_thread, "own", None)
        if own is None:
            yield
            return
        with own:
            with self._changed:
                self._changed.wait_for(lambda: self._taken < max(self._fits))
                self._taken += 1
            try:
                yield
            finally:
                with self._changed:
                    self._taken -= 1
                    self._changed.notify()


THREAD_SLOTS = Slots()


def compute_permit() -> AbstractContextManager[Any]:
    """What a task holds while it computes: a permit of its Dask worker, or of this process."""
    worker = current_worker()
    if worker is None:
        return THREAD_SLOTS.permit()
    permits = vars(worker).setdefault(_SLOTS, threading.Semaphore(worker.state.nthreads))
    return cast(threading.Semaphore, permits)


class _Gate:
    """Lets so many in at a time as each who comes says."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    @contextmanager
    def enter(self, n: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._inside < n)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify()


_GATES: dict[tuple[str, str], _Gate] = {}  # of each fit with a share, on each worker


@dataclass(frozen=True)
class Allotment:
    """How many of a fit's tasks may run at once on each Dask worker; 1 where nothing is said."""

    token: str
    slots: Mapping[str, int]

    def permit(self) -> AbstractContextManager[None]:
        """What a task of the fit holds while it runs."""
        name = worker_name()
        gate = _GATES.setdefault((self.token, name), _Gate())
        return gate.enter(self.slots.get(name, 1))


def forget_allotment(token: str) -> None:
    """Forget a fit's share."""
    for key in [key for key in _GATES if key[0] == token]:
        _GATES.pop(key, None)


def tell(record: Any) -> None:
    """Send a block's record to the client that runs the fit, while the pass goes on."""
    worker = current_worker()
    if worker is not None:
        worker.log_event(TOPIC, asdict(record))


def global_client() -> Any | None:
    """The current Dask client of this process, or None; never a worker's own."""
    if "distributed" not in sys.modules or current_worker() is not None:
        return None
    from distributed.client import _get_global_client

    client = _get_global_client()
    return client if client is not None and client.status == "running" else None
