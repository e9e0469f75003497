"""A log laid out for the study of vectors, and what a ranker and retrieval make of it.

Made markets (``benchmarks/vector_study.py``) and a deployment's own log (:mod:`.worth_of_log`) are
laid out alike and measured by the same code. Which rows a log has, and which questions are asked of
them, stand there and in :mod:`.worth`.
"""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import SimilarityGraph, Users, fit_clusters
from ad_pipeline.embeddings.published import user_hashes
from ad_pipeline.embeddings.retrieval import Candidates, engaged_until
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.hashing import uniform
from ad_pipeline.monitoring.user_vectors.cold_start import Prior, fit_prior
from ad_pipeline.monitoring.user_vectors.features import (
    Engagements,
    activity_counts,
    engager_centroids,
    engager_cosines,
    match_logits,
    refreshed_us,
    vectors_at,
)
from ad_pipeline.monitoring.user_vectors.labelled import UNKNOWN, Impressions
from ad_pipeline.monitoring.user_vectors.ranker import Split, ranked, trainings_of
from ad_pipeline.monitoring.user_vectors.recall import lists_by_way
from ad_pipeline.settings import BatchSettings, UserVectorSettings

COARSE_CLUSTERS_PER_ROOT = 0.25
"""Of the clusters that users are drawn from at random: many times as many users as have a say."""

TIMED_USERS = 1_000


@dataclass(frozen=True)
class StudiedLog:
    """A log, laid out for encoder and ranker.

    Attributes
    ----------
    history : History
    ad_hashes : ndarray of shape (a,), uint64
        Of the ads, whose places the other fields use.
    ad_tokens : ndarray of shape (a, A), uint32
    goals : dict of str to Impressions
        The goals of a ranker; the first is the one that similar users' ads are looked for by.
    segments : dict of str to ndarray of shape (n,), str
        By goal: what each impression's request tells of a user nobody knows.
    user_segments : ndarray of shape (u,), str
        Of the history's users, by their last request before the ranker begins to learn; "" of who
        made none.
    engagements : Engagements
    first_us : int
        Of what users did: no vector knows anything before.
    split : Split
    batch : BatchSettings
        Of the ranker.
    gaps_us : dict of str to int
        By goal: between what a ranker is trained on and what stops the training early.
    engagers_every_us : int
        Directions of ads' engagers are made anew so often.
    """

    history: History
    ad_hashes: np.ndarray
    ad_tokens: np.ndarray
    goals: dict[str, Impressions]
    segments: dict[str, np.ndarray]
    user_segments: np.ndarray
    engagements: Engagements
    first_us: int
    split: Split
    batch: BatchSettings
    gaps_us: dict[str, int]
    engagers_every_us: int

    def ranked_rows(self, goal: str) -> np.ndarray:
        """Return the places of the rows that a ranker of a goal learns or is tested on."""
        shown = self.goals[goal]
        return np.flatnonzero(self.split.learnt(shown) | self.split.tested(shown))

    def ranked(self, goal: str) -> Impressions:
        """Return those rows."""
        return self.goals[goal].taken(self.ranked_rows(goal))

    def engager_centroids(self, encoder: Encoder, moment_us: int) -> np.ndarray:
        """Return :func:`.features.engager_centroids` of a moment, made once an encoder.

        Whatever vectors of users are asked about, they meet the same engagers, and to encode all of
        those takes longest.
        """
        # By identity, which cannot be another's while the encoder itself is kept.
        key = id(encoder), moment_us
        if key not in self._centroids:
            ads = len(self.ad_tokens)
            found = engager_centroids(encoder, self.history, self.engagements, ads, moment_us)
            self._centroids[key] = encoder, found
        return self._centroids[key][1]

    @cached_property
    def _centroids(self) -> dict[tuple[int, int], tuple[Encoder, np.ndarray]]:
        return {}


