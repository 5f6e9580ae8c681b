"""How a fit came near its optimum, against the time and against the bytes it took."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeGuard

from daskdml.units import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

GAP_COLOR = "#3182bd"
OBJECTIVE_COLOR = "#e6550d"
SMALLEST_GAP = 1e-16  # what an exact zero is drawn as on the logarithmic axis


class Record(Protocol):
    """One pass or round of a fit, as `plot_convergence` needs it."""

    @property
    def seconds(self) -> float:
        """Seconds since the fit began."""

    @property
    def nbytes(self) -> int:
        """Bytes read since the fit began."""

    @property
    def objective(self) -> float | None:
        """Value of the objective, where the pass tells it."""

    @property
    def gap(self) -> float | None:
        """Bound of the objective minus its optimum, where the pass tells it."""

    @property
    def relative(self) -> float | None:
        """The gap as a share of the objective's magnitude, where the pass tells it."""


def plot_convergence(
    history: Iterable[Record], figure: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Draw the certificate's relative gap and the objective, against seconds and bytes read.

    Parameters
    ----------
    history : iterable of Record
        Records in order; their seconds and bytes count from the fit's beginning.
    figure : matplotlib Figure or SubFigure or None
        An empty figure to draw in; None makes one.

    Returns
    -------
    matplotlib Figure or SubFigure
        The figure, with two panels side by side, each the gap (logarithmic) over the objective.
        The gap is the one certified when the pass ended and, where that is smaller, the distance to
        the best lower bound known at the end.

    Raises
    ------
    ValueError
        If no record tells an objective or a gap.
    """
    records = list(history)
    gaps = [(r, max(r.relative, SMALLEST_GAP)) for r in records if _told(r.relative)]
    objectives = [(r, r.objective) for r in records if _told(r.objective)]
    if not gaps and not objectives:
        raise ValueError(
            "The history has no record with an objective or a gap; fit with a solver that "
            "evaluates them, or ask for a certificate."
        )
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(3, 2))
    scale, unit = byte_unit(max((r.nbytes for r in records), default=0))
    certified = {"label": "when the pass ended", "color": GAP_COLOR}
    afterwards = {"label": "known at the end", "color": GAP_COLOR, "ls": "--", "mfc": "white"}
    for column in (0, 1):
        for ax, points, look in (
            (axes[0, column], gaps, certified),
            (axes[0, column], _in_hindsight(records), afterwards),
            (axes[1, column], objectives, {"color": OBJECTIVE_COLOR}),
        ):
            if not points:
                continue
            x = [r.nbytes / scale if column else r.seconds for r, _ in points]
            ax.plot(x, [value for _, value in points], marker="o", markersize=4, **look)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", color="0.9", linewidth=0.6)
            ax.set_axisbelow(True)
    _label(axes, unit, gaps[-1] if gaps else None)
    if len(axes[0, 0].lines) > 1:
        axes[0, 0].legend(frameon=False)
    return figure


def _in_hindsight(records: list[Record]) -> list[tuple[Record, float]]:
    """Each pass's relative gap to the best lower bound of all, if that says more of any of them."""
    told = [
        (r, r.objective, r.gap, r.relative)
        for r in records
        if _told(r.objective) and _told(r.gap) and _told(r.relative) and r.relative > 0
    ]
    # A gap may be that of the next point's objective; the two numbers' ratio tells it. The smallest
    # is the one to trust: others may be estimates from afar.
    gap, relative = min(((g, r) for _, _, g, r in told), default=(0.0, 0.0))
    least = gap / relative - gap if told else math.inf
    points = [(r, (f - least) / abs(f), relative) for r, f, _, relative in told if f > least]
    if all(known > 0.5 * relative for _, known, relative in points):
        return []
    return [(r, known) for r, known, _ in points]


def _label(axes: list[list[Axes]], unit: str, last: tuple[Record, float] | None) -> None:
    """Name the axes and write the last gap beside its point."""
    gap_axes, objective_axes = axes
    gap_axes[0].set_yscale("log")
    gap_axes[0].margins(y=0.15)
    gap_axes[0].set_ylabel("relative gap (certificate)")
    objective_axes[0].set_ylabel("objective")
    objective_axes[0].set_xlabel("seconds")
    objective_axes[1].set_xlabel(f"{unit} read")
    objective_axes[0].set_xlim(left=0)
    objective_axes[1].set_xlim(left=0)
    if last is not None:
        record, gap = last
        gap_axes[0].annotate(
            f"{gap:.1e}",
            (record.seconds, gap),
            xytext=(-5, -3),  # below on the left: a curve that falls comes from above on the left
            textcoords="offset points",
            ha="right",
            va="top",
            color=GAP_COLOR,
        )


def _told(value: float | None) -> TypeGuard[float]:
    """Tell whether a number is there and finite."""
    return value is not None and math.isfinite(value)
