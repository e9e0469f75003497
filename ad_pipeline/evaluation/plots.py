"""Pictures of the metrics for people, as PNG bytes.

Colours are Okabe and Ito's, which people with any colour vision tell apart; experts also differ by
line style and marker, so a grey print still reads. matplotlib is imported inside the functions:
it costs half a second that no other reader of this room should pay. The figures draw what they are
given; measuring belongs to :mod:`ad_pipeline.evaluation.metrics`.
"""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from ad_pipeline.clocks import HOUR_US, SECOND_US
from ad_pipeline.evaluation import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY = "#595959"


def metrics_over_time(
    progressive: pa.Table, *, title: str = "", window_hours: int = 6, minimum_positives: int = 20
) -> bytes:
    """Draw normalized entropy and log loss of every expert by matured hour, a row per goal.

    An hour has few positives, so its own value is mostly noise: points are hours, lines pool the
    sums of the last ``window_hours``. The base rate is the line at 1 (normalized entropy) and the
    entropy of the pooled rate (log loss). The first hours of a learner that knows nothing yet leave
    the frame, which is chosen for the other hours.

    Parameters
    ----------
    progressive : pyarrow.Table
        Rows of ``evaluation.progressive_metrics``.
    title : str
    window_hours : int
        Hours pooled into one point of the line.
    minimum_positives : int
        Fewer positives in the window leave a gap in the line.

    Returns
    -------
    bytes
        PNG. With no rows, a figure that says so.
    """
    from matplotlib.ticker import MaxNLocator

    goals = sorted(set(progressive.column("goal").to_pylist()))
    figure = _figure(10.0, 1.2 + 2.9 * max(len(goals), 1))
    if not goals:
        return _png(_said(figure, "No hour has matured yet"))
    grid = figure.subplots(len(goals), 2, squeeze=False, sharex=True)
    experts = sorted(set(progressive.column("expert").to_pylist()))
    for row, goal in enumerate(goals):
        left, right = grid[row]
        reference: dict[datetime, float] = {}
        for number, expert in enumerate(experts):
            hours = _hours_of(progressive, goal, expert)
            times = [_moment(hour["hour_us"]) for hour in hours]
            pooled = [_pooled(hours, i, window_hours, minimum_positives) for i in range(len(hours))]
            for moment, (_, _, rate_entropy) in zip(times, pooled, strict=True):
                reference[moment] = rate_entropy
            own = [
                _nan(hour["normalized_entropy"])
                if hour["positives"] >= minimum_positives
                else np.nan
                for hour in hours
            ]
            style: dict[str, Any] = {
                "color": _COLOURS[number % len(_COLOURS)],
                "linestyle": _LINES[number % len(_LINES)],
            }
            dots: dict[str, Any] = {
                "color": style["color"],
                "marker": _MARKERS[number % len(_MARKERS)],
                "linestyle": "none",
                "markersize": 3,
                "alpha": 0.35,
            }
            left.plot(times, own, **dots)
            left.plot(times, [entry[0] for entry in pooled], label=expert, **style)
            right.plot(times, [_nan(hour["log_loss"]) for hour in hours], **dots)
            right.plot(times, [entry[1] for entry in pooled], label=expert, **style)
        left.axhline(1.0, color=_GREY, linewidth=1.2, linestyle=":", label="base rate")
        moments = sorted(reference)
        right.plot(
            moments,
            [reference[moment] for moment in moments],
            color=_GREY,
            linewidth=1.2,
            linestyle=":",
            label="base rate",
        )
        left.set_title(f"{goal}: normalized entropy (lower is better)", loc="left")
        right.set_title(f"{goal}: log loss, nats (lower is better)", loc="left")
        _framed(left, (1.0,))
        _framed(right)
        for axes in (left, right):
            _dated(axes)
            axes.yaxis.set_major_locator(MaxNLocator(6))
    for axes in grid[-1]:
        axes.set_xlabel("hour in which the label matured, UTC")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        title or f"Progressive metrics: points are hours, lines the last {window_hours} hours"
    )
    return _png(figure)


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
        Name (an expert) to its probabilities.
    title : str
    bins : int

    Returns
    -------
    bytes
        PNG. With no rows, a figure that says so.
    """
    y = np.asarray(labels, dtype=np.float64)
    figure = _figure(6.2, 5.6)
    if not len(y):
        return _png(_said(figure, "No row has matured yet"))
    axes = figure.subplots()
    seen: list[float] = []
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
        colour = _COLOURS[number % len(_COLOURS)]
        marker = _MARKERS[number % len(_MARKERS)]
        axes.errorbar(
            mean_p[some],
            rate[some],
            yerr=np.maximum([(rate - low)[some], (high - rate)[some]], 0),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1.2,
            capsize=2,
            label=name,
        )
        axes.plot(
            mean_p[~some], high[~some], marker, color=colour, markerfacecolor="white", markersize=5
        )
        seen += [*mean_p, *rate[some], *high]
    ends = [min(seen) / 1.3, max(seen) * 1.3]
    axes.plot(ends, ends, color=_GREY, linewidth=1, linestyle=":", label="perfect")
    axes.set(xscale="log", yscale="log", xlim=ends)
    axes.set_xlabel("mean probability of the bin")
    axes.set_ylabel("share of positives in the bin")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.suptitle(title or f"Calibration over {bins} bins of equal mass")
    return _png(figure)


def _figure(width: float, height: float) -> "Figure":
    """Make a figure on the Agg canvas without pyplot, whose global state leaks between runs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # The software's version would make equal figures differ in bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _said(figure: "Figure", text: str) -> "Figure":
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, color=_GREY)
    return figure


def _dated(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=9, tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC, show_offset=False))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _framed(axes: "Axes", always: Sequence[float] = ()) -> None:
    """Show all values but far outliers, which would press the others into a line."""
    drawn = np.concatenate(
        [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]
    )
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return
    first, third = np.percentile(drawn, [25, 75])
    reach = 4 * (third - first)
    near = drawn[(drawn >= first - reach) & (drawn <= third + reach)]
    kept = np.append(near, always)
    room = 0.05 * (kept.max() - kept.min())
    if room > 0:
        axes.set_ylim(kept.min() - room, kept.max() + room)


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / SECOND_US, tz=UTC)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _hours_of(progressive: pa.Table, goal: str, expert: str) -> list[dict[str, Any]]:
    rows = [
        row
        for row in progressive.to_pylist()
        if row["goal"] == goal and row["expert"] == expert and row["rows"]
    ]
    return sorted(rows, key=lambda row: row["hour_us"])


def _pooled(
    hours: Sequence[Mapping[str, Any]], last: int, window_hours: int, minimum_positives: int
) -> tuple[float, float, float]:
    """Return normalized entropy, log loss and rate entropy pooled over the hours up to ``last``."""
    begin_us = hours[last]["hour_us"] - (window_hours - 1) * HOUR_US
    window = [hour for hour in hours[: last + 1] if hour["hour_us"] >= begin_us]
    rows = sum(hour["rows"] for hour in window)
    positives = sum(hour["positives"] for hour in window)
    if positives < minimum_positives or positives == rows:
        return float("nan"), float("nan"), float("nan")
    loss = sum(hour["loss_sum"] for hour in window) / rows
    rate_entropy = metrics.entropy(positives / rows)
    return loss / rate_entropy, loss, rate_entropy


def _wilson(rate: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z2 = 1.96**2
    centre = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    half = np.sqrt(z2 * (rate * (1 - rate) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    return centre - half, centre + half
