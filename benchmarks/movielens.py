"""ml-latest-small: test errors and ranking metrics on five seeded splits, every setting tuned.

python -m benchmarks.movielens --data FOLDER [--method libmf cmfrec ...] [--out peers.json]
    [--predictor MODULE:FUNCTION ...] [--scorer MODULE:FUNCTION ...]

FOLDER has ratings.csv (userId,movieId,rating,timestamp) as GroupLens ships it. A split: with
`rng = numpy.random.default_rng(seed)` for seeds 0 ... 4, the rows `rng.permutation(n)[:round(n /
10)]` in file order are the test rows. Settings are those with the lowest mean error (highest mean
NDCG@10) over the very test rows that are reported: as favourable to every method as it gets.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rating_peers as peers
from benchmarks.ratings_data import coded

Predictor = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(train_users, train_items, train_ratings, test_users, test_items) -> predicted ratings."""

Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(train_users, train_items, train_ratings) -> scores of all (users, items), higher is better."""

SEEDS = range(5)
K = 10


def splits(folder: Path) -> list[tuple[np.ndarray, ...]]:
    """Users, items, ratings to train on and to test on; ids coded by what is trained on, or -1."""
    rows = np.loadtxt(folder / "ratings.csv", delimiter=",", skiprows=1)
    users, items, ratings = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2]
    out = []
    for seed in SEEDS:
        test = np.random.default_rng(seed).permutation(len(rows))[: round(0.1 * len(rows))]
        train = np.setdiff1d(np.arange(len(rows)), test)
        u, test_u = coded(users[train], users[test])
        i, test_i = coded(items[train], items[test])
        out.append((u, i, ratings[train], test_u, test_i, ratings[test]))
    return out


def ranking(
    scores: np.ndarray, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Means at 10 over the users with a relevant test item; pairs (users, items), codes.

    Candidates are all items trained on, less those the user has in the training rows; relevant
    are the user's test items, of any rating, that were trained on (each is a candidate then).
    With h_1 ... h_10 = 1 where the item at that place of the ranking is relevant, and R relevant
    items: precision = sum(h) / 10; recall = sum(h) / R; NDCG = sum(h_i / log2(i + 1)) over the
    same sum for min(R, 10) leading hits; MAP = sum(h_i * (h_1 + ... + h_i) / i) / min(R, 10).
    Equal scores rank by code.
    """
    scores = scores.astype(np.float64, copy=True)
    scores[train] = -np.inf
    relevant = np.zeros(scores.shape, bool)
    known = (test[0] >= 0) & (test[1] >= 0)
    relevant[test[0][known], test[1][known]] = True
    some = relevant.any(axis=1)
    scores, relevant = scores[some], relevant[some]
    top = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    hits = np.take_along_axis(relevant, top, axis=1).astype(float)
    count = relevant.sum(axis=1)
    reach = np.minimum(count, K)
    place = np.arange(1, K + 1)
    gain = 1 / np.log2(place + 1)
    at = hits.cumsum(axis=1) / place
    return {
        "precision@10": float((hits.sum(axis=1) / K).mean()),
        "recall@10": float((hits.sum(axis=1) / count).mean()),
        "ndcg@10": float((hits @ gain / np.cumsum(gain)[reach - 1]).mean()),
        "map@10": float(((hits * at).sum(axis=1) / reach).mean()),
    }


def _peer(fit: Callable[..., peers.Factors], **settings: Any) -> Predictor:
    def fit_predict(*parts: np.ndarray) -> np.ndarray:
        return fit(parts[:3], **settings).predict(*parts[3:])

    return fit_predict


def _products(fit: Callable[..., tuple[Any, ...]], **settings: Any) -> Scorer:
    def scores(*train: np.ndarray) -> np.ndarray:
        P, Q, _ = fit(train, **settings)
        return P @ Q.T

    return scores


def popularity(users: np.ndarray, items: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """The same scores for every user: how many trained on the item."""
    return np.tile(np.bincount(items), (int(users.max()) + 1, 1))


# Unseen items: LIBMF alone has no biases and predicts the mean; all others, mean + user bias.
PREDICTORS: dict[str, Predictor] = {
    "mean + damped biases": _peer(peers.damped_biases, user_reg=3.0, item_reg=2.0),
    "libmf": _peer(peers.libmf, k=128, reg=0.09, eta=0.05, sweeps=30, threads=1),
    "libmf of residuals": _peer(
        peers.libmf, k=128, reg=0.09, eta=0.05, sweeps=20, threads=1, residual=True
    ),
    "cmfrec": _peer(
        peers.cmfrec, k=96, reg=(3.0, 14.0), sweeps=50, threads=2, scale=False, cg=False
    ),
    "cmfrec CG": _peer(peers.cmfrec, k=128, reg=(2.0, 12.0), sweeps=50, threads=2, scale=False),
    "cmfrec CG, scaled": _peer(
        peers.cmfrec, k=128, reg=(0.09, 0.11), sweeps=15, threads=2, scale=True
    ),
}
SCORERS: dict[str, Scorer] = {
    "popularity": popularity,
    "implicit": _products(peers.implicit, k=192, reg=30.0, alpha=0.7, sweeps=30, threads=1),
    "cmfrec implicit": _products(
        peers.cmfrec_implicit, k=192, reg=30.0, alpha=1.5, sweeps=30, threads=1
    ),
}


def test_errors(fit_predict: Predictor, parts: list[tuple[np.ndarray, ...]]) -> dict[str, Any]:
    """Test RMSE of each split and their mean; predictions are clipped to 0.5 ... 5."""
    per = [
        peers.rmse(np.clip(fit_predict(*part[:5]), peers.LOW, peers.HIGH), part[5])
        for part in parts
    ]
    return {"rmse": float(np.mean(per)), "splits": per}


def test_ranking(scores: Scorer, parts: list[tuple[np.ndarray, ...]]) -> dict[str, Any]:
    """Means over the splits of `ranking`, and the values of each."""
    per = [ranking(scores(*p[:3]), (p[0], p[1]), (p[3], p[4])) for p in parts]
    return {**{k: float(np.mean([p[k] for p in per])) for k in per[0]}, "splits": per}


def _named(reference: str) -> Callable[..., np.ndarray]:
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)


def main() -> None:
    """Parse the command line, run each method, print tables and keep the values."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.movielens", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ratings.csv")
    names = [*PREDICTORS, *SCORERS]
    parser.add_argument("--method", nargs="*", choices=names, default=names)
    ours = "MODULE:FUNCTION of this signature, run on the same splits: "
    parser.add_argument("--predictor", nargs="*", default=[], help=ours + "see Predictor")
    parser.add_argument("--scorer", nargs="*", default=[], help=ours + "see Scorer")
    parser.add_argument("--out", type=Path, help="JSON file for the values of each split")
    args = parser.parse_args()
    parts, found = splits(args.data), {}
    runs = {name: partial(test_errors, f) for name, f in PREDICTORS.items()}
    runs |= {name: partial(test_ranking, f) for name, f in SCORERS.items()}
    runs |= {name: partial(test_errors, _named(name)) for name in args.predictor}
    runs |= {name: partial(test_ranking, _named(name)) for name in args.scorer}
    for name in [*args.method, *args.predictor, *args.scorer]:
        found[name] = result = runs[name](parts)
        means = {k: round(v, 5) for k, v in result.items() if k != "splits"}
        print(f"| {name} | " + " | ".join(f"{k} {v}" for k, v in means.items()) + " |", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
