"""Every source tells its planted fault, and nothing in a sound deployment."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ad_pipeline.checkpoints import point, write_checkpoint
from ad_pipeline.clocks import HOUR_US, hour_start
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.events.contract import ACCOUNTING
from ad_pipeline.learners.online.online_checkpoints import pointer
from ad_pipeline.learners.tables import TABLES as LEARNER_TABLES
from ad_pipeline.monitoring.alerts.alert import Alert, FailedCheck, in_order
from ad_pipeline.monitoring.alerts.alerts_of_log import (
    PAGE,
    NoAlertsYet,
    read_alerts,
    record_alerts,
)
from ad_pipeline.monitoring.alerts.alerts_page import alerts_lines, counted
from ad_pipeline.monitoring.alerts.sources import SOURCES
from ad_pipeline.monitoring.tables import TABLES
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.heartbeat import beat
from ad_pipeline.serving.pointers import SNAPSHOT, Pointer, move_pointer
from ad_pipeline.serving.promotion import promote, rollback
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.serving import worlds

NOW_US = hour_start("2026-11-03-00:00")
LAST_US = NOW_US - HOUR_US

Site = tuple[Warehouse, Deployment]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    """Return bundles to serve."""
    return worlds.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def site(world: worlds.World, tmp_path: Path) -> Site:
    """Return a deployment in which nothing is wrong."""
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    paths = Deployment(dataset, tmp_path / "home")
    warehouse = Warehouse(paths.warehouse)
    warehouse.create([*TABLES, *LEARNER_TABLES, ACCOUNTING])
    sql(
        f"INSERT INTO events.accounting VALUES ('impressions', {LAST_US}, "
        "1000, 1000, 0, 0, 0, 0, 0, 0)"
    )((warehouse, paths))
    for goal in dataset.goal_names:
        model = write_checkpoint(paths.checkpoints, "test", {}, {"goal": goal})
        point(paths.checkpoints, pointer(goal, LAST_US), model.digest)
    for bundle in (world.young, world.bundle):
        (paths.bundles / "objects").mkdir(parents=True, exist_ok=True)
        (paths.bundles / "objects" / bundle.digest).symlink_to(bundle.path)
        promote(paths.serving, paths.bundles, bundle.digest, {}, watermark_us=LAST_US)
    point(paths.bundles, CANDIDATE, world.bundle.digest)
    move_pointer(paths.serving, SNAPSHOT, Pointer(world.due.digest, NOW_US))
    beat(paths.serving, "bidder", world.bundle.digest, "", NOW_US)
    return warehouse, paths


def sql(statement: str) -> Callable[[Site], None]:
    """Return a plant that changes the warehouse."""

    def plant(site: Site) -> None:
        with site[0].writer() as connection:
            connection.execute(statement)

    return plant


def go_back(site: Site) -> None:
    """Roll back to the young bundle, which lacks experts; the candidate serves no more."""
    rollback(site[1].serving, site[1].bundles, watermark_us=NOW_US)


def leave_the_last_hour_unlearnt(site: Site) -> None:
    goal = site[1].dataset.goal_names[0]
    (site[1].checkpoints / "pointers" / f"{pointer(goal, LAST_US).replace(':', '')}.json").unlink()


FAULTS: dict[str, tuple[Callable[[Site], None], str]] = {
    "suspect_hours": (
        sql(
            "INSERT INTO learners.hour_guards BY NAME SELECT 'click' AS goal, "
            f"{LAST_US} AS hour_us, 'tripped' AS state, 'loss 3 times the usual' AS reason"
        ),
        "page",
    ),
    "failed_recoveries": (
        sql(
            "INSERT INTO learners.recoveries BY NAME SELECT 'click' AS goal, "
            f"{LAST_US} AS hour_us, false AS succeeded, 'the guard trips again' AS outcome"
        ),
        "page",
    ),
    "hours_left_out": (
        sql(
            "INSERT INTO learners.quarantined_hours VALUES "
            f"('click', {LAST_US}, 'left_out', 'guard', '{{}}');"
            "INSERT INTO learners.hour_guards BY NAME SELECT 'click' AS goal, "
            f"{LAST_US} AS hour_us, 'left_out' AS state, 'decided' AS reason"
        ),
        "info",
    ),
    "models_missing": (leave_the_last_hour_unlearnt, "page"),
    "drifted_columns": (
        sql(
            "INSERT INTO monitoring.drift BY NAME SELECT 'publisher_id' AS column_name, "
            "0.4 AS psi, 0.2 AS threshold, true AS drifted, 1 AS current_start_us, "
            "2 AS current_end_us"
        ),
        "warn",
    ),
    "drift_verdicts": (
        sql(
            f"INSERT INTO monitoring.drift_verdicts BY NAME SELECT {LAST_US} AS hour_us, "
            "'loss' AS kind, 'click' AS subject, 'concept' AS cause, 0.4 AS value, "
            "0.2 AS threshold, true AS drifted, '' AS actions"
        ),
        "warn",
    ),
    "withdrawn_estimates": (
        sql(
            f"INSERT INTO monitoring.performance_estimate BY NAME SELECT {LAST_US} AS hour_us, "
            "'click' AS goal, 'online' AS expert, 'withdrawn' AS state, "
            "'labels so far ask for another slope' AS reason"
        ),
        "warn",
    ),
    "parity_findings": (
        sql(
            f"INSERT INTO monitoring.parity_findings BY NAME SELECT {LAST_US} AS hour_us, "
            "'a' AS bundle_hash, 'scores' AS comparison, 'click' AS name, 'severe' AS severity, "
            "'version skew' AS cause, 1 AS offending, 10 AS rows, 'r1' AS evidence, 'look' AS act"
        ),
        "page",
    ),
    "suspect_labels": (
        sql(
            f"INSERT INTO monitoring.label_quality BY NAME SELECT {LAST_US} AS hour_us, "
            "'click' AS goal, 'all' AS slice_of, '' AS part, 'stalled' AS verdict, "
            "'no click in an hour' AS reason"
        ),
        "page",
    ),
    "snapshot_stale": (
        lambda site: move_pointer(site[1].serving, SNAPSHOT, Pointer("a", NOW_US - 4 * HOUR_US)),
        "page",
    ),
    "scorer_behind": (
        lambda site: beat(site[1].serving, "bidder", "f" * 64, "", NOW_US + 9 * HOUR_US) and None,
        "page",
    ),
    "rows_quarantined": (sql("UPDATE events.accounting SET quarantined = 40"), "warn"),
    "rows_late": (sql("UPDATE events.accounting SET late = 90"), "warn"),
    "delays_miscalibrated": (
        sql(
            "INSERT INTO monitoring.delay_calibration BY NAME SELECT "
            f"{NOW_US} - hour * {HOUR_US} AS hour_us, 'click' AS goal, 'lateness' AS model, "
            "'' AS part, 20 AS rows, 5.0 AS predicted, 10.0 + hour % 3 AS observed "
            "FROM range(1, 40) AS hours(hour)"
        ),
        "warn",
    ),
}


def found(site: Site, *checks: FailedCheck) -> list[Alert]:
    return record_alerts(site[0], site[1], checks)


def test_nothing_is_wrong_in_a_sound_deployment(site: Site) -> None:
    assert found(site) == []
    assert read_alerts(site[0]) == []
    assert "Nothing is wrong." in (site[1].reports / PAGE).read_text()


@pytest.mark.parametrize("source", FAULTS)
def test_a_planted_fault_is_told_by_its_source_alone_and_with_a_line_to_act(
    site: Site, source: str
) -> None:
    plant, severity = FAULTS[source]
    plant(site)
    (alert,) = found(site)
    assert (alert.source, alert.severity) == (source, severity)
    assert alert.found
    assert alert.act
    (row,) = read_alerts(site[0])
    assert row["key"] == alert.key
    assert alert.subject in (site[1].reports / PAGE).read_text()
    assert any(alert.act in line for line in alerts_lines([row]))


def test_after_a_rollback_the_candidate_and_the_missing_experts_are_told(site: Site) -> None:
    go_back(site)
    sources = {alert.source for alert in found(site)}
    # The scorer has an hour of log to follow.
    assert sources == {"candidate_refused", "served_bundle"}


def test_a_bundle_that_cannot_be_opened_is_told(
    site: Site, world: worlds.World, own_bundle: Path
) -> None:
    target = site[1].bundles / "objects" / world.bundle.digest
    target.unlink()
    target.symlink_to(own_bundle)
    content = bytearray((own_bundle / "click.online.values.npy").read_bytes())
    content[-1] ^= 1
    (own_bundle / "click.online.values.npy").write_bytes(content)
    (alert,) = found(site)
    assert (alert.source, alert.act) == ("served_bundle", "ad_pipeline rollback")


@pytest.fixture
def own_bundle(world: worlds.World, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may damage."""
    import shutil

    return Path(shutil.copytree(world.bundle.path, tmp_path / "own" / world.bundle.digest))


