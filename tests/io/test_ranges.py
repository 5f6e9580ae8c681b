"""Files of ratings on a bad network: the same ratings, or an error that names the file."""

from __future__ import annotations

import functools
import http.server
import threading

import numpy as np
import pytest

from daskdml.io import convert_ratings, ranges
from tests.faulty import ERRORS, FaultyFileSystem
from tests.io.test_restart import files

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

RNG = np.random.default_rng(0)
PAIRS = RNG.permutation(500 * 400)[:20_000]
FRAME = pd.DataFrame(
    {"userId": PAIRS // 400, "movieId": PAIRS % 400, "rating": RNG.integers(1, 11, len(PAIRS)) / 2}
)
WRITE = {"csv": FRAME.to_csv, "csv.gz": FRAME.to_csv, "csv.xz": FRAME.to_csv,
         "tsv": functools.partial(FRAME.to_csv, sep="\t"), "parquet": FRAME.to_parquet,
         "feather": lambda path, index: FRAME.to_feather(path)}  # fmt: skip


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch):
    """Ranges of 16 kB."""
    monkeypatch.setattr(ranges, "RANGE", 1 << 14)


def put(kind, tmp_path):
    """The ratings in a file of the faulty file system, and the same on disk."""
    path, url = tmp_path / f"r.{kind}", f"faulty://files/c/r.{kind}"
    WRITE[kind](path, index=False)
    FaultyFileSystem().pipe_file(url, path.read_bytes())
    return path, url


def converted(source, folder):
    """All that a conversion writes."""
    convert_ratings(source, folder, grid=(2, 2))
    return files(folder)


@pytest.mark.parametrize("kind", WRITE)
def test_a_file_on_a_failing_store_gives_the_same_ratings(kind, faulty, tmp_path, monkeypatch):
    """A third of the requests fail, in all known ways."""
    monkeypatch.setattr(ranges, "RANGE", 1 << 12)
    path, url = put(kind, tmp_path)
    expected = converted(path, tmp_path / "whole.zarr")
    faulty.share, faulty.seed = 0.35, 1
    assert converted(url, tmp_path / "r.zarr") == expected
    assert faulty.told.total() > 2 and set(faulty.told) <= set(ERRORS)


def test_less_is_asked_for_where_much_never_comes(faulty, tmp_path, monkeypatch):
    """A connection that breaks after 2 kB gives the file all the same."""
    path, url = put("csv", tmp_path)
    expected = converted(path, tmp_path / "whole.zarr")
    whole, broken = faulty.cat_file, []

    def breaking(self, path, start=None, end=None, **options):
        if end - start > 2048:
            broken.append(end - start)
            raise ConnectionResetError(f"reset by peer: {path}")
        return whole(self, path, start, end, **options)

    monkeypatch.setattr(faulty, "cat_file", breaking)
    assert converted(url, tmp_path / "r.zarr") == expected
    assert set(broken) > {1 << 14, 1 << 13, 1 << 12}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_lasting_error_names_the_file(kind, faulty, tmp_path):
    """And says how often it was tried."""
    _, url = put(kind, tmp_path)
    faulty.lasting = faulty._strip_protocol(url)
    with pytest.raises(ConnectionError, match=rf"reading {url} failed 5 times"):
        convert_ratings(url, tmp_path / "r.zarr")


def test_a_file_that_becomes_shorter_is_no_shorter_file(faulty, tmp_path, monkeypatch):
    """What is left of it is not taken for the whole."""
    _, url = put("csv", tmp_path)
    whole, fs = faulty.cat_file, faulty()

    def shortening(self, path, start=None, end=None, **options):
        found = whole(self, path, start, end, **options)
        fs.pipe_file(url, whole(self, path, None, None)[: 1 << 15])
        return found

    monkeypatch.setattr(faulty, "cat_file", shortening)
    with pytest.raises(ValueError, match=rf"{url} had \d+ bytes and ends after 32768:"):
        convert_ratings(url, tmp_path / "r.zarr")


class Silent(http.server.SimpleHTTPRequestHandler):
    """Writes no log; knows nothing of ranges."""

    def log_message(self, *_):
        """Write nothing."""


@pytest.mark.parametrize("size", [1 << 22, 1 << 14])
def test_a_web_server_without_ranges(size, tmp_path, monkeypatch):
    """A file of one range is read; of a longer one it is told what to do."""
    monkeypatch.setattr(ranges, "RANGE", size)
    FRAME.to_csv(tmp_path / "r.csv", index=False)
    handler = functools.partial(Silent, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/r.csv"
        if size > 1 << 14:
            assert convert_ratings(url, tmp_path / "r.zarr").n_stored == len(FRAME)
        else:
            with pytest.raises(ValueError, match=f"whole of {url} where a part was asked"):
                convert_ratings(url, tmp_path / "r.zarr")
        server.shutdown()
