"""The picture of the online learner over time: which configuration serves, and how rates moved.

It draws rows of ``learners.grid_selection`` and ``learners.rate_moves``; the titles say what is
seen. Palette and canvas are :mod:`.drawing`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOVES = ("raise", "slow", "freeze", "thaw")
"""In the order in which they are drawn, from the top."""


def learner_over_time(selection: pa.Table, moves: pa.Table, *, title: str = "") -> bytes:
    """Draw, for every goal, the grid's losses against the one that served, and the rates' moves.

    Parameters
    ----------
    selection : pyarrow.Table
        Rows of ``learners.grid_selection``.
    moves : pyarrow.Table
        Rows of ``learners.rate_moves``.
    title : str
        Of the whole figure, such as the dataset's name.

    Returns
    -------
    bytes
        PNG. With no rows, a figure that says so.
    """
    judged, moved = selection.to_pylist(), moves.to_pylist()
    goals = sorted({row["goal"] for row in judged})
    figure = blank_figure(WIDTH, 0.8 + 4.0 * max(len(goals), 1))
    if not goals:
        return png_of(saying(figure, "No hour of the online learner has been judged yet"))
    rows = np.atleast_2d(
        figure.subplots(len(goals), 2, squeeze=False, gridspec_kw={"width_ratios": (3, 2)})
    )
    for (left, right), goal in zip(rows, goals, strict=True):
        _grid(left, goal, [row for row in judged if row["goal"] == goal])
        _moves(right, goal, [row for row in moved if row["goal"] == goal])
    figure.suptitle(title)
    return png_of(figure)


def _grid(axes: "Axes", goal: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw each configuration's excess with its interval; below 0 it is better than what served."""
    places = sorted({row["configuration"] for row in rows})
    for place in places:
        of_place = [row for row in rows if row["configuration"] == place]
        at = np.array([moment_of(row["hour_us"]) for row in of_place])
        number = {
            name: np.array([np.nan if row[name] is None else row[name] for row in of_place])
            for name in ("excess", "excess_low", "excess_high")
        }
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % len(LINES)]}
        axes.plot(at, number["excess"], label=of_place[-1]["name"], **style)
        axes.fill_between(
            at, number["excess_low"], number["excess_high"], color=style["color"], alpha=0.12
        )
        chosen = [row["chosen"] for row in of_place]
        began = [i for i in range(len(chosen)) if chosen[i] and (i == 0 or not chosen[i - 1])]
        axes.plot(
            at[began],
            [0.0] * len(began),
            MARKERS[place % len(MARKERS)],
            color=style["color"],
            markersize=8,
        )
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_title(f"{goal}: log loss above what served (markers: begins to serve)", fontsize=9)
    axes.set_ylabel("nats per impression")
    if len(places) == 1:
        axes.text(0.5, 0.6, "one configuration: nothing to choose", transform=axes.transAxes,
                  ha="center", color=GREY)  # fmt: skip
    else:
        framed(axes, (0.0,))
    axes.legend(fontsize=7)
    dated(axes)


def _moves(axes: "Axes", goal: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw when each configuration's rate was moved; the size of a point is the surprise."""
    axes.set_title(f"{goal}: moves of the learning rate", fontsize=9)
    axes.set_yticks(range(len(MOVES)), MOVES)
    axes.set_ylim(len(MOVES) - 0.5, -0.5)
    for place in sorted({row["configuration"] for row in rows}):
        of_place = [row for row in rows if row["configuration"] == place]
        axes.plot(
            np.array([moment_of(row["hour_us"]) for row in of_place]),
            [MOVES.index(row["move"]) + 0.08 * place for row in of_place],
            MARKERS[place % len(MARKERS)],
            color=COLOURS[place % len(COLOURS)],
            label=f"configuration {place}",
        )
    if rows:
        axes.legend(fontsize=7)
        dated(axes)
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=GREY)
