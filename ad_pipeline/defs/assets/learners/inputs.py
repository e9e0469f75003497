"""What several learners read, each hour."""

import dagster as dg

from ad_pipeline.defs.partitions import HORIZON, SAME_HOUR

RATES = dg.AssetDep(["features", "rates"], partition_mapping=HORIZON)
IMPRESSIONS = dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON)
LEFT_OUT = [
    dg.AssetDep(["learners", "quarantined_hours"], partition_mapping=SAME_HOUR),
    dg.AssetDep(["learners", "quarantined_slices"], partition_mapping=SAME_HOUR),
]
