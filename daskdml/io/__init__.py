"""Floor 1: bytes <-> blocks."""

from daskdml.io.dataset import Dataset, open_dataset
from daskdml.io.split import train_test_split
from daskdml.io.write import write_dataset

__all__ = ["Dataset", "open_dataset", "train_test_split", "write_dataset"]
