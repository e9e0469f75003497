"""The graph is what brute force finds, or near it in few comparisons; an update is a rebuild."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.embeddings import graph as graphs
from ad_pipeline.embeddings.audit import recall_of_sample
from ad_pipeline.embeddings.graph import (
    MOST_PROBED,
    Clusters,
    SimilarityGraph,
    Users,
    build_graph,
    graph_blocks,
    recall,
    rows_of_graph,
    updated_graph,
)
from ad_pipeline.embeddings.nearest import NOBODY, Nearest, nearest
from ad_pipeline.embeddings.tables import SIMILAR_USERS
from ad_pipeline.embeddings.vectors import Codec, Layout, Shard, StoredVectors, refreshed
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline.settings import UserVectorSettings
from ad_pipeline.warehouse import Warehouse, rows_of
from ad_pipeline_tests.embeddings.made_users import (
    CLUSTERED,
    VERSION,
    made_ids,
    made_users,
    made_vectors,
)

EXACT = UserVectorSettings(neighbours=10)


def best_cosines(units: np.ndarray, k: int) -> np.ndarray:
    """Compare all with all in float64 and return each one's k best, descending."""
    cosines = units.astype(np.float64) @ units.astype(np.float64).T
    np.fill_diagonal(cosines, -np.inf)
    return -np.sort(-cosines, axis=1)[:, :k]


def same(one: SimilarityGraph, other: SimilarityGraph) -> bool:
    return (
        np.array_equal(one.ids, other.ids)
        and np.array_equal(one.neighbours, other.neighbours)
        and one.similarities.tobytes() == other.similarities.tobytes()
        and np.array_equal(one.of_users, other.of_users)
    )


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 20), st.integers(1, 12))
def test_a_small_graph_is_what_brute_force_finds(
    seed: int, count: int, dimension: int, k: int
) -> None:
    users, _ = made_users(seed, count, dimension)
    graph = build_graph(users, UserVectorSettings(neighbours=k), seed=1)
    cosines = best_cosines(users.units(np.arange(count)), k)
    there = min(k, count - 1)
    np.testing.assert_allclose(graph.similarities[:, :there], cosines[:, :there], atol=1e-6)
    assert (graph.neighbours[:, there:] == NOBODY).all()
    assert np.isneginf(graph.similarities[:, there:]).all()
    # Where two are equal but for the last bits either order is right: each has its own cosine.
    units = users.units(np.arange(count)).astype(np.float64)
    for row, others in enumerate(graph.neighbours[:, :there]):
        assert row not in others
        assert len(set(others.tolist())) == there
        np.testing.assert_allclose(
            units[others] @ units[row], graph.similarities[row, :there], atol=1e-6
        )
    assert graph.compared == count * count


def test_ties_go_to_the_lower_id_however_many_there_are() -> None:
    """Three hundred users with two vectors between them: users of few activities look like this."""
    rng = np.random.default_rng(0)
    two = made_vectors(rng, 2, 16)
    which = rng.integers(0, 2, 300)
    users = Users.of_matrix(made_ids(rng, 300), two[which], VERSION)
    graph = build_graph(users, EXACT, seed=1)
    for row in range(300):
        alike = np.flatnonzero((which == which[row]) & (np.arange(300) != row))
        np.testing.assert_array_equal(graph.neighbours[row], alike[:10])


def test_a_pair_has_the_same_bits_in_any_company() -> None:
    users, _ = made_users(1, 700, 24)
    whole = build_graph(users, UserVectorSettings(neighbours=699), seed=1)
    rng = np.random.default_rng(2)
    for _ in range(5):
        asking, others = rng.choice(700, 3), np.sort(rng.choice(700, 40, replace=False))
        probed = np.zeros((3, 1), np.uint8)
        found = nearest(users.units(asking), asking, probed, [(0, others)], users.units, 40)
        for row, user in enumerate(asking):
            met = found.positions[row] != NOBODY
            of_all = np.empty(700, np.float32)
            of_all[whole.neighbours[user]] = whole.similarities[user]
            assert met.sum() >= 39
            np.testing.assert_array_equal(
                found.similarities[row][met], of_all[found.positions[row][met]]
            )


