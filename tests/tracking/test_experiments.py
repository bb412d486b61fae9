"""The three experiments of an agent."""

import asyncio
import itertools

import pytest

from agentcore import Experiments
from agentcore.errors import ConfigurationError
from agentcore.tracking import RunTracker
from tests.support import colours

STANDARD = {
    *("agent_name", "run_type", "domain", "agent_version", "dataset_type", "evaluation_type"),
    *("environment", "version"),
}


@pytest.fixture
def experiments(config):
    return Experiments("health_monitor_agent", config)


async def test_names(config):
    found = Experiments("health_monitor_agent", config)
    assert list(found) == [
        "/Shared/health_monitor_agent_development",
        "/Shared/health_monitor_agent_evaluation",
        "/Shared/health_monitor_agent_deployment",
    ]
    development, evaluation, deployment = Experiments("a", config, template="/Shared/{agent}/{stage}")
    assert (development, deployment) == ("/Shared/a/development", "/Shared/a/deployment")
    assert evaluation == "/Shared/a/evaluation"


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("a/b", {}),
        ("", {}),
        ("../x", {}),
        ("a", {"template": "/Shared/{agent}"}),
        ("a", {"template": "/Shared/{stage}"}),
        ("a", {"template": "/Shared/{agent}_{phase}"}),
        ("a", {"environment": "prod"}),
    ],
)
def test_wrong_arguments(config, agent, options):
    with pytest.raises(ConfigurationError):
        Experiments(agent, config, **options)


async def test_create_is_idempotent_and_safe_at_once(config):
    found = await asyncio.gather(*(Experiments("many", config).create() for _ in range(8)))
    assert len({tuple(sorted(item.items())) for item in found}) == 1
    assert len(set(found[0].values())) == 3


async def test_runs_have_names_and_tags(experiments, config):
    async with experiments.development_run("model_registration", run_type="model_logging") as development:
        await development.log_params({"temperature": 0})
    async with experiments.evaluation_run("cost", colours()) as evaluation:
        await evaluation.log_metrics({"accuracy": 0.9})
    async with experiments.evaluation_run(dataset=colours(), pre_deploy=True) as before:
        pass
    async with experiments.deployment_run(3, "staging", validation=True) as validation:
        await validation.log_json("checks.json", {"passed": True})
    async with experiments.deployment_run("3", "production", note="first") as deployment:
        await deployment.set_tags({"team": "ops"})
    tracker = RunTracker(config)
    runs = {
        name: await tracker.get_run(run.id)
        for name, run in {
            "development": development,
            "evaluation": evaluation,
            "before": before,
            "validation": validation,
            "deployment": deployment,
        }.items()
    }
    names = {name: run.info.run_name for name, run in runs.items()}
    assert names["development"].startswith("dev_model_registration_2")
    assert names["evaluation"].startswith("eval_cost_2")
    assert names["before"].startswith("eval_pre_deploy_2")
    assert names["validation"].startswith("pre_deploy_validation_2")
    assert names["deployment"].startswith("deploy_2")
    for run in runs.values():
        assert run.data.tags.keys() >= STANDARD
        assert run.data.tags["agent_name"] == "health_monitor_agent"
        assert run.info.status == "FINISHED"
    tags = {name: run.data.tags for name, run in runs.items()}
    assert tags["development"]["run_type"] == "model_logging"
    assert tags["evaluation"]["evaluation_type"] == "domain_specific"
    assert tags["evaluation"]["dataset_type"] == "evaluation"
    assert tags["before"]["evaluation_type"] == "pre_deploy_validation"
    assert tags["before"]["deployment_candidate"] == "true"
    assert tags["validation"]["deployment_candidate"] == "true"
    assert tags["deployment"]["deployment_status"] == "success"
    assert tags["deployment"]["promotion_target"] == "production"
    assert tags["deployment"]["note"] == "first"
    assert await experiments.check() == []
    latest = await experiments.latest_evaluation_run()
    assert latest.info.run_id == runs["before"].info.run_id
    assert {run.info.run_id for run in await experiments.deployment_runs(3)} == {
        runs["validation"].info.run_id,
        runs["deployment"].info.run_id,
    }


async def test_a_run_that_fails(experiments, config):
    with pytest.raises(ZeroDivisionError):
        async with experiments.deployment_run(1) as run:
            raise ZeroDivisionError
    found = await RunTracker(config).get_run(run.id)
    assert found.info.status == "FAILED"
    assert found.data.tags["deployment_status"] == "failed"

    async def endless():
        async with experiments.development_run() as started:
            runs.append(started)
            await asyncio.Event().wait()

    runs = []
    task = asyncio.create_task(endless())
    while not runs:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await RunTracker(config).get_run(runs[0].id)).info.status == "KILLED"


@pytest.mark.parametrize(
    "tags",
    [{"domain": "costs"}, {"dataset_type": "real"}, {"environment": "prod"}, {"run_type": "deployment"}],
)
async def test_values_are_checked(experiments, tags):
    with pytest.raises(ConfigurationError, match=f"{next(iter(tags))}="):
        async with experiments.development_run(**tags):
            pass


async def test_own_domains(config, monkeypatch):
    for found in (Experiments("a", config, domains=["fairness"]), None):
        if found is None:
            monkeypatch.setenv("AGENTCORE_DOMAINS", "fairness, tone")
            found = Experiments("a", config)
        async with found.evaluation_run("fairness", colours()) as run:
            pass
        assert run.id
    assert await Experiments("a", config).check() != []  # deployment and development don't exist


