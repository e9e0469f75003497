"""The serving log of a share: the same requests everywhere, and nothing lost when it is whole."""

from dataclasses import replace
from pathlib import Path

import pytest

from ad_pipeline.serving.bundle import export_bundle
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import worlds


def identified(world: worlds.World) -> list[dict]:
    return [request | {"request_id": f"r{place}"} for place, request in enumerate(world.requests)]


def test_a_whole_log_has_every_decision(world: worlds.World):
    decisions = Scorer(world.bundle, world.due).score_requests(identified(world))
    assert decisions.to_log().equals(decisions.to_table())


def test_a_share_is_the_same_requests_alone_and_among_many_and_a_smaller_one_is_part_of_it(
    world: worlds.World,
):
    requests = identified(world)
    scorer = Scorer(world.bundle, world.due)
    many = scorer.score_requests(requests)
    half = replace(many, log_share=0.5).to_log()
    kept = half["request_id"].to_pylist()
    assert 0.3 * len(requests) < len(kept) < 0.7 * len(requests)
    alone = [
        row
        for request in requests
        for row in replace(scorer.score_requests([request]), log_share=0.5).to_log().to_pylist()
    ]
    assert alone == half.to_pylist()
    assert set(replace(many, log_share=0.1).to_log()["request_id"].to_pylist()) < set(kept)
    whole = {row["request_id"]: row for row in many.to_table().to_pylist()}
    assert all(whole[row["request_id"]] == row for row in half.to_pylist())


def test_requests_without_an_id_cannot_be_sampled(world: worlds.World):
    decisions = Scorer(world.bundle, world.due).score_requests(world.requests[:3])
    assert len(decisions.to_log()) == 3
    anonymous = replace(decisions, identity={}, log_share=0.5)
    with pytest.raises(ValueError, match="request_id"):
        anonymous.to_log()


def test_the_bundle_tells_a_scorer_the_share(world: worlds.World, tmp_path: Path):
    exported = export_bundle(
        tmp_path,
        contract=worlds.CONTRACT,
        goals=world.models,
        dataset="small_world",
        label_watermark_us=worlds.SERVED_US,
        canaries=world.requests[:4],
        log_share=0.25,
    )
    assert Scorer(exported).score_requests(world.requests[:2]).log_share == 0.25
    assert Scorer(world.bundle).score_requests(world.requests[:2]).log_share == 1.0
