"""Wide & deep: what it learns, to which bytes, and that scoring says what training meant.

Streams are given by their masses, as in ``test_delayed_losses.py``, and formulas are held to
independent ones in plain NumPy, so that no test leans on the code that it is about. Whatever needs
JAX is skipped without it; scores and exports are tested without.
"""

import hashlib
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from ad_pipeline.checkpoints import write_checkpoint
from ad_pipeline.learners.deep import wide_deep
from ad_pipeline.learners.deep.deep_scores import (
    CHUNK_ROWS,
    ROWS,
    DenseLayers,
    Unlearnt,
    scores_of_heads,
)
from ad_pipeline.learners.deep.embedding_table import FIRST_SQUARES, EmbeddingTable
from ad_pipeline.learners.deep.exported_deep import ExportedDeep, rank_of
from ad_pipeline.learners.deep.wide_deep import DeepExtraMissing, WideDeep
from ad_pipeline.learners.delayed import losses
from ad_pipeline.learners.delayed.losses import COEFFICIENTS, TWO_HEADED, Event
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.ftrl.ftrl_expert import HEADS, link
from ad_pipeline.settings import STRATEGY_OF_LOSS, DeepSettings, DelayedLoss
from ad_pipeline_tests.learners.test_delayed_losses import (
    IN_TIME,
    LATE,
    NEGATIVE,
    REAL,
    masses,
    outcome_rows,
    sigmoid,
)

REPOSITORY = Path(__file__).resolve().parents[2]

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed: pip install ad_pipeline[deep]",
)

SMALL = DeepSettings(bits=8, embedding=4, layers=(16, 8), batch_rows=128)


class Stream(NamedTuple):
    """Rows as a learner takes them."""

    slots: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    outcomes: np.ndarray


def stream(rows: int, fields: int = 3, bits: int = 10, seed: int = 0) -> Stream:
    """Return rows of any kind, of random slots."""
    generator = np.random.default_rng(seed)
    kinds = [(NEGATIVE, IN_TIME, LATE, REAL)[at] for at in generator.integers(0, 4, rows)]
    outcomes = outcome_rows(kinds, 0.3, 0.2)
    outcomes[:, kernel.DELAY] = generator.exponential(0.5, rows)
    return Stream(
        generator.integers(0, 1 << bits, (rows, fields)).astype(np.uint32),
        np.array([float(kind[0]) for kind in kinds]),
        generator.uniform(0.0, 2.0, rows),
        outcomes,
    )


def settings_of(loss: str, **others: Any) -> DeepSettings:
    return DeepSettings.model_validate(SMALL.model_dump() | {"loss": loss} | others)


def digest(arrays: dict[str, np.ndarray]) -> str:
    told = hashlib.sha256()
    for name in sorted(arrays):
        told.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        told.update(np.ascontiguousarray(arrays[name]).tobytes())
    return told.hexdigest()


def random_export(
    fields: int = 20, embedding: int = 8, layers: tuple[int, ...] = (400, 300, 200, 100),
    loss: Any = "logistic", bits: int = 12, seed: int = 1,
) -> ExportedDeep:  # fmt: skip
    """Return an export of which a half of the slots was learnt, made without training."""
    generator = np.random.default_rng(seed)
    heads = len(HEADS[loss])
    widths = [fields * embedding, *layers, heads]
    present = generator.integers(0, 1 << 63, (1 << bits) // 64).astype(np.uint64)
    learnt = int(np.bitwise_count(present).sum())
    return ExportedDeep(
        present=present,
        rank=rank_of(present),
        kept=generator.normal(0, 0.3, (learnt, heads + embedding)).astype(np.float32),
        unlearnt=Unlearnt(heads, 0.01, 7),
        layers=DenseLayers(
            tuple(
                generator.normal(0, math.sqrt(2 / inputs), (inputs, units)).astype(np.float32)
                for inputs, units in itertools.pairwise(widths)
            ),
            tuple(generator.normal(0, 0.1, units).astype(np.float32) for units in widths[1:]),
            0.01,
        ),
        fields=fields,
        slot_bits=bits + 2,
        bits=bits,
        loss=loss,
        horizon_days=3.0,
    )


def random_slots(rows: int, fields: int = 20, bits: int = 14, seed: int = 2) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 1 << bits, (rows, fields)).astype(np.uint32)


def forward(gathered: np.ndarray, layers: DenseLayers) -> np.ndarray:
    """Return scores (n, heads) in float64, as the model is defined."""
    heads = layers.heads
    x = gathered[:, :, heads:].reshape(len(gathered), -1).astype(np.float64)
    for weights, biases in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
        x = x @ weights.astype(np.float64) + biases
        x = np.where(x > 0, x, layers.leak * x)
    x = x @ layers.weights[-1].astype(np.float64) + layers.biases[-1]
    return x + gathered[:, :, :heads].astype(np.float64).sum(axis=1)


# --- scores --------------------------------------------------------------------------------------


