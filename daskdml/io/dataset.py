"""A data set: rows in a Zarr group, opened where they are used."""

from __future__ import annotations

import hashlib
import html
import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from daskdml.io import buffers
from daskdml.io.chunks import ChunkReader, ReadStats
from daskdml.io.store import open_node, resolve_url
from daskdml.io.views import Cut, Pick, RowView, Step
from daskdml.kernels.block import Block

__all__ = ["FORMAT", "PARTS", "Dataset", "open_dataset", "train_test_split"]

FORMAT = 1
"""Version of the layout, in the group's attributes."""

PARTS = ("X", "y", "sample_weight")


@dataclass(frozen=True)
class Opened:
    """The arrays and attributes of a data set, as read from its URL in this process."""

    X: ChunkReader
    y: ChunkReader | None
    sample_weight: ChunkReader | None
    identity: str | None
    labels: np.ndarray | None
    feature_names: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    metadata: dict[str, Any]

    def reader(self, part: str) -> ChunkReader | None:
        """Give the reader of a part, None where the data set does not have it."""
        return getattr(self, part) if part in PARTS else None


_CACHE: dict[tuple[str, str], Opened] = {}
_CACHE_SIZE = 64
_LOCK = threading.Lock()


def _open(url: str, storage_options: dict[str, Any] | None) -> Opened:
    """Open the data set at a URL afresh, and remember it for this process."""
    node = open_node(url, storage_options)
    opened = _from_group(url, node)
    with _LOCK:
        while len(_CACHE) >= _CACHE_SIZE:
            del _CACHE[next(iter(_CACHE))]
        _CACHE[url, repr(storage_options)] = opened
    return opened


def _from_group(url: str, node: zarr.Group | zarr.Array[Any]) -> Opened:
    if isinstance(node, zarr.Array):
        raise ValueError(
            f"{url} is a single Zarr array, not a data set; pass zarr.open(url) as X, and y beside "
            "it, or store both with daskdml.io.write_dataset"
        )
    if node.metadata.zarr_format != 3:
        raise ValueError(
            f"{url} is a Zarr v2 group, a data set is Zarr v3; copy it: g = zarr.open(url); "
            "daskdml.io.write_dataset(new_url, g['X'], g['y'])"
        )
    attrs: dict[str, Any] = dict(node.attrs)
    own = attrs.get("daskdml")
    if own is not None and own.get("format") != FORMAT:
        raise ValueError(
            f"{url} has format {own.get('format')!r}, this version of daskdml reads {FORMAT}; "
            "update daskdml"
        )
    if own is not None and not own.get("complete"):
        raise ValueError(
            f"{url} is an unfinished data set: its writing is in progress or was cut off; wait "
            "for it, or write it again with overwrite=True"
        )
    prefix = (own or {}).get("prefix", "")
    readers = {part: _reader(node, prefix + part, own is not None) for part in PARTS}
    X = readers["X"]
    if X is None:
        raise ValueError(f"{url} is a Zarr group without an array X; a data set has one")
    _check_shapes(url, readers)
    names = attrs.get("class_names")
    return Opened(
        X,
        readers["y"],
        readers["sample_weight"],
        (own or {}).get("id"),
        np.array(names) if (own or {}).get("y_is_code") else None,
        _strings(attrs.get("feature_names")),
        _strings(names),
        attrs.get("metadata") or {},
    )


