"""What the linear estimators take, give back and refuse."""

from __future__ import annotations

import os
import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr

import daskdml.engine.run
from daskdml import Engine, LinearRegression, LogisticRegression, Ridge
from daskdml.engine.run import Inline, Threads
from daskdml.io import open_dataset, write_dataset
from daskdml.io.chunks import ChunkError

N = 1000
NAMES = ["age", "height", "income", "weight"]


@pytest.fixture(autouse=True)
def many_groups(monkeypatch):
    """Each chunk is a group."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def rows(seed=0):
    """Rows and two classes."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, 4)) * [1, 2, 3, 4] + 5
    return X, (X @ [1, -1, 0.5, 0] + rng.logistic(size=N) > 2).astype(int)


def dataset(tmp_path, X=None, y=None, name="a.zarr", **kwargs):
    """The rows as a data set in ten chunks with feature names."""
    X0, y0 = rows()
    X, y = X0 if X is None else X, y0 if y is None else y
    return write_dataset(tmp_path / name, X, y, chunks=100, feature_names=NAMES, **kwargs)


RUNNERS = ["inline", "threads", pytest.param("cluster", marks=pytest.mark.cluster)]


@pytest.fixture(params=RUNNERS)
def runner(request):
    """Each kind of runner in turn."""
    if request.param == "cluster":
        return request.getfixturevalue("two_workers")
    return Inline() if request.param == "inline" else Threads(2)


# What is taken, and what comes back


def test_all_kinds_of_rows_give_the_same_bits(tmp_path):
    """A data set, its URL, Zarr arrays, Dask arrays and NumPy arrays cut alike are fitted alike."""
    X, y = rows()
    ds = dataset(tmp_path)
    group = zarr.open_group(str(ds.url), mode="r")
    dX, dy = da.from_array(X, chunks=(100, 2)), da.from_array(y, chunks=70)
    expected = LogisticRegression(tol=1e-9).fit(ds)
    for args in (
        (str(ds.url),), (tmp_path / "a.zarr",), (group["X"], group["y"]), (dX, dy), (dX, y),
        (group["X"], y),
    ):  # fmt: skip
        model = LogisticRegression(tol=1e-9).fit(*args)
        assert np.array_equal(model.coef_, expected.coef_)
        assert np.array_equal(model.intercept_, expected.intercept_)
    plain = LogisticRegression(tol=1e-9).fit(X, y)  # one chunk, so other bits
    assert np.allclose(plain.coef_, expected.coef_, rtol=1e-4)


def test_sums_weigh_rows_of_the_data_set(tmp_path):
    """A data set's own weights count; those of the call take their place."""
    X, y = rows()
    s = np.random.default_rng(1).uniform(0, 2, N)
    own = LogisticRegression(tol=1e-9).fit(dataset(tmp_path, sample_weight=s))
    given = LogisticRegression(tol=1e-9).fit(dataset(tmp_path, name="b.zarr"), sample_weight=s)
    assert np.array_equal(own.coef_, given.coef_)
    assert np.allclose(own.coef_, LogisticRegression(tol=1e-12).fit(X, y, s).coef_, rtol=1e-3)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_predictions_are_of_the_inputs_kind(method, tmp_path):
    """NumPy gives NumPy, everything larger a lazy Dask array, all with equal values."""
    X, y = rows()
    for target in (y, np.array(["a", "b", "c"])[(X[:, 0] > 5).astype(int) + (X[:, 1] > 5)]):
        ds = dataset(tmp_path, y=target, name=f"{method}{len(set(target))}.zarr")
        model = LogisticRegression().fit(ds)
        plain = getattr(model, method)(pd.DataFrame(X, columns=NAMES))
        assert isinstance(plain, np.ndarray)
        X_zarr = zarr.open_group(str(ds.url), mode="r")["X"]
        for large in (ds, str(ds.url), X_zarr, da.from_array(X, chunks=(300, -1))):
            lazy = getattr(model, method)(large)
            assert isinstance(lazy, da.Array)
            assert lazy.shape == plain.shape and lazy.dtype == plain.dtype
            assert np.array_equal(lazy.compute(), plain)


def test_regressors_predict_lazily(tmp_path):
    """The same for regressions."""
    X, _ = rows()
    y = X @ [1.0, 2.0, 3.0, 4.0]
    ds = dataset(tmp_path, y=y)
    for model in (Ridge().fit(ds), LinearRegression().fit(ds)):
        plain = model.predict(pd.DataFrame(X, columns=NAMES))
        assert np.array_equal(model.predict(ds).compute(), plain)
        assert np.isclose(model.score(ds), model.score(pd.DataFrame(X, columns=NAMES), y))


