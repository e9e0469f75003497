"""The encoder over log hours: when one is trained, on what, and which is in force.

An encoder that is due after hour H learns labels that had matured by the end of H; it is in force
from H on, since vectors are computed when the hour is over. A label's sequence ends where the
vector ended that its impression could read (:func:`ad_pipeline.clocks.published_hour`). Rows of
users of whom nothing was known then are left out; to keep those who did something later would
keep them by their label. Users of fewer activities than get a vector are learnt all the same: what
they did says what content and ads are alike, and what was measured was learnt with them.

A training that dies goes on from its last checkpoint and ends in the same bytes. Learning itself is
:mod:`.training`, vectors of the encoder in force are :mod:`.vector_hours`. What users did next
(:mod:`.next_actions`) is learnt from the same activities, those of users who have a label: of a
horizon at a time, each from what could be read when it began.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.checkpoints import is_pointed, point, read_checkpoint, resolve, unpoint, unswept
from ad_pipeline.clocks import HOUR_US, hour_key, hours_between, published_hour
from ad_pipeline.datasets import Dataset, Deployment
from ad_pipeline.embeddings.activities import (
    ad_modality,
    ad_tokens,
    history_of,
    read_activities,
)
from ad_pipeline.embeddings.encoder import EmbeddingsExtraMissing
from ad_pipeline.embeddings.next_actions import actions_of, contrasted
from ad_pipeline.embeddings.published import USER, last_known_us
from ad_pipeline.embeddings.sentences import sentence_encoder_of
from ad_pipeline.embeddings.sequences import NEVER, History, Sequences
from ad_pipeline.embeddings.training import KIND, LabelledAds, Training
from ad_pipeline.hashing import uniform
from ad_pipeline.settings import UserVectorSettings
from ad_pipeline.xla import jax_or

if TYPE_CHECKING:
    import duckdb

    from ad_pipeline.warehouse import Warehouse


_BATCH_ROWS = 100_000


class TooFewLabels(ValueError):
    """Nothing to learn an encoder from yet; the message says how much there was."""


@dataclass(frozen=True)
class EncoderHour:
    """Which encoder is in force after an hour.

    Attributes
    ----------
    hour_us : int
        Start of the hour.
    digest : str or None
        Its checkpoint; None while there is none.
    cause : str
        Why it was trained in this hour, or "unchanged", or why there is none.
    trained : dict or None
        Figures of the training, if there was one.
    """

    hour_us: int
    digest: str | None
    cause: str
    trained: dict[str, float | int] | None


def pointer(hour_us: int) -> str:
    """Return the name of the encoder that is in force after an hour."""
    return f"{KIND}/{hour_key(hour_us)}"


def digest_after(deployment: Deployment, hour_us: int) -> str | None:
    """Return the checkpoint of the encoder in force after an hour, None if there is none yet."""
    root, name = deployment.checkpoints, pointer(hour_us)
    return resolve(root, name) if is_pointed(root, name) else None


def settings_of(dataset: Dataset) -> UserVectorSettings:
    """Return the settings of user vectors.

    Raises
    ------
    ValueError
        If the dataset file has none.
    """
    if dataset.settings.user_vectors is None:
        raise ValueError(
            f"{dataset.path}: settings.user_vectors is null; write 'user_vectors: {{}}' to have "
            "vectors of users"
        )
    return dataset.settings.user_vectors


def train_hours(
    warehouse: "Warehouse",
    deployment: Deployment,
    start_us: int,
    end_us: int,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[EncoderHour]:
    """Train where an encoder is due, and point every hour at the one in force after it.

    Parameters
    ----------
    warehouse : Warehouse
        With events and matured labels of the hours before ``end_us``.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.
    say : callable, optional
        Is given some twenty lines a training.

    Yields
    ------
    EncoderHour
        One per hour, in order, after its checkpoint is durable.

    Raises
    ------
    EmbeddingsExtraMissing, SentencesExtraMissing
        If JAX is not installed, or a modality reads sentences and their encoder is not.
    """
    jax_or(EmbeddingsExtraMissing)
    settings = settings_of(deployment.dataset)
    sentence_encoder_of(settings.encoder)
    for hour_us in hours_between(start_us, end_us):
        digest, trained = digest_after(deployment, hour_us - HOUR_US), None
        cause = _due(deployment, settings, hour_us, digest)
        if cause:
            try:
                digest, trained = _trained(warehouse, deployment, settings, hour_us, say)
            except TooFewLabels as error:
                cause = f"{cause}: {error}"
        if digest is not None:
            point(deployment.checkpoints, pointer(hour_us), digest)
        yield EncoderHour(
            hour_us, digest, cause or ("unchanged" if digest else "no encoder yet"), trained
        )


def rows_to_learn(
    warehouse: "Warehouse", dataset: Dataset, hour_us: int
) -> tuple[Sequences, LabelledAds]:
    """Return what an encoder that is trained after an hour learns.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset
    hour_us : int
        Start of the hour, microseconds.

    Raises
    ------
    TooFewLabels
        If the first task has fewer positives than are needed.
    """
    settings = settings_of(dataset)
    encoder, as_of_us = settings.encoder, last_known_us(hour_us)
    lookback_us = settings.lookback_hours * HOUR_US
    parameters = {
        "goals": list(encoder.tasks),
        "from_us": as_of_us + 1 - settings.labels_lookback_hours * HOUR_US,
        "as_of_us": as_of_us,
    }
    with warehouse.reader() as connection:
        shown = _labelled_ads(connection, parameters, settings, dataset.settings.seed)
        lag_hours, occurred_us = settings.publication_lag_hours, _int64(shown["occurred_us"])
        moment_us = last_known_us(published_hour(lag_hours, occurred_us))
        from_us = int(moment_us.min(initial=as_of_us)) - lookback_us + 1
        users = shown[USER].unique().to_pylist()
        did = read_activities(connection, dataset, encoder, from_us, as_of_us, users)
    history = history_of(did, dataset, encoder)
    tasks = len(settings.taught_encoder.tasks)
    rows = _Examples(
        history.places(shown[USER]),
        moment_us,
        occurred_us,
        ad_tokens(shown, encoder),
        _labels(shown, tasks),
    )
    if settings.next_actions is not None:
        known_from_us = from_us + lookback_us - 1
        labelled = np.isin(np.arange(len(history.users)), rows.place)
        span_us = known_from_us, as_of_us
        rows = rows.with_rows(*_next_rows(history, dataset, labelled, span_us))
    sequences, rows, sequence = _of_known_users(history, rows, settings)
    positives = int((rows.labels[:, 0] == 1).sum())
    if positives < settings.minimum_positives:
        raise TooFewLabels(
            f"{positives} positives of {encoder.tasks[0]} with a known user, "
            f"{settings.minimum_positives} are needed"
        )
    return sequences, LabelledAds.after(
        sequences, sequence, rows.shown_us, rows.tokens, rows.labels
    )


@dataclass(frozen=True)
class _Examples:
    """What is learnt, before it is known whose sequence there is.

    Attributes
    ----------
    place : ndarray of shape (n,), int64
        Of the user in the history; -1 of who is not there.
    moment_us, shown_us : ndarray of shape (n,), int64
        When the sequence ends, and when what is labelled came.
    tokens : ndarray of shape (n, A), uint32
    labels : ndarray of shape (n, tasks), float32
    """

    place: np.ndarray
    moment_us: np.ndarray
    shown_us: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray

    def with_rows(self, *others: "_Examples") -> "_Examples":
        """Return these rows and others behind them, tokens padded to the widest."""
        parts = [self, *others]
        width = max(part.tokens.shape[1] for part in parts)
        return _Examples(
            np.concatenate([part.place for part in parts]),
            np.concatenate([part.moment_us for part in parts]),
            np.concatenate([part.shown_us for part in parts]),
            np.concatenate(
                [np.pad(p.tokens, ((0, 0), (0, width - p.tokens.shape[1]))) for p in parts]
            ),
            np.concatenate([part.labels for part in parts]),
        )

    def taken(self, kept: np.ndarray) -> "_Examples":
        """Return the rows of a mask."""
        return _Examples(
            self.place[kept],
            self.moment_us[kept],
            self.shown_us[kept],
            self.tokens[kept],
            self.labels[kept],
        )


def _next_rows(
    history: History, dataset: Dataset, users: np.ndarray, span_us: tuple[int, int]
) -> Iterator[_Examples]:
    """Yield what some users did next, of moments at which the history has the whole lookback.

    Of users who have a label, so that nobody else need be read, and memory is as flat as labels'.
    """
    settings, seed = settings_of(dataset), dataset.settings.seed
    asked, tasks = settings.next_actions, settings.taught_encoder.tasks
    if asked is None:
        return
    goals = {ad_modality(goal) for goal in dataset.goal_names}
    names = asked.modalities or [each for each in history.modalities if each not in goals]
    known_from_us, as_of_us = span_us
    after_us = as_of_us - settings.labels_lookback_hours * HOUR_US
    for actions in actions_of(history, names, (after_us, as_of_us), users, asked.maximum, seed):
        begins_us = actions.received_us - actions.received_us % (asked.horizon_hours * HOUR_US)
        moment_us = last_known_us(published_hour(settings.publication_lag_hours, begins_us))
        known = moment_us >= known_from_us
        found = contrasted(actions.taken(known), seed)
        labels = np.full((len(found.labels), len(tasks)), np.nan, np.float32)
        labels[:, -1] = found.labels
        moments = np.tile(moment_us[known], 2)
        yield _Examples(found.user, moments, found.received_us, found.tokens, labels)


def _of_known_users(
    history: History, rows: _Examples, settings: UserVectorSettings
) -> tuple[Sequences, _Examples, np.ndarray]:
    """Return sequences of which something is known, the rows that have one, and whose it is."""
    pairs = np.column_stack([rows.place, rows.moment_us])
    ends, sequence = np.unique(pairs, axis=0, return_inverse=True)
    longest = {modality.name: modality.longest for modality in settings.encoder.modalities}
    is_known = ends[:, 0] >= 0
    lookback_us = settings.lookback_hours * HOUR_US
    sequences = history.sequences(ends[is_known, 1], longest, ends[is_known, 0], lookback_us)
    has_any = sequences.newest_us() != NEVER
    is_known[is_known] = has_any
    kept = is_known[sequence.reshape(-1)]
    place_of = np.cumsum(is_known) - 1
    sequences = sequences.take(np.flatnonzero(has_any))
    return sequences, rows.taken(kept), place_of[sequence.reshape(-1)[kept]]


def _due(
    deployment: Deployment, settings: UserVectorSettings, hour_us: int, digest: str | None
) -> str:
    """Return why an encoder is trained after an hour; "" if none is."""
    end_us = hour_us + HOUR_US
    if end_us % (settings.retrain_every_hours * HOUR_US) == 0:
        return "schedule"
    if digest is None:
        return "first" if end_us % (settings.full_refresh_every_hours * HOUR_US) == 0 else ""
    manifest = read_checkpoint(deployment.checkpoints, digest, verify=False).manifest
    encoder, training = settings.taught_encoder, settings.training
    asked = (encoder.model_dump(mode="json"), training.model_dump(mode="json"))
    if (manifest["settings"], manifest["training"]) != asked:
        return "settings changed"
    same = manifest.get("sentence_encoder") == sentence_encoder_of(settings.encoder)
    return "" if same else "sentence encoder changed"


def _trained(
    warehouse: "Warehouse",
    deployment: Deployment,
    settings: UserVectorSettings,
    hour_us: int,
    say: Callable[[str], object],
) -> tuple[str, dict[str, float | int]]:
    """Train an encoder, going on where a run before stopped, and return its checkpoint."""
    root, unfinished = deployment.checkpoints, f"{KIND}/in_training/{hour_key(hour_us)}"
    sequences, ads = rows_to_learn(warehouse, deployment.dataset, hour_us)
    training = Training(settings.taught_encoder, settings.training)
    if is_pointed(root, unfinished):
        begun = read_checkpoint(root, resolve(root, unfinished))
        asked = training.state()[1] | {"rows_digest": training.digest_of(sequences, ads)}
        # What was begun on other rows, by other settings or by other code is of no use.
        same = ("settings", "training", "code_version", "rows_digest", "sentence_encoder")
        if all(begun.manifest.get(name) == asked.get(name) for name in same):
            training = Training.restore(begun.arrays, begun.manifest)
    losses: list[float] = []
    watermark_us = last_known_us(hour_us)
    for progress in training.learn(sequences, ads):
        losses.append(progress.loss)
        every = max(progress.steps // 20, 1)
        if progress.step % every == 0:
            say(str(progress))
        if progress.step % settings.checkpoint_steps == 0 and progress.step < progress.steps:
            with unswept(root):
                point(root, unfinished, training.write(root, watermark_us).digest)
    with unswept(root):
        digest = training.write(root, watermark_us).digest
        point(root, pointer(hour_us), digest)
        unpoint(root, unfinished)
    return digest, {
        "labels learnt": int(np.isfinite(ads.labels).sum()),
        "sequences": len(sequences),
        "steps": training.steps,
        "log loss of the last tenth": float(np.mean(losses[-max(len(losses) // 10, 1) :])),
    }


def _labels(shown: pa.Table, tasks: int) -> np.ndarray:
    """Return labels, float32 (n, tasks): NaN where there is none."""
    numbers, found = (shown[name].combine_chunks() for name in ("goal_numbers", "labels"))
    row = np.repeat(np.arange(len(shown)), pc.list_value_length(numbers).to_numpy())  # pyright: ignore[reportAttributeAccessIssue]
    labels = np.full((len(shown), tasks), np.nan, np.float32)
    column = pc.list_flatten(numbers).to_numpy() - 1  # pyright: ignore[reportAttributeAccessIssue]
    labels[row, column] = pc.list_flatten(found).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    return labels


def _labelled_ads(
    connection: "duckdb.DuckDBPyConnection",
    parameters: dict[str, Any],
    settings: UserVectorSettings,
    seed: int,
) -> pa.Table:
    """Return impressions with labels, ``maximum_labels`` or about so many, by hash of each.

    The others are let go batch by batch, so that memory does not grow with the log.
    """
    from ad_pipeline.warehouse import batches_of, one_row, select

    query, most = select("embeddings.labelled_ads"), settings.maximum_labels
    (rows,) = one_row(connection, f"SELECT count(*) FROM ({query})", parameters)
    batches = batches_of(connection, query, parameters, rows=_BATCH_ROWS)
    if rows <= most:
        return batches.read_all()
    kept = []
    for batch in batches:
        draws = uniform(seed, pa.chunked_array([batch.column("impression_id")]), KIND)
        kept.append(batch.filter(pa.array(draws < most / rows)))
    return pa.Table.from_batches(kept, batches.schema)


def _int64(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.int64)
