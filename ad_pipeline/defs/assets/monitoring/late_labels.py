"""Late labels: models of delay, the benchmark of losses, the report."""

import math

import dagster as dg
from pydantic import Field

from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.hourly_metadata import describe_rows
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture, rounded, table
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
from ad_pipeline.monitoring.late_labels.benchmark import (
    FAMILIES,
    Asked,
    GoalMeasured,
    families_named,
    picture_file,
    record_benchmark,
)
from ad_pipeline.monitoring.late_labels.benchmark_plots import PRINTED, figures_of
from ad_pipeline.monitoring.tables import (
    DELAY_BENCHMARK,
    DELAY_CALIBRATION,
    DELAY_REPORT,
)
from ad_pipeline.settings import DelayReportSettings


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
    describe_rows(context, deployment.warehouse, DELAY_CALIBRATION, start_us, end_us)
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
