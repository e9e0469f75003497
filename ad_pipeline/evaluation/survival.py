"""How long something takes where it may not have happened yet: the product-limit estimator.

A delay is known only of what has come. Whoever averages those is told by young anchors of short
delays alone, and whoever takes an anchor without a label for a negative counts it as an answer.
Here it is censored: it says that the delay exceeds its age, and nothing else (Kaplan and Meier,
Nonparametric Estimation from Incomplete Observations, JASA 53, 1958). Durations are int64
microseconds, numpy alone, one sort: a million rows take a tenth of a second. What a duration is
the duration of, reading a log and drawing belong to whoever asks.

Most anchors never convert, so the distribution of a label's delay is *defective*: the survival
function does not fall to 0 but to 1 - p, and 1 - S(t) = p G(t) with G the distribution of the
delays of those that convert, G(H) = 1 at the horizon H. :class:`DelayDistribution` is that view.

Censoring must tell nothing of the delay. It does not where only the clock censors; it does where
delays change over time, since the young are then others than the old.

References
----------
Intervals: Greenwood's variance on the scale log(-log S) (Kalbfleisch and Prentice, The Statistical
Analysis of Failure Time Data, 2nd edition 2002, section 1.4); of quantiles by inverting them
(Brookmeyer and Crowley, Biometrics 38, 1982). lifelines' ``KaplanMeierFitter`` is the reference in
the tests.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_HAIR = 1e-12
"""What sums of logarithms may miss a share by that is met exactly, as a half of eight."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes
    ----------
    value, low, high : float
        NaN where it is not known: a quantile that the curve does not reach, a bound that no data
        gives.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class SurvivalCurve:
    """The product-limit estimate of S(t) = P(duration > t), a step function from the right.

    Attributes
    ----------
    times_us : ndarray of shape (k,), int64
        Distinct durations that ended with an event, rising.
    at_risk, events : ndarray of shape (k,), int64
        Durations of at least that length, and events at it. What is censored at the same duration
        as an event counts as at risk: censoring comes after the event.
    log_survival : ndarray of shape (k,), float64
        From that duration on; -inf once nobody is left.
    variance : ndarray of shape (k,), float64
        Greenwood's, of ``log_survival``; inf once nobody is left.
    subjects : int
    level : float
        Of all intervals.
    """

    times_us: Integers
    at_risk: Integers
    events: Integers
    log_survival: Floats
    variance: Floats
    subjects: int
    level: float

    @classmethod
    def of(cls, durations_us: ArrayLike, is_event: ArrayLike, level: float = 0.95) -> Self:
        """Estimate the curve.

        Parameters
        ----------
        durations_us : array_like of shape (n,), int64
            Microseconds, at least 0: until the event, or as long as there was none.
        is_event : array_like of shape (n,), bool
            False: censored.
        level : float

        Raises
        ------
        ValueError
            If shapes differ, or a duration is negative or no whole number.
        """
        durations = np.asarray(durations_us)
        event = np.asarray(is_event, dtype=bool)
        if durations.ndim != 1 or durations.shape != event.shape:
            raise ValueError(
                f"durations {durations.shape} and events {event.shape} must be of one shape (n,)"
            )
        if durations.size and not np.issubdtype(durations.dtype, np.integer):
            raise ValueError(f"durations are {durations.dtype}; pass whole microseconds")
        if durations.size and int(durations.min()) < 0:
            raise ValueError(f"a duration is {durations.min()} us; none can be negative")
        durations = durations.astype(np.int64)
        times, events = np.unique(durations[event], return_counts=True)
        at_risk = len(durations) - np.searchsorted(np.sort(durations), times, side="left")
        left = at_risk - events
        with np.errstate(divide="ignore"):
            log_survival = np.cumsum(np.log1p(-events / at_risk))
            variance = np.cumsum(events / (at_risk * left.astype(np.float64)))
        return cls(times, at_risk, events, log_survival, variance, len(durations), level)

    def survival(self, at_us: ArrayLike) -> Floats:
        """Return S at some durations, float64 of their shape."""
        return np.exp(self._log_at(at_us))

    def incidence(self, at_us: ArrayLike) -> Floats:
        """Return 1 - S, exact where S is near 1."""
        return -np.expm1(self._log_at(at_us))

    def survival_interval(self, at_us: ArrayLike) -> tuple[Floats, Floats]:
        """Return the bounds of S, on the scale log(-log S).

        Before the first event both are 1: nothing is known of how much less it may be. Once nobody
        is left there is no variance, and both are NaN.
        """
        log_s, variance = self._log_at(at_us), self._variance_at(at_us)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = _normal_quantile(self.level) * np.sqrt(variance) / np.abs(log_s)
            low, high = np.exp(log_s * np.exp(reach)), np.exp(log_s * np.exp(-reach))
        unknown = ~np.isfinite(log_s)
        before = log_s == 0.0
        return (
            np.where(before, 1.0, np.where(unknown, np.nan, low)),
            np.where(before, 1.0, np.where(unknown, np.nan, high)),
        )

    def quantile_us(self, share: float) -> Estimate:
        """Return the duration by which a share had the event, microseconds.

        NaN where the curve, or a bound of it, does not fall so far: longer than anything seen.
        """
        low, high = self.survival_interval(self.times_us)
        return Estimate(
            *(
                _first_us(self.times_us, values <= 1.0 - share + _HAIR)
                for values in (self.survival(self.times_us), low, high)
            )
        )

    def mean_us(self, until_us: int) -> float:
        """Return the mean duration, each cut off at ``until_us``: the area under S, microseconds.

        Beyond the longest duration seen S is taken to stay as it is.
        """
        steps = self.times_us[self.times_us < until_us]
        edges = np.concatenate(([0], steps, [until_us])).astype(np.float64)
        heights = np.concatenate(([1.0], self.survival(steps)))
        return float(heights @ np.diff(edges))

    def _log_at(self, at_us: ArrayLike) -> Floats:
        return self._stepped(self.log_survival, at_us)

    def _variance_at(self, at_us: ArrayLike) -> Floats:
        return self._stepped(self.variance, at_us)

    def _stepped(self, values: Floats, at_us: ArrayLike) -> Floats:
        place = np.searchsorted(self.times_us, np.asarray(at_us, dtype=np.int64), side="right")
        return np.concatenate(([0.0], values))[place]


