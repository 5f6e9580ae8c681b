"""Writing a data set so that it is there as a whole or not at all, and so that a rerun goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

import zarr
from fsspec import AbstractFileSystem
from fsspec.core import split_protocol
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from daskdml.io.finished import finished_chunks
from daskdml.io.hadoop import is_unfinished
from daskdml.io.journal import Leftover, LocalLeftover, RemoteLeftover, helps
from daskdml.io.store import (
    filesystem,
    is_local,
    object_name,
    open_store,
    retrying,
    unfinished_folder,
)

__all__ = ["Staging", "stage"]

_FOLDERS = ("hdfs", "webhdfs")
"""Protocols of file systems that keep empty folders, and files that were never finished."""

LEFTOVER = ".unfinished"
"""Folder of an unfinished write under a target that cannot be renamed."""

T = TypeVar("T")

_NO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)


class Staging(Protocol):
    """A place for the arrays of a data set that is being written.

    Attributes
    ----------
    store : zarr.abc.store.Store
        Where to create the arrays.
    prefix : str
        What their names begin with, "" or a folder ending in "/".
    """

    store: Store
    prefix: str

    @property
    def scratch(self) -> Path:
        """A folder of this machine that stays with the arrays until they are committed."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt at the same run left arrays there."""

    @property
    def token(self) -> str | None:
        """Names this run and all attempts at it; None where it cannot be gone on with."""

    def finished(self, array: zarr.Array[Any]) -> set[int]:
        """Numbers of an array's chunks that need not be written again."""

    def commit(self, attributes: Mapping[str, Any], array: zarr.Array[Any] | None = None) -> None:
        """Make the data set appear at its URL, in place of an older one.

        With `array`, that array is the root, and `attributes` are its.
        """

    def leave(self, error: BaseException) -> None:
        """After an error: keep what is finished where the same call can go on, else remove it."""


def stage(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    run: str | None = None,
    at_root: bool = False,
) -> Staging:
    """Prepare to write a data set.

    Parameters
    ----------
    url : str
        A resolved URL.
    storage_options : mapping or None
    overwrite : bool
        Allow that a Zarr group is there already; nothing else is ever overwritten.
    run : str or None
        What is written (see `daskdml.io.journal.run_of`): an unfinished attempt at the same is gone
        on with, one at something else is removed. None is never gone on with.
    at_root : bool
        The root will be an array.

    Raises
    ------
    FileExistsError
        Where something is there that may not be overwritten.
    PermissionError
        Where the place may not be written to.
    RuntimeError
        Where another process is writing there.
    ValueError
        Where the record of an unfinished write is damaged so that another may be writing there.
    """
    if is_local(url):
        return _LocalStaging(url, overwrite, run)
    return _RemoteStaging(url, storage_options, overwrite, run, at_root)


def _check_target(url: str, occupied: bool, is_zarr: bool, overwrite: bool) -> None:
    if occupied and not is_zarr:
        raise FileExistsError(
            f"{url} exists and is no data set, so it is not overwritten; choose another URL"
        )
    if occupied and not overwrite:
        raise FileExistsError(f"{url} exists; pass overwrite=True to replace it")


def _put_root(
    store: Store, attributes: Mapping[str, Any], array: zarr.Array[Any] | None = None
) -> None:
    """Write the metadata of the root, a group or an array, in one piece."""
    prototype = default_buffer_prototype()
    if array is None:
        group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
        buffer = prototype.buffer.from_bytes(json.dumps(group, indent=2).encode())
    else:
        metadata: Any = replace(array.metadata, attributes=dict(attributes))
        buffer = metadata.to_buffer_dict(prototype)["zarr.json"]
    name = object_name(store, "zarr.json")
    retrying(lambda: sync(store.set("zarr.json", buffer)), f"writing {name}")


