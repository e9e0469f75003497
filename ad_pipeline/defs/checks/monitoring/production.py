"""Checks of what serves: under load, and after a planted fault."""

import dagster as dg

from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource

STRESS = ["monitoring", "serving_stress"]
DRILLED = ["monitoring", "rollback_drill"]


@dg.asset_check(
    asset=STRESS,
    name="serving_keeps_up",
    description="Under load 99 of 100 requests have their score in time, whatever is missing.",
)
def serving_keeps_up(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest run; a slow scenario is named with its latency."""
    limit_ms = deployment.paths.dataset.settings.stress.latency_ms
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT scenario, max(latency_p99_us) / 1000, max(behind_us) / 1000 "
            "FROM monitoring.serving_stress GROUP BY scenario ORDER BY 2 DESC"
        ).fetchall()
    slow = [row for row in rows if row[1] > limit_ms]
    return found(
        "serving_keeps_up",
        STRESS,
        not slow,
        "; ".join(
            f"{scenario}: 99 of 100 within {slow_ms:,.0f} ms (limit {limit_ms:g}), the last answer "
            f"{behind_ms:,.0f} ms late"
            for scenario, slow_ms, behind_ms in slow
        )
        or f"{len(rows)} scenarios within {limit_ms:g} ms",
        warns=True,
        **{"scenarios": len(rows), "slow scenarios": len(slow)},
    )


@dg.asset_check(
    asset=DRILLED,
    name="every_fault_is_refused_and_undone",
    description=(
        "Each fault planted in the copy was refused by its guards, and what serves after going "
        "back gives the same scores as before."
    ),
)
def every_fault_is_refused_and_undone(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest drill."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT fault, name, passed, said, seconds FROM monitoring.rollback_drill ORDER BY 1, 2"
        ).fetchall()
    wrong = [row for row in rows if not row[2]]
    slowest = max((row[4] for row in rows if row[1] == "recover"), default=0.0)
    return found(
        "every_fault_is_refused_and_undone",
        DRILLED,
        not wrong,
        "; ".join(f"{fault}, {name}: {said}" for fault, name, _, said, _ in wrong)
        or (
            f"{len({row[0] for row in rows})} faults; the slowest was undone in {slowest:.2f} s"
            if rows
            else "nobody has drilled yet; start the job drill_rollback"
        ),
        **{"faults": len({row[0] for row in rows}), "slowest recovery, seconds": slowest},
    )
