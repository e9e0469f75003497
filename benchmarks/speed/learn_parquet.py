"""Learn a Parquet log as a process of its own: from its start to a checkpoint on disk.

What :mod:`benchmarks.speed.online_learner` times whole, imports and all, so that those are part of
the design here: decoding needs only pyarrow, and begins before the learner is imported. Two
threads, as there are two cores: one decodes row groups in order and, while it is ahead, hashes
them too; the other learns them in order, and hashes what came undone. Who hashed a group depends on
the clock; its slots and the order of learning do not. Nothing heavy may be imported at the top.

    python -m benchmarks.speed.learn_parquet LOG.parquet --configuration JSON --checkpoints FOLDER
"""

import argparse
import gc
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from queue import Queue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import numpy as np

    from ad_pipeline.features.encoding import FeatureContract

BITS = 22
STATE_DTYPE = "float32"
LABEL = "click"

GROUPS_AHEAD = 6
"""Decoded row groups that may wait for the learner."""

GROUPS_WAITING = 1
"""Groups waiting from which on the decoding thread hashes as well."""

LEARNT_ROWS = 8_192
"""Rows that are hashed, then learnt: their slots stay in the cache in between."""

Batch = tuple["np.ndarray", "np.ndarray"]
"""Slots (n, F) and labels (n,)."""


class GroupsAhead:
    """Row groups of a log in order, decoded by a thread of its own.

    Parameters
    ----------
    parquet : Path
    """

    def __init__(self, parquet: Path) -> None:
        self._file = open_parquet(parquet)
        self._groups = self._file.num_row_groups
        self._ready: Queue[pa.Table | Batch | BaseException] = Queue()
        self._room = Semaphore(GROUPS_AHEAD)
        self._encoder_imported = Event()
        self._thread = Thread(target=self._decode, daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[Batch]:
        """Yield slots and labels in the order of the log; slots are good until the next."""
        from ad_pipeline.features.encoding import slot_blocks

        contract = _contract()
        self._encoder_imported.set()
        for _ in range(self._groups):
            found = self._ready.get()
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, pa.Table):
                labels = labels_of(found)
                start = 0
                for block in slot_blocks(contract, columns_of(found), LEARNT_ROWS):
                    yield block, labels[start : start + len(block)]
                    start += len(block)
            else:
                yield found
            self._room.release()
        self._thread.join()

    def _decode(self) -> None:
        try:
            for group in range(self._groups):
                self._room.acquire()
                table = self._file.read_row_group(group, use_threads=False)
                self._ready.put(self._hashed(table) if self._is_ahead() else table)
        except BaseException as error:  # raised by whoever waits for the group
            self._ready.put(error)

    def _is_ahead(self) -> bool:
        return self._encoder_imported.is_set() and self._ready.qsize() >= GROUPS_WAITING

    def _hashed(self, table: pa.Table) -> Batch:
        from ad_pipeline.features.encoding import slots

        return slots(_contract(), columns_of(table)), labels_of(table)


def learn_parquet(
    parquet: Path, configuration: Mapping[str, float], checkpoints: Path
) -> dict[str, float]:
    """Learn a log in this process and leave a checkpoint: the path of the product.

    Parameters
    ----------
    parquet : Path
    configuration : mapping of str to float
        Of the learner; see `settings.Configuration`.
    checkpoints : Path
        Folder of checkpoints.

    Returns
    -------
    dict of str to float
        ``loss``, the mean progressive log loss, and ``peak_mb``.
    """
    groups = GroupsAhead(parquet)

    from ad_pipeline.checkpoints import write_checkpoint
    from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
    from ad_pipeline.settings import Configuration

    expert = FTRLExpert(BITS, (Configuration.model_validate(configuration),), STATE_DTYPE)
    losses: list[float] = []
    rows = 0
    for row_slots, labels in groups.batches():
        logits = expert.predict_then_learn(row_slots, labels)[:, 0]
        losses.append(log_loss(logits, labels) * len(labels))
        rows += len(labels)
    arrays, manifest = expert.state()
    write_checkpoint(checkpoints, "learners.online_model", arrays, {"expert": manifest})
    return {"loss": math.fsum(losses) / rows, "peak_mb": peak_mb()}


def open_parquet(parquet: Path) -> pq.ParquetFile:
    """Open a log so that its texts stay dictionaries."""
    schema = pq.read_schema(parquet, memory_map=True)
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetFile(parquet, read_dictionary=texts, memory_map=True)


def columns_of(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return a table's columns by name, as encoding takes them."""
    return dict(zip(table.column_names, table.columns, strict=True))


def labels_of(table: pa.Table) -> "np.ndarray":
    """Return the labels, uint8 (n,); Arrow's own `to_numpy` would import pandas."""
    import numpy as np

    labels = table.column(LABEL).combine_chunks()
    return np.frombuffer(labels.buffers()[1], np.uint8, len(labels), labels.offset)


def log_loss(logits: "np.ndarray", labels: "np.ndarray") -> float:
    """Return the mean log loss of logits, float64 (n,), against labels 0/1 (n,)."""
    import numpy as np

    margins = np.where(labels > 0, -logits, logits)
    return float((np.maximum(margins, 0.0) + np.log(1.0 + np.exp(-np.abs(margins)))).mean())


def peak_mb() -> float:
    """Return the peak of this program alone: getrusage's is at least that of the parent's fork."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else math.nan


def main() -> None:
    """Learn, and print what was learnt as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--configuration", type=json.loads, default={})
    parser.add_argument("--checkpoints", type=Path, required=True)
    arguments = parser.parse_args()
    gc.disable()  # imports make a million objects and no garbage; nothing below makes cycles
    said = learn_parquet(arguments.parquet, arguments.configuration, arguments.checkpoints)
    sys.stdout.write(json.dumps(said))


@cache
def _contract() -> "FeatureContract":
    from benchmarks.click_log import feature_contract

    return feature_contract(BITS)


if __name__ == "__main__":
    main()
