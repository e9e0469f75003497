"""Candidates of ads for a user: what similar users engaged with, the recent counting for more.

An ad's weight is the sum over similar users of similarity times 2^(-age / half-life), where the age
is that of the user's newest engagement with it: a neighbour speaks for an ad once, however often it
clicked. Fifty neighbours have clicked a few of some hundred ads, so what they say is shrunk to what
everybody says: to the sum is added the ad's share of all engagements, times a strength. That is the
mean of a Dirichlet posterior whose prior is popularity; a user whose neighbours are silent, or who
has none, is left with popular ads.

Engagements are cut at a moment first, by when our log had them, and nothing here can see past the
cut. What a list is like (its diversity) is measured beside what it finds, and against three simpler
ways to make one: popularity, ads that share users, random users of the same cluster.

Ranking candidates belongs to the learners; whether a campaign has budget is told by the caller.

References
----------
Wang et al., arXiv 2406.05898 (user-to-user retrieval). C. Zhai and J. Lafferty, "A study of
smoothing methods for language models applied to information retrieval", ACM TOIS 2004 (Dirichlet
prior of what few words say). B. Sarwar et al., "Item-based collaborative filtering recommendation
algorithms", WWW 2001 (cosine of ads). C.-N. Ziegler et al., "Improving recommendation lists through
topic diversification", WWW 2005 (intra-list similarity).
"""

from dataclasses import dataclass, field

import numpy as np

from ad_pipeline import hashing
from ad_pipeline.embeddings.vectors import ABSENT, places_of

_ROWS = 1_024
"""Users whose candidates are made at once."""

