"""The fresh process of candidate replay: raw requests in, scores out, nothing of the pipeline.

``python -m ad_pipeline.serving.replay --bundle DIR --requests FILE --snapshots DIR --out FILE``
opens a bundle by its folder and scores Parquet rows with the very :class:`Scorer` that serves. Each
row names, in ``snapshot_hash``, the rate snapshot to use (empty or null: none). What comes out is
compared with the batch path elsewhere (:mod:`ad_pipeline.monitoring`); it is a report, never
``events.decisions``. Like the scorer it imports neither Dagster nor DuckDB, and ends with an error
if something made it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.serving.bundle import Bundle, open_bundle_folder
from ad_pipeline.serving.decisions import Decisions, numbers_array
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer

SNAPSHOT_COLUMN = "snapshot_hash"

FOREIGN = ("dagster", "duckdb", "pandas", "sklearn", "river", "lightgbm", "jax")
"""What must not be in a process that serves."""


def foreign_modules() -> tuple[str, ...]:
    """Return those of :data:`FOREIGN` that this process has imported."""
    return tuple(name for name in FOREIGN if name in sys.modules)


def replay(bundle: Bundle, requests: pa.Table, snapshots: Path) -> pa.Table:
    """Score requests, each with the snapshot that its row names.

    Parameters
    ----------
    bundle : Bundle
    requests : pa.Table of n rows
        The bundle's columns, ``snapshot_hash``, and ``request_id``, ``impression_id``,
        ``occurred_us`` as far as known.
    snapshots : Path
        Root of the snapshots.

    Returns
    -------
    pa.Table of n rows, in the order of the requests
        The columns of ``events.decisions``, and for each goal ``probability:<goal>`` and
        ``logit:<goal>:<expert>`` as DOUBLE, so that bits can be compared without parsing.

    Raises
    ------
    KeyError
        If the requests do not name their snapshots.
    MissingCheckpoint, CorruptCheckpoint
        If a snapshot is not there or not intact.
    """
    if SNAPSHOT_COLUMN not in requests.column_names:
        raise KeyError(f"requests have no column {SNAPSHOT_COLUMN}; name each row's snapshot in it")
    named = requests[SNAPSHOT_COLUMN].combine_chunks().dictionary_encode()
    if isinstance(named, pa.ChunkedArray):
        named = named.combine_chunks()
    digests = named.dictionary.to_pylist()
    codes = named.indices.to_pylist()
    code_of = np.array([-1 if code is None else code for code in codes], np.int64)
    parts: list[pa.Table] = []
    order: list[np.ndarray] = []
    for code in np.unique(code_of).tolist():
        digest = "" if code < 0 else digests[code]
        rows = np.flatnonzero(code_of == code)
        snapshot = PublishedSnapshot.read(snapshots, digest) if digest else None
        decisions = Scorer(bundle, snapshot).score_many(requests.take(numbers_array(rows)))
        parts.append(_with_bits(decisions))
        order.append(rows)
    if not parts:
        return _with_bits(Scorer(bundle).score_many(requests))
    places = np.empty(len(requests), np.int64)
    places[np.concatenate(order)] = np.arange(len(requests))
    return pa.concat_tables(parts).take(numbers_array(places))


def _with_bits(decisions: Decisions) -> pa.Table:
    scored = decisions.to_table()
    for goal, probability in decisions.probabilities.items():
        scored = scored.append_column(f"probability:{goal}", numbers_array(probability))
    for goal, experts in decisions.logits.items():
        for expert, logits in experts.items():
            scored = scored.append_column(f"logit:{goal}:{expert}", numbers_array(logits))
    return scored


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the replay; see the module's text for the command line.

    Returns
    -------
    int
        0, or 3 if the process imported what a serving process must not.
    """
    parser = argparse.ArgumentParser(prog="ad_pipeline.serving.replay", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--requests", type=Path, required=True, help="Parquet file of raw requests")
    parser.add_argument("--snapshots", type=Path, required=True, help="root of the rate snapshots")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    options = parser.parse_args(arguments)
    bundle = open_bundle_folder(options.bundle)
    # ParquetFile and not read_table, which imports pandas.
    requests = pq.ParquetFile(options.requests).read()
    scored = replay(bundle, requests, options.snapshots)
    scratch = options.out.with_name(f".{options.out.name}.writing")
    pq.write_table(scored, scratch)
    scratch.replace(options.out)
    foreign = foreign_modules()
    if foreign:
        sys.stderr.write(f"a serving process must not import {', '.join(foreign)}\n")
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
