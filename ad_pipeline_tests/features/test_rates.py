"""Counts are exact whichever way they were arrived at, and no row sees what was not yet due."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline import hashing
from ad_pipeline.checkpoints import MissingCheckpoint, resolve
from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.features import rates
from ad_pipeline.features.encoding import FeatureContract, entity_hashes
from ad_pipeline_tests.features.logs import (
    HOURS,
    START_US,
    Engagement,
    Impression,
    Log,
    column_table,
    logs,
    tiny_dataset,
    warehouse_of,
)

END_US = START_US + HOURS * HOUR_US

BUSY = Log(
    tuple(
        Impression(START_US + k * HOUR_US // 3, f"u{k % 3}", None if k % 5 == 0 else f"a{k % 4}")
        for k in range(3 * HOURS)
    ),
    tuple(
        Engagement(START_US + k * HOUR_US // 2, k, "purchase" if k % 3 == 0 else "click")
        for k in range(2 * HOURS)
    ),
)


def counted_by_hand(
    log: Log, hour_us: int, window_hours: int
) -> dict[tuple[str, str | None], list]:
    """Count a window the plain way: (entity, value) to [anchors, engagements] of both goals."""
    end = hour_us + HOUR_US
    start = end - window_hours * HOUR_US
    counts: Counter[tuple[str, str | None, int]] = Counter()
    events = [(row.received_us, row, (0,)) for row in log.impressions]
    events += [
        (row.received_us, log.impressions[row.impression], (1, 2) if row.goal == "click" else (3,))
        for row in log.engagements
    ]
    for moment, shown, places in events:
        if start <= moment < end:
            for place in places:
                counts["user_id", shown.user, place] += 1
                counts["ad_id", shown.ad, place] += 1
    return {key[:2]: [counts[(*key[:2], place)] for place in range(4)] for key in counts}


def as_keys(counts: dict[tuple[str, str | None], list]) -> dict[int, list]:
    return {
        int(hashing.hash_values([value], hashing.seed_of(entity))[0]): found
        for (entity, value), found in counts.items()
    }


def stored(snapshot: rates.RateSnapshot) -> dict[int, list]:
    return dict(zip(snapshot.keys.tolist(), snapshot.counts.tolist(), strict=True))


@settings(deadline=None, max_examples=8)
@given(logs(), st.integers(1, 5), st.integers(1, HOURS), st.sampled_from([2, 3, HOURS]))
def test_advancing_hour_by_hour_equals_recounting_the_window(
    log: Log, window_hours: int, split: int, chunk_hours: int
) -> None:
    """Also when the range is done in two goes, and in chunks of any size."""
    dataset = tiny_dataset(window_hours)
    contract = FeatureContract.from_dataset(dataset)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        warehouse = warehouse_of(root, log)
        middle = START_US + split * HOUR_US
        published = [
            hour
            for start, end in ((START_US, middle), (middle, END_US))
            for hour in rates.advance_hours(
                warehouse, root, contract, dataset, start, end, chunk_hours=chunk_hours
            )
        ]
        assert len(published) == HOURS
        for hour in published:
            snapshot = rates.read_hour(root, hour.snapshot.hour_us)
            expected = counted_by_hand(log, snapshot.hour_us, window_hours)
            assert stored(snapshot) == as_keys(expected)
            users = [found for (entity, _), found in expected.items() if entity == "user_id"]
            assert snapshot.totals.tolist() == np.sum([[0] * 4, *users], axis=0).tolist()
            assert (np.diff(snapshot.keys.astype(object)) > 0).all()
            assert snapshot.counts.any(axis=1).all()
        assert sum(hour.impressions for hour in published) == len(log.impressions)
        assert sum(hour.engagements for hour in published) == len(log.engagements)


@settings(deadline=None, max_examples=8)
@given(logs(), st.integers(1, 5))
def test_every_snapshot_equals_the_recount_in_sql(log: Log, window_hours: int) -> None:
    dataset = tiny_dataset(window_hours)
    contract = FeatureContract.from_dataset(dataset)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        warehouse = warehouse_of(root, log)
        published = list(rates.advance_hours(warehouse, root, contract, dataset, START_US, END_US))
        with warehouse.reader() as connection:
            for hour in published:
                recounted = rates.recount(connection, contract, hour.snapshot.hour_us)
                found = rates.differences(contract, hour.snapshot, recounted)
                assert found.none, found


@pytest.fixture
def published(tmp_path: Path) -> tuple[FeatureContract, rates.RateSnapshot, pa.Table]:
    """One snapshot of the busy log, and its recount."""
    dataset = tiny_dataset()
    contract = FeatureContract.from_dataset(dataset)
    warehouse = warehouse_of(tmp_path, BUSY)
    *_, last = rates.advance_hours(warehouse, tmp_path, contract, dataset, START_US, END_US)
    with warehouse.reader() as connection:
        recounted = rates.recount(connection, contract, last.snapshot.hour_us)
    return contract, last.snapshot, recounted


def test_one_changed_count_is_caught(
    published: tuple[FeatureContract, rates.RateSnapshot, pa.Table],
) -> None:
    contract, snapshot, recounted = published
    assert rates.differences(contract, snapshot, recounted).none
    for row in range(snapshot.keys.size):
        for column in range(snapshot.counts.shape[1]):
            counts = snapshot.counts.copy()
            counts[row, column] += 1
            found = rates.differences(contract, replace(snapshot, counts=counts), recounted)
            assert len(found.mismatched) + found.extra == 1


def test_a_lost_entity_an_invented_one_and_a_wrong_prior_are_caught(
    published: tuple[FeatureContract, rates.RateSnapshot, pa.Table],
) -> None:
    contract, snapshot, recounted = published
    lost = replace(snapshot, keys=snapshot.keys[1:], counts=snapshot.counts[1:])
    assert rates.differences(contract, lost, recounted).missing
    last = np.array([2**64 - 1], np.uint64)
    invented = replace(
        snapshot,
        keys=np.append(snapshot.keys, last),
        counts=np.append(snapshot.counts, snapshot.counts[:1], axis=0),
    )
    assert rates.differences(contract, invented, recounted).extra == 1
    wrong = replace(snapshot, totals=snapshot.totals + 1)
    assert rates.differences(contract, wrong, recounted).totals_differ


def test_hour_counts_and_advance_give_what_the_warehouse_gives(tmp_path: Path) -> None:
    """The arithmetic without tables, as a server that keeps its own counts would use it."""
    dataset = tiny_dataset(window_hours=2)
    contract = FeatureContract.from_dataset(dataset)
    warehouse = warehouse_of(tmp_path, BUSY)
    snapshot = rates.RateSnapshot.empty(contract, START_US - HOUR_US)
    deltas: list[rates.HourCounts] = []
    for hour in rates.advance_hours(warehouse, tmp_path, contract, dataset, START_US, END_US):
        now = hour.snapshot.hour_us
        of_hour = {
            goal: Log(
                tuple(
                    BUSY.impressions[row.impression]
                    for row in BUSY.engagements
                    if hour_of(row.received_us) == now and row.goal == goal
                ),
                (),
            )
            for goal in ("click", "purchase")
        }
        shown = Log(tuple(r for r in BUSY.impressions if hour_of(r.received_us) == now), ())
        deltas.append(
            rates.hour_counts(
                contract,
                now,
                column_table(shown),
                {goal: column_table(log) for goal, log in of_hour.items()},
            )
        )
        expired = deltas[-3] if len(deltas) > 2 else None
        snapshot = rates.advance(snapshot, deltas[-1], expired)
        assert stored(snapshot) == stored(hour.snapshot)
        np.testing.assert_array_equal(snapshot.totals, hour.snapshot.totals)


def test_a_rerun_writes_the_same_checkpoints(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    contract = FeatureContract.from_dataset(dataset)
    warehouse = warehouse_of(tmp_path, BUSY)

    def run(root: Path, start: int) -> list[str]:
        hours = rates.advance_hours(warehouse, root, contract, dataset, start, END_US)
        return [hour.digest for hour in hours]

    first = run(tmp_path, START_US)
    assert run(tmp_path, START_US + 4 * HOUR_US) == first[4:]
    assert run(tmp_path / "elsewhere", START_US) == first
    assert resolve(tmp_path, rates.pointer(END_US - HOUR_US)) == first[-1]


def test_a_range_before_the_dataset_starts_is_cut_to_its_start(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    contract = FeatureContract.from_dataset(dataset)
    hours = rates.advance_hours(
        warehouse_of(tmp_path, BUSY), tmp_path, contract, dataset, START_US - 5 * HOUR_US, END_US
    )
    assert next(hours).snapshot.hour_us == START_US


def test_a_gap_before_a_range_is_an_error_that_names_both_hours(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    contract = FeatureContract.from_dataset(dataset)
    warehouse = warehouse_of(tmp_path, BUSY)
    later = START_US + 2 * HOUR_US
    with pytest.raises(MissingCheckpoint, match=r"2026-11-01-02:00.*2026-11-01-01:00.*from 2026"):
        list(rates.advance_hours(warehouse, tmp_path, contract, dataset, later, END_US))


def test_snapshots_of_another_contract_are_refused(tmp_path: Path) -> None:
    dataset = tiny_dataset(window_hours=3)
    contract = FeatureContract.from_dataset(dataset)
    warehouse = warehouse_of(tmp_path, BUSY)
    *_, last = rates.advance_hours(
        warehouse, tmp_path, contract, dataset, START_US, START_US + 2 * HOUR_US
    )
    other = replace(contract, rate_window_hours=4)
    with pytest.raises(rates.WrongSnapshot, match=r"rebuild features\.rates"):
        rates.counts_of(other, last.snapshot, np.zeros((1, 2), np.uint64))
    with pytest.raises(rates.WrongSnapshot, match=r"rebuild features\.rates"):
        list(
            rates.advance_hours(warehouse, tmp_path, other, dataset, START_US + 2 * HOUR_US, END_US)
        )
    same_counts = replace(contract, crosses=(), rate_strength=7.0, rate_lag_hours=9)
    rates.check_contract(same_counts, last.snapshot)


def test_an_engagement_without_its_impression_is_an_error(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    orphan = Log(BUSY.impressions, (Engagement(START_US, 999, "click"),))
    with pytest.raises(ValueError, match=r"1 rows of events\.engagements.*have no impression"):
        list(
            rates.advance_hours(
                warehouse_of(tmp_path, orphan),
                tmp_path,
                FeatureContract.from_dataset(dataset),
                dataset,
                START_US,
                END_US,
            )
        )


def _hour(contract: FeatureContract, hour_us: int, users: list[str]) -> rates.HourCounts:
    log = Log(tuple(Impression(hour_us, user, "a") for user in users), ())
    return rates.hour_counts(contract, hour_us, column_table(log), {})


def test_subtracting_what_was_never_added_is_an_error() -> None:
    contract = FeatureContract.from_dataset(tiny_dataset(window_hours=1))
    empty = rates.RateSnapshot.empty(contract, START_US - HOUR_US)
    first = rates.advance(empty, _hour(contract, START_US, ["u"]), None)
    nobody = _hour(contract, START_US + HOUR_US, [])
    for users in (["u", "u"], ["stranger"]):
        with pytest.raises(rates.WrongSnapshot, match="counts more than the window held"):
            rates.advance(first, nobody, _hour(contract, START_US, users))


def test_hours_out_of_order_are_an_error() -> None:
    contract = FeatureContract.from_dataset(tiny_dataset(window_hours=1))
    empty = rates.RateSnapshot.empty(contract, START_US - HOUR_US)
    with pytest.raises(rates.WrongSnapshot, match="does not follow"):
        rates.advance(empty, _hour(contract, START_US + HOUR_US, ["u"]), None)
    with pytest.raises(rates.WrongSnapshot, match="not the one that leaves"):
        rates.advance(empty, _hour(contract, START_US, ["u"]), _hour(contract, START_US, ["u"]))


def test_a_count_past_int32_is_an_error() -> None:
    contract = FeatureContract.from_dataset(tiny_dataset())
    delta = _hour(contract, START_US, ["u"])
    empty = rates.RateSnapshot.empty(contract, START_US - HOUR_US)
    full = replace(
        empty, keys=delta.keys, counts=np.full_like(delta.counts, np.iinfo(np.int32).max)
    )
    with pytest.raises(OverflowError, match=r"shorten rates\.window_hours"):
        rates.advance(full, delta, None)


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 9), max_size=40),
    st.lists(st.integers(0, 2**64 - 1), max_size=10),
)
def test_lookup_finds_what_a_dictionary_finds(held: dict[int, int], strangers: list[int]) -> None:
    contract = FeatureContract.from_dataset(tiny_dataset())
    keys = np.array(sorted(held), np.uint64)
    snapshot = replace(
        rates.RateSnapshot.empty(contract, START_US),
        keys=keys,
        counts=np.array([[held[int(key)]] * 4 for key in keys], np.int32).reshape(-1, 4),
    )
    asked = [*held, *strangers]
    found = rates.lookup(snapshot, np.array(asked, np.uint64))
    assert found.tolist() == [[held.get(key, 0)] * 4 for key in asked]


def test_each_row_gets_the_snapshot_that_was_due_when_it_occurred(tmp_path: Path) -> None:
    """One more hour of lag, and no row may see an hour that was not yet published."""
    dataset = tiny_dataset(window_hours=2)
    contract = FeatureContract.from_dataset(dataset)
    warehouse = warehouse_of(tmp_path, BUSY)
    list(rates.advance_hours(warehouse, tmp_path, contract, dataset, START_US, END_US))
    moments = np.array([row.received_us for row in BUSY.impressions])[::-1].copy()
    hashes = entity_hashes(contract, column_table(BUSY))[::-1].copy()
    for lag in (0, 1, 3):
        lagging = replace(contract, rate_lag_hours=lag)
        found = rates.counts_at(lagging, tmp_path, START_US, hashes, moments)
        for i, moment in enumerate(moments.tolist()):
            due = hour_of(moment) - (1 + lag) * HOUR_US
            expected = as_keys(counted_by_hand(BUSY, due, 2)) if due >= START_US else {}
            assert found.counts[i].tolist() == [
                expected.get(int(key), [0] * 4) for key in hashes[i]
            ]


def test_a_snapshot_that_was_due_and_is_missing_is_an_error(tmp_path: Path) -> None:
    contract = FeatureContract.from_dataset(tiny_dataset())
    with pytest.raises(MissingCheckpoint):
        rates.counts_at(
            contract,
            tmp_path,
            START_US,
            np.zeros((1, 2), np.uint64),
            np.array([START_US + 3 * HOUR_US]),
        )
