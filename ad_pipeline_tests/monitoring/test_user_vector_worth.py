"""What vectors are worth is found where it was planted, nowhere else, and as of an hour."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.embeddings.content import id_tokens
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.published import ad_hashes
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.embeddings.training import train
from ad_pipeline.monitoring.user_vectors.cold_start import BUCKETS
from ad_pipeline.monitoring.user_vectors.features import Engagements
from ad_pipeline.monitoring.user_vectors.labelled import UNKNOWN, Impressions, lessons
from ad_pipeline.monitoring.user_vectors.ranker import Split
from ad_pipeline.monitoring.user_vectors.recall import OF_ALL, OF_CLUSTER, SIMILAR_USERS, WAYS
from ad_pipeline.monitoring.user_vectors.study import StudiedLog
from ad_pipeline.monitoring.user_vectors.worth import (
    ABLATION,
    AS_THEY_ARE,
    COLD_START,
    FROM_FEWEST,
    GAIN,
    INTERVAL,
    MATCH,
    RECALL,
    STALENESS,
    STRANGERS,
    WHOLE_OVER,
    WITH_PRIOR,
    Figure,
    Worth,
    worth_of,
)
from ad_pipeline.monitoring.user_vectors.worth_of_log import (
    Asked,
    NothingToStudy,
    ablations,
    record_worth,
    studied_log,
)
from ad_pipeline.monitoring.user_vectors.worth_plots import asked_of, in_words, worth_picture
from ad_pipeline.settings import BatchSettings, TrainingSettings, UserVectorSettings
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import (
    BITS,
    NOW_US,
    activities,
    needs_jax,
    settings_of,
)
from ad_pipeline_tests.embeddings.vector_markets import (
    joined_market,
    publish_rates,
    vector_settings,
    warehouse_of,
)

ENCODER = settings_of("looks", tasks=("click",))
TRAINING = TrainingSettings(batch_sequences=16, dense_rate=0.01, table_rate=0.3, epochs=2)
GRAPH = UserVectorSettings(neighbours=10, popularity_strength=10.0)
SPLIT = Split(NOW_US + 4 * DAY_US, NOW_US + 7 * DAY_US)
TOPICS, ADS, USERS, STRANGE = 4, 16, 300, 40


def planted_log(rows: int = 6_000, seed: int = 0) -> StudiedLog:
    """Return users who look at what they like and click on ads of it, but for some who never look.

    The ranker's own columns are noise and the ad.
    """
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, TOPICS, USERS)
    looker = np.repeat(np.arange(STRANGE, USERS), 30)
    looked = np.where(
        rng.random(len(looker)) < 0.9, taste[looker], rng.integers(0, TOPICS, len(looker))
    )
    when = NOW_US + rng.integers(-8 * DAY_US, 9 * DAY_US, len(looker))
    table = activities(looker, when, np.repeat("looks", len(looker)), looked)
    history = History.of_table(table, ENCODER.modalities)
    user, ad = rng.integers(0, USERS, rows), rng.integers(0, ADS, rows)
    occurred_us = np.sort(NOW_US + rng.integers(0, 9 * DAY_US, rows))
    likes = taste[user] == ad % TOPICS
    labels = (rng.random(rows) < np.where(likes, 0.6, 0.1)).astype(np.int8)
    places = history.places(pa.array([f"u{each:05}" for each in user]))
    shown = Impressions(
        user=places,
        ad=ad,
        occurred_us=occurred_us,
        matured_us=occurred_us + HOUR_US,
        labels=labels,
        dense=rng.normal(size=(rows, 1)),
        category_hashes=ad[:, np.newaxis].astype(np.uint64),
        online_logit=np.zeros(rows),
        dense_names=("noise",),
        category_names=("ad_id",),
    )
    engaged = np.flatnonzero((labels == 1) & (places >= 0))
    topic = pa.array([str(each % TOPICS) for each in range(ADS)])
    ids = ad_hashes([f"ad-{each}" for each in range(ADS)])
    return StudiedLog(
        history=history,
        ad_hashes=ids,
        ad_tokens=id_tokens(topic, "ad.topic", BITS)[:, np.newaxis],
        goals={"click": shown},
        segments={"click": np.full(rows, "all")},
        user_segments=np.full(len(history.users), "all"),
        engagements=Engagements(places[engaged], ad[engaged], occurred_us[engaged] + MINUTE_US),
        first_us=NOW_US - 8 * DAY_US,
        split=SPLIT,
        batch=BatchSettings(minimum_positives=20, minimum_leaf_rows=20, rounds=30),
        gaps_us={"click": HOUR_US},
        engagers_every_us=DAY_US,
    )


@pytest.fixture(scope="module")
def planted() -> StudiedLog:
    return planted_log()


@pytest.fixture(scope="module")
def encoder(planted: StudiedLog) -> Encoder:
    taught = lessons(
        planted.history,
        {"looks": 16},
        planted.ad_tokens,
        planted.goals,
        ("click",),
        (NOW_US, SPLIT.learn_from_us),
        DAY_US,
    )
    return train(ENCODER, TRAINING, taught.sequences, taught.ads, say=lambda _: None).encoder


@pytest.fixture(scope="module")
def worth(planted: StudiedLog, encoder: Encoder) -> Worth:
    return worth_of(planted, encoder, GRAPH, seed=1)


def arms(worth: Worth, question: str) -> dict[tuple[str, str], Figure]:
    return {(each.arm, each.part): each for each in asked_of(worth.figures, "click", question)}


@needs_jax
def test_a_planted_taste_gains_and_another_users_vectors_do_not(worth: Worth) -> None:
    found = arms(worth, GAIN)
    assert found[MATCH, ""].low > 0.05
    assert found[STRANGERS, ""].low <= 0
    assert found[STRANGERS, ""].high < found[MATCH, ""].low
    assert worth.left_out == {}


@needs_jax
def test_labels_that_follow_no_taste_gain_nothing(planted: StudiedLog, encoder: Encoder) -> None:
    shown = planted.goals["click"]
    drawn = np.random.default_rng(5).permutation(shown.labels)
    log = replace(planted, goals={"click": replace(shown, labels=drawn)})
    found = arms(worth_of(log, encoder, GRAPH, seed=1), GAIN)
    assert found[MATCH, ""].low <= 0
    assert abs(found[MATCH, ""].value) < 0.02


@needs_jax
def test_tastes_that_stand_still_age_cheaply_and_every_interval_gains(worth: Worth) -> None:
    found = arms(worth, INTERVAL)
    alone = [each for (_, part), each in found.items() if not part]
    assert [each.arm for each in alone] == ["5 min", "1 h", "6 h", "1 d", "3 d", "7 d"]
    assert min(each.low for each in alone) > 0
    assert len(found) - len(alone) == 5
    (price,) = arms(worth, STALENESS).values()
    minutes = (7 * 24 * 60 - 5) / 2
    assert abs(price.value) * minutes < 0.5 * found["5 min", ""].value
    assert price.low <= price.value <= price.high


@needs_jax
def test_an_interval_that_the_log_is_too_short_for_is_left_out(
    planted: StudiedLog, encoder: Encoder
) -> None:
    short = replace(planted, first_us=SPLIT.learn_from_us - 5 * HOUR_US)
    found = worth_of(short, encoder, GRAPH, seed=1)
    assert [arm for arm, part in arms(found, INTERVAL) if not part] == ["5 min", "1 h"]
    assert "6 h, 1 d, 3 d, 7 d" in found.left_out[INTERVAL]


@needs_jax
def test_who_never_did_anything_gains_nothing_and_who_did_much_gains(worth: Worth) -> None:
    found = arms(worth, COLD_START)
    assert found[AS_THEY_ARE, "20+"].low > 0.05
    for arm in (AS_THEY_ARE, FROM_FEWEST, WITH_PRIOR):
        assert found[arm, "0"].value < 0.3 * found[AS_THEY_ARE, "20+"].value
        own = [each for (of, _), each in found.items() if of == arm]
        assert len(own) <= len(BUCKETS)
        assert sum(each.rows for each in own) == arms(worth, GAIN)[MATCH, ""].rows


@needs_jax
def test_ads_of_similar_users_are_found_more_often_than_those_of_random_ones(worth: Worth) -> None:
    found = arms(worth, RECALL)
    assert [arm for arm, _ in found] == list(WAYS)
    assert found[SIMILAR_USERS, ""].low > found[OF_ALL, ""].high
    # Users of a cluster share a taste; with one cluster for all, the two would be the same.
    assert found[OF_CLUSTER, ""].low > found[OF_ALL, ""].high


@needs_jax
def test_an_encoder_that_lacks_nothing_loses_nothing_and_one_that_learnt_nothing_loses_all(
    planted: StudiedLog, encoder: Encoder
) -> None:
    ablated = {"without nothing": encoder, "without lessons": Encoder.first(ENCODER)}
    found = worth_of(planted, encoder, GRAPH, seed=1, ablated=ablated)
    over = {arm: each for (arm, part), each in arms(found, ABLATION).items() if part == WHOLE_OVER}
    same, blind = over["without nothing"], over["without lessons"]
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    assert blind.low > 0.03
    assert arms(found, ABLATION)["without nothing", ""].value == arms(found, GAIN)[MATCH, ""].value
    (said,) = (each for each in in_words(found.figures, "click") if "Ablation" in each)
    assert "1 of 2" in said
    assert "without lessons" in said
    assert worth_picture(found.figures, "click").startswith(b"\x89PNG")


def test_every_part_that_is_on_is_left_out_once_and_every_modality_left_alone() -> None:
    one = ablations(ENCODER)
    assert set(one) == {f"without {part}" for part in type(ENCODER.enrichment).model_fields}
    two = ablations(settings_of("looks", "clicks"))
    assert set(two) - set(one) == {"only looks", "only clicks"}
    assert [each.name for each in two["only clicks"].modalities] == ["clicks"]
    off = one["without temporal_decay"]
    assert "without temporal_decay" not in ablations(off)
    assert off.enrichment == ENCODER.enrichment.model_copy(update={"temporal_decay": False})


@needs_jax
def test_what_was_found_is_drawn_and_said_and_a_failed_control_is_shouted(worth: Worth) -> None:
    assert worth_picture(worth.figures, "click").startswith(b"\x89PNG")
    said = "\n".join(in_words(worth.figures, "click"))
    assert "the interval is above 0" in said
    assert "IT DOES" not in said

    def spoilt(figures: Sequence[Figure]) -> list[Figure]:
        return [
            replace(each, low=0.01, high=0.03) if each.arm == STRANGERS else each
            for each in figures
        ]

    assert "IT DOES" in next(in_words(spoilt(worth.figures), "click"))


@needs_jax
def test_a_goal_without_rows_to_test_is_left_out_with_its_reason(
    planted: StudiedLog, encoder: Encoder
) -> None:
    shown = planted.goals["click"]
    early = shown.taken(shown.occurred_us < SPLIT.test_from_us)
    log = replace(planted, goals={"click": early})
    found = worth_of(log, encoder, GRAPH, seed=1)
    assert found.figures == ()
    assert "take more hours" in found.left_out["click"]


@needs_jax
def test_vectors_of_users_whom_nobody_knows_are_worth_exactly_nothing(
    planted: StudiedLog, encoder: Encoder
) -> None:
    looked = np.array([NOW_US + 20 * DAY_US])
    table = activities(np.array([1]), looked, np.array(["looks"]), np.array([1]))
    shown, nobody = planted.goals["click"], np.zeros(0, np.int64)
    log = replace(
        planted,
        history=History.of_table(table, ENCODER.modalities),
        goals={"click": replace(shown, user=np.full(len(shown.user), UNKNOWN))},
        user_segments=np.array(["all"]),
        engagements=Engagements(nobody, nobody, nobody),
    )
    found = worth_of(log, encoder, GRAPH, seed=1)
    assert {(each.value, each.low, each.high) for each in found.figures} == {(0.0, 0.0, 0.0)}
    assert list(arms(found, COLD_START)) == [(AS_THEY_ARE, "0"), (FROM_FEWEST, "0")]
    assert list(found.left_out) == [RECALL]


# On a market's log, read from its warehouse.


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market whose labels are joined and whose rates are published."""
    made = joined_market(tmp_path_factory.mktemp("worth"))
    publish_rates(made)
    return made


