"""Losses of one prediction: value, slope and curvature in z, and the convex conjugate.

A loss sees a target ``y`` and a linear predictor ``z``, never the features. Each formula is
written once, as a compiled scalar function selected by an integer ``code`` and one number
``param``, so that the kernels fuse it into their sweeps over the rows; the dataclasses apply the
same scalars to arrays.

The names, scales and tie-breaks are those of scikit-learn's SGD estimators. Classification
losses take ``y`` in {-1, +1}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from daskdml.kernels.compiled import inlined, kernel

SQUARED, LOGISTIC, HINGE, SQUARED_HINGE, MODIFIED_HUBER = 0, 1, 2, 3, 4
HUBER, EPSILON_INSENSITIVE, SQUARED_EPSILON_INSENSITIVE = 5, 6, 7


@inlined()
def _log1p(e: float) -> float:
    """Logarithm of 1 + e to full relative accuracy [1]_, at half the price of ``math.log1p``.

    References
    ----------
    .. [1] D. Goldberg, "What every computer scientist should know about floating-point
       arithmetic", ACM Computing Surveys 23(1), 1991, theorem 4.
    """
    u = 1.0 + e
    return e if u == 1.0 else math.log(u) * (e / (u - 1.0))


@inlined()
def value_and_slope(code: int, param: float, y: float, z: float) -> tuple[float, float]:
    """Loss of the prediction `z` for the target `y`, and its derivative in `z`.

    A subgradient at a kink; compiled scalar function.
    """
    if code == LOGISTIC:
        m = y * z
        e = math.exp(-abs(m))
        return max(-m, 0.0) + _log1p(e), -y * (e if m > 0.0 else 1.0) / (1.0 + e)
    if code == SQUARED:
        return 0.5 * (z - y) * (z - y), z - y
    if code == HINGE:
        return max(param - y * z, 0.0), -y if y * z <= param else 0.0
    if code == SQUARED_HINGE:
        short = max(1.0 - y * z, 0.0)
        return short * short, -2.0 * y * short
    if code == MODIFIED_HUBER:
        m = y * z
        if m < -1.0:
            return -4.0 * m, -4.0 * y
        short = max(1.0 - m, 0.0)
        return short * short, -2.0 * y * short
    r = z - y
    within = min(max(r, -param), param)
    if code == HUBER:
        return within * (r - 0.5 * within), within
    over = r - within
    if code == EPSILON_INSENSITIVE:
        return abs(over), 0.0 if over == 0.0 else math.copysign(1.0, over)
    return over * over, 2.0 * over


@inlined()
def value(code: int, param: float, y: float, z: float) -> float:
    """Loss of the prediction `z` for the target `y`; compiled scalar function."""
    return value_and_slope(code, param, y, z)[0]


@inlined()
def slope(code: int, param: float, y: float, z: float) -> float:
    """Derivative of `value` in `z` (a subgradient at a kink); compiled scalar function."""
    return value_and_slope(code, param, y, z)[1]


@inlined()
def curvature(code: int, param: float, y: float, z: float) -> float:
    """Second derivative of `value` in `z`, 0 at its jumps' flat side; compiled scalar function."""
    if code == LOGISTIC:
        e = math.exp(-abs(z))
        return e / ((1.0 + e) * (1.0 + e))
    if code == SQUARED:
        return 1.0
    if code in (HINGE, EPSILON_INSENSITIVE):
        return 0.0
    if code == SQUARED_HINGE:
        return 2.0 if y * z < 1.0 else 0.0
    if code == MODIFIED_HUBER:
        return 2.0 if -1.0 <= y * z < 1.0 else 0.0
    if code == HUBER:
        return 1.0 if abs(z - y) <= param else 0.0
    return 2.0 if abs(z - y) > param else 0.0


