"""Scores do not depend on company, say what they used, and need nothing of the pipeline."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.features.encoding import (
    category_hashes,
    dense,
    entity_hashes,
    read_columns,
    request_columns,
    slots,
)
from ad_pipeline.features.rates import WrongSnapshot, counts_of, write_snapshot
from ad_pipeline.hashing import hash_strings, seed_of
from ad_pipeline.learners.ensemble.calibration import Calibration
from ad_pipeline.learners.ensemble.calibration_layer import Correction
from ad_pipeline.learners.ftrl.ftrl_kernel import linear_logits
from ad_pipeline.serving import pointers, promotion
from ad_pipeline.serving.bundle import CorruptBundle
from ad_pipeline.serving.decisions import feature_names, logged_inputs
from ad_pipeline.serving.pointers import NothingServed
from ad_pipeline.serving.replay import FOREIGN
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer
from ad_pipeline_tests.serving import worlds

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
known_texts = st.sampled_from(['p"0', 'p"1', "künstler-3", "", "100%", "\\", "\x00", "\U0001f600"])
texts = st.none() | known_texts | any_text
numbers = st.none() | st.floats() | st.sampled_from([0.0, -0.0, 1e-36, 1e300])
requests_given = st.fixed_dictionaries(
    {},
    optional={
        "publisher": texts,
        "creative": texts,
        "floor_price": numbers,
        "age": numbers,
        "request_id": any_text,
    },
)


def _bits(decision: Any) -> Any:
    """Return a decision's content with every float as its bits."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return np.float64(value).tobytes()
        if isinstance(value, dict):
            return {name: plain(member) for name, member in value.items()}
        return value

    return {name: plain(value) for name, value in vars(decision).items() if name != "request_id"}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    requests=st.lists(requests_given, min_size=1, max_size=12),
    moment=st.none() | st.integers(worlds.SERVED_US - HOUR_US, worlds.SERVED_US + 3 * HOUR_US),
    has_snapshot=st.booleans(),
)
def test_one_request_scores_as_it_does_among_many_to_the_bit(
    world: worlds.World, requests: list[dict[str, Any]], moment: int | None, has_snapshot: bool
) -> None:
    scorer = Scorer(world.bundle, world.due if has_snapshot else None)
    if moment is not None:
        requests = [
            request | {"occurred_us": moment + place} for place, request in enumerate(requests)
        ]
    many = scorer.score_requests(requests)
    written = many.to_table().to_pylist()
    for row, request in enumerate(requests):
        one = scorer.score(request)
        assert _bits(one) == _bits(many.one(row))
        alone = scorer.score_requests([request]).to_table().to_pylist()[0]
        for name in ("features", "ages_us", "scores", "fallbacks"):
            assert alone[name] == written[row][name]


def test_columns_of_any_layout_score_as_mappings_do(world: worlds.World) -> None:
    scorer = Scorer(world.bundle, world.due)
    expected = scorer.score_requests(world.requests).to_table()
    table = worlds.request_table(world.requests)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    coded = table.set_column(
        table.schema.get_field_index("publisher"),
        "publisher",
        table["publisher"].dictionary_encode(),
    )
    large = table.cast(
        pa.schema(
            [
                field.with_type(pa.large_string()) if field.type == pa.string() else field
                for field in table.schema
            ]
        )
    )
    mapping = dict(zip(table.column_names, table.columns, strict=True))
    for given_ in (table, chunked, coded, large, mapping):
        found = scorer.score_many(given_).to_table()
        assert found.cast(expected.schema).equals(expected)
    assert (
        scorer.score_many(table.slice(5, 3))
        .to_table()
        .cast(expected.schema)
        .equals(expected.slice(5, 3))
    )


