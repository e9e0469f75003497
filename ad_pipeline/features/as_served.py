"""Rows of the warehouse as the learner saw them when they were served.

The join of an impression's own columns with the counts and vectors that were published when it
occurred, for every step that trains, scores or checks on logged rows. A request that is being
served now goes through ``serving.scorer`` instead, with what is published now.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import MissingCheckpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.features.encoding import (
    FeatureContract,
    LookedUp,
    ReadColumns,
    entity_hashes,
    read_columns,
    vector_hashes,
)
from ad_pipeline.features.rates import counts_at
from ad_pipeline.features.vectors import vectors_at
from ad_pipeline.hashing import uniform
from ad_pipeline.settings import Settings
from ad_pipeline.warehouse import Warehouse, rows_of, select

CANARIES = 16

FALLBACK_ROWS = "fallback ladder"
"""Purpose of the draw that thins the rows of :func:`matured_impressions`."""


def read_impressions(
    warehouse: Warehouse,
    impression_ids: pa.ChunkedArray,
    served_us: np.ndarray,
    columns: Sequence[str] = (),
) -> pa.Table:
    """Read some impressions as the log has them.

    Parameters
    ----------
    warehouse : Warehouse
    impression_ids : pyarrow array of string, shape (n,)
    served_us : ndarray of int64, shape (n,)
        ``received_us`` of each: with it DuckDB skips the hours that hold none of them.
    columns : sequence of str
        All if left out.

    Returns
    -------
    pyarrow.Table
        Rows of ``events.impressions``, in the order asked for.
    """
    asked = pa.table(
        {
            "impression_id": impression_ids,
            "served_us": served_us,
            "place": np.arange(len(served_us)),
        }
    )
    wanted = ", ".join(f'impressions."{column}"' for column in columns) or "impressions.*"
    with warehouse.reader() as connection:
        connection.register("asked", asked)
        return rows_of(
            connection,
            f"SELECT {wanted} FROM asked INNER JOIN events.impressions AS impressions "
            "ON impressions.impression_id = asked.impression_id "
            "AND impressions.received_us = asked.served_us ORDER BY asked.place",
        )


def newest_requests(warehouse: Warehouse) -> tuple[int, list[dict[str, Any]]]:
    """Return the last log hour that is sealed, and a few raw requests for a bundle's canaries.

    Parameters
    ----------
    warehouse : Warehouse

    Returns
    -------
    hour_us : int
        Start of the hour, microseconds.
    requests : list of dict
        Rows of ``events.impressions``, at most :data:`CANARIES`.

    Raises
    ------
    MissingCheckpoint
        If no hour is sealed yet.
    """
    with warehouse.reader() as connection:
        sealed_us = sealed_until(connection)
        if not sealed_us:
            raise MissingCheckpoint("no log hour is sealed yet; materialize the events first")
        rows = rows_of(connection, select("serving.canary_requests"), {"count": CANARIES})
    return sealed_us - HOUR_US, rows.to_pylist()


def matured_impressions(
    warehouse: Warehouse, settings: Settings, end_us: int, goal: str
) -> pa.Table:
    """Read the impressions of a goal whose labels have matured lately, for a bundle's defaults.

    Parameters
    ----------
    warehouse : Warehouse
    settings : Settings
        ``settings.fallbacks`` says of how many hours, and how many rows at most.
    end_us : int
        End of the log hours, microseconds.
    goal : str

    Returns
    -------
    pyarrow.Table
        Rows of ``events.impressions`` with their ``label``, in order of maturity; none without the
        setting.
    """
    asked = settings.fallbacks
    span = {"goal": goal, "start_us": end_us, "end_us": end_us}
    if asked is not None:
        span["start_us"] = end_us - asked.hours * HOUR_US
    with warehouse.reader() as connection:
        labelled = rows_of(connection, select("features.matured_impressions"), span)
    if asked is not None and labelled.num_rows > asked.maximum_rows:
        draws = uniform(settings.seed, labelled.column("impression_id"), FALLBACK_ROWS)
        labelled = labelled.filter(pa.array(draws < asked.maximum_rows / labelled.num_rows))
    served = read_impressions(
        warehouse, labelled.column("impression_id"), labelled.column("serving_us").to_numpy()
    )
    return served.append_column("label", labelled.column("label"))


def read_as_served(
    deployment: Deployment, contract: FeatureContract, rows: pa.Table
) -> tuple[ReadColumns, LookedUp]:
    """Read impressions for encoding, each with what was published when it occurred.

    Parameters
    ----------
    deployment : Deployment
        Its snapshots and vectors are looked up.
    contract : FeatureContract
    rows : pyarrow.Table
        The contract's columns and ``occurred_us``, n rows.

    Returns
    -------
    ReadColumns, LookedUp
        Of n rows each, as :mod:`ad_pipeline.features.encoding` takes them.

    Raises
    ------
    MissingCheckpoint
        As :func:`look_up_as_served`.
    """
    read = read_columns(contract, {name: rows.column(name) for name in contract.columns})
    occurred_us = rows.column("occurred_us").to_numpy()
    return read, look_up_as_served(deployment, contract, read, occurred_us)


def look_up_as_served(
    deployment: Deployment, contract: FeatureContract, read: ReadColumns, occurred_us: np.ndarray
) -> LookedUp:
    """Look up what was published at some moments, int64 (n,), for rows that were read.

    Raises
    ------
    MissingCheckpoint
        If a snapshot that was due is not there: materialize ``features.rates`` first. Or if vectors
        are not: ``embeddings/user_vectors``.
    WrongVectors, MixedVersions
        If vectors do not fit the contract.
    """
    start_us = deployment.dataset.start_us
    looked_up = counts_at(
        contract, deployment.snapshots, start_us, entity_hashes(contract, read), occurred_us
    )
    if contract.vectors is not None:
        hashes = vector_hashes(contract, read)
        looked_up.vectors[:] = vectors_at(
            contract.vectors, deployment.vectors, start_us, hashes, occurred_us
        )
    return looked_up
