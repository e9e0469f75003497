"""The picture of a delay report: delays beside ad lives, and who is calibrated at which ad age.

It draws what was found (:mod:`.report`, :mod:`.what_if`, :mod:`.recommendation`) and decides
nothing. Palette and canvas are :mod:`ad_pipeline.evaluation.drawing`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US, SECOND_US, about
from ad_pipeline.evaluation.drawing import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    WIDTH,
    blank_figure,
    png_of,
    saying,
)
from ad_pipeline.evaluation.survival import Estimate
from ad_pipeline.monitoring.delay_report.recommendation import (
    WEIGHTED,
    GoalReport,
    Recommendation,
    bucket_in_words,
    recommendable,
)
from ad_pipeline.monitoring.delay_report.report import AgeBucket, DelayFacts
from ad_pipeline.monitoring.delay_report.what_if import WhatIf
from ad_pipeline.monitoring.late_labels.arms import ORACLE, VANILLA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 400
"""Of a curve."""

MOST_RATIO = 3.0
"""Drawn of a calibration: intervals of few anchors would press the others into a line."""

TICKS_US = (
    SECOND_US,
    MINUTE_US,
    10 * MINUTE_US,
    HOUR_US,
    6 * HOUR_US,
    DAY_US,
    7 * DAY_US,
    30 * DAY_US,
)


def delay_picture(report: GoalReport, *, title: str = "") -> bytes:
    """Draw the report of one goal.

    Parameters
    ----------
    report : GoalReport
    title : str

    Returns
    -------
    bytes
        PNG. Above, which share of the positives has come by when, beside which share of the ads
        has ended, and observed over predicted of the served scores by ad age; below, predicted
        over true of some losses in made worlds by ad age, and what each loss would cost.
    """
    figure = blank_figure(WIDTH, 8.2)
    ((curves, served), (ages, costs)) = figure.subplots(2, 2)
    _curves(curves, report.facts)
    _served(served, report.served)
    if report.replayed is None or report.found is None:
        for axes in (ages, costs):
            axes.set_axis_off()
        saying(figure, "No positive has come: nothing to replay")
    else:
        _ages(ages, report.found, report.replayed)
        _costs(costs, report.found)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return png_of(figure)


def drawn_arms(found: Recommendation) -> list[str]:
    """Return the names of the arms whose calibration by age is drawn, each once."""
    wanted = [found.arm.name, found.configured.name, VANILLA, WEIGHTED, "hazard", ORACLE]
    known = {cost.arm.name for cost in found.costs}
    return [name for name in dict.fromkeys(wanted) if name in known]


def _curves(axes: "Axes", facts: DelayFacts) -> None:
    horizon_us = facts.goal.window_us + facts.goal.lateness_us
    life = None if facts.ads is None else facts.ads.life
    last_us = max(horizon_us, 0 if life is None or not len(life.times_us) else life.times_us[-1])
    at_us = np.unique(np.geomspace(SECOND_US, last_us, POINTS).astype(np.int64))
    inside_us = at_us[at_us <= horizon_us]
    low, high = facts.delays.cdf_interval(inside_us)
    hours = inside_us / HOUR_US
    axes.fill_between(hours, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(hours, facts.delays.cdf(inside_us), color=COLOURS[0], label="positives that came")
    if life is not None and len(life.times_us):
        ended = life.incidence(at_us)
        axes.plot(at_us / HOUR_US, ended, color=COLOURS[1], linestyle="--", label="ads that ended")
    if facts.goal.observation_us:
        window = facts.goal.observation_us / HOUR_US
        axes.axvline(window, color=GREY, linestyle=":", label="observation window")
    axes.set_xscale("log")
    ticks = [us for us in TICKS_US if us <= last_us]
    axes.set_xticks([us / HOUR_US for us in ticks], [about(us) for us in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share")
    _titled(axes, f"Half of the positives come within {about(facts.median_us.value)}")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _served(axes: "Axes", served: dict[str, list[AgeBucket]]) -> None:
    _titled(axes, "Served scores by age of the ad")
    if not any(served.values()):
        axes.text(0.5, 0.5, "no scores of known ads yet", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    longest = max(served.values(), key=len)
    labels = [bucket.in_words for bucket in longest]
    for number, (expert, buckets) in enumerate(served.items()):
        _points(
            axes,
            [labels.index(bucket.in_words) for bucket in buckets if bucket.in_words in labels],
            [b.observed_over_predicted for b in buckets if b.in_words in labels],
            number,
            expert,
        )
    _by_age(axes, labels, "observed / predicted positives")


def _ages(axes: "Axes", found: Recommendation, replayed: WhatIf) -> None:
    told = np.flatnonzero(replayed.told).tolist()
    for number, name in enumerate(drawn_arms(found)):
        cost = found.cost(name)
        _points(axes, range(len(told)), [cost.by_age[bucket] for bucket in told], number, name)
    labels = [bucket_in_words(replayed.edges_us, bucket) for bucket in told]
    _by_age(axes, labels, "predicted / true probability")
    _titled(axes, f"In made worlds: {found.arm.name} is recommended")


def _costs(axes: "Axes", found: Recommendation) -> None:
    shown = sorted(
        (cost for cost in found.costs if recommendable(cost.arm)),
        key=lambda cost: cost.log_loss.value,
    )
    places = np.arange(len(shown))
    values = np.array([100 * cost.log_loss.value for cost in shown])
    bounds = np.array([[100 * cost.log_loss.low, 100 * cost.log_loss.high] for cost in shown])
    reach = np.abs(np.nan_to_num(bounds - values[:, None])).T
    colours = [COLOURS[0] if cost.tolerated else COLOURS[1] for cost in shown]
    axes.barh(places, values, xerr=reach, color=colours, height=0.65, ecolor=GREY)
    axes.set_yticks(places, [cost.arm.name for cost in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("log loss above the recommended one, %")
    axes.spines[["top", "right"]].set_visible(False)
    _titled(axes, "What each loss would cost; blue: tolerated")


def _points(
    axes: "Axes", places: Sequence[int], values: Sequence[Estimate], number: int, label: str
) -> None:
    middle = np.array([each.value for each in values])
    reach = np.array([[each.value - each.low, each.high - each.value] for each in values])
    axes.errorbar(
        np.asarray(places, dtype=np.float64) + 0.06 * (number - 2),
        middle,
        yerr=np.abs(np.nan_to_num(reach)).T if len(values) else None,
        color=COLOURS[number % len(COLOURS)],
        linestyle=LINES[number % len(LINES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        label=label,
    )


def _by_age(axes: "Axes", labels: Sequence[str], measured: str) -> None:
    axes.axhline(1.0, color=GREY, linewidth=1.0, linestyle=":")
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=7)
    axes.set_ylim(max(axes.get_ylim()[0], 0.0), min(axes.get_ylim()[1], MOST_RATIO))
    axes.set_ylabel(measured)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)


def _titled(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9)
