"""Forecasts of several experts on the same matured rows that no fit has seen, and their comparison.

What turns such rows into ``evaluation.report``: the measures of each expert, who is better than
whom, and, on a simulated log, how far each is from the truth. Which hours are held out is chosen in
``learners``; a single expert's measures are :mod:`ad_pipeline.evaluation.report`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.intervals import PairedDifference, paired_difference
from ad_pipeline.evaluation.report import report_rows
from ad_pipeline.evaluation.tables import REPORT
from ad_pipeline.evaluation.truth import distance_to_truth, read_truth
from ad_pipeline.settings import Settings
from ad_pipeline.warehouse import arrow_rows

ENSEMBLE = "ensemble"
BASE_RATE = "base rate"
RANGE = "test"


@dataclass(frozen=True)
class MixtureParts:
    """What a mixture is made of, row by row.

    Attributes
    ----------
    kind : str
        An expert's name, ``average``, ``voting`` or ``stacked``.
    logits : dict of str to ndarray of shape (n,), float64
        Of every expert that scored the rows, also of those that the mixture does not read.
    shares : dict of str to float
        Of the experts that it reads; they sum to 1.
    centre : ndarray of shape (n,), float64
        Logit of the experts by their shares, before any intercept, slope or calibration.
    batch_ages_us : ndarray of shape (n,), int64
        Serving time less the end of the labels that the batch model in force had seen; -1 where
        there was no batch model.
    """

    kind: str
    logits: dict[str, np.ndarray]
    shares: dict[str, float]
    centre: np.ndarray
    batch_ages_us: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """What every expert said about the same matured rows of one goal.

    Attributes
    ----------
    goal : str
    start_us, end_us : int
        The hours of maturity ``[start_us, end_us)``, microseconds.
    impression_ids : pyarrow array of string, shape (n,)
    labels : ndarray of shape (n,), int8
    hours_us : ndarray of shape (n,), int64
        Hour in which each row matured: the blocks of every interval.
    serving_us : ndarray of shape (n,), int64
    probabilities : dict of str to ndarray of shape (n,), float64
        By expert, :data:`BASE_RATE` first; :data:`ENSEMBLE` when there is one.
    mixture : MixtureParts or None
        Of the ensemble.
    """

    goal: str
    start_us: int
    end_us: int
    impression_ids: pa.ChunkedArray
    labels: np.ndarray
    hours_us: np.ndarray
    serving_us: np.ndarray
    probabilities: dict[str, np.ndarray]
    mixture: MixtureParts | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """The single experts: neither the base rate nor the ensemble."""
        return tuple(name for name in self.probabilities if name not in (BASE_RATE, ENSEMBLE))

    @property
    def best_expert(self) -> str:
        """The single expert with the lowest log loss on these rows."""
        losses = {
            name: metrics.row_losses(self.labels, self.probabilities[name]).mean()
            for name in self.experts
        }
        return min(losses, key=lambda name: losses[name])

    def difference(self, left: str, right: str, settings: Settings) -> PairedDifference:
        """Return by how much ``left`` loses against ``right``, paired by hour."""
        return paired_difference(
            self.labels,
            self.probabilities[left],
            self.probabilities[right],
            self.hours_us,
            settings.seed,
            settings.evaluation.replicates,
            settings.evaluation.level,
        )


def held_out_rows(held_out: HeldOut, settings: Settings, truth: Path | None) -> pa.Table:
    """Return all rows of ``evaluation.report`` for one goal.

    Parameters
    ----------
    held_out : HeldOut
    settings : Settings
    truth : Path or None
        Folder of the simulator's truth; None on a real log.

    Returns
    -------
    pyarrow.Table
        The measures of every forecast with intervals; ``relative_log_loss`` of the ensemble against
        the best single expert with its two-sided interval, and ``relative_log_loss_upper``, its
        one-sided upper bound; with a truth, the ``truth_`` distances.
    """
    measured = [
        report_rows(
            held_out.goal,
            expert,
            RANGE,
            held_out.start_us,
            held_out.end_us,
            held_out.labels,
            probabilities,
            held_out.hours_us,
            seed=settings.seed,
            replicates=settings.evaluation.replicates,
            level=settings.evaluation.level,
        )
        for expert, probabilities in held_out.probabilities.items()
    ]
    if ENSEMBLE in held_out.probabilities:
        best = held_out.best_expert
        found = held_out.difference(ENSEMBLE, best, settings)
        nothing = float("nan")
        figures = {
            "relative_log_loss": (found.relative, found.low, found.high),
            "relative_log_loss_upper": (found.upper, nothing, nothing),
        }
        measured.append(_rows(held_out, f"{ENSEMBLE} v. {best}", figures))
    if truth is not None:
        true = read_truth(truth, held_out.goal)
        for expert, probabilities in held_out.probabilities.items():
            distance = asdict(distance_to_truth(true, held_out.impression_ids, probabilities))
            nothing = float("nan")
            measured.append(
                _rows(
                    held_out,
                    expert,
                    {
                        f"truth_{name.removeprefix('true_')}": (float(value), nothing, nothing)
                        for name, value in distance.items()
                    },
                )
            )
    return pa.concat_tables(measured)


def _rows(
    held_out: HeldOut, expert: str, figures: dict[str, tuple[float, float, float]]
) -> pa.Table:
    return arrow_rows(
        REPORT,
        [
            {
                "goal": held_out.goal,
                "expert": expert,
                "range_name": RANGE,
                "range_start_us": held_out.start_us,
                "range_end_us": held_out.end_us,
                "rows": len(held_out.labels),
                "positives": int(held_out.labels.sum()),
                "metric": name,
                "value": value,
                "low": low,
                "high": high,
            }
            for name, (value, low, high) in figures.items()
        ],
    )
