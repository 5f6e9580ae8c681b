"""A fit that was broken off goes on from its checkpoint, and ends with the same bits."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from daskdml import Engine, LogisticRegression, MiniBatchKMeans, Ridge
from daskdml.engine.cache import PINNED
from daskdml.engine.checkpoint import checkpoint_place, list_checkpoints
from daskdml.engine.listing import CheckpointError
from daskdml.engine.memory import Needs
from daskdml.engine.run import Data
from daskdml.events import Message, PassEnd, PassStart
from daskdml.io import open_dataset, write_dataset
from daskdml.io.sources import as_source
from daskdml.io.states import encode_state
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


def altered(text, old, new):
    """A list with a fact changed, and the checksum as it was."""
    assert old in text
    return text.replace(old, new, 1)


LISTS = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "null": lambda text: "null",
    "no checksum": lambda text: altered(text, '"sha256"', '"sha255"'),
    "fit": lambda text: altered(text, '"C": 1.0', '"C": 3.0'),
    "format": lambda text: altered(text, '"format": 2', '"format": 3'),
    "step": lambda text: altered(text, '"n_iter": 5', '"n_iter": 4'),
    "entry": lambda text: altered(text, '"ended"', '"endea"'),
}


@pytest.mark.parametrize("damage", LISTS)
def test_a_damaged_list_is_made_again(damage, rows, tmp_path):
    """From the states beside it, with a warning that names it: the fit goes on, and mends it."""
    expected, place, said = fitted(rows, "newton"), tmp_path / "fit", []
    with pytest.raises(Broken):
        fitted(rows, "newton", place, stop=6)
    at, listing = place / "latest.json", checkpoint_place(place, 60, 2, None)
    whole, text = list_checkpoints(listing), at.read_text()
    at.write_text(LISTS[damage](text))
    with pytest.warns(RuntimeWarning, match=r"latest\.json is no list .* or a damaged one") as told:
        assert list_checkpoints(listing) == whole
    names = [entry["name"] for entry in whole[1]]
    assert len(names) == 2 and str(told[0].message).endswith(f": {', '.join(names)}")
    assert at.read_text() == LISTS[damage](text)
    with pytest.warns(RuntimeWarning, match=r"latest\.json is no list .* or a damaged one"):
        assert fitted(rows, "newton", place, said=said) == expected
    assert any(f"Goes on after step {whole[1][0]['n_iter']} " in text for text in said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list_checkpoints(listing)[0] == whole[0]


def test_a_damaged_list_of_another_fit(rows, tmp_path):
    """Its states tell what they are of: no other fit takes them, or writes over anything."""
    with pytest.raises(Broken):
        fitted(rows, "newton", tmp_path, stop=3)
    (tmp_path / "latest.json").write_text("{")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with (
        pytest.warns(RuntimeWarning, match="a damaged one"),
        pytest.raises(
            CheckpointError, match=r"another fit: solver was 'newton' and is now 'lbfgs'"
        ),
    ):
        fitted(rows, "lbfgs", tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_damaged_list_whose_states_do_not_tell_enough(rows, tmp_path):
    """Where some are not whole they are left alone; where all are, or two fits', it is an error."""
    expected, place, at = fitted(rows, "newton"), tmp_path / "fit", tmp_path / "fit/latest.json"
    with pytest.raises(Broken):
        fitted(rows, "newton", place, stop=5)
    old, new = sorted(place.glob("*.state"))
    damaged = new.read_bytes()[:-1] + b"x"
    new.write_bytes(damaged)
    at.write_text("{")
    shutil.copytree(place, tmp_path / "two")
    shutil.copytree(place, tmp_path / "none")
    with pytest.warns(RuntimeWarning, match=f"a damaged one .* beside it: {old.name}$"):
        assert fitted(rows, "newton", place) == expected
    assert new.read_bytes() == damaged

    fitted(rows, "lbfgs", tmp_path / "other")
    last = max((tmp_path / "other").glob("*.state"))
    (tmp_path / "two/000099.state").write_bytes(last.read_bytes())
    (tmp_path / "none" / old.name).write_bytes(b"")
    for name, why in (
        (
            "two",
            rf"or a damaged one .* 000099\.state and {old.name} beside it are of two fits; rem",
        ),
        ("none", r"latest\.json is no list .* or a damaged one .* no whole .*; remove it, or name"),
    ):
        before = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for solver in ("newton", "lbfgs"):
            with pytest.raises(CheckpointError, match=why):
                fitted(rows, solver, tmp_path / name)
        assert {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} == before


