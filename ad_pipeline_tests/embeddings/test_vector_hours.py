"""Hours publish what the log said by their end, whatever range they were made in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import MissingCheckpoint, sweep, unpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings import encoder_hours
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.encoder_hours import settings_of
from ad_pipeline.embeddings.published import (
    NO_ENCODER,
    ever_published,
    last_known_us,
    published_hours,
    read_hour,
    read_newest,
    read_published,
    user_hashes,
)
from ad_pipeline.embeddings.vector_hours import (
    ON_DEMAND,
    encode_on_demand,
    forget_hours,
    known_users,
)
from ad_pipeline.embeddings.vectors import read_named
from ad_pipeline.warehouse import rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import (
    FIRST_ENCODER,
    HOURS,
    advanced,
    hour_of,
    trained,
    vector_settings,
    warehouse_of,
    with_settings,
)

pytestmark = needs_jax

LAST = HOURS - 1


def digests(market: Market, first: int, last: int) -> list[str]:
    root = market.deployment.vectors
    return [read_hour(root, hour_of(market, hour)).digest for hour in range(first, last)]


def without_vectors(market: Market, folder: Path) -> Market:
    return market.copied_to(folder / "home", "vectors")


def test_hours_made_one_by_one_are_those_made_together(published: Market, tmp_path: Path) -> None:
    market = without_vectors(published, tmp_path)
    for hour in (*range(FIRST_ENCODER), FIRST_ENCODER):
        advanced(market, hour, hour + 1)
    advanced(market, FIRST_ENCODER + 1, FIRST_ENCODER + 2)
    advanced(market, FIRST_ENCODER + 2, HOURS)
    assert digests(market, 0, HOURS) == digests(published, 0, HOURS)
    assert published_hours(market.deployment.vectors) == [
        hour_of(market, hour) for hour in range(HOURS)
    ]
    # Made again, nothing changes.
    advanced(market, LAST, HOURS)
    assert digests(market, 0, HOURS) == digests(published, 0, HOURS)


def changed_log(market: Market, statement: str) -> None:
    with warehouse_of(market).writer() as connection:
        connection.execute(statement)


def test_what_the_log_had_later_changes_no_hour_before(published: Market, tmp_path: Path) -> None:
    """The control plants a row that the log had by the hour's end, and the hour is another one."""
    market = without_vectors(published, tmp_path)
    end_us = hour_of(market, FIRST_ENCODER + 1)
    for table in ("user_activities", "engagements", "impressions"):
        changed_log(market, f"DELETE FROM events.{table} WHERE received_us >= {end_us}")
    advanced(market, 0, FIRST_ENCODER + 1)
    assert digests(market, 0, FIRST_ENCODER + 1) == digests(published, 0, FIRST_ENCODER + 1)
    changed_log(
        market,
        "INSERT INTO events.user_activities BY NAME SELECT * REPLACE ('planted' AS content_id, "
        f"{end_us - 1} AS received_us) FROM events.user_activities "
        "WHERE modality = 'content_view' LIMIT 1",
    )
    advanced(market, FIRST_ENCODER, FIRST_ENCODER + 1)
    assert digests(market, FIRST_ENCODER, FIRST_ENCODER + 1) != digests(
        published, FIRST_ENCODER, FIRST_ENCODER + 1
    )


def test_hours_before_the_first_encoder_have_nobody(published: Market) -> None:
    root = published.deployment.vectors
    none = read_hour(root, hour_of(published, FIRST_ENCODER - 1))
    assert none.version == NO_ENCODER
    assert not none.users.lookup(np.arange(5, dtype=np.uint64)).present.any()
    some = read_hour(root, hour_of(published, FIRST_ENCODER))
    assert some.version == encoder_hours.digest_after(
        published.deployment, hour_of(published, FIRST_ENCODER)
    )
    assert len(some.users.ids) > 50
    assert len(some.engagers.ids) > 5


