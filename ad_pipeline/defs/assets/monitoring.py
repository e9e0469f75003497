"""What watches the pipeline: drift, candidate replay, parity of what was served, late labels."""

import math

import dagster as dg
from pydantic import Field

from ad_pipeline.clocks import hours_between, timestamp
from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.automation import refresh_after_upstream, refresh_to_tell
from ad_pipeline.defs.failed_checks import failed_checks
from ad_pipeline.defs.hourly_metadata import describe_hour, rows_by_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture, rounded, short, table, whole
from ad_pipeline.monitoring.alerts.alert import SEVERITIES
from ad_pipeline.monitoring.alerts.alerts_of_log import PAGE as ALERTS_PAGE
from ad_pipeline.monitoring.alerts.alerts_of_log import record_alerts
from ad_pipeline.monitoring.delay_calibration import record_calibration
from ad_pipeline.monitoring.delay_report.delay_page import (
    SERVED_HEADINGS,
    cost_rows,
    facts_in_words,
    served_rows,
)
from ad_pipeline.monitoring.delay_report.recommendation import GoalReport, sentences
from ad_pipeline.monitoring.delay_report.report_of_log import PAGE, write_delay_report
from ad_pipeline.monitoring.delay_report.report_rows import facts_figures
from ad_pipeline.monitoring.drift.actions import measure_effects, record_action
from ad_pipeline.monitoring.drift.drift_of_log import DRAWN, PICTURE, record_drift
from ad_pipeline.monitoring.drift.drift_plots import finding
from ad_pipeline.monitoring.drift.verdicts_of_log import record_verdicts
from ad_pipeline.monitoring.label_quality import ALL, SUSPECT
from ad_pipeline.monitoring.label_quality_hours import described, record_label_quality
from ad_pipeline.monitoring.late_labels.benchmark import (
    FAMILIES,
    Asked,
    GoalMeasured,
    families_named,
    picture_file,
    record_benchmark,
)
from ad_pipeline.monitoring.late_labels.benchmark_plots import PRINTED, figures_of
from ad_pipeline.monitoring.parity.causes import ACT
from ad_pipeline.monitoring.parity.parity_plots import parity_picture
from ad_pipeline.monitoring.parity.recheck import record_parity
from ad_pipeline.monitoring.production.production_of_log import PAGE as PRODUCTION_PAGE
from ad_pipeline.monitoring.production.production_of_log import record_production
from ad_pipeline.monitoring.production.production_page import HEADINGS as PRODUCTION_HEADINGS
from ad_pipeline.monitoring.production.production_page import row_cells
from ad_pipeline.monitoring.production.rollback_drill import record_drills
from ad_pipeline.monitoring.replay import record_replay
from ad_pipeline.monitoring.serving_stress import latency_us, record_stress
from ad_pipeline.monitoring.tables import (
    ACTIONS,
    ALERTS,
    CANDIDATE_REPLAY,
    DELAY_BENCHMARK,
    DELAY_CALIBRATION,
    DELAY_REPORT,
    DRIFT,
    DRIFT_VERDICTS,
    LABEL_QUALITY,
    PARITY,
    PARITY_FINDINGS,
    PRODUCTION,
    ROLLBACK_DRILL,
    SERVING_OBJECTIVES,
    SERVING_STRESS,
    TABLES,
)
from ad_pipeline.settings import DelayReportSettings

SHOWN_FINDINGS = 40
"""Of a range of hours in the metadata; all of them stand in the table."""


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
    replayed = record_replay(deployment.warehouse, deployment.paths)
    context.log.info(
        f"candidate replay of {replayed.scores.logged_rows:,} scores: {replayed.scores.state}; "
        f"features {replayed.features.state}"
    )
    return dg.MaterializeResult(
        metadata={
            "scores": replayed.scores.state,
            "features": replayed.features.state,
            "requests replayed": replayed.requests,
            "scores that differ": sum(rate.mismatches for rate in replayed.scores.rates),
            "largest difference": rounded(replayed.scores.largest_difference),
            "log hours": f"{timestamp(replayed.start_us)} to {timestamp(replayed.end_us)}",
            "bundle": short(replayed.bundle_hash),
            "whole digest": whole({"bundle": replayed.bundle_hash}),
        }
    )


