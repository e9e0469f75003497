"""Run a module that kills itself at a chosen moment: `planted_kill.py <moment> -m <module> ...`.

A moment is ``<call>:<when>:<number>:<pattern>``: before or after the number-th call of ``rename``,
``replace`` or ``commit`` that the pattern (a regular expression) fits. It is searched in the target
of a rename or replacement, and in the INSERTs of the transaction that a commit ends. The code that
runs knows nothing of it: the calls are wrapped here, in the process that dies.
"""

import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any

import duckdb


def plant(moment: str) -> None:
    """Wrap the call that a moment names; see the module.

    Parameters
    ----------
    moment : str

    Raises
    ------
    ValueError
        If it names an unknown call or an unknown side of it.
    """
    call, when, number, pattern = moment.split(":", 3)
    if when not in ("before", "after"):
        raise ValueError(f"{when!r} is no side of a call: write before or after")
    left = int(number)

    def around(made: Callable[[], Any], fits: bool) -> Any:
        nonlocal left
        left -= fits
        due = fits and left == 0
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = made()
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if call in ("rename", "replace"):
        _wrap_rename(call, pattern, around)
    elif call == "commit":
        _wrap_commit(pattern, around)
    else:
        raise ValueError(f"{call!r} is no call to kill at: write rename, replace or commit")


def _wrap_rename(call: str, pattern: str, around: Callable[[Callable[[], Any], bool], Any]) -> None:
    original = getattr(os, call)

    def wrapped(source: Any, target: Any, *rest: Any, **options: Any) -> Any:
        fits = re.search(pattern, str(target)) is not None
        return around(lambda: original(source, target, *rest, **options), fits)

    setattr(os, call, wrapped)


def _wrap_commit(pattern: str, around: Callable[[Callable[[], Any], bool], Any]) -> None:
    connection_class = duckdb.DuckDBPyConnection
    original = connection_class.execute
    inserted = False

    def wrapped(self: duckdb.DuckDBPyConnection, query: Any, *rest: Any, **options: Any) -> Any:
        nonlocal inserted
        text = str(query)
        if text.startswith("INSERT") and re.search(pattern, text):
            inserted = True
        is_commit = text == "COMMIT"
        fits = is_commit and inserted
        inserted = inserted and not is_commit
        return around(lambda: original(self, query, *rest, **options), fits)

    connection_class.execute = wrapped


if __name__ == "__main__":
    plant(sys.argv[1])
    if sys.argv[2] != "-m":
        raise ValueError("write: planted_kill.py <moment> -m <module> ...")
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
