"""KMeans and MiniBatchKMeans on data larger than memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import (
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskdml.estimators.base import RowsEstimator
from daskdml.io.sources import AnySource
from daskdml.kernels.kmeans import Centers

if TYPE_CHECKING:
    from daskdml.estimators.clustering_fitting import Clustered, ClusterTask
    from daskdml.solvers.minibatch import MiniBatch


class _Clusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, RowsEstimator):
    """What both share: centers, and what rows are to them."""

    cluster_centers_: np.ndarray
    labels_: Any

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "random"}), "array-like"],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def _rows(self, X: Any, sample_weight: Any, options: Any, reset: bool = True) -> AnySource:
        return self._open(X, None, sample_weight, options, reset, accept_large_sparse=False)

    def _task(self, source: AnySource, began: float, goes_on: bool = False) -> ClusterTask:
        """What to fit; refuses centers of another shape, and too few rows to begin with."""
        from daskdml.estimators.clustering_fitting import ClusterTask

        k, n, d = self.n_clusters, source.n_rows, source.n_features
        if n < k and not goes_on:
            raise ValueError(
                f"n_samples={n} should be >= n_clusters={k}: {source.name} has too few rows; "
                "ask for fewer clusters or give more rows"
            )
        init = self.init
        if not isinstance(init, str):
            init = check_array(init, dtype=np.float64, input_name="init")
            if init.shape != (k, d):
                raise ValueError(
                    f"init has shape {init.shape}, but n_clusters={k} and rows of {d} features "
                    f"need {(k, d)}; pass such an array or a name"
                )
        from daskdml.estimators.fitting import fit_seed

        seed, label = fit_seed(self.random_state), type(self).__name__.lower()
        return ClusterTask(label, k, init, self.n_init, seed, began, self.get_params())

    def _take(self, found: Clustered, source: AnySource) -> None:
        self.cluster_centers_, self.inertia_ = found.centers, found.stats.inertia
        self._keep(found.attributes)
        self.labels_ = self._labels_of(source)
        filled = int(np.count_nonzero(found.stats.weights))
        if filled < self.n_clusters:
            warnings.warn(
                f"only {filled} of n_clusters={self.n_clusters} clusters have rows, which other "
                "rows of the data may equal; ask for fewer clusters",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _labels_of(self, source: AnySource) -> Any:
        rows = Centers(self.cluster_centers_).labels
        if source.in_memory:
            return rows(source.read(0, source.n_rows, ("X",))[0].X)  # type: ignore[union-attr]
        from daskdml.engine.lazy import lazy_rows

        return lazy_rows(source, rows)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _apply_centers(self, X: Any, method: str, options: Any, out: Any) -> Any:
        check_is_fitted(self)
        rows: Callable[[np.ndarray], np.ndarray] = getattr(Centers(self.cluster_centers_), method)
        return self._apply_rows(X, rows, options, out)

    def predict(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Index of the nearest center of each row, shape (n,), int32, of X's kind.

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
        return self._apply_centers(X, "labels", storage_options, out)

    def transform(self, X: Any, *, storage_options: Any = None, out: Any = None) -> Any:
        """Distances to the centers, shape (n, n_clusters), of X's kind; see `predict`."""
        return self._apply_centers(X, "distances", storage_options, out)

    def _plain(self, plain: Any) -> Any:
        plain._n_threads = 1
        return self._copy_fitted(plain, "cluster_centers_", "inertia_", "labels_")

    def fit_predict(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> Any:
        """`fit`, and the labels of the rows; see there."""
        fitted = self.fit(X, sample_weight=sample_weight, storage_options=storage_options)
        return fitted.labels_

    def score(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> float:
        """Minus the inertia of the rows, in one pass.

        Parameters
        ----------
        X, sample_weight, storage_options
            As for `fit`.
        y : None
            Ignored.
        """
        check_is_fitted(self)
        source = self._rows(X, sample_weight, storage_options, reset=False)
        from daskdml.estimators.streaming import inertia

        return -inertia(source, Centers(self.cluster_centers_))


class KMeans(_Clusterer):
    """K-means clustering: Lloyd's algorithm in passes over the rows.

    Centers are sought on a sample of the rows, drawn from all of them in one pass and held in
    memory: greedy k-means++ [1]_ and Lloyd's algorithm from several draws, of which the best end
    is where Lloyd's algorithm over all rows begins. So most steps are taken in memory, and few
    passes are left. The sample has at least 20,000 rows and 256 for each cluster, or as many as
    32 MB hold, but 20 for each cluster; smaller data is its own sample.

    Rows are assigned to the center that is nearest in float64, whatever their dtype; sums are
    float64 in a fixed tree, so that the result does not depend on the cluster that it ran on.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {"k-means++", "random"} or array-like of shape (n_clusters, n_features), \
default="k-means++"
        How centers are drawn from the sample; an array is where Lloyd's algorithm over all rows
        begins, without a sample.
    n_init : int or "auto", default="auto"
        Draws on the sample; "auto" goes on until three draws led to the best end, but to 32 at
        most.
    max_iter : int, default=300
        Steps over all rows at most.
    tol : float, default=0.0001
        Stops when the sum of the centers' squared moves is at most `tol` times the mean variance of
        the features.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float64
    labels_ : ndarray or dask.array.Array of shape (n_samples,), int32
        Of the rows of `fit`; lazy for rows that are not in memory.
    inertia_ : float
        Weighted sum of the squared distances of all rows to their nearest centers.
    n_iter_ : int
        Steps over all rows.
    history_ : list of records
        One for each pass; the objective is the inertia at the centers that the pass visited.
    n_passes_, bytes_read_, plan_, peak_memory_
        Passes over the rows, encoded bytes read, the memory plan, peak resident bytes by worker.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    References
    ----------
    .. [1] Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import KMeans
    >>> X = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0], [9.0, 11.0]])
    >>> model = KMeans(2, random_state=0).fit(X)
    >>> model.inertia_, np.sort(model.cluster_centers_, axis=0).tolist()
    (4.0, [[0.0, 1.0], [9.0, 10.0]])
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> KMeans:
        """Fit to a Dataset, a URL, a Zarr array, a Dask array or rows in memory.

        Parameters
        ----------
        X : Dataset, str, zarr.Array, Dask array or array-like of shape (n, d)
        y : None
            Ignored.
        sample_weight : array-like of shape (n,) or None
            None takes the data set's own, or 1 for each row.
        storage_options : dict or None
            For a URL.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For rows that cannot be used (the first row and its column are named), fewer rows than
            clusters, or an `init` of another shape.
        MemoryError
            If the memory promise is too small; states the smallest that would do.
        """
        began = time.perf_counter()
        source = self._rows(X, sample_weight, storage_options)
        task = self._task(source, began)
        from daskdml.estimators.clustering_fitting import fit_kmeans

        self._take(fit_kmeans(source, task, self.tol, self.max_iter), source)
        return self

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these centers."""
        from sklearn.cluster import KMeans as Plain

        return self._plain(Plain(**self.get_params()))


class MiniBatchKMeans(_Clusterer):
    """K-means clustering by mini-batches: centers move after every few rows.

    Starts as `KMeans` does, from centers sought on a sample; then blocks come in random order, and
    their rows in batches, after each of which a center is the mean of all rows that it ever was
    nearest to [1]_. One block is worked on at a time while others are read ahead, so that the
    result depends on `random_state` and on how the rows are stored, and not on the cluster.

    Parameters
    ----------
    n_clusters, init, n_init, random_state
        As for `KMeans`.
    max_iter : int, default=100
        Epochs at most.
    batch_size : int, default=1024
        Rows between two moves of the centers.
    tol : float, default=0.001
        Stops after an epoch whose inertia is not below the one before by this share of it.

    Attributes
    ----------
    cluster_centers_, labels_, inertia_, history_, n_passes_, bytes_read_, plan_, peak_memory_, \
n_features_in_, feature_names_in_
        As for `KMeans`; `partial_fit` leaves no `inertia_`.
    n_iter_ : int
        Epochs.

    References
    ----------
    .. [1] D. Sculley, "Web-scale k-means clustering", WWW 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import MiniBatchKMeans
    >>> X = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0], [9.0, 11.0]])
    >>> MiniBatchKMeans(2, random_state=0).fit(X).inertia_
    4.0
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **_Clusterer._parameter_constraints,
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 100,
        batch_size: int = 1024,
        tol: float = 1e-3,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.tol = tol
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> MiniBatchKMeans:
        """Fit; see `KMeans.fit`."""
        began = time.perf_counter()
        source = self._rows(X, sample_weight, storage_options)
        task = self._task(source, began)
        from daskdml.estimators.clustering_fitting import fit_minibatch

        found = fit_minibatch(source, task, self._solver(task, self.max_iter))
        self._take(found, source)
        assert found.state is not None
        self._state, self._epochs = found.state, self.n_iter_
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, storage_options: Any = None
    ) -> MiniBatchKMeans:
        """Go on with one epoch over some rows; the first call seeks centers among its own.

        Parameters
        ----------
        X, sample_weight, storage_options
            As for `fit`; the first call needs as many rows as clusters.
        y : None
            Ignored.

        Returns
        -------
        self
        """
        began = time.perf_counter()
        goes_on = hasattr(self, "cluster_centers_")
        source = self._rows(X, sample_weight, storage_options, reset=not goes_on)
        task = self._task(source, began, goes_on)
        from daskdml.estimators.clustering_fitting import walk_once

        epochs = self._epochs if goes_on else 0
        state = self._state if goes_on else None
        self._state, attributes = walk_once(source, task, self._solver(task, 1, epochs), state)
        self._keep(attributes)
        self.__dict__.pop("inertia_", None)
        self.cluster_centers_, self._epochs = self._state.centers, epochs + 1
        self.labels_ = self._labels_of(source)
        return self

    def _solver(self, task: ClusterTask, max_iter: int, first_epoch: int = 0) -> MiniBatch:
        from daskdml.solvers.minibatch import MiniBatch

        return MiniBatch(self.batch_size, max_iter, self.tol, task.seed, first_epoch)

    def to_sklearn(self) -> Any:
        """The plain scikit-learn estimator with these centers."""
        from sklearn.cluster import MiniBatchKMeans as Plain

        return self._plain(Plain(self.n_clusters, batch_size=self.batch_size))
