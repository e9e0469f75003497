"""Published vectors for tests: whoever is named has one, drawn from his name, hour and encoder."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ad_pipeline.checkpoints import Checkpoint
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.published import PublishedVectors, read_published, write_published
from ad_pipeline.embeddings.vectors import Codec, Layout, write_vectors
from ad_pipeline.hashing import hash_values, seed_of
from ad_pipeline.settings import EncoderSettings, UserVectorSettings
from ad_pipeline.warehouse import Warehouse

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
    shard_bits: int,
) -> Checkpoint:
    layout = Layout(ENCODER, Codec(dimension, None, 0.0), shard_bits, 1)
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
    shard_bits: int = 1,
) -> PublishedVectors:
    """Publish an hour's vectors of users and of ads' engagers."""
    stores = [
        _write_store(root, name, hour_us, column, vectors, dimension, shard_bits)
        for name, column, vectors in zip(("users", "engagers"), columns, (users, ads), strict=True)
    ]
    return read_published(root, write_published(root, hour_us, *stores).digest)


def with_vectors(deployment: Deployment, hours_us: Iterable[int], dimension: int) -> Deployment:
    """Let a market's settings ask for vectors, and publish some in each hour.

    Nine in ten of the users and of the ads of its log have one.
    """
    settings = deployment.dataset.settings.model_copy(
        update={"user_vectors": UserVectorSettings(encoder=EncoderSettings(dimension=dimension))}
    )
    dataset = deployment.dataset.model_copy(update={"settings": settings})
    with Warehouse(deployment.warehouse).reader() as connection:
        names = [
            [name for (name,) in connection.execute(
                f"SELECT DISTINCT {column} FROM events.impressions ORDER BY 1"
            ).fetchall()]
            for column in ("user_id", "ad_id")
        ]  # fmt: skip
    for hour_us in hours_us:
        hour = hour_us // HOUR_US
        users, ads = (drawn(each[len(each) // 10 :], dimension, hour) for each in names)
        publish(deployment.vectors, hour_us, users, ads, dimension, shard_bits=0)
    return replace(deployment, dataset=dataset)
