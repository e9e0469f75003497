"""An hour's pair of stores is read as it was published, and never mixes encoders or hours."""

from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import Checkpoint, MissingCheckpoint, write_checkpoint
from ad_pipeline.clocks import HOUR_US, published_hour
from ad_pipeline.datasets import Deployment, dataset_file, load_dataset
from ad_pipeline.embeddings.published import (
    read_hour,
    read_published,
    write_published,
)
from ad_pipeline.embeddings.vectors import Codec, Layout, WrongVectors, write_vectors
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline_tests.embeddings.made_users import VERSION, made_ids, made_vectors

DIMENSION = 8
NINE_US = 9 * HOUR_US


def written(
    root: Path, name: str, ids: np.ndarray, version: str = VERSION, known_us: int = NINE_US - 1
) -> Checkpoint:
    layout = Layout(version, Codec(DIMENSION, None, 0.0), 0, 1)
    vectors = made_vectors(np.random.default_rng(len(ids)), len(ids), DIMENSION)
    return write_vectors(root, name, layout, known_us, lambda _: (ids, vectors))


def test_an_hour_is_read_as_it_was_published(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids, ads = made_ids(rng, 40), made_ids(rng, 5)
    users, engagers = written(tmp_path, "users/8", ids), written(tmp_path, "engagers/8", ads)
    pair = write_published(tmp_path, 8 * HOUR_US, users, engagers)
    assert write_published(tmp_path, 8 * HOUR_US, users, engagers).digest == pair.digest
    found = read_hour(tmp_path, 8 * HOUR_US)
    assert (found.hour_us, found.digest, found.version) == (8 * HOUR_US, pair.digest, VERSION)
    np.testing.assert_array_equal(found.users.ids, ids)
    np.testing.assert_array_equal(found.engagers.ids, ads)
    assert read_published(tmp_path, pair.digest).users.lookup(ids).present.all()
    with pytest.raises(MissingCheckpoint, match="materialize that hour first"):
        read_hour(tmp_path, 9 * HOUR_US)


def test_the_same_stores_have_another_name_in_another_hour(tmp_path: Path) -> None:
    store = written(tmp_path, "users/8", made_ids(np.random.default_rng(0), 3))
    eight, nine = (write_published(tmp_path, h * HOUR_US, store, store) for h in (8, 9))
    assert eight.digest != nine.digest


def test_stores_of_two_encoders_are_no_pair(tmp_path: Path) -> None:
    ids = made_ids(np.random.default_rng(0), 3)
    users, others = written(tmp_path, "users/8", ids), written(tmp_path, "e/8", ids, "encoder-b")
    with pytest.raises(MixedVersions, match=f"{VERSION}.*encoder-b"):
        write_published(tmp_path, 8 * HOUR_US, users, others)


def test_a_store_that_knows_the_next_hour_is_refused(tmp_path: Path) -> None:
    ids = made_ids(np.random.default_rng(0), 3)
    late = written(tmp_path, "users/8", ids, known_us=NINE_US)
    with pytest.raises(WrongVectors, match="after the hour's end"):
        write_published(tmp_path, 8 * HOUR_US, late, written(tmp_path, "engagers/8", ids))


def test_a_checkpoint_of_another_kind_is_no_pair(tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path, "learners.online_model", {}, {})
    with pytest.raises(WrongVectors, match=r"learners\.online_model"):
        read_published(tmp_path, other.digest)


@pytest.mark.parametrize(("lag", "hour"), [(0, 8), (1, 7)])
def test_an_impression_reads_an_hour_that_was_over_and_published(lag: int, hour: int) -> None:
    for occurred_us in (9 * HOUR_US, 10 * HOUR_US - 1):
        assert published_hour(lag, occurred_us) == hour * HOUR_US


def test_vectors_have_a_folder_of_their_own_in_the_deployment(tmp_path: Path) -> None:
    deployment = Deployment(load_dataset(dataset_file("marketplace")), tmp_path)
    assert deployment.vectors.parent == tmp_path
    assert deployment.vectors not in {deployment.snapshots, deployment.checkpoints}
