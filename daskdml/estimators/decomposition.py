"""PCA and truncated SVD on data larger than memory."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from scipy.linalg import eigh
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval
from sklearn.utils.extmath import svd_flip
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.base import LinearEstimator, is_out_of_core
from daskdml.io.sources import as_source
from daskdml.kernels.covariance import Scatter
from daskdml.kernels.predict import Predict, as_they_are

SPECTRUM = (
    "components_", "explained_variance_", "explained_variance_ratio_", "singular_values_",
)  # fmt: skip


class _Decomposition(ClassNamePrefixFeaturesOutMixin, TransformerMixin, LinearEstimator):
    """What PCA and TruncatedSVD share: one pass for a scatter matrix, and linear maps."""

    components_: np.ndarray

    def _scatter(self, X: Any, storage_options: Any, at_least: int) -> Scatter:
        """Of all rows; keeps what the pass took. Refuses too few rows before it reads any."""
        source = self._open(X, None, None, storage_options, ensure_min_samples=at_least)
        n, d = source.n_rows, source.n_features
        if n < at_least:
            raise ValueError(
                f"{source.name} has {n} row(s), while a minimum of {at_least} is required by "
                f"{type(self).__name__}"
            )
        wanted, most = self._wanted(n, d)
        if wanted > most:
            raise ValueError(
                f"n_components={wanted} must be at most {most}, with {n} rows and {d} features"
            )
        from daskdml.estimators.fitting import find_scatter

        found, attributes = find_scatter(source, f"{type(self).__name__.lower()}-covariance")
        self._keep(attributes)
        return found

    def _wanted(self, n: int, d: int) -> tuple[int, int]:
        """How many components are asked for, at least, and how many there can be."""
        raise NotImplementedError

    def _scale(self) -> np.ndarray:
        """What a component's coordinate is divided by."""
        return np.ones(len(self.components_))

    def _center(self) -> np.ndarray:
        """What is taken off the rows."""
        return np.zeros(self.components_.shape[1])

    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        coef = self.components_ / self._scale()[:, None]
        return coef, -coef @ self._center()

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def transform(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Coordinates along the components, shape (n, n_components), of X's kind.

        Parameters
        ----------
        X : as for `fit`
            Rows in memory give an array; others a lazy Dask array.
        storage_options : dict or None
            For a URL.
        out : str or None
            URL of a Zarr array to stream them to, which a rerun completes.
        """
        return self._apply(X, as_they_are, storage_options, out)

    def inverse_transform(self, Z: Any) -> Any:
        """Rows (n, n_features) that have the coordinates Z (n, n_components); Dask for Dask."""
        check_is_fitted(self)
        rows = Predict((self.components_ * self._scale()[:, None]).T, self._center(), as_they_are)
        if not is_out_of_core(Z):
            return rows(check_array(Z, dtype=[np.float64, np.float32], order="C"))
        from daskdml.engine.lazy import lazy_rows

        return lazy_rows(as_source(Z, None, None), rows)


class PCA(_Decomposition):
    """Principal component analysis in one pass, from the exact covariance matrix.

    The pass sums rows' products in a fixed tree, so that the result does not depend on the cluster;
    eigenvectors of the covariance are the components [1]_. It needs memory for some twenty matrices
    of (features x features) in each worker, which the memory promise counts.

    Parameters
    ----------
    n_components : int, float or None, default=None
        How many components to keep; a number between 0 and 1 keeps as many as explain that share of
        the variance; None keeps min(n_samples, n_features).
    whiten : bool, default=False
        Whether `transform` scales every component to variance 1.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        Directions of most variance, of length 1, in the order of falling variance.
    explained_variance_, explained_variance_ratio_ : ndarray of shape (n_components,)
        Variances along them, and as shares of the total variance.
    singular_values_ : ndarray of shape (n_components,)
        Of the centred data.
    mean_ : ndarray of shape (n_features,)
    noise_variance_ : float
        Mean variance along the directions left out.
    n_components_, n_samples_ : int
    n_passes_, bytes_read_, plan_, peak_memory_
        Passes over the rows, encoded bytes read, the memory plan, peak resident bytes by worker.

    References
    ----------
    .. [1] Tipping, Bishop, "Mixtures of probabilistic principal component analyzers", Neural
       Computation 11, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import PCA
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.1]])
    >>> PCA(n_components=1).fit(X).explained_variance_ratio_.round(4)
    array([0.9999])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            Interval(Real, 0, 1, closed="neither"),
            None,
        ],
        "whiten": ["boolean"],
    }

    def __init__(self, n_components: int | float | None = None, *, whiten: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, storage_options: Any = None) -> PCA:
        """Fit to a Dataset, a URL, a Zarr array, a Dask array or rows in memory.

        Parameters
        ----------
        X : Dataset, str, zarr.Array, Dask array or array-like of shape (n, d)
        y : None
            Ignored.
        storage_options : dict or None
            For a URL.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For rows that cannot be used (the first row and its column are named), fewer than two,
            or more components than min(n, d).
        MemoryError
            If the memory promise is too small; states the smallest that would do.
        """
        found = self._scatter(X, storage_options, at_least=2)
        n, d = found.n, len(found.mean)
        values, vectors = eigh(found.products / (n - 1))
        values, vectors = np.maximum(values[::-1], 0.0)[: min(n, d)], vectors.T[::-1][: min(n, d)]
        total = float(np.trace(found.products)) / (n - 1)
        ratio = values / total if total > 0 else np.zeros_like(values)
        k = self._kept(ratio)
        _, vectors = svd_flip(None, vectors, u_based_decision=False)
        self.components_, self.mean_ = vectors[:k].copy(), found.mean
        self.explained_variance_, self.explained_variance_ratio_ = values[:k], ratio[:k]
        self.singular_values_ = np.sqrt(values[:k] * (n - 1))
        self.noise_variance_ = float(values[k:].mean()) if k < len(values) else 0.0
        self.n_components_, self.n_samples_ = k, n
        return self

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these components."""
        from sklearn.decomposition import PCA as Plain

        plain = Plain(self.n_components, whiten=self.whiten)
        own = ("mean_", "noise_variance_", "n_components_", "n_samples_")
        return self._copy_fitted(plain, *SPECTRUM, *own)

    def _wanted(self, n: int, d: int) -> tuple[int, int]:
        k = self.n_components
        return (int(k) if isinstance(k, (int, np.integer)) else 1), min(n, d)

    def _kept(self, ratio: np.ndarray) -> int:
        if self.n_components is None:
            return len(ratio)
        if isinstance(self.n_components, (int, np.integer)):
            return int(self.n_components)
        return min(len(ratio), int(np.searchsorted(np.cumsum(ratio), self.n_components) + 1))

    def _center(self) -> np.ndarray:
        return self.mean_

    def _scale(self) -> np.ndarray:
        if not self.whiten:
            return super()._scale()
        tiny = float(np.finfo(np.float64).eps)
        return np.sqrt(np.maximum(self.explained_variance_, tiny))


class TruncatedSVD(_Decomposition):
    """Truncated singular value decomposition in one pass, exact: PCA without centring.

    Parameters
    ----------
    n_components : int, default=2
        How many components to keep.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        Right singular vectors of the rows, in the order of falling singular values.
    singular_values_ : ndarray of shape (n_components,)
    explained_variance_, explained_variance_ratio_ : ndarray of shape (n_components,)
        Variances of the rows' coordinates, and as shares of the rows' total variance.
    n_passes_, bytes_read_, plan_, peak_memory_
        As for `PCA`.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import TruncatedSVD
    >>> TruncatedSVD(1).fit(np.diag([3.0, 4.0])).singular_values_
    array([4.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_components: int = 2) -> None:
        self.n_components = n_components

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, storage_options: Any = None) -> TruncatedSVD:
        """Fit; see `PCA.fit`."""
        found = self._scatter(X, storage_options, at_least=1)
        n, d, k = found.n, len(found.mean), self.n_components
        squares = found.products + n * np.outer(found.mean, found.mean)
        values, vectors = eigh(squares, subset_by_index=[d - k, d - 1])
        _, vectors = svd_flip(None, vectors.T[::-1], u_based_decision=False)
        self.components_ = vectors.copy()
        self.singular_values_ = np.sqrt(np.maximum(values[::-1], 0.0))
        along = np.einsum("kd,de,ke->k", vectors, found.products, vectors)
        total = float(np.trace(found.products))
        self.explained_variance_ = np.maximum(along, 0.0) / n
        self.explained_variance_ratio_ = along / total if total > 0 else np.zeros(k)
        return self

    def _wanted(self, n: int, d: int) -> tuple[int, int]:
        return self.n_components, d

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these components."""
        from sklearn.decomposition import TruncatedSVD as Plain

        return self._copy_fitted(Plain(self.n_components), *SPECTRUM)
