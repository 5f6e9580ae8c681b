"""Where a task runs: on a Dask worker or on a thread of this process."""

from __future__ import annotations

import sys
import threading
from dataclasses import asdict
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
    """Give up the compute slot of the Dask worker that runs the current task, if one does."""
    if current_worker() is not None:
        from distributed import secede

        secede()


def slots_of_worker() -> threading.Semaphore | None:
    """As many permits to compute as the current task's Dask worker has threads, or None."""
    worker = current_worker()
    if worker is None:
        return None
    permits = vars(worker).setdefault(_SLOTS, threading.Semaphore(worker.state.nthreads))
    return cast(threading.Semaphore, permits)


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
