"""The report: every measure of a forecast on a named range of matured hours, with its interval.

A figure without its range invites the question whether the model was fitted on it; so a range has
a name (fit, calibration, test) and its hours stand beside the figure. Choosing the ranges belongs
to ``learners``; comparing experts to :mod:`ad_pipeline.evaluation.held_out`.
"""

import pyarrow as pa
from numpy.typing import ArrayLike

from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.intervals import interval
from ad_pipeline.evaluation.tables import REPORT
from ad_pipeline.warehouse import arrow_rows


def report_rows(
    goal: str,
    expert: str,
    range_name: str,
    range_start_us: int,
    range_end_us: int,
    labels: ArrayLike,
    probabilities: ArrayLike,
    blocks: ArrayLike,
    *,
    seed: int,
    replicates: int,
    level: float = 0.95,
) -> pa.Table:
    """Return the rows of ``evaluation.report`` for one goal, expert and range.

    Parameters
    ----------
    goal, expert, range_name : str
    range_start_us, range_end_us : int
        Matured hours ``[start, end)``, microseconds since the epoch.
    labels : array_like of {0, 1}, shape (n,)
    probabilities : array_like of float64, shape (n,)
    blocks : array_like of int64, shape (n,)
        Hour in which each row matured.
    seed, replicates, level
        As for :func:`ad_pipeline.evaluation.intervals.intervals`. With one seed all experts meet
        the same draws of hours.

    Returns
    -------
    pyarrow.Table
        One row per measure.

    Raises
    ------
    ValueError
        If shapes differ or a value is out of range.
    """
    summary = metrics.summarize(labels, probabilities)
    bounds = interval(labels, probabilities, blocks, seed, replicates, level)
    return arrow_rows(
        REPORT,
        [
            {
                "goal": goal,
                "expert": expert,
                "range_name": range_name,
                "range_start_us": range_start_us,
                "range_end_us": range_end_us,
                "rows": summary.rows,
                "positives": summary.positives,
                "metric": name,
                "value": getattr(summary, name),
                "low": bounds[name][0],
                "high": bounds[name][1],
            }
            for name in metrics.METRICS
        ],
    )
