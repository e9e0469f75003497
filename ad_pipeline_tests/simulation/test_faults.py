"""Deliberate imperfections of the log appear, each at its stated rate."""

from pathlib import Path

import duckdb
import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.simulation.faults import (
    broken_engagements,
    broken_impressions,
    faulty_engagements,
    faulty_impressions,
    orphans,
    with_duplicates,
)
from ad_pipeline.simulation.identifiers import NULL
from ad_pipeline.simulation.marketplace import Marketplace, simulate_days
from ad_pipeline.simulation.outcomes import UNKNOWN_GOAL
from ad_pipeline.simulation.rows import Rows, row_count, take
from ad_pipeline.simulation.spec import FaultRates, MarketplaceSpec

SPEC = MarketplaceSpec(impressions_per_day=2_000_000, faults=False)
OFTEN = FaultRates(duplicate=0.05, bad_row=0.05, orphan=0.05)


@pytest.fixture(scope="module")
def sound() -> dict[str, Rows]:
    """Rows of one busy hour, without faults."""
    return Marketplace(SPEC).hour(10).rows


def near(count: int, rows: int, rate: float) -> bool:
    """Whether a binomial count lies within five standard deviations."""
    return abs(count - rows * rate) <= 5 * np.sqrt(rows * rate * (1 - rate))


def test_duplicates_come_at_their_rate_half_of_them_exact(sound: dict[str, Rows]) -> None:
    rows = sound["impressions"]
    count = row_count(rows)
    doubled = with_duplicates(rows, "paid_price", np.random.default_rng(1), OFTEN, hour=3)
    copies = take(doubled, np.arange(count, row_count(doubled)))
    assert near(row_count(copies), count, OFTEN.duplicate)
    originals = take(rows, copies["impression"] & 0xFFFFFF)
    assert (originals["impression"] == copies["impression"]).all()
    wait = copies["received_us"] - originals["received_us"]
    assert ((wait == 0) | (wait >= 1_000_000)).all()
    assert wait.max() < 10 * MINUTE_US
    assert near(int((wait == 0).sum()), len(wait), 0.5)
    changed = copies["paid_price"] != originals["paid_price"]
    assert near(int(changed.sum()), int((wait > 0).sum()), OFTEN.changed_duplicate)
    assert not changed[wait == 0].any()


def test_once_a_day_a_duplicate_comes_twenty_hours_later(sound: dict[str, Rows]) -> None:
    rows = sound["engagements"]
    for hour, planted in ((10, 1), (34, 1), (11, 0)):
        doubled = with_duplicates(rows, "value", np.random.default_rng(1), OFTEN, hour)
        first = doubled["event"] == rows["event"][0]
        waits = doubled["received_us"][first] - rows["received_us"][0]
        assert (waits == 20 * HOUR_US).sum() == planted


def test_broken_impressions_have_no_key_or_a_clock_that_runs_ahead(
    sound: dict[str, Rows],
) -> None:
    rows = sound["impressions"]
    broken = broken_impressions(rows, np.random.default_rng(2), OFTEN)
    keyless = broken["impression"] == NULL
    ahead = broken["occurred_us"] > broken["received_us"]
    assert near(row_count(broken), row_count(rows), OFTEN.bad_row)
    assert (keyless ^ ahead).all()
    assert keyless.any()
    assert ahead.any()
    assert not np.isin(broken["impression"], rows["impression"]).any()


def test_every_kind_of_broken_engagement_appears_and_none_passes_for_sound(
    sound: dict[str, Rows],
) -> None:
    impressions = sound["impressions"]
    rows = broken_engagements(impressions, np.random.default_rng(3), OFTEN)
    known = rows["impression"] != NULL
    anchor = np.full(row_count(rows), np.iinfo(np.int64).min)
    anchor[known] = impressions["occurred_us"][rows["impression"][known] & 0xFFFFFF]
    kinds = np.stack(
        [
            rows["event"] == NULL,
            ~known,
            rows["goal"] == UNKNOWN_GOAL,
            rows["occurred_us"] < anchor,
            rows["occurred_us"] > rows["received_us"],
        ]
    )
    assert (kinds.sum(axis=0) == 1).all()
    assert (kinds.sum(axis=1) > 0).all()


def test_orphans_name_impressions_that_do_not_exist(sound: dict[str, Rows]) -> None:
    impressions = sound["impressions"]
    lost = orphans(impressions, np.random.default_rng(4), OFTEN)
    assert near(row_count(lost), row_count(impressions), OFTEN.orphan)
    assert not np.isin(lost["impression"], impressions["impression"]).any()


def test_faults_only_add_rows(sound: dict[str, Rows]) -> None:
    """The rows that the truth speaks of come first and unchanged."""
    impressions, engagements = sound["impressions"], sound["engagements"]
    for clean, faulty in (
        (impressions, faulty_impressions(SPEC, impressions, 10)),
        (engagements, faulty_engagements(SPEC, engagements, impressions, 10)),
    ):
        assert row_count(faulty) > row_count(clean)
        for name, column in clean.items():
            assert np.array_equal(faulty[name][: len(column)], column)


def test_the_written_log_misbehaves_as_stated(tmp_path: Path) -> None:
    spec = MarketplaceSpec(days=2, impressions_per_day=100_000)
    rates = spec.fault_rates
    simulate_days(spec, tmp_path / "logs", tmp_path / "truth", range(2))
    con = duckdb.connect()
    for name in ("impressions", "engagements", "retractions"):
        con.execute(f"CREATE VIEW {name} AS FROM read_parquet('{tmp_path}/logs/{name}/*.parquet')")

    def number(query: str) -> int:
        row = con.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    rows = number("SELECT count(DISTINCT impression_id) FROM impressions")
    copies = number("SELECT count(impression_id) FROM impressions") - rows
    assert near(copies, rows, rates.duplicate)
    assert near(number("SELECT count(*) FROM impressions WHERE impression_id IS NULL"), rows,
                rates.bad_row / 2)  # fmt: skip
    first = """(SELECT impression_id, min(received_us) AS received_us, min(occurred_us) AS us
                FROM impressions WHERE occurred_us <= received_us GROUP BY 1)"""
    late = number(
        f"SELECT count(*) FROM {first} WHERE received_us - us > {15 * MINUTE_US + 10_000_000}"
    )
    assert near(late, rows, rates.late)
    assert number(f"SELECT max(received_us - us) FROM {first}") < 2 * HOUR_US
    # Both kinds of orphan: those whose impression is on its way, and those without one.
    early = number(
        f"""SELECT count(*) FROM engagements AS e JOIN {first} AS i USING (impression_id)
            WHERE e.received_us < i.received_us AND e.occurred_us >= i.us"""
    )
    assert early > 20
    lost = number(
        """SELECT count(*) FROM engagements ANTI JOIN impressions USING (impression_id)
           WHERE impression_id IS NOT NULL"""
    )
    assert near(lost, rows, rates.orphan)
    planted = number(
        f"""SELECT count(*) FROM (SELECT impression_id FROM impressions GROUP BY 1
            HAVING max(received_us) - min(received_us) = {20 * HOUR_US})"""
    )
    assert planted == 2
    engagements = number("SELECT count(DISTINCT event_id) FROM engagements")
    retractions = number("SELECT count(*) FROM retractions")
    assert 0.008 < retractions / engagements < 0.03
    assert number(
        """SELECT count(*) FROM retractions AS r ANTI JOIN engagements AS e
           ON r.engagement_event_id = e.event_id"""
    ) == 0  # fmt: skip
