"""How long things take: from impression to click, click to purchase, event to log.

Each delay is drawn here and its chance of beating a deadline is computed here, side by side, so
that the true probability of a label and the label come from one definition. Nothing here knows
what a row looks like.
"""

import math
from dataclasses import dataclass

import numpy as np

from ad_pipeline.clocks import HOUR_US, MINUTE_US, SECOND_US
from ad_pipeline.simulation.spec import FaultRates

CLICK_CAP_US = 6 * HOUR_US
PURCHASE_CAP_US = 48 * HOUR_US
RETRACTION_CAP_US = 36 * HOUR_US
LATEST_US = 115 * MINUTE_US
"""Slowest way into the log; below the allowed lateness of two hours."""

# Some clicks are made by people who come back to an open tab: these may miss the window.
RETURNING_SHARE = 0.015
RETURNING_MEDIAN_US = 25 * MINUTE_US
RETURNING_SIGMA = 1.0
CLICK_SIGMA = 1.1
PURCHASE_SIGMA = 1.4

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class LogNormal:
    """A log-normal delay.

    Attributes
    ----------
    median_us : float
        Median, microseconds.
    sigma : float
        Standard deviation of the logarithm.
    """

    median_us: float
    sigma: float

    def cdf(self, delay_us: np.ndarray) -> np.ndarray:
        """P(delay <= delay_us), float64, same shape; 0 for delays of 0 or less."""
        positive = np.maximum(np.asarray(delay_us, dtype=np.float64), 1e-9)
        z = np.log(positive / self.median_us) / (self.sigma * math.sqrt(2.0))
        return np.where(delay_us > 0, 0.5 * (1.0 + np.asarray(_erf(z), dtype=np.float64)), 0.0)


FRAUD_REPORT = LogNormal(35 * MINUTE_US, 1.0)
"""From click to the fraud report's arrival in the log."""
REFUND = LogNormal(5.0 * HOUR_US, 1.0)
"""From purchase to the refund's arrival in the log."""


def draw_lognormal(
    rng: np.random.Generator, median_us: np.ndarray, sigma: float, cap_us: int
) -> np.ndarray:
    """Draw delays, at least 1 microsecond and at most `cap_us`.

    Parameters
    ----------
    rng : numpy.random.Generator
    median_us : float64 array of shape (n,)
    sigma : float
    cap_us : int
        A cap beyond every deadline changes no label and bounds what spills into later days.

    Returns
    -------
    int64 array of shape (n,), microseconds.
    """
    delay = median_us * np.exp(sigma * rng.standard_normal(len(median_us)))
    return np.clip(delay, 1.0, float(cap_us)).astype(np.int64)


def draw_click_delays(rng: np.random.Generator, median_us: np.ndarray) -> np.ndarray:
    """Draw the delay from impression to click, int64 microseconds of shape (n,).

    A mixture: most within minutes by placement (`median_us`), `RETURNING_SHARE` much later.
    """
    returning = rng.random(len(median_us)) < RETURNING_SHARE
    quick = draw_lognormal(rng, median_us, CLICK_SIGMA, CLICK_CAP_US)
    slow_median = np.full(len(median_us), float(RETURNING_MEDIAN_US))
    slow = draw_lognormal(rng, slow_median, RETURNING_SIGMA, CLICK_CAP_US)
    return np.where(returning, slow, quick)


def click_delay_cdf(median_us: float, delay_us: np.ndarray) -> np.ndarray:
    """P(click delay <= delay_us) for a placement whose quick clicks have this median."""
    quick = LogNormal(median_us, CLICK_SIGMA).cdf(delay_us)
    slow = LogNormal(RETURNING_MEDIAN_US, RETURNING_SIGMA).cdf(delay_us)
    return (1.0 - RETURNING_SHARE) * quick + RETURNING_SHARE * slow


def chance_in_window(
    cdf_at: np.ndarray, edges_us: np.ndarray, maturity_us: int, retraction: LogNormal
) -> tuple[float, float]:
    """How often an engagement is in its window, and how often its retraction is in time too.

    Parameters
    ----------
    cdf_at : float64 array of shape (k,)
        The delay's CDF at `edges_us`.
    edges_us : float64 array of shape (k,)
        Increasing from 0 to the window.
    maturity_us : int
        Window plus lateness; a retraction received after it changes no label.
    retraction : LogNormal
        From engagement to the retraction's arrival, if there is one.

    Returns
    -------
    in_window, and_retracted : float
        P(delay <= window), and P(delay <= window and delay + retraction <= maturity).
    """
    mass = np.diff(cdf_at)
    middle = 0.5 * (edges_us[1:] + edges_us[:-1])
    return float(cdf_at[-1]), float(np.sum(mass * retraction.cdf(maturity_us - middle)))


def window_edges(window_us: int, cells: int = 600) -> np.ndarray:
    """Cells over [0, window], narrow at first, for `chance_in_window`; float64 of shape (k,)."""
    return np.concatenate([[0.0], np.geomspace(SECOND_US / 10, window_us, cells)])


def draw_ingestion(
    rng: np.random.Generator, rows: int, rates: FaultRates, faults: bool
) -> np.ndarray:
    """Draw how long rows take to reach the log.

    Parameters
    ----------
    rng : numpy.random.Generator
    rows : int
    rates : FaultRates
        `minutes` and `late` are used.
    faults : bool
        Without faults every row arrives within about ten seconds.

    Returns
    -------
    int64 array of shape (rows,), microseconds, below the allowed lateness.
    """
    delay = (50_000.0 + 400_000.0 * rng.standard_exponential(rows)).astype(np.int64)
    if faults:
        luck = rng.random(rows)
        some_minutes = np.flatnonzero(luck < rates.minutes)
        late = np.flatnonzero(luck > 1.0 - rates.late)
        delay[some_minutes] += rng.integers(MINUTE_US, 15 * MINUTE_US, len(some_minutes))
        delay[late] += rng.integers(15 * MINUTE_US, LATEST_US - MINUTE_US, len(late))
    return delay
