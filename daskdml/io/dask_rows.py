"""Rows that Dask holds: their blocks as tasks for the engine, or as chunks of a new data set."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from daskdml.io import checks
from daskdml.io.arrays import Labels, default_chunks, staged_array
from daskdml.io.staging import Staging
from daskdml.io.store import array_name, retrying

__all__ = ["DaskSource", "aligned", "known_chunks", "write_dask"]


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
    from dask.base import compute

    arrays = [_as_array(part) for part in (X, y, sample_weight)]
    wanted = [a for a in arrays if checks.is_dask(a) and np.isnan(a.shape[0])]
    lengths = compute(*[_lengths(a) for a in wanted])
    known = {id(a): n for a, n in zip(wanted, lengths, strict=True)}
    return tuple(_with_lengths(a, known[id(a)]) if id(a) in known else a for a in arrays)


def _as_array(part: Any) -> Any:
    if not checks.is_dask(part):
        return part
    return part.to_dask_array() if hasattr(part, "to_dask_array") else part


def _lengths(array: Any) -> list[Any]:
    from dask.delayed import delayed

    blocks = array.to_delayed()
    return [delayed(len)(b) for b in blocks.reshape(blocks.shape[0], -1)[:, 0]]


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


@dataclass(frozen=True)
class DaskSource:
    """Rows that Dask computes: one task for each block of X, y and the weights.

    Made by `daskdml.io.sources.as_source`; X is in float32 or float64 and C order, blocks hold
    full rows, empty ones are gone.

    Parameters
    ----------
    X : dask.array.Array of shape (n_rows, n_features)
    y, sample_weight : dask.array.Array of shape (n_rows,) or None
        With the row blocks of X.
    feature_names : ndarray of str or None
    name : str
        For people: what made X.
    """

    X: Any
    y: Any
    sample_weight: Any
    feature_names: np.ndarray | None
    name: str

    in_memory = False
    written = None
    scratch_nbytes = 0

    @classmethod
    def of(cls, X: Any, y: Any = None, sample_weight: Any = None) -> DaskSource:
        """Align Dask collections (see `aligned`) and name their blocks."""
        names = checks.feature_names_of(X)
        X, y, w = aligned(X, y, sample_weight)
        name = str(X.name).rpartition("-")[0] or "array"
        X = X.map_blocks(
            _as_rows, checks.working_dtype(X.dtype), dtype=checks.working_dtype(X.dtype)
        )
        y = None if y is None else y.map_blocks(checks.targets, dtype=y.dtype)
        w = None if w is None else w.map_blocks(_as_weights, dtype=np.float64)
        return cls(X, y, w, None if names is None else np.array(names, dtype=object), name)

    @property
    def n_rows(self) -> int:
        """Rows of X."""
        return int(self.X.shape[0])

    @property
    def n_features(self) -> int:
        """Columns of X."""
        return int(self.X.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of X in the blocks: float32 or float64."""
        return np.dtype(self.X.dtype)

    @property
    def has_y(self) -> bool:
        """Whether there are targets."""
        return self.y is not None

    @property
    def has_sample_weight(self) -> bool:
        """Whether there are weights."""
        return self.sample_weight is not None

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Rows of every block, none of them 0."""
        return tuple(int(n) for n in self.X.chunks[0])

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        """Rows at which a new block begins; first 0, last n_rows."""
        return (0, *np.cumsum(self.block_sizes).tolist())

    @property
    def row_nbytes(self) -> int:
        """Bytes that a row takes in a block."""
        others = sum(8 for part in (self.y, self.sample_weight) if part is not None)
        return self.n_features * self.dtype.itemsize + others

    @cached_property
    def token(self) -> str:
        """Names these very rows."""
        names = [getattr(part, "name", None) for part in (self.X, self.y, self.sample_weight)]
        return f"dask-{hashlib.sha256(repr(names).encode()).hexdigest()[:32]}"

    def block_keys(self, index: int) -> tuple[tuple[Hashable, ...], ...]:
        """Give the keys of the tasks that make a block: X's, y's and the weights', one or none."""
        others = (self.y, self.sample_weight)
        return (
            ((self.X.name, index, 0),),
            *(((part.name, index),) if part is not None else () for part in others),
        )

    def graph(self) -> dict[Hashable, Any]:
        """Give all tasks behind the blocks' keys, optimised together: ``{key: task}``."""
        from dask.array.optimization import optimize
        from dask.highlevelgraph import HighLevelGraph

        parts = [part for part in (self.X, self.y, self.sample_weight) if part is not None]
        merged = HighLevelGraph.merge(*[part.dask for part in parts])
        wanted = [key for part in parts for key in _flat(part.__dask_keys__())]
        return dict(optimize(merged, wanted))


def _flat(keys: list[Any]) -> list[Hashable]:
    return [k for key in keys for k in (_flat(key) if isinstance(key, list) else [key])]


def _as_rows(block: Any, dtype: np.dtype[Any]) -> np.ndarray:
    return np.ascontiguousarray(checks.matrix(block), dtype=dtype)


def _as_weights(block: Any) -> np.ndarray:
    return np.asarray(block, dtype=np.float64)


class _Target:
    """Where `dask.array.store` puts blocks: some chunks of a Zarr array, with retries.

    Pickles with the array's URL.
    """

    def __init__(self, array: Any, chunks: list[int]) -> None:
        self._array, self._chunks, self._rows = array, np.array(chunks), array.chunks[0]
        n = sum(min((i + 1) * self._rows, array.shape[0]) - i * self._rows for i in chunks)
        self.shape, self.dtype = (n, *array.shape[1:]), array.dtype

    def __setitem__(self, index: Any, rows: Any) -> None:
        rows = np.asarray(rows)
        start = int(self._chunks[index[0].start // self._rows]) * self._rows
        where = slice(start, start + len(rows))
        what = f"writing rows {where.start}:{where.stop} of {array_name(self._array)}"
        retrying(lambda: self._array.__setitem__(where, rows), what)


def write_dask(
    staging: Staging, X: Any, y: Any, sample_weight: Any, chunks: int | None, labels: Labels
) -> dict[str, tuple[int, ...]]:
    """Write Dask arrays chunk by chunk, on Dask's workers; give the shape of each part.

    Only chunks that an earlier attempt did not leave are computed.

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
    sources: list[Any] = []
    targets: Any = []
    for name, part in parts.items():
        part = part.rechunk({0: rows})
        array = staged_array(staging, name, part.shape, part.dtype, rows)
        finished = staging.finished(array)
        missing = [i for i in range(part.numblocks[0]) if i not in finished]
        if missing:
            sources.append(part.blocks[missing])
            targets.append(_Target(array, missing))
    if sources:
        da.store(sources, targets, lock=False)
    return {name: tuple(int(n) for n in part.shape) for name, part in parts.items()}


def _coded(y: Any, labels: Labels) -> Any:
    """Give y as numbers: strings become codes, once all of them are known."""
    from dask.base import compute
    from dask.delayed import delayed

    if y.dtype.kind in "biuf":
        return y
    found = compute(*[delayed(_distinct)(block) for block in y.to_delayed()])
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
