"""`agentcore serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agentcore.cli._console import err, import_from_here, note, run
from agentcore.cli._tracking import tracking_config
from agentcore.errors import ConfigurationError


def serve(
    agents: Annotated[
        Path | None,
        typer.Option(help="What requests may use [default: AGENTCORE_API_AGENTS, else agents.toml]."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [default: AGENTCORE_API_HOST, else 127.0.0.1].")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 for any [default: AGENTCORE_API_PORT, else 8000]."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=0, help="Operations at the same time; 0 only serves [default: AGENTCORE_API_JOBS, else 1]."
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask nobody for a token; only on a loopback address.")
    ] = False,
) -> None:
    """Serve the HTTP API and its page."""
    import logging

    import_from_here()
    from agentcore.settings import ApiSettings

    given: dict[str, Any] = {"agents": agents, "host": host, "port": port, "jobs": jobs}
    settings = ApiSettings(**{name: value for name, value in given.items() if value is not None})
    try:
        import fastapi  # noqa: F401
        import limits  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"serving needs {error.name}, which is not installed: pip install 'agentcore[api]'"
        ) from None
    config = tracking_config()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("agentcore").setLevel(logging.INFO)
    from agentcore.journal import open_journal
    from agentcore.settings import shown_uri

    journal = open_journal()
    place = f"tracking in {shown_uri(config.tracking_uri)} · journal at {journal.location}"
    err.print(
        f"[bold]agentcore[/] · {place} · loading DSPy and MLflow …",
        soft_wrap=True,
    )
    from agentcore.api import Tokens, create_app, read_agents
    from agentcore.api import serve as serve_app

    allowed = read_agents(settings.agents)
    tokens = None
    if not no_auth and settings.tokens is None:
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigurationError(
                f"AGENTCORE_API_TOKENS is not set, and others may reach {settings.host}: give "
                "name:role:token, such as ci:run:$(openssl rand -hex 24)"
            )
        tokens, text = Tokens.make()
        note(f"AGENTCORE_API_TOKENS is not set; until this command ends, the token is: {text}")
    app = create_app(allowed, config=config, settings=settings, tokens=tokens, open_to_all=no_auth)

    def ready(url: str) -> None:
        err.print(f"serving {url} (Ctrl-C to stop)", soft_wrap=True)

    serving = serve_app(app, settings.host, settings.port, reuse_port=settings.reuse_port, on_ready=ready)
    run(serving)
