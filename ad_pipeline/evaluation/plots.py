"""Pictures of the metrics for people, as PNG bytes.

The figures draw what they are given, and their titles say what is seen in it. Palette and canvas
are :mod:`ad_pipeline.evaluation.drawing`; measuring belongs to
:mod:`ad_pipeline.evaluation.metrics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.drawing import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    WIDTH,
    blank_figure,
    dated,
    framed,
    moment_of,
    png_of,
    saying,
)
from ad_pipeline.evaluation.intervals import reach_of_sum

COMPARED_HOURS = 24
"""Matured hours that the titles compare experts on."""

WINDOWS_HOURS = (6, 12, 24, 48)
"""Hours that a line pools: the fewest that hold enough positives most of the time."""


@dataclass(frozen=True)
class _Pooled:
    """One expert's last hours up to some hour, pooled.

    Attributes
    ----------
    normalized_entropy, log_loss, rate_entropy : float
        NaN with too few positives.
    entropy_reach, loss_reach : float
        Half the width of their intervals; NaN with fewer than three hours.
    """

    normalized_entropy: float
    log_loss: float
    rate_entropy: float
    entropy_reach: float
    loss_reach: float


_NOTHING = _Pooled(*[float("nan")] * 5)


def metrics_over_time(
    progressive: pa.Table, *, title: str = "", minimum_positives: int = 20
) -> bytes:
    """Draw normalized entropy and log loss of every expert by matured hour, a row per goal.

    An hour has few positives, so its own value is mostly noise: points are hours, lines pool the
    sums of the last 6 hours (up to 48 in a log with few positives), bands are 95 % intervals of the
    lines with hours as the independent units. The base rate is the line at 1 (normalized entropy)
    and the entropy of the pooled rate (log loss). The first hours of a learner that knows nothing
    yet leave the frame, which is chosen for the other hours. Each goal's title compares its
    experts, paired by hour.

    Parameters
    ----------
    progressive : pyarrow.Table
        Rows of ``evaluation.progressive_metrics``.
    title : str
        Of the whole figure, such as the dataset's name.
    minimum_positives : int
        Fewer positives in the window leave a gap in the line.

    Returns
    -------
    bytes
        PNG. With no rows, a figure that says so.
    """
    from matplotlib.ticker import MaxNLocator

    goals = sorted(set(progressive.column("goal").to_pylist()))
    figure = blank_figure(WIDTH, 1.4 + 3.0 * max(len(goals), 1))
    if not goals:
        return png_of(saying(figure, "No hour has matured yet"))
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(goals), 1)))
    experts = sorted(set(progressive.column("expert").to_pylist()))
    spans = [moment_of(us) for us in progressive.column("hour_us").to_pylist()]
    first, last = min(spans), max(spans)
    window_hours = _window_hours(progressive, minimum_positives)
    for row, goal in zip(rows, goals, strict=True):
        left, right = row.subplots(1, 2)
        reference: dict[datetime, float] = {}
        by_expert = {expert: _hours_of(progressive, goal, expert) for expert in experts}
        for number, (expert, hours) in enumerate(by_expert.items()):
            times = [moment_of(hour["hour_us"]) for hour in hours]
            pooled = [_pooled(hours, i, window_hours, minimum_positives) for i in range(len(hours))]
            reference |= {
                moment: point.rate_entropy for moment, point in zip(times, pooled, strict=True)
            }
            enough = [hour["positives"] >= minimum_positives for hour in hours]
            for axes, measure, line, reach in (
                (left, "normalized_entropy", "normalized_entropy", "entropy_reach"),
                (right, "log_loss", "log_loss", "loss_reach"),
            ):
                own = [
                    _nan(hour[measure]) if kept else np.nan
                    for hour, kept in zip(hours, enough, strict=True)
                ]
                middle = np.array([getattr(point, line) for point in pooled])
                half = np.array([getattr(point, reach) for point in pooled])
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(
                    times,
                    own,
                    color=colour,
                    marker=MARKERS[number % len(MARKERS)],
                    linestyle="none",
                    markersize=3,
                    alpha=0.35,
                )
                axes.fill_between(
                    times, middle - half, middle + half, color=colour, alpha=0.15, linewidth=0
                )
                axes.plot(
                    times, middle, label=expert, color=colour, linestyle=LINES[number % len(LINES)]
                )
        left.axhline(1.0, color=GREY, linewidth=1.2, linestyle=":", label="base rate")
        moments = sorted(reference)
        right.plot(
            moments,
            [reference[moment] for moment in moments],
            color=GREY,
            linewidth=1.2,
            linestyle=":",
            label="base rate",
        )
        row.suptitle(
            f"{goal}: {compared_in_words(by_expert)}",
            x=0.01,
            ha="left",
            fontweight="bold",
            fontsize=11,
        )
        left.set_ylabel("normalized entropy\n(1 = base rate, lower is better)")
        right.set_ylabel("log loss, nats a row\n(lower is better)")
        framed(left, (1.0,))
        framed(right)
        for axes in (left, right):
            dated(axes)
            axes.set_xlim(first, last)
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlabel(
                f"hour in which the label matured\n{first:%Y-%m-%d} to {last:%Y-%m-%d}, UTC"
            )
    handles, labels = rows[0].axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    named = f"{title}: how good" if title else "How good"
    figure.suptitle(
        f"{named} each expert's scores at serving time were. Points: one hour; "
        f"lines: the last {window_hours} hours; bands: 95 % intervals.",
        fontsize=9,
    )
    return png_of(figure)


def compared_in_words(
    by_expert: Mapping[str, Sequence[Mapping[str, Any]]], hours: int = COMPARED_HOURS
) -> str:
    """Say which of two experts had the lower log loss in the newest hours that both scored.

    Parameters
    ----------
    by_expert : mapping of str to sequence of mapping
        Each expert's rows of ``evaluation.progressive_metrics`` of one goal, rising in hour.
    hours : int
        How many of the newest common hours are compared.

    Returns
    -------
    str
        A clause for a title. A winner is named only if the 95 % interval of the paired difference,
        with hours as the independent units, excludes zero.
    """
    scored = {name: {row["hour_us"]: row for row in rows} for name, rows in by_expert.items()}
    scored = {name: rows for name, rows in scored.items() if rows}
    if not scored:
        return "nothing has matured yet"
    if len(scored) == 1:
        return f"only the {next(iter(scored))} expert has scored so far"
    best, other = sorted(scored)[:2]
    common = [
        hour
        for hour in sorted(scored[best].keys() & scored[other].keys())
        if scored[best][hour]["rows"] == scored[other][hour]["rows"]
    ][-hours:]
    if len(common) < 3:
        return f"too few hours to compare {best} and {other}"
    losses = {
        name: np.array([scored[name][hour]["loss_sum"] for hour in common])
        for name in (best, other)
    }
    if losses[best].sum() > losses[other].sum():
        best, other = other, best
    difference = losses[other] - losses[best]
    relative = difference.sum() / losses[best].sum()
    reach = reach_of_sum(difference - relative * losses[best]) / losses[best].sum()
    newest = f"in the last {len(common)} matured hours"
    if relative - reach <= 0:
        return f"{best} and {other} are level {newest} ({relative:.1%} ± {reach:.1%} apart)"
    return f"{best} has {relative:.1%} ± {reach:.1%} less log loss than {other} {newest}"


def calibration_plot(
    labels: ArrayLike,
    forecasts: Mapping[str, ArrayLike],
    *,
    title: str = "",
    bins: int = 10,
) -> bytes:
    """Draw mean label against mean probability over bins of equal mass, on log axes.

    Bars are 95 % Wilson intervals of the bin's rate, rows taken as independent; a bin without a
    positive is an open marker at its upper bound.

    Parameters
    ----------
    labels : array_like of {0, 1}, shape (n,)
    forecasts : mapping of str to array_like of float64, shape (n,)
        Name (an expert) to its probabilities; the title says how far off the last one is.
    title : str
        What the rows are, such as dataset and goal.
    bins : int

    Returns
    -------
    bytes
        PNG. With no rows, a figure that says so.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    y = np.asarray(labels, dtype=np.float64)
    figure = blank_figure(6.4, 5.8)
    if not len(y):
        return png_of(saying(figure, "No row has matured yet"))
    axes = figure.subplots()
    seen: list[float] = []
    said = ""
    for number, (name, values) in enumerate(forecasts.items()):
        p = np.asarray(values, dtype=np.float64)
        bin_of = metrics.equal_mass_bins(p, bins=bins)
        rows = np.bincount(bin_of, minlength=bins)
        used = rows > 0
        rows = rows[used]
        mean_p = np.maximum(np.bincount(bin_of, p, bins)[used] / rows, metrics.CLIP)
        rate = np.bincount(bin_of, y, bins)[used] / rows
        low, high = _wilson(rate, rows)
        some = rate > 0
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(
            mean_p[some],
            rate[some],
            yerr=np.maximum([(rate - low)[some], (high - rate)[some]], 0),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=LINES[number % len(LINES)],
            linewidth=1.2,
            capsize=2,
            label=name,
        )
        said = f"the {name} predicts {p.sum() / y.sum():.2f} × what came" if y.any() else ""
        axes.plot(
            mean_p[~some], high[~some], marker, color=colour, markerfacecolor="white", markersize=5
        )
        seen += [*mean_p, *rate[some], *high]
    ends = [min(seen) / 1.3, max(seen) * 1.3]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="perfect")
    axes.set(xscale="log", yscale="log", xlim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"mean probability of the bin ({bins} bins of equal mass)")
    axes.set_ylabel("share of positives in the bin, with its 95 % interval")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(": ".join(filter(None, (title, said))) or "no positive came")
    return png_of(figure)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _hours_of(progressive: pa.Table, goal: str, expert: str) -> list[dict[str, Any]]:
    rows = [
        row
        for row in progressive.to_pylist()
        if row["goal"] == goal and row["expert"] == expert and row["rows"]
    ]
    return sorted(rows, key=lambda row: row["hour_us"])


