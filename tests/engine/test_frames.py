"""A profiler does not stop a worker of Python 3.11 for ever."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from daskdml import Engine
from daskdml.engine import frames
from daskdml.engine.memory import Needs
from tests.engine.sources import Made, total


@pytest.fixture
def collects(monkeypatch):
    """Has the system's function say whether garbage may be collected while it runs."""
    monkeypatch.setattr(sys, "_current_frames", gc.isenabled)
    monkeypatch.setattr(frames, "AFFECTED", True)


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_meanwhile(enabled, collects):
    """And afterwards it is again, if it was before."""
    assert sys._current_frames()
    frames.guard_frames()
    once = sys._current_frames
    frames.guard_frames()
    assert sys._current_frames is once
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert not sys._current_frames() and gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_other_versions_are_left_alone(collects, monkeypatch):
    """Where Python does not need it, nothing is replaced."""
    monkeypatch.setattr(frames, "AFFECTED", False)
    frames.guard_frames()
    assert sys._current_frames is gc.isenabled


def is_guarded():
    """Whether this process is, and still sees its threads."""
    assert threading.get_ident() in sys._current_frames()
    return hasattr(sys._current_frames, "__wrapped__")


@pytest.mark.cluster
def test_workers_are_guarded(two_workers):
    """All workers of a fit, and the process that calls it."""
    with Engine(two_workers).open(Made(40, 10), Needs()) as data:
        data.map_reduce(total, "sum")
    assert set(two_workers.run(is_guarded).values()) == {is_guarded()} == {frames.AFFECTED}
