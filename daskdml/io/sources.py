"""One face for all that rows may come from: what the engine reads."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import zarr

from daskdml.io import buffers, checks
from daskdml.io.arrays import default_chunks
from daskdml.io.chunks import ChunkReader, ReadStats, row_bounds
from daskdml.io.dask_rows import DaskSource
from daskdml.io.dataset import Dataset, open_dataset
from daskdml.io.identity import Identity, identity
from daskdml.io.layout import PARTS
from daskdml.io.store import open_node, resolve_url
from daskdml.kernels.block import Block

__all__ = ["AnySource", "ColumnSource", "DaskSource", "Source", "as_source"]


class Source(Protocol):
    """Rows that can be read in any range, in this process.

    Attributes
    ----------
    n_rows, n_features : int
    dtype : dtype
        float32 or float64: of X in the blocks that `read` gives.
    feature_names : ndarray of str or None
    has_y, has_sample_weight : bool
    chunk_bounds : tuple of int
        Rows at which a new stored chunk begins; first 0, last n_rows.
    row_nbytes : int
        Bytes that a row takes in a block: X in `dtype`, y and weight as they are read.
    scratch_nbytes : int
        Bytes that one `read` may hold for a moment beside its block.
    in_memory : bool
        Whether X lies in this process.
    name : str
        For people: short, not unique.
    token : str
        Names these very rows: equal tokens, equal rows.
    identity : list or None
        Names the rows of X in any process; None where that cannot be done.
    written : str or None
        Digits of the write that made the rows of a data set, wherever it lies by now.
    """

    @property
    def n_rows(self) -> int: ...  # noqa: D102
    @property
    def n_features(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    @property
    def feature_names(self) -> np.ndarray | None: ...  # noqa: D102
    @property
    def has_y(self) -> bool: ...  # noqa: D102
    @property
    def has_sample_weight(self) -> bool: ...  # noqa: D102
    @property
    def chunk_bounds(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def row_nbytes(self) -> int: ...  # noqa: D102
    @property
    def scratch_nbytes(self) -> int: ...  # noqa: D102
    @property
    def in_memory(self) -> bool: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def token(self) -> str: ...  # noqa: D102
    @property
    def identity(self) -> Identity: ...  # noqa: D102
    @property
    def written(self) -> str | None: ...  # noqa: D102

    def read(self, start: int, stop: int, parts: Iterable[str] = PARTS) -> tuple[Block, ReadStats]:
        """Read rows [start, stop) as a block."""


AnySource: TypeAlias = "Source | DaskSource"
"""Rows that can be read, or that Dask makes."""


class _Column(Protocol):
    """One part of the rows: X, y or the weights."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def scratch_nbytes(self) -> int: ...
    @property
    def chunk_bounds(self) -> tuple[int, ...]: ...
    def read(self, start: int, stop: int) -> tuple[np.ndarray, ReadStats]: ...


@dataclass(frozen=True)
class _InMemory:
    """An array of this process; reading gives views."""

    array: np.ndarray
    scratch_nbytes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        # As a data set of the same rows would be cut, so that both give the same bits.
        width = math.prod(self.shape[1:])
        return row_bounds(self.shape[0], default_chunks(width, self.dtype))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, ReadStats]:
        return self.array[start:stop], ReadStats()


