"""What a scorer decided and why, and its way into the serving log ``events.decisions``.

Columns of Arrow buffers and NumPy in, an Arrow table out; its JSON texts are written by
:mod:`.json_objects`, without pandas, which ``pa.array()`` would import. Which requests are logged
is decided first, so that nothing is built of the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.features.encoding import FeatureContract, LookedUp, request_columns
from ad_pipeline.hashing import uniform
from ad_pipeline.serving.json_objects import json_lists, json_objects, repeated

EVERYTHING = "(all)"
"""Stands for an entity in the names of the overall counts."""

RATES_AGE = "rates"
"""Name of the age of every rate and count that a decision used."""

VECTORS_AGE = "user_vectors"
"""Name of the age of the vectors that a decision used."""

LOGGED = "serving log"
"""Purpose of the draw that decides whether a request's decision is logged."""

_NUMBERS = {np.dtype(np.int64): pa.int64(), np.dtype(np.float64): pa.float64()}


@dataclass(frozen=True)
class Decision:
    """The decision about one request.

    Attributes
    ----------
    request_id : str or None
    probabilities : dict of str to float
        By goal.
    logits : dict of str to dict of str to float
        By goal and expert.
    features : dict of str to (str, float, int or None)
        As used; see :func:`feature_names`.
    ages_us : dict of str to int
        Microseconds from the end of the known hours to the request, of counts and of vectors; what
        was not there has none, and no age is known without a request time.
    fallbacks : tuple of str
        What was missing and what stood in for it.
    bundle_hash, snapshot_hash : str
        ``snapshot_hash`` is empty when there was no snapshot.
    """

    request_id: str | None
    probabilities: dict[str, float]
    logits: dict[str, dict[str, float]]
    features: dict[str, Any]
    ages_us: dict[str, int]
    fallbacks: tuple[str, ...]
    bundle_hash: str
    snapshot_hash: str


@dataclass(frozen=True)
class Fallback:
    """Something that was missing, and for which rows.

    Attributes
    ----------
    reason : str
    rows : ndarray of shape (n,), bool
    """

    reason: str
    rows: np.ndarray


@dataclass(frozen=True)
class Decisions:
    """The decisions about n requests, by column.

    Attributes
    ----------
    contract : FeatureContract
    identity : dict of str to Arrow array of length n
        ``request_id`` and ``impression_id``, as far as given.
    occurred_us : ndarray of shape (n,), int64, or None
        When each request was made, microseconds; None if the requests did not say.
    columns : dict of str to Arrow array of length n
        The contract's ``logged_columns``, as used.
    counts : LookedUp of n rows
        The snapshot's integers and the vectors' numbers, as used; of the latter the log has only
        the name of what they were looked up in.
    probabilities : dict of str to ndarray of shape (n,), float64
        By goal.
    logits : dict of str to dict of str to ndarray of shape (n,), float64
        By goal and expert; an expert that has no model is not there.
    snapshot_end_us : int or None
        End of the counted hours, microseconds.
    fallbacks : tuple of Fallback
    bundle_hash, snapshot_hash : str
    log_share : float
        Share of the requests whose decision the serving log keeps; the bundle says it.
    rungs : dict of str to ndarray of shape (n,), uint8
        Which rung of the ladder answered, by goal with a ladder; the log has it in words, in the
        fallbacks.
    vectors_end_us : int or None
        End of the hours that the published vectors know, microseconds.
    """

    contract: FeatureContract
    identity: dict[str, pa.Array]
    occurred_us: np.ndarray | None
    columns: dict[str, pa.Array]
    counts: LookedUp
    probabilities: dict[str, np.ndarray]
    logits: dict[str, dict[str, np.ndarray]]
    snapshot_end_us: int | None
    fallbacks: tuple[Fallback, ...]
    bundle_hash: str
    snapshot_hash: str
    log_share: float = 1.0
    rungs: dict[str, np.ndarray] = field(default_factory=dict)
    vectors_end_us: int | None = None

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self.counts.totals)

    @property
    def ages_us(self) -> dict[str, np.ndarray]:
        """Microseconds from the end of the known hours to each request, int64 of shape (n,)."""
        ends_us = {RATES_AGE: self.snapshot_end_us, VECTORS_AGE: self.vectors_end_us}
        moments = self.occurred_us
        if moments is None:
            return {}
        return {name: moments - end for name, end in ends_us.items() if end is not None}

    def one(self, row: int) -> Decision:
        """Return the decision of one row."""
        features: dict[str, Any] = {
            name: _value(self.columns[name][row].as_py()) for name in self.contract.logged_columns
        } | {name: int(values[row]) for name, values in count_columns(self.contract, self.counts)}
        identity = self.identity.get("request_id")
        return Decision(
            request_id=None if identity is None else identity[row].as_py(),
            probabilities={goal: float(p[row]) for goal, p in self.probabilities.items()},
            logits={
                goal: {expert: float(logit[row]) for expert, logit in experts.items()}
                for goal, experts in self.logits.items()
            },
            features=features,
            ages_us={name: int(ages[row]) for name, ages in self.ages_us.items()},
            fallbacks=tuple(found.reason for found in self.fallbacks if found.rows[row]),
            bundle_hash=self.bundle_hash,
            snapshot_hash=self.snapshot_hash,
        )

    def to_log(self) -> pa.Table:
        """Return those rows of :meth:`to_table` that the serving log keeps.

        Which ones follows from the request's id alone: every scorer, and every bundle of the same
        share, keeps the same requests, and a smaller share keeps some of a larger one's.

        Raises
        ------
        ValueError
            If some are to be left out and the requests have no id.
        """
        if self.log_share >= 1:
            return self.to_table()
        if "request_id" not in self.identity:
            raise ValueError(
                f"the bundle logs a share of {self.log_share:g}, chosen by request_id, which these "
                "requests lack; send it, or set settings.serving_log.share to 1"
            )
        kept = uniform(0, self.identity["request_id"], LOGGED) < self.log_share
        return self._table(np.flatnonzero(kept))

    def to_table(self) -> pa.Table:
        """Return the rows of ``events.decisions``, but for ``received_us``, which the log gives.

        Returns
        -------
        pa.Table of n rows
            request_id, impression_id (as far as given), occurred_us, bundle_hash, snapshot_hash,
            and the JSON texts features, ages_us, scores and fallbacks.
        """
        return self._table(np.arange(len(self)))

    def _table(self, rows: np.ndarray) -> pa.Table:
        """Return some rows of :meth:`to_table`, in ascending order."""
        columns: dict[str, pa.Array] = dict(self.identity)
        if len(rows) < len(self):
            places = numbers_array(rows)
            columns = {name: column.take(places) for name, column in columns.items()}
        if self.occurred_us is not None:
            columns["occurred_us"] = numbers_array(self.occurred_us[rows])
        columns["bundle_hash"] = repeated(self.bundle_hash, len(rows))
        columns["snapshot_hash"] = repeated(self.snapshot_hash, len(rows))
        columns["features"] = features_json(self.contract, self.columns, self.counts, rows)
        ages = self.ages_us
        columns["ages_us"] = (
            json_objects(tuple(ages), list(ages.values()), rows)
            if ages
            else repeated("{}", len(rows))
        )
        goals, probabilities = tuple(self.probabilities), list(self.probabilities.values())
        columns["scores"] = json_objects(goals, probabilities, rows)
        reasons = tuple(found.reason for found in self.fallbacks)
        columns["fallbacks"] = json_lists(reasons, [found.rows for found in self.fallbacks], rows)
        return pa.Table.from_arrays(list(columns.values()), names=list(columns))


