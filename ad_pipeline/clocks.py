"""Hours, partition keys and durations, all in int64 UTC microseconds.

Every table carries integer microseconds since the epoch; people and Dagster see hours and
partition keys. This module is the one place where the two are turned into each other. Nothing
here reads the wall clock, and nothing that does belongs here.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

Moments = TypeVar("Moments", int, "np.ndarray")

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

PARTITION_KEY_FORMAT = "%Y-%m-%d-%H:%M"
"""Dagster's own format for hourly partitions, as in ``2026-03-02-07:00``."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US}


def hour_of(us: int) -> int:
    """Return the start of the hour that holds a moment.

    Parameters
    ----------
    us : int
        Microseconds since the epoch, UTC.

    Returns
    -------
    int
        Start of the hour, microseconds since the epoch.
    """
    return us - us % HOUR_US


def published_hour(lag_hours: int, occurred_us: Moments) -> Moments:
    """Return the hour whose publication an impression may read: the one before, less the lag.

    Parameters
    ----------
    lag_hours : int
        Hours between the end of an hour and what it publishes being served.
    occurred_us : int or ndarray of int64
        When the impression occurred, microseconds since the epoch.

    Returns
    -------
    int or ndarray of int64
        Start of the last hour that had been published then.
    """
    return occurred_us - occurred_us % HOUR_US - (1 + lag_hours) * HOUR_US


def hours_between(start_us: int, end_us: int) -> Iterator[int]:
    """Yield the start of every hour in ``[start_us, end_us)``, in order."""
    yield from range(hour_of(start_us), end_us, HOUR_US)


def hour_key(us: int) -> str:
    """Return the partition key of the hour that holds a moment, e.g. ``2026-03-02-07:00``."""
    return datetime_of(hour_of(us)).strftime(PARTITION_KEY_FORMAT)


def hour_start(key: str) -> int:
    """Return the start of a partition's hour, microseconds since the epoch.

    Raises
    ------
    ValueError
        If the key is not of the form ``2026-03-02-07:00``.
    """
    return microseconds(datetime.strptime(key, PARTITION_KEY_FORMAT).replace(tzinfo=UTC))


def microseconds(moment: datetime) -> int:
    """Return a zoned datetime as exact microseconds since the epoch.

    Raises
    ------
    ValueError
        If the datetime carries no zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; write 'Z' or an offset behind it")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def datetime_of(us: int) -> datetime:
    """Return microseconds since the epoch as a UTC datetime."""
    return _EPOCH + timedelta(microseconds=us)


def timestamp(us: int) -> str:
    """Return a moment for people, e.g. ``2026-03-02T07:00:00Z``."""
    return datetime_of(us).isoformat().replace("+00:00", "Z")


def parse_duration(text: str) -> int:
    """Return the microseconds that a duration such as ``90m``, ``1h`` or ``7d`` stands for.

    Parameters
    ----------
    text : str
        A whole number and one of the units s, m, h, d.

    Raises
    ------
    ValueError
        If the text has another form.
    """
    match = re.fullmatch(r"(\d+)\s*([smhd])", str(text).strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a duration; write a whole number and s, m, h or d: '90m'"
        )
    return int(match[1]) * _UNITS[match[2]]


def duration(us: int) -> str:
    """Return a span for people in the largest unit that divides it, e.g. ``90m``."""
    for unit in ("d", "h", "m", "s"):
        if us % _UNITS[unit] == 0:
            return f"{us // _UNITS[unit]}{unit}"
    return f"{us / SECOND_US:g}s"


def about(us: float) -> str:
    """Return a span for people, rounded to two digits, e.g. ``3.5 h``; ``unknown`` for NaN."""
    if us != us:
        return "unknown"
    for unit, size in (("d", DAY_US), ("h", HOUR_US), ("min", MINUTE_US)):
        if abs(us) >= (2 * size if unit == "d" else size):
            return f"{_two_digits(us / size)} {unit}"
    return f"{_two_digits(us / SECOND_US)} s"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"
