"""What workers tell of the blocks that they have done, while a graph is under way."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from daskdml.engine.place import TOPIC
from daskdml.engine.runners import Told
from daskdml.engine.tasks import BlockRecord

_LOCK = threading.Lock()
_LISTENERS: weakref.WeakKeyDictionary[Any, list[Told]] = weakref.WeakKeyDictionary()
"""Those who listen to a client's workers: a client can subscribe to a topic only once."""


@contextmanager
def listening(client: Any, told: Told) -> Iterator[None]:
    """Have every block's record told, from the client's own thread."""
    with _LOCK:
        listeners = _LISTENERS.setdefault(client, [])
        listeners.append(told)
        if len(listeners) == 1:
            client.subscribe_topic(TOPIC, partial(_tell_all, listeners))
    try:
        yield
    finally:
        with _LOCK:
            listeners.remove(told)
            if not listeners and client.status == "running":
                client.unsubscribe_topic(TOPIC)


def _tell_all(listeners: list[Told], event: tuple[float, dict[str, Any]]) -> None:
    for told in tuple(listeners):
        told(BlockRecord(**event[1]))
