"""How many of the ads that users went on to engage with are in their lists, by who makes the list.

The list of similar users' ads stands beside five others, made from the same engagements cut at the
same moment: popular ads, ads that share users, a factorization, users drawn from the same cluster,
and users drawn from all. The last two say whether vectors find anything that their neighbourhood,
or a crowd of that size, does not.
"""

from dataclasses import dataclass

import numpy as np

from ad_pipeline.embeddings.graph import SimilarityGraph
from ad_pipeline.embeddings.retrieval import (
    Candidates,
    Engaged,
    of_similar_ads,
    of_similar_users,
    popular,
    random_of_cluster,
    recall_at,
)
from ad_pipeline.monitoring.user_vectors.factorization import factorized, of_factors
from ad_pipeline.settings import UserVectorSettings

SIMILAR_USERS = "similar users"
POPULAR = "popular"
SIMILAR_ADS = "similar ads"
FACTORIZED = "factorized"
OF_CLUSTER = "random users of the cluster"
OF_ALL = "random users"
WAYS = (SIMILAR_USERS, POPULAR, SIMILAR_ADS, FACTORIZED, OF_CLUSTER, OF_ALL)


@dataclass(frozen=True)
class SearchQuality:
    """What searching near clusters instead of all users keeps, and what it saves.

    Attributes
    ----------
    recall : float
        Mean share of the exact nearest users that are found.
    compared : float
        Similarities computed a search, the choice of clusters included, as a share of all pairs;
        fitting the clusters is left out.
    fitting : float
        What fitting them took, as the same share.
    """

    recall: float
    compared: float
    fitting: float


def search_quality(found: SimilarityGraph, exact: SimilarityGraph) -> SearchQuality:
    """Compare a graph that was searched for in near clusters with that of all pairs.

    Parameters
    ----------
    found, exact : SimilarityGraph
        Of the same users.

    Raises
    ------
    ValueError
        If they are of other users.
    """
    if not np.array_equal(found.ids, exact.ids):
        raise ValueError("the two graphs are of other users; build both from one set of vectors")
    n = len(exact.ids)
    shares = [
        np.isin(of_exact[of_exact >= 0], of_found).mean()
        for of_exact, of_found in zip(exact.neighbours, found.neighbours, strict=True)
    ]
    pairs = n * (n - 1)
    fitting = found.clusters.compared
    return SearchQuality(
        float(np.mean(shares)), (found.compared - fitting) / pairs, fitting / pairs
    )


def lists_by_way(
    engaged: Engaged,
    graph: SimilarityGraph,
    own: np.ndarray,
    settings: UserVectorSettings,
    limit: int,
    eligible: np.ndarray,
    seed: int,
) -> dict[str, Candidates]:
    """Return every way's list of ads for each user of a graph.

    Parameters
    ----------
    engaged : Engaged
        Cut at the graph's moment.
    graph : SimilarityGraph
    own : ndarray of shape (n,), integer
        Each user's cluster, of many times as many users as have a say: of a smaller one, all would
        be drawn.
    settings : UserVectorSettings
    limit : int
        Ads a list.
    eligible : ndarray of uint64
        Ads that may be shown.
    seed : int
        Of what is drawn.
    """
    half_life_us = round(settings.half_life_hours * 3_600_000_000)
    k = graph.neighbours.shape[1]
    drawn = {
        OF_CLUSTER: random_of_cluster(graph.ids, own, k, seed),
        OF_ALL: random_of_cluster(graph.ids, np.zeros_like(own), k, seed),
    }

    def of_users(neighbours: np.ndarray, similarities: np.ndarray) -> Candidates:
        return of_similar_users(
            engaged,
            graph.ids,
            graph.ids[neighbours],
            similarities,
            half_life_us=half_life_us,
            limit=limit,
            popularity_strength=settings.popularity_strength,
            eligible=eligible,
            without_seen=False,
        )

    lists = {SIMILAR_USERS: of_users(graph.neighbours, graph.similarities)}
    for way, neighbours in drawn.items():
        lists[way] = of_users(neighbours, (neighbours >= 0).astype(np.float32))
    lists[POPULAR] = popular(
        engaged,
        graph.ids,
        half_life_us=half_life_us,
        limit=limit,
        eligible=eligible,
        without_seen=False,
    )
    lists[SIMILAR_ADS] = of_similar_ads(
        engaged, graph.ids, limit=limit, eligible=eligible, without_seen=False
    )
    lists[FACTORIZED] = of_factors(
        engaged, factorized(engaged, seed=seed), graph.ids, limit, eligible
    )
    return {way: lists[way] for way in WAYS}


def recalls(
    lists: dict[str, Candidates], users: np.ndarray, ads: np.ndarray, at: int
) -> dict[str, float]:
    """Return recall@``at`` of every way over the same users; see :func:`.retrieval.recall_at`."""
    return {way: recall_at(of_way, users, ads, at) for way, of_way in lists.items()}
