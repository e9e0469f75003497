"""What the graph of similar users costs, finds and holds in memory, and what asking it costs.

Made users gather around tastes: points of a curved surface of eight dimensions in a space of 64,
three hundred thick places. The graph's build, K-means included, is timed in turns with bare FAISS
calls that do the same: K-means on as many users for as many rounds, an inverted file, a search of
as many clusters, one thread. Recall is against all pairs, for a sample of users; vectors without
any clusters are measured too, as the case where searching part of them must fail. Memory is that of
a fresh process which writes a store shard by shard, opens it and searches the whole graph without
keeping it: its private pages at their peak, since mapped files the system can drop.

Candidates are asked for one user at a time, from his id to the ids of ads, as a bidder asks: half
of 10,000 ads may be shown, a user has engaged with ten of them. Beside it stands the bare sum in
NumPy, told beforehand where the neighbours are, which ads may be shown and what each engagement
weighs; where the two find other ads, nothing is measured.

    python -m benchmarks.speed.similarity [--json] [--runs 3] [--users 60000]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ad_pipeline.embeddings.candidate_index import CandidateIndex, EligibleAds
from ad_pipeline.embeddings.graph import (
    ITERATIONS,
    POINTS_PER_CLUSTER,
    Clusters,
    SimilarityGraph,
    Users,
    build_graph,
    fit_clusters,
    graph_blocks,
    updated_graph,
)
from ad_pipeline.embeddings.published import ad_hashes, user_hashes
from ad_pipeline.embeddings.retrieval import engaged_until
from ad_pipeline.embeddings.vectors import Codec, Layout, read_named, write_vectors
from ad_pipeline.serving.retrieval import AnsweringIndex, PublishedIndex
from ad_pipeline.settings import UserVectorSettings
from ad_pipeline.simulation.streams import random_stream
from benchmarks.figures import Figure, print_figures

USERS, DIMENSION = 60_000, 64
SURFACE, TASTES = 8, 300
SAMPLED = 500
CHANGED = 0.02
GROWTH = 4
SETTINGS = UserVectorSettings(exact_users=100)
VERSION = "made"

ADS, ENGAGED_ADS, LISTED = 10_000, 10, 50
"""Ads of the log, ads that a user engaged with, and ads that a user is asked for."""

ASKED = 300
"""Users who are asked about, one after another and all at once."""

HALF_LIFE_US = 24 * 3_600_000_000


def made_vectors(seed: int, part: int, rows: int) -> np.ndarray:
    """Return vectors of users who gather around tastes: float32 (rows, 64)."""
    world, stream = random_stream(seed, "tastes"), random_stream(seed, "users", part)
    tastes = 2 * world.normal(size=(TASTES, SURFACE))
    directions = world.normal(size=(SURFACE, DIMENSION))
    places = stream.normal(size=(rows, SURFACE)) + tastes[stream.integers(0, TASTES, rows)]
    noise = 0.05 * stream.normal(size=(rows, DIMENSION))
    return (np.tanh(places @ directions) + noise).astype(np.float32)


def made_ids(count: int) -> np.ndarray:
    """Return ids that are spread over the 64 bits evenly, ascending: uint64 (count,)."""
    return np.arange(count, dtype=np.uint64) * np.uint64(2**64 // count)


def bare_faiss(units: np.ndarray, clusters: Clusters) -> None:
    """Do with FAISS alone what :func:`build_graph` does."""
    import faiss

    faiss.omp_set_num_threads(1)
    count = len(clusters.centroids)
    means = faiss.Kmeans(
        DIMENSION,
        count,
        niter=ITERATIONS,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_CLUSTER,
    )
    means.train(units)
    coarse = faiss.IndexFlatIP(DIMENSION)
    coarse.add(means.centroids)
    index = faiss.IndexIVFFlat(coarse, DIMENSION, count, faiss.METRIC_INNER_PRODUCT)
    index.add(units)
    index.nprobe = clusters.probes
    # One more than the neighbours: everybody finds himself.
    index.search(units, SETTINGS.neighbours + 1)


def seconds(work: Callable[[], object]) -> float:
    """Return what one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def recall(users: Users, graph: SimilarityGraph) -> float:
    """Return the share of a sample's true neighbours, by all pairs, that a graph has."""
    count = len(users.ids)
    asking = np.zeros(count, bool)
    asking[random_stream(1, "sampled").choice(count, min(SAMPLED, count), replace=False)] = True
    everybody = Clusters(np.zeros((1, DIMENSION), np.float32), 1, 0)
    nowhere = np.zeros((count, 1), np.uint8)
    hits = whole = 0
    for block in graph_blocks(users, everybody, nowhere, SETTINGS.neighbours, asking):
        found = graph.neighbours[block.positions]
        for true, ours in zip(block.found.positions, found, strict=True):
            hits += np.isin(true, ours).sum()
            whole += len(true)
    return hits / whole


