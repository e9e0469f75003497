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

GRID_PREDICTIONS = Table(
    name="learners.grid_predictions",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("impression_id", "VARCHAR", "Impression."),
        Column(
            "logits",
            "DOUBLE[]",
            "Log odds of the goal under each configuration, given at serving time.",
        ),
        Column("model_hash", "VARCHAR", "Checkpoint that the scores continued from."),
        Column("micro_batch", "SMALLINT", "Slice of the hour whose predecessors had been learnt."),
        Column("serving_us", "BIGINT", "When our log received the impression."),
    ),
    key=("goal", "impression_id"),
    clock="serving_us",
    description=(
        "What every configuration of the online expert said of every impression, before it learnt "
        "from it. One row per goal and impression, written inside the online step; nothing "
        "rescores it later."
    ),
)

GRID_SELECTION = Table(
    name="learners.grid_selection",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("hour_us", "BIGINT", "Log hour after which was judged."),
        Column("configuration", "SMALLINT", "Place in the grid, from 0: the settings themselves."),
        Column("name", "VARCHAR", "What differs from the settings."),
        Column("chosen", "BOOLEAN", "Whether it serves from the next hour on."),
        Column("rows", "BIGINT", "Impressions that matured in the hour."),
        Column("positives", "BIGINT", "Of these, with the goal."),
        Column(
            "loss", "DOUBLE", "Sum of the log losses of its serving-time scores of these, nats."
        ),
        Column(
            "excess_losses",
            "DOUBLE[]",
            "The same less that of configuration 0, under each Poisson-weighted replicate, nats.",
        ),
        Column(
            "excess",
            "DOUBLE",
            "Mean loss above that of the configuration that served, over the hours looked back, "
            "nats; null before there is anything to compare.",
        ),
        Column("excess_low", "DOUBLE", "Lower end of its bootstrap interval."),
        Column("excess_high", "DOUBLE", "Upper end: below 0, it is better beyond doubt."),
        Column("reason", "VARCHAR", "Why it was chosen or not, for people."),
    ),
    key=("goal", "hour_us", "configuration"),
    clock="hour_us",
    description=(
        "How each configuration of the grid did on the labels that matured in an hour, and which "
        "serves next. One row per goal, hour and configuration."
    ),
)

