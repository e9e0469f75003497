"""Estimates rest on what the log had by then, are judged later, and withdrawn when they must."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US, hour_start
from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation import metrics
from ad_pipeline.monitoring import scored_anchors
from ad_pipeline.monitoring.performance_estimate import MEASURES
from ad_pipeline.monitoring.performance_estimate_hours import (
    VALID,
    WARMING_UP,
    WITHDRAWN,
    Row,
    past_errors,
    record_estimates,
    rows_up_to,
)
from ad_pipeline.monitoring.performance_estimate_plots import estimate_picture, finding
from ad_pipeline.monitoring.scored_anchors import scored_hours
from ad_pipeline.warehouse import Warehouse
from benchmarks.scored_logs import ScoredLog, drawn_delays, taken_in

START_US = hour_start("2026-03-02-00:00")
HOURS, ROWS_AN_HOUR, WINDOW_HOURS = 48, 250, 6
FIRST, DRIFT_HOUR = 30, 36
"""Hours of the log: the first one estimated here, and the start of drift where there is some."""
SETTINGS = (
    "{performance_estimate: {cohort_hours: 4, reference_hours: 20, past_hours: 48}, "
    "delays: {refit_every_hours: 12}}"
)


def made(*, drifts: bool) -> ScoredLog:
    """Return a log whose scores are the truth, until what they say is turned round."""
    rng = np.random.default_rng(3)
    n = HOURS * ROWS_AN_HOUR
    served_us = START_US + np.sort(rng.integers(0, HOURS * HOUR_US, n))
    logits = rng.normal(-1.8, 1.0, n)
    turned = served_us >= START_US + (DRIFT_HOUR if drifts else HOURS) * HOUR_US
    truth = np.where(turned, -3.6 - logits, logits)
    converted = rng.random(n) < metrics.probabilities_of(truth)
    return ScoredLog(
        START_US,
        HOURS,
        WINDOW_HOURS,
        served_us,
        np.arange(n) % 5,
        converted,
        served_us + drawn_delays(rng, n, 2.0, WINDOW_HOURS),
        logits,
    )


@dataclass(frozen=True)
class Site:
    """A log that was taken in."""

    log: ScoredLog
    deployment: Deployment

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.deployment.warehouse)

    def estimated(self, first: int, last: int) -> list[Row]:
        """Return the estimates of some hours of the log."""
        return record_estimates(
            self.warehouse,
            self.deployment.dataset,
            START_US + first * HOUR_US,
            START_US + last * HOUR_US,
        ).estimates

    def planted(self, folder: Path, *statements: str) -> "Site":
        """Return a copy in which something was written."""
        copy = Site(self.log, replace(self.deployment, home=folder))
        copy.deployment.warehouse.parent.mkdir(parents=True, exist_ok=True)
        copy.deployment.warehouse.write_bytes(self.deployment.warehouse.read_bytes())
        with copy.warehouse.writer() as connection:
            for statement in statements:
                connection.execute(statement)
        return copy


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a log without drift, estimated from its first hour that can be to its end."""
    log = made(drifts=False)
    site = Site(log, taken_in(log, tmp_path_factory.mktemp("calm"), SETTINGS))
    site.estimated(FIRST, HOURS)
    return site


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a log in which the same scores lead to other outcomes from an hour on."""
    log = made(drifts=True)
    site = Site(log, taken_in(log, tmp_path_factory.mktemp("drifting"), SETTINGS))
    site.estimated(FIRST, DRIFT_HOUR + WINDOW_HOURS)
    return site


def rows(site: Site) -> tuple[list[Row], list[Row]]:
    found = rows_up_to(site.warehouse, HOURS, site.log.end_us)
    return found.estimates, found.realised


def test_a_calm_log_is_estimated_and_what_comes_lies_in_the_intervals(calm: Site) -> None:
    estimates, realised = rows(calm)
    assert {row["state"] for row in estimates} == {VALID}
    assert len(realised) == HOURS - FIRST - WINDOW_HOURS
    assert np.mean([row["kept"] for row in realised]) >= 0.8
    assert past_errors(calm.warehouse, calm.deployment.dataset)["conversion", "online"].judged >= 2


def test_what_came_of_an_estimate_is_the_loss_of_its_anchors_final_labels(calm: Site) -> None:
    """Against the made log itself, past every table."""
    log = calm.log
    _, realised = rows(calm)
    for row in realised[::4]:
        end_us = row["estimate_hour_us"] + HOUR_US
        own = (log.served_us >= end_us - 4 * HOUR_US) & (log.served_us < end_us)
        labels, p = log.converted[own].astype(int), metrics.probabilities_of(log.logits[own])
        assert (row["rows"], row["positives"]) == (own.sum(), labels.sum())
        assert row["log_loss"] == pytest.approx(metrics.log_loss(labels, p), rel=1e-9)
        assert row["observed_over_predicted"] == pytest.approx(labels.sum() / p.sum(), rel=1e-9)
        assert end_us + WINDOW_HOURS * HOUR_US <= row["hour_us"] + HOUR_US


def test_hours_one_by_one_or_in_one_range_give_the_same_rows(calm: Site, tmp_path: Path) -> None:
    copy = calm.planted(
        tmp_path,
        "DELETE FROM monitoring.performance_estimate",
        "DELETE FROM monitoring.performance_realised",
    )
    # The last two have a judged estimate each, and the next ones read it.
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 11)):
        copy.estimated(FIRST + first, FIRST + last)
    until_us = START_US + (FIRST + 11) * HOUR_US
    for whole, parts in zip(rows(calm), rows(copy), strict=True):
        assert parts
        assert repr(parts) == repr([row for row in whole if row["hour_us"] < until_us])


Read = list[tuple[int, str, int, dict[str, bytes]]]
"""Hour, expert, engaged anchors, and every array's bytes."""


