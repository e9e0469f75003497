"""Scored anchors as of each hour's end, read a day of hours at a time.

What the log knew of an anchor at a moment follows from when it had learnt each thing: that the
anchor waits for its label, that an engagement came, that it was taken back, that the label became
final. So a day of hours is read once, with these times, and each hour is a cut through it
(``label_arrivals_over_time.sql``). What is estimated from a cut is
:mod:`.performance_estimate`, and what becomes of it :mod:`.performance_estimate_hours`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Dataset, Goal
from ad_pipeline.evaluation.progressive import experts_of
from ad_pipeline.monitoring.performance_estimate import Anchors, Delays
from ad_pipeline.settings import PerformanceEstimateSettings
from ad_pipeline.warehouse import Warehouse, rows_of, select

if TYPE_CHECKING:
    import duckdb

MAXIMUM_ROWS = 100_000
"""Matured anchors that an hour's estimate reads: of more, one in two, four, … by a hash, so that an
hour costs the same whatever the traffic, and a sample holds the smaller ones."""

CHUNK_HOURS = 24
"""Hours that are read together, if all of them read the same share of the anchors."""

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Scored:
    """The scored anchors of one goal and expert as of a moment, in their order.

    Attributes
    ----------
    anchors : Anchors
    anchor_us, serving_us : ndarray of shape (n,), int64
        When each occurred, and when our log had its impression.
    """

    anchors: Anchors
    anchor_us: NDArray[np.int64]
    serving_us: NDArray[np.int64]

    def between(self, start_us: int, end_us: int) -> NDArray[np.bool_]:
        """Tell which of them are of some hours, bool (n,)."""
        return (self.anchor_us >= start_us) & (self.anchor_us < end_us)


def horizon_us(goal: Goal) -> int:
    """Return window and lateness in whole hours, microseconds."""
    return -(-(goal.window_us + goal.lateness_us) // HOUR_US) * HOUR_US


def waited_us(goal: Goal, settings: PerformanceEstimateSettings) -> int:
    """Return how old anchors of the reference are at least: final, and before the cohort."""
    return max(horizon_us(goal), settings.cohort_hours * HOUR_US)


def scored_hours(
    warehouse: Warehouse, dataset: Dataset, goal: Goal, start_us: int, end_us: int
) -> Iterator[tuple[int, str, Scored]]:
    """Yield what the log knew at each hour's end of the anchors that an estimate reads, by expert.

    Parameters
    ----------
    warehouse : Warehouse
        Is read a chunk of hours at a time, and free between chunks.
    dataset : Dataset
    goal : Goal
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    hour_us : int
        Start of the hour; an expert without a score is not there.
    expert : str
    scored : Scored
    """
    reach = _Reach.of(dataset, goal)
    with warehouse.reader() as connection:
        shares = _one_in(connection, dataset, goal, reach, start_us, end_us)
    for one_in, hours_us in _chunks(shares):
        with warehouse.reader() as connection:
            read = _read(connection, dataset, goal, reach, one_in, hours_us)
            fits = _Fits.read(connection, goal, hours_us)
        logs = {
            expert: _Log.of(read.filter(pc.field("expert") == expert))
            for expert in experts_of(dataset.settings)
        }
        for hour_us in hours_us:
            for expert, log in logs.items():
                scored = log.as_of(hour_us + HOUR_US, reach, fits)
                if scored is not None:
                    yield hour_us, expert, scored


@dataclass(frozen=True)
class _Reach:
    """How far back an estimate looks, microseconds before its moment.

    Attributes
    ----------
    anchors_us : int
        For anchors.
    served_us : int
        For impressions: a chain's anchor comes long after its impression was served, and an
        impression is one before it was received.
    waits_us : int
        For anchors whose label has not matured.
    """

    anchors_us: int
    served_us: int
    waits_us: int

    @classmethod
    def of(cls, dataset: Dataset, goal: Goal) -> Self:
        asked = dataset.settings.performance_estimate
        anchors_us = waited_us(goal, asked) + asked.reference_hours * HOUR_US
        before_us = 0 if goal.anchor == "impression" else dataset.maturity_us
        return cls(anchors_us, anchors_us + before_us, goal.window_us + goal.lateness_us)


@dataclass(frozen=True)
class _Fits:
    """The distributions of delays of some fits, by when each came into force."""

    fitted_us: Sequence[int]
    delays: Sequence[tuple[Sequence[Delays], Mapping[str, int]]]

    @classmethod
    def read(
        cls, connection: "duckdb.DuckDBPyConnection", goal: Goal, hours_us: Sequence[int]
    ) -> Self:
        """Read the fits that are in force at the end of some hours."""
        found = rows_of(
            connection,
            select("monitoring.label_delay_fits"),
            {
                "goal": goal.name,
                "first_us": hours_us[0] + HOUR_US,
                "last_us": hours_us[-1] + HOUR_US,
            },
        )
        fitted_us = found.column("fitted_us").to_pylist()
        return cls(fitted_us, [_delays(connection, goal, moment) for moment in fitted_us])

    def in_force(self, now_us: int) -> tuple[Sequence[Delays], Mapping[str, int]]:
        """Return the newest fit's distributions, that of all anchors first, and their places."""
        place = int(np.searchsorted(self.fitted_us, now_us, side="right")) - 1
        return self.delays[place] if place >= 0 else ((), {})


