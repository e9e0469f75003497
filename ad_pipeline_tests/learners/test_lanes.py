"""Priority lanes: nothing lost or twice, engagements first, and any checkpoint may lie between."""

from collections.abc import Callable, Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.examples.strategies import KINDS
from ad_pipeline.learners.delayed.shown_examples import POSITIVE_KINDS, recency_weights
from ad_pipeline.learners.online.lanes import (
    ENGAGEMENT_KINDS,
    LANES,
    Division,
    LaneRows,
    Lanes,
    divide,
    is_waiting_array,
)

Divide = Callable[[np.ndarray, int, int | None], Division]

SLICE_US = 10 * MINUTE_US
WIDTH = 3

few = hypothesis_settings(max_examples=200, deadline=None)
kinds = st.lists(st.booleans(), max_size=60)
capacities = st.one_of(st.none(), st.integers(1, 70))
streams = st.lists(st.lists(st.booleans(), max_size=12), min_size=1, max_size=12)
"""By slice: which of its rows are engagements."""


def rows_of(slices: list[list[bool]]) -> list[LaneRows]:
    """Return the rows of each slice; the first slot of a row says which it is."""
    found, number = [], 0
    for place, engagements in enumerate(slices):
        n = len(engagements)
        ids = np.arange(number, number + n)
        found.append(
            LaneRows(
                slots=np.tile(ids.astype(np.uint32)[:, None], (1, WIDTH)),
                labels=(ids % 2).astype(np.uint8),
                weights=1.0 + ids,
                # Several rows share a moment: then the order of the log decides.
                emit_us=place * SLICE_US + np.arange(n) // 3,
                is_engagement=np.array(engagements, dtype=bool),
            )
        )
        number += n
    return found


def ids_of(rows: LaneRows) -> list[int]:
    return [slots[0] for slots in rows.slots.tolist()]


# --- one micro-batch ----------------------------------------------------------------------------


def broken_rules(
    division: Division, is_engagement: np.ndarray, waited: int, capacity: int | None
) -> list[str]:
    """Say which of the promises of a division do not hold."""
    rows = len(is_engagement)
    learnt, waiting = division.learnt.tolist(), division.waiting.tolist()
    is_learnt = np.isin(np.arange(rows), learnt)
    is_fresh = np.arange(rows) >= waited
    broken = []
    if sorted(learnt + waiting) != list(range(rows)):
        broken.append("a row is lost or there twice")
    if len(learnt) != min(rows, rows if capacity is None else capacity):
        broken.append("the capacity is not used, or not kept")
    if learnt != sorted(learnt) or waiting != sorted(waiting):
        broken.append("the order is not that of the log")
    if (is_engagement & ~is_learnt).any() and (~is_engagement & is_learnt).any():
        broken.append("an engagement waits while a negative is learnt")
    for engagement in (True, False):
        of_kind = is_engagement == engagement
        if (of_kind & is_fresh & ~is_learnt).any() and (of_kind & ~is_fresh & is_learnt).any():
            broken.append("a fresh row waits behind a backlog of its kind")
        for fresh in (True, False):
            lane = is_learnt[of_kind & (is_fresh == fresh)]
            if (np.diff(lane.astype(int)) > 0).any():
                broken.append("a younger row of a lane goes before an older one")
    lanes = np.where(is_engagement, 0, 2) + ~is_fresh
    if division.by_lane.tolist() != np.bincount(lanes[is_learnt], minlength=4).tolist():
        broken.append("the counts are not those of the lanes")
    return broken


@few
@given(engagements=kinds, waited=st.integers(0, 60), capacity=capacities)
def test_a_division_keeps_every_promise(
    engagements: list[bool], waited: int, capacity: int | None
) -> None:
    is_engagement = np.array(engagements, dtype=bool)
    waited = min(waited, len(engagements))
    division = divide(is_engagement, waited, capacity)
    assert broken_rules(division, is_engagement, waited, capacity) == []
    if capacity is None:
        assert division.learnt.tolist() == list(range(len(engagements)))