@dataclass(frozen=True)
class AskedIndex:
    """A made candidate index, and the bare sum over it.

    Attributes
    ----------
    index : CandidateIndex
        Of users ``user-<n>`` and ads ``ad-<n>``.
    user_ids : list of str
        Who are asked about.
    eligible : list of str
    """

    index: CandidateIndex
    user_ids: list[str]
    eligible: list[str]

    @classmethod
    def drawn(cls, users: int, neighbours: int) -> "AskedIndex":
        """Draw who is near whom, and who engaged with which ad: few ads have most of it."""
        stream = random_stream(1, "engaged")
        hashes, ads = (
            of_kind([f"{kind}-{place}" for place in range(count)])
            for of_kind, kind, count in ((user_hashes, "user", users), (ad_hashes, "ad", ADS))
        )
        who = np.repeat(np.arange(users), ENGAGED_ADS)
        what = (ADS * stream.random(len(who)) ** 2).astype(np.int64)
        when_us = stream.integers(0, 10 * HALF_LIFE_US, len(who))
        engaged = engaged_until(hashes[who], ads[what], when_us, 10 * HALF_LIFE_US)
        names = {hashed: f"ad-{place}" for place, hashed in enumerate(ads.tolist())}
        index = CandidateIndex(
            VERSION,
            engaged,
            tuple(names[hashed] for hashed in engaged.ad_ids.tolist()),
            np.sort(hashes),
            stream.integers(0, users, (users, neighbours), np.int32),
            stream.random((users, neighbours), np.float32),
            HALF_LIFE_US,
            SETTINGS.popularity_strength,
        )
        user_ids = [f"user-{place}" for place in range(min(ASKED, users))]
        return cls(index, user_ids, [f"ad-{place}" for place in range(0, ADS, 2)])

    def bare(self) -> Callable[[int], np.ndarray]:
        """Return what finds the places of a user's best ads by NumPy alone, with all known to it.

        Everybody of this index engaged with something, so that a neighbour's place in it is his
        place in the engagements.
        """
        index, engaged = self.index, self.index.engaged
        own = np.searchsorted(index.ids, user_hashes(self.user_ids))
        near, similar = index.neighbours[own], index.similarities[own].astype(np.float64)
        decay, starts = engaged.decay(HALF_LIFE_US), engaged.starts
        prior, _ = engaged.prior(HALF_LIFE_US, index.popularity_strength)
        allowed = np.isin(engaged.ad_ids, ad_hashes(self.eligible)).astype(np.float64)

        def best(row: int) -> np.ndarray:
            first = starts[near[row]]
            counts = starts[near[row] + 1] - first
            entries = np.arange(counts.sum()) + np.repeat(
                first + counts - np.cumsum(counts), counts
            )
            said = np.repeat(similar[row], counts) * decay[entries]
            weights = (np.bincount(engaged.ads[entries], said, len(allowed)) + prior) * allowed
            weights[engaged.ads[starts[own[row]] : starts[own[row] + 1]]] = 0.0
            found = np.argpartition(-weights, LISTED)[:LISTED]
            return found[np.argsort(-weights[found])]

        return best


