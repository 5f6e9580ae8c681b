"""Floor 1: bytes <-> blocks."""

from daskdml.io.convert import convert_ratings
from daskdml.io.dataset import Dataset, open_dataset
from daskdml.io.ratings import Ratings, open_ratings
from daskdml.io.split import train_test_split
from daskdml.io.write import write_dataset

__all__ = [
    "Dataset",
    "Ratings",
    "convert_ratings",
    "open_dataset",
    "open_ratings",
    "train_test_split",
    "write_dataset",
]
