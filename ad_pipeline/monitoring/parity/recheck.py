"""Logged decisions, re-checked by the bundle and the snapshot that each names, hour by hour.

Three questions about every decision. Do the logged features give the logged score again, bit for
bit? Were the logged features the right ones: the columns as the impression's own row has them (what
was fetched for scoring beside what was logged), the counts as the named snapshot has them? And did
serving keep its objectives? What differs gets a cause (:mod:`.causes`). Decisions come in as files,
written by whoever serves; when there are none, that is said and never counted as passed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.checkpoints import is_pointed
from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    FeatureContract,
    LookedUp,
    ReadColumns,
    entity_hashes,
    read_columns,
)
from ad_pipeline.features.rates import (
    counts_of,
    pointer,
    read_hour,
    snapshot_hour,
)
from ad_pipeline.monitoring.parity.causes import (
    ACT,
    Explanation,
    Finding,
    Sides,
    feature_findings,
    late_snapshot,
    score_finding,
    tested_hours,
)
from ad_pipeline.monitoring.parity.comparison import (
    Parity,
    State,
    compare_features,
    compare_score_columns,
)
from ad_pipeline.monitoring.parity.decision_hours import KEY, decisions_by_hour
from ad_pipeline.monitoring.parity.decision_log import (
    listed,
    logged_columns,
    logged_inputs_of,
)
from ad_pipeline.monitoring.parity.logged_features import logged_features
from ad_pipeline.monitoring.parity.logged_vectors import (
    look_vectors_up,
    vectors_used,
    with_other_vectors,
)
from ad_pipeline.monitoring.parity.objectives import Measured, measured_objectives
from ad_pipeline.monitoring.tables import (
    PARITY,
    PARITY_FINDINGS,
    SERVING_OBJECTIVES,
    TABLES,
    parity_rows,
)
from ad_pipeline.serving.bundle import Bundle, open_bundle
from ad_pipeline.serving.decisions import RATES_AGE, count_columns
from ad_pipeline.serving.promotion import history
from ad_pipeline.serving.scorer import PublishedSnapshot, cast_column
from ad_pipeline.warehouse import Warehouse, arrow_rows, one_row, replace_hours, select

OTHER_BUNDLES = 3
"""Bundles that served before, tried as the cause of a score that is not given again."""


@dataclass(frozen=True)
class RecheckedHour:
    """The decisions of one hour and bundle, re-checked.

    Attributes
    ----------
    hour_us : int
    bundle_hash : str
        Empty without decisions.
    decisions : int
    without_impression : int
        Decisions whose impression our log does not have: their scores are checked, their features
        cannot be.
    features, scores : Parity
    findings : tuple of Finding
        What differs, with its cause, and what left its objective.
    measured : tuple of Measured
    """

    hour_us: int
    bundle_hash: str
    decisions: int
    without_impression: int
    features: Parity
    scores: Parity
    findings: tuple[Finding, ...] = ()
    measured: tuple[Measured, ...] = field(default=(), repr=False)

    @property
    def rows(self) -> pa.Table:
        """The comparison as rows of ``monitoring.parity``."""
        return parity_rows(
            self.hour_us, self.bundle_hash, features=self.features, scores=self.scores
        )

    @property
    def finding_rows(self) -> pa.Table:
        """The findings as rows of ``monitoring.parity_findings``."""
        return arrow_rows(
            PARITY_FINDINGS,
            [
                {
                    "hour_us": self.hour_us,
                    "bundle_hash": self.bundle_hash,
                    "comparison": found.comparison,
                    "name": found.name,
                    "cause": found.explanation.cause,
                    "severity": "severe" if found.severe else "warning",
                    "rows": found.rows,
                    "offending": found.offending,
                    "explained": found.explanation.explained,
                    "evidence": found.explanation.evidence,
                    "example_keys": ", ".join(found.example_keys),
                    "act": ACT[found.explanation.cause],
                }
                for found in self.findings
            ],
        )

    @property
    def measured_rows(self) -> pa.Table:
        """The measures as rows of ``monitoring.serving_objectives``."""
        return arrow_rows(
            SERVING_OBJECTIVES,
            [
                {
                    "hour_us": self.hour_us,
                    "bundle_hash": self.bundle_hash,
                    "measure": each.measure,
                    "name": each.name,
                    "value": each.value,
                    "objective": each.objective,
                    "kept": each.kept,
                    "rows": each.rows,
                }
                for each in self.measured
            ],
        )

    @property
    def state(self) -> State:
        """Passed only if both comparisons passed; features need an impression to compare with."""
        states = {self.scores.state, self.features.state}
        if "failed" in states:
            return "failed"
        return self.scores.state

    @property
    def score_mismatches(self) -> int:
        """Scores that the named bundle does not give again."""
        return sum(rate.rows - rate.equal for rate in self.scores.rates)

    @property
    def feature_mismatch_rate(self) -> float:
        """Highest mismatch rate of any feature."""
        return max((rate.mismatch_rate for rate in self.features.rates), default=0.0)

    @property
    def missing(self) -> int:
        """Values that only the recomputation has."""
        return sum(rate.missing for rate in self.features.rates)

    @property
    def extra(self) -> int:
        """Values that only the log has."""
        return sum(rate.extra for rate in self.features.rates)


def record_parity(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> tuple[RecheckedHour, ...]:
    """Re-check the decisions of some hours and keep what was found.

    Parameters and errors are those of :func:`recheck_decisions`.

    Returns
    -------
    tuple of RecheckedHour
        Written to ``monitoring.parity``, ``monitoring.parity_findings`` and
        ``monitoring.serving_objectives``.
    """
    warehouse.create(TABLES)
    rechecked = tuple(recheck_decisions(warehouse, deployment, start_us, end_us))
    with warehouse.writer() as connection:
        for table, rows in (
            (PARITY, [hour.rows for hour in rechecked]),
            (PARITY_FINDINGS, [hour.finding_rows for hour in rechecked]),
            (SERVING_OBJECTIVES, [hour.measured_rows for hour in rechecked]),
        ):
            connection.register("checked", pa.concat_tables(rows))
            replace_hours(connection, table, "SELECT * FROM checked", {}, start_us, end_us)
    return rechecked


def scores_not_given_again(warehouse: Warehouse, hours: int) -> str:
    """Say which of the newest hours with decisions failed score parity; '' if none did.

    Parameters
    ----------
    warehouse : Warehouse
    hours : int
        How many hours are looked at; see ``settings.parity.guard_hours``.
    """
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        failed, last_us = one_row(
            connection, select("monitoring.failed_score_parity"), {"hours": hours}
        )
    if not failed:
        return ""
    return f"{failed} of the newest {hours} served hours, last {timestamp(last_us)}"


def recheck_decisions(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[RecheckedHour]:
    """Re-check the decisions of the log hours ``[start_us, end_us)``.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
        Its bundles and snapshots are opened, each verified.
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    RecheckedHour
        One per hour and bundle; an hour without decisions yields one that says so.

    Raises
    ------
    RepeatedKey
        If a request was decided twice, or led to two impressions.
    MissingCheckpoint, CorruptBundle
        If a decision names a bundle or a snapshot that is not there or not intact.
    """
    bundles: dict[str, Bundle] = {}
    for hour_us, decisions in decisions_by_hour(warehouse, start_us, end_us):
        if not decisions.num_rows:
            nothing = compare_score_columns(pa.array([], pa.string()), {}, {})
            yield RecheckedHour(hour_us, "", 0, 0, nothing, nothing)
            continue
        for digest in sorted(decisions.column("bundle_hash").unique().to_pylist()):
            if digest not in bundles:
                bundles[digest] = open_bundle(deployment.bundles, digest)
            of_bundle = _where(decisions, "bundle_hash", digest)
            yield recheck_bundle(deployment, bundles[digest], hour_us, of_bundle)
            del of_bundle
        del decisions  # else these hours are held while the next ones are read


def recheck_bundle(
    deployment: Deployment, bundle: Bundle, hour_us: int, decisions: pa.Table
) -> RecheckedHour:
    """Re-check the decisions of one hour and bundle."""
    settings = deployment.dataset.settings.parity
    contract = bundle.contract
    used = vectors_used(contract, decisions.column("features"))
    impressions = _Impressions.of(deployment, bundle, decisions, used)
    recomputed = impressions.table(decisions.column(KEY))
    logged = logged_features(contract, decisions, recomputed, impressions.inputs, KEY)
    keys = logged.column(KEY)
    columns, looked_up = (
        impressions.inputs if logged is recomputed else logged_inputs_of(contract, logged)
    )
    read = read_columns(contract, columns)
    if logged is not recomputed:
        look_vectors_up(deployment, contract, used, read, looked_up)
    rescored = _arrays(bundle.score(read, looked_up).probabilities)
    logged_scores = logged_columns(decisions.column("scores"))
    unscored = {goal: pa.nulls(decisions.num_rows) for goal in rescored}
    scores = compare_score_columns(keys.combine_chunks(), unscored | logged_scores, rescored)
    measured = measured_objectives(
        settings,
        contract.logged_columns,
        {name: logged.column(name).combine_chunks() for name in logged.column_names if name != KEY},
        logged_columns(decisions.column("ages_us")),
        listed(decisions.column("fallbacks")),
        [(unscored | logged_scores)[goal] for goal in rescored],
        decisions.num_rows,
    )
    features = (
        compare_features(_rows(logged, impressions.places), recomputed, KEY)
        if len(impressions.places)
        else compare_score_columns(pa.array([], pa.string()), {}, {})
    )
    findings = [*_objectives_left(hour_us, contract, measured, impressions)]
    if features.state == "failed":
        findings += feature_findings(
            impressions.sides(logged),
            impressions.counts_at,
            partial(impressions.counts_as_logged, columns),
            settings,
        )
    if scores.state == "failed":
        findings += _score_findings(
            deployment, bundle, keys, logged_scores, rescored, impressions, read, looked_up, used
        )
    return RecheckedHour(
        hour_us,
        bundle.digest,
        decisions.num_rows,
        decisions.num_rows - len(impressions.places),
        features,
        scores,
        tuple(findings),
        tuple(measured),
    )


@dataclass(frozen=True)
class _Impressions:
    """What our own log and snapshots say about those decisions that have an impression.

    Attributes
    ----------
    contract : FeatureContract
    deployment : Deployment
    places : Arrow array of shape (m,), int64
        Their rows among the decisions.
    columns : dict of str to Arrow array of shape (m,)
    hashes : ndarray of shape (m, E), uint64
    counts : LookedUp of m rows
        In the snapshot, and the vectors, that each decision names.
    named_us : ndarray of shape (m,), int64
        Hour of that snapshot; of the one that was due where none is named.
    occurred_us : ndarray of shape (m,), int64
    """

    contract: FeatureContract
    deployment: Deployment
    places: pa.Array
    columns: dict[str, pa.Array]
    hashes: np.ndarray
    counts: LookedUp
    named_us: np.ndarray
    occurred_us: np.ndarray

    @classmethod
    def of(
        cls,
        deployment: Deployment,
        bundle: Bundle,
        decisions: pa.Table,
        used: pa.Array,
    ) -> "_Impressions":
        """Read the impressions' columns and look them up in what the decisions name.

        That is their snapshots, and by `used` their vectors.
        """
        contract = bundle.contract
        there = np.flatnonzero(decisions.column("impression_id").is_valid().to_numpy())
        wanted = [*contract.columns, "occurred_us", "snapshot_hash"]
        found = _rows(decisions.select(wanted), pa.array(there))
        columns = {
            name: cast_column(found.column(name).combine_chunks(), name in contract.text_columns)
            for name in contract.columns
        }
        read = read_columns(contract, columns)
        hashes = entity_hashes(contract, read)
        counts = LookedUp.nothing(contract, len(there))
        occurred_us = found.column("occurred_us").to_numpy()
        hours, hour_of_row = np.unique(occurred_us // HOUR_US, return_inverse=True)
        due = [snapshot_hour(contract, hour * HOUR_US) for hour in hours.tolist()]
        named_us = np.array(due, np.int64)[hour_of_row]
        named = found.column("snapshot_hash").combine_chunks().dictionary_encode()
        for code, digest in enumerate(named.dictionary.to_pylist()):
            rows = np.flatnonzero(named.indices.to_numpy() == code)
            if digest:
                snapshot = PublishedSnapshot.read(deployment.snapshots, digest).counts
                counts.put(rows, counts_of(contract, snapshot, hashes[rows]))
                named_us[rows] = snapshot.hour_us
        if contract.vectors is not None:
            columns[VECTORS_USED] = used.take(pa.array(there))
            look_vectors_up(deployment, contract, columns[VECTORS_USED], read, counts)
        counts.forget(bundle.too_old(named_us + HOUR_US, occurred_us))
        return cls(
            contract, deployment, pa.array(there), columns, hashes, counts, named_us, occurred_us
        )

    def table(self, keys: pa.ChunkedArray) -> pa.Table:
        """Return the recomputed features beside the keys of the decisions."""
        found = _rows(pa.table({KEY: keys.cast(pa.string())}), self.places)
        return pa.table({KEY: found.column(KEY), **self.features})

    @property
    def inputs(self) -> tuple[dict[str, pa.Array], LookedUp]:
        """What a scorer is given of the recomputed features."""
        return self.columns, self.counts

    @property
    def features(self) -> dict[str, pa.Array]:
        """The recomputed features, counts as float64."""
        counts = count_columns(self.contract, self.counts)
        return self.columns | {name: pa.array(values.astype(np.float64)) for name, values in counts}

    def sides(self, logged: pa.Table) -> Sides:
        """Return the logged features beside the recomputed ones."""
        found = _rows(logged, self.places)
        recomputed = {
            name: values.cast(pa.float64() if pa.types.is_floating(values.type) else pa.string())
            for name, values in self.features.items()
        }
        return Sides(
            keys=found.column(KEY).combine_chunks(),
            logged={
                name: found.column(name).combine_chunks()
                for name in found.column_names
                if name != KEY
            },
            recomputed=recomputed,
            counts=tuple(name for name, _ in count_columns(self.contract, self.counts)),
        )

    def counts_at(self, hours: int, rows: np.ndarray) -> Mapping[str, np.ndarray] | None:
        """Return counts of some rows as of so many hours after the snapshot that they name."""
        return self._counted(self.named_us[rows] + hours * HOUR_US, self.hashes[rows])

    def counts_as_logged(
        self, columns: Mapping[str, pa.Array], rows: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        """Return the named snapshot's counts of the entities that the logged columns name."""
        taken = pa.array(self.places.to_numpy()[rows])
        logged = {name: values.take(taken) for name, values in columns.items()}
        hashes = entity_hashes(self.contract, read_columns(self.contract, logged))
        nothing = LookedUp.nothing(self.contract, len(rows))
        return self._counted(self.named_us[rows], hashes) or dict(
            count_columns(self.contract, nothing)
        )

    def _counted(self, hours_us: np.ndarray, hashes: np.ndarray) -> Mapping[str, np.ndarray] | None:
        """Return the counts that each row's hour has of its entities; None without any hour."""
        counts = LookedUp.nothing(self.contract, len(hours_us))
        found = False
        for hour_us in np.unique(hours_us).tolist():
            if is_pointed(self.deployment.snapshots, pointer(hour_us)):
                found = True
                snapshot = read_hour(self.deployment.snapshots, hour_us, verify=False)
                chosen = np.flatnonzero(hours_us == hour_us)
                counts.put(chosen, counts_of(self.contract, snapshot, hashes[chosen]))
        return dict(count_columns(self.contract, counts)) if found else None


