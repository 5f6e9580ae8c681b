"""Arrays that lie apart from all others, so that compiled loops give the same bits anywhere.

A vectorised loop that writes to one array while it reads another first compares their addresses.
Where these are nearer than one step of the loop (short arrays, one after the other on the heap), it
falls back to a scalar loop, which adds in another order: sums would depend on the allocator.
"""

from __future__ import annotations

import numpy as np

MARGIN = 64  # numbers on either side: more than the widest unrolled step


def copy_apart(array: np.ndarray) -> np.ndarray:
    """A C-contiguous float64 copy with a margin around it.

    Examples
    --------
    >>> copy_apart(np.eye(2))
    array([[1., 0.],
           [0., 1.]])
    """
    wide = np.empty(array.size + 2 * MARGIN)
    copy = wide[MARGIN : MARGIN + array.size].reshape(array.shape)
    copy[...] = array
    return copy
