"""HDFS by HTTP: fsspec's WebHDFS, with time limits, whole files and errors without credentials."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests
import urllib3
from fsspec.implementations.webhdfs import WebHDFS
from requests.adapters import HTTPAdapter

from daskdml.io.fetch import SLOWEST
from daskdml.io.hadoop import remote_error, unfinished
from daskdml.io.options import seconds_of

__all__ = ["WebHdfs"]

T = TypeVar("T")

PIECE = 1 << 20
BINARY = {"content-type": "application/octet-stream"}


def _without_token(record: logging.LogRecord) -> bool:
    """Keep the query of a URL, where tokens are, out of what urllib3 logs."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            a.partition("?")[0] if isinstance(a, str) and a.startswith("/webhdfs/") else a
            for a in record.args
        )
    return True


logging.getLogger("urllib3.connectionpool").addFilter(_without_token)


class _Limited(HTTPAdapter):
    """Gives every request a time limit, for connecting and between two pieces of an answer."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Send a request."""
        return super().send(request, *args, **{**kwargs, "timeout": self._seconds})


class WebHdfs(WebHDFS):
    """Files of an HDFS, by HTTP.

    Every call ends: with `TimeoutError` where nothing has come from the host for `timeout` seconds.
    Written files appear whole: under another name first, which is then renamed. Errors name the
    host, and nothing of the query, which carries users and tokens.

    Parameters
    ----------
    host, port : str, int
        Of the NameNode's web server.
    timeout : float
        Seconds.
    **options
        Of fsspec's `WebHDFS`: user, password, token, kerberos, use_https ...
    """

    def __init__(self, host: str, port: int = 9870, timeout: float = 30.0, **options: Any) -> None:
        self.timeout = seconds_of(timeout)
        self.where = f"{host}:{port}"
        self._abandoned: list[str] = []  # unfinished files at a host that fell silent
        super().__init__(host, port, **options)

    def _connect(self) -> None:
        try:
            super()._connect()
        except ImportError as error:
            raise ImportError(
                f"kerberos=True for webhdfs://{self.where} needs a package of its own: pip install "
                "requests-kerberos"
            ) from error
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Limited(self.timeout))

    def _plainly(self, action: Callable[[], T]) -> T:
        """Do it; errors come as Python's, and what they are made of, with its URLs, is dropped."""
        try:
            return action()
        except requests.Timeout:
            error: OSError = TimeoutError(f"{self.where} has not answered for {self.timeout:g} s")
        except requests.HTTPError as found:
            status = getattr(found.response, "status_code", 0)
            kind = PermissionError if status in (401, 403) else OSError
            error = kind(f"{self.where} answered {status}")
        except requests.RequestException as found:
            why = re.sub(r"\?\S*", "", str(found))
            error = ConnectionError(f"{type(found).__name__} with {self.where}: {why}")
        except urllib3.exceptions.ReadTimeoutError:
            error = TimeoutError(f"{self.where} has not answered for {self.timeout:g} s")
        except urllib3.exceptions.HTTPError as found:
            error = ConnectionError(f"{type(found).__name__} with {self.where}")
        except (RuntimeError, OSError) as found:
            error = remote_error(self.where, found)
        raise error

    def _call(self, op: str, method: str = "get", path: str | None = None, **kwargs: Any) -> Any:
        return self._plainly(lambda: super(WebHdfs, self)._call(op, method, path, **kwargs))

    def _at(self, answer: Any) -> str:
        """Where a NameNode sends its client to."""
        return str(self._apply_proxy(answer.headers["Location"]))

    def unstrip_protocol(self, name: str) -> str:
        """Give the URL of a path."""
        return f"webhdfs://{self.where}{self._strip_protocol(name)}"

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or folder; an error where the host cannot tell."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def mv(self, path1: str, path2: str, overwrite: bool = False, **kwargs: Any) -> None:
        """Rename, in one step; with `overwrite`, in place of a file that is there."""
        to, how = self._strip_protocol(path2), "OVERWRITE" if overwrite else "NONE"
        self._call("RENAME", "put", path1, destination=to, renameoptions=how)

    def rm(self, path: str, recursive: bool = False, **kwargs: Any) -> None:
        """Remove a file or a folder."""
        below = "true" if recursive else "false"
        if not self._call("DELETE", "delete", path, recursive=below).json()["boolean"]:
            raise FileNotFoundError(
                f"{self._strip_protocol(path)} does not exist (on {self.where})"
            )

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Read a file, or bytes [start, end) of it; negative ones count from its end."""
        part: dict[str, Any] = {}
        if start is not None or end is not None:
            if (start or 0) < 0 or (end or 0) < 0:
                start, end, _ = slice(start, end).indices(self.info(path)["size"])
            if end is not None and end <= (start or 0):
                return b""
            part = {"offset": start or 0} | ({} if end is None else {"length": end - (start or 0)})
        found = self._call("OPEN", path=path, redirect=False, **part)
        return self._plainly(lambda: self._got(self._at(found)))

    def _got(self, url: str) -> bytes:
        """What lies at a URL of a DataNode, within a time limit of its own."""
        with self._checked(self.session.get(url, stream=True)) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            end, out = time.monotonic() + self.timeout + size / SLOWEST, bytearray()
            while piece := answer.raw.read1(PIECE):  # what has come, however little
                out += piece
                if time.monotonic() > end:
                    raise TimeoutError(f"{self.where} has sent {len(out)} of {size} bytes so far")
        if len(out) < size:
            raise ConnectionError(f"{self.where} has sent {len(out)} of {size} bytes")
        return bytes(out)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file: it is there whole, or as it was."""
        inside = self._strip_protocol(path)
        new = unfinished(inside)
        try:
            made = self._call("CREATE", "put", new, redirect=False, overwrite="true")
            data, at = bytes(value), self._at(made)
            self._plainly(lambda: self._checked(self.session.put(at, data=data, headers=BINARY)))
            self.mv(new, inside, overwrite=mode == "overwrite")
        except TimeoutError:
            self._abandoned.append(new)  # another request would only wait as long again
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                self.rm(new)
            raise
        self._clean()

    def _clean(self) -> None:
        """Remove what was left at a host that answers again."""
        with contextlib.suppress(OSError, IndexError):
            while True:
                self.rm(self._abandoned.pop())

    @staticmethod
    def _checked(answer: Any) -> Any:
        """An answer of a DataNode, unless it is an error."""
        if not answer.ok:
            with contextlib.suppress(ValueError, KeyError):
                told = answer.json()["RemoteException"]
                raise RuntimeError(f"{told['exception']}: {told['message']}")
        answer.raise_for_status()
        return answer
