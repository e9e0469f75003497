"""Hourly published counts of what entities did, exact to the last integer.

The snapshot of hour ``k`` counts the events that our log received in the trailing window that ends
with hour ``k``: per entity value and goal, anchors and engagements. It is made from the previous
hour's by adding the hour that came and subtracting the hour that left, so an hour costs an hour
whatever the window, and integers make that equal to a recount. Every engagement kept in
``events.engagements`` counts, also a second one of the same impression and one outside its window:
these are features of what was seen, not labels.

Which snapshot an impression may use (lag) is :func:`snapshot_hour`; turning counts into rates and
buckets is :mod:`ad_pipeline.features.encoding`. DuckDB is imported only by the functions that read
tables, since a scorer looks snapshots up without it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numba import njit

from ad_pipeline import hashing
from ad_pipeline.checkpoints import (
    Checkpoint,
    MissingCheckpoint,
    is_pointed,
    point,
    read_checkpoint,
    resolve,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, published_hour, timestamp
from ad_pipeline.features.encoding import (
    IMPRESSION,
    Columns,
    FeatureContract,
    LookedUp,
    entity_hashes,
)

if TYPE_CHECKING:
    import duckdb

    from ad_pipeline.datasets import Dataset
    from ad_pipeline.warehouse import Warehouse

KIND = "features.rates"

_LARGEST_COUNT = np.iinfo(np.int32).max


class WrongSnapshot(ValueError):
    """A snapshot counts other hours, entities or goals than the caller expects."""


@dataclass(frozen=True)
class HourCounts:
    """What one log hour adds to the counts.

    Attributes
    ----------
    hour_us : int
        Start of the hour.
    keys : ndarray of shape (k,), uint64
        Hashes of (entity, value), ascending.
    counts : ndarray of shape (k, 2G), int32
        Per goal: anchors, engagements.
    totals : ndarray of shape (2G,), int64
        The same over all impressions.
    """

    hour_us: int
    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray


@dataclass(frozen=True)
class RateSnapshot:
    """Counts of the trailing window that ends with an hour.

    Attributes
    ----------
    hour_us : int
        Start of the last hour counted.
    window_hours : int
        Hours counted.
    counts_digest : str
        Of the contract: which entities, goals and window the columns and keys stand for.
    keys : ndarray of shape (k,), uint64
        Hashes of (entity, value), ascending; none whose counts are all zero.
    counts : ndarray of shape (k, 2G), int32
        Per goal: anchors, engagements.
    totals : ndarray of shape (2G,), int64
        The same over all impressions: the prior.
    hour : HourCounts
        What the last hour added, to be subtracted when it leaves the window.
    """

    hour_us: int
    window_hours: int
    counts_digest: str
    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    hour: HourCounts

    @classmethod
    def empty(cls, contract: FeatureContract, hour_us: int) -> Self:
        """Return the snapshot of an hour in whose window nothing had happened."""
        nothing = _no_counts(contract, hour_us)
        return cls(
            hour_us,
            contract.rate_window_hours,
            contract.counts_digest,
            nothing.keys,
            nothing.counts,
            nothing.totals,
            nothing,
        )


@dataclass(frozen=True)
class PublishedHour:
    """One hour's snapshot as :func:`advance_hours` wrote it.

    Attributes
    ----------
    snapshot : RateSnapshot
    digest : str
        Of its checkpoint.
    impressions, engagements : int
        Rows of the hour that were counted.
    """

    snapshot: RateSnapshot
    digest: str
    impressions: int
    engagements: int


@dataclass(frozen=True)
class RateDifferences:
    """How a snapshot's counts differ from a recount, in (entity, value, goal) cells.

    Attributes
    ----------
    compared : int
        Cells of the recount.
    mismatched : tuple of (entity, value, goal, recounted, snapshot)
        Cells that are in both with other counts; counts are (anchors, engagements).
    missing : tuple of (entity, value, goal, recounted)
        Cells that only the recount has.
    extra : int
        Keys of the snapshot that the recount does not have.
    totals_differ : bool
        Whether the prior differs.
    """

    compared: int
    mismatched: tuple[tuple[str, str | None, str, tuple[int, int], tuple[int, int]], ...]
    missing: tuple[tuple[str, str | None, str, tuple[int, int]], ...]
    extra: int
    totals_differ: bool

    @property
    def none(self) -> bool:
        """Whether snapshot and recount are equal."""
        return not (self.mismatched or self.missing or self.extra or self.totals_differ)


def pointer(hour_us: int) -> str:
    """Return the name of the checkpoint pointer of an hour's snapshot."""
    return f"{KIND}/{hour_key(hour_us)}"


