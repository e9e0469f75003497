"""Hours, keys and durations are exact, and refuse what they would have to guess."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline import clocks

MOMENTS = st.integers(min_value=0, max_value=4_000_000_000_000_000)


@given(MOMENTS)
def test_a_partition_key_names_the_hour_that_holds_the_moment(us: int):
    start = clocks.hour_start(clocks.hour_key(us))
    assert start <= us < start + clocks.HOUR_US
    assert start == clocks.hour_of(us)


@given(MOMENTS)
def test_microseconds_survive_the_way_through_datetime(us: int):
    assert clocks.microseconds(clocks.datetime_of(us)) == us


def test_a_key_is_written_as_dagster_writes_it():
    us = clocks.microseconds(datetime(2026, 3, 2, 7, 59, tzinfo=UTC))
    assert clocks.hour_key(us) == "2026-03-02-07:00"
    assert clocks.timestamp(us) == "2026-03-02T07:59:00Z"


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        clocks.microseconds(datetime(2026, 3, 2))  # noqa: DTZ001 - the fault under test


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("30s", 30_000_000),
        ("90m", 5_400_000_000),
        ("24h", clocks.DAY_US),
        ("7d", 7 * clocks.DAY_US),
    ],
)
def test_durations_are_read_and_written_alike(text: str, us: int):
    assert clocks.parse_duration(text) == us
    assert clocks.parse_duration(clocks.duration(us)) == us


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1w", "1h 30m"])
def test_what_is_no_duration_is_refused_with_what_to_write(text: str):
    with pytest.raises(ValueError, match="write a whole number"):
        clocks.parse_duration(text)


def test_hours_between_two_moments_start_at_the_first_hour_and_leave_out_the_end():
    start = clocks.hour_start("2026-03-02-07:00")
    assert list(clocks.hours_between(start, start + 2 * clocks.HOUR_US)) == [
        start,
        start + clocks.HOUR_US,
    ]


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0 s"),
        (1_234_567, "1.2 s"),
        (90 * clocks.SECOND_US, "1.5 min"),
        (59 * clocks.MINUTE_US, "59 min"),
        (3.52 * clocks.HOUR_US, "3.5 h"),
        (30 * clocks.HOUR_US, "30 h"),
        (60 * clocks.DAY_US, "60 d"),
        (float("nan"), "unknown"),
    ],
)
def test_a_span_is_told_in_two_digits(us: float, text: str):
    assert clocks.about(us) == text
