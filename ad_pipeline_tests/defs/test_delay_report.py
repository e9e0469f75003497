"""The delay report as an asset: made alone, shown whole, and its check told by served scores."""

import dagster as dg

from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.defs.runs import failed, made, run_here

ASSET, CHECK = "monitoring/delay_report", "calibrated_at_every_ad_age"


def score_by_what_came(market: Market, factor: float) -> None:
    """Let every score of the online expert be what its ad converts at, over a factor."""
    with Warehouse(market.deployment.warehouse).writer() as connection:
        connection.execute(
            "CREATE TEMP TABLE rates AS SELECT goal, ad_id, "
            "(sum(label) + 0.5) / (count(*) + 1) / $factor AS rate "
            "FROM examples.labelled_impressions JOIN events.impressions USING (impression_id) "
            "GROUP BY ALL",
            {"factor": factor},
        )
        connection.execute("DELETE FROM learners.batch_predictions")
        connection.execute(
            "UPDATE learners.online_predictions AS said SET logit = ln(rate / (1 - rate)) "
            "FROM rates, events.impressions AS shown WHERE rates.goal = said.goal "
            "AND shown.impression_id = said.impression_id AND rates.ad_id = shown.ad_id"
        )


def checked(market: Market, definitions: dg.Definitions) -> dg.ExecuteInProcessResult:
    ran = run_here(definitions, [ASSET])
    assert ran.success
    assert made(ran) == {ASSET}
    return ran


def test_the_report_is_made_alone_and_shows_what_it_found(
    own_market: Market, definitions: dg.Definitions
):
    score_by_what_came(own_market, 1.0)
    ran = checked(own_market, definitions)
    (event,) = ran.get_asset_materialization_events()
    shown = event.materialization.metadata
    for goal in ("click", "purchase"):
        assert str(shown[f"{goal}: finding"].value).startswith("Recommended: ")
        assert "data:image/png" in str(shown[f"{goal}: picture"].value)
        assert 0 < float(str(shown[f"{goal}: rate"].value)) < 1
        assert (own_market.deployment.reports / f"delay_report_{goal}.png").is_file()
    page = own_market.deployment.reports / "delay_report.html"
    assert shown["the page"].value == str(page)
    assert "What each way of learning would do" in page.read_text()
    found = {each.check_name: each for each in ran.get_asset_check_evaluations()}
    assert found.keys() == {CHECK}
    assert failed(found) == set()


def test_scores_of_half_of_what_comes_warn_and_fail_nothing(
    own_market: Market, definitions: dg.Definitions
):
    """Planted fault: the scores that were served are half of the rates of their ads."""
    score_by_what_came(own_market, 2.0)
    (found,) = checked(own_market, definitions).get_asset_check_evaluations()
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.description is not None
    assert "positives for each predicted at ad ages" in found.description
