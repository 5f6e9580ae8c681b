"""URLs, stores and retries."""

from __future__ import annotations

import os
import subprocess
import sys

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from daskdml.io import open_dataset, write_dataset
from daskdml.io import store as store_module
from daskdml.io.chunks import ChunkReader
from daskdml.io.store import is_transient, open_node, open_store, resolve_url, retrying


class Flaky(MemoryFileSystem):
    """A file system in memory where the first reads of every object fail."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012 - fsspec keeps the files here
    pseudo_dirs = [""]  # noqa: RUF012
    failures = 2
    error = ConnectionResetError
    counts: dict[str, int] = {}  # noqa: RUF012

    def cat_file(self, path, start=None, end=None, **kwargs):
        """Read a file, after some failures."""
        seen = self.counts[path] = self.counts.get(path, 0) + 1
        if seen <= self.failures:
            raise self.error(f"made to fail: {path}")
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def flaky(monkeypatch):
    """Give the flaky file system's class, registered, with short pauses."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(Flaky, "failures", 0)
    Flaky.counts.clear()
    Flaky.store.clear()
    return Flaky


def test_local_urls_become_absolute(tmp_path, monkeypatch):
    """Any way to write a local path means the same path in every process."""
    monkeypatch.chdir(tmp_path)
    want = str(tmp_path / "a.zarr")
    for url in ("a.zarr", "./a.zarr", f"file://{want}", want + "/", tmp_path / "a.zarr"):
        assert resolve_url(url) == want
    assert resolve_url("~/a") == os.path.expanduser("~/a")


@pytest.mark.parametrize("url", [3, b"x", None])
def test_what_is_no_url(url):
    """Bytes, numbers and nothing are refused."""
    with pytest.raises(TypeError):
        resolve_url(url)


@pytest.mark.parametrize("url", ["{}/absent.zarr", "memory://absent.zarr"])
def test_a_url_that_does_not_exist_is_named(tmp_path, url):
    """Opening nothing says which URL and what to do."""
    url = url.format(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{url} does not exist; .*write_dataset"):
        open_dataset(url)


def test_a_directory_that_is_no_data_set(tmp_path):
    """A directory without Zarr metadata is not called absent."""
    with pytest.raises(FileNotFoundError, match="holds no Zarr"):
        open_dataset(tmp_path)


def test_an_unknown_protocol_is_named():
    """A protocol that fsspec does not know is told, with those that work."""
    with pytest.raises(ValueError, match=r"no protocol 'nosuch'.*s3://"):
        open_dataset("nosuch://a/b.zarr")


@pytest.mark.parametrize(
    ("url", "module", "cure"),
    [("s3://b/x.zarr", "s3fs", "daskdml[s3]"), ("hdfs://h/x.zarr", "hdfs_native", "daskdml[hdfs]")],
)
def test_a_missing_package_names_the_extra(url, module, cure):
    """Without the package of a protocol, the error says what to install."""
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.modules['pyarrow'] = None\n"
        f"sys.modules['pyarrow.fs'] = None\n"
        f"import daskdml.io\ntry: daskdml.io.open_dataset({url!r})\n"
        f"except ImportError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert f"pip install '{cure}'" in done.stdout, done.stdout + done.stderr


def test_the_io_floor_is_light():
    """Reading needs neither scikit-learn nor Dask nor pandas nor any cloud's package."""
    code = (
        "import sys, daskdml.io.sources\n"
        "heavy = {'sklearn', 'dask', 'distributed', 'pandas', 's3fs', 'matplotlib', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_array_or_a_group_is_opened(tmp_path):
    """Both kinds of Zarr nodes open from their URL."""
    zarr.create_array(tmp_path / "a.zarr", data=np.eye(3))
    zarr.create_group(tmp_path / "g.zarr")
    assert isinstance(open_node(str(tmp_path / "a.zarr")), zarr.Array)
    assert isinstance(open_node(str(tmp_path / "g.zarr")), zarr.Group)


def test_stores_are_read_only_unless_asked(tmp_path):
    """A store opened for reading refuses writes."""
    for url in (str(tmp_path / "a.zarr"), "memory://ro.zarr"):
        with pytest.raises(ValueError, match="read-only"):
            zarr.create_array(open_store(url), data=np.eye(3))
        zarr.create_array(open_store(url, read_only=False), data=np.eye(3))


def test_transient_errors_of_a_store_are_retried(flaky):
    """A data set is read although the first two reads of every object fail."""
    ds = write_dataset("flaky://a.zarr", np.arange(40.0).reshape(20, 2), chunks=5)
    flaky.failures = 2
    flaky.counts.clear()
    block, _ = ds.read(0, 20)
    assert np.array_equal(block.X, np.arange(40.0).reshape(20, 2))
    assert {n for path, n in flaky.counts.items() if "/c/" in path} == {3}
    flaky.counts.clear()
    assert open_dataset("flaky://a.zarr").n_rows == 20


def test_a_lasting_transient_error_names_the_object(flaky):
    """After the last attempt the error says which object, how often and why."""
    ds = write_dataset("flaky://a.zarr", np.ones((20, 2)), chunks=5)
    flaky.failures = 99
    with pytest.raises(ConnectionError, match=r"a\.zarr/X/c/1/0 failed 5 times.*made to fail"):
        ds.read(5, 8)


def test_a_permanent_error_names_the_object_at_once(flaky, monkeypatch):
    """Where access is denied, there is one attempt and the object's name."""
    ds = write_dataset("flaky://a.zarr", np.ones((20, 2)), chunks=5)
    monkeypatch.setattr(flaky, "error", PermissionError)
    flaky.failures = 99
    flaky.counts.clear()
    with pytest.raises(PermissionError, match=r"a\.zarr/X/c/1/0: access denied"):
        ds.read(5, 8)
    assert set(flaky.counts.values()) == {1}


def test_layouts_read_by_zarr_are_retried_too(flaky):
    """The general path survives transient errors as well."""
    flaky.failures = 0
    z = zarr.create_array(
        open_store("flaky://z.zarr", read_only=False), data=np.eye(6), chunks=(2, 2)
    )
    flaky.failures = 1
    flaky.counts.clear()
    assert np.array_equal(ChunkReader(z).read(1, 2)[0], np.eye(6)[1:2])


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError("x"), True),
        (TimeoutError("x"), True),
        (OSError(5, "An error occurred (SlowDown): Please reduce your request rate"), True),
        (OSError(5, "An error occurred (503) when calling the GetObject operation"), True),
        (OSError(5, "An error occurred (InternalError) when calling GetObject"), True),
        (PermissionError("503"), False),
        (FileNotFoundError("timeout"), False),
        (OSError(28, "No space left on device"), False),
        (OSError(22, "Access Denied"), False),
        (ValueError("timed out"), False),
        (KeyError("503"), False),
    ],
)
def test_which_errors_are_transient(error, transient):
    """Resets, timeouts, throttling and 5xx are; 403, 404, full disks and bugs are not."""
    assert is_transient(error) is transient


def test_other_errors_pass_at_once():
    """What is no error of transport is raised as it is, after one attempt."""
    calls = []

    def work():
        calls.append(1)
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        retrying(work, "working")
    assert len(calls) == 1
