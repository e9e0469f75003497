"""The driver serves a day in time order and hands over whole files."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline.clocks import DAY_US
from ad_pipeline.simulation.driver import DECISION_COLUMNS, DecisionBatch, drive_day
from ad_pipeline.simulation.log_files import WholeFile
from ad_pipeline.simulation.marketplace import hours_to_simulate, simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec

SPEC = MarketplaceSpec(days=3, drift_day=2, impressions_per_day=3_000, users=2_000)
DAY = 2


class Answers:
    """Decisions that say which request they answer."""

    def __init__(self, requests: pa.Table, order: np.ndarray) -> None:
        self._ids = requests["request_id"].take(pa.array(order))

    def to_log(self) -> pa.Table:
        """Return the columns of the serving log, without an impression."""
        names = [name for name in DECISION_COLUMNS[1:] if name != "impression_id"]
        return pa.table(
            {"request_id": self._ids, **{name: ["{}"] * len(self._ids) for name in names}}
        )


class RecordingScorer:
    """Remembers what it was asked; `shuffled` answers in another order than asked."""

    def __init__(self, shuffled: bool = False) -> None:
        self.asked: list[pa.Table] = []
        self._shuffled = shuffled

    def score_many(self, requests: pa.Table, /) -> DecisionBatch:
        """Record a batch."""
        self.asked.append(requests)
        order = np.arange(len(requests))
        return Answers(requests, order[::-1] if self._shuffled else order)


def drive(home: Path, scorer: RecordingScorer, batch_rows: int = 2_048) -> Path:
    """Drive the last day into a folder."""
    drive_day(
        SPEC,
        DAY,
        home / "serving",
        home / "logs",
        home / "truth",
        scorer=scorer,
        batch_rows=batch_rows,
    )
    return home


def all_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_driven_day_leaves_the_logs_of_the_simulator_and_the_decisions(tmp_path: Path) -> None:
    drive(tmp_path / "driven", RecordingScorer())
    plain = tmp_path / "plain"
    simulate_days(SPEC, plain / "logs", plain / "truth", range(DAY, DAY + 1))
    driven = all_files(tmp_path / "driven")
    assert driven.pop("logs/decisions/day=2.parquet")
    assert driven == all_files(plain)


def test_every_request_of_the_day_is_asked_once_in_time_order(tmp_path: Path) -> None:
    scorer = RecordingScorer()
    drive(tmp_path, scorer, batch_rows=50)
    asked = pa.concat_tables(scorer.asked)
    now_us = asked["occurred_us"].to_numpy()
    assert max(len(batch) for batch in scorer.asked) == 50
    assert (np.diff(now_us) >= 0).all()
    assert now_us.min() >= SPEC.start_us + DAY * DAY_US
    assert now_us.max() < SPEC.start_us + (DAY + 1) * DAY_US
    truth = pq.read_table(tmp_path / "truth" / "day=2.parquet", filters=[("goal", "=", "click")])
    assert asked["impression_id"].to_pylist() == truth["impression_id"].to_pylist()


def test_a_request_knows_nothing_of_its_outcome(tmp_path: Path) -> None:
    scorer = RecordingScorer()
    drive(tmp_path, scorer)
    assert not {"received_us", "paid_price", "label", "probability"} & set(
        scorer.asked[0].column_names
    )


def test_decisions_carry_the_impression_and_both_clocks(tmp_path: Path) -> None:
    drive(tmp_path, RecordingScorer())
    decisions = pq.read_table(tmp_path / "logs" / "decisions" / "day=2.parquet")
    assert decisions.column_names == [*DECISION_COLUMNS, "occurred_us", "received_us"]
    ids = zip(
        decisions["request_id"].to_pylist(), decisions["impression_id"].to_pylist(), strict=True
    )
    assert all(request[1:] == impression[1:] for request, impression in ids)
    occurred, received = (decisions[name].to_numpy() for name in ("occurred_us", "received_us"))
    assert (received >= occurred).all()
    assert received.max() < SPEC.start_us + (DAY + 1) * DAY_US


def test_a_scorer_that_answers_other_requests_is_refused_and_nothing_appears(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="scorer answered"):
        drive(tmp_path, RecordingScorer(shuffled=True))
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_next_driver_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    left = tmp_path / ".driving-day=2" / "logs" / "impressions"
    left.mkdir(parents=True)
    (left / "day=7.parquet").write_text("half a file")
    drive(tmp_path, RecordingScorer())
    assert not (tmp_path / ".driving-day=2").exists()
    assert not (tmp_path / "logs" / "impressions" / "day=7.parquet").exists()


def test_the_impressions_appear_last(tmp_path: Path) -> None:
    day = drive_day(
        SPEC, DAY, tmp_path, tmp_path / "logs", tmp_path / "truth", scorer=RecordingScorer()
    )
    assert day.files[-1].parent.name == "impressions"
    assert day.files[-2].parent.name == "impressions"
    assert day.decisions == pq.read_metadata(tmp_path / "logs/decisions/day=2.parquet").num_rows
    assert all(path.exists() for path in day.files)


def test_the_progress_counts_serving_and_simulating(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    drive_day(
        replace(SPEC, impressions_per_day=50),
        DAY,
        tmp_path,
        tmp_path / "logs",
        tmp_path / "truth",
        scorer=RecordingScorer(),
        progress=lambda done, total: told.append((done, total)),
    )
    total = 24 + hours_to_simulate(SPEC, range(DAY, DAY + 1))
    assert told == [(done, total) for done in range(1, total + 1)]


def test_a_file_that_fails_half_way_never_appears(tmp_path: Path) -> None:
    path = tmp_path / "impressions" / "day=0.parquet"
    table = pa.table({"occurred_us": [1], "received_us": [2]})

    def fail() -> None:
        with WholeFile(path) as file:
            file.write(table)
            assert not path.exists()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert not list(path.parent.iterdir())
    with WholeFile(path) as file:
        file.write(table)
    assert pq.read_table(path).equals(table)