def test_a_row_scores_to_the_bit_the_same_alone_and_among_a_hundred_thousand() -> None:
    exported = random_export()
    slots = random_slots(100_000)
    among_all = exported.logits(slots)
    among_some = exported.logits(slots[5_000:6_024])
    assert np.array_equal(among_some, among_all[5_000:6_024])
    alone = [exported.logits(slots[row : row + 1])[0] for row in range(5_000, 5_300)]
    assert np.array_equal(alone, among_all[5_000:5_300])


@budget(max_examples=25)
@given(
    first=st.integers(0, 300),
    rows=st.integers(0, 3 * CHUNK_ROWS),
    fields=st.sampled_from([1, 3]),
    layers=st.sampled_from([(), (5,), (33, 17)]),
    loss=st.sampled_from(["logistic", "bi_defuse"]),
)
def test_no_block_no_chunk_and_no_shape_shows_in_a_score(
    first: int, rows: int, fields: int, layers: tuple[int, ...], loss: str
) -> None:
    exported = random_export(fields, 8, layers, loss)
    slots = random_slots(500, fields)
    rows = min(rows, len(slots) - first)
    some = exported.logits(slots[first : first + rows])
    assert np.array_equal(some, exported.logits(slots)[first : first + rows])


@needs_jax
def test_a_library_s_matrix_product_lets_a_row_s_company_show() -> None:
    """The negative control: were this to fail, the kernel would have no reason to be."""
    import jax

    exported = random_export()
    gathered = exported.gather(random_slots(1_024))
    in_jax = jax.jit(lambda numbers: _forward_in(jax.numpy, numbers, exported.layers))
    together = np.asarray(in_jax(gathered))
    alone = np.concatenate([np.asarray(in_jax(gathered[row : row + 1])) for row in range(1_024)])
    differ = int((together != alone).any(axis=1).sum())
    print(f"{differ} of 1,024 rows differ")  # noqa: T201 (pytest -rP shows it)
    assert differ > 100
    assert np.abs(together - alone).max() < 1e-4
    assert np.abs(scores_of_heads(gathered, exported.layers) - together).max() < 1e-4


def _forward_in(library: Any, gathered: Any, layers: DenseLayers) -> Any:
    heads = layers.heads
    x = gathered[:, :, heads:].reshape(gathered.shape[0], -1)
    for weights, biases in zip(layers.weights[:-1], layers.biases[:-1], strict=True):
        x = x @ weights + biases
        x = library.where(x > 0, x, layers.leak * x)
    return x @ layers.weights[-1] + layers.biases[-1] + gathered[:, :, :heads].sum(axis=1)


def test_a_unit_is_one_chain_of_fused_multiply_adds_in_the_order_of_its_inputs() -> None:
    """In float64 a product of two float32 is exact, so that rounding to float32 is the only one."""
    exported = random_export(5, 8, (40, 20))
    gathered = exported.gather(random_slots(3 * ROWS + 1, 5))
    scores = scores_of_heads(gathered, exported.layers)

    def chained(order: Callable[[int], list[int]]) -> np.ndarray:
        x = gathered[:, :, 1:].reshape(len(gathered), -1)
        last = len(exported.layers.weights) - 1
        for place, (weights, biases) in enumerate(
            zip(exported.layers.weights, exported.layers.biases, strict=True)
        ):
            sums = np.tile(biases, (len(x), 1))
            for at in order(len(weights)):
                product = x[:, at : at + 1].astype(np.float64) * weights[at]
                sums = (product + sums).astype(np.float32)
            x = sums if place == last else np.maximum(sums, np.float32(0.01) * sums)
        wide = np.zeros(len(x), np.float32)
        for field in range(gathered.shape[1]):
            wide += gathered[:, field, 0]
        return wide + x[:, 0]

    assert np.array_equal(scores[:, 0], chained(lambda depth: [*range(depth)]))
    # Planted fault: the same sums the other way round.
    assert not np.array_equal(scores[:, 0], chained(lambda depth: [*range(depth)][::-1]))


def test_scores_are_those_of_the_model_as_it_is_defined() -> None:
    exported = random_export(loss="delayed_feedback")
    gathered = exported.gather(random_slots(300))
    scores = scores_of_heads(gathered, exported.layers)
    assert scores == pytest.approx(forward(gathered, exported.layers), abs=1e-4)


@pytest.mark.parametrize("loss", ["fake_negative_calibrated", "bi_defuse", "delayed_feedback"])
def test_scores_become_log_odds_under_the_link_of_the_loss(loss: DelayedLoss) -> None:
    exported = random_export(layers=(8,), loss=loss)
    slots = random_slots(100)
    scores = scores_of_heads(exported.gather(slots), exported.layers).astype(np.float64).T
    first = scores[0].copy()
    link(loss, first, scores[1] if loss in TWO_HEADED else None, 3.0)
    assert np.array_equal(exported.logits(slots), first)
    assert not np.array_equal(first, scores[0])


