"""Recommendations and metrics over blocks of users. Imported when called: it needs Dask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import zarr

from daskdml.engine.each import Each
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.io.arrays import staged_array
from daskdml.io.factors import FactorTable
from daskdml.io.identity import array_digest
from daskdml.io.journal import run_of
from daskdml.io.rating_store import Side
from daskdml.io.ratings import Ratings
from daskdml.io.staging import stage
from daskdml.io.store import open_store, resolve_url, retrying
from daskdml.kernels.ranking import USERS, RankingSums, rank_lists, top_items
from daskdml.kernels.ratings import RatingBlock, needed, starts_of
from daskdml.solvers.als import SolveRows
from daskdml.solvers.factorization import Errors, ErrorsOf, Model

Tables = tuple[FactorTable, FactorTable]


@dataclass(frozen=True)
class RowsOf:
    """Ratings of users by id: which of a model's items each has rated.

    Parameters
    ----------
    ratings : Ratings
    items : Side
        Of the model.
    threshold : float or None
        Ratings below it do not count.
    """

    ratings: Ratings
    items: Side
    threshold: float | None = None

    @cached_property
    def _place(self) -> np.ndarray:
        """Place in the model of each item of the ratings; unknown ones come after all known."""
        found = self.items.find(self.ratings.items.ids)
        return np.where(found >= 0, found, len(self.items) + np.arange(len(found)))

    def __call__(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """indptr (n + 1,) and items of users, given by id."""
        indptr, items, _ = self.rated(users)
        return indptr, items

    def rated(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr (n + 1,), items, rising within a user, and ratings of users, given by id."""
        side, at = self.ratings.users, self.ratings.users.find(users)
        of = np.searchsorted(side.bounds, at, side="right") - 1
        rows, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        values = [np.zeros(0, self.ratings.dtype)]
        for i in np.unique(of[at >= 0]).tolist():
            here = np.flatnonzero((of == i) & (at >= 0))
            local = at[here] - side.bounds[i]
            for j in range(self.ratings.grid[1]):
                block, _ = self.ratings.read("user", i, j)
                starts, counts = block.indptr[local], np.diff(block.indptr)[local]
                inside = np.repeat(starts - np.append(0, np.cumsum(counts)[:-1]), counts)
                inside = inside + np.arange(len(inside))
                owner = np.repeat(here, counts)
                if self.threshold is not None:
                    enough = block.values[inside] >= self.threshold
                    inside, owner = inside[enough], owner[enough]
                rows.append(owner)
                items.append(self._place[block.indices[inside] + self.ratings.items.bounds[j]])
                values.append(block.values[inside])
        row, item = np.concatenate(rows), np.concatenate(items)
        order = np.lexsort((item, row))
        return starts_of(row, len(users)), item[order], np.concatenate(values)[order]


