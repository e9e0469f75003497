"""From drift to cause and action: each kind is found where it is planted, and nowhere else."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.monitoring.drift.actions import change_of_loss, record_action, seen_by_sensor
from ad_pipeline.monitoring.drift.causes import CAUSES, DriftFound, explained
from ad_pipeline.monitoring.drift.losses import deviations
from ad_pipeline.monitoring.drift.verdicts import delay_verdict, input_verdicts, loss_verdicts
from ad_pipeline.monitoring.tables import TABLES
from ad_pipeline.settings import DriftSettings, Settings
from ad_pipeline.warehouse import Warehouse

SETTINGS = Settings()
HOURS, ROWS = 120, 400
END_US = (500_000 + HOURS) * HOUR_US
COLUMN: Mapping[str, object] = {
    "column_name": "site",
    "psi": 0.02,
    "drifted": False,
    "unseen": 0.001,
    "unseen_expected": 0.001,
    "unseen_p_value": 0.9,
    "current_end_us": END_US,
    "reference_rule": "hour of day",
}


def scored(
    seed: int, *, slope: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows whose truth, in the last twenty hours, is another function of the logit."""
    generator = np.random.default_rng(seed)
    hour = np.repeat(np.arange(HOURS), ROWS)
    logits = generator.normal(-1.5, 1.0, len(hour))
    late = hour >= HOURS - 20
    truth = np.where(late, -1.5 + slope * (logits + 1.5) + shift, logits)
    labels = (generator.random(len(hour)) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    return (500_000 + hour) * HOUR_US, labels, logits


def drifted(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> set[str]:
    found = loss_verdicts("click, batch", *rows, END_US, SETTINGS)
    return {one.kind for one in found if one.drifted}


@pytest.mark.parametrize("seed", range(8))
def test_a_model_that_stays_as_right_as_it_was_rings_no_bell(seed: int):
    assert drifted(scored(seed)) == set()


@pytest.mark.parametrize("seed", range(4))
def test_outcomes_turned_round_are_drift_of_concept(seed: int):
    assert "concept" in drifted(scored(seed, slope=-1.0))


@pytest.mark.parametrize("seed", range(4))
def test_fewer_positives_everywhere_are_drift_of_calibration_alone(seed: int):
    assert drifted(scored(seed, shift=-0.8)) == {"calibration"}


def test_a_ring_of_long_ago_is_no_drift_now():
    moments, labels, logits = scored(1, slope=-1.0)
    later_us = END_US + 10 * DAY_US
    found = loss_verdicts("click, batch", moments, labels, logits, later_us, SETTINGS)
    assert not any(one.drifted for one in found)


def test_a_replay_of_the_same_rows_comes_to_the_same_verdict():
    rows = scored(3, slope=-1.0)
    first, second = (list(loss_verdicts("click", *rows, END_US, SETTINGS)) for _ in range(2))
    assert first == second


def test_points_hold_enough_information_and_all_their_rows():
    moments, labels, logits = scored(1)
    thinned = slice(0, None, 40)
    off = deviations(moments[thinned], labels[thinned], logits[thinned])
    assert 0 < len(off.until_us) < HOURS
    assert (np.diff(off.until_us) > 0).all()


def delays(seed: int, median_hours: float) -> DriftFound:
    generator = np.random.default_rng(seed)
    before = generator.exponential(HOUR_US / np.log(2), 6_000)
    now = generator.exponential(median_hours * HOUR_US / np.log(2), 800)
    return delay_verdict("click", before, np.arange(6_000) % 6, now, 0.2)


def test_labels_that_come_later_are_found_and_those_that_do_not_are_not():
    assert all(delays(seed, 2.5).drifted for seed in range(5))
    assert not any(delays(seed, 1.0).drifted for seed in range(20))


def test_rows_of_unknown_categories_ask_for_a_retrain():
    new = {**COLUMN, "unseen": 0.1, "unseen_p_value": 1e-9}
    quiet, planted = (
        {one.kind: one for one in input_verdicts([column], SETTINGS)} for column in (COLUMN, new)
    )
    assert not quiet["new_categories"].drifted
    assert planted["new_categories"].actions == ("retrain",)
    assert planted["new_categories"].evidence["unseen_share"] == {"site": 0.1}


def test_as_many_columns_as_are_asked_for_must_move_before_the_inputs_shifted():
    moved = {**COLUMN, "psi": 0.4, "drifted": True}
    strict = Settings(drift=DriftSettings(minimum_drifted_columns=2))
    assert input_verdicts([moved], SETTINGS)[0].actions == ("retrain",)
    assert not input_verdicts([moved], strict)[0].drifted


def test_calibration_that_is_off_behind_another_cause_gets_the_remedy_of_that_cause():
    def found(kind: str, subject: str, drifted: bool = True) -> DriftFound:
        return DriftFound(kind, subject, drifted, 1.0, 0.5, {})  # pyright: ignore[reportArgumentType]

    alone = found("calibration", "click, batch")
    assert explained([alone])[0].actions == ("recalibrate",)
    together = explained([alone, found("concept", "click, batch")])
    assert together[0].actions == CAUSES["concept"].actions
    other = explained([alone, found("label_delay", "purchase")])
    assert other[0].actions == ("recalibrate",)
    assert explained([found("calibration", "click, batch", False)])[0].actions == ()


def test_loss_after_an_action_is_compared_with_before_and_says_how_sure_it_is():
    moments, labels, logits = scored(1)
    cut = 500_060 * HOUR_US
    rng = np.random.default_rng(1)
    spoiled = np.where(moments < cut, logits + rng.normal(0, 2, len(logits)), logits)
    better = change_of_loss(moments, labels, spoiled, cut)
    assert better.high < 0
    same = change_of_loss(moments, labels, logits, cut)
    assert same.low < 0 < same.high
    assert np.isnan(change_of_loss(moments, labels, logits, END_US).change)


def test_an_action_taken_again_replaces_itself_and_the_sensor_sees_when(tmp_path: Path):
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        assert seen_by_sensor(connection) is None
        connection.execute(
            "INSERT INTO monitoring.drift_verdicts VALUES (7, 'concept', 'click, batch', true, 1, "
            "1, 'c', 'raise_rate,retrain', '{\"rang\": 1}'), (7, 'season', '', true, 1, 1, 'c', "
            "'', '{}'), (6, 'inputs', '', true, 1, 1, 'c', 'recalibrate', '{}')"
        )
        for key in ("first", "second"):
            record_action(connection, "retrain", 5, "c", 5, key, json.dumps({}))
        seen = seen_by_sensor(connection)
        keys = connection.execute("SELECT run_key FROM monitoring.actions").fetchall()
    assert keys == [("second",)]
    assert seen is not None
    assert (seen.verdict_hour_us, seen.last_us) == (7, {"retrain": 5})
    assert list(seen.asked) == ["raise_rate", "retrain"]
    assert seen.asked["retrain"][0]["evidence"] == {"rang": 1}


def test_every_kind_has_a_cause_and_every_action_a_way_to_be_called():
    assert {action for cause in CAUSES.values() for action in cause.actions} == {
        "retrain", "raise_rate", "recalibrate", "refit_delays",
    }  # fmt: skip
