"""Candidates are what a plain loop over engagements finds, and never of the future."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.embeddings.graph import Users, build_graph
from ad_pipeline.embeddings.nearest import NOBODY
from ad_pipeline.embeddings.retrieval import (
    Candidates,
    diversity_of,
    engaged_until,
    of_similar_ads,
    of_similar_users,
    popular,
    random_of_cluster,
    recall_at,
)
from ad_pipeline.settings import UserVectorSettings
from ad_pipeline_tests.embeddings.made_users import VERSION, made_ids

HOUR_US = 3_600_000_000
HALF_LIFE_US = 24 * HOUR_US
NOW_US = 100 * HOUR_US

events = st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 130))
logs = st.lists(events, min_size=1, max_size=60)
similar = st.lists(
    st.tuples(st.integers(0, 9), st.floats(-1, 1, width=32)), max_size=6, unique_by=lambda x: x[0]
)


def columns_of(log: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, ads, hours = (np.array(column) for column in zip(*log, strict=True))
    return users.astype(np.uint64), ads.astype(np.uint64), hours * HOUR_US


def lists_of(found: Candidates) -> list[list[tuple[int, float]]]:
    return [
        list(zip(found.of(row).tolist(),
                 found.weights[found.starts[row] : found.starts[row + 1]].tolist(), strict=True))
        for row in range(len(found.users))
    ]  # fmt: skip


def shares_by_loop(log) -> dict[int, float]:
    """Return each ad's share of all engagements, the recent counting for more."""
    newest: dict[tuple[int, int], int] = {}
    for who, ad, hour in log:
        if hour <= 100:
            newest[who, ad] = max(newest.get((who, ad), 0), hour)
    sums: dict[int, float] = {}
    for (_, ad), hour in sorted(newest.items()):
        sums[ad] = sums.get(ad, 0.0) + 2.0 ** (-(100 - hour) / 24)
    return {ad: weight / sum(sums.values()) for ad, weight in sums.items()}


def by_loop(log, user: int, neighbours, limit: int, strength: float, eligible, without_seen: bool):
    """Return (ad, weight) the plain way, straight from the rows of the log."""
    seen = {ad for who, ad, hour in log if who == user and hour <= 100}
    weights: dict[int, float] = {}
    for ad, share in shares_by_loop(log).items():
        is_kept = (eligible is None or ad in eligible) and not (without_seen and ad in seen)
        if strength > 0 and is_kept:
            weights[ad] = strength * share
    for neighbour, similarity in neighbours:
        newest: dict[int, int] = {}
        for who, ad, hour in log:
            if who == neighbour and hour <= 100:
                newest[ad] = max(newest.get(ad, 0), hour)
        for ad, hour in newest.items():
            is_kept = (eligible is None or ad in eligible) and not (without_seen and ad in seen)
            if similarity > 0 and is_kept:
                decayed = similarity * 2.0 ** (-(100 - hour) / 24)
                weights[ad] = weights.get(ad, 0.0) + decayed
    return sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]


@given(
    logs,
    st.lists(similar, min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 200.0]),
    st.one_of(st.none(), st.sets(st.integers(0, 9))),
    st.booleans(),
)
def test_candidates_are_what_a_loop_over_the_log_finds(
    log, neighbours, limit: int, strength: float, eligible, without_seen: bool
) -> None:
    whom = np.zeros((len(neighbours), 6), np.uint64)
    similarities = np.full((len(neighbours), 6), -np.inf, np.float32)
    for row, pairs in enumerate(neighbours):
        for rank, (neighbour, similarity) in enumerate(pairs):
            whom[row, rank], similarities[row, rank] = neighbour, similarity
    users = np.arange(len(neighbours), dtype=np.uint64)
    found = lists_of(
        of_similar_users(
            engaged_until(*columns_of(log), NOW_US),
            users,
            whom,
            similarities,
            half_life_us=HALF_LIFE_US,
            limit=limit,
            popularity_strength=strength,
            eligible=None if eligible is None else np.array(sorted(eligible), np.uint64),
            without_seen=without_seen,
        )
    )
    for user, pairs in enumerate(neighbours):
        expected = by_loop(log, user, pairs, limit + 10, strength, eligible, without_seen)
        assert len(found[user]) == min(limit, len(expected))
        known = dict(expected)
        # Sums in another order may swap what is equal but for the last bits.
        for (ad, weight), (_, wanted) in zip(found[user], expected, strict=False):
            assert weight == pytest.approx(wanted, rel=1e-12)
            assert known[ad] == pytest.approx(weight, rel=1e-12)


