"""The clicks of a published conversion log, read off its files without an ingest, and as slots.

The published protocols are run on whole public logs by people who want a figure, not a deployment:
here the files that a dataset file names become arrays by one SELECT, with the reader and the
mapping of the ingest. Numbers are cut into bins as the public code of ES-DFM cuts them, because one
of its defects lies there. Which clicks are learnt and judged, and when, is :mod:`.protocols`.

References
----------
Yang et al., ES-DFM, AAAI 2021, and its public code (ThyrixYang/es_dfm, src/data.py, src/models.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.datasets import Dataset, Deployment, Goal, Source
from ad_pipeline.events.contract import event_tables
from ad_pipeline.events.readers import LATEST_CLOCK_US, LogFile, land
from ad_pipeline.examples.subsampling import kept_below
from ad_pipeline.hashing import hash_strings, hash_words, seed_of, slot_of
from ad_pipeline.monitoring.late_labels.stream import UNKNOWN
from ad_pipeline.warehouse import one_row, rows_of, select

PURPOSE = "monitoring.published_protocol"

TABLES = ("impressions", "engagements", "retractions")

BINS = (64, 16, 128, 64, 128, 64, 512, 512)
"""Of the eight numbers, as published; further ones have as many as the first."""

MISSING_NUMBER = -1.0
"""What public code fills empty fields with before it scales."""


@dataclass(frozen=True)
class LoggedClicks:
    """Clicks in the order of their time; arrays of shape (n,).

    Attributes
    ----------
    served_us : ndarray, int64
    arrived_us, retracted_us : ndarray, int64
        When the conversion came, and when it was taken back; -1 if never.
    features : pyarrow.Table
        The dataset's categorical and numeric columns.
    groups : ndarray, int64
        Code of the dataset's first entity; zeros if it names none.
    refused : int
        Rows of the files that do not fit the contract and are in no figure.
    """

    served_us: np.ndarray
    arrived_us: np.ndarray
    retracted_us: np.ndarray
    features: pa.Table
    groups: np.ndarray
    refused: int

    def __len__(self) -> int:
        """Return the number of clicks."""
        return len(self.served_us)

    @property
    def recorded_us(self) -> int:
        """The last moment of which the log tells anything, microseconds."""
        return int(max(self.served_us[-1], self.arrived_us.max(), self.retracted_us.max()))


def read_clicks(deployment: Deployment, goal: Goal, share: float = 1.0) -> LoggedClicks:
    """Read the clicks of a log from its files.

    Parameters
    ----------
    deployment : Deployment
        Only its dataset's files are read; nothing is written.
    goal : Goal
        Whose engagements are the conversions.
    share : float
        In (0, 1]: of the clicks that are kept, by the hash of their id.

    Raises
    ------
    FileNotFoundError
        If there are no files of clicks.
    ValueError
        If the share is none.
    LookupError
        If no click is left.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: write one above 0 and up to 1")
    dataset = deployment.dataset
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        refused = sum(_land(connection, deployment, table) for table in TABLES)
        parameters = {
            "goal": goal.name,
            "draw": f"{dataset.settings.seed} {PURPOSE} ",
            "kept_below": kept_below(share),
        }
        rows = rows_of(connection, select("monitoring.published_clicks"), parameters)
    if not rows.num_rows:
        raise LookupError(
            f"no click of {dataset.name} is left of {refused:,} rows refused and a share of "
            f"{share}; `ad_pipeline check {dataset.path}` says what is wrong with the rows"
        )
    columns = [*dataset.features.categorical, *dataset.features.numeric]
    return LoggedClicks(
        served_us=rows.column("received_us").to_numpy(),
        arrived_us=rows.column("arrived_us").fill_null(UNKNOWN).to_numpy(),
        retracted_us=rows.column("retracted_us").fill_null(UNKNOWN).to_numpy(),
        features=rows.select(columns),
        groups=_codes(rows, dataset),
        refused=refused,
    )


def encode_clicks(
    clicks: LoggedClicks, dataset: Dataset, fitted: np.ndarray, bits: int
) -> np.ndarray:
    """Return a slot for each feature of each click.

    Parameters
    ----------
    clicks : LoggedClicks of n rows
    dataset : Dataset
        Names the features.
    fitted : ndarray of shape (n,), bool
        Rows whose smallest and largest numbers bound the bins; what lies beyond falls into the
        outer ones.
    bits : int
        2^bits slots.

    Returns
    -------
    ndarray of shape (n, F), uint32
        Categories first.
    """
    found = [
        slot_of(hash_strings(clicks.features.column(name), seed_of(name)), bits)
        for name in dataset.features.categorical
    ]
    for place, name in enumerate(dataset.features.numeric):
        column = clicks.features.column(name).fill_null(MISSING_NUMBER)
        bins = BINS[place] if place < len(BINS) else BINS[0]
        words = number_bins(column.to_numpy(), fitted, bins)
        seeds = np.array([seed_of(name)], dtype=np.uint64)
        found.append(slot_of(hash_words(words[:, None], seeds)[:, 0], bits))
    return np.ascontiguousarray(np.column_stack(found))


def number_bins(values: np.ndarray, fitted: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each number, int64 (n,), of equal bins between two fitted bounds.

    Parameters
    ----------
    values : ndarray of shape (n,), float64
    fitted : ndarray of shape (n,), bool
        Rows that the bounds are taken from.
    bins : int
    """
    known = values[fitted]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    if high <= low:
        return (values > low).astype(np.int64)
    return np.clip(np.floor((values - low) / (high - low) * bins), 0, bins - 1).astype(np.int64)


def _land(connection: duckdb.DuckDBPyConnection, deployment: Deployment, table: str) -> int:
    """Fill ``landed_<table>`` with all rows of the log, and return how many are refused."""
    dataset = deployment.dataset
    files: list[tuple[Source, Sequence[LogFile]]] = []
    for source in dataset.sources_of(table):
        paths = deployment.log_files(source)
        if not paths and table == "impressions":
            raise FileNotFoundError(
                f"no file beside {dataset.path} matches {', '.join(source.files)}; put the log "
                "there: the dataset file says which one"
            )
        files.append(
            (source, [LogFile(deployment.log_path(path), path, 0) for path in paths]),
        )
    land(connection, dataset, event_tables(dataset)[table], files, 0, LATEST_CLOCK_US)
    (refused,) = one_row(connection, f"SELECT count(landed_reason) FROM landed_{table}")
    return int(refused)


def _codes(rows: pa.Table, dataset: Dataset) -> np.ndarray:
    if not dataset.entities:
        return np.zeros(rows.num_rows, dtype=np.int64)
    hashed = hash_strings(rows.column(dataset.entities[0]), seed_of(PURPOSE))
    return np.unique(hashed, return_inverse=True)[1].astype(np.int64)
