"""Factors of users and ads from engagements alone: what retrieval by vectors is compared with.

Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008: who
engaged with an ad prefers it with confidence 1 + alpha, who did not does not, with confidence 1.
Exact alternating least squares, each half solved in closed form.
"""

from dataclasses import dataclass

import numpy as np

from ad_pipeline.embeddings.retrieval import Candidates, Engaged
from ad_pipeline.embeddings.vectors import ABSENT, places_of


@dataclass(frozen=True)
class Factors:
    """What alternating least squares made of engagements.

    Attributes
    ----------
    users : ndarray of shape (n, f), float64
        In the order of the engagements' users.
    ads : ndarray of shape (a, f), float64
    """

    users: np.ndarray
    ads: np.ndarray


def factorized(
    engaged: Engaged,
    factors: int = 16,
    alpha: float = 20.0,
    regularization: float = 5.0,
    rounds: int = 10,
    seed: int = 0,
) -> Factors:
    """Factorize who engaged with what.

    Parameters
    ----------
    engaged : Engaged
    factors : int
        f.
    alpha : float
        Confidence that one engagement adds (equation 3 has no effect without it).
    regularization : float
        Lambda.
    rounds : int
        Times that users, then ads, are solved for.
    seed : int
        Of the ads' first factors.

    Returns
    -------
    Factors
    """
    from scipy import sparse

    shape = (len(engaged.users), len(engaged.ad_ids))
    ones = np.ones(len(engaged.ads))
    by_user = sparse.csr_array((ones, engaged.ads, engaged.starts), shape=shape)
    by_ad = sparse.csr_array(by_user.T)
    ads = np.random.default_rng(seed).normal(0.0, 0.1, (shape[1], factors))
    users = np.zeros((shape[0], factors))
    for _ in range(rounds):
        users = _solved(by_user, ads, alpha, regularization)
        ads = _solved(by_ad, users, alpha, regularization)
    return Factors(users, ads)


def of_factors(
    engaged: Engaged,
    factors: Factors,
    users: np.ndarray,
    limit: int,
    eligible: np.ndarray | None = None,
) -> Candidates:
    """Return the ads of the highest preference above 0; none for who engaged with nothing.

    Parameters
    ----------
    engaged : Engaged
        What was factorized.
    factors : Factors
    users : ndarray of shape (q,), uint64
    limit : int
        Ads a user.
    eligible : ndarray of uint64, optional
        Ads that may be shown; all by default.
    """
    places = places_of(engaged.users, users)
    is_eligible = engaged.is_eligible(eligible)
    preferred = np.where(is_eligible, factors.users[places] @ factors.ads.T, 0.0)
    preferred[places == ABSENT] = 0.0
    best = np.argsort(-preferred, axis=1, kind="stable")[:, :limit]
    weights = np.take_along_axis(preferred, best, axis=1)
    kept = weights > 0
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return Candidates(users, starts, engaged.ad_ids[best[kept]], weights[kept])


def _solved(
    engaged: "sparse.csr_array",  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    others: np.ndarray,
    alpha: float,
    regularization: float,
) -> np.ndarray:
    """Return the factors of each row that fit the other side's best (equation 4)."""
    size = others.shape[1]
    outer = (others[:, :, np.newaxis] * others[:, np.newaxis, :]).reshape(len(others), -1)
    shared = others.T @ others + regularization * np.eye(size)
    of_rows = shared + alpha * (engaged @ outer).reshape(-1, size, size)
    preferred = (1.0 + alpha) * (engaged @ others)
    return np.linalg.solve(of_rows, preferred[..., np.newaxis])[..., 0]
