"""The SGD estimators are scikit-learn estimators."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from daskdml import SGDClassifier, SGDRegressor


@parametrize_with_checks([SGDClassifier(), SGDRegressor()])
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of an estimator passes."""
    check(estimator)
