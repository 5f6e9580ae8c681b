"""The linear estimators are scikit-learn estimators."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from daskdml import LinearRegression, LogisticRegression, Ridge


@parametrize_with_checks([LogisticRegression(), Ridge(), LinearRegression()])
def test_sklearn_conventions(estimator, check):
    """Every check that scikit-learn makes of an estimator passes."""
    check(estimator)


X = np.random.default_rng(0).standard_normal((120, 4)) + 3
Y = np.array(["no", "yes"])[
    (X[:, 0] + np.random.default_rng(1).standard_normal(120) > 3).astype(int)
]
MODELS = [LogisticRegression(), Ridge(), LinearRegression()]


def target(model):
    """Labels for a classifier, numbers for a regressor."""
    return Y if isinstance(model, LogisticRegression) else X @ [1.0, 2, 3, 4]


@pytest.mark.parametrize("model", MODELS)
def test_pipelines_and_searches(model):
    """They work in a `Pipeline` inside a `GridSearchCV`, whose folds keep their kind."""
    name = type(model).__name__.lower()
    grid = {"linearregression": "fit_intercept", "ridge": "alpha", "logisticregression": "C"}[name]
    values = [True, False] if grid == "fit_intercept" else [0.1, 10.0]
    steps = make_pipeline(StandardScaler(), clone(model))
    search = GridSearchCV(steps, {f"{name}__{grid}": values}, cv=3).fit(X, target(model))
    assert search.best_score_ > 0.5
    assert search.predict(X).shape == (120,)


@pytest.mark.parametrize("model", MODELS)
def test_clones_forget_the_fit(model):
    """`clone` keeps parameters and forgets what was fitted; parameters come back as given."""
    fitted = clone(model).fit(X, target(model))
    copy = clone(fitted)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "coef_")
    assert copy.set_params(fit_intercept=False).get_params()["fit_intercept"] is False


def test_set_output_reaches_them_through_a_pipeline():
    """Rows that a pipeline hands on as a DataFrame name the features."""
    steps = make_pipeline(StandardScaler(), LogisticRegression()).set_output(transform="pandas")
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = steps.fit(frame, Y)[-1]
    assert list(model.feature_names_in_) == list("abcd")
    assert set(steps.predict(frame)) <= {"no", "yes"}


def test_metadata_routing():
    """`sample_weight` is routed where it is asked for."""
    with sklearn.config_context(enable_metadata_routing=True):
        model = LogisticRegression().set_fit_request(sample_weight=True)
        s = np.where(Y == "no", 0.1, 1.0)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        routed = make_pipeline(scaler, model).fit(X, Y, sample_weight=s)
        plain = LogisticRegression().fit(StandardScaler().fit_transform(X), Y, s)
    assert np.allclose(routed[-1].coef_, plain.coef_)


PREDICT = """
import pickle, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dask", "distributed"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
with open(sys.argv[1], "rb") as file:
    models, X = pickle.load(file)
with open(sys.argv[2], "wb") as file:
    pickle.dump([(m.predict(X), m.certificate_.relative, repr(m.history_)) for m in models], file)
assert "dask" not in sys.modules
"""


def test_pickles_need_no_dask(tmp_path):
    """A pickled model predicts on NumPy where neither dask nor distributed can be imported."""
    models = [clone(model).fit(X, target(model)) for model in MODELS]
    (tmp_path / "in.pickle").write_bytes(pickle.dumps((models, X)))
    (tmp_path / "predict.py").write_text(PREDICT)
    subprocess.run(
        [sys.executable, "predict.py", "in.pickle", "out.pickle"],
        check=True, cwd=tmp_path, timeout=100,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    found = pickle.loads((tmp_path / "out.pickle").read_bytes())
    for model, (predicted, relative, history) in zip(models, found, strict=True):
        assert np.array_equal(predicted, model.predict(X))
        assert relative == model.certificate_.relative and history


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_to_sklearn(model, n_classes):
    """`to_sklearn` gives an estimator of scikit-learn's own that predicts the same."""
    y = target(model)
    if n_classes == 3 and isinstance(model, LogisticRegression):
        y = np.where(X[:, 1] > 3.5, "maybe", y)
    ours = clone(model).fit(X, y)
    plain = ours.to_sklearn()
    assert type(plain).__module__.startswith("sklearn.")
    if isinstance(model, LogisticRegression):
        assert np.array_equal(plain.predict(X), ours.predict(X))
        assert np.allclose(plain.predict_proba(X), ours.predict_proba(X), rtol=1e-12)
    else:
        assert np.allclose(plain.predict(X), ours.predict(X), rtol=1e-12)
    assert plain.get_params()["fit_intercept"] == ours.fit_intercept