def test_a_score_equals_the_batch_path_run_from_the_models_themselves(world: worlds.World) -> None:
    """Candidate replay's comparison in small: same encoders, models not read from the bundle."""
    read = read_columns(worlds.CONTRACT, request_columns(worlds.CONTRACT, world.requests))
    counts = counts_of(worlds.CONTRACT, world.due.counts, entity_hashes(worlds.CONTRACT, read))
    decisions = Scorer(world.bundle, world.due).score_requests(world.requests)
    for models in world.models:
        online = np.empty(len(read))
        linear_logits(models.online.dense().weights, slots(worlds.CONTRACT, read, counts), online)
        assert models.batch is not None
        assert models.ensemble is not None
        batch = models.batch.predict_logits(
            dense(worlds.CONTRACT, read, counts), category_hashes(worlds.CONTRACT, read), online
        )
        found = decisions.logits[models.goal]
        assert np.array_equal(found["online"], online)
        assert np.array_equal(found["batch"], batch)
        assert np.array_equal(
            decisions.probabilities[models.goal],
            models.ensemble.apply({"online": online, "batch": batch}),
        )
        assert np.ptp(decisions.probabilities[models.goal]) > 0.01


def test_a_slice_has_its_own_calibration_and_one_request_scores_as_among_many(
    world: worlds.World,
) -> None:
    """Nulls are a slice too; a publisher without a correction has the overall map."""
    seed = seed_of("publisher")
    shifts = {'p"1': 0.7, None: -0.4}
    corrected = {text: int(hash_strings(pa.array([text], pa.string()), seed)[0]) for text in shifts}
    corrections = tuple(
        Correction(corrected[text], str(text), Calibration("shift", shift=shifts[text]), 50, 40)
        for text in sorted(corrected, key=lambda text: corrected[text])
    )
    sliced = []
    for models in world.models:
        assert models.ensemble is not None
        layer = replace(models.ensemble.calibration, column="publisher", corrections=corrections)
        sliced.append(replace(models, ensemble=replace(models.ensemble, calibration=layer)))
    bundle = worlds.write(world.bundles, tuple(sliced), world.requests, world.due.counts)
    scorer = Scorer(bundle, world.due)
    many = scorer.score_requests(world.requests)
    before = Scorer(world.bundle, world.due).score_requests(world.requests)
    publishers = [request["publisher"] for request in world.requests]
    assert {*shifts} < {*publishers}
    for models in sliced:
        was, now = (metrics.logits_of(each.probabilities[models.goal]) for each in (before, many))
        expected = [shifts.get(publisher, 0.0) for publisher in publishers]
        assert now - was == pytest.approx(np.array(expected), abs=1e-9)
        described = next(g for g in bundle.manifest["goals"] if g["goal"] == models.goal)
        version = described["ensemble"]["calibration"]["version"]
        assert version == models.ensemble.calibration.version
        assert version not in json.dumps(world.bundle.manifest)
    for row in range(0, len(world.requests), 17):
        assert scorer.score(world.requests[row]) == many.one(row)


def test_decisions_written_as_json_read_back_to_the_same_bits_and_the_same_scores(
    world: worlds.World,
) -> None:
    """Production parity's comparison in small: from the log alone, the scores again."""
    scorer = Scorer(world.bundle, world.due)
    decisions = scorer.score_requests(world.requests)
    rows = decisions.to_table().to_pylist()
    features = [json.loads(row["features"]) for row in rows]
    assert all(tuple(found) == feature_names(worlds.CONTRACT) for found in features)
    columns, counts = logged_inputs(worlds.CONTRACT, features)
    assert np.array_equal(counts.counts, decisions.counts.counts)
    assert np.array_equal(counts.totals, decisions.counts.totals)
    again = world.bundle.score(read_columns(worlds.CONTRACT, columns), counts)
    for goal, probabilities in again.probabilities.items():
        logged = np.array([json.loads(row["scores"])[goal] for row in rows])
        assert np.array_equal(logged, probabilities)
    for row, found in enumerate(features):
        assert found == decisions.one(row).features


def test_infinities_and_percent_signs_survive_the_log(world: worlds.World) -> None:
    request = {
        "publisher": '100% "p"',
        "creative": None,
        "floor_price": math.inf,
        "age": -math.inf,
    }
    decisions = Scorer(world.bundle, world.due).score_requests([request])
    features = json.loads(decisions.to_table()["features"][0].as_py())
    assert features["publisher"] == '100% "p"'
    columns, _ = logged_inputs(worlds.CONTRACT, [features])
    assert columns["floor_price"].to_pylist() == [math.inf]
    assert columns["age"].to_pylist() == [-math.inf]


