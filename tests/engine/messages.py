"""What travels between simulated processes: bytes; and what tells one value from another."""

from __future__ import annotations

import hashlib
import io
import pickle
from contextlib import suppress
from typing import Any

import cloudpickle
import numpy as np

from daskdml.engine.tasks import BlockRecord

Message = tuple[bytes, list[bytes]]


def sent(value: Any) -> Message:
    """Bytes of a value, as Dask would send it: those of arrays apart."""
    for dumps in (pickle.dumps, cloudpickle.dumps):
        buffers: list[pickle.PickleBuffer] = []
        with suppress(AttributeError, TypeError, pickle.PicklingError):
            body = dumps(value, 5, buffer_callback=buffers.append)
            return body, [bytes(buffer.raw()) for buffer in buffers]
    raise TypeError(f"{value!r} cannot be sent")


def received(message: Message) -> Any:
    """The value; its arrays lie at odd addresses, as they may with Dask."""
    body, buffers = message
    return pickle.loads(body, buffers=[memoryview(bytearray(b"." + b))[1:] for b in buffers])


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
