"""The command that runs a published protocol, and the table that it prints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.cli import main
from ad_pipeline.datasets import Deployment, load_dataset
from ad_pipeline.monitoring.late_labels.arms import ORACLE, PRE_TRAINED, VANILLA
from ad_pipeline.monitoring.published.figures import (
    PUBLISHED,
    Figures,
    closed,
    pr_auc_of_trapezoids,
    table_lines,
    unclipped_log_loss,
)
from ad_pipeline.monitoring.published.protocols import Defect
from ad_pipeline.monitoring.published.run import FOLDER, NET, Asked, run_published
from ad_pipeline.simulation.conversion_spec import LogFormat, spec_like
from ad_pipeline.simulation.conversions import simulate_conversions


def deployed(
    folder: Path,
    log_format: LogFormat = "criteo",
    recorded_days: float | None = None,
    days: int = 10,
) -> Deployment:
    """A small log in a published format."""
    spec = replace(spec_like(log_format), rows=5_000, days=days, recorded_days=recorded_days)
    log = simulate_conversions(spec, log_format, folder)
    return Deployment(load_dataset(log.dataset_file), folder / "home")


def test_trapezoids_join_the_points_of_the_curve() -> None:
    labels = np.array([1, 0, 1, 0])
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    # (recall, precision): (0, 1), (1/2, 1), (1/2, 1/2), (1, 2/3), (1, 1/2).
    assert pr_auc_of_trapezoids(labels, scores) == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)
    # The order of rows with one score does not matter, and their point is a single one.
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert pr_auc_of_trapezoids(labels[order], np.full(4, 0.3)) == pytest.approx(0.75)
    assert np.isnan(pr_auc_of_trapezoids(np.zeros(3), np.arange(3.0)))


def test_a_wrong_certainty_costs_all_it_says() -> None:
    assert unclipped_log_loss(np.array([0]), np.array([46.0])) == pytest.approx(46.0)
    assert unclipped_log_loss(np.array([1, 0]), np.zeros(2)) == pytest.approx(np.log(2))
    assert np.isnan(unclipped_log_loss(np.zeros(0), np.zeros(0)))


def test_published_shares_of_the_gap_follow_from_the_published_figures() -> None:
    criteo = closed(PUBLISHED["ES-DFM on Criteo"])
    found = [
        [round(share.auc), round(share.pr_auc), round(share.nll)]
        for share in (criteo[VANILLA], criteo["fake_negative_weighted"], criteo["es_dfm"])
    ]
    assert found == [[48, 17, -27], [46, 28, -17], [66, 65, 60]]
    cascade = closed(PUBLISHED["NetCVR on CASCADE"])
    assert round(cascade["es_dfm"].auc, 1) == 70.0
    assert round(cascade["wait for maturity"].pr_auc, 1) == 26.8


def test_a_table_has_a_line_for_every_arm_that_was_run_or_published() -> None:
    found = {PRE_TRAINED: Figures(0.6, 0.2, 0.5), "mine": Figures(0.65, 0.3, 0.45)}
    found[ORACLE] = Figures(0.7, 0.4, 0.4)
    lines = list(table_lines(found, PUBLISHED["NetCVR on CASCADE, net"]))
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:5]] == [*found]
    assert lines[3] == "| mine | 0.6500 | 0.3000 | 0.4500 | 50.0 | 50.0 | 50.0 " + "| – " * 6 + "|"
    (tesla,) = [line for line in lines if line.startswith("| TESLA")]
    assert tesla.split(" | ")[1:9] == [*"––––––", "0.7588", "–"]


def test_one_command_runs_the_protocol_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deployed(tmp_path)
    monkeypatch.setenv("AD_PIPELINE_HOME", str(tmp_path / "homes"))
    monkeypatch.setenv("AD_PIPELINE_DATASET", "")
    command = ["published-protocol", str(deployment.dataset.path), "--arms", "es_dfm"]
    assert main(command) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith("ES-DFM on Criteo: 5,000 clicks")
    budget = [place for place, line in enumerate(first) if "3 are left; they take about" in line]
    began = [place for place, line in enumerate(first) if line.startswith("1/3: ")]
    assert budget[0] < began[0]
    rows = [line for line in first if line.startswith("| es_dfm")]
    assert "| 0.8402 | 0.6393 | 0.3924 |" in rows[0]

    (kept,) = (tmp_path / "homes").rglob("*es_dfm*.npz")
    assert len(list(kept.parent.glob("*.npz"))) == 3
    kept.unlink()
    assert main(command) == 0
    second = capsys.readouterr().out.splitlines()
    assert any("2 runs are kept, 1 are left" in line for line in second)
    assert not any(line.startswith("2/") for line in second)
    assert [line for line in second if line.startswith("| es_dfm")] == rows

    assert main([*command, "fsiw"]) == 0
    third = capsys.readouterr().out.splitlines()
    assert any("3 runs are kept, 1 are left" in line for line in third)
    assert [line for line in third if line.startswith("| es_dfm")] == rows


def test_the_oracle_is_the_best_and_every_arm_is_better_than_chance(tmp_path: Path) -> None:
    deployment = deployed(tmp_path, "cascade")
    said: list[str] = []
    found = run_published(deployment, Asked(arms=("es_dfm", "wait for maturity")), said.append)
    assert found[ORACLE].nll < found[PRE_TRAINED].nll
    assert found[ORACLE].nll < found["wait for maturity"].nll
    assert min(each.auc for each in found.values()) > 0.55
    assert NET not in said
    assert (deployment.home / FOLDER).is_dir()


def test_net_labels_are_another_task_and_say_what_no_arm_does(tmp_path: Path) -> None:
    deployment = deployed(tmp_path, "cascade", days=25)
    said: list[str] = []
    gross = run_published(deployment, Asked(arms=("es_dfm",)), said.append)
    net = run_published(deployment, Asked(arms=("es_dfm",), net=True), said.append)
    assert NET in said
    assert net[ORACLE].nll < gross[ORACLE].nll
    assert any("0.7643" in line for line in said)


def test_several_seeds_leave_out_other_clicks(tmp_path: Path) -> None:
    deployment = deployed(tmp_path)
    said: list[str] = []
    run_published(deployment, Asked(arms=("fsiw",), seeds=2), said.append)
    runs = [
        np.load(path)["log_odds"] for path in sorted((tmp_path / "home").rglob("linear.fsiw.*.npz"))
    ]
    assert len(runs) == 2
    assert not np.array_equal(runs[0], runs[1])


def test_a_leak_is_said_and_there_is_none_without_the_defect(tmp_path: Path) -> None:
    deployment = deployed(tmp_path)
    for defects, leaks in ((frozenset(), 0), ({Defect.WINDOW_LABELS_AT_CLICK_TIME}, 1)):
        said: list[str] = []
        asked = Asked(arms=("fsiw",), defects=frozenset(defects))
        run_published(deployment, asked, said.append)
        assert sum(line.startswith("LEAK: ") for line in said) == leaks


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--defect", "haste"], "no defect 'haste'"),
        (["--arms", "es-dfm"], "no arm 'es-dfm'"),
        (["--window", "soon"], "write a number of hours above 0"),
        (["--window", "0.5", "--defect", "whole_hour_windows"], "write a whole number of hours"),
        (["--share", "2"], "a share of the clicks in (0, 1]"),
        (["--seeds", "0"], "at least one seed"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployment = deployed(tmp_path)
    monkeypatch.setenv("AD_PIPELINE_HOME", str(tmp_path / "homes"))
    monkeypatch.setenv("AD_PIPELINE_DATASET", "")
    assert main(["published-protocol", str(deployment.dataset.path), *more]) == 1
    assert message in capsys.readouterr().err


def test_a_log_too_short_to_test_anything_says_so(tmp_path: Path) -> None:
    deployment = deployed(tmp_path, recorded_days=10)
    with pytest.raises(LookupError, match="recorded for less than 30 days after the split"):
        run_published(deployment, Asked(), [].append)


def test_the_list_of_defects_needs_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published-protocol", "--defects"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [*Defect]