def _objectives_left(
    hour_us: int,
    contract: FeatureContract,
    measured: list[Measured],
    impressions: _Impressions,
) -> Iterator[Finding]:
    """Yield a finding for each objective that was not kept."""
    for each in measured:
        if each.kept:
            continue
        explanation = Explanation("no longer within its objective", each.in_words, 1.0)
        due_us = snapshot_hour(contract, hour_us)
        late = impressions.named_us < due_us
        if each.measure == "age_hours" and each.name == RATES_AGE and late.any():
            words = late_snapshot(int(impressions.named_us.min()), due_us)
            explanation = Explanation(
                "stale aggregate", f"{words}; {each.in_words}", float(late.mean())
            )
        elif each.measure == "coverage":
            explanation = Explanation("null burst", f"null at both ends: {each.in_words}", 1.0)
        share = 1 - each.value if each.measure == "coverage" else min(each.value, 1.0)
        yield Finding(
            comparison="objectives",
            name=" ".join(filter(None, (each.measure, each.name))),
            rows=each.rows,
            offending=each.rows if each.measure == "age_hours" else round(share * each.rows),
            explanation=explanation,
            example_keys=(),
            severe=False,
        )


def _score_findings(
    deployment: Deployment,
    bundle: Bundle,
    keys: pa.ChunkedArray,
    logged: Mapping[str, pa.Array],
    rescored: Mapping[str, pa.Array],
    impressions: _Impressions,
    read: ReadColumns,
    looked_up: LookedUp,
    used: pa.Array,
) -> Iterator[Finding]:
    """Yield a finding for each goal whose logged scores the named bundle does not give again."""
    settings = deployment.dataset.settings.parity
    nothing = pa.nulls(len(keys), pa.float64())
    served = dict.fromkeys(move.digest for move in reversed(history(deployment.serving)))
    others = [digest for digest in served if digest != bundle.digest][:OTHER_BUNDLES]
    otherwise: dict[str, dict[str, pa.Array]] = {}
    for digest in others:
        other = open_bundle(deployment.bundles, digest)
        if other.contract == bundle.contract:
            otherwise[digest] = _arrays(other.score(read, looked_up).probabilities)
    of_hours = {
        hours: _arrays(bundle.score(read, instead).probabilities)
        for hours, instead in with_other_vectors(
            deployment, bundle.contract, used, read, looked_up, tested_hours(settings)
        )
    }
    again = bundle.score(read_columns(bundle.contract, impressions.columns), impressions.counts)
    at_decision = np.full(len(keys), -1, np.int64)
    at_decision[impressions.places.to_numpy()] = np.arange(len(impressions.places))
    takes = pa.array(at_decision, mask=at_decision < 0)
    for goal, given_again in rescored.items():
        found = score_finding(
            goal,
            keys.combine_chunks(),
            logged.get(goal, nothing),
            given_again,
            {digest: scores[goal] for digest, scores in otherwise.items() if goal in scores},
            pa.array(again.probabilities[goal]).take(takes),
            settings,
            {hours: scores[goal] for hours, scores in of_hours.items()},
        )
        if found is not None:
            yield found


def _arrays(probabilities: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
    return {goal: pa.array(values) for goal, values in probabilities.items()}


def _rows(table: pa.Table, places: pa.Array) -> pa.Table:
    """Return some rows in their order; without copying, if they are all."""
    return table if len(places) == len(table) else table.take(places)


def _where(rows: pa.Table, column: str, value: str) -> pa.Table:
    if rows.column(column).unique().to_pylist() == [value]:
        return rows
    return rows.filter(pc.call_function("equal", [rows.column(column), pa.scalar(value)]))
