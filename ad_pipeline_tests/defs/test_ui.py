"""What a person sees in Dagster's UI after the market was run, looked at in Chromium.

One server and one browser for all of it: they cost more than the pages. Texts of Dagster's own that
the tests look for ("Plots", "Succeeded") may change with its version.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ad_pipeline_tests.defs.live import chromium, webserver
from ad_pipeline_tests.defs.markets import Market

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOMS = ("events", "examples", "features", "learners", "evaluation", "serving", "monitoring")


class Visitor:
    """A browser tab that remembers what went wrong in it."""

    def __init__(self, page: "Page", address: str) -> None:
        self.page = page
        self._address = address
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on(
            "console",
            lambda said: (
                self.errors.append(f"console: {said.text}") if said.type == "error" else None
            ),
        )
        page.on(
            "response",
            lambda response: (
                self.errors.append(f"{response.status}: {response.url}")
                if response.status >= 400
                else None
            ),
        )

    def opens(self, path: str) -> "Page":
        """Open a page of the UI."""
        self.page.goto(self._address + path)
        return self.page

    def sees(self, *texts: str) -> None:
        """Wait until each text is on the page.

        Raises
        ------
        playwright.sync_api.TimeoutError
            If one does not come.
        """
        for text in texts:
            self.page.get_by_text(text, exact=True).filter(visible=True).first.wait_for()


@pytest.fixture(scope="module")
def visitor(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    log: Path = tmp_path_factory.mktemp("ui") / "webserver.log"
    # Tall, so that what stands low on a page is drawn too.
    with webserver(market.environment(), log) as address, chromium(1600, 2400) as context:
        yield Visitor(context.new_page(), address)


def test_the_graph_shows_every_room_and_unfolds_to_its_assets(visitor: Visitor) -> None:
    page = visitor.opens("/asset-groups")
    visitor.sees(*ROOMS)
    page.keyboard.press("Alt+KeyE")
    visitor.sees("impressions", "training_examples", "online_model", "ensemble", "bundle", "report")
    assert visitor.errors == []


def test_progressive_metrics_are_plotted(visitor: Visitor) -> None:
    page = visitor.opens("/assets/evaluation/progressive_metrics")
    visitor.sees("Hour in which the labels matured.")
    page.get_by_role("button", name="Plots").click()
    # By partition, Dagster 1.13 looks for the newest hours from today on, even in a closed log.
    page.get_by_role("button", name="Events").click()
    visitor.sees("click/online/log_loss", "purchase/online/normalized_entropy")
    plots = page.locator("canvas").filter(visible=True)
    plots.first.wait_for()
    assert plots.count() >= 4
    assert visitor.errors == []


def test_the_report_shows_its_pictures_and_its_ranges(visitor: Visitor) -> None:
    page = visitor.opens("/assets/evaluation/report")
    visitor.sees("click/test_range")
    row = page.get_by_role("row").filter(has=page.get_by_text("metrics", exact=True))
    row.get_by_text("[Show Markdown]").click()
    picture = page.get_by_role("dialog").locator("img")
    picture.wait_for()
    assert picture.evaluate("image => image.complete && image.naturalWidth > 500")
    assert visitor.errors == []


@pytest.mark.parametrize(
    ("asset", "checks"),
    [
        ("events/impressions", ["every_row_is_accounted_for"]),
        ("learners/online_model", ["newest_checkpoint_is_intact"]),
        ("monitoring/candidate_replay", ["scores_agree_to_the_bit", "features_agree_with_sql"]),
    ],
)
def test_checks_have_passed(visitor: Visitor, asset: str, checks: list[str]) -> None:
    page = visitor.opens(f"/assets/{asset}?view=checks")
    visitor.sees(*checks, "Succeeded")
    assert page.get_by_text("Succeeded", exact=True).count() >= len(checks)
    assert page.get_by_text("Failed", exact=True).count() == 0
    assert visitor.errors == []


def test_sensors_and_schedule_are_listed(visitor: Visitor) -> None:
    visitor.opens("/automation")
    visitor.sees("new_log_files", "closed_hours", "drift_retrain", "automation", "hourly")
    visitor.sees("Scheduled At 10 minutes past the hour")
    assert visitor.errors == []
