"""What vectors are worth is measured without a look ahead, and finds nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline.embeddings.next_actions import Actions
from ad_pipeline.embeddings.retrieval import Engaged, engaged_until
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.evaluation.metrics import log_loss
from ad_pipeline.monitoring.user_vectors.cold_start import (
    BUCKETS,
    bucket_name,
    bucket_of,
    fit_prior,
)
from ad_pipeline.monitoring.user_vectors.factorization import factorized, of_factors
from ad_pipeline.monitoring.user_vectors.features import (
    Engagements,
    activity_counts,
    engager_centroids,
    refreshed_us,
    vectors_at,
)
from ad_pipeline.monitoring.user_vectors.labelled import UNKNOWN, Impressions, lessons
from ad_pipeline.monitoring.user_vectors.ranker import (
    Split,
    gain_of,
    mean_losses,
    ranked,
    trainings_of,
)
from ad_pipeline.monitoring.user_vectors.recall import (
    FACTORIZED,
    OF_ALL,
    POPULAR,
    SIMILAR_USERS,
    WAYS,
    lists_by_way,
    recalls,
    search_quality,
)
from ad_pipeline.settings import NEXT, BatchSettings, UserVectorSettings
from ad_pipeline_tests.embeddings.made_users import CLUSTERED, made_users
from ad_pipeline_tests.embeddings.made_worlds import NOW_US, activities, needs_jax, settings_of

SETTINGS = settings_of("looks")
RANKER = BatchSettings(minimum_positives=20, minimum_leaf_rows=20, rounds=30)


def shown_at_random(rows: int = 3_000, seed: int = 0) -> tuple[Impressions, np.ndarray]:
    """Return impressions over ten days, and the taste that decides their labels with a coin."""
    rng = np.random.default_rng(seed)
    occurred_us = np.sort(rng.integers(0, 10 * DAY_US, rows))
    taste = rng.normal(size=rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(2 - 1.5 * taste))).astype(np.int8)
    shown = Impressions(
        user=rng.integers(0, 200, rows),
        ad=rng.integers(0, 5, rows),
        occurred_us=occurred_us,
        matured_us=occurred_us + HOUR_US,
        labels=labels,
        dense=rng.normal(size=(rows, 1)),
        category_hashes=rng.integers(0, 4, (rows, 1)).astype(np.uint64),
        online_logit=np.zeros(rows),
        dense_names=("age",),
        category_names=("place",),
    )
    return shown, taste


SPLIT = Split(learn_from_us=2 * DAY_US, test_from_us=7 * DAY_US)


def said(shown: Impressions, columns: np.ndarray | None, trainings: int = 1) -> np.ndarray:
    return ranked(shown, SPLIT, columns, RANKER, HOUR_US, trainings)


def gain(shown: Impressions, columns: np.ndarray):
    tested = SPLIT.tested(shown)
    labels = shown.labels[tested]
    losses, without = (mean_losses(labels, said(shown, each)) for each in (columns, None))
    return gain_of(losses, without, shown.user[tested])


def test_a_column_that_tells_the_taste_gains_and_noise_does_not():
    shown, taste = shown_at_random()
    found = gain(shown, taste[:, np.newaxis])
    assert found.low > 0.05
    assert found.rows == SPLIT.tested(shown).sum()
    noise = gain(shown, np.random.default_rng(9).normal(size=(len(taste), 1)))
    assert noise.low <= 0


def test_losses_are_means_over_trainings_that_learn_other_users_rows():
    shown, taste = shown_at_random()
    tested, columns = SPLIT.tested(shown), taste[:, np.newaxis]
    several = said(shown, columns, trainings=3)
    assert several.shape == (3, tested.sum())
    assert (several[0] != several[1]).any()
    assert (several == said(shown, columns, trainings=3)).all()
    labels = shown.labels[tested]
    each = [log_loss(labels, one) for one in several]
    assert mean_losses(labels, several).mean() == pytest.approx(np.mean(each))
    # Who is unknown is drawn row by row.
    strangers = replace(shown, user=np.full(len(shown.user), UNKNOWN))
    assert (said(strangers, columns, trainings=2) != several[:2]).any()


@given(st.integers(0, 10**8))
def test_a_ranker_of_few_rows_is_trained_often_and_one_of_many_once(rows: int):
    count = trainings_of(rows)
    assert 1 <= count <= 16
    assert count == 1 or count * rows <= 400_000
    assert (trainings_of(1_000), trainings_of(200_000), trainings_of(10**7)) == (16, 2, 1)


def test_a_label_that_matured_after_the_ranker_was_trained_teaches_it_nothing():
    shown, taste = shown_at_random()
    columns = taste[:, np.newaxis]
    late = (shown.occurred_us < SPLIT.test_from_us) & (shown.matured_us > SPLIT.test_from_us)
    assert late.any()
    flipped = np.where(late, 1 - shown.labels, shown.labels)
    assert (said(replace(shown, labels=flipped), columns) == said(shown, columns)).all()
    known = (shown.occurred_us < SPLIT.test_from_us) & ~late
    planted = np.where(known, 1 - shown.labels, shown.labels)
    assert (said(replace(shown, labels=planted), columns) != said(shown, columns)).any()


def test_too_few_positives_are_an_error_that_says_how_many():
    shown, _ = shown_at_random()
    with pytest.raises(ValueError, match=r"positives in the training slice.*longer log"):
        said(replace(shown, labels=np.zeros_like(shown.labels)), None)


@given(st.integers(0, 10**15), st.integers(1, 10**12), st.floats(0, 1, exclude_max=True, width=32))
def test_the_last_refresh_is_before_the_impression_and_no_older_than_the_interval(
    occurred_us: int, interval_us: int, phase: float
):
    found = refreshed_us(np.array([occurred_us]), interval_us, np.array([phase]))[0]
    assert occurred_us - interval_us <= found < occurred_us


def history_of(rows: list[tuple[int, int, int]], late_us: int = 0) -> History:
    """Return users' looks as (user, hours before now, id), all received some time late."""
    user, hours, ids = (np.array(column) for column in zip(*rows, strict=True))
    table = activities(user, NOW_US - hours * HOUR_US, np.repeat("looks", len(rows)), ids)
    received = pa.array(table["occurred_us"].to_numpy() + late_us)
    table = table.set_column(table.column_names.index("received_us"), "received_us", received)
    return History.of_table(table, SETTINGS.modalities)


