"""Who visits which rows when: replicas, epochs and orders, from a seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from daskdml.engine.graphs import Group

_BLOCKS, _ROWS, _HELD = 1, 2, 3  # streams of random numbers; none overlaps another


def generator(*key: int) -> np.random.Generator:
    """Random numbers that are a function of the key's non-negative integers.

    Examples
    --------
    >>> generator(1, 2).integers(1000) == generator(1, 2).integers(1000)
    np.True_
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def schedule(
    groups: Sequence[Group], n_replicas: int, seed: int, epoch: int, shuffle: bool
) -> list[list[Group | None]]:
    """What each replica visits in each round of an epoch.

    Replica k owns the groups k, k + n_replicas, ... in every epoch, so that a worker finds the
    blocks it pinned; their order is drawn anew for each epoch. A replica that has nothing left
    for the last round gets None.

    Parameters
    ----------
    groups : sequence of Group
        Ordered by index.
    n_replicas : int
    seed, epoch : int
        The order depends on them alone.
    shuffle : bool
        Whether to visit the groups in random order, rather than in their own.

    Returns
    -------
    list of lists of n_replicas Group or None

    Examples
    --------
    >>> from daskdml.engine.graphs import Group
    >>> groups = [Group(i, i, i + 1) for i in range(3)]
    >>> [[g and g.index for g in row] for row in schedule(groups, 2, 0, 0, shuffle=False)]
    [[0, 1], [2, None]]
    """
    owned = [list(groups[k::n_replicas]) for k in range(n_replicas)]
    if shuffle and groups:
        place = generator(_BLOCKS, seed, epoch).random(1 + max(g.index for g in groups))
        owned = [sorted(own, key=lambda g: (place[g.index], g.index)) for own in owned]
    return [list(row) for row in zip_longest(*owned)]


def row_order(n_rows: int, group: Group, seed: int, epoch: int) -> np.ndarray:
    """Random order of a group's rows, int64 (n_rows,): a function of seed, epoch and group."""
    return generator(_ROWS, seed, epoch, group.index).permutation(n_rows)


def hold_out_groups(groups: Sequence[Group], share: float, seed: int) -> tuple[Group, ...]:
    """A random share of the groups; none where that is fewer than two of them."""
    n = round(share * len(groups))
    if n < 2:
        return ()
    chosen = generator(_HELD, seed, 0).permutation(len(groups))[:n]
    return tuple(groups[i] for i in sorted(chosen))


def hold_out_rows(n_rows: int, share: float, seed: int) -> np.ndarray:
    """Which of a block's rows are held out, bool (n_rows,): a random share of them, at least one.

    A function of the number of rows and the seed, so that any pass over the blocks can tell.
    """
    held = np.zeros(n_rows, dtype=bool)
    n = math.ceil(share * n_rows)
    held[generator(_HELD, seed, n_rows).permutation(n_rows)[:n]] = True
    return held
