"""Ratings from wherever they are, as batches of arrays in the order of the source."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.io.ratings import as_ids
from daskdml.io.store import filesystem, is_local, resolve_url

__all__ = ["Batch", "Columns", "rating_batches"]

ROWS = 1 << 20
"""Ratings in a batch, at most."""

CSV_BLOCK = 1 << 23
"""Bytes of a text file that are parsed at a time."""

_ARROW = (".parquet", ".pq", ".arrow", ".feather", ".ipc")


@dataclass(frozen=True)
class Columns:
    """Names of the columns; `rating` None means that every row is a rating of 1."""

    user: str
    item: str
    rating: str | None
    timestamp: str | None

    @property
    def names(self) -> list[str]:
        """Those that are to be read."""
        return [n for n in (self.user, self.item, self.rating, self.timestamp) if n is not None]


@dataclass(frozen=True)
class Batch:
    """Some ratings: ids (int64 or str), ratings (float), times (int64) or None."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    times: np.ndarray | None


def rating_batches(
    source: Any, columns: Columns, storage_options: Mapping[str, Any] | None = None
) -> Iterator[Batch]:
    """Read ratings in batches of about a million.

    Parameters
    ----------
    source : str, path, list of them, DataFrame, Table, scipy sparse matrix or tuple of arrays
        As for `convert_ratings`.
    columns : Columns
    storage_options : mapping or None
        For a source that is a URL.

    Raises
    ------
    ValueError
        Where a column, an id or a rating is missing; names the row.
    """
    for piece in _pieces(source, columns, storage_options):
        for start in range(0, len(piece.arrays[0]), ROWS):
            arrays = [a[start : start + ROWS] for a in piece.arrays]
            yield _checked(_Piece(piece.source, piece.row + start, arrays), columns)


@dataclass(frozen=True)
class _Piece:
    """Some rows of a source: its name, the number of the first row, and the columns' values."""

    source: str
    row: int
    arrays: list[Any]


def _pieces(source: Any, columns: Columns, options: Any) -> Iterator[_Piece]:
    if isinstance(source, str | os.PathLike) or (
        isinstance(source, list)
        and source
        and all(isinstance(s, str | os.PathLike) for s in source)
    ):
        for path in _paths(source, options):
            yield from _file(path, columns, options)
    elif hasattr(source, "partitions") and hasattr(source, "columns"):
        name, row = "the Dask DataFrame", 0
        _check_columns(list(source.columns), columns, name)
        for k in range(source.npartitions):
            frame = source[columns.names].partitions[k].compute()
            yield _Piece(name, row, _of_frame(frame, columns))
            row += len(frame)
    elif hasattr(source, "iloc") and hasattr(source, "columns"):
        _check_columns(list(source.columns), columns, "the DataFrame")
        yield _Piece("the DataFrame", 0, _of_frame(source, columns))
    elif hasattr(source, "to_batches"):  # pyarrow's Table and Dataset
        _check_columns(list(source.schema.names), columns, "the table")
        yield from _of_batches("the table", source.to_batches(), columns)
    elif hasattr(source, "tocoo"):
        coo = source.tocoo()
        yield _Piece("the sparse matrix", 0, [coo.row, coo.col, coo.data])
    else:
        yield _Piece("the ratings", 0, _of_arrays(source))


def _of_batches(name: str, batches: Iterable[Any], columns: Columns) -> Iterator[_Piece]:
    row = 0
    for batch in batches:
        if batch.num_rows:
            yield _Piece(name, row, _of_arrow(batch, columns, name, row))
        row += batch.num_rows


def _of_arrays(source: Any) -> list[Any]:
    if not isinstance(source, tuple | list) or len(source) not in (2, 3, 4):
        raise TypeError(
            f"ratings come as a file's URL, a DataFrame, a scipy sparse matrix or a tuple (users, "
            f"items, ratings), not as {type(source).__name__}"
        )
    arrays = [np.asarray(a) for a in source]
    if len({a.shape for a in arrays}) > 1 or arrays[0].ndim != 1:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(f"users, items and ratings have the shapes {shapes}; give equal lengths")
    return arrays


def _paths(source: Any, options: Any) -> list[str]:
    found: list[str] = []
    for given in source if isinstance(source, list) else [source]:
        url = resolve_url(given)
        if not glob.has_magic(url):
            found.append(url)
        elif is_local(url):
            found += sorted(glob.glob(url))
        else:
            fs, path = filesystem(url, options)
            found += sorted(fs.unstrip_protocol(p) for p in fs.glob(path))
    if not found:
        raise FileNotFoundError(f"no file matches {source}; check the pattern")
    return found


