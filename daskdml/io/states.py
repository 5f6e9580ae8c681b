"""Solver states as bytes: frozen dataclasses of numbers, texts and arrays, without pickle.

Reading one evaluates nothing and imports nothing: a class is taken only if a module of daskdml that
is loaded already has it. The layout is documented in docs/format.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
import sys
from typing import Any

import numpy as np

__all__ = ["DamagedError", "decode_state", "digest", "encode_state", "head_of"]

_MAGIC = b"daskdml state 1\n"
_HEAD = struct.Struct("<QQ")  # bytes of the tree and of the arrays
_DIGEST = hashlib.sha256().digest_size
_KINDS = "biufcSU"  # of arrays: nothing that would hold objects
_MOST_AXES = 64  # of an array of NumPy
_UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


class DamagedError(ValueError):
    """Bytes that are no state, or not the ones that were written."""


def encode_state(state: Any) -> bytearray:
    """Bytes of a state.

    Parameters
    ----------
    state : object
        None, bool, int, float, str, dtype, NumPy scalar type, NumPy array or scalar, or a list,
        tuple, dict with str keys, or dataclass of daskdml of such.

    Returns
    -------
    bytearray
        With a checksum; floats and arrays come back with the same bits. Arrays are copied once.

    Raises
    ------
    TypeError
        For anything else; names its type.

    Examples
    --------
    >>> decode_state(encode_state({"w": np.array([0.1, 2.0]), "t": (1, float("inf"))}))
    {'w': array([0.1, 2. ]), 't': (1, inf)}
    """
    arrays: list[np.ndarray] = []
    tree = json.dumps(_to_tree(state, arrays, [0])).encode()
    n_data = sum(array.nbytes for array in arrays)
    head = _MAGIC + _HEAD.pack(len(tree), n_data) + tree
    encoded = bytearray(len(head) + n_data + _DIGEST)
    encoded[: len(head)] = head
    at = len(head)
    for array in arrays:
        place = np.frombuffer(encoded, array.dtype, array.size, at)
        place.reshape(array.shape)[...] = array
        at += array.nbytes
    encoded[at:] = hashlib.sha256(memoryview(encoded)[:at]).digest()
    return encoded


def decode_state(encoded: bytes | bytearray) -> Any:
    """The state that `encode_state` made bytes of.

    Raises
    ------
    DamagedError
        If the bytes are not those that were written, name what this version does not know, or have
        arrays that together take more bytes than there are.
    """
    tree, data = _opened(encoded)
    try:
        return _from_tree(tree, _Arrays(data))
    except _UNREADABLE as error:
        raise DamagedError(f"this version of daskdml cannot read it: {error}") from error


def head_of(encoded: bytes | bytearray) -> str:
    """The text that a state begins with, which is a list; nothing else of it is made.

    Raises
    ------
    DamagedError
        If the bytes are not those that were written, or begin with something else.

    Examples
    --------
    >>> head_of(encode_state(["step 3", np.zeros(1000)]))
    'step 3'
    """
    tree, _ = _opened(encoded)
    try:
        text = tree["list"][0]
    except _UNREADABLE as error:
        raise DamagedError(f"this version of daskdml cannot read it: {error}") from error
    if not isinstance(text, str):
        raise DamagedError("it begins with no text")
    return text


def _opened(encoded: bytes | bytearray) -> tuple[Any, memoryview]:
    """The tree of a whole state, and the bytes of its arrays."""
    start = len(_MAGIC) + _HEAD.size
    body = memoryview(encoded)[:-_DIGEST]
    if not encoded.startswith(_MAGIC) or len(encoded) < start + _DIGEST:
        raise DamagedError("it is no state that daskdml wrote")
    if hashlib.sha256(body).digest() != bytes(encoded[-_DIGEST:]):
        raise DamagedError("its checksum is not that of its bytes")
    n_tree, n_data = _HEAD.unpack(body[len(_MAGIC) : start])
    if len(body) != start + n_tree + n_data:
        raise DamagedError("its lengths do not add up")
    try:
        return json.loads(bytes(body[start : start + n_tree])), body[start + n_tree :]
    except _UNREADABLE as error:
        raise DamagedError(f"this version of daskdml cannot read it: {error}") from error


def digest(state: Any) -> str:
    """Sixteen hexadecimal digits that tell a state from others.

    Examples
    --------
    >>> digest(None) == digest(None), digest(None) == digest(0)
    (True, False)
    """
    return hashlib.sha256(encode_state(state)).hexdigest()[:16]


def _to_tree(x: Any, arrays: list[np.ndarray], end: list[int]) -> Any:
    if x is None or isinstance(x, (bool, str)) or type(x) is int:
        return x
    if type(x) is float:
        return {"float": x.hex()}
    if isinstance(x, (np.ndarray, np.generic)):
        value = np.asarray(x)
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"an array of {value.dtype} cannot be part of a checkpoint")
        at = end[0]
        arrays.append(value)
        end[0] += value.nbytes
        kind = "array" if isinstance(x, np.ndarray) else "scalar"
        return {kind: [value.dtype.str, list(value.shape), at]}
    if isinstance(x, np.dtype):
        return {"dtype": x.str}
    if isinstance(x, type) and issubclass(x, np.generic):
        return {"type": np.dtype(x).str}
    if type(x) in (list, tuple):
        return {type(x).__name__: [_to_tree(part, arrays, end) for part in x]}
    if type(x) is dict and all(isinstance(key, str) for key in x):
        return {"dict": {key: _to_tree(part, arrays, end) for key, part in x.items()}}
    if dataclasses.is_dataclass(x) and type(x).__module__.startswith("daskdml."):
        fields = {f.name: _to_tree(getattr(x, f.name), arrays, end) for f in dataclasses.fields(x)}
        return {"class": [type(x).__module__, type(x).__qualname__], "fields": fields}
    raise TypeError(f"{type(x).__name__} cannot be part of a checkpoint")


class _Arrays:
    """The arrays' bytes; together, those who take some get no more than there are.

    Parameters
    ----------
    data : memoryview
    """

    def __init__(self, data: memoryview) -> None:
        self._data, self._left = data, len(data)

    def take(self, dtype: str, shape: list[int], at: int) -> np.ndarray:
        """Copy an array; ValueError where it is not there."""
        kind = np.dtype(dtype)
        if kind.kind not in _KINDS or len(shape) > _MOST_AXES or min([at, *shape]) < 0:
            raise ValueError("it has an array that is none")
        count = math.prod(shape)
        nbytes = count * kind.itemsize
        if at + nbytes > len(self._data):
            raise ValueError("an array lies outside of it")
        if nbytes > self._left:
            raise ValueError("its arrays take more bytes than it has")
        self._left -= nbytes
        return np.frombuffer(self._data, kind, count, at).reshape(shape).copy()


def _from_tree(node: Any, arrays: _Arrays) -> Any:
    if not isinstance(node, dict):
        return node
    if "class" in node:
        fields = {name: _from_tree(part, arrays) for name, part in node["fields"].items()}
        return _class_of(*node["class"])(**fields)
    ((kind, value),) = node.items()
    if kind == "float":
        return float.fromhex(value)
    if kind in ("array", "scalar"):
        dtype, shape, at = value
        found = arrays.take(dtype, shape, at)
        return found if kind == "array" else found[()]
    if kind == "dtype":
        return np.dtype(value)
    if kind == "type":
        return np.dtype(value).type
    if kind in ("list", "tuple"):
        parts = [_from_tree(part, arrays) for part in value]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {key: _from_tree(part, arrays) for key, part in value.items()}
    raise ValueError(f"there is no kind {kind!r} of value")


def _class_of(module: str, name: str) -> Any:
    loaded = sys.modules.get(module) if module.startswith("daskdml.") else None
    found = getattr(loaded, name, None)
    own = isinstance(found, type) and found.__module__ == module
    if not (own and dataclasses.is_dataclass(found)):
        raise ValueError(f"there is no class {module}.{name}")
    return found
