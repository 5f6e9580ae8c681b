"""What a fitted factorization can be asked: predictions, recommendations, similar items."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from daskdml.io.factors import FactorTable
from daskdml.io.rating_store import Side, as_ids
from daskdml.io.ratings import Ratings
from daskdml.kernels.ranking import nearest

RANKING = ("precision", "recall", "ndcg", "map", "coverage")
METRICS = ("rmse", "mae", *RANKING)
PAIRS = 1 << 18  # predicted at a time
BLOCK = 8192  # rows of factors in memory that are scored together


class Recommender:
    """Methods of a model with tables of users' and of items' factors."""

    _tables: tuple[FactorTable, FactorTable]
    _seen: tuple[Ratings, ...]
    _model: Any
    feedback: str
    n_components: int
    mean_: float

    @property
    def user_ids_(self) -> np.ndarray:
        """Ids of the users, as the rows of `user_factors_` stand."""
        return self._table(0).side.ids

    @property
    def item_ids_(self) -> np.ndarray:
        """Ids of the items, as the rows of `item_factors_` stand."""
        return self._table(1).side.ids

    @property
    def user_factors_(self) -> Any:
        """Factors of the users, (n_users, n_components)."""
        return self._rows(0)[:, : self._model.k]

    @property
    def item_factors_(self) -> Any:
        """Factors of the items, (n_items, n_components)."""
        return self._rows(1)[:, : self._model.k]

    @property
    def user_biases_(self) -> Any:
        """Biases of the users, (n_users,)."""
        return self._rows(0)[:, self._model.k]

    @property
    def item_biases_(self) -> Any:
        """Biases of the items, (n_items,)."""
        return self._rows(1)[:, self._model.k]

    def _table(self, side: int) -> FactorTable:
        if not hasattr(self, "_tables"):
            raise AttributeError("this model is not fitted yet; call fit")
        return self._tables[side]

    def _rows(self, side: int) -> Any:
        table = self._table(side)
        return table.rows if table.in_memory else table.to_dask()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_tables")

    def predict(self, X: Any, *, unknown: str = "bias") -> np.ndarray:
        """Predicted ratings (explicit feedback) or scores (implicit) of pairs.

        Parameters
        ----------
        X : tuple of (users, items), or array of shape (n, 2)
            Ids as they were in the ratings.
        unknown : {"bias", "error"}
            For users or items without ratings: predict from what is known (the mean and the other's
            bias), or raise.

        Returns
        -------
        ndarray of shape (n,)

        Raises
        ------
        KeyError
            With ``unknown="error"``, naming the first unknown id.
        """
        check_is_fitted(self)
        if unknown not in ("bias", "error"):
            raise ValueError(f"unknown={unknown!r}: give 'bias' or 'error'")
        users, items = _pairs(X)
        places = [
            table.side.find(ids) for table, ids in zip(self._tables, (users, items), strict=True)
        ]
        if unknown == "error":
            for what, ids, at in (("user", users, places[0]), ("item", items, places[1])):
                _refuse_unknown(what, ids, at)
        out = np.empty(len(users), self._model.dtype)
        k = self._model.k
        for start in range(0, len(users), PAIRS):
            rows = slice(start, start + PAIRS)
            W, V = (t.take(at[rows]) for t, at in zip(self._tables, places, strict=True))
            out[rows] = np.einsum("nk,nk->n", W[:, :k], V[:, :k]) + W[:, k] + V[:, k]
        return out + out.dtype.type(self.mean_)

    def score(
        self, X: Any, y: Any = None, *, metric: str | None = None, k: int = 10,
        storage_options: Any = None,
    ) -> float:  # fmt: skip
        """One metric of test ratings, as `evaluate` has it.

        Parameters
        ----------
        X : as for `fit`
            Test ratings.
        y : None
            Ignored.
        metric : {"rmse", "mae", "precision", "recall", "ndcg", "map", "coverage"} or None
            None means "rmse" for explicit feedback (smaller is better), else "ndcg".
        k : int
            Length of the lists of ranking metrics.
        storage_options : dict or None
            For a URL.
        """
        metric = metric or ("ndcg" if self.feedback == "implicit" else "rmse")
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r}: there are {', '.join(METRICS)}")
        kinds = "ranking" if metric in RANKING else "errors"
        found = self.evaluate(X, k=k, kinds=(kinds,), storage_options=storage_options)
        return found[metric]

    def evaluate(
        self, X: Any, *, k: int = 10, exclude_seen: bool = True, threshold: float | None = None,
        kinds: tuple[str, ...] = ("errors", "ranking"), storage_options: Any = None,
    ) -> dict[str, float]:  # fmt: skip
        """Metrics of test ratings, block by block.

        "errors" are RMSE and MAE of predictions; "ranking" are precision, recall, NDCG and mean
        average precision of the k items recommended to each user of X, against the user's items in
        X, and the share of all items that somebody was recommended. A user's unknown items count as
        missed; a user without known factors gets the items of the largest biases.

        Parameters
        ----------
        X : as for `fit`
            Test ratings.
        k : int
        exclude_seen : bool
            Leave training items out of the lists.
        threshold : float or None
            Ratings from here up make an item one that the user chose; None counts all.
        kinds : tuple of {"errors", "ranking"}
        storage_options : dict or None
            For a URL.

        Returns
        -------
        dict of str to float
        """
        check_is_fitted(self)
        from daskdml.estimators.factorization import as_ratings
        from daskdml.estimators.recommend_tasks import error_metrics, ranking_metrics

        self._check_k(k)
        test = as_ratings(X, storage_options, 0)
        found: dict[str, float] = {}
        if "errors" in kinds:
            found |= error_metrics(test, self._model, self._tables)
        if "ranking" in kinds:
            seen = self._seen if exclude_seen else ()
            found |= ranking_metrics(test, self._model, self._tables, seen, k, threshold)
        return found

    def recommend(
        self, users: Any = None, k: int = 10, *, exclude_seen: bool = True, out: Any = None,
        storage_options: Any = None,
    ) -> Any:  # fmt: skip
        """The k items of the highest predictions for each user: exact, block by block.

        Parameters
        ----------
        users : array-like of ids, or None
            None means all.
        k : int
        exclude_seen : bool
            Leave out the items that a user has rated.
        out : str or None
            URL of a new Zarr group to stream the lists to, with arrays "users", "items" and
            "scores"; ids that are strings as codes into its attributes "user_names" and
            "item_names". It appears there whole; a call that was broken off is gone on with by the
            same call.
        storage_options : dict or None
            For `out`.

        Returns
        -------
        items : ndarray of shape (n, k)
            Ids, best first; where a user has fewer items left, -1 or "".
        scores : ndarray of shape (n, k)
            Predictions; -inf there. With `out`, the Zarr group instead of both.

        Raises
        ------
        KeyError
            For an unknown user, named.
        ValueError
            If there are fewer than k items.
        FileExistsError
            If something is at `out`.
        """
        check_is_fitted(self)
        from daskdml.estimators.recommend_tasks import recommend, stream_recommendations

        self._check_k(k)
        wanted = self.user_ids_ if users is None else as_ids(users)
        _refuse_unknown("user", wanted, self._tables[0].side.find(wanted))
        seen = self._seen if exclude_seen else ()
        if out is not None:
            return stream_recommendations(
                wanted, self._model, self._tables, seen, k, out, storage_options
            )
        return recommend(wanted, self._model, self._tables, seen, k)

    def similar_items(self, items: Any, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k items whose factors have the smallest angle to each item's.

        Parameters
        ----------
        items : array-like of ids
        k : int

        Returns
        -------
        items : ndarray of shape (n, k)
            Ids, most similar first, without the item itself.
        similarities : ndarray of shape (n, k)
            Cosines.
        """
        check_is_fitted(self)
        table, wanted = self._tables[1], as_ids(items)
        places = table.side.find(wanted)
        _refuse_unknown("item", wanted, places)
        if k > len(table) - 1:
            raise ValueError(f"k={k} is more than the {len(table) - 1} other items; ask for fewer")
        found, cosines = nearest(table.take(places), table.blocks(), places, k)
        return table.side.ids[found], cosines

    def fold_in(self, X: Any) -> Any:
        """Give users factors from new ratings, with all items as they are.

        Users that are known already get new factors from X alone; their old ratings stay excluded
        from recommendations. Ratings of unknown items are left out.

        Parameters
        ----------
        X : scipy sparse matrix or tuple of (users, items, ratings)

        Returns
        -------
        self
        """
        check_is_fitted(self)
        from daskdml.estimators.factorization import as_ratings
        from daskdml.estimators.recommend_tasks import fold_in

        if not self._tables[0].in_memory:
            raise ValueError(
                "fold_in adds users to factors in memory, and these lie in a store; use "
                "warm_start=True and fit with a new factors_url"
            )
        ratings = as_ratings(X, None, 0)
        new = fold_in(ratings, self._model, self._tables[1])
        self._tables = merged(self._tables[0], new), self._tables[1]
        self._seen = (*self._seen, ratings)
        return self

    def _check_k(self, k: int) -> None:
        n = len(self._tables[1])
        if not 1 <= k <= n:
            raise ValueError(f"k={k}: there are {n} items to recommend; ask for 1 to {n}")


