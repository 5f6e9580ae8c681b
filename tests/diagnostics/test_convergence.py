from dataclasses import replace

import matplotlib
import pytest

matplotlib.use("Agg")

from daskdml.diagnostics import plot_convergence
from tests.diagnostics.fits import GAPS, OBJECTIVES, history


def test_both_panels_show_every_record(tmp_path):
    """The gap and the objective are drawn against seconds on the left, bytes on the right."""
    figure = plot_convergence(history())
    gap, gap_bytes, objective, objective_bytes = figure.axes
    relative = [g / f for g, f in zip(GAPS, OBJECTIVES, strict=True)]
    for ax, y in ((gap, relative), (gap_bytes, relative)):
        assert ax.get_yscale() == "log"
        assert list(ax.lines[0].get_ydata()) == y
    for ax, x in ((objective, [0.4, 0.8, 1.2]), (objective_bytes, [240, 480, 720])):
        assert list(ax.lines[0].get_xdata()) == pytest.approx(x)
        assert list(ax.lines[0].get_ydata()) == list(OBJECTIVES)
    assert gap.get_ylabel() == "relative gap (certificate)"
    assert (objective.get_xlabel(), objective_bytes.get_xlabel()) == ("seconds", "MB read")
    figure.savefig(tmp_path / "convergence.png")


def test_what_is_known_at_the_end_is_drawn_where_it_says_more():
    """A pass that could certify nothing gets its distance to the best lower bound, of any pass."""
    first, *rest = history()
    trivial = replace(first, gap=first.objective, relative=1.0)
    gap = plot_convergence([trivial, *rest]).axes[0]
    certified, known = gap.lines
    assert certified.get_ydata()[0] == 1.0
    least = OBJECTIVES[-1] - GAPS[-1]
    expected = [(f - least) / f for f in OBJECTIVES]
    assert list(known.get_ydata()) == pytest.approx(expected, rel=1e-6)
    assert [t.get_text() for t in gap.get_legend().get_texts()][1] == "known at the end"


def test_records_that_tell_nothing_are_left_out():
    """A pass without a certificate or with an infinite one has no point; an exact fit has one."""
    first, second, third = history()
    records = [replace(first, relative=None), replace(second, relative=float("inf"))]
    gap = plot_convergence([*records, replace(third, relative=0.0)]).axes[0]
    assert list(gap.lines[0].get_ydata()) == [1e-16]


def test_a_history_without_numbers_is_an_error():
    """Nothing to draw is said, with the cure."""
    with pytest.raises(ValueError, match="ask for a certificate"):
        plot_convergence([])


def test_a_fit_that_is_not_convex_shows_its_gradient_and_its_score():
    """Without a gap, the gradient's norm takes its row; scores held out get one."""
    records = [
        replace(r, gap=None, relative=None, gradient=g, validation=v)
        for r, g, v in zip(history(), (90.0, 3.0, 0.2), (1.2, 0.9, 0.95), strict=True)
    ]
    figure = plot_convergence(records)
    gradient, _, objective, _, score, _ = figure.axes
    assert [ax.get_ylabel() for ax in (gradient, objective, score)] == [
        "gradient's norm", "objective", "validation"
    ]  # fmt: skip
    assert gradient.get_yscale() == "log" and score.get_yscale() == "linear"
    assert list(gradient.lines[0].get_ydata()) == [90.0, 3.0, 0.2]
    assert list(score.lines[0].get_ydata()) == [1.2, 0.9, 0.95]


def test_rows_and_columns_without_numbers_are_left_out():
    """Rows read once need no column for bytes, and an objective alone no row for a gap."""
    records = [replace(r, nbytes=7, gap=None, relative=None) for r in history()]
    (objective,) = plot_convergence(records).axes
    assert objective.get_ylabel() == "objective" and objective.get_xlabel() == "seconds"
    assert list(objective.lines[0].get_ydata()) == list(OBJECTIVES)
