"""How a fit came near its optimum, against the time and against the bytes it took."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from daskdml.units import byte_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

GAP_COLOR = "#3182bd"
OBJECTIVE_COLOR = "#e6550d"
VALIDATION_COLOR = "#31a354"
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

    @property
    def gradient(self) -> float | None:
        """Norm of the gradient, where the problem is not convex and the pass tells it."""

    @property
    def validation(self) -> float | None:
        """Score of the ratings held out, where there are any."""


Points = list[tuple[Record, float]]


@dataclass(frozen=True)
class Panel:
    """One row of the picture.

    Parameters
    ----------
    label : str
        Of its vertical axis.
    lines : list of tuple
        Points, and how they look.
    height : int
        Of the row, relative to others.
    log : bool
        Whether the vertical axis is logarithmic.
    """

    label: str
    lines: list[tuple[Points, dict[str, Any]]]
    height: int = 2
    log: bool = False


def plot_convergence(
    history: Iterable[Record], figure: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Draw how far a fit was from its end, and the objective, against seconds and bytes read.

    Parameters
    ----------
    history : iterable of Record
        Records in order; their seconds and bytes count from the fit's beginning.
    figure : matplotlib Figure or SubFigure or None
        An empty figure to draw in; None makes one.

    Returns
    -------
    matplotlib Figure or SubFigure
        The figure: on the left against seconds, on the right against bytes read, unless all were
        read in the first pass. The upper row has the certificate's relative gap, or, where the
        problem is not convex, the gradient's norm (logarithmic); below it come the objective and
        the score of ratings held out. A row that no record tells anything for is left out. The gap
        is the one certified when the pass ended and, where that is smaller, the distance to the
        best lower bound known at the end.

    Raises
    ------
    ValueError
        If no record tells an objective, a gap, a gradient or a score.
    """
    records = list(history)
    panels = _panels(records)
    if not panels:
        raise ValueError(
            "The history has no record with an objective or a gap; fit with a solver that "
            "evaluates them, or ask for a certificate."
        )
    scale, unit = byte_unit(max((r.nbytes for r in records), default=0))
    columns = 2 if len({r.nbytes for r in records}) > 1 else 1
    if figure is None:
        import matplotlib.pyplot as plt

        size = (9 if columns == 2 else 5, 0.9 * sum(panel.height for panel in panels))
        figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        len(panels), columns, sharex="col", sharey="row", squeeze=False,
        height_ratios=[panel.height for panel in panels],
    )  # fmt: skip
    for row, panel in zip(axes, panels, strict=True):
        for ax, by_bytes in zip(row, (False, True), strict=False):
            _draw(ax, panel, scale if by_bytes else None)
        _name(row[0], panel)
    for ax, label in zip(axes[-1], ("seconds", f"{unit} read"), strict=False):
        ax.set_xlabel(label)
        ax.set_xlim(left=0)
    return figure


def _panels(records: list[Record]) -> list[Panel]:
    """What there is to draw, from top to bottom."""
    gaps = [(r, max(r.relative, SMALLEST_GAP)) for r in records if _told(r.relative)]
    gradients = [(r, max(r.gradient, SMALLEST_GAP)) for r in records if _told(r.gradient)]
    objectives = [(r, r.objective) for r in records if _told(r.objective)]
    scores = [(r, r.validation) for r in records if _told(r.validation)]
    certified = {"label": "when the pass ended", "color": GAP_COLOR}
    afterwards = {"label": "known at the end", "color": GAP_COLOR, "ls": "--", "mfc": "white"}
    lines = [(gaps, certified), (_in_hindsight(records), afterwards)]
    panels = [Panel("relative gap (certificate)", [line for line in lines if line[0]], 3, True)]
    if not gaps:
        panels = [Panel("gradient's norm", [(gradients, {"color": GAP_COLOR})], 3, True)]
    panels.append(Panel("objective", [(objectives, {"color": OBJECTIVE_COLOR})]))
    panels.append(Panel("validation", [(scores, {"color": VALIDATION_COLOR})]))
    return [panel for panel in panels if any(points for points, _ in panel.lines)]


def _draw(ax: Axes, panel: Panel, scale: float | None) -> None:
    """Draw a panel's lines against bytes in that unit, or against seconds."""
    for points, look in panel.lines:
        x = [r.seconds if scale is None else r.nbytes / scale for r, _ in points]
        ax.plot(x, [value for _, value in points], marker="o", markersize=4, **look)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    if panel.log:
        ax.set_yscale("log")
        ax.margins(y=0.2)


def _name(ax: Axes, panel: Panel) -> None:
    """Name the vertical axis and the lines; write a logarithmic panel's last value by its point."""
    ax.set_ylabel(panel.label)
    if len(panel.lines) > 1:
        ax.legend(frameon=False)
    if not panel.log:
        return
    record, value = panel.lines[0][0][-1]
    ax.annotate(
        f"{value:.1e}",
        (record.seconds, value),
        xytext=(-5, -3),  # below on the left: a curve that falls comes from above on the left
        textcoords="offset points",
        ha="right",
        va="top",
        color=GAP_COLOR,
    )


def _in_hindsight(records: list[Record]) -> Points:
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


def _told(value: float | None) -> TypeGuard[float]:
    """Tell whether a number is there and finite."""
    return value is not None and math.isfinite(value)
