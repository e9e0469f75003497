"""What user vectors are worth on a log, for people: a picture of a goal, and a line a question.

Draws and says figures that were measured (:mod:`.worth`); nothing is computed here.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.evaluation.drawing import COLOURS, GREY, MARKERS, blank_figure, png_of
from ad_pipeline.monitoring.user_vectors.recall import POPULAR, SIMILAR_USERS
from ad_pipeline.monitoring.user_vectors.worth import (
    ABLATION,
    COLD_START,
    DIMENSION,
    GAIN,
    INTERVAL,
    LIST,
    MATCH,
    NORMALIZED_ENTROPY,
    RECALL,
    RECALL_AT,
    STALENESS,
    STRANGERS,
    WHOLE_OVER,
    Figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_ASKED = "not asked; name some in the configuration, dimensions: [8, 64], each trains an encoder"

SAVED = "normalized entropy saved, %"


def asked_of(figures: Sequence[Figure], goal: str, question: str) -> list[Figure]:
    """Return the answers to one question about a goal."""
    return [each for each in figures if (each.goal, each.question) == (goal, question)]


def in_words(figures: Sequence[Figure], goal: str) -> Iterator[str]:
    """Yield a sentence a question about a goal.

    Parameters
    ----------
    figures : sequence of Figure
    goal : str

    Yields
    ------
    str
    """
    gains = {each.arm: each for each in asked_of(figures, goal, GAIN)}
    match, strangers = gains[MATCH], gains[STRANGERS]
    yield (
        f"Gain: match columns save {_percent(match)} of the batch ranker's normalized entropy on "
        f"{match.rows:,} rows of {match.users:,} users: {_verdict(match)}. Another user's vectors "
        f"save {_percent(strangers)}, which must not exclude 0 upwards"
        f"{': IT DOES, so believe none of these figures.' if strangers.low > 0 else '.'} "
        "Losses are means over trainings of the ranker; intervals hold the noise of the tested "
        "users."
    )
    for price in asked_of(figures, goal, STALENESS):
        yield (
            f"Refresh interval: a minute of mean age costs {100 * price.value:.2g} % "
            f"({100 * price.low:.2g} to {100 * price.high:.2g}), {price.arm}: {_verdict(price)}."
        )
    cold = [each for each in asked_of(figures, goal, COLD_START) if math.isfinite(each.low)]
    if cold:
        worst = min(cold, key=lambda each: each.value)
        yield (
            f"Cold start: worst is {_percent(worst)} at {worst.part} activities, vectors "
            f"{worst.arm}: {_verdict(worst)}."
        )
    recalls = {each.arm: each for each in asked_of(figures, goal, RECALL)}
    if recalls:
        yield (
            f"Retrieval: recall@{LIST} of similar users' ads is {_recall(recalls[SIMILAR_USERS])}, "
            f"of popular ads {_recall(recalls[POPULAR])}."
        )
    yield f"Dimension: {'; '.join(_dimensions(asked_of(figures, goal, DIMENSION))) or NOT_ASKED}."
    over = [each for each in asked_of(figures, goal, ABLATION) if each.part == WHOLE_OVER]
    shown = [f"{each.arm} {_percent(each)}" for each in over if each.low > 0]
    if over:
        yield (
            f"Ablation: the whole encoder saves more than {len(shown)} of {len(over)} that lack "
            f"something, above 0 with the whole interval{': ' if shown else ''}{'; '.join(shown)}."
        )


def worth_picture(figures: Sequence[Figure], goal: str) -> bytes:
    """Draw a goal's gains, refresh intervals, buckets of activity, recalls and encoders, as PNG.

    Parameters
    ----------
    figures : sequence of Figure
    goal : str
    """
    dimensions, ablated = (asked_of(figures, goal, name) for name in (DIMENSION, ABLATION))
    rows = 2 + bool(dimensions) + bool(ablated)
    figure = blank_figure(12.5, 3.7 * rows)
    panels = figure.subplots(rows, 2)
    (gains, intervals), (cold, recalls) = panels[:2]
    _points(gains, asked_of(figures, goal, GAIN), "columns of vectors", 100.0, SAVED)
    whole = [each for each in asked_of(figures, goal, INTERVAL) if not each.part]
    _points(intervals, whole, "refresh interval", 100.0, SAVED)
    _buckets(cold, asked_of(figures, goal, COLD_START))
    found = asked_of(figures, goal, RECALL)
    _points(recalls, found, "whose ads are listed", 1.0, f"recall@{LIST}", tilt=20)
    if dimensions:
        for axes, metric, factor, words in zip(
            panels[2],
            (NORMALIZED_ENTROPY, RECALL_AT),
            (100.0, 1.0),
            (SAVED, f"recall@{LIST} of similar users' ads"),
            strict=True,
        ):
            own = [each for each in dimensions if each.metric == metric]
            _points(axes, own, "dimension", factor, words)
    if ablated:
        alone, over = panels[-1]
        own = [each for each in ablated if not each.part]
        _points(alone, own, "encoder", 100.0, SAVED, tilt=20)
        own = [each for each in ablated if each.part == WHOLE_OVER]
        _points(over, own, "the whole encoder over", 100.0, SAVED, tilt=20)
    figure.suptitle(f"{goal}: what user vectors are worth on this log", fontsize=11)
    return png_of(figure)


def _dimensions(found: Sequence[Figure]) -> Iterator[str]:
    for arm in dict.fromkeys(each.arm for each in found):
        own = {each.metric: each for each in found if each.arm == arm}
        recall = f", recall@{LIST} {_recall(own[RECALL_AT])}" if RECALL_AT in own else ""
        encoded, matched, stored = (
            own[name].value for name in ("us_per_user", "us_per_query", "bytes_per_user")
        )
        yield (
            f"{arm} numbers save {_percent(own[NORMALIZED_ENTROPY])}{recall}, at {encoded:.3g} us "
            f"and {stored:.0f} bytes a user, {matched:.2g} us a query"
        )


def _points(
    axes: "Axes",
    found: Sequence[Figure],
    below: str,
    factor: float,
    beside: str,
    tilt: int = 0,
) -> None:
    _bars(axes, np.arange(len(found)), found, factor, 0)
    axes.set_xticks(range(len(found)), [each.arm for each in found], rotation=tilt, fontsize=8)
    _framed(axes, below, beside)


def _buckets(axes: "Axes", found: Sequence[Figure]) -> None:
    parts = list(dict.fromkeys(each.part for each in found))
    arms = list(dict.fromkeys(each.arm for each in found))
    for number, arm in enumerate(arms):
        own = [each for each in found if each.arm == arm]
        places = np.array([parts.index(each.part) for each in own])
        _bars(axes, places + 0.15 * (number - (len(arms) - 1) / 2), own, 100.0, number, arm)
    axes.set_xticks(range(len(parts)), parts)
    if arms:
        axes.legend(frameon=False, fontsize=8)
    _framed(axes, "activities known of the user", SAVED)


def _bars(
    axes: "Axes",
    places: np.ndarray,
    found: Sequence[Figure],
    factor: float,
    number: int,
    label: str | None = None,
) -> None:
    values = factor * np.array([each.value for each in found])
    low, high = (factor * np.array([getattr(each, end) for each in found]) for end in _ENDS)
    # Where there is no interval a point stands alone.
    reach = np.nan_to_num(np.maximum([values - low, high - values], 0.0))
    axes.errorbar(
        places,
        values,
        yerr=reach,
        fmt=MARKERS[number],
        color=COLOURS[number],
        capsize=3,
        label=label,
    )


def _framed(axes: "Axes", below: str, beside: str) -> None:
    axes.axhline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


_ENDS = "low", "high"


def _percent(found: Figure) -> str:
    if not math.isfinite(found.low):
        return f"{100 * found.value:+.2f} %"
    return f"{100 * found.value:+.2f} % ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def _recall(found: Figure) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _verdict(found: Figure) -> str:
    if found.low > 0:
        return "the interval is above 0"
    return "the interval is below 0" if found.high < 0 else "nothing is shown, 0 is in the interval"