def test_an_hour_encodes_whom_it_asks_for_and_leaves_the_others(published: Market) -> None:
    deployment, asked = published.deployment, vector_settings(published)
    hour_us = hour_of(published, FIRST_ENCODER + 1)
    before = read_hour(deployment.vectors, hour_us - HOUR_US).users
    after = read_hour(deployment.vectors, hour_us).users
    (known,) = known_users(warehouse_of(published), deployment, hour_us)
    due = known.ids[known.due(before, asked, hour_us)]
    now = after.refreshed_us == last_known_us(hour_us)
    np.testing.assert_array_equal(after.ids[now], np.sort(due))
    assert 0 < now.sum() < len(now) / 2
    others = after.ids[~now]
    np.testing.assert_array_equal(after.lookup(others).vectors, before.lookup(others).vectors)
    encoder = Encoder.open(deployment.checkpoints, after.version)
    alone = encoder.vectors(known.sequences.take(np.flatnonzero(known.ids == due[0])))
    held = after.shards[int(after.layout.shards(due[:1])[0])]
    newest = held.held[np.searchsorted(held.ids, due[0]), 0]
    np.testing.assert_array_equal(newest, alone[0].astype(np.float16))


def test_another_encoder_begins_a_store_in_which_nothing_is_averaged(
    published: Market, tmp_path: Path
) -> None:
    market = published.copied_to(tmp_path / "home")
    other = with_settings(
        market, tmp_path, training={"batch_sequences": 16, "epochs": 1, "seed": 1}
    )
    trained(other, LAST, HOURS)
    (hour,) = advanced(other, LAST, HOURS)
    found = read_newest(other.deployment.vectors)
    assert hour.refresh == "full"
    assert found.version != read_newest(published.deployment.vectors).version
    assert found.engagers.version == found.version
    assert {int(count) for shard in found.users.shards for count in shard.counts} == {1}
    averaged = read_newest(published.deployment.vectors).users
    assert max(int(shard.counts.max()) for shard in averaged.shards) > 1


def test_who_did_nothing_within_the_lookback_leaves_at_a_full_refresh(
    published: Market, tmp_path: Path
) -> None:
    market = published.copied_to(tmp_path / "home")
    shorter = with_settings(market, tmp_path, lookback_hours=3, full_refresh_every_hours=1)
    (hour,) = advanced(shorter, LAST, HOURS)
    (known,) = known_users(warehouse_of(shorter), shorter.deployment, hour_of(shorter, LAST))
    found = read_newest(shorter.deployment.vectors).users
    assert hour.refresh == "full"
    assert 0 < len(found.ids) < len(read_newest(published.deployment.vectors).users.ids)
    enough = vector_settings(shorter).fewest_activities
    assert len(found.ids) == (known.activities >= enough).sum()


def test_who_did_too_little_has_no_vector_and_leaves_at_a_full_refresh(
    published: Market, tmp_path: Path
) -> None:
    """The same log with any activity enough has vectors of those that are missing here."""
    few, any_number = (published.copied_to(tmp_path / name / "home") for name in ("few", "any"))
    few = with_settings(few, tmp_path / "few", fewest_activities=4)
    any_number = with_settings(any_number, tmp_path / "any", fewest_activities=1)
    (known,) = known_users(warehouse_of(few), few.deployment, hour_of(few, LAST))
    did = {number: known.ids[known.activities == number] for number in range(9)}
    assert all(len(did[number]) for number in range(1, 9))
    before = read_hour(published.deployment.vectors, hour_of(few, LAST - 1)).users

    advanced(few, LAST, HOURS)
    incremental = read_newest(few.deployment.vectors).users
    assert np.isin(before.ids, incremental.ids).all()
    too_few = np.concatenate([did[2], did[3]])
    assert (incremental.refreshed_of(too_few) < last_known_us(hour_of(few, LAST))).all()

    for market, fewest in ((few, 4), (any_number, 1)):
        full = with_settings(
            market, market.dataset_file.parent, full_refresh_every_hours=1, fewest_activities=fewest
        )
        (hour,) = advanced(full, LAST, HOURS)
        assert hour.refresh == "full"
        found = read_newest(full.deployment.vectors).users
        np.testing.assert_array_equal(found.ids, np.sort(known.ids[known.activities >= fewest]))
        assert found.lookup(np.concatenate([did[1], too_few])).present.all() == (fewest == 1)
        assert not found.lookup(did[0]).present.any()


def test_an_hour_without_the_one_before_is_refused(published: Market, tmp_path: Path) -> None:
    market = without_vectors(published, tmp_path)
    with pytest.raises(MissingCheckpoint, match="never published"):
        advanced(market, 3, 4)


