"""The same on a real HDFS, by its own protocol and by HTTP."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zarr

from daskdml import Engine, LogisticRegression, MatrixFactorization
from daskdml.events import PassEnd
from daskdml.io import convert_ratings, open_dataset, open_ratings, train_test_split, write_dataset
from daskdml.io.chunks import ChunkError
from daskdml.io.hadoop import is_unfinished
from daskdml.io.store import filesystem, retrying

pytestmark = pytest.mark.hdfs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1003, 8)).astype("f4")
Y = (X[:, 0] + RNG.standard_normal(1003) > 0).astype(int)


@pytest.fixture(scope="module", params=["hdfs", "webhdfs"])
def at(request, hdfs_server):
    """Names -> URLs of one of the protocols."""
    make = {"hdfs": hdfs_server.url, "webhdfs": hdfs_server.web_url}[request.param]
    return lambda name: make(f"by-{request.param}/{name}")


@pytest.fixture
def place(request, at):
    """Names of a test -> URLs."""
    return lambda name: at(f"{request.node.name.replace('[', '-').rstrip(']')}/{name}")


@pytest.fixture(scope="module")
def rows(at):
    """A data set that tests read; closing a file of HDFS takes half a second."""
    return write_dataset(at("rows/rows.zarr"), X, Y, chunks=400)


def below(url):
    """Names directly in a folder."""
    fs, path = filesystem(url)
    return sorted(name.rpartition("/")[2] for name in fs.ls(path, detail=False))


def test_rows_come_back(rows, at):
    """What is written is read, whole, in ranges, as a view and after pickling."""
    assert np.array_equal(rows.read(0, 1003)[0].X, X)
    block, stats = rows.read(250, 777)
    assert np.array_equal(block.X, X[250:777]) and stats.nbytes > 0
    train, test = train_test_split(rows, random_state=0)
    copy = pickle.loads(pickle.dumps(train))
    assert len(copy.read(0, len(copy))[0].y) + len(test.read(0, len(test))[0].y) == 1003
    assert below(at("rows")) == ["rows.zarr"]


def test_overwriting(place):
    """The new is there once it is whole; a failure leaves the old; nothing else stays."""
    url = place("twice.zarr")
    old = write_dataset(url, X)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_dataset(url, X)

    def blocks():
        yield X[:200]
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        write_dataset(url, blocks(), chunks=100, overwrite=True)
    assert np.array_equal(old.read(0, 1003)[0].X, X)
    new = write_dataset(url, X[:500], overwrite=True)
    assert np.array_equal(new.read(0, 500)[0].X, X[:500])
    assert below(place("")) == ["twice.zarr"]
    names = below(url)
    assert len(names) == 2 and names[0].startswith("data-") and names[1] == "zarr.json"
    with pytest.raises(ValueError, match="was overwritten"):
        old.read(0, 10)


WRITE = """
import sys
sys.path.insert(0, "")
from tests.io.test_hdfs import X, write_dataset
write_dataset(sys.argv[1], X, chunks=100)
"""


def test_a_killed_write_goes_on(place):
    """It repeats the chunks in hand alone; until then nothing can be opened; nothing else stays."""
    url = place("killed.zarr")
    fs, path = filesystem(url)

    def chunks():
        found = fs.find(path, detail=True) if fs.exists(path) else {}
        times = {n: f.get("modification_time") or f["modificationTime"] for n, f in found.items()}
        return {n: times[n] for n in times if "/X/c/" in n and not is_unfinished(n)}

    child = subprocess.Popen([sys.executable, "-c", WRITE, url])
    while len(chunks()) < 4:
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait(10)
    with pytest.raises(ValueError, match=r"is unfinished: .* goes on from there"):
        open_dataset(url)
    fs.pipe_file(f"{path}/X/c/10/.0.new-00c0ffee", b"x")
    before = chunks()
    assert np.array_equal(write_dataset(url, X, chunks=100).read(0, 1003)[0].X, X)
    after = chunks()
    assert len(after) == 11 and len(fs.find(path)) == 13
    assert sum(after[name] != when for name, when in before.items()) <= 4
    assert below(url) == ["X", "zarr.json"]


def test_a_write_that_was_given_up_writes_nothing_later(place, monkeypatch):
    """What has been put in its place since stays."""
    url = place("late")
    if not url.startswith("hdfs"):
        pytest.skip("an HTTP request that was given up is closed")
    fs, path = filesystem(url, {"timeout": 0.3})
    client, ended = fs.client, []

    class Slow:
        """The first file takes a second to be created."""

        def __getattr__(self, name):
            return getattr(client, name)

        def create(self, *args):
            """Later."""
            if not ended:
                ended.append(time.sleep(1))
            return client.create(*args)

    monkeypatch.setattr(fs, "client", Slow())
    with pytest.raises(TimeoutError, match=r"has not answered for 0\.3 s"):
        fs.pipe_file(path, b"old")
    monkeypatch.setattr(fs, "client", client)
    patient, _ = filesystem(url)
    patient.pipe_file(path, b"new")
    late = [thread for thread in threading.enumerate() if thread.name == "daskdml-hdfs"]
    for thread in late:
        thread.join(20)
    assert ended and patient.cat_file(path) == b"new"
    assert [name for name in patient.find(path.rpartition("/")[0]) if is_unfinished(name)] == []


def test_what_is_no_data_set_stays(place):
    """A folder with other things is never replaced."""
    fs, path = filesystem(place("other"))
    fs.pipe_file(f"{path}/file", b"x")
    with pytest.raises(FileExistsError, match="is no data set"):
        write_dataset(place("other"), X, overwrite=True)


def test_absent_and_truncated_things_are_named(place):
    """An absent data set, an absent chunk and one that lost its end are named with their host."""
    with pytest.raises(FileNotFoundError, match=r"absent\.zarr does not exist"):
        open_dataset(place("absent.zarr"))
    ds = write_dataset(place("hole.zarr"), X, chunks=600)
    fs, path = filesystem(ds.url)
    fs.pipe_file(f"{path}/X/c/1/0", fs.cat_file(f"{path}/X/c/1/0")[:200])
    with pytest.raises(ChunkError, match=f"{ds.url}/X/c/1/0 is damaged"):
        ds.read(820, 830)
    fs.rm_file(f"{path}/X/c/0/0")
    with pytest.raises(ChunkError, match=f"{ds.url}/X/c/0/0 is missing"):
        ds.read(250, 450)


def test_files_appear_whole(place):
    """While a file is written again and again, readers find one of its contents, whole."""
    fs, path = filesystem(place("file"))
    contents = [bytes([k]) * 100_000 for k in range(8)]
    fs.pipe_file(path, contents[0])
    over, seen, wrong = threading.Event(), set(), []

    def watch():
        mine, _ = filesystem(place("file"), {"skip_instance_cache": True})
        while not over.is_set():
            try:
                found = bytes(retrying(lambda: mine.cat_file(path), "reading"))
            except Exception as error:
                wrong.append(error)
                return
            if found not in contents:
                wrong.append(found)
            seen.add(found[:1])

    reader = threading.Thread(target=watch)
    reader.start()
    for content in contents:
        fs.pipe_file(path, content)
    over.set()
    reader.join(60)
    assert not wrong and len(seen) > 1
    assert below(place("")) == ["file"]


class Broken(BaseException):
    """What breaks a fit off."""


def fitted(data, stop=None, **options):
    """Bits of a fit, broken off after so many steps."""
    steps = []

    def heard(event):
        if isinstance(event, PassEnd) and event.objective is not None:
            steps.append(event)
            if len(steps) == stop:
                raise Broken

    with Engine(callbacks=[heard], **options):
        model = LogisticRegression(solver="newton", tol=1e-6, random_state=0).fit(data)
    return model.coef_.tobytes(), model.intercept_.tobytes(), model.n_iter_


def test_checkpoints(rows, place):
    """A fit that was broken off goes on from its checkpoint; its pointer is replaced in place."""
    expected = fitted(rows)
    there = {"checkpoint": place("fit.checkpoint"), "every": 0}
    with pytest.raises(Broken):
        fitted(rows, stop=2, **there)
    assert fitted(rows, **there) == expected
    names = below(there["checkpoint"])
    assert names[-1] == "latest.json" and len(names) == 3 and names[0].endswith(".state")


@pytest.mark.cluster
def test_workers_read_and_write(rows, place, two_workers):
    """Worker processes read rows, write predictions and blocks of Dask arrays: the same values."""
    with Engine(two_workers):
        model = LogisticRegression(solver="newton", random_state=0).fit(rows)
        out = model.predict_proba(rows, out=place("predictions.zarr"))
    assert np.array_equal(out[:], model.predict_proba(X))
    again = model.predict_proba(rows, out=place("predictions.zarr"))
    assert np.array_equal(again[:], out[:])


def test_blocks_of_dask(hdfs_server):
    """Dask writes its blocks there, each from where it is."""
    import dask.array as da

    lazy = da.from_array(X, chunks=(400, 8))
    ds = write_dataset(hdfs_server.web_url("dask.zarr"), lazy, chunks=400)
    assert np.array_equal(ds.read(0, 1003)[0].X, X)


@pytest.fixture(scope="module")
def rated():
    """Users, items and their ratings."""
    pairs = np.unique(RNG.integers(0, [60, 40], (2000, 2)), axis=0)
    return *pairs.T, RNG.uniform(1, 5, len(pairs)).astype("f4")


@pytest.mark.slow
def test_ratings(hdfs_server, rated, tmp_path):
    """Ratings are converted to it, and read from it."""
    url = hdfs_server.web_url("ratings.zarr")
    assert convert_ratings(rated, url).n_stored == len(rated[0])
    there, here = (MatrixFactorization(4, max_iter=1, tol=0, random_state=0) for _ in range(2))
    there.fit(open_ratings(url))
    here.fit(convert_ratings(rated, tmp_path / "ratings.zarr"))
    assert np.array_equal(there.user_factors_, here.user_factors_)


@pytest.mark.slow
def test_factors_and_lists(place, rated, tmp_path):
    """Factors and recommendations that are left there are those of memory; nothing else stays."""
    ratings = convert_ratings(rated, tmp_path / "ratings.zarr")
    there, here = (MatrixFactorization(4, max_iter=1, tol=0, random_state=0) for _ in range(2))
    there.fit(ratings, factors_url=place("factors.zarr"))
    here.fit(ratings)
    for side in ("user", "item"):
        order = np.argsort(getattr(there, f"{side}_ids_"))
        found = getattr(there, f"{side}_factors_").compute()
        assert np.array_equal(found[order], getattr(here, f"{side}_factors_"))
    assert np.array_equal(there.predict(rated[:2]), here.predict(rated[:2]))
    lists = there.recommend(here.user_ids_, k=5, out=place("lists.zarr"))
    assert isinstance(lists, zarr.Group)
    items, scores = here.recommend(k=5)
    assert np.array_equal(lists["items"][:], items)
    assert np.array_equal(lists["scores"][:], scores)
    assert below(place("")) == ["factors.zarr", "lists.zarr"]
    assert len(below(place("factors.zarr"))) == 3


def test_files_of_ratings_are_read(place, tmp_path):
    """CSV files of ratings are read from it, one or many."""
    fs, path = filesystem(place("csv"))
    for k in range(2):
        text = "".join(f"{u},{i},{u + i}.5\n" for u in range(3 * k, 3 * k + 3) for i in range(4))
        fs.pipe_file(f"{path}/{k}.csv", f"userId,movieId,rating\n{text}".encode())
    ratings = convert_ratings(place("csv/*.csv"), tmp_path / "r.zarr")
    assert ratings.n_stored == 24 and ratings.shape == (6, 4)


def test_no_permission(hdfs_server, tmp_path, monkeypatch):
    """A checkpoint or data set where one may not write is refused before the run, and named."""
    fs, path = filesystem(hdfs_server.url("locked"))
    fs.makedirs(path)
    fs.client.set_permission(path, 0o555)
    monkeypatch.setenv("HADOOP_USER_NAME", "somebody")
    fresh = {"skip_instance_cache": True}
    url = hdfs_server.url("locked/x.zarr")
    with pytest.raises(PermissionError, match=f"{url}.*denied"):
        write_dataset(url, X, storage_options=fresh)
    with (
        pytest.raises(PermissionError, match="name a folder in which you may write"),
        Engine(checkpoint=url, storage_options=fresh),
    ):
        LogisticRegression().fit(X, Y)


@pytest.mark.cluster
def test_options_reach_workers_and_hadoop(rows, two_workers):
    """Numbers and booleans among the options become the strings that Hadoop's are."""
    options = {"timeout": 20}
    if rows.url.startswith("hdfs"):
        options |= {"dfs.client.use.datanode.hostname": True, "dfs.client.socket-timeout": 9000}
    ds = open_dataset(rows.url, options)
    assert two_workers.submit(lambda ds: ds.read(0, 10)[0].X.sum(), ds).result() == X[:10].sum()
