"""Encoders over log hours: due when the settings say, trained on what was known, never half."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ad_pipeline.checkpoints import pointed_names
from ad_pipeline.clocks import HOUR_US, published_hour
from ad_pipeline.embeddings import encoder_hours
from ad_pipeline.embeddings.activities import read_activities
from ad_pipeline.embeddings.encoder import EmbeddingsExtraMissing
from ad_pipeline.embeddings.encoder_hours import TooFewLabels, digest_after, rows_to_learn
from ad_pipeline.embeddings.published import last_known_us
from ad_pipeline.embeddings.sentences import SentencesExtraMissing
from ad_pipeline.embeddings.training import KIND, Progress, Training
from ad_pipeline.warehouse import rows_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import (
    FIRST_ENCODER,
    hour_of,
    trained,
    vector_settings,
    warehouse_of,
    with_settings,
)

OTHER = {"batch_sequences": 16, "epochs": 1, "seed": 1}


@needs_jax
def test_an_encoder_is_trained_when_it_is_due_and_stays_in_force(published: Market) -> None:
    deployment = published.deployment
    found = [digest_after(deployment, hour_of(published, hour)) for hour in range(15)]
    assert found[:FIRST_ENCODER] == [None] * FIRST_ENCODER
    assert len(set(found[FIRST_ENCODER:])) == 1
    assert found[-1] is not None
    assert pointed_names(deployment.checkpoints, f"{KIND}/in_training") == []


@needs_jax
def test_a_first_encoder_says_what_it_waits_for(joined: Market, tmp_path: Path) -> None:
    market = joined.copied_to(tmp_path / "home")
    (hour,) = trained(market, 5, 6)
    assert hour.digest is None
    assert hour.cause.startswith("first: ")
    assert "20 are needed" in hour.cause


@needs_jax
def test_other_settings_ask_for_another_encoder_at_once(published: Market, tmp_path: Path) -> None:
    market = published.copied_to(tmp_path / "home")
    other = with_settings(market, tmp_path, training=OTHER)
    hour, after = trained(other, 13, 15)
    assert (hour.cause, after.cause) == ("settings changed", "unchanged")
    assert hour.digest not in (None, digest_after(published.deployment, hour_of(published, 12)))


@needs_jax
def test_other_sentence_weights_ask_for_another_encoder(
    published: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, settings = published.deployment, vector_settings(published)
    hour_us = hour_of(published, FIRST_ENCODER + 1)
    digest = digest_after(deployment, hour_us)
    assert encoder_hours._due(deployment, settings, hour_us, digest) == ""
    other = {"package": "wordllama", "version": "9", "sha256": "9"}
    monkeypatch.setattr(encoder_hours, "sentence_encoder_of", lambda _: other)
    found = encoder_hours._due(deployment, settings, hour_us, digest)
    assert found == "sentence encoder changed"


def stopping(after: int) -> Any:
    """Return a Training.learn that dies after some steps."""
    whole = Training.learn

    def learn(self: Training, *given: Any) -> Iterator[Progress]:
        for progress in whole(self, *given):
            yield progress
            if progress.step == after:
                raise InterruptedError

    return learn


@needs_jax
def test_a_training_that_died_goes_on_and_ends_in_the_same_bytes(
    published: Market, joined: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = with_settings(joined.copied_to(tmp_path / "home"), tmp_path, checkpoint_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "learn", stopping(5))
        with pytest.raises(InterruptedError):
            trained(market, FIRST_ENCODER, FIRST_ENCODER + 1)
    assert pointed_names(market.deployment.checkpoints, f"{KIND}/in_training")
    steps: list[str] = []
    span = hour_of(market, FIRST_ENCODER), hour_of(market, FIRST_ENCODER + 1)
    (hour,) = encoder_hours.train_hours(
        warehouse_of(market), market.deployment, *span, steps.append
    )
    assert steps[0].startswith("step 5 of")  # step 4 was kept
    assert hour.digest == digest_after(published.deployment, span[0])
    assert pointed_names(market.deployment.checkpoints, f"{KIND}/in_training") == []


@needs_jax
def test_what_was_begun_by_other_settings_is_begun_anew(
    joined: Market, published: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = joined.copied_to(tmp_path / "home")
    begun = with_settings(copied, tmp_path, checkpoint_steps=2, training=OTHER)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "learn", stopping(5))
        with pytest.raises(InterruptedError):
            trained(begun, FIRST_ENCODER, FIRST_ENCODER + 1)
    (hour,) = trained(copied, FIRST_ENCODER, FIRST_ENCODER + 1)
    assert hour.digest == digest_after(published.deployment, hour_of(copied, FIRST_ENCODER))


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_sequence_ends_where_the_vector_ended_that_was_served(
    joined: Market, tmp_path: Path, lag: int
) -> None:
    market = with_settings(joined, tmp_path, publication_lag_hours=lag)
    hour_us = hour_of(market, 20)
    sequences, ads = rows_to_learn(warehouse_of(market), market.deployment.dataset, hour_us)
    query = (
        "SELECT i.user_id, i.occurred_us, l.label FROM examples.labelled_impressions AS l JOIN "
        "events.impressions AS i USING (impression_id) WHERE l.goal = 'click' "
        f"AND l.matured_us < {hour_us + HOUR_US} ORDER BY i.received_us, i.impression_id"
    )
    with warehouse_of(market).reader() as connection:
        shown = rows_of(connection, query)
    ends = {user: [] for user in shown["user_id"].to_pylist()}
    for user, occurred_us, label in zip(*shown.to_pydict().values(), strict=True):
        ends[user].append((last_known_us(published_hour(lag, occurred_us)), label))
    texts = np.array(sequences.history.users.to_pylist())
    found = zip(
        texts[sequences.user[ads.sequence]], sequences.as_of_us[ads.sequence],
        ads.labels[:, 0], strict=True,
    )  # fmt: skip
    learnt = sorted((user, end, label) for user, end, label in found if np.isfinite(label))
    possible = sorted((user, *each) for user, of_user in ends.items() for each in of_user)
    assert 50 < len(learnt) < len(possible)
    assert set(learnt) <= set(possible)
    assert max(sequences.newest_us() - sequences.as_of_us) <= 0
    lengths = np.sum([sequences.lengths(name) for name in sequences.spans], axis=0)
    assert lengths.min() > 0  # users of whom nothing was known are left out


def test_a_purchase_is_learnt_where_it_has_matured_and_nowhere_else(joined: Market) -> None:
    dataset, warehouse = joined.deployment.dataset, warehouse_of(joined)
    sequences, ads = rows_to_learn(warehouse, dataset, hour_of(joined, 23))
    known = np.isfinite(ads.labels)
    assert 0 < known[:, 1].sum() < known[:, 0].sum()
    # A purchase is anchored at a click: where both labels are known, the click is one.
    assert (ads.labels[known[:, :2].all(axis=1), 0] == 1).all()
    assert known[:, :2].all(axis=1).any()
    assert len(sequences) == len(np.unique(ads.sequence))


def test_rows_above_the_maximum_are_drawn_by_hash(joined: Market, tmp_path: Path) -> None:
    market = with_settings(joined, tmp_path, maximum_labels=1_000)
    hour_us = hour_of(joined, 23)
    _, every = rows_to_learn(warehouse_of(joined), joined.deployment.dataset, hour_us)
    _, some = rows_to_learn(warehouse_of(market), market.deployment.dataset, hour_us)
    few, many = (np.isfinite(ads.labels[:, :2]).any(axis=1).sum() for ads in (some, every))
    assert 0.2 < few / many < 0.6


def test_only_users_with_a_kept_label_are_read_and_what_is_learnt_is_the_same(
    joined: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control reads everybody: more users, the same rows. Other labels are other rows."""
    market = with_settings(joined, tmp_path, maximum_labels=200, next_actions=None)
    asked = vector_settings(market)

    def learnt(each: Market) -> tuple[int, str]:
        sequences, ads = rows_to_learn(
            warehouse_of(each), each.deployment.dataset, hour_of(each, 23)
        )
        training = Training(asked.encoder, asked.training)
        return len(sequences.history.users), training.digest_of(sequences, ads)

    read, digest = learnt(market)
    with monkeypatch.context() as patched:
        patched.setattr(
            encoder_hours, "read_activities", lambda *given: read_activities(*given[:-1])
        )
        every, same_digest = learnt(market)
    assert 0 < read < every / 1.5
    assert digest == same_digest
    assert learnt(joined)[1] != digest


def test_too_few_positives_are_counted(joined: Market, tmp_path: Path) -> None:
    market = with_settings(joined, tmp_path, minimum_positives=10_000)
    with pytest.raises(TooFewLabels, match="10000 are needed"):
        rows_to_learn(warehouse_of(market), market.deployment.dataset, hour_of(market, 12))


def test_without_jax_the_extra_is_named(joined: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(EmbeddingsExtraMissing, match=r"pip install ad_pipeline\[embeddings\]"):
        trained(joined, 0, 1)


@needs_jax
def test_without_the_sentence_encoder_its_extra_is_named_before_anything_is_read(
    joined: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = vector_settings(joined).encoder.model_dump(mode="json")
    encoder["modalities"] = [{"name": "comment", "content": "sentence", "vector": 64}]
    market = with_settings(joined, tmp_path, encoder=encoder)
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(SentencesExtraMissing, match=r"pip install ad_pipeline\[sentences\]"):
        trained(market, 0, 1)
