"""A data set: rows in a Zarr group, opened where they are used."""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from daskdml.io import buffers
from daskdml.io.chunks import ChunkReader, ReadStats, Wanted, read_many
from daskdml.io.identity import Identity, identity
from daskdml.io.layout import PARTS, Opened, open_arrays, opened_arrays
from daskdml.io.options import StorageOptions, quiet
from daskdml.io.store import resolve_url
from daskdml.io.views import Cut, RowView, Step, row_view
from daskdml.kernels.block import Block
from daskdml.units import bytes_text

__all__ = ["Dataset", "open_dataset"]


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
        self._options = quiet(storage_options)
        self._steps = steps
        self._identity = identity
        self._state: tuple[Opened, RowView] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}

    def _opened(self) -> tuple[Opened, RowView]:
        # Asked each time: another data set may have been written to the URL in the meantime.
        opened = opened_arrays(self._url, self._options, self._identity)
        if self._state is None or self._state[0] is not opened:
            view = row_view(opened.X.n_rows, opened.X.chunk_rows, self._steps)
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
    def storage_options(self) -> StorageOptions:
        """A copy of the options of the file system: a dict that prints without its values."""
        return StorageOptions(self._options or {})

    @property
    def token(self) -> str:
        """A name of these very rows: another data set or view has another one."""
        text = repr((self._url, self._identity, self._steps))
        return f"dataset-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def written(self) -> str | None:
        """Digits of the write that made these rows, and of the view; None where others wrote."""
        if self._identity is None:
            return None
        return hashlib.sha256(repr((self._identity, self._steps)).encode()).hexdigest()[:32]

    @property
    def identity(self) -> Identity:
        """What tells these rows from others in any process, also where others wrote the group."""
        return [self.token, identity(self._arrays.X.array)]

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
        return self.then(Cut(start, max(start, stop)))

    def then(self, step: Step) -> Dataset:
        """Give the view after one more step (see `daskdml.io.views`)."""
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
        stats, wanted = ReadStats(), list[Wanted]()
        got: dict[str, np.ndarray | None] = {"X": np.empty((stop - start, 0), self.dtype)}
        for part in parts:
            reader = opened.reader(part)
            if reader is None:
                continue
            out = buffers.empty((stop - start, *reader.shape[1:]), reader.dtype)
            for run in runs:
                if isinstance(run.rows, slice):
                    rows = run.rows.start, run.rows.stop
                    wanted.append(Wanted(reader, *rows, out[run.lo : run.hi]))
                else:
                    stats += _pick(reader, run.rows, out[run.lo : run.hi])
            got[part] = out
        stats += read_many(wanted)
        y = got.get("y")
        if y is not None and opened.labels is not None:
            if len(y) and not 0 <= y.min() <= y.max() < len(opened.labels):
                raise ValueError(
                    f"{self._url} is damaged: y has codes of classes that it has no names for; "
                    "restore it or write the data set again"
                )
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
            ("bytes", bytes_text(self.nbytes)),
            ("chunks", f"{n_chunks:,} of {self.chunks:,} rows"),
            ("with", ", ".join(also) or "X only"),
            ("url", self._url),
        ]

    def __repr__(self) -> str:
        try:
            facts = dict(self._facts())
        except (OSError, ValueError) as error:
            return f"<Dataset {self._url}, which cannot be opened: {error}>"
        return f"<Dataset {facts['X']}, {facts['bytes']}, chunks: {facts['chunks']}; {self._url}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._facts()
        )
        return f"<table><caption>daskdml Dataset</caption>{rows}</table>"


def _pick(reader: ChunkReader, rows: np.ndarray, out: np.ndarray) -> ReadStats:
    first = int(rows[0])
    whole, stats = reader.read(first, int(rows[-1]) + 1)
    np.take(whole, rows - first, axis=0, out=out, mode="clip")
    return stats


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
    options = quiet(storage_options)
    return Dataset(resolved, options, identity=open_arrays(resolved, options).identity)
