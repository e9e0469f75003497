"""Losses of labels that come late: their fixed points, and the public variants that miss them.

Every loss has to have its zero of E[slope] where it should; the variants found in public code must
fail that same test. Streams, zeros and variants stand in :mod:`benchmarks.fixed_points`.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.learners.delayed import losses
from ad_pipeline.learners.delayed.losses import COEFFICIENTS, Censored, Event
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.learners.ftrl.ftrl_expert import HEADS, FTRLExpert
from ad_pipeline.monitoring.late_labels.linear import LinearLearners
from ad_pipeline.settings import (
    STRATEGY_OF_LOSS,
    Configuration,
    DelayedLoss,
    Objective,
    OnlineSettings,
    Settings,
    StrategyName,
)
from benchmarks.fixed_points import (
    DEFECTS,
    GRID,
    IN_TIME,
    LATE,
    LATENESS,
    NEGATIVE,
    REAL,
    REPEATED,
    Kind,
    defer_as_coded,
    defuse_as_coded,
    fixed_point,
    largest_logit,
    masses,
    real_negative,
    sigmoid,
)


def weighing(loss: DelayedLoss) -> Callable[[Event], tuple[float, float]]:
    return COEFFICIENTS[loss]


CORRECTED = [loss for loss in COEFFICIENTS if not loss.startswith("fake_negative_calibrated")]


@pytest.mark.parametrize(("p", "c"), GRID)
@pytest.mark.parametrize("loss", CORRECTED)
def test_a_loss_is_right_on_its_own_stream(loss: DelayedLoss, p: float, c: float) -> None:
    shown = STRATEGY_OF_LOSS[loss]
    assert fixed_point(weighing(loss), shown, p, c) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(("p", "c"), GRID)
def test_fake_negative_calibration_inverts_what_log_loss_learns(p: float, c: float) -> None:
    learnt_rates: dict[DelayedLoss, float] = {
        "fake_negative_calibrated": p / (1 + p),
        "fake_negative_calibrated_rn": p / 2,
    }
    for loss, stream_rate in learnt_rates.items():
        found = fixed_point(weighing(loss), STRATEGY_OF_LOSS[loss], p, c)
        assert found == pytest.approx(stream_rate, rel=1e-6)
        odds = kernel.log_odds_of_heads(HEADS[loss][0], math.log(found / (1 - found)), 0.0, 0.0)
        assert sigmoid(odds) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(("p", "c"), GRID)
def test_bi_defuse_adds_what_comes_in_the_window_and_what_comes_late(p: float, c: float) -> None:
    inside = fixed_point(losses.in_window, "windowed", p, c)
    outside = fixed_point(losses.out_of_window, "windowed", p, c)
    assert inside == pytest.approx(p - p * c, rel=1e-6)
    assert outside == pytest.approx(p * c, rel=1e-6)


@pytest.mark.parametrize(("p", "c"), GRID)
def test_log_loss_has_the_bias_of_the_stream_that_it_learns_from(p: float, c: float) -> None:
    d = p * c
    for shown, biased in {
        "immediate": p / (1 + p),
        "immediate_confirmed": p / 2,
        "windowed": p / (1 + d),
        "wait_observation": p - d,
        "wait_maturity": p,
        "matched": p / (1 + p),
    }.items():
        found = fixed_point(losses.log_loss, shown, p, c)  # type: ignore[arg-type]
        assert found == pytest.approx(biased, rel=1e-6), shown


@pytest.mark.parametrize(("p", "c"), GRID)
def test_es_dfm_with_another_real_negative_model_errs_by_the_formula_of_its_authors(
    p: float, c: float
) -> None:
    """The estimate of d cancels; that of r does not (author supplement)."""
    observed = 1 - p + p * c
    for estimate in (0.7, 0.95):
        found = fixed_point(weighing("es_dfm"), "windowed", p, c, negative=estimate)
        assert found == pytest.approx(p / (p + estimate * observed), rel=1e-6)
        other = fixed_point(weighing("es_dfm"), "windowed", p, c, lateness=0.9, negative=estimate)
        assert other == pytest.approx(found, rel=1e-6)


@given(score=st.floats(-40, 40), positive=st.sampled_from([0.0, 1.0]))
def test_fake_negative_weighting_is_positive_unlabelled_damped(
    score: float, positive: float
) -> None:
    event = Event(sigmoid(score), sigmoid(-score), positive, 0.0, 0.3, 0.8)
    pu, fnw = (
        losses.slope_of(*weighing(loss)(event), event.f, event.q)
        for loss in ("positive_unlabelled", "fake_negative_weighted")
    )
    damping = event.q * (1 + event.f)  # 1 - f^2 without cancellation
    assert fnw == pytest.approx(pu * damping, rel=1e-12, abs=1e-300)


# --- what public code does instead ---------------------------------------------------------------


@pytest.mark.parametrize(("coded", "shown"), DEFECTS.values())
def test_a_defective_variant_fails_the_test_of_fixed_points(
    coded: Callable[[Event], tuple[float, float]], shown: StrategyName
) -> None:
    """Negative controls: off by more than 2 % somewhere on the grid."""

    def is_right(p: float, c: float) -> bool:
        try:
            return fixed_point(coded, shown, p, c) == pytest.approx(p, rel=0.02)
        except ValueError:  # there is no zero to find: the loss runs away
            return False

    assert not all(is_right(p, c) for p, c in GRID)


@pytest.mark.parametrize(
    ("coded", "p", "low", "high"),
    [
        (defuse_as_coded, 0.05, 0.094, 0.096),
        (defuse_as_coded, 0.227, 0.36, 0.38),
        (defer_as_coded, 0.05, 0.119, 0.16),
        (defer_as_coded, 0.227, 0.449, 0.53),
    ],
)
def test_the_published_defects_are_as_large_as_was_found(
    coded: Callable[[Event], tuple[float, float]], p: float, low: float, high: float
) -> None:
    shown = "windowed" if coded is defuse_as_coded else "two_copies"
    for c in LATENESS:
        assert low <= fixed_point(coded, shown, p, c) <= high


@pytest.mark.parametrize(("p", "c"), GRID)
def test_weights_of_a_frozen_model_fix_its_error_for_ever(p: float, c: float) -> None:
    """NetCVR's FNW takes its weights from the pre-trained model: odds p / (1 - f0)."""
    frozen = 0.7 * p

    def coded(event: Event) -> tuple[float, float]:
        positive, negative = event.positive, 1 - event.positive
        return positive * (1 + frozen), negative * (1 - frozen**2)

    odds = p / (1 - frozen)
    assert fixed_point(coded, "immediate", p, c) == pytest.approx(odds / (1 + odds), rel=1e-6)
    if p == 0.227:
        assert fixed_point(coded, "immediate", p, c) == pytest.approx(0.2125, abs=5e-4)


