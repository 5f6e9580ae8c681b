"""Credentials are nowhere to be seen: not in logs, errors, names, checkpoints, pages or reprs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import logging
import pickle
import traceback
import urllib.request
from functools import partial

import fsspec
import fsspec.asyn
import fsspec.implementations.memory
import numpy as np
import pytest
from zarr.core.sync import sync

from daskdml import Engine, KMeans, LogisticRegression, MatrixFactorization, Ridge
from daskdml.engine.listing import CheckpointError
from daskdml.events import PassStart
from daskdml.io import convert_ratings, open_dataset, train_test_split, write_dataset
from daskdml.io.staging import stage
from daskdml.io.store import filesystem, resolve_url
from tests.conftest import workers

SECRET = "f00dcafe" * 4
"""Part of everything that must not be seen."""


@pytest.fixture
def seen():
    """What a person could see, collected; logs of all levels among it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    # At DEBUG, botocore logs the headers of its requests.
    noisy = [logging.getLogger(name) for name in ("botocore", "aiobotocore", "asyncio")]
    for logger in noisy:
        logger.setLevel(logging.INFO)
    found: list[str] = []
    yield found
    root.removeHandler(handler)
    root.setLevel(level)
    for logger in noisy:
        logger.setLevel(logging.NOTSET)
    text = stream.getvalue() + "\n".join(found)
    assert len(found) > 3 and SECRET not in text, _around(text)


def _around(text):
    at = text.find(SECRET)
    return text[max(at - 500, 0) : at + 100]


@contextlib.contextmanager
def told(seen, *kinds):
    """Expect an error, and collect all that its traceback shows."""
    with pytest.raises(kinds) as caught:
        yield
    seen += traceback.format_exception(caught.value)
    seen.append(repr(caught.value))


def specs(dask_scheduler):
    """What the scheduler knows of its tasks, and all events."""
    tasks = [f"{ts.key} {ts.run_spec!r} {ts.annotations}" for ts in dask_scheduler.tasks.values()]
    return [*tasks, repr(dict(dask_scheduler.get_events() or {}))]


@pytest.mark.s3
@pytest.mark.cluster
def test_s3_on_a_cluster(s3_server, seen):
    """Fits, errors, checkpoints and predictions on S3, with workers and their pages."""
    options = {
        "key": f"AK{SECRET}",
        "secret": f"S{SECRET}",
        "token": f"T{SECRET}",
        "endpoint_url": s3_server.endpoint,
    }
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 5)).astype("f4")
    y = (X[:, 0] + rng.standard_normal(3000) > 0).astype(int)

    def heard(event):
        seen.append(repr(event))
        if isinstance(event, PassStart):
            seen.extend(client.run_on_scheduler(specs))

    with workers(2, dashboard_address="127.0.0.1:0") as client:
        ds = write_dataset(s3_server.url("secret.zarr"), X, y, chunks=1000, storage_options=options)
        place = {"checkpoint": s3_server.url("secret.fit"), "every": 0, "storage_options": options}
        with Engine(client, callbacks=[heard], **place) as engine:
            model = LogisticRegression(solver="newton", random_state=0).fit(ds)
            seen += [repr(engine.checkpoint), repr(vars(engine))]
            with told(seen, CheckpointError):
                LogisticRegression(C=2.0, solver="newton", random_state=0).fit(ds)
        with Engine(client, callbacks=[heard]):
            out = model.predict(
                ds.url, out=s3_server.url("secret.predictions"), storage_options=options
            )
            fs, path = filesystem(ds.url, options)
            fs.rm_file(f"{path}/X/c/1/0")
            with told(seen, OSError):
                KMeans(2, random_state=0).fit(ds)
            lazy = model.predict(open_dataset(ds.url, options))
            seen += [repr(lazy), repr(lazy.dask), *map(repr, lazy.dask.items())]
        for things in (ds, train_test_split(ds)[0], model, out, ds.to_dask()):
            seen += [repr(things), repr(pickle.loads(pickle.dumps(things)))]
        seen += [repr(vars(thing)) for thing in (ds, model)]
        seen += [ds._repr_html_(), repr(ds.storage_options), ds.token]
        seen += [repr(client.get_worker_logs()), repr(client.get_scheduler_logs())]
        page = client.dashboard_link.rpartition("/")[0]
        for name in ("info/main/workers.html", "json/counts.json", "individual-task-stream"):
            with urllib.request.urlopen(f"{page}/{name}", timeout=20) as answer:
                seen.append(answer.read().decode())
    broken = s3_server.url("secret.broken")
    staging = stage(broken, options, run="a write")
    seen += [repr(vars(staging)), repr(staging.token)]
    with told(seen, RuntimeError):
        write_dataset(broken, X, storage_options=options)
    staging.leave(KeyboardInterrupt())
    with told(seen, ValueError):
        open_dataset(broken, options)
    plain = fsspec.filesystem("s3", **s3_server.storage_options)
    found = [
        name for what in ("fit", "broken") for name in plain.find(s3_server.url(f"secret.{what}"))
    ]
    assert any(name.endswith("run.json") for name in found)
    seen += [plain.cat_file(name).decode("latin-1") for name in found]


