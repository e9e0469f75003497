"""Every mixture scores in a bundle as it was fitted, one request as among many."""

from dataclasses import replace

import numpy as np
import pytest

from ad_pipeline.learners.ensemble.ensemble import AVERAGE, STACKED, VOTING
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline_tests.serving import worlds

BOTH = ("batch", "online")


@pytest.mark.parametrize(
    ("kind", "experts", "weights", "intercept"),
    [
        ("online", ("online",), (1.0,), 0.0),
        ("batch", ("batch",), (1.0,), 0.0),
        (AVERAGE, BOTH, (0.5, 0.5), 0.0),
        (VOTING, BOTH, (0.5, 0.5), 0.0),
        (STACKED, BOTH, (0.3, 0.6), -0.1),
    ],
)
def test_a_mixture_scores_in_a_bundle_to_the_bit_as_in_the_pipeline_and_one_row_as_many(
    world: worlds.World,
    kind: str,
    experts: tuple[str, ...],
    weights: tuple[float, ...],
    intercept: float,
) -> None:
    mixed = []
    for models in world.models:
        assert models.ensemble is not None
        ensemble = replace(
            models.ensemble, kind=kind, experts=experts, weights=weights, intercept=intercept
        )
        mixed.append(replace(models, ensemble=ensemble))
    written = worlds.write(world.bundles, tuple(mixed), world.requests, world.due.counts)
    bundle = open_bundle(world.bundles, written.digest)
    scorer = Scorer(bundle, world.due)
    many = scorer.score_requests(world.requests)
    for models in mixed:
        expected = models.ensemble.apply(many.logits[models.goal])
        assert many.probabilities[models.goal].tobytes() == expected.tobytes()
        other = replace(models.ensemble, kind=AVERAGE if kind == VOTING else VOTING)
        differs = not np.array_equal(other.apply(many.logits[models.goal]), expected)
        assert differs is (len(experts) > 1)
    for row in range(0, len(world.requests), 13):
        assert scorer.score(world.requests[row]) == many.one(row)
