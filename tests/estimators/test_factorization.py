"""MatrixFactorization from ratings to recommendations, in terms of the users' own ids."""

import pickle

import fsspec
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from sklearn.base import clone

from daskdml import Engine, MatrixFactorization
from daskdml.io import convert_ratings, open_ratings


@pytest.fixture(scope="module")
def data():
    """Ratings of a model of rank 3 with biases, little noise, ids with gaps and as strings."""
    rng = np.random.default_rng(0)
    U, V = rng.standard_normal((2, 90, 3))
    full = 3 + (U @ V.T) / 3 + rng.standard_normal((90, 1)) / 2 + rng.standard_normal(90) / 2
    users, items = np.nonzero(rng.random((90, 90)) < 0.5)
    r = full[users, items] + 0.1 * rng.standard_normal(len(users))
    names = np.array([f"film {n:03d}" for n in range(90)])
    return users * 11 + 5, names[items], r


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    """The same, in a store, with times."""
    times = np.random.default_rng(1).integers(0, 10**6, len(data[0]))
    return convert_ratings((*data, times), tmp_path_factory.mktemp("mf") / "r.zarr",
                           timestamp="time", grid=(3, 4))  # fmt: skip


@pytest.fixture(scope="module")
def fitted(stored):
    """A model of the stored ratings."""
    return MatrixFactorization(5, reg=0.02, random_state=0).fit(stored)


def test_it_finds_a_model_of_low_rank(data):
    """On ratings of a rank-3 model, held-out errors come near the noise; both solvers."""
    users, items, r = data
    test = np.random.default_rng(0).random(len(r)) < 0.1
    train = tuple(a[~test] for a in data)
    for solver, more in (("als", {}), ("sgd", {"max_iter": 150, "learning_rate": 0.05})):
        model = MatrixFactorization(3, solver=solver, reg=0.01, random_state=0, **more).fit(train)
        error = model.predict((users[test], items[test])) - r[test]
        assert np.sqrt((error**2).mean()) < 0.2 < r.std() / 3
        assert model.score(tuple(a[test] for a in data)) == pytest.approx(
            np.sqrt((error**2).mean()), rel=1e-5
        )


def test_predictions_are_the_formula(fitted, data):
    """A prediction is mean + both biases + the product of the factors."""
    users, items, _ = data
    at = (
        np.searchsorted(fitted.user_ids_, users[:50]),
        np.searchsorted(fitted.item_ids_, items[:50]),
    )
    U, V = fitted.user_factors_[at[0]], fitted.item_factors_[at[1]]
    expected = (U * V).sum(1) + fitted.user_biases_[at[0]] + fitted.item_biases_[at[1]]
    pairs = np.array([users[:50].astype(object), items[:50]], dtype=object).T
    for X in ((users[:50], items[:50]), pairs):
        assert np.allclose(fitted.predict(X), expected + fitted.mean_, atol=1e-5)
    assert np.array_equal(fitted.user_ids_, np.unique(users))
    assert fitted.user_factors_.shape == (90, 5)


def test_unknown_ids(fitted):
    """Unknown ids are predicted from what is known, or named."""
    item = fitted.item_ids_[0]
    assert fitted.predict(([1], [item]))[0] == pytest.approx(
        fitted.mean_ + fitted.item_biases_[0], rel=1e-6
    )
    assert fitted.predict(([1], ["none"]))[0] == np.float32(fitted.mean_)
    with pytest.raises(KeyError, match="the user 1 has no ratings"):
        fitted.predict(([5, 1, 2], [item] * 3), unknown="error")
    with pytest.raises(KeyError, match="the item 'none' has no ratings"):
        fitted.predict(([5], ["none"]), unknown="error")
    with pytest.raises(KeyError, match="the user 1 has no"):
        fitted.recommend([5, 1])


def full_scores(model):
    """Predictions for all pairs, in the order of the ids."""
    scores = model.user_factors_ @ model.item_factors_.T + model.mean_
    return scores + model.user_biases_[:, None] + model.item_biases_


def test_recommendations_are_exact(fitted, data):
    """The lists are those of a sort of all predictions, without what was rated."""
    scores = full_scores(fitted)
    items, values = fitted.recommend(k=7, exclude_seen=False)
    assert np.array_equal(items, fitted.item_ids_[np.argsort(-scores, axis=1)[:, :7]])
    assert np.allclose(values, -np.sort(-scores, axis=1)[:, :7], atol=1e-5)
    rated = set(zip(data[0].tolist(), data[1].tolist(), strict=True))
    items, _ = fitted.recommend([5, 16], k=7)
    for user, row in zip([5, 16], items, strict=True):
        assert not any((user, item) in rated for item in row.tolist())
    at = np.searchsorted(fitted.user_ids_, 5)
    left = [n for n in np.argsort(-scores[at]) if (5, str(fitted.item_ids_[n])) not in rated][:7]
    assert np.array_equal(items[0], fitted.item_ids_[left])


