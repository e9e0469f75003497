"""Numbers of users' vectors: what was published before, of whom it knew, and nothing else."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.checkpoints import MissingCheckpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.published import PublishedVectors
from ad_pipeline.embeddings.vectors import WrongVectors
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline.features import bucket_labels, encoding
from ad_pipeline.features.encoding import (
    VECTORS_USED,
    FeatureContract,
    LookedUp,
    ReadColumns,
    VectorFeatures,
)
from ad_pipeline.features.vectors import vector_numbers, vectors_at, vectors_named
from ad_pipeline.hashing import hash_values, seed_of
from ad_pipeline_tests.features.logs import START_US, drawn_lookups, tiny_dataset
from ad_pipeline_tests.features.made_vectors import drawn, publish

D = 4
USERS, ADS = ("ann", "bob", "cem"), ("shoes", "soap")
PLAIN = FeatureContract.from_dataset(tiny_dataset())
FEATURES = VectorFeatures(D, 1)
CONTRACT = replace(PLAIN, vectors=FEATURES)


def hashes_of(rows: list[tuple[str | None, str | None]]) -> np.ndarray:
    columns = {
        "user_id": pa.array([user for user, _ in rows], pa.string()),
        "ad_id": pa.array([ad for _, ad in rows], pa.string()),
        "price": pa.nulls(len(rows), pa.float64()),
    }
    return encoding.vector_hashes(CONTRACT, encoding.read_columns(CONTRACT, columns))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return published vectors of six hours, other ones in each; ann is new in the third."""
    folder = tmp_path_factory.mktemp("vectors")
    for hour in range(6):
        known = USERS if hour >= 2 else USERS[1:]
        publish(folder, START_US + hour * HOUR_US, drawn(known, D, hour), drawn(ADS, D, hour), D)
    return folder


def in_plain_python(user: str, ad: str, hour: int) -> list[float]:
    mine, theirs = drawn([user], D, hour)[user], drawn([ad], D, hour)[ad]
    vector, engagers = [float(x) for x in mine], [float(x) for x in theirs]
    product = sum(a * b for a, b in zip(vector, engagers, strict=True))
    return [*vector, product / math.hypot(*vector) / math.hypot(*engagers)]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(USERS), st.sampled_from(ADS), st.integers(0, 8 * HOUR_US - 1)),
        min_size=1,
        max_size=12,
    ),
    lag_hours=st.integers(1, 3),
)
def test_an_impression_reads_the_last_hour_that_was_published_before_it(
    root: Path, rows: list[tuple[str, str, int]], lag_hours: int
) -> None:
    """Against an implementation without arrays; a row alone has the bits that it has in company."""
    hashes = hashes_of([(user, ad) for user, ad, _ in rows])
    occurred_us = START_US + np.array([after_us for _, _, after_us in rows], np.int64)
    features = VectorFeatures(D, lag_hours)
    if occurred_us.max() // HOUR_US - START_US // HOUR_US - 1 - lag_hours > 5:
        with pytest.raises(MissingCheckpoint, match="materialize that hour first"):
            vectors_at(features, root, START_US, hashes, occurred_us)
        return
    found = vectors_at(features, root, START_US, hashes, occurred_us)
    for place, (user, ad, after_us) in enumerate(rows):
        hour = after_us // HOUR_US - 1 - lag_hours
        known = hour >= (2 if user == "ann" else 0)
        expected = in_plain_python(user, ad, hour) if known else [math.nan] * (D + 1)
        np.testing.assert_allclose(found[place], expected, rtol=1e-12)
        alone = vectors_at(
            features, root, START_US, hashes[place : place + 1], occurred_us[place : place + 1]
        )
        assert alone.tobytes() == found[place : place + 1].tobytes()


def test_what_is_published_later_changes_nothing_and_a_reader_without_lag_is_found_out(
    tmp_path: Path,
) -> None:
    """Planted fault: a contract that reads an hour before it was served differs in every row."""
    hashes, occurred_us = hashes_of([("bob", "soap")]), np.array([START_US + 4 * HOUR_US + 7])
    for hour in range(3):
        publish(tmp_path, START_US + hour * HOUR_US, drawn(USERS, D, hour), drawn(ADS, D, hour), D)
    before = vectors_at(FEATURES, tmp_path, START_US, hashes, occurred_us)
    for hour in (3, 4):
        publish(tmp_path, START_US + hour * HOUR_US, drawn(USERS, D, hour), drawn(ADS, D, hour), D)
    after = vectors_at(FEATURES, tmp_path, START_US, hashes, occurred_us)
    assert before.tobytes() == after.tobytes()
    leaking = vectors_at(VectorFeatures(D, 0), tmp_path, START_US, hashes, occurred_us)
    assert (leaking != before).all()
    np.testing.assert_allclose(leaking[0], in_plain_python("bob", "soap", 3), rtol=1e-12)


