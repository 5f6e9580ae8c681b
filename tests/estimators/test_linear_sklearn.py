"""The linear estimators are scikit-learn estimators."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from daskdml import LinearRegression, LogisticRegression, Ridge


@parametrize_with_checks([LogisticRegression(), Ridge(), LinearRegression()])
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of an estimator passes."""
    check(estimator)
