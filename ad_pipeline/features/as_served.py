"""Rows of the warehouse as the learner saw them when they were served.

The join of an impression's own columns with the counts that were published when it occurred, for
every step that trains, scores or checks on logged rows. A request that is being served now goes
through ``serving.scorer`` instead, with the snapshot that is published now.
"""

import pyarrow as pa

from ad_pipeline.datasets import Deployment
from ad_pipeline.features.encoding import (
    EntityCounts,
    FeatureContract,
    ReadColumns,
    entity_hashes,
    read_columns,
)
from ad_pipeline.features.rates import counts_at


def read_as_served(
    deployment: Deployment, contract: FeatureContract, rows: pa.Table
) -> tuple[ReadColumns, EntityCounts]:
    """Read impressions for encoding, each with the counts in force when it occurred.

    Parameters
    ----------
    deployment : Deployment
        Its snapshots are looked up.
    contract : FeatureContract
    rows : pyarrow.Table
        The contract's columns and ``occurred_us``, n rows.

    Returns
    -------
    ReadColumns, EntityCounts
        Of n rows each, as :mod:`ad_pipeline.features.encoding` takes them.

    Raises
    ------
    MissingCheckpoint
        If a snapshot that was due is not there: materialize ``features.rates`` first.
    """
    read = read_columns(contract, {name: rows.column(name) for name in contract.columns})
    counts = counts_at(
        contract,
        deployment.snapshots,
        deployment.dataset.start_us,
        entity_hashes(contract, read),
        rows.column("occurred_us").to_numpy(),
    )
    return read, counts
