"""Training and test rows of a data set, as views."""

from __future__ import annotations

import math

import numpy as np

from daskdml.io.dataset import Dataset
from daskdml.io.views import Pick

__all__ = ["draw_seed", "train_test_split"]


def train_test_split(
    ds: Dataset,
    test_size: float | int = 0.25,
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    shuffle: bool = True,
) -> tuple[Dataset, Dataset]:
    """Split a data set into two views, without copying or reading it.

    Parameters
    ----------
    ds : Dataset
        May be a view itself.
    test_size : float or int
        A share of the rows (rounded up) or their number.
    random_state : int, numpy.random.Generator, numpy.random.RandomState or None
        Seed of the choice; None takes a new one.
    shuffle : bool
        Choose test rows at random within each stored chunk, so that a pass over either view reads
        every chunk once; else the last rows are the test rows.

    Returns
    -------
    train, test : Dataset
        Every row of `ds` is in exactly one of them, in stored order.

    Examples
    --------
    >>> import daskdml.io, numpy as np
    >>> ds = daskdml.io.write_dataset("memory://doc.zarr", np.eye(10), overwrite=True)
    >>> train, test = train_test_split(ds, test_size=0.3, random_state=0)
    >>> len(train), len(test)
    (7, 3)
    """
    n_test = _count_test(ds.n_rows, test_size)
    if not shuffle:
        return ds[: ds.n_rows - n_test], ds[ds.n_rows - n_test :]
    seed = draw_seed(random_state)
    return ds.then(Pick(seed, n_test, False)), ds.then(Pick(seed, n_test, True))


def _count_test(n_rows: int, test_size: float | int) -> int:
    whole = isinstance(test_size, int | np.integer) and not isinstance(test_size, bool)
    n_test = int(test_size) if whole else math.ceil(float(test_size) * n_rows)
    if not 0 < n_test < n_rows or not (whole or 0 < test_size < 1):
        raise ValueError(
            f"test_size={test_size} of {n_rows} rows leaves one side empty or is no share; give a "
            "number of rows, or a share between 0 and 1"
        )
    return n_test


def draw_seed(random_state: int | np.random.Generator | np.random.RandomState | None) -> int:
    """A seed from what scikit-learn calls a random state."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, int | np.integer):
        if random_state < 0:
            raise ValueError(f"random_state={random_state} is negative; give a number from 0 up")
        return int(random_state)
    return int(np.random.default_rng(random_state).integers(2**63))