async def test_the_environment_is_a_setting(config, monkeypatch):
    monkeypatch.setenv("AGENTCORE_ENVIRONMENT", "production")
    monkeypatch.setenv("AGENTCORE_AGENT_VERSION", "v4.0")
    async with Experiments("a", config).development_run() as run:
        pass
    tags = (await RunTracker(config).get_run(run.id)).data.tags
    assert (tags["environment"], tags["agent_version"]) == ("production", "v4.0")


def test_blocking(config):
    experiments = Experiments("a", config).sync
    assert len(experiments.create()) == 3
    with experiments.evaluation_run("quality", colours()) as run:
        run.log_metrics({"accuracy": 1.0})
    assert experiments.latest_evaluation_run().data.metrics == {"accuracy": 1.0}
    with pytest.raises(ValueError, match="wrong"), experiments.development_run():
        raise ValueError("wrong")
    with experiments.deployment_run(1):
        pass
    assert len(experiments.deployment_runs(1)) == 1
    assert experiments.check() == []


async def test_what_breaks_the_layout(experiments, config):
    """Each rule, with the run that breaks it."""
    missing = await experiments.check()
    assert [item.rule for item in missing] == ["experiments"] * 3
    ids = await experiments.create()
    tags = experiments.tags("development")
    of_evaluation = experiments.tags("evaluation")
    of_deployment = {**experiments.tags("deployment"), **experiments.deployment_tags(1, None)}
    of_deployment = {name: str(value).lower() for name, value in of_deployment.items()}
    time = "20260107_143000"
    wrong = {
        ("development", "create_evaluation_dataset", "dataset_creation"): "no_run",
        ("development", f"register_prompts_{time}", "prompt_registry"): "no_run",
        ("development", "evaluation-2026-01-07T14:30", "development"): "name",
        ("evaluation", f"eval_cost_{time}", "evaluation"): "dataset",
        ("evaluation", f"dev_model_{time}", "model_logging"): "model_logging",
        ("deployment", f"eval_cost_{time}", "evaluation"): "deployment",
        ("deployment", "deploy_20260107", "deployment"): "name",
    }
    client = __import__("mlflow").MlflowClient(tracking_uri=config.tracking_uri)
    standard = {"development": tags, "evaluation": of_evaluation, "deployment": of_deployment}
    expected = {}
    for (stage, name, kind), rule in wrong.items():
        run = client.create_run(ids[stage], run_name=name, tags={**standard[stage], "run_type": kind})
        expected[run.info.run_id] = rule
    bare = client.create_run(ids["development"], run_name=f"dev_{time}", tags={"domain": "costs"})
    found = await experiments.check()
    assert {item.run_id: item.rule for item in found if item.run_id != bare.info.run_id} == expected
    of_bare = [item for item in found if item.run_id == bare.info.run_id]
    assert [item.rule for item in of_bare] == ["tags", "tags"]
    assert "agent_version" in of_bare[0].message
    assert "did you mean cost?" in of_bare[1].message
    elsewhere = Experiments("mine", config, template="/Users/me/{agent}_{stage}")
    await elsewhere.create()
    assert all("/Shared/" in item.message for item in await elsewhere.check())


async def test_concurrent_runs_are_apart(experiments, config):
    async def one(number):
        async with experiments.development_run(f"f{number}") as run:
            await run.log_metrics({"number": number})
            return run.id

    ids = await asyncio.gather(*(one(number) for number in range(6)))
    runs = [await RunTracker(config).get_run(run) for run in ids]
    assert [run.data.metrics["number"] for run in runs] == list(range(6))


def test_all_names_come_from_one_place():
    from agentcore.tracking import _layout

    names = [
        _layout.development_name(),
        _layout.development_name("feature"),
        _layout.evaluation_name("cost"),
        _layout.evaluation_name("cost", pre_deploy=True),
        _layout.deployment_name(),
        _layout.deployment_name(validation=True),
        _layout.purpose_name("support", "batch"),
    ]
    stages = ["development"] * 2 + ["evaluation"] * 2 + ["deployment"] * 2 + ["development"]
    for name, stage in zip(names, stages, strict=True):
        assert _layout.name_problem(stage, "support", name) is None
    for stage, other in itertools.permutations(("evaluation", "deployment"), 2):
        assert _layout.name_problem(stage, "support", names[stages.index(other)])


async def test_a_scorer_is_registered_without_a_run(experiments, config):
    from mlflow.genai.scorers import Guidelines

    scorer = Guidelines(name="polite", guidelines="The answer is polite.", model="openai:/gpt-4o-mini")
    assert [await experiments.register_scorer(scorer) for _ in range(2)] == [1, 2]
    assert await experiments.register_scorer(scorer, "tone") == 1
    ids = await experiments.create()

    def listed(client):
        return {item.scorer_name for item in client._tracking_client.store.list_scorers(ids["evaluation"])}

    assert await experiments.gateway.call(listed) == {"polite", "tone"}
    for stage in ids:
        assert await experiments.tracker(stage).search_runs() == []
    with pytest.raises(ConfigurationError, match="is not a scorer"):
        await experiments.register_scorer(len)
