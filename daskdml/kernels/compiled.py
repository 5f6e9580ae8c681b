"""How kernels are compiled: once, into machine code that later processes load.

A function that another one calls is always inlined there. Were it left to the compiler, a caller
that does not inline it would hold a copy of its own, optimised together with the caller, and which
of the two copies runs depends on what was compiled and what was loaded in the process: with sums
that may be put in another order, that gives other last bits.
"""

from __future__ import annotations

from functools import partial

from numba import njit

REDUCTIONS = {"reassoc", "contract", "nsz", "arcp"}
"""What fast math may do to sums: infinities and NaNs stay what they are."""

# Divisions by zero give infinities, as in NumPy; checks would cost a branch.
kernel = partial(njit, cache=True, nogil=True, error_model="numpy")
"""Compile what Python calls, as ``numba.njit`` does."""

inlined = partial(kernel, forceinline=True)
"""Compile what kernels call, which becomes a part of each of them."""