def test_uncapped_calibration_costs_46_nats_a_negative_and_ours_7() -> None:
    """es_dfm clips b / (1 - b) at 1e-20 after it has passed 1."""
    score = 0.5  # b > 1/2
    uncapped = math.exp(score)
    assert -math.log(max(1 - uncapped, 1e-20)) > 46
    odds = kernel.log_odds_of_heads(HEADS["fake_negative_calibrated"][0], score, 0.0, 0.0)
    assert math.log1p(math.exp(odds)) < 7


# --- the kernel ----------------------------------------------------------------------------------


def outcome_rows(kinds: list[Kind], c: float, p: float, **days: float) -> np.ndarray:
    rows = np.zeros((len(kinds), kernel.N_OUTCOMES))
    for row, (_, late, confirmed) in zip(rows, kinds, strict=True):
        row[kernel.LATE], row[kernel.CONFIRMED] = late, confirmed
        row[kernel.LATENESS], row[kernel.REAL_NEGATIVE] = c, real_negative(p, c)
        row[kernel.WAITED], row[kernel.DELAY] = days.get("waited", 0.1), days.get("delay", 0.5)
    return rows


def learnt(loss: DelayedLoss, p: float, c: float, cycles: int = 6_000) -> float:
    """Return what the learner says after it has met a stream's masses over and over."""
    stream = masses(STRATEGY_OF_LOSS[loss], p, c)
    kinds = list(stream)
    expert = FTRLExpert(8, (Configuration(loss=loss, alpha=2.0, l1=0, l2=0),), horizon_days=3.0)
    slots = np.zeros((len(kinds) * cycles, 1), np.uint32)
    labels = np.tile([float(kind[0]) for kind in kinds], cycles)
    weights = np.tile([stream[kind] for kind in kinds], cycles)
    expert.learn(slots, labels, weights, np.tile(outcome_rows(kinds, c, p), (cycles, 1)))
    return sigmoid(float(expert.logits(np.zeros((1, 1), np.uint32))[0, 0]))