def _by_places(is_engagement: np.ndarray, waited: int, learnt: np.ndarray) -> Division:
    lanes = np.where(is_engagement, 0, 2) + (np.arange(len(is_engagement)) < waited)
    waiting = np.setdiff1d(np.arange(len(is_engagement)), learnt)
    return Division(learnt, waiting, np.bincount(lanes[learnt], minlength=4))


def first_come_first_served(is_engagement: np.ndarray, waited: int, _: int | None) -> Division:
    return _by_places(is_engagement, waited, np.arange(CAPACITY))


def backlog_first(is_engagement: np.ndarray, waited: int, _: int | None) -> Division:
    lanes = np.where(is_engagement, 0, 2) + (np.arange(len(is_engagement)) >= waited)
    return _by_places(is_engagement, waited, np.sort(np.argsort(lanes, kind="stable")[:CAPACITY]))


def newest_first(is_engagement: np.ndarray, waited: int, _: int | None) -> Division:
    lanes = np.where(is_engagement, 0, 2) + (np.arange(len(is_engagement)) < waited)
    places = np.lexsort((-np.arange(len(lanes)), lanes))[:CAPACITY]
    return _by_places(is_engagement, waited, np.sort(places))


def lane_by_lane(is_engagement: np.ndarray, waited: int, capacity: int | None) -> Division:
    right = divide(is_engagement, waited, capacity)
    lanes = np.where(is_engagement, 0, 2) + (np.arange(len(is_engagement)) < waited)
    return _by_places(
        is_engagement, waited, right.learnt[np.argsort(lanes[right.learnt], kind="stable")]
    )


def drops_what_waits(is_engagement: np.ndarray, waited: int, capacity: int | None) -> Division:
    right = divide(is_engagement, waited, capacity)
    return Division(right.learnt, right.waiting[:0], right.by_lane)


CAPACITY = 5


@pytest.mark.parametrize(
    ("faulty", "promise"),
    [
        (first_come_first_served, "an engagement waits while a negative is learnt"),
        (backlog_first, "a fresh row waits behind a backlog of its kind"),
        (newest_first, "a younger row of a lane goes before an older one"),
        (lane_by_lane, "the order is not that of the log"),
        (drops_what_waits, "a row is lost or there twice"),
    ],
)
def test_a_faulty_division_breaks_its_promise(faulty: Divide, promise: str) -> None:
    is_engagement = np.array([0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0], dtype=bool)
    assert broken_rules(divide(is_engagement, 6, CAPACITY), is_engagement, 6, CAPACITY) == []
    assert promise in broken_rules(faulty(is_engagement, 6, CAPACITY), is_engagement, 6, CAPACITY)


def test_lanes_are_filled_in_their_order_and_learnt_in_the_order_of_the_log() -> None:
    is_engagement = np.array([0, 1, 0, 1, 0, 1, 0], dtype=bool)  # the first four waited
    learnt = {n: divide(is_engagement, 4, n).learnt.tolist() for n in range(1, 8)}
    assert learnt == {
        1: [5],
        2: [1, 5],
        3: [1, 3, 5],
        4: [1, 3, 4, 5],
        5: [1, 3, 4, 5, 6],
        6: [0, 1, 3, 4, 5, 6],
        7: [0, 1, 2, 3, 4, 5, 6],
    }
    assert divide(is_engagement, 4, 6).by_lane.tolist() == [1, 2, 2, 1]
    assert len(LANES) == 4


def test_a_capacity_of_nothing_and_more_waiting_than_rows_are_refused() -> None:
    one = np.ones(1, dtype=bool)
    with pytest.raises(ValueError, match="at least 1"):
        divide(one, 0, 0)
    with pytest.raises(ValueError, match="2 of 1 rows waited"):
        divide(one, 2, None)


