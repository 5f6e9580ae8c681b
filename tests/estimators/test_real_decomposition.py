"""On real data, out of core, decompositions are scikit-learn's.

The folder of the data sets is DASKDML_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from sklearn import decomposition
from threadpoolctl import threadpool_limits

import daskdml.engine.run
from daskdml import NMF, PCA, Engine, TruncatedSVD
from daskdml.io import write_dataset
from tests.conftest import workers
from tests.estimators.test_real_data import file, images

pytestmark = [pytest.mark.data, pytest.mark.cluster]


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes that nothing else has used, so that their peaks are of these fits."""
    with workers(2) as client:
        yield client


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """Grey pixels from 0 to 1, of half of the images, for time; a store of them in six chunks."""
    X = images("train-images-idx3", 16, 784)[:30_000] / np.float32(255)
    url = tmp_path_factory.mktemp("fashion") / "rows.zarr"
    return X, write_dataset(url, X, chunks=5000)


@pytest.mark.parametrize("route", ["covariance_eigh", "randomized"])
@pytest.mark.parametrize("kind", ["PCA", "TruncatedSVD"])
def test_fashion_mnist(kind, route, fashion, cluster, monkeypatch):
    """Both routes: the subspace, variances and coordinates of 20 components out of 784 pixels."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
    X, ds = fashion
    with threadpool_limits(1):
        if kind == "PCA":
            plain = decomposition.PCA(20, svd_solver="covariance_eigh")
            model = PCA(20, svd_solver=route, tol=1e-9, random_state=0)
        else:
            plain = decomposition.TruncatedSVD(20, n_iter=20, random_state=0)
            model = TruncatedSVD(20, algorithm=route, tol=1e-9, random_state=0)
        theirs = plain.fit(X.astype("f8"))
    with Engine(cluster, memory_limit="450MB"):
        model.fit(ds)
    assert max(model.peak_memory_.values()) <= model.plan_.limit
    angles = subspace_angles(model.components_.T, theirs.components_.T)
    assert angles.max() < 1e-3
    for name in ("explained_variance_", "explained_variance_ratio_", "singular_values_"):
        np.testing.assert_allclose(getattr(model, name), getattr(theirs, name), rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(model.transform(X[:100])), np.abs(theirs.transform(X[:100])), atol=1e-3
    )
    if route == "randomized":
        missed = np.sum(theirs.singular_values_**2) / np.sum(model.singular_values_**2) - 1
        assert missed <= model.certificate_.relative + 1e-6 and model.n_passes_ <= 8


def bag_of_words():
    """How often each of 6906 words is in each of 3430 blog entries; words are known by number."""
    with gzip.open(file("uci-bow-kos/docword.kos.txt.gz"), "rt") as lines:
        n, d, _ = (int(next(lines)) for _ in range(3))
        found = np.loadtxt(lines, dtype=int)
    X = np.zeros((n, d), np.float32)
    X[found[:, 0] - 1, found[:, 1] - 1] = found[:, 2]
    return X


def topics(H, words=10):
    """Numbers of the words that weigh most in each component, as the file counts them, from 1."""
    return [(np.argsort(h)[::-1][:words] + 1).tolist() for h in H]


def test_kos_bag_of_words(cluster, tmp_path, monkeypatch):
    """NMF's error is no larger than scikit-learn's, and topics share nine of ten words with its."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)
    X = bag_of_words()
    ds = write_dataset(tmp_path / "rows.zarr", X, chunks=300)
    with Engine(cluster, memory_limit="450MB"):
        model = NMF(10, random_state=0).fit(ds)
    assert max(model.peak_memory_.values()) <= model.plan_.limit
    assert model.stationarity_ <= model.tol
    with threadpool_limits(1):
        theirs = decomposition.NMF(10, random_state=0, init="nndsvda", max_iter=400)
        found = theirs.fit_transform(X) @ theirs.components_.astype("f8")
    W = model.transform(X)
    error = np.linalg.norm(X - W @ model.components_)
    assert error == pytest.approx(model.reconstruction_err_, rel=1e-6)
    assert error <= np.linalg.norm(X - found) * (1 + 1e-6)  # what it tells itself is float32's
    for ours, other in zip(
        sorted(topics(model.components_)), sorted(topics(theirs.components_)), strict=True
    ):
        assert len(set(ours) & set(other)) >= 9