@given(logs, logs)
def test_what_the_log_has_after_the_moment_changes_nothing(log, later) -> None:
    """Planted leak: engagements that we had a microsecond later, of old and of new users."""
    users, ads, received = columns_of(log)
    more_users, more_ads, _ = columns_of(later)
    leaked = engaged_until(
        np.concatenate([users, more_users]),
        np.concatenate([ads, more_ads]),
        np.concatenate([received, np.full(len(later), NOW_US + 1)]),
        NOW_US,
    )
    clean = engaged_until(users, ads, received, NOW_US)
    for field in ("users", "starts", "ads", "newest_us", "ad_ids"):
        np.testing.assert_array_equal(getattr(leaked, field), getattr(clean, field))
    seen = engaged_until(
        np.concatenate([users, more_users]),
        np.concatenate([ads, more_ads]),
        np.concatenate([received, np.full(len(later), NOW_US)]),
        NOW_US,
    )
    assert seen.newest_us.max() == NOW_US


@given(logs, st.integers(1, 12), st.booleans())
def test_the_simpler_ways_are_what_loops_find(log, limit: int, without_seen: bool) -> None:
    engaged = engaged_until(*columns_of(log), NOW_US)
    users = np.arange(8, dtype=np.uint64)
    newest = {(u, a): max(h for x, y, h in log if (x, y) == (u, a) and h <= 100)
              for u, a, hour in log if hour <= 100}  # fmt: skip
    fans = {a: {u for u, ad in newest if ad == a} for _, a in newest}
    by_popularity = lists_of(
        popular(engaged, users, half_life_us=HALF_LIFE_US, limit=limit, without_seen=without_seen)
    )
    by_ads = lists_of(of_similar_ads(engaged, users, limit=limit, without_seen=without_seen))
    for user in range(8):
        own = {a for u, a in newest if u == user}
        shown = set(fans) - (own if without_seen else set())
        loud = {ad: share for ad, share in shares_by_loop(log).items() if ad in shown}
        alike = {
            a: sum(
                len(fans[a] & fans[b]) / (len(fans[a]) * len(fans[b])) ** 0.5
                for b in sorted(own - {a})
            )
            for a in shown
        }
        for found, weights in ((by_popularity[user], loud), (by_ads[user], alike)):
            positive = sorted((w for w in weights.values() if w > 0), reverse=True)[:limit]
            assert [weight for _, weight in found] == pytest.approx(positive, rel=1e-12)
            assert all(weights[ad] == pytest.approx(weight, rel=1e-12) for ad, weight in found)


@given(logs, st.integers(1, 12), st.booleans())
def test_a_strong_prior_leaves_the_order_of_popularity(log, limit: int, without_seen: bool) -> None:
    engaged, users = engaged_until(*columns_of(log), NOW_US), np.arange(8, dtype=np.uint64)
    whom = np.roll(users, 1)[:, np.newaxis]
    asked = partial(
        of_similar_users, engaged, users, whom, np.ones((8, 1), np.float32),
        half_life_us=1 << 60, limit=limit, without_seen=without_seen,
    )  # fmt: skip
    expected = popular(engaged, users, half_life_us=1 << 60, limit=limit, without_seen=without_seen)
    shrunk = asked(popularity_strength=1e6)
    np.testing.assert_array_equal(shrunk.starts, expected.starts)
    shares = shares_by_loop([(u, a, 100) for u, a, hour in log if hour <= 100])
    for row in range(8):
        own = [shares[ad] for ad in shrunk.of(row).tolist()]
        assert own == sorted(own, reverse=True)


