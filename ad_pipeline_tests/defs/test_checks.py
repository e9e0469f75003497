"""Every check, shown a fault that it is there for: it fails, and no other check does.

The faults are planted in a copy of a market that went through its whole life and passed every
check (``test_run.py``). The last tests are about what a failed blocking check keeps from serving.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml

from ad_pipeline.checkpoints import point, read_checkpoint, resolve, write_checkpoint
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.features import rates
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.learners.ftrl.ftrl_expert import LinearWeights
from ad_pipeline.learners.online.online_hours import pointer as online_pointer
from ad_pipeline.serving.bundle import export_bundle, open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.heartbeat import beat
from ad_pipeline.serving.pointers import CURRENT, Pointer, move_pointer, read_pointer
from ad_pipeline.serving.promotion import history
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.graph_shape import assets_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.defs.runs import evaluate_checks, failed, made, run_here

Plant = Callable[[Market], None]


def sql(*statements: str) -> Plant:
    """Return a plant that changes the warehouse behind the pipeline's back."""

    def plant(market: Market) -> None:
        with Warehouse(market.deployment.warehouse).writer() as connection:
            for statement in statements:
                connection.execute(statement)

    return plant


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def last_hour_us(market: Market) -> int:
    return market.end_us - HOUR_US


def corrupt_the_newest_online_model(market: Market) -> None:
    root = market.deployment.checkpoints
    checkpoint = read_checkpoint(root, resolve(root, online_pointer("click", last_hour_us(market))))
    flip_a_byte(checkpoint.path / "z_sqrt_n.npy")


def corrupt_a_deep_model(market: Market) -> None:
    """Let the newest hour have a wide & deep model, of which a byte is another one."""
    root = market.deployment.checkpoints
    kept = write_checkpoint(root, deep_hours.KIND, {"numbers": np.zeros(64)}, {})
    flip_a_byte(kept.path / "numbers.npy")
    point(root, deep_hours.pointer("click", last_hour_us(market)), kept.digest)


def corrupt_the_candidate(market: Market) -> None:
    bundle = open_bundle(market.deployment.bundles, resolve(market.deployment.bundles, CANDIDATE))
    flip_a_byte(max(bundle.path.glob("*.npy"), key=lambda path: path.stat().st_size))