@pytest.mark.parametrize(("p", "c"), GRID)
@pytest.mark.parametrize("loss", [*COEFFICIENTS, "bi_defuse"])
def test_the_learner_comes_within_two_per_cent_of_the_rate(
    loss: DelayedLoss, p: float, c: float
) -> None:
    assert learnt(loss, p, c) == pytest.approx(p, rel=0.02)


@pytest.mark.parametrize(("p", "rate"), [(0.05, 0.5), (0.227, 2.0), (0.5, 1.0)])
def test_chapelle_s_likelihood_finds_rate_and_hazard_of_an_exponential_delay(
    p: float, rate: float
) -> None:
    """200,000 anchors, window 0.2 days, maturity after 4 days, events in any order.

    The order of a log's first days, with positives on their way and no maturities yet, leads this
    loss astray for a while: it has no maximum before then.
    """
    rng = np.random.default_rng(3)
    anchors, wait, horizon = 200_000, 0.2, 4.0
    ever = rng.random(anchors) < p
    delay = rng.exponential(1 / rate, anchors)
    arrived = ever & (delay <= horizon)
    labels, outcomes = [], []
    for kind, rows in (
        (IN_TIME, arrived & (delay <= wait)),
        (NEGATIVE, ~(arrived & (delay <= wait))),
        (LATE, arrived & (delay > wait)),
        (REAL, ~arrived),
    ):
        told = outcome_rows([kind] * int(rows.sum()), 0.5, p, waited=wait)
        told[:, kernel.DELAY] = delay[rows] if kind[0] else 0.0
        labels.append(np.full(len(told), float(kind[0])))
        outcomes.append(told)
    label, told = np.concatenate(labels), np.concatenate(outcomes)
    order = rng.permutation(len(label))
    configuration = Configuration(loss="delayed_feedback", alpha=0.2, l1=0, l2=0)
    expert = FTRLExpert(8, (configuration,), horizon_days=horizon)
    slots = np.zeros((len(label), 1), np.uint32)
    for _ in range(2):
        expert.learn(slots, label[order], np.ones(len(label)), told[order])
    found = sigmoid(float(expert.logits(slots[:1])[0, 0]))
    assert found == pytest.approx(arrived.mean(), rel=0.03)
    partner = expert.linear_weights().partner
    assert partner is not None
    assert math.exp(partner.weights[0]) == pytest.approx(rate, rel=0.05)


def negative_log_likelihood(
    score: float, log_rate: float, kind: Kind, waited: float, delay: float, horizon: float
) -> float:
    f, rate = sigmoid(score), math.exp(log_rate)

    def unseen(days: float) -> float:
        return -math.log(sigmoid(-score) + f * math.exp(-rate * days))

    if kind == LATE:
        return -math.log(f) - log_rate + rate * delay - unseen(waited)
    if kind == IN_TIME:
        return -math.log(f) - log_rate + rate * delay
    return unseen(horizon) - unseen(waited) if kind == REAL else unseen(waited)


