"""Recommender models by block-parallel matrix factorization."""

from __future__ import annotations

import os
import time
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from daskdml.estimators.recommending import Recommender, merged
from daskdml.io.convert import ratings_in_memory
from daskdml.io.factors import FactorTable
from daskdml.io.ratings import Ratings, open_ratings
from daskdml.io.split import draw_seed

REG = {"count": 0.1, "sqrt": 1.3, "none": 14.0}  # docs/benchmarks.md: what suits MovieLens
IMPLICIT_REG = {"count": 0.2, "sqrt": 3.0, "none": 30.0}
# docs/benchmarks.md: at high ranks steps go nearly as far down as solutions, in half the time
CG_STEPS, CG_RANK = 3, 49
POWER = {"count": 1.0, "sqrt": 0.5, "none": 0.0}
MAX_ITER = {"als": 15, "sgd": 20}


class MatrixFactorization(Recommender, BaseEstimator):
    """Factors of users and items whose products predict ratings, block-parallel.

    The model is cut, not only the data: users and items lie in blocks of a grid, a task holds the
    factors of a tile of each, and no process needs them all when they are kept in a store
    (``fit(..., factors_url=)``).

    Explicit feedback: the prediction for user u and item i is ``mean + b_u + b_i + w_u . w_i``, and
    ``sum (r - prediction)^2 + reg * sum s (|w|^2 + b^2)`` over ratings and rows is minimised, where
    s is a power of the row's number of ratings (`reg_scaling`). Implicit feedback [2]_:
    the score is ``w_u . w_i``, and ``sum c (p - score)^2 + reg * sum ...`` over all pairs, with p =
    1 and c = 1 + alpha r for the rated ones, else 0 and 1.

    The problem is not convex, and nothing is claimed about its global optimum: `history_` has the
    objective after each sweep and, for "als", the norm of its gradient, which is 0 at a stationary
    point.

    Parameters
    ----------
    n_components : int, default=32
        Factors of a user or an item.
    solver : {"als", "sgd"}, default="als"
        Alternating least squares, whose half-steps are exact, or, for implicit feedback and more
        than 48 components, three conjugate gradient steps [4]_; or stochastic gradient descent
        over the strata of the grid [3]_, explicit feedback only.
    feedback : {"explicit", "implicit"}, default="explicit"
    biases : bool, default=True
        Whether users and items have biases, for explicit feedback.
    reg : float or None, default=None
        Penalty; None takes one that suits MovieLens: 1.3 for ``reg_scaling="sqrt"``, 0.1 for
        "count", 14 for "none"; for implicit feedback 3, 0.2 and 30.
    reg_scaling : {"sqrt", "count", "none"}, default="sqrt"
        How often the penalty of a row with c ratings counts: sqrt(c), c [1]_ or 1 times. On
        MovieLens the root predicts best (docs/benchmarks.md).
    nonnegative : bool, default=False
        Whether factors may not be negative (biases may).
    alpha : float, default=1.0
        Confidence that a unit of implicit feedback adds.
    max_iter : int or None, default=None
        Sweeps at most; None means 15 for "als" and 20 for "sgd".
    tol : float, default=1e-4
        "als" ends when the gradient's norm is below this share of the largest in this fit; "sgd"
        when the objective falls by less than this share of itself.
    random_state : int, RandomState instance or None, default=None
        Seed of the first factors, of the order of SGD's steps, and of the ratings held out.
    early_stopping : bool, default=False
        Hold out a part of the ratings and stop when their RMSE no longer falls; the factors of the
        best sweep are kept.
    validation_fraction : float, default=0.1
        That part.
    n_iter_no_change : int, default=2
        Sweeps without a better RMSE, after which to stop.
    learning_rate : float, default=0.1
        Step size of "sgd" at a row's first rating; it falls with the row's sum of squared
        gradients.
    n_replicas : int or None, default=None
        Tiles of a stratum, which "sgd" works on at once; part of the algorithm, so it is chosen by
        the number of ratings, not by the cluster.
    staleness : int, default=0
        Strata by which the items' factors that "sgd" starts from may be behind.
    warm_start : bool, default=False
        Whether `fit` starts from the factors of the last fit, for ids that it knew.

    Attributes
    ----------
    user_factors_, item_factors_ : ndarray or Dask array of shape (n, n_components)
        Rows in the order of `user_ids_`, `item_ids_`; Dask arrays where they lie in a store.
    user_biases_, item_biases_ : ndarray or Dask array of shape (n,)
    user_ids_, item_ids_ : ndarray of shape (n,)
    mean_ : float
        Of the ratings; 0 for implicit feedback.
    history_ : History
        A record per sweep.
    n_iter_, stop_reason_ : int, str
    objective_, gradient_norm_ : float, float or None
        After the last sweep; the gradient at the point before its last half-step.
    n_replicas_ : int or None
    n_passes_, bytes_read_, plan_, peak_memory_
        Passes over the ratings, encoded bytes read, the memory plan, peak resident bytes by worker.

    References
    ----------
    .. [1] Zhou, Wilkinson, Schreiber, Pan, "Large-scale Parallel Collaborative Filtering for the
       Netflix Prize", AAIM 2008.
    .. [2] Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.
    .. [3] Gemulla, Nijkamp, Haas, Sismanis, "Large-Scale Matrix Factorization with Distributed
       Stochastic Gradient Descent", KDD 2011.
    .. [4] Takacs, Pilaszy, Tikk, "Applications of the Conjugate Gradient Method for Implicit
       Feedback Collaborative Filtering", RecSys 2011.

    Examples
    --------
    >>> from daskdml import MatrixFactorization
    >>> users, items = ["ann", "ann", "bob", "bob"], ["Alien", "Brazil", "Alien", "Casablanca"]
    >>> model = MatrixFactorization(n_components=2, random_state=0)
    >>> model = model.fit((users, items, [5.0, 3.0, 4.0, 2.0]))
    >>> model.recommend(["ann"], k=1)[0].tolist()
    [['Casablanca']]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "solver": [StrOptions({"als", "sgd"})],
        "feedback": [StrOptions({"explicit", "implicit"})],
        "biases": ["boolean"],
        "reg": [Interval(Real, 0, None, closed="left"), None],
        "reg_scaling": [StrOptions({"count", "sqrt", "none"})],
        "nonnegative": ["boolean"],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "n_replicas": [Interval(Integral, 1, None, closed="left"), None],
        "staleness": [Interval(Integral, 0, None, closed="left")],
        "warm_start": ["boolean"],
    }

    def __init__(
        self,
        n_components: int = 32,
        *,
        solver: str = "als",
        feedback: str = "explicit",
        biases: bool = True,
        reg: float | None = None,
        reg_scaling: str = "sqrt",
        nonnegative: bool = False,
        alpha: float = 1.0,
        max_iter: int | None = None,
        tol: float = 1e-4,
        random_state: Any = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 2,
        learning_rate: float = 0.1,
        n_replicas: int | None = None,
        staleness: int = 0,
        warm_start: bool = False,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.feedback = feedback
        self.biases = biases
        self.reg = reg
        self.reg_scaling = reg_scaling
        self.nonnegative = nonnegative
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.learning_rate = learning_rate
        self.n_replicas = n_replicas
        self.staleness = staleness
        self.warm_start = warm_start

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, *, factors_url: Any = None, storage_options: Any = None
    ) -> MatrixFactorization:
        """Fit to ratings.

        Parameters
        ----------
        X : Ratings, str, scipy sparse matrix or tuple of (users, items, ratings)
            `Ratings`, or their URL, as `daskdml.io.convert_ratings` wrote them; or what is in
            memory: a matrix of users by items, or three arrays of equal length.
        y : None
            Ignored.
        factors_url : str or None
            Where to keep the factors, for models larger than memory; nothing may be there yet.
        storage_options : dict or None
            For URLs.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For ratings that cannot be used, or parameters that do not go together.
        MemoryError
            If the memory promise is too small; states the smallest that would do.
        FileExistsError
            If something is at `factors_url`.
        """
        from daskdml.estimators.fitting import fit_seed, warm_from

        known = warm_from(self, getattr(self, "_tables", None)) if self.warm_start else None
        seed = fit_seed(self.random_state)
        ratings = self._ratings(X, storage_options, seed)
        limit = self.max_iter or MAX_ITER[self.solver]
        start = None if known is None else tuple(table.identity for table in known)
        parameters = self.get_params() | {"start": start, "factors": factors_url is not None}
        self._run(ratings, seed, limit, known, factors_url, storage_options, parameters)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, *, storage_options: Any = None) -> Any:
        """One sweep over some ratings, from the factors there are.

        Users and items that are new are added; those without ratings in X stay as they are. "als"
        solves for the rows in X from the ratings in X alone; "sgd" makes steps for them.

        Parameters
        ----------
        X : as for `fit`
        y : None
            Ignored.
        storage_options : dict or None
            For a URL.

        Returns
        -------
        self
        """
        known = self._tables if hasattr(self, "_tables") else None
        if known is not None and not all(table.in_memory for table in known):
            raise ValueError(
                "partial_fit keeps all factors in memory, and these lie in a store; use "
                "warm_start=True and fit with a new factors_url"
            )
        seed = draw_seed(self.random_state)
        ratings = self._ratings(X, storage_options, seed)
        mean, seen = getattr(self, "mean_", None), getattr(self, "_seen", ())
        self._run(ratings, seed, 1, known, None, None, None, mean)
        if known is not None:
            users, items = self._tables
            self._tables = merged(known[0], users), merged(known[1], items)
            self._seen = (*seen, *self._seen)
        return self

    def _ratings(self, X: Any, options: Any, seed: int) -> Ratings:
        """The ratings to fit, checked."""
        if self.feedback == "implicit" and self.solver == "sgd":
            raise ValueError(
                "feedback='implicit' counts all pairs, which solver='sgd' cannot visit; use 'als'"
            )
        if self.staleness and self.solver == "als":
            raise ValueError("staleness is for solver='sgd': 'als' has no stale factors; set it 0")
        ratings = as_ratings(X, options, seed)
        least = ratings.facts["least"]
        if least < 0 and (self.nonnegative or self.feedback == "implicit"):
            what = "nonnegative=True" if self.nonnegative else "feedback='implicit'"
            raise ValueError(
                f"{ratings.name} has negative ratings (the least is {least:g}), which {what} does "
                "not allow; shift or leave them out"
            )
        return ratings

    def _run(
        self, ratings: Ratings, seed: int, max_iter: int,
        known: tuple[FactorTable, FactorTable] | None, url: Any, options: Any,
        parameters: dict[str, Any] | None, mean: float | None = None,
    ) -> None:  # fmt: skip
        from daskdml.estimators.factor_fitting import FactorTask, fit_factors
        from daskdml.estimators.fitting import remember_start
        from daskdml.solvers.factorization import Model, Stopping

        began = time.perf_counter()
        train, validation = ratings, None
        if self.early_stopping:
            train, validation = ratings.split(self.validation_fraction, random_state=seed)
        implicit = self.feedback == "implicit"
        if mean is None:
            mean = 0.0 if implicit else train.mean()
        model = Model(
            self.n_components, mean, self._reg(), POWER[self.reg_scaling],
            self.biases and not implicit, self.nonnegative, implicit, self.alpha, seed,
            ratings.dtype,
            CG_STEPS if implicit and not self.nonnegative and self.n_components >= CG_RANK else 0,
        )  # fmt: skip
        task = FactorTask(
            model, self.solver, Stopping(max_iter, self.tol, None, self.n_iter_no_change), began,
            validation, self.learning_rate, self.staleness, self.n_replicas, url, options, known,
            parameters,
        )  # fmt: skip
        self._tables, attributes, interrupted = fit_factors(train, task)
        for name, value in attributes.items():
            setattr(self, name, value)
        self._model, self.mean_, self._seen = model, mean, (ratings,)
        remember_start(self, known, interrupted)

    def _reg(self) -> float:
        if self.reg is not None:
            return float(self.reg)
        return (IMPLICIT_REG if self.feedback == "implicit" else REG)[self.reg_scaling]


def as_ratings(X: Any, options: Any, seed: int) -> Ratings:
    """Ratings from any input of `fit`."""
    if isinstance(X, Ratings):
        return X
    if isinstance(X, (str, os.PathLike)):
        return open_ratings(X, options)
    if hasattr(X, "columns"):
        raise TypeError(
            "a DataFrame's columns have no fixed meaning; write it with daskdml.io.convert_ratings("
            "frame, url, user=, item=, rating=), or pass (users, items, ratings)"
        )
    return ratings_in_memory(X, seed)
