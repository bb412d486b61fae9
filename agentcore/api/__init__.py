"""The HTTP API and its page; needs the extra `api`.

Names load on first use: DSPy and MLflow take seconds to import.
"""

from typing import TYPE_CHECKING

from agentcore._imports import lazy

if TYPE_CHECKING:
    from agentcore.api._agents import AgentEntry, Agents, Limits, Traffic, read_agents
    from agentcore.api._app import create_app
    from agentcore.api._arms import ArmClaim, ArmFigures, ArmsReply
    from agentcore.api._server import serve
    from agentcore.api._tokens import Caller, Role, Tokens

_MODULES = {
    "AgentEntry": "_agents",
    "Agents": "_agents",
    "ArmClaim": "_arms",
    "ArmFigures": "_arms",
    "ArmsReply": "_arms",
    "Caller": "_tokens",
    "Limits": "_agents",
    "Role": "_tokens",
    "Tokens": "_tokens",
    "Traffic": "_agents",
    "create_app": "_app",
    "read_agents": "_agents",
    "serve": "_server",
}

__all__ = [
    "AgentEntry",
    "Agents",
    "ArmClaim",
    "ArmFigures",
    "ArmsReply",
    "Caller",
    "Limits",
    "Role",
    "Tokens",
    "Traffic",
    "create_app",
    "read_agents",
    "serve",
]

__getattr__ = lazy(__name__, _MODULES)
