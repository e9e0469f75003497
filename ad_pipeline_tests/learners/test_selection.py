"""Choosing on data: what is said of a row out of fold has not seen its label."""

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ensemble.selection import Candidate, choose, out_of_fold


def rate(inputs: np.ndarray, labels: np.ndarray):
    """Fit the mean label of the rows, whatever their inputs."""
    mean = (labels.sum() + 1) / (len(inputs) + 2)
    return lambda rows: np.full(len(rows), np.log(mean / (1 - mean)))


def test_a_row_s_own_fold_of_hours_does_not_move_what_is_said_of_it() -> None:
    hours = np.repeat(np.arange(10), 50) * HOUR_US
    labels = (np.random.default_rng(1).random(500) < 0.3).astype(np.uint8)
    inputs = np.zeros((500, 1))
    before = out_of_fold(Candidate("rate", rate), inputs, labels, hours, 5)
    flipped = labels.copy()
    own = hours < 2 * HOUR_US
    flipped[own] = 1 - flipped[own]
    after = out_of_fold(Candidate("rate", rate), inputs, flipped, hours, 5)
    np.testing.assert_array_equal(after[own], before[own])
    assert (after[~own] != before[~own]).all()


def test_rows_of_one_hour_have_no_other_fold_and_are_fitted_to_themselves() -> None:
    labels = np.array([0, 1, 1], dtype=np.uint8)
    found = out_of_fold(Candidate("rate", rate), np.zeros((3, 1)), labels, np.zeros(3), 5)
    np.testing.assert_allclose(found, np.log(0.6 / 0.4))


def test_the_simpler_candidate_is_kept_unless_it_is_measurably_worse() -> None:
    draw = np.random.default_rng(2)
    hours = np.repeat(np.arange(20), 100) * HOUR_US
    inputs = draw.normal(-1, 1, (2_000, 1))
    labels = (draw.random(2_000) < 1 / (1 + np.exp(-inputs[:, 0]))).astype(np.uint8)
    known = Candidate("known", lambda _inputs, _labels: lambda rows: rows[:, 0])
    nearly = Candidate("nearly", lambda _inputs, _labels: lambda rows: rows[:, 0] + 0.001)
    chosen, trials = choose([nearly, known], inputs, labels, hours, 5)
    assert chosen.name == "nearly"
    assert [trial.name for trial in trials] == ["nearly", "known"]
    assert choose([Candidate("rate", rate), known], inputs, labels, hours, 5)[0].name == "known"