def test_who_has_no_vector_is_unknown_and_who_has_is_not(root: Path) -> None:
    rows = [("bob", "soap"), ("bob", "new"), ("new", "soap"), (None, None), ("bob", None)]
    occurred_us = np.full(len(rows), START_US + 2 * HOUR_US)
    found = vectors_at(FEATURES, root, START_US, hashes_of(rows), occurred_us)
    assert np.isnan(found).tolist() == [
        [False] * D + [False],
        [False] * D + [True],
        [True] * D + [True],
        [True] * D + [True],
        [False] * D + [True],
    ]


def test_a_vector_without_length_has_no_direction(tmp_path: Path) -> None:
    still = {"ann": np.zeros(D, np.float16)}
    published = publish(tmp_path, START_US, still | drawn(["bob"], D, 0), {"soap": still["ann"]}, D)
    found = vector_numbers(FEATURES, published, hashes_of([("ann", "soap"), ("bob", "soap")]))
    assert np.isnan(found[:, -1]).all()
    assert found[0, :D].tolist() == [0.0] * D
    words = encoding.words_of_vectors(CONTRACT, replace(nothing(2), vectors=found))
    assert words[0, :D].tolist() == [0] * D


def nothing(n: int) -> LookedUp:
    return LookedUp.nothing(CONTRACT, n)


def test_rows_that_name_what_they_use_find_what_the_hour_has(root: Path) -> None:
    third = publish(root, START_US + 3 * HOUR_US, drawn(USERS, D, 3), drawn(ADS, D, 3), D)
    hashes = hashes_of([("ann", "soap"), ("bob", "shoes"), ("cem", "soap")])
    found = vectors_named(FEATURES, root, [third.digest, None, ""], hashes)
    np.testing.assert_allclose(found[0], in_plain_python("ann", "soap", 3), rtol=1e-12)
    assert np.isnan(found[1:]).all()
    with pytest.raises(MissingCheckpoint):
        vectors_named(FEATURES, root, ["0" * 64] * 3, hashes)


def test_vectors_of_another_dimension_are_refused_and_both_are_named(root: Path) -> None:
    wide = VectorFeatures(D + 1, 1)
    occurred_us = np.array([START_US + 2 * HOUR_US])
    with pytest.raises(WrongVectors, match=rf"encoder-a, have \[{D}\] numbers .* contract {D + 1}"):
        vectors_at(wide, root, START_US, hashes_of([("bob", "soap")]), occurred_us)


def test_users_and_engagers_of_two_encoders_are_refused_and_both_are_named(tmp_path: Path) -> None:
    good = publish(tmp_path, START_US, drawn(USERS, D, 0), drawn(ADS, D, 0), D)
    layout = replace(good.engagers.layout, version="encoder-b")
    swapped = replace(good, engagers=replace(good.engagers, layout=layout))
    with pytest.raises(MixedVersions, match=r"encoder-a and of engagers by encoder-b"):
        vector_numbers(FEATURES, swapped, hashes_of([("bob", "soap")]))
    assert np.isfinite(vector_numbers(FEATURES, good, hashes_of([("bob", "soap")]))).all()


def test_a_contract_without_vectors_is_to_the_byte_what_it_was_before_there_were_any() -> None:
    """The digests were taken before contracts had vectors: snapshots, bundles and ladders live."""
    assert PLAIN.digest == "46b148eae0469d145c803f75811d3fe5f36031f872374e48dba53426325eedd7"
    generator = np.random.default_rng(5)
    read = ReadColumns(
        generator.integers(0, 2**63, (500, 2), dtype=np.uint64),
        generator.standard_cauchy((500, 1)),
    )
    looked_up = LookedUp.counted(
        PLAIN, generator.integers(0, 1000, (500, 2, 4)), generator.integers(0, 10**6, (500, 4))
    )
    slots = encoding.slots(PLAIN, read, looked_up)
    assert hashlib.sha256(slots.tobytes()).hexdigest() == (
        "88e81a9a247c75b646197b84a2643f3915071e33cd7e75397b675d4927b2b439"
    )
    assert looked_up.vectors.shape == (500, 0)


