"""A scorer that is fed as production would be, and what may go wrong between store and score.

It refreshes its snapshot every hour and, in the hours of a fault, gets inputs that are not what
they claim to be: the faults are on the serving side, where a bidder would have them, and the log
that it writes is the honest log of a scorer that was lied to. Who looks for such faults
(:mod:`ad_pipeline.monitoring.parity`) knows nothing of this module. Faults of the log files
themselves stand in :mod:`ad_pipeline.simulation.faults`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, published_hour
from ad_pipeline.embeddings.published import PublishedVectors, read_hour
from ad_pipeline.features.rates import RateSnapshot, pointer, snapshot_hour
from ad_pipeline.hashing import uniform
from ad_pipeline.serving.bundle import Bundle
from ad_pipeline.serving.scorer import OCCURRED, PublishedSnapshot, Scorer

FAULT_DRAW = "serving fault"
"""Purpose of the draw that decides which requests a fault hits."""

Store = Literal["due", "shifted", "empty"]


@dataclass(frozen=True)
class ServingFault:
    """What goes wrong for a share of the requests of an hour.

    Attributes
    ----------
    store : {'due', 'shifted', 'empty'}
        Whether the counts are those of the snapshot that is due, of one `hours` later (earlier when
        negative), or none at all; the log names the one that is due in every case.
    hours : int
    vectors_hours : int
        By which the vectors are those of a later hour than the one that is due (earlier when
        negative); the log names the one that is due.
    swapped : tuple of two str, or None
        Columns that arrive in each other's place.
    truncated : str or None
        Numeric column that arrives cut to a whole number.
    nulled : tuple of str
        Columns that arrive null.
    share : float
        Of the requests, drawn by their id.
    """

    store: Store = "due"
    hours: int = 0
    vectors_hours: int = 0
    swapped: tuple[str, str] | None = None
    truncated: str | None = None
    nulled: tuple[str, ...] = ()
    share: float = 1.0

    def received(self, requests: pa.Table) -> pa.Table:
        """Return requests as they arrive at the scorer."""
        columns = dict(zip(requests.column_names, requests.columns, strict=True))
        if self.swapped is not None:
            one, other = self.swapped
            columns[one], columns[other] = requests[other], requests[one]
        if self.truncated is not None:
            columns[self.truncated] = pc.call_function("trunc", [requests[self.truncated]])
        for name in self.nulled:
            columns[name] = pa.chunked_array([pa.nulls(len(requests), requests[name].type)])
        return pa.table(columns)


def stale_aggregate(hours: int = 3) -> ServingFault:
    """Return a cache in front of the store that did not expire: counts of some hours before."""
    return ServingFault("shifted", -hours)


def leaked_backfill(hours: int = 1) -> ServingFault:
    """Return a store whose hour was written again later, out of what was known by then."""
    return ServingFault("shifted", hours)


def stale_vectors(hours: int = 1) -> ServingFault:
    """Return a cache of users' vectors that did not expire: those of some hours before."""
    return ServingFault(vectors_hours=-hours)


def default_on_timeout(share: float) -> ServingFault:
    """Return a store that does not answer in time, whose client takes 0 and says nothing."""
    return ServingFault("empty", share=share)


def swapped_columns(one: str, other: str) -> ServingFault:
    """Return a caller that sends two columns in each other's place."""
    return ServingFault(swapped=(one, other))


def float_truncation(column: str, share: float = 1.0) -> ServingFault:
    """Return a caller that sends a number as a whole one."""
    return ServingFault(truncated=column, share=share)


def null_burst(*columns: str) -> ServingFault:
    """Return a feature server that answers nothing, or not these columns."""
    return ServingFault(nulled=columns)


@dataclass(frozen=True)
class LoggedTable:
    """Decisions that are a table already."""

    table: pa.Table

    def to_log(self) -> pa.Table:
        """Return the table."""
        return self.table


class HourlyScorer:
    """Scores each hour's requests by what is due to be published, or by what a fault makes of it.

    Parameters
    ----------
    bundle : Bundle
    snapshots : Path
        Root of the snapshots; those of all hours to come must be there.
    faults : mapping of int to ServingFault
        By the hour in which requests are made, microseconds.
    vectors : Path, optional
        Root of the published vectors; of a bundle that reads any.
    """

    def __init__(
        self,
        bundle: Bundle,
        snapshots: Path,
        faults: Mapping[int, ServingFault] | None = None,
        vectors: Path | None = None,
    ) -> None:
        self._bundle = bundle
        self._snapshots = snapshots
        self._vectors = vectors
        self._faults = dict(faults or {})
        self._opened: dict[int, PublishedSnapshot] = {}

    def score_many(self, requests: pa.Table, /) -> LoggedTable:
        """Score requests of one hour."""
        if not len(requests):
            return LoggedTable(Scorer(self._bundle).score_many(requests).to_log())
        occurred_us = int(requests[OCCURRED][0].as_py())
        due_us = snapshot_hour(self._bundle.contract, occurred_us)
        honest = Scorer(self._bundle, self._snapshot(due_us), self._due_vectors(occurred_us))
        fault = self._faults.get(occurred_us - occurred_us % HOUR_US)
        if fault is None:
            return LoggedTable(honest.score_many(requests).to_log())
        hit = uniform(0, requests["request_id"], FAULT_DRAW) < fault.share
        parts = [
            honest.score_many(requests.filter(pa.array(~hit))),
            Scorer(
                self._bundle,
                self._as_answered(fault, due_us),
                self._due_vectors(occurred_us, fault.vectors_hours),
            ).score_many(fault.received(requests.filter(pa.array(hit)))),
        ]
        decided = pa.concat_tables([part.to_log() for part in parts])
        order = pc.call_function(
            "index_in",
            [decided["request_id"].cast(pa.string())],
            pc.SetLookupOptions(value_set=requests["request_id"].combine_chunks()),
        )
        return LoggedTable(decided.take(pc.call_function("sort_indices", [order])))

    def _snapshot(self, hour_us: int) -> PublishedSnapshot:
        if hour_us not in self._opened:
            digest = resolve(self._snapshots, pointer(hour_us))
            self._opened[hour_us] = PublishedSnapshot.read(self._snapshots, digest)
        return self._opened[hour_us]

    def _due_vectors(self, occurred_us: int, hours: int = 0) -> PublishedVectors | None:
        """Return the vectors of so many hours later than is due, under the due ones' name."""
        features = self._bundle.contract.vectors
        if features is None or self._vectors is None:
            return None
        due_us = published_hour(features.lag_hours, occurred_us)
        due, answered = (read_hour(self._vectors, due_us + h * HOUR_US) for h in (0, hours))
        return replace(answered, hour_us=due_us, digest=due.digest)

    def _as_answered(self, fault: ServingFault, due_us: int) -> PublishedSnapshot:
        """Return what the store answers under the name of the snapshot that is due."""
        due = self._snapshot(due_us)
        if fault.store == "due":
            return due
        if fault.store == "empty":
            return PublishedSnapshot(due.digest, RateSnapshot.empty(self._bundle.contract, due_us))
        shifted = self._snapshot(due_us + fault.hours * HOUR_US).counts
        return PublishedSnapshot(due.digest, replace(shifted, hour_us=due_us))