def snapshot_hour(contract: FeatureContract, occurred_us: int) -> int:
    """Return the hour of the snapshot that an impression may use.

    The last one that was published when the impression occurred: the hour before, less the lag.

    Parameters
    ----------
    contract : FeatureContract
    occurred_us : int
        When the impression occurred.

    Returns
    -------
    int
        Start of the last hour that the snapshot counts, microseconds.
    """
    return published_hour(contract.rate_lag_hours, occurred_us)


def hour_counts(
    contract: FeatureContract,
    hour_us: int,
    impressions: Columns,
    engagements: Mapping[str, Columns],
) -> HourCounts:
    """Count one hour's events by entity.

    Parameters
    ----------
    contract : FeatureContract
    hour_us : int
        Start of the hour.
    impressions : mapping of str to Arrow column
        Entity columns of the impressions received in the hour.
    engagements : mapping of goal to columns
        For each goal, the entity columns of the impressions that the hour's engagements belong to;
        a goal without engagements may be left out.

    Returns
    -------
    HourCounts
        A goal anchored on a goal has that goal's engagements as its anchors.

    Raises
    ------
    KeyError
        If a goal is not in the contract.
    """
    kinds = _kinds(contract)
    hashed = [entity_hashes(contract, impressions)]
    hashed += [entity_hashes(contract, columns) for columns in engagements.values()]
    of_kind = [kinds[IMPRESSION], *(kinds[goal] for goal in engagements)]
    return _counted(
        contract,
        hour_us,
        np.concatenate([rows.reshape(-1, len(contract.entities)) for rows in hashed]),
        np.repeat(np.array(of_kind), [len(rows) for rows in hashed]),
    )


def advance(previous: RateSnapshot, delta: HourCounts, expired: HourCounts | None) -> RateSnapshot:
    """Move the window one hour on: add the hour that came, subtract the hour that left.

    Parameters
    ----------
    previous : RateSnapshot
        Of the hour before ``delta``.
    delta : HourCounts
        The hour that came.
    expired : HourCounts or None
        The hour that left the window; None if there was none, at the start of a log.

    Returns
    -------
    RateSnapshot
        Of the hour of ``delta``; keys whose counts are all zero are gone.

    Raises
    ------
    WrongSnapshot
        If the hours do not follow each other, or a count would fall below zero.
    OverflowError
        If a count passes the largest int32.
    """
    if delta.hour_us != previous.hour_us + HOUR_US:
        raise WrongSnapshot(
            f"hour {timestamp(delta.hour_us)} does not follow {timestamp(previous.hour_us)}; "
            "materialize features.rates hour by hour"
        )
    if expired is not None and expired.hour_us != delta.hour_us - previous.window_hours * HOUR_US:
        raise WrongSnapshot(
            f"hour {timestamp(expired.hour_us)} is not the one that leaves a window of "
            f"{previous.window_hours} h that ends with {timestamp(delta.hour_us)}"
        )
    gone = expired or HourCounts(
        delta.hour_us, delta.keys[:0], delta.counts[:0], np.zeros_like(delta.totals)
    )
    room = previous.keys.size + delta.keys.size
    keys = np.empty(room, np.uint64)
    counts = np.empty((room, delta.totals.size), np.int32)
    size = _merged(
        *_frozen(previous.keys, previous.counts),
        *_frozen(delta.keys, delta.counts),
        *_frozen(gone.keys, gone.counts),
        keys,
        counts,
    )
    totals = previous.totals + delta.totals - gone.totals
    if size == -1 or (totals < 0).any():
        raise WrongSnapshot(
            f"the hour that left before {timestamp(delta.hour_us)} counts more than the window "
            "held; rebuild features.rates from the dataset's start"
        )
    if size == -2:
        raise OverflowError(f"a count passes {_LARGEST_COUNT}; shorten rates.window_hours")
    return RateSnapshot(
        delta.hour_us,
        previous.window_hours,
        previous.counts_digest,
        *_frozen(keys[:size].copy(), counts[:size].copy()),
        totals,
        delta,
    )


