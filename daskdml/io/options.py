"""Options of file systems, whose values nothing shows: keys and tokens are among them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["StorageOptions", "check_no_credentials", "quiet"]

# A port, as in hdfs://host:8020/, is no password.
_PASSWORD = re.compile(r"://[^/@:]*:(?!\d*(/|$))[^@]*@")
_SIGNED = re.compile(r"[?&][^=&]*(sig|token|secret|password|credential|key)[^=&]*=", re.IGNORECASE)


class StorageOptions(dict[str, Any]):
    """Options of a file system. They pickle with their values, and print without.

    Examples
    --------
    >>> StorageOptions(key="AKIA...", secret="wJalr...")
    {'key': ..., 'secret': ...}
    """

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: ..." for name in self) + "}"

    @property
    def digest(self) -> str:
        """What tells them from others."""
        text = repr(sorted((name, repr(value)) for name, value in self.items()))
        return hashlib.sha256(text.encode()).hexdigest()


def quiet(options: Mapping[str, Any] | None) -> StorageOptions | None:
    """Give options that print without their values; None for none.

    Examples
    --------
    >>> quiet({}), quiet({"secret": "x"})
    (None, {'secret': ...})
    """
    return StorageOptions(options) if options else None


def check_no_credentials(url: str) -> None:
    """Refuse a URL that holds a password or a token: names and errors show URLs.

    Raises
    ------
    ValueError
        Which does not show it.

    Examples
    --------
    >>> check_no_credentials("ftp://eve:secret@host/x.zarr")
    Traceback (most recent call last):
    ValueError: the ftp:// URL holds a password, which errors and logs would show; pass it in ...
    """
    protocol = url.partition("://")[0]
    found = "password" if _PASSWORD.search(url) else "token" if _SIGNED.search(url) else None
    if found and "://" in url:
        raise ValueError(
            f"the {protocol}:// URL holds a {found}, which errors and logs would show; pass it in "
            "storage_options"
        )
