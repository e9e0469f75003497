"""What stands for 'as usual': the hours that match those under test, and a sample of fixed size.

Two things keep a comparison honest and cheap whatever the age of the log: the reference has the
same mix of hours of the week (or of the day, while the log is shorter), and both samples are drawn
by hash up to a size, so that neither cost nor noise moves with history.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ad_pipeline.clocks import DAY_US, HOUR_US, hours_between
from ad_pipeline.hashing import uniform

Rule = Literal["hour of week", "hour of day", "none"]


@dataclass(frozen=True)
class Reference:
    """The hours that stand for 'as usual'.

    Attributes
    ----------
    rule : {'hour of week', 'hour of day', 'none'}
        How they match the current hours; 'none' when the log covers neither.
    hours_us : tuple of int
        Starts of the hours, rising; each current hour has as many counterparts as any other.
    """

    rule: Rule
    hours_us: tuple[int, ...]

    @property
    def start_us(self) -> int | None:
        """Start of the first hour, or None without any."""
        return self.hours_us[0] if self.hours_us else None

    @property
    def end_us(self) -> int | None:
        """End of the last hour (excluded), or None without any."""
        return self.hours_us[-1] + HOUR_US if self.hours_us else None

    def periods_of(self, moments_us: NDArray[np.int64], current_end_us: int) -> NDArray[np.int64]:
        """Return the day or week, counted back from 0, that each reference row is of.

        Parameters
        ----------
        moments_us : ndarray of shape (rows,), int64
            ``received_us`` of rows of the reference.
        current_end_us : int
        """
        period_us = 7 * DAY_US if self.rule == "hour of week" else DAY_US
        back = (current_end_us - 1 - np.asarray(moments_us, dtype=np.int64)) // period_us
        return np.unique(back, return_inverse=True)[1].astype(np.int64)


def matched_reference(
    current_start_us: int,
    current_end_us: int,
    log_start_us: int,
    *,
    weeks: int = 2,
    days: int = 7,
) -> Reference:
    """Choose the reference hours: same hours of earlier weeks, else same hours of earlier days.

    Parameters
    ----------
    current_start_us, current_end_us : int
        The hours under test, microseconds since the epoch.
    log_start_us : int
        Start of the log's first whole hour.
    weeks, days : int
        How far back at most.

    Returns
    -------
    Reference
        None of its hours lies in or after the current range, and every current hour has equally
        many, so that the mix of hours is the same on both sides.
    """
    current = list(hours_between(current_start_us, current_end_us))
    rules: tuple[tuple[Rule, int, int], ...] = (
        ("hour of week", 7 * DAY_US, weeks),
        ("hour of day", DAY_US, days),
    )
    for rule, period_us, most in rules:
        counterparts = [
            [
                hour - back * period_us
                for back in range(1, most + max(1, len(current)) + 1)
                if log_start_us <= hour - back * period_us < current[0]
            ][:most]
            for hour in current
        ]
        common = min(map(len, counterparts), default=0)
        if common:
            chosen = {hour for earlier in counterparts for hour in earlier[:common]}
            return Reference(rule, tuple(sorted(chosen)))
    return Reference("none", ())


def fixed_sample(rows: pa.Table, size: int, seed: int) -> pa.Table:
    """Draw at most ``size`` rows by hash of their impression, the same from any order of rows.

    Parameters
    ----------
    rows : pyarrow.Table
        With a column ``impression_id``.
    size, seed : int

    Returns
    -------
    pyarrow.Table
        In order of the hash.
    """
    draws = uniform(seed, rows.column("impression_id"), "drift sample")
    return rows.take(pa.array(np.argsort(draws, kind="stable")[:size]))
