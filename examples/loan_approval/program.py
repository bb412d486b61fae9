"""The loan agent as a DSPy program: a signature, to be optimized."""

from typing import Any, Literal

import dspy


class LoanDecision(dspy.Signature):
    """Decide on a loan application."""

    annual_income: int = dspy.InputField()
    credit_score: int = dspy.InputField()
    loan_amount: int = dspy.InputField()
    outcome: Literal["approved", "rejected", "manual_review"] = dspy.OutputField()


class LoanApproval(dspy.Module):
    """Decides on an application by its income, its credit score and the amount asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.decide = dspy.Predict(LoanDecision)

    def forward(self, annual_income: int, credit_score: int, loan_amount: int) -> Any:
        """Ask the model in a thread."""
        return self.decide(annual_income=annual_income, credit_score=credit_score, loan_amount=loan_amount)

    async def aforward(self, annual_income: int, credit_score: int, loan_amount: int) -> Any:
        """Ask the model in the event loop."""
        return await self.decide.acall(
            annual_income=annual_income, credit_score=credit_score, loan_amount=loan_amount
        )
