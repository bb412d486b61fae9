"""What the users' own document shows of pipeline, tracker, search and loading, as they wrote it."""

from datetime import UTC, datetime

from agentcore.dspy_optimization.models import OptimizationRequest, OptimizationTarget
from agentcore.dspy_optimization.pipeline import OptimizationPipeline
from agentcore.dspy_optimization.tracking import MLflowConfig, MLflowTracker
from tests.support import Classifier, colours


async def test_the_documented_way(config, monkeypatch, capsys):
    monkeypatch.setenv("AGENTCORE_LM", "offline/knn")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.tracking_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "documented")

    mlflow_config = MLflowConfig(tracking_uri=config.tracking_uri, experiment_name="documented")
    pipeline = OptimizationPipeline(mlflow_config=mlflow_config, enable_tracking=True)
    optimization_request = OptimizationRequest(target=OptimizationTarget(type="agent", id="colours"))
    baseline_metrics = {"success_rate": 0.3, "quality_score": 0.3}
    training_data = [{"thing": row["thing"], "label": row["colour"]} for row in colours(60).rows()]

    result = await pipeline.run_optimization(
        request=optimization_request,
        baseline_metrics=baseline_metrics,
        training_data=training_data,
    )
    assert result.status == "completed"

    tracker = MLflowTracker()
    best_run = await tracker.get_best_run(
        metric="improvement_percentage",
        order_by="DESC",
    )
    print(f"Best run: {best_run.info.run_id}")
    print(f"Improvement: {best_run.data.metrics['improvement_percentage']:.2%}")

    runs = await tracker.search_runs(
        filter_string="metrics.improvement_percentage > 0.2",
        max_results=10,
    )
    for run in runs:
        print(f"Run {run.info.run_id}: {run.data.metrics['improvement_percentage']:.2%}")
    assert [run.info.run_id for run in runs] == [best_run.info.run_id]
    assert capsys.readouterr().out.count(best_run.info.run_id) == 2

    model = await tracker.load_model_artifact(
        run_id=best_run.info.run_id,
        artifact_name="optimized_model",
    )
    assert [demo for predictor in model.predictors() for demo in predictor.demos]

    await tracker.start_run(optimization_request)
    await tracker.log_model_artifact(
        model=Classifier(),
        artifact_name="optimized_model",
        metadata={
            "algorithm": "miprov2",
            "improvement": 0.25,
            "created_at": datetime.now(UTC).isoformat(),
        },
    )
    await tracker.end_run()
    names = {
        *(f"baseline_{name}" for name in ("success_rate", "quality_score")),
        *(f"optimized_{name}" for name in ("success_rate", "avg_cost", "avg_latency_ms", "quality_score")),
        *("success_rate_improvement", "cost_reduction", "latency_reduction_ms", "quality_improvement"),
        *("improvement_percentage", "statistical_significance", "iterations", "duration_seconds"),
    }
    assert names <= set(best_run.data.metrics)
