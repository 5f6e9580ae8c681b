r"""Other recommenders behind one signature: they are fitted to coded ratings and predict pairs.

Nothing of daskdml is imported here, so that an interpreter with the peers alone can run it.
LIBMF's wheel is slow and its `predict` is wrong: name a build of your own in the environment
variable LIBMF_OBJ, made in its source folder by

    g++ -O3 -march=native -std=c++11 -fopenmp -DUSEAVX -DUSEOMP -fPIC -shared -o libmf_avx.so \
        src_cpp/libmf_interface.cpp src_cpp/mf.cpp

P and Q are multiplied here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Ratings = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Codes of users, codes of items (both from 0, without gaps), ratings."""

LOW, HIGH = 0.5, 5.0


@dataclass
class Factors:
    """A fitted model: mean + user bias + item bias + P[user] . Q[item], and what fitting took.

    A code of -1 stands for a user or an item that was not trained on; its bias is 0, and so is
    its product.
    """

    mean: float
    user_bias: np.ndarray
    item_bias: np.ndarray
    P: np.ndarray
    Q: np.ndarray
    seconds: float = 0.0

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Predictions of pairs, within the scale of the ratings."""
        out = self.mean + _known(self.user_bias, users) + _known(self.item_bias, items)
        both = (users >= 0) & (items >= 0)
        step = 1_000_000  # pairs at a time, so that the gathered rows stay small
        for start in range(0, len(out), step):
            part = slice(start, start + step)
            products = np.einsum("nk,nk->n", self.P[users[part]], self.Q[items[part]])
            out[part] += np.where(both[part], products, 0)
        return np.clip(out, LOW, HIGH)


def _known(bias: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.where(codes >= 0, bias[codes], 0.0)


def rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((predicted - true) ** 2)))


def shape_of(train: Ratings) -> tuple[int, int]:
    """Numbers of users and of items."""
    return int(train[0].max()) + 1, int(train[1].max()) + 1


def damped_biases(train: Ratings, user_reg: float, item_reg: float, sweeps: int = 10) -> Factors:
    """Global mean and ridge-damped biases, by alternating exact steps."""
    users, items, ratings = train
    n_users, n_items = shape_of(train)
    began = time.perf_counter()
    mean = float(ratings.mean(dtype=np.float64))
    rated, raters = np.bincount(users), np.bincount(items)
    user, item = np.zeros(n_users), np.zeros(n_items)
    for _ in range(sweeps):
        item = np.bincount(items, ratings - mean - user[users]) / (raters + item_reg)
        user = np.bincount(users, ratings - mean - item[items]) / (rated + user_reg)
    seconds = time.perf_counter() - began
    return Factors(mean, user, item, np.zeros((n_users, 1)), np.zeros((n_items, 1)), seconds)


def libmf(
    train: Ratings,
    k: int,
    reg: float,
    eta: float,
    sweeps: int,
    threads: int,
    residual: bool = False,
) -> Factors:
    """LIBMF's SGD with squared loss; `residual`: of what damped biases leave over.

    Its penalty is reg / 2 * (|p|^2 + |q|^2) for each rating, so a row's grows with its count.
    LIBMF has no biases of its own: unseen items get the mean rating alone.
    """
    from libmf import mf

    users, items, ratings = train
    n_users, n_items = shape_of(train)
    if residual:
        base = damped_biases(train, 5.0, 3.0)
        ratings = ratings - base.mean - base.user_bias[users] - base.item_bias[items]
    else:
        base = Factors(0, np.zeros(n_users), np.zeros(n_items), np.empty(0), np.empty(0))
        base.mean = float(ratings.mean(dtype=np.float64))
    X = np.column_stack([users, items, ratings]).astype(np.float32)
    engine = mf.MF(
        k=k, nr_threads=threads, nr_bins=max(20, 2 * threads + 4), nr_iters=sweeps, eta=eta,
        lambda_p2=reg, lambda_q2=reg, lambda_p1=0.0, lambda_q1=0.0, quiet=True,
    )  # fmt: skip
    began = time.perf_counter()
    engine.fit(X)
    seconds = time.perf_counter() - began
    P, Q = engine.p_factors().copy(), engine.q_factors().copy()
    if not residual:  # the products are whole ratings: the mean is for unseen items alone
        return _WholeRatings(base.mean, base.user_bias, base.item_bias, P, Q, seconds)
    return Factors(base.mean, base.user_bias, base.item_bias, P, Q, seconds + base.seconds)


class _WholeRatings(Factors):
    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        both = (users >= 0) & (items >= 0)
        mean, self.mean = self.mean, 0.0
        try:
            return np.where(both, super().predict(users, items), mean)
        finally:
            self.mean = mean


def cmfrec(
    train: Ratings, k: int, reg: float | tuple[float, float], sweeps: int, threads: int,
    scale: bool, cg: bool = True, seed: int = 1, extra: dict[str, Any] | None = None,
) -> Factors:  # fmt: skip
    """cmfrec's explicit ALS with biases; `reg`: of biases and factors, or one for both.

    `scale`: its scale_lam, a row's penalty times its count. `cg`: conjugate gradients, and not
    Cholesky. The mean is subtracted. Unseen items get the mean and the user's bias.
    """
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    users, items, ratings = train
    both = reg if isinstance(reg, (tuple, list)) else (reg, reg)
    lam = np.array([both[0]] * 2 + [both[1]] * 4, dtype=np.float64)
    model = CMF(
        k=k, lambda_=lam, method="als", use_cg=cg, niter=sweeps, scale_lam=scale, use_float=True,
        finalize_chol=False, precompute_for_predictions=False, nthreads=threads, verbose=False,
        random_state=seed, **(extra or {}),
    )  # fmt: skip
    X = coo_matrix((ratings.astype(np.float32), (users, items)), shape=shape_of(train))
    began = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - began
    return Factors(
        float(model.glob_mean_), model.user_bias_, model.item_bias_, model.A_, model.B_, seconds
    )


def spark(train: Ratings, k: int, reg: float, sweeps: int, threads: int, folder: Path) -> Factors:
    """Spark MLlib's explicit ALS, whose penalty counts by ratings; the mean is subtracted.

    The ratings lie in Parquet files in `folder`, sixteen of them, before the clock starts.
    """
    import pyarrow as pa
    from pyarrow import parquet
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    users, items, ratings = train
    mean = float(ratings.mean(dtype=np.float64))
    columns = {"user": users, "item": items, "rating": (ratings - mean).astype(np.float32)}
    files = np.array_split(np.arange(len(users)), 16)
    for n, rows in enumerate(files):
        table = pa.table({name: column[rows] for name, column in columns.items()})
        parquet.write_table(table, folder / f"part-{n:02d}.parquet")
    session = (
        SparkSession.builder.master(f"local[{threads}]")
        .config("spark.driver.memory", "10g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .getOrCreate()
    )
    try:
        session.range(10).count()  # the engine has started
        solver = ALS(
            rank=k, maxIter=sweeps, regParam=reg, userCol="user", itemCol="item",
            ratingCol="rating", seed=0,
        )  # fmt: skip
        began = time.perf_counter()
        model = solver.fit(session.read.parquet(str(folder)))
        seconds = time.perf_counter() - began
        sides = []
        for found, n in zip((model.userFactors, model.itemFactors), shape_of(train), strict=True):
            frame = found.toPandas()
            rows = np.zeros((n, k), np.float32)
            rows[frame["id"].to_numpy()] = np.stack(frame["features"].to_list())
            sides.append(rows)
    finally:
        session.stop()
    nothing = [np.zeros(len(rows), np.float32) for rows in sides]
    return Factors(mean, nothing[0], nothing[1], sides[0], sides[1], seconds)


def implicit(
    train: Ratings, k: int, reg: float, alpha: float, sweeps: int, threads: int, cg: bool = True,
    seed: int = 0, after: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[float]]:  # fmt: skip
    """implicit's ALS with confidence 1 + alpha * rating; factors, and seconds of each sweep.

    `after` is given the factors after each sweep; its own time is not counted.
    """
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    users, items, ratings = train
    # What it is given is the whole confidence of a positive cell; that of the others is 1.
    C = csr_matrix(((1 + alpha * ratings).astype(np.float32), (users, items)), shape_of(train))
    with threadpool_limits(1, "blas"):  # it warns of more: its own threads are enough
        model = AlternatingLeastSquares(
            factors=k, regularization=reg, alpha=1.0, iterations=sweeps, use_cg=cg,
            num_threads=threads, random_state=seed,
        )  # fmt: skip
    seconds: list[float] = []

    def tell(_sweep: int, took: float, _loss: float | None) -> None:
        seconds.append(took)
        if after is not None:
            after(model.user_factors, model.item_factors)

    with threadpool_limits(1, "blas"):
        model.fit(C, show_progress=False, callback=tell)
    return model.user_factors, model.item_factors, seconds


def cmfrec_implicit(
    train: Ratings, k: int, reg: float, alpha: float, sweeps: int, threads: int, cg: bool = True,
    seed: int = 1,
) -> tuple[np.ndarray, np.ndarray, list[float]]:  # fmt: skip
    """cmfrec's ALS for implicit feedback, confidence 1 + alpha * rating."""
    from cmfrec import CMF_implicit
    from scipy.sparse import coo_matrix

    users, items, ratings = train
    model = CMF_implicit(
        k=k, lambda_=reg, alpha=1.0, use_cg=cg, niter=sweeps, nthreads=threads, verbose=False,
        precompute_for_predictions=False, random_state=seed,
    )  # fmt: skip
    X = coo_matrix(((alpha * ratings).astype(np.float32), (users, items)), shape=shape_of(train))
    began = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - began
    return model.A_, model.B_, [seconds / sweeps] * sweeps


def implicit_objective(
    train: Ratings, P: np.ndarray, Q: np.ndarray, reg: float, alpha: float
) -> float:
    """Sum over all cells of c (t - p.q)^2, plus reg (|P|^2 + |Q|^2); exact, in float64.

    Cells with a rating r have t = 1 and c = 1 + alpha r, the others t = 0 and c = 1: the latter's
    squares are those of all cells, <P'P, Q'Q>, less those of the rated ones.
    """
    users, items, ratings = train
    P64, Q64 = P.astype(np.float64), Q.astype(np.float64)
    total = float(np.sum((P64.T @ P64) * (Q64.T @ Q64)))
    step = 1_000_000
    for start in range(0, len(users), step):
        part = slice(start, start + step)
        z = np.einsum("nk,nk->n", P[users[part]], Q[items[part]], dtype=np.float64)
        c = 1 + alpha * ratings[part].astype(np.float64)
        total += float(np.sum(c * (1 - z) ** 2 - z**2))
    return total + reg * (float(np.sum(P64**2)) + float(np.sum(Q64**2)))