@dataclass(frozen=True)
class Columns:
    """What vectors add to the rows of :meth:`StudiedLog.ranked` of a goal.

    Attributes
    ----------
    vectors : ndarray of shape (n, d), float32
    engagers : ndarray of shape (n,), float64
        Cosine with the ad's engagers.
    match : ndarray of shape (n,), float64
        Log odds of the two towers.
    """

    vectors: np.ndarray
    engagers: np.ndarray
    match: np.ndarray

    @property
    def published(self) -> np.ndarray:
        """What the feature room hands over: d numbers and the cosine; (n, d + 1)."""
        return np.concatenate([self.vectors, self.engagers[:, np.newaxis]], axis=1)

    @property
    def matched(self) -> np.ndarray:
        """What the towers say, and the cosine; (n, 2)."""
        return np.stack([self.match, self.engagers], axis=1)


def columns_of(
    encoder: Encoder, log: StudiedLog, goal: str, interval_us: int, *, spread: bool = False
) -> Columns:
    """Return what vectors refreshed at an interval add to a goal's rows.

    Parameters
    ----------
    encoder : Encoder
    log : StudiedLog
    goal : str
    interval_us : int
    spread : bool
        Refresh each user at a moment of his own within the interval; all at once otherwise.
    """
    shown = log.ranked(goal)
    phase = phases(log)[shown.user] if spread else 0.0
    moment_us = refreshed_us(shown.occurred_us, interval_us, phase)
    return with_vectors(encoder, log, goal, vectors_at(encoder, log.history, shown.user, moment_us))


def of_known_well(columns: np.ndarray, activities: np.ndarray, fewest: int) -> np.ndarray:
    """Return columns, (n, V), with NaN where a user has done too little to have a vector.

    Parameters
    ----------
    columns : ndarray of shape (n, V), float
        Of :class:`Columns`.
    activities : ndarray of shape (n,), int64
        From :func:`activities_of`.
    fewest : int
        ``settings.user_vectors.fewest_activities``: what the product publishes.
    """
    return np.where((activities < fewest)[:, np.newaxis], np.nan, columns)


def phases(log: StudiedLog) -> np.ndarray:
    """Return where in an interval each user is refreshed, drawn by his id; the last is nobody's."""
    return np.append(uniform(0, user_hashes(log.history.users), "refresh"), 0.0)


def activities_of(log: StudiedLog, goal: str, interval_us: int) -> np.ndarray:
    """Return how many activities the vectors of :func:`columns_of` know, (n,) int64."""
    shown = log.ranked(goal)
    moment_us = refreshed_us(shown.occurred_us, interval_us)
    return activity_counts(log.history, shown.user, moment_us)


def columns_of_strangers(
    encoder: Encoder, log: StudiedLog, goal: str, interval_us: int, seed: int
) -> Columns:
    """Return what :func:`columns_of` does, had everybody been given another user's vectors."""
    shown = log.ranked(goal)
    order = np.random.default_rng(seed).permutation(len(log.history.users))
    stranger = np.append(order, UNKNOWN)[shown.user]
    moment_us = refreshed_us(shown.occurred_us, interval_us)
    return with_vectors(encoder, log, goal, vectors_at(encoder, log.history, stranger, moment_us))


def with_vectors(encoder: Encoder, log: StudiedLog, goal: str, vectors: np.ndarray) -> Columns:
    """Return what given vectors, a row each of a goal's, add to the ranker."""
    shown = log.ranked(goal)
    tasks = encoder.settings.tasks
    # A vector that has not learnt this goal speaks by the first that it has.
    task = goal if goal in tasks else tasks[0]
    match = match_logits(encoder, vectors, log.ad_tokens, shown.ad, task)
    engagers = engager_cosines(
        vectors,
        shown.ad,
        shown.occurred_us,
        log.engagers_every_us,
        lambda moment_us: log.engager_centroids(encoder, moment_us),
    )
    return Columns(vectors, engagers, match)


def probabilities_with(log: StudiedLog, goal: str, columns: np.ndarray | None) -> np.ndarray:
    """Return what rankers with some more columns say of a goal's tested rows, (trainings, t).

    Raises
    ------
    RankerUntrained
        If there are too few positives to train on.
    """
    shown = log.ranked(goal)
    trainings = trainings_of(int(log.split.learnt(shown).sum()))
    return ranked(shown, log.split, columns, log.batch, log.gaps_us[goal], trainings)


