"""What runs inside a task of block-parallel factorization: read a tile of ratings, work on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from daskdml.engine.cache import PINNED
from daskdml.engine.place import compute_permit, leave_slot, tell, worker_name
from daskdml.engine.tasks import ONE_BLAS_THREAD, BlockRecord, Part
from daskdml.io import buffers
from daskdml.io.chunks import ReadStats
from daskdml.io.factors import StoredFactors
from daskdml.io.rating_store import Walk
from daskdml.io.ratings import Ratings
from daskdml.kernels.ratings import RatingBlock, below, beside, needed, row_ranges

GATHER_BYTES = (
    64_000_000  # of the other side's factors that a task keeps, where they lie in a store
)


@dataclass(frozen=True)
class Tile:
    """Consecutive blocks of users or items, whose factors are kept together.

    Parameters
    ----------
    index : int
    first : int
        Number of the first block.
    sizes : tuple of int
        Users or items of each block.
    n_pieces : int or None
        So many pieces of consecutive blocks are worked on one after the other; None means each
        block alone.
    """

    index: int
    first: int
    sizes: tuple[int, ...]
    n_pieces: int | None = None

    @property
    def rows(self) -> int:
        """Users or items of the tile."""
        return sum(self.sizes)

    @property
    def pieces(self) -> list[range]:
        """Numbers of the blocks of each piece."""
        n, of = len(self.sizes), min(self.n_pieces or len(self.sizes), len(self.sizes))
        edges = [self.first + k * n // of for k in range(of + 1)]
        return [range(a, b) for a, b in pairwise(edges)]

    @property
    def slices(self) -> list[slice]:
        """Where each piece's rows are among the tile's."""
        ends = np.cumsum([0, *self.sizes])
        at = [(piece.start - self.first, piece.stop - self.first) for piece in self.pieces]
        return [slice(int(ends[a]), int(ends[b])) for a, b in at]


@dataclass(frozen=True)
class ReadTiles:
    """How ratings are to be read, and where they may stay.

    Parameters
    ----------
    ratings : Ratings
    token : str
        Names the fit.
    budget : int or None
        Bytes that may stay pinned in a process; None where none are looked for either.
    spare : int
        Bytes of free buffers that a process may keep for the next read.
    graph : str
        Name of the graph that reads.
    """

    ratings: Ratings
    token: str
    budget: int | None
    spare: int
    graph: str


@dataclass(frozen=True)
class LoadedTile:
    """Ratings in memory, by the first block of the own and of the other side's piece.

    0 stands for the other side's first where all of it is one piece.
    """

    blocks: dict[tuple[int, int], RatingBlock]
    record: BlockRecord

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return sum(block.nbytes for block in self.blocks.values())


@dataclass(frozen=True)
class Step:
    """Factors of one tile or of two, and what else a step found."""

    factors: tuple[np.ndarray | StoredFactors, ...]
    part: Part | None = None


def load_tile(
    how: ReadTiles, index: int, walk: Walk, own: Tile, others: Sequence[Tile], whole: bool,
    *gate: Any,
) -> LoadedTile:  # fmt: skip
    """Ratings of a tile for the other side's tiles; holds no compute slot while it reads.

    `index` names the tile among all that a fit reads; with `whole`, the other side's tiles are one
    piece, whose indices count over all of them; `gate` only orders.
    """
    began = time.time()
    if how.budget is not None:
        kept = PINNED.get(how.token, index)
        if kept is not None:
            record = replace(
                kept.record, graph=how.graph, nbytes=0, worker=worker_name(), pinned=True,
                load_began=began, load_ended=began, read=0.0, decode=0.0,
            )  # fmt: skip
            return LoadedTile(kept.blocks, record)
    if not how.ratings.in_memory:
        buffers.set_limit(how.spare)
        leave_slot()
    blocks, stats = {}, ReadStats()
    sizes = {b: n for other in others for b, n in enumerate(other.sizes, other.first)}
    columns = [range(len(sizes))] if whole else [p for other in others for p in other.pieces]
    for rows in own.pieces:
        for piece in columns:
            offsets = np.cumsum([0, *(sizes[b] for b in piece[:-1])])
            stripes = []
            for a in rows:
                stripe = []
                for b in piece:
                    block, more = how.ratings.read(walk, *((a, b) if walk == "user" else (b, a)))
                    stripe.append(block)
                    stats += more
                stripes.append(beside(stripe, offsets))
            blocks[rows.start, piece.start] = below(stripes)
    record = BlockRecord(
        how.graph, index, sum(b.nnz for b in blocks.values()), stats.nbytes, worker_name(), False,
        began, time.time(), stats.read_seconds, stats.decode_seconds,
    )  # fmt: skip
    loaded = LoadedTile(blocks, record)
    if how.budget and PINNED.offer(how.token, index, loaded, loaded.nbytes, how.budget):
        return LoadedTile(blocks, replace(record, pinned=True))
    return loaded


def _working(loaded: LoadedTile, work: Callable[[], tuple[Any, Any]]) -> tuple[Any, Part]:
    """What `work` gives beside a value for the sum, and that value with the tile's record.

    Factors are loaded and saved by `work`, too: as many tasks hold some as there are slots.
    """
    leave_slot()
    with compute_permit(), ONE_BLAS_THREAD:
        began, tick = time.time(), time.perf_counter()
        result, value = work()
    seconds = time.perf_counter() - tick
    record = replace(loaded.record, began=began, ended=time.time(), compute=seconds)
    tell(record)
    return result, Part(value, (record,))


def load(factors: np.ndarray | StoredFactors) -> np.ndarray:
    """Factors, wherever they are."""
    return factors.load() if isinstance(factors, StoredFactors) else factors


def fresh(factors: np.ndarray | StoredFactors) -> np.ndarray:
    """Factors that may be changed."""
    return factors.load() if isinstance(factors, StoredFactors) else factors.copy()


def keep(rows: np.ndarray, where: StoredFactors | None) -> np.ndarray | StoredFactors:
    """Factors, put where they are to be."""
    if where is None:
        return rows
    where.save(rows)
    return where


def make(init: Callable[[int, int], np.ndarray], tile: Tile, where: StoredFactors | None) -> Step:
    """First factors of a tile; `init(block, rows)` gives those of a block."""
    rows = [init(tile.first + n, size) for n, size in enumerate(tile.sizes)]
    return Step((keep(np.concatenate(rows), where),))


def half_step(
    rule: Callable[..., tuple[np.ndarray, Any]],
    tiles: Sequence[Tile],
    loaded: LoadedTile,
    own: Step,
    tile: Tile,
    where: StoredFactors | None,
    others: list[Step],
) -> Step:
    """New factors of a tile, given the other side's.

    ``rule(old, block, factors) -> new, value`` is called for rows of one piece at a time. Factors
    in a store are read tile by tile, and only the rows that are needed stay, `GATHER_BYTES` at
    most: no process holds a side. The values come in a list, piece by piece, so that their sum does
    not depend on the tiles.
    """

    def work() -> tuple[np.ndarray | StoredFactors, list[Any]]:
        old, new, values = load(own.factors[0]), [], []
        in_store = isinstance(others[0].factors[0], StoredFactors)
        whole = None if in_store else np.concatenate([load(step.factors[0]) for step in others])
        for piece, rows in zip(tile.pieces, tile.slices, strict=True):
            stripe = loaded.blocks[piece.start, 0]
            if whole is not None:
                found = [rule(old[rows], stripe, whole)]
            else:
                found = [
                    rule(old[rows][lo:hi], *_gathered(stripe.rows(lo, hi), tiles, others))
                    for lo, hi in _ranges(stripe, sum(t.rows for t in tiles), old)
                ]
            new += [rows for rows, _ in found]
            values += [value for _, value in found]
        return keep(np.concatenate(new), where), values

    rows, part = _working(loaded, work)
    return Step((rows,), part)


def _ranges(stripe: RatingBlock, n: int, factors: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of a stripe's rows whose needed factors can all stay."""
    most = GATHER_BYTES // (factors.shape[1] * factors.itemsize)
    return [(0, len(stripe.indptr) - 1)] if n <= most else row_ranges(stripe, most)