def _strings(names: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _reader(group: zarr.Group, name: str, strict: bool) -> ChunkReader | None:
    node = group.get(name)
    return ChunkReader(node, strict=strict) if isinstance(node, zarr.Array) else None


def _check_shapes(url: str, readers: Mapping[str, ChunkReader | None]) -> None:
    X = readers["X"]
    assert X is not None
    if len(X.shape) != 2:
        raise ValueError(f"{url}: X has shape {X.shape}, but a data set needs rows x features")
    for part in PARTS[1:]:
        other = readers[part]
        if other is not None and other.shape != X.shape[:1]:
            raise ValueError(
                f"{url}: {part} has shape {other.shape}, but X has {X.n_rows} rows; write the data "
                "set again"
            )


class Dataset:
    """Rows stored as chunked Zarr arrays, or a view of some of them.

    Made by `open_dataset` and `write_dataset`. It holds no rows; a pickle holds the URL, the
    storage options and the view, and opens the arrays where it is used. Slicing (``ds[:1000]``)
    and `train_test_split` give views without copying.

    Examples
    --------
    >>> import daskdml.io, numpy as np
    >>> ds = daskdml.io.write_dataset("memory://doc.zarr", np.eye(4), np.arange(4), overwrite=True)
    >>> ds[1:3].read(0, 2)[0].y
    array([1, 2])
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        steps: tuple[Step, ...] = (),
        identity: str | None = None,
    ) -> None:
        self._url = url
        self._options = dict(storage_options) if storage_options else None
        self._steps = steps
        self._identity = identity
        self._state: tuple[Opened, RowView] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}

    def _opened(self) -> tuple[Opened, RowView]:
        if self._state is None:
            opened = _CACHE.get((self._url, repr(self._options)))
            if opened is None or opened.identity != self._identity:
                opened = _open(self._url, self._options)
            if opened.identity != self._identity:
                raise ValueError(
                    f"{self._url} was overwritten since this Dataset was opened; open it again"
                )
            view = RowView(opened.X.n_rows, opened.X.chunk_rows, self._steps)
            self._state = opened, view
        return self._state

    @property
    def _arrays(self) -> Opened:
        return self._opened()[0]

    @property
    def _view(self) -> RowView:
        return self._opened()[1]

    @property
    def url(self) -> str:
        """Where the data set is: an absolute path or an fsspec URL."""
        return self._url

    @property
    def storage_options(self) -> dict[str, Any]:
        """A copy of the options of the file system."""
        return dict(self._options or {})

    @property
    def token(self) -> str:
        """A name of these very rows: another data set or view has another one."""
        text = repr((self._url, self._identity, self._steps))
        return f"dataset-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def n_rows(self) -> int:
        """Rows of the view."""
        return self._view.n_rows

    @property
    def n_features(self) -> int:
        """Columns of X."""
        return self._arrays.X.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_features)."""
        return self.n_rows, self.n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of X."""
        return self._arrays.X.dtype

    def dtype_of(self, part: str) -> np.dtype[Any]:
        """Give the dtype in which a stored part ("X", "y" or "sample_weight") is read."""
        reader = self._arrays.reader(part)
        if reader is None:
            raise ValueError(
                f"{self._url} has no {part}; its parts are {list(PARTS)}, y and "
                "sample_weight optional"
            )
        labels = self._arrays.labels
        return labels.dtype if part == "y" and labels is not None else reader.dtype

    @property
    def chunks(self) -> int:
        """Rows per stored chunk."""
        return self._arrays.X.chunk_rows

    @property
    def chunk_bounds(self) -> tuple[int, ...]:
        """Rows of the view at which a new stored chunk begins; first 0, last n_rows.

        Reading between two of them touches no chunk of another such range.
        """
        return self._view.bounds

    @property
    def nbytes(self) -> int:
        """Bytes of the view's X, decoded."""
        return self.n_rows * self.n_features * self.dtype.itemsize

    @property
    def has_y(self) -> bool:
        """Whether targets are stored."""
        return self._arrays.y is not None

    @property
    def has_sample_weight(self) -> bool:
        """Whether weights are stored."""
        return self._arrays.sample_weight is not None

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns of X, if they were given."""
        return self._arrays.feature_names

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, if they were given or y is made of strings."""
        return self._arrays.class_names

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what the writer noted."""
        return dict(self._arrays.metadata)

    @property
    def scratch_nbytes(self) -> int:
        """Bytes that a read may hold for a moment beside the rows it returns."""
        opened, view = self._opened()
        readers = [r for r in map(opened.reader, PARTS) if r is not None]
        picking = 0 if view.consecutive else opened.X.chunk_rows * self.n_features
        return max(r.scratch_nbytes for r in readers) + picking * self.dtype.itemsize

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, rows: slice) -> Dataset:
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError("a Dataset is indexed by a slice of consecutive rows, as in ds[:1000]")
        start, stop, _ = rows.indices(self.n_rows)
        return self._with(Cut(start, max(start, stop)))

    def _with(self, step: Step) -> Dataset:
        steps = self._view.then(step).steps
        return Dataset(self._url, self._options, steps=steps, identity=self._identity)

    def read(self, start: int, stop: int, parts: Iterable[str] = PARTS) -> tuple[Block, ReadStats]:
        """Read rows [start, stop) of the view.

        Parameters
        ----------
        start, stop : int
            0 <= start <= stop <= n_rows.
        parts : iterable of {"X", "y", "sample_weight"}
            What to read; parts that are not stored are None in the block.

        Returns
        -------
        block : Block
            In the stored dtypes, string labels as strings; X is of shape (n, 0) where it was not
            asked for.
        stats : ReadStats

        Raises
        ------
        ChunkError
            Where a stored chunk is missing or damaged; names it.
        """
        parts = tuple(parts)
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise ValueError(f"unknown parts {sorted(unknown)}; a data set has {list(PARTS)}")
        opened, view = self._opened()
        runs = view.runs(start, stop)
        stats = ReadStats()
        got: dict[str, np.ndarray | None] = {"X": np.empty((stop - start, 0), self.dtype)}
        for part in parts:
            reader = opened.reader(part)
            if reader is None:
                continue
            out = buffers.empty((stop - start, *reader.shape[1:]), reader.dtype)
            for run in runs:
                stats += _read_run(reader, run.rows, out[run.lo : run.hi])
            got[part] = out
        y = got.get("y")
        if y is not None and opened.labels is not None:
            y = opened.labels[y]
        X = got["X"]
        assert X is not None
        return Block(X, y, got.get("sample_weight")), stats

    def to_dask(self) -> tuple[Any, Any]:
        """Give the rows as Dask arrays, chunked as the view is stored.

        Returns
        -------
        X : dask.array.Array of shape (n_rows, n_features)
        y : dask.array.Array of shape (n_rows,) or None
        """
        from daskdml.io.lazy import dask_arrays

        return dask_arrays(self)

    def _facts(self) -> list[tuple[str, str]]:
        also = [part for part in PARTS[1:] if self._arrays.reader(part) is not None]
        n_chunks = len(self.chunk_bounds) - 1
        return [
            ("X", f"{self.n_rows:,} rows x {self.n_features:,} features, {self.dtype}"),
            ("bytes", _human(self.nbytes)),
            ("chunks", f"{n_chunks:,} of {self.chunks:,} rows"),
            ("with", ", ".join(also) or "X only"),
            ("url", self._url),
        ]

    def __repr__(self) -> str:
        facts = dict(self._facts())
        return f"<Dataset {facts['X']}, {facts['bytes']}, chunks: {facts['chunks']}; {self._url}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._facts()
        )
        return f"<table><caption>daskdml Dataset</caption>{rows}</table>"


def _read_run(reader: ChunkReader, rows: slice | np.ndarray, out: np.ndarray) -> ReadStats:
    if isinstance(rows, slice):
        return reader.read(rows.start, rows.stop, out)[1]
    first = int(rows[0])
    whole, stats = reader.read(first, int(rows[-1]) + 1)
    np.take(whole, rows - first, axis=0, out=out, mode="clip")
    return stats


def _human(nbytes: int) -> str:
    size, units = float(nbytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"


def open_dataset(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Dataset:
    """Open a data set for reading; only its metadata are read.

    Parameters
    ----------
    url : str or path
        Any fsspec URL (``s3://bucket/train.zarr``) or a local path.
    storage_options : mapping or None
        Options of the file system, such as keys and endpoints.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        Where nothing lies at the URL.
    ImportError
        Where the package for the URL's protocol is missing; names the extra to install.
    ValueError
        Where the group is unfinished, is Zarr v2, or has no two-dimensional X.

    Examples
    --------
    >>> import daskdml.io, numpy as np
    >>> _ = daskdml.io.write_dataset("memory://doc.zarr", np.eye(3), overwrite=True)
    >>> open_dataset("memory://doc.zarr").shape
    (3, 3)
    """
    resolved = resolve_url(url)
    options = dict(storage_options) if storage_options else None
    return Dataset(resolved, options, identity=_open(resolved, options).identity)


def train_test_split(
    ds: Dataset,
    test_size: float | int = 0.25,
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    shuffle: bool = True,
) -> tuple[Dataset, Dataset]:
    """Split a data set into two views, without copying or reading it.

    Parameters
    ----------
    ds : Dataset
        May be a view itself.
    test_size : float or int
        A share of the rows (rounded up) or their number.
    random_state : int, numpy.random.Generator, numpy.random.RandomState or None
        Seed of the choice; None takes a new one.
    shuffle : bool
        Choose test rows at random within each stored chunk, so that a pass over either view reads
        every chunk once; else the last rows are the test rows.

    Returns
    -------
    train, test : Dataset
        Every row of `ds` is in exactly one of them, in stored order.

    Examples
    --------
    >>> import daskdml.io, numpy as np
    >>> ds = daskdml.io.write_dataset("memory://doc.zarr", np.eye(10), overwrite=True)
    >>> train, test = train_test_split(ds, test_size=0.3, random_state=0)
    >>> len(train), len(test)
    (7, 3)
    """
    n_test = _count_test(ds.n_rows, test_size)
    if not shuffle:
        return ds[: ds.n_rows - n_test], ds[ds.n_rows - n_test :]
    seed = _seed(random_state)
    return ds._with(Pick(seed, n_test, False)), ds._with(Pick(seed, n_test, True))


def _count_test(n_rows: int, test_size: float | int) -> int:
    whole = isinstance(test_size, int | np.integer) and not isinstance(test_size, bool)
    n_test = int(test_size) if whole else math.ceil(float(test_size) * n_rows)
    if not 0 < n_test < n_rows or not (whole or 0 < test_size < 1):
        raise ValueError(
            f"test_size={test_size} of {n_rows} rows leaves one side empty or is no share; give a "
            "number of rows, or a share between 0 and 1"
        )
    return n_test


def _seed(random_state: int | np.random.Generator | np.random.RandomState | None) -> int:
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, int | np.integer):
        if random_state < 0:
            raise ValueError(f"random_state={random_state} is negative; give a number from 0 up")
        return int(random_state)
    return int(np.random.default_rng(random_state).integers(2**63))
