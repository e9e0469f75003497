"""Vectors of users, ads' engagers, similar users and candidates: only where the settings ask."""

import math
from dataclasses import asdict
from datetime import timedelta

import dagster as dg
import numpy as np
from pydantic import Field

from ad_pipeline.clocks import HOUR_US, hour_key, timestamp
from ad_pipeline.defs.assets.events import MAPPED
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import ON_DEMAND, table_spec
from ad_pipeline.defs.partitions import (
    DATASET,
    HORIZON,
    HOURLY,
    PREVIOUS_HOUR,
    SAME_HOUR,
    SINGLE_RUN,
    hours,
)
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, rounded, short, whole
from ad_pipeline.embeddings.candidate_index import keep_served, write_index
from ad_pipeline.embeddings.candidates_of_log import (
    eligible_ads,
    read_index,
    shares_by_way,
    write_candidates,
)
from ad_pipeline.embeddings.encoder_hours import settings_of, train_hours
from ad_pipeline.embeddings.graph_hours import read_graph, refresh_graph, write_table
from ad_pipeline.embeddings.lookups import counted
from ad_pipeline.embeddings.published import read_newest
from ad_pipeline.embeddings.retrieval import diversity_of
from ad_pipeline.embeddings.tables import CANDIDATES, SIMILAR_USERS, VERSION_LOOKUPS
from ad_pipeline.embeddings.vector_hours import advance_hours, encode_on_demand, forget_hours
from ad_pipeline.embeddings.vectors import read_vectors
from ad_pipeline.embeddings.versions import VersionGuard
from ad_pipeline.serving.pointers import publish_index, publish_vectors

ENCODER = ["embeddings", "encoder"]
USER_VECTORS = ["embeddings", "user_vectors"]

ACTIVITIES = [
    dg.AssetDep(["events", name], partition_mapping=mapping)
    for name, mapping in (
        ("user_activities", SAME_HOUR),
        ("engagements", SAME_HOUR),
        ("impressions", HORIZON),
    )
    if name in MAPPED
]
BUDGETS = [["events", "campaign_kpis"]] if "campaign_kpis" in MAPPED else []
"""A table that the dataset maps no file to is no asset."""

FRESH = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(hours=2), fail_window=timedelta(hours=6)
)
"""The hourly schedule makes vectors anew: one run that fails is made up for by the next."""


