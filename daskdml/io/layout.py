"""What lies at the URL of a data set: the layout that docs/format.md describes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from daskdml.io.chunks import ChunkReader
from daskdml.io.options import StorageOptions
from daskdml.io.store import describing, open_node, retrying, unfinished

__all__ = ["FORMAT", "PARTS", "Opened", "open_arrays", "opened_arrays"]

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


def _key(url: str, storage_options: StorageOptions | None) -> tuple[str, str]:
    return url, storage_options.digest if storage_options else ""


def open_arrays(url: str, storage_options: StorageOptions | None) -> Opened:
    """Open the data set at a URL afresh, and remember it for this process."""
    node = open_node(url, storage_options)
    with describing(url):
        opened = _from_group(url, node)
    with _LOCK:
        while len(_CACHE) >= _CACHE_SIZE:
            del _CACHE[next(iter(_CACHE))]
        _CACHE[_key(url, storage_options)] = opened
    return opened


def opened_arrays(url: str, storage_options: StorageOptions | None, identity: str | None) -> Opened:
    """Give the data set at a URL as this process knows it, opening it where it must.

    Raises
    ------
    ValueError
        Where another data set than the one of that `identity` is there now.
    """
    opened = _CACHE.get(_key(url, storage_options))
    if opened is None or opened.identity != identity:
        opened = open_arrays(url, storage_options)
    if opened.identity != identity:
        raise ValueError(f"{url} was overwritten since this Dataset was opened; open it again")
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
        raise ValueError(unfinished(url))
    prefix = (own or {}).get("prefix", "")
    readers = {part: _reader(url, node, prefix + part, own is not None) for part in PARTS}
    X = readers["X"]
    if X is None:
        raise ValueError(f"{url} is a Zarr group without an array X; a data set has one")
    _check_parts(url, own, readers)
    _check_shapes(url, readers)
    names = _strings(url, attrs.get("class_names"))
    coded = False if own is None else own.get("y_is_code")
    if type(coded) is not bool or (coded and names is None):
        raise ValueError(f"{url} does not say what its targets are; write the data set again")
    return Opened(
        X,
        readers["y"],
        readers["sample_weight"],
        (own or {}).get("id"),
        np.array(names, dtype=str) if coded else None,
        _strings(url, attrs.get("feature_names")),
        names,
        dict(attrs.get("metadata") or {}),
    )


def _strings(url: str, names: Any) -> tuple[str, ...] | None:
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"{url} has names that are no list of strings; write the data set again")
    return None if names is None else tuple(names)


def _reader(url: str, group: zarr.Group, name: str, strict: bool) -> ChunkReader | None:
    node = retrying(lambda: group.get(name), f"opening {name} of {url}")
    return ChunkReader(node, strict=strict) if isinstance(node, zarr.Array) else None


def _check_parts(url: str, own: Any, readers: Mapping[str, ChunkReader | None]) -> None:
    """Hold what is there against what was noted when it was written, if it was."""
    noted = (own or {}).get("parts", [])
    if not isinstance(noted, list) or any(part not in PARTS for part in noted):
        raise ValueError(f"{url} does not say what its arrays are; write the data set again")
    missing = [part for part in noted if readers[part] is None]
    if missing:
        raise ValueError(
            f"{url} is damaged: its array {missing[0]} is missing; restore it or write the data "
            "set again"
        )


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
