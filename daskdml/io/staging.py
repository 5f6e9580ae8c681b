"""Writing a data set so that it is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import split_protocol
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from daskdml.io.store import filesystem, is_local, object_name, open_store, retrying

__all__ = ["Staging", "stage"]

T = TypeVar("T")

_RENAMING = ("hdfs", "webhdfs")
"""Protocols of file systems that rename a folder in one step."""

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

    def commit(self, attributes: Mapping[str, Any]) -> None:
        """Make the data set appear at its URL, in place of an older one."""

    def abandon(self) -> None:
        """Remove what was written; an older data set stays as it was."""


def stage(
    url: str, storage_options: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> Staging:
    """Prepare to write a data set.

    Parameters
    ----------
    url : str
        A resolved URL.
    storage_options : mapping or None
    overwrite : bool
        Allow that a Zarr group is there already; nothing else is ever overwritten.

    Raises
    ------
    FileExistsError
        Where something is there that may not be overwritten.
    PermissionError
        Where the place may not be written to.
    """
    if is_local(url):
        return _LocalStaging(url, overwrite)
    if split_protocol(url)[0] in _RENAMING:
        return _HdfsStaging(url, storage_options, overwrite)
    return _RemoteStaging(url, storage_options, overwrite)


def _check_target(url: str, occupied: bool, is_zarr: bool, overwrite: bool) -> None:
    if occupied and not is_zarr:
        raise FileExistsError(
            f"{url} exists and is no data set, so it is not overwritten; choose another URL"
        )
    if occupied and not overwrite:
        raise FileExistsError(f"{url} exists; pass overwrite=True to replace it")


def _put_group(store: Store, attributes: Mapping[str, Any]) -> None:
    """Write the metadata of the root group in one piece."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    text = json.dumps(group, indent=2).encode()
    buffer = default_buffer_prototype().buffer.from_bytes(text)
    retrying(
        lambda: sync(store.set("zarr.json", buffer)), f"writing {object_name(store, 'zarr.json')}"
    )


class _LocalStaging:
    """Write to a sibling directory, then rename it."""

    def __init__(self, url: str, overwrite: bool) -> None:
        self._url = url
        self._target = Path(os.path.realpath(url))
        self._overwrite = overwrite
        self._check()
        token = secrets.token_hex(4)
        self._tmp = self._target.with_name(f".{self._target.name}.tmp-{token}")
        self._old = self._target.with_name(f".{self._target.name}.old-{token}")
        self._allowed(lambda: self._tmp.mkdir(parents=True))
        self.store: Store = LocalStore(self._tmp)
        self.prefix = ""

    def _check(self) -> None:
        occupied = os.path.lexists(self._target)
        if occupied and self._target.is_dir() and not any(self._target.iterdir()):
            return  # a rename replaces an empty directory
        is_zarr = (self._target / "zarr.json").is_file() or (self._target / ".zgroup").is_file()
        _check_target(self._url, occupied, is_zarr, self._overwrite)

    def _allowed(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in _NO_WRITE:
                raise
            raise PermissionError(
                f"{self._url} cannot be written: {error.strerror}; choose a directory in which "
                "you may write"
            ) from error

    def commit(self, attributes: Mapping[str, Any]) -> None:
        _put_group(self.store, attributes)
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

    def abandon(self) -> None:
        shutil.rmtree(self._tmp, ignore_errors=True)


class _HdfsStaging:
    """Write to a sibling folder, then rename it, as on local disk."""

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None, overwrite: bool
    ) -> None:
        self._url = url
        self._overwrite = overwrite
        self._fs, self._target = filesystem(url, storage_options)
        self._check()
        token = secrets.token_hex(4)
        above, _, name = url.rpartition("/")
        new = f"{above}/.{name}.tmp-{token}"
        folder = self._target.rpartition("/")[0]
        self._tmp = f"{folder}/.{name}.tmp-{token}"
        self._old = f"{folder}/.{name}.old-{token}"
        self._do(lambda: self._fs.makedirs(self._tmp, exist_ok=True), "writing")
        self.store: Store = open_store(new, storage_options, read_only=False)
        self.prefix = ""

    def _do(self, action: Callable[[], T], what: str) -> T:
        return retrying(action, f"{what} {self._url}")

    def _check(self) -> bool:
        """Whether something is there that may be replaced."""
        try:
            found = self._do(lambda: self._fs.ls(self._target, detail=False), "listing")
        except FileNotFoundError:
            return False
        names = {name.rpartition("/")[2] for name in found}
        _check_target(
            self._url, bool(found), bool(names & {"zarr.json", ".zgroup"}), self._overwrite
        )
        return bool(found)

    def commit(self, attributes: Mapping[str, Any]) -> None:
        _put_group(self.store, attributes)
        replaces = self._check()
        if replaces:
            self._fs.mv(self._target, self._old)
        try:
            self._fs.mv(self._tmp, self._target, overwrite=True)  # of an empty folder
        except OSError:
            if replaces:
                self._fs.mv(self._old, self._target)
            raise
        if replaces:
            self._fs.rm(self._old, recursive=True)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._fs.rm(self._tmp, recursive=True)


class _RemoteStaging:
    """Write in place; the root's metadata, put last and in one piece, make it a data set.

    Where an older one is to be replaced, the new arrays get a folder of their own, and the old
    objects are removed after the root points to the new ones.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None, overwrite: bool
    ) -> None:
        self._fs, self._path = filesystem(url, storage_options)
        old = self._list()
        names = {name.rpartition("/")[2] for name in old}
        _check_target(url, bool(old), bool(names & {"zarr.json", ".zgroup"}), overwrite)
        self._replaces = bool(old)
        self.store: Store = open_store(url, storage_options, read_only=False)
        self.prefix = f"data-{secrets.token_hex(4)}/" if old else ""
        if not old:
            _put_group(self.store, {"daskdml": {"format": 1, "complete": False}})

    def _list(self) -> list[str]:
        """Names of the objects and folders directly under the URL."""
        fs: AbstractFileSystem = self._fs
        fs.invalidate_cache()
        try:
            found = retrying(lambda: fs.ls(self._path, detail=False), f"listing {self._path}")
        except FileNotFoundError:
            return []
        root = self._path.strip("/")
        return [name for name in found if name.strip("/") != root]

    def commit(self, attributes: Mapping[str, Any]) -> None:
        _put_group(self.store, attributes)
        if not self._replaces:
            return
        keep = {"zarr.json", self.prefix.rstrip("/")}
        for name in self._list():
            if name.rstrip("/").rpartition("/")[2] not in keep:
                self._fs.rm(name, recursive=True)

    def abandon(self) -> None:
        path = f"{self._path}/{self.prefix}".rstrip("/")
        self._fs.invalidate_cache()
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)