@pytest.mark.parametrize("loss", ["logistic", "delayed_feedback"])
def test_an_export_scores_the_same_from_read_only_maps_of_its_files(
    loss: Any, tmp_path: Path
) -> None:
    exported = random_export(layers=(24,), loss=loss)
    kept = write_checkpoint(tmp_path, "deep", exported.to_arrays(), exported.to_json())
    mapped = ExportedDeep.from_arrays(kept.arrays, kept.manifest)
    assert isinstance(kept.arrays["kept"], np.memmap)
    assert np.shares_memory(mapped.kept, kept.arrays["kept"])
    slots = random_slots(200)
    assert np.array_equal(mapped.logits(slots), exported.logits(slots))
    assert digest(mapped.to_arrays()) == digest(exported.to_arrays())
    assert mapped.to_json() == exported.to_json()
    assert mapped.nbytes > mapped.learnt * 36


def test_slots_that_a_scorer_cannot_have_are_refused() -> None:
    exported = random_export(layers=(8,))
    with pytest.raises(ValueError, match="rows have 3 slots"):
        exported.logits(random_slots(2, 3))
    with pytest.raises(ValueError, match="does not fit"):
        exported.logits(np.full((1, 20), 1 << 14, np.uint32))
    assert exported.logits(random_slots(0)).shape == (0,)


def test_a_scorer_imports_no_jax() -> None:
    program = (
        "import sys\n"
        "from ad_pipeline.learners.deep import deep_scores, embedding_table, exported_deep\n"
        "from ad_pipeline.learners.deep import wide_deep\n"
        "assert 'numba' in sys.modules\n"
        "print([name for name in ('jax', 'jaxlib', 'duckdb', 'dagster') if name in sys.modules])\n"
    )
    assert fresh_process(program).strip() == "[]"


def fresh_process(program: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout


# --- the table -----------------------------------------------------------------------------------


def table_of(bits: int = 8, heads: int = 1, embedding: int = 4, seed: int = 5) -> EmbeddingTable:
    return EmbeddingTable(bits, embedding, 0.1, Unlearnt(heads, 0.05, seed))


@budget(max_examples=30)
@given(seed=st.integers(0, 2**32), heads=st.integers(1, 2), slots=st.integers(1, 40))
def test_a_step_is_row_wise_adagrad_on_the_summed_gradients_of_each_slot(
    seed: int, heads: int, slots: int
) -> None:
    """Few slots, so that most are met several times in a batch."""
    generator = np.random.default_rng(seed)
    table = table_of(heads=heads)
    every = np.arange(256, dtype=np.uint32)[:, np.newaxis]
    numbers = table.gather(every)[:, 0].astype(np.float64)
    squares = np.zeros((256, heads + 1))
    for _ in range(3):
        met = generator.integers(0, slots, (20, 3)).astype(np.uint32)
        gradients = generator.normal(size=(20, 3, heads + 4)).astype(np.float32)
        table.apply(met, gradients)
        for slot in np.unique(met):
            g = gradients[met == slot].astype(np.float64).sum(axis=0)
            squares[slot, :heads] += g[:heads] ** 2
            squares[slot, heads] += (g[heads:] ** 2).mean()
            divisors = np.sqrt(squares[slot] + FIRST_SQUARES)
            numbers[slot, :heads] -= 0.1 * g[:heads] / divisors[:heads]
            numbers[slot, heads:] -= 0.1 * g[heads:] / divisors[heads]
    assert table.gather(every)[:, 0] == pytest.approx(numbers, rel=1e-4, abs=1e-5)
    assert table.squares == pytest.approx(squares, rel=1e-4, abs=1e-4)


def slots_that_changed(table: EmbeddingTable, step: Callable[[], None]) -> set[int]:
    """Return the slots that a step reads otherwise than before, or whose bytes it has changed."""
    every = np.arange(1 << table.bits, dtype=np.uint32)[:, np.newaxis]

    def bytes_of() -> list[bytes]:
        read = table.gather(every)[:, 0]
        return [
            a.tobytes() + b.tobytes() + c.tobytes()
            for a, b, c in zip(read, table.numbers, table.squares, strict=True)
        ]

    before = bytes_of()
    step()
    return {slot for slot, (a, b) in enumerate(zip(before, bytes_of(), strict=True)) if a != b}


def test_a_batch_touches_the_slots_that_it_meets_and_no_others() -> None:
    table = table_of()
    generator = np.random.default_rng(3)
    for _ in range(3):
        met = generator.integers(0, 256, (5, 2)).astype(np.uint32)
        gradients = generator.normal(size=(5, 2, 5)).astype(np.float32)
        changed = slots_that_changed(table, lambda m=met, g=gradients: table.apply(m, g))
        assert changed == set(met.ravel().tolist())
        assert set(table.learnt.tolist()) >= changed


def test_a_step_that_walks_the_table_is_caught() -> None:
    """Planted fault: weight decay, as an optimizer of dense arrays would apply it."""
    table = table_of()
    met = np.arange(256, dtype=np.uint32)[:, np.newaxis]
    table.apply(met, np.ones((256, 1, 5), np.float32))

    def step() -> None:
        table.apply(met[:3], np.ones((3, 1, 5), np.float32))
        table.numbers[:] *= np.float32(0.999)

    assert len(slots_that_changed(table, step)) > 3


def test_a_slot_whose_gradients_cancel_stays_unlearnt() -> None:
    table = table_of()
    met = np.array([[3], [3], [4]], np.uint32)
    gradients = np.ones((3, 1, 5), np.float32)
    gradients[1] = -1.0
    assert slots_that_changed(table, lambda: table.apply(met, gradients)) == {4}
    assert table.learnt.tolist() == [4]


@given(seed=st.integers(0, 2**63), slot=st.integers(0, 2**28 - 1), heads=st.integers(1, 2))
def test_an_unlearnt_slot_follows_from_seed_and_slot_alone(
    seed: int, slot: int, heads: int
) -> None:
    few = table_of(8, heads, seed=seed)
    read = few.gather(np.array([[slot % 256, 5]], np.uint32))[0]
    again = table_of(10, heads, seed=seed).gather(np.array([[7], [slot % 256]], np.uint32))
    assert np.array_equal(read[0], again[1, 0])
    assert (read[:, :heads] == 0.0).all()
    assert (np.abs(read[:, heads:]) <= 0.05).all()
    other = table_of(8, heads, seed=seed + 1).gather(np.array([[slot % 256]], np.uint32))
    assert not np.array_equal(read[0], other[0, 0])


def test_embeddings_of_unlearnt_slots_are_uniform_and_uncorrelated() -> None:
    table = EmbeddingTable(16, 7, 0.1, Unlearnt(1, 0.05, 0))
    drawn = table.gather(np.arange(1 << 16, dtype=np.uint32)[:, np.newaxis])[:, 0, 1:]
    assert np.abs(drawn.mean(axis=0)).max() < 0.001
    assert drawn.std(axis=0) == pytest.approx(0.05 / math.sqrt(3), rel=0.01)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(7)).max() < 0.02
    assert np.unique(drawn).size > 400_000