LOOKS = [(0, 30, 1), (0, 20, 2), (0, 3, 3), (1, 2, 4)]


@needs_jax
def test_a_vector_knows_what_the_log_had_and_nobody_without_activity_has_one():
    encoder = Encoder.first(SETTINGS, seed=1)
    history = history_of(LOOKS)
    user = np.array([0, 0, 1, 1, UNKNOWN])
    moments = NOW_US - np.array([1, 10, 1, 10, 1]) * HOUR_US
    found = vectors_at(encoder, history, user, moments)
    assert np.isnan(found).any(axis=1).tolist() == [False, False, False, True, True]
    assert activity_counts(history, user, moments).tolist() == [3, 2, 1, 0, 0]
    without_last = vectors_at(encoder, history_of(LOOKS[:2]), user[1:2], moments[1:2])
    assert (found[1] == without_last[0]).all()
    # Planted fault: had the log had it in time, the vector would be another.
    assert (found[0] != vectors_at(encoder, history_of(LOOKS[:2]), user[:1], moments[:1])[0]).any()
    late = vectors_at(encoder, history_of(LOOKS, late_us=100 * HOUR_US), user, moments)
    assert np.isnan(late).all()


@needs_jax
def test_the_engagers_of_an_ad_are_those_that_the_log_knew():
    encoder = Encoder.first(SETTINGS, seed=1)
    history = history_of(LOOKS)
    engaged = Engagements(
        user=np.array([0, 1, 1]),
        ad=np.array([0, 0, 1]),
        received_us=NOW_US + np.array([-1, 1, 1]) * HOUR_US,
    )
    found = engager_centroids(encoder, history, engaged, 3, NOW_US)
    own = vectors_at(encoder, history, np.array([0]), np.array([NOW_US]))[0]
    assert found[0] == pytest.approx(own / np.linalg.norm(own), abs=1e-6)
    assert np.isnan(found[1:]).all()
    later = engager_centroids(encoder, history, engaged, 3, NOW_US + 2 * HOUR_US)
    assert np.linalg.norm(later[:2], axis=1) == pytest.approx(1.0, abs=1e-6)
    assert (later[0] != found[0]).any()