def test_recommendations_stream_to_a_store(fitted, tmp_path):
    """With out=, the same lists lie in a Zarr group, and nothing is overwritten."""
    items, scores = fitted.recommend(k=4)
    group = fitted.recommend(k=4, out=tmp_path / "out.zarr")
    names = np.array(group.attrs["item_names"])
    assert np.array_equal(names[group["items"][:]], items)
    assert np.array_equal(group["scores"][:], scores)
    assert np.array_equal(group["users"][:], fitted.user_ids_)
    with pytest.raises(FileExistsError):
        fitted.recommend(k=4, out=tmp_path / "out.zarr")


@pytest.mark.cluster
def test_recommendations_on_a_cluster(fitted, two_workers, tmp_path):
    """Workers write the same lists."""
    items, _ = fitted.recommend(k=4)
    with Engine(two_workers):
        group = fitted.recommend(k=4, out=tmp_path / "out.zarr")
        errors = fitted.score(fitted._seen[0])
    assert np.array_equal(np.array(group.attrs["item_names"])[group["items"][:]], items)
    assert errors == fitted.score(fitted._seen[0])


def test_similar_items(fitted):
    """Similar items have the largest cosines, and are not the item itself."""
    V = fitted.item_factors_ / np.linalg.norm(fitted.item_factors_, axis=1)[:, None]
    cosines = V @ V[3]
    cosines[3] = -2
    items, values = fitted.similar_items([fitted.item_ids_[3]], k=5)
    assert np.array_equal(items[0], fitted.item_ids_[np.argsort(-cosines)[:5]])
    assert np.allclose(values[0], -np.sort(-cosines)[:5], atol=1e-6)


def test_k_larger_than_items(fitted):
    """More items than there are cannot be asked for."""
    for ask in (fitted.recommend, lambda k: fitted.evaluate(fitted._seen[0], k=k)):
        with pytest.raises(ValueError, match="there are 90 items"):
            ask(k=91)
    with pytest.raises(ValueError, match="89 other items"):
        fitted.similar_items(["film 000"], k=90)


def test_fold_in_solves_for_new_users(data):
    """A user folded in gets the factors of least squares given the items; others keep theirs."""
    model = MatrixFactorization(4, reg=0.05, reg_scaling="count", random_state=0).fit(data)
    before = model.user_factors_.copy()
    items, r = model.item_ids_[[2, 5, 7]], np.array([5.0, 1.0, 3.0])
    model.fold_in((["x"] * 3 if model.user_ids_.dtype.kind == "U" else [999_999] * 3, items, r))
    F = np.c_[model.item_factors_[[2, 5, 7]], np.ones(3)]
    t = r - model.mean_ - model.item_biases_[[2, 5, 7]]
    expected = np.linalg.solve(F.T @ F + 0.05 * 3 * np.eye(5), F.T @ t)
    assert model.user_ids_[-1] == 999_999
    assert np.allclose(model.user_factors_[-1], expected[:4], atol=1e-5)
    assert np.allclose(model.user_biases_[-1], expected[4], atol=1e-5)
    assert np.array_equal(model.user_factors_[:-1], before)
    assert not set(items) & set(model.recommend([999_999], k=80)[0][0].tolist())


def test_fold_in_of_implicit_feedback():
    """A newcomer with an old user's ratings comes near the factors that the fit gave that user."""
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((60, 40)) < 0.3)
    ratings = (users, items, np.ones(len(users)))
    model = MatrixFactorization(
        5, feedback="implicit", reg=0.1, max_iter=200, tol=1e-8, random_state=0
    )
    model.fit(ratings)
    own = users == 7
    model.fold_in((np.full(own.sum(), 1000), items[own], np.ones(own.sum())))
    new, old = model.user_factors_[-1], model.user_factors_[7]
    assert np.linalg.norm(new - old) < 0.02 * np.linalg.norm(old)


