"""The models of delay over log hours: when they are fitted, on what, and which is in force.

A fit after hour H reads what had matured by the end of H; it is in force from hour H + 1 until the
next one. Hours without a fit point at the one before. They stand before the online model in the
path, since they read labels and features only. Fitting itself is :mod:`.delay_models`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    is_pointed,
    point,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, hour_key, hours_between
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.examples.subsampling import kept_below
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, slots
from ad_pipeline.learners.delayed.delay_models import (
    LATENESS,
    NEEDED_BY,
    REAL_NEGATIVE,
    DelayModels,
    MaturedLabels,
    TooFewLabels,
    fit_delay_models,
)
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.orders import orders
from ad_pipeline.learners.tables import DELAY_REFITS, TABLES
from ad_pipeline.settings import Objective, Settings
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

KIND = "learners.delay_models"
CODE_VERSION = 2
"""Raise when the same rows and settings would give other models."""


@dataclass(frozen=True)
class FittedHour:
    """Which models of delay of a goal are in force after an hour.

    Attributes
    ----------
    goal : str
    hour_us : int
        Start of the hour.
    digest : str or None
        Their checkpoint; None while there are none.
    objectives : int
        That read them.
    cause : str
        Why they were fitted in this hour, "unchanged", or why there are none.
    facts : dict or None
        About the fit, if there was one.
    """

    goal: str
    hour_us: int
    digest: str | None
    objectives: int
    cause: str
    facts: dict[str, Any] | None


def pointer(goal: str, hour_us: int) -> str:
    """Return the name of the models that are in force after an hour."""
    return f"{KIND}/{goal}/{hour_key(hour_us)}"


def digest_after(deployment: Deployment, goal: str, hour_us: int) -> str | None:
    """Return the checkpoint of the models in force after an hour, None if there are none yet."""
    name = pointer(goal, hour_us)
    if not is_pointed(deployment.checkpoints, name):
        return None
    return resolve(deployment.checkpoints, name)


def objectives_of(settings: Settings, goal: str) -> list[Objective]:
    """Return what the learners of a goal minimize: each configuration, then wide & deep."""
    online: list[Objective] = [*settings.online.of_goal(goal).configurations()]
    return online if settings.deep is None else [*online, settings.deep.of_goal(goal)]


def rest_on_models(objectives: Sequence[Objective]) -> bool:
    """Tell whether any of some objectives reads a model of delay."""
    return any(each.loss in NEEDED_BY for each in objectives)


def fit_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[FittedHour]:
    """Fit where a fit is due, and point every hour at the models in force after it.

    Parameters
    ----------
    warehouse : Warehouse
        With matured labels of the hours before ``end_us``.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    FittedHour
        One per hour and goal, in order.
    """
    dataset = deployment.dataset
    contract = FeatureContract.from_dataset(dataset)
    refit_us = dataset.settings.delays.refit_every_hours * HOUR_US
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        asked = orders(connection, DELAY_REFITS, start_us, end_us)
    for hour_us in hours_between(start_us, end_us):
        for goal in dataset.goals_in_chain_order():
            objectives = objectives_of(dataset.settings, goal.name)
            reading = sum(each.loss in NEEDED_BY for each in objectives)
            if not reading:
                cause = "no loss of this goal needs them"
                yield FittedHour(goal.name, hour_us, None, 0, cause, None)
                continue
            digest = digest_after(deployment, goal.name, hour_us - HOUR_US)
            cause, facts = "unchanged" if digest else "no models yet: rows are as logged", None
            if (hour_us + HOUR_US) % refit_us == 0 or hour_us in asked:
                cause = asked[hour_us]["cause"] if hour_us in asked else "schedule"
                labels = _matured_labels(warehouse, deployment, contract, goal, hour_us + HOUR_US)
                try:
                    models, facts = fit_delay_models(labels, contract.bits)
                except TooFewLabels as error:
                    cause = f"{cause}: {error}"
                else:
                    digest = _write(deployment, contract, goal, hour_us, digest, models, facts)
            if digest is not None:
                point(deployment.checkpoints, pointer(goal.name, hour_us), digest)
            yield FittedHour(goal.name, hour_us, digest, reading, cause, facts)


def open_delay_models(deployment: Deployment, digest: str) -> DelayModels:
    """Read models of delay, every byte verified."""
    checkpoint = read_checkpoint(deployment.checkpoints, digest)
    return DelayModels.from_arrays(checkpoint.arrays, checkpoint.manifest["bits"])


def foretell(
    deployment: Deployment, goal: str, rows: np.ndarray, at_us: np.ndarray, outcomes: np.ndarray
) -> None:
    """Write what the models in force said of rows into their outcomes.

    Parameters
    ----------
    deployment : Deployment
    goal : str
    rows : ndarray of shape (n, F), uint32
        Slots.
    at_us : ndarray of shape (n,), int64
        When each row was emitted, rising: the models in force before that hour speak of it.
    outcomes : ndarray of shape (n, N_OUTCOMES), float64
        Rows from hours without models stay as they are.
    """
    hours_us = at_us // HOUR_US * HOUR_US
    opened: dict[str, DelayModels] = {}
    for hour_us in np.unique(hours_us).tolist():
        digest = digest_after(deployment, goal, hour_us - HOUR_US)
        if digest is None:
            continue
        if digest not in opened:
            opened[digest] = open_delay_models(deployment, digest)
        first, last = np.searchsorted(hours_us, [hour_us, hour_us + 1])
        said = opened[digest].probabilities(rows[first:last])
        outcomes[first:last, kernel.LATENESS] = said[LATENESS]
        outcomes[first:last, kernel.REAL_NEGATIVE] = said[REAL_NEGATIVE]


def _matured_labels(
    warehouse: Warehouse,
    deployment: Deployment,
    contract: FeatureContract,
    goal: Goal,
    end_us: int,
) -> MaturedLabels:
    settings = deployment.dataset.settings
    span = {
        "goal": goal.name,
        "start_us": end_us - settings.delays.lookback_hours * HOUR_US,
        "end_us": end_us,
    }
    with warehouse.reader() as connection:
        (negatives,) = one_row(
            connection,
            "SELECT count(*) FROM examples.labelled_impressions WHERE goal = $goal AND label = 0 "
            "AND matured_us >= $start_us AND matured_us < $end_us",
            span,
        )
        share = min(1.0, settings.delays.maximum_rows / max(negatives, 1))
        rows = rows_of(
            connection,
            select("learners.matured_delays"),
            span
            | {
                "observation_us": goal.observation_us,
                "draw": f"{settings.seed} {KIND} ",
                "kept_below": kept_below(share),
            },
        )
    positive = rows.column("label").to_numpy() == 1
    return MaturedLabels(
        slots=_slots(deployment, contract, rows),
        positive=positive,
        late=rows.column("is_late").to_numpy(zero_copy_only=False).astype(bool),
        weights=np.where(positive, 1.0, 1.0 / share),
    )


def _slots(deployment: Deployment, contract: FeatureContract, rows: pa.Table) -> np.ndarray:
    return slots(contract, *read_as_served(deployment, contract, rows))


def _write(
    deployment: Deployment,
    contract: FeatureContract,
    goal: Goal,
    hour_us: int,
    parent: str | None,
    models: DelayModels,
    facts: dict[str, Any],
) -> str:
    with unswept(deployment.checkpoints):
        digest = write_checkpoint(
            deployment.checkpoints,
            KIND,
            models.to_arrays(),
            {
                "goal": goal.name,
                "hour_us": hour_us,
                "parent": parent,
                "label_watermark_us": hour_us + HOUR_US,
                "settings": deployment.dataset.settings.digest(),
                "contract": contract.digest,
                "code_version": CODE_VERSION,
                "bits": contract.bits,
                "facts": facts,
            },
        ).digest
        point(deployment.checkpoints, pointer(goal.name, hour_us), digest)
    return digest
