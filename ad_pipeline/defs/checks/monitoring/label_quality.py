"""Checks of labels."""

import dagster as dg

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.monitoring.label_quality_hours import described, suspect_labels

LABELS = ["monitoring", "label_quality"]


@dg.asset_check(
    asset=LABELS,
    name="labels_are_as_due",
    description=(
        "In the last hours no goal and no part of its anchors had labels that stalled, jumped, "
        "came late or were taken back a lot."
    ),
)
def labels_are_as_due(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Name each suspect hour of a day with the line to act; the breaker is what stops learning."""
    settings = deployment.paths.dataset.settings.label_quality
    with deployment.warehouse.reader() as connection:
        since_us = sealed_until(connection) - settings.excluded_hours * HOUR_US
    suspect = suspect_labels(deployment.warehouse, since_us)
    return found(
        "labels_are_as_due",
        LABELS,
        not suspect,
        "\n".join(map(described, suspect))
        or f"no label is suspect in the last {settings.excluded_hours} hours",
        warns=True,
        **{"suspect parts and hours": len(suspect)},
    )
