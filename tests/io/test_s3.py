"""The same on a real S3 server."""

from __future__ import annotations

import http.client
import pickle
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import zarr

from daskdml.io import open_dataset, train_test_split, write_dataset
from daskdml.io.chunks import ChunkError
from daskdml.io.sources import as_source
from daskdml.io.store import filesystem

pytestmark = pytest.mark.s3

X = np.random.default_rng(0).standard_normal((1003, 8)).astype("f4")
Y = np.arange(1003)


@pytest.fixture
def fs(s3_server):
    """Give the server's file system."""
    return fsspec.filesystem("s3", **s3_server.storage_options)


def written(s3_server, name, **kwargs):
    """Write the rows under a name of their own."""
    return write_dataset(
        s3_server.url(name), X, Y, chunks=100, storage_options=s3_server.storage_options, **kwargs
    )


def test_rows_come_back(s3_server):
    """What is written to S3 is read from S3, whole, in ranges, as a view and after pickling."""
    ds = written(s3_server, "rows.zarr")
    assert np.array_equal(ds.read(0, 1003)[0].X, X)
    block, stats = ds.read(250, 777)
    assert np.array_equal(block.X, X[250:777]) and stats.nbytes > 0 and stats.read_seconds > 0
    train, test = train_test_split(ds, random_state=0)
    copy = pickle.loads(pickle.dumps(train))
    both = np.concatenate([copy.read(0, len(copy))[0].y, test.read(0, len(test))[0].y])
    assert sorted(both) == list(Y)


def test_anyone_can_read_it_with_zarr(s3_server):
    """Plain Zarr reads it, and a source reads a plain Zarr array of others."""
    url = written(s3_server, "plain.zarr").url
    group = zarr.open_group(url, mode="r", storage_options=s3_server.storage_options)
    assert np.array_equal(group["X"][:], X)
    source = as_source(group["X"], group["y"])
    assert np.array_equal(source.read(90, 310)[0].X, X[90:310])
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(90, 310)[0].y, Y[90:310])


def test_large_objects(s3_server):
    """Objects of some megabytes, and ranges of them, arrive whole in memory that is used again."""
    rows, url = np.arange(900_000.0).reshape(90_000, 10), s3_server.url("large.zarr")
    plain = {"chunks": (50_000, 10), "compressors": None}
    zarr.create_array(url, data=rows, storage_options=s3_server.storage_options, **plain)
    options = s3_server.storage_options
    source = as_source(zarr.open_array(url, mode="r", storage_options=options))
    for start, stop in ((0, 90_000), (10, 40_000), (49_999, 50_001)) * 3:
        assert np.array_equal(source.read(start, stop)[0].X, rows[start:stop])
    fs, path = filesystem(url, options)
    whole = bytes(fs.cat_file(f"{path}/c/0/0"))
    assert whole == rows[:50_000].tobytes()
    for start, end in ((None, -8), (16, 2_000_000), (-5_000, None)):
        assert bytes(fs.cat_file(f"{path}/c/0/0", start=start, end=end)) == whole[start:end]
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{path}/c/7/0")


def test_overwriting(s3_server, fs):
    """The target is protected; overwriting replaces it and leaves no old objects."""
    ds = written(s3_server, "twice.zarr")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        written(s3_server, "twice.zarr")
    new = written(s3_server, "twice.zarr", overwrite=True)
    fs.invalidate_cache()
    assert len([name for name in fs.find(ds.url) if "/c/" in name]) == 11 + 11
    assert not fs.exists(f"{ds.url}/X")
    assert np.array_equal(new.read(0, 1003)[0].X, X)


def test_a_failure_leaves_the_old(s3_server, fs):
    """Where the rows end with an exception, the old data set stays and nothing else."""
    ds = written(s3_server, "fail.zarr")
    fs.invalidate_cache()
    before = fs.find(ds.url)

    def blocks():
        yield X[:200]
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        write_dataset(
            ds.url, blocks(), storage_options=s3_server.storage_options, overwrite=True, chunks=50
        )
    fs.invalidate_cache()
    assert fs.find(ds.url) == before
    again = open_dataset(ds.url, s3_server.storage_options)
    assert np.array_equal(again.read(0, 1003)[0].X, X)


