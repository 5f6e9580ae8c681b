"""What decompositions of rows share: leading eigenpairs by one of two routes, and linear maps."""

from __future__ import annotations

import time
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import svd_flip
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.base import LinearEstimator, is_out_of_core
from daskdml.io.sources import AnySource, as_source
from daskdml.kernels.covariance import Spectrum
from daskdml.kernels.predict import Predict, as_they_are

SPECTRUM = (
    "components_", "explained_variance_", "explained_variance_ratio_", "singular_values_",
)  # fmt: skip


FEATURES = 1000  # up to which the covariance matrix is summed, whatever is asked for
PER_COMPONENT = 16  # features for each column of a block, up to which it is summed
SOLVERS = StrOptions({"auto", "covariance_eigh", "randomized"})
RANDOMIZED: dict[str, list[Any]] = {
    "tol": [Interval(Real, 0, None, closed="left")],
    "n_oversamples": [Interval(Integral, 1, None, closed="left")],
    "random_state": ["random_state"],
}


def choose_route(solver: str, d: int, wanted: int | None, oversamples: int) -> str:
    """What "auto" stands for, from the shape of the problem alone.

    One pass that sums d x d products takes the time of the randomized route's passes at 1000
    features for 20 components and at some 3000 for 100, on one core; but for all of its some
    twenty such matrices in a worker there is memory in fewer cases: 0.3 GB at 1000 features and 0.9
    GB at 2000. Without a number of components (`wanted` None) all eigenvalues are needed.

    Examples
    --------
    >>> choose_route("auto", 784, 20, 10), choose_route("auto", 5000, 20, 10)
    ('covariance_eigh', 'randomized')
    """
    if solver != "auto":
        return solver
    few = wanted is not None and d > max(FEATURES, PER_COMPONENT * (wanted + oversamples))
    return "randomized" if few else "covariance_eigh"


class Components(ClassNamePrefixFeaturesOutMixin, TransformerMixin, LinearEstimator):
    """Base of estimators that describe rows by coordinates along components."""

    components_: np.ndarray

    def _rows(self, X: Any, storage_options: Any, at_least: int) -> AnySource:
        """The checked rows of a fit; refuses too few before it reads any."""
        source = self._open(X, None, None, storage_options, ensure_min_samples=at_least)
        if source.n_rows < at_least:
            raise ValueError(
                f"{source.name} has {source.n_rows} row(s), while a minimum of {at_least} is "
                f"required by {type(self).__name__}"
            )
        return source

    def _scale(self) -> np.ndarray:
        """What a component's coordinate is divided by."""
        return np.ones(len(self.components_))

    def _center(self) -> np.ndarray:
        """What is taken off the rows."""
        return np.zeros(self.components_.shape[1])

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def inverse_transform(self, Z: Any) -> Any:
        """Rows (n, n_features) that have the coordinates Z (n, n_components); Dask for Dask."""
        check_is_fitted(self)
        rows = Predict((self.components_ * self._scale()[:, None]).T, self._center(), as_they_are)
        if not is_out_of_core(Z):
            return rows(check_array(Z, dtype=[np.float64, np.float32], order="C"))
        from daskdml.engine.lazy import lazy_rows

        return lazy_rows(as_source(Z, None, None), rows)

    def fit_transform(
        self, X: Any, y: Any = None, *, storage_options: Any = None, out: Any = None
    ) -> Any:
        """`fit`, and then `transform` of the same rows."""
        self.fit(X, storage_options=storage_options)
        return self.transform(X, storage_options=storage_options, out=out)


class Decomposition(Components):
    """Base of PCA and TruncatedSVD."""

    n_components: Any
    tol: float
    n_oversamples: int
    random_state: Any
    _centred: ClassVar[bool]

    def _spectrum(
        self, X: Any, storage_options: Any, at_least: int, solver: str, n_iter: Any
    ) -> Spectrum:
        """Leading eigenpairs of all rows, with signs fixed; keeps what the passes took."""
        began = time.perf_counter()
        source = self._rows(X, storage_options, at_least)
        n, d = source.n_rows, source.n_features
        wanted, most = self._wanted(n, d)
        if wanted is not None and wanted > most:
            raise ValueError(
                f"n_components={wanted} must be at most {most}, with {n} rows and {d} features"
            )
        from daskdml.estimators.fitting import fit_seed
        from daskdml.estimators.subspace import find_leading, find_spectrum

        label, parameters = type(self).__name__.lower(), self.get_params()
        if choose_route(solver, d, wanted, self.n_oversamples) == "covariance_eigh":
            found, attributes = find_spectrum(
                source, label, self._centred, wanted, began, parameters
            )
        elif wanted is None:
            raise ValueError(
                f"the randomized route needs n_components as a number from 1 to {most}, and it is "
                f"{self.n_components!r}; give one, or take the covariance"
            )
        else:
            seed = fit_seed(self.random_state)
            plan = (wanted, self.n_oversamples, n_iter, seed, self.tol)
            found, attributes = find_leading(source, label, self._centred, *plan, began, parameters)
        self._keep(attributes)
        return replace(found, vectors=svd_flip(None, found.vectors, u_based_decision=False)[1])

    def _wanted(self, n: int, d: int) -> tuple[int | None, int]:
        """How many components are asked for (None where the rows decide), and can be."""
        raise NotImplementedError

    def _matrices(self) -> tuple[np.ndarray, np.ndarray]:
        coef = self.components_ / self._scale()[:, None]
        return coef, -coef @ self._center()

    def transform(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Coordinates along the components, shape (n, n_components), of X's kind.

        Parameters
        ----------
        X : as for `fit`
            Rows in memory give an array; others a lazy Dask array.
        storage_options : dict or None
            For a URL.
        out : str or None
            URL of a Zarr array to stream them to. It appears there whole; a call that was broken
            off is gone on with by the same call.
        """
        return self._apply(X, as_they_are, storage_options, out)
