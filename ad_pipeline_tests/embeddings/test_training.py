"""Training the encoder: its gradient, its bytes, what it learns, and what it must not.

Worlds have tastes that nobody is told; half of the users are learnt and the other half, whom no
label has met, is scored. ``roc_auc`` of the truth is what could be reached at most.
"""

import hashlib
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.embeddings.encoder import Encoder, flat_of, laid_out, user_vector, windows_of
from ad_pipeline.embeddings.enrichment import DAY_US
from ad_pipeline.embeddings.sequences import Batch, History, Sequences
from ad_pipeline.embeddings.training import (
    LabelledAds,
    LeakedLabel,
    OtherRows,
    Training,
    train,
)
from ad_pipeline.evaluation.metrics import probabilities_of, roc_auc
from ad_pipeline.settings import EncoderSettings, Modality, TrainingSettings
from ad_pipeline_tests.embeddings.made_worlds import (
    NO_ENRICHMENT,
    NOW_US,
    World,
    activities,
    history_at_random,
    needs_jax,
    sequences_of,
    settings_of,
    shaken,
    tastes_of_two_sides,
    tastes_that_moved,
)

QUICK = TrainingSettings(batch_sequences=16, dense_rate=0.01, table_rate=0.3, epochs=2)
SMALL = settings_of("clicks", enrichment=NO_ENRICHMENT)
BOTH = settings_of("clicks", "views", enrichment=NO_ENRICHMENT)
USERS = 800


def digest(arrays: dict[str, np.ndarray]) -> str:
    told = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        told.update(f"{name} {array.dtype} {array.shape}".encode())
        told.update(np.ascontiguousarray(array).tobytes())
    return told.hexdigest()


def quiet(_: str) -> None:
    """Say nothing."""


def shown_to(world: World, sequences: Sequences, users: np.ndarray) -> LabelledAds:
    """Return the labels of some users, whose sequences are in the order of their ids."""
    shown = world.ads.shape[1]
    sequence = np.repeat(users, shown)
    return LabelledAds.after(
        sequences,
        sequence,
        np.full(len(sequence), NOW_US + 1),
        world.ads[users].reshape(len(sequence), -1),
        world.labels[users].reshape(len(sequence), -1),
    )


def of_one(world: World, modality: str) -> World:
    """Return a world that has one modality only, under the name of the first."""
    own = world.table.filter(pc.field("modality") == modality)
    name = pa.array(["clicks"] * len(own))
    return replace(world, table=own.set_column(3, "modality", name))


def auc(clicked: np.ndarray, scores: np.ndarray) -> float:
    return roc_auc(clicked, 1.0 / (1.0 + np.exp(-scores.astype(np.float64))))


def auc_of_others(world: World, settings: EncoderSettings) -> tuple[float, float]:
    """Learn half of the users; return the AUC of the others' clicks, and of one vector for all."""
    sequences = sequences_of(settings, world.table)
    half = len(sequences) // 2
    learnt = shown_to(world, sequences, np.arange(half))
    encoder = train(settings, QUICK, sequences, learnt, quiet).encoder
    vectors = encoder.vectors(sequences)[half:]
    others = shown_to(world, sequences, np.arange(half, len(sequences)))
    clicked = others.labels[:, 0]
    shown = world.ads.shape[1]
    anybody = np.broadcast_to(vectors.mean(axis=0), vectors.shape)
    own, without = (
        encoder.logits(np.repeat(given, shown, axis=0), others.tokens)[:, 0]
        for given in (vectors, anybody)
    )
    return auc(clicked, own), auc(clicked, without)


# --- what it learns ------------------------------------------------------------------------------


