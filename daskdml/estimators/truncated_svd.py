"""Truncated SVD on data larger than memory."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from daskdml.estimators.decomposition import RANDOMIZED, SOLVERS, SPECTRUM, Decomposition


class TruncatedSVD(Decomposition):
    """Truncated singular value decomposition: PCA without centring, by the same two routes.

    Parameters
    ----------
    n_components : int, default=2
        How many components to keep.
    algorithm : {"auto", "covariance_eigh", "randomized"}, default="auto"
        As `PCA`'s svd_solver.
    n_iter : int or "auto", default="auto"
        As `PCA`'s iterated_power.
    n_oversamples, random_state, tol
        As for `PCA`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        Right singular vectors of the rows, in the order of falling singular values.
    singular_values_ : ndarray of shape (n_components,)
    explained_variance_, explained_variance_ratio_ : ndarray of shape (n_components,)
        Variances of the rows' coordinates, and as shares of the rows' total variance.
    certificate_, history_, n_passes_, bytes_read_, plan_, peak_memory_
        As for `PCA`; the certificate speaks of the sum of squared singular values.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import TruncatedSVD
    >>> TruncatedSVD(1).fit(np.diag([3.0, 4.0])).singular_values_
    array([4.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "algorithm": [SOLVERS],
        "n_iter": [StrOptions({"auto"}), Interval(Integral, 0, None, closed="left")],
        **RANDOMIZED,
    }
    _centred = False

    def __init__(
        self, n_components: int = 2, *, algorithm: str = "auto", n_iter: int | str = "auto",
        n_oversamples: int = 10, random_state: Any = None, tol: float = 1e-6,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.algorithm = algorithm
        self.n_iter = n_iter
        self.n_oversamples = n_oversamples
        self.random_state = random_state
        self.tol = tol

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, storage_options: Any = None) -> TruncatedSVD:
        """Fit; see `PCA.fit`."""
        n_iter = None if self.n_iter == "auto" else self.n_iter
        found = self._spectrum(X, storage_options, 1, self.algorithm, n_iter)
        self.components_ = found.vectors.copy()
        self.singular_values_ = np.sqrt(found.values)
        along = np.maximum(found.values - found.n * (found.vectors @ found.mean) ** 2, 0.0)
        self.explained_variance_ = along / found.n
        spread = found.spread
        self.explained_variance_ratio_ = along / spread if spread > 0 else np.zeros(len(along))
        return self

    def _wanted(self, n: int, d: int) -> tuple[int | None, int]:
        return self.n_components, d

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these components."""
        from sklearn.decomposition import TruncatedSVD as Plain

        return self._copy_fitted(Plain(self.n_components), *SPECTRUM)
