"""What users did, read from the warehouse as of a moment, with its content as slots.

Activities of the log and engagements with ads become rows of one shape, an engagement of the
modality ``ad_<goal>`` with what its impression says of the ad. A row is read if our log had it by
the moment, whenever it happened. Sequences out of the rows are :mod:`.sequences`, how content
becomes slots :mod:`.content`; who reads them when does not belong here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.datasets import Dataset
from ad_pipeline.embeddings.content import id_tokens, text_tokens
from ad_pipeline.embeddings.published import AD, USER, ad_hashes, user_hashes
from ad_pipeline.embeddings.retrieval import Engaged, engaged_until
from ad_pipeline.embeddings.sentences import sentence_vectors
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.settings import EncoderSettings, Modality

if TYPE_CHECKING:
    import duckdb

PLAIN = (USER, "modality", "content_id", "occurred_us", "received_us")


@dataclass(frozen=True)
class Engagements:
    """Who engaged with which ad, and when our log had it.

    Attributes
    ----------
    users, ads : ndarray of shape (m,), uint64
        Hashes, under which the feature contract knows them.
    received_us : ndarray of shape (m,), int64
    """

    users: np.ndarray
    ads: np.ndarray
    received_us: np.ndarray

    def as_of(self, as_of_us: int, lookback_us: int) -> Engaged:
        """Return what was known at a moment of the time before it, as retrieval reads it."""
        recent = self.received_us > as_of_us - lookback_us
        parts = (self.users[recent], self.ads[recent], self.received_us[recent])
        return engaged_until(*parts, as_of_us)


def ad_modality(goal: str) -> str:
    """Return the modality of a goal's engagements."""
    return f"ad_{goal}"


def read_activities(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    encoder: EncoderSettings,
    from_us: int,
    as_of_us: int,
    users: Sequence[str] | None = None,
) -> pa.Table:
    """Return what users did, by ``dbt_like_sql/embeddings/activities.sql``.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`ad_pipeline.warehouse.Warehouse.reader`.
    dataset : Dataset
    encoder : EncoderSettings
        Modalities that are read; engagements with ads always are.
    from_us, as_of_us : int
        Received in ``[from_us, as_of_us]``, microseconds.
    users : sequence of str, optional
        Ids of those whose rows are read; everybody's if left out.

    Returns
    -------
    pyarrow.Table
        user_id, modality, content_id, occurred_us, received_us, and the columns of ads, which are
        null for what is no engagement. In no order.
    """
    from ad_pipeline.warehouse import rows_of

    query, parameters = _selected(dataset, encoder, from_us, as_of_us)
    if users is not None:
        query = f"SELECT * FROM ({query}) WHERE {USER} IN (SELECT unnest($users))"
        parameters["users"] = list(users)
    return rows_of(connection, query, parameters)


def stream_activities(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    encoder: EncoderSettings,
    from_us: int,
    as_of_us: int,
    rows: int,
) -> pa.RecordBatchReader:
    """Return the rows of :func:`read_activities`, so many at a time."""
    from ad_pipeline.warehouse import batches_of

    query, parameters = _selected(dataset, encoder, from_us, as_of_us)
    return batches_of(connection, query, parameters, rows=rows)


def count_activities(
    connection: "duckdb.DuckDBPyConnection",
    dataset: Dataset,
    encoder: EncoderSettings,
    from_us: int,
    as_of_us: int,
) -> int:
    """Return how many rows :func:`read_activities` would."""
    from ad_pipeline.warehouse import one_row

    query, parameters = _selected(dataset, encoder, from_us, as_of_us)
    return int(one_row(connection, f"SELECT count(*) FROM ({query})", parameters)[0])


def read_engagements(
    connection: "duckdb.DuckDBPyConnection", dataset: Dataset, from_us: int, as_of_us: int
) -> pa.Table:
    """Return the engagements with ads alone, as :func:`read_activities` does."""
    from ad_pipeline.warehouse import rows_of

    return rows_of(connection, *_selected(dataset, None, from_us, as_of_us))


