"""A made stream of scored rows with enough positives to look at deciles of slices.

Two experts see the same truth through different noise and misreport it: both are too flat below
the mean and too steep above it, and neither knows that publishers differ. Nothing drifts, so that
what is left after calibration is the calibration's own error. The product's ensemble is fitted to
it, with and without maps of slices. What a market with drift makes of it is
:mod:`benchmarks.small_markets`.
"""

from dataclasses import asdict, dataclass

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ensemble.calibration_layer import Slices
from ad_pipeline.learners.ensemble.ensemble import Ensemble, fit_ensemble, split_ranges
from ad_pipeline.settings import EnsembleSettings

_START_US = 490_000 * HOUR_US


@dataclass(frozen=True)
class StreamSpec:
    """What the stream is made of.

    Attributes
    ----------
    rows, hours : int
    publishers : tuple of float
        Share of the rows of each.
    base_logit, spread_sd : float
        Of the true logits.
    noise_sd : tuple of float
        Of the two experts' views.
    publisher_sd : float
        Of the true logits between publishers.
    """

    rows: int = 1_500_000
    hours: int = 160
    publishers: tuple[float, ...] = (0.30, 0.22, 0.16, 0.12, 0.09, 0.06, 0.03, 0.02)
    base_logit: float = -2.7
    spread_sd: float = 0.8
    noise_sd: tuple[float, float] = (0.3, 0.4)
    publisher_sd: float = 0.25


SPEC = StreamSpec()


@dataclass(frozen=True)
class Scored:
    """The rows of the test range, which no fit has seen; n rows.

    Attributes
    ----------
    labels : ndarray of shape (n,), 0 or 1
    truth : ndarray of shape (n,), float64
        True probabilities given the publisher and what both experts see.
    publishers : ndarray of shape (n,), int64
    mixed, overall, by_slice : ndarray of shape (n,), float64
        Logits of the mixture: not calibrated, by one map for all, and by publisher.
    corrected : int
        Publishers that have a correction.
    """

    labels: np.ndarray
    truth: np.ndarray
    publishers: np.ndarray
    mixed: np.ndarray
    overall: np.ndarray
    by_slice: np.ndarray
    corrected: int


def settings() -> dict[str, object]:
    """Return all that the rows follow from besides the seed."""
    return {"stream": asdict(SPEC), "ensemble": EnsembleSettings().model_dump(mode="json")}


def scored(seed: int, spec: StreamSpec = SPEC) -> Scored:
    """Draw a stream, fit the product's ensemble to it twice, and score its test range.

    Parameters
    ----------
    seed : int
    spec : StreamSpec
    """
    draw = np.random.default_rng(seed)
    n = spec.rows
    hours_us = _START_US + np.sort(draw.integers(0, spec.hours, n)) * HOUR_US
    publishers = draw.choice(len(spec.publishers), n, p=spec.publishers)
    away = draw.normal(0.0, spec.spread_sd, n)
    views = [away + draw.normal(0.0, sd, n) for sd in spec.noise_sd]
    # The best that both views together can say: the normal posterior of the truth, and its mean.
    precision = 1 / spec.spread_sd**2 + sum(1 / sd**2 for sd in spec.noise_sd)
    known = sum(v / sd**2 for v, sd in zip(views, spec.noise_sd, strict=True)) / precision
    middle = spec.base_logit + draw.normal(0.0, spec.publisher_sd, len(spec.publishers))[publishers]
    labels = (draw.random(n) < _probabilities(middle + away)).astype(np.uint8)
    logits = {
        "online": spec.base_logit + 0.6 * views[0] + 0.6 * np.maximum(views[0], 0.0),
        "batch": spec.base_logit - 0.2 + 0.7 * views[1] + 0.5 * np.maximum(views[1], 0.0),
    }
    options = EnsembleSettings()
    slices = Slices(
        "publisher",
        publishers.astype(np.uint64),
        {place: str(place) for place in range(len(spec.publishers))},
    )
    plain = fit_ensemble(logits, labels, hours_us, options)
    sliced = fit_ensemble(logits, labels, hours_us, options, slices=slices)
    test = split_ranges(hours_us, options).test.holds(hours_us)
    tested = {name: values[test] for name, values in logits.items()}
    return Scored(
        labels=labels[test],
        truth=_averaged((middle + known)[test], precision**-0.5),
        publishers=publishers[test],
        mixed=plain.mix(tested),
        overall=_calibrated(plain, tested, None),
        by_slice=_calibrated(sliced, tested, slices.hashes[test]),
        corrected=len(sliced.calibration.corrections),
    )


def _calibrated(
    ensemble: Ensemble, logits: dict[str, np.ndarray], slices: np.ndarray | None
) -> np.ndarray:
    return ensemble.calibration.apply(ensemble.mix(logits), slices)


def _averaged(logits: np.ndarray, sd: float) -> np.ndarray:
    """Return the mean probability of normal logits around these, float64 (n,)."""
    places, weights = np.polynomial.hermite_e.hermegauss(9)
    total = np.zeros(len(logits))
    for place, weight in zip(places, weights / weights.sum(), strict=True):
        total += weight * _probabilities(logits + sd * place)
    return total


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))
