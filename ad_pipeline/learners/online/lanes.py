"""Which examples a micro-batch learns when more of them wait than it may take.

A learner that has fallen behind, after an outage or in a burst, can learn its backlog first and be
late with everything, or skip it and lose it. Here it does neither: a micro-batch of limited
capacity takes examples by lane,

1. engagements (positives and retractions) that were emitted in its own slice of the log,
2. engagements that wait,
3. negatives of its own slice,
4. negatives that wait,

in a lane the oldest first, and what is left waits for the next micro-batch. Engagements are few and
say most, so one waits only while other engagements fill all of the capacity. What was chosen is
learnt in the order of the log, not lane by lane: a run of positives with no negative between them
would swing the learner.

Everything is a function of the log and the settings: no clock, no load of the machine. What waits
travels in the checkpoint. How much a row teaches does not belong here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from ad_pipeline.learners.online.step import Examples

LANES = ("fresh engagements", "waiting engagements", "fresh negatives", "waiting negatives")
"""In the order in which they may use the capacity."""

ENGAGEMENT_KINDS = frozenset(
    {"immediate_positive", "delayed_positive", "confirmed_positive", "retraction"}
)
"""Kinds of training example that say that something happened, after it happened."""

_PREFIX = "waiting_"


@dataclass(frozen=True)
class Division:
    """What a micro-batch learns of the rows before it, and what waits.

    Attributes
    ----------
    learnt : ndarray of shape (a,), int64
        Places of the rows to learn now, rising: the order of the log.
    waiting : ndarray of shape (b,), int64
        Places of all others, rising.
    by_lane : ndarray of shape (4,), int64
        How many of ``learnt`` came from each of :data:`LANES`.
    """

    learnt: np.ndarray
    waiting: np.ndarray
    by_lane: np.ndarray


def divide(is_engagement: np.ndarray, waited: int, capacity: int | None) -> Division:
    """Divide rows into those that a micro-batch learns and those that wait.

    Parameters
    ----------
    is_engagement : ndarray of shape (n,), bool
        By row, in the order of the log.
    waited : int
        The first so many rows wait since an earlier micro-batch; the others were emitted in the
        slice of this one.
    capacity : int or None
        Rows that may be learnt; None for all.

    Returns
    -------
    Division

    Raises
    ------
    ValueError
        If the capacity is less than 1, or more rows waited than there are.
    """
    rows = len(is_engagement)
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity is {capacity}; write at least 1, or leave it out for no limit")
    if not 0 <= waited <= rows:
        raise ValueError(f"{waited} of {rows} rows waited")
    lane = np.where(is_engagement, 0, 2)
    lane[:waited] += 1
    # Stable: inside a lane the order stays that of the log, which is by age.
    chosen = np.argsort(lane, kind="stable")[: rows if capacity is None else capacity]
    is_learnt = np.zeros(rows, dtype=bool)
    is_learnt[chosen] = True
    return Division(
        learnt=np.flatnonzero(is_learnt),
        waiting=np.flatnonzero(~is_learnt),
        by_lane=np.bincount(lane[chosen], minlength=len(LANES)),
    )


@dataclass(frozen=True)
class LaneRows(Examples):
    """Examples on their way to a learner, in the order of the log.

    Attributes
    ----------
    is_engagement : ndarray of shape (n,), bool
        Whether the kind of each is in :data:`ENGAGEMENT_KINDS`.
    """

    is_engagement: np.ndarray

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        super().__post_init__()
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")

    def before(self, later: Self) -> Self:
        """Return these rows and behind them later ones.

        Raises
        ------
        ValueError
            If a later row was emitted earlier.
        """
        if not len(self):
            return later
        if not len(later):
            return self
        if later.emit_us[0] < self.emit_us[-1]:
            raise ValueError(
                f"rows emitted from {later.emit_us[0]} on cannot follow one of {self.emit_us[-1]}"
            )
        return type(self)(
            **{
                field.name: np.concatenate((getattr(self, field.name), getattr(later, field.name)))
                for field in fields(self)
            }
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the rows as arrays for a checkpoint, names beginning with ``waiting_``."""
        return {f"{_PREFIX}{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def none(cls) -> Self:
        """Return no rows."""
        return cls(
            slots=np.empty((0, 0), np.uint32),
            labels=np.empty(0, np.uint8),
            weights=np.empty(0),
            emit_us=np.empty(0, np.int64),
            is_engagement=np.empty(0, bool),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return the rows of :meth:`to_arrays`; none if they are not there."""
        names = [field.name for field in fields(cls)]
        if f"{_PREFIX}{names[0]}" not in arrays:
            return cls.none()
        return cls(**{name: np.array(arrays[f"{_PREFIX}{name}"]) for name in names})


def is_waiting_array(name: str) -> bool:
    """Return whether an array of a checkpoint belongs to :meth:`Lanes.state`."""
    return name.startswith(_PREFIX)


class Lanes:
    """The rows that wait for a learner, and who went before whom so far.

    Parameters
    ----------
    waiting : LaneRows
        Left over by the micro-batch before.
    capacity : int or None
        Rows that a micro-batch may learn; None for all.

    Attributes
    ----------
    waiting : LaneRows
        Left over by the newest micro-batch.
    by_lane : ndarray of shape (4,), int64
        Rows learnt by lane since the start or the last :meth:`counts_taken`.
    """

    def __init__(self, waiting: LaneRows, capacity: int | None) -> None:
        self.waiting = waiting
        self.capacity = capacity
        self.by_lane = np.zeros(len(LANES), np.int64)

    @property
    def hold_nothing(self) -> bool:
        """Whether every micro-batch learns just what was emitted in its slice."""
        return self.capacity is None and not len(self.waiting)

    def state(self) -> dict[str, np.ndarray]:
        """Return arrays for a checkpoint, none if nothing is held back."""
        if self.hold_nothing:
            return {}
        return {**self.waiting.to_arrays(), f"{_PREFIX}by_lane": self.by_lane}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], capacity: int | None) -> Self:
        """Return the lanes of a :meth:`state`, under a capacity that may be another by now.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            Of a checkpoint; those of other things in it are not looked at.
        capacity : int or None
        """
        lanes = cls(LaneRows.from_arrays(arrays), capacity)
        lanes.by_lane = np.array(arrays.get(f"{_PREFIX}by_lane", lanes.by_lane))
        return lanes

    def next_batch(self, fresh: LaneRows) -> LaneRows:
        """Return the rows that a micro-batch learns, in order; the others wait.

        Parameters
        ----------
        fresh : LaneRows
            Emitted in the slice of this micro-batch. Those of weight 0 teach nothing: they take no
            capacity and never wait. Without a capacity all are returned, as they came.
        """
        if self.hold_nothing:
            return fresh
        rows = self.waiting.before(fresh)
        teaches = rows.teach
        places = np.flatnonzero(teaches)
        division = divide(rows.is_engagement[places], len(self.waiting), self.capacity)
        self.by_lane += division.by_lane
        is_learnt = ~teaches
        is_learnt[places[division.learnt]] = True
        self.waiting = rows.taken(places[division.waiting])
        return rows if is_learnt.all() else rows.taken(np.flatnonzero(is_learnt))

    def counts_taken(self) -> dict[str, int]:
        """Return the rows learnt by lane and count from zero again."""
        counts = {lane: int(count) for lane, count in zip(LANES, self.by_lane, strict=True)}
        self.by_lane = np.zeros(len(LANES), np.int64)
        return counts

    def reported(self, now_us: int) -> dict[str, Any] | None:
        """Return for a manifest what an hour's slices did, and begin to count anew.

        Parameters
        ----------
        now_us : int
            End of the hour, microseconds since the epoch.

        Returns
        -------
        dict or None
            :meth:`described`, and ``learnt`` by lane; None where there is no capacity and was none.
        """
        if self.hold_nothing and not self.by_lane.any():
            return None
        return {**self.described(now_us), "learnt": self.counts_taken()}

    def described(self, now_us: int) -> dict[str, Any]:
        """Return for a manifest what decides the order and how far behind the learner is.

        Parameters
        ----------
        now_us : int
            End of the newest slice, microseconds since the epoch.

        Returns
        -------
        dict
            ``order``, ``capacity``, ``waiting`` by kind of lane and ``oldest_waiting_us``, the time
            that the oldest row has waited, 0 if none does.
        """
        engagements = int(np.count_nonzero(self.waiting.is_engagement))
        return {
            "order": list(LANES),
            "capacity": self.capacity,
            "waiting_engagements": engagements,
            "waiting_negatives": len(self.waiting) - engagements,
            "oldest_waiting_us": now_us - int(self.waiting.emit_us[0]) if len(self.waiting) else 0,
        }
