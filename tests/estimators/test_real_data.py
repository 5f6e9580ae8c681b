"""On real data, out of core, test scores are scikit-learn's and objectives no larger than its.

The folder of the data sets is DASKDML_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn import linear_model
from sklearn.cluster import KMeans as PlainKMeans
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import daskdml.engine.run
from daskdml import (
    Engine,
    KMeans,
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from daskdml.io import write_dataset
from tests.conftest import workers

pytestmark = [pytest.mark.data, pytest.mark.cluster]

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DASKDML_DATA", ROOT.parent / "shared" / "data"))
POINT = 0.01
SEEDS = range(3)


class Rows(NamedTuple):
    """Rows to fit and rows to score."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    def head(self, n):
        """The first n rows to fit, and all to score."""
        return self._replace(X=self.X[:n], y=self.y[:n])

    def scaled(self):
        """Features of mean 0 and variance 1 in the rows to fit."""
        scaler = StandardScaler().fit(self.X)
        return self._replace(X=scaler.transform(self.X), X_test=scaler.transform(self.X_test))


def file(name):
    """The path of a file of the data, or a skip."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is absent; DASKDML_DATA names the folder of the data sets")
    return path


def frame(name, **kwargs):
    """A table of the data."""
    pd = pytest.importorskip("pandas")
    return pd.read_csv(file(name), **kwargs)


def images(name, offset, *shape):
    """The bytes of an IDX file behind its header."""
    content = gzip.decompress(file(f"fashion-mnist/{name}-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=offset).reshape(-1, *shape)


def split(X, y):
    """A fifth of the rows to score, drawn with seed 0; features scaled."""
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
    return Rows(X, y, X_test, y_test).scaled()


@pytest.fixture(scope="module")
def covtype():
    """Forest cover types 1..7 of a 16 % sample: 10 measures, 44 columns of zeros and ones."""
    table = frame("covtype-16pct/covtype-16pct.csv.gz")
    return split(table.iloc[:, :54].to_numpy("f4"), table["Cover_Type"].to_numpy())


@pytest.fixture(scope="module")
def kddcup99():
    """Distinct network connections, one-hot: 118 columns; attacks against normal ones."""
    pd = pytest.importorskip("pandas")
    table = frame("kddcup99-10pct/kddcup.data_10_percent.gz", header=None).drop_duplicates()
    X = pd.get_dummies(table.iloc[:, :41], columns=[1, 2, 3]).to_numpy("f4")
    X, X_test, y, y_test = train_test_split(
        X, (table[41] != "normal.").to_numpy(), test_size=0.2, random_state=0
    )
    return Rows(X, y, X_test, y_test)


@pytest.fixture(scope="module")
def fashion():
    """Grey pixels from 0 to 1 of ten kinds of clothes, split as published."""
    X, y = images("train-images-idx3", 16, 784), images("train-labels-idx1", 8)
    X_test, y_test = images("t10k-images-idx3", 16, 784), images("t10k-labels-idx1", 8)
    return Rows(X / np.float32(255), y, X_test / np.float32(255), y_test)


@pytest.fixture(scope="module")
def kegg():
    """Measures of metabolic networks; the rows to score are the first published tenth."""
    table = frame("uci-keggdirected/data.csv.gz", header=None).to_numpy()
    masks = frame("uci-keggdirected/test_mask.csv.gz", header=None).to_numpy(bool)
    X, y, test = table[:, :-1], table[:, -1], masks[:, 0]
    return Rows(X[~test], y[~test], X[test], y[test])


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes that nothing else has used, so that their peaks are of these fits."""
    with workers(2) as client:
        yield client


@pytest.fixture
def fit(cluster, tmp_path, monkeypatch):
    """Fit models out of core: rows in a store, chunk by chunk, within a promise that is kept."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)  # each chunk is a task

    def fitted(rows, *models):
        chunk = -(-len(rows.X) // 6)
        ds = write_dataset(tmp_path / "rows.zarr", rows.X, rows.y, chunks=chunk, overwrite=True)
        with Engine(cluster, memory_limit="600MB"):
            for model in models:
                model.fit(ds)
                assert max(model.peak_memory_.values()) <= model.plan_.limit
        return models[0] if len(models) == 1 else models

    return fitted


def plain(model, rows):
    """scikit-learn's model, fitted in memory."""
    with threadpool_limits(1):
        return model.fit(rows.X, rows.y)


