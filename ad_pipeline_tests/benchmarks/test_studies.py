"""A study runs what it lacks, says what that costs first, and survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ad_pipeline_tests.benchmarks.toy_study import SEEDS, toy
from benchmarks.studies import (
    Shared,
    Values,
    budget_seconds,
    forget,
    read_results,
    remaining,
    run_studies,
    values_of,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def quiet(_: str) -> None:
    """Tell nobody."""


def test_results_come_back_by_arm_in_the_order_of_the_seeds(tmp_path: Path):
    run_studies([toy()], tmp_path, say=quiet)
    results = read_results(toy(), tmp_path)
    assert values_of(results, "ten", "value") == [10.0 * seed for seed in SEEDS]
    assert values_of(results, "one", "value") == [1.0 * seed for seed in SEEDS]


def test_the_budget_is_said_before_anything_runs(tmp_path: Path):
    order: list[str] = []

    def noted(arm: str, seed: int) -> Values:
        order.append("ran")
        return {"value": 0.0}

    study = replace(toy(), run=noted)
    run_studies([study], tmp_path, say=order.append)
    assert order[0] == "toy: 0 of 8 runs are stored, 8 left, about 16 s"
    assert order[1] == "time budget: about 16 s"
    assert order[2] == "ran"


def test_a_second_call_runs_nothing(tmp_path: Path):
    run_studies([toy()], tmp_path, say=quiet)

    def refuse(arm: str, seed: int) -> Values:
        raise AssertionError(f"{arm}, {seed} ran again")

    run_studies([replace(toy(), run=refuse)], tmp_path, say=quiet)
    # The planted fault: one line is lost, and that run is run again.
    path = tmp_path / "toy.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(AssertionError, match="one, 1 ran again"):
        run_studies([replace(toy(), run=refuse)], tmp_path, say=quiet)


def test_a_changed_setting_makes_every_result_stale(tmp_path: Path):
    run_studies([toy(settings=1)], tmp_path, say=quiet)
    assert read_results(toy(settings=2), tmp_path) == []
    assert len(remaining(toy(settings=2), tmp_path)) == 8
    run_studies([toy(settings=2)], tmp_path, say=quiet)
    kept = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert {record["settings"] for record in kept} == {toy(settings=2).digest}


def test_a_torn_last_line_counts_for_nothing(tmp_path: Path):
    run_studies([toy()], tmp_path, most_seeds=1, say=quiet)
    path = tmp_path / "toy.jsonl"
    path.write_text(path.read_text() + '{"arm": "one", "se')
    assert len(read_results(toy(), tmp_path)) == 2
    run_studies([toy()], tmp_path, say=quiet)
    assert len(read_results(toy(), tmp_path)) == 8


def test_fewer_seeds_can_be_asked_for_and_the_rest_comes_later(tmp_path: Path):
    run_studies([toy()], tmp_path, most_seeds=2, say=quiet)
    assert {result.seed for result in read_results(toy(), tmp_path)} == {1, 2}
    assert remaining(toy(), tmp_path) == [("one", 3), ("ten", 3), ("one", 4), ("ten", 4)]


def test_forgotten_results_are_gone(tmp_path: Path):
    run_studies([toy()], tmp_path, say=quiet)
    forget(toy(), tmp_path)
    assert len(remaining(toy(), tmp_path)) == 8


def test_shared_work_counts_once_and_only_while_it_is_missing(tmp_path: Path):
    def shared(arm: str, seed: int) -> Shared:
        return Shared(f"seed {seed}", 100.0, seed == 1)

    first, second = (
        replace(toy(), name=name, shared=shared, seconds=1.0) for name in ("first", "second")
    )
    assert budget_seconds([first, second], tmp_path) == {"first": 308.0, "second": 8.0}


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path):
    command = [sys.executable, "-m", "ad_pipeline_tests.benchmarks.toy_study", str(tmp_path)]
    path = tmp_path / "toy.jsonl"
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while not (path.exists() and len(path.read_text().splitlines()) >= 2):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    assert running.returncode == -signal.SIGKILL
    stored = read_results(toy(), tmp_path)
    assert 2 <= len(stored) < 8
    ran: list[tuple[str, int]] = []

    def noted(arm: str, seed: int) -> Values:
        ran.append((arm, seed))
        return toy().run(arm, seed)

    run_studies([replace(toy(), run=noted)], tmp_path, say=quiet)
    assert ran == toy().pairs()[len(stored) :]
    assert values_of(read_results(toy(), tmp_path), "ten", "value") == [10.0, 20.0, 30.0, 40.0]