@inlined()
def conjugate(code: int, param: float, y: float, u: float) -> float:
    """Convex conjugate ``sup_z u z - value(y, z)``, inf outside its domain; compiled scalar."""
    if code == SQUARED:
        return u * y + 0.5 * u * u
    if code == HUBER:
        return u * y + 0.5 * u * u if abs(u) <= param else np.inf
    if code == EPSILON_INSENSITIVE:
        return u * y + param * abs(u) if abs(u) <= 1.0 else np.inf
    if code == SQUARED_EPSILON_INSENSITIVE:
        return u * y + param * abs(u) + 0.25 * u * u
    a = -u * y
    if a < 0.0:
        return np.inf
    if code == LOGISTIC:
        if a > 1.0:
            return np.inf
        left = a * math.log(a) if a > 0.0 else 0.0
        return left + ((1.0 - a) * math.log1p(-a) if a < 1.0 else 0.0)
    if code == HINGE:
        return -a * param if a <= 1.0 else np.inf
    if code == MODIFIED_HUBER and a > 4.0:
        return np.inf
    return a * (0.25 * a - 1.0)


@kernel()
def _values(code: int, param: float, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    out = np.empty(z.size)
    for i in range(z.size):
        out[i] = value(code, param, y[i], z[i])
    return out


@kernel()
def _slopes(code: int, param: float, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    out = np.empty(z.size)
    for i in range(z.size):
        out[i] = slope(code, param, y[i], z[i])
    return out


@kernel()
def _curvatures(code: int, param: float, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    out = np.empty(z.size)
    for i in range(z.size):
        out[i] = curvature(code, param, y[i], z[i])
    return out


@kernel()
def _conjugates(code: int, param: float, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    out = np.empty(u.size)
    for i in range(u.size):
        out[i] = conjugate(code, param, y[i], u[i])
    return out


def _pair(y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = np.ascontiguousarray(y, dtype=np.float64)
    z = np.ascontiguousarray(z, dtype=np.float64)
    if y.shape != z.shape or y.ndim != 1:
        raise ValueError(
            f"A loss needs targets and predictions of one shape (n,), but got {y.shape} and "
            f"{z.shape}; pass one prediction for every target."
        )
    return y, z


@dataclass(frozen=True)
class Loss:
    """A convex loss of one real prediction; the base of all scalar losses.

    Attributes
    ----------
    code : int
        Selects the formula in the compiled scalar functions of this module.
    param : float
        The one parameter of the formula; 0 where it has none.
    has_curvature : bool
        Whether the second derivative exists almost everywhere and says something: Newton's
        method needs it.
    is_classification : bool
        Whether targets are -1 and +1.
    curvature_bound : float or None
        Supremum of the curvature; None where the slope jumps.
    lower_bound : float
        No prediction has a smaller loss.
    """

    code: ClassVar[int]
    has_curvature: ClassVar[bool] = True
    is_classification: ClassVar[bool] = True
    curvature_bound: ClassVar[float | None]
    lower_bound: ClassVar[float] = 0.0

    @property
    def param(self) -> float:
        """The number that the compiled formulas take beside `code`."""
        return 0.0

    def value(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Loss of every prediction, float64 of shape (n,)."""
        return _values(self.code, self.param, *_pair(y, z))

    def slope(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Derivative in z of every prediction's loss, float64 of shape (n,)."""
        return _slopes(self.code, self.param, *_pair(y, z))

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Second derivative in z of every prediction's loss, float64 of shape (n,)."""
        return _curvatures(self.code, self.param, *_pair(y, z))

    def conjugate(self, y: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Convex conjugate ``sup_z u z - value(y, z)``, float64 of shape (n,).

        It is +inf where `u` is no slope of the loss. ``value(y, z) + conjugate(y, u) >= u z``,
        with equality at ``u = slope(y, z)``: the source of duality gaps.
        """
        return _conjugates(self.code, self.param, *_pair(y, u))


@dataclass(frozen=True)
class Squared(Loss):
    """Half of the squared error, ``(y - z)^2 / 2``.

    Examples
    --------
    >>> import numpy as np
    >>> Squared().value(np.array([1.0]), np.array([3.0]))
    array([2.])
    """

    code: ClassVar[int] = SQUARED
    is_classification: ClassVar[bool] = False
    curvature_bound: ClassVar[float | None] = 1.0


@dataclass(frozen=True)
class Logistic(Loss):
    """Negative log-likelihood of a binary label, ``log(1 + exp(-y z))``.

    Examples
    --------
    >>> import numpy as np
    >>> Logistic().slope(np.array([1.0, -1.0]), np.array([0.0, 0.0]))
    array([-0.5,  0.5])
    """

    code: ClassVar[int] = LOGISTIC
    curvature_bound: ClassVar[float | None] = 0.25


def _check_nonnegative(name: str, number: float) -> None:
    if not 0.0 <= number < math.inf:
        raise ValueError(
            f"{name} is {number!r}, but must be a finite number of at least 0; pass such a number."
        )


@dataclass(frozen=True)
class Hinge(Loss):
    """Hinge of a margin, ``max(0, margin - y z)``: 1 for the SVM, 0 for the perceptron.

    Examples
    --------
    >>> import numpy as np
    >>> Hinge().value(np.array([1.0, -1.0]), np.array([0.25, 0.25]))
    array([0.75, 1.25])
    """

    margin: float = 1.0

    code: ClassVar[int] = HINGE
    has_curvature: ClassVar[bool] = False
    curvature_bound: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        _check_nonnegative("margin", self.margin)

    @property
    def param(self) -> float:
        """The margin."""
        return float(self.margin)


@dataclass(frozen=True)
class SquaredHinge(Loss):
    """Squared hinge, ``max(0, 1 - y z)^2``.

    Examples
    --------
    >>> import numpy as np
    >>> SquaredHinge().value(np.array([1.0]), np.array([-1.0]))
    array([4.])
    """

    code: ClassVar[int] = SQUARED_HINGE
    curvature_bound: ClassVar[float | None] = 2.0


@dataclass(frozen=True)
class ModifiedHuber(Loss):
    """Squared hinge that grows linearly, as ``-4 y z``, below a margin of -1 [1]_.

    References
    ----------
    .. [1] T. Zhang, "Solving large scale linear prediction problems using stochastic gradient
       descent algorithms", ICML 2004.

    Examples
    --------
    >>> import numpy as np
    >>> ModifiedHuber().value(np.array([1.0, 1.0]), np.array([-1.0, -2.0]))
    array([4., 8.])
    """

    code: ClassVar[int] = MODIFIED_HUBER
    curvature_bound: ClassVar[float | None] = 2.0


@dataclass(frozen=True)
class Huber(Loss):
    """Half of the squared error up to an error of `epsilon`, linear beyond.

    Examples
    --------
    >>> import numpy as np
    >>> Huber(1.0).value(np.array([0.0, 0.0]), np.array([1.0, 3.0]))
    array([0.5, 2.5])
    """

    epsilon: float = 0.1

    code: ClassVar[int] = HUBER
    is_classification: ClassVar[bool] = False
    curvature_bound: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        _check_nonnegative("epsilon", self.epsilon)

    @property
    def param(self) -> float:
        """The error where the loss turns linear."""
        return float(self.epsilon)


@dataclass(frozen=True)
class EpsilonInsensitive(Loss):
    """Absolute error beyond a tube, ``max(0, |y - z| - epsilon)``.

    Examples
    --------
    >>> import numpy as np
    >>> EpsilonInsensitive(0.5).value(np.array([0.0, 0.0]), np.array([0.25, -2.0]))
    array([0. , 1.5])
    """

    epsilon: float = 0.1

    code: ClassVar[int] = EPSILON_INSENSITIVE
    has_curvature: ClassVar[bool] = False
    is_classification: ClassVar[bool] = False
    curvature_bound: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        _check_nonnegative("epsilon", self.epsilon)

    @property
    def param(self) -> float:
        """Half of the width of the tube."""
        return float(self.epsilon)


@dataclass(frozen=True)
class SquaredEpsilonInsensitive(Loss):
    """Squared error beyond a tube, ``max(0, |y - z| - epsilon)^2``.

    Examples
    --------
    >>> import numpy as np
    >>> SquaredEpsilonInsensitive(0.5).value(np.array([0.0]), np.array([-2.0]))
    array([2.25])
    """

    epsilon: float = 0.1

    code: ClassVar[int] = SQUARED_EPSILON_INSENSITIVE
    is_classification: ClassVar[bool] = False
    curvature_bound: ClassVar[float | None] = 2.0

    def __post_init__(self) -> None:
        _check_nonnegative("epsilon", self.epsilon)

    @property
    def param(self) -> float:
        """Half of the width of the tube."""
        return float(self.epsilon)


LOSSES: dict[str, Loss] = {
    "log_loss": Logistic(),
    "hinge": Hinge(),
    "perceptron": Hinge(0.0),
    "squared_hinge": SquaredHinge(),
    "modified_huber": ModifiedHuber(),
    "squared_error": Squared(),
    "huber": Huber(),
    "epsilon_insensitive": EpsilonInsensitive(),
    "squared_epsilon_insensitive": SquaredEpsilonInsensitive(),
}
"""Every scalar loss under scikit-learn's name, with scikit-learn's default parameter."""


@inlined()
def softmax(z: np.ndarray, p: np.ndarray) -> float:
    """Write the probabilities of one row's scores to p; return log(sum(exp(z))); compiled."""
    top, total = z[0], 0.0
    for k in range(1, z.size):
        top = max(top, z[k])
    for k in range(z.size):
        p[k] = math.exp(z[k] - top)
        total += p[k]
    for k in range(z.size):
        p[k] /= total
    return top + math.log(total)


@kernel()
def _softmax_values(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    out, p = np.empty(z.shape[0]), np.empty(z.shape[1])
    for i in range(z.shape[0]):
        out[i] = softmax(z[i], p) - z[i, y[i]]
    return out


@kernel()
def _softmax_rows(z: np.ndarray) -> np.ndarray:
    out = np.empty(z.shape)
    for i in range(z.shape[0]):
        softmax(z[i], out[i])
    return out


@dataclass(frozen=True)
class Multinomial:
    """Negative log-likelihood of one of K classes, ``log(sum_k exp(z_k)) - z_y``.

    `y` holds class indices 0..K-1 in shape (n,), `z` one prediction for every class in shape
    (n, K).

    Examples
    --------
    >>> import numpy as np
    >>> Multinomial().slope(np.array([1]), np.zeros((1, 4)))
    array([[ 0.25, -0.75,  0.25,  0.25]])
    """

    has_curvature: ClassVar[bool] = True
    is_classification: ClassVar[bool] = True
    curvature_bound: ClassVar[float | None] = 0.5
    lower_bound: ClassVar[float] = 0.0

    def value(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Loss of every row, float64 of shape (n,)."""
        return _softmax_values(*self._pair(y, z))

    def slope(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Gradient in z: probabilities minus the one-hot target, float64 of shape (n, K)."""
        y, z = self._pair(y, z)
        p = _softmax_rows(z)
        p[np.arange(y.size), y] -= 1.0
        return p

    def probabilities(self, z: np.ndarray) -> np.ndarray:
        """Softmax of every row, float64 of shape (n, K)."""
        return _softmax_rows(np.ascontiguousarray(z, dtype=np.float64))

    @staticmethod
    def _pair(y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = np.ascontiguousarray(y, dtype=np.int64)
        z = np.ascontiguousarray(z, dtype=np.float64)
        if y.ndim != 1 or z.ndim != 2 or y.size != z.shape[0]:
            raise ValueError(
                f"Multinomial needs class indices of shape (n,) and predictions of shape (n, K), "
                f"but got {y.shape} and {z.shape}; pass one row of predictions for every target."
            )
        if y.size and not (y.min() >= 0 and y.max() < z.shape[1]):
            raise ValueError(
                f"Multinomial got class indices {y.min()}..{y.max()}, but predictions for "
                f"{z.shape[1]} classes; encode the labels as 0..{z.shape[1] - 1}."
            )
        return y, z
