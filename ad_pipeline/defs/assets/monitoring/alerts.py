"""What is wrong now, out of all that the other assets found."""

import dagster as dg

from ad_pipeline.clocks import timestamp
from ad_pipeline.defs.automation import refresh_to_tell
from ad_pipeline.defs.failed_checks import failed_checks
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import table
from ad_pipeline.monitoring.alerts.alert import SEVERITIES
from ad_pipeline.monitoring.alerts.alerts_of_log import PAGE, record_alerts
from ad_pipeline.monitoring.tables import ALERTS


@dg.multi_asset(
    name="alerts",
    specs=[
        table_spec(
            ALERTS,
            deps=[
                ["learners", "online_model"],
                ["learners", "quarantined_hours"],
                ["monitoring", "drift"],
                ["monitoring", "drift_verdicts"],
                ["monitoring", "parity_findings"],
                ["monitoring", "label_quality"],
                ["monitoring", "performance_estimate"],
                ["monitoring", "delay_calibration"],
                ["serving", "current"],
            ],
        )._replace(automation_condition=refresh_to_tell())
    ],
    backfill_policy=SINGLE_RUN,
)
def alerts(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Ask every source what is wrong now; the sensor deliver_alerts tells people."""
    paths = deployment.paths
    found = record_alerts(deployment.warehouse, paths, failed_checks(context.instance))
    counts = {each: sum(a.severity == each for a in found) for each in SEVERITIES}
    context.log.info(f"alerts: {', '.join(f'{n} {each}' for each, n in counts.items())}")
    return dg.MaterializeResult(
        metadata={
            "finding": "; ".join(f"{a.severity}: {a.subject}" for a in found[:5])
            or "nothing is wrong",
            **counts,
            "what to do": table(
                ("severity", "subject", "found", "since", "to act"),
                [(a.severity, a.subject, a.found, timestamp(a.since_us), a.act) for a in found],
            ),
            "the page": dg.MetadataValue.path(str(paths.reports / PAGE)),
        }
    )
