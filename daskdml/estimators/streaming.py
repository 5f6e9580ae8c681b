"""Scoring and predicting over data that is not in memory. Imported when called: it needs Dask."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskdml.engine.lazy import stream_rows
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.io.sources import AnySource
from daskdml.kernels.gaussian import SLAB_BYTES, LogDensity, MeanOf
from daskdml.kernels.kmeans import Centers, SumsOf
from daskdml.kernels.predict import Codes, Predict, ScoreOf
from daskdml.solvers.kmeans import PARTS, pass_needs

SCORE = 16  # bytes of one output's score of a row, and of a copy


def score(source: AnySource, rows: Predict, classification: bool) -> float:
    """Accuracy or R^2 of predictions, in one pass."""
    if not source.has_y:
        raise ValueError(f"{source.name} has no targets to score against; pass y")
    one = rows(np.zeros((1, source.n_features), source.dtype))
    row = SCORE * len(rows.coef) + one.nbytes
    with Engine.current().open(source, Needs(row=row), once=True) as data:
        found = data.single_pass(ScoreOf(rows, classification), "score")
    return float(found.score)


def mean(source: AnySource, rows: LogDensity) -> float:
    """Mean of a number for each row, in one pass."""
    row = SCORE * len(rows.components) + 4 * SCORE
    needs = Needs(work=3 * SLAB_BYTES, row=row)
    with Engine.current().open(source, needs, once=True) as data:
        found = data.single_pass(MeanOf(rows), "score", parts=("X",))
    return float(found.total / found.n)


def stream(source: AnySource, rows: Any, out: str, options: dict[str, Any] | None) -> Any:
    """Predictions as a Zarr array at `out`; strings as codes into its attribute class_names."""
    found = rows(np.zeros((1, source.n_features), source.dtype))
    names = None
    if found.dtype.kind not in "biuf":
        classes = rows.decide.keywords["classes"]
        rows, names = Codes(rows, classes), [str(c) for c in classes]
    return stream_rows(Engine.current(), source, rows, names, out, options)


def inertia(source: AnySource, centers: Centers) -> float:
    """Weighted sum of squared distances of rows to their nearest centers, in one pass."""
    needs = pass_needs(len(centers.centers), source)
    with Engine.current().open(source, needs, once=True) as data:
        return float(data.single_pass(SumsOf(centers), "score", parts=PARTS).inertia)
