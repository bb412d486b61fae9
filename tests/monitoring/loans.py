"""Loan applications, and a rule that decides on them."""

import hashlib
import random
from typing import Any

from agentcore.data import DatasetManager

TARGET = "expected_outcome"
_WORDS = [
    *("loan", "house", "car", "study", "wedding", "boat", "small", "large", "soon", "later", "please"),
    *("urgent", "thanks"),
]


def applications(number: int = 120, seed: int = 0, *, shifted: bool = False) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for index in range(number):
        income = round(draw.gauss(52_000 if shifted else 70_000, 20_000))
        score = draw.randint(500, 850)
        words = _WORDS[6:] if shifted else _WORDS
        rows.append(
            {
                "request_id": f"{seed}_{index}",
                "applicant_name": f"Person {draw.randint(0, 10**6)}",
                "annual_income": income,
                "credit_score": score,
                "purpose": draw.choice(["car", "house", "study"]),
                "note": " ".join(draw.choice(words) for _ in range(8)),
                TARGET: "approved" if income > 60_000 and score > 620 else "rejected",
            }
        )
    return rows


def decide(request: dict[str, Any], error: float = 0.1, salt: str = "") -> dict[str, Any]:
    """Wrong on a share of the rows, always on the same ones."""
    assert TARGET not in request, "the agent was given the answer"
    right = request["annual_income"] > 60_000 and request["credit_score"] > 620
    digest = hashlib.sha256(f"{salt}{request['request_id']}".encode()).digest()
    wrong = int.from_bytes(digest[:4]) / 2**32 < error
    return {"outcome": "approved" if right != wrong else "rejected", "risk_score": 25}


def saved(folder: Any, **sets: Any) -> DatasetManager:
    """A manager with data sets."""
    manager = DatasetManager(folder)
    for name, rows in sets.items():
        manager.save_dataset(rows, name)
    return manager
