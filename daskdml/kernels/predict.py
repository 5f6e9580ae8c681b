"""Rows -> scores -> predictions of a linear model, and what they are worth, block by block.

Workers run these: they need no estimator, and nothing of scikit-learn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from daskdml.kernels.block import Block
from daskdml.kernels.linear import scores
from daskdml.kernels.metrics import Accuracy, Determination
from daskdml.kernels.targets import check_rows, row_weights


def array_token(array: np.ndarray) -> tuple[str, tuple[int, ...], str]:
    """What tells an array from others; Dask would take its repr, which leaves out numbers.

    Examples
    --------
    >>> array_token(np.array([1.0, 2.0]))[:2]
    ('<f8', (2,))
    """
    data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return array.dtype.str, array.shape, hashlib.sha256(data).hexdigest()


class Predict:
    """Rows (n, d) -> ``decide(scores)``; picklable.

    Parameters
    ----------
    coef : ndarray of shape (K, d)
    intercept : ndarray of shape (K,)
    decide : callable
        Scores (n, K), float64 -> predictions (n,) or (n, m).

    Examples
    --------
    >>> Predict(np.array([[2.0]]), np.array([1.0]), one_or_many)(np.array([[1.0], [3.0]]))
    array([3., 7.])
    """

    __name__ = "predict"  # of the tasks, on the dashboard

    def __init__(self, coef: np.ndarray, intercept: np.ndarray, decide: Callable[..., Any]) -> None:
        self.coef, self.intercept, self.decide = coef, np.array(intercept), decide

    def __dask_tokenize__(self) -> Any:
        how = self.decide
        name, extra = getattr(how, "func", how).__name__, getattr(how, "keywords", {})
        more = [(key, array_token(np.asarray(extra[key]))) for key in sorted(extra)]
        return name, array_token(self.coef), array_token(self.intercept), more

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Predictions of rows X; a `DataError` names the first that is not finite."""
        z = scores(np.ascontiguousarray(X), self.coef, self.intercept)
        if not np.isfinite(z).all():
            check_rows(X)
        return np.asarray(self.decide(z))


def one_or_many(z: np.ndarray) -> np.ndarray:
    """Scores (n, 1) as (n,), others as they are."""
    return z[:, 0] if z.shape[1] == 1 else z


def as_they_are(z: np.ndarray) -> np.ndarray:
    """Scores (n, K)."""
    return z


def decide_labels(z: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Labels of the largest scores (n, K), or of the sign of one score (n, 1)."""
    index = (z[:, 0] > 0).astype(np.intp) if z.shape[1] == 1 else z.argmax(axis=1)
    return np.asarray(classes[index])


def probabilities(z: np.ndarray) -> np.ndarray:
    """Probabilities (n, 2) or (n, K) of the logistic or the multinomial model."""
    if z.shape[1] == 1:
        p = expit(z[:, 0])
        return np.column_stack([1 - p, p])
    return np.asarray(softmax(z, axis=1))


def _shares(p: np.ndarray) -> np.ndarray:
    """One problem's probabilities (n, 1), or several's (n, K), as shares of the classes."""
    if p.shape[1] == 1:
        return np.column_stack([1.0 - p[:, 0], p[:, 0]])
    total = p.sum(axis=1, keepdims=True)
    return np.where(total > 0, p / np.where(total > 0, total, 1.0), 1.0 / p.shape[1])


def logistic_shares(z: np.ndarray) -> np.ndarray:
    """Probabilities of one logistic model for each class against the others, made to add to 1."""
    return _shares(expit(z))


def clipped_shares(z: np.ndarray) -> np.ndarray:
    """Probabilities for the modified Huber loss: scores clipped to [-1, 1], made to add to 1."""
    return _shares((np.clip(z, -1.0, 1.0) + 1.0) / 2.0)


@dataclass(frozen=True)
class ScoreOf:
    """Block -> `Accuracy` or `Determination` of its predictions."""

    rows: Predict
    classification: bool

    def __call__(self, block: Block) -> Accuracy | Determination:
        """Score a block's predictions."""
        assert block.y is not None
        kind = Accuracy if self.classification else Determination
        return kind.of(block.y, self.rows(block.X), row_weights(block, block.n_rows))


@dataclass(frozen=True)
class Codes:
    """Rows -> index of each predicted label, for labels that Zarr has no settled dtype for."""

    rows: Predict
    classes: np.ndarray

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Indices of the labels predicted for rows X."""
        return np.searchsorted(self.classes, self.rows(X)).astype(np.int32)
