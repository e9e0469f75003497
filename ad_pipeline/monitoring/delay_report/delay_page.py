"""The delay report for people: one HTML page that holds all, and lines for a terminal.

Formatting only. What is said is made in :mod:`.recommendation`, what is drawn in
:mod:`.delay_plots`, what is measured in :mod:`.report`.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

import numpy as np

from ad_pipeline.clocks import about, timestamp
from ad_pipeline.evaluation.survival import Estimate
from ad_pipeline.monitoring.delay_report.recommendation import (
    PER_ANCHORS,
    GoalReport,
    Recommendation,
    bucket_in_words,
    sentences,
)
from ad_pipeline.monitoring.delay_report.report import AgeBucket, DelayFacts
from ad_pipeline.monitoring.delay_report.what_if import WhatIf
from ad_pipeline.settings import DelayReportSettings

Rows = Sequence[Sequence[str]]

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-size:13px}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}"
    "img{max-width:100%}.off{background:#fbe3d6}"
)


def delay_page(
    dataset: str,
    reports: Sequence[GoalReport],
    pictures: Mapping[str, bytes],
    settings: DelayReportSettings,
) -> str:
    """Return the page.

    Parameters
    ----------
    dataset : str
        Its name.
    reports : sequence of GoalReport
    pictures : mapping of str to bytes
        By goal, a PNG.
    settings : DelayReportSettings
        From when on a bucket of ad ages is marked.
    """
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Late labels of {escape(dataset)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Late labels of {escape(dataset)}</h1>",
    ]
    if not reports:
        parts.append("<p>The log has no anchors yet.</p>")
    for report in reports:
        parts += _goal(report, pictures[report.facts.goal.name], settings)
    return "\n".join([*parts, "</body></html>\n"])


def facts_in_words(facts: DelayFacts) -> Iterator[tuple[str, str]]:
    """Yield name and value of what the log says of a goal, for people."""
    yield "anchors", f"{facts.anchors:,}, of them {facts.positives:,} positive so far"
    yield "share that converts", _ranged(facts.delays.rate, "{:.4f}")
    yield "the same, waiting ones taken for negatives", f"{facts.rate_so_far:.4f}"
    yield "labels in flight", f"{facts.in_flight:.1%}"
    yield "positives still to come", _ranged(facts.share_to_come, "{:.1%}")
    yield "median delay", _spans(facts.median_us)
    yield "nine tenths come within", _spans(facts.late_us)
    yield (
        f"positives after the observation window ({about(facts.goal.observation_us)})",
        _ranged(facts.lateness, "{:.1%}"),
    )
    if facts.ads is None:
        return
    yield "ads, and those born in the log", f"{facts.ads.ads:,}, {facts.ads.born:,}"
    life = facts.ads.median_life_us
    yield "median ad life", f"over {about(life.low)}" if np.isnan(life.value) else _spans(life)
    yield (
        "median and nine-tenths delay over it",
        f"{_number(facts.median_of_life)}, {_number(facts.late_of_life)}",
    )
    yield "anchors of ads younger than the median delay", _ranged(facts.ads.young, "{:.1%}")


def cost_rows(found: Recommendation, replayed: WhatIf) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of what every way of learning would do, as text."""
    buckets = np.flatnonzero(replayed.told).tolist()
    headings = ["way of learning", "log loss against the recommended", "predicted / true"]
    headings += [f"at ages {bucket_in_words(replayed.edges_us, bucket)}" for bucket in buckets]
    if replayed.worth is not None:
        headings.append(f"lost in {PER_ANCHORS:,} anchors")
    rows: list[list[str]] = []
    for cost in found.costs:
        row = [cost.arm.name, _ranged(cost.log_loss, "{:+.2%}"), f"{cost.calibration.value:.3f}"]
        row += [f"{cost.by_age[bucket].value:.2f}" for bucket in buckets]
        if cost.money is not None:
            row.append(f"{cost.money.value / 1e6:,.3f}")
        rows.append(row)
    return headings, rows


def served_rows(
    served: Mapping[str, Sequence[AgeBucket]], settings: DelayReportSettings
) -> list[list[str]]:
    """Return the cells of served scores by age of the ad, as text."""
    return [
        [
            expert,
            bucket.in_words,
            f"{bucket.rows:,}",
            f"{bucket.positives:,}",
            _ranged(bucket.observed_over_predicted, "{:.2f}"),
            "miscalibrated" if bucket.miscalibrated(settings) else "",
        ]
        for expert, buckets in served.items()
        for bucket in buckets
    ]


def report_lines(report: GoalReport, settings: DelayReportSettings) -> Iterator[str]:
    """Yield what a terminal shows of one goal.

    Parameters
    ----------
    report : GoalReport
    settings : DelayReportSettings
        From when on a bucket of ad ages is told.
    """
    yield f"{report.facts.goal.name}:"
    for name, value in facts_in_words(report.facts):
        yield f"  {name}: {value}"
    for expert, ages, _, _, ratio, off in served_rows(report.served, settings):
        if off:
            yield f"  {expert} is {off} at ad ages {ages}: observed / predicted {ratio}"
    if report.found is None or report.replayed is None:
        yield "  no positive has come: nothing to replay"
        return
    for sentence in sentences(report.found, report.replayed):
        yield f"  {sentence}"


SERVED_HEADINGS = ("expert", "age of the ad", "anchors", "positives", "observed / predicted", "")


def _goal(report: GoalReport, picture: bytes, settings: DelayReportSettings) -> Iterator[str]:
    facts = report.facts
    yield f"<h2>{escape(facts.goal.name)}</h2>"
    yield (
        f"<p>Anchors served {timestamp(facts.start_us)} to {timestamp(facts.now_us)}, as known "
        "then. An anchor without a label counts as waited for (product-limit estimator).</p>"
    )
    if report.found is not None and report.replayed is not None:
        yield _listed(sentences(report.found, report.replayed))
    drawn = base64.b64encode(picture).decode()
    yield f"<img alt='delays and losses' src='data:image/png;base64,{drawn}'>"
    yield _table(("of the log", "value"), list(facts_in_words(facts)))
    yield "<h3>Served scores by age of the ad</h3>"
    yield _table(SERVED_HEADINGS, served_rows(report.served, settings))
    if facts.groups:
        yield "<h3>Groups</h3>"
        yield _table(
            ("group", "anchors", "positives", "share that converts", "median delay"),
            [
                [
                    group.name,
                    f"{group.anchors:,}",
                    f"{group.positives:,}",
                    _ranged(group.rate, "{:.4f}"),
                    _spans(group.median_us),
                ]
                for group in facts.groups
            ],
        )
    if report.found is not None and report.replayed is not None:
        yield "<h3>What each way of learning would do, in made worlds</h3>"
        yield (
            "<p>A world has the log's base rate, delays, ad lives and traffic of an ad, and is not "
            "the log: no features but the ad, no drift, no hours of the day.</p>"
        )
        yield _table(*cost_rows(report.found, report.replayed))


def _listed(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(headings: Sequence[str], rows: Rows) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr{' class=off' if 'miscalibrated' in row else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _ranged(estimate: Estimate, form: str) -> str:
    if np.isnan(estimate.value):
        return "not known"
    value = form.format(estimate.value)
    if np.isnan(estimate.low) or np.isnan(estimate.high):
        return value
    return f"{value} [{form.format(estimate.low)}, {form.format(estimate.high)}]"


def _spans(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "not known"
    return f"{about(estimate.value)} [{about(estimate.low)}, {about(estimate.high)}]"


def _number(value: float) -> str:
    return "not known" if np.isnan(value) else f"{value:.2f}"