@needs_jax
def test_vectors_of_users_whom_no_label_has_met_rank_their_clicks_and_each_modality_adds() -> None:
    world = tastes_of_two_sides(USERS)
    truth = roc_auc(
        world.labels[USERS // 2 :, :, 0].ravel(), world.probability[USERS // 2 :].ravel()
    )
    both, without = auc_of_others(world, BOTH)
    # Under one name, so that one program is compiled for both.
    clicks, views = (auc_of_others(of_one(world, name), SMALL)[0] for name in ("clicks", "views"))
    assert 0.45 < without < 0.55, "topics are equally popular"
    assert min(clicks, views) > without + 0.1
    assert both > max(clicks, views) + 0.05
    assert both > 0.5 + 0.75 * (truth - 0.5)


@needs_jax
def test_temporal_decay_pays_where_tastes_move() -> None:
    world = tastes_that_moved(USERS)
    found = {}
    for on in (True, False):
        enrichment = NO_ENRICHMENT.model_copy(update={"temporal_decay": on})
        found[on], _ = auc_of_others(world, settings_of("clicks", enrichment=enrichment))
    assert found[True] > found[False] + 0.05


# --- no leak -------------------------------------------------------------------------------------


@needs_jax
def test_a_label_among_what_is_read_would_be_found_out_so_it_is_refused() -> None:
    """Clicks are drawn by coin, and each is an activity too: nothing can be known before them."""
    generator = np.random.default_rng(0)
    users, shown, topics = USERS, 4, 8
    topic = generator.integers(0, topics, (users, shown))
    clicked = generator.random((users, shown)) < 0.5
    before = np.repeat(np.arange(users), 2)
    when = np.concatenate(
        [NOW_US - generator.integers(1, DAY_US, len(before)), np.full(clicked.sum(), NOW_US + 1)]
    )
    table = activities(
        np.concatenate([before, np.nonzero(clicked)[0]]),
        when,
        np.full(len(when), "clicks"),
        np.concatenate([generator.integers(0, topics, len(before)), topic[clicked]]),
    )
    tokens = (2 + topic).astype(np.uint32)[..., None]
    labels = np.repeat(clicked[..., None], 2, axis=2).astype(np.float32)
    world = World(table, tokens, labels, clicked * 0.5)
    honest, _ = auc_of_others(world, SMALL)
    assert abs(honest - 0.5) < 0.06

    leaky = sequences_of(SMALL, table, NOW_US + 1)  # the clicks themselves are read
    with pytest.raises(LeakedLabel, match="row 0, and 3199 more: its ad was shown at"):
        shown_to(world, leaky, np.arange(users))
    # Planted fault: nobody asks.
    sequence = np.repeat(np.arange(users), shown)
    unasked = LabelledAds(sequence, tokens.reshape(-1, 1), labels.reshape(-1, 2))
    half = unasked.sequence < users // 2
    learnt = LabelledAds(*(array[half] for array in vars(unasked).values()))
    encoder = train(SMALL, QUICK, leaky, learnt, quiet).encoder
    logits = encoder.logits(encoder.vectors(leaky)[sequence], unasked.tokens)[:, 0]
    assert auc(unasked.labels[~half, 0], logits[~half]) > 0.62


def test_labels_that_are_no_labels_are_refused() -> None:
    sequences = history_at_random(SMALL).sequences(NOW_US, {"clicks": 16})
    given = (np.array([0, 1]), np.full(2, NOW_US + 1), np.ones((2, 1), np.uint32))
    LabelledAds.after(sequences, *given, np.array([[0, 1], [1, np.nan]]))
    with pytest.raises(ValueError, match="row 1: labels are"):
        LabelledAds.after(sequences, *given, np.array([[0, 1], [2, 0]]))


# --- the gradient --------------------------------------------------------------------------------


def batch_at_random(settings: EncoderSettings, rows: int = 6) -> tuple[Encoder, Any, list[Any]]:
    """Return an encoder, its inputs for a batch, and the rest of what `loss_of` takes."""
    encoder = shaken(Encoder.first(settings))
    sequences = history_at_random(settings).sequences(NOW_US, encoder.longest)
    taken = np.array([0, 1, 2, 3, 4, -1])[:rows]
    inputs = encoder.inputs(windows_of(sequences, Batch(taken, dict.fromkeys(encoder.longest, 16))))
    generator = np.random.default_rng(4)
    ads = generator.normal(size=(rows, 3, 10)).astype(np.float32)
    labels = generator.integers(0, 2, (rows, 3, 2)).astype(np.float32)
    labels[0, 1] = labels[-1] = np.nan
    user = np.array([0, 1, 2, 2, 4, -1], np.int32)[:rows]
    return encoder, inputs, [ads, labels, user]


def loss_by_numpy(
    settings: EncoderSettings, flat: np.ndarray, like: Any, inputs: Any, rest: list[Any],
    contrastive: float, temperature: float,
) -> float:  # fmt: skip
    """Return the loss in float64, label by label and pair by pair."""
    ads, labels, user = rest
    own = laid_out(flat, like)

    def vector(row: int, parity: int | None = None) -> np.ndarray:
        one = {name: {k: v[row] for k, v in of.items()} for name, of in inputs.items()}
        for of in one.values():
            if parity is not None:
                of["is_there"] = of["is_there"] & (np.arange(16) % 2 == parity)
        return user_vector(settings, own, one)

    total = 0.0
    for row, ad, task in np.ndindex(labels.shape):
        if not math.isnan(labels[row, ad, task]):
            u, a, heads = vector(row), ads[row, ad].astype(np.float64), own["heads"]
            logit = (u * heads["scale"][task]) @ a[:-2] + a[-2 + task]
            logit += u @ heads["user"][:, task] + heads["bias"][task]
            total += np.logaddexp(0.0, -logit if labels[row, ad, task] else logit)
    halved = [
        row for row in range(len(user)) if any(of["is_there"][row, 1] for of in inputs.values())
    ]
    units = {
        (row, parity): vector(row, parity) / np.linalg.norm(vector(row, parity))
        for row in halved for parity in (0, 1)
    }  # fmt: skip
    for row, parity in units if contrastive else ():
        rivals = [other for other in halved if other == row or user[other] != user[row]]
        close = {
            other: units[row, parity] @ units[other, 1 - parity] / temperature for other in rivals
        }
        total += contrastive / 2 * (np.log(np.exp(list(close.values())).sum()) - close[row])
    return total


@needs_jax
def test_the_gradient_is_the_slope_of_the_loss_label_by_label() -> None:
    contrastive = 0.7
    settings = settings_of("clicks", "views")
    encoder, inputs, rest = batch_at_random(settings)
    content = {name: of["content"] for name, of in inputs.items()}
    flat = flat_of(encoder.parameters)
    learner = Training(settings, QUICK.model_copy(update={"contrastive": contrastive}))
    mean_loss, (by_parameters, by_content, _) = learner._gradient(
        encoder.parameters, content, rest[0], inputs, *rest[1:]
    )
    slopes = flat_of(_numpy(by_parameters)).astype(np.float64)

    def loss(given: np.ndarray, taken: Any = inputs) -> float:
        return loss_by_numpy(settings, given, encoder.parameters, taken, rest, contrastive, 0.1)

    stepped = flat.astype(np.float64)
    generator = np.random.default_rng(5)
    for _ in range(3):
        way = generator.normal(size=flat.shape)
        rise = (loss(stepped + 1e-5 * way) - loss(stepped - 1e-5 * way)) / 2e-5
        assert slopes @ way == pytest.approx(rise, rel=2e-3, abs=2e-3)
    way = generator.normal(size=content["clicks"].shape)
    clicks = inputs["clicks"]
    moved = [
        loss(stepped, inputs | {"clicks": clicks | {"content": clicks["content"] + side * way}})
        for side in (1e-5, -1e-5)
    ]
    rise = (moved[0] - moved[1]) / 2e-5
    assert (np.asarray(by_content["clicks"]) * way).sum() == pytest.approx(rise, rel=2e-3, abs=2e-3)
    of_labels = loss_by_numpy(settings, stepped, encoder.parameters, inputs, rest, 0.0, 0.1)
    assert loss(stepped) > of_labels + 0.1, "users are told apart too"
    assert float(mean_loss) == pytest.approx(of_labels / np.isfinite(rest[1]).sum(), rel=1e-4)


def _numpy(tree: Any) -> Any:
    return {k: _numpy(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)


# --- bytes ---------------------------------------------------------------------------------------


def a_market(users: int = 40) -> tuple[Sequences, LabelledAds]:
    world = tastes_that_moved(users)
    sequences = sequences_of(SMALL, world.table)
    return sequences, shown_to(world, sequences, np.arange(users))


def stopped_after(training: Training, steps: int, given: tuple[Sequences, LabelledAds]) -> Training:
    taken = list(itertools.islice(training.learn(*given), steps))
    assert len(taken) == steps
    return training


@needs_jax
def test_a_training_stopped_at_any_step_and_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    given = a_market()
    whole = Training(SMALL, QUICK)
    progress = list(whole.learn(*given))
    assert [p.step for p in progress] == list(range(1, 7))
    assert {p.steps for p in progress} == {6}
    expected = digest(whole.state()[0])
    for steps in range(6):
        begun = stopped_after(Training(SMALL, QUICK), steps, given)
        kept = begun.write(tmp_path, watermark_us=NOW_US)
        resumed = Training.restore(kept.arrays, kept.manifest)
        rest = list(resumed.learn(*given))
        assert [p.step for p in rest] == list(range(steps + 1, 7))
        assert digest(resumed.state()[0]) == expected
        assert resumed.state()[1] == whole.state()[1]
        assert resumed.write(tmp_path, NOW_US).digest == whole.write(tmp_path, NOW_US).digest
    # Planted fault: a resumed trainer that has forgotten Adam's means.
    arrays, manifest = stopped_after(Training(SMALL, QUICK), 2, given).state()
    forgetful = Training.restore(arrays | {"means": 0 * arrays["means"]}, manifest)
    list(forgetful.learn(*given))
    assert digest(forgetful.state()[0]) != expected


def rerun() -> str:
    """Learn, encode and return what became of it."""
    sequences, ads = a_market()
    training = Training(SMALL, QUICK)
    list(training.learn(sequences, ads))
    vectors = training.encoder.vectors(sequences)
    return digest(training.state()[0] | {"vectors": vectors})


RERUN = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from ad_pipeline_tests.embeddings.test_training import rerun
print(rerun())
"""


@needs_jax
def test_a_run_again_in_a_process_with_one_core_ends_in_the_same_bytes() -> None:
    """That the number of XLA's threads would show is planted in the tests of wide & deep."""
    again = subprocess.run(
        [sys.executable, "-c", RERUN],
        cwd=Path(__file__).resolve().parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert again.stdout.strip() == rerun()


@needs_jax
def test_an_encoder_opened_from_a_checkpoint_says_the_same_and_a_flipped_byte_is_refused(
    tmp_path: Path,
) -> None:
    sequences, ads = a_market()
    training = Training(SMALL, QUICK)
    list(training.learn(sequences, ads))
    kept = training.write(tmp_path, watermark_us=NOW_US)
    opened = Encoder.open(tmp_path, kept.digest)
    said = training.encoder.vectors(sequences)
    assert np.array_equal(opened.vectors(sequences), said)
    users, tokens = said[ads.sequence], ads.tokens
    assert np.array_equal(opened.logits(users, tokens), training.encoder.logits(users, tokens))
    before = training.encoder
    list(training.learn(sequences, ads))  # a finished training may learn on
    assert np.array_equal(before.vectors(sequences), said), "what was returned does not change"
    assert not np.array_equal(training.encoder.vectors(sequences), said)
    file = kept.path / "parameters.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptCheckpoint):
        Encoder.open(tmp_path, kept.digest)


@needs_jax
def test_a_modality_of_vectors_without_tokens_is_learnt() -> None:
    """Who likes which ad is told by his numbers alone: without them, the control, nothing is."""
    users, sides = 64, np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    side = np.arange(users) % 2
    images = Modality(name="images", content="vector", tokens=0, vector=2, longest=8)
    settings = SMALL.model_copy(update={"modalities": (images,), "tasks": ("click",)})

    def sequences(vectors: np.ndarray) -> Sequences:
        moments = np.full(users, NOW_US - DAY_US)
        table = {
            "user_id": [f"u{user:03}" for user in range(users)],
            "modality": ["images"] * users,
            "occurred_us": moments,
            "received_us": moments,
            "tokens": pa.nulls(users, pa.list_(pa.uint32())),
            "vector": pa.array(list(vectors), pa.list_(pa.float32())),
        }
        history = History.of_table(pa.table(table), settings.modalities)
        return history.sequences(NOW_US, {"images": 8})

    ad = np.random.default_rng(0).integers(0, 2, users)
    liked = (ad == side).astype(np.float32)
    known = sequences(sides[side])
    given = (np.arange(users), np.full(users, NOW_US + 1), (1 + ad)[:, np.newaxis])
    ads = LabelledAds.after(known, *given, liked[:, np.newaxis])
    training = Training(settings, QUICK.model_copy(update={"epochs": 10, "dense_rate": 0.03}))
    list(training.learn(known, ads))
    for read, least, most in ((known, 0.95, 1.0), (sequences(0 * sides[side]), 0.2, 0.8)):
        logits = training.encoder.logits(training.encoder.vectors(read), ads.tokens)[:, 0]
        assert least <= roc_auc(liked.astype(int), probabilities_of(logits)) <= most


@needs_jax
def test_a_training_does_not_go_on_over_other_rows_in_the_middle() -> None:
    given = a_market()
    training = stopped_after(Training(SMALL, QUICK), 2, given)
    with pytest.raises(OtherRows, match="step 2 of rows"):
        next(training.learn(*a_market(39)))
    sequences, ads = given
    other = LabelledAds(ads.sequence, ads.tokens, 1.0 - ads.labels)
    with pytest.raises(OtherRows):
        next(training.learn(sequences, other))
    list(training.learn(*given))
    next(training.learn(*a_market(39)))  # when all rows were learnt, others may come


@needs_jax
def test_the_order_of_the_labels_given_does_not_matter_across_users() -> None:
    sequences, ads = a_market()
    order = np.argsort(-ads.sequence, kind="stable")
    turned = LabelledAds(*(array[order] for array in vars(ads).values()))
    found = []
    for given in (ads, turned):
        training = Training(SMALL, QUICK)
        list(training.learn(sequences, given))
        found.append(digest(training.state()[0]))
    assert found[0] == found[1]
    other = Training(SMALL, QUICK.model_copy(update={"seed": 1}))
    list(other.learn(sequences, ads))
    assert digest(other.state()[0]) != found[0]


@needs_jax
def test_a_label_that_is_not_known_teaches_nothing() -> None:
    sequences, ads = a_market()
    nothing = LabelledAds(ads.sequence, ads.tokens, np.full_like(ads.labels, np.nan))
    training = Training(SMALL, QUICK)
    first = training.encoder.state()[0]
    list(training.learn(sequences, nothing))
    after = training.encoder.state()[0]
    assert digest({n: a for n, a in after.items() if n != "parameters"}) == digest(
        {n: a for n, a in first.items() if n != "parameters"}
    )
    assert np.array_equal(after["parameters"], first["parameters"])


@needs_jax
def test_progress_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    sequences, ads = a_market()
    train(SMALL, QUICK, sequences, ads, lines=3)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in said] == [f"step {n} of 6" for n in (2, 4, 6)]
    assert all(0.0 < float(line.split()[-1]) < 1.5 for line in said)
