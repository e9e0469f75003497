"""Rows of every rung pass parity and replay and are counted; a wrong default passes neither."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.as_served import (
    matured_impressions,
    newest_requests,
    read_as_served,
)
from ad_pipeline.features.encoding import LookedUp, read_columns
from ad_pipeline.features.rates import pointer
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.monitoring.parity.recheck import recheck_bundle, record_parity
from ad_pipeline.monitoring.replay import batch_path_probabilities, replay_candidate
from ad_pipeline.monitoring.serving_stress import replay_under_load, with_nulls
from ad_pipeline.serving.bundle import Bundle, GoalModels, export_bundle, open_bundle
from ad_pipeline.serving.candidate import build_candidate, ladder_of
from ad_pipeline.serving.ladder import FULL, NO_AGGREGATES, PRIOR, RUNGS, SIMPLE, Ladder
from ad_pipeline.serving.proof import prove_bundle
from ad_pipeline.serving.retention import checkpoints_in_use
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer
from ad_pipeline.simulation.faulty_scorer import default_on_timeout, null_burst
from ad_pipeline.warehouse import Warehouse, rows_of
from ad_pipeline_tests.learners.markets import ready_market
from benchmarks.served_hours import (
    SERVED_DAY,
    SPEC,
    counted_market,
    drawn_bundle,
    hours_of_days,
    serve,
)

LEARNT_HOURS = 14
UNCOUNTED_HOUR, SIMPLE_HOUR, PRIOR_HOUR = 25, 28, 31
RUNG_OF = {UNCOUNTED_HOUR: NO_AGGREGATES, SIMPLE_HOUR: SIMPLE, PRIOR_HOUR: PRIOR}


@dataclass(frozen=True)
class Built:
    """A market whose first hours were learnt, and its candidate."""

    deployment: Deployment
    bundle: Bundle
    rows: pa.Table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return a candidate of a small market, and some impressions of every rung."""
    market = ready_market(tmp_path_factory.mktemp("laddered"))
    deployment = market.deployment
    warehouse = Warehouse(deployment.warehouse)
    end_us = market.start_us + LEARNT_HOURS * HOUR_US
    for _ in learn_hours(warehouse, deployment, market.start_us, end_us):
        pass
    bundle = build_candidate(
        deployment,
        end_us - HOUR_US,
        newest_requests(warehouse)[1],
        read_matured=partial(matured_impressions, warehouse, deployment.dataset.settings, end_us),
    )
    with warehouse.reader() as connection:
        rows = rows_of(
            connection, "SELECT * FROM events.impressions ORDER BY received_us LIMIT 6000", {}
        )
    place = np.arange(len(rows))
    rows = with_nulls(bundle.contract, rows, place % 3 == 0)
    best = {ladder_in(models).columns[0] for models in bundle.goals}
    others = replace(
        bundle.contract,
        categorical=tuple(set(bundle.contract.categorical) - best),
        entities=(),
        crosses=(),
    )
    rows = with_nulls(others, rows, place % 3 == 1)
    return Built(deployment, bundle, rows)


def ladder_in(models: GoalModels) -> Ladder:
    assert models.ladder is not None
    return models.ladder


def test_defaults_are_those_of_the_newest_matured_rows(built: Built) -> None:
    warehouse = Warehouse(built.deployment.warehouse)
    end_us = built.bundle.label_watermark_us
    for models in built.bundle.goals:
        with warehouse.reader() as connection:
            positives, rows = connection.execute(
                "SELECT sum(label), count(*) FROM examples.labelled_impressions "
                "WHERE goal = $goal AND matured_us < $end_us",
                {"goal": models.goal, "end_us": end_us},
            ).fetchall()[0]
        assert 30 < positives < rows
        assert ladder_in(models).prior == positives / rows


