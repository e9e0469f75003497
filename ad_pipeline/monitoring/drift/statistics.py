"""How far two samples of one column lie apart, and how sure that is.

Effect sizes by type of column: the population stability index (PSI) of any, Kolmogorov-Smirnov and
Wasserstein distances of numbers, the Jensen-Shannon distance of categories. They are not tests:
with enough rows everything differs. The test stands beside them, and knows that rows of a log are
no independent draws: hours of one day, and rows of one hour, move together. Its null is what whole
earlier periods (the same hours of other days or weeks) differ by among each other.

References
----------
Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk
Model Validation 14, 2020: PSI under no change is chi-squared. Rao and Scott, On chi-squared tests
for multiway contingency tables with cell proportions estimated from survey data, Annals of
Statistics 12, 1984: blocks divide it by a design effect. Benjamini and Hochberg, Controlling the
false discovery rate, Journal of the Royal Statistical Society B 57, 1995.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOISE_LEVEL = 0.001
"""Chance that noise alone lifts one unchanged column above its noise limit."""


def psi(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """Return the population stability index of two histograms over the same cells.

    ``sum((q - p) log(q / p))``, the symmetrised Kullback-Leibler divergence, with half a row added
    to every cell (Jeffreys' prior), so that a cell empty on one side counts by how surprising its
    rows are instead of by an arbitrary floor.

    Parameters
    ----------
    reference_counts, current_counts : array_like of int64, shape (cells,)

    Returns
    -------
    float
        0 or more; NaN if either side has no rows.

    Raises
    ------
    ValueError
        If the shapes differ or a count is negative.
    """
    before = np.asarray(reference_counts, dtype=np.float64)
    after = np.asarray(current_counts, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"histograms of {before.shape} and {after.shape} cells do not compare")
    if (before < 0).any() or (after < 0).any():
        raise ValueError("a histogram holds a negative count")
    if not before.sum() or not after.sum():
        return float("nan")
    return float(psi_terms(before, after).sum())


def psi_noise_limit(
    cells: int, reference_rows: int, current_rows: int, level: float = NOISE_LEVEL
) -> float:
    """Return what the index of an unchanged column exceeds with chance ``level``.

    Under no change the index times ``1 / (1/n + 1/m)`` is about chi-squared with ``cells - 1``
    degrees of freedom (Yurdakul and Naranjo, Journal of Risk Model Validation 2020).
    """
    from scipy.special import chdtri

    if cells < 2 or not reference_rows or not current_rows:
        return 0.0
    return float(chdtri(cells - 1, level)) * (1 / reference_rows + 1 / current_rows)


def psi_terms(reference_counts: ArrayLike, current_counts: ArrayLike) -> NDArray[np.float64]:
    """Return what each cell adds to :func:`psi`, shape (cells,)."""
    before, after = np.asarray(reference_counts) + 0.5, np.asarray(current_counts) + 0.5
    p, q = before / before.sum(), after / after.sum()
    return (q - p) * np.log(q / p)


def block_p_value(
    reference_blocks: NDArray[np.int64], current: NDArray[np.int64], index: float
) -> float:
    """Return the chance that an unchanged column has an index this high, blocks considered.

    Under independent rows the index over ``1/n + 1/m`` is chi-squared. Rows of one period move
    together, which inflates it by a design effect; it is read off the reference, whose periods
    should differ by nothing else: Pearson's statistic of the table periods x cells over its degrees
    of freedom. A period of ``b`` rows has effect ``1 + (b - 1) rho``, so that the current sample,
    one period alone, has a larger one than the reference as a whole. As the effect is an estimate,
    the quotient is held against F instead of chi-squared.

    Parameters
    ----------
    reference_blocks : ndarray of shape (periods, cells), int64
        Rows of the reference by period. With one period nothing can be said of blocks: rows then
        count as independent, and the effect size alone guards against small changes.
    current : ndarray of shape (cells,), int64
    index : float
        :func:`psi` of both.

    Returns
    -------
    float
        In [0, 1]; 1 where there is nothing to compare.
    """
    from scipy.special import chdtrc, fdtrc

    blocks = reference_blocks[reference_blocks.sum(axis=1) > 0]
    before, rows = blocks.sum(axis=0), int(current.sum())
    total = int(before.sum())
    cells = int(np.count_nonzero(before + current))
    if cells < 2 or not total or not rows:
        return 1.0
    periods = len(blocks)
    if periods < 2:
        return float(chdtrc(cells - 1, index / (1 / total + 1 / rows)))
    expected = blocks.sum(axis=1, keepdims=True) * before[before > 0] / total
    freedom = (periods - 1) * max(int(np.count_nonzero(before)) - 1, 1)
    pearson = float((np.square(blocks[:, before > 0] - expected) / expected).sum())
    excess = max(pearson / freedom - 1.0, 0.0)
    noise = (1 + excess) / total + (1 + excess * rows * periods / total) / rows
    return float(fdtrc(cells - 1, freedom, index / noise / (cells - 1)))


def benjamini_hochberg(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Return adjusted p-values: those at most q hold with a share of false ones of at most q.

    Parameters
    ----------
    p_values : sequence of float
        Of all tests made, not only of those that look good.

    Returns
    -------
    ndarray of float64
        In the order given.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def distances_of_numbers(before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov and the Wasserstein distance of two samples of numbers.

    Parameters
    ----------
    before, after : array_like of float64, shapes (n,) and (m,)
        Without NaN.

    Returns
    -------
    kolmogorov_smirnov : float
        Largest gap between both distribution functions, in [0, 1]; NaN without rows on a side.
    wasserstein : float
        Area between them, in the unit of the numbers; NaN without rows on a side.
    """
    first, second = np.sort(np.asarray(before, float)), np.sort(np.asarray(after, float))
    if not len(first) or not len(second):
        return float("nan"), float("nan")
    steps = np.concatenate([first, second])
    steps.sort(kind="stable")
    gaps = np.abs(
        np.searchsorted(first, steps, side="right") / len(first)
        - np.searchsorted(second, steps, side="right") / len(second)
    )
    return float(gaps.max()), float((gaps[:-1] * np.diff(steps)).sum())


def jensen_shannon(before: ArrayLike, after: ArrayLike) -> float:
    """Return the Jensen-Shannon distance of two histograms over the same cells.

    Parameters
    ----------
    before, after : array_like of int64, shape (cells,)

    Returns
    -------
    float
        Square root of the divergence in bits, in [0, 1]; NaN without rows on a side.
    """
    counts = np.asarray([before, after], dtype=np.float64)
    if not counts.sum(axis=1).all():
        return float("nan")
    shares = counts / counts.sum(axis=1, keepdims=True)
    middle = shares.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, shares * np.log2(shares / middle), 0.0)
    return float(np.sqrt(max(terms.sum() / 2, 0.0)))


def unseen_share(before: NDArray[np.int64], unseen: int, rows: int) -> tuple[float, float, float]:
    """Return how many rows are of categories never seen, how many to expect, and the p-value.

    A sample never holds every category: by Good and Turing the chance that the next row is of an
    unseen one is about the share of rows whose category was seen once.

    Parameters
    ----------
    before : ndarray of int64
        Reference rows of each category seen.
    unseen, rows : int
        Current rows of no such category, and all of them.

    Returns
    -------
    share, expected, p_value : float

    References
    ----------
    Good, The population frequencies of species, Biometrika 40, 1953.
    """
    from scipy.special import chdtrc

    total = int(before.sum())
    if not total or not rows:
        return float("nan"), float("nan"), 1.0
    share, expected = unseen / rows, float((before == 1).sum()) / total
    variance = (
        float((before == 1).sum() + 2 * (before == 2).sum()) / total**2
        + max(share * (1 - share), expected * (1 - expected), 1 / rows) / rows
    )
    return share, expected, float(chdtrc(1, (share - expected) ** 2 / variance))
