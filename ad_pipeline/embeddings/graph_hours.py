"""The graph of similar users as it is kept: brought up to date with the newest vectors, or rebuilt.

There is one graph, of the newest published hour, and no graph an hour: it is read by who looks for
candidates now, and takes fifty rows a user. Users who were encoded since its hour are taken in on
the clusters that it has; it is built anew, with fresh clusters, for another encoder, other
settings, or once more than half of the users were encoded, as after a full refresh.

How neighbours are found is :mod:`.graph`; what is made of them :mod:`.retrieval`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    Checkpoint,
    is_pointed,
    point,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.embeddings.graph import (
    Clusters,
    SimilarityGraph,
    Users,
    build_graph,
    rows_of_graph,
    updated_graph,
)
from ad_pipeline.embeddings.nearest import Nearest
from ad_pipeline.embeddings.published import PublishedVectors
from ad_pipeline.embeddings.tables import SIMILAR_USERS, TABLES
from ad_pipeline.settings import UserVectorSettings

if TYPE_CHECKING:
    from ad_pipeline.warehouse import Warehouse

KIND = "embeddings.similar_users"
POINTER = f"{KIND}/newest"

REBUILT_SHARE = 0.5
"""Of the users: with more of them encoded anew, an update costs what a rebuild does."""

_WRITTEN_USERS = 8_192


@dataclass(frozen=True)
class StoredGraph:
    """A graph as it was kept.

    Attributes
    ----------
    graph : SimilarityGraph
    as_of_us : int
        Up to when its vectors know the log.
    vectors : str
        Digest of the published pair that it is of.
    settings : dict
        That it was made by.
    """

    graph: SimilarityGraph
    as_of_us: int
    vectors: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class RefreshedGraph:
    """What a refresh did.

    Attributes
    ----------
    stored : StoredGraph
    digest : str
    is_rebuilt : bool
    changed : int
        Users who were encoded since the graph before.
    """

    stored: StoredGraph
    digest: str
    is_rebuilt: bool
    changed: int


def refresh_graph(
    root: Path, published: PublishedVectors, settings: UserVectorSettings, seed: int
) -> RefreshedGraph:
    """Bring the graph up to date with an hour's vectors, and keep it.

    Parameters
    ----------
    root : Path
        Folder of the vectors.
    published : PublishedVectors
        The newest.
    settings : UserVectorSettings
    seed : int
        Decides whom K-means is fitted to.
    """
    store, users = published.users, Users.of_store(published.users)
    made_by = _made_by(settings)
    before = read_graph(root) if is_pointed(root, POINTER) else None
    continues = (
        before is not None
        and before.graph.version == store.version
        and before.settings == made_by
        and before.as_of_us <= store.watermark_us
    )
    since_us = before.as_of_us if before is not None and continues else None
    changed = store.ids if since_us is None else store.ids[store.refreshed_us > since_us]
    if before is None or not continues or len(changed) > REBUILT_SHARE * len(store.ids):
        graph, is_rebuilt = build_graph(users, settings, seed), True
    else:
        graph, is_rebuilt = updated_graph(before.graph, users, changed), False
    stored = StoredGraph(graph, store.watermark_us, published.digest, made_by)
    return RefreshedGraph(stored, write_graph(root, stored).digest, is_rebuilt, len(changed))


def write_graph(root: Path, stored: StoredGraph) -> Checkpoint:
    """Write a graph and move the pointer to it."""
    graph = stored.graph
    arrays = {
        "ids": graph.ids,
        "neighbours": graph.neighbours,
        "similarities": graph.similarities,
        "of_users": graph.of_users,
        "centroids": graph.clusters.centroids,
    }
    facts = {
        "version": graph.version,
        "as_of_us": stored.as_of_us,
        "vectors": stored.vectors,
        "settings": stored.settings,
        "probes": graph.clusters.probes,
        "compared": graph.compared,
        "compared_for_clusters": graph.clusters.compared,
    }
    with unswept(root):
        written = write_checkpoint(root, KIND, arrays, facts)
        point(root, POINTER, written.digest)
    return written


def read_graph(root: Path, digest: str | None = None, *, verify: bool = True) -> StoredGraph:
    """Open a graph, the newest by default, its arrays memory-mapped.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        As :func:`ad_pipeline.checkpoints.read_checkpoint`.
    """
    kept = read_checkpoint(root, digest or resolve(root, POINTER), verify=verify)
    arrays, facts = kept.arrays, kept.manifest
    clusters = Clusters(arrays["centroids"], facts["probes"], facts["compared_for_clusters"])
    graph = SimilarityGraph(
        facts["version"],
        arrays["ids"],
        arrays["neighbours"],
        arrays["similarities"],
        clusters,
        arrays["of_users"],
        facts["compared"],
    )
    return StoredGraph(graph, facts["as_of_us"], facts["vectors"], facts["settings"])


def write_table(warehouse: "Warehouse", stored: StoredGraph) -> int:
    """Replace ``embeddings.similar_users`` by a graph; return the rows."""
    warehouse.create(TABLES)
    rows = 0
    with warehouse.writer() as connection:
        connection.execute(f"DELETE FROM {SIMILAR_USERS.name}")
        for block in _rows(stored):
            connection.register("near", block)
            connection.execute(f"INSERT INTO {SIMILAR_USERS.name} BY NAME SELECT * FROM near")
            connection.unregister("near")
            rows += block.num_rows
    return rows


def _rows(stored: StoredGraph) -> Iterator[pa.Table]:
    graph = stored.graph
    for start in range(0, len(graph.ids), _WRITTEN_USERS):
        positions = np.arange(start, min(start + _WRITTEN_USERS, len(graph.ids)))
        found = Nearest(graph.similarities[positions], graph.neighbours[positions], 0)
        yield rows_of_graph(graph.ids, graph.version, stored.as_of_us, positions, found)


def _made_by(settings: UserVectorSettings) -> dict[str, Any]:
    names = {"neighbours", "exact_users", "clusters_per_root", "probes", "aimed_recall"}
    return settings.model_dump(mode="json", include=names)
