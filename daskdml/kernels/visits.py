"""Which rows a sweep visits, in which order, and what they weigh."""

from __future__ import annotations

import numpy as np

from daskdml.kernels.block import unit_weights


def visits(
    n: int, order: np.ndarray | None, sample_weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, int64, and weights (n,), float64, of a sweep over a block of n rows.

    Raises
    ------
    ValueError
        If the order leaves the block, or the weights are not one for each row.

    Examples
    --------
    >>> visits(2, None, None)
    (array([0, 1]), array([1., 1.]))
    """
    order = np.arange(n) if order is None else np.ascontiguousarray(order, dtype=np.int64)
    if order.size and not (order.min() >= 0 and order.max() < n):
        raise ValueError(f"order visits rows outside 0..{n - 1}; pass row numbers of this block.")
    weight = unit_weights(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weight.shape != (n,):
        raise ValueError(
            f"sample_weight has shape {weight.shape}, but the block has {n} rows; pass "
            f"one weight for every row."
        )
    return order, weight