def read(site: Site, first: int, last: int) -> Read:
    dataset = site.deployment.dataset
    span = START_US + first * HOUR_US, START_US + last * HOUR_US
    goal = dataset.goal("conversion")
    found: Read = []
    for hour_us, expert, scored in scored_hours(site.warehouse, dataset, goal, *span):
        arrays = vars(scored) | vars(scored.anchors)
        told = {name: each.tobytes() for name, each in arrays.items() if hasattr(each, "tobytes")}
        assert len(told) == 7
        told["delays"] = repr(scored.anchors.delays).encode()
        found.append((hour_us, expert, int(scored.anchors.engaged.sum()), told))
    return found


@pytest.mark.parametrize(("first", "most"), [(FIRST, 100_000), (12, 3_000)])
def test_hours_read_together_are_hours_read_alone(
    calm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, most: int
) -> None:
    """With engagements that are taken back within the hours, and with shares that differ."""
    gone_us = START_US + (first + 4) * HOUR_US
    copy = calm.planted(
        tmp_path,
        "INSERT INTO events.retractions BY NAME SELECT event_id AS engagement_event_id, "
        f"'r' || event_id AS event_id, {gone_us} AS occurred_us, {gone_us} AS received_us "
        f"FROM events.engagements WHERE received_us >= {gone_us - 3 * HOUR_US} "
        f"AND received_us < {gone_us} AND md5_number_lower(event_id) % 3 = 0",
    )
    monkeypatch.setattr(scored_anchors, "MAXIMUM_ROWS", most)
    hours = range(first, first + 8)
    together = read(copy, hours.start, hours.stop)
    assert together == [one for hour in hours for one in read(copy, hour, hour + 1)]
    lost = [
        kept[2] - own[2]
        for kept, own in zip(read(calm, hours.start, hours.stop), together, strict=True)
    ]
    assert lost[:4] == [0] * 4
    assert min(lost[4:6]) > 0
    rows = [len(told["logits"]) for *_, told in together]
    assert any(after < 0.7 * before for before, after in pairwise(rows)) is (most == 3_000)