def test_clusters_keep_the_recall_at_a_tenth_of_the_comparisons() -> None:
    """The figure at size stands in docs/performance.md; this is its floor on few users."""
    users, _ = made_users(3, 16_000)
    sampled = np.zeros(16_000, bool)
    sampled[np.random.default_rng(4).choice(16_000, 400, replace=False)] = True
    everybody = Clusters(np.zeros((1, 16), np.float32), 1, 0)
    (exact,) = graph_blocks(users, everybody, np.zeros((16_000, 1), np.uint8), 50, sampled)

    def recall_of(graph: SimilarityGraph) -> float:
        found = graph.neighbours[exact.positions]
        return float(
            np.mean(
                [np.isin(*pair).mean() for pair in zip(exact.found.positions, found, strict=True)]
            )
        )

    clustered = UserVectorSettings(exact_users=100)
    graph = build_graph(users, clustered, seed=1)
    assert recall_of(graph) >= 0.95
    assert graph.compared <= 0.10 * 16_000**2
    # Negative control: the own cluster alone is not enough.
    alone = build_graph(
        users, clustered.model_copy(update={"probes": 1, "aimed_recall": None}), seed=1
    )
    assert recall_of(alone) < 0.95


def test_so_many_clusters_are_searched_as_hold_the_neighbours() -> None:
    """Directions in a ball of few dimensions: neighbours lie on both sides of most borders."""
    rng = np.random.default_rng(6)
    vectors = (rng.normal(size=(6_000, 5)) @ rng.normal(size=(5, 16))).astype(np.float32)
    users = Users.of_matrix(made_ids(rng, 6_000), vectors, VERSION)
    few = UserVectorSettings(exact_users=100, probes=2)
    graph = build_graph(users, few, seed=1)
    assert 2 < graph.clusters.probes <= MOST_PROBED * len(graph.clusters.centroids)
    assert recall_of_sample(graph, users, 200, seed=1)[0] >= 0.95
    # Negative control: as many as are set hold too few.
    as_set = build_graph(users, few.model_copy(update={"aimed_recall": None}), seed=1)
    assert as_set.clusters.probes == 2
    assert recall_of_sample(as_set, users, 200, seed=1)[0] < 0.9
    # Without any clusters the search stays one of part of the pairs.
    noise = rng.normal(size=(6_000, 64)).astype(np.float32)
    shapeless = build_graph(Users.of_matrix(users.ids, noise, VERSION), few, seed=1)
    assert shapeless.clusters.probes == int(MOST_PROBED * len(shapeless.clusters.centroids))


def test_recall_is_the_share_of_true_neighbours() -> None:
    users, _ = made_users(4, 40)
    exact = build_graph(users, EXACT, seed=1)
    assert recall(exact, exact) == 1.0
    half = exact.neighbours.copy()
    half[:, 5:] = NOBODY
    assert recall(replace(exact, neighbours=half), exact) == 0.5


def test_all_clusters_probed_are_all_pairs() -> None:
    users, _ = made_users(5, 600)
    everywhere = CLUSTERED.model_copy(update={"probes": 10_000})
    clustered, exact = build_graph(users, everywhere, seed=1), build_graph(users, EXACT, seed=1)
    assert len(clustered.clusters.centroids) > 10
    np.testing.assert_array_equal(clustered.neighbours, exact.neighbours)
    np.testing.assert_array_equal(clustered.similarities, exact.similarities)


def test_without_faiss_all_pairs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    users, _ = made_users(6, 300)
    monkeypatch.setattr(graphs, "has_faiss", lambda: False)
    monkeypatch.setitem(sys.modules, "faiss", None)
    graph = build_graph(users, CLUSTERED, seed=1)
    assert len(graph.clusters.centroids) == 1
    assert same(graph, build_graph(users, EXACT, seed=1))


PRINTED = """
import hashlib
from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline_tests.embeddings.made_users import CLUSTERED, made_users
graph = build_graph(made_users(7, 1_500)[0], CLUSTERED, seed=1)
print(hashlib.sha256(graph.neighbours.tobytes() + graph.similarities.tobytes()).hexdigest())
"""


def test_equal_users_give_equal_bytes_in_other_processes_with_other_threads() -> None:
    digests = [
        subprocess.run(
            [sys.executable, "-c", PRINTED],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            cwd=Path(__file__).resolve().parents[2],
        ).stdout
        for threads in ("1", "2")
    ]
    assert digests[0] == digests[1]
    users = made_users(7, 1_500)[0]
    graph = build_graph(users, CLUSTERED, seed=1)
    assert not same(graph, build_graph(users, CLUSTERED, seed=2))