@cache
def feature_names(contract: FeatureContract) -> tuple[str, ...]:
    """Return the names under which a decision logs its features.

    The contract's ``logged_columns``, then ``<entity>.<goal>.anchors`` and
    ``<entity>.<goal>.engagements`` of every entity and goal, then the overall counts under
    :data:`EVERYTHING`.
    """
    return contract.logged_columns + tuple(
        name
        for entity in (*contract.entities, EVERYTHING)
        for name in _count_names(contract, entity)
    )


def count_columns(contract: FeatureContract, counts: LookedUp) -> list[tuple[str, np.ndarray]]:
    """Return each count under the name it is logged by, int64 of shape (n,)."""
    columns = [
        (name, counts.counts[:, place, cell])
        for place, entity in enumerate(contract.entities)
        for cell, name in enumerate(_count_names(contract, entity))
    ]
    columns += [
        (name, counts.totals[:, cell])
        for cell, name in enumerate(_count_names(contract, EVERYTHING))
    ]
    return columns


def features_json(
    contract: FeatureContract,
    columns: Mapping[str, pa.Array],
    counts: LookedUp,
    rows: np.ndarray,
) -> pa.LargeStringArray:
    """Return the features of some rows as used, JSON objects of :func:`feature_names`.

    Parameters
    ----------
    contract : FeatureContract
    columns : mapping of str to Arrow array of length n
        The contract's ``logged_columns``: texts, and numbers as float64.
    counts : LookedUp of n rows
    rows : ndarray of shape (m,), int64
        Places in ``[0, n)``.
    """
    used = [columns[name] for name in contract.logged_columns]
    n, entities, width = counts.counts.shape
    of_entities = counts.counts.reshape(n, entities * width)
    return json_objects(feature_names(contract), [*used, of_entities, counts.totals], rows)


def logged_inputs(
    contract: FeatureContract, features: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, pa.Array], LookedUp]:
    """Read logged features back into what a scorer needs to give the same scores again.

    Parameters
    ----------
    contract : FeatureContract
    features : sequence of mappings, length n
        Parsed ``events.decisions.features``. Numbers of vectors are not in the log: a row that has
        them has them under the contract's ``vector_names``, beside the others.

    Returns
    -------
    columns : dict of str to Arrow array of length n
        The contract's columns.
    counts : LookedUp of n rows
        Numbers of vectors are unknown in rows without them.

    Raises
    ------
    KeyError
        If a feature of the contract was not logged.
    """
    requests = [
        {name: row[name] for name in contract.text_columns}
        | {
            name: None if row[name] is None else float(row[name])  # "Infinity" is a text in JSON
            for name in contract.numeric
        }
        for row in features
    ]
    counts = LookedUp.nothing(contract, len(features))
    for name, values in count_columns(contract, counts):
        values[:] = [int(row[name]) for row in features]
    for place, name in enumerate(contract.vector_names):
        given = [row.get(name) for row in features]
        counts.vectors[:, place] = [math.nan if value is None else value for value in given]
    return request_columns(contract, requests), counts


def numbers_array(values: np.ndarray) -> pa.Array:
    """Lay int64 or float64 numbers of shape (n,) into an Arrow array without pandas."""
    kind = _NUMBERS[values.dtype]
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def _count_names(contract: FeatureContract, entity: str) -> list[str]:
    return [
        f"{entity}.{goal.name}.{what}"
        for goal in contract.goals
        for what in ("anchors", "engagements")
    ]


def _value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
