"""A log of another shape runs the whole path by one command: what was planted is what comes out."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ad_pipeline.datasets import DATA_FOLDER, load_dataset
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.strangers import runs
from ad_pipeline_tests.strangers.runs import (
    Stranger,
    avazu,
    checks_not_passed,
    command,
    criteo,
    ipinyou,
)

MAY_NOT_PASS = {
    "served_scores_are_given_again",  # nobody has served: said, not counted as passed
    "served_features_were_right",
    "ensemble_is_no_worse_than_the_best_expert",  # within the noise of a small log
}


@pytest.mark.slow
@pytest.mark.parametrize("make", [criteo, avazu, ipinyou])
def test_one_command_runs_the_whole_path(make: Callable[[Path], Stranger], tmp_path: Path) -> None:
    stranger = make(tmp_path)
    ran = command(stranger.root, ["run", str(stranger.dataset_file)])
    assert_planted(stranger)
    assert_learnt(stranger)
    # Those that need nobody to have served passed.
    assert checks_not_passed(ran.stdout) <= MAY_NOT_PASS
    assert f"{stranger.goal}: " in ran.stdout
    judged = re.search(r"bundle \w{12} (promoted|refused): (\w.+)", ran.stdout)
    assert judged is not None
    serves = read_pointer(stranger.deployment.serving, CURRENT) is not None
    assert serves == (judged[1] == "promoted")


def assert_planted(stranger: Stranger) -> None:
    """Every line of the log is somewhere, and every label is as it was planted."""
    planted = stranger.planted
    with Warehouse(stranger.deployment.warehouse).reader() as connection:
        assert accounting_gaps(connection) == ()
        impressions = connection.execute(
            "SELECT sum(rows_in), sum(kept), sum(duplicates), sum(quarantined) "
            "FROM events.accounting WHERE table_name = 'impressions'"
        ).fetchall()
        assert impressions == [(planted.lines, planted.rows, planted.repeated, 0)]
        engagements = connection.execute(
            "SELECT sum(kept), sum(quarantined), sum(outside_window) "
            "FROM events.accounting WHERE table_name = 'engagements'"
        ).fetchall()
        kept = planted.positives + planted.outside_window
        assert engagements == [(kept, 0, planted.outside_window)]
        labels = connection.execute(
            "SELECT count(*), count(DISTINCT impression_id), sum(label) "
            "FROM examples.labelled_impressions WHERE goal = $goal",
            {"goal": stranger.goal},
        ).fetchall()
        assert labels == [(planted.rows, planted.rows, planted.positives)]


def assert_learnt(stranger: Stranger) -> None:
    """What is served beats the base rate, on rows that were used for no fitting."""
    with Warehouse(stranger.deployment.warehouse).reader() as connection:
        loss = dict(
            connection.execute(
                "SELECT expert, value FROM evaluation.report "
                "WHERE range_name = 'test' AND metric = 'log_loss' AND goal = $goal",
                {"goal": stranger.goal},
            ).fetchall()
        )
    assert {"base rate", "online", "ensemble"} <= set(loss)
    assert loss["online"] < 0.98 * loss["base rate"]
    assert loss["ensemble"] < 0.98 * loss["base rate"]


@pytest.mark.slow
def test_an_unedited_draft_runs_the_whole_path_and_a_second_run_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    stranger = avazu(tmp_path / "made", rows=8_000, hours=30)
    log = Path(shutil.copy(stranger.log, tmp_path / "clicks.csv.gz"))
    drafted = tmp_path / "dataset.yaml"
    root = tmp_path / "home"
    init = command(root, ["init", str(log), "--name", "drafted", "--output", str(drafted)])
    assert "no error" in init.stdout
    ran = command(root, ["run", str(drafted)])
    of_draft = Stranger(drafted, log, root, stranger.planted, "click")
    assert_planted(of_draft)
    assert_learnt(of_draft)
    assert "the log has ended" in ran.stdout
    again = command(root, ["run", str(drafted)])
    assert "nothing is new since the last run" in again.stdout
    assert "dagster asset materialize" not in again.stdout
    assert "click: " in again.stdout, "the report is printed all the same"


def test_the_generators_write_the_same_bytes_from_the_same_seed(tmp_path: Path) -> None:
    for make in (criteo, avazu, ipinyou):
        first = make(tmp_path / f"{make.__name__}1", rows=500, hours=8)
        second = make(tmp_path / f"{make.__name__}2", rows=500, hours=8)
        assert first.log.read_bytes() == second.log.read_bytes()
        assert first.planted == second.planted
        assert first.planted.positives > 10


def test_the_small_dataset_files_differ_from_the_shipped_ones_in_end_and_window_only(
    tmp_path: Path,
) -> None:
    for make, name in (
        (criteo, "criteo_conversions"),
        (avazu, "avazu_clicks"),
        (ipinyou, "ipinyou_bids"),
    ):
        small = load_dataset(make(tmp_path / name, rows=300, hours=8).dataset_file)
        shipped = load_dataset(DATA_FOLDER / name / "dataset.yaml")
        changed = {
            key
            for key in type(shipped).model_fields
            if getattr(small, key) != getattr(shipped, key)
        }
        assert changed <= {"end_us", "goals", "settings", "path", "sources"}
        assert [s.model_dump(exclude={"line"}) for s in small.sources] == [
            s.model_dump(exclude={"line"}) for s in shipped.sources
        ]


def test_an_edit_that_no_longer_fits_the_shipped_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 times, not once"):
        runs.shrunk("avazu_clicks", tmp_path, ("no such text", ""))