def lookup(snapshot: RateSnapshot, hashes: np.ndarray) -> np.ndarray:
    """Return the counts of entities.

    Parameters
    ----------
    snapshot : RateSnapshot
    hashes : ndarray of shape (n,), uint64
        Hashes of (entity, value), as :func:`ad_pipeline.features.encoding.entity_hashes` gives.

    Returns
    -------
    ndarray of shape (n, 2G), int64
        Per goal: anchors, engagements; zeros for an entity that the snapshot does not have.
    """
    found = np.zeros((hashes.size, snapshot.totals.size), np.int64)
    _look_up(*_frozen(snapshot.keys, snapshot.counts), np.ascontiguousarray(hashes), found)
    return found


def counts_of(contract: FeatureContract, snapshot: RateSnapshot, hashes: np.ndarray) -> LookedUp:
    """Return one snapshot's counts for rows that all use it.

    Parameters
    ----------
    contract : FeatureContract
    snapshot : RateSnapshot
    hashes : ndarray of shape (n, E), uint64
        From :func:`ad_pipeline.features.encoding.entity_hashes`.

    Returns
    -------
    LookedUp

    Raises
    ------
    WrongSnapshot
        If the snapshot counts other entities, goals or windows than the contract names.
    """
    check_contract(contract, snapshot)
    n, entities = hashes.shape
    counts = lookup(snapshot, hashes.reshape(-1)).reshape(n, entities, snapshot.totals.size)
    return LookedUp.counted(contract, counts, np.tile(snapshot.totals, (n, 1)))


def counts_at(
    contract: FeatureContract,
    root: Path,
    dataset_start_us: int,
    hashes: np.ndarray,
    occurred_us: np.ndarray,
) -> LookedUp:
    """Return, for each row, the counts of the snapshot that was in force when it occurred.

    Parameters
    ----------
    contract : FeatureContract
    root : Path
        Folder of the checkpoints.
    dataset_start_us : int
        Snapshots before the dataset's start are empty and not on disk.
    hashes : ndarray of shape (n, E), uint64
        From :func:`ad_pipeline.features.encoding.entity_hashes`.
    occurred_us : ndarray of shape (n,), int64
        When the impressions occurred.

    Returns
    -------
    LookedUp

    Raises
    ------
    MissingCheckpoint
        If a snapshot that was due is not there.
    """
    result = LookedUp.nothing(contract, len(hashes))
    if not len(hashes):
        return result
    hours = occurred_us - occurred_us % HOUR_US
    order = np.argsort(hours, kind="stable")
    distinct, starts = np.unique(hours[order], return_index=True)
    for hour, rows in zip(distinct, np.split(order, starts[1:]), strict=True):
        due = snapshot_hour(contract, int(hour))
        if due >= hour_of(dataset_start_us):
            snapshot = read_hour(root, due, verify=False)
            result.put(rows, counts_of(contract, snapshot, hashes[rows]))
    return result


def check_contract(contract: FeatureContract, snapshot: RateSnapshot) -> None:
    """Refuse a snapshot that was counted under another contract.

    Raises
    ------
    WrongSnapshot
        If entities, goals or window differ.
    """
    if snapshot.counts_digest != contract.counts_digest:
        raise WrongSnapshot(
            f"the snapshot of {timestamp(snapshot.hour_us)} counts other entities, goals or hours "
            "than the feature contract names; rebuild features.rates from the dataset's start"
        )


def write_snapshot(root: Path, snapshot: RateSnapshot) -> Checkpoint:
    """Write a snapshot as a checkpoint; the same counts give the same bytes.

    Parameters
    ----------
    root : Path
        Folder of the checkpoints.
    snapshot : RateSnapshot

    Returns
    -------
    Checkpoint
    """
    return write_checkpoint(
        root,
        KIND,
        {
            "keys": snapshot.keys,
            "counts": snapshot.counts,
            "totals": snapshot.totals,
            "hour_keys": snapshot.hour.keys,
            "hour_counts": snapshot.hour.counts,
            "hour_totals": snapshot.hour.totals,
        },
        {
            "hour_us": snapshot.hour_us,
            "window_hours": snapshot.window_hours,
            "counts_digest": snapshot.counts_digest,
        },
    )


def read_snapshot(root: Path, digest: str, *, verify: bool = True) -> RateSnapshot:
    """Open a snapshot, its arrays memory-mapped.

    Parameters
    ----------
    root : Path
        Folder of the checkpoints.
    digest : str
        Of the checkpoint.
    verify : bool
        Check the SHA-256 of every file first.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        As :func:`ad_pipeline.checkpoints.read_checkpoint`.
    WrongSnapshot
        If the checkpoint is of another kind.
    """
    return snapshot_of(read_checkpoint(root, digest, verify=verify))