def test_few_engagements_of_neighbours_do_not_outweigh_popularity() -> None:
    """Fifty of a hundred like one ad, and one neighbour of two clicked another: shrinking tells."""
    log = [(user, 1, 50) for user in range(50)] + [(60, 2, 50)]
    engaged = engaged_until(*columns_of(log), NOW_US)
    asked = partial(
        of_similar_users, engaged, np.array([70], np.uint64), np.array([[60, 61]], np.uint64),
        np.ones((1, 2), np.float32), half_life_us=HALF_LIFE_US, limit=2,
    )  # fmt: skip
    assert asked(popularity_strength=0.0).ads.tolist() == [2]
    assert asked(popularity_strength=200.0).ads.tolist() == [1, 2]
    assert asked(popularity_strength=0.1).ads.tolist() == [2, 1]


def test_only_eligible_ads_come_from_any_way() -> None:
    rng = np.random.default_rng(0)
    log = [(int(u), int(a), 50) for u, a in zip(rng.integers(0, 8, 60), rng.integers(0, 10, 60),
                                               strict=True)]  # fmt: skip
    engaged, users = engaged_until(*columns_of(log), NOW_US), np.arange(8, dtype=np.uint64)
    others = np.tile(users, (8, 1))
    eligible = np.array([1, 4], np.uint64)
    ways = {
        "users": of_similar_users(engaged, users, others, np.ones((8, 8), np.float32),
                                  half_life_us=1, limit=9, eligible=eligible, without_seen=False),
        "popular": popular(engaged, users, half_life_us=1 << 50, limit=9, eligible=eligible,
                           without_seen=False),
        "ads": of_similar_ads(engaged, users, limit=9, eligible=eligible, without_seen=False),
    }  # fmt: skip
    assert set(ways["popular"].ads.tolist()) == {1, 4}
    for found in ways.values():
        assert set(found.ads.tolist()) <= {1, 4}


def test_absent_users_and_an_empty_log_have_no_candidates() -> None:
    nothing = np.zeros(0, np.uint64)
    engaged = engaged_until(nothing, nothing, np.zeros(0, np.int64), NOW_US)
    users = np.array([5, 9], np.uint64)
    whom, similarities = np.array([[9], [5]], np.uint64), np.ones((2, 1), np.float32)
    for log in (engaged, engaged_until(*columns_of([(3, 1, 1)]), NOW_US)):
        found = of_similar_users(log, users, whom, similarities, half_life_us=HALF_LIFE_US, limit=5)
        assert found.starts.tolist() == [0, 0, 0]
        assert of_similar_ads(log, users, limit=5).starts.tolist() == [0, 0, 0]
    assert popular(engaged, users, half_life_us=1, limit=5).starts.tolist() == [0, 0, 0]


def test_random_neighbours_are_others_of_the_cluster_each_once() -> None:
    rng = np.random.default_rng(1)
    ids, own = made_ids(rng, 200), rng.integers(0, 9, 200)
    found = random_of_cluster(ids, own, 30, seed=1)
    for row in range(200):
        met = found[row][found[row] != NOBODY]
        assert (own[met] == own[row]).all()
        assert row not in met
        assert len(set(met.tolist())) == len(met) == min(30, int((own == own[row]).sum()) - 1)
    assert (random_of_cluster(ids, own, 30, seed=2) != found).any()


