"""The simulated exchange: determinism, files, and agreement of the log with the truth."""

import hashlib
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.simulation import marketplace
from ad_pipeline.simulation.log_files import TABLES
from ad_pipeline.simulation.marketplace import (
    LOOKBACK_HOURS,
    Marketplace,
    hours_to_simulate,
    simulate_days,
)
from ad_pipeline.simulation.rows import row_count
from ad_pipeline.simulation.spec import MarketplaceSpec

SMALL = MarketplaceSpec(impressions_per_day=2_500, users=2_000)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def simulated(folder: Path, spec: MarketplaceSpec, *parts: range) -> dict[str, str]:
    """Write some ranges of days into a folder, in the given order."""
    for days in parts:
        simulate_days(spec, folder / "logs", folder / "truth", days)
    return digests(folder)


def opened(folder: Path) -> duckdb.DuckDBPyConnection:
    """Give DuckDB views of the logs and the truth, with `file` and `position` of each row."""
    con = duckdb.connect()
    con.execute("SET threads = 2")
    for name in (*TABLES, "truth"):
        where = folder / ("truth" if name == "truth" else f"logs/{name}")
        con.execute(
            f"CREATE VIEW {name} AS SELECT *, parse_filename(filename) AS file "
            f"FROM read_parquet('{where}/*.parquet', filename = true)"
        )
    return con


@pytest.fixture(scope="module")
def default_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of `make demo`, written once."""
    folder = tmp_path_factory.mktemp("default_world")
    spec = MarketplaceSpec()
    simulate_days(spec, folder / "logs", folder / "truth", range(spec.days))
    return folder


@pytest.fixture
def con(default_world: Path) -> duckdb.DuckDBPyConnection:
    """A connection to the default world."""
    return opened(default_world)


def value(con: duckdb.DuckDBPyConnection, query: str) -> float:
    """The single value of a query."""
    row = con.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_the_same_spec_writes_the_same_bytes(tmp_path: Path) -> None:
    spec = replace(SMALL, days=2)
    first = simulated(tmp_path / "a", spec, range(2))
    assert simulated(tmp_path / "b", spec, range(2)) == first


def test_another_seed_writes_other_bytes_in_every_file(tmp_path: Path) -> None:
    spec = replace(SMALL, days=1, impressions_per_day=20_000)
    first = simulated(tmp_path / "a", spec, range(1))
    second = simulated(tmp_path / "b", replace(spec, seed=1), range(1))
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_days_written_apart_equal_days_written_together(tmp_path: Path) -> None:
    together = simulated(tmp_path / "together", SMALL, range(6))
    alone = simulated(tmp_path / "alone", SMALL, *(range(day, day + 1) for day in range(5, -1, -1)))
    five_and_one = simulated(tmp_path / "five and one", SMALL, range(5), range(5, 6))
    assert alone == together
    assert five_and_one == together


def test_without_looking_back_a_day_would_miss_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = simulated(tmp_path / "sound", SMALL, range(5, 6))
    monkeypatch.setattr(marketplace, "LOOKBACK_HOURS", 0)
    blind = simulated(tmp_path / "blind", SMALL, range(5, 6))
    assert blind["logs/engagements/day=5.parquet"] != sound["logs/engagements/day=5.parquet"]


def test_no_row_reaches_the_log_later_than_the_lookback() -> None:
    market = Marketplace(replace(SMALL, impressions_per_day=200_000))
    for hour in (0, 34, 100):
        start_us = market.spec.hour_start_us(hour)
        for rows in market.hour(hour).rows.values():
            assert rows["received_us"].min() >= start_us
            assert rows["received_us"].max() < start_us + LOOKBACK_HOURS * HOUR_US


def test_no_row_is_lost_between_the_hours_and_the_files(tmp_path: Path) -> None:
    spec = replace(SMALL, days=2)
    market = Marketplace(spec)
    made: dict[str, int] = dict.fromkeys(TABLES, 0)
    for hour in range(spec.hours):
        for name, rows in market.hour(hour).rows.items():
            made[name] += row_count(rows)
    summary = simulate_days(spec, tmp_path / "l", tmp_path / "t", range(2), tail_hours=120)
    assert {name: summary.rows[name] for name in TABLES} == made


def test_the_progress_ends_at_the_announced_hours(tmp_path: Path) -> None:
    spec = replace(SMALL, days=2, impressions_per_day=50)
    told: list[tuple[int, int]] = []
    simulate_days(
        spec,
        tmp_path / "l",
        tmp_path / "t",
        range(1, 2),
        progress=lambda done, total: told.append((done, total)),
    )
    total = hours_to_simulate(spec, range(1, 2))
    assert total == 24 + 24 + 30
    assert told == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("days", [range(0), range(7), range(-1, 2), range(0, 4, 2)])
def test_days_outside_the_world_are_refused(tmp_path: Path, days: range) -> None:
    with pytest.raises(ValueError, match="not a range of days"):
        simulate_days(SMALL, tmp_path / "l", tmp_path / "t", days)


def test_a_spec_that_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="not on an hour"):
        MarketplaceSpec(start_us=1)
    with pytest.raises(ValueError, match="lateness_us"):
        MarketplaceSpec(lateness_us=HOUR_US)
    with pytest.raises(ValueError, match="identifiers hold"):
        MarketplaceSpec(ads=20_000)


def test_a_file_holds_the_rows_received_in_its_day_in_order(
    con: duckdb.DuckDBPyConnection, default_world: Path
) -> None:
    start_us = MarketplaceSpec().start_us
    for name in TABLES:
        misplaced = value(
            con,
            f"""SELECT count(*) FROM {name} WHERE file <> CASE
                WHEN received_us >= {start_us + 6 * DAY_US} THEN 'tail.parquet'
                ELSE 'day=' || (received_us - {start_us}) // {DAY_US} || '.parquet' END""",
        )
        assert misplaced == 0
        received = (
            con.execute(
                f"SELECT received_us FROM read_parquet('{default_world}/logs/{name}/day=3.parquet')"
            )
            .fetchnumpy()["received_us"]
            .astype(np.int64)
        )
        assert (np.diff(received) >= 0).all()


