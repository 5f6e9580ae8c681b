"""Who writes to a store, as a record tells it, and whether that process is still at work."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil

__all__ = ["HERE", "boot", "is_alive", "names_process", "tells_of_life", "this_process"]

SILENT = 60.0
"""Seconds without a sign of life after which a writer on another machine counts as dead."""
CLOCK_SET = 60.0
"""Seconds by which a clock may be set, where the start of a process is known by it alone."""

HERE: set[str] = set()
"""The writers of this process that are at work."""


@cache
def boot() -> str:
    """Names the time since this machine was started; "" where it does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _born(pid: int) -> str | None:
    """When a process was started, by no clock that can be set; None where that is not known."""
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid:d}/stat").read_text(errors="replace")
        since_boot = text.rpartition(")")[2].split()[19]  # behind a name that may have blanks
        return f"{boot()}/{since_boot}"
    return None


def this_process() -> dict[str, Any]:
    """Who writes: this process."""
    pid = os.getpid()
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": pid, "started": started, "born": _born(pid)}


def _runs(found: dict[str, Any]) -> bool:
    """Whether the process of a record on this machine is there, and no other with its number."""
    born = _born(found["pid"])
    if born is not None and found.get("born") is not None:
        return bool(born == found["born"])
    try:
        apart = psutil.Process(found["pid"]).create_time() - found["started"]
    except psutil.NoSuchProcess:
        return False
    return bool(abs(apart) < CLOCK_SET)


def names_process(found: dict[str, Any]) -> bool:
    """Whether a record says, in fields of the right types, which process wrote it."""
    host, pid, born = (found.get(key) for key in ("host", "pid", "born"))
    known = isinstance(host, str) and type(pid) is int and pid > 0
    return known and _is_time(found.get("started")) and isinstance(born, str | None)


def _is_time(x: Any) -> bool:
    return type(x) in (int, float) and 0 <= x < 1e12


def tells_of_life(found: dict[str, Any]) -> bool:
    """Whether a record says if there is a writer, and all that tells whether it is at work."""
    owner = found.get("owner")
    told = isinstance(owner, str) and _is_time(found.get("beat")) and names_process(found)
    return owner is None or told


def is_alive(found: dict[str, Any]) -> bool:
    """Whether the writer of a record is at work."""
    if found.get("owner") is None:
        return False
    if found["host"] != socket.gethostname():
        return bool(time.time() - found["beat"] < SILENT)
    return _runs(found) and (found["pid"] != os.getpid() or found["owner"] in HERE)
