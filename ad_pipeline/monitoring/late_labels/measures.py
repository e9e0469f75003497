"""How the arms did on the anchors that all of them are judged by, with intervals and in slices.

Raw values first; the share of the gap between pre-trained and oracle that an arm closes (RI of the
papers) only beside them, since it depends on both ends and is not comparable between logs.
Intervals resample blocks, the same for all arms, so that differences and shares are paired; seeds
are averaged inside each draw. An arm that could be deployed and still beats the oracle beyond noise
has seen a label that it should not have: that is what :func:`leaks` looks for. Replaying the arms
is :mod:`.prequential`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.intervals import percentiles, replicated
from ad_pipeline.monitoring.late_labels.arms import ORACLE, PRE_TRAINED, VANILLA, Arm
from ad_pipeline.monitoring.late_labels.prequential import Replay, judged_anchors
from ad_pipeline.monitoring.late_labels.stream import LateStream

CLOSED = ("log_loss", "pr_auc", "roc_auc")
"""Measures whose gap between pre-trained and oracle is shared out."""

LEVEL = 0.95
LEAK_LEVEL = 0.999
"""Of the interval beyond which an arm must beat the oracle: twenty arms a log are tried."""

LEAST_POSITIVES = 100
"""By which an arm is accused of a leak: of fewer, an interval over blocks is too short."""

LEAST_DAYS = 8
"""With as many days, blocks are days; with fewer, hours."""

AD_AGES_H = ((0, 1), (1, 6), (6, 24), (24, 72), (72, 10**6))
DELAY_PARTS = 4


@dataclass(frozen=True)
class JudgedRows:
    """The anchors that arms are judged by; s rows.

    Attributes
    ----------
    labels : ndarray of shape (s,), int8
    blocks : ndarray of shape (s,), int64
        Start of each row's block of serving time.
    hours : ndarray of shape (s,), int64
        Start of its hour.
    delay_us : ndarray of shape (s,), int64
        From anchor to arrival; -1 without one.
    in_window : ndarray of shape (s,), bool
        Positive when the observation window was over.
    ad_age_us : ndarray of shape (s,), int64
        -1 where it is not known.
    """

    labels: np.ndarray
    blocks: np.ndarray
    hours: np.ndarray
    delay_us: np.ndarray
    in_window: np.ndarray
    ad_age_us: np.ndarray

    @classmethod
    def of(cls, stream: LateStream, replay: Replay) -> "JudgedRows":
        """Return the judged rows of a stream."""
        places = judged_anchors(stream, replay)
        served_us = stream.served_us[places]
        days = np.unique(served_us // DAY_US)
        block_us = DAY_US if len(days) >= LEAST_DAYS else HOUR_US
        arrived_us, anchor_us = stream.arrived_us[places], stream.anchor_us[places]
        first_us = np.maximum(anchor_us + stream.goal.observation_us, served_us)
        positive = stream.labels[places] == 1
        return cls(
            labels=stream.labels[places],
            blocks=served_us // block_us * block_us,
            hours=served_us // HOUR_US * HOUR_US,
            delay_us=np.where(positive & (arrived_us >= 0), arrived_us - anchor_us, -1),
            in_window=positive & (arrived_us >= 0) & (arrived_us <= first_us),
            ad_age_us=stream.ad_age_us[places],
        )


@dataclass(frozen=True)
class Measured:
    """One figure of one arm.

    Attributes
    ----------
    arm : str
    slice_of, part : str
        What the rows are sliced by, and which slice; '' for all rows.
    metric : str
    value, low, high : float
        Mean over the seeds, and the interval; NaN where there is none.
    rows, positives : int
    """

    arm: str
    slice_of: str
    part: str
    metric: str
    value: float
    low: float
    high: float
    rows: int
    positives: int


def hour_weighted_auc(labels: np.ndarray, p: np.ndarray, hours: np.ndarray) -> float:
    """Return the mean over hours of the ROC-AUC, weighted by rows, as streaming papers report it.

    Hours of one class alone are left out.
    """
    return hour_weighted(metrics.roc_auc, labels, p, hours)


def hour_weighted(
    measure: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    p: np.ndarray,
    hours: np.ndarray,
) -> float:
    """Return the mean over hours of a measure of labels and forecasts, weighted by rows.

    Hours for which it is NaN are left out.
    """
    order = np.argsort(hours, kind="stable")
    bounds = np.flatnonzero(np.diff(hours[order], prepend=-1, append=-1))
    total = weight = 0.0
    for first, last in pairwise(bounds.tolist()):
        rows = order[first:last]
        area = measure(labels[rows], p[rows])
        if not np.isnan(area):
            total += area * len(rows)
            weight += len(rows)
    return total / weight if weight else float("nan")


def measure_arms(
    rows: JudgedRows,
    log_odds: Mapping[str, Sequence[np.ndarray]],
    examples: Mapping[str, Sequence[int]],
    seed: int,
    replicates: int,
) -> Iterator[Measured]:
    """Yield every figure of every arm.

    Parameters
    ----------
    rows : JudgedRows of s rows
    log_odds : mapping of str to sequence of ndarray of shape (s,), float64
        By arm, of each seed.
    examples : mapping of str to sequence of int
        Rows that each arm learnt, of each seed.
    seed : int
        Of the draws.
    replicates : int
    """
    drawn: dict[str, dict[str, np.ndarray]] = {}
    pooled: dict[str, dict[str, float]] = {}
    count, positives = len(rows.labels), int(rows.labels.sum())
    for arm, of_seeds in log_odds.items():
        forecasts = [metrics.probabilities_of(each) for each in of_seeds]
        found = [
            replicated(rows.labels, p, rows.blocks, seed, replicates).values for p in forecasts
        ]
        drawn[arm] = {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}
        summaries = [metrics.summarize(rows.labels, p) for p in forecasts]
        pooled[arm] = {
            name: float(np.mean([getattr(each, name) for each in summaries]))
            for name in metrics.METRICS
        }
        for name, value in pooled[arm].items():
            low, high = _bounds(drawn[arm].get(name))
            yield Measured(arm, "", "", name, value, low, high, count, positives)
        weighted = np.mean([hour_weighted_auc(rows.labels, p, rows.hours) for p in forecasts])
        none = float("nan")
        yield Measured(
            arm, "", "", "hour_weighted_roc_auc", float(weighted), none, none, count, positives
        )
        learnt = float(np.mean(examples[arm])) if examples.get(arm) else 0.0
        yield Measured(arm, "", "", "gradient_examples", learnt, none, none, count, positives)
    yield from _gaps(pooled, drawn, count, positives)
    for arm, of_seeds in log_odds.items():
        yield from _slices(arm, rows, [metrics.probabilities_of(each) for each in of_seeds])


def leaks(figures: Sequence[Measured], arms: Sequence[Arm]) -> list[Measured]:
    """Return the deployable arms that beat the oracle's log loss beyond noise."""
    deployable = {arm.name for arm in arms if arm.deployable}
    return [
        each
        for each in figures
        if each.metric == "log_loss_against_oracle"
        and each.arm in deployable
        and each.positives >= LEAST_POSITIVES
        and each.high < 0
    ]


