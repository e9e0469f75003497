"""Users dealt to parts: nothing is lost, and no published byte says how many parts there were."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings import parts as parts_module
from ad_pipeline.embeddings.parts import MOST_BITS, Part, Parts, part_bits, read_parts
from ad_pipeline.embeddings.published import last_known_us, read_hour, user_hashes
from ad_pipeline.embeddings.sequences import Sequences
from ad_pipeline.embeddings.vectors import Codec, Layout
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_users import made_ids
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import (
    HOURS,
    advanced,
    hour_of,
    vector_settings,
    warehouse_of,
    with_settings,
)

LAST = HOURS - 1


def digests(market: Market) -> list[str]:
    root = market.deployment.vectors
    return [read_hour(root, hour_of(market, hour)).digest for hour in range(HOURS)]


def split(market: Market, folder: Path, in_memory: int, **changes: Any) -> Market:
    """Return the market without vectors, to be made with so many activities in memory."""
    copied = market.copied_to(folder / "home", "vectors")
    return with_settings(copied, folder, activities_in_memory=in_memory, **changes)


def reading(market: Market, hour: int = LAST) -> AbstractContextManager[Parts]:
    settings, as_of_us = vector_settings(market), last_known_us(hour_of(market, hour))
    from_us = as_of_us - settings.lookback_hours * HOUR_US
    return read_parts(warehouse_of(market), market.deployment, settings, from_us, as_of_us)


def in_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that fills with the bits of what is read."""
    seen: list[int] = []

    def counted(activities: int, in_memory: int) -> int:
        seen.append(part_bits(activities, in_memory))
        return seen[-1]

    monkeypatch.setattr(parts_module, "part_bits", counted)
    return seen


@needs_jax
@pytest.mark.parametrize(("in_memory", "bits"), [(700, 1), (70, 4)])
def test_vectors_are_the_same_to_the_byte_in_any_number_of_parts(
    published: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int, bits: int
) -> None:
    """Users and engagers, every hour: stores of two shards, in as many parts and in more."""
    seen = in_parts(monkeypatch)
    market = split(published, tmp_path, in_memory)
    advanced(market, 0, HOURS)
    assert seen == [bits]
    assert digests(market) == digests(published)
    assert not list(market.deployment.home.glob(".parts-*"))


@needs_jax
def test_who_leaves_and_who_stays_is_the_same_in_any_number_of_parts(
    published: Market, tmp_path: Path
) -> None:
    """Full refreshes that continue a store, of a lookback that users drop out of."""
    changes = {"full_refresh_every_hours": 2, "lookback_hours": 3}
    found: list[list[str]] = []
    for name, in_memory in (("one", 10_000), ("many", 40)):
        market = split(published, tmp_path / name, in_memory, **changes)
        advanced(market, 0, HOURS)
        found.append(digests(market))
        root = market.deployment.vectors
        before, after = (read_hour(root, hour_of(market, LAST - gap)).users for gap in (2, 1))
        assert set(before.ids.tolist()) - set(after.ids.tolist())
        assert max(int(shard.counts.max()) for shard in after.shards) == 3
    assert found[0] == found[1]
    assert found[0] != digests(published)


