"""Hosts that do not answer, or stop in the middle, end in an error that names them, in time."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest

from daskdml import Engine, Ridge
from daskdml.io import open_dataset, write_dataset
from daskdml.io import store as store_module
from daskdml.io.store import filesystem, retrying

TIMEOUT = 0.3
ATTEMPTS = 2
HANGING = TIMEOUT * ATTEMPTS + 4  # what docs/stores.md promises, and a slow machine


@pytest.fixture
def black_hole():
    """A port that takes connections and never says anything."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port():
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Try again at once, and only once."""
    monkeypatch.setattr(store_module, "ATTEMPTS", ATTEMPTS)
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 0.001)


def place(protocol, port):
    """A URL on that port, and options with a short time limit."""
    if protocol == "s3":
        endpoint = f"http://127.0.0.1:{port}"
        options = {"key": "x", "secret": "y", "endpoint_url": endpoint, "timeout": TIMEOUT}
        return "s3://bucket/x.zarr", options
    return f"{protocol}://127.0.0.1:{port}/x.zarr", {"timeout": TIMEOUT}


@pytest.mark.parametrize("how", ["refused", "silent"])
@pytest.mark.parametrize("protocol", ["s3", "hdfs", "webhdfs"])
def test_a_host_that_does_not_answer_is_named(protocol, how, black_hole, closed_port):
    """Opening, writing and a checkpoint end within the time limit, and name the host."""
    pytest.importorskip({"s3": "s3fs", "hdfs": "hdfs_native", "webhdfs": "requests"}[protocol])
    port = closed_port if how == "refused" else black_hole
    url, options = place(protocol, port)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"{url} failed 2 times.*127\.0\.0\.1:{port}"):
        open_dataset(url, options)
    assert time.monotonic() - began < HANGING
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"failed 2 times.*127\.0\.0\.1:{port}"):
        write_dataset(url, np.eye(3), storage_options=options)
    assert time.monotonic() - began < HANGING
    began = time.monotonic()
    with (
        pytest.raises(ConnectionError, match=rf"{url}.* failed 2 times.*127\.0\.0\.1:{port}"),
        Engine(checkpoint=url, storage_options=options),
    ):
        Ridge().fit(np.eye(3), np.arange(3.0))
    assert time.monotonic() - began < HANGING


@pytest.mark.parametrize("protocol", ["hdfs", "webhdfs"])
def test_a_silent_host_is_waited_for_once(protocol, black_hole):
    """A write that timed out asks for nothing more, and a look does not mean "it is not there"."""
    pytest.importorskip({"hdfs": "hdfs_native", "webhdfs": "requests"}[protocol])
    url, options = place(protocol, black_hole)
    fs, path = filesystem(url, options | {"timeout": 1.0})
    for action in (lambda: fs.pipe_file(path, b"x"), lambda: fs.exists(path)):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"127.0.0.1:{black_hole}"):
            action()
        assert time.monotonic() - began < 1.8


def test_an_existing_file_is_found_after_a_reset():
    """WebHDFS's word that a file is there is waited for; only its 404 says that it is not."""
    pytest.importorskip("requests")
    found = b'{"FileStatus": {"type": "FILE", "length": 1}}'
    absent = b'{"RemoteException": {"exception": "FileNotFoundException", "message": "no"}}'
    answers = [
        None,
        (200, found),
        None,
        (404, absent),
        (403, absent.replace(b"FileNot", b"AccessNot")),
    ]

    def answer(listening):
        for each in answers:
            link, _ = listening.accept()
            with link:
                link.recv(65536)
                if each:
                    head = f"HTTP/1.1 {each[0]} x\r\nContent-Length: {len(each[1])}\r\n"
                    link.sendall(f"{head}Connection: close\r\n\r\n".encode() + each[1])

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        fs, path = filesystem(f"webhdfs://127.0.0.1:{listening.getsockname()[1]}/x", {"timeout": 5})
        assert retrying(lambda: fs.exists(path), "looking") is True
        assert retrying(lambda: fs.exists(path), "looking") is False
        with pytest.raises(OSError, match="no"):
            fs.exists(path)


class Forgetful(http.server.BaseHTTPRequestHandler):
    """A NameNode that says nothing to the first rename."""

    seen = []  # noqa: RUF012

    def _told(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        where, _, query = self.path.partition("?")
        op = dict(part.split("=") for part in query.split("&") if part).get("op", "put")
        first = op == "RENAME" and all(kind != "RENAME" for kind, _ in self.seen)
        self.seen.append((op, where.rpartition("/")[2]))
        if first:
            time.sleep(1.5)
        body = b'{"boolean": true}'
        self.send_response(200)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/data")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    do_PUT = do_DELETE = _told

    def log_message(self, *args):
        """Say nothing."""


def test_what_a_silent_host_kept_is_removed_later():
    """The unfinished file of a write that timed out is removed after the next one."""
    pytest.importorskip("requests")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forgetful) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"webhdfs://127.0.0.1:{server.server_port}/x"
        fs, path = filesystem(url, {"timeout": 0.5})
        retrying(lambda: fs.pipe_file(path, b"x"), "writing")
        server.shutdown()
    first = Forgetful.seen[0][1]
    assert [op for op, _ in Forgetful.seen] == ["CREATE", "put", "RENAME"] * 2 + ["DELETE"]
    assert Forgetful.seen[-1][1] == first


