"""Ratings from wherever they are, as batches of arrays in the order of the source."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from fsspec import AbstractFileSystem

from daskdml.io.identity import Identity, array_digest, file_stamp, identity
from daskdml.io.ranges import arrow_files, text_blocks
from daskdml.io.rating_store import as_ids
from daskdml.io.store import filesystem, is_local, resolve_url, retrying

__all__ = ["Batch", "Columns", "rating_batches", "source_identity"]

ROWS = 1 << 20
"""Ratings in a batch, at most."""

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


Position = dict[str, int]
"""A place in a source: behind `skip` ratings of a piece that begins where the rest says."""


def rating_batches(
    source: Any,
    columns: Columns,
    storage_options: Mapping[str, Any] | None = None,
    after: Position | None = None,
) -> Iterator[tuple[Batch, Position]]:
    """Read ratings in batches of about a million, each with the position behind it.

    Parameters
    ----------
    source : str, path, list of them, DataFrame, Table, scipy sparse matrix or tuple of arrays
        As for `convert_ratings`.
    columns : Columns
    storage_options : mapping or None
        For a source that is a URL.
    after : dict or None
        A position, where reading goes on.

    Raises
    ------
    ValueError
        Where a column, an id or a rating is missing; names the row.
    """
    begin = dict(after or {})
    skip = begin.pop("skip", 0)
    for piece in _pieces(source, columns, storage_options, begin):
        n = len(piece.arrays[0])
        for start in range(skip, n, ROWS):
            arrays = [a[start : start + ROWS] for a in piece.arrays]
            part = _Piece(piece.source, piece.row + start, arrays, {})
            yield _checked(part, columns), {**piece.mark, "skip": start + len(arrays[0])}
        skip = max(skip - n, 0)  # text may now be cut elsewhere


@dataclass(frozen=True)
class _Piece:
    """Some rows of a source: its name, the number of the first row, and the columns' values.

    `mark` is where reading would have to begin for it.
    """

    source: str
    row: int
    arrays: list[Any]
    mark: Position


def _is_files(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) or (
        isinstance(source, list)
        and bool(source)
        and all(isinstance(s, str | os.PathLike) for s in source)
    )


def source_identity(source: Any, columns: Columns, options: Any) -> Identity:
    """What tells a source from others: names, sizes and times of files, bytes of what is in memory.

    None for what cannot be known again.
    """
    if _is_files(source):
        found = []
        for path in _paths(source, options):
            fs, inside = filesystem(path, options)
            fs.invalidate_cache()
            found.append(file_stamp(fs, inside) if _exists(fs, inside) else [path])
        return ["files", found]
    if hasattr(source, "partitions") and hasattr(source, "columns"):
        return identity(source)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return identity(source[[name for name in columns.names if name in source.columns]])
    if hasattr(source, "to_batches"):
        known = hasattr(source, "combine_chunks")  # a table, whose rows are there
        return ["table", _buffers(source, columns)] if known else None
    if hasattr(source, "tocoo"):
        coo = source.tocoo()
        return ["sparse", list(coo.shape), *map(array_digest, (coo.row, coo.col, coo.data))]
    return ["arrays", *map(array_digest, _of_arrays(source))]


def _buffers(table: Any, columns: Columns) -> list[Any]:
    """Types, cuts and digests of the buffers of a table's columns."""
    found: list[Any] = []
    for name in columns.names:
        if name not in table.schema.names:
            continue
        for chunk in table.column(name).chunks:
            data = [np.frombuffer(b, np.uint8) for b in chunk.buffers() if b is not None]
            digests = [array_digest(values) for values in data]
            found.append([name, str(chunk.type), chunk.offset, len(chunk), digests])
    return found


def _pieces(source: Any, columns: Columns, options: Any, begin: Position) -> Iterator[_Piece]:
    if _is_files(source):
        first = begin.get("file", 0)
        for number, path in enumerate(_paths(source, options)[first:], first):
            for piece in _file(path, columns, options, begin if number == first else {}):
                yield replace(piece, mark={"file": number, **piece.mark})
    elif hasattr(source, "partitions") and hasattr(source, "columns"):
        name, row = "the Dask DataFrame", begin.get("row", 0)
        _check_columns(list(source.columns), columns, name)
        for k in range(begin.get("part", 0), source.npartitions):
            frame = source[columns.names].partitions[k].compute()
            yield _Piece(name, row, _of_frame(frame, columns), {"part": k, "row": row})
            row += len(frame)
    elif hasattr(source, "iloc") and hasattr(source, "columns"):
        _check_columns(list(source.columns), columns, "the DataFrame")
        yield _Piece("the DataFrame", 0, _of_frame(source, columns), {})
    elif hasattr(source, "to_batches"):  # pyarrow's Table and Dataset
        _check_columns(list(source.schema.names), columns, "the table")
        yield from _of_batches("the table", source.to_batches(), columns, begin.get("row", 0))
    elif hasattr(source, "tocoo"):
        coo = source.tocoo()
        yield _Piece("the sparse matrix", 0, [coo.row, coo.col, coo.data], {})
    else:
        yield _Piece("the ratings", 0, _of_arrays(source), {})