def test_the_columns_are_those_of_the_contract(con: duckdb.DuckDBPyConnection) -> None:
    def columns(name: str) -> dict[str, str]:
        rows = con.execute(f"DESCRIBE SELECT * EXCLUDE (filename, file) FROM {name}").fetchall()
        return {row[0]: row[1] for row in rows}

    clocks = {"occurred_us": "BIGINT", "received_us": "BIGINT"}
    texts = [
        "impression_id",
        "request_id",
        "user_id",
        "ad_id",
        "campaign_id",
        "advertiser_id",
        "publisher_id",
        "placement",
        "device",
        "country",
        "category",
        "creative_size",
        "hour_of_day",
    ]
    assert columns("impressions") == {
        **dict.fromkeys(texts, "VARCHAR"),
        **dict.fromkeys(["ad_age_hours", "floor_price", "session_depth"], "DOUBLE"),
        "arm": "VARCHAR",
        "propensity": "DOUBLE",
        "bid_price": "BIGINT",
        "paid_price": "BIGINT",
        **clocks,
    }
    assert columns("engagements") == {
        **dict.fromkeys(["event_id", "impression_id", "goal"], "VARCHAR"),
        "value": "BIGINT",
        **clocks,
    }
    assert columns("retractions") == {
        **dict.fromkeys(["event_id", "engagement_event_id", "reason"], "VARCHAR"),
        **clocks,
    }
    assert columns("user_activities") == {
        **dict.fromkeys(["event_id", "user_id", "modality", "content_id"], "VARCHAR"),
        **clocks,
    }
    assert columns("auctions") == {
        "request_id": "VARCHAR",
        "bid_price": "BIGINT",
        "won": "BOOLEAN",
        "clearing_price": "BIGINT",
        **clocks,
    }
    assert columns("truth") == {
        "impression_id": "VARCHAR",
        "goal": "VARCHAR",
        "probability": "DOUBLE",
        "label": "TINYINT",
    }


