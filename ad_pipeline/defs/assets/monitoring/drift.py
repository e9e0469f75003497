"""Drift, its verdicts, and what was done about it."""

import dagster as dg
from pydantic import Field

from ad_pipeline.clocks import timestamp
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture, rounded, table
from ad_pipeline.monitoring.drift.actions import measure_effects, record_action
from ad_pipeline.monitoring.drift.drift_of_log import DRAWN, PICTURE, record_drift
from ad_pipeline.monitoring.drift.drift_plots import finding
from ad_pipeline.monitoring.drift.verdicts_of_log import record_verdicts
from ad_pipeline.monitoring.tables import (
    ACTIONS,
    DRIFT,
    DRIFT_VERDICTS,
    TABLES,
)


@dg.multi_asset(
    name="drift",
    specs=[table_spec(DRIFT, deps=[["events", "impressions"]], kinds={"evidently"})],
    backfill_policy=SINGLE_RUN,
)
def drift(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Compare the log's last hours with the same hours before; Evidently draws what is found."""
    paths = deployment.paths
    recorded = record_drift(deployment.warehouse, paths)
    if recorded is None:
        context.log.info("drift: the log has no earlier hours to compare with yet")
        return dg.MaterializeResult(
            metadata={"finding": "the log has no earlier hours to compare with yet"}
        )
    compared, numbers = recorded.compared, recorded.evidently
    verdict = compared.verdict
    drifted = [column.column for column in verdict.columns if column.drifted]
    context.log.info(f"drift: {', '.join(drifted) or 'none'} (highest PSI {verdict.psi:.3f})")
    return dg.MaterializeResult(
        metadata={
            "finding": finding(verdict),
            "picture": picture(recorded.picture),
            "compared": compared.in_words,
            "columns drifted": len(drifted),
            "highest index": rounded(verdict.psi),
            "columns": table(
                ("column", "index", "noise stays below", "alarm from", "Evidently's", "verdict"),
                [
                    (
                        c.column,
                        f"{c.psi:.4f}",
                        f"{c.noise_limit:.4f}",
                        f"{c.threshold:g}",
                        _shown(numbers.get(c.column)),
                        "drifted" if c.drifted else "as before",
                    )
                    for c in verdict.columns
                ],
            ),
            "Evidently's report": dg.MetadataValue.path(str(paths.reports / DRAWN)),
            "the picture as a file": dg.MetadataValue.path(str(paths.reports / PICTURE)),
            **{label("index", column.column): rounded(column.psi) for column in verdict.columns},
        }
    )


@dg.multi_asset(
    name="drift_verdicts",
    specs=[
        table_spec(
            DRIFT_VERDICTS,
            deps=[
                ["monitoring", "drift"],
                ["examples", "labelled_impressions"],
                ["learners", "predictions"],
                ["learners", "grid_selection"],
            ],
            kinds={"river"},
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def drift_verdicts(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Say of every kind of drift whether it is there, what is behind it and which action fits."""
    hour_us, found = record_verdicts(deployment.warehouse, deployment.paths)
    drifted = [one for one in found if one.drifted]
    for one in drifted:
        context.log.info(f"drift: {one.kind} {one.subject}: {one.cause.says}")
    return dg.MaterializeResult(
        metadata={
            "finding": "; ".join(f"{one.cause.says} ({one.subject or 'all'})" for one in drifted)
            or "nothing drifted",
            "as of the end of log hour": timestamp(hour_us),
            "kinds drifted": len(drifted),
            "verdicts": table(
                ("kind", "of", "effect", "counts from", "verdict", "what fits"),
                [
                    (
                        one.kind,
                        one.subject or "all",
                        f"{one.value:.3f}",
                        f"{one.threshold:g}",
                        one.cause.says if one.drifted else "as before",
                        ", ".join(one.actions) or ("only told" if one.drifted else ""),
                    )
                    for one in found
                ],
            ),
        }
    )


class ActionTaken(dg.Config):
    """What this run does about drift; nothing by default."""

    action: str = Field(default="", description="Empty: effects are measured, nothing is taken.")
    hour_us: int = Field(default=0, description="Log hour after which it is taken.")
    cause: str = ""
    verdict_hour_us: int = Field(default=0, description="Of the verdict that it follows.")
    run_key: str = ""
    evidence: str = Field(default="{}", description="What it rests on, JSON.")


@dg.multi_asset(
    name="actions",
    specs=[
        table_spec(
            ACTIONS,
            deps=[
                ["monitoring", "drift_verdicts"],
                ["examples", "labelled_impressions"],
                ["learners", "predictions"],
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def actions(context: dg.AssetExecutionContext, config: ActionTaken, deployment: DeploymentResource):
    """Record what this run does about drift, and measure what earlier actions did to the loss."""
    warehouse = deployment.warehouse
    warehouse.create(TABLES)
    if config.action:
        with warehouse.writer() as connection:
            record_action(
                connection,
                config.action,
                config.hour_us,
                config.cause,
                config.verdict_hour_us,
                config.run_key,
                config.evidence,
            )
        context.log.info(f"{config.action}: {config.cause}")
    metadata: dict[str, float | int | str] = {"taken": config.action or "nothing"}
    measured = measure_effects(warehouse, deployment.paths.dataset)
    metadata["effects measured"] = len(measured)
    for (hour_us, action), effect in measured.items():
        metadata[label("change of log loss", f"{action} after {timestamp(hour_us)}")] = (
            f"{effect.change:+.5f} ({effect.low:+.5f} to {effect.high:+.5f})"
        )
    return dg.MaterializeResult(metadata=metadata)


def _shown(value: float | None) -> str:
    return "not drawn" if value is None else f"{value:.4f}"
