"""What leaves the pipeline: the candidate bundle, and the pointer to the one that serves."""

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import MissingCheckpoint
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.partitions import SINGLE_RUN
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.learners.ensembles import held_out_forecasts
from ad_pipeline.monitoring.tables import CANDIDATE_REPLAY
from ad_pipeline.serving.candidate import build_candidate, judge_candidate
from ad_pipeline.serving.promotion import decide, history, promote
from ad_pipeline.warehouse import one_row, rows_of, select

CANARIES = 16


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
    with deployment.warehouse.reader() as connection:
        hour_us = _last_learnt_hour(connection)
        canaries = rows_of(connection, select("serving.canary_requests"), {"count": CANARIES})
    built = build_candidate(deployment.paths, hour_us, canaries.to_pylist())
    size = sum(path.stat().st_size for path in built.path.iterdir())
    context.log.info(f"bundle {built.digest[:12]} with {', '.join(g.goal for g in built.goals)}")
    return dg.MaterializeResult(
        metadata={
            "digest": built.digest,
            "folder": dg.MetadataValue.path(str(built.path)),
            "bytes": size,
            "label_watermark": timestamp(built.label_watermark_us),
            **{
                f"{goal}/{name}_range": f"{timestamp(start_us)} to {timestamp(end_us)} by maturity"
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

    def read_impressions(impression_ids: pa.ChunkedArray, served_us: np.ndarray) -> pa.Table:
        asked = pa.table(
            {
                "impression_id": impression_ids,
                "served_us": served_us,
                "place": np.arange(len(served_us)),
            }
        )
        with warehouse.reader() as connection:
            connection.register("asked", asked)
            return rows_of(
                connection,
                "SELECT impressions.* FROM asked INNER JOIN events.impressions AS impressions "
                "ON impressions.impression_id = asked.impression_id "
                "AND impressions.received_us = asked.served_us ORDER BY asked.place",
            )

    judged = judge_candidate(paths, held_out_forecasts(warehouse, paths), read_impressions)
    moves = history(paths.serving)
    with warehouse.reader() as connection:
        (replay_passed,) = one_row(
            connection,
            f"SELECT bool_and(state = 'passed') FROM {CANDIDATE_REPLAY.name} "
            "WHERE bundle_hash = $bundle",
            {"bundle": judged.digest},
        )
    promoted, reason = decide(judged.verdicts)
    if moves and moves[-1].digest == judged.digest:
        promoted, reason = True, "it serves already"
    elif not replay_passed:
        # Across runs Dagster does not hold this asset back when the blocking check failed.
        promoted, reason = (
            False,
            "its replay has not passed; materialize monitoring/candidate_replay",
        )
    if promoted:
        promote(
            paths.serving,
            paths.bundles,
            judged.digest,
            judged.evidence(),
            watermark_us=judged.watermark_us,
        )
    context.log.info(
        f"bundle {judged.digest[:12]} {'promoted' if promoted else 'refused'}: {reason}"
    )
    moves = history(paths.serving)
    return dg.MaterializeResult(
        metadata={
            # A whole digest would push the reason out of the page.
            "candidate": judged.digest[:12],
            "promoted": promoted,
            "reason": reason,
            "serving": moves[-1].digest[:12] if moves else "nothing yet",
            "moves": len(moves),
            **{
                f"{goal}/relative_log_loss": verdict.difference
                for goal, verdict in judged.verdicts.items()
                if verdict.difference == verdict.difference
            },
        }
    )


def _last_learnt_hour(connection: duckdb.DuckDBPyConnection) -> int:
    sealed_us = sealed_until(connection)
    if not sealed_us:
        raise MissingCheckpoint("no log hour is sealed yet; materialize the events first")
    return sealed_us - HOUR_US
