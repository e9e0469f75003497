"""Rows on their way to a log file: named columns of integers and floats of one length.

While the world is simulated a row holds numbers and codes only; `log_files.py` turns them into
text. Everything here keeps the order of the rows.
"""

import numpy as np

Rows = dict[str, np.ndarray]
"""Columns by name, all of shape (n,)."""


def row_count(rows: Rows) -> int:
    """Length of the columns."""
    return len(next(iter(rows.values())))


def take(rows: Rows, index: np.ndarray) -> Rows:
    """Select the rows at `index` (integers or a mask), as copies."""
    return {name: column[index] for name, column in rows.items()}


def replaced(rows: Rows, **columns: np.ndarray) -> Rows:
    """Return the same rows with some columns replaced.

    Raises
    ------
    KeyError
        When a column does not exist yet.
    """
    for name in columns:
        if name not in rows:
            raise KeyError(f"column {name!r} is not among {sorted(rows)}")
    return {**rows, **columns}


def stacked(parts: list[Rows]) -> Rows:
    """Concatenate rows with the same columns, in the given order."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Backlog:
    """Rows of one table that have not reached the log yet.

    Parameters
    ----------
    None

    Notes
    -----
    Holds little: most rows are due within the hour in which they were made.
    """

    def __init__(self) -> None:
        self._waiting: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Put rows in line."""
        if row_count(rows):
            self._waiting.append(rows)

    def due(self, before_us: int) -> Rows | None:
        """Take out the rows with `received_us` < `before_us`, in the order of `received_us`.

        Rows of one microsecond keep the order in which they were added, so the result does not
        depend on how often `due` was asked before. None when nothing is due.
        """
        if not self._waiting:
            return None
        rows = stacked(self._waiting)
        ready = rows["received_us"] < before_us
        self._waiting = []
        if not ready.all():
            self.add(take(rows, ~ready))
        chosen = np.flatnonzero(ready)
        if not len(chosen):
            return None
        order = np.argsort(rows["received_us"][chosen], kind="stable")
        return take(rows, chosen[order])