def _both(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of two sources, joined row by row."""
    n = len(a[0]) - 1
    rows = np.concatenate([np.repeat(np.arange(n), np.diff(x[0])) for x in (a, b)])
    items = np.concatenate([a[1], b[1]])
    return starts_of(rows, n), items[np.lexsort((items, rows))]


@dataclass(frozen=True)
class Lists:
    """Users, by id -> their best items, by place, and scores."""

    model: Model
    tables: Tables
    seen: tuple[RowsOf, ...]
    k: int

    def __call__(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items (n, k) and scores (n, k)."""
        table, items = self.tables
        W = table.take(table.side.find(users))
        seen = None
        for rows in self.seen:
            more = rows(users)
            seen = more if seen is None else _both(seen, more)
        return top_items(W, items.blocks(), self.k, seen, self.model.mean)


def _lists(model: Model, tables: Tables, seen: Sequence[Ratings], k: int) -> Lists:
    return Lists(model, tables, tuple(RowsOf(r, tables[1].side) for r in seen), k)


def _ids(side: Side, places: np.ndarray) -> np.ndarray:
    """Ids of places; -1 or "" where there is none."""
    out = side.ids[places]
    out[places < 0] = "" if out.dtype.kind == "U" else -1
    return out


@dataclass(frozen=True)
class Users:
    """Users in batches: numbers of batches -> ids."""

    ids: np.ndarray

    @property
    def n(self) -> int:
        """Number of batches."""
        return -(-len(self.ids) // USERS)

    def batch(self, number: int) -> np.ndarray:
        """Ids of a batch."""
        return self.ids[number * USERS : (number + 1) * USERS]


def recommend(
    users: np.ndarray, model: Model, tables: Tables, seen: Sequence[Ratings], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of items (ids) and scores for users, in this process."""
    lists, batches = _lists(model, tables, seen, k), Users(users)
    items = np.empty((len(users), k), tables[1].side.ids.dtype)
    scores = np.empty((len(users), k), model.dtype)
    for number in range(batches.n):
        rows = slice(number * USERS, (number + 1) * USERS)
        places, scores[rows] = lists(batches.batch(number))
        items[rows] = _ids(tables[1].side, places)
    return items, scores


@dataclass(frozen=True)
class WriteLists:
    """Number of a batch that is missing -> 1, once its lists are in their chunks."""

    users: Users
    lists: Lists
    arrays: dict[str, zarr.Array[Any]]
    missing: tuple[int, ...]

    def __call__(self, at: int) -> int:
        """Write one batch."""
        number = self.missing[at]
        ids = self.users.batch(number)
        places, scores = self.lists(ids)
        sides = [table.side for table in self.lists.tables]
        columns = {
            "users": _numbers(sides[0], sides[0].find(ids)),
            "items": _numbers(sides[1], places),
            "scores": scores,
        }
        rows = slice(number * USERS, number * USERS + len(ids))
        for name, array in self.arrays.items():
            put = partial(array.__setitem__, rows, columns[name])
            retrying(put, f"writing {name} of batch {number}")
        return 1


def _numbers(side: Side, places: np.ndarray) -> np.ndarray:
    """Ids that are integers; places of those that are strings."""
    return places if side.ids.dtype.kind == "U" else _ids(side, places)


def stream_recommendations(
    users: np.ndarray, model: Model, tables: Tables, seen: Sequence[Ratings], k: int, out: str,
    options: Any,
) -> zarr.Group:  # fmt: skip
    """Write the lists of users to a new Zarr group, which appears there whole.

    Broken off, it is gone on with from the batches that are there.
    """
    url, batches, n = resolve_url(out), Users(users), len(users)
    run = run_of(
        "recommend", users=array_digest(users), model=model, k=k,
        tables=_all(table.identity for table in tables), seen=_all(r.content for r in seen),
    )  # fmt: skip
    staging = stage(url, options, run=run)
    try:
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "users": ((n,), np.int64), "items": ((n, k), np.int64), "scores": ((n, k), model.dtype)
        }  # fmt: skip
        arrays = {
            name: staged_array(staging, name, shape, np.dtype(dtype), USERS)
            for name, (shape, dtype) in shapes.items()
        }
        finished = set.intersection(*map(staging.finished, arrays.values()))
        missing = tuple(i for i in range(batches.n) if i not in finished)
        lists = _lists(model, tables, seen, k)
        if missing:
            with _each(len(missing), lists) as each:
                each.sum(WriteLists(batches, lists, arrays, missing), "recommend")
        names = {
            f"{what}_names": table.side.ids.tolist()
            for what, table in zip(("user", "item"), tables, strict=True)
            if table.side.ids.dtype.kind == "U"
        }
        own = {"kind": "recommendations", "complete": True, "prefix": staging.prefix}
        staging.commit({"daskdml": own, **names})
    except BaseException as error:
        staging.leave(error)
        raise
    store = open_store(url, options)
    return retrying(lambda: zarr.open_group(store, mode="r"), f"opening {url}")


def _all(facts: Iterable[Any]) -> list[Any] | None:
    """All of them, or None where one is."""
    found = list(facts)
    return None if any(fact is None for fact in found) else found


def _each(n: int, lists: Lists) -> Each:
    """An engine over batches of users, with room for their scores."""
    width = max(int(np.diff(table.side.bounds).max()) for table in lists.tables)
    row = lists.model.width * lists.model.dtype.itemsize
    scores = USERS * width * (3 * lists.model.dtype.itemsize + 8)
    ratings = [rows.ratings for rows in lists.seen]
    read = max((2 * r.block_nbytes for r in ratings), default=0)
    held = sum(len(table) * row for table in lists.tables if table.in_memory)
    in_memory = any(r.in_memory for r in ratings)
    return Each(Engine.current(), n, in_memory, Needs(2 * width * row + scores + read, 0, 0, held))


@dataclass(frozen=True)
class RankBatch:
    """Number of a batch -> `RankingSums` of its users' lists."""

    users: Users
    lists: Lists
    chosen: RowsOf

    def __call__(self, number: int) -> RankingSums:
        """Rank one batch."""
        ids = self.users.batch(number)
        indptr, items = self.chosen(ids)
        places, _ = self.lists(ids)
        return rank_lists(places, indptr, items)


def ranking_metrics(
    test: Ratings, model: Model, tables: Tables, seen: Sequence[Ratings], k: int,
    threshold: float | None,
) -> dict[str, float]:  # fmt: skip
    """Metrics of the lists of the users of test ratings."""
    lists = _lists(model, tables, seen, k)
    batches = Users(test.users.ids)
    chosen = RowsOf(test, tables[1].side, threshold)
    with _each(batches.n, lists) as each:
        found: RankingSums = each.sum(RankBatch(batches, lists, chosen), "ranking")
    return found.means(len(tables[1]))


@dataclass(frozen=True)
class ErrorsOfBlocks:
    """Number of a block of test items -> `Errors` of its ratings."""

    test: Ratings
    model: Model
    tables: Tables

    def __call__(self, j: int) -> Errors:
        """Errors of one column of blocks."""
        users, items = self.tables
        rule, total = ErrorsOf(self.model.k, self.model.mean), Errors(0.0, 0.0, 0)
        V = items.take(items.side.find(_block_ids(self.test.items, j)))
        for i in range(self.test.grid[0]):
            U = users.take(users.side.find(_block_ids(self.test.users, i)))
            block, _ = self.test.read("user", i, j)
            total = total + rule(U, V, block)
        return total


def _block_ids(side: Side, block: int) -> np.ndarray:
    return side.ids[side.bounds[block] : side.bounds[block + 1]]


def error_metrics(test: Ratings, model: Model, tables: Tables) -> dict[str, float]:
    """RMSE and MAE of the predictions for test ratings."""
    rows = max(int(np.diff(side.bounds).max()) for side in (test.users, test.items))
    row = model.width * model.dtype.itemsize
    held = sum(len(table) * row for table in tables if table.in_memory)
    needs = Needs(3 * rows * row + 4 * test.block_nbytes, 0, 0, held)
    with Each(Engine.current(), test.grid[1], test.in_memory, needs) as each:
        found: Errors = each.sum(ErrorsOfBlocks(test, model, tables), "errors")
    return {"rmse": found.rmse, "mae": found.mae}


def fold_in(ratings: Ratings, model: Model, items: FactorTable) -> FactorTable:
    """Factors of the users of new ratings, with the items' as they are."""
    indptr, places, values = RowsOf(ratings, items.side).rated(ratings.users.ids)
    known = places < len(items)
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))[known]
    block, used = needed(
        RatingBlock(
            starts_of(row, len(indptr) - 1), places[known].astype(np.int32),
            values[known].astype(model.dtype),
        ),
        len(items),
    )  # fmt: skip
    gathered, gram = [], np.zeros((model.k, model.k))
    for at, factors in items.blocks():
        gathered.append(factors[used[at : at + len(factors)]])
        if model.implicit:
            w = factors[:, : model.k].astype(np.float64)
            gram += w.T @ w
    old = np.zeros((len(indptr) - 1, model.width), model.dtype)
    solve = SolveRows(model, gram if model.implicit else None)
    rows, _ = solve(old, block, np.concatenate(gathered))
    return FactorTable(Side(ratings.users.ids, np.array([0, len(rows)])), rows, model.width)
