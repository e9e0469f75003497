"""What users did next, as something to learn: told from what others did.

Goals alone have few positives to learn tastes from; what users did has many. All that a user did
within a horizon shares one sequence, which ends where the horizon begins (Pancha et al.,
PinnerFormer, KDD 2022: dense all-action loss), and each thing done stands against one that was done
at any time by somebody, drawn from the same kind of activity, so that neither a kind nor what is
popular is what tells them apart. Activities are rows in the slots of ads: what users read and what
they are shown then lie in one space.

**No leak.** The clock of an action is ``received_us``, as that of what a sequence holds: whatever
our log had by the moment of a sequence is read and never foretold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ad_pipeline.embeddings.sequences import NOTHING, USER, History
from ad_pipeline.hashing import combine, hash_strings, seed_of, uniform

_DRAWN_BY = "monitoring.user_vectors.next"
"""The name by which the study's figures were drawn; another would be another draw."""


@dataclass(frozen=True)
class Actions:
    """What users did, as something to be foretold; m actions of one kind.

    Attributes
    ----------
    user : ndarray of shape (m,), int64
        Places in a history's users.
    received_us : ndarray of shape (m,), int64
    tokens : ndarray of shape (m, T), uint32
        What it was about, in the slots of ads.
    """

    user: np.ndarray
    received_us: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        """Return the number of actions."""
        return len(self.user)

    def taken(self, rows: np.ndarray) -> "Actions":
        """Return some actions, by places or a mask."""
        return Actions(self.user[rows], self.received_us[rows], self.tokens[rows])


@dataclass(frozen=True)
class Contrasted:
    """Actions, and at the same moments of the same users what others did.

    Attributes
    ----------
    user, received_us, tokens
        As in :class:`Actions`; n is 2 m.
    labels : ndarray of shape (n,), float32
        1 of what the user did, 0 of what was drawn.
    """

    user: np.ndarray
    received_us: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray


def contrasted(actions: Actions, seed: int) -> Contrasted:
    """Return each action, labelled 1, and another's at its moment, labelled 0.

    Parameters
    ----------
    actions : Actions
        Their order decides what is drawn.
    seed : int
    """
    count = len(actions)
    draws = uniform(seed, np.arange(count, dtype=np.uint64), _DRAWN_BY)
    others = (draws * count).astype(np.int64)
    return Contrasted(
        np.tile(actions.user, 2),
        np.tile(actions.received_us, 2),
        np.concatenate([actions.tokens, actions.tokens[others]]),
        np.repeat(np.array([1, 0], np.float32), count),
    )


def actions_of(
    history: History,
    modalities: Sequence[str],
    span_us: tuple[int, int],
    users: np.ndarray,
    most: int,
    seed: int,
) -> Iterator[Actions]:
    """Yield what users did within a span, a kind at a time, in the order of the history.

    Parameters
    ----------
    history : History
    modalities : sequence of str
        One of whose activities none has tokens yields nothing.
    span_us : (int, int)
        What our log had after the first moment, up to the second.
    users : ndarray of shape (n,), bool
        Whose: of the history's users.
    most : int
        Of more, about so many are kept in all, each by a hash of user and moment.
    seed : int
    """
    after_us, until_us = span_us
    ids = hash_strings(history.users, seed_of(USER))
    found = {}
    for name in modalities:
        of = history.modalities[name]
        own = np.repeat(users, np.diff(of.offsets))
        in_span = (of.received_us > after_us) & (of.received_us <= until_us)
        found[name] = np.flatnonzero(own & in_span & (of.tokens != NOTHING).any(axis=1))
    share = most / max(sum(map(len, found.values())), 1)
    for name, rows in found.items():
        of = history.modalities[name]
        user = np.searchsorted(of.offsets, rows, side="right") - 1
        identities = combine(ids[user], of.received_us[rows].astype(np.uint64))
        kept = uniform(seed, identities, f"embeddings.next_actions, {name}") < share
        if kept.any():
            yield Actions(user[kept], of.received_us[rows[kept]], of.tokens[rows[kept]])
