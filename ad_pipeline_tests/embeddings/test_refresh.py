"""Who is due follows from news, age and tier; what is read is the mean of the last vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ad_pipeline.embeddings.refresh import (
    NEVER,
    due_for_full,
    due_for_incremental,
    mean_of_last,
    taken_in,
)
from ad_pipeline.settings import RefreshTier, UserVectorSettings

MINUTE_US = 60_000_000
TIERS = (
    RefreshTier(from_activities=0, interval_minutes=1_000),
    RefreshTier(from_activities=5, interval_minutes=60),
    RefreshTier(from_activities=20, interval_minutes=5),
)

moments = st.one_of(st.just(NEVER), st.integers(0, 3_000).map(lambda minute: minute * MINUTE_US))
users = st.tuples(moments, moments, st.integers(0, 40))
logs = st.lists(users, min_size=1, max_size=20).map(
    lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True))
)
as_of = st.integers(0, 3_000).map(lambda minute: minute * MINUTE_US)


@given(logs, as_of)
def test_who_is_due_is_who_a_plain_loop_says(log, as_of_us: int) -> None:
    refreshed, active, activities = log
    due = due_for_incremental(refreshed, active, activities, TIERS, as_of_us)
    for row, (before, last, count) in enumerate(zip(*(c.tolist() for c in log), strict=True)):
        (interval,) = [
            tier.interval_us
            for tier, following in zip(TIERS, (*TIERS[1:], None), strict=True)
            if tier.from_activities <= count
            and (following is None or count < following.from_activities)
        ]
        has_news = last != NEVER and before < last <= as_of_us
        assert due[row] == (has_news and (before == NEVER or as_of_us - before >= interval))


@given(logs, as_of)
def test_an_incremental_refresh_takes_nobody_whom_a_full_one_would_not(log, as_of_us: int) -> None:
    refreshed, active, activities = log
    due = due_for_incremental(refreshed, active, activities, TIERS, as_of_us)
    assert due_for_full(refreshed, active, as_of_us)[due].all()


@given(logs, as_of)
def test_nobody_is_due_again_right_after_a_refresh(log, as_of_us: int) -> None:
    _, active, activities = log
    now = np.full(len(active), as_of_us)
    assert not due_for_incremental(now, active, activities, TIERS, as_of_us).any()


def test_activity_of_the_future_makes_nobody_due() -> None:
    """Planted leak: the log already holds what came a microsecond after the refresh's moment."""
    never, later = np.array([NEVER]), np.array([MINUTE_US + 1])
    assert not due_for_incremental(never, later, np.array([9]), TIERS, MINUTE_US).any()
    assert not due_for_full(never, later, MINUTE_US).any()
    assert due_for_incremental(never, later, np.array([9]), TIERS, MINUTE_US + 1).all()


@pytest.mark.parametrize("begins", [[], [1], [0, 5, 5], [0, 20, 5]])
def test_tiers_that_leave_a_user_none_or_two_are_refused(begins: list[int]) -> None:
    tiers = tuple(RefreshTier(from_activities=n, interval_minutes=5) for n in begins)
    with pytest.raises(ValidationError, match="tiers begin with"):
        UserVectorSettings(tiers=tiers)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_what_is_read_is_the_mean_of_the_last_vectors(pushes: int, kept: int, seed: int) -> None:
    history = np.random.default_rng(seed).normal(size=(pushes, 3, 4)).astype(np.float32)
    held, counts = np.zeros((3, kept, 4), np.float32), np.zeros(3, np.uint8)
    for newest in history:
        held, counts = taken_in(held, counts, newest)
    expected = history[-kept:].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(mean_of_last(held, counts), expected, atol=1e-6)
