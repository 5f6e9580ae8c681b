"""A fit that was broken off goes on from its checkpoint, and ends with the same bits."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from daskdml import Engine, LogisticRegression, MiniBatchKMeans, Ridge
from daskdml.engine.cache import PINNED
from daskdml.engine.checkpoint import CheckpointError
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.events import Message, PassEnd
from daskdml.io import open_dataset, write_dataset
from daskdml.io.sources import as_source
from tests.conftest import workers

SOLVERS = {"newton": {"tol": 1e-9}, "lbfgs": {"tol": 1e-9}, "sgd": {"tol": 1e-4}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows whose fit takes some steps."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((6000, 12)).astype(np.float32)
    y = (X @ rng.standard_normal(12) + rng.standard_normal(6000) > 0).astype(int)
    return write_dataset(tmp_path_factory.mktemp("rows") / "r.zarr", X, y, chunks=500).url


class Broken(BaseException):
    """What breaks a fit off."""


def stop_after(n):
    """A callback that breaks off after n steps."""
    steps = []

    def heard(event):
        if isinstance(event, PassEnd) and event.objective is not None:
            steps.append(event)
            if len(steps) == n:
                raise Broken

    return heard


def fitted(url, solver, place=None, stop=None, runner=None, said=None, **more):
    """Bits of a fit; with `stop`, it is broken off after so many steps."""

    def heard(event):
        if isinstance(event, Message) and said is not None:
            said.append(event.text)

    options = {"checkpoint": place, "every": 0, **more}
    with Engine(runner, callbacks=[heard, stop_after(stop)], **options):
        model = LogisticRegression(solver=solver, random_state=0, **SOLVERS[solver])
        model.fit(open_dataset(url))
    objectives = np.array([record.objective for record in model.history_], float)
    return model.coef_.tobytes(), model.intercept_.tobytes(), objectives.tobytes(), model.n_iter_


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_goes_on(solver, rows, tmp_path):
    """After a break the same call goes on from the checkpoint, and its bits are the same."""
    expected, said = fitted(rows, solver), []
    place = tmp_path / "fit"
    assert fitted(rows, solver, place) == expected
    for file in place.iterdir():
        file.unlink()
    with pytest.raises(Broken):
        fitted(rows, solver, place, stop=3)
    assert len(list(place.glob("*.state"))) == 2 and not list(place.glob(".*"))
    assert fitted(rows, solver, place, said=said) == expected
    assert any("Goes on after step" in text for text in said)


CLIENT = """
import os, signal, sys
import daskdml as dml
from daskdml.events import PassEnd
from daskdml.io import open_dataset

steps = []
def heard(event):
    if isinstance(event, PassEnd) and event.objective is not None:
        steps.append(event)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

with dml.Engine(callbacks=[heard], checkpoint=sys.argv[2], every=0):
    dml.LogisticRegression(solver="newton", random_state=0, tol=1e-9).fit(open_dataset(sys.argv[1]))
