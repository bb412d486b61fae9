"""Resolves a user's argument or settings to a `dspy.LM`."""

import re
from typing import TYPE_CHECKING, Any

from agentcore.errors import ConfigurationError
from agentcore.settings import Settings

if TYPE_CHECKING:
    import dspy

GENERATION_SETTINGS = frozenset(
    {
        "cache",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "n",
        "presence_penalty",
        "reasoning_effort",
        "rollout_id",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
    }
)
"""Settings of a model that may be stored, and brought back by a stored program; never an endpoint, key,
header or callback."""
OFFLINE_LM = "offline/knn"
OFFLINE_NOTE = "offline/knn is not a large language model: it shows the mechanics"


def offline_lm(
    latency: float = 0.0,
    error_rate: float = 0.0,
    *,
    seed: int = 0,
    cache: bool = False,
    num_retries: int = 3,
    max_tokens: int = 1000,
) -> "dspy.LM":
    """The offline engine as a `dspy.LM`; `lm.engine.calls` counts its requests.

    Args:
        latency: seconds per request.
        error_rate: share of requests, 0–1, that fail with a retryable error.
        seed: random seed that determines which requests fail.
        cache: whether DSPy caches its answers.
        num_retries: DSPy's retries of a failed request.
        max_tokens: maximum answer length; longer answers are truncated.
    """
    from agentcore.lm.offline import make_offline_lm

    return make_offline_lm(latency, error_rate, seed, cache, num_retries, max_tokens)


_FIXED_HOSTS = frozenset(
    {
        *("anthropic", "azure", "cohere", "deepseek", "fireworks_ai", "gemini", "groq", "mistral", "ollama"),
        *("ollama_chat", "openai", "openrouter", "perplexity", "together_ai", "xai"),
    }
)
"""Providers whose host doesn't depend on the model's name."""


def resolve_lm(lm: "dspy.BaseLM | str | None" = None) -> "dspy.BaseLM":
    """Resolve `lm`, a `dspy.LM` or a name such as `openai/gpt-5-mini`. None uses `AGENTCORE_LM` if set,
    otherwise `dspy.settings.lm`.

    Raises:
        ConfigurationError: there is none, or the name is not valid.
    """
    import dspy

    if lm is None:
        lm = Settings().lm or dspy.settings.lm
    if lm is None:
        raise ConfigurationError(
            "no language model: pass lm= (or --lm), set AGENTCORE_LM, or run inside dspy.context(lm=…). "
            f"{OFFLINE_LM!r} needs no key and no network"
        )
    if isinstance(lm, dspy.BaseLM):
        return completed(lm)
    if not isinstance(lm, str):
        raise ConfigurationError(f"lm must be a dspy.LM or a name, got {type(lm).__name__}")
    if lm.startswith("offline/"):
        if lm != OFFLINE_LM:
            raise ConfigurationError(f"no offline model {lm!r}: use {OFFLINE_LM!r}")
        return offline_lm()
    provider, separator, model = lm.partition("/")
    if not (provider and separator and model):
        raise ConfigurationError(
            f"{lm!r} is not a language model: use provider/model, such as openai/gpt-5-mini"
        )
    try:
        return dspy.LM(lm)
    except (ValueError, dspy.LMError) as error:
        raise ConfigurationError(f"language model {lm!r}: {error}") from None


def completed(lm: "dspy.BaseLM") -> "dspy.BaseLM":
    """A model whose class doesn't call `BaseLM.__init__`, with the attributes that DSPy reads."""
    defaults = {"model": type(lm).__name__, "model_type": "chat", "kwargs": {}, "cache": False}
    for name, value in {**defaults, "history": [], "callbacks": [], "num_retries": 0}.items():
        if not hasattr(lm, name):
            setattr(lm, name, value)
    return lm


def check_stored_name(name: Any) -> None:
    """Raise `ConfigurationError` unless a model's name, which others may have written, can't choose where
    calls and keys go: some providers (`bedrock`, `huggingface`, …) take a host or an address as the name.

    The model that `AGENTCORE_LM` names is the user's own choice."""
    if name is None or name in (OFFLINE_LM, Settings().lm):
        return
    provider = name.partition("/")[0] if isinstance(name, str) else ""
    if provider not in _FIXED_HOSTS or not re.fullmatch(r"[\w-]+(/[\w.:+-]{1,100}){1,3}", name):
        raise ConfigurationError(
            f"the stored name of the language model, {str(name)[:80]!r}, could choose where your key is "
            "sent. If you trust it, pass it as lm= (or --lm), or set AGENTCORE_LM"
        )


def is_offline(lm: Any) -> bool:
    """Whether a model is the offline engine."""
    return str(getattr(lm, "model", "")).startswith("offline/")
