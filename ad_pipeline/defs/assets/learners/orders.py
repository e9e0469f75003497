"""What a run asks of a learner beyond its schedule, and keeps of it."""

import dagster as dg
from pydantic import Field

from ad_pipeline.clocks import hours_between
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.learners.orders import record_orders
from ad_pipeline.learners.tables import TABLES
from ad_pipeline.warehouse import Table


class Asked(dg.Config):
    """Why to train or fit anew in the hours of this run, beyond the regular schedule."""

    cause: str = Field(default="", description="Empty: nothing is asked for.")
    evidence: str = Field(default="{}", description="What the cause rests on, JSON.")


def record_asked(
    deployment: DeploymentResource, table: Table, asked: Asked, start_us: int, end_us: int
) -> None:
    """Keep what this run was asked for, if it was."""
    deployment.warehouse.create(TABLES)
    if asked.cause:
        with deployment.warehouse.writer() as connection:
            record_orders(
                connection,
                table,
                list(hours_between(start_us, end_us)),
                cause=asked.cause,
                evidence=asked.evidence,
            )
