"""The logged features of an hour, read where they are not the recomputed ones, letter for letter.

A scorer writes one text for given features, so that equal texts are equal values, and writing the
recomputed ones takes a fifth of reading the logged ones. Some are read all the same, by a reader
that shares nothing with the writer: a writer that lies would lie to both sides. How a difference is
counted and explained is the business of :mod:`.comparison` and :mod:`.causes`.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.features.encoding import FeatureContract, LookedUp
from ad_pipeline.monitoring.parity.comparison import compare_features
from ad_pipeline.monitoring.parity.decision_log import features_of
from ad_pipeline.serving.decisions import features_json

READ_ALL_THE_SAME = 256
"""Decisions of an hour and bundle that are read whatever their text is."""

_WRITTEN_TOGETHER = 4_096
"""Texts that are held at a time, about as many megabytes as thousands."""


def logged_features(
    contract: FeatureContract,
    decisions: pa.Table,
    recomputed: pa.Table,
    inputs: tuple[dict[str, pa.Array], LookedUp],
    key: str = "request_id",
) -> pa.Table:
    """Return the logged features of decisions, one column a feature.

    Parameters
    ----------
    contract : FeatureContract
    decisions : pyarrow.Table of n rows
        Of ``events.decisions``: ``key`` and ``features``.
    recomputed : pyarrow.Table
        ``key`` and the recomputed features of those decisions that have an impression.
    inputs : dict of str to Arrow array, LookedUp
        The same as a scorer is given them.
    key : str

    Returns
    -------
    pyarrow.Table of n rows
        ``recomputed`` itself if every decision has an impression and its text is that of the
        recomputed features; else see :func:`.decision_log.features_of`.
    """
    n = decisions.num_rows
    if recomputed.num_rows == n and _are_written(contract, decisions.column("features"), inputs):
        chosen = pa.array(np.arange(0, n, -(-n // READ_ALL_THE_SAME)))
        read = features_of(decisions.select([key, "features"]).take(chosen), key)
        if compare_features(read, recomputed.take(chosen), key).passed:
            return recomputed
    return features_of(decisions, key)


def _are_written(
    contract: FeatureContract,
    texts: pa.ChunkedArray,
    inputs: tuple[dict[str, pa.Array], LookedUp],
) -> bool:
    """Return whether each text is the one that a scorer writes of the recomputed features."""
    columns, counts = inputs
    # NaN and null are written alike, but they are two values.
    if any(_has_nan(columns[name]) for name in contract.numeric):
        return False
    for first in range(0, len(texts), _WRITTEN_TOGETHER):
        logged = texts.slice(first, _WRITTEN_TOGETHER)
        rows = np.arange(first, first + len(logged))
        written = features_json(contract, columns, counts, rows).cast(texts.type)
        if not pa.chunked_array([written]).equals(logged):
            return False
    return True


def _has_nan(numbers: pa.Array) -> bool:
    return bool(pc.call_function("any", [pc.call_function("is_nan", [numbers])]).as_py())