@dataclass(frozen=True)
class DelayDistribution:
    """The delays of those that convert at all: 1 - S(t) = p G(t), G(H) = 1.

    Attributes
    ----------
    curve : SurvivalCurve
        Of everybody, who never converts censored.
    horizon_us : int
        H: nothing that comes later counts.
    """

    curve: SurvivalCurve
    horizon_us: int

    @property
    def rate(self) -> Estimate:
        """Share that converts, p = 1 - S(H), also by who may still do; NaN without an event."""
        low, high = self.curve.survival_interval([self.horizon_us])
        value = float(self.curve.incidence([self.horizon_us])[0])
        if not value > 0:
            return Estimate(float("nan"))
        return Estimate(value, float(1.0 - high[0]), float(1.0 - low[0]))

    def cdf(self, at_us: ArrayLike) -> Floats:
        """Return G, float64 of their shape; NaN without an event."""
        within = np.minimum(np.asarray(at_us, dtype=np.int64), self.horizon_us)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.curve.incidence(within) / self.curve.incidence([self.horizon_us])[0]

    def cdf_interval(self, at_us: ArrayLike) -> tuple[Floats, Floats]:
        r"""Return the bounds of G, on the scale log(-log(1 - G)).

        With R = S(H) / S(t), G = (1 - S) / (1 - S R), and the estimates of log S(t) and log R are
        independent in large samples, of Greenwood's variances V(t) and V(H) - V(t). So by the delta
        method

            var G = [(S - S_H)^2 V(t) + (1 - S)^2 S_H^2 (V(H) - V(t))] / (1 - S_H)^4,

        which for small p is G (1 - G) over the number of events, as it must be. Where everybody
        converts, S_H = 0 and it is Greenwood's own.
        """
        within = np.minimum(np.asarray(at_us, dtype=np.int64), self.horizon_us)
        s, v = self.curve.survival(within), self.curve._variance_at(within)
        s_end = self.curve.survival([self.horizon_us])[0]
        v_end = self.curve._variance_at([self.horizon_us])[0]
        g = self.cdf(at_us)
        with np.errstate(invalid="ignore", divide="ignore"):
            late = (1.0 - s) ** 2 * s_end**2 * (v_end - v) if s_end > 0 else np.zeros_like(s)
            variance = ((s - s_end) ** 2 * v + late) / (1.0 - s_end) ** 4
            still = 1.0 - g
            scale = np.abs(still * np.log(still))
            reach = _normal_quantile(self.curve.level) * np.sqrt(variance) / scale
            low, high = 1.0 - still ** np.exp(-reach), 1.0 - still ** np.exp(reach)
        ends = (g == 0.0) | (g == 1.0)
        return np.where(ends, g, low), np.where(ends, g, high)

    def quantile_us(self, share: float) -> Estimate:
        """Return the delay within which a share of those that convert do, microseconds."""
        times = self.curve.times_us[self.curve.times_us <= self.horizon_us]
        if not len(times):
            return Estimate(float("nan"))
        low, high = self.cdf_interval(times)
        return Estimate(
            *(_first_us(times, values >= share - _HAIR) for values in (self.cdf(times), high, low))
        )

    def share_within(self, delay_us: int) -> Estimate:
        """Return G at one delay, with its interval."""
        low, high = self.cdf_interval([delay_us])
        return Estimate(float(self.cdf([delay_us])[0]), float(low[0]), float(high[0]))

    @property
    def mean_us(self) -> float:
        """Mean delay of those that convert, microseconds; NaN without an event."""
        times = self.curve.times_us[self.curve.times_us <= self.horizon_us]
        if not len(times):
            return float("nan")
        return float(times @ np.diff(self.cdf(times), prepend=0.0))

    def to_come(self, ages_us: ArrayLike) -> Floats:
        """Return P(converts later) of those that have not by some ages, float64 of their shape.

        p (1 - G(a)) / (1 - p G(a)) = (S(a) - S(H)) / S(a) = 1 - S(H) / S(a): Bayes' rule in the
        numbers that the curve is made of.
        """
        ages = np.minimum(np.asarray(ages_us, dtype=np.int64), self.horizon_us)
        end = self.curve._log_at([self.horizon_us])[0]
        with np.errstate(invalid="ignore"):
            return -np.expm1(end - self.curve._log_at(ages))

    def expected_to_come(self, ages_us: ArrayLike) -> Estimate:
        """Return how many of those that have not converted by their ages will, with an interval.

        The sum of :meth:`to_come`. Its interval holds what will come, not the expectation: the
        variance of each yes or no, r (1 - r) with r = S(H) / S(a), and that of the curve, which is
        one for all of them. A step j of the curve with Greenwood's part v_j moves every r of an age
        below its time, so that part is the sum of (sum of those r)^2 v_j.

        Parameters
        ----------
        ages_us : array_like of shape (m,), int64
        """
        ages = np.sort(np.asarray(ages_us, dtype=np.int64))
        later = self.to_come(ages)
        value = float(later.sum())
        if not len(ages) or not len(self.curve.times_us):
            return Estimate(value, value, value)
        stays = 1.0 - later
        inside = self.curve.times_us <= self.horizon_us
        parts = np.diff(self.curve.variance, prepend=0.0)[inside]
        younger = np.searchsorted(ages, self.curve.times_us[inside], side="left")
        moved = np.concatenate(([0.0], np.cumsum(stays)))[younger]
        with np.errstate(invalid="ignore"):
            variance = float((later * stays).sum() + (moved**2 * parts).sum())
        reach = _normal_quantile(self.curve.level) * np.sqrt(variance)
        return Estimate(value, max(value - reach, 0.0), min(value + reach, float(len(ages))))

    def drawn_us(self, uniforms: ArrayLike) -> Integers:
        """Return the delays at some places in [0, 1) of G: the inverse of its steps, int64."""
        times = self.curve.times_us[self.curve.times_us <= self.horizon_us]
        place = np.searchsorted(self.cdf(times), np.asarray(uniforms), side="right")
        return times[np.minimum(place, len(times) - 1)]


def _first_us(times_us: Integers, reached: NDArray[np.bool_]) -> float:
    places = np.flatnonzero(reached)
    return float(times_us[places[0]]) if len(places) else float("nan")


def _normal_quantile(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri((1.0 + level) / 2.0))
