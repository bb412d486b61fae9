"""Values of any origin as JSON."""

import math
from typing import Any

from pydantic import BaseModel


def jsonable(value: Any) -> Any:
    """Convert a value to what JSON can represent; anything else becomes text, NaN and infinity too."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, BaseModel):
        return jsonable(value.model_dump())
    return str(value)
