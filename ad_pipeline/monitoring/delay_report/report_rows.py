"""A delay report as rows of ``monitoring.delay_report``: one number a row, with its interval.

Only the shape; every number is made in :mod:`.report`, :mod:`.what_if` and :mod:`.recommendation`.
"""

from collections.abc import Iterator
from typing import Any

from ad_pipeline.evaluation.survival import Estimate
from ad_pipeline.monitoring.delay_report.recommendation import (
    GoalReport,
    Recommendation,
    bucket_in_words,
    sentences,
)
from ad_pipeline.monitoring.delay_report.report import DelayFacts
from ad_pipeline.monitoring.delay_report.what_if import WhatIf
from ad_pipeline.settings import DelayReportSettings

Row = dict[str, Any]

LOG, SERVED, REPLAYED, SAID = "log", "served", "made worlds", "recommendation"
"""What a row is about."""

OBSERVED_OVER_PREDICTED = "observed_over_predicted"


def report_rows(report: GoalReport, settings: DelayReportSettings) -> Iterator[Row]:
    """Yield the rows of one goal.

    Parameters
    ----------
    report : GoalReport
    settings : DelayReportSettings
        From when on a bucket of ad ages is miscalibrated.
    """
    shared = {"goal": report.facts.goal.name, "known_until_us": report.facts.now_us}
    for row in _rows(report, settings):
        yield _EMPTY | shared | row


_EMPTY: Row = {
    "name": "", "part": "", "metric": "", "value": None, "low": None, "high": None, "rows": None,
    "positives": None, "miscalibrated": None, "said": None,
}  # fmt: skip


def _rows(report: GoalReport, settings: DelayReportSettings) -> Iterator[Row]:
    yield from _of_log(report.facts)
    for expert, buckets in report.served.items():
        for bucket in buckets:
            yield _estimated(
                SERVED, expert, OBSERVED_OVER_PREDICTED, bucket.observed_over_predicted
            ) | {
                "part": bucket.in_words,
                "rows": bucket.rows,
                "positives": bucket.positives,
                "miscalibrated": bucket.miscalibrated(settings),
            }
    if report.replayed is not None and report.found is not None:
        yield from _of_worlds(report.found, report.replayed)


def _of_log(facts: DelayFacts) -> Iterator[Row]:
    counted = {"rows": facts.anchors, "positives": facts.positives}
    for metric, estimate in facts_figures(facts).items():
        yield _estimated(LOG, "", metric, estimate) | counted
    for group in facts.groups:
        for metric, estimate in (
            ("rate", group.rate),
            ("median_delay_us", group.median_us),
            ("late_delay_us", group.late_us),
        ):
            yield _estimated(LOG, group.name, metric, estimate) | {
                "part": "group",
                "rows": group.anchors,
                "positives": group.positives,
            }


def facts_figures(facts: DelayFacts) -> dict[str, Estimate]:
    """Return what the log says of all anchors of a goal, by name; delays in microseconds."""
    found = {
        "rate": facts.delays.rate,
        "rate_of_final_labels": facts.matured_rate,
        "rate_so_far": Estimate(facts.rate_so_far),
        "share_of_labels_in_flight": Estimate(facts.in_flight),
        "share_of_positives_to_come": facts.share_to_come,
        "positives_to_come": facts.to_come,
        "median_delay_us": facts.median_us,
        "late_delay_us": facts.late_us,
        "share_after_the_window": facts.lateness,
        "delayed_rate": Estimate(facts.delayed_rate),
    }
    if facts.ads is not None:
        found |= {
            "median_ad_life_us": facts.ads.median_life_us,
            "median_delay_over_ad_life": Estimate(facts.median_of_life),
            "late_delay_over_ad_life": Estimate(facts.late_of_life),
            "share_of_young_ads": facts.ads.young,
            "spread_of_ad_rates": Estimate(facts.ads.variation),
        }
    return found


def _of_worlds(found: Recommendation, replayed: WhatIf) -> Iterator[Row]:
    for cost in found.costs:
        name = cost.arm.name
        yield _estimated(REPLAYED, name, "log_loss_against_recommended", cost.log_loss)
        yield _estimated(REPLAYED, name, "predicted_over_true", cost.calibration)
        yield _estimated(REPLAYED, name, "miscalibration_by_age", Estimate(cost.miscalibration))
        if cost.money is not None:
            yield _estimated(REPLAYED, name, "micro_lost_in_1000_anchors", cost.money)
        for bucket, estimate in enumerate(cost.by_age):
            if replayed.told[bucket]:
                yield _estimated(REPLAYED, name, "predicted_over_true", estimate) | {
                    "part": bucket_in_words(replayed.edges_us, bucket),
                    "rows": int(replayed.anchors[:, bucket].sum()),
                }
    for metric, estimate in (
        ("weighting_changes_log_loss", found.weighting_log_loss),
        ("weighting_changes_prediction", found.weighting_prediction),
    ):
        yield _estimated(SAID, found.arm.name, metric, estimate)
    for number, sentence in enumerate(sentences(found, replayed), 1):
        yield {
            "about": SAID,
            "name": found.arm.name,
            "metric": f"sentence {number}",
            "said": sentence,
        }


def _estimated(about: str, name: str, metric: str, estimate: Estimate) -> Row:
    return {
        "about": about,
        "name": name,
        "metric": metric,
        "value": float(estimate.value),
        "low": float(estimate.low),
        "high": float(estimate.high),
    }
