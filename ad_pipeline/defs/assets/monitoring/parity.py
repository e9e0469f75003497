"""Two parities, never one for the other: of the candidate before it serves, of what was served."""

import dagster as dg

from ad_pipeline.clocks import hours_between, timestamp
from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.assets.learners.inputs import PUBLISHED
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import picture, rounded, short, table, whole
from ad_pipeline.monitoring.parity.causes import ACT
from ad_pipeline.monitoring.parity.parity_plots import parity_picture
from ad_pipeline.monitoring.parity.recheck import record_parity
from ad_pipeline.monitoring.replay import record_replay
from ad_pipeline.monitoring.tables import (
    CANDIDATE_REPLAY,
    PARITY,
    PARITY_FINDINGS,
    SERVING_OBJECTIVES,
)

SHOWN_FINDINGS = 40
"""Of a range of hours in the metadata; all of them stand in the table."""


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
    dg.AssetDep(key, partition_mapping=SAME_HOUR)
    for key in (
        *(
            table.name.split(".")
            for table in HOURLY_TABLES
            if table.name in ("events.decisions", "events.impressions")
        ),
        *PUBLISHED,  # a value that leaked from the hour itself is known by these
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
