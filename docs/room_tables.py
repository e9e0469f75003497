"""The tables of each room, as ``docs/rooms/<room>.md`` lists them, from the declarations in code.

``python -m docs.room_tables --write`` puts the current lists between the marks in the pages;
``ad_pipeline_tests/test_docs.py`` fails when a page is behind. Columns are not repeated there: they
are in the declarations and in the UI.
"""

import argparse
import re
import sys
from pathlib import Path

import ad_pipeline.embeddings.tables
import ad_pipeline.evaluation.tables
import ad_pipeline.examples.tables
import ad_pipeline.features.tables
import ad_pipeline.learners.tables
import ad_pipeline.monitoring.tables
from ad_pipeline.events.contract import FIXED_TABLES, LOG_TABLES
from ad_pipeline.warehouse import Table

ROOMS_FOLDER = Path(__file__).resolve().parent / "rooms"

TABLES: dict[str, tuple[Table, ...]] = {
    "events": LOG_TABLES + FIXED_TABLES,
    "examples": ad_pipeline.examples.tables.TABLES,
    "evaluation": ad_pipeline.evaluation.tables.TABLES,
    "embeddings": ad_pipeline.embeddings.tables.TABLES,
    "features": ad_pipeline.features.tables.TABLES,
    "learners": ad_pipeline.learners.tables.TABLES,
    "monitoring": ad_pipeline.monitoring.tables.TABLES,
}
"""Rooms with tables; the other rooms keep files."""

BEGIN = "<!-- made by docs/room_tables.py -->"
END = "<!-- end -->"

_BETWEEN_MARKS = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)


def listed(room: str) -> str:
    """Return the list of a room's tables, in Markdown, with its marks."""
    lines = ["| table | what | key | clock |", "|---|---|---|---|"]
    for table in TABLES[room]:
        what = re.split(r"(?<=[.:;]) ", table.description)[0].rstrip(".:;")
        clock = f"`{table.clock}`" if table.clock else "none: not by hour"
        lines.append(f"| `{table.name}` | {what} | {', '.join(table.key)} | {clock} |")
    return "\n".join([BEGIN, *lines, END])


def current(text: str, room: str) -> str:
    """Return a room's page with its list as it is now.

    Raises
    ------
    ValueError
        If the page has no place for it.
    """
    if not _BETWEEN_MARKS.search(text):
        raise ValueError(f"the page of {room} has no {BEGIN} and {END}")
    return _BETWEEN_MARKS.sub(lambda _: listed(room), text)


def main() -> int:
    """Print every list, or write all of them into their pages.

    Returns
    -------
    int
        0.
    """
    parser = argparse.ArgumentParser(description="The tables of each room, for its page.")
    parser.add_argument("--write", action="store_true", help="put them into the pages")
    write = parser.parse_args().write
    for room in TABLES:
        page = ROOMS_FOLDER / f"{room}.md"
        if write:
            page.write_text(current(page.read_text(), room))
        else:
            sys.stdout.write(f"{listed(room)}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
