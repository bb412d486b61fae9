"""The page: without scripts, with a browser, for a keyboard and for a screen reader."""

import asyncio
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agentcore.api._pages import _fragment
from tests.api.conftest import READ, entry, running
from tests.api.test_operations import OPTIMIZE
from tests.api.test_process import AGENTS, LONG, Served, searching, until
from tests.registry.conftest import AGENT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The text of a page, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "action") and value]


async def signed_in(client):
    await client.post("/login", data={"token": READ})


async def test_what_it_shows(served, monkeypatch):
    async with running(served.config, token=None) as client:
        await signed_in(client)
        service = client.service
        evaluation = await service.operations.request("evaluation", AGENT, {"dataset_name": "colours"}, "ci")
        async with asyncio.timeout(60):
            while not (await service.operations.get(evaluation.id)).ended:
                await asyncio.sleep(0.1)
        await service.overview.refresh(AGENT)
        page = Page((await client.get("/")).text)
        for told in (AGENT, "version 1 (1.0.0)", "colours_v1", "evaluation", "completed", "accuracy 9", "by"):
            assert told.lower() in page.text.lower(), told
        assert all(item.startswith(("/", "#")) for item in page.loads), page.loads  # no CDN
        agent = Page((await client.get(f"/agents/{AGENT}")).text)
        for told in ("Evaluations", "bypassing the gate: for the tests", "Promoted by", "colours_v1"):
            assert told in agent.text, told
        assert (await client.get("/agents/nobody")).status_code == 404
        for path in ("style.css", "live.js", "icon.svg"):
            assert (await client.get(f"/static/{path}")).status_code == 200
        assert (await client.get("/static/../../_tokens.py")).status_code == 404


async def test_what_is_hostile_stays_text(served):
    attack = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    agents = {AGENT: entry(), "other": entry()}
    async with running(served.config, agents, token=None) as client:
        await signed_in(client)
        client_of_store = served.client()
        from agentcore.tracking import Experiments

        name = Experiments(AGENT, served.config).evaluation
        found = client_of_store.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client_of_store.create_experiment(name)
        run = client_of_store.create_run(experiment, tags={"evaluation_type": "comprehensive"})
        client_of_store.log_param(run.info.run_id, "dataset", attack)
        client_of_store.set_terminated(run.info.run_id)
        await client.service.overview.refresh(AGENT)
        for path in ("/", f"/agents/{AGENT}"):
            page = Page((await client.get(path)).text)
            assert "img" not in page.tags
            assert page.tags.count("script") <= 1
            assert "alert(1)" in page.text
        operation = await client.service.operations.request(
            "evaluation", AGENT, {"dataset_name": attack}, attack
        )
        await client.service.operations.cancel(operation, attack)
        shown = await client.service.operations.shown(await client.service.operations.get(operation.id))
        assert "img" not in Page(_fragment([shown])).tags


async def test_it_answers_while_mlflow_is_away(served, monkeypatch):
    from agentcore.errors import TrackingError

    async with running(served.config, token=None) as client:
        await signed_in(client)
        await client.service.overview.refresh(AGENT)

        async def away(*args, **kwargs):
            raise TrackingError("MLflow at http://x doesn't answer")

        monkeypatch.setattr(client.service.overview, "_read", away)
        async with asyncio.timeout(20):  # what had begun before may still end well
            while "This is the state as of" not in (text := Page((await client.get("/")).text).text):
                await client.service.overview.refresh(AGENT)
        assert "doesn't answer" in text.replace("&#39;", "'")
        assert "version 1" in text


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: the page is not tried in a browser")
    with playwright.sync_playwright() as running_browser:
        chromium = running_browser.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def site(config, tmp_path, data):
    (tmp_path / "agents.toml").write_text(AGENTS)
    server = Served(
        tmp_path, MLFLOW_TRACKING_URI=config.tracking_uri, MLFLOW_ARTIFACT_LOCATION=config.artifact_location
    ).ready()
    yield server
    server.kill()


def serious(page) -> list[tuple[str, str]]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(item["id"], item["impact"]) for item in found if item["impact"] in ("serious", "critical")]


def test_in_a_browser(browser, site: Served):
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    outside: list[str] = []
    page.on(
        "request", lambda request: None if request.url.startswith(site.url) else outside.append(request.url)
    )
    page.goto(site.url)
    assert page.url.endswith("/login")
    assert serious(page) == []
    # With the keyboard alone: the field has the focus.
    page.keyboard.type(READ)
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Overview')")
    page.wait_for_selector("#live-state:has-text('Live')")
    assert "Nothing has been requested yet" in page.inner_text("#operations")
    operation = site.post("optimizations", LONG).json()["id"]
    page.wait_for_selector(f"#operations code:has-text('{operation[:8]}')")
    until(lambda: searching(site, operation))
    page.get_by_text(re.compile(r"\d+ trials")).first.wait_for()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious(page) == [], scheme
    page.keyboard.press("Tab")  # the link that skips the navigation comes first
    assert page.evaluate("document.activeElement.className") == "skip"
    page.click(f"a:has-text('{AGENT}')")
    page.wait_for_selector(f"h1:has-text('{AGENT}')")
    assert serious(page) == []
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto(site.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.click("text=Sign out")
    page.wait_for_selector("h1:has-text('Sign in')")
    assert outside == []
    assert problems == [item for item in problems if "/live" in item]  # a stream ends with its page


def test_without_scripts(browser, site: Served):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.url)
    page.fill("#token", READ)
    page.click("button:has-text('Sign in')")
    assert "Overview" in page.inner_text("h1")
    operation = site.post("optimizations", {**OPTIMIZE}).json()["id"]
    assert "Reload the page" in page.content()
    until(lambda: site.get(f"operations/{operation}")["status"] == "completed")
    page.reload()
    assert operation[:8] in page.inner_text("#operations")
    assert "completed" in page.inner_text("#operations")
    page.click(f"a:has-text('{AGENT}')")
    assert AGENT in page.inner_text("h1")
    context.close()


def test_the_package_has_its_pages():
    """They are found in a wheel, too: beside the modules."""
    import agentcore.api

    folder = Path(agentcore.api.__file__).parent
    assert (folder / "templates" / "overview.html").is_file()
    assert (folder / "static" / "live.js").is_file()
