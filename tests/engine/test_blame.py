"""A failed task is named by what it worked on."""

import numpy as np
import pytest

from daskdml import Engine, LogisticRegression, MatrixFactorization, SGDClassifier
from daskdml.engine.blame import blame
from daskdml.engine.run import Inline
from daskdml.io import convert_ratings, write_dataset


class Seen(Inline):
    """Remembers graphs."""

    def __init__(self):
        super().__init__()
        self.graphs = []

    def run(self, graph, places, told):
        """Run a graph."""
        self.graphs.append(graph)
        return super().run(graph, places, told)


def blamed(model, data):
    """What is said of all tasks of the fit that work on data."""
    seen = Seen()
    with Engine(seen):
        model.fit(data)
    texts = {blame(graph, key) for graph in seen.graphs for key in graph.tasks}
    return {text for text in texts if not text.startswith("the task ")}


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(solver="newton"),
        LogisticRegression(solver="sgd"),
        SGDClassifier(n_replicas=2, max_iter=2, tol=None, random_state=0),
    ],
)
def test_rows(model, tmp_path, monkeypatch):
    """Of passes and of rounds: which rows of which data set."""
    monkeypatch.setattr("daskdml.engine.run.GROUP_BYTES", 1)
    X = np.random.default_rng(0).standard_normal((400, 3))
    ds = write_dataset(tmp_path / "train.zarr", X, X[:, 0] > 0, chunks=100)
    said = blamed(model, ds)
    assert {f"rows {at}:{at + 100} of train" for at in (0, 100, 200, 300)} <= said


@pytest.mark.parametrize("solver", ["als", "sgd"])
def test_ratings(solver, tmp_path):
    """Of sweeps: which blocks of which side."""
    pairs = np.random.default_rng(0).permutation(60 * 40)[:900]
    given = pairs // 40, pairs % 40, np.ones(900)
    ratings = convert_ratings(given, tmp_path / "r.zarr", grid=(3, 2))
    said = blamed(MatrixFactorization(2, solver=solver, max_iter=1, random_state=0), ratings)
    assert any(text.startswith("ratings of user blocks 0:") for text in said)
    assert all(text.endswith(f" of {ratings.url}") for text in said)
