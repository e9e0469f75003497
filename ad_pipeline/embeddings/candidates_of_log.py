"""Candidates from the warehouse: what similar users engaged with, as the graph's moment knew it.

Ads are kept to those shown lately whose campaign is not known to have spent its budget. Answering
requests from what is made here is :mod:`.candidate_index`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.activities import engagements_of, read_engagements
from ad_pipeline.embeddings.candidate_index import (
    CandidateIndex,
    EligibleAds,
    way_shares,
)
from ad_pipeline.embeddings.encoder_hours import settings_of
from ad_pipeline.embeddings.graph_hours import StoredGraph
from ad_pipeline.embeddings.published import AD, ad_hashes
from ad_pipeline.embeddings.retrieval import Candidates
from ad_pipeline.embeddings.tables import CANDIDATES, TABLES

if TYPE_CHECKING:
    from ad_pipeline.warehouse import Warehouse

_USERS = 4_096
"""Whose candidates are made, and written, at once."""


def read_index(
    warehouse: "Warehouse", deployment: Deployment, stored: StoredGraph
) -> CandidateIndex:
    """Put a graph together with what users had engaged with by its moment.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    stored : StoredGraph
    """
    dataset = deployment.dataset
    settings = settings_of(dataset)
    lookback_us, as_of_us = settings.lookback_hours * HOUR_US, stored.as_of_us
    with warehouse.reader() as connection:
        rows = read_engagements(connection, dataset, as_of_us - lookback_us + 1, as_of_us)
    engaged = engagements_of(rows, dataset).as_of(as_of_us, lookback_us)
    texts = rows[AD].drop_null().unique().to_pylist()
    hashes = ad_hashes(texts)
    by_hash = dict(zip(hashes.tolist(), texts, strict=True))
    graph = stored.graph
    return CandidateIndex(
        graph.version,
        engaged,
        tuple(by_hash[ad] for ad in engaged.ad_ids.tolist()),
        graph.ids,
        graph.neighbours.astype(np.int32),
        graph.similarities,
        round(settings.half_life_hours * HOUR_US),
        settings.popularity_strength,
    )


def eligible_ads(warehouse: "Warehouse", deployment: Deployment, as_of_us: int) -> list[str]:
    """Return the ads shown within the lookback whose campaign may still have budget.

    What remains of a budget is what ``events.campaign_kpis`` told last, under the metric
    ``budget_metric``; a campaign that nothing was told of is taken to have some.
    """
    from ad_pipeline.warehouse import rows_of, select

    settings = settings_of(deployment.dataset)
    parameters = {
        "from_us": as_of_us - settings.lookback_hours * HOUR_US + 1,
        "as_of_us": as_of_us,
        "budget_metric": settings.budget_metric,
    }
    with warehouse.reader() as connection:
        return rows_of(connection, select("embeddings.eligible_ads"), parameters)[
            "ad_id"
        ].to_pylist()


def write_candidates(
    warehouse: "Warehouse", index: CandidateIndex, eligible: Sequence[str], limit: int
) -> Candidates:
    """Replace ``embeddings.candidates`` by those of all users of an index, and return them."""
    starts, ads = range(0, len(index.ids), _USERS), EligibleAds(eligible)
    blocks = [index.of_hashes(index.ids[at : at + _USERS], ads, limit) for at in starts]
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        connection.execute(f"DELETE FROM {CANDIDATES.name}")
        for block in blocks:
            connection.register("block", _rows(index, block))
            connection.execute(f"INSERT INTO {CANDIDATES.name} BY NAME SELECT * FROM block")
            connection.unregister("block")
    return _joined(index, blocks)


def shares_by_way(
    index: CandidateIndex, found: Candidates, eligible: Sequence[str], limit: int
) -> dict[str, float]:
    """Return which share of all known users a scorer would answer which way.

    Parameters
    ----------
    index : CandidateIndex
    found : Candidates
        Of all users of the index, by :func:`write_candidates`; users who engaged with an ad and
        have no vector are asked about beside them.
    eligible : sequence of str
    limit : int

    Returns
    -------
    dict of str to float
        By :data:`ad_pipeline.embeddings.candidate_index.WAYS`.
    """
    strangers = index.lists(np.setdiff1d(index.engaged.users, index.ids), eligible, limit)
    return way_shares(np.concatenate([index.ways_of(found), strangers.ways]))


def _rows(index: CandidateIndex, found: Candidates) -> pa.Table:
    counts = np.diff(found.starts)
    rank = np.arange(len(found.ads)) - np.repeat(found.starts[:-1], counts) + 1
    return pa.table(
        {
            "user_hash": pa.array(np.repeat(found.users, counts)),
            "rank": pa.array(rank.astype(np.int32)),
            "ad_id": pa.array(index.texts_of(found.ads), pa.string()),
            "weight": pa.array(found.weights),
            "version": pa.repeat(pa.scalar(index.version), len(rank)),
            "as_of_us": pa.repeat(pa.scalar(index.engaged.as_of_us, pa.int64()), len(rank)),
        }
    )


def _joined(index: CandidateIndex, blocks: Sequence[Candidates]) -> Candidates:
    counts = [np.diff(block.starts) for block in blocks]
    return Candidates(
        index.ids,
        np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))]),
        np.concatenate([np.zeros(0, np.uint64), *(block.ads for block in blocks)]),
        np.concatenate([np.zeros(0), *(block.weights for block in blocks)]),
    )