def score(model, rows):
    """Accuracy, or R^2, of the rows to score."""
    return model.score(rows.X_test, rows.y_test)


def objective(model, rows):
    """Mean logistic or multinomial loss plus penalty, in float64."""
    z = rows.X.astype(np.float64) @ model.coef_.T + model.intercept_
    if z.shape[1] == 1:
        z = np.column_stack([np.zeros(len(z)), z])
    own = z[np.arange(len(z)), np.searchsorted(model.classes_, rows.y)]
    penalty = np.sum(np.square(model.coef_, dtype=np.float64)) / (2 * model.C * len(z))
    return np.mean(logsumexp(z, axis=1) - own) + penalty


def squares(model, rows):
    """Half of the mean squared error over the rows to fit."""
    return np.mean((rows.y - model.predict(rows.X)) ** 2) / 2


def assert_as_good(ours, theirs, rows):
    """The certificate reached `tol` and speaks of f; f and the score are as good as theirs."""
    certificate, f = ours.certificate_, objective(ours, rows)
    assert certificate.relative <= ours.tol
    assert certificate.objective == pytest.approx(f, rel=1e-6)
    assert f <= objective(theirs, rows) + certificate.gap
    assert abs(score(ours, rows) - score(theirs, rows)) <= 0.1 * POINT


def assert_equal_means(ours, theirs, rows):
    """Scores differ by 0.1 point at most, in the mean over the seeds."""
    difference = np.mean([score(m, rows) for m in ours]) - np.mean([score(m, rows) for m in theirs])
    assert abs(difference) <= 0.1 * POINT


def test_covtype_of_two_classes(covtype, fit):
    """Logistic regression, class 2 against the rest: f and accuracy of Newton's method."""
    rows = covtype._replace(y=covtype.y == 2, y_test=covtype.y_test == 2)
    ours = fit(rows, LogisticRegression())
    theirs = plain(linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-8), rows)
    assert ours.certificate_.rigorous
    assert_as_good(ours, theirs, rows)


def test_covtype_of_seven_classes(covtype, fit):
    """Multinomial regression; of the columns, scaled to variance 1, some are set in few rows.

    10,000 of the 74,369 rows, for time, and all to score.
    """
    rows = covtype.head(10_000)
    ours = fit(rows, LogisticRegression())
    theirs = plain(linear_model.LogisticRegression(max_iter=1000), rows)
    assert_as_good(ours, theirs, rows)


def test_covtype_by_sgd(covtype, fit):
    """Ten epochs of averaged SGD on two replicas score as scikit-learn's, over three seeds."""
    rows = covtype._replace(y=covtype.y == 2, y_test=covtype.y_test == 2)
    same = {"loss": "log_loss", "average": True, "max_iter": 10, "tol": None}
    ours = fit(rows, *(SGDClassifier(**same, n_replicas=2, random_state=k) for k in SEEDS))
    theirs = [plain(linear_model.SGDClassifier(**same, random_state=k), rows) for k in SEEDS]
    assert_equal_means(ours, theirs, rows)


def test_kddcup99(kddcup99, fit):
    """Logistic regression on nearly separable rows, scaled: f and accuracy of Newton's method.

    To a proven relative gap of 1e-3; that of the default, 1e-4, is not reached on all rows.
    30,000 of the 116,468 rows, for time, and all to score.
    """
    rows = kddcup99.head(30_000).scaled()
    ours = fit(rows, LogisticRegression(tol=1e-3))
    theirs = plain(linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-8), rows)
    assert ours.certificate_.rigorous
    assert_as_good(ours, theirs, rows)


