"""The ensemble of a deployment over time: its variance and bias by hour, its loss by age, drawn.

Which forecasts are held out is chosen in ``learners``; the measures are :mod:`.spread` and
:mod:`.ages`, the picture :mod:`.ensemble_plots`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.ages import loss_by_age
from ad_pipeline.evaluation.ensemble_plots import ensemble_over_time
from ad_pipeline.evaluation.held_out import HeldOut
from ad_pipeline.evaluation.spread import Spread, pooled, spread_of_ensemble
from ad_pipeline.evaluation.tables import ENSEMBLE_HOURS, LOSS_BY_AGE, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows


@dataclass(frozen=True)
class WrittenEnsembleHours:
    """What was measured.

    Attributes
    ----------
    hours, ages : pyarrow.Table
        Rows of ``evaluation.ensemble_hours`` and ``evaluation.loss_by_age``.
    pooled : dict of str to Spread
        By goal, over all of its hours.
    picture : bytes
        PNG.
    """

    hours: pa.Table
    ages: pa.Table
    pooled: dict[str, Spread]
    picture: bytes


def write_ensemble_hours(
    warehouse: Warehouse, deployment: Deployment, held_out: Iterable[HeldOut]
) -> WrittenEnsembleHours:
    """Replace both tables and the picture ``ensemble.png`` in the deployment's folder of reports.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    held_out : iterable of HeldOut
        Of each goal that has an ensemble. With none the earlier rows stay.
    """
    settings = deployment.dataset.settings
    warehouse.create(TABLES)
    by_goal: dict[str, Spread] = {}
    hourly: list[dict[str, object]] = []
    aged: list[dict[str, object]] = []
    for found in held_out:
        spread = spread_of_ensemble(found, settings.evaluation.level)
        by_goal[found.goal] = pooled(spread, settings.evaluation.level)
        hourly += spread
        aged += loss_by_age(found, settings)
    hours, ages = arrow_rows(ENSEMBLE_HOURS, hourly), arrow_rows(LOSS_BY_AGE, aged)
    picture = ensemble_over_time(hours, ages, title=deployment.dataset.name)
    deployment.reports.mkdir(parents=True, exist_ok=True)
    (deployment.reports / "ensemble.png").write_bytes(picture)
    if by_goal:
        with warehouse.writer() as connection:
            for table, records in ((ENSEMBLE_HOURS, hours), (LOSS_BY_AGE, ages)):
                connection.register("measured", records)
                connection.execute(f"DELETE FROM {table.name}")
                connection.execute(f"INSERT INTO {table.name} BY NAME SELECT * FROM measured")
                connection.unregister("measured")
    return WrittenEnsembleHours(hours, ages, by_goal, picture)
