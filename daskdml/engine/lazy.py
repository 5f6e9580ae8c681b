"""Rows -> predictions as a Dask array, or streamed into a Zarr array that a rerun completes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from daskdml.io.sources import DaskSource, Source

Rows = Callable[[np.ndarray], np.ndarray]


def _probe(source: Source, fn: Rows) -> np.ndarray:
    return fn(np.zeros((1, source.n_features), source.dtype))


def _read_and_apply(block_id: tuple[int, ...], source: Source, fn: Rows, bounds: Any) -> np.ndarray:
    start, stop = bounds[block_id[0]], bounds[block_id[0] + 1]
    block, _ = source.read(start, stop, ("X",))
    return fn(block.X)


def lazy_rows(source: Source, fn: Rows) -> Any:
    """A Dask array of ``fn(rows)``, chunked as the source is stored.

    Parameters
    ----------
    source : Source
    fn : callable
        Rows (n, d) -> (n,) or (n, K).

    Returns
    -------
    dask.array.Array of shape (n_rows,) or (n_rows, K)
    """
    import dask.array as da
    from dask.base import tokenize

    sample = _probe(source, fn)
    if isinstance(source, DaskSource):
        return source.X.map_blocks(
            fn, dtype=sample.dtype, chunks=(source.X.chunks[0], *((k,) for k in sample.shape[1:])),
            drop_axis=[1] if sample.ndim == 1 else None, meta=sample[:0],
        )  # fmt: skip
    bounds = source.chunk_bounds
    chunks = (tuple(np.diff(bounds).tolist()), *((k,) for k in sample.shape[1:]))
    return da.map_blocks(
        _read_and_apply, name=f"predict-{tokenize(source.token, fn)}", chunks=chunks,
        dtype=sample.dtype, meta=sample[:0], source=source, fn=fn, bounds=bounds,
    )  # fmt: skip
