"""Files of a store as streams, whose ranges are asked for again where a connection breaks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem
from fsspec.compression import compr
from fsspec.utils import infer_compression

from daskdml.io.store import retrying

if TYPE_CHECKING:
    from pyarrow.fs import PyFileSystem

__all__ = ["arrow_files", "text_blocks"]

RANGE = 1 << 22
"""Bytes that are asked for at a time."""

TEXT = 1 << 23
"""Bytes of a text file that are given at a time."""


def _open_file(fs: AbstractFileSystem, path: str, url: str) -> io.BufferedIOBase:
    """Open a file for reading, as it was before it was compressed.

    Parameters
    ----------
    fs : AbstractFileSystem
    path : str
        Inside of it; ``.gz``, ``.bz2``, ``.xz`` and the like say how the file is compressed.
    url : str
        Its name, for errors.

    Raises
    ------
    ConnectionError
        Here or of a read, where a transient error outlives all attempts (see `retrying`).
    ValueError
        Of a read, where a web server ignores what part is asked for, or the file became shorter.
    """
    facts = retrying(lambda: fs.info(path), f"looking at {url}")
    if facts.get("size") is None or not facts.get("partial", True):  # some web servers
        stream = retrying(lambda: fs.open(path, "rb"), f"opening {url}")
    else:
        stream = io.BufferedReader(_Ranges(fs, path, url, facts["size"]), RANGE)
    kind = infer_compression(path)
    return stream if kind is None else compr[kind](stream, mode="r")


def text_blocks(fs: AbstractFileSystem, path: str, url: str, offset: int) -> Iterator[bytes]:
    """Whole lines of a text file, some MB at a time, from a place in its decompressed bytes on."""
    rest = b""
    with _open_file(fs, path, url) as stream:
        if infer_compression(path) is None:
            stream.seek(offset)
        else:
            while offset and (passed := stream.read(min(offset, TEXT))):
                offset -= len(passed)
        while block := stream.read(TEXT):
            end = max(block.rfind(b"\n"), block.rfind(b"\r") if b"\n" not in block else -1) + 1
            if end:
                yield rest + block[:end]
                rest = b""
            rest += block[end:]
    if rest:
        yield rest


def arrow_files(fs: AbstractFileSystem, url: str) -> PyFileSystem:
    """A file system for Arrow, whose files are read in the same way."""
    from pyarrow import PythonFile
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    class Handler(FSSpecHandler):
        def open_input_file(self, path: str) -> Any:
            return PythonFile(_open_file(self.fs, path, url), mode="r")

    return PyFileSystem(Handler(fs))


class _Ranges(io.RawIOBase):
    """A file that is read by ranges.

    Each further attempt at a range asks for half of it: what gets through between two breaks of a
    bad connection may be less than a range.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, url: str, size: int) -> None:
        self._fs, self._path, self._url, self._size, self._at = fs, path, url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        nbytes = 2 * min(len(buffer), RANGE, self._size - self._at)
        if nbytes <= 0:
            return 0

        def ask() -> bytes:
            nonlocal nbytes
            nbytes = -(-nbytes // 2)
            stop = self._at + nbytes
            found: bytes = self._fs.cat_file(self._path, start=self._at, end=stop)
            return found

        found = retrying(ask, f"reading {self._url}")
        if len(found) > nbytes:
            raise ValueError(
                f"the server gives the whole of {self._url} where a part was asked for; copy the "
                "file to disk or to a store, and read it there"
            )
        if not found:
            raise ValueError(
                f"{self._url} had {self._size} bytes and ends after {self._at}: it was changed "
                "while it was read; read it again"
            )
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)
