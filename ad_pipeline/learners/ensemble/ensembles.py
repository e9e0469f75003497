"""The ensemble of each goal: which rows of the log fit it, where it is kept, what tests it.

Rows are matured impressions beside the scores they got at serving time. They are split by the hour
of their maturity into fit, calibration and test, in that order, and the bounds travel with the
ensemble into every figure. Beside them stand the provisional rows: served, and in none of the
ranges, because they have not matured. Mixing and calibrating themselves are :mod:`.ensemble`.
"""

from collections.abc import Iterator
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
from ad_pipeline.clocks import HOUR_US, hour_of, timestamp
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.evaluation.held_out import BASE_RATE, ENSEMBLE, HeldOut, MixtureParts
from ad_pipeline.evaluation.metrics import probabilities_of
from ad_pipeline.evaluation.progressive import experts_of
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.features.as_served import read_impressions
from ad_pipeline.hashing import MISSING_LABEL, hash_strings, seed_of
from ad_pipeline.learners.ensemble.calibration_layer import Slices
from ad_pipeline.learners.ensemble.ensemble import (
    Ensemble,
    Range,
    Ranges,
    fit_ensemble,
    split_ranges,
)
from ad_pipeline.learners.ensemble.provisional import ArrivalDelays, ProvisionalRows
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

KIND = "learners.ensemble"
CODE_VERSION = 2
"""Raise when the same rows and settings would give another mixture or another calibration."""


@dataclass(frozen=True)
class FittedEnsemble:
    """The ensemble of one goal.

    Attributes
    ----------
    goal : str
    digest : str
        Its checkpoint.
    ensemble : Ensemble
    base_rate : float
        Mean label of the fit range: what a forecast that knows nothing else would say later.
    """

    goal: str
    digest: str
    ensemble: Ensemble
    base_rate: float

    @property
    def ranges(self) -> dict[str, list[int]]:
        """Bounds of the fit, calibration and test ranges, microseconds of maturity."""
        return self.ensemble.ranges

    @property
    def description(self) -> str:
        """What was chosen, for people."""
        ensemble = self.ensemble
        mixed = " + ".join(
            f"{weight:.3f} {expert}"
            for expert, weight in zip(ensemble.experts, ensemble.weights, strict=True)
        )
        calibration = ensemble.calibration.description
        return f"{ensemble.kind}: {mixed} {ensemble.intercept:+.3f}, {calibration}"

    @property
    def figures(self) -> dict[str, float | int | str]:
        """What people are shown of it, in this order."""
        ensemble = self.ensemble
        named = ensemble.facts["asked_for"]
        return {
            "mixture": ensemble.kind,
            **({} if named in ("auto", ensemble.kind) else {"mixture asked for": named}),
            "mixture chosen on": " and ".join(ensemble.facts["mixed_on"]) + " hours",
            **{f"{expert} left out": why for expert, why in ensemble.facts["left_out"].items()},
            **{
                f"weight of {expert}": weight
                for expert, weight in zip(ensemble.experts, ensemble.weights, strict=True)
            },
            "intercept": ensemble.intercept,
            "calibration": ensemble.calibration.description,
            "base rate": self.base_rate,
            **{
                f"{name} hours": f"{timestamp(start_us)} to {timestamp(end_us)} by maturity"
                for name, (start_us, end_us) in ensemble.ranges.items()
            },
            **self._provisional_figures,
        }

    @property
    def _provisional_figures(self) -> dict[str, float | int | str]:
        facts = self.ensemble.facts["provisional"]
        if facts is None:
            return {}
        if facts["not_compared"]:
            return {"on provisional labels": f"not compared: {facts['not_compared']}"}
        if facts["changed"]:
            outcome = f"{facts['chosen']} replaces {facts['chosen_before']}"
        else:
            outcome = f"{facts['chosen']} stays"
        counts = ("rows", "hours", "observed_positives", "corrected_positives")
        return {
            "on provisional labels": outcome,
            "provisional labels until": timestamp(facts["now_us"]),
            **{f"provisional {name.replace('_', ' ')}": facts[name] for name in counts},
            **{
                f"provisional log loss, corrected, of {trial['name']}": trial["log_loss"]
                for trial in facts["mixtures"]
            },
        }


