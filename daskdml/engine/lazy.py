"""Rows -> predictions as a Dask array, or streamed into a Zarr array that a rerun completes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from dask.base import tokenize
from zarr.core.sync import sync

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.io.arrays import create_array
from daskdml.io.options import StorageOptions, quiet
from daskdml.io.sources import AnySource, DaskSource, Source
from daskdml.io.store import open_store, resolve_url, retrying
from daskdml.kernels.block import Block
from daskdml.kernels.targets import DataError, explain

MIN_ROWS_BYTES = 4_000_000  # of rows read for one chunk of predictions

Rows = Callable[[np.ndarray], np.ndarray]


def _probe(source: AnySource, fn: Rows) -> np.ndarray:
    return fn(np.zeros((1, source.n_features), source.dtype))


def _read_and_apply(block_id: tuple[int, ...], source: Source, fn: Rows, bounds: Any) -> np.ndarray:
    start, stop = bounds[block_id[0]], bounds[block_id[0] + 1]
    block, _ = source.read(start, stop, ("X",))
    return _apply(block.X, fn, start, source.name, source.feature_names)


def _apply_to_block(
    X: np.ndarray, block_id: tuple[int, ...], fn: Rows, bounds: Any, source_name: str, names: Any
) -> np.ndarray:
    return _apply(X, fn, bounds[block_id[0]], source_name, names)


def _apply(X: np.ndarray, fn: Rows, start: int, name: str, names: Any) -> np.ndarray:
    try:
        return fn(X)
    except DataError as error:
        raise ValueError(explain(error.later(start), name, names)) from None


def lazy_rows(source: AnySource, fn: Rows) -> Any:
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

    sample = _probe(source, fn)
    if isinstance(source, DaskSource):
        return source.X.map_blocks(
            _apply_to_block, name=f"predict-{tokenize(source.token, fn)}", dtype=sample.dtype,
            chunks=(source.X.chunks[0], *((k,) for k in sample.shape[1:])),
            drop_axis=[1] if sample.ndim == 1 else None, meta=sample[:0],
            fn=fn, bounds=source.chunk_bounds, source_name=source.name, names=source.feature_names,
        )  # fmt: skip
    bounds = source.chunk_bounds
    chunks = (tuple(np.diff(bounds).tolist()), *((k,) for k in sample.shape[1:]))
    return da.map_blocks(
        _read_and_apply, name=f"predict-{tokenize(source.token, fn)}", chunks=chunks,
        dtype=sample.dtype, meta=sample[:0], source=source, fn=fn, bounds=bounds,
    )  # fmt: skip


@dataclass(frozen=True)
class WriteRows:
    """Block -> 1, once ``fn(rows)`` is in the chunk of the output that the block's rows have."""

    fn: Rows
    url: str
    options: StorageOptions | None

    def __call__(self, block: Block) -> int:
        """Write the block's rows."""
        rows = self.fn(block.X)
        array = zarr.open_array(open_store(self.url, self.options, read_only=False), mode="r+")
        stop = block.start + block.n_rows
        what = f"writing rows {block.start}:{stop} of {self.url}"
        retrying(lambda: array.__setitem__(slice(block.start, stop), rows), what)
        return 1


def stream_rows(
    engine: Engine, source: AnySource, fn: Rows, names: list[str] | None, out: str, options: Any
) -> zarr.Array[Any]:
    """Write ``fn(rows)`` to a Zarr array, chunk by chunk; a rerun computes what is missing.

    Parameters
    ----------
    engine : Engine
    source : Source
    fn : callable
        Rows (n, d) -> (n,) or (n, K), of numbers.
    names : list of str or None
        What numbers stand for, noted as the attribute ``class_names``.
    out : str
        URL of the array.
    options : dict or None
        Options of its file system.

    Returns
    -------
    zarr.Array of shape (n_rows,) or (n_rows, K)

    Raises
    ------
    TypeError
        If the rows are Dask's.
    FileExistsError
        If `out` holds anything but an earlier attempt at the same rows and the same model.
    """
    if isinstance(source, DaskSource):
        raise TypeError(
            "predict(out=...) reads rows from a store or from memory; for Dask arrays use "
            "predict(X).to_zarr(url)"
        )
    bounds, sample = source.chunk_bounds, _probe(source, fn)
    n, rows = source.n_rows, max(bounds[1] - bounds[0], -(-MIN_ROWS_BYTES // source.row_nbytes))
    url = resolve_url(out)
    token = tokenize(source.token, fn)
    array, done = _resume(url, options, (n, *sample.shape[1:]), sample.dtype, rows, token)
    if names is not None and "class_names" not in array.attrs:
        array.attrs["class_names"] = names
    starts = [a for i, a in enumerate(range(0, n, rows)) if i not in done]
    if starts:
        groups = [Group(a // rows, a, min(a + rows, n)) for a in starts]
        needs = Needs(work=rows * 16 * (1 + sample[0].size))
        with engine.open(source, needs, once=True) as data:
            data.single_pass(WriteRows(fn, url, quiet(options)), "predict", groups, ("X",))
    array.attrs["complete"] = True
    return zarr.open_array(open_store(url, options), mode="r")


def _resume(
    url: str, options: Any, shape: tuple[int, ...], dtype: Any, rows: int, token: str
) -> tuple[zarr.Array[Any], set[int]]:
    """The output array, new or as an earlier attempt left it, and the chunks it has."""
    store = open_store(url, options, read_only=False)
    try:
        array = zarr.open_array(store, mode="r+")
    except (FileNotFoundError, KeyError, ValueError):
        if not sync(store.is_empty("")):
            raise FileExistsError(
                f"{url} holds something that is no Zarr array of predictions; choose another out= "
                "or remove it"
            ) from None
        array = create_array(store, "", shape, dtype, rows)
        array.attrs["predictions"] = token
        return array, set()
    done = {i for i in range(-(-shape[0] // rows)) if _has_chunk(store, i, len(shape))}
    if "predictions" not in array.attrs and not done and array.shape == shape:
        array.attrs["predictions"] = token  # an attempt that ended before it could say what it is
    if array.attrs.get("predictions") != token:
        raise FileExistsError(
            f"{url} holds an array of another model or of other rows; choose another out= or "
            "remove it"
        )
    return array, done


def _has_chunk(store: Any, index: int, ndim: int) -> bool:
    key = "/".join(["c", str(index), *["0"] * (ndim - 1)])
    return bool(sync(store.exists(key)))
