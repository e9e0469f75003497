"""The picture of an estimate over time: what was said, what came of it, and when nothing was said.

It draws rows that were written (:mod:`.performance_estimate_hours`) and decides nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation.drawing import (
    COLOURS,
    GREY,
    PALE,
    WIDTH,
    blank_figure,
    dated,
    framed,
    moment_of,
    png_of,
    saying,
)
from ad_pipeline.monitoring.performance_estimate_hours import KEPT, VALID, WITHDRAWN

DRAWN_HOURS = 168
"""A week."""

_SAID = {
    "log_loss": "log loss, nats a row",
    "observed_over_predicted": "observed over\npredicted positives",
}

Rows = Sequence[Mapping[str, Any]]


def finding(estimates: Rows) -> str:
    """Say in one sentence what the newest estimate of one goal and expert is.

    Parameters
    ----------
    estimates : sequence of mapping
        Rows of ``monitoring.performance_estimate``, the newest last; at least one.
    """
    newest = estimates[-1]
    of = f"{newest['goal']}, {newest['expert']}"
    if newest["state"] != VALID:
        return f"{of}: {newest['state']}, {newest['reason']}"
    loss, ratio = (
        f"{newest[name]:.3g} ({newest[f'{name}_low']:.3g} to {newest[f'{name}_high']:.3g})"
        for name in KEPT
    )
    return (
        f"{of}: log loss about {loss}, {ratio} positives for each predicted; "
        f"{newest['final_share']:.0%} of the labels are final"
    )


def estimate_picture(estimates: Rows, realised: Rows) -> bytes:
    """Draw the estimates of one goal, an expert a row, beside what they turned out to be.

    Parameters
    ----------
    estimates, realised : sequence of mapping
        Rows of ``monitoring.performance_estimate`` and ``monitoring.performance_realised`` of one
        goal, in the order of their hours.

    Returns
    -------
    bytes
        PNG. Line and band: the estimate and its interval. Points: the realised value. Grey: hours
        in which the estimate was withdrawn.
    """
    experts = sorted({row["expert"] for row in estimates})
    figure = blank_figure(WIDTH, 1.0 + 2.6 * max(len(experts), 1))
    if not experts:
        return png_of(saying(figure, "No hour has been estimated yet"))
    panels = np.atleast_2d(np.asarray(figure.subplots(len(experts), len(KEPT), sharex=True)))
    for place, expert in enumerate(experts):
        said = [row for row in estimates if row["expert"] == expert]
        came = {row["estimate_hour_us"]: row for row in realised if row["expert"] == expert}
        times = [moment_of(row["hour_us"] + HOUR_US) for row in said]
        for axes, name in zip(panels[place], KEPT, strict=True):
            value, low, high = (
                np.array([row[f"{name}{part}"] for row in said], dtype=np.float64)
                for part in ("", "_low", "_high")
            )
            turned_out = np.array(
                [came.get(row["hour_us"], {}).get(name) for row in said], dtype=np.float64
            )
            axes.fill_between(times, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
            axes.plot(times, value, color=COLOURS[0], label="estimated, with its interval")
            axes.plot(
                times, turned_out, color=COLOURS[1], marker="s", markersize=3, linestyle="none",
                label="once labels had matured",
            )  # fmt: skip
            for row in said:
                if row["state"] == WITHDRAWN:
                    span = (moment_of(row["hour_us"]), moment_of(row["hour_us"] + HOUR_US))
                    axes.axvspan(*span, color=PALE, alpha=0.5, linewidth=0)
            axes.set_ylabel(_SAID[name])
            dated(axes)
            framed(axes)
        panels[place, 1].axhline(1.0, color=GREY, linewidth=1.0, linestyle=":")
        panels[place, 0].set_title(finding(said), loc="left", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return png_of(figure)
