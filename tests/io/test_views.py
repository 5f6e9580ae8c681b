"""Views show the rows that their steps say."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdml.io.views import Cut, Pick, RowView


def shown(view: RowView, start: int = 0, stop: int | None = None) -> list[int]:
    """Give the stored rows that a range of a view shows."""
    stop = view.n_rows if stop is None else stop
    out = np.full(stop - start, -1)
    stored = np.arange(view.n_stored)
    for run in view.runs(start, stop):
        out[run.lo : run.hi] = stored[run.rows]
    return out.tolist()


@st.composite
def stepped(draw):
    """Draw a view, with the rows that it shows found the plain way for cuts."""
    n, chunk = draw(st.integers(1, 80)), draw(st.integers(1, 30))
    view = RowView(n, chunk)
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            a, b = sorted(draw(st.tuples(*[st.integers(0, view.n_rows)] * 2)))
            view = view.then(Cut(a, b))
        elif view.n_rows:
            n_picked = draw(st.integers(0, view.n_rows))
            view = view.then(Pick(draw(st.integers(0, 3)), n_picked, draw(st.booleans())))
    return view


@given(view=stepped(), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=300, deadline=None)
def test_ranges_of_a_view_are_ranges_of_its_rows(view, ends):
    """Any range shows the same rows as the whole view does there; rows come once, in order."""
    rows = shown(view)
    assert rows == sorted(set(rows))
    start, stop = sorted(int(e * view.n_rows) for e in ends)
    assert shown(view, start, stop) == rows[start:stop]


@given(view=stepped(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_cut_shows_a_range(view, data):
    """A cut shows the rows of that range, after any steps."""
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, view.n_rows)] * 2)))
    assert shown(view.then(Cut(a, b))) == shown(view, a, b)


@given(view=stepped(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_pick_and_its_rest_are_a_partition(view, data):
    """The subset and the rest are disjoint and complete, and of exactly the sizes asked for."""
    n = data.draw(st.integers(0, view.n_rows))
    if view.n_rows == 0:
        return
    picked, rest = (view.then(Pick(7, n, side)) for side in (True, False))
    assert (picked.n_rows, rest.n_rows) == (n, view.n_rows - n)
    assert sorted(shown(picked) + shown(rest)) == shown(view)


@given(view=stepped())
@settings(max_examples=200, deadline=None)
def test_bounds_part_the_stored_chunks(view):
    """No stored chunk has rows in two ranges between bounds; bounds run from 0 to n_rows."""
    bounds = view.bounds
    assert bounds[0] == 0 and bounds[-1] == view.n_rows
    if view.n_rows:
        assert all(a < b for a, b in itertools.pairwise(bounds))
    chunks = [
        {row // view.chunk_rows for row in shown(view, a, b)} for a, b in itertools.pairwise(bounds)
    ]
    assert all(len(c) == 1 for c in chunks if c)
    assert len(set().union(*chunks)) == len([c for c in chunks if c])


def test_the_choice_in_a_chunk_depends_on_seed_and_chunk_alone():
    """Other rows elsewhere do not change which rows of a chunk are picked."""
    small, large = RowView(200, 100), RowView(100_000, 100)
    picks = [shown(v.then(Pick(3, v.n_rows // 4, True)), 0, 50) for v in (small, large)]
    assert picks[0] == picks[1]
    other = shown(large.then(Pick(4, 25_000, True)), 0, 50)
    assert other != picks[1]


def test_sums_do_not_overflow():
    """A hundred billion rows are split exactly."""
    view = RowView(10**11, 10**9).then(Pick(0, 3 * 10**10 + 1, True))
    assert view.n_rows == 3 * 10**10 + 1
    assert view.bounds[1] == 3 * 10**8
