"""What both ways into HDFS share: its errors as Python's, names for unfinished files."""

from __future__ import annotations

import errno
import posixpath
import re
import secrets

__all__ = ["is_unfinished", "remote_error", "unfinished"]

_UNFINISHED = re.compile(r"(^|/)\.[^/]+\.new-[0-9a-f]{8}$")

_NAMED: tuple[tuple[str, type[OSError]], ...] = (
    ("FileNotFoundException", FileNotFoundError),
    ("FileAlreadyExistsException|destination .* exists", FileExistsError),
    ("AccessControlException|SecurityException|Authoriz|Permission denied", PermissionError),
    ("not a directory|ParentNotDirectory", NotADirectoryError),
    ("SafeModeException|StandbyException|RetriableException|LeaseExpired", ConnectionError),
    ("safe mode", ConnectionError),
)


def remote_error(host: str, error: Exception) -> OSError:
    """Give an error of HDFS as the one of Python's that it means; first line only, host named.

    Examples
    --------
    >>> remote_error("nn:8020", RuntimeError("AccessControlException: user=eve"))
    PermissionError('AccessControlException: user=eve (from nn:8020)')
    """
    first = str(error).replace("\\n", "\n").partition("\n")[0].strip()
    text = f"{first} (from {host})"
    if isinstance(error, OSError) and type(error) is not OSError:
        return type(error)(text)
    for names, kind in _NAMED:
        if re.search(names, str(error)):
            return kind(text)
    if re.search("QuotaExceeded|could only be replicated", str(error)):
        return OSError(errno.ENOSPC, text)
    # What hdfs-native itself says as an OSError is about connections.
    return ConnectionError(text) if isinstance(error, OSError) else OSError(errno.EIO, text)


def unfinished(path: str) -> str:
    """Give a name beside a file, under which it is written before it is there.

    Examples
    --------
    >>> unfinished("/data/c/0")
    '/data/c/.0.new-...'
    """
    folder, name = posixpath.split(path)
    return f"{folder.rstrip('/')}/.{name}.new-{secrets.token_hex(4)}"


def is_unfinished(path: str) -> bool:
    """Whether a file has such a name.

    Examples
    --------
    >>> is_unfinished(unfinished("/data/c/0")), is_unfinished("/data/c/0")
    (True, False)
    """
    return bool(_UNFINISHED.search(path))