def test_every_kind_of_example_has_a_lane() -> None:
    assert ENGAGEMENT_KINDS.issubset(KINDS)
    assert set(POSITIVE_KINDS) < ENGAGEMENT_KINDS


# --- a stream of them ---------------------------------------------------------------------------


def run(slices: list[LaneRows], capacity: int | None, cuts: Collection[int] = ()) -> list:
    """Return what every slice learns and how many rows wait behind it.

    Before the slices in ``cuts`` the lanes go through a checkpoint.
    """
    lanes = Lanes(LaneRows.none(), capacity)
    told = []
    for place, fresh in enumerate(slices):
        if place in cuts:
            arrays = lanes.state()
            assert all(is_waiting_array(name) for name in arrays)
            assert not any(array.dtype.hasobject for array in arrays.values())
            assert bool(arrays) == (capacity is not None)
            lanes = Lanes.restore(arrays, capacity)
        learnt = lanes.next_batch(fresh)
        described = lanes.described((place + 1) * SLICE_US) | {"by_lane": lanes.by_lane.tolist()}
        told.append((learnt.to_arrays(), described if capacity else None))
    return [
        ({name: array.tolist() for name, array in arrays.items()}, described)
        for arrays, described in told
    ]


@few
@given(slices=streams, capacity=capacities, cuts=st.sets(st.integers(0, 12)))
def test_a_stream_cut_at_any_checkpoint_learns_as_if_uninterrupted(
    slices: list[list[bool]], capacity: int | None, cuts: set[int]
) -> None:
    rows = rows_of(slices)
    assert run(rows, capacity, cuts) == run(rows, capacity)


@few
@given(slices=streams, capacity=st.integers(1, 14))
def test_every_row_is_learnt_once_when_the_stream_calms_down(
    slices: list[list[bool]], capacity: int
) -> None:
    rows = rows_of(slices)
    total = sum(map(len, slices))
    lanes = Lanes(LaneRows.none(), capacity)
    calm = [LaneRows.none()] * (total + 1)
    batches = [lanes.next_batch(fresh) for fresh in (*rows, *calm)]
    assert all(len(batch) <= capacity for batch in batches)
    assert sorted(i for batch in batches for i in ids_of(batch)) == list(range(total))
    counts = lanes.counts_taken()
    assert sum(counts.values()) == total
    assert counts["fresh engagements"] + counts["waiting engagements"] == sum(map(sum, slices))
    assert set(lanes.counts_taken().values()) == {0}
    for batch in batches:  # the columns of a row stay together
        assert batch.weights.tolist() == [1.0 + i for i in ids_of(batch)]


@few
@given(slices=streams)
def test_without_a_capacity_and_with_a_large_one_rows_are_learnt_as_they_come(
    slices: list[list[bool]],
) -> None:
    rows = rows_of(slices)
    for capacity in (None, 12):
        learnt = [arrays["waiting_slots"] for arrays, _ in run(rows, capacity)]
        assert learnt == [fresh.slots.tolist() for fresh in rows]


@few
@given(slices=streams, capacity=st.integers(1, 14), end=st.integers(1, 12))
def test_what_a_slice_learns_depends_on_the_log_before_it_only(
    slices: list[list[bool]], capacity: int, end: int
) -> None:
    rows = rows_of(slices)
    assert run(rows, capacity)[:end] == run(rows[:end], capacity)


