"""What serves: its history, its drill, its load."""

import dagster as dg
from pydantic import Field

from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.assets.learners.inputs import PUBLISHED
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, rounded, short, table
from ad_pipeline.monitoring.production.production_of_log import PAGE, record_production
from ad_pipeline.monitoring.production.production_page import HEADINGS, row_cells
from ad_pipeline.monitoring.production.rollback_drill import record_drills
from ad_pipeline.monitoring.serving_stress import latency_us, record_stress
from ad_pipeline.monitoring.tables import (
    PRODUCTION,
    ROLLBACK_DRILL,
    SERVING_STRESS,
)


@dg.multi_asset(
    name="serving_stress",
    specs=[
        table_spec(
            SERVING_STRESS,
            deps=[
                ["events", "impressions"],
                ["examples", "labelled_impressions"],
                *PUBLISHED,
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
                HEADINGS, [row_cells(row) for row in reversed(rows[-SHOWN_INTERVALS:])]
            ),
            "the page": dg.MetadataValue.path(str(paths.reports / PAGE)),
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
