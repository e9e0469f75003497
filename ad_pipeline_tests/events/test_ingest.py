"""Cases of the log's rules that deserve to be seen by name."""

import gzip
import os
import shutil
import time
from pathlib import Path

import pytest

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.datasets import Deployment, HomeTaken, load_dataset
from ad_pipeline.events import ingest as ingest_module
from ad_pipeline.events import ledger
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.events.contract import event_tables
from ad_pipeline.events.ingest import EarlierHoursMissing, PastWatermark, ingest_hours
from ad_pipeline.events.ledger import (
    ChangedLogFile,
    MissingLogFile,
    register_files,
    sealed_until,
    watermark_us,
)
from ad_pipeline_tests.events.worlds import (
    DATASET,
    END_US,
    LAST_US,
    START_US,
    close_log,
    contents,
    deployment_in,
    engagement,
    impression,
    warehouse_of,
    write_rows,
)

LONG = DATASET.replace("2026-03-02T08:00Z", "2026-03-03T00:00Z").replace(
    "{anchor: click, window: 2h, lateness: 1h}", "{anchor: click, window: 24h, lateness: 2h}"
)


def ask(deployment: Deployment, query: str) -> list[tuple]:
    with warehouse_of(deployment).reader() as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def small(tmp_path: Path) -> Deployment:
    deployment = deployment_in(tmp_path)
    close_log(deployment)
    return deployment


def test_a_duplicate_twenty_hours_later_is_found(tmp_path: Path) -> None:
    """Also when every hour is a run of its own, so that only the warehouse remembers the first."""
    deployment = deployment_in(tmp_path, LONG)
    start = START_US + HOUR_US
    last = START_US + 23 * HOUR_US
    write_rows(deployment, "impressions", "a", [impression("i", start), impression("last", last)])
    write_rows(deployment, "impressions", "b", [impression("i", start, start + 20 * HOUR_US)])
    write_rows(
        deployment,
        "engagements",
        "a",
        [engagement("e", "i", start), engagement("e", "i", start, start + 20 * HOUR_US, value=3)],
    )
    for hour in (0, 21):
        ingest_hours(
            warehouse_of(deployment), deployment, START_US + hour * HOUR_US,
            START_US + (21 if hour == 0 else 22) * HOUR_US,
        )  # fmt: skip
    found = ask(
        deployment,
        "SELECT table_name, key, received_us - since_us, same_content FROM events.duplicates "
        "ORDER BY table_name",
    )
    assert found == [
        ("engagements", "e", 20 * HOUR_US, False),
        ("impressions", "i", 20 * HOUR_US, True),
    ]
    assert ask(deployment, "SELECT count(*) FROM events.impressions") == [(1,)]


def test_an_engagement_waits_for_its_impression_and_enters_with_it(small: Deployment) -> None:
    shown, clicked = START_US, START_US + 10 * MINUTE_US
    write_rows(small, "engagements", "a", [engagement("e", "i", clicked)])
    write_rows(small, "impressions", "a", [impression("i", shown, shown + 2 * HOUR_US)])
    ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)
    assert ask(small, "SELECT count(*) FROM events.engagements") == [(0,)]
    assert ask(small, "SELECT held FROM events.accounting WHERE table_name = 'engagements'") == [
        (1,)
    ]
    ingest_hours(warehouse_of(small), small, START_US + HOUR_US, LAST_US)
    assert ask(small, "SELECT received_us, logged_us, read_us FROM events.engagements") == [
        (shown + 2 * HOUR_US, clicked, clicked)
    ]
    assert ask(
        small, "SELECT sum(released), max(held), arg_max(held, hour_us) FROM events.accounting"
    ) == [(1, 1, 0)]


def test_an_orphan_is_quarantined_when_the_horizon_has_passed(small: Deployment) -> None:
    write_rows(small, "engagements", "a", [engagement("e", "nowhere", START_US)])
    ingest_hours(warehouse_of(small), small, START_US, LAST_US)
    assert ask(small, "SELECT key, reason, received_us FROM events.quarantine") == [
        ("e", "orphan", START_US + small.dataset.horizon_us)
    ]


def test_an_engagement_outside_its_window_is_kept_and_counted(small: Deployment) -> None:
    write_rows(small, "impressions", "a", [impression("i", START_US)])
    within, outside = START_US + HOUR_US, START_US + HOUR_US + 1
    write_rows(
        small, "engagements", "a", [engagement("in", "i", within), engagement("out", "i", outside)]
    )
    ingest_hours(warehouse_of(small), small, START_US, LAST_US)
    assert ask(small, "SELECT count(*) FROM events.engagements") == [(2,)]
    assert ask(small, "SELECT sum(outside_window) FROM events.accounting") == [(1,)]


