"""Fixtures that more than one floor uses."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import dask
import numpy as np
import pytest

from tests.engine.processes import fork_server
from tests.servers.hdfs import HdfsServer, Missing, hdfs
from tests.servers.s3 import S3Server, s3


def pytest_configure() -> None:
    """Have Ctrl-C interrupt tests: a shell that runs them in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have each test draw the numbers that it draws alone, whichever ran before it."""
    if hasattr(module := getattr(item, "module", None), "RNG"):
        module.RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """No test leaves this process in a state in which Ctrl-C does something else than before."""
    before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    after = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.signal(signal.SIGINT, before[0])
    signal.pthread_sigmask(signal.SIG_SETMASK, before[1])
    assert after == before


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server (moto, a process of its own), with one empty bucket."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3() as server:
        yield server


@contextlib.contextmanager
def workers(n: int, method: str = "forkserver", **kwargs: Any) -> Iterator[Any]:
    """Give a client of n worker processes with one thread each."""
    from distributed import Client, LocalCluster

    if method == "forkserver":
        fork_server()
    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": "1GB"}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": method}),
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
