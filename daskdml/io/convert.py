"""Writing ratings as a grid of blocks: an external shuffle in bounded memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import zarr
from dask.utils import parse_bytes
from zarr.storage import MemoryStore

from daskdml.io import buffers
from daskdml.io.arrays import create_array, staged_array
from daskdml.io.journal import run_of
from daskdml.io.rating_batches import Batch, Columns, Position, rating_batches, source_identity
from daskdml.io.rating_blocks import PER_ID, SORT_BYTES, BlockWriter, Choices, Create
from daskdml.io.rating_scan import Scan
from daskdml.io.rating_store import from_node
from daskdml.io.ratings import Ratings, open_ratings
from daskdml.io.scratch import Scratch
from daskdml.io.shuffle import Deal, Shuffled, block_of, grid_of
from daskdml.io.staging import stage
from daskdml.io.store import resolve_url
from daskdml.units import bytes_text

__all__ = ["convert_ratings", "ratings_in_memory"]

BLOCK_RATINGS = 1_500_000  # of a block, at most, where the caller does not choose the grid
STRIPE_RATINGS = 12_000_000  # of a row or a column of blocks
BATCH_BYTES = 150_000_000  # while a batch of the source is parsed
_SHARE_OF_MACHINE = 0.5

Read = Callable[..., Iterator[tuple[Batch, Position]]]


def convert_ratings(
    source: Any,
    url: str | os.PathLike[str],
    user: str = "userId",
    item: str = "movieId",
    rating: str | None = "rating",
    timestamp: str | None = None,
    grid: tuple[int, int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    source_options: Mapping[str, Any] | None = None,
    duplicates: str | None = None,
    dtype: Any = np.float32,
    random_state: int = 0,
    memory_limit: int | str | None = None,
    overwrite: bool = False,
) -> Ratings:
    """Write ratings, in any order, as a grid of blocks, in bounded memory.

    The source is read once, to a scratch file (12 to 24 bytes a rating); then every rating goes to
    its block's place in another one, and each block is sorted for itself by user and by item.
    Scratch files lie in the hidden folder beside `url` in which a local target is written; for
    other targets see docs/reliability.md.

    A conversion that was broken off, by Ctrl-C, a kill, a full disk or a lost store, is gone on
    with by the same call, on the same machine: it repeats the batch of ratings, or the blocks, that
    it had in hand. Of sources that cannot be told again (a pyarrow Dataset) each call begins anew.

    Parameters
    ----------
    source : str, path, list of them, DataFrame, Table, scipy sparse matrix or tuple of arrays
        CSV (also compressed, by its suffix), Parquet or Arrow files, with globs; pandas and Dask
        DataFrames; pyarrow Tables; or (users, items, ratings[, timestamps]).
    url : str or path
        Where to write: any fsspec URL or a local path. It appears there whole or not at all.
    user, item : str
        Columns of ids: integers of any size or strings.
    rating : str or None
        Column of the ratings; None makes every row a rating of 1.
    timestamp : str or None
        Column of times (integers or datetimes), by which `Ratings.split` can split.
    grid : tuple of int or None
        Blocks of users and of items, (p, q). None chooses by the number of ratings and the memory
        promise.
    storage_options, source_options : mapping or None
        Options of the file systems of `url` and of `source`.
    duplicates : {"last", "mean", "error"} or None
        What to do with several ratings of one user for one item: keep the last (by timestamp, or
        in the source's order), their mean, or refuse them. None means "last" where there are
        timestamps, else "error".
    dtype : dtype
        Of the stored ratings, float32 or float64.
    random_state : int
        Seed by which users and items of equal activity are dealt to blocks.
    memory_limit : int, str or None
        Promise about this process's memory beside what it holds already ("500MB"). None means half
        of the available memory.
    overwrite : bool
        Replace ratings or another data set at `url`.

    Returns
    -------
    Ratings

    Raises
    ------
    ValueError
        Where ids or ratings are missing (the row is named), a pair repeats, or the grid is finer
        than users or items.
    MemoryError
        Where the ids alone, or one block, do not fit the promise; names the smallest that would.
    FileExistsError
        Where something is at `url` already.
    RuntimeError
        Where another process is writing to `url`.

    Examples
    --------
    >>> data = ([70, 70, 81], ["Alien", "Brazil", "Alien"], [5.0, 3.0, 4.0])
    >>> convert_ratings(data, "memory://three.zarr", overwrite=True).items.ids.tolist()
    ['Alien', 'Brazil']
    """
    target = resolve_url(url)
    how = Choices(grid, duplicates, np.dtype(dtype), random_state, _promise(memory_limit))
    how.check()
    columns = Columns(user, item, rating, timestamp)
    known = source_identity(source, columns, source_options)
    choices = [list(grid or ()), duplicates or "", how.dtype.str, random_state]
    choices += [column or "" for column in (user, item, rating, timestamp)]
    run = run_of("convert_ratings", source=known, choices=choices)
    staging = stage(target, storage_options, overwrite=overwrite, run=run)
    try:
        with Scratch(staging.scratch, staging.token) as scratch:
            read = partial(rating_batches, source, columns, source_options)
            facts = _convert(read, columns, partial(staged_array, staging), how, scratch)
        staging.commit({"daskdml": {**facts, "prefix": staging.prefix}})
    except BaseException as error:
        staging.leave(error)
        raise
    return open_ratings(target, storage_options)


def ratings_in_memory(source: Any, random_state: int = 0) -> Ratings:
    """Ratings of a sparse matrix or of (users, items, ratings), in this process's memory.

    Their dtype is kept: float64 stays float64, all else becomes float32.

    Examples
    --------
    >>> ratings_in_memory(([1, 1], [2, 3], [4.0, 5.0])).shape
    (1, 2)
    """
    data = source.data if hasattr(source, "tocoo") else np.asarray(source[-1])
    dtype = np.dtype(np.float64 if data.dtype == np.float64 else np.float32)
    columns = Columns("users", "items", "ratings", None)
    store = MemoryStore()
    how = Choices(None, None, dtype, random_state, _promise(None))
    with (
        TemporaryDirectory(prefix="daskdml-ratings-") as folder,
        Scratch(Path(folder) / "scratch", None) as scratch,
    ):
        read, create = partial(rating_batches, source, columns), partial(create_array, store)
        facts = _convert(read, columns, create, how, scratch)
    group = zarr.open_group(store, mode="r+", zarr_format=3)
    group.attrs["daskdml"] = facts
    return Ratings("", None, facts["id"], (), from_node("the ratings", group))


def _promise(memory_limit: int | str | None) -> int:
    if memory_limit is None:
        return int(_SHARE_OF_MACHINE * psutil.virtual_memory().available)
    return int(parse_bytes(memory_limit))


def _convert(
    read: Read, columns: Columns, create: Create, how: Choices, scratch: Scratch
) -> dict[str, Any]:
    """Write all arrays; gives what the group's attributes say."""
    scan = Scan(scratch, (columns.user, columns.item), how.dtype)
    done = _Done.of(scratch, scan)
    if not done.scanned:
        _scan(read, scan, how, scratch)
    _release()
    p, q = done.grid or _grid(scan, how)
    if not done.grid:
        scratch.note(grid=[p, q])
    if done.shuffled:
        starts = scan.restore(done.shuffled)
    sides = scan.users.deal(p, how.seed), scan.items.deal(q, how.seed + 1)
    if not done.shuffled:
        starts, filled = _count(scan, sides, done.dealt)
    files = [scratch.open(f"column-{k}") for k in range(len(scan.spill.dtypes))]
    shuffled = Shuffled(sides, scan.spill.dtypes, files, starts)
    if not done.shuffled:
        shuffled.begin(filled)
        for number, batch in enumerate(scan.spill.batches()):
            if number >= done.dealt:
                shuffled.add(batch)
                scratch.note(dealt=number + 1)
        scan.give_up_spill(starts)
    _release()
    return BlockWriter(create, shuffled, scan, how, columns, scratch, done.blocks).write()


@dataclass
class _Done:
    """What an earlier attempt did, as its journal has it."""

    scanned: bool = False
    grid: tuple[int, int] | None = None
    dealt: int = 0
    shuffled: dict[str, Any] | None = None
    blocks: dict[int, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, scratch: Scratch, scan: Scan) -> _Done:
        """Read the journal; the scan takes in its batches."""
        done = cls()
        for line in scratch.lines():
            if "scanned" in line:
                done.scanned = True
            elif "grid" in line:
                done.grid = (line["grid"][0], line["grid"][1])
            elif "dealt" in line:
                done.dealt = line["dealt"]
            elif "shuffled" in line:
                done.shuffled = line
            elif "block" in line:
                done.blocks[line["block"]] = line["n"], line["sum"]
        for line in scratch.lines():
            if "batch" in line or "new" in line:
                scan.replay(line, with_ratings=not done.shuffled)
        return done


def _count(scan: Scan, sides: tuple[Deal, Deal], dealt: int) -> tuple[np.ndarray, np.ndarray]:
    """Where blocks begin, and how many ratings each has of the first batches."""
    p, q = grid_of(sides)
    counts, filled = np.zeros(p * q, np.int64), np.zeros(p * q, np.int64)
    for number, (u, i, *_) in enumerate(scan.spill.batches()):
        here = np.bincount(block_of(sides, u, i), minlength=p * q)
        counts += here
        filled += here if number < dealt else 0
    return np.concatenate([[0], np.cumsum(counts)]), filled


def _release() -> None:
    """Give back what allocators keep of the batches that were read."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    buffers.give_back()


def _scan(read: Read, scan: Scan, how: Choices, scratch: Scratch) -> None:
    """Take in the source, from where an earlier attempt stopped."""
    for batch, after in read(after=scan.after):
        scan.add(batch, after)
        n_users, n_items = len(scan.users.counts), len(scan.items.counts)
        tables = PER_ID * (n_users + n_items)
        if tables + BATCH_BYTES > how.limit:
            raise MemoryError(
                f"memory_limit={bytes_text(how.limit)} is too small: the ids of {n_users} users "
                f"and {n_items} items so far, and one batch of rows, take "
                f"{bytes_text(tables + BATCH_BYTES)}; raise memory_limit"
            )
    if not scan.n:
        raise ValueError("there are no ratings to write: the source has no rows")
    scratch.note(scanned=True)


def _grid(scan: Scan, how: Choices) -> tuple[int, int]:
    """Numbers of blocks: as asked for, or so that blocks fit the promise."""
    n_users, n_items = len(scan.users.counts), len(scan.items.counts)
    tables = PER_ID * (n_users + n_items)
    room = (how.limit - tables) // (2 * SORT_BYTES)
    if how.grid is not None:
        p, q = how.grid
        if p > n_users or q > n_items:
            raise ValueError(
                f"grid=({p}, {q}) is finer than {n_users} users and {n_items} items; give at most "
                "one block for each, or grid=None"
            )
        return p, q
    if room < 1:
        raise MemoryError(
            f"memory_limit={bytes_text(how.limit)} is too small: the ids of {n_users} users and "
            f"{n_items} items take {bytes_text(tables)}; raise memory_limit"
        )
    g = 2
    while scan.n > min(BLOCK_RATINGS, room) * g * g or scan.n > STRIPE_RATINGS * g:
        g *= 2
    return min(g, n_users), min(g, n_items)
