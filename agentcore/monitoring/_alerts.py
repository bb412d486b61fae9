"""Alerts by webhook, Slack, e-mail and whatever else Apprise knows: once, and again when it is over."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import SecretStr

from agentcore._naming import now_ms
from agentcore._redaction import first_line
from agentcore._sync import SyncTwin, blocking
from agentcore._threads import run_in_thread
from agentcore.errors import AlertError, ConfigurationError
from agentcore.journal import Journal, open_journal, wait
from agentcore.monitoring._drift import DriftReport
from agentcore.monitoring._events import AlertRaised, AlertResolved
from agentcore.monitoring._recorded import Regression
from agentcore.settings import Settings

_logger = logging.getLogger("agentcore")

REPEAT_HOURS = 24.0
_KIND = "alerts"


class AsyncAlerts:
    """`Alerts`, awaited.

    Args:
        agent: its name; alerts of different agents are independent.
        urls: where to, in Apprise's syntax: `json://host/path` (a webhook), `slack://…`, `mailto://…`;
            default: `AGENTCORE_ALERT_URLS`.
        repeat_hours: an alert that goes on is sent again after this time.
    """

    def __init__(
        self,
        agent: str,
        urls: Sequence[str] | None = None,
        *,
        repeat_hours: float = REPEAT_HOURS,
    ) -> None:
        configured = Settings().alert_urls
        text = configured.get_secret_value().replace(",", " ").split() if configured else []
        self.agent = agent
        self._urls = [SecretStr(url) for url in (text if urls is None else urls)]
        self.repeat_hours = repeat_hours
        self._stream = hashlib.sha256(f"alerts {agent}".encode()).hexdigest()[:32]

    @property
    def configured(self) -> bool:
        """Whether there is anywhere to send alerts to."""
        return bool(self._urls)

    def check(self) -> None:
        """Raise `ConfigurationError` if there is nowhere to send alerts to, or Apprise is not installed."""
        if not self._urls:
            raise ConfigurationError(
                "there is nowhere to send alerts to: set AGENTCORE_ALERT_URLS, such as "
                "json://hooks.example.com/agent or slack://…"
            )
        _senders(self._urls)

    async def raise_alert(self, key: str, title: str, text: str) -> bool:
        """Send an alert, unless the same one was sent and is not over; returns whether it was sent.

        Args:
            key: what it is about, such as `drift/loan_approval`.

        Raises:
            ConfigurationError: there is nowhere to send it to, or Apprise is not installed.
            AlertError: no receiver took it.
        """
        async with self._alone() as journal:
            if journal is None:
                return False
            last = await self._last(journal, key)
            if isinstance(last, AlertRaised) and now_ms() - last.timestamp_ms < self.repeat_hours * 3_600_000:
                return False
            await self._send(title, text, "warning")
            await journal.write(self._stream, [AlertRaised(key=key, title=title, text=text)])
            return True

    async def resolve(self, key: str, title: str, text: str = "") -> bool:
        """Say that the reason of an alert is gone, if one was sent; returns whether something was sent."""
        async with self._alone() as journal:
            if journal is None or not isinstance(await self._last(journal, key), AlertRaised):
                return False
            await self._send(title, text or title, "success")
            await journal.write(self._stream, [AlertResolved(key=key)])
            return True

    async def on_drift(self, report: DriftReport) -> bool:
        """Send what a drift check found, or that it is over."""
        key = f"drift/{report.current.dataset.rpartition('_')[0]}"
        if report.has_drift:
            return await self.raise_alert(key, f"Drift of {self.agent}", report.headline())
        return await self.resolve(key, f"No more drift of {self.agent}", report.headline())

    async def on_regression(self, found: Regression | None, dataset: str) -> bool:
        """Send that an agent is worse than at its last evaluation, or that this is over. Without a
        comparison, nothing is sent."""
        if found is None:
            return False
        key = f"regression/{dataset.rpartition('_')[0]}"
        if found.regressed:
            return await self.raise_alert(key, f"Regression of {self.agent} on {dataset}", str(found))
        return await self.resolve(key, f"No more regression of {self.agent} on {dataset}", str(found))

    # How

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[Journal | None]:
        """The journal, while no other process sends alerts of this agent; None if one does."""
        journal = await run_in_thread(open_journal)
        await wait(journal.create(self._stream, _KIND, self.agent, ""))
        lease = await wait(journal.acquire(self._stream, "work"))
        if lease is None:
            yield None
            return
        try:
            yield journal
        finally:
            await asyncio.shield(wait(journal.abandon(lease)))

    async def _last(self, journal: Journal, key: str) -> Any:
        entries = await run_in_thread(lambda: journal.read(self._stream))
        events = [entry.event for entry in entries if getattr(entry.event, "key", None) == key]
        return events[-1] if events else None

    async def _send(self, title: str, text: str, kind: str) -> None:
        self.check()
        sent = await run_in_thread(lambda: _notify(self._urls, title, text, kind))
        if not sent:
            raise AlertError(f"the alert {title!r} was not delivered: check AGENTCORE_ALERT_URLS")


def _senders(urls: Sequence[SecretStr]) -> list[Any]:
    try:
        import apprise
    except ImportError:
        raise ConfigurationError("alerts need Apprise: pip install 'agentcore[alerts]'") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs addresses with their secrets
    senders = []
    for number, url in enumerate(urls, 1):
        sender = apprise.Apprise()
        if not sender.add(url.get_secret_value()):
            raise ConfigurationError(f"alert receiver {number} has no address that Apprise understands")
        senders.append(sender)
    return senders


def _notify(urls: Sequence[SecretStr], title: str, text: str, kind: str) -> bool:
    """Send to all receivers; false if none of them took it."""
    senders = _senders(urls)
    taken = []
    for number, sender in enumerate(senders, 1):
        try:
            taken.append(bool(sender.notify(body=text, title=title, notify_type=kind)))
        except TypeError as error:  # Apprise's own, for an empty text
            raise AlertError(f"the alert {title!r} can't be sent: {first_line(error)}") from None
        if not taken[-1]:
            _logger.warning("alert receiver %d of %d did not take %r", number, len(senders), title)
    return any(taken)


class Alerts(SyncTwin):
    """Alerts about one agent, sent once and again when they are over. `.aio` is the awaitable twin.

    Args:
        agent, urls, options: see `AsyncAlerts`.
    """

    _target: AsyncAlerts

    def __init__(self, agent: str, urls: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(AsyncAlerts(agent, urls, **options))

    @property
    def aio(self) -> AsyncAlerts:
        """The same, awaited."""
        return self._target

    raise_alert = blocking(AsyncAlerts.raise_alert)
    resolve = blocking(AsyncAlerts.resolve)
    on_drift = blocking(AsyncAlerts.on_drift)
    on_regression = blocking(AsyncAlerts.on_regression)
