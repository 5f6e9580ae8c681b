"""Rows -> predictions as a Dask array, or streamed into a Zarr array, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from dask import config
from dask.base import TokenizationError, tokenize

from daskdml.engine.graphs import Group
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.io.arrays import apart, array_at_root, open_to_write
from daskdml.io.finished import finished_chunks
from daskdml.io.journal import run_of
from daskdml.io.options import quiet
from daskdml.io.sources import AnySource, DaskSource, Source
from daskdml.io.staging import Staging, stage
from daskdml.io.store import array_name, is_local, open_store, resolve_url, retrying
from daskdml.kernels.apart import aligned
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
        return aligned(fn)(aligned(X))  # either may come from another process
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
    array: zarr.Array[Any]

    def __call__(self, block: Block) -> int:
        """Write the block's rows."""
        rows = self.fn(block.X)
        stop = block.start + block.n_rows
        what = f"writing rows {block.start}:{stop} of {array_name(self.array)}"
        array = apart(self.array)  # stores and codecs keep what they made; tasks change nothing
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
        URL of the array, which appears there once it is whole.
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
        If `out` holds anything but predictions of the same model for the same rows.
    RuntimeError
        If another process is writing there.
    """
    if isinstance(source, DaskSource):
        raise TypeError(
            "predict(out=...) reads rows from a store or from memory; for Dask arrays use "
            "predict(X).to_zarr(url)"
        )
    bounds, sample = source.chunk_bounds, _probe(source, fn)
    rows = max(bounds[1] - bounds[0], -(-MIN_ROWS_BYTES // source.row_nbytes))
    rows = min(rows, source.n_rows)
    options = quiet(options)
    shape, url = (source.n_rows, *sample.shape[1:]), resolve_url(out)
    run = run_of("predict", rows=source.identity, model=_token(fn), shape=list(shape), chunk=rows)
    whole = _whole(url, options, run)
    if whole is not None:
        if (whole.shape, whole.dtype, whole.chunks[0]) != (shape, sample.dtype, rows):
            raise ValueError(
                f"the metadata of {url} are not those that were written; remove it, and make it "
                "again"
            )
        _write(engine, source, fn, whole, finished_chunks(whole))
        return _opened(url, options)
    staging = _staged(url, options, run)
    try:
        array = array_at_root(staging, shape, sample.dtype, rows)
        _write(engine, source, fn, array, staging.finished(array))
        attributes = {"predictions": run, "complete": True}
        staging.commit(attributes | ({} if names is None else {"class_names": names}), array)
    except BaseException as error:
        staging.leave(error)
        raise
    return _opened(url, options)


def _opened(url: str, options: Any) -> zarr.Array[Any]:
    store = open_store(url, options)
    return retrying(lambda: zarr.open_array(store, mode="r"), f"opening {url}")


def _write(
    engine: Engine, source: Source, fn: Rows, array: zarr.Array[Any], finished: set[int]
) -> None:
    """Write the chunks that are missing."""
    n, rows = source.n_rows, array.chunks[0]
    starts = [a for i, a in enumerate(range(0, n, rows)) if i not in finished]
    if not starts:
        return
    groups = [Group(a // rows, a, min(a + rows, n)) for a in starts]
    width = int(np.prod(array.shape[1:]))
    with engine.open(source, Needs(work=rows * 16 * (1 + width)), once=True) as data:
        data.single_pass(WriteRows(fn, array), "predict", groups, ("X",))


def _token(fn: Rows) -> str | None:
    """Names a model in any process, if that can be done."""
    try:
        with config.set({"tokenize.ensure-deterministic": True}):
            return str(tokenize(fn))
    except TokenizationError:
        return None


def _whole(url: str, options: Any, run: str | None) -> zarr.Array[Any] | None:
    """The predictions that are at a URL already, None where there is no array."""
    if is_local(url) and not os.path.exists(url):
        return None  # Zarr would make a folder
    store = open_store(url, options, read_only=False)
    try:
        array = retrying(lambda: open_to_write(store), f"opening {url}")
    except (FileNotFoundError, KeyError, ValueError):
        return None
    if run is None or array.attrs.get("predictions") != run:
        raise FileExistsError(
            f"{url} holds an array of another model or of other rows; choose another out= or "
            "remove it"
        )
    return array


def _staged(url: str, options: Any, run: str | None) -> Staging:
    try:
        return stage(url, options, run=run, at_root=True)
    except FileExistsError as error:
        raise FileExistsError(
            f"{url} holds something that is no Zarr array of predictions; choose another out= or "
            "remove it"
        ) from error