def fit_ensembles(warehouse: Warehouse, deployment: Deployment) -> Iterator[FittedEnsemble]:
    """Fit the ensemble of every goal on the newest matured hours, and point at it.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Yields
    ------
    FittedEnsemble
        In the order of chains; a goal with too few matured hours to split has none.
    """
    settings = deployment.dataset.settings.ensemble
    for goal in deployment.dataset.goals_in_chain_order():
        rows = _matured_rows(warehouse, deployment, goal, None)
        hours_us = _hours(rows)
        if len(np.unique(hours_us)) < 3:
            continue
        labels = rows.column("label").to_numpy()
        matured_us = rows.column("matured_us").to_numpy()
        provisional = _provisional_rows(
            warehouse, deployment, goal, split_ranges(matured_us, settings)
        )
        slices = _slices(warehouse, rows, settings.calibration_slice)
        logits = _logits(deployment, rows)
        fitted = fit_ensemble(logits, labels, matured_us, settings, provisional, slices)
        fit_range = Range(*fitted.ranges["fit"])
        base_rate = float(labels[fit_range.holds(hours_us)].mean())
        with unswept(deployment.checkpoints):
            digest = write_checkpoint(
                deployment.checkpoints,
                KIND,
                {},
                {"goal": goal.name, "base_rate": base_rate, "ensemble": fitted.to_json()},
            ).digest
            point(deployment.checkpoints, f"{KIND}/{goal.name}", digest)
        yield FittedEnsemble(goal.name, digest, fitted, base_rate)


def open_ensemble(deployment: Deployment, goal: str) -> FittedEnsemble | None:
    """Return the ensemble of a goal, None before there is one."""
    name = f"{KIND}/{goal}"
    if not is_pointed(deployment.checkpoints, name):
        return None
    return read_ensemble(deployment, resolve(deployment.checkpoints, name))


def read_ensemble(deployment: Deployment, digest: str) -> FittedEnsemble:
    """Return the ensemble of a checkpoint, every byte verified."""
    manifest: dict[str, Any] = read_checkpoint(deployment.checkpoints, digest).manifest
    ensemble = Ensemble.from_json(manifest["ensemble"])
    return FittedEnsemble(manifest["goal"], digest, ensemble, manifest["base_rate"])


def held_out_forecasts(warehouse: Warehouse, deployment: Deployment) -> Iterator[HeldOut]:
    """Yield every forecast of each goal on the test range of its ensemble.

    Rows that one of the compared experts did not score are left out for all of them.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Yields
    ------
    HeldOut
        Of the goals that have an ensemble, in the order of chains.
    """
    for goal in deployment.dataset.goals_in_chain_order():
        fitted = open_ensemble(deployment, goal.name)
        if fitted is None:
            continue
        test = Range(*fitted.ranges["test"])
        rows = _matured_rows(warehouse, deployment, goal, test)
        logits = {
            name: values
            for name, values in _logits(deployment, rows).items()
            if np.isfinite(values).any() or name in fitted.ensemble.experts
        }
        scored = np.all([np.isfinite(values) for values in logits.values()], axis=0)
        rows = rows.filter(pa.array(scored))
        logits = {name: values[scored] for name, values in logits.items()}
        slices = _slices(warehouse, rows, fitted.ensemble.sliced_by)
        yield HeldOut(
            goal=goal.name,
            start_us=test.start_us,
            end_us=test.end_us,
            impression_ids=rows.column("impression_id"),
            labels=rows.column("label").to_numpy(),
            hours_us=_hours(rows),
            serving_us=rows.column("serving_us").to_numpy(),
            mixture=MixtureParts(
                kind=fitted.ensemble.kind,
                logits=logits,
                shares=fitted.ensemble.shares,
                centre=fitted.ensemble.centre(logits),
                batch_ages_us=_batch_ages_us(
                    warehouse, deployment, goal.name, rows.column("serving_us").to_numpy()
                ),
            ),
            probabilities={
                BASE_RATE: np.full(rows.num_rows, fitted.base_rate),
                **{name: probabilities_of(values) for name, values in logits.items()},
                ENSEMBLE: fitted.ensemble.apply(logits, None if slices is None else slices.hashes),
            },
        )


def _matured_rows(
    warehouse: Warehouse, deployment: Deployment, goal: Goal, matured: Range | None
) -> pa.Table:
    """Read the scored, matured rows of a goal: of a range, or of the newest hours."""
    dataset = deployment.dataset
    query = select("evaluation.scored_rows")
    with warehouse.reader() as connection:
        if matured is None:
            (last_us,) = one_row(
                connection,
                "SELECT max(matured_us) FROM examples.labelled_impressions WHERE goal = $goal",
                {"goal": goal.name},
            )
            end_us = hour_of(dataset.start_us if last_us is None else last_us) + HOUR_US
            matured = Range(end_us - dataset.settings.ensemble.lookback_hours * HOUR_US, end_us)
        parameters = {
            "goals": [goal.name],
            "start_us": matured.start_us,
            "end_us": matured.end_us,
            "horizon_us": dataset.maturity_us,
        }
        return rows_of(connection, query, parameters)


