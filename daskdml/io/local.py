"""Bytes of chunks on local disk: read in place, their checksums compared once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from daskdml.io.codecs import check

__all__ = ["ChunkError", "check_once", "fill"]

_checked: dict[int, int] = {}
"""Paths of chunks whose checksum was found right, and what the files were like then."""

MOST_CHECKED = 200_000
"""Chunks that are remembered; some ten megabytes."""


class ChunkError(OSError):
    """A stored chunk is missing, truncated or damaged; the message names it."""


def check_once(path: str, facts: os.stat_result, plain: np.ndarray, checksum: np.ndarray) -> None:
    """Check a file's bytes the first time in this process, and when the file has changed since.

    Raises
    ------
    ValueError
        Where the bytes are not those that were written.
    """
    key = hash(path)
    stamp = hash((facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    if _checked.get(key) == stamp:
        return
    check(plain, checksum)
    while len(_checked) >= MOST_CHECKED:
        _checked.pop(next(iter(_checked)), None)
    _checked[key] = stamp


def fill(file: Any, target: np.ndarray, path: str) -> None:
    """Read bytes of an open file until the target is full.

    Raises
    ------
    ChunkError
        Where the file ends before.
    """
    view = target.data
    while len(view):
        got = file.readinto(view)
        if not got:
            raise ChunkError(f"chunk {path} ended {len(view)} bytes early; is it being rewritten?")
        view = view[got:]
