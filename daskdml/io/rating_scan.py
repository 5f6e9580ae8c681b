"""The first walk over ratings: ids become codes, and what is found goes to a scratch file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskdml.io.rating_batches import Batch, Position
from daskdml.io.scratch import Scratch
from daskdml.io.shuffle import Deal, Spill
from daskdml.kernels.ratings import IntegerCodes, StringCodes

__all__ = ["Ids", "Scan"]

IDS = 1 << 16  # in a line of the journal


@dataclass
class Ids:
    """Codes of the users' or of the items' ids, and how many ratings each has."""

    column: str
    codes: IntegerCodes | StringCodes | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def encode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of a batch's ids, and the ids that are new, in the order of their codes."""
        text = ids.dtype.kind == "U"
        if self.codes is None:
            self.codes = StringCodes() if text else IntegerCodes()
        if text != isinstance(self.codes, StringCodes):
            raise ValueError(
                f"{self.column} holds integers in some rows and strings in others; give one kind"
            )
        codes = self.codes.encode(ids)
        new = np.flatnonzero(codes >= len(self.counts))
        _, first = np.unique(codes[new], return_index=True)
        return codes, ids[new[first]]

    def learn(self, ids: list[Any]) -> None:
        """Give new ids the codes that they had."""
        self.encode(np.array(ids, dtype=str if isinstance(ids[0], str) else np.int64))

    def count(self, codes: np.ndarray) -> None:
        """Count the ratings of a batch."""
        counts = np.bincount(codes, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    @property
    def ids(self) -> np.ndarray:
        """The ids, by code."""
        assert self.codes is not None
        return self.codes.ids

    def deal(self, n_blocks: int, seed: int) -> Deal:
        """Which block each code goes to."""
        return Deal.of(self.ids, self.counts, n_blocks, seed)


class Scan:
    """What the first walk over the source found; `spill` holds the ratings, batch by batch.

    Each batch is noted in the journal of the scratch folder, with the ids that were new in it, so
    that `replay` makes of the journal and the spill what was found before.

    Parameters
    ----------
    scratch : Scratch
    columns : tuple of str
        Names of the users' and of the items' column.
    dtype : dtype
        Of the ratings.
    """

    def __init__(self, scratch: Scratch, columns: tuple[str, str], dtype: np.dtype[Any]) -> None:
        self.users, self.items = Ids(columns[0]), Ids(columns[1])
        self.after: Position | None = None
        self.timed: bool | None = None
        self._scratch, self._dtype = scratch, dtype
        self._file = scratch.open("ratings")
        self._spill: Spill | None = None
        self.least, self.largest = np.inf, -np.inf
        self._early, self._late = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self._last_time, self._last = np.zeros(0, np.int64), np.zeros(0, np.int32)
        self.n = 0

    @property
    def spill(self) -> Spill:
        """The ratings."""
        assert self._spill is not None
        return self._spill

    @property
    def times(self) -> tuple[int, int] | None:
        """The first and the last time, where there are times."""
        return (int(self._early), int(self._late)) if self.timed else None

    @property
    def last(self) -> np.ndarray | None:
        """Code of the item that each user rated last, where there are times."""
        return self._last if self.timed else None

    def add(self, batch: Batch, after: Position) -> None:
        """Take in a batch, behind which the source is at the position `after`."""
        self._begin(batch.times is not None)
        (u, users), (i, items) = self.users.encode(batch.users), self.items.encode(batch.items)
        self.spill.append(u, i, batch.ratings, batch.times)
        least, largest = float(batch.ratings.min()), float(batch.ratings.max())
        self._tally(u, i, batch.times, least, largest)
        self.after = after
        for side, ids in (("users", users), ("items", items)):
            for start in range(0, len(ids), IDS):
                self._scratch.note(new=side, ids=ids[start : start + IDS].tolist())
        self._scratch.note(
            batch=len(u), least=least, largest=largest, timed=self.timed, after=after
        )

    def replay(self, line: dict[str, Any], with_ratings: bool) -> None:
        """Take in a noted batch, or its new ids; `with_ratings` where the spill still has it."""
        if "new" in line:
            (self.users if line["new"] == "users" else self.items).learn(line["ids"])
            return
        self._begin(line["timed"])
        self.after = line["after"]
        if with_ratings:
            u, i, _, *times = self.spill.take(line["batch"])
            self._tally(u, i, times[0] if times else None, line["least"], line["largest"])

    def _begin(self, timed: bool) -> None:
        if self._spill is None:
            self.timed = timed
            self._spill = Spill(self._file, timed, self._dtype)

    def _tally(
        self, u: np.ndarray, i: np.ndarray, times: np.ndarray | None, least: float, largest: float
    ) -> None:
        self.users.count(u)
        self.items.count(i)
        self.n += len(u)
        self.least, self.largest = min(self.least, least), max(self.largest, largest)
        if times is not None:
            self._early = min(self._early, times.min())
            self._late = max(self._late, times.max())
            n = len(self.users.counts)
            self._last_time, self._last = _latest(self._last_time, self._last, n, u, i, times)

    def give_up_spill(self, starts: np.ndarray) -> None:
        """Keep what was counted, and where blocks begin; the spill is no longer needed."""
        arrays = {
            "users": self.users.counts, "items": self.items.counts, "last": self._last,
            "starts": starts,
        }  # fmt: skip
        for name, values in arrays.items():
            file = self._scratch.open(f"{name}.npy")
            file.truncate(0)
            np.save(file, values)
            file.flush()
        times = list(self.times) if self.times else None
        self._scratch.note(shuffled=self.n, least=self.least, largest=self.largest, times=times)
        self._file.truncate(0)

    def restore(self, line: dict[str, Any]) -> np.ndarray:
        """Take up what `give_up_spill` kept; gives where blocks begin."""
        arrays = {}
        for name in ("users", "items", "last", "starts"):
            arrays[name] = np.load(self._scratch.open(f"{name}.npy"), allow_pickle=False)
        self.users.counts, self.items.counts = arrays["users"], arrays["items"]
        self._last, self.n = arrays["last"], line["shuffled"]
        self.least, self.largest = line["least"], line["largest"]
        if line["times"]:
            self._early, self._late = line["times"]
        return np.asarray(arrays["starts"])


def _latest(
    times: np.ndarray, last: np.ndarray, n: int, u: np.ndarray, i: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Time and item of each user's last rating so far; of equal times the later one given."""
    grown = np.full(n, np.iinfo(np.int64).min)
    grown[: len(times)] = times
    items = np.zeros(n, np.int32)
    items[: len(last)] = last
    order = np.lexsort((t, u))  # stable
    ends = np.flatnonzero(np.append(np.diff(u[order]) != 0, True))
    at = order[ends]
    newer = t[at] >= grown[u[at]]
    at = at[newer]
    grown[u[at]], items[u[at]] = t[at], i[at]
    return grown, items
