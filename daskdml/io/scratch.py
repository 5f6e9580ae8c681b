"""Scratch files that outlive a process, and a journal of what is finished in them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from daskdml.io.writers import boot

__all__ = ["Scratch"]

JOURNAL = "journal.jsonl"


class Scratch:
    """A folder of scratch files; a line of its journal says that what it tells is in the files.

    They are good for the same run on a machine that was not started anew since: the operating
    system has what a killed process wrote, but a machine that stops may not.

    Parameters
    ----------
    folder : Path
        Readable for this user alone; what another run left there is removed.
    run : str or None
        None is a run that cannot be gone on with.
    """

    def __init__(self, folder: Path, run: str | None) -> None:
        self.folder = folder
        self._head = _line(run=run, boot=boot())
        self._files: list[BinaryIO] = []
        self._lock = threading.Lock()
        self._end = self._found_end() if run is not None else 0
        if not self._end:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user; remove it, or set dask's "
                                  "temporary-directory to another place")  # fmt: skip
        self._journal = self.open(JOURNAL)
        self._journal.truncate(self._end)
        self._journal.seek(self._end)
        if not self._end:
            self._write(self._head)

    def _found_end(self) -> int:
        """Where the last of the whole lines of the same run's journal ends; 0 where there is none.

        Of what comes after a damaged one, nothing is believed.
        """
        try:
            journal = open(self.folder / JOURNAL, "rb")  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            return 0
        with journal:
            if journal.readline() != self._head:
                return 0
            return len(self._head) + sum(map(len, takewhile(_is_whole, journal)))

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # of a full disk, which was told already
                file.close()

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading and writing, as it was left; it is closed with the scratch."""
        path = self.folder / name
        path.touch(mode=0o600)
        file = open(path, "r+b")  # noqa: SIM115
        self._files.append(file)
        return file

    def lines(self) -> Iterator[dict[str, Any]]:
        """What an earlier attempt noted, in its order."""
        with open(self.folder / JOURNAL, "rb") as journal:
            journal.readline()
            while journal.tell() < self._end:
                yield json.loads(journal.readline())

    def note(self, **line: Any) -> None:
        """Note what is in the files: they must be flushed."""
        self._write(_line(**line))

    def _write(self, text: bytes) -> None:
        with self._lock:
            self._journal.write(text)
            self._journal.flush()


def _line(**line: Any) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _is_whole(line: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    return False
