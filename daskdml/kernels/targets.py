"""From what a data set stores to what a loss takes: labels to codes, weights to float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.kernels.block import Block, unit_weights

COUNTED = 1000  # range of integer labels up to which they are counted, not sorted


class DataError(ValueError):
    """Rows that a fit cannot use; `row` counts from the block's first row.

    `check` raises it for rows X that are no better, where that is not `check_rows`.
    """

    def __init__(
        self, what: str, row: int, column: int | None = None,
        check: Callable[[np.ndarray], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(what, row, column, check)
        self.what, self.row, self.column, self.check = what, row, column, check

    def later(self, rows: int) -> DataError:
        """The same so many rows further on."""
        return DataError(self.what, self.row + rows, self.column, self.check)


def explain(error: DataError, name: str, feature_names: Any) -> str:
    """What is wrong with which row of the rows called `name`, and the cure."""
    where = f"first in row {error.row}"
    if error.column is not None:
        column = "" if feature_names is None else f" ({feature_names[error.column]!r})"
        where += f", column {error.column}{column}"
    return f"{error.what}: {where} of {name}; mend or leave out such rows"


@dataclass(frozen=True)
class LabelSummary:
    """What a scan of the targets found; summaries add.

    Parameters
    ----------
    values : ndarray of shape (k,) or None
        The distinct targets (None for a regression).
    counts, weights : ndarray of shape (k,)
        Rows and sums of weights of each of `values` (of all rows for a regression).
    power : float
        Sum of weight * square of the target, of a regression.
    """

    values: np.ndarray | None
    counts: np.ndarray
    weights: np.ndarray
    power: float = 0.0

    def __add__(self, other: LabelSummary) -> LabelSummary:
        if self.values is None or other.values is None:
            counts, weights = self.counts + other.counts, self.weights + other.weights
            return LabelSummary(None, counts, weights, self.power + other.power)
        values = np.union1d(self.values, other.values)
        counts, weights = np.zeros(len(values)), np.zeros(len(values))
        for found, part in ((self.values, self), (other.values, other)):
            at = np.searchsorted(values, found)
            counts[at] += part.counts
            weights[at] += part.weights
        return LabelSummary(values, counts, weights)


def row_weights(block: Block, n: int) -> np.ndarray:
    """The block's weights, shape (n,), float64; raises `DataError` on NaN, inf or negatives."""
    if block.sample_weight is None:
        return unit_weights(n)
    s = np.asarray(block.sample_weight, dtype=np.float64)
    bad = ~(np.isfinite(s) & (s >= 0))
    if bad.any():
        raise DataError("sample_weight is negative, NaN or infinite", int(bad.argmax()))
    return s


def _check_finite(y: np.ndarray) -> None:
    if y.dtype.kind == "f":
        bad = ~np.isfinite(y)
        if bad.any():
            kind = "NaN" if np.isnan(y[bad.argmax()]) else "infinity"
            raise DataError(f"Input y contains {kind}", int(bad.argmax()))


def check_targets(block: Block) -> None:
    """Raise `DataError` at the first target or weight of a block that cannot be used."""
    row_weights(block, block.n_rows)
    if block.y is not None:
        _check_finite(block.y)


def summarise_labels(block: Block, classification: bool) -> LabelSummary:
    """Distinct targets of a block with their counts and weights.

    Examples
    --------
    >>> import numpy as np
    >>> b = Block(np.zeros((3, 0)), np.array(["b", "a", "b"]), None)
    >>> summarise_labels(b, classification=True).counts
    array([1., 2.])
    """
    assert block.y is not None
    y = block.y
    _check_finite(y)
    s = row_weights(block, len(y))
    if not classification:
        power = float(s @ np.square(y, dtype=np.float64))
        return LabelSummary(None, np.array([float(len(y))]), np.array([s.sum()]), power)
    if y.dtype.kind in "iu" and len(y) and int(y.max()) - int(y.min()) <= COUNTED:
        return _count_labels(y, None if block.sample_weight is None else s)
    values, at, counts = np.unique(y, return_inverse=True, return_counts=True)
    return LabelSummary(values, counts.astype(np.float64), np.bincount(at, s, len(values)))


