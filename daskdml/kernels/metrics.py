"""Scores of predictions as sums over blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Share of rows, by weight, whose label is predicted; accuracies add.

    Examples
    --------
    >>> a = Accuracy.of(np.array([1, 2]), np.array([1, 1]), np.ones(2))
    >>> (a + a).score
    0.5
    """

    weight: float
    right: float

    @classmethod
    def of(cls, y: np.ndarray, predicted: np.ndarray, s: np.ndarray) -> Accuracy:
        """Of labels y (n,), predictions (n,) and weights s (n,)."""
        return cls(float(s.sum()), float(s[y == predicted].sum()))

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.weight + other.weight, self.right + other.right)

    @property
    def score(self) -> float:
        """The accuracy of all rows added so far."""
        return self.right / self.weight


@dataclass(frozen=True)
class Determination:
    """Coefficient of determination R^2 (means and deviations after Chan et al. 1983); they add.

    Examples
    --------
    >>> y = np.array([0.0, 2.0])
    >>> (Determination.of(y, y, np.ones(2)) + Determination.of(y + 4, y + 4, np.ones(2))).score
    1.0
    """

    weight: float
    mean: float
    m2: float
    residual: float

    @classmethod
    def of(cls, y: np.ndarray, predicted: np.ndarray, s: np.ndarray) -> Determination:
        """Of targets y (n,), predictions (n,) and weights s (n,)."""
        y, weight = np.asarray(y, dtype=np.float64), float(s.sum())
        mean = float(s @ y) / weight if weight else 0.0
        return cls(weight, mean, float(s @ (y - mean) ** 2), float(s @ (y - predicted) ** 2))

    def __add__(self, other: Determination) -> Determination:
        weight = self.weight + other.weight
        delta = other.mean - self.mean
        share = other.weight / weight if weight else 0.0
        m2 = self.m2 + other.m2 + delta**2 * self.weight * share
        return Determination(weight, self.mean + delta * share, m2, self.residual + other.residual)

    @property
    def score(self) -> float:
        """R^2 of all rows added so far; as scikit-learn, 1 or 0 where y is constant."""
        if self.m2 == 0:
            return 1.0 if self.residual == 0 else 0.0
        return 1.0 - self.residual / self.m2
