"""Data sets as uint8 tensors."""

from unbackdoor.data.images import LabelledImages, normalise
from unbackdoor.data.load import data_root, load_dataset
from unbackdoor.data.specs import DATASETS, DatasetSpec

__all__ = ["DATASETS", "DatasetSpec", "LabelledImages", "data_root", "load_dataset", "normalise"]