def test_kddcup99_by_sgd_in_a_pipeline(kddcup99):
    """A pipeline that scales, then ten epochs of averaged hinge loss, over three seeds."""
    same = {"average": True, "max_iter": 10, "tol": None}
    ours = [
        make_pipeline(StandardScaler(), SGDClassifier(**same, n_replicas=2, random_state=k))
        for k in SEEDS
    ]
    theirs = [
        make_pipeline(StandardScaler(), linear_model.SGDClassifier(**same, random_state=k))
        for k in SEEDS
    ]
    for model in (*ours, *theirs):
        plain(model, kddcup99)
    assert_equal_means(ours, theirs, kddcup99)


def test_fashion_mnist(fashion, fit):
    """Multinomial regression, 784 pixels; 10,000 of the 60,000 rows, for time, and all to score."""
    rows = fashion.head(10_000)
    ours = fit(rows, LogisticRegression(C=0.01))
    theirs = plain(linear_model.LogisticRegression(C=0.01, max_iter=1000), rows)
    assert_as_good(ours, theirs, rows)


def test_fashion_mnist_in_clusters(fashion, fit):
    """Ten clusters: inertia within 0.5 % of scikit-learn's best of three draws.

    Of 6,000 of the 60,000 images, for time.
    """
    rows = fashion.head(6_000)
    ours, theirs = fit(rows, KMeans(10, random_state=0)), PlainKMeans(10, n_init=3, random_state=0)
    assert ours.inertia_ <= 1.005 * plain(theirs, rows).inertia_
    assert ours.inertia_ == pytest.approx(-ours.score(rows.X), rel=1e-12)


def test_kegg_by_ridge(kegg, fit):
    """Ridge has scikit-learn's coefficients and R^2 on features of unlike scales."""
    ours, theirs = fit(kegg, Ridge()), plain(linear_model.Ridge(), kegg)
    assert ours.certificate_.rigorous and ours.certificate_.relative <= ours.tol
    assert np.allclose(ours.coef_, theirs.coef_, rtol=1e-7, atol=1e-9)
    assert score(ours, kegg) == pytest.approx(score(theirs, kegg), abs=1e-9)


def test_kegg_by_least_squares(kegg, fit):
    """LinearRegression has the R^2 that scikit-learn has on scaled features.

    Of the 20 features 19 are independent, one of them by 5e-6 of its variance alone. Scaled,
    scikit-learn resolves that; as they are it does not, and its error is larger than ours.
    """
    ours = fit(kegg, LinearRegression())
    scaled = plain(make_pipeline(StandardScaler(), linear_model.LinearRegression()), kegg)
    unscaled = plain(linear_model.LinearRegression(), kegg)
    assert score(ours, kegg) == pytest.approx(score(scaled, kegg), abs=1e-6)
    assert score(ours, kegg) == pytest.approx(score(unscaled, kegg), abs=0.1 * POINT)
    assert squares(ours, kegg) == pytest.approx(ours.certificate_.objective, rel=1e-9)
    for theirs in (scaled, unscaled):
        assert squares(ours, kegg) <= squares(theirs, kegg) + ours.certificate_.gap + 1e-12


@pytest.mark.parametrize("n_replicas", [1, 2])
def test_kegg_by_sgd(n_replicas, kegg, fit):
    """Averaged SGD, scaled: as many steps of each replica as scikit-learn's give its R^2.

    Five epochs of scikit-learn's, five for each replica of ours, which visits its share of the rows
    in an epoch; means over three seeds. Far from the optimum as this is, ten epochs of two replicas
    are five of one. With the default `eta0` of 0.01 all diverge: rows lie 200 deviations out.
    """
    rows = kegg.scaled()
    same = {"average": True, "tol": None, "eta0": 1e-3}
    mine = {"max_iter": 5 * n_replicas, "n_replicas": n_replicas}
    ours = fit(rows, *(SGDRegressor(**same, **mine, random_state=k) for k in SEEDS))
    theirs = [linear_model.SGDRegressor(**same, max_iter=5, random_state=k) for k in SEEDS]
    assert_equal_means(ours, [plain(model, rows) for model in theirs], rows)
