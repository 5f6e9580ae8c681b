"""What a scheduler and its workers say of themselves, and new places for tasks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from daskdml.engine.frames import guard_frames

NOTE = "daskdml"  # annotation of a fit's tasks, by which they are found
NUMERICAL = ("numpy", "numba", "scipy")  # their versions may change last bits
PACKAGES = ("daskdml", *NUMERICAL)

T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """What the scheduler knows of a worker.

    Parameters
    ----------
    address, name : str
    threads : int
    limit : int
        Bytes that Dask lets it use; 0 where there is no limit.
    seen : float
        When it was last heard of, by the scheduler's clock: to be compared with itself alone.
    running : bool
        Whether it takes new tasks: it is neither paused nor about to close.
    resources : mapping of str to float
        What it was started with.
    home : str
        Its folder, which tells it from one that had the same address before.
    """

    address: str
    name: str
    threads: int
    limit: int
    seen: float
    running: bool
    resources: Mapping[str, float]
    home: str = ""


def facts_of(identity: Mapping[str, Any]) -> list[Fact]:
    """The workers that a scheduler says there are, in the order of their addresses."""
    return [
        Fact(
            address, str(about["name"]), int(about["nthreads"]), int(about["memory_limit"] or 0),
            about["last_seen"], about["status"] == "running", about["resources"],
            about["local_directory"],
        )
        for address, about in sorted(identity["workers"].items())
    ]  # fmt: skip


def bind_anew(token: str, places: list[str], full: set[str], dask_scheduler: Any) -> int:
    """Give a fit's tasks to others where their workers are all gone, or `full`; tells how many.

    Runs in the scheduler's process.
    """
    able, moved = set(dask_scheduler.workers) - full, []
    for task in dask_scheduler.tasks.values():
        if (task.annotations or {}).get(NOTE) != token:
            continue
        bound, at = task.worker_restrictions, task.processing_on
        if bound and not bound & able and not task.loose_restrictions:
            task.worker_restrictions = set(places)
            moved.append(task)
        elif at is not None and at.address in full:
            moved.append(task)
    moved.sort(key=lambda task: task.priority, reverse=True)
    waiting = {task.key: "processing" for task in moved if task in dask_scheduler.unrunnable}
    held = {t.key: "released" for t in moved if t.processing_on and t.processing_on.address in full}
    dask_scheduler.transitions(waiting | held, stimulus_id=f"{NOTE}-bind-anew")
    return len(moved)


async def apart(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)`` in a thread, so that a worker that runs it still sends heartbeats."""
    return await asyncio.to_thread(function, *args)


def build() -> dict[str, str]:
    """What this process computes with: versions of Python and of packages, and the CPU's name."""
    from llvmlite.binding import get_host_cpu_name

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    versions = {name: str(import_module(name).__version__) for name in PACKAGES}
    return {"python": python, **versions, "CPU": get_host_cpu_name()}


def check_build(address: str, ours: dict[str, str], theirs: Any) -> None:
    """Raise RuntimeError if a worker computes with other versions than this process.

    Examples
    --------
    >>> check_build("tcp://a:1", {"numpy": "2.4.6"}, {"numpy": "2.3.0"})
    Traceback (most recent call last):
    ...
    RuntimeError: the worker tcp://a:1 has numpy 2.3.0, and this process has numpy 2.4.6: ...
    """
    if isinstance(theirs, BaseException):
        raise RuntimeError(
            f"the worker {address} cannot run daskdml ({type(theirs).__name__}: {theirs}); install "
            "what this process has there, too"
        ) from theirs
    for name, version in ours.items():
        if name != "CPU" and theirs.get(name) != version:
            raise RuntimeError(
                f"the worker {address} has {name} {theirs.get(name)}, and this process has {name} "
                f"{version}: the result's bits would depend on who did what; install {name} "
                f"{version} there, or leave the worker out (Engine(workers=...))"
            )


def terminal() -> tuple[str, int]:
    """What processes share that Ctrl-C in a terminal, or a notebook's stop button, reaches."""
    return socket.gethostname(), os.getpgrp() if hasattr(os, "getpgrp") else os.getpid()


async def greet(clients: tuple[str, int], dask_worker: Any) -> dict[str, str]:
    """`build` of a worker; one that shares the client's `terminal` leaves Ctrl-C to the client.

    It would end by it, and its nanny, which takes that for an order, would not start it again.
    What tasks consist of is imported here: where a worker unpickles them it sends no heartbeats.
    """
    nursed = dask_worker.nanny and threading.current_thread() is threading.main_thread()
    if nursed and terminal() == clients:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard_frames()
    await apart(import_module, "daskdml.engine.runners")
    return await apart(build)