SERVED = [
    dg.AssetDep(name.split("."), partition_mapping=SAME_HOUR)
    for name in (
        *(
            table.name
            for table in HOURLY_TABLES
            if table.name in ("events.decisions", "events.impressions")
        ),
        "features.rates",  # a value that leaked from the hour itself is known by these
    )
]


@dg.multi_asset(
    name="parity",
    specs=[
        table_spec(PARITY, deps=SERVED),
        table_spec(PARITY_FINDINGS, deps=SERVED),
        table_spec(SERVING_OBJECTIVES, deps=SERVED),
    ],
    backfill_policy=SINGLE_RUN,
)
def parity(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Re-check every logged decision by the bundle and the snapshot that it names."""
    start_us, end_us = hours(context)
    rechecked = record_parity(deployment.warehouse, deployment.paths, start_us, end_us)
    figures: dict[int, dict[str, float | int | str]] = {
        hour_us: {"state": "no decisions yet", "decisions": 0}
        for hour_us in hours_between(start_us, end_us)
    }
    for hour in rechecked:
        if hour.decisions:
            figures[hour.hour_us] = {
                "state": hour.state,
                "decisions": hour.decisions,
                "scores that differ": hour.score_mismatches,
                "share of features that differ": hour.feature_mismatch_rate,
                "feature values missing from the log": hour.missing,
                "feature values only in the log": hour.extra,
                "findings": len(hour.findings),
            }
    for hour_us, shown in figures.items():
        describe_hour(context, ["monitoring", "parity"], hour_us, shown)
    decisions = sum(hour.decisions for hour in rechecked)
    found = [(hour.hour_us, finding) for hour in rechecked for finding in hour.findings]
    context.log.info(
        f"production parity: {decisions:,} decisions re-checked, {len(found):,} findings"
        if decisions
        else "production parity: no decisions yet"
    )
    yield dg.MaterializeResult(
        asset_key=["monitoring", "parity"], metadata={"picture": picture(parity_picture(rechecked))}
    )
    yield dg.MaterializeResult(
        asset_key=["monitoring", "parity_findings"],
        metadata={
            "findings": len(found),
            "newest findings": table(
                ("hour", "what", "cause", "differ", "of", "explained", "first", "to do"),
                [
                    (
                        timestamp(hour_us),
                        f"{each.comparison}: {each.name}",
                        each.explanation.cause,
                        each.offending,
                        each.rows,
                        f"{each.explanation.explained:.0%}",
                        ", ".join(each.example_keys[:1]),
                        ACT[each.explanation.cause],
                    )
                    for hour_us, each in reversed(found[-SHOWN_FINDINGS:])
                ],
            ),
        },
    )
    left = sum(each.comparison == "objectives" for _, each in found)
    yield dg.MaterializeResult(
        asset_key=["monitoring", "serving_objectives"], metadata={"objectives not kept": left}
    )


@dg.multi_asset(
    name="delay_calibration",
    specs=[
        table_spec(
            DELAY_CALIBRATION,
            deps=[
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["examples", "label_delays"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["learners", "delay_models"], partition_mapping=PREVIOUS_HOUR),
                dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON),
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def delay_calibration(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Hold what the models of delay said against the labels that matured next."""
    start_us, end_us = hours(context)
    rows = record_calibration(deployment.warehouse, deployment.paths, start_us, end_us)
    context.log.info(f"delay calibration: {rows:,} rows")
    written = dict(rows_by_hour(deployment.warehouse, DELAY_CALIBRATION, start_us, end_us))
    for hour_us in hours_between(start_us, end_us):
        shown = {"dagster/row_count": written.get(hour_us, 0)}
        describe_hour(context, ["monitoring", "delay_calibration"], hour_us, shown)
    return dg.MaterializeResult()


@dg.multi_asset(
    name="label_quality",
    specs=[
        table_spec(
            LABEL_QUALITY,
            deps=[
                dg.AssetDep(["examples", "label_states"], partition_mapping=HORIZON),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["events", "engagements"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON),
                dg.AssetDep(["monitoring", "label_quality"], partition_mapping=PREVIOUS_HOUR),
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def label_quality(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Say of each hour's labels, before anything learns them, whether they are as expected."""
    start_us, end_us = hours(context)
    figures: dict[int, dict[str, float | int | str]] = {
        hour_us: {"dagster/row_count": 0, "suspect parts": 0}
        for hour_us in hours_between(start_us, end_us)
    }
    for row in record_label_quality(deployment.warehouse, deployment.paths, start_us, end_us):
        shown = figures[row["hour_us"]]
        shown["dagster/row_count"] = int(shown["dagster/row_count"]) + 1
        if row["verdict"] in SUSPECT:
            shown["suspect parts"] = int(shown["suspect parts"]) + 1
            context.log.warning(described(row))
        if row["slice_of"] == ALL:
            goal = row["goal"]
            shown[label("verdict", goal)] = row["verdict"]
            shown[label("positives", goal)] = row["positives"]
            shown[label("positives due", goal)] = row["expected"]
            shown[label("share that came late", goal)] = row["late_share"]
            shown[label("retraction rate", goal)] = row["retraction_rate"]
            shown[label("coverage", goal)] = row["coverage"]
    for hour_us, shown in figures.items():
        describe_hour(context, ["monitoring", "label_quality"], hour_us, shown)
    return dg.MaterializeResult()


class DelayBenchmark(dg.Config):
    """How much of the benchmark to run; the default takes less than half an hour on two cores."""

    goals: list[str] = Field(default_factory=list, description="Empty: every goal.")
    # Of texts: Dagster's configuration knows no Literal.
    families: list[str] = Field(
        default=list(FAMILIES), description="linear (FTRL), deep (wide & deep)."
    )
    arms: list[str] = Field(default_factory=list, description="Empty: every arm.")
    seeds: int | None = Field(default=None, description="None: settings.delay_benchmark.seeds.")
    anchors: int | None = Field(default=None, description="None: as the settings say.")
    full: bool = Field(default=False, description="All anchors, ten seeds.")
    fresh: bool = Field(default=False, description="Run anew what is kept of earlier runs.")


@dg.multi_asset(
    name="delay_benchmark",
    specs=[
        table_spec(
            DELAY_BENCHMARK,
            deps=[["examples", "labelled_impressions"], ["events", "impressions"]],
            kinds={"numba"},
            on_demand=True,
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def delay_benchmark(
    context: dg.AssetExecutionContext, config: DelayBenchmark, deployment: DeploymentResource
):
    """Replay every way of learning from late labels on a sample of the log, and compare them."""
    asked = Asked(
        goals=tuple(config.goals),
        families=families_named(config.families),
        arms=tuple(config.arms),
        seeds=config.seeds,
        anchors=config.anchors,
        full=config.full,
        fresh=config.fresh,
    )
    paths = deployment.paths
    measured, left_out = record_benchmark(deployment.warehouse, paths, asked, context.log.info)
    metadata: dict[str, dg.MetadataValue | str | float] = {}
    for name, found in measured.items():
        metadata |= {
            label("picture", name): picture(found.picture),
            label("best arms", name): _best_arms(found),
            label("the picture as a file", name): dg.MetadataValue.path(
                str(picture_file(paths, name))
            ),
        }
        for family, each in found.families.items():
            metadata |= {
                label("log loss", name, family, arm): rounded(figure.value)
                for arm, figure in figures_of(each.figures, "log_loss").items()
            }
    metadata |= {label("left out", name): why for name, why in left_out.items()}
    return dg.MaterializeResult(metadata=metadata)


def _best_arms(found: GoalMeasured) -> dg.MarkdownMetadataValue:
    """Return every family's arms, the best first, as a table."""
    rows = []
    for family, each in found.families.items():
        columns = [figures_of(each.figures, metric) for metric, _, _ in PRINTED]
        for arm in sorted(columns[0], key=lambda name: columns[0][name].value):
            cells = [
                shape.format(column[arm].value) if arm in column else "-"
                for column, (_, _, shape) in zip(columns, PRINTED, strict=True)
            ]
            rows.append((family, arm, *cells))
    return table(("family", "arm", *(heading for _, heading, _ in PRINTED)), rows)


@dg.multi_asset(
    name="delay_report",
    specs=[
        table_spec(
            DELAY_REPORT,
            deps=[
                *(
                    table.name.split(".")
                    for table in HOURLY_TABLES
                    if table.name
                    in ("events.impressions", "events.engagements", "events.retractions")
                ),
                ["examples", "labelled_impressions"],
                ["examples", "label_states"],
                ["learners", "predictions"],
            ],
            kinds={"numba"},
            on_demand=True,
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def delay_report(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Say how late labels come, and replay every loss in made worlds of the same delays."""
    paths = deployment.paths
    written = write_delay_report(deployment.warehouse, paths)
    metadata: dict[str, dg.MetadataValue | float | str] = {}
    for report in written.goals:
        metadata |= _of_goal(report, paths.dataset.settings.delay_report)
        goal = report.facts.goal.name
        metadata[label("picture", goal)] = picture(written.pictures[goal])
        if report.found is not None:
            context.log.info(f"delay report, {goal}: recommended {report.found.arm.name}")
    if not written.goals:
        context.log.info("delay report: the log has no anchors yet")
        metadata["finding"] = "the log has no anchors yet"
    metadata["the page"] = dg.MetadataValue.path(str(paths.reports / PAGE))
    return dg.MaterializeResult(metadata=metadata)


def _of_goal(
    report: GoalReport, settings: DelayReportSettings
) -> dict[str, dg.MetadataValue | float | str]:
    """Return what the page of the asset shows of one goal."""
    goal = report.facts.goal.name
    shown: dict[str, dg.MetadataValue | float | str] = {}
    if report.found is not None and report.replayed is not None:
        shown[label("finding", goal)] = " ".join(sentences(report.found, report.replayed))
        shown[label("recommended", goal)] = report.found.arm.name
        shown[label("ways of learning", goal)] = table(*cost_rows(report.found, report.replayed))
    shown[label("of the log", goal)] = table(("of the log", "value"), facts_in_words(report.facts))
    shown[label("served scores by ad age", goal)] = table(
        SERVED_HEADINGS, served_rows(report.served, settings)
    )
    for name, estimate in facts_figures(report.facts).items():
        if math.isfinite(estimate.value):
            shown[label(name, goal)] = rounded(estimate.value)
    return shown


@dg.multi_asset(
    name="serving_stress",
    specs=[
        table_spec(
            SERVING_STRESS,
            deps=[
                ["events", "impressions"],
                ["examples", "labelled_impressions"],
                ["features", "rates"],
                ["serving", "current"],
            ],
            on_demand=True,
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def serving_stress(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Put the serving bundle under the log's busiest minutes, some times as fast."""
    found = record_stress(deployment.warehouse, deployment.paths, context.log.info)
    rows = [
        (
            each.goal,
            each.scenario.name,
            f"{latency_us(each.answered, 0.5):,.0f}",
            f"{latency_us(each.answered, 0.99):,.0f}",
            f"{each.loss:.4f}",
            f"{each.loss_as_logged:.4f}",
            f"{each.labelled:,}",
            ", ".join(f"{why} ({n:,})" for why, n in each.answered.fallbacks.items()) or "none",
        )
        for each in found
    ]
    headings = (
        "goal", "scenario", "median, us", "99 of 100, us", "log loss", "as logged", "labels",
        "fallbacks",
    )  # fmt: skip
    return dg.MaterializeResult(
        metadata={
            "scenarios": table(headings, rows),
            **{
                label("log loss over as logged", each.goal, each.scenario.name): rounded(
                    each.loss / each.loss_as_logged
                )
                for each in found
                if each.labelled
            },
            **{
                label("latency of 99 in 100, us", each.scenario.name): rounded(
                    latency_us(each.answered, 0.99)
                )
                for each in found
            },
        }
    )


SHOWN_INTERVALS = 20
"""On the asset's page, the newest; the page in the reports folder has all."""


@dg.multi_asset(
    name="production",
    specs=[
        table_spec(
            PRODUCTION,
            deps=[
                ["serving", "current"],
                *(
                    table.name.split(".")
                    for table in HOURLY_TABLES
                    if table.name == "events.decisions"
                ),
            ],
            kinds={"matplotlib"},
        )._replace(automation_condition=refresh_after_upstream())
    ],
    backfill_policy=SINGLE_RUN,
)
def production(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Read the history of promotions beside the decisions that were logged."""
    paths = deployment.paths
    rows = record_production(deployment.warehouse, paths)
    now = rows[-1] if rows else None
    context.log.info(f"production: {len(rows)} intervals")
    served = [row["hours_to_serving"] for row in rows if row["hours_to_serving"] is not None]
    return dg.MaterializeResult(
        metadata={
            "now serving": short(now["bundle_hash"] if now else None),
            "why": now["why"] if now else "nothing was ever promoted",
            "intervals": len(rows),
            "the newest": table(
                PRODUCTION_HEADINGS, [row_cells(row) for row in reversed(rows[-SHOWN_INTERVALS:])]
            ),
            "the page": dg.MetadataValue.path(str(paths.reports / PRODUCTION_PAGE)),
            **({"log hours from model hour to serving": rounded(served[-1])} if served else {}),
        }
    )


class RollbackDrill(dg.Config):
    """Which faults to plant in the copy."""

    faults: list[str] = Field(
        default_factory=list,
        description="flipped_byte, canary_off, poisoned_model, torn_pointer, stale_snapshot; "
        "empty: all of them.",
    )


@dg.multi_asset(
    name="rollback_drill",
    specs=[
        table_spec(ROLLBACK_DRILL, deps=[["serving", "current"]], kinds={"numpy"}, on_demand=True)
    ],
    backfill_policy=SINGLE_RUN,
)
def rollback_drill(
    context: dg.AssetExecutionContext, config: RollbackDrill, deployment: DeploymentResource
):
    """Plant faults in a copy of what serves, and see each refused, undone and timed."""
    steps = record_drills(deployment.warehouse, deployment.paths, config.faults)
    for step in steps:
        context.log.info(f"drill {step.fault}: {step.name}: {step.said}")
    failed = [step for step in steps if not step.passed]
    return dg.MaterializeResult(
        metadata={
            "finding": "; ".join(f"{step.fault}, {step.name}: {step.said}" for step in failed)
            or "every fault was refused and undone, and the same requests score as before",
            "steps": table(
                ("fault", "step", "came out as it must", "what", "seconds"),
                [
                    (s.fault, s.name, "yes" if s.passed else "NO", s.said, f"{s.seconds:.3f}")
                    for s in steps
                ],
            ),
            **{
                label("seconds to recover", step.fault): rounded(step.seconds)
                for step in steps
                if step.name == "recover"
            },
        }
    )


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
            "the page": dg.MetadataValue.path(str(paths.reports / ALERTS_PAGE)),
        }
    )


def _shown(value: float | None) -> str:
    return "not drawn" if value is None else f"{value:.4f}"
