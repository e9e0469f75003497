"""What the delays of a log are, goal by goal: numbers from arrays, as known at one moment.

How many labels come, how long they take, how many are still on their way, and how long an ad lives
beside that: what decides which way of learning from late labels is right. Every number counts an
anchor without a label as one that is waited for, by the product-limit estimator; none takes it for
a negative before it has matured. Also how well the scores that were served fit what came, by the
age of the ad, where every published correction fails first. What another loss would have done is
:mod:`.what_if`, what follows from it :mod:`.recommendation`; reading a warehouse is
:mod:`.report_of_log`.

Intervals of the curves take anchors as independent, and anchors of one hour or one ad are not
quite; those of shares and calibrations resample nothing but take hours as independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ad_pipeline.clocks import HOUR_US, MINUTE_US, about
from ad_pipeline.datasets import Goal
from ad_pipeline.evaluation.intervals import reach_of_sum
from ad_pipeline.evaluation.survival import DelayDistribution, Estimate, SurvivalCurve
from ad_pipeline.settings import DelayReportSettings

NONE = -1
"""Of a moment that has not come, a code of nothing, an age that is not known."""

DELAY_EDGES = (0.5, 1.0, 2.0, 4.0)
"""Ad ages at which a bucket ends, in median delays: where labels of an ad's first impressions are
on their way, and where most have come."""

LIFE_EDGES = (0.1, 0.3, 1.0)
"""The same in median ad lives: the young, and those that outlive most."""

LEAST_RATIO = 1.5
"""Of the bounds of a bucket: narrower ones would say the same thing twice."""

LEAST_EDGE_US = MINUTE_US
"""No bucket ends sooner: hardly any impression falls into it."""


@dataclass(frozen=True)
class KnownAnchors:
    """The anchors of one goal served in a range, with what was known of them at a moment.

    Attributes
    ----------
    goal : Goal
    now_us : int
        The moment, microseconds; nothing here was received at or after it.
    anchor_us, serving_us : ndarray of shape (n,), int64
    arrived_us : ndarray of shape (n,), int64
        When the log had the first engagement that counts; -1 without one.
    matured : ndarray of shape (n,), bool
        Whether the label is final.
    groups : ndarray of shape (n,), int64
        Places in ``group_names``; -1 without a group.
    group_names : tuple of str
    ads : ndarray of shape (n,), int64
        Places in the arrays of :class:`SeenAds`; -1 without an ad.
    """

    goal: Goal
    now_us: int
    anchor_us: np.ndarray
    serving_us: np.ndarray
    arrived_us: np.ndarray
    matured: np.ndarray
    groups: np.ndarray
    group_names: tuple[str, ...]
    ads: np.ndarray

    @property
    def horizon_us(self) -> int:
        """Window plus lateness, microseconds."""
        return self.goal.window_us + self.goal.lateness_us

    @property
    def positive(self) -> np.ndarray:
        """Which have a label that counts so far, bool (n,)."""
        return self.arrived_us >= 0

    @property
    def ages_us(self) -> np.ndarray:
        """How long each has been waited for, at most the horizon, int64 (n,)."""
        waited = np.where(self.matured, self.horizon_us, self.now_us - self.anchor_us)
        return np.minimum(waited, self.horizon_us)

    def delays(self, rows: np.ndarray | None = None, level: float = 0.95) -> DelayDistribution:
        """Return the delays from anchor to arrival, of some rows (bool) or of all.

        An arrival past the horizon, of an anchor that the log had late itself, counts as one at it.
        """
        durations = np.where(
            self.positive,
            np.minimum(self.arrived_us - self.anchor_us, self.horizon_us),
            self.ages_us,
        )
        events = self.positive
        if rows is not None:
            durations, events = durations[rows], events[rows]
        return DelayDistribution(SurvivalCurve.of(durations, events, level), self.horizon_us)


@dataclass(frozen=True)
class SeenAds:
    """The ads of a log, as known at a moment.

    Attributes
    ----------
    first_us, last_us : ndarray of shape (a,), int64
        Of the impressions of each ad.
    impressions : ndarray of shape (a,), int64
    log_start_us, traffic_end_us : int
        First impression of the log, and the end of the hour of its last one: later hours only
        complete labels, and an ad that is not shown in them has not ended by that.
    """

    first_us: np.ndarray
    last_us: np.ndarray
    impressions: np.ndarray
    log_start_us: int
    traffic_end_us: int

    def born(self, retired_after_us: int) -> np.ndarray:
        """Return which were born in the log, bool (a,): first seen well after its start.

        The others may have been there before, so that their age is not known. What is not seen for
        ``retired_after_us`` counts as ended, so what is first seen that long after the start was
        not there before; in a log shorter than four times that, a quarter of the log has to do.
        """
        wait_us = min(retired_after_us, (self.traffic_end_us - self.log_start_us) // 4)
        return self.first_us >= self.log_start_us + wait_us

    def ages_us(self, ads: np.ndarray, at_us: np.ndarray, retired_after_us: int) -> np.ndarray:
        """Return the age of some ads at some moments, int64 (n,); -1 where it is not known."""
        known = np.zeros(len(ads), dtype=bool)
        some = ads >= 0
        known[some] = self.born(retired_after_us)[ads[some]]
        found = np.full(len(ads), NONE, dtype=np.int64)
        found[known] = np.maximum(at_us[known] - self.first_us[ads[known]], 0)
        return found


@dataclass(frozen=True)
class AdFacts:
    """How ads live in a log.

    Attributes
    ----------
    ads, born : int
        Ads of the log, and those of them that were born in it.
    life : SurvivalCurve or None
        From first to last impression, censored where the ad was shown in the last hours; None if no
        ad was born in the log: ads live longer than it lasts.
    log_us : int
        How long the log has traffic.
    live : float
        Ads that are live at a moment, on average.
    anchors_per_hour : float
        Of the goal, of a live ad.
    variation : float
        Standard deviation of the ads' true rates over the mean rate.
    young : Estimate
        Share of the anchors whose ad was younger than the median delay.
    """

    ads: int
    born: int
    life: SurvivalCurve | None
    log_us: int
    live: float
    anchors_per_hour: float
    variation: float
    young: Estimate

    @property
    def median_life_us(self) -> Estimate:
        """Median life, microseconds; where it is not reached, only that it is longer than that."""
        if self.life is None or not len(self.life.times_us):
            return Estimate(float("nan"), float(self.log_us))
        median = self.life.quantile_us(0.5)
        if np.isnan(median.value):
            return Estimate(float("nan"), float(self.life.times_us[-1]))
        return median


@dataclass(frozen=True)
class GroupDelays:
    """The delays of one group of anchors.

    Attributes
    ----------
    name : str
    anchors, positives : int
    rate, median_us, late_us : Estimate
        Share that converts; median and 90 % quantile of the delays, microseconds.
    """

    name: str
    anchors: int
    positives: int
    rate: Estimate
    median_us: Estimate
    late_us: Estimate


@dataclass(frozen=True)
class DelayFacts:
    """What the label-arrival log of one goal says.

    Attributes
    ----------
    goal : Goal
    now_us, start_us : int
        As known at ``now_us``, of the anchors served since ``start_us``.
    anchors, matured, positives : int
        Anchors; those whose label is final; positive labels so far.
    matured_rate : Estimate
        Of final labels. Of the anchors of the same time those that convert late are in it.
    rate_so_far : float
        Positives over all anchors: what takes the waiting ones for negatives.
    delays : DelayDistribution
    groups : tuple of GroupDelays
        The groups with most anchors.
    waiting : int
        Anchors that have neither matured nor a positive yet.
    to_come : Estimate
        Positives of them that will still come.
    ads : AdFacts or None
        None if the log names no ads.
    """

    goal: Goal
    now_us: int
    start_us: int
    anchors: int
    matured: int
    positives: int
    matured_rate: Estimate
    rate_so_far: float
    delays: DelayDistribution
    groups: tuple[GroupDelays, ...]
    waiting: int
    to_come: Estimate
    ads: AdFacts | None

    @property
    def in_flight(self) -> float:
        """Share of the anchors whose label is not final."""
        return 1.0 - self.matured / self.anchors if self.anchors else float("nan")

    @property
    def share_to_come(self) -> Estimate:
        """Of all positives of these anchors, the share that has not come yet."""
        come = float(self.positives)

        def share(later: float) -> float:
            return later / (come + later) if come + later > 0 else float("nan")

        return Estimate(
            *(share(x) for x in (self.to_come.value, self.to_come.low, self.to_come.high))
        )

    @property
    def in_window(self) -> Estimate:
        """Share of the positives that come within the observation window."""
        return self.delays.share_within(self.goal.observation_us)

    @property
    def lateness(self) -> Estimate:
        """C = P(arrives after the observation window | positive)."""
        inside = self.in_window
        return Estimate(1.0 - inside.value, 1.0 - inside.high, 1.0 - inside.low)

    @property
    def delayed_rate(self) -> float:
        """D = p c: how often an anchor converts, and late."""
        return self.delays.rate.value * self.lateness.value

    @property
    def median_us(self) -> Estimate:
        """Median delay, microseconds."""
        return self.delays.quantile_us(0.5)

    @property
    def late_us(self) -> Estimate:
        """Delay within which 90 % of the positives come, microseconds."""
        return self.delays.quantile_us(0.9)

    @property
    def median_of_life(self) -> float:
        """Median delay over median ad life; NaN if either is not known."""
        return self._of_life(self.median_us.value)

    @property
    def late_of_life(self) -> float:
        """Delay of 90 % over median ad life; NaN if either is not known."""
        return self._of_life(self.late_us.value)

    @property
    def edges_us(self) -> np.ndarray:
        """The ad ages at which buckets end; see :func:`age_edges`."""
        life = float("nan") if self.ads is None else self.ads.median_life_us.value
        return age_edges(self.median_us.value, life)

    def _of_life(self, delay_us: float) -> float:
        if self.ads is None:
            return float("nan")
        life_us = self.ads.median_life_us.value
        return delay_us / life_us if life_us > 0 else float("nan")


@dataclass(frozen=True)
class AgeBucket:
    """How scores fit labels among the anchors whose ad was of some age.

    Attributes
    ----------
    low_us, high_us : float
        Ages ``[low_us, high_us)``, microseconds; both NaN: ads that the log began with, whose age
        is not known. Infinite: no end.
    rows, positives : int
    predicted : float
        Sum of the probabilities.
    observed_over_predicted : Estimate
    """

    low_us: float
    high_us: float
    rows: int
    positives: int
    predicted: float
    observed_over_predicted: Estimate

    @property
    def in_words(self) -> str:
        """The ad ages for people."""
        return ages_in_words(self.low_us, self.high_us)

    def miscalibrated(self, settings: DelayReportSettings) -> bool:
        """Tell whether scores are off beyond noise by more than is calibrated, either way.

        The whole interval is; a bucket of few positives, expected and observed, is not judged.
        """
        if max(self.predicted, self.positives) < settings.minimum_positives:
            return False
        ratio, factor = self.observed_over_predicted, settings.calibrated_factor
        return ratio.low > factor or ratio.high < 1.0 / factor


def delay_facts(
    anchors: KnownAnchors,
    ads: SeenAds | None,
    settings: DelayReportSettings,
    start_us: int,
    level: float = 0.95,
) -> DelayFacts:
    """Return what the label-arrival log of one goal says.

    Parameters
    ----------
    anchors : KnownAnchors
    ads : SeenAds or None
    settings : DelayReportSettings
    start_us : int
        Since when the anchors were served.
    level : float
        Of the intervals.
    """
    delays = anchors.delays(level=level)
    waiting = ~anchors.matured & ~anchors.positive
    hours = anchors.serving_us // HOUR_US
    final = anchors.matured
    count = len(anchors.anchor_us)
    return DelayFacts(
        goal=anchors.goal,
        now_us=anchors.now_us,
        start_us=start_us,
        anchors=count,
        matured=int(final.sum()),
        positives=int(anchors.positive.sum()),
        matured_rate=ratio_by_blocks(
            anchors.positive[final].astype(np.float64),
            np.ones(int(final.sum())),
            hours[final],
            level,
        ),
        rate_so_far=float(anchors.positive.mean()) if count else float("nan"),
        delays=delays,
        groups=tuple(_largest_groups(anchors, settings.largest_groups, level)),
        waiting=int(waiting.sum()),
        to_come=delays.expected_to_come(anchors.ages_us[waiting]),
        ads=None if ads is None else _ad_facts(anchors, ads, settings, start_us, delays, level),
    )


def age_edges(median_delay_us: float, median_life_us: float) -> np.ndarray:
    """Return the ad ages at which buckets end, rising, int64: in delays and in ad lives.

    Parameters
    ----------
    median_delay_us, median_life_us : float
        NaN if not known.
    """
    wanted = [
        share * span
        for shares, span in ((DELAY_EDGES, median_delay_us), (LIFE_EDGES, median_life_us))
        if span > 0
        for share in shares
        if share * span >= LEAST_EDGE_US
    ]
    edges: list[int] = []
    for edge in sorted(wanted):
        if not edges or edge >= LEAST_RATIO * edges[-1]:
            edges.append(round(edge))
    return np.array(edges, dtype=np.int64)


def ages_in_words(low_us: float, high_us: float) -> str:
    """Return the ad ages ``[low_us, high_us)`` for people; NaN: not known."""
    if np.isnan(low_us):
        return "not known"
    if np.isinf(high_us):
        return f"from {about(low_us)} on" if low_us > 0 else "any age"
    return f"{about(low_us)} to {about(high_us)}" if low_us > 0 else f"under {about(high_us)}"


def by_ad_age(
    labels: np.ndarray,
    probabilities: np.ndarray,
    ages_us: np.ndarray,
    serving_us: np.ndarray,
    edges_us: np.ndarray,
    level: float = 0.95,
) -> list[AgeBucket]:
    """Return how scores fit labels by the age of the ad.

    Parameters
    ----------
    labels : ndarray of shape (n,), of 0 and 1
    probabilities : ndarray of shape (n,), float64
    ages_us : ndarray of shape (n,), int64
        -1 where it is not known.
    serving_us : ndarray of shape (n,), int64
        Whose hours are the blocks of the intervals.
    edges_us : ndarray of shape (k,), int64
    level : float

    Returns
    -------
    list of AgeBucket
        Young ones first, the unknown last; those without rows are left out.
    """
    place = np.where(ages_us < 0, NONE, np.searchsorted(edges_us, ages_us, side="right"))
    bounds = [0.0, *edges_us.tolist(), float("inf")]
    unknown = (float("nan"), float("nan"))
    found: list[AgeBucket] = []
    for bucket in (*range(len(edges_us) + 1), NONE):
        inside = place == bucket
        if not inside.any():
            continue
        y = labels[inside].astype(np.float64)
        p = probabilities[inside]
        low_us, high_us = unknown if bucket == NONE else (bounds[bucket], bounds[bucket + 1])
        ratio = ratio_by_blocks(y, p, serving_us[inside] // HOUR_US, level)
        found.append(AgeBucket(low_us, high_us, len(y), int(y.sum()), float(p.sum()), ratio))
    return found


def ratio_by_blocks(
    numerators: np.ndarray, denominators: np.ndarray, blocks: np.ndarray, level: float = 0.95
) -> Estimate:
    """Return the ratio of two sums, with blocks as the independent units, by the delta method.

    Parameters
    ----------
    numerators, denominators : ndarray of shape (n,), float64
    blocks : ndarray of shape (n,), int64
    level : float

    Returns
    -------
    Estimate
        NaN where the denominators sum to 0; no bounds with fewer than three blocks.
    """
    total = float(denominators.sum())
    if not total > 0:
        return Estimate(float("nan"))
    _, block = np.unique(blocks, return_inverse=True)
    ratio = float(numerators.sum()) / total
    moved = np.bincount(block, numerators - ratio * denominators) / total
    reach = reach_of_sum(moved, level)
    return Estimate(ratio, max(ratio - reach, 0.0), ratio + reach)


def rate_variation(anchors: np.ndarray, positives: np.ndarray) -> float:
    """Return the standard deviation of the true rates of ads over their mean, by moments.

    Counts differ by chance alone, too: of the weighted variance of the observed rates what the
    binomial explains is taken off (Kleinman, JASA 68, 1973; weights are the anchors).

    Parameters
    ----------
    anchors, positives : ndarray of shape (a,), int64
        By ad.

    Returns
    -------
    float
        0 where chance explains it all; NaN without two ads or without a positive.
    """
    n = anchors[anchors > 0].astype(np.float64)
    k = positives[anchors > 0].astype(np.float64)
    total, count = float(n.sum()), len(n)
    if count < 2 or not k.sum() > 0:
        return float("nan")
    rate = float(k.sum()) / total
    observed = float((n * (k / n - rate) ** 2).sum())
    by_chance = (count - 1) * rate * (1.0 - rate)
    scale = total - float((n**2).sum()) / total - (count - 1)
    if not scale > 0:
        return 0.0
    return float(np.sqrt(max((observed - by_chance) / scale, 0.0))) / rate


def _largest_groups(anchors: KnownAnchors, most: int, level: float) -> Sequence[GroupDelays]:
    counts = np.bincount(
        anchors.groups[anchors.groups >= 0], minlength=len(anchors.group_names)
    ).astype(np.int64)
    # By name where equal: the order of codes is that of the names.
    largest = np.argsort(-counts, kind="stable")[:most]
    found: list[GroupDelays] = []
    for group in largest[counts[largest] > 0].tolist():
        rows = anchors.groups == group
        delays = anchors.delays(rows, level)
        found.append(
            GroupDelays(
                name=anchors.group_names[group],
                anchors=int(counts[group]),
                positives=int(anchors.positive[rows].sum()),
                rate=delays.rate,
                median_us=delays.quantile_us(0.5),
                late_us=delays.quantile_us(0.9),
            )
        )
    return found


def _ad_facts(
    anchors: KnownAnchors,
    ads: SeenAds,
    settings: DelayReportSettings,
    start_us: int,
    delays: DelayDistribution,
    level: float,
) -> AdFacts:
    retired_after_us = settings.retired_after_hours * HOUR_US
    born = ads.born(retired_after_us)
    lived_us = ads.last_us - ads.first_us
    ended = ads.traffic_end_us - ads.last_us > retired_after_us
    life = SurvivalCurve.of(lived_us[born], ended[born], level) if born.any() else None
    first_us = max(start_us, ads.log_start_us)
    span_us = max(ads.traffic_end_us - first_us, 1)
    # An ad that was shown lately is still live: until it is known to have ended.
    until_us = np.where(ended, ads.last_us, ads.traffic_end_us)
    overlap_us = np.maximum(until_us - np.maximum(ads.first_us, first_us), 0)
    live = float(overlap_us.sum()) / span_us
    named = anchors.ads >= 0
    known = named & anchors.matured
    count = len(ads.first_us)
    return AdFacts(
        ads=count,
        born=int(born.sum()),
        life=life,
        log_us=ads.traffic_end_us - ads.log_start_us,
        live=live,
        anchors_per_hour=float(named.sum()) / (span_us / HOUR_US) / live if live > 0 else 0.0,
        variation=rate_variation(
            np.bincount(anchors.ads[known], minlength=count),
            np.bincount(anchors.ads[known & anchors.positive], minlength=count),
        ),
        young=_young_share(anchors, ads, delays.quantile_us(0.5).value, level),
    )


def _young_share(anchors: KnownAnchors, ads: SeenAds, median_us: float, level: float) -> Estimate:
    """Return the share of anchors whose ad is younger than the median delay.

    Of those served at least a median delay after the log began: an ad that was there before is not
    young then, whatever its age.
    """
    if np.isnan(median_us):
        return Estimate(float("nan"))
    judged = (anchors.ads >= 0) & (anchors.serving_us >= ads.log_start_us + median_us)
    serving_us = anchors.serving_us[judged]
    young = serving_us - ads.first_us[anchors.ads[judged]] < median_us
    ones = np.ones(len(serving_us))
    return ratio_by_blocks(young.astype(np.float64), ones, serving_us // HOUR_US, level)
