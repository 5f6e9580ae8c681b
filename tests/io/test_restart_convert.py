"""A conversion of ratings that was broken off goes on, in each of its phases, to the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import dask
import dask.dataframe
import numpy as np
import pytest

import daskdml.io.ranges as ranges_module
import daskdml.io.rating_batches as batches_module
from daskdml.io import convert_ratings, open_ratings
from daskdml.io.rating_batches import Columns, rating_batches
from tests.io.test_restart import files, kill_when

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")

N = 20_000
GRID = (4, 4)
TIMES = {"timestamp": "time", "grid": GRID}


@pytest.fixture(scope="module")
def frame():
    """Ratings of unique pairs, with ids that are strings, and times."""
    rng = np.random.default_rng(0)
    pairs = rng.permutation(900 * 300)[:N]
    names = np.array([f"item {n}é" for n in rng.permutation(300)])
    values = {"userId": rng.integers(1, 2**62, 900)[pairs // 300], "movieId": names[pairs % 300]}
    values |= {"rating": rng.integers(1, 11, N) / 2, "time": rng.integers(10**9, 10**9 + 500, N)}
    return pd.DataFrame(values)


@pytest.fixture(scope="module")
def csv(frame, tmp_path_factory):
    """The same in two files."""
    folder = tmp_path_factory.mktemp("csv")
    frame[: N // 2].to_csv(folder / "a-0.csv", index=False)
    frame[N // 2 :].to_csv(folder / "a-1.csv", index=False)
    return folder / "a-*.csv"


@pytest.fixture(autouse=True, scope="module")
def _small_batches():
    """Batches of 500 ratings, pieces of text of some thousand bytes, as the killed ones have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "ROWS", 500)
        patch.setattr(ranges_module, "TEXT", 1 << 16)
        yield


@pytest.fixture(scope="module")
def whole(csv, tmp_path_factory):
    """What an undisturbed conversion writes."""
    return convert_ratings(csv, tmp_path_factory.mktemp("whole") / "r.zarr", **TIMES)


CONVERT = """
import json, resource, sys, time
import daskdml.io.ranges as ranges_module
import daskdml.io.rating_batches as batches_module
from daskdml.io import convert, convert_ratings

batches_module.ROWS, ranges_module.TEXT = 500, 1 << 16
source, out, how = sys.argv[1:]
how = json.loads(how)
if how.pop("small", None):
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
note = convert.Scratch.note
def slowly(self, **line):
    note(self, **line)
    time.sleep(0.004)
convert.Scratch.note = slowly
convert_ratings(source, out, timestamp="time", grid=(4, 4), **how)
"""


def start(source, out, **how):
    """Convert in a process of its own, slowly enough to be killed somewhere."""
    arguments = [str(source), str(out), json.dumps(how)]
    return subprocess.Popen([sys.executable, "-c", CONVERT, *arguments], stderr=subprocess.PIPE)


def noted(journal, kind):
    """Lines of one kind in a journal."""
    try:
        lines = journal.read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return []
    return [line for line in map(json.loads, lines) if kind in line]


def repeated(monkeypatch):
    """Which batches, scattered batches and blocks this process notes from now on."""
    from daskdml.io.scratch import Scratch

    found, note = [], Scratch.note

    def heard(self, **line):
        found.append(line)
        note(self, **line)

    monkeypatch.setattr(Scratch, "note", heard)
    return lambda kind: [line for line in found if kind in line]


@pytest.mark.parametrize("phase", ["batch", "dealt", "block"])
def test_a_killed_conversion_goes_on(phase, csv, whole, tmp_path, monkeypatch):
    """Killed while it scans, deals or writes, it repeats the one unit in hand; the bytes agree."""
    out, left = tmp_path / "out.zarr", tmp_path / ".out.zarr.unfinished"
    journal = left / "scratch" / "journal.jsonl"
    n = int(np.random.default_rng(len(phase)).integers(1, 14))
    assert kill_when(start(csv, out), lambda: len(noted(journal, phase)) >= n)
    with pytest.raises(FileNotFoundError, match=r"out\.zarr is unfinished"):
        open_ratings(out)
    before = {kind: len(noted(journal, kind)) for kind in ("batch", "dealt", "block")}
    assert before[phase] >= n
    now = repeated(monkeypatch)
    convert_ratings(csv, out, **TIMES)
    after = {kind: len(now(kind)) for kind in before}
    total = {"batch": len(now("batch")) + before["batch"], "dealt": 0, "block": 16}
    total["dealt"] = total["batch"]
    assert {kind: before[kind] + after[kind] for kind in before} == total
    assert sum(line["batch"] for line in now("batch")) <= N
    assert files(out) == files(Path(whole.url))
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_a_full_disk(csv, whole, tmp_path):
    """Where a scratch file cannot grow, what was scanned stays, and the next call goes on."""
    out = tmp_path / "out.zarr"
    child = start(csv, out, small=True)
    assert b"File too large" in child.communicate(timeout=60)[1]
    journal = tmp_path / ".out.zarr.unfinished" / "scratch" / "journal.jsonl"
    scanned = sum(line["batch"] for line in noted(journal, "batch"))
    assert 5_000 < scanned < 150_000 / 20
    assert convert_ratings(csv, out, **TIMES).count() == N
    assert files(out) == files(Path(whole.url))


