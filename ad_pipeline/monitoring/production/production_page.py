"""What was in production, for people: one HTML page with a timeline and a table.

Formatting only; rows are those of ``monitoring.production``.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.evaluation.drawing import (
    COLOURS,
    GREY,
    WIDTH,
    blank_figure,
    dated,
    moment_of,
    png_of,
    saying,
)

HEADINGS = ("", "from", "until", "bundle", "action", "decided by", "why", "decisions", "models")
MOST_DRAWN = 40
"""Intervals in the picture, the newest: more lines could not be told apart."""

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:80em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-size:13px}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;vertical-align:top}"
    "td:nth-child(7){min-width:24em}img{max-width:100%}.rollback{background:#fbe3d6}"
)


def production_page(dataset: str, rows: Sequence[Mapping[str, Any]], picture: bytes) -> str:
    """Return the page.

    Parameters
    ----------
    dataset : str
        Its name.
    rows : sequence of mapping
        Oldest first; the newest stands on top of the table.
    picture : bytes
        PNG.
    """
    title = f"What was in production: {escape(dataset)}"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        f"<p><img alt='timeline' src='data:image/png;base64,{base64.b64encode(picture).decode()}'>",
        "</p><p>Times are log time; <code>ad_pipeline production --at TIME</code> asks it too.</p>",
    ]
    if rows:
        parts.append(f"<table><tr>{''.join(f'<th>{each}</th>' for each in HEADINGS)}</tr>")
        for row in reversed(rows):
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in row_cells(row))
            parts.append(f"<tr class='{row['action']}'>{cells}</tr>")
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an interval as texts, one for each of :data:`HEADINGS`."""
    decided = f"{row['decisions']:,}"
    if row["first_served_us"] is not None:
        decided += (
            f", from {timestamp(row['first_served_us'])}: "
            f"{row['hours_to_serving']:.1f} h after its model hour closed"
        )
    return (
        str(row["sequence"]),
        timestamp(row["from_us"]),
        "now" if row["until_us"] is None else timestamp(row["until_us"]),
        row["bundle_hash"][:12],
        row["action"],
        row["decided_by"],
        row["why"],
        decided,
        "; ".join(
            f"{goal}: " + ", ".join(f"{expert} {digest[:12]}" for expert, digest in experts.items())
            for goal, experts in json.loads(row["models"]).items()
        ),
    )


def production_picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw each interval as a bar over log time, and below it the decisions that were logged.

    Parameters
    ----------
    rows : sequence of mapping
        Oldest first.

    Returns
    -------
    bytes
        PNG.
    """
    if not rows:
        return png_of(saying(blank_figure(WIDTH, 1.6), "nothing was ever promoted"))
    drawn = rows[-MOST_DRAWN:]
    # The last interval goes on: it is drawn up to the last thing that is known.
    known = [us for row in drawn for us in (row["until_us"], row["last_served_us"]) if us]
    end_us = max([*known, drawn[-1]["from_us"] + HOUR_US])
    bundles = list(dict.fromkeys(row["bundle_hash"] for row in drawn))
    figure = blank_figure(WIDTH, 1.2 + 0.45 * len(drawn))
    axes = figure.add_subplot()
    for place, row in enumerate(drawn):
        start, until = _day(row["from_us"]), _day(row["until_us"] or end_us)
        axes.barh(
            place,
            until - start,
            left=start,
            height=0.5,
            color=COLOURS[bundles.index(row["bundle_hash"]) % len(COLOURS)],
            hatch="//" if row["action"] == "rollback" else None,
            edgecolor="white",
        )
        axes.plot([start], [place], "|", color=GREY, markersize=16)
        if row["first_served_us"] is not None:
            decided = [_day(row["first_served_us"]), _day(row["last_served_us"])]
            axes.plot(decided, [place - 0.36] * 2, color=GREY, linewidth=2)
    axes.set_yticks(
        range(len(drawn)),
        [f"{row['sequence']}. {row['action']} {row['bundle_hash'][:8]}" for row in drawn],
    )
    axes.set_ylim(-0.7, len(drawn) - 0.3)
    axes.set_title(
        f"{rows[-1]['bundle_hash'][:12]} serves since {timestamp(rows[-1]['from_us'])}; "
        "grey: its logged decisions",
        fontsize=11,
    )
    dated(axes)
    return png_of(figure)


def _day(us: int) -> float:
    """Return a moment as matplotlib's number of days."""
    from matplotlib.dates import date2num

    return float(date2num(moment_of(us)))
