"""The benchmark of late labels for people: a picture of a goal, and lines for a terminal.

Draws and prints figures that were measured (:mod:`.measures`); nothing is computed here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.evaluation.drawing import COLOURS, GREY, MARKERS, PALE, blank_figure, png_of
from ad_pipeline.monitoring.late_labels.arms import BASE_RATE, ORACLE, PRE_TRAINED
from ad_pipeline.monitoring.late_labels.measures import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRINTED = (
    ("log_loss", "log loss", "{:.5f}"),
    ("rce", "RCE %", "{:.2f}"),
    ("pr_auc", "PR-AUC", "{:.4f}"),
    ("roc_auc", "AUC", "{:.4f}"),
    ("calibration_ratio", "calibration", "{:.3f}"),
    ("expected_calibration_error", "ECE", "{:.4f}"),
    ("share_of_log_loss_gap", "gap closed", "{:.2f}"),
)
"""Measure, heading and format of the columns that are printed."""

FARTHEST = 4.0
"""Of the axis of log losses, in distances between pre-trained and oracle: what is worse leaves it,
since one arm that went wrong would press all others into a line."""


def figures_of(figures: Sequence[Measured], metric: str) -> dict[str, Measured]:
    """Return a measure of all rows, by arm."""
    return {each.arm: each for each in figures if each.metric == metric and not each.slice_of}


def arms_lines(figures: Sequence[Measured]) -> Iterator[str]:
    """Yield a table of one family's arms, the best log loss first.

    Parameters
    ----------
    figures : sequence of Measured

    Yields
    ------
    str
    """
    columns = [figures_of(figures, metric) for metric, _, _ in PRINTED]
    ordered = sorted(columns[0], key=lambda arm: columns[0][arm].value)
    cells = [["arm", *(heading for _, heading, _ in PRINTED)]]
    for arm in ordered:
        row = [arm]
        for column, (metric, _, shape) in zip(columns, PRINTED, strict=True):
            row.append(_with_interval(column.get(arm), shape, interval=metric == "log_loss"))
        cells.append(row)
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    for row in cells:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        yield f"  {first.strip().ljust(widths[0])}  {'  '.join(others)}"


def _with_interval(figure: Measured | None, shape: str, *, interval: bool) -> str:
    if figure is None or np.isnan(figure.value):
        return "-"
    text = shape.format(figure.value)
    if interval and not np.isnan(figure.low):
        return f"{text} [{shape.format(figure.low)}, {shape.format(figure.high)}]"
    return text


def arms_picture(families: Mapping[str, Sequence[Measured]], *, title: str = "") -> bytes:
    """Draw log loss by arm with intervals, and calibration by the age of the ad.

    Parameters
    ----------
    families : mapping of str to sequence of Measured
    title : str

    Returns
    -------
    bytes
        PNG: a row a family.
    """
    most = max((len(figures_of(each, "log_loss")) for each in families.values()), default=1)
    figure = blank_figure(12.5, 1.0 + max(0.27 * most, 3.0) * max(len(families), 1))
    rows = figure.subplots(max(len(families), 1), 2, squeeze=False)
    for (left, right), (family, figures) in zip(rows, families.items(), strict=False):
        _losses(left, family, figures)
        _by_ad_age(right, family, figures)
    figure.suptitle(title, fontsize=10)
    return png_of(figure)


def _losses(axes: "Axes", family: str, figures: Sequence[Measured]) -> None:
    by_arm = figures_of(figures, "log_loss")
    arms = sorted(by_arm, key=lambda arm: -by_arm[arm].value)
    for place, arm in enumerate(arms):
        found = by_arm[arm]
        bounds = [[found.value - found.low], [found.high - found.value]]
        bold = arm in (ORACLE, PRE_TRAINED, BASE_RATE)
        axes.errorbar(
            found.value,
            place,
            xerr=None if np.isnan(found.low) else np.maximum(bounds, 0.0),
            fmt=MARKERS[1] if bold else MARKERS[0],
            color=GREY if bold else COLOURS[0],
            capsize=2,
            markersize=5,
        )
    if {ORACLE, PRE_TRAINED} <= by_arm.keys():
        best, before = by_arm[ORACLE].value, by_arm[PRE_TRAINED].value
        axes.axvline(best, color=GREY, linestyle="--", linewidth=0.8)
        axes.axvline(before, color=PALE, linestyle="--", linewidth=0.8)
        worst = max(found.value for found in by_arm.values())
        reach = FARTHEST * abs(before - best)
        if 0 < reach < worst - best:
            axes.set_xlim(best - 0.5 * reach, best + reach)
            for place, arm in enumerate(arms):
                if by_arm[arm].value > best + reach:
                    axes.annotate(
                        f"{by_arm[arm].value:.3f} →",
                        (best + reach, place),
                        ha="right",
                        va="center",
                        fontsize=8,
                        color=COLOURS[1],
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                    )
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set_xlabel("log loss on matured labels (dashed: oracle, pre-trained)")
    axes.set_title(f"{family}: lower is better", loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _by_ad_age(axes: "Axes", family: str, figures: Sequence[Measured]) -> None:
    sliced = [
        each
        for each in figures
        if each.slice_of == "age of the ad"
        and each.metric == "calibration_ratio"
        and each.positives > 0
    ]
    parts = list(dict.fromkeys(each.part for each in sliced))
    axes.axhline(1.0, color=GREY, linewidth=0.8)
    by_loss = figures_of(figures, "log_loss")
    drawn = sorted({each.arm for each in sliced}, key=lambda arm: by_loss[arm].value)
    for place, arm in enumerate(drawn):
        of_arm = {each.part: each.value for each in sliced if each.arm == arm}
        axes.plot(
            range(len(parts)),
            [of_arm.get(part, np.nan) for part in parts],
            marker=MARKERS[place % len(MARKERS)],
            markersize=4,
            linewidth=1.6 if place < len(COLOURS) else 0.7,
            color=COLOURS[place] if place < len(COLOURS) else PALE,
            label=arm if place < len(COLOURS) else None,
        )
    axes.set_xticks(range(len(parts)), parts, fontsize=8)
    axes.set_ylim(0.0, 2.0)
    axes.set_xlabel("age of the ad at serving time")
    axes.set_ylabel("predicted / observed positives")
    axes.set_title(f"{family}: calibration; the six best in colour", loc="left", fontsize=10)
    if parts:
        axes.legend(frameon=False, fontsize=7, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
