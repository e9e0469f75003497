"""Content as slots: what shares them, what does not, and what a table of slots learns."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from ad_pipeline.embeddings.content import id_tokens, text_tokens
from ad_pipeline.embeddings.sequences import NOTHING
from ad_pipeline.embeddings.slot_table import FIRST_SQUARES, SlotTable

BITS = 20


def slots(text: str | None, **how) -> set[int]:
    return set(text_tokens([text], "comments", BITS, **how)[0].as_py())


def overlap(one: str, other: str) -> float:
    a, b = slots(one), slots(other)
    return len(a & b) / len(a | b)


def test_texts_share_slots_as_far_as_they_share_n_grams() -> None:
    text = "a red running shoe for women"
    near, far = "red running shoes for women", "life insurance without a medical"
    assert overlap(text, near) > 0.5
    assert overlap(text, far) < 0.1
    assert slots("\ufb01ne SHOE") == slots("fine shoe"), "neither case nor form is content"
    assert slots("red shoe") != slots("shoe red"), "pairs of words are"


@given(st.lists(st.text("abc d", max_size=12), max_size=6), st.integers(1, 6))
@budget(deadline=None)
def test_a_text_s_tokens_depend_on_that_text_alone(texts: list[str], most: int) -> None:
    together = text_tokens(texts, "comments", BITS, most=most).to_pylist()
    alone = [text_tokens([text], "comments", BITS, most=most)[0].as_py() for text in texts]
    assert together == alone
    for text, few in zip(texts, together, strict=True):
        every = text_tokens([text], "comments", BITS, most=10_000)[0].as_py()
        assert few == every[: len(few)], "those of the smallest hashes"
        assert len(few) == min(most, len(every))


def test_nothing_is_no_id_and_two_names_are_two_slots() -> None:
    assert slots(None) == slots("  !") == set()
    ids = pa.array([f"ad {n}" for n in range(5_000)])
    few = id_tokens(ids, "clicks.ad_id", 8)
    assert NOTHING not in few
    assert few.max() < 256
    assert len(set(few)) == 255
    here, there = (id_tokens(ids, name, BITS) for name in ("clicks.ad_id", "views.ad_id"))
    assert (here == there).mean() < 0.01


@given(st.integers(0, 2**32 - 1))
@budget(max_examples=20, deadline=None)
def test_bags_are_means_and_steps_are_row_wise_adagrad(seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = SlotTable.first(4, 3, seed=1, name="test")
    before = table.copy()
    tokens = generator.integers(0, 6, (5, 2, 3)).astype(np.uint32)
    gradients = generator.normal(size=(5, 2, 3)).astype(np.float32)
    means = table.means(tokens)
    sums: dict[int, np.ndarray] = {}
    for bag in np.ndindex(5, 2):
        there = [int(slot) for slot in tokens[bag] if slot != NOTHING]
        expected = sum((before.rows[slot] for slot in there), np.zeros(3)) / max(len(there), 1)
        np.testing.assert_allclose(means[bag], expected, rtol=1e-5, atol=1e-7)
        for slot in there:
            sums[slot] = sums.get(slot, np.zeros(3)) + gradients[bag] / len(there)
    table.step(tokens, gradients, rate=0.5)
    for slot in range(16):
        square, row = before.squares[slot], before.rows[slot]
        if slot in sums:
            square = square + (sums[slot] ** 2).mean()
            row = row - 0.5 * sums[slot] / np.sqrt(square + FIRST_SQUARES)
        np.testing.assert_allclose(table.squares[slot], square, rtol=1e-5)
        np.testing.assert_allclose(table.rows[slot], row, rtol=1e-5, atol=1e-6)
    assert not table.rows[NOTHING].any()
    assert before.squares.sum() == 0.0, "a copy is one"


def test_a_slot_of_more_bits_is_refused() -> None:
    table = SlotTable.first(4, 3, seed=1, name="test")
    with pytest.raises(ValueError, match="slot 16 is none of 16"):
        table.means(np.array([[16]], np.uint32))
    assert table.means(np.zeros((2, 3, 0), np.uint32)).shape == (2, 3, 3)
