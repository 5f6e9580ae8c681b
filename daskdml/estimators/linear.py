"""LogisticRegression, Ridge and LinearRegression on data larger than memory."""

from __future__ import annotations

import time
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.base import LinearEstimator, ScoreMixin, class_factors
from daskdml.kernels.losses import Logistic, Multinomial, Squared
from daskdml.kernels.predict import decide_labels, one_or_many, probabilities
from daskdml.kernels.targets import LabelSummary, Targets

if TYPE_CHECKING:
    from daskdml.solvers.base import Problem
    from daskdml.solvers.local_sgd import Replicas


class LogisticRegression(ScoreMixin, ClassifierMixin, LinearEstimator):
    """Logistic regression, binary and multinomial, with a certified distance to the optimum.

    Minimises ``(1/S) sum_i s_i log-loss_i + |w|^2 / (2 C S)`` with ``S = sum_i s_i``: the
    objective of scikit-learn's estimator of this name divided by ``C S``.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the l2 penalty; ``np.inf`` for none.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is not penalised.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes.
    solver : {"auto", "newton", "lbfgs", "sgd"}, default="auto"
        "newton" sums block Hessians; "auto" is Newton while they are small enough to pay. "sgd" is
        averaged local SGD in standard coordinates, for as long as an epoch lowers the objective by
        `tol` of itself; then what "auto" would take certifies, and makes up what is missing.
    tol : float, default=1e-4
        Certified relative suboptimality ``(f - lower bound) / |f|`` at which the fit stops.
    max_iter : int, default=100
        Passes of the solver at most.
    warm_start : bool, default=False
        Start from the last fit's coefficients.
    random_state : int or None, default=None
        Seed of "sgd".
    n_replicas : int or None, default=None
        Replicas of "sgd"; None takes a number that depends on the data alone.
    staleness : int, default=0
        Rounds by which "sgd" may lag [1]_.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
    intercept_ : ndarray of shape (1,) or (n_classes,)
    classes_ : ndarray of shape (n_classes,)
    certificate_ : Certificate
        ``gap``, ``objective``, ``relative``, ``method``, ``rigorous``.
    history_ : History
        One record per pass; ``to_frame()``, ``plot()``.
    n_iter_ : int
        Steps of the solver.
    n_replicas_ : int
        Of "sgd".
    n_passes_ : float
        Data sets' worth of rows that were visited.
    bytes_read_ : int
        Encoded bytes read from the store.
    plan_ : MemoryPlan
        What was promised per worker.
    peak_memory_ : dict of str to int
        Largest resident bytes so far of each worker process, by its address.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Where the data names its columns.

    References
    ----------
    .. [1] Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
       Server", NIPS 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import LogisticRegression
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["a", "a", "b", "b"])
    >>> clf = LogisticRegression(tol=1e-8).fit(X, y)
    >>> clf.predict(X).tolist()
    ['a', 'a', 'b', 'b']
    >>> clf.certificate_.rigorous
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "C": [Interval(Real, 0, None, closed="right")],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "solver": [StrOptions({"auto", "newton", "lbfgs", "sgd"})],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "n_replicas": [Interval(Integral, 1, None, closed="left"), None],
        "staleness": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self, *, C: float = 1.0, fit_intercept: bool = True, class_weight: Any = None,
        solver: str = "auto", tol: float = 1e-4, max_iter: int = 100, warm_start: bool = False,
        random_state: Any = None, n_replicas: int | None = None, staleness: int = 0,
    ) -> None:  # fmt: skip
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_replicas = n_replicas
        self.staleness = staleness

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> LogisticRegression:
        """Fit to a Dataset, a URL, Zarr arrays, Dask arrays, DataFrames or arrays.

        Parameters
        ----------
        X : Dataset, str, zarr.Array, Dask array or array-like of shape (n, d)
        y : array-like of shape (n,) or None
            Labels of any kind; None takes the data set's own.
        sample_weight : array-like of shape (n,) or None
        storage_options : dict or None
            For a URL.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For rows that cannot be used (the first row and its column are named) or one class only.
        MemoryError
            If the memory promise is too small; states the smallest that would do.
        """
        began = time.perf_counter()
        source = self._source(X, y, sample_weight, storage_options)
        from daskdml.estimators.fitting import Task, fit_linear, remember_start, warm_from

        def describe(found: LabelSummary) -> Any:
            classes, factors = class_factors(self, found, by_weight=True)
            S = float(np.sum(found.weights if factors is None else found.weights * factors))
            loss = Logistic() if len(classes) == 2 else Multinomial()
            self._found_classes = classes
            return loss, Targets(classes, factors), 0.0 if np.isinf(self.C) else 1.0 / (self.C * S)

        known = (self.coef_, self.intercept_) if hasattr(self, "coef_") else None
        known = warm_from(self, known) if self.warm_start else None
        warm = None if known is None else partial(self._start, known)
        task = Task(
            "logistic", True, describe, self.solver, self.tol, self.max_iter,
            self.fit_intercept, began, self.get_params() | {"warm start": known}, warm,
            self._replicas() if self.solver == "sgd" else None,
        )  # fmt: skip
        fitted = fit_linear(source, task)
        self.__dict__.pop("n_replicas_", None)
        self.classes_ = self.__dict__.pop("_found_classes")
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        self._keep(fitted.attributes)
        remember_start(self, known, fitted.solution.interrupted)
        return self

    def _replicas(self) -> Replicas:
        from daskdml.estimators.fitting import fit_seed
        from daskdml.solvers.local_sgd import Replicas

        return Replicas(self.n_replicas, self.staleness, fit_seed(self.random_state))

    @staticmethod
    def _start(known: tuple[Any, Any], problem: Problem) -> np.ndarray:
        coef = np.atleast_2d(known[0])
        intercept = np.broadcast_to(np.asarray(known[1], dtype=float), len(coef))
        if coef.shape != (problem.n_outputs, problem.n_features):
            raise ValueError(
                f"warm_start has coefficients of shape {coef.shape}, but this data needs "
                f"{(problem.n_outputs, problem.n_features)}; set warm_start=False"
            )
        w, b = problem.coordinates.from_original(coef, intercept)
        return np.column_stack([w, b])

    def decision_function(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Scores: (n,) for two classes, (n, n_classes) for more; see `predict`."""
        return self._apply(X, one_or_many, storage_options, out)

    def predict_proba(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Probabilities of the classes, (n, n_classes); see `predict`."""
        return self._apply(X, probabilities, storage_options, out)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, (n, n_classes)."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Predicted labels.

        Parameters
        ----------
        X : as for `fit`
        storage_options : dict or None
            For a URL (and for `out`).
        out : str or None
            URL of a Zarr array to stream the predictions to, block by block; a rerun completes it.

        Returns
        -------
        ndarray of shape (n,) for data in memory; else a lazy Dask array; with `out`, the Zarr array
        """
        check_is_fitted(self)
        return self._apply(X, partial(decide_labels, classes=self.classes_), storage_options, out)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these coefficients."""
        from sklearn.linear_model import LogisticRegression as Plain

        plain = Plain(C=self.C, fit_intercept=self.fit_intercept, class_weight=self.class_weight)
        return self._copy_fitted(plain, "classes_")


class _LeastSquares(ScoreMixin, RegressorMixin, LinearEstimator):
    """What Ridge and LinearRegression share."""

    fit_intercept: bool
    tol: float

    def _fit(self, X: Any, y: Any, sample_weight: Any, storage_options: Any, alpha: float) -> Any:
        began = time.perf_counter()
        source = self._source(X, y, sample_weight, storage_options)
        from daskdml.estimators.fitting import Task, fit_linear

        def describe(found: LabelSummary) -> Any:
            return Squared(), Targets(), alpha / float(found.weights.sum())

        task = Task(
            type(self).__name__.lower(), False, describe, "auto",
            self.tol, 20, self.fit_intercept, began, self.get_params(),
        )  # fmt: skip
        fitted = fit_linear(source, task)
        self.coef_ = fitted.coef[0]
        self.intercept_ = float(fitted.intercept[0])
        self._keep(fitted.attributes)
        return self

    def predict(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Predicted values; see `LogisticRegression.predict`."""
        return self._apply(X, one_or_many, storage_options, out)


class Ridge(_LeastSquares):
    """Least squares with an l2 penalty: ``|y - X w - b|^2 + alpha |w|^2``.

    Parameters
    ----------
    alpha : float, default=1.0
        Strength of the penalty.
    fit_intercept : bool, default=True
    tol : float, default=1e-4
        Certified relative suboptimality at which the fit stops.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,)
    intercept_ : float
    certificate_, history_, n_iter_, n_passes_, bytes_read_, plan_
        As for `LogisticRegression`; the objective is ``(1/S) sum_i s_i (y_i - z_i)^2 / 2 +
        alpha |w|^2 / (2 S)``.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import Ridge
    >>> Ridge(alpha=2.0).fit(np.array([[0.0], [2.0]]), np.array([0.0, 2.0])).coef_
    array([0.5])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "alpha": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self, alpha: float = 1.0, *, fit_intercept: bool = True, tol: float = 1e-4
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> Ridge:
        """Fit; see `LogisticRegression.fit`."""
        return self._fit(X, y, sample_weight, storage_options, self.alpha)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these coefficients."""
        from sklearn.linear_model import Ridge as Plain

        return self._copy_fitted(Plain(alpha=self.alpha, fit_intercept=self.fit_intercept))


class LinearRegression(_LeastSquares):
    """Ordinary least squares.

    Parameters
    ----------
    fit_intercept : bool, default=True
    tol : float, default=1e-4
        Certified relative suboptimality at which the fit stops.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,)
    intercept_ : float
    certificate_, history_, n_iter_, n_passes_, bytes_read_, plan_
        As for `Ridge`.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import LinearRegression
    >>> LinearRegression().fit(np.array([[0.0], [2.0]]), np.array([1.0, 5.0])).coef_.round(12)
    array([2.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "fit_intercept": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, fit_intercept: bool = True, tol: float = 1e-4) -> None:
        self.fit_intercept = fit_intercept
        self.tol = tol

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> LinearRegression:
        """Fit; see `LogisticRegression.fit`."""
        return self._fit(X, y, sample_weight, storage_options, 0.0)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these coefficients."""
        from sklearn.linear_model import LinearRegression as Plain

        return self._copy_fitted(Plain(fit_intercept=self.fit_intercept))
