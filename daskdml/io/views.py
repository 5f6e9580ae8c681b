"""Which rows of a stored data set a view shows: a few numbers, whatever the number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

__all__ = ["Cut", "Pick", "RowView", "Run", "row_view"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep rows [start, stop) of the view so far."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Pick:
    """Of the rows of every chunk, keep a random subset or what it leaves.

    The subset of a chunk depends on (seed, chunk, depth) alone, its size on the rows before it,
    so that all chunks together give exactly `n_picked`.

    Parameters
    ----------
    seed : int
        Of the permutations, non-negative.
    n_picked : int
        Rows of the subset, over all chunks.
    picked : bool
        Show the subset (True) or the other rows (False).
    """

    seed: int
    n_picked: int
    picked: bool


Step = Cut | Pick


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of the data set, increasing, that are rows [lo, hi) of what was asked for."""

    rows: slice | np.ndarray
    lo: int
    hi: int


@lru_cache(maxsize=64)
def row_view(n_stored: int, chunk_rows: int, steps: tuple[Step, ...]) -> RowView:
    """Give a `RowView`, the same object each time, so that its bounds are found once a process."""
    return RowView(n_stored, chunk_rows, steps)


@dataclass(frozen=True)
class RowView:
    """Rows of a data set of `n_stored` rows in chunks of `chunk_rows`, after some steps.

    Examples
    --------
    >>> view = RowView(10, 4).then(Cut(2, 9))
    >>> view.bounds
    (0, 2, 6, 7)
    >>> [(run.rows, run.lo, run.hi) for run in view.runs(1, 4)]
    [(slice(3, 6, None), 0, 3)]
    """

    n_stored: int
    chunk_rows: int
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> RowView:
        """Give the view after one more step; cuts of cuts become one."""
        steps = self.steps
        if isinstance(step, Cut) and steps and isinstance(steps[-1], Cut):
            last = steps[-1]
            step = Cut(last.start + step.start, last.start + step.stop)
            steps = steps[:-1]
        return RowView(self.n_stored, self.chunk_rows, (*steps, step))

    @property
    def n_rows(self) -> int:
        """Rows that the view shows."""
        if not self.steps:
            return self.n_stored
        step = self.steps[-1]
        if isinstance(step, Cut):
            return step.stop - step.start
        return step.n_picked if step.picked else self._before.n_rows - step.n_picked

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where the view passes from one stored chunk to the next; first 0, last n_rows."""
        edges = np.unique(self._edges)
        return tuple(edges.tolist()) if len(edges) > 1 else (0, int(edges[-1]))

    @property
    def consecutive(self) -> bool:
        """Whether the view shows consecutive rows of the data set."""
        return all(isinstance(step, Cut) for step in self.steps)

    def runs(self, start: int, stop: int) -> list[Run]:
        """Say where rows [start, stop) of the view are stored, chunk by chunk.

        Parameters
        ----------
        start, stop : int
            0 <= start <= stop <= n_rows.

        Returns
        -------
        list of Run
            With `lo` and `hi` relative to `start`; one run where the view is consecutive.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start}:{stop} are not within the {self.n_rows} of the view")
        if start == stop:
            return []
        if self.consecutive:
            first = self.steps[0].start if self.steps else 0  # type: ignore[union-attr]
            return [Run(slice(first + start, first + stop), 0, stop - start)]
        edges = self._edges
        found = []
        piece = int(np.searchsorted(edges, start, side="right")) - 1
        while piece < len(edges) - 1 and edges[piece] < stop:
            lo, hi = max(start, int(edges[piece])), min(stop, int(edges[piece + 1]))
            if lo < hi:
                rows = self._piece_rows(piece)[lo - int(edges[piece]) : hi - int(edges[piece])]
                found.append(Run(_as_slice(rows), lo - start, hi - start))
            piece += 1
        return found

    @cached_property
    def _before(self) -> RowView:
        return RowView(self.n_stored, self.chunk_rows, self.steps[:-1])

    @cached_property
    def _edges(self) -> np.ndarray:
        """Boundaries of the pieces, one for each stored chunk touched, some perhaps empty."""
        if not self.steps:
            rows = np.arange(0, self.n_stored, self.chunk_rows, dtype=np.int64)
            return np.append(rows, self.n_stored)
        before, step = self._before._edges, self.steps[-1]
        if isinstance(step, Cut):
            kept = np.clip(before, step.start, step.stop) - step.start
            return kept[self._first_piece : self._last_piece + 1]
        total = int(before[-1])
        # Python integers: rows times rows overflow 64 bits long before disks are full.
        picked = np.array([int(e) * step.n_picked // total for e in before], dtype=np.int64)
        return picked if step.picked else before - picked

    @property
    def _first_piece(self) -> int:
        """The piece of the view before a cut in which the cut starts."""
        start = self.steps[-1].start  # type: ignore[union-attr]
        edges = self._before._edges
        return min(max(int(np.searchsorted(edges, start, side="right")) - 1, 0), len(edges) - 2)

    @property
    def _last_piece(self) -> int:
        stop = self.steps[-1].stop  # type: ignore[union-attr]
        found = int(np.searchsorted(self._before._edges, stop, side="left"))
        return max(found, self._first_piece + 1)

    def _piece_rows(self, piece: int) -> np.ndarray:
        """Indices in the data set of the rows of one piece."""
        if not self.steps:
            first = piece * self.chunk_rows
            return np.arange(first, min(first + self.chunk_rows, self.n_stored))
        step = self.steps[-1]
        if isinstance(step, Cut):
            source = piece + self._first_piece
            at = int(self._before._edges[source])
            rows = self._before._piece_rows(source)
            return rows[max(step.start - at, 0) : max(step.stop - at, 0)]
        rows = self._before._piece_rows(piece)
        n_kept = int(self._edges[piece + 1] - self._edges[piece])
        n_picked = n_kept if step.picked else len(rows) - n_kept
        chunk, depth = self._chunk_of(piece), sum(isinstance(s, Pick) for s in self.steps)
        order = np.random.default_rng([step.seed, chunk, depth]).permutation(len(rows))
        chosen = order[:n_picked] if step.picked else order[n_picked:]
        return rows[np.sort(chosen)]

    def _chunk_of(self, piece: int) -> int:
        if not self.steps:
            return piece
        shift = self._first_piece if isinstance(self.steps[-1], Cut) else 0
        return self._before._chunk_of(piece + shift)


def _as_slice(rows: np.ndarray) -> slice | np.ndarray:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