def count_one_impression_too_many(market: Market) -> None:
    """Publish the newest snapshot with one count changed, its bytes intact."""
    root = market.deployment.snapshots
    name = rates.pointer(last_hour_us(market))
    found = rates.read_snapshot(root, resolve(root, name))
    counts = np.array(found.counts)
    counts[len(counts) // 2, 0] += 1
    point(root, name, rates.write_snapshot(root, replace(found, counts=counts)).digest)


def fit_on_test_rows(market: Market) -> None:
    """Let the fit range of an ensemble reach into its test range."""
    root = market.deployment.checkpoints
    name = next(
        path.relative_to(root / "pointers").with_suffix("").as_posix()
        for path in (root / "pointers").rglob("*.json")
        if "ensemble" in path.as_posix() and "purchase" in path.as_posix()
    )
    found = read_checkpoint(root, resolve(root, name))
    described = {
        key: value
        for key, value in found.manifest.items()
        if key not in ("files", "format", "kind")
    }
    ranges = described["ensemble"]["ranges"]
    ranges["fit"][1] = ranges["test"][1]
    point(root, name, write_checkpoint(root, found.manifest["kind"], {}, described).digest)


def serve_the_first_bundle_by_hand(market: Market) -> None:
    """Move the pointer past the promotion, as an impatient hand would."""
    first = history(market.deployment.serving)[0]
    move_pointer(market.deployment.serving, CURRENT, Pointer(first.digest, first.sequence))


def serve_another_bundle_for_ever(market: Market) -> None:
    """Let a scorer report, a day after the last move, the bundle from before it."""
    serving = market.deployment.serving
    first, *_, last = history(serving)
    beat(serving, "bidder", first.digest, "", last.watermark_us + DAY_US)


def take_the_first_bundle_for_the_candidate(market: Market) -> None:
    first = history(market.deployment.serving)[0]
    point(market.deployment.bundles, CANDIDATE, first.digest)


FAULTS: dict[str, tuple[Plant, set[str]]] = {
    "a row is lost": (
        sql(
            "DELETE FROM events.auctions WHERE request_id = "
            "(SELECT min(request_id) FROM events.auctions)"
        ),
        {"every_row_is_accounted_for"},
    ),
    "a tenth of the auctions is refused": (
        sql(
            "CREATE TEMP TABLE refused AS SELECT * FROM events.auctions "
            "WHERE hash(request_id) % 10 = 0",
            "DELETE FROM events.auctions WHERE hash(request_id) % 10 = 0",
            "INSERT INTO events.quarantine BY NAME SELECT 'auctions' AS table_name, "
            "request_id AS key, 'planted' AS reason, request_id AS row_json, 'planted' AS file, "
            "occurred_us, received_us, logged_us, received_us AS read_us, 1 AS copy FROM refused",
            "UPDATE events.accounting SET kept = kept - moved.rows, "
            "quarantined = quarantined + moved.rows FROM (SELECT received_us - received_us % "
            "3600000000 AS hour_us, count(*) AS rows FROM refused GROUP BY ALL) AS moved "
            "WHERE accounting.table_name = 'auctions' AND accounting.hour_us = moved.hour_us",
        ),
        {"few_rows_are_quarantined"},
    ),
    "a matured impression has no label": (
        sql(
            "DELETE FROM examples.labelled_impressions WHERE goal = 'click' AND impression_id = "
            "(SELECT min(impression_id) FROM examples.labelled_impressions WHERE goal = 'click')"
        ),
        {"each_anchor_is_labelled_once"},
    ),
    "an impression is labelled twice": (
        sql(
            "INSERT INTO examples.labelled_impressions BY NAME SELECT * REPLACE "
            "(1 - label AS label) FROM examples.labelled_impressions "
            "WHERE goal = 'click' LIMIT 1"
        ),
        {"each_anchor_is_labelled_once"},
    ),
    "a label rests on a later engagement": (
        sql(
            "UPDATE examples.labelled_impressions SET matured_us = anchor_us "
            "WHERE goal = 'click' AND impression_id = (SELECT min(impression_id) "
            "FROM examples.labelled_impressions WHERE goal = 'click' AND delay_us > 0)"
        ),
        {"no_label_knows_the_future"},
    ),
    "an example is emitted twice": (
        sql(
            "INSERT INTO examples.training_examples BY NAME "
            "SELECT * FROM examples.training_examples LIMIT 1"
        ),
        {"each_example_is_emitted_once"},
    ),
    "a positive is emitted before its click": (
        sql(
            "UPDATE examples.training_examples SET emit_us = anchor_us "
            "WHERE kind = 'delayed_positive' AND impression_id = (SELECT min(impression_id) "
            "FROM examples.training_examples WHERE kind = 'delayed_positive')"
        ),
        {"no_example_knows_the_future"},
    ),
    "a published count is off by one": (
        count_one_impression_too_many,
        {"counts_equal_a_recount_in_sql"},
    ),
    "many values share a slot": (
        sql(
            "INSERT INTO features.inverse_dictionary BY NAME SELECT slot::UINTEGER AS slot, "
            "'device' AS feature, 'planted ' || slot || copy AS value, 0 AS first_hour_us "
            "FROM range(5000) AS slots(slot), range(2) AS copies(copy)"
        ),
        {"few_slots_are_shared"},
    ),
    "a byte of a checkpoint flipped": (
        corrupt_the_newest_online_model,
        {"newest_checkpoint_is_intact"},
    ),
    "an hour's labels cannot be": (
        sql(
            "UPDATE learners.hour_guards SET state = 'tripped' WHERE goal = 'click' AND hour_us = "
            "(SELECT max(hour_us) FROM learners.hour_guards WHERE state = 'passed')"
        ),
        {"labels_are_as_expected"},
    ),
    "an impression was not scored": (
        sql(
            "DELETE FROM learners.online_predictions WHERE goal = 'purchase' AND impression_id = "
            "(SELECT min(impression_id) FROM learners.online_predictions)"
        ),
        {"every_impression_is_scored_once"},
    ),
    "an impression was scored twice": (
        sql(
            "INSERT INTO learners.online_predictions BY NAME "
            "SELECT * FROM learners.online_predictions LIMIT 1"
        ),
        {"every_impression_is_scored_once"},
    ),
    "an ensemble was fitted on its test rows": (fit_on_test_rows, {"ranges_do_not_overlap"}),
    "the ensemble lost to an expert": (
        sql(
            "UPDATE evaluation.report SET value = 0.002 "
            "WHERE metric = 'relative_log_loss_upper' AND goal = 'click'"
        ),
        {"ensemble_is_no_worse_than_the_best_expert"},
    ),
    "the ensemble says twice the rate": (
        sql(
            "UPDATE evaluation.report SET value = 2 * value, low = 2 * low, high = 2 * high "
            "WHERE metric = 'calibration_ratio' AND expert = 'ensemble' AND goal = 'click'"
        ),
        {"ensemble_is_calibrated"},
    ),
    "a byte of the bundle flipped": (
        # It is the candidate and serves: both are said.
        corrupt_the_candidate,
        {"candidate_is_intact", "export_equals_its_models", "what_serves_was_promoted"},
    ),
    "the candidate was not replayed": (
        sql("DELETE FROM monitoring.candidate_replay"),
        {"scores_agree_to_the_bit", "features_agree_with_sql"},
    ),
    "a replayed score differs": (
        sql(
            "UPDATE monitoring.candidate_replay SET state = 'failed', equal = equal - 1, "
            "mismatches = 1 WHERE comparison = 'scores' AND name = 'click'"
        ),
        {"scores_agree_to_the_bit"},
    ),
    "a replayed feature differs": (
        sql(
            "UPDATE monitoring.candidate_replay SET state = 'failed', equal = equal - 1, "
            "mismatches = 1 WHERE comparison = 'features' AND name = 'user_id.click.anchors'"
        ),
        {"features_agree_with_sql"},
    ),
    "publishers moved": (
        sql("UPDATE monitoring.drift SET drifted = true WHERE column_name = 'publisher_id'"),
        {"inputs_have_not_drifted"},
    ),
    "clicks stood still in an hour": (
        sql(
            "UPDATE monitoring.label_quality SET verdict = 'stalled' WHERE goal = 'click' "
            "AND slice_of = 'all' AND hour_us = (SELECT max(hour_us) FROM monitoring.label_quality)"
        ),
        {"labels_are_as_due"},
    ),
    "losses came out beyond what was estimated": (
        sql(
            "INSERT INTO monitoring.performance_realised BY NAME SELECT "
            "hour_us - place * 6 * 3600000000 AS hour_us, "
            "hour_us - (6 * place + 3) * 3600000000 AS estimate_hour_us, 'click' AS goal, "
            "'online' AS expert, false AS kept, 5.0 AS log_loss_deviation, "
            "5.0 AS normalized_entropy_deviation, 5.0 AS observed_over_predicted_deviation "
            "FROM range(0, 8) AS places(place), (SELECT max(hour_us) AS hour_us "
            "FROM monitoring.performance_estimate)"
        ),
        {"estimates_keep_their_interval"},
    ),
    "labels come later than they did": (
        sql(
            "UPDATE monitoring.drift_verdicts SET drifted = true, actions = 'refit_delays', "
            "cause = 'labels come earlier or later' WHERE kind = 'label_delay'"
        ),
        {"nothing_has_drifted"},
    ),
    "a way of learning beats the oracle": (
        sql(
            "INSERT INTO monitoring.delay_benchmark BY NAME SELECT 'click' AS goal, "
            "'linear' AS family, 'es_dfm' AS arm, '' AS slice_of, '' AS part, "
            "'log_loss_against_oracle' AS metric, -0.02 AS value, -0.03 AS low, -0.01 AS high, "
            "900 AS positives"
        ),
        {"no_arm_beats_the_oracle"},
    ),
    "twice as many positives come late as a model says": (
        sql(
            "INSERT INTO monitoring.delay_calibration BY NAME SELECT hour_us, 'click' AS goal, "
            "'lateness' AS model, '' AS part, 20 AS rows, 5.0 AS predicted, "
            "10.0 + hour_us // 3600000000 % 3 AS observed FROM (SELECT DISTINCT hour_us "
            "FROM monitoring.delay_calibration)"
        ),
        {"delay_models_are_calibrated"},
    ),
    "the scorer falls behind under load": (
        sql(
            "INSERT INTO monitoring.serving_stress BY NAME SELECT 'nulls' AS scenario, "
            "'click' AS goal, 80000.0 AS latency_p99_us, 90000.0 AS behind_us"
        ),
        {"serving_keeps_up"},
    ),
    "young ads convert more often than is said": (
        sql(
            "INSERT INTO monitoring.delay_report BY NAME SELECT 'click' AS goal, "
            "'served' AS about, 'online' AS name, 'under 1 h' AS part, "
            "'observed_over_predicted' AS metric, 1.6 AS value, true AS miscalibrated"
        ),
        {"calibrated_at_every_ad_age"},
    ),
    "nobody has served yet": (
        sql("DELETE FROM monitoring.parity WHERE bundle_hash <> ''"),
        {"served_scores_are_given_again", "served_features_were_right"},
    ),
    "a feature was served stale": (
        sql(
            "INSERT INTO monitoring.parity_findings BY NAME SELECT max(hour_us) AS hour_us, "
            "'b' AS bundle_hash, 'features' AS comparison, 'ad_id.click.anchors' AS name, "
            "'stale aggregate' AS cause, 'severe' AS severity, 9 AS rows, 3 AS offending, "
            "1.0 AS explained, 'planted' AS act FROM monitoring.parity"
        ),
        {"served_decisions_have_no_findings"},
    ),
    "somebody moved the pointer": (
        # What serves is then not the candidate either.
        serve_the_first_bundle_by_hand,
        {"what_serves_was_promoted", "candidate_was_promoted"},
    ),
    "a scorer never follows the pointer": (
        serve_another_bundle_for_ever,
        {"served_bundle_is_the_pointed_one"},
    ),
    "a planted fault was let pass": (
        sql(
            "INSERT INTO monitoring.rollback_drill VALUES "
            "('flipped_byte', 3, 'guard', false, 'a scorer that starts let it pass', 0.1)"
        ),
        {"every_fault_is_refused_and_undone"},
    ),
    "the candidate was refused": (
        take_the_first_bundle_for_the_candidate,
        {"candidate_was_promoted"},
    ),
}


CHECKS_OF_WIDE_AND_DEEP = {"newest_deep_checkpoint_is_intact", "deep_extra_is_installed"}
"""The market of these tests has no such expert: they are shown their faults apart."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_check_and_no_other(
    own_market: Market, definitions: dg.Definitions, fault: str
):
    plant, expected = FAULTS[fault]
    plant(own_market)
    assert failed(evaluate_checks(definitions)) == expected


def test_every_check_has_a_planted_fault(definitions: dg.Definitions):
    checks = {key.name for key in definitions.resolve_asset_graph().asset_check_keys}
    planted = set().union(*(expected for _, expected in FAULTS.values()))
    assert planted | CHECKS_OF_WIDE_AND_DEEP == checks


def test_faults_of_wide_and_deep_are_found_where_the_settings_ask_for_it(
    own_market: Market,
    definitions: dg.Definitions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Planted faults: a machine without JAX, and a byte of a model flipped."""
    written = yaml.safe_load(own_market.dataset_file.read_text())
    written["settings"]["deep"] = {"bits": 8}
    asking = tmp_path / "asking.yaml"
    asking.write_text(yaml.safe_dump(written, sort_keys=False))
    own_market.deployment.owner.unlink()  # the home would refuse another file
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(asking))
    assert not failed(evaluate_checks(definitions)) & CHECKS_OF_WIDE_AND_DEEP
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "jax", None)
        found = failed(evaluate_checks(definitions))
        assert found & CHECKS_OF_WIDE_AND_DEEP == {"deep_extra_is_installed"}
    corrupt_a_deep_model(own_market)
    found = failed(evaluate_checks(definitions))
    assert found & CHECKS_OF_WIDE_AND_DEEP == {"newest_deep_checkpoint_is_intact"}


