"""Checks of the models of delay, the benchmark and the report."""

import dagster as dg

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label
from ad_pipeline.monitoring.delay_calibration import judged_models
from ad_pipeline.monitoring.late_labels.measures import LEAST_POSITIVES
from ad_pipeline.warehouse import rows_of

BENCHMARK = ["monitoring", "delay_benchmark"]
CALIBRATION = ["monitoring", "delay_calibration"]
DELAYS = ["monitoring", "delay_report"]


@dg.asset_check(
    asset=CALIBRATION,
    name="delay_models_are_calibrated",
    description=(
        "What the models of delay expected is what came, within a factor: the losses that rest on "
        "them are off by as much as they are."
    ),
)
def delay_models_are_calibrated(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Pool the last matured hours of each model; one that is off warns, and is refitted anyway."""
    settings = deployment.paths.dataset.settings.delays
    with deployment.warehouse.reader() as connection:
        hours = rows_of(
            connection,
            "SELECT * FROM monitoring.delay_calibration WHERE hour_us > (SELECT max(hour_us) "
            "FROM monitoring.delay_calibration) - $span_us ORDER BY hour_us",
            {"span_us": settings.calibration_hours * HOUR_US},
        ).to_pylist()
    models = judged_models(hours)
    off = [model for model in models if model.beyond(settings.calibrated_factor)]
    return found(
        "delay_models_are_calibrated",
        CALIBRATION,
        not off,
        "observed over predicted: "
        + "; ".join(
            f"{model.name} {model.ratio:.2f} ({model.low:.2f} to {model.high:.2f})" for model in off
        )
        if off
        else f"{len(models)} models and parts within a factor {settings.calibrated_factor:g}, or "
        "not yet judged",
        warns=True,
        **{
            label("observed over predicted", model.name): model.ratio
            for model in models
            if model.predicted > 0
        },
    )


@dg.asset_check(
    asset=BENCHMARK,
    name="no_arm_beats_the_oracle",
    description=(
        "No way of learning that could be deployed is better than one that is told every final "
        "label at once: where one is, beyond noise, it has seen what it should not."
    ),
)
def no_arm_beats_the_oracle(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest benchmark of every goal; it ends this job, and nothing else waits for it."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT goal, family, arm, value, high FROM monitoring.delay_benchmark "
            "WHERE metric = 'log_loss_against_oracle' AND positives >= $least ORDER BY value",
            {"least": LEAST_POSITIVES},
        ).fetchall()
    beating = [row for row in rows if row[4] is not None and row[4] < 0]
    return found(
        "no_arm_beats_the_oracle",
        BENCHMARK,
        not beating,
        "a leak: "
        + ", ".join(
            f"{goal}, {family}: {arm} {value:+.2%} (at most {high:+.2%}) log loss"
            for goal, family, arm, value, high in beating
        )
        if beating
        else f"{len(rows)} arms compared with their oracle"
        if rows
        else "no goal was replayed on as many positives as an accusation needs",
        compared=len(rows),
    )


@dg.asset_check(
    asset=DELAYS,
    name="calibrated_at_every_ad_age",
    description=(
        "Served scores fit final labels at every age of an ad: where labels are late, the young "
        "ads are the first that they fit no more."
    ),
)
def calibrated_at_every_ad_age(deployment: DeploymentResource) -> dg.AssetCheckResult:
    """Read the newest report; ads whose age the log cannot know are judged as one bucket."""
    with deployment.warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT goal, name, part, value, miscalibrated FROM monitoring.delay_report "
            "WHERE miscalibrated IS NOT NULL ORDER BY abs(ln(nullif(value, 0))) DESC, 1, 2, 3"
        ).fetchall()
    off = [row for row in rows if row[4]]
    return found(
        "calibrated_at_every_ad_age",
        DELAYS,
        not off,
        "; ".join(
            f"{goal}, {expert}: {value:.2f} positives for each predicted at ad ages {ages}"
            for goal, expert, ages, value, _ in off
        )
        or f"{len(rows)} buckets of ad ages, none off beyond noise",
        warns=True,
        **{"buckets": len(rows), "buckets off": len(off)},
    )
