"""Made users: vectors with tastes in common, and what people with such tastes click."""

import numpy as np

from ad_pipeline.embeddings.graph import Users
from ad_pipeline.settings import UserVectorSettings

VERSION = "encoder-a"

#: Small enough that a thousand users are searched in clusters, in six whatever they hold.
CLUSTERED = UserVectorSettings(
    neighbours=10, exact_users=50, clusters_per_root=1.0, probes=6, aimed_recall=None
)


def made_ids(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return distinct hashes, ascending, from all of the 64 bits."""
    found = np.unique(rng.integers(0, 2**64, 2 * count, np.uint64))
    return np.sort(rng.choice(found, count, replace=False))


def made_vectors(rng: np.random.Generator, count: int, dimension: int = 16) -> np.ndarray:
    """Return vectors of users who gather around common tastes: float32 (count, dimension)."""
    tastes = rng.normal(size=(max(count // 40, 1), dimension))
    mixed = tastes[rng.integers(0, len(tastes), count)] + 0.4 * rng.normal(size=(count, dimension))
    return (mixed * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)


def made_users(seed: int, count: int, dimension: int = 16) -> tuple[Users, np.ndarray]:
    """Return users and the matrix behind them."""
    rng = np.random.default_rng(seed)
    vectors = made_vectors(rng, count, dimension)
    return Users.of_matrix(made_ids(rng, count), vectors, VERSION), vectors