"""


@pytest.mark.cluster
def test_a_killed_client_on_another_cluster(rows, tmp_path):
    """A client killed on threads goes on with two worker processes, to the same bits."""
    expected, place, said = fitted(rows, "newton"), tmp_path / "fit", []
    done = subprocess.run([sys.executable, "-c", CLIENT, rows, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    with workers(2) as client:
        assert fitted(rows, "newton", place, runner=client, said=said) == expected
    assert any("Goes on after step" in text for text in said)


def test_a_damaged_checkpoint(rows, tmp_path):
    """Where the newest is damaged or gone, the one before is taken, with a warning; never wrong."""
    expected, place = fitted(rows, "newton"), tmp_path / "fit"
    with pytest.raises(Broken):
        fitted(rows, "newton", place, stop=5)
    newest = max(place.glob("*.state"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.warns(RuntimeWarning, match=r"is damaged .*checksum.*the one before"):
        assert fitted(rows, "newton", place) == expected
    for file in place.glob("*.state"):
        file.unlink()
    with pytest.warns(RuntimeWarning, match="it is not there"):
        assert fitted(rows, "newton", place) == expected


def test_another_fit_is_refused(rows, tmp_path, monkeypatch):
    """Other parameters or data are refused with what differs, and nothing is overwritten."""
    place = tmp_path / "fit"
    with pytest.raises(Broken):
        fitted(rows, "newton", place, stop=3)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    with pytest.raises(CheckpointError, match=r"another fit: solver was 'newton' and is now"):
        fitted(rows, "lbfgs", place)
    X = np.random.default_rng(1).standard_normal((6000, 12)).astype(np.float32)
    with (
        Engine(checkpoint=place),
        pytest.raises(CheckpointError, match="another fit: data was"),
    ):
        LogisticRegression(solver="newton", random_state=0, tol=1e-9).fit(X, np.arange(6000) % 2)
    with Engine(checkpoint=place), pytest.raises(CheckpointError, match="another fit: estimator"):
        Ridge().fit(open_dataset(rows))
    monkeypatch.setattr(np, "__version__", "0.1")
    with pytest.raises(CheckpointError, match=r"another fit: numpy was .* and is now '0.1'"):
        fitted(rows, "newton", place)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_rows_that_were_written_anew_are_refused(rows, tmp_path):
    """One chunk of many is another: no block that is compared tells, and the data set does."""
    url, place = tmp_path / "r.zarr", tmp_path / "fit"
    X, y = (part.compute() for part in open_dataset(rows).to_dask())
    write_dataset(url, X, y, chunks=500)
    with pytest.raises(Broken):
        fitted(url, "newton", place, stop=3)
    shutil.copytree(url, tmp_path / "copy.zarr")
    X[1000:1500] += 1
    write_dataset(url, X, y, chunks=500, overwrite=True)
    with pytest.raises(CheckpointError, match="another fit: data was"):
        fitted(url, "newton", place)
    said = []
    fitted(tmp_path / "copy.zarr", "newton", place, said=said)
    assert any("Goes on after step" in text for text in said)


def test_rows_in_memory_are_compared_throughout(tmp_path):
    """One number of NumPy's rows tells them from others."""
    X, place = np.random.default_rng(0).standard_normal((50_000, 20)), tmp_path / "fit"
    y = X[:, 0]
    with Engine(checkpoint=place):
        Ridge().fit(X, y)
        X[30_000, 3] += 1e-9
        with pytest.raises(CheckpointError, match="another fit: data was"):
            Ridge().fit(X, y)


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError, SystemExit])
def test_what_ends_a_fit_from_outside_keeps_where_it_stood(error, rows, tmp_path, monkeypatch):
    """Long before the next checkpoint is due: the same call goes on from the last step."""

    def heard(event):
        if isinstance(event, PassEnd) and event.label.endswith("newton"):
            monkeypatch.setattr(Data, "map_reduce", ended)

    def ended(*args, **kwargs):
        raise error("the end")

    place, expected, said = tmp_path / "fit", fitted(rows, "newton"), []
    engine = Engine(checkpoint=place, every="1 hour", callbacks=[heard])
    with engine, pytest.raises(error, match="the end"):
        LogisticRegression(solver="newton", random_state=0, tol=1e-9).fit(open_dataset(rows))
    monkeypatch.undo()
    assert fitted(rows, "newton", place, said=said) == expected
    assert any("Goes on after step 1" in text for text in said)


def test_a_removed_folder_is_made_again(rows, tmp_path):
    """Who clears it away in mid-fit loses what it held, and not what comes later."""
    place = tmp_path / "fit"

    def heard(event):
        if isinstance(event, PassEnd) and event.objective is not None and place.exists():
            shutil.rmtree(place)

    with Engine(callbacks=[heard], checkpoint=place, every=0):
        LogisticRegression(solver="newton", tol=1e-9).fit(open_dataset(rows))
    assert (place / "latest.json").exists()