def keeping(deployment: Deployment, hours: int) -> Deployment:
    """Return a deployment that keeps fewer hours than its file may ask for."""
    dataset = deployment.dataset
    vectors = settings_of(dataset).model_copy(update={"kept_hours": hours})
    settings = dataset.settings.model_copy(update={"user_vectors": vectors})
    return replace(deployment, dataset=dataset.model_copy(update={"settings": settings}))


def test_hours_are_forgotten_with_what_no_other_hour_has(published: Market, tmp_path: Path) -> None:
    market = published.copied_to(tmp_path / "home")
    deployment, end_us = keeping(market.deployment, 2), hour_of(market, HOURS)
    forgotten, swept = forget_hours(deployment, end_us)
    assert forgotten == HOURS - 2
    assert published_hours(deployment.vectors) == [end_us - 2 * HOUR_US, end_us - HOUR_US]
    assert digests(market, HOURS - 2, HOURS) == digests(published, HOURS - 2, HOURS)
    assert swept.removed > 0
    with pytest.raises(MissingCheckpoint):
        read_hour(deployment.vectors, hour_of(market, HOURS - 3))
    assert forget_hours(deployment, end_us)[1].removed == 0


def test_a_pair_that_was_replaced_stays_as_long_as_its_hour(
    published: Market, tmp_path: Path
) -> None:
    """Decisions name it; without its hour, or for who does not look at replaced ones, it goes."""
    market = published.copied_to(tmp_path / "home")
    root, last_us = market.deployment.vectors, hour_of(market, HOURS) - HOUR_US
    replaced = read_newest(root)
    changed_log(
        market,
        "INSERT INTO events.user_activities BY NAME SELECT * REPLACE ('late' AS user_id, "
        f"{last_us} AS received_us) FROM events.user_activities "
        "WHERE modality = 'content_view' LIMIT 2",
    )
    advanced(market, LAST, HOURS)
    assert read_newest(root).digest != replaced.digest

    forget_hours(keeping(market.deployment, 2), last_us + HOUR_US)
    found = read_published(root, replaced.digest)
    np.testing.assert_array_equal(found.users.ids, replaced.users.ids)
    assert replaced.digest not in ever_published(root, last_us + HOUR_US)
    sweep(root)
    with pytest.raises(MissingCheckpoint):
        read_published(root, replaced.digest)


def test_an_hour_whose_encoder_is_not_there_is_refused(published: Market, tmp_path: Path) -> None:
    market = published.copied_to(tmp_path / "home")
    hour_us = hour_of(market, LAST)
    unpoint(market.deployment.checkpoints, encoder_hours.pointer(hour_us))
    with pytest.raises(MissingCheckpoint, match=r"materialize embeddings\.encoder"):
        advanced(market, LAST, HOURS)


def test_who_is_asked_for_gets_a_vector_and_no_published_hour_changes(
    published: Market, tmp_path: Path
) -> None:
    market = published.copied_to(tmp_path / "home")
    deployment, hour_us = market.deployment, hour_of(market, LAST)
    before = read_hour(deployment.vectors, hour_us)
    waiting = before.users.ids[before.users.refreshed_us < last_known_us(hour_us)]
    with warehouse_of(market).reader() as connection:
        texts = rows_of(connection, "SELECT DISTINCT user_id FROM events.impressions ORDER BY ALL")[
            "user_id"
        ].to_pylist()
    asked = [text for text in texts if user_hashes([text])[0] in waiting][:3]
    encode_on_demand(warehouse_of(market), deployment, hour_us, [*asked, "nobody"])
    found = read_named(deployment.vectors, ON_DEMAND)
    assert read_hour(deployment.vectors, hour_us).digest == before.digest
    np.testing.assert_array_equal(found.ids, before.users.ids)
    anew = found.ids[found.refreshed_us > before.users.refreshed_us]
    np.testing.assert_array_equal(anew, np.sort(user_hashes(asked)))
    # Who did too little has none on demand either.
    more = with_settings(market, tmp_path, fewest_activities=16)
    encode_on_demand(warehouse_of(more), more.deployment, hour_us, asked)
    found = read_named(deployment.vectors, ON_DEMAND)
    np.testing.assert_array_equal(found.refreshed_us, before.users.refreshed_us)
    with pytest.raises(MissingCheckpoint, match="no encoder"):
        encode_on_demand(warehouse_of(market), deployment, hour_of(market, 2), asked)
