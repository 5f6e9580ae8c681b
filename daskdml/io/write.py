"""Writing rows from anywhere as a data set: streaming, in any block size, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import zarr

from daskdml.io import checks
from daskdml.io.arrays import CHUNK_BYTES, Labels, RowWriter, default_chunks
from daskdml.io.dataset import Dataset, open_dataset
from daskdml.io.layout import FORMAT, PARTS
from daskdml.io.staging import Staging, stage
from daskdml.io.store import resolve_url

__all__ = ["write_dataset"]

_Parts = dict[str, np.ndarray]


def write_dataset(
    url: str | os.PathLike[str],
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    chunks: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write rows as a data set, whole or not at all.

    Parameters
    ----------
    url : str or path
        Where to write: a local path or any fsspec URL.
    X : array-like, DataFrame, zarr.Array, Dask array or DataFrame, or iterable of blocks
        Rows x features of numbers or booleans, stored in their dtype. Blocks are ``X_block``,
        ``(X_block, y_block)`` or ``(X_block, y_block, weight_block)`` of any number of rows; only
        a chunk of them is held in memory. Dask's blocks are written by Dask's workers.
    y : array-like of shape (n_rows,) or None
        Targets. Strings are stored as codes of the sorted class names and read as strings.
    sample_weight : array-like of shape (n_rows,) or None
        Weights of the rows.
    chunks : int or None
        Rows per chunk; None takes about 16 MB of X.
    storage_options : mapping or None
        Options of the file system.
    overwrite : bool
        Replace a data set at the URL; it stays until the new one is whole.
    feature_names : sequence of str or None
        Names of the columns; a DataFrame brings its own.
    class_names : sequence of str or None
        With a `y` of strings, all of them in the order of their codes; with other targets only
        noted.
    metadata : mapping or None
        Anything that JSON can hold.

    Returns
    -------
    Dataset
        The new data set, opened.

    Raises
    ------
    FileExistsError
        Where the URL is taken; what is no Zarr group is never replaced.
    PermissionError
        Where the place may not be written to.
    ValueError, TypeError
        Where lengths, shapes or dtypes do not fit; nothing is left behind.

    Examples
    --------
    >>> import numpy as np
    >>> blocks = ((np.full((3, 2), i, "f4"), np.full(3, i)) for i in range(4))
    >>> ds = write_dataset("memory://doc.zarr", blocks, chunks=5, overwrite=True)
    >>> ds.shape, ds.chunks
    ((12, 2), 5)
    """
    target = resolve_url(url)
    if chunks is not None and (not isinstance(chunks, int | np.integer) or chunks < 1):
        raise ValueError(f"chunks={chunks!r} is no number of rows; give an int from 1 up")
    attributes: dict[str, Any] = {"metadata": dict(metadata)} if metadata else {}
    json.dumps(attributes)  # complains before hours of writing
    names = checks.feature_names_of(X) if feature_names is None else feature_names
    labels = Labels(class_names)
    # Lengths and shapes known beforehand are checked before anything is written.
    dask_input = checks.is_dask(X)
    blocks = None if dask_input else _blocks(X, y, sample_weight)
    staging = stage(target, storage_options, overwrite=overwrite)
    try:
        if blocks is None:
            from daskdml.io.dask_rows import write_dask

            shape = write_dask(staging, X, y, sample_weight, chunks, labels)
        else:
            shape = _write_blocks(staging, blocks, chunks, labels)
        own = {
            "format": FORMAT,
            "complete": True,
            "id": secrets.token_hex(8),
            "prefix": staging.prefix,
            "y_is_code": labels.used,
        }
        attributes |= _names("feature_names", names, shape[1])
        attributes |= _names("class_names", labels.names or None, None)
        staging.commit({"daskdml": own, **attributes})
    except BaseException:
        staging.abandon()
        raise
    return open_dataset(target, storage_options)


def _names(what: str, names: Sequence[str] | None, n: int | None) -> dict[str, list[str]]:
    if names is None:
        return {}
    if n is not None and len(names) != n:
        raise ValueError(f"{what} has {len(names)} names for {n} columns; give one for each")
    return {what: [str(name) for name in names]}