PARITY = ["monitoring/parity", "monitoring/parity_findings", "monitoring/serving_objectives"]


def alter_decision(market: Market, column: str, change: Callable[[dict], None]) -> int:
    """Change the JSON of one logged decision; return its log hour, microseconds."""
    with Warehouse(market.deployment.warehouse).writer() as connection:
        request_id, logged, received_us = connection.execute(
            f"SELECT request_id, {column}, received_us FROM events.decisions ORDER BY request_id"
        ).fetchall()[0]
        content = json.loads(logged)
        change(content)
        connection.execute(
            f"UPDATE events.decisions SET {column} = $content WHERE request_id = $request_id",
            {"content": json.dumps(content), "request_id": request_id},
        )
    return received_us - received_us % HOUR_US


def next_score(scores: dict) -> None:
    scores["click"] = float(np.nextafter(scores["click"], 1.0))


def other_device(features: dict) -> None:
    features["device"] = "fridge"


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("scores", next_score, {"served_scores_are_given_again"}),
        # Another feature would have given another score, too.
        (
            "features",
            other_device,
            {"served_features_were_right", "served_scores_are_given_again"},
        ),
    ],
    ids=["the last bit of a score", "a feature"],
)
def test_a_served_decision_that_is_not_given_again_is_found(
    own_market: Market,
    definitions: dg.Definitions,
    column: str,
    change: Callable[[dict], None],
    expected: set[str],
):
    hour_us = alter_decision(own_market, column, change)
    ran = run_here(definitions, PARITY, hour_us, hour_us + HOUR_US)
    assert ran.success, "parity reports, it blocks no asset"
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    warned = {"served_decisions_have_no_findings"}
    assert failed(evaluations) == expected | warned
    assert all(evaluations[name].severity == dg.AssetCheckSeverity.ERROR for name in expected)
    assert all(evaluations[name].severity == dg.AssetCheckSeverity.WARN for name in warned)
    assert failed(evaluate_checks(definitions)) == expected | warned


