"""The words for a row's tokens are those of the inverse dictionary, slot for slot."""

from dataclasses import replace

from hypothesis import given, settings

from ad_pipeline.features import dictionary, encoding
from ad_pipeline.features.encoding import FeatureContract, VectorFeatures
from ad_pipeline.features.token_values import token_values
from ad_pipeline_tests.features.logs import (
    START_US,
    Log,
    column_table,
    drawn_lookups,
    logs,
    tiny_dataset,
)


@settings(deadline=None, max_examples=15)
@given(logs())
def test_every_token_is_called_what_the_dictionary_calls_it(log: Log) -> None:
    contract = replace(FeatureContract.from_dataset(tiny_dataset()), vectors=VectorFeatures(3, 1))
    columns = column_table(log)
    counts = drawn_lookups(contract, len(log.impressions), len(log.impressions))
    standing = dictionary.standing_tokens(contract, START_US).drop_columns("first_hour_us")
    named = {
        tuple(row.values())
        for table in (dictionary.new_tokens(contract, columns), standing)
        for row in table.to_pylist()
    }
    slots = encoding.slots(contract, columns, counts)
    found = token_values(contract, {name: columns[name] for name in contract.columns}, counts)
    assert len(found) == len(log.impressions)
    for row, values in enumerate(found):
        for slot, feature, value in zip(
            slots[row].tolist(), contract.token_names, values, strict=True
        ):
            assert (slot, feature, value) in named