def test_rows_of_every_rung_are_scored_alike_by_bundle_and_checkpoints(built: Built) -> None:
    read, counts = read_as_served(built.deployment, built.bundle.contract, built.rows)
    scores = built.bundle.score(read, counts)
    by_checkpoints = batch_path_probabilities(built.deployment, built.bundle, built.rows)
    for goal, rungs in scores.rungs.items():
        # The first hour of a log has no counts yet.
        assert set(rungs.tolist()) == {FULL, NO_AGGREGATES, SIMPLE, PRIOR}
        assert by_checkpoints[goal].tobytes() == scores.probabilities[goal].tobytes()


def _prior(ladder: Ladder) -> Ladder:
    return replace(ladder, prior=float(np.nextafter(ladder.prior, 1)))


def _line(ladder: Ladder) -> Ladder:
    assert ladder.shift is not None
    return replace(ladder, shift=ladder.shift + 1e-12)


def _rate(ladder: Ladder) -> Ladder:
    return replace(ladder, rates=np.nextafter(ladder.rates, 1))


@pytest.mark.parametrize(
    ("wrong", "rung"), [(_prior, PRIOR), (_line, NO_AGGREGATES), (_rate, SIMPLE)]
)
def test_a_wrong_default_is_found_by_replay_in_its_rungs_rows_only_and_by_the_proof(
    built: Built, wrong: Callable[[Ladder], Ladder], rung: int
) -> None:
    goals = tuple(replace(each, ladder=wrong(ladder_in(each))) for each in built.bundle.goals)
    planted = replace(built.bundle, goals=goals)
    read, counts = read_as_served(built.deployment, planted.contract, built.rows)
    scores = planted.score(read, counts)
    by_checkpoints = batch_path_probabilities(built.deployment, planted, built.rows)
    for goal, rungs in scores.rungs.items():
        differs = by_checkpoints[goal] != scores.probabilities[goal]
        assert differs.any()
        assert set(rungs[differs].tolist()) == {rung}
    assert all(proof.faults == () for proof in prove_bundle(built.deployment, built.bundle))
    assert all(len(proof.faults) == 1 for proof in prove_bundle(built.deployment, planted))


def test_the_candidates_replay_passes_and_its_ladder_is_kept(built: Built) -> None:
    replayed = replay_candidate(Warehouse(built.deployment.warehouse), built.deployment)
    assert (replayed.features.state, replayed.scores.state) == ("passed", "passed")
    named = {models.ladder_checkpoint for models in built.bundle.goals}
    assert None not in named
    assert named <= checkpoints_in_use(built.deployment)


def test_thinned_rows_are_some_of_all_rows_and_none_without_the_setting(built: Built) -> None:
    warehouse, dataset = Warehouse(built.deployment.warehouse), built.deployment.dataset
    end_us = built.bundle.label_watermark_us

    def ids(fallbacks: object) -> list[str]:
        settings = dataset.settings.model_copy(update={"fallbacks": fallbacks})
        rows = matured_impressions(warehouse, settings, end_us, "click")
        return rows.column("impression_id").to_pylist()

    every = dataset.settings.fallbacks
    assert every is not None
    whole = ids(every)
    some = ids(every.model_copy(update={"maximum_rows": 500}))
    assert 350 < len(some) < 650 < len(whole)
    chosen = set(some)
    assert [each for each in whole if each in chosen] == some
    assert ids(None) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Return a market whose second day a bundle with a ladder served, three hours of it poorly."""
    home = tmp_path_factory.mktemp("served")
    market = counted_market(home / "market", SPEC)
    plain = drawn_bundle(market, SPEC)
    rows = made_labels(market)
    models = tuple(
        replace(each, ladder=ladder_of(plain.contract, each, rows, 0.6), ladder_checkpoint="none")
        for each in plain.goals
    )
    bundle = export_bundle(
        market.bundles,
        contract=plain.contract,
        goals=models,
        dataset=plain.dataset,
        label_watermark_us=plain.label_watermark_us,
        canaries=rows.slice(0, 2).to_pylist(),
    )
    best = ladder_in(models[0]).columns[0]
    columns = plain.contract.columns
    faults = {
        UNCOUNTED_HOUR: default_on_timeout(1.0),
        SIMPLE_HOUR: null_burst(*(name for name in columns if name != best)),
        PRIOR_HOUR: null_burst(*columns),
    }
    return serve(market, home / "served", SPEC, bundle, faults)


def made_labels(market: Deployment) -> pa.Table:
    """Return the first day's impressions with labels that follow from the campaign."""
    with Warehouse(market.warehouse).reader() as connection:
        return rows_of(
            connection,
            "SELECT *, CAST(right(campaign_id, 1) < '4' AS TINYINT) AS label "
            "FROM events.impressions ORDER BY received_us, impression_id LIMIT 3000",
            {},
        )


