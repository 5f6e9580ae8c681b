"""What a fit tells from its start to its end, also where it fails."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest

from daskdml import Engine, LogisticRegression, ProgressBar, SGDClassifier
from daskdml.engine.run import Threads
from daskdml.events import BlockEnd, FitEnd, FitStart, Message
from daskdml.io import write_dataset

ROWS = 20_000


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        """It is."""
        return True

    def screen(self):
        """The lines that are left on the screen, and the one that the cursor is on."""
        shown = []
        for line in self.getvalue().split("\n"):
            text = ""
            for part in line.split("\r"):
                text = part + text[len(part) :]
            shown.append(text.rstrip())
        return shown


@pytest.fixture
def ds(tmp_path):
    """A data set whose last row is not finite."""
    X = np.random.default_rng(0).standard_normal((ROWS, 5))
    X[-1, 2] = np.nan
    return write_dataset(tmp_path / "a.zarr", X, (X[:, 0] > 0).astype(int), chunks=1000)


def interrupt(event):
    """Be the Ctrl-C that comes while a block is told of."""
    if isinstance(event, BlockEnd):
        raise KeyboardInterrupt


def fit_ends(events):
    """The reasons of the fits' ends."""
    return [e.reason for e in events if isinstance(e, FitEnd)]


MODELS = [
    LogisticRegression(),
    SGDClassifier(max_iter=2, tol=None),
    LogisticRegression(solver="sgd"),
]


@pytest.mark.parametrize("model", MODELS, ids=["newton", "sgd-rows", "sgd"])
def test_a_fit_that_fails_is_told_to_have_ended(model, ds):
    """The last event is the fit's end, with the error's name; the bar's live line is closed."""
    events, terminal = [], Terminal()
    bar = ProgressBar(terminal, min_interval=0.0)
    with (
        Engine(Threads(2), callbacks=[events.append, bar]),
        pytest.raises(ValueError, match=r"row 19999, column 2"),
    ):
        model.fit(ds)
    assert isinstance(events[0], FitStart) and isinstance(events[-1], FitEnd)
    assert fit_ends(events) == ["broken off by ValueError"]
    *_, last, cursor = terminal.screen()
    assert last.endswith("broken off by ValueError") and cursor == ""


def test_an_interrupted_fit_is_told_to_have_ended(ds):
    """So it is after Ctrl-C, and the next fit with the same callbacks ends as it should."""
    events, terminal = [], Terminal()
    bar = ProgressBar(terminal, min_interval=0.0)
    with (
        Engine(Threads(2), callbacks=[events.append, bar, interrupt]),
        pytest.raises(KeyboardInterrupt),
    ):
        LogisticRegression().fit(ds)
    assert fit_ends(events) == ["broken off by KeyboardInterrupt"]
    *_, last, cursor = terminal.screen()
    assert last.endswith("broken off by KeyboardInterrupt") and cursor == ""
    with Engine(Threads(2), callbacks=[events.append, bar]):
        LogisticRegression().fit(ds[: ROWS // 2])
    assert "gap" in fit_ends(events)[1] and terminal.screen()[-1] == ""


def test_scores_that_fail_leave_a_closed_line(ds, tmp_path):
    """A pass that is no fit's tells what broke it off."""
    model = LogisticRegression().fit(ds[: ROWS // 2])
    for use in (lambda: model.score(ds), lambda: model.predict(ds, out=str(tmp_path / "p.zarr"))):
        events, terminal = [], Terminal()
        bar = ProgressBar(terminal, min_interval=0.0)
        with Engine(Threads(2), callbacks=[events.append, bar]), pytest.raises(ValueError):
            use()
        assert isinstance(events[-1], Message) and "broken off by ValueError" in events[-1].text
        *_, last, cursor = terminal.screen()
        assert last == events[-1].text and cursor == ""


class Slow(Threads):
    """Threads that take a while to get ready."""

    def resident(self, rehearse=None, shared=False):
        """The resident bytes, half a second later."""
        time.sleep(0.5)
        return super().resident(rehearse, shared)


@pytest.mark.parametrize("model", MODELS, ids=["newton", "sgd-rows", "sgd"])
def test_seconds_count_from_the_call_of_fit(model, ds):
    """The history's and the end's seconds include planning, and are no more than the user waits."""
    events = []
    with Engine(Slow(2), callbacks=[events.append]):
        began = time.perf_counter()
        model.fit(ds[: ROWS // 2])
        waited = time.perf_counter() - began
    assert 0.5 <= model.history_[0].seconds <= model.history_[-1].seconds
    assert model.history_[-1].seconds <= events[-1].seconds <= waited
