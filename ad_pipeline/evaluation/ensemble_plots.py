"""The picture of the ensemble over time: how its experts stand apart, how far off it is, and when.

It draws rows of ``evaluation.ensemble_hours`` and ``evaluation.loss_by_age``; the titles say what
is seen. Palette and canvas are :mod:`.drawing`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation.ages import EVENT
from ad_pipeline.evaluation.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    WIDTH,
    blank_figure,
    dated,
    framed,
    moment_of,
    png_of,
    saying,
)
from ad_pipeline.evaluation.held_out import ENSEMBLE
from ad_pipeline.evaluation.spread import Spread, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POOLED_HOURS = 6
LEVEL = 0.95
"""Of the bands; the tables have the level of the settings."""


def ensemble_over_time(hours: pa.Table, ages: pa.Table, *, title: str = "") -> bytes:
    """Draw variance, bias and loss by age of the ensemble, two rows of axes per goal.

    Points are hours, lines pool the last :data:`POOLED_HOURS` hours; the band of the bias is its
    95 % interval with hours as independent units.

    Parameters
    ----------
    hours : pyarrow.Table
        Rows of ``evaluation.ensemble_hours``.
    ages : pyarrow.Table
        Rows of ``evaluation.loss_by_age``.
    title : str
        Of the whole figure, such as the dataset's name.

    Returns
    -------
    bytes
        PNG. With no rows, a figure that says so.
    """
    records = hours.to_pylist()
    goals = sorted({record["goal"] for record in records})
    figure = blank_figure(WIDTH, 1.2 + 5.2 * max(len(goals), 1))
    if not goals:
        return png_of(saying(figure, "No goal has an ensemble yet"))
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(goals), 1)))
    for row, goal in zip(rows, goals, strict=True):
        of_goal = sorted(
            (record for record in records if record["goal"] == goal),
            key=lambda record: record["hour_us"],
        )
        aged = [record for record in ages.to_pylist() if record["goal"] == goal]
        (apart, gain), (bias, age) = row.subplots(2, 2)
        windows = [
            pooled(
                [
                    each
                    for each in of_goal[: place + 1]
                    if each["hour_us"] > record["hour_us"] - POOLED_HOURS * HOUR_US
                ],
                LEVEL,
            )
            for place, record in enumerate(of_goal)
        ]
        for axes, name, label in (
            (apart, "logit_variance", "variance of the experts' logits\naround the mixture"),
            (gain, "ambiguity", "ambiguity: nats a row\nthat mixing gains"),
            (bias, "bias", "bias: predicted less\nobserved rate"),
        ):
            _draw(axes, of_goal, windows, name)
            axes.set_ylabel(label)
        bias.axhline(0.0, color=GREY, linewidth=1.2, linestyle=":")
        _draw_ages(age, aged)
        row.suptitle(
            f"{goal}: {in_words(of_goal, aged)}",
            x=0.01,
            ha="left",
            fontweight="bold",
            fontsize=10,
        )
    named = f"{title}: the ensemble" if title else "The ensemble"
    figure.suptitle(
        f"{named} on matured hours that no fit has seen, by maturity (UTC).\nPoints: one hour; "
        f"lines: the last {POOLED_HOURS} hours; bands and bars: 95 % intervals.",
        fontsize=9,
    )
    return png_of(figure)


def in_words(hours: Sequence[Mapping[str, Any]], ages: Sequence[Mapping[str, Any]]) -> str:
    """Say what is seen in the rows of one goal.

    Parameters
    ----------
    hours : sequence of mapping
        Rows of ``evaluation.ensemble_hours``.
    ages : sequence of mapping
        Rows of ``evaluation.loss_by_age``.

    Returns
    -------
    str
        A clause for a title. A direction is named only if its interval excludes zero.
    """
    found = pooled(hours, LEVEL)
    rate = sum(each["positives"] for each in hours) / max(sum(each["rows"] for each in hours), 1)
    if not abs(found.bias) > found.bias_reach or not rate:
        biased = "predicts what comes"
    else:
        biased = (
            f"predicts {abs(found.bias) / rate:.1%} too {'much' if found.bias > 0 else 'little'}"
        )
    recent = [
        each
        for each in ages
        if each["forecast"] == ENSEMBLE and each["age_of"] == EVENT and each["from_hours"] == 0
    ]
    said = f"{hours[-1]['mixture']}, {biased}"
    if not recent:
        return said
    newest = recent[0]
    low, high = newest["against_rest_low"], newest["against_rest_high"]
    span = f"the last {newest['to_hours']} hours"
    if low is None or high is None or low <= 0 <= high:
        return f"{said}; {span} lose as the others do"
    than = "more" if low > 0 else "less"
    return f"{said}; {span} lose {abs(newest['against_rest']):.1%} {than}"


def _draw(
    axes: "Axes", hours: Sequence[Mapping[str, Any]], windows: Sequence[Spread], name: str
) -> None:
    times = np.array([moment_of(record["hour_us"]) for record in hours])
    colour = COLOURS[0]
    axes.plot(
        times,
        [record[name] for record in hours],
        color=colour,
        marker=MARKERS[0],
        linestyle="none",
        markersize=3,
        alpha=0.35,
    )
    middle = np.array([getattr(window, name) for window in windows])
    axes.plot(times, middle, color=colour)
    if name == "bias":
        reach = np.array([window.bias_reach for window in windows])
        axes.fill_between(
            times, middle - reach, middle + reach, color=colour, alpha=0.15, linewidth=0
        )
    framed(axes, (0.0,))
    dated(axes)


def _draw_ages(axes: "Axes", ages: Sequence[Mapping[str, Any]]) -> None:
    forecasts = sorted({record["forecast"] for record in ages})
    slices = list(
        dict.fromkeys(
            (record["age_of"], record["from_hours"], record["to_hours"]) for record in ages
        )
    )
    for number, forecast in enumerate(forecasts):
        own = [record for record in ages if record["forecast"] == forecast]
        places = [
            slices.index((record["age_of"], record["from_hours"], record["to_hours"]))
            + 0.2 * (number - (len(forecasts) - 1) / 2)
            for record in own
        ]
        middle, low, high = (
            np.array([np.nan if record[name] is None else record[name] for record in own])
            for name in ("normalized_entropy", "low", "high")
        )
        axes.errorbar(
            places,
            middle,
            yerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linestyle="none",
            capsize=2,
            label=forecast,
        )
    axes.set_xticks(
        range(len(slices)),
        [f"{age_of.split()[-1]}\n{first}–{last} h" for age_of, first, last in slices],
        fontsize=6,
    )
    axes.set_ylabel("normalized entropy by age of\nevent and batch model")
    framed(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if forecasts:
        axes.legend(frameon=False, fontsize=7)
