"""What a write that was broken off leaves beside its target, so that the same call goes on.

A *run* is one call and all that its result depends on, as a digest (`run_of`). While it writes, a
record lies in a folder beside the target or, on object stores, under it: which run this is, the
token of the place where its arrays are, and who writes it. Finished blocks need no record: their
chunks are there, each put in one piece.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fsspec import AbstractFileSystem

from daskdml import __version__
from daskdml.io.durable import put_file
from daskdml.io.states import digest
from daskdml.io.store import retrying
from daskdml.io.writers import HERE, boot, is_alive, names_process, tells_of_life, this_process

__all__ = [
    "Leftover",
    "LocalLeftover",
    "RemoteLeftover",
    "helps",
    "run_of",
]

RECORD = "run.json"
LOCK = "lock"
BEAT = 15.0
"""Seconds between two signs of life of a writer to an object store."""

_TOKEN = re.compile(r"[0-9a-f]{8}")
_OF_CLUSTERS = ("distributed", "botocore", "aiobotocore", "aiohttp", "concurrent", "asyncio")
_OF_CALLERS = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError)


def run_of(call: str, **facts: Any) -> str | None:
    """Digest of a call and of all that its result depends on; None where a fact is None.

    Parameters
    ----------
    call : str
        Name of the function.
    **facts
        What `daskdml.io.states.encode_state` takes, ``{}`` for nothing; None for what cannot be
        known again.

    Examples
    --------
    >>> run_of("f", x=1) == run_of("f", x=1), run_of("f", x=1) == run_of("f", x=2)
    (True, False)
    >>> run_of("f", x=None) is None
    True
    """
    if any(fact is None for fact in facts.values()):
        return None
    return digest({"call": call, "daskdml": __version__, **facts})


def helps(error: BaseException) -> bool:
    """Whether a call that ended so can go on later: what is finished is then kept.

    It can after Ctrl-C, a full disk, a lost store or cluster; not after an error in what was given.

    Examples
    --------
    >>> helps(KeyboardInterrupt()), helps(OSError(28, "No space left")), helps(ValueError("NaN"))
    (True, True, False)
    """
    if not isinstance(error, Exception):
        return True
    if type(error).__module__.startswith(_OF_CLUSTERS):
        return True
    return isinstance(error, OSError) and not isinstance(error, _OF_CALLERS)


class Leftover(Protocol):
    """The place of an unfinished run, held by this process alone.

    Attributes
    ----------
    token : str
        Names the place of the run's arrays; new for a new run.
    resumed : bool
        Whether the same run was broken off here, and goes on.
    rebooted : bool
        Whether the machine was started anew since: what was not on disk yet may be lost.
    """

    token: str
    resumed: bool
    rebooted: bool

    def held(self) -> bool:
        """Whether no other writer has taken over."""

    def release(self) -> None:
        """Leave it to the same call again, or to the writer who has taken over."""

    def remove(self) -> None:
        """Remove it."""


def _busy(url: str, found: dict[str, Any]) -> RuntimeError:
    named = names_process(found)
    who = f"process {found['pid']} on {found['host']}" if named else "another process"
    return RuntimeError(
        f"{url} is being written by {who}; wait until it has ended, or choose another URL"
    )


def _parsed(text: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(text)
        if isinstance(record, dict):
            return record
    return {}


def _is_of(found: dict[str, Any], run: str | None) -> bool:
    """Whether a record is of a run that can be gone on with, and names a place as it is made here.

    A record was written by anybody: its token becomes part of paths.
    """
    token = found.get("token")
    known = isinstance(token, str) and _TOKEN.fullmatch(token) is not None
    return known and run is not None and found.get("run") == run and found.get("format") == 1


def _prefix_of(token: str) -> str:
    return f"data-{token}/"


def _hold(file: int) -> None:
    """Lock an open file, where the system has such locks; BlockingIOError if another one holds."""
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class LocalLeftover:
    """A hidden folder beside a local target, locked by the operating system while it is written.

    A record that is damaged is one of another run, and so is a folder with symbolic links in it.
    The lock ends with the process, however that ends. File systems that know no locks (some
    network mounts) do not keep two writers apart.

    Parameters
    ----------
    folder : Path
    run : str or None
        None is a run that cannot be gone on with.
    url : str
        Of the target, for people.

    Raises
    ------
    FileExistsError
        Where the folder is a symbolic link.
    RuntimeError
        Where another process, or another thread, is writing there.
    """

    def __init__(self, folder: Path, run: str | None, url: str) -> None:
        self.folder = folder
        if folder.is_symlink():
            raise FileExistsError(
                f"{folder} is a symbolic link, and what it leads to is not written to or removed; "
                f"remove it, or choose another URL than {url}"
            )
        self._lock: int | None = self._locked(url)
        try:
            found = self._read()
            self.resumed = _is_of(found, run) and isinstance(found.get("boot"), str)
            self.resumed = self.resumed and not any(p.is_symlink() for p in folder.iterdir())
            self.rebooted = self.resumed and found.get("boot") != boot()
            self.token = found["token"] if self.resumed else secrets.token_hex(4)
            if not self.resumed:
                self._clear()
            record = {"format": 1, "run": run, "token": self.token, "boot": boot()}
            text = json.dumps(record | this_process(), indent=1)
            put_file(folder / RECORD, text.encode())
        except BaseException:
            self.release()
            raise

    def _locked(self, url: str) -> int:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
                try:
                    _hold(lock)
                except BlockingIOError:
                    os.close(lock)
                    raise _busy(url, self._read()) from None
                except OSError:
                    return lock  # this file system has no locks
                with contextlib.suppress(FileNotFoundError):
                    if os.fstat(lock).st_ino == os.stat(self.folder / LOCK).st_ino:
                        return lock
                os.close(lock)  # of a folder that its owner has removed by now

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            return _parsed((self.folder / RECORD).read_bytes())
        return {}

    def _clear(self) -> None:
        """Remove another run's leftover, the record first."""
        (self.folder / RECORD).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def held(self) -> bool:
        """Nobody takes over what is locked."""
        return True

    def release(self) -> None:
        """Leave it to the same call again."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


class RemoteLeftover:
    """A record under a target on an object store, with signs of life of its writer.

    A record whose writer is dead is taken over: at once where it ran on this machine, else
    `SILENT` seconds after its last sign of life. Two that begin in the same moment are told apart
    at the end, by `confirm`. A record that is damaged is one of another run.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem
    folder : str
        Path in it.
    run : str or None
    url : str
        Of the target, for people.

    Raises
    ------
    RuntimeError
        Where another writer is at work.
    ValueError
        Where a damaged record has a writer, but does not tell whether that one is at work.
    """

    def __init__(self, fs: AbstractFileSystem, folder: str, run: str | None, url: str) -> None:
        self._fs, self._path, self._folder = fs, f"{folder}/{RECORD}", folder
        self._run, self._url = run, url
        found = self._read()
        if not tells_of_life(found):
            raise ValueError(
                f"{self._path} is damaged and does not tell whether another process is writing "
                f"{url}; remove that file if none is, or choose another URL"
            )
        if is_alive(found):
            raise _busy(url, found)
        self.resumed = _is_of(found, run) and found.get("facts") in (
            {"prefix": ""},
            {"prefix": _prefix_of(found["token"])},
        )
        self.rebooted = False
        self.token = found["token"] if self.resumed else secrets.token_hex(4)
        self._owner = secrets.token_hex(8)
        self.facts: dict[str, Any] = found["facts"] if self.resumed else {}
        self._record: dict[str, Any] = {"format": 1, "run": run if self.resumed else None}
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._live, name="daskdml-writes", daemon=True)
        HERE.add(self._owner)
        try:
            self._put()
            self.confirm()
        except BaseException:
            HERE.discard(self._owner)
            raise
        self._heart.start()

    @property
    def prefix(self) -> str:
        """What names begin with where the arrays get a folder of their own."""
        return _prefix_of(self.token)

    def forget(self) -> None:
        """Do not go on with the run that was found."""
        self.resumed, self.token, self.facts = False, secrets.token_hex(4), {}
        self._record["run"] = None
        self._put()

    def begin(self, **facts: Any) -> None:
        """Say which run this is, once nothing of another one is left; `facts` are recorded."""
        self.confirm()  # of two that began in the same moment, the first has not written yet
        self.facts, self._record["run"] = facts, self._run
        self._put()

    def confirm(self) -> None:
        """Raise RuntimeError where another writer has taken over."""
        found = self._read()
        if found.get("owner") != self._owner:
            HERE.discard(self._owner)
            raise _busy(self._url, found)

    def held(self) -> bool:
        """Whether no other writer has taken over, as far as the store tells."""
        try:
            return self._read().get("owner") == self._owner
        except OSError:
            return False

    def release(self) -> None:
        """Leave it to the same call again, or to the writer who has taken over."""
        self._end()
        with contextlib.suppress(OSError):
            if self.held():
                self._put(owner=None)

    def remove(self) -> None:
        """Remove it."""
        self._end()
        with contextlib.suppress(FileNotFoundError):
            remove = partial(self._fs.rm, self._folder, recursive=True)
            retrying(remove, f"removing {self._url}: {self._folder}")

    def _end(self) -> None:
        self._stop.set()
        self._heart.join()
        HERE.discard(self._owner)

    def _live(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(Exception):
                if self._read().get("owner") == self._owner:
                    self._put()

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            name = f"reading {self._url}: {RECORD}"
            return _parsed(bytes(retrying(lambda: self._fs.cat_file(self._path), name)))
        return {}

    def _put(self, **changes: Any) -> None:
        more = {"token": self.token, "facts": self.facts, "owner": self._owner}
        record = {**self._record, **more, **this_process(), "beat": time.time(), **changes}
        text = json.dumps(record, indent=1).encode()
        retrying(lambda: self._fs.pipe_file(self._path, text), f"writing {self._url}: {RECORD}")