HOUR = 20


def log_of(market: Market, rows: int = 100_000) -> StudiedLog:
    """Return the market's log as of the end of an hour."""
    encoder = Encoder.first(vector_settings(market).encoder, seed=1)
    end_us = market.start_us + (HOUR + 1) * HOUR_US
    split = Split(market.start_us + 8 * HOUR_US, market.start_us + 12 * HOUR_US)
    return studied_log(warehouse_of(market), market.deployment, encoder, split, end_us - 1, rows)


def equal(left: Any, right: Any) -> bool:
    """Tell whether two laid out logs hold the same bytes."""
    if hasattr(left, "__dataclass_fields__"):
        names = [field.name for field in fields(left)]
        return all(equal(getattr(left, name), getattr(right, name)) for name in names)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    return left == right


def without(market: Market, folder: Path, *conditions: str) -> Market:
    """Return a copy whose warehouse lacks some rows, each ``table WHERE ...``."""
    copied = market.copied_to(folder)
    with Warehouse(copied.deployment.warehouse).writer() as connection:
        for condition in conditions:
            connection.execute(f"DELETE FROM {condition}")
    return copied


@needs_jax
def test_what_our_log_had_later_changes_nothing(market: Market, tmp_path: Path) -> None:
    end_us = market.start_us + (HOUR + 1) * HOUR_US
    later = [
        f"events.{name} WHERE received_us >= {end_us}"
        for name in ("impressions", "engagements", "user_activities")
    ]
    later.append(f"examples.labelled_impressions WHERE matured_us >= {end_us}")
    found = log_of(market)
    assert equal(found, log_of(without(market, tmp_path / "cut", *later)))
    # Planted fault: what it had in the last hour does change it.
    last = f"events.user_activities WHERE received_us >= {end_us - HOUR_US}"
    assert not equal(found, log_of(without(market, tmp_path / "torn", last)))


@needs_jax
def test_rankers_read_neither_vectors_nor_what_has_read_them(market: Market) -> None:
    shown = log_of(market).goals["click"]
    assert not any("vector" in name for name in (*shown.dense_names, *shown.category_names))
    assert shown.dense.shape == (len(shown.labels), len(shown.dense_names))
    assert np.isfinite(shown.dense).any()
    assert not shown.online_logit.any()


@needs_jax
def test_rows_are_drawn_by_hash_down_to_about_what_is_asked(market: Market) -> None:
    every, some = log_of(market), log_of(market, rows=500)
    assert 0 < len(some.goals["click"].labels) < len(every.goals["click"].labels)
    assert abs(len(some.goals["click"].labels) - 500) < 120


@needs_jax
def test_without_an_encoder_before_the_hours_it_says_so(market: Market) -> None:
    warehouse, deployment = warehouse_of(market), market.deployment
    with pytest.raises(NothingToStudy, match=r"no encoder was in force after 20.*fewer hours"):
        record_worth(warehouse, deployment, Asked(hours=4))
    with pytest.raises(NothingToStudy, match="not sealed yet"):
        record_worth(warehouse, deployment, Asked(hour_us=market.end_us))
