"""Ratings: converted from anything, whole or not at all, read in both walks, split as views."""

import gzip
import os

import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from daskdml.io import convert_ratings, open_dataset, open_ratings
from daskdml.io.chunks import ChunkError
from daskdml.io.convert import ratings_in_memory

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def frame():
    """Ratings of unique pairs in random order, with ids that have gaps."""
    rng = np.random.default_rng(0)
    pairs = rng.permutation(60 * 45)[:1200]
    users = rng.integers(1, 2**62, 60)
    items = np.array([f"item {n}é" for n in rng.permutation(45)])
    return pd.DataFrame(
        {
            "userId": users[pairs // 45],
            "movieId": items[pairs % 45],
            "rating": rng.integers(1, 11, 1200) / 2,
            "time": rng.integers(10**9, 10**9 + 500, 1200),
        }
    )


def flat(ratings, walk="user"):
    """All ratings of a store as a sorted table of the users' own ids."""
    out = []
    for i, j in np.ndindex(ratings.grid):
        block, _ = ratings.read(walk, i, j)
        u, v = ratings.pairs(walk, i, j, block)
        out.append(
            pd.DataFrame({
                "userId": ratings.users.ids[u], "movieId": ratings.items.ids[v],
                "rating": block.values.astype(float),
            })
        )  # fmt: skip
    return pd.concat(out).sort_values(["userId", "movieId"]).reset_index(drop=True)


def expected(frame):
    """The source's ratings in the same form."""
    table = frame[["userId", "movieId", "rating"]].sort_values(["userId", "movieId"])
    return table.reset_index(drop=True)


def sources(frame, folder):
    """The same ratings in every form that can be converted."""
    import dask.dataframe as dd
    import pyarrow as pa
    import pyarrow.parquet

    half = len(frame) // 2
    frame.to_csv(folder / "all.csv", index=False)
    with gzip.open(folder / "all.csv.gz", "wt") as file:
        frame.to_csv(file, index=False)
    frame[:half].to_csv(folder / "part-0.csv", index=False)
    frame[half:].to_csv(folder / "part-1.csv", index=False)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pyarrow.parquet.write_table(table, folder / "all.parquet")
    return {
        "csv": folder / "all.csv", "gzip": folder / "all.csv.gz", "glob": folder / "part-*.csv",
        "list": [folder / "part-0.csv", folder / "part-1.csv"], "parquet": folder / "all.parquet",
        "table": table, "pandas": frame, "dask": dd.from_pandas(frame, npartitions=3),
        "arrays": tuple(frame[name].to_numpy() for name in frame),
    }  # fmt: skip


def test_every_source_gives_the_same_ratings(frame, tmp_path):
    """From files, tables, frames and arrays come the same ratings, in both walks."""
    for name, source in sources(frame, tmp_path).items():
        ratings = convert_ratings(source, tmp_path / f"{name}.zarr", timestamp="time", grid=(3, 4))
        for walk in ("user", "item"):
            pd.testing.assert_frame_equal(flat(ratings, walk), expected(frame))
        facts = ratings.facts
        assert (facts["ratings"], facts["least"], facts["largest"]) == (1200, 0.5, 5.0)
        assert facts["sum"] == frame.rating.sum()
        assert facts["times"] == [frame.time.min(), frame.time.max()]


def test_the_store_does_not_depend_on_the_order_of_rows(frame, tmp_path):
    """Shuffled rows give the same blocks, and the same split."""
    a = convert_ratings(frame, tmp_path / "a.zarr", timestamp="time")
    shuffled = frame.sample(frac=1, random_state=1)
    b = convert_ratings(shuffled, tmp_path / "b.zarr", timestamp="time")
    assert a.grid == b.grid
    for by in ("random", "time"):
        parts = [r.split(0.3, by=by, random_state=0)[1] for r in (a, b)]
        pd.testing.assert_frame_equal(*map(flat, parts))


def test_small_batches_and_little_memory_change_nothing(frame, tmp_path, monkeypatch):
    """The shuffle goes through scratch files batch by batch, to the same store."""
    import daskdml.io.rating_batches

    whole = convert_ratings(frame, tmp_path / "a.zarr", grid=(5, 5))
    monkeypatch.setattr(daskdml.io.rating_batches, "ROWS", 17)
    cut = convert_ratings(frame, tmp_path / "b.zarr", grid=(5, 5), memory_limit="200MB")
    for i, j in np.ndindex(5, 5):
        a, b = whole.read("item", i, j)[0], cut.read("item", i, j)[0]
        assert np.array_equal(a.indices, b.indices) and np.array_equal(a.values, b.values)
    assert whole.nnz.max() < 3 * whole.nnz.mean()  # dealt so that blocks are balanced


def test_splits_part_the_ratings(frame, tmp_path):
    """Training and test ratings are all ratings, none in both, chosen as asked for."""
    ratings = convert_ratings(frame, tmp_path / "a.zarr", timestamp="time")
    for by in ("random", "time", "leave-last"):
        train, test = ratings.split(0.25, by=by, random_state=0)
        both = pd.concat([flat(train), flat(test)]).sort_values(["userId", "movieId"])
        pd.testing.assert_frame_equal(both.reset_index(drop=True), expected(frame))
        assert train.count() + test.count() == 1200
        if by == "random":
            assert abs(test.count() - 300) < 60
            again = ratings.split(0.25, random_state=0)[1]
            pd.testing.assert_frame_equal(flat(again), flat(test))
        if by == "time":
            cut = frame.time.sort_values().to_numpy()[900 - 1]
            assert test.count() == (frame.time > cut).sum()
        if by == "leave-last":
            last = frame.sort_values("time").groupby("userId").time.max()
            found = flat(test).merge(frame, on=["userId", "movieId"])
            assert (found.time.to_numpy() == last[found.userId].to_numpy()).all()
            assert len(found) == frame.userId.nunique()


def test_a_split_of_a_split(frame, tmp_path):
    """A training part can be split again, with the same seed, and nothing gets lost."""
    ratings = convert_ratings(frame, tmp_path / "a.zarr", timestamp="time")
    train, _ = ratings.split(0.3, random_state=5)
    first, second = train.split(0.3, random_state=5)
    assert first.count() + second.count() == train.count() and second.count() > 100
    early, late = train.split(0.5, by="time")
    assert abs(early.count() - late.count()) < 40
    assert np.isclose(train.mean(), flat(train).rating.mean())


def test_duplicates(tmp_path):
    """A repeated pair is refused by name, or merged as asked for; times decide by default."""
    data = pd.DataFrame({"userId": [7, 7, 8], "movieId": [1, 1, 1], "rating": [2.0, 4.0, 5.0],
                         "time": [20, 10, 5]})  # fmt: skip
    with pytest.raises(ValueError, match="userId 7 has rated movieId 1 more than once"):
        convert_ratings(data, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    for how, rating in (("last", 4.0), ("mean", 3.0)):
        found = convert_ratings(data, tmp_path / f"{how}.zarr", duplicates=how)
        assert flat(found).rating.tolist() == [rating, 5.0]
    timed = convert_ratings(data, tmp_path / "timed.zarr", timestamp="time")
    assert flat(timed).rating.tolist() == [2.0, 5.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": [1.0, np.nan, 3.0]}, "rating is nan in row 1"),
        ({"userId": [1.0, np.nan, 2.0]}, "userId is missing in row 1"),
        ({"movieId": ["a", "", "b"]}, "movieId is missing in row 1"),
        ({"movieId": ["a", None, "b"]}, "movieId is missing in row 1"),
        ({"rating": ["x", "y", "z"]}, "rating of the DataFrame are no numbers"),
    ],
)
def test_what_is_missing_is_named(change, message, tmp_path):
    """A missing id or rating is refused with its column and row."""
    data = pd.DataFrame({"userId": [1, 2, 3], "movieId": ["a", "b", "c"], "rating": [1.0, 2, 3]})
    with pytest.raises(ValueError, match=message):
        convert_ratings(data.assign(**change), tmp_path / "a.zarr")
    assert os.listdir(tmp_path) == []


def test_bad_files(tmp_path):
    """Missing files, columns and values are told with what to do about them."""
    (tmp_path / "gap.csv").write_text("userId,movieId,rating\n1,2,3\n1,,4\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("userId,movieId,rating\n")
    (tmp_path / "torn.csv").write_text("userId,movieId,rating\n1,2,3\n1,2\n")
    for name, message in {
        "gap.csv": r"movieId is missing in row 1 \(line 3\)",
        "empty.csv": "is empty",
        "header.csv": "no rows",
        "torn.csv": "cannot be read after row 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            convert_ratings(tmp_path / name, tmp_path / "out.zarr")
    with pytest.raises(ValueError, match="name the columns with user="):
        convert_ratings(tmp_path / "gap.csv", tmp_path / "out.zarr", user="who")
    for missing in ("none.csv", "none-*.csv"):
        with pytest.raises(FileNotFoundError, match="check the"):
            convert_ratings(tmp_path / missing, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_bad_arguments(frame, tmp_path):
    """A grid finer than users, a limit too small, and nonsense are refused before writing."""
    url = tmp_path / "a.zarr"
    with pytest.raises(ValueError, match="finer than 60 users and 45 items"):
        convert_ratings(frame, url, grid=(4, 46))
    with pytest.raises(ValueError, match="two numbers of blocks"):
        convert_ratings(frame, url, grid=(0, 1))
    with pytest.raises(ValueError, match="'last', 'mean', 'error'"):
        convert_ratings(frame, url, duplicates="first")
    with pytest.raises(ValueError, match="float32 or float64"):
        convert_ratings(frame, url, dtype="i4")
    with pytest.raises(MemoryError, match="raise memory_limit"):
        convert_ratings(frame, url, memory_limit="10MB")
    with pytest.raises(TypeError, match="tuple"):
        convert_ratings({1: 2}, url)
    with pytest.raises(ValueError, match="equal lengths"):
        convert_ratings(([1, 2], [1], [1.0]), url)
    ratings = convert_ratings(frame, url)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert_ratings(frame, url)
    with pytest.raises(ValueError, match="timestamp="):
        ratings.split(by="time")
    with pytest.raises(ValueError, match="'random'"):
        ratings.split(by="rows")
    with pytest.raises(ValueError, match="no share"):
        ratings.split(1.5)
    zarr.open_group(tmp_path / "none.zarr", mode="w")
    with pytest.raises(ValueError, match="convert_ratings"):
        open_ratings(tmp_path / "none.zarr")
    with pytest.raises(ValueError, match="X"):
        open_dataset(url)


def test_a_truncated_store_is_named(frame, tmp_path):
    """A block that is missing or cut short is an error that names it, never wrong ratings."""
    ratings = convert_ratings(frame, tmp_path / "a.zarr", grid=(2, 2))
    chunk = tmp_path / "a.zarr" / "by_user" / "value" / "c" / "1" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChunkError, match="by_user/value/c/1/0"):
        ratings.read("user", 0, 1)
    chunk.unlink()
    with pytest.raises(ChunkError, match="missing"):
        ratings.read("user", 0, 1)


def test_strings_and_integers_do_not_mix(tmp_path):
    """A column that changes its kind of ids is refused."""
    for name, user in (("a", "1"), ("b", "ann")):
        (tmp_path / f"{name}.csv").write_text(f"userId,movieId,rating\n{user},1,2.5\n")
    mixed = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(ValueError, match="integers in some rows and strings in others"):
        convert_ratings(mixed, tmp_path / "c.zarr")


def test_in_memory_ratings(frame):
    """A sparse matrix or arrays become ratings in this process's memory; float64 stays."""
    matrix = sp.random(30, 20, 0.3, format="csr", random_state=0, dtype=np.float32)
    ratings = ratings_in_memory(matrix)
    coo = matrix.tocoo()
    triple = ratings_in_memory((coo.row, coo.col, coo.data.astype(float)))
    assert ratings.in_memory and ratings.dtype == np.float32 and triple.dtype == np.float64
    for found in (ratings, triple):
        table = flat(found)
        dense = np.zeros(matrix.shape)
        dense[table.userId, table.movieId] = table.rating
        assert np.allclose(dense, matrix.toarray())


@pytest.mark.s3
def test_ratings_on_s3(frame, s3_server):
    """Ratings are written to and read from an object store, from files of any kind there."""
    url, options = s3_server.url("ratings.zarr"), s3_server.storage_options
    frame.to_csv(s3_server.url("r.csv.gz"), index=False, storage_options=options)
    frame.to_parquet(s3_server.url("r.parquet"), storage_options=options)
    for source in (frame, s3_server.url("r.csv.gz"), s3_server.url("r.parquet")):
        convert_ratings(
            source, url, grid=(2, 3), overwrite=True,
            storage_options=options, source_options=options,
        )  # fmt: skip
        pd.testing.assert_frame_equal(flat(open_ratings(url, options)), expected(frame))
