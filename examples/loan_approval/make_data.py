"""Makes the example's data sets. All applications are invented: they are drawn at random.

    python examples/loan_approval/make_data.py

It saves `loan_approval_train`, `loan_approval_test_set`, `baseline_v1` and `current_month` in
`AGENTCORE_DATA` (data/evaluation). The expected outcomes are those of an underwriter who errs at times. In
`current_month`, incomes have fallen, loans are larger in relation to them, and the underwriter is stricter,
which the agent doesn't know. `loan_approval_train` has only what the program takes and gives: what is in a
training set may end up in prompts.
"""

import random
from typing import Any

from agentcore.data import DatasetManager
from agentcore.settings import Settings


def applications(rows: int, seed: int, *, recession: bool = False) -> list[dict[str, Any]]:
    """Invented applications with the outcome that an underwriter would expect."""
    draw = random.Random(seed)
    return [application(draw, f"eval_{seed}{number:04}", recession) for number in range(rows)]


def application(draw: random.Random, request_id: str, recession: bool) -> dict[str, Any]:
    """One application."""
    income = round(max(15_000, draw.gauss(58_000 if recession else 75_000, 22_000)) / 100) * 100
    amount = round(income * draw.uniform(0.5, 6.5 if recession else 5.5) / 1000) * 1000
    score = min(850, max(450, round(draw.gauss(680, 70))))
    burden = amount / income
    if score < 590 or burden > (4.1 if recession else 4.8):
        expected = "rejected"
    elif burden > 3.6 and score < 700:
        expected = "manual_review"
    else:
        expected = "approved"
    if draw.random() < 0.04:
        expected = draw.choice(["approved", "rejected", "manual_review"])
    return {
        "request_id": request_id,
        "applicant_name": f"Applicant {draw.randint(1, 99_999)}",
        "annual_income": income,
        "credit_score": score,
        "loan_amount": amount,
        "purpose": draw.choice(["house", "car", "study", "renovation"]),
        "expected_outcome": expected,
    }


def training(rows: int, seed: int) -> list[dict[str, Any]]:
    """Applications as the program takes them, with the outcome that it should give."""
    return [
        {
            "annual_income": row["annual_income"],
            "credit_score": row["credit_score"],
            "loan_amount": row["loan_amount"],
            "outcome": row["expected_outcome"],
        }
        for row in applications(rows, seed)
    ]


def main() -> None:
    """Save the data sets; what is there already stays."""
    manager = DatasetManager(Settings().data)
    saved = manager.save_dataset(
        training(1500, 9), "loan_approval_train", description="invented applications, drawn at random"
    )
    print(f"{saved.full_name}: {saved.rows:,} rows")
    for name, rows, seed, recession in (
        ("loan_approval_test_set", 500, 1, False),
        ("baseline_v1", 500, 2, False),
        ("current_month", 500, 3, True),
    ):
        saved = manager.save_dataset(
            applications(rows, seed, recession=recession),
            name,
            description="invented applications, drawn at random",
            tags={"type": "evaluation"},
            personal=["applicant_name"],
        )
        print(f"{saved.full_name}: {saved.rows} rows")


if __name__ == "__main__":
    main()