@dg.asset(
    key=ENCODER,
    group_name="embeddings",
    kinds={"jax"},
    partitions_def=HOURLY,
    backfill_policy=SINGLE_RUN,
    deps=[
        dg.AssetDep(ENCODER, partition_mapping=PREVIOUS_HOUR),
        dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
        *ACTIVITIES,
    ],
    description=(
        "The encoder in force after this hour: what makes one vector of what a user did. It is "
        "trained on matured labels of ads shown after each sequence ended. Hours without a "
        "training point at the encoder before."
    ),
)
def encoder(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Train where one is due, else point at the encoder in force."""
    start_us, end_us = hours(context)
    say = context.log.info
    for hour in train_hours(deployment.warehouse, deployment.paths, start_us, end_us, say):
        shown = {"cause": hour.cause, "encoder in force": short(hour.digest)}
        last = {"whole digest": whole({"encoder": hour.digest})}
        describe_hour(context, ENCODER, hour.hour_us, shown | (hour.trained or {}) | last)
    return dg.MaterializeResult()


@dg.asset(
    key=USER_VECTORS,
    group_name="embeddings",
    kinds={"jax", "numpy"},
    partitions_def=HOURLY,
    backfill_policy=SINGLE_RUN,
    deps=[
        dg.AssetDep(USER_VECTORS, partition_mapping=PREVIOUS_HOUR),
        dg.AssetDep(ENCODER, partition_mapping=SAME_HOUR),
        *ACTIVITIES,
    ],
    # The hours of a closed log are never late.
    freshness_policy=FRESH if DATASET.end_us is None else None,
    description=(
        "What impressions may read of users after this hour: a vector a user, and for each ad the "
        "mean direction of those who engaged with it, under one digest. Everybody is encoded by a "
        "new encoder and once a day, in the other hours those with news who are due by their tier."
    ),
)
def user_vectors(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Encode whom each hour asks for, and publish."""
    start_us, end_us = hours(context)
    paths = deployment.paths
    for hour in advance_hours(deployment.warehouse, paths, start_us, end_us):
        publish_vectors(paths.serving, hour.digest, hour.hour_us + HOUR_US)
        describe_hour(
            context,
            USER_VECTORS,
            hour.hour_us,
            {
                "refresh": hour.refresh,
                "users encoded": hour.encoded,
                "users": hour.users,
                "ads with engagers": hour.ads,
                "share of length lost by storing": hour.error,
                "encoder": short(hour.version),
                "whole digests": whole({"vectors": hour.digest, "encoder": hour.version}),
            },
        )
    # Not from the end: learners of this run read the vectors of its whole range.
    forgotten, swept = forget_hours(paths, start_us)
    context.log.info(
        f"{forgotten} hours of vectors removed; the others are {swept.kept_bytes / 1e6:,.1f} MB"
    )
    return dg.MaterializeResult()


@dg.multi_asset(
    name="similar_users",
    specs=[
        table_spec(SIMILAR_USERS, deps=[USER_VECTORS], kinds={"numba"})._replace(
            automation_condition=refresh_after_upstream()
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def similar_users(deployment: DeploymentResource):
    """Bring the graph up to date with the newest vectors, or build it anew."""
    paths = deployment.paths
    published = read_newest(paths.vectors)
    settings = settings_of(paths.dataset)
    done = refresh_graph(paths.vectors, published, settings, paths.dataset.settings.seed)
    graph = done.stored.graph
    pairs = max(len(graph.ids) * (len(graph.ids) - 1), 1)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": write_table(deployment.warehouse, done.stored),
            "as of": timestamp(done.stored.as_of_us),
            "built anew": done.is_rebuilt,
            "users": len(graph.ids),
            "users encoded since": done.changed,
            "clusters": len(graph.clusters.centroids),
            "share of all pairs compared": rounded(graph.compared / pairs),
            "encoder": short(graph.version),
            "whole digest": whole({"graph": done.digest}),
        }
    )


@dg.multi_asset(
    name="candidates",
    specs=[
        table_spec(
            CANDIDATES,
            deps=[
                SIMILAR_USERS.name.split("."),
                ["events", "impressions"],
                ["events", "engagements"],
                *BUDGETS,
            ],
            kinds={"numpy"},
        )._replace(automation_condition=refresh_after_upstream()),
        table_spec(VERSION_LOOKUPS, deps=[SIMILAR_USERS.name.split("."), USER_VECTORS])._replace(
            automation_condition=refresh_after_upstream()
        ),
    ],
    backfill_policy=SINGLE_RUN,
)
def candidates(deployment: DeploymentResource):
    """List ads for every user, and publish the folder that bundles and scorers answer from.

    How alike they are is measured by the newest vectors of the ads' engagers: if the graph is of
    another encoder, that is refused.
    """
    paths, warehouse = deployment.paths, deployment.warehouse
    stored = read_graph(paths.vectors)
    index = read_index(warehouse, paths, stored)
    written = write_index(paths.vectors, index)
    eligible = eligible_ads(warehouse, paths, stored.as_of_us)
    settings = settings_of(paths.dataset)
    found = write_candidates(warehouse, index, eligible, settings.candidates)
    engagers = read_newest(paths.vectors).engagers
    vectors = engagers.units(np.arange(len(engagers.ids)))
    guard = VersionGuard(settings.tolerated_rotation_error)
    with counted(warehouse, guard, CANDIDATES.name, stored.as_of_us):
        vectors = guard.aligned(vectors, engagers.version, index.version)
    if publish_index(paths.serving, written.digest, index.engaged.as_of_us + 1):
        keep_served(paths.vectors, written.digest)
    diversity = diversity_of(found, engagers.ids, vectors)
    yield dg.MaterializeResult(
        asset_key=VERSION_LOOKUPS.name.split("."),
        metadata={
            f"{outcome}, {short(version)} for {short(wanted)}": count
            for outcome, version, wanted, count in guard.counts()
        },
    )
    yield dg.MaterializeResult(
        asset_key=CANDIDATES.name.split("."),
        metadata={
            "dagster/row_count": len(found.ads),
            "as of": timestamp(stored.as_of_us),
            "users": len(index.ids),
            "ads": len(index.ad_texts),
            "users with candidates": int((np.diff(found.starts) > 0).sum()),
            "eligible ads": len(eligible),
            **{
                label(f"share of users, {name}"): rounded(share)
                for name, share in shares_by_way(
                    index, found, eligible, settings.candidates
                ).items()
            },
            **{
                label(name): rounded(value)
                for name, value in asdict(diversity).items()
                if math.isfinite(value)
            },
            "whole digest and folder": whole(
                {"index": written.digest, "folder": str(written.path)}
            ),
        },
    )


class Asked(dg.Config):
    """Whom to encode now."""

    user_ids: list[str] = Field(description="Ids of users, as the log has them.")


@dg.asset(
    key=["embeddings", "on_demand_vectors"],
    group_name="embeddings",
    kinds={"jax", "numpy"},
    backfill_policy=SINGLE_RUN,
    deps=[USER_VECTORS],
    tags={ON_DEMAND: ""},
    description=(
        "New vectors of users whom somebody asked for, whatever their tier, in a store of its own "
        "that continues the newest hour's: no published hour changes."
    ),
)
def on_demand_vectors(config: Asked, deployment: DeploymentResource) -> dg.MaterializeResult:
    """Encode the users of the configuration from all that the newest hour knows."""
    paths = deployment.paths
    newest = read_newest(paths.vectors)
    written = encode_on_demand(deployment.warehouse, paths, newest.hour_us, config.user_ids)
    store = read_vectors(paths.vectors, written.digest)
    return dg.MaterializeResult(
        metadata={
            "continues": hour_key(newest.hour_us),
            "users asked for": len(config.user_ids),
            "users before": len(newest.users),
            "users": len(store),
            "encoder": short(store.version),
            "whole digest": whole({"store": written.digest}),
        }
    )


encode_users = dg.define_asset_job(
    "encode_users",
    selection=dg.AssetSelection.assets(["embeddings", "on_demand_vectors"]),
    description=(
        "Encode some users now, whatever their tier. Name them in the configuration of the step "
        "on_demand_vectors: user_ids: [a, b]."
    ),
)


@dg.definitions
def embeddings() -> dg.Definitions:
    """Return the assets if the dataset asks for vectors of users, else nothing."""
    if DATASET.settings.user_vectors is None:
        return dg.Definitions()
    return dg.Definitions(
        assets=[encoder, user_vectors, similar_users, candidates, on_demand_vectors],
        jobs=[encode_users],
    )
