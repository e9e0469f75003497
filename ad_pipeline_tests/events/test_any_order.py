"""Whatever the order of rows, files, ranges and re-runs, the log becomes the same tables."""

import random
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline_tests.events.worlds import (
    END_US,
    HOURS,
    LAST_US,
    START_US,
    LoggedRow,
    Row,
    close_log,
    contents,
    deployment_in,
    engagement,
    expected,
    impression,
    warehouse_of,
    write_rows,
)

STEP_US = 20 * MINUTE_US  # a coarse clock, so that moments coincide often
DELAYS = [-1, 0, 0, 0, 0, 1, 2, 3, 4, 8, 9, 9, 10]
"""Steps from occurrence to receipt; the horizon is 9 of them."""

# An ingest costs half a second whatever its size, so an example is one big random log rather than
# a small one that Hypothesis could shrink row by row; it shrinks the number of rows.
FEW = settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
MANY = settings(FEW, max_examples=100, derandomize=False, phases=list(Phase))

Log = tuple[list[Row], list[Row]]


def random_log(rows: int, seed: int) -> Log:
    """Return impressions and engagements with every fault, each key a few times."""
    draw = random.Random(seed)  # noqa: S311 - a test, not a secret
    keys = [f"i{number}" for number in range(max(3, rows // 3))]
    impressions: list[Row] = []
    for _ in range(rows):
        occurred_us = START_US + draw.randint(-2, HOURS * 3 - 1) * STEP_US
        row = impression(
            draw.choice([*keys, *keys, None]),
            occurred_us,
            occurred_us + draw.choice(DELAYS) * STEP_US,
            bid_price=draw.choice([1, 2]),
        )
        if draw.random() < 0.03:
            row["received_us"] = None
        impressions.append(row)
    engagements: list[Row] = []
    for _ in range(rows):
        shown = draw.choice(impressions)
        occurred_us = shown["occurred_us"] + draw.choice([-1, 0, 0, 1, 3, 4, 9, 10]) * STEP_US
        engagements.append(
            engagement(
                draw.choice([*(f"e{number}" for number in range(max(3, rows // 2))), None]),
                draw.choice([shown["impression_id"] or "nowhere", shown["impression_id"] or "x"]),
                occurred_us,
                occurred_us + draw.choice(DELAYS) * STEP_US,
                goal=draw.choice(["click", "click", "click", "buy", "buy", "install"]),
                value=draw.choice([None, 7]),
            )
        )
    return impressions, engagements


logs = st.builds(random_log, rows=st.integers(40, 120), seed=st.integers(0, 2**32))
cuts = st.lists(st.integers(1, HOURS + 2), max_size=3).map(
    lambda hours: [START_US, *(START_US + h * HOUR_US for h in sorted(set(hours))), LAST_US]
)


def spread(
    deployment: Deployment, table: str, rows: Sequence[Row], files: int, stage: str = "f"
) -> list[LoggedRow]:
    """Write rows to some files in turn, and return them with their files."""
    logged: list[LoggedRow] = []
    for number in range(files):
        part = rows[number::files]
        name = f"{stage}{number}"
        write_rows(deployment, table, name, part)
        logged += [LoggedRow(row, f"{{home}}/logs/{table}/{name}.parquet") for row in part]
    return logged


def reading_in_any_order(log: Log, cut: list[int], again: int, data: st.DataObject) -> None:
    """Compare with the oracle; rows are shuffled within files, files within the folder."""
    with tempfile.TemporaryDirectory() as name:
        deployment = deployment_in(Path(name))
        files = data.draw(st.integers(1, 3), label="files")
        seed = data.draw(st.integers(0, 2**32), label="order of rows")
        order = random.Random(seed)  # noqa: S311 - a test, not a secret
        shown = order.sample(log[0], len(log[0]))
        engaged = order.sample(log[1], len(log[1]))
        rows = (
            spread(deployment, "impressions", shown, files),
            spread(deployment, "engagements", engaged, files),
        )
        close_log(deployment)
        last = LoggedRow(
            impression("last", END_US - HOUR_US), "{home}/logs/impressions/zz_last.parquet"
        )
        warehouse = warehouse_of(deployment)
        for start_us, end_us in pairwise(cut):
            ingest_hours(warehouse, deployment, start_us, end_us, chunk_rows=40)
        hour_us = START_US + again * HOUR_US
        ingest_hours(warehouse, deployment, hour_us, hour_us + HOUR_US)
        assert contents(warehouse) == expected(deployment, [*rows[0], last], rows[1])
        with warehouse.reader() as connection:
            assert accounting_gaps(connection) == ()


def files_coming_late(early: Log, late: Log, sealed: int, again: int) -> None:
    """Compare with the oracle; an hour is computed again before and after the late files."""
    with tempfile.TemporaryDirectory() as name:
        deployment = deployment_in(Path(name))
        warehouse = warehouse_of(deployment)
        sealed_us = START_US + sealed * HOUR_US
        rows = [
            spread(deployment, "impressions", early[0], 1),
            spread(deployment, "engagements", early[1], 1),
        ]
        close_log(deployment)
        last = impression("last", END_US - HOUR_US)
        rows[0].append(LoggedRow(last, "{home}/logs/impressions/zz_last.parquet"))
        ingest_hours(warehouse, deployment, START_US, sealed_us)
        for place, table in enumerate(("impressions", "engagements")):
            rows[place] += [
                LoggedRow(logged.row, logged.file, sealed_us)
                for logged in spread(deployment, table, late[place], 1, "late")
            ]
        hour_us = START_US + again * HOUR_US
        if hour_us < sealed_us:
            ingest_hours(warehouse, deployment, hour_us, hour_us + HOUR_US)
        ingest_hours(warehouse, deployment, sealed_us, LAST_US)
        ingest_hours(warehouse, deployment, hour_us, hour_us + HOUR_US)
        assert contents(warehouse) == expected(deployment, rows[0], rows[1])
        with warehouse.reader() as connection:
            assert accounting_gaps(connection) == ()


ANY_ORDER = {"log": logs, "cut": cuts, "again": st.integers(0, HOURS + 2), "data": st.data()}
LATE = {
    "early": logs,
    "late": logs,
    "sealed": st.integers(1, HOURS + 2),
    "again": st.integers(0, HOURS + 2),
}


@FEW
@given(**ANY_ORDER)
def test_any_order_any_split_and_any_rerun_give_what_the_oracle_says(**drawn: Any) -> None:
    reading_in_any_order(**drawn)


@FEW
@given(**LATE)
def test_files_that_come_late_are_read_into_the_first_open_hour(**drawn: Any) -> None:
    files_coming_late(**drawn)


@pytest.mark.slow
@MANY
@given(**ANY_ORDER)
def test_any_order_gives_what_the_oracle_says_on_many_logs(**drawn: Any) -> None:
    reading_in_any_order(**drawn)


@pytest.mark.slow
@MANY
@given(**LATE)
def test_late_files_give_what_the_oracle_says_on_many_logs(**drawn: Any) -> None:
    files_coming_late(**drawn)
