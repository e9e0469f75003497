"""Production parity: logged decisions, re-checked by the bundle and the snapshot that each names.

Two questions about every decision. Do the logged features give the logged score again, bit for bit?
And were the logged features the right ones, recomputed from the impression as our log has it and
the counts of the named snapshot? Decisions come in as files, written by whoever serves; when there
are none, that is said and never counted as passed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.encoding import read_columns
from ad_pipeline.monitoring.parity import (
    Parity,
    State,
    compare_features,
    compare_scores,
    features_of,
    scores_of,
)
from ad_pipeline.monitoring.tables import PRODUCTION_PARITY, TABLES, production_parity_rows
from ad_pipeline.serving.bundle import Bundle, open_bundle
from ad_pipeline.serving.decisions import count_columns, logged_inputs
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer
from ad_pipeline.warehouse import Warehouse, replace_hours, rows_of, select

KEY = "request_id"


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
    rows : pyarrow.Table
        Of ``monitoring.production_parity``.
    """

    hour_us: int
    bundle_hash: str
    decisions: int
    without_impression: int
    features: Parity
    scores: Parity

    @property
    def rows(self) -> pa.Table:
        """The comparison as rows of ``monitoring.production_parity``."""
        return production_parity_rows(
            self.hour_us, self.bundle_hash, features=self.features, scores=self.scores
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
        Written to ``monitoring.production_parity``.
    """
    warehouse.create(TABLES)
    rechecked = tuple(recheck_decisions(warehouse, deployment, start_us, end_us))
    with warehouse.writer() as connection:
        connection.register("checked", pa.concat_tables([hour.rows for hour in rechecked]))
        replace_hours(connection, PRODUCTION_PARITY, "SELECT * FROM checked", {}, start_us, end_us)
    return rechecked


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
    MissingCheckpoint, CorruptBundle
        If a decision names a bundle or a snapshot that is not there or not intact.
    """
    bundles: dict[str, Bundle] = {}
    for hour_us in hours_between(start_us, end_us):
        with warehouse.reader() as connection:
            decisions = _read(connection, hour_us)
        if not decisions.num_rows:
            nothing = compare_scores(_no_scores(), _no_scores())
            yield RecheckedHour(hour_us, "", 0, 0, nothing, nothing)
            continue
        for digest in sorted(set(decisions.column("bundle_hash").to_pylist())):
            if digest not in bundles:
                bundles[digest] = open_bundle(deployment.bundles, digest)
            of_bundle = _where(decisions, "bundle_hash", digest)
            yield _recheck(deployment, bundles[digest], hour_us, of_bundle)


def _read(connection: duckdb.DuckDBPyConnection, hour_us: int) -> pa.Table:
    query = select("monitoring.decisions_to_check")
    parameters = {"start_us": hour_us, "end_us": hour_us + HOUR_US}
    return rows_of(connection, query, parameters)


def _recheck(
    deployment: Deployment, bundle: Bundle, hour_us: int, decisions: pa.Table
) -> RecheckedHour:
    contract = bundle.contract
    logged = decisions.select([KEY, "features", "scores"]).to_pylist()
    columns, counts = logged_inputs(contract, [json.loads(row["features"]) for row in logged])
    rescored = bundle.score(read_columns(contract, columns), counts).probabilities
    scores = compare_scores(
        scores_of(logged, KEY),
        pa.concat_tables(
            pa.table(
                {
                    KEY: decisions.column(KEY),
                    "goal": pa.repeat(goal, len(probability)),
                    "probability": probability,
                }
            )
            for goal, probability in rescored.items()
        ),
    )
    has_impression = decisions.column("impression_id").is_valid()
    found = decisions.filter(has_impression)
    recomputed = [
        _recomputed(deployment, bundle, found, digest)
        for digest in sorted(set(found.column("snapshot_hash").to_pylist()))
    ]
    compared = [row for row, there in zip(logged, has_impression.to_pylist(), strict=True) if there]
    features = (
        compare_features(features_of(compared, KEY), pa.concat_tables(recomputed), KEY)
        if recomputed
        else compare_scores(_no_scores(), _no_scores())
    )
    return RecheckedHour(
        hour_us,
        bundle.digest,
        decisions.num_rows,
        decisions.num_rows - found.num_rows,
        features,
        scores,
    )


def _recomputed(
    deployment: Deployment, bundle: Bundle, decisions: pa.Table, snapshot_hash: str
) -> pa.Table:
    """Compute the features anew: our impression's columns, the named snapshot's counts."""
    rows = _where(decisions, "snapshot_hash", snapshot_hash)
    snapshot = (
        PublishedSnapshot.read(deployment.snapshots, snapshot_hash) if snapshot_hash else None
    )
    scored = Scorer(bundle, snapshot).score_many(
        rows.select([KEY, "occurred_us", *bundle.contract.columns])
    )
    return pa.table(
        {
            KEY: rows.column(KEY),
            **scored.columns,
            **{
                name: values.astype(np.float64)
                for name, values in count_columns(bundle.contract, scored.counts)
            },
        }
    )


def _no_scores() -> pa.Table:
    return scores_of([], KEY)


def _where(rows: pa.Table, column: str, value: str) -> pa.Table:
    return rows.filter(pa.array([found == value for found in rows.column(column).to_pylist()]))
