"""An S3 server (moto, a process of its own) on the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple


class S3Server(NamedTuple):
    """Where a server listens, and what opens it."""

    endpoint: str
    storage_options: dict[str, str]
    bucket: str

    def url(self, name: str) -> str:
        """Give the URL of an object in the server's bucket."""
        return f"s3://{self.bucket}/{name}"


def _wait_until_up(url: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the S3 server ended with code {server.returncode}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        time.sleep(0.1)
    raise TimeoutError(f"the S3 server did not answer at {url} within {seconds} s")


@contextlib.contextmanager
def s3() -> Iterator[S3Server]:
    """Run a server with one empty bucket."""
    from s3fs import S3FileSystem

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    endpoint = f"http://127.0.0.1:{port}"
    options = {"key": "x", "secret": "y", "endpoint_url": endpoint}
    S3FileSystem.clear_instance_cache()
    try:
        _wait_until_up(f"{endpoint}/moto-api/", server)
        S3FileSystem(**options).mkdir("daskdml-tests")
        yield S3Server(endpoint, options, "daskdml-tests")
    finally:
        S3FileSystem.clear_instance_cache()
        server.kill()
        server.wait(10)
