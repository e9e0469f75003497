"""The asset graph as text, and the rules that every asset keeps.

``AD_PIPELINE_DATASET=<name> python -m ad_pipeline_tests.defs.graph_shape`` prints the graph of a
dataset; with ``--write`` it replaces the snapshot ``graph_<name>.txt`` that ``test_graph.py``
compares with, and whose difference is then part of the review. A dataset a process: partitions are
read at import.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from ad_pipeline.datasets import deployment_from_env

FOLDER = Path(__file__).parent


def snapshot_file(dataset: str) -> Path:
    """Return the committed graph of a dataset."""
    return FOLDER / f"graph_{dataset}.txt"


@dataclass(frozen=True)
class Asset:
    """What the graph says of one asset.

    Attributes
    ----------
    key : tuple of str
    group : str or None
    kinds, description
        As shown to people.
    hourly : bool
        Whether it is partitioned.
    takes_ranges : bool
        Whether one run does a range.
    condition : str or None
        Label of its automation condition.
    reads : dict of str to (int, int) or None
        Upstream asset to the first and last hour read of it, relative to the own; None without
        hours on either side.
    columns : dict of str to str, or None
        Descriptions by column, if it has a column schema.
    checks : dict of str to bool
        Whether each check blocks.
    """

    key: tuple[str, ...]
    group: str | None
    kinds: frozenset[str]
    description: str
    hourly: bool
    takes_ranges: bool
    condition: str | None
    reads: dict[str, tuple[int, int] | None]
    columns: dict[str, str | None] | None
    checks: dict[str, bool]

    @property
    def name(self) -> str:
        """The key as people write it."""
        return "/".join(self.key)


def assets_of(definitions: dg.Definitions) -> list[Asset]:
    """Return the assets by key."""
    graph = definitions.resolve_asset_graph()

    def hours_read(key: dg.AssetKey, parent: dg.AssetKey) -> tuple[int, int] | None:
        if graph.get(key).partitions_def is None or graph.get(parent).partitions_def is None:
            return None
        mapping = graph.get_partition_mapping(key, parent)
        if not isinstance(mapping, dg.TimeWindowPartitionMapping):
            raise TypeError(f"{key} maps to {parent} by {mapping}: say here what it reads")
        return mapping.start_offset, mapping.end_offset

    found = []
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        condition = node.automation_condition
        schema = node.metadata.get("dagster/column_schema")
        if isinstance(schema, dg.TableSchemaMetadataValue):
            schema = schema.value
        found.append(
            Asset(
                key=tuple(key.path),
                group=node.group_name,
                kinds=frozenset(node.kinds),
                description=node.description or "",
                hourly=node.partitions_def is not None,
                takes_ranges=node.backfill_policy == dg.BackfillPolicy.single_run(),
                condition=None if condition is None else condition.get_label(),
                reads={
                    parent.to_user_string(): hours_read(key, parent)
                    for parent in sorted(node.parent_keys)
                },
                columns={column.name: column.description for column in schema.columns}
                if isinstance(schema, dg.TableSchema)
                else None,
                checks={check.name: graph.get(check).blocking for check in sorted(node.check_keys)},
            )
        )
    return found


def shape(definitions: dg.Definitions) -> str:
    """Return assets by group with what they depend on, then jobs, schedules and sensors."""
    lines: list[str] = []
    group = None
    for asset in sorted(assets_of(definitions), key=lambda asset: (asset.group or "", asset.key)):
        if asset.group != group:
            group = asset.group
            lines.append(f"group {group}")
        hourly = ", every hour" if asset.hourly else ""
        lines.append(f"  {asset.name} ({', '.join(sorted(asset.kinds))}){hourly}")
        if asset.condition is not None:
            lines.append(f"    when {asset.condition}")
        for name, hours in asset.reads.items():
            lines.append(f"    <- {name}{_reach(hours)}")
        for name, blocks in asset.checks.items():
            lines.append(f"    ? {name}{' (blocking)' if blocks else ''}")
    # Sets: a module that imports another's job makes Dagster list the job twice.
    lines += sorted({f"job {job.name}" for job in definitions.jobs or ()})
    lines += sorted({f"schedule {schedule.name}" for schedule in definitions.schedules or ()})
    lines += sorted(
        {
            f"sensor {sensor.name} ({sensor.default_status.value.lower()})"
            for sensor in definitions.sensors or ()
        }
    )
    return "\n".join(lines) + "\n"


def faults(definitions: dg.Definitions) -> Iterator[str]:
    """Say where an asset is not described, not in its room, or reads the future."""
    for asset in assets_of(definitions):
        name = asset.name
        if len(asset.key) != 2:
            yield f"{name} is not called room/name"
        if asset.group != asset.key[0]:
            yield f"{name} is in group {asset.group}, not in its room's"
        if len(asset.description) < 20:
            yield f"{name} has no description that people can use"
        if not asset.kinds:
            yield f"{name} has no kind"
        if not asset.takes_ranges:
            yield f"{name} does not take a range in one run"
        if "duckdb" in asset.kinds:
            if not asset.columns:
                yield f"{name} is a table without a column schema"
            for column, description in (asset.columns or {}).items():
                if not description:
                    yield f"column {column} of {name} has no description"
        for upstream, hours in asset.reads.items():
            if hours is None:
                continue
            first, last = hours
            if first > last or last > 0 or (upstream == name and last == 0):
                yield f"{name} reads {upstream} from hour {first:+} to {last:+}"


def _reach(hours: tuple[int, int] | None) -> str:
    if hours is None or hours == (0, 0):
        return ""
    first, last = hours
    return f" {first} h" if first == last else f" {first} h to {last} h"


def main() -> int:
    """Load the definitions that the environment chooses, and print or write their graph.

    Returns
    -------
    int
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--write", action="store_true", help="replace the snapshot")
    chosen.add_argument("--json", action="store_true", help="print shape and faults as JSON")
    options = parser.parse_args()
    from ad_pipeline.definitions import defs

    definitions = defs()
    if not isinstance(definitions, dg.Definitions):
        raise TypeError(f"definitions are {type(definitions)}")
    dg.Definitions.validate_loadable(definitions)
    text = shape(definitions)
    if options.write:
        snapshot_file(deployment_from_env().dataset.name).write_text(text)
    elif options.json:
        found = {"shape": text, "faults": list(faults(definitions))}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
