"""What is stored is found again, in any number of shards, and never across versions."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.checkpoints import CorruptCheckpoint, MissingCheckpoint, sweep, write_checkpoint
from ad_pipeline.embeddings.sequences import NEVER
from ad_pipeline.embeddings.vectors import (
    Codec,
    Layout,
    Shard,
    StoredVectors,
    WrongVectors,
    forget_vectors,
    half_precision,
    product_quantized,
    read_named,
    read_vectors,
    refreshed,
    write_vectors,
)
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline_tests.embeddings.made_users import VERSION, made_ids, made_vectors

DIMENSION = 8
HALF = Codec(DIMENSION, None, 0.0)


def layout_of(bits: int = 2, averaged: int = 3, codec: Codec = HALF) -> Layout:
    return Layout(VERSION, codec, bits, averaged)


def fresh(layout: Layout, ids: np.ndarray, vectors: np.ndarray):
    """Hand each shard its users, as an encoder would."""
    of_shard = layout.shards(ids)
    return lambda number: (ids[of_shard == number], vectors[of_shard == number])


def in_memory(layout: Layout, *batches: tuple[np.ndarray, np.ndarray]) -> StoredVectors:
    shards = []
    for number in range(2**layout.shard_bits):
        shard = Shard.empty(layout)
        for ids, vectors in batches:
            shard = refreshed(shard, layout, *fresh(layout, ids, vectors)(number), 0)
        shards.append(shard)
    return StoredVectors(layout, 0, tuple(shards))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 6))
def test_shards_of_any_number_give_equal_lookups(seed: int, count: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    ids, vectors = made_ids(rng, count), made_vectors(rng, max(count, 1), DIMENSION)[:count]
    asked = np.concatenate([ids, made_ids(rng, 5), [np.uint64(0), np.uint64(2**64 - 1)]])
    asked = rng.permutation(asked)
    one, many = (in_memory(layout_of(b), (ids, vectors)) for b in (0, bits))
    for store in (one, many):
        found = store.lookup(asked)
        known = {int(i): v for i, v in zip(ids, vectors.astype(np.float16), strict=True)}
        for row, wanted in enumerate(asked.tolist()):
            assert found.present[row] == (wanted in known)
            expected = known.get(wanted, np.zeros(DIMENSION))
            np.testing.assert_array_equal(found.vectors[row], expected)
        np.testing.assert_allclose(
            found.norms, np.linalg.norm(found.vectors, axis=1), rtol=1e-6, atol=1e-7
        )
    np.testing.assert_array_equal(one.ids, many.ids)
    np.testing.assert_array_equal(one.positions(asked), many.positions(asked))
    everybody = rng.permutation(count)
    np.testing.assert_array_equal(one.units(everybody), many.units(everybody))


def test_a_user_is_read_as_the_mean_of_the_last_vectors_of_the_version() -> None:
    rng = np.random.default_rng(0)
    ids = made_ids(rng, 30)
    rounds = [made_vectors(rng, 30, DIMENSION) for _ in range(4)]
    # The first ten users are refreshed each time, the next ten twice, the last once.
    batches = [(ids, rounds[0]), (ids[:20], rounds[1][:20])]
    batches += [(ids[:10], rounds[2][:10]), (ids[:10], rounds[3][:10])]
    found = in_memory(layout_of(), *batches).lookup(ids).vectors
    read = np.array(rounds).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(found[:10], read[1:, :10].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found[10:20], read[:2, 10:20].mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(found[20:], read[0, 20:])


def test_a_store_is_read_back_and_the_same_content_is_the_same_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ids, vectors = made_ids(rng, 200), made_vectors(rng, 200, DIMENSION)
    layout = layout_of()
    written = write_vectors(tmp_path, "h:1", layout, 7, fresh(layout, ids, vectors))
    order = rng.permutation(200)
    again = write_vectors(tmp_path, "h:1", layout, 7, fresh(layout, ids[order], vectors[order]))
    assert again.digest == written.digest
    store = read_named(tmp_path, "h:1")
    assert (store.version, store.watermark_us, len(store.shards)) == (VERSION, 7, 4)
    np.testing.assert_array_equal(store.lookup(ids).vectors, vectors.astype(np.float16))
    assert not store.lookup(ids + np.uint64(1)).present.any()


def test_a_shard_without_news_is_the_same_checkpoint_and_a_sweep_takes_what_is_forgotten(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(2)
    ids, vectors = made_ids(rng, 200), made_vectors(rng, 200, DIMENSION)
    layout = layout_of()
    first = write_vectors(tmp_path, "1", layout, 1, fresh(layout, ids, vectors))
    of_last = layout.shards(ids) == 3
    second = write_vectors(
        tmp_path,
        "2",
        layout,
        2,
        fresh(layout, ids[of_last], vectors[of_last]),
        read_named(tmp_path, "1"),
    )
    shards = [store.manifest["shards"] for store in (first, second)]
    assert shards[0][:3] == shards[1][:3]
    assert shards[0][3] != shards[1][3]
    assert sweep(tmp_path).removed == 0
    forget_vectors(tmp_path, "1")
    assert sweep(tmp_path).removed == 2  # the store and its own fourth shard
    assert read_named(tmp_path, "2").lookup(ids).present.all()
    with pytest.raises(MissingCheckpoint):
        read_vectors(tmp_path, first.digest)


def test_who_does_not_stay_leaves_and_who_comes_back_begins_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    ids, vectors = made_ids(rng, 60), made_vectors(rng, 60, DIMENSION)
    layout, stays = layout_of(), np.arange(60) % 3 > 0
    write_vectors(tmp_path, "1", layout, 1, fresh(layout, ids, vectors))
    again = fresh(layout, ids[:3], vectors[:3])
    before = read_named(tmp_path, "1")
    write_vectors(tmp_path, "2", layout, 2, again, before, staying=lambda _: ids[stays])
    found = read_named(tmp_path, "2")
    stays[0] = True  # gone, and encoded anew
    np.testing.assert_array_equal(found.ids, ids[stays])
    assert len(found) == stays.sum()
    counts = np.concatenate([shard.counts for shard in found.shards])
    assert counts[:3].tolist() == [1, 2, 2]
    assert set(counts[3:].tolist()) == {1}
    expected = np.where(stays, np.where(np.arange(60) < 3, 2, 1), NEVER)
    np.testing.assert_array_equal(found.refreshed_of(ids), expected)


def test_a_store_written_over_leaves_nothing_behind(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    layout, ids = layout_of(bits=1), made_ids(rng, 50)
    before, now = np.split(made_vectors(rng, 100, DIMENSION), 2)
    for vectors in (before, now):
        write_vectors(tmp_path, "now", layout, 1, fresh(layout, ids, vectors))
    assert sweep(tmp_path).kept == 3
    np.testing.assert_array_equal(
        read_named(tmp_path, "now").lookup(ids).vectors, now.astype(np.float16)
    )


def test_another_version_cannot_continue_a_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    layout, ids, vectors = layout_of(), made_ids(rng, 20), made_vectors(rng, 20, DIMENSION)
    write_vectors(tmp_path, "1", layout, 5, fresh(layout, ids, vectors))
    previous = read_named(tmp_path, "1")
    other = replace(layout, version="encoder-b")
    with pytest.raises(MixedVersions, match=r"encoder-b .* encoder-a"):
        write_vectors(tmp_path, "2", other, 6, fresh(other, ids, vectors), previous)
    with pytest.raises(WrongVectors, match="does not unlearn"):
        write_vectors(tmp_path, "2", layout, 4, fresh(layout, ids, vectors), previous)
    wider = replace(layout, averaged=4)
    with pytest.raises(WrongVectors, match="laid out"):
        write_vectors(tmp_path, "2", wider, 6, fresh(wider, ids, vectors), previous)


def test_broken_vectors_are_refused_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    layout, ids, vectors = layout_of(0), made_ids(rng, 9), made_vectors(rng, 9, DIMENSION)
    for broken in (np.nan, np.inf, 70_000.0):
        bad = vectors.copy()
        bad[6, 2] = broken
        with pytest.raises(WrongVectors, match="vector 6 "):
            refreshed(Shard.empty(layout), layout, ids, bad, 0)
    with pytest.raises(WrongVectors, match="twice"):
        refreshed(Shard.empty(layout), layout, ids[[0, 0, 2]], vectors[:3], 0)
    with pytest.raises(WrongVectors, match="8 dimensions"):
        refreshed(Shard.empty(layout), layout, ids, vectors[:, 1:], 0)
    two = layout_of(1)
    with pytest.raises(WrongVectors, match="highest bits"):
        write_vectors(tmp_path, "1", two, 1, lambda _: (ids, vectors))
    other = write_checkpoint(tmp_path, "learners.online_model", {}, {})
    with pytest.raises(WrongVectors, match=r"learners\.online_model"):
        read_vectors(tmp_path, other.digest)


def test_a_changed_byte_is_found_before_a_vector_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    layout = layout_of(0)
    store = write_vectors(
        tmp_path, "1", layout, 1, fresh(layout, made_ids(rng, 9), made_vectors(rng, 9, DIMENSION))
    )
    file = tmp_path / "objects" / store.manifest["shards"][0] / "held.npy"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(CorruptCheckpoint, match=r"held\.npy"):
        read_named(tmp_path, "1")


def test_both_ways_of_writing_cost_what_they_say() -> None:
    rng = np.random.default_rng(6)
    ids = made_ids(rng, 4_000)
    vectors, others = np.split(made_vectors(rng, 8_000, DIMENSION), 2)
    half = half_precision(vectors)
    assert half.error < 2**-21  # a relative error of at most 2^-11 in each component
    errors = {}
    for parts in (2, 4):
        codec = product_quantized(vectors, ids, parts, seed=1)
        codes = codec.written(others)
        assert codes.dtype == np.uint8
        assert codes.shape == (4_000, parts)
        lost = codec.read(codes) - others
        seen = float((lost**2).sum() / (others**2).sum())
        assert seen == pytest.approx(codec.error, rel=0.15)
        errors[parts] = codec.error
    assert half.error < errors[4] < errors[2] < 0.5


def test_the_nearest_word_is_written() -> None:
    rng = np.random.default_rng(7)
    codec = product_quantized(made_vectors(rng, 1_000, DIMENSION), made_ids(rng, 1_000), 2, seed=1)
    assert codec.codebooks is not None
    vectors = made_vectors(rng, 20, DIMENSION)
    far = ((vectors.reshape(20, 2, 1, 4) - codec.codebooks[None]) ** 2).sum(axis=3)
    np.testing.assert_array_equal(codec.written(vectors), far.argmin(axis=2))


def test_a_quantized_store_is_read_without_faiss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(8)
    ids, vectors = made_ids(rng, 1_000), made_vectors(rng, 1_000, DIMENSION)
    codec = product_quantized(vectors, ids, 4, seed=1)
    layout = layout_of(codec=codec)
    monkeypatch.setitem(sys.modules, "faiss", None)
    write_vectors(tmp_path, "1", layout, 1, fresh(layout, ids, vectors))
    store = read_named(tmp_path, "1")
    found = store.lookup(ids).vectors
    assert store.layout.codec.error == codec.error
    np.testing.assert_array_equal(found, codec.read(codec.written(vectors)))


def test_too_few_vectors_for_codebooks_are_refused() -> None:
    rng = np.random.default_rng(9)
    vectors, ids = made_vectors(rng, 300, DIMENSION), made_ids(rng, 300)
    for parts in (4, 3):
        with pytest.raises(WrongVectors, match="parts"):
            product_quantized(vectors, ids, parts, seed=1)
