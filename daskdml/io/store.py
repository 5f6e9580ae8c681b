"""From an fsspec URL to a Zarr store: one way in for local disk, S3, HDFS, memory and the rest."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

import fsspec
import zarr
from fsspec.core import split_protocol, url_to_fs
from zarr.abc.store import Store
from zarr.errors import NodeNotFoundError
from zarr.storage import FsspecStore, LocalStore

from daskdml.io.options import (
    check_hosts,
    check_no_credentials,
    options_behind,
    shows_values,
    without_values,
)

__all__ = [
    "array_name",
    "describing",
    "filesystem",
    "object_name",
    "open_node",
    "open_store",
    "resolve_url",
    "retrying",
]

T = TypeVar("T")

ATTEMPTS = 5
FIRST_PAUSE = 0.2
"""Seconds before the second attempt; each further pause is twice as long, and half of it random."""
LONG_ENOUGH = 60.0
"""Seconds after which what has failed twice is given up."""

CHANCE = SystemRandom()  # of its own: seeded streams of numbers go on as without it

_EXTRAS = {"s3": "s3", "s3a": "s3", "hdfs": "hdfs", "webhdfs": "hdfs", "gs": "gcs", "gcs": "gcs",
           "abfs": "abfs", "abfss": "abfs", "az": "abfs", "adl": "abfs"}  # fmt: skip
_OWN = {"s3": "s3.S3", "s3a": "s3.S3", "hdfs": "hdfs.Hdfs", "webhdfs": "webhdfs.WebHdfs"}
"""Protocols with a file system of ours: fsspec's, with time limits."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PERMANENT = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
_PLAIN = (*_PERMANENT, TimeoutError, OSError, ImportError, TypeError, ValueError, KeyError)
_CLEANED = "check the values in storage_options"
"""How an error ends that showed some of them."""
_TRANSIENT_NAMES = re.compile(
    r"ConnectionError|ConnectTimeout|ReadTimeout|ConnectionClosed|ClientOSError|ClientPayloadError"
    r"|ServerDisconnected|ServerTimeout|IncompleteRead|ResponseStreaming|HTTPClientError"
)
_TRANSIENT_TEXT = re.compile(
    r"\b50[0234]\b|slow\s?down|internal ?error|service ?unavailable|too many requests|\b429\b"
    r"|reduce your request rate|timed? ?out|connection (reset|closed|aborted)|broken pipe",
    re.IGNORECASE,
)


_CLIENTS = {"aiobotocore", "botocore", "s3fs", "aiohttp", "requests", "urllib3", "hdfs_native"}
"""Packages whose errors are about places and options, not about what lies there."""


def resolve_url(url: str | os.PathLike[str]) -> str:
    """Give a URL that means the same in every process: local paths become absolute.

    Parameters
    ----------
    url : str or path
        A local path or any fsspec URL.

    Returns
    -------
    str
        An absolute path for local data, else the URL without a trailing slash.

    Raises
    ------
    ValueError
        Where it holds a password or a token; these belong in storage_options.

    Examples
    --------
    >>> resolve_url("file:///data/train.zarr")
    '/data/train.zarr'
    >>> resolve_url("s3://bucket/train.zarr/")
    's3://bucket/train.zarr'
    """
    text = os.fspath(url)
    if not isinstance(text, str):
        raise TypeError(f"a data set is named by a str or a path, not by {type(url).__name__}")
    if not text:
        raise ValueError("the URL of the data set is empty; give a path or an fsspec URL")
    check_no_credentials(text)
    protocol, rest = split_protocol(text)
    if protocol in (None, "file", "local"):
        return os.path.abspath(os.path.expanduser(rest))
    return text if rest == "/" else text.rstrip("/")


def is_local(url: str) -> bool:
    """Whether a resolved URL is a path of this machine."""
    return split_protocol(url)[0] is None


def unfinished_folder(target: Path) -> Path:
    """The hidden folder beside a local target in which it is written.

    Examples
    --------
    >>> unfinished_folder(Path("/data/train.zarr")).name
    '.train.zarr.unfinished'
    """
    return target.with_name(f".{target.name}.unfinished")


def unfinished(url: str) -> str:
    """What to tell who opens a target that is not whole."""
    return (
        f"{url} is unfinished: its writing is in progress or was cut off; wait for it, or make the "
        "call that writes it again, which goes on from there"
    )


def _missing_package(url: str, error: ImportError) -> ImportError:
    protocol = str(split_protocol(url)[0])
    extra = _EXTRAS.get(protocol)
    cure = f"pip install 'daskdml[{extra}]'" if extra else f"install its fsspec package ({error})"
    return ImportError(f"reading {url} needs a package for {protocol}:// URLs: {cure}")


