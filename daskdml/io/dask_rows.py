"""Rows that Dask holds: their blocks as tasks for the engine, or as chunks of a new data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskdml.io import checks
from daskdml.io.arrays import Labels, create_array, default_chunks
from daskdml.io.staging import Staging
from daskdml.io.store import retrying

__all__ = ["aligned", "known_chunks", "write_dask"]


def known_chunks(X: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
    """Give Dask collections as arrays whose block lengths are known.

    Lengths that are not known are computed, all in one go; nothing else is computed and nothing
    is kept. The inputs are not changed.

    Parameters
    ----------
    X : dask array or DataFrame
    y, sample_weight : dask array, Series or DataFrame, array-like or None
        What is not Dask's is returned as it is.

    Returns
    -------
    X, y, sample_weight
        Dask arrays in place of Dask collections.
    """
    import dask

    arrays = [_as_array(part) for part in (X, y, sample_weight)]
    wanted = [a for a in arrays if checks.is_dask(a) and np.isnan(a.shape[0])]
    lengths = dask.compute(*[_lengths(a) for a in wanted])
    known = {id(a): n for a, n in zip(wanted, lengths, strict=True)}
    return tuple(_with_lengths(a, known[id(a)]) if id(a) in known else a for a in arrays)  # type: ignore[return-value]


def _as_array(part: Any) -> Any:
    if not checks.is_dask(part):
        return part
    return part.to_dask_array() if hasattr(part, "to_dask_array") else part


def _lengths(array: Any) -> list[Any]:
    import dask

    blocks = array.to_delayed()
    return [dask.delayed(len)(b) for b in blocks.reshape(blocks.shape[0], -1)[:, 0]]


def _with_lengths(array: Any, lengths: list[int]) -> Any:
    import dask.array as da

    chunks = (tuple(lengths), *array.chunks[1:])
    return da.Array(array.dask, array.name, chunks, dtype=array.dtype, meta=array._meta)


def aligned(X: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
    """Give X, y and sample_weight as Dask arrays with the same row blocks, X in full rows.

    Empty blocks are dropped, unknown lengths computed, parts in memory or in Zarr cut like X.

    Raises
    ------
    ValueError
        Where lengths, shapes or dtypes do not fit.
    """
    X, y, sample_weight = known_chunks(X, y, sample_weight)
    checks.check_shape(tuple(X.shape))
    X = X.rechunk({1: -1}) if X.numblocks[1] > 1 else X
    if X.dtype.kind == "O":
        X = X.astype(np.float64)
    checks.check_dtype(X.dtype)
    X = _without_empty(X)
    y = None if y is None else _cut_like(X, y, "y")
    w = None if sample_weight is None else _cut_like(X, sample_weight, "sample_weight")
    return X, y, w


def _without_empty(array: Any) -> Any:
    import dask.array as da

    full = [i for i, n in enumerate(array.chunks[0]) if n]
    if len(full) == len(array.chunks[0]):
        return array
    return da.concatenate([array.blocks[i] for i in full])


def _cut_like(X: Any, part: Any, name: str) -> Any:
    import dask.array as da
    import zarr

    rows = X.chunks[0]
    if not checks.is_dask(part):
        if not isinstance(part, zarr.Array):
            part = (
                checks.weights(part, int(X.shape[0]))
                if name == "sample_weight"
                else checks.targets(part)
            )
        checks.check_lengths(int(X.shape[0]), **{name: int(part.shape[0])})
        return da.from_array(part, chunks=(rows,))
    if part.ndim == 2 and part.shape[1] == 1:
        part = part[:, 0]
    if part.ndim != 1:
        raise ValueError(
            f"{name} should be a 1d array, got an array of shape {part.shape} instead."
        )
    checks.check_lengths(int(X.shape[0]), **{name: int(part.shape[0])})
    part = _without_empty(part)
    return part if part.chunks[0] == rows else part.rechunk((rows,))


class _Target:
    """Where `dask.array.store` puts blocks: a Zarr array, with retries; pickles with its URL."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __setitem__(self, index: Any, rows: Any) -> None:
        what = f"writing rows {index[0].start}:{index[0].stop} of {self._array.store_path}"
        rows = np.asarray(rows)
        retrying(lambda: self._array.__setitem__(index, rows), what)


def write_dask(
    staging: Staging, X: Any, y: Any, sample_weight: Any, chunks: int | None, labels: Labels
) -> tuple[int, ...]:
    """Write Dask arrays chunk by chunk, on Dask's workers; give the shape of X.

    Parameters
    ----------
    staging : Staging
        Where to create the arrays.
    X, y, sample_weight
        As in `write_dataset`, X being Dask's.
    chunks : int or None
        Rows per chunk.
    labels : Labels
        Learns the strings of y.
    """
    import dask.array as da

    X, y, w = aligned(X, y, sample_weight)
    rows = min(int(chunks or default_chunks(int(X.shape[1]), X.dtype)), int(X.shape[0]))
    parts = {"X": X}
    if y is not None:
        parts["y"] = _coded(y, labels)
    if w is not None:
        parts["sample_weight"] = w if w.dtype in (np.float32, np.float64) else w.astype(np.float64)
    sources = [part.rechunk({0: rows}) for part in parts.values()]
    targets = [
        _Target(create_array(staging.store, staging.prefix + name, a.shape, a.dtype, rows))
        for name, a in zip(parts, sources, strict=True)
    ]
    da.store(sources, targets, lock=False)
    return tuple(int(n) for n in X.shape)


def _coded(y: Any, labels: Labels) -> Any:
    """Give y as numbers: strings become codes, once all of them are known."""
    import dask

    if y.dtype.kind in "biuf":
        return y
    found = dask.compute(*[dask.delayed(_distinct)(block) for block in y.to_delayed()])
    values = checks.targets(np.concatenate([np.asarray(part, dtype=object) for part in found]))
    if values.dtype.kind != "U":
        return y.astype(values.dtype)
    labels.encode(values)
    labels.sort()
    names = labels.names
    return y.map_blocks(_codes, names, dtype=np.int32)


def _distinct(block: Any) -> np.ndarray:
    return np.unique(checks.targets(block))


def _codes(block: Any, names: list[str]) -> np.ndarray:
    return Labels(names).encode(checks.targets(block))
