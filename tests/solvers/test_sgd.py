"""Local SGD does what its formula says, with the same bits wherever and however it runs."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.preprocessing import StandardScaler

import daskdml.engine.run
from daskdml import Engine, LogisticRegression, SGDClassifier, SGDRegressor
from daskdml.engine.graphs import Group
from daskdml.engine.run import Inline, Threads
from daskdml.events import BlockEnd
from daskdml.io import write_dataset
from daskdml.kernels.losses import LOSSES, Logistic
from daskdml.kernels.sgd import SGDConfig, sgd_block
from daskdml.solvers.replicas import hold_out_groups, hold_out_rows, row_order, schedule

CHUNK = 50


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """A group for each chunk."""
    monkeypatch.setattr(daskdml.engine.run, "GROUP_BYTES", 1)


def make_data(n=550, d=5, n_classes=3, seed=0):
    """Rows that need eleven groups of 50, and class indices."""
    rng = np.random.default_rng(seed)
    X = StandardScaler().fit_transform(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)))
    y = (X @ rng.normal(size=(d, n_classes)) + rng.gumbel(size=(n, n_classes))).argmax(axis=1)
    return X, y


@pytest.fixture
def dataset(tmp_path):
    """Three classes in eleven groups."""
    return write_dataset(f"{tmp_path}/three.zarr", *make_data(), chunks=CHUNK)


def classifier(**options):
    """Three epochs with everything that a state can hold."""
    return SGDClassifier(
        loss="log_loss", penalty="elasticnet", alpha=0.01, average=20, max_iter=3, tol=None,
        random_state=7, **options,
    )  # fmt: skip


def bits(model):
    """Bytes of what a fit found."""
    return model.coef_.tobytes(), model.intercept_.tobytes(), model.t_


def by_hand(X, y, config, n_replicas, s, seed, epochs):
    """Coefficients and intercepts by the formula, in plain NumPy: no average, no L1."""
    groups = [Group(i, a, a + CHUNK) for i, a in enumerate(range(0, len(X), CHUNK))]
    h, states, blank = 1 / (s + 1), [], config.init(X.shape[1])
    w = np.zeros((config.n_models, X.shape[1] + 1))
    states = [(w, 1.0)] * (s + 1)
    for epoch in range(epochs):
        for row in schedule(groups, n_replicas, seed, epoch, shuffle=True):
            base, t = states[-1 - s]
            state, clock = states[-1]
            moves, rows = np.zeros_like(w), sum(g.rows for g in row if g is not None)
            ticks = 0.0
            for group in row:
                if group is None:
                    continue
                at = replace(blank, vectors=base[:, :-1], intercept=base[:, -1], t=t)
                block = slice(group.start, group.stop)
                order = row_order(group.rows, group, seed, epoch)
                local = sgd_block(at, config, X[block], y[block], order=order)
                after = np.column_stack([local.coef, local.intercept])
                moves += group.rows / rows * (after - base)
                ticks += group.rows / rows * (local.t - t)
            states.append((state + h * moves, clock + round(h * ticks)))
    return states[-1]


@pytest.mark.parametrize("s", [0, 1, 3])
@pytest.mark.parametrize("n_replicas", [1, 2, 3])
def test_state_is_the_formula(dataset, n_replicas, s):
    """``state[t] = state[t-1] + mean_k(local(state[t-1-s], block_k) - state[t-1-s]) / (s + 1)``."""
    X, y = make_data()
    config = SGDConfig(Logistic(), alpha=0.01, n_models=3)
    clf = SGDClassifier(
        loss="log_loss", alpha=0.01, max_iter=3, tol=None, random_state=7,
        n_replicas=n_replicas, staleness=s,
    ).fit(dataset)  # fmt: skip
    seed = int(np.random.RandomState(7).randint(np.iinfo(np.int32).max))
    expected, t = by_hand(X, y, config, n_replicas, s, seed, epochs=3)
    found = np.column_stack([clf.coef_, clf.intercept_])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert clf.t_ == t
    others = {0, 1, 3} - {s}
    for other in others:
        wrong, _ = by_hand(X, y, config, n_replicas, other, seed, epochs=3)
        assert np.abs(found - wrong).max() > 1e-3


@pytest.mark.parametrize("s", [0, 1, 3])
@pytest.mark.parametrize("n_replicas", [2, 3])
def test_same_bits_inline_and_on_threads(dataset, n_replicas, s):
    """For a given number of replicas, the runner does not matter."""
    found = set()
    for runner in (Inline(), Threads(1), Threads(3)):
        with Engine(client=runner):
            found.add(bits(classifier(n_replicas=n_replicas, staleness=s).fit(dataset)))
    assert len(found) == 1


@pytest.fixture(scope="module")
def clusters():
    """Clients of 1, 2 and 4 worker processes, started when asked for."""
    from distributed import Client, LocalCluster

    opened = {}

    def get(n):
        if n not in opened:
            cluster = LocalCluster(
                n_workers=n, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
                memory_limit=0,
            )  # fmt: skip
            opened[n] = (Client(cluster, set_as_default=False), cluster)
        return opened[n][0]

    yield get
    for client, cluster in opened.values():
        client.close()
        cluster.close()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 4])
def test_same_bits_on_worker_processes(dataset, clusters, n_workers):
    """One and four processes give the bits of a single thread."""
    for n_replicas, s in [(2, 3), (3, 0), (3, 1)]:
        with Engine(client=Inline()):
            expected = bits(classifier(n_replicas=n_replicas, staleness=s).fit(dataset))
        with Engine(client=clusters(n_workers)):
            found = classifier(n_replicas=n_replicas, staleness=s).fit(dataset)
        assert bits(found) == expected
    with Engine(client=clusters(n_workers)):
        assert SGDClassifier(max_iter=1, tol=None).fit(dataset).n_replicas_ == n_workers


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("s", [0, 3])
def test_same_bits_after_a_worker_was_killed(dataset, s):
    """A worker that dies mid-fit costs its segment, and no bit."""
    from distributed import Client, LocalCluster

    with Engine(client=Inline()):
        expected = bits(classifier(n_replicas=3, staleness=s).fit(dataset))
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, memory_limit=0
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        pids, heard = client.run(os.getpid), []

        def kill(event):
            if isinstance(event, BlockEnd) and event.label.endswith("-epoch"):
                heard.append(event)
                if len(heard) == 7:
                    os.kill(pids[event.worker], signal.SIGKILL)

        with Engine(client=client, callbacks=[kill]):
            assert bits(classifier(n_replicas=3, staleness=s).fit(dataset)) == expected
        assert len(heard) >= 33


def test_seed_and_shuffle_decide_the_bits(dataset):
    """Another seed, another order; without shuffling the seed is of no account."""
    kinds = [{"random_state": s, "shuffle": h} for s in (1, 2) for h in (True, False)]
    a, plain_a, b, plain_b = (bits(classifier().set_params(**k).fit(dataset)) for k in kinds)
    assert a != b and plain_a == plain_b != a


@pytest.mark.parametrize("n_groups, n_replicas", [(11, 3), (4, 4), (3, 5), (1, 1)])
def test_schedule_visits_every_group_once(n_groups, n_replicas):
    """Whatever is left over, and a replica keeps its own groups in every epoch."""
    groups = [Group(i, i, i + 1) for i in range(n_groups)]
    seen = []
    for epoch in range(3):
        rows = schedule(groups, n_replicas, 0, epoch, shuffle=True)
        assert all(len(row) == n_replicas for row in rows)
        for row in rows:
            assert all(g is None or g.index % n_replicas == k for k, g in enumerate(row))
        seen.append([g.index for row in rows for g in row if g is not None])
        assert sorted(seen[-1]) == list(range(n_groups))
    assert n_groups < 11 or len({tuple(s) for s in seen}) == 3


def test_each_row_once_per_epoch(dataset):
    """Rows read are epochs times rows; the objective is their mean."""
    clf = classifier(n_replicas=3).fit(dataset)
    assert clf.n_passes_ == pytest.approx(3.0)
    X, _ = make_data()
    alone = classifier(n_replicas=1).fit(dataset)
    assert alone.t_ == 3 * len(X) + 1
    assert clf.history_[-1].objective == pytest.approx(alone.history_[-1].objective, rel=0.1)


@pytest.mark.parametrize("many", [True, False])
def test_early_stopping_never_trains_on_held_out_rows(tmp_path, many):
    """NaN in every held-out row harms no coefficient: whole groups, or rows of every block."""
    X, y = make_data(n=550 if many else 250)
    seed = int(np.random.RandomState(7).randint(np.iinfo(np.int32).max))
    groups = [Group(i, a, a + CHUNK) for i, a in enumerate(range(0, len(X), CHUNK))]
    held = np.zeros(len(X), dtype=bool)
    whole = hold_out_groups(groups, 0.2, seed)
    assert bool(whole) == many
    for group in whole:
        held[group.start : group.stop] = True
    if not whole:
        held[:] = np.concatenate([hold_out_rows(CHUNK, 0.2, seed)] * len(groups))
    assert 0.1 < held.mean() < 0.3
    wild = X.copy()
    wild[held] = 1e3 * np.random.default_rng(0).normal(size=(held.sum(), 5))
    options = {"early_stopping": True, "validation_fraction": 0.2, "n_replicas": 2}
    fits = []
    for name, rows in (("a", X), ("b", wild)):
        ds = write_dataset(f"{tmp_path}/{name}.zarr", rows, y, chunks=CHUNK)
        fits.append(classifier(**options).set_params(tol=0.0, n_iter_no_change=100).fit(ds))
    assert bits(fits[0]) == bits(fits[1])
    labels = [r.label.split("-")[1] for r in fits[0].history_]
    assert labels == ["epoch", "score"] * 3


def test_early_stopping_stops_by_the_score(dataset):
    """A fit whose score does not improve ends after `n_iter_no_change` more epochs."""
    clf = SGDClassifier(early_stopping=True, random_state=0, n_iter_no_change=2, tol=0.5)
    assert 2 <= clf.fit(dataset).n_iter_ <= 5
    X, _ = make_data()
    model = SGDRegressor(early_stopping=True, random_state=0).fit(X, X[:, 0])
    assert model.n_iter_ < 1000 and model.score(X, X[:, 0]) > 0.9
    with warnings.catch_warnings(), pytest.raises(ValueError, match="leaves no rows"):
        warnings.simplefilter("ignore")
        SGDRegressor(early_stopping=True, validation_fraction=0.99).fit(X[:3], X[:3, 0])


def optimum(loss, X, y, s, decay, shrink):
    """The smallest objective that a patient smooth solver finds, by bounds split at zero."""
    n, d = X.shape

    def f(v):
        w, z = v[:d] - v[d : 2 * d], X @ (v[:d] - v[d : 2 * d]) + v[2 * d]
        slope = s * loss.slope(y, z) / n
        g = X.T @ slope + decay * w
        value = s @ loss.value(y, z) / n + 0.5 * decay * w @ w + shrink * v[: 2 * d].sum()
        return value, np.concatenate([g + shrink, shrink - g, [slope.sum()]])

    bounds = [(0, None)] * (2 * d) + [(None, None)]
    found = minimize(
        f, np.full(2 * d + 1, 0.1), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-12},
    )  # fmt: skip
    return found.fun


@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet", None])
@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(
    "loss", ["log_loss", "hinge", "modified_huber", "squared_hinge", "perceptron"]
)
def test_certificate_of_classifiers_is_a_bound(loss, alpha, penalty):
    """The gap is never below objective minus optimum, weights and class weights included."""
    X, y = make_data(n=200, n_classes=2)
    s = np.random.default_rng(1).uniform(0.1, 3.0, len(X))
    clf = SGDClassifier(
        loss=loss, alpha=alpha, penalty=penalty, certify=True, max_iter=20, tol=None,
        class_weight={0: 2.0, 1: 0.5}, random_state=0,
    ).fit(X, y, sample_weight=s)  # fmt: skip
    s = s * np.where(y == 0, 2.0, 0.5)
    decay = alpha * {"l2": 1.0, "elasticnet": 0.85}.get(penalty, 0.0)
    shrink = alpha * {"l1": 1.0, "elasticnet": 0.15}.get(penalty, 0.0)
    sign, w = 2.0 * y - 1.0, clf.coef_[0]
    value = LOSSES[loss].value(sign, clf.decision_function(X))
    f = s @ value / len(X) + 0.5 * decay * w @ w + shrink * np.abs(w).sum()
    c = clf.certificate_
    assert c.objective == pytest.approx(f, rel=1e-12, abs=1e-15)
    best = optimum(LOSSES[loss], X, sign, s, decay, shrink)
    assert c.rigorous and "duality gap" in c.method
    assert f - best <= c.gap <= f * (1 + 1e-9)


@pytest.mark.parametrize("penalty", ["l2", "l1", "elasticnet"])
@pytest.mark.parametrize(
    "loss", ["squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"]
)
def test_certificate_of_regressors_is_a_bound(loss, penalty):
    """The same for regression, and it tightens with the epochs."""
    X, _ = make_data(n=200)
    y, gaps = X @ np.arange(5.0) / 5 + np.random.default_rng(2).normal(size=200), []
    for epochs in (1, 100):
        model = SGDRegressor(
            loss, penalty=penalty, alpha=0.1, certify=True, max_iter=epochs, tol=None,
            random_state=0, average=epochs > 1 and 2000,
        ).fit(X, y)  # fmt: skip
        decay = 0.1 * {"l2": 1.0, "elasticnet": 0.85}.get(penalty, 0.0)
        shrink = 0.1 * {"l1": 1.0, "elasticnet": 0.15}.get(penalty, 0.0)
        best = optimum(LOSSES[loss], X, y, np.ones(200), decay, shrink)
        assert model.certificate_.objective - best <= model.certificate_.gap * (1 + 1e-6)
        gaps.append(model.certificate_.relative)
    assert gaps[1] < min(0.7 * gaps[0], 0.2)


def test_certificate_of_several_classes_is_the_sum(dataset):
    """One versus the rest: objectives and gaps of the problems add up."""
    X, y = make_data()
    clf = classifier(certify=True, n_replicas=2).fit(dataset)
    total = 0.0
    for k in range(3):
        z = X @ clf.coef_[k] + clf.intercept_[k]
        w = clf.coef_[k]
        total += Logistic().value(np.where(y == k, 1.0, -1.0), z).mean()
        total += 0.01 * (0.15 * np.abs(w).sum() + 0.425 * w @ w)
    assert clf.certificate_.objective == pytest.approx(total, rel=1e-12)
    assert 0 < clf.certificate_.gap < total


@pytest.mark.parametrize(
    "options",
    [{}, {"C": 1e-3}, {"class_weight": "balanced"}, {"fit_intercept": False}],
)
@pytest.mark.parametrize("walk", [{}, {"n_replicas": 3, "staleness": 2}])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic_regression_by_sgd_reaches_tol(tmp_path, n_classes, walk, options):
    """To the certified tolerance, in the same bits on any runner."""
    X, y = make_data(n=2000, n_classes=n_classes)
    X = X * np.geomspace(1e-2, 1e2, 5) + 1.0
    ds = write_dataset(f"{tmp_path}/a.zarr", X, y, chunks=200)
    found = set()
    for runner in (Inline(), Threads(3)):
        with Engine(client=runner):
            clf = LogisticRegression(solver="sgd", random_state=0, **walk, **options).fit(ds)
        found.add(clf.coef_.tobytes())
    assert len(found) == 1
    best = LogisticRegression(tol=1e-10, **options).fit(X, y).certificate_.objective
    assert clf.certificate_.relative <= 1e-4
    assert clf.certificate_.objective - best <= 2e-4 * best
    assert clf.n_replicas_ == walk.get("n_replicas", 4)
    assert clf.history_[0].label == "logistic-epoch"


def test_warm_start_is_near_the_sample_optimum(tmp_path):
    """The first pass of L-BFGS finds f within a few per cent of its optimum."""
    X, y = make_data(n=30_000, n_classes=4, d=20)
    ds = write_dataset(f"{tmp_path}/a.zarr", X, y, chunks=3000)
    clf = LogisticRegression(solver="lbfgs", tol=1e-8).fit(ds)
    values = [r.objective for r in clf.history_ if r.objective is not None]
    assert values[0] < 1.05 * values[-1]
    assert clf.history_[0].label == "logistic-warmup"