def test_ages_count_from_the_end_of_the_snapshot(world: worlds.World) -> None:
    decision = Scorer(world.bundle, world.due).score(world.requests[0])
    end_us = worlds.START_US + 2 * HOUR_US
    assert decision.ages_us == {"rates": world.requests[0]["occurred_us"] - end_us}
    assert decision.fallbacks == ()


def test_every_missing_thing_is_said_and_has_its_effect(world: worlds.World) -> None:
    request = world.requests[0]
    whole = Scorer(world.bundle, world.due).score(request)
    without = {name: value for name, value in request.items() if name != "creative"}
    nulled = request | {"creative": None}
    missing = Scorer(world.bundle, world.due).score(without)
    assert missing.fallbacks == ("missing column creative: null",)
    assert missing.features["creative"] is None
    assert missing.probabilities == Scorer(world.bundle, world.due).score(nulled).probabilities
    assert missing.probabilities != whole.probabilities
    blind = Scorer(world.bundle).score(request)
    assert blind.fallbacks == ("no snapshot: every count is 0",)
    assert blind.snapshot_hash == ""
    assert blind.ages_us == {}
    assert blind.features["publisher.click.anchors"] == 0
    young = Scorer(world.young, world.due).score(request)
    assert young.logits["click"].keys() == {"online"}
    assert young.fallbacks == (
        "no ensemble of click: the online expert, not calibrated",
        "no ensemble of purchase: the online expert, not calibrated",
    )
    logit = whole.logits["click"]["online"]
    assert young.probabilities["click"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-15)
    timeless = {name: value for name, value in request.items() if name != "occurred_us"}
    assert Scorer(world.bundle, world.due).score(timeless).fallbacks == (
        "no request time: the age of the counts is unknown",
    )


def test_an_ensemble_that_reads_a_missing_batch_model_falls_to_the_online_expert(
    world: worlds.World, tmp_path: Path
) -> None:
    models = tuple(
        replace(
            models,
            batch=None,
            batch_checkpoint=None,
            ensemble=replace(models.ensemble, experts=("online", "batch"), weights=(0.5, 0.5)),
        )
        for models in world.models
        if models.ensemble is not None
    )
    bundle = worlds.write(tmp_path, models, world.requests, world.due.counts)
    decision = Scorer(bundle, world.due).score(world.requests[0])
    young = Scorer(world.young, world.due).score(world.requests[0])
    assert decision.probabilities == young.probabilities
    assert decision.fallbacks == (
        "no batch model of click: the online expert, not calibrated",
        "no batch model of purchase: the online expert, not calibrated",
    )


def test_a_snapshot_that_training_would_not_have_used_is_said(world: worlds.World) -> None:
    moments = [worlds.SERVED_US - 1, worlds.SERVED_US, worlds.SERVED_US + HOUR_US]
    requests = [world.requests[0] | {"occurred_us": moment} for moment in moments]
    found = Scorer(world.bundle, world.due).score_requests(requests)
    assert [found.one(row).fallbacks for row in range(3)] == [
        ("early snapshot: it was not due yet",),
        (),
        ("stale snapshot: a later one was due",),
    ]
    rows = found.to_table()["fallbacks"].to_pylist()
    assert [json.loads(row) for row in rows] == [list(found.one(row).fallbacks) for row in range(3)]


def test_a_snapshot_of_another_contract_is_refused(world: worlds.World) -> None:
    other = replace(world.due.counts, counts_digest="0" * 64)
    with pytest.raises(WrongSnapshot):
        Scorer(world.bundle, PublishedSnapshot("0" * 64, other))


