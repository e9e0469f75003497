"""What runs leave behind, in a form that two homes can be compared in.

Everything that a run computes or decides is in it: rows and definitions of the warehouse, bytes of
checkpoints, snapshots and bundles, every pointer, the history of promotions. Not in it are
Dagster's own records, pictures, lock files, and hidden files: writes that never became visible.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import duckdb

from ad_pipeline.datasets import Deployment
from ad_pipeline.warehouse import Warehouse

#: What stands in a home, by name ("table events.files", "checkpoints/pointers/..."), as a SHA-256.
LeftBehind = dict[str, str]

FETCHED_ROWS = 20_000


def left_behind(deployment: Deployment) -> LeftBehind:
    """Return all that is in a deployment's warehouse, checkpoints and pointers.

    Rows are compared as values, in their own sorted order: where the file keeps them is DuckDB's
    affair. Everything else is compared byte by byte.
    """
    found: LeftBehind = {}
    if deployment.warehouse.exists():
        with Warehouse(deployment.warehouse).reader() as connection:
            for table in _relations(connection, "BASE TABLE"):
                found[f"table {table}"] = _digest_of_rows(connection, table)
            for view in _relations(connection, "VIEW"):
                found[f"view {view}"] = _digest_of_definition(connection, view)
    for root in (
        deployment.checkpoints, deployment.snapshots, deployment.bundles, deployment.serving,
    ):  # fmt: skip
        for path in _visible_files(root):
            name = path.relative_to(deployment.home).as_posix()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(expected: LeftBehind, found: LeftBehind) -> list[str]:
    """Return what two homes do not have in common, by name, sorted."""
    return sorted(
        [f"{name} is missing" for name in expected.keys() - found.keys()]
        + [f"{name} should not be there" for name in found.keys() - expected.keys()]
        + [f"{name} differs" for name in expected.keys() & found.keys()
           if expected[name] != found[name]]
    )  # fmt: skip


def rows_of_one(one: Deployment, other: Deployment, table: str, most: int = 3) -> list[str]:
    """Return a few rows of a table that one home has and the other has not: for messages."""
    with duckdb.connect(":memory:") as connection:
        for name, deployment in (("one", one), ("other", other)):
            connection.execute(f"ATTACH '{deployment.warehouse}' AS {name} (READ_ONLY)")
        rows = connection.execute(
            f"SELECT * FROM one.{table} EXCEPT ALL SELECT * FROM other.{table} ORDER BY ALL"
        )
        names = [column[0] for column in rows.description or ()]
        return [str(dict(zip(names, row, strict=True))) for row in rows.fetchmany(most)]


def unfinished_writes(deployment: Deployment) -> list[Path]:
    """Return what killed writers left that nobody reads: scratch folders and files."""
    return sorted(deployment.home.rglob(".*writing*"))


def _relations(connection: duckdb.DuckDBPyConnection, kind: str) -> list[str]:
    rows = connection.execute(
        "SELECT table_schema || '.' || table_name FROM information_schema.tables "
        "WHERE table_catalog = 'warehouse' AND table_type = $kind ORDER BY ALL",
        {"kind": kind},
    ).fetchall()
    return [name for (name,) in rows]


def _digest_of_rows(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    """Hash the columns and the sorted rows; a float is written so that it reads back the same."""
    digest = hashlib.sha256()
    rows = connection.execute(f"SELECT * FROM {table} ORDER BY ALL")
    digest.update(repr([column[:2] for column in rows.description or ()]).encode())
    while chunk := rows.fetchmany(FETCHED_ROWS):
        digest.update("\n".join(map(repr, chunk)).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _digest_of_definition(connection: duckdb.DuckDBPyConnection, view: str) -> str:
    schema, _, name = view.partition(".")
    found = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE database_name = 'warehouse' "
        "AND schema_name = $schema AND view_name = $name",
        {"schema": schema, "name": name},
    ).fetchall()
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _visible_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden:
            yield path
