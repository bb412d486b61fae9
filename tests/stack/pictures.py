"""What MLflow's pages show of the runs, in a real browser: `python tests/stack/pictures.py URI`.

Needs Debian's chromium and PyPI's playwright. Exits 1 where a column, a plot or the model is missing; writes
the pictures to docs/images/.
"""

import argparse
import sys
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLUMNS = ("baseline_quality_score", "optimized_quality_score", "improvement_percentage")


CHOOSE = """columns => {
    for (const key of Object.keys(localStorage).filter(key => key.includes("ExperimentPage"))) {
        const state = JSON.parse(localStorage.getItem(key));
        state.selectedColumns = ["attributes.`Models`", ...columns];
        localStorage.setItem(key, JSON.stringify(state));
    }
    for (const key of Object.keys(localStorage).filter(key => key.includes("assistant.panelOpen"))) {
        localStorage.setItem(key, "false");
    }
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri", help="of an MLflow with at least one finished optimization")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    from mlflow import MlflowClient
    from playwright.sync_api import sync_playwright

    client = MlflowClient(tracking_uri=given.uri)
    experiment = client.get_experiment_by_name("dspy-optimization")
    run = client.search_runs(
        [experiment.experiment_id], "attributes.status = 'FINISHED' and metrics.improvement_percentage > 0"
    )[0]
    page_of = f"{given.uri}/#/experiments/{experiment.experiment_id}"
    missing: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=given.browser, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1700, "height": 900})

        def see(url: str, wanted: tuple[str, ...], picture: str) -> None:
            page.goto(url)
            for text in wanted:
                try:
                    page.get_by_text(text).first.wait_for(timeout=30_000)
                except Exception:
                    missing.append(f"{picture}: {text}")
            page.wait_for_timeout(1_500)
            page.screenshot(path=str(IMAGES / picture))

        # MLflow keeps the columns that somebody chose in the browser, and opens its assistant at first.
        page.goto(f"{page_of}/runs")
        page.get_by_role("button", name="Columns", exact=True).wait_for(timeout=30_000)
        page.evaluate(CHOOSE, [f"metrics.`{name}`" for name in COLUMNS])
        page.reload()
        see(f"{page_of}/runs?orderByKey=attributes.start_time", COLUMNS, "mlflow-runs.png")
        page_of_run = f"{page_of}/runs/{run.info.run_id}"
        see(page_of_run, (*COLUMNS, "optimized_model"), "mlflow-run.png")
        see(f"{page_of_run}/artifacts/plots/trials.png", ("trials.png",), "mlflow-plot.png")
        browser.close()
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
