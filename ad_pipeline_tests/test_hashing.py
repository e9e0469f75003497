"""The hash is XXH64, and one value has one hash however it is stored."""

import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline import hashing

TEXTS = st.lists(st.none() | st.text(max_size=90), max_size=12)
SEEDS = st.integers(0, 2**64 - 1)


def reference(value: str | None, seed: int) -> int:
    """Return the hash by the C library of xxHash."""
    return xxhash.xxh64_intdigest(hashing.MISSING if value is None else value.encode(), seed=seed)


@settings(deadline=None)
@given(TEXTS, SEEDS)
def test_hashes_are_those_of_the_reference_library(values: list[str | None], seed: int) -> None:
    assert hashing.hash_values(values, seed).tolist() == [reference(v, seed) for v in values]


def test_every_length_up_to_a_hundred_bytes_agrees_with_the_reference_library() -> None:
    """XXH64 has branches at 4, 8 and 32 bytes; each length takes its own way through them."""
    values = ["é" * (n // 2) + "x" * (n % 2) for n in range(100)]
    assert hashing.hash_values(values, 7).tolist() == [reference(v, 7) for v in values]


@settings(deadline=None)
@given(TEXTS, st.integers(0, 6))
def test_a_value_hashes_the_same_in_every_arrow_layout_and_as_a_single_request(
    values: list[str | None], start: int
) -> None:
    """A scorer sees one plain string where training saw a slice of a dictionary."""
    plain = pa.array(values, pa.string())
    expected = hashing.hash_strings(plain, 3)
    layouts = [
        pa.array(values, pa.large_string()),
        plain.dictionary_encode(),
        plain.dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        pa.chunked_array([plain.slice(0, start), plain.slice(start)]),
        pa.chunked_array([plain, plain.slice(0, 0)]).dictionary_encode(),
    ]
    for layout in layouts:
        rows = hashing.hash_strings(layout, 3)[: len(values)]
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(
            hashing.hash_strings(layout.slice(start), 3), expected[start:]
        )
    singles = [int(hashing.hash_values([value], 3)[0]) for value in values]
    assert singles == expected.tolist()
    together = hashing.hash_rows([values, values[::-1]], [3, 4])
    np.testing.assert_array_equal(together[:, 0], expected)
    np.testing.assert_array_equal(together[:, 1], hashing.hash_values(values[::-1], 4))


def test_a_null_is_no_text_and_the_same_in_every_layout() -> None:
    null, empty, word = hashing.hash_values([None, "", "null"], 1)
    assert len({null, empty, word}) == 3
    assert hashing.hash_strings(pa.nulls(2), 1).tolist() == [null, null]
    in_dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["", None]))
    assert hashing.hash_strings(in_dictionary, 1).tolist() == [empty, null]


def test_other_types_are_refused_with_a_remedy() -> None:
    with pytest.raises(TypeError, match=r"int64.*cast it to string"):
        hashing.hash_strings(pa.array([1, 2]), 0)


@settings(deadline=None)
@given(st.lists(st.tuples(SEEDS, SEEDS), min_size=1, max_size=8), SEEDS)
def test_pairs_and_words_are_xxh64_of_their_bytes(pairs: list[tuple[int, int]], seed: int) -> None:
    a, b = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    assert hashing.combine(a, b, seed).tolist() == [
        xxhash.xxh64_intdigest(struct.pack("<QQ", *pair), seed=seed) for pair in pairs
    ]
    words = np.stack((a, b), axis=1)
    seeds = np.array([seed, seed ^ 1], np.uint64)
    assert hashing.hash_words(words, seeds).tolist() == [
        [
            xxhash.xxh64_intdigest(struct.pack("<Q", w), seed=int(s))
            for w, s in zip(p, seeds, strict=True)
        ]
        for p in pairs
    ]


def test_a_pair_and_its_mirror_differ() -> None:
    a, b = (hashing.hash_values([value], 0) for value in ("home", "sport"))
    assert hashing.combine(a, b) != hashing.combine(b, a)


@pytest.mark.parametrize("bits", [1, 8, 20, 32])
def test_slots_fill_their_range_and_nothing_beyond(bits: int) -> None:
    hashes = hashing.hash_words(np.arange(20_000).reshape(-1, 1), np.zeros(1, np.uint64))
    slots = hashing.slot_of(hashes[:, 0], bits)
    assert slots.dtype == np.uint32
    assert int(slots.max()) < 2**bits
    counts = np.bincount(slots >> max(bits - 4, 0), minlength=min(2**bits, 16))
    assert counts.min() > 0.9 * counts.mean()


@pytest.mark.parametrize("bits", [0, 33])
def test_slots_that_do_not_fit_32_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="write 1 to 32"):
        hashing.slot_of(np.zeros(1, np.uint64), bits)


def test_draws_are_uniform_and_independent_between_seeds_and_purposes() -> None:
    ids = pa.array([f"imp-{i}" for i in range(20_000)])
    draws = [
        hashing.uniform(seed, ids, purpose) for seed in (-1, 1, 2) for purpose in ("arm", "sample")
    ]
    for column in draws:
        assert column.min() >= 0
        assert column.max() < 1
        np.testing.assert_allclose(np.histogram(column, 10, (0, 1))[0], 2000, atol=200)
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.03
    np.testing.assert_array_equal(hashing.uniform(1, ids.slice(77), "arm"), draws[2][77:])


def test_draws_for_numbers_are_uniform_too() -> None:
    draws = hashing.uniform(5, np.arange(20_000, dtype=np.uint64), "sample")
    np.testing.assert_allclose(np.histogram(draws, 10, (0, 1))[0], 2000, atol=200)


def test_a_fresh_process_hashes_without_pandas() -> None:
    """A scorer pays half a second for an import of pandas that pyarrow makes behind its back."""
    code = (
        "import sys; from ad_pipeline import hashing; import numpy as np;"
        "print(hashing.hash_values(['a', None], 1).tolist(), hashing.seed_of('x'));"
        "hashing.uniform(1, hashing.string_array(['a']), 'p');"
        "bad = {'pandas', 'dagster', 'duckdb'} & set(sys.modules);"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("] ")[0] == str(hashing.hash_values(["a", None], 1).tolist())[:-1]
