"""The simulated log of clicks: its rates and delays, its truth, its two formats, its bytes."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ad_pipeline.cli import main
from ad_pipeline.clocks import DAY_US
from ad_pipeline.datasets import DATA_FOLDER, load_dataset
from ad_pipeline.events.sample_check import check_dataset
from ad_pipeline.simulation.conversion_spec import DAY_S, ConversionSpec, LogFormat, spec_like
from ad_pipeline.simulation.conversion_world import (
    Clicks,
    conversion_world,
    delay_cdf,
    draw_delays,
)
from ad_pipeline.simulation.conversions import (
    days_of_clicks,
    simulate_conversions,
)

SMALL = replace(spec_like("criteo"), rows=8_000, days=12)
SMALL_CASCADE = replace(spec_like("cascade"), rows=8_000, days=6)


@cache
def drawn() -> Clicks:
    """A hundred thousand clicks like Criteo's, all days together."""
    return together(replace(spec_like("criteo"), rows=100_000))


def together(spec: ConversionSpec) -> Clicks:
    """All days of a spec as one."""
    days = list(days_of_clicks(spec))
    fields = {
        name: np.concatenate([getattr(day, name) for day in days])
        for name in ("clicked_s", "campaign", "log_odds", "converted_s", "refunded_s", "net")
    }
    return Clicks(
        **fields,
        categories={
            name: np.concatenate([day.categories[name] for day in days])
            for name in days[0].categories
        },
        numbers=tuple(np.concatenate([day.numbers[place] for day in days]) for place in range(8)),
    )


def probability(clicks: Clicks) -> np.ndarray:
    """The truth."""
    return 1.0 / (1.0 + np.exp(-clicks.log_odds))


def bytes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("log_format", "spec"), [("criteo", SMALL), ("cascade", SMALL_CASCADE)])
def test_the_same_spec_writes_the_same_bytes(
    log_format: LogFormat, spec: ConversionSpec, tmp_path: Path
) -> None:
    simulate_conversions(spec, log_format, tmp_path / "first")
    simulate_conversions(spec, log_format, tmp_path / "second")
    other = replace(spec, seed=spec.seed + 1)
    simulate_conversions(other, log_format, tmp_path / "other")
    first = bytes_of(tmp_path / "first")
    assert first == bytes_of(tmp_path / "second")
    assert first.keys() == bytes_of(tmp_path / "other").keys()
    changed = {
        name for name, digest in bytes_of(tmp_path / "other").items() if digest != first[name]
    }
    assert changed == first.keys() - {"dataset.yaml"}


def test_conversions_are_as_frequent_as_asked_for() -> None:
    converted = drawn().converted_s >= 0
    assert converted.mean() == pytest.approx(0.227, abs=0.005)


def test_conversions_take_as_long_as_in_the_published_log() -> None:
    """Chapelle: 35 % within the hour, half within a day, 13 % after two weeks, none after 30 d."""
    clicks = drawn()
    delay_s = (clicks.converted_s - clicks.clicked_s)[clicks.converted_s >= 0]
    assert (delay_s <= 3600).mean() == pytest.approx(0.35, abs=0.05)
    assert (delay_s <= DAY_S).mean() == pytest.approx(0.5, abs=0.05)
    assert (delay_s > 14 * DAY_S).mean() == pytest.approx(0.13, abs=0.04)
    assert delay_s.min() >= 1
    assert delay_s.max() <= 30 * DAY_S


def test_delays_depend_on_the_campaign() -> None:
    clicks = drawn()
    late = clicks.converted_s - clicks.clicked_s > DAY_S
    converted = clicks.converted_s >= 0
    largest = np.argsort(np.bincount(clicks.campaign[converted]))[-8:]
    shares = [late[converted & (clicks.campaign == campaign)].mean() for campaign in largest]
    assert max(shares) - min(shares) > 0.2


@pytest.mark.parametrize("delay_s", [900, 3600, DAY_S, 14 * DAY_S])
def test_drawn_delays_follow_their_distribution(delay_s: int) -> None:
    spec = spec_like("criteo")
    world = conversion_world(spec)
    campaign = np.repeat(np.arange(40), 2_500)
    delays = draw_delays(spec, world, campaign, spec.stream("test"))
    expected = delay_cdf(spec, world, campaign, delay_s)
    error = np.sqrt((expected * (1 - expected)).sum()) / len(campaign)
    assert (delays <= delay_s).mean() == pytest.approx(expected.mean(), abs=5 * error)


def test_the_truth_is_calibrated_against_the_labels_in_every_tenth() -> None:
    clicks = drawn()
    p, label = probability(clicks), clicks.converted_s >= 0
    for tenth in np.array_split(np.argsort(p), 10):
        error = np.sqrt((p[tenth] * (1 - p[tenth])).sum()) / len(tenth)
        assert label[tenth].mean() == pytest.approx(p[tenth].mean(), abs=5 * error)


def test_the_truth_of_net_conversions_is_calibrated_too() -> None:
    clicks = together(replace(spec_like("cascade"), rows=60_000))
    refunded = clicks.refunded_s - clicks.converted_s <= spec_like("cascade").window_s
    refunded &= clicks.refunded_s >= 0
    net = (clicks.converted_s >= 0) & ~refunded
    p = probability(clicks) * clicks.net
    error = np.sqrt((p * (1 - p)).sum()) / len(p)
    assert net.mean() == pytest.approx(p.mean(), abs=5 * error)
    share = (clicks.refunded_s >= 0).sum() / (clicks.converted_s >= 0).sum()
    assert share == pytest.approx(2.0 / 3.7, abs=0.08)


