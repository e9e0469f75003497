"""The study of late labels: its worlds are what they say, and wrong results make claims fail."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.monitoring.late_labels.arms import ORACLE, PRE_TRAINED, VANILLA, VANILLA_IMMEDIATE
from benchmarks import late_cases
from benchmarks.claims import Claim
from benchmarks.evidence.delayed_labels import SECTION, SEEDS, STUDY, claims
from benchmarks.fixed_points import DEFECTS
from benchmarks.late_cases import (
    AGES,
    BURSTS,
    BY_AGE,
    CASES,
    ES_DFM,
    FAMILIES,
    FNC,
    FNW,
    FORMULAS,
    HAZARD,
    KTENA,
    LONG,
    PU,
    SHORT,
    STREAM,
    STREAMING,
    run,
)
from benchmarks.late_worlds import (
    BITS,
    EXACT_MODELS,
    OTHER_DRAW,
    START_US,
    Field,
    World,
    made_log,
    replay_of,
    stream_of,
)
from benchmarks.studies import Result, Values

SMALL = World(
    rate=0.2,
    rows_an_hour=200,
    before_hours=60,
    judged_hours=20,
    ads=10,
    life_hours=20,
    ad_spread=0.3,
    delays=((0.5, 0.5), (0.5, 6.0)),
    window_hours=12,
    observation_minutes=30,
    fields=(Field(5, 0.5, 0.1), Field(20, 0.5)),
    delay_spread=0.3,
)


def test_a_world_has_the_rate_the_lives_and_the_delays_that_it_says():
    log = made_log(SMALL, 1)
    rows = log.rows
    assert len(rows.served_us) == 80 * 200
    assert log.truth.mean() == pytest.approx(SMALL.rate)
    positive = rows.arrived_us >= 0
    assert positive.mean() == pytest.approx(SMALL.rate, abs=0.01)
    delay_hours = (rows.arrived_us - rows.served_us)[positive] / HOUR_US
    assert delay_hours.min() >= 0
    assert delay_hours.max() <= SMALL.window_hours
    late = (delay_hours > 0.5).mean()
    assert late == pytest.approx(log.lateness[positive].mean(), abs=0.03)
    for ad in np.unique(rows.ads):
        shown_us = rows.served_us[rows.ads == ad]
        assert np.ptp(shown_us) <= SMALL.life_hours * HOUR_US
    # The k-th campaign is drawn in proportion to 1 / k.
    shares = np.bincount(rows.groups) / len(rows.groups)
    assert shares[0] / shares[1] == pytest.approx(2.0, rel=0.1)


def test_a_world_is_the_same_for_the_same_seed_and_its_slots_do_not_collide():
    log, again, other = made_log(SMALL, 1), made_log(SMALL, 1), made_log(SMALL, 2)
    assert np.array_equal(log.rows.slots, again.rows.slots)
    assert np.array_equal(log.rows.arrived_us, again.rows.arrived_us)
    assert not np.array_equal(log.truth, other.truth)
    slots = log.rows.slots
    assert (slots < 1 << BITS).all()
    columns = [set(column.tolist()) for column in slots.T]
    assert sum(map(len, columns)) == len(set.union(*columns))
    assert len(columns[1]) == len(np.unique(log.rows.ads))


def test_every_label_of_a_world_is_final_and_true_when_it_ends():
    log = made_log(SMALL, 1)
    stream = stream_of(SMALL, log)
    assert (stream.labels == (log.rows.arrived_us >= 0)).all()
    assert replay_of(SMALL, HOUR_US).split_us == START_US + 60 * HOUR_US


def test_the_worlds_of_the_study_differ_in_what_their_names_say():
    assert SHORT.delays[0][1] / SHORT.life_hours < 0.01
    assert LONG.delays[0][1] / LONG.life_hours == pytest.approx(1 / 3)
    assert STREAM.judged_hours == 30 * 24
    # Delays of matched negatives are known before the first of those that are replayed.
    for world in (SHORT, LONG, STREAM):
        assert world.before_hours > 2 * world.window_hours


@pytest.mark.slow
def test_a_run_measures_every_arm_and_finds_the_planted_leak(monkeypatch: pytest.MonkeyPatch):
    names = (*STREAMING,)
    case = replace(CASES["stream"], world=SMALL, names=names)
    monkeypatch.setitem(late_cases.CASES, "stream", case)
    values = run("stream", 1)
    for arm in (*names, OTHER_DRAW, EXACT_MODELS):
        assert values[f"{arm}/log_loss"] > 0
        assert all(values[f"{arm}/age/{place}"] > 0 for place in range(len(AGES)))
    assert values["planted leak"] == 1.0
    assert values["leaks"] == 0.0
    assert values[f"{VANILLA_IMMEDIATE}/calibration"] < values[f"{FNW}/calibration"]
    assert values[f"{PRE_TRAINED}/examples"] == 0.0


def planted() -> list[Result]:
    """Return results as they would be if everything were as the claims say."""
    results = [Result(FORMULAS, seed, 1.0, _formulas()) for seed in SEEDS]
    far = {"PU": 11.0, "PU, clipped": 2.0, "FNW": 3.0}
    results.append(
        Result(
            BURSTS,
            SEEDS[0],
            1.0,
            {
                f"{family}/{name}/{how}": value if how == "bursts" else -2.9
                for family in FAMILIES
                for name, value in far.items()
                for how in ("bursts", "spread out")
            },
        )
    )
    for world in CASES:
        results += [Result(world, seed, 1.0, _world(world, seed)) for seed in SEEDS]
    return results


def _formulas() -> Values:
    values = {f"error/{loss}": 1e-13 for loss in (PU, FNW, FNC)}
    values |= {f"defect/{name}": 0.3 for name in DEFECTS}
    values |= {"damping/1 - f^2": 1e-15, "damping/1 - f": 1.0}
    return values | {"slope/FNW": 2.0, "slope/FNW, own weights": 2.0, "slope/log loss": 50.0}


ORDER = (ORACLE, HAZARD, ES_DFM, FNW, FNC, PRE_TRAINED, VANILLA)


def _world(world: str, seed: int) -> Values:
    noise = 1e-4 * np.sin(seed)
    rare = world == "rare"
    naive = 0.995 if rare else 0.72
    values: Values = {"naive": naive, "late": 0.8, "leaks": 0.0, "planted leak": 1.0}
    calibration = {VANILLA_IMMEDIATE: naive, VANILLA: 0.78}
    by_age = {FNW: (1.4, 1.2, 1.0, 0.9, 0.85), VANILLA: (0.8,) * len(AGES)}
    for arm in {*KTENA, *BY_AGE, *STREAMING, OTHER_DRAW, EXACT_MODELS}:
        place = ORDER.index(arm) if arm in ORDER else 2
        values[f"{arm}/calibration"] = calibration.get(arm, 1.0) + noise
        values[f"{arm}/log_loss"] = 0.40 + 0.01 * place + noise * (1 + place)
        values[f"{arm}/rce"] = 7.0 if arm == VANILLA_IMMEDIATE else 13.0 + noise
        values[f"{arm}/examples"] = 1000.0
        for measure in ("pr_auc", "roc_auc"):
            values[f"{arm}/{measure}"] = 0.7 - 0.01 * place + noise * (1 + place)
        for at in range(len(AGES)):
            values[f"{arm}/age/{at}"] = by_age.get(arm, (1.0,) * len(AGES))[at] + noise
    # The pre-trained model ranks worst and is better calibrated than vanilla.
    values[f"{PRE_TRAINED}/pr_auc"] = values[f"{PRE_TRAINED}/roc_auc"] = 0.6 + noise
    values[f"{FNW}/log_loss"], values[f"{ES_DFM}/log_loss"] = 0.47 + noise, 0.415 + noise
    for measure in ("log_loss", "pr_auc", "roc_auc"):
        values[f"{OTHER_DRAW}/{measure}"] = values[f"{ORACLE}/{measure}"] + 1e-5 * np.sin(7 * seed)
    return values


def verdicts(results: list[Result]) -> dict[str, Claim]:
    return {claim.key: claim for claim in claims(results)}


def test_every_claim_holds_where_everything_is_as_it_says():
    found = verdicts(planted())
    assert {key for key, claim in found.items() if claim.verdict != "holds"} == set()


def changed(world: str, change: Callable[[Values], Values]) -> list[Result]:
    return [
        replace(each, values=each.values | change(each.values)) if each.arm == world else each
        for each in planted()
    ]


def _drop(name: str, to: float) -> Callable[[Values], Values]:
    return lambda _: {name: to}


@pytest.mark.parametrize(
    ("world", "name", "to", "fails"),
    [
        (FORMULAS, "error/" + PU, 0.05, "fixed_points"),
        (FORMULAS, "error/" + FNC, 0.05, "inverse"),
        (FORMULAS, "damping/1 - f^2", 0.05, "damping"),
        (FORMULAS, "slope/FNW", 9.0, "slope.true_weights"),
        (FORMULAS, "slope/FNW, own weights", 9.0, "slope.own_weights"),
        (FORMULAS, "slope/log loss", 1.0, "slope.own_weights"),
        (BURSTS, "deep/PU, clipped/bursts", 9.0, "bursts.deep"),
        (BURSTS, "deep/PU/spread out", 1.0, "bursts.deep"),
        ("short", VANILLA_IMMEDIATE + "/calibration", 0.8, "short.naive"),
        ("short", FNW + "/calibration", 1.03, f"short.{FNW}"),
        ("short, deep", PU + "/calibration", 0.97, f"short.deep.{PU}"),
        ("short, deep", FNC + "/rce", 6.0, "short.deep.order"),
        ("short", ORACLE + "/rce", 6.0, "short.order"),
        ("rare", FNW + "/calibration", 1.2, "rare"),
        ("long", HAZARD + "/age/0", 1.2, "long.0.40.hazard"),
        ("long", ORACLE + "/age/0", 1.2, "long.0.40.fnw"),
        ("long, 0.05", FNW + "/age/0", 1.0, "long.0.05.fnw.young"),
        ("stream", ES_DFM + "/pr_auc", 0.6, "stream.pr_auc.order"),
        ("stream", ES_DFM + "/log_loss", 0.5, "stream.log_loss.order"),
        ("stream", ES_DFM + "/log_loss", 0.43, "stream.closed.log_loss"),
        ("stream", OTHER_DRAW + "/roc_auc", 0.65, "stream.closed.roc_auc"),
        ("stream", OTHER_DRAW + "/log_loss", 0.41, "stream.log_loss.hazard"),
        ("stream", HAZARD + "/age/3", 0.8, "stream.hazard.ages"),
        ("long", "leaks", 1.0, "leaks"),
        ("long", "planted leak", 0.0, "leaks"),
    ],
)
def test_a_claim_whose_numbers_are_wrong_does_not_hold(
    world: str, name: str, to: float, fails: str
):
    found = verdicts(changed(world, _drop(name, to)))
    assert found[f"delayed_labels.{fails}"].verdict != "holds"


def test_tables_and_pictures_are_drawn_of_results():
    results = planted()
    assert any("hazard" in line for line in SECTION.details(results))
    for draw in SECTION.pictures.values():
        assert draw(results).startswith(b"\x89PNG")
    assert len(results) == len(STUDY.pairs())
