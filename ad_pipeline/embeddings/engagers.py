"""Ads' engagers: for each ad the mean direction of the users who engaged with it lately.

A ranker compares a user with it. The sum is carried over parts of the users in the order of their
hashes (:mod:`.parts`): one part or many, each ad adds the same vectors in the same order, so that
the mean has the same bits. What is kept meanwhile is a row an ad, not a row a user.
"""

import numpy as np

from ad_pipeline.checkpoints import Checkpoint
from ad_pipeline.clocks import hour_key
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings.published import last_known_us
from ad_pipeline.embeddings.retrieval import Engaged
from ad_pipeline.embeddings.vectors import Layout, StoredVectors, half_precision, write_vectors

_BLOCK_ENTRIES = 8_192


class EngagerSums:
    """What ads' engagers add up to so far.

    Parameters
    ----------
    dimension : int
        Of the users' vectors.
    """

    def __init__(self, dimension: int) -> None:
        self.ids = np.zeros(0, np.uint64)
        """Ads that a known user engaged with, ascending: uint64 (a,)."""
        self.sums = np.zeros((0, dimension))
        """Of their engagers' vectors, each at length 1: float64 (a, d)."""
        self.counts = np.zeros(0, np.int64)

    def add(self, engaged: Engaged, users: StoredVectors) -> None:
        """Take in who engaged with what; the users' hashes are above those of all calls before.

        Parameters
        ----------
        engaged : Engaged
        users : StoredVectors
            Engagers who are not in it do not count.
        """
        positions = users.positions(engaged.users)[engaged.rows]
        entries = np.flatnonzero(positions >= 0)
        self._make_room(engaged.ad_ids[np.unique(engaged.ads[entries])])
        place = np.searchsorted(self.ids, engaged.ad_ids)[engaged.ads[entries]]
        for start in range(0, len(entries), _BLOCK_ENTRIES):
            block = slice(start, start + _BLOCK_ENTRIES)
            units = users.units(positions[entries[block]]).astype(np.float64)
            np.add.at(self.sums, place[block], units)
        self.counts += np.bincount(place, minlength=len(self.ids))

    def means(self) -> np.ndarray:
        """Return the mean of each ad's engagers, float32 (a, d)."""
        return (self.sums / self.counts[:, np.newaxis]).astype(np.float32)

    def _make_room(self, ids: np.ndarray) -> None:
        every = np.union1d(self.ids, ids)
        before = np.searchsorted(every, self.ids)
        sums, counts = np.zeros((len(every), self.sums.shape[1])), np.zeros(len(every), np.int64)
        sums[before], counts[before] = self.sums, self.counts
        self.ids, self.sums, self.counts = every, sums, counts


def write_engagers(
    deployment: Deployment, hour_us: int, version: str, engagers: EngagerSums
) -> Checkpoint:
    """Write an hour's store of ads' engagers, of the users' version."""
    ids, vectors = engagers.ids, engagers.means()
    layout = Layout(version, half_precision(vectors), 0, 1)
    return write_vectors(
        deployment.vectors,
        f"engagers/{hour_key(hour_us)}",
        layout,
        last_known_us(hour_us),
        lambda _: (ids, vectors),
    )
