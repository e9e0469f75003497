"""What each learner is shown of the emitted rows: its own strategy's, and nothing twice."""

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import Goal
from ad_pipeline.learners.delayed.shown_examples import shown_examples, weights_of_kinds
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.settings import Configuration, Objective, OnlineSettings

GOAL = Goal(name="buy", window_us=DAY_US, lateness_us=HOUR_US, observation_us=HOUR_US)
WEIGHTS = OnlineSettings().kind_weights
HORIZON_US = DAY_US + HOUR_US

#: kind, wait, arrival; one impression whose engagement came after two hours, one without any.
ROWS = (
    ("negative", 0, None),
    ("negative", HOUR_US, None),
    ("matched_negative", 0, None),
    ("delayed_positive", 0, 2 * HOUR_US),
    ("delayed_positive", HOUR_US, 2 * HOUR_US),
    ("immediate_positive", HOUR_US, HOUR_US // 2),
    ("confirmed_negative", HORIZON_US, None),
    ("confirmed_positive", HORIZON_US, 2 * HOUR_US),
    ("confirmed_positive", HORIZON_US, HOUR_US // 2),
    ("retraction", HOUR_US, HOUR_US // 2),
)


def emitted(rows: tuple[tuple[str, int, int | None], ...] = ROWS) -> pa.Table:
    count = len(rows)
    zeros = np.zeros(count, np.int64)
    return pa.table(
        {
            "kind": [kind for kind, _, _ in rows],
            "wait_us": pa.array([wait for _, wait, _ in rows], pa.int64()),
            "arrived_us": pa.array([arrived for _, _, arrived in rows], pa.int64()),
            "anchor_us": zeros,
            "serving_us": zeros,
            "emit_us": np.arange(count) * HOUR_US,
            "example_weight": np.full(count, 2.0),
        }
    )


def places(*objectives: Objective, **weights: float) -> list[list[int]]:
    """Return the places of the rows that each objective learns."""
    shown = shown_examples(emitted(), GOAL, objectives, WEIGHTS | weights)
    return [shown.places[column > 0].tolist() for column in shown.weights.T]


def test_each_objective_is_shown_the_rows_of_its_strategy_and_no_other() -> None:
    found = places(
        Configuration(),
        Configuration(loss="fake_negative_weighted"),
        Configuration(loss="hazard"),
        Configuration(loss="defer"),
        Configuration(strategy="wait_maturity"),
        Configuration(loss="ulc"),
    )
    assert found == [[1, 4, 5], [0, 3], [2, 3], [1, 4, 5, 6, 8], [6, 7, 8], [1, 5]]


def test_retractions_are_shown_where_the_settings_weigh_them() -> None:
    assert places(Configuration(), retraction=0.5) == [[1, 4, 5, 9]]
    assert places(Configuration(strategy="wait_observation"), retraction=0.5) == [[1, 5]]


def test_objectives_of_one_strategy_share_a_column_and_others_have_their_own() -> None:
    alike = shown_examples(emitted(), GOAL, [Configuration(), Configuration(alpha=1)], WEIGHTS)
    assert alike.weights.shape == (3, 1)
    assert alike.weights.tolist() == [[2.0]] * 3
    assert alike.outcomes.shape == (3, 0)
    apart = shown_examples(
        emitted(), GOAL, [Configuration(), Configuration(loss="hazard")], WEIGHTS
    )
    assert apart.places.tolist() == [1, 2, 3, 4, 5]
    assert apart.weights.tolist() == [[2, 0], [0, 2], [0, 2], [2, 0], [2, 0]]


def test_a_row_tells_its_label_its_lateness_and_its_days() -> None:
    shown = shown_examples(emitted(), GOAL, [Configuration(loss="defer")], WEIGHTS)
    assert shown.labels.tolist() == [0, 1, 1, 0, 1]
    told = shown.outcomes
    assert told[:, kernel.LATE].tolist() == [0, 1, 0, 0, 0]
    assert told[:, kernel.CONFIRMED].tolist() == [0, 0, 0, 1, 1]
    assert told[:, kernel.WAITED].tolist() == [1 / 24] * 5
    assert told[:, kernel.DELAY] == pytest.approx([0, 1 / 12, 1 / 48, 0, 1 / 48])
    assert told[:, kernel.LATENESS].tolist() == [0] * 5
    assert told[:, kernel.REAL_NEGATIVE].tolist() == [1] * 5


def test_a_fresh_row_weighs_more_if_the_settings_say_so() -> None:
    shown = shown_examples(emitted(), GOAL, [Configuration()], WEIGHTS, 2.0)
    assert shown.weights[:, 0] == pytest.approx([2 * 2 ** (-hours / 2) for hours in (1, 4, 5)])


def test_an_unknown_kind_and_a_kind_without_weight_are_named() -> None:
    with pytest.raises(ValueError, match="unknown kind 'maybe'"):
        shown_examples(emitted((("maybe", 0, None),)), GOAL, [Configuration()], WEIGHTS)
    with pytest.raises(ValueError, match="no 'negative'"):
        shown_examples(emitted(), GOAL, [Configuration()], {})
    assert weights_of_kinds(np.array([], dtype=np.int8), {}).shape == (0,)


def test_nothing_emitted_is_nothing_shown() -> None:
    nothing = emitted().slice(0, 0)
    shown = shown_examples(nothing, GOAL, [Configuration(loss="es_dfm")], WEIGHTS)
    assert shown.weights.shape == (0, 1)
    assert shown.outcomes.shape == (0, kernel.N_OUTCOMES)
