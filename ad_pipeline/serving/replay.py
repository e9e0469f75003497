"""The fresh process of candidate replay: raw requests in, scores out, nothing of the pipeline.

``python -m ad_pipeline.serving.replay --bundle DIR --requests FILE --snapshots DIR --out FILE``
opens a bundle by its folder and scores Parquet rows with the very :class:`Scorer` that serves. Each
row names, in ``snapshot_hash``, the rate snapshot to use (empty or null: none), and, of a bundle
that reads vectors, in ``user_vector.published`` those (``--vectors DIR``). What comes out is
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

from ad_pipeline.embeddings.published import read_published
from ad_pipeline.features.encoding import VECTORS_USED
from ad_pipeline.serving.bundle import Bundle, open_bundle_folder
from ad_pipeline.serving.decisions import Decisions, numbers_array
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer

SNAPSHOT_COLUMN = "snapshot_hash"

FOREIGN = ("dagster", "duckdb", "pandas", "sklearn", "river", "lightgbm", "jax")
"""What must not be in a process that serves."""


def foreign_modules() -> tuple[str, ...]:
    """Return those of :data:`FOREIGN` that this process has imported."""
    return tuple(name for name in FOREIGN if name in sys.modules)


def replay(
    bundle: Bundle, requests: pa.Table, snapshots: Path, vectors: Path | None = None
) -> pa.Table:
    """Score requests, each with the snapshot and the vectors that its row names.

    Parameters
    ----------
    bundle : Bundle
    requests : pa.Table of n rows
        The bundle's columns, ``snapshot_hash``, of a bundle that reads vectors
        ``user_vector.published``, and ``request_id``, ``impression_id``, ``occurred_us`` as far as
        known.
    snapshots : Path
        Root of the snapshots.
    vectors : Path, optional
        Root of the published vectors.

    Returns
    -------
    pa.Table of n rows, in the order of the requests
        The columns of ``events.decisions``, and for each goal ``probability:<goal>`` and
        ``logit:<goal>:<expert>`` as DOUBLE, so that bits can be compared without parsing.

    Raises
    ------
    KeyError
        If the requests do not name their snapshots, or vectors.
    ValueError
        If vectors are named and their root is not.
    MissingCheckpoint, CorruptCheckpoint
        If a snapshot or vectors are not there or not intact.
    """
    named = [_named(requests, SNAPSHOT_COLUMN)]
    if bundle.contract.vectors is not None:
        named.append(_named(requests, VECTORS_USED))
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, names in enumerate(zip(*named, strict=True)):
        rows_of.setdefault(names, []).append(row)
    parts: list[pa.Table] = []
    for names, rows in rows_of.items():
        snapshot, used = (*names, "")[:2]
        if used and vectors is None:
            raise ValueError(f"the requests name vectors {used[:12]}; say their root by --vectors")
        scorer = Scorer(
            bundle,
            PublishedSnapshot.read(snapshots, snapshot) if snapshot else None,
            read_published(vectors, used) if used and vectors is not None else None,
        )
        decisions = scorer.score_many(requests.take(numbers_array(np.array(rows, np.int64))))
        parts.append(_with_bits(decisions))
    if not parts:
        return _with_bits(Scorer(bundle).score_many(requests))
    places = np.empty(len(requests), np.int64)
    places[np.concatenate(list(rows_of.values()))] = np.arange(len(requests))
    return pa.concat_tables(parts).take(numbers_array(places))


def _named(requests: pa.Table, column: str) -> list[str]:
    """Return what each request names in a column; '' for nothing."""
    if column not in requests.column_names:
        raise KeyError(f"requests have no column {column}; name in it what each row is to use")
    return [name or "" for name in requests[column].to_pylist()]


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
    parser.add_argument("--vectors", type=Path, help="root of the published vectors, if any")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    options = parser.parse_args(arguments)
    bundle = open_bundle_folder(options.bundle)
    # ParquetFile and not read_table, which imports pandas.
    requests = pq.ParquetFile(options.requests).read()
    scored = replay(bundle, requests, options.snapshots, options.vectors)
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