def test_a_failed_check_is_told_as_a_page_if_it_blocks(site: Site) -> None:
    check = FailedCheck("events/impressions", "clocks_agree", True, "3 rows do not")
    (alert,) = found(site, check)
    assert (alert.source, alert.severity) == ("checks_failed", "page")
    (alert,) = found(site, replace(check, blocks=False))
    assert alert.severity == "warn"


def test_every_source_has_its_planted_fault() -> None:
    assert set(SOURCES) == set(FAULTS) | {"candidate_refused", "served_bundle", "checks_failed"}


def test_an_old_finding_of_one_hour_is_not_wrong_now(site: Site) -> None:
    sql(f"INSERT INTO events.accounting VALUES ('clicks', {LAST_US - 30 * HOUR_US}, "
        "10, 5, 0, 0, 0, 5, 0, 0)")(site)  # fmt: skip
    assert found(site) == []


def test_what_is_mended_has_no_row_and_the_same_data_give_the_same_rows(site: Site) -> None:
    FAULTS["rows_late"][0](site)
    found(site)
    first = read_alerts(site[0])
    found(site)
    assert read_alerts(site[0]) == first
    sql("UPDATE events.accounting SET late = 0")(site)
    assert found(site) == []


def test_before_anything_was_looked_for_it_says_so(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create([ACCOUNTING])
    with pytest.raises(NoAlertsYet, match="materialize monitoring/alerts"):
        read_alerts(warehouse)


def test_a_new_deployment_has_no_alerts(tmp_path: Path) -> None:
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    paths = Deployment(dataset, tmp_path)
    assert record_alerts(Warehouse(paths.warehouse), paths) == []


def test_the_severest_stand_first_and_text_cannot_break_the_page(site: Site) -> None:
    mild = Alert("a", "info", "x", "y", 0, "z")
    severe = Alert("a", "page", "x", "y", 9, "z")
    assert in_order([mild, severe]) == [severe, mild]
    found(site, FailedCheck("a/b", "<script>", False, "<b>"))
    assert "<script>" not in (site[1].reports / PAGE).read_text()
    assert counted(read_alerts(site[0])) == "1 warn."