@dataclass(frozen=True)
class _Log:
    """The rows of one expert, by anchor and log odds: n, and m engagements that may count.

    Attributes
    ----------
    rows : dict of str to ndarray of shape (n,)
        Columns of the query.
    arrived_us : ndarray of shape (n,), int64
        Of a final label; :data:`_NEVER` of a negative.
    group : ndarray of shape (n,), int64
        Places in ``groups``.
    groups : sequence of str
    of_row : ndarray of shape (m,), int64
        Whose engagements these are.
    arrivals_us, retractions_us : ndarray of shape (m,), int64
    """

    rows: Mapping[str, NDArray]
    arrived_us: NDArray[np.int64]
    group: NDArray[np.int64]
    groups: Sequence[str]
    of_row: NDArray[np.int64]
    arrivals_us: NDArray[np.int64]
    retractions_us: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        names = ("logit", "scored_us", "anchor_us", "serving_us", "known_us", "until_us", "matured")
        rows = {name: table.column(name).to_numpy() for name in names}
        coded = table.column("delay_group").fill_null("").combine_chunks().dictionary_encode()
        lists = [table.column(name).combine_chunks() for name in ("arrivals_us", "retractions_us")]
        counts = pc.fill_null(pc.list_value_length(lists[0]), 0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        arrivals_us, retractions_us = (
            pc.list_flatten(each).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
            for each in lists
        )
        return cls(
            rows,
            table.column("arrived_us").fill_null(_NEVER).to_numpy(),
            coded.indices.to_numpy().astype(np.int64),
            coded.dictionary.to_pylist(),
            np.repeat(np.arange(table.num_rows), counts),
            arrivals_us,
            retractions_us,
        )

    def as_of(self, now_us: int, reach: _Reach, fits: _Fits) -> Scored | None:
        """Return what was known at a moment; None if nothing was."""
        rows, anchor_us = self.rows, self.rows["anchor_us"]
        served_from_us = now_us - reach.served_us
        known = (
            (rows["known_us"] < now_us)
            & (rows["until_us"] >= now_us)
            & (rows["matured"] | (anchor_us >= now_us - reach.waits_us))
            & (rows["serving_us"] >= served_from_us)
            & (rows["scored_us"] >= served_from_us)
            & (rows["scored_us"] < now_us)
            & (anchor_us >= now_us - reach.anchors_us)
        )
        places = np.flatnonzero(known)
        if not len(places):
            return None
        counts = (
            (self.arrivals_us < now_us)
            & (self.arrivals_us >= now_us - reach.waits_us)
            & (self.retractions_us >= now_us)
        )
        arrived_us = self.arrived_us.copy()
        np.minimum.at(arrived_us, self.of_row[counts], self.arrivals_us[counts])
        places = _ordered(places, anchor_us, rows["logit"], arrived_us)
        delays, place_of = fits.in_force(now_us)
        # A group with too few positives has the distribution of all, which stands first.
        place_of_code = np.array([place_of.get(group, 0) for group in self.groups], np.int64)
        return Scored(
            Anchors(
                logits=rows["logit"][places],
                engaged=arrived_us[places] != _NEVER,
                final=rows["matured"][places],
                ages_us=now_us - anchor_us[places],
                group=place_of_code[self.group[places]],
                delays=delays,
            ),
            anchor_us[places],
            rows["serving_us"][places],
        )


def _ordered(
    places: NDArray[np.int64],
    anchor_us: NDArray[np.int64],
    logits: NDArray[np.float64],
    arrived_us: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return places that are in order of the first two, of equal ones by the third."""
    keys = anchor_us[places], logits[places]
    if not np.any((keys[0][1:] == keys[0][:-1]) & (keys[1][1:] == keys[1][:-1])):
        return places
    return places[np.lexsort((arrived_us[places], keys[1], keys[0]))]


def _one_in(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    goal: Goal,
    reach: _Reach,
    start_us: int,
    end_us: int,
) -> list[tuple[int, int]]:
    """Return each hour with the share of anchors, one in so many, that it reads."""
    found = rows_of(
        connection,
        select("monitoring.matured_by_hour"),
        {
            "goal": goal.name,
            "start_us": start_us + HOUR_US - reach.anchors_us,
            "end_us": end_us,
            "hour_length_us": HOUR_US,
        },
    )
    matured_us, counts = (found.column(name).to_numpy() for name in ("hour_us", "matured"))
    shares = []
    for hour_us in hours_between(start_us, end_us):
        now_us = hour_us + HOUR_US
        in_reach = (matured_us >= now_us - reach.anchors_us) & (matured_us < now_us)
        one_in = dataset.settings.performance_estimate.one_in
        while counts[in_reach].sum() > MAXIMUM_ROWS * one_in:
            one_in *= 2
        shares.append((hour_us, one_in))
    return shares


def _chunks(shares: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield hours that are read together, and the share that they read."""
    for one_in, of_share in groupby(shares, key=lambda each: each[1]):
        hours_us = [hour_us for hour_us, _ in of_share]
        for first in range(0, len(hours_us), CHUNK_HOURS):
            yield one_in, hours_us[first : first + CHUNK_HOURS]


def _read(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    goal: Goal,
    reach: _Reach,
    one_in: int,
    hours_us: Sequence[int],
) -> pa.Table:
    """Return all rows that the cuts of some hours are made of."""
    first_now_us = hours_us[0] + HOUR_US
    return rows_of(
        connection,
        f"WITH arrivals AS ({select('monitoring.label_arrivals_over_time')}\n), "
        f"predictions AS ({select('learners.predictions')}\n) "
        f"{select('monitoring.scored_arrivals')}",
        {
            "goal": goal.name,
            "start_us": first_now_us - reach.served_us,
            "first_now_us": first_now_us,
            "end_us": hours_us[-1] + HOUR_US,
            "window_us": goal.window_us,
            "lateness_us": goal.lateness_us,
            "without_goal": goal.without or "",
            "delay_group": dataset.settings.delays.group_by,
            "one_in": one_in,
        },
    )


def _delays(
    connection: "duckdb.DuckDBPyConnection", goal: Goal, now_us: int
) -> tuple[list[Delays], dict[str, int]]:
    """Return the distributions in force, that of all anchors first, and their places by group."""
    found = rows_of(
        connection,
        select("monitoring.label_delays_in_force"),
        {"goal": goal.name, "at_us": now_us},
    )
    groups = np.array(found.column("delay_group").to_pylist(), dtype=object)
    delay_us = found.column("delay_us").to_numpy()
    positives = found.column("positives").to_numpy()
    places = {group: number for number, group in enumerate(sorted(set(groups)))}
    delays = [
        Delays(delay_us[groups == group], int(positives[groups == group][0])) for group in places
    ]
    return delays, places
