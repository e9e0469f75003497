"""Small logs for the tests of this room: rows as tuples, and the warehouse that holds them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, hour_start
from ad_pipeline.datasets import Dataset, Features, Goal
from ad_pipeline.features.encoding import FeatureContract, LookedUp
from ad_pipeline.settings import Settings
from ad_pipeline.warehouse import Column, Table, Warehouse, replace_hours

START_US = hour_start("2026-11-01-00:00")
HOURS = 8
CLICK = Goal.model_validate({"name": "click", "window_us": HOUR_US})

IMPRESSIONS = Table(
    "events.impressions",
    (
        Column("impression_id", "VARCHAR", ""),
        Column("user_id", "VARCHAR", ""),
        Column("ad_id", "VARCHAR", ""),
        Column("price", "DOUBLE", ""),
        Column("occurred_us", "BIGINT", ""),
        Column("received_us", "BIGINT", ""),
    ),
    ("impression_id",),
    "received_us",
    "",
)
ENGAGEMENTS = Table(
    "events.engagements",
    (
        Column("event_id", "VARCHAR", ""),
        Column("impression_id", "VARCHAR", ""),
        Column("goal", "VARCHAR", ""),
        Column("occurred_us", "BIGINT", ""),
        Column("received_us", "BIGINT", ""),
    ),
    ("event_id",),
    "received_us",
    "",
)


@dataclass(frozen=True)
class Impression:
    """One impression; its id is its place in the log."""

    received_us: int
    user: str | None
    ad: str | None
    price: float | None = None


@dataclass(frozen=True)
class Engagement:
    """One engagement of the impression at a place in the log."""

    received_us: int
    impression: int
    goal: str


@dataclass(frozen=True)
class Log:
    """Impressions and engagements, in no particular order."""

    impressions: tuple[Impression, ...]
    engagements: tuple[Engagement, ...]


def tiny_dataset(window_hours: int = 3, numeric: tuple[str, ...] = ("price",)) -> Dataset:
    """Return a dataset with a chain of two goals and two entities."""
    return Dataset(
        name="tiny",
        start_us=START_US,
        goals=(
            CLICK,
            CLICK.model_copy(
                update={"name": "purchase", "anchor": "click", "window_us": 2 * HOUR_US}
            ),
        ),
        features=Features(
            categorical=("user_id", "ad_id"), numeric=numeric, crosses=(("user_id", "ad_id"),)
        ),
        entities=("user_id", "ad_id"),
        settings=Settings.model_validate({"rates": {"window_hours": window_hours}}),
    )


def warehouse_of(folder: Path, log: Log) -> Warehouse:
    """Write a log into a new warehouse."""
    warehouse = Warehouse(folder / "warehouse.duckdb")
    warehouse.create([IMPRESSIONS, ENGAGEMENTS])
    impressions = [
        (f"i{place}", row.user, row.ad, row.price, row.received_us, row.received_us)
        for place, row in enumerate(log.impressions)
    ]
    engagements = [
        (f"e{place}", f"i{row.impression}", row.goal, row.received_us, row.received_us)
        for place, row in enumerate(log.engagements)
    ]
    with warehouse.writer() as connection:
        for table, rows in ((IMPRESSIONS, impressions), (ENGAGEMENTS, engagements)):
            if rows:
                names = [column.name for column in table.columns]
                values = [dict(zip(names, row, strict=True)) for row in rows]
                types = {"VARCHAR": pa.string(), "DOUBLE": pa.float64(), "BIGINT": pa.int64()}
                schema = pa.schema([(c.name, types[c.type]) for c in table.columns])
                connection.register("rows", pa.Table.from_pylist(values, schema))
                replace_hours(connection, table, "SELECT * FROM rows", {}, 0, 0)
                connection.unregister("rows")
    return warehouse


def column_table(log: Log) -> dict[str, pa.Array]:
    """Return the impressions of a log as the columns that encoding reads."""
    return {
        "user_id": pa.array([row.user for row in log.impressions], pa.string()),
        "ad_id": pa.array([row.ad for row in log.impressions], pa.string()),
        "price": pa.array([row.price for row in log.impressions], pa.float64()),
    }


MOMENTS = st.integers(START_US, START_US + HOURS * HOUR_US - 1) | st.integers(0, HOURS - 1).map(
    lambda hour: START_US + hour * HOUR_US
)
NAMES = st.none() | st.sampled_from(["", "a", "b", 'quote"d', "ü", "null", "\u00d7"])


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Draw a log whose moments often lie on the edge of an hour."""
    prices = st.none() | st.floats(allow_infinity=False)
    impressions = draw(
        st.lists(st.builds(Impression, MOMENTS, NAMES, NAMES, prices), min_size=1, max_size=12)
    )
    engagements = draw(
        st.lists(
            st.builds(
                Engagement,
                MOMENTS,
                st.integers(0, len(impressions) - 1),
                st.sampled_from(["click", "purchase"]),
            ),
            max_size=12,
        )
    )
    return Log(tuple(impressions), tuple(engagements))


def drawn_lookups(contract: FeatureContract, n: int, seed: int) -> LookedUp:
    """Draw what ``n`` rows of a contract look up, unknown vectors among it."""
    generator = np.random.default_rng(seed)
    width = 2 * len(contract.goals)
    vectors = generator.normal(size=(n, len(contract.vector_names)))
    vectors[:, -1:] = np.tanh(vectors[:, -1:])  # the last is a cosine
    vectors[generator.random(n) < 0.2] = np.nan
    vectors[generator.random(n) < 0.2, -1:] = np.nan
    return LookedUp(
        generator.integers(0, 1000, (n, len(contract.entities), width)),
        generator.integers(0, 10**6, (n, width)),
        vectors,
    )
