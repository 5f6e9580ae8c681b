"""Where a fit stands, written beside its work, and taken up again."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dask.utils import parse_timedelta

from daskdml.engine.listing import (
    FORMAT,
    POINTER,
    CheckpointError,
    checksum,
    entry_of,
    found_at,
    parsed_head,
)
from daskdml.engine.survey import NUMERICAL
from daskdml.io.durable import put_file
from daskdml.io.options import StorageOptions, quiet
from daskdml.io.states import DamagedError, decode_state, digest, encode_state
from daskdml.io.store import filesystem, is_local, resolve_url, retrying

PROBE, PROBE_NBYTES = "probe", 10_000  # a full disk still takes empty files

_LEFT: dict[str, Future[None]] = {}
"""What fits that were interrupted are still writing, by URL."""


@dataclass(frozen=True)
class CheckpointPlace:
    """Where and how often checkpoints are written.

    Parameters
    ----------
    url : str
        A folder at a resolved URL, for one fit.
    every : float
        Seconds between two checkpoints, at least.
    keep : int
        How many stay.
    options : StorageOptions or None
        Of the file system.
    """

    url: str
    every: float
    keep: int
    options: StorageOptions | None = field(default=None, repr=False)


class Checkpoints:
    """Checkpoints of one fit: objects ``<number>.state``, and a pointer that is put last.

    The pointer lists those that are whole, newest first; a state is written by a thread of its own
    while the fit goes on. Readers see the old list or the new one, also where nothing can be
    renamed. Each state has what the list says of it, so that a damaged list is made again.
    """

    def __init__(self, place: CheckpointPlace) -> None:
        self.place = place
        self._fs, self._path = _folder(place)
        self._local = is_local(place.url)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskdml-checkpoint")
        self._writing: list[Future[None]] = []
        self._last = time.monotonic()
        self._fit: dict[str, Any] | None = None
        self._listed: list[dict[str, Any]] = []
        self._damaged: list[dict[str, Any]] = []
        self._highest = 0
        if place.url in _LEFT:
            wait([_LEFT.pop(place.url)])
        self._try_to_write()
        found = found_at(self._fs, self._path, place.url)
        if found is not None and found.listed:
            self._fit, self._listed, self._highest = found.fit, found.listed, found.highest

    def claim(self, fingerprint: Mapping[str, Any]) -> None:
        """Say which fit this is.

        Parameters
        ----------
        fingerprint : mapping of str to what JSON has
            What the result depends on.

        Raises
        ------
        CheckpointError
            Where there are checkpoints of another fit; says in what it differs.
        """
        ours = json.loads(json.dumps(dict(fingerprint)))
        theirs = ours if self._fit is None else self._fit
        for key in sorted(set(theirs) | set(ours), key=_told_first):
            a, b = theirs.get(key), ours.get(key)
            if a != b:
                raise CheckpointError(
                    f"{self.place.url} has checkpoints of another fit: {key} was {a!r} and is now "
                    f"{b!r}; name another URL, or remove that folder"
                )
        self._fit = ours

    def recall(self, key: str) -> Any:
        """What the fingerprint of the checkpoints that are there says, or None."""
        return None if self._fit is None else self._fit.get(key)

    @property
    def mark(self) -> str:
        """Digits of the fit that was claimed."""
        return digest(self._fit)

    def names(self) -> set[str]:
        """Of what lies elsewhere, and the checkpoints that there are rely on."""
        return {name for entry in self._listed for name in entry.get("names", ())}

    def load(self, there: Collection[str] = ()) -> Any:
        """The newest state that is whole, or None where there is none.

        Parameters
        ----------
        there : collection of str
            Names of what lies elsewhere; a state that relies on anything else is not whole.
        """
        for entry in list(self._listed):
            name = f"{self.place.url}/{entry['name']}"
            try:
                encoded = retrying(lambda n=entry["name"]: self._get(n), f"reading {name}")  # type: ignore[misc]
                head, state = decode_state(encoded)
                if parsed_head(head)[0] != self._fit:
                    raise DamagedError("it is of another fit")
                missing = [each for each in entry.get("names", ()) if each not in there]
                if missing:
                    raise DamagedError(f"{missing[0]}, which it names, is gone")
                return state
            except (FileNotFoundError, IsADirectoryError, TypeError, ValueError) as error:
                why = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
                warnings.warn(
                    f"the checkpoint {name} is damaged ({why}); the one before it is taken, or the "
                    "fit begins anew",
                    RuntimeWarning, stacklevel=2,
                )  # fmt: skip
                self._listed.remove(entry)
                self._damaged.append(entry)
        return None

    def offer(self, state: Callable[[], Any], facts: Mapping[str, Any], now: bool = False) -> bool:
        """Write a state if the last one is old enough and written; or `now`, after the last one.

        Where no time is to pass between two, each is written, and waits for the one before.

        `state` is called by the thread that writes. Tells whether it will be.
        """
        if self.place.every == 0:
            wait(self._writing)
        self._note_written()
        due = time.monotonic() - self._last >= self.place.every
        if not now and (self._writing or not due):
            return False
        self._last = time.monotonic()
        self._writing.append(self._thread.submit(self._write, state, dict(facts)))
        return True

    def close(self, patience: float | None = None) -> None:
        """Wait until what is being written is written, but not longer than so many seconds."""
        self._thread.shutdown(wait=False)
        wait(self._writing, patience)
        self._note_written()
        if self._writing:
            _LEFT[self.place.url] = self._writing[-1]
            warnings.warn(
                f"the last checkpoint is still being written at {self.place.url}; it will be whole "
                "before this process ends, or the next fit there begins",
                RuntimeWarning, stacklevel=3,
            )  # fmt: skip

    def _note_written(self) -> None:
        """Warn where a checkpoint could not be written: no reason to lose the fit, too."""
        done = [each for each in self._writing if each.done()]
        self._writing = [each for each in self._writing if each not in done]
        for error in filter(None, [each.exception() for each in done]):
            warnings.warn(
                f"a checkpoint could not be written at {self.place.url} ({error}); the fit goes "
                "on without it, and the checkpoints before it stay",
                RuntimeWarning, stacklevel=3,
            )  # fmt: skip

    def _write(self, state: Callable[[], Any], facts: dict[str, Any]) -> None:
        known = [*self._listed, *self._damaged]
        number = 1 + max([self._highest, *(entry["number"] for entry in known)])
        facts = facts | {"written": time.time()}
        encoded = encode_state([json.dumps([self._fit, facts]), state()])
        name = f"{number:06d}.state"
        found = found_at(self._fs, self._path, self.place.url, tell=False)
        if found is not None and found.listed and found.fit != self._fit:
            raise CheckpointError("another fit has begun to keep its own there; name another URL")
        retrying(lambda: self._put(name, encoded), f"writing {self.place.url}/{name}")
        listed = [entry_of(name, len(encoded), facts), *self._listed]
        self._put_pointer(listed[: self.place.keep])
        for old in [*listed[self.place.keep :], *self._damaged]:
            with contextlib.suppress(IsADirectoryError):
                self._remove(old["name"])
        self._listed, self._damaged = listed[: self.place.keep], []

    def _try_to_write(self) -> None:
        """Find out now, not after the first minute, whether checkpoints can be written."""
        url = self.place.url
        try:
            inside = partial(self._fs.exists, f"{self._path}/zarr.json")
            if retrying(inside, f"looking at {url}"):
                raise FileExistsError("there is a data set or an array")
            retrying(lambda: self._put(PROBE, b"0" * PROBE_NBYTES), f"writing {url}/{PROBE}")
            self._remove(PROBE)
        except (ConnectionError, TimeoutError):
            raise  # they say what does not answer
        except OSError as error:
            plain = type(error) if type(error).__module__ == "builtins" else OSError
            raise plain(
                f"checkpoints cannot be written at {url}: {error}; name a folder in which you may "
                "write, and that has room"
            ) from error

    def _put_pointer(self, listed: list[dict[str, Any]]) -> None:
        pointer = {"format": FORMAT, "fit": self._fit, "checkpoints": listed}
        text = json.dumps(pointer | {"sha256": checksum(pointer)}, indent=1)
        name = f"{self.place.url}/{POINTER}"
        retrying(lambda: self._put(POINTER, text.encode()), f"writing {name}")

    def _get(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._path}/{name}"))

    def _put(self, name: str, data: bytes | bytearray) -> None:
        """Put an object in one piece, on the disk itself: object stores do so by themselves."""
        if self._local:
            os.makedirs(self._path, exist_ok=True)  # it may have been removed meanwhile
            put_file(f"{self._path}/{name}", data)
        else:
            self._fs.pipe_file(f"{self._path}/{name}", data)

    def _remove(self, name: str) -> None:
        target, what = f"{self._path}/{name}", f"removing {self.place.url}/{name}"
        with contextlib.suppress(FileNotFoundError):
            retrying(lambda: self._fs.rm_file(target), what)


def _folder(place: CheckpointPlace) -> tuple[Any, str]:
    """The file system of a place, and the folder in it."""
    fs, path = filesystem(place.url, place.options)
    return fs, path.rstrip("/")


def _told_first(key: str) -> tuple[bool, str]:
    """The order in which differences are looked for: another estimator has other parameters."""
    return key not in ("estimator", "version", *NUMERICAL), key


def recall(place: CheckpointPlace, key: str) -> Any:
    """What the fingerprint of the checkpoints that are at a place says, or None."""
    found = found_at(*_folder(place), place.url, tell=False)
    return found.fit.get(key) if found is not None and found.listed else None


def list_checkpoints(place: CheckpointPlace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the result of a place's fit depends on, and its checkpoints, newest first.

    Raises
    ------
    FileNotFoundError
        Where there are none.
    CheckpointError
        Where their list is damaged, and they do not tell what it said.
    """
    found = found_at(*_folder(place), place.url)
    if found is None:
        raise FileNotFoundError(f"there are no checkpoints at {place.url}")
    return found.fit, found.listed


