"""Checks of the label join: each anchor once, each emission once, no fact from the future."""

import dagster as dg
import duckdb

from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.warehouse import one_row, select

LABELLED = ["examples", "labelled_impressions"]
EMITTED = ["examples", "training_examples"]


@dg.multi_asset_check(
    name="examples_checks",
    specs=[
        dg.AssetCheckSpec(
            "each_anchor_is_labelled_once",
            asset=LABELLED,
            blocking=True,
            description="Every impression that matured before the last sealed hour has one label.",
        ),
        dg.AssetCheckSpec(
            "no_label_knows_the_future",
            asset=LABELLED,
            blocking=True,
            description="No label rests on an engagement that our log had after its maturity.",
        ),
        dg.AssetCheckSpec(
            "each_example_is_emitted_once",
            asset=EMITTED,
            blocking=True,
            description="The key of a training example is unique, so that a replay is safe.",
        ),
        dg.AssetCheckSpec(
            "no_example_knows_the_future",
            asset=EMITTED,
            blocking=True,
            description="No positive is emitted before our log had its engagement.",
        ),
    ],
)
def examples_checks(deployment: DeploymentResource):
    """Look for the faults that a label join can have."""
    anchored = [goal for goal in deployment.dataset.goals if goal.anchor == "impression"]
    with deployment.warehouse.reader() as connection:
        wrong = sum(
            _count(
                connection,
                "examples.anchors_not_labelled_once",
                {
                    "goal": goal.name,
                    "horizon_us": goal.window_us + goal.lateness_us,
                },
            )
            for goal in anchored
        )
        labels_ahead = _count(connection, "examples.labels_ahead_of_time", {})
        repeated = _count(connection, "examples.repeated_emissions", {})
        emitted_ahead = _count(connection, "examples.emissions_ahead_of_time", {})
    for name, asset, faults, sound, fault in (
        (
            "each_anchor_is_labelled_once",
            LABELLED,
            wrong,
            "every matured impression has one label",
            "matured impressions have no label or several",
        ),
        (
            "no_label_knows_the_future",
            LABELLED,
            labels_ahead,
            "every label rests on what our log had by then",
            "labels rest on an engagement that came later",
        ),
        (
            "each_example_is_emitted_once",
            EMITTED,
            repeated,
            "every example was emitted once",
            "examples were emitted more than once",
        ),
        (
            "no_example_knows_the_future",
            EMITTED,
            emitted_ahead,
            "every positive was emitted after our log had its engagement",
            "positives were emitted before our log had their engagement",
        ),
    ):
        said = sound if faults == 0 else f"{faults:,} {fault}"
        yield found(name, asset, faults == 0, said, faults=faults)


def _count(connection: duckdb.DuckDBPyConnection, name: str, parameters: dict[str, object]) -> int:
    return int(one_row(connection, select(name), parameters)[0])
