"""Passes over rows on HDFS and S3, against plain clients that read the same bytes and drop them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import Workload
from benchmarks.measure import spread_of
from daskdml import Engine
from daskdml.engine.memory import Needs
from daskdml.io import open_dataset, write_dataset
from daskdml.io.sources import as_source
from daskdml.kernels.block import Block

CHUNK = 40_000  # of 100 float32: 16 MB, what write_dataset takes by itself
AT_ONCE = (1, 4)

Read = Callable[[str], Any]


@dataclass(frozen=True)
class CountRows:
    """Block -> rows: a pass that reads and decodes, and does nothing else."""

    def __call__(self, block: Block) -> int:
        """Number of rows."""
        return block.n_rows


@dataclass(frozen=True)
class Store:
    """A place on a server, and a plain client's way to read a file there.

    Parameters
    ----------
    name, url : str
    options : dict
        For daskdml.
    paths : callable
        Folder -> the files in it, as the client names them.
    read : callable
        File -> its bytes.
    """

    name: str
    url: str
    options: dict[str, Any]
    paths: Callable[[str], list[str]]
    read: Read


def _s3_store(server: Any) -> Store:
    from s3fs import S3FileSystem

    fs = S3FileSystem(**server.storage_options)
    return Store("s3", server.url("rows.zarr"), server.storage_options, fs.find, fs.cat_file)


def _hdfs_stores(server: Any) -> Iterator[Store]:
    from fsspec.implementations.webhdfs import WebHDFS
    from hdfs_native import Client

    client = Client(f"hdfs://127.0.0.1:{server.port}")
    web = WebHDFS("127.0.0.1", server.web_port, user="root")

    def paths(url: str) -> list[str]:
        folder = "/" + url.split("/", 3)[3]
        found = client.list_status(folder, True)
        return sorted(status.path for status in found if not status.isdir)

    def read(path: str) -> bytes:
        file = client.read(path)
        return file.read_range(0, len(file))

    yield Store("hdfs", server.url("rows.zarr"), {}, paths, read)
    yield Store("webhdfs", server.web_url("rows.zarr"), {"user": "root"}, paths, web.cat_file)


@contextmanager
def _stores() -> Iterator[list[Store]]:
    from tests.servers.hdfs import Missing, hdfs
    from tests.servers.s3 import s3

    with s3() as one:
        stores = [_s3_store(one)]
        try:
            with hdfs() as two:
                yield stores + list(_hdfs_stores(two))
        except Missing as missing:
            print(f"no HDFS: {missing}")
            yield stores


def _plain(paths: list[str], read: Read, at_once: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(lambda path: len(read(path)), paths):
            pass
    return time.perf_counter() - began


def _ours(store: Store, before: int) -> float:
    """Seconds of a pass, so many others before it."""
    source = as_source(open_dataset(store.url, store.options))
    with Engine(memory_limit="2GB") as engine, engine.open(source, Needs(), once=True) as data:
        for _ in range(before + 1):
            began = time.perf_counter()
            rows, _ = data.map_reduce(CountRows(), "read", parts=("X",))
            seconds = time.perf_counter() - began
    assert rows == source.n_rows
    return seconds


def stores(work: Workload, folder: Path, runs: int) -> list[dict[str, Any]]:
    """A pass over the workload's rows, and its ratio to the best client."""
    work = replace(work, chunk=CHUNK)
    rows: list[dict[str, Any]] = []
    with _stores() as places:
        for store in places:
            if store.name != "webhdfs":  # the same files as by hdfs
                write_dataset(store.url, work.blocks(), chunks=CHUNK, storage_options=store.options)
            paths = store.paths(f"{store.url}/X/c")
            cases: dict[str, Callable[[], float]] = {
                f"plain client, {n} at a time": partial(_plain, paths, store.read, n)
                for n in AT_ONCE
            }
            cases["daskdml, the first pass"] = partial(_ours, store, 0)
            cases["daskdml, the second pass"] = partial(_ours, store, 1)
            times: dict[str, list[float]] = {name: [] for name in cases}
            for _ in range(runs + 1):  # the first ones warm up
                for name, case in cases.items():
                    times[name].append(case())
            found = {name: spread_of(t[1:]) for name, t in times.items()}
            best = min(found[name]["seconds"] for name in list(cases)[: len(AT_ONCE)])
            for name, row in found.items():
                share = f"{best / row['seconds']:.2f} of the best client's speed"
                rows.append({"case": f"{store.name}, {name}: {share}", **row})
    return rows
