"""What a person sees in Dagster's UI after the market was run, looked at in Chromium.

One server and one browser for all of it: they cost more than the pages. Texts of Dagster's own that
the tests look for ("Plots", "Succeeded") may change with its version.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from ad_pipeline_tests.defs.graph_shape import snapshot_file
from ad_pipeline_tests.defs.live import chromium, webserver
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.defs.runs import BESIDE_THE_PATH

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ASSETS = re.findall(r"^  (\w+/\w+) ", snapshot_file("marketplace").read_text(), re.MULTILINE)
"""The tiny market has the reviewed graph of the simulated exchange; ``test_graph.py`` holds it."""

LIKE_THE_OTHERS = {
    "events/auctions", "events/duplicates", "events/held_engagements", "events/quarantine",
    "events/retractions", "events/user_activities", "learners/retrains",
}  # fmt: skip
"""Pages made by the same lines as others: they are looked at in the slow tests."""

PAGES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_THE_OTHERS else [])
    for name in ASSETS
]

SMALL_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY"
    "42YAAAAASUVORK5CYII="
)
"""One pixel: an image, but no picture for people."""

PATIENCE_MS = 15_000

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

    def sees_somewhere(self, text: str, patience_ms: int = PATIENCE_MS) -> None:
        """Wait until a text is part of what the page shows.

        Raises
        ------
        AssertionError
            If it does not come.
        """
        from playwright.sync_api import TimeoutError as NotThere

        try:
            self.page.get_by_text(text).filter(visible=True).first.wait_for(timeout=patience_ms)
        except NotThere as error:
            raise AssertionError(f"{text!r} is not on the page") from error


def no_error_so_far(visitor: Visitor) -> None:
    """Assert that no page threw, logged an error or asked in vain for something."""
    assert visitor.errors == []


def picture_is_drawn(image: "Locator", patience_ms: int = PATIENCE_MS) -> None:
    """Assert that an image was decoded, can be looked at, and fits a dialog on a laptop."""
    image.wait_for(timeout=patience_ms)
    width = image.evaluate("image => image.decode().then(() => image.naturalWidth, () => 0)")
    assert 500 < width < 1000, f"no picture: {width} pixels wide"


def plots_are_drawn(
    visitor: Visitor, figures: Sequence[str], patience_ms: int = PATIENCE_MS
) -> None:
    """Assert that there is a drawing for each figure."""
    plots = visitor.page.locator("canvas").filter(visible=True)
    waited = 0
    while (drawn := plots.count()) < len(figures):
        assert waited < patience_ms, f"{drawn} plots for {len(figures)} figures"
        visitor.page.wait_for_timeout(100)
        waited += 100


def plotted_figures(instance: dg.DagsterInstance, asset: dg.AssetKey) -> list[str]:
    """Return the labels of the numbers that an asset's newest materializations show."""
    newest = instance.fetch_materializations(asset, limit=24).records
    return sorted(
        {
            name
            for record in newest
            if record.asset_materialization is not None
            for name, value in record.asset_materialization.metadata.items()
            if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue)
        }
    )


def first_sentence(description: str) -> str:
    """Return the start of a description as it is shown, without Markdown."""
    return re.split(r"[.:;`]", description)[0].strip()


@pytest.fixture(scope="module")
def visitor(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    log: Path = tmp_path_factory.mktemp("ui") / "webserver.log"
    # Tall, so that what stands low on a page is drawn too.
    with webserver(market.environment(), log) as address, chromium(1600, 2400) as context:
        yield Visitor(context.new_page(), address)


def test_the_graph_shows_every_room_and_unfolds_to_its_assets(visitor: Visitor) -> None:
    page = visitor.opens("/asset-groups")
    visitor.sees(*ROOMS)
    # The unfolded graph is larger than any window: the list beside it unfolds room by room.
    for room, asset in (
        ("events", "impressions"), ("examples", "training_examples"),
        ("learners", "online_model"), ("evaluation", "report"), ("serving", "bundle"),
    ):  # fmt: skip
        box = page.get_by_text(room, exact=True).first.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] - 40, box["y"] + box["height"] / 2)  # the folder's triangle
        visitor.sees(asset)
    page.keyboard.press("Alt+KeyE")
    visitor.sees("files", "engagements")
    no_error_so_far(visitor)


@pytest.mark.parametrize("asset", PAGES)
def test_every_page_describes_its_asset_and_plots_its_figures(
    visitor: Visitor, instance: dg.DagsterInstance, definitions: dg.Definitions, asset: str
) -> None:
    page = visitor.opens(f"/assets/{asset}")
    key = dg.AssetKey(asset.split("/"))
    node = definitions.resolve_asset_graph().get(key)
    visitor.sees_somewhere(first_sentence(node.description or ""))
    figures = plotted_figures(instance, key)
    if figures:
        page.get_by_role("button", name="Plots").click()
        if node.partitions_def is not None:
            # By partition, Dagster looks for the newest hours from today on, even in a closed log.
            page.get_by_role("button", name="Events").click()
        plots_are_drawn(visitor, figures)
    assert all(
        figure == figure.strip() and "_" not in figure.partition(":")[2] for figure in figures
    )
    no_error_so_far(visitor)


def test_every_page_has_something_to_plot(instance: dg.DagsterInstance) -> None:
    """The test of every page looks at plots only where the event log has numbers."""
    without = {
        name for name in ASSETS if not plotted_figures(instance, dg.AssetKey(name.split("/")))
    }
    assert without == BESIDE_THE_PATH


