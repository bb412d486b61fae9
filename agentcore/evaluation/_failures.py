"""Which of several concurrent errors to report."""

from collections.abc import Iterator

from agentcore.errors import AgentCoreError, MetricError
from agentcore.lm import SearchStopped


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report: a `SearchStopped` first, then a `MetricError`, then any other."""
    leaves = list(_leaves(errors))
    for kind in (SearchStopped, MetricError, AgentCoreError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