HOUR = FIRST + 8
NOW_US = START_US + (HOUR + 1) * HOUR_US
LATER = (
    f"DELETE FROM events.impressions WHERE received_us >= {NOW_US}",
    f"DELETE FROM events.engagements WHERE received_us >= {NOW_US}",
    f"DELETE FROM examples.label_states WHERE state_us >= {NOW_US}",
    f"DELETE FROM examples.labelled_impressions WHERE matured_us >= {NOW_US}",
    f"DELETE FROM examples.label_delays WHERE fitted_us > {NOW_US}",
    f"DELETE FROM learners.online_predictions WHERE serving_us >= {NOW_US}",
    f"DELETE FROM monitoring.performance_estimate WHERE hour_us >= {NOW_US}",
    f"DELETE FROM monitoring.performance_realised WHERE hour_us >= {NOW_US}",
)


def test_nothing_that_the_log_got_later_is_used(calm: Site, tmp_path: Path) -> None:
    (known,) = calm.planted(tmp_path / "later", *LATER).estimated(HOUR, HOUR + 1)
    (whole,) = [row for row in rows(calm)[0] if row["hour_us"] == NOW_US - HOUR_US]
    assert repr(known) == repr(whole)


@pytest.mark.parametrize(
    "leak",
    [
        f"UPDATE events.engagements SET received_us = {NOW_US - 1} WHERE received_us >= {NOW_US} "
        f"AND received_us < {NOW_US + HOUR_US}",
        f"UPDATE examples.labelled_impressions SET matured_us = {NOW_US - 1} "
        f"WHERE matured_us >= {NOW_US} AND matured_us < {NOW_US + HOUR_US}",
    ],
)
def test_a_leak_of_labels_would_be_seen(calm: Site, tmp_path: Path, leak: str) -> None:
    """Planted fault: what came an hour later bears an earlier stamp."""
    (leaked,) = calm.planted(tmp_path, leak).estimated(HOUR, HOUR + 1)
    (whole,) = [row for row in rows(calm)[0] if row["hour_us"] == NOW_US - HOUR_US]
    assert repr(leaked) != repr(whole)


def test_on_concept_drift_it_is_withdrawn_before_a_drifted_label_is_final(drifting: Site) -> None:
    found, _ = rows(drifting)
    states = [row["state"] for row in found]
    drifted = DRIFT_HOUR - FIRST
    assert states[:drifted] == [VALID] * drifted
    assert WITHDRAWN in states[drifted : drifted + WINDOW_HOURS - 1]
    withdrawn = next(row for row in found if row["state"] == WITHDRAWN)
    assert withdrawn["slope_shift"] < -0.3
    assert "labels so far ask for" in withdrawn["reason"]
    assert {withdrawn[f"{name}{part}"] for name in MEASURES for part in ("", "_low", "_high")} == {
        None
    }


def test_it_comes_back_when_no_cohort_that_departed_has_an_anchor_in_it(calm: Site, tmp_path: Path):
    last_us = NOW_US - HOUR_US
    departed = "UPDATE monitoring.performance_estimate SET departure = 1e-9"
    copy = calm.planted(tmp_path, f"{departed} WHERE hour_us = {last_us}")
    states = [row["state"] for row in copy.estimated(HOUR + 1, HOUR + 6)]
    assert states == [WITHDRAWN] * 3 + [VALID] * 2


def verdict(kind: str, subject: str) -> str:
    return (
        f"INSERT INTO monitoring.drift_verdicts BY NAME SELECT {NOW_US - 3 * HOUR_US} AS hour_us, "
        f"'{kind}' AS kind, '{subject}' AS subject, true AS drifted, 'c' AS cause"
    )


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        (verdict("calibration", "conversion, online"), WITHDRAWN),
        (verdict("label_delay", "conversion"), WITHDRAWN),
        (verdict("calibration", "conversion, batch"), VALID),
        (verdict("inputs", ""), VALID),
    ],
)
def test_an_alarm_about_its_goal_and_expert_withdraws_it(
    calm: Site, tmp_path: Path, statement: str, state: str
) -> None:
    (row,) = calm.planted(tmp_path, statement).estimated(HOUR, HOUR + 1)
    assert row["state"] == state
    assert ("has drifted" in row["reason"]) == (state == WITHDRAWN)


