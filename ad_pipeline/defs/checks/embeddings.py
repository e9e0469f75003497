"""Checks of the newest published vectors and of the graph: only where the settings ask for them."""

import math

import dagster as dg

from ad_pipeline.checkpoints import is_pointed
from ad_pipeline.clocks import hour_key
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.partitions import DATASET
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import rounded
from ad_pipeline.embeddings.audit import (
    not_encoded,
    recall_of_sample,
    version_faults,
    watermark_faults,
)
from ad_pipeline.embeddings.graph import Users
from ad_pipeline.embeddings.graph_hours import POINTER, read_graph
from ad_pipeline.embeddings.published import read_newest, read_published

VECTORS = ["embeddings", "user_vectors"]
GRAPH = ["embeddings", "similar_users"]

SAMPLE = 200
"""Users whose neighbours are searched among all users: some seconds at a million."""

LEAST_RECALL = 0.95
"""Of the true neighbours, where users are searched in clusters: what ADR 0014 was decided by."""


@dg.multi_asset_check(
    name="embeddings_checks",
    specs=[
        dg.AssetCheckSpec(
            "vectors_are_finite_and_of_one_version",
            asset=VECTORS,
            blocking=True,
            description="Every number is finite, and both stores are of one encoder.",
        ),
        dg.AssetCheckSpec(
            "vectors_know_nothing_after_their_hour",
            asset=VECTORS,
            blocking=True,
            description="No store and no vector knows more of the log than the end of its hour.",
        ),
        dg.AssetCheckSpec(
            "every_due_user_is_encoded",
            asset=VECTORS,
            blocking=True,
            description="Whom the newest hour asks for by its log and tiers has a vector of it.",
        ),
    ],
)
def embeddings_checks(deployment: DeploymentResource):
    """Read the newest hour, and count from the log who was due."""
    paths = deployment.paths
    published = read_newest(paths.vectors)
    hour = hour_key(published.hour_us)
    faults = list(version_faults(paths.vectors, published))
    yield found(
        "vectors_are_finite_and_of_one_version",
        VECTORS,
        not faults,
        "; ".join(faults)
        or f"{len(published.users.ids):,} users and {len(published.engagers.ids):,} ads of {hour}",
    )
    faults = list(watermark_faults(published))
    yield found(
        "vectors_know_nothing_after_their_hour",
        VECTORS,
        not faults,
        "; ".join(faults) or f"the stores of {hour} know the log up to its end",
    )
    due, missed = not_encoded(deployment.warehouse, paths, published)
    yield found(
        "every_due_user_is_encoded",
        VECTORS,
        not missed,
        f"{missed:,} of {due:,} users who were due in {hour} have no vector of it",
        due=due,
        missed=missed,
    )


@dg.multi_asset_check(
    name="similar_users_checks",
    specs=[
        dg.AssetCheckSpec(
            "neighbours_are_the_nearest_of_all",
            asset=GRAPH,
            blocking=True,
            description=(
                "A sample's neighbours are those found among all users: all of them where all "
                "pairs are compared, 95 % in clusters."
            ),
        )
    ],
)
def similar_users_checks(deployment: DeploymentResource):
    """Search the nearest of some users among all, and compare."""
    paths = deployment.paths
    if not is_pointed(paths.vectors, POINTER):
        yield found("neighbours_are_the_nearest_of_all", GRAPH, False, "there is no graph")
        return
    stored = read_graph(paths.vectors)
    users = Users.of_store(read_published(paths.vectors, stored.vectors).users)
    recall, asked = recall_of_sample(stored.graph, users, SAMPLE, paths.dataset.settings.seed)
    least = LEAST_RECALL if len(stored.graph.clusters.centroids) > 1 else 1.0
    yield found(
        "neighbours_are_the_nearest_of_all",
        GRAPH,
        not recall < least,  # without a neighbour there is nothing to miss
        f"{asked} users have {recall:.1%} of their nearest as neighbours, {least:.0%} are asked",
        asked=asked,
        recall="none" if math.isnan(recall) else rounded(recall),
    )


@dg.definitions
def checks() -> dg.Definitions:
    """Return the checks if the dataset asks for vectors of users, else nothing."""
    if DATASET.settings.user_vectors is None:
        return dg.Definitions()
    return dg.Definitions(asset_checks=[embeddings_checks, similar_users_checks])