def _of_batches(
    name: str, batches: Iterable[Any], columns: Columns, begin: int, row: int = 0
) -> Iterator[_Piece]:
    """Pieces of Arrow's batches from row `begin` on; the first batch begins with row `row`."""
    for batch in batches:
        at = max(row, begin)
        row += batch.num_rows
        if at < row:
            rest = batch.slice(at - row + batch.num_rows)
            yield _Piece(name, at, _of_arrow(rest, columns, name, at), {"row": at})


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
            matches = retrying(partial(fs.glob, path), f"looking for {url}")
            found += sorted(map(fs.unstrip_protocol, matches))
    if not found:
        raise FileNotFoundError(f"no file matches {source}; check the pattern")
    return found


def _exists(fs: AbstractFileSystem, inside: str) -> bool:
    return bool(retrying(lambda: fs.exists(inside), f"looking for {inside}"))


def _file(path: str, columns: Columns, options: Any, begin: Position) -> Iterator[_Piece]:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow: pip install 'daskdml[arrow]', or give arrays"
        ) from error
    fs, inside = filesystem(path, options)
    if not _exists(fs, inside):
        raise FileNotFoundError(f"{path} does not exist; check the URL")
    if not path.endswith(_ARROW):
        yield from _csv(path, fs, inside, columns, begin)
        return
    kind = "parquet" if path.endswith((".parquet", ".pq")) else "ipc"
    files = fs if is_local(path) else arrow_files(fs, path)
    data = retrying(
        lambda: pyarrow.dataset.dataset(inside, format=kind, filesystem=files), f"opening {path}"
    )
    _check_columns(data.schema.names, columns, path)
    wanted: dict[str, Any] = {"columns": columns.names, "batch_size": ROWS}
    if not begin.get("row"):
        yield from _of_batches(path, data.to_batches(**wanted), columns, 0)
        return
    row = 0
    for part, n in _row_groups(data):
        if n is None or row + n > begin["row"]:
            yield from _of_batches(path, part.to_batches(**wanted), columns, begin["row"], row)
        row += n or 0


def _row_groups(data: Any) -> Iterator[tuple[Any, int | None]]:
    """Parts of a Parquet file, and their rows, to be passed over unread; other files whole."""
    for fragment in data.get_fragments():
        if hasattr(fragment, "split_by_row_group"):
            for part in fragment.split_by_row_group():
                yield part, part.row_groups[0].num_rows
        else:
            yield fragment, None


def _csv(path: str, fs: Any, inside: str, columns: Columns, begin: Position) -> Iterator[_Piece]:
    """Pieces of a text file: blocks of whole lines. The first one settles names and types."""
    import pyarrow

    blocks = text_blocks(fs, inside, path, 0)
    first = next(blocks, b"")
    row, offset = begin.get("row", 0), begin.get("offset", 0)
    blocks = text_blocks(fs, inside, path, offset) if offset else chain([first], blocks)
    try:
        parse = _Parser(path, first, columns)
        for text in blocks:
            table = parse(text, offset == 0)
            if table.num_rows:
                arrays = _of_arrow(table, columns, path, row)
                yield _Piece(path, row, arrays, {"row": row, "offset": offset})
            row, offset = row + table.num_rows, offset + len(text)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, KeyError) as error:
        raise ValueError(_why(path, row, str(error))) from error


class _Parser:
    """Text -> an Arrow table, with the names and types of a file's first block."""

    def __init__(self, path: str, first: bytes, columns: Columns) -> None:
        import pyarrow.csv

        self._csv = pyarrow.csv
        delimiter = "\t" if ".tsv" in os.path.basename(path) else ","
        self._how = pyarrow.csv.ParseOptions(delimiter=delimiter)
        self._include = columns.names
        self._types = {field.name: field.type for field in self._read(first, {}, {}).schema}
        # Its threads would parse ahead, some hundred MB of it.
        reads = pyarrow.csv.ReadOptions(use_threads=False)
        opened = pyarrow.csv.open_csv(io.BytesIO(first), reads, self._how)
        self._names = opened.schema.names

    def _read(self, text: bytes, names: dict[str, Any], types: dict[str, Any]) -> Any:
        reads = self._csv.ReadOptions(use_threads=False, block_size=max(len(text), 1), **names)
        wanted = self._csv.ConvertOptions(include_columns=self._include, column_types=types)
        return self._csv.read_csv(io.BytesIO(text), reads, self._how, wanted)

    def __call__(self, text: bytes, with_names: bool) -> Any:
        return self._read(text, {} if with_names else {"column_names": self._names}, self._types)


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