def test_scores_stream(tmp_path):
    """`score` of a data set, a URL, Dask arrays and NumPy arrays is one number."""
    X, y = rows()
    s = np.random.default_rng(1).uniform(0, 2, N)
    ds = dataset(tmp_path)
    model = LogisticRegression().fit(X, y)
    expected = model.score(X, y)
    dX, dy = da.from_array(X, chunks=(300, 4)), da.from_array(y, chunks=250)
    for args in ((ds,), (str(ds.url),), (ds, y), (dX, dy)):
        assert model.score(*args) == pytest.approx(expected, rel=1e-12)
    assert model.score(ds, sample_weight=s) == pytest.approx(model.score(X, y, s), rel=1e-12)
    unlabelled = write_dataset(tmp_path / "x.zarr", X)
    with pytest.raises(ValueError, match="no targets to score against; pass y"):
        model.score(unlabelled)


def test_predictions_stream_to_a_store(tmp_path, runner):
    """`out=` writes what predict gives to a Zarr array that anyone can open."""
    X, _ = rows()
    ds = dataset(tmp_path)
    model = LogisticRegression().fit(ds)
    with Engine(runner):
        found = model.predict_proba(ds, out=str(tmp_path / "p.zarr"))
    plain = model.predict_proba(pd.DataFrame(X, columns=NAMES))
    assert isinstance(found, zarr.Array) and np.array_equal(found[:], plain)
    assert np.array_equal(zarr.open_array(str(tmp_path / "p.zarr"), mode="r")[:], plain)


def _chunks(url):
    return sorted(p for p in url.rglob("*") if p.is_file() and "zarr.json" not in p.name)


def test_streamed_predictions_are_restartable(tmp_path, monkeypatch):
    """A rerun writes what is missing alone; another model's or other rows' output is protected."""
    monkeypatch.setattr("daskdml.engine.lazy.MIN_ROWS_BYTES", 1)
    X, _ = rows()
    ds = dataset(tmp_path)
    model, out = LogisticRegression().fit(ds), tmp_path / "p.zarr"
    expected = model.predict(ds).compute()
    model.predict(ds, out=str(out))
    chunks = _chunks(out)
    assert len(chunks) == 10
    written = {p: p.stat().st_mtime_ns for p in chunks}
    os.remove(chunks[3])
    again = model.predict(open_dataset(ds.url), out=str(out))
    assert np.array_equal(again[:], expected)
    assert [p for p in _chunks(out) if p.stat().st_mtime_ns != written[p]] == [chunks[3]]
    for other, what in (
        (LogisticRegression(C=0.1).fit(ds), ds), (model, dataset(tmp_path, X + 1, name="b.zarr"))
    ):  # fmt: skip
        with pytest.raises(FileExistsError, match="another model or of other rows; choose another"):
            other.predict(what, out=str(out))
    with pytest.raises(FileExistsError, match="choose another out="):
        model.predict(ds, out=str(ds.url))
    assert np.array_equal(zarr.open_array(str(out), mode="r")[:], expected)


def test_streamed_strings_are_codes(tmp_path):
    """Labels that are strings are stored as codes, and named beside them."""
    y = rows()[1]
    ds = dataset(tmp_path, y=np.array(["no", "yes"])[y])
    model = LogisticRegression().fit(ds)
    found = model.predict(ds, out=str(tmp_path / "p.zarr"))
    names = np.array(found.attrs["class_names"])
    assert np.array_equal(names[found[:]], model.predict(ds).compute())


def test_dask_input_of_any_cut(tmp_path):
    """Misaligned, unknown and empty chunks of X and y are handled."""
    X, y = rows()
    expected = LogisticRegression(tol=1e-10).fit(X, y).coef_
    dX, dy = da.from_array(X, chunks=(130, 3)), da.from_array(y, chunks=300)
    keep = da.from_array(np.ones(N, dtype=bool), chunks=130)
    unknown = da.from_array(X, chunks=(130, -1))[keep]
    empty = da.concatenate([dX[:0], dX[:200], dX[200:200], dX[200:]])
    for X_any in (dX, unknown, empty):
        assert np.allclose(LogisticRegression(tol=1e-10).fit(X_any, dy).coef_, expected, rtol=1e-4)


