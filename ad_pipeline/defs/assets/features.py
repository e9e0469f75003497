"""What learners see beside an impression's own columns: published counts, and the dictionary."""

import dagster as dg

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, HOURLY, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import rounded, short, table, whole
from ad_pipeline.features.dictionary import collisions, write_dictionary
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.features.rates import advance_hours
from ad_pipeline.features.tables import INVERSE_DICTIONARY
from ad_pipeline.serving.pointers import publish_snapshot


@dg.asset(
    key=["features", "rates"],
    group_name="features",
    kinds={"numpy"},
    partitions_def=HOURLY,
    backfill_policy=SINGLE_RUN,
    deps=[
        dg.AssetDep(["features", "rates"], partition_mapping=PREVIOUS_HOUR),
        dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON),
        dg.AssetDep(["events", "engagements"], partition_mapping=SAME_HOUR),
    ],
    description=(
        "Snapshot of integer counts by entity (a user, an ad, a publisher) over the window that "
        "ends with this hour: anchors and engagements of each goal. Learners and the scorer "
        "read the same snapshot as smoothed rates, at the same lag after the hour."
    ),
)
def rates(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Advance the window hour by hour and publish each snapshot."""
    start_us, end_us = hours(context)
    paths = deployment.paths
    contract = FeatureContract.from_dataset(paths.dataset)
    for published in advance_hours(
        deployment.warehouse, paths.snapshots, contract, paths.dataset, start_us, end_us
    ):
        snapshot = published.snapshot
        publish_snapshot(paths.serving, published.digest, snapshot.hour_us + HOUR_US)
        describe_hour(
            context,
            ["features", "rates"],
            snapshot.hour_us,
            {
                "entities in the snapshot": len(snapshot.keys),
                "impressions counted": published.impressions,
                "engagements counted": published.engagements,
                "snapshot": short(published.digest),
                "whole digest": whole({"snapshot": published.digest}),
            },
        )
    return dg.MaterializeResult()


@dg.multi_asset(
    name="inverse_dictionary",
    specs=[
        table_spec(
            INVERSE_DICTIONARY,
            deps=[dg.AssetDep(["events", "impressions"], partition_mapping=SAME_HOUR)],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def inverse_dictionary(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Record which feature values were first seen in each hour, and the slot they hash to."""
    start_us, end_us = hours(context)
    warehouse = deployment.warehouse
    contract = FeatureContract.from_dataset(deployment.dataset)
    for hour_us, tokens in write_dictionary(
        warehouse, contract, deployment.dataset, start_us, end_us
    ).items():
        describe_hour(
            context, ["features", "inverse_dictionary"], hour_us, {"dagster/row_count": tokens}
        )
    with warehouse.reader() as connection:
        shared = collisions(connection)
    return dg.MaterializeResult(
        metadata={
            "slots with several meanings": shared.num_rows,
            "share of all slots": rounded(shared.num_rows / 2**contract.bits),
            "fullest slots": table(
                ("slot", "up to five of its meanings"),
                [
                    (row["slot"], ", ".join(row["meanings"][:5]))
                    for row in shared.slice(0, 5).to_pylist()
                ],
            ),
        }
    )