_NO_RANKING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Engaged:
    """Who engaged with which ad, as our log knew it at a moment.

    Attributes
    ----------
    as_of_us : int
        The moment.
    users : ndarray of shape (n,), uint64
        Ascending.
    starts : ndarray of shape (n + 1,), int64
        Where each one's ads begin.
    ads : ndarray of shape (e,), int64
        Places in ``ad_ids``, each once a user, ascending.
    newest_us : ndarray of shape (e,), int64
        When the log had the user's newest engagement with the ad.
    ad_ids : ndarray of shape (a,), uint64
        Ascending.
    """

    as_of_us: int
    users: np.ndarray
    starts: np.ndarray
    ads: np.ndarray
    newest_us: np.ndarray
    ad_ids: np.ndarray
    _priors: dict[tuple[int, float], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def rows(self) -> np.ndarray:
        """Place in ``users`` of each entry of ``ads``: int64 (e,)."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.starts))

    def decay(self, half_life_us: int, entries: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return 2^(-age / half-life) of entries of ``ads``, all by default: float64 (e,)."""
        return np.exp2(-(self.as_of_us - self.newest_us[entries]) / half_life_us)

    def prior(self, half_life_us: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Return what popularity says for ads, the same whoever asks: the last one is kept.

        Parameters
        ----------
        half_life_us : int
        strength : float
            Engagements that it weighs as much as.

        Returns
        -------
        weights : ndarray of shape (a,), float64
            Each ad's share of all engagements, the recent counting for more, times the strength.
        ranking : ndarray of int64
            Places of the ads of a weight above 0, the highest first, ties by place.
        """
        if strength == 0:
            return np.zeros(len(self.ad_ids)), _NO_RANKING
        kept = self._priors.get((half_life_us, strength))
        if kept is None:
            said = np.bincount(self.ads, self.decay(half_life_us), len(self.ad_ids))
            weights = strength * (said / max(said.sum(), np.finfo(np.float64).tiny))
            order = np.lexsort((np.arange(len(weights)), -weights))
            kept = weights, order[(weights > 0)[order]]
            self._priors.clear()
            self._priors[half_life_us, strength] = kept
        return kept

    def is_eligible(self, eligible: np.ndarray | None) -> np.ndarray:
        """Tell of each ad whether it is among eligible ids, uint64; all are if None.

        What has been told already, a bool of each ad, comes back as it is.
        """
        if eligible is None:
            return np.ones(len(self.ad_ids), bool)
        return eligible if eligible.dtype == np.bool_ else np.isin(self.ad_ids, eligible)


@dataclass(frozen=True)
class Candidates:
    """Ads for some users, the best first.

    Attributes
    ----------
    users : ndarray of shape (q,), uint64
        As they were asked about.
    starts : ndarray of shape (q + 1,), int64
        Where each one's ads begin.
    ads : ndarray of shape (c,), uint64
        By descending weight, ties by id; each once a user.
    weights : ndarray of shape (c,), float64
        Above 0.
    """

    users: np.ndarray
    starts: np.ndarray
    ads: np.ndarray
    weights: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Return the ads of the row-th user."""
        return self.ads[self.starts[row] : self.starts[row + 1]]


@dataclass(frozen=True)
class Diversity:
    """What lists of candidates are like.

    Attributes
    ----------
    intra_list_similarity : float
        Mean over lists of the mean cosine of two of its ads; NaN if no list has two.
    coverage : float
        Share of the ads that could be shown which are in some list.
    gini : float
        Of how often each of those ads is in a list: 0 if all are equally often, near 1 if few ads
        fill all lists. NaN if all lists are empty.
    """

    intra_list_similarity: float
    coverage: float
    gini: float


def engaged_until(
    users: np.ndarray, ads: np.ndarray, received_us: np.ndarray, as_of_us: int
) -> Engaged:
    """Cut engagements at a moment.

    Parameters
    ----------
    users, ads : ndarray of shape (m,), uint64
        Hashes, in any order.
    received_us : ndarray of shape (m,), int64
        When our log had each: what came later was not known, whenever it happened.
    as_of_us : int

    Returns
    -------
    Engaged
    """
    known = received_us <= as_of_us
    users, ads, received_us = users[known], ads[known], received_us[known]
    order = np.lexsort((-received_us, ads, users))
    users, ads, received_us = users[order], ads[order], received_us[order]
    is_newest = np.ones(len(users), bool)
    is_newest[1:] = (users[1:] != users[:-1]) | (ads[1:] != ads[:-1])
    users, ads, received_us = users[is_newest], ads[is_newest], received_us[is_newest]
    distinct, counts = np.unique(users, return_counts=True)
    ad_ids, places = np.unique(ads, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Engaged(as_of_us, distinct, starts, places.astype(np.int64), received_us, ad_ids)


def of_similar_users(
    engaged: Engaged,
    users: np.ndarray,
    neighbours: np.ndarray,
    similarities: np.ndarray,
    *,
    half_life_us: int,
    limit: int,
    popularity_strength: float = 0.0,
    eligible: np.ndarray | None = None,
    without_seen: bool = True,
) -> Candidates:
    """Return the ads that similar users engaged with.

    Parameters
    ----------
    engaged : Engaged
    users : ndarray of shape (q,), uint64
        Whom candidates are for.
    neighbours : ndarray of shape (q, k), uint64
        Similar users of each; where ``similarities`` is not above 0 it is not looked at.
    similarities : ndarray of shape (q, k), float32
        Cosines, minus infinity for nobody: who is unlike speaks for no ad.
    half_life_us : int
        Above 0.
    limit : int
        Ads a user.
    popularity_strength : float
        Engagements of similar users that popularity weighs as much as; 0: they alone speak.
    eligible : ndarray of uint64, or ndarray of shape (a,), bool, optional
        Ads that may be shown now: those whose budget and targeting allow it, by id or told of each
        of ``engaged.ad_ids``. All by default.
    without_seen : bool
        Leave out what the user has engaged with.

    Returns
    -------
    Candidates
    """
    is_eligible = engaged.is_eligible(eligible)
    prior, ranking = engaged.prior(half_life_us, popularity_strength)
    ranking = ranking[is_eligible[ranking]]
    parts = []
    for start in range(0, len(users), _ROWS):
        block = slice(start, start + _ROWS)
        places = places_of(engaged.users, neighbours[block])
        row, rank = np.nonzero((places != ABSENT) & (similarities[block] > 0))
        row, entry, speaker = _entries(engaged, row, places[row, rank])
        similarity = similarities[block][row, rank[speaker]].astype(np.float64)
        said = _Said(row, engaged.ads[entry], similarity * engaged.decay(half_life_us, entry))
        parts.append(
            _best(engaged, users[block], said, prior, ranking, is_eligible, limit, without_seen)
        )
    return _joined(users, parts)


def popular(
    engaged: Engaged,
    users: np.ndarray,
    *,
    half_life_us: int,
    limit: int,
    eligible: np.ndarray | None = None,
    without_seen: bool = True,
) -> Candidates:
    """Return the ads that most users engaged with lately: the same for all but for what was seen.

    Parameters and result are those of :func:`of_similar_users`; weights are shares of all
    engagements.
    """
    nobody = np.zeros((len(users), 0), np.uint64)
    return of_similar_users(
        engaged,
        users,
        nobody,
        nobody.astype(np.float32),
        half_life_us=half_life_us,
        limit=limit,
        popularity_strength=1.0,
        eligible=eligible,
        without_seen=without_seen,
    )


def of_similar_ads(
    engaged: Engaged,
    users: np.ndarray,
    *,
    limit: int,
    eligible: np.ndarray | None = None,
    without_seen: bool = True,
) -> Candidates:
    """Return the ads that share users with those that a user engaged with (item-item cosine).

    The cosine of two ads is the number of users that engaged with both over the geometric mean of
    those with either; an ad's weight is its sum over the user's ads. Parameters and result are
    those of :func:`of_similar_users`.
    """
    from scipy import sparse

    shape = (len(engaged.users), len(engaged.ad_ids))
    ones = np.ones(len(engaged.ads))
    by_user = sparse.csr_array((ones, engaged.ads, engaged.starts), shape=shape)
    length = np.sqrt(np.bincount(engaged.ads, minlength=shape[1]))
    scaled = by_user @ sparse.diags_array(1 / length) if shape[1] else by_user
    cosines = sparse.csr_array(scaled.T @ scaled)
    cosines.setdiag(0)
    is_eligible = engaged.is_eligible(eligible)
    prior = np.zeros(shape[1])
    parts = []
    for start in range(0, len(users), _ROWS):
        asking = users[start : start + _ROWS]
        places = places_of(engaged.users, asking)
        known = np.flatnonzero(places != ABSENT)
        summed = sparse.coo_array(by_user[places[known]] @ cosines)
        said = _Said(known[summed.coords[0]], summed.coords[1].astype(np.int64), summed.data)
        parts.append(
            _best(engaged, asking, said, prior, _NO_RANKING, is_eligible, limit, without_seen)
        )
    return _joined(users, parts)


def random_of_cluster(ids: np.ndarray, own: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Draw neighbours without looking at vectors: the k next users in a drawn order of a cluster.

    Parameters
    ----------
    ids : ndarray of shape (n,), uint64
    own : ndarray of shape (n,), integer
        Each user's cluster.
    k : int
    seed : int

    Returns
    -------
    ndarray of shape (n, k), int64
        Positions in ``ids``; -1 where a cluster has fewer others.
    """
    draws = hashing.uniform(seed, ids, "embeddings.retrieval.random_of_cluster")
    order = np.lexsort((ids, draws, own))
    found = np.full((len(ids), k), ABSENT, np.int64)
    _, firsts, counts = np.unique(own[order], return_index=True, return_counts=True)
    for first, count in zip(firsts, counts, strict=True):
        members = order[first : first + count]
        for step in range(1, min(k, count - 1) + 1):
            found[members, step - 1] = np.roll(members, -step)
    return found


def recall_shares(
    candidates: Candidates, users: np.ndarray, ads: np.ndarray, at: int
) -> np.ndarray:
    """Return which share of what each user went on to engage with his list holds.

    Parameters
    ----------
    candidates : Candidates
    users, ads : ndarray of shape (m,), uint64
        Engagements after the candidates' moment.
    at : int
        Ads of each list that are looked at.

    Returns
    -------
    ndarray of shape (k,), float64
        In the order of the candidates' users, without those who engaged with nothing.
    """
    pairs = np.unique(np.column_stack([users, ads]), axis=0)
    shares = []
    for row, user in enumerate(candidates.users):
        true = pairs[pairs[:, 0].searchsorted(user) : pairs[:, 0].searchsorted(user, "right"), 1]
        if len(true):
            shares.append(np.isin(true, candidates.of(row)[:at]).mean())
    return np.array(shares, np.float64)


def recall_at(candidates: Candidates, users: np.ndarray, ads: np.ndarray, at: int) -> float:
    """Return the mean of :func:`recall_shares`; NaN if nobody engaged with anything."""
    shares = recall_shares(candidates, users, ads, at)
    return float(shares.mean()) if len(shares) else float("nan")


def diversity_of(candidates: Candidates, ad_ids: np.ndarray, ad_vectors: np.ndarray) -> Diversity:
    """Measure how alike the ads of a list are, and how evenly lists use the ads.

    Parameters
    ----------
    candidates : Candidates
    ad_ids : ndarray of shape (a,), uint64
        All ads that could be in a list, ascending.
    ad_vectors : ndarray of shape (a, d), float
        Of each ad: from an encoder, or one column a category.

    Returns
    -------
    Diversity

    Raises
    ------
    ValueError
        If a list has an ad that is not in ``ad_ids``.
    """
    places = places_of(ad_ids, candidates.ads)
    if (places == ABSENT).any():
        stranger = candidates.ads[places == ABSENT][0]
        raise ValueError(f"ad {stranger} is in a list and not among the {len(ad_ids)} ads given")
    lengths = np.linalg.norm(ad_vectors, axis=1, keepdims=True)
    units = ad_vectors / np.where(lengths > 0, lengths, 1)
    alike = []
    for first, end in zip(candidates.starts[:-1], candidates.starts[1:], strict=True):
        listed, n = units[places[first:end]], end - first
        if n > 1:
            # The square of a sum is the sum over all pairs, each ad with itself included.
            total = (listed.sum(axis=0) ** 2).sum() - (listed**2).sum()
            alike.append(total / (n * (n - 1)))
    counts = np.sort(np.bincount(places, minlength=len(ad_ids)))
    ranks = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    return Diversity(
        float(np.mean(alike)) if alike else float("nan"),
        float((counts > 0).mean()) if len(counts) else float("nan"),
        float((ranks * counts).sum() / (len(counts) * counts.sum()))
        if counts.sum()
        else float("nan"),
    )


def _entries(
    engaged: Engaged, row: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spread rows that name a user over the user's entries: row, entry, and which of the given."""
    first = engaged.starts[places]
    counts = engaged.starts[places + 1] - first
    of_given = np.repeat(np.arange(len(row)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return row[of_given], first[of_given] + within, of_given


@dataclass(frozen=True)
class _Said:
    """What is said for ads in lists of some rows: three columns of one length."""

    row: np.ndarray
    ads: np.ndarray
    weights: np.ndarray


def _best(
    engaged: Engaged,
    asking: np.ndarray,
    said: _Said,
    prior: np.ndarray,
    ranking: np.ndarray,
    is_eligible: np.ndarray,
    limit: int,
    without_seen: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add a prior to the sum of what is said, and keep the best: counts a row, ads and weights."""
    every = max(len(engaged.ad_ids), 1)
    places = places_of(engaged.users, asking)
    known = np.flatnonzero(places != ABSENT)
    seen_row, entry, _ = _entries(engaged, known, places[known])
    # Of ads that nobody speaks for only the first by the prior can be in a list: as many as the
    # list is long, behind those that the user has seen.
    reached = np.full(len(asking), limit)
    if without_seen:
        reached += np.bincount(seen_row, minlength=len(asking))
    reached = np.minimum(reached, len(ranking))
    of_prior = ranking[np.arange(reached.sum()) - np.repeat(np.cumsum(reached) - reached, reached)]
    spoken = is_eligible[said.ads] & (said.weights > 0)
    keys = np.concatenate(
        [
            said.row[spoken] * every + said.ads[spoken],
            np.repeat(np.arange(len(asking)), reached) * every + of_prior,
        ]
    )
    weights = np.concatenate([said.weights[spoken], np.zeros(len(of_prior))])
    if without_seen:
        kept = ~np.isin(keys, seen_row * every + engaged.ads[entry])
        keys, weights = keys[kept], weights[kept]
    distinct, index = np.unique(keys, return_inverse=True)
    row, ads = np.divmod(distinct, every)
    # bincount adds in the order of the neighbours, so that a sum has the same bits in any block.
    totals = np.bincount(index, weights, len(distinct)) + prior[ads]
    order = np.lexsort((ads, -totals, row))
    counts = np.bincount(row, minlength=len(asking))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[rank < limit]
    return np.minimum(counts, limit), engaged.ad_ids[ads[order]], totals[order]


def _joined(
    users: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> Candidates:
    counts = np.concatenate([part[0] for part in parts] or [np.zeros(0, np.int64)])
    ads = np.concatenate([part[1] for part in parts] or [np.zeros(0, np.uint64)])
    weights = np.concatenate([part[2] for part in parts] or [np.zeros(0)])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Candidates(users, starts, ads, weights)
