"""A bundle with wide & deep: it scores as what it was made of, and a proof finds what is not."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ad_pipeline.features.encoding import entity_hashes, read_columns, request_columns, slots
from ad_pipeline.features.rates import counts_of
from ad_pipeline.learners.deep.deep_hours import TrainedDeep
from ad_pipeline.learners.deep.embedding_table import EmbeddingTable
from ad_pipeline.learners.deep.exported_deep import ExportedDeep
from ad_pipeline.serving.bundle import Bundle, GoalModels, open_bundle
from ad_pipeline.serving.proof import prove_goal
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline.settings import DeepSettings
from ad_pipeline_tests.serving import worlds

SETTINGS = DeepSettings(bits=8, embedding=4, layers=(16, 8))
FIELDS = len(worlds.CONTRACT.token_names)


def trained(seed: int, fields: int = FIELDS) -> TrainedDeep:
    """Return a model of drawn numbers, as a checkpoint would give it, made without training."""
    generator = np.random.default_rng(seed)
    learnt = np.sort(generator.choice(1 << SETTINGS.bits, 100, replace=False)).astype(np.uint32)
    widths = [fields * SETTINGS.embedding, *SETTINGS.layers, 1]
    arrays: dict[str, np.ndarray] = {
        "slots": learnt,
        "numbers": generator.normal(0, 0.3, (100, 5)).astype(np.float32),
        "squares": np.ones((100, 2), np.float32),
    }
    for place, (inputs, units) in enumerate(itertools.pairwise(widths)):
        arrays[f"weights_{place}"] = generator.normal(0, 0.3, (inputs, units)).astype(np.float32)
        arrays[f"biases_{place}"] = generator.normal(0, 0.1, units).astype(np.float32)
    told: Mapping[str, Any] = {
        "settings": SETTINGS.model_dump(mode="json"), "fields": fields,
        "slot_bits": worlds.CONTRACT.bits, "horizon_days": 1.0, "seed": 3, "unlearnt_scale": 0.01,
    }  # fmt: skip
    exported = ExportedDeep.from_state(arrays, told)
    table = EmbeddingTable(SETTINGS.bits, SETTINGS.embedding, 0.05, exported.unlearnt)
    table.fill(arrays)
    return TrainedDeep(table, exported)


def with_deep(models: GoalModels, deep: TrainedDeep) -> GoalModels:
    """Return the models of a goal with a third expert, which an even mixture reads."""
    assert models.ensemble is not None
    experts = ("online", "batch", "deep")
    ensemble = replace(models.ensemble, kind="average", experts=experts, weights=(1 / 3,) * 3)
    return replace(models, ensemble=ensemble, deep=deep.exported, deep_checkpoint="d" * 64)


@pytest.fixture
def source() -> TrainedDeep:
    return trained(1)


@pytest.fixture
def bundle(world: worlds.World, source: TrainedDeep, tmp_path: Path) -> Bundle:
    models = (with_deep(world.models[0], source), *world.models[1:])
    return worlds.write(tmp_path, models, world.requests, world.due.counts)


def test_a_bundle_scores_wide_and_deep_as_the_learners_own_table_does(
    world: worlds.World, bundle: Bundle, source: TrainedDeep
) -> None:
    read = read_columns(worlds.CONTRACT, request_columns(worlds.CONTRACT, world.requests))
    counts = counts_of(worlds.CONTRACT, world.due.counts, entity_hashes(worlds.CONTRACT, read))
    hashed = slots(worlds.CONTRACT, read, counts)
    opened = open_bundle(bundle.path.parents[1], bundle.digest, to_score=True)
    decided = Scorer(opened, world.due).score_requests(world.requests)
    goal = opened.goals[0].goal
    found = decided.logits[goal]
    assert np.array_equal(found["deep"], source.logits(hashed))
    assert np.ptp(found["deep"]) > 0.01
    assert not np.array_equal(found["deep"], trained(2).logits(hashed)), "the model matters"
    ensemble = opened.goals[0].ensemble
    assert ensemble is not None
    assert np.array_equal(decided.probabilities[goal], ensemble.apply(found))
    assert "deep" not in decided.logits[opened.goals[1].goal]


def test_a_bundle_without_the_expert_has_no_trace_of_it(world: worlds.World) -> None:
    assert all("deep" not in described for described in world.bundle.manifest["goals"])


def test_an_ensemble_that_reads_a_missing_deep_model_falls_to_the_online_expert(
    world: worlds.World, source: TrainedDeep, tmp_path: Path
) -> None:
    models = replace(with_deep(world.models[0], source), deep=None, deep_checkpoint=None)
    made = worlds.write(tmp_path, (models,), world.requests, world.due.counts)
    said = f"no deep model of {models.goal}: the online expert, not calibrated"
    decision = Scorer(made, world.due).score(world.requests[0])
    assert decision.fallbacks == (said,)
    young = Scorer(world.young, world.due).score(world.requests[0])
    assert decision.probabilities[models.goal] == young.probabilities[models.goal]


def test_a_model_of_other_slots_is_refused(
    world: worlds.World, source: TrainedDeep, tmp_path: Path
) -> None:
    wider = replace(source.exported, slot_bits=worlds.CONTRACT.bits + 1)
    models = with_deep(world.models[0], replace(source, exported=wider))
    with pytest.raises(ValueError, match=r"the deep model of .* reads"):
        worlds.write(tmp_path, (models,), world.requests, world.due.counts)


def test_the_proof_passes_for_the_model_and_finds_what_is_not_its(
    world: worlds.World, bundle: Bundle, source: TrainedDeep
) -> None:
    models = bundle.goals[0]
    assert models.ensemble is not None
    sources = replace(world.sources[models.goal], ensemble=models.ensemble, deep=source)
    sound = prove_goal(bundle, 0, sources)
    assert sound.faults == ()
    assert sound.deep_slots == 1 << SETTINGS.bits

    def faults(**changed: Any) -> tuple[str, ...]:
        assert models.deep is not None
        spoilt = replace(models, deep=replace(models.deep, **changed))
        return prove_goal(replace(bundle, goals=(spoilt, *bundle.goals[1:])), 0, sources).faults

    own = source.exported
    kept = own.kept.copy()
    kept[7, 2] = np.nextafter(kept[7, 2], np.float32(np.inf))
    found = faults(kept=kept)
    assert "kept of wide & deep are not those" in found[0]
    assert "1 slots of wide & deep have other numbers" in found[1]
    biases = (own.layers.biases[0] + np.float32(0.5), *own.layers.biases[1:])
    found = faults(layers=replace(own.layers, biases=biases))
    assert "biases_0" in found[0]
    assert "drawn rows score otherwise" in found[1]
    assert "present of wide & deep" in faults(present=own.present ^ np.uint64(1))[0]
    assert "the checkpoint's" in faults(horizon_days=2.0)[0]
    alone = replace(sources, deep=None)
    assert "on one side only" in prove_goal(bundle, 0, alone).faults[0]
