"""A row's encoding depends on the row, the contract and the counts, and on nothing else."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline import hashing
from ad_pipeline.datasets import Features
from ad_pipeline.features import bucket_labels, encoding, encoding_kernels
from ad_pipeline.features.encoding import FeatureContract, LookedUp, RateGoal, VectorFeatures
from ad_pipeline_tests.features.logs import (
    CLICK,
    Log,
    column_table,
    drawn_lookups,
    logs,
    tiny_dataset,
)

CONTRACT = FeatureContract.from_dataset(tiny_dataset())
WITH_VECTORS = replace(CONTRACT, vectors=VectorFeatures(5, 1))
of_both = pytest.mark.parametrize("contract", [CONTRACT, WITH_VECTORS], ids=["plain", "vectors"])


def bits_of(matrix: np.ndarray) -> list[list[int]]:
    """Return the bit patterns of float64, under which a NaN equals itself and 0 is not -0."""
    return matrix.view(np.uint64).tolist()


@of_both
@settings(deadline=None, max_examples=30)
@given(log=logs(), seed=st.integers(0, 99))
def test_a_row_alone_is_encoded_as_in_its_batch_bit_for_bit(
    contract: FeatureContract, log: Log, seed: int
) -> None:
    """In training a row stands among a million, in serving alone."""
    columns = column_table(log)
    looked_up = drawn_lookups(contract, len(log.impressions), seed)
    slots = encoding.slots(contract, columns, looked_up)
    dense = encoding.dense(contract, columns, looked_up)
    categories = encoding.category_hashes(contract, columns)
    for i, row in enumerate(log.impressions):
        one = looked_up.rows(i, i + 1)
        request = {"user_id": row.user, "ad_id": row.ad, "price": row.price}
        for read in (
            encoding.read_columns(contract, {k: v.slice(i, 1) for k, v in columns.items()}),
            encoding.read_columns(contract, encoding.request_columns(contract, [request])),
            encoding.read_requests(contract, [request]),
        ):
            assert encoding.slots(contract, read, one).tolist() == slots[i : i + 1].tolist()
            assert bits_of(encoding.dense(contract, read, one)) == bits_of(dense[i : i + 1])
            assert encoding.category_hashes(contract, read).tolist() == [categories[i].tolist()]


@of_both
def test_long_batches_are_encoded_as_their_rows_across_every_inner_edge(
    contract: FeatureContract,
) -> None:
    """Also where the encoder cuts its work, and in the tail that a vector unit would leave."""
    n = 65_536 + 13
    generator = np.random.default_rng(5)
    read = encoding.ReadColumns(
        generator.integers(0, 2**63, (n, 2), dtype=np.uint64),
        generator.standard_cauchy((n, 1)) * 10.0 ** generator.integers(-9, 9, (n, 1)),
    )
    looked_up = drawn_lookups(contract, n, 6)
    slots = encoding.slots(contract, read, looked_up)
    dense = encoding.dense(contract, read, looked_up)
    assert slots.flags.c_contiguous
    assert dense.flags.c_contiguous
    rows = [*range(40), *range(n - 40, n), *generator.integers(0, n, 400).tolist()]
    for i in rows:
        row, one = read.rows(i, i + 1), looked_up.rows(i, i + 1)
        assert encoding.slots(contract, row, one).tolist() == slots[i : i + 1].tolist()
        assert bits_of(encoding.dense(contract, row, one)) == bits_of(dense[i : i + 1])


@pytest.mark.parametrize("kind", ["float64", "int64", "int32", "null"])
def test_numbers_read_in_place_have_the_slots_of_their_buckets(kind: str) -> None:
    """Common buckets are looked up; what is missing or beyond them must come to the same."""
    whole = [None, 0, 1, -1, 7, 1_023, 1_024, -1_024, 2**31 - 1, None, -(2**31)]
    odd = [0.5, -0.0, -0.5, math.nan, math.inf, -math.inf, 1e300, -1e300, 2.0**127, 2.0**129]
    values = [None] * 30 if kind == "null" else whole + (odd if kind == "float64" else [])
    contract = FeatureContract((), ("a", "b"), (), (), (), 1.0, 1, 1, 20)
    first = pa.array(values, pa.null() if kind == "null" else getattr(pa, kind)())
    second = pa.chunked_array([first[3:9], first[9:], first[:3]])
    for rows in (slice(None), slice(1, 9)):
        columns = {"a": first[rows], "b": second[rows]}
        read = encoding.read_columns(contract, columns)
        words = encoding.number_words(read.numbers)
        expected = hashing.slot_of(hashing.hash_words(words, contract.word_seeds[1:]), 20)
        np.testing.assert_array_equal(encoding.slots(contract, columns)[:, 1:], expected)
        np.testing.assert_array_equal(encoding.slots(contract, read)[:, 1:], expected)


@given(logs(), st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_blocks_of_rows_are_encoded_as_all_of_them(log: Log, rows: int) -> None:
    columns = column_table(log)
    found = [block.copy() for block in encoding.slot_blocks(CONTRACT, columns, rows)]
    expected = encoding.slots(CONTRACT, columns)
    assert all(len(block) == rows for block in found[:-1])
    np.testing.assert_array_equal(np.concatenate(found or [expected]), expected)


@settings(deadline=None, max_examples=20)
@given(logs())
def test_dictionaries_chunks_and_plain_strings_encode_alike(log: Log) -> None:
    columns = column_table(log)
    expected = encoding.slots(CONTRACT, columns).tolist()
    half = len(log.impressions) // 2
    chunked = {
        name: pa.chunked_array([column.slice(0, half), column.slice(half)])
        for name, column in columns.items()
    }
    coded = columns | {name: columns[name].dictionary_encode() for name in ("user_id", "ad_id")}
    assert encoding.slots(CONTRACT, chunked).tolist() == expected
    assert encoding.slots(CONTRACT, coded).tolist() == expected


def test_the_columns_of_both_encodings_are_the_named_ones() -> None:
    columns = column_table(Log((), ()))
    assert encoding.slots(CONTRACT, columns).shape == (0, len(CONTRACT.token_names))
    assert encoding.dense(CONTRACT, columns).shape == (0, len(CONTRACT.dense_names))
    assert CONTRACT.token_names[:5] == ("(bias)", "user_id", "ad_id", "price", "user_id\u00d7ad_id")
    assert CONTRACT.dense_names[:3] == ("price", "user_id.click.rate", "user_id.click.anchors")
    assert len(CONTRACT.dense_names) == 1 + 2 * 2 * 2


def test_an_entity_is_one_hash_for_token_cross_and_rate() -> None:
    columns = {
        "user_id": pa.array(["u"]),
        "ad_id": pa.array(["a"]),
        "price": pa.array([None], pa.float64()),
    }
    user, ad = (
        hashing.hash_values([value], hashing.seed_of(name))
        for name, value in (("user_id", "u"), ("ad_id", "a"))
    )
    slots = encoding.slots(CONTRACT, columns)[0]
    assert slots[1] == hashing.slot_of(user, CONTRACT.bits)[0]
    crossed = hashing.combine(user, ad, hashing.seed_of("user_id\u00d7ad_id"))
    assert slots[4] == hashing.slot_of(crossed, CONTRACT.bits)[0]
    assert encoding.entity_hashes(CONTRACT, columns).tolist() == [[int(user[0]), int(ad[0])]]
    assert encoding.category_hashes(CONTRACT, columns).tolist() == [[int(user[0]), int(ad[0])]]


@pytest.mark.parametrize(
    ("number", "bucket"),
    [
        (0.0, 0),
        (-0.0, 0),
        (0.18, 0),
        (0.19, 1),
        (1.0, 4),
        (-1.0, -5),
        (3.0, 8),
        (-1e-9, -1),
        (1e300, math.floor(math.log2(1e300) * 4)),
        (math.nan, encoding_kernels.MISSING_WORD),
        (math.inf, 2**61),
        (-math.inf, -1 - 2**61),
    ],
)
def test_numbers_fall_into_the_stated_buckets(number: float, bucket: int) -> None:
    assert encoding.number_words(np.array([[number]])).tolist() == [[bucket]]


@settings(deadline=None)
@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_buckets_keep_the_order_of_numbers(a: float, b: float) -> None:
    low, high = encoding.number_words(np.array([[min(a, b)], [max(a, b)]]))[:, 0]
    assert low <= high


@settings(deadline=None)
@given(st.floats(-1e6, 1e6) | st.sampled_from([1.7e308, -1.7e308]))
def test_the_label_of_a_bucket_holds_the_number(number: float) -> None:
    label = bucket_labels.number_label(int(encoding.number_words(np.array([[number]]))[0, 0]))
    low, high = (float(edge) for edge in label.strip("[]()").split(", "))
    assert (
        low * (1 - 1e-3 * np.sign(low)) - 1e-3 <= number <= high * (1 + 1e-3 * np.sign(high)) + 1e-3
    )


def test_whole_numbers_are_read_as_floats_and_texts_are_refused() -> None:
    texts = {"user_id": pa.array(["u"]), "ad_id": pa.array(["a"])}
    as_floats = encoding.slots(CONTRACT, texts | {"price": pa.array([7.0])})
    as_integers = encoding.slots(CONTRACT, texts | {"price": pa.array([7])})
    assert as_floats.tolist() == as_integers.tolist()
    with pytest.raises(TypeError, match=r"price is string; cast it to float64"):
        encoding.slots(CONTRACT, texts | {"price": pa.array(["7"])})


def test_a_column_left_out_is_an_error_and_not_a_null() -> None:
    """A forgotten column would look like a missing value, and skew every score."""
    with pytest.raises(KeyError, match="price"):
        encoding.slots(CONTRACT, {"user_id": pa.array(["u"]), "ad_id": pa.array(["a"])})
    for read in (encoding.read_requests, encoding.request_columns):
        with pytest.raises(KeyError, match="price"):
            read(CONTRACT, [{"user_id": "u", "ad_id": "a"}])
        with pytest.raises(TypeError, match="ad_id is 7; write it as text"):
            read(CONTRACT, [{"user_id": "u", "ad_id": 7, "price": 1.0}])


def test_columns_or_counts_of_another_length_are_refused() -> None:
    columns = {"user_id": pa.array(["u"]), "ad_id": pa.array(["a"]), "price": pa.array([1.0, 2.0])}
    with pytest.raises(ValueError, match="differ in length"):
        encoding.slots(CONTRACT, columns)
    columns |= {"price": pa.array([1.0])}
    for encode in (encoding.slots, encoding.dense):
        with pytest.raises(ValueError, match="these rows need"):
            encode(CONTRACT, columns, drawn_lookups(CONTRACT, 2, 0))
        with pytest.raises(ValueError, match="these rows need"):
            encode(WITH_VECTORS, columns, drawn_lookups(CONTRACT, 1, 0))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**9), min_size=2, max_size=2),
    st.lists(st.integers(0, 10**9), min_size=2, max_size=2),
    st.floats(1e-3, 1e6),
)
def test_rates_are_the_stated_formula_within_their_bounds(
    entity: list[int], everyone: list[int], strength: float
) -> None:
    (anchors, engagements), (all_anchors, all_engagements) = entity, everyone
    counts = np.array([[entity]])
    rate = encoding.smoothed_rates(counts, np.array([everyone]), strength)[0, 0, 0]
    prior = min(max((all_engagements + 1) / (all_anchors + 100), 1e-6), 1 - 1e-6)
    stated = (engagements + strength * prior) / (anchors + strength)
    assert rate == min(max(stated, 1e-6), 1 - 1e-6)
    contract = replace(
        CONTRACT,
        entities=("user_id",),
        goals=(RateGoal("click", "impression"),),
        rate_strength=strength,
    )
    columns = {"user_id": pa.array(["u"]), "ad_id": pa.array(["a"]), "price": pa.array([1.0])}
    held = LookedUp.counted(contract, counts, np.array([everyone]))
    _, logit, log_count = encoding.dense(contract, columns, held)[0]
    assert math.isclose(logit, math.log(rate / (1 - rate)), rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(log_count, math.log1p(anchors), rel_tol=1e-12)
    rate_slot, count_slot = encoding.slots(contract, columns, held)[0, -2:]
    for slot, feature, words in (
        (rate_slot, "user_id.click.rate", bucket_labels.rate_words()),
        (count_slot, "user_id.click.anchors", bucket_labels.anchor_words()),
    ):
        listed = hashing.hash_words(
            np.array(list(words)).reshape(-1, 1), np.array([hashing.seed_of(feature)], np.uint64)
        )
        assert slot in hashing.slot_of(listed, contract.bits)


def test_a_contract_survives_json_exactly() -> None:
    dataset = tiny_dataset(numeric=("price", "preis_\u00fc"))
    contract = FeatureContract.from_dataset(dataset)
    again = FeatureContract.from_json(contract.to_json())
    assert again == contract
    assert again.to_json() == contract.to_json()
    assert again.digest == contract.digest
    assert contract.digest != CONTRACT.digest


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"bits": None}, {"colour": "blue"}], ids=["format", "less", "more"]
)
def test_json_that_is_no_contract_of_this_code_is_refused(change: dict[str, object]) -> None:
    fields = json.loads(CONTRACT.to_json()) | change
    text = json.dumps({name: value for name, value in fields.items() if value is not None})
    with pytest.raises(ValueError, match="contract"):
        FeatureContract.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categorical": ("user_id", "user_id")}, "named twice: user_id"),
        ({"numeric": ("ad_id",), "categorical": ("user_id",)}, "categorical or numeric, not both"),
        ({"goals": (RateGoal("click", "view"),)}, "unknown 'view'"),
    ],
)
def test_a_contract_that_cannot_be_encoded_is_refused(
    change: dict[str, tuple[object, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONTRACT, **change)


def test_a_contract_without_entities_numbers_or_crosses_encodes() -> None:
    dataset = tiny_dataset().model_copy(
        update={
            "entities": (),
            "features": Features(categorical=("user_id",)),
            "goals": (CLICK,),
        }
    )
    contract = FeatureContract.from_dataset(dataset)
    columns = {"user_id": pa.array(["u", None])}
    assert encoding.slots(contract, columns).shape == (2, 2)
    assert encoding.dense(contract, columns).shape == (2, 0)
    assert encoding.entity_hashes(contract, columns).shape == (2, 0)


def test_a_fresh_process_encodes_a_request_without_pandas_duckdb_or_dagster() -> None:
    code = (
        "import sys; from ad_pipeline.features import encoding, rates;"
        "c = encoding.FeatureContract.from_json(sys.argv[1]);"
        "q = {'user_id': 'u', 'ad_id': None, 'price': 2.5};"
        "read = encoding.read_requests(c, [q]);"
        "s = rates.RateSnapshot.empty(c, 0);"
        "held = rates.counts_of(c, s, encoding.entity_hashes(c, read));"
        "print(encoding.slots(c, read, held).tolist());"
        "encoding.slots(c, encoding.request_columns(c, [q]), held);"
        "encoding.dense(c, read, held);"
        "sys.exit(', '.join({'pandas', 'duckdb', 'dagster'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CONTRACT.to_json()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    columns = {
        "user_id": pa.array(["u"]),
        "ad_id": pa.array([None], pa.string()),
        "price": pa.array([2.5]),
    }
    assert json.loads(done.stdout) == encoding.slots(CONTRACT, columns).tolist()
