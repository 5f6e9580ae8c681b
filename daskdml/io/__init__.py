"""Floor 1: bytes <-> blocks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daskdml.io.dataset import Dataset, open_dataset
from daskdml.io.split import train_test_split
from daskdml.io.write import write_dataset

if TYPE_CHECKING:
    from daskdml.io.convert import convert_ratings as convert_ratings
    from daskdml.io.ratings import Ratings as Ratings
    from daskdml.io.ratings import open_ratings as open_ratings

# Loaded when asked for: they compile kernels, which reading rows does without.
_HOMES = {
    "Ratings": "daskdml.io.ratings",
    "convert_ratings": "daskdml.io.convert",
    "open_ratings": "daskdml.io.ratings",
}
__all__ = ["Dataset", "open_dataset", "train_test_split", "write_dataset", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