def test_ratings_and_factors(seen):
    """Ratings, stores of factors, and the model that holds them."""
    options = {"skip_instance_cache": True, "secret": SECRET}
    users, items = np.divmod(np.random.default_rng(0).choice(200, 90, replace=False), 10)
    data = (users, items, users / 20.0)
    ratings = convert_ratings(data, "memory://secret.ratings", storage_options=options)
    place = {"checkpoint": "memory://secret.fit", "every": 0, "storage_options": options}
    with Engine(**place) as engine:
        model = MatrixFactorization(2, max_iter=1, random_state=0).fit(
            ratings, factors_url="memory://secret.factors", storage_options=options
        )
        seen.append(repr(vars(engine)))
    with told(seen, FileExistsError):
        MatrixFactorization(2, max_iter=1, random_state=1).fit(
            ratings, factors_url="memory://secret.factors", storage_options=options
        )
    memory = fsspec.filesystem("memory", **options)
    for name in memory.find("secret.fit") + memory.find("secret.factors"):
        seen.append(memory.cat_file(name).decode("latin-1"))
    lazy = model.user_factors_
    for thing in (ratings, ratings.split()[0], model, lazy):
        seen += [repr(thing), repr(vars(thing)), repr(pickle.loads(pickle.dumps(thing)))]
    seen += [repr(vars(ratings)["storage_options"]), repr(lazy.dask.items())]


def test_hosts_that_fail(seen, monkeypatch):
    """Hosts that refuse the connection, and a token in the query of WebHDFS."""
    pytest.importorskip("requests")
    monkeypatch.setattr("daskdml.io.store.FIRST_PAUSE", 0.001)
    url = "webhdfs://127.0.0.1:1/x.zarr"
    for options in ({"token": SECRET}, {"user": "eve", "password": SECRET}):
        with told(seen, ConnectionError):
            open_dataset(url, options)
        with told(seen, ConnectionError):
            write_dataset(url, np.eye(3), storage_options=options)
        with told(seen, ConnectionError), Engine(checkpoint=url, storage_options=options):
            Ridge().fit(np.eye(3), np.arange(3.0))


