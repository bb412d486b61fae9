"""A loan agent without a language model: three rules, for trying evaluation and drift.

    agentcore evaluate --agent loan_approval --dataset loan_approval_test_set \\
        --func examples.loan_approval.agent:decide
"""

from typing import Any


def decide(request: dict[str, Any]) -> dict[str, Any]:
    """Decide on an application: `outcome` is approved, rejected or manual_review."""
    burden = request["loan_amount"] / max(1, request["annual_income"])
    risk = round(min(100.0, max(0.0, 20 * burden + (750 - request["credit_score"]) / 5)))
    if request["credit_score"] < 600 or burden > 4.7:
        outcome = "rejected"
    elif burden > 3.5 and request["credit_score"] < 690:
        outcome = "manual_review"
    else:
        outcome = "approved"
    return {"outcome": outcome, "risk_score": risk}