def filesystem(
    url: str, storage_options: Mapping[str, Any] | None = None, *, asynchronous: bool = False
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Give the fsspec file system of a URL and the path inside it.

    Parameters
    ----------
    url : str
        A resolved URL (see `resolve_url`).
    storage_options : mapping or None
        What the file system's constructor takes (keys, endpoints ...). For ``s3://``, ``hdfs://``
        and ``webhdfs://`` also ``timeout``: seconds of silence after which a request ends.
    asynchronous : bool
        Ask for an instance that is driven by Zarr's own event loop.

    Raises
    ------
    ImportError
        Where the package that speaks the URL's protocol is missing; names what to install.
    ValueError
        Where fsspec does not know the protocol, or an option that names a host holds a password.
    """
    check_hosts(storage_options or {})
    with _hiding(url, storage_options, ValueError):
        return _made(url, dict(storage_options or {}), asynchronous)


def _made(
    url: str, options: dict[str, Any], asynchronous: bool
) -> tuple[fsspec.AbstractFileSystem, str]:
    protocol = split_protocol(url)[0] or "file"
    if protocol in _OWN:
        return _own(url, _OWN[protocol], options, asynchronous)
    try:
        # Synchronous file systems (some take only strings as options) are never asked.
        if asynchronous and fsspec.get_filesystem_class(protocol).async_impl:
            options["asynchronous"] = True
        fs, path = url_to_fs(url, **options)
    except ImportError as error:
        raise _missing_package(url, error) from error
    except ValueError as error:
        if "rotocol" not in str(error):
            raise
        raise ValueError(
            f"{url}: fsspec knows no protocol {protocol!r}; use a path, s3://, hdfs:// or another "
            "fsspec URL"
        ) from error
    return fs, path


def _own(
    url: str, name: str, options: dict[str, Any], asynchronous: bool
) -> tuple[fsspec.AbstractFileSystem, str]:
    module, _, kind = name.partition(".")
    try:
        cls = getattr(import_module(f"daskdml.io.{module}"), kind)
    except ImportError as error:
        raise _missing_package(url, error) from error
    if asynchronous and cls.async_impl:
        options["asynchronous"] = True
    fs = cls(**{**cls._get_kwargs_from_urls(url), **options})
    return fs, fs._strip_protocol(url)


@contextmanager
def _hiding(
    what: str, options: Mapping[str, Any] | None = None, other: type[Exception] = RuntimeError
) -> Iterator[None]:
    """An error that shows a key or a password becomes one that does not.

    Of the options that are given, and of those of the file systems that the error came through.
    """
    try:
        yield
    except Exception as error:
        known = [options, *options_behind(error)]
        if not shows_values(error, known):
            raise
        text = without_values(str(error), *known)
        why = f"{what}: {type(error).__name__}: {text}; {_CLEANED}"
        raise _shown_as(error, why, other) from None


def _shown_as(error: Exception, why: str, other: type[Exception]) -> Exception:
    """The error of Python's own that one is, with another text."""
    kind: type[Exception] = next((kind for kind in _PLAIN if isinstance(error, kind)), other)
    if "CredentialsError" in type(error).__name__:
        kind = PermissionError
    elif kind is not TimeoutError and is_transient(error):
        kind = ConnectionError
    number = getattr(error, "errno", None)
    return kind(why) if number is None or not issubclass(kind, OSError) else kind(number, why)


def open_store(
    url: str, storage_options: Mapping[str, Any] | None = None, *, read_only: bool = True
) -> Store:
    """Open the Zarr store at a URL; nothing is read or created yet.

    Parameters
    ----------
    url : str
        A resolved URL (see `resolve_url`).
    storage_options : mapping or None
        Options of the fsspec file system.
    read_only : bool
        Refuse writes through this store.

    Returns
    -------
    zarr.abc.store.Store
        A `LocalStore` for a path, else an `FsspecStore`; both pickle.

    Examples
    --------
    >>> open_store("/data/train.zarr").read_only
    True
    """
    if is_local(url):
        return LocalStore(url, read_only=read_only)
    fs, path = filesystem(url, storage_options, asynchronous=True)
    if not fs.async_impl:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        fs = AsyncFileSystemWrapper(fs, asynchronous=True)
    return FsspecStore(fs, read_only=read_only, path=path)


def object_name(store: Store, key: str) -> str:
    """Name an object of a store for people: a path or URL where the store has one.

    Examples
    --------
    >>> object_name(LocalStore("/data/train.zarr"), "X/c/0/0")
    '/data/train.zarr/X/c/0/0'
    """
    if isinstance(store, LocalStore):
        return os.path.join(str(store.root), key)
    if isinstance(store, FsspecStore):
        fs = getattr(store.fs, "sync_fs", store.fs)
        return str(fs.unstrip_protocol(f"{store.path.rstrip('/')}/{key}"))
    return f"{store}/{key}"


def array_name(array: zarr.Array[Any]) -> str:
    """Name an array for people: its path or URL."""
    return object_name(array.store_path.store, array.store_path.path).rstrip("/")


def open_node(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> zarr.Group | zarr.Array[Any]:
    """Open the Zarr group or array at a URL for reading.

    Raises
    ------
    FileNotFoundError
        Where nothing of Zarr lies at the URL.
    PermissionError
        Where the credentials do not allow to read it.
    """
    store = open_store(url, storage_options)
    try:
        with describing(url):
            return retrying(lambda: zarr.open(store, mode="r"), f"opening {url}")
    except (FileNotFoundError, NodeNotFoundError) as error:
        if is_local(url) and unfinished_folder(Path(os.path.realpath(url))).exists():
            raise FileNotFoundError(unfinished(url)) from error
        if is_local(url) and Path(url).exists():
            found = "is there, but holds no Zarr group or array (no zarr.json)"
        else:
            found = "does not exist"
        raise FileNotFoundError(
            f"{url} {found}; check the URL, or write a data set with daskdml.io.write_dataset"
        ) from error


@contextmanager
def describing(url: str) -> Iterator[None]:
    """Whatever metadata make Python raise becomes a ValueError that names what they are of.

    Examples
    --------
    >>> with describing("/data/train.zarr"):
    ...     {}["daskdml"]
    Traceback (most recent call last):
    ValueError: the metadata of /data/train.zarr cannot be used (KeyError: 'daskdml'); ...
    """
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and url in str(error):
            raise
        if str(error).endswith(_CLEANED):
            raise ValueError(str(error)) from None
        if "://" in url and _raised_in(error) in _CLIENTS:
            raise ValueError(
                f"{url} cannot be read with these storage_options ({type(error).__name__}: "
                f"{str(error)[:300]}); check endpoints and the names of options"
            ) from error
        why = f"{type(error).__name__}: {str(error)[:300]}"
        raise ValueError(
            f"the metadata of {url} cannot be used ({why}); restore them, or write it again"
        ) from error


def _raised_in(error: BaseException) -> str:
    """The package that raised an error."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "" if at is None else str(at.tb_frame.f_globals.get("__name__")).partition(".")[0]


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: resets, timeouts, throttling and 5xx; never 403 or 404."""
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if _TRANSIENT_NAMES.search(type(error).__name__):
        return True
    remote = isinstance(error, OSError) or type(error).__module__.startswith(
        ("botocore", "aiobotocore", "aiohttp")
    )
    return remote and bool(_TRANSIENT_TEXT.search(str(error)))


def retrying(action: Callable[[], T], what: str) -> T:
    """Do it; on a transient error do it again, after pauses that double, more or less.

    The pauses are random by half, so that the workers that a store has thrown back together do not
    come back together. There are `ATTEMPTS` of them, fewer where they take a minute. What is asked
    of a store is asked through here, so that no error of one shows a key or a password.

    Parameters
    ----------
    action : callable
        Must be idempotent.
    what : str
        Names the work and its object, as in ``"reading s3://bucket/x.zarr/X/c/0/0"``.

    Returns
    -------
    object
        What `action` returned.

    Raises
    ------
    PermissionError
        At once, naming the object, where access is denied.
    ConnectionError
        Naming the object, where the error outlived all attempts.

    Examples
    --------
    >>> retrying(lambda: 42, "counting")
    42
    """
    began, pause = time.monotonic(), FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _hiding(what):
                return action()
        except Exception as error:
            if isinstance(error, PermissionError) or "CredentialsError" in type(error).__name__:
                raise PermissionError(
                    f"{what}: access denied ({error}); check the permissions or storage_options"
                ) from error
            if isinstance(error, OSError) and error.errno in _FULL:
                raise OSError(
                    error.errno,
                    f"{what}: {error.strerror or error}; make room, and make the same call again",
                ) from error
            if not is_transient(error):
                raise
            late = attempt > 1 and time.monotonic() - began > LONG_ENOUGH
            if attempt == ATTEMPTS or late:
                raise ConnectionError(
                    f"{what} failed {attempt} times, last with {type(error).__name__}: {error}"
                ) from error
        time.sleep(pause * CHANCE.uniform(0.5, 1.5))
        pause *= 2
    raise AssertionError("unreachable")
