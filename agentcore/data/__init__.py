"""Labelled examples: loading, digests and splits."""

from agentcore.data._builtin import BUILTIN_DATASETS, load_builtin
from agentcore.data._canonical import fold, folded_digest, sha256
from agentcore.data._check import check_rows, is_missing
from agentcore.data._dataset import (
    Dataset,
    Example,
    Split,
    Splits,
    given_splits,
    shared_questions,
    too_few_clusters,
)
from agentcore.data._load import load_dataset, rows_of
from agentcore.data._manager import DatasetDiff, DatasetManager, StoredDataset, current_run
from agentcore.data._schema import PERSONAL
from agentcore.data._split import SPLITS, keys_of, planned_sizes

__all__ = [
    "BUILTIN_DATASETS",
    "PERSONAL",
    "SPLITS",
    "Dataset",
    "DatasetDiff",
    "DatasetManager",
    "Example",
    "Split",
    "Splits",
    "StoredDataset",
    "check_rows",
    "current_run",
    "fold",
    "folded_digest",
    "given_splits",
    "is_missing",
    "keys_of",
    "load_builtin",
    "load_dataset",
    "planned_sizes",
    "rows_of",
    "sha256",
    "shared_questions",
    "too_few_clusters",
]
