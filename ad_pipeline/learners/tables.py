"""The tables of this room: what each expert said at serving time, and why batch models changed.

Only definitions. Model state is no table: it lives in checkpoints, named here by their digests.
"""

from ad_pipeline.warehouse import Column, Table

_PREDICTION_COLUMNS = (
    Column("goal", "VARCHAR", "Goal."),
    Column("impression_id", "VARCHAR", "Impression."),
    Column("expert", "VARCHAR", "Who said it: online or batch."),
    Column("logit", "DOUBLE", "Log odds of the goal, given at serving time, before mixing."),
    Column("model_hash", "VARCHAR", "Checkpoint that the score came from or continued from."),
    Column(
        "micro_batch",
        "SMALLINT",
        "Slice of the hour whose predecessors had been learnt; 0 for batch.",
    ),
    Column("serving_us", "BIGINT", "When our log received the impression."),
)

ONLINE_PREDICTIONS = Table(
    name="learners.online_predictions",
    columns=_PREDICTION_COLUMNS,
    key=("goal", "impression_id"),
    clock="serving_us",
    description=(
        "What the online expert said of every impression, before it learnt from it. One row per "
        "goal and impression, written inside the online step; nothing rescores it later."
    ),
)

BATCH_PREDICTIONS = Table(
    name="learners.batch_predictions",
    columns=_PREDICTION_COLUMNS,
    key=("goal", "impression_id"),
    clock="serving_us",
    description=(
        "What the LightGBM expert said of every impression, by the model in force when it was "
        "served. One row per goal and impression; hours before the first model have none."
    ),
)

RETRAINS = Table(
    name="learners.retrains",
    columns=(
        Column("hour_us", "BIGINT", "Log hour after which the batch model was trained anew."),
        Column("cause", "VARCHAR", "Why, beyond the regular schedule: drift, or a person."),
        Column("evidence", "VARCHAR", "What the cause rests on, JSON."),
    ),
    key=("hour_us",),
    clock="hour_us",
    description=(
        "Retrains of LightGBM that someone or something asked for, beyond the schedule. One row "
        "per log hour, mostly none. A re-run of the hour reads them here, so that it trains again "
        "and gives the same model."
    ),
)

TABLES = (ONLINE_PREDICTIONS, BATCH_PREDICTIONS, RETRAINS)