ONLINE_PREDICTIONS = Table(
    name="learners.online_predictions",
    columns=_PREDICTION_COLUMNS,
    key=("goal", "impression_id"),
    clock="serving_us",
    description=(
        "What the online expert said of every impression, before it learnt from it: the score of "
        "the configuration that had been chosen by the hour before. One row per goal and "
        "impression; nothing rescores it later."
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

DEEP_PREDICTIONS = Table(
    name="learners.deep_predictions",
    columns=_PREDICTION_COLUMNS,
    key=("goal", "impression_id"),
    clock="serving_us",
    description=(
        "What the wide & deep expert said of every impression, by the model in force when it was "
        "served. One row per goal and impression; without settings.deep, and in hours before the "
        "first model, there is none."
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

DELAY_REFITS = Table(
    name="learners.delay_refits",
    columns=(
        Column("hour_us", "BIGINT", "Log hour after which the models of delay were fitted anew."),
        Column("cause", "VARCHAR", "Why, beyond the regular schedule: drift, or a person."),
        Column("evidence", "VARCHAR", "What the cause rests on, JSON."),
    ),
    key=("hour_us",),
    clock="hour_us",
    description=(
        "Fits of the models of delay that someone or something asked for, beyond the schedule. One "
        "row per log hour, mostly none. A re-run of the hour reads them here."
    ),
)

RATE_ORDERS = Table(
    name="learners.rate_orders",
    columns=(
        Column("hour_us", "BIGINT", "Log hour after which the online rate was raised."),
        Column("goals", "VARCHAR", "Whose, comma-separated."),
        Column("doublings", "SMALLINT", "By which it was raised."),
        Column("cause", "VARCHAR", "Why: drift, or a person."),
        Column("evidence", "VARCHAR", "What the cause rests on, JSON."),
    ),
    key=("hour_us",),
    clock="hour_us",
    description=(
        "Orders to raise the online learner's rate, from outside its own rate control. One row per "
        "log hour, mostly none; the next hour begins with the raised rate. A re-run reads them "
        "here. Only under settings.online.rate_control, which lets the rate fall again."
    ),
)

RATE_MOVES = Table(
    name="learners.rate_moves",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("hour_us", "BIGINT", "Log hour in which the rate was moved."),
        Column("micro_batch", "SMALLINT", "Slice of the hour after which it was moved."),
        Column("configuration", "SMALLINT", "Place in the grid, from 0."),
        Column("move", "VARCHAR", "raise, slow, freeze or thaw; order: raised from outside."),
        Column("doublings", "SMALLINT", "By which the rate was raised."),
        Column("evidence", "VARCHAR", "What the move rests on, JSON: losses and surprise."),
    ),
    key=("goal", "hour_us", "micro_batch", "configuration", "move"),
    clock="hour_us",
    description=(
        "What the rate control did to the online learner, and why. One row per move, mostly none; "
        "none at all without settings.online.rate_control."
    ),
)

HOUR_GUARDS = Table(
    name="learners.hour_guards",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("hour_us", "BIGINT", "Log hour that was judged."),
        Column(
            "state",
            "VARCHAR",
            "passed, tripped, warming_up or too_few; left_out or accepted after somebody decided.",
        ),
        Column("reason", "VARCHAR", "With its figures, for people."),
        Column("examples", "BIGINT", "Of the hour, with a weight above 0."),
        Column("loss", "DOUBLE", "Log loss of the model as it began the hour, nats."),
        Column("expected_loss", "DOUBLE", "What that model expected of it, nats."),
        Column("surprise", "DOUBLE", "Standard deviations between the two."),
        Column("observed", "DOUBLE", "Weighted positives among the sampled examples."),
        Column("expected", "DOUBLE", "Sum of the model's probabilities of the same."),
        Column("miscalibration", "DOUBLE", "Standard deviations between the two."),
        Column("largest_logit", "DOUBLE", "Of a sampled example, absolute."),
        Column("largest_weight", "DOUBLE", "Of the model after the hour, absolute."),
    ),
    key=("goal", "hour_us"),
    clock="hour_us",
    description=(
        "What the guard of the online model saw of each hour's labels before they were learnt, and "
        "its verdict. One row per goal and hour, written inside the online step."
    ),
)

QUARANTINED_HOURS = Table(
    name="learners.quarantined_hours",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("hour_us", "BIGINT", "Log hour that somebody decided about."),
        Column(
            "state",
            "VARCHAR",
            "left_out: scored, its examples not learnt. accepted: learnt, whatever the guard says.",
        ),
        Column(
            "cause", "VARCHAR", "Who decided: guard, label quality, or a person in their own words."
        ),
        Column("evidence", "VARCHAR", "What the decision rests on, JSON."),
    ),
    key=("goal", "hour_us"),
    clock="hour_us",
    description=(
        "Hours whose examples the online model leaves out, and those it learns although its guard "
        "tripped. One row per goal and hour, mostly none. A re-run of the hour reads them here, so "
        "that it leaves out the same and gives the same model."
    ),
)

QUARANTINED_SLICES = Table(
    name="learners.quarantined_slices",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("hour_us", "BIGINT", "Log hour whose examples are concerned."),
        Column("slice_of", "VARCHAR", "Column of events.impressions."),
        Column("part", "VARCHAR", "Its value whose examples are left out."),
        Column("verdict", "VARCHAR", "What their labels were: stalled, jumped or late."),
        Column("reason", "VARCHAR", "With its figures, for people."),
    ),
    key=("goal", "hour_us", "slice_of", "part"),
    clock="hour_us",
    description=(
        "Parts of an hour that no learner is shown, such as one advertiser's examples; the others "
        "are learnt. One row per goal, hour and part, mostly none, and none at all unless "
        "settings.label_quality acts. An hour that somebody accepted is learnt with all its parts."
    ),
)

RECOVERIES = Table(
    name="learners.recoveries",
    columns=(
        Column("goal", "VARCHAR", "Goal."),
        Column("hour_us", "BIGINT", "Log hour that was decided about."),
        Column("cause", "VARCHAR", "Why the model was rolled back."),
        Column("rolled_back_to", "VARCHAR", "Last good checkpoint; empty for the log's start."),
        Column("start_us", "BIGINT", "First hour to run again."),
        Column("end_us", "BIGINT", "End of the last one."),
        Column("recovered_as", "VARCHAR", "Newest checkpoint after the replay; null until then."),
        Column("replayed_hours", "BIGINT", "Hours run again."),
        Column("left_out_examples", "BIGINT", "Examples that the model no longer knows."),
        Column("succeeded", "BOOLEAN", "Every hour is there again, and no guard trips."),
        Column("outcome", "VARCHAR", "For people."),
        Column("seconds", "DOUBLE", "From the decision to the newest checkpoint, measured."),
    ),
    key=("goal", "hour_us"),
    clock="hour_us",
    description=(
        "Roll-backs of the online model and the replays after them. One row per goal and hour that "
        "was decided about; a later recovery of the same hour replaces it."
    ),
)

TABLES = (
    GRID_PREDICTIONS,
    GRID_SELECTION,
    RATE_MOVES,
    ONLINE_PREDICTIONS,
    BATCH_PREDICTIONS,
    DEEP_PREDICTIONS,
    RETRAINS,
    DELAY_REFITS,
    RATE_ORDERS,
    HOUR_GUARDS,
    QUARANTINED_HOURS,
    QUARANTINED_SLICES,
    RECOVERIES,
)