@pytest.mark.hdfs
def test_tokens_of_webhdfs(hdfs_server, seen):
    """A token that the server does not know."""
    with told(seen, OSError):
        open_dataset(hdfs_server.web_url("x.zarr"), {"token": SECRET})
    url = write_dataset(hdfs_server.web_url("secret.zarr"), np.eye(3)).url
    ds = open_dataset(url, {"user": "root"})
    seen += [repr(ds), repr(vars(ds)), repr(ds.read(0, 3))]


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://eve:{SECRET}@host/x.zarr",
        f"s3://AKIA:{SECRET}/+/x@bucket/x.zarr",
        f"webhdfs://eve:{SECRET}@host:9870/x",
        f"https://host/x.csv?X-Amz-Signature={SECRET}",
        f"abfs://container/x.zarr?sv=1&sig={SECRET}",
        f"ftp://eve@x.org:{SECRET}@host/x",
        f"ftp://eve:12{SECRET}@host/x",
        f"s3://AKIA:12/{SECRET}@bucket/x",
        f"https://{SECRET}@host/x.csv",
        f"webhdfs://host:1/x?delegation={SECRET}",
        f"https://host/x?pwd={SECRET}",
        f"https://host/x?a=1&auth={SECRET}",
        f"https://host/x#token={SECRET}",
    ],
)
def test_urls_with_credentials_are_refused(url, seen, tmp_path):
    """A password or token in a URL is refused wherever a URL is taken, and not repeated."""
    eye = np.eye(3)
    model = KMeans(2, random_state=0).fit(eye)
    actions = [
        lambda: open_dataset(url),
        lambda: write_dataset(url, eye),
        lambda: Engine(checkpoint=url),
        lambda: KMeans(2).fit(url),
        lambda: model.predict(eye, out=url),
        lambda: convert_ratings(url, tmp_path / "r.zarr"),
        lambda: convert_ratings(([1], [2], [3.0]), url),
    ]
    for action in actions:
        with told(seen, ValueError):
            action()
    assert all("storage_options" in text for text in seen if text.startswith("ValueError"))


@pytest.mark.parametrize(
    "url",
    [
        "hdfs://host:8020/a", "hdfs://eve@host:8020/a@b", "s3://bucket/a:b@c", "s3://b/k?d=1",
        "s3://bucket/a@b/c", "abfs://container@account.dfs.core.windows.net/path",
        "hdfs://user@host", "hdfs://host:8020/a@b", "ftp://eve@host/x", "https://host/a@b?author=c",
        "https://host:8080/a@b", "s3://bucket/a#1",
    ],
)  # fmt: skip
def test_urls_without_credentials_pass(url):
    """Ports, names of users and odd names of objects are no passwords."""
    assert resolve_url(url) == url


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": f"http://eve:{SECRET}@127.0.0.1:1"},
        {"endpoint_url": f"eve:{SECRET}@nowhere"},
        {"client_kwargs": {"endpoint_url": f"http://{SECRET}@127.0.0.1:1"}},
        {"data_proxy": {"datanode": f"http://eve:a/{SECRET}@proxy"}},
    ],
)
@pytest.mark.parametrize("url", ["s3://b/x.zarr", "webhdfs://127.0.0.1:1/x.zarr"])
def test_hosts_with_passwords_are_refused(url, options, seen):
    """A password beside a host among the options is refused before anything is asked for."""
    pytest.importorskip("s3fs")
    actions = [
        lambda: open_dataset(url, options),
        lambda: write_dataset(url, np.eye(3), storage_options=options),
        lambda: Engine(checkpoint=url, storage_options=options),
        lambda: convert_ratings(([1], [2], [3.0]), url, storage_options=options),
    ]
    for action in actions:
        with told(seen, ValueError), action():
            Ridge().fit(np.eye(3), np.arange(3.0))
    assert all(
        "holds a user or a password" in text for text in seen if text.startswith("ValueError")
    )


ERRORS = {
    "runtime": RuntimeError,
    "os": OSError,
    "permission": PermissionError,
    "reset": ConnectionResetError,
    "full": partial(OSError, errno.ENOSPC),
}
"""What a file system may raise, from a text."""