def _gaps(
    pooled: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    count: int,
    positives: int,
) -> Iterator[Measured]:
    """Yield relative differences in log loss, and shares of the gap that are closed."""
    for arm in pooled:
        for other, level in ((VANILLA, LEVEL), (ORACLE, LEAK_LEVEL)):
            if other in pooled and arm != other:
                name = f"log_loss_against_{'vanilla' if other == VANILLA else 'oracle'}"
                value = pooled[arm]["log_loss"] / pooled[other]["log_loss"] - 1
                if "log_loss" in drawn[arm]:
                    ratio = drawn[arm]["log_loss"] / drawn[other]["log_loss"] - 1
                    low, high = percentiles(ratio, level)
                else:
                    low = high = float("nan")
                yield Measured(arm, "", "", name, value, low, high, count, positives)
        if not {PRE_TRAINED, ORACLE} <= pooled.keys():
            continue
        for name in CLOSED:
            gap = pooled[ORACLE][name] - pooled[PRE_TRAINED][name]
            share = (pooled[arm][name] - pooled[PRE_TRAINED][name]) / gap if gap else float("nan")
            low = high = float("nan")
            if name in drawn[arm]:
                with np.errstate(divide="ignore", invalid="ignore"):
                    before = drawn[PRE_TRAINED][name]
                    low, high = percentiles(
                        (drawn[arm][name] - before) / (drawn[ORACLE][name] - before), LEVEL
                    )
            yield Measured(arm, "", "", f"share_of_{name}_gap", share, low, high, count, positives)


def _slices(arm: str, rows: JudgedRows, forecasts: Sequence[np.ndarray]) -> Iterator[Measured]:
    for slice_of, part, chosen in slices(rows):
        labels = rows.labels[chosen]
        count, positives = len(labels), int(labels.sum())
        if not count:
            continue
        for name, measured in (
            ("log_loss", metrics.log_loss),
            ("calibration_ratio", metrics.calibration_ratio),
        ):
            value = float(np.mean([measured(labels, p[chosen]) for p in forecasts]))
            none = float("nan")
            yield Measured(arm, slice_of, part, name, value, none, none, count, positives)


def slices(rows: JudgedRows) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield what rows are sliced by, the slice, and which rows are in it, bool (s,)."""
    for low, high in AD_AGES_H:
        name = f"{low} to {high} h" if high < 10**6 else f"{low} h on"
        chosen = (rows.ad_age_us >= low * HOUR_US) & (rows.ad_age_us < high * HOUR_US)
        yield "age of the ad", name, chosen
    delayed = rows.delay_us[rows.delay_us >= 0]
    if len(delayed):
        edges = np.quantile(delayed, np.linspace(0, 1, DELAY_PARTS + 1))
        part = np.searchsorted(edges[1:-1], rows.delay_us, side="left")
        for place in range(DELAY_PARTS):
            chosen = (rows.delay_us >= 0) & (part == place)
            yield "delay of the positive", f"part {place + 1} of {DELAY_PARTS}", chosen
    late = (rows.delay_us >= 0) & ~rows.in_window
    yield "positives", "in the window, and all negatives", ~late
    yield "positives", "after the window, and all negatives", ~rows.in_window
    for hour in range(24):
        yield "hour of day", f"{hour:02}:00", rows.hours // HOUR_US % 24 == hour


def _bounds(drawn: np.ndarray | None) -> tuple[float, float]:
    return (float("nan"), float("nan")) if drawn is None else percentiles(drawn, LEVEL)
