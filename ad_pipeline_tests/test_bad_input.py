"""``docs/bad_input.md`` names a test for every kind of bad input, and each of them exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "bad_input.md").read_text()

ITEMS = (
    "missing column",
    "wrong type",
    "timestamp without a zone",
    "negative delay",
    "duplicate id with different content",
    "engagement of an impression that never comes",
    "engagement outside its window",
    "empty file",
    "truncated Parquet",
    "NaN",
    "infinite feature",
    "unknown goal",
    "a goal chain with a cycle",
    "a 10 MB string",
    "a billion-row claim in a Parquet footer",
    "an unreadable warehouse file",
    "a warehouse held by another process",
    "a full disk while a checkpoint is written",
    "a full disk while a bundle is written",
    "a flipped byte in any file of a bundle",
    "unknown key",
    "a statement where an expression belongs",
    "two datasets pointed at one home",
    "a clock that steps back",
)
"""What the project promises to answer clearly."""

_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows_of(page: str) -> list[list[str]]:
    """Return the cells of every table row but the headers."""
    lines = [line.strip().strip("|").split(" | ") for line in page.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if cells[0].strip() != "input" and "---" not in cells[0]]


def missing_tests(page: str) -> list[str]:
    """Return each test that a page names and that is not there."""
    return [
        f"{path}::{name}"
        for path, name in _NAMED.findall(page)
        if not (TESTS / path).is_file()
        or name
        not in {
            node.name
            for node in ast.parse((TESTS / path).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
    ]


def test_every_kind_of_bad_input_has_a_row_and_every_row_a_test() -> None:
    rows = rows_of(PAGE)
    inputs = [cells[0] for cells in rows]
    assert [item for item in ITEMS if not any(item in said for said in inputs)] == []
    assert [cells[0] for cells in rows if not _NAMED.search(cells[-1])] == []


def test_every_test_that_the_page_names_exists() -> None:
    assert len(_NAMED.findall(PAGE)) >= len(ITEMS)
    assert missing_tests(PAGE) == []


def test_a_name_that_no_test_has_is_found() -> None:
    assert missing_tests("`test_bad_input.py::test_nothing`") == ["test_bad_input.py::test_nothing"]
    assert missing_tests("`nowhere/test_x.py::test_y`") == ["nowhere/test_x.py::test_y"]
