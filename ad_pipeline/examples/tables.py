"""The tables of the room ``examples``: their columns, keys and clocks.

The SELECTs that fill them are ``dbt_like_sql/examples/<table>.sql``; who runs those, and in which
order, is ``ad_pipeline.examples.label_join``.
"""

from ad_pipeline.warehouse import Column, Table

_GOAL = Column("goal", "VARCHAR", "Goal of the dataset file that the row belongs to.")
_IMPRESSION_ID = Column("impression_id", "VARCHAR", "Impression that the goal may follow from.")
_SERVING_US = Column("serving_us", "BIGINT", "When our log had the impression (its received_us).")

TRAINING_EXAMPLES = Table(
    name="examples.training_examples",
    columns=(
        _GOAL,
        _IMPRESSION_ID,
        Column(
            "kind",
            "VARCHAR",
            "immediate_positive, negative, delayed_positive, matched_negative, confirmed_positive, "
            "confirmed_negative or retraction.",
        ),
        Column("label", "TINYINT", "1 for positives, 0 for negatives and retractions."),
        Column(
            "wait_us",
            "BIGINT",
            "Observation window of the stream that the row belongs to, microseconds; of confirmed "
            "rows the whole horizon.",
        ),
        Column(
            "source_event_id",
            "VARCHAR",
            "Engagement that the row is about; '' for negatives.",
        ),
        Column(
            "anchor_us",
            "BIGINT",
            "When the anchor (impression, or the parent goal's engagement) occurred.",
        ),
        Column(
            "arrived_us",
            "BIGINT",
            "When our log had the engagement that the row is about; NULL for negatives.",
        ),
        Column("emit_us", "BIGINT", "From when on a learner may see the row."),
        _SERVING_US,
        Column(
            "weight",
            "DOUBLE",
            "How many rows this one stands for: the inverse of the share of negatives kept, else "
            "1.",
        ),
    ),
    key=("impression_id", "goal", "kind", "wait_us", "source_event_id"),
    clock="emit_us",
    description=(
        "What a learner that runs alongside the stream may see, and when. One row per goal, "
        "impression, kind, wait and source event, by hour of emission: the rows of every strategy "
        "that a learner asks for. Of each wait, every anchor has exactly one first emission "
        "(immediate_positive or negative), which is missing if it is a negative of a request that "
        "was not drawn."
    ),
)

LABELLED_IMPRESSIONS = Table(
    name="examples.labelled_impressions",
    columns=(
        _GOAL,
        _IMPRESSION_ID,
        Column(
            "anchor_us",
            "BIGINT",
            "When the anchor (impression, or the parent goal's first counted engagement) occurred.",
        ),
        Column(
            "matured_us",
            "BIGINT",
            "When the label became final: anchor + window + lateness, or when our log had the "
            "anchor if that was later.",
        ),
        Column("label", "TINYINT", "Final label: 1 if a counted engagement stood at maturity."),
        Column(
            "delay_us",
            "BIGINT",
            "From the anchor to the first counted engagement, microseconds; NULL if negative.",
        ),
        Column(
            "engagements",
            "BIGINT",
            "Counted engagements; at most 1 for a goal that counts the first only.",
        ),
        Column(
            "engagement_event_id",
            "VARCHAR",
            "First counted engagement (by occurred_us, then event_id); NULL if negative.",
        ),
        Column("engaged_us", "BIGINT", "When that engagement occurred; NULL if negative."),
        Column(
            "arrived_us",
            "BIGINT",
            "When our log had the first of the counted engagements; NULL if negative.",
        ),
        _SERVING_US,
        Column("serving_hour_us", "BIGINT", "Start of the log hour that holds serving_us."),
    ),
    key=("goal", "impression_id"),
    clock="matured_us",
    description=(
        "What each label turned out to be. One row per goal and anchor, written once in the hour "
        "in which window and lateness had passed. Later retractions are states, not rewrites."
    ),
)

LABEL_STATES = Table(
    name="examples.label_states",
    columns=(
        _GOAL,
        _IMPRESSION_ID,
        Column(
            "state",
            "VARCHAR",
            "pending, provisional_negative, immediate_positive, delayed_positive, "
            "matured_negative, matured_positive or retracted.",
        ),
        Column("state_us", "BIGINT", "From when on the state holds."),
        Column(
            "source_event_id",
            "VARCHAR",
            "Engagement that made the state; '' where none did.",
        ),
        Column("anchor_us", "BIGINT", "When the anchor of the state's label occurred."),
        _SERVING_US,
    ),
    key=("goal", "impression_id", "state", "source_event_id"),
    clock="state_us",
    description=(
        "Append-only history of each label: pending, provisional negative or immediate positive, "
        "delayed positive, matured, retracted. Of every anchor, also those whose negatives no "
        "learner is shown."
    ),
)

LABEL_DELAYS = Table(
    name="examples.label_delays",
    columns=(
        _GOAL,
        Column("fitted_us", "BIGINT", "From when on the fit is in force, until the next one."),
        Column(
            "delay_group", "VARCHAR", "Campaign, or what settings.delays.group_by says; '': all."
        ),
        Column("place", "SMALLINT", "Of the quantile (place + 1/2) / 256, from 0."),
        Column("delay_us", "BIGINT", "From the anchor to the label's arrival, microseconds."),
        Column("positives", "BIGINT", "That the distribution was read off."),
    ),
    key=("goal", "fitted_us", "delay_group", "place"),
    clock="fitted_us",
    description=(
        "How long labels take: the distribution of the delays of matured positives, of all and by "
        "group. 256 rows per goal, fit and group, every settings.delays.refit_every_hours. Matched "
        "negatives are emitted after a delay drawn from it."
    ),
)

TABLES = (LABELLED_IMPRESSIONS, LABEL_DELAYS, TRAINING_EXAMPLES, LABEL_STATES)
"""In the order in which an hour is computed: the states are read off the first two."""