def seconds_between(every: str | float, keep: int) -> float:
    """Seconds between checkpoints, of which so many are to be kept.

    Raises
    ------
    ValueError
        For a time that cannot be read, or nothing to keep.

    Examples
    --------
    >>> seconds_between("2 minutes", 2)
    120.0
    """
    try:
        seconds = float(parse_timedelta(every))
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"every={every!r} is no time; give seconds, or a number and a unit as in '60s'"
        ) from error
    if not 0 <= seconds < math.inf:
        raise ValueError(f"every={every!r} is no time between checkpoints; give seconds, or '60s'")
    if type(keep) is not int or keep < 1:
        raise ValueError(f"keep={keep!r}: at least one checkpoint has to stay, a whole number")
    return seconds


def checkpoint_place(
    url: Any, every: str | float, keep: int, options: Mapping[str, Any] | None
) -> CheckpointPlace:
    """The place that `Engine`'s parameters name.

    Raises
    ------
    ValueError
        For a time that cannot be read, nothing to keep, or no URL.

    Examples
    --------
    >>> checkpoint_place("/data/fit", "2 minutes", 2, None)
    CheckpointPlace(url='/data/fit', every=120.0, keep=2)
    """
    seconds = seconds_between(every, keep)
    if not isinstance(url, str | os.PathLike) or not os.fspath(url):
        raise ValueError(f"checkpoint={url!r} names no folder; give a path or a URL")
    return CheckpointPlace(resolve_url(url), seconds, keep, quiet(options))
