"""The definitions of both datasets load, keep the rules, and have the graph that was reviewed.

After a wanted change of the graph, per dataset::

    AD_PIPELINE_DATASET=open_bandit python -m ad_pipeline_tests.defs.graph_shape --write
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from ad_pipeline_tests.defs.graph_shape import assets_of, faults, snapshot_file

DATASETS = ("open_bandit", "marketplace")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Return shape and faults of each dataset's graph, each from a process of its own."""
    homes = {dataset: tmp_path_factory.mktemp(dataset) for dataset in DATASETS}
    running = {
        dataset: subprocess.Popen(
            [sys.executable, "-m", "ad_pipeline_tests.defs.graph_shape", "--json"],
            env=os.environ | {"AD_PIPELINE_DATASET": dataset, "AD_PIPELINE_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for dataset, home in homes.items()
    }
    found = {}
    for dataset, loading in running.items():
        said, complaints = loading.communicate()
        assert loading.returncode == 0, f"{dataset} does not load:\n{complaints}"
        written = [path.name for path in homes[dataset].iterdir()]
        found[dataset] = {**json.loads(said.splitlines()[-1]), "written": written}
    return found


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_graph_is_the_one_that_was_reviewed(loaded: dict[str, dict], dataset: str):
    expected = snapshot_file(dataset).read_text()
    assert loaded[dataset]["shape"] == expected, (
        f"if it should be so: AD_PIPELINE_DATASET={dataset} "
        "python -m ad_pipeline_tests.defs.graph_shape --write"
    )


HEAVY = {
    "evidently", "faiss", "jax", "lightgbm", "matplotlib", "pandas", "river", "scipy.special",
    "scipy.stats", "sklearn",
}  # fmt: skip
"""A fifth of a second to two seconds each: imported where they are used."""


@pytest.mark.parametrize(("first", "found"), [("", set()), ("import scipy.stats", {"scipy.stats"})])
def test_definitions_load_without_what_only_a_step_needs(
    first: str, found: set[str], tmp_path: Path
):
    """The second case is the control: what is imported is seen."""
    code = f"import sys; from ad_pipeline.definitions import defs; defs(); {first}"
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"],
        env=os.environ | {"AD_PIPELINE_DATASET": "marketplace", "AD_PIPELINE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    loaded = set(said.splitlines()[-1].split()) if said.strip() else set()
    assert loaded >= found
    assert found or not loaded


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_asset_is_described_in_its_room_and_reads_only_the_past(
    loaded: dict[str, dict], dataset: str
):
    assert loaded[dataset]["faults"] == []


@pytest.mark.parametrize("dataset", DATASETS)
def test_loading_definitions_writes_nothing(loaded: dict[str, dict], dataset: str):
    """Whoever opens the UI loads them, before anything was materialized."""
    assert loaded[dataset]["written"] == []


HOURLY = dg.HourlyPartitionsDefinition("2026-03-02-00:00", timezone="UTC")
SCHEMA = {"dagster/column_schema": dg.TableSchema([dg.TableColumn("a", "BIGINT", "A number.")])}
SOUND = {
    "group_name": "events",
    "kinds": {"duckdb"},
    "description": "What happened, by log hour, read from files.",
    "metadata": SCHEMA,
    "partitions_def": HOURLY,
}
FAULTS = {
    "reads events/upstream from hour +26 to +0": {
        "deps": [
            dg.AssetDep(
                ["events", "upstream"],
                partition_mapping=dg.TimeWindowPartitionMapping(start_offset=26, end_offset=0),
            )
        ]
    },
    "reads events/upstream from hour -1 to +1": {
        "deps": [
            dg.AssetDep(
                ["events", "upstream"],
                partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=1),
            )
        ]
    },
    "is in group serving": {"group_name": "serving"},
    "no description that people can use": {"description": "It is."},
    "has no kind": {"kinds": set()},
    "without a column schema": {"metadata": {}},
    "column a of events/asked has no description": {
        "metadata": {
            "dagster/column_schema": dg.TableSchema([dg.TableColumn("a", "BIGINT")]),
        }
    },
}


def _graph(change: dict, key: tuple[str, ...] = ("events", "asked"), **options) -> dg.Definitions:
    policy = {"backfill_policy": dg.BackfillPolicy.single_run(), **options}
    upstream = dg.AssetSpec(["events", "upstream"], **SOUND)
    asked = dg.AssetSpec(list(key), **(SOUND | change))

    @dg.multi_asset(specs=[upstream], **policy)
    def makes_upstream(): ...

    @dg.multi_asset(specs=[asked], **policy)
    def makes_asked(): ...

    return dg.Definitions(assets=[makes_upstream, makes_asked])


def test_a_sound_graph_has_no_fault():
    assert list(faults(_graph({}))) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_graph_is_found(fault: str):
    (found,) = faults(_graph(FAULTS[fault]))
    assert fault in found


def test_an_asset_outside_any_room_is_found():
    (found,) = faults(_graph({}, ("events", "past", "asked")))
    assert "is not called room/name" in found


def test_an_asset_that_needs_a_run_an_hour_is_found():
    assert len(list(faults(_graph({}, backfill_policy=None)))) == 2


def test_an_asset_that_reads_its_own_hour_is_found():
    """The online model continues from its previous hour; its own hour would be a cycle."""
    own = dg.AssetDep(
        ["events", "asked"],
        partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=0),
    )
    with pytest.raises(dg.DagsterInvalidDefinitionError):
        list(faults(_graph({"deps": [own]})))


def test_every_blocking_check_stands_before_serving(definitions: dg.Definitions):
    """A blocking check on an asset that nothing served depends on would block nothing."""
    assets = {asset.name: asset for asset in assets_of(definitions)}
    before: set[str] = set()
    waiting = ["serving/current"]
    while waiting:
        reads = assets[waiting.pop()].reads.keys() - before
        before |= reads
        waiting += reads
    blocking = {
        asset.name: [name for name, blocks in asset.checks.items() if blocks]
        for asset in assets.values()
        if any(asset.checks.values())
    }
    assert len(blocking) >= 8
    assert set(blocking) <= before, {name: blocking[name] for name in set(blocking) - before}
