"""What users did is read as our log knew it at a moment, and its content becomes slots."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.activities import (
    ad_modality,
    ad_tokens,
    engagements_of,
    history_of,
    read_activities,
)
from ad_pipeline.embeddings.content import id_tokens, text_tokens
from ad_pipeline.embeddings.published import user_hashes
from ad_pipeline.embeddings.sentences import sentence_vectors
from ad_pipeline.features.encoding import FeatureContract, entity_hashes
from ad_pipeline.settings import EncoderSettings, Modality
from ad_pipeline.warehouse import rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import needs_sentences
from ad_pipeline_tests.embeddings.vector_markets import hour_of, vector_settings, warehouse_of


def read(market: Market, from_us: int, as_of_us: int, users: list[str] | None = None) -> pa.Table:
    encoder, dataset = vector_settings(market).encoder, market.deployment.dataset
    with warehouse_of(market).reader() as connection:
        return read_activities(connection, dataset, encoder, from_us, as_of_us, users)


def known_later(rows: pa.Table, as_of_us: int) -> int:
    """Count rows that our log did not have at the moment."""
    return int((rows["received_us"].to_numpy() > as_of_us).sum())


def by_hand(market: Market, from_us: int, as_of_us: int) -> Counter[tuple[Any, ...]]:
    """Join events row by row, in Python."""
    with warehouse_of(market).reader() as connection:
        shown, clicked, did = (
            rows_of(connection, f"SELECT * FROM events.{name}").to_pylist()
            for name in ("impressions", "engagements", "user_activities")
        )
    impressions = {row["impression_id"]: row for row in shown}
    found: Counter[tuple[Any, ...]] = Counter()
    for row in clicked:
        ad = impressions[row["impression_id"]]
        key = (ad["user_id"], f"ad_{row['goal']}", None, ad["ad_id"], row["received_us"])
        found[key] += from_us <= row["received_us"] <= as_of_us
    for row in did:
        if row["modality"] == "content_view":
            key = (row["user_id"], row["modality"], row["content_id"], None, row["received_us"])
            found[key] += from_us <= row["received_us"] <= as_of_us
    return +found


def test_rows_are_those_that_a_loop_over_the_log_finds(joined: Market) -> None:
    span = hour_of(joined, 3) + 7, hour_of(joined, 9) + 11
    rows = read(joined, *span)
    names = ("user_id", "modality", "content_id", "ad_id", "received_us")
    found = Counter(tuple(row[name] for name in names) for row in rows.to_pylist())
    assert found == by_hand(joined, *span)
    assert {"ad_click", "ad_purchase", "content_view"} == set(rows["modality"].to_pylist())


def test_of_some_users_nothing_else_is_read(joined: Market) -> None:
    span = hour_of(joined, 3), hour_of(joined, 9)
    every = read(joined, *span)
    users = sorted(set(every["user_id"].to_pylist()))[::7]
    found = read(joined, *span, [*users, "nobody"])
    expected = every.filter(pc.is_in(every["user_id"], value_set=pa.array(users)))  # pyright: ignore[reportAttributeAccessIssue]
    assert 0 < len(expected) < len(every) / 2
    order = [(name, "ascending") for name in every.column_names]
    assert found.sort_by(order).equals(expected.sort_by(order))
    assert len(read(joined, *span, [])) == 0


def test_nothing_is_read_that_the_log_did_not_have_yet(joined: Market) -> None:
    """The control reads an hour on, and is found."""
    as_of_us = hour_of(joined, 8) - 1
    assert known_later(read(joined, joined.start_us, as_of_us), as_of_us) == 0
    assert known_later(read(joined, joined.start_us, as_of_us + HOUR_US), as_of_us) > 0


def test_users_have_the_hash_under_which_features_know_them(joined: Market) -> None:
    contract = FeatureContract.from_dataset(joined.deployment.dataset)
    rows = read(joined, joined.start_us, hour_of(joined, 4))
    place = contract.entities.index("user_id")
    others = dict.fromkeys(contract.entities, rows["user_id"])
    of_features = entity_hashes(contract, others)[:, place]
    np.testing.assert_array_equal(user_hashes(rows["user_id"]), of_features)


def test_an_engagement_has_the_slots_of_its_ad(joined: Market) -> None:
    dataset, encoder = joined.deployment.dataset, vector_settings(joined).encoder
    rows = read(joined, joined.start_us, hour_of(joined, 6))
    history = history_of(rows, dataset, encoder)
    clicks = rows.filter(pa.array([name == "ad_click" for name in rows["modality"].to_pylist()]))
    assert len(clicks) == len(history.modalities["ad_click"].tokens)
    found, expected = history.modalities["ad_click"].tokens, ad_tokens(clicks, encoder)
    assert Counter(map(tuple, found.tolist())) == Counter(map(tuple, expected.tolist()))
    engagements = engagements_of(rows, dataset)
    assert len(engagements.users) == sum(
        name in {ad_modality(goal) for goal in dataset.goal_names}
        for name in rows["modality"].to_pylist()
    )


def made_rows(modality: str, contents: list[str | None]) -> pa.Table:
    count = len(contents)
    columns = {"user_id": ["u"] * count, "modality": [modality] * count, "content_id": contents}
    moments = pa.array(range(count), pa.int64())
    return pa.table(columns | {"occurred_us": moments, "received_us": moments})


def encoder_of(**modality: Any) -> EncoderSettings:
    return EncoderSettings(modalities=(Modality(name="m", **modality),), bits=12)


@needs_sentences
def test_a_sentence_is_a_vector_and_an_unknown_text_is_none(joined: Market) -> None:
    settings = encoder_of(content="sentence", tokens=0, vector=64)
    texts = ["red shoes", None, "red shoes", "a mortgage"]
    history = history_of(made_rows("m", texts), joined.deployment.dataset, settings)
    shoes, mortgage = sentence_vectors(pa.array(["red shoes", "a mortgage"]), 64)
    expected = np.stack([shoes, np.zeros(64, np.float32), shoes, mortgage])
    np.testing.assert_array_equal(history.modalities["m"].vectors, expected)


def test_an_id_is_a_slot_a_text_is_its_n_grams_and_numbers_are_a_vector(joined: Market) -> None:
    dataset = joined.deployment.dataset
    ids, texts = encoder_of(tokens=1), encoder_of(content="text", tokens=16)
    history = history_of(made_rows("m", ["a", "b"]), dataset, ids)
    slots = id_tokens(pa.array(["a", "b"]), "m.content_id", 12)
    np.testing.assert_array_equal(history.modalities["m"].tokens[:, 0], slots)
    history = history_of(made_rows("m", ["red shoes"]), dataset, texts)
    (bag,) = text_tokens(["red shoes"], "m.content_id", 12, most=16).to_pylist()
    np.testing.assert_array_equal(history.modalities["m"].tokens[0][: len(bag)], bag)
    numbers = encoder_of(content="vector", tokens=0, vector=2)
    history = history_of(made_rows("m", ["[0.5, -2]", "[1, 2e-3]"]), dataset, numbers)
    expected = np.array([[0.5, -2], [1, 2e-3]], np.float32)
    np.testing.assert_array_equal(history.modalities["m"].vectors, expected)


@pytest.mark.parametrize("written", ["0.5, -2", "[a, b]", None, "{}1"])
def test_numbers_that_cannot_be_read_are_refused_by_row(
    joined: Market, written: str | None
) -> None:
    rows = made_rows("m", ["[1, 2]", written])
    with pytest.raises(ValueError, match=r"activity 1: .* write its numbers"):
        history_of(
            rows, joined.deployment.dataset, encoder_of(content="vector", tokens=0, vector=2)
        )


def test_a_modality_of_vectors_says_how_many_numbers_they_have() -> None:
    with pytest.raises(ValueError, match="how many numbers"):
        encoder_of(content="vector")
