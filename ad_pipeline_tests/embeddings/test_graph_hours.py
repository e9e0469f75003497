"""The kept graph follows the newest vectors, and is built anew when the old one is of no use."""

from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import Checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.graph import SimilarityGraph, Users, build_graph
from ad_pipeline.embeddings.graph_hours import read_graph, refresh_graph, write_table
from ad_pipeline.embeddings.published import (
    PublishedVectors,
    last_known_us,
    read_hour,
    write_published,
)
from ad_pipeline.embeddings.vectors import Codec, Layout, write_vectors
from ad_pipeline.warehouse import Warehouse, one_row, rows_of
from ad_pipeline_tests.embeddings.made_users import CLUSTERED, VERSION, made_ids, made_vectors

DIMENSION = 16
SEED = 3


def hour_with(
    root: Path, hour: int, ids: np.ndarray, vectors: np.ndarray, version: str = VERSION
) -> PublishedVectors:
    """Publish an hour in which some users got new vectors; the others stay as they were."""
    hour_us = hour * HOUR_US
    layout = Layout(version, Codec(DIMENSION, None, 0.0), 0, 1)

    def written(name: str, before: bool) -> Checkpoint:
        previous = read_hour(root, hour_us - HOUR_US).users if before else None
        if previous is not None and previous.version != version:
            previous = None
        as_of_us = last_known_us(hour_us)
        return write_vectors(
            root, f"{name}/{hour}", layout, as_of_us, lambda _: (ids, vectors), previous
        )

    write_published(root, hour_us, written("users", hour > 1), written("engagers", False))
    return read_hour(root, hour_us)


def same(one: SimilarityGraph, other: SimilarityGraph) -> bool:
    names = ("ids", "neighbours", "similarities", "of_users")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_users_with_new_vectors_are_taken_in_as_a_rebuild_would(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids, vectors = made_ids(rng, 400), made_vectors(rng, 440, DIMENSION)
    first = refresh_graph(tmp_path, hour_with(tmp_path, 1, ids, vectors[:400]), CLUSTERED, SEED)
    assert first.is_rebuilt
    newcomers = np.setdiff1d(made_ids(rng, 10), ids)
    some = np.concatenate([ids[:30], newcomers])
    published = hour_with(tmp_path, 2, some, vectors[400 : 400 + len(some)])
    second = refresh_graph(tmp_path, published, CLUSTERED, SEED)
    assert (second.is_rebuilt, second.changed) == (False, len(some))
    kept = read_graph(tmp_path)
    assert kept.vectors == published.digest
    assert kept.as_of_us == last_known_us(2 * HOUR_US)
    users = Users.of_store(published.users)
    rebuilt = build_graph(users, CLUSTERED, SEED, first.stored.graph.clusters)
    assert len(first.stored.graph.clusters.centroids) > 1
    assert same(kept.graph, rebuilt)
    again = refresh_graph(tmp_path, published, CLUSTERED, SEED)
    assert (again.is_rebuilt, again.changed) == (False, 0)
    assert same(again.stored.graph, kept.graph)


@pytest.mark.parametrize("reason", ["encoder", "settings", "most users"])
def test_a_graph_is_built_anew(tmp_path: Path, reason: str) -> None:
    rng = np.random.default_rng(1)
    ids, vectors = made_ids(rng, 200), made_vectors(rng, 400, DIMENSION)
    refresh_graph(tmp_path, hour_with(tmp_path, 1, ids, vectors[:200]), CLUSTERED, SEED)
    few = 200 if reason == "most users" else 5
    version = "encoder-b" if reason == "encoder" else VERSION
    published = hour_with(tmp_path, 2, ids[:few], vectors[200 : 200 + few], version)
    asked = CLUSTERED.model_copy(update={"neighbours": 7}) if reason == "settings" else CLUSTERED
    done = refresh_graph(tmp_path, published, asked, SEED)
    assert done.is_rebuilt
    assert done.stored.graph.version == version
    assert done.stored.graph.neighbours.shape == (len(published.users.ids), asked.neighbours)


def test_the_table_holds_the_graph_and_nothing_of_the_one_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    ids, vectors = made_ids(rng, 60), made_vectors(rng, 60, DIMENSION)
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    refresh = [
        refresh_graph(tmp_path, hour_with(tmp_path, hour, *given, version), CLUSTERED, SEED)
        for hour, version, given in (
            (1, VERSION, (ids, vectors)),
            (2, "encoder-b", (ids[:40], vectors[:40])),
        )
    ]
    _, rows = [write_table(warehouse, done.stored) for done in refresh]
    with warehouse.reader() as connection:
        found = one_row(
            connection,
            "SELECT count(*), count(DISTINCT user_hash), min(version), max(version) "
            "FROM embeddings.similar_users",
        )
        of_first = rows_of(
            connection,
            "SELECT neighbour_hash, similarity FROM embeddings.similar_users "
            "WHERE user_hash = $user ORDER BY rank",
            {"user": int(ids[0])},
        )
    assert found == (rows, 40, "encoder-b", "encoder-b")
    graph = refresh[-1].stored.graph
    np.testing.assert_array_equal(of_first["neighbour_hash"], graph.ids[graph.neighbours[0]])
    np.testing.assert_array_equal(of_first["similarity"], graph.similarities[0])