def history_of(rows: pa.Table, dataset: Dataset, encoder: EncoderSettings) -> History:
    """Lay activities out by user, their content as slots.

    Parameters
    ----------
    rows : pyarrow.Table
        From :func:`read_activities`.
    dataset : Dataset
    encoder : EncoderSettings

    Raises
    ------
    ValueError
        If a vector cannot be read, or has another width than its modality says.
    """
    of_ads = {ad_modality(goal) for goal in dataset.goal_names}
    parts = []
    for modality in encoder.modalities:
        own = rows.filter(pc.equal(rows["modality"], modality.name))  # pyright: ignore[reportAttributeAccessIssue]
        if modality.name in of_ads:
            content = {"tokens": _lists(ad_tokens(own, encoder)), "vector": _no_lists(own)}
        else:
            content = _content(own["content_id"], modality, encoder.bits)
        plain = {name: own[name] for name in (USER, "modality", "occurred_us", "received_us")}
        parts.append(pa.table(plain | content))
    return History.of_table(pa.concat_tables(parts), encoder.modalities)


def ad_tokens(rows: pa.Table, encoder: EncoderSettings) -> np.ndarray:
    """Return the slots of each row's ad, uint32 (n, A), one for each of its columns."""
    columns = [id_tokens(rows[name], name, encoder.bits) for name in encoder.ad_columns]
    return np.column_stack(columns)


def engagements_of(rows: pa.Table, dataset: Dataset) -> Engagements:
    """Return the engagements with ads among activities, of any goal."""
    of_ads = pa.array([ad_modality(goal) for goal in dataset.goal_names])
    own = rows.filter(pc.is_in(rows["modality"], value_set=of_ads))  # pyright: ignore[reportAttributeAccessIssue]
    own = own.filter(pc.is_valid(own[AD]))  # pyright: ignore[reportAttributeAccessIssue]
    return Engagements(
        user_hashes(own[USER]),
        ad_hashes(own[AD]),
        own["received_us"].to_numpy().astype(np.int64),
    )


def _selected(
    dataset: Dataset, encoder: EncoderSettings | None, from_us: int, as_of_us: int
) -> tuple[str, dict[str, Any]]:
    """Return a query of what an encoder reads, or of engagements alone, and its parameters."""
    from ad_pipeline.warehouse import select

    ad_columns = () if encoder is None else encoder.ad_columns
    # The names pasted here are column names that the dataset file was checked for.
    names = dict.fromkeys((*PLAIN, AD, *ad_columns))
    columns = ", ".join(f'"{name}"' for name in names)
    query = f"SELECT {columns} FROM ({select('embeddings.activities')})"
    parameters = {
        "from_us": from_us,
        "as_of_us": as_of_us,
        "modalities": [] if encoder is None else [each.name for each in encoder.modalities],
        "ad_modalities": [ad_modality(goal) for goal in dataset.goal_names],
    }
    return query, parameters


def _content(ids: pa.ChunkedArray, modality: Modality, bits: int) -> dict[str, pa.Array]:
    if modality.content == "vector":
        return {"tokens": pa.nulls(len(ids), pa.list_(pa.uint32())), "vector": _numbers(ids)}
    if modality.content == "sentence":
        vectors = _lists(sentence_vectors(ids, modality.vector))
        return {"tokens": pa.nulls(len(ids), pa.list_(pa.uint32())), "vector": vectors}
    name = f"{modality.name}.content_id"
    if modality.content == "text":
        tokens = text_tokens(ids.to_pylist(), name, bits, most=max(modality.tokens, 1))
    else:
        tokens = _lists(id_tokens(ids, name, bits)[:, np.newaxis])
    return {"tokens": tokens, "vector": _no_lists(ids)}


def _numbers(texts: pa.ChunkedArray) -> pa.Array:
    """Read vectors that are written as ``[0.1, -2.5]``."""
    found = []
    for row, text in enumerate(texts.to_pylist()):
        try:
            found.append([float(number) for number in json.loads(text or "")])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"activity {row}: content_id {str(text)[:40]!r} is no vector; write its numbers as "
                "in [0.1, -2.5]"
            ) from error
    return pa.array(found, pa.list_(pa.float32()))


def _lists(values: np.ndarray) -> pa.Array:
    """Return slots or numbers (n, T) as lists of T."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _no_lists(rows: pa.Table | pa.ChunkedArray) -> pa.Array:
    return pa.nulls(len(rows), pa.list_(pa.float32()))