def test_campaigns_are_born_and_die_so_that_most_clicks_of_the_end_are_on_new_ones() -> None:
    clicks = drawn()
    day = clicks.clicked_s // DAY_S
    before = np.unique(clicks.campaign[day < 30])
    unknown = ~np.isin(clicks.campaign, before)
    assert unknown[(day >= 30) & (day < 35)].mean() < 0.3
    assert unknown[day >= 55].mean() > 0.5
    after = np.unique(clicks.campaign[day >= 30])
    assert len(np.setdiff1d(before, after)) > 20


def test_tastes_drift_slowly() -> None:
    """The appeal of a product moves by less in a day than in a month."""
    world = conversion_world(spec_like("criteo"))
    product = np.arange(24)
    none = np.zeros(24, dtype=np.int64)

    def appeal(day: int) -> np.ndarray:
        return world.appeal_of(product, none, np.full(24, float(day * DAY_S)))

    assert np.abs(appeal(1) - appeal(0)).max() < 0.05
    assert np.abs(appeal(30) - appeal(0)).mean() > 0.2


def test_publishers_and_campaigns_follow_zipf() -> None:
    for name in ("publisher", "campaign"):
        counts = np.sort(np.bincount(drawn().categories[name]))[::-1]
        assert counts[:10].sum() > 0.15 * counts.sum()
    assert len(np.unique(drawn().categories["publisher"])) > 3_000


def test_what_happens_after_the_log_was_written_is_not_in_it_but_in_the_truth(
    tmp_path: Path,
) -> None:
    simulate_conversions(replace(SMALL, recorded_days=12), "criteo", tmp_path)
    truth = pq.read_table(tmp_path / "truth" / "truth.parquet")
    later = truth["converted_s"].to_numpy() >= 12 * DAY_S
    lines = (tmp_path / "data.txt").read_text().splitlines()
    logged = np.array([line.split("\t")[1] != "" for line in lines])
    assert later.sum() > 100
    converted = truth["converted_s"].to_numpy() >= 0
    assert np.array_equal(logged, converted & ~later)


@pytest.mark.parametrize(("log_format", "spec"), [("criteo", SMALL), ("cascade", SMALL_CASCADE)])
def test_a_log_is_read_by_its_dataset_file_without_an_error_or_a_warning(
    log_format: LogFormat, spec: ConversionSpec, tmp_path: Path
) -> None:
    log = simulate_conversions(spec, log_format, tmp_path)
    findings = check_dataset(log.dataset_file, tmp_path / "home")
    assert [str(found) for found in findings if found.level != "ok"] == []
    rows = {found.subject: found.text for found in findings}
    assert rows["impressions"].startswith(f"{spec.rows:,} rows")
    assert rows["engagements"].startswith(f"{log.conversions:,} rows")


@pytest.mark.parametrize(
    ("log_format", "name"),
    [("criteo", "criteo_conversions"), ("cascade", "cascade_conversions")],
)
def test_the_dataset_file_beside_a_log_is_the_shipped_one_with_another_end(
    log_format: LogFormat, name: str, tmp_path: Path
) -> None:
    spec = replace(spec_like(log_format), rows=500, days=3)
    log = simulate_conversions(spec, log_format, tmp_path)
    ours, shipped = (
        load_dataset(log.dataset_file),
        load_dataset(DATA_FOLDER / name / "dataset.yaml"),
    )
    assert ours.end_us == shipped.start_us + 3 * DAY_US
    assert ours.model_copy(update={"end_us": shipped.end_us, "path": shipped.path}) == shipped


def test_days_do_not_depend_on_what_is_done_with_other_days() -> None:
    """Memory does not grow with the log: a day is drawn by itself."""
    first = list(days_of_clicks(SMALL))
    second = days_of_clicks(SMALL)
    for day in first[:3]:
        again = next(second)
        assert np.array_equal(day.converted_s, again.converted_s)
        assert np.array_equal(day.log_odds, again.log_odds)


def test_a_log_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("a real log\n")
    with pytest.raises(FileExistsError, match="stays as it is"):
        simulate_conversions(SMALL, "criteo", tmp_path)
    assert (tmp_path / "data.txt").read_text() == "a real log\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 0}, "at least 1"),
        ({"base_rate": 1.0}, "between 0 and 1"),
        ({"recorded_days": 3}, "at least the 60 days"),
        ({"refund_rate": 0.9, "late_refund_rate": 0.2}, "at most 1"),
    ],
)
def test_a_log_that_cannot_be_simulated_is_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(spec_like("criteo"), **changed)


def test_one_command_writes_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--rows", "300", "--days", "2", "--seed", "5", "--output", str(tmp_path)]
    assert main(["simulate-conversions", "--format", "criteo", *asked]) == 0
    assert "300 clicks" in capsys.readouterr().out
    assert len((tmp_path / "data.txt").read_text().splitlines()) == 300
    assert main(["simulate-conversions", "--format", "criteo", *asked]) == 1
    assert "stays as it is" in capsys.readouterr().err
