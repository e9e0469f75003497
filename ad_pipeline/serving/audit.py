"""What a bundle carries for people: how often and when each slot was learnt, and what fell into it.

Arrow files beside the arrays that score, mapped into memory by whoever explains a score
(:mod:`.explanation`); a scorer neither opens them nor reads their bytes. They hold slots that have
a weight and no others: an inverse dictionary of everything ever seen stays in the warehouse.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights, SlotHistory

DICTIONARY = "dictionary.arrow"
HISTORY_SUFFIX = ".history.arrow"

ReadTokens = Callable[[np.ndarray], pa.Table]
"""From slots, uint32 ascending, to what falls into them: slot, feature and value, in that order."""


@dataclass(frozen=True)
class Audit:
    """What is written into a bundle for people.

    Attributes
    ----------
    histories : mapping of str to SlotHistory
        By goal, in the order of its exported slots; a learner that keeps none has none.
    tokens : pa.Table
        slot uint32, feature string, value string, in that order; whole slots only.
    slots_left_out, tokens_left_out : int
        For their number: the slots that were seen least.
    collisions : mapping of str to int
        By goal: exported slots with more than one token, those left out too.
    """

    histories: Mapping[str, SlotHistory]
    tokens: pa.Table
    slots_left_out: int
    tokens_left_out: int
    collisions: Mapping[str, int]

    @classmethod
    def collect(
        cls,
        weights: Mapping[str, ExportedWeights],
        histories: Mapping[str, SlotHistory],
        read_tokens: ReadTokens,
        limit: int,
    ) -> "Audit":
        """Look up what the exported slots stand for.

        Parameters
        ----------
        weights : mapping of str to ExportedWeights
            By goal.
        histories : mapping of str to SlotHistory
            By goal; in the order of the goal's exported slots.
        read_tokens : callable
        limit : int
            Tokens at most. Above it slots leave whole, those of the smallest n first: a slot that
            is listed is listed with every collision.
        """
        slots = {goal: found.slots for goal, found in weights.items()}
        every = np.unique(np.concatenate([np.zeros(0, np.uint32), *slots.values()]))
        tokens = read_tokens(every)
        listed, counts = np.unique(column_numbers(tokens, "slot"), return_counts=True)
        collided = listed[counts > 1]
        kept = tokens
        if len(tokens) > limit:
            n = np.zeros(len(listed))
            for goal, history in histories.items():
                places = np.searchsorted(slots[goal], listed)
                places[places == len(slots[goal])] = 0
                own = slots[goal][places] == listed
                n[own] = np.maximum(n[own], history.n[places[own]])
            order = np.lexsort((listed, -n))
            stays = np.zeros(len(listed), np.bool_)
            stays[order] = np.cumsum(counts[order]) <= limit
            kept = tokens.filter(pa.array(np.repeat(stays, counts).tolist(), pa.bool_()))
        return cls(
            histories=histories,
            tokens=kept,
            slots_left_out=len(listed) - len(np.unique(column_numbers(kept, "slot"))),
            tokens_left_out=len(tokens) - len(kept),
            collisions={
                goal: int(np.isin(own, collided, assume_unique=True).sum())
                for goal, own in slots.items()
            },
        )

    def files(self) -> dict[str, bytes]:
        """Return the files by name; the same content gives the same bytes."""
        tokens = self.tokens.combine_chunks()
        coded = tokens.column("feature").combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        files = {DICTIONARY: _written(tokens.set_column(1, "feature", coded))}
        for goal, history in self.histories.items():
            columns = {
                "n": _array(history.n.astype(np.float64), pa.float64()),
                "last_update_hours": _array(history.last_update_hours, pa.int32()),
            }
            files[f"{goal}{HISTORY_SUFFIX}"] = _written(pa.table(columns))
        return files

    def to_json(self) -> dict[str, Any]:
        """Return the counts for a manifest."""
        return {
            "tokens": len(self.tokens),
            "tokens_left_out": self.tokens_left_out,
            "slots_left_out": self.slots_left_out,
            "collisions": dict(self.collisions),
        }


@dataclass(frozen=True)
class OpenedAudit:
    """The audit files of a bundle on disk, verified one by one as they are opened.

    Attributes
    ----------
    folder : Path
        The bundle's.
    manifest : mapping
        The bundle's.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def history(self, goal: str) -> SlotHistory | None:
        """Return the history of a goal's exported slots; None if the bundle has none.

        Raises
        ------
        CorruptCheckpoint
            If the file is missing or has other bytes than were written.
        """
        table = self._table(f"{goal}{HISTORY_SUFFIX}")
        if table is None:
            return None
        return SlotHistory(column_numbers(table, "n"), column_numbers(table, "last_update_hours"))

    def tokens(self, slots: Sequence[int]) -> dict[int, list[tuple[str, str]]]:
        """Return what falls into each slot, ``(feature, value)``, in order; empty if not listed.

        Raises
        ------
        CorruptCheckpoint
            If the file is missing or has other bytes than were written.
        """
        table = self._table(DICTIONARY)
        if table is None:
            return {slot: [] for slot in slots}
        listed = column_numbers(table, "slot")
        found: dict[int, list[tuple[str, str]]] = {}
        for slot in slots:
            start, end = np.searchsorted(listed, [slot, slot + 1]).tolist()
            rows = table.slice(start, end - start).to_pylist()
            found[slot] = [(row["feature"], row["value"]) for row in rows]
        return found

    @property
    def slots_left_out(self) -> int:
        """Slots with a weight that the dictionary leaves out for its size."""
        audit = self.manifest["audit"]
        return 0 if audit is None else audit["slots_left_out"]

    def _table(self, name: str) -> pa.Table | None:
        expected = self.manifest["files"].get(name)
        if expected is None:
            return None
        path = self.folder / name
        if not path.is_file():
            raise CorruptCheckpoint(f"{path} is missing; restore the folder or export it again")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise CorruptCheckpoint(
                f"{path} has SHA-256 {found}, the manifest says {expected}; restore the folder or "
                "export it again"
            )
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def is_audit_file(name: str) -> bool:
    """Tell whether a file of a bundle is one that no score needs."""
    return name == DICTIONARY or name.endswith(HISTORY_SUFFIX)


def hour_of_update_us(last_update_hours: int) -> int:
    """Return the start of an hour that is counted from the epoch, microseconds."""
    return last_update_hours * HOUR_US


def column_numbers(table: pa.Table, name: str) -> np.ndarray:
    """Read a column of numbers without nulls out of its buffers, without importing pandas."""
    column = table.column(name).combine_chunks()
    dtype = np.dtype(str(column.type).replace("double", "float64"))
    if not len(column):
        return np.zeros(0, dtype)
    data = column.buffers()[1]
    return np.frombuffer(data, dtype, len(column), column.offset * dtype.itemsize)


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, len(values), [None, buffer])


def _written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
