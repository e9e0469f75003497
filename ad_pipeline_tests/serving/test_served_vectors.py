"""Users' vectors in what serves: training's numbers, to the bit, and their name in the log."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ad_pipeline.checkpoints import point, read_checkpoint, write_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.vectors import WrongVectors
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    LookedUp,
    VectorFeatures,
    entity_hashes,
    read_columns,
    request_columns,
    slots,
    vector_hashes,
)
from ad_pipeline.features.rates import counts_at, pointer
from ad_pipeline.features.vectors import vectors_at
from ad_pipeline.serving import pointers, promotion
from ad_pipeline.serving.bundle import KIND, CorruptBundle, open_bundle
from ad_pipeline.serving.explanation import canary, explain, with_vectors
from ad_pipeline.serving.proof import prove_goal
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import worlds
from ad_pipeline_tests.serving.test_deep_bundle import trained, with_deep
from ad_pipeline_tests.serving.worlds import CONTRACT, SERVED_US, START_US, WITH_VECTORS, World


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a world whose learners read vectors."""
    return worlds.build(tmp_path_factory.mktemp("seeing"), WITH_VECTORS)


def as_trained(world: World) -> LookedUp:
    """Look the world's requests up in the history, as every step of training does."""
    read = read_columns(WITH_VECTORS, request_columns(WITH_VECTORS, world.requests))
    occurred_us = np.array([request["occurred_us"] for request in world.requests])
    for hour, snapshot in enumerate((world.early, world.due)):
        point(world.snapshots, pointer(START_US + hour * HOUR_US), snapshot.digest)
    hashes = entity_hashes(WITH_VECTORS, read)
    looked_up = counts_at(WITH_VECTORS, world.snapshots, START_US, hashes, occurred_us)
    assert WITH_VECTORS.vectors is not None
    looked_up.vectors[:] = vectors_at(
        WITH_VECTORS.vectors, world.snapshots.parent / "vectors", START_US,
        vector_hashes(WITH_VECTORS, read), occurred_us,
    )  # fmt: skip
    return looked_up


def test_a_scorer_gives_the_scores_of_the_training_path_bit_for_bit(seeing: World) -> None:
    looked_up = as_trained(seeing)
    read = read_columns(WITH_VECTORS, request_columns(WITH_VECTORS, seeing.requests))
    expected = seeing.bundle.score(read, looked_up)
    scorer = Scorer(seeing.bundle, seeing.due, seeing.vectors[1])
    decided = scorer.score_requests(seeing.requests)
    assert decided.counts.vectors.tobytes() == looked_up.vectors.tobytes()
    for goal, probabilities in expected.probabilities.items():
        assert decided.probabilities[goal].tobytes() == probabilities.tobytes()
        for expert, logits in expected.logits[goal].items():
            assert decided.logits[goal][expert].tobytes() == logits.tobytes()
    assert decided.fallbacks == ()
    assert 0 < np.isnan(looked_up.vectors).sum() < looked_up.vectors.size / 2
    for row in (0, 7, 63):
        assert scorer.score(seeing.requests[row]) == decided.one(row)


def test_vectors_move_the_scores_of_both_experts(seeing: World) -> None:
    """Else nothing here would be worth a test."""
    with_them = Scorer(seeing.bundle, seeing.due, seeing.vectors[1]).score_requests(seeing.requests)
    without = Scorer(seeing.bundle, seeing.due).score_requests(seeing.requests)
    for expert in ("online", "batch"):
        moved = with_them.logits["click"][expert] != without.logits["click"][expert]
        assert moved.mean() > 0.5


def test_wide_and_deep_reads_vectors_by_their_buckets(seeing: World, tmp_path: Path) -> None:
    source = trained(1, len(WITH_VECTORS.token_names))
    models = (with_deep(seeing.models[0], source), *seeing.models[1:])
    bundle = worlds.write(
        tmp_path, models, seeing.requests, seeing.due.counts,
        contract=WITH_VECTORS, vectors=seeing.vectors[1],
    )  # fmt: skip
    goal = models[0].goal
    with_them, without = (
        Scorer(bundle, seeing.due, vectors).score_requests(seeing.requests).logits[goal]["deep"]
        for vectors in (seeing.vectors[1], None)
    )
    read = read_columns(WITH_VECTORS, request_columns(WITH_VECTORS, seeing.requests))
    hashed = slots(WITH_VECTORS, read, as_trained(seeing))
    assert np.array_equal(with_them, source.logits(hashed))
    assert (with_them != without).mean() > 0.5


