"""The tables of the room ``features``: their columns, keys and clocks.

Rate snapshots are no table but checkpoints (:mod:`ad_pipeline.features.rates`). Who fills the
dictionary is :mod:`ad_pipeline.features.dictionary`.
"""

from ad_pipeline.warehouse import Column, Table

INVERSE_DICTIONARY = Table(
    name="features.inverse_dictionary",
    columns=(
        Column("slot", "UINTEGER", "Slot of the linear learner's weights, in [0, 2^bits)."),
        Column("feature", "VARCHAR", "Feature of the contract; a cross names both columns."),
        Column(
            "value",
            "VARCHAR",
            "Value, bucket of a number or rate, or both values of a cross; (missing) for a null.",
        ),
        Column("first_hour_us", "BIGINT", "Log hour in which the value was first seen."),
    ),
    key=("slot", "feature", "value"),
    clock="first_hour_us",
    description=(
        "What each slot of the hashed linear learner stands for: every value seen so far, by the "
        "hour of its first appearance. Two rows of one slot are a collision. Buckets of rates are "
        "listed in the dataset's first hour, seen or not."
    ),
)

TABLES = (INVERSE_DICTIONARY,)