def lesson_of(tasks: tuple[str, ...], actions: Actions | None):
    history = history_of(LOOKS)
    occurred_us = NOW_US + np.array([1, 2, 30]) * HOUR_US
    shown, _ = shown_at_random(3)
    shown = replace(
        shown,
        user=np.array([0, UNKNOWN, 1]),
        occurred_us=occurred_us,
        matured_us=occurred_us + HOUR_US,
        labels=np.array([1, 1, 1]),
    )
    ad_tokens = np.arange(1, 11, dtype=np.uint32).reshape(5, 2)
    span_us = (NOW_US, NOW_US + 24 * HOUR_US)
    return lessons(
        history, {"looks": 16}, ad_tokens, {"click": shown}, tasks, span_us, DAY_US, actions
    )


def test_an_encoder_is_taught_what_had_matured_each_after_its_sequence():
    taught = lesson_of(("click",), None)
    assert len(taught.ads.labels) == 1  # nobody knows the second user, the third label is too late
    assert taught.sequences.as_of_us.tolist() == [NOW_US]


def test_what_a_user_did_next_is_told_from_what_others_did():
    rng = np.random.default_rng(0)
    actions = Actions(
        user=np.repeat([0, 1], 50),
        received_us=NOW_US + rng.integers(1, 20, 100) * HOUR_US,
        tokens=np.repeat([[7, 0], [8, 0]], 50, axis=0).astype(np.uint32),
    )
    taught = lesson_of(("click", NEXT), actions)
    label = taught.ads.labels[:, 1]
    done, others = label == 1, label == 0
    assert done.sum() == others.sum() == 100
    user = taught.sequences.user[taught.ads.sequence]
    about = taught.ads.tokens[:, 0]
    assert (about[done] == 7 + user[done]).all()
    assert 0.3 < (about[others] == 7 + user[others]).mean() < 0.7
    assert np.isnan(taught.ads.labels[done | others, 0]).all()


def test_a_task_that_nothing_teaches_is_refused():
    with pytest.raises(ValueError, match="give both or neither"):
        lesson_of(("click", NEXT), None)
    with pytest.raises(ValueError, match=r"'purchase'.*none of the goals"):
        lesson_of(("purchase",), None)


def engaged_at_random(seed: int = 0, users: int = 30, ads: int = 12) -> Engaged:
    rng = np.random.default_rng(seed)
    count = 150
    return engaged_until(
        rng.integers(0, users, count).astype(np.uint64),
        rng.integers(0, ads, count).astype(np.uint64),
        np.zeros(count, np.int64),
        1,
    )


