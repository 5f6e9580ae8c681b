"""Machine learning on data larger than memory, on Dask and Zarr, with certified results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskdml.diagnostics.progress import ProgressBar as ProgressBar
    from daskdml.diagnostics.timeline import Timeline as Timeline
    from daskdml.engine.run import Engine as Engine
    from daskdml.estimators.clustering import KMeans as KMeans
    from daskdml.estimators.clustering import MiniBatchKMeans as MiniBatchKMeans
    from daskdml.estimators.factorization import MatrixFactorization as MatrixFactorization
    from daskdml.estimators.linear import LinearRegression as LinearRegression
    from daskdml.estimators.linear import LogisticRegression as LogisticRegression
    from daskdml.estimators.linear import Ridge as Ridge
    from daskdml.estimators.nmf import NMF as NMF
    from daskdml.estimators.pca import PCA as PCA
    from daskdml.estimators.sgd import SGDClassifier as SGDClassifier
    from daskdml.estimators.sgd import SGDRegressor as SGDRegressor
    from daskdml.estimators.truncated_svd import TruncatedSVD as TruncatedSVD

__version__ = "0.1.0"

_HOMES = {
    "Engine": "daskdml.engine.run",
    "KMeans": "daskdml.estimators.clustering",
    "LinearRegression": "daskdml.estimators.linear",
    "LogisticRegression": "daskdml.estimators.linear",
    "MatrixFactorization": "daskdml.estimators.factorization",
    "MiniBatchKMeans": "daskdml.estimators.clustering",
    "NMF": "daskdml.estimators.nmf",
    "PCA": "daskdml.estimators.pca",
    "ProgressBar": "daskdml.diagnostics.progress",
    "Ridge": "daskdml.estimators.linear",
    "SGDClassifier": "daskdml.estimators.sgd",
    "SGDRegressor": "daskdml.estimators.sgd",
    "Timeline": "daskdml.diagnostics.timeline",
    "TruncatedSVD": "daskdml.estimators.truncated_svd",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:  # workers import kernels and io without scikit-learn
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