def test_served_rows_of_every_rung_are_given_again_and_counted_by_rung(served: Deployment) -> None:
    warehouse = Warehouse(served.warehouse)
    rechecked = record_parity(warehouse, served, *hours_of_days(served, range(SERVED_DAY, 2)))
    assert {hour.scores.state for hour in rechecked} == {"passed"}
    with warehouse.reader() as connection:
        counted = connection.execute(
            "SELECT (hour_us - $start_us) // 3600000000, name, value, kept "
            "FROM monitoring.serving_objectives WHERE measure = 'fallback_share' "
            "AND name LIKE 'rung %' ORDER BY ALL",
            {"start_us": served.dataset.start_us},
        ).fetchall()
    found = {(hour, name.split(" of ")[0]) for hour, name, _, _ in counted}
    assert found == {(hour, f"rung {RUNGS[rung]}") for hour, rung in RUNG_OF.items()}
    assert len(counted) == 2 * len(found), "one for each goal"
    # A request at the end of an hour is decided in it and logged in the next.
    assert all(value > 0.9 and not kept for _, _, value, kept in counted)


@pytest.mark.parametrize("limit", [2, 48])
def test_counts_that_were_too_old_to_be_taken_pass_parity_and_others_would_not(
    served: Deployment, limit: int
) -> None:
    hour_us = hours_of_days(served, range(SERVED_DAY, 2))[0] + 12 * HOUR_US
    with Warehouse(served.warehouse).reader() as connection:
        digest = connection.execute(
            "SELECT any_value(bundle_hash) FROM events.decisions"
        ).fetchall()
        rows = rows_of(
            connection,
            "SELECT * FROM events.impressions WHERE occurred_us >= $hour_us "
            "AND occurred_us < $hour_us + 3600000000",
            {"hour_us": hour_us},
        )
    bundle = open_bundle(served.bundles, digest[0][0])
    limited = replace(bundle, manifest=bundle.manifest | {"stale_hours": limit})
    old = PublishedSnapshot.read(
        served.snapshots, resolve(served.snapshots, pointer(hour_us - 8 * HOUR_US))
    )
    asked = rows.select(["request_id", "impression_id", "occurred_us", *bundle.contract.columns])
    logged = Scorer(limited, old).score_many(asked).to_log()
    decisions = rows.drop_columns(["impression_id", "request_id", "occurred_us"])
    for name in logged.column_names:
        decisions = decisions.append_column(name, logged.column(name))

    def features(rechecked_with: Bundle) -> str:
        found = recheck_bundle(served, rechecked_with, hour_us, decisions)
        assert found.scores.state == "passed"
        return found.features.state

    assert features(limited) == "passed"
    assert features(bundle) == ("failed" if limit < 8 else "passed")


def test_under_load_the_share_of_each_rung_is_reported(built: Built) -> None:
    contract = built.bundle.contract
    requests = built.rows.slice(0, 60).sort_by("occurred_us")
    requests = requests.select(["occurred_us", *contract.columns])
    answered = replay_under_load(Scorer(built.bundle), requests, 1e9)
    read = read_columns(contract, {name: requests.column(name) for name in contract.columns})
    expected = built.bundle.score(read, LookedUp.nothing(contract, len(read)))
    for goal, rungs in expected.rungs.items():
        for rung in (NO_AGGREGATES, SIMPLE, PRIOR):
            said = [
                times
                for reason, times in answered.fallbacks.items()
                if reason.startswith(f"rung {RUNGS[rung]} of {goal}:")
            ]
            assert said == [int((rungs == rung).sum())]
            assert said[0] > 0
