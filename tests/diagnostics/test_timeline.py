import matplotlib
import pytest

matplotlib.use("Agg")

from daskdml.diagnostics import Timeline
from tests.diagnostics.fits import BLOCK, events


def recorded():
    """Return a timeline that heard a whole fit."""
    timeline = Timeline()
    for event in events():
        timeline(event)
    return timeline


def test_the_frame_has_one_row_per_block():
    """Every block is a row, every field a column, nothing is rounded."""
    frame = recorded().to_frame()
    assert len(frame) == 18
    assert list(frame.columns)[:5] == ["label", "index", "rows", "nbytes", "worker"]
    assert frame["nbytes"].sum() == 18 * BLOCK
    assert frame["start"].min() == 1000.0


def test_an_empty_timeline_has_an_empty_frame_and_no_plot():
    """Nothing heard is a table without rows, and an error that says what to do."""
    timeline = Timeline()
    assert timeline.to_frame().shape == (0, 10)
    assert timeline.summary() == "no blocks"
    with pytest.raises(ValueError, match="callbacks before fit"):
        timeline.plot()


def test_the_summary_adds_up():
    """A worker's shares are its seconds over the seconds of the whole: nine blocks in 1.2 s."""
    assert recorded().summary() == (
        "18 blocks (720 MB) in 3 passes on 2 workers, 1.20 s\n"
        "worker    blocks    read  decode  compute  (share of 1.20 s)\n"
        "worker-0       9     30%     45%      75%\n"
        "worker-1       9     30%     45%      75%"
    )


def test_the_plot_shows_every_block_where_it_was(tmp_path):
    """Each lane has its blocks' bars; loading begins at the start, computing ends at the stop."""
    ax = recorded().plot()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["worker-0", "worker-1"]
    bars = ax.collections
    assert [len(bar.get_paths()) for bar in bars] == [9] * 6
    read, _, compute = (bar.get_paths()[0].get_extents() for bar in bars[:3])
    assert (read.x0, compute.x1) == (0.0, pytest.approx(0.2))
    assert read.y0 > compute.y1
    assert [text.get_text().strip() for text in ax.texts] == ["newton 1", "newton 2", "newton 3"]
    ax.figure.savefig(tmp_path / "timeline.png")
