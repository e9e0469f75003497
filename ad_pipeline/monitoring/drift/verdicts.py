"""From measured drift to verdicts: pure functions, the same for a log and for a study of made rows.

Reading a log is :mod:`.verdicts_of_log`; what a verdict is answered by is :mod:`.causes`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.monitoring.drift.causes import DriftFound, DriftKind
from ad_pipeline.monitoring.drift.inputs import FALSE_DISCOVERIES, quantile_counts
from ad_pipeline.monitoring.drift.losses import Ring, deviations, page_hinkley
from ad_pipeline.monitoring.drift.statistics import (
    benjamini_hochberg,
    block_p_value,
    distances_of_numbers,
    psi,
)
from ad_pipeline.settings import Settings


def input_verdicts(columns: Sequence[Mapping[str, Any]], settings: Settings) -> list[DriftFound]:
    """Return whether the inputs as a whole shifted, and whether categories came that are new.

    Parameters
    ----------
    columns : sequence of mapping
        Rows of ``monitoring.drift``, of one comparison.
    settings : Settings
    """
    ordered = sorted(columns, key=lambda column: (-column["psi"], column["column_name"]))
    if not ordered:
        return []
    moved = {
        column["column_name"]: round(column["psi"], 4) for column in ordered if column["drifted"]
    }
    highest = ordered[0]
    found = [
        DriftFound(
            "inputs",
            "",
            len(moved) >= settings.drift.minimum_drifted_columns,
            highest["psi"],
            settings.drift.psi_threshold,
            {
                "hours_until": timestamp(highest["current_end_us"]),
                "columns": moved,
                "highest": {highest["column_name"]: round(highest["psi"], 4)},
                "reference": highest["reference_rule"],
            },
        )
    ]
    named = [column for column in ordered if column["unseen"] is not None]
    if not named:
        return found
    adjusted = benjamini_hochberg([column["unseen_p_value"] for column in named])
    excess = [column["unseen"] - column["unseen_expected"] for column in named]
    threshold = settings.drift_actions.new_category_share
    new = {
        column["column_name"]: round(column["unseen"], 4)
        for column, more, chance in zip(named, excess, adjusted, strict=True)
        if more >= threshold and chance <= FALSE_DISCOVERIES
    }
    return [
        *found,
        DriftFound("new_categories", "", bool(new), max(excess), threshold, {"unseen_share": new}),
    ]


def loss_verdicts(
    subject: str,
    matured_us: NDArray[np.int64],
    labels: NDArray[np.int8],
    logits: NDArray[np.float64],
    end_us: int,
    settings: Settings,
) -> Iterator[DriftFound]:
    """Return whether scores of matured rows are wrong otherwise than they used to be.

    Parameters
    ----------
    subject : str
        Goal and expert.
    matured_us : ndarray of shape (n,), int64
        Rising.
    labels : ndarray of shape (n,), 0 or 1
    logits : ndarray of shape (n,), float64
        As served.
    end_us : int
        End of the last hour to look at.
    settings : Settings

    Yields
    ------
    DriftFound
        Of kind concept, then calibration; nothing without enough rows for a point.
    """
    off = deviations(matured_us, labels, logits)
    if not len(off.until_us):
        return
    recent_hours = settings.drift.current_hours
    recent = off.until_us > end_us - recent_hours * HOUR_US
    ratio = float(off.ratio[recent].mean()) if recent.any() else None
    watched: tuple[tuple[DriftKind, NDArray[np.float64]], ...] = (
        ("concept", off.concept),
        ("calibration", off.calibration),
    )
    for kind, series in watched:
        ring = page_hinkley(off.until_us, series, settings.drift_actions, recent_hours)
        yield DriftFound(
            kind,
            subject,
            _rings_now(ring, end_us, recent_hours),
            ring.change,
            settings.drift_actions.loss_threshold,
            {
                "rang": None if ring.rang_us is None else timestamp(ring.rang_us),
                "points": len(off.until_us),
                "rows": len(labels),
                "observed_over_predicted": ratio,
            },
        )


def _rings_now(ring: Ring, end_us: int, recent_hours: int) -> bool:
    """Tell whether it rang in the last hours: an old ring was answered, or is the world by now."""
    return ring.rang_us is not None and ring.rang_us > end_us - recent_hours * HOUR_US


def delay_verdict(
    goal: str,
    before: NDArray[np.float64],
    days_back: NDArray[np.int64],
    now: NDArray[np.float64],
    threshold: float,
) -> DriftFound:
    """Compare delays of positives: the index over deciles, days as blocks.

    Parameters
    ----------
    goal : str
    before, now : ndarray of float64
        Delays, microseconds.
    days_back : ndarray of int64
        Day of each delay in ``before``, counted back from 0.
    threshold : float
    """
    blocks, current = quantile_counts(before, days_back, now)
    index = psi(blocks.sum(axis=0), current)
    p_value = block_p_value(blocks, current, index)
    gap, _ = distances_of_numbers(before, now)
    return DriftFound(
        "label_delay",
        goal,
        index >= threshold and p_value <= FALSE_DISCOVERIES,
        index,
        threshold,
        {
            "p_value": p_value,
            "kolmogorov_smirnov": gap,
            "median_seconds_before": float(np.median(before)) / 1e6,
            "median_seconds": float(np.median(now)) / 1e6,
            "positives": len(now),
        },
    )
