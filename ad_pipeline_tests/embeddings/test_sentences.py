"""Sentences as vectors: what they know, the same bits whatever the batch, and whose weights."""

import importlib.metadata
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from pydantic import ValidationError

from ad_pipeline.checkpoints import read_checkpoint
from ad_pipeline.embeddings import sentences
from ad_pipeline.embeddings.content import text_tokens
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.encoder_hours import rows_to_learn
from ad_pipeline.embeddings.sentences import (
    OtherSentenceEncoder,
    SentencesExtraMissing,
    sentence_encoder_of,
    sentence_vectors,
)
from ad_pipeline.embeddings.training import Training
from ad_pipeline.settings import SENTENCE_WIDTHS, EncoderSettings, Modality, TrainingSettings
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.made_worlds import needs_jax, needs_sentences
from ad_pipeline_tests.embeddings.vector_markets import (
    FIRST_ENCODER,
    hour_of,
    trained,
    vector_settings,
    warehouse_of,
    with_settings,
)

READER = EncoderSettings(
    modalities=(Modality(name="m", content="sentence", tokens=0, vector=64),),
    bits=8, width=8, heads=2, dimension=8,
)  # fmt: skip

#: A text, another that says the same in other words, and a stranger in nearly the same letters.
SAID_AGAIN = (
    ("my car broke down", "the automobile stopped working", "my cat lay down"),
    ("buy inexpensive sneakers", "cheap running shoes", "see expensive speakers"),
    ("the doctor prescribed medicine", "a physician gave drugs", "the director described magazine"),
    ("cheap flights to Rome", "low cost airline tickets to Italy", "cheap tights to home"),
    ("the film was boring", "that movie is dull", "the firm was hiring"),
    ("lose weight quickly", "fast diet for slimming", "lose data quickly"),
    ("a mortgage for my house", "loan to purchase a home", "a message for my horse"),
    ("she plays the violin", "a woman performing music", "she pays the victim"),
)


def vectors(texts: list[str | None], width: int = 256) -> np.ndarray:
    return sentence_vectors(pa.array(texts, pa.string()), width)


def shared(one: str, other: str) -> float:
    """Return the share of n-grams that two texts have in common."""
    a, b = (set(bag) for bag in text_tokens([one, other], "m", 20, most=1_000).to_pylist())
    return len(a & b) / len(a | b)


@needs_sentences
@pytest.mark.parametrize("width", SENTENCE_WIDTHS)
def test_what_is_said_in_other_words_is_nearer_than_what_is_spelt_alike(width: int) -> None:
    """N-grams say the opposite each time, so nothing of this is spelling."""
    by_sentence, by_n_grams = 0, 0
    for text, again, stranger in SAID_AGAIN:
        own, near, far = vectors([text, again, stranger], width)
        by_sentence += own @ near > own @ far
        by_n_grams += shared(text, again) > shared(text, stranger)
    assert by_n_grams == 0
    assert by_sentence >= len(SAID_AGAIN) - 1


@needs_sentences
@given(st.lists(st.text(max_size=20), min_size=1, max_size=8), st.randoms())
@budget(max_examples=30, deadline=None)
def test_a_text_s_vector_depends_on_that_text_alone(texts: list[str], chance: Any) -> None:
    together = vectors([*texts])
    order = list(range(len(texts)))
    chance.shuffle(order)
    for found in (vectors([texts[place] for place in order])[np.argsort(order)],
                  np.concatenate([vectors([text]) for text in texts])):  # fmt: skip
        assert found.tobytes() == together.tobytes()
    lengths = np.sqrt((together.astype(np.float64) ** 2).sum(axis=1))
    known = np.array([bool(text.strip()) for text in texts])
    np.testing.assert_allclose(lengths[known], 1.0, atol=1e-6)
    assert not together[~known].any()


@needs_sentences
def test_tokens_in_any_order_sum_to_the_same_bits_and_single_precision_would_not() -> None:
    model = sentences._model()
    ids = np.random.default_rng(0).integers(0, len(model.weights), 300)
    rows = model.weights[ids]
    for dtype, is_exact in ((np.float64, True), (np.float32, False)):
        sums = {rows[order].sum(axis=0, dtype=dtype).tobytes() for order in orders(len(ids))}
        assert (len(sums) == 1) is is_exact


def orders(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).permutation(count) for seed in range(5)]


@needs_sentences
def test_each_distinct_text_is_read_once_and_an_unknown_one_is_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, read = sentences._Model.vectors, []

    def counted(self: sentences._Model, texts: list[str], width: int) -> np.ndarray:
        read.extend(texts)
        return whole(self, texts, width)

    monkeypatch.setattr(sentences._Model, "vectors", counted)
    found = sentence_vectors(pa.chunked_array([["a shoe", None], ["a shoe", " ", "a hat"]]), 64)
    assert sorted(read) == ["", "a hat", "a shoe"]
    assert found.shape == (5, 64)
    assert found[0].tobytes() == found[2].tobytes()
    assert found[[0, 4]].any(axis=1).all()
    assert not found[[1, 3]].any()
    assert vectors([]).shape == (0, 256)


