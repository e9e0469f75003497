"""The controller of the learning rates: what it does in calm, after a change, in an explosion."""

import json

import numpy as np
import pytest

from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.learners.online.rate_control import Move, RateControl, surprise_of
from ad_pipeline.settings import Configuration, RateControlSettings
from ad_pipeline_tests.learners.streams import sparse_stream

SETTINGS = RateControlSettings()
ROWS = 400


def labelled(rng: np.random.Generator, base: float, rows: int = ROWS) -> np.ndarray:
    return (rng.random(rows) < base).astype(np.float64)


def followed(control: RateControl, bases: list[float], seed: int) -> list[tuple[int, Move]]:
    """Return the moves when a forecast of one in ten meets labels of these base rates."""
    rng = np.random.default_rng(seed)
    logits = np.full((ROWS, 1), np.log(0.1 / 0.9))
    found = []
    for place, base in enumerate(bases):
        _, moves = control.observe(logits, labelled(rng, base), np.ones(ROWS))
        found += [(place, move) for move in moves]
    return found


def test_surprise_of_a_forecast_that_is_right_has_mean_0_and_variance_1() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.02, 0.6, 500)
    logits = np.log(p / (1 - p))
    seen = [
        surprise_of(logits, (rng.random(500) < p).astype(float), rng.uniform(0.5, 2.0, 500))
        for _ in range(400)
    ]
    values = np.array([one.surprise for one in seen if one is not None])
    assert abs(values.mean()) < 4 / 400**0.5
    assert values.std() == pytest.approx(1.0, abs=0.15)
    assert surprise_of(logits, np.zeros(500), np.zeros(500)) is None


def test_a_calm_stream_raises_nothing_on_twenty_seeds_and_slows_the_clock_after_a_day() -> None:
    for seed in range(20):
        control = RateControl(SETTINGS, 1)
        moves = followed(control, [0.1] * 300, seed)
        assert [move.kind for _, move in moves] == ["slow"]
        assert moves[0][0] == SETTINGS.calm_micro_batches - 1
        assert control.elapsed_us(600) == [300]


@pytest.mark.parametrize("base", [0.15, 0.2])
def test_an_abrupt_change_raises_the_rate_within_hours_and_time_runs_again(base: float) -> None:
    for seed in range(10):
        control = RateControl(SETTINGS, 1)
        moves = followed(control, [0.1] * 200 + [base] * 18, seed)
        raised = [place for place, move in moves if move.kind == "raise"]
        assert raised, f"seed {seed}: nothing was raised"
        assert raised[0] >= 200, f"seed {seed}: {moves}"
        evidence = moves[-1][1].evidence
        assert evidence["loss"] > evidence["expected_loss"]
        assert control.elapsed_us(600) == [600]


def test_an_explosion_freezes_until_it_is_over_and_a_lasting_one_is_taken_for_the_world() -> None:
    rng = np.random.default_rng(5)
    logits = np.full((ROWS, 1), -4.0)
    calm, flipped = 1 / (1 + np.exp(4.0)), 1 - 1 / (1 + np.exp(4.0))

    def kinds(bases: list[float]) -> list[str]:
        control = RateControl(SETTINGS, 1)
        found = []
        for base in bases:
            _, moves = control.observe(logits, labelled(rng, base), np.ones(ROWS))
            found += [move.kind for move in moves]
        return found

    assert kinds([calm] * 50 + [flipped] * 6 + [calm] * 6) == ["freeze", "thaw"]
    lasting = kinds([calm] * 50 + [flipped] * (SETTINGS.longest_freeze_micro_batches + 1))
    assert lasting == ["freeze", "thaw", "raise"]


def test_what_is_remembered_goes_through_json_and_the_same_moves_follow() -> None:
    bases = [0.1] * 120 + [0.2] * 20
    whole = followed(RateControl(SETTINGS, 1), bases, 3)
    rng = np.random.default_rng(3)
    logits = np.full((ROWS, 1), np.log(0.1 / 0.9))
    control, found = RateControl(SETTINGS, 1), []
    for place, base in enumerate(bases):
        control = RateControl.from_json(SETTINGS, json.loads(json.dumps(control.to_json())))
        _, moves = control.observe(logits, labelled(rng, base), np.ones(ROWS))
        found += [(place, move) for move in moves]
    assert found == whole
    assert whole


def test_a_learner_under_control_finds_back_sooner_after_its_labels_turned() -> None:
    """The whole loop with the real learner, and without control as its own negative control."""
    stream = sparse_stream(seed=21, rows=120_000, width=8, bits=10)
    labels = stream.labels.astype(np.float64)
    labels[60_000:] = 1 - labels[60_000:]
    losses = {}
    for controlled in (False, True):
        expert = FTRLExpert(10, (Configuration(l1=0.0),))
        control = RateControl(RateControlSettings(explosion=100.0), 1)
        after = []
        for start in range(0, 120_000, 600):
            part = slice(start, start + 600)
            logits = expert.predict_then_learn(stream.slots[part], labels[part])
            _, moves = control.observe(logits, labels[part], np.ones(600))
            for move in moves:
                if controlled and move.kind == "raise":
                    expert.raise_rate(0, move.doublings)
            if 60_000 <= start < 90_000:
                after.append(np.logaddexp(0, (1 - 2 * labels[part]) * logits[:, 0]).mean())
        losses[controlled] = float(np.mean(after))
    assert losses[True] < 0.99 * losses[False]
