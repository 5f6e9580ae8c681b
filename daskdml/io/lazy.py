"""A data set seen as Dask arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from daskdml.io.dataset import Dataset

__all__ = ["dask_arrays"]


def _read_part(ds: Dataset, part: str, block_id: tuple[int, ...]) -> np.ndarray:
    """Read one part of the rows between two chunk bounds of a view."""
    start, stop = ds.chunk_bounds[block_id[0] : block_id[0] + 2]
    rows: np.ndarray = getattr(ds.read(start, stop, (part,))[0], part)
    return rows


def dask_arrays(ds: Dataset) -> tuple[Any, Any]:
    """Give X and y (or None) of a data set as Dask arrays, chunked as the view is stored."""
    import dask.array as da

    rows = tuple(np.diff(ds.chunk_bounds).tolist())

    def lazy(part: str, *chunks: tuple[int, ...]) -> Any:
        dtype = ds.dtype_of(part)
        return da.map_blocks(
            _read_part,
            name=f"read-{part}-{ds.token}",
            chunks=chunks,
            dtype=dtype,
            meta=np.empty((0,) * len(chunks), dtype),
            ds=ds,
            part=part,
        )

    return lazy("X", rows, (ds.n_features,)), lazy("y", rows) if ds.has_y else None