def test_six_days_hold_a_million_impressions_and_five_thousand_purchases(
    con: duckdb.DuckDBPyConnection,
) -> None:
    assert value(con, "SELECT count(DISTINCT impression_id) FROM impressions") >= 1_100_000
    assert value(con, "SELECT sum(label) FROM truth WHERE goal = 'purchase'") >= 5_000
    assert 0.025 < value(con, "SELECT avg(label) FROM truth WHERE goal = 'click'") < 0.04
    assert 0.15 < value(con, "SELECT avg(label) FROM truth WHERE goal = 'purchase'") < 0.2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_seeds_keep_the_base_rates(tmp_path: Path, seed: int) -> None:
    spec = MarketplaceSpec(seed=seed, impressions_per_day=20_000)
    simulate_days(spec, tmp_path / "logs", tmp_path / "truth", range(6))
    con = opened(tmp_path)
    assert 0.025 < value(con, "SELECT avg(label) FROM truth WHERE goal = 'click'") < 0.04
    assert 0.14 < value(con, "SELECT avg(label) FROM truth WHERE goal = 'purchase'") < 0.21


@pytest.mark.parametrize("goal", ["click", "purchase"])
def test_the_true_probability_is_calibrated_in_every_decile(
    con: duckdb.DuckDBPyConnection, goal: str
) -> None:
    """Mean label and mean probability differ by less than 4 standard errors.

    Both follow the contract: inside the window, retractions received before maturity included.
    """
    rows = con.execute(
        """SELECT avg(label), avg(probability),
                  sqrt(sum(probability * (1 - probability))) / count(*)
           FROM (SELECT *, ntile(10) OVER (ORDER BY probability, impression_id) AS decile
                 FROM truth WHERE goal = $goal)
           GROUP BY decile""",
        {"goal": goal},
    ).fetchall()
    assert len(rows) == 10
    assert max(abs(label - chance) / error for label, chance, error in rows) < 4.0


@pytest.mark.parametrize("group", ["campaign_id", "placement", "publisher_id"])
def test_the_true_probability_of_a_purchase_is_calibrated_by_group(
    con: duckdb.DuckDBPyConnection, group: str
) -> None:
    """Delays differ by campaign, so a missing or doubled cut at the window would show here."""
    rows = con.execute(
        f"""SELECT sum(label - probability) / sqrt(sum(probability * (1 - probability)))
            FROM truth JOIN (SELECT DISTINCT impression_id, {group} FROM impressions)
            USING (impression_id) WHERE goal = 'purchase' GROUP BY {group}"""
    ).fetchnumpy()
    scores = np.asarray(next(iter(rows.values())), dtype=np.float64)
    assert np.abs(scores).max() < 4.5
    assert np.mean(scores**2) < 2.0


