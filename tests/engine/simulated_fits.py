"""Small fits of all solvers, for a simulated cluster, and what they find undisturbed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import dask
import numpy as np
from sklearn.exceptions import ConvergenceWarning

import daskdml.engine.run
from daskdml import (
    NMF,
    PCA,
    Engine,
    KMeans,
    LogisticRegression,
    MatrixFactorization,
    MiniBatchKMeans,
    SGDClassifier,
    TruncatedSVD,
)
from daskdml.engine import lazy, pace, runners
from daskdml.engine.run import Inline
from daskdml.io import convert_ratings, open_dataset, open_ratings, write_dataset
from tests.engine.simulated_store import SimulatedStore, at_once
from tests.engine.simulated_world import Wrong

ROWS, SHIFTED, BAD, RATINGS = (
    f"simulated://data/{name}.zarr" for name in ("rows", "shifted", "bad", "ratings")
)
OUT, FACTORS, PLACE = (f"simulated://scratch/{n}" for n in ("out.zarr", "factors.zarr", "fit"))


def _linear(**parameters: Any) -> dict[str, Any]:
    model = LogisticRegression(random_state=0, **parameters).fit(open_dataset(ROWS))
    c = model.certificate_
    return {"coef": model.coef_, "intercept": model.intercept_, "f": c.objective, "gap": c.gap,
            "steps": model.n_iter_, "objectives": _objectives(model)}  # fmt: skip


def _objectives(model: Any) -> np.ndarray:
    return np.array([np.nan if r.objective is None else r.objective for r in model.history_])


def _sgd_classifier() -> dict[str, Any]:
    model = SGDClassifier(random_state=0, n_replicas=2, staleness=1, max_iter=2, tol=None)
    model.fit(open_dataset(ROWS))
    return {"coef": model.coef_, "intercept": model.intercept_, "steps": model.t_}


def _factors(url: str | None = None, **parameters: Any) -> dict[str, Any]:
    ratings = open_ratings(RATINGS)
    model = MatrixFactorization(2, random_state=0, max_iter=2, tol=0, **parameters)
    model.fit(ratings, factors_url=url)
    found = {"objectives": _objectives(model)}
    SimulatedStore.answer = staticmethod(at_once)  # to him who reads what was found
    with dask.config.set(scheduler="synchronous"):
        for side in ("user", "item"):
            order = np.argsort(getattr(model, f"{side}_ids_"))
            for what in ("factors", "biases"):
                found[f"{side} {what}"] = np.asarray(getattr(model, f"{side}_{what}_"))[order]
    return found


def _kmeans() -> dict[str, Any]:
    model = KMeans(3, init="random", n_init=1, random_state=0, max_iter=4)
    model.fit(open_dataset(ROWS))
    return {"centers": model.cluster_centers_, "inertia": model.inertia_, "steps": model.n_iter_}


def _minibatch_kmeans() -> dict[str, Any]:
    model = MiniBatchKMeans(
        3, init="random", random_state=0, max_iter=3, batch_size=8, tol=0.0
    )  # fmt: skip
    model.fit(open_dataset(ROWS))
    return {"centers": model.cluster_centers_, "inertia": model.inertia_, "steps": model.n_iter_}


def _krylov(model: Any) -> dict[str, Any]:
    model.fit(open_dataset(ROWS))
    return {"components": model.components_, "variance": model.explained_variance_,
            "gap": model.certificate_.gap, "objectives": _objectives(model)}  # fmt: skip


def _pca() -> dict[str, Any]:
    model = PCA(2, random_state=0).fit(open_dataset(ROWS))
    return {"components": model.components_, "variance": model.explained_variance_}


def _nmf() -> dict[str, Any]:
    model = NMF(2, random_state=0, max_iter=4).fit(open_dataset(SHIFTED))
    return {"components": model.components_, "objectives": _objectives(model)}


def _predict() -> dict[str, Any]:
    model = LogisticRegression()
    model.coef_, model.intercept_ = np.array([[1.0, -1.0, 0.5]]), np.array([0.1])
    model.classes_, model.n_features_in_ = np.array([0, 1]), 3
    written = model.decision_function(open_dataset(ROWS), out=OUT)
    SimulatedStore.answer = staticmethod(at_once)  # to him who reads what was written
    return {"scores": np.asarray(written[:]), "complete": written.attrs["complete"]}


def _bad_rows() -> dict[str, Any]:
    try:
        LogisticRegression(solver="newton").fit(open_dataset(BAD))
    except ValueError as error:
        return {"error": np.array(str(error))}
    raise Wrong("a row that is not a number was not noticed")


FITS: dict[str, Callable[[], dict[str, Any]]] = {
    "newton": lambda: _linear(solver="newton", tol=1e-5),
    "lbfgs": lambda: _linear(solver="lbfgs", tol=1e-2),
    "sgd": lambda: _linear(solver="sgd", n_replicas=2, max_iter=2),
    "stale-sgd": lambda: _linear(solver="sgd", n_replicas=2, staleness=1, max_iter=2),
    "sgd-classifier": _sgd_classifier,
    "als": _factors,
    "implicit-als": lambda: _factors(feedback="implicit"),
    "stored-als": lambda: _factors(FACTORS),
    "dsgd": lambda: _factors(solver="sgd", n_replicas=3),
    "stale-dsgd": lambda: _factors(solver="sgd", n_replicas=3, staleness=1),
    "stored-dsgd": lambda: _factors(FACTORS, solver="sgd", n_replicas=3, staleness=1),
    "kmeans": _kmeans,
    "minibatch-kmeans": _minibatch_kmeans,
    "pca": _pca,
    "krylov-pca": lambda: _krylov(
        PCA(1, svd_solver="randomized", n_oversamples=1, iterated_power=2, random_state=0)
    ),
    "krylov-svd": lambda: _krylov(
        TruncatedSVD(1, algorithm="randomized", n_oversamples=1, n_iter=2, random_state=0)
    ),
    "nmf": _nmf,
    "predict": _predict,
    "bad-rows": _bad_rows,
}  # fmt: skip
RESUMABLE = tuple(name for name in FITS if name not in ("predict", "bad-rows"))


@cache
def _data() -> None:
    """Write what is fitted, once in a process."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) @ [[1, 0.5, 0], [0, 1, 2], [0, 0, 1]]
    y = (X[:, 0] - X[:, 1] + rng.logistic(size=60) > 0).astype(int)
    weights = rng.integers(1, 4, 60).astype(float)
    write_dataset(ROWS, X, y, weights, chunks=10, overwrite=True)
    write_dataset(SHIFTED, np.abs(X), chunks=10, overwrite=True)
    users, items = np.nonzero(rng.random((16, 12)) < 0.5)
    rated = (users, items, rng.integers(1, 11, len(users)) / 2)
    with (
        TemporaryDirectory() as scratch,  # other processes have a store of this name, too
        dask.config.set({"temporary-directory": scratch}),
    ):
        convert_ratings(rated, RATINGS, grid=(3, 3), overwrite=True)
    X[33, 1] = X[57, 0] = np.nan
    write_dataset(BAD, X, y, chunks=10, overwrite=True)