@settings(max_examples=60)
@given(
    score=st.floats(-6, 4),
    log_rate=st.floats(-3, 2),
    kind=st.sampled_from([NEGATIVE, IN_TIME, LATE, REAL]),
    waited=st.floats(0.01, 1),
)
def test_chapelle_s_slopes_are_those_of_the_likelihood(
    score: float, log_rate: float, kind: Kind, waited: float
) -> None:
    delay, horizon, step = 2 * waited, 5.0, 1e-5
    rate = math.exp(log_rate)
    slopes = losses.delayed_feedback_slopes(
        sigmoid(score),
        sigmoid(-score),
        rate,
        Censored(float(kind[0]), float(kind[1]), float(kind[2]), waited, delay, horizon),
        math.exp(-rate * waited),
        math.exp(-rate * horizon),
    )

    def loss(ds: float, dr: float) -> float:
        return negative_log_likelihood(score + ds, log_rate + dr, kind, waited, delay, horizon)

    expected = (
        (loss(step, 0) - loss(-step, 0)) / (2 * step),
        (loss(0, step) - loss(0, -step)) / (2 * step),
    )
    assert slopes == pytest.approx(expected, rel=1e-4, abs=1e-7)


ALL_KINDS = [NEGATIVE, IN_TIME, LATE, REAL, REPEATED]
LATE_HEADS = sorted(
    {head for loss, heads in HEADS.items() if loss in STRATEGY_OF_LOSS for head in heads}
)


@given(
    head=st.sampled_from(LATE_HEADS),
    kind=st.sampled_from(ALL_KINDS),
    score=st.floats(-40, 40),
    partner=st.floats(-40, 40),
    c=st.floats(losses.CERTAIN, 1 - losses.CERTAIN),
)
def test_every_slope_is_finite_and_bounded_at_large_logits(
    head: int, kind: Kind, score: float, partner: float, c: float
) -> None:
    outcome = outcome_rows([kind], c, 0.3)[0]
    slope = kernel.late_slope(
        head, score, partner, float(kind[0]), outcome, 3.0, np.array([-1.0]), 0
    )
    bound = 2 * losses.LARGEST_WEIGHT if head != kernel.DELAYED_FEEDBACK_RATE else 400
    assert math.isfinite(slope)
    assert abs(slope) <= bound
    assert math.isfinite(kernel.log_odds_of_heads(head, score, partner, 3.0))


@given(
    loss=st.sampled_from(sorted(COEFFICIENTS)),
    kind=st.sampled_from(ALL_KINDS),
    score=st.floats(-30, 30),
)
def test_the_kernel_computes_the_formulas(loss: DelayedLoss, kind: Kind, score: float) -> None:
    f, q = sigmoid(score), sigmoid(-score)
    event = Event(f, q, float(kind[0]), float(kind[1]), 0.35, real_negative(0.3, 0.35))
    expected = losses.slope_of(*COEFFICIENTS[loss](event), f, q)
    outcome = outcome_rows([kind], 0.35, 0.3)[0]
    found = kernel.late_slope(
        HEADS[loss][0], score, 0.0, float(kind[0]), outcome, 3.0, np.array([-1.0]), 0
    )
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_bursts_throw_positive_unlabelled_off_and_the_clip_bounds_them() -> None:
    learners = LinearLearners(Configuration(alpha=0.5, l1=0, l2=0), 8, 0.0)
    loss: DelayedLoss = "positive_unlabelled"
    assert largest_logit(learners, Objective(loss=loss), in_bursts=True) > 10
    assert largest_logit(learners, Objective(loss=loss), in_bursts=False) < -2
    assert largest_logit(learners, Objective(loss=loss, non_negative=True), in_bursts=True) < 5
    weighted = Objective(loss="fake_negative_weighted")
    assert largest_logit(learners, weighted, in_bursts=True) < 5


def test_the_clip_changes_nothing_where_positives_are_spread_out() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.05 / 1.05).astype(float)
    experts = [
        FTRLExpert(8, (Configuration(loss="positive_unlabelled", non_negative=clipped),))
        for clipped in (False, True)
    ]
    slots = np.zeros((len(labels), 1), np.uint32)
    plain, clipped = (
        expert.learn(slots, labels, np.ones(len(labels)))[-5_000:] for expert in experts
    )
    assert np.array_equal(plain, clipped)


