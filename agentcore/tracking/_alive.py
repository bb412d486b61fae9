"""Whether a tracking server answers at once."""

import asyncio
from urllib.parse import urlsplit

from agentcore._threads import run_in_thread
from agentcore.settings import MLflowConfig

ALIVE_SECONDS = 0.02


async def is_alive(config: MLflowConfig, seconds: float = ALIVE_SECONDS) -> bool:
    """Whether the server answers within `seconds`, so that waiting for a run's id won't take long. A local
    store always does; Databricks isn't asked and counts as not answering."""
    uri = config.tracking_uri
    if not uri.startswith("http"):
        return not uri.startswith("databricks")
    try:
        # Looking up a host's name takes as long as it takes.
        return await asyncio.wait_for(run_in_thread(lambda: _answers(uri, seconds)), 2 * seconds)
    except TimeoutError:
        return False


def _answers(uri: str, seconds: float) -> bool:
    import requests

    parts = urlsplit(uri)
    try:
        with requests.get(
            f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/health",
            timeout=(seconds, seconds),
            allow_redirects=False,
            stream=True,
        ):
            return True
    except requests.RequestException:
        return False
