"""The picture of re-checked hours: which features and scores differed, when, and in how many rows.

It draws what was found and decides nothing; causes stand in the table beside it.
"""

from collections.abc import Sequence

import numpy as np

from ad_pipeline.clocks import timestamp
from ad_pipeline.evaluation.drawing import WIDTH, blank_figure, png_of, saying
from ad_pipeline.monitoring.parity.recheck import RecheckedHour

MOST_NAMES = 24
"""Rows drawn: those that differ most."""

_SMALLEST = 1e-4
"""Share at which the colour scale begins; one row in ten thousand is to be seen."""


def parity_picture(rechecked: Sequence[RecheckedHour]) -> bytes:
    """Draw the share of differing decisions by feature or goal and hour.

    Parameters
    ----------
    rechecked : sequence of RecheckedHour
        At least one.

    Returns
    -------
    bytes
        PNG. A row a feature or goal that differed anywhere, a column an hour, shares on a
        logarithmic scale; a sentence where nothing differed.
    """
    shares = differing_shares(rechecked)
    decisions = sum(hour.decisions for hour in rechecked)
    if not shares:
        words = f"{decisions:,} decisions, all given again" if decisions else "no decisions yet"
        return png_of(saying(blank_figure(WIDTH, 2.0), words))
    hours = sorted({hour.hour_us for hour in rechecked})
    worst = sorted(shares, key=lambda name: -max(shares[name].values()))[:MOST_NAMES]
    cells = np.array([[shares[name].get(hour_us, 0.0) for hour_us in hours] for name in worst])
    figure = blank_figure(WIDTH, 1.6 + 0.26 * len(worst))
    axes = figure.add_subplot()
    drawn = axes.imshow(
        np.log10(np.maximum(cells, _SMALLEST)),
        aspect="auto",
        cmap="cividis_r",
        vmin=np.log10(_SMALLEST),
        vmax=0.0,
        interpolation="nearest",
    )
    axes.set_yticks(range(len(worst)), worst, fontsize=8)
    ticks = np.unique(np.linspace(0, len(hours) - 1, 5).astype(int)).tolist()
    axes.set_xticks(ticks, [timestamp(hours[place])[:16] for place in ticks], fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, ticks=[-4, -3, -2, -1, 0])
    bar.ax.set_yticklabels(["0.01 % or none", "0.1 %", "1 %", "10 %", "all"], fontsize=8)
    more = len(shares) - len(worst)
    axes.set_title(
        f"{len(shares)} features and scores differ in {decisions:,} decisions"
        + (f"; {more} more are not drawn" if more else ""),
        fontsize=10,
    )
    return png_of(figure)


def differing_shares(rechecked: Sequence[RecheckedHour]) -> dict[str, dict[int, float]]:
    """Return the share of differing rows by name and hour, names that differ somewhere only."""
    found: dict[str, dict[int, float]] = {}
    for hour in rechecked:
        for parity in (hour.features, hour.scores):
            for rate in parity.rates:
                if rate.equal < rate.rows:
                    of_name = found.setdefault(rate.name, {})
                    share = (rate.rows - rate.equal) / rate.rows
                    of_name[hour.hour_us] = max(of_name.get(hour.hour_us, 0.0), share)
    return found
