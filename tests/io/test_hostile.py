"""Stores that somebody wrote to do harm: nothing of them is run, and none of them takes memory."""

import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from daskdml import MatrixFactorization
from daskdml.engine.checkpoint import checkpoint_place, list_checkpoints
from daskdml.engine.listing import CheckpointError
from daskdml.io import convert_ratings, open_dataset, open_ratings, write_dataset
from daskdml.io.chunks import ChunkError, ChunkReader
from daskdml.io.codecs import decode_into
from daskdml.io.sources import as_source
from daskdml.io.staging import _LocalStaging, _RemoteStaging, stage
from daskdml.io.states import DamagedError, decode_state, encode_state

ROOT = Path(__file__).resolve().parents[2]


class Harm:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize("dtype", ["<f8", "|O"])
def test_pickles_are_refused(where, dtype, tmp_path):
    """An array of Zarr v2 whose chunks are pickles is not opened; no chunk of it is decoded."""
    store, harmed = tmp_path / "x.zarr", tmp_path / "harmed"
    store.mkdir()
    meta = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": dtype, "compressor": None,
            "filters": None, "fill_value": 0, "order": "C"}  # fmt: skip
    meta[where] = {"id": "pickle"} if where == "compressor" else [{"id": "pickle"}]
    (store / ".zarray").write_text(json.dumps(meta))
    (store / "0").write_bytes(pickle.dumps(Harm(harmed)))
    with pytest.raises(ValueError, match=r"pickle|object"):
        y = zarr.open_array(store)
        as_source(np.zeros((4, 1)), y).read(0, 4)
    with pytest.raises(ValueError, match=re.escape(str(store))):
        as_source(str(store))
    assert not harmed.exists()


@pytest.mark.parametrize("dtype", [str, "M8[s]", "V8"])
def test_what_is_no_number_is_refused(dtype):
    """Strings of any length, dates and raw bytes are refused by name."""
    array = zarr.create_array({}, name="y", shape=(4,), chunks=(2,), dtype=dtype)
    with pytest.raises(ValueError, match=r"y has dtype .* not read"):
        ChunkReader(array)


def test_only_codecs_of_numbers_are_run():
    """A codec that is not known to be one of numbers is refused, within shards, too."""
    from zarr.codecs import ShardingCodec
    from zarr.codecs.numcodecs import BZ2

    plain = zarr.create_array({}, shape=(4,), chunks=(2,), dtype="f8", compressors=BZ2())
    assert ChunkReader(plain).read(0, 4)[0].tolist() == [0, 0, 0, 0]

    class Evil(BZ2):
        def to_dict(self):
            return {"name": "evil"}

    for codecs in ([Evil()], [ShardingCodec(chunk_shape=(2,), codecs=[Evil()])]):
        meta = plain.metadata
        object.__setattr__(meta, "codecs", (*meta.codecs[:1], *codecs))
        with pytest.raises(ValueError, match="'evil', which is not read"):
            ChunkReader(plain)


@pytest.mark.parametrize(
    "prefix", ["../a.zarr/", "/../a.zarr/", "x/../../a.zarr/", "{}/a.zarr/", 7]
)
def test_paths_stay_in_their_store(prefix, tmp_path):
    """Attributes that lead elsewhere are an error that names the store, or lead nowhere."""
    write_dataset(tmp_path / "a.zarr", np.ones((4, 2)))
    write_dataset(tmp_path / "b.zarr", np.zeros((4, 2)))
    meta = tmp_path / "b.zarr" / "zarr.json"
    text = json.loads(meta.read_text())
    own = text["attributes"]["daskdml"]
    own["prefix"] = prefix.format(tmp_path) if isinstance(prefix, str) else prefix
    meta.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "b.zarr"))):
        open_dataset(tmp_path / "b.zarr")
    data = ([1, 2], [1, 2], [1.0, 2.0])
    convert_ratings(data, tmp_path / "c.zarr")
    meta = tmp_path / "c.zarr" / "zarr.json"
    text = json.loads(meta.read_text())
    text["attributes"]["daskdml"]["prefix"] = own["prefix"]
    meta.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "c.zarr"))):
        open_ratings(tmp_path / "c.zarr")


