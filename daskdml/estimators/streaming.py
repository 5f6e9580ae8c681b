"""Scoring and predicting over data that is not in memory. Imported when called: it needs Dask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdml.engine.lazy import stream_rows
from daskdml.engine.memory import Needs
from daskdml.engine.run import Engine
from daskdml.io.sources import AnySource
from daskdml.kernels.block import Block
from daskdml.kernels.metrics import Accuracy, Determination
from daskdml.kernels.targets import row_weights

Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ScoreOf:
    """Block -> `Accuracy` or `Determination`."""

    rows: Rows
    classification: bool

    def __call__(self, block: Block) -> Accuracy | Determination:
        """Score a block's predictions."""
        assert block.y is not None
        kind = Accuracy if self.classification else Determination
        return kind.of(block.y, self.rows(block.X), row_weights(block, block.n_rows))


def score(source: AnySource, rows: Rows, classification: bool) -> float:
    """Accuracy or R^2 of predictions, in one pass."""
    if not source.has_y:
        raise ValueError(f"{source.name} has no targets to score against; pass y")
    with Engine.current().open(source, Needs(work=SCRATCH), once=True) as data:
        found = data.single_pass(ScoreOf(rows, classification), "score")
    return float(found.score)


SCRATCH = 16_000_000  # bytes for a group's scores, predictions and weights


@dataclass(frozen=True)
class _Codes:
    """Rows -> index of each predicted label, for labels that Zarr has no settled dtype for."""

    rows: Rows
    classes: np.ndarray

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.classes, self.rows(X)).astype(np.int32)


def stream(source: AnySource, rows: Any, out: str, options: dict[str, Any] | None) -> Any:
    """Predictions as a Zarr array at `out`; strings as codes into its attribute class_names."""
    found = rows(np.zeros((1, source.n_features), source.dtype))
    names = None
    if found.dtype.kind not in "biuf":
        classes = rows.decide.keywords["classes"]
        rows, names = _Codes(rows, classes), [str(c) for c in classes]
    return stream_rows(Engine.current(), source, rows, names, out, options)
