"""How figures, digests, tables and pictures are written into metadata, so that a page reads well.

Dagster shows metadata in the order in which it comes and plots what is a number. What a figure
means stands with the asset that reports it; how it is measured with its room.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

DIGEST_LETTERS = 12
"""Of a SHA-256: enough to tell checkpoints apart; a whole one would cut the table off."""


SHOWN_IN_PLACE = 1_000
"""Dagster shows shorter Markdown in place, where a wide table would squeeze the labels and be cut
off itself: a table is filled up with blanks, and waits behind a click."""


def label(name: str, *of: str) -> str:
    """Return the label of a figure: what it is of, then its name in words.

    Parameters
    ----------
    name : str
        Name of the figure, ``log_loss``.
    *of : str
        A goal, and possibly an expert.

    Returns
    -------
    str
        As in ``click, online: log loss``.
    """
    words = name.replace("_", " ")
    return f"{', '.join(of)}: {words}" if of else words


def short(digest: str | None) -> str:
    """Return the start of a digest for a table's cell; ``none yet`` without one."""
    return digest[:DIGEST_LETTERS] if digest else "none yet"


def whole(digests: Mapping[str, str | None]) -> dg.MarkdownMetadataValue:
    """Return whole digests, or paths, by what they are of: one click away, and not cut off."""
    return table(
        ("of", "whole"), [(name, f"`{digest or 'none yet'}`") for name, digest in digests.items()]
    )


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    """Return a PNG that the UI draws without reading any file."""
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """Return rows as a Markdown table in a dialog; no cell can break it."""
    lines = [headings, ["---"] * len(headings), *rows]
    text = "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in lines)
    return dg.MetadataValue.md(text.ljust(SHOWN_IN_PLACE))


def rounded(value: float) -> float:
    """Return a number with six significant digits: more would only make it hard to read."""
    return float(f"{value:.6g}")


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
