"""Checks of drift: columns, and verdicts of every kind; all of them warn."""

import dagster as dg

from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource

DRIFTED = ["monitoring", "drift"]
VERDICTS = ["monitoring", "drift_verdicts"]


@dg.asset_check(
    asset=DRIFTED,
    name="inputs_have_not_drifted",
    description="No watched column of the last hours left the distribution of the hours before.",
)
def inputs_have_not_drifted(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest verdict; drift warns, and the sensor acts on it."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT column_name, psi FROM monitoring.drift WHERE drifted AND current_end_us = "
            "(SELECT max(current_end_us) FROM monitoring.drift) ORDER BY psi DESC"
        ).fetchall()
    return found(
        "inputs_have_not_drifted",
        DRIFTED,
        not rows,
        "drifted: " + ", ".join(f"{name} (index {psi:.2f})" for name, psi in rows)
        if rows
        else "no watched column has drifted",
        warns=True,
        **{"columns drifted": len(rows)},
    )


@dg.asset_check(
    asset=VERDICTS,
    name="nothing_has_drifted",
    description="Inputs, categories, outcomes, calibration and delays are as they were.",
)
def nothing_has_drifted(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest verdicts; drift warns and names its cause and what fits."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT kind, subject, cause, actions FROM monitoring.drift_verdicts WHERE drifted "
            "AND hour_us = (SELECT max(hour_us) FROM monitoring.drift_verdicts) ORDER BY 1, 2"
        ).fetchall()
    return found(
        "nothing_has_drifted",
        VERDICTS,
        not rows,
        "; ".join(
            f"{kind}{f' of {subject}' if subject else ''}: {cause} "
            f"({actions.replace(',', ', ') or 'only told'})"
            for kind, subject, cause, actions in rows
        )
        or "nothing has drifted",
        warns=True,
        **{"verdicts that drifted": len(rows)},
    )
