"""Distance to the true probabilities of a simulated log.

The simulator knows the probability of every engagement; nothing that learns may. This module is
the only reader of that file, and a test holds the rest of the package to it. On a real log there is
no such file and nothing here applies. The truth is the probability given everything the simulator
knows, so a model without some of that (a user's taste) keeps a distance that no learning removes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ad_pipeline.evaluation import metrics

COLUMNS = ("impression_id", "goal", "probability", "label")


@dataclass(frozen=True)
class TruthDistance:
    """How far a forecast is from the true probabilities.

    Attributes
    ----------
    rows : int
        Rows compared.
    unmatched : int
        Forecasts without a truth (an impression that was never clicked has no true purchase
        probability).
    mean_kl : float
        Mean Kullback-Leibler divergence from the truth, nats a row: the expected log loss above
        ``true_entropy``.
    mean_absolute_logit_error : float
        Mean distance in log odds.
    correlation : float
        Pearson correlation of the log odds; NaN when either is constant.
    calibration_ratio : float
        Sum of forecasts over sum of true probabilities.
    true_entropy : float
        Expected log loss of the truth itself: no forecast can expect less.
    """

    rows: int
    unmatched: int
    mean_kl: float
    mean_absolute_logit_error: float
    correlation: float
    calibration_ratio: float
    true_entropy: float


def read_truth(path: Path, goal: str) -> pa.Table:
    """Read the truth of one goal.

    Parameters
    ----------
    path : Path
        Parquet file, or folder of them, with columns impression_id, goal, probability, label.
    goal : str

    Returns
    -------
    pyarrow.Table
        impression_id, probability (float64) and label of the rows of that goal.

    Raises
    ------
    FileNotFoundError
        If there is none: only a simulated log has a truth.
    """
    return pq.read_table(path, columns=list(COLUMNS), filters=[("goal", "==", goal)]).drop_columns(
        ["goal"]
    )


def distance_to_truth(
    truth: pa.Table, impression_ids: pa.Array | pa.ChunkedArray, probabilities: ArrayLike
) -> TruthDistance:
    """Compare forecasts with the true probabilities of the same impressions.

    Parameters
    ----------
    truth : pyarrow.Table
        From :func:`read_truth`.
    impression_ids : pyarrow array of string, shape (n,)
    probabilities : array_like of float64, shape (n,)
        Clipped to [1e-7, 1 - 1e-7]; so is the truth.

    Returns
    -------
    TruthDistance
        Means are NaN when no forecast has a truth.

    Raises
    ------
    ValueError
        If the truth names an impression twice or the shapes differ.
    """
    forecasts = np.asarray(probabilities, dtype=np.float64)
    if forecasts.shape != (len(impression_ids),):
        raise ValueError(f"{len(impression_ids)} impressions but forecasts {forecasts.shape}")
    known = truth.column("impression_id").cast(pa.string())
    if len(known.unique()) != len(known):
        raise ValueError("the truth names an impression twice")
    found = pc.call_function(
        "index_in",
        [impression_ids.cast(pa.string())],
        pc.SetLookupOptions(value_set=known.combine_chunks()),
    )
    position = found.fill_null(-1).to_numpy(zero_copy_only=False)
    matched = position >= 0
    true = truth.column("probability").to_numpy()[position[matched]]
    return _distance(true, forecasts[matched], unmatched=int(np.count_nonzero(~matched)))


def _distance(
    true: NDArray[np.float64], forecast: NDArray[np.float64], *, unmatched: int
) -> TruthDistance:
    if not len(true):
        nan = float("nan")
        return TruthDistance(0, unmatched, nan, nan, nan, nan, nan)
    q = np.clip(true, metrics.CLIP, 1 - metrics.CLIP)
    p = np.clip(forecast, metrics.CLIP, 1 - metrics.CLIP)
    divergence = q * np.log(q / p) + (1 - q) * (np.log1p(-q) - np.log1p(-p))
    true_logit, logit = metrics.logits_of(q), metrics.logits_of(p)
    # Peak to peak is exactly 0 for a constant; a standard deviation may be off by rounding.
    varies = np.ptp(true_logit) > 0 and np.ptp(logit) > 0
    return TruthDistance(
        rows=len(q),
        unmatched=unmatched,
        mean_kl=float(divergence.mean()),
        mean_absolute_logit_error=float(np.abs(logit - true_logit).mean()),
        correlation=float(np.corrcoef(true_logit, logit)[0, 1]) if varies else float("nan"),
        calibration_ratio=float(p.sum() / q.sum()),
        true_entropy=float(-(q * np.log(q) + (1 - q) * np.log1p(-q)).mean()),
    )