def _stop_in_the_middle(listening, served):
    """Answer the metadata of a data set; of chunks send the head and a few bytes."""
    while True:
        try:
            link, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(link, served), daemon=True).start()


def _serve(link, served):
    with contextlib.suppress(OSError), link:
        while request := link.recv(65536):
            path = request.split()[1].decode().partition("?")[0].removeprefix("/bucket/")
            body = served.get(path)
            if body is None:
                link.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            if request.startswith(b"HEAD"):
                continue
            if "/c/" in path:
                link.sendall(body[:20])
                time.sleep(60)
            link.sendall(body)


def test_an_answer_that_stops_in_the_middle(tmp_path):
    """A chunk of which a part arrives, and then nothing, is named in time."""
    pytest.importorskip("s3fs")
    write_dataset(tmp_path / "x.zarr", np.arange(40.0).reshape(20, 2), chunks=20)
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    served = {str(f.relative_to(tmp_path)): f.read_bytes() for f in files}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        threading.Thread(target=_stop_in_the_middle, args=(listening, served), daemon=True).start()
        ds = open_dataset(*place("s3", listening.getsockname()[1]))
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"s3://bucket/x\.zarr/X/c/0/0 failed 2 times"):
            ds.read(0, 20)
        assert time.monotonic() - began < HANGING


def test_pauses_double_and_are_random_by_half(monkeypatch):
    """Pauses lie between half and one and a half of a doubled one, and are not all the same."""
    pauses = []
    monkeypatch.setattr(store_module, "ATTEMPTS", 5)
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(store_module.time, "sleep", pauses.append)
    for _ in range(50):
        with pytest.raises(ConnectionError):
            retrying(lambda: (_ for _ in ()).throw(ConnectionResetError("x")), "reading x")
    shares = np.array(pauses).reshape(50, 4) / [1, 2, 4, 8]
    assert shares.min() >= 0.5 and shares.max() <= 1.5 and len(np.unique(shares)) == 200


def test_what_takes_minutes_is_given_up_sooner(monkeypatch):
    """After a minute there is no third attempt, but always a second one."""
    now = [0.0]
    monkeypatch.setattr(store_module, "ATTEMPTS", 5)
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now[0])
    calls = []

    def hang():
        calls.append(1)
        now[0] += 100
        raise TimeoutError("no answer")

    with pytest.raises(ConnectionError, match="failed 2 times"):
        retrying(hang, "reading x")
    assert len(calls) == 2


def test_a_service_that_hadoop_does_not_know_is_named(monkeypatch):
    """An hdfs:// URL without a port says where its NameNode was looked for, and how to name it."""
    pytest.importorskip("hdfs_native")
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("HADOOP_HOME", raising=False)
    known = r"HADOOP_CONF_DIR .* as in hdfs://"
    for url, named in [
        ("hdfs://nosuchservice/x", "hdfs://nosuchservice"),
        ("hdfs:///x", "without"),
    ]:
        for action in (open_dataset, lambda url: write_dataset(url, np.eye(3))):
            with pytest.raises(ValueError, match=rf"{named}.*{known}"):
                action(url)


def test_the_package_for_kerberos_is_named():
    """What WebHDFS lacks for Kerberos is not what the extra installs."""
    pytest.importorskip("requests")
    with contextlib.suppress(ImportError):
        import requests_kerberos  # noqa: F401

        pytest.skip("it is installed")
    with pytest.raises(ImportError, match=r"kerberos=True for webhdfs://h:9870 .* requests-kerb"):
        open_dataset("webhdfs://h:9870/x", {"kerberos": True})


class Crawling(http.server.BaseHTTPRequestHandler):
    """Sends a byte now and then, more often than a time limit between two would end."""

    def do_GET(self):
        """An object of 60 bytes, or where WebHDFS has it."""
        self.send_response(200)
        if self.path.startswith("/webhdfs/"):
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/x")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_header("Content-Length", "60")
        self.send_header("ETag", '"x"')
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(60):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.2)

    def log_message(self, *args):
        """Say nothing."""


@pytest.mark.parametrize("protocol", ["s3", "webhdfs"])
def test_an_object_that_crawls_ends(protocol):
    """Not only chunks: each answer has to be whole in time."""
    pytest.importorskip({"s3": "s3fs", "webhdfs": "requests"}[protocol])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Crawling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fs, path = filesystem(*place(protocol, server.server_port))
        began = time.monotonic()
        with pytest.raises(OSError, match=r"is not whole after|has sent \d+ of 60 bytes"):
            fs.cat_file(path)
        assert time.monotonic() - began < HANGING
        server.shutdown()
