"""Data sets as uint8 tensors: found in several layouts, decoded once, mapped from then on."""

from unbackdoor.data.cache import CacheWarning, cache_folder
from unbackdoor.data.images import LabelledImages, normalise
from unbackdoor.data.load import data_root, dataset_spec, load_dataset
from unbackdoor.data.specs import DATASETS, DatasetSpec
from unbackdoor.data.split import Subset, clean_subset

__all__ = [
    "DATASETS",
    "CacheWarning",
    "DatasetSpec",
    "LabelledImages",
    "Subset",
    "cache_folder",
    "clean_subset",
    "data_root",
    "dataset_spec",
    "load_dataset",
    "normalise",
]
