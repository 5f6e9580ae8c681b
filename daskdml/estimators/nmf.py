"""NMF on data larger than memory."""

from __future__ import annotations

import time
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.decomposition import Components
from daskdml.kernels.nmf import Coefficients


class NMF(Components):
    """Nonnegative matrix factorization, ``X ~ W H``, that keeps no row's W while it fits.

    Minimises scikit-learn's objective for rows X (n, d),
    ``|X - WH|^2 / 2 + d alpha_W P(W) + n alpha_H P(H)`` with
    ``P(A) = l1_ratio * sum(A) + (1 - l1_ratio) / 2 * sum(A^2)``, over W (n, K) and H (K, d) >= 0. A
    pass solves each row's nonnegative least squares for its W exactly and sums what H's needs;
    between passes H's are solved, and extrapolated. Sums are added in a fixed tree, so that the
    result does not depend on the cluster.

    The problem is not convex: other starts end elsewhere, and no bound of the distance to the
    optimum is known. What is claimed is a stationary point, as far as `stationarity_` says: W is
    the optimum for H up to round-off, and the gradient in H, projected where H is 0, has that share
    of its norm at the start.

    Parameters
    ----------
    n_components : int, "auto" or None, default="auto"
        K; "auto" and None stand for the number of features.
    init : {"random", "nndsvd", "nndsvda", "nndsvdar"} or None, default=None
        Where H starts: random numbers; or the nonnegative parts of leading singular vectors, from
        a few passes more, whose zeros stay 0 ("nndsvd"), become the mean of X ("nndsvda") or small
        random numbers ("nndsvdar"). None is "nndsvda" where K allows it, else "random". Where
        there are penalties, three passes without them follow.
    tol : float, default=1e-4
        `stationarity_` at which to stop.
    max_iter : int, default=200
        Passes at most, beside those of `init`.
    random_state : int, RandomState instance or None, default=None
        For `init`. None gives other bits in each fit.
    alpha_W : float, default=0.0
    alpha_H : float or "same", default="same"
        Strengths of the penalties.
    l1_ratio : float, default=0.0

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        H.
    n_components_ : int
    reconstruction_err_ : float
        ``|X - WH|``, the root of the sum of squares. It is a difference of sums of products in the
        rows' dtype: of float32 rows, what is below some 3e-4 of ``|X|`` is round-off.
    stationarity_ : float
        Norm of the projected gradient in H as a share of that at the start.
    n_iter_ : int
        Passes that visited an H.
    history_ : History
        A record for each pass: `objective` and `gradient`, the norm of the projected gradient, at
        the H it visited. Where f rose, the step is taken back.
    n_passes_, bytes_read_, plan_, peak_memory_
        As for `PCA`.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import NMF
    >>> X = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [1.0, 3.0, 2.0]])
    >>> model = NMF(2, random_state=0).fit(X)
    >>> bool(model.reconstruction_err_ < 1e-3), model.transform(X).shape
    (True, (3, 2))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
            None,
        ],
        "init": [StrOptions({"random", "nndsvd", "nndsvda", "nndsvdar"}), None],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "alpha_W": [Interval(Real, 0, None, closed="left")],
        "alpha_H": [Interval(Real, 0, None, closed="left"), StrOptions({"same"})],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self, n_components: int | str | None = "auto", *, init: str | None = None,
        tol: float = 1e-4, max_iter: int = 200, random_state: Any = None, alpha_W: float = 0.0,
        alpha_H: float | str = "same", l1_ratio: float = 0.0,
    ) -> None:  # fmt: skip
        self.n_components = n_components
        self.init = init
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.alpha_W = alpha_W
        self.alpha_H = alpha_H
        self.l1_ratio = l1_ratio

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, storage_options: Any = None) -> NMF:
        """Fit to a Dataset, a URL, a Zarr array, a Dask array or rows in memory.

        Parameters
        ----------
        X : Dataset, str, zarr.Array, Dask array or array-like of shape (n, d)
            No value may be negative.
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
            For rows that cannot be used (the first row and its column are named).
        MemoryError
            If the memory promise is too small; states the smallest that would do.
        """
        began = time.perf_counter()
        source = self._rows(X, storage_options, at_least=1)
        n, d = source.n_rows, source.n_features
        K = d if self.n_components in ("auto", None) else int(self.n_components)
        init = self.init or ("nndsvda" if min(n, d) >= K else "random")
        if init != "random" and min(n, d) < K:
            raise ValueError(
                f"init={init!r} needs n_components of at most {min(n, d)}, with {n} rows and {d} "
                f"features, and it is {K}; take fewer, or init='random'"
            )
        from daskdml.estimators.fitting import fit_seed
        from daskdml.estimators.nmf_fitting import Penalties, find_factors

        seed = fit_seed(self.random_state)
        penalties = Penalties(*self._row_penalty(d), *self._penalty(self._alpha_H(), n))
        found, attributes = find_factors(
            source, K, penalties, init, seed, self.tol, self.max_iter, began, self.get_params()
        )
        self.components_, self.n_components_ = found.H, K
        self.reconstruction_err_ = found.error
        self._keep(attributes)
        return self

    def transform(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """W (n, n_components) of rows, the optimum for `components_`; of X's kind.

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
        check_is_fitted(self)
        l1, l2 = self._row_penalty(self.n_features_in_)
        return self._apply_rows(X, Coefficients(self.components_, l1, l2), storage_options, out)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these components.

        Its `transform` takes float64 rows, as components are; it stops at `tol` instead of the
        optimum, and so differs by that.
        """
        from sklearn.decomposition import NMF as Plain

        same = ("alpha_W", "alpha_H", "l1_ratio", "tol", "max_iter", "random_state")
        plain = Plain(self.n_components, init=self.init, **{k: getattr(self, k) for k in same})
        return self._copy_fitted(plain, "components_", "n_components_", "reconstruction_err_")

    def _alpha_H(self) -> float:
        return self.alpha_W if isinstance(self.alpha_H, str) else self.alpha_H

    def _row_penalty(self, d: int) -> tuple[float, float]:
        """Factors of W's sum and of half of its squares."""
        return self._penalty(self.alpha_W, d)

    def _penalty(self, alpha: float, entries: int) -> tuple[float, float]:
        return entries * alpha * self.l1_ratio, entries * alpha * (1.0 - self.l1_ratio)
