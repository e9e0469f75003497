"""Who is similar to whom: for each user the k nearest by cosine, found in part of the pairs.

K-means puts users into clusters; a user is compared with those of the own and of the nearest
clusters, as many as a sample of the users shows to be needed, and with nobody else. A small number
of users, or an environment without FAISS, is one cluster, so that all pairs are compared and the
graph is exact. Everything is done cluster by cluster: memory holds the vectors of a few clusters,
whatever the number of users.

When some users' vectors change, the clusters stay, and three kinds of rows follow: of those users,
of the users that point at them, and of users that they have come near to. The result is, to the
byte, the graph built anew on these clusters; how much better fresh clusters would do is for the
caller to measure. (Wang et al., arXiv 2406.05898: K-means, then nearest neighbours by FAISS.)

What is done with similar users belongs to :mod:`ad_pipeline.embeddings.retrieval`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ad_pipeline import hashing
from ad_pipeline.embeddings.faiss_runtime import has_faiss, in_one_thread
from ad_pipeline.embeddings.nearest import NOBODY, Nearest, Units, nearest
from ad_pipeline.embeddings.tables import SIMILAR_USERS
from ad_pipeline.embeddings.vectors import StoredVectors, places_of
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline.settings import UserVectorSettings

POINTS_PER_CLUSTER = 16
"""Users that K-means is fitted to, for each cluster."""

ITERATIONS = 5

SAMPLED = 128
"""Users by whose true neighbours it is decided how many clusters are searched."""

MOST_PROBED = 0.25
"""Share of the clusters that are searched at most: where that does not hold the neighbours, vectors
have no clusters to speak of, and a search of part of the pairs is no use."""

_QUERIES = 1_024
"""Users searched for at once."""


@dataclass(frozen=True)
class Users:
    """Users and their vectors, wherever those lie.

    Attributes
    ----------
    ids : ndarray of shape (n,), uint64
        Ascending; a position is a place in it.
    units : callable
        Told positions, returns vectors of length 1 (or 0), float32.
    version : str
        Of the vectors.
    """

    ids: np.ndarray
    units: Units
    version: str

    @classmethod
    def of_store(cls, store: StoredVectors) -> "Users":
        """Return the users of a store; vectors stay where they are until they are asked for."""
        return cls(store.ids, store.units, store.version)

    @classmethod
    def of_matrix(cls, ids: np.ndarray, vectors: np.ndarray, version: str) -> "Users":
        """Return users whose vectors, float32 (n, d), are in memory.

        Raises
        ------
        ValueError
            If the ids do not ascend or are not as many as the vectors.
        """
        if len(ids) != len(vectors) or (ids[1:] <= ids[:-1]).any():
            raise ValueError(
                f"{len(ids)} ids for {len(vectors)} vectors; sort them by id, one vector a user"
            )
        norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
        units = (vectors / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
        return cls(np.asarray(ids, np.uint64), lambda positions: units[positions], version)


@dataclass(frozen=True)
class Clusters:
    """What K-means made of some users.

    Attributes
    ----------
    centroids : ndarray of shape (C, d), float32
        Of length 1. With C = 1 all users are compared with all.
    probes : int
        Clusters that a user is compared with the users of, at most C.
    compared : int
        Similarities computed to fit them and to decide how many are probed.
    """

    centroids: np.ndarray
    probes: int
    compared: int

    def of_users(self, users: Users, positions: np.ndarray) -> np.ndarray:
        """Return the clusters nearest to users, the own one first: (m, probes), unsigned.

        A user is the own cluster's even where the vector is zero.
        """
        count = len(self.centroids)
        found = np.zeros((len(positions), self.probes), np.min_scalar_type(count))
        if count > 1:
            centroids = [(0, np.arange(count))]
            for start in range(0, len(positions), _QUERIES):
                block = users.units(positions[start : start + _QUERIES])
                nowhere = np.full(len(block), NOBODY)
                all_probe = np.zeros((len(block), 1), np.uint8)
                near = nearest(
                    block, nowhere, all_probe, centroids, self.centroids.__getitem__, self.probes
                )
                found[start : start + len(block)] = near.positions
        return found


@dataclass(frozen=True)
class SimilarityGraph:
    """The k most similar users of each user.

    Attributes
    ----------
    version : str
        Of the vectors.
    ids : ndarray of shape (n,), uint64
        Ascending.
    neighbours : ndarray of shape (n, k), int64
        Positions in ``ids``, the most similar first, ties by id; -1 where there is nobody.
    similarities : ndarray of shape (n, k), float32
        Cosines.
    clusters : Clusters
    of_users : ndarray of shape (n, probes), unsigned
        The clusters whose users each was compared with, the own one first.
    compared : int
        Similarities computed to make it out of what was there before.
    """

    version: str
    ids: np.ndarray
    neighbours: np.ndarray
    similarities: np.ndarray
    clusters: Clusters
    of_users: np.ndarray
    compared: int


@dataclass(frozen=True)
class GraphBlock:
    """Rows of the graph of some users, as a search yields them.

    Attributes
    ----------
    positions : ndarray of shape (m,), int64
    found : Nearest
    """

    positions: np.ndarray
    found: Nearest


def fit_clusters(users: Users, settings: UserVectorSettings, seed: int) -> Clusters:
    """Fit K-means to a sample of the users, drawn by the hash of their ids.

    Parameters
    ----------
    users : Users
    settings : UserVectorSettings
    seed : int

    Returns
    -------
    Clusters
        One, if there are no more than ``exact_users`` or FAISS is not installed.
    """
    n = len(users.ids)
    dimension = users.units(np.arange(min(n, 1))).shape[1]
    count = round(settings.clusters_per_root * n**0.5)
    if n <= settings.exact_users or count < 2 or not has_faiss():
        return Clusters(np.zeros((1, dimension), np.float32), 1, 0)
    draws = hashing.uniform(seed, users.ids, "embeddings.graph.clusters")
    size = min(count * POINTS_PER_CLUSTER, n)
    sample = np.argpartition(draws, size - 1)[:size]
    # In the order of their draws: the first of them are where K-means begins.
    sample = sample[np.argsort(draws[sample], kind="stable")]
    vectors = users.units(sample)
    with in_one_thread() as faiss:
        fitted = faiss.Kmeans(
            dimension,
            count,
            niter=ITERATIONS,
            seed=seed % 2**31,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=POINTS_PER_CLUSTER,
        )
        fitted.train(vectors, init_centroids=vectors[:count])
    clusters = Clusters(
        np.asarray(fitted.centroids, np.float32),
        min(settings.probes, count),
        len(sample) * count * ITERATIONS,
    )
    if settings.aimed_recall is None:
        return clusters
    return _probing_enough(users, clusters, settings.aimed_recall, settings.neighbours, seed)


def nearest_of_all(users: Users, asking: np.ndarray, k: int) -> Nearest:
    """Compare some users, positions (m,), with everybody, and return the k nearest of each."""
    everybody = [(0, np.arange(len(users.ids)))]
    probed = np.zeros((len(asking), 1), np.uint8)
    return nearest(users.units(asking), asking, probed, everybody, users.units, k)


def graph_blocks(
    users: Users,
    clusters: Clusters,
    of_users: np.ndarray,
    k: int,
    asking: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> Iterator[GraphBlock]:
    """Search the graph's rows cluster by cluster, so that they can be written as they come.

    Parameters
    ----------
    users : Users
    clusters : Clusters
    of_users : ndarray of shape (n, probes), unsigned
        From :meth:`Clusters.of_users`.
    k : int
    asking, among : ndarray of shape (n,), bool, optional
        Whose rows are searched, and among whom; everybody by default.

    Yields
    ------
    GraphBlock
        Each asking user in exactly one.
    """
    asking_of = _members(of_users[:, 0], len(clusters.centroids), asking)
    # One list for both where it can be: it is a good part of what memory a user takes.
    among_of = (
        asking_of if asking is among else _members(of_users[:, 0], len(clusters.centroids), among)
    )
    for own in asking_of:
        for start in range(0, len(own), _QUERIES):
            block = own[start : start + _QUERIES]
            probed = of_users[block]
            others = np.setdiff1d(probed, probed[:1, 0])
            # The own cluster first: it fills the lists with what others seldom displace.
            groups = [(number, among_of[number]) for number in (probed[0, 0], *others)]
            found = nearest(users.units(block), block, probed, groups, users.units, k)
            yield GraphBlock(block, found)


def build_graph(
    users: Users, settings: UserVectorSettings, seed: int, clusters: Clusters | None = None
) -> SimilarityGraph:
    """Build the graph of similar users.

    Parameters
    ----------
    users : Users
    settings : UserVectorSettings
    seed : int
        Decides whom K-means is fitted to.
    clusters : Clusters, optional
        Fitted before; fitted here by default.

    Returns
    -------
    SimilarityGraph
    """
    if clusters is None:
        clusters = fit_clusters(users, settings, seed)
    everybody = np.arange(len(users.ids))
    of_users = clusters.of_users(users, everybody)
    shape = (len(everybody), settings.neighbours)
    neighbours, similarities = np.full(shape, NOBODY), np.full(shape, -np.inf, np.float32)
    compared = clusters.compared + len(everybody) * _to_find_cluster(clusters)
    for block in graph_blocks(users, clusters, of_users, settings.neighbours):
        neighbours[block.positions] = block.found.positions
        similarities[block.positions] = block.found.similarities
        compared += block.found.compared
    return SimilarityGraph(
        users.version, users.ids, neighbours, similarities, clusters, of_users, compared
    )


def updated_graph(graph: SimilarityGraph, users: Users, changed: np.ndarray) -> SimilarityGraph:
    """Bring a graph up to date after some vectors changed, came or went.

    Parameters
    ----------
    graph : SimilarityGraph
    users : Users
        All users as they are now.
    changed : ndarray of shape (m,), uint64
        Ids of those whose vectors are not what they were; who is new or gone need not be named.

    Returns
    -------
    SimilarityGraph
        Equal to ``build_graph(users, ..., clusters=graph.clusters)`` but for ``compared``, which
        counts the update alone.

    Raises
    ------
    MixedVersions
        If the vectors are of another version than the graph.
    """
    if users.version != graph.version:
        raise MixedVersions(
            f"a graph of version {graph.version} cannot take in vectors of version "
            f"{users.version}; build it anew"
        )
    now = places_of(users.ids, graph.ids)
    stays = now >= 0
    k, n = graph.neighbours.shape[1], len(users.ids)
    is_changed = np.ones(n, bool)
    is_changed[now[stays]] = np.isin(graph.ids[stays], changed)

    of_users = np.zeros((n, graph.clusters.probes), graph.of_users.dtype)
    of_users[now[stays]] = graph.of_users[stays]
    moved = np.flatnonzero(is_changed)
    of_users[moved] = graph.clusters.of_users(users, moved)

    neighbours, similarities = np.full((n, k), NOBODY), np.full((n, k), -np.inf, np.float32)
    nobody = graph.neighbours == NOBODY
    pointed = np.where(nobody, NOBODY, now[graph.neighbours])
    neighbours[now[stays]], similarities[now[stays]] = pointed[stays], graph.similarities[stays]
    loses = (~nobody & ((pointed < 0) | is_changed[pointed])).any(axis=1)
    searched = is_changed.copy()
    searched[now[stays]] |= loses[stays]

    compared = len(moved) * _to_find_cluster(graph.clusters)
    for block in graph_blocks(users, graph.clusters, of_users, k, asking=searched):
        neighbours[block.positions] = block.found.positions
        similarities[block.positions] = block.found.similarities
        compared += block.found.compared
    # Nobody whom the other rows name has moved; only somebody new may have come closer.
    arrivals = graph_blocks(users, graph.clusters, of_users, k, asking=~searched, among=is_changed)
    for block in arrivals:
        rows, found = block.positions, block.found
        both = np.concatenate([similarities[rows], found.similarities], axis=1)
        whom = np.concatenate([neighbours[rows], found.positions], axis=1)
        best = np.lexsort((whom, -both), axis=1)[:, :k]
        similarities[rows] = np.take_along_axis(both, best, axis=1)
        neighbours[rows] = np.take_along_axis(whom, best, axis=1)
        compared += found.compared
    return SimilarityGraph(
        users.version, users.ids, neighbours, similarities, graph.clusters, of_users, compared
    )


def recall(graph: SimilarityGraph, exact: SimilarityGraph) -> float:
    """Return the share of the exact graph's neighbours that a graph of the same users has."""
    met = exact.neighbours != NOBODY
    shared = [
        np.isin(true[is_met], found).sum()
        for true, is_met, found in zip(exact.neighbours, met, graph.neighbours, strict=True)
    ]
    return float(sum(shared) / met.sum())


