"""Names of OpenTelemetry's semantic conventions for generative AI, version 1.37; change them here only."""

DURATION = "gen_ai.client.operation.duration"
"""Histogram, seconds."""
TOKENS = "gen_ai.client.token.usage"
"""Histogram, tokens; by `TOKEN_TYPE`."""
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 - no password
INPUT, OUTPUT = "input", "output"
MODEL = "gen_ai.request.model"
AGENT = "gen_ai.agent.name"
OPERATION = "gen_ai.operation.name"
INVOKE_AGENT = "invoke_agent"
ERROR_TYPE = "error.type"

REQUESTS = "agentcore.agent.requests"
"""Not part of the conventions: counter, by `STATUS`."""
STATUS = "agentcore.status"
ERRORS = "agentcore.agent.errors"
DURATION_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Seconds: the bounds that the conventions advise."""
