"""What a guard of versions let pass, turned or refused, kept in the warehouse.

A refused lookup is an error where it happens, and the run that met it ends there; how often that
was, and between which encoders, stays readable here. The guard itself is :mod:`.versions`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ad_pipeline.embeddings.tables import TABLES, VERSION_LOOKUPS
from ad_pipeline.embeddings.versions import VersionGuard

if TYPE_CHECKING:
    from ad_pipeline.warehouse import Warehouse


@contextmanager
def counted(
    warehouse: "Warehouse", guard: VersionGuard, asked_by: str, as_of_us: int
) -> Iterator[VersionGuard]:
    """Give a guard, and keep what it did when the block ends, also by an error.

    Parameters
    ----------
    warehouse : Warehouse
    guard : VersionGuard
        New: all that it counts is of this block.
    asked_by : str
        Who brings vectors together, ``room.table``.
    as_of_us : int
        Moment of the log that is asked about; what was counted for it before is replaced.
    """
    try:
        yield guard
    finally:
        _record(warehouse, guard, asked_by, as_of_us)


def _record(warehouse: "Warehouse", guard: VersionGuard, asked_by: str, as_of_us: int) -> None:
    warehouse.create(TABLES)
    name = VERSION_LOOKUPS.name
    with warehouse.writer() as connection:
        key = {"asked_by": asked_by, "as_of_us": as_of_us}
        connection.execute(
            f"DELETE FROM {name} WHERE asked_by = $asked_by AND as_of_us = $as_of_us", key
        )
        for outcome, version, wanted, lookups in guard.counts():
            connection.execute(
                f"INSERT INTO {name} BY NAME SELECT $asked_by AS asked_by, $as_of_us AS as_of_us, "
                "$version AS version, $wanted AS wanted, $outcome AS outcome, $lookups AS lookups",
                key
                | {"version": version, "wanted": wanted, "outcome": outcome, "lookups": lookups},
            )
