"""The study of user vectors on a deployment's own log, as of an hour, by an encoder it had before.

The encoder is the one in force some hours before the hour that is asked about, so that it learnt no
label of what follows. Of these hours' impressions rankers learn the first part and are tested on
the rest; what had not matured by the hour's end is in neither. Neither ranker is given the online
expert's logit: that expert has read published vectors, and what it would say without is not in the
log. Which questions are asked, and how, is :mod:`.worth`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import read_checkpoint
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings import activities, encoder_hours
from ad_pipeline.embeddings.activities import (
    ad_tokens,
    engagements_of,
    history_of,
    read_activities,
)
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.encoder_hours import rows_to_learn, settings_of
from ad_pipeline.embeddings.published import AD, USER, ad_hashes, last_known_us, user_hashes
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.embeddings.training import train
from ad_pipeline.embeddings.vectors import ABSENT, places_of
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, category_hashes, dense
from ad_pipeline.hashing import uniform
from ad_pipeline.learners.online.quarantine import without_suspect_labels
from ad_pipeline.learners.tables import TABLES as LEARNERS_TABLES
from ad_pipeline.monitoring.tables import TABLES, USER_VECTOR_WORTH
from ad_pipeline.monitoring.user_vectors.cold_start import SEGMENT, last_segments, segments_of
from ad_pipeline.monitoring.user_vectors.features import Engagements
from ad_pipeline.monitoring.user_vectors.labelled import Impressions
from ad_pipeline.monitoring.user_vectors.ranker import Split
from ad_pipeline.monitoring.user_vectors.study import StudiedLog
from ad_pipeline.monitoring.user_vectors.worth import Say, Worth, worth_of
from ad_pipeline.settings import EncoderSettings, TrainingSettings
from ad_pipeline.warehouse import Warehouse, arrow_rows, rows_of, select

PURPOSE = "monitoring.user_vector_worth"

LEARNT_SHARE = 0.6
"""Of the hours: rankers learn them, and the rest is tested."""

ENGAGERS_MADE = 10
"""Times that directions of ads' engagers are made over the hours; each encodes all engagers."""


class NothingToStudy(ValueError):
    """The log has no encoder, or no rows, to be studied; the message says which."""


@dataclass(frozen=True)
class Asked:
    """What is to be studied.

    Attributes
    ----------
    hour_us : int or None
        Start of the hour as of which the log is read; None: the last that is sealed.
    hours : int
        Up to the end of it, that rankers learn and are tested on.
    rows : int
        About how many impressions of a goal are read, drawn by hash.
    dimensions : tuple of int
        Of further encoders, each trained on the stored one's lessons, which takes as long.
    ablation : bool
        Train an encoder without each part of the enrichment, and of each modality alone.
    """

    hour_us: int | None = None
    hours: int = 120
    rows: int = 100_000
    dimensions: tuple[int, ...] = ()
    ablation: bool = False


@dataclass(frozen=True)
class Studied:
    """A study of a deployment's log.

    Attributes
    ----------
    worth : Worth
    encoder : str
        Digest of the encoder.
    split : Split
    as_of_us : int
        Last microsecond that the study knows.
    """

    worth: Worth
    encoder: str
    split: Split
    as_of_us: int


def record_worth(
    warehouse: Warehouse, deployment: Deployment, asked: Asked, say: Say = lambda _: None
) -> Studied:
    """Study a deployment's log and replace ``monitoring.user_vector_worth`` by the answers.

    Parameters
    ----------
    warehouse : Warehouse
        With events and matured labels of the hours.
    deployment : Deployment
        With the encoders, and the snapshots of rates.
    asked : Asked
    say : callable, optional
        Gets a line a step.

    Raises
    ------
    NothingToStudy
        If no encoder was in force before the hours, or nothing of them has matured.
    MissingCheckpoint
        If a snapshot of rates that was due is not there.
    """
    settings, seed = settings_of(deployment.dataset), deployment.dataset.settings.seed
    as_of_us = last_known_us(_hour(warehouse, deployment, asked))
    learn_from_us = as_of_us + 1 - asked.hours * HOUR_US
    digest = encoder_hours.digest_after(deployment, learn_from_us - HOUR_US)
    if digest is None:
        raise NothingToStudy(
            f"no encoder was in force after {hour_key(learn_from_us - HOUR_US)}, "
            f"{asked.hours} hours before the end of {hour_key(as_of_us)}; study fewer hours, or "
            "wait until an encoder is so old"
        )
    encoder = Encoder.open(deployment.checkpoints, digest)
    split = Split(learn_from_us, hour_of(learn_from_us + int(LEARNT_SHARE * asked.hours * HOUR_US)))
    log = studied_log(warehouse, deployment, encoder, split, as_of_us, asked.rows)
    say(", ".join(f"{goal}: {len(shown.labels):,} rows" for goal, shown in log.goals.items()))
    changed = _of_dimensions(encoder.settings, asked.dimensions)
    ablated = ablations(encoder.settings) if asked.ablation else {}
    others = _trained(warehouse, deployment, digest, encoder, changed | ablated, say)
    worth = worth_of(
        log,
        encoder,
        settings,
        seed,
        say,
        {others[name].settings.dimension: others[name] for name in changed},
        {name: others[name] for name in ablated},
    )
    studied = Studied(worth, digest, split, as_of_us)
    _write(warehouse, studied)
    return studied