def rows_of_graph(
    ids: np.ndarray, version: str, as_of_us: int, positions: np.ndarray, found: Nearest
) -> pa.Table:
    """Return users' rows of :data:`ad_pipeline.embeddings.tables.SIMILAR_USERS`.

    Parameters
    ----------
    ids : ndarray of shape (n,), uint64
        Of all users.
    version : str
    as_of_us : int
        Watermark of the vectors.
    positions : ndarray of shape (m,), int64
        Whose rows they are.
    found : Nearest
        Their neighbours.

    Returns
    -------
    pyarrow.Table
        A row a neighbour, by user and rank; none where there is nobody.
    """
    met = found.positions != NOBODY
    row, rank = np.nonzero(met)
    columns = {
        "user_hash": pa.array(ids[positions[row]]),
        "neighbour_hash": pa.array(ids[found.positions[met]]),
        "similarity": pa.array(found.similarities[met]),
        "rank": pa.array((rank + 1).astype(np.int32)),
        "version": pa.repeat(pa.scalar(version), len(row)),
        "as_of_us": pa.repeat(pa.scalar(as_of_us, pa.int64()), len(row)),
    }
    return pa.table({name: columns[name] for name in SIMILAR_USERS.column_names})


def _probing_enough(
    users: Users, clusters: Clusters, aimed_recall: float, k: int, seed: int
) -> Clusters:
    """Return the clusters, probed until they hold enough of a sample's k true neighbours."""
    draws = hashing.uniform(seed, users.ids, "embeddings.graph.probes")
    asking = np.sort(np.argsort(draws, kind="stable")[:SAMPLED])
    true = nearest_of_all(users, asking, k)
    row, rank = np.nonzero(true.positions != NOBODY)
    neighbours, place = np.unique(true.positions[row, rank], return_inverse=True)
    count = len(clusters.centroids)
    own = replace(clusters, probes=1).of_users(users, neighbours)[:, 0]
    nearest_first = replace(clusters, probes=count).of_users(users, asking)
    # Of each neighbour: how many clusters are nearer to the asking user than the neighbour's own.
    nearer = np.argsort(nearest_first, axis=1)[row, own[place]]
    held = np.cumsum(np.bincount(nearer, minlength=count)) / len(row)
    needed = min(1 + int(np.searchsorted(held, aimed_recall)), int(MOST_PROBED * count))
    found = true.compared + (len(neighbours) + len(asking)) * count
    return replace(
        clusters, probes=max(clusters.probes, needed), compared=clusters.compared + found
    )


def _to_find_cluster(clusters: Clusters) -> int:
    """Similarities that finding one user's clusters takes."""
    return len(clusters.centroids) if len(clusters.centroids) > 1 else 0


def _members(own: np.ndarray, clusters: int, wanted: np.ndarray | None) -> list[np.ndarray]:
    """Return the positions of each cluster's users, ascending; only of the wanted ones."""
    if wanted is None:
        order = np.argsort(own, kind="stable")
    else:
        positions = np.flatnonzero(wanted)
        order = positions[np.argsort(own[positions], kind="stable")]
    return np.split(order, np.searchsorted(own[order], np.arange(1, clusters)))
