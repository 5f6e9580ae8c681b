"""What every worker did when: the events of a fit as a table and as a picture."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from daskdml.events import BlockEnd, Event
from daskdml.units import bytes_text, seconds_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Distinct for the colour-blind as well, and in grey.
COLORS = {"read": "#9ecae1", "decode": "#3182bd", "compute": "#e6550d"}
CHARACTER = 0.009  # width of a small letter, as a share of the picture's
SEPARATE_BARS = 200  # beyond that the lines between the bars of a lane would hide them


class Timeline:
    """Remember the blocks of a fit, for a look at who was busy with what.

    Examples
    --------
    >>> timeline = Timeline()
    >>> timeline(BlockEnd("newton", 0, 100, 8000, "a", 10.0, 11.0, 0.2, 0.1, 0.6))
    >>> timeline(BlockEnd("newton", 0, 100, 8000, "b", 10.0, 12.0, 0.5, 0.5, 1.0))
    >>> print(timeline.summary())
    2 blocks (16 kB) in 1 pass on 2 workers, 2.00 s
    worker  blocks    read  decode  compute  (share of 2.00 s)
    a            1     10%      5%      30%
    b            1     25%     25%      50%
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[BlockEnd] = []

    def __repr__(self) -> str:
        return f"<Timeline: {len(self._blocks):,} blocks>"

    def __call__(self, event: Event) -> None:
        """Remember `event` if it is the end of a block."""
        if isinstance(event, BlockEnd):
            with self._lock:
                self._blocks.append(event)

    @property
    def blocks(self) -> tuple[BlockEnd, ...]:
        """The blocks so far, in the order in which they were told."""
        with self._lock:
            return tuple(self._blocks)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per block, with the fields of `daskdml.events.BlockEnd` as columns."""
        import pandas as pd

        columns = [f.name for f in fields(BlockEnd)]
        return pd.DataFrame([asdict(block) for block in self.blocks], columns=columns)

    def summary(self) -> str:
        """Return a small table: for each worker, its blocks and what it did with its time.

        Read, decode and compute may overlap, so a worker's shares can exceed 100 % together.
        """
        blocks = self.blocks
        if not blocks:
            return "no blocks"
        lanes = _by_worker(blocks)
        span = _span(blocks)
        passes = len({(block.label, block.index) for block in blocks})
        width = max(len("worker"), *map(len, lanes))
        lines = [
            f"{_count(len(blocks), 'block')} ({bytes_text(sum(b.nbytes for b in blocks))}) in "
            f"{_count(passes, 'pass', 'passes')} on {_count(len(lanes), 'worker')}, "
            f"{seconds_text(span)}",
            f"{'worker':<{width}}  blocks    read  decode  compute  "
            f"(share of {seconds_text(span)})",
        ]
        for worker, lane in lanes.items():
            read, decode, compute = (
                sum(getattr(block, kind) for block in lane) / (span or 1.0) for kind in COLORS
            )
            lines.append(
                f"{worker:<{width}}  {len(lane):>6,}  {read:>6.0%}  {decode:>6.0%}  {compute:>7.0%}"
            )
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw two lanes for each worker, loading above computing, and where the passes ended.

        Parameters
        ----------
        ax : matplotlib Axes or None
            Where to draw; None makes a figure.

        Returns
        -------
        matplotlib Axes
            The axes drawn on.

        Raises
        ------
        ValueError
            If no block was recorded.
        """
        blocks = self.blocks
        if not blocks:
            raise ValueError(
                "The timeline has no blocks to plot; pass it to the engine's callbacks before fit."
            )
        lanes = _by_worker(blocks)
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(9, 1.4 + 0.6 * len(lanes)), layout="constrained")
        origin = min(block.start for block in blocks)
        for height, lane in enumerate(lanes.values()):
            for kind, bars in _bars(lane, origin).items():
                bottom = height - 0.38 if kind == "compute" else height + 0.02
                label = kind if height == 0 else None
                ax.broken_barh(
                    bars,
                    (bottom, 0.36),
                    facecolor=COLORS[kind],
                    edgecolor="white",
                    linewidth=0.5 if len(bars) <= SEPARATE_BARS else 0.0,
                    label=label,
                )
        _draw_passes(ax, blocks, origin)
        ax.set_yticks(range(len(lanes)), list(lanes))
        ax.set_ylim(-0.6, len(lanes) - 0.4)
        ax.set_xlim(0, _span(blocks) or 1.0)
        ax.set_xlabel("seconds")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        return ax


def _by_worker(blocks: tuple[BlockEnd, ...]) -> dict[str, list[BlockEnd]]:
    """Return each worker's blocks; workers in the order of their names."""
    lanes = defaultdict(list)
    for block in blocks:
        lanes[block.worker].append(block)
    return dict(sorted(lanes.items()))


def _span(blocks: tuple[BlockEnd, ...]) -> float:
    """Return the seconds from the first start to the last stop."""
    return max(block.stop for block in blocks) - min(block.start for block in blocks)


def _bars(lane: list[BlockEnd], origin: float) -> dict[str, list[tuple[float, float]]]:
    """Return (left, width) of each bar: loading from the start on, computing up to the stop."""
    bars: dict[str, list[tuple[float, float]]] = {kind: [] for kind in COLORS}
    for block in lane:
        bars["read"].append((block.start - origin, block.read))
        bars["decode"].append((block.start - origin + block.read, block.decode))
        bars["compute"].append((block.stop - block.compute - origin, block.compute))
    return bars


def _draw_passes(ax: Any, blocks: tuple[BlockEnd, ...], origin: float) -> None:
    """Draw a thin line where each pass ended, named where there is room."""
    ends: dict[tuple[str, int], float] = {}
    for block in blocks:
        key = block.label, block.index
        ends[key] = max(ends.get(key, block.stop), block.stop)
    character, taken = CHARACTER * _span(blocks), origin
    for (label, index), end in sorted(ends.items(), key=lambda item: item[1]):
        ax.axvline(end - origin, color="0.5", linewidth=0.8)
        name = f"{label} {index + 1} "
        if end - character * len(name) >= taken:
            taken = end
            ax.annotate(
                name,
                (end - origin, 1.0),
                xycoords=("data", "axes fraction"),
                ha="right",
                va="bottom",
                fontsize="small",
                color="0.3",
            )


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one}" if n == 1 else f"{n:,} {many or one + 's'}"
