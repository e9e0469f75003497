"""Whatever the order of rows, files, ranges and re-runs, the log becomes the same tables."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
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
FEW = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
MANY = settings(FEW, max_examples=150, derandomize=False)

moments = st.integers(-2, HOURS * 3 - 1).map(lambda step: START_US + step * STEP_US)
delays = st.sampled_from([-1, 0, 0, 0, 1, 2, 3, 4, 9, 10]).map(lambda step: step * STEP_US)
keys = st.sampled_from(["a", "b", "c", "d", None])


@st.composite
def impressions(draw: st.DrawFn) -> Row:
    occurred_us = draw(moments)
    received_us = draw(st.one_of(delays.map(lambda d: occurred_us + d), st.none()))
    return impression(draw(keys), occurred_us) | {
        "received_us": received_us,
        "bid_price": draw(st.sampled_from([1, 2])),
    }


@st.composite
def engagements(draw: st.DrawFn) -> Row:
    occurred_us = draw(moments)
    return engagement(
        draw(st.sampled_from(["x", "y", "z", "u", "v", "w", None])),
        draw(st.sampled_from(["a", "b", "c", "d", "unknown"])),
        occurred_us,
        occurred_us + draw(delays),
        goal=draw(st.sampled_from(["click", "click", "buy", "install"])),
        value=draw(st.sampled_from([None, 7])),
    )


logs = st.tuples(
    st.lists(impressions(), max_size=12).filter(lambda rows: len(rows) > 2),
    st.lists(engagements(), max_size=14),
)
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


def reading_in_any_order(
    log: tuple[list[Row], list[Row]], cut: list[int], again: int, data: st.DataObject
) -> None:
    """Compare with the oracle; rows are shuffled within files, files within the folder."""
    with tempfile.TemporaryDirectory() as name:
        deployment = deployment_in(Path(name))
        files = data.draw(st.integers(1, 3), label="files")
        shown = data.draw(st.permutations(log[0]), label="impressions in the order of the file")
        engaged = data.draw(st.permutations(log[1]), label="engagements in the order of the file")
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
            ingest_hours(warehouse, deployment, start_us, end_us, chunk_rows=3)
        hour_us = START_US + again * HOUR_US
        ingest_hours(warehouse, deployment, hour_us, hour_us + HOUR_US)
        assert contents(warehouse) == expected(deployment, [*rows[0], last], rows[1])
        with warehouse.reader() as connection:
            assert accounting_gaps(connection) == ()


def files_coming_late(
    early: tuple[list[Row], list[Row]], late: tuple[list[Row], list[Row]], sealed: int, again: int
) -> None:
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
