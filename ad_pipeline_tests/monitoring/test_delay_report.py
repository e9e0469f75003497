"""The delay report of a small simulated log: read, kept as rows, drawn and printed."""

from pathlib import Path

import pytest

from ad_pipeline import cli
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation.survival import DelayDistribution
from ad_pipeline.monitoring.delay_report.report_of_log import (
    PAGE,
    WrittenReport,
    known_anchors,
    seen_ads,
    write_delay_report,
)
from ad_pipeline.monitoring.tables import DELAY_REPORT
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market

SMALL = {"delay_report": {"anchors": 2_000, "worlds": 2}}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market with labels, and a stand-in for the experts that always says 0.3."""
    made = ready_market(tmp_path_factory.mktemp("late"), settings=SMALL)
    with Warehouse(made.deployment.warehouse).writer() as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS learners")
        connection.execute(
            "CREATE TABLE learners.predictions AS SELECT goal, impression_id, 'online' AS expert, "
            "ln(0.3 / 0.7) AS logit, serving_us FROM examples.labelled_impressions"
        )
    return made


@pytest.fixture(scope="module")
def written(market: Market) -> WrittenReport:
    return write_delay_report(Warehouse(market.deployment.warehouse), market.deployment)


def test_every_goal_has_figures_a_picture_and_a_sentence(
    market: Market, written: WrittenReport
) -> None:
    assert [report.facts.goal.name for report in written.goals] == ["click", "purchase"]
    assert all(png.startswith(b"\x89PNG") for png in written.pictures.values())
    page = (market.deployment.reports / PAGE).read_text()
    assert page.count("data:image/png;base64,") == 2
    for report in written.goals:
        assert report.found is not None
        assert report.found.arm.name in page
    said = [row["said"] for row in written.rows.to_pylist() if row["said"]]
    assert sum(sentence.startswith("Recommended: ") for sentence in said) == 2


def test_anchors_and_positives_are_those_of_the_label_join(
    market: Market, written: WrittenReport
) -> None:
    with Warehouse(market.deployment.warehouse).reader() as connection:
        counted = connection.execute(
            "SELECT goal, count(*), sum(label)::BIGINT FROM examples.labelled_impressions "
            "GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        kept = connection.execute(
            f"SELECT goal, about, name, part, metric FROM {DELAY_REPORT.name}"
        ).fetchall()
    facts = [report.facts for report in written.goals]
    assert [(f.goal.name, f.anchors, f.positives) for f in facts] == counted
    # Everything has matured at the end of the log: censored or not, the rate is the share.
    assert facts[0].delays.rate.value == pytest.approx(facts[0].positives / facts[0].anchors)
    assert len(kept) == len(set(kept)) == written.rows.num_rows


def test_at_an_earlier_moment_nothing_later_is_known(market: Market) -> None:
    """As of an afternoon: later arrivals are waited for, and how many there are is told.

    Not as of the evening, in which this market converts more than before: of a change that nobody
    has seen yet no censoring tells.
    """
    dataset = market.deployment.dataset
    goal = next(each for each in dataset.goals if each.name == "purchase")
    now_us = market.start_us + 18 * HOUR_US
    with Warehouse(market.deployment.warehouse).reader() as connection:
        names, ads = seen_ads(connection, now_us)
        known = known_anchors(connection, dataset, goal, names, market.start_us, now_us)
        later = connection.execute(
            "SELECT count(*) FROM examples.labelled_impressions WHERE goal = 'purchase' "
            "AND anchor_us < $now_us AND label = 1 AND arrived_us >= $now_us",
            {"now_us": now_us},
        ).fetchone()
    assert ads is not None
    assert ads.traffic_end_us <= now_us
    assert known.arrived_us.max() < now_us
    assert known.serving_us.max() < now_us
    assert 0 < known.matured.sum() < len(known.matured)
    waiting = ~known.matured & ~known.positive
    delays: DelayDistribution = known.delays()
    assert later is not None
    expected = delays.expected_to_come(known.ages_us[waiting])
    assert later[0] > 0
    assert expected.low <= later[0] <= expected.high
    assert (known.ages_us[waiting] < goal.window_us + goal.lateness_us).all()


def test_a_report_of_one_goal_leaves_the_rows_of_the_others(
    market: Market,
    written: WrittenReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AD_PIPELINE_HOME", str(market.root))
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(market.dataset_file))
    assert cli.main(["delay-report", "--goal", "click"]) == 0
    printed = capsys.readouterr().out
    assert "Recommended: " in printed
    assert "share that converts" in printed
    assert "purchase" not in printed
    assert PAGE in printed
    with Warehouse(market.deployment.warehouse).reader() as connection:
        goals = connection.execute(
            f"SELECT goal, count(*) FROM {DELAY_REPORT.name} GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    rows = written.rows.column("goal").to_pylist()
    assert goals == [(goal, rows.count(goal)) for goal in ("click", "purchase")]
    assert cli.main(["delay-report", "--goal", "refund"]) == 1
    assert "has no goal 'refund'; it has click, purchase" in capsys.readouterr().err


def test_scores_that_are_too_low_for_young_ads_are_marked_in_rows_and_page(
    tmp_path: Path, market: Market
) -> None:
    """Planted fault: the scores of the newest ads are a third of what they were."""
    own = market.copied_to(tmp_path / "home")
    warehouse = Warehouse(own.deployment.warehouse)
    with warehouse.writer() as connection:
        connection.execute(
            "UPDATE learners.predictions SET logit = ln(0.1 / 0.9) WHERE impression_id IN ("
            "SELECT impression_id FROM events.impressions WHERE ad_id IN (SELECT ad_id "
            "FROM events.impressions GROUP BY ad_id HAVING min(received_us) > $born_us))",
            {"born_us": own.start_us + 12 * HOUR_US},
        )
    written = write_delay_report(warehouse, own.deployment, "click")
    off = [row["part"] for row in written.rows.to_pylist() if row["miscalibrated"]]
    assert off
    assert "not known" not in off
    page = (own.deployment.reports / PAGE).read_text()
    assert page.count("class=off") == len(off)