class Chatty(fsspec.implementations.memory.MemoryFileSystem):
    """Shows its options in errors, of the constructor or of a request.

    Of requests, those whose name is `fails` fail, of objects whose path has `within`.
    """

    protocol = "chatty"

    def __init__(self, early=False, fails="cat_file", within="", kind="runtime", **options):
        super().__init__()
        self.options = options
        self.fails, self.within, self.kind = fails, within, kind
        if early:
            raise RuntimeError(f"no such options: {options}")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("chatty://"))

    def _try(self, request, path):
        if request != self.fails or self.within not in path:
            return
        why = f"no such options: {self.options!r}"
        if self.kind != "caused":
            raise ERRORS[self.kind](why)
        try:
            raise KeyError(why)
        except KeyError as error:
            raise OSError("an error with a cause") from error

    def cat_file(self, path, *args, **kwargs):
        """Get an object."""
        self._try("cat_file", path)
        return super().cat_file(path, *args, **kwargs)

    def pipe_file(self, path, *args, **kwargs):
        """Put an object."""
        self._try("pipe_file", path)
        return super().pipe_file(path, *args, **kwargs)

    def ls(self, path, *args, **kwargs):
        """List a folder."""
        self._try("ls", path)
        return super().ls(path, *args, **kwargs)

    def exists(self, path, *args, **kwargs):
        """Look for an object."""
        self._try("exists", path)
        return super().exists(path, *args, **kwargs)


class Cancelled(fsspec.asyn.AsyncFileSystem):
    """Gets objects of Chatty's; the first chunk fails, the others once they are cancelled."""

    protocol = "cancelled"

    def __init__(self, **options):
        super().__init__(**{k: v for k, v in options.items() if k == "asynchronous"})
        self.options, self.told = options, []

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        if "X/c/" in path:
            try:
                await asyncio.sleep(0.1 if "X/c/0" in path else 60)
            except asyncio.CancelledError:
                self.told.append(path)
                raise RuntimeError(f"broken off: {self.options!r}") from None
            raise RuntimeError(f"no such options: {self.options!r}")
        return fsspec.filesystem("chatty", fails="").cat_file(path, start, end)


fsspec.register_implementation("chatty", Chatty, clobber=True)
fsspec.register_implementation("cancelled", Cancelled, clobber=True)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"secret": SECRET}, {"key": {SECRET: 1}}, {"client_kwargs": {"aws_session_token": SECRET}},
        {"config_kwargs": {"proxies": {"http": f"http://eve:{SECRET}@127.0.0.1"}}},
        {"token": f"{SECRET}\n\\"}, {"headers": {"Authorization": [SECRET]}},
        {"password": SECRET.encode()},
    ],
    ids=range(7),
)  # fmt: skip
def test_errors_that_repeat_options_are_cleaned(options, early, seen):
    """What a file system says of its options is told without their secrets, and with the rest."""
    for _ in range(2):
        with told(seen, ValueError):
            open_dataset("chatty://x", {"early": early, "region": "nowhere-1", **options})
    ends = [text for text in seen if "check the values in storage_options" in text]
    assert ends and all("..." in text and "nowhere-1" in text for text in ends)


@pytest.fixture
def rows(monkeypatch):
    """The URL of a data set of six chunks."""
    monkeypatch.setattr("daskdml.io.store.FIRST_PAUSE", 0.001)
    fsspec.filesystem("chatty", fails="").pipe_file("files/0.csv", b"user,item,rating\n1,2,3.0\n")
    eye = np.eye(6)
    write_dataset("chatty://rows", eye, eye[0], chunks=1, overwrite=True,
                  storage_options={"fails": ""})  # fmt: skip
    return "chatty://rows"


@pytest.mark.parametrize("kind", [*ERRORS, "caused"])
def test_errors_of_reads_are_cleaned(kind, rows, seen):
    """What a read says of options is cleaned: of rows, in a fit, and of files."""
    options = {"within": "/c/", "kind": kind, "region": "nowhere-1", "secret": SECRET}
    expected = RuntimeError if kind == "runtime" else OSError
    with told(seen, expected):
        open_dataset(rows, options).read(0, 6)
    with told(seen, expected):
        Ridge().fit(rows, storage_options=options)
    options["within"] = ".csv"
    with told(seen, expected):
        convert_ratings("chatty://files/0.csv", "memory://secret.csv", source_options=options)
    ends = [text for text in seen if "check the values in storage_options" in text]
    assert len(ends) >= 6
    rest = "an error with a cause" if kind == "caused" else "'nowhere-1', 'secret': '...'"
    assert all(rest in text for text in ends)