def _gathered(
    block: RatingBlock, tiles: Sequence[Tile], others: list[Step]
) -> tuple[RatingBlock, np.ndarray]:
    """A block, and the rows of the other side's factors that it needs."""
    block, used = needed(block, sum(tile.rows for tile in tiles))
    at, rows = 0, []
    for tile, step in zip(tiles, others, strict=True):
        here = used[at : at + tile.rows]
        if here.any():
            rows.append(load(step.factors[0])[here])
        at += tile.rows
    return block, np.concatenate(rows) if rows else np.zeros((0, 1))


def pair_step(
    rule: Callable[..., Any],
    t: int,
    loaded: LoadedTile,
    own: Step,
    other: Step,
    tiles: tuple[Tile, Tile],
    where: tuple[StoredFactors | None, StoredFactors | None],
) -> Step:
    """New factors of a tile of users and of a tile of items, from the ratings of both.

    ``rule(U, V, block, t, i, j) -> value`` changes U and V, which are copies, in place; i and j
    are the first blocks of the two pieces.
    """
    users, items = tiles

    def work() -> tuple[tuple[np.ndarray | StoredFactors, ...], Any]:
        U, V = fresh(own.factors[0]), fresh(other.factors[0])
        total = None
        for n, m in _visits(len(users.pieces), len(items.pieces)):
            i, j = users.pieces[n].start, items.pieces[m].start
            value = rule(U[users.slices[n]], V[items.slices[m]], loaded.blocks[i, j], t, i, j)
            total = value if total is None else total + value
        return (keep(U, where[0]), keep(V, where[1])), total

    return Step(*_working(loaded, work))


