"""Progressive scores: what each expert said at serving time, measured once the label is final.

Progressive validation (McMahan et al., KDD 2013) tests every row before it is learned. With delayed
labels the test must also wait: a row counts in the hour in which its label matured, never in the
hour in which it was served, and is measured by the score given at serving time, never by a newer
model's. The rows come from ``dbt_like_sql/evaluation/scored_rows.sql``; they are grouped here
because sums of floats in SQL differ from run to run. Provisional labels do not belong here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.tables import PROGRESSIVE_METRICS
from ad_pipeline.settings import Settings
from ad_pipeline.warehouse import arrow_rows

EXPERTS = ("online", "batch", "deep")
"""Experts with a column ``<expert>_logit`` in the scored rows."""


class Immature(ValueError):
    """A row is asked to be scored in an hour in which its label was not final."""


def experts_of(settings: Settings) -> tuple[str, ...]:
    """Return the experts of a deployment: wide & deep is one if the settings ask for it."""
    return tuple(name for name in EXPERTS if name != "deep" or settings.deep is not None)


@dataclass(frozen=True)
class ScoredRows:
    """The scored, matured rows of one goal and one expert.

    Attributes
    ----------
    goal, expert : str
    labels : ndarray of int8, shape (n,)
    logits : ndarray of float64, shape (n,)
    matured_us, serving_us : ndarray of int64, shape (n,)
        Microseconds since the epoch, UTC.
    unscored_matured_us : ndarray of int64, shape (m,)
        Maturity of the rows that the expert did not score.
    """

    goal: str
    expert: str
    labels: NDArray[np.int8]
    logits: NDArray[np.float64]
    matured_us: NDArray[np.int64]
    serving_us: NDArray[np.int64]
    unscored_matured_us: NDArray[np.int64]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Logistic function of the logits, shape (n,)."""
        return metrics.probabilities_of(self.logits)

    @property
    def hours(self) -> NDArray[np.int64]:
        """Start of the hour in which each row matured, shape (n,): the blocks of intervals."""
        return self.matured_us - self.matured_us % HOUR_US


def by_goal_and_expert(rows: pa.Table, experts: Sequence[str]) -> Iterator[ScoredRows]:
    """Split scored rows by goal and expert, goals in order of name.

    Parameters
    ----------
    rows : pyarrow.Table
        Columns of ``scored_rows.sql``: goal, impression_id, serving_us, matured_us, label and
        ``<expert>_logit`` of each expert.
    experts : sequence of str

    Yields
    ------
    ScoredRows
        Rows keep their order.
    """
    goals = rows.column("goal").to_numpy(zero_copy_only=False)
    labels = rows.column("label").to_numpy(zero_copy_only=False).astype(np.int8)
    matured_us = rows.column("matured_us").to_numpy().astype(np.int64)
    serving_us = rows.column("serving_us").to_numpy().astype(np.int64)
    logits = {
        expert: rows.column(f"{expert}_logit").cast(pa.float64()).to_numpy(zero_copy_only=False)
        for expert in experts
    }
    for goal in sorted(set(goals)):
        of_goal = goals == goal
        for expert in experts:
            scored = of_goal & ~np.isnan(logits[expert])
            yield ScoredRows(
                goal=goal,
                expert=expert,
                labels=labels[scored],
                logits=logits[expert][scored],
                matured_us=matured_us[scored],
                serving_us=serving_us[scored],
                unscored_matured_us=matured_us[of_goal & ~scored],
            )


def progressive_metrics(
    rows: pa.Table,
    start_us: int,
    end_us: int,
    watermark_us: int,
    experts: Sequence[str],
) -> pa.Table:
    """Measure every expert on the rows that matured in ``[start_us, end_us)``.

    Parameters
    ----------
    rows : pyarrow.Table
        As for :func:`by_goal_and_expert`.
    start_us, end_us : int
        Hours, microseconds since the epoch.
    watermark_us : int
        How far the log is closed; a label that matures at or after it is not final yet.
    experts : sequence of str

    Returns
    -------
    pyarrow.Table
        Rows of ``evaluation.progressive_metrics``, by hour, goal and expert. An hour without
        matured rows of a goal has none.

    Raises
    ------
    Immature
        If a row matured outside the hours, at or past the watermark, or before it was served.
    """
    _refuse_immature(rows, start_us, end_us, watermark_us)
    measured = [
        record for scored in by_goal_and_expert(rows, experts) for record in _hourly(scored)
    ]
    measured.sort(key=lambda record: (record["hour_us"], record["goal"], record["expert"]))
    return arrow_rows(PROGRESSIVE_METRICS, measured)


def _refuse_immature(rows: pa.Table, start_us: int, end_us: int, watermark_us: int) -> None:
    if not rows.num_rows:
        return
    matured_us = rows.column("matured_us").to_numpy()
    serving_us = rows.column("serving_us").to_numpy()
    faults = (
        (matured_us < start_us, f"matured before {start_us}"),
        (matured_us >= end_us, f"matured at or after {end_us}"),
        (matured_us >= watermark_us, f"matures at or after the watermark {watermark_us}"),
        (matured_us < serving_us, "matured before it was served"),
    )
    for faulty, reason in faults:
        if faulty.any():
            first = rows.column("impression_id")[int(np.argmax(faulty))]
            raise Immature(f"{int(faulty.sum())} rows, first impression {first}: {reason}")


def _hourly(scored: ScoredRows) -> Iterator[dict[str, object]]:
    hours = scored.hours
    unscored_hours = scored.unscored_matured_us - scored.unscored_matured_us % HOUR_US
    all_probabilities = scored.probabilities
    losses = metrics.row_losses(scored.labels, all_probabilities)
    order = np.argsort(hours, kind="stable")
    for hour in np.union1d(hours, unscored_hours):
        begin, end = np.searchsorted(hours, [hour, hour + 1], sorter=order)
        chosen = order[begin:end]
        probabilities = all_probabilities[chosen]
        summary = metrics.summarize(scored.labels[chosen], probabilities)
        yield {
            "hour_us": int(hour),
            "goal": scored.goal,
            "expert": scored.expert,
            "rows": summary.rows,
            "unscored": int(np.count_nonzero(unscored_hours == hour)),
            "positives": summary.positives,
            "loss_sum": float(losses[chosen].sum()),
            "probability_sum": float(probabilities.sum()),
            **{name: getattr(summary, name) for name in metrics.METRICS},
        }
