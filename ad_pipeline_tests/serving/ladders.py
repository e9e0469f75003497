"""Ladders for the small trained world: fitted on its training rows, and a bundle that has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.serving.bundle import Bundle, GoalModels
from ad_pipeline.serving.candidate import ladder_of
from ad_pipeline.serving.ladder import Ladder
from ad_pipeline_tests.serving import worlds

LEAST_SHARE = 0.6


def matured(goal: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return the world's requests and the labels that its models learnt."""
    requests = worlds.some_requests(worlds.ROWS, 1)
    if goal == "click":
        return requests, worlds.labels_of(requests, 2)
    return requests, worlds.labels_of(requests, 3) & worlds.labels_of(requests, 4)


def fitted(models: GoalModels, contract: FeatureContract = worlds.CONTRACT) -> Ladder:
    """Return the ladder of a goal's models."""
    requests, labels = matured(models.goal)
    rows = worlds.request_table(requests).append_column("label", [labels])
    found = ladder_of(contract, models, rows, LEAST_SHARE)
    assert found is not None
    return found


def with_ladders(world: worlds.World, root: Path, stale_hours: int | None = None) -> Bundle:
    """Write the world's bundle with the ladders of its models."""
    models = tuple(
        replace(each, ladder=fitted(each), ladder_checkpoint="d" * 64) for each in world.models
    )
    return worlds.write(root, models, world.requests, world.due.counts, stale_hours=stale_hours)