def test_the_true_labels_are_those_of_the_contract_applied_to_the_log(
    con: duckdb.DuckDBPyConnection,
) -> None:
    """A second reading of the contract, from the log alone, row by row."""
    con.execute("""
        CREATE TEMP TABLE seen AS
        SELECT impression_id, arg_min(occurred_us, received_us) AS anchor_us,
               min(received_us) AS known_us
        FROM impressions WHERE impression_id IS NOT NULL AND occurred_us <= received_us
        GROUP BY impression_id;
        CREATE TEMP TABLE events AS
        SELECT event_id, arg_min(impression_id, received_us) AS impression_id,
               arg_min(goal, received_us) AS goal, arg_min(occurred_us, received_us) AS occurred_us,
               min(received_us) AS received_us
        FROM engagements
        WHERE event_id IS NOT NULL AND impression_id IS NOT NULL AND occurred_us <= received_us
        GROUP BY event_id;
        CREATE TEMP TABLE undone AS
        SELECT engagement_event_id AS event_id, min(received_us) AS undone_us
        FROM retractions GROUP BY 1""")
    windows = {"click": HOUR_US, "purchase": 24 * HOUR_US}
    anchors = {
        "click": "SELECT impression_id, anchor_us, known_us FROM seen",
        "purchase": """SELECT e.impression_id, min(e.occurred_us) AS anchor_us,
                              min(e.received_us) AS known_us
                       FROM events AS e JOIN seen USING (impression_id)
                       WHERE goal = 'click' AND occurred_us >= seen.anchor_us GROUP BY 1""",
    }
    for goal, window_us in windows.items():
        row = con.execute(
            f"""
            WITH anchors AS (
                SELECT *, greatest(anchor_us + $window_us + $lateness_us, known_us) AS matured_us
                FROM ({anchors[goal]})
            ), labels AS (
                SELECT a.impression_id, coalesce(max(CASE WHEN e.event_id IS NOT NULL
                    AND e.received_us <= matured_us
                    AND NOT coalesce(undone_us <= matured_us, false) THEN 1 ELSE 0 END), 0) AS label
                FROM anchors AS a LEFT JOIN events AS e
                    ON e.impression_id = a.impression_id AND e.goal = $goal
                    AND e.occurred_us BETWEEN a.anchor_us AND a.anchor_us + $window_us
                LEFT JOIN undone USING (event_id)
                GROUP BY a.impression_id
            )
            SELECT count(*), count(l.label), sum((l.label <> t.label)::INT), sum(t.label)
            FROM (SELECT * FROM truth WHERE goal = $goal) AS t
            LEFT JOIN labels AS l USING (impression_id)""",
            {"goal": goal, "window_us": window_us, "lateness_us": 2 * HOUR_US},
        ).fetchone()
        assert row is not None
        rows, found, different, positives = row
        # Every anchor of the truth arrives, but for clicks of the tail's last hours.
        assert rows - found <= (0 if goal == "click" else 3)
        assert different == 0
        assert positives > 5_000


def test_clicks_take_seconds_and_purchases_minutes_to_hours(
    con: duckdb.DuckDBPyConnection,
) -> None:
    con.execute("""
        CREATE TEMP TABLE delays AS
        SELECT c.impression_id, campaign_id, c.us - i.us AS click_us, p.us - c.us AS purchase_us
        FROM (SELECT impression_id, any_value(campaign_id) AS campaign_id, min(occurred_us) AS us
              FROM impressions WHERE occurred_us <= received_us GROUP BY 1) AS i
        JOIN (SELECT impression_id, min(occurred_us) AS us FROM engagements
              WHERE goal = 'click' AND event_id LIKE 'e01%' GROUP BY 1) AS c USING (impression_id)
        LEFT JOIN (SELECT impression_id, min(occurred_us) AS us FROM engagements
                   WHERE goal = 'purchase' GROUP BY 1) AS p USING (impression_id)""")
    seconds, hours = 1_000_000, HOUR_US
    assert 5 * seconds < value(con, "SELECT median(click_us) FROM delays") < 60 * seconds
    assert (
        0.0001
        < value(con, f"SELECT avg((click_us > {hours})::INT) FROM delays WHERE click_us >= 0")
        < 0.01
    )
    medians = con.execute(
        """SELECT median(purchase_us) FROM delays WHERE purchase_us IS NOT NULL
           GROUP BY campaign_id HAVING count(*) > 50"""
    ).fetchnumpy()
    by_campaign = np.asarray(next(iter(medians.values())), dtype=np.float64)
    assert by_campaign.min() < hours
    assert by_campaign.max() > 3 * hours
    past_12 = value(con, f"SELECT avg((purchase_us > {12 * hours})::INT) FROM delays")
    assert 0.07 < past_12 < 0.13
    past_window = value(con, f"SELECT avg((purchase_us > {24 * hours})::INT) FROM delays")
    assert 0.01 < past_window < 0.06


