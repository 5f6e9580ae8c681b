"""What lies at the URL of ratings: arrays and attributes, held against each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import zarr

from daskdml.io.chunks import ChunkReader
from daskdml.io.layout import FORMAT
from daskdml.io.store import describing, retrying, unfinished

__all__ = ["Side", "Stored", "Walk", "as_ids", "damaged", "from_node"]

Walk = Literal["user", "item"]
SIDES: tuple[Walk, Walk] = ("user", "item")


@dataclass(frozen=True)
class Side:
    """The users or the items of a store, in the order of its blocks.

    Parameters
    ----------
    ids : ndarray of shape (n,)
        Ids as the source had them, int64 or str.
    bounds : ndarray of shape (n_blocks + 1,)
        Where each block begins.
    """

    ids: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def order(self) -> np.ndarray:
        """What sorts the ids."""
        return np.argsort(self.ids, kind="stable")

    def find(self, ids: Any) -> np.ndarray:
        """Places of ids, -1 for those that are not here.

        Examples
        --------
        >>> Side(np.array([30, 10, 20]), np.array([0, 3])).find([10, 11])
        array([ 1, -1])
        """
        wanted = as_ids(ids)
        if len(self) == 0 or wanted.dtype.kind != self.ids.dtype.kind:
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.ids, wanted, sorter=self.order), len(self) - 1)
        places = self.order[at]
        return np.where(self.ids[places] == wanted, places, -1)


def as_ids(ids: Any) -> np.ndarray:
    """Ids as they are kept: integers as int64, all else as str.

    Examples
    --------
    >>> as_ids([1, 2]).dtype, as_ids(["a"]).dtype, as_ids([2**70])
    (dtype('int64'), dtype('<U1'), array(['1180591620717411303424'], dtype='<U22'))
    """
    given = np.ravel(np.asarray(ids))
    if given.dtype.kind == "b" or len(given) == 0:
        return given.astype(np.int64)
    if given.dtype.kind in "iu" and not (given.dtype == np.uint64 and given.max() > 2**63 - 1):
        return given.astype(np.int64)
    if given.dtype.kind == "f" and np.array_equal(given, np.trunc(given)):
        return given.astype(np.int64)
    if given.dtype == object and all(
        isinstance(i, int | np.integer) and -(2**63) <= int(i) < 2**63 for i in given
    ):
        return given.astype(np.int64)
    return given.astype(str)


@dataclass(frozen=True)
class Stored:
    """Arrays and attributes of a store, as opened in this process; `name` is for errors."""

    name: str
    arrays: dict[str, ChunkReader]
    facts: dict[str, Any]

    @cached_property
    def nnz(self) -> np.ndarray:
        """Ratings of each block, (p, q)."""
        p, q = self.facts["grid"]
        nnz = self._whole("blocks/nnz")
        widest = min(self.arrays[f"by_{walk}/index"].shape[1] for walk in SIDES)
        if len(nnz) != p * q or not 0 <= nnz.min(initial=0) <= nnz.max(initial=0) <= widest:
            raise damaged(self.name, "its blocks have numbers of ratings that cannot be")
        if nnz.sum() != self.facts["ratings"]:
            raise damaged(self.name, f"its blocks do not hold {self.facts['ratings']:,} ratings")
        return nnz.reshape(p, q)

    @cached_property
    def last(self) -> np.ndarray:
        """Place of the item that each user rated last, (users,)."""
        return self._whole("users/last")  # compared with places, never one

    def bounds(self, walk: Walk) -> np.ndarray:
        """Where the blocks of users or items begin, (n_blocks + 1,); no ids are read."""
        return self._user_bounds if walk == "user" else self._item_bounds

    @cached_property
    def _user_bounds(self) -> np.ndarray:
        return self._bounds("users", self.facts["grid"][0])

    @cached_property
    def _item_bounds(self) -> np.ndarray:
        return self._bounds("items", self.facts["grid"][1])

    def _bounds(self, name: str, n_blocks: int) -> np.ndarray:
        found = self._whole(f"{name}/bounds")
        ends = len(found) == n_blocks + 1 and (found[0], found[-1]) == (0, self.facts[name])
        if not ends or (np.diff(found) < 0).any():
            raise damaged(self.name, f"the blocks of its {name} do not follow each other")
        return found

    def side(self, walk: Walk) -> Side:
        """Ids and block bounds of users or items."""
        return self._users if walk == "user" else self._items

    @cached_property
    def _users(self) -> Side:
        return self._side("users")

    @cached_property
    def _items(self) -> Side:
        return self._side("items")

    def _side(self, name: str) -> Side:
        bounds = self.bounds("user" if name == "users" else "item")
        if f"{name}/id" in self.arrays:
            return Side(self._whole(f"{name}/id"), bounds)
        text = self._whole(f"{name}/id_utf8").tobytes()
        ends = self._whole(f"{name}/id_ends").tolist()
        starts = [0, *ends[:-1]]
        if sorted(starts) != starts or (ends and not starts[-1] <= ends[-1] == len(text)):
            raise damaged(self.name, f"the ids of its {name} do not follow each other")
        ids = [text[a:b].decode() for a, b in zip(starts, ends, strict=True)]
        return Side(np.array(ids, dtype=str), bounds)

    def _whole(self, name: str) -> np.ndarray:
        return self.arrays[name].read(0, self.arrays[name].n_rows)[0]


def damaged(name: str, why: str) -> ValueError:
    """What is raised for ratings that cannot be used."""
    return ValueError(f"{name} is damaged: {why}; restore it or convert the ratings again")


_ALWAYS = {"blocks/nnz", "users/bounds", "items/bounds"} | {
    f"by_{walk}/{part}" for walk in SIDES for part in ("indptr", "index", "value")
}


def from_node(url: str, node: Any) -> Stored:
    """The arrays of a Zarr group of ratings, checked; `url` names it in errors."""
    attributes: dict[str, Any] = dict(node.attrs) if isinstance(node, zarr.Group) else {}
    own: dict[str, Any] = attributes.get("daskdml") or {}
    if own.get("complete") is False:
        raise ValueError(unfinished(url))
    if own.get("kind") != "ratings":
        raise ValueError(
            f"{url} holds no ratings; write them there with daskdml.io.convert_ratings(source, url)"
        )
    if own.get("format") != FORMAT:
        raise ValueError(
            f"{url} has format {own.get('format')!r}, this version of daskdml reads {FORMAT}; "
            "update daskdml"
        )
    with describing(url):
        return Stored(url, _arrays(url, node, own), own)


def _arrays(url: str, node: Any, own: dict[str, Any]) -> dict[str, ChunkReader]:
    """What the attributes name, if they and the arrays fit together."""
    prefix = own.get("prefix", "")
    p, q = own["grid"]
    counts = [p, q, own["users"], own["items"], own["ratings"]]
    if not all(type(n) is int and n >= 0 for n in counts) or min(p, q) < 1:
        raise damaged(url, f"its grid or its numbers of users, items and ratings are {counts}")
    numbers = [own[name] for name in ("sum", "least", "largest") if own.get(name) is not None]
    if not all(type(n) in (int, float) for n in numbers):
        raise damaged(url, "what it says of the sum and range of its ratings is no number")
    if own["dtype"] not in ("float32", "float64") or not isinstance(own["id"], str):
        raise damaged(url, "its attributes name another dtype or no id")
    arrays = {}
    for name in own["arrays"]:
        found = retrying(partial(node.get, prefix + name), f"opening {name} of {url}")
        if not isinstance(found, zarr.Array):
            raise ValueError(
                f"{url} is truncated: its array {prefix + name} is missing; restore it or convert "
                "the ratings again"
            )
        arrays[name] = ChunkReader(found, strict=True)
        wanted = p * q if name.startswith("by_") else None
        if wanted is not None and (found.ndim != 2 or found.shape[0] != wanted):
            raise damaged(url, f"{name} has shape {found.shape} for a grid of {p} x {q}")
        if name.endswith("/value") and found.dtype != own["dtype"]:
            raise damaged(url, f"{name} has dtype {found.dtype} instead of {own['dtype']}")
    for name in _ALWAYS - set(arrays):
        raise damaged(url, f"its attributes do not name {name}")
    return arrays
