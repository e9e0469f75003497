"""Probabilities for requests, and ads for users, from a bundle and what was published last.

What a bidder or an ad server embeds: it imports NumPy, Numba and Arrow, but neither Dagster nor
DuckDB, pandas, scikit-learn or River (a test starts a fresh process and looks). Many requests go
through the loops that one goes through, so a score does not depend on its company. What is missing
is replaced by what the training path would see in its place, or a rung of the bundle's fallback
ladder answers (:mod:`.ladder`); either is said in the decision's fallbacks, nothing here guesses
silently. Which bundle serves is decided elsewhere
(:mod:`ad_pipeline.serving.promotion`); this module only follows the pointers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.clocks import HOUR_US, published_hour
from ad_pipeline.embeddings.candidate_index import EligibleAds
from ad_pipeline.embeddings.published import PublishedVectors, read_published
from ad_pipeline.embeddings.versions import VersionGuard
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    LookedUp,
    ReadColumns,
    VectorFeatures,
    entity_hashes,
    read_columns,
    vector_hashes,
)
from ad_pipeline.features.rates import RateSnapshot, check_contract, counts_of, read_snapshot
from ad_pipeline.features.vectors import check_vectors, vector_numbers
from ad_pipeline.hashing import string_array
from ad_pipeline.serving.bundle import Bundle, Scores, open_bundle
from ad_pipeline.serving.decisions import Decision, Decisions, Fallback, numbers_array
from ad_pipeline.serving.heartbeat import Heartbeat, beat
from ad_pipeline.serving.ladder import MEANS, RUNGS
from ad_pipeline.serving.pointers import (
    CANDIDATE_INDEX,
    CURRENT,
    SNAPSHOT,
    USER_VECTORS,
    NothingServed,
    read_pointer,
)
from ad_pipeline.serving.retrieval import AnsweringIndex, NoCandidates, RetrievedAds, newest_index

IDENTITY = ("request_id", "impression_id")
OCCURRED = "occurred_us"

UNTIMELY_SNAPSHOT = "stale snapshot: a later one was due", "early snapshot: it was not due yet"
UNTIMELY_VECTORS = (
    "stale user vectors: later ones were due",
    "early user vectors: they were not due yet",
)
"""What a decision says of counts, or vectors, that training would not have used for it."""

Requests = pa.Table | Mapping[str, pa.Array | pa.ChunkedArray]


@dataclass(frozen=True)
class PublishedSnapshot:
    """A rate snapshot and the name that decisions log it by.

    Attributes
    ----------
    digest : str
    counts : RateSnapshot
    """

    digest: str
    counts: RateSnapshot

    @classmethod
    def read(cls, snapshots: Path, digest: str) -> Self:
        """Open a snapshot by its digest; see :func:`ad_pipeline.features.rates.read_snapshot`."""
        return cls(digest, read_snapshot(snapshots, digest))

    @property
    def end_us(self) -> int:
        """End of the counted hours, microseconds."""
        return self.counts.hour_us + HOUR_US


@dataclass(frozen=True)
class _Folders:
    serving: Path
    bundles: Path
    snapshots: Path
    vectors: Path


class Scorer:
    """Scores requests with one bundle, and one snapshot and the vectors of one hour.

    Parameters
    ----------
    bundle : Bundle
    snapshot : PublishedSnapshot, optional
        Without one every count is 0, as it is for an impression at the start of a log, and each
        decision says so.
    vectors : PublishedVectors, optional
        Without them every number of a vector is unknown, and each decision of a bundle that reads
        them says so.

    Attributes
    ----------
    answering : AnsweringIndex or None
        What :meth:`candidates` answers from: the bundle's index, or a newer one of its encoder.
    index_guard : VersionGuard
        Which published indexes it let answer and which it refused, each counted once.

    Raises
    ------
    WrongSnapshot
        If the snapshot counts other entities, goals or hours than the bundle's feature contract.
    WrongVectors, MixedVersions
        If the vectors have another dimension than the contract, or are of two encoders.
    """

    def __init__(
        self,
        bundle: Bundle,
        snapshot: PublishedSnapshot | None = None,
        vectors: PublishedVectors | None = None,
    ) -> None:
        _check_fits(bundle, snapshot, vectors)
        self.bundle = bundle
        self.snapshot = snapshot
        self.vectors = None if bundle.contract.vectors is None else vectors
        carried = bundle.candidate_index
        self.answering = None if carried is None else AnsweringIndex(carried)
        self.index_guard = VersionGuard(tolerated_error=0.0)
        self._folders: _Folders | None = None

    @classmethod
    def current(
        cls,
        serving: Path,
        *,
        bundles: Path | None = None,
        snapshots: Path | None = None,
        vectors: Path | None = None,
    ) -> Self:
        """Open what the pointers in ``serving`` name; see :mod:`ad_pipeline.serving.pointers`.

        Parameters
        ----------
        serving : Path
            The deployment's serving folder.
        bundles, snapshots, vectors : Path, optional
            Roots of the bundles, snapshots and published vectors (candidate indexes are among
            these); beside ``serving`` unless given.

        Raises
        ------
        NothingServed
            If no bundle was ever promoted.
        MissingCheckpoint, CorruptBundle, CorruptCheckpoint
            If what a pointer names is not there or not intact.
        """
        folders = _Folders(
            serving,
            bundles or serving.parent / "bundles",
            snapshots or serving.parent / "snapshots",
            vectors or serving.parent / "vectors",
        )
        pointer = read_pointer(serving, CURRENT)
        if pointer is None:
            raise NothingServed(f"{serving / CURRENT} does not exist; promote a bundle first")
        bundle = open_bundle(folders.bundles, pointer.digest, to_score=True)
        scorer = cls(bundle, _published(folders), _published_vectors(folders, bundle))
        scorer.answering = _newest_index(folders, bundle, scorer.answering, scorer.index_guard)
        scorer._folders = folders
        return scorer

    def refresh(self) -> bool:
        """Follow the pointers to where they are now; what did not move is not opened again.

        If what a pointer names cannot be opened, this scorer stays as it was and goes on serving.
        A candidate index of another encoder than the bundle's is refused and counted: candidates
        go on coming from the newest one that fits, and say so.

        Returns
        -------
        bool
            Whether anything moved.

        Raises
        ------
        NothingServed
            If this scorer was not made by :meth:`current`, or the pointer is gone.
        MissingCheckpoint, CorruptBundle, CorruptCheckpoint, WrongSnapshot, WrongVectors
            If what a pointer names is not there, not intact, or does not fit together.
        """
        if self._folders is None:
            raise NothingServed("this scorer follows no pointers; make it by Scorer.current()")
        pointer = read_pointer(self._folders.serving, CURRENT)
        if pointer is None:
            raise NothingServed(f"{self._folders.serving / CURRENT} is gone; promote a bundle")
        bundle = self.bundle
        if pointer.digest != bundle.digest:
            bundle = open_bundle(self._folders.bundles, pointer.digest, to_score=True)
        snapshot = _published(self._folders, self.snapshot)
        vectors = _published_vectors(self._folders, bundle, self.vectors)
        answering = _newest_index(self._folders, bundle, self.answering, self.index_guard)
        opened = (self.bundle, self.snapshot, self.vectors, self.answering)
        newest = (bundle, snapshot, vectors, answering)
        if all(new is old for new, old in zip(newest, opened, strict=True)):
            return False
        _check_fits(bundle, snapshot, vectors)
        self.bundle, self.snapshot, self.vectors, self.answering = newest
        return True

    def report(self, at_us: int, name: str = "scorer") -> Heartbeat:
        """Say what this scorer serves, in a small file that is held against the pointer.

        Parameters
        ----------
        at_us : int
            Log time, microseconds: that of the request at hand.
        name : str
            Of this scorer; another one's report has another name.

        Raises
        ------
        NothingServed
            If this scorer was not made by :meth:`current`.
        """
        if self._folders is None:
            raise NothingServed("this scorer follows no pointers; make it by Scorer.current()")
        snapshot = "" if self.snapshot is None else self.snapshot.digest
        return beat(self._folders.serving, name, self.bundle.digest, snapshot, at_us)

    def candidates(
        self,
        user_ids: Sequence[str],
        eligible: EligibleAds | Iterable[str] | None,
        limit: int,
        *,
        without_seen: bool = True,
    ) -> RetrievedAds:
        """Return ads for users: what similar users engaged with lately, to be scored.

        Who has no vector, or whose list would be empty, gets the ads that most users engaged with
        lately; which way each list came, and why, stands in the result. A user's list does not
        depend on the others.

        Parameters
        ----------
        user_ids : sequence of str, length q
        eligible : EligibleAds, iterable of str, or None
            Ids of ads whose budget and targeting allow them now; None: all. Whoever asks often
            makes an :class:`EligibleAds` when they change, so that they are looked up once.
        limit : int
            Ads a user, at most.
        without_seen : bool
            Leave out what the user has engaged with.

        Returns
        -------
        RetrievedAds of q users

        Raises
        ------
        NoCandidates
            If the bundle carries no candidate index.
        ValueError
            If `limit` is below 1.
        """
        if self.answering is None:
            raise NoCandidates(
                f"bundle {self.bundle.digest} carries no candidate index; materialize "
                "embeddings/candidates, then serving/bundle, and promote it"
            )
        return self.answering.ads_for(
            user_ids, eligible, limit, self.bundle.digest, without_seen=without_seen
        )

    def score(self, request: Mapping[str, Any]) -> Decision:
        """Score one request.

        Parameters
        ----------
        request : mapping
            The feature contract's columns; ``request_id``, ``impression_id`` and ``occurred_us``
            (microseconds) if known. Other keys are not looked at.

        Returns
        -------
        Decision
            Equal, to the bit, to the same request's among many.
        """
        return self.score_requests([request]).one(0)

    def score_requests(self, requests: Sequence[Mapping[str, Any]]) -> Decisions:
        """Score requests given as mappings; see :meth:`score`.

        Parameters
        ----------
        requests : sequence of mappings, length n

        Returns
        -------
        Decisions of length n

        Raises
        ------
        TypeError
            If a text column holds a number or the other way round.
        """
        contract = self.bundle.contract
        fallbacks: list[Fallback] = []
        columns: dict[str, pa.Array] = {}
        for name in contract.columns:
            absent = np.array([name not in request for request in requests], np.bool_)
            if absent.any():
                fallbacks.append(Fallback(_missing(name), absent))
            values = [request.get(name) for request in requests]
            is_text = name in contract.text_columns
            columns[name] = _texts(name, values) if is_text else _numbers(name, values)
        identity = {
            name: _texts(name, [request.get(name) for request in requests])
            for name in IDENTITY
            if any(request.get(name) is not None for request in requests)
        }
        moments = [request.get(OCCURRED) for request in requests]
        has_moments = len(moments) > 0 and all(moment is not None for moment in moments)
        occurred = np.array(moments, np.int64) if has_moments else None
        return self._decided(columns, identity, occurred, fallbacks, len(requests))

    def score_many(self, requests: Requests) -> Decisions:
        """Score requests given as columns.

        Parameters
        ----------
        requests : pa.Table, or mapping of str to Arrow column of shape (n,)
            As for :meth:`score`: texts as string, large_string or dictionary, whole-number texts
            are written out; numbers of any type; nulls allowed.

        Returns
        -------
        Decisions of length n

        Raises
        ------
        TypeError
            If a text column is not of texts.
        ValueError
            If the columns differ in length, or a request has no time and others have.
        """
        contract = self.bundle.contract
        given = _arrays(requests)
        lengths = {len(column) for column in given.values()}
        if len(lengths) > 1:
            raise ValueError(f"request columns differ in length: {sorted(lengths)}")
        n = lengths.pop() if lengths else 0
        fallbacks: list[Fallback] = []
        columns: dict[str, pa.Array] = {}
        for name in contract.columns:
            is_text = name in contract.text_columns
            if name in given:
                columns[name] = cast_column(given[name], is_text)
            else:
                fallbacks.append(Fallback(_missing(name), np.ones(n, np.bool_)))
                columns[name] = _texts(name, [None] * n) if is_text else _numbers(name, [None] * n)
        identity = {name: cast_column(given[name], True) for name in IDENTITY if name in given}
        occurred = _moments(given[OCCURRED]) if OCCURRED in given else None
        return self._decided(columns, identity, occurred, fallbacks, n)

    def _decided(
        self,
        columns: dict[str, pa.Array],
        identity: dict[str, pa.Array],
        occurred_us: np.ndarray | None,
        fallbacks: list[Fallback],
        n: int,
    ) -> Decisions:
        contract = self.bundle.contract
        everywhere = np.ones(n, np.bool_)
        read = read_columns(contract, columns)
        looked_up = self._looked_up(read)
        end_us = None
        too_old = np.zeros(n, np.bool_)
        if self.snapshot is None:
            if contract.entities:
                fallbacks.append(Fallback("no snapshot: every count is 0", everywhere))
        else:
            end_us = self.snapshot.end_us
            if occurred_us is None:
                fallbacks.append(
                    Fallback("no request time: the age of the counts is unknown", everywhere)
                )
            else:
                lag_hours = contract.rate_lag_hours
                fallbacks.extend(_untimely(UNTIMELY_SNAPSHOT, lag_hours, end_us, occurred_us))
                too_old = self.bundle.too_old(end_us, occurred_us)
                if too_old.any():
                    looked_up.forget(too_old)
                    fallbacks.append(
                        Fallback("counts too old to be taken: every one is 0", too_old)
                    )
        if contract.vectors is not None:
            used = None if self.vectors is None else self.vectors.digest
            columns[VECTORS_USED] = string_array([None if old else used for old in too_old])
            fallbacks.extend(self._without_vectors_due(contract.vectors, occurred_us, everywhere))
        fallbacks.extend(Fallback(reason, everywhere) for reason in self.bundle.missing())
        scores = self.bundle.score(read, looked_up)
        fallbacks.extend(_lower_rungs(scores))
        return Decisions(
            contract=contract,
            identity=identity,
            occurred_us=occurred_us,
            columns=columns,
            counts=looked_up,
            probabilities=scores.probabilities,
            logits=scores.logits,
            rungs=scores.rungs,
            snapshot_end_us=end_us,
            fallbacks=tuple(fallbacks),
            bundle_hash=self.bundle.digest,
            snapshot_hash="" if self.snapshot is None else self.snapshot.digest,
            log_share=self.bundle.log_share,
            vectors_end_us=None if self.vectors is None else self.vectors.hour_us + HOUR_US,
        )

    def _without_vectors_due(
        self, features: VectorFeatures, occurred_us: np.ndarray | None, everywhere: np.ndarray
    ) -> Iterator[Fallback]:
        """Say which requests have no vectors, or not those that training would have used."""
        if self.vectors is None:
            yield Fallback("no user vectors: every one is unknown", everywhere)
        elif occurred_us is not None:
            end_us = self.vectors.hour_us + HOUR_US
            yield from _untimely(UNTIMELY_VECTORS, features.lag_hours, end_us, occurred_us)

    def _looked_up(self, read: ReadColumns) -> LookedUp:
        contract = self.bundle.contract
        looked_up = LookedUp.nothing(contract, len(read))
        if len(read) and contract.entities and self.snapshot is not None:
            hashes = entity_hashes(contract, read)
            looked_up = counts_of(contract, self.snapshot.counts, hashes)
        if contract.vectors is not None and self.vectors is not None:
            hashes = vector_hashes(contract, read)
            looked_up.vectors[:] = vector_numbers(contract.vectors, self.vectors, hashes)
        return looked_up


def cast_column(column: pa.Array, is_text: bool) -> pa.Array:
    """Return a given column as encoding reads it: texts, or float64."""
    kind = column.type
    if not is_text:
        return column if pa.types.is_float64(kind) else pc.cast(column, pa.float64())
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return pc.cast(column, pa.large_string())
    return column


def _published(
    folders: _Folders, opened: PublishedSnapshot | None = None
) -> PublishedSnapshot | None:
    pointer = read_pointer(folders.serving, SNAPSHOT)
    if pointer is None:
        return None
    if opened is not None and opened.digest == pointer.digest:
        return opened
    return PublishedSnapshot.read(folders.snapshots, pointer.digest)


def _published_vectors(
    folders: _Folders, bundle: Bundle, opened: PublishedVectors | None = None
) -> PublishedVectors | None:
    """Open what the pointer names, if the bundle reads vectors."""
    pointer = read_pointer(folders.serving, USER_VECTORS)
    if pointer is None or bundle.contract.vectors is None:
        return None
    if opened is not None and opened.digest == pointer.digest:
        return opened
    return read_published(folders.vectors, pointer.digest)


def _newest_index(
    folders: _Folders, bundle: Bundle, opened: AnsweringIndex | None, guard: VersionGuard
) -> AnsweringIndex | None:
    """Open what the pointer names, if the bundle carries an index and it is of its encoder."""
    if bundle.candidate_index is None:
        return None
    pointer = read_pointer(folders.serving, CANDIDATE_INDEX)
    return newest_index(bundle.candidate_index, opened, pointer, folders.vectors, guard)


def _check_fits(
    bundle: Bundle, snapshot: PublishedSnapshot | None, vectors: PublishedVectors | None
) -> None:
    if snapshot is not None:
        check_contract(bundle.contract, snapshot.counts)
    if vectors is not None and bundle.contract.vectors is not None:
        check_vectors(bundle.contract.vectors, vectors)


def _untimely(
    what: tuple[str, str], lag_hours: int, end_us: int, occurred_us: np.ndarray
) -> Iterator[Fallback]:
    """Say where something is not what training would have used for the request."""
    due_us = published_hour(lag_hours, occurred_us) + HOUR_US
    for reason, rows in zip(what, (end_us < due_us, end_us > due_us), strict=True):
        if rows.any():
            yield Fallback(reason, rows)


def _lower_rungs(scores: Scores) -> Iterator[Fallback]:
    """Say which rows another rung than the whole mixture answered, by goal and rung."""
    for goal, rungs in scores.rungs.items():
        if np.count_nonzero(rungs):
            for rung, means in MEANS.items():
                rows = rungs == rung
                if rows.any():
                    yield Fallback(f"rung {RUNGS[rung]} of {goal}: {means}", rows)


def _missing(name: str) -> str:
    return f"missing column {name}: null"


def _texts(name: str, values: Sequence[Any]) -> pa.Array:
    wrong = next((v for v in values if v is not None and not isinstance(v, str)), None)
    if wrong is not None:
        raise TypeError(f"{name} is a text column, got {wrong!r}; pass a string or None")
    return string_array(values)


def _numbers(name: str, values: Sequence[Any]) -> pa.Array:
    wrong = next((v for v in values if isinstance(v, str)), None)
    if wrong is not None:
        raise TypeError(f"{name} is a numeric column, got {wrong!r}; pass a number or None")
    numbers = [math.nan if v is None else float(v) for v in values]
    return numbers_array(np.array(numbers, np.float64))


def _arrays(requests: Requests) -> dict[str, pa.Array]:
    arrays: dict[str, pa.Array] = {}
    given = (
        requests.items()
        if isinstance(requests, Mapping)
        else zip(requests.column_names, requests.columns, strict=True)
    )
    for name, column in given:
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
            if isinstance(column, pa.ChunkedArray):  # a text column past 2 GiB stays in chunks
                wide = [chunk.cast(pa.large_string()) for chunk in column.chunks]
                column = pa.concat_arrays(wide)
        arrays[name] = column
    return arrays


def _moments(column: pa.Array) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"{column.null_count} requests have no {OCCURRED}; give it to all or none")
    whole = column if pa.types.is_int64(column.type) else pc.cast(column, pa.int64())
    if not len(whole):
        return np.zeros(0, np.int64)
    return np.frombuffer(whole.buffers()[1], np.int64, len(whole), whole.offset * 8)