def test_absent_things_are_named(s3_server, fs):
    """An absent data set, bucket or chunk is named."""
    options = s3_server.storage_options
    for url in (s3_server.url("absent.zarr"), "s3://no-such-bucket/a.zarr"):
        with pytest.raises(FileNotFoundError, match=f"{url} does not exist"):
            open_dataset(url, options)
    ds = written(s3_server, "hole-read.zarr")
    fs.rm(f"{ds.url}/X/c/3/0")
    with pytest.raises(ChunkError, match=r"s3://daskdml-tests/hole-read\.zarr/X/c/3/0 is missing"):
        ds.read(250, 450)


def test_a_truncated_object_is_named(s3_server, fs):
    """An object that lost its end is named."""
    ds = written(s3_server, "cut.zarr")
    name = f"{ds.url}/X/c/3/0"
    fs.pipe_file(name, fs.cat_file(name)[:500])
    with pytest.raises(ChunkError, match=r"s3://daskdml-tests/cut\.zarr/X/c/3/0 is damaged"):
        ds.read(250, 450)


class Throttling(BaseHTTPRequestHandler):
    """Passes requests on to the S3 server, but tells the first ones for a chunk to slow down."""

    upstream = ""
    failures = 3
    seen: ClassVar[Counter[str]] = Counter()

    def do_GET(self):
        """Answer 503 at first, then as the server does."""
        self.seen[self.path] += 1
        if "/c/" in self.path and self.seen[self.path] <= self.failures:
            body = (
                b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
            )
            self._answer(503, [("Content-Type", "application/xml")], body)
            return
        link = http.client.HTTPConnection(self.upstream)
        link.request(self.command, self.path, headers=dict(self.headers))
        got = link.getresponse()
        unwanted = ("content-length", "server", "transfer-encoding")
        kept = [(k, v) for k, v in got.getheaders() if k.lower() not in unwanted]
        self._answer(got.status, kept, got.read())

    do_HEAD = do_GET

    def _answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


def test_a_throttling_server_is_asked_again(s3_server):
    """Answers of 503 SlowDown are retried until the rows are there."""
    url = written(s3_server, "slow.zarr").url
    Throttling.upstream = s3_server.endpoint.removeprefix("http://")
    with ThreadingHTTPServer(("127.0.0.1", 0), Throttling) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
            ds = open_dataset(url, {**s3_server.storage_options, "endpoint_url": endpoint})
            assert np.array_equal(ds.read(250, 450)[0].X, X[250:450])
        finally:
            proxy.shutdown()
            thread.join()
    chunks = {path: n for path, n in Throttling.seen.items() if "/slow.zarr/X/c/" in path}
    assert len(chunks) == 3 and set(chunks.values()) == {Throttling.failures + 1}  # no HEAD


def test_what_is_wrong_with_place_and_options_is_told(s3_server, tmp_path):
    """Keys, buckets, endpoints and options are named; nobody is told to write the data again."""
    options = s3_server.storage_options
    missing = "s3://nobody-has-this/a.zarr"
    with pytest.raises(FileNotFoundError, match=r"there is no bucket nobody-has-this at http://"):
        write_dataset(missing, np.eye(3), storage_options=options)
    url = s3_server.url("options.zarr")
    write_dataset(url, np.eye(3), storage_options=options)
    for wrong in ({"endpoint_url": "localhost:1"}, {"client_kwargs": {"nothing_known": 1}}):
        with pytest.raises(ValueError, match="cannot be read with these storage_options"):
            open_dataset(url, storage_options=options | wrong)
    for timeout in (0, -1, "soon", None):
        with pytest.raises(ValueError, match=rf"timeout={timeout!r} of storage_options must be a"):
            open_dataset(url, storage_options=options | {"timeout": timeout})
    with pytest.raises(TypeError, match="storage_options must be a dict, not str"):
        open_dataset(url, storage_options="key")