def test_values_of_the_wrong_kind_are_refused_not_guessed(world: worlds.World) -> None:
    scorer = Scorer(world.bundle, world.due)
    with pytest.raises(TypeError, match="publisher is a text column"):
        scorer.score(world.requests[0] | {"publisher": 3})
    with pytest.raises(TypeError, match="age is a numeric column"):
        scorer.score(world.requests[0] | {"age": "12"})
    table = worlds.request_table(world.requests)
    place = table.schema.get_field_index("publisher")
    with pytest.raises(TypeError):
        scorer.score_many(table.set_column(place, "publisher", pa.array([0.5] * len(table))))
    with pytest.raises(ValueError, match="differ in length"):
        scorer.score_many({"publisher": pa.array(["a"]), "age": pa.array([1.0, 2.0])})
    holes = pa.array([None, *table["occurred_us"].to_pylist()[1:]], pa.int64())
    place = table.schema.get_field_index("occurred_us")
    with pytest.raises(ValueError, match="occurred_us"):
        scorer.score_many(table.set_column(place, "occurred_us", holes))


def test_no_requests_give_no_decisions(world: worlds.World) -> None:
    scorer = Scorer(world.bundle, world.due)
    table = scorer.score_many(worlds.request_table(world.requests).slice(0, 0)).to_table()
    assert len(table) == 0
    assert len(scorer.score_requests([])) == 0


def test_the_scorer_follows_the_pointers_and_keeps_what_it_has_if_they_lead_nowhere(
    world: worlds.World, own_bundles: Path, tmp_path: Path
) -> None:
    serving = tmp_path / "serving"
    with pytest.raises(NothingServed):
        Scorer.current(serving)
    promotion.promote(serving, own_bundles, world.young.digest, {}, watermark_us=1)
    scorer = Scorer.current(serving, bundles=own_bundles, snapshots=world.snapshots)
    assert (scorer.bundle.digest, scorer.snapshot) == (world.young.digest, None)
    assert not scorer.refresh()
    assert pointers.publish_snapshot(serving, world.due.digest, world.due.end_us)
    assert scorer.refresh()
    assert scorer.snapshot is not None
    assert scorer.snapshot.digest == world.due.digest
    opened = scorer.snapshot
    promotion.promote(serving, own_bundles, world.bundle.digest, {}, watermark_us=2)
    assert scorer.refresh()
    assert scorer.bundle.digest == world.bundle.digest
    assert scorer.snapshot is opened
    path = own_bundles / "objects" / world.young.digest / "click.online.values.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    pointers.move_pointer(serving, "current", pointers.Pointer(world.young.digest, 9))
    with pytest.raises(CorruptBundle):
        scorer.refresh()
    assert scorer.bundle.digest == world.bundle.digest
    assert scorer.score(world.requests[0]) == Scorer(world.bundle, world.due).score(
        world.requests[0]
    )


def test_a_backfill_does_not_move_the_served_snapshot_back(
    world: worlds.World, tmp_path: Path
) -> None:
    assert pointers.publish_snapshot(tmp_path, world.due.digest, world.due.end_us)
    assert not pointers.publish_snapshot(tmp_path, world.early.digest, world.early.end_us)
    found = pointers.read_pointer(tmp_path, "snapshot")
    assert found == pointers.Pointer(world.due.digest, world.due.end_us)
    assert pointers.publish_snapshot(tmp_path, "0" * 64, world.due.end_us), "same hour, recounted"


FRESH = """
import json, sys
from pathlib import Path
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline.serving.replay import foreign_modules
{planted}
serving, request = Path(sys.argv[1]), json.loads(sys.argv[2])
scorer = Scorer.current(serving, bundles=Path(sys.argv[3]), snapshots=Path(sys.argv[4]))
decision = scorer.score(request)
table = scorer.score_requests([request] * 3).to_table()
json.dump({{
    "foreign": foreign_modules(),
    "probabilities": decision.probabilities,
    "scores": table.column("scores").to_pylist(),
}}, sys.stdout)
"""


