"""The picture of a drift verdict: how far each column moved, and what moved in the worst ones.

It draws a verdict that was reached (:mod:`.inputs`) and decides nothing.
Evidently's report beside it has every column in detail; this is for a glance.
"""

from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.evaluation.drawing import COLOURS, GREY, PALE, WIDTH, blank_figure, png_of
from ad_pipeline.monitoring.drift.inputs import (
    NULL,
    OTHER,
    Cells,
    ColumnDrift,
    DriftVerdict,
    Folded,
    cells,
    columns_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DETAILED = 2
"""Columns whose distributions are drawn: those with the highest index."""

MOST_CELLS = 9
"""Categories drawn of a column; the others are one bar."""

_READABLE = {OTHER: "new or rare ones", NULL: "missing"}
_LONGEST_LABEL = 26


def finding(verdict: DriftVerdict) -> str:
    """Say in one sentence what a verdict found.

    Parameters
    ----------
    verdict : DriftVerdict
        Of at least one column.

    Returns
    -------
    str
    """
    drifted = columns_of(verdict, drifted=True)
    worst = verdict.columns[0]
    if not drifted:
        return (
            f"No column drifted: the highest index is {worst.psi:.3f} ({worst.column}), "
            f"an alarm starts at {worst.threshold:g}"
        )
    return f"{len(drifted)} of {len(verdict.columns)} columns drifted: {', '.join(drifted)}"


def drift_picture(verdict: DriftVerdict, folded: Folded, *, title: str = "") -> bytes:
    """Draw each column's index with its limits, and the distributions of the worst columns.

    Parameters
    ----------
    verdict : DriftVerdict
        Of at least one column.
    folded : Folded
        The samples that the verdict compared.
    title : str
        Which hours were compared with which.

    Returns
    -------
    bytes
        PNG. Left, a bar a column: hatched when it drifted, with the alarm's threshold as a line and
        the column's noise limit as a tick. Right, the cells of the columns with the highest
        index, before and now.
    """
    shown = verdict.columns
    detailed = shown[:DETAILED]
    figure = blank_figure(WIDTH, max(5.6, 1.8 + 0.3 * len(shown)))
    grid = figure.add_gridspec(len(detailed), 2, width_ratios=(1.0, 1.0))
    _indices(figure.add_subplot(grid[:, 0]), shown)
    for row, column in enumerate(detailed):
        axes = figure.add_subplot(grid[row, 1])
        _distributions(axes, column, _condensed(cells(folded, column.column), column))
        if row == 0:
            axes.legend(frameon=False, loc="best", fontsize=8)
    figure.suptitle("\n".join(filter(None, (finding(verdict), title))), fontsize=10)
    return png_of(figure)


def _indices(axes: "Axes", columns: tuple[ColumnDrift, ...]) -> None:
    places = np.arange(len(columns))
    bars = axes.barh(
        places,
        [column.psi for column in columns],
        height=0.65,
        color=[COLOURS[1] if column.drifted else COLOURS[0] for column in columns],
    )
    for bar, column in zip(bars, columns, strict=True):
        if column.drifted:
            bar.set_hatch("///")
            bar.set_edgecolor("white")
    ends = [max(column.psi, column.noise_limit) for column in columns]
    reach = max(*ends, columns[0].threshold) if ends else 1.0
    for place, column, end in zip(places, columns, ends, strict=True):
        axes.annotate(
            f"{column.psi:.3f}" + (" drifted" if column.drifted else ""),
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.vlines(
        [column.noise_limit for column in columns],
        places - 0.42,
        places + 0.42,
        colors="black",
        linewidth=1.5,
        label="what noise alone stays below",
    )
    axes.axvline(
        columns[0].threshold, color=GREY, linestyle="--", linewidth=1.2, label="alarm from here on"
    )
    axes.set_yticks(places, [column.column for column in columns])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * reach)
    axes.set_xlabel("population stability index (0: unchanged)")
    axes.set_title("How far each column moved", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none", framealpha=1.0, loc="lower right", fontsize=8)


def _condensed(counted: Cells, column: ColumnDrift) -> Cells:
    """Keep the cells that add most to the index and make one of the others.

    Bins of numbers keep their order; categories come by their rows, the most frequent first.
    """
    kept = np.sort(np.argsort(-counted.contributions, kind="stable")[:MOST_CELLS])
    if len(counted.labels) <= MOST_CELLS + 1:
        kept = np.arange(len(counted.labels))
    rest = np.setdiff1d(np.arange(len(counted.labels)), kept)
    if column.kind == "categorical":
        rows = counted.reference[kept] + counted.current[kept]
        kept = kept[np.argsort(-rows, kind="stable")]
    labels = [counted.labels[place] for place in kept]
    reference, current = counted.reference[kept], counted.current[kept]
    if len(rest):
        labels.append(f"{len(rest)} others")
        reference = np.append(reference, counted.reference[rest].sum())
        current = np.append(current, counted.current[rest].sum())
    return Cells(tuple(labels), reference, current)


def _distributions(axes: "Axes", column: ColumnDrift, counted: Cells) -> None:
    places = np.arange(len(counted.labels))
    for offset, counts, colour, name in (
        (-0.2, counted.reference, PALE, "before"),
        (+0.2, counted.current, COLOURS[1] if column.drifted else COLOURS[0], "now"),
    ):
        axes.barh(
            places + offset, 100 * counts / max(counts.sum(), 1), 0.38, color=colour, label=name
        )
    axes.set_yticks(places, [_readable(label) for label in counted.labels], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of impressions, %")
    axes.set_title(f"{column.column}: index {column.psi:.3f}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def _readable(label: str) -> str:
    text = _READABLE.get(label, label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
