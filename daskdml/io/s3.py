"""S3: s3fs's file system, with one way of trying again and one time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from s3fs import S3FileSystem

from daskdml.io import buffers
from daskdml.io.fetch import SLOWEST
from daskdml.io.options import seconds_of

__all__ = ["S3"]

PIECE = 2**20
"""Most bytes that are copied to their place at once."""


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
        self.timeout = timeout = seconds_of(timeout)
        config = {
            "connect_timeout": timeout,
            "read_timeout": timeout,
            "retries": {"total_max_attempts": 1},
            # Chunks have checksums of their own, which are compared where they are decoded.
            "response_checksum_validation": "when_required",
            **(config_kwargs or {}),
        }
        super().__init__(*args, config_kwargs=config, **options)

    async def _cat_file(  # type: ignore[no-untyped-def]
        self, path, version_id=None, start=None, end=None, **_
    ) -> bytes | memoryview:
        """Get an object, or a range of its bytes, in one request and in memory that is used again.

        s3fs asks for the size first, to get large objects in parts; we get objects side by side.
        """
        bucket, key, version = self.split_path(path)
        asked = {"Bucket": bucket, "Key": key, "VersionId": version_id or version}
        if start is not None or end is not None:
            asked["Range"] = await self._process_limits(path, start, end)
        found = await self._call_s3("get_object", **{k: v for k, v in asked.items() if v})
        out = buffers.empty(found["ContentLength"], np.uint8).data
        seconds = self.timeout + len(out) / SLOWEST
        try:
            await asyncio.wait_for(_fill(out, found["Body"]), seconds)
        except TimeoutError:
            raise ConnectionError(f"{path} is not whole after {seconds:.3g} s") from None
        return out if len(out) >= buffers.SMALLEST else out.tobytes()

    async def _call_s3(self, method: str, *given: Any, **kwargs: Any) -> Any:
        """Make one request; also where the server never says that it will take an upload."""
        await self.set_session()
        asked = {k: v for part in (*given, kwargs) for k, v in dict(part).items()}
        body = asked.get("Body", b"")
        seconds = self.timeout + (len(body) if hasattr(body, "__len__") else 0) / SLOWEST
        try:
            return await asyncio.wait_for(super()._call_s3(method, *given, **kwargs), seconds)
        except FileNotFoundError as error:
            if "bucket" not in str(error):
                raise
            raise FileNotFoundError(
                f"there is no bucket {asked.get('Bucket')} at {self.s3.meta.endpoint_url}; create "
                "it, or check the URL"
            ) from error
        except TimeoutError:
            host = self.s3.meta.endpoint_url
            # No TimeoutError: fsspec would put one without words in its place.
            raise ConnectionError(f"{host} has not answered for {seconds:.3g} s") from None


async def _fill(out: memoryview, answer: Any) -> None:
    """Read the body of an answer to where it belongs."""
    at = 0
    async with answer as body:
        while piece := await body.read(PIECE):
            out[at : at + len(piece)] = piece
            at += len(piece)