def _visits(n: int, m: int) -> Iterator[tuple[int, int]]:
    """All pairs, along the diagonals of a Latin square."""
    for shift in range(m):
        for row in range(n):
            yield row, (row + shift) % m


def score_step(
    rule: Callable[..., Any], tiles: Sequence[Tile], loaded: LoadedTile, own: Step, tile: Tile,
    others: list[Step],
) -> Part:  # fmt: skip
    """Sum of ``rule(U, V, block)`` over the pieces of a tile."""

    def work() -> tuple[None, Any]:
        U, total = load(own.factors[0]), None
        for other, step in zip(tiles, others, strict=True):
            V = load(step.factors[0])
            for first, rows in zip(tile.pieces, tile.slices, strict=True):
                for second, columns in zip(other.pieces, other.slices, strict=True):
                    block = loaded.blocks[first.start, second.start]
                    value = rule(U[rows], V[columns], block)
                    total = value if total is None else total + value
        return None, total

    return _working(loaded, work)[1]


def gram(step: Step, k: int) -> Part:
    """``sum of w w'`` of a tile's factors."""
    w = load(step.factors[0])[:, :k].astype(np.float64)
    with ONE_BLAS_THREAD:
        return Part(w.T @ w, ())


def pick(step: Step, which: int) -> Step:
    """One of the factors alone, so that the other need not travel with it."""
    return Step((step.factors[which],))


def advance(before: Step, base: Step, new: Step, where: StoredFactors | None) -> Step:
    """``before + (new - base)``: a change that was computed from stale factors, made to newer ones.

    References
    ----------
    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server",
    NIPS 2013.
    """
    rows = load(before.factors[0]) + (load(new.factors[-1]) - load(base.factors[0]))
    return Step((keep(rows, where),))


def part_of(step: Step) -> Part:
    """What a step found beside its factors."""
    assert step.part is not None
    return step.part
