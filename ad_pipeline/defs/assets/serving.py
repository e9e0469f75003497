"""What leaves the pipeline: the candidate bundle, and the pointer to the one that serves."""

from functools import partial

import dagster as dg

from ad_pipeline.clocks import timestamp
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, rounded, short, whole
from ad_pipeline.features.as_served import newest_requests, read_impressions
from ad_pipeline.learners.ensembles import held_out_forecasts
from ad_pipeline.monitoring.replay import replay_passed
from ad_pipeline.serving.candidate import build_candidate, judge_candidate, promote_candidate
from ad_pipeline.serving.promotion import history


@dg.asset(
    key=["serving", "bundle"],
    group_name="serving",
    kinds={"numpy"},
    backfill_policy=SINGLE_RUN,
    deps=[
        ["learners", "online_model"],
        ["learners", "batch_model"],
        ["learners", "ensemble"],
        ["features", "rates"],
        ["features", "inverse_dictionary"],
    ],
    automation_condition=refresh_after_upstream(),
    description=(
        "The candidate bundle: the newest experts, their mixture and calibration, and the feature "
        "contract, in one folder with the SHA-256 of every file and canary requests. It serves "
        "only after candidate replay agrees bit for bit and promotion lets it."
    ),
)
def bundle(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Assemble the newest state of every goal into a bundle."""
    built = build_candidate(deployment.paths, *newest_requests(deployment.warehouse))
    size = sum(path.stat().st_size for path in built.path.iterdir())
    context.log.info(f"bundle {short(built.digest)} with {', '.join(g.goal for g in built.goals)}")
    return dg.MaterializeResult(
        metadata={
            "bundle": short(built.digest),
            "whole digest and folder": whole({"bundle": built.digest, "folder": str(built.path)}),
            "bytes": size,
            "labels known up to": timestamp(built.label_watermark_us),
            **{
                label(f"{name} hours", goal): (
                    f"{timestamp(start_us)} to {timestamp(end_us)} by maturity"
                )
                for goal, ranges in built.fitted_ranges.items()
                for name, (start_us, end_us) in ranges.items()
            },
        }
    )


@dg.asset(
    key=["serving", "current"],
    group_name="serving",
    kinds={"file"},
    backfill_policy=SINGLE_RUN,
    deps=[["serving", "bundle"], ["monitoring", "candidate_replay"], ["evaluation", "report"]],
    automation_condition=refresh_after_upstream(),
    description=(
        "The pointer that a bidder follows. It moves only here, atomically, and only to a bundle "
        "whose replay agreed and which beats or ties the current one on matured rows; a worse one "
        "is refused and the old one keeps serving. `ad_pipeline rollback` moves it back."
    ),
)
def current(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Compare the candidate with what serves, and move the pointer if it is no worse."""
    paths = deployment.paths
    warehouse = deployment.warehouse

    judged = judge_candidate(
        paths, held_out_forecasts(warehouse, paths), partial(read_impressions, warehouse)
    )
    promoted, reason = promote_candidate(
        paths, judged, replay_passed=replay_passed(warehouse, judged.digest)
    )
    context.log.info(
        f"bundle {short(judged.digest)} {'promoted' if promoted else 'refused'}: {reason}"
    )
    moves = history(paths.serving)
    return dg.MaterializeResult(
        metadata={
            "candidate was promoted": promoted,
            "why": reason,
            "candidate": short(judged.digest),
            "now serving": short(moves[-1].digest) if moves else "nothing yet",
            "whole digests": whole(
                {"candidate": judged.digest, "serving": moves[-1].digest if moves else None}
            ),
            "moves so far": len(moves),
            **{
                label("relative log loss", goal): rounded(verdict.difference)
                for goal, verdict in judged.verdicts.items()
                if verdict.difference == verdict.difference
            },
        }
    )