def test_vectors_stand_last_and_move_nothing_else() -> None:
    generator = np.random.default_rng(1)
    read = ReadColumns(
        generator.integers(0, 2**63, (50, 2), dtype=np.uint64), generator.normal(size=(50, 1))
    )
    looked_up = drawn_lookups(CONTRACT, 50, 2)
    counted = LookedUp.counted(PLAIN, looked_up.counts, looked_up.totals)
    for encode in (encoding.slots, encoding.dense):
        plain, whole = encode(PLAIN, read, counted), encode(CONTRACT, read, looked_up)
        assert whole[:, : plain.shape[1]].tolist() == plain.tolist()
        assert whole.shape[1] - plain.shape[1] == D + 1
    numbers = encoding.dense(CONTRACT, read, looked_up)[:, -D - 1 :]
    np.testing.assert_array_equal(numbers, looked_up.vectors)
    assert CONTRACT.dense_names[-D - 1 :] == (
        "user_vector.0", "user_vector.1", "user_vector.2", "user_vector.3", "user_vector.engagers",
    )  # fmt: skip
    assert CONTRACT.logged_columns == (*PLAIN.columns, VECTORS_USED)


def test_a_contract_with_vectors_survives_json_exactly() -> None:
    again = FeatureContract.from_json(CONTRACT.to_json())
    assert again == CONTRACT
    assert again.digest == CONTRACT.digest != PLAIN.digest
    assert again.counts_digest == PLAIN.counts_digest, "published snapshots stay valid"
    with pytest.raises(ValueError, match="named twice: user_vector"):
        replace(CONTRACT, numeric=("user_vector.0",))


def test_columns_that_only_vectors_need_are_read_and_fill_no_slot_of_their_own() -> None:
    contract = replace(CONTRACT, categorical=(), crosses=(), entities=("ad_id",), vectors=FEATURES)
    assert contract.text_columns == ("ad_id", "user_id")
    assert "user_id" not in contract.token_names
    columns = {"user_id": pa.array(["ann"]), "ad_id": pa.array(["soap"]), "price": pa.array([1.0])}
    hashes = encoding.vector_hashes(contract, encoding.read_columns(contract, columns))
    assert hashes.tolist() == [
        [int(hash_values([value], seed_of(name))[0])
         for name, value in (("user_id", "ann"), ("ad_id", "soap"))]
    ]  # fmt: skip


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.floats(-1e4, 1e4), min_size=40, max_size=40),
    st.floats(-1, 1),
    st.floats(0.1, 100),
)
def test_every_bucket_of_a_vector_is_listed_and_holds_its_cosine_whatever_the_length(
    dimension: int, components: list[float], cosine: float, length: float
) -> None:
    contract = replace(PLAIN, vectors=VectorFeatures(dimension, 1))
    vector = np.array(components[:dimension])
    numbers = np.append(vector, cosine)[None]
    looked_up = replace(LookedUp.nothing(contract, 1), vectors=numbers)
    words = encoding.words_of_vectors(contract, looked_up)[0].tolist()
    labels = bucket_labels.vector_words(dimension)
    norm = np.linalg.norm(vector)
    cosines = [*(vector / norm if norm > 1e-6 else vector * 0), cosine]
    for word, exact in zip(words, cosines, strict=True):
        assert word in labels
        low, high = (edge / (1.5 * math.sqrt(dimension)) for edge in (word, word + 1))
        assert low - 1e-9 <= exact <= high + 1e-9 or norm <= 1e-6
    longer = replace(looked_up, vectors=np.append(vector * length, cosine)[None])
    again = encoding.words_of_vectors(contract, longer)[0]
    assert np.abs(again - words).max() <= 1, "but for the last bit at a border"
    assert len(labels) <= 3 * math.sqrt(dimension) + 3


def test_the_same_vectors_are_one_name_and_other_vectors_another(tmp_path: Path) -> None:
    def published(root: Path, seed: int) -> PublishedVectors:
        return publish(root, START_US, drawn(USERS, D, seed), drawn(ADS, D, seed), D)

    one = published(tmp_path / "a", 0)
    assert one.digest == published(tmp_path / "b", 0).digest
    assert one.digest != published(tmp_path / "c", 1).digest
