"""What Dagster shows of a table: its columns, its upstream tables and where each column came from.

Dependencies and column lineage are read from the SELECT in ``dbt_like_sql/`` with sqlglot, so that
they cannot drift from the SQL that runs. Asset bodies do not belong here.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import dagster as dg
import sqlglot
from sqlglot import exp
from sqlglot.lineage import lineage
from sqlglot.optimizer.qualify import qualify

from ad_pipeline.defs.partitions import HOURLY
from ad_pipeline.warehouse import SQL_FOLDER, Table, select

ON_DEMAND = "on_demand"
"""Tag of the assets that are made when somebody asks for them, each by a job of its own."""


def table_spec(
    table: Table,
    *,
    deps: Iterable[dg.AssetDep | Sequence[str]] = (),
    kinds: set[str] | None = None,
    metadata: dict | None = None,
    on_demand: bool = False,
) -> dg.AssetSpec:
    """Describe a warehouse table as an asset; its key is the table's own name.

    Parameters
    ----------
    table : Table
        With descriptions for people.
    deps : iterable of AssetDep or key
        Upstream assets with their partition mappings.
    kinds : set of str, optional
        Badges; ``duckdb`` is always among them.
    metadata : dict, optional
        Further definition metadata.
    on_demand : bool
        Whether nothing in the path needs it, so that the main job leaves it out.
    """
    room, name = table.name.split(".")
    shown = {
        "dagster/column_schema": column_schema(table),
        "dagster/table_name": table.name,
        "key": ", ".join(table.key),
    }
    if table.clock is not None:
        shown["clock"] = f"{table.clock} (its hour is the partition)"
    return dg.AssetSpec(
        [room, name],
        deps=list(deps),
        description=table.description,
        group_name=room,
        kinds={"duckdb"} | (kinds or set()),
        metadata=shown | (metadata or {}),
        tags={ON_DEMAND: ""} if on_demand else {},
        partitions_def=HOURLY if table.clock is not None else None,
    )


def column_schema(table: Table) -> dg.TableSchema:
    """Return the table's columns as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(column.name, column.type, description=column.description)
            for column in table.columns
        ]
    )


@cache
def upstream_tables(name: str) -> tuple[str, ...]:
    """Return the warehouse tables, ``room.table``, that a table's SELECT reads, sorted."""
    tree = sqlglot.parse_one(select(name), read="duckdb")
    return tuple(
        sorted({f"{table.db}.{table.name}" for table in tree.find_all(exp.Table) if table.db})
    )


def column_lineage(table: Table, sources: Sequence[Table]) -> dg.TableColumnLineage | None:
    """Return for each column the upstream columns it is computed from; None without a SELECT.

    Parameters
    ----------
    table : Table
        Built by ``dbt_like_sql/<room>/<table>.sql``.
    sources : sequence of Table
        Declarations of the tables that the SELECT reads, so that ``*`` can be expanded.
    """
    room, short_name = table.name.split(".")
    if not (SQL_FOLDER / room / f"{short_name}.sql").exists():
        return None
    schema: dict[str, Any] = {}
    for source in sources:
        source_room, source_name = source.name.split(".")
        schema.setdefault(source_room, {})[source_name] = {c.name: c.type for c in source.columns}
    tree = qualify(
        sqlglot.parse_one(select(table.name), read="duckdb"),
        schema=schema,
        dialect="duckdb",
        validate_qualify_columns=False,
    )
    outermost = tree.find(exp.Select)
    selected = {chosen.alias_or_name for chosen in outermost.expressions} if outermost else set()
    found: dict[str, list[dg.TableColumnDep]] = {}
    for column in table.column_names:
        if column not in selected:
            continue
        node = lineage(column, tree, schema=schema, dialect="duckdb")
        found[column] = sorted(
            {
                dg.TableColumnDep(
                    [leaf.expression.db, leaf.expression.name], _column_name(leaf.name)
                )
                for leaf in node.walk()
                if isinstance(leaf.expression, exp.Table) and leaf.expression.db
            },
            key=lambda dep: (dep.asset_key.path, dep.column_name),
        )
    return dg.TableColumnLineage(deps_by_column=found)


def _column_name(qualified: str) -> str:
    return qualified.rpartition(".")[2].strip('"')
