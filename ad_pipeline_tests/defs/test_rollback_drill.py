"""The drill that anyone may start from the UI, on a market that has all that the guards read."""

import dagster as dg

from ad_pipeline.monitoring.production.rollback_drill import FAULTS
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.defs.runs import run_here


def test_the_drill_refuses_and_undoes_every_fault_and_passes_its_check(
    definitions: dg.Definitions, own_market: Market
) -> None:
    """With the poisoned model, which only the proof against its checkpoints can refuse."""
    ran = run_here(definitions, ["monitoring/rollback_drill"])
    assert ran.success
    (checked,) = ran.get_asset_check_evaluations()
    assert checked.passed, checked.metadata
    with Warehouse(own_market.deployment.warehouse).reader() as connection:
        steps = connection.execute(
            "SELECT fault, count(*), bool_and(passed) FROM monitoring.rollback_drill GROUP BY 1"
        ).fetchall()
    assert {fault: (count, passed) for fault, count, passed in steps} == dict.fromkeys(
        FAULTS, (5, True)
    )