def test_dask_dataframes():
    """A Dask DataFrame, whose partitions' lengths are not known, is fitted under its names."""
    pytest.importorskip("pyarrow", reason="dask.dataframe needs it")
    import dask.dataframe as dd

    X, y = rows()
    frame = dd.from_pandas(pd.DataFrame(X, columns=NAMES), npartitions=7)
    model = LogisticRegression(tol=1e-10).fit(frame, da.from_array(y, chunks=300))
    assert np.allclose(model.coef_, LogisticRegression(tol=1e-10).fit(X, y).coef_, rtol=1e-4)
    assert list(model.feature_names_in_) == NAMES


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("model", [LogisticRegression(), Ridge()])
def test_bad_rows_are_named(value, model, tmp_path, runner):
    """NaN and infinity in X are an error with the first row, the column and its name."""
    X, y = rows()
    X[437, 2] = X[437, 3] = X[881, 0] = value
    ds = dataset(tmp_path, X, y)
    kind = "NaN" if np.isnan(value) else "infinity"
    with (
        Engine(runner),
        pytest.raises(
            ValueError, match=rf"X contains {kind}: first in row 437, column 2 \('income'\)"
        ),
    ):
        model.fit(ds)


def test_bad_targets_are_named(tmp_path, runner):
    """So are those of y and of the weights, before any row of X is read."""
    X, _ = rows()
    y = X @ [1.0, 2, 3, 4]
    y[437] = np.nan
    with Engine(runner), pytest.raises(ValueError, match="y contains NaN: first in row 437 of"):
        Ridge().fit(dataset(tmp_path, X, y))
    s = np.ones(N)
    s[555] = -1
    with Engine(runner), pytest.raises(ValueError, match=r"sample_weight is negative.*row 555"):
        Ridge().fit(dataset(tmp_path, name="b.zarr", sample_weight=s))


def test_bad_rows_at_prediction(tmp_path):
    """A row that cannot be predicted is named, lazily and when streaming."""
    X, y = rows()
    model = LogisticRegression().fit(dataset(tmp_path))
    X[437, 2] = np.nan
    ds = dataset(tmp_path, X, y, name="b.zarr")
    message = r"X contains NaN: first in row 437, column 2 \('income'\)"
    with pytest.raises(ValueError, match=message):
        model.predict(ds).compute()
    with pytest.raises(ValueError, match=message):
        model.predict(ds, out=str(tmp_path / "p.zarr"))
    with pytest.raises(ValueError, match=message):
        model.score(ds)
    with pytest.raises(ValueError, match="X contains NaN: first in row 437, column 2"):
        model.predict(da.from_array(X, chunks=(100, -1))).compute()


def test_lengths_differ(tmp_path):
    """X and y of different lengths are refused with both."""
    X, y = rows()
    ds = dataset(tmp_path)
    for X_any in (ds, da.from_array(X, chunks=100), X):
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples"):
            LogisticRegression().fit(X_any, y[:-1])


def test_one_class(tmp_path):
    """One class only is refused, and named."""
    with pytest.raises(ValueError, match=r"at least 2 classes.*only one class: .*1"):
        LogisticRegression().fit(dataset(tmp_path, y=np.ones(N, dtype=int)))


def test_wrong_features_at_prediction(tmp_path):
    """Another number of features, or other names, are refused."""
    X, y = rows()
    model = LogisticRegression().fit(dataset(tmp_path))
    for fewer in (X[:, :3], da.from_array(X[:, :3], chunks=100)):
        with (
            warnings.catch_warnings(),
            pytest.raises(
                ValueError, match="X has 3 features, but LogisticRegression is expecting 4"
            ),
        ):
            warnings.simplefilter("ignore", UserWarning)
            model.predict(fewer)
    swapped = write_dataset(tmp_path / "b.zarr", X, y, feature_names=NAMES[::-1])
    for call in (model.predict, model.score):
        with pytest.raises(ValueError, match="feature names should match"):
            call(swapped)


def test_no_rows():
    """Zero rows are refused."""
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        LogisticRegression().fit(da.zeros((0, 4), chunks=4), da.zeros(0, chunks=4))


def test_no_targets(tmp_path):
    """Rows without targets are refused with what to do."""
    ds = write_dataset(tmp_path / "x.zarr", rows()[0])
    with pytest.raises(ValueError, match="has no targets, which fit needs; pass y"):
        LogisticRegression().fit(ds)


