"""How often a drift check alarms: without a change, with a worse agent, other inputs, or another model.

    python -m benchmarks.monitoring.drift --pairs 200

Every pair is drawn anew, evaluated and compared by the product's own functions. The agent is a rule that errs
on a given share of the rows; the rows have numbers, categories and text.
"""

import argparse
import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

from agentcore.data import DatasetManager
from agentcore.monitoring import DriftReport, ModelEvaluator

Row = dict[str, Any]
_WORDS = (
    *("a", "loan", "for", "the", "house", "car", "study", "wedding", "boat", "small", "large", "soon"),
    *("later", "please", "urgent", "thanks"),
)


def rows(number: int, seed: int, *, shifted: bool = False) -> list[Row]:
    """Applications; shifted: lower incomes, other purposes, other words."""
    draw = random.Random(seed)
    found = []
    for index in range(number):
        income = round(draw.gauss(56_000 if shifted else 70_000, 20_000))
        score = draw.randint(500, 850)
        words = _WORDS[6:] if shifted else _WORDS
        found.append(
            {
                "request_id": f"{seed}_{index}",
                "annual_income": income,
                "credit_score": score,
                "purpose": draw.choices(["car", "house", "study"], (1, 1, 4) if shifted else (1, 1, 1))[0],
                "employed": draw.random() < 0.8,
                "note": " ".join(draw.choice(words) for _ in range(8)),
                "expected_outcome": "approved" if income > 60_000 and score > 620 else "rejected",
            }
        )
    return found


def agent(error: float, salt: str = "") -> Callable[[Row], Row]:
    """A rule that errs on a share of the rows, always on the same ones."""

    def decide(request: Row) -> Row:
        right = request["annual_income"] > 60_000 and request["credit_score"] > 620
        digest = hashlib.sha256(f"{salt}{request['request_id']}".encode()).digest()
        wrong = int.from_bytes(digest[:4]) / 2**32 < error
        return {"outcome": "approved" if right != wrong else "rejected"}

    return decide


def check(
    number: int, sizes: int, *, before: float, after: float, shifted: bool, canary: bool
) -> DriftReport:
    """One comparison."""
    with tempfile.TemporaryDirectory() as folder:
        data = DatasetManager(folder)
        data.save_dataset(rows(sizes, 2 * number + 1), "baseline")
        data.save_dataset(rows(sizes, 2 * number + 2, shifted=shifted), "current")
        state = {"error": before, "salt": ""}

        def live(request: Row) -> Row:
            # The model changes between the canary and the check; current rows may be harder.
            error = after if request["request_id"].startswith(f"{2 * number + 2}_") else state["error"]
            return agent(float(error), str(state["salt"]))(request)

        evaluator = ModelEvaluator("loan", live, datasets=data)
        if canary:
            evaluator.freeze_canary("baseline", "expected_outcome")
            state["error"] = before if shifted else after
            state["salt"] = "" if shifted else "new"
        return evaluator.detect_drift("baseline", "current", 0.05, "expected_outcome", log_to_mlflow=False)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=500)
    given = parser.parse_args()
    half = max(1, given.pairs // 2)
    print("| what changed | checks | metrics alarm | fields alarm | any alarm | causes told |")
    print("|---|---:|---:|---:|---:|---|")
    scenarios: list[tuple[str, int, dict[str, Any]]] = [
        ("nothing", given.pairs, {"before": 0.1, "after": 0.1, "shifted": False, "canary": False}),
        ("accuracy .90 → .80", half, {"before": 0.1, "after": 0.2, "shifted": False, "canary": False}),
        ("accuracy .80 → .70", half, {"before": 0.2, "after": 0.3, "shifted": False, "canary": False}),
        ("inputs only", half, {"before": 0.1, "after": 0.1, "shifted": True, "canary": True}),
        ("model only", half, {"before": 0.1, "after": 0.2, "shifted": False, "canary": True}),
    ]
    for name, count, options in scenarios:
        found = [check(number, given.rows, **options) for number in range(count)]
        metrics = sum(item.has_drift for item in found)
        fields = sum(item.has_input_drift for item in found)
        both = sum(item.has_drift or item.has_input_drift for item in found)
        causes = ", ".join(
            f"{cause} {times}" for cause, times in Counter(item.cause for item in found).items()
        )
        print(f"| {name} | {count} | {metrics} | {fields} | {both} | {causes} |", flush=True)


if __name__ == "__main__":
    main()
