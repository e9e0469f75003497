"""The hash is XXH64, and one value has one hash however it is stored."""

import gc
import itertools
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

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


NAMED = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.none() | st.booleans() | st.integers() | st.floats(allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.sampled_from([np.float64(2), np.float32(3), np.int64(4), np.int32(5), np.bool_(True)]),
    max_size=80,
)  # fmt: skip


def read_by_columns(row: Mapping[str, Any], bits: int) -> tuple[list[int], list[float]]:
    """Return slots and values of a row by the functions that hash columns."""
    slots: list[int] = []
    values: list[float] = []
    for name in sorted(row, key=hashing.seed_of):
        value, seed = row[name], hashing.seed_of(name)
        if value is None or value != value:
            continue
        taken = [seed] if not isinstance(value, str) else hashing.hash_values([value], seed)
        slots += hashing.slot_of(np.array(taken, np.uint64), bits).tolist()
        values += [1.0 if isinstance(value, str) else float(value)]
    return slots, values


@settings(deadline=None, max_examples=200)
@given(NAMED, st.integers(1, 32))
def test_a_dictionary_reads_as_its_columns_hash_in_whatever_order_it_was_filled(row, bits) -> None:
    reader = hashing.NamedValues()
    expected = read_by_columns(row, bits)
    for items in (row.items(), reversed(row.items())):
        found = reader.read(dict(items), bits)
        assert found is not None
        assert (found[0].dtype, found[1].dtype) == (np.uint32, np.float64)
        assert (found[0][0].tolist(), found[1][0].tolist()) == expected


@pytest.mark.parametrize(
    "value",
    [[1.0], b"a", "\ud800", float("inf"), float("-inf"), 10**400, np.str_("a"), np.float16(1), 1j],
    ids=repr,
)
def test_a_dictionary_that_holds_anything_else_is_handed_back_unread(value: object) -> None:
    reader = hashing.NamedValues()
    assert reader.read({"a": 1.0, "b": value}, 20) is None
    assert reader.read({"a": 1.0, "\ud800": 1.0}, 20) is None
    assert reader.read({"a": 1.0, 7: 1.0}, 20) is None
    found = reader.read({"a": 1.0}, 20)  # no error is left behind, and the next row is read
    assert found is not None
    assert found[1].tolist() == [[1.0]]


def test_names_made_anew_for_every_row_are_never_taken_for_one_another() -> None:
    """Seeds are kept by a name's address; a name that died must not lend its address to another."""
    reader = hashing.NamedValues()
    for start in range(0, 30_000, 10):
        row = {f"name {number}": 1.0 for number in range(start, start + 10)}
        found = reader.read(row, 32)
        assert found is not None
        assert found[0][0].tolist() == read_by_columns(row, 32)[0]
        del row
        if start % 5_000 == 0:
            gc.collect()


def test_reading_rows_keeps_no_value_and_no_more_names_than_have_a_place() -> None:
    reader = hashing.NamedValues()
    name, value = "a name " + str(id(reader)), "a value " + str(id(reader))
    row = {name: value, "x": None, "y": 2.5}
    before = sys.getrefcount(row), sys.getrefcount(value), sys.getrefcount(type(None))
    for _ in range(1_000):
        reader.read(row, 20)
    assert (sys.getrefcount(row), sys.getrefcount(value), sys.getrefcount(type(None))) == before
    assert sys.getrefcount(name) <= 5
    # Others take the places; the name is let go.
    others = [{f"other {number}": 1.0} for number in range(20_000)]
    for other in others:
        reader.read(other, 20)
    del row
    assert sys.getrefcount(name) == 2


def test_threads_that_read_at_once_do_not_disturb_each_other() -> None:
    rows = [{f"n{k}": f"value {k} {row}" for k in range(40)} for row in range(50)]
    expected = [read_by_columns(row, 20)[0] for row in rows]
    wrong: list[int] = []

    def read_all() -> None:
        reader = hashing.NamedValues()
        for place in itertools.islice(itertools.cycle(range(len(rows))), 2_000):
            found = reader.read(dict(rows[place]), 20)
            if found is None or found[0][0].tolist() != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


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