def test_intervals_that_were_missed_too_often_withdraw_the_next_one(
    calm: Site, tmp_path: Path
) -> None:
    last = HOURS - 1
    newest_us = START_US + (last - WINDOW_HOURS) * HOUR_US
    missed = (
        "INSERT INTO monitoring.performance_realised BY NAME SELECT "
        f"{newest_us} - place * {4 * HOUR_US} AS estimate_hour_us, 'conversion' AS goal, "
        f"{newest_us} - place * {4 * HOUR_US} + {WINDOW_HOURS * HOUR_US} AS hour_us, "
        "'online' AS expert, false AS kept, 4.0 AS log_loss_deviation, "
        "4.0 AS normalized_entropy_deviation, 4.0 AS observed_over_predicted_deviation "
        "FROM range(1, 9) AS places(place)"
    )
    copy = calm.planted(tmp_path, "DELETE FROM monitoring.performance_realised", missed)
    (row,) = copy.estimated(last, last + 1)
    assert row["state"] == WITHDRAWN
    assert "estimates missed their interval" in row["reason"]


@pytest.mark.parametrize(
    ("hour", "lacking", "reason"),
    [
        (3, "SELECT 1", "no label's delay is known yet"),
        (
            14,
            "UPDATE examples.labelled_impressions SET arrived_us = NULL",
            "0 final positives before its hours, 100 needed",
        ),
        (18, "SELECT 1", "final labels of 13 scored hours before its own, 20 wanted"),
    ],
)
def test_a_young_log_is_warming_up_and_says_what_is_missing(
    calm: Site, tmp_path: Path, hour: int, lacking: str, reason: str
) -> None:
    (row,) = calm.planted(tmp_path, lacking).estimated(hour, hour + 1)
    assert row["state"] == WARMING_UP
    assert reason in row["reason"]
    assert row["log_loss"] is None


def test_a_sample_of_the_anchors_is_about_them_all(calm: Site, tmp_path: Path) -> None:
    dataset = calm.deployment.dataset
    asked = dataset.settings.performance_estimate.model_copy(update={"one_in": 3})
    settings = dataset.settings.model_copy(update={"performance_estimate": asked})
    copy = calm.planted(tmp_path)
    sampled = Site(
        calm.log,
        replace(copy.deployment, dataset=dataset.model_copy(update={"settings": settings})),
    )
    (row,) = sampled.estimated(HOUR, HOUR + 1)
    (whole,) = [row for row in rows(calm)[0] if row["hour_us"] == NOW_US - HOUR_US]
    assert row["rows"] == pytest.approx(whole["rows"] / 3, rel=0.15)
    assert row["log_loss_error"] > whole["log_loss_error"]
    assert row["log_loss"] == pytest.approx(whole["log_loss"], rel=0.15)


def test_more_traffic_than_an_hour_may_read_is_thinned(
    calm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_anchors, "MAXIMUM_ROWS", 2_000)
    (row,) = calm.planted(tmp_path).estimated(HOUR, HOUR + 1)
    (whole,) = [row for row in rows(calm)[0] if row["hour_us"] == NOW_US - HOUR_US]
    # 26 hours of 250 anchors had matured: one in four.
    assert row["rows"] == pytest.approx(whole["rows"] / 4, rel=0.2)
    assert row["state"] == VALID


def test_the_picture_shows_what_was_said_and_what_was_not(calm: Site, drifting: Site) -> None:
    pictures = []
    said: list[Callable[[str], bool]] = []
    for site in (calm, drifting):
        estimates, realised = rows(site)
        pictures.append(estimate_picture(estimates, realised))
        said.append(finding(estimates).startswith)
    assert all(png.startswith(b"\x89PNG") for png in pictures)
    assert pictures[0] != pictures[1]
    assert said[0]("conversion, online: log loss about")
    assert said[1]("conversion, online: withdrawn")
    assert estimate_picture([], []).startswith(b"\x89PNG")
