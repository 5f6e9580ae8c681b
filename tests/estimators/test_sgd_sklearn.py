"""The SGD estimators are scikit-learn estimators."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from daskdml import SGDClassifier, SGDRegressor

# As scikit-learn expects of its own estimators of these names.
NOT_EQUIVALENT = {
    "check_sample_weight_equivalence_on_dense_data": (
        "one long step on a row of weight 2 is not two steps on two rows"
    )
}


@parametrize_with_checks(
    [SGDClassifier(), SGDRegressor()], expected_failed_checks=lambda estimator: NOT_EQUIVALENT
)
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of its own SGD estimators passes."""
    check(estimator)
