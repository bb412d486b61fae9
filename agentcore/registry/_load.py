"""`agentcore.load`: the program behind an alias, in an application."""

import copy
import hashlib
import json
import logging
import math
import shutil
import threading
import uuid
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dspy

from agentcore._sync import run_blocking
from agentcore._threads import run_in_thread
from agentcore.errors import ArtifactError, ConfigurationError, JournalError, TrackingError
from agentcore.registry._events import Release
from agentcore.registry._fetch import fetch_release, program_in
from agentcore.registry._registry import Registry
from agentcore.registry._release import check_files
from agentcore.registry._state import CHAMPION
from agentcore.settings import MLflowConfig, Settings
from agentcore.tracking import check_agent, destination_of

_logger = logging.getLogger("agentcore")

REFRESH_SECONDS = 30.0
_RELEASE = "release.json"

OnChange = Callable[["LiveProgram"], None]


class _Version(NamedTuple):
    number: str
    release: Release
    program: Any


class LiveProgram(dspy.Module):  # type: ignore[misc,unused-ignore]
    """The program behind an alias, replaced in the background when the alias moves.

    A call in progress finishes with the program that it started with.

    Attributes:
        program: the `dspy.Module` now in use.
        version: its number in MLflow.
        release: what was recorded when it was promoted.
    """

    def __init__(self, loaded: _Version) -> None:
        super().__init__()
        self._loaded = loaded
        self._stop = threading.Event()

    @property
    def program(self) -> Any:
        return self._loaded.program

    @property
    def version(self) -> str:
        return self._loaded.number

    @property
    def release(self) -> Release:
        return self._loaded.release

    def forward(self, **inputs: Any) -> Any:
        """Call the current program."""
        return self.program(**inputs)

    async def aforward(self, **inputs: Any) -> Any:
        """Await the current program; one without `aforward` runs in a thread."""
        program = self.program
        if hasattr(program, "aforward"):
            return await program.acall(**inputs)
        return await run_in_thread(lambda: program(**inputs))

    def named_parameters(self) -> list[tuple[str, Any]]:
        """The current program's."""
        return list(self.program.named_parameters())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the current program, which is not replaced any more."""
        return copy.deepcopy(self.program, memo)

    def close(self) -> None:
        """Stop looking for new versions."""
        self._stop.set()


async def load(
    which: str,
    *,
    config: MLflowConfig | None = None,
    program: "dspy.Module" = None,
    refresh: float | None = None,
    on_change: OnChange | None = None,
) -> Any:
    """The program of `"agent@champion"`, `"agent@staging"` or `"agent/3"`, without an LM.

    Files and tags are checked against what was recorded at the promotion, and cached on disk by version. If
    MLflow can't be reached, the last version that was loaded here is used, and a warning says so.

    Args:
        which: an agent's name alone means its champion.
        config: the MLflow server; default: from the environment.
        program: a fresh instance to load into, for a class that can't be imported.
        refresh: seconds between checks whether the alias has moved; returns a `LiveProgram`, whose program is
            then replaced in the background. Default: no refreshing; with `on_change`, 30.
        on_change: called with the `LiveProgram`, in a background thread, after each replacement.

    Raises:
        ConfigurationError: there is no such agent, alias or version.
        ArtifactError: a file or a tag was changed; nothing is loaded.
        TrackingError: MLflow can't be reached, and no version was loaded here before.
    """
    if refresh is not None and not 0 < refresh < math.inf:
        raise ConfigurationError(f"refresh={refresh:g}: use the seconds between checks, above 0")
    loader = _Loader(which, config, program)
    loaded = await loader.load()
    if refresh is None and on_change is None:
        return loaded.program
    live = LiveProgram(loaded)
    loader.follow(live, refresh or REFRESH_SECONDS, on_change)
    return live


def load_blocking(which: str, **options: Any) -> Any:
    """`load`, blocking."""
    return run_blocking(load(which, **options))


class _Loader:
    def __init__(self, which: str, config: MLflowConfig | None, program: "dspy.Module") -> None:
        self.agent, self.wanted = _parsed(which)
        self.config = config or MLflowConfig()
        self.program = program
        where = hashlib.sha256(destination_of(self.config).encode()).hexdigest()[:16]
        self.folder = Settings().state_directory() / "programs" / where / self.agent
        self._warned = False
        self._registry = Registry(self.agent, self.config)

    async def load(self, known: _Version | None = None) -> _Version:
        """The version, or `known` if it is that one."""
        try:
            number, release = await self._registry.current(self.wanted)
        except (TrackingError, JournalError) as error:
            return await run_in_thread(partial(self._last_good, error))
        self._warned = False
        if known is not None and known.number == number:
            return known
        return await self._version(number, release)

    async def _version(self, number: str, release: Release) -> _Version:
        """A version from the cache, or downloaded into it as a whole."""
        directory = self.folder / number
        try:
            found = await run_in_thread(lambda: self._cached(directory, release))
        except ArtifactError:
            found = None  # a cached file was changed: download it again
        if found is None:
            draft = self.folder / f".new-{uuid.uuid4().hex[:8]}"
            draft.mkdir(parents=True, mode=0o700)
            try:
                try:
                    await fetch_release(self._registry.gateway, release, draft)
                except TrackingError as error:
                    return await run_in_thread(partial(self._last_good, error))
                found = await run_in_thread(lambda: program_in(draft, release, self.program))
                await run_in_thread(lambda: self._keep(draft, directory, number, release))
            finally:
                await run_in_thread(lambda: shutil.rmtree(draft, ignore_errors=True))
        await run_in_thread(lambda: self._point(number))
        return _Version(number, release, found)

    def _cached(self, directory: Path, release: Release) -> Any:
        if not directory.is_dir():
            return None
        found = {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in directory.rglob("*")
            if path.is_file() and path.name != _RELEASE
        }
        check_files(found, release)
        return program_in(directory, release, self.program)

    def _keep(self, draft: Path, directory: Path, number: str, release: Release) -> None:
        """Move a downloaded version into the cache, unless another process was faster."""
        content = {"version": number, "release": release.model_dump(mode="json")}
        (draft / _RELEASE).write_text(json.dumps(content), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory, ignore_errors=True)
        try:
            draft.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise

    def _point(self, number: str) -> None:
        """Remember which version an alias pointed to."""
        if self.wanted.isdigit():
            return
        draft = self.folder / f".alias-{uuid.uuid4().hex[:8]}"
        draft.write_text(number, encoding="utf-8")
        draft.replace(self.folder / f"{self.wanted}.alias")

    def _last_good(self, error: Exception) -> _Version:
        pointer = self.folder / f"{self.wanted}.alias"
        number = self.wanted
        if not number.isdigit():
            number = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        record = self.folder / number / _RELEASE
        if not number.isdigit() or not record.is_file():
            raise error
        release = Release.model_validate(json.loads(record.read_text(encoding="utf-8"))["release"])
        found = self._cached(record.parent, release)
        if not self._warned:
            self._warned = True
            _logger.warning("%s. Continuing with version %s of %s, loaded earlier", error, number, self.agent)
        return _Version(number, release, found)

    def follow(self, live: LiveProgram, seconds: float, on_change: OnChange | None) -> None:
        """Replace the program in the background until it is closed or garbage-collected."""
        reference, stop = weakref.ref(live), live._stop

        def run() -> None:
            while not stop.wait(seconds):
                if reference() is None:
                    return
                self._refresh(reference, on_change)

        threading.Thread(target=run, name=f"agentcore-refresh-{self.agent}", daemon=True).start()

    def _refresh(self, reference: "weakref.ref[LiveProgram]", on_change: OnChange | None) -> None:
        live = reference()
        if live is None:
            return
        known = live._loaded
        del live  # or the thread would keep it alive while it asks
        try:
            loaded = run_blocking(self.load(known))
        except Exception as error:  # noqa: BLE001 - logged; the application keeps its program
            if not self._warned:
                self._warned = True
                _logger.warning("%s was not refreshed: %s", self.agent, error)
            return
        live = reference()
        if live is None or loaded.number == live.version:
            return
        live._loaded = loaded
        if on_change is not None:
            try:
                on_change(live)
            except Exception:
                _logger.exception("on_change of %s raised", self.agent)


def _parsed(which: str) -> tuple[str, str]:
    agent, alias = which, CHAMPION
    for mark in ("@", "/"):
        if mark in which:
            agent, _, alias = which.rpartition(mark)
            break
    numbered = "/" in which and "@" not in which
    if numbered != alias.isdigit() or not alias.replace("-", "").replace("_", "").isalnum():
        raise ConfigurationError(f"{which!r} isn't valid: write agent@champion, agent@staging or agent/3")
    return check_agent(agent), alias