def retrieval_figures(users: int, runs: int) -> list[Figure]:
    """Measure what a user costs who is asked about.

    Raises
    ------
    ValueError
        If the bare sum finds other ads: then the two do not do the same.
    """
    asked = AskedIndex.drawn(users, SETTINGS.neighbours)
    answering = AnsweringIndex(PublishedIndex(VERSION, {}, asked.index))
    eligible, bare = EligibleAds(asked.eligible), asked.bare()

    def ask(user_ids: list[str]) -> list[str]:
        return answering.ads_for(user_ids, eligible, LISTED, VERSION).ads

    for row, user_id in enumerate(asked.user_ids):
        if ask([user_id]) != [asked.index.ad_texts[place] for place in bare(row)]:
            raise ValueError(f"NOT COMPARABLE: the bare sum finds other ads for {user_id}")

    def turn(row: int, user_id: str) -> tuple[float, float, float]:
        return (
            seconds(lambda: ask([user_id])),
            seconds(lambda: bare(row)),
            seconds(lambda: ask([f"stranger-{user_id}"])),
        )

    # One user after another, each way in turn: what else the machine does hits all ways alike.
    turns = [turn(row, user_id) for _ in range(runs) for row, user_id in enumerate(asked.user_ids)]
    alone, of_bare, of_popular = (
        1e6 * statistics.median(times) for times in zip(*turns, strict=True)
    )
    together = statistics.median(seconds(lambda: ask(asked.user_ids)) for _ in range(runs))
    said = f"{len(asked.index.engaged.ads):,} engagements with {ADS:,} ads"
    return [
        Figure(
            "retrieval_us",
            alone,
            f"candidates of one user of {SETTINGS.neighbours} neighbours asked alone, from his id "
            f"to the ids of {LISTED} ads, {said}",
            1_000.0,
            "lower",
            f"the bare sum takes {of_bare:.0f} us",
        ),
        Figure(
            "retrieval_ratio",
            alone / of_bare,
            "the same over the bare sum in NumPy, which knows places, weights and eligible ads",
            better="lower",
        ),
        Figure(
            "retrieval_together_us",
            1e6 * together / len(asked.user_ids),
            f"a user of {len(asked.user_ids)} asked together",
            better="lower",
        ),
        Figure("retrieval_popular_us", of_popular, "a user without a vector", better="lower"),
    ]