def test_the_drift_changes_nothing_before_its_day(tmp_path: Path) -> None:
    still = simulated(tmp_path / "still", replace(SMALL, drift=False), range(6))
    drifting = simulated(tmp_path / "drifting", SMALL, range(6))
    before = {name for name in still if "day=5" not in name and "tail" not in name}
    assert {name: still[name] for name in before} == {name: drifting[name] for name in before}
    for name in ("logs/impressions/day=5.parquet", "truth/day=5.parquet"):
        assert still[name] != drifting[name]


def test_the_drift_brings_new_publishers_and_swaps_two_categories(tmp_path: Path) -> None:
    spec = MarketplaceSpec(impressions_per_day=40_000)
    for name, drift in (("still", False), ("drifting", True)):
        chosen = replace(spec, drift=drift)
        simulate_days(chosen, tmp_path / name / "logs", tmp_path / name / "truth", range(4, 6))
    new = f"publisher_id >= 'pub-{spec.publishers:03d}'"
    middle = spec.start_us + 5 * DAY_US
    drifting, still = opened(tmp_path / "drifting"), opened(tmp_path / "still")
    share = f"SELECT avg(({new})::INT) FROM impressions WHERE occurred_us"
    assert value(drifting, f"{share} < {middle}") == 0
    assert 0.1 < value(drifting, f"{share} >= {middle}") < 0.4
    assert value(still, f"{share} >= {middle}") == 0

    world = Marketplace(spec).world
    swapped = np.flatnonzero(world.category_order[0] != world.category_order[1])
    assert len(swapped) == 2
    before, after = world.category_effect[:, swapped]
    assert before.tolist() == after[::-1].tolist()
    assert np.ptp(world.category_effect[0, swapped]) == np.ptp(world.category_effect[0])


def test_a_log_without_faults_has_none(tmp_path: Path) -> None:
    spec = replace(SMALL, days=1, faults=False, impressions_per_day=20_000)
    simulate_days(spec, tmp_path / "logs", tmp_path / "truth", range(1), tail_hours=120)
    con = opened(tmp_path)
    for table, key in (("impressions", "impression_id"), ("engagements", "event_id")):
        assert value(con, f"SELECT count(*) - count(DISTINCT {key}) FROM {table}") == 0
        assert value(con, f"SELECT min(received_us - occurred_us) FROM {table}") > 0
        assert value(con, f"SELECT max(received_us - occurred_us) FROM {table}") < 10_000_000
    lost = "SELECT count(*) FROM engagements ANTI JOIN impressions USING (impression_id)"
    assert value(con, lost) == 0
    assert value(con, "SELECT count(*) FROM retractions") > 0


def test_prices_follow_the_second_price_rule(con: duckdb.DuckDBPyConnection) -> None:
    bad = "SELECT count(*) FROM impressions WHERE impression_id IS NOT NULL AND "
    assert value(con, bad + "paid_price > bid_price + 1") == 0  # a changed copy pays one more
    assert value(con, bad + "paid_price < round(floor_price * 1000) - 1") == 0
    assert value(con, "SELECT count(*) FROM auctions WHERE (clearing_price IS NULL) = won") == 0
    assert 0.03 < value(con, "SELECT avg((NOT won)::INT) FROM auctions") < 0.07


def test_the_propensity_is_the_share_with_which_an_ad_is_shown() -> None:
    """Inverse propensity weights of the impressions of one ad add up to the requests."""
    market = Marketplace(replace(SMALL, impressions_per_day=2_000_000))
    traffic = market.hour(12).traffic
    weights = 1.0 / traffic.propensity
    shown = [weights[traffic.ad == ad].sum() for ad in np.unique(traffic.ad)]
    assert np.mean(shown) / len(traffic) == pytest.approx(1.0, abs=0.05)
    assert ((traffic.propensity > 0) & (traffic.propensity <= 1)).all()
