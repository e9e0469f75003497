"""What is wrong now, for people: one HTML page that holds all, and lines for a terminal.

Formatting only. What is wrong is found in :mod:`.sources`.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ad_pipeline.clocks import timestamp
from ad_pipeline.monitoring.alerts.alert import SEVERITIES

HEADINGS = ("", "what", "found", "since", "to act", "source")

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:76em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-size:13px}"
    "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}"
    "code{background:#f4f4f4;padding:.1em .3em}"
    ".page td:first-child{background:#D55E00;color:#fff;font-weight:bold}"
    ".warn td:first-child{background:#E69F00;font-weight:bold}"
    ".info td:first-child{background:#e8eef4}"
)


def alerts_page(dataset: str, alerts: Sequence[Mapping[str, Any]], known_until_us: int) -> str:
    """Return the page.

    Parameters
    ----------
    dataset : str
        Its name.
    alerts : sequence of mapping
        Rows of ``monitoring.alerts``, in the order in which they are told.
    known_until_us : int
        End of the log that they were known from; 0 without a sealed hour.
    """
    title = f"What is wrong now: {escape(dataset)}"
    known = f"Known up to {timestamp(known_until_us)}." if known_until_us else "No hour is sealed."
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{counted(alerts)} {known}</p>",
    ]
    if alerts:
        parts.append(f"<table><tr>{''.join(f'<th>{each}</th>' for each in HEADINGS)}</tr>")
        for row in alerts:
            cells = [row["severity"], row["subject"], row["found"], timestamp(row["since_us"])]
            parts.append(
                f"<tr class='{row['severity']}'>"
                + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
                + f"<td><code>{escape(row['act'])}</code></td><td>{escape(row['source'])}</td></tr>"
            )
        parts.append("</table>")
    return "\n".join([*parts, "</body></html>\n"])


def counted(alerts: Sequence[Mapping[str, Any]]) -> str:
    """Return how many there are of each severity, for people."""
    if not alerts:
        return "Nothing is wrong."
    numbers = {each: sum(row["severity"] == each for row in alerts) for each in SEVERITIES}
    return ", ".join(f"{number} {each}" for each, number in numbers.items() if number) + "."


def alerts_lines(alerts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what a terminal shows."""
    yield counted(alerts)
    for row in alerts:
        yield f"{row['severity']}: {row['subject']} since {timestamp(row['since_us'])}"
        yield f"    {row['found']}"
        yield f"    → {row['act']}"
