"""Fixtures that more than one floor uses."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.servers.hdfs import HdfsServer, Missing, hdfs


class S3Server(NamedTuple):
    """An S3 server on the loopback interface."""

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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server (moto, a process of its own), with one empty bucket."""
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    endpoint = f"http://127.0.0.1:{port}"
    options = {"key": "x", "secret": "y", "endpoint_url": endpoint}
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        _wait_until_up(f"{endpoint}/moto-api/", server)
        s3fs.S3FileSystem(**options).mkdir("daskdml-tests")
        yield S3Server(endpoint, options, "daskdml-tests")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()
        server.wait(10)


@contextlib.contextmanager
def workers(n: int, **kwargs: Any) -> Iterator[Any]:
    """Give a client of n worker processes with one thread each."""
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": "1GB"}
    with (
        LocalCluster(n_workers=n, processes=True, **(options | kwargs)) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(n, timeout=60)
        yield client


@pytest.fixture(scope="session")
def two_workers() -> Iterator[Any]:
    """A client of two worker processes, shared by tests that leave them as they are."""
    with workers(2) as client:
        yield client


@pytest.fixture(scope="session")
def hdfs_server() -> Iterator[HdfsServer]:
    """A real HDFS, NameNode and DataNode; skipped, with the reason, where it cannot be had."""
    pytest.importorskip("hdfs_native")
    with contextlib.ExitStack() as running:
        try:
            server = running.enter_context(hdfs())
        except Missing as missing:
            pytest.skip(f"no HDFS server: {missing}")
        yield server
