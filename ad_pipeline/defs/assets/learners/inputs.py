"""What several learners read, each hour."""

import dagster as dg

from ad_pipeline.defs.partitions import DATASET, HORIZON, SAME_HOUR

PUBLISHED = [["features", "rates"]]
if DATASET.settings.user_vectors is not None:
    PUBLISHED.append(["embeddings", "user_vectors"])
"""What impressions look up by the hour, beside their own columns: in training and in serving."""

LOOKED_UP = [dg.AssetDep(key, partition_mapping=HORIZON) for key in PUBLISHED]
IMPRESSIONS = dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON)
LEFT_OUT = [
    dg.AssetDep(["learners", "quarantined_hours"], partition_mapping=SAME_HOUR),
    dg.AssetDep(["learners", "quarantined_slices"], partition_mapping=SAME_HOUR),
]
