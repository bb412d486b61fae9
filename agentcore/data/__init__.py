"""Labelled examples: loading, digests and splits."""

from agentcore.data._builtin import BUILTIN_DATASETS, load_builtin
from agentcore.data._check import check_inputs
from agentcore.data._dataset import Dataset, Example, Split, Splits, given_splits
from agentcore.data._load import load_dataset

__all__ = [
    "BUILTIN_DATASETS",
    "Dataset",
    "Example",
    "Split",
    "Splits",
    "check_inputs",
    "given_splits",
    "load_builtin",
    "load_dataset",
]
