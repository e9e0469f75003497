"""The vectors that decisions used, looked up again by the name that they log.

Of a user's vector a decision logs no number, only which published vectors it was found in: a name
is a digest, so it gives the same bytes again, and a log of 33 numbers a row would be most of the
log. What differs then shows in the scores alone; here is what they would have been by the vectors
of other hours, a cause that :mod:`.causes` weighs.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.checkpoints import is_pointed, resolve
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.published import pointer, read_published
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    FeatureContract,
    LookedUp,
    ReadColumns,
    vector_hashes,
)
from ad_pipeline.features.vectors import vectors_named

NAMED = re.escape(f'"{VECTORS_USED}": "') + '(?P<digest>[0-9a-f]{64})"'
"""As a scorer writes it; within a text of a feature the quotes would be escaped."""


def vectors_used(contract: FeatureContract, features: pa.ChunkedArray) -> pa.Array:
    """Return which published vectors each decision says it used.

    Parameters
    ----------
    contract : FeatureContract
    features : Arrow column of texts, shape (n,)
        Of ``events.decisions``.

    Returns
    -------
    Arrow array of string, shape (n,)
        Digests, null for none; all null of a contract without vectors.
    """
    if contract.vectors is None:
        return pa.nulls(len(features), pa.string())
    found = pc.call_function("extract_regex", [features], pc.ExtractRegexOptions(NAMED))
    (digests,) = found.combine_chunks().flatten()
    return digests.cast(pa.string())


def look_vectors_up(
    deployment: Deployment,
    contract: FeatureContract,
    used: pa.Array,
    read: ReadColumns,
    looked_up: LookedUp,
) -> None:
    """Write the numbers that rows find in the vectors that they name, if the contract reads any.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If what is named is not there or not intact.
    """
    if contract.vectors is not None:
        hashes = vector_hashes(contract, read)
        looked_up.vectors[:] = vectors_named(
            contract.vectors, deployment.vectors, used.to_pylist(), hashes, verify=True
        )


def with_other_vectors(
    deployment: Deployment,
    contract: FeatureContract,
    used: pa.Array,
    read: ReadColumns,
    looked_up: LookedUp,
    distances: Iterable[int],
) -> Iterator[tuple[int, LookedUp]]:
    """Yield what rows would have looked up had vectors been of other hours than those they name.

    Parameters
    ----------
    deployment : Deployment
    contract : FeatureContract
    used : Arrow array of string, shape (n,)
        From :func:`vectors_used`.
    read : ReadColumns of n rows
    looked_up : LookedUp of n rows
        As named.
    distances : iterable of int
        Hours after those that are named; negative for before.

    Yields
    ------
    hours : int
        A distance at which something was published.
    LookedUp of n rows
    """
    features, root = contract.vectors, deployment.vectors
    if features is None:
        return
    named = used.drop_null().unique().to_pylist()
    named_us = {name: read_published(root, name, verify=False).hour_us for name in named}
    hashes = vector_hashes(contract, read)
    for hours in distances:
        others = {
            name: resolve(root, pointer(hour_us + hours * HOUR_US))
            for name, hour_us in named_us.items()
            if is_pointed(root, pointer(hour_us + hours * HOUR_US))
        }
        if others:
            instead = [others.get(name or "") for name in used.to_pylist()]
            numbers = vectors_named(features, root, instead, hashes)
            yield hours, replace(looked_up, vectors=numbers)
