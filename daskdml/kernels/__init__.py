"""Floor 0: pure functions of one block. NumPy, SciPy and Numba; no Dask, no I/O."""