@dataclass(frozen=True)
class _Stored:
    """One part of a data set."""

    ds: Dataset
    part: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ds.shape if self.part == "X" else self.ds.shape[:1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.ds.dtype_of(self.part)

    @property
    def scratch_nbytes(self) -> int:
        return self.ds.scratch_nbytes

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        return self.ds.chunk_bounds

    def read(self, start: int, stop: int) -> tuple[np.ndarray, ReadStats]:
        block, stats = self.ds.read(start, stop, (self.part,))
        return getattr(block, self.part), stats


@dataclass(frozen=True)
class ColumnSource:
    """A `Source` of X, y and weights that lie in memory or in Zarr, each where it likes.

    Made by `as_source`. Pickles small where all of them are stored.
    """

    X: _Column
    y: _Column | None
    sample_weight: _Column | None
    feature_names: np.ndarray | None
    name: str
    token: str

    @property
    def n_rows(self) -> int:
        """Rows of X."""
        return self.X.shape[0]

    @property
    def n_features(self) -> int:
        """Columns of X."""
        return self.X.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of X in the blocks: float32 or float64."""
        return checks.working_dtype(self.X.dtype)

    @property
    def has_y(self) -> bool:
        """Whether there are targets."""
        return self.y is not None

    @property
    def has_sample_weight(self) -> bool:
        """Whether there are weights."""
        return self.sample_weight is not None

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        """Rows at which a new chunk of X begins; first 0, last n_rows."""
        return self.X.chunk_bounds

    @property
    def row_nbytes(self) -> int:
        """Bytes that a row takes in a block."""
        others = [c.dtype.itemsize for c in (self.y, self.sample_weight) if c is not None]
        return self.n_features * self.dtype.itemsize + sum(others)

    @property
    def scratch_nbytes(self) -> int:
        """Bytes that one `read` may hold for a moment beside its block."""
        return max(c.scratch_nbytes for c in (self.X, self.y, self.sample_weight) if c is not None)

    @property
    def in_memory(self) -> bool:
        """Whether X lies in this process."""
        return isinstance(self.X, _InMemory)

    @property
    def written(self) -> str | None:
        """Digits of the write that made the rows of a data set; None for others."""
        return self.X.ds.written if isinstance(self.X, _Stored) else None

    @property
    def identity(self) -> Identity:
        """What tells X from other rows in any process: its bytes, or where and what it is."""
        if isinstance(self.X, _Stored):
            return self.X.ds.identity
        assert isinstance(self.X, _InMemory | ChunkReader)
        return identity(self.X.array)

    def read(self, start: int, stop: int, parts: Iterable[str] = PARTS) -> tuple[Block, ReadStats]:
        """Read rows [start, stop) as a block.

        Parameters
        ----------
        start, stop : int
            0 <= start <= stop <= n_rows.
        parts : iterable of {"X", "y", "sample_weight"}
            What to read; X is of shape (n, 0) where it is not among them.

        Returns
        -------
        block : Block
            X in `dtype` and C order, a view where nothing had to change; y as stored.
        stats : ReadStats
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows {start}:{stop} are not within the {self.n_rows} of {self.name}")
        stats = ReadStats()
        got: dict[str, np.ndarray] = {"X": np.empty((stop - start, 0), self.dtype)}
        for part in parts:
            column: _Column | None = getattr(self, part)
            if column is None:
                continue
            rows, cost = column.read(start, stop)
            began = time.perf_counter()
            if part == "X":
                rows = _as_rows(rows, self.dtype)
            elif part == "sample_weight" and rows.dtype.kind != "f":
                rows = rows.astype(np.float64)
            got[part] = rows
            stats += cost + ReadStats(decode_seconds=time.perf_counter() - began)
        return Block(got["X"], got.get("y"), got.get("sample_weight")), stats


def _as_rows(rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if rows.dtype == dtype and rows.flags.c_contiguous:
        return rows
    out = buffers.empty(rows.shape, dtype)
    np.copyto(out, rows, casting="unsafe")
    return out


def as_source(
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ColumnSource | DaskSource:
    """Take rows from wherever they are.

    Parameters
    ----------
    X : Dataset, URL or path, zarr.Array, Dask array or DataFrame, DataFrame, array-like
        Rows x features.
    y : array-like, zarr.Array, Dask array or None
        Targets; they take the place of a data set's own.
    sample_weight : array-like, zarr.Array, Dask array, number or None
        Weights; they take the place of a data set's own.
    storage_options : mapping or None
        Options of the file system, where X is a URL.

    Returns
    -------
    ColumnSource or DaskSource
        The latter where X is Dask's: its blocks are tasks rather than ranges to read.

    Raises
    ------
    ValueError, TypeError
        Where lengths, shapes or dtypes do not fit.

    Examples
    --------
    >>> source = as_source(np.arange(6, dtype="i8").reshape(3, 2), [0, 1, 0])
    >>> source.read(1, 3)[0].X
    array([[2., 3.],
           [4., 5.]])
    """
    if isinstance(X, str | os.PathLike):
        url = resolve_url(X)
        node = open_node(url, storage_options)
        X = node if isinstance(node, zarr.Array) else open_dataset(url, storage_options)
    elif storage_options is not None:
        raise ValueError("storage_options go with a URL; here X is not one")
    if checks.is_dask(X):
        return DaskSource.of(X, y, sample_weight)
    if isinstance(X, zarr.Group):
        raise TypeError(
            "X is a zarr.Group; pass the URL of a data set, or arrays as in X=group['X'], "
            "y=group['y']"
        )
    own = isinstance(X, Dataset)
    column, name, token = _x_column(X)
    checks.check_shape(column.shape)
    checks.check_dtype(column.dtype)
    n_rows = column.shape[0]
    y_column = _y_column(y, n_rows)
    w_column = _weight_column(sample_weight, n_rows)
    if y_column is not None or w_column is not None:
        token = f"{token}-{secrets.token_hex(8)}"
    if own and y_column is None and X.has_y:
        y_column = _Stored(X, "y")
    if own and w_column is None and X.has_sample_weight:
        w_column = _Stored(X, "sample_weight")
    names = X.feature_names if own else checks.feature_names_of(X)
    array = None if names is None else np.array(names, dtype=object)
    return ColumnSource(column, y_column, w_column, array, name, token)


def _x_column(X: Any) -> tuple[_Column, str, str]:
    if isinstance(X, Dataset):
        return _Stored(X, "X"), _short(X.url), X.token
    if isinstance(X, zarr.Array):
        facts = (str(X.store_path), repr(X.store_path.store), X.metadata.to_dict())
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        return ChunkReader(X), _short(str(X.store_path)), f"zarr-{digest}"
    return _InMemory(checks.matrix(X)), "array", f"memory-{secrets.token_hex(16)}"


def _short(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2].removesuffix(".zarr") or "array"


def _y_column(y: Any, n_rows: int) -> _Column | None:
    if y is None:
        return None
    column = _part_column(y)
    column = _InMemory(checks.targets(y)) if column is None else column
    checks.check_lengths(n_rows, y=column.shape[0])
    return column


def _weight_column(sample_weight: Any, n_rows: int) -> _Column | None:
    if sample_weight is None:
        return None
    column = _part_column(sample_weight)
    if column is None:
        return _InMemory(checks.weights(sample_weight, n_rows))
    checks.check_dtype(column.dtype, "sample_weight")
    checks.check_lengths(n_rows, sample_weight=column.shape[0])
    return column


def _part_column(part: Any) -> _Column | None:
    """Give the column of a part that is stored or Dask's; None where it is in memory."""
    if checks.is_dask(part):
        return _InMemory(checks.targets(part.compute()))  # one number for each row
    if not isinstance(part, zarr.Array):
        return None
    if part.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {part.shape} instead.")
    return ChunkReader(part)