def test_a_list_that_is_damaged_while_its_fit_runs(rows, tmp_path):
    """The next checkpoint mends it; nothing of the fit is lost."""
    expected, at = fitted(rows, "newton"), tmp_path / "latest.json"

    def heard(event):
        if isinstance(event, PassEnd) and at.exists():
            at.write_bytes(b"")

    with warnings.catch_warnings(), Engine(callbacks=[heard], checkpoint=tmp_path, every=0):
        warnings.simplefilter("error", RuntimeWarning)
        model = LogisticRegression(solver="newton", random_state=0, **SOLVERS["newton"])
        model.fit(open_dataset(rows))
    assert model.coef_.tobytes() == expected[0]
    _, listed = list_checkpoints(checkpoint_place(tmp_path, 60, 2, None))
    assert [entry["ended"] for entry in listed] == [True, False]


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_are_kept(keep, rows, tmp_path):
    """The newest, of as many steps; each is enough to go on from."""
    expected, said = fitted(rows, "newton"), []
    with pytest.raises(Broken):
        fitted(rows, "newton", tmp_path, stop=5, keep=keep)
    _, listed = list_checkpoints(checkpoint_place(tmp_path, 60, keep, None))
    numbers = [entry["number"] for entry in listed]
    assert numbers == list(range(numbers[0], numbers[0] - keep, -1)) and numbers[0] > keep
    there = sorted(file.name for file in tmp_path.iterdir())
    assert there == [*sorted(entry["name"] for entry in listed), "latest.json"]
    for entry in listed[:-1]:
        (tmp_path / entry["name"]).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert fitted(rows, "newton", tmp_path, said=said, keep=keep) == expected
    assert any(f"Goes on after step {listed[-1]['n_iter']} " in text for text in said)
    assert len(list(tmp_path.glob("*.state"))) == keep


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
    with monkeypatch.context() as patch:
        patch.setattr("daskdml.estimators.fitting.__version__", "9.9")
        with pytest.raises(CheckpointError, match=r"fit: version was '.*' and is now '9\.9'; name"):
            fitted(rows, "newton", place)
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


@pytest.mark.filterwarnings("ignore:.*or a damaged one:RuntimeWarning")
@pytest.mark.parametrize("damaged", [False, True])
def test_seeds_that_were_drawn_are_kept(damaged, rows, tmp_path):
    """With random_state=None the second call has the seed of the first; from the states, too."""
    with pytest.raises(Broken), Engine(
        callbacks=[stop_after(2)], checkpoint=tmp_path / "fit", every=0
    ):  # fmt: skip
        LogisticRegression(solver="sgd").fit(open_dataset(rows))
    seed = json.loads((tmp_path / "fit/latest.json").read_text())["fit"]["seed"]
    if damaged:
        (tmp_path / "fit/latest.json").write_text("{")
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


@pytest.mark.parametrize("head", [None, "", "{}", "[]", "[{}, 1]", "[" * 100_000])
def test_states_that_do_not_tell_their_fit(head, rows, tmp_path):
    """Whole by their checksum, and yet no states: not taken, nor is a list made of them."""
    expected = fitted(rows, "newton", tmp_path)
    for path in tmp_path.glob("*.state"):
        path.write_bytes(encode_state([head, None]))
    shutil.copytree(tmp_path, tmp_path / "copy")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert fitted(rows, "newton", tmp_path) == expected
    (tmp_path / "copy/latest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a damaged one .* no whole checkpoint"):
        fitted(rows, "newton", tmp_path / "copy")


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
    """A list that names files elsewhere is refused, even with the right checksum."""
    entry = {"number": 1, "name": "../000001.state", "nbytes": 1, "n_iter": 1, "written": 1}
    entry |= {"objective": None, "gap": None, "ended": False}
    sign(tmp_path, [entry])
    with pytest.raises(CheckpointError, match="no list of checkpoints"):
        fitted(rows, "newton", tmp_path)
    sign(tmp_path, [entry | {"name": "000001.state"}])
    assert list_checkpoints(checkpoint_place(tmp_path, 60, 2, None))[1][0]["number"] == 1


def sign(folder, entries):
    """Put a list whose checksum is right."""
    listed = {"format": 2, "fit": {}, "checkpoints": entries}
    canonical = json.dumps(listed, sort_keys=True, separators=(",", ":")).encode()
    listed["sha256"] = hashlib.sha256(canonical).hexdigest()
    (folder / "latest.json").write_text(json.dumps(listed))