def test_the_log_names_the_vectors_and_how_old_they_are_and_holds_none_of_their_numbers(
    seeing: World,
) -> None:
    logged = Scorer(seeing.bundle, seeing.due, seeing.vectors[1]).score_many(
        worlds.request_table(seeing.requests)
    )
    row = logged.to_log().to_pylist()[3]
    features = json.loads(row["features"])
    assert features[VECTORS_USED] == seeing.vectors[1].digest
    assert not set(features) & set(WITH_VECTORS.vector_names)
    age_us = seeing.requests[3]["occurred_us"] - (START_US + 2 * HOUR_US)
    assert json.loads(row["ages_us"]) == {"rates": age_us, "user_vectors": age_us}
    assert json.loads(row["fallbacks"]) == []


def test_a_decision_that_used_no_vectors_or_others_than_were_due_says_so(seeing: World) -> None:
    request = seeing.requests[3]
    blind = Scorer(seeing.bundle, seeing.due).score(request)
    assert blind.fallbacks == ("no user vectors: every one is unknown",)
    assert blind.features[VECTORS_USED] is None
    assert set(blind.ages_us) == {"rates"}
    stale = Scorer(seeing.bundle, seeing.due, seeing.vectors[0]).score(request)
    assert stale.fallbacks == ("stale user vectors: later ones were due",)
    assert stale.features[VECTORS_USED] == seeing.vectors[0].digest
    soon = request | {"occurred_us": SERVED_US - 1}
    early = Scorer(seeing.bundle, seeing.early, seeing.vectors[1]).score(soon)
    assert early.fallbacks == ("early user vectors: they were not due yet",)
    timeless = {name: value for name, value in request.items() if name != "occurred_us"}
    found = Scorer(seeing.bundle, seeing.due, seeing.vectors[1]).score(timeless)
    assert found.fallbacks == ("no request time: the age of the counts is unknown",)


def test_counts_too_old_to_be_taken_take_the_vectors_with_them(seeing: World) -> None:
    """The ladder's rung without counts was fitted to rows that look nothing up."""
    limited = worlds.write(
        seeing.bundles, seeing.models, seeing.requests, seeing.due.counts, stale_hours=1,
        contract=WITH_VECTORS, vectors=seeing.vectors[1],
    )  # fmt: skip
    decided = Scorer(limited, seeing.early, seeing.vectors[1]).score_requests(seeing.requests)
    assert np.isnan(decided.counts.vectors).all()
    assert decided.one(0).features[VECTORS_USED] is None
    fresh = Scorer(limited, seeing.due, seeing.vectors[1]).score_requests(seeing.requests)
    assert np.isfinite(fresh.counts.vectors).any()


def test_vectors_that_do_not_fit_the_bundle_are_refused(seeing: World) -> None:
    good = seeing.vectors[1]
    wider = replace(WITH_VECTORS, vectors=VectorFeatures(7, 1, "creative", "publisher"))
    bundle = replace(seeing.bundle, contract=wider)
    with pytest.raises(WrongVectors, match=r"encoder-a, have \[6\] numbers .* contract 7"):
        Scorer(bundle, seeing.due, good)
    other = replace(good.engagers, layout=replace(good.engagers.layout, version="encoder-b"))
    with pytest.raises(MixedVersions, match="encoder-a and of engagers by encoder-b"):
        Scorer(seeing.bundle, seeing.due, replace(good, engagers=other))


def test_a_bundle_without_vectors_scores_as_it_did_whatever_is_published(
    world: World, seeing: World
) -> None:
    plain = Scorer(world.bundle, world.due).score_requests(world.requests)
    beside = Scorer(world.bundle, world.due, seeing.vectors[1]).score_requests(world.requests)
    assert beside.to_table().equals(plain.to_table())
    assert "vectors" not in world.bundle.manifest["contract"]
    assert VECTORS_USED not in json.dumps(world.bundle.manifest)


