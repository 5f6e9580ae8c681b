"""HDFS by its native protocol: hdfs-native's file system, with time limits and whole files."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec.spec import AbstractBufferedFile
from hdfs_native import WriteOptions
from hdfs_native.fsspec import HdfsFileSystem

from daskdml.io.fetch import SLOWEST
from daskdml.io.hadoop import remote_error, unfinished
from daskdml.io.options import seconds_of

__all__ = ["Hdfs"]

T = TypeVar("T")

PIECE = 4 << 20
"""Bytes handed over in one call while a file is written."""

FAILOVERS = "dfs.client.failover.max.attempts"

_FSSPEC = {"asynchronous", "loop", "batch_size", "skip_instance_cache", "max_paths"}
_FSSPEC |= {"use_listings_cache", "listings_expiry_time"}


_GIVEN_UP: weakref.WeakSet[_Watched] = weakref.WeakSet()
LAST_WAIT = 2.0
"""Seconds that the end of the process waits for calls that were given up: Python would unwind such
a thread through Rust when it comes back, which ends in an abort."""


@atexit.register
def _wait_for_late_ones() -> None:
    latest = time.monotonic() + LAST_WAIT
    for thread in list(_GIVEN_UP):
        thread.join(max(latest - time.monotonic(), 0.0))


class _Watched(threading.Thread):
    """Work in a thread that nobody waits for once it has been silent for too long."""

    def __init__(self, action: Callable[[Callable[[], None]], Any]) -> None:
        super().__init__(daemon=True, name="daskdml-hdfs")
        self._action = action
        self._over = threading.Event()
        self._last = time.monotonic()
        self._given_up = False
        self._result: Any = None
        self._error: Exception | None = None

    def beat(self) -> None:
        """Say that something has arrived; TimeoutError where nobody waits any more."""
        if self._given_up:
            raise TimeoutError("it came too late")
        self._last = time.monotonic()

    def run(self) -> None:
        try:
            self._result = self._action(self.beat)
        except Exception as error:
            self._error = error
        finally:
            self._over.set()

    def result(self, seconds: float, host: str) -> Any:
        """What came out, or an error once nothing has arrived for so long."""
        while not self._over.wait(max(self._last + seconds - time.monotonic(), 0.001)):
            if time.monotonic() - self._last > seconds:
                self._given_up = True
                _GIVEN_UP.add(self)
                raise TimeoutError(f"{host} has not answered for {seconds:g} s")
        if self._error is not None:
            raise remote_error(host, self._error) from None
        return self._result


class Hdfs(HdfsFileSystem):
    """Files of an HDFS.

    Every call ends: with `TimeoutError` where nothing has come from the host for `timeout` seconds.
    Written files appear whole: under another name first, which is then renamed.

    Parameters
    ----------
    host, port : str, int
        Of the NameNode, or the name of a service in Hadoop's configuration.
    timeout : float
        Seconds.
    **options
        Of Hadoop, as in ``hdfs-site.xml``; numbers and booleans become the strings they are there.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        timeout: float = 30.0,
        **options: Any,
    ) -> None:
        seconds = seconds_of(timeout)
        if port is not None:  # one NameNode: no other to turn to, and the caller tries again
            options = {FAILOVERS: 1, **options}
        # fsspec's own options are no business of Hadoop's.
        plain = {k: _text(v) for k, v in options.items() if k not in _FSSPEC}
        self.timeout = seconds
        self.where = f"{host}:{port}" if port else str(host or "the default HDFS")
        try:
            super().__init__(host, port, **plain)
        except RuntimeError as error:
            if "No NameNode" not in str(error) and "fs.defaultFS" not in str(error):
                raise
            named = f"hdfs://{host}" if host else "hdfs:// without a host"
            raise ValueError(
                f"{named} leads to no NameNode, as Hadoop's configuration does not say where it "
                "is; set HADOOP_CONF_DIR to the folder of hdfs-site.xml, on workers too, or name "
                f"host and port, as in hdfs://{host or 'namenode'}:8020/"
            ) from error

    def _call(self, action: Callable[..., T], *args: Any) -> T:
        return self._watch(lambda beat: action(*args))

    def _watch(self, action: Callable[[Callable[[], None]], T]) -> T:
        watched = _Watched(action)
        watched.start()
        result: T = watched.result(self.timeout, self.where)
        return result

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Facts of a file or folder."""
        return self._convert_file_status(
            self._call(self.client.get_file_info, self._strip_protocol(path))
        )

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What lies in a folder."""
        inside = self._strip_protocol(path)
        found = self._call(lambda: list(self.client.list_status(inside, False)))
        return [self._convert_file_status(f) if detail else f.path for f in found]

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a folder."""
        self._call(self.client.mkdirs, self._strip_protocol(path), 0o755, create_parents)

    def mv(self, path1: str, path2: str, overwrite: bool = False, **kwargs: Any) -> None:
        """Rename, in one step; with `overwrite`, in place of a file that is there."""
        paths = self._strip_protocol(path1), self._strip_protocol(path2)
        self._call(self.client.rename, *paths, overwrite)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove a file or a folder."""
        inside = self._strip_protocol(path)
        if not self._call(self.client.delete, inside, recursive):
            raise FileNotFoundError(f"{inside} does not exist (on {self.where})")

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        self.rm(path)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self.rm(path)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytearray:
        """Read a file, or bytes [start, end) of it; negative ones count from its end."""
        inside = self._strip_protocol(path)

        def read(beat: Callable[[], None]) -> bytearray:
            file = self.client.read(inside)
            first, last, _ = slice(start, end).indices(len(file))
            out, at = bytearray(max(last - first, 0)), 0
            latest = time.monotonic() + self.timeout + len(out) / SLOWEST
            if not out:
                return out
            for piece in file.read_range_stream(first, len(out)):
                out[at : at + len(piece)] = piece
                at += len(piece)
                beat()
                if time.monotonic() > latest:
                    raise TimeoutError(f"{inside} is not whole after {at} of {len(out)} bytes")
            if at != len(out):
                raise ConnectionError(f"{inside} ended {len(out) - at} bytes early")
            return out

        return self._watch(read)

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """Open a file, for reading with the time limit of every other read."""
        if mode != "rb":
            return super()._open(path, mode, *args, **kwargs)
        known = {k: v for k, v in kwargs.items() if k in ("block_size", "cache_type", "size")}
        return _File(self, self._strip_protocol(path), **known)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file: it is there whole, or as it was."""
        inside, data = self._strip_protocol(path), memoryview(value).cast("B")
        new = unfinished(inside)

        def write(beat: Callable[[], None]) -> None:
            try:
                file = self.client.create(new, WriteOptions())  # makes folders above it
                beat()
                for at in range(0, len(data), PIECE):
                    file.write(data[at : at + PIECE])
                    beat()
                file.close()
                beat()  # what was given up must not replace what has been written since
            except BaseException:
                with contextlib.suppress(Exception):
                    self.client.delete(new, False)
                raise
            self.client.rename(new, inside, mode == "overwrite")

        try:
            self._watch(write)
        except TimeoutError:
            raise  # another call would only wait as long again; the thread removes it, if it can
        except BaseException:
            with contextlib.suppress(OSError):
                self.rm(new)
            raise


class _File(AbstractBufferedFile):
    """A file that is read."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
