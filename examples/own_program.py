"""Optimize your own program from Python, with your own examples and metric.

    AGENTCORE_LM=offline/knn python examples/own_program.py      # no API key needed; shows how it works
    OPENAI_API_KEY=… AGENTCORE_LM=openai/gpt-5-mini python examples/own_program.py

Runs are tracked at MLFLOW_TRACKING_URI, else in mlflow.db in the working directory.
"""

import asyncio
import os
from typing import Literal

import dspy

from agentcore.dspy_optimization.models import OptimizationRequest, OptimizationTarget
from agentcore.dspy_optimization.pipeline import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowConfig, MLflowTracker
from agentcore.lm import resolve_lm


class Route(dspy.Signature):
    """Send the customer's message to the team that can answer it."""

    message: str = dspy.InputField()
    team: Literal["billing", "shipping", "technical"] = dspy.OutputField()


class Router(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict(Route)

    async def aforward(self, message: str) -> dspy.Prediction:
        return await self.route.acall(message=message)

    def forward(self, message: str) -> dspy.Prediction:
        return self.route(message=message)


MESSAGES = {
    "billing": ["The invoice {} is wrong", "I was charged twice for order {}", "Refund the payment for {}"],
    "shipping": [
        "Where is the parcel {}",
        "The parcel {} arrived damaged",
        "Change the address of parcel {}",
    ],
    "technical": ["The app shows error {}", "Login fails with error {}", "Update {} crashes the app"],
}

rows = [
    {"message": text.format(1000 + 7 * number), "team": team}
    for number in range(6)
    for team, texts in MESSAGES.items()
    for text in texts
]


def right_team(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return example.team == prediction.team


async def main() -> None:
    config = MLflowConfig(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"))
    pipeline = OptimizationPipeline(program=Router(), metric=right_team, mlflow_config=config)
    request = OptimizationRequest(target=OptimizationTarget(type="agent", id="router"))
    result = await pipeline.run_optimization(request=request, training_data=rows)

    low, high = result.interval
    print(f"{result.measured_baseline.quality_score:.3f} → {result.optimized_performance.quality_score:.3f}")
    print(f"gain's 95% interval {low:+.3f} to {high:+.3f}, p = {result.statistical_significance:.2g}")

    tracker = MLflowTracker(config)
    best = await tracker.get_best_run(target_id="router")
    assert best is not None
    router = await tracker.load_model_artifact(best.info.run_id, "optimized_model", program=Router())
    with dspy.context(lm=resolve_lm()):
        print(await router.acall(message="Where is my parcel 77?"))


if __name__ == "__main__":
    asyncio.run(main())
