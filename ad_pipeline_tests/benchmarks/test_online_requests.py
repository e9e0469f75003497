"""The benchmark of small requests on few rows: its keys, and that losses are held equal.

How fast anything is, is not tested.
"""

import dataclasses

import numpy as np
import pytest

from ad_pipeline_tests.benchmarks.test_speed import figures_of
from benchmarks.speed import online_requests
from benchmarks.speed.online_learner import RIVER_TOLERANCE

REACH = {
    "learn_one_river_ratio": (10.0, "higher"),
    "microbatch_ratio": (2.0, "lower"),
    "warm_start_s": (1.5, "lower"),
}


@pytest.mark.slow
def test_the_benchmark_prints_each_figure_with_what_it_should_reach():
    figures = figures_of("online_requests", "--rows", "2000", "--batch", "3000")
    for key, (reach, better) in REACH.items():
        assert (figures[key].reach, figures[key].better) == (reach, better)
        assert figures[key].value > 0
        assert figures[key].limit
    assert abs(figures["one_loss_difference"].value) < RIVER_TOLERANCE
    assert figures["learn_one_river_ratio"].value == pytest.approx(
        figures["river_one_row_us"].value / figures["one_row_us"].value
    )
    assert figures["warm_start_river_s"].value > 0.1


def test_both_get_the_same_rows_of_twenty_six_texts_and_up_to_thirteen_numbers():
    parts = list(online_requests.turns(450))
    assert [len(rows) for rows, _ in parts] == [100, 100, 100, 100, 50]
    rows = [row for part, _ in parts for row in part]
    assert {type(label) for _, labels in parts for label in labels} == {bool}
    for row in rows:
        kinds = [type(value) for value in row.values()]
        assert kinds.count(str) == 26
        assert kinds.count(float) <= 13
        assert len(row) == kinds.count(str) + kinds.count(float)
    assert max(len(row) for row in rows) == 39


def test_another_setting_is_told_apart_by_the_loss():
    """Negative control: the tolerance does not let everything pass."""
    other = online_requests.ours().clone({"alpha": 0.5})
    mine, changed = online_requests.row_by_row(2_000, online_requests.ours(), other)
    assert abs(changed.loss - mine.loss) > RIVER_TOLERANCE
    assert mine.loss < float(np.log(2))
    assert len(mine.scores) == 2_000


def test_losses_that_differ_are_not_compared():
    (figure,) = (
        figure
        for figure in online_requests.learn_one_figures(300, 1)
        if figure.key == "one_loss_difference"
    )
    assert online_requests.incomparable([dataclasses.replace(figure, value=1e-3)]) == []
    for wrong in (0.01, -0.01, float("nan")):
        (line,) = online_requests.incomparable([dataclasses.replace(figure, value=wrong)])
        assert line.startswith("NOT COMPARABLE: one_loss_difference")
