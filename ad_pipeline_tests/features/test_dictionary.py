"""Every slot that the learner gets can be read back, and what shares a slot is shown."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.features import dictionary, encoding
from ad_pipeline.features.encoding import FeatureContract, VectorFeatures
from ad_pipeline.features.tables import INVERSE_DICTIONARY
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.features.logs import (
    HOURS,
    START_US,
    Impression,
    Log,
    column_table,
    drawn_lookups,
    logs,
    tiny_dataset,
    warehouse_of,
)

END_US = START_US + HOURS * HOUR_US


def rows_of(warehouse: Warehouse) -> list[tuple[int, str, str, int]]:
    with warehouse.reader() as connection:
        return connection.execute(
            "SELECT slot, feature, value, first_hour_us FROM features.inverse_dictionary "
            "ORDER BY ALL"
        ).fetchall()


@settings(deadline=None, max_examples=15)
@given(logs())
def test_every_slot_of_an_encoded_row_is_named_under_its_feature(log: Log) -> None:
    contract = replace(FeatureContract.from_dataset(tiny_dataset()), vectors=VectorFeatures(3, 1))
    columns = column_table(log)
    counts = drawn_lookups(contract, len(log.impressions), len(log.impressions))
    tokens = dictionary.new_tokens(contract, columns)
    standing = dictionary.standing_tokens(contract, START_US)
    named = {
        (slot, feature)
        for table in (tokens, standing)
        for slot, feature in zip(
            table["slot"].to_pylist(), table["feature"].to_pylist(), strict=True
        )
    }
    slots = encoding.slots(contract, columns, counts)
    for j, feature in enumerate(contract.token_names):
        for slot in slots[:, j].tolist():
            assert (slot, feature) in named


def test_tokens_are_unique_and_readable() -> None:
    contract = FeatureContract.from_dataset(tiny_dataset())
    columns = {
        "user_id": pa.array(["u", None, "u"]).dictionary_encode(),
        "ad_id": pa.array(["a", "b", "a"]),
        "price": pa.array([1.0, None, 1.1]),
    }
    tokens = dictionary.new_tokens(contract, columns)
    assert tokens.column_names == ["slot", "feature", "value"]
    assert tokens.schema.field("slot").type == pa.uint32()
    found = [(row["feature"], row["value"]) for row in tokens.to_pylist()]
    assert found == [
        ("user_id", "u"),
        ("user_id", "(missing)"),
        ("ad_id", "a"),
        ("ad_id", "b"),
        ("price", "[1, 1.378)"),
        ("price", "(missing)"),
        ("user_id\u00d7ad_id", "u\u00d7a"),
        ("user_id\u00d7ad_id", "(missing)\u00d7b"),
    ]


@settings(deadline=None, max_examples=8)
@given(
    logs(),
    st.permutations([(0, 3), (3, 4), (4, HOURS)]),
    st.sampled_from([(0, 3), (3, 4), (4, HOURS), (0, HOURS)]),
    st.sampled_from([1, 3, HOURS]),
)
def test_any_order_of_ranges_and_any_rerun_write_the_same_dictionary(
    log: Log, order: list[tuple[int, int]], again: tuple[int, int], chunk_hours: int
) -> None:
    dataset = tiny_dataset()
    contract = FeatureContract.from_dataset(dataset)
    with tempfile.TemporaryDirectory() as folder:
        warehouse = warehouse_of(Path(folder), log)
        warehouse.create([INVERSE_DICTIONARY])
        dictionary.write_dictionary(warehouse, contract, dataset, START_US, END_US)
        expected = rows_of(warehouse)
        with warehouse.writer() as connection:
            connection.execute("DELETE FROM features.inverse_dictionary")
        for first, last in (*order, again):
            dictionary.write_dictionary(
                warehouse,
                contract,
                dataset,
                START_US + first * HOUR_US,
                START_US + last * HOUR_US,
                chunk_hours=chunk_hours,
            )
        assert rows_of(warehouse) == expected
        users = {value: hour for _, feature, value, hour in expected if feature == "user_id"}
        for row in log.impressions:
            seen = [hour_of(r.received_us) for r in log.impressions if r.user == row.user]
            assert users["(missing)" if row.user is None else row.user] == min(seen)


def test_new_tokens_are_counted_by_hour_and_an_hour_without_any_says_zero(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    contract = FeatureContract.from_dataset(dataset)
    later = START_US + 2 * HOUR_US
    log = Log((Impression(START_US, "u", "a"), Impression(later, "u", "b")), ())
    warehouse = warehouse_of(tmp_path, log)
    warehouse.create([INVERSE_DICTIONARY])
    counted = dictionary.write_dictionary(warehouse, contract, dataset, START_US, END_US)
    standing = dictionary.standing_tokens(contract, START_US).num_rows
    assert counted[START_US] == standing + 4
    assert counted[START_US + HOUR_US] == 0
    assert counted[later] == 2
    assert len(counted) == HOURS


def test_collisions_are_listed_when_there_are_few_slots_and_none_are_invented(
    tmp_path: Path,
) -> None:
    log = Log(tuple(Impression(START_US, f"u{k}", f"a{k}") for k in range(40)), ())
    for bits in (4, 28):
        dataset = tiny_dataset()
        contract = replace(FeatureContract.from_dataset(dataset), bits=bits)
        folder = tmp_path / str(bits)
        folder.mkdir()
        warehouse = warehouse_of(folder, log)
        warehouse.create([INVERSE_DICTIONARY])
        dictionary.write_dictionary(warehouse, contract, dataset, START_US, END_US)
        by_slot: dict[int, set[str]] = {}
        for slot, feature, value, _ in rows_of(warehouse):
            by_slot.setdefault(slot, set()).add(f"{feature}={value}")
        with warehouse.reader() as connection:
            listed = dictionary.collisions(connection).to_pylist()
        assert {row["slot"]: set(row["meanings"]) for row in listed} == {
            slot: meanings for slot, meanings in by_slot.items() if len(meanings) > 1
        }
        assert all(row["tokens"] == len(row["meanings"]) for row in listed)
        if bits == 4:
            assert len(listed) == 16
            assert sum(row["tokens"] for row in listed) == len(rows_of(warehouse))


def test_everything_in_the_slots_asked_for_is_listed_up_to_the_hour_asked_for(
    tmp_path: Path,
) -> None:
    later = START_US + 2 * HOUR_US
    early = tuple(Impression(START_US, f"u{k}", f"a{k}") for k in range(20))
    log = Log((*early, Impression(later, "late", "a0")), ())
    dataset = tiny_dataset()
    contract = replace(FeatureContract.from_dataset(dataset), bits=5)
    warehouse = warehouse_of(tmp_path, log)
    warehouse.create([INVERSE_DICTIONARY])
    dictionary.write_dictionary(warehouse, contract, dataset, START_US, END_US)
    written = rows_of(warehouse)
    asked = np.array([3, 7, 30], np.uint32)
    for end_us in (later, END_US):
        expected = [row[:3] for row in written if row[0] in asked and row[3] < end_us]
        found = dictionary.tokens_of_slots(warehouse, end_us, asked)
        assert [tuple(row.values()) for row in found.to_pylist()] == expected
        assert found.schema.field("slot").type == pa.uint32()
    slot = next(row[0] for row in written if row[2] == "late")
    at = np.array([slot], np.uint32)
    before, after = (dictionary.tokens_of_slots(warehouse, us, at) for us in (later, END_US))
    assert "late" in after["value"].to_pylist()
    assert "late" not in before["value"].to_pylist()
    assert not dictionary.tokens_of_slots(warehouse, END_US, at[:0]).num_rows
