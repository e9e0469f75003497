"""What must hold of published vectors holds of a market's, and each planted fault is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import point, read_checkpoint, write_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.audit import (
    not_encoded,
    recall_of_sample,
    version_faults,
    watermark_faults,
)
from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline.embeddings.published import (
    PublishedVectors,
    last_known_us,
    pointer,
    read_hour,
    read_newest,
)
from ad_pipeline.embeddings.vectors import ARRAYS, SHARD_KIND, StoredVectors
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_users import CLUSTERED, made_users
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import HOURS, hour_of, warehouse_of

CLUSTERLESS = CLUSTERED.model_copy(update={"exact_users": 10_000})


@needs_jax
def test_a_markets_hour_has_no_fault(published: Market) -> None:
    found = read_newest(published.deployment.vectors)
    assert list(version_faults(published.deployment.vectors, found)) == []
    assert list(watermark_faults(found)) == []
    due, missed = not_encoded(warehouse_of(published), published.deployment, found)
    assert due > 5
    assert missed == 0
    first = read_hour(published.deployment.vectors, published.start_us)
    assert not_encoded(warehouse_of(published), published.deployment, first) == (0, 0)


def planted(root: Path, found: PublishedVectors, fault: str) -> PublishedVectors:
    """Write the newest hour again with a fault in its first shard of users."""
    pair = read_checkpoint(root, found.digest)
    store = read_checkpoint(root, pair.manifest["users"])
    shard = found.users.shards[0]
    arrays = {name: np.array(getattr(shard, name)) for name in ARRAYS}
    facts = {"version": found.version, "shard": 0, "shard_bits": found.users.layout.shard_bits}
    if fault == "version":
        facts["version"] = "another encoder"
    elif fault == "infinite":
        arrays["held"][3] = np.inf
    written = write_checkpoint(root, SHARD_KIND, arrays, facts)
    shards = [written.digest, *store.manifest["shards"][1:]]
    own = ("format", "kind", "files")
    told = {name: value for name, value in store.manifest.items() if name not in own}
    other = write_checkpoint(root, store.manifest["kind"], {}, told | {"shards": shards})
    told = {name: value for name, value in pair.manifest.items() if name not in own}
    again = write_checkpoint(root, pair.manifest["kind"], {}, told | {"users": other.digest})
    point(root, pointer(found.hour_us), again.digest)
    return read_newest(root)


@needs_jax
@pytest.mark.parametrize(
    ("fault", "said"), [("version", "of version another encoder"), ("infinite", "not finite")]
)
def test_a_mixed_version_and_a_broken_number_are_found(
    published: Market, tmp_path: Path, fault: str, said: str
) -> None:
    root = published.copied_to(tmp_path / "home").deployment.vectors
    (found,) = version_faults(root, planted(root, read_newest(root), fault))
    assert said in found


def of_users(found: PublishedVectors, refreshed_us: int, users: int) -> PublishedVectors:
    """Say of the first users of a store that they were encoded at another moment."""
    shard = found.users.shards[0]
    moments = np.array(shard.refreshed_us)
    newest = np.flatnonzero(moments == found.users.watermark_us)[:users]
    assert len(newest) == users
    moments[newest] = refreshed_us
    shards = (replace(shard, refreshed_us=moments), *found.users.shards[1:])
    store = StoredVectors(found.users.layout, found.users.watermark_us, shards)
    return replace(found, users=store)


@needs_jax
def test_a_vector_that_knows_the_next_hour_is_found(published: Market) -> None:
    found = read_newest(published.deployment.vectors)
    ahead = of_users(found, found.hour_us + HOUR_US, 1)
    (said,) = watermark_faults(ahead)
    assert "users" in said
    knowing = replace(found.engagers, watermark_us=found.hour_us + HOUR_US)
    (said,) = watermark_faults(replace(found, engagers=knowing))
    assert "engagers" in said


@needs_jax
def test_due_users_who_were_left_out_are_counted(published: Market) -> None:
    found = read_newest(published.deployment.vectors)
    before = of_users(found, last_known_us(hour_of(published, HOURS - 3)), 3)
    due, missed = not_encoded(warehouse_of(published), published.deployment, before)
    assert due > 3
    assert missed == 3


def test_neighbours_are_compared_with_the_nearest_of_all() -> None:
    users, _ = made_users(0, 300)
    exact = build_graph(users, CLUSTERLESS, 1)
    assert recall_of_sample(exact, users, 50, 1) == (1.0, 50)
    clustered = build_graph(users, CLUSTERED, 1)
    recall, _ = recall_of_sample(clustered, users, 300, 1)
    assert 0.7 < recall <= 1
    wrong = replace(exact, neighbours=np.roll(exact.neighbours, 1, axis=0))
    assert recall_of_sample(wrong, users, 50, 1)[0] < 0.5
    missing = np.array(exact.neighbours)
    missing[:, -1] = -1
    k = exact.neighbours.shape[1]
    found, _ = recall_of_sample(replace(exact, neighbours=missing), users, 50, 1)
    assert found == pytest.approx(1 - 1 / k)