class _Staging:
    """What both kinds share: the leftover of an earlier attempt, and what becomes of this one."""

    _left: Leftover
    _run: str | None

    @property
    def resumed(self) -> bool:
        return self._left.resumed

    @property
    def token(self) -> str | None:
        return None if self._run is None else f"{self._run}-{self._left.token}"

    def finished(self, array: zarr.Array[Any]) -> set[int]:
        return finished_chunks(array, self._left.rebooted) if self._left.resumed else set()

    def leave(self, error: BaseException) -> None:
        again = self._run is not None and helps(error)
        if again or not self._left.held():  # what is there may be another writer's
            self._left.release()
        else:
            self._remove_all()

    def _remove_all(self) -> None:
        raise NotImplementedError


class _LocalStaging(_Staging):
    """Write to a hidden directory beside the target, then rename it."""

    def __init__(self, url: str, overwrite: bool, run: str | None) -> None:
        self._url, self._run = url, run
        self._target = Path(os.path.realpath(url))
        self._overwrite = overwrite
        self._check()
        folder = unfinished_folder(self._target)
        self._left = left = self._allowed(lambda: LocalLeftover(folder, run, url))
        self._tmp = folder / left.token
        self._old = self._target.with_name(f".{self._target.name}.old")
        try:
            self._restore()
            self._tmp.mkdir(exist_ok=True)
            for path in self._tmp.rglob("*.partial"):  # objects whose writer was killed
                path.unlink()
        except BaseException:
            left.release()
            raise
        self.store: Store = LocalStore(self._tmp)
        self.prefix = ""

    @property
    def scratch(self) -> Path:
        return self._tmp.parent / "scratch"

    def _restore(self) -> None:
        """Put back what a writer that was killed while it replaced it had moved aside."""
        if not self._old.exists():
            return
        if os.path.lexists(self._target):
            shutil.rmtree(self._old)  # it was killed just after that
            return
        self._old.rename(self._target)
        try:
            self._check()
        except BaseException:
            self._remove_all()
            raise

    def _check(self) -> None:
        occupied = os.path.lexists(self._target)
        if occupied and self._target.is_dir() and not any(self._target.iterdir()):
            return  # a rename replaces an empty directory
        is_zarr = (self._target / "zarr.json").is_file() or (self._target / ".zgroup").is_file()
        _check_target(self._url, occupied, is_zarr, self._overwrite)

    def _allowed(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            if error.errno not in _NO_WRITE:
                raise
            raise PermissionError(
                f"{self._url} cannot be written: {error.strerror}; choose a directory in which "
                "you may write"
            ) from error

    def commit(self, attributes: Mapping[str, Any], array: zarr.Array[Any] | None = None) -> None:
        _put_root(self.store, attributes, array)
        self._check()
        if self._target.exists() and self._overwrite:
            self._target.rename(self._old)
        try:
            self._tmp.rename(self._target)
        except OSError:
            if self._old.exists():
                self._old.rename(self._target)
            raise
        shutil.rmtree(self._old, ignore_errors=True)
        self._left.remove()

    def _remove_all(self) -> None:
        self._left.remove()


class _RemoteStaging(_Staging):
    """Write in place; the root's metadata, put last and in one piece, make it a data set.

    Where an older one is to be replaced, the new arrays get a folder of their own, and the old
    objects are removed after the root points to the new ones.
    """

    _left: RemoteLeftover

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None,
        overwrite: bool,
        run: str | None,
        at_root: bool,
    ) -> None:
        self._fs, self._path = filesystem(url, storage_options)
        self._has_folders = split_protocol(url)[0] in _FOLDERS
        self._url, self._run = url, run
        self.store: Store = open_store(url, storage_options, read_only=False)
        old = self._names()
        root = self._root() if "zarr.json" in old else {}
        begun = root.get("complete") is False
        self._keep = old if old and not begun else set()
        is_zarr = bool(old & {"zarr.json", ".zgroup"})
        _check_target(url, bool(self._keep), is_zarr, overwrite)
        self._left = RemoteLeftover(self._fs, f"{self._path}/{LEFTOVER}", run, url)
        try:
            self._begin(old, root, at_root)
        except BaseException:
            self._left.release()
            raise
        self.prefix = str(self._left.facts["prefix"])

    def _begin(self, old: set[str], root: Mapping[str, Any], at_root: bool) -> None:
        """Make ready to write, anew where no attempt at this run is there."""
        left = self._left
        if left.resumed and self._has_folders:
            self._remove_unfinished()
        if left.resumed and not self._may_write(left.facts["prefix"], root, at_root):
            left.forget()
        if not left.resumed:
            self._clear(old, root)
            left.begin(prefix=left.prefix if old and not at_root else "")
        if not self._keep:
            _put_root(self.store, {"daskdml": {"format": 1, "complete": False}})

    def _may_write(self, prefix: str, root: Mapping[str, Any], at_root: bool) -> bool:
        """Whether to go on with a run that is recorded with a prefix.

        Not where its arrays would lie among those of a data set: it was committed, and cut off
        while it tidied up, or the record is not this library's.
        """
        if at_root:
            return not prefix
        return not self._keep or prefix not in ("", root.get("prefix", ""))

    @property
    def scratch(self) -> Path:
        return _scratch_of(self._url)

    def _clear(self, old: set[str], root: Mapping[str, Any]) -> None:
        """Remove what other runs left: all, or the folders that a data set there does not name."""
        if self._keep:
            named = str(root.get("prefix", "")).rstrip("/")
            old = {name for name in old if root and name.startswith("data-") and name != named}
        for name in old:
            self._remove(name)

    def _remove_unfinished(self) -> None:
        """Remove what killed writers left of single files."""
        for path in retrying(lambda: self._fs.find(self._path), f"listing {self._url}"):
            inside = path.removeprefix(self._path).lstrip("/")
            if is_unfinished(path) and not inside.startswith(LEFTOVER):
                self._remove(inside)

    def _root(self) -> dict[str, Any]:
        """What the root's metadata say of this library's."""
        text = retrying(
            lambda: self._fs.cat_file(f"{self._path}/zarr.json"), f"reading {self._url}/zarr.json"
        )
        try:
            return dict(json.loads(bytes(text))["attributes"]["daskdml"])
        except (ValueError, KeyError, TypeError):
            return {}

    def _names(self) -> set[str]:
        """Names of the objects and folders directly under the URL."""
        fs: AbstractFileSystem = self._fs
        fs.invalidate_cache()
        try:
            found = retrying(lambda: fs.ls(self._path, detail=False), f"listing {self._url}")
        except FileNotFoundError:
            return set()
        root = self._path.strip("/")
        names = {name.rstrip("/").rpartition("/")[2] for name in found if name.strip("/") != root}
        return names - {LEFTOVER}

    def _remove(self, name: str) -> None:
        path = f"{self._path}/{name}".rstrip("/")
        with contextlib.suppress(FileNotFoundError):
            retrying(partial(self._fs.rm, path, recursive=True), f"removing {self._url}: {path}")

    def commit(self, attributes: Mapping[str, Any], array: zarr.Array[Any] | None = None) -> None:
        self._left.confirm()
        _put_root(self.store, attributes, array)
        if self.prefix:
            for name in self._names() - {"zarr.json", self.prefix.rstrip("/")}:
                self._remove(name)
        self._left.remove()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _remove_all(self) -> None:
        self._fs.invalidate_cache()
        if self._keep:
            self._remove(self.prefix.rstrip("/"))
        else:
            for name in self._names():
                self._remove(name)
        self._left.remove()
        if self._has_folders and not self._keep:
            with contextlib.suppress(OSError):  # it is not empty
                self._fs.rm(self._path)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _scratch_of(url: str) -> Path:
    """The scratch folder of a target that is not on local disk: see docs/reliability.md."""
    from dask import config

    base = config.get("temporary-directory", None) or tempfile.gettempdir()
    # A URL in memory means another place in each process.
    told = f"{url} {os.getpid()}" if split_protocol(url)[0] == "memory" else url
    name = sha256(told.encode()).hexdigest()[:16]
    return Path(base) / f"daskdml-{os.getuid()}" / name