def snapshot_of(checkpoint: Checkpoint) -> RateSnapshot:
    """Read an opened checkpoint as a snapshot, wherever its folder lies.

    Raises
    ------
    WrongSnapshot
        If the checkpoint is of another kind.
    """
    manifest, arrays = checkpoint.manifest, checkpoint.arrays
    if manifest["kind"] != KIND:
        raise WrongSnapshot(f"{checkpoint.path} is a {manifest['kind']}, not a {KIND}")
    keys, counts = _frozen(arrays["keys"], arrays["counts"])
    hour_keys, hour_counts_ = _frozen(arrays["hour_keys"], arrays["hour_counts"])
    return RateSnapshot(
        manifest["hour_us"],
        manifest["window_hours"],
        manifest["counts_digest"],
        keys,
        counts,
        np.array(arrays["totals"]),
        HourCounts(manifest["hour_us"], hour_keys, hour_counts_, np.array(arrays["hour_totals"])),
    )


def read_hour(root: Path, hour_us: int, *, verify: bool = True) -> RateSnapshot:
    """Open the snapshot that the pointer of an hour names.

    Raises
    ------
    MissingCheckpoint
        If the hour has none yet.
    """
    return read_snapshot(root, resolve(root, pointer(hour_us)), verify=verify)


def advance_hours(
    warehouse: "Warehouse",
    root: Path,
    contract: FeatureContract,
    dataset: "Dataset",
    start_us: int,
    end_us: int,
    *,
    chunk_hours: int = 24,
) -> Iterator[PublishedHour]:
    """Make, write and point at the snapshot of every hour of a range, in order.

    Parameters
    ----------
    warehouse : Warehouse
        Read a chunk at a time and let go of in between.
    root : Path
        Folder of the checkpoints.
    contract : FeatureContract
    dataset : Dataset
        Its start is where counting begins, from nothing.
    start_us, end_us : int
        Hours ``[start_us, end_us)``.
    chunk_hours : int
        Hours read from the warehouse at once.

    Yields
    ------
    PublishedHour
        After its checkpoint and pointer are on disk.

    Raises
    ------
    MissingCheckpoint
        If the hour before the range was never published, or one that leaves the window.
    WrongSnapshot
        If the hour before was counted under another contract.
    """
    first_us = hour_of(dataset.start_us)
    start_us = max(hour_of(start_us), first_us)
    previous = _snapshot_before(root, contract, first_us, start_us)
    recent: dict[int, HourCounts] = {}
    window_us = contract.rate_window_hours * HOUR_US
    for chunk_start in range(start_us, end_us, chunk_hours * HOUR_US):
        chunk_end = min(chunk_start + chunk_hours * HOUR_US, end_us)
        for delta, impressions, engagements in _read_counts(
            warehouse, contract, chunk_start, chunk_end
        ):
            leaves = delta.hour_us - window_us
            expired = None
            if leaves >= first_us:
                expired = recent.pop(leaves, None) or read_hour(root, leaves).hour
            previous = advance(previous, delta, expired)
            recent[delta.hour_us] = delta
            checkpoint = write_snapshot(root, previous)
            point(root, pointer(delta.hour_us), checkpoint.digest)
            yield PublishedHour(previous, checkpoint.digest, impressions, engagements)


def recount(
    connection: "duckdb.DuckDBPyConnection", contract: FeatureContract, hour_us: int
) -> pa.Table:
    """Count an hour's window from scratch in SQL, by ``dbt_like_sql/features/rates.sql``.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`ad_pipeline.warehouse.Warehouse.reader`.
    contract : FeatureContract
    hour_us : int
        Start of the last hour counted.

    Returns
    -------
    pa.Table
        entity, value, goal, anchors, engagements; no row where both are zero.
    """
    from ad_pipeline.warehouse import rows_of, select

    query = select("features.rates")
    parameters = {
        "hour_us": hour_us,
        "window_us": contract.rate_window_hours * HOUR_US,
        "entities": list(contract.entities),
        "goals": [goal.name for goal in contract.goals],
        "anchors": [goal.anchor for goal in contract.goals],
    }
    return rows_of(connection, query, parameters)