def test_warm_start_and_partial_fit(data):
    """A warm start goes on from the last factors; partial_fit adds ids and keeps the others."""
    short = MatrixFactorization(4, max_iter=3, tol=0, random_state=0).fit(data)
    warm = MatrixFactorization(4, max_iter=1, tol=0, random_state=0, warm_start=True)
    for _ in range(3):
        warm.fit(data)
    assert np.allclose(warm.item_factors_, short.item_factors_, atol=1e-4)
    for solver in ("als", "sgd"):
        model = MatrixFactorization(4, solver=solver, random_state=0).fit(data)
        kept = model.user_factors_[1:].copy()
        model.partial_fit(([5, 7], ["film 000", "a new one"], [4.0, 2.0]))
        assert len(model.user_ids_) == 91 and "a new one" in model.item_ids_
        assert np.array_equal(model.user_factors_[model.user_ids_ > 7], kept)
        assert "film 000" not in model.recommend([5], k=40)[0][0].tolist()


def test_early_stopping_keeps_the_best_sweep(data, tmp_path):
    """With noise and too weak a penalty, the fit ends early, with the factors of its best sweep."""
    users, items, r = data
    noisy = (users, items, r + np.random.default_rng(2).standard_normal(len(r)))
    ratings = convert_ratings(noisy, tmp_path / "noisy.zarr")
    model = MatrixFactorization(
        20, reg=1e-4, max_iter=60, early_stopping=True, validation_fraction=0.2, random_state=0
    )
    model.fit(ratings, factors_url=tmp_path / "f.zarr")
    scores = [record.validation for record in model.history_]
    assert model.n_iter_ < 60 and "no longer falls" in model.stop_reason_
    assert np.argmin(scores) == len(scores) - 1 - model.n_iter_no_change
    best = clone(model).set_params(max_iter=int(np.argmin(scores)) + 1).fit(ratings)
    order = np.argsort(model.user_ids_)
    assert np.array_equal(model.user_factors_.compute()[order], best.user_factors_)


def test_factors_in_a_store(stored, fitted, tmp_path):
    """With factors_url= the factors are Dask arrays over a store, and answer all the same."""
    model = clone(fitted).fit(stored, factors_url=tmp_path / "f.zarr")
    order = np.argsort(model.user_ids_)
    assert np.array_equal(model.user_factors_.compute()[order], fitted.user_factors_)
    users, items = stored.users.ids[:9], stored.items.ids[:9]
    assert np.array_equal(model.predict((users, items)), fitted.predict((users, items)))
    assert np.array_equal(model.recommend(users, 5)[0], fitted.recommend(users, 5)[0])
    assert np.array_equal(model.similar_items(items, 5)[0], fitted.similar_items(items, 5)[0])
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict((users, items)), fitted.predict((users, items)))
    with pytest.raises(FileExistsError, match="choose another URL"):
        clone(fitted).fit(stored, factors_url=tmp_path / "f.zarr")
    with pytest.raises(ValueError, match="warm_start=True"):
        model.partial_fit(([5], ["film 000"], [4.0]))


@pytest.mark.s3
def test_factors_on_s3(stored, fitted, s3_server):
    """Factors and lists on S3 are those of memory, and nothing else stays there."""
    options = s3_server.storage_options
    url, out = s3_server.url("factors.zarr"), s3_server.url("lists.zarr")
    there, here = (clone(fitted).set_params(max_iter=1, tol=0) for _ in range(2))
    there.fit(stored, factors_url=url, storage_options=options)
    here.fit(stored)
    for side in ("user", "item"):
        order = np.argsort(getattr(there, f"{side}_ids_"))
        found = getattr(there, f"{side}_factors_").compute()
        assert np.array_equal(found[order], getattr(here, f"{side}_factors_"))
    items, scores = here.recommend(k=4)
    there.recommend(here.user_ids_, k=4, out=out, storage_options=options)
    lists = zarr.open_group(out, mode="r", storage_options=options)
    assert np.array_equal(np.array(lists.attrs["item_names"])[lists["items"][:]], items)
    assert np.array_equal(lists["scores"][:], scores)
    assert np.array_equal(lists["users"][:], here.user_ids_)
    fs = fsspec.filesystem("s3", **options)
    fs.invalidate_cache()
    assert len(fs.ls(url)) == 3  # users, items and the group's metadata


def test_a_fit_that_fails_leaves_no_store(stored, tmp_path):
    """Where a fit breaks off, its factors are removed."""
    model = MatrixFactorization(4, solver="sgd", learning_rate=1e30, random_state=0)
    with pytest.raises(FloatingPointError):
        model.fit(stored, factors_url=tmp_path / "f.zarr")
    assert not any((tmp_path / "f.zarr").glob("**/*"))


