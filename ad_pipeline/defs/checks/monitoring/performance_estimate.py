"""Checks of the estimates made before labels have matured."""

import dagster as dg

from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label
from ad_pipeline.monitoring.performance_estimate_hours import past_errors

ESTIMATE = ["monitoring", "performance_estimate"]


@dg.asset_check(
    asset=ESTIMATE,
    name="estimates_keep_their_interval",
    description=(
        "Loss and calibration, once labels had matured, lay in the intervals that were estimated "
        "before, as often as their level says."
    ),
)
def estimates_keep_their_interval(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Count the misses of each goal and expert; where there are too many, none is given."""
    settings = deployment.dataset.settings.performance_estimate
    past = {
        f"{goal}, {expert}": errors
        for (goal, expert), errors in past_errors(deployment.warehouse, deployment.dataset).items()
    }
    too_often = {
        name: errors
        for name, errors in past.items()
        if errors.p_value(settings.level) < settings.alarm_p_value
    }
    return found(
        "estimates_keep_their_interval",
        ESTIMATE,
        not too_often,
        "; ".join(
            f"{name}: {errors.missed} of the last {errors.judged} estimates missed"
            for name, errors in too_often.items()
        )
        or f"{sum(errors.judged for errors in past.values())} estimates were judged by their "
        f"labels, {sum(errors.missed for errors in past.values())} missed their interval",
        warns=True,
        **{label("missed", name): errors.missed for name, errors in past.items()},
    )
