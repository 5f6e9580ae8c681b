"""Where arrays lie in memory, so that compiled loops give the same bits anywhere.

A vectorised loop that writes to one array while it reads another first compares their addresses.
Where these are nearer than one step of the loop (short arrays, one after the other on the heap), it
falls back to a scalar loop, which adds in another order: sums would depend on the allocator.
So such arrays lie *apart* from all others.

What comes from another process may lie anywhere, also at an odd address. NumPy copies such arrays
before it multiplies them, and the copy of a transposed one is no longer transposed: BLAS adds in
another order, and Numba compiles anew. So arrays are *aligned* where they are received.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from types import MethodType
from typing import Any

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
    inner = wide[MARGIN : MARGIN + array.size].reshape(array.shape)
    inner[...] = array
    return inner


def aligned(value: Any) -> Any:
    """The same value, with copies of those arrays in it whose numbers lie across their places.

    Looks into lists, tuples, dicts, dataclasses, partial functions and methods; where there is
    nothing to copy, it gives what it was given.

    Examples
    --------
    >>> odd = np.frombuffer(bytearray(17), np.float64, offset=1)
    >>> odd.flags.aligned, aligned([odd])[0].flags.aligned
    (False, True)
    """
    if isinstance(value, np.ndarray):
        return value if value.flags.aligned else value.copy(order="K")
    if type(value) in (list, tuple):
        parts = [aligned(part) for part in value]
        return value if _same(parts, value) else type(value)(parts)
    if type(value) is dict:
        parts = [aligned(part) for part in value.values()]
        return value if _same(parts, value.values()) else dict(zip(value, parts, strict=True))
    if isinstance(value, partial):
        whole = value.func, value.args, value.keywords
        func, args, keywords = parts = [aligned(part) for part in whole]
        return value if _same(parts, whole) else partial(func, *args, **keywords)
    if isinstance(value, MethodType):
        owner = aligned(value.__self__)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _aligned_fields(value)
    return value


def _aligned_fields(value: Any) -> Any:
    names = [field.name for field in dataclasses.fields(value)]
    before = [getattr(value, name, None) for name in names]
    parts = [aligned(part) for part in before]
    if _same(parts, before):
        return value
    other = copy.copy(value)
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(other, name, part)
    return other


def _same(parts: Any, others: Any) -> bool:
    return all(a is b for a, b in zip(parts, others, strict=True))
