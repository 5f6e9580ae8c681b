"""Writes that were broken off: the same call goes on, and nobody reads half of it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from daskdml.io import open_dataset, write_dataset, writers
from daskdml.io.journal import run_of
from daskdml.io.staging import stage

X = np.random.default_rng(0).standard_normal((12_000, 4)).astype("f4")
LABELS = np.array(["no", "yes", "maybe"])[np.arange(12_000) % 3]
X[1_000:5_000], LABELS[1_000:5_000] = 0, "maybe"  # whole chunks are zeros, the first class's too


def start(code, *args):
    """Start a program of its own."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)])


def kill_when(child, ready, seconds=60):
    """Kill a process in the moment in which something is so; tells whether it still ran."""
    end = time.monotonic() + seconds
    while child.poll() is None and not ready():
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    return child.wait(10) == -signal.SIGKILL


def files(folder):
    """Bytes of all files under a folder, the identity of the write left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    root = json.loads(found["zarr.json"])
    root["attributes"]["daskdml"].pop("id", None)
    return found | {"zarr.json": json.dumps(root).encode()}


def inodes(folder, pattern):
    """Which file each chunk is: one that is written again is another one."""
    return {p.name: p.stat().st_ino for p in folder.glob(pattern) if ".partial" not in p.name}


WRITE = """
import sys
sys.path.insert(0, "")
from tests.io.test_restart import LABELS, X, write_dataset
write_dataset(sys.argv[1], X, LABELS, chunks=30)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_write_goes_on(tmp_path, seed):
    """A write killed twice repeats the chunks in hand alone, and ends with the same bytes."""
    write_dataset(tmp_path / "whole.zarr", X, LABELS, chunks=30)
    url, left = tmp_path / "a.zarr", tmp_path / ".a.zarr.unfinished"
    moments = np.sort(np.random.default_rng(seed).integers(1, 240, 2))
    for moment in moments:
        child = start(WRITE, url)
        assert kill_when(child, lambda n=moment: len(inodes(left, "*/y/c/*")) >= n)
        with pytest.raises(FileNotFoundError, match=r"a\.zarr is unfinished: .* goes on from"):
            open_dataset(url)
    before = inodes(left, "*/y/c/*")
    assert len(before) >= moments[-1]
    write_dataset(url, X, LABELS, chunks=30)
    after = inodes(url, "y/c/*")
    assert len(after) == 400 and sum(after[k] != inode for k, inode in before.items()) <= 4
    assert files(url) == files(tmp_path / "whole.zarr")
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "whole.zarr"]


COMPUTE = """
import os, sys, time
import dask, dask.array as da, numpy as np
from daskdml.io import write_dataset

def rows(block, log):
    with open(log, "a") as file:
        file.write(f"{int(block[0, 0])}\\n")
    time.sleep(0.004)
    return block + 0.5

if __name__ == "__main__":
    X = da.arange(4000, chunks=40).reshape(-1, 1).map_blocks(rows, sys.argv[2], dtype=float)
    with dask.config.set(scheduler="threads", num_workers=2):
        write_dataset(sys.argv[1], X, chunks=40)
"""