def test_metrics_of_test_ratings(stored):
    """Errors and ranking metrics are those reckoned from predictions and sorted lists."""
    train, test = stored.split(by="leave-last")
    model = MatrixFactorization(3, reg=0.02, random_state=0).fit(train)
    found = model.evaluate(test, k=10)
    pairs = [[], [], []]
    for i, j in np.ndindex(test.grid):
        block, _ = test.read("user", i, j)
        u, v = test.pairs("user", i, j, block)
        for column, more in zip(
            pairs, (test.users.ids[u], test.items.ids[v], block.values), strict=True
        ):
            column.append(more)
    users, items, r = map(np.concatenate, pairs)
    error = model.predict((users, items)) - r
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    lists, _ = model.recommend(users, k=10)
    hit = np.array([item in row for item, row in zip(items, lists.tolist(), strict=True)])
    assert found["recall"] == pytest.approx(hit.mean())
    assert found["precision"] == pytest.approx(hit.mean() / 10)
    assert found["coverage"] == pytest.approx(len(np.unique(lists)) / 90)
    assert model.score(test, metric="recall") == found["recall"]
    strict = model.evaluate(test, k=10, threshold=r.max() + 1, kinds=("ranking",))
    assert strict["recall"] == 0


def test_implicit_feedback_ranks_held_out_items():
    """On clustered tastes, implicit feedback recommends what the user's group likes."""
    rng = np.random.default_rng(0)
    likes = np.kron(np.eye(4), np.ones((25, 20)))
    seen = rng.random(likes.shape) < 0.05 + 0.5 * likes
    test = (likes > 0) & ~seen
    model = MatrixFactorization(8, feedback="implicit", alpha=5.0, random_state=0)
    model.fit(sp.csr_matrix(seen.astype(np.float32)))
    found = model.evaluate(sp.csr_matrix(test.astype(np.float32)), k=5, kinds=("ranking",))
    assert found["precision"] > 0.8  # 0.09 of all pairs are held out
    assert model.mean_ == 0 and not model.user_biases_.any()


def test_floats_keep_their_width(data):
    """float64 ratings give float64 factors, float32 ones float32."""
    users, items, r = data
    assert MatrixFactorization(2).fit((users, items, r)).user_factors_.dtype == np.float64
    narrow = MatrixFactorization(2).fit((users, items, r.astype("f4")))
    assert narrow.user_factors_.dtype == np.float32


def test_urls_and_a_single_rating(stored, fitted):
    """A URL is opened; one rating is enough for a model that repeats it."""
    model = clone(fitted).fit(stored.url)
    assert np.array_equal(model.user_factors_, fitted.user_factors_)
    assert repr(open_ratings(stored.url)).startswith("<Ratings 4,")
    one = MatrixFactorization(2).fit(([3], ["a"], [4.5]))
    assert one.predict(([3], ["a"]))[0] == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("parameters", "X", "error", "message"),
    [
        ({"feedback": "implicit"}, ([1], [1], [-1.0]), ValueError, "negative ratings"),
        ({"nonnegative": True}, ([1], [1], [-1.0]), ValueError, "negative ratings"),
        ({"feedback": "implicit", "solver": "sgd"}, ([1], [1], [1.0]), ValueError, "use 'als'"),
        ({"staleness": 1}, ([1], [1], [1.0]), ValueError, "solver='sgd'"),
        ({"n_replicas": 3, "solver": "sgd"}, ([1, 2], [1, 2], [1.0, 2.0]), ValueError, "replicas"),
        ({}, ([1], [1], [np.nan]), ValueError, "ratings is nan in row 0"),
        ({}, ([1, 1], [2, 2], [1.0, 2.0]), ValueError, "more than once"),
        ({}, ([], [], []), ValueError, "no ratings"),
        ({}, sp.csr_matrix((3, 4)), ValueError, "no ratings"),
        ({"n_components": 0}, ([1], [1], [1.0]), ValueError, "n_components"),
        ({"solver": "svd"}, ([1], [1], [1.0]), ValueError, "solver"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_told(parameters, X, error, message):
    """Bad ratings and parameters that do not go together get a clear error."""
    with pytest.raises(error, match=message):
        MatrixFactorization(**parameters).fit(X)


def test_a_frame_is_told_where_to_go():
    """A DataFrame's columns have no fixed meaning: convert_ratings is named."""
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="convert_ratings"):
        MatrixFactorization().fit(pd.DataFrame({"userId": [1], "movieId": [1], "rating": [1.0]}))


def test_memory_that_is_too_small_is_refused(stored):
    """A promise that a block of factors does not fit is refused with the smallest that would."""
    with (
        Engine(memory_limit="100MB"),
        pytest.raises(MemoryError, match=r"raise memory_limit to \d+MB"),
    ):
        MatrixFactorization(4).fit(stored)
