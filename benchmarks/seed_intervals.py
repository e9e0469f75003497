"""Intervals over seeds: each seed is a world of its own, so seeds are the independent draws.

Inside one log, hours are resampled (:mod:`ad_pipeline.evaluation.intervals`); that says how sure
one world's figure is. Whether it holds in the next world is what the spread between seeds says, and
only that is computed here.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its two-sided interval.

    Attributes
    ----------
    value, low, high : float
        Bounds are NaN where the sample cannot give them.
    n : int
        Seeds, or trials of a share.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; False without bounds."""
        return self.low > 0.0 or self.high < 0.0


def mean_over_seeds(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean of one figure per seed with Student's t interval.

    Parameters
    ----------
    values : sequence of float
        One per seed.
    level : float

    Returns
    -------
    Estimate
        NaN on no seed, and NaN bounds on one.

    Raises
    ------
    ValueError
        If a value is not finite: a seed that gave no figure must not vanish in a mean.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError(f"not every seed gave a figure: {list(values)}")
    nan = float("nan")
    if not values:
        return Estimate(nan, nan, nan, 0)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, nan, nan, len(values))
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def share(hits: int, trials: int, level: float = LEVEL) -> Estimate:
    """Return a share with the interval of Clopper and Pearson (Biometrika 1934), never too narrow.

    Parameters
    ----------
    hits, trials : int
    level : float

    Returns
    -------
    Estimate
        NaN without trials.

    Raises
    ------
    ValueError
        If there are more hits than trials, or fewer than none.
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} hits in {trials} trials")
    nan = float("nan")
    if not trials:
        return Estimate(nan, nan, nan, 0)
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1 - tail, hits + 1, trials - hits))
    return Estimate(hits / trials, low, high, trials)