def _pairs(X: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(X, tuple) and len(X) in (2, 3):
        users, items = as_ids(X[0]), as_ids(X[1])
    else:
        both = np.asarray(X)
        if both.ndim != 2 or both.shape[1] != 2:
            raise ValueError(
                f"pairs have the shape {both.shape}; give (users, items), or an array of shape "
                "(n, 2)"
            )
        users, items = as_ids(both[:, 0]), as_ids(both[:, 1])
    if len(users) != len(items):
        raise ValueError(f"there are {len(users)} users and {len(items)} items; give pairs")
    return users, items


def _refuse_unknown(what: str, ids: np.ndarray, places: np.ndarray) -> None:
    if (places < 0).any():
        first = ids[np.flatnonzero(places < 0)[0]].item()
        raise KeyError(f"the {what} {first!r} has no ratings that this model was fitted to")


def sorted_table(table: FactorTable) -> FactorTable:
    """A table in memory in the order of its ids, cut into blocks that are scored together."""
    if not isinstance(table.rows, np.ndarray):
        return table
    order = table.side.order
    bounds = np.append(np.arange(0, len(order), BLOCK), len(order))
    return FactorTable(Side(table.side.ids[order], bounds), table.rows[order], table.columns)


def merged(old: FactorTable, new: FactorTable) -> FactorTable:
    """Rows of both tables, in memory; the new ones where both have an id."""
    kept = new.side.find(old.side.ids) < 0
    ids = np.concatenate([old.side.ids[kept], new.side.ids])
    assert isinstance(old.rows, np.ndarray) and isinstance(new.rows, np.ndarray)
    rows = np.concatenate([old.rows[kept], new.rows])
    return sorted_table(FactorTable(Side(ids, np.array([0, len(ids)])), rows, old.columns))