@pytest.mark.s3
def test_a_killed_conversion_to_s3(csv, whole, s3_server, tmp_path, monkeypatch):
    """Scratch for an object store lies in Dask's temporary directory, and is removed at the end."""
    url, options = s3_server.url("killed-ratings.zarr"), s3_server.storage_options
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))

    def scratch():
        return next(tmp_path.glob(f"daskdml-{os.getuid()}/*/journal.jsonl"), tmp_path / "none")

    child = start(csv, url, storage_options=options)
    assert kill_when(child, lambda: len(noted(scratch(), "block")) >= 4)
    with pytest.raises(ValueError, match="is unfinished"):
        open_ratings(url, options)
    blocks, now = len(noted(scratch(), "block")), repeated(monkeypatch)
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        found = convert_ratings(csv, url, storage_options=options, **TIMES)
    assert len(now("block")) == 16 - blocks and not now("batch") and not now("dealt")
    assert found.count() == N and not list(tmp_path.glob("daskdml-*/*"))
    for i, j in np.ndindex(GRID):
        for a, b in zip(
            *(vars(r.read("item", i, j)[0]).values() for r in (found, whole)), strict=True
        ):
            assert np.array_equal(a, b)


def sources(frame, folder):
    """The same ratings in every form that has positions."""
    import pyarrow.parquet

    frame.to_csv(folder / "one.csv", index=False)
    with gzip.open(folder / "one.csv.gz", "wt") as file:
        frame.to_csv(file, index=False)
    (folder / "one.tsv").write_text("\r\n".join(frame.to_csv(index=False, sep="\t").split("\n")))
    frame[: N // 3].to_csv(folder / "two-0.csv", index=False)
    frame[N // 3 :].to_csv(folder / "two-1.csv", index=False)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pyarrow.parquet.write_table(table, folder / "one.parquet", row_group_size=3500)
    path = str(folder / "one.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3000)
    return {
        "csv": folder / "one.csv", "gzip": folder / "one.csv.gz", "tsv": folder / "one.tsv",
        "glob": folder / "two-*.csv", "parquet": folder / "one.parquet",
        "ipc": folder / "one.arrow", "table": pa.concat_tables([table[:9000], table[9000:]]),
        "pandas": frame, "dask": dask.dataframe.from_pandas(frame, npartitions=7),
        "arrays": tuple(frame[name].to_numpy() for name in frame),
    }  # fmt: skip


def test_reading_goes_on_at_any_position(frame, tmp_path):
    """From the position behind any batch come exactly the ratings that follow it."""
    columns = Columns("userId", "movieId", "rating", "time")
    times = frame.time.to_numpy()
    for name, source in sources(frame, tmp_path).items():
        positions = []
        for batch, after in rating_batches(source, columns):
            positions.append((len(batch.users) + (positions[-1][0] if positions else 0), after))
        assert positions[-1][0] == N
        for done, after in positions[:: max(len(positions) // 6, 1)]:
            after = json.loads(json.dumps(after))
            rest = [batch.times for batch, _ in rating_batches(source, columns, None, after)]
            assert np.array_equal(np.concatenate([*rest, times[:0]]), times[done:]), name


def test_an_error_in_the_ratings_leaves_nothing(frame, tmp_path):
    """Bad ratings are not gone on with: nothing stays; other parameters begin anew."""
    twice = pd.concat([frame, frame[:1].assign(rating=0.5)])
    with pytest.raises(ValueError, match="more than once"):
        convert_ratings(twice, tmp_path / "a.zarr", grid=GRID)
    assert os.listdir(tmp_path) == []


def test_ctrl_c_and_another_call(frame, tmp_path, monkeypatch):
    """After Ctrl-C another call begins anew, and takes nothing of what was left."""
    from daskdml.io.rating_blocks import BlockWriter

    once = BlockWriter._once

    def stop(self, number, walks):
        if number == 10:
            raise KeyboardInterrupt
        return once(self, number, walks)

    monkeypatch.setattr(BlockWriter, "_once", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_ratings(frame, tmp_path / "a.zarr", **TIMES)
    assert os.listdir(tmp_path) == [".a.zarr.unfinished"]
    monkeypatch.setattr(BlockWriter, "_once", once)
    other = frame.assign(rating=frame.rating.to_numpy()[::-1])
    convert_ratings(other, tmp_path / "a.zarr", **TIMES)
    convert_ratings(other, tmp_path / "b.zarr", **TIMES)
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")