def private_mb() -> float:
    """Return the private memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no line RssAnon; this needs Linux 4.5 or newer")


def write_and_search(count: int) -> float:
    """Write a store of made users, search its graph, keep nothing; return the peak memory, MiB."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], private_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    # Shards of one size, as anyone would set them.
    bits = max(2, round(np.log2(max(count // 4_096, 1))))
    layout = Layout(VERSION, Codec(DIMENSION, None, 0.0), bits, 3)

    def fresh(shard: int) -> tuple[np.ndarray, np.ndarray]:
        borders = (s << (64 - bits) for s in (shard, shard + 1))
        first, end = (min(-(-border // (2**64 // count)), count) for border in borders)
        ids = np.arange(first, end, dtype=np.uint64) * np.uint64(2**64 // count)
        return ids, made_vectors(1, shard, end - first)

    with tempfile.TemporaryDirectory(prefix="speed-similarity-") as folder:
        write_vectors(Path(folder), "made", layout, 0, fresh)
        users = Users.of_store(read_named(Path(folder), "made", verify=False))
        clusters = fit_clusters(users, SETTINGS, 1)
        of_users = clusters.of_users(users, np.arange(len(users.ids)))
        found = sum(
            block.found.compared
            for block in graph_blocks(users, clusters, of_users, SETTINGS.neighbours)
        )
    done.set()
    watcher.join()
    if not found:
        raise RuntimeError("nobody was compared: nothing was measured")
    return peak[0]


def peak_of(count: int) -> float:
    """Return what :func:`write_and_search` says in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.similarity", "--memory", str(count)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(ran.stdout))


def figures(count: int, runs: int) -> list[Figure]:
    """Measure everything."""
    vectors, ids = made_vectors(1, 0, count), made_ids(count)
    users = Users.of_matrix(ids, vectors, VERSION)
    units = users.units(np.arange(count))
    # Compiled before it is timed.
    build_graph(Users.of_matrix(ids[:1_000], vectors[:1_000], VERSION), SETTINGS, 1)
    graph = build_graph(users, SETTINGS, 1)
    turns = [
        (
            seconds(lambda: build_graph(users, SETTINGS, 1)),
            seconds(lambda: bare_faiss(units, graph.clusters)),
        )
        for _ in range(runs)
    ]
    ours, bare = (statistics.median(times) for times in zip(*turns, strict=True))

    moved = random_stream(1, "moved").choice(count, max(1, int(CHANGED * count)), replace=False)
    vectors[moved] = made_vectors(1, 1, len(moved))
    after = Users.of_matrix(ids, vectors, VERSION)
    began = time.perf_counter()
    updated = updated_graph(graph, after, ids[moved])
    update_s = time.perf_counter() - began
    lost = recall(after, build_graph(after, SETTINGS, 1)) - recall(after, updated)

    noise = random_stream(1, "noise").normal(size=(count // 3, DIMENSION)).astype(np.float32)
    shapeless = Users.of_matrix(made_ids(count // 3), noise, VERSION)
    small, large = peak_of(count), peak_of(GROWTH * count)
    return [
        Figure(
            "faiss_ratio",
            statistics.median(a / b for a, b in turns),
            f"graph of {count:,} users x {DIMENSION}: build over bare FAISS {version('faiss-cpu')}",
            1.3,
            "lower",
            "sums in a fixed order, so that a pair has the same bits in any company",
        ),
        Figure("graph_users_per_s", count / ours, "K-means and search, one core"),
        Figure("faiss_users_per_s", count / bare, "the same by FAISS, one thread"),
        Figure("recall_at_50", recall(users, graph), "of the true neighbours", 0.95),
        Figure(
            "compared_share",
            graph.compared / count**2,
            "similarities computed, K-means and assignment included, of all pairs",
            0.10,
            "lower",
        ),
        Figure(
            "recall_at_50_noise",
            recall(shapeless, build_graph(shapeless, SETTINGS, 1)),
            "the same where vectors have no clusters: nothing to be found cheaply",
        ),
        Figure(
            "update_share",
            updated.compared / graph.compared,
            f"similarities of an update after {CHANGED:.0%} of the vectors changed, of a build's",
            1.0,
            "lower",
        ),
        Figure("update_users_per_s", len(moved) / update_s, "changed users taken in"),
        Figure(
            "update_recall_lost",
            lost,
            "recall with new clusters less that of the update, which keeps the old",
            0.01,
            "lower",
        ),
        Figure(
            "memory_ratio",
            large / small,
            f"peak of {GROWTH * count:,} users over that of {count:,}: store written and searched",
            1.1,
            "lower",
            "K-means' sample grows as the root of the users; the search adds nothing to it",
        ),
        Figure("memory_mb", small, f"peak of {count:,} users, libraries included"),
        Figure(
            "memory_bytes_per_user",
            (large - small) * 2**20 / ((GROWTH - 1) * count),
            "what one more user adds to the peak",
        ),
        *retrieval_figures(count, runs),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--memory", type=int, help="of a graph of so many users, and nothing else")
    asked = parser.parse_args()
    if asked.memory is not None:
        sys.stdout.write(json.dumps(write_and_search(asked.memory)) + "\n")
        return
    print_figures(figures(asked.users, asked.runs), as_json=asked.json)


if __name__ == "__main__":
    main()