def test_the_graph_of_a_store_is_that_of_its_vectors() -> None:
    rng = np.random.default_rng(8)
    ids, vectors = made_ids(rng, 300), made_vectors(rng, 300)
    layout = Layout(VERSION, Codec(16, None, 0.0), 3, 3)
    of_shard = layout.shards(ids)
    shards = [
        refreshed(Shard.empty(layout), layout, ids[of_shard == s], vectors[of_shard == s], 0)
        for s in range(8)
    ]
    store = StoredVectors(layout, 0, tuple(shards))
    stored = build_graph(Users.of_store(store), EXACT, seed=1)
    plain = Users.of_matrix(ids, vectors.astype(np.float16).astype(np.float32), VERSION)
    assert recall(stored, build_graph(plain, EXACT, seed=1)) > 0.999
    assert stored.version == VERSION


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.integers(0, 30),
    st.integers(0, 10),
    st.integers(0, 10),
    st.sampled_from([CLUSTERED, EXACT]),
)
def test_an_update_equals_the_rebuild_on_the_same_clusters(
    seed: int, changed: int, come: int, gone: int, chosen: UserVectorSettings
) -> None:
    rng = np.random.default_rng(seed)
    ids, vectors = made_ids(rng, 260), made_vectors(rng, 260)
    there = rng.permutation(260) >= come
    before = Users.of_matrix(ids[there], vectors[there], VERSION)
    graph = build_graph(before, chosen, seed=1)

    stays = ~np.isin(np.arange(260), rng.choice(np.flatnonzero(there), gone, replace=False))
    moved = rng.choice(np.flatnonzero(there & stays), changed, replace=False)
    # Half of them move onto somebody, so that they come near to users who did not point at them.
    vectors[moved] = made_vectors(rng, max(changed, 1))[:changed]
    vectors[moved[::2]] = vectors[rng.integers(0, 260, len(moved[::2]))]
    after = Users.of_matrix(ids[stays], vectors[stays], VERSION)

    updated = updated_graph(graph, after, ids[moved])
    assert same(updated, build_graph(after, chosen, seed=1, clusters=graph.clusters))


def test_an_update_compares_less_and_an_unnamed_change_is_missed() -> None:
    """Negative control: the update looks at whom it is told about, so equality is no accident."""
    users, vectors = made_users(9, 1_000)
    graph = build_graph(users, CLUSTERED, seed=1)
    vectors[500] = vectors[3]
    after = Users.of_matrix(users.ids, vectors, VERSION)
    rebuilt = build_graph(after, CLUSTERED, seed=1, clusters=graph.clusters)
    told = updated_graph(graph, after, users.ids[[500]])
    assert same(told, rebuilt)
    assert told.compared < rebuilt.compared / 5
    assert not same(updated_graph(graph, after, users.ids[:0]), rebuilt)


def test_a_graph_takes_in_no_vectors_of_another_version() -> None:
    users, vectors = made_users(10, 30)
    graph = build_graph(users, EXACT, seed=1)
    other = Users.of_matrix(users.ids, vectors, "encoder-b")
    with pytest.raises(MixedVersions, match=r"encoder-a .* encoder-b"):
        updated_graph(graph, other, users.ids)


def test_users_out_of_order_are_refused() -> None:
    users, vectors = made_users(11, 30)
    for ids in (users.ids[::-1], users.ids[:-1], np.repeat(users.ids[:15], 2)):
        with pytest.raises(ValueError, match="one vector a user"):
            Users.of_matrix(ids, vectors, VERSION)


def test_a_graph_becomes_rows_of_its_table(tmp_path: Path) -> None:
    users, _ = made_users(12, 6)
    graph = build_graph(users, EXACT, seed=1)
    found = Nearest(graph.similarities, graph.neighbours, 0)
    rows = rows_of_graph(graph.ids, graph.version, 77, np.arange(6), found)
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create([SIMILAR_USERS])
    with warehouse.writer() as connection:
        connection.register("found", rows)
        connection.execute(f"INSERT INTO {SIMILAR_USERS.name} BY NAME SELECT * FROM found")
    with warehouse.reader() as connection:
        stored = rows_of(
            connection, f"SELECT * FROM {SIMILAR_USERS.name} ORDER BY user_hash, rank"
        ).to_pylist()
    assert len(stored) == 6 * 5
    for place, row in enumerate(stored):
        user, rank = divmod(place, 5)
        assert row == {
            "user_hash": int(users.ids[user]),
            "neighbour_hash": int(users.ids[graph.neighbours[user, rank]]),
            "similarity": float(graph.similarities[user, rank]),
            "rank": rank + 1,
            "version": VERSION,
            "as_of_us": 77,
        }
