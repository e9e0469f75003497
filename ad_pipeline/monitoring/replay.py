"""Candidate replay: a bundle in a fresh process against the batch path, on the last closed day.

The fresh process is :mod:`ad_pipeline.serving.replay`, which runs the very scorer that serves. Its
scores are compared bit for bit with those computed here from the checkpoints that the bundle names,
and its features with counts that SQL recounts from the events. It blocks promotion; it never stands
in for production parity, which looks at what was really served.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, hour_of, published_hour
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.published import pointer as vectors_pointer
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    FeatureContract,
    category_hashes,
    dense,
    slots,
    text_hashes,
)
from ad_pipeline.features.rates import pointer as snapshot_pointer
from ad_pipeline.features.rates import recount, snapshot_hour
from ad_pipeline.learners.batch.batch_hours import open_batch_model
from ad_pipeline.learners.deep.deep_hours import open_deep
from ad_pipeline.learners.ensemble.ensemble import mixed_probabilities
from ad_pipeline.learners.ensemble.ensembles import open_ensemble
from ad_pipeline.learners.ftrl.exported_weights import exported
from ad_pipeline.learners.online.online_hours import open_expert
from ad_pipeline.monitoring.parity.comparison import Parity, compare_features, compare_scores
from ad_pipeline.monitoring.parity.decision_log import features_of
from ad_pipeline.monitoring.tables import CANDIDATE_REPLAY, TABLES, candidate_replay_rows
from ad_pipeline.serving.bundle import BATCH, DEEP, ONLINE, Bundle, GoalModels, open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.decisions import EVERYTHING
from ad_pipeline.serving.ladder import read_ladder
from ad_pipeline.serving.replay import SNAPSHOT_COLUMN
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

REPLAYED_HOURS = 24
KEY = "impression_id"

RECOUNTED_HOURS = 2
RECOUNTED_ROWS = 2000
"""Features are held against SQL for this many hours of the day and rows of each: a recount reads
the whole window of an hour."""


class ReplayFailed(RuntimeError):
    """The fresh process ended with an error; the message holds what it said."""


@dataclass(frozen=True)
class Replayed:
    """What a candidate's replay found.

    Attributes
    ----------
    bundle_hash : str
    start_us, end_us : int
        The replayed hours, microseconds.
    requests : int
    features, scores : Parity
        The fresh process is the logged side, the batch path the recomputed one.
    """

    bundle_hash: str
    start_us: int
    end_us: int
    requests: int
    features: Parity
    scores: Parity


def record_replay(warehouse: Warehouse, deployment: Deployment) -> Replayed:
    """Replay the candidate bundle and keep what was found in ``monitoring.candidate_replay``.

    Parameters and errors are those of :func:`replay_candidate`.
    """
    warehouse.create(TABLES)
    replayed = replay_candidate(warehouse, deployment)
    rows = candidate_replay_rows(
        replayed.bundle_hash,
        replayed.start_us,
        replayed.end_us,
        features=replayed.features,
        scores=replayed.scores,
    )
    with warehouse.writer() as connection:
        connection.register("replayed", rows)
        connection.execute(
            f"DELETE FROM {CANDIDATE_REPLAY.name} WHERE bundle_hash = $bundle",
            {"bundle": replayed.bundle_hash},
        )
        connection.execute(f"INSERT INTO {CANDIDATE_REPLAY.name} BY NAME SELECT * FROM replayed")
    return replayed


def replay_passed(warehouse: Warehouse, bundle_hash: str) -> bool:
    """Return whether a bundle was replayed and agreed in features and scores."""
    with warehouse.reader() as connection:
        (passed,) = one_row(
            connection,
            f"SELECT bool_and(state = 'passed') FROM {CANDIDATE_REPLAY.name} "
            "WHERE bundle_hash = $bundle",
            {"bundle": bundle_hash},
        )
    return bool(passed)


def replay_candidate(warehouse: Warehouse, deployment: Deployment) -> Replayed:
    """Replay the candidate bundle on the last closed day of the log.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Raises
    ------
    MissingCheckpoint
        If there is no candidate, or a checkpoint that it names is gone.
    CorruptBundle, CorruptCheckpoint
        If something is not intact.
    ReplayFailed
        If the fresh process failed.
    """
    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    start_us, end_us, served = _last_day(warehouse, deployment)
    contract = bundle.contract
    occurred_us = served.column("occurred_us").to_numpy()
    served = _with_what_was_due(deployment, contract, served, occurred_us)
    replayed = _in_fresh_process(deployment, bundle, served)
    scores = compare_scores(
        _long(replayed, {g.goal: replayed.column(f"probability:{g.goal}") for g in bundle.goals}),
        _long(served, batch_path_probabilities(deployment, bundle, served)),
        key=(KEY, "goal"),
    )
    with warehouse.reader() as connection:
        features = _against_sql(connection, contract, served, replayed, occurred_us)
    return Replayed(bundle.digest, start_us, end_us, served.num_rows, features, scores)


def batch_path_probabilities(
    deployment: Deployment, bundle: Bundle, served: pa.Table
) -> dict[str, np.ndarray]:
    """Score impressions with the checkpoints that a bundle names, as the pipeline itself scores.

    Parameters
    ----------
    deployment : Deployment
    bundle : Bundle
        Only its names are used, and how weights were rounded: no weight of it is read.
    served : pyarrow.Table
        Impressions, n rows.

    Returns
    -------
    dict of str to ndarray of shape (n,), float64
        Probability by goal.
    """
    contract = FeatureContract.from_dataset(deployment.dataset)
    read, looked_up = read_as_served(deployment, contract, served)
    tokens, numbers = slots(contract, read, looked_up), dense(contract, read, looked_up)
    categories = category_hashes(contract, read)
    found: dict[str, np.ndarray] = {}
    for models in bundle.goals:
        online = _online_logits(deployment, models, tokens)
        logits = {ONLINE: online}
        if models.batch_checkpoint is not None:
            batch = open_batch_model(deployment, models.batch_checkpoint)
            logits[BATCH] = batch.predict_logits(numbers, categories, online)
        if models.deep_checkpoint is not None:
            logits[DEEP] = open_deep(deployment, models.deep_checkpoint).logits(tokens)
        fitted = open_ensemble(deployment, models.goal)
        ensemble = fitted.ensemble if fitted else None
        slices = text_hashes(contract, read, ensemble.sliced_by if ensemble else None)
        mixed = mixed_probabilities(ensemble, logits, ONLINE, slices)
        if models.ladder_checkpoint is not None:
            ladder = read_ladder(deployment.checkpoints, models.ladder_checkpoint)
            mixed = ladder.answers(ladder.rungs(read, looked_up), read, mixed)
        found[models.goal] = mixed
    return found


def _online_logits(deployment: Deployment, models: GoalModels, tokens: np.ndarray) -> np.ndarray:
    """Score by the checkpoint itself, or by its weights rounded as the bundle says it rounded."""
    expert = open_expert(deployment.checkpoints, models.online_checkpoint)
    if models.online.seed is None:
        return np.ascontiguousarray(expert.logits(tokens)[:, models.configuration])
    linear = expert.linear_weights(models.configuration)
    if linear is None:
        raise ReplayFailed(f"the checkpoint of {models.goal} has no linear weights to be rounded")
    rounded = exported(linear, models.online.format, models.online.seed, models.goal)
    return rounded.dense().logits(tokens)


def _last_day(warehouse: Warehouse, deployment: Deployment) -> tuple[int, int, pa.Table]:
    query = select("features.impressions_received")
    with warehouse.reader() as connection:
        (last_us,) = one_row(connection, "SELECT max(received_us) FROM events.impressions")
        end_us = deployment.dataset.start_us if last_us is None else hour_of(last_us) + HOUR_US
        start_us = end_us - REPLAYED_HOURS * HOUR_US
        parameters = {"start_us": start_us, "end_us": end_us}
        return (
            start_us,
            end_us,
            rows_of(connection, query, parameters),
        )


def _with_what_was_due(
    deployment: Deployment, contract: FeatureContract, served: pa.Table, occurred_us: np.ndarray
) -> pa.Table:
    """Name beside each impression the snapshot, and the vectors, that were due when it occurred."""
    named = {
        SNAPSHOT_COLUMN: _due(
            deployment, deployment.snapshots, snapshot_pointer, contract.rate_lag_hours, occurred_us
        )
    }
    if contract.vectors is not None:
        lag_hours = contract.vectors.lag_hours
        named[VECTORS_USED] = _due(
            deployment, deployment.vectors, vectors_pointer, lag_hours, occurred_us
        )
    for column, digests in named.items():
        served = served.append_column(column, pa.array(digests, pa.string()))
    return served


def _due(
    deployment: Deployment,
    root: Path,
    pointer: Callable[[int], str],
    lag_hours: int,
    occurred_us: np.ndarray,
) -> list[str | None]:
    """Return the digest of what was due in each row's hour; None before the first one."""
    due_us = published_hour(lag_hours, occurred_us)
    begun_us = hour_of(deployment.dataset.start_us)
    found = {
        hour_us: resolve(root, pointer(hour_us)) if hour_us >= begun_us else None
        for hour_us in np.unique(due_us).tolist()
    }
    return [found[hour_us] for hour_us in due_us.tolist()]


