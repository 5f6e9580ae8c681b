"""Files that are there whole or not at all, also after the machine lost its power."""

from __future__ import annotations

import contextlib
import os


def put_file(path: str | os.PathLike[str], data: bytes | bytearray) -> None:
    """Write a file under another name, have the disk take it, and rename it.

    Raises
    ------
    OSError
        Where it cannot be written; nothing is left of it then.
    """
    folder, name = os.path.split(os.fspath(path))
    new = os.path.join(folder, f".{name}.new")
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    with contextlib.suppress(OSError):  # some systems do not let folders be opened
        inside = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(inside)
        finally:
            os.close(inside)
