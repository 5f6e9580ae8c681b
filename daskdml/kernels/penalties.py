"""Penalties of the coefficients: value, gradient where there is one, and proximal step.

A penalty has no strength of its own: an objective multiplies it by one, and so does the step
size that `prox` is given. Intercepts are not penalised: keep them out of `w`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np


def _soft_threshold(w: np.ndarray, t: float) -> np.ndarray:
    return np.sign(w) * np.maximum(np.abs(w) - t, 0.0)


@dataclass(frozen=True)
class L2:
    """Half of the squared Euclidean norm, ``|w|^2 / 2``.

    Examples
    --------
    >>> import numpy as np
    >>> L2().value(np.array([3.0, 4.0]))
    12.5
    """

    has_gradient: ClassVar[bool] = True

    def value(self, w: np.ndarray) -> float:
        """The penalty of all entries of `w`, of any shape."""
        return 0.5 * float(np.vdot(w, w))

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Gradient of the penalty, in the shape of `w`."""
        return w.copy()

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        """Minimiser over v of ``value(v) + |v - w|^2 / (2 t)``, in the shape of `w`."""
        return w / (1.0 + t)


@dataclass(frozen=True)
class L1:
    """Sum of absolute values, ``|w|_1``.

    Examples
    --------
    >>> import numpy as np
    >>> L1().prox(np.array([3.0, -0.5]), 1.0)
    array([ 2., -0.])
    """

    has_gradient: ClassVar[bool] = False

    def value(self, w: np.ndarray) -> float:
        """The penalty of all entries of `w`, of any shape."""
        return float(np.abs(w).sum())

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        """Minimiser over v of ``value(v) + |v - w|^2 / (2 t)``, in the shape of `w`."""
        return _soft_threshold(w, t)


@dataclass(frozen=True)
class ElasticNet:
    """Mixture of both, ``l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2``.

    Parameters
    ----------
    l1_ratio : float in [0, 1]
        Share of the L1 penalty.

    Raises
    ------
    ValueError
        If `l1_ratio` lies outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> ElasticNet(0.5).value(np.array([3.0, -4.0]))
    9.75
    """

    l1_ratio: float = 0.15

    has_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.l1_ratio <= 1.0:
            raise ValueError(
                f"l1_ratio is {self.l1_ratio!r}, but must be in [0, 1]; pass such a number."
            )

    def value(self, w: np.ndarray) -> float:
        """The penalty of all entries of `w`, of any shape."""
        return self.l1_ratio * L1().value(w) + (1.0 - self.l1_ratio) * L2().value(w)

    def prox(self, w: np.ndarray, t: float) -> np.ndarray:
        """Minimiser over v of ``value(v) + |v - w|^2 / (2 t)``, in the shape of `w`."""
        return L2().prox(_soft_threshold(w, t * self.l1_ratio), t * (1.0 - self.l1_ratio))


Penalty = L2 | L1 | ElasticNet
