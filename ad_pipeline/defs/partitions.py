"""The one hourly partition of every partitioned asset, and the mappings back in time.

Partitions are log hours: the hour in which our log received a row, emitted an example or saw a
label mature. Mappings look backwards only (design: H, H-1, or H minus a window and its lateness).
Per-asset choices of policy or condition belong in ``automation.py``.
"""

import warnings

import dagster as dg

from ad_pipeline.clocks import HOUR_US, datetime_of, hour_of
from ad_pipeline.datasets import Dataset, deployment_from_env

# One notice per decorator would bury what a reader of the log looks for; both features are used
# on purpose, and the tests run them.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


def hourly_partitions(dataset: Dataset) -> dg.HourlyPartitionsDefinition:
    """Return the log hours of a dataset, from its start to the last hour a label matures in."""
    end_us = dataset.last_hour_end_us
    return dg.HourlyPartitionsDefinition(
        start_date=datetime_of(hour_of(dataset.start_us)),
        end_date=None if end_us is None else datetime_of(end_us),
        timezone="UTC",
    )


DATASET = deployment_from_env().dataset
HOURLY = hourly_partitions(DATASET)
SINGLE_RUN = dg.BackfillPolicy.single_run()

SAME_HOUR = dg.TimeWindowPartitionMapping()
PREVIOUS_HOUR = dg.TimeWindowPartitionMapping(
    start_offset=-1, end_offset=-1, allow_nonexistent_upstream_partitions=True
)
HORIZON = dg.TimeWindowPartitionMapping(
    start_offset=-DATASET.maturity_us // HOUR_US - 1,
    end_offset=0,
    allow_nonexistent_upstream_partitions=True,
)
"""Back over the longest chain of windows and its lateness, the current hour included."""


def hours(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[int, int]:
    """Return the log hours of this run as ``[start_us, end_us)``, microseconds."""
    window = context.partition_time_window
    return (
        int(window.start.timestamp()) * 1_000_000,
        int(window.end.timestamp()) * 1_000_000,
    )