def prior_of(log: StudiedLog, encoder: Encoder, segment_strength: float) -> Prior:
    """Fit the prior of cold starts to the users known when the ranker begins to learn.

    Parameters
    ----------
    log : StudiedLog
    encoder : Encoder
    segment_strength : float
        Users' worth of the mean of all that each segment's mean is shrunk by.

    Raises
    ------
    NobodyHasVectors
        If none of them has a vector.
    """
    fitted_us = log.split.learn_from_us
    users = np.flatnonzero(log.user_segments != "")
    known = vectors_at(encoder, log.history, users, np.full(len(users), fitted_us))
    return fit_prior(known, log.user_segments[users], segment_strength)


def known_users(encoder: Encoder, log: StudiedLog) -> Users:
    """Return the vectors of everybody known when what is tested begins."""
    names = log.history.users
    moments = np.full(len(names), log.split.test_from_us)
    vectors = vectors_at(encoder, log.history, np.arange(len(names)), moments)
    hashes = user_hashes(names)
    known = np.flatnonzero(np.isfinite(vectors[:, 0]))
    known = known[np.argsort(hashes[known])]
    return Users.of_matrix(hashes[known], vectors[known], "measured")


def lists_of(
    log: StudiedLog,
    users: Users,
    graph: SimilarityGraph,
    settings: UserVectorSettings,
    eligible_us: int,
    limit: int,
    seed: int,
) -> dict[str, Candidates]:
    """Return every way's list of ads for each user, as of when what is tested begins.

    Parameters
    ----------
    log : StudiedLog
    users : Users
        From :func:`known_users`.
    graph : SimilarityGraph
        Of them.
    settings : UserVectorSettings
    eligible_us : int
        Ads that were shown so shortly before may be listed.
    limit : int
        Ads a list.
    seed : int
    """
    moment_us = log.split.test_from_us
    engaged = engaged_until(
        user_hashes(log.history.users)[log.engagements.user],
        log.ad_hashes[log.engagements.ad],
        log.engagements.received_us,
        moment_us,
    )
    shown = log.goals[next(iter(log.goals))]
    lately = (shown.occurred_us >= moment_us - eligible_us) & (shown.occurred_us < moment_us)
    eligible = np.unique(log.ad_hashes[shown.ad[lately]])
    # Also where so few users need no clusters to be searched.
    coarse = settings.model_copy(
        update={
            "clusters_per_root": COARSE_CLUSTERS_PER_ROOT,
            "exact_users": 1,
            "aimed_recall": None,  # the own cluster alone is asked for
        }
    )
    own = fit_clusters(users, coarse, seed).of_users(users, np.arange(len(users.ids)))[:, 0]
    return lists_by_way(engaged, graph, own, settings, limit, eligible, seed)


def engaged_after(log: StudiedLog, goal: str) -> tuple[np.ndarray, np.ndarray]:
    """Return who engaged with which ad among the tested rows of a goal, as hashes, uint64 (m,)."""
    shown = log.goals[goal]
    after = np.flatnonzero(log.split.tested(shown) & (shown.labels == 1) & (shown.user >= 0))
    users = user_hashes(log.history.users)
    return users[shown.user[after]], log.ad_hashes[shown.ad[after]]


@dataclass(frozen=True)
class Cost:
    """What vectors cost; timings are of a core and differ from run to run.

    Attributes
    ----------
    us_per_user : float
        Microseconds to encode a user.
    us_per_query : float
        Microseconds to match a vector with an ad.
    bytes_per_user : float
        Of a stored vector at half precision.
    """

    us_per_user: float
    us_per_query: float
    bytes_per_user: float


def cost_of(encoder: Encoder, log: StudiedLog) -> Cost:
    """Time encoding users and matching them with an ad, programs compiled before."""
    users = np.arange(min(TIMED_USERS, len(log.history.users)))
    moments = np.full(len(users), log.split.test_from_us)
    vectors = vectors_at(encoder, log.history, users, moments)
    started = time.process_time()
    vectors_at(encoder, log.history, users, moments)
    encoded = time.process_time() - started
    tokens = log.ad_tokens[np.zeros(len(users), np.int64)]
    started = time.process_time()
    encoder.logits(vectors, tokens)
    matched = time.process_time() - started
    each = 1e6 / len(users)
    return Cost(encoded * each, matched * each, 2.0 * vectors.shape[1])
