"""Options of file systems, whose values nothing shows: keys and tokens are among them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["StorageOptions", "check_no_credentials", "quiet", "seconds_of"]

# A port, as in hdfs://host:8020/, is no password; buckets have none. Names of users may have an @.
_PASSWORD = re.compile(
    r"://[^/:]*:(?!\d*(/|$))[^@]*@|^(s3a?|gs|gcs)://[^/:]*:[^@]*@|^https?://[^/]*@"
)
_SIGNED = re.compile(
    r"[?&#][^=&#]*(sig|token|secret|passw|pwd|credential|key|auth|delegation)[^=&#]*=",
    re.IGNORECASE,
)
_PLACES = re.compile("url|endpoint|proxy|proxies|host", re.IGNORECASE)
_USER = re.compile(r"(^|//)[^/@]*:[^/@]*@|://[^/]*@")


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

    Raises
    ------
    TypeError
        Where they are no mapping.
    ValueError
        Where the address of a server in them holds a password: errors name servers.

    Examples
    --------
    >>> quiet({}), quiet({"secret": "x"})
    (None, {'secret': ...})
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"storage_options must be a dict, not {type(options).__name__}")
    for name in options or ():
        if _PLACES.search(str(name)) and _holds_password(options[name]):  # type: ignore[index]
            raise ValueError(
                f"{name} of storage_options holds a user or a password, which errors would show; "
                "pass them in options of their own, such as key and secret"
            )
    return StorageOptions(options) if options else None


def _holds_password(place: Any) -> bool:
    """Whether an address, or one of several, is of the form ``user:password@host``."""
    if isinstance(place, Mapping):
        return any(map(_holds_password, (*place.keys(), *place.values())))
    return isinstance(place, str) and bool(_USER.search(place))


def seconds_of(timeout: Any) -> float:
    """Give the option `timeout` of a file system.

    Raises
    ------
    ValueError
        Where it is no time.

    Examples
    --------
    >>> seconds_of("soon")
    Traceback (most recent call last):
    ValueError: timeout='soon' of storage_options must be a number of seconds above 0
    """
    try:
        seconds = float(timeout)
    except (ValueError, TypeError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"timeout={timeout!r} of storage_options must be a number of seconds above 0"
        )
    return seconds


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