def test_an_engagement_before_its_impression_is_quarantined(small: Deployment) -> None:
    write_rows(small, "impressions", "a", [impression("i", START_US + MINUTE_US)])
    write_rows(small, "engagements", "a", [engagement("e", "i", START_US)])
    ingest_hours(warehouse_of(small), small, START_US, LAST_US)
    assert ask(small, "SELECT reason FROM events.quarantine") == [("before its impression",)]


def test_a_retraction_named_by_its_reason_is_read(small: Deployment) -> None:
    """The contract has a column ``reason`` of its own beside the reasons of the quarantine."""
    write_rows(
        small,
        "retractions",
        "a",
        [
            {
                "event_id": "r",
                "engagement_event_id": "e",
                "reason": "fraud",
                "occurred_us": START_US,
                "received_us": START_US,
            }
        ],
    )
    ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)
    assert ask(small, "SELECT event_id, reason FROM events.retractions") == [("r", "fraud")]


def test_hours_that_the_log_may_still_add_to_are_refused(tmp_path: Path) -> None:
    deployment = deployment_in(
        tmp_path, DATASET.replace("whole_hours: true", "").replace("end: 2026-03-02T08:00Z", "")
    )
    with pytest.raises(PastWatermark, match="no impression"):
        ingest_hours(warehouse_of(deployment), deployment, START_US, START_US + HOUR_US)
    write_rows(deployment, "impressions", "a", [impression("i", START_US + 90 * MINUTE_US)])
    ingest_hours(warehouse_of(deployment), deployment, START_US, START_US + HOUR_US)
    with pytest.raises(PastWatermark, match=r"2026-03-02-01:00 was asked for.*2026-03-02-00:00"):
        ingest_hours(warehouse_of(deployment), deployment, START_US, START_US + 2 * HOUR_US)


def test_one_wrong_clock_does_not_complete_the_log(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path, DATASET.replace("whole_hours: true", ""))
    write_rows(
        deployment,
        "impressions",
        "a",
        [impression("i", START_US + HOUR_US), impression("x", START_US, END_US + 99 * HOUR_US)],
    )
    register_files(warehouse_of(deployment), deployment)
    with warehouse_of(deployment).reader() as connection:
        assert watermark_us(connection, deployment.dataset) == START_US + HOUR_US


def test_a_closed_log_is_complete_up_to_its_last_label(small: Deployment) -> None:
    register_files(warehouse_of(small), small)
    with warehouse_of(small).reader() as connection:
        # A chain's window begins at its anchor, up to the anchor's own window after the end.
        assert watermark_us(connection, small.dataset) == LAST_US + HOUR_US
        assert sealed_until(connection) == 0


def test_hours_that_others_build_on_must_come_first(small: Deployment) -> None:
    with pytest.raises(EarlierHoursMissing, match="start the range at 2026-03-02-00:00"):
        ingest_hours(warehouse_of(small), small, START_US + HOUR_US, LAST_US)


def test_a_changed_log_file_is_named(small: Deployment) -> None:
    path = write_rows(small, "impressions", "a", [impression("i", START_US)])
    ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)
    write_rows(small, "impressions", "a", [impression("i", START_US), impression("j", START_US)])
    with pytest.raises(ChangedLogFile, match=str(path)):
        ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)


def test_a_log_file_changed_without_changing_its_size_is_named_before_it_is_read(
    small: Deployment,
) -> None:
    path = write_rows(small, "impressions", "a", [impression("i", START_US)])
    ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChangedLogFile, match="SHA-256"):
        ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)


def test_a_file_is_hashed_once_for_all_chunks_unless_it_is_written_to(
    small: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(small, "impressions", "a", [impression("i", START_US)])
    entries = register_files(warehouse_of(small), small).entries
    hashed: list[Path] = []
    real = ledger.sha256_of
    monkeypatch.setattr(ledger, "sha256_of", lambda path: hashed.append(path) or real(path))
    digests: dict[ledger.Stamp, str] = {}
    for _ in range(3):
        ledger.verify(small, entries, digests)
    assert sorted(hashed) == sorted({small.on_disk(entry.path) for entry in entries})
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChangedLogFile, match="SHA-256"):
        ledger.verify(small, entries, digests)


