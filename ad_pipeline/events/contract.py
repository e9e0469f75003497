"""The tables of the room ``events``: what their columns mean, their keys and their clocks.

Declarations only, so that the warehouse, the assets and people read one description. Which columns
a dataset file may map stands in ``ad_pipeline.datasets``; how rows get here in ``ingest.py``.
"""

from ad_pipeline.datasets import CONTRACT, Dataset
from ad_pipeline.warehouse import Column, Table

_CLOCKS = (
    Column("occurred_us", "BIGINT", "When it happened, microseconds since the epoch, UTC."),
    Column(
        "received_us",
        "BIGINT",
        "When our log had it, microseconds: its hour is the log hour. A row of a late file counts "
        "as received when the first hour still open began, an engagement not before its "
        "impression.",
    ),
    Column("logged_us", "BIGINT", "received_us as the log file said it, microseconds."),
)

_READ_US = Column(
    "read_us",
    "BIGINT",
    "When our log had the row itself, microseconds: received_us without waiting for an impression.",
)

_CONTENT_MD5 = Column(
    "content_md5", "VARCHAR", "MD5 of the row's contract columns without the time of receipt."
)


def _table(name: str, description: str, meanings: dict[str, str], *extra: Column) -> Table:
    types = CONTRACT[name]
    return Table(
        name=f"events.{name}",
        columns=tuple(
            Column(column, types[column], meaning) for column, meaning in meanings.items()
        )
        + _CLOCKS
        + extra,
        key=(next(iter(meanings)),),
        clock="received_us",
        description=description,
    )


IMPRESSIONS = _table(
    "impressions",
    "One row per impression shown, with the features as they were when it was served.",
    {
        "impression_id": "Key.",
        "request_id": "Ad request that the impression answered.",
        "user_id": "Who saw it.",
        "ad_id": "What was shown.",
        "campaign_id": "Campaign of the ad.",
        "advertiser_id": "Who pays.",
        "arm": "Experiment arm or logging policy that decided.",
        "propensity": "Probability with which the policy chose this ad, in (0, 1].",
        "bid_price": "Bid, micro-currency.",
        "paid_price": "Price paid, micro-currency.",
    },
)

ENGAGEMENTS = _table(
    "engagements",
    "One row per click, install, purchase or other goal event on a known impression.",
    {
        "event_id": "Key.",
        "impression_id": "Impression it is about.",
        "goal": "Which goal of the dataset file.",
        "value": "What it is worth, micro-currency.",
    },
    _READ_US,
)

RETRACTIONS = _table(
    "retractions",
    "One row per engagement taken back.",
    {
        "event_id": "Key: the retraction's own id.",
        "engagement_event_id": "Engagement that no longer counts.",
        "reason": "Why, as in refund or fraud.",
    },
)

DECISIONS = _table(
    "decisions",
    "The serving log: one row per request scored, written by whoever serves.",
    {
        "request_id": "Key.",
        "impression_id": "Impression it led to, if any.",
        "bundle_hash": "Bundle that scored.",
        "snapshot_hash": "Rate snapshot that was read.",
        "features": "JSON: feature name to value as used.",
        "ages_us": "JSON: feature name to its age when used, microseconds.",
        "scores": "JSON: goal to probability.",
        "fallbacks": "JSON list: what was missing and replaced.",
    },
)

AUCTIONS = _table(
    "auctions",
    "One row per auction entered.",
    {
        "request_id": "Key.",
        "bid_price": "Bid, micro-currency.",
        "won": "Whether it won.",
        "clearing_price": "Price it cleared at, micro-currency; null when lost.",
    },
)

CAMPAIGN_KPIS = _table(
    "campaign_kpis",
    "One row per reported figure of a campaign.",
    {
        "event_id": "Key.",
        "campaign_id": "Campaign.",
        "metric": "Name of the figure.",
        "value": "The figure, in the metric's own unit.",
    },
)

SURVEY_ANSWERS = _table(
    "survey_answers",
    "One row per answer to a survey question.",
    {
        "event_id": "Key.",
        "user_id": "Who answered.",
        "question": "What was asked.",
        "answer": "The answer as text.",
        "score": "The answer as a number, if it is one.",
    },
)

USER_ACTIVITIES = _table(
    "user_activities",
    "One row per thing a user did outside ads.",
    {
        "event_id": "Key.",
        "user_id": "Who.",
        "modality": "Kind of activity.",
        "content_id": "What it was done with.",
    },
)

LOG_TABLES = (
    IMPRESSIONS,
    ENGAGEMENTS,
    RETRACTIONS,
    DECISIONS,
    AUCTIONS,
    CAMPAIGN_KPIS,
    SURVEY_ANSWERS,
    USER_ACTIVITIES,
)
"""Tables that are read from log files."""

FILES = Table(
    name="events.files",
    columns=(
        Column("table_name", "VARCHAR", "Table that the file feeds, without its schema."),
        Column("source", "INTEGER", "Place of the source among the table's, from 0."),
        Column(
            "path", "VARCHAR", "Relative to the dataset file, or {home}/ and relative to the home."
        ),
        Column("sha256", "VARCHAR", "Of the file's bytes, hexadecimal."),
        Column("bytes", "BIGINT", "Size of the file."),
        Column(
            "sealed_until_us",
            "BIGINT",
            "End of the last hour that was sealed when the file appeared, microseconds; 0 if none.",
        ),
        Column("rows", "BIGINT", "Rows of the source, unreadable ones included."),
        Column(
            "rows_before_start", "BIGINT", "Rows received before the dataset's start: left out."
        ),
        Column("rows_without_clock", "BIGINT", "Rows without a readable time of receipt."),
        Column("first_received_us", "BIGINT", "Earliest receipt after the start; null if none."),
        Column("last_received_us", "BIGINT", "Latest receipt, microseconds; null if none."),
        Column(
            "last_sound_us",
            "BIGINT",
            "Latest receipt among rows whose two clocks keep the contract, microseconds: what the "
            "watermark goes by, so that one wrong clock does not declare the log complete.",
        ),
    ),
    key=("table_name", "source", "path"),
    clock=None,
    description="The file ledger: each log file once, and up to where the log was sealed by then.",
)

