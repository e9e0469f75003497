"""What a forecast is worth in money: value functions, handed in by name, and one that is ready.

Log loss and calibration have no currency. Whoever knows what a positive is worth and how the market
bids can say what a wrong probability costs; the report asks such a function and invents nothing
without one. It gets what was predicted and what was true, and nothing of the log.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

ValueFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From predicted and true probabilities, float64 (n,), to the value of each anchor, micro-currency
(n,): its expectation over everything else."""


@dataclass(frozen=True)
class SecondPriceMarket:
    r"""Expected surplus of truthful bids in second-price auctions against a log-normal market.

    One bids b = v f, the value of a positive times what is predicted, and pays the highest other
    bid M where it is lower. With log M normal (μ, σ), p the true probability and z = (log b - μ) /
    σ,

        E[(v p - M) 1{M < b}] = v p Φ(z) - exp(μ + σ^2 / 2) Φ(z - σ).

    By b its derivative is (v p - b) times the density of M at b: the truth is best, f > p buys what
    costs more than it is worth, f < p leaves what is worth more than it costs.

    Attributes
    ----------
    value_micro : float
        v, micro-currency a positive.
    median_price_micro : float or None
        exp μ; None: what the average anchor is worth, v times the mean of p.
    sigma : float
        σ of the logarithm of the price. At 1 two thirds of the market bid between 0.37 and 2.7 of
        the median.
    """

    value_micro: float = 1_000_000.0
    median_price_micro: float | None = None
    sigma: float = 1.0

    def __call__(self, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Return the expected surplus of each anchor, micro-currency, float64 (n,)."""
        from scipy.special import ndtr

        median = self.median_price_micro
        if median is None:
            median = self.value_micro * float(np.mean(true)) if len(true) else 1.0
        with np.errstate(divide="ignore"):
            z = (np.log(self.value_micro * predicted) - math.log(median)) / self.sigma
        paid = median * math.exp(self.sigma**2 / 2.0) * ndtr(z - self.sigma)
        return self.value_micro * true * ndtr(z) - paid


second_price = SecondPriceMarket()
"""Ready to be named: a positive is worth one unit of currency, the median price is what an average
anchor is worth. Its shares hold for any currency, its amounts for that value alone."""


def value_function(path: str | None) -> ValueFunction | None:
    """Return the function that a dotted path names; None without one.

    Parameters
    ----------
    path : str or None
        ``package.module:function``; an instance that can be called will do.

    Raises
    ------
    ValueError
        If there is no such module, or nothing in it of that name that can be called.
    """
    if path is None:
        return None
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(
            f"settings.delay_report.value_function is {path!r}, and {error}; write "
            "package.module:function"
        ) from error
    if not callable(found):
        raise ValueError(
            f"settings.delay_report.value_function is {path!r}, and {module} holds no function "
            f"{name!r}; write package.module:function"
        )
    return cast(ValueFunction, found)


def valued(value: ValueFunction, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return what a value function says, float64 (n,).

    Raises
    ------
    ValueError
        If it does not give one finite number an anchor.
    """
    said = np.asarray(value(predicted, true), dtype=np.float64)
    if said.shape != predicted.shape or not np.isfinite(said).all():
        raise ValueError(
            f"the value function gave numbers of shape {said.shape} for {predicted.shape} anchors, "
            f"{int(np.isfinite(said).sum())} of them finite; it must give one finite number each"
        )
    return said
