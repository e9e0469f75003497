"""Checks of the experts and their mixture."""

import dagster as dg

from ad_pipeline.checkpoints import CorruptCheckpoint, resolve
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.ensemble.ensembles import open_ensemble
from ad_pipeline.learners.online.online_hours import open_expert, pointer
from ad_pipeline.learners.online.recovery import suspects
from ad_pipeline.warehouse import one_row, select

MODEL = ["learners", "online_model"]
DEEP_MODEL = ["learners", "deep_model"]
SCORED = ["learners", "online_predictions"]
ENSEMBLE = ["learners", "ensemble"]


@dg.multi_asset_check(
    name="online_learner_checks",
    specs=[
        dg.AssetCheckSpec(
            "newest_checkpoint_is_intact",
            asset=MODEL,
            blocking=True,
            description="Every byte has its SHA-256, and canary rows score as when it was written.",
        ),
        dg.AssetCheckSpec(
            "labels_are_as_expected",
            asset=MODEL,
            blocking=True,
            description=(
                "No hour's labels surprised the model that met them, but for hours that were left "
                "out or accepted since."
            ),
        ),
        dg.AssetCheckSpec(
            "every_impression_is_scored_once",
            asset=SCORED,
            blocking=True,
            description="Each impression has one score of the online expert for each goal.",
        ),
    ],
)
def learners_checks(deployment: DeploymentResource):
    """Open what was written and count what was scored."""
    paths = deployment.paths
    goals = paths.dataset.goal_names
    with deployment.warehouse.reader() as connection:
        hour_us = sealed_until(connection) - HOUR_US
        (wrong,) = one_row(
            connection, select("learners.impressions_not_scored_once"), {"goals": list(goals)}
        )
    faults: list[str] = []
    for goal in goals:
        try:
            open_expert(paths.checkpoints, resolve(paths.checkpoints, pointer(goal, hour_us)))
        except (CorruptCheckpoint, LookupError) as error:
            faults.append(str(error))
    yield found(
        "newest_checkpoint_is_intact",
        MODEL,
        not faults,
        "; ".join(faults)
        or f"the checkpoints of {', '.join(goals)} after {hour_key(hour_us)} are intact",
    )
    suspect = suspects(deployment.warehouse, paths)
    yield found(
        "labels_are_as_expected",
        MODEL,
        not suspect.hours_us,
        suspect.described() or "every hour was judged and none is suspect",
        suspects=len(suspect.hours_us),
    )
    yield found(
        "every_impression_is_scored_once",
        SCORED,
        wrong == 0,
        f"{wrong:,} impressions lack a score of a goal, or have several"
        if wrong
        else "every impression has one score for each goal",
        faults=wrong,
    )


@dg.multi_asset_check(
    name="deep_checks",
    specs=[
        dg.AssetCheckSpec(
            "newest_deep_checkpoint_is_intact",
            asset=DEEP_MODEL,
            blocking=True,
            description="Every byte has its SHA-256, and canary rows score as in the learner.",
        ),
        dg.AssetCheckSpec(
            "deep_extra_is_installed",
            asset=DEEP_MODEL,
            description="If the settings ask for wide & deep, JAX is there to train it.",
        ),
    ],
)
def deep_checks(deployment: DeploymentResource):
    """Open the newest models, and look whether anything keeps them from going on."""
    paths = deployment.paths
    with deployment.warehouse.reader() as connection:
        hour_us = sealed_until(connection) - HOUR_US
    digests = {
        goal: digest
        for goal in paths.dataset.goal_names
        if (digest := deep_hours.digest_after(paths, goal, hour_us)) is not None
    }
    faults: list[str] = []
    for digest in digests.values():
        try:
            deep_hours.open_deep(paths, digest)
        except (CorruptCheckpoint, LookupError) as error:
            faults.append(str(error))
    yield found(
        "newest_deep_checkpoint_is_intact",
        DEEP_MODEL,
        not faults,
        "; ".join(faults)
        or (
            f"the checkpoints of {', '.join(digests)} after {hour_key(hour_us)} are intact"
            if digests
            else f"no goal has a wide & deep model after {hour_key(hour_us)}"
        ),
    )
    missing = deep_hours.missing_extra(paths)
    yield found(
        "deep_extra_is_installed",
        DEEP_MODEL,
        not missing,
        missing
        or (
            deep_hours.NOT_ASKED_FOR
            if paths.dataset.settings.deep is None
            else "JAX is there to train wide & deep"
        ),
        warns=True,
    )


@dg.multi_asset_check(
    name="ensemble_checks",
    specs=[
        dg.AssetCheckSpec(
            "ranges_do_not_overlap",
            asset=ENSEMBLE,
            blocking=True,
            description="Fit, calibration and test lie one behind the other in maturity.",
        )
    ],
)
def ensemble_checks(deployment: DeploymentResource):
    """Read the ranges of every goal's ensemble.

    Apart from the checks of the online learner: one step of blocking checks on both ends of a path
    would have to run before itself.
    """
    paths = deployment.paths
    overlapping = [
        goal
        for goal in paths.dataset.goal_names
        if (fitted := open_ensemble(paths, goal)) is not None
        and not _one_behind_the_other(fitted.ranges)
    ]
    yield found(
        "ranges_do_not_overlap",
        ENSEMBLE,
        not overlapping,
        f"they overlap for {', '.join(overlapping)}"
        if overlapping
        else "fit, calibration and test are apart for every goal",
    )


def _one_behind_the_other(ranges: dict[str, list[int]]) -> bool:
    bounds = [bound for name in ("fit", "calibration", "test") for bound in ranges[name]]
    return bounds == sorted(bounds)
