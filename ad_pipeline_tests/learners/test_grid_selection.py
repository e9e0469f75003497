"""The choice among the configurations of the grid: modest, repeatable, and only of the past."""

from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation.learner_of_log import draw_learner
from ad_pipeline.learners.online.grid_hours import chosen_configurations, select_hours
from ad_pipeline.learners.online.grid_selection import (
    HourLosses,
    choose_configuration,
    configuration_names,
    hour_losses,
    poisson_weights,
)
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.settings import Configuration, OnlineSettings
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market

LEVEL = 0.95


def judged_hours(shift: float, seed: int, hours: int = 24, rows: int = 2_000) -> list[HourLosses]:
    """Return hours of a grid of three: the truth, the truth shifted, and the truth with noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(hours):
        logits = rng.normal(-2.0, 1.0, rows)
        labels = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.int8)
        noisy = logits + rng.normal(0.0, 0.05, rows)
        grid = np.column_stack((logits + shift, logits, noisy))
        draws = rng.integers(0, 2**64, rows, dtype=np.uint64)
        found.append(hour_losses(grid, labels, draws))
    return found


def test_a_configuration_that_is_better_beyond_doubt_replaces_the_one_that_serves() -> None:
    chosen, judged = choose_configuration(judged_hours(0.5, 1), 0, LEVEL)
    assert chosen == 1
    assert judged[1].high < 0.0
    assert judged[0].excess == 0.0
    # Negative control: the other way round nothing happens.
    assert choose_configuration(judged_hours(0.5, 1), 1, LEVEL)[0] == 1


def test_among_equals_a_switch_is_as_rare_as_the_level_says() -> None:
    rng = np.random.default_rng(2)
    switched = 0
    for seed in range(200):
        hours = []
        for _ in range(6):
            logits = rng.normal(-2.0, 1.0, 1_000)
            labels = (rng.random(1_000) < 1 / (1 + np.exp(-logits))).astype(np.int8)
            apart = [logits + rng.normal(0.0, 0.1, 1_000) for _ in range(4)]
            draws = rng.integers(0, 2**64, 1_000, dtype=np.uint64)
            hours.append(hour_losses(np.column_stack(apart), labels, draws))
        switched += choose_configuration(hours, seed % 4, LEVEL)[0] != seed % 4
    assert switched <= 0.05 * 200 + 2 * (0.05 * 0.95 * 200) ** 0.5


def test_the_interval_is_that_of_the_paired_difference_and_covers_its_mean() -> None:
    inside = 0
    for seed in range(60):
        hours = judged_hours(0.1, seed, hours=6)
        _, judged = choose_configuration(hours, 1, LEVEL)
        inside += judged[0].low <= 0.000_54 <= judged[0].high  # of the shift: see below
    # E[loss(s + d) - loss(s)] under s is about d^2 / 2 E[p (1 - p)], here 0.1^2 / 2 * 0.108.
    assert inside >= 0.9 * 60


def test_with_few_positives_or_one_configuration_nothing_changes() -> None:
    few = [
        HourLosses(50, 3, np.array([30.0, 1.0]), np.vstack((np.zeros(100), np.full(100, -29.0))))
    ]
    chosen, judged = choose_configuration(few, 0, LEVEL)
    assert chosen == 0
    assert "100 needed" in judged[1].reason
    alone = [HourLosses(5_000, 500, np.array([900.0]), np.zeros((1, 0)))]
    assert choose_configuration(alone, 0, LEVEL)[1][0].reason == "the only one"


def test_poisson_weights_have_mean_and_variance_1_and_are_a_function_of_the_row() -> None:
    draws = np.random.default_rng(3).integers(0, 2**64, 20_000, dtype=np.uint64)
    weights = poisson_weights(draws)
    assert weights.mean() == pytest.approx(1.0, abs=0.005)
    assert weights.var() == pytest.approx(1.0, abs=0.01)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1.0), abs=0.002)
    columns = np.corrcoef(weights[:, :10].T.astype(float))
    assert np.abs(columns - np.eye(10)).max() < 0.05
    assert (poisson_weights(draws[::-1])[::-1] == weights).all()


def test_names_say_what_differs() -> None:
    grid = OnlineSettings(grid=({"alpha": 0.3}, {"half_life_hours": 12, "l1": 0.0}, {}))
    names = configuration_names(grid.configurations())
    assert names == [
        "the settings",
        "alpha 0.3",
        "l1 0.0, half_life_hours 12.0",
        "the settings again",
    ]
    assert grid.configurations()[0] == Configuration()
    with pytest.raises(ValueError, match="alfa"):
        OnlineSettings(grid=({"alfa": 0.3},))
    with pytest.raises(ValueError, match="at most bits, 20"):
        OnlineSettings(grid=({"bits": 21},))


GRID = {"online": {"grid": [{"alpha": 20.0}, {"alpha": 0.02}], "selection_lookback_hours": 24}}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    made = ready_market(tmp_path_factory.mktemp("grid"), settings=GRID)
    warehouse = Warehouse(made.deployment.warehouse)
    for _ in learn_hours(warehouse, made.deployment, made.start_us, made.end_us):
        pass
    for _ in select_hours(warehouse, made.deployment, made.start_us, made.end_us):
        pass
    return made


def rows(market: Market, query: str) -> list[tuple]:
    with Warehouse(market.deployment.warehouse).reader() as connection:
        return connection.execute(query).fetchall()


def test_what_served_is_the_score_of_the_configuration_chosen_by_the_hour_before(
    market: Market,
) -> None:
    wrong = rows(
        market,
        "SELECT count(*) FROM learners.online_predictions AS served "
        "JOIN learners.grid_predictions AS scored USING (goal, impression_id) "
        "LEFT JOIN learners.grid_selection AS chosen "
        "ON chosen.goal = served.goal AND chosen.chosen "
        f"AND chosen.hour_us = served.serving_us - served.serving_us % {HOUR_US} - {HOUR_US} "
        "WHERE served.logit <> scored.logits[coalesce(chosen.configuration, 0) + 1]",
    )
    assert wrong == [(0,)]
    ((served, scored),) = rows(
        market,
        "SELECT (SELECT count(*) FROM learners.online_predictions), "
        "(SELECT count(*) FROM learners.grid_predictions)",
    )
    assert served == scored > 1_000
    assert rows(
        market, "SELECT min(len(logits)), max(len(logits)) FROM learners.grid_predictions"
    ) == [(3, 3)]
    ((one_chosen,),) = rows(
        market,
        "SELECT bool_and(n = 1) FROM (SELECT count(*) FILTER (chosen) AS n "
        "FROM learners.grid_selection GROUP BY goal, hour_us)",
    )
    assert one_chosen


def test_a_wild_learning_rate_is_never_chosen_and_the_history_says_why(market: Market) -> None:
    assert rows(
        market, "SELECT count(*) FROM learners.grid_selection WHERE chosen AND configuration = 1"
    ) == [(0,)]
    judged = rows(
        market,
        "SELECT reason FROM learners.grid_selection WHERE goal = 'click' AND configuration = 1 "
        "AND excess IS NOT NULL",
    )
    assert judged
    assert {reason for (reason,) in judged} <= {
        "not better beyond doubt",
        "another is better still",
    }


def test_selecting_again_in_two_halves_gives_the_same_rows_and_a_future_label_changes_no_choice(
    market: Market,
) -> None:
    deployment = market.deployment
    warehouse = Warehouse(deployment.warehouse)
    query = "SELECT * FROM learners.grid_selection ORDER BY goal, hour_us, configuration"
    before = rows(market, query)
    half_us = market.start_us + (market.end_us - market.start_us) // HOUR_US // 2 * HOUR_US
    for span in ((market.start_us, half_us), (half_us, market.end_us)):
        for _ in select_hours(warehouse, deployment, *span):
            pass
    assert rows(market, query) == before
    # A planted future: labels that mature later are turned, and no earlier choice moves.
    with warehouse.writer() as connection:
        connection.execute(
            "UPDATE examples.labelled_impressions SET label = CAST(1 - label AS TINYINT) "
            f"WHERE matured_us >= {half_us}"
        )
    for _ in select_hours(warehouse, deployment, market.start_us, market.end_us):
        pass
    after = rows(market, query)
    hour = 1
    assert [row for row in after if row[hour] < half_us] == [
        row for row in before if row[hour] < half_us
    ]
    assert after != before


def test_the_bundle_is_asked_for_the_configuration_of_the_last_hour(market: Market) -> None:
    found = chosen_configurations(
        Warehouse(market.deployment.warehouse), market.deployment, market.end_us
    )
    expected = rows(
        market,
        "SELECT goal, arg_max(configuration, hour_us) FROM learners.grid_selection WHERE chosen "
        "GROUP BY goal",
    )
    assert found == dict(expected)


def test_the_picture_is_drawn_and_is_the_same_again(market: Market) -> None:
    warehouse = Warehouse(market.deployment.warehouse)
    first, again = (draw_learner(warehouse, market.deployment) for _ in range(2))
    assert first.picture == again.picture
    assert first.hours == 2 * (market.end_us - market.start_us) // HOUR_US
    assert (Path(market.deployment.reports) / "online_learner.png").read_bytes() == first.picture