def test_states_make_nothing_but_states():
    """Classes of others, of modules not loaded, and of daskdml that hold no state are refused."""
    import hashlib

    for module, name in [
        ("os", "system"), ("subprocess", "Popen"), ("daskdml.engine.run", "Engine"),
        ("daskdml.io.states", "json"), ("daskdml.io.dataset", "Block.copy"), ("builtins", "eval"),
        ("daskdml.engine.tasks", "Block"),
    ]:  # fmt: skip
        tree = json.dumps({"class": [module, name], "fields": {}}).encode()
        body = encode_state(None)[:16] + struct.pack("<QQ", len(tree), 0) + tree
        with pytest.raises(DamagedError, match="there is no class"):
            decode_state(body + hashlib.sha256(body).digest())
    for tree in (
        b"[" * 100_000, b'{"list":[' * 50_000, b'{"array":["<f8",[4611686018427387904],0]}',
        b'{"array":["|O",[1],0]}', b'{"array":["S0",[4611686018427387904],0]}',
        b'{"float":"0x1p9999"}',
        b'{"array":["<f8",[-1],0]}', b'{"array":["<f8",[0.5],0]}', b'{"dtype":{"a":1}}',
        b"{}", b"1e",
    ):  # fmt: skip
        body = encode_state(None)[:16] + struct.pack("<QQ", len(tree), 0) + tree
        with pytest.raises(DamagedError):
            decode_state(body + hashlib.sha256(body).digest())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"fit": {}, "checkpoints": [{"name": "000001.state", "number": "1"}]}',
             '{"fit": {}, "checkpoints": [{"name": "../1.state", "number": 1}]}', "nul", "{}"],
    ids=range(5),
)  # fmt: skip
def test_lists_of_checkpoints(text, tmp_path):
    """What is no list of checkpoints, or leads out of its folder, is refused by name."""
    (tmp_path / "latest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"latest\.json is no list of checkpoints"):
        list_checkpoints(checkpoint_place(tmp_path, 60, 2, None))


def zstd_of_zeros(n):
    """A frame that does not tell its size, of blocks that each repeat one byte 2**17 times."""
    block = ((2**17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (1 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return bytes.fromhex("28b52ffd0038") + block * (n // 2**17) + last


def test_frames_that_expand_are_refused():
    """Tiny chunks that would decode to gigabytes are errors before they are decoded."""
    import gzip

    out = np.empty(1000)
    for codec, data in {
        "zstd": zstd_of_zeros(2**34), "gzip": gzip.compress(bytes(2**27)),
        "blosc": struct.pack("<BBBBIII", 2, 1, 0, 8, 2**31 - 17, 2**18, 16),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=r"decodes? to"):
            decode_into(codec, np.frombuffer(data, np.uint8), out)


HOSTILE = """
import json, resource, sys
import numpy as np
import daskdml.engine.run, daskdml.estimators.fitting  # what is loaded does not count
from daskdml import Engine, LogisticRegression
from daskdml.io import open_dataset, write_dataset
from tests.io.test_hostile import zstd_of_zeros

folder, limit = sys.argv[1], 700_000_000
X = np.arange(40.0).reshape(20, 2)
write_dataset(f"{folder}/x.zarr", X, X[:, 0] > 9, chunks=5)
LogisticRegression(C=0.1).fit(f"{folder}/x.zarr")
data = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
path, chunk = f"{folder}/x.zarr/X/zarr.json", f"{folder}/x.zarr/X/c/0/0"
good, bytes_ = open(path).read(), open(chunk, "rb").read()
ZSTD = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]

def said(change, content=None):
    meta = json.loads(good)
    text = change(meta) or json.dumps(meta)
    open(path, "w").write(text)
    open(chunk, "wb").write(bytes_ if content is None else content)
    try:
        ds = open_dataset(f"{folder}/x.zarr")
        ds.read(0, 1)
        LogisticRegression(C=0.1).fit(ds)
    except Exception as error:
        return [type(error).__name__, str(error)[:300]]
    return ["nothing", ""]

grid = lambda m: m["chunk_grid"]["configuration"]
found = {
    "rows": said(lambda m: m.update(shape=[2**60, 2])),
    "rows in one chunk": said(
        lambda m: (m.update(shape=[2**60, 2]), grid(m).update(chunk_shape=[2**60, 2]))[2:]),
    "columns": said(
        lambda m: (m.update(shape=[20, 2**50]), grid(m).update(chunk_shape=[5, 2**50]))[2:]),
    "chunk": said(lambda m: grid(m).update(chunk_shape=[2**40, 2])),
    "chunk with zstd": said(
        lambda m: (m.update(codecs=ZSTD), grid(m).update(chunk_shape=[2**31, 2]))[2:]),
    "expanding": said(lambda m: m.update(codecs=ZSTD), zstd_of_zeros(2**34)),
    "negative": said(lambda m: m.update(shape=[-20, 2])),
    "float": said(lambda m: m.update(shape=[20.5, 2])),
    "no chunk": said(lambda m: grid(m).update(chunk_shape=[0, 2])),
    "nested": said(lambda m: "[" * 100_000),
    "nested attributes": said(lambda m: json.dumps(m)[:-1] + ', "x": ' + "[" * 10**5),
}
print(json.dumps(found))
"""


def test_sizes_take_no_memory(tmp_path):
    """Metadata of rows, columns or chunks beyond any memory are errors within 700 MB."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HOSTILE), str(tmp_path)],
        capture_output=True, text=True, timeout=100, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for what, (kind, text) in found.items():
        assert kind in ("ValueError", "ChunkError", "MemoryError"), (what, kind, text)
        assert "x.zarr" in text or "memory_limit" in text, (what, text)


def test_nothing_of_a_store_is_evaluated():
    """The code that reads stores has no unpickling, no eval and no exec."""
    files = [*(ROOT / "daskdml" / "io").glob("*.py"), ROOT / "daskdml/engine/checkpoint.py"]
    bad = re.compile(r"\b(pickle|marshal|shelve|dill|joblib|yaml)\b\.?|\b(eval|exec|__import__)\(")
    for file in files:
        code = re.sub(r'""".*?"""|#.*', "", file.read_text(), flags=re.DOTALL)
        assert not bad.search(code), (file.name, bad.search(code))
        assert "allow_pickle=True" not in code
    assert len(files) > 20 and issubclass(ChunkError, OSError)


def test_missing_chunks_of_another_layout(tmp_path):
    """Zarr takes missing chunks for zeros; of a data set that we wrote, none can be missing."""
    X = np.random.default_rng(0).standard_normal((100, 5))
    write_dataset(tmp_path / "a.zarr", X, chunks=50)
    metadata = json.loads((tmp_path / "a.zarr/X/zarr.json").read_text())
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [50, 3]
    (tmp_path / "a.zarr/X/zarr.json").write_text(json.dumps(metadata))
    shutil.rmtree(tmp_path / "a.zarr/X/c")
    with pytest.raises(ChunkError, match=r"X/c/0/0 is missing"):
        open_dataset(tmp_path / "a.zarr").read(0, 100)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_chunk_that_is_no_file(tmp_path):
    """A pipe that nobody writes to is not waited for; a folder is named."""
    write_dataset(tmp_path / "a.zarr", np.ones((100, 5)), chunks=50)
    chunk = tmp_path / "a.zarr/X/c/1/0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(ChunkError, match=r"X/c/1/0 is damaged"):
        open_dataset(tmp_path / "a.zarr").read(0, 100)
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises(ChunkError, match=r"X/c/1/0 is a folder"):
        open_dataset(tmp_path / "a.zarr").read(0, 100)


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("zarr.json", "ratings", 3, "do not hold 3 ratings"),
        ("by_user/value/zarr.json", "data_type", "int32", "has dtype int32 instead of float32"),
    ],
)
def test_altered_metadata_of_ratings(name, key, value, told, tmp_path):
    """Numbers and dtypes that contradict each other are found."""
    ratings = ([1, 1, 2, 3], [5, 6, 5, 6], [1.0, 2.0, 3.0, 4.0])
    convert_ratings(ratings, tmp_path / "r.zarr")
    metadata = json.loads((tmp_path / "r.zarr" / name).read_text())
    place = metadata["attributes"]["daskdml"] if name == "zarr.json" else metadata
    place[key] = value
    if key == "data_type":
        metadata["fill_value"] = 0
    (tmp_path / "r.zarr" / name).write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=told):
        MatrixFactorization(2, max_iter=1).fit(open_ratings(tmp_path / "r.zarr"))


ROWS = np.arange(40.0).reshape(20, 2)
GONE = object()
DAMAGE = [GONE, None, True, -1, 0, 7, 0.5, 10**400, 1e300, "", "x", [], [[]], {}, {"prefix": 1}]
OUT = ["../../evil", "../../evil/", "..", ".", "scratch", "/{}/evil", "x/../../../evil", "0123456/"]
FIELDS = ["format", "run", "token", "boot", "facts", "prefix", "owner", "host", "pid", "started"]
FIELDS += ["born", "beat"]


def break_off(url, monkeypatch, error=KeyboardInterrupt, **how):
    """Write rows until all but the root is there; gives the path of the record."""

    def fail(*args):
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        for kind in (_LocalStaging, _RemoteStaging):
            patch.setattr(kind, "commit", fail)
        write_dataset(url, ROWS, chunks=5, **how)
    folder, name = str(url).rsplit("/", 1)
    return (
        f"{url}/.unfinished/run.json"
        if "://" in folder
        else f"{folder}/.{name}.unfinished/run.json"
    )


def everything(fs, folder):
    """Bytes of all files under a folder."""
    fs.invalidate_cache()
    return {path: fs.cat_file(path) for path in fs.find(folder)}


def put(fs, record, field, value):
    """Change one field of a record, of a writer that died."""
    found = json.loads(fs.cat_file(record))
    if "owner" in found:
        dead = {"owner": "somebody", "host": socket.gethostname(), "pid": 2**31 - 1}
        found |= dead | {"started": 1.0, "born": "another boot/1", "beat": 0.0}
    node = found["facts"] if field == "prefix" else found
    node.pop(field, None)
    if value is not GONE:
        node[field] = value
    fs.pipe_file(record, json.dumps(found).encode())


def is_right(fs, url):
    """Whether rows are there, and nothing of the write beside them."""
    rest = [p for p in fs.find(os.path.dirname(url)) if ".unfinished" in p or ".." in p]
    return not rest and np.array_equal(open_dataset(url).read(0, 20)[0].X, ROWS)


PLACES = [("{}", f) for f in FIELDS if f not in ("facts", "prefix", "owner", "beat")]
PLACES += [("memory:/{}", f) for f in FIELDS if f != "boot"]


@pytest.mark.parametrize(("where", "field"), PLACES)
def test_records_of_unfinished_writes_are_not_trusted(where, field, tmp_path, monkeypatch):
    """Whatever a field says, the same call ends right and what lies elsewhere stays as it was."""
    base = where.format(tmp_path)
    fs, _ = fsspec.url_to_fs(base)
    outside = [f"{base}/{name}" for name in ("evil/x.partial", "evil/X/c/0/0", "data/b.zarr/x")]
    for i, value in enumerate(DAMAGE + [text.format(tmp_path) for text in OUT]):
        url = f"{base}/data/{i}.zarr"
        if i % 2:
            write_dataset(url, ROWS + 1)
        record = break_off(url, monkeypatch, overwrite=True)
        for path in outside:
            fs.makedirs(os.path.dirname(path), exist_ok=True)
            fs.pipe_file(path, b"mine")
        put(fs, record, field, value)
        before = {p: x for p, x in everything(fs, base).items() if f"{i}.zarr" not in p}
        try:
            write_dataset(url, ROWS, chunks=5, overwrite=True)
        except ValueError as error:
            assert field in ("owner", "host", "pid", "started", "born", "beat")
            assert f"{i}.zarr/.unfinished/run.json is damaged" in str(error)
            fs.rm(record)
            write_dataset(url, ROWS, chunks=5, overwrite=True)
        after = everything(fs, base)
        assert {p: x for p, x in after.items() if f"{i}.zarr" not in p} == before
        assert is_right(fs, url)


@pytest.mark.parametrize("where", ["{}", "memory:/{}"])
@pytest.mark.parametrize("text", [b"", b"7", b"[{}]", b'{"token', b"\xff", b"[" * 10**5])
def test_a_record_that_is_none(where, text, tmp_path, monkeypatch):
    """The write begins anew."""
    url = f"{where.format(tmp_path)}/a.zarr"
    fs, _ = fsspec.url_to_fs(url)
    fs.pipe_file(break_off(url, monkeypatch), text)
    write_dataset(url, ROWS, chunks=5)
    assert is_right(fs, url)


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
@pytest.mark.parametrize("prefix", ["", "another", "its own"])
def test_a_record_that_points_at_a_data_set(prefix, error, tmp_path, monkeypatch):
    """The arrays of what is to be replaced are neither written to nor removed before it is."""
    url = f"memory:/{tmp_path}/a.zarr"
    fs, path = fsspec.url_to_fs(url)
    write_dataset(url, ROWS + 1)
    write_dataset(url, ROWS + 2, overwrite=True)
    own = json.loads(fs.cat_file(f"{path}/zarr.json"))["attributes"]["daskdml"]["prefix"]
    record = break_off(url, monkeypatch, overwrite=True)
    if prefix == "its own":
        put(fs, record, "token", own[5:-1])
    put(fs, record, "prefix", {"": "", "another": "data-01234567/", "its own": own}[prefix])
    if error:
        break_off(url, monkeypatch, error, overwrite=True)
        assert np.array_equal(open_dataset(url).read(0, 20)[0].X, ROWS + 2)
    write_dataset(url, ROWS, chunks=5, overwrite=True)
    assert is_right(fs, url)


def test_an_array_at_the_root_gets_no_folder():
    """Not even where a record says so."""
    url = "memory://hostile-root.zarr"
    first = stage(url, run="one", at_root=True)
    first.leave(KeyboardInterrupt())
    fs = fsspec.filesystem("memory")
    token = json.loads(fs.cat_file(f"{url}/.unfinished/run.json"))["token"]
    put(fs, f"{url}/.unfinished/run.json", "prefix", f"data-{token}/")
    again = stage(url, run="one", at_root=True)
    assert again.prefix == "" and not again.resumed
    again.leave(ValueError())


@pytest.mark.parametrize("field", ["token", "facts", "format", "host", "pid", "beat", "started"])
def test_a_damaged_record_of_a_writer_at_work(field):
    """Nobody takes its place; it goes on, and what it records next is whole."""
    url = f"memory://hostile-{field}.zarr"
    first = stage(url, run="one")
    fs, record = fsspec.filesystem("memory"), f"{url}/.unfinished/run.json"
    found = json.loads(fs.cat_file(record))
    del found[field]
    fs.pipe_file(record, json.dumps(found).encode())
    living = field in ("token", "facts", "format")
    told = "is being written by process" if living else r"run\.json is damaged .* remove that file"
    with pytest.raises(RuntimeError if living else ValueError, match=told):
        stage(url, run="one")
    first.leave(KeyboardInterrupt())
    again = stage(url, run="one")
    assert again.resumed
    again.leave(ValueError())


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("which", ["token", "scratch", "folder"])
def test_links_in_place_of_an_unfinished_write(which, tmp_path, monkeypatch):
    """What they lead to is neither written to nor removed."""
    evil, url = tmp_path / "evil", tmp_path / "a.zarr"
    evil.mkdir()
    (evil / "x.partial").write_bytes(b"mine")
    record = Path(break_off(url, monkeypatch))
    token = json.loads(record.read_text())["token"]
    place = (
        record.parent
        if which == "folder"
        else record.with_name(token if which == "token" else which)
    )
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to(evil)
    if which == "folder":
        with pytest.raises(FileExistsError, match=rf"{re.escape(str(place))} is a symbolic link"):
            write_dataset(url, ROWS, chunks=5)
        place.unlink()
    write_dataset(url, ROWS, chunks=5)
    assert is_right(fsspec.filesystem("file"), str(url))
    assert [path.name for path in evil.iterdir()] == ["x.partial"]
