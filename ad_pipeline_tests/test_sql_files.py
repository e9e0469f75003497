"""Every file of ``dbt_like_sql/`` is one documented SELECT whose values come in as ``$names``."""

import re
from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp

import ad_pipeline
from ad_pipeline.warehouse import SQL_FOLDER, bound

FILES = sorted(SQL_FOLDER.rglob("*.sql"))
ROOMS = {path.parent.name for path in Path(ad_pipeline.__path__[0]).glob("*/__init__.py")}
MARKS_OF_PASTING = ("{", "}", "%(", "%s")


def faults(text: str) -> list[str]:
    """Say what is wrong with the text of a SQL file."""
    header = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("--")]
    found = [
        f"the header does not name the {word}"
        for word in ("grain", "key", "clock")
        if not any(line.removeprefix("--").strip().startswith(f"{word}:") for line in header)
    ]
    if not text.startswith("--"):
        found.append("there is no header")
    statements = [statement for statement in sqlglot.parse(text, read="duckdb") if statement]
    if len(statements) != 1:
        return [*found, f"there are {len(statements)} statements"]
    (statement,) = statements
    if not isinstance(statement, exp.Select | exp.SetOperation):
        found.append(f"the statement is a {statement.key}, not a SELECT")
    found += [f"{mark} pastes text into the query" for mark in MARKS_OF_PASTING if mark in text]
    found += [
        "a parameter has no name"
        for mark in statement.find_all(exp.Placeholder)
        if not mark.args.get("this")
    ]
    found += [
        f"{table.db} is no room"
        for table in statement.find_all(exp.Table)
        if table.db and table.db not in ROOMS
    ]
    # DuckDB refuses a value for a name that only a comment holds; ``bound`` cannot tell the two.
    code = {mark.name for mark in statement.find_all(exp.Placeholder)}
    found += [
        f"${name} stands in a comment only"
        for name in sorted(bound(text, dict.fromkeys(re.findall(r"\w+", text))).keys() - code)
    ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_sql_file_is_one_documented_select_with_named_values(path: Path) -> None:
    assert faults(path.read_text()) == []


def test_there_are_sql_files_and_each_lies_in_the_folder_of_its_room() -> None:
    assert FILES
    assert {path.parent.parent for path in FILES} == {SQL_FOLDER}


GOOD = """-- Rows.
--
-- grain: a row
-- key:   a
-- clock: a_us
SELECT a FROM events.t WHERE a_us < $end_us
"""


def test_a_good_file_has_no_faults() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("good", "bad", "fault"),
    [
        ("-- grain: a row\n", "", "grain"),
        ("-- key:   a\n", "", "key"),
        ("-- clock: a_us\n", "", "clock"),
        ("-- Rows.\n", "\n-- Rows.\n", "no header"),
        ("$end_us", "$end_us; SELECT 1", "2 statements"),
        ("SELECT a FROM events.t WHERE a_us < $end_us", "DELETE FROM events.t", "not a SELECT"),
        ("$end_us", "{end_us}", "pastes"),
        ("$end_us", "?", "no name"),
        ("events.t", "cellar.t", "no room"),
        ("-- Rows.", "-- Rows before $last_us.", "comment only"),
    ],
)
def test_a_planted_fault_is_found(good: str, bad: str, fault: str) -> None:
    assert fault in " ".join(faults(GOOD.replace(good, bad)))
