"""Published vectors for tests: whoever is named has one, drawn from his name, hour and encoder."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ad_pipeline.checkpoints import Checkpoint
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.embeddings.published import PublishedVectors, read_published, write_published
from ad_pipeline.embeddings.vectors import Codec, Layout, write_vectors
from ad_pipeline.hashing import hash_values, seed_of

ENCODER = "encoder-a"


def drawn(names: Iterable[str], dimension: int, seed: int) -> dict[str, np.ndarray]:
    """Draw a float16 vector for each name, another one for another seed."""
    return {
        name: np.random.default_rng([seed, *name.encode()])
        .normal(size=dimension)
        .astype(np.float16)
        for name in names
    }


def _write_store(
    root: Path,
    name: str,
    hour_us: int,
    column: str,
    vectors: Mapping[str, np.ndarray],
    dimension: int,
) -> Checkpoint:
    layout = Layout(ENCODER, Codec(dimension, None, 0.0), 2, 1)
    ids = hash_values(list(vectors), seed_of(column))
    matrix = np.array([*vectors.values()], np.float32).reshape(len(ids), dimension)

    def fresh(shard: int) -> tuple[np.ndarray, np.ndarray]:
        rows = layout.shards(ids) == shard
        return ids[rows], matrix[rows]

    return write_vectors(root, f"{name}/{hour_key(hour_us)}", layout, hour_us + HOUR_US - 1, fresh)


def publish(
    root: Path,
    hour_us: int,
    users: Mapping[str, np.ndarray],
    ads: Mapping[str, np.ndarray],
    dimension: int,
    columns: tuple[str, str] = ("user_id", "ad_id"),
) -> PublishedVectors:
    """Publish an hour's vectors of users and of ads' engagers."""
    stores = [
        _write_store(root, name, hour_us, column, vectors, dimension)
        for name, column, vectors in zip(("users", "engagers"), columns, (users, ads), strict=True)
    ]
    return read_published(root, write_published(root, hour_us, *stores).digest)