HELD_ENGAGEMENTS = Table(
    name="events.held_engagements",
    columns=(
        *(c for c in ENGAGEMENTS.columns if c.name != "read_us"),
        Column(
            "due_us",
            "BIGINT",
            "When it is quarantined as an orphan unless its impression has come, microseconds.",
        ),
        Column("file", "VARCHAR", "Log file, as named in events.files."),
        _CONTENT_MD5,
    ),
    key=("event_id", "received_us"),
    clock="received_us",
    description="Engagements that ended the hour they were read in without their impression. Never "
    "rewritten: one is held until its impression is received, or until due_us.",
)

QUARANTINE = Table(
    name="events.quarantine",
    columns=(
        Column("table_name", "VARCHAR", "Table the row was meant for."),
        Column("key", "VARCHAR", "The row's key, if it has one."),
        Column("reason", "VARCHAR", "Which rule of the contract it breaks."),
        Column(
            "row_json",
            "VARCHAR",
            "The row as JSON: as in the file, or as mapped if its impression was sought.",
        ),
        Column("file", "VARCHAR", "Log file, as named in events.files."),
        Column("occurred_us", "BIGINT", "When it happened, microseconds, if readable."),
        Column("received_us", "BIGINT", "When it was quarantined, microseconds."),
        Column("logged_us", "BIGINT", "Receipt as the file said it, microseconds, if readable."),
        Column("read_us", "BIGINT", "When our log had the row, microseconds."),
        Column(
            "content_md5",
            "VARCHAR",
            "As in events.duplicates; null for a row refused before duplicates were sought.",
        ),
        Column("copy", "BIGINT", "Place among rows that are equal in every other column, from 1."),
    ),
    key=("table_name", "file", "row_json", "reason", "received_us", "read_us", "copy"),
    clock="received_us",
    description="Rows that break the contract, with the reason.",
)

DUPLICATES = Table(
    name="events.duplicates",
    columns=(
        Column("table_name", "VARCHAR", "Table the row was meant for."),
        Column("key", "VARCHAR", "The key it shares with an earlier row."),
        Column("received_us", "BIGINT", "When our log had this copy, microseconds."),
        Column("logged_us", "BIGINT", "Receipt as the file said it, microseconds."),
        Column("since_us", "BIGINT", "When our log had the copy before, microseconds."),
        Column("same_content", "BOOLEAN", "Whether both copies agree in every contract column."),
        _CONTENT_MD5,
        Column("copy", "BIGINT", "Place among the copies received in the same moment, from 1."),
    ),
    key=("table_name", "key", "received_us", "copy"),
    clock="received_us",
    description="Rows dropped because one with the same key came at most a horizon (the longest "
    "window + lateness) before.",
)

ACCOUNTING = Table(
    name="events.accounting",
    columns=(
        Column("table_name", "VARCHAR", "Log table, without its schema."),
        Column("hour_us", "BIGINT", "Start of the log hour, microseconds. A row seals the hour."),
        Column("rows_in", "BIGINT", "Rows read from files in this hour."),
        Column("kept", "BIGINT", "Rows that entered the table in this hour."),
        Column("duplicates", "BIGINT", "Rows dropped as duplicates in this hour."),
        Column("held", "BIGINT", "Engagements still waiting for their impression at its end."),
        Column("released", "BIGINT", "Of the kept: engagements held in earlier hours."),
        Column("quarantined", "BIGINT", "Rows quarantined in this hour."),
        Column("late", "BIGINT", "Of the rows in: those whose own hour was sealed already."),
        Column(
            "outside_window",
            "BIGINT",
            "Of the kept: engagements later than the windows of their goal's chain allow.",
        ),
    ),
    key=("table_name", "hour_us"),
    clock="hour_us",
    description="Where every row went, by hour: held before + rows_in = kept + duplicates + "
    "quarantined + held after.",
)

FIXED_TABLES = (FILES, HELD_ENGAGEMENTS, QUARANTINE, DUPLICATES, ACCOUNTING)
"""Tables that follow from reading the log."""


def event_tables(dataset: Dataset) -> dict[str, Table]:
    """Return every table of the room by its short name.

    Parameters
    ----------
    dataset : Dataset
        Its feature columns are added to ``events.impressions``.

    Returns
    -------
    dict of str to Table
        ``impressions``, ``engagements``, ..., ``files``, ``held_engagements``, ``quarantine``,
        ``duplicates``, ``accounting``.
    """
    features = [
        Column(
            name,
            type_,
            "Feature as served." if type_ == "VARCHAR" else "Feature as served, a number.",
        )
        for name, type_ in dataset.feature_columns.items()
    ]
    tables = {table.name.removeprefix("events."): table for table in LOG_TABLES + FIXED_TABLES}
    tables["impressions"] = IMPRESSIONS.with_columns(*features)
    return tables