# --- in a grid, through a checkpoint, into a bundle -----------------------------------------------

MIXED = (
    Configuration(),
    Configuration(loss="delayed_feedback"),
    Configuration(loss="bi_defuse", half_life_hours=3.0),
    Configuration(loss="es_dfm", bits=9),
    Configuration(loss="positive_unlabelled", non_negative=True),
    Configuration(loss="delayed_feedback", bits=9, schedule="adam"),
)


def mixed_stream(rows: int = 3_000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    slots = rng.integers(0, 1 << 11, (rows, 6)).astype(np.uint32)
    kinds = [ALL_KINDS[at] for at in rng.integers(0, len(ALL_KINDS), rows)]
    outcomes = outcome_rows(kinds, 0.3, 0.2)
    outcomes[:, kernel.DELAY] = rng.exponential(0.5, rows)
    labels = np.array([float(kind[0]) for kind in kinds])
    return slots, labels, rng.uniform(0, 2, (rows, len(MIXED))), outcomes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_configurations_of_late_labels_are_to_the_bit_what_they_are_alone(dtype: str) -> None:
    slots, labels, weights, outcomes = mixed_stream()
    together = FTRLExpert(11, MIXED, dtype, 2.0)
    for half in (slice(0, 1_700), slice(1_700, None)):
        together.learn(slots[half], labels[half], weights[half], outcomes[half])
        together.advance(3_600_000_000)
        together = FTRLExpert.restore(*together.state())
    said = together.logits(slots)
    for place, configuration in enumerate(MIXED):
        alone = FTRLExpert(11, (configuration,), dtype, 2.0)
        for half in (slice(0, 1_700), slice(1_700, None)):
            alone.learn(slots[half], labels[half], weights[half, place], outcomes[half])
            alone.advance(3_600_000_000)
        assert np.array_equal(alone.logits(slots)[:, 0], said[:, place]), configuration.loss


@pytest.mark.parametrize("place", range(len(MIXED)))
def test_exported_heads_say_what_the_learner_says(place: int) -> None:
    slots, labels, weights, outcomes = mixed_stream(800)
    expert = FTRLExpert(11, MIXED, "float32", 2.0)
    expert.learn(slots, labels, weights, outcomes)
    linear = expert.linear_weights(place)
    assert np.array_equal(linear.logits(slots), expert.logits(slots)[:, place])
    weights_kept = ExportedWeights.exact(linear)
    read_back = ExportedWeights.from_arrays(weights_kept.to_arrays(), weights_kept.to_json())
    assert np.array_equal(read_back.logits(slots), linear.logits(slots))
    assert (read_back.partner is None) == (len(HEADS[MIXED[place].loss]) == 1)


# --- the switch ----------------------------------------------------------------------------------


def test_every_loss_has_a_strategy_and_heads_and_the_switch_turns_both() -> None:
    assert set(STRATEGY_OF_LOSS) == {*COEFFICIENTS, *losses.TWO_HEADED}
    assert set(STRATEGY_OF_LOSS) < set(HEADS)
    online = OnlineSettings(
        by_goal={"purchase": {"loss": "es_dfm"}}, grid=({"loss": "hazard"}, {"alpha": 0.2})
    )
    chosen = Settings(online=online)
    assert chosen.strategies_of("click") == ("windowed", "matched")
    assert chosen.strategies_of("purchase") == ("windowed", "matched")
    losses_of_purchase = [c.loss for c in chosen.online.of_goal("purchase").configurations()]
    assert losses_of_purchase == ["es_dfm", "hazard", "es_dfm"]


def test_a_loss_on_a_stream_that_it_does_not_correct_is_refused() -> None:
    with pytest.raises(ValueError, match="corrects the stream 'windowed', not 'immediate'"):
        Configuration(loss="es_dfm", strategy="immediate")
    assert Configuration(strategy="wait_maturity").shown == "wait_maturity"
    with pytest.raises(ValueError, match="by_goal"):
        OnlineSettings(by_goal={"click": {"estimator": "ftrl"}})
