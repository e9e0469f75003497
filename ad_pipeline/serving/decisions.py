"""What a scorer decided and why, and its way into the serving log ``events.decisions``.

Columns of Arrow buffers and NumPy in, text out: two hundred thousand decisions are written without
a Python object for each of their values, and without pandas, which ``pa.array()`` would import. A
float is written by ``repr``, so that reading it gives the same bits back.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.features.encoding import FeatureContract, LookedUp, request_columns
from ad_pipeline.hashing import string_array, uniform

EVERYTHING = "(all)"
"""Stands for an entity in the names of the overall counts."""

RATES_AGE = "rates"
"""Name of the age of every rate and count that a decision used."""

VECTORS_AGE = "user_vectors"
"""Name of the age of the vectors that a decision used."""

LOGGED = "serving log"
"""Purpose of the draw that decides whether a request's decision is logged."""

JSON_COLUMNS = ("features", "ages_us", "scores", "fallbacks")


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
        return self._taken(np.flatnonzero(kept)).to_table()

    def _taken(self, rows: np.ndarray) -> "Decisions":
        """Return the decisions of some rows."""
        places = numbers_array(rows)
        return replace(
            self,
            identity={name: column.take(places) for name, column in self.identity.items()},
            occurred_us=None if self.occurred_us is None else self.occurred_us[rows],
            columns={name: column.take(places) for name, column in self.columns.items()},
            counts=self.counts.take(rows),
            probabilities={goal: p[rows] for goal, p in self.probabilities.items()},
            logits={
                goal: {expert: logit[rows] for expert, logit in experts.items()}
                for goal, experts in self.logits.items()
            },
            fallbacks=tuple(Fallback(f.reason, f.rows[rows]) for f in self.fallbacks),
            rungs={goal: rungs[rows] for goal, rungs in self.rungs.items()},
        )

    def to_table(self) -> pa.Table:
        """Return the rows of ``events.decisions``, but for ``received_us``, which the log gives.

        Returns
        -------
        pa.Table of n rows
            request_id, impression_id (as far as given), occurred_us, bundle_hash, snapshot_hash,
            and the JSON texts features, ages_us, scores and fallbacks.
        """
        columns: dict[str, pa.Array] = dict(self.identity)
        if self.occurred_us is not None:
            columns["occurred_us"] = numbers_array(self.occurred_us)
        n = len(self)
        columns["bundle_hash"] = _repeated(self.bundle_hash, n)
        columns["snapshot_hash"] = _repeated(self.snapshot_hash, n)
        columns["features"] = string_array(features_json(self.contract, self.columns, self.counts))
        ages = self.ages_us
        columns["ages_us"] = (
            _repeated("{}", n)
            if not ages
            else string_array(
                _objects({name: list(map(str, found.tolist())) for name, found in ages.items()})
            )
        )
        columns["scores"] = string_array(
            _objects({goal: number_texts(p) for goal, p in self.probabilities.items()})
        )
        columns["fallbacks"] = string_array(self._fallbacks_json())
        return pa.Table.from_arrays(list(columns.values()), names=list(columns))

    def _fallbacks_json(self) -> list[str]:
        if not self.fallbacks:
            return ["[]"] * len(self)
        happened = np.column_stack([found.rows for found in self.fallbacks])
        patterns, pattern_of = np.unique(happened, axis=0, return_inverse=True)
        texts = [
            json.dumps(
                [
                    found.reason
                    for found, there in zip(self.fallbacks, pattern, strict=True)
                    if there
                ],
                ensure_ascii=False,
            )
            for pattern in patterns
        ]
        return [texts[pattern] for pattern in pattern_of.reshape(-1).tolist()]


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
    contract: FeatureContract, columns: Mapping[str, pa.Array], counts: LookedUp
) -> list[str]:
    """Return each row's features as used, a JSON object of :func:`feature_names`.

    Parameters
    ----------
    contract : FeatureContract
    columns : mapping of str to Arrow array of length n
        The contract's ``logged_columns``: texts, and numbers as float64.
    counts : LookedUp of n rows
    """
    members: list[list[str]] = []
    for name in contract.logged_columns:
        column = columns[name]
        if pa.types.is_float64(column.type):
            label = _label(name)
            members.append([label + text for text in number_texts(float_values(column))])
        else:
            members.append(_string_members(name, column))
    for place, entity in enumerate(contract.entities):
        members.append(_count_members(_count_names(contract, entity), counts.counts[:, place]))
    members.append(_count_members(_count_names(contract, EVERYTHING), counts.totals))
    return ["{" + ", ".join(row) + "}" for row in zip(*members, strict=True)]


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