def differences(
    contract: FeatureContract, snapshot: RateSnapshot, recounted: pa.Table
) -> RateDifferences:
    """Compare a snapshot with a recount, cell by cell and exactly.

    Parameters
    ----------
    contract : FeatureContract
    snapshot : RateSnapshot
    recounted : pa.Table
        From :func:`recount`.

    Returns
    -------
    RateDifferences
    """
    goals = {goal.name: g for g, goal in enumerate(contract.goals)}
    seeds = {name: hashing.seed_of(name) for name in contract.entities}
    cells = recounted.to_pylist()
    keys = np.array(
        [int(hashing.hash_values([cell["value"]], seeds[cell["entity"]])[0]) for cell in cells],
        np.uint64,
    )
    found = lookup(snapshot, keys)
    known = np.isin(keys, snapshot.keys)
    mismatched, missing = [], []
    totals = np.zeros_like(snapshot.totals)
    explained: dict[int, int] = {}
    for cell, key, counts, is_known in zip(cells, keys, found, known, strict=True):
        name = (cell["entity"], cell["value"], cell["goal"])
        expected = (int(cell["anchors"]), int(cell["engagements"]))
        g = goals[cell["goal"]]
        stored = (int(counts[2 * g]), int(counts[2 * g + 1]))
        if not is_known:
            missing.append((*name, expected))
        elif stored != expected:
            mismatched.append((*name, expected, stored))
        if cell["entity"] == contract.entities[0]:
            totals[2 * g : 2 * g + 2] += expected
        explained[int(key)] = explained.get(int(key), 0) | 1 << g
    extra = 0
    for key, counts in zip(snapshot.keys.tolist(), snapshot.counts, strict=True):
        seen = explained.get(key, 0)
        pairs = counts.reshape(-1, 2)
        extra += any(pair.any() and not seen >> g & 1 for g, pair in enumerate(pairs))
    return RateDifferences(
        len(cells),
        tuple(mismatched),
        tuple(missing),
        extra,
        bool(contract.entities) and not np.array_equal(totals, snapshot.totals),
    )


def _kinds(contract: FeatureContract) -> dict[str, int]:
    """Return the number of each kind of event: impressions 0, then each goal's engagements."""
    return {IMPRESSION: 0} | {goal.name: g + 1 for g, goal in enumerate(contract.goals)}


def _no_counts(contract: FeatureContract, hour_us: int) -> HourCounts:
    width = 2 * len(contract.goals)
    keys, counts = _frozen(np.zeros(0, np.uint64), np.zeros((0, width), np.int32))
    return HourCounts(hour_us, keys, counts, np.zeros(width, np.int64))