def test_progressive_metrics_are_plotted(visitor: Visitor) -> None:
    page = visitor.opens("/assets/evaluation/progressive_metrics")
    visitor.sees("Hour in which the labels matured.")
    page.get_by_role("button", name="Plots").click()
    page.get_by_role("button", name="Events").click()
    visitor.sees("click, online: log loss", "purchase, online: normalized entropy")
    plots_are_drawn(visitor, ["click, online: log loss"] * 4)
    no_error_so_far(visitor)


@pytest.mark.parametrize(
    ("asset", "figure"),
    [
        ("evaluation/report", "metrics over time"),
        ("evaluation/report", "click: calibration"),
        ("monitoring/drift", "picture"),
    ],
)
def test_pictures_are_shown(visitor: Visitor, asset: str, figure: str) -> None:
    page = visitor.opens(f"/assets/{asset}")
    row = page.get_by_role("row").filter(has=page.get_by_text(figure, exact=True))
    row.get_by_text("[Show Markdown]").click()
    picture_is_drawn(page.get_by_role("dialog").locator("img"))
    no_error_so_far(visitor)


def test_the_report_prints_its_figures_and_the_drift_page_its_columns(visitor: Visitor) -> None:
    page = visitor.opens("/assets/evaluation/report")
    visitor.sees("click: test hours")
    row = page.get_by_role("row").filter(has=page.get_by_text("figures with intervals", exact=True))
    row.get_by_text("[Show Markdown]").click()
    page.get_by_role("dialog").get_by_text("ensemble v.").first.wait_for()
    page = visitor.opens("/assets/monitoring/drift")
    row = page.get_by_role("row").filter(has=page.get_by_text("columns", exact=True))
    row.get_by_text("[Show Markdown]").click()
    table = page.get_by_role("dialog").get_by_role("table")
    table.get_by_text("noise stays below").wait_for()
    assert table.get_by_role("row").count() > 5
    no_error_so_far(visitor)


@pytest.mark.parametrize(
    ("asset", "shown"),
    [
        ("learners/online_model", "click: checkpoint"),
        ("learners/batch_model", "click: model in force"),
        ("serving/bundle", "bundle"),
        ("serving/current", "now serving"),
        ("features/rates", "snapshot"),
    ],
)
def test_a_digest_does_not_cut_its_table_off_and_is_whole_one_click_away(
    visitor: Visitor, asset: str, shown: str
) -> None:
    page = visitor.opens(f"/assets/{asset}")
    row = page.get_by_role("row").filter(has=page.get_by_text(shown, exact=True)).first
    digest = row.get_by_role("cell").last.inner_text().strip()
    assert re.fullmatch("[0-9a-f]{12}", digest)
    page.get_by_role("row").filter(has_text="whole digest").get_by_text("[Show Markdown]").click()
    page.get_by_role("dialog").get_by_text(re.compile(f"^{digest}[0-9a-f]{{52}}$")).first.wait_for()
    no_error_so_far(visitor)


def wait_for_an_error(visitor: Visitor) -> None:
    """Wait for the first error, for ten seconds at most: a busy machine takes its time."""
    for _ in range(100):
        if visitor.errors:
            return
        visitor.page.wait_for_timeout(100)


def test_a_planted_error_of_a_page_is_found(visitor: Visitor) -> None:
    """What the other tests ask for must be able to fail."""
    visitor.opens("/automation")
    no_error_so_far(visitor)
    visitor.page.evaluate("console.error('planted')")
    with pytest.raises(AssertionError, match="planted"):
        no_error_so_far(visitor)
    visitor.errors.clear()
    visitor.page.evaluate("setTimeout(() => { throw new Error('thrown') })")
    wait_for_an_error(visitor)
    with pytest.raises(AssertionError, match="thrown"):
        no_error_so_far(visitor)
    visitor.errors.clear()
    visitor.page.evaluate("fetch('/no_such_page_of_the_api', {method: 'POST'})")
    wait_for_an_error(visitor)
    with pytest.raises(AssertionError, match="no_such_page"):
        no_error_so_far(visitor)
    visitor.errors.clear()


@pytest.mark.parametrize("source", ["data:image/png;base64,bm90IGEgcGljdHVyZQ==", SMALL_PNG])
def test_a_missing_picture_is_found(visitor: Visitor, source: str) -> None:
    visitor.opens("/automation")
    visitor.page.set_content(f"<img src='{source}' style='width: 9px; height: 9px'>")
    with pytest.raises(AssertionError, match="no picture"):
        picture_is_drawn(visitor.page.locator("img"))
    visitor.errors.clear()


def test_a_missing_plot_and_a_missing_sentence_are_found(visitor: Visitor) -> None:
    page = visitor.opens("/automation")
    page.set_content("<p>Rows</p><canvas width='9' height='9'></canvas>")
    plots_are_drawn(visitor, ["rows"])
    with pytest.raises(AssertionError, match="plots"):
        plots_are_drawn(visitor, ["rows", "late"], patience_ms=300)
    with pytest.raises(AssertionError, match="not on the page"):
        visitor.sees_somewhere("One row per impression shown", patience_ms=300)
    visitor.errors.clear()


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
    no_error_so_far(visitor)


def test_sensors_and_schedule_are_listed(visitor: Visitor) -> None:
    visitor.opens("/automation")
    visitor.sees("new_log_files", "closed_hours", "drift_actions", "automation", "hourly")
    visitor.sees("Scheduled At 10 minutes past the hour")
    no_error_so_far(visitor)
