"""What lies in a folder of checkpoints: the list of them, or else the whole ones themselves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from daskdml.io.states import DamagedError, head_of
from daskdml.io.store import retrying

FORMAT = 2
"""Of the list of checkpoints."""

LATEST = 2**37
"""Seconds since 1970 that `datetime` still knows."""

MOST = 2**63
"""No number of a checkpoint is as large."""

POINTER = "latest.json"
_NAME = re.compile(r"[0-9]{6,}\.state")


class CheckpointError(ValueError):
    """Checkpoints of another fit, a damaged list of them, or a place where none can be kept."""


@dataclass(frozen=True)
class Found:
    """The fit that a folder is of, its checkpoints, and a number that no object there exceeds."""

    fit: dict[str, Any]
    listed: list[dict[str, Any]]
    highest: int = 0


def found_at(fs: Any, path: str, url: str, tell: bool = True) -> Found | None:
    """What a folder's pointer lists, or the whole states if it is damaged; None without a pointer.

    Raises
    ------
    CheckpointError
        Where a newer daskdml wrote the pointer; or it is damaged, and the states do not tell what
        it said.
    """
    fs.invalidate_cache()
    name = f"{url}/{POINTER}"
    try:
        return _pointer(retrying(lambda: fs.cat_file(f"{path}/{POINTER}"), f"reading {name}"), name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise CheckpointError(
            f"{name} is no list of checkpoints but a folder; name another URL, or remove it"
        ) from error
    except DamagedError as error:
        damaged = f"{name} is no list of checkpoints, or a damaged one ({error})"
        found = _rebuilt(fs, path, url, damaged)
    if tell:
        names = ", ".join(entry["name"] for entry in found.listed)
        warnings.warn(
            f"{damaged}; what it said is taken from the whole checkpoints beside it: {names}",
            RuntimeWarning, stacklevel=3,
        )  # fmt: skip
    return found


def _pointer(text: bytes, name: str) -> Found:
    """What a pointer says; DamagedError where it is none, or not as it was written."""
    try:
        pointer = dict(json.loads(bytes(text)))
        said, has = pointer.pop("sha256", None), pointer["format"]
        agrees = said == checksum(pointer)
        if type(has) is int and has > FORMAT and (agrees or said is None):
            raise CheckpointError(
                f"{name} is of a newer daskdml: it has format {has}, and this one knows {FORMAT}; "
                "use the newer one, or name another URL"
            )
        if not agrees:
            raise DamagedError("its checksum is not that of what it says")
        fit, listed = dict(pointer["fit"]), list(pointer["checkpoints"])
        if has != FORMAT or not all(_is_entry(entry) for entry in listed):
            raise DamagedError("it says what no list does")
    except (CheckpointError, DamagedError):
        raise
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    return Found(fit, listed)


def _rebuilt(fs: Any, path: str, url: str, damaged: str) -> Found:
    """What a damaged pointer said, from the states that are whole; nothing is written."""
    try:
        there = retrying(lambda: fs.ls(path, detail=False), f"listing {url}")
    except PermissionError as error:
        raise CheckpointError(f"{damaged}; {error}") from error
    last_parts = (str(each).rstrip("/").rpartition("/")[2] for each in there)
    names = sorted(filter(_NAME.fullmatch, last_parts), key=_number, reverse=True)
    fits, listed = [], []
    for name in names:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, DamagedError):
            encoded = retrying(partial(fs.cat_file, f"{path}/{name}"), f"reading {url}/{name}")
            fit, facts = parsed_head(head_of(encoded))
            listed.append(entry_of(name, len(encoded), facts))
            fits.append(fit)
    if not fits:
        raise CheckpointError(
            f"{damaged}, and no whole checkpoint lies beside it; remove it, or name another URL"
        )
    for fit, entry in zip(fits, listed, strict=True):
        if fit != fits[0]:
            raise CheckpointError(
                f"{damaged}, and {listed[0]['name']} and {entry['name']} beside it are of two fits;"
                " remove the checkpoints of one of them, or name another URL"
            )
    return Found(fits[0], listed, _number(names[0]))


def parsed_head(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fit and the facts that a state begins with; DamagedError where it begins otherwise."""
    try:
        fit, facts = json.loads(text)
        if not _is_entry(entry_of("000000.state", 0, facts)):
            raise DamagedError("it says what no checkpoint does")
        return dict(fit), dict(facts)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(str(error)) from error


def entry_of(name: str, nbytes: int, facts: dict[str, Any]) -> dict[str, Any]:
    """What the pointer says of a state."""
    return facts | {"number": _number(name), "name": name, "nbytes": nbytes}


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def checksum(pointer: Mapping[str, Any]) -> str:
    """SHA-256 of a pointer's JSON, keys sorted and without spaces."""
    text = json.dumps(pointer, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_entry(entry: dict[str, Any]) -> bool:
    """Whether what a pointer lists may be a checkpoint; an error, too, says that it is none."""
    numbers = [entry["written"], *(entry[k] for k in ("objective", "gap") if entry[k] is not None)]
    names = entry.get("names", [])
    return (
        bool(_NAME.fullmatch(entry["name"]))
        and all(
            type(entry[k]) is int and 0 <= entry[k] < MOST for k in ("number", "nbytes", "n_iter")
        )
        and all(type(x) is float or (type(x) is int and abs(x) < MOST) for x in numbers)
        and 0 <= entry["written"] < LATEST
        and type(entry["ended"]) is bool
        and type(names) is list
        and all(type(name) is str for name in names)
    )
