from __future__ import annotations

import numpy as np
import pytest

import daskdml.engine.opened
import daskdml.engine.run
from daskdml import Engine
from daskdml.engine import pace
from daskdml.engine.memory import Needs
from daskdml.engine.pace import Pace
from daskdml.engine.run import Inline
from tests.engine.sources import Made


@pytest.fixture(autouse=True)
def one_chunk_a_group(monkeypatch):
    """Each chunk is a group."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def thirds(block):
    """A sum that depends on the order of its terms."""
    return float(np.sum(1 / (block.X[:, 0] + 3)))


def ends(fn, n):
    """A pass's sum over n groups, and how many groups were done at the end of each segment."""
    found = []
    with Engine(Inline()).open(Made(n, 1), Needs()) as data:
        data.journal.start((), lambda: found.append(data.journal.entries[0].done))
        value, _ = data.map_reduce(fn, "sum")
    return value, found


@pytest.mark.parametrize("n", [5, 16, 100, 333])
@pytest.mark.parametrize("few", [256, 4])
def test_bits_do_not_depend_on_where_segments_end(n, few, monkeypatch):
    """A pass of one segment and one of many give the same sum, also where units are long."""
    monkeypatch.setattr(pace, "FEW_UNITS", few)
    monkeypatch.setattr(pace, "FIRST", 10_000)
    whole, at_once = ends(thirds, n)
    assert at_once == [n]
    for first, most in ((1, 1), (64, 40), (1, 1000)):
        monkeypatch.setattr(pace, "FIRST", first)
        monkeypatch.setattr(pace, "MOST", most)
        value, segments = ends(thirds, n)
        unit = pace.unit_of(n)
        assert value == whole
        assert all(end % unit == 0 for end in segments[:-1])
        assert segments[-1] == n
        assert len(segments) > 1 or n <= unit or first > n


class Clock:
    """Time that passes where somebody says so."""

    now = 0.0

    def time(self):
        """Seconds since it began."""
        return self.now


def test_a_segment_is_as_long_as_it_should_be(monkeypatch):
    """How many groups it has follows from how long the ones before it took."""
    monkeypatch.setattr(pace, "SECONDS", 0.2)
    monkeypatch.setattr(pace, "UNIT", 2)
    monkeypatch.setattr(pace, "FIRST", 4)

    clock = Clock()
    monkeypatch.setattr(daskdml.engine.opened, "time", clock)

    def slow(block):
        clock.now += 0.01 if block.X[0, 0] < 60 else 0.05
        return 1.0

    value, segments = ends(slow, 100)
    lengths = np.diff([0, *segments])
    assert value == 100
    assert lengths[0] == 4
    assert all(lengths[1:4] == 20)
    assert all(lengths[5:-1] == 4)  # of the slower ones


def test_segments_are_equally_long():
    """The last one is no mere rest."""
    made = Pace()
    made.took("sum", 100, 10.0)
    assert made.segment("sum", 110, slots=1) == 55
    assert made.segment("sum", 99, slots=1) == 99


def test_each_slot_has_work():
    """On a large cluster a segment has more groups than there are slots."""
    made = Pace()
    assert made.segment("sum", 10**6, slots=1000) == 4000
    made.took("sum", 4000, 1.0)
    assert made.segment("sum", 10**6, slots=1000) == 4000
    assert made.segment("sum", 10**6, slots=1) == 1024