def test_damaged_chunks_are_named(tmp_path, runner):
    """A missing and a truncated chunk are named."""
    ds = dataset(tmp_path)
    chunk = sorted((tmp_path / "a.zarr").rglob("X/c/4/0"))[0]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    with Engine(runner), pytest.raises(ChunkError, match=r"X/c/4/0 is damaged"):
        LogisticRegression().fit(ds)
    os.remove(chunk)
    with Engine(runner), pytest.raises(ChunkError, match=r"X/c/4/0 is missing"):
        LogisticRegression().fit(ds)


def test_absent_urls_are_named(tmp_path):
    """A URL where nothing lies is named."""
    with pytest.raises(FileNotFoundError, match=r"none\.zarr does not exist"):
        LogisticRegression().fit(str(tmp_path / "none.zarr"))


@pytest.mark.parametrize(
    "parameters", [{"C": -1.0}, {"solver": "sag"}, {"tol": -1}, {"max_iter": 0}, {"C": "1"}]
)
def test_bad_parameters(parameters, tmp_path):
    """A parameter out of its range is refused with the range, before any reading."""
    with pytest.raises(ValueError, match=f"The {next(iter(parameters))!r} parameter"):
        LogisticRegression(**parameters).fit(str(tmp_path / "none.zarr"))


def test_unknown_parameters():
    """A misspelt parameter is an error."""
    with pytest.raises(TypeError, match="penalyt"):
        LogisticRegression(penalyt="l2")
    with pytest.raises(ValueError, match="Invalid parameter 'c'"):
        LogisticRegression().set_params(c=1)


def test_options_without_a_url(tmp_path):
    """`storage_options` beside anything but a URL are refused."""
    with pytest.raises(ValueError, match="storage_options go with a URL"):
        LogisticRegression().fit(dataset(tmp_path), storage_options={"key": "x"})


# S3


@pytest.mark.s3
def test_s3_gives_the_same_bits(s3_server, tmp_path):
    """A fit from S3 is the fit from local disk; so are predictions, streamed back to S3."""
    X, y = rows()
    local = dataset(tmp_path)
    options = s3_server.storage_options
    url = s3_server.url("fit.zarr")
    write_dataset(url, X, y, chunks=100, feature_names=NAMES, storage_options=options)
    expected = LogisticRegression(tol=1e-9).fit(local)
    model = LogisticRegression(tol=1e-9).fit(url, storage_options=options)
    assert np.array_equal(model.coef_, expected.coef_)
    assert model.bytes_read_ > 0
    found = model.predict(url, storage_options=options, out=s3_server.url("predicted.zarr"))
    assert np.array_equal(found[:], expected.predict(local).compute())


@pytest.mark.s3
def test_s3_errors(s3_server):
    """A fit names the object that is missing, and the bucket that is absent."""
    import fsspec

    X, y = rows()
    options = s3_server.storage_options
    url = s3_server.url("hole.zarr")
    write_dataset(url, X, y, chunks=100, storage_options=options)
    fs = fsspec.filesystem("s3", **options)
    fs.rm(f"{url}/X/c/3/0")
    with pytest.raises(ChunkError, match=r"s3://daskdml-tests/hole\.zarr/X/c/3/0 is missing"):
        LogisticRegression().fit(url, storage_options=options)
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/a\.zarr does not exist"):
        LogisticRegression().fit("s3://no-such-bucket/a.zarr", storage_options=options)


@pytest.mark.s3
def test_s3_throttling_is_survived(s3_server, tmp_path):
    """A server that first answers 503 to each read of a chunk costs time, not bits."""
    from http.server import ThreadingHTTPServer
    from threading import Thread

    from tests.io.test_s3 import Throttling

    X, y = rows()
    write_dataset(
        s3_server.url("slow-fit.zarr"), X, y, chunks=100, storage_options=s3_server.storage_options
    )
    Throttling.upstream = s3_server.endpoint.removeprefix("http://")
    with ThreadingHTTPServer(("127.0.0.1", 0), Throttling) as proxy:
        thread = Thread(target=proxy.serve_forever)
        thread.start()
        try:
            options = s3_server.storage_options | {
                "endpoint_url": f"http://127.0.0.1:{proxy.server_address[1]}"
            }
            model = LogisticRegression(tol=1e-9).fit(
                s3_server.url("slow-fit.zarr"), storage_options=options
            )
        finally:
            proxy.shutdown()
            thread.join()
    assert max(n for path, n in Throttling.seen.items() if "slow-fit" in path) > Throttling.failures
    assert np.array_equal(model.coef_, LogisticRegression(tol=1e-9).fit(dataset(tmp_path)).coef_)
