"""Whether the models of delay are right: what they said, against the labels that matured next.

Losses of late labels rest on three of them: *lateness* (how many positives come after the
observation window), *real negative* (how many of what was negative then stays so; counted here are
the others) and the *hazard* (how long a label takes: the distribution that matched negatives are
drawn from, held against its quarters). Labels of an hour judge the models that were in force before
it, so none was fitted to them. A model that is off by a factor makes its loss off by as much, and
nothing else in the pipeline would show it: a learner's own calibration is judged only weeks later
where windows are long. How the models are fitted is :mod:`ad_pipeline.learners.delayed`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.evaluation.intervals import reach_of_sum
from ad_pipeline.examples.subsampling import kept_below
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, slots
from ad_pipeline.learners.delayed.delay_model_hours import digest_after, open_delay_models
from ad_pipeline.learners.delayed.delay_models import LATENESS, REAL_NEGATIVE
from ad_pipeline.monitoring.tables import DELAY_CALIBRATION, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, replace_hours, rows_of, select

HAZARD = "hazard"
QUARTERS = (0.25, 0.5, 0.75)

PURPOSE = "monitoring.delay_calibration"

LEAST_EXPECTED = 30.0
"""Events that a model must have expected, or have met, before it is judged: as many as a
calibration of scores takes."""


@dataclass(frozen=True)
class ModelJudged:
    """A model of delay over some matured hours.

    Attributes
    ----------
    goal, model, part : str
    predicted, observed : float
        Events.
    low, high : float
        Interval of observed over predicted, by hour; NaN with fewer than three hours.
    hours : int
    """

    goal: str
    model: str
    part: str
    predicted: float
    observed: float
    low: float
    high: float
    hours: int

    @property
    def ratio(self) -> float:
        """Observed over predicted."""
        return self.observed / self.predicted if self.predicted else float("nan")

    @property
    def name(self) -> str:
        """Goal and model, for people."""
        return ", ".join(filter(None, (self.goal, self.model.replace("_", " "), self.part)))

    def beyond(self, factor: float) -> bool:
        """Tell whether the whole interval is beyond a factor, either way, on enough events."""
        if max(self.predicted, self.observed) < LEAST_EXPECTED or np.isnan(self.low):
            return False
        return self.low > factor or self.high < 1.0 / factor


def record_calibration(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> int:
    """Judge the models in force by the labels that matured in some hours, and keep what was found.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Returns
    -------
    int
        Rows written to ``monitoring.delay_calibration``.
    """
    warehouse.create(TABLES)
    found = arrow_rows(
        DELAY_CALIBRATION, list(calibration_hours(warehouse, deployment, start_us, end_us))
    )
    with warehouse.writer() as connection:
        connection.register("judged", found)
        replace_hours(connection, DELAY_CALIBRATION, "SELECT * FROM judged", {}, start_us, end_us)
    return found.num_rows


def calibration_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of ``monitoring.delay_calibration``; see :func:`record_calibration`.

    One stretch between two fits is in memory at a time.
    """
    dataset = deployment.dataset
    contract = FeatureContract.from_dataset(dataset)
    every_us = dataset.settings.delays.refit_every_hours * HOUR_US
    for goal in dataset.goals_in_chain_order():
        first_us = start_us
        while first_us < end_us:
            last_us = min(first_us // every_us * every_us + every_us, end_us)
            yield from _judged(warehouse, deployment, contract, goal, first_us, last_us)
            first_us = last_us


def judged_models(hours: Sequence[Mapping[str, Any]]) -> list[ModelJudged]:
    """Pool hours of ``monitoring.delay_calibration``, by goal, model and part.

    Parameters
    ----------
    hours : sequence of mapping
        Rows of the table.
    """
    pooled: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in hours:
        pooled.setdefault((row["goal"], row["model"], row["part"]), []).append(row)
    models = []
    for (goal, model, part), rows in pooled.items():
        predicted = np.array([row["predicted"] for row in rows])
        observed = np.array([row["observed"] for row in rows])
        total = predicted.sum()
        ratio = observed.sum() / total if total else float("nan")
        # An hour's part in the ratio, by the delta method.
        reach = reach_of_sum((observed - ratio * predicted) / total) if total else float("nan")
        models.append(
            ModelJudged(
                goal=goal,
                model=model,
                part=part,
                predicted=float(total),
                observed=float(observed.sum()),
                low=ratio - reach,
                high=ratio + reach,
                hours=len(rows),
            )
        )
    return models


def _judged(
    warehouse: Warehouse,
    deployment: Deployment,
    contract: FeatureContract,
    goal: Goal,
    start_us: int,
    end_us: int,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of hours between two fits: one set of models was in force before them all."""
    settings = deployment.dataset.settings
    digest = digest_after(deployment, goal.name, start_us - HOUR_US)
    span = {"goal": goal.name, "start_us": start_us, "end_us": end_us, "at_us": start_us}
    with warehouse.reader() as connection:
        delays = rows_of(connection, select("monitoring.label_delays_in_force"), span)
        if digest is None and not delays.num_rows:
            return
        matured = rows_of(
            connection,
            select("learners.matured_delays"),
            span
            | {
                "observation_us": goal.observation_us,
                "draw": f"{settings.seed} {PURPOSE} ",
                "kept_below": kept_below(1.0),
            },
        )
    hour_us = matured.column("matured_us").to_numpy() // HOUR_US * HOUR_US
    positive = matured.column("label").to_numpy() == 1
    late = matured.column("is_late").to_numpy(zero_copy_only=False).astype(bool)
    judged: list[tuple[str, str, np.ndarray, np.ndarray, np.ndarray]] = []
    if digest is not None and matured.num_rows:
        said = open_delay_models(deployment, digest).probabilities(
            slots(contract, *read_as_served(deployment, contract, matured))
        )
        judged.append((LATENESS, "", positive, said[LATENESS], late))
        judged.append((REAL_NEGATIVE, "", ~positive | late, 1.0 - said[REAL_NEGATIVE], late))
    if delays.num_rows and positive.any():
        took_us = _delays(matured, goal)
        groups = _groups(matured, settings.delays.group_by)
        for quarter in QUARTERS:
            by_us, expected = _quantile(delays, groups, quarter)
            part = f"within the first {quarter:.0%}"
            judged.append((HAZARD, part, positive, expected, took_us <= by_us))
    for model, part, of, p, event in judged:
        for hour in np.unique(hour_us[of]).tolist():
            chosen = of & (hour_us == hour)
            yield {
                "hour_us": hour,
                "goal": goal.name,
                "model": model,
                "part": part,
                "rows": int(chosen.sum()),
                "predicted": float(p[chosen].sum()),
                "observed": float(event[chosen].sum()),
            }


def _delays(matured: pa.Table, goal: Goal) -> np.ndarray:
    """Return how long each label took, int64 (n,), at most the horizon; negatives took it all."""
    horizon_us = goal.window_us + goal.lateness_us
    took = matured.column("arrived_us").to_numpy() - matured.column("anchor_us").to_numpy()
    return np.where(np.isfinite(took), np.minimum(took, horizon_us), horizon_us)


def _groups(matured: pa.Table, column: str | None) -> np.ndarray:
    if column is None:
        return np.full(matured.num_rows, "", dtype=object)
    return np.array(matured.column(column).fill_null("").to_pylist(), dtype=object)


def _quantile(
    delays: pa.Table, groups: np.ndarray, quarter: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a delay of each anchor's own distribution, and the share of it that is not longer.

    The share is not the quarter where delays tie: nothing can come between equal ones.
    """
    of_group: dict[str, list[int]] = {}
    for group, delay_us in zip(
        delays.column("delay_group").to_pylist(), delays.column("delay_us").to_pylist(), strict=True
    ):
        of_group.setdefault(group, []).append(delay_us)
    found = {}
    for group, places in of_group.items():
        by_us = places[int(quarter * len(places))]
        found[group] = (by_us, float(np.mean(np.array(places) <= by_us)))
    overall = found[""]
    pairs = [found.get(group, overall) for group in groups]
    return (
        np.array([by_us for by_us, _ in pairs], dtype=np.int64),
        np.array([share for _, share in pairs]),
    )