def test_dask_computes_only_what_is_missing(tmp_path):
    """Of a Dask array no block is computed again whose chunk was there when the client died."""
    script, log, url = tmp_path / "s.py", tmp_path / "log", tmp_path / "a.zarr"
    script.write_text(COMPUTE)
    command = [sys.executable, str(script), str(url), str(log)]
    left = tmp_path / ".a.zarr.unfinished"
    child = subprocess.Popen(command)
    assert kill_when(child, lambda: len(list(left.glob("*/X/c/*/0"))) > 30)
    there = {p.parent.name for p in left.glob("*/X/c/*/0")}
    log.unlink()
    subprocess.run(command, check=True, timeout=60)
    computed = {str(int(line) // 40) for line in log.read_text().split()}
    assert len(there) > 30 and computed == {str(i) for i in range(100)} - there
    assert np.array_equal(open_dataset(url).read(0, 4000)[0].X[:, 0], np.arange(4000) + 0.5)


class Full(MemoryFileSystem):
    """A file system in memory that has room for so many objects."""

    protocol = "full"
    store = {}  # noqa: RUF012
    room = 10**9
    put = []  # noqa: RUF012

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        """Put an object, while there is room."""
        if "/c/" in path:
            if Full.room == 0:
                raise OSError(28, "No space left on device")
            Full.room -= 1
            Full.put.append(path)
        super().pipe_file(path, value, mode=mode, **kwargs)


fsspec.register_implementation("full", Full, clobber=True)


@pytest.mark.parametrize("source", [X[:500], da.from_array(X[:500], chunks=(50, 4))])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_store_is_gone_on_with(source, overwrite):
    """After "no space left" the same call goes on; until then the old rows, or none, are read."""
    url = f"full://{overwrite}-{type(source).__name__}.zarr"
    Full.room = 10**9
    if overwrite:
        write_dataset(url, X[:7])
    Full.room = 23
    with pytest.raises(OSError, match="No space left"):
        write_dataset(url, source, chunks=10, overwrite=overwrite)
    if overwrite:
        assert len(open_dataset(url)) == 7
    else:
        with pytest.raises(ValueError, match=r"is unfinished: .* goes on from there"):
            open_dataset(url)
    Full.room, before = 10**9, set(Full.put)
    Full.put.clear()
    ds = write_dataset(url, source, chunks=10, overwrite=overwrite)
    assert np.array_equal(ds.read(0, 500)[0].X, X[:500])
    assert len(before & set(Full.put)) <= 4 and len(Full.put) <= 50 - 23 + 4
    assert not Full().glob(f"{url}/.unfinished/*")
    if overwrite:
        assert len(Full().find(url)) == 53


def test_half_a_chunk_is_written_again():
    """Where a store does not put objects in one piece, a chunk that is cut short is no chunk."""
    url = "full://cut.zarr"
    Full.room = 23
    with pytest.raises(OSError, match="No space left"):
        write_dataset(url, X[:500], chunks=10)
    fs, Full.room = Full(), 10**9
    fs.pipe_file(f"{url}/X/c/5/0", fs.cat_file(f"{url}/X/c/5/0")[:100])
    assert np.array_equal(write_dataset(url, X[:500], chunks=10).read(0, 500)[0].X, X[:500])


def test_another_write_begins_anew(tmp_path):
    """What another call left is removed: other rows, parameters, or an error in what was given."""
    for i, other in enumerate(({"X": X[:300] + 1}, {"chunks": 7}, {"y": np.zeros(300)}, {})):
        url = tmp_path / f"{i}.zarr"
        given = {"X": X[:300], "chunks": 10}
        staging = stage(str(url), run="another" if not other else _run(**(given | other)))
        zarr.create_array(staging.store, name="X", data=np.zeros((300, 4), "f4"), chunks=(10, 4))
        staging.leave(KeyboardInterrupt())
        ds = write_dataset(url, **given)
        assert np.array_equal(ds.read(0, 300)[0].X, X[:300])
    assert sorted(os.listdir(tmp_path)) == [f"{i}.zarr" for i in range(4)]


def _run(X, chunks, y=None):
    from daskdml.io.identity import identity

    parts = {"X": identity(X), "y": identity(y), "sample_weight": identity(None)}
    return run_of("write_dataset", how=[chunks, []], **parts)


def test_iterators_begin_anew(tmp_path):
    """Blocks that cannot be had again leave nothing behind, even after Ctrl-C."""

    def blocks():
        yield X[:500]
        raise KeyboardInterrupt

    for url in (tmp_path / "a.zarr", f"memory://{tmp_path}/a.zarr"):
        with pytest.raises(KeyboardInterrupt):
            write_dataset(url, blocks(), chunks=10)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            open_dataset(url)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["{}", "memory:/{}"])
def test_two_writers_are_kept_apart(tmp_path, where):
    """Who writes where another writes already is refused, and damages nothing."""
    url = where.format(tmp_path) + "/a.zarr"

    def blocks():
        yield X[:500]
        with pytest.raises(RuntimeError, match=rf"is being written by process {os.getpid()} on"):
            write_dataset(url, X)
        yield X[500:]

    assert np.array_equal(write_dataset(url, blocks()).read(0, 12_000)[0].X, X)


def test_a_writer_that_was_taken_for_dead_removes_nothing(monkeypatch):
    """Another one has written there since: it is told so, and what that one wrote stays."""
    url = "memory://asleep/a.zarr"
    monkeypatch.setattr(writers, "SILENT", 0.0)

    def blocks():
        yield X[:500]
        with monkeypatch.context() as patch:  # on another machine, which cannot see this one live
            patch.setattr(writers.socket, "gethostname", lambda: "elsewhere")
            assert np.array_equal(write_dataset(url, X[:300] + 1, chunks=10).read(0, 300)[0].X,
                                  X[:300] + 1)  # fmt: skip
        yield X[500:]

    with pytest.raises(RuntimeError, match="is being written by another process"):
        write_dataset(url, blocks(), chunks=10)
    assert np.array_equal(open_dataset(url).read(0, 300)[0].X, X[:300] + 1)


def test_a_frozen_writer_keeps_its_place_and_a_dead_one_does_not(tmp_path):
    """While another process lives, even frozen, it is named; once it is dead, its work goes on."""
    url, left = tmp_path / "a.zarr", tmp_path / ".a.zarr.unfinished"
    child = start(WRITE, url)
    while not len(list(left.glob("*/y/c/*[0-9]"))) > 3:
        assert child.poll() is None
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=f"a.zarr is being written by process {child.pid} on"):
        write_dataset(url, X, LABELS, chunks=30)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    assert len(write_dataset(url, X, LABELS, chunks=30)) == 12_000


