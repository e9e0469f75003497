"""Provisional labels: the corrected loss is unbiased, knows no future, and drops what breaks."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.evaluation.progressive import EXPERTS
from ad_pipeline.events.contract import ACCOUNTING
from ad_pipeline.examples.tables import LABEL_STATES, LABELLED_IMPRESSIONS
from ad_pipeline.learners.ensemble.ensemble import Ensemble, fit_ensemble
from ad_pipeline.learners.ensemble.ensembles import fit_ensembles
from ad_pipeline.learners.ensemble.logistic import row_losses
from ad_pipeline.learners.ensemble.provisional import (
    MINIMUM_SHARE,
    ArrivalDelays,
    ProvisionalRows,
    corrected_losses,
)
from ad_pipeline.learners.tables import BATCH_PREDICTIONS, DEEP_PREDICTIONS, ONLINE_PREDICTIONS
from ad_pipeline.settings import EnsembleSettings
from ad_pipeline.warehouse import Table, Warehouse, rows_of, select

SETTINGS = EnsembleSettings()
START = 490_000 * HOUR_US
MATURED_HOURS = 96
HORIZON_US = 26 * HOUR_US  # window and lateness of the goal "purchase" of data/marketplace
OBSERVATION_US = HOUR_US
NOW = START + MATURED_HOURS * HOUR_US + HORIZON_US

Delays = Callable[[np.random.Generator, int], np.ndarray]
"""Draws arrival delays as shares of the horizon, float64 (n,)."""

DELAYS: dict[str, Delays] = {
    "exponential": lambda g, n: np.minimum(g.exponential(0.3, n), 0.999),
    "uniform": lambda g, n: g.random(n),
    "heavy": lambda g, n: np.minimum(0.02 * (g.pareto(0.6, n) + 1), 0.999),
    "late": lambda g, n: g.beta(4, 2, n),
    "at once or a day later": lambda g, n: np.where(g.random(n) < 0.4, 0.01, 0.9),
}


def histogram(
    first_us: np.ndarray, arrival_us: np.ndarray, gone_us: np.ndarray, final: np.ndarray
) -> ArrivalDelays:
    """Count delays of matured anchors as the SQL does; int64 maximum means never."""
    never = np.iinfo(np.int64).max
    moments = np.concatenate((arrival_us, gone_us, first_us[final]))
    observed = np.repeat([1, -1, 0], [len(arrival_us), len(gone_us), final.sum()])
    emitted = np.repeat([0, 0, 1], [len(arrival_us), len(gone_us), final.sum()])
    known = moments < never
    delays, place = np.unique(moments[known], return_inverse=True)
    return ArrivalDelays(
        delays,
        np.bincount(place, weights=observed[known]).astype(np.int64),
        np.bincount(place, weights=emitted[known]).astype(np.int64),
    )


def anchors(
    generator: np.random.Generator, n: int, delays: Delays, retracted: float
) -> tuple[np.ndarray, ...]:
    """Return logits, final labels, and delays of first emission, positive and retraction.

    Some anchors reach the log hours late, and ``retracted`` of the positives are taken back.
    """
    never = np.iinfo(np.int64).max
    truth = generator.normal(-1.5, 1, n)
    shown = generator.random(n) < 1 / (1 + np.exp(-truth))
    known = (generator.exponential(0.05, n) * HORIZON_US).astype(np.int64)
    first = np.maximum(known, OBSERVATION_US)
    drawn = np.maximum((delays(generator, n) * HORIZON_US).astype(np.int64), first)
    arrives = shown & (drawn < HORIZON_US)
    taken = drawn + (generator.exponential(0.2, n) * HORIZON_US).astype(np.int64) + 1
    gone = arrives & (generator.random(n) < retracted) & (taken < HORIZON_US)
    arrival, gone_us = np.where(arrives, drawn, never), np.where(gone, taken, never)
    return truth + 0.4, arrives & ~gone, first, arrival, gone_us


@pytest.mark.parametrize("retracted", [0.0, 0.3])
@pytest.mark.parametrize("name", DELAYS)
def test_the_corrected_loss_is_that_of_the_final_labels_and_the_uncorrected_is_not(
    name: str, retracted: float
) -> None:
    generator = np.random.default_rng(3)
    _, final, first, arrival, gone = anchors(generator, 1_000_000, DELAYS[name], retracted)
    delays = histogram(first, arrival, gone, final)
    logits, final, first, arrival, gone = anchors(generator, 200_000, DELAYS[name], retracted)
    ages = generator.integers(1, HORIZON_US, len(logits))
    there = first < ages
    ages, logits, final = ages[there], logits[there], final[there]
    observed = ((arrival[there] < ages) & (gone[there] >= ages)).astype(np.uint8)
    rows = ProvisionalRows(NOW, {}, observed, NOW - ages, NOW - ages, delays)
    corrected = rows.corrected_labels()
    used = np.isfinite(corrected)
    assert used.mean() > 0.3
    truth = row_losses(logits[used], final[used])

    def z(losses: np.ndarray) -> float:
        difference = losses - truth
        return abs(difference.mean()) / (difference.std() / np.sqrt(len(difference)))

    assert z(corrected_losses(logits[used], corrected[used])) < 4
    assert z(row_losses(logits[used], observed[used])) > 8


def test_a_share_is_of_what_was_emitted_before_that_age_and_unknown_on_few_positives() -> None:
    delays = ArrivalDelays(np.array([10, 20, 30]), np.array([50, 150, -20]), np.array([80, 120, 0]))
    shares = delays.shares(np.array([10, 11, 20, 21, 30, 31, 99]))
    np.testing.assert_array_equal(shares, [np.nan, np.nan, np.nan, 1.0, 1.0, 0.9, 0.9])


def test_rows_below_the_floor_are_left_out_whatever_their_label() -> None:
    delays = ArrivalDelays(np.array([10, 20]), np.array([190, 810]), np.array([1_000, 0]))
    labels, anchor = np.array([0, 1, 0, 1]), np.array([80, 80, 50, 50])
    rows = ProvisionalRows(100, {}, labels, anchor, anchor, delays)
    assert MINIMUM_SHARE > 190 / 1_000
    np.testing.assert_array_equal(rows.corrected_labels(), [np.nan, np.nan, 0.0, 1.0])


def test_rows_of_the_future_are_refused() -> None:
    nothing = np.array([], dtype=np.int64)
    delays = ArrivalDelays(nothing, nothing, nothing)
    for anchor, serving in ((100, 99), (99, 100)):
        with pytest.raises(ValueError, match="not older"):
            ProvisionalRows(100, {}, np.array([0]), np.array([anchor]), np.array([serving]), delays)


# --- the choice --------------------------------------------------------------------------------

Broken = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def market(
    seed: int, per_hour: int, noise: tuple[float, float], broken: Broken | None = None
) -> dict[str, np.ndarray]:
    """Return anchors of all hours: time, final label, delay, logits of two views of a truth.

    ``broken`` spoils the logits of ``batch`` after the last maturity.
    """
    generator = np.random.default_rng(seed)
    n = (NOW - START) // HOUR_US * per_hour
    anchor = np.sort(generator.integers(START, NOW, n))
    middle, truth = np.log(0.02) - 0.5, generator.normal(0, 1, n)
    labels = generator.random(n) < 1 / (1 + np.exp(-(middle + truth)))
    common = generator.normal(size=n)
    online, batch = (
        middle + (truth + sd * np.sqrt(0.5) * (common + generator.normal(size=n))) / (1 + sd * sd)
        for sd in noise
    )
    newest = anchor >= NOW - HORIZON_US
    if broken is not None:
        batch[newest] = broken(generator, batch[newest])
    delay = np.minimum(generator.exponential(8 * HOUR_US, n), HORIZON_US - 1).astype(np.int64)
    return {
        "anchor_us": anchor,
        "label": labels,
        "delay_us": np.maximum(delay, OBSERVATION_US),
        "online": online,
        "batch": batch,
        "newest": newest,
    }


def fitted(world: dict[str, np.ndarray], compared: bool = True) -> Ensemble:
    matured, age = ~world["newest"], NOW - world["anchor_us"]
    never = np.full(len(age), np.iinfo(np.int64).max)
    early = world["anchor_us"] < START + MATURED_HOURS * HOUR_US * 3 // 4
    arrival = np.where(world["label"], world["delay_us"], never)
    first = np.full(len(age), OBSERVATION_US)
    delays = histogram(first[early], arrival[early], never[early], world["label"][early])
    there = world["newest"] & (age > OBSERVATION_US)
    rows = ProvisionalRows(
        NOW,
        {name: world[name][there] for name in ("online", "batch")},
        (arrival < age)[there].astype(np.uint8),
        world["anchor_us"][there],
        world["anchor_us"][there],
        delays,
    )
    return fit_ensemble(
        {name: world[name][matured] for name in ("online", "batch")},
        world["label"][matured].astype(np.uint8),
        (world["anchor_us"] + HORIZON_US)[matured],
        SETTINGS,
        rows if compared else None,
    )


@pytest.mark.parametrize(
    "broken",
    [
        lambda g, logits: g.permutation(logits),
        lambda _, logits: np.full_like(logits, -4.0),
        lambda _, logits: logits + 2.0,
    ],
    ids=["scrambled", "constant", "shifted"],
)
@pytest.mark.parametrize("seed", range(4))
def test_an_expert_that_breaks_after_the_last_maturity_is_dropped(
    broken: Broken, seed: int
) -> None:
    world = market(seed, 600, (0.6, 0.4), broken)
    assert "batch" in fitted(world, compared=False).experts
    ensemble = fitted(world)
    facts = ensemble.facts["provisional"]
    assert ensemble.kind == "online"
    assert ensemble.experts == ("online",)
    assert facts["changed"]
    assert facts["chosen"] == "online"
    assert facts["hours"] >= 20
    assert {trial["name"] for trial in facts["mixtures"]} >= {"online", "batch"}


@pytest.mark.parametrize("noise", [(0.3, 0.7), (1.0, 0.4), (0.5, 0.5)])
def test_noise_alone_seldom_switches_and_then_costs_next_to_nothing(
    noise: tuple[float, float],
) -> None:
    """Measured on another market of the same kind, which neither choice has seen."""
    fresh = market(99, 3_000, noise)
    logits = {name: fresh[name] for name in ("online", "batch")}
    excess = []
    for seed in range(20):
        world = market(seed, 400, noise)
        ensemble = fitted(world)
        if not ensemble.facts["provisional"]["changed"]:
            continue
        before, after = (
            row_losses(each.calibration.apply(each.mix(logits)), fresh["label"]).mean()
            for each in (fitted(world, compared=False), ensemble)
        )
        excess.append(after / before - 1)
    assert len(excess) <= 3
    assert all(each < 0.001 for each in excess)


def test_what_cannot_be_told_is_left_as_it_was_and_says_why() -> None:
    world = market(1, 600, (0.5, 0.5), lambda _, logits: np.full_like(logits, -4.0))
    before = fitted(world, compared=False)
    assert before.facts["provisional"] is None
    few = world | {"label": world["label"] & ~world["newest"]}
    gaps = world | {"batch": np.where(world["newest"], np.nan, world["batch"])}
    for spoilt in (few, gaps):
        ensemble = fitted(spoilt)
        assert ensemble.weights == before.weights
        assert not ensemble.facts["provisional"]["changed"]
        assert "0 observed positives" in ensemble.facts["provisional"]["not_compared"]


def test_the_calibration_is_that_of_the_mixture_that_came_out() -> None:
    world = market(2, 1_500, (0.6, 0.4), lambda g, logits: g.permutation(logits))
    world["online"] = world["online"] + 0.7
    ensemble = fitted(world)
    assert ensemble.kind == "online"
    assert ensemble.calibration.apply(np.zeros(1))[0] < -0.4


# --- the SQL -----------------------------------------------------------------------------------

GOAL = "purchase"
STATES = {
    "negative": "provisional_negative",
    "retraction": "retracted",
    "confirmed_negative": "matured_negative",
}
"""What a label is in when an example of a kind is emitted, where the name is another."""
TABLES = (
    LABEL_STATES,
    LABELLED_IMPRESSIONS,
    ONLINE_PREDICTIONS,
    BATCH_PREDICTIONS,
    DEEP_PREDICTIONS,
)
PARAMETERS = {
    "goal": GOAL,
    "now_us": 1_000,
    "window_us": 80,
    "lateness_us": 20,
    "horizon_us": 150,
    "start_us": 900,
    "end_us": 1_000,
}


def small() -> duckdb.DuckDBPyConnection:
    """Return a warehouse with the tables that the SQL reads, empty."""
    connection = duckdb.connect()
    for table in TABLES:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {table.name.partition('.')[0]}")
        columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")
    return connection


def emit(
    connection: duckdb.DuckDBPyConnection,
    impression: str,
    anchor_us: int,
    *emissions: tuple[str, int, str],
    goal: str = GOAL,
) -> None:
    for kind, emit_us, event in emissions:
        connection.execute(
            "INSERT INTO examples.label_states BY NAME SELECT $goal AS goal, $i AS "
            "impression_id, $state AS state, $event AS source_event_id, $anchor AS anchor_us, "
            "$emit AS state_us, $anchor - 5 AS serving_us",
            {
                "goal": goal, "i": impression, "state": STATES.get(kind, kind), "event": event,
                "anchor": anchor_us, "emit": emit_us,
            },
        )  # fmt: skip


def mature(
    connection: duckdb.DuckDBPyConnection, impression: str, matured_us: int, label: int
) -> None:
    connection.execute(
        "INSERT INTO examples.labelled_impressions BY NAME SELECT $goal AS goal, $i AS "
        "impression_id, $matured AS matured_us, $label AS label",
        {"goal": GOAL, "i": impression, "matured": matured_us, "label": label},
    )


def score(
    connection: duckdb.DuckDBPyConnection, table: Table, impression: str, serving_us: int
) -> None:
    connection.execute(
        f"INSERT INTO {table.name} BY NAME SELECT $goal AS goal, $i AS impression_id, "
        "-2.5 AS logit, $serving AS serving_us",
        {"goal": GOAL, "i": impression, "serving": serving_us},
    )


def labels_at(connection: duckdb.DuckDBPyConnection, now_us: int) -> dict[str, int]:
    rows = rows_of(connection, select("learners.provisional_rows"), PARAMETERS | {"now_us": now_us})
    found = dict(
        zip(*(rows.column(n).to_pylist() for n in ("impression_id", "label")), strict=True)
    )
    assert len(found) == rows.num_rows
    return found


def test_provisional_rows_are_the_anchors_emitted_and_not_final_with_their_labels_by_then() -> None:
    with small() as connection:
        emit(connection, "waits", 950, ("negative", 960, ""))
        emit(connection, "young", 995, ("negative", 1_005, ""))
        emit(connection, "at once", 950, ("immediate_positive", 960, "a"))
        emit(connection, "later", 950, ("negative", 960, ""), ("delayed_positive", 999, "b"))
        emit(connection, "too late", 950, ("negative", 960, ""), ("delayed_positive", 1_000, "c"))
        emit(
            connection, "retracted", 950, ("immediate_positive", 960, "d"), ("retraction", 970, "d")
        )
        emit(
            connection,
            "retracted later", 950, ("immediate_positive", 960, "e"), ("retraction", 1_000, "e"),
        )  # fmt: skip
        emit(connection, "just matured", 899, ("negative", 909, ""))
        emit(connection, "not yet", 900, ("negative", 910, ""))
        emit(connection, "final by another anchor", 950, ("negative", 960, ""))
        mature(connection, "final by another anchor", 990, 1)
        emit(connection, "waits", 950, ("immediate_positive", 960, "f"), goal="click")
        score(connection, ONLINE_PREDICTIONS, "waits", 945)
        score(connection, DEEP_PREDICTIONS, "waits", 945)
        expected = {
            "waits": 0, "at once": 1, "later": 1, "too late": 0, "retracted": 0,
            "retracted later": 1, "not yet": 0,
        }  # fmt: skip
        assert labels_at(connection, 1_000) == expected
        rows = rows_of(connection, select("learners.provisional_rows"), PARAMETERS).to_pylist()
        (waits,) = [row for row in rows if row["impression_id"] == "waits"]
        assert [waits[f"{name}_logit"] for name in EXPERTS] == [-2.5, None, -2.5]
        assert (waits["anchor_us"], waits["serving_us"]) == (950, 945)


def test_no_provisional_row_uses_a_fact_received_at_or_after_the_moment() -> None:
    generator = np.random.default_rng(4)
    with small() as connection:
        for number in range(150):
            anchor = int(generator.integers(800, 1_000))
            kind = ("immediate_positive", "negative")[int(generator.integers(2))]
            event, later = f"e{number}", anchor + 10 + int(generator.integers(1, 80))
            other = "delayed_positive" if kind == "negative" else "retraction"
            given = "" if kind == "negative" else event
            emit(connection, f"i{number}", anchor, (kind, anchor + 10, given))
            if generator.random() < 0.6:
                emit(connection, f"i{number}", anchor, (other, later, event))
            score(connection, BATCH_PREDICTIONS, f"i{number}", anchor - 5)
        moments = range(1_000, 860, -7)
        full = [labels_at(connection, now_us) for now_us in moments]
        assert any(1 in labels.values() and 0 in labels.values() for labels in full)
        for now_us, expected in zip(moments, full, strict=True):
            connection.execute(
                "DELETE FROM examples.label_states WHERE state_us >= $now", {"now": now_us}
            )
            connection.execute(
                "DELETE FROM learners.batch_predictions WHERE serving_us >= $now", {"now": now_us}
            )
            assert labels_at(connection, now_us) == expected


def test_arrival_delays_count_first_positives_net_of_retractions_per_final_positive() -> None:
    with small() as connection:
        emit(connection, "at once", 850, ("immediate_positive", 860, "a"))
        emit(
            connection,
            "later", 850, ("negative", 860, ""), ("delayed_positive", 890, "b"),
            ("delayed_positive", 895, "b2"),
        )  # fmt: skip
        emit(
            connection, "retracted", 850, ("immediate_positive", 860, "c"), ("retraction", 880, "c")
        )
        emit(
            connection,
            "after maturity", 850, ("immediate_positive", 860, "d"), ("retraction", 960, "d"),
        )  # fmt: skip
        emit(connection, "negative", 850, ("negative", 860, ""), ("confirmed_negative", 950, ""))
        emit(connection, "other range", 950, ("immediate_positive", 961, "e"))
        for name, label in (
            ("at once", 1), ("later", 1), ("retracted", 0), ("after maturity", 1), ("negative", 0),
        ):  # fmt: skip
            mature(connection, name, 950, label)
        mature(connection, "other range", 1_050, 1)
        rows = rows_of(connection, select("learners.arrival_delays"), PARAMETERS)
    assert rows.schema.types == [pa.int64()] * 3
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        (10, 3, 3),
        (30, -1, 0),
        (40, 1, 0),
    ]


def written(world: dict[str, np.ndarray], folder: Path, sealed_us: int = NOW) -> Deployment:
    """Write a market into the warehouse of a deployment of ``data/marketplace``."""
    deployment = Deployment(load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml"), folder)
    warehouse = Warehouse(deployment.warehouse)
    warehouse.create([*TABLES, ACCOUNTING])
    anchor, label, delay = (world[name] for name in ("anchor_us", "label", "delay_us"))
    ids = np.char.add("i", np.arange(len(anchor)).astype(str))
    late = label & (delay > OBSERVATION_US)
    first = {
        "goal": GOAL, "impression_id": ids, "anchor_us": anchor, "serving_us": anchor,
        "state": np.where(label & ~late, "immediate_positive", "provisional_negative"),
        "state_us": anchor + OBSERVATION_US, "source_event_id": np.where(label & ~late, ids, ""),
    }  # fmt: skip
    then = {
        "goal": GOAL, "impression_id": ids[late], "anchor_us": anchor[late],
        "serving_us": anchor[late], "state": "delayed_positive",
        "state_us": (anchor + delay)[late], "source_event_id": ids[late],
    }  # fmt: skip
    final = {
        "goal": GOAL, "impression_id": ids, "anchor_us": anchor, "serving_us": anchor,
        "label": label.astype(np.int8), "matured_us": anchor + HORIZON_US,
    }  # fmt: skip
    scores = {
        name: {"goal": GOAL, "impression_id": ids, "serving_us": anchor, "logit": world[name]}
        for name in ("online", "batch")
    }
    with warehouse.writer() as connection:
        for table, columns in (
            (LABEL_STATES, first),
            (LABEL_STATES, then),
            (LABELLED_IMPRESSIONS, final),
            (ONLINE_PREDICTIONS, scores["online"]),
            (BATCH_PREDICTIONS, scores["batch"]),
            (ACCOUNTING, {"table_name": "impressions", "hour_us": sealed_us - HOUR_US}),
        ):
            n = max([1, *(len(values) for values in columns.values() if np.ndim(values))])
            full = {name: np.broadcast_to(values, n) for name, values in columns.items()}
            connection.register("given", pa.table(full))
            # The log goes on after NOW; the pipeline has not joined it yet.
            connection.execute(
                f"INSERT INTO {table.name} BY NAME SELECT * FROM given WHERE {table.clock} < $now",
                {"now": max(sealed_us, NOW) if table is ACCOUNTING else NOW},
            )
            connection.unregister("given")
    return deployment


def test_the_ensemble_of_a_goal_reads_them_and_drops_a_broken_expert(tmp_path: Path) -> None:
    world = market(5, 400, (0.6, 0.4), lambda g, logits: g.permutation(logits))
    deployment = written(world, tmp_path / "home")
    (found,) = fit_ensembles(Warehouse(deployment.warehouse), deployment)
    facts = found.ensemble.facts["provisional"]
    there = world["newest"] & (world["anchor_us"] + OBSERVATION_US < NOW)
    assert facts["now_us"] == NOW
    assert facts["rows"] + facts["rows_left_out"] == there.sum()
    assert found.ensemble.ranges["test"][1] <= NOW
    assert str(found.figures["on provisional labels"]).startswith("online replaces ")
    assert found.figures["provisional rows"] == facts["rows"]
    assert all(isinstance(value, float | int | str) for value in found.figures.values())
    true = world["label"][there & (world["anchor_us"] < NOW - 3 * HOUR_US)].sum()
    assert facts["corrected_positives"] == pytest.approx(true, rel=0.25)


def test_events_sealed_ahead_of_the_label_join_do_not_make_negatives(tmp_path: Path) -> None:
    world = market(6, 200, (0.5, 0.5))
    plain, ahead = (
        written(world, tmp_path / name, sealed_us)
        for name, sealed_us in (("plain", NOW), ("ahead", NOW + 5 * HOUR_US))
    )
    a, b = (
        next(fit_ensembles(Warehouse(each.warehouse), each)).ensemble for each in (plain, ahead)
    )
    assert a == b


def test_labels_of_the_test_range_do_not_reach_the_comparison(tmp_path: Path) -> None:
    """The negative control: labels of the fit range do."""
    world = market(7, 300, (0.5, 0.5))
    deployment = written(world, tmp_path / "home")
    warehouse = Warehouse(deployment.warehouse)
    before = next(fit_ensembles(warehouse, deployment)).ensemble

    def flipped(name: str) -> Ensemble:
        start_us, end_us = before.ranges[name]
        with warehouse.writer() as connection:
            connection.execute(
                "UPDATE examples.labelled_impressions SET label = 1 - label "
                "WHERE matured_us >= $start AND matured_us < $end",
                {"start": start_us, "end": end_us},
            )
        return next(fit_ensembles(warehouse, deployment)).ensemble

    assert flipped("test") == before
    assert flipped("fit").facts["provisional"] != before.facts["provisional"]