def test_a_scorer_follows_the_pointer_and_goes_on_with_what_it_has_when_it_leads_nowhere(
    seeing: World, tmp_path: Path
) -> None:
    serving = tmp_path / "serving"
    promotion.promote(serving, seeing.bundles, seeing.bundle.digest, {}, watermark_us=1)
    folders = {
        "bundles": seeing.bundles,
        "snapshots": seeing.snapshots,
        "vectors": seeing.snapshots.parent / "vectors",
    }
    scorer = Scorer.current(serving, **folders)
    assert scorer.vectors is None
    first, second = seeing.vectors
    for published in (first, second):
        end_us = published.hour_us + HOUR_US
        assert pointers.publish_vectors(serving, published.digest, end_us)
        assert scorer.refresh()
        assert scorer.vectors is not None
        assert scorer.vectors.digest == published.digest
        assert not scorer.refresh()
    assert not pointers.publish_vectors(serving, first.digest, first.hour_us + HOUR_US)
    assert not scorer.refresh(), "a backfill does not take serving back in time"
    pointers.publish_vectors(serving, "0" * 64, second.hour_us + 2 * HOUR_US)
    with pytest.raises(LookupError):
        scorer.refresh()
    assert scorer.vectors.digest == second.digest


def test_canaries_prove_a_bundle_where_no_vectors_are(seeing: World, tmp_path: Path) -> None:
    """Planted fault: a number of a canary's vector is another one."""
    shutil.copytree(seeing.bundle.path, tmp_path / "objects" / seeing.bundle.digest)
    assert open_bundle(tmp_path, seeing.bundle.digest).contract == WITH_VECTORS
    source = read_checkpoint(seeing.bundles, seeing.bundle.digest)
    manifest = json.loads(json.dumps(source.manifest))
    canaries = manifest["canaries"]["features"]
    assert {row[VECTORS_USED] for row in canaries} == {seeing.vectors[1].digest}
    for row in canaries:
        for name in WITH_VECTORS.vector_names:
            row[name] = None if row[name] is None else -row[name]
    given = {name: value for name, value in manifest.items() if name not in ("files", "format")}
    files = {name: path.read_bytes() for name, path in source.files.items()}
    planted = write_checkpoint(tmp_path, KIND, source.arrays, given, files)
    with pytest.raises(CorruptBundle, match="canary requests score"):
        open_bundle(tmp_path, planted.digest)


def test_a_bundle_with_vectors_is_proved_to_be_its_models(seeing: World) -> None:
    for place, models in enumerate(seeing.models):
        assert prove_goal(seeing.bundle, place, seeing.sources[models.goal]).faults == ()


def test_replay_in_a_fresh_process_scores_each_row_with_the_vectors_it_names(
    seeing: World, tmp_path: Path
) -> None:
    table = worlds.request_table(seeing.requests)
    used = [(*(each.digest for each in seeing.vectors), None)[row % 3] for row in range(len(table))]
    table = table.append_column("snapshot_hash", pa.array([seeing.due.digest] * len(table)))
    table = table.append_column(VECTORS_USED, pa.array(used, pa.string()))
    pq.write_table(table, tmp_path / "requests.parquet")
    subprocess.run(
        [sys.executable, "-m", "ad_pipeline.serving.replay",
         "--bundle", str(seeing.bundle.path), "--requests", str(tmp_path / "requests.parquet"),
         "--snapshots", str(seeing.snapshots), "--out", str(tmp_path / "scores.parquet"),
         "--vectors", str(seeing.snapshots.parent / "vectors")],
        check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    found = pq.read_table(tmp_path / "scores.parquet")
    scorers = [Scorer(seeing.bundle, seeing.due, each) for each in (*seeing.vectors, None)]
    for row, request in enumerate(seeing.requests[:30]):
        expected = scorers[row % 3].score(request)
        assert json.loads(found["features"][row].as_py()) == expected.features
        for goal, probability in expected.probabilities.items():
            assert found[f"probability:{goal}"][row].as_py() == probability


def test_a_logged_decision_is_explained_with_the_vectors_that_it_names(seeing: World) -> None:
    decided = Scorer(seeing.bundle, seeing.due, seeing.vectors[1]).score(seeing.requests[5])
    request = with_vectors(seeing.bundle, decided.features, seeing.snapshots.parent / "vectors")
    found = explain(seeing.bundle, request)
    assert {goal.goal: goal.probability for goal in found.goals} == decided.probabilities
    named = {each.feature: each.value for each in found.goals[0].contributions}
    assert named["user_vector.0"].startswith("[")
    blind = explain(seeing.bundle, decided.features)
    assert "no numbers of a user's vector in the request: every one is unknown" in blind.fallbacks
    scores = seeing.bundle.manifest["canaries"]["scores"]["probabilities"]
    again = explain(seeing.bundle, canary(seeing.bundle, 2))
    assert [goal.probability for goal in again.goals] == [p[2] for p in scores.values()]


def test_the_plain_contract_is_the_one_that_all_other_tests_serve() -> None:
    assert replace(WITH_VECTORS, vectors=None) == CONTRACT