def _fresh(world: worlds.World, serving: Path, planted: str) -> dict[str, Any]:
    """Score in a process that has imported nothing else and return what it found."""
    promotion.promote(serving, world.bundles, world.bundle.digest, {}, watermark_us=1)
    pointers.publish_snapshot(serving, world.due.digest, world.due.end_us)
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(planted=planted), str(serving),
         json.dumps(world.requests[0]), str(world.bundles), str(world.snapshots)],
        capture_output=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_fresh_process_scores_without_anything_of_the_pipeline(
    world: worlds.World, tmp_path: Path
) -> None:
    found = _fresh(world, tmp_path, planted="")
    assert found["foreign"] == []
    expected = Scorer(world.bundle, world.due).score(world.requests[0])
    assert found["probabilities"] == expected.probabilities
    assert [json.loads(text) for text in found["scores"]] == [expected.probabilities] * 3


@pytest.mark.parametrize("module", ["duckdb", "pandas"])
def test_a_planted_import_is_caught_in_the_fresh_process(
    world: worlds.World, tmp_path: Path, module: str
) -> None:
    assert _fresh(world, tmp_path, planted=f"import {module}")["foreign"] == [module]


def test_the_list_of_foreign_modules_is_as_promised() -> None:
    assert {"dagster", "duckdb", "pandas", "sklearn", "river"} <= set(FOREIGN)


def _replayed(world: worlds.World, requests: pa.Table, folder: Path) -> pa.Table:
    pq.write_table(requests, folder / "requests.parquet")
    subprocess.run(
        [sys.executable, "-m", "ad_pipeline.serving.replay",
         "--bundle", str(world.bundle.path), "--requests", str(folder / "requests.parquet"),
         "--snapshots", str(world.snapshots), "--out", str(folder / "scores.parquet")],
        check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return pq.read_table(folder / "scores.parquet")


def test_replay_scores_each_row_with_the_snapshot_it_names_in_the_order_given(
    world: worlds.World, tmp_path: Path
) -> None:
    table = worlds.request_table(world.requests)
    digests = [(world.due.digest, world.early.digest, None)[row % 3] for row in range(len(table))]
    table = table.append_column("snapshot_hash", pa.array(digests, pa.string()))
    found = _replayed(world, table, tmp_path)
    assert found["request_id"].to_pylist() == table["request_id"].to_pylist()
    assert found["snapshot_hash"].to_pylist() == [digest or "" for digest in digests]
    scorers = [Scorer(world.bundle, used) for used in (world.due, world.early, None)]
    for row, request in enumerate(world.requests[:30]):
        expected = scorers[row % 3].score(request)
        for goal, probability in expected.probabilities.items():
            assert found[f"probability:{goal}"][row].as_py() == probability
            for expert, logit in expected.logits[goal].items():
                assert found[f"logit:{goal}:{expert}"][row].as_py() == logit
        assert json.loads(found["features"][row].as_py()) == expected.features


def test_replay_of_no_requests_has_the_same_columns(world: worlds.World, tmp_path: Path) -> None:
    table = worlds.request_table(world.requests).append_column(
        "snapshot_hash", pa.array([world.due.digest] * len(world.requests))
    )
    some = _replayed(world, table.slice(0, 1), tmp_path)
    none = _replayed(world, table.slice(0, 0), tmp_path)
    assert len(none) == 0
    assert none.column_names == some.column_names


def test_a_damaged_snapshot_is_not_scored_with(world: worlds.World, tmp_path: Path) -> None:
    checkpoint = write_snapshot(tmp_path, world.due.counts)
    path = checkpoint.path / "counts.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=r"counts\.npy"):
        PublishedSnapshot.read(tmp_path, checkpoint.digest)


@pytest.mark.slow
def test_two_hundred_thousand_decisions_are_scored_and_written_in_seconds(
    world: worlds.World,
) -> None:
    table = worlds.request_table(world.requests * 1000)
    scorer = Scorer(world.bundle, world.due)
    scorer.score_many(table.slice(0, 10)).to_table()
    started = time.perf_counter()
    decisions = scorer.score_many(table)
    scored = time.perf_counter()
    written = decisions.to_table()
    ended = time.perf_counter()
    assert len(written) == 200_000
    assert scored - started < 6
    assert ended - scored < 6
