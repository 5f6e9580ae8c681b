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
from daskdml.io.arrays import CHUNK_BYTES, Labels, RowWriter, default_chunks, staged_array
from daskdml.io.dataset import Dataset, open_dataset
from daskdml.io.identity import identity
from daskdml.io.journal import run_of
from daskdml.io.layout import FORMAT, PARTS
from daskdml.io.staging import Staging, stage
from daskdml.io.store import resolve_url

__all__ = ["write_dataset"]

LABELS = 1 << 20
"""Targets whose strings are looked at together."""

_Parts = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


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

    A write that was broken off, by Ctrl-C, a kill, a full disk or a lost store, is gone on with by
    the same call, from the chunks that are there. Only blocks from an iterator cannot be had again:
    with them each call begins anew.

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
    RuntimeError
        Where another process is writing to the URL.
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
    blocks, parts = _input(X, y, sample_weight)
    known: dict[str, Any] = {part: identity(parts.get(part)) for part in PARTS}
    known["X"] = known["X"] if blocks is None else None
    how = [int(chunks or 0), list(map(str, class_names or ()))]
    run = run_of("write_dataset", how=how, **known)
    staging = stage(target, storage_options, overwrite=overwrite, run=run)
    try:
        if blocks is not None:
            shapes = _write_blocks(staging, blocks, chunks, labels)
        elif checks.is_dask(X):
            from daskdml.io.dask_rows import write_dask

            shapes = write_dask(staging, X, y, sample_weight, chunks, labels)
        else:
            shapes = _write_slices(staging, parts, chunks, labels)
        own = {
            "format": FORMAT,
            "complete": True,
            "id": secrets.token_hex(8),
            "prefix": staging.prefix,
            "parts": [part for part in PARTS if part in shapes],
            "y_is_code": labels.used,
        }
        attributes |= _names("feature_names", names, shapes["X"][1])
        attributes |= _names("class_names", labels.names or None, None)
        staging.commit({"daskdml": own, **attributes})
    except BaseException as error:
        staging.leave(error)
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
) -> Shapes:
    """Write blocks one after the other; give the shape of each part."""
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
    return {
        part: writer.finish(recode if part == "y" else None) for part, writer in writers.items()
    }


def _write_slices(
    staging: Staging, parts: dict[str, Any], chunks: int | None, labels: Labels
) -> Shapes:
    """Write what has a length, from the first row on that is not there yet; give the shapes."""
    X = parts["X"]
    n_rows = int(X.shape[0])
    if "y" in parts:
        _learn(labels, parts["y"])
    first = next(_slices({part: values[:1] for part, values in parts.items()}))
    dtypes = {part: values.dtype for part, values in _coded(first, labels).items()}
    rows = min(int(chunks or default_chunks(int(X.shape[1]), dtypes["X"])), n_rows)
    arrays = {
        part: staged_array(staging, part, (n_rows, *map(int, parts[part].shape[1:])), dtype, rows)
        for part, dtype in dtypes.items()
    }
    begin = min(_first_missing(staging.finished(array)) for array in arrays.values()) * rows
    begin = min(begin, (n_rows - 1) // rows * rows)
    writers = {
        part: RowWriter(staging.store, staging.prefix + part, rows, array, begin)
        for part, array in arrays.items()
    }
    for block in _slices(parts, begin):
        for part, rows_of in _coded(block, labels).items():
            writers[part].append(rows_of)
    return {part: writer.finish() for part, writer in writers.items()}


def _first_missing(finished: set[int]) -> int:
    return next(i for i in range(len(finished) + 1) if i not in finished)


def _learn(labels: Labels, y: Any) -> None:
    """Give strings of y their final codes."""
    for start in range(0, int(y.shape[0]), LABELS):
        values = checks.targets(np.asarray(y[start : start + LABELS]))
        if values.dtype.kind != "U":
            return
        labels.encode(values)
    labels.sort()


def _coded(block: _Parts, labels: Labels) -> _Parts:
    return {part: labels.encode(rows) if part == "y" else rows for part, rows in block.items()}


def _input(X: Any, y: Any, sample_weight: Any) -> tuple[Iterator[_Parts] | None, dict[str, Any]]:
    """Blocks of an iterator, or parts that have a length, checked; Dask's are taken as given."""
    streamed = isinstance(X, Iterable) and not hasattr(X, "shape") and not isinstance(X, list)
    if streamed and not checks.is_dask(X):
        if y is not None or sample_weight is not None:
            raise ValueError(
                "y and sample_weight come within the blocks of an iterator: give it as "
                "(X_block, y_block, weight_block)"
            )
        return _stream(iter(X)), {}
    if checks.is_dask(X):
        given = {"X": X, "y": y, "sample_weight": sample_weight}
        return None, {part: rows for part, rows in given.items() if rows is not None}
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
    return None, parts


def _computed(part: Any) -> Any:
    return part.compute() if checks.is_dask(part) else part


def _slices(parts: dict[str, Any], begin: int = 0) -> Iterator[_Parts]:
    """Cut what has a length, from a row on, into blocks of a few chunks."""
    X = parts["X"]
    width = checks.frame_dtype(X).itemsize if checks.is_frame(X) else X.dtype.itemsize
    n_rows, step = X.shape[0], max(4 * CHUNK_BYTES // max(X.shape[1] * width, 1), 1)
    if isinstance(X, zarr.Array):
        stored = int((X.shards or X.chunks)[0])
        step = max(step // stored, 1) * stored
    dtype = checks.frame_dtype(X) if checks.is_frame(X) else X.dtype
    for start in range(begin // step * step, n_rows, step):
        rows = slice(max(start, begin), min(start + step, n_rows))
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
