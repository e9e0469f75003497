"""Labelled impressions as a ranker and an encoder are given them, and what an encoder learns from.

The same rows serve both, cut by clocks: an encoder learns what had matured by its moment, a ranker
what had matured by its own, later one, and what is tested was shown after both. So no label that a
vector has learnt from is scored with it, and no vector knows what our log did not have yet.

What users did next is a task of the encoder's own
(:mod:`ad_pipeline.embeddings.next_actions`), here over blocks and a span that a study chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ad_pipeline.embeddings.next_actions import Actions, contrasted
from ad_pipeline.embeddings.sequences import History, Sequences
from ad_pipeline.embeddings.training import LabelledAds
from ad_pipeline.settings import NEXT

UNKNOWN = -1
"""Place of a user of whom the log has no activity at all."""


@dataclass(frozen=True)
class Impressions:
    """Impressions of one goal, by time of occurrence.

    Attributes
    ----------
    user : ndarray of shape (n,), int64
        Places in a history's users; :data:`UNKNOWN` for who is not there.
    ad : ndarray of shape (n,), int64
        Places among the ads.
    occurred_us, matured_us : ndarray of shape (n,), int64
        When it was shown, and when its label became final.
    labels : ndarray of shape (n,), 0 or 1
    dense : ndarray of shape (n, D), float
        What the ranker reads without vectors; NaN is missing.
    category_hashes : ndarray of shape (n, C), uint64
    online_logit : ndarray of shape (n,), float64
        The online expert's, given at serving.
    dense_names, category_names : tuple of str
    """

    user: np.ndarray
    ad: np.ndarray
    occurred_us: np.ndarray
    matured_us: np.ndarray
    labels: np.ndarray
    dense: np.ndarray
    category_hashes: np.ndarray
    online_logit: np.ndarray
    dense_names: tuple[str, ...]
    category_names: tuple[str, ...]

    def taken(self, rows: np.ndarray) -> "Impressions":
        """Return some rows, by places or a mask."""
        return Impressions(
            self.user[rows],
            self.ad[rows],
            self.occurred_us[rows],
            self.matured_us[rows],
            self.labels[rows],
            self.dense[rows],
            self.category_hashes[rows],
            self.online_logit[rows],
            self.dense_names,
            self.category_names,
        )


@dataclass(frozen=True)
class Lessons:
    """What an encoder learns.

    Attributes
    ----------
    sequences : Sequences
    ads : LabelledAds
    """

    sequences: Sequences
    ads: LabelledAds


def lessons(
    history: History,
    longest: Mapping[str, int],
    ad_tokens: np.ndarray,
    goals: Mapping[str, Impressions],
    tasks: Sequence[str],
    span_us: tuple[int, int],
    block_us: int,
    actions: Actions | None = None,
    seed: int = 0,
) -> Lessons:
    """Return labelled ads of a span of time, each after a sequence that ended before its block.

    Parameters
    ----------
    history : History
    longest : mapping of str to int
        Modalities, and the activities of each that are read.
    ad_tokens : ndarray of shape (ads, A), uint32
    goals : mapping of str to Impressions
        By goal; an impression may be in several.
    tasks : sequence of str
        Goals that are learnt, and :data:`NEXT`.
    span_us : (int, int)
        Impressions from the first moment on whose label had matured by the second.
    block_us : int
        All that a user saw in a block of time shares one sequence, which ends where it begins.
    actions : Actions, optional
        What :data:`NEXT` is learnt from, tokens as wide as the ads'.
    seed : int
        Of the draw of what others did.

    Raises
    ------
    ValueError
        If :data:`NEXT` is a task and no actions are given, or a task is neither that nor a goal.
    """
    if (NEXT in tasks) != (actions is not None):
        raise ValueError(f"task {NEXT!r} is learnt from actions: give both or neither")
    if unknown := set(tasks) - set(goals) - {NEXT}:
        raise ValueError(f"tasks {sorted(unknown)} are none of the goals {sorted(goals)}")
    start_us, end_us = span_us
    parts = []
    for name in (task for task in tasks if task != NEXT):
        shown = goals[name]
        known = shown.user != UNKNOWN
        known &= (shown.occurred_us > start_us) & (shown.matured_us <= end_us)
        labels = np.full((int(known.sum()), len(tasks)), np.nan, np.float32)
        labels[:, tasks.index(name)] = shown.labels[known]
        tokens = ad_tokens[shown.ad[known]]
        parts.append((shown.user[known], shown.occurred_us[known], tokens, labels))
    if actions is not None:
        known = (actions.received_us > start_us) & (actions.received_us <= end_us)
        found = contrasted(actions.taken(known), seed)
        labels = np.full((len(found.labels), len(tasks)), np.nan, np.float32)
        labels[:, tasks.index(NEXT)] = found.labels
        parts.append((found.user, found.received_us, found.tokens, labels))
    user, moment_us, tokens, labels = (
        np.concatenate([part[place] for part in parts]) for place in range(4)
    )
    as_of_us = (moment_us - 1) // block_us * block_us
    pairs, sequence = np.unique(np.stack([user, as_of_us], 1), axis=0, return_inverse=True)
    sequences = history.sequences(pairs[:, 1], longest, pairs[:, 0])
    ads = LabelledAds.after(sequences, sequence.reshape(-1), moment_us, tokens, labels)
    return Lessons(sequences, ads)