@needs_sentences
def test_fewer_numbers_are_the_first_of_more_at_unit_length() -> None:
    few, many = vectors(["red shoes"], 64)[0], vectors(["red shoes"])[0]
    first = many[:64].astype(np.float64)
    np.testing.assert_allclose(few, first / np.sqrt(first @ first), rtol=1e-6)


@needs_sentences
def test_vectors_are_those_of_the_package_s_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loader is passed by: it would look for the tokenizer on the network."""
    from tokenizers import Tokenizer

    handlers, level = logging.root.handlers[:], logging.root.level
    from wordllama import WordLlamaInference

    logging.root.handlers[:] = handlers  # importing it has set logging up
    logging.root.setLevel(level)
    tokenizer = Tokenizer.from_file(str(sentences._folder() / sentences.TOKENIZER))
    theirs = WordLlamaInference(sentences._model().weights, tokenizer)
    texts = [text for three in SAID_AGAIN for text in three]
    np.testing.assert_allclose(vectors([*texts]), theirs.embed(texts, norm=True), atol=1e-6)


OFFLINE = """
import socket

class NoSocket(socket.socket):
    def __init__(self, *given, **named):
        raise AssertionError("a socket was opened")

socket.socket = NoSocket
try:
    socket.create_connection(("127.0.0.1", 9))
except AssertionError:
    print("refused")

import pyarrow as pa
from ad_pipeline.embeddings.sentences import sentence_vectors
print(sentence_vectors(pa.array(["red shoes"]), 64).tobytes().hex())
"""


@needs_sentences
def test_it_is_read_and_used_without_any_socket(tmp_path: Path) -> None:
    """In a new process with an empty home, so that nothing is cached; the control is refused."""
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(path)},
        check=True,
        capture_output=True,
        text=True,
    )
    refused, said = done.stdout.split()
    assert refused == "refused"
    assert said == vectors(["red shoes"], 64).tobytes().hex()
    assert not list(tmp_path.rglob("*wordllama*")), "nothing was fetched"
    assert socket.socket.__module__ == "socket", "only that process was without"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    for asked in (lambda: vectors(["red shoes"]), lambda: sentence_encoder_of(READER)):
        with pytest.raises(SentencesExtraMissing, match=r"pip install ad_pipeline\[sentences\]"):
            asked()
    assert sentence_encoder_of(EncoderSettings()) is None, "who reads none needs none"


@pytest.mark.parametrize("width", [0, 32, 100, 512])
def test_a_width_that_the_weights_were_not_trained_for_is_refused(width: int) -> None:
    with pytest.raises(ValidationError, match="write vector: 64, 128 or 256"):
        Modality(name="m", content="sentence", vector=width)


@needs_sentences
@needs_jax
def test_another_release_of_the_weights_is_another_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> str:
        return Training(READER, TrainingSettings()).write(tmp_path, watermark_us=0).digest

    digest = written()
    assert Encoder.open(tmp_path, digest).settings == READER
    told = sentence_encoder_of(READER)
    assert told is not None
    assert told["version"] == importlib.metadata.version("wordllama")
    assert len(told["sha256"]) == 64
    monkeypatch.setattr(sentences, "_identity", lambda _: told | {"sha256": "other"})
    with pytest.raises(OtherSentenceEncoder, match="install that release of wordllama, or train"):
        Encoder.open(tmp_path, digest)
    assert written() != digest


@needs_jax
def test_an_encoder_that_reads_no_sentences_does_not_name_their_weights() -> None:
    _, manifest = Training(EncoderSettings(bits=8), TrainingSettings()).state()
    assert "sentence_encoder" not in manifest


@needs_sentences
@needs_jax
def test_an_encoder_of_a_market_reads_what_users_read_as_sentences(
    joined: Market, tmp_path: Path
) -> None:
    """Sentences have no tokens, so nothing of them is foretold, and goals alone are learnt."""
    encoder = vector_settings(joined).encoder.model_dump(mode="json")
    encoder["modalities"][1] |= {"content": "sentence", "tokens": 0, "vector": 64}
    market = with_settings(joined.copied_to(tmp_path / "home"), tmp_path, encoder=encoder)
    dataset, hour_us = market.deployment.dataset, hour_of(market, FIRST_ENCODER)
    sequences, ads = rows_to_learn(warehouse_of(market), dataset, hour_us)
    read = sequences.history.modalities["content_view"].vectors
    np.testing.assert_allclose(np.linalg.norm(read, axis=1), 1.0, atol=1e-6)
    assert np.isfinite(ads.labels[:, 0]).any()
    assert np.isnan(ads.labels[:, -1]).all()
    (hour,) = trained(market, FIRST_ENCODER, FIRST_ENCODER + 1)
    assert hour.digest is not None
    manifest = read_checkpoint(market.deployment.checkpoints, hour.digest).manifest
    assert manifest["sentence_encoder"] == sentence_encoder_of(vector_settings(market).encoder)
    vectors = Encoder.open(market.deployment.checkpoints, hour.digest).vectors(sequences)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) > 10