def _file(path: str, columns: Columns, options: Any) -> Iterator[_Piece]:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow: pip install 'daskdml[arrow]', or give arrays"
        ) from error
    fs, inside = filesystem(path, options)
    if not fs.exists(inside):
        raise FileNotFoundError(f"{path} does not exist; check the URL")
    if not path.endswith(_ARROW):
        yield from _of_batches(path, _csv(path, fs, inside, columns), columns)
        return
    kind = "parquet" if path.endswith((".parquet", ".pq")) else "ipc"
    data = pyarrow.dataset.dataset(inside, format=kind, filesystem=fs)
    _check_columns(data.schema.names, columns, path)
    yield from _of_batches(path, data.to_batches(columns=columns.names, batch_size=ROWS), columns)


def _csv(path: str, fs: Any, inside: str, columns: Columns) -> Iterator[Any]:
    import pyarrow
    import pyarrow.csv

    # Its threads would parse ahead, some hundred MB of it.
    reads = pyarrow.csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False)
    wanted = pyarrow.csv.ConvertOptions(include_columns=columns.names)
    delimiter = "\t" if ".tsv" in os.path.basename(path) else ","
    parses = pyarrow.csv.ParseOptions(delimiter=delimiter)
    row = 0
    with fs.open(inside, "rb", compression="infer") as stream:
        try:
            with pyarrow.csv.open_csv(stream, reads, parses, wanted) as batches:
                for batch in batches:
                    yield batch
                    row += batch.num_rows
        except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, KeyError) as error:
            raise ValueError(_why(path, row, str(error))) from error


def _why(path: str, row: int, text: str) -> str:
    if "Empty CSV" in text:
        return f"{path} is empty; ratings have at least one row"
    if "column" in text.lower() and "does not exist" in text:
        return f"{path}: {text}; name the columns with user=, item=, rating=, timestamp="
    return (
        f"{path} cannot be read after row {row}: {text}; mend the row, or read the file as a "
        "DataFrame with ids as strings"
    )


def _of_arrow(batch: Any, columns: Columns, name: str, row: int) -> list[Any]:
    out = []
    for column in columns.names:
        values = batch.column(column)
        if values.null_count:
            first = int(np.flatnonzero(np.asarray(values.is_null()))[0])
            raise _missing(column, name, row + first)
        if column == columns.timestamp and "timestamp" in str(values.type):
            import pyarrow

            values = values.cast(pyarrow.int64())
        out.append(values.to_numpy(zero_copy_only=False))
    return out


def _of_frame(frame: Any, columns: Columns) -> list[Any]:
    return [frame[name].to_numpy() for name in columns.names]


def _check_columns(found: Iterable[str], columns: Columns, name: str) -> None:
    for column in columns.names:
        if column not in found:
            raise ValueError(
                f"{name} has no column {column!r}, only {', '.join(map(str, found))}; name the "
                "columns with user=, item=, rating=, timestamp="
            )


def _missing(column: str, name: str, row: int) -> ValueError:
    line = f" (line {row + 2})" if ".csv" in name or ".tsv" in name else ""
    return ValueError(
        f"{column} is missing in row {row}{line} of {name}; mend or leave out such rows"
    )


def _checked(piece: _Piece, columns: Columns) -> Batch:
    users, items, *rest = piece.arrays
    for column, ids in ((columns.user, users), (columns.item, items)):
        first = _first_missing(np.asarray(ids))
        if first is not None:
            raise _missing(column, piece.source, piece.row + first)
    given: Any = np.ones(len(users), np.float32)
    if columns.rating is not None and rest:
        given = rest.pop(0)
    try:
        ratings = np.asarray(given, dtype=None if _is_float(given) else np.float64)
    except ValueError as error:
        raise ValueError(f"{columns.rating} of {piece.source} are no numbers: {error}") from error
    bad = np.flatnonzero(~np.isfinite(ratings))
    if len(bad):
        raise ValueError(
            f"{columns.rating} is {ratings[bad[0]]} in row {piece.row + int(bad[0])} of "
            f"{piece.source}; mend or leave out such rows"
        )
    times = None
    if rest:
        times = np.asarray(rest[0])
        times = times.astype("datetime64[ns]") if times.dtype.kind == "M" else times
        times = times.astype(np.int64)
    return Batch(as_ids(users), as_ids(items), ratings, times)


def _is_float(values: Any) -> bool:
    return np.asarray(values).dtype.kind == "f"


def _first_missing(ids: np.ndarray) -> int | None:
    if ids.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(ids))
    elif ids.dtype == object:
        bad = np.flatnonzero([i is None or i != i or i == "" for i in ids])
    elif ids.dtype.kind == "U":
        bad = np.flatnonzero(ids == "")
    else:
        return None
    return int(bad[0]) if len(bad) else None
