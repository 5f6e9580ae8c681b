"""What travels between simulated processes: bytes; and what tells one value from another."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import cloudpickle
import numpy as np

from daskdml.engine.tasks import BlockRecord


def sent(value: Any) -> bytes:
    """Bytes of a value, as Dask would send it."""
    try:
        return pickle.dumps(value, 5)
    except (AttributeError, TypeError, pickle.PicklingError):
        return cloudpickle.dumps(value, 5)


received = pickle.loads


class _Facts(pickle.Pickler):
    """Writes values without what may differ between two runs: when, where and how it is shared."""

    def persistent_id(self, x: Any) -> Any:
        """What stands for an object."""
        if isinstance(x, np.ndarray) and x.dtype.kind != "O":
            return x.dtype.str, x.shape, x.tobytes()
        return (x.index, x.rows) if isinstance(x, BlockRecord) else None


def digest(value: Any) -> bytes:
    """Equal for values of the same bits."""
    out = io.BytesIO()
    pickler = _Facts(out, 5)
    pickler.fast = True  # no references: equal parts and shared parts are the same
    pickler.dump(value)
    return hashlib.blake2b(out.getbuffer(), digest_size=16).digest()