def export_with_other_weights(market: Market) -> str:
    """Make a candidate whose weights are not those of the checkpoint that it names."""
    deployment = market.deployment
    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    click = next(models for models in bundle.goals if models.goal == "click")
    linear = click.online.dense()
    weights = np.array(linear.weights)
    touched = int(np.flatnonzero(weights)[0])
    weights[touched] = np.nextafter(weights[touched], np.inf)
    other = LinearWeights(weights, linear.intercept + 1e-9, linear.loss)
    altered = replace(click, online=ExportedWeights.exact(other))
    with Warehouse(deployment.warehouse).reader() as connection:
        requests = connection.sql("SELECT * FROM events.impressions LIMIT 4").to_arrow_table()
    exported = export_bundle(
        deployment.bundles,
        contract=bundle.contract,
        goals=[altered if models.goal == "click" else models for models in bundle.goals],
        dataset=bundle.dataset,
        label_watermark_us=bundle.label_watermark_us,
        canaries=requests.to_pylist(),
    )
    point(deployment.bundles, CANDIDATE, exported.digest)
    return exported.digest


def test_a_bundle_that_does_not_replay_is_not_served_in_the_same_run(
    own_market: Market, definitions: dg.Definitions
):
    """Its bytes are intact; only the fresh process against the batch path can tell."""
    serving = own_market.deployment.serving
    served = read_pointer(serving, CURRENT)
    digest = export_with_other_weights(own_market)
    ran = run_here(definitions, ["monitoring/candidate_replay", "serving/current"])
    assert not ran.success
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    assert failed(evaluations) == {"scores_agree_to_the_bit"}
    assert made(ran) == {"monitoring/candidate_replay"}
    assert read_pointer(serving, CURRENT) == served
    assert served is not None
    assert served.digest != digest


def test_a_bundle_that_does_not_replay_is_not_served_by_a_later_run_either(
    own_market: Market, definitions: dg.Definitions
):
    """Across runs Dagster does not hold an asset back; the promotion asks for itself."""
    serving = own_market.deployment.serving
    served = read_pointer(serving, CURRENT)
    export_with_other_weights(own_market)
    run_here(definitions, ["monitoring/candidate_replay"])
    ran = run_here(definitions, ["serving/current"])
    assert ran.success
    (event,) = ran.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    assert metadata["candidate was promoted"].value is False
    assert read_pointer(serving, CURRENT) == served


def test_a_gap_in_the_accounts_stops_what_comes_after(
    own_market: Market, definitions: dg.Definitions
):
    """An hour is read again, a row of an earlier hour is gone: nothing is computed from either."""
    plant, expected = FAULTS["a row is lost"]
    plant(own_market)
    events = [
        asset.name for asset in assets_of(definitions) if asset.group == "events" and asset.hourly
    ]
    hour_us = last_hour_us(own_market)
    ran = run_here(definitions, [*events, "features/rates"], hour_us, hour_us + HOUR_US)
    assert not ran.success
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    assert failed(evaluations) == expected
    assert made(ran) == set(events)
