"""What must hold of published vectors and of the graph, measured: faults, and shares.

Each function looks at what was written and not at how; what follows from a fault is decided by the
checks in ``defs``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.checkpoints import is_pointed, read_checkpoint
from ad_pipeline.clocks import HOUR_US, hour_key, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.encoder_hours import settings_of
from ad_pipeline.embeddings.graph import SimilarityGraph, Users, nearest_of_all
from ad_pipeline.embeddings.nearest import NOBODY
from ad_pipeline.embeddings.published import (
    NO_ENCODER,
    PublishedVectors,
    last_known_us,
    pointer,
    read_hour,
)
from ad_pipeline.embeddings.vector_hours import known_users
from ad_pipeline.embeddings.vectors import StoredVectors
from ad_pipeline.hashing import uniform

if TYPE_CHECKING:
    from ad_pipeline.warehouse import Warehouse

_BLOCK = 65_536


def version_faults(root: Path, published: PublishedVectors) -> Iterator[str]:
    """Say where stores, or shards of one, are of several encoders, or a vector is not finite."""
    facts = read_checkpoint(root, published.digest).manifest
    for name, store in (("users", published.users), ("engagers", published.engagers)):
        if store.version != published.version:
            yield f"the store of {name} is of version {store.version}, not {published.version}"
        for digest in read_checkpoint(root, facts[name]).manifest["shards"]:
            shard = read_checkpoint(root, digest).manifest
            if shard["version"] != store.version:
                yield f"shard {shard['shard']} of {name} is of version {shard['version']}"
        broken = sum(_not_finite(store))
        if broken:
            yield f"{broken} vectors of {name} are not finite"


def watermark_faults(published: PublishedVectors) -> Iterator[str]:
    """Say where a store, or a vector in it, knows more of the log than its hour."""
    end_us = last_known_us(published.hour_us)
    for name, store in (("users", published.users), ("engagers", published.engagers)):
        newest = (int(shard.refreshed_us.max(initial=0)) for shard in store.shards)
        newest_us = max(store.watermark_us, *newest)
        if newest_us > end_us:
            yield (
                f"the store of {name} of {hour_key(published.hour_us)} knows the log up to "
                f"{timestamp(newest_us)}"
            )


def not_encoded(
    warehouse: "Warehouse", deployment: Deployment, published: PublishedVectors
) -> tuple[int, int]:
    """Count users who were due in an hour, and those of them without a vector of that hour.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    published : PublishedVectors

    Returns
    -------
    due, missed : int
    """
    if published.version == NO_ENCODER:
        return 0, 0
    hour_us, root = published.hour_us, deployment.vectors
    settings = settings_of(deployment.dataset)
    previous = None
    if is_pointed(root, pointer(hour_us - HOUR_US)):
        before = read_hour(root, hour_us - HOUR_US).users
        previous = before if before.version == published.version else None
    asked = met = 0
    for known in known_users(warehouse, deployment, hour_us):
        due = known.ids[known.due(previous, settings, hour_us)]
        refreshed_us = published.users.refreshed_of(due)
        asked += len(due)
        met += int((refreshed_us == last_known_us(hour_us)).sum())
    return asked, asked - met


def recall_of_sample(
    graph: SimilarityGraph, users: Users, sample: int, seed: int
) -> tuple[float, int]:
    """Compare the neighbours of some users with their nearest among all users.

    Parameters
    ----------
    graph : SimilarityGraph
    users : Users
        Whose vectors the graph is of.
    sample : int
        Users, drawn by hash.
    seed : int

    Returns
    -------
    recall : float
        Share of the true neighbours that the graph has; NaN of none.
    compared : int
        Users.
    """
    draws = uniform(seed, graph.ids, "embeddings.graph.audit")
    asking = np.sort(np.argsort(draws, kind="stable")[:sample])
    k = graph.neighbours.shape[1]
    true = nearest_of_all(users, np.searchsorted(users.ids, graph.ids[asking]), k)
    met = true.positions != NOBODY
    shared = sum(
        np.isin(users.ids[whom[is_met]], graph.ids[found[found != NOBODY]]).sum()
        for whom, is_met, found in zip(true.positions, met, graph.neighbours[asking], strict=True)
    )
    return (float(shared / met.sum()) if met.any() else float("nan")), len(asking)


def _not_finite(store: StoredVectors) -> Iterator[int]:
    """Yield how many vectors of each block are not finite."""
    for start in range(0, len(store), _BLOCK):
        vectors, norms = store.read(np.arange(start, min(start + _BLOCK, len(store))))
        yield int((~(np.isfinite(vectors).all(axis=1) & np.isfinite(norms))).sum())
