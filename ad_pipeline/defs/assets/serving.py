"""What leaves the pipeline: the candidate bundle, and the pointer to the one that serves."""

from functools import partial

import dagster as dg

from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.defs.assets.learners.inputs import PUBLISHED
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.partitions import DATASET, SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, rounded, short, whole
from ad_pipeline.features.as_served import (
    matured_impressions,
    newest_requests,
    read_impressions,
)
from ad_pipeline.features.dictionary import tokens_of_slots
from ad_pipeline.learners.ensemble.ensembles import held_out_forecasts
from ad_pipeline.learners.online.grid_hours import chosen_configurations
from ad_pipeline.monitoring.parity.recheck import scores_not_given_again
from ad_pipeline.monitoring.replay import replay_passed
from ad_pipeline.serving.bundle import Bundle
from ad_pipeline.serving.candidate import (
    build_candidate,
    index_of_hour,
    judge_candidate,
    promote_candidate,
)
from ad_pipeline.serving.production import seconds_to_pointer
from ad_pipeline.serving.promotion import history
from ad_pipeline.serving.retrieval import PART

CANDIDATES = [] if DATASET.settings.user_vectors is None else [["embeddings", "candidates"]]
"""Of ads for users; the bundle carries what answers them."""


@dg.asset(
    key=["serving", "bundle"],
    group_name="serving",
    kinds={"numpy"},
    backfill_policy=SINGLE_RUN,
    deps=[
        ["learners", "online_model"],
        ["learners", "grid_selection"],
        ["learners", "batch_model"],
        ["learners", "ensemble"],
        ["examples", "labelled_impressions"],  # the fallback ladder is fitted on them
        *PUBLISHED,
        ["features", "inverse_dictionary"],
        *CANDIDATES,
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
    hour_us, requests = newest_requests(deployment.warehouse)
    index, why_not = index_of_hour(deployment.paths.vectors, hour_us) if CANDIDATES else (None, "")
    built = build_candidate(
        deployment.paths,
        hour_us,
        requests,
        read_tokens=partial(tokens_of_slots, deployment.warehouse, hour_us + HOUR_US),
        read_matured=partial(
            matured_impressions,
            deployment.warehouse,
            deployment.paths.dataset.settings,
            hour_us + HOUR_US,
        ),
        configurations=chosen_configurations(
            deployment.warehouse, deployment.paths, hour_us + HOUR_US
        ),
        candidate_index=index,
    )
    size = sum(path.stat().st_size for path in built.path.iterdir())
    context.log.info(f"bundle {short(built.digest)} with {', '.join(g.goal for g in built.goals)}")
    return dg.MaterializeResult(
        metadata={
            "bundle": short(built.digest),
            "whole digest and folder": whole({"bundle": built.digest, "folder": str(built.path)}),
            "bytes": size,
            **{
                label("calibration version", models.goal): short(
                    models.ensemble.calibration.version
                )
                for models in built.goals
                if models.ensemble is not None
            },
            "labels known up to": timestamp(built.label_watermark_us),
            **_weights_shown(built),
            **_ladders_shown(built),
            **(_candidates_shown(built, why_not) if CANDIDATES else {}),
            **{
                label(f"{name} hours", goal): (
                    f"{timestamp(start_us)} to {timestamp(end_us)} by maturity"
                )
                for goal, ranges in built.fitted_ranges.items()
                for name, (start_us, end_us) in ranges.items()
            },
        }
    )


def _ladders_shown(built: Bundle) -> dict[str, str | float]:
    """Return what answers a request whose inputs are missing, by goal."""
    shown: dict[str, str | float] = {}
    for models in built.goals:
        goal, ladder = models.goal, models.ladder
        if ladder is None:
            shown[label("fallback ladder", goal)] = "none: too few matured labels"
            continue
        shown[label("base rate answered", goal)] = rounded(ladder.prior)
        shown[label("columns with rates, the best first", goal)] = ", ".join(ladder.columns)
    return shown


def _candidates_shown(built: Bundle, why_not: str) -> dict[str, int | str]:
    """Return what the bundle answers candidates of ads from."""
    carried = built.candidate_index
    if carried is None:
        return {"candidates of ads": f"none: {why_not}"}
    return {
        "candidates of ads: users": len(carried.index.ids),
        "candidates of ads: ads": len(carried.index.ad_texts),
        "candidates of ads: as of": timestamp(carried.end_us - 1),
        "candidates of ads: encoder": short(carried.version),
        "candidates of ads: bytes": sum(
            path.stat().st_size for path in built.path.glob(f"{PART}.*")
        ),
    }


def _weights_shown(built: Bundle) -> dict[str, int | float | str]:
    """Return what the export of the weights saved, and how often slots are shared, by goal."""
    shown: dict[str, int | float | str] = {}
    audit = built.manifest["audit"]
    for models in built.goals:
        goal, weights = models.goal, models.online
        shown[label("exported slots", goal)] = weights.coordinates
        shown[label("bytes of weights", goal)] = weights.nbytes
        shown[label("bytes if dense", goal)] = weights.size.dense_bytes
        shown[label("bytes if without zeros", goal)] = weights.size.exact_bytes
        shown[label("bytes if q2.13", goal)] = weights.size.fixed_point_bytes
        if audit is not None:
            collided = audit["collisions"][goal]
            shown[label("exported slots in collision", goal)] = collided
            shown[label("share in collision", goal)] = rounded(
                collided / max(weights.coordinates, 1)
            )
    return shown


@dg.asset(
    key=["serving", "current"],
    group_name="serving",
    kinds={"file"},
    backfill_policy=SINGLE_RUN,
    deps=[["serving", "bundle"], ["monitoring", "candidate_replay"], ["evaluation", "report"]],
    automation_condition=refresh_after_upstream(),
    description=(
        "The pointer that a bidder follows. It moves only here, atomically, and only to a bundle "
        "whose replay agreed and which beats or ties the current one on matured rows, while the "
        "newest served scores are given again; a worse one "
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
        paths,
        judged,
        replay_passed=replay_passed(warehouse, judged.digest),
        unlike_what_was_served=scores_not_given_again(
            warehouse, paths.dataset.settings.parity.guard_hours
        ),
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
            **(
                {
                    label("seconds from checkpoint to pointer", goal): rounded(seconds)
                    for goal, seconds in seconds_to_pointer(paths, moves[-1]).items()
                }
                if moves
                else {}
            ),
            **{
                label("relative log loss", goal): rounded(verdict.difference)
                for goal, verdict in judged.verdicts.items()
                if verdict.difference == verdict.difference
            },
        }
    )
