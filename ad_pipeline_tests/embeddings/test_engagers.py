"""Ads' engagers are a mean of directions, whose bits do not show how users were dealt to parts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.embeddings.engagers import EngagerSums
from ad_pipeline.embeddings.published import ad_hashes
from ad_pipeline.embeddings.retrieval import Engaged, engaged_until
from ad_pipeline.embeddings.vectors import Codec, Layout, Shard, StoredVectors, refreshed
from ad_pipeline_tests.embeddings.made_users import VERSION, made_ids, made_vectors

ADS = ad_hashes(["a", "b", "c"])


def made_store(rng: np.random.Generator, users: int) -> StoredVectors:
    layout = Layout(VERSION, Codec(4, None, 0.0), 0, 1)
    ids, vectors = made_ids(rng, users), made_vectors(rng, users, 4)
    # Components of any size: sums of numbers of one size are exact, in whatever order.
    vectors *= 10 ** rng.uniform(-7, 4, vectors.shape).astype(np.float32)
    return StoredVectors(layout, 0, (refreshed(Shard.empty(layout), layout, ids, vectors, 0),))


def engaged(who: np.ndarray, what: np.ndarray) -> Engaged:
    return engaged_until(who, what, np.zeros(len(who), np.int64), 0)


def summed(store: StoredVectors, who: np.ndarray, what: np.ndarray, bits: int) -> EngagerSums:
    """Add engagements up in 2^bits parts of the users."""
    sums = EngagerSums(4)
    part = who >> np.uint64(64 - bits) if bits else np.zeros(len(who), np.uint64)
    for number in range(2**bits):
        sums.add(engaged(who[part == number], what[part == number]), store)
    return sums


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 60))
def test_an_ads_engagers_are_the_mean_of_unit_vectors(
    seed: int, users: int, engagements: int
) -> None:
    rng = np.random.default_rng(seed)
    store = made_store(rng, users)
    whom = np.concatenate([store.ids, made_ids(rng, 3)])  # the last of them have no vector
    who, what = rng.choice(whom, engagements), rng.choice(ADS, engagements)
    sums = summed(store, who, what, 0)
    by_hand = {}
    for ad in ADS:
        own = np.unique(who[(what == ad) & np.isin(who, store.ids)])
        if len(own):
            of_ad = store.read(store.positions(own))[0].astype(np.float64)
            by_hand[ad] = (of_ad / np.linalg.norm(of_ad, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_array_equal(sums.ids, sorted(by_hand))
    for ad, mean in zip(sums.ids, sums.means(), strict=True):
        np.testing.assert_allclose(mean, by_hand[ad], rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 400))
def test_the_sum_has_the_same_bits_in_any_number_of_parts(
    seed: int, bits: int, engagements: int
) -> None:
    rng = np.random.default_rng(seed)
    store = made_store(rng, 60)
    who, what = rng.choice(store.ids, engagements), rng.choice(ADS, engagements)
    one, many = summed(store, who, what, 0), summed(store, who, what, bits)
    np.testing.assert_array_equal(many.ids, one.ids)
    np.testing.assert_array_equal(many.counts, one.counts)
    assert many.sums.tobytes() == one.sums.tobytes()


def test_parts_out_of_order_would_show_in_the_bits() -> None:
    """The control of the test above: it compares bits that an order of summation changes."""
    rng = np.random.default_rng(1)
    store = made_store(rng, 500)
    high = store.ids >= np.uint64(1 << 63)
    backwards = EngagerSums(4)
    for part in (high, ~high):
        who = store.ids[part]
        backwards.add(engaged(who, np.full(len(who), ADS[0])), store)
    forwards = summed(store, store.ids, np.full(500, ADS[0]), 1)
    np.testing.assert_allclose(backwards.sums, forwards.sums)
    assert backwards.sums.tobytes() != forwards.sums.tobytes()