@needs_jax
def test_a_part_that_is_passed_over_would_show(
    published: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    whole = Parts.of_shard

    def without_last(self: Parts, number: int, shard_bits: int) -> range:
        found = whole(self, number, shard_bits)
        return found[:-1] if number == 1 else found

    market = split(published, tmp_path, 70)
    monkeypatch.setattr(Parts, "of_shard", without_last)
    advanced(market, 0, HOURS)
    assert digests(market)[-1] != digests(published)[-1]


def shown(sequences: Sequences) -> dict[str, list[list[np.ndarray]]]:
    """Return what sequences hold, by user and modality."""
    users = sequences.history.users.to_pylist()
    found: dict[str, list[list[np.ndarray]]] = {}
    for row, user in enumerate(sequences.user):
        found[users[user]] = [
            [getattr(of, name)[first[row] : last[row]] for name in ("occurred_us", "tokens")]
            for of, (first, last) in zip(
                sequences.history.modalities.values(), sequences.spans.values(), strict=True
            )
        ]
    return found


def cut(part: Part, market: Market) -> dict[str, list[list[np.ndarray]]]:
    longest = {each.name: each.longest for each in vector_settings(market).encoder.modalities}
    return shown(part.history.sequences(last_known_us(hour_of(market, LAST)), longest))


@pytest.mark.parametrize("opened", [1, 2], ids=["as it was laid out", "as it was found again"])
def test_parts_together_hold_what_one_part_holds(
    joined: Market, tmp_path: Path, opened: int
) -> None:
    market = with_settings(joined, tmp_path, activities_in_memory=40)
    with reading(joined) as parts:
        (whole,) = parts
        expected = cut(whole, joined)
    found: dict[str, list[list[np.ndarray]]] = {}
    engaged = []
    with reading(market) as parts:
        assert parts.bits == 5
        for _ in range(opened - 1):
            for _ in parts:
                pass
        for number, part in enumerate(parts):
            assert (part.ids >> np.uint64(64 - parts.bits) == number).all()
            np.testing.assert_array_equal(part.ids, user_hashes(part.history.users))
            of_part = cut(part, market)
            assert not of_part.keys() & found.keys()
            found |= of_part
            each = part.engagements
            engaged += zip(each.users, each.ads, each.received_us, strict=True)
    assert found.keys() == expected.keys()
    for user, modalities in found.items():
        for own, whole_own in zip(modalities, expected[user], strict=True):
            for array, whole_array in zip(own, whole_own, strict=True):
                np.testing.assert_array_equal(array, whole_array)
    each = whole.engagements
    assert sorted(engaged) == sorted(zip(each.users, each.ads, each.received_us, strict=True))
    assert len(engaged) > 50


def test_a_log_that_fits_is_one_part_and_touches_no_disk(
    joined: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a folder was asked for")

    monkeypatch.setattr(parts_module, "TemporaryDirectory", refused)
    with reading(joined) as parts:
        assert parts.bits == 0
        assert len(parts.part(0).ids) > 100


def test_parts_without_anybody_are_read(joined: Market, tmp_path: Path) -> None:
    market = with_settings(joined, tmp_path, activities_in_memory=1)
    with reading(market, 1) as parts:
        counts = [len(part.ids) for part in parts]
        again = [len(part.ids) for part in parts]
    assert 0 in counts
    assert counts == again
    assert sum(counts) > 0


@given(st.integers(0, 10**12), st.integers(1, 10**8))
def test_there_are_no_more_parts_than_memory_asks_for(activities: int, in_memory: int) -> None:
    bits = part_bits(activities, in_memory)
    assert 0 <= bits <= MOST_BITS
    assert bits == MOST_BITS or activities <= in_memory << bits
    assert bits == 0 or activities > in_memory << (bits - 1)


def unread(number: int) -> Part:
    raise AssertionError(f"part {number} was read")


@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(0, 6))
def test_a_shards_users_are_in_its_parts(seed: int, bits: int, shard_bits: int) -> None:
    ids = made_ids(np.random.default_rng(seed), 50)
    shards = Layout("made", Codec(1, None, 0.0), shard_bits, 1).shards(ids)
    of_parts = Layout("made", Codec(1, None, 0.0), bits, 1).shards(ids)
    parts = Parts(bits, unread)
    for shard in range(2**shard_bits):
        assert set(of_parts[shards == shard]) <= set(parts.of_shard(shard, shard_bits))
    asked = sum(len(parts.of_shard(shard, shard_bits)) for shard in range(2**shard_bits))
    assert asked == max(2**bits, 2**shard_bits)
