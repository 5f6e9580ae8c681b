"""The unit of work of every floor above: some rows, their targets and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Block:
    """Some consecutive rows of a data set.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        C-contiguous rows, in the data set's own dtype.
    y : ndarray of shape (n,) or None
        Targets, as stored.
    sample_weight : ndarray of shape (n,) or None
        Weights of the rows; None means that each weighs 1.
    start : int
        Number of the first row within all rows.

    Examples
    --------
    >>> import numpy as np
    >>> Block(np.zeros((3, 2)), np.arange(3), None).n_rows
    3
    """

    X: np.ndarray
    y: np.ndarray | None
    sample_weight: np.ndarray | None
    start: int = 0

    @property
    def n_rows(self) -> int:
        """Rows in the block."""
        return int(self.X.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes the block's arrays hold."""
        return sum(a.nbytes for a in (self.X, self.y, self.sample_weight) if a is not None)


@lru_cache(maxsize=4)
def unit_weights(n: int) -> np.ndarray:
    """Ones (n,), float64, shared by all blocks of n rows: to be read, not written to.

    Fresh memory for each block would cost more than the ones themselves.
    """
    return np.ones(n)