def test_seeds_that_were_drawn_are_kept(rows, tmp_path):
    """With random_state=None the second call has the seed of the first."""
    with pytest.raises(Broken), Engine(
        callbacks=[stop_after(2)], checkpoint=tmp_path / "fit", every=0
    ):  # fmt: skip
        LogisticRegression(solver="sgd").fit(open_dataset(rows))
    seed = json.loads((tmp_path / "fit/latest.json").read_text())["fit"]["seed"]
    with Engine(checkpoint=tmp_path / "fit"):
        model = LogisticRegression(solver="sgd").fit(open_dataset(rows))
    plain = LogisticRegression(solver="sgd", random_state=None)
    plain._replicas = lambda: type(model._replicas())(None, 0, seed)
    assert np.array_equal(plain.fit(open_dataset(rows)).coef_, model.coef_)


def test_telling_rows_apart_takes_no_memory_from_the_fit(rows):
    """The rows that are looked at stay in memory only once the fit itself has read them."""
    with Engine(memory_limit="2GB").open(as_source(open_dataset(rows)), Needs()) as data:
        data.identity("fit")
        assert PINNED.get(data.token, 0) is None
        data.map_reduce(lambda block: block.n_rows, "count")
        assert PINNED.get(data.token, 0) is not None


def test_time_between_checkpoints(rows, tmp_path):
    """Nothing is written before its time, but for where the fit ended: it need not run again."""
    expected, place = fitted(rows, "newton", tmp_path / "fit", every="1 hour"), tmp_path / "fit"
    assert sorted(f.name for f in place.iterdir()) == ["000001.state", "latest.json"]

    def heard(event):
        assert not isinstance(event, PassEnd) or event.label.endswith("identity")

    with Engine(checkpoint=place, callbacks=[heard]):
        model = LogisticRegression(solver="newton", random_state=0, tol=1e-9)
        model.fit(open_dataset(rows))
    assert model.coef_.tobytes() == expected[0] and model.n_iter_ == expected[-1]


def test_steps_do_not_wait_for_writing(rows, tmp_path, monkeypatch):
    """While a state is being written, the fit goes on; it waits only at the end."""
    from daskdml.engine import checkpoint

    def slow(state):
        time.sleep(0.5)
        return encode(state)

    encode = checkpoint.encode_state
    monkeypatch.setattr(checkpoint, "encode_state", slow)
    expected = fitted(rows, "newton")
    began = time.perf_counter()
    assert fitted(rows, "newton", tmp_path / "fit", every=1e-6) == expected
    assert expected[-1] >= 5 and time.perf_counter() - began < 0.5 * (expected[-1] - 1)


def test_a_full_disk_ends_no_fit(rows, tmp_path, monkeypatch):
    """What cannot be written is a warning; the checkpoints that are there stay, and are enough."""
    from daskdml.engine.checkpoint import Checkpoints

    put = Checkpoints._put

    def full(self, name, data):
        if name > "000002.state" and name.endswith(".state"):
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, name, data)

    expected, place = fitted(rows, "newton"), tmp_path / "fit"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_put", full)
        with pytest.warns(RuntimeWarning, match=r"could not be written at .*No space.*goes on"):
            assert fitted(rows, "newton", place) == expected
    assert sorted(f.name for f in place.glob("*.state")) == ["000001.state", "000002.state"]
    said = []
    assert fitted(rows, "newton", place, said=said) == expected
    assert any("Goes on after step" in text for text in said)


def test_states_of_another_fit_are_not_taken(rows, tmp_path):
    """A state says which fit it is of, wherever it lies."""
    expected = fitted(rows, "newton", tmp_path / "a")
    fitted(rows, "lbfgs", tmp_path / "b")
    for path in (tmp_path / "a").glob("*.state"):
        path.write_bytes(max((tmp_path / "b").glob("*.state")).read_bytes())
    with pytest.warns(RuntimeWarning, match="it is of another fit"):
        assert fitted(rows, "newton", tmp_path / "a") == expected