def _write_blocks(
    staging: Staging, blocks: Iterable[_Parts], chunks: int | None, labels: Labels
) -> tuple[int, ...]:
    """Write blocks one after the other; give the shape of X."""
    writers: dict[str, RowWriter] = {}
    for number, parts in enumerate(blocks):
        if not writers:
            X = parts["X"]
            rows = int(chunks) if chunks else default_chunks(X.shape[1], X.dtype)
            writers = {
                part: RowWriter(staging.store, staging.prefix + part, rows) for part in parts
            }
        if parts.keys() != writers.keys():
            raise ValueError(
                f"block {number} has {list(parts)}, the first one {list(writers)}; give all blocks "
                "the same parts"
            )
        for part, rows_of in parts.items():
            writers[part].append(labels.encode(rows_of) if part == "y" else rows_of)
    if not writers:
        raise ValueError("there are 0 sample(s) to write; a data set has a minimum of 1 row")
    recode = labels.sort()
    shapes = {
        part: writer.finish(recode if part == "y" else None) for part, writer in writers.items()
    }
    return shapes["X"]


def _blocks(X: Any, y: Any, sample_weight: Any) -> Iterator[_Parts]:
    """Give any input but Dask's as checked blocks, empty ones left out."""
    streamed = isinstance(X, Iterable) and not hasattr(X, "shape") and not isinstance(X, list)
    if streamed:
        if y is not None or sample_weight is not None:
            raise ValueError(
                "y and sample_weight come within the blocks of an iterator: give it as "
                "(X_block, y_block, weight_block)"
            )
        return _stream(iter(X))
    if isinstance(X, zarr.Array) or checks.is_frame(X):
        checks.check_shape(tuple(X.shape))
    else:
        X = checks.matrix(X)
    n_rows = int(X.shape[0])
    parts = {"X": X}
    if y is not None:
        parts["y"] = y if isinstance(y, zarr.Array) else checks.targets(_computed(y))
        checks.check_lengths(n_rows, y=parts["y"].shape[0])
    if sample_weight is not None:
        parts["sample_weight"] = checks.weights(_computed(sample_weight), n_rows)
    return _slices(parts)


def _computed(part: Any) -> Any:
    return part.compute() if checks.is_dask(part) else part


def _slices(parts: dict[str, Any]) -> Iterator[_Parts]:
    """Cut what has a length into blocks of a few chunks."""
    X = parts["X"]
    width = checks.frame_dtype(X).itemsize if checks.is_frame(X) else X.dtype.itemsize
    n_rows, step = X.shape[0], max(4 * CHUNK_BYTES // max(X.shape[1] * width, 1), 1)
    if isinstance(X, zarr.Array):
        stored = int((X.shards or X.chunks)[0])
        step = max(step // stored, 1) * stored
    dtype = checks.frame_dtype(X) if checks.is_frame(X) else X.dtype
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        block = X.iloc[rows].to_numpy(dtype=dtype) if checks.is_frame(X) else X[rows]
        others = {part: np.asarray(parts[part][rows]) for part in parts if part != "X"}
        yield _checked(block, **others)


def _stream(blocks: Iterator[Any]) -> Iterator[_Parts]:
    for number, block in enumerate(blocks):
        items = block if isinstance(block, tuple) else (block,)
        if not 1 <= len(items) <= len(PARTS):
            raise ValueError(
                f"block {number} is a tuple of {len(items)}; give X_block, (X_block, y_block) or "
                "(X_block, y_block, weight_block)"
            )
        if np.shape(items[0])[:1] == (0,):
            continue
        named = dict(zip(PARTS, items, strict=False))
        try:
            yield _checked(**{part: rows for part, rows in named.items() if rows is not None})
        except (TypeError, ValueError) as error:
            raise type(error)(f"block {number}: {error}") from error


def _checked(X: Any, y: Any = None, sample_weight: Any = None) -> _Parts:
    parts = {"X": checks.matrix(X)}
    n_rows = len(parts["X"])
    if y is not None:
        parts["y"] = checks.targets(y)
        checks.check_lengths(n_rows, y=parts["y"].shape[0])
    if sample_weight is not None:
        parts["sample_weight"] = checks.weights(sample_weight, n_rows)
    return parts