def _provisional_rows(
    warehouse: Warehouse, deployment: Deployment, goal: Goal, ranges: Ranges
) -> ProvisionalRows:
    """Read the rows that had not matured by the end of the last sealed hour.

    Arrival delays are those of the fit and calibration ranges: the labels of the test range stay
    unseen.
    """
    parameters = {
        "goal": goal.name,
        "window_us": goal.window_us,
        "lateness_us": goal.lateness_us,
        "horizon_us": deployment.dataset.maturity_us,
        "start_us": ranges.fit.start_us,
        "end_us": ranges.calibration.end_us,
    }
    with warehouse.reader() as connection:
        (latest_us,) = one_row(
            connection,
            "SELECT max(state_us) FROM examples.label_states "
            "WHERE goal = $goal AND state_us >= $matured_until_us",
            {"goal": goal.name, "matured_until_us": ranges.test.end_us},
        )
        # Events may be sealed ahead of the label join: there, missing labels are not negatives.
        joined_us = ranges.test.end_us if latest_us is None else hour_of(latest_us) + HOUR_US
        now_us = min(sealed_until(connection), joined_us)
        delays = rows_of(connection, select("learners.arrival_delays"), parameters)
        rows = rows_of(
            connection, select("learners.provisional_rows"), parameters | {"now_us": now_us}
        )
    return ProvisionalRows(
        now_us=now_us,
        logits=_logits(deployment, rows),
        labels=rows.column("label").to_numpy(),
        anchor_us=rows.column("anchor_us").to_numpy(),
        serving_us=rows.column("serving_us").to_numpy(),
        delays=ArrivalDelays(
            *(delays.column(name).to_numpy() for name in ("delay_us", "observed", "emitted"))
        ),
    )


def _batch_ages_us(
    warehouse: Warehouse, deployment: Deployment, goal: str, serving_us: np.ndarray
) -> np.ndarray:
    """Return how far past its labels the batch model was that scored each row, int64 (n,).

    Microseconds; -1 where there was none.
    """
    ages_us = np.full(len(serving_us), -1, dtype=np.int64)
    if not len(serving_us):
        return ages_us
    parameters = {"goal": goal, "start_us": serving_us.min(), "end_us": serving_us.max() + 1}
    with warehouse.reader() as connection:
        found = rows_of(
            connection,
            select("learners.batch_models_in_force"),
            {name: value if name == "goal" else int(value) for name, value in parameters.items()},
        )
    watermarks = {
        digest: read_checkpoint(deployment.checkpoints, digest).manifest["label_watermark_us"]
        for digest in set(found.column("model_hash").to_pylist())
    }
    for row in found.to_pylist():
        here = (serving_us >= row["hour_us"]) & (serving_us < row["hour_us"] + HOUR_US)
        ages_us[here] = serving_us[here] - watermarks[row["model_hash"]]
    return ages_us


def _slices(warehouse: Warehouse, rows: pa.Table, column: str | None) -> Slices | None:
    """Read the slice of each matured row; None without a column to slice by."""
    if column is None:
        return None
    served = read_impressions(
        warehouse, rows.column("impression_id"), rows.column("serving_us").to_numpy(), (column,)
    )
    values = served.column(column).cast(pa.string())
    distinct = values.unique()
    named = hash_strings(distinct, seed_of(column)).tolist()
    texts = [MISSING_LABEL if text is None else text for text in distinct.to_pylist()]
    return Slices(
        column, hash_strings(values, seed_of(column)), dict(zip(named, texts, strict=True))
    )


def _logits(deployment: Deployment, rows: pa.Table) -> dict[str, np.ndarray]:
    """Return each expert's logits, float64 (n,), NaN where it gave none."""
    return {
        name: rows.column(f"{name}_logit").cast(pa.float64()).to_numpy().astype(np.float64)
        for name in experts_of(deployment.dataset.settings)
    }


def _hours(rows: pa.Table) -> np.ndarray:
    matured_us = rows.column("matured_us").to_numpy()
    return matured_us - matured_us % HOUR_US
