"""Predictions and recommendations that were broken off: the same call goes on, with the same bytes.

Clients are killed while they stream to a store, in this process's threads or on a cluster.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
import zarr
from dask.base import tokenize

from daskdml import PCA, Engine, KMeans, LogisticRegression, MatrixFactorization
from daskdml.engine.run import Inline
from daskdml.events import BlockEnd
from daskdml.io import convert_ratings, open_dataset, write_dataset
from daskdml.kernels.kmeans import Centers
from daskdml.kernels.predict import Predict, one_or_many

MODELS = {"predict": lambda model, data, **to: model.predict(data, **to),
          "recommend": lambda model, data, **to: model.recommend(k=5, **to)}  # fmt: skip

CLIENT = """
import json, pickle, sys
import daskdml.engine.lazy
from daskdml import Engine
from daskdml.engine.run import Inline
from daskdml.io import open_dataset

daskdml.engine.lazy.MIN_ROWS_BYTES = 1
call, model, data, out, scheduler, options = sys.argv[1:]
if scheduler:
    from distributed import Client
    runner = Client(scheduler, set_as_default=False)
else:
    runner = Inline()
model = pickle.load(open(model, "rb"))
options = json.loads(options)
data = data if options else open_dataset(data)
with Engine(runner):
    if call == "predict":
        model.predict(data, out=out, storage_options=options)
    else:
        model.recommend(k=5, out=out)
"""


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    """As the killed clients have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daskdml.engine.lazy.MIN_ROWS_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory, _small_chunks):
    """A model, what it is asked about, and the answer written without disturbance, for each."""
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 6)).astype("f4")
    ds = write_dataset(folder / "x.zarr", X, np.where(X[:, 0] > 0, "yes", "no"), chunks=20)
    pairs = rng.permutation(30_000 * 20)[:90_000]
    data = pairs // 20, pairs % 20, rng.integers(1, 6, 90_000).astype("f4")
    ratings = convert_ratings(data, folder / "r.zarr", grid=(4, 2))
    with Engine(Inline()):
        models = {
            "predict": LogisticRegression().fit(ds),
            "recommend": MatrixFactorization(2, max_iter=1, random_state=0).fit(ratings),
        }
    for name, model in models.items():
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(model))
        call(name, folder, folder / f"{name}.zarr")
    return folder


def call(name, folder, out, runner=None):
    """What the killed client did."""
    model = pickle.loads((folder / f"{name}.pickle").read_bytes())
    with Engine(runner or Inline()):
        return MODELS[name](model, open_dataset(folder / "x.zarr"), out=str(out))


def kill(written, n, *arguments):
    """Run the call in a process that is killed once so many chunks are written."""
    child = subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, arguments)])
    end = time.monotonic() + 60
    while child.poll() is None and len(written()) < n:
        assert time.monotonic() < end
        time.sleep(0.003)
    child.send_signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


def chunks(folder):
    """Which file each chunk is: one that is written again is another one."""
    found = [p for p in folder.rglob("*") if "c" in p.parts and p.is_file()]
    return {p.relative_to(folder): p.stat().st_ino for p in found if p.suffix != ".partial"}


def equal(found, expected):
    """Whether arrays, or all arrays of groups, are the same."""
    if isinstance(found, zarr.Array):
        return np.array_equal(found[:], expected[:]) and dict(found.attrs) == dict(expected.attrs)
    names = ("users", "items", "scores")
    return all(np.array_equal(found[name][:], expected[name][:]) for name in names)


@pytest.mark.cluster
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("where", ["inline", "cluster"])
def test_a_killed_client_goes_on(name, where, cases, two_workers, tmp_path):
    """Killed at a random moment, the same call writes what is missing, to the same numbers."""
    runner = two_workers if where == "cluster" else Inline()
    scheduler = two_workers.scheduler.address if where == "cluster" else ""
    out, left = tmp_path / "out.zarr", tmp_path / ".out.zarr.unfinished"
    # Two tasks of a killed client may be in hand; a batch of lists has three arrays.
    last, total, in_hand = ("", 100, 2) if name == "predict" else ("scores/", 59, 6)
    n = int(np.random.default_rng(len(name + where)).integers(1, total - 20))
    arguments = name, cases / f"{name}.pickle", cases / "x.zarr", out, scheduler, "null"
    kill(lambda: list(left.glob(f"*/{last}c/*[0-9]")), n, *arguments)  # none that is begun
    with pytest.raises(FileNotFoundError, match=r"out\.zarr is unfinished"):
        open_dataset(out)
    with pytest.raises(FileNotFoundError):
        zarr.open(out, mode="r")
    (data,) = [path for path in left.iterdir() if path.is_dir()]
    before = chunks(data)
    found = call(name, cases, out, runner)
    after = chunks(out)
    assert len(before) >= n
    assert sum(after[k] != inode for k, inode in before.items()) <= in_hand
    assert equal(found, zarr.open(cases / f"{name}.zarr", mode="r"))
    assert os.listdir(tmp_path) == ["out.zarr"]