# --- gradients and fixed points ------------------------------------------------------------------


def learner_of(loss: str = "logistic", fields: int = 3, **others: Any) -> WideDeep:
    return WideDeep(settings_of(loss, **others), fields, 10, 3.0, seed=4)


def surrogate(loss: str, rows: Stream, f0: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return a batch's loss by its scores, with weights of the loss fixed at those of ``f0``."""
    told = rows.outcomes

    def of_head(coefficients: Any, frozen: np.ndarray, score: np.ndarray) -> np.ndarray:
        f, q = 1 / (1 + np.exp(-frozen)), 1 / (1 + np.exp(frozen))
        event = Event(
            f, q, rows.labels, told[:, kernel.LATE], told[:, kernel.LATENESS],
            told[:, kernel.REAL_NEGATIVE],
        )  # fmt: skip
        a, b = coefficients(event)
        return a * np.logaddexp(0, -score) + b * np.logaddexp(0, score)

    def of_delays(scores: np.ndarray) -> np.ndarray:
        f, rate = 1 / (1 + np.exp(-scores[:, 0])), np.exp(scores[:, 1])
        late, confirmed = told[:, kernel.LATE], told[:, kernel.CONFIRMED]
        wait = -np.log(1 - f + f * np.exp(-rate * told[:, kernel.WAITED]))
        horizon = -np.log(1 - f + f * np.exp(-rate * 3.0))
        arrived = -np.log(f) - np.log(rate) + rate * told[:, kernel.DELAY]
        first = np.where(rows.labels == 1, arrived, np.where(confirmed == 1, horizon, wait))
        return first - np.where((late == 1) | (confirmed == 1), wait, 0.0)

    def whole(scores: np.ndarray) -> float:
        if loss == "delayed_feedback":
            terms = of_delays(scores)
        elif loss == "bi_defuse":
            pair = (losses.in_window, losses.out_of_window)
            terms = sum(of_head(pair[k], f0[:, k], scores[:, k]) for k in range(2))
        else:
            coefficients = COEFFICIENTS.get(loss, losses.log_loss)  # type: ignore[arg-type]
            terms = of_head(coefficients, f0[:, 0], scores[:, 0])
        return float((rows.weights * terms).sum())

    return whole


@needs_jax
@pytest.mark.parametrize(
    "loss", ["logistic", "es_dfm", "positive_unlabelled", "bi_defuse", "delayed_feedback"]
)
def test_gradients_are_the_numerical_ones_of_a_forward_pass_in_numpy(loss: str) -> None:
    """AdaGrad's first step gives them away: the sums of squares say how long, the step where."""
    learner = learner_of(loss, embedding_rate=1e-3, dense_rate=1e-3)
    rows = stream(100, bits=5)
    mine = rows.slots
    before, _ = learner.state()
    every = np.arange(256, dtype=np.uint32)[:, np.newaxis]
    numbers = learner.table.gather(every)[:, 0].astype(np.float64)
    layers = learner.layers
    learner.learn(rows.slots << np.uint32(2), rows.labels, rows.weights, rows.outcomes)
    after, _ = learner.state()
    loss_of = surrogate(loss, rows, forward(numbers[mine], layers))

    def difference(array: np.ndarray, at: tuple[int, ...], whole: Callable[[], float]) -> float:
        kept, step = array[at], 1e-6  # small: rectifiers have a corner
        array[at] = kept + step
        above = whole()
        array[at] = kept - step
        below = whole()
        array[at] = kept
        return (above - below) / (2 * step)

    wide = DenseLayers(
        tuple(weights.astype(np.float64) for weights in layers.weights),
        tuple(biases.astype(np.float64) for biases in layers.biases),
        layers.leak,
    )

    def whole() -> float:
        return loss_of(forward(numbers[mine], wide))

    generator = np.random.default_rng(0)
    for place, (weights, biases) in enumerate(zip(wide.weights, wide.biases, strict=True)):
        for name, array in ((f"weights_{place}", weights), (f"biases_{place}", biases)):
            moved = before[name] - after[name]
            found = np.sign(moved) * np.sqrt(after[f"{name}_squares"])
            scale = float(np.abs(found).max())
            for _ in range(6):
                at = tuple(int(generator.integers(0, size)) for size in array.shape)
                assert found[at] == pytest.approx(difference(array, at, whole), abs=5e-3 * scale)
    heads = layers.heads
    for slot in np.unique(mine)[:6]:
        squares = learner.table.squares[slot]
        steps = (numbers[slot] - learner.table.numbers[slot]) / 1e-3
        for column in range(heads + 4):
            square = squares[min(column, heads)]
            found = steps[column] * math.sqrt(square + FIRST_SQUARES)
            expected = difference(numbers, (int(slot), column), whole)
            assert found == pytest.approx(expected, rel=5e-3, abs=5e-3), (slot, column)


def fixed_point_of(loss: str, p: float, c: float, steps: int = 500) -> float:
    """Return what is learnt of one slot from batches of a stream's exact masses."""
    shown = masses(STRATEGY_OF_LOSS[loss], p, c)
    kinds = list(shown)
    cycles = SMALL.batch_rows // len(kinds)
    rapid = {"embedding": 2, "layers": (4,), "embedding_rate": 0.5, "dense_rate": 0.05}
    learner = WideDeep(settings_of(loss, **rapid), 1, 8, 3.0)
    rows = Stream(
        np.zeros((len(kinds) * cycles, 1), np.uint32),
        np.tile([float(kind[0]) for kind in kinds], cycles),
        np.tile([shown[kind] for kind in kinds], cycles),
        np.tile(outcome_rows(kinds, c, p), (cycles, 1)),
    )
    for _ in range(steps):
        learner.learn(*rows)
    return sigmoid(float(learner.logits(rows.slots[:1])[0]))


@needs_jax
@pytest.mark.parametrize("loss", [*COEFFICIENTS, "bi_defuse"])
def test_a_loss_finds_the_rate_of_its_own_stream(loss: str) -> None:
    for p, c in ((0.05, 0.2), (0.227, 0.6), (0.5, 0.2)):
        assert fixed_point_of(loss, p, c) == pytest.approx(p, rel=0.02), (p, c)


@needs_jax
def test_log_loss_has_the_bias_of_the_stream_that_the_others_correct() -> None:
    """The negative control of the fixed points: a loss on a stream that it does not correct."""
    p = 0.227
    learner = WideDeep(settings_of("logistic", embedding_rate=0.5), 1, 8)
    slots = np.zeros((128, 1), np.uint32)
    labels = np.tile([0.0, 1.0], 64)
    weights = np.tile([1.0, p], 64)  # the stream `immediate`
    for _ in range(300):
        learner.learn(slots, labels, weights)
    found = sigmoid(float(learner.logits(slots[:1])[0]))
    assert found == pytest.approx(p / (1 + p), rel=0.02)
    assert found != pytest.approx(p, rel=0.05)


@needs_jax
@pytest.mark.parametrize(("p", "rate"), [(0.05, 0.5), (0.227, 2.0)])
def test_chapelle_s_likelihood_finds_rate_and_hazard_of_an_exponential_delay(
    p: float, rate: float
) -> None:
    """The likelihood is linear in delays, so that a kind of event needs its mean delay only."""
    wait, horizon = 0.2, 4.0
    unseen_wait, unseen_horizon = math.exp(-rate * wait), math.exp(-rate * horizon)
    in_time, late = p * (1 - unseen_wait), p * (unseen_wait - unseen_horizon)
    kinds = [IN_TIME, NEGATIVE, LATE, REAL]
    outcomes = outcome_rows(kinds, 0.5, p, waited=wait)
    outcomes[:, kernel.DELAY] = (
        1 / rate - wait * unseen_wait / (1 - unseen_wait),
        0.0,
        1 / rate + (wait * unseen_wait - horizon * unseen_horizon) / (unseen_wait - unseen_horizon),
        0.0,
    )
    rapid = {"embedding": 2, "layers": (4,), "embedding_rate": 0.5, "dense_rate": 0.05}
    learner = WideDeep(settings_of("delayed_feedback", **rapid), 1, 8, horizon)
    rows = Stream(
        np.zeros((128, 1), np.uint32),
        np.tile([1.0, 0.0, 1.0, 0.0], 32),
        np.tile([in_time, 1 - in_time, late, 1 - in_time - late], 32),
        np.tile(outcomes, (32, 1)),
    )
    for _ in range(1_500):
        learner.learn(*rows)
    found = sigmoid(float(learner.logits(rows.slots[:1])[0]))
    assert found == pytest.approx(in_time + late, rel=0.02)
    scores = scores_of_heads(learner.table.gather(rows.slots[:1]), learner.layers)
    assert math.exp(scores[0, 1]) == pytest.approx(rate, rel=0.05)


# --- what it learns ------------------------------------------------------------------------------


@needs_jax
def test_it_learns_a_crossing_that_a_linear_model_cannot() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.integers(0, 2, (2, 20_000))
    slots = np.stack([a, 2 + b, np.full(20_000, 4)], axis=1).astype(np.uint32)
    labels = (generator.random(20_000) < np.where(a == b, 0.8, 0.2)).astype(float)
    learner = WideDeep(settings_of("logistic", embedding_rate=0.2, dense_rate=0.05), 3, 8)
    learner.learn(slots, labels)
    learner.learn(slots, labels)
    crossed = learner.logits(slots)
    coded = np.eye(5)[slots].sum(axis=1)
    p = coded @ np.linalg.lstsq(coded, labels)[0]

    def loss(logits: np.ndarray) -> float:
        return float(np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean())

    assert loss(np.log(p / (1 - p))) > 0.69
    assert loss(crossed) < 0.52  # the truth's is 0.500


def burst(loss: str, *, clipped: bool = False) -> float:
    """Return the logit after all positives of 5 % have arrived at once, behind 50,000 anchors."""
    rapid = {"embedding": 2, "layers": (4,), "embedding_rate": 1.0}
    learner = WideDeep(settings_of(loss, non_negative=clipped, **rapid), 1, 8)
    for label, rows in ((0.0, 50_000), (1.0, 2_500)):
        learner.learn(np.zeros((rows, 1), np.uint32), np.full(rows, label))
    return float(learner.logits(np.zeros((1, 1), np.uint32))[0])


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps of any length."""
    wide_deep._compiled_step.cache_clear()
    monkeypatch.setattr(wide_deep, "LONGEST", math.inf)
    yield
    wide_deep._compiled_step.cache_clear()


@needs_jax
@pytest.mark.usefixtures("unguarded")
def test_the_non_negative_clip_bounds_what_a_burst_of_positives_does() -> None:
    """With the other guard off: it would shorten the burst before this one is asked."""
    free, clipped = (burst("positive_unlabelled", clipped=on) for on in (False, True))
    assert clipped < 5
    assert free > 15


@needs_jax
def test_the_clip_changes_nothing_where_positives_are_spread_out() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(5_000) < 0.05 / 1.05).astype(float)
    slots = generator.integers(0, 256, (5_000, 3)).astype(np.uint32)
    learners = [learner_of("positive_unlabelled", non_negative=on) for on in (False, True)]
    for learner in learners:
        learner.learn(slots, labels)
    plain, clipped = (digest(learner.state()[0]) for learner in learners)
    assert plain == clipped


def squares_of_layers(learner: WideDeep) -> float:
    arrays, _ = learner.state()
    return sum(
        float(array.sum(dtype=np.float64))
        for name, array in arrays.items()
        if name.endswith("_squares")
    )


def growth_by_a_burst() -> float:
    """Return what a batch of positives adds to the sums of squares, in usual batches."""
    generator = np.random.default_rng(1)
    learner = learner_of(dense_rate=0.05)
    slots = generator.integers(0, 1 << 10, (128 * 400, 3)).astype(np.uint32)
    learner.learn(slots, (generator.random(len(slots)) < 0.02).astype(float))
    before, steps = squares_of_layers(learner), learner.state()[1]["steps"]
    assert steps == 400
    learner.learn(slots[:128], np.ones(128))
    return (squares_of_layers(learner) - before) * steps / before


@needs_jax
def test_a_burst_is_shortened_to_some_batches_as_they_usually_are() -> None:
    assert growth_by_a_burst() == pytest.approx(wide_deep.LONGEST**2, rel=1e-3)


@needs_jax
@pytest.mark.usefixtures("unguarded")
def test_a_burst_that_nothing_shortens_slows_the_layers_for_good() -> None:
    """Planted fault: no guard."""
    assert growth_by_a_burst() > 2 * 10.0**2


# --- bytes ---------------------------------------------------------------------------------------


@needs_jax
@pytest.mark.parametrize("loss", ["logistic", "positive_unlabelled", "delayed_feedback"])
def test_a_learner_resumed_at_any_batch_ends_in_the_same_bytes(loss: str, tmp_path: Path) -> None:
    rows = stream(128 * 5)
    non_negative = loss == "positive_unlabelled"

    def learn(learner: WideDeep, first: int, last: int) -> WideDeep:
        batch = slice(first * 128, last * 128)
        learner.learn(*(array[batch] for array in rows))
        return learner

    whole = learn(learner_of(loss, non_negative=non_negative), 0, 5)
    expected = digest(whole.state()[0])
    for boundary in range(5):
        begun = learn(learner_of(loss, non_negative=non_negative), 0, boundary)
        kept = write_checkpoint(tmp_path, "deep", *begun.state())
        resumed = learn(WideDeep.restore(kept.arrays, kept.manifest), boundary, 5)
        assert digest(resumed.state()[0]) == expected
        assert resumed.state()[1] == whole.state()[1]
        assert np.array_equal(resumed.logits(rows.slots), whole.logits(rows.slots))
    # Planted fault: a resumed learner that has forgotten its sums of squares.
    arrays, manifest = learn(learner_of(loss, non_negative=non_negative), 0, 2).state()
    arrays["weights_0_squares"] = np.zeros_like(arrays["weights_0_squares"])
    assert digest(learn(WideDeep.restore(arrays, manifest), 2, 5).state()[0]) != expected


def rerun() -> str:
    """Learn at sizes at which XLA divides sums among its threads; return what became of it."""
    learner = WideDeep(DeepSettings(bits=12, layers=(200, 100)), 5, 12, seed=3)
    learner.learn(*stream(3_000, 5, 12))
    return f"{digest(learner.state()[0])} {digest(learner.exported().to_arrays())}"


RERUN = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from ad_pipeline_tests.learners.test_wide_deep import rerun
print(rerun())
"""


@needs_jax
def test_a_run_again_in_a_process_with_one_core_ends_in_the_same_bytes() -> None:
    assert fresh_process(RERUN).strip() == rerun()


@needs_jax
def test_the_number_of_threads_would_show_in_the_bytes() -> None:
    """Planted fault: XLA with as many threads as there are cores."""
    assert fresh_process(RERUN, PJRT_NPROC="1").strip() != rerun()


@needs_jax
@pytest.mark.parametrize("loss", ["logistic", "es_dfm", "fake_negative_calibrated", *TWO_HEADED])
def test_an_export_scores_to_the_bit_what_the_learner_scores(loss: str) -> None:
    learner = learner_of(loss)
    fresh = learner.exported()
    rows = stream(300, bits=9)  # of 10: slots that were never learnt remain
    learner.learn(*rows)
    exported = learner.exported()
    slots = stream(500, seed=1).slots
    said = learner.logits(slots)
    assert np.array_equal(exported.logits(slots), said)
    again = ExportedDeep.from_arrays(exported.to_arrays(), exported.to_json())
    assert np.array_equal(again.logits(slots), said)
    assert 0 < exported.learnt < 256
    # An export is what the learner was: later steps change neither it nor one made before.
    learner.learn(*rows)
    assert np.array_equal(exported.logits(slots), said)
    assert np.array_equal(fresh.logits(slots), learner_of(loss).logits(slots))
    assert not np.array_equal(learner.logits(slots), said)


@needs_jax
def test_an_export_of_a_learner_that_learnt_nothing_survives_a_checkpoint(tmp_path: Path) -> None:
    learner = learner_of()
    exported = learner.exported()
    kept = write_checkpoint(tmp_path, "deep", exported.to_arrays(), exported.to_json())
    mapped = ExportedDeep.from_arrays(kept.arrays, kept.manifest)
    slots = stream(50).slots
    assert mapped.learnt == 0
    assert np.array_equal(mapped.logits(slots), learner.logits(slots))
    assert np.abs(mapped.logits(slots)).max() < 0.1


@needs_jax
def test_padding_and_rows_of_weight_zero_change_nothing() -> None:
    rows = stream(90)
    alone, padded = learner_of("es_dfm"), learner_of("es_dfm")
    alone.learn(*rows)
    others = stream(38, seed=9)
    padded.learn(
        np.concatenate([rows.slots, others.slots]),
        np.concatenate([rows.labels, others.labels]),
        np.concatenate([rows.weights, np.zeros(38)]),
        np.concatenate([rows.outcomes, others.outcomes]),
    )
    assert digest(alone.state()[0]) == digest(padded.state()[0])
    assert (alone.rows, padded.rows) == (90, 128)
    nothing = learner_of()
    nothing.learn(rows.slots, rows.labels, np.zeros(90))
    assert nothing.state()[1]["steps"] == 0
    assert digest(nothing.state()[0]) == digest(learner_of().state()[0])


@needs_jax
def test_a_table_of_fewer_bits_has_the_highest_bits_of_the_slots() -> None:
    rows = stream(200, bits=12)
    wide, narrow = WideDeep(SMALL, 3, 12), WideDeep(SMALL, 3, 8)
    wide.learn(*rows)
    narrow.learn(rows.slots >> np.uint32(4), *rows[1:])
    assert digest(wide.state()[0]) == digest(narrow.state()[0])
    assert np.array_equal(wide.logits(rows.slots), narrow.logits(rows.slots >> np.uint32(4)))


# --- what is refused -----------------------------------------------------------------------------


def test_a_missing_jax_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(DeepExtraMissing, match=r"pip install ad_pipeline\[deep\]"):
        WideDeep(SMALL, 3, 10)


@needs_jax
def test_rows_that_would_damage_the_state_are_refused_before_anything_is_learnt() -> None:
    learner = learner_of()
    rows = stream(10)
    bad = np.full(10, np.nan)
    for match, given_rows in {
        "zeros and ones": rows._replace(labels=np.full(10, 0.5)),
        "finite numbers of at least 0": rows._replace(weights=bad),
        "of at least 0": rows._replace(weights=np.full(10, -1.0)),
        "outcomes must be finite": rows._replace(outcomes=np.full((10, 6), np.inf)),
        "shape": rows._replace(labels=rows.labels[:5]),
        "does not fit": rows._replace(slots=rows.slots + np.uint32(1 << 10)),
        "made for 3": rows._replace(slots=rows.slots[:, :2]),
    }.items():
        with pytest.raises(ValueError, match=match):
            learner.learn(*given_rows)
    assert learner.rows == 0
    assert learner.state()[1]["steps"] == 0
    with pytest.raises(ValueError, match=r"settings\.deep\.bits"):
        WideDeep(SMALL, 3, 7)
    with pytest.raises(ValueError, match="at least one"):
        WideDeep(SMALL, 0, 10)


# --- going on under another objective ------------------------------------------------------------


@needs_jax
def test_a_continued_learner_scores_as_before_until_it_learns_under_its_own_loss() -> None:
    rows = stream(400)
    begun = WideDeep(settings_of("logistic"), 3, 10, 3.0)
    begun.learn(rows.slots, rows.labels)
    other = begun.continued(settings_of("fake_negative_weighted"))
    before = begun.logits(rows.slots)
    assert np.array_equal(other.table.gather(rows.slots >> 2), begun.table.gather(rows.slots >> 2))
    for mine, its in zip(other.layers.weights, begun.layers.weights, strict=True):
        assert np.array_equal(mine, its)
    same = begun.continued(settings_of("logistic", dense_rate=0.001))
    assert np.array_equal(same.logits(rows.slots), before)
    same.learn(rows.slots, rows.labels)
    assert not np.array_equal(same.logits(rows.slots), before)
    assert np.array_equal(begun.logits(rows.slots), before), "it is another learner"


@needs_jax
def test_a_second_head_begins_untrained() -> None:
    rows = stream(400)
    begun = WideDeep(settings_of("logistic"), 3, 10, 3.0)
    begun.learn(rows.slots, rows.labels)
    two = begun.continued(settings_of("bi_defuse"))
    gathered = two.table.gather(rows.slots >> 2)
    assert gathered.shape[2] == 2 + SMALL.embedding
    assert not gathered[:, :, 1].any()
    assert gathered[:, :, 0].any()
    assert two.layers.biases[-1][1] == 0.0
    heads = scores_of_heads(gathered, two.layers)
    alone = scores_of_heads(begun.table.gather(rows.slots >> 2), begun.layers)
    assert np.array_equal(heads[:, 0], alone[:, 0])
    with pytest.raises(ValueError, match="has two heads"):
        two.continued(settings_of("logistic"))


@needs_jax
def test_another_network_is_no_continuation() -> None:
    begun = WideDeep(settings_of("logistic"), 3, 10)
    for change in ({"bits": 9}, {"embedding": 8}, {"layers": (16,)}, {"leak": 0.2}):
        with pytest.raises(ValueError, match="another network"):
            begun.continued(settings_of("logistic", **change))


@pytest.mark.parametrize("given", [None, (0,)])
@needs_jax
def test_outcomes_that_are_left_out_are_rows_as_logged(given: tuple[int] | None) -> None:
    rows = stream(300)
    logged = np.zeros((300, kernel.N_OUTCOMES))
    logged[:, kernel.REAL_NEGATIVE] = 1.0

    def taught(outcomes: np.ndarray | None) -> np.ndarray:
        learner = WideDeep(settings_of("es_dfm"), 3, 10, 3.0)
        learner.learn(rows.slots, rows.labels, outcomes=outcomes)
        return learner.logits(rows.slots)

    left_out = None if given is None else np.zeros((300, *given))
    assert np.array_equal(taught(left_out), taught(logged))
    assert not np.array_equal(taught(left_out), taught(0.5 * logged)), "the column is read"
