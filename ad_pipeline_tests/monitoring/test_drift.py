"""Drift: silent on an unchanged log, loud on a changed one, and the reference matched by hour."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_of
from ad_pipeline.monitoring import tables
from ad_pipeline.monitoring.drift import drift_plots, evidently_page, inputs, statistics
from ad_pipeline.monitoring.drift import reference as references
from ad_pipeline.settings import DriftSettings

START = hour_of(1_772_409_600_000_000)
SETTINGS = DriftSettings()
COLUMNS = inputs.drift_columns(
    {
        "impression_id": "VARCHAR",
        "user_id": "VARCHAR",
        "received_us": "BIGINT",
        "site": "VARCHAR",
        "ad_id": "VARCHAR",
        "campaign_id": "VARCHAR",
        "publisher": "VARCHAR",
        "paid_price": "BIGINT",
        "propensity": "DOUBLE",
        "floor": "DOUBLE",
    }
)


def impressions(
    seed: int, rows: int = 6_000, *, publishers: int = 12, price: float = 0.0
) -> pa.Table:
    """Sparse ads, skewed publishers, a heavy-tailed price and a mostly-zero column with nulls."""
    generator = np.random.default_rng(seed)
    mix = 1 / np.arange(1, publishers + 1)
    return pa.table(
        {
            "impression_id": [f"{seed}-{k}" for k in range(rows)],
            "user_id": [f"u{k}" for k in generator.integers(0, 10**9, rows)],
            "received_us": START + np.arange(rows),
            "site": pa.array(
                [f"a{k}" for k in generator.zipf(1.2, rows) % 5_000]
            ).dictionary_encode(),
            "publisher": [f"p{k}" for k in generator.choice(publishers, rows, p=mix / mix.sum())],
            "paid_price": np.exp(generator.normal(8 + price, 2, rows)).astype(np.int64),
            "propensity": generator.random(rows),
            "floor": pa.array(
                np.where(generator.random(rows) < 0.8, 0.0, generator.random(rows)),
                mask=generator.random(rows) < 0.1,
            ),
        }
    )


def verdict_on(column: str, verdict: inputs.DriftVerdict) -> inputs.ColumnDrift:
    return next(entry for entry in verdict.columns if entry.column == column)


def test_identity_columns_and_clocks_are_left_out():
    assert set(COLUMNS) == {"site", "publisher", "paid_price", "propensity", "floor"}
    assert COLUMNS["site"] == "categorical"
    assert COLUMNS["paid_price"] == "numeric"


@pytest.mark.parametrize("seed", range(5))
def test_an_unchanged_log_does_not_drift(seed: int):
    verdict = inputs.drift_report(impressions(seed), impressions(100 + seed), COLUMNS, SETTINGS)
    assert not verdict.drifted, verdict
    assert verdict.share == 0


def test_a_tiny_sample_of_an_unchanged_log_does_not_drift_though_its_index_is_high():
    """The reason for the noise limit: 50 sparse categories and 100 rows exceed 0.2 by chance."""
    verdict = inputs.drift_report(
        impressions(1, rows=100), impressions(2, rows=100), COLUMNS, SETTINGS
    )
    assert verdict_on("site", verdict).psi > SETTINGS.psi_threshold
    assert not verdict.drifted


def test_a_new_publisher_mix_drifts_and_names_the_column():
    verdict = inputs.drift_report(impressions(1), impressions(2, publishers=40), COLUMNS, SETTINGS)
    assert verdict.drifted
    assert inputs.columns_of(verdict, drifted=True) == ["publisher"]
    assert verdict.columns[0].column == "publisher"
    assert verdict.share == pytest.approx(1 / 5)


def test_a_shift_of_a_heavy_tail_drifts():
    verdict = inputs.drift_report(impressions(1), impressions(2, price=1.0), COLUMNS, SETTINGS)
    assert inputs.columns_of(verdict, drifted=True) == ["paid_price"]


@pytest.mark.parametrize("column", ["publisher", "floor"])
def test_a_column_gone_null_drifts(column: str):
    current = impressions(2)
    index = current.schema.get_field_index(column)
    gone = current.set_column(
        index, column, pa.nulls(current.num_rows, current.schema.field(column).type)
    )
    verdict = inputs.drift_report(impressions(1), gone, COLUMNS, SETTINGS)
    assert verdict_on(column, verdict).drifted


def test_more_columns_may_be_asked_for_before_the_alarm():
    strict = DriftSettings(minimum_drifted_columns=2)
    verdict = inputs.drift_report(impressions(1), impressions(2, publishers=40), COLUMNS, strict)
    assert not verdict.drifted
    assert verdict.share > 0


def test_no_rows_on_a_side_are_an_error_and_no_verdict():
    with pytest.raises(ValueError, match="no verdict"):
        inputs.drift_report(impressions(1), impressions(2).slice(0, 0), COLUMNS, SETTINGS)


def test_categories_fold_to_the_top_of_the_reference_alone():
    settings = DriftSettings(top_categories=2)
    reference = pa.table({"c": ["b", "b", "a", "a", "c", None]})
    current = pa.table({"c": ["c", "new", "new", "new", None, "a"]})
    folded = inputs.fold(reference, current, {"c": "categorical"}, settings)
    assert folded.shown("reference", "c").tolist() == [
        "b",
        "b",
        "a",
        "a",
        inputs.OTHER,
        inputs.NULL,
    ]
    assert folded.shown("current", "c").tolist() == [inputs.OTHER] * 4 + [inputs.NULL, "a"]


def test_only_heavy_tails_are_put_through_log1p():
    folded = inputs.fold(impressions(1), impressions(2), COLUMNS, SETTINGS)
    assert "paid_price" in folded.logged
    assert "propensity" not in folded.logged
    assert folded.reference["paid_price"].max() < 30


@given(
    st.lists(st.integers(0, 500), min_size=2, max_size=12),
    st.lists(st.integers(0, 500), min_size=2, max_size=12),
)
def test_the_index_is_symmetric_not_negative_and_zero_on_equal_counts(before, after):
    size = min(len(before), len(after))
    before, after = np.array(before[:size]) + 1, np.array(after[:size]) + 1
    index = statistics.psi(before, after)
    assert index >= 0
    assert index == pytest.approx(statistics.psi(after, before))
    assert statistics.psi(before, before) == 0


def test_the_index_is_the_published_sum_on_full_cells():
    before, after = np.array([500_000, 300_000, 200_000]), np.array([400_000, 300_000, 300_000])
    p, q = before / before.sum(), after / after.sum()
    assert statistics.psi(before, after) == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-4)


def test_a_side_without_rows_has_no_index_and_unequal_cells_are_refused():
    assert np.isnan(statistics.psi([0, 0], [1, 2]))
    with pytest.raises(ValueError, match="cells"):
        statistics.psi([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="negative"):
        statistics.psi([1, -2], [1, 2])


def test_an_unchanged_column_stays_below_the_noise_limit_as_often_as_it_says():
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(20, 2.0))
    limit = statistics.psi_noise_limit(20, 3_000, 2_000, level=0.05)
    above = [
        statistics.psi(generator.multinomial(3_000, shares), generator.multinomial(2_000, shares))
        > limit
        for _ in range(2_000)
    ]
    assert np.mean(above) == pytest.approx(0.05, abs=0.02)


def test_the_sample_is_of_fixed_size_and_the_same_from_any_order():
    rows = impressions(1)
    order = np.random.default_rng(0).permutation(rows.num_rows)
    sample = references.fixed_sample(rows, 500, 1)
    assert sample.num_rows == 500
    assert sample.equals(references.fixed_sample(rows.take(pa.array(order)), 500, 1))
    assert not sample.equals(references.fixed_sample(rows, 500, 2))
    assert references.fixed_sample(rows, 10**6, 1).num_rows == rows.num_rows


def test_a_short_log_is_matched_by_hour_of_day_and_says_so():
    day = START + 4 * DAY_US
    reference = references.matched_reference(day, day + DAY_US, START)
    assert reference.rule == "hour of day"
    assert (reference.start_us, reference.end_us) == (START, day)
    assert len(reference.hours_us) == 4 * 24


def test_a_long_log_is_matched_by_hour_of_week():
    hour = START + 8 * DAY_US
    reference = references.matched_reference(hour, hour + 6 * HOUR_US, START)
    assert reference.rule == "hour of week"
    assert reference.hours_us == tuple(hour - 7 * DAY_US + k * HOUR_US for k in range(6))


def test_a_log_of_one_day_has_no_reference_and_therefore_no_verdict():
    reference = references.matched_reference(START, START + DAY_US, START)
    assert (reference.rule, reference.hours_us) == ("none", ())
    verdict = inputs.DriftVerdict((), float("nan"), False, 0.0)
    with pytest.raises(ValueError, match="reference"):
        tables.drift_rows(verdict, reference, START, START + DAY_US)


@given(st.integers(0, 24 * 20), st.integers(1, 60), st.integers(0, 24 * 20))
def test_reference_hours_precede_the_current_and_have_the_same_mix(begin, length, history):
    current_start = START + begin * HOUR_US
    current = [current_start + k * HOUR_US for k in range(length)]
    log_start = current_start - history * HOUR_US
    reference = references.matched_reference(current_start, current[-1] + HOUR_US, log_start)
    assert all(log_start <= hour < current_start for hour in reference.hours_us)
    assert list(reference.hours_us) == sorted(set(reference.hours_us))
    if reference.rule != "none":
        period = 7 * DAY_US if reference.rule == "hour of week" else DAY_US
        assert {h % period for h in reference.hours_us} == {h % period for h in current}
    if length <= 24 and reference.rule == "hour of day":
        counts = np.unique([h % DAY_US for h in reference.hours_us], return_counts=True)[1]
        assert len(set(counts)) == 1


def test_a_verdict_becomes_rows_of_its_table():
    verdict = inputs.drift_report(impressions(1), impressions(2), COLUMNS, SETTINGS)
    day = START + 4 * DAY_US
    reference = references.matched_reference(day, day + DAY_US, START)
    rows = tables.drift_rows(verdict, reference, day, day + DAY_US)
    assert tuple(rows.column_names) == tables.DRIFT.column_names
    assert rows.num_rows == len(COLUMNS)
    assert set(rows.column("reference_rule").to_pylist()) == {"hour of day"}


def test_evidently_reports_the_same_columns_writes_html_whole_and_sends_nothing(tmp_path: Path):
    path = tmp_path / "reports" / "drift.html"
    reference, current = impressions(1), impressions(2, publishers=40)
    numbers = evidently_page.evidently_report(reference, current, COLUMNS, SETTINGS, path)
    assert set(numbers) == set(COLUMNS)
    flagged = {name for name, value in numbers.items() if value >= SETTINGS.psi_threshold}
    assert flagged == {"publisher"}
    assert "publisher" in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["drift.html"]
    assert os.environ["DO_NOT_TRACK"] == "1"

    from evidently.telemetry import event_logger

    assert not event_logger.is_enabled()


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Planted fault: the disk is full while the HTML is written."""
    from evidently.core.report import Snapshot

    def full(self: Snapshot, filename: str) -> None:
        Path(filename).write_text("half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Snapshot, "save_html", full)
    path = tmp_path / "drift.html"
    path.write_text("old")
    with pytest.raises(OSError, match="no space"):
        evidently_page.evidently_report(impressions(1), impressions(2), COLUMNS, SETTINGS, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["drift.html"]


def folded(current: pa.Table) -> inputs.Folded:
    return inputs.fold(impressions(1), current, COLUMNS, SETTINGS)


def test_the_cells_of_a_column_are_what_its_index_compares():
    current = impressions(2, publishers=40)
    verdict = inputs.drift_report(impressions(1), current, COLUMNS, SETTINGS)
    for column in verdict.columns:
        counted = inputs.cells(folded(current), column.column)
        assert counted.contributions.sum() == pytest.approx(column.psi)
        assert counted.reference.sum() == counted.current.sum() == 6_000
        assert len(set(counted.labels)) == len(counted.labels) == len(counted.reference)


def test_bins_of_numbers_are_labelled_in_the_units_of_the_log():
    """The heavy-tailed price is compared as log1p; people read prices."""
    prices = impressions(1).column("paid_price").to_numpy()
    counted = inputs.cells(folded(impressions(2)), "paid_price")
    first, second = counted.labels[0], counted.labels[1]
    edge = float(first.removeprefix("< "))
    assert second.startswith(f"{edge:.4g} to < ")
    assert (prices < edge).sum() == pytest.approx(counted.reference[0], abs=5)
    assert counted.labels[-1].startswith(">= ")


def test_a_label_for_nulls_stands_last():
    assert inputs.cells(folded(impressions(2)), "floor").labels[-1] == inputs.NULL


def test_the_picture_of_a_verdict_is_drawn_the_same_twice_and_says_what_was_found():
    for current, says in (
        (impressions(2, publishers=40), "columns drifted: publisher"),
        (impressions(2), "No column drifted"),
    ):
        verdict = inputs.drift_report(impressions(1), current, COLUMNS, SETTINGS)
        assert says in drift_plots.finding(verdict)
        picture = drift_plots.drift_picture(verdict, folded(current), title="now against before")
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000
        assert picture == drift_plots.drift_picture(
            verdict, folded(current), title="now against before"
        )