def _frozen(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """View as plain read-only arrays, so that memory-mapped and fresh ones are of one type."""
    views = (np.asarray(keys).view(), np.asarray(counts).view())
    for view in views:
        view.flags.writeable = False
    return views


def _counted(
    contract: FeatureContract, hour_us: int, hashes: np.ndarray, kinds: np.ndarray
) -> HourCounts:
    """Count rows of entity hashes by key and kind.

    Parameters
    ----------
    hashes : ndarray of shape (n, E), uint64
    kinds : ndarray of shape (n,), int64
        See :func:`_kinds`.
    """
    numbers = _kinds(contract)
    columns = [numbers[name] for goal in contract.goals for name in (goal.anchor, goal.name)]
    keys, cells = np.unique(hashes.reshape(-1), return_inverse=True)
    cells = cells.reshape(-1) * len(numbers) + np.repeat(kinds, len(contract.entities))
    by_kind = np.bincount(cells, minlength=keys.size * len(numbers))
    counts = by_kind.reshape(keys.size, len(numbers))[:, columns]
    totals = np.bincount(kinds, minlength=len(numbers))[columns]
    counted = counts.any(axis=1)
    return HourCounts(
        hour_us,
        *_frozen(keys[counted], np.ascontiguousarray(counts[counted].astype(np.int32))),
        totals.astype(np.int64),
    )


def _snapshot_before(
    root: Path, contract: FeatureContract, first_us: int, start_us: int
) -> RateSnapshot:
    if start_us == first_us:
        return RateSnapshot.empty(contract, start_us - HOUR_US)
    before = start_us - HOUR_US
    if not is_pointed(root, pointer(before)):
        raise MissingCheckpoint(
            f"features.rates of {hour_key(start_us)} continues from {hour_key(before)}, which was "
            f"never published; materialize features.rates from {hour_key(first_us)} on first"
        )
    previous = read_hour(root, before)
    check_contract(contract, previous)
    return previous


def _read_counts(
    warehouse: "Warehouse", contract: FeatureContract, start_us: int, end_us: int
) -> Iterator[tuple[HourCounts, int, int]]:
    """Count each hour of a chunk, read in two queries; also the rows of each kind."""
    from ad_pipeline.warehouse import rows_of, select

    entities = "".join(f', "{name}"' for name in contract.entities)
    parameters: dict[str, Any] = {
        "start_us": start_us,
        "end_us": end_us,
        "goals": [goal.name for goal in contract.goals],
    }
    # The names pasted here are column names that the dataset file was checked for.
    impressions = f"SELECT received_us{entities} FROM ({select('features.impressions_received')})"
    engagements = (
        f"SELECT engaged_us, goal_number, impression_id{entities} "
        f"FROM ({select('features.engagements_received')})"
    )
    with warehouse.reader() as connection:
        shown, engaged = (
            rows_of(connection, query, parameters) for query in (impressions, engagements)
        )
    orphans = engaged["impression_id"].null_count
    if orphans:
        raise ValueError(
            f"{orphans} rows of events.engagements between {timestamp(start_us)} and "
            f"{timestamp(end_us)} have no impression; events holds such rows back: materialize "
            "events again"
        )
    hashes = np.concatenate((_hashes(contract, shown), _hashes(contract, engaged)))
    kinds = np.concatenate((np.zeros(len(shown), np.int64), _int64(engaged["goal_number"])))
    moments = np.concatenate((_int64(shown["received_us"]), _int64(engaged["engaged_us"])))
    order = np.argsort(moments, kind="stable")
    hours = np.arange(start_us, end_us + 1, HOUR_US)
    edges = np.searchsorted(moments[order], hours)
    for hour, low, high in zip(hours[:-1], edges[:-1], edges[1:], strict=True):
        rows = order[low:high]
        engagements_counted = int(np.count_nonzero(kinds[rows]))
        yield (
            _counted(contract, int(hour), hashes[rows], kinds[rows]),
            rows.size - engagements_counted,
            engagements_counted,
        )


def _hashes(contract: FeatureContract, table: pa.Table) -> np.ndarray:
    columns = {name: table[name] for name in contract.entities}
    return entity_hashes(contract, columns).reshape(len(table), len(contract.entities))


def _int64(column: pa.ChunkedArray) -> np.ndarray:
    """Read an int64 column without nulls out of its buffers."""
    chunks: Sequence[pa.Array] = column.chunks
    parts = [
        np.frombuffer(chunk.buffers()[1], np.int64, len(chunk), chunk.offset * 8)
        for chunk in chunks
        if len(chunk)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@njit(cache=True)
def _merged(
    old_keys: np.ndarray,
    old_counts: np.ndarray,
    new_keys: np.ndarray,
    new_counts: np.ndarray,
    gone_keys: np.ndarray,
    gone_counts: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Write old + new - gone by ascending key; return its size, -1 below zero, -2 overflow."""
    i = j = k = 0
    size = 0
    width = counts.shape[1]
    while i < old_keys.size or j < new_keys.size:
        if j >= new_keys.size or (i < old_keys.size and old_keys[i] <= new_keys[j]):
            key = old_keys[i]
        else:
            key = new_keys[j]
        has_old = i < old_keys.size and old_keys[i] == key
        has_new = j < new_keys.size and new_keys[j] == key
        if k < gone_keys.size and gone_keys[k] < key:
            return -1
        has_gone = k < gone_keys.size and gone_keys[k] == key
        kept = False
        for g in range(width):
            count = np.int64(0)
            if has_old:
                count += old_counts[i, g]
            if has_new:
                count += new_counts[j, g]
            if has_gone:
                count -= gone_counts[k, g]
            if count < 0:
                return -1
            if count > _LARGEST_COUNT:
                return -2
            counts[size, g] = count
            kept = kept or count > 0
        keys[size] = key
        size += int(kept)
        i += int(has_old)
        j += int(has_new)
        k += int(has_gone)
    return size if k == gone_keys.size else -1


@njit(cache=True)
def _look_up(keys: np.ndarray, counts: np.ndarray, hashes: np.ndarray, found: np.ndarray) -> None:
    for i in range(hashes.size):
        low = 0
        high = keys.size
        while low < high:
            middle = (low + high) >> 1
            if keys[middle] < hashes[i]:
                low = middle + 1
            else:
                high = middle
        if low < keys.size and keys[low] == hashes[i]:
            for g in range(found.shape[1]):
                found[i, g] = counts[low, g]
