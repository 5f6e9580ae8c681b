"""S3: s3fs's file system, with one way of trying again and one time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from s3fs import S3FileSystem

__all__ = ["S3"]

SLOWEST = 100_000
"""Bytes per second: an upload that is slower ends."""


class S3(S3FileSystem):
    """Objects of an S3 server.

    s3fs tries five times, and botocore below it five times each: of a server that does not answer,
    one would hear after half an hour. Here a request is made once; `daskdml.io.store.retrying`
    repeats it.

    Parameters
    ----------
    timeout : float
        Seconds without an answer, or between two pieces of one, after which a request ends.
    config_kwargs : mapping or None
        Of botocore's configuration; what it says of times and retries counts more than the above.
    **options
        Of s3fs: key, secret, endpoint_url ...
    """

    retries = 1

    def __init__(
        self,
        *args: Any,
        timeout: float = 30.0,
        config_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        config = {
            "connect_timeout": timeout,
            "read_timeout": timeout,
            "retries": {"total_max_attempts": 1},
            **(config_kwargs or {}),
        }
        super().__init__(*args, config_kwargs=config, **options)
        self.timeout = float(timeout)

    async def _call_s3(self, method: str, *given: Any, **kwargs: Any) -> Any:
        """Make one request; also where the server never says that it will take an upload."""
        await self.set_session()
        body = {k: v for part in (*given, kwargs) for k, v in dict(part).items()}.get("Body", b"")
        seconds = self.timeout + (len(body) if hasattr(body, "__len__") else 0) / SLOWEST
        try:
            return await asyncio.wait_for(super()._call_s3(method, *given, **kwargs), seconds)
        except TimeoutError:
            host = self.s3.meta.endpoint_url
            # No TimeoutError: fsspec would put one without words in its place.
            raise ConnectionError(f"{host} has not answered for {seconds:.3g} s") from None
