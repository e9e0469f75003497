"""The drift study measures what the product decides, and its planted drift is what it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline.monitoring.drift.inputs import drift_report
from ad_pipeline.settings import DriftSettings
from benchmarks.evidence import drift_alarm

SMALL = replace(drift_alarm.SPEC, impressions_per_day=3_000, users=500)


def column(shares: list[float], rows: int, seed: int) -> pa.Table:
    drawn = np.random.default_rng(seed).choice(["a", "b", "c"], rows, p=shares)
    return pa.table({"x": drawn, "y": np.random.default_rng(seed + 1).normal(size=rows)})


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.3, 0.6]])
def test_the_verdict_at_a_threshold_is_the_index_against_it(threshold: float, shares: list[float]):
    settings = DriftSettings(psi_threshold=threshold)
    verdict = drift_report(
        column([0.5, 0.3, 0.2], 4000, 1),
        column(shares, 4000, 2),
        {"x": "categorical", "y": "numeric"},
        settings,
    )
    assert verdict.drifted == (drift_alarm.index_of(verdict) >= threshold)


def test_the_rule_takes_the_geometric_middle_of_the_tuning_runs():
    assert drift_alarm.tuned_threshold([0.02, 0.1], [0.4, 0.9]) == 0.2


def test_a_drift_of_half_strength_takes_half_of_the_last_day(tmp_path: Path):
    for strength in (0.0, 0.5, 1.0):
        drift_alarm.write_logs(SMALL, strength, tmp_path / f"{strength}" / "logs")
    last, first = (
        {
            strength: pq.read_table(
                tmp_path / f"{strength}" / "logs" / "impressions" / f"day={day}.parquet",
                columns=["impression_id", "publisher_id"],
            ).to_pylist()
            for strength in (0.0, 0.5, 1.0)
        }
        for day in (2, 1)
    )
    assert first[0.0] == first[0.5] == first[1.0]
    publishers = {
        strength: {row["impression_id"]: row["publisher_id"] for row in rows}
        for strength, rows in last.items()
    }
    moved = [
        key for key in publishers[0.0].keys() & publishers[1.0].keys()
        if publishers[0.0][key] != publishers[1.0][key]
    ]  # fmt: skip
    assert len(moved) > 500
    taken = np.mean([publishers[0.5].get(key) == publishers[1.0][key] for key in moved])
    assert 0.42 < taken < 0.58