def studied_log(
    warehouse: Warehouse,
    deployment: Deployment,
    encoder: Encoder,
    split: Split,
    as_of_us: int,
    rows: int,
) -> StudiedLog:
    """Lay a deployment's log out as the study reads it.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    encoder : Encoder
    split : Split
    as_of_us : int
        Nothing that our log had later is read.
    rows : int
        About how many impressions of a goal are kept.

    Raises
    ------
    NothingToStudy
        If no goal has rows.
    """
    dataset = deployment.dataset
    warehouse.create(LEARNERS_TABLES)
    from_us = split.learn_from_us - settings_of(dataset).lookback_hours * HOUR_US
    with warehouse.reader() as connection:
        tables = {}
        for goal in dataset.goals_in_chain_order():
            parameters = {"goal": goal.name, "from_us": split.learn_from_us, "as_of_us": as_of_us}
            found = rows_of(connection, select("monitoring.studied_impressions"), parameters)
            found = without_suspect_labels(connection, goal.name, found)
            if found.num_rows:
                draws = uniform(dataset.settings.seed, found["impression_id"], PURPOSE)
                tables[goal.name] = found.filter(pa.array(draws < rows / found.num_rows))
        did = read_activities(connection, dataset, encoder.settings, from_us, as_of_us)
        known = {"from_us": from_us, "as_of_us": split.learn_from_us - 1}
        requests = rows_of(connection, select("monitoring.last_requests"), known)
    if not tables:
        raise NothingToStudy(
            f"no label of an impression after {hour_key(split.learn_from_us)} had matured by the "
            f"end of {hour_key(as_of_us)}; materialize examples.labelled_impressions, or study "
            "more hours"
        )
    history = history_of(did, dataset, encoder.settings)
    ids, tokens = _ads([*tables.values(), did.filter(did[AD].is_valid())], encoder)
    segment = [name for name in SEGMENT if name in requests.column_names]
    asked = history.places(requests[USER])
    found = engagements_of(did, dataset)
    hours = (as_of_us + 1 - split.learn_from_us) // HOUR_US
    return StudiedLog(
        history=history,
        ad_hashes=ids,
        ad_tokens=tokens,
        goals={
            goal: _impressions(deployment, history, ids, shown) for goal, shown in tables.items()
        },
        segments={goal: segments_of(shown, segment) for goal, shown in tables.items()},
        user_segments=last_segments(
            len(history.users), asked[asked >= 0], segments_of(requests, segment)[asked >= 0]
        ),
        engagements=_placed(found, history, ids),
        first_us=max(hour_of(dataset.start_us), from_us),
        split=split,
        batch=dataset.settings.batch,
        gaps_us={goal.name: goal.window_us for goal in dataset.goals},
        engagers_every_us=max(hours // ENGAGERS_MADE, 1) * HOUR_US,
    )


def worth_rows(studied: Studied) -> pa.Table:
    """Return a study as rows of ``monitoring.user_vector_worth``."""
    shared = {
        "encoder": studied.encoder,
        "learn_from_us": studied.split.learn_from_us,
        "test_from_us": studied.split.test_from_us,
        "as_of_us": studied.as_of_us,
    }
    return arrow_rows(
        USER_VECTOR_WORTH, [asdict(figure) | shared for figure in studied.worth.figures]
    )


def _write(warehouse: Warehouse, studied: Studied) -> None:
    """Put a study in the place of the last one."""
    warehouse.create(TABLES)
    found = worth_rows(studied)
    with warehouse.writer() as connection:
        connection.register("found", found)
        connection.execute(f"DELETE FROM {USER_VECTOR_WORTH.name}")
        connection.execute(f"INSERT INTO {USER_VECTOR_WORTH.name} BY NAME SELECT * FROM found")


def _hour(warehouse: Warehouse, deployment: Deployment, asked: Asked) -> int:
    """Return the hour that is asked about, if all of it is there."""
    with warehouse.reader() as connection:
        sealed_us = sealed_until(connection)
    if not sealed_us:
        raise NothingToStudy(
            f"no hour of {deployment.dataset.name} is sealed; materialize its events"
        )
    hour_us = sealed_us - HOUR_US if asked.hour_us is None else asked.hour_us
    if hour_us >= sealed_us:
        raise NothingToStudy(
            f"{hour_key(hour_us)} is not sealed yet; the last hour that is, is "
            f"{hour_key(sealed_us - HOUR_US)}"
        )
    return hour_us


def _ads(tables: Sequence[pa.Table], encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all ads, ascending, and the slots of each where it was met first."""
    names = list(dict.fromkeys((AD, *encoder.settings.ad_columns, "occurred_us")))
    met = pa.concat_tables([table.select(names) for table in tables]).sort_by("occurred_us")
    ids, first = np.unique(ad_hashes(met[AD]), return_index=True)
    return ids, ad_tokens(met.take(first), encoder.settings)


def _impressions(
    deployment: Deployment, history: History, ads: np.ndarray, shown: pa.Table
) -> Impressions:
    """Return a goal's rows as a ranker without vectors is given them."""
    contract = replace(FeatureContract.from_dataset(deployment.dataset), vectors=None)
    read, looked_up = read_as_served(deployment, contract, shown)
    return Impressions(
        user=history.places(shown[USER]),
        ad=places_of(ads, ad_hashes(shown[AD])),
        occurred_us=shown["occurred_us"].to_numpy(),
        matured_us=shown["matured_us"].to_numpy(),
        labels=shown["label"].to_numpy(),
        dense=dense(contract, read, looked_up),
        category_hashes=category_hashes(contract, read),
        online_logit=np.zeros(shown.num_rows),
        dense_names=contract.dense_names,
        category_names=contract.categorical,
    )


def _placed(found: activities.Engagements, history: History, ads: np.ndarray) -> Engagements:
    """Return engagements by places; those of whom the encoder reads nothing are left out."""
    hashes = user_hashes(history.users)
    order = np.argsort(hashes)
    place = places_of(hashes[order], found.users)
    known = place != ABSENT
    return Engagements(
        order[place[known]], places_of(ads, found.ads[known]), found.received_us[known]
    )


def ablations(encoder: EncoderSettings) -> dict[str, EncoderSettings]:
    """Return the settings without each part of the enrichment that is on, and of one modality.

    Parameters
    ----------
    encoder : EncoderSettings

    Returns
    -------
    dict of str to EncoderSettings
        By what is changed: ``without temporal_decay``, ``only ad_click``.
    """
    parts = [name for name, is_on in encoder.enrichment.model_dump().items() if is_on]
    found = {
        f"without {part}": encoder.model_copy(
            update={"enrichment": encoder.enrichment.model_copy(update={part: False})}
        )
        for part in parts
    }
    if len(encoder.modalities) > 1:
        found |= {
            f"only {modality.name}": encoder.model_copy(update={"modalities": (modality,)})
            for modality in encoder.modalities
        }
    return found


def _of_dimensions(
    encoder: EncoderSettings, dimensions: Sequence[int]
) -> dict[str, EncoderSettings]:
    return {
        f"dimension {each}": encoder.model_copy(update={"dimension": each})
        for each in dimensions
        if each != encoder.dimension
    }


def _trained(
    warehouse: Warehouse,
    deployment: Deployment,
    digest: str,
    encoder: Encoder,
    changed: Mapping[str, EncoderSettings],
    say: Say,
) -> dict[str, Encoder]:
    """Train an encoder of each settings on what the stored one learnt."""
    if not changed:
        return {}
    manifest = read_checkpoint(deployment.checkpoints, digest, verify=False).manifest
    if encoder.settings != settings_of(deployment.dataset).taught_encoder:
        raise NothingToStudy(
            f"encoder {digest[:12]} was trained by other settings.user_vectors.encoder than stand "
            "now, so its lessons cannot be read again; study a later hour, or neither dimensions "
            "nor an ablation"
        )
    training = TrainingSettings.model_validate(manifest["training"])
    sequences, ads = rows_to_learn(warehouse, deployment.dataset, hour_of(manifest["watermark_us"]))
    trained = {}
    for name, settings in changed.items():
        read = sequences.of_modalities([modality.name for modality in settings.modalities])
        trained[name] = train(settings, training, read, ads, say=lambda _: None).encoder
        say(f"encoder trained: {name}")
    return trained
