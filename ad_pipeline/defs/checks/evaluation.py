"""Checks of the figures: the mixture is no worse than its best part, and it is calibrated."""

import dagster as dg

from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource

REPORT = ["evaluation", "report"]
ALLOWED_LOSS = 0.001
"""Relative log loss that the one-sided upper bound of ensemble v. best expert may reach."""
CALIBRATED = (0.9, 1.1)
"""Sum of probabilities over sum of labels outside of which bids are visibly wrong."""


@dg.multi_asset_check(
    name="evaluation_checks",
    specs=[
        dg.AssetCheckSpec(
            "ensemble_is_no_worse_than_the_best_expert",
            asset=REPORT,
            description="On held-out hours its log loss is at most 0.1 % above the best expert's.",
        ),
        dg.AssetCheckSpec(
            "ensemble_is_calibrated",
            asset=REPORT,
            description="The interval of predicted over observed reaches into 0.9 to 1.1.",
        ),
    ],
)
def evaluation_checks(deployment: DeploymentResource):
    """Read the report that was just written."""
    with deployment.warehouse.reader() as connection:
        compared = connection.execute(
            "SELECT goal, expert, max(value) FILTER (metric = 'relative_log_loss'), "
            "max(value) FILTER (metric = 'relative_log_loss_upper') FROM evaluation.report "
            "WHERE metric IN ('relative_log_loss', 'relative_log_loss_upper') "
            "GROUP BY goal, expert ORDER BY goal"
        ).fetchall()
        calibration = connection.execute(
            "SELECT goal, value, low, high FROM evaluation.report "
            "WHERE metric = 'calibration_ratio' AND expert = 'ensemble' ORDER BY goal"
        ).fetchall()
    worse = [row for row in compared if row[3] is None or row[3] > ALLOWED_LOSS]
    yield found(
        "ensemble_is_no_worse_than_the_best_expert",
        REPORT,
        bool(compared) and not worse,
        "; ".join(
            f"{goal}: {expert} {value:+.3%}"
            for goal, expert, value, _ in compared
            if value is not None
        )
        or "no goal has an ensemble yet",
        warns=True,
        **{f"{goal}/upper": upper for goal, _, _, upper in compared if upper is not None},
    )
    off = [
        goal
        for goal, _, low, high in calibration
        if low is None or high is None or low > CALIBRATED[1] or high < CALIBRATED[0]
    ]
    yield found(
        "ensemble_is_calibrated",
        REPORT,
        bool(calibration) and not off,
        "; ".join(f"{goal}: {value:.3f}" for goal, value, _, _ in calibration if value is not None)
        or "no goal has an ensemble yet",
        warns=True,
        **{f"{goal}/ratio": value for goal, value, _, _ in calibration if value is not None},
    )
