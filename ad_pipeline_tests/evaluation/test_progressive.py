"""Progressive metrics wait for maturity, use serving-time scores and drop nothing silently."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US, hour_of
from ad_pipeline.evaluation import metrics, plots, printed, progressive, report, tables
from ad_pipeline.warehouse import Warehouse, arrow_rows, bound, replace_hours, select

START = hour_of(1_772_409_600_000_000)
BOTH = ("online", "batch")
"""The experts of a deployment without wide & deep."""


def scored(seed: int = 0, rows: int = 3_000, hours: int = 6) -> pa.Table:
    """Rows as ``scored_rows.sql`` gives them; the batch expert has no score in the first hour."""
    generator = np.random.default_rng(seed)
    matured = START + np.sort(generator.integers(0, hours * HOUR_US, rows))
    logit = generator.normal(-1.5, 1, rows)
    labels = (generator.random(rows) < metrics.probabilities_of(logit)).astype(np.int8)
    return pa.table(
        {
            "goal": np.where(generator.random(rows) < 0.7, "click", "purchase"),
            "impression_id": [f"i{k}" for k in range(rows)],
            "serving_us": matured - 2 * HOUR_US,
            "matured_us": matured,
            "label": labels,
            "online_logit": logit + generator.normal(0, 0.5, rows),
            "batch_logit": pa.array(logit, mask=matured < START + HOUR_US),
        }
    )


def measured(rows: pa.Table, hours: int = 6) -> list[dict]:
    end_us = START + hours * HOUR_US
    return progressive.progressive_metrics(rows, START, end_us, end_us, BOTH).to_pylist()


def test_every_hour_goal_and_expert_is_measured_on_exactly_its_rows():
    rows = scored()
    frame = rows.to_pandas()
    result = measured(rows)
    assert len(result) == 6 * 2 * 2
    for row in result:
        chosen = frame[
            (frame.goal == row["goal"])
            & (frame.matured_us // HOUR_US * HOUR_US == row["hour_us"])
            & frame[f"{row['expert']}_logit"].notna()
        ]
        summary = metrics.summarize(
            chosen.label, metrics.probabilities_of(chosen[f"{row['expert']}_logit"])
        )
        assert (row["rows"], row["positives"]) == (summary.rows, summary.positives)
        for name in metrics.METRICS:
            assert row[name] == pytest.approx(getattr(summary, name), nan_ok=True) or (
                row[name] is None and np.isnan(getattr(summary, name))
            )


def test_rows_an_expert_did_not_score_are_counted_and_not_dropped():
    result = measured(scored())
    first = {(row["goal"], row["expert"]): row for row in result if row["hour_us"] == START}
    assert first["click", "batch"]["rows"] == 0
    assert first["click", "batch"]["log_loss"] is None
    assert first["click", "batch"]["unscored"] == first["click", "online"]["rows"] > 0
    assert sum(row["rows"] + row["unscored"] for row in result) == 2 * 3_000


def test_sums_pool_hours_to_the_measure_of_all_rows():
    rows = scored()
    pooled = [row for row in measured(rows) if (row["goal"], row["expert"]) == ("click", "online")]
    (whole,) = [
        part
        for part in progressive.by_goal_and_expert(rows, BOTH)
        if (part.goal, part.expert) == ("click", "online")
    ]
    count = sum(row["rows"] for row in pooled)
    assert sum(row["loss_sum"] for row in pooled) / count == pytest.approx(
        metrics.log_loss(whole.labels, whole.probabilities), rel=1e-12
    )


def test_any_split_of_a_range_gives_the_same_rows():
    rows = scored()
    halves = []
    for begin, end in ((0, 2), (2, 6)):
        start_us, end_us = START + begin * HOUR_US, START + end * HOUR_US
        matured = rows.column("matured_us").to_numpy()
        part = rows.filter(pa.array((matured >= start_us) & (matured < end_us)))
        halves += progressive.progressive_metrics(part, start_us, end_us, end_us, BOTH).to_pylist()
    assert halves == measured(rows)


@pytest.mark.parametrize(
    ("start_us", "end_us", "watermark_us", "words"),
    [
        (START, START + 6 * HOUR_US, START + 5 * HOUR_US, "watermark"),
        (START, START + 5 * HOUR_US, START + 6 * HOUR_US, "at or after"),
        (START + HOUR_US, START + 6 * HOUR_US, START + 6 * HOUR_US, "before"),
    ],
)
def test_a_row_outside_the_hours_or_past_the_watermark_is_refused(
    start_us: int, end_us: int, watermark_us: int, words: str
):
    """Planted fault: a label that is not final yet."""
    with pytest.raises(progressive.Immature, match=words):
        progressive.progressive_metrics(scored(), start_us, end_us, watermark_us, BOTH)


def test_a_label_that_matured_before_its_serving_is_refused():
    rows = scored(rows=3)
    early = rows.set_column(
        rows.schema.get_field_index("serving_us"),
        "serving_us",
        pa.array(rows.column("matured_us").to_numpy() + 1),
    )
    with pytest.raises(progressive.Immature, match="before it was served"):
        measured(early)


def test_no_rows_give_an_empty_table_of_the_right_columns():
    empty = progressive.progressive_metrics(
        scored().slice(0, 0), START, START + HOUR_US, START, BOTH
    )
    assert empty.num_rows == 0
    assert tuple(empty.column_names) == tables.PROGRESSIVE_METRICS.column_names


def test_a_record_with_a_forgotten_column_is_refused():
    with pytest.raises(ValueError, match=r"evaluation\.report"):
        arrow_rows(tables.REPORT, [{"goal": "click"}])


def test_the_report_carries_its_range_and_brackets_each_value():
    (part, *_) = progressive.by_goal_and_expert(scored(rows=20_000, hours=48), BOTH)
    rows = report.report_rows(
        part.goal,
        part.expert,
        "test",
        START,
        START + 48 * HOUR_US,
        part.labels,
        part.probabilities,
        part.hours,
        seed=1,
        replicates=100,
    ).to_pylist()
    assert [row["metric"] for row in rows] == list(metrics.METRICS)
    for row in rows:
        assert (row["range_name"], row["range_start_us"]) == ("test", START)
        if row["metric"] != "expected_calibration_error":
            assert row["low"] <= row["value"] <= row["high"]


def warehouse_with(
    folder: Path,
    labelled: Sequence[tuple[str, str, int, int, int]],
    online: Sequence[tuple[str, str, float, int]],
    batch: Sequence[tuple[str, str, float, int]],
    deep: Sequence[tuple[str, str, float, int]] = (),
) -> Warehouse:
    """Make a warehouse with just the columns that ``scored_rows.sql`` reads."""
    warehouse = Warehouse(folder / "warehouse.duckdb")
    warehouse.create(tables.TABLES)
    with warehouse.writer() as connection:
        connection.execute("CREATE SCHEMA examples")
        connection.execute("CREATE SCHEMA learners")
        connection.execute(
            "CREATE TABLE examples.labelled_impressions (goal VARCHAR, impression_id VARCHAR, "
            "serving_us BIGINT, matured_us BIGINT, label TINYINT)"
        )
        connection.executemany(
            "INSERT INTO examples.labelled_impressions VALUES (?, ?, ?, ?, ?)", labelled
        )
        for expert, rows in (("online", online), ("batch", batch), ("deep", deep)):
            connection.execute(
                f"CREATE TABLE learners.{expert}_predictions "
                "(goal VARCHAR, impression_id VARCHAR, logit DOUBLE, serving_us BIGINT)"
            )
            for row in rows:
                connection.execute(
                    f"INSERT INTO learners.{expert}_predictions VALUES (?, ?, ?, ?)", row
                )
    return warehouse


def run(warehouse: Warehouse, hour_us: int, horizon_us: int) -> list[tuple]:
    query = select("evaluation.scored_rows")
    given = {
        "start_us": hour_us,
        "end_us": hour_us + HOUR_US,
        "horizon_us": horizon_us,
        "goals": ["click", "purchase"],
    }
    with warehouse.reader() as connection:
        return connection.execute(query, bound(query, given)).fetchall()


def test_scored_rows_join_by_goal_and_impression_and_keep_the_unscored(tmp_path: Path):
    served = START - 2 * HOUR_US
    warehouse = warehouse_with(
        tmp_path,
        [
            ("click", "b", served, START + 1, 1),
            ("click", "a", served, START + 1, 0),
            ("purchase", "a", served, START, 1),
            ("click", "next hour", served, START + HOUR_US, 1),
            ("click", "last hour", served, START - 1, 1),
        ],
        [
            ("click", "a", -1.0, served),
            ("purchase", "a", -4.0, served),
            ("click", "b", -2.0, served),
        ],
        [("click", "a", -1.5, served)],
        [("click", "b", -2.5, served), ("purchase", "b", -5.0, served)],
    )
    assert run(warehouse, START, 3 * HOUR_US) == [
        ("purchase", "a", served, START, 1, -4.0, None, None),
        ("click", "a", served, START + 1, 0, -1.0, -1.5, None),
        ("click", "b", served, START + 1, 1, -2.0, None, -2.5),
    ]


def test_a_horizon_of_the_goal_alone_would_lose_the_score_of_a_late_chain(tmp_path: Path):
    """A purchase may mature a click window later than its own window after serving."""
    window, click_window = DAY_US, HOUR_US
    served = START - window - 59 * MINUTE_US
    warehouse = warehouse_with(
        tmp_path,
        [("purchase", "a", served, START, 0)],
        [("purchase", "a", -4.0, served)],
        [],
    )
    assert run(warehouse, START, window)[0][5] is None
    assert run(warehouse, START, window + click_window)[0][5] == -4.0


def test_measured_hours_are_replaced_in_the_warehouse_and_not_added(tmp_path: Path):
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create(tables.TABLES)
    rows = progressive.progressive_metrics(
        scored(), START, START + 6 * HOUR_US, START + 6 * HOUR_US, BOTH
    )
    for _ in range(2):
        with warehouse.writer() as connection:
            connection.register("measured", rows)
            replace_hours(
                connection,
                tables.PROGRESSIVE_METRICS,
                "SELECT * FROM measured",
                {},
                START,
                START + 6 * HOUR_US,
            )
    with warehouse.reader() as connection:
        stored = connection.execute(
            "SELECT * FROM evaluation.progressive_metrics ORDER BY hour_us, goal, expert"
        ).fetchall()
    assert stored == [tuple(row.values()) for row in rows.to_pylist()]


def is_png(picture: bytes) -> bool:
    return picture.startswith(b"\x89PNG\r\n") and len(picture) > 5_000


def test_pictures_are_drawn_with_the_same_bytes_twice():
    rows = scored(rows=6_000)
    progress = progressive.progressive_metrics(
        rows, START, START + 6 * HOUR_US, START + 6 * HOUR_US, BOTH
    )
    (part, *_) = progressive.by_goal_and_expert(rows, BOTH)
    for draw in (
        lambda: plots.metrics_over_time(progress),
        lambda: plots.calibration_plot(part.labels, {part.expert: part.probabilities}),
        lambda: plots.calibration_plot(np.zeros(9), {"never": np.full(9, 0.01)}),
    ):
        assert is_png(draw())
        assert draw() == draw()


def test_pictures_of_nothing_say_so_instead_of_failing():
    nothing = arrow_rows(tables.PROGRESSIVE_METRICS, [])
    assert plots.metrics_over_time(nothing).startswith(b"\x89PNG")
    assert plots.calibration_plot([], {"online": []}).startswith(b"\x89PNG")


def hours_of(losses: Sequence[float] | np.ndarray, rows: int = 100) -> list[dict]:
    return [
        {"hour_us": START + number * HOUR_US, "rows": rows, "loss_sum": loss}
        for number, loss in enumerate(losses)
    ]


def test_a_title_names_a_winner_only_if_the_interval_excludes_a_tie():
    generator = np.random.default_rng(3)
    hours = generator.normal(30, 5, 24)
    ahead = hours_of(hours - 1 + generator.normal(0, 0.2, 24))
    level = hours_of(hours + generator.normal(0, 1, 24))
    assert plots.compared_in_words({"batch": hours_of(hours), "online": ahead}).startswith(
        "online has 3."
    )
    assert "are level in the last 24" in plots.compared_in_words(
        {"batch": hours_of(hours), "online": level}
    )


def test_a_title_compares_only_hours_in_which_both_scored_the_same_rows():
    worse = hours_of([1000.0, *[10.0] * 5])
    better = [*hours_of([1.0], rows=7), *hours_of([10.0] * 6)[1:]]
    said = plots.compared_in_words({"batch": worse, "online": better})
    assert "level in the last 5 matured hours (0.0% ± 0.0%" in said
    assert plots.compared_in_words({"online": worse, "batch": []}).startswith("only the online")
    assert plots.compared_in_words({"batch": worse[:2], "online": better}).startswith("too few")


def test_the_report_is_aligned_on_a_terminal_and_a_table_on_a_page():
    rows = scored(rows=2_000)
    (part, *_) = progressive.by_goal_and_expert(rows, BOTH)
    table = report.report_rows(
        part.goal, part.expert, "test", START, START + 6 * HOUR_US, part.labels,
        part.probabilities, part.hours, seed=1, replicates=50,
    ).to_pylist()  # fmt: skip
    heading, titles, line = printed.report_lines(table)
    assert heading.startswith(f"{part.goal}: ")
    assert len(titles) == len(line)
    assert "]  " in line, "cells do not touch"
    page = printed.report_markdown(table)
    assert "| expert | log loss | NE |" in page
    assert f"| {part.expert} | " in page
