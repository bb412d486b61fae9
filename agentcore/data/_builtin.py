"""Real data sets that ship with scikit-learn, so nothing needs to be downloaded."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from agentcore.data._dataset import Dataset
from agentcore.errors import DataError


class _Source(NamedTuple):
    loader: str
    label: str
    task: str


_SOURCES = {
    "iris": _Source("load_iris", "species", "Tell the species of an iris from its flower's measures in cm."),
    "wine": _Source("load_wine", "cultivar", "Tell the cultivar of a wine from its chemical analysis."),
    "breast_cancer": _Source(
        "load_breast_cancer", "diagnosis", "Tell from a biopsy's cell measures whether a tumour is malignant."
    ),
}

BUILTIN_DATASETS = tuple(_SOURCES)


def load_builtin(name: str) -> Dataset:
    """Iris (150 examples), wine (178) or breast cancer (569), with numeric inputs and one label.

    Raises:
        DataError: no such data set.
    """
    if name not in _SOURCES:
        raise DataError(f"no built-in data set {name!r}: use one of {', '.join(BUILTIN_DATASETS)}")
    from sklearn import datasets

    source = _SOURCES[name]
    loader: Callable[[], Any] = getattr(datasets, source.loader)
    bunch = loader()
    columns = [_field_name(column) for column in bunch.feature_names]
    rows = [
        {**dict(zip(columns, map(float, values), strict=True)), source.label: str(bunch.target_names[target])}
        for values, target in zip(bunch.data, bunch.target, strict=True)
    ]
    return Dataset.from_rows(rows, input_fields=columns, name=name, description=source.task)


def _field_name(column: str) -> str:
    return re.sub(r"\W+", "_", column.replace("(cm)", "")).strip("_")