@cache
def undisturbed(name: str) -> dict[str, bytes]:
    """Bits of a fit that nothing disturbs."""
    _data()
    clear()
    with small_blocks(), Engine(Undisturbed()):
        return bits(FITS[name]())


class Undisturbed(Inline):
    """This thread."""

    def resident(self, rehearse: Any = None, shared: bool = False) -> int:
        """Kernels are compiled here, for all."""
        if rehearse is not None:
            rehearse()
        return 0

    def workers(self) -> list[runners.Worker]:
        """One slot."""
        return [runners.Worker("", 1, 10**9)]


def bits(found: dict[str, Any]) -> dict[str, bytes]:
    """What must be the same of what a fit found."""
    return {name: np.asarray(value).tobytes() for name, value in found.items()}


def clear() -> None:
    """Forget what fits wrote."""
    for name in [n for n in SimulatedStore.objects if n.startswith("scratch/")]:
        del SimulatedStore.objects[name]


@contextmanager
def small_blocks() -> Iterator[None]:
    """Each chunk is a task of its own, and a segment is a few of them."""
    with (
        mock.patch.object(daskdml.engine.run, "GROUP_BYTES", 1),
        mock.patch.multiple(pace, UNIT=2, FIRST=2, MOST=4, AT_LEAST=1),
        mock.patch.object(lazy, "MIN_ROWS_BYTES", 1),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # its worker died
        yield
