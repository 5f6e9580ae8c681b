"""Best items of users, and how well such lists agree with what the users chose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.kernels.compiled import inlined

USERS = 512  # scored together: their scores of a block of items stay in the caches


@inlined()
def best(scores: np.ndarray, first: int, items: np.ndarray, values: np.ndarray) -> None:
    """Merge the scores of a block of items into lists of the best so far.

    Parameters
    ----------
    scores : ndarray of shape (n, m)
        Of the items first, first + 1, ...; -inf for those that do not count.
    first : int
    items, values : ndarray of shape (n, k)
        The lists, best first, which are changed; they begin with -1 and -inf. Of equal scores the
        item that comes first stands first.

    Examples
    --------
    >>> items, values = np.full((1, 2), -1), np.full((1, 2), -np.inf)
    >>> best(np.array([[1.0, 3.0, 2.0, 3.0]]), 10, items, values)
    >>> items
    array([[11, 13]])
    """
    k = items.shape[1]
    for n in range(len(scores)):
        row, mine, own = scores[n], values[n], items[n]
        least = mine[k - 1]
        for m in range(len(row)):
            s = row[m]
            if s > least:
                at = k - 1
                while at > 0 and mine[at - 1] < s:
                    mine[at], own[at] = mine[at - 1], own[at - 1]
                    at -= 1
                mine[at], own[at] = s, first + m
                least = mine[k - 1]


def _empty(n: int, k: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, dtype)


def top_items(
    W: np.ndarray,
    blocks: Iterable[tuple[int, np.ndarray]],
    k: int,
    seen: tuple[np.ndarray, np.ndarray] | None,
    mean: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of the highest predictions for each user, exactly, over blocks of items.

    Parameters
    ----------
    W : ndarray of shape (n, d + 1)
        Factors of the users, and their biases.
    blocks : iterable of (int, ndarray of shape (m, d + 1))
        Number of the first item of each block, and the block's factors.
    k : int
    seen : tuple of ndarray or None
        Items to leave out: indptr (n + 1,) and items, rising within a user.
    mean : float

    Returns
    -------
    items, scores : ndarray of shape (n, k)
        -1 and -inf where fewer than k items are left.
    """
    found = _empty(len(W), k, W.dtype)
    d = W.shape[1] - 1
    offset = (W[:, d] + W.dtype.type(mean))[:, None]
    for first, factors in blocks:
        scores = W[:, :d] @ factors[:, :d].T
        scores += factors[:, d]
        scores += offset
        if seen is not None:
            indptr, items = seen
            rows = np.repeat(np.arange(len(W)), np.diff(indptr))
            inside = (items >= first) & (items < first + len(factors))
            scores[rows[inside], items[inside] - first] = -np.inf
        best(scores, first, *found)
    return found


@dataclass(frozen=True)
class RankingSums:
    """Sums over users of how their lists agree with the items they chose; they add.

    Parameters
    ----------
    precision, recall, ndcg, average_precision : float
        Sums over users who chose at least one item.
    users : int
        Their number.
    hit : frozenset of int
        Items that were in somebody's list.
    """

    precision: float
    recall: float
    ndcg: float
    average_precision: float
    users: int
    hit: frozenset[int]

    def __add__(self, other: RankingSums) -> RankingSums:
        return RankingSums(
            self.precision + other.precision, self.recall + other.recall, self.ndcg + other.ndcg,
            self.average_precision + other.average_precision, self.users + other.users,
            self.hit | other.hit,
        )  # fmt: skip

    def means(self, n_items: int) -> dict[str, float]:
        """The metrics: means over users, and the share of all items that are in a list."""
        n = max(self.users, 1)
        return {
            "precision": self.precision / n, "recall": self.recall / n, "ndcg": self.ndcg / n,
            "map": self.average_precision / n, "coverage": len(self.hit) / n_items,
        }  # fmt: skip


def rank_lists(lists: np.ndarray, indptr: np.ndarray, chosen: np.ndarray) -> RankingSums:
    """Compare lists with the items chosen, for each user with at least one.

    Precision is hits / k; recall hits / min(k, chosen); NDCG has gains of 1 and the discount
    1 / log2(rank + 1) [1]_; average precision is divided by min(k, chosen).

    Parameters
    ----------
    lists : ndarray of shape (n, k), int64
        Items, best first; -1 for none.
    indptr : ndarray of shape (n + 1,)
    chosen : ndarray
        Items that user u chose: ``chosen[indptr[u]:indptr[u + 1]]``.

    References
    ----------
    .. [1] Jarvelin, Kekalainen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20,
       2002.

    Examples
    --------
    >>> rank_lists(np.array([[4, 7]]), np.array([0, 2]), np.array([7, 9])).means(10)["precision"]
    0.5
    """
    n, k = lists.shape
    counts = np.diff(indptr)
    width = int(max(lists.max(initial=0), chosen.max(initial=0))) + 1
    wanted = np.repeat(np.arange(n), counts) * np.int64(width) + chosen
    asked = np.arange(n)[:, None] * np.int64(width) + lists
    hits = np.isin(asked, wanted) & (lists >= 0)
    some = counts > 0
    hits, counts, shown = hits[some], counts[some], lists[some]
    possible = np.minimum(counts, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[possible - 1]
    at = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    return RankingSums(
        float((hits.sum(axis=1) / k).sum()),
        float((hits.sum(axis=1) / possible).sum()),
        float(((hits * discount).sum(axis=1) / ideal).sum()),
        float(((hits * at).sum(axis=1) / possible).sum()),
        len(counts),
        frozenset(np.unique(shown[shown >= 0]).tolist()),
    )


def nearest(
    W: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the smallest angle to each of W, but for its own.

    Parameters
    ----------
    W : ndarray of shape (n, d + 1)
        Rows with a bias, which does not count.
    blocks : iterable of (int, ndarray of shape (m, d + 1))
    own : ndarray of shape (n,)
        Number of each row of W among those of the blocks.
    k : int

    Returns
    -------
    rows, cosines : ndarray of shape (n, k)
    """
    found = _empty(len(W), k, W.dtype)
    unit = _unit(W[:, :-1])
    for first, factors in blocks:
        cosines = unit @ _unit(factors[:, :-1]).T
        here = np.flatnonzero((own >= first) & (own < first + len(factors)))
        cosines[here, own[here] - first] = -np.inf
        best(cosines, first, *found)
    return found


def _unit(W: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.einsum("nk,nk->n", W, W))[:, None]
    return W / np.maximum(length, np.finfo(W.dtype).tiny)
