"""Candidates come from one folder, to any process, and only of ads that may be shown."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.embeddings.candidate_index import (
    CandidateIndex,
    open_index,
    open_index_folder,
    write_index,
)
from ad_pipeline.embeddings.candidates_of_log import eligible_ads, read_index, write_candidates
from ad_pipeline.embeddings.graph_hours import RefreshedGraph, refresh_graph
from ad_pipeline.embeddings.published import ad_hashes, read_newest, user_hashes
from ad_pipeline.embeddings.retrieval import engaged_until, of_similar_users
from ad_pipeline.warehouse import rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import vector_settings, warehouse_of

USERS = ["ann", "bob", "cy", "dee"]
ADS = ["shoes", "hats", "tea", "maps"]
HOUR_US = 3_600_000_000


def made_index(popularity_strength: float = 0.0) -> CandidateIndex:
    """Return Ann near Bob and near Cy, who clicked; nobody is near Dee."""
    users, ads = user_hashes(USERS), ad_hashes(ADS)
    order = np.argsort(users)
    who, what = [0, 1, 1, 2, 2], [0, 0, 1, 1, 2]
    received_us = np.array([0, 0, HOUR_US, 0, 0])
    engaged = engaged_until(users[who], ads[what], received_us, HOUR_US)
    by_hash = dict(zip(ads.tolist(), ADS, strict=True))
    place = {USERS[row]: at for at, row in enumerate(order)}
    neighbours, similarities = np.full((4, 2), -1), np.full((4, 2), -np.inf, np.float32)
    neighbours[place["ann"]] = place["bob"], place["cy"]
    similarities[place["ann"]] = 0.9, 0.5
    neighbours[place["bob"], 0], similarities[place["bob"], 0] = place["ann"], 0.9
    return CandidateIndex(
        "encoder-a", engaged, tuple(by_hash[ad] for ad in engaged.ad_ids.tolist()),
        users[order], neighbours, similarities, HOUR_US, popularity_strength,
    )  # fmt: skip


def told(index: CandidateIndex, user: str, eligible: list[str] | None = None) -> list[str]:
    return index.texts_of(index.candidates([user], eligible, 10).of(0))


def test_ads_of_similar_users_come_by_weight_without_those_seen() -> None:
    index = made_index()
    assert told(index, "ann") == ["hats", "tea"]  # 0.9 + 0.25 for hats, 0.25 for tea
    assert told(index, "bob") == []  # Ann clicked nothing that Bob did not
    assert told(index, "dee") == told(index, "a stranger") == []
    assert index.texts_of(index.popular(["dee"], None, 1).of(0)) == ["hats"]
    assert told(index, "ann", ["tea", "maps"]) == ["tea"]
    assert told(index, "ann", []) == []
    both = index.candidates(["ann", "dee", "ann"], None, 1)
    assert index.texts_of(both.ads) == ["hats", "hats"]


def test_who_has_no_neighbours_is_told_what_is_popular_where_popularity_counts() -> None:
    index = made_index(popularity_strength=10.0)
    assert told(index, "a stranger") == ["hats", "shoes", "tea"]
    assert told(index, "a stranger") == index.texts_of(index.popular(["x"], None, 9).ads)
    assert told(index, "bob") == ["tea"]  # he has seen the rest


def test_an_index_answers_the_same_from_a_copy_of_its_folder(tmp_path: Path) -> None:
    written = write_index(tmp_path / "root", made_index())
    copied = tmp_path / "elsewhere" / written.digest
    shutil.copytree(written.path, copied)
    shutil.rmtree(tmp_path / "root" / "objects")
    assert told(open_index_folder(copied), "ann") == ["hats", "tea"]
    damaged = copied / "similarities.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptCheckpoint, match=r"similarities\.npy"):
        open_index_folder(copied)


PROGRAM = """
import sys
from pathlib import Path
from ad_pipeline.embeddings.candidate_index import open_index_folder
index = open_index_folder(Path(sys.argv[1]))
print(*index.texts_of(index.candidates(["ann"], None, 10).of(0)))
print(*{"duckdb", "dagster", "jax", "faiss", "lightgbm", "pandas", "sqlglot"} & set(sys.modules))
"""


def test_a_process_that_scores_needs_numpy_numba_and_arrow_only(tmp_path: Path) -> None:
    written = write_index(tmp_path, made_index())
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(written.path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.splitlines() == ["hats tea", ""]


@pytest.fixture
def market(published: Market, tmp_path: Path) -> Market:
    return published.copied_to(tmp_path / "home")


@pytest.fixture
def graph(market: Market) -> RefreshedGraph:
    root = market.deployment.vectors
    return refresh_graph(root, read_newest(root), vector_settings(market), 1)


@needs_jax
def test_candidates_of_the_log_are_those_of_the_library(
    market: Market, graph: RefreshedGraph
) -> None:
    deployment, warehouse = market.deployment, warehouse_of(market)
    index = read_index(warehouse, deployment, graph.stored)
    assert open_index(deployment.vectors, write_index(deployment.vectors, index).digest)
    eligible = eligible_ads(warehouse, deployment, graph.stored.as_of_us)
    written = write_candidates(warehouse, index, eligible[::2], 4)
    near = graph.stored.graph
    whom = near.ids[np.maximum(near.neighbours, 0)]
    similarities = np.where(near.neighbours < 0, -np.inf, near.similarities)
    expected = of_similar_users(
        index.engaged, near.ids, whom, similarities.astype(np.float32),
        half_life_us=index.half_life_us, limit=4, eligible=ad_hashes(eligible[::2]),
            popularity_strength=index.popularity_strength,
    )  # fmt: skip
    np.testing.assert_array_equal(written.starts, expected.starts)
    np.testing.assert_array_equal(written.ads, expected.ads)
    with warehouse.reader() as connection:
        table = rows_of(connection, "SELECT * FROM embeddings.candidates ORDER BY user_hash, rank")
    assert table["ad_id"].to_pylist() == index.texts_of(expected.ads)
    assert set(table["ad_id"].to_pylist()) <= set(eligible[::2])
    assert set(table["as_of_us"].to_pylist()) == {graph.stored.as_of_us}


@needs_jax
def test_an_ad_whose_campaign_has_spent_its_budget_is_not_eligible(
    market: Market, graph: RefreshedGraph
) -> None:
    """What was told later, or of another figure, changes nothing."""
    deployment, warehouse = market.deployment, warehouse_of(market)
    as_of_us = graph.stored.as_of_us
    before = eligible_ads(warehouse, deployment, as_of_us)
    with warehouse.writer() as connection:
        spent, rich = (
            row[0]
            for row in connection.execute(
                "SELECT DISTINCT campaign_id FROM events.impressions "
                f"WHERE received_us <= {as_of_us} ORDER BY ALL LIMIT 2"
            ).fetchall()
        )
        told = [
            ("1", spent, "remaining_budget", 9.0, as_of_us - 5),
            ("2", spent, "remaining_budget", 0.0, as_of_us),
            ("3", spent, "remaining_budget", 9.0, as_of_us + 1),
            ("4", rich, "remaining_budget", 0.0, as_of_us - 5),
            ("5", rich, "remaining_budget", 1.0, as_of_us),
            ("6", rich, "clicks", 0.0, as_of_us),
        ]
        for event, campaign, metric, value, moment in told:
            connection.execute(
                "INSERT INTO events.campaign_kpis BY NAME SELECT $event AS event_id, $campaign AS "
                "campaign_id, $metric AS metric, $value AS value, $moment AS occurred_us, "
                "$moment AS received_us, $moment AS logged_us",
                {"event": event, "campaign": campaign, "metric": metric, "value": value,
                 "moment": moment},
            )  # fmt: skip
        own = {
            row[0]
            for row in connection.execute(
                "SELECT DISTINCT ad_id FROM events.impressions WHERE campaign_id = $spent",
                {"spent": spent},
            ).fetchall()
        }
    after = eligible_ads(warehouse, deployment, as_of_us)
    assert set(before) & own
    assert set(after) == set(before) - own
