"""Options of file systems, whose values nothing shows: keys and tokens are among them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from traceback import walk_tb
from typing import Any

from fsspec import AbstractFileSystem

__all__ = [
    "StorageOptions",
    "check_hosts",
    "check_no_credentials",
    "options_behind",
    "quiet",
    "seconds_of",
    "shows_values",
    "without_values",
]

# A port, as in hdfs://host:8020/, is no password.
_PASSWORD = re.compile(r"://[^/:]*:(?!\d*(/|$))[^@]*@")
# Buckets have no ports; a secret key may have a slash.
_KEYS = re.compile(r"\b(s3a?|gs|gcs)://[^/:]*:[^@]*@")
# A user of HDFS or FTP is none, but who is let in by HTTP with a name alone has named a token.
_TOKEN = re.compile(r"\bhttps?://[^/?#]*@")
_SECRET = "sig|token|secret|passw|pwd|passphrase|credential|key|delegation|connection_string"
_AUTH = r"(?<![a-z])auth(?![a-z])|authorization"
_SIGNED = re.compile(rf"[?&#;][^=&#;]*({_SECRET}|{_AUTH})[^=&#;]*=", re.IGNORECASE)
_NAMES = re.compile(f"{_SECRET}|{_AUTH}|cookie", re.IGNORECASE)
_HOSTS = ("endpoint_url", "data_proxy")
_SHORTEST = 4
"""Letters of a value that is looked for in texts."""


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

    Examples
    --------
    >>> quiet({}), quiet({"secret": "x"})
    (None, {'secret': ...})
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"storage_options must be a dict, not {type(options).__name__}")
    return StorageOptions(options) if options else None


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
    if _PASSWORD.search(url) or _KEYS.search(url):
        found = "password"
    elif _SIGNED.search(url) or _TOKEN.search(url):
        found = "token"
    else:
        return
    if "://" in url:
        raise ValueError(
            f"the {protocol}:// URL holds a {found}, which errors and logs would show; pass it in "
            "storage_options"
        )


def check_hosts(options: Mapping[str, Any]) -> None:
    """Refuse options that name a host together with a user or a password: errors show hosts.

    Raises
    ------
    ValueError
        Which does not show it.

    Examples
    --------
    >>> check_hosts({"endpoint_url": "http://eve:secret@host"})
    Traceback (most recent call last):
    ValueError: endpoint_url of storage_options holds a user or a password, ...
    """
    for name, value in options.items():
        if name in _HOSTS and any("@" in text for text in _texts(value)):
            raise ValueError(
                f"{name} of storage_options holds a user or a password, which errors and logs "
                "would show; name the host alone, and pass those as options of their own"
            )
        if isinstance(value, Mapping):
            check_hosts(value)


def options_behind(error: BaseException) -> list[Mapping[str, Any]]:
    """Give the options of all file systems that an error, or what caused it, came through.

    They are found in the frames of tracebacks, so that what a worker unpickled is among them. The
    frame that caught an error is passed over: it holds the error, which would never be forgotten.

    Examples
    --------
    >>> import fsspec
    >>> fs = fsspec.filesystem("memory", secret="x", skip_instance_cache=True)
    >>> try:
    ...     fs.cat_file("nothing")
    ... except FileNotFoundError as error:
    ...     options_behind(error)
    [{'secret': 'x'}]
    """
    found: dict[int, Mapping[str, Any]] = {}
    for each in _chain(error):
        caught = each.__traceback__
        for frame, _ in walk_tb(caught and caught.tb_next):
            for value in tuple(frame.f_locals.values()):
                if issubclass(type(value), AbstractFileSystem):
                    found[id(value)] = getattr(value, "storage_options", {})
    return list(found.values())


def shows_values(error: BaseException, options: Sequence[Mapping[str, Any] | None]) -> bool:
    """Whether an error, or one that it comes from, shows a password, key or token of options.

    Examples
    --------
    >>> shows_values(OSError("no key AKIA1"), [{"key": "AKIA1"}])
    True
    """
    for each in _chain(error):
        told = [str(each), repr(each), *getattr(each, "__notes__", ())]
        if any(without_values(text, *options) != text for text in told):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while they were handled."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            todo += [e for e in (each.__cause__, each.__context__) if e is not None]


def without_values(text: str, *options: Mapping[str, Any] | None) -> str:
    """Give a text with "..." for each password, key or token of the options that it shows.

    Examples
    --------
    >>> without_values("no key AKIA1 at host:1", {"key": "AKIA1", "endpoint_url": "http://host:1"})
    'no key ... at host:1'
    """
    shown = {form for value in _secrets(options) for form in (value, repr(value)[1:-1])}
    for value in sorted(shown, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, "...")
    return text


def _secrets(value: Any, secret: bool = False) -> Iterator[str]:
    """Texts below a value that have a name as secrets have it, or a user before a host."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _secrets(part, secret or bool(_NAMES.search(str(name))))
            if secret:
                yield str(name)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _secrets(part, secret)
    elif isinstance(value, bytes):
        yield from _secrets(value.decode("latin-1"), secret)
    elif isinstance(value, str) and (secret or "@" in value):
        yield value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
