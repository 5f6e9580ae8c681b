"""PCA on data larger than memory."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.base import is_out_of_core
from daskdml.estimators.decomposition import RANDOMIZED, SOLVERS, SPECTRUM, Decomposition
from daskdml.io.sources import as_source
from daskdml.kernels.gaussian import LogDensity


class PCA(Decomposition):
    """Principal component analysis: exact in one pass, or in a few passes for many features.

    "covariance_eigh" sums rows' products in one pass; the covariance's eigenvectors are the
    components [1]_. It needs memory for some twenty matrices of (features x features) in each
    worker, which the memory promise counts.

    "randomized" multiplies the covariance with a block of directions, pass by pass, and never forms
    it: a block Krylov space from a random start [2]_ [3]_. Passes end once `certificate_` says that
    the components' variance is within `tol` of the most that so many directions can have.

    Parameters
    ----------
    n_components : int, float or None, default=None
        How many components to keep; a number between 0 and 1 keeps as many as explain that share of
        the variance; None keeps min(n_samples, n_features).
    whiten : bool, default=False
        Whether `transform` scales every component to variance 1.
    svd_solver : {"auto", "covariance_eigh", "randomized"}, default="auto"
        "auto" sums the covariance where n_components is no integer, and else up to 1000 features
        or 16 for each of (n_components + n_oversamples), whichever is more.
    tol : float, default=1e-6
        Of "randomized": the share of their variance that the components may miss.
    iterated_power : int or "auto", default="auto"
        Of "randomized": passes after the first; "auto" goes on until `tol` is reached.
    n_oversamples : int, default=10
        Of "randomized": directions of a block beyond n_components.
    random_state : int, RandomState instance or None, default=None
        Of "randomized": draws the first block. None gives other bits in each fit.

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
    certificate_ : Certificate or None
        Of "randomized": ``gap`` bounds by how much the sum of `explained_variance_` falls short of
        the largest that so many orthonormal directions have, ``relative`` as a share of that sum,
        which is ``-objective``. The bound is proven (``rigorous``) where the variance outside of
        the Krylov space is too little to matter. Else it is an estimate: it supposes that no
        direction outside has more variance than the largest Ritz value left out, which a random
        start makes likely, and doubles what follows from that. Below 1e-3 it was above the truth
        in tests, but for variances nearly tied, where it was up to 2.3 times too small; in the
        first passes it is worse. Round-off of products in the rows' dtype comes on top.
    history_ : History
        Of "randomized": a record for each pass.
    n_passes_, bytes_read_, plan_, peak_memory_
        Passes over the rows, encoded bytes read, the memory plan, peak resident bytes by worker.

    References
    ----------
    .. [1] Tipping, Bishop, "Mixtures of probabilistic principal component analyzers", Neural
       Computation 11, 1999.
    .. [2] Halko, Martinsson, Tropp, "Finding structure with randomness: probabilistic algorithms
       for constructing approximate matrix decompositions", SIAM Review 53, 2011.
    .. [3] Musco, Musco, "Randomized block Krylov methods for stronger and faster approximate
       singular value decomposition", NIPS 2015.

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
        "svd_solver": [SOLVERS],
        "iterated_power": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        **RANDOMIZED,
    }
    _centred = True

    def __init__(
        self, n_components: int | float | None = None, *, whiten: bool = False,
        svd_solver: str = "auto", tol: float = 1e-6, iterated_power: int | str = "auto",
        n_oversamples: int = 10, random_state: Any = None,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.whiten = whiten
        self.svd_solver = svd_solver
        self.tol = tol
        self.iterated_power = iterated_power
        self.n_oversamples = n_oversamples
        self.random_state = random_state

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
        n_iter = None if self.iterated_power == "auto" else self.iterated_power
        found = self._spectrum(X, storage_options, 2, self.svd_solver, n_iter)
        n, d = found.n, len(found.mean)
        values = found.values[: min(n, d)] / (n - 1)
        total = found.total / (n - 1)
        ratio = values / total if total > 0 else np.zeros_like(values)
        k = self._kept(ratio)
        self.components_, self.mean_ = found.vectors[:k].copy(), found.mean
        self.explained_variance_, self.explained_variance_ratio_ = values[:k], ratio[:k]
        self.singular_values_ = np.sqrt(values[:k] * (n - 1))
        left = max(total - float(values[:k].sum()), 0.0)
        self.noise_variance_ = left / (min(n, d) - k) if k < min(n, d) else 0.0
        self.n_components_, self.n_samples_ = k, n
        return self

    def score_samples(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Log densities of rows (n,) under the probabilistic model; of X's kind, as `transform`.

        Raises
        ------
        ValueError
            If the components take all variance of fewer directions than there are features: rows
            off them would have a density of 0.
        """
        return self._apply_rows(X, self._density(), storage_options, out)

    def score(self, X: Any, y: Any = None, *, storage_options: Any = None) -> float:
        """Mean log density of rows; one pass over what is not in memory."""
        density = self._density()
        if not is_out_of_core(X):
            return float(np.mean(self._apply_rows(X, density)))
        from daskdml.estimators.streaming import mean

        source = as_source(X, None, None, storage_options)
        self._check_features(source)
        return mean(source, density)

    def get_covariance(self) -> np.ndarray:
        """Covariance (d, d) of the probabilistic model: of the components, and noise elsewhere."""
        check_is_fitted(self)
        V, noise = self.components_, self.noise_variance_
        above = np.maximum(self.explained_variance_ - noise, 0.0)
        return (V.T * above) @ V + noise * np.eye(V.shape[1])

    def get_precision(self) -> np.ndarray:
        """The inverse (d, d) of `get_covariance`; ValueError where it is singular."""
        density = self._density()
        V, (k, d) = density.components, density.components.shape
        beyond = 1.0 / density.noise if k < d else 0.0
        return (V.T * (1.0 / density.variances - beyond)) @ V + beyond * np.eye(d)

    def _density(self) -> LogDensity:
        check_is_fitted(self)
        k, d = self.components_.shape
        noise = float(self.noise_variance_)
        variances = np.maximum(self.explained_variance_, noise)
        tiny = d * float(np.finfo(np.float64).eps) * float(variances.max())
        if (k < d and noise <= tiny) or variances.min() <= tiny:
            raise ValueError(
                f"the rows have no variance outside of {k} components or along one of them, so "
                "the model has no density; keep fewer components"
            )
        return LogDensity(self.mean_, self.components_, variances, noise)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these components."""
        from sklearn.decomposition import PCA as Plain

        plain = Plain(self.n_components, whiten=self.whiten)
        own = ("mean_", "noise_variance_", "n_components_", "n_samples_")
        return self._copy_fitted(plain, *SPECTRUM, *own)

    def _wanted(self, n: int, d: int) -> tuple[int | None, int]:
        k = self.n_components
        return (int(k) if isinstance(k, (int, np.integer)) else None), min(n, d)

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
