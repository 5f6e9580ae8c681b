"""Keeps Python 3.11 from stopping for ever where a profiler looks at what its threads do.

Dask's workers are profiled so, a hundred times a second. Where garbage is collected in that very
moment, as a thread begins or ends, each of two threads waits for a lock that the other one has
(https://github.com/python/cpython/issues/106883), and the worker is frozen. Later versions of
Python collect no garbage there.
"""

from __future__ import annotations

import functools
import gc
import sys
from typing import Any

AFFECTED = sys.version_info < (3, 12)


def guard_frames() -> None:
    """Let no garbage be collected in ``sys._current_frames``, where that matters; once is enough.

    Examples
    --------
    >>> import threading
    >>> guard_frames()
    >>> threading.get_ident() in sys._current_frames()
    True
    """
    frames = sys._current_frames
    if not AFFECTED or hasattr(frames, "__wrapped__"):
        return

    @functools.wraps(frames)
    def guarded() -> dict[int, Any]:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return frames()
        finally:
            if enabled:
                gc.enable()

    sys._current_frames = guarded
