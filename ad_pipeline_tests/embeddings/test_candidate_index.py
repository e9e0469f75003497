"""Candidates come from one folder, to any process, and only of ads that may be shown."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.checkpoints import CorruptCheckpoint, MissingCheckpoint, open_folder, sweep
from ad_pipeline.embeddings.candidate_index import (
    WAYS,
    CandidateIndex,
    EligibleAds,
    index_of,
    keep_served,
    open_index,
    way_shares,
    write_index,
)
from ad_pipeline.embeddings.candidates_of_log import (
    eligible_ads,
    read_index,
    shares_by_way,
    write_candidates,
)
from ad_pipeline.embeddings.graph_hours import RefreshedGraph, refresh_graph
from ad_pipeline.embeddings.published import NO_ENCODER, ad_hashes, read_newest, user_hashes
from ad_pipeline.embeddings.retrieval import of_similar_users
from ad_pipeline.warehouse import rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_index import ADS, HOUR_US, USERS, made_index
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import (
    advanced,
    trained,
    vector_settings,
    warehouse_of,
)


def told(index: CandidateIndex, user: str, eligible: list[str] | None = None) -> list[str]:
    return index.texts_of(index.of_hashes(user_hashes([user]), eligible, 10).of(0))


def test_ads_of_similar_users_come_by_weight_without_those_seen() -> None:
    index = made_index()
    assert told(index, "ann") == ["hats", "tea"]  # 0.9 + 0.25 for hats, 0.25 for tea
    assert told(index, "bob") == ["tea"]  # Ann clicked nothing that Bob did not: it is popular
    assert told(index, "dee") == told(index, "a stranger") == ["hats", "shoes", "tea"]
    assert told(index, "ann", ["tea", "maps"]) == ["tea"]
    assert told(index, "ann", []) == []
    both = index.of_hashes(user_hashes(["ann", "dee", "ann"]), None, 1)
    assert index.texts_of(both.ads) == ["hats", "hats", "hats"]


def test_who_gets_nothing_from_similar_users_gets_popular_ads_and_the_list_says_so() -> None:
    index = made_index()
    users = [*USERS, "a stranger"]
    lists = index.lists(user_hashes(users), None, 10)
    found = {user: index.texts_of(lists.candidates.of(row)) for row, user in enumerate(users)}
    assert found == {
        "ann": ["hats", "tea"],
        "bob": ["tea"],
        "cy": ["shoes"],
        "dee": ["hats", "shoes", "tea"],
        "a stranger": ["hats", "shoes", "tea"],
    }
    ways = [WAYS[way] for way in lists.ways]
    unheard = "nothing_of_similar_users"
    assert ways == ["similar_users", unheard, unheard, unheard, "no_vector"]
    assert way_shares(lists.ways) == {
        "similar_users": 0.2, unheard: 0.6, "no_vector": 0.2, "nothing": 0.0,
    }  # fmt: skip
    spent = index.lists(user_hashes(["ann", "cy"]), ["tea"], 10)
    assert [WAYS[way] for way in spent.ways] == ["similar_users", "nothing"]
    assert spent.candidates.starts.tolist() == [0, 1, 1]
    again = index.lists(user_hashes(["ann"]), ["shoes"], 10, without_seen=False)
    assert index.texts_of(again.candidates.ads) == ["shoes"]
    assert way_shares(np.zeros(0, np.uint8)) == dict.fromkeys(WAYS, 0.0)


def test_where_popularity_counts_it_is_behind_what_similar_users_speak_for() -> None:
    """A list came from similar users if they are heard in it, however little."""
    index = made_index(popularity_strength=10.0)
    users = [*USERS, "a stranger"]
    lists = index.lists(user_hashes(users), None, 10)
    found = {user: index.texts_of(lists.candidates.of(row)) for row, user in enumerate(users)}
    assert found["a stranger"] == found["dee"] == ["hats", "shoes", "tea"]
    assert found["ann"] == ["hats", "tea"]
    assert found["bob"] == ["tea"]  # he has seen the rest
    silent = made_index().lists(user_hashes(users), None, 10)
    assert lists.ways.tolist() == silent.ways.tolist()
    spent = index.lists(user_hashes(["ann", "cy"]), ["tea"], 10)
    assert [WAYS[way] for way in spent.ways] == ["similar_users", "nothing"]


@given(
    st.lists(st.sampled_from([*USERS, "eve", "fay"]), min_size=1, max_size=9),
    st.one_of(st.none(), st.sets(st.sampled_from([*ADS, "maps"]))),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1e-6, 200.0]),
)
def test_a_list_does_not_depend_on_its_company(
    users, eligible, limit: int, unseen: bool, strength: float
) -> None:
    """Nor on whether eligible ads were looked up before."""
    index, hashed = made_index(popularity_strength=strength), user_hashes(users)
    once = None if eligible is None else EligibleAds(eligible)
    together = index.lists(hashed, once, limit, without_seen=unseen)
    for row in range(len(users)):
        alone = index.lists(hashed[row : row + 1], eligible, limit, without_seen=unseen)
        found = together.candidates
        assert alone.candidates.ads.tolist() == found.of(row).tolist()
        weights = found.weights[found.starts[row] : found.starts[row + 1]]
        assert alone.candidates.weights.tobytes() == weights.tobytes()
        assert alone.ways[0] == together.ways[row]


def test_users_who_engaged_and_have_no_vector_are_in_the_shares_by_way() -> None:
    index = made_index()
    without_bob = replace(index, ids=np.where(index.ids == user_hashes(["bob"]), 1, index.ids))
    order = np.argsort(without_bob.ids)
    alone = np.full((4, 2), -1)
    without_bob = replace(without_bob, ids=without_bob.ids[order], neighbours=alone)
    found = without_bob.of_hashes(without_bob.ids, ["tea"], 10)
    assert shares_by_way(without_bob, found, ["tea"], 10) == {
        # Of Ann, Cy, Dee, somebody new, and Bob, whose vector is gone.
        "similar_users": 0.0, "nothing_of_similar_users": 0.6, "no_vector": 0.2, "nothing": 0.2,
    }  # fmt: skip


def test_ads_looked_up_in_one_index_are_looked_up_anew_in_another() -> None:
    tea = EligibleAds(["tea"])
    first, second = made_index(), made_index(ads=("tea", "hats", "shoes"))
    for index in (first, second, first):
        found = index.lists(user_hashes(["a stranger"]), tea, 10)
        assert index.texts_of(found.candidates.ads) == ["tea"]


def test_an_index_answers_the_same_from_a_copy_of_its_folder(tmp_path: Path) -> None:
    written = write_index(tmp_path / "root", made_index())
    copied = tmp_path / "elsewhere" / written.digest
    shutil.copytree(written.path, copied)
    shutil.rmtree(tmp_path / "root" / "objects")
    assert told(index_of(open_folder(copied)), "ann") == ["hats", "tea"]
    damaged = copied / "similarities.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptCheckpoint, match=r"similarities\.npy"):
        open_folder(copied)


def test_a_sweep_leaves_what_scorers_were_told_of_until_they_are_told_of_more(
    tmp_path: Path,
) -> None:
    """Killed after an index was written and before it was published, the old one still serves."""
    first = write_index(tmp_path, made_index()).digest
    keep_served(tmp_path, first)
    second = write_index(tmp_path, made_index(as_of_us=2 * HOUR_US)).digest
    assert sweep(tmp_path).removed == 0
    keep_served(tmp_path, second)
    assert sweep(tmp_path).removed == 1
    assert told(open_index(tmp_path, second), "ann") == ["hats", "tea"]
    with pytest.raises(MissingCheckpoint):
        open_index(tmp_path, first)


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
    everybody = np.union1d(index.ids, index.engaged.users)
    asked = index.lists(everybody, eligible[::2], 4)
    assert shares_by_way(index, written, eligible[::2], 4) == way_shares(asked.ways)


@needs_jax
def test_before_the_first_encoder_everybody_gets_popular_ads(
    joined: Market, tmp_path: Path
) -> None:
    market = joined.copied_to(tmp_path / "home")
    trained(market, 0, 3)
    advanced(market, 0, 3)
    deployment, warehouse = market.deployment, warehouse_of(market)
    newest = read_newest(deployment.vectors)
    assert newest.version == NO_ENCODER
    stored = refresh_graph(deployment.vectors, newest, vector_settings(market), 1).stored
    index = read_index(warehouse, deployment, stored)
    eligible = eligible_ads(warehouse, deployment, stored.as_of_us)
    found = write_candidates(warehouse, index, eligible, 4)
    assert len(found.users) == 0
    assert shares_by_way(index, found, eligible, 4)["no_vector"] == 1.0
    asked = index.lists(user_hashes(["a stranger"]), eligible, 4)
    assert len(asked.candidates.of(0)) == 4


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