def float_values(column: pa.Array) -> np.ndarray:
    """Read a float64 column out of its buffers, nulls as NaN, shape (n,)."""
    validity, data = column.buffers()
    if not len(column):
        return np.zeros(0)
    values = np.frombuffer(data, np.float64, len(column), column.offset * 8).copy()
    if column.null_count:
        present = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
        values[present[column.offset : column.offset + len(column)] == 0] = math.nan
    return values


def numbers_array(values: np.ndarray) -> pa.Array:
    """Lay int64 or float64 numbers of shape (n,) into an Arrow array without pandas."""
    kind = {"int64": pa.int64(), "float64": pa.float64()}[str(values.dtype)]
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def number_texts(values: np.ndarray) -> list[str]:
    """Return float64 numbers as JSON that reads back to the same bits.

    NaN is ``null``; JSON has no infinity, so it is the text ``"Infinity"``, which both Python and
    SQL read as one.
    """
    texts = list(map(repr, values.tolist()))
    for row in np.flatnonzero(~np.isfinite(values)).tolist():
        texts[row] = {"nan": "null", "inf": '"Infinity"', "-inf": '"-Infinity"'}[texts[row]]
    return texts


def _count_names(contract: FeatureContract, entity: str) -> list[str]:
    return [
        f"{entity}.{goal.name}.{what}"
        for goal in contract.goals
        for what in ("anchors", "engagements")
    ]


def _string_members(name: str, column: pa.Array) -> list[str]:
    """Return texts as members of JSON objects: each distinct one is written once."""
    label = _label(name)
    if pa.types.is_null(column.type):
        return [label + "null"] * len(column)
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    texts = [label + _text(value) for value in coded.dictionary.to_pylist()] + [label + "null"]
    return _taken(texts, coded.indices)


def _count_members(names: Sequence[str], block: np.ndarray) -> list[str]:
    """Return an entity's counts as members of JSON objects; entities repeat, so texts do too."""
    values = np.ascontiguousarray(block, np.int64)
    width = pa.binary(8 * values.shape[1])
    rows = pa.Array.from_buffers(width, len(values), [None, pa.py_buffer(values)])
    coded = rows.dictionary_encode()
    distinct = np.frombuffer(b"".join(coded.dictionary.to_pylist()), np.int64)
    rows = distinct.reshape(-1, values.shape[1]).tolist()
    template = ", ".join(_label(name).replace("%", "%%") + "%d" for name in names)
    return _taken([template % tuple(row) for row in rows], coded.indices)


def _taken(texts: Sequence[str], codes: pa.Array) -> list[str]:
    """Return the text of each code; a null code takes the last text."""
    places = pc.cast(codes, pa.int64())
    validity, data = places.buffers()
    taken = np.frombuffer(data, np.int64, len(places), places.offset * 8)
    if places.null_count:
        present = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
        present = present[places.offset : places.offset + len(places)]
        taken = np.where(present == 1, taken, len(texts) - 1)
    return np.array(texts, object)[taken].tolist() if len(taken) else []


def _value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(value: str | None) -> str:
    # What json.dumps calls in the end; it would make an encoder for every text.
    return "null" if value is None else encode_basestring(value)


def _label(name: str) -> str:
    return _text(name) + ": "


def _objects(texts: Mapping[str, list[str]]) -> list[str]:
    """Return JSON objects, one a row, out of the JSON of their values by name."""
    members = ", ".join(_label(name).replace("%", "%%") + "%s" for name in texts)
    written: Callable[[tuple[str, ...]], str] = f"{{{members}}}".__mod__
    return list(map(written, zip(*texts.values(), strict=True)))


def _repeated(text: str, n: int) -> pa.Array:
    return string_array([text] * n)