@pytest.mark.s3
def test_killed_predictions_on_s3(cases, s3_server):
    """On an object store nobody opens half of them either; what is there is not put again."""
    out, options = s3_server.url("killed-predictions.zarr"), s3_server.storage_options
    fs = fsspec.filesystem("s3", **options)

    def put():
        fs.invalidate_cache()
        found = fs.find(out, detail=True).items()
        return {name: facts["LastModified"] for name, facts in found if "/c/" in name}

    given = cases / "predict.pickle"
    url = s3_server.url("rows-of-predictions.zarr")
    rows = open_dataset(cases / "x.zarr").read(0, 2000)[0].X
    write_dataset(url, rows, chunks=100, storage_options=options)
    kill(put, 6, "predict", given, url, out, "", json.dumps(options))
    before = put()
    with pytest.raises(ValueError, match="is unfinished"):
        open_dataset(out, options)
    with pytest.raises((ValueError, TypeError)):
        zarr.open_array(out, mode="r", storage_options=options)
    time.sleep(1.1)  # times on S3 are whole seconds
    model = pickle.loads(given.read_bytes())
    with Engine(Inline()):
        found = model.predict(url, out=out, storage_options=options)
    assert 6 <= len(before) < 20 and len(put()) == 20
    assert sum(put()[name] != at for name, at in before.items()) <= 2
    assert np.array_equal(found[:], zarr.open(cases / "predict.zarr", mode="r")[:])


AGAIN = """
import pathlib, pickle, sys
import daskdml.engine.lazy
from daskdml.io import open_dataset

daskdml.engine.lazy.MIN_ROWS_BYTES = 1

folder = pathlib.Path(sys.argv[1])
for path in folder.glob("*.pickle"):
    model, out = pickle.loads(path.read_bytes()), str(path.with_suffix(".zarr"))
    getattr(model, "predict", getattr(model, "transform", None))(open_dataset(sys.argv[2]), out=out)
"""


def test_models_are_known_again_in_another_process(cases, tmp_path):
    """What a model of any kind wrote is found whole by another process, which writes nothing."""
    ds = open_dataset(cases / "x.zarr")
    X = np.abs(ds.read(0, 2000)[0].X)
    models = [LogisticRegression(), KMeans(3, random_state=0), PCA(2)]
    with Engine(Inline()):
        for i, model in enumerate(models):
            model.fit(X, X[:, 0] > 0.5)
            (tmp_path / f"{i}.pickle").write_bytes(pickle.dumps(model))
        positive = write_dataset(tmp_path / "x.zarr", X, chunks=500)
        for i, model in enumerate(models):
            what = getattr(model, "predict", getattr(model, "transform", None))
            what(positive, out=str(tmp_path / f"{i}.zarr"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    subprocess.run([sys.executable, "-c", AGAIN, tmp_path, positive.url], check=True, timeout=60)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def stop_after(n, model, X, out):
    """Predict, with Ctrl-C after n chunks."""
    blocks = []

    def heard(event):
        if isinstance(event, BlockEnd):
            blocks.append(event)
            if len(blocks) == n:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Engine(Inline(), callbacks=[heard]):
        model.predict(X, out=str(out))


def test_another_model_begins_anew(cases, tmp_path, monkeypatch):
    """An unfinished output of another model is removed; rows in memory are known by their bytes."""
    monkeypatch.setattr("daskdml.io.arrays.CHUNK_BYTES", 2400)
    ds = open_dataset(cases / "x.zarr")
    X = ds.read(0, 2000)[0].X
    model = pickle.loads((cases / "predict.pickle").read_bytes())
    other = LogisticRegression().fit(X, X[:, 1] > 0)
    out = tmp_path / "out.zarr"
    stop_after(5, other, X, out)
    (left,) = [p for p in (tmp_path / ".out.zarr.unfinished").iterdir() if p.is_dir()]
    assert 4 <= len(chunks(left)) <= 6
    stop_after(3, model, X.copy(), out)
    assert not left.exists()
    (left,) = [p for p in (tmp_path / ".out.zarr.unfinished").iterdir() if p.is_dir()]
    before = chunks(left)
    assert 2 <= len(before) <= 4
    found = model.predict(X.copy(), out=str(out))
    assert before.items() <= chunks(out).items()
    names = np.array(found.attrs["class_names"])
    assert np.array_equal(names[found[:]], model.predict(X))
    X[1990] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.predict(X, out=str(tmp_path / "bad.zarr"))
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_models_are_told_apart_by_every_number():
    """Models that differ in one of many coefficients have other lazy predictions, and outputs."""
    a = np.zeros((1, 5000))
    b = np.where(np.arange(5000) == 2500, 1e-300, a)
    kinds = (lambda w: Predict(w, np.zeros(1), one_or_many), Centers, lambda w: Centers(w).labels)
    for kind in kinds:
        assert tokenize(kind(a)) == tokenize(kind(a.copy())) != tokenize(kind(b))


def test_altered_metadata_of_predictions(tmp_path):
    """What is there already is taken only as it was written."""
    X = np.random.default_rng(0).standard_normal((200, 3))
    model = LogisticRegression().fit(X, X[:, 0] > 0)
    ds = write_dataset(tmp_path / "a.zarr", X, chunks=50)
    model.predict_proba(ds, out=tmp_path / "p.zarr")
    text = (tmp_path / "p.zarr/zarr.json").read_text()
    metadata = json.loads(text)
    metadata["shape"] = [200, 3]
    (tmp_path / "p.zarr/zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"p.zarr are not those that were written"):
        model.predict_proba(ds, out=tmp_path / "p.zarr")
