"""SGDClassifier and SGDRegressor on data larger than memory."""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.base import ScoreMixin, class_factors
from daskdml.estimators.sgd_base import SGDEstimator
from daskdml.kernels.losses import (
    LOSSES,
    EpsilonInsensitive,
    Huber,
    Loss,
    SquaredEpsilonInsensitive,
)
from daskdml.kernels.predict import (
    clipped_shares,
    decide_labels,
    logistic_shares,
    one_or_many,
)
from daskdml.kernels.sgd import SGDConfig
from daskdml.kernels.targets import LabelSummary, Targets

if TYPE_CHECKING:
    from daskdml.estimators.sgd_fitting import SGDFitted
    from daskdml.io.sources import AnySource


class SGDClassifier(ScoreMixin, ClassifierMixin, SGDEstimator):
    """Linear classifier fitted by data-parallel stochastic gradient descent.

    Minimises ``(1/n) sum_i s_i loss_i + alpha * penalty(w)``, one class versus the rest where there
    are more than two. Parameters, defaults and semantics are scikit-learn's; with
    ``n_replicas=1, shuffle=False`` so are the coefficients. Replicas of the model walk their own
    blocks of rows and meet in a mean after each round of blocks [1]_.

    Parameters
    ----------
    loss : {"hinge", "log_loss", "modified_huber", "squared_hinge", "perceptron"}, default="hinge"
    penalty : {"l2", "l1", "elasticnet"} or None, default="l2"
    alpha : float, default=0.0001
        Strength of the penalty; "optimal" computes its steps from it.
    l1_ratio : float or None, default=0.15
        Share of L1 in "elasticnet".
    fit_intercept : bool, default=True
    max_iter : int, default=1000
        Epochs at most.
    tol : float or None, default=1e-3
        A fit ends when the objective (or the score on held-out rows) has not improved by it for
        `n_iter_no_change` epochs in a row.
    shuffle : bool, default=True
        Whether to visit blocks, and rows within a block, in random order.
    random_state : int, RandomState or None, default=None
        Seed of the order and of the held-out rows.
    learning_rate : {"optimal", "constant", "invscaling", "adaptive", "pa1", "pa2"}, \
default="optimal"
    eta0 : float, default=0.01
        First step size; the aggressiveness of "pa1" and "pa2".
    power_t : float, default=0.5
        Exponent of "invscaling".
    early_stopping : bool, default=False
        Whether to hold rows out and to stop by the score on them.
    validation_fraction : float, default=0.1
        Share held out: whole blocks where that makes two of them, else rows of every block.
    n_iter_no_change : int, default=5
    class_weight : dict, "balanced" or None, default=None
    warm_start : bool, default=False
        Whether `fit` starts from the last coefficients.
    average : bool or int, default=False
        Whether (or from which row on) to predict with the mean of the iterates.
    n_replicas : int or None, default=None
        Replicas of the model: part of the algorithm, so set it where bits must agree across
        clusters. None takes as many as there are compute slots, and blocks.
    staleness : int, default=0
        Rounds by which a replica's starting point may lag, which hides communication [2]_.
    certify : bool, default=False
        Whether to bound the distance to the optimum, by one pass after the fit.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
    intercept_ : ndarray of shape (1,) or (n_classes,)
    classes_ : ndarray of shape (n_classes,)
    t_ : float
        The clock that the step size falls with: 1 + the rows that a replica visited.
    n_iter_ : int
        Epochs.
    n_replicas_ : int
    certificate_ : Certificate
        With `certify`; summed over the one-versus-rest problems.
    history_ : History
        A record per epoch, whose objective is the mean over its rows of the loss before the row's
        update plus the penalty, and per pass.
    n_passes_, bytes_read_, plan_, peak_memory_, n_features_in_, feature_names_in_
        As for `LogisticRegression`.

    References
    ----------
    .. [1] S. U. Stich, "Local SGD converges fast and communicates little", ICLR 2019.
    .. [2] Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
       Server", NIPS 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import SGDClassifier
    >>> X, y = np.array([[-1.0], [1.0], [-2.0], [2.0]]), np.array(["a", "b", "a", "b"])
    >>> clf = SGDClassifier(random_state=0, certify=True).fit(X, y)
    >>> clf.predict(X).tolist()
    ['a', 'b', 'a', 'b']
    >>> clf.certificate_.rigorous
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SGDEstimator._parameter_constraints,
        "loss": [
            StrOptions({"hinge", "log_loss", "modified_huber", "squared_hinge", "perceptron"})
        ],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self, loss: str = "hinge", *, penalty: str | None = "l2", alpha: float = 1e-4,
        l1_ratio: float | None = 0.15, fit_intercept: bool = True, max_iter: int = 1000,
        tol: float | None = 1e-3, shuffle: bool = True, random_state: Any = None,
        learning_rate: str = "optimal", eta0: float = 0.01, power_t: float = 0.5,
        early_stopping: bool = False, validation_fraction: float = 0.1, n_iter_no_change: int = 5,
        class_weight: Any = None, warm_start: bool = False, average: bool | int = False,
        n_replicas: int | None = None, staleness: int = 0, certify: bool = False,
    ) -> None:  # fmt: skip
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.random_state = random_state
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.average = average
        self.n_replicas = n_replicas
        self.staleness = staleness
        self.certify = certify

    def _describe(self, found: LabelSummary | None) -> tuple[SGDConfig, Targets]:
        if found is None:  # partial_fit: the classes were given
            ones = np.ones(len(self.classes_))
            found = LabelSummary(self.classes_, ones, ones)
        self.classes_, factors = class_factors(self, found)
        n_models = len(self.classes_) if len(self.classes_) > 2 else 1
        return self._config(n_models, factors), Targets(self.classes_)

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, coef_init: Any = None, intercept_init: Any = None,
        sample_weight: Any = None, *, storage_options: Any = None,
    ) -> SGDClassifier:  # fmt: skip
        """Fit to a Dataset, a URL, Zarr arrays, Dask arrays, DataFrames or arrays.

        Parameters
        ----------
        X : Dataset, str, zarr.Array, Dask array or array-like of shape (n, d)
        y : array-like of shape (n,) or None
            Labels of any kind; None takes the data set's own.
        coef_init, intercept_init : array-like or None
            Where to start, in the shapes of `coef_` and `intercept_`.
        sample_weight : array-like of shape (n,) or None
        storage_options : dict or None
            For a URL.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For rows that cannot be used (the first row and its column are named), one class only,
            or coefficients that overflow.
        MemoryError
            If the memory promise is too small; states the smallest that would do.
        """
        return self._fit(X, y, coef_init, intercept_init, sample_weight, storage_options)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None, *,
        storage_options: Any = None,
    ) -> SGDClassifier:  # fmt: skip
        """Go on with one epoch over some rows.

        Without shuffling, calls with consecutive blocks have the bits of one call with all rows.

        Parameters
        ----------
        X, y, sample_weight, storage_options
            As for `fit`.
        classes : array-like of shape (n_classes,) or None
            All labels that will ever come; needed in the first call.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a label that is not among the classes (its row is named).
        """
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, which does not know "
                "how often each class will come; pass a dict of weights"
            )
        _check_partial_fit_first_call(self, classes)
        return self._partial_fit(X, y, sample_weight, storage_options)

    def decision_function(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Scores: (n,) for two classes, (n, n_classes) for more; see `predict`."""
        return self._apply(X, one_or_many, storage_options, out)

    def predict(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Predicted labels; see `LogisticRegression.predict`."""
        check_is_fitted(self)
        return self._apply(X, partial(decide_labels, classes=self.classes_), storage_options, out)

    def _has_probabilities(self) -> bool:
        if self.loss not in _PROBABILITIES:
            raise AttributeError(
                f"probability estimates are not available for loss={self.loss!r}; use one of "
                f"{sorted(_PROBABILITIES)}"
            )
        return True

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Probabilities of the classes (n, n_classes), for "log_loss" and "modified_huber" [1]_.

        References
        ----------
        .. [1] B. Zadrozny, C. Elkan, "Transforming classifier scores into accurate multiclass
           probability estimates", KDD 2002.
        """
        return self._apply(X, _PROBABILITIES[self.loss], storage_options, out)

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, (n, n_classes)."""
        return np.log(self.predict_proba(X))

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these coefficients."""
        from sklearn.linear_model import SGDClassifier as Plain

        return self._plain(Plain, "classes_")


_PROBABILITIES = {"log_loss": logistic_shares, "modified_huber": clipped_shares}


class SGDRegressor(ScoreMixin, RegressorMixin, SGDEstimator):
    """Linear regression fitted by data-parallel stochastic gradient descent.

    Minimises ``(1/n) sum_i s_i loss_i + alpha * penalty(w)``. Parameters, defaults and semantics
    are scikit-learn's; with ``n_replicas=1, shuffle=False`` so are the coefficients.

    Parameters
    ----------
    loss : {"squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"}, \
default="squared_error"
    penalty : {"l2", "l1", "elasticnet"} or None, default="l2"
    alpha : float, default=0.0001
        Strength of the penalty.
    l1_ratio : float or None, default=0.15
        Share of L1 in "elasticnet".
    fit_intercept : bool, default=True
    max_iter, tol, shuffle, random_state
        As for `SGDClassifier`.
    epsilon : float, default=0.1
        The error from which on "huber" is linear, and up to which the insensitive losses are 0.
    learning_rate : {"invscaling", "optimal", "constant", "adaptive", "pa1", "pa2"}, \
default="invscaling"
    eta0 : float, default=0.01
        First step size; the aggressiveness of "pa1" and "pa2".
    power_t : float, default=0.25
        Exponent of "invscaling".
    early_stopping, validation_fraction, n_iter_no_change, warm_start, average
        As for `SGDClassifier`; the score is R^2.
    n_replicas, staleness, certify
        As for `SGDClassifier`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,)
    intercept_ : ndarray of shape (1,)
    t_, n_iter_, n_replicas_, certificate_, history_, n_passes_, bytes_read_, plan_, \
peak_memory_, n_features_in_, feature_names_in_
        As for `SGDClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import SGDRegressor
    >>> X = np.linspace(-1.0, 1.0, 101)[:, None]
    >>> model = SGDRegressor(random_state=0, eta0=0.1).fit(X, 3.0 * X[:, 0])
    >>> bool(abs(model.coef_[0] - 3.0) < 0.05)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **SGDEstimator._parameter_constraints,
        "loss": [
            StrOptions(
                {"squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"}
            )
        ],
        "epsilon": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self, loss: str = "squared_error", *, penalty: str | None = "l2", alpha: float = 1e-4,
        l1_ratio: float | None = 0.15, fit_intercept: bool = True, max_iter: int = 1000,
        tol: float | None = 1e-3, shuffle: bool = True, epsilon: float = 0.1,
        random_state: Any = None, learning_rate: str = "invscaling", eta0: float = 0.01,
        power_t: float = 0.25, early_stopping: bool = False, validation_fraction: float = 0.1,
        n_iter_no_change: int = 5, warm_start: bool = False, average: bool | int = False,
        n_replicas: int | None = None, staleness: int = 0, certify: bool = False,
    ) -> None:  # fmt: skip
        self.loss = loss
        self.penalty = penalty
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.epsilon = epsilon
        self.random_state = random_state
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.power_t = power_t
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.average = average
        self.n_replicas = n_replicas
        self.staleness = staleness
        self.certify = certify

    def _loss(self) -> Loss:
        shaped = {
            "huber": Huber,
            "epsilon_insensitive": EpsilonInsensitive,
            "squared_epsilon_insensitive": SquaredEpsilonInsensitive,
        }
        kind = shaped.get(self.loss)
        return LOSSES[self.loss] if kind is None else kind(float(self.epsilon))

    def _run(
        self, source: AnySource, start: Any, began: float, parameters: dict[str, Any] | None,
        **options: Any,
    ) -> SGDFitted:  # fmt: skip
        fitted = super()._run(source, start, began, parameters, **options)
        self.coef_ = fitted.coef[0]
        return fitted

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, coef_init: Any = None, intercept_init: Any = None,
        sample_weight: Any = None, *, storage_options: Any = None,
    ) -> SGDRegressor:  # fmt: skip
        """Fit; see `SGDClassifier.fit`."""
        return self._fit(X, y, coef_init, intercept_init, sample_weight, storage_options)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> SGDRegressor:
        """Go on with one epoch over some rows; see `SGDClassifier.partial_fit`."""
        return self._partial_fit(X, y, sample_weight, storage_options)

    def predict(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Predicted values; see `LogisticRegression.predict`."""
        return self._apply(X, one_or_many, storage_options, out)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these coefficients."""
        from sklearn.linear_model import SGDRegressor as Plain

        return self._plain(Plain)
