"""The whole way: a faulty scorer's log goes through files and ingestion; its hour is accused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.monitoring.parity.parity_plots import differing_shares, parity_picture
from ad_pipeline.monitoring.parity.recheck import (
    recheck_decisions,
    record_parity,
    scores_not_given_again,
)
from ad_pipeline.serving.candidate import JudgedCandidate, promote_candidate
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import PromotionVerdict
from ad_pipeline.simulation.faulty_scorer import float_truncation, stale_aggregate, swapped_columns
from ad_pipeline.warehouse import Warehouse
from benchmarks.served_hours import (
    SERVED_DAY,
    SPEC,
    counted_market,
    drawn_bundle,
    hours_of_days,
    serve,
)

STALE_HOUR, CUT_HOUR, SWAPPED_HOUR = 24, 30, 36


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Return a market whose second day was served with three faults."""
    home = tmp_path_factory.mktemp("served")
    market = counted_market(home / "market", SPEC)
    faults = {
        STALE_HOUR: stale_aggregate(3),
        CUT_HOUR: float_truncation("ad_age_hours"),
        SWAPPED_HOUR: swapped_columns("ad_id", "campaign_id"),  # two entities: counts follow them
    }
    return serve(market, home / "served", SPEC, drawn_bundle(market, SPEC), faults)


def span_of(served: Deployment) -> tuple[int, int]:
    return hours_of_days(served, range(SERVED_DAY, SERVED_DAY + 1))


def test_the_order_in_which_decisions_lie_in_the_log_changes_nothing(
    served: Deployment, tmp_path: Path
):
    shuffled = tmp_path / "shuffled.duckdb"
    shutil.copy(served.warehouse, shuffled)
    with Warehouse(shuffled).writer() as connection:
        connection.execute(
            "CREATE OR REPLACE TABLE events.decisions AS "
            "SELECT * FROM events.decisions ORDER BY hash(request_id)"
        )
    found, otherwise = (
        list(recheck_decisions(Warehouse(path), served, *span_of(served)))
        for path in (served.warehouse, shuffled)
    )
    assert {hour.state for hour in found} == {"passed", "failed"}
    assert repr(found) == repr(otherwise)


def test_each_faulty_hour_is_found_with_its_cause_and_no_other(served: Deployment):
    warehouse = Warehouse(served.warehouse)
    rechecked = record_parity(warehouse, served, *span_of(served))
    with warehouse.reader() as connection:
        found = connection.execute(
            "SELECT (hour_us - $start_us) // 3600000000, list(DISTINCT cause), "
            "bool_and(act <> '' AND example_keys <> '' AND explained = 1 AND offending <= rows) "
            "FROM monitoring.parity_findings GROUP BY ALL ORDER BY ALL",
            {"start_us": served.dataset.start_us},
        ).fetchall()
        kept = connection.execute(
            "SELECT count(*), bool_and(kept) FROM monitoring.serving_objectives"
        ).fetchall()
        (followed,) = connection.execute(
            "SELECT count(*) FROM monitoring.parity_findings WHERE evidence = "
            "'the counts of its entity as logged' AND name LIKE 'ad_id.%'"
        ).fetchall()
        errors = connection.execute(
            "SELECT count(*) FROM monitoring.parity WHERE smape > 0 AND mismatches > 0"
        ).fetchall()
    assert found == [
        (STALE_HOUR, ["stale aggregate"], True),
        (CUT_HOUR, ["float truncation"], True),
        (SWAPPED_HOUR, ["swapped column"], True),
    ]
    assert followed[0] > 0
    assert kept[0][0] > 0
    assert kept[0][1]
    assert errors[0][0] > 0
    assert sum(hour.decisions for hour in rechecked) > 9_000
    # The counts of the swapped entities were stale in another hour.
    assert {len(hours) for hours in differing_shares(rechecked).values()} == {1, 2}
    assert parity_picture(rechecked).startswith(b"\x89PNG")
    assert scores_not_given_again(warehouse, 24) == "", "the logged features gave these scores"


def test_nothing_is_promoted_while_the_newest_served_scores_are_not_given_again(
    served: Deployment,
):
    """Planted fault: one logged score of the last hour is one bit off."""
    warehouse = Warehouse(served.warehouse)
    _, end_us = span_of(served)
    with warehouse.writer() as connection:
        request, logged, received_us = connection.execute(
            "SELECT request_id, scores, received_us FROM events.decisions "
            "ORDER BY received_us DESC LIMIT 1"
        ).fetchall()[0]
        altered = json.loads(logged)
        altered["click"] = float(np.nextafter(altered["click"], 1.0))
        update = "UPDATE events.decisions SET scores = $scores WHERE request_id = $request"
        connection.execute(update, {"scores": json.dumps(altered), "request": request})
    last_us = received_us - received_us % HOUR_US
    (hour,) = record_parity(warehouse, served, last_us, last_us + HOUR_US)
    assert [(each.comparison, each.name, each.severe) for each in hour.findings] == [
        ("scores", "click", True)
    ]
    wrong = scores_not_given_again(warehouse, 3)
    assert wrong.startswith("1 of the newest 3 served hours")
    better = PromotionVerdict(True, "better", "base rate", -0.1, -0.2, -0.05, 100, 10)
    judged = JudgedCandidate(hour.bundle_hash, end_us, {"click": better})
    promoted, reason = promote_candidate(
        served, judged, replay_passed=True, unlike_what_was_served=wrong
    )
    assert not promoted
    assert "served scores are not given again" in reason
    assert read_pointer(served.serving, CURRENT) is None
    with warehouse.writer() as connection:
        connection.execute(update, {"scores": logged, "request": request})
    record_parity(warehouse, served, last_us, last_us + HOUR_US)
    mended = scores_not_given_again(warehouse, 3)
    assert promote_candidate(served, judged, replay_passed=True, unlike_what_was_served=mended) == (
        True,
        "click: better",
    )
