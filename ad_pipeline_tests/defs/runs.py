"""Runs of some assets and checks in this process, on the home that the environment names.

A whole range takes its own process and half a minute (``markets.run``); to see what one check or
one asset does, a second is enough.
"""

from collections.abc import Iterable

import dagster as dg

from ad_pipeline.clocks import HOUR_US, hour_key

BESIDE_THE_PATH = frozenset(
    {
        "monitoring/delay_benchmark",
        "monitoring/delay_report",
        "monitoring/rollback_drill",
        "monitoring/serving_stress",
    }
)
"""What the main job leaves out: nothing in the path needs them."""

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def evaluate_checks(
    definitions: dg.Definitions, instance: dg.DagsterInstance | None = None
) -> dict[str, dg.AssetCheckEvaluation]:
    """Evaluate every check, materializing nothing; by name."""
    ran = run_here(definitions, (), instance=instance)
    return {found.check_name: found for found in ran.get_asset_check_evaluations()}


def failed(evaluations: dict[str, dg.AssetCheckEvaluation]) -> set[str]:
    """Return the names of the checks that did not pass."""
    return {name for name, found in evaluations.items() if not found.passed}


def made(ran: dg.ExecuteInProcessResult) -> set[str]:
    """Return the assets that a run materialized, ``room/name``."""
    return {
        event.asset_key.to_user_string()
        for event in ran.get_asset_materialization_events()
        if event.asset_key is not None
    }


def run_here(
    definitions: dg.Definitions,
    assets: Iterable[str],
    start_us: int | None = None,
    end_us: int | None = None,
    instance: dg.DagsterInstance | None = None,
) -> dg.ExecuteInProcessResult:
    """Materialize some assets and evaluate the checks that are about them alone.

    Without an asset every check is evaluated, and nothing materialized.

    Parameters
    ----------
    definitions : Definitions
    assets : iterable of str
        ``room/name``.
    start_us, end_us : int, optional
        Hours of the run, microseconds.
    instance : DagsterInstance, optional
        One that is forgotten afterwards if left out.
    """
    keys = {dg.AssetKey(name.split("/")) for name in assets}
    graph = definitions.resolve_asset_graph()
    checks = {
        check
        for check in graph.asset_check_keys
        # Checks made in one step are evaluated together or not at all.
        if not keys
        or all(
            together.asset_key in keys
            for together in graph.get_execution_set_asset_and_check_keys(check)
            if isinstance(together, dg.AssetCheckKey)
        )
    }
    job = definitions.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=keys, asset_check_selection=checks
    )
    tags = {}
    if start_us is not None and end_us is not None:
        tags = {RANGE_START_TAG: hour_key(start_us), RANGE_END_TAG: hour_key(end_us - HOUR_US)}
    return job.execute_in_process(
        instance=instance or dg.DagsterInstance.ephemeral(), raise_on_error=False, tags=tags
    )
