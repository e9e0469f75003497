"""What watches the pipeline: drift of the inputs, candidate replay, parity of what was served."""

import dagster as dg
import pyarrow as pa

from ad_pipeline.clocks import hours_between, timestamp
from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.monitoring.drift import evidently_report
from ad_pipeline.monitoring.drift_of_log import compare_log
from ad_pipeline.monitoring.production_parity import recheck_decisions
from ad_pipeline.monitoring.replay import replay_candidate
from ad_pipeline.monitoring.tables import (
    CANDIDATE_REPLAY,
    DRIFT,
    PRODUCTION_PARITY,
    TABLES,
    candidate_replay_rows,
    drift_rows,
)
from ad_pipeline.warehouse import replace_hours


@dg.multi_asset(
    name="drift",
    specs=[table_spec(DRIFT, deps=[["events", "impressions"]], kinds={"evidently"})],
    backfill_policy=SINGLE_RUN,
)
def drift(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Compare the log's last hours with the same hours before; Evidently draws what is found."""
    paths = deployment.paths
    settings = paths.dataset.settings.drift
    warehouse = deployment.warehouse
    warehouse.create(TABLES)
    compared = compare_log(warehouse, paths.dataset)
    if compared is None:
        context.log.info("drift: the log has no earlier hours to compare with yet")
        return dg.MaterializeResult(metadata={"verdict": "no earlier hours to compare with"})
    verdict = compared.verdict
    found = drift_rows(verdict, compared.reference, compared.start_us, compared.end_us)
    with warehouse.writer() as connection:
        connection.register("found", found)
        connection.execute(
            f"DELETE FROM {DRIFT.name} WHERE current_start_us = $start_us "
            "AND current_end_us = $end_us",
            {"start_us": compared.start_us, "end_us": compared.end_us},
        )
        connection.execute(f"INSERT INTO {DRIFT.name} BY NAME SELECT * FROM found")
    report = paths.reports / "drift.html"
    # The index decides in a fraction of a second whether Evidently's ten are worth drawing.
    numbers: dict[str, float] = {}
    if verdict.drifted or not report.exists():
        numbers = evidently_report(
            compared.before, compared.now, compared.columns, settings, report
        )
    drifted = [column.column for column in verdict.columns if column.drifted]
    context.log.info(f"drift: {', '.join(drifted) or 'none'} (highest PSI {verdict.psi:.3f})")
    listed = "\n".join(
        f"| {c.column} | {c.psi:.4f} | {_shown(numbers.get(c.column))} | "
        f"{'drifted' if c.drifted else ''} |"
        for c in verdict.columns
    )
    return dg.MaterializeResult(
        metadata={
            "drifted": verdict.drifted,
            "drifted_columns": len(drifted),
            "highest_psi": verdict.psi,
            "current": f"{timestamp(compared.start_us)} to {timestamp(compared.end_us)}",
            "reference": f"{len(compared.reference.hours_us)} hours, {compared.reference.rule}",
            "columns": dg.MetadataValue.md(
                f"| column | PSI | Evidently's PSI | |\n|---|---|---|---|\n{listed}"
            ),
            "report": dg.MetadataValue.path(str(report)),
            **{f"psi/{column.column}": column.psi for column in verdict.columns},
        }
    )


@dg.multi_asset(
    name="candidate_replay",
    specs=[
        table_spec(
            CANDIDATE_REPLAY, deps=[["serving", "bundle"], ["events", "impressions"]]
        )._replace(automation_condition=refresh_after_upstream())
    ],
    backfill_policy=SINGLE_RUN,
)
def candidate_replay(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Score the last closed day's raw requests in a fresh process, and compare to the bit."""
    paths = deployment.paths
    warehouse = deployment.warehouse
    warehouse.create(TABLES)
    replayed = replay_candidate(warehouse, paths)
    rows = candidate_replay_rows(
        replayed.bundle_hash,
        replayed.start_us,
        replayed.end_us,
        features=replayed.features,
        scores=replayed.scores,
    )
    with warehouse.writer() as connection:
        connection.register("replayed", rows)
        connection.execute(
            f"DELETE FROM {CANDIDATE_REPLAY.name} WHERE bundle_hash = $bundle",
            {"bundle": replayed.bundle_hash},
        )
        connection.execute(f"INSERT INTO {CANDIDATE_REPLAY.name} BY NAME SELECT * FROM replayed")
    context.log.info(
        f"candidate replay of {replayed.scores.logged_rows:,} scores: {replayed.scores.state}; "
        f"features {replayed.features.state}"
    )
    return dg.MaterializeResult(
        metadata={
            "bundle": replayed.bundle_hash,
            "requests": replayed.requests,
            "scores": replayed.scores.state,
            "features": replayed.features.state,
            "score_mismatches": sum(rate.mismatches for rate in replayed.scores.rates),
            "largest_difference": replayed.scores.largest_difference,
            "replayed": f"{timestamp(replayed.start_us)} to {timestamp(replayed.end_us)}",
        }
    )


@dg.multi_asset(
    name="production_parity",
    specs=[
        table_spec(
            PRODUCTION_PARITY,
            deps=[
                dg.AssetDep(table.name.split("."), partition_mapping=SAME_HOUR)
                for table in HOURLY_TABLES
                if table.name in ("events.decisions", "events.impressions")
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def production_parity(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Re-check every logged decision by the bundle and the snapshot that it names."""
    start_us, end_us = hours(context)
    warehouse = deployment.warehouse
    warehouse.create(TABLES)
    parts: list[pa.Table] = []
    decisions = 0
    figures: dict[int, dict[str, float | int | str]] = {
        hour_us: {"state": "no decisions yet"} for hour_us in hours_between(start_us, end_us)
    }
    for hour in recheck_decisions(warehouse, deployment.paths, start_us, end_us):
        parts.append(hour.rows)
        decisions += hour.decisions
        if hour.decisions:
            figures[hour.hour_us] = {
                "state": hour.state,
                "decisions": hour.decisions,
                "score_mismatches": hour.score_mismatches,
                "feature_mismatch_rate": hour.feature_mismatch_rate,
                "missing": hour.missing,
                "extra": hour.extra,
            }
    with warehouse.writer() as connection:
        connection.register("checked", pa.concat_tables(parts))
        replace_hours(connection, PRODUCTION_PARITY, "SELECT * FROM checked", {}, start_us, end_us)
    for hour_us, shown in figures.items():
        describe_hour(context, ["monitoring", "production_parity"], hour_us, shown)
    context.log.info(
        f"production parity: {decisions:,} decisions re-checked"
        if decisions
        else "production parity: no decisions yet"
    )
    return dg.MaterializeResult()


def _shown(value: float | None) -> str:
    return "not drawn" if value is None else f"{value:.4f}"
