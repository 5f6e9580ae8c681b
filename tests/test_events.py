import pickle
import warnings
from dataclasses import FrozenInstanceError

import pytest

from daskdml.events import FitEnd, FitStart, Message, PassStart, emit

END = FitEnd("fit", "it is done", 1.0, None)


class Broken:
    """A callback that always fails, and cannot be hashed."""

    __hash__ = None

    def __call__(self, event):
        """Fail."""
        raise OSError("disk full")


def test_events_are_values():
    """Equal fields make equal events, which travel by pickle and do not change."""
    event = PassStart("newton", 0, 3, 100)
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(FrozenInstanceError):
        event.index = 1


def test_every_callback_hears_every_event_in_order():
    """Callbacks are called in their order, each with all events."""
    heard = []
    callbacks = [lambda e: heard.append((1, e)), lambda e: heard.append((2, e))]
    emit(callbacks, Message("a"))
    emit(callbacks, Message("b"))
    assert heard == [(i, Message(text)) for text in "ab" for i in (1, 2)]


def test_a_failing_callback_warns_once_a_fit_and_stops_nothing():
    """The first failure of each fit is a warning; the others still hear everything."""
    heard = []
    callbacks = [Broken(), heard.append]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            emit(callbacks, FitStart("fit", None, 1, 1, None))
            emit(callbacks, Message("a"))
            emit(callbacks, END)
    assert [type(event) for event in heard] == [FitStart, Message, FitEnd] * 2
    assert len(caught) == 2
    assert "disk full" in str(caught[0].message)


def test_an_interruption_is_not_swallowed():
    """Ctrl-C while a callback runs stops the fit."""

    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emit([interrupted], END)