@pytest.mark.parametrize("key", ["number", "nbytes", "n_iter", "written", "ended", "objective"])
def test_entries_that_lack_something(key, tmp_path):
    """What lists and commands show of a checkpoint is there, and of its type, or it is an error."""
    entry = {"number": 1, "name": "000001.state", "nbytes": 1, "n_iter": 1, "written": 1}
    entry |= {"objective": 0.5, "gap": None, "ended": False, "names": []}
    for wrong in ({}, {key: "1"}, {key: [1]}, {key: 10**400}, {key: -(10**400)}):
        sign(tmp_path, [{k: v for k, v in entry.items() if k != key} | wrong])
        with pytest.raises(CheckpointError, match=r"latest\.json is no list of checkpoints"):
            list_checkpoints(checkpoint_place(tmp_path, 60, 2, None))


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
    (tmp_path / "latest.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no list of checkpoints"):
        fitted(rows, "newton", tmp_path)
    rows = np.random.default_rng(0).standard_normal((50, 2))
    with (
        Engine(checkpoint=tmp_path / "other"),
        pytest.raises(ValueError, match="partial_fit of minibatchkmeans keeps no checkpoints"),
    ):
        MiniBatchKMeans(2).partial_fit(rows)


class ReadOnly(MemoryFileSystem):
    """Files in memory that nobody may write: what S3 makes of a 403."""

    protocol = "readonly"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("readonly://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        """Write a file."""
        raise PermissionError(errno.EACCES, "Access Denied")


fsspec.register_implementation("readonly", ReadOnly, clobber=True)


def refused(url, place, error, **options):
    """A place that cannot be written is told with no pass over the rows, and gets nothing."""
    passes = []

    def heard(event):
        if isinstance(event, PassStart | PassEnd):
            passes.append(event)

    with (
        Engine(callbacks=[heard], checkpoint=place, **options),
        pytest.raises(error, match=f"checkpoints cannot be written at {place}: .*; name a folder"),
    ):
        LogisticRegression(solver="newton").fit(open_dataset(url))
    assert not passes


def test_places_that_cannot_be_written(rows, tmp_path):
    """Below a file, in a system's own folder, in a read-only store: told before the first pass."""
    (tmp_path / "file").write_text("")
    refused(rows, tmp_path / "file/fit", NotADirectoryError)
    refused(rows, "readonly://bucket/fit", PermissionError)
    if sys.platform == "linux":
        refused(rows, "/proc/fit", FileNotFoundError)


NOBODY = """
import os, sys
import numpy as np
import daskdml as dml
from daskdml.events import PassEnd, PassStart

def heard(event):
    if isinstance(event, PassStart | PassEnd):
        os._exit(3)

X = np.eye(5)
with dml.Engine(checkpoint=sys.argv[2]):  # nobody may not read what is not loaded yet
    dml.Ridge().fit(X, X[0])
with dml.Engine(callbacks=[heard], checkpoint=sys.argv[1]):
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        dml.Ridge().fit(X, X[0])
    except PermissionError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="modes and user ids are those of POSIX")
def test_a_folder_of_others(tmp_path):
    """A user who may not write there, root's child without root's rights, is told before a pass."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is root's alone
        os.chmod(folder, 0o555)
        command = [sys.executable, "-c", NOBODY, f"{folder}/fit", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = f"checkpoints cannot be written at {folder}/fit: "
        assert done.stdout.startswith(told), done.stderr
        assert "Permission denied" in done.stdout and os.listdir(folder) == []


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


@pytest.mark.s3
def test_a_bucket_that_may_not_be_written(rows, s3_server):
    """A policy that forbids to put objects: 403, told before the first pass."""
    fs, options = fsspec.filesystem("s3", **s3_server.storage_options), s3_server.storage_options
    fs.mkdir("read-only")
    forbidden = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject"}
    forbidden["Resource"] = "arn:aws:s3:::read-only/*"
    policy = json.dumps({"Version": "2012-10-17", "Statement": [forbidden]})
    fs.call_s3("put_bucket_policy", Bucket="read-only", Policy=policy)
    refused(rows, "s3://read-only/fit", PermissionError, storage_options=options)
    assert fs.ls("read-only") == []


@pytest.mark.s3
def test_a_damaged_list_on_s3(rows, s3_server):
    """The states of a bucket are listed, those of its neighbours are not."""
    options = {"storage_options": s3_server.storage_options}
    expected, place = fitted(rows, "newton"), s3_server.url("damaged/fit")
    with pytest.raises(Broken):
        fitted(rows, "newton", place, stop=4, **options)
    fitted(rows, "lbfgs", s3_server.url("damaged/fit2"), **options)
    fs, said = fsspec.filesystem("s3", **s3_server.storage_options), []
    fs.pipe_file(f"{place}/latest.json", fs.cat_file(f"{place}/latest.json")[:-9])
    with pytest.warns(RuntimeWarning, match=f"{place}/latest.json is no list .* or a damaged one"):
        assert fitted(rows, "newton", place, said=said, **options) == expected
    assert any("Goes on after step" in text for text in said)
