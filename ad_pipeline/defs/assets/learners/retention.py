"""Which models of past hours are still there."""

import dagster as dg

from ad_pipeline.clocks import HOUR_US, hour_key, hour_start
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import table
from ad_pipeline.learners.online.retention import prune
from ad_pipeline.serving.retention import checkpoints_in_use, sweep_bundles


@dg.asset(
    key=["learners", "kept_checkpoints"],
    group_name="learners",
    kinds={"file"},
    backfill_policy=SINGLE_RUN,
    deps=[
        ["learners", "online_model"],
        ["learners", "deep_model"],
        ["serving", "bundle"],
        ["serving", "current"],
    ],
    description=(
        "The hours whose online and deep models are still there: every one of the last days, one "
        "of each day before them, and what a bundle needs. The others are removed, and bundles "
        "that never served with them."
    ),
)
def kept_checkpoints(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Remove what settings.checkpoints does not keep."""
    paths = deployment.paths
    bundles = sweep_bundles(paths)
    pruned = prune(paths, checkpoints_in_use(paths), _began_at(context))
    context.log.info(
        f"{pruned.removed_hours} hourly models and {bundles.removed} bundles removed, "
        f"{(pruned.swept.removed_bytes + bundles.removed_bytes) / 1e6:,.0f} MB"
    )
    return dg.MaterializeResult(
        metadata={
            "checkpoints kept": pruned.swept.kept,
            "bytes kept": pruned.swept.kept_bytes,
            "checkpoints removed": pruned.swept.removed,
            "bytes removed": pruned.swept.removed_bytes,
            "bundles kept": bundles.kept,
            "bytes of bundles": bundles.kept_bytes,
            "hours kept": table(
                ("goal", "hours"),
                [(goal, ", ".join(map(hour_key, us))) for goal, us in pruned.kept_us.items()],
            ),
        }
    )


def _began_at(context: dg.AssetExecutionContext) -> list[int]:
    """Return the hour that this run continued from: if it fails, it is run again from there."""
    for tag in ("dagster/asset_partition_range_start", "dagster/partition"):
        if tag in context.run.tags:
            return [hour_start(context.run.tags[tag]) - HOUR_US]
    return []