def test_similar_users_find_more_of_what_follows_than_simpler_ways() -> None:
    """Users whose tastes move around a circle click the ads nearest to them; clusters are coarse.

    Vectors are the tastes, blurred: what is measured is retrieval, not an encoder.
    """
    rng = np.random.default_rng(2)
    users, ads, per_user = 1_500, 300, 12
    ids = made_ids(rng, users)
    taste, topic = rng.uniform(0, 2 * np.pi, users), rng.uniform(0, 2 * np.pi, ads)
    appeal = np.exp(10 * np.cos(taste[:, None] - topic[None]))
    appeal /= appeal.sum(axis=1, keepdims=True)
    clicked = np.array([rng.choice(ads, per_user, replace=False, p=p) for p in appeal])
    who, hours = np.repeat(ids, per_user), np.tile(np.arange(per_user) * 20, users)
    as_of_us = 8 * 20 * HOUR_US
    is_later = hours * HOUR_US > as_of_us
    engaged = engaged_until(who, clicked.ravel().astype(np.uint64), hours * HOUR_US, as_of_us)
    truth = who[is_later], clicked.ravel()[is_later].astype(np.uint64)

    vectors = np.column_stack([np.cos(taste), np.sin(taste)]) + rng.normal(0, 0.05, (users, 2))
    settings = UserVectorSettings(neighbours=40, exact_users=100, clusters_per_root=0.15, probes=3)
    graph = build_graph(Users.of_matrix(ids, vectors.astype(np.float32), VERSION), settings, 1)
    drawn = random_of_cluster(ids, graph.of_users[:, 0], 40, seed=1)
    half_life_us, limit = 10 * HALF_LIFE_US, 30
    similar = partial(of_similar_users, engaged, ids, half_life_us=half_life_us, limit=limit)
    recalls = {
        name: recall_at(found, *truth, 30)
        for name, found in {
            "similar": similar(ids[graph.neighbours], graph.similarities),
            "same cluster": similar(ids[drawn], np.where(drawn == NOBODY, -np.inf, 1.0)),
            "popular": popular(engaged, ids, half_life_us=half_life_us, limit=limit),
        }.items()
    }
    assert recalls["similar"] > recalls["same cluster"] + 0.02
    assert recalls["same cluster"] > recalls["popular"] + 0.02


def test_recall_counts_each_user_with_something_to_find_once() -> None:
    found = Candidates(
        np.array([1, 2, 3], np.uint64),
        np.array([0, 2, 4, 4]),
        np.array([7, 8, 7, 9], np.uint64),
        np.array([2.0, 1.0, 2.0, 1.0]),
    )
    users = np.array([1, 1, 2, 2, 9], np.uint64)
    ads = np.array([8, 8, 9, 5, 7], np.uint64)
    assert recall_at(found, users, ads, 2) == pytest.approx((1 + 0.5) / 2)
    assert recall_at(found, users, ads, 1) == 0.0
    assert np.isnan(recall_at(found, users[:0], ads[:0], 2))


@given(st.lists(st.lists(st.integers(0, 5), unique=True, max_size=6), min_size=1, max_size=6))
def test_diversity_is_what_pairs_and_counts_say(lists: list[list[int]]) -> None:
    ad_ids = np.arange(6, dtype=np.uint64)
    vectors = np.random.default_rng(3).normal(size=(6, 3))
    starts = np.concatenate([[0], np.cumsum([len(each) for each in lists])]).astype(np.int64)
    flat = np.array([ad for each in lists for ad in each], np.uint64)
    measured = diversity_of(
        Candidates(np.arange(len(lists), dtype=np.uint64), starts, flat, np.ones(len(flat))),
        ad_ids,
        vectors,
    )
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = [
        np.mean([units[a] @ units[b] for a in each for b in each if a != b])
        for each in lists
        if len(each) > 1
    ]
    counts = [int((flat == ad).sum()) for ad in range(6)]
    assert measured.coverage == sum(count > 0 for count in counts) / 6
    if alike:
        assert measured.intra_list_similarity == pytest.approx(np.mean(alike), abs=1e-12)
    if sum(counts):
        gaps = sum(abs(a - b) for a in counts for b in counts)
        assert measured.gini == pytest.approx(gaps / (2 * 6 * sum(counts)), abs=1e-12)


def test_a_list_with_an_unknown_ad_is_refused() -> None:
    found = Candidates(np.array([1], np.uint64), np.array([0, 1]), np.array([7], np.uint64),
                       np.ones(1))  # fmt: skip
    with pytest.raises(ValueError, match="ad 7 is in a list"):
        diversity_of(found, np.array([1], np.uint64), np.ones((1, 2)))
