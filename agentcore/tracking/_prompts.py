"""A stored program's prompt as plain data."""

from collections.abc import Mapping
from typing import Any


def prompt_of(state: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """By predictor: `inputs` and `outputs` (field names), `instruction`, `demos` (dicts of fields)."""
    found = {}
    for name, spec in manifest["predictors"].items():
        # The state of a bare dspy.Predict is not nested under a name.
        predictor = state.get(name, state)
        found[name] = {
            "inputs": [field["name"] for field in spec["inputs"]],
            "outputs": [field["name"] for field in spec["outputs"]],
            "instruction": predictor["signature"]["instructions"],
            "demos": [
                {key: value for key, value in demo.items() if key != "augmented"}
                for demo in predictor["demos"]
            ],
        }
    return found
