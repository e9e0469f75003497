"""Two versions never meet unseen: equal ones pass, bridged ones are turned, others are refused."""

import numpy as np
import pytest

from ad_pipeline.embeddings.versions import MixedVersions, Rotation, VersionGuard, fit_rotation
from ad_pipeline_tests.embeddings.made_users import made_ids, made_vectors

DIMENSION = 8


def orthogonal(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]


def fitted(noise: float) -> tuple[Rotation, np.ndarray, np.ndarray]:
    """Return a rotation fitted to vectors that were turned and blurred, the truth, the vectors."""
    rng = np.random.default_rng(3)
    vectors, truth = made_vectors(rng, 500, DIMENSION), orthogonal(rng)
    blurred = vectors @ truth + noise * rng.normal(size=vectors.shape)
    return fit_rotation("old", "new", made_ids(rng, 500), vectors, blurred, 1), truth, vectors


def test_a_planted_rotation_is_recovered() -> None:
    rotation, truth, vectors = fitted(noise=0.0)
    np.testing.assert_allclose(rotation.matrix, truth, atol=1e-6)
    np.testing.assert_allclose(rotation.turned(vectors), vectors @ truth, atol=1e-5)
    assert rotation.error < 1e-10
    assert rotation.cosine > 1 - 1e-9


def test_the_error_is_that_of_users_held_out() -> None:
    """Noise is an error that no rotation avoids, and between unrelated spaces all is error."""
    rotation, _, vectors = fitted(noise=0.5)
    squares = (vectors**2).sum(axis=1).mean() + 0.25 * DIMENSION
    assert rotation.error == pytest.approx(0.25 * DIMENSION / squares, rel=0.25)
    np.testing.assert_allclose(rotation.matrix @ rotation.matrix.T, np.eye(DIMENSION), atol=1e-9)
    assert rotation.held_out + rotation.fitted == 500
    assert 60 <= rotation.held_out <= 140
    unrelated = fit_rotation(
        "old",
        "new",
        made_ids(np.random.default_rng(4), 500),
        vectors,
        np.random.default_rng(5).normal(size=vectors.shape),
        1,
    )
    assert unrelated.error > 0.8


def test_a_rotation_through_too_few_users_is_refused() -> None:
    rng = np.random.default_rng(0)
    vectors = made_vectors(rng, 2 * DIMENSION, DIMENSION)
    with pytest.raises(ValueError, match="at least 24 users with both old and new"):
        fit_rotation("old", "new", made_ids(rng, len(vectors)), vectors, vectors, 1)
    with pytest.raises(ValueError, match="same users and dimension"):
        fit_rotation("old", "new", made_ids(rng, len(vectors)), vectors, vectors[:, 1:], 1)


def test_a_lookup_that_mixes_versions_is_refused_naming_both_and_counted() -> None:
    guard = VersionGuard(tolerated_error=0.1)
    vectors = np.ones((2, DIMENSION), np.float32)
    for _ in range(2):
        with pytest.raises(MixedVersions, match=r"version old .* version new"):
            guard.aligned(vectors, "old", "new")
    assert guard.refused == {("old", "new"): 2}
    assert not guard.bridged
    assert not guard.passed


def test_equal_versions_pass_untouched() -> None:
    guard = VersionGuard(tolerated_error=0.1)
    vectors = np.ones((2, DIMENSION), np.float32)
    assert guard.aligned(vectors, "new", "new") is vectors
    assert guard.passed == {("new", "new"): 1}
    assert not guard.refused


def test_what_cannot_be_turned_passes_no_bridge() -> None:
    rotation, _, _ = fitted(noise=0.0)
    guard = VersionGuard(tolerated_error=0.1)
    guard.bridge([rotation])
    guard.admit("new", "new")
    with pytest.raises(MixedVersions, match=r"version old .* version new"):
        guard.admit("old", "new")
    assert list(guard.counts()) == [("passed", "new", "new", 1), ("refused", "old", "new", 1)]


def test_a_bridge_turns_one_way_and_is_counted() -> None:
    rotation, truth, vectors = fitted(noise=0.0)
    guard = VersionGuard(tolerated_error=0.1)
    guard.bridge([rotation])
    np.testing.assert_allclose(guard.aligned(vectors, "old", "new"), vectors @ truth, atol=1e-5)
    assert guard.bridged == {("old", "new"): 1}
    with pytest.raises(MixedVersions):
        guard.aligned(vectors, "new", "old")


def test_a_bridge_that_is_too_far_off_is_refused() -> None:
    rotation, _, vectors = fitted(noise=2.0)
    guard = VersionGuard(tolerated_error=0.1)
    with pytest.raises(ValueError, match="off by"):
        guard.bridge([rotation])
    with pytest.raises(MixedVersions):
        guard.aligned(vectors, "old", "new")