def test_factors_are_where_neither_side_can_improve():
    """The loss of Hu, Koren and Volinsky, equation 3, has no slope there."""
    alpha, strength = 5.0, 2.0
    engaged = engaged_at_random()
    found = factorized(engaged, 3, alpha, strength, rounds=400)
    preferred = np.zeros((len(engaged.users), len(engaged.ad_ids)))
    preferred[engaged.rows, engaged.ads] = 1.0

    def slopes(users: np.ndarray, ads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gap = (1 + alpha * preferred) * (preferred - users @ ads.T)
        return strength * users - gap @ ads, strength * ads - gap.T @ users

    of_users, of_ads = slopes(found.users, found.ads)
    assert np.abs(of_ads).max() < 1e-9
    assert np.abs(of_users).max() < 1e-4
    early = factorized(engaged, 3, alpha, strength, rounds=1)
    assert np.abs(slopes(early.users, early.ads)[0]).max() > 1e-2


def test_a_factorization_lists_eligible_ads_only_and_nothing_for_strangers():
    engaged = engaged_at_random()
    factors = factorized(engaged, 3)
    asked = np.array([engaged.users[0], np.uint64(999)])
    found = of_factors(engaged, factors, asked, 4, eligible=engaged.ad_ids[:5])
    assert np.isin(found.ads, engaged.ad_ids[:5]).all()
    assert 0 < len(found.of(0)) <= 4
    assert len(found.of(1)) == 0
    assert (np.diff(found.weights) <= 0).all()


def test_lists_of_similar_users_find_tastes_and_users_drawn_from_all_do_not():
    users, vectors = made_users(seed=3, count=600)
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(vectors.shape[1], 60))
    liked = np.argsort(-(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ directions)
    before, after = liked[:, :4:2], liked[:, 1:4:2]

    def log_of(ads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.repeat(users.ids, 2), ads.ravel().astype(np.uint64)

    engaged = engaged_until(*log_of(before), np.zeros(2 * len(users.ids), np.int64), 1)
    graph = build_graph(users, CLUSTERED, 0)
    own = np.zeros(len(users.ids), np.int64)
    lists = lists_by_way(engaged, graph, own, CLUSTERED, 10, engaged.ad_ids, 0)
    assert tuple(lists) == WAYS
    found = recalls(lists, *log_of(after), 10)
    assert found[SIMILAR_USERS] > found[POPULAR] + 0.2
    assert found[SIMILAR_USERS] > found[OF_ALL] + 0.2
    assert found[FACTORIZED] > found[POPULAR]
    assert abs(found[OF_ALL] - found[POPULAR]) < 0.15


def test_a_search_is_judged_by_the_exact_one_and_by_what_it_compared():
    users, _ = made_users(seed=3, count=600)
    exact = build_graph(users, UserVectorSettings(neighbours=10), 0)
    perfect = search_quality(exact, exact)
    assert perfect.recall == 1.0
    assert perfect.compared >= 1.0
    found = search_quality(build_graph(users, CLUSTERED, 0), exact)
    assert found.recall > 0.9
    assert found.compared < 0.6
    near = CLUSTERED.model_copy(update={"probes": 1})
    worse = search_quality(build_graph(users, near, 0), exact)
    assert worse.recall < found.recall
    assert worse.compared < found.compared
    others, _ = made_users(seed=4, count=600)
    with pytest.raises(ValueError, match="other users"):
        search_quality(build_graph(others, CLUSTERED, 0), exact)


def made_prior():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 3)).astype(np.float32)
    vectors[7] = np.nan
    segment = np.repeat(["a", "b"], 20)
    return fit_prior(vectors, segment, strength=5.0), vectors, segment


def test_who_did_nothing_is_his_segment_and_a_stranger_to_all_segments_is_everybody():
    prior, vectors, _ = made_prior()
    nothing = np.full((2, 3), np.nan, np.float32)
    found = prior.read(nothing, np.array([0, 9]), np.array(["b", "z"]), strength=5.0)
    assert (found == [prior.of_segment[1], prior.of_all]).all()
    shrunk = (vectors[20:].astype(np.float64).sum(axis=0) + 5.0 * prior.of_all) / 25.0
    assert prior.of_segment[1] == pytest.approx(shrunk, abs=1e-6)


@given(st.integers(0, 10**6), st.floats(0.5, 100))
def test_a_vector_moves_from_the_prior_to_itself_as_its_user_does_more(n: int, strength: float):
    prior, vectors, segment = made_prior()
    read = prior.read(vectors[:1], np.array([n]), segment[:1], strength)[0]
    share = n / (n + strength)
    between = share * vectors[0] + (1 - share) * prior.of_segment[0]
    assert read == pytest.approx(between, abs=1e-5)


def test_without_any_vector_there_is_no_prior():
    with pytest.raises(ValueError, match="nobody has a vector"):
        fit_prior(np.full((3, 2), np.nan, np.float32), np.array(["a", "a", "b"]), 1.0)


def test_every_number_of_activities_is_in_one_bucket():
    found = bucket_of(np.array([0, 1, 4, 5, 19, 20, 10**6]))
    assert found.tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert [bucket_name(place) for place in range(len(BUCKETS))] == ["0", "1–4", "5–19", "20+"]