def _in_fresh_process(deployment: Deployment, bundle: Bundle, requests: pa.Table) -> pa.Table:
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        asked, answered = Path(folder) / "requests.parquet", Path(folder) / "scores.parquet"
        pq.write_table(requests, asked)
        ran = subprocess.run(
            [
                sys.executable, "-m", "ad_pipeline.serving.replay", "--bundle", str(bundle.path),
                "--requests", str(asked), "--snapshots", str(deployment.snapshots),
                "--vectors", str(deployment.vectors), "--out", str(answered),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode != 0:
            raise ReplayFailed(f"replay of {bundle.path} ended with {ran.returncode}: {ran.stderr}")
        return pq.read_table(answered)


def _long(rows: pa.Table, probabilities: Mapping[str, pa.ChunkedArray | np.ndarray]) -> pa.Table:
    """Lay probabilities out one row per impression and goal."""
    return pa.concat_tables(
        pa.table(
            {
                KEY: rows.column(KEY).cast(pa.string()),
                "goal": pa.repeat(goal, rows.num_rows),
                "probability": probability,
            }
        )
        for goal, probability in probabilities.items()
    )


def _against_sql(
    connection: duckdb.DuckDBPyConnection,
    contract: FeatureContract,
    served: pa.Table,
    replayed: pa.Table,
    occurred_us: np.ndarray,
) -> Parity:
    """Compare the fresh process's features of a few hours with a recount in SQL."""
    hours = occurred_us - occurred_us % HOUR_US
    distinct = np.unique(hours)
    chosen_hours = distinct[np.linspace(0, len(distinct) - 1, RECOUNTED_HOURS).astype(int)]
    used: list[pa.Table] = []
    counted: list[pa.Table] = []
    for hour_us in np.unique(chosen_hours).tolist():
        places = pa.array(np.flatnonzero(hours == hour_us)[:RECOUNTED_ROWS])
        used.append(replayed.take(places).select([KEY, "features"]))
        table = recount(connection, contract, snapshot_hour(contract, hour_us))
        counted.append(_recounted_features(contract, served.take(places), table))
    return compare_features(
        features_of(pa.concat_tables(used), KEY), pa.concat_tables(counted), KEY
    )


def _recounted_features(
    contract: FeatureContract, served: pa.Table, recounted: pa.Table
) -> pa.Table:
    """Lay out what SQL says the features of some impressions were, one column a feature."""
    cells = {
        (row["entity"], row["value"], row["goal"]): (row["anchors"], row["engagements"])
        for row in recounted.to_pylist()
    }
    columns: dict[str, pa.ChunkedArray | pa.Array] = {
        KEY: served.column(KEY),
        **{name: served.column(name) for name in contract.logged_columns},
    }
    for goal in contract.goals:
        for place, what in enumerate(("anchors", "engagements")):
            for entity in contract.entities:
                columns[f"{entity}.{goal.name}.{what}"] = pa.array(
                    [
                        float(cells.get((entity, value, goal.name), (0, 0))[place])
                        for value in served.column(entity).to_pylist()
                    ]
                )
            total = sum(
                counts[place]
                for (entity, _, name), counts in cells.items()
                if entity == contract.entities[0] and name == goal.name
            )
            columns[f"{EVERYTHING}.{goal.name}.{what}"] = pa.array([float(total)] * served.num_rows)
    return pa.table(columns)