def test_two_fits_at_one_place(rows, tmp_path):
    """The one that began to write later is told that another one has its own there."""
    expected = fitted(rows, "newton")

    def other(event):
        if isinstance(event, PassEnd) and not (tmp_path / "latest.json").exists():
            fitted(rows, "lbfgs", tmp_path)

    with (
        Engine(callbacks=[other], checkpoint=tmp_path, every="1h"),
        pytest.warns(RuntimeWarning, match="another fit has begun to keep its own there"),
    ):
        model = LogisticRegression(solver="newton", random_state=0, **SOLVERS["newton"])
        model.fit(open_dataset(rows))
    assert model.coef_.tobytes() == expected[0]


def test_names_cannot_lead_out_of_the_folder(rows, tmp_path):
    """A list that names files elsewhere is refused."""
    entry = {"number": 1, "name": "../000001.state", "nbytes": 1, "n_iter": 1, "written": 1}
    entry |= {"objective": None, "gap": None, "ended": False}
    listed = {"format": 1, "fit": {}, "checkpoints": [entry]}
    (tmp_path / "latest.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="no list of checkpoints"):
        fitted(rows, "newton", tmp_path)


def test_a_newer_format_is_named(rows, tmp_path):
    """Checkpoints of a later version are refused as such, and stay."""
    text = json.dumps({"format": 7, "fit": {}, "states": []})
    (tmp_path / "latest.json").write_text(text)
    with pytest.raises(CheckpointError, match="of a newer daskdml: it has format 7, and this one"):
        fitted(rows, "newton", tmp_path)
    assert (tmp_path / "latest.json").read_text() == text


def test_bad_places_are_told_at_once(rows, tmp_path):
    """Unreadable times, places that cannot be written and fits without checkpoints are errors."""
    with pytest.raises(ValueError, match=r"every='soon' is no time"):
        Engine(checkpoint=tmp_path, every="soon")
    with pytest.raises(ValueError, match=r"every=-1 is no time"):
        Engine(checkpoint=tmp_path, every=-1)
    with pytest.raises(ValueError, match=r"every='1e400s' is no time"):
        Engine(checkpoint=tmp_path, every="1e400s")
    for keep in (0, 1.5, True, "2"):
        with pytest.raises(ValueError, match=rf"keep={keep!r}: .* a whole number"):
            Engine(checkpoint=tmp_path, keep=keep)
    for place in ("", 5):
        with pytest.raises(ValueError, match=rf"checkpoint={place!r} names no folder"):
            Engine(checkpoint=place)
    with pytest.raises(FileExistsError, match=r"cannot be written at .* there is a data set"):
        fitted(rows, "newton", rows)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoints cannot be written at"):
        fitted(rows, "newton", tmp_path / "file")
    if os.getuid():
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="checkpoints cannot be written at"):
            fitted(rows, "newton", locked / "fit")
    (tmp_path / "latest.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no list of checkpoints"):
        fitted(rows, "newton", tmp_path)
    rows = np.random.default_rng(0).standard_normal((50, 2))
    with (
        Engine(checkpoint=tmp_path / "other"),
        pytest.raises(ValueError, match="partial_fit of minibatchkmeans keeps no checkpoints"),
    ):
        MiniBatchKMeans(2).partial_fit(rows)


@pytest.mark.s3
def test_checkpoints_on_s3(rows, s3_server):
    """An object store, which cannot rename, keeps them as well."""
    options = {"storage_options": s3_server.storage_options}
    expected, place = fitted(rows, "newton"), s3_server.url("checkpoints/fit")
    with pytest.raises(Broken):
        fitted(rows, "newton", place, stop=3, **options)
    said = []
    assert fitted(rows, "newton", place, said=said, **options) == expected
    assert any("Goes on after step" in text for text in said)
    assert "key" not in repr(Engine(checkpoint=place, **options).checkpoint)