def _window_hours(progressive: pa.Table, minimum_positives: int) -> int:
    """Return the shortest window whose average positives, in every goal, are twice the minimum."""
    positives: dict[str, dict[int, int]] = {}
    for row in progressive.to_pylist():
        positives.setdefault(row["goal"], {})[row["hour_us"]] = row["positives"]
    rarest = min(np.mean(list(by_hour.values())) for by_hour in positives.values())
    enough = [hours for hours in WINDOWS_HOURS if hours * rarest >= 2 * minimum_positives]
    return enough[0] if enough else WINDOWS_HOURS[-1]


def _pooled(
    hours: Sequence[Mapping[str, Any]], last: int, window_hours: int, minimum_positives: int
) -> _Pooled:
    """Pool the hours up to ``last``; intervals by the delta method over the window's hours.

    Normalized entropy is ``L / (n H(p))`` with the losses' sum ``L`` over ``n`` rows and the rate
    ``p``; an hour moves it through its losses and through the rate.
    """
    begin_us = hours[last]["hour_us"] - (window_hours - 1) * HOUR_US
    window = [hour for hour in hours[: last + 1] if hour["hour_us"] >= begin_us]
    rows = np.array([hour["rows"] for hour in window], dtype=np.float64)
    positives = np.array([hour["positives"] for hour in window], dtype=np.float64)
    losses = np.array([hour["loss_sum"] for hour in window])
    n, y = rows.sum(), positives.sum()
    if y < minimum_positives or y == n:
        return _NOTHING
    rate, loss = y / n, losses.sum() / n
    rate_entropy = metrics.entropy(rate)
    moved_loss = losses - loss * rows
    slope = np.log((1 - rate) / rate)
    moved_rate = slope * (positives - rate * rows)
    return _Pooled(
        normalized_entropy=loss / rate_entropy,
        log_loss=loss,
        rate_entropy=rate_entropy,
        entropy_reach=reach_of_sum((moved_loss - loss / rate_entropy * moved_rate) / rate_entropy)
        / n,
        loss_reach=reach_of_sum(moved_loss) / n,
    )


def _wilson(rate: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z2 = 1.96**2
    centre = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    half = np.sqrt(z2 * (rate * (1 - rate) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    return centre - half, centre + half
