"""What SGDClassifier and SGDRegressor share: parameters, fit and partial_fit."""

from __future__ import annotations

import time
import warnings
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions

from daskdml.estimators.base import LinearEstimator
from daskdml.kernels.losses import LOSSES, Loss
from daskdml.kernels.sgd import LEARNING_RATES, SGDConfig
from daskdml.kernels.targets import LabelSummary, Targets

if TYPE_CHECKING:
    from daskdml.estimators.sgd_fitting import SGDFitted
    from daskdml.io.sources import AnySource


class SGDEstimator(LinearEstimator):
    """What both share: parameters, fit and partial_fit."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "penalty": [StrOptions({"l2", "l1", "elasticnet"}), None],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both"), None],
        "fit_intercept": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "learning_rate": [StrOptions(set(LEARNING_RATES))],
        "eta0": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "average": [Interval(Integral, 0, None, closed="neither"), "boolean"],
        "n_replicas": [Interval(Integral, 1, None, closed="left"), None],
        "staleness": [Interval(Integral, 0, None, closed="left")],
        "certify": ["boolean"],
    }

    def _loss(self) -> Loss:
        return LOSSES[self.loss]

    def _config(self, n_models: int = 1, class_weights: Any = None) -> SGDConfig:
        if self.penalty == "elasticnet" and self.l1_ratio is None:
            raise ValueError("l1_ratio must be set when penalty is 'elasticnet'")
        return SGDConfig(
            loss=self._loss(),
            penalty=self.penalty,
            alpha=float(self.alpha),
            l1_ratio=0.0 if self.l1_ratio is None else float(self.l1_ratio),
            fit_intercept=self.fit_intercept,
            learning_rate=self.learning_rate,
            eta0=float(self.eta0),
            power_t=float(self.power_t),
            average=self.average,
            class_weights=None if class_weights is None else tuple(map(float, class_weights)),
            n_models=n_models,
        )

    def _describe(self, found: LabelSummary | None) -> tuple[SGDConfig, Targets]:
        return self._config(), Targets()

    def _options(self) -> dict[str, Any]:
        from daskdml.estimators.fitting import fit_seed

        seed = fit_seed(self.random_state)
        names = ("tol", "n_iter_no_change", "staleness", "shuffle")
        return {name: getattr(self, name) for name in names} | {"seed": seed}

    def _fit(
        self, X: Any, y: Any, coef_init: Any, intercept_init: Any, sample_weight: Any, options: Any
    ) -> Any:
        began = time.perf_counter()
        self._config()
        source = self._source(X, y, sample_weight, options)
        from daskdml.estimators.fitting import remember_start, warm_from

        known = (self.coef_, self.intercept_) if hasattr(self, "coef_") else None
        known = warm_from(self, known) if self.warm_start else None
        if known is not None:
            coef_init = known[0] if coef_init is None else coef_init
            intercept_init = known[1] if intercept_init is None else intercept_init

        def start(config: SGDConfig) -> np.ndarray | None:
            if coef_init is None and intercept_init is None:
                return None
            shape = (config.n_models, source.n_features)
            coef = _shaped("coef_init", coef_init, shape)
            return np.column_stack([coef, _shaped("intercept_init", intercept_init, shape[:1])])

        fitted = self._run(
            source,
            start,
            began,
            self.get_params() | {"start": (coef_init, intercept_init)},
            max_iter=self.max_iter,
            held_share=self.validation_fraction if self.early_stopping else None,
            certify=self.certify,
        )
        self._epochs = fitted.solution.n_iter
        remember_start(self, known, fitted.solution.interrupted)
        ended = fitted.solution.converged or fitted.solution.interrupted
        if self.tol is not None and not ended:
            warnings.warn(
                f"the fit stopped before convergence: {fitted.solution.reason}; raise max_iter or "
                "tol, or standardise the features",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, options: Any) -> Any:
        began = time.perf_counter()
        if self.early_stopping:
            raise ValueError("early_stopping should be False with partial_fit")
        goes_on = hasattr(self, "coef_")
        source = self._source(X, y, sample_weight, options, reset=not goes_on)
        self._epochs = getattr(self, "_epochs", 0)
        first = self._state if goes_on else None
        epoch = {"max_iter": 1, "first": first, "first_epoch": self._epochs}
        self._run(source, lambda config: None, began, None, **epoch)
        self._epochs += 1
        self.__dict__.pop("_interrupted", None)
        return self

    def _run(
        self, source: AnySource, start: Any, began: float, parameters: dict[str, Any] | None,
        **options: Any,
    ) -> SGDFitted:  # fmt: skip
        from daskdml.estimators.sgd_fitting import SGDTask, fit_sgd

        scan = is_classifier(self) and "first_epoch" not in options
        task = SGDTask(
            type(self).__name__.lower(), scan, self._describe, self.n_replicas,
            self._options() | options, began, parameters, start,
        )  # fmt: skip
        fitted = fit_sgd(source, task)
        self.__dict__.pop("certificate_", None)
        self._keep(fitted.attributes)
        self._state = fitted.state
        self.t_ = float(fitted.state.t)
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        return fitted

    def _plain(self, kind: type, *names: str) -> Any:
        """A plain scikit-learn estimator that can go on from here, too."""
        mine = self.get_params()
        shared = {k: v for k, v in mine.items() if k in kind().get_params()}
        plain = self._copy_fitted(kind(**shared), "t_", *names)
        averages, mean = self._state.averages, self._state.average_coef
        if averages is not None and mean is not None:
            shape = np.shape(self.coef_) if len(self._state.coef) > 1 else (-1,)
            plain._standard_coef = self._state.coef.reshape(shape)
            plain._standard_intercept = self._state.intercept.copy()
            plain._average_coef = mean.reshape(shape)
            plain._average_intercept = averages.intercept.copy()
        return plain


def _shaped(name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    if given is None:
        return np.zeros(shape)
    array = np.asarray(given, dtype=np.float64)
    if array.size != int(np.prod(shape)) or (array.ndim > 1 and array.shape != shape):
        raise ValueError(
            f"{name} has shape {array.shape}, but this data needs {shape}; pass such an array, or "
            "set warm_start=False"
        )
    return array.reshape(shape)