def test_a_vanished_log_file_is_named(small: Deployment) -> None:
    path = write_rows(small, "impressions", "a", [impression("i", START_US)])
    register_files(warehouse_of(small), small)
    path.unlink()
    with pytest.raises(MissingLogFile, match=str(path)):
        ingest_hours(warehouse_of(small), small, START_US, LAST_US)


def test_a_file_is_registered_once_and_knows_what_was_sealed(small: Deployment) -> None:
    warehouse = warehouse_of(small)
    assert len(register_files(warehouse, small).new) == 1
    ingest_hours(warehouse, small, START_US, START_US + 2 * HOUR_US)
    write_rows(small, "engagements", "a", [engagement("e", "last", START_US)])
    new = register_files(warehouse, small).new
    assert [(entry.path, entry.sealed_until_us) for entry in new] == [
        ("{home}/logs/engagements/a.parquet", START_US + 2 * HOUR_US)
    ]
    assert register_files(warehouse, small).new == ()
    assert register_files(warehouse, small).empty_globs == (
        "retractions: {home}/logs/retractions/*",
    )


def test_a_file_registered_while_a_chunk_is_computed_is_not_lost(
    small: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is bound to the hours sealed before the chunk, so the chunk must read it."""
    warehouse = warehouse_of(small)
    compute = ingest_module._compute
    calls = []

    def computing(*arguments):
        computed = compute(*arguments)
        calls.append(1)
        return computed

    def writing_between(*arguments):
        computed = computing(*arguments)
        if len(calls) == 1:
            write_rows(small, "impressions", "late", [impression("i", START_US)])
        return computed

    class Registering(type(warehouse)):
        def writer(self):
            if len(calls) == 1:
                calls.append(0)
                register_files(warehouse, small)
            return super().writer()

    monkeypatch.setattr(ingest_module, "_compute", writing_between)
    ingest_hours(Registering(warehouse.path, wait_seconds=20), small, START_US, START_US + HOUR_US)
    assert ask(small, "SELECT impression_id FROM events.impressions") == [("i",)]


@pytest.mark.parametrize(
    "fault",
    [
        "DELETE FROM events.impressions WHERE impression_id = 'i'",
        "INSERT INTO events.engagements SELECT * FROM events.engagements",
        "DELETE FROM events.quarantine",
        "DELETE FROM events.duplicates",
        "DELETE FROM events.held_engagements",
        "UPDATE events.accounting SET rows_in = rows_in + 1 WHERE table_name = 'impressions'",
        "UPDATE events.accounting SET held = held + 1, rows_in = rows_in + 1 "
        "WHERE table_name = 'engagements'",
        "DELETE FROM events.accounting WHERE rows_in > 0",
        "UPDATE events.files SET rows = rows + 1",
    ],
)
def test_the_accounting_finds_a_planted_gap(small: Deployment, fault: str) -> None:
    write_rows(small, "impressions", "a", [impression("i", START_US), impression("i", START_US)])
    write_rows(small, "impressions", "b", [impression("h", START_US, START_US + HOUR_US)])
    write_rows(
        small,
        "engagements",
        "a",
        [
            engagement("e", "i", START_US + 1),
            engagement("h", "h", START_US + 1),
            engagement(None, "i", START_US),
        ],
    )
    warehouse = warehouse_of(small)
    ingest_hours(warehouse, small, START_US, LAST_US)
    with warehouse.reader() as connection:
        assert accounting_gaps(connection) == ()
    with warehouse.writer() as connection:
        connection.execute(fault)
    with warehouse.reader() as connection:
        gaps = accounting_gaps(connection)
    assert gaps
    assert all(str(gap) for gap in gaps)


def test_the_open_bandit_log_is_read_whole(tmp_path: Path) -> None:
    """60,000 rows and 287 clicks, as its README counts them."""
    path = Path(__file__).parents[2] / "data" / "open_bandit" / "dataset.yaml"
    deployment = Deployment(load_dataset(path), tmp_path)
    dataset = deployment.dataset
    assert dataset.end_us is not None
    warehouse = warehouse_of(deployment)
    ingest_hours(warehouse, deployment, dataset.start_us, dataset.end_us + HOUR_US)
    assert ask(
        deployment, "SELECT count(*), count(DISTINCT impression_id) FROM events.impressions"
    ) == [(60_000, 60_000)]
    assert ask(
        deployment,
        "SELECT campaign_id, arm, count(*) FROM events.engagements INNER JOIN events.impressions "
        "USING (impression_id) GROUP BY ALL ORDER BY ALL",
    ) == [
        ("all", "bts", 42),
        ("all", "random", 38),
        ("men", "bts", 69),
        ("men", "random", 46),
        ("women", "bts", 46),
        ("women", "random", 46),
    ]
    assert ask(deployment, "SELECT count(*) FROM events.quarantine") == [(0,)]
    with warehouse.reader() as connection:
        assert accounting_gaps(connection) == ()


def test_every_column_of_every_table_is_described(small: Deployment) -> None:
    for name, table in event_tables(small.dataset).items():
        assert table.name == f"events.{name}"
        assert table.description.endswith(".")
        assert all(column.description for column in table.columns)
        assert set(table.key) <= set(table.column_names)


def test_a_moved_home_reads_the_same_ledger(small: Deployment, tmp_path: Path) -> None:
    write_rows(small, "impressions", "a", [impression("i", START_US)])
    ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)
    shutil.move(small.home, tmp_path / "elsewhere")
    moved = Deployment(small.dataset, tmp_path / "elsewhere")
    ingest_hours(warehouse_of(moved), moved, START_US, LAST_US)
    assert len(ask(moved, "SELECT DISTINCT path FROM events.files")) == 2


def test_a_gzipped_log_needs_no_other_words(tmp_path: Path) -> None:
    deployment = deployment_in(tmp_path)
    path = deployment.logs / "impressions" / "a.csv.gz"
    path.parent.mkdir(parents=True)
    names = "impression_id,arm,colour,size,propensity,bid_price,occurred_us,received_us"
    path.write_bytes(gzip.compress(f"{names}\ni,x,red,1.5,0.5,7,{START_US},{START_US}\n".encode()))
    close_log(deployment)
    ingest_hours(warehouse_of(deployment), deployment, START_US, START_US + HOUR_US)
    assert ask(deployment, "SELECT impression_id, size, bid_price FROM events.impressions") == [
        ("i", 1.5, 7)
    ]


def test_of_two_rows_with_one_id_and_different_content_the_first_received_is_kept(
    small: Deployment,
) -> None:
    """In one file or in two; the other is counted as a duplicate that says something else."""
    write_rows(
        small,
        "impressions",
        "a",
        [
            impression("i", START_US, START_US + 2, colour="blue"),
            impression("i", START_US, START_US + 1, colour="red"),
            impression("j", START_US, colour="green"),
        ],
    )
    write_rows(small, "impressions", "b", [impression("i", START_US, START_US + 3, colour="red")])
    ingest_hours(warehouse_of(small), small, START_US, START_US + HOUR_US)
    assert ask(small, "SELECT impression_id, colour FROM events.impressions ORDER BY 1") == [
        ("i", "red"),
        ("j", "green"),
    ]
    assert ask(
        small,
        "SELECT received_us - $start, same_content FROM events.duplicates ORDER BY 1".replace(
            "$start", str(START_US)
        ),
    ) == [(2, False), (3, False)]
    assert ask(
        small,
        "SELECT rows_in, kept, duplicates, quarantined FROM events.accounting "
        "WHERE table_name = 'impressions'",
    ) == [(4, 2, 2, 0)]


def test_an_engagement_received_before_it_occurred_is_refused_and_the_others_are_kept(
    small: Deployment,
) -> None:
    write_rows(small, "impressions", "a", [impression("i", START_US)])
    write_rows(
        small,
        "engagements",
        "a",
        [engagement("e", "i", START_US + 9, START_US + 8), engagement("f", "i", START_US + 9)],
    )
    ingest_hours(warehouse_of(small), small, START_US, LAST_US)
    assert ask(small, "SELECT key, reason FROM events.quarantine") == [
        ("e", "received before it occurred")
    ]
    assert ask(small, "SELECT event_id FROM events.engagements") == [("f",)]
    with warehouse_of(small).reader() as connection:
        assert accounting_gaps(connection) == ()


STEPPING_BACK = [
    impression("a", START_US + 50 * MINUTE_US),
    impression("b", START_US + 70 * MINUTE_US),
    impression("c", START_US + 10 * MINUTE_US),  # the clock was set back by an hour
    impression("d", START_US + 20 * MINUTE_US),
    impression("e", START_US + 80 * MINUTE_US),
]


def test_receipts_that_step_back_within_and_between_files_give_the_tables_of_a_straight_log(
    tmp_path: Path,
) -> None:
    found = []
    straight = sorted(STEPPING_BACK, key=lambda row: row["received_us"])
    for folder, files in (
        ("one file", [STEPPING_BACK]),
        ("two files", [STEPPING_BACK[:2], STEPPING_BACK[2:]]),
        ("straight", [straight]),
    ):
        deployment = deployment_in(tmp_path / folder)
        close_log(deployment)
        for number, rows in enumerate(files):
            write_rows(deployment, "impressions", f"f{number}", rows)
        ingest_hours(warehouse_of(deployment), deployment, START_US, LAST_US)
        found.append(contents(warehouse_of(deployment)))
    assert found[0] == found[1] == found[2]
    assert sum(found[0]["impressions"].values()) == len(STEPPING_BACK) + 1


def test_a_file_whose_clock_stepped_back_behind_sealed_hours_is_late_and_unseals_nothing(
    tmp_path: Path,
) -> None:
    """An open log: the watermark and the sealed hours never go back."""
    text = DATASET.replace("whole_hours: true", "").replace("end: 2026-03-02T08:00Z", "")
    deployment = deployment_in(tmp_path, text)
    warehouse = warehouse_of(deployment)
    write_rows(deployment, "impressions", "a", [impression("i", START_US + 130 * MINUTE_US)])
    ingest_hours(warehouse, deployment, START_US, START_US + 2 * HOUR_US)
    write_rows(deployment, "impressions", "b", [impression("j", START_US + 10 * MINUTE_US)])
    register_files(warehouse, deployment)
    with warehouse.reader() as connection:
        assert watermark_us(connection, deployment.dataset) == START_US + 2 * HOUR_US
        assert sealed_until(connection) == START_US + 2 * HOUR_US
    write_rows(deployment, "impressions", "c", [impression("k", START_US + 190 * MINUTE_US)])
    ingest_hours(warehouse, deployment, START_US + 2 * HOUR_US, START_US + 3 * HOUR_US)
    assert ask(
        deployment, "SELECT impression_id, received_us FROM events.impressions ORDER BY 1"
    ) == [("i", START_US + 130 * MINUTE_US), ("j", START_US + 2 * HOUR_US)]
    assert ask(
        deployment,
        "SELECT sum(late) FROM events.accounting WHERE table_name = 'impressions'",
    ) == [(1,)]
    with warehouse.reader() as connection:
        assert sealed_until(connection) == START_US + 3 * HOUR_US
        assert accounting_gaps(connection) == ()


def test_a_wall_clock_that_steps_back_between_two_ingests_changes_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's hours come from the log; the second half runs a year before the first."""
    found = []
    for folder, wall_clocks in (("straight", (None, None)), ("back", (1.8e9, 1.7e9))):
        deployment = deployment_in(tmp_path / folder)
        close_log(deployment)
        warehouse = warehouse_of(deployment)
        sealed = []
        for wall_clock, name, hours in zip(wall_clocks, "ab", (2, 11), strict=True):
            path = write_rows(deployment, "impressions", name, [impression(name, START_US + 1)])
            if wall_clock is not None:
                os.utime(path, (wall_clock, wall_clock))
                monkeypatch.setattr(time, "time", lambda now=wall_clock: now)
                monkeypatch.setattr(time, "time_ns", lambda now=wall_clock: int(now * 1e9))
            start_us = START_US if name == "a" else START_US + 2 * HOUR_US
            ingest_hours(warehouse, deployment, start_us, START_US + hours * HOUR_US)
            with warehouse.reader() as connection:
                sealed.append(sealed_until(connection))
        assert sealed == [START_US + 2 * HOUR_US, START_US + 11 * HOUR_US]
        found.append((contents(warehouse), ask(deployment, "FROM events.files ORDER BY ALL")))
    # Parquet files written twice are the same to the byte, so the ledgers are equal too.
    assert found[0] == found[1]


def test_the_log_of_another_dataset_is_not_read_into_a_claimed_home(
    small: Deployment, tmp_path: Path
) -> None:
    ingest_hours(warehouse_of(small), small, START_US, LAST_US)
    text = DATASET.replace("name: small", "name: other")
    other = Deployment(deployment_in(tmp_path / "other", text).dataset, small.home)
    before = contents(warehouse_of(small))
    with pytest.raises(HomeTaken, match=r"'small' of .*not dataset 'other' of"):
        ingest_hours(warehouse_of(other), other, START_US, LAST_US)
    assert contents(warehouse_of(small)) == before
