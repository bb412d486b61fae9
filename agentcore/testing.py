"""A pytest plugin: compares a changed program with the champion.

    def test_support_agent(champion_gate):
        champion_gate("support", my_package.SupportAgent(), "data/regression.jsonl")

The test fails if the change is rejected. With `--agentcore-report FILE`, the comparisons are written as
Markdown, for a comment on a pull request.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from agentcore.registry import Change

__all__ = ["champion_gate", "compare_with_champion"]

_OPTION = "--agentcore-report"


def compare_with_champion(agent: str, program: Any, data: Any, **options: Any) -> "Change":
    """Compare a program with an agent's champion; see `Registry.compare` for the options.

    Args:
        options: also `config`, an `MLflowConfig`.
    """
    from agentcore.registry import Registry

    config = options.pop("config", None)
    return Registry(agent, config).sync.compare(program, data, **options)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--agentcore-report`."""
    group = parser.getgroup("agentcore")
    group.addoption(_OPTION, metavar="FILE", help="append comparisons with the champion to FILE as Markdown")


@pytest.fixture
def champion_gate(request: pytest.FixtureRequest) -> "Callable[..., Change]":
    """`champion_gate(agent, program, data, …)`: compares, and fails the test if the change is rejected."""

    def gate(agent: str, program: Any, data: Any, **options: Any) -> "Change":
        found = compare_with_champion(agent, program, data, **options)
        report = request.config.getoption(_OPTION)
        if report:
            with Path(report).open("a", encoding="utf-8") as file:
                file.write(found.markdown())
        if found.rejected:
            pytest.fail(str(found), pytrace=False)
        return found

    return gate