def _count_labels(y: np.ndarray, s: np.ndarray | None) -> LabelSummary:
    """Summary of integer labels of a small range, without sorting them."""
    low, span = int(y.min()), int(y.max()) - int(y.min()) + 1
    counts, weights = np.zeros(span), np.zeros(span)
    for start in range(0, len(y), 65_536):
        at = y[start : start + 65_536].astype(np.int64) - low
        part = np.bincount(at, minlength=span)
        counts += part
        weights += part if s is None else np.bincount(at, s[start : start + 65_536], span)
    found = np.flatnonzero(counts)
    return LabelSummary((found + low).astype(y.dtype), counts[found], weights[found])


@dataclass(frozen=True)
class Targets:
    """Turns a block's targets and weights into what losses take.

    Parameters
    ----------
    classes : ndarray of shape (k,) or None
        Sorted labels; None for a regression. Two labels become -1 and +1, more their index.
    class_weight : ndarray of shape (k,) or None
        Factor of each class's rows.

    Examples
    --------
    >>> import numpy as np
    >>> t = Targets(np.array(["no", "yes"]))
    >>> t.prepare(Block(np.zeros((2, 1)), np.array(["yes", "no"]), None))[0]
    array([ 1, -1], dtype=int8)
    """

    classes: np.ndarray | None = None
    class_weight: np.ndarray | None = None

    def prepare(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Targets (n,) and float64 weights (n,) of a block.

        Targets are -1 and 1 in int8, class indices in int64, or float64 numbers.
        """
        assert block.y is not None
        s = row_weights(block, block.n_rows)
        if self.classes is None:
            _check_finite(block.y)
            return np.asarray(block.y, dtype=np.float64), s
        index = self.index(block.y)
        codes = index if len(self.classes) > 2 else 2 * index - 1
        return codes, s if self.class_weight is None else s * self.class_weight[index]

    def index(self, y: np.ndarray) -> np.ndarray:
        """Index of each label in `classes`, shape (n,): int8 for two classes, else int64.

        Unknown labels raise `DataError`.
        """
        assert self.classes is not None
        if len(self.classes) == 2:
            at = (y == self.classes[1]).view(np.int8)
            unknown = (y != self.classes[0]) & (at == 0)
        else:
            at = np.minimum(np.searchsorted(self.classes, y), len(self.classes) - 1)
            unknown = self.classes[at] != y
        if np.any(unknown):
            row = int(np.argmax(unknown))
            raise DataError(f"y contains the label {y[row]!r}, which is not among the classes", row)
        return at


def check_rows(X: np.ndarray) -> None:
    """Raise `DataError` at the first NaN or infinity of X (n, d)."""
    for start in range(0, X.shape[0], 4096):
        slab = X[start : start + 4096]
        if not np.isfinite(slab).all():
            row, column = np.argwhere(~np.isfinite(slab))[0]
            kind = "NaN" if np.isnan(slab[row, column]) else "infinity"
            raise DataError(f"Input X contains {kind}", start + int(row), int(column))


def check_nonnegative(X: np.ndarray) -> None:
    """Raise `DataError` at the first negative value, NaN or infinity of X (n, d)."""
    for start in range(0, X.shape[0], 4096):
        slab = X[start : start + 4096]
        if slab.min(initial=0) >= 0 and slab.max(initial=0) < np.inf:
            continue
        row, column = (int(at) for at in np.argwhere(~((slab >= 0) & (slab < np.inf)))[0])
        if slab[row, column] < 0:
            what = "Negative values in data passed to NMF"
            raise DataError(what, start + row, column, check_nonnegative)
        kind = "NaN" if np.isnan(slab[row, column]) else "infinity"
        raise DataError(f"Input X contains {kind}", start + row, column, check_nonnegative)