def test_fresh_engagements_do_not_wait_for_a_backlog() -> None:
    """Six slices of burst, then calm: the old way every positive waits as long as the backlog."""
    burst = [[False] * 11 + [True]] * 6 + [[False, True]] * 12
    lanes = Lanes(LaneRows.none(), 4)
    waits = []
    for place, fresh in enumerate(rows_of(burst)):
        learnt = lanes.next_batch(fresh)
        waits += (place - learnt.emit_us[learnt.is_engagement] // SLICE_US).tolist()
    assert waits == [0] * 18
    assert len(lanes.waiting) == 6 * 12 + 12 * 2 - 18 * 4
    said = lanes.described(18 * SLICE_US)
    assert said["waiting_engagements"] == 0
    assert said["waiting_negatives"] == len(lanes.waiting)
    assert said["oldest_waiting_us"] == 18 * SLICE_US - lanes.waiting.emit_us[0]
    assert said["order"] == list(LANES)


def test_rows_of_weight_zero_take_no_capacity_and_never_wait() -> None:
    (rows,) = rows_of([[True, False, False, True]])
    lanes = Lanes(LaneRows.none(), 1)
    weights = np.array([0.0, 2.0, 0.0, 0.0])
    learnt = lanes.next_batch(
        LaneRows(rows.slots, rows.labels, weights, rows.emit_us, rows.is_engagement)
    )
    assert ids_of(learnt) == [0, 1, 2, 3]  # where they stand: a learner may count its rows
    assert len(lanes.waiting) == 0
    assert lanes.by_lane.tolist() == [0, 0, 1, 0]


def test_what_waits_is_learnt_at_once_when_the_limit_is_lifted() -> None:
    first, second = rows_of([[False] * 9, [True]])
    limited = Lanes(LaneRows.none(), 2)
    limited.next_batch(first)
    free = Lanes.restore(limited.state(), None)
    assert not free.hold_nothing
    assert ids_of(free.next_batch(second)) == list(range(2, 10))
    assert free.hold_nothing
    assert free.state() == {}


def test_lanes_say_that_nothing_waits() -> None:
    said = Lanes(LaneRows.none(), None).described(HOUR_US)
    assert (said["waiting_negatives"], said["oldest_waiting_us"]) == (0, 0)
    assert said["capacity"] is None


def test_rows_of_an_earlier_slice_and_columns_of_two_lengths_are_refused() -> None:
    first, second = rows_of([[True], [False]])
    with pytest.raises(ValueError, match="cannot follow"):
        second.before(first)
    with pytest.raises(ValueError, match="different lengths"):
        LaneRows(first.slots, first.labels, np.ones(2), first.emit_us, first.is_engagement)


def test_no_waiting_arrays_are_no_waiting_rows() -> None:
    assert len(LaneRows.from_arrays({"slots": np.zeros(1)})) == 0


# --- weights ------------------------------------------------------------------------------------


def test_an_example_loses_half_its_weight_with_every_half_life() -> None:
    serving = np.full(5, 400_000 * HOUR_US)
    age = np.array([0, 1, 2, 4, 6]) * HOUR_US
    weights = recency_weights(serving + age, serving, 2.0)
    np.testing.assert_allclose(weights, [1, 2**-0.5, 0.5, 0.25, 0.125], rtol=1e-15)
    assert weights.dtype == np.float64


@few
@given(
    ages=st.lists(st.integers(0, 400 * 24 * HOUR_US), min_size=1, max_size=20),
    half_life=st.floats(0.01, 10_000),
)
def test_weights_fall_with_age_compose_and_need_no_origin(
    ages: list[int], half_life: float
) -> None:
    age = np.sort(np.array(ages, dtype=np.int64))
    serving = np.arange(len(age)) * HOUR_US
    weights = recency_weights(serving + age, serving, half_life)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (np.diff(weights) <= 0).all()
    later = recency_weights(serving + age + HOUR_US, serving, half_life)
    np.testing.assert_allclose(later, weights * 2 ** (-1 / half_life), rtol=1e-9, atol=1e-300)


def test_without_a_half_life_every_example_weighs_one() -> None:
    assert recency_weights(np.array([5, 9]), np.array([0, 0]), None).tolist() == [1.0, 1.0]


def test_a_half_life_of_nothing_and_an_emission_before_its_impression_are_refused() -> None:
    one, two = np.array([1]), np.array([2])
    with pytest.raises(ValueError, match="positive number"):
        recency_weights(two, one, 0.0)
    with pytest.raises(ValueError, match="1 examples were emitted before"):
        recency_weights(one, two, 1.0)
