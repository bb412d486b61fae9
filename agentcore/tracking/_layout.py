"""Names and tags of an agent's runs in its three experiments: development, evaluation and deployment."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from agentcore._naming import run_name
from agentcore.errors import ConfigurationError
from agentcore.settings import Settings, nearest

Stage = Literal["development", "evaluation", "deployment"]
STAGES: tuple[Stage, ...] = ("development", "evaluation", "deployment")

DOMAINS = ("cost", "security", "performance", "reliability", "quality", "all")
RUN_TYPES: Mapping[Stage, tuple[str, ...]] = {
    "development": ("development", "model_logging", "optimization"),
    "evaluation": ("evaluation",),
    "deployment": ("deployment",),
}
_VALUES: Mapping[str, tuple[str, ...]] = {
    "dataset_type": ("synthetic", "manual", "evaluation", "none"),
    "evaluation_type": (
        *("comprehensive", "domain_specific", "smoke", "regression"),
        *("pre_deploy_validation", "none"),
    ),
    "environment": ("dev", "staging", "production"),
    "deployment_candidate": ("true", "false"),
}
_EVERY = ("agent_name", "run_type", "domain", "agent_version", "dataset_type", "evaluation_type")
REQUIRED: Mapping[Stage, tuple[str, ...]] = {
    "development": (*_EVERY, "environment", "version"),
    "evaluation": (*_EVERY, "environment", "version"),
    "deployment": (
        *(*_EVERY, "environment", "version"),
        *("model_version", "deployment_candidate", "deployment_status", "promotion_target"),
    ),
}
_TIME = r"\d{8}_\d{6}"
_PATTERNS: Mapping[Stage, re.Pattern[str]] = {
    "development": re.compile(rf"(dev|dev_.+|opt_(agent|workflow|component)_.+|{{agent}}_.+)_{_TIME}"),
    "evaluation": re.compile(rf"eval_.+_{_TIME}"),
    "deployment": re.compile(rf"(deploy|pre_deploy_validation)_{_TIME}"),
}
_SHAPES: Mapping[Stage, str] = {
    "development": "dev_{feature}_{timestamp} or opt_{target_type}_{target_id}_{timestamp}",
    "evaluation": "eval_{domain}_{timestamp}",
    "deployment": "deploy_{timestamp} or pre_deploy_validation_{timestamp}",
}
_AGENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_agent(agent: str) -> str:
    """An agent's name, which is part of the names of experiments, models and prompts.

    Raises:
        ConfigurationError: it contains characters other than letters, digits, `_`, `-` and `.`.
    """
    if not isinstance(agent, str) or not _AGENT.fullmatch(agent):
        raise ConfigurationError(
            f"agent {agent!r}: use letters, digits, '_', '-' and '.', starting with a letter or a digit, at "
            "most 100 characters"
        )
    return agent


def development_name(feature: str | None = None) -> str:
    """`dev_{feature}_{timestamp}`, or `dev_{timestamp}`."""
    return run_name("dev", *([feature] if feature else []))


def evaluation_name(domain: str, *, pre_deploy: bool = False, at_ms: int | None = None) -> str:
    """`eval_{domain}_{timestamp}`, or `eval_pre_deploy_{timestamp}`; default: the current time."""
    return run_name("eval", "pre_deploy" if pre_deploy else domain, at_ms=at_ms)


def deployment_name(*, validation: bool = False, at_ms: int | None = None) -> str:
    """`deploy_{timestamp}`, or `pre_deploy_validation_{timestamp}`; default: the current time."""
    return run_name("pre_deploy_validation" if validation else "deploy", at_ms=at_ms)


def purpose_name(agent: str, purpose: str) -> str:
    """`{agent}_{purpose}_{timestamp}`."""
    return run_name(agent, purpose)


def known_domains(more: Sequence[str] = ()) -> tuple[str, ...]:
    """The values of the tag `domain`: the standard ones, `AGENTCORE_DOMAINS`, and `more`."""
    own = [name.strip() for name in Settings().domains.split(",") if name.strip()]
    return tuple(dict.fromkeys((*DOMAINS, *own, *more)))


def wrong_values(stage: Stage, tags: Mapping[str, str], domains: Sequence[str]) -> dict[str, str]:
    """What is wrong with a run's tags, by tag; missing ones are not reported."""
    allowed = {**_VALUES, "domain": tuple(domains), "run_type": RUN_TYPES[stage]}
    return {
        name: f"{name}={tags[name]!r}: use {', '.join(values)}{nearest(tags[name], values)}"
        for name, values in allowed.items()
        if name in tags and tags[name] not in values
    }


def check_tags(stage: Stage, tags: Mapping[str, str], domains: Sequence[str]) -> None:
    """Raise `ConfigurationError` for a tag whose value is not in its list."""
    wrong = wrong_values(stage, tags, domains)
    if wrong:
        raise ConfigurationError(f"tags of the {stage} run: {'; '.join(wrong.values())}")


def name_problem(stage: Stage, agent: str, name: str) -> str | None:
    """What is wrong with a run's name; None if it follows the convention."""
    pattern = _PATTERNS[stage].pattern.replace("{agent}", re.escape(agent))
    if re.fullmatch(pattern, name):
        return None
    return f"the name {name!r} should be {_SHAPES[stage]}, with a timestamp such as 20261125_211757"
