"""Sweeps over a grid of ratings: the model is cut into tiles, which tasks hand on along edges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from dask.task_spec import DataNode, List, Task, TaskRef

from daskdml.engine import factor_tasks
from daskdml.engine.factor_tasks import ReadTiles, Step, Tile
from daskdml.engine.graphs import Graph, tree
from daskdml.engine.journal import Journal
from daskdml.engine.memory import MemoryPlan, Needs, fit_plan
from daskdml.engine.opened import Opened, PassTotals
from daskdml.engine.run import Engine
from daskdml.engine.runners import Runner, fit_name
from daskdml.io.factors import FactorStore, StoredFactors
from daskdml.io.rating_store import Walk
from daskdml.io.ratings import Ratings
from daskdml.io.states import digest

LINEAGE_SECONDS = 10.0  # of sweeps that a lost worker can make Dask repeat
CURE = (
    "convert the ratings with a finer grid, run fewer threads per worker, or keep the factors in a "
    "store (fit(..., factors_url=))"
)


@dataclass(frozen=True)
class Held:
    """Factors of one side, tile by tile, wherever they are; those in a store have a name there."""

    steps: list[Any]
    name: str | None = None


class Sweeps(Opened):
    """Ratings opened by an engine, and the two sides of a model cut into tiles.

    Parameters
    ----------
    engine : Engine
    ratings : Ratings
    tiles : dict of "user" and "item" to list of Tile
    width : int
        Numbers in a row of factors.
    needs : Needs
    store : FactorStore or None
        Where factors are kept; None keeps them in the memory of the workers.
    paired : bool
        Ratings are read by pairs of tiles, not by tiles of one side.
    """

    def __init__(
        self, engine: Engine, ratings: Ratings, tiles: dict[Walk, list[Tile]], width: int,
        needs: Needs, store: FactorStore | None = None, paired: bool = False,
        rehearse: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(engine, ratings.in_memory)
        self.ratings = ratings
        self.tiles = tiles
        self.width = width
        self.store = store
        self.paired = paired
        self.journal = Journal()  # of no passes: sweeps are steps
        self._versions = 0
        self._alive: set[str] = set()
        self._replaced: set[str] = set()
        self._spared: set[str] = set()
        self._offered: set[str] = set()
        self.checkpointed: Callable[[], set[str]] = set  # names that checkpoints rely on
        self._cut = time.monotonic()
        self.require(needs, rehearse)

    @property
    def shape(self) -> tuple[int, int]:
        """Users and items."""
        return self.ratings.shape

    @property
    def n_rows(self) -> int:
        """Stored ratings."""
        return self.ratings.n_stored

    @property
    def row_nbytes(self) -> int:
        """Decoded bytes of a rating of one walk."""
        return 4 + self.ratings.dtype.itemsize

    def _plan(self, needs: Needs) -> MemoryPlan:
        held = 0 if self.ratings.in_memory else 1
        plan = MemoryPlan(
            limit=self.promise(),
            baseline=self.baseline,
            block=self._tile_nbytes() * held,
            encoded=(self.ratings.scratch_nbytes + self._merging_nbytes()) * held,
            threads=max(w.threads for w in self.runner.workers()),
            prefetch=held,
            needs=needs,
            cure=CURE,
        )
        return fit_plan(plan)

    def _tile_nbytes(self) -> int:
        """Decoded bytes of the largest tile of ratings."""
        nnz, most = self.ratings.nnz, 0
        users, items = self.tiles["user"], self.tiles["item"]
        if self.paired:
            for u in users:
                for v in items:
                    most = max(most, int(_part(_part(nnz, u, 0), v, 1).sum()))
        else:
            for axis, side in enumerate((users, items)):
                most = max(most, *(int(_part(nnz, tile, axis).sum()) for tile in side))
        rows = sum(max(t.rows for t in side) for side in (users, items))
        return most * self.row_nbytes + 4 * rows * max(self.ratings.grid)

    def _merging_nbytes(self) -> int:
        """Decoded bytes that it takes at most to make blocks one."""
        nnz, most = self.ratings.nnz, 0
        if not self.paired:
            return int(max(nnz.sum(axis=0).max(), nnz.sum(axis=1).max())) * self.row_nbytes
        users = [piece for tile in self.tiles["user"] for piece in tile.pieces]
        items = [piece for tile in self.tiles["item"] for piece in tile.pieces]
        for rows in users:
            for columns in items:
                if len(rows) * len(columns) > 1:
                    most = max(most, int(nnz.take(rows, axis=0).take(columns, axis=1).sum()))
        return 2 * most * self.row_nbytes  # as stripes, then one below the other

    def make(self, walk: Walk, init: Callable[[int, int], np.ndarray], label: str) -> Held:
        """First factors of one side; ``init(block, rows)`` gives those of a block."""
        name, stored = fit_name(label), self._stored(walk)
        graph: dict[Any, Any] = {f"{name}-init": DataNode(f"{name}-init", init)}
        lanes: dict[Any, int] = {}
        for tile in self.tiles[walk]:
            key, made = (name, tile.index), (f"{name}-made", tile.index)
            where = self._where(stored, tile)
            graph[key] = Task(key, factor_tasks.make, TaskRef(f"{name}-init"), tile, where)
            graph[made] = Task(made, _nothing, TaskRef(key))  # factors stay where they are
            lanes |= {key: tile.index, made: tile.index}
        keys = [(name, tile.index) for tile in self.tiles[walk]]
        wanted = [(f"{name}-made", tile.index) for tile in self.tiles[walk]]
        graph_of = Graph(graph, wanted, lanes, keys)
        ended = self.runner.run(graph_of, _places(len(keys), self._slots()), lambda record: None)
        return Held(ended[len(wanted) :], stored)

    def half_sweep(
        self, walk: Walk, rule: Callable[..., Any], own: Held, other: Held, label: str
    ) -> tuple[list[Any], Held, PassTotals]:
        """New factors of one side, given the other's: all its tiles at once.

        Parameters
        ----------
        walk : {"user", "item"}
        rule : callable
            As for `factor_tasks.half_step`. Must be picklable.
        own, other : Held
        label : str

        Returns
        -------
        values : list
            What the rule found, block by block.
        held : Held
            The old ones stay until they are `replaced`.
        totals : PassTotals
        """
        tiles, others = self.tiles[walk], self.tiles["item" if walk == "user" else "user"]
        stored = self._stored(walk)
        name = fit_name(label)
        graph, refs = self._inputs(name, own, other)
        rule_key, tiles_key = f"{name}-rule", f"{name}-tiles"
        graph |= {rule_key: DataNode(rule_key, rule), tiles_key: DataNode(tiles_key, others)}
        lanes: dict[Any, int] = {}
        slots = self._slots()
        gates = self._gates(name, len(tiles), len(slots))
        for at, (tile, gate) in enumerate(zip(tiles, gates, strict=True)):
            key = (name, tile.index)
            load = self._load(graph, lanes, name, walk, tile, others, gate)
            graph[key] = Task(
                key, factor_tasks.half_step, TaskRef(rule_key), TaskRef(tiles_key), TaskRef(load),
                refs[0][at], tile, self._where(stored, tile), List(*refs[1]),
            )  # fmt: skip
            lanes[key] = at
        kept = [(name, tile.index) for tile in tiles]
        self._start(label, len(tiles) + len(others), 2 * self.n_rows)  # the other half follows
        value, steps, totals = self._swept(name, graph, lanes, len(tiles), kept, label, slots)
        return value, Held(steps, stored), totals

    def strata(
        self, rule: Callable[..., Any], t: int, users: Held, items: Held, staleness: int, label: str
    ) -> tuple[Any, Held, Held, PassTotals]:
        """One sweep over pairs of tiles, stratum by stratum of a Latin square.

        Replica k works on the tile of users k and of items (k + s) mod n in stratum s. Users stay
        with their replica; items go round. The work of a stratum starts from the items' factors of
        `staleness` strata before, and what it changed is added to the newest.

        Parameters
        ----------
        rule : callable
            As for `factor_tasks.pair_step`. Must be picklable.
        t : int
            Number of the sweep.
        users, items : Held
        staleness : int
        label : str

        Returns
        -------
        value : object
            The sum of what the rule found.
        users, items : Held
        totals : PassTotals
        """
        n = len(self.tiles["user"])
        name = fit_name(label)
        graph, (own, start) = self._inputs(name, users, items)
        graph[f"{name}-rule"] = DataNode(f"{name}-rule", rule)
        versions: list[list[TaskRef]] = [[ref] for ref in start]
        names = users.name, items.name
        lanes: dict[Any, int] = {}
        passed: list[str | None] = []  # between the first, which the caller has, and the last
        for s in range(n):
            passed += names if s else ()
            names = self._stored("user"), self._stored("item")
            for k in range(n):
                j = (k + s) % n
                pair = self.tiles["user"][k], self.tiles["item"][j]
                where = self._where(names[0], pair[0]), self._where(names[1], pair[1])
                key, known = (name, s, k), versions[j]
                base = known[max(0, len(known) - 1 - staleness)]
                stale = base is not known[-1]
                ahead = s - 1 - self.plan.prefetch
                gate = [TaskRef((name, ahead, k))] if ahead >= 0 else []
                load = self._load_pair(graph, lanes, name, key, pair, gate)
                graph[key] = Task(
                    key, factor_tasks.pair_step, TaskRef(f"{name}-rule"), t, TaskRef(load), own[k],
                    base, pair, (where[0], None if stale else where[1]),
                )  # fmt: skip
                own[k] = TaskRef(key)
                item = (f"{name}-items", s, j)
                if stale:
                    change = (known[-1], base, TaskRef(key), where[1])
                    graph[item] = Task(item, factor_tasks.advance, *change)
                else:
                    graph[item] = Task(item, factor_tasks.pick, TaskRef(key), 1)
                lanes |= {key: k, item: k}
                known.append(TaskRef(item))
        kept: list[Any] = []
        for k, ref in enumerate(own):
            kept.append((f"{name}-users", k))
            graph[kept[-1]] = Task(kept[-1], factor_tasks.pick, ref, 0)
            lanes[kept[-1]] = k
        kept += [known[-1].key for known in versions]
        self._start(label, n * n, self.n_rows)
        slots = self._slots()
        value, steps, totals = self._swept(name, graph, lanes, n, kept, label, slots)
        self._forget(*passed)
        return value, Held(steps[:n], names[0]), Held(steps[n:], names[1]), totals

    def _swept(
        self, name: str, graph: dict[Any, Any], lanes: dict[Any, int], n: int, kept: list[Any],
        label: str, slots: list[str],
    ) -> tuple[Any, list[Any], PassTotals]:  # fmt: skip
        """Run the graph of a sweep: the sum of what its steps found, and the factors it leaves."""
        parts = []
        for key in [key for key in graph if isinstance(key, tuple) and key[0] == name]:
            part = (f"{name}-found", *key[1:])
            graph[part] = Task(part, factor_tasks.part_of, TaskRef(key))
            lanes[part] = lanes[key]
            parts.append(part)
        graph |= tree(f"{name}-sum", parts)
        whole = Graph(graph, [(f"{name}-sum", -1)], lanes, kept, name)
        (part, *steps), totals = self._run(whole, _places(n, slots), label, len(slots))
        if self.store is not None:  # a lost one could not be made again once the old ones are gone
            steps = [Step(s.factors) for s in self.runner.fetch(steps)]
        self.totals = self.totals + totals
        return part.value, steps, totals

    def score(
        self, rule: Callable[..., Any], users: Held, items: Held, label: str, ratings: Ratings
    ) -> tuple[Any, PassTotals]:
        """Sum of ``rule(U, V, block)`` over all blocks of ratings of the same grid."""
        name = fit_name(label)
        graph, refs = self._inputs(name, users, items)
        rule_key, tiles_key = f"{name}-rule", f"{name}-tiles"
        others = self.tiles["item"]
        graph |= {rule_key: DataNode(rule_key, rule), tiles_key: DataNode(tiles_key, others)}
        lanes: dict[Any, int] = {}
        parts = []
        users_tiles = self.tiles["user"]
        slots = self._slots()
        gates = self._gates(name, len(users_tiles), len(slots))
        for at, (tile, gate) in enumerate(zip(users_tiles, gates, strict=True)):
            key = (name, tile.index)
            load = self._load(graph, lanes, name, "user", tile, others, gate, ratings)
            graph[key] = Task(
                key, factor_tasks.score_step, TaskRef(rule_key), TaskRef(tiles_key), TaskRef(load),
                refs[0][at], tile, List(*refs[1]),
            )  # fmt: skip
            lanes[key] = at
            parts.append(key)
        graph |= tree(f"{name}-sum", parts)
        self._start(label, len(parts), self.n_rows)
        whole = Graph(graph, [(f"{name}-sum", -1)], lanes, name=name)
        places = _places(len(parts), slots)
        (part,), totals = self._run(whole, places, label, len(slots))
        return part.value, totals

    def gram(self, held: Held, k: int) -> np.ndarray:
        """``sum of w w'`` of one side's factors, (k, k) float64."""
        name = fit_name("gram")
        graph, (refs,) = self._inputs(name, held)
        keys = [(name, n) for n in range(len(refs))]
        graph |= {
            key: Task(key, factor_tasks.gram, ref, k) for key, ref in zip(keys, refs, strict=True)
        }
        graph |= tree(f"{name}-sum", keys)
        whole = Graph(graph, [(f"{name}-sum", -1)], {key: n for n, key in enumerate(keys)})
        (part,) = self.runner.run(whole, _places(len(keys), self._slots()), lambda record: None)
        return part.value

    def _inputs(self, name: str, *sides: Held) -> tuple[dict[Any, Any], list[list[TaskRef]]]:
        """Entries of what earlier graphs kept, and references to them."""
        self._shorten(*sides)
        graph: dict[Any, Any] = {}
        refs = []
        for n, side in enumerate(sides):
            keys = [(f"{name}-from-{n}", k) for k in range(len(side.steps))]
            for key, step in zip(keys, side.steps, strict=True):
                graph[key] = self.runner.entry(key, step)
            refs.append([TaskRef(key) for key in keys])
        return graph, refs

    def _shorten(self, *sides: Held) -> None:
        """Now and then, replace what is kept by its value: Dask forgets how it came about."""
        if time.monotonic() - self._cut < LINEAGE_SECONDS:
            return
        for side in sides:
            side.steps[:] = [Step(s.factors) for s in self.runner.fetch(side.steps)]
        self._cut = time.monotonic()

    def _load(
        self, graph: dict[Any, Any], lanes: dict[Any, int], name: str, walk: Walk, own: Tile,
        others: Sequence[Tile], gate: list[Any], ratings: Ratings | None = None,
    ) -> Any:  # fmt: skip
        """Add the task that reads a tile of one side, for all tiles of the other; its key."""
        graph.setdefault(f"{name}-others", DataNode(f"{name}-others", list(others)))
        index = own.index + (len(self.tiles["user"]) if walk == "item" else 0)
        rest = TaskRef(f"{name}-others")
        key, how = (f"{name}-read", own.index), self._how(graph, name, ratings)
        whole = ratings is None
        graph[key] = Task(key, factor_tasks.load_tile, how, index, walk, own, rest, whole, *gate)
        lanes[key] = own.index
        return key

    def _load_pair(
        self, graph: dict[Any, Any], lanes: dict[Any, int], name: str, step: tuple[Any, int, int],
        pair: tuple[Tile, Tile], gate: list[Any],
    ) -> Any:  # fmt: skip
        """Add the task that reads the ratings of two tiles; its key."""
        users, items = pair
        index = len(self.tiles["user"]) * (2 + users.index) + items.index
        key, how = (f"{name}-read", *step[1:]), self._how(graph, name, None)
        graph[key] = Task(
            key, factor_tasks.load_tile, how, index, "user", users, [items], False, *gate
        )
        lanes[key] = users.index
        return key

    def _how(self, graph: dict[Any, Any], name: str, ratings: Ratings | None) -> TaskRef:
        """How ratings are read; those of the fit stay in memory as far as there is room."""
        key = f"{name}-how"
        budget = self.pinnable() if ratings is None and not self.ratings.in_memory else None
        how = ReadTiles(ratings or self.ratings, self.token, budget, self.plan.spare, name)
        graph.setdefault(key, DataNode(key, how))
        return TaskRef(key)

    def _gates(self, name: str, n: int, slots: int) -> list[list[TaskRef]]:
        """What each tile's load waits for: tiles of one lane come one after the other."""
        lanes: dict[int, list[int]] = {}
        gates: list[list[TaskRef]] = []
        for k in range(n):
            lane = lanes.setdefault(k * slots // n, [])
            before = len(lane) - 1 - self.plan.prefetch
            gates.append([TaskRef((name, lane[before]))] if before >= 0 else [])
            lane.append(k)
        return gates

    def _stored(self, walk: Walk) -> str | None:
        """Name of a new array for one side's factors, where they are kept in a store."""
        if self.store is None:
            return None
        self._versions += 1
        name = f"{walk}-{self._versions}"
        sizes = [n for tile in self.tiles[walk] for n in tile.sizes]
        self.store.add(name, sizes, self.width, self.ratings.dtype)
        self._alive.add(name)
        return name

    def _where(self, name: str | None, tile: Tile) -> StoredFactors | None:
        if name is None or self.store is None:
            return None
        return StoredFactors(self.store, name, tile.first, tile.sizes, self.width)

    def replaced(self, users: Held, items: Held) -> None:
        """Remove these factors from the store, unless they are spared: newer ones are whole."""
        self._forget(users.name, items.name)

    def _forget(self, *names: str | None) -> None:
        """Remove factors, now or once they are spared no longer."""
        self._replaced |= {name for name in names if name in self._alive}
        for name in self._replaced - self._spared - self._offered - self.checkpointed():
            assert self.store is not None
            self.store.remove(name)
            self._alive.remove(name)
            self._replaced.remove(name)

    def spare(self, users: Held, items: Held) -> None:
        """Keep these factors in the store, whatever replaces them; those spared before go."""
        before = self._spared
        self._spared = _names(users, items)
        self._forget(*before)

    def spare_for_checkpoint(self, names: Iterable[str]) -> None:
        """Keep what a checkpoint names that is being written; once it is, it is `checkpointed`."""
        self._offered = set(names)
        self._forget()

    def identity(self, label: str) -> str:
        """Digits that tell these ratings from others."""
        ratings = self.ratings
        if ratings.in_memory:  # their identity is of this process
            return digest(ratings.content)
        return digest([ratings.identity, repr(ratings.parts)])  # wherever the store is by now

    def written(self, held: Held) -> Callable[[], Any]:
        """What gives one side's factors as a checkpoint has them: their name, or their values."""
        if held.name is not None:
            return partial(str, held.name)
        return partial(_values, self.runner, list(held.steps))

    def adopt(self) -> None:
        """Know what an earlier call left in the store."""
        assert self.store is not None
        self._alive |= set(self.store.names())
        numbers = [int(name.rpartition("-")[2]) for name in self._alive]
        self._versions = max(numbers, default=0)

    def hold(self, walk: Walk, written: Any) -> Held:
        """Factors that a checkpoint has."""
        if isinstance(written, str):
            tiles = [self._where(written, tile) for tile in self.tiles[walk]]
            return Held([Step((tile,)) for tile in tiles if tile is not None], written)
        return Held([Step((rows,)) for rows in written])

    def settle(self, users: Held, items: Held) -> None:
        """Remove all factors from the store but these, and those that checkpoints rely on."""
        self._offered = set()
        self.spare(users, items)
        self._forget(*(self._alive - self._spared))

    def fetch(self, held: Held) -> np.ndarray:
        """Factors of one side in this process, (n, width)."""
        steps = self.runner.fetch(held.steps)
        return np.concatenate([factor_tasks.load(step.factors[0]) for step in steps])


def _names(*sides: Held) -> set[str]:
    return {side.name for side in sides if side.name is not None}


def _values(runner: Runner, steps: list[Any]) -> tuple[Any, ...]:
    return tuple(step.factors[0] for step in runner.fetch(steps))


def _places(n: int, slots: list[str]) -> list[str]:
    """The worker of each of n tiles: neighbours share one."""
    return [slots[k * len(slots) // n] for k in range(n)]


def _part(nnz: np.ndarray, tile: Tile, axis: int) -> np.ndarray:
    return nnz.take(range(tile.first, tile.first + len(tile.sizes)), axis=axis)


def _nothing(result: Any) -> None:
    """What tells that a task has ended."""


def cut_tiles(bounds: np.ndarray, n: int, n_pieces: int | None = None) -> list[Tile]:
    """Cut one side's blocks into at most n tiles of as many blocks each.

    Parameters
    ----------
    bounds : ndarray of shape (n_blocks + 1,)
        Where the rows of each block begin.
    n : int
    n_pieces : int or None
        See `Tile`.

    Examples
    --------
    >>> [t.sizes for t in cut_tiles(np.array([0, 3, 6, 9, 11]), 2)]
    [(3, 3), (3, 2)]
    """
    sizes = np.diff(bounds).tolist()
    edges = [k * len(sizes) // min(n, len(sizes)) for k in range(min(n, len(sizes)) + 1)]
    return [Tile(k, a, tuple(sizes[a:b]), n_pieces) for k, (a, b) in enumerate(pairwise(edges))]