@pytest.mark.parametrize("kind", [*ERRORS, "caused"])
@pytest.mark.parametrize("fails", ["pipe_file", "ls", "exists"])
def test_errors_of_writes_and_listings_are_cleaned(fails, kind, rows, seen):
    """So is what is said while something is written or listed, checkpoints among it."""
    options = {"fails": fails, "kind": kind, "secret": SECRET}
    eye = np.eye(3)
    model = KMeans(2, random_state=0).fit(eye)
    actions = {
        "write": lambda: write_dataset("chatty://new", eye, storage_options=options),
        "predict": lambda: model.predict(eye, out="chatty://out", storage_options=options),
        "fit": lambda: Ridge().fit(eye, np.arange(3.0)),
        "files": lambda: convert_ratings(
            "chatty://files/0.csv", "memory://secret.csv", source_options=options
        ),
    }
    listed = {"ls": ["write", "predict"], "exists": ["fit", "files"]}
    for name in listed.get(fails, ["write", "predict", "fit"]):
        place = {"checkpoint": "chatty://fit", "storage_options": options} if name == "fit" else {}
        with told(seen, RuntimeError, OSError), Engine(**place):
            actions[name]()


def test_an_error_keeps_its_kind(rows):
    """Who handles an error sees the kind and number that it had."""
    for kind, number, expected in [
        ("permission", None, PermissionError), ("reset", None, ConnectionError),
        ("full", errno.ENOSPC, OSError),
    ]:  # fmt: skip
        ds = open_dataset(rows, {"within": "/c/", "kind": kind, "secret": SECRET})
        with pytest.raises(expected, match=r"reading .*rows/.*X/c/0/0.*'\.\.\.'") as caught:
            ds.read(0, 6)
        assert caught.value.errno == number


def test_nothing_is_cleaned_without_need(rows):
    """The error itself is raised where it shows no secret."""
    ds = open_dataset(rows, {"within": "/c/", "region": "nowhere-1"})
    with pytest.raises(RuntimeError, match=r"^no such options: {'region': 'nowhere-1'}$"):
        ds.read(0, 6)


def test_fetches_that_fail_together(rows, seen, capfd):
    """Nothing is logged of fetches that are cancelled because another one has failed."""
    options = {"secret": SECRET}
    ds = open_dataset("cancelled://rows", options)
    with told(seen, RuntimeError):
        ds.read(0, 6)
    fs = ds._arrays.X.array.store_path.store.fs
    for _ in range(100):
        sync(asyncio.sleep(0.01))
        gc.collect()
        if len(fs.told) == 5:
            break
    assert len(fs.told) == 5
    sync(asyncio.sleep(0.01))
    gc.collect()
    seen += [*capfd.readouterr(), *map(repr, fs.told)]


@pytest.mark.cluster
def test_errors_of_workers_are_cleaned(tmp_path, seen):
    """Workers know the secrets of a store that they were sent, and were never told to open."""
    options = {"fails": "pipe_file", "within": "c/", "secret": SECRET}
    eye = np.eye(6)
    model = KMeans(2, random_state=0).fit(eye)
    ds = write_dataset(tmp_path / "rows.zarr", eye, chunks=2)
    with workers(1) as client, Engine(client):
        with told(seen, RuntimeError):
            model.predict(ds, out="chatty://sent", storage_options=options)
        seen += [repr(client.get_worker_logs()), repr(client.get_scheduler_logs())]
    assert any("'secret': '...'" in text for text in seen)
