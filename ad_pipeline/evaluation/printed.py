"""The report as text: lines for a terminal, tables for a page.

Formatting only: rows of ``evaluation.report`` in, text out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ad_pipeline.clocks import timestamp

Row = Mapping[str, Any]

SHOWN = (
    ("log_loss", "log loss", "{:.5f}"),
    ("normalized_entropy", "NE", "{:.4f}"),
    ("rce", "RCE %", "{:.2f}"),
    ("pr_auc", "PR-AUC", "{:.4f}"),
    ("roc_auc", "AUC", "{:.4f}"),
    ("calibration_ratio", "calibration", "{:.3f}"),
)
"""Measure, heading and format of each column."""


@dataclass(frozen=True)
class _OfGoal:
    """What the report says of one goal.

    Attributes
    ----------
    heading : str
    cells : dict of str to list of str
        Expert to one cell per measure of :data:`SHOWN`.
    notes : list of str
    """

    heading: str
    cells: dict[str, list[str]]
    notes: list[str]


def report_lines(rows: Sequence[Row], range_name: str = "test") -> Iterator[str]:
    """Yield a table per goal: a line an expert, each figure with its interval.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of ``evaluation.report``.
    range_name : str
        Only this range is printed; its hours stand above each table.

    Yields
    ------
    str
    """
    for goal in _goals(rows, range_name):
        widths = [
            max(len(text) for text in column) + 2
            for column in zip(
                [heading for _, heading, _ in SHOWN], *goal.cells.values(), strict=True
            )
        ]
        yield goal.heading
        for name, cells in (
            ("expert", [heading for _, heading, _ in SHOWN]),
            *goal.cells.items(),
        ):
            line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            yield f"  {name:<10}{line}"
        yield from (f"  {note}" for note in goal.notes)


def report_markdown(rows: Sequence[Row], range_name: str = "test") -> str:
    """Return the tables of :func:`report_lines` as Markdown, for a page."""
    parts: list[str] = []
    for goal in _goals(rows, range_name):
        headings = ["expert", *(heading for _, heading, _ in SHOWN)]
        lines = [headings, ["---"] * len(headings)]
        # An interval stays on one line of its cell.
        lines += [
            [name, *(cell.replace(", ", ",\u00a0") for cell in cells)]
            for name, cells in goal.cells.items()
        ]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts += [f"**{goal.heading}**", table, *goal.notes]
    return "\n\n".join(parts)


def _goals(rows: Sequence[Row], range_name: str) -> Iterator[_OfGoal]:
    chosen = [row for row in rows if row["range_name"] == range_name]
    for goal in dict.fromkeys(row["goal"] for row in chosen):
        of_goal = [row for row in chosen if row["goal"] == goal]
        first = of_goal[0]
        cells: dict[str, list[str]] = {}
        for expert in dict.fromkeys(row["expert"] for row in of_goal):
            measures = {row["metric"]: row for row in of_goal if row["expert"] == expert}
            if measures.keys() & {name for name, _, _ in SHOWN}:
                cells[expert] = [
                    _cell(measures[name], form) if name in measures else ""
                    for name, _, form in SHOWN
                ]
        yield _OfGoal(
            heading=(
                f"{goal}: {first['rows']:,} matured rows, {first['positives']:,} positives, "
                f"{range_name} range {timestamp(first['range_start_us'])} to "
                f"{timestamp(first['range_end_us'])} (by maturity, used for no fitting)"
            ),
            cells=cells,
            notes=[*_differences(of_goal), *_truth(of_goal)],
        )


def _cell(row: Row, form: str) -> str:
    if row["value"] is None:
        return "undefined"
    value = form.format(row["value"])
    if row["low"] is None or row["high"] is None:
        return value
    return f"{value} [{form.format(row['low'])}, {form.format(row['high'])}]"


def _differences(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row["metric"] == "relative_log_loss" and row["value"] is not None:
            bounds = f" [{row['low']:+.3%}, {row['high']:+.3%}]" if row["low"] is not None else ""
            yield f"{row['expert']}: log loss {row['value']:+.3%}{bounds}, paired by hour"


def _truth(rows: Sequence[Row]) -> Iterator[str]:
    distances: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["metric"].startswith("truth_") and row["value"] is not None:
            distances.setdefault(row["expert"], {})[row["metric"]] = row["value"]
    for expert, found in distances.items():
        correlation = found.get("truth_correlation")
        yield (
            f"{expert} v. the true probabilities: KL {found['truth_mean_kl']:.5f} nats a row "
            f"(entropy of the truth {found['truth_entropy']:.5f}), "
            f"mean |logit error| {found['truth_mean_absolute_logit_error']:.3f}"
            + ("" if correlation is None else f", correlation {correlation:.3f}")
        )