@pytest.mark.s3
def test_a_killed_write_to_s3_goes_on(s3_server, monkeypatch):
    """On an object store, too: it repeats the chunks in hand, and cannot be opened until then."""
    import s3fs

    code = f"""
import sys
sys.path.insert(0, "")
from tests.io.test_restart import X, write_dataset
options = {s3_server.storage_options!r}
write_dataset({s3_server.url("killed.zarr")!r}, X, chunks=120, storage_options=options)
"""
    url, options = s3_server.url("killed.zarr"), s3_server.storage_options
    fs = fsspec.filesystem("s3", **options)

    def chunks():
        fs.invalidate_cache()
        return {name for name in fs.find(url) if "/c/" in name}

    assert kill_when(start(code), lambda: len(chunks()) >= 30)
    before, put = chunks(), []
    with pytest.raises(ValueError, match="is unfinished"):
        open_dataset(url, options)
    pipe = s3fs.S3FileSystem._pipe_file

    async def counted(self, path, *args, **kwargs):
        put.append(path)
        return await pipe(self, path, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", counted)
    ds = write_dataset(url, X, chunks=120, storage_options=options)
    again = [path for path in put if path in before]
    assert len(before) >= 30 and len(again) <= 4
    assert len([path for path in put if "/c/" in path]) <= 100 - len(before) + 4
    assert np.array_equal(ds.read(0, 12_000)[0].X, X)
    fs.invalidate_cache()
    assert len(fs.find(url)) == 102


def test_a_write_cut_off_while_it_tidies_up(tmp_path):
    """Once the root is put the rows are there; an overwrite by the same call makes them anew."""
    url = f"memory://{tmp_path}/a.zarr"
    write_dataset(url, X[:50], chunks=10)
    fs, path = fsspec.core.url_to_fs(url)
    for _ in range(3):
        write_dataset(url, X[:50], chunks=10, overwrite=True)
        root = json.loads(fs.cat_file(f"{path}/zarr.json"))["attributes"]["daskdml"]
        record = {"format": 1, "run": _run(X[:50], 10), "token": root["prefix"][5:-1],
                  "owner": None, "facts": {"prefix": root["prefix"]}}  # fmt: skip
        fs.pipe_file(f"{path}/.unfinished/run.json", json.dumps(record).encode())
    assert len(fs.find(path)) == 5 + 3 + 1
    assert np.array_equal(open_dataset(url).read(0, 50)[0].X, X[:50])


def test_rows_are_told_apart():
    """Runs differ with the bytes, dtype, shape and kind of what is written."""
    kinds = [
        X,
        X[:, ::-1],
        X.astype("f8"),
        X.reshape(-1, 8),
        X.view("i4"),
        X * np.float32(1 + 1e-7),
    ]
    kinds += [np.where(np.arange(12_000) == 7000, 0, X.T).T.astype("f4")]
    runs = [_run(kind, 10) for kind in kinds]
    assert all(a != b for a, b in itertools.combinations(runs, 2))
    assert _run(np.asfortranarray(X), 10) == runs[0]


def test_a_store_that_fails_at_the_start_can_be_tried_again(monkeypatch):
    """An error before the first block does not make this process a writer for ever."""
    url, failing = "full://start.zarr", []
    put = Full.pipe_file

    def fail(self, path, value, mode="overwrite", **kwargs):
        if path.endswith("zarr.json") and not failing:
            failing.append(path)
            raise OSError(28, "No space left on device")
        put(self, path, value, mode=mode, **kwargs)

    monkeypatch.setattr(Full, "pipe_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(url, X[:50], chunks=10)
    assert failing and len(write_dataset(url, X[:50], chunks=10)) == 50


@pytest.mark.parametrize("by", ["ticks", "clock"])
def test_a_clock_that_is_set_kills_no_writer(by, monkeypatch):
    """Once the clock is set, a writer that lives still has its place; one that died leaves it."""
    lin = pytest.importorskip("psutil._pslinux")
    if by == "clock":
        monkeypatch.setattr(writers, "_born", lambda pid: None)
    url = f"memory://clock-{by}.zarr"
    child = start("import sys; sys.stdin.read()")
    first = stage(url, run="one")
    boot = lin.boot_time
    fs = fsspec.filesystem("memory")
    (name,) = [each for each in fs.find(f"/clock-{by}.zarr") if each.endswith("run.json")]
    record = json.loads(fs.cat_file(name))
    theirs = {"pid": child.pid, "born": writers._born(child.pid)}
    other = record | theirs | {"started": writers.psutil.Process(child.pid).create_time()}
    for change in (0.0, 1.0, -20.0):
        monkeypatch.setattr(lin, "boot_time", lambda change=change: boot() + change)
        with pytest.raises(RuntimeError, match="is being written by process"):
            stage(url, run="two")
        assert writers.is_alive(other)
    assert not writers.is_alive(other | {"born": "another boot/1", "started": 1.0})
    child.kill()
    child.wait(10)
    assert not writers.is_alive(other)
    first.leave(KeyboardInterrupt())
    stage(url, run="two").leave(KeyboardInterrupt())


def test_a_process_of_an_older_version_is_known():
    """A record without a start in ticks is compared by the clock."""
    record = {**writers.this_process(), "owner": "somebody", "born": None}
    assert writers._runs(record) and not writers._runs(record | {"started": 1.0})


REPLACE = """
import os, pathlib, signal, sys
sys.path.insert(0, "")
from tests.io.test_restart import LABELS, X, write_dataset

rename, left = pathlib.Path.rename, int(sys.argv[2])

def renamed(path, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(path, target)

pathlib.Path.rename = renamed
write_dataset(sys.argv[1], X, LABELS, chunks=3000, overwrite=True)
"""


@pytest.mark.parametrize("again", ["the same", "another", "another that may not"])
def test_a_writer_killed_while_it_replaces(again, tmp_path):
    """Between its two renames nothing is there; the next write puts the old one back first."""
    url, old = tmp_path / "a.zarr", tmp_path / ".a.zarr.old"
    write_dataset(url, X[:50], chunks=10)
    assert start(REPLACE, url, 1).wait(60) == -signal.SIGKILL
    assert old.exists() and not url.exists()
    if again == "another that may not":
        with pytest.raises(FileExistsError):
            write_dataset(url, X[:20], chunks=10)
        assert len(open_dataset(url)) == 50
    elif again == "another":
        assert len(write_dataset(url, X[:20], chunks=10, overwrite=True)) == 20
    else:
        ds = write_dataset(url, X, LABELS, chunks=3000, overwrite=True)
        assert len(ds) == len(open_dataset(url)) == len(X)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
