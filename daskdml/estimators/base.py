"""What estimators share: input of any kind, fitted attributes, lazy prediction."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from daskdml.io.dataset import Dataset
from daskdml.io.sources import AnySource, as_source
from daskdml.kernels.predict import Predict, decide_labels, one_or_many
from daskdml.kernels.targets import DataError, LabelSummary, explain

Rows = Callable[[np.ndarray], np.ndarray]


def is_out_of_core(X: Any) -> bool:
    """Whether X is a Dataset, a URL, a Zarr array or a Dask collection, rather than in memory."""
    if isinstance(X, (Dataset, str, os.PathLike)):
        return True
    module = type(X).__module__.split(".")[0]
    return module in {"dask", "zarr", "dask_expr"}


class RowsEstimator(BaseEstimator):
    """Base of all estimators: rows of any kind go in, and what is made of them comes out."""

    def _open(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        storage_options: dict[str, Any] | None,
        reset: bool = True,
        **checks: Any,
    ) -> AnySource:
        """The checked rows of a fit; sets `n_features_in_` and `feature_names_in_`.

        Without `reset`, the rows must have the features that are already known. `checks` are those
        of scikit-learn's `validate_data`, for rows in memory.
        """
        if is_out_of_core(X):
            source = as_source(X, y, sample_weight, storage_options)
            (self._note_features if reset else self._check_features)(source)
            return source
        checks = {"dtype": [np.float64, np.float32], "order": "C", "reset": reset, **checks}
        if y is None:
            X = validate_data(self, X, **checks)
        else:
            X, y = validate_data(self, X, y, **checks)
        if sample_weight is not None:
            from sklearn.utils.validation import _check_sample_weight

            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        return as_source(X, y, sample_weight)

    def _note_features(self, source: AnySource) -> None:
        self.n_features_in_ = source.n_features
        if source.feature_names is not None:
            self.feature_names_in_ = np.asarray(source.feature_names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _keep(self, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    def _copy_fitted(self, plain: Any, *names: str) -> Any:
        """Give another estimator this one's fitted attributes: coefficients, or those named."""
        check_is_fitted(self)
        shared = ("coef_", "intercept_", "n_iter_", "n_features_in_", "feature_names_in_", *names)
        for name in shared:
            if hasattr(self, name):
                setattr(plain, name, getattr(self, name))
        return plain

    def _apply_rows(
        self,
        X: Any,
        rows: Rows,
        storage_options: dict[str, Any] | None = None,
        out: str | None = None,
    ) -> Any:
        """``rows(X)``, of X's kind; streamed to a Zarr array with `out`."""
        if not is_out_of_core(X):
            X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32], order="C")
            if out is None:
                try:
                    return rows(X)
                except DataError as error:
                    raise ValueError(explain(error, "X", None)) from None
        is_url = isinstance(X, (str, os.PathLike))
        source = as_source(X, None, None, storage_options if is_url else None)
        self._check_features(source)
        if out is None:
            from daskdml.engine.lazy import lazy_rows

            return lazy_rows(source, rows)
        from daskdml.estimators.streaming import stream

        return stream(source, rows, out, storage_options)

    def _check_features(self, source: AnySource) -> None:
        if source.n_features != self.n_features_in_:
            raise ValueError(
                f"X has {source.n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        names = getattr(self, "feature_names_in_", None)
        if names is None or source.feature_names is None:
            return
        if list(names) != list(source.feature_names):
            raise ValueError(
                "The feature names should match those that were passed during fit: expected "
                f"{list(names)[:5]}..., got {list(source.feature_names)[:5]}...; reorder or "
                "rename the columns"
            )


class LinearEstimator(RowsEstimator):
    """Base of the linear estimators: coefficients make scores, and scores predictions."""

    coef_: np.ndarray
    intercept_: Any
    classes_: np.ndarray

    def _source(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        storage_options: dict[str, Any] | None,
        reset: bool = True,
    ) -> AnySource:
        """The checked data of a fit, with targets; see `_open`."""
        if y is None and not is_out_of_core(X):
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        numeric = self.__sklearn_tags__().estimator_type == "regressor"
        source = self._open(X, y, sample_weight, storage_options, reset, y_numeric=numeric)
        if not source.has_y:
            raise ValueError(
                f"{source.name} has no targets, which fit needs; pass y, or write the data set "
                "with daskdml.io.write_dataset(url, X, y)"
            )
        return source

    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (K, d) and intercepts (K,)."""
        coef = np.atleast_2d(self.coef_)
        return coef, np.broadcast_to(np.asarray(self.intercept_, dtype=float), (len(coef),))

    def _apply(
        self,
        X: Any,
        decide: Callable[[np.ndarray], np.ndarray],
        storage_options: dict[str, Any] | None = None,
        out: str | None = None,
    ) -> Any:
        """``decide(scores)`` of the rows of X, of X's kind; streamed to a Zarr array with `out`."""
        check_is_fitted(self)
        rows = Predict(*self._matrices(), decide)
        return self._apply_rows(X, rows, storage_options, out)


class ScoreMixin:
    """`score` on data of any kind; stands before scikit-learn's mixin of that method."""

    def score(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> float:
        """Accuracy of a classifier, R^2 of a regressor; one pass over data that is not in memory.

        Parameters
        ----------
        X : as for `fit`
        y : array-like of shape (n,) or None
            None takes the data set's own.
        sample_weight : array-like of shape (n,) or None
        storage_options : dict or None
            For a URL.

        Returns
        -------
        float
        """
        if not is_out_of_core(X):
            return float(super().score(X, y, sample_weight))  # type: ignore[misc]
        assert isinstance(self, LinearEstimator)
        check_is_fitted(self)
        source = as_source(X, y, sample_weight, storage_options)
        self._check_features(source)
        from daskdml.estimators.streaming import score

        decide = (
            partial(decide_labels, classes=self.classes_) if is_classifier(self) else one_or_many
        )
        return score(source, Predict(*self._matrices(), decide), is_classifier(self))


def class_factors(
    estimator: Any, found: LabelSummary, by_weight: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes of a scan and the factors that `class_weight` gives them; at least two classes.

    As in scikit-learn, "balanced" counts rows for SGD and weights of rows (`by_weight`) for
    logistic regression.
    """
    classes = found.values
    assert classes is not None
    check_classification_targets(classes)
    if len(classes) < 2:
        raise ValueError(
            f"This solver needs samples of at least 2 classes in the data, but the data contains "
            f"only one class: {classes[0]!r}"
        )
    weight = estimator.class_weight
    if weight is None:
        return classes, None
    if isinstance(weight, str):  # "balanced"
        sizes = found.weights if by_weight else found.counts
        factors = sizes.sum() / (len(classes) * np.where(sizes > 0, sizes, np.inf))
        return classes, factors
    unknown = [c for c in weight if c not in set(classes.tolist())]
    if unknown:
        raise ValueError(
            f"class_weight names the class {unknown[0]!r}, which the data does not have; "
            f"its classes are {classes.tolist()}"
        )
    return classes, np.array([float(weight.get(c, 1.0)) for c in classes.tolist()])
